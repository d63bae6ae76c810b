//! Recorded motion: whatever the file holds, a take plays to its end or is one error.
#![no_main]

use mimic::animate::take::{Reader, Steady};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let path = std::env::temp_dir().join(format!("mimic-fuzz-{}.take", std::process::id()));
    std::fs::write(&path, input).expect("the system's folder for temporary files can be written");
    if let Ok(mut reader) = Reader::open(&path) {
        let (records, mut read) = (reader.records(), 0);
        while let Ok(Some((seconds, keypoints))) = reader.read() {
            assert!(seconds.is_finite());
            assert!(keypoints.value.iter().flatten().all(|v| v.is_finite()));
            read += 1;
        }
        assert!(read <= records && records <= input.len() as u64);
    }
    if let Ok(mut frames) = Steady::open(&path, 25.0) {
        // A take may last for years; its first frames and its last are enough here.
        let last = frames.frames().saturating_sub(2);
        for from in [0, last] {
            if frames.seek(from).is_ok() {
                for _ in 0..3 {
                    let _ = frames.read();
                }
            }
        }
    }
});

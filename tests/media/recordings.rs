//! Live recordings: the time of what is shown, and what is kept when something goes wrong.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use image::RgbaImage;
use mimic::media::record::{Microphone, Recorder};
use mimic::media::{Error, Fps};

use crate::helpers::{Folder, assert_sentence, corners, probe, quarters, read_all};

fn start(path: &Path, width: u32, height: u32) -> Recorder {
    let fps = Fps::new(25, 1).unwrap();
    Recorder::start(path, width, height, fps, Microphone::Off, None)
        .unwrap_or_else(|e| panic!("{e}"))
}

/// Pushes a picture when the recorder has room for it, as if it came at `ms` milliseconds.
fn push(recorder: &mut Recorder, picture: &RgbaImage, start: Instant, ms: u64) {
    let before = recorder.dropped();
    recorder.push(picture, start + Duration::from_millis(ms));
    if recorder.dropped() > before && recorder.error().is_none() {
        std::thread::sleep(Duration::from_millis(20));
        push(recorder, picture, start, ms);
    }
}

fn grey(level: u8) -> RgbaImage {
    RgbaImage::from_pixel(64, 48, image::Rgba([level, level, level, 255]))
}

#[test]
fn every_slot_shows_the_last_picture_of_its_time() {
    let folder = Folder::new();
    let path = folder.path("take.mp4");
    let mut recorder = start(&path, 64, 48);
    let begin = Instant::now();
    // At 25 a second: two in slot 0, one in 2, one in 3, nothing until 7.
    for (level, ms) in [(10, 0), (60, 30), (110, 80), (160, 130), (210, 290)] {
        push(&mut recorder, &grey(level), begin, ms);
    }
    let summary = recorder.finish().unwrap();
    assert_eq!(summary.path, path);
    assert_eq!(summary.frames, 8);
    assert!((summary.seconds - 8.0 / 25.0).abs() < 1e-9 && summary.silent.is_none());
    let levels: Vec<u8> = read_all(&path)
        .iter()
        .map(|f| f.get_pixel(32, 24)[0])
        .collect();
    let want = [60, 60, 110, 160, 160, 160, 160, 210];
    assert_eq!(levels.len(), want.len());
    for (got, want) in levels.iter().zip(want) {
        assert!(got.abs_diff(want) <= 4, "{levels:?}");
    }
    assert_eq!(folder.list(), ["take.mp4"], "nothing else is left");
}

#[test]
fn a_recording_is_an_mp4_that_plays_everywhere() {
    let folder = Folder::new();
    let path = folder.path("new/take.mp4");
    let mut recorder = start(&path, 65, 49);
    let begin = Instant::now();
    push(&mut recorder, &quarters(65, 49), begin, 0);
    // Of another size: fitted in.
    push(&mut recorder, &quarters(650, 490), begin, 100);
    push(&mut recorder, &quarters(49, 490), begin, 200);
    recorder.finish().unwrap();
    assert_eq!(
        probe(&path, "v", "codec_name,pix_fmt,width,height"),
        "h264\n66\n50\nyuv420p"
    );
    let bytes = std::fs::read(&path).unwrap();
    let at = |what: &[u8]| bytes.windows(4).position(|w| w == what);
    assert!(
        at(b"moov") < at(b"mdat") && at(b"moof").is_none(),
        "the index is in front"
    );
    let frames = read_all(&path);
    assert_eq!(
        (corners(&frames[0]), corners(&frames[3])),
        ("rgbw".into(), "rgbw".into())
    );
    assert_eq!(
        frames[5].get_pixel(3, 25).0[..3],
        [0; 3],
        "black beside the narrow one"
    );
}

#[test]
fn a_caller_never_waits() {
    let folder = Folder::new();
    let mut recorder = start(&folder.path("take.mp4"), 1280, 720);
    let picture = quarters(1280, 720);
    let begin = Instant::now();
    let mut longest = Duration::ZERO;
    for ms in 0..300 {
        let before = Instant::now();
        recorder.push(&picture, begin + Duration::from_millis(ms * 40));
        longest = longest.max(before.elapsed());
    }
    // Twelve seconds of pictures in a moment: most of them do not fit.
    let dropped = recorder.dropped();
    assert!(dropped > 50, "{dropped} dropped");
    assert!(longest < Duration::from_millis(200), "{longest:?}");
    assert_eq!(recorder.finish().unwrap().dropped, dropped);
}

#[test]
fn what_cannot_be_recorded_is_said_at_once_or_at_the_end() {
    let folder = Folder::new();
    let file = folder.file("file", "x");
    let fps = Fps::new(25, 1).unwrap();
    for path in [file.join("take.mp4"), folder.path("")] {
        let error = Recorder::start(&path, 64, 48, fps, Microphone::Off, None).unwrap_err();
        assert_sentence(&error, &path);
    }
    assert!(Recorder::start(&folder.path("a.mp4"), 0, 48, fps, Microphone::Off, None).is_err());
    let path = folder.path("empty.mp4");
    let error = start(&path, 64, 48).finish().unwrap_err();
    assert!(matches!(error, Error::NothingWritten { .. }), "{error}");
    assert_eq!(folder.list(), ["file"]);
}

/// Ends the ffmpeg that writes into a folder, as a crash or the system would.
#[cfg(target_os = "linux")]
fn kill_ffmpeg_of(folder: &Folder) {
    let of_folder = folder.path("");
    let of_folder = of_folder.to_string_lossy();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments);
        if arguments.starts_with("ffmpeg") && arguments.contains(of_folder.as_ref()) {
            let id = entry.file_name();
            assert!(
                Command::new("kill")
                    .arg("-9")
                    .arg(id)
                    .status()
                    .unwrap()
                    .success()
            );
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn when_the_encoder_dies_what_was_recorded_is_kept() {
    let folder = Folder::new();
    let path = folder.path("take.mp4");
    let mut recorder = start(&path, 64, 48);
    let begin = Instant::now();
    // Enough for fragments of two seconds to be written, the encoder's delay notwithstanding.
    for n in 0..300u64 {
        push(&mut recorder, &grey((n % 200) as u8), begin, n * 40);
    }
    let fragments = || {
        let names = folder.list();
        let hidden = names.iter().find(|n| n.starts_with(".mimic-"));
        let bytes = hidden.map_or(Vec::new(), |n| std::fs::read(folder.path(n)).unwrap());
        bytes.windows(4).filter(|w| w == b"moof").count()
    };
    let patience = Instant::now();
    while fragments() < 2 && patience.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(50));
    }
    kill_ffmpeg_of(&folder);
    while recorder.error().is_none() && patience.elapsed() < Duration::from_secs(40) {
        let now = begin.elapsed().as_millis() as u64 + 12_000;
        recorder.push(&grey(0), begin + Duration::from_millis(now));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(recorder.error().is_some(), "it is noticed while recording");
    let error = recorder.finish().unwrap_err();
    let Error::Interrupted { seconds, .. } = error else {
        panic!("{error}");
    };
    // A fragment has two seconds; the last may not have been written to its end.
    assert!(seconds >= 1.9, "{seconds}");
    assert_sentence(&error, &path);
    assert!(read_all(&path).len() >= 48);
    assert_eq!(folder.list(), ["take.mp4"]);
}

/// A file system of one megabyte; none where it may not be made.
#[cfg(target_os = "linux")]
struct Tiny(Folder);

#[cfg(target_os = "linux")]
impl Tiny {
    fn mount() -> Option<Self> {
        let folder = Folder::new();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
            .arg(folder.path(""))
            .stderr(std::process::Stdio::null())
            .status();
        mounted
            .is_ok_and(|status| status.success())
            .then_some(Self(folder))
    }
}

#[cfg(target_os = "linux")]
impl Drop for Tiny {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("-l")
            .arg(self.0.path(""))
            .status();
    }
}

#[cfg(target_os = "linux")]
#[test]
#[allow(clippy::print_stderr, reason = "says why it does nothing")]
fn a_full_disk_ends_the_recording_and_keeps_it() {
    let Some(tiny) = Tiny::mount() else {
        eprintln!("left out: only root can make a tiny file system");
        return;
    };
    let path = tiny.0.path("take.mp4");
    let mut recorder = start(&path, 640, 480);
    let begin = Instant::now();
    // Noise, which does not compress.
    let mut state = 1u32;
    let mut noise = RgbaImage::new(640, 480);
    for n in 0..600u64 {
        for byte in noise.iter_mut() {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = (state >> 24) as u8;
        }
        // Three calm seconds first.
        let picture = if n < 75 {
            quarters(640, 480)
        } else {
            noise.clone()
        };
        push(&mut recorder, &picture, begin, n * 40);
        if recorder.error().is_some() {
            break;
        }
    }
    let error = recorder.finish().unwrap_err();
    assert!(error.to_string().contains("the disk is full"), "{error}");
    assert!(matches!(error, Error::Interrupted { .. }), "{error}");
    assert_eq!(corners(&read_all(&path)[0]), "rgbw");
}

/// Says to a copy of this program that it has a microphone to record.
#[cfg(target_os = "linux")]
const HAS_MICROPHONE: &str = "MIMIC_TEST_MICROPHONE";

#[cfg(target_os = "linux")]
#[test]
fn the_microphones_sound_is_beside_the_pictures() {
    if std::env::var_os(HAS_MICROPHONE).is_some() {
        return record_the_microphone();
    }
    // ALSA itself, with a microphone that plays a file (and no PulseAudio to ask before it).
    let folder = Folder::new();
    let tone = folder.ffmpeg("-f lavfi -i sine=f=440:r=48000:d=60 -ac 1 -f s16le", "tone");
    let microphone = format!(
        "pcm.!default {{ type file slave.pcm {{ type null }} file /dev/null infile \"{}\" format raw }}",
        tone.display()
    );
    let config = folder.file("asound.conf", microphone);
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "recordings::the_microphones_sound_is_beside_the_pictures",
        ])
        .env(HAS_MICROPHONE, "1")
        .env("ALSA_CONFIG_PATH", config)
        .env("PULSE_SERVER", "/nowhere")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}"
    );
}

#[cfg(target_os = "linux")]
fn record_the_microphone() {
    let folder = Folder::new();
    let path = folder.path("take.mp4");
    let fps = Fps::new(25, 1).unwrap();
    let mut recorder = Recorder::start(&path, 64, 48, fps, Microphone::On, None).unwrap();
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(3) {
        recorder.push(&grey(100), Instant::now());
        std::thread::sleep(Duration::from_millis(40));
    }
    let summary = recorder.finish().unwrap();
    assert_eq!(summary.silent, None);
    assert_eq!(probe(&path, "a", "codec_name"), "aac");
    let output = Command::new("ffmpeg")
        .args(["-nostdin", "-i"])
        .arg(&path)
        .args(["-af", "volumedetect", "-f", "null", "-"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let volume: f32 = said
        .split("max_volume: ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .unwrap()
        .parse()
        .unwrap();
    // Not the mean: a busy machine hears the first of it late, which is silence.
    assert!((-25.0..-10.0).contains(&volume), "{volume} dB");
    assert_eq!(folder.list(), ["take.mp4"]);
}

#[test]
fn without_a_microphone_a_recording_is_silent_and_says_why() {
    let folder = Folder::new();
    let path = folder.path("take.mp4");
    let fps = Fps::new(25, 1).unwrap();
    let mut recorder = Recorder::start(&path, 64, 48, fps, Microphone::On, None).unwrap();
    push(&mut recorder, &grey(100), Instant::now(), 0);
    let summary = recorder.finish().unwrap();
    let sound = probe(&path, "a", "codec_name");
    match summary.silent {
        Some(why) => assert!(
            sound.is_empty() && !why.is_empty() && !why.contains('\n'),
            "{why}"
        ),
        None => assert_eq!(sound, "aac", "this machine has a microphone"),
    }
}

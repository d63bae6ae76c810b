//! Hostile and damaged weights: one clear error each, nothing run, little memory, no panic.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mimic::checkpoint::{self, Error};
use proptest::prelude::*;
use proptest::sample::Index;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn files(folder: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(fixtures().join(folder))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_none_or(|ext| ext != "py"))
        .collect();
    files.sort();
    files
}

/// Most memory this process ever held, in bytes, where the system tells.
fn peak_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim()
        .strip_suffix(" kB")?
        .parse::<u64>()
        .ok()
        .map(|kib| kib * 1024)
}

#[test]
fn every_hostile_file_gives_one_clear_error() {
    let files = files("hostile");
    assert!(files.len() > 150, "{}", files.len());
    for path in files {
        let name = path.file_name().unwrap().to_str().unwrap();
        let before = peak_memory();
        let start = Instant::now();
        let error = checkpoint::open(&path)
            .map(|opened| opened.tensors)
            .expect_err(name);
        assert!(
            start.elapsed() < Duration::from_secs(2),
            "{name} took {:?}",
            start.elapsed()
        );
        if let (Some(before), Some(after)) = (before, peak_memory()) {
            assert!(
                after - before < 48 << 20,
                "{name} took {} MB",
                (after - before) >> 20
            );
        }
        let text = error.to_string();
        assert!(text.contains(name), "{text}");
        assert!(!text.contains(char::is_control), "{text:?}");
        assert!(text.len() - path.as_os_str().len() < 500, "{text}");
    }
}

#[test]
fn code_is_refused_by_its_name() {
    for (file, global) in [
        ("os_system.pdparams", "os.system"),
        ("os_system.pth", "os.system"),
        ("os_system_legacy.pth", "os.system"),
        ("posix_system.pdparams", "posix.system"),
        ("eval.pdparams", "builtins.eval"),
        ("stack_global.pdparams", "subprocess.Popen"),
        ("newobj.pdparams", "subprocess.Popen"),
        ("hidden_in_optimizer.pth", "os.system"),
        ("hidden_in_key_list.pth", "os.system"),
        ("hidden_in_machine.pth", "os.system"),
        ("torch_hub.pdparams", "torch.hub.load"),
        ("torch_storage_load.pth", "torch.storage._load_from_bytes"),
    ] {
        match checkpoint::open(&fixtures().join("hostile").join(file)) {
            Err(Error::Refused { global: found, .. }) => assert_eq!(found, global, "{file}"),
            other => panic!("{file}: {other:?}"),
        }
    }
}

#[test]
fn the_reason_is_the_one_that_helps() {
    for (file, reason) in [
        ("petabyte.safetensors", "its header and its length disagree"),
        (
            "petabyte_header.safetensors",
            "a header of 1125899906842624 bytes",
        ),
        ("petabyte.pth", "of shape [281474976710656]"),
        ("petabyte_broadcast.pth", "of shape [1048576, 268435456]"),
        ("petabyte.pdparams", "of shape [281474976710656]"),
        (
            "overflowing_shape.pth",
            "of shape [4611686018427387904, 4611686018427387904]",
        ),
        (
            "over_4_gib_bytes.pdparams",
            "end too early for a Paddle file",
        ),
        (
            "shared_thousandfold.pth",
            "more numbers than it has room for (in generator.w",
        ),
        (
            "shared_text_thousandfold.pdparams",
            "more numbers than it has room for (in generator.w",
        ),
        ("deep_dicts.pdparams", "dictionaries nested over 8 deep"),
        ("deep_json.safetensors", "its header is no list of tensors"),
        ("cyclic_dict.pdparams", "dictionaries nested over 8 deep"),
        ("billion_laughs.pdparams", "more than 65536 values"),
        ("memo_never_stored.pdparams", "recalls memo 7"),
        ("stack_below_mark.pdparams", "takes more from the stack"),
        ("negative_size.pth", "negative size"),
        ("negative_stride.pth", "negative size, offset or stride"),
        (
            "past_its_storage.pth",
            "generator.weight reaches past its data",
        ),
        (
            "strides_past_storage.pth",
            "generator.weight reaches past its data",
        ),
        (
            "view_past_storage.pth",
            "generator.weight reaches past its storage",
        ),
        ("missing_storage.pth", "\"m/data/7\" is missing"),
        (
            "storage_path_traversal.pth",
            "\"m/data/../../../etc/passwd\" is missing",
        ),
        (
            "integer_weights.pth",
            "holds int32 where weights are floating-point",
        ),
        ("big_endian.pth", "big-endian"),
        ("big_endian.pdparams", "big-endian"),
        (
            "same_name_after_renaming.pdparams",
            "two tensors named generator.w",
        ),
        ("bomb.pth", "compressed or encrypted"),
        ("overlapping_records.pth", "records overlap"),
        (
            "two_records_of_one_name.pth",
            "two records named \"m/data/0\"",
        ),
        ("wrong_checksum.pth", "fails its checksum"),
        ("no_pickle.pth", "a zip without data.pkl"),
        (
            "zip_without_directory.pth",
            "end too early for a PyTorch (zip) file",
        ),
        (
            "zip64_of_a_quintillion.pth",
            "a zip of 1152921504606846976 records",
        ),
        ("overlapping.safetensors", "safetensors"),
        (
            "trailing_bytes.safetensors",
            "its header and its length disagree",
        ),
        ("empty.safetensors", "an empty file"),
        ("lfs_pointer.safetensors", "git lfs pull"),
        ("web_page.pth.tar", "a web page"),
        ("json_error.pdparams", "in no known format"),
        ("picture.pth", "in no known format"),
        ("no_tensors.pdparams", "hold no tensors"),
        ("list_as_root.pdparams", "no dictionary of tensors"),
        (
            "cut_at_45000_vox_tiny_legacy.pth.tar",
            "end too early for a PyTorch (before 1.6) file",
        ),
        (
            "cut_at_5000_vox_tiny.pdparams",
            "end too early for a Paddle file",
        ),
        (
            "cut_at_5000_vox_tiny_zip.pth.tar",
            "end too early for a PyTorch (zip) file",
        ),
    ] {
        let error = checkpoint::open(&fixtures().join("hostile").join(file)).unwrap_err();
        assert!(error.to_string().contains(reason), "{file}: {error}");
    }
}

#[test]
fn a_flood_of_opcodes_ends_early() {
    // A million times each; the file does not even have to end.
    for flood in [
        &b"}"[..],
        b"N",
        b"(",
        b"]\x94",
        b"2",
        b"ccollections\nOrderedDict\n",
        b"ccollections\nOrderedDict\n)R",
        b"(t",
    ] {
        let mut file = b"\x80\x02}".to_vec();
        file.extend(flood.repeat(1 << 20));
        let start = Instant::now();
        let error = checkpoint::from_bytes(&file, "a flood").unwrap_err();
        assert!(matches!(error, Error::Limit { .. }), "{error}");
        assert!(
            start.elapsed() < Duration::from_secs(2),
            "{:?}",
            start.elapsed()
        );
    }
    // The same list of a thousand pairs, made into a dictionary over and over.
    let mut file = b"\x80\x02]q\x00(".to_vec();
    file.extend(
        b"]q\x01(NNe"
            .iter()
            .chain(b"h\x01".iter().cycle().take(2000)),
    );
    file.extend(b"e0");
    file.extend(
        b"ccollections\nOrderedDict\n(h\x00tR"
            .iter()
            .cycle()
            .take(1 << 20),
    );
    let error = checkpoint::from_bytes(&file, "a flood").unwrap_err();
    assert!(matches!(error, Error::Limit { .. }), "{error}");
    if let Some(peak) = peak_memory() {
        assert!(peak < 500 << 20, "{} MB", peak >> 20);
    }
}

/// Sound files of every format, the small ones first.
fn sound() -> Vec<Vec<u8>> {
    let whole = [
        "vox_tiny_zip.pth.tar",
        "vox_tiny_legacy.pth.tar",
        "mobile_tiny.pdparams",
    ];
    let large = whole.iter().map(|name| fixtures().join(name));
    files("unusual")
        .into_iter()
        .chain(large)
        .map(|path| fs::read(path).unwrap())
        .collect()
}

/// A change somewhere in a file; most of them near its start, where the descriptions are.
#[derive(Clone, Debug)]
struct Change {
    at: Index,
    early: bool,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Set(Vec<u8>),
    Insert(Vec<u8>),
    Remove(usize),
    /// Bytes of another place in the file.
    Copy(Index, usize),
}

impl Change {
    fn apply(&self, file: &mut Vec<u8>) {
        let range = if self.early {
            file.len().min(4096)
        } else {
            file.len()
        };
        if range == 0 {
            return;
        }
        let at = self.at.index(range);
        match &self.kind {
            Kind::Set(bytes) => {
                let end = file.len().min(at + bytes.len());
                file[at..end].copy_from_slice(&bytes[..end - at]);
            }
            Kind::Insert(bytes) => drop(file.splice(at..at, bytes.iter().copied())),
            Kind::Remove(len) => drop(file.drain(at..file.len().min(at + len))),
            Kind::Copy(from, len) => {
                let from = from.index(range);
                let part = file[from..file.len().min(from + len)].to_vec();
                drop(file.splice(at..at, part));
            }
        }
    }
}

fn change() -> impl Strategy<Value = Change> {
    // Numbers at the edges of their types are the most likely to go wrong.
    let edge = prop::sample::select(vec![
        0u64,
        1,
        0x7f,
        0xff,
        0x7fff_ffff,
        0xffff_ffff,
        1 << 62,
        !0,
    ]);
    let bytes = prop_oneof![
        prop::collection::vec(any::<u8>(), 1..8),
        (edge, 1usize..9).prop_map(|(edge, len)| edge.to_le_bytes()[..len].to_vec()),
    ];
    let kind = prop_oneof![
        4 => bytes.clone().prop_map(Kind::Set),
        2 => bytes.prop_map(Kind::Insert),
        1 => (1usize..64).prop_map(Kind::Remove),
        1 => (any::<Index>(), 1usize..64).prop_map(|(from, len)| Kind::Copy(from, len)),
    ];
    (any::<Index>(), prop::bool::weighted(0.8), kind).prop_map(|(at, early, kind)| Change {
        at,
        early,
        kind,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn changed_files_never_panic(which in any::<Index>(), changes in prop::collection::vec(change(), 1..4)) {
        thread_local!(static SOUND: Vec<Vec<u8>> = sound());
        SOUND.with(|sound| {
            let mut file = which.get(sound).clone();
            changes.iter().for_each(|change| change.apply(&mut file));
            // Some changes do no harm; none may panic or take more than its size allows.
            if let Ok(opened) = checkpoint::from_bytes(&file, "a changed file") {
                let numbers: usize = opened.tensors.values().map(|t| t.elem_count()).sum();
                assert!(numbers <= 2 * file.len());
            }
        });
    }

    #[test]
    fn a_file_cut_short_is_never_taken_for_whole(which in any::<Index>(), at in any::<Index>()) {
        thread_local!(static SOUND: Vec<Vec<u8>> = sound());
        SOUND.with(|sound| {
            let file = which.get(sound);
            let cut = &file[..at.index(file.len())];
            prop_assert!(checkpoint::from_bytes(cut, "a cut file").is_err());
            Ok(())
        })?;
    }
}

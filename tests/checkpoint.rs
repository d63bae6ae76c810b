//! Every form of a checkpoint opens to the same tensors, and says clearly why when it does not.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use mimic::checkpoint::{self, Checkpoint, Error, Format};
use mimic::model::config::ModelConfig;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn open(name: &str) -> Checkpoint {
    checkpoint::open(&fixture(name)).unwrap()
}

/// Names and shapes as recorded from PaddleGAN, in PyTorch's vocabulary.
fn recorded(name: &str) -> BTreeMap<String, Vec<usize>> {
    let text = fs::read_to_string(fixture(name)).unwrap();
    let keys: BTreeMap<String, Vec<usize>> = serde_json::from_str(&text).unwrap();
    keys.into_iter()
        .map(|(name, shape)| {
            let name = name
                .replace("._mean", ".running_mean")
                .replace("._variance", ".running_var");
            (name, shape)
        })
        .collect()
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor
        .to_dtype(DType::F32)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

fn assert_same_tensors(a: &Checkpoint, b: &Checkpoint) {
    assert!(
        a.tensors.keys().eq(b.tensors.keys()),
        "{} and {}",
        a.what,
        b.what
    );
    for (name, tensor) in &a.tensors {
        assert_eq!(tensor.dims(), b.tensors[name].dims(), "{name}");
        assert_eq!(numbers(tensor), numbers(&b.tensors[name]), "{name}");
    }
}

#[test]
fn every_form_of_a_model_holds_the_same_tensors() {
    let paddle = open("vox_tiny.pdparams");
    let zip = open("vox_tiny_zip.pth.tar");
    let legacy = open("vox_tiny_legacy.pth.tar");
    assert_eq!(paddle.format, Format::Pdparams);
    assert_eq!(zip.format, Format::TorchZip);
    assert_eq!(legacy.format, Format::TorchLegacy);
    assert_same_tensors(&paddle, &zip);
    assert_same_tensors(&paddle, &legacy);
    assert_same_tensors(
        &open("mobile_tiny.pdparams"),
        &open("mobile_tiny_ndarray.pdparams"),
    );
}

#[test]
fn names_and_shapes_are_the_recorded_ones() {
    for (file, keys) in [
        ("vox_tiny.pdparams", "vox_tiny.keys.json"),
        ("vox_tiny_zip.pth.tar", "vox_tiny.keys.json"),
        ("vox_tiny_legacy.pth.tar", "vox_tiny.keys.json"),
        ("mobile_tiny.pdparams", "mobile_tiny.keys.json"),
        ("mobile_tiny_ndarray.pdparams", "mobile_tiny.keys.json"),
    ] {
        let expected = recorded(keys);
        let opened = open(file);
        let found: BTreeMap<String, Vec<usize>> = opened
            .tensors
            .iter()
            .map(|(name, t)| (name.clone(), t.dims().to_vec()))
            .collect();
        assert_eq!(found, expected, "{file}");
        checkpoint::check(&opened, &expected).unwrap();
        checkpoint::check_values(&opened).unwrap();
    }
}

#[test]
fn training_state_is_left_and_counted() {
    assert_eq!(open("vox_tiny.pdparams").skipped, 0);
    let zip = open("vox_tiny_zip.pth.tar");
    // 37 batch counters, the two parts of an optimiser, an epoch.
    assert_eq!(zip.skipped, 40);
    assert_eq!(zip.skipped, open("vox_tiny_legacy.pth.tar").skipped);
    for name in zip.tensors.keys() {
        assert!(
            name.starts_with("generator.") || name.starts_with("kp_detector."),
            "{name}"
        );
    }
}

#[test]
fn unusual_files_hold_what_they_say() {
    let mut seen = 0;
    for entry in fs::read_dir(fixture("unusual")).unwrap() {
        let path = entry.unwrap().path();
        let opened = checkpoint::open(&path).unwrap();
        let names: Vec<_> = opened.tensors.keys().map(String::as_str).collect();
        assert_eq!(names, ["generator.weight"], "{}", path.display());
        let weight = &opened.tensors["generator.weight"];
        assert_eq!(weight.dims(), [2, 2], "{}", path.display());
        assert_eq!(numbers(weight), [1.0, 2.0, 3.0, 4.0], "{}", path.display());
        seen += 1;
    }
    assert!(seen > 15, "{seen}");
}

#[test]
fn stored_types_are_kept_but_for_f64() {
    for (file, dtype) in [
        ("unusual/half.pth", DType::F16),
        ("unusual/half.pdparams", DType::F16),
        ("unusual/bfloat16.pth", DType::BF16),
        ("unusual/bfloat16.safetensors", DType::BF16),
        ("unusual/double.pth", DType::F32),
        ("unusual/fortran.pdparams", DType::F32),
    ] {
        assert_eq!(
            open(file).tensors["generator.weight"].dtype(),
            dtype,
            "{file}"
        );
    }
}

#[test]
fn the_embedded_model_is_whole() {
    let model = checkpoint::embedded().unwrap();
    assert_eq!(model.name.as_deref(), Some("mimic-small"));
    let parameters: usize = model.tensors.values().map(Tensor::elem_count).sum();
    assert!((7_500_000..8_500_000).contains(&parameters), "{parameters}");
    assert!(model.tensors.values().all(|t| t.dtype() == DType::F16));
    checkpoint::check_values(&model).unwrap();
    let config: serde_json::Value = serde_json::from_str(&model.config.unwrap()).unwrap();
    assert_eq!(config["common_params"]["num_kp"], 10);
    assert_eq!(config["generator_params"]["num_bottleneck_blocks"], 4);
}

#[test]
fn the_embedded_model_fits_its_own_configuration_and_no_other() {
    let model = checkpoint::embedded().unwrap();
    let config = model.config.as_deref().unwrap();
    let config = ModelConfig::from_json(config, model.name.as_deref()).unwrap();
    checkpoint::check(&model, &config.expected_tensors()).unwrap();
    let other = ModelConfig::preset("vox-256").unwrap().expected_tensors();
    let error = checkpoint::check(&model, &other).unwrap_err().to_string();
    assert!(error.contains("of another shape (generator."), "{error}");
}

#[test]
fn the_lean_form_comes_back_as_it_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let original = open("vox_tiny_legacy.pth.tar");
    let config = r#"{"common_params": {"num_kp": 10}}"#;

    let full = folder.path().join("full.safetensors");
    checkpoint::save_lean(&full, &original.tensors, config, "tiny", false).unwrap();
    let back = checkpoint::open(&full).unwrap();
    assert_same_tensors(&original, &back);
    assert_eq!((back.format, back.skipped), (Format::Safetensors, 0));
    assert_eq!(back.config.as_deref(), Some(config));
    assert_eq!(back.name.as_deref(), Some("tiny"));

    let half = folder.path().join("half.safetensors");
    checkpoint::save_lean(&half, &original.tensors, config, "tiny", true).unwrap();
    let (full_len, half_len) = (
        fs::metadata(&full).unwrap().len(),
        fs::metadata(&half).unwrap().len(),
    );
    assert!(half_len < full_len * 11 / 20, "{half_len} of {full_len}");
    for (name, tensor) in &checkpoint::open(&half).unwrap().tensors {
        assert_eq!(tensor.dtype(), DType::F16);
        for (a, b) in numbers(tensor)
            .into_iter()
            .zip(numbers(&original.tensors[name]))
        {
            assert!(
                (a - b).abs() <= b.abs() / 1024.0 + 1e-7,
                "{name}: {a} for {b}"
            );
        }
    }

    // The same tensors give the same bytes, also over a file that is there.
    let bytes = fs::read(&half).unwrap();
    checkpoint::save_lean(&half, &original.tensors, config, "tiny", true).unwrap();
    assert_eq!(bytes, fs::read(&half).unwrap());
}

#[test]
fn a_failed_save_leaves_the_folder_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    fs::write(&path, "old").unwrap();
    let save = |value: f32, half| {
        let good = Tensor::zeros(1000, DType::F32, &Device::Cpu).unwrap();
        let bad = Tensor::from_vec(vec![1.0, value], 2, &Device::Cpu).unwrap();
        let tensors = BTreeMap::from([("a".to_owned(), good), ("b".to_owned(), bad)]);
        checkpoint::save_lean(&path, &tensors, "{}", "bad", half)
    };
    assert!(matches!(save(f32::NAN, false), Err(Error::NotFinite { name, .. }) if name == "b"));
    assert!(matches!(save(1e5, true), Err(Error::HalfRange { name, .. }) if name == "b"));
    assert_eq!(fs::read_to_string(&path).unwrap(), "old");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    save(1e5, false).unwrap();

    let nowhere = folder.path().join("no/such/folder/model.safetensors");
    let error = checkpoint::save_lean(&nowhere, &BTreeMap::new(), "{}", "x", true).unwrap_err();
    assert!(error.to_string().contains("no/such/folder"), "{error}");
}

#[cfg(unix)]
#[test]
fn saved_weights_have_the_permissions_of_other_new_files() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let (plain, saved) = (
        folder.path().join("plain"),
        folder.path().join("saved.safetensors"),
    );
    fs::write(&plain, "x").unwrap();
    let tensors = open("unusual/half.pth").tensors;
    checkpoint::save_lean(&saved, &tensors, "{}", "x", true).unwrap();
    let mode = |path| fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&saved), mode(&plain));
}

#[test]
fn differences_are_named_tensor_by_tensor_both_ways() {
    let model = open("vox_tiny.pdparams");
    let mut expected = recorded("vox_tiny.keys.json");
    expected.remove("kp_detector.kp.bias").unwrap();
    expected.insert("generator.new.weight".into(), vec![3, 2]);
    expected.insert("generator.first.norm.weight".into(), vec![99]);
    // Constants that networks compute may be there or not.
    expected.remove("kp_detector.down.weight").unwrap();
    expected.insert("generator.down.weight".into(), vec![3, 1, 13, 13]);

    let error = checkpoint::check(&model, &expected).unwrap_err();
    let text = error.to_string();
    let Error::Mismatch { mismatch, .. } = error else {
        panic!("{text}")
    };
    assert_eq!(
        mismatch.missing,
        [("generator.new.weight".into(), vec![3, 2])]
    );
    assert_eq!(mismatch.extra, ["kp_detector.kp.bias"]);
    assert_eq!(
        mismatch.wrong_shape,
        [("generator.first.norm.weight".into(), vec![8], vec![99])]
    );
    assert_eq!(
        text.split_once("vox_tiny.pdparams ").unwrap().1,
        "do not fit the model: 1 tensor is missing (generator.new.weight [3, 2]), 1 tensor is \
         unknown (kp_detector.kp.bias), 1 tensor is of another shape (generator.first.norm.weight \
         [8] in place of [99]); give the YAML file they were trained with"
    );

    let text = checkpoint::check(&model, &recorded("mobile_tiny.keys.json"))
        .unwrap_err()
        .to_string();
    assert!(text.contains(" more)"), "{text}");
    assert!(text.len() < 4000 && !text.contains('\n'), "{text}");
}

#[test]
fn weights_that_are_no_numbers_are_named() {
    for (dtype, value) in [
        (DType::F32, f32::NAN),
        (DType::F16, f32::INFINITY),
        (DType::BF16, f32::NEG_INFINITY),
    ] {
        let mut model = open("unusual/half.pth");
        let bad = Tensor::from_vec(vec![0.0, value], 2, &Device::Cpu).unwrap();
        model
            .tensors
            .insert("generator.bad".into(), bad.to_dtype(dtype).unwrap());
        let error = checkpoint::check_values(&model).unwrap_err().to_string();
        assert!(
            error.contains("generator.bad") && error.contains("half.pth"),
            "{error}"
        );
    }
}

#[test]
fn variances_below_zero_are_named() {
    let mut model = open("unusual/half.pth");
    let bad = Tensor::new(&[1.0f32, -1e-3], &Device::Cpu).unwrap();
    let name = "generator.first.norm.running_var";
    model.tensors.insert(name.into(), bad);
    let error = checkpoint::check_values(&model).unwrap_err().to_string();
    assert!(
        error.contains(name) && error.contains("half.pth"),
        "{error}"
    );
}

#[test]
fn what_is_not_a_file_is_said_to_be_so() {
    let error = checkpoint::open(&fixture("no/such/file.pth")).unwrap_err();
    assert!(matches!(error, Error::Read { .. }), "{error}");
    let error = checkpoint::open(&fixture("unusual")).unwrap_err();
    assert!(matches!(error, Error::NotAFile { .. }), "{error}");
}

//! Whole compressions of a very small model.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};

use mimic::checkpoint;
use mimic::model::ModelConfig;
use mimic::train::compress::{Compression, Progress, Row, Teacher};
use mimic::train::trainer::MODEL;
use mimic::train::{self, Options, TrainConfig, Trainer};

use crate::data::clip;
use crate::runs::CONFIG;

/// The student: depthwise, and its four stages short.
fn student() -> String {
    let mobile = CONFIG
        .replace(
            "num_blocks: 2}\n    generator_cfg",
            "num_blocks: 2, mobile_net: True}\n    generator_cfg",
        )
        .replace(
            "estimate_occlusion_map: True",
            "estimate_occlusion_map: True\n      mobile_net: True",
        )
        .replace("generator_gan: 1", "generator_gan: 0");
    assert_eq!(mobile.matches("mobile_net").count(), 2);
    mobile.replace(
        "statistics: 6}",
        "statistics: 4, compress: {steps: [3, 3, 3, 2], prune: 0.4, frames: 2}}",
    )
}

/// Clips to learn from and to measure by, and a teacher that has learnt for two steps.
fn ground() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    for (part, count) in [("train", 3), ("test", 1)] {
        fs::create_dir(folder.path().join(part)).unwrap();
        for i in 0..count {
            let path = folder.path().join(part).join(format!("{i}.mp4"));
            clip(&path, "48x32", 5 + i);
        }
    }
    let changes = [
        format!("dataset.train.dataroot={}", folder.path().display()),
        format!("output_dir={}", folder.path().join("teacher").display()),
    ];
    let config = TrainConfig::from_yaml(CONFIG, &changes).unwrap();
    let options = Options {
        steps: Some(2),
        ..Options::default()
    };
    Trainer::open(config, &options)
        .unwrap()
        .run(|_| {}, &AtomicBool::new(false))
        .unwrap();
    let teacher = folder.path().join("teacher").join(MODEL);
    (folder, teacher)
}

fn mimic(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mimic"))
        .args(args)
        .output()
        .unwrap()
}

/// Compresses into the folder `small`.
fn compress(folder: &Path, teacher: &Path, more: &[&str]) -> Output {
    let yaml = folder.join("student.yaml");
    fs::write(&yaml, student()).unwrap();
    let small = folder.join("small");
    let [teacher, yaml, data, out] =
        [teacher, &yaml, folder, &small].map(|path: &Path| path.to_str().unwrap());
    let mut args = vec!["train", "compress", "--teacher", teacher];
    args.extend(["--config-file", yaml, "--data", data, "--output", out]);
    args.extend(more);
    mimic(&args)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_compression_ends_with_a_smaller_model_that_animates() {
    let (folder, teacher) = ground();
    let output = folder.path().join("small");
    let result = compress(folder.path(), &teacher, &[]);
    assert!(result.status.success(), "{}", said(&result));
    let table = String::from_utf8(result.stdout).unwrap();
    for line in [
        "| teacher |",
        "student's generator",
        "| pruned |",
        "fine-tuned",
        "| 229 | | 0.0418 |",
    ] {
        assert!(table.contains(line), "{line}: {table}");
    }
    assert_eq!(
        table,
        fs::read_to_string(output.join("compression.md")).unwrap()
    );

    let small = output.join(MODEL);
    let weights = checkpoint::open(&small).unwrap();
    let config = ModelConfig::from_json(weights.config.as_ref().unwrap(), None).unwrap();
    checkpoint::check(&weights, &config.expected_tensors()).unwrap();
    let student = TrainConfig::from_yaml(&student(), &[]).unwrap().model;
    let widths = config.generator.widths.clone().unwrap();
    assert!(widths[1] < student.generator.width(1), "{widths:?}");
    let size = |path: &Path| fs::metadata(path).unwrap().len();
    assert!(size(&small) < size(&output.join("3-both").join(MODEL)));

    let video = folder.path().join("out.mp4");
    let photo = crate::common::file("assets/mona-lisa.jpg");
    let driver = folder.path().join("test/0.mp4");
    let animated = mimic(&[
        "animate",
        "--source-image",
        photo.to_str().unwrap(),
        "--driving-video",
        driver.to_str().unwrap(),
        "--weights",
        small.to_str().unwrap(),
        "--crop",
        "whole",
        "--driving-crop",
        "whole",
        "-o",
        video.to_str().unwrap(),
    ]);
    assert!(animated.status.success(), "{}", said(&animated));
    assert!(size(&video) > 500);

    // Nothing is done twice.
    let again = compress(folder.path(), &teacher, &[]);
    let log = said(&again);
    assert!(
        again.status.success() && log.contains("4-fine-tune: done before"),
        "{log}"
    );
    assert!(!log.contains("step "), "{log}");
}

#[test]
fn a_model_that_is_only_pruned_begins_as_it_is() {
    let (folder, teacher) = ground();
    let output = folder.path().join("small");
    let more = ["--only-prune", "-o", "mimic.compress.steps=[3,3,0,2]"];
    let result = compress(folder.path(), &teacher, &more);
    assert!(result.status.success(), "{}", said(&result));
    let table = String::from_utf8(result.stdout).unwrap();
    assert!(
        table.contains("| student |") && !table.contains("student's"),
        "{table}"
    );
    assert!(!output.join("1-keypoints").exists() && !output.join("2-generator").exists());

    let open = |path: &Path| checkpoint::open(path).unwrap();
    let (large, small) = (open(&teacher), open(&output.join(MODEL)));
    let kept = open(&output.join("3-both").join(MODEL));
    let numbers = |of: &checkpoint::Checkpoint, name: &str| {
        let tensor = of.tensors[name].to_dtype(candle_core::DType::F32).unwrap();
        tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    for name in ["kp_detector.kp.weight", "generator.final.weight"] {
        assert_eq!(numbers(&large, name), numbers(&kept, name), "{name}");
    }
    assert_ne!(
        numbers(&kept, "kp_detector.kp.weight"),
        numbers(&small, "kp_detector.kp.weight"),
        "it has learnt after pruning"
    );
    let config = |of: &checkpoint::Checkpoint| {
        ModelConfig::from_json(of.config.as_ref().unwrap(), None).unwrap()
    };
    let (large, small) = (config(&large), config(&small));
    let widths = small.generator.widths.clone().unwrap();
    assert!(widths[1] < large.generator.width(1), "{widths:?}");
    assert!(!small.generator.mobile, "whatever model the file has");

    // The folder is this compression's alone.
    let other = said(&compress(folder.path(), &teacher, &[]));
    assert!(
        other.contains("another student") && other.contains("--output"),
        "{other}"
    );
}

#[test]
fn a_compression_that_was_stopped_goes_on_as_if_it_had_not_been() {
    let (folder, teacher) = ground();
    let run = |output: &str, stop_in: Option<&str>| -> (Vec<Row>, bool) {
        let changes = [
            format!("dataset.train.dataroot={}", folder.path().display()),
            format!("output_dir={}", folder.path().join(output).display()),
        ];
        let config = TrainConfig::from_yaml(&student(), &changes).unwrap();
        let weights = checkpoint::open(&teacher).unwrap();
        let teacher = Teacher {
            name: "teacher".to_owned(),
            config: ModelConfig::from_json(weights.config.as_ref().unwrap(), None).unwrap(),
            tensors: weights.tensors,
        };
        let stop = AtomicBool::new(false);
        let mut stage = String::new();
        let tell = |progress: &Progress<'_>| match progress {
            Progress::Stage { name, .. } => stage = (*name).to_owned(),
            Progress::Training(train::Progress::Steps { step: 2, .. })
                if stop_in == Some(stage.as_str()) =>
            {
                stop.store(true, Ordering::Relaxed);
            }
            _ => {}
        };
        Compression::open(teacher, config, None, 1)
            .unwrap()
            .run(tell, &stop)
            .unwrap()
    };
    let (whole, done) = run("whole", None);
    assert!(done && whole.len() == 6, "{whole:?}");
    assert!(
        whole
            .iter()
            .all(|row| row.l1 > 0.0 && row.milliseconds > 0.0)
    );
    assert!(whole[4].megabytes < whole[3].megabytes);
    let (_, done) = run("parts", Some("2-generator"));
    assert!(!done && !folder.path().join("parts").join(MODEL).exists());
    let (_, done) = run("parts", Some("3-both"));
    assert!(!done);
    let (parts, done) = run("parts", None);
    assert!(done);
    let scores = |rows: &[Row]| {
        rows.iter()
            .map(|row| (row.name.clone(), row.l1))
            .collect::<Vec<_>>()
    };
    assert_eq!(scores(&parts), scores(&whole));
    let state = |output: &str| {
        fs::read(
            folder
                .path()
                .join(output)
                .join("4-fine-tune/state.safetensors"),
        )
        .unwrap()
    };
    assert_eq!(state("parts"), state("whole"));
}

#[test]
fn what_cannot_teach_is_refused_in_one_sentence() {
    let (folder, teacher) = ground();
    let picture = crate::common::file("assets/mona-lisa.jpg");
    let refused = |teacher: &Path, more: &[&str]| {
        let result = compress(folder.path(), teacher, more);
        let message = said(&result);
        assert!(!result.status.success());
        assert_eq!(message.trim().lines().count(), 1, "{message}");
        message
    };
    let other = refused(&teacher, &["-o", "model.common_params.num_kp=4"]);
    assert!(
        other.contains("3 keypoints") && other.contains("num_kp=3"),
        "{other}"
    );
    let other = refused(
        &teacher,
        &["-o", "model.common_params.estimate_jacobian=False"],
    );
    assert!(other.contains("jacobians"), "{other}");
    let missing = refused(&folder.path().join("nothing.safetensors"), &[]);
    assert!(missing.contains("nothing.safetensors"), "{missing}");
    let wrong = refused(&picture, &[]);
    assert!(wrong.contains("mona-lisa.jpg"), "{wrong}");
    fs::remove_dir_all(folder.path().join("test")).unwrap();
    let nothing = refused(&teacher, &[]);
    assert!(nothing.contains("test"), "{nothing}");
}

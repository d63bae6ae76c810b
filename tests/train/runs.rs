//! Whole runs of a very small model: they learn, go on exactly, and end well.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use candle_core::{DType, Tensor};
use mimic::checkpoint;
use mimic::train::config::Precision;
use mimic::train::loader::Batch;
use mimic::train::trainer::{MODEL, STATE};
use mimic::train::{Options, Progress, TrainConfig, Trainer};

use crate::data::clip;

pub(crate) const CONFIG: &str = include_str!("tiny.yaml");

fn clips(folder: &Path) {
    fs::create_dir(folder.join("train")).unwrap();
    for i in 0..3 {
        clip(&folder.join(format!("train/{i}.mp4")), "48x32", 6 + i);
    }
}

fn config(folder: &Path, output: &str) -> TrainConfig {
    let changes = [
        format!("dataset.train.dataroot={}", folder.display()),
        format!("output_dir={}", folder.join(output).display()),
    ];
    TrainConfig::from_yaml(CONFIG, &changes).unwrap()
}

/// Runs to a number of steps; gives every line's sum of losses.
fn run(config: &TrainConfig, steps: u64, resume: Option<&Path>) -> Vec<f64> {
    let options = Options {
        resume: resume.map(Into::into),
        steps: Some(steps),
        ..Options::default()
    };
    let mut sums = Vec::new();
    let tell = |progress: &Progress<'_>| {
        if let Progress::Steps { sum, .. } = progress {
            sums.push(*sum);
        }
    };
    Trainer::open(config.clone(), &options)
        .unwrap()
        .run(tell, &AtomicBool::new(false))
        .unwrap();
    sums
}

#[test]
fn a_run_that_was_interrupted_goes_on_as_if_it_had_not_been() {
    let folder = tempfile::tempdir().unwrap();
    clips(folder.path());
    let whole = run(&config(folder.path(), "whole"), 8, None);
    assert_eq!(whole.len(), 8);
    let parts = config(folder.path(), "parts");
    let mut both = run(&parts, 5, None);
    both.extend(run(
        &parts,
        8,
        Some(&folder.path().join("parts").join(STATE)),
    ));
    assert_eq!(both, whole);
    let read = |output: &str, file: &str| fs::read(folder.path().join(output).join(file)).unwrap();
    assert_eq!(read("parts", STATE), read("whole", STATE));
    let grids = fs::read_dir(folder.path().join("whole/grids"))
        .unwrap()
        .count();
    assert_eq!(grids, 4, "steps 1, 3, 6 and 8");
    // What every other command reads.
    let model = checkpoint::open(&folder.path().join("whole").join(MODEL)).unwrap();
    checkpoint::check(&model, &parts.model.expected_tensors()).unwrap();
    checkpoint::check_values(&model).unwrap();
    assert!(model.config.unwrap().contains("\"border\":\"none\""));
    // A checkpoint of a run is a model too.
    let state = checkpoint::open(&folder.path().join("whole").join(STATE)).unwrap();
    checkpoint::check(&state, &parts.model.expected_tensors()).unwrap();
}

#[test]
fn statistics_are_measured_under_the_users_eyes_and_can_be_left_out() {
    let folder = tempfile::tempdir().unwrap();
    clips(folder.path());
    let model_of = |case: &str, pairs: usize, stops: bool| {
        let mut config = config(folder.path(), &format!("{case}/out"));
        config.recipe.statistics = pairs;
        let options = Options {
            steps: Some(2),
            ..Options::default()
        };
        let stop = AtomicBool::new(false);
        let mut told = Vec::new();
        let tell = |progress: &Progress<'_>| {
            if let Progress::Statistics { done, of } = progress {
                told.push((*done, *of));
                stop.store(stops && *done > 0, Ordering::Relaxed);
            }
        };
        let mut trainer = Trainer::open(config.clone(), &options).unwrap();
        trainer.run(tell, &stop).unwrap();
        (told, fs::read(config.output.join(MODEL)).unwrap())
    };
    let (told, plain) = model_of("plain", 0, false);
    assert!(told.is_empty());
    let (told, anew) = model_of("anew", 6, false);
    assert_eq!(told, [(0, 6), (2, 6), (4, 6)]);
    assert_ne!(anew, plain);
    let (told, left) = model_of("left", 6, true);
    assert_eq!(told, [(0, 6), (2, 6)]);
    assert_eq!(left, plain);
}

#[test]
fn mixed_precision_learns_nearly_the_same() {
    let folder = tempfile::tempdir().unwrap();
    clips(folder.path());
    let full = config(folder.path(), "full");
    let mut half = config(folder.path(), "half");
    half.recipe.precision = Precision::Bf16;
    let (full, half) = (run(&full, 6, None), run(&half, 6, None));
    for (full, half) in full.iter().zip(&half) {
        assert!(
            full != half && (full - half).abs() < 0.05 * full,
            "{full} {half}"
        );
    }
    // What is kept is f32 all the same: small steps are not rounded away.
    let state = mimic::train::state::load(&folder.path().join("half").join(STATE)).unwrap();
    let weight = &state.values["generator.final.weight"];
    let rounded = weight
        .to_dtype(DType::BF16)
        .unwrap()
        .to_dtype(DType::F32)
        .unwrap();
    let off = (weight - &rounded)
        .unwrap()
        .abs()
        .unwrap()
        .max_all()
        .unwrap();
    assert!(off.to_scalar::<f32>().unwrap() > 0.0);
}

#[test]
fn a_step_without_numbers_changes_nothing_and_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    clips(folder.path());
    let mut trainer = Trainer::open(config(folder.path(), "out"), &Options::default()).unwrap();
    let samples = trainer.loader().unwrap().next(2).unwrap();
    let batch = trainer
        .dataset()
        .batch(&samples, &candle_core::Device::Cpu)
        .unwrap();
    let broken = Batch {
        driving: (&batch.driving * f64::NAN).unwrap(),
        ..batch.clone()
    };
    let values = |trainer: &Trainer| -> Vec<Vec<f32>> {
        let vars = trainer
            .learner()
            .vars()
            .iter()
            .filter(|(name, _)| !name.contains("weight_"));
        vars.map(|(_, var)| var.flatten_all().unwrap().to_vec1().unwrap())
            .collect()
    };
    let before = values(&trainer);
    let step = trainer.step(&broken).unwrap();
    assert!(!step.taken);
    assert_eq!(values(&trainer), before);
    assert_eq!(
        (trainer.counters().step, trainer.counters().skipped),
        (1, 1)
    );
    assert!(trainer.step(&batch).unwrap().taken);
    assert_ne!(values(&trainer), before);
    assert_eq!(
        (trainer.counters().step, trainer.counters().skipped),
        (2, 1)
    );
}

#[test]
fn a_checkpoint_of_another_architecture_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    clips(folder.path());
    let small = config(folder.path(), "out");
    run(&small, 1, None);
    let mut larger = small.clone();
    larger.model.kp.max_features = 16;
    let state = folder.path().join("out").join(STATE);
    let open = |config: &TrainConfig, resume: Option<&Path>, load: Option<&Path>| {
        let options = Options {
            resume: resume.map(Into::into),
            load: load.map(Into::into),
            ..Options::default()
        };
        Trainer::open(config.clone(), &options)
            .unwrap_err()
            .to_string()
    };
    let error = open(&larger, Some(&state), None);
    assert!(
        error.contains("another architecture") && error.contains("kp_detector"),
        "{error}"
    );
    let model = folder.path().join("out").join(MODEL);
    let error = open(&larger, None, Some(&model));
    assert!(error.contains("kp_detector"), "{error}");
    let error = open(&small, Some(&model), None);
    assert!(error.contains("--load"), "{error}");
}

#[test]
fn landmarks_are_learnt_first_when_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    clips(folder.path());
    let device = &candle_core::Device::Cpu;
    // Two of three clips have landmarks.
    let marks = (0..2)
        .map(|i| {
            (
                format!("{i}"),
                Tensor::full(0.25f32, (6 + i, 2, 2), device).unwrap(),
            )
        })
        .collect();
    let file = folder.path().join("marks.safetensors");
    checkpoint::save_lean(&file, &marks, "{}", "marks", false).unwrap();
    let mut config = config(folder.path(), "out");
    config.recipe.landmarks = Some(file);
    (config.recipe.keypoint_landmarks, config.recipe.lip_distance) = (10.0, 10.0);
    (config.recipe.lips, config.recipe.mouth, config.recipe.eyes) = ([0, 1], vec![0, 1], vec![]);
    (config.recipe.mirrored, config.recipe.mouth_pairs) = (vec![], 0.5);
    config.recipe.landmark_steps = 30;
    config.rates[0] = 1e-2;
    let sums = run(&config, 32, None);
    let early: f64 = sums[..5].iter().sum();
    let late: f64 = sums[25..30].iter().sum();
    assert!(late < 0.7 * early, "{early} {late}");
    // Then everything else begins to count.
    assert!(sums[31] > sums[29]);
    config.recipe.lips = [0, 5];
    let error = Trainer::open(config, &Options::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("landmark 5"), "{error}");
}

#[test]
fn a_full_disk_leaves_the_last_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    clips(folder.path());
    let small = folder.path().join("small-disk");
    fs::create_dir(&small).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "none"])
        .arg(&small)
        .status()
        .is_ok_and(|status| status.success());
    if !mounted {
        return println!("skipped: mounting a small disk is for root");
    }
    let result = std::panic::catch_unwind(|| {
        let trainer = Trainer::open(config(folder.path(), "out"), &Options::default()).unwrap();
        let path = small.join(STATE);
        trainer.save(&path).unwrap();
        let good = fs::read(&path).unwrap();
        // What is left is too little for another.
        let rest = (1 << 20) - good.len() - good.len() / 2;
        fs::write(small.join("ballast"), vec![0; rest]).unwrap();
        let error = trainer.save(&path).unwrap_err().to_string();
        assert!(error.contains(STATE), "{error}");
        assert_eq!(fs::read(&path).unwrap(), good);
        assert_eq!(
            fs::read_dir(&small).unwrap().count(),
            2,
            "nothing half-written stays"
        );
    });
    assert!(
        Command::new("umount")
            .arg(&small)
            .status()
            .unwrap()
            .success()
    );
    result.unwrap();
}

#[test]
fn stopping_saves_what_was_learnt() {
    let folder = tempfile::tempdir().unwrap();
    clips(folder.path());
    let config = config(folder.path(), "out");
    let stop = AtomicBool::new(false);
    let tell = |progress: &Progress<'_>| {
        if let Progress::Steps { step: 3, .. } = progress {
            stop.store(true, Ordering::Relaxed);
        }
    };
    Trainer::open(config, &Options::default())
        .unwrap()
        .run(tell, &stop)
        .unwrap();
    let state = mimic::train::state::load(&folder.path().join("out").join(STATE)).unwrap();
    assert_eq!(state.counters.step, 3);
}

#[test]
fn the_command_trains_is_interrupted_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    clips(folder.path());
    let yaml = folder.path().join("tiny.yaml");
    fs::write(&yaml, CONFIG).unwrap();
    let output = folder.path().join("out");
    let command = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mimic"));
        command.args(["train", "--config_file"]).arg(&yaml);
        command
            .arg("--data")
            .arg(folder.path())
            .arg("--output")
            .arg(&output)
            .args(more);
        command.stderr(std::process::Stdio::piped());
        command
    };
    let mut child = command(&["-o", "log_config.interval=2"]).spawn().unwrap();
    let started = Instant::now();
    while !output.join("grids/step-0000001.png").exists() {
        assert!(started.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(20));
    }
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .unwrap()
            .success()
    );
    assert!(child.wait().unwrap().success());
    let state = output.join(STATE);
    let done = mimic::train::state::load(&state).unwrap().counters.step;
    assert!(done >= 1 && output.join(MODEL).exists());
    let steps = (done + 2).to_string();
    let again = command(&["--resume", state.to_str().unwrap(), "--steps", &steps])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(again.status.success(), "{said}");
    assert!(said.contains(&format!("step {steps}/{steps}")), "{said}");

    let wrong = command(&["-o", "mimic.lip_distanze=1"]).output().unwrap();
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert_eq!(wrong.status.code(), Some(2), "{said}");
    assert!(
        said.contains("'lip_distanze'") && said.contains("'lip_distance'"),
        "{said}"
    );
}

//! Training by several processes of a real `mpirun`. Built with the feature `mpi` alone: `make test-ranks`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use mimic::train::curves::Curves;

const CONFIG: &str = include_str!("train/tiny.yaml");

/// An override by which each rank takes the statistics of its own pictures.
const APART: &str = "mimic.sync_batch_norm=False";

/// A folder with clips and the training file.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let train = folder.path().join("data/train");
    fs::create_dir_all(&train).unwrap();
    for i in 0..3 {
        let (from, frames) = ("testsrc2=size=48x32:rate=10", (6 + i).to_string());
        let status = Command::new("ffmpeg")
            .args([
                "-v",
                "error",
                "-f",
                "lavfi",
                "-i",
                from,
                "-frames:v",
                &frames,
            ])
            .arg(train.join(format!("{i}.mp4")))
            .status();
        assert!(status.unwrap().success());
    }
    fs::write(folder.path().join("tiny.yaml"), CONFIG).unwrap();
    folder
}

/// `mimic train` into a folder of that name.
fn train(folder: &Path, output: &str, more: &[&str]) -> Vec<String> {
    let place = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let mimic = env!("CARGO_BIN_EXE_mimic");
    let (file, output) = (place("tiny.yaml"), place(output));
    let mut words = [mimic, "train", "-c", &file, "--output", &output]
        .map(str::to_owned)
        .to_vec();
    if !more.contains(&APART) {
        words.extend(["-o", "mimic.sync_batch_norm=True"].map(str::to_owned));
    }
    if !more.contains(&"--data") {
        words.extend(["--data".to_owned(), place("data")]);
    }
    words.extend(more.iter().map(|word| (*word).to_owned()));
    words
}

/// One process for each of the commands, by mpirun.
fn mpirun(commands: &[Vec<String>]) -> Output {
    // Processes of MPI wait by turning in circles: two at a time are enough.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut mpirun = Command::new("timeout");
    mpirun.args(["--kill-after=5", "100", "mpirun"]);
    // Of a container: its only user, its few cores, and no memory that one process reads of another.
    mpirun
        .args([
            "--allow-run-as-root",
            "--oversubscribe",
            "--bind-to",
            "none",
        ])
        .args(["--mca", "btl_vader_single_copy_mechanism", "none"]);
    for (i, command) in commands.iter().enumerate() {
        if i > 0 {
            mpirun.arg(":");
        }
        mpirun.args(["-n", "1"]).args(command);
    }
    mpirun
        .output()
        .expect("mpirun is there; make test-ranks installs it")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Every curve of a run.
fn curves(output: &Path) -> BTreeMap<(String, u64), f32> {
    let files = fs::read_dir(output)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let events: Vec<PathBuf> = files
        .filter(|path| path.to_str().unwrap().contains("tfevents"))
        .collect();
    assert_eq!(events.len(), 1, "only one process writes");
    let values = Curves::of(&events[0]).more(usize::MAX).unwrap();
    let values = values
        .into_iter()
        .filter(|value| value.tag.starts_with("loss/"));
    values
        .map(|value| ((value.tag, value.step), value.value))
        .collect()
}

#[test]
fn two_ranks_give_the_losses_of_one_process_with_twice_the_batch() {
    let folder = folder();
    let steps = ["--steps", "6"];
    let two = mpirun(&[
        train(folder.path(), "two", &steps),
        train(folder.path(), "two", &steps),
    ]);
    assert!(two.status.success(), "{}", said(&two));
    assert_eq!(said(&two).matches("step 6/6").count(), 1, "{}", said(&two));
    let words = train(
        folder.path(),
        "one",
        &["--steps", "6", "-o", "dataset.train.batch_size=4"],
    );
    let one = Command::new(&words[0]).args(&words[1..]).output().unwrap();
    assert!(one.status.success(), "{}", said(&one));
    let (two, one) = (
        curves(&folder.path().join("two")),
        curves(&folder.path().join("one")),
    );
    assert!(one.len() >= 6 * 5, "{one:?}");
    assert!(one.keys().eq(two.keys()), "{one:?} {two:?}");
    for (what, loss) in &one {
        let distance = (loss - two[what]).abs();
        assert!(distance < 1e-4, "{what:?}: {loss} {}", two[what]);
    }
    assert!(folder.path().join("two/model.safetensors").exists());
    // With statistics of each rank's own pictures the losses are others: they are really exchanged above.
    let apart = ["--steps", "2", "-o", APART];
    let apart = mpirun(&[
        train(folder.path(), "apart", &apart),
        train(folder.path(), "apart", &apart),
    ]);
    assert!(apart.status.success(), "{}", said(&apart));
    let apart = curves(&folder.path().join("apart"));
    let far = apart
        .iter()
        .any(|(what, loss)| (loss - one[what]).abs() > 1e-3);
    assert!(far, "{apart:?}");
}

#[test]
fn a_rank_that_fails_is_named_by_the_others() {
    let folder = folder();
    fs::create_dir(folder.path().join("empty")).unwrap();
    let nothing = folder.path().join("empty");
    let failed = mpirun(&[
        train(folder.path(), "out", &[]),
        train(folder.path(), "out", &["--data", nothing.to_str().unwrap()]),
    ]);
    assert!(!failed.status.success());
    let said = said(&failed);
    // Its own word may be lost when mpirun ends it; what counts is that the other knows who and why.
    let named = said.lines().any(|line| {
        line.contains("rank 1 failed: ") && line.contains("there is no clip for training")
    });
    assert!(named, "{said}");
}

#[test]
fn ranks_that_were_told_different_things_do_not_start() {
    let folder = folder();
    let different = mpirun(&[
        train(folder.path(), "out", &["--steps", "3"]),
        train(folder.path(), "out", &["--steps", "4"]),
    ]);
    assert!(!different.status.success());
    let said = said(&different);
    assert!(
        said.contains("rank 1 has 4 steps in all, rank 0 has 3"),
        "{said}"
    );
}

/// A process that is killed says nothing; one that hangs not even to mpirun.
#[test]
fn a_rank_that_dies_ends_the_others_with_its_name() {
    let folder = folder();
    let output = folder.path().join("out");
    let commands = [
        train(folder.path(), "out", &[]),
        // The shell gives the process its own number to write down, and becomes it.
        [
            vec!["sh".to_owned(), "-c".to_owned()],
            vec![format!(
                "echo $$ >{}/pid; exec \"$0\" \"$@\"",
                folder.path().display()
            )],
            train(folder.path(), "out", &[]),
        ]
        .concat(),
    ];
    let run = thread::Builder::new().name("mpirun".to_owned());
    let run = run.spawn(move || mpirun(&commands)).unwrap();
    while !output.join("grids/step-0000001.png").exists() && !run.is_finished() {
        thread::sleep(Duration::from_millis(50));
    }
    let pid = fs::read_to_string(folder.path().join("pid")).unwrap();
    let killed = Instant::now();
    let status = Command::new("kill").args(["-STOP", pid.trim()]).status();
    let dead = run.join().unwrap();
    let said = said(&dead);
    assert!(status.unwrap().success(), "{said}");
    assert!(
        !dead.status.success() && killed.elapsed() < Duration::from_secs(60),
        "{said}"
    );
    assert!(
        said.contains("rank 1 (on 127.0.0.1) said nothing"),
        "{said}"
    );
}

//! `mimic train compress`: a small model out of a large one.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use crate::animate::load::{self, ConfigSource};
use crate::ops::threads::available_threads;
use crate::train::compress::{self, Compression, Progress, Teacher};
use crate::train::distil::as_teacher;

use super::train::{self, Changes};
use super::{Failure, weights};

/// The mobile network and how it learns, for who gives no file.
const RECIPE: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/configs/compress.yaml"
));

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The model to learn from: a checkpoint, or the name of a model of `mimic weights list`
    #[arg(long, value_name = "FILE|NAME")]
    teacher: PathBuf,
    /// Its YAML file or preset, where the checkpoint does not say what it is
    #[arg(long, value_name = "YAML")]
    teacher_config: Option<String>,
    /// A training file whose model is the student; without it the mobile network
    #[arg(short, long, value_name = "YAML")]
    config_file: Option<PathBuf>,
    /// Make the teacher itself smaller, whatever model the training file has: channels are pruned, and what is left learns once more
    #[arg(long)]
    only_prune: bool,
    #[command(flatten)]
    changes: Changes,
}

#[allow(clippy::print_stdout, reason = "this is the result")]
pub(super) fn run(args: &Args, stop: &AtomicBool) -> Result<(), Failure> {
    let mut config = args.changes.config(args.config_file.as_deref(), RECIPE)?;
    let output = config.output.clone();
    let path = weights::find(&args.teacher)?;
    let source = args
        .teacher_config
        .as_deref()
        .map_or(ConfigSource::Found, ConfigSource::Given);
    let (checkpoint, model) = load::checkpoint(Some(&path), source)?;
    let teacher = Teacher {
        name: args.teacher.display().to_string(),
        config: model,
        tensors: checkpoint.tensors,
    };
    if args.only_prune {
        config.model = as_teacher(&teacher.config, &config.model);
    }
    let card = args.changes.card()?;
    let mut compression = Compression::open(teacher, config, card, available_threads())?;
    let (rows, done) = compression.run(tell, stop)?;
    print!("{}", compress::markdown(&rows));
    if done {
        eprintln!(
            "the small model is {}",
            output.join("model.safetensors").display()
        );
    } else {
        eprintln!("stopped; the same command goes on");
    }
    Ok(())
}

fn tell(progress: &Progress<'_>) {
    match progress {
        Progress::Stage { name, steps } => eprintln!("{name}: to {steps} steps"),
        Progress::Done { name } => eprintln!("{name}: done before"),
        Progress::Training(progress) => train::tell(progress),
        Progress::Measuring { name, done, of } => {
            eprintln!("measuring {name}: clip {}/{of}", done + 1);
        }
        Progress::Pruned { from, to } => eprintln!(
            "pruned: {:.2} of {:.2} M parameters are left",
            *to as f64 / 1e6,
            *from as f64 / 1e6
        ),
    }
}

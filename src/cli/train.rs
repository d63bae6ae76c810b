//! `mimic train`: models of one's own, and clips made ready for them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Subcommand;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::device::{self, Card, Choice};
use crate::train::{self, Options, Progress, Ranks, TrainConfig, Trainer, prepare};

use super::{Failure, compress, stop};

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct Args {
    /// PaddleGAN's or first-order-model's YAML file, as it is
    #[arg(short, long, value_name = "YAML", required = true)]
    config_file: Option<PathBuf>,
    #[command(flatten)]
    changes: Changes,
    /// Go on from a checkpoint of this training (state.safetensors)
    #[arg(long, value_name = "FILE", conflicts_with = "load")]
    resume: Option<PathBuf>,
    /// Start from the weights of a model instead of random ones
    #[arg(long, visible_alias = "weights", value_name = "FILE")]
    load: Option<PathBuf>,
    /// End after so many steps in all
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What the command line changes of a training file.
#[derive(Debug, clap::Args)]
pub(super) struct Changes {
    /// Change what the file says: -o dataset.train.batch_size=4 mimic.l1=10
    #[arg(short = 'o', long = "opt", value_name = "KEY=VALUE", num_args = 1..)]
    overrides: Vec<String>,
    /// The folder with train/ and test/, or with clips, instead of the file's
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Where checkpoints, pictures and curves go, instead of the file's
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Weights of VGG19 or SqueezeNet 1.1 for the perceptual loss
    #[arg(long, value_name = "FILE")]
    perceptual: Option<PathBuf>,
    /// Landmarks of the clips: safetensors with (frames, n, 2) in -1..1 for each
    #[arg(long, value_name = "FILE")]
    landmarks: Option<PathBuf>,
    /// What random numbers start from
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Memory for frames in MB
    #[arg(long, value_name = "MB")]
    cache: Option<u64>,
    /// Where a process by itself computes: auto (NVIDIA's card where this build has cuDNN, else the CPU), cpu, cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: Choice,
}

impl Changes {
    /// What a training file says with these changes; of no file, `text` is what it says.
    pub(super) fn config(&self, file: Option<&Path>, text: &str) -> Result<TrainConfig, Failure> {
        let read;
        let (path, text) = match file {
            Some(file) => {
                read = std::fs::read_to_string(file)
                    .map_err(|e| Failure::Usage(format!("cannot read {}: {e}", file.display())))?;
                (file.display().to_string(), read.as_str())
            }
            None => ("in this program".to_owned(), text),
        };
        let mut changes = self.overrides.clone();
        if let Some(landmarks) = &self.landmarks {
            // Before the file is checked: it may ask for them.
            changes.push(format!("mimic.landmarks={}", serde_json::json!(landmarks)));
        }
        let mut config = TrainConfig::from_yaml(text, &changes)
            .map_err(|what| Failure::Usage(train::Error::Config { path, what }.to_string()))?;
        if let Some(data) = &self.data {
            config.data.root.clone_from(data);
        }
        if let Some(output) = &self.output {
            config.output.clone_from(output);
        }
        if self.perceptual.is_some() {
            config
                .recipe
                .perceptual_network
                .clone_from(&self.perceptual);
        }
        config.recipe.seed = self.seed.unwrap_or(config.recipe.seed);
        config.recipe.cache = self.cache.unwrap_or(config.recipe.cache);
        Ok(config)
    }

    /// The card to train on, which is said; none for the CPU.
    pub(super) fn card(&self) -> Result<Option<Card>, Failure> {
        let trains = |card: &Choice| matches!(card, Choice::Cuda(_)) && cfg!(feature = "cudnn");
        let candidates = match self.device {
            Choice::Cpu => return Ok(None),
            Choice::Auto => self.device.order(),
            card if trains(&card) => vec![card],
            card => {
                return Err(Failure::Usage(format!(
                    "{card}: training takes NVIDIA's cards by cuDNN (cargo build --features cudnn) and CPUs alone"
                )));
            }
        };
        for candidate in candidates.into_iter().filter(trains) {
            match device::open(candidate) {
                Ok(card) => {
                    eprintln!("training on {}", card.name);
                    return Ok(Some(card));
                }
                Err(why) if self.device == Choice::Auto => {
                    eprintln!("{why}; training on the CPU");
                }
                Err(why) => return Err(Failure::Job(why)),
            }
        }
        Ok(None)
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Find the face in clips, cut them at scene changes and write frames to train on
    Prepare(PrepareArgs),
    /// Make a small model that does what a large one does: keypoint detector, generator and both learn from it
    /// in turn, then channels are pruned
    Compress(Box<compress::Args>),
}

#[derive(Debug, clap::Args)]
struct PrepareArgs {
    /// A folder of videos, GIFs or folders of frames
    #[arg(value_name = "DIR")]
    input: PathBuf,
    /// Where frames go; what an earlier run has done stays
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Width and height of the frames
    #[arg(long, value_name = "PIXELS", default_value_t = 256, value_parser = clap::value_parser!(u32).range(32..=1024))]
    size: u32,
    /// Take the square in the middle instead of looking for a face
    #[arg(long)]
    no_face: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let stop = stop();
    match &args.command {
        Some(Command::Prepare(args)) => run_prepare(args, stop),
        Some(Command::Compress(args)) => compress::run(args, stop),
        None => run_training(args, stop),
    }
}

fn run_training(args: &Args, stop: &AtomicBool) -> Result<(), Failure> {
    let Some(file) = &args.config_file else {
        return Err(Failure::Usage("training needs --config-file".to_owned()));
    };
    let config = args.changes.config(Some(file), "")?;
    let options = Options {
        resume: args.resume.clone(),
        load: args.load.clone(),
        steps: args.steps,
        ..Options::default()
    };
    let mut ranks = Ranks::meet(Arc::new(gone))?;
    if ranks.size() == 1
        && let Some(card) = args.changes.card()?
    {
        ranks = ranks.on(card.device);
    }
    let (rank, first) = (ranks.rank(), ranks.is_first());
    let mut trainer =
        Trainer::open_among(config, &options, &mut ranks).map_err(|e| whose(rank, e))?;
    let result = trainer.run(tell, stop).map_err(|e| whose(rank, e));
    if !first {
        return result;
    }
    let left_out = trainer.dataset().left_out();
    if !left_out.is_empty() {
        eprintln!("not used ({}):", left_out.len());
        for (path, why) in left_out.iter().take(20) {
            eprintln!("  {}: {why}", path.display());
        }
    }
    result
}

/// Of several processes that write below each other, which one failed.
fn whose(rank: usize, error: train::Error) -> Failure {
    match rank {
        0 => error.into(),
        _ => Failure::Job(format!("rank {rank}: {error}")),
    }
}

/// Another process of this training is lost. This one may be waiting for it where nothing wakes it up.
fn gone(what: &str) {
    eprintln!("mimic: {what}; start all anew with --resume and the last state.safetensors");
    std::process::exit(1);
}

/// A line of the log for what a training says.
pub(super) fn tell(progress: &Progress<'_>) {
    match progress {
        Progress::Started {
            clips,
            total,
            epoch,
            perceptual,
            parameters,
            ranks,
        } => {
            let together = match ranks {
                1 => String::new(),
                _ => format!(" by {ranks} processes"),
            };
            eprintln!(
                "{clips} clips, {:.1} M parameters, {total} steps{together} of which an epoch has {epoch}; pictures are compared by {}",
                *parameters as f64 / 1e6,
                perceptual.unwrap_or("their pixels alone"),
            );
        }
        Progress::Steps {
            step,
            total,
            losses,
            sum,
            speed,
            skipped,
        } => {
            let parts: Vec<String> = losses
                .iter()
                .map(|(name, v)| format!("{name} {v:.3}"))
                .collect();
            let left = (total - step) as f64 / speed.max(1e-9);
            let skipped = if *skipped > 0 {
                format!(", {skipped} skipped")
            } else {
                String::new()
            };
            eprintln!(
                "step {step}/{total}  loss {sum:.3}  ({})  {speed:.2} steps/s, {} left{skipped}",
                parts.join(", "),
                indicatif::HumanDuration(std::time::Duration::from_secs_f64(left.min(1e9))),
            );
        }
        Progress::Statistics { done, of } => {
            eprintln!(
                "measuring batch norm's statistics: {done} of {of} pairs (Ctrl-C to leave it)"
            );
        }
        Progress::Saved { path } => eprintln!("saved {}", path.display()),
    }
}

fn run_prepare(args: &PrepareArgs, stop: &AtomicBool) -> Result<(), Failure> {
    let job = prepare::Job {
        input: args.input.clone(),
        output: args.output.clone(),
        size: args.size,
        no_face: args.no_face,
    };
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} clips, {eta} left  {msg}")
    {
        bar.set_style(style);
    }
    bar.enable_steady_tick(std::time::Duration::from_millis(200));
    let tell = |done: usize, total: usize, name: &str| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
        bar.set_message(name.to_owned());
        if bar.is_hidden() {
            eprintln!("{done}/{total} clips, {name}");
        }
    };
    let report = prepare::run(&job, tell, stop);
    bar.finish_and_clear();
    let report = report?;
    eprintln!(
        "{} clips gave {} parts with {} frames in all, in {}",
        report.clips.len(),
        report.parts(),
        report.frames(),
        args.output.display()
    );
    for (name, clip) in &report.clips {
        if let Some(why) = &clip.failed {
            eprintln!("  {name}: nothing ({why})");
        } else if !clip.left_out.is_empty() {
            let parts: Vec<String> = clip
                .left_out
                .iter()
                .map(|(why, n)| format!("{n} frames: {why}"))
                .collect();
            eprintln!("  {name}: without {}", parts.join(", "));
        }
    }
    for (name, why) in &report.not_clips {
        eprintln!("  {name}: no clip ({why})");
    }
    if stop.load(Ordering::Relaxed) {
        eprintln!("stopped; the same command goes on");
    }
    Ok(())
}

//! `mimic evaluate`: how well models draw clips anew.

use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::model::Model;
use super::{Failure, stop};
use crate::train::evaluate::{self, Job, Report};
use crate::train::metrics::Lpips;
use crate::train::onnx::{IdentityNetwork, LandmarkNetwork, Scaling};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A folder with test/, or of clips: videos, GIFs, folders of frames
    #[arg(value_name = "DIR")]
    data: PathBuf,
    #[command(flatten)]
    model: Model,
    /// A further model to measure by the same frames; repeatable
    #[arg(long, value_name = "FILE|NAME")]
    against: Vec<PathBuf>,
    /// Where the report and the videos of the worst clips go
    #[arg(short, long, value_name = "DIR", default_value = "output/evaluation")]
    output: PathBuf,
    /// Of each clip only the first N frames
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    frames: Option<u32>,
    /// SqueezeNet 1.1 as torchvision has it, to measure LPIPS
    #[arg(long, value_name = "FILE", requires = "lpips")]
    squeezenet: Option<PathBuf>,
    /// LPIPS's linear layers for it (squeeze.pth of the package lpips)
    #[arg(long, value_name = "FILE", requires = "squeezenet")]
    lpips: Option<PathBuf>,
    /// A network of landmarks as ONNX, to measure AKD
    #[arg(long, value_name = "FILE")]
    landmarks_onnx: Option<PathBuf>,
    /// How it wants its pictures: unit (0 to 1), signed (-1 to 1), imagenet (mean and deviation), bytes (0 to 255)
    #[arg(
        long,
        value_name = "SCALING",
        requires = "landmarks_onnx",
        default_value = "unit"
    )]
    landmarks_input: Scaling,
    /// A network that tells people apart as ONNX, to measure AED
    #[arg(long, value_name = "FILE")]
    identity_onnx: Option<PathBuf>,
    /// How it wants its pictures; as above
    #[arg(
        long,
        value_name = "SCALING",
        requires = "identity_onnx",
        default_value = "signed"
    )]
    identity_input: Scaling,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

#[allow(clippy::print_stdout, reason = "this is the result")]
pub(super) fn run(args: Args) -> Result<(), Failure> {
    let lpips = match (&args.squeezenet, &args.lpips) {
        (Some(network), Some(linear)) => Some(Lpips::open(network, linear)?),
        _ => None,
    };
    let landmarks = args.landmarks_onnx.as_deref();
    let landmarks = landmarks.map(|path| LandmarkNetwork::open(path, args.landmarks_input));
    let identity = args.identity_onnx.as_deref();
    let identity = identity.map(|path| IdentityNetwork::open(path, args.identity_input));
    let job = Job {
        landmarks: landmarks.transpose()?,
        identity: identity.transpose()?,
        data: args.data,
        kept_back: None,
        output: args.output,
        frames: args.frames.map(|n| n as usize),
        lpips,
    };
    let others = args.against.iter().map(|weights| {
        let mut model = args.model.clone();
        (model.weights, model.config) = (Some(weights.clone()), None);
        model
    });
    let mut names: Vec<String> = Vec::new();
    let models = std::iter::once(args.model.clone())
        .chain(others)
        .map(|model| {
            let mut name = name(model.weights.as_deref());
            while names.contains(&name) {
                name.push('+');
            }
            names.push(name.clone());
            Ok((name, model.engine(None)?))
        });
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} clips, {eta} left  {msg}")
    {
        bar.set_style(style);
    }
    let tell = |model: &str, clip: &str, done: usize, of: usize| {
        bar.set_length(of as u64);
        bar.set_position(done as u64);
        bar.set_message(format!("{model}: {clip}"));
        if bar.is_hidden() {
            eprintln!("{model}: {clip} ({}/{of})", done + 1);
        }
    };
    let report: Result<Report, Failure> = evaluate::run(&job, models, tell, stop());
    bar.finish_and_clear();
    let report = report?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", evaluate::markdown(&report));
    }
    eprintln!(
        "report and videos of the worst clips are in {}",
        job.output.display()
    );
    Ok(())
}

fn name(weights: Option<&Path>) -> String {
    match weights.and_then(Path::file_stem) {
        Some(stem) => stem.to_string_lossy().into_owned(),
        None => "mimic-small".to_owned(),
    }
}

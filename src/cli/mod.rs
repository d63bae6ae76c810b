//! The command line: one file for each command, errors reported once, exit codes in one place.

mod animate;
mod bench;
mod compress;
mod doctor;
mod evaluate;
mod faces;
mod live;
mod memory;
mod model;
mod train;
mod weights;

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Makes a photo move as you do. Without a command: the window.
#[derive(Debug, Parser)]
#[command(
    name = "mimic",
    version,
    about,
    propagate_version = true,
    args_conflicts_with_subcommands = true
)]
struct Cli {
    /// More in the log: -v what happens, -vv everything. MIMIC_LOG=FILTER says it in detail.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
    #[command(flatten)]
    live: live::Args,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Animate a photo by a driving video, into a video or pictures.
    Animate(Box<animate::Args>),
    /// Find the faces in a photo and number them.
    Faces(faces::Args),
    /// Train a model of one's own on a folder of videos.
    Train(Box<train::Args>),
    /// Measure models by clips that they have to draw anew.
    Evaluate(Box<evaluate::Args>),
    /// Fetch models, and work on weights files.
    Weights(weights::Args),
    /// Say what this machine has, and what is missing.
    Doctor,
    /// Time the networks on this machine, layer by layer if asked.
    Bench(bench::Args),
}

/// How a command ended badly: what to say, and with which code to leave.
#[derive(Debug)]
enum Failure {
    /// The command line asks for something that cannot be: exit code 2.
    Usage(String),
    /// The work failed: exit code 1.
    Job(String),
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Job(error.to_string())
    }
}

/// Runs the program: parses, runs the command, reports an error once.
pub fn main() -> ExitCode {
    let cli = Cli::parse_from(std::env::args_os().map(dashed));
    log_to_stderr(cli.verbose);
    let result = match cli.command {
        Some(Command::Animate(args)) => animate::run(*args),
        Some(Command::Faces(args)) => faces::run(&args),
        Some(Command::Train(args)) => train::run(&args),
        Some(Command::Evaluate(args)) => evaluate::run(*args),
        Some(Command::Weights(args)) => weights::run(&args),
        Some(Command::Doctor) => doctor::run(),
        Some(Command::Bench(args)) => bench::run(&args),
        None => live::run(cli.live),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(message)) => {
            eprintln!("mimic: {message}");
            ExitCode::from(2)
        }
        Err(Failure::Job(message)) => {
            eprintln!("mimic: {message}");
            ExitCode::from(1)
        }
    }
}

/// Set by Ctrl-C from now on: what takes long looks at it and ends cleanly. A second one ends the program where it is.
fn stop() -> &'static AtomicBool {
    static STOP: OnceLock<AtomicBool> = OnceLock::new();
    STOP.get_or_init(|| {
        // The flag is asked for only after this, so there is one when the signal comes.
        let _ = ctrlc::set_handler(|| {
            if STOP
                .get()
                .is_some_and(|stop| stop.swap(true, Ordering::Relaxed))
            {
                std::process::exit(130);
            }
        });
        AtomicBool::new(false)
    })
}

/// PaddleGAN spells its flags with `_`: `--source_image` is `--source-image`. Values stay as they are.
fn dashed(argument: OsString) -> OsString {
    match argument.to_str().and_then(|text| text.strip_prefix("--")) {
        Some(flag) => {
            let (name, value) = flag.split_at(flag.find('=').unwrap_or(flag.len()));
            format!("--{}{value}", name.replace('_', "-")).into()
        }
        None => argument,
    }
}

fn log_to_stderr(verbose: u8) {
    let level = match verbose {
        0 => "mimic=warn",
        1 => "mimic=info",
        _ => "mimic=debug",
    };
    let filter = std::env::var("MIMIC_LOG").unwrap_or_else(|_| level.to_owned());
    let filter = EnvFilter::try_new(&filter).unwrap_or_else(|e| {
        eprintln!("mimic: MIMIC_LOG={filter} is not a log filter ({e}): using {level}");
        EnvFilter::new(level)
    });
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .without_time()
        .compact()
        .init();
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_are_read_with_underscores_and_values_left_alone() {
        let text = |s: &str| dashed(s.into()).into_string().unwrap();
        assert_eq!(text("--source_image"), "--source-image");
        assert_eq!(
            text("--source_image=my_photo.png"),
            "--source-image=my_photo.png"
        );
        assert_eq!(text("my_photo.png"), "my_photo.png");
        assert_eq!(text("-o"), "-o");
        assert_eq!(text("--"), "--");
    }
}

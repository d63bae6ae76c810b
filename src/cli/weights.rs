//! `mimic weights`: the models that mimic can use, and files of weights; and the question that a missing model is.

use std::io::{IsTerminal, Write as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::Subcommand;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{Failure, stop};
use crate::animate::load::{self, ConfigSource};
use crate::checkpoint;
use crate::checkpoint::store::{self, NotHere, Progress, Step, Store, Verdict};
use crate::pipeline::weights::{self, Fetch, Fetched};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The models that can be had: size, licence, what for, and which of them are here
    List,
    /// Download models, and convert each once to its lean form
    Fetch {
        /// As `mimic weights list` names them
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        /// Take them from the files of this folder, without the net
        #[arg(long, value_name = "DIR")]
        from: Option<PathBuf>,
        /// Keep the publisher's file too
        #[arg(long)]
        keep: bool,
    },
    /// Look whether the models that are here are as they were written
    Verify {
        /// Those alone
        #[arg(value_name = "NAME")]
        names: Vec<String>,
    },
    /// Take a checkpoint that you have: into the weights folder if it is a known one, else with -o to a file; its
    /// lean form is safetensors with the networks alone, half the size, the configuration inside
    Import {
        /// The checkpoint: PyTorch (.pth.tar), Paddle (.pdparams) or safetensors
        file: PathBuf,
        /// The model that it is, where its hash does not tell
        #[arg(long = "as", value_name = "NAME", conflicts_with_all = ["config", "output", "f32"])]
        name: Option<String>,
        /// Its YAML file, or a preset, when the tensors alone do not tell
        #[arg(long, value_name = "YAML", requires = "output")]
        config: Option<String>,
        /// Where to write it, outside the weights folder
        #[arg(short, long, value_name = "FILE.safetensors")]
        output: Option<PathBuf>,
        /// Keep full precision: twice the size
        #[arg(long, requires = "output")]
        f32: bool,
    },
    /// The weights folder, or where a model is in it
    Path {
        /// A model
        #[arg(value_name = "NAME")]
        name: Option<String>,
    },
    /// Remove models from the weights folder
    Remove {
        /// As `mimic weights list` names them
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

#[allow(clippy::print_stdout, reason = "this is the result")]
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    match &args.command {
        Command::List => list(&Store::of_environment()?),
        Command::Fetch { names, from, keep } => {
            let store = Store::of_environment()?;
            // A name that is wrong is known before the first download.
            for name in names {
                store.model(name)?;
            }
            let how = Fetch {
                from: from.clone(),
                keep: *keep,
                ..Fetch::default()
            };
            for name in names {
                println!("{}", fetch(&store, name, &how)?.path.display());
            }
            Ok(())
        }
        Command::Verify { names } => verify(&Store::of_environment()?, names),
        Command::Import {
            file,
            name,
            output: None,
            ..
        } => install(file, name.as_deref()),
        Command::Import {
            file,
            config,
            output: Some(output),
            f32,
            ..
        } => convert(file, config.as_deref(), output, *f32),
        Command::Path { name } => path(name.as_deref()),
        Command::Remove { names } => {
            let store = Store::of_environment()?;
            for name in names {
                let freed = store.remove(store.model(name)?)?;
                eprintln!("{name}: {:.1} MB freed", freed as f64 / 1e6);
            }
            Ok(())
        }
    }
}

/// The file of what a flag such as `--weights` was given: a path, or the name of a model. One that is not here is
/// asked for on a terminal; elsewhere it is an error that says the command.
pub(super) fn find(given: &Path) -> Result<PathBuf, Failure> {
    Ok(offer(given)??)
}

/// The first of some models that is here; else the first is asked for as by [`find`].
pub(super) fn find_any(names: &[&str]) -> Result<PathBuf, Failure> {
    let store = Store::of_environment()?;
    match (store.first_here(names), names) {
        (Some(path), _) => Ok(path),
        (None, [first, ..]) => find(Path::new(first)),
        (None, []) => Err(Failure::Usage("no model fits".to_owned())),
    }
}

/// As [`find`]; who does without a model that is not here gets it in the inner error.
pub(super) fn offer(given: &Path) -> Result<Result<PathBuf, NotHere>, Failure> {
    match checkpoint::find(given) {
        Ok(path) => Ok(Ok(path)),
        Err(store::Error::NotHere(missing)) => match agreed(&missing)? {
            true => {
                let store = Store::of_environment()?;
                fetch(&store, &missing.name, &Fetch::default()).map(|fetched| Ok(fetched.path))
            }
            false => Ok(Err(missing)),
        },
        Err(error) => Err(error.into()),
    }
}

/// Asks on a terminal whether a model is to be downloaded.
fn agreed(missing: &NotHere) -> Result<bool, Failure> {
    let (input, mut output) = (std::io::stdin(), std::io::stderr());
    if !input.is_terminal() || !output.is_terminal() {
        return Ok(false);
    }
    write!(
        output,
        "The model {} ({}) is not here yet. Download {}, licence: {}? [y/N] ",
        missing.name, missing.title, missing.size, missing.licence
    )?;
    output.flush()?;
    let mut answer = String::new();
    input.read_line(&mut answer)?;
    Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}

#[allow(clippy::print_stdout, reason = "this is the result")]
fn list(store: &Store) -> Result<(), Failure> {
    let rows: Vec<_> = (store.models().iter())
        .map(|model| {
            let state = match std::fs::metadata(store.path(model)) {
                Ok(file) => format!("here, {:.0} MB", file.len() as f64 / 1e6),
                Err(_) => model.size_text(),
            };
            (model, state)
        })
        .collect();
    let wide = |width: fn(&(&checkpoint::manifest::Model, String)) -> usize| {
        rows.iter().map(width).max().unwrap_or(0)
    };
    let (names, states) = (wide(|row| row.0.name.len()), wide(|row| row.1.len()));
    for (model, state) in &rows {
        println!(
            "{:names$}  {:9}  {state:states$}  {} [{}]",
            model.name,
            model.kind.to_string(),
            model.title,
            model.licence
        );
    }
    eprintln!("in {}", store.folder().display());
    Ok(())
}

fn fetch(store: &Store, name: &str, how: &Fetch) -> Result<Fetched, Failure> {
    let model = store.model(name)?;
    let mut meter = Meter::new(name);
    if !store.has(model) && how.from.is_none() {
        eprintln!("{name}: {}, licence: {}", model.size_text(), model.licence);
    }
    let fetched = weights::fetch(store, name, how, &mut |progress| meter.show(progress));
    meter.finish();
    let fetched = fetched?;
    tell(name, &fetched);
    Ok(fetched)
}

#[allow(clippy::print_stdout, reason = "this is the result")]
fn install(file: &Path, name: Option<&str>) -> Result<(), Failure> {
    let store = Store::of_environment()?;
    let mut meter = Meter::new(&file.display().to_string());
    let imported = weights::import(&store, file, name, &mut |progress| meter.show(progress));
    meter.finish();
    let (name, fetched) = imported?;
    tell(&name, &fetched);
    println!("{}", fetched.path.display());
    Ok(())
}

fn tell(name: &str, fetched: &Fetched) {
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    match fetched.from_bytes {
        Some(from) => eprintln!(
            "{name}: {:.1} MB, of a file of {:.1} MB",
            megabytes(fetched.bytes),
            megabytes(from)
        ),
        None => eprintln!("{name}: here already"),
    }
}

#[allow(clippy::print_stdout, reason = "this is the result")]
fn verify(store: &Store, names: &[String]) -> Result<(), Failure> {
    let models = match names {
        [] => store.models().iter().filter(|m| store.has(m)).collect(),
        names => names
            .iter()
            .map(|name| store.model(name))
            .collect::<Result<Vec<_>, _>>()?,
    };
    if models.is_empty() {
        println!("no models are in {}", store.folder().display());
    }
    let mut wrong = Vec::new();
    for model in models {
        let mut meter = Meter::new(&model.name);
        let verdict = store.verify(model, &mut |progress| meter.show(progress));
        meter.finish();
        match verdict? {
            Verdict::Sound => println!("{}: sound", model.name),
            Verdict::Absent => wrong.push(format!("{}: it is not here", model.name)),
            Verdict::Wrong(why) => wrong.push(format!("{}: {why}", model.name)),
        }
    }
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(Failure::Job(wrong.join("\nmimic: "))),
    }
}

#[allow(clippy::print_stdout, reason = "this is the result")]
fn path(name: Option<&str>) -> Result<(), Failure> {
    let store = Store::of_environment()?;
    let path = match name {
        None => store.folder().to_owned(),
        Some(name) => {
            store.model(name)?;
            store.find(name)?
        }
    };
    println!("{}", path.display());
    Ok(())
}

/// Writes a checkpoint's lean form where it was asked for.
fn convert(file: &Path, config: Option<&str>, output: &Path, f32: bool) -> Result<(), Failure> {
    if output
        .extension()
        .is_none_or(|extension| extension != "safetensors")
    {
        return Err(Failure::Usage(format!(
            "the output {} must end in .safetensors",
            output.display()
        )));
    }
    let source = config.map_or(ConfigSource::Found, ConfigSource::Given);
    let (checkpoint, config) = load::checkpoint(Some(file), source)?;
    let name = checkpoint
        .name
        .clone()
        .or_else(|| {
            file.file_name()?
                .to_str()?
                .split('.')
                .next()
                .map(str::to_owned)
        })
        .unwrap_or_default();
    checkpoint::save_lean(output, &checkpoint.tensors, &config.to_json(), &name, !f32)?;
    let size = |path| std::fs::metadata(path).map_or(0, |m| m.len()) as f64 / 1e6;
    eprintln!(
        "{}: {} of {} tensors, {:.1} MB; {} was {}, {:.1} MB",
        output.display(),
        if f32 { "f32" } else { "f16" },
        checkpoint.tensors.len(),
        size(output),
        file.display(),
        checkpoint.format,
        size(file),
    );
    Ok(())
}

/// How far a download is: a bar on a terminal, a line now and then elsewhere.
struct Meter {
    name: String,
    bar: ProgressBar,
    step: Option<Step>,
    said: Instant,
}

impl Meter {
    /// Seconds between two lines.
    const EVERY: Duration = Duration::from_secs(5);

    fn new(name: &str) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.enable_steady_tick(Duration::from_millis(200));
        Self {
            name: name.to_owned(),
            bar,
            step: None,
            said: Instant::now(),
        }
    }

    /// Breaks when Ctrl-C was pressed.
    fn show(&mut self, progress: &Progress) -> ControlFlow<()> {
        let what = match &progress.step {
            Step::Waiting => "waiting for another mimic that fetches it".to_owned(),
            Step::Asking(host) => format!("asking {host}"),
            Step::Downloading(host) => format!("from {host}"),
            Step::Checking => "checking".to_owned(),
            Step::Converting => "converting".to_owned(),
        };
        let new = self.step.as_ref() != Some(&progress.step);
        if new {
            self.step = Some(progress.step.clone());
            let counted =
                "{prefix}: {msg} {bar:30} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left";
            let template = match progress.total {
                0 => "{prefix}: {msg} {spinner}",
                _ => counted,
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                self.bar.set_style(style);
            }
            self.bar.set_prefix(self.name.clone());
            self.bar.set_message(what.clone());
            self.bar.reset();
            // What was there before the download began came at no speed.
            self.bar.set_position(progress.done);
            self.bar.reset_eta();
        }
        self.bar.set_length(progress.total);
        self.bar.set_position(progress.done);
        let quiet = matches!(progress.step, Step::Checking | Step::Asking(_));
        if self.bar.is_hidden() && ((new && !quiet) || self.said.elapsed() >= Self::EVERY) {
            self.said = Instant::now();
            match progress.total {
                0 => eprintln!("{}: {what}", self.name),
                total => eprintln!(
                    "{}: {what}: {:.0} of {:.0} MB",
                    self.name,
                    progress.done as f64 / 1e6,
                    total as f64 / 1e6
                ),
            }
        }
        match stop().load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

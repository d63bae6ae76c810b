//! `mimic weights`: files of weights.

use std::path::PathBuf;

use clap::Subcommand;

use crate::animate::load::{self, ConfigSource};
use crate::checkpoint;

use super::Failure;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a checkpoint of any format in its lean form: safetensors with the networks alone, half
    /// the size, the configuration inside
    Import {
        /// The checkpoint: PyTorch (.pth.tar), Paddle (.pdparams) or safetensors
        file: PathBuf,
        /// Its YAML file, or a preset, when the tensors alone do not tell
        #[arg(long, value_name = "YAML")]
        config: Option<String>,
        /// Where to write it
        #[arg(short, long, value_name = "FILE.safetensors")]
        output: PathBuf,
        /// Keep full precision: twice the size
        #[arg(long)]
        f32: bool,
    },
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let Command::Import {
        file,
        config,
        output,
        f32,
    } = &args.command;
    if output
        .extension()
        .is_none_or(|extension| extension != "safetensors")
    {
        return Err(Failure::Usage(format!(
            "the output {} must end in .safetensors",
            output.display()
        )));
    }
    let source = config
        .as_deref()
        .map_or(ConfigSource::Found, ConfigSource::Given);
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
        if *f32 { "f32" } else { "f16" },
        checkpoint.tensors.len(),
        size(output),
        file.display(),
        checkpoint.format,
        size(file),
    );
    Ok(())
}

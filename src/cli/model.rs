//! The flags that choose a model and how it runs; several commands share them.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::animate::load::{self, ConfigSource, ModelOptions, Precision};
use crate::model::Border;
use crate::model::packed::Engine;

use super::{Failure, weights};

/// Which weights, of which shape.
#[derive(Clone, Debug, Args)]
pub(super) struct Model {
    /// A checkpoint: safetensors, PyTorch (.pth.tar) or Paddle (.pdparams), or the name of a model of `mimic
    /// weights list`; the embedded model without it
    #[arg(long, visible_alias = "weight-path", value_name = "FILE|NAME")]
    pub(super) weights: Option<PathBuf>,
    /// PaddleGAN's or first-order-model's YAML file, or vox-256, vox-512, vox-mobile, mimic-small
    #[arg(long, value_name = "YAML")]
    pub(super) config: Option<String>,
    /// What happens at the border of a crop; the default is what the model was made for
    #[arg(long, value_enum)]
    border: Option<BorderName>,
    /// Threads of the networks
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
    /// What the networks multiply: f32, or bf16 where the processor has AVX-512 BF16, which is faster
    /// and a little less exact; auto is f32
    #[arg(long, value_enum, default_value_t = PrecisionName::Auto)]
    precision: PrecisionName,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PrecisionName {
    Auto,
    F32,
    Bf16,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum BorderName {
    /// The motion fades out over five pixels.
    Paddlegan,
    /// Nothing, as the original.
    None,
}

impl Model {
    /// Loads the engine; `preset` is what PaddleGAN's flags say the weights are.
    pub(super) fn engine(&self, preset: Option<&str>) -> Result<Engine, Failure> {
        let config = match (&self.config, preset) {
            (Some(given), _) => ConfigSource::Given(given),
            (None, Some(preset)) => ConfigSource::Preset(preset),
            (None, None) => ConfigSource::Found,
        };
        let weights = self.weights.as_deref().map(weights::find).transpose()?;
        let engine = load::engine(&ModelOptions {
            weights: weights.as_deref(),
            config,
            size: None,
            border: self.border.map(|border| match border {
                BorderName::Paddlegan => Border::PaddleGan,
                BorderName::None => Border::None,
            }),
            threads: self.threads(),
            precision: match self.precision {
                PrecisionName::Auto | PrecisionName::F32 => Precision::F32,
                PrecisionName::Bf16 => Precision::Bf16,
            },
        });
        engine.map_err(wrong_precision)
    }

    /// Threads asked for, or all that this process may use.
    pub(super) fn threads(&self) -> usize {
        self.threads.map_or_else(available_threads, usize::from)
    }
}

/// A precision that the machine does not have is wrong usage, whatever the weights.
pub(super) fn wrong_precision(error: load::Error) -> Failure {
    match error {
        load::Error::NoBf16 => Failure::Usage(error.to_string()),
        error => error.into(),
    }
}

/// Threads that this process may use.
pub(super) fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

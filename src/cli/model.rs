//! The flags that choose a model and how it runs; several commands share them.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::animate::Engine;
use crate::animate::load::{self, ConfigSource, ModelOptions, Precision};
use crate::device::Choice;
use crate::model::Border;
use crate::ops::threads::available_threads;

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
    /// What the networks multiply: f32; f16 on graphics cards; bf16 there, and where the processor has AVX-512 BF16. The
    /// short ones are faster and a little less exact; auto is f32 on the CPU and f16 on CUDA
    #[arg(long, value_enum, default_value_t = PrecisionName::Auto)]
    precision: PrecisionName,
    /// What the networks run on: auto, cpu, cuda:N or metal; auto takes the first that works of CUDA, Metal and the CPU
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub(super) device: Choice,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum PrecisionName {
    Auto,
    F32,
    F16,
    Bf16,
}

impl std::fmt::Display for PrecisionName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

impl From<PrecisionName> for Precision {
    fn from(name: PrecisionName) -> Self {
        match name {
            PrecisionName::Auto => Self::Auto,
            PrecisionName::F32 => Self::F32,
            PrecisionName::F16 => Self::F16,
            PrecisionName::Bf16 => Self::Bf16,
        }
    }
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
            precision: self.precision.into(),
            device: self.device,
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
        load::Error::NoBf16 | load::Error::NoF16 => Failure::Usage(error.to_string()),
        error => error.into(),
    }
}

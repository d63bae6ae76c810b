//! From a weights file to an engine that runs it.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Tensor};

use super::engine::Engine;
use crate::checkpoint::{self, Checkpoint};
use crate::device::{self, Choice};
use crate::model::config::{self, Border, ModelConfig, PRESETS};
use crate::model::{packed, procedural};
use crate::ops::simd::Isa;
use crate::ops::threads::Workers;

/// What a model is loaded from, and how it is to run.
#[derive(Clone, Debug, Default)]
pub struct ModelOptions<'a> {
    /// The checkpoint; the embedded model without one.
    pub weights: Option<&'a Path>,
    /// Its configuration, where the weights do not bring it.
    pub config: ConfigSource<'a>,
    /// Treat the picture's border otherwise than the configuration says.
    pub border: Option<Border>,
    /// Run at another size than the configuration says: side of the square in pixels.
    pub size: Option<u32>,
    /// Threads of the networks.
    pub threads: usize,
    /// What their matrix products are of.
    pub precision: Precision,
    /// What they run on.
    pub device: Choice,
}

/// What the matrix products of the networks are of; sums and everything that is about places are f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// f32 on the CPU, on a card what it is good at.
    #[default]
    Auto,
    /// 24 bits, on every machine.
    F32,
    /// 11 bits, on cards.
    F16,
    /// 8 bits: faster, and a picture about a step of 255 away. On the CPU it asks for AVX-512 BF16.
    Bf16,
}

/// Where a model's configuration comes from.
#[derive(Clone, Copy, Debug, Default)]
pub enum ConfigSource<'a> {
    /// The weights' header, else the preset whose tensors the weights hold.
    #[default]
    Found,
    /// A YAML file of PaddleGAN or first-order-model, or the name of a preset.
    Given(&'a str),
    /// A preset, when the weights' header says nothing.
    Preset(&'a str),
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The weights cannot be read, or are another model's.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// The configuration cannot be read from disk.
    #[error("cannot read the configuration {path}: {source}; give a YAML file or one of {presets}", presets = PRESETS.join(", "))]
    Read {
        /// What was given.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The configuration says something impossible.
    #[error("the configuration {origin} cannot be used: {source}")]
    Config {
        /// The file or the weights it is from.
        origin: String,
        /// What is wrong.
        source: config::Error,
    },
    /// Nothing says what model the weights are of.
    #[error(
        "{what} does not say which model it is, and its tensors are those of no preset ({presets}): give its YAML file with --config",
        presets = PRESETS.join(", ")
    )]
    Unknown {
        /// The weights.
        what: String,
    },
    /// The tensors do not make the networks.
    #[error("{what} does not make a model: {source}")]
    Tensors {
        /// The weights.
        what: String,
        /// What is wrong.
        source: candle_core::Error,
    },
    /// The system gives no threads.
    #[error("cannot start the inference threads: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
    /// The processor lacks the instructions.
    #[error("this processor has no AVX-512 BF16 instructions: use --precision f32")]
    NoBf16,
    /// The CPU's engine does not compute in it.
    #[error("f16 is for graphics cards: on the CPU use --precision f32 or bf16")]
    NoF16,
}

/// Opens weights, finds their configuration and packs the engine.
///
/// # Errors
/// When the weights are damaged, are another model's or hold values that are no numbers; when the
/// configuration cannot be found or used; when the processor has not the precision.
pub fn engine(options: &ModelOptions<'_>) -> Result<Engine, Error> {
    let (checkpoint, mut config) = checkpoint(options.weights, options.config)?;
    if let Some(border) = options.border {
        config.border = border;
    }
    if let Some(size) = options.size {
        config.image_size = size;
        config.check().map_err(|source| Error::Config {
            origin: format!("of {}", checkpoint.what),
            source,
        })?;
    }
    start(&config, checkpoint.tensors, options).map_err(|source| match source {
        Start::Tensors(source) => Error::Tensors {
            what: checkpoint.what.clone(),
            source,
        },
        Start::Other(error) => error,
    })
}

enum Start {
    Tensors(candle_core::Error),
    Other(Error),
}

/// The engine on the first device that makes a frame; why those before it do not is said in the log, and by the engine.
fn start(
    config: &ModelConfig,
    tensors: BTreeMap<String, Tensor>,
    options: &ModelOptions<'_>,
) -> Result<Engine, Start> {
    let mut refused = Vec::new();
    for choice in options.device.order() {
        let opened = device::open(choice).and_then(|card| {
            let precision = match options.precision {
                Precision::Auto => card.usual,
                Precision::F32 => DType::F32,
                Precision::F16 => DType::F16,
                Precision::Bf16 => DType::BF16,
            };
            let workers = workers(options.threads, Precision::F32).map_err(|e| e.to_string())?;
            Engine::on_card(config, &tensors, &card, precision, workers).map_err(|error| {
                match choice {
                    Choice::Cuda(number) => device::sentence(number, &error.to_string()),
                    other => format!("{other} cannot be used: {error}"),
                }
            })
        });
        match opened {
            Ok(engine) => return Ok(engine),
            Err(why) => {
                tracing::warn!("{why}");
                refused.push(why);
            }
        }
    }
    let workers = workers(options.threads, options.precision).map_err(Start::Other)?;
    let engine = packed::Engine::new(config, &tensors, workers).map_err(Start::Tensors)?;
    let why = (!refused.is_empty()).then(|| refused.join("; "));
    Ok(Engine::on_cpu(engine).instead(why))
}

/// Opens weights and finds their configuration; the tensors are checked against it.
///
/// # Errors
/// As [`engine`].
pub fn checkpoint(
    weights: Option<&Path>,
    source: ConfigSource<'_>,
) -> Result<(Checkpoint, ModelConfig), Error> {
    let checkpoint = match weights {
        Some(path) => checkpoint::open(path)?,
        None => checkpoint::embedded()?,
    };
    let config = configuration(&checkpoint, source)?;
    checkpoint::check(&checkpoint, &config.expected_tensors())?;
    checkpoint::check_values(&checkpoint)?;
    Ok((checkpoint, config))
}

/// An engine of a preset for measuring, of which `options` say threads, precision and device: the embedded weights for their own preset, for others weights
/// that mean nothing but are of the right shapes and sizes.
///
/// # Errors
/// When `name` is no preset, there are no threads or the processor has not the precision.
pub fn procedural(name: &str, options: &ModelOptions<'_>) -> Result<Engine, Error> {
    let config = ModelConfig::preset(name).ok_or_else(|| Error::Unknown {
        what: name.to_owned(),
    })?;
    let wrong = |source| Error::Tensors {
        what: name.to_owned(),
        source,
    };
    let checkpoint = checkpoint::embedded()?;
    let tensors = match checkpoint.name.as_deref() == Some(name) {
        true => checkpoint.tensors,
        false => procedural::tensors(&config, name).map_err(wrong)?,
    };
    start(&config, tensors, options).map_err(|source| match source {
        Start::Tensors(source) => wrong(source),
        Start::Other(error) => error,
    })
}

fn workers(threads: usize, precision: Precision) -> Result<Workers, Error> {
    let isa = match precision {
        Precision::Auto | Precision::F32 => Isa::detected(),
        Precision::F16 => return Err(Error::NoF16),
        Precision::Bf16 => Isa::bf16().ok_or(Error::NoBf16)?,
    };
    Ok(Workers::with_isa(threads, isa)?)
}

fn configuration(checkpoint: &Checkpoint, source: ConfigSource<'_>) -> Result<ModelConfig, Error> {
    if let ConfigSource::Given(given) = source {
        if let Some(preset) = ModelConfig::preset(given) {
            return Ok(preset);
        }
        let text = std::fs::read_to_string(given).map_err(|source| Error::Read {
            path: given.to_owned(),
            source,
        })?;
        return ModelConfig::from_yaml(&text).map_err(|source| Error::Config {
            origin: given.to_owned(),
            source,
        });
    }
    if let Some(json) = &checkpoint.config {
        return ModelConfig::from_json(json, checkpoint.name.as_deref()).map_err(|source| {
            Error::Config {
                origin: format!("in {}", checkpoint.what),
                source,
            }
        });
    }
    let presets = match source {
        ConfigSource::Preset(name) => vec![name],
        _ => PRESETS.to_vec(),
    };
    let mut presets = presets.into_iter().filter_map(ModelConfig::preset);
    match source {
        // Asked for by name: if the tensors are others, the comparison will say which.
        ConfigSource::Preset(_) => presets.next(),
        _ => {
            presets.find(|preset| checkpoint::check(checkpoint, &preset.expected_tensors()).is_ok())
        }
    }
    .ok_or_else(|| Error::Unknown {
        what: checkpoint.what.clone(),
    })
}

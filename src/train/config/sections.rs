//! The two layouts of file, section by section, and what they come to.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;

use super::{Augment, Complaint, DataConfig, Milestones, Recipe, TrainConfig, distance, section};
use crate::model::{DiscriminatorConfig, ModelConfig};
use crate::train::losses::LossWeights;
use crate::train::transform::TransformParams;

/// PaddleGAN's.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PaddleFile {
    epochs: Option<usize>,
    output_dir: Option<PathBuf>,
    dataset: PaddleData,
    pub(super) model: Value,
    lr_scheduler: PaddleRates,
    #[serde(default)]
    optimizer: Optimizer,
    log_config: Option<LogConfig>,
    snapshot_config: Option<Snapshots>,
    #[serde(default)]
    mimic: Recipe,
    // Of other commands, or of PaddleGAN's machinery.
    #[serde(rename = "validate")]
    _validate: Option<Value>,
    #[serde(rename = "reconstruction_params")]
    _reconstruction: Option<Value>,
    #[serde(rename = "animate_params")]
    _animate: Option<Value>,
    #[serde(rename = "visualizer_params")]
    _visualizer: Option<Value>,
    #[serde(rename = "export_model")]
    _export: Option<Value>,
    #[serde(rename = "enable_visualdl")]
    _visualdl: Option<Value>,
    #[serde(rename = "find_unused_parameters")]
    _unused: Option<Value>,
    #[serde(rename = "use_dataset")]
    _dataset: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PaddleData {
    train: PaddleSplit,
    #[serde(rename = "test")]
    _test: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PaddleSplit {
    batch_size: usize,
    #[serde(default = "one")]
    num_workers: usize,
    dataroot: PathBuf,
    #[serde(default)]
    id_sampling: bool,
    pairs_list: Option<String>,
    #[serde(default)]
    time_flip: bool,
    #[serde(default = "one")]
    num_repeats: usize,
    #[serde(default)]
    transforms: Vec<Value>,
    #[serde(rename = "frame_shape")]
    _frame_shape: Option<Value>,
    #[serde(rename = "name")]
    _name: Option<String>,
    #[serde(rename = "phase")]
    _phase: Option<String>,
    #[serde(rename = "use_shared_memory")]
    _shared: Option<Value>,
    #[serde(rename = "create_frames_folder")]
    _create: Option<Value>,
    #[serde(rename = "process_time")]
    _process: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PaddleModel {
    discriminator: PaddleDiscriminator,
    train_params: TrainParams,
    // Read with the model's own configuration.
    #[serde(rename = "common_params")]
    _common: Value,
    #[serde(rename = "generator")]
    _generator: Value,
    #[serde(rename = "name")]
    _name: Option<String>,
    // The compressed model's: what is trained, and after whom.
    #[serde(rename = "mode")]
    _mode: Option<String>,
    #[serde(rename = "kp_weight_path")]
    _kp_weights: Option<String>,
    #[serde(rename = "gen_weight_path")]
    _gen_weights: Option<String>,
    #[serde(rename = "generator_ori")]
    _teacher: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PaddleDiscriminator {
    discriminator_cfg: DiscriminatorConfig,
    #[serde(rename = "name")]
    _name: Option<String>,
}

/// Of both layouts; PaddleGAN leaves out what stands elsewhere.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TrainParams {
    scales: Vec<f64>,
    transform_params: TransformParams,
    loss_weights: LossWeights,
    num_epochs: Option<usize>,
    num_repeats: Option<usize>,
    epoch_milestones: Option<OneOrMany>,
    lr_generator: Option<f64>,
    lr_discriminator: Option<f64>,
    lr_kp_detector: Option<f64>,
    batch_size: Option<usize>,
    /// Epochs between two checkpoints.
    checkpoint_freq: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PaddleRates {
    epoch_milestones: Option<OneOrMany>,
    lr_generator: f64,
    lr_discriminator: f64,
    lr_kp_detector: f64,
    #[serde(rename = "name")]
    _name: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Optimizer {
    beta1: Option<f64>,
    beta2: Option<f64>,
    name: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogConfig {
    interval: Option<usize>,
    /// So it is spelt.
    #[serde(alias = "visual_interval")]
    visiual_interval: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Snapshots {
    interval: Option<usize>,
}

/// first-order-model's.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SiarohinFile {
    dataset_params: SiarohinData,
    model_params: Value,
    train_params: TrainParams,
    #[serde(default)]
    mimic: Recipe,
    #[serde(rename = "reconstruction_params")]
    _reconstruction: Option<Value>,
    #[serde(rename = "animate_params")]
    _animate: Option<Value>,
    #[serde(rename = "visualizer_params")]
    _visualizer: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SiarohinData {
    root_dir: PathBuf,
    #[serde(default)]
    id_sampling: bool,
    pairs_list: Option<String>,
    #[serde(default)]
    augmentation_params: Augmentation,
    #[serde(rename = "frame_shape")]
    _frame_shape: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Augmentation {
    flip_param: Flip,
    jitter_param: Jitter,
    rotation_param: Rotation,
    resize_param: Resize,
    crop_param: Crop,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Flip {
    horizontal_flip: bool,
    time_flip: bool,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Jitter {
    brightness: f64,
    contrast: f64,
    saturation: f64,
    hue: f64,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Rotation {
    degrees: f64,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Resize {
    ratio: Option<[f64; 2]>,
    #[serde(rename = "interpolation")]
    _interpolation: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Crop {
    shift: f64,
    /// Pictures have the networks' size whatever is cut out of them.
    #[serde(rename = "size")]
    _size: Option<Value>,
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(f64),
    Many(Vec<f64>),
}

impl OneOrMany {
    fn numbers(&self) -> Vec<usize> {
        match self {
            Self::One(one) => vec![*one as usize],
            Self::Many(many) => many.iter().map(|v| *v as usize).collect(),
        }
    }
}

fn one() -> usize {
    1
}

/// Python's way to say nothing reaches YAML as a word.
fn path(text: Option<String>) -> Option<PathBuf> {
    text.filter(|text| !text.is_empty() && text != "None")
        .map(PathBuf::from)
}

impl PaddleFile {
    pub(super) fn into_config(
        self,
        parts: PaddleModel,
        model: ModelConfig,
    ) -> Result<TrainConfig, Complaint> {
        let split = self.dataset.train;
        let mut augment = transforms(&split.transforms)?;
        augment.time_flip = if split.time_flip { 0.5 } else { 0.0 };
        let (log, params, rates) = (self.log_config, parts.train_params, self.lr_scheduler);
        if let Some(name) = self.optimizer.name.filter(|name| name != "Adam") {
            return Err(format!("the optimizer is {name}, but only Adam is there"));
        }
        let interval = |value: Option<usize>, usual: usize| value.unwrap_or(usual);
        Ok(TrainConfig {
            model,
            discriminator: parts.discriminator.discriminator_cfg,
            data: DataConfig {
                root: split.dataroot,
                id_sampling: split.id_sampling,
                pairs_list: path(split.pairs_list),
                num_repeats: split.num_repeats,
                batch_size: split.batch_size,
                workers: split.num_workers.max(1),
                augment,
            },
            losses: params.loss_weights,
            scales: params.scales,
            transform: params.transform_params,
            rates: [
                rates.lr_kp_detector,
                rates.lr_generator,
                rates.lr_discriminator,
            ],
            // PaddleGAN's Adam has PyTorch's usual decays where the file is silent.
            betas: [
                self.optimizer.beta1.unwrap_or(0.9),
                self.optimizer.beta2.unwrap_or(0.999),
            ],
            epochs: self.epochs.or(params.num_epochs).unwrap_or(100),
            milestones: Milestones::Steps(
                rates
                    .epoch_milestones
                    .map_or_else(Vec::new, |m| m.numbers()),
            ),
            log_interval: interval(log.as_ref().and_then(|l| l.interval), 10),
            visual_interval: interval(log.and_then(|l| l.visiual_interval), 1000),
            // PaddleGAN counts these in epochs of hundreds of steps; too rarely for a run that may stop.
            save_interval: interval(self.snapshot_config.and_then(|s| s.interval), 10).max(1) * 100,
            output: self.output_dir.unwrap_or_else(|| "output_dir".into()),
            recipe: self.mimic,
        })
    }
}

impl SiarohinFile {
    pub(super) fn into_config(self, model: ModelConfig) -> Result<TrainConfig, Complaint> {
        let discriminator = self.model_params.get("discriminator_params");
        let discriminator = discriminator
            .ok_or_else(|| "in model_params: there are no discriminator_params".to_owned())?;
        let (data, params) = (self.dataset_params, self.train_params);
        let (flip, jitter) = (
            data.augmentation_params.flip_param,
            data.augmentation_params.jitter_param,
        );
        let missing = |key: &str| format!("in train_params: there is no {key}");
        let half = |yes: bool| if yes { 0.5 } else { 0.0 };
        Ok(TrainConfig {
            model,
            discriminator: section("discriminator_params", discriminator)?,
            data: DataConfig {
                root: data.root_dir,
                id_sampling: data.id_sampling,
                pairs_list: path(data.pairs_list),
                num_repeats: params.num_repeats.unwrap_or(1),
                batch_size: params.batch_size.ok_or_else(|| missing("batch_size"))?,
                workers: 2,
                augment: Augment {
                    time_flip: half(flip.time_flip),
                    horizontal_flip: half(flip.horizontal_flip),
                    brightness: jitter.brightness,
                    contrast: jitter.contrast,
                    saturation: jitter.saturation,
                    hue: jitter.hue,
                    rotation: data.augmentation_params.rotation_param.degrees,
                    scale: data.augmentation_params.resize_param.ratio,
                    shift: data.augmentation_params.crop_param.shift,
                },
            },
            losses: params.loss_weights,
            scales: params.scales,
            transform: params.transform_params,
            rates: [
                params
                    .lr_kp_detector
                    .ok_or_else(|| missing("lr_kp_detector"))?,
                params.lr_generator.ok_or_else(|| missing("lr_generator"))?,
                params
                    .lr_discriminator
                    .ok_or_else(|| missing("lr_discriminator"))?,
            ],
            betas: [0.5, 0.999],
            epochs: params.num_epochs.unwrap_or(100),
            milestones: Milestones::Epochs(
                params
                    .epoch_milestones
                    .map_or_else(Vec::new, |m| m.numbers()),
            ),
            log_interval: 10,
            visual_interval: 1000,
            save_interval: params.checkpoint_freq.unwrap_or(10).max(1) * 100,
            output: "log".into(),
            recipe: self.mimic,
        })
    }
}

/// PaddleGAN's list of transforms.
fn transforms(list: &[Value]) -> Result<Augment, Complaint> {
    const KNOWN: [&str; 5] = [
        "PairedRandomHorizontalFlip",
        "PairedColorJitter",
        "PairedRandomRotation",
        "PairedRandomResize",
        "PairedRandomShift",
    ];
    let mut augment = Augment::default();
    for transform in list {
        let name = transform
            .get("name")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let number =
            |key: &str, usual: f64| transform.get(key).and_then(Value::as_f64).unwrap_or(usual);
        match name {
            "PairedRandomHorizontalFlip" => augment.horizontal_flip = number("prob", 0.5),
            "PairedColorJitter" => {
                augment.brightness = number("brightness", 0.0);
                augment.contrast = number("contrast", 0.0);
                augment.saturation = number("saturation", 0.0);
                augment.hue = number("hue", 0.0);
            }
            "PairedRandomRotation" => augment.rotation = number("degrees", 0.0),
            "PairedRandomResize" => {
                let ratio = transform.get("ratio").cloned().unwrap_or(Value::Null);
                augment.scale = Some(section("PairedRandomResize.ratio", &ratio)?);
            }
            "PairedRandomShift" => augment.shift = number("shift", 0.0),
            _ => {
                let nearest = KNOWN.into_iter().min_by_key(|known| distance(name, known));
                return Err(format!(
                    "in transforms: '{name}' is not known; the nearest that is: '{}'",
                    nearest.unwrap_or_default()
                ));
            }
        }
    }
    Ok(augment)
}

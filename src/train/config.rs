//! What a run is told: PaddleGAN's and first-order-model's YAML files as they are, a section `mimic` with
//! what they do not know, and overrides by `-o section.key=value`.
//!
//! Keys that nobody knows are errors, with the nearest that is known: a typing error in a learning rate
//! would otherwise cost a day.

use std::path::PathBuf;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::distil::Compress;
use super::losses::LossWeights;
use super::transform::TransformParams;
use crate::model::config::{Border, parse_yaml};
use crate::model::{DiscriminatorConfig, ModelConfig};
use crate::ops::conv2d::Products;

mod sections;

use sections::{PaddleFile, PaddleModel, SiarohinFile};

/// A file that describes no run, in one sentence.
pub type Complaint = String;

/// Everything that decides a run.
#[derive(Clone, Debug)]
pub struct TrainConfig {
    /// The networks; trained without treatment of the border, as the reference.
    pub model: ModelConfig,
    /// The discriminator.
    pub discriminator: DiscriminatorConfig,
    /// Clips and how they are shown.
    pub data: DataConfig,
    /// What the losses count.
    pub losses: LossWeights,
    /// Sizes at which pictures are compared.
    pub scales: Vec<f64>,
    /// Deformations of the equivariance losses.
    pub transform: TransformParams,
    /// Learning rates of keypoint detector, generator and discriminator.
    pub rates: [f64; 3],
    /// Adam's decay of both moments.
    pub betas: [f64; 2],
    /// How often all clips are shown ([`DataConfig::num_repeats`] times each).
    pub epochs: usize,
    /// When learning rates fall to a tenth.
    pub milestones: Milestones,
    /// Steps between two lines of the log.
    pub log_interval: usize,
    /// Steps between two grids of pictures.
    pub visual_interval: usize,
    /// Steps between two checkpoints.
    pub save_interval: usize,
    /// Where results go.
    pub output: PathBuf,
    /// What only mimic knows.
    pub recipe: Recipe,
}

/// When learning rates fall.
#[derive(Clone, Debug, PartialEq)]
pub enum Milestones {
    /// Counted in steps: PaddleGAN's, whatever their name says.
    Steps(Vec<usize>),
    /// Counted in epochs: first-order-model's.
    Epochs(Vec<usize>),
}

/// Clips and how they are shown.
#[derive(Clone, Debug, PartialEq)]
pub struct DataConfig {
    /// The folder with `train/` and `test/`, or with clips.
    pub root: PathBuf,
    /// Clips of one person (the name before `#`) count as one, of which one is drawn each time.
    pub id_sampling: bool,
    /// A table of pairs for evaluation: source and driving.
    pub pairs_list: Option<PathBuf>,
    /// How often each clip is shown in an epoch.
    pub num_repeats: usize,
    /// Pairs in a step.
    pub batch_size: usize,
    /// Threads that read clips.
    pub workers: usize,
    /// How pairs are varied.
    pub augment: Augment,
}

/// How pairs are varied; both pictures alike.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Augment {
    /// Probability that the later frame is the source.
    pub time_flip: f64,
    /// Probability of left for right.
    pub horizontal_flip: f64,
    /// Factor 1 - b to 1 + b.
    pub brightness: f64,
    /// As brightness.
    pub contrast: f64,
    /// As brightness.
    pub saturation: f64,
    /// Turn of the colour circle, -h to h of a whole.
    pub hue: f64,
    /// Turn of the picture in degrees, -r to r.
    pub rotation: f64,
    /// Size of the picture, from and to.
    pub scale: Option<[f64; 2]>,
    /// Move of the picture in widths, -m to m.
    pub shift: f64,
}

/// The section `mimic`: what made the embedded model's mouths move, and what runs need.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    /// Weights of VGG19 or SqueezeNet 1.1 (told apart by their tensors) for the perceptual loss.
    pub perceptual_network: Option<PathBuf>,
    /// Weight of the mean absolute difference of pictures.
    pub l1: f64,
    /// Landmarks of the clips: a safetensors file with (frames, n, 2) in -1..1 for each.
    pub landmarks: Option<PathBuf>,
    /// Weight of the distance of the first n keypoints to the landmarks.
    pub keypoint_landmarks: f64,
    /// Weight of the distance between the inner lips.
    pub lip_distance: f64,
    /// Numbers of the landmarks of the inner lips, the upper first.
    pub lips: [usize; 2],
    /// Numbers of the landmarks of mouth corners and lips, whose middle an enlarged window is put around.
    pub mouth: Vec<usize>,
    /// The same of the eyes.
    pub eyes: Vec<usize>,
    /// Landmarks that change places when a picture is mirrored.
    pub mirrored: Vec<[usize; 2]>,
    /// Weight of the perceptual distance of windows of mouth and eyes.
    pub windows: f64,
    /// Share of pairs that are chosen for the largest difference in mouth opening.
    pub mouth_pairs: f64,
    /// Steps at first in which keypoints learn the landmarks and nothing else.
    pub landmark_steps: usize,
    /// Decay of the average of the weights that is kept beside them; 0 for none.
    pub ema: f64,
    /// Gradients are shortened to this length; 0 leaves them.
    pub gradient_clip: f64,
    /// Pairs that batch norm's statistics are measured over anew when a model is written.
    pub statistics: usize,
    /// Learning rates fall to nothing along a cosine over all steps.
    pub cosine: bool,
    /// Steps at first over which learning rates grow from nothing: what was learnt is not lost to Adam's first, coarse steps.
    pub warm_up: usize,
    /// What convolutions multiply.
    pub precision: Precision,
    /// Batch norm's statistics are those of all ranks' pictures together.
    pub sync_batch_norm: bool,
    /// What random numbers start from.
    pub seed: u64,
    /// Memory for frames in MB.
    pub cache: u64,
    /// Learning from a larger model.
    pub compress: Compress,
}

/// What convolutions multiply; weights, sums, gradients and everything else are f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// As they are.
    #[default]
    F32,
    /// Rounded to TF32 by NVIDIA's cards from Ampere on; elsewhere as they are.
    Tf32,
    /// Rounded to bf16 (mixed precision): faster on graphics cards.
    Bf16,
}

impl Precision {
    /// The same for convolutions.
    pub(super) fn products(self) -> Products {
        match self {
            Self::F32 => Products::Exact,
            Self::Tf32 => Products::Tf32,
            Self::Bf16 => Products::Bf16,
        }
    }
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            perceptual_network: None,
            l1: 0.0,
            landmarks: None,
            keypoint_landmarks: 0.0,
            lip_distance: 0.0,
            lips: [5, 6],
            mouth: vec![3, 4, 5, 6],
            eyes: vec![0, 1],
            mirrored: vec![[0, 1], [3, 4]],
            windows: 0.0,
            mouth_pairs: 0.0,
            landmark_steps: 0,
            ema: 0.0,
            gradient_clip: 0.0,
            statistics: 0,
            cosine: false,
            warm_up: 0,
            precision: Precision::F32,
            sync_batch_norm: false,
            seed: 0,
            cache: 2048,
            compress: Compress::default(),
        }
    }
}

impl TrainConfig {
    /// Reads a YAML file of PaddleGAN or first-order-model, changed by `overrides` (`section.key=value`).
    ///
    /// # Errors
    /// When it is no YAML, names a key that is not known, or says something impossible.
    pub fn from_yaml(text: &str, overrides: &[String]) -> Result<Self, Complaint> {
        let mut file: Value = parse_yaml(text)?;
        for change in overrides {
            apply(&mut file, change)?;
        }
        // The model's part is read where every model is; JSON is YAML.
        let model =
            ModelConfig::from_yaml(&file.to_string()).map_err(|e| nearest(&e.to_string()))?;
        let model = ModelConfig {
            border: Border::None,
            ..model
        };
        let config = if file.get("model_params").is_some() {
            let file: SiarohinFile = section("the file", &file)?;
            file.into_config(model)?
        } else {
            let file: PaddleFile = section("the file", &file)?;
            let parts: PaddleModel = section("model", &file.model)?;
            file.into_config(parts, model)?
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), Complaint> {
        let within = |key: &str, value: f64, low: f64, high: f64| {
            if (low..=high).contains(&value) {
                return Ok(());
            }
            Err(format!("{key} is {value}, but it must be {low} to {high}"))
        };
        let many = |key: &str, value: usize, low: usize, high: usize| {
            within(key, value as f64, low as f64, high as f64)
        };
        let (data, recipe) = (&self.data, &self.recipe);
        many("batch_size", data.batch_size, 1, 4096)?;
        many("num_workers", data.workers, 1, 256)?;
        many("num_repeats", data.num_repeats, 1, 1_000_000)?;
        many("epochs", self.epochs, 1, 10_000_000)?;
        for (interval, value) in [
            ("log interval", self.log_interval),
            ("visual interval", self.visual_interval),
            ("snapshot interval", self.save_interval),
        ] {
            many(interval, value, 1, 1_000_000_000)?;
        }
        for (name, rate) in ["lr_kp_detector", "lr_generator", "lr_discriminator"]
            .iter()
            .zip(self.rates)
        {
            within(name, rate, 0.0, 1.0)?;
        }
        for beta in self.betas {
            within("beta", beta, 0.0, 0.999_999)?;
        }
        let augment = &data.augment;
        for (name, value, high) in [
            ("brightness", augment.brightness, 1.0),
            ("contrast", augment.contrast, 1.0),
            ("saturation", augment.saturation, 1.0),
            ("hue", augment.hue, 0.5),
            ("rotation", augment.rotation, 180.0),
            ("shift", augment.shift, 0.5),
            ("flip probability", augment.horizontal_flip, 1.0),
            ("mimic.mouth_pairs", recipe.mouth_pairs, 1.0),
            ("mimic.ema", recipe.ema, 0.999_999),
            ("mimic.compress.prune", recipe.compress.prune, 0.95),
        ] {
            within(name, value, 0.0, high)?;
        }
        if let Some([low, high]) = augment.scale {
            within("scale", low, 0.2, high)?;
            within("scale", high, low, 5.0)?;
        }
        many(
            "discriminator num_blocks",
            self.discriminator.num_blocks,
            1,
            8,
        )?;
        many(
            "discriminator max_features",
            self.discriminator.max_features,
            1,
            4096,
        )?;
        many(
            "discriminator block_expansion",
            self.discriminator.block_expansion,
            1,
            self.discriminator.max_features,
        )?;
        for scale in self.scales.iter().chain(&self.discriminator.scales) {
            within("a scale", *scale, 1.0 / 64.0, 1.0)?;
            if !self.scales.contains(scale) {
                return Err(format!(
                    "the discriminator's scale {scale} is none of the pictures' scales {:?}",
                    self.scales
                ));
            }
        }
        many("points_tps", self.transform.points_tps.unwrap_or(1), 1, 32)?;
        let wants_landmarks = recipe.keypoint_landmarks > 0.0
            || recipe.lip_distance > 0.0
            || recipe.windows > 0.0
            || recipe.mouth_pairs > 0.0
            || recipe.landmark_steps > 0;
        if wants_landmarks && recipe.landmarks.is_none() {
            return Err(
                "the section mimic asks for landmarks but names no file: add mimic.landmarks or give --landmarks FILE"
                    .to_owned(),
            );
        }
        Ok(())
    }

    /// What learning rates are multiplied by at a step of `total`, with `per_epoch` steps in an epoch.
    pub fn rate_factor(&self, step: u64, per_epoch: u64, total: u64) -> f64 {
        let warmth = (step + 1) as f64 / self.recipe.warm_up.max(1) as f64;
        let warmth = warmth.min(1.0);
        if self.recipe.cosine {
            let done = step as f64 / total.max(1) as f64;
            return warmth * 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos());
        }
        let (milestones, at) = match &self.milestones {
            Milestones::Steps(steps) => (steps, step),
            Milestones::Epochs(epochs) => (epochs, step / per_epoch.max(1)),
        };
        let passed = milestones.iter().filter(|&&m| at >= m as u64).count();
        warmth * 0.1f64.powi(passed as i32)
    }
}

/// Puts `a.b.c=value` into a file; parts may be numbers of a list. The value is YAML.
fn apply(file: &mut Value, change: &str) -> Result<(), Complaint> {
    let usage = || format!("the override '{change}' is not section.key=value");
    let (path, text) = change.split_once('=').ok_or_else(usage)?;
    let value = parse_yaml(text)?;
    let mut place = file;
    for part in path.split('.') {
        if part.is_empty() {
            return Err(usage());
        }
        place = match place {
            Value::Array(list) => {
                let length = list.len();
                let entry = part.parse::<usize>().ok().and_then(|i| list.get_mut(i));
                entry.ok_or_else(|| {
                    format!("the override '{change}': a list of {length} has no entry {part}")
                })?
            }
            other => {
                if !other.is_object() {
                    *other = Value::Object(Map::new());
                }
                match other {
                    Value::Object(map) => map.entry(part).or_insert(Value::Null),
                    _ => return Err(usage()),
                }
            }
        };
    }
    *place = value;
    Ok(())
}

/// Reads one section strictly; `name` is what to call it.
fn section<T: DeserializeOwned>(name: &str, value: &Value) -> Result<T, Complaint> {
    serde_json::from_value(value.clone())
        .map_err(|e| format!("in {name}: {}", nearest(&e.to_string())))
}

/// Says of an unknown key which known one is nearest, instead of all of them.
fn nearest(message: &str) -> String {
    let Some((before, rest)) = message.split_once("unknown field `") else {
        return message.to_owned();
    };
    let Some((key, rest)) = rest.split_once('`') else {
        return message.to_owned();
    };
    // "expected `a`", "expected `a` or `b`", "expected one of `a`, `b`, `c`": the YAML reader's without quotes, and
    // with a place behind it.
    let (_, list) = rest.split_once("expected ").unwrap_or_default();
    let list = list.strip_prefix("one of ").unwrap_or(list);
    let list = list.split(" at ").next().unwrap_or_default();
    let known = list
        .split(|c: char| !(c.is_alphanumeric() || c == '_'))
        .filter(|word| !word.is_empty() && *word != "or");
    match known.min_by_key(|known| distance(key, known)) {
        Some(nearest) => {
            format!("{before}the key '{key}' is not known; the nearest that is: '{nearest}'")
        }
        None => format!("{before}the key '{key}' is not known"),
    }
}

/// How many letters must be changed, added or removed to make one word another (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests;

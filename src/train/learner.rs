//! The networks while they learn: their variables, one step's losses and gradients, batch norm's statistics
//! measured anew.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::VarBuilder;

use super::config::TrainConfig;
use super::distil::{Answer, Lesson, Stage};
use super::loader::{Batch, Marks};
use super::losses::{self, Losses, Pyramid};
use super::random::Random;
use super::transform::Transform;
use crate::model::blocks::MOMENTUM;
use crate::model::{
    Discriminator, Generator, GeneratorOutput, KeypointDetector, KeypointTensors, ModelConfig,
    Networks, Perceptual,
};
use crate::ops::conv2d::multiplying;

/// Side of the enlarged windows of mouth and eyes.
const WINDOW: usize = 64;

/// How far a window reaches beyond the landmarks it is put around.
const MARGIN: f64 = 1.6;

/// What names of the two networks' tensors begin with.
const DETECTOR: &str = "kp_detector.";
const GENERATOR: &str = "generator.";

/// Networks and discriminator, built of variables.
#[derive(Debug)]
pub struct Learner {
    config: TrainConfig,
    vars: BTreeMap<String, Var>,
    networks: Networks,
    discriminator: Option<Discriminator>,
    perceptual: Option<Perceptual>,
    pyramid: Pyramid,
    lesson: Option<Lesson>,
}

/// What the networks made of a batch.
#[derive(Clone, Debug)]
pub struct Generated {
    /// Keypoints of the sources.
    pub kp_source: KeypointTensors,
    /// Keypoints of the driving frames.
    pub kp_driving: KeypointTensors,
    /// Pictures, deformation, occlusion map.
    pub output: GeneratorOutput,
    /// The driving frames deformed, and their keypoints.
    pub transformed: Option<(Tensor, KeypointTensors)>,
}

impl Generated {
    /// The same without the graph of how it was made, whose memory is large.
    #[must_use]
    pub fn detach(&self) -> Self {
        let keypoints = |kp: &KeypointTensors| KeypointTensors {
            value: kp.value.detach(),
            jacobian: kp.jacobian.as_ref().map(Tensor::detach),
        };
        let output = &self.output;
        let output = GeneratorOutput {
            prediction: output.prediction.detach(),
            deformation: output.deformation.detach(),
            mask: output.mask.detach(),
            occlusion_map: output.occlusion_map.as_ref().map(Tensor::detach),
            sparse_deformed: output.sparse_deformed.detach(),
            used_deformation: output.used_deformation.detach(),
            used_occlusion: output.used_occlusion.as_ref().map(Tensor::detach),
        };
        let transformed = self.transformed.as_ref();
        Self {
            kp_source: keypoints(&self.kp_source),
            kp_driving: keypoints(&self.kp_driving),
            output,
            transformed: transformed.map(|(frame, kp)| (frame.detach(), keypoints(kp))),
        }
    }
}

/// Gradients by the names of their variables.
pub type Gradients = BTreeMap<String, Tensor>;

impl Learner {
    /// Builds the networks of values (see [`initial`]): names as [`names`] lists them. Tensors that begin
    /// with `discriminator.` are needed only when there is a game to play.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    pub fn new(
        config: &TrainConfig,
        tensors: &BTreeMap<String, Tensor>,
        perceptual: Option<Perceptual>,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let mut vars = BTreeMap::new();
        for name in names(config).keys() {
            let Some(value) = tensors.get(name) else {
                candle_core::bail!("there is no tensor {name}");
            };
            let value = value.to_device(device)?.to_dtype(dtype)?;
            vars.insert(name.clone(), Var::from_tensor(&value)?);
        }
        let vb = builder(&vars, dtype, device);
        let networks = Networks::build(&config.model, &vb)?;
        let discriminator = if config.losses.adversarial() {
            let (channels, keypoints) = (config.model.num_channels, config.model.num_kp);
            let vb = vb.pp("discriminator");
            Some(Discriminator::new(
                &config.discriminator,
                channels,
                keypoints,
                &vb,
            )?)
        } else {
            None
        };
        Ok(Self {
            pyramid: Pyramid::new(&config.scales, device)?,
            config: config.clone(),
            vars,
            networks,
            discriminator,
            perceptual,
            lesson: None,
        })
    }

    /// The same as the student of a larger model.
    #[must_use]
    pub fn taught(self, lesson: Option<Lesson>) -> Self {
        Self { lesson, ..self }
    }

    /// Every variable by its name, batch norm's statistics among them.
    pub fn vars(&self) -> &BTreeMap<String, Var> {
        &self.vars
    }

    /// The networks.
    pub fn networks(&self) -> &Networks {
        &self.networks
    }

    /// Everything the generator's side is judged by, and what it made; `deformed` is what the transform makes
    /// of the driving frames.
    ///
    /// # Errors
    /// When the device fails.
    pub fn generate(
        &self,
        batch: &Batch,
        transform: &Transform,
        deformed: &Tensor,
    ) -> Result<(Losses, Generated)> {
        let pass = || self.losses(batch, transform, deformed);
        multiplying(self.config.recipe.precision.products(), pass)
    }

    fn losses(
        &self,
        batch: &Batch,
        transform: &Transform,
        deformed: &Tensor,
    ) -> Result<(Losses, Generated)> {
        let weights = &self.config.losses;
        let (detector, generator) = self.actors(&self.networks);
        let kp_source = detector.forward(&batch.source)?;
        let kp_driving = detector.forward(&batch.driving)?;
        let source = generator.encode_source(&batch.source)?;
        let output = generator.forward(&source, &kp_source, &kp_driving)?;

        let mut losses = Losses::new();
        let real = self.pyramid.forward(&batch.driving)?;
        let generated = self.pyramid.forward(&output.prediction)?;
        if let Some(network) = &self.perceptual
            && weights.perceptual.iter().any(|w| *w != 0.0)
        {
            let loss = losses::perceptual(network, &generated, &real, &weights.perceptual)?;
            losses.push(("perceptual", loss));
        }
        if let Some(discriminator) = &self.discriminator {
            let frozen = discriminator.frozen();
            let keypoints = kp_driving.value.detach();
            let judged = frozen.forward(&self.judged(&generated), &keypoints)?;
            let wanted = frozen.forward(&self.judged(&real), &keypoints)?;
            losses.extend(losses::adversarial(&judged, &wanted, weights)?);
        }
        let resting = self.stage() == Some(Stage::Generator);
        let equivariance = weights.equivariance_value + weights.equivariance_jacobian;
        let transformed = if equivariance != 0.0 && !resting {
            let keypoints = detector.forward(deformed)?;
            losses.extend(losses::equivariance(
                transform,
                &kp_driving,
                &keypoints,
                weights,
            )?);
            Some((deformed.clone(), keypoints))
        } else {
            None
        };
        let recipe = &self.config.recipe;
        if recipe.l1 > 0.0 {
            let loss = losses::l1(&output.prediction, &batch.driving)?;
            losses.push(("l1", (loss * recipe.l1)?));
        }
        if let Some(marks) = &batch.marks {
            losses.extend(self.landmark_losses(&kp_source, &kp_driving, marks)?);
            if let (Some(network), true) = (&self.perceptual, recipe.windows > 0.0) {
                let loss = self.windows(network, &output.prediction, &batch.driving, marks)?;
                losses.push(("windows", (loss * recipe.windows)?));
            }
        }
        if let Some(lesson) = &self.lesson {
            let answer = Answer {
                keypoints: [&kp_source, &kp_driving],
                features: &source.features,
                output: &output,
            };
            losses.extend(lesson.losses(&batch.source, &batch.driving, answer)?);
            losses.extend(self.slimming(lesson)?);
        }
        let generated = Generated {
            kp_source,
            kp_driving,
            output,
            transformed,
        };
        Ok((losses, generated))
    }

    fn stage(&self) -> Option<Stage> {
        self.lesson.as_ref().map(|lesson| lesson.stage)
    }

    /// Who finds keypoints and who draws: the student's `own` networks, or the teacher's where they rest.
    fn actors<'a>(&'a self, own: &'a Networks) -> (&'a KeypointDetector, &'a Generator) {
        let (detector, generator) = (&own.keypoint_detector, &own.generator);
        match &self.lesson {
            Some(lesson) if lesson.stage == Stage::Keypoints => {
                (detector, &lesson.teacher.generator)
            }
            Some(lesson) if lesson.stage == Stage::Generator => {
                (&lesson.teacher.keypoint_detector, generator)
            }
            _ => (detector, generator),
        }
    }

    /// The sum of the scales that are to become small.
    fn slimming(&self, lesson: &Lesson) -> Result<Losses> {
        let weight = lesson.weights.slimming;
        if lesson.stage != Stage::Both || weight == 0.0 {
            return Ok(Losses::new());
        }
        let sizes = lesson.scales.iter().filter_map(|name| self.vars.get(name));
        let sizes = sizes.map(|scale| scale.abs()?.sum_all());
        let sum = losses::sum(&sizes.collect::<Result<Vec<_>>>()?)?;
        Ok(vec![("slimming", (sum * weight)?)])
    }

    /// The discriminator's loss on what was generated; none without a game.
    ///
    /// # Errors
    /// When the device fails.
    pub fn discriminate(&self, batch: &Batch, generated: &Generated) -> Result<Option<Tensor>> {
        let Some(discriminator) = &self.discriminator else {
            return Ok(None);
        };
        let keypoints = generated.kp_driving.value.detach();
        let real = self.pyramid.forward(&batch.driving)?;
        let drawn = self
            .pyramid
            .forward(&generated.output.prediction.detach())?;
        let products = self.config.recipe.precision.products();
        let judge = |pictures: &[Tensor]| {
            multiplying(products, || {
                discriminator.forward(&self.judged(pictures), &keypoints)
            })
        };
        let (judged, wanted) = (judge(&drawn)?, judge(&real)?);
        let weight = self.config.losses.discriminator_gan;
        losses::discrimination(&judged, &wanted, weight).map(Some)
    }

    /// Keypoints against landmarks alone: for the first steps of a run.
    ///
    /// # Errors
    /// When the device fails.
    pub fn point(&self, batch: &Batch) -> Result<Losses> {
        let detector = &self.networks.keypoint_detector;
        let kp_source = detector.forward(&batch.source)?;
        let kp_driving = detector.forward(&batch.driving)?;
        match &batch.marks {
            Some(marks) => self.landmark_losses(&kp_source, &kp_driving, marks),
            None => Ok(Losses::new()),
        }
    }

    /// Gradients of a loss of those variables that `wanted` says yes to.
    ///
    /// # Errors
    /// When an op has no gradient.
    pub fn gradients(&self, loss: &Tensor, wanted: impl Fn(&str) -> bool) -> Result<Gradients> {
        let all = loss.backward()?;
        let named = self.vars.iter().filter(|(name, _)| wanted(name));
        Ok(named
            .filter_map(|(name, var)| Some((name.clone(), all.get(var)?.clone())))
            .collect())
    }

    /// The pyramid's pictures that the discriminator looks at.
    fn judged(&self, pyramid: &[Tensor]) -> Vec<Tensor> {
        let scales = &self.config.scales;
        let of = |scale: &f64| {
            pyramid
                .get(scales.iter().position(|s| s == scale)?)
                .cloned()
        };
        self.config
            .discriminator
            .scales
            .iter()
            .filter_map(of)
            .collect()
    }

    fn landmark_losses(
        &self,
        kp_source: &KeypointTensors,
        kp_driving: &KeypointTensors,
        marks: &Marks,
    ) -> Result<Losses> {
        let recipe = &self.config.recipe;
        let mut losses = Losses::new();
        let both = [
            (&kp_source.value, &marks.source),
            (&kp_driving.value, &marks.driving),
        ];
        let mean = |loss: &dyn Fn(&Tensor, &Tensor) -> Result<Tensor>, weight: f64| {
            let of = both
                .iter()
                .map(|(keypoints, wanted)| loss(keypoints, wanted));
            losses::sum(&of.collect::<Result<Vec<_>>>()?)? * (0.5 * weight)
        };
        if recipe.keypoint_landmarks > 0.0 {
            let loss = |k: &Tensor, w: &Tensor| losses::landmarks(k, w, &marks.known);
            losses.push(("landmarks", mean(&loss, recipe.keypoint_landmarks)?));
        }
        if recipe.lip_distance > 0.0 {
            let loss =
                |k: &Tensor, w: &Tensor| losses::lip_distance(k, w, &marks.known, recipe.lips);
            losses.push(("lip_distance", mean(&loss, recipe.lip_distance)?));
        }
        Ok(losses)
    }

    /// How different mouth and eyes look when they are enlarged.
    fn windows(
        &self,
        network: &Perceptual,
        drawn: &Tensor,
        real: &Tensor,
        marks: &Marks,
    ) -> Result<Tensor> {
        let recipe = &self.config.recipe;
        let mut terms = Vec::new();
        for part in [&recipe.mouth, &recipe.eyes] {
            let points: Vec<Tensor> = part
                .iter()
                .map(|&i| marks.driving.narrow(1, i, 1))
                .collect::<Result<_>>()?;
            if points.is_empty() {
                continue;
            }
            let points = Tensor::cat(&points, 1)?;
            let (low, high) = (points.min(1)?, points.max(1)?);
            let middle = ((&low + &high)? * 0.5)?;
            let reach = ((high - low)?.max(1)? * (0.5 * MARGIN))?.clamp(0.08f64, 0.6f64)?;
            // A window of a picture without landmarks would be of anything: it shows the same on both sides.
            let known = marks.known.reshape(((), 1, 1, 1))?;
            let view = |pictures: &Tensor| {
                losses::windows(pictures, &middle, &reach, WINDOW)?.broadcast_mul(&known)
            };
            let (drawn, real) = ([view(drawn)?], [view(real)?]);
            terms.push(losses::perceptual(
                network,
                &drawn,
                &real,
                &self.config.losses.perceptual,
            )?);
        }
        losses::sum(&terms)
    }

    /// The networks' values with batch norm's statistics measured over batches, as they are with these
    /// weights: what a model is written with. `values` are those of [`Learner::vars`], or an average of
    /// them.
    ///
    /// # Errors
    /// When the device fails, or a batch cannot be had.
    pub fn measured<E: From<candle_core::Error>>(
        &self,
        values: &BTreeMap<String, Tensor>,
        batches: impl Iterator<Item = std::result::Result<Batch, E>>,
    ) -> std::result::Result<BTreeMap<String, Tensor>, E> {
        let copies = values
            .iter()
            .map(|(name, value)| Ok((name.clone(), Var::from_tensor(&value.copy()?)?)))
            .collect::<Result<BTreeMap<String, Var>>>()?;
        let (dtype, device) = match copies.values().next() {
            Some(var) => (var.dtype(), var.device().clone()),
            None => (DType::F32, Device::Cpu),
        };
        let networks = Networks::build(&self.config.model, &builder(&copies, dtype, &device))?;
        let (detector, generator) = self.actors(&networks);
        // From zero, one pass leaves the batch's own statistics times the momentum. Of networks that rest
        // nothing is measured.
        let mut sums: BTreeMap<&String, (Tensor, f64)> = BTreeMap::new();
        let running: Vec<(&String, &Var)> = copies
            .iter()
            .filter(|(name, _)| is_statistic(name))
            .collect();
        let mut pass = |network: &str, run: &mut dyn FnMut() -> Result<()>| -> Result<()> {
            let rests = match self.stage() {
                Some(Stage::Keypoints) => network == GENERATOR,
                Some(Stage::Generator) => network == DETECTOR,
                _ => false,
            };
            let mine = || {
                let named = running.iter().filter(|(name, _)| name.starts_with(network));
                named.filter(|_| !rests)
            };
            for (_, var) in mine() {
                var.set(&var.zeros_like()?)?;
            }
            run()?;
            for (name, var) in mine() {
                let seen = (var.as_detached_tensor() / MOMENTUM)?;
                let (sum, count) = match sums.remove(name) {
                    Some((sum, count)) => ((sum + seen)?, count + 1.0),
                    None => (seen, 1.0),
                };
                sums.insert(name, (sum, count));
            }
            Ok(())
        };
        for batch in batches {
            let batch = batch?;
            let mut keypoints = Vec::new();
            for pictures in [&batch.source, &batch.driving] {
                pass(DETECTOR, &mut || {
                    let found = detector.forward(pictures)?;
                    keypoints.push(KeypointTensors {
                        value: found.value.detach(),
                        jacobian: found.jacobian.map(|j| j.detach()),
                    });
                    Ok(())
                })?;
            }
            pass(GENERATOR, &mut || {
                let source = generator.encode_source(&batch.source)?;
                generator
                    .forward(&source, &keypoints[0], &keypoints[1])
                    .map(drop)
            })?;
        }
        let mut result = values.clone();
        for (name, (sum, count)) in sums {
            result.insert(name.clone(), (sum / count)?);
        }
        Ok(result)
    }
}

fn builder(vars: &BTreeMap<String, Var>, dtype: DType, device: &Device) -> VarBuilder<'static> {
    let tensors: HashMap<String, Tensor> = vars
        .iter()
        .map(|(name, var)| (name.clone(), var.as_tensor().clone()))
        .collect();
    VarBuilder::from_tensors(tensors, dtype, device)
}

/// Whether a variable is moved by batches instead of gradients: batch norm's running statistics, spectral
/// norm's singular vectors.
pub fn is_statistic(name: &str) -> bool {
    let last = name.rsplit('.').next();
    matches!(
        last,
        Some("running_mean" | "running_var" | "weight_u" | "weight_v")
    )
}

/// Name and shape of every variable of a run.
pub fn names(config: &TrainConfig) -> BTreeMap<String, Vec<usize>> {
    let mut names = config.model.expected_tensors();
    if config.losses.adversarial() {
        let (channels, keypoints) = (config.model.num_channels, config.model.num_kp);
        let discriminator = config.discriminator.expected_tensors(channels, keypoints);
        names.extend(
            discriminator
                .into_iter()
                .map(|(name, shape)| (format!("discriminator.{name}"), shape)),
        );
    }
    names
}

/// Values to start from, as PyTorch's layers have them; jacobians start as identities.
///
/// # Errors
/// When memory is short.
pub fn initial(config: &TrainConfig, seed: u64) -> Result<BTreeMap<String, Tensor>> {
    let names = names(config);
    let last_jacobian = last_jacobian(&config.model);
    names
        .iter()
        .enumerate()
        .map(|(i, (name, shape))| {
            let mut random = Random::new(seed, &[0, i as u64]);
            let count: usize = shape.iter().product();
            let (layer, part) = name.rsplit_once('.').unwrap_or(("", name));
            let kernel = |part: &str| names.get(&format!("{layer}.{part}"));
            let kernel = kernel("weight").or_else(|| kernel("weight_orig"));
            let fan_in: usize = kernel.map_or(1, |shape| shape.iter().skip(1).product());
            let of_norm = kernel.is_some_and(|shape| shape.len() == 1);
            let values: Vec<f32> = match part {
                _ if layer == last_jacobian => {
                    let identity = [1.0, 0.0, 0.0, 1.0];
                    (0..count)
                        .map(|i| if part == "bias" { identity[i % 4] } else { 0.0 })
                        .collect()
                }
                "running_mean" => vec![0.0; count],
                "running_var" => vec![1.0; count],
                "weight" if of_norm => vec![1.0; count],
                "bias" if of_norm => vec![0.0; count],
                "weight_u" | "weight_v" => {
                    let vector: Vec<f64> = (0..count).map(|_| random.normal()).collect();
                    let length = vector.iter().map(|v| v * v).sum::<f64>().sqrt().max(1e-12);
                    vector.into_iter().map(|v| (v / length) as f32).collect()
                }
                _ => {
                    let bound = 1.0 / (fan_in.max(1) as f64).sqrt();
                    (0..count)
                        .map(|_| random.between(-bound, bound) as f32)
                        .collect()
                }
            };
            Ok((
                name.clone(),
                Tensor::from_vec(values, shape.as_slice(), &Device::Cpu)?,
            ))
        })
        .collect()
}

fn last_jacobian(model: &ModelConfig) -> &'static str {
    if model.kp.mobile {
        "kp_detector.jacobian.2"
    } else {
        "kp_detector.jacobian"
    }
}

//! The loop: batches, steps, checkpoints, and what one watches it by.
//!
//! Of several processes each takes its share of every batch ([`Trainer::loader`]), and gradients are averaged
//! over all in [`Trainer::step`], between backward and Adam. So all have the same weights, and the first of
//! them writes.

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;

use super::adam::{Adam, State};
use super::config::TrainConfig;
use super::distil::Lesson;
use super::error::Error;
use super::events::Events;
use super::grid;
use super::learner::{self, Generated, Gradients, Learner};
use super::loader::{Batch, Dataset, Loader};
use super::losses::{self, Losses};
use super::random::Random;
use super::ranks::Ranks;
use super::state::{self, Counters, Saved};
use super::transform::Transform;
use crate::checkpoint;
use crate::model::Perceptual;
use crate::model::perceptual::Kind;
#[cfg(feature = "cudnn")]
use crate::ops::card;
use crate::ops::{fused, threads};

/// So many steps without numbers in a row end a run.
const MOST_SKIPPED: usize = 100;

/// Parts of a long sum.
const PARTS: usize = 1024;

/// What deformations are drawn by.
const TRANSFORM: u64 = 3;

/// The run's checkpoint in its folder.
pub const STATE: &str = "state.safetensors";

/// The model in it, as every other command reads it.
pub const MODEL: &str = "model.safetensors";

/// How a run is started.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// A checkpoint to go on from.
    pub resume: Option<PathBuf>,
    /// Weights to start from instead of random ones.
    pub load: Option<PathBuf>,
    /// End after so many steps in all, before the epochs are over.
    pub steps: Option<u64>,
    /// A larger model to learn from.
    pub lesson: Option<Lesson>,
}

/// What the log is told.
#[derive(Clone, Debug)]
pub enum Progress<'a> {
    /// The run begins.
    Started {
        /// Clips.
        clips: usize,
        /// Steps in all.
        total: u64,
        /// Steps in an epoch.
        epoch: u64,
        /// Which perceptual network is used, if any.
        perceptual: Option<&'static str>,
        /// Parameters that learn.
        parameters: usize,
        /// Processes that train together.
        ranks: usize,
    },
    /// Some steps are done.
    Steps {
        /// The number of the last.
        step: u64,
        /// Steps in all.
        total: u64,
        /// Means of the losses since the last line.
        losses: &'a [(&'static str, f64)],
        /// Their sum.
        sum: f64,
        /// Steps a second.
        speed: f64,
        /// Steps that were skipped so far.
        skipped: u64,
    },
    /// Batch norm's statistics are measured anew for the model.
    Statistics {
        /// Pairs done.
        done: usize,
        /// Pairs in all.
        of: usize,
    },
    /// A checkpoint was written.
    Saved {
        /// Where.
        path: &'a Path,
    },
}

/// A run.
#[derive(Debug)]
pub struct Trainer {
    config: TrainConfig,
    learner: Learner,
    adam: Adam,
    average: BTreeMap<String, Tensor>,
    counters: Counters,
    dataset: Arc<Dataset>,
    device: Device,
    total: u64,
    perceptual: Option<&'static str>,
    ranks: Ranks,
}

/// What one step gave.
#[derive(Debug)]
pub struct Step {
    /// Every loss times its weight.
    pub losses: Vec<(&'static str, f64)>,
    /// Whether they and the gradients were numbers, and the weights were moved.
    pub taken: bool,
    /// What was drawn; nothing while keypoints learn landmarks alone.
    pub generated: Option<Generated>,
}

impl Trainer {
    /// Opens the clips and builds the networks.
    ///
    /// # Errors
    /// When clips, weights, checkpoint or landmarks cannot be used.
    pub fn open(config: TrainConfig, options: &Options) -> Result<Self, Error> {
        Self::open_among(config, options, &mut Ranks::default())
    }

    /// The same as one of several ranks, which are taken: each opens the same clips, weights and checkpoint.
    ///
    /// # Errors
    /// As [`Trainer::open`], or when the ranks were given different things; the others are told.
    pub fn open_among(
        config: TrainConfig,
        options: &Options,
        ranks: &mut Ranks,
    ) -> Result<Self, Error> {
        let mut trainer = Self::build(config, options, ranks);
        match &mut trainer {
            Ok(trainer) => trainer.ranks = std::mem::take(ranks),
            Err(error) => ranks.leave(Some(error)),
        }
        trainer
    }

    fn build(config: TrainConfig, options: &Options, ranks: &Ranks) -> Result<Self, Error> {
        let device = ranks.device().clone();
        // All that a training does on a card is done by this thread, one after the other.
        fused::one_stream(&device);
        #[cfg(feature = "cudnn")]
        if device.is_cuda() {
            card::keep_memory(&device)?;
        }
        if device.is_cpu() {
            threads::keep_freed_memory();
        }
        let dataset = Dataset::open(&config.data, &config.recipe, config.model.image_size)?;
        let perceptual = perceptual(&config, &device)?;
        let name = perceptual.as_ref().map(|network| network.kind().name());
        let mut values = learner::initial(&config, config.recipe.seed)?;
        if let Some(path) = &options.load {
            let weights = checkpoint::open(path)?;
            checkpoint::check(&weights, &config.model.expected_tensors())?;
            checkpoint::check_values(&weights)?;
            values.extend(weights.tensors);
        }
        let mut adam = Adam::new(config.betas);
        let (mut average, mut counters) = (BTreeMap::new(), Counters::default());
        if let Some(path) = &options.resume {
            let saved = state::load(path)?;
            fits(path, &saved.values, &config)?;
            (values, counters) = (saved.values, saved.counters);
            for (name, value) in saved.average {
                average.insert(name, value.to_device(&device)?);
            }
            for (name, state) in saved.moments {
                let state = State {
                    first: state.first.to_device(&device)?,
                    second: state.second.to_device(&device)?,
                    ..state
                };
                adam.restore(name, state);
            }
        }
        let epoch = steps(&dataset, &config, ranks);
        let whole = epoch.saturating_mul(config.epochs as u64);
        let total = options.steps.map_or(whole, |steps| steps.min(whole));
        ranks.agree(&[
            ("tensors", values.len() as f64),
            ("tensors that moved", adam.states()?.len() as f64),
            ("steps done", counters.step as f64),
            ("steps in all", total as f64),
            ("clips", dataset.clips() as f64),
            ("samples in an epoch", dataset.epoch() as f64),
        ])?;
        ranks.share(&mut values)?;
        let learner = Learner::new(&config, &values, perceptual, DType::F32, &device)?
            .taught(options.lesson.clone());
        if config.recipe.ema > 0.0 && average.is_empty() {
            average = detached(&learner);
        }
        Ok(Self {
            total,
            learner,
            adam,
            average,
            counters,
            dataset: Arc::new(dataset),
            device,
            perceptual: name,
            config,
            ranks: Ranks::default(),
        })
    }

    /// Steps in an epoch.
    pub fn epoch(&self) -> u64 {
        steps(&self.dataset, &self.config, &self.ranks)
    }

    /// How far the run is.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The networks.
    pub fn learner(&self) -> &Learner {
        &self.learner
    }

    /// The clips.
    pub fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    /// Runs to the end, or until `stop` becomes true for any rank; either way what was learnt is saved. Only
    /// the first rank tells and saves.
    ///
    /// # Errors
    /// When clips cannot be read, the disk is full, or nothing but nonsense comes out any more; the other ranks
    /// are told.
    pub fn run(&mut self, tell: impl FnMut(&Progress<'_>), stop: &AtomicBool) -> Result<(), Error> {
        let result = if self.ranks.is_first() {
            self.lead(tell, stop)
        } else {
            self.follow(stop)
        };
        self.ranks.leave(result.as_ref().err());
        result
    }

    /// Takes part in every step, and nothing else.
    fn follow(&mut self, stop: &AtomicBool) -> Result<(), Error> {
        let mut loader = self.loader()?;
        let mut skipped = 0;
        while self.goes_on(stop)? {
            self.next_step(&mut loader, &mut skipped)?;
        }
        Ok(())
    }

    fn lead(
        &mut self,
        mut tell: impl FnMut(&Progress<'_>),
        stop: &AtomicBool,
    ) -> Result<(), Error> {
        let output = self.config.output.clone();
        let grids = output.join("grids");
        fs::create_dir_all(&grids).map_err(|e| Error::write(&grids, e))?;
        let mut events = Events::create(&output).map_err(|e| Error::write(&output, e))?;
        let learning = self
            .learner
            .vars()
            .iter()
            .filter(|(name, _)| !learner::is_statistic(name));
        tell(&Progress::Started {
            clips: self.dataset.clips(),
            total: self.total,
            epoch: self.epoch(),
            perceptual: self.perceptual,
            parameters: learning.map(|(_, var)| var.elem_count()).sum(),
            ranks: self.ranks.size(),
        });
        let mut loader = self.loader()?;
        let mut window = Window::new();
        let mut skipped = 0;
        let mut saved = self.counters.step;
        while self.goes_on(stop)? {
            let (batch, step) = self.next_step(&mut loader, &mut skipped)?;
            window.add(&step);
            let number = self.counters.step;
            let last = number == self.total;
            if number.is_multiple_of(self.config.log_interval as u64) || last {
                let (losses, sum, speed) = window.take();
                let scalars = losses
                    .iter()
                    .map(|(name, value)| (format!("loss/{name}"), *value));
                let all = scalars.chain([
                    ("loss/sum".to_owned(), sum),
                    ("steps per second".to_owned(), speed),
                ]);
                let written = all
                    .map(|(tag, v)| events.scalar(&tag, number, v as f32))
                    .collect::<Result<Vec<()>, _>>();
                let written = written.and_then(|_| events.flush());
                written.map_err(|e| Error::write(events.path(), e))?;
                tell(&Progress::Steps {
                    step: number,
                    total: self.total,
                    losses: &losses,
                    sum,
                    speed,
                    skipped: self.counters.skipped,
                });
            }
            let shows =
                number == 1 || number.is_multiple_of(self.config.visual_interval as u64) || last;
            if let (Some(generated), true) = (&step.generated, shows) {
                self.show(&grids, &mut events, &batch, generated)?;
            }
            if number.is_multiple_of(self.config.save_interval as u64) {
                self.save(&output.join(STATE))?;
                saved = number;
                tell(&Progress::Saved {
                    path: &output.join(STATE),
                });
            }
        }
        drop(loader);
        if saved != self.counters.step {
            self.save(&output.join(STATE))?;
            tell(&Progress::Saved {
                path: &output.join(STATE),
            });
        }
        self.export(&output.join(MODEL), &mut tell, stop)?;
        tell(&Progress::Saved {
            path: &output.join(MODEL),
        });
        Ok(())
    }

    fn goes_on(&self, stop: &AtomicBool) -> Result<bool, Error> {
        Ok(self.counters.step < self.total && !self.ranks.any(stop.load(Ordering::Relaxed))?)
    }

    /// `skipped` counts the steps without numbers in a row.
    fn next_step(
        &mut self,
        loader: &mut Loader,
        skipped: &mut usize,
    ) -> Result<(Batch, Step), Error> {
        let samples = loader.next(self.config.data.batch_size)?;
        let batch = self.dataset.batch(&samples, &self.device)?;
        let step = self.step(&batch)?;
        *skipped = if step.taken { 0 } else { *skipped + 1 };
        if *skipped == MOST_SKIPPED {
            return Err(Error::Diverged { steps: *skipped });
        }
        Ok((batch, step))
    }

    /// Samples from where the run is: of every batch of all ranks the part of this one.
    ///
    /// # Errors
    /// When the system gives no threads.
    pub fn loader(&self) -> Result<Loader, Error> {
        let batch = self.config.data.batch_size;
        let (first, part) = (self.counters.step, batch as u64);
        let (rank, ranks) = (self.ranks.rank() as u64, self.ranks.size() as u64);
        Loader::start(&self.dataset, 3 * batch, move |place| {
            ((first + place / part) * ranks + rank) * part + place % part
        })
    }

    /// One step: losses, gradients, Adam. Losses and gradients are the means of all ranks.
    ///
    /// A step whose losses or gradients are no numbers changes nothing and is counted.
    ///
    /// # Errors
    /// When the device fails.
    pub fn step(&mut self, batch: &Batch) -> Result<Step, Error> {
        let number = self.counters.step;
        let statistics = self.statistics()?;
        let synchronised = self.config.recipe.sync_batch_norm;
        let _synchronised = synchronised.then(|| self.ranks.synchronise());
        let pointing = number < self.config.recipe.landmark_steps as u64;
        let (losses, generated, mut gradients) = if pointing {
            let losses = self.learner.point(batch)?;
            let sum = losses::sum(&values(&losses))?;
            let gradients = self
                .learner
                .gradients(&sum, |name| name.starts_with("kp_detector."))?;
            (losses, None, gradients)
        } else {
            let mut random = Random::new(self.config.recipe.seed, &[TRANSFORM, number]);
            let pairs = batch.source.dim(0)?;
            let transform = Transform::random(
                &self.config.transform,
                pairs * self.ranks.size(),
                &mut random,
                DType::F32,
                &self.device,
            )?
            .of(pairs * self.ranks.rank(), pairs)?;
            let deformed = transform.frame(&batch.driving)?;
            let (mut losses, generated) = self.learner.generate(batch, &transform, &deformed)?;
            let sum = losses::sum(&values(&losses))?;
            let mut gradients = self
                .learner
                .gradients(&sum, |name| !name.starts_with("discriminator."))?;
            if let Some(loss) = self.learner.discriminate(batch, &generated)? {
                gradients.extend(
                    self.learner
                        .gradients(&loss, |name| name.starts_with("discriminator."))?,
                );
                losses.push(("disc_gan", loss));
            }
            (losses, Some(generated.detach()), gradients)
        };
        let mut losses: Vec<(&'static str, f64)> = losses
            .iter()
            .map(|(name, loss)| Ok((*name, loss.to_dtype(DType::F64)?.to_scalar::<f64>()?)))
            .collect::<candle_core::Result<_>>()?;
        self.ranks.average(&mut gradients)?;
        self.ranks.mean(losses.iter_mut().map(|(_, loss)| loss))?;
        let length = shorten(&mut gradients, self.config.recipe.gradient_clip)?;
        let taken = length.is_finite() && losses.iter().all(|(_, loss)| loss.is_finite());
        self.counters.step += 1;
        if taken {
            self.apply(&gradients)?;
        } else {
            self.counters.skipped += 1;
            // The batch has gone into the running statistics.
            for (name, value) in statistics {
                if let Some(var) = self.learner.vars().get(&name) {
                    var.set(&value)?;
                }
            }
        }
        Ok(Step {
            losses,
            taken,
            generated,
        })
    }

    fn apply(&mut self, gradients: &Gradients) -> Result<(), Error> {
        let factor = self
            .config
            .rate_factor(self.counters.step - 1, self.epoch(), self.total);
        let mut changes = [const { Vec::new() }; 3];
        for (name, gradient) in gradients {
            let [detector, generator, discriminator] = &mut changes;
            let part = match name.split('.').next() {
                Some("kp_detector") => detector,
                Some("discriminator") => discriminator,
                _ => generator,
            };
            if let Some(var) = self.learner.vars().get(name) {
                part.push((name.as_str(), var, gradient));
            }
        }
        for (changes, rate) in changes.iter().zip(self.config.rates) {
            self.adam.update_all(changes, rate * factor)?;
        }
        let keep = self.config.recipe.ema;
        for (name, average) in &mut self.average {
            if let Some(var) = self.learner.vars().get(name) {
                let value = var.as_detached_tensor();
                *average = ((&*average * keep)? + (value * (1.0 - keep))?)?;
            }
        }
        Ok(())
    }

    /// Copies of what batches move.
    fn statistics(&self) -> Result<Vec<(String, Tensor)>, Error> {
        let vars = self
            .learner
            .vars()
            .iter()
            .filter(|(name, _)| learner::is_statistic(name));
        let copies = vars.map(|(name, var)| Ok((name.clone(), var.as_detached_tensor().copy()?)));
        Ok(copies.collect::<candle_core::Result<_>>()?)
    }

    /// Writes a checkpoint to go on from.
    ///
    /// # Errors
    /// When the disk is full; the file that was there stays.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let moments = self.adam.states()?;
        let saved = Saved {
            values: detached(&self.learner),
            average: self.average.clone(),
            counters: Counters {
                updates: moments
                    .iter()
                    .map(|(name, state)| (name.clone(), state.steps))
                    .collect(),
                ..self.counters.clone()
            },
            moments,
        };
        state::save(path, &saved, &self.config.model.to_json())
    }

    /// Writes the model that other commands take: the average of the weights if one is kept, batch norm's
    /// statistics measured anew where the recipe says so, unless `stop` is asked for meanwhile.
    fn export(
        &self,
        path: &Path,
        tell: &mut impl FnMut(&Progress<'_>),
        stop: &AtomicBool,
    ) -> Result<(), Error> {
        let mut values = detached(&self.learner);
        values.extend(self.average.clone());
        values.retain(|name, _| !name.starts_with("discriminator."));
        let of = self.config.recipe.statistics;
        // A run that was stopped has statistics too; who stops this does without.
        let stopped = stop.load(Ordering::Relaxed);
        let goes_on = || stop.load(Ordering::Relaxed) == stopped;
        if of > 0 {
            let size = self.config.data.batch_size;
            // Samples of another order than those it learnt from.
            let mut loader = Loader::start(&self.dataset, size, |place| u64::MAX / 2 + place)?;
            let count = of.div_ceil(size);
            let batches = (0..count).take_while(|_| goes_on()).map(|number| {
                if number.is_multiple_of(count.div_ceil(10)) {
                    let done = number * size;
                    tell(&Progress::Statistics { done, of });
                }
                self.dataset.batch(&loader.next(size)?, &self.device)
            });
            let measured = self.learner.measured(&values, batches)?;
            if goes_on() {
                values = measured;
            }
        }
        let name = self
            .config
            .output
            .file_name()
            .unwrap_or_default()
            .to_string_lossy();
        checkpoint::save_lean(path, &values, &self.config.model.to_json(), &name, true)?;
        Ok(())
    }

    fn show(
        &self,
        folder: &Path,
        events: &mut Events,
        batch: &Batch,
        generated: &Generated,
    ) -> Result<(), Error> {
        let number = self.counters.step;
        let sheet = grid::draw(&self.learner.networks().generator, batch, generated)?;
        let path = folder.join(format!("step-{number:07}.png"));
        let mut png = Cursor::new(Vec::new());
        sheet
            .write_to(&mut png, image::ImageFormat::Png)
            .map_err(|e| Error::write(&path, std::io::Error::other(e)))?;
        let png = png.into_inner();
        fs::write(&path, &png).map_err(|e| Error::write(&path, e))?;
        let event = events.picture("grid", number, sheet.dimensions(), &png);
        event.map_err(|e| Error::write(events.path(), e))
    }
}

/// Steps in an epoch.
fn steps(dataset: &Dataset, config: &TrainConfig, ranks: &Ranks) -> u64 {
    let batch = config.data.batch_size * ranks.size();
    (dataset.epoch() / batch).max(1) as u64
}

/// Values of named losses.
fn values(losses: &Losses) -> Vec<Tensor> {
    losses.iter().map(|(_, loss)| loss.clone()).collect()
}

fn detached(learner: &Learner) -> BTreeMap<String, Tensor> {
    let vars = learner.vars().iter();
    vars.map(|(name, var)| (name.clone(), var.as_detached_tensor()))
        .collect()
}

/// The perceptual network that the configuration names, the embedded face detector when it names none.
fn perceptual(config: &TrainConfig, device: &Device) -> Result<Option<Perceptual>, Error> {
    if config.losses.perceptual.iter().all(|w| *w == 0.0) {
        return Ok(None);
    }
    let (kind, weights) = match &config.recipe.perceptual_network {
        None => (Kind::MimicFace, checkpoint::embedded_face_detector()?),
        Some(path) => {
            let weights = checkpoint::open(path)?;
            let holds = |kind: &Kind| {
                kind.expected_tensors()
                    .keys()
                    .all(|name| weights.tensors.contains_key(name))
            };
            let kind = [Kind::Vgg19, Kind::SqueezeNet].into_iter().find(holds).ok_or_else(|| {
                Error::data(path, "these are neither the weights of VGG19 nor of SqueezeNet 1.1 (as torchvision names them)")
            })?;
            (kind, weights)
        }
    };
    let vb = VarBuilder::from_tensors(weights.tensors.into_iter().collect(), DType::F32, device);
    Ok(Some(Perceptual::new(kind, &vb)?))
}

/// Whether a checkpoint is of these networks.
fn fits(path: &Path, values: &BTreeMap<String, Tensor>, config: &TrainConfig) -> Result<(), Error> {
    let names = learner::names(config);
    let wrong = |(name, shape): &(&String, &Vec<usize>)| {
        values
            .get(*name)
            .is_none_or(|value| value.dims() != shape.as_slice())
    };
    let missing = names.iter().find(wrong);
    let extra = values.keys().find(|name| !names.contains_key(*name));
    let what = match (missing, extra) {
        (Some((name, shape)), _) => {
            format!("{name} is to be {shape:?}, but it is missing or of another shape")
        }
        (_, Some(name)) => format!("it has {name}, which these networks have not"),
        _ => return Ok(()),
    };
    Err(Error::data(
        path,
        format!(
            "this checkpoint is of another architecture than the training file ({what}): resume with the file it was made with"
        ),
    ))
}

/// The length of all gradients together; makes it `limit` where it is longer and a limit is set.
fn shorten(gradients: &mut Gradients, limit: f64) -> candle_core::Result<f64> {
    let length = length(gradients)?;
    if limit > 0.0 && length > limit && length.is_finite() {
        for gradient in gradients.values_mut() {
            *gradient = (&*gradient * (limit / (length + 1e-6)))?;
        }
    }
    Ok(length)
}

/// The length of all gradients together.
fn length(gradients: &Gradients) -> candle_core::Result<f64> {
    let number = |sum: Tensor| sum.to_dtype(DType::F64)?.to_scalar::<f64>();
    if gradients
        .values()
        .all(|gradient| gradient.device().is_cuda())
        && !gradients.is_empty()
    {
        // Asked once, after the sums of a thousand parts: one block of threads would take long over all.
        let parts = gradients.values().map(Tensor::flatten_all);
        let squares = Tensor::cat(&parts.collect::<candle_core::Result<Vec<_>>>()?, 0)?.sqr()?;
        let missing = squares.elem_count().next_multiple_of(PARTS) - squares.elem_count();
        let parts = squares
            .pad_with_zeros(0, 0, missing)?
            .reshape((PARTS, ()))?;
        return Ok(number(parts.sum(1)?.sum_all()?)?.sqrt());
    }
    let mut squares = 0.0;
    for gradient in gradients.values() {
        squares += number(gradient.sqr()?.sum_all()?)?;
    }
    Ok(squares.sqrt())
}

/// Losses since the last line of the log.
struct Window {
    sums: Vec<(&'static str, f64)>,
    steps: usize,
    all: usize,
    since: Instant,
}

impl Window {
    fn new() -> Self {
        Self {
            sums: Vec::new(),
            steps: 0,
            all: 0,
            since: Instant::now(),
        }
    }

    fn add(&mut self, step: &Step) {
        self.all += 1;
        if !step.taken {
            return;
        }
        self.steps += 1;
        for (name, loss) in &step.losses {
            match self.sums.iter_mut().find(|(known, _)| known == name) {
                Some((_, sum)) => *sum += loss,
                None => self.sums.push((name, *loss)),
            }
        }
    }

    /// Means, the sum of those of the generator's side, and steps a second; starts anew.
    fn take(&mut self) -> (Vec<(&'static str, f64)>, f64, f64) {
        let count = self.steps.max(1) as f64;
        let means: Vec<(&'static str, f64)> = self
            .sums
            .iter()
            .map(|(name, sum)| (*name, sum / count))
            .collect();
        let sum = means
            .iter()
            .filter(|(name, _)| *name != "disc_gan")
            .map(|(_, mean)| mean)
            .sum();
        let seconds = self
            .since
            .elapsed()
            .max(Duration::from_micros(1))
            .as_secs_f64();
        let speed = self.all as f64 / seconds;
        *self = Self::new();
        (means, sum, speed)
    }
}

//! A small model that does what a large one does: the mobile recipe of PaddleGAN in one go.
//!
//! Keypoint detector, then generator, then both learn from the teacher, each beside the part of the teacher
//! that they will replace; then channels are pruned and what is left learns once more. Every stage is a
//! training of its own in its own folder, with checkpoints and pictures, and every one is measured. A student of
//! the teacher's own shape begins as the teacher, and only learns to do with fewer channels.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::config::TrainConfig;
use super::data::{self, Split};
use super::distil::{Lesson, Stage, as_teacher};
use super::error::Error;
use super::evaluate;
use super::prune;
use super::ranks::Ranks;
use super::state;
use super::trainer::{self, MODEL, Options, STATE, Trainer};
use crate::animate::Engine;
use crate::checkpoint;
use crate::device::Card;
use crate::model::{ModelConfig, Networks, packed};
use crate::ops::threads::Workers;

/// What is known of a compression in its folder.
const RECORD: &str = "compression.json";

/// The reference's own: its sizes are of f32, as it publishes them.
const PUBLISHED: [(&str, f64, f64); 2] = [
    ("PaddleGAN, published: original", 229.0, 0.0418),
    ("PaddleGAN, published: compressed", 10.1, 0.0479),
];

/// A model to learn from.
#[derive(Clone, Debug)]
pub struct Teacher {
    /// What to call it.
    pub name: String,
    /// Its shape.
    pub config: ModelConfig,
    /// Its tensors, checked.
    pub tensors: BTreeMap<String, Tensor>,
}

/// What happens.
#[derive(Clone, Debug)]
pub enum Progress<'a> {
    /// A stage begins, or goes on where it was.
    Stage {
        /// Its folder.
        name: &'a str,
        /// Its steps.
        steps: u64,
    },
    /// A stage was done before.
    Done {
        /// Its folder.
        name: &'a str,
    },
    /// Inside a stage.
    Training(&'a trainer::Progress<'a>),
    /// A model is measured by a clip.
    Measuring {
        /// Which model.
        name: &'a str,
        /// Clips done.
        done: usize,
        /// Clips in all.
        of: usize,
    },
    /// Channels were pruned.
    Pruned {
        /// Parameters before.
        from: usize,
        /// Parameters after.
        to: usize,
    },
}

/// A line of the table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Which model.
    pub name: String,
    /// Size of its file in f16, in MB.
    pub megabytes: f64,
    /// Time of one frame on this machine's CPU.
    pub milliseconds: f64,
    /// Mean absolute difference, of 0..1, on the test clips.
    pub l1: f64,
}

/// What is remembered between two calls.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Record {
    /// Name and size of the teacher.
    teacher: (String, usize),
    /// The student's configuration.
    #[serde(default)]
    student: String,
    rows: Vec<Row>,
}

/// A compression, ready to run or to go on.
#[derive(Debug)]
pub struct Compression {
    teacher: Teacher,
    config: TrainConfig,
    networks: Networks,
    device: Device,
    threads: usize,
    record: Record,
}

/// The stages in their order, each with its folder.
const STAGES: [(Stage, &str); 4] = [
    (Stage::Keypoints, "1-keypoints"),
    (Stage::Generator, "2-generator"),
    (Stage::Both, "3-both"),
    (Stage::FineTune, "4-fine-tune"),
];

impl Compression {
    /// Compares teacher, student (the model of `config`) and what an earlier call left in the output folder. It learns on
    /// the card, or the CPU, and is measured on the CPU with so many threads.
    ///
    /// # Errors
    /// When the student cannot learn from this teacher, the folder is another compression's, or there is no
    /// clip to measure by.
    pub fn open(
        teacher: Teacher,
        config: TrainConfig,
        card: Option<Card>,
        threads: usize,
    ) -> Result<Self, Error> {
        let (large, small) = (&teacher.config, &config.model);
        let complain = |what: String| {
            Err(Error::Teacher {
                name: teacher.name.clone(),
                what,
            })
        };
        if large.num_kp != small.num_kp {
            return complain(format!(
                "it has {} keypoints and the student {}: give -o model.common_params.num_kp={}",
                large.num_kp, small.num_kp, large.num_kp
            ));
        }
        if large.estimate_jacobian != small.estimate_jacobian {
            return complain(format!(
                "only one of teacher and student has jacobians: give -o model.common_params.estimate_jacobian={}",
                large.estimate_jacobian
            ));
        }
        let taught = as_teacher(large, small);
        taught.check()?;
        // Before hours of training.
        data::find(&config.data, Split::Test)?;
        let device = card.map_or(Device::Cpu, |card| card.device);
        let networks = Networks::new(&taught, &teacher.tensors, &device)?;
        let size = parameters(&teacher.tensors);
        let mut record = Record {
            teacher: (teacher.name.clone(), size),
            student: small.to_json(),
            rows: Vec::new(),
        };
        let path = config.output.join(RECORD);
        if path.exists() {
            let text = fs::read_to_string(&path).map_err(|e| Error::read(&path, e))?;
            let before: Record = serde_json::from_str(&text)
                .map_err(|e| Error::data(&path, format!("it is damaged ({e}): delete it")))?;
            if (&before.teacher, &before.student) != (&record.teacher, &record.student) {
                let name = match before.teacher == record.teacher {
                    true => "it to another student",
                    false => &before.teacher.0,
                };
                return complain(format!(
                    "{} holds a compression of {name}: give another folder with --output",
                    config.output.display()
                ));
            }
            record = before;
        }
        Ok(Self {
            teacher,
            config,
            networks,
            device,
            threads,
            record,
        })
    }

    /// Runs to the end, or until `stop` becomes true; the same call goes on. Gives the table, and whether
    /// everything is done.
    ///
    /// # Errors
    /// As [`Trainer::run`] and [`evaluate::run`].
    pub fn run(
        &mut self,
        mut tell: impl FnMut(&Progress<'_>),
        stop: &AtomicBool,
    ) -> Result<(Vec<Row>, bool), Error> {
        let output = self.config.output.clone();
        fs::create_dir_all(&output).map_err(|e| Error::write(&output, e))?;
        let mut done = true;
        let teacher = ModelConfig {
            image_size: self.config.model.image_size,
            ..self.teacher.config.clone()
        };
        let tensors = self.teacher.tensors.clone();
        done &= self.measure("teacher", &teacher, &tensors, &mut tell, stop)?;

        let mut before: Option<PathBuf> = None;
        let mut student = self.config.model.clone();
        let own = student == as_teacher(&self.teacher.config, &student);
        if own && done {
            let path = output.join("teacher.safetensors");
            checkpoint::save_lean(&path, &tensors, &student.to_json(), "teacher", false)?;
            before = Some(path);
        }
        for ((stage, folder), steps) in STAGES.into_iter().zip(self.config.recipe.compress.steps) {
            if !done || (stage == Stage::FineTune && self.config.recipe.compress.prune == 0.0) {
                break;
            }
            if own && matches!(stage, Stage::Keypoints | Stage::Generator) {
                continue;
            }
            let place = output.join(folder);
            if stage == Stage::FineTune
                && let Some(model) = &before
            {
                let start = self.pruned(model, &student, &mut tell)?;
                student = start.config;
                done &= self.measure("pruned", &student, &start.tensors, &mut tell, stop)?;
                let path = output.join("pruned.safetensors");
                checkpoint::save_lean(&path, &start.tensors, &student.to_json(), "pruned", false)?;
                before = Some(path);
                if !done {
                    break;
                }
            }
            done &= self.stage(
                stage,
                folder,
                steps,
                &student,
                before.as_deref(),
                &mut tell,
                stop,
            )?;
            let model = place.join(MODEL);
            if done {
                let (name, config, tensors) = self.as_used(stage, &model, &student)?;
                done &= self.measure(name, &config, &tensors, &mut tell, stop)?;
            }
            before = Some(model);
        }
        if let (true, Some(model)) = (done, before) {
            let name = output.file_name().unwrap_or_default().to_string_lossy();
            let tensors = checkpoint::open(&model)?.tensors;
            let path = output.join(MODEL);
            checkpoint::save_lean(&path, &tensors, &student.to_json(), &name, true)?;
            data::write_text(&output.join("compression.md"), &markdown(&self.record.rows))?;
        }
        Ok((self.record.rows.clone(), done))
    }

    /// One training; whether it came to its end.
    #[allow(
        clippy::too_many_arguments,
        reason = "a stage is all of this and called once"
    )]
    fn stage(
        &self,
        stage: Stage,
        folder: &str,
        steps: u64,
        student: &ModelConfig,
        before: Option<&Path>,
        tell: &mut impl FnMut(&Progress<'_>),
        stop: &AtomicBool,
    ) -> Result<bool, Error> {
        let place = self.config.output.join(folder);
        let state = place.join(STATE);
        let so_far = match state.exists() {
            true => state::load(&state)?.counters.step,
            false => 0,
        };
        if so_far >= steps && place.join(MODEL).exists() {
            tell(&Progress::Done { name: folder });
            return Ok(true);
        }
        let mut config = self.config.clone();
        config.model = student.clone();
        config.output = place;
        // Steps say when it ends.
        config.epochs = 10_000_000;
        config.recipe.seed = config.recipe.seed.wrapping_add(stage as u64);
        if stage != Stage::Keypoints {
            config.recipe.landmark_steps = 0;
        }
        let resume = state.exists().then_some(state);
        let options = Options {
            load: before.filter(|_| resume.is_none()).map(Path::to_owned),
            resume,
            steps: Some(steps),
            lesson: Some(Lesson {
                stage,
                teacher: self.networks.clone(),
                weights: self.config.recipe.compress.clone(),
                scales: prune::scales(student),
            }),
        };
        tell(&Progress::Stage {
            name: folder,
            steps,
        });
        let mut alone = Ranks::default().on(self.device.clone());
        let mut trainer = Trainer::open_among(config, &options, &mut alone)?;
        trainer.run(|progress| tell(&Progress::Training(progress)), stop)?;
        Ok(trainer.counters().step >= steps)
    }

    /// What a stage's model is worth: with the teacher's part where the student's has not learnt yet.
    fn as_used(
        &self,
        stage: Stage,
        model: &Path,
        student: &ModelConfig,
    ) -> Result<(&'static str, ModelConfig, BTreeMap<String, Tensor>), Error> {
        let mut tensors = checkpoint::open(model)?.tensors;
        let teacher = &self.teacher;
        let mut borrow = |prefix: &str| {
            tensors.retain(|name, _| !name.starts_with(prefix));
            let theirs = teacher.tensors.iter();
            let theirs = theirs.filter(|(name, _)| name.starts_with(prefix));
            tensors.extend(theirs.map(|(name, tensor)| (name.clone(), tensor.clone())));
        };
        Ok(match stage {
            Stage::Keypoints => {
                borrow("generator.");
                let config = ModelConfig {
                    generator: teacher.config.generator.clone(),
                    border: teacher.config.border,
                    ..student.clone()
                };
                ("student's keypoints, teacher's generator", config, tensors)
            }
            Stage::Generator => {
                borrow("kp_detector.");
                let config = ModelConfig {
                    kp: teacher.config.kp.clone(),
                    ..student.clone()
                };
                ("teacher's keypoints, student's generator", config, tensors)
            }
            Stage::Both => ("student", student.clone(), tensors),
            Stage::FineTune => ("student, pruned and fine-tuned", student.clone(), tensors),
        })
    }

    fn pruned(
        &self,
        model: &Path,
        student: &ModelConfig,
        tell: &mut impl FnMut(&Progress<'_>),
    ) -> Result<prune::Pruned, Error> {
        let tensors = checkpoint::open(model)?
            .tensors
            .into_iter()
            .map(|(name, tensor)| Ok((name, tensor.to_dtype(DType::F32)?)))
            .collect::<candle_core::Result<BTreeMap<_, _>>>()?;
        let pruned = prune::prune(student, &tensors, self.config.recipe.compress.prune)?;
        tell(&Progress::Pruned {
            from: parameters(&tensors),
            to: parameters(&pruned.tensors),
        });
        Ok(pruned)
    }

    /// Adds a model to the table, if it is not in it yet; false when it was stopped.
    fn measure(
        &mut self,
        name: &str,
        config: &ModelConfig,
        tensors: &BTreeMap<String, Tensor>,
        tell: &mut impl FnMut(&Progress<'_>),
        stop: &AtomicBool,
    ) -> Result<bool, Error> {
        if self.record.rows.iter().any(|row| row.name == name) {
            return Ok(true);
        }
        let workers =
            Workers::new(self.threads).map_err(|e| Error::Threads(io::Error::other(e)))?;
        let engine = Engine::on_cpu(packed::Engine::new(config, tensors, workers)?);
        let slug: String = name
            .chars()
            .map(|c| if c.is_alphanumeric() { c } else { '-' })
            .collect();
        let job = evaluate::Job {
            data: self.config.data.root.clone(),
            kept_back: Some(self.config.data.clone()),
            output: self.config.output.join("evaluation").join(&slug),
            frames: Some(self.config.recipe.compress.frames.max(1)),
            lpips: None,
            landmarks: None,
            identity: None,
        };
        let models = std::iter::once(Ok::<_, Error>((slug, engine)));
        let tell = |_: &str, _: &str, done, of| tell(&Progress::Measuring { name, done, of });
        let report = match evaluate::run(&job, models, tell, stop) {
            Err(_) if stop.load(Ordering::Relaxed) => return Ok(false),
            report => report?,
        };
        let scores = report.models.first().map(|model| model.scores);
        let scores = scores.unwrap_or_default();
        self.record.rows.push(Row {
            name: name.to_owned(),
            megabytes: 2.0 * parameters(tensors) as f64 / 1e6,
            milliseconds: scores.milliseconds,
            l1: scores.l1,
        });
        // Names and numbers: nothing in it can fail to be written.
        let json = serde_json::to_string_pretty(&self.record).unwrap_or_default();
        data::write_text(&self.config.output.join(RECORD), &json)?;
        Ok(true)
    }
}

/// Numbers in tensors.
fn parameters(tensors: &BTreeMap<String, Tensor>) -> usize {
    tensors.values().map(Tensor::elem_count).sum()
}

/// The table for people.
pub fn markdown(rows: &[Row]) -> String {
    let mut text = "| model | MB | ms per frame | L1 |\n|---|---|---|---|\n".to_owned();
    // Writing to a string cannot fail.
    for row in rows {
        let _ = writeln!(
            text,
            "| {} | {:.1} | {:.1} | {:.4} |",
            row.name, row.megabytes, row.milliseconds, row.l1
        );
    }
    for (name, megabytes, l1) in PUBLISHED {
        let _ = writeln!(text, "| {name} | {megabytes} | | {l1} |");
    }
    text.push_str(
        "\nMB of weights in f16 (PaddleGAN's are f32). L1 of reconstruction in 0..1 on the test clips of this training; \
         PaddleGAN's is of another test set.\n",
    );
    text
}

//! Measuring models by reconstruction (paper, section 4.1): the first frame of a clip is the source, every frame
//! drives, and what is drawn is compared with the frame that drove.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use image::{RgbaImage, imageops};
use serde::Serialize;

use super::config::DataConfig;
use super::data::{self, Clip, Clips, Split};
use super::error::Error;
use super::metrics::{self, Lpips, Planes};
use super::onnx::{self, IdentityNetwork, LandmarkNetwork};
use crate::animate::{Animator, Engine, MotionOptions};
use crate::media::clip::STILLS_RATE;
use crate::media::sink::{self, WriteOptions};

/// How many clips the video of the worst shows.
const WORST: usize = 5;

/// What to measure by.
#[derive(Debug)]
pub struct Job {
    /// A folder with `test/`, or of clips, in any layout that training reads.
    pub data: PathBuf,
    /// Measures by the clips that a training with this section keeps back instead.
    pub kept_back: Option<DataConfig>,
    /// The folder for the report and the videos.
    pub output: PathBuf,
    /// Of longer clips only the first so many frames.
    pub frames: Option<usize>,
    /// Measures LPIPS too.
    pub lpips: Option<Lpips>,
    /// Measures AKD too.
    pub landmarks: Option<LandmarkNetwork>,
    /// Measures AED too.
    pub identity: Option<IdentityNetwork>,
}

/// How good pictures are; means over frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Scores {
    /// Frames measured.
    pub frames: usize,
    /// Mean absolute difference, of 0..1.
    pub l1: f64,
    /// Peak signal-to-noise ratio in decibels.
    pub psnr: f64,
    /// Structural similarity, 1 at most.
    pub ssim: f64,
    /// LPIPS on SqueezeNet, if it was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lpips: Option<f64>,
    /// Average keypoint distance: mean difference of landmarks along x and y in pixels of the model's picture, if
    /// it was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub akd: Option<f64>,
    /// Average Euclidean distance of identities, 0 to 2, if it was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aed: Option<f64>,
    /// How much more, or less, changes from frame to frame than in the clip: mean absolute difference, of 0..1.
    pub jitter: f64,
    /// Time of keypoints and generator for a frame.
    pub milliseconds: f64,
}

/// What one model reached.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// Its name.
    pub model: String,
    /// Side of its pictures.
    pub size: u32,
    /// Over all frames of all clips.
    pub scores: Scores,
    /// Clip by clip.
    pub clips: BTreeMap<String, Scores>,
    /// The clips of the video, the worst first.
    pub worst: Vec<String>,
}

/// Everything that was found out.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// How it was measured.
    pub protocol: String,
    /// The models, as they were given.
    pub models: Vec<Measured>,
    /// What in the folder was not measured, and why.
    pub left_out: BTreeMap<String, String>,
}

/// Measures models, one after the other, and writes `evaluation.json`, `evaluation.md` and for each model a
/// video of its worst clips: source, driving frame, result. `tell` hears the model, the clip, how many clips
/// are done and of how many.
///
/// # Errors
/// When the folder holds no clip that can be read, a model cannot be loaded or results cannot be written.
pub fn run<E: From<Error>>(
    job: &Job,
    models: impl Iterator<Item = Result<(String, Engine), E>>,
    mut tell: impl FnMut(&str, &str, usize, usize),
    stop: &AtomicBool,
) -> Result<Report, E> {
    let Clips { clips, left_out } = match &job.kept_back {
        Some(config) => data::find(config, Split::Test)?,
        None => clips(&job.data)?,
    };
    fs::create_dir_all(&job.output).map_err(|e| Error::write(&job.output, e))?;
    let name = |path: &Path| {
        path.file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    let mut report = Report {
        protocol: protocol(job),
        models: Vec::new(),
        left_out: left_out
            .iter()
            .map(|(path, why)| (name(path), why.clone()))
            .collect(),
    };
    for model in models {
        let (model, engine) = model?;
        let absolute = MotionOptions {
            relative: false,
            adapt_scale: false,
            ..MotionOptions::default()
        };
        let mut animator = Animator::new(engine, absolute);
        let mut scores: Vec<(&Clip, Sums)> = Vec::new();
        for (i, clip) in clips.iter().enumerate() {
            tell(&model, &clip.name, i, clips.len());
            match measure(job, &mut animator, clip, stop) {
                Ok(sums) => scores.push((clip, sums)),
                Err(Error::Media(error)) => {
                    report.left_out.insert(name(&clip.path), error.to_string());
                }
                Err(error) => return Err(error.into()),
            }
            if stop.load(Ordering::Relaxed) {
                let what = "stopped before every clip was measured; there is no report";
                return Err(Error::data(&job.data, what).into());
            }
        }
        let whole = scores
            .iter()
            .fold(Sums::default(), |all, (_, one)| all.plus(one));
        if whole.frames == 0 {
            return Err(Error::data(&job.data, "not one of its clips can be read").into());
        }
        scores.sort_by(|(_, a), (_, b)| b.mean().l1.total_cmp(&a.mean().l1));
        let worst: Vec<&Clip> = scores.iter().take(WORST).map(|(clip, _)| *clip).collect();
        show(
            job,
            &mut animator,
            &worst,
            &job.output.join(format!("worst-{model}.mp4")),
        )?;
        report.models.push(Measured {
            size: animator.size(),
            scores: whole.mean(),
            clips: scores
                .iter()
                .map(|(clip, sums)| (clip.name.clone(), sums.mean()))
                .collect(),
            worst: worst.iter().map(|clip| clip.name.clone()).collect(),
            model,
        });
    }
    // Numbers and names: nothing in it can fail to be written.
    let json = serde_json::to_string_pretty(&report).unwrap_or_default();
    data::write_text(&job.output.join("evaluation.json"), &json)?;
    data::write_text(&job.output.join("evaluation.md"), &markdown(&report))?;
    Ok(report)
}

/// The clips of `test/`, or of a folder without it.
fn clips(root: &Path) -> Result<Clips, Error> {
    let test = root.join("test");
    let folder = if test.is_dir() { &test } else { root };
    if !folder.is_dir() {
        return Err(Error::data(root, "there is no such folder"));
    }
    if folder == root && root.join("train").is_dir() {
        let what = "it has train/ but no test/: measuring by what a model has learnt says little; to do so all the same give the folder train/ itself";
        return Err(Error::data(root, what));
    }
    let found = data::list(folder)?;
    if found.clips.is_empty() {
        let what = "there is no clip to measure by: put videos, GIFs or folders of frames into it";
        return Err(Error::data(folder, what));
    }
    Ok(found)
}

fn protocol(job: &Job) -> String {
    let frames = match job.frames {
        Some(n) => format!("the first {n} frames of each clip drive"),
        None => "every frame of each clip drives".to_owned(),
    };
    let say = |measured: bool, what: &'static str| if measured { what } else { "" };
    let lpips = say(job.lpips.is_some(), " LPIPS 0.1 on SqueezeNet 1.1.");
    let akd = say(
        job.landmarks.is_some(),
        " AKD: mean absolute difference of landmarks along x and y, in pixels of the model's picture.",
    );
    let aed = say(
        job.identity.is_some(),
        " AED: Euclidean distance of identity vectors of length 1.",
    );
    format!(
        "Reconstruction: the first frame of a clip is the source, {frames}, with absolute motion, and each result is compared with \
         the frame that drove it, both at the model's size, from the square in the middle. Means over all frames. L1 in 0..1 over RGB; PSNR in dB; SSIM with a \
         Gaussian window of 11 pixels; jitter: mean absolute difference between the change from frame to frame in the result and in the clip.{lpips}{akd}{aed} \
         Time is that of keypoints and generator of one frame, on the CPU."
    )
}

/// Sums over frames.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    frames: usize,
    /// Frames that have one before them.
    changes: usize,
    sums: [f64; 6],
    lpips: bool,
    /// Of the frames for which there are such numbers.
    akd: Mean,
    aed: Mean,
}

/// A sum and how many numbers are in it.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    sum: f64,
    count: usize,
}

impl Mean {
    fn add(&mut self, number: Option<f64>) {
        if let Some(number) = number {
            self.sum += number;
            self.count += 1;
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            sum: self.sum + other.sum,
            count: self.count + other.count,
        }
    }

    fn value(self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }
}

impl Sums {
    fn plus(self, other: &Self) -> Self {
        Self {
            frames: self.frames + other.frames,
            changes: self.changes + other.changes,
            sums: std::array::from_fn(|i| self.sums[i] + other.sums[i]),
            lpips: self.lpips || other.lpips,
            akd: self.akd.plus(other.akd),
            aed: self.aed.plus(other.aed),
        }
    }

    fn mean(&self) -> Scores {
        let of = |i: usize, count: usize| self.sums[i] / count.max(1) as f64;
        Scores {
            frames: self.frames,
            l1: of(0, self.frames),
            psnr: of(1, self.frames),
            ssim: of(2, self.frames),
            lpips: self.lpips.then(|| of(3, self.frames)),
            akd: self.akd.value(),
            aed: self.aed.value(),
            milliseconds: of(4, self.frames),
            jitter: of(5, self.changes),
        }
    }
}

/// Animates a clip by itself; gives each result to `see`, with the frame that drove it and the milliseconds
/// that it took.
fn reconstruct(
    job: &Job,
    animator: &mut Animator,
    clip: &Clip,
    mut see: impl FnMut(&RgbaImage, &[u8], f64) -> Result<ControlFlow<()>, Error>,
) -> Result<(), Error> {
    let mut number = 0;
    data::each_frame(clip, animator.size(), |frame| {
        if number == 0 {
            animator.set_photo(std::slice::from_ref(frame));
        }
        let started = Instant::now();
        let keypoints = animator.keypoints(frame);
        let predictions = animator.animate(&keypoints);
        let milliseconds = 1e3 * started.elapsed().as_secs_f64();
        number += 1;
        if let Some(prediction) = predictions.first()
            && see(frame, &prediction.rgba, milliseconds)?.is_break()
        {
            return Ok(ControlFlow::Break(()));
        }
        Ok(if job.frames.is_some_and(|most| number >= most) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        })
    })
}

fn measure(
    job: &Job,
    animator: &mut Animator,
    clip: &Clip,
    stop: &AtomicBool,
) -> Result<Sums, Error> {
    let side = animator.size() as usize;
    let mut all = Sums {
        lpips: job.lpips.is_some(),
        ..Sums::default()
    };
    let mut before: Option<[Planes; 2]> = None;
    reconstruct(job, animator, clip, |frame, drawn, milliseconds| {
        if let Some(picture) = RgbaImage::from_raw(side as u32, side as u32, drawn.to_vec()) {
            if let Some(network) = &job.landmarks {
                let (drawn, real) = (network.points(&picture)?, network.points(frame)?);
                let distance = onnx::keypoint_distance(&drawn, &real);
                all.akd.add(distance.map(|distance| distance * side as f64));
            }
            if let Some(network) = &job.identity {
                let (drawn, real) = (network.vector(&picture)?, network.vector(frame)?);
                all.aed.add(onnx::identity_distance(&drawn, &real));
            }
        }
        let (real, drawn) = (Planes::of_rgba(frame, side), Planes::of_rgba(drawn, side));
        let lpips = job
            .lpips
            .as_ref()
            .map(|lpips| lpips.distance(&drawn, &real))
            .transpose()?;
        all.frames += 1;
        let values = [
            metrics::l1(&drawn, &real),
            metrics::psnr(&drawn, &real),
            metrics::ssim(&drawn, &real),
            lpips.unwrap_or(0.0),
            milliseconds,
        ];
        for (sum, value) in all.sums.iter_mut().zip(values) {
            *sum += value;
        }
        if let Some([real_before, drawn_before]) = &before {
            all.changes += 1;
            all.sums[5] += metrics::jitter([drawn_before, &drawn], [real_before, &real]);
        }
        before = Some([real, drawn]);
        Ok(if stop.load(Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        })
    })?;
    Ok(all)
}

/// Source, driving frame and result side by side, one clip after the other.
fn show(job: &Job, animator: &mut Animator, clips: &[&Clip], output: &Path) -> Result<(), Error> {
    let side = animator.size();
    let options = WriteOptions {
        width: 3 * side,
        height: side,
        fps: STILLS_RATE,
        audio_from: None,
        inputs: clips.iter().map(|clip| clip.path.clone()).collect(),
        provenance: None,
    };
    let mut video = sink::create(output, &options)?;
    let mut sheet = RgbaImage::new(3 * side, side);
    for clip in clips {
        let mut number = 0;
        reconstruct(job, animator, clip, |frame, drawn, _| {
            if number == 0 {
                imageops::replace(&mut sheet, frame, 0, 0);
            }
            number += 1;
            imageops::replace(&mut sheet, frame, i64::from(side), 0);
            if let Some(drawn) = RgbaImage::from_raw(side, side, drawn.to_vec()) {
                imageops::replace(&mut sheet, &drawn, i64::from(2 * side), 0);
            }
            video.write(&sheet)?;
            Ok(ControlFlow::Continue(()))
        })?;
    }
    video.finish()?;
    Ok(())
}

/// The report for people.
pub fn markdown(report: &Report) -> String {
    let mut text = format!("# Evaluation\n\n{}\n\n", report.protocol);
    // Columns of what was measured for some model.
    type Column = (&'static str, usize, fn(&Scores) -> Option<f64>);
    let optional: [Column; 3] = [
        ("LPIPS", 4, |scores| scores.lpips),
        ("AKD", 3, |scores| scores.akd),
        ("AED", 4, |scores| scores.aed),
    ];
    let measured = |(_, _, of): &Column| report.models.iter().any(|m| of(&m.scores).is_some());
    let optional: Vec<Column> = optional.into_iter().filter(measured).collect();
    let title: String = optional
        .iter()
        .map(|(name, ..)| format!(" {name} |"))
        .collect();
    let line = "---|".repeat(optional.len());
    // Writing to a string cannot fail.
    let mut table = |first: &str, rows: &mut dyn Iterator<Item = (String, Scores)>| {
        let _ = writeln!(
            text,
            "| {first} | frames | L1 | PSNR | SSIM |{title} jitter | ms per frame |\n|---|---|---|---|---|{line}---|---|"
        );
        for (name, scores) in rows {
            let more = optional.iter().map(|(_, digits, of)| {
                of(&scores).map_or(" |".to_owned(), |value| format!(" {value:.digits$} |"))
            });
            let more: String = more.collect();
            let Scores {
                frames,
                l1,
                psnr,
                ssim,
                jitter,
                milliseconds,
                ..
            } = scores;
            let _ = writeln!(
                text,
                "| {name} | {frames} | {l1:.4} | {psnr:.2} | {ssim:.4} |{more} {jitter:.4} | {milliseconds:.1} |"
            );
        }
        text.push('\n');
    };
    table(
        "model",
        &mut report.models.iter().map(|m| (m.model.clone(), m.scores)),
    );
    for model in &report.models {
        let mut rows = model
            .clips
            .iter()
            .map(|(name, scores)| (name.replace('|', "\\|"), *scores));
        table(&format!("{}: clip", model.model), &mut rows);
    }
    if !report.left_out.is_empty() {
        text.push_str("Left out:\n\n");
        for (name, why) in &report.left_out {
            let _ = writeln!(text, "- {name}: {why}");
        }
    }
    text
}

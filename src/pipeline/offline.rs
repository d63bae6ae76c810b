//! A photo and a clip to a file: ordered, bounded, every frame.
//!
//! `stream` is the part that lasts: frames through the threads of a job.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use image::RgbaImage;

use super::cast::{Cast, cast};
pub use super::cast::{Faces, Role, Selection};
pub use super::driving::Window;
use super::driving::{Driving, Source, Views};
use super::stream::{Compose, Smooth, stream};
use crate::animate::{Animator, BestFrame, take};
use crate::faces::{self, Enhancement, Enhancer};
use crate::frame::Prediction;
use crate::gpu::{self, Compositor, PasteSettings};
use crate::media::{self, Provenance, Signer, WriteOptions};
use crate::ops::threads::available_threads;

/// What to animate, by what, into what.
#[derive(Clone, Debug)]
pub struct Job {
    /// The photo.
    pub photo: PathBuf,
    /// What of it moves.
    pub faces: Faces,
    /// Which driving face moves which of the photo's; empty when one moves all.
    pub roles: Vec<Role>,
    /// The driving clip, or a take: motion recorded before.
    pub clip: PathBuf,
    /// What of a clip the networks see.
    pub window: Window,
    /// Whether they see a clip as in a mirror.
    pub mirror: bool,
    /// The frame from which relative motion counts.
    pub reference: ReferenceFrame,
    /// The result: see [`media::sink::create`].
    pub output: PathBuf,
    /// Whether the result gets the clip's sound.
    pub audio: bool,
    /// Whether the result says that it is generated.
    pub provenance: bool,
    /// Who signs that.
    pub signer: Option<Arc<Signer>>,
    /// How faces are put back.
    pub paste: PasteSettings,
    /// Ratios of faces that have their own, in the crops' order.
    pub ratios: Vec<Option<f32>>,
    /// How much trembling of the driver is smoothed away, 0..=1.
    pub smoothing: f32,
    /// What is done to every generated face before it is put back.
    pub enhancement: Option<Enhancement>,
    /// Who composes.
    pub compositor: gpu::Choice,
    /// Frames beside each other, as far as the networks have threads for them.
    pub batch: usize,
}

/// The frame from which relative motion counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReferenceFrame {
    /// Number N of the clip, from 0.
    Number(u64),
    /// The one that resembles the photo most.
    Best,
}

/// How far a job is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Looking for the best frame, or making the result.
    pub searching: bool,
    /// Frames done.
    pub done: u64,
    /// Frames in all, as the clip says.
    pub total: Option<u64>,
}

/// What a finished job took.
#[derive(Clone, Debug)]
pub struct Report {
    /// Frames written.
    pub frames: u64,
    /// The files.
    pub outputs: Vec<PathBuf>,
    /// Who composed.
    pub compositor: String,
    /// Seconds of wall time of each stage; decoding and encoding run beside the networks, and frames
    /// beside each other: their stages are added up.
    pub seconds: Stages,
}

/// Seconds of each stage.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stages {
    /// Opening the photo and preparing its features.
    pub prepare: f64,
    /// Looking for the best frame.
    pub search: f64,
    /// Waiting for ffmpeg's pictures.
    pub decode: f64,
    /// Driving keypoints.
    pub keypoints: f64,
    /// Dense motion and generator.
    pub generate: f64,
    /// Enhancing faces.
    pub enhance: f64,
    /// Compositor.
    pub compose: f64,
    /// Handing pictures to the encoder.
    pub encode: f64,
    /// The whole job.
    pub total: f64,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Photo, clip or result.
    #[error(transparent)]
    Media(#[from] media::Error),
    /// A face or crop.
    #[error(transparent)]
    Faces(#[from] faces::Error),
    /// The face detector.
    #[error(transparent)]
    Detector(#[from] faces::DetectError),
    /// A photo without a face.
    #[error(
        "no face was found in {photo}{hint}: give it with --face X1,Y1,X2,Y2, or animate the whole picture with --crop whole"
    )]
    NoFace {
        /// The photo.
        photo: PathBuf,
        /// What may be wrong with it, or nothing.
        hint: &'static str,
    },
    /// A number that no face has.
    #[error(
        "there is no face {number} in the photo, which has {count}, counted from left to right: `mimic faces PHOTO` lists them"
    )]
    NoSuchFace {
        /// What was asked for.
        number: usize,
        /// Faces that there are.
        count: usize,
    },
    /// The face enhancement.
    #[error(transparent)]
    Enhancer(#[from] faces::EnhanceError),
    /// A take that drives.
    #[error(transparent)]
    Take(#[from] take::Error),
    /// A take of a model with other keypoints.
    #[error(
        "{path} was recorded with the model {model}, whose keypoints are others: choose that model, or record it again with this one"
    )]
    OtherModel {
        /// The take.
        path: PathBuf,
        /// The model it names.
        model: String,
    },
    /// A take where several drivers are wanted.
    #[error(
        "{path} holds the motion of one driver: several faces move by it, but none by a second one"
    )]
    OneDriver {
        /// The take.
        path: PathBuf,
    },
    /// The compositor.
    #[error(transparent)]
    Compositor(#[from] gpu::Error),
    /// Stopped by the user.
    #[error("stopped before the end: nothing was written")]
    Cancelled,
    /// A thread could not be started, or died.
    #[error("the {name} thread failed: {why}")]
    Thread {
        /// Its name.
        name: &'static str,
        /// What happened.
        why: String,
    },
}

/// Runs a job. `progress` is called after each frame; `cancel` stops at the next one and leaves nothing.
///
/// # Errors
/// Whatever is wrong with the photo, the boxes, the clip or the output, in one sentence.
pub fn run(
    job: &Job,
    animator: &mut Animator,
    progress: impl FnMut(Progress),
    cancel: &AtomicBool,
) -> Result<Report, Error> {
    open(job)?.run(animator, progress, cancel)
}

/// One frame of a job's result, for looking at its settings: frame `number` of the clip, from 0, its motion
/// counted from the first. Nothing is written.
///
/// # Errors
/// As [`open`].
pub fn preview(job: &Job, animator: &mut Animator, number: u64) -> Result<RgbaImage, Error> {
    let Opened {
        photo,
        cast,
        source,
        mut enhancer,
        ..
    } = open(job)?;
    let mut driving = Driving::new(source, job, cast.drivers(), animator)?;
    let mut compositor = set_up(job, &photo, cast, animator, enhancer.as_ref())?;
    let first = driving
        .glimpse(0)?
        .keypoints(|picture| animator.keypoints(picture));
    animator.set_references(&first);
    let there = driving
        .glimpse(number)?
        .keypoints(|picture| animator.keypoints(picture));
    let mut predictions = animator.animate_by(&there).to_vec();
    enhance(&mut enhancer, &mut predictions)?;
    Ok(compositor.composite(&predictions, &job.paste)?.clone())
}

/// A job whose photo and clip have been opened: what is wrong with them is known before anything that
/// takes time, such as loading a model.
pub struct Opened<'a> {
    job: &'a Job,
    photo: RgbaImage,
    cast: Cast,
    source: Source,
    enhancer: Option<Enhancer>,
    /// Seconds that opening took.
    seconds: f64,
}

/// Opens a job's photo and clip, and looks at the name of its output.
///
/// # Errors
/// Whatever is wrong with the photo, the boxes, the clip or the name of the output, in one sentence.
pub fn open(job: &Job) -> Result<Opened<'_>, Error> {
    let start = Instant::now();
    media::sink::check(&job.output, &inputs(job))?;
    let photo = media::open_photo(&job.photo)?;
    let cast = cast(job, &photo)?;
    let source = Source::open(job)?;
    let threads = available_threads();
    let enhancer = job.enhancement.as_ref();
    let enhancer = enhancer.filter(|wanted| wanted.strength > 0.0);
    let enhancer = enhancer.map(|wanted| Enhancer::open(wanted, threads));
    Ok(Opened {
        job,
        photo,
        cast,
        source,
        enhancer: enhancer.transpose()?,
        seconds: start.elapsed().as_secs_f64(),
    })
}

impl Opened<'_> {
    /// As [`run`].
    ///
    /// # Errors
    /// As [`run`].
    pub fn run(
        self,
        animator: &mut Animator,
        mut progress: impl FnMut(Progress),
        cancel: &AtomicBool,
    ) -> Result<Report, Error> {
        let Self {
            job,
            photo,
            cast,
            source,
            enhancer,
            seconds: opening,
        } = self;
        let start = Instant::now();
        let mut seconds = Stages::default();
        let mut driving = Driving::new(source, job, cast.drivers(), animator)?;
        let clip = driving.info().clone();

        let compositor = set_up(job, &photo, cast, animator, enhancer.as_ref())?;
        seconds.prepare = opening + start.elapsed().as_secs_f64();

        let searching = Instant::now();
        match job.reference {
            ReferenceFrame::Number(0) => {}
            ReferenceFrame::Number(number) => {
                let views = driving.frame(number)?;
                let keypoints = views.keypoints(|picture| animator.keypoints(picture));
                animator.set_references(&keypoints);
            }
            ReferenceFrame::Best => {
                let found = search(animator, &mut driving, &mut progress, cancel)?;
                tracing::info!("reference frame: {:?}", found.frames());
                animator.set_best(found);
                driving.rewind()?;
            }
        }
        seconds.search = searching.elapsed().as_secs_f64();

        let sink = media::sink::create(
            &job.output,
            &WriteOptions {
                width: photo.width(),
                height: photo.height(),
                fps: clip.fps,
                audio_from: (job.audio && clip.has_audio).then(|| job.clip.clone()),
                inputs: inputs(job),
                provenance: provenance(job)?,
            },
        )?;
        // Its pixels are the compositor's now.
        drop(photo);
        let compose = Compose {
            enhancer,
            compositor,
            sink,
            paste: job.paste,
        };
        let total = clip.frames;
        let report = |done| {
            progress(Progress {
                searching: false,
                done,
                total,
            });
        };
        let (compose, stages) = stream(
            driving,
            animator,
            compose,
            Smooth {
                amount: job.smoothing,
                fps: clip.fps.as_f64(),
            },
            job.batch.clamp(1, 64),
            report,
            cancel,
        )?;
        let finishing = Instant::now();
        let outputs = compose.sink.finish()?;
        Ok(Report {
            frames: stages.frames,
            outputs,
            compositor: compose.compositor.device_name(),
            seconds: Stages {
                prepare: seconds.prepare,
                search: seconds.search,
                encode: stages.seconds.encode + finishing.elapsed().as_secs_f64(),
                total: opening + start.elapsed().as_secs_f64(),
                ..stages.seconds
            },
        })
    }
}

impl std::fmt::Debug for Opened<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened")
            .field("job", self.job)
            .finish_non_exhaustive()
    }
}

/// Gives the photo to the compositor and its faces to the networks.
fn set_up(
    job: &Job,
    photo: &RgbaImage,
    cast: Cast,
    animator: &mut Animator,
    enhancer: Option<&Enhancer>,
) -> Result<Compositor, Error> {
    let mut compositor = Compositor::new(job.compositor)?;
    // What a prediction is finer in than the networks' own is not taken from the photo once more.
    let size = enhancer.map_or(animator.size(), Enhancer::size);
    compositor.set_photo(photo, &cast.crops, size)?;
    compositor.set_ratios(&job.ratios)?;
    let views = cast.crops.iter();
    let views = views.map(|&crop| gpu::model_view(photo, crop, animator.size()));
    animator.set_photo(&views.collect::<Result<Vec<_>, _>>()?);
    animator.set_drivers(cast.drivers);
    Ok(compositor)
}

fn provenance(job: &Job) -> Result<Option<Provenance>, Error> {
    if !job.provenance {
        return Ok(None);
    }
    let said = Provenance::of_photo(&job.photo)?;
    Ok(Some(said.signed_by(job.signer.clone())))
}

/// Enhances every face, if that is asked for.
pub(super) fn enhance(
    enhancer: &mut Option<Enhancer>,
    faces: &mut [Prediction],
) -> Result<(), Error> {
    for face in faces {
        if let Some(enhancer) = enhancer {
            enhancer.enhance(face)?;
        }
    }
    Ok(())
}

fn inputs(job: &Job) -> Vec<PathBuf> {
    vec![job.photo.clone(), job.clip.clone()]
}

fn search(
    animator: &mut Animator,
    driving: &mut Driving,
    progress: &mut impl FnMut(Progress),
    cancel: &AtomicBool,
) -> Result<BestFrame, Error> {
    let mut found = animator.search();
    let mut views = Views::default();
    let total = driving.info().frames;
    let mut done = 0;
    while driving.read(&mut views)? {
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        let keypoints = views.keypoints(|picture| animator.keypoints(picture));
        animator.consider(&mut found, &keypoints);
        done += 1;
        progress(Progress {
            searching: true,
            done,
            total,
        });
    }
    Ok(found)
}

//! A photo and a clip to a file: ordered, bounded, every frame.
//!
//! Three threads: `decode` reads the clip, the caller runs the networks, `encode` composes and writes.
//! Between them are channels of a few frames whose buffers go round, so memory does not depend on the
//! clip's length. The compositor lives on the encoding thread alone.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

use image::RgbaImage;

use super::cast::{Cast, cast};
pub use super::cast::{Faces, Role, Selection};
pub use super::driving::Window;
use super::driving::{Driving, Source, Views};
use crate::animate::{Animator, BestFrame, Smoother, take};
use crate::faces::{self, Enhancement, Enhancer};
use crate::frame::Prediction;
use crate::gpu::{self, Compositor, PasteSettings};
use crate::media::{self, FrameSink, Provenance, Signer, WriteOptions};
use crate::model::Keypoints;

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
    /// Frames on their way between two threads.
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
    /// Seconds of wall time of each stage; decoding and encoding run beside the networks.
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
    Enhancer(Box<faces::EnhanceError>),
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

impl From<faces::EnhanceError> for Error {
    fn from(error: faces::EnhanceError) -> Self {
        Self::Enhancer(Box::new(error))
    }
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
    let first = keypoints(animator, &driving.glimpse(0)?);
    animator.set_references(&first);
    let there = keypoints(animator, &driving.glimpse(number)?);
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
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
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
                let keypoints = keypoints(animator, &views);
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
fn enhance(enhancer: &mut Option<Enhancer>, faces: &mut [Prediction]) -> Result<(), Error> {
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

/// What each driver's pose is in a frame.
fn keypoints(animator: &mut Animator, views: &Views) -> Vec<Keypoints> {
    if let Some(pose) = &views.pose {
        return vec![pose.clone()];
    }
    let pictures = views.pictures.iter();
    pictures
        .map(|picture| animator.keypoints(picture))
        .collect()
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
        let keypoints = keypoints(animator, &views);
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

/// What the encoding thread owns.
struct Compose {
    enhancer: Option<Enhancer>,
    compositor: Compositor,
    sink: Box<dyn FrameSink>,
    paste: PasteSettings,
}

/// How much the driver is smoothed, and how many frames a second of the clip's there are.
#[derive(Clone, Copy)]
struct Smooth {
    amount: f32,
    fps: f64,
}

/// What a stream of frames took.
#[derive(Default)]
struct Streamed {
    frames: u64,
    seconds: Stages,
}

/// Reads, animates and writes until the clip ends; gives back the sink to be finished.
fn stream(
    driving: Driving,
    animator: &mut Animator,
    compose: Compose,
    smooth: Smooth,
    ahead: usize,
    mut progress: impl FnMut(u64),
    cancel: &AtomicBool,
) -> Result<(Compose, Streamed), Error> {
    std::thread::scope(|scope| {
        // Buffers go round: what is spent comes back, so that frames cost no allocation.
        let (frames_out, frames) = sync_channel(ahead);
        let (spent_frames, reuse_frames) = sync_channel(ahead + 2);
        let (predictions_out, predictions) = sync_channel(ahead);
        let (spent_predictions, reuse_predictions) = sync_channel(ahead + 2);
        let named = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let unstarted = |name| {
            move |e: std::io::Error| Error::Thread {
                name,
                why: e.to_string(),
            }
        };
        let decoder = named("decode")
            .spawn_scoped(scope, move || decode(driving, &frames_out, &reuse_frames))
            .map_err(unstarted("decode"))?;
        let encoder = named("encode")
            .spawn_scoped(scope, move || {
                encode(compose, &predictions, &spent_predictions)
            })
            .map_err(unstarted("encode"))?;

        let mut streamed = Streamed::default();
        let mut smoothers: Vec<Smoother> = Vec::new();
        // The drivers' poses when they were seen last.
        let mut before: Vec<Keypoints> = Vec::new();
        let mut cancelled = false;
        // The receiver ends with the loop, which stops the decoder wherever it is.
        for views in frames {
            cancelled = cancel.load(Ordering::Relaxed);
            if cancelled {
                break;
            }
            let seconds = &mut streamed.seconds;
            let mut keypoints = timed(&mut seconds.keypoints, || keypoints(animator, &views));
            if views.appeared {
                animator.driver_appeared();
                smoothers.clear();
            }
            if views.cut {
                animator.cut(&before, &keypoints);
                smoothers.clear();
            }
            if views.found {
                before.clone_from(&keypoints);
            }
            smoothers.resize_with(keypoints.len(), Smoother::default);
            let at = streamed.frames as f64 / smooth.fps;
            for (keypoints, smoother) in keypoints.iter_mut().zip(&mut smoothers) {
                smoother.smooth(keypoints, smooth.amount, at);
            }
            // A full channel drops the buffer, which costs an allocation and nothing else.
            let _ = spent_frames.try_send(views);
            timed(&mut seconds.generate, || {
                animator.animate_by(&keypoints);
            });
            let made = animator.take(reuse_predictions.try_recv().unwrap_or_default());
            if predictions_out.send(made).is_err() {
                // The encoder has failed and says why when it is joined.
                break;
            }
            streamed.frames += 1;
            progress(streamed.frames);
        }
        drop(predictions_out);
        let died = |name| {
            move |_| Error::Thread {
                name,
                why: "it panicked".to_owned(),
            }
        };
        let (compose, [enhancing, composing, encoding]) =
            encoder.join().map_err(died("encode"))??;
        streamed.seconds.decode = decoder.join().map_err(died("decode"))??;
        (streamed.seconds.compose, streamed.seconds.encode) = (composing, encoding);
        streamed.seconds.enhance = enhancing;
        if cancelled {
            Err(Error::Cancelled)
        } else {
            Ok((compose, streamed))
        }
    })
}

/// The decoding thread: gives the seconds it waited for pictures.
fn decode(
    mut driving: Driving,
    frames: &SyncSender<Views>,
    spent: &Receiver<Views>,
) -> Result<f64, Error> {
    let mut seconds = 0.0;
    loop {
        let mut views = spent.try_recv().unwrap_or_default();
        if !timed(&mut seconds, || driving.read(&mut views))? || frames.send(views).is_err() {
            return Ok(seconds);
        }
    }
}

/// The encoding thread: gives back what it owns, and the seconds of enhancing, composing and writing.
fn encode(
    mut compose: Compose,
    predictions: &Receiver<Vec<Prediction>>,
    spent: &SyncSender<Vec<Prediction>>,
) -> Result<(Compose, [f64; 3]), Error> {
    let [mut enhancing, mut composing, mut writing] = [0.0; 3];
    for mut made in predictions {
        timed(&mut enhancing, || enhance(&mut compose.enhancer, &mut made))?;
        let picture = timed(&mut composing, || {
            compose.compositor.composite(&made, &compose.paste)
        })?;
        timed(&mut writing, || compose.sink.write(picture))?;
        let _ = spent.try_send(made);
    }
    Ok((compose, [enhancing, composing, writing]))
}

fn timed<T>(seconds: &mut f64, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    *seconds += start.elapsed().as_secs_f64();
    result
}

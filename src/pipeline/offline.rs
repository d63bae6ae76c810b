//! A photo and a clip to a file: ordered, bounded, every frame.
//!
//! Three threads: `decode` reads the clip, the caller runs the networks, `encode` composes and writes.
//! Between them are channels of a few frames whose buffers go round, so memory does not depend on the
//! clip's length. The compositor lives on the encoding thread alone.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

use image::RgbaImage;

use crate::animate::{Animator, BestFrame};
use crate::faces;
use crate::frame::Prediction;
use crate::geometry::Rect;
use crate::gpu::{self, Compositor, PasteMode, PasteSettings};
use crate::media::{self, ClipInfo, FrameSink, FrameSource, ReadOptions, WriteOptions};

/// What to animate, by what, into what.
#[derive(Clone, Debug)]
pub struct Job {
    /// The photo.
    pub photo: PathBuf,
    /// What of it moves.
    pub faces: Faces,
    /// The driving clip.
    pub clip: PathBuf,
    /// What of it the networks see.
    pub window: Window,
    /// The frame from which relative motion counts.
    pub reference: ReferenceFrame,
    /// The result: see [`media::sink::create`].
    pub output: PathBuf,
    /// Whether the result gets the clip's sound.
    pub audio: bool,
    /// How faces are put back.
    pub paste: PasteSettings,
    /// Who composes.
    pub compositor: gpu::Choice,
    /// Frames on their way between two threads.
    pub batch: usize,
}

/// What of a photo moves.
#[derive(Clone, Debug)]
pub enum Faces {
    /// All of it.
    Whole,
    /// Faces as a detector gives them; the margin is added.
    Boxes(Vec<Rect>),
    /// Crops as they are.
    Crops(Vec<Rect>),
}

/// What of the driving frames the networks see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// The largest square in the middle.
    Centre,
    /// All of it, squashed to a square.
    Whole,
    /// This part.
    Part(Rect),
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

/// A job whose photo and clip have been opened: what is wrong with them is known before anything that
/// takes time, such as loading a model.
pub struct Opened<'a> {
    job: &'a Job,
    photo: RgbaImage,
    crops: Vec<Rect>,
    source: Box<dyn FrameSource>,
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
    let crops = crops(job, &photo)?;
    let mut source = media::clip::open(&job.clip, &ReadOptions::default())?;
    let window = read_options(job, source.info(), None);
    source.reopen(&window)?;
    Ok(Opened {
        job,
        photo,
        crops,
        source,
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
            crops,
            mut source,
            seconds: opening,
        } = self;
        let start = Instant::now();
        let mut seconds = Stages::default();
        let clip = source.info().clone();
        let read = read_options(job, &clip, Some(animator.size()));
        source.reopen(&read)?;

        let mut compositor = Compositor::new(job.compositor)?;
        compositor.set_photo(&photo, &crops, animator.size())?;
        let views = crops
            .iter()
            .map(|&crop| gpu::model_view(&photo, crop, animator.size()));
        animator.set_photo(&views.collect::<Result<Vec<_>, _>>()?);
        seconds.prepare = opening + start.elapsed().as_secs_f64();

        let searching = Instant::now();
        match job.reference {
            ReferenceFrame::Number(0) => {}
            ReferenceFrame::Number(number) => {
                source.reopen(&ReadOptions {
                    start_frame: number,
                    ..read.clone()
                })?;
                let mut frame = RgbaImage::default();
                source.read(&mut frame)?;
                let keypoints = animator.keypoints(&frame);
                animator.set_reference(keypoints);
                source.reopen(&read)?;
            }
            ReferenceFrame::Best => {
                let found = search(animator, &mut *source, &mut progress, cancel)?;
                tracing::info!("reference frame: {:?}", found.frames());
                animator.set_best(found);
                source.rewind()?;
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
            },
        )?;
        // Its pixels are the compositor's now.
        drop(photo);
        let compose = Compose {
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
            source,
            animator,
            compose,
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

fn inputs(job: &Job) -> Vec<PathBuf> {
    vec![job.photo.clone(), job.clip.clone()]
}

fn crops(job: &Job, photo: &RgbaImage) -> Result<Vec<Rect>, faces::Error> {
    let (width, height) = photo.dimensions();
    match &job.faces {
        Faces::Whole => Ok(vec![Rect::of_size(width, height)]),
        Faces::Crops(crops) => crops
            .iter()
            .map(|&crop| faces::clip_crop(crop, width, height))
            .collect(),
        Faces::Boxes(boxes) => match job.paste.mode {
            PasteMode::PaddleGan => faces::paddlegan_crops(boxes, width, height),
            PasteMode::Feather => boxes
                .iter()
                .map(|&face| faces::square_crop(face, width, height))
                .collect(),
        },
    }
}

fn read_options(job: &Job, clip: &ClipInfo, size: Option<u32>) -> ReadOptions {
    let crop = match job.window {
        Window::Whole => None,
        Window::Part(part) => Some(part),
        Window::Centre => {
            let side = clip.width.min(clip.height) as i32;
            let (x, y) = (
                (clip.width as i32 - side) / 2,
                (clip.height as i32 - side) / 2,
            );
            Some(Rect::new(x, y, x + side, y + side))
        }
    };
    ReadOptions {
        crop,
        size: size.map(|side| (side, side)),
        ..ReadOptions::default()
    }
}

fn search(
    animator: &mut Animator,
    source: &mut dyn FrameSource,
    progress: &mut impl FnMut(Progress),
    cancel: &AtomicBool,
) -> Result<BestFrame, Error> {
    let mut found = animator.search();
    let mut frame = RgbaImage::default();
    let total = source.info().frames;
    let mut done = 0;
    while source.read(&mut frame)? {
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        let keypoints = animator.keypoints(&frame);
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
    compositor: Compositor,
    sink: Box<dyn FrameSink>,
    paste: PasteSettings,
}

/// What a stream of frames took.
#[derive(Default)]
struct Streamed {
    frames: u64,
    seconds: Stages,
}

/// Reads, animates and writes until the clip ends; gives back the sink to be finished.
fn stream(
    source: Box<dyn FrameSource>,
    animator: &mut Animator,
    compose: Compose,
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
            .spawn_scoped(scope, move || decode(source, &frames_out, &reuse_frames))
            .map_err(unstarted("decode"))?;
        let encoder = named("encode")
            .spawn_scoped(scope, move || {
                encode(compose, &predictions, &spent_predictions)
            })
            .map_err(unstarted("encode"))?;

        let mut streamed = Streamed::default();
        let mut cancelled = false;
        // The receiver ends with the loop, which stops the decoder wherever it is.
        for frame in frames {
            cancelled = cancel.load(Ordering::Relaxed);
            if cancelled {
                break;
            }
            let seconds = &mut streamed.seconds;
            let keypoints = timed(&mut seconds.keypoints, || animator.keypoints(&frame));
            // A full channel drops the buffer, which costs an allocation and nothing else.
            let _ = spent_frames.try_send(frame);
            timed(&mut seconds.generate, || {
                animator.animate(&keypoints);
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
        let (compose, composing, encoding) = encoder.join().map_err(died("encode"))??;
        streamed.seconds.decode = decoder.join().map_err(died("decode"))??;
        (streamed.seconds.compose, streamed.seconds.encode) = (composing, encoding);
        if cancelled {
            Err(Error::Cancelled)
        } else {
            Ok((compose, streamed))
        }
    })
}

/// The decoding thread: gives the seconds it waited for pictures.
fn decode(
    mut source: Box<dyn FrameSource>,
    frames: &SyncSender<RgbaImage>,
    spent: &Receiver<RgbaImage>,
) -> Result<f64, media::Error> {
    let mut seconds = 0.0;
    loop {
        let mut frame = spent.try_recv().unwrap_or_default();
        if !timed(&mut seconds, || source.read(&mut frame))? || frames.send(frame).is_err() {
            return Ok(seconds);
        }
    }
}

/// The encoding thread: gives back what it owns, and the seconds of composing and of writing.
fn encode(
    mut compose: Compose,
    predictions: &Receiver<Vec<Prediction>>,
    spent: &SyncSender<Vec<Prediction>>,
) -> Result<(Compose, f64, f64), Error> {
    let (mut composing, mut writing) = (0.0, 0.0);
    for made in predictions {
        let picture = timed(&mut composing, || {
            compose.compositor.composite(&made, &compose.paste)
        })?;
        timed(&mut writing, || compose.sink.write(picture))?;
        let _ = spent.try_send(made);
    }
    Ok((compose, composing, writing))
}

fn timed<T>(seconds: &mut f64, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    *seconds += start.elapsed().as_secs_f64();
    result
}

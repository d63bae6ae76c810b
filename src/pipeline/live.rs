//! The live path: one thread, `infer`, turns the newest driving frame into predictions for the window.
//!
//! It takes from a [`Slot`] and puts into one: it is never waited for and waits for nobody. What the
//! window wants comes as [`Command`]s, what it should know goes back as [`Event`]s. The features of
//! every photo of the reel are kept, so that changing the photo costs nothing. A panic ends the thread
//! with an event; a new [`Live`] can be started in its place.

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use image::RgbaImage;

use super::infer::infer;
use super::slot::Slot;
use crate::animate::PerformOptions;
use crate::animate::load::{self, ModelOptions};
use crate::device::Choice;
use crate::faces::Enhancement;
use crate::frame::{Prediction, SharedMemory};
use crate::geometry::Rect;
use crate::model::Keypoints;
use crate::ops::threads::available_threads;

/// Commands that may wait; far more than anybody gives within one inference.
const COMMANDS: usize = 256;

/// What drives.
#[derive(Debug)]
pub enum Driving {
    /// A picture of the driver.
    Frame {
        /// The whole picture, upright.
        image: RgbaImage,
        /// When it was taken.
        captured: Instant,
    },
    /// The driver's keypoints, of a take.
    Pose {
        /// The keypoints.
        keypoints: Keypoints,
        /// When they were due.
        captured: Instant,
    },
}

/// Which part of the driver's pictures the networks see.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum DriverCrop {
    /// The driver's face, which is followed; the largest square in the middle until there is one.
    #[default]
    Face,
    /// The largest square in the middle.
    Centre,
    /// This part, cut to the picture.
    Part(Rect),
}

/// What the window wants of the thread.
#[derive(Debug)]
pub enum Command {
    /// Know a photo by its faces, each as the networks see it; it replaces the one of the same number.
    Photo {
        /// Number of the photo.
        id: u64,
        /// A square of the model's size for each face.
        views: Vec<RgbaImage>,
    },
    /// Animate this photo from now on.
    Show(u64),
    /// Forget a photo.
    Forget(u64),
    /// How motion is taken over.
    Perform(PerformOptions),
    /// Which part of the driver's pictures to look at, and whether to mirror them first.
    Look {
        /// The part.
        crop: DriverCrop,
        /// Left and right exchanged, as in a mirror.
        mirror: bool,
    },
    /// Take the present pose of the driver for the reference.
    Calibrate,
    /// Another driver: forget the references.
    NewDriver,
    /// Make faces sharper, or leave them as they are.
    Enhance(Option<Enhancement>),
    /// Leave predictions in this memory of the compositor's card.
    Share(Arc<SharedMemory>),
    /// Hold so many frames a second, at the cost of quality; None: never.
    Hold(Option<f32>),
    /// Write the driver's motion into this new file.
    RecordTake(PathBuf),
    /// End the take.
    EndTake,
}

/// What happened on the thread.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The model is loaded.
    Ready {
        /// Its name.
        model: String,
        /// Side of the squares it sees.
        size: u32,
        /// Where it runs, for people.
        device: String,
    },
    /// The model cannot be loaded.
    Failed(String),
    /// Another way of running, to hold the frame rate or because there is time again.
    Quality(Quality),
    /// A take was written.
    TakeWritten {
        /// The file.
        path: PathBuf,
        /// Moments in it.
        records: u64,
    },
    /// A take was given up.
    TakeFailed(String),
    /// Faces cannot be made sharper, and why.
    EnhanceFailed(String),
    /// Something that the user should know; it goes on.
    Notice(String),
    /// The thread has panicked and is gone.
    Died(String),
}

/// How well the model runs at the moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quality {
    /// It runs worse than it could, for the frame rate's sake.
    pub lowered: bool,
    /// The model at work, when it is another than was chosen.
    pub model: Option<String>,
    /// The generator works at half the side.
    pub half: bool,
    /// Products are of bf16.
    pub bf16: bool,
    /// Frames come as often as is wanted.
    pub holds: bool,
    /// Where it runs, for people.
    pub device: String,
}

/// One animated frame, for the window.
#[derive(Debug)]
pub struct Shown {
    /// The photo.
    pub photo: u64,
    /// A prediction for each face.
    pub predictions: Vec<Prediction>,
    /// The driver's picture, mirrored if asked for; none for a take or a driver that is silent.
    pub driver: Option<RgbaImage>,
    /// What of it the networks saw.
    pub crop: Rect,
    /// The driver's keypoints in that crop, if there is a driver.
    pub keypoints: Option<Keypoints>,
    /// Whether the driver's face was found.
    pub found: bool,
    /// How close the driver's pose is to the photo's, 0..=1.
    pub match_score: f32,
    /// When the driving frame was taken.
    pub captured: Instant,
    /// Every how many frames faces are enhanced; the frames between get what was added to those. None
    /// when they are not, or not yet.
    pub enhanced_every: Option<f32>,
    /// What it took.
    pub stages: Stages,
}

/// Milliseconds of the stages of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stages {
    /// Cutting the driver out and scaling.
    pub crop: f32,
    /// Keypoints.
    pub keypoints: f32,
    /// Motion and generator, and what is added to the faces.
    pub generate: f32,
}

impl Stages {
    /// All of them.
    pub fn total(&self) -> f32 {
        self.crop + self.keypoints + self.generate
    }
}

/// Which model, on how many threads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LiveModel {
    /// Its weights; the embedded model without.
    pub weights: Option<PathBuf>,
    /// Threads; all but one of the machine's when 0.
    pub threads: usize,
    /// Models that may be used in its place while it is too slow.
    pub others: Vec<Option<PathBuf>>,
    /// What it runs on.
    pub device: Choice,
}

/// The running thread. Dropping it lets the thread end by itself, without waiting.
#[derive(Debug)]
pub struct Live {
    frames: Arc<Slot<Driving>>,
    shown: Arc<Slot<Shown>>,
    commands: SyncSender<Command>,
    events: Receiver<Event>,
}

impl Live {
    /// Starts the thread, which loads the model first. `wake` is called when there is something new.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        model: LiveModel,
        wake: impl Fn() + Send + 'static,
    ) -> Result<Self, std::io::Error> {
        let (commands, orders) = sync_channel(COMMANDS);
        let (tell, events) = sync_channel(COMMANDS);
        let (frames, shown) = (Arc::new(Slot::default()), Arc::new(Slot::default()));
        let (input, output) = (Arc::clone(&frames), Arc::clone(&shown));
        let work = move || {
            let tell = |event| {
                // A window that does not read its events is gone.
                let _ = tell.try_send(event);
                wake();
            };
            let run = || infer(&model, &orders, &input, &output, &tell, &wake);
            if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(run)) {
                tell(Event::Died(panic_text(&*panic)));
            }
        };
        std::thread::Builder::new()
            .name("infer".to_owned())
            .spawn(work)?;
        Ok(Self {
            frames,
            shown,
            commands,
            events,
        })
    }

    /// Where a driver puts its frames.
    pub fn frames(&self) -> Arc<Slot<Driving>> {
        Arc::clone(&self.frames)
    }

    /// The newest animated frame, once. It is no event: those are few, and none is lost.
    pub fn take(&self) -> Option<Shown> {
        self.shown.take()
    }

    /// What happened since the last call.
    pub fn events(&self) -> impl Iterator<Item = Event> {
        self.events.try_iter()
    }

    /// Tells the thread; false when it is gone or far behind.
    pub fn tell(&self, command: Command) -> bool {
        self.commands.try_send(command).is_ok()
    }

    /// Driving frames that were overtaken before the networks had time for them.
    pub fn dropped(&self) -> u64 {
        self.frames.dropped()
    }
}

/// What to call a model: its file's name, without its ending.
pub fn model_name(weights: Option<&Path>) -> String {
    match weights.and_then(Path::file_stem) {
        Some(stem) => stem.to_string_lossy().into_owned(),
        None => crate::checkpoint::EMBEDDED.to_owned(),
    }
}

/// Size of the model in the program.
pub fn embedded_bytes() -> u64 {
    crate::checkpoint::EMBEDDED_BYTES
}

/// Milliseconds that a model takes for a frame on this machine, measured for as long as is said.
///
/// # Errors
/// Why it cannot be loaded.
pub fn measure(model: &LiveModel, long: Duration) -> Result<f64, String> {
    let options = ModelOptions {
        weights: model.weights.as_deref(),
        threads: threads(model),
        device: model.device,
        ..ModelOptions::default()
    };
    let mut engine = load::engine(&options).map_err(|e| e.to_string())?;
    let side = engine.config().image_size;
    let picture = RgbaImage::from_fn(side, side, |x, y| {
        image::Rgba([x as u8, y as u8, (x ^ y) as u8, 255])
    });
    let source = engine.encode(&picture);
    let mut prediction = Prediction::default();
    let (start, mut frames) = (Instant::now(), 0u32);
    // One frame to warm up, at least one to measure.
    let mut began = start;
    while frames < 2 || began.elapsed() < long {
        if frames == 1 {
            began = Instant::now();
        }
        let keypoints = engine.keypoints(&picture);
        engine.generate(&source, &keypoints, &mut prediction);
        frames += 1;
    }
    Ok(began.elapsed().as_secs_f64() * 1000.0 / f64::from(frames - 1))
}

pub(super) fn threads(model: &LiveModel) -> usize {
    match model.threads {
        0 => (available_threads() - 1).max(1),
        asked => asked,
    }
}

/// What a panic said.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "for an unknown reason".to_owned())
}

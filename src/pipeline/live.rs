//! The live path: one thread, `infer`, turns the newest driving frame into predictions for the window.
//!
//! It takes from a [`Slot`] and puts into one: it is never waited for and waits for nobody. What the
//! window wants comes as [`Command`]s, what it should know goes back as [`Event`]s. The features of
//! every photo of the reel are kept, so that changing the photo costs nothing. A panic ends the thread
//! with an event; a new [`Live`] can be started in its place.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use image::RgbaImage;

use super::refine::Refiner;
use super::slot::Slot;
use crate::animate::load::{self, ModelOptions};
use crate::animate::take;
use crate::animate::{PerformOptions, Performer};
use crate::faces::{self, Enhancement, Tracker};
use crate::frame::Prediction;
use crate::geometry::Rect;
use crate::gpu;
use crate::model::Keypoints;
use crate::model::packed::{Engine, Source};

/// Commands that may wait; far more than anybody gives within one inference.
const COMMANDS: usize = 256;
/// How long the thread waits for a frame before it looks at its commands again.
const PATIENCE: Duration = Duration::from_millis(40);
/// Without a frame for so long the driver counts as lost: the photo eases to rest.
const SILENCE: Duration = Duration::from_millis(400);

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
    /// There is a new [`Shown`].
    Frame,
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
    /// The thread has panicked and is gone.
    Died(String),
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
            let run = || infer(&model, &orders, &input, &output, &tell);
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

    /// The newest animated frame, once.
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

fn threads(model: &LiveModel) -> usize {
    match model.threads {
        0 => std::thread::available_parallelism().map_or(1, |all| (all.get() - 1).max(1)),
        asked => asked,
    }
}

/// What a panic said.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "for an unknown reason".to_owned())
}

/// The thread: until the window is gone.
fn infer(
    model: &LiveModel,
    orders: &Receiver<Command>,
    frames: &Slot<Driving>,
    shown: &Slot<Shown>,
    tell: &dyn Fn(Event),
) {
    let options = ModelOptions {
        weights: model.weights.as_deref(),
        threads: threads(model),
        ..ModelOptions::default()
    };
    let engine = match load::engine(&options) {
        Ok(engine) => engine,
        Err(error) => return tell(Event::Failed(error.to_string())),
    };
    let workers = engine.workers();
    let name = model_name(model.weights.as_deref());
    tell(Event::Ready {
        model: name.clone(),
        size: engine.config().image_size,
        device: format!(
            "CPU ({}, {} threads)",
            workers.isa.name(),
            workers.threads()
        ),
    });
    let mut stage = Stage::new(engine, name, tell);
    loop {
        loop {
            match orders.try_recv() {
                Ok(command) => stage.obey(command),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return,
            }
        }
        match frames.wait(PATIENCE) {
            Some(driving) => stage.drive(Some(driving), shown),
            None if stage.silent_since.elapsed() > SILENCE => {
                stage.prepare_one();
                stage.drive(None, shown);
            }
            None => stage.prepare_one(),
        }
    }
}

/// What the thread owns.
struct Stage<'a> {
    engine: Engine,
    model: String,
    tell: &'a dyn Fn(Event),
    performer: Performer,
    options: PerformOptions,
    crop: DriverCrop,
    mirror: bool,
    /// None when the detector could not be started: then the middle is looked at.
    tracker: Option<Tracker>,
    photos: HashMap<u64, Photo>,
    current: Option<u64>,
    take: Option<Take>,
    refiner: Option<Refiner>,
    /// Whether this driver's face was found before.
    seen: bool,
    /// When motion began: times count from here.
    epoch: Instant,
    silent_since: Instant,
    at_rest: bool,
}

enum Photo {
    /// Its views wait to be encoded.
    Waiting(Vec<RgbaImage>),
    Ready(Vec<Source>),
}

/// The take being recorded.
struct Take {
    path: PathBuf,
    began: Instant,
    /// None until the first keypoints say what kind they are.
    writer: Option<take::Writer>,
}

impl<'a> Stage<'a> {
    fn new(engine: Engine, model: String, tell: &'a dyn Fn(Event)) -> Self {
        let tracker = Tracker::new()
            .map_err(|error| tracing::warn!("{error}: the driver's face is not followed"))
            .ok();
        Self {
            tracker,
            engine,
            model,
            tell,
            performer: Performer::default(),
            options: PerformOptions::default(),
            crop: DriverCrop::default(),
            mirror: false,
            photos: HashMap::new(),
            current: None,
            take: None,
            refiner: None,
            seen: false,
            epoch: Instant::now(),
            silent_since: Instant::now(),
            at_rest: true,
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Photo { id, views } => {
                self.photos.insert(id, Photo::Waiting(views));
                if self.current == Some(id) {
                    self.performer.change_photo();
                    if let Some(refiner) = &mut self.refiner {
                        refiner.forget();
                    }
                }
                self.at_rest = false;
            }
            Command::Show(id) => {
                self.current = Some(id);
                self.performer.change_photo();
                self.at_rest = false;
            }
            Command::Forget(id) => {
                self.photos.remove(&id);
            }
            Command::Perform(options) => self.options = options,
            Command::Look { crop, mirror } => {
                if mirror != self.mirror {
                    self.new_driver();
                }
                (self.crop, self.mirror) = (crop, mirror);
            }
            Command::NewDriver => self.new_driver(),
            Command::Calibrate => {
                let at = self.epoch.elapsed().as_secs_f64();
                if let Some(Photo::Ready(sources)) =
                    self.current.and_then(|id| self.photos.get(&id))
                {
                    self.performer.take_reference(&places(sources), at);
                }
            }
            Command::Enhance(wanted) => {
                self.at_rest = false;
                if let (Some(refiner), Some(wanted)) = (&mut self.refiner, &wanted)
                    && refiner.retune(wanted)
                {
                    return;
                }
                let refiner = wanted.map(Refiner::start).transpose();
                match refiner {
                    Ok(refiner) => self.refiner = refiner,
                    Err(error) => (self.tell)(Event::EnhanceFailed(error.to_string())),
                }
            }
            Command::RecordTake(path) => {
                self.end_take();
                self.take = Some(Take {
                    path,
                    began: Instant::now(),
                    writer: None,
                });
            }
            Command::EndTake => self.end_take(),
        }
    }

    /// Forgets where the driver was and what the motion counted from.
    fn new_driver(&mut self) {
        self.performer.restart();
        self.seen = false;
        if let Some(tracker) = &mut self.tracker {
            tracker.reset();
        }
    }

    /// Encodes one of the photos that wait, while there is nothing else to do.
    fn prepare_one(&mut self) {
        let waiting = |photo: &Photo| matches!(photo, Photo::Waiting(_));
        let next = self.photos.iter().find(|(_, photo)| waiting(photo));
        if let Some(id) = next.map(|(&id, _)| id) {
            self.prepare(id);
        }
    }

    fn prepare(&mut self, id: u64) {
        if let Some(photo) = self.photos.get_mut(&id)
            && let Photo::Waiting(views) = photo
        {
            let encoded = views.iter().map(|view| self.engine.encode(view)).collect();
            *photo = Photo::Ready(encoded);
        }
    }

    /// One frame: from the driver to the window.
    fn drive(&mut self, driving: Option<Driving>, shown: &Slot<Shown>) {
        let heard = driving.is_some();
        if heard {
            self.silent_since = Instant::now();
            self.at_rest = false;
        } else if self.at_rest && !self.refiner.as_ref().is_some_and(Refiner::has_news) {
            return;
        }
        let Some(id) = self.current else { return };
        self.prepare(id);
        let mut stages = Stages::default();
        let seen = self.look(driving, &mut stages);
        let Some(Photo::Ready(sources)) = self.photos.get(&id) else {
            return;
        };
        let at = seen
            .captured
            .saturating_duration_since(self.epoch)
            .as_secs_f64();
        let start = Instant::now();
        let faces = places(sources);
        let moved = self
            .performer
            .perform(&faces, seen.keypoints.clone(), &self.options, at);
        if !heard {
            self.at_rest = moved.iter().zip(&faces).all(|(moved, &face)| moved == face);
        }
        let mut old = shown.take().map(|old| old.predictions).unwrap_or_default();
        old.resize_with(sources.len(), Prediction::default);
        for ((source, moved), out) in sources.iter().zip(&moved).zip(&mut old) {
            self.engine.generate(source, moved, out);
        }
        if let Some(refiner) = &mut self.refiner
            && let Err(error) = refiner.step(id, &mut old)
        {
            self.refiner = None;
            (self.tell)(Event::EnhanceFailed(error.to_string()));
        }
        stages.generate = milliseconds(start);
        let match_score = self.performer.match_score(&faces);
        shown.put(Shown {
            photo: id,
            predictions: old,
            driver: seen.image,
            crop: seen.crop,
            found: seen.keypoints.is_some(),
            keypoints: seen.keypoints,
            match_score,
            captured: seen.captured,
            enhanced_every: self.refiner.as_ref().and_then(Refiner::every),
            stages,
        });
        (self.tell)(Event::Frame);
    }

    /// The driver's keypoints.
    fn look(&mut self, driving: Option<Driving>, stages: &mut Stages) -> Seen {
        let seen = match driving {
            None => Seen {
                captured: Instant::now(),
                image: None,
                crop: Rect::new(0, 0, 0, 0),
                keypoints: None,
            },
            Some(Driving::Pose {
                keypoints,
                captured,
            }) => Seen {
                captured,
                image: None,
                crop: Rect::new(0, 0, 0, 0),
                keypoints: Some(keypoints),
            },
            Some(Driving::Frame {
                mut image,
                captured,
            }) => {
                let start = Instant::now();
                if self.mirror {
                    image::imageops::flip_horizontal_in_place(&mut image);
                }
                let (crop, found, cut) = self.find(&image);
                let view = gpu::model_view(&image, crop, self.engine.config().image_size);
                stages.crop = milliseconds(start);
                let start = Instant::now();
                // An empty picture has no view, and no face.
                let view = view.ok().filter(|_| found);
                let keypoints = view.map(|view| self.engine.keypoints(&view));
                if let Some(keypoints) = keypoints.as_ref().filter(|_| cut) {
                    self.performer.cut(keypoints);
                }
                stages.keypoints = milliseconds(start);
                Seen {
                    captured,
                    image: Some(image),
                    crop,
                    keypoints,
                }
            }
        };
        if let Some(keypoints) = &seen.keypoints {
            self.record(keypoints, seen.captured);
        }
        seen
    }

    /// What of the driver's picture the networks are to see, whether the driver is there, and whether
    /// there was a cut. A driver
    /// in whom no face was ever found (a drawing, perhaps) counts as there, in the middle.
    fn find(&mut self, image: &RgbaImage) -> (Rect, bool, bool) {
        let whole = Rect::of_size(image.width(), image.height());
        match (self.crop, &mut self.tracker) {
            (DriverCrop::Face, Some(tracker)) => {
                let tracked = tracker.follow(image);
                self.seen |= tracked.found;
                (tracked.crop, tracked.found || !self.seen, tracked.cut)
            }
            (DriverCrop::Part(part), _) => (part.intersect(&whole), true, false),
            _ => (faces::middle(image.width(), image.height()), true, false),
        }
    }

    fn record(&mut self, keypoints: &Keypoints, captured: Instant) {
        let Some(take) = &mut self.take else { return };
        let model = &self.model;
        let written = match &mut take.writer {
            Some(writer) => {
                let seconds = captured.saturating_duration_since(take.began).as_secs_f64();
                writer.push(seconds, keypoints)
            }
            None => {
                take.began = captured;
                take::Writer::create(&take.path, take::Header::of(model, keypoints)).and_then(
                    |mut writer| {
                        writer.push(0.0, keypoints)?;
                        take.writer = Some(writer);
                        Ok(())
                    },
                )
            }
        };
        if let Err(error) = written {
            // What is on disk plays up to here.
            self.take = None;
            (self.tell)(Event::TakeFailed(error.to_string()));
        }
    }

    fn end_take(&mut self) {
        let Some(Take { path, writer, .. }) = self.take.take() else {
            return;
        };
        (self.tell)(match writer.map(take::Writer::finish) {
            Some(Ok(records)) => Event::TakeWritten { path, records },
            Some(Err(error)) => Event::TakeFailed(error.to_string()),
            None => Event::TakeFailed("the take is empty: no driver was seen".to_owned()),
        });
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        self.end_take();
    }
}

struct Seen {
    captured: Instant,
    image: Option<RgbaImage>,
    crop: Rect,
    keypoints: Option<Keypoints>,
}

fn places(sources: &[Source]) -> Vec<&Keypoints> {
    sources.iter().map(|source| &source.keypoints).collect()
}

fn milliseconds(since: Instant) -> f32 {
    since.elapsed().as_secs_f32() * 1000.0
}

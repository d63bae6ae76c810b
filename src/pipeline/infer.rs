//! The thread `infer`: what [`live`](super::live) describes, at work.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use image::RgbaImage;

use super::governor::Governor;
use super::live::{
    Command, DriverCrop, Driving, Event, LiveModel, Quality, Shown, Stages, model_name, panic_text,
    threads,
};
use super::refine::Refiner;
use super::rungs::{Engines, Rung, best, ladder};
use super::slot::Slot;
use crate::animate::load::Precision;
use crate::animate::take;
use crate::animate::{PerformOptions, Performer, Source};
use crate::device::Choice;
use crate::faces::{self, Tracker};
use crate::frame::{Prediction, SharedMemory};
use crate::geometry::Rect;
use crate::gpu;
use crate::model::Keypoints;

/// How long the thread waits for a frame before it looks at its commands again.
const PATIENCE: Duration = Duration::from_millis(40);
/// Without a frame for so long the driver counts as lost: the photo eases to rest.
const SILENCE: Duration = Duration::from_millis(400);
/// While frames come without a pause, one in so many is followed by the encoding of a photo that waits.
const ENCODE_EVERY: u64 = 8;

/// Until the window is gone.
pub(super) fn infer(
    model: &LiveModel,
    orders: &Receiver<Command>,
    frames: &Slot<Driving>,
    shown: &Slot<Shown>,
    tell: &dyn Fn(Event),
    wake: &dyn Fn(),
) {
    let engines = match Engines::load(best(model), threads(model), model.device) {
        Ok(engines) => engines,
        Err(error) => return tell(Event::Failed(error.to_string())),
    };
    let rungs = ladder(model, engines.quick());
    let name = model_name(model.weights.as_deref());
    tell(Event::Ready {
        model: name.clone(),
        size: engines.size(),
        device: engines.device(),
    });
    let mut stage = Stage::new(engines, rungs, model, tell);
    loop {
        loop {
            match orders.try_recv() {
                Ok(command) => stage.obey(command),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return,
            }
        }
        stage.change();
        stage.say_notice();
        let driving = frames.wait(PATIENCE);
        let heard = driving.is_some();
        if (heard || stage.silent_since.elapsed() > SILENCE) && stage.drive(driving, shown) {
            wake();
        }
        if heard {
            stage.taken += 1;
            stage.given(stage.taken + frames.dropped());
        }
        if !heard || stage.taken.is_multiple_of(ENCODE_EVERY) {
            stage.prepare_one();
        }
    }
}

/// What the thread owns.
struct Stage<'a> {
    engines: Engines,
    rungs: Vec<Rung>,
    governor: Governor,
    /// The next rung, on its way.
    loading: Option<(usize, Receiver<Result<Engines, String>>)>,
    threads: usize,
    device: Choice,
    quality: Quality,
    /// Frames taken of the driver.
    taken: u64,
    /// When the driver's frames were counted last, how many, and milliseconds between two.
    pace: (Instant, u64, f32),
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
    /// Where predictions stay, as far as that can be.
    shared: Option<Arc<SharedMemory>>,
    /// The predictions of a frame that the window had no time for, to be used again.
    spare: Vec<Prediction>,
    /// Whether this driver's face was found before.
    seen: bool,
    /// It was said that this driver's keypoints are another model's.
    refused: bool,
    /// When motion began: times count from here.
    epoch: Instant,
    silent_since: Instant,
    at_rest: bool,
}

struct Photo {
    /// Each face as the model's networks see it.
    views: Vec<RgbaImage>,
    /// What the engines at work make of them; none while they wait to be encoded.
    sources: Option<Vec<Source>>,
}

/// The take being recorded.
struct Take {
    path: PathBuf,
    began: Instant,
    /// None until the first keypoints say what kind they are.
    writer: Option<take::Writer>,
}

impl<'a> Stage<'a> {
    fn new(engines: Engines, rungs: Vec<Rung>, model: &LiveModel, tell: &'a dyn Fn(Event)) -> Self {
        let tracker = Tracker::new()
            .map_err(|error| tracing::warn!("{error}: the driver's face is not followed"))
            .ok();
        Self {
            tracker,
            governor: Governor::new(rungs.len()),
            engines,
            rungs,
            loading: None,
            threads: threads(model),
            device: model.device,
            quality: Quality::default(),
            taken: 0,
            pace: (Instant::now(), 0, 0.0),
            tell,
            performer: Performer::default(),
            options: PerformOptions::default(),
            crop: DriverCrop::default(),
            mirror: false,
            photos: HashMap::new(),
            current: None,
            take: None,
            refiner: None,
            shared: None,
            spare: Vec::new(),
            seen: false,
            refused: false,
            epoch: Instant::now(),
            silent_since: Instant::now(),
            at_rest: true,
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Photo { id, views } => {
                let sources = None;
                self.photos.insert(id, Photo { views, sources });
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
                let photo = self.current.and_then(|id| self.photos.get(&id));
                if let Some(sources) = photo.and_then(|photo| photo.sources.as_ref()) {
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
                self.share();
            }
            Command::Share(memory) => {
                self.shared = Some(memory);
                self.share();
            }
            Command::Hold(target) => self.governor.aim(target),
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

    /// Leaves predictions on the card, unless something is to be added to them here.
    fn share(&mut self) {
        let memory = self.shared.as_ref().filter(|_| self.refiner.is_none());
        if let Err(why) = self.engines.share(memory) {
            self.shared = None;
            let notice = format!("predictions are copied, not left on the card: {why}");
            (self.tell)(Event::Notice(notice));
        }
    }

    /// Forgets where the driver was and what the motion counted from.
    fn new_driver(&mut self) {
        self.performer.restart();
        (self.seen, self.refused) = (false, false);
        if let Some(tracker) = &mut self.tracker {
            tracker.reset();
        }
    }

    /// Encodes one of the photos that wait.
    fn prepare_one(&mut self) {
        let next = self
            .photos
            .iter()
            .find(|(_, photo)| photo.sources.is_none());
        if let Some(id) = next.map(|(&id, _)| id) {
            self.prepare(id);
        }
    }

    fn prepare(&mut self, id: u64) {
        if let Some(photo) = self.photos.get_mut(&id)
            && photo.sources.is_none()
        {
            let views = photo.views.iter();
            photo.sources = Some(views.map(|view| self.engines.encode(view)).collect());
        }
    }

    /// The driver has given so many frames by now.
    fn given(&mut self, frames: u64) {
        let (since, before, _) = self.pace;
        let seconds = since.elapsed().as_secs_f32();
        if seconds > 1.0 {
            let interval = 1000.0 * seconds / frames.saturating_sub(before).max(1) as f32;
            self.pace = (Instant::now(), frames, interval);
        }
    }

    /// Tells the governor what a frame took, and starts what it asks for.
    fn govern(&mut self, ms: f32) {
        let now = self.epoch.elapsed().as_secs_f64();
        let wanted = self.governor.frame(now, ms, self.pace.2);
        let holds = self.governor.holds();
        if holds != self.quality.holds {
            self.quality.holds = holds;
            self.say_quality();
        }
        let Some(rung) = wanted.filter(|_| self.loading.is_none()) else {
            return;
        };
        // A take is of one model's keypoints.
        if self.take.is_some() && self.rungs[rung].weights != self.engines.rung.weights {
            return;
        }
        let (next, threads, device) = (self.rungs[rung].clone(), self.threads, self.device);
        let (tell, answer) = sync_channel(1);
        let load = move || {
            let load = AssertUnwindSafe(|| Engines::load(next, threads, device));
            let loaded = std::panic::catch_unwind(load)
                .map_err(|panic| panic_text(&*panic))
                .and_then(|loaded| loaded.map_err(|error| error.to_string()));
            let _ = tell.send(loaded);
        };
        let name = "load-model".to_owned();
        match std::thread::Builder::new().name(name).spawn(load) {
            Ok(_) => self.loading = Some((rung, answer)),
            Err(_) => self.governor.refuse(rung),
        }
    }

    /// Goes over to the engines that were loaded.
    fn change(&mut self) {
        let Some((rung, answer)) = &self.loading else {
            return;
        };
        let rung = *rung;
        match answer.try_recv() {
            Err(TryRecvError::Empty) => return,
            Ok(Ok(engines)) => {
                let same = engines.rung.weights == self.engines.rung.weights;
                // A take may have begun while they were loaded.
                if same || self.take.is_none() {
                    self.run_on(engines, rung);
                    if !same {
                        // Another model sees other keypoints.
                        self.performer.restart();
                    }
                }
            }
            Ok(Err(why)) => {
                tracing::info!("a cheaper way of running cannot be had: {why}");
                self.governor.refuse(rung);
            }
            Err(TryRecvError::Disconnected) => self.governor.refuse(rung),
        }
        self.loading = None;
    }

    fn run_on(&mut self, engines: Engines, rung: usize) {
        self.engines = engines;
        self.share();
        for photo in self.photos.values_mut() {
            photo.sources = None;
        }
        let now = self.epoch.elapsed().as_secs_f64();
        self.governor.arrive(rung, now);
        self.say_quality();
    }

    /// Says that the networks run elsewhere than they were to, when that becomes so.
    fn say_notice(&mut self) {
        if let Some(notice) = self.engines.notice() {
            (self.tell)(Event::Notice(notice));
            self.say_quality();
        }
    }

    fn say_quality(&mut self) {
        let rung = &self.engines.rung;
        self.quality = Quality {
            lowered: self.governor.at() > 0,
            model: (rung.weights != self.rungs[0].weights)
                .then(|| model_name(rung.weights.as_deref())),
            half: rung.half,
            bf16: rung.precision == Precision::Bf16,
            holds: self.quality.holds,
            device: self.engines.device(),
        };
        (self.tell)(Event::Quality(self.quality.clone()));
    }

    /// One frame: from the driver to the window. False when there is nothing new to be seen.
    fn drive(&mut self, driving: Option<Driving>, shown: &Slot<Shown>) -> bool {
        let heard = driving.is_some();
        if heard {
            self.silent_since = Instant::now();
            self.at_rest = false;
        } else if self.at_rest && !self.refiner.as_ref().is_some_and(Refiner::has_news) {
            return false;
        }
        let Some(id) = self.current else { return false };
        self.prepare(id);
        let mut stages = Stages::default();
        let seen = self.look(driving, &mut stages);
        let sources = self
            .photos
            .get(&id)
            .and_then(|photo| photo.sources.as_ref());
        let Some(sources) = sources else { return false };
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
        // Never what waits to be shown: a slow window would find the slot empty while the next frame is made.
        let mut predictions = std::mem::take(&mut self.spare);
        predictions.resize_with(sources.len(), Prediction::default);
        let moves: Vec<_> = sources.iter().zip(&moved).collect();
        self.engines.generate(&moves, &mut predictions);
        if let Some(refiner) = &mut self.refiner
            && let Err(error) = refiner.step(id, &mut predictions)
        {
            self.refiner = None;
            (self.tell)(Event::EnhanceFailed(error.to_string()));
            let _ = self.engines.share(self.shared.as_ref());
        }
        stages.generate = milliseconds(start);
        let match_score = self.performer.match_score(&faces);
        let overtaken = shown.put(Shown {
            photo: id,
            predictions,
            driver: seen.image,
            crop: seen.crop,
            found: seen.keypoints.is_some(),
            keypoints: seen.keypoints,
            match_score,
            captured: seen.captured,
            enhanced_every: self.refiner.as_ref().and_then(Refiner::every),
            stages,
        });
        self.spare = overtaken.map(|old| old.predictions).unwrap_or_default();
        if heard {
            self.govern(stages.total());
        }
        true
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
                keypoints: Some(keypoints).filter(|keypoints| self.understands(keypoints)),
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
                let view = gpu::model_view(&image, crop, self.engines.size());
                stages.crop = milliseconds(start);
                let start = Instant::now();
                // An empty picture has no view, and no face.
                let view = view.ok().filter(|_| found);
                let keypoints = view.map(|view| self.engines.keypoints(&view));
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

    /// Whether keypoints are such as the model's; that they are not is said once.
    fn understands(&mut self, keypoints: &Keypoints) -> bool {
        let config = self.engines.config();
        let (has, wants) = (keypoints.value.len(), config.num_kp);
        let fits = has == wants && keypoints.jacobian.is_some() == config.estimate_jacobian;
        if !fits && !std::mem::replace(&mut self.refused, true) {
            let name = model_name(self.engines.rung.weights.as_deref());
            (self.tell)(Event::Notice(format!(
                "the take was recorded with another kind of model than {name} ({has} keypoints, not {wants}): choose that model, or another take"
            )));
        }
        fits
    }

    /// What of the driver's picture the networks are to see, whether the driver is there, and whether there was a
    /// cut. A driver in whom no face was ever found (a drawing, perhaps) counts as there, in the middle.
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
        let model = model_name(self.engines.rung.weights.as_deref());
        let written = match &mut take.writer {
            Some(writer) => {
                let seconds = captured.saturating_duration_since(take.began).as_secs_f64();
                writer.push(seconds, keypoints)
            }
            None => {
                take.began = captured;
                take::Writer::create(&take.path, take::Header::of(&model, keypoints)).and_then(
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
    sources.iter().map(Source::keypoints).collect()
}

fn milliseconds(since: Instant) -> f32 {
    since.elapsed().as_secs_f32() * 1000.0
}

//! Drivers for the live path: a video, a take or a camera, each on a thread of its own, into the slot
//! that the networks take from.
//!
//! A clip plays at its own rate and starts again at its end, like a take; what the networks are too slow
//! for is dropped by the slot, not queued. Dropping a [`Driver`] tells its thread to stop and does not
//! wait for it: a dead camera cannot hold the window up.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use image::RgbaImage;

use super::live::{Driving, panic_text};
use super::slot::Slot;
use crate::animate::take;
use crate::media::camera::{self, Camera, Wish};
use crate::media::{self, ReadOptions};

/// Events that may wait; a driver has little to say.
const EVENTS: usize = 64;
/// The longer side of a clip's frames as they are played: the networks see 256 or 512 of it.
const LONGEST: u32 = 720;

/// Where a driver comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DriverSource {
    /// A video, a folder of pictures, or a picture.
    Clip(PathBuf),
    /// A recorded take.
    Take(PathBuf),
    /// The camera of that name, or the first when it is empty.
    Camera(String),
}

/// What a driver says.
#[derive(Clone, Debug, PartialEq)]
pub enum DriverEvent {
    /// It plays.
    Started {
        /// How its pictures come, for people: "640x480 YUYV, 30 fps".
        what: String,
    },
    /// Something that the user should know; it goes on.
    Notice(String),
    /// Nothing comes any more; it is tried again until there is.
    Lost(String),
    /// It comes again.
    Back,
    /// It cannot go on.
    Failed(String),
}

/// A playing driver.
#[derive(Debug)]
pub struct Driver {
    stop: Arc<AtomicBool>,
    frames: Arc<AtomicU64>,
    events: Receiver<DriverEvent>,
    /// Stops when it is dropped.
    _camera: Option<Camera>,
}

impl Driver {
    /// Plays into `slot`. `wake` is called when there is an event.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        source: DriverSource,
        slot: Arc<Slot<Driving>>,
        wake: impl Fn() + Send + 'static,
    ) -> Result<Self, std::io::Error> {
        let (tell, events) = sync_channel(EVENTS);
        let player = Player {
            slot,
            stop: Arc::default(),
            frames: Arc::default(),
            tell,
            wake: Box::new(wake),
        };
        let mut driver = Self {
            stop: Arc::clone(&player.stop),
            frames: Arc::clone(&player.frames),
            events,
            _camera: None,
        };
        if let DriverSource::Camera(name) = &source {
            driver._camera = player.camera(name)?;
            return Ok(driver);
        }
        let work = move || {
            let run = std::panic::AssertUnwindSafe(|| match &source {
                DriverSource::Clip(path) => player.clip(path).map_err(|e| e.to_string()),
                DriverSource::Take(path) => player.take(path).map_err(|e| e.to_string()),
                DriverSource::Camera(_) => Ok(()),
            });
            let why = match std::panic::catch_unwind(run) {
                Ok(Ok(())) => return,
                Ok(Err(why)) => why,
                Err(panic) => format!("the driver thread failed: {}", panic_text(&*panic)),
            };
            player.say(DriverEvent::Failed(why));
        };
        std::thread::Builder::new()
            .name("driver".to_owned())
            .spawn(work)?;
        Ok(driver)
    }

    /// Frames given so far.
    pub fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }

    /// What it said since the last call.
    pub fn events(&self) -> impl Iterator<Item = DriverEvent> {
        self.events.try_iter()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// What the thread owns.
struct Player {
    slot: Arc<Slot<Driving>>,
    stop: Arc<AtomicBool>,
    frames: Arc<AtomicU64>,
    tell: SyncSender<DriverEvent>,
    wake: Box<dyn Fn() + Send>,
}

impl Player {
    fn clip(&self, path: &Path) -> Result<(), media::Error> {
        let info = media::clip::open(path, &ReadOptions::default())?
            .info()
            .clone();
        let longest = info.width.max(info.height).max(1);
        let fit = |side: u32| (side * LONGEST / longest).max(1);
        let options = ReadOptions {
            size: (longest > LONGEST).then(|| (fit(info.width), fit(info.height))),
            ..ReadOptions::default()
        };
        let mut source = media::clip::open(path, &options)?;
        let fps = source.info().fps.as_f64();
        let what = format!("{}x{}, {fps:.0} fps", info.width, info.height);
        self.say(DriverEvent::Started { what });
        let mut clock = Clock::start();
        let mut spent = RgbaImage::default();
        let mut played = 0u64;
        while !self.stopped() {
            let mut image = std::mem::take(&mut spent);
            if !source.read(&mut image)? {
                source.rewind()?;
                spent = image;
                continue;
            }
            let captured = clock.wait(Duration::from_secs_f64(played as f64 / fps));
            played += 1;
            if let Some(Driving::Frame { image, .. }) =
                self.give(Driving::Frame { image, captured })
            {
                spent = image;
            }
        }
        Ok(())
    }

    fn take(&self, path: &Path) -> Result<(), take::Error> {
        let mut reader = take::Reader::open(path)?;
        if reader.cut_short() {
            let text = format!("{} was cut short: it plays up to there", path.display());
            self.say(DriverEvent::Notice(text));
        }
        let what = format!("{} moments", reader.records());
        self.say(DriverEvent::Started { what });
        let mut clock = Clock::start();
        while !self.stopped() {
            match reader.read()? {
                Some((seconds, keypoints)) => {
                    // Times are a stranger's: never wait long for one, and never for one in the past.
                    let due = Duration::try_from_secs_f64(seconds).unwrap_or_default();
                    let captured = clock.wait(due);
                    self.give(Driving::Pose {
                        keypoints,
                        captured,
                    });
                }
                None => {
                    reader.rewind()?;
                    clock = Clock::start();
                    // A take of one moment is still, and need not be played a million times a second.
                    std::thread::sleep(Duration::from_millis(40));
                }
            }
        }
        Ok(())
    }

    /// Starts the camera of that name; one that is not connected now may be later, and is waited for.
    fn camera(self, name: &str) -> std::io::Result<Option<Camera>> {
        let cameras = camera::list();
        let named = |camera: &&camera::CameraInfo| camera.name == name || name.is_empty();
        let which = match cameras.iter().find(named) {
            Some(camera) => camera.clone(),
            None if name.is_empty() => {
                let why = "no camera is connected: plug one in, or choose another driver";
                self.say(DriverEvent::Failed(why.to_owned()));
                return Ok(None);
            }
            // It says so itself, and waits for it.
            None => camera::CameraInfo {
                index: 0,
                name: name.to_owned(),
                place: String::new(),
                formats: String::new(),
            },
        };
        let on = move |event: camera::Event<'_>| match event {
            camera::Event::Opened(opened) => self.say(DriverEvent::Started {
                what: format!(
                    "{}x{} {:?}, {:.0} fps",
                    opened.width, opened.height, opened.format, opened.fps
                ),
            }),
            camera::Event::Frame { image, captured } => {
                let image = std::mem::take(image);
                self.give(Driving::Frame { image, captured });
            }
            camera::Event::Stalled => self.say(DriverEvent::Lost(
                "the camera has sent nothing for two seconds: it is being opened again".to_owned(),
            )),
            camera::Event::Lost(error) => self.say(DriverEvent::Lost(error.to_string())),
            camera::Event::Resumed => self.say(DriverEvent::Back),
        };
        Camera::start(&which, &Wish::default(), Box::new(on)).map(Some)
    }

    fn give(&self, driving: Driving) -> Option<Driving> {
        self.frames.fetch_add(1, Ordering::Relaxed);
        self.slot.put(driving)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn say(&self, event: DriverEvent) {
        let _ = self.tell.try_send(event);
        (self.wake)();
    }
}

/// Keeps a rate.
struct Clock {
    start: Instant,
}

impl Clock {
    /// The longest pause that is waited for.
    const LONGEST: Duration = Duration::from_secs(2);

    fn start() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    /// Waits until `due` after the start and says what time it is then. Who is late by more than a
    /// moment does not hurry to catch up: time starts again from here.
    fn wait(&mut self, due: Duration) -> Instant {
        let elapsed = self.start.elapsed();
        if let Some(pause) = due.checked_sub(elapsed) {
            let skipped = pause.saturating_sub(Self::LONGEST);
            self.start = self.start.checked_sub(skipped).unwrap_or(self.start);
            std::thread::sleep(pause.min(Self::LONGEST));
        } else if elapsed.saturating_sub(due) > Duration::from_millis(200) {
            self.start += elapsed.saturating_sub(due);
        }
        Instant::now()
    }
}

//! Cameras: which there are, and a stream of upright pictures from one of them that survives what cameras do.
//!
//! ```text
//! driver --capture thread: read, convert--> bounded channel --"camera" thread: watchdog--> your closure
//! ```
//!
//! A driver may block for ever. So the thread that reads it is never waited for: when nothing came for two
//! seconds it is let go of, and another tries again with growing pauses. The same happens when a camera is
//! unplugged, busy or forbidden, until it is back: under its name, wherever it is plugged in.
//!
//! On Linux cameras are read through V4L2 itself, elsewhere through `nokhwa`. (nokhwa reads V4L2 too, but
//! knows no GREY, no padded rows, no colour space and no time limit, and refuses cameras of 29.97 frames a
//! second. `MIMIC_CAMERA=nokhwa` asks for it all the same: so what runs on other systems can be tested here.)

mod error;
mod mode;
mod native;
#[cfg(target_os = "linux")]
mod v4l2;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, LazyLock};
use std::thread::Builder;
use std::time::{Duration, Instant};

use image::RgbaImage;

use super::pixels::to_rgba;
use crate::frame::{PixelFormat, Raw};

pub use error::Error;
pub use mode::Wish;
#[cfg(target_os = "linux")]
pub(super) use v4l2::nodes;

/// The variable that chooses between V4L2 and nokhwa on Linux.
pub const VARIABLE: &str = "MIMIC_CAMERA";

/// A camera that is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CameraInfo {
    /// The system's number for it now; another after it was plugged in again.
    pub index: u32,
    /// What its maker calls it.
    pub name: String,
    /// Where it is plugged in, as far as the system says: tells two of the same name apart.
    pub place: String,
    /// What it offers, for people: "YUYV, MJPEG up to 1280x720". Empty where the system does not say.
    pub formats: String,
}

/// The cameras that are connected, in the system's order. Takes two seconds at most: none when a driver does
/// not answer until then.
pub fn list() -> Vec<CameraInfo> {
    static ASKING: LazyLock<Arc<AtomicUsize>> = LazyLock::new(Arc::default);
    if ASKING.load(Ordering::Relaxed) >= MOST_STUCK {
        return Vec::new();
    }
    let alive = Alive::count(&ASKING);
    let (send, receive) = sync_channel(1);
    let asked = Builder::new()
        .name("camera-list".to_owned())
        .spawn(move || {
            let _ = send.send(list_now());
            drop(alive);
        });
    match asked {
        Ok(_) => receive.recv_timeout(STALLED_AFTER).unwrap_or_default(),
        Err(_) => Vec::new(),
    }
}

/// What happens to a camera, in order.
#[derive(Debug)]
pub enum Event<'a> {
    /// It streams; again each time it was opened anew.
    Opened(Opened),
    /// A picture.
    Frame {
        /// Upright and opaque. Take it (`mem::take`, or better `mem::swap` with a spent one, whose memory
        /// is then used again).
        image: &'a mut RgbaImage,
        /// When it arrived from the driver.
        captured: Instant,
    },
    /// Nothing has come for two seconds. It is being opened anew.
    Stalled,
    /// It failed. Unless the reason changes this is said once; it is tried again until it is back.
    Lost(Error),
    /// Pictures come again after [`Event::Stalled`] or [`Event::Lost`]; the first follows.
    Resumed,
}

/// How a camera was opened.
#[derive(Clone, Debug, PartialEq)]
pub struct Opened {
    /// The camera's name.
    pub name: String,
    /// Width of its pictures as the driver says it.
    pub width: u32,
    /// Height of them.
    pub height: u32,
    /// Frames per second as the driver says it, 0 if it does not.
    pub fps: f32,
    /// How they come.
    pub format: PixelFormat,
}

/// A camera at work. Dropped, it stops within a tenth of a second; dropping never waits.
#[derive(Debug)]
pub struct Camera {
    stop: Arc<AtomicBool>,
}

impl Camera {
    /// Starts the thread "camera", which opens the camera and calls `on` for all that happens.
    ///
    /// `on` is called on that thread and should be quick: while it is busy, frames are dropped. After the
    /// camera is dropped one call may still be under way. Fails only when no thread can be started.
    pub fn start(
        which: &CameraInfo,
        wish: &Wish,
        on: Box<dyn FnMut(Event<'_>) + Send>,
    ) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut watch = Watch {
            which: which.clone(),
            wish: wish.clone(),
            on,
            stop: Arc::clone(&stop),
            capturing: Arc::default(),
            said: None,
        };
        Builder::new()
            .name("camera".to_owned())
            .spawn(move || watch.run())?;
        Ok(Self { stop })
    }
}

impl Drop for Camera {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Without a frame for so long, a camera counts as stalled.
const STALLED_AFTER: Duration = Duration::from_secs(2);

/// Opening takes longer: Windows alone may need seconds, and macOS asks the user first.
const OPENING: Duration = Duration::from_secs(8);

/// How often the threads look whether they are still wanted.
const TICK: Duration = Duration::from_millis(100);

/// Pauses between attempts: the first, doubled each time up to the last.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(2));

/// Threads stuck in a driver before no more are started for it.
const MOST_STUCK: usize = 3;

/// Frames that do not convert before the camera is given up on; one or two happen when streaming starts.
const MOST_BROKEN: u32 = 30;

/// What the capture thread tells.
enum Message {
    Opened(Opened),
    Frame(RgbaImage, Instant),
    Failed(Error),
}

/// How one attempt ended.
enum End {
    Stopped,
    Stalled,
    Failed(Error),
}

/// The thread "camera".
struct Watch {
    which: CameraInfo,
    wish: Wish,
    on: Box<dyn FnMut(Event<'_>) + Send>,
    stop: Arc<AtomicBool>,
    /// Capture threads that live, abandoned ones among them.
    capturing: Arc<AtomicUsize>,
    /// What was said last about why there are no pictures; None while they come.
    said: Option<Silence>,
}

#[derive(PartialEq)]
enum Silence {
    Stalled,
    Lost(Error),
}

impl Watch {
    fn run(&mut self) {
        let mut pause = PAUSES.0;
        while !self.stopped() {
            let (end, frames) = self.attempt();
            let silence = match end {
                End::Stopped => return,
                End::Stalled => Silence::Stalled,
                End::Failed(error) => Silence::Lost(error),
            };
            if self.said.as_ref() != Some(&silence) {
                match &silence {
                    Silence::Stalled => (self.on)(Event::Stalled),
                    Silence::Lost(error) => (self.on)(Event::Lost(error.clone())),
                }
                self.said = Some(silence);
            }
            if frames > 0 {
                pause = PAUSES.0;
            }
            let until = Instant::now() + pause;
            while Instant::now() < until && !self.stopped() {
                std::thread::sleep(TICK.min(until.saturating_duration_since(Instant::now())));
            }
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Opens the camera on a thread of its own and passes on what it gives, until it fails, falls silent or
    /// is no longer wanted; also tells how many frames came. Then that thread is let go of.
    fn attempt(&mut self) -> (End, u64) {
        if self.capturing.load(Ordering::Relaxed) >= MOST_STUCK {
            return (End::Stalled, 0);
        }
        let (send, messages) = sync_channel(2);
        let (spent, recycled) = sync_channel(2);
        let abandoned = Arc::new(AtomicBool::new(false));
        let capture = Capture {
            which: self.which.clone(),
            wish: self.wish.clone(),
            messages: send,
            recycled,
            abandoned: Arc::clone(&abandoned),
            _alive: Alive::count(&self.capturing),
        };
        let started = Builder::new()
            .name("camera-capture".to_owned())
            .spawn(move || capture.run());
        if let Err(error) = started {
            return (End::Failed(self.driver(&error.to_string())), 0);
        }
        let mut frames = 0;
        let mut limit = OPENING;
        let mut last = Instant::now();
        let end = loop {
            if self.stopped() {
                break End::Stopped;
            }
            match messages.recv_timeout(TICK) {
                Ok(Message::Opened(opened)) => {
                    (self.on)(Event::Opened(opened));
                    // The first frame takes longer than the next.
                    limit = STALLED_AFTER * 2;
                    last = Instant::now();
                }
                Ok(Message::Frame(mut image, captured)) => {
                    if self.said.take().is_some() {
                        (self.on)(Event::Resumed);
                    }
                    (self.on)(Event::Frame {
                        image: &mut image,
                        captured,
                    });
                    // Full or gone: the next frame gets new memory.
                    let _ = spent.try_send(image);
                    frames += 1;
                    limit = STALLED_AFTER;
                    last = Instant::now();
                }
                Ok(Message::Failed(error)) => break End::Failed(error),
                Err(RecvTimeoutError::Timeout) if last.elapsed() > limit => break End::Stalled,
                Err(RecvTimeoutError::Timeout) => {}
                // It panicked: drivers say things that libraries do not expect.
                Err(RecvTimeoutError::Disconnected) => {
                    break End::Failed(self.driver("its driver gave an unexpected answer"));
                }
            }
        };
        abandoned.store(true, Ordering::Relaxed);
        (end, frames)
    }

    fn driver(&self, why: &str) -> Error {
        Error::Driver {
            name: self.which.name.clone(),
            why: why.to_owned(),
        }
    }
}

/// Counts a thread for as long as it lives.
struct Alive(Arc<AtomicUsize>);

impl Alive {
    fn count(counter: &Arc<AtomicUsize>) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(counter))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The thread "camera-capture".
struct Capture {
    which: CameraInfo,
    wish: Wish,
    messages: SyncSender<Message>,
    recycled: Receiver<RgbaImage>,
    abandoned: Arc<AtomicBool>,
    _alive: Alive,
}

/// An opened camera.
trait Stream {
    /// How it was opened.
    fn opened(&self) -> Opened;

    /// Waits for a frame and hands it out; false when there was none within about a [`TICK`]. Of some
    /// drivers it blocks for longer, or for ever.
    fn next(&mut self, each: &mut dyn FnMut(&Raw<'_>)) -> Result<bool, Error>;
}

impl Capture {
    fn run(&self) {
        if let Err(error) = self.stream() {
            // Nobody listens any more when this thread was given up on.
            let _ = self.messages.send(Message::Failed(error));
        }
    }

    fn stream(&self) -> Result<(), Error> {
        let found = find(&self.which, list_now()).ok_or_else(|| Error::Unplugged {
            name: self.which.name.clone(),
        })?;
        let mut stream = open(&found, &self.wish)?;
        let _ = self.messages.send(Message::Opened(stream.opened()));
        let mut broken = 0;
        while !self.abandoned.load(Ordering::Relaxed) {
            let mut wrong = None;
            let mut good = false;
            stream.next(&mut |raw| {
                let captured = Instant::now();
                let mut image = self.recycled.try_recv().unwrap_or_default();
                match to_rgba(raw, &mut image) {
                    Ok(()) => {
                        good = true;
                        match self.messages.try_send(Message::Frame(image, captured)) {
                            Ok(()) | Err(TrySendError::Disconnected(_)) => {}
                            Err(TrySendError::Full(_)) => tracing::trace!("a frame was dropped"),
                        }
                    }
                    Err(malformed) => wrong = Some(malformed),
                }
            })?;
            if good {
                broken = 0;
            }
            if let Some(malformed) = wrong {
                tracing::debug!("{}: {malformed}", self.which.name);
                broken += 1;
                if broken >= MOST_BROKEN {
                    return Err(Error::Broken {
                        name: self.which.name.clone(),
                        why: malformed.to_string(),
                    });
                }
            }
        }
        Ok(())
    }
}

/// The camera among those connected now: at its place or, plugged in elsewhere, by its name.
fn find(which: &CameraInfo, connected: Vec<CameraInfo>) -> Option<CameraInfo> {
    let rank = |camera: &CameraInfo| (camera.place == which.place, camera.index == which.index);
    connected
        .into_iter()
        .filter(|camera| camera.name == which.name)
        .max_by_key(rank)
}

#[cfg(target_os = "linux")]
fn through_nokhwa() -> bool {
    std::env::var_os(VARIABLE).is_some_and(|value| value == "nokhwa")
}

fn list_now() -> Vec<CameraInfo> {
    #[cfg(target_os = "linux")]
    if !through_nokhwa() {
        return v4l2::list();
    }
    native::list()
}

fn open(camera: &CameraInfo, wish: &Wish) -> Result<Box<dyn Stream>, Error> {
    #[cfg(target_os = "linux")]
    if !through_nokhwa() {
        return Ok(Box::new(v4l2::open(camera, wish)?));
    }
    Ok(Box::new(native::open(camera, wish)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn camera(index: u32, name: &str, place: &str) -> CameraInfo {
        CameraInfo {
            index,
            name: name.to_owned(),
            place: place.to_owned(),
            formats: String::new(),
        }
    }

    #[test]
    fn a_camera_is_found_again_wherever_it_is_plugged_in() {
        let mine = camera(0, "Cam", "usb-1");
        let other = camera(0, "Other", "usb-1");
        let moved = camera(3, "Cam", "usb-2");
        let back = camera(2, "Cam", "usb-1");
        assert_eq!(find(&mine, vec![other.clone()]), None);
        let found = find(&mine, vec![other, moved.clone()]);
        assert_eq!(found, Some(moved.clone()));
        assert_eq!(find(&mine, vec![back.clone(), moved]), Some(back));
    }

    #[test]
    fn listing_cameras_takes_no_longer_than_it_says() {
        let start = Instant::now();
        list();
        assert!(start.elapsed() < STALLED_AFTER + Duration::from_secs(1));
    }

    #[test]
    fn a_camera_that_is_not_there_is_lost_in_one_sentence_and_dropped_at_once() {
        let (send, receive) = sync_channel(4);
        let nowhere = camera(77, "No Such Camera", "nowhere");
        let on = Box::new(move |event: Event<'_>| {
            let Event::Lost(error) = event else {
                panic!("{event:?}");
            };
            let _ = send.try_send(error);
        });
        let camera = Camera::start(&nowhere, &Wish::default(), on).unwrap();
        let error = receive.recv_timeout(Duration::from_secs(5)).unwrap();
        assert_eq!(
            error.to_string(),
            "No Such Camera is not connected: plug it in, it will go on by itself"
        );
        // It is tried again and said once.
        assert!(receive.recv_timeout(Duration::from_millis(600)).is_err());
        let start = Instant::now();
        drop(camera);
        assert!(start.elapsed() < Duration::from_millis(50));
    }
}

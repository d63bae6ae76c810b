//! What is shown live, recorded: pictures whenever there is one, out comes an mp4 of a constant rate with the
//! microphone's sound.
//!
//! Every slot of the result shows the last picture that was there at its time: a picture that comes twice in a
//! slot counts once, slots without one repeat the last. While it is being recorded the file is made of
//! fragments, so that an encoder that dies (a full disk, say) costs two seconds and not the recording.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use image::RgbaImage;

use super::clip::Fps;
use super::encode::Encoded;
use super::error::Error;
use super::fit::fit;
use super::microphone::Listening;
use super::probe::length;
use super::provenance::Provenance;
use super::sink::{FrameSink as _, WriteOptions, check_name, check_size};

/// Whether a recording has sound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Microphone {
    /// Silent.
    Off,
    /// The system's default microphone, where ffmpeg can record from it; silent, with a reason, where not.
    #[default]
    On,
}

/// What has been recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// The file.
    pub path: PathBuf,
    /// Its length.
    pub seconds: f64,
    /// Frames in it.
    pub frames: u64,
    /// Pictures that were left out because the encoder was behind.
    pub dropped: u64,
    /// Why there is no sound although the microphone was asked for.
    pub silent: Option<String>,
}

/// A recording on its way. Dropped without [`Recorder::finish`], it is completed all the same, unless the
/// program ends before that.
#[derive(Debug)]
pub struct Recorder {
    pictures: SyncSender<(RgbaImage, Instant)>,
    spent: Receiver<RgbaImage>,
    /// Pictures in the queue, at work or spent.
    made: usize,
    dropped: u64,
    failed: Arc<Mutex<Option<String>>>,
    said: Arc<Mutex<Option<Provenance>>>,
    thread: JoinHandle<Result<Summary, Error>>,
}

/// Pictures between the caller and the encoder: 4 are 130 ms at 30 a second, and 18 MB at 858x1280.
const QUEUE: usize = 4;

/// How long no picture comes before the last one is repeated without waiting for the next.
const GAP: Duration = Duration::from_millis(500);

impl Recorder {
    /// Starts recording to an `.mp4`, `width` x `height` at `fps`; its time begins with the first picture.
    ///
    /// Fails when the file cannot be written or there is no ffmpeg. What fails later is in
    /// [`Recorder::error`].
    pub fn start(
        path: &Path,
        width: u32,
        height: u32,
        fps: Fps,
        microphone: Microphone,
        provenance: Option<Provenance>,
    ) -> Result<Self, Error> {
        let options = WriteOptions {
            width,
            height,
            fps,
            audio_from: None,
            inputs: Vec::new(),
            provenance,
        };
        check_size(path, &options)?;
        check_name(path)?;
        let encoded = Encoded::live(path, &options)?;
        let (sound, silent) = match microphone {
            Microphone::Off => (None, None),
            Microphone::On => match Listening::start(path) {
                Ok(sound) => (Some(sound), None),
                Err(why) => (None, Some(why)),
            },
        };
        let (pictures, queue) = sync_channel(QUEUE);
        let (back, spent) = sync_channel(QUEUE + 2);
        let work = Work {
            encoded,
            sound,
            silent,
            path: path.to_owned(),
            size: (width, height),
            fps,
            queue,
            back,
            start: None,
            written: 0,
            said: Arc::default(),
        };
        let said = Arc::clone(&work.said);
        let failed = Arc::<Mutex<Option<String>>>::default();
        let tell = Arc::clone(&failed);
        let thread = Builder::new()
            .name("record".to_owned())
            .spawn(move || {
                let result = work.run();
                if let Err(error) = &result {
                    *tell.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
                }
                result
            })
            .map_err(|e| Error::write(path, &e))?;
        Ok(Self {
            pictures,
            spent,
            made: 0,
            dropped: 0,
            failed,
            said,
            thread,
        })
    }

    /// Adds the picture that is shown from `at` on. Never waits: when the encoder is behind it is left out.
    ///
    /// A picture of another size is fitted in, with black beside it.
    pub fn push(&mut self, picture: &RgbaImage, at: Instant) {
        let mut copy = match self.spent.try_recv() {
            Ok(spent) => spent,
            Err(_) if self.made < QUEUE + 2 => {
                self.made += 1;
                RgbaImage::new(0, 0)
            }
            Err(_) => {
                self.dropped += 1;
                return;
            }
        };
        // Keeps the memory that is there.
        copy.clone_from(picture);
        match self.pictures.try_send((copy, at)) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                self.made -= 1;
                self.dropped += 1;
            }
            // The thread has ended, with an error that is polled for.
            Err(TrySendError::Disconnected(_)) => {}
        }
    }

    /// Takes what the recording says of itself from now on, on any thread: when another photo comes into it, say.
    pub fn sayer(&self) -> impl FnOnce(Provenance) + Send + 'static {
        let said = Arc::clone(&self.said);
        move |new| *said.lock().unwrap_or_else(PoisonError::into_inner) = Some(new)
    }

    /// Pictures left out so far because the encoder was behind.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Why the recording has ended before it was told to; what there was is kept where that can be.
    pub fn error(&self) -> Option<String> {
        self.failed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Completes the file. Waits for the encoder, for a second or so.
    pub fn finish(self) -> Result<Summary, Error> {
        drop(self.pictures);
        let mut summary = self.thread.join().unwrap_or_else(|_| {
            Err(Error::write(
                Path::new("the recording"),
                &std::io::Error::other("its thread failed"),
            ))
        })?;
        summary.dropped = self.dropped;
        Ok(summary)
    }
}

/// The thread "record".
struct Work {
    encoded: Encoded,
    sound: Option<Listening>,
    silent: Option<String>,
    path: PathBuf,
    size: (u32, u32),
    fps: Fps,
    queue: Receiver<(RgbaImage, Instant)>,
    back: SyncSender<RgbaImage>,
    /// When the first picture came.
    start: Option<Instant>,
    /// Slots filled.
    written: u64,
    said: Arc<Mutex<Option<Provenance>>>,
}

impl Work {
    fn run(mut self) -> Result<Summary, Error> {
        let ended = self.record();
        let said = self
            .said
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(said) = said {
            self.encoded.say(said);
        }
        let mut sound = None;
        match self.sound.take().map(Listening::finish) {
            Some(Ok(file)) => {
                self.encoded.sound_from(file.to_path_buf());
                sound = Some(file);
            }
            Some(Err(why)) => self.silent = Some(why),
            None => {}
        }
        let seconds = self.written as f64 / self.fps.as_f64();
        if let Err(error) = ended {
            return Err(self.keep(error));
        }
        let finished = Box::new(self.encoded).finish();
        drop(sound); // the file goes when it has been used
        finished?;
        Ok(Summary {
            path: self.path,
            seconds,
            frames: self.written,
            dropped: 0,
            silent: self.silent,
        })
    }

    /// Fills slots until there are no more pictures.
    fn record(&mut self) -> Result<(), Error> {
        let mut last: Option<RgbaImage> = None;
        let mut room = RgbaImage::new(0, 0);
        loop {
            match self.queue.recv_timeout(GAP) {
                Ok((picture, at)) => {
                    let start = *self.start.get_or_insert(at);
                    if let Some(sound) = &self.sound {
                        sound.begin(start);
                    }
                    let slot = self.slot(at);
                    if let Some(shown) = last.replace(picture) {
                        self.fill(&shown, slot, &mut room)?;
                        let _ = self.back.try_send(shown);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    if let (Some(shown), Some(late)) = (&last, Instant::now().checked_sub(GAP)) {
                        self.fill(shown, self.slot(late), &mut room)?;
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        match &last {
            Some(shown) => self.fill(shown, self.written + 1, &mut room),
            None => Ok(()),
        }
    }

    /// The slot of a moment.
    fn slot(&self, at: Instant) -> u64 {
        let since = self
            .start
            .map_or(Duration::ZERO, |start| at.saturating_duration_since(start));
        (since.as_secs_f64() * self.fps.as_f64() + 1e-6) as u64
    }

    /// Shows a picture in every slot before `end` that is still empty.
    fn fill(&mut self, picture: &RgbaImage, end: u64, room: &mut RgbaImage) -> Result<(), Error> {
        if self.written >= end {
            return Ok(());
        }
        let fitted = fit(picture, self.size.0, self.size.1, room);
        while self.written < end {
            self.encoded.write(fitted)?;
            self.written += 1;
        }
        Ok(())
    }

    /// Saves what there is of a recording that has failed.
    fn keep(self, error: Error) -> Error {
        let why = match &error {
            Error::Encode { why, .. } | Error::Write { why, .. } => why.clone(),
            other => other.to_string(),
        };
        match self.encoded.salvage() {
            Some(path) => Error::Interrupted {
                seconds: length(&path).unwrap_or(0.0),
                path,
                why,
            },
            None => error,
        }
    }
}

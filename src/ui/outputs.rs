//! Where the composed picture goes besides the window: a recording, a virtual camera.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use eframe::egui::Context;
use image::RgbaImage;

use super::app::App;
use crate::media::record::{Microphone, Recorder, Summary};
use crate::media::samples;
use crate::media::virtual_camera::VirtualCamera;
use crate::media::{Fps, Provenance};
use crate::pipeline::live::{Command, Event};
use crate::settings::PhotoOrigin;

/// Frames per second of recordings.
const FPS: u32 = 25;
/// How long the end of the program waits for the end of a take.
const PATIENCE: Duration = Duration::from_secs(2);

/// The outputs that are on.
#[derive(Default)]
pub(super) struct Outputs {
    recording: Recording,
    camera: Option<VirtualCamera>,
    /// The photos that are in the recording.
    shown: Vec<PhotoOrigin>,
}

/// Starting asks for the microphone and ending completes the file: both on a thread, as they take a moment.
#[derive(Default)]
enum Recording {
    #[default]
    Off,
    Starting(Receiver<Result<Recorder, String>>),
    On(Recorder, Instant),
    Ending(Receiver<Result<Summary, String>>),
}

impl Outputs {
    /// Gives the picture to whoever wants it; what went wrong is said.
    fn push(&mut self, picture: &RgbaImage) -> Result<(), String> {
        if let Recording::On(recorder, _) = &mut self.recording {
            recorder.push(picture, Instant::now());
        }
        if let Some(camera) = &mut self.camera
            && let Err(error) = camera.write(picture)
        {
            self.camera = None;
            return Err(error.to_string());
        }
        Ok(())
    }
}

impl App {
    /// Seconds recorded so far, while recording.
    pub(super) fn recording(&self) -> Option<u64> {
        match &self.outputs.recording {
            Recording::On(_, since) => Some(since.elapsed().as_secs()),
            Recording::Starting(_) => Some(0),
            _ => None,
        }
    }

    pub(super) fn virtual_camera_on(&self) -> bool {
        self.outputs.camera.is_some()
    }

    /// Whether the composed picture is wanted anywhere but in the window.
    pub(super) fn is_put_out(&self) -> bool {
        self.recording().is_some() || self.virtual_camera_on()
    }

    /// The composed picture is new.
    pub(super) fn put_out(&mut self) {
        if !self.is_put_out() {
            return;
        }
        let result = match self.stage.image() {
            Ok(Some(picture)) => self.outputs.push(picture),
            Ok(None) => Ok(()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(why) = result {
            self.notices.warn(why);
        }
        self.note_photo();
    }

    /// The recording says of which photos it is.
    fn note_photo(&mut self) {
        let (Recording::On(recorder, _), Some(photo)) =
            (&self.outputs.recording, self.reel.current())
        else {
            return;
        };
        if self.outputs.shown.contains(&photo.origin) {
            return;
        }
        self.outputs.shown.push(photo.origin.clone());
        let (shown, say) = (self.outputs.shown.clone(), recorder.sayer());
        // Nobody waits for the answer.
        if let Err(e) = on_thread("provenance", &self.ctx, move || say(said_of(&shown))) {
            self.notices.warn(e.to_string());
        }
    }

    /// Starts a recording, or ends it.
    pub(super) fn record(&mut self) {
        match std::mem::take(&mut self.outputs.recording) {
            Recording::Off => match self.new_file("recording", "mp4") {
                Ok(path) => self.start_recording(path),
                Err(e) => self.notices.warn(e.to_string()),
            },
            Recording::On(recorder, _) => {
                let finish = move || recorder.finish().map_err(|e| e.to_string());
                match on_thread("record-end", &self.ctx, finish) {
                    Ok(end) => self.outputs.recording = Recording::Ending(end),
                    Err(e) => self.notices.warn(e.to_string()),
                }
            }
            // A moment of patience.
            other => self.outputs.recording = other,
        }
    }

    /// Takes over what the threads of the recording have done.
    pub(super) fn listen_to_outputs(&mut self) {
        self.outputs.recording = match std::mem::take(&mut self.outputs.recording) {
            Recording::Starting(start) => match start.try_recv() {
                Ok(Ok(recorder)) => Recording::On(recorder, Instant::now()),
                Ok(Err(why)) => {
                    self.notices.warn(why);
                    Recording::Off
                }
                Err(TryRecvError::Empty) => Recording::Starting(start),
                Err(TryRecvError::Disconnected) => Recording::Off,
            },
            Recording::Ending(end) => match end.try_recv() {
                Ok(Ok(summary)) => {
                    self.saved(self.words.recording_saved, summary.path);
                    if let Some(why) = summary.silent {
                        self.notices.info(why);
                    }
                    Recording::Off
                }
                Ok(Err(why)) => {
                    self.notices.warn(why);
                    Recording::Off
                }
                Err(TryRecvError::Empty) => Recording::Ending(end),
                Err(TryRecvError::Disconnected) => Recording::Off,
            },
            Recording::On(recorder, since) => match recorder.error() {
                // The disk is full, or ffmpeg gone: what there is is kept where that can be.
                Some(why) => {
                    self.notices.warn(why);
                    self.outputs.recording = Recording::On(recorder, since);
                    return self.record();
                }
                None => Recording::On(recorder, since),
            },
            Recording::Off => Recording::Off,
        };
    }

    /// Completes what is being recorded before the program ends.
    pub(super) fn end_outputs(&mut self) {
        let recorder = match std::mem::take(&mut self.outputs.recording) {
            Recording::Off => None,
            Recording::Starting(start) => start.recv().ok().and_then(Result::ok),
            Recording::On(recorder, _) => Some(recorder),
            Recording::Ending(end) => {
                let _ = end.recv();
                None
            }
        };
        if let Some(Err(error)) = recorder.map(Recorder::finish) {
            tracing::error!("{error}");
        }
        let Some(live) = self.live.as_ref().filter(|_| self.taking) else {
            return;
        };
        live.tell(Command::EndTake);
        let asked = Instant::now();
        while asked.elapsed() < PATIENCE
            && !live
                .events()
                .any(|event| matches!(event, Event::TakeWritten { .. } | Event::TakeFailed(_)))
        {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Switches the virtual camera on or off.
    pub(super) fn virtual_camera(&mut self) {
        if self.outputs.camera.take().is_some() {
            return;
        }
        let (width, height) = self.stage.size().unwrap_or((640, 480));
        match VirtualCamera::open(width, height) {
            Ok(camera) => self.outputs.camera = Some(camera),
            Err(error) => self.notices.warn(error.to_string()),
        }
    }

    fn start_recording(&mut self, path: PathBuf) {
        let Some((width, height)) = self.stage.size() else {
            return;
        };
        let Some(fps) = Fps::new(FPS, 1) else { return };
        let microphone = if self.settings.microphone {
            Microphone::On
        } else {
            Microphone::Off
        };
        let photo = self.reel.current().map(|photo| photo.origin.clone());
        let shown: Vec<_> = photo.into_iter().collect();
        self.outputs.shown.clone_from(&shown);
        let start = move || {
            let said = Some(said_of(&shown));
            Recorder::start(&path, width, height, fps, microphone, said).map_err(|e| e.to_string())
        };
        match on_thread("record-start", &self.ctx, start) {
            Ok(start) => self.outputs.recording = Recording::Starting(start),
            Err(e) => self.notices.warn(e.to_string()),
        }
    }
}

/// What is made from photos says of itself; one that is gone by now is left out.
pub(super) fn said_of(photos: &[PhotoOrigin]) -> Provenance {
    let mut said = Provenance::default();
    for photo in photos {
        let added = match photo {
            PhotoOrigin::File(path) => said.add_photo(path).map_err(|e| e.to_string()),
            PhotoOrigin::Painting(name) => samples::painting_file(name)
                .map_err(|e| e.to_string())
                .and_then(|file| said.add_photo(file.path()).map_err(|e| e.to_string())),
        };
        if let Err(why) = added {
            tracing::warn!("{why}");
        }
    }
    said
}

/// Runs something that takes a moment, and wakes the window when it is done.
pub(super) fn on_thread<T: Send + 'static>(
    name: &str,
    ctx: &Context,
    work: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<Receiver<T>> {
    let (tell, answer) = sync_channel(1);
    let ctx = ctx.clone();
    let run = move || {
        let _ = tell.send(work());
        super::wake(&ctx);
    };
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)?;
    Ok(answer)
}

//! The window's state. `logic` changes it, `panels` draw it.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use eframe::egui::{self, Context, ViewportCommand};
use eframe::egui_wgpu::RenderState;

use super::command::{Command, Place};
use super::dialogs::Dialogs;
use super::jobs::Jobs;
use super::models::{Downloads, Speeds};
use super::notices::Notices;
use super::outputs::Outputs;
use super::picture::Picture;
use super::reel::Reel;
use super::stage::Stage;
use super::stats::Stats;
use super::training::Training;
use super::words::{self, Words};
use super::{Start, fonts, panels, theme};
use crate::device::Choice;
use crate::geometry::Rect;
use crate::gpu;
use crate::media::{self, camera, camera::CameraInfo};
use crate::model::Keypoints;
use crate::pipeline::driver::Driver;
use crate::pipeline::live::{Live, LiveModel, Quality};
use crate::settings::{self, Language, Loaded, Settings};

/// Why there is no window.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The compositor that was asked for cannot be had.
    #[error(transparent)]
    Compositor(#[from] gpu::Error),
    /// No window system, or none that answers.
    #[error("no window can be opened ({0}): mimic animate works without a display")]
    Window(String),
    /// No graphics adapter for the window.
    #[error(
        "the window needs a graphics adapter that wgpu can use, a software one such as lavapipe will do: mimic animate works without"
    )]
    NoAdapter,
    /// The adapter was lost again as soon as the window was opened anew.
    #[error(
        "the graphics adapter is lost ({0}): start mimic again, with --compositor cpu if that happens often; mimic animate works without a window"
    )]
    AdapterLost(String),
    /// The adapter was lost, and the program cannot be started anew.
    #[error(
        "the graphics adapter is lost, and mimic cannot start itself anew ({0}): start it again"
    )]
    Again(std::io::Error),
    /// The system gives no threads.
    #[error("a thread cannot be started: {0}")]
    Thread(#[from] std::io::Error),
    /// The screenshot cannot be written.
    #[error("cannot write the screenshot {path}: {why}")]
    Screenshot {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// The window.
pub struct App {
    pub(super) ctx: Context,
    /// The window's, which everything is drawn and composed with.
    pub(super) device: gpu::Device,
    pub(super) words: &'static Words,
    pub(super) settings: Settings,
    pub(super) place: Place,
    pub(super) reel: Reel,
    pub(super) stage: Stage,
    pub(super) mirror: Mirror,
    /// The networks' thread; none when it could not be started or died.
    pub(super) live: Option<Live>,
    pub(super) model: ModelState,
    /// How well it runs at the moment.
    pub(super) quality: Quality,
    pub(super) jobs: Jobs,
    pub(super) outputs: Outputs,
    pub(super) speeds: Speeds,
    pub(super) downloads: Downloads,
    pub(super) training: Training,
    pub(super) driver: Option<Driver>,
    /// The driver that played last: what comes back when another cannot be played.
    pub(super) good_driver: settings::Driver,
    /// How the driver's pictures come.
    pub(super) driver_what: String,
    pub(super) stats: Stats,
    pub(super) notices: Notices,
    pub(super) dialogs: Dialogs,
    pub(super) open: Open,
    pub(super) commands: Vec<Command>,
    /// When the mouse or a key was last used.
    pub(super) touched: f64,
    /// The face that has the keyboard on the photo.
    pub(super) face: Option<usize>,
    pub(super) taking: bool,
    pub(super) calibrated: Option<f64>,
    cameras: Vec<CameraInfo>,
    asked_cameras: Option<Receiver<Vec<CameraInfo>>>,
    demo_clip: Option<tempfile::NamedTempFile>,
    has_chinese: Option<bool>,
    config: Option<PathBuf>,
    saved: Settings,
    saved_at: Instant,
    opened: Instant,
    pub(super) start: Start,
}

/// The driver as seen last.
pub(super) struct Mirror {
    pub(super) picture: Picture,
    /// What of it the networks saw, in its pixels.
    pub(super) crop: Rect,
    pub(super) keypoints: Option<Keypoints>,
    pub(super) found: bool,
    pub(super) match_score: f32,
    /// Whether anything was seen yet.
    pub(super) seen: bool,
}

/// Where the networks are.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum ModelState {
    Loading,
    Ready {
        name: String,
        size: u32,
        device: String,
    },
    Failed(String),
}

/// What lies over the window.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Open {
    pub(super) help: bool,
    pub(super) settings: bool,
    /// The tuning panel; on a narrow window it is a drawer.
    pub(super) tuning: bool,
    pub(super) swapped: bool,
    pub(super) full_screen: bool,
}

impl App {
    /// The window as the settings of the last time, and `start`, want it.
    ///
    /// # Errors
    /// When the compositor or the threads cannot be had.
    pub fn new(ctx: &Context, state: &RenderState, start: Start) -> Result<Self, Error> {
        let config = start.config.clone();
        let loaded = config.as_deref().map_or(Loaded::New, settings::load);
        let mut notices = Notices::default();
        let mut settings = match loaded {
            Loaded::New => Settings::default(),
            Loaded::Kept(settings) => *settings,
            Loaded::SetAside { aside, why } => {
                let words = words::words(None);
                notices.warn(format!(
                    "{} {} ({why})",
                    words.settings_broken,
                    words::brief(&aside)
                ));
                Settings::default()
            }
        };
        if let Some(driver) = &start.driver {
            settings.driver = driver.clone();
        }
        theme::apply(ctx, settings.theme);
        fonts::own(ctx);
        let device = gpu::Device::new(&state.adapter, state.device.clone(), state.queue.clone());
        let mut reel = Reel::new(&settings, device.max_side(), ctx)?;
        for photo in &start.photos {
            reel.add(settings::PhotoOrigin::File(photo.clone()));
        }
        let picture = || Picture::new(state, &device);
        let stage = Stage::new(picture(), start.compositor, &device)?;
        let mirror = Mirror::new(picture());
        let training = Training::new(picture());
        let (jobs, trouble) = Jobs::new(config.as_deref(), picture(), ctx);
        if let Some(trouble) = trouble {
            notices.warn(trouble);
        }
        let mut app = Self {
            jobs,
            ctx: ctx.clone(),
            device,
            words: words::words(settings.language),
            saved: settings.clone(),
            settings,
            place: Place::default(),
            reel,
            stage,
            mirror,
            live: None,
            model: ModelState::Loading,
            quality: Quality::default(),
            outputs: Outputs::default(),
            speeds: Speeds::default(),
            downloads: Downloads::default(),
            training,
            driver: None,
            good_driver: settings::Driver::Demo,
            driver_what: String::new(),
            stats: Stats::default(),
            notices,
            dialogs: Dialogs::default(),
            open: Open {
                tuning: true,
                ..Open::default()
            },
            commands: Vec::new(),
            touched: 0.0,
            face: None,
            taking: false,
            calibrated: None,
            cameras: Vec::new(),
            asked_cameras: None,
            demo_clip: None,
            has_chinese: None,
            config,
            saved_at: Instant::now(),
            opened: Instant::now(),
            start,
        };
        app.speak();
        if let Some(why) = &app.start.lost {
            let text = format!("{} {why}", app.words.adapter_lost);
            app.notices.warn(text);
        }
        if !app.start.still {
            app.find_cameras();
        }
        app.start_live();
        app.start_driver();
        Ok(app)
    }

    /// Everything that is not drawing: also when the window is hidden.
    pub fn logic(&mut self, ctx: &Context) {
        if self.device.lost().is_some() {
            // Nothing can be drawn any more: see `on_exit`.
            self.remember(true);
            return ctx.send_viewport_cmd(ViewportCommand::Close);
        }
        self.listen();
        self.keys(ctx);
        self.files(ctx);
        for command in std::mem::take(&mut self.commands) {
            self.apply(command);
        }
        self.compose();
        self.remember(false);
        // The driver's silence, fading notices and the strip want a look now and then.
        ctx.request_repaint_after(Duration::from_millis(100));
    }

    /// Draws the window.
    pub fn draw(&mut self, ui: &mut egui::Ui) {
        if self.device.lost().is_some() {
            return;
        }
        panels::draw(self, ui);
    }

    /// Says what a person wants; done with the next frame.
    pub(super) fn want(&mut self, command: Command) {
        self.commands.push(command);
    }

    /// The side of the squares that the model sees.
    pub(super) fn model_size(&self) -> u32 {
        match &self.model {
            ModelState::Ready { size, .. } => *size,
            _ => 256,
        }
    }

    /// What the frame rate costs: "Holding 25 fps: half size". None at full quality.
    pub(super) fn quality_text(&self) -> Option<String> {
        let (words, quality) = (self.words, &self.quality);
        if !quality.lowered {
            return None;
        }
        let what: Vec<&str> = quality
            .model
            .as_deref()
            .into_iter()
            .chain(quality.half.then_some(words.half_size))
            .chain(quality.bf16.then_some("bf16"))
            .collect();
        let verb = if quality.holds {
            words.holding
        } else {
            words.slower
        };
        let fps = self.settings.hold.fps;
        Some(format!(
            "{verb} {fps:.0} {}: {}",
            words.fps,
            what.join(", ")
        ))
    }

    /// What the networks run on, as far as it is chosen.
    pub(super) fn device(&self) -> Choice {
        let set = || self.settings.device.parse().unwrap_or_default();
        self.start.device.unwrap_or_else(set)
    }

    pub(super) fn start_live(&mut self) {
        self.live = None;
        self.model = ModelState::Loading;
        self.quality = Quality::default();
        if self.start.still {
            return;
        }
        let ctx = self.ctx.clone();
        let model = LiveModel {
            weights: self.settings.model.clone(),
            threads: self.start.threads,
            others: self.other_models(),
            device: self.device(),
        };
        match Live::start(model, move || super::wake(&ctx)) {
            Ok(live) => self.live = Some(live),
            Err(e) => self.model = ModelState::Failed(e.to_string()),
        }
    }

    /// Loads a font for the language, if it needs one.
    pub(super) fn speak(&mut self) {
        self.words = words::words(self.settings.language);
        if self.words.language == Language::Chinese {
            let found = *self
                .has_chinese
                .get_or_insert_with(|| fonts::chinese(&self.ctx));
            if !found {
                self.notices.warn(self.words.no_chinese_font.to_owned());
            }
        }
    }

    /// The drawn performer as a file that ffmpeg can open.
    pub(super) fn demo_clip(&mut self) -> std::io::Result<PathBuf> {
        if self.demo_clip.is_none() {
            self.demo_clip = Some(media::samples::driver_file()?);
        }
        let path = self.demo_clip.as_ref().map(|file| file.path().to_owned());
        path.ok_or_else(|| std::io::Error::other("no temporary file"))
    }

    /// Writes the settings when they have changed: at most once in two seconds, or `now`.
    pub(super) fn remember(&mut self, now: bool) {
        if !now && self.saved_at.elapsed() < Duration::from_secs(2) {
            return;
        }
        self.saved_at = Instant::now();
        self.settings.reel = self.reel.to_settings();
        self.settings.on_stage = self.reel.on_stage;
        if self.settings == self.saved {
            return;
        }
        if let Some(config) = &self.config {
            match settings::save(config, &self.settings) {
                Ok(()) => self.saved = self.settings.clone(),
                Err(e) => tracing::warn!("cannot save the settings: {e}"),
            }
        }
    }

    /// Where recordings, takes and screenshots go.
    pub(super) fn output_folder(&self) -> PathBuf {
        if let Some(folder) = &self.settings.output {
            return folder.clone();
        }
        let dirs = directories::UserDirs::new();
        let videos = dirs.and_then(|dirs| dirs.video_dir().map(|videos| videos.join("mimic")));
        videos.unwrap_or_else(|| PathBuf::from("output"))
    }

    /// The cameras there are: name, and name with format for people.
    pub(super) fn cameras(&self) -> &[CameraInfo] {
        &self.cameras
    }

    /// Asks the system for its cameras, on a thread: a driver may take seconds.
    pub(super) fn find_cameras(&mut self) {
        let (tell, answer) = sync_channel(1);
        let ctx = self.ctx.clone();
        let ask = move || {
            let _ = tell.send(camera::list());
            super::wake(&ctx);
        };
        if std::thread::Builder::new()
            .name("cameras".to_owned())
            .spawn(ask)
            .is_ok()
        {
            self.asked_cameras = Some(answer);
        }
    }

    /// Takes the cameras over that the thread has found.
    pub(super) fn found_cameras(&mut self) {
        if let Some(cameras) = self
            .asked_cameras
            .as_ref()
            .and_then(|answer| answer.try_recv().ok())
        {
            self.asked_cameras = None;
            self.cameras = cameras;
        }
    }

    /// Whether a font for Chinese is loaded.
    pub(super) fn has_chinese(&self) -> bool {
        self.has_chinese == Some(true)
    }
}

impl Mirror {
    fn new(picture: Picture) -> Self {
        Self {
            picture,
            crop: Rect::new(0, 0, 0, 0),
            keypoints: None,
            found: false,
            match_score: 0.0,
            seen: false,
        }
    }
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App")
            .field("place", &self.place)
            .field("model", &self.model)
            .finish_non_exhaustive()
    }
}

impl eframe::App for App {
    fn logic(&mut self, ctx: &Context, _: &mut eframe::Frame) {
        self.logic(ctx);
    }

    fn ui(&mut self, ui: &mut egui::Ui, _: &mut eframe::Frame) {
        self.draw(ui);
    }

    fn on_exit(&mut self) {
        self.remember(true);
        self.end_outputs();
        self.jobs.queue.stop();
        // With its temporary file, which nobody would remove.
        (self.driver, self.demo_clip) = (None, None);
        if let Some(why) = self.device.lost() {
            super::start_anew(&why, self.opened);
        }
    }
}

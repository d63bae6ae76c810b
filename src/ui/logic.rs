//! What happens between two frames: events of the threads, keys, dropped files, and the commands of the
//! widgets.

use std::path::{Path, PathBuf};

use eframe::egui::{self, Context, Key, Modifiers, ViewportCommand};

use super::app::{App, ModelState};
use super::command::{Command, Place};
use super::dialogs::Pick;
use super::jobs::JobCommand;
use super::notices::Topic;
use super::outputs::said_of;
use super::reel::{Face, News};
use super::words::brief;
use crate::animate::{PerformOptions, take};
use crate::geometry::Rect;
use crate::gpu;
use crate::media::save_picture;
use crate::pipeline::driver::{Driver, DriverEvent, DriverSource};
use crate::pipeline::live::{self, DriverCrop, Event};
use crate::pipeline::tuning;
use crate::settings::{self, PhotoOrigin};

/// The smallest crop that a hand can leave, pixels.
const SMALLEST_FACE: u32 = 24;

impl App {
    /// Takes over what the threads have made.
    pub(super) fn listen(&mut self) {
        self.found_cameras();
        self.listen_to_outputs();
        self.listen_to_speeds();
        self.listen_to_downloads();
        self.training.listen();
        self.jobs.listen(&self.ctx.clone());
        for news in self.reel.listen(&self.ctx.clone()) {
            match news {
                News::Opened(id) => {
                    self.notices.settle(Topic::Photo(id));
                    self.tell_photo(id);
                }
                News::Failed(id, why) => self.notices.problem(Topic::Photo(id), why),
                News::There(id, true) => {
                    self.notices.settle(Topic::Photo(id));
                }
                News::There(id, false) => self.photo_gone(id),
            }
        }
        let events: Vec<Event> = self.live.iter().flat_map(|live| live.events()).collect();
        for event in events {
            self.hear(event);
        }
        if let Some(shown) = self.live.as_ref().and_then(live::Live::take) {
            self.show_frame(shown);
        }
        let events: Vec<DriverEvent> = self.driver.iter().flat_map(Driver::events).collect();
        for event in events {
            match event {
                DriverEvent::Started { what } => self.driver_what = what,
                DriverEvent::Notice(text) => self.notices.info(text),
                DriverEvent::Lost(text) => self.notices.problem(Topic::Driver, text),
                DriverEvent::Back => {
                    if self.notices.settle(Topic::Driver) {
                        self.notices.info(self.words.camera_back.to_owned());
                    }
                }
                DriverEvent::Failed(why) => self.driver_failed(why),
            }
        }
        let frames = self.driver.as_ref().map_or(0, Driver::frames);
        if frames > 0 && self.good_driver != self.settings.driver {
            self.good_driver = self.settings.driver.clone();
        }
        let dropped = self.live.as_ref().map_or(0, live::Live::dropped);
        self.stats.driver(frames, dropped);
    }

    /// A file that does not play is not kept, and what played before goes on; a camera may come back.
    fn driver_failed(&mut self, why: String) {
        self.driver = None;
        let file = matches!(
            self.settings.driver,
            settings::Driver::Clip(_) | settings::Driver::Take(_)
        );
        if file && self.good_driver != self.settings.driver {
            self.notices.warn(why);
            self.settings.driver = self.good_driver.clone();
            self.start_driver();
        } else {
            self.notices.problem(Topic::Driver, why);
        }
    }

    pub(super) fn hear(&mut self, event: Event) {
        match event {
            Event::Ready {
                model,
                size,
                device,
            } => {
                self.model = ModelState::Ready {
                    name: model,
                    size,
                    device,
                };
                self.tell_motion();
                self.tell_enhancement();
                self.tell_sharing();
                let ids: Vec<u64> = self.reel.photos.iter().map(|photo| photo.id).collect();
                self.stage.clear();
                for id in ids {
                    self.tell_photo(id);
                }
            }
            Event::Failed(why) => {
                self.notices.warn(why.clone());
                self.live = None;
                self.model = ModelState::Failed(why);
                // A file that is no model is not kept: the embedded one always loads.
                if self.settings.model.is_some() {
                    let broken = self.settings.model.take();
                    self.forget_model(broken);
                    self.start_live();
                    self.start_driver();
                }
            }
            Event::EnhanceFailed(why) => {
                self.notices.warn(why);
                let enhance = &mut self.settings.enhance;
                (enhance.weights, enhance.on) = (None, false);
            }
            Event::Died(why) => {
                let text = format!("{} {why}", self.words.inference_died);
                self.notices.warn(text.clone());
                self.live = None;
                self.model = ModelState::Failed(text);
                self.taking = false;
            }
            Event::Quality(quality) => {
                if let ModelState::Ready { device, .. } = &mut self.model {
                    device.clone_from(&quality.device);
                }
                self.quality = quality;
            }
            Event::Notice(text) => self.notices.problem(Topic::Driver, text),
            Event::TakeWritten { path, .. } => {
                self.taking = false;
                let text = format!("{} {}", self.words.take_saved, brief(&path));
                let play = Command::Drive(settings::Driver::Take(path));
                self.notices.offer(text, self.words.play_take, play);
            }
            Event::TakeFailed(why) => {
                self.taking = false;
                self.notices.warn(why);
            }
        }
    }

    /// An animated frame comes on stage.
    pub(super) fn show_frame(&mut self, shown: live::Shown) {
        self.stats.frame(&shown, self.stage.compose_ms);
        let mirror = &mut self.mirror;
        if let Some(driver) = &shown.driver {
            mirror.picture.show(driver);
            mirror.seen = true;
        }
        mirror.crop = shown.crop;
        mirror.found = shown.found;
        mirror.keypoints = shown.keypoints;
        mirror.match_score = shown.match_score;
        self.stage.set_predictions(shown.photo, shown.predictions);
    }

    /// Puts what belongs on stage there, and composes it if it has changed.
    pub(super) fn compose(&mut self) {
        let size = self.stage.predicted().unwrap_or_else(|| self.model_size());
        let result = match self.reel.current() {
            Some(photo) => match photo.opened() {
                Some(opened) => self
                    .stage
                    .set_photo(photo.id, &opened.image, &photo.faces, size),
                None => Ok(()),
            },
            None => {
                self.stage.clear();
                Ok(())
            }
        };
        self.stage.set_settings(tuning::paste(&self.settings.blend));
        match result.and_then(|()| self.stage.compose()) {
            Ok(true) => self.put_out(),
            Ok(false) => {}
            Err(error) => self.notices.warn(error.to_string()),
        }
    }

    /// The file of a photo that is open was deleted or moved away.
    fn photo_gone(&mut self, id: u64) {
        let photo = self.reel.photos.iter().find(|photo| photo.id == id);
        if let Some(photo) = photo
            && !self.notices.about(Topic::Photo(id))
        {
            let text = format!("{} {}", self.words.photo_gone, photo.name());
            self.notices.problem(Topic::Photo(id), text);
        }
    }

    /// Gives the networks a photo's faces, and shows it if it is the one on stage.
    fn tell_photo(&mut self, id: u64) {
        let size = self.model_size();
        let Some(photo) = self.reel.photos.iter().find(|photo| photo.id == id) else {
            return;
        };
        let (Some(live), Some(opened)) = (self.ready(), photo.opened()) else {
            return;
        };
        let views: Result<Vec<_>, gpu::Error> = photo
            .faces
            .iter()
            .map(|face| gpu::model_view(&opened.image, face.crop, size))
            .collect();
        match views {
            Ok(views) => {
                live.tell(live::Command::Photo { id, views });
            }
            Err(error) => self.notices.warn(error.to_string()),
        }
        if self.reel.current().is_some_and(|current| current.id == id)
            && let Some(live) = &self.live
        {
            live.tell(live::Command::Show(id));
        }
    }

    fn show_photo(&mut self, index: usize) {
        if index < self.reel.photos.len() {
            self.reel.on_stage = index;
            self.face = None;
            if let (Some(live), Some(photo)) = (self.ready(), self.reel.current()) {
                live.tell(live::Command::Show(photo.id));
            }
        }
    }

    /// The networks once they are loaded. What they were told before that would only fill the queue: when they
    /// are ready they are told everything.
    fn ready(&self) -> Option<&live::Live> {
        let ready = matches!(self.model, ModelState::Ready { .. });
        self.live.as_ref().filter(|_| ready)
    }

    fn tell_motion(&self) {
        let Some(live) = self.ready() else { return };
        let motion = self.settings.motion;
        live.tell(live::Command::Perform(PerformOptions {
            motion: tuning::motion(&motion),
            smoothing: motion.smoothing,
            auto_reference: motion.auto_reference,
        }));
        live.tell(live::Command::Look {
            crop: DriverCrop::Face,
            mirror: motion.mirror,
        });
        let hold = self.settings.hold;
        live.tell(live::Command::Hold(hold.on.then_some(hold.fps)));
    }

    fn tell_enhancement(&self) {
        if let Some(live) = self.ready() {
            let wanted = tuning::enhancement(&self.settings.enhance);
            live.tell(live::Command::Enhance(wanted));
        }
    }

    /// Lets the networks leave their predictions where the compositor finds them, when that is asked for.
    fn tell_sharing(&mut self) {
        if !self.start.zero_copy {
            return;
        }
        match (self.stage.share(), self.ready()) {
            (Ok(memory), Some(live)) => {
                live.tell(live::Command::Share(memory));
            }
            (Err(error), _) => self.notices.warn(error.to_string()),
            (Ok(_), None) => {}
        }
    }

    /// Makes faces sharper by these weights.
    fn use_enhancer(&mut self, file: PathBuf) {
        let enhance = &mut self.settings.enhance;
        (enhance.weights, enhance.on) = (Some(file), true);
        self.tell_enhancement();
    }

    /// Starts the driver of the settings.
    pub(super) fn start_driver(&mut self) {
        self.driver = None;
        self.mirror.seen = false;
        self.mirror.match_score = 0.0;
        self.notices.settle(Topic::Driver);
        let source = match self.settings.driver.clone() {
            settings::Driver::Demo => match self.demo_clip() {
                Ok(path) => DriverSource::Clip(path),
                Err(e) => return self.notices.warn(e.to_string()),
            },
            settings::Driver::Clip(path) => DriverSource::Clip(path),
            settings::Driver::Take(path) => DriverSource::Take(path),
            settings::Driver::Camera(name) => DriverSource::Camera(name),
        };
        let Some(live) = &self.live else { return };
        live.tell(live::Command::NewDriver);
        let ctx = self.ctx.clone();
        match Driver::start(source, live.frames(), move || super::wake(&ctx)) {
            Ok(driver) => self.driver = Some(driver),
            Err(e) => self.notices.warn(e.to_string()),
        }
    }

    /// Files dropped on the window, and those chosen in a dialog.
    pub(super) fn files(&mut self, ctx: &Context) {
        let dropped: Vec<PathBuf> = ctx.input(|i| {
            i.raw
                .dropped_files
                .iter()
                .map(|file| file.path().to_owned())
                .collect()
        });
        if !dropped.is_empty() {
            self.want(Command::Dropped(dropped));
        }
        let title = self.words.choose_files;
        if let Some((pick, files)) = self.dialogs.show(ctx, title) {
            let first = files.first().cloned();
            match (pick, first) {
                (Pick::Jobs, _) => self.want(Command::Job(JobCommand::Add(files))),
                (Pick::Photos, _) => self.want(Command::AddPhotos(files)),
                (Pick::Clip, Some(clip)) => self.want(Command::Drive(settings::Driver::Clip(clip))),
                (Pick::Take, Some(take)) => self.want(Command::Drive(settings::Driver::Take(take))),
                (Pick::JobDriver(id), Some(file)) => {
                    self.want(Command::Job(JobCommand::Drive(id, driver(file))));
                }
                (Pick::Model, model @ Some(_)) => self.want(Command::UseModel(model)),
                (Pick::Enhancer, Some(file)) => self.use_enhancer(file),
                (Pick::Folder, folder @ Some(_)) => self.settings.output = folder,
                (Pick::Run, Some(folder)) => self.want(Command::WatchRun(folder)),
                _ => {}
            }
        }
    }

    /// What the keys want.
    pub(super) fn keys(&mut self, ctx: &Context) {
        if ctx.text_edit_focused() {
            return;
        }
        let digits = [
            Key::Num1,
            Key::Num2,
            Key::Num3,
            Key::Num4,
            Key::Num5,
            Key::Num6,
            Key::Num7,
            Key::Num8,
            Key::Num9,
        ];
        let widget_focused = ctx.memory(|memory| memory.focused().is_some());
        let listed = egui::Popup::is_any_open(ctx);
        let mut wanted = Vec::new();
        ctx.input_mut(|i| {
            let mut pressed = |key, command: Command| {
                if i.consume_key(Modifiers::NONE, key) {
                    wanted.push(command);
                }
            };
            // What acts on the stage does so where that is seen.
            if self.place == Place::Live {
                for (index, key) in digits.into_iter().enumerate() {
                    pressed(key, Command::ShowPhoto(index));
                }
                // A slider in focus keeps its arrows.
                if !widget_focused {
                    pressed(Key::ArrowLeft, Command::StepPhoto(-1));
                    pressed(Key::ArrowRight, Command::StepPhoto(1));
                }
                pressed(Key::C, Command::Calibrate);
                pressed(Key::X, Command::Calibrate);
                pressed(Key::T, Command::RecordTake);
                pressed(Key::S, Command::Screenshot);
                pressed(Key::P, Command::Tuning);
                if self.settings.show.faces {
                    pressed(Key::A, Command::AddFace(None));
                }
                pressed(Key::W, Command::Swap);
                let mut motion = self.settings.motion;
                motion.mirror = !motion.mirror;
                pressed(Key::M, Command::Motion(motion));
                let mut show = self.settings.show;
                show.driver = !show.driver;
                pressed(Key::D, Command::Show(show));
            }
            pressed(Key::R, Command::Record);
            pressed(Key::F, Command::FullScreen);
            pressed(Key::V, Command::VirtualCamera);
            pressed(Key::Questionmark, Command::Help);
            pressed(Key::F1, Command::Help);
            // A list that is open closes itself.
            if !listed {
                pressed(Key::Escape, Command::Escape);
            }
            let remove = match (self.place, self.face, self.jobs.chosen) {
                (Place::Live, Some(face), _) => Some(Command::RemoveFace(face)),
                (Place::Live, None, _) => Some(Command::RemovePhoto(self.reel.on_stage)),
                (Place::Render, _, Some(job)) => Some(Command::Job(JobCommand::Remove(job))),
                _ => None,
            };
            if let Some(remove) = remove {
                pressed(Key::Delete, remove);
            }
            for (key, place) in [
                (Key::F2, Place::Live),
                (Key::F3, Place::Render),
                (Key::F4, Place::Models),
                (Key::F5, Place::Train),
            ] {
                pressed(key, Command::Go(place));
            }
            // The question mark is a shifted key on most keyboards.
            let asked = i
                .events
                .iter()
                .any(|event| matches!(event, egui::Event::Text(text) if text == "?"));
            if asked
                && !wanted
                    .iter()
                    .any(|command| matches!(command, Command::Help))
            {
                wanted.push(Command::Help);
            }
            if i.events
                .iter()
                .any(|event| matches!(event, egui::Event::Paste(_) | egui::Event::PasteImage(_)))
            {
                wanted.push(Command::PastePhoto);
            }
        });
        self.commands.extend(wanted);
    }

    /// Does what a person wants.
    pub(super) fn apply(&mut self, command: Command) {
        match command {
            Command::Go(place) => self.go(place),
            Command::ShowPhoto(index) => self.show_photo(index),
            Command::StepPhoto(step) => {
                let count = self.reel.photos.len() as isize;
                if count > 0 {
                    let index = (self.reel.on_stage as isize + step).rem_euclid(count);
                    self.show_photo(index as usize);
                }
            }
            Command::AddPhotos(files) => self.add_photos(files),
            Command::RemovePhoto(index) => {
                if let Some(id) = self.reel.remove(index) {
                    self.notices.settle(Topic::Photo(id));
                    if let Some(live) = &self.live {
                        live.tell(live::Command::Forget(id));
                    }
                }
                self.show_photo(self.reel.on_stage);
            }
            Command::PastePhoto => self.paste(),
            Command::Dropped(files) => self.dropped(files),
            Command::Pick(pick) => {
                let title = self.words.choose_files;
                self.dialogs.open(pick, title, &self.ctx);
            }
            Command::Drive(driver) => {
                self.settings.driver = driver;
                self.start_driver();
            }
            Command::FindCameras => self.find_cameras(),
            Command::Blend(blend) => self.settings.blend = blend,
            Command::Motion(motion) => {
                self.settings.motion = motion;
                self.tell_motion();
            }
            Command::Enhance(enhance) => {
                self.settings.enhance = enhance;
                self.tell_enhancement();
            }
            Command::Show(show) => self.settings.show = show,
            Command::FaceRatio(index, ratio) => {
                if let Some(photo) = self.reel.current_mut()
                    && let Some(face) = photo.faces.get_mut(index)
                {
                    face.ratio = ratio;
                    photo.own_faces = true;
                }
            }
            Command::MoveFace(index, crop) => self.edit_faces(|faces, whole| {
                if let (Some(face), Some(crop)) = (faces.get_mut(index), inside(crop, whole)) {
                    face.crop = crop;
                }
            }),
            Command::AddFace(at) => self.edit_faces(|faces, whole| {
                let (width, height) = (whole.width() as i32, whole.height() as i32);
                let [x, y] = at.unwrap_or([width / 2, height / 2]);
                let half = width.min(height) / 5;
                let crop = Rect::new(x - half, y - half, x + half, y + half);
                faces.extend(inside(crop, whole).map(|crop| Face { crop, ratio: None }));
            }),
            Command::RemoveFace(index) => {
                self.face = None;
                self.edit_faces(|faces, _| {
                    if index < faces.len() {
                        faces.remove(index);
                    }
                });
            }
            Command::Calibrate => {
                if let Some(live) = &self.live {
                    live.tell(live::Command::Calibrate);
                    self.calibrated = Some(self.ctx.input(|i| i.time));
                }
                // Who takes a reference by hand wants to keep it.
                self.settings.motion.auto_reference = false;
                self.tell_motion();
            }
            Command::RecordTake => self.record_take(),
            Command::Record => self.record(),
            Command::VirtualCamera => self.virtual_camera(),
            Command::Screenshot => self.screenshot(),
            Command::FullScreen => {
                self.open.full_screen = !self.open.full_screen;
                let command = ViewportCommand::Fullscreen(self.open.full_screen);
                self.ctx.send_viewport_cmd(command);
            }
            Command::Swap => self.open.swapped = !self.open.swapped,
            Command::Tuning => self.open.tuning = !self.open.tuning,
            Command::Help => self.open.help = !self.open.help,
            Command::Settings => self.open.settings = !self.open.settings,
            Command::Escape => {
                if self.open.help || self.open.settings {
                    (self.open.help, self.open.settings) = (false, false);
                } else if self.open.full_screen {
                    self.apply(Command::FullScreen);
                } else {
                    self.face = None;
                }
            }
            Command::Language(language) => {
                self.settings.language = Some(language);
                self.speak();
            }
            Command::Theme(theme) => {
                self.settings.theme = theme;
                super::theme::apply(&self.ctx, theme);
            }
            Command::Microphone(on) => self.settings.microphone = on,
            Command::Device(device) => {
                (self.settings.device, self.start.device) = (device.to_string(), None);
                self.restart();
            }
            Command::Hold(hold) => {
                self.settings.hold = hold;
                self.tell_motion();
            }
            Command::Restart => self.restart(),
            Command::Dismiss(id) => self.notices.dismiss(id),
            Command::UseModel(model) => self.use_model(model),
            Command::ForgetModel(model) => self.forget_model(model),
            Command::MeasureModel(model) => self.measure_model(model),
            Command::Download(Some(name)) => self.download(name),
            Command::Download(None) => self.cancel_download(),
            Command::WatchRun(folder) => self.watch_run(folder),
            Command::Job(job) => self.apply_job(job),
        }
    }

    /// Starts the networks anew, and the driver if anybody sees it.
    pub(super) fn restart(&mut self) {
        let watched = self.place == Place::Live || self.is_put_out();
        self.start_live();
        if watched {
            self.start_driver();
        } else {
            self.driver = None;
        }
    }

    /// Another place. Nobody sees the stage from there: unless the picture is put out the driver rests, and
    /// the processor is the render jobs' or the training's.
    fn go(&mut self, place: Place) {
        let was = std::mem::replace(&mut self.place, place);
        match (was, place) {
            (Place::Live, Place::Render | Place::Models | Place::Train) if !self.is_put_out() => {
                self.driver = None;
            }
            (_, Place::Live) if self.driver.is_none() => self.start_driver(),
            _ => {}
        }
        if place == Place::Train {
            self.look_at_run();
        }
    }

    fn add_photos(&mut self, files: Vec<PathBuf>) {
        for file in files {
            if !self.reel.add(PhotoOrigin::File(file)) {
                self.notices.warn(self.words.reel_full.to_owned());
                break;
            }
        }
        self.show_photo(self.reel.on_stage);
    }

    fn dropped(&mut self, files: Vec<PathBuf>) {
        let has = |wanted: Kind| files.iter().any(|file| kind(file) == wanted);
        let drives = has(Kind::Clip) || has(Kind::Take);
        // Both halves of a job, or anything in the place where jobs are made.
        let all = files.iter().all(|file| kind(file).drives_or_is_driven());
        if (has(Kind::Photo) && drives) || (self.place == Place::Render && all) {
            self.go(Place::Render);
            return self.apply_job(JobCommand::Add(files));
        }
        let (mut photos, mut clips) = (Vec::new(), Vec::new());
        for file in files {
            match kind(&file) {
                Kind::Photo => photos.push(file),
                Kind::Clip | Kind::Take => clips.push(driver(file)),
                Kind::Enhancer => self.use_enhancer(file),
                Kind::Model => self.apply(Command::UseModel(Some(file))),
            }
        }
        if !photos.is_empty() {
            self.add_photos(photos);
        }
        if let Some(clip) = clips.pop() {
            self.apply(Command::Drive(clip));
        }
    }

    fn paste(&mut self) {
        let pasted = arboard::Clipboard::new().and_then(|mut clipboard| {
            let files = clipboard.get().file_list();
            files.or_else(|_| {
                let picture = clipboard.get_image()?;
                self.keep_pasted(&picture)
                    .map(|path| vec![path])
                    .map_err(|e| arboard::Error::Unknown {
                        description: e.to_string(),
                    })
            })
        });
        match pasted {
            Ok(files) => self.add_photos(files),
            Err(_) => self
                .notices
                .info(self.words.no_picture_in_clipboard.to_owned()),
        }
    }

    /// A picture of the clipboard becomes a file, so that the reel can remember it.
    fn keep_pasted(
        &self,
        picture: &arboard::ImageData<'_>,
    ) -> Result<PathBuf, Box<dyn std::error::Error>> {
        let (width, height) = (
            u32::try_from(picture.width)?,
            u32::try_from(picture.height)?,
        );
        let bytes = picture.bytes.to_vec();
        let image =
            image::RgbaImage::from_raw(width, height, bytes).ok_or("the picture is incomplete")?;
        let path = self.new_file("pasted", "png")?;
        image.save(&path)?;
        Ok(path)
    }

    /// A name in the output folder that is not taken yet.
    pub(super) fn new_file(&self, stem: &str, ending: &str) -> std::io::Result<PathBuf> {
        let folder = self.output_folder();
        std::fs::create_dir_all(&folder)?;
        let name = |n: u32| folder.join(format!("{stem}-{n:03}.{ending}"));
        let free = (1..10_000).map(name).find(|path| !path.exists());
        free.ok_or_else(|| std::io::Error::other(format!("{} is full of {stem}s", brief(&folder))))
    }

    fn edit_faces(&mut self, edit: impl FnOnce(&mut Vec<Face>, Rect)) {
        let Some(photo) = self.reel.current_mut() else {
            return;
        };
        let Some(opened) = photo.opened() else { return };
        let whole = Rect::of_size(opened.image.width(), opened.image.height());
        edit(&mut photo.faces, whole);
        photo.own_faces = true;
        let id = photo.id;
        self.tell_photo(id);
    }

    fn record_take(&mut self) {
        let Some(live) = &self.live else { return };
        if self.taking {
            live.tell(live::Command::EndTake);
            return;
        }
        match self.new_file("take", take::ENDING) {
            Ok(path) => self.taking = live.tell(live::Command::RecordTake(path)),
            Err(e) => self.notices.warn(e.to_string()),
        }
    }

    /// Says that a file is there, and offers its folder.
    pub(super) fn saved(&mut self, what: &str, path: PathBuf) {
        let text = format!("{what} {}", brief(&path));
        let show = Command::Job(JobCommand::Reveal(path));
        self.notices.offer(text, self.words.show_in_folder, show);
    }

    fn screenshot(&mut self) {
        let picture = match self.stage.image() {
            Ok(Some(picture)) => picture.clone(),
            Ok(None) => return,
            Err(error) => return self.notices.warn(error.to_string()),
        };
        let photo = self.reel.current().map(|photo| photo.origin.clone());
        let said = said_of(photo.as_slice());
        let saved = self
            .new_file("screenshot", "png")
            .map_err(|e| e.to_string())
            .and_then(|path| {
                save_picture(&path, &picture, Some(&said)).map_err(|e| e.to_string())?;
                Ok(path)
            });
        match saved {
            Ok(path) => self.saved(self.words.screenshot_saved, path),
            Err(why) => self.notices.warn(why),
        }
    }
}

/// What a dropped file is for, by its name: opening it says whether that is true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Photo,
    Clip,
    Take,
    Model,
    Enhancer,
}

impl Kind {
    /// Whether a render job can be made of it.
    pub(super) fn drives_or_is_driven(self) -> bool {
        matches!(self, Self::Photo | Self::Clip | Self::Take)
    }
}

pub(super) fn kind(path: &Path) -> Kind {
    let ending = path
        .extension()
        .and_then(|e| e.to_str())
        .unwrap_or_default()
        .to_lowercase();
    match ending.as_str() {
        "png" | "jpg" | "jpeg" | "webp" | "bmp" | "tif" | "tiff" => Kind::Photo,
        take::ENDING => Kind::Take,
        "safetensors" | "pth" | "tar" | "pt" | "pdparams" if restores(path) => Kind::Enhancer,
        "safetensors" | "pth" | "tar" | "pt" | "pdparams" => Kind::Model,
        _ => Kind::Clip,
    }
}

/// Whether weights are a face restorer's, by their name.
fn restores(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.to_lowercase();
    name.starts_with("gpen") || name.starts_with("gfpgan")
}

/// A file that drives, as its name says.
pub(super) fn driver(file: PathBuf) -> settings::Driver {
    match kind(&file) {
        Kind::Take => settings::Driver::Take(file),
        _ => settings::Driver::Clip(file),
    }
}

/// A crop brought inside the photo; none when hardly anything of it is there.
fn inside(crop: Rect, whole: Rect) -> Option<Rect> {
    let crop = crop.intersect(&whole);
    (crop.width() >= SMALLEST_FACE && crop.height() >= SMALLEST_FACE).then_some(crop)
}

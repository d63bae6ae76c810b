//! The render jobs of the window: the queue, what is chosen of it, and its pictures.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use eframe::egui::{ColorImage, Context, TextureHandle, TextureOptions};
use image::RgbaImage;

use super::app::App;
use super::logic::{Kind, driver, kind};
use super::picture::Picture;
use super::words::brief;
use crate::pipeline::queue::{Preview, Previewer, Queue, RenderJob, State, free_name};
use crate::settings::{Blend, Driver, Enhance, Motion, PhotoOrigin};

/// What a person wants of the render jobs.
#[derive(Clone, Debug)]
pub(super) enum JobCommand {
    /// Photos and clips become jobs: each photo with each clip.
    Add(Vec<PathBuf>),
    /// The photo on stage, with what drives it.
    AddStage,
    Choose(u64),
    Go,
    Cancel(u64),
    Retry(u64),
    Remove(u64),
    /// Open the result.
    Open(PathBuf),
    /// Show the result in its folder.
    Reveal(PathBuf),
    /// Other settings for a job.
    Tune(u64, Blend, Motion, Enhance),
    /// Another driver for a job.
    Drive(u64, Driver),
    /// Frame of the chosen job's preview.
    Seek(u64),
    /// What waits for its other half is not wanted.
    ForgetHalf,
}

/// What the Render place knows.
pub(super) struct Jobs {
    pub(super) queue: Queue,
    previewer: Option<Previewer>,
    pub(super) chosen: Option<u64>,
    /// The frame that is looked at.
    pub(super) frame: u64,
    pub(super) looks: HashMap<u64, Look>,
    /// The preview of the chosen job, and what went wrong with it.
    pub(super) preview: Picture,
    pub(super) shown: Option<Result<u64, String>>,
    pub(super) asked: bool,
    /// What was dropped without its other half, and waits for it.
    half: Vec<PathBuf>,
}

/// How a job looks in the list.
pub(super) struct Look {
    pub(super) photo: Option<TextureHandle>,
    pub(super) driver: Option<TextureHandle>,
    /// Frames and frames per second.
    pub(super) frames: Option<(u64, f64)>,
}

impl Jobs {
    /// The jobs of the last time; what was wrong with their file is said.
    pub(super) fn new(
        folder: Option<&Path>,
        preview: Picture,
        ctx: &Context,
    ) -> (Self, Option<String>) {
        let (queue, trouble) = Queue::load(folder);
        let ctx = ctx.clone();
        let previewer = Previewer::start(move || super::wake(&ctx)).ok();
        let jobs = Self {
            chosen: queue.jobs().last().map(|job| job.id),
            queue,
            previewer,
            frame: 0,
            looks: HashMap::new(),
            preview,
            shown: None,
            asked: false,
            half: Vec::new(),
        };
        for job in jobs.queue.jobs() {
            jobs.ask_look(job);
        }
        (jobs, trouble)
    }

    /// The job that is chosen.
    pub(super) fn chosen(&self) -> Option<&RenderJob> {
        self.chosen.and_then(|id| self.job(id))
    }

    fn job(&self, id: u64) -> Option<&RenderJob> {
        self.queue.jobs().iter().find(|job| job.id == id)
    }

    /// Takes over what the threads have made.
    pub(super) fn listen(&mut self, ctx: &Context) {
        let waked = ctx.clone();
        self.queue.work(move || super::wake(&waked));
        let answers: Vec<Preview> = self.previewer.iter().flat_map(Previewer::answers).collect();
        for answer in answers {
            match answer {
                Preview::Thumbs {
                    id,
                    photo,
                    driver,
                    frames,
                } => {
                    let texture = |name: &str, picture: RgbaImage| {
                        let size = [picture.width() as usize, picture.height() as usize];
                        let image = ColorImage::from_rgba_unmultiplied(size, picture.as_raw());
                        ctx.load_texture(format!("{name} {id}"), image, TextureOptions::LINEAR)
                    };
                    let wrong = photo.as_ref().err().or(driver.as_ref().err()).cloned();
                    let look = Look {
                        photo: photo.ok().map(|picture| texture("job photo", picture)),
                        driver: driver.ok().map(|picture| texture("job driver", picture)),
                        frames,
                    };
                    self.looks.insert(id, look);
                    // What cannot be opened now would fail later.
                    let waits = self.job(id).is_some_and(|job| job.state == State::Waiting);
                    if let Some(why) = wrong.filter(|_| waits) {
                        self.queue.edit(id, |job| job.state = State::Failed(why));
                    }
                }
                Preview::Frame { id, picture } if Some(id) == self.chosen => {
                    self.asked = false;
                    self.shown = Some(picture.map(|picture| {
                        self.preview.show(&picture);
                        id
                    }));
                }
                Preview::Frame { .. } => {}
            }
        }
    }

    /// The names of what waits for its other half, and whether photos do.
    pub(super) fn half(&self) -> Option<(String, bool)> {
        let first = self.half.first()?;
        let name = |path: &PathBuf| path.file_name().map(|n| n.to_string_lossy().into_owned());
        let names: Vec<String> = self.half.iter().filter_map(name).collect();
        Some((names.join(", "), kind(first) == Kind::Photo))
    }

    fn ask_look(&self, job: &RenderJob) {
        if let Some(previewer) = &self.previewer {
            previewer.thumbs(job);
        }
    }

    fn ask_preview(&mut self) {
        if let (Some(previewer), Some(job)) = (&self.previewer, self.chosen()) {
            previewer.frame(job, self.frame);
            self.asked = true;
        }
    }

    fn choose(&mut self, id: u64) {
        self.chosen = Some(id);
        self.frame = 0;
        self.shown = None;
        self.ask_preview();
    }
}

impl App {
    /// Does what a person wants of the render jobs.
    pub(super) fn apply_job(&mut self, command: JobCommand) {
        match command {
            JobCommand::Add(files) => self.add_jobs(files),
            JobCommand::AddStage => self.add_stage_job(),
            JobCommand::Choose(id) => self.jobs.choose(id),
            JobCommand::Go => self.jobs.queue.go(),
            JobCommand::Cancel(id) => self.jobs.queue.cancel(id),
            JobCommand::Retry(id) => self.jobs.queue.retry(id),
            JobCommand::Remove(id) => {
                self.jobs.queue.remove(id);
                self.jobs.looks.remove(&id);
                if self.jobs.chosen == Some(id) {
                    self.jobs.chosen = None;
                    self.jobs.shown = None;
                }
            }
            JobCommand::Open(path) => {
                if let Err(e) = opener::open(&path) {
                    self.notices.warn(format!("{}: {e}", brief(&path)));
                }
            }
            JobCommand::Reveal(path) => {
                let folder = path.parent().unwrap_or(&path);
                if let Err(e) = opener::open(folder) {
                    self.notices.warn(format!("{}: {e}", brief(folder)));
                }
            }
            JobCommand::Tune(id, blend, motion, enhance) => self.edit_job(id, |job| {
                (job.blend, job.motion, job.enhance) = (blend, motion, enhance);
            }),
            JobCommand::Drive(id, driver) => {
                self.jobs.looks.remove(&id);
                self.jobs.frame = 0;
                self.edit_job(id, |job| job.driver = driver);
                if let Some(job) = self.jobs.job(id) {
                    self.jobs.ask_look(job);
                }
            }
            JobCommand::Seek(frame) => {
                self.jobs.frame = frame;
                self.jobs.ask_preview();
            }
            JobCommand::ForgetHalf => self.jobs.half.clear(),
        }
    }

    /// Changes a job, which waits again: what it has made before is kept.
    fn edit_job(&mut self, id: u64, edit: impl FnOnce(&mut RenderJob)) {
        let Some(job) = self.jobs.job(id) else { return };
        let output = match job.state {
            State::Done { .. } => self.free_name(&job.photo),
            _ => job.output.clone(),
        };
        self.jobs.queue.edit(id, |job| {
            edit(job);
            (job.state, job.output) = (State::Waiting, output);
        });
        self.jobs.ask_preview();
    }

    fn free_name(&self, photo: &PhotoOrigin) -> PathBuf {
        let stem = match photo {
            PhotoOrigin::Painting(name) => name.clone(),
            PhotoOrigin::File(path) => path.file_stem().map_or_else(
                || "result".to_owned(),
                |stem| stem.to_string_lossy().into_owned(),
            ),
        };
        free_name(&self.output_folder(), &stem, self.jobs.queue.jobs())
    }

    /// Each photo with each clip; what is dropped without its other half waits for it.
    fn add_jobs(&mut self, files: Vec<PathBuf>) {
        self.jobs.half.extend(
            files
                .into_iter()
                .filter(|file| kind(file).drives_or_is_driven()),
        );
        let (photos, drivers): (Vec<&PathBuf>, Vec<&PathBuf>) =
            (self.jobs.half.iter()).partition(|file| kind(file) == Kind::Photo);
        if photos.is_empty() || drivers.is_empty() {
            return;
        }
        let pairs: Vec<(PathBuf, Driver)> = (photos.iter())
            .flat_map(|&photo| {
                (drivers.iter()).map(move |&file| (photo.clone(), driver(file.clone())))
            })
            .collect();
        self.jobs.half.clear();
        for (photo, driver) in pairs {
            self.add_job(PhotoOrigin::File(photo), None, driver);
        }
    }

    fn add_stage_job(&mut self) {
        let index = self.reel.on_stage;
        let Some(photo) = self.reel.to_settings().into_iter().nth(index) else {
            return;
        };
        match self.settings.driver.clone() {
            Driver::Camera(_) => self.notices.info(self.words.needs_clip.to_owned()),
            driver => self.add_job(photo.origin, photo.faces, driver),
        }
    }

    fn add_job(
        &mut self,
        photo: PhotoOrigin,
        faces: Option<Vec<crate::settings::Face>>,
        driver: Driver,
    ) {
        let output = self.free_name(&photo);
        let added = self.jobs.queue.add(RenderJob {
            id: 0,
            photo,
            faces,
            driver,
            blend: self.settings.blend,
            motion: self.settings.motion,
            enhance: self.settings.enhance.clone(),
            model: self.settings.model.clone(),
            device: self.device().to_string(),
            output,
            state: State::Waiting,
        });
        match added {
            Some(id) => {
                if let Some(job) = self.jobs.queue.jobs().last() {
                    self.jobs.ask_look(job);
                }
                self.jobs.choose(id);
            }
            None => self.notices.warn(self.words.jobs_full.to_owned()),
        }
    }
}

//! The render jobs of the window: the queue, what is chosen of it, and its pictures.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use eframe::egui::{ColorImage, Context, TextureHandle, TextureOptions};
use image::RgbaImage;

use super::app::App;
use super::logic::{Kind, kind};
use super::picture::Picture;
use crate::pipeline::queue::{Preview, Previewer, Queue, RenderJob, State, free_name};
use crate::settings::{Blend, Driver, Motion, PhotoOrigin};

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
    /// Another setting for the chosen job.
    Tune(u64, Blend, Motion),
    /// Frame of the chosen job's preview.
    Seek(u64),
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
    /// A photo that was dropped alone and waits for its clip.
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
        let wake = ctx.clone();
        let previewer = Previewer::start(move || wake.request_repaint()).ok();
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
        self.queue
            .jobs()
            .iter()
            .find(|job| Some(job.id) == self.chosen)
    }

    /// Takes over what the threads have made.
    pub(super) fn listen(&mut self, ctx: &Context) {
        let wake = ctx.clone();
        self.queue.work(move || wake.request_repaint());
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
                    let look = Look {
                        photo: photo.map(|picture| texture("job photo", picture)),
                        driver: driver.map(|picture| texture("job driver", picture)),
                        frames,
                    };
                    self.looks.insert(id, look);
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
                    self.notices.warn(format!("{}: {e}", path.display()));
                }
            }
            JobCommand::Reveal(path) => {
                let folder = path.parent().unwrap_or(&path);
                if let Err(e) = opener::open(folder) {
                    self.notices.warn(format!("{}: {e}", folder.display()));
                }
            }
            JobCommand::Tune(id, blend, motion) => {
                self.jobs
                    .queue
                    .edit(id, |job| (job.blend, job.motion) = (blend, motion));
                self.jobs.ask_preview();
            }
            JobCommand::Seek(frame) => {
                self.jobs.frame = frame;
                self.jobs.ask_preview();
            }
        }
    }

    /// Each photo with each clip; what is dropped without its other half waits for it.
    fn add_jobs(&mut self, files: Vec<PathBuf>) {
        self.jobs.half.extend(files);
        let of = |files: &[PathBuf], wanted: Kind| -> Vec<PathBuf> {
            files
                .iter()
                .filter(|file| kind(file) == wanted)
                .cloned()
                .collect()
        };
        let photos = of(&self.jobs.half, Kind::Photo);
        let clips = of(&self.jobs.half, Kind::Clip);
        if photos.is_empty() || clips.is_empty() {
            self.notices.info(self.words.other_half.to_owned());
            return;
        }
        self.jobs.half.clear();
        for photo in &photos {
            for clip in &clips {
                self.add_job(
                    PhotoOrigin::File(photo.clone()),
                    None,
                    Driver::Clip(clip.clone()),
                );
            }
        }
    }

    fn add_stage_job(&mut self) {
        let index = self.reel.on_stage;
        let Some(photo) = self.reel.to_settings().into_iter().nth(index) else {
            return;
        };
        match self.settings.driver.clone() {
            driver @ (Driver::Demo | Driver::Clip(_)) => {
                self.add_job(photo.origin, photo.faces, driver);
            }
            Driver::Camera(_) | Driver::Take(_) => {
                self.notices.info(self.words.needs_clip.to_owned());
            }
        }
    }

    fn add_job(
        &mut self,
        photo: PhotoOrigin,
        faces: Option<Vec<crate::settings::Face>>,
        driver: Driver,
    ) {
        let stem = match &photo {
            PhotoOrigin::Painting(name) => name.clone(),
            PhotoOrigin::File(path) => path.file_stem().map_or_else(
                || "result".to_owned(),
                |stem| stem.to_string_lossy().into_owned(),
            ),
        };
        let output = free_name(&self.output_folder(), &stem, self.jobs.queue.jobs());
        let added = self.jobs.queue.add(RenderJob {
            id: 0,
            photo,
            faces,
            driver,
            blend: self.settings.blend,
            motion: self.settings.motion,
            enhance: self.settings.enhance.clone(),
            model: self.settings.model.clone(),
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

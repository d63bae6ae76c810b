//! Render jobs that survive a restart: a list, one thread that works it off, and one that makes previews.
//!
//! The list is a JSON file beside the settings. A job that was running when the program ended waits again:
//! results appear under their names only when whole, so nothing is lost but time.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use image::RgbaImage;
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use super::live::panic_text;
use super::offline::{self, Faces, Job, Progress, ReferenceFrame, Selection, Window};
use super::slot::Slot;
use super::tuning;
use crate::animate::load::{self, ModelOptions};
use crate::animate::{Animator, take};
use crate::faces::DetectorChoice;
use crate::geometry::Rect;
use crate::gpu;
use crate::media::{self, ReadOptions};
use crate::model::Keypoints;
use crate::ops::threads::available_threads;
use crate::settings::{self, Blend, Driver, Enhance, Face, Motion, PhotoOrigin};

/// The most jobs that are kept.
const MOST: usize = 200;
/// The largest list that is read.
const LARGEST: u64 = 8 << 20;
/// How long the end of the program waits for the end of a job.
const CLEAN_UP: Duration = Duration::from_secs(2);
/// Longer side of a job's small pictures.
const THUMB: u32 = 128;

/// One render job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RenderJob {
    /// Its number, of no other job of the list.
    pub id: u64,
    /// The photo.
    pub photo: PhotoOrigin,
    /// What of it moves, if that was set by hand.
    pub faces: Option<Vec<Face>>,
    /// What drives: a clip, a take, or the drawn performer.
    pub driver: Driver,
    /// How faces are put back.
    pub blend: Blend,
    /// How motion is taken over.
    pub motion: Motion,
    /// How faces are made sharper.
    #[serde(default)]
    pub enhance: Enhance,
    /// The weights; the embedded model when none.
    pub model: Option<PathBuf>,
    /// What the networks run on, in the words of `--device`; what is there when it says nothing.
    #[serde(default)]
    pub device: String,
    /// The result.
    pub output: PathBuf,
    /// How far it is.
    pub state: State,
}

/// How far a job is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum State {
    /// For its turn.
    Waiting,
    /// At work.
    #[serde(skip)]
    Running(Step),
    /// Finished.
    Done {
        /// The files.
        outputs: Vec<PathBuf>,
        /// Frames written.
        frames: u64,
        /// What it took.
        seconds: f64,
    },
    /// It failed, and why.
    Failed(String),
    /// Stopped by hand.
    Cancelled,
}

/// How far a running job is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Step {
    /// Frames done.
    pub done: u64,
    /// Frames in all, as the clip says.
    pub total: Option<u64>,
    /// Frames per second so far.
    pub fps: f64,
}

impl Step {
    /// Seconds that are left, if that can be said.
    pub fn left(&self) -> Option<f64> {
        let left = self.total?.checked_sub(self.done)?;
        (self.fps > 0.0).then(|| left as f64 / self.fps)
    }

    /// 0..=1; None when the clip does not say how long it is.
    pub fn way(&self) -> Option<f32> {
        let total = self.total.filter(|&total| total > 0)?;
        Some((self.done as f32 / total as f32).min(1.0))
    }
}

/// The list, and the thread at work on it.
#[derive(Debug)]
pub struct Queue {
    jobs: Vec<RenderJob>,
    file: Option<PathBuf>,
    running: Option<Running>,
    /// Whether waiting jobs are to be started, one after the other.
    going: bool,
}

#[derive(Debug)]
struct Running {
    id: u64,
    cancel: Arc<AtomicBool>,
    steps: Arc<Slot<Step>>,
    end: Receiver<State>,
}

impl Queue {
    /// The list of a folder; empty where there is none. One that cannot be read is set aside, and said.
    pub fn load(folder: Option<&Path>) -> (Self, Option<String>) {
        let file = folder.map(|folder| folder.join("jobs.json"));
        let mut queue = Self {
            jobs: Vec::new(),
            file,
            running: None,
            going: false,
        };
        let Some(path) = queue.file.as_ref().filter(|path| path.exists()) else {
            return (queue, None);
        };
        let read = || -> Result<Vec<RenderJob>, String> {
            if fs::metadata(path).map_err(|e| e.to_string())?.len() > LARGEST {
                return Err("it is far too large".to_owned());
            }
            let text = fs::read_to_string(path).map_err(|e| e.to_string())?;
            serde_json::from_str(&text).map_err(|e| e.to_string())
        };
        match read() {
            Ok(mut jobs) => {
                jobs.truncate(MOST);
                queue.jobs = jobs;
                (queue, None)
            }
            Err(why) => {
                let aside = path.with_extension("broken.json");
                let _ = fs::rename(path, &aside);
                let text = format!(
                    "the render jobs could not be read and were set aside as {} ({why})",
                    aside.display()
                );
                (queue, Some(text))
            }
        }
    }

    /// The jobs, in order.
    pub fn jobs(&self) -> &[RenderJob] {
        &self.jobs
    }

    /// Adds a job at the end and gives its number; None when the list is full.
    pub fn add(&mut self, mut job: RenderJob) -> Option<u64> {
        if self.jobs.len() >= MOST {
            return None;
        }
        job.id = 1 + self.jobs.iter().map(|job| job.id).max().unwrap_or(0);
        job.state = State::Waiting;
        let id = job.id;
        self.jobs.push(job);
        self.save();
        Some(id)
    }

    /// Changes a job that is not running, by hand.
    pub fn edit(&mut self, id: u64, edit: impl FnOnce(&mut RenderJob)) {
        let running = self.running.as_ref().map(|running| running.id);
        if let Some(job) = self
            .jobs
            .iter_mut()
            .find(|job| job.id == id && running != Some(id))
        {
            edit(job);
            self.save();
        }
    }

    /// Stops a running job, or takes a waiting one out of the row.
    pub fn cancel(&mut self, id: u64) {
        match &self.running {
            Some(running) if running.id == id => running.cancel.store(true, Ordering::Relaxed),
            _ => self.edit(id, |job| job.state = State::Cancelled),
        }
    }

    /// Lets a finished job wait again.
    pub fn retry(&mut self, id: u64) {
        self.edit(id, |job| job.state = State::Waiting);
        self.going = true;
    }

    /// Removes a job; one that runs is stopped.
    pub fn remove(&mut self, id: u64) {
        self.cancel(id);
        self.jobs.retain(|job| job.id != id);
        self.save();
    }

    /// Starts working on the jobs that wait.
    pub fn go(&mut self) {
        self.going = true;
    }

    /// Whether a job is at work.
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// How many jobs wait.
    pub fn waiting(&self) -> usize {
        self.jobs
            .iter()
            .filter(|job| job.state == State::Waiting)
            .count()
    }

    /// Takes over how far the running job is, and starts the next one. `wake` is called on its thread when
    /// there is news.
    pub fn work(&mut self, wake: impl Fn() + Send + Sync + Clone + 'static) {
        if let Some(running) = &self.running {
            let id = running.id;
            let end = match running.end.try_recv() {
                Ok(state) => Some(state),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => {
                    Some(State::Failed("the render thread is gone".to_owned()))
                }
            };
            let step = running.steps.take();
            let job = self.jobs.iter_mut().find(|job| job.id == id);
            if let (Some(job), Some(step)) = (job, step) {
                job.state = State::Running(step);
            }
            if let Some(state) = end {
                self.running = None;
                if let Some(job) = self.jobs.iter_mut().find(|job| job.id == id) {
                    job.state = state;
                }
                self.save();
            }
        }
        if self.going && self.running.is_none() {
            match self.jobs.iter_mut().find(|job| job.state == State::Waiting) {
                None => self.going = false,
                Some(job) => match start(job.clone(), wake) {
                    Ok(running) => {
                        job.state = State::Running(Step::default());
                        self.running = Some(running);
                    }
                    Err(e) => job.state = State::Failed(e.to_string()),
                },
            }
        }
    }

    fn save(&self) {
        let Some(file) = &self.file else { return };
        let mut jobs = self.jobs.clone();
        for job in &mut jobs {
            if matches!(job.state, State::Running(_)) {
                job.state = State::Waiting;
            }
        }
        if let Err(e) = settings::write_json(file, &jobs) {
            tracing::warn!("cannot save the render jobs: {e}");
        }
    }

    /// Ends what is running, which waits for the next start, and gives it a moment to clean up.
    pub fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.cancel.store(true, Ordering::Relaxed);
            let _ = running.end.recv_timeout(CLEAN_UP);
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Runs a job on the thread `render`.
fn start(
    job: RenderJob,
    wake: impl Fn() + Send + Sync + Clone + 'static,
) -> std::io::Result<Running> {
    let (tell, end) = sync_channel(1);
    let running = Running {
        id: job.id,
        cancel: Arc::default(),
        steps: Arc::default(),
        end,
    };
    let (cancel, steps) = (Arc::clone(&running.cancel), Arc::clone(&running.steps));
    let work = move || {
        let render = std::panic::AssertUnwindSafe(|| render(&job, &steps, &cancel, &wake));
        let state = std::panic::catch_unwind(render)
            .unwrap_or_else(|panic| {
                Err(format!("the render thread failed: {}", panic_text(&*panic)))
            })
            .unwrap_or_else(State::Failed);
        let _ = tell.send(state);
        wake();
    };
    std::thread::Builder::new()
        .name("render".to_owned())
        .spawn(work)?;
    Ok(running)
}

fn render(
    job: &RenderJob,
    steps: &Slot<Step>,
    cancel: &AtomicBool,
    wake: &dyn Fn(),
) -> Result<State, String> {
    let files = Files::of(job)?;
    let offline = offline_job(job, &files);
    let opened = offline::open(&offline).map_err(|e| e.to_string())?;
    let mut animator = animator(job)?;
    let mut began = None;
    let progress = |progress: Progress| {
        let began = began.get_or_insert_with(Instant::now);
        let seconds = began.elapsed().as_secs_f64();
        steps.put(Step {
            done: progress.done,
            total: progress.total,
            fps: if seconds > 0.2 {
                progress.done as f64 / seconds
            } else {
                0.0
            },
        });
        wake();
    };
    match opened.run(&mut animator, progress, cancel) {
        Ok(report) => Ok(State::Done {
            outputs: report.outputs,
            frames: report.frames,
            seconds: report.seconds.total,
        }),
        Err(offline::Error::Cancelled) => Ok(State::Cancelled),
        Err(error) => Err(error.to_string()),
    }
}

fn animator(job: &RenderJob) -> Result<Animator, String> {
    let threads = available_threads();
    let options = ModelOptions {
        weights: job.model.as_deref(),
        threads,
        device: job.device.parse().unwrap_or_default(),
        ..ModelOptions::default()
    };
    let engine = load::engine(&options).map_err(|e| e.to_string())?;
    Ok(Animator::new(engine, tuning::motion(&job.motion)))
}

/// The files of a job; what mimic brings itself becomes one for as long as the job runs.
struct Files {
    photo: PathBuf,
    clip: PathBuf,
    _kept: Vec<NamedTempFile>,
}

impl Files {
    fn of(job: &RenderJob) -> Result<Self, String> {
        let mut kept = Vec::new();
        let mut keep = |file: std::io::Result<NamedTempFile>| -> Result<PathBuf, String> {
            let file = file.map_err(|e| e.to_string())?;
            let path = file.path().to_owned();
            kept.push(file);
            Ok(path)
        };
        let photo = match &job.photo {
            PhotoOrigin::File(path) => path.clone(),
            PhotoOrigin::Painting(name) => keep(media::samples::painting_file(name))?,
        };
        let clip = match &job.driver {
            Driver::Clip(path) | Driver::Take(path) => path.clone(),
            Driver::Demo => keep(media::samples::driver_file())?,
            Driver::Camera(_) => {
                return Err(
                    "a render job is driven by a video, pictures or a take: choose a file"
                        .to_owned(),
                );
            }
        };
        Ok(Self {
            photo,
            clip,
            _kept: kept,
        })
    }
}

fn offline_job(job: &RenderJob, files: &Files) -> Job {
    let crop = |face: &Face| {
        let [x1, y1, x2, y2] = face.crop;
        Rect::new(x1, y1, x2, y2)
    };
    let own = job.faces.as_deref().filter(|faces| !faces.is_empty());
    Job {
        photo: files.photo.clone(),
        faces: match own {
            Some(faces) => Faces::Crops(faces.iter().map(crop).collect()),
            None => Faces::Found {
                detector: DetectorChoice::Auto,
                weights: None,
                selection: Selection::All,
            },
        },
        roles: Vec::new(),
        clip: files.clip.clone(),
        window: Window::Auto,
        mirror: job.motion.mirror,
        reference: ReferenceFrame::Number(0),
        output: job.output.clone(),
        audio: true,
        provenance: true,
        signer: None,
        paste: tuning::paste(&job.blend),
        ratios: own.map_or_else(Vec::new, |faces| {
            faces.iter().map(|face| face.ratio).collect()
        }),
        smoothing: job.motion.smoothing,
        enhancement: tuning::enhancement(&job.enhance),
        compositor: gpu::Choice::Auto,
        batch: 4,
    }
}

/// What the preview thread has made.
#[derive(Debug)]
pub enum Preview {
    /// Small pictures of a job's photo and of its driver, and how many frames that has.
    Thumbs {
        /// The job's number.
        id: u64,
        /// The photo, or why it cannot be opened.
        photo: Result<RgbaImage, String>,
        /// The driver's first frame, or why it cannot be opened.
        driver: Result<RgbaImage, String>,
        /// Frames of the clip and frames per second, as it says.
        frames: Option<(u64, f64)>,
    },
    /// A frame of the result, or why there is none.
    Frame {
        /// The job's number.
        id: u64,
        /// The picture.
        picture: Result<RgbaImage, String>,
    },
}

/// The thread `preview`: small pictures of jobs, and single frames of their results. The newest wish for a
/// frame wins.
#[derive(Debug)]
pub struct Previewer {
    frames: Arc<Slot<(RenderJob, u64)>>,
    thumbs: SyncSender<RenderJob>,
    answers: Receiver<Preview>,
}

impl Previewer {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system gives none.
    pub fn start(wake: impl Fn() + Send + 'static) -> std::io::Result<Self> {
        let (thumbs, orders) = sync_channel::<RenderJob>(MOST);
        let (tell, answers) = sync_channel(MOST);
        let frames = Arc::new(Slot::<(RenderJob, u64)>::default());
        let asked = Arc::clone(&frames);
        let work = move || {
            // One model at a time: the one looked through last.
            let mut loaded: Option<(Option<PathBuf>, Motion, Animator)> = None;
            loop {
                match orders.try_recv() {
                    Ok(job) => {
                        if tell.send(look(&job)).is_err() {
                            return;
                        }
                        wake();
                        continue;
                    }
                    Err(TryRecvError::Empty) => {}
                    Err(TryRecvError::Disconnected) => return,
                }
                let Some((job, number)) = asked.wait(Duration::from_millis(100)) else {
                    continue;
                };
                let make = std::panic::AssertUnwindSafe(|| frame(&job, number, &mut loaded));
                let picture = std::panic::catch_unwind(make).unwrap_or_else(|panic| {
                    Err(format!("the preview failed: {}", panic_text(&*panic)))
                });
                if tell
                    .send(Preview::Frame {
                        id: job.id,
                        picture,
                    })
                    .is_err()
                {
                    return;
                }
                wake();
            }
        };
        std::thread::Builder::new()
            .name("preview".to_owned())
            .spawn(work)?;
        Ok(Self {
            frames,
            thumbs,
            answers,
        })
    }

    /// Asks for a job's small pictures.
    pub fn thumbs(&self, job: &RenderJob) {
        let _ = self.thumbs.try_send(job.clone());
    }

    /// Asks for frame `number` of a job's result; it replaces the wish before.
    pub fn frame(&self, job: &RenderJob, number: u64) {
        self.frames.put((job.clone(), number));
    }

    /// What has come since the last call.
    pub fn answers(&self) -> impl Iterator<Item = Preview> {
        self.answers.try_iter()
    }
}

fn frame(
    job: &RenderJob,
    number: u64,
    loaded: &mut Option<(Option<PathBuf>, Motion, Animator)>,
) -> Result<RgbaImage, String> {
    let files = Files::of(job)?;
    if loaded
        .as_ref()
        .is_none_or(|(model, motion, _)| (model, motion) != (&job.model, &job.motion))
    {
        *loaded = Some((job.model.clone(), job.motion, animator(job)?));
    }
    let Some((_, _, animator)) = loaded else {
        return Err("no model".to_owned());
    };
    offline::preview(&offline_job(job, &files), animator, number).map_err(|e| e.to_string())
}

fn look(job: &RenderJob) -> Preview {
    let small = |picture: RgbaImage| {
        let (width, height) = picture.dimensions();
        let longest = width.max(height).max(1);
        let fit = |side: u32| (side * THUMB / longest).max(1);
        image::imageops::thumbnail(&picture, fit(width), fit(height))
    };
    let files = Files::of(job);
    let mut frames = None;
    let mut first = |clip: &Path| -> Result<RgbaImage, String> {
        if take::is_take(clip) {
            let fps = media::clip::STILLS_RATE.as_f64();
            let mut take = take::Steady::open(clip, fps).map_err(|e| e.to_string())?;
            frames = Some((take.frames(), fps));
            let pose = take.read().map_err(|e| e.to_string())?;
            return pose
                .map(|pose| drawn(&pose))
                .ok_or_else(|| "it holds no motion".to_owned());
        }
        let mut open = || -> Result<RgbaImage, media::Error> {
            let mut source = media::clip::open(clip, &ReadOptions::default())?;
            let info = source.info();
            frames = info.frames.map(|count| (count, info.fps.as_f64()));
            let mut frame = RgbaImage::default();
            source.read(&mut frame)?;
            Ok(frame)
        };
        open().map_err(|e| e.to_string())
    };
    let (photo, driver) = match &files {
        Ok(files) => (
            media::open_photo(&files.photo).map_err(|e| e.to_string()),
            first(&files.clip),
        ),
        Err(why) => (Err(why.clone()), Err(why.clone())),
    };
    Preview::Thumbs {
        id: job.id,
        photo: photo.map(small),
        driver: driver.map(small),
        frames,
    }
}

/// A pose has no picture: its keypoints as dots.
fn drawn(pose: &Keypoints) -> RgbaImage {
    let place = |v: f32| (v + 1.0) / 2.0 * THUMB as f32;
    RgbaImage::from_fn(THUMB, THUMB, |x, y| {
        let (x, y) = (x as f32 + 0.5, y as f32 + 0.5);
        let far = |[a, b]: &[f32; 2]| (place(*a) - x).hypot(place(*b) - y);
        let nearest = pose.value.iter().map(far).fold(f32::MAX, f32::min);
        // A dot of five pixels with a soft edge.
        let dot = (5.5 - nearest).clamp(0.0, 1.0);
        let mix = |back: f32, front: f32| (back + dot * (front - back)) as u8;
        image::Rgba([mix(38.0, 240.0), mix(40.0, 161.0), mix(45.0, 90.0), 255])
    })
}

/// A name for a result that no file and no other job has.
pub fn free_name(folder: &Path, stem: &str, jobs: &[RenderJob]) -> PathBuf {
    let taken = |path: &PathBuf| path.exists() || jobs.iter().any(|job| job.output == *path);
    let name = |n: u32| match n {
        1 => folder.join(format!("{stem}.mp4")),
        n => folder.join(format!("{stem}-{n}.mp4")),
    };
    let free = (1..100_000).map(name).find(|path| !taken(path));
    free.unwrap_or_else(|| name(1))
}

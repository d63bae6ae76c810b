//! A run of `mimic train` that is watched: its curves, and its latest grid of pictures.
//!
//! The thread `watch` reads the run's folder, looks again every two seconds and hands over what is new. The folder
//! may hold anything: what is kept of it has a bound, and what cannot be read is said while the rest stays.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, SystemTime};
use std::{fs, io};

use eframe::egui::Context;
use image::RgbaImage;

use super::app::App;
use super::picture::Picture;
use super::reel::fitted;
use super::words::brief;
use crate::media;
use crate::pipeline::live::panic_text;
use crate::pipeline::slot::Slot;
use crate::train::curves::{Curves, Scalar};

/// Between two looks into the folder.
const EVERY: Duration = Duration::from_secs(2);
/// Values that are read before they are shown, and before the thread asks whether it is still wanted.
const BITE: usize = 4096;
/// Points that a curve keeps: more than a plot has pixels.
const MOST_POINTS: usize = 1024;
/// A run has about ten.
const MOST_CURVES: usize = 32;
/// Bytes of a curve's name.
const LONGEST_TAG: usize = 64;
/// Entries of a folder that are looked at.
const MOST_ENTRIES: usize = 20_000;
/// Larger grids are shown smaller.
const LARGEST_SIDE: u32 = 4096;
/// How often a picture is tried: the first time the run may be writing it.
const TRIES: u8 = 2;
/// How the names of event files begin.
const EVENTS: &str = "events.out.tfevents.";
/// The curve that is shown first.
const SUM: &str = "loss/sum";

/// What the Train place knows.
pub(super) struct Training {
    watch: Option<Watch>,
    /// None until the first look is over.
    pub(super) seen: Option<Seen>,
    /// The latest grid, once its file has a name here.
    pub(super) grid: Picture,
    pub(super) grid_name: Option<String>,
}

/// What was read so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) curves: Vec<Curve>,
    pub(super) trouble: Option<Trouble>,
}

/// What is the matter with the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    NoRun,
    /// The folder cannot be read, and why.
    Gone(String),
    /// A file in it cannot be read, and why.
    Unreadable(String),
}

/// A curve with a bound on its points. When it is full each two of them become one, and from then on twice as many
/// values make a point: it is equally fine from its beginning to its end.
#[derive(Clone, Debug)]
pub(super) struct Curve {
    pub(super) tag: String,
    /// As it was read, even if it is no number.
    pub(super) latest: Point,
    points: Vec<Point>,
    /// So many values make a point, which is their mean, as a value is the mean of some steps.
    every: u32,
    /// Values of the next point, and their sum.
    count: u32,
    sum: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Point {
    pub(super) step: u64,
    pub(super) value: f32,
}

impl Training {
    pub(super) fn new(grid: Picture) -> Self {
        Self {
            watch: None,
            seen: None,
            grid,
            grid_name: None,
        }
    }

    /// Takes over what the thread has read.
    pub(super) fn listen(&mut self) {
        let Some(watch) = &self.watch else { return };
        if let Some(seen) = watch.found.seen.take() {
            self.seen = Some(seen);
        }
        if let Some((name, picture)) = watch.found.grid.take() {
            self.grid.show(&picture);
            self.grid_name = Some(name);
        }
    }
}

impl App {
    /// Watches the run of this folder from now on, and remembers it.
    pub(super) fn watch_run(&mut self, folder: PathBuf) {
        self.settings.run = Some(folder);
        self.training.watch = None;
        (self.training.seen, self.training.grid_name) = (None, None);
        self.look_at_run();
    }

    /// Begins to read the run of the settings, unless that is being done: nobody needs it before it is looked at.
    pub(super) fn look_at_run(&mut self) {
        let Some(folder) = self.settings.run.clone() else {
            return;
        };
        if self.training.watch.is_some() {
            return;
        }
        match Watch::start(folder, self.device.max_side(), &self.ctx) {
            Ok(watch) => self.training.watch = Some(watch),
            Err(e) => self.notices.warn(e.to_string()),
        }
    }
}

impl Seen {
    fn take(&mut self, values: Vec<Scalar>) {
        for Scalar { tag, step, value } in values {
            let known = self.curves.iter().position(|curve| curve.tag == tag);
            let at = match known {
                Some(at) => at,
                None if self.curves.len() >= MOST_CURVES || is_odd(&tag) => continue,
                None => {
                    let at = if tag == SUM { 0 } else { self.curves.len() };
                    self.curves.insert(at, Curve::new(tag));
                    at
                }
            };
            if let Some(curve) = self.curves.get_mut(at) {
                curve.push(step, value);
            }
        }
    }
}

/// No name for a curve.
fn is_odd(tag: &str) -> bool {
    tag.is_empty() || tag.len() > LONGEST_TAG || tag.contains(char::is_control)
}

impl Curve {
    pub(super) fn new(tag: String) -> Self {
        Self {
            tag,
            latest: Point {
                step: 0,
                value: f32::NAN,
            },
            points: Vec::new(),
            every: 1,
            count: 0,
            sum: 0.0,
        }
    }

    pub(super) fn push(&mut self, step: u64, value: f32) {
        if step <= self.latest.step {
            self.rewind(step);
        }
        self.latest = Point { step, value };
        if !value.is_finite() {
            return;
        }
        self.count += 1;
        self.sum += f64::from(value);
        if self.count < self.every {
            return;
        }
        let value = (self.sum / f64::from(self.count)) as f32;
        self.points.push(Point { step, value });
        (self.count, self.sum) = (0, 0.0);
        if self.points.len() >= MOST_POINTS {
            self.thin();
        }
    }

    /// What is to be drawn, in the order of steps, the latest value at the end.
    pub(super) fn points(&self) -> Vec<Point> {
        let drawn = self.points.last().map(|point| point.step) == Some(self.latest.step);
        let latest = (!drawn && self.latest.value.is_finite()).then_some(self.latest);
        self.points.iter().copied().chain(latest).collect()
    }

    /// A run that is resumed, or started anew, does these steps again.
    fn rewind(&mut self, step: u64) {
        let before = self.points.partition_point(|point| point.step < step);
        self.points.truncate(before);
        (self.count, self.sum) = (0, 0.0);
        if before == 0 {
            self.every = 1;
        }
    }

    fn thin(&mut self) {
        let mean = |pair: &[Point]| match pair {
            [a, b] => {
                let value = ((f64::from(a.value) + f64::from(b.value)) / 2.0) as f32;
                Some(Point { value, ..*b })
            }
            _ => pair.first().copied(),
        };
        self.points = self.points.chunks(2).filter_map(mean).collect();
        self.every = self.every.saturating_mul(2);
    }
}

/// The thread that reads a folder; it ends when this is dropped.
struct Watch {
    found: Arc<Found>,
    _wanted: SyncSender<()>,
}

/// What the thread hands over.
#[derive(Default)]
struct Found {
    seen: Slot<Seen>,
    grid: Slot<(String, RgbaImage)>,
}

impl Watch {
    fn start(folder: PathBuf, max_side: u32, ctx: &Context) -> io::Result<Self> {
        let (wanted, still_wanted) = sync_channel(1);
        let found = Arc::<Found>::default();
        let mut run = Run {
            folder,
            max_side,
            events: None,
            wrong: None,
            seen: Seen::default(),
            tried: None,
            still_wanted,
            found: Arc::clone(&found),
            ctx: ctx.clone(),
        };
        std::thread::Builder::new()
            .name("watch".to_owned())
            .spawn(move || run.watch())?;
        Ok(Self {
            found,
            _wanted: wanted,
        })
    }
}

/// A run's folder, as far as it was read.
struct Run {
    folder: PathBuf,
    max_side: u32,
    /// The event file that is read: those before it were read to their ends.
    events: Option<Curves>,
    /// One that cannot be read, and why.
    wrong: Option<(PathBuf, String)>,
    seen: Seen,
    tried: Option<Tried>,
    still_wanted: Receiver<()>,
    found: Arc<Found>,
    ctx: Context,
}

/// A grid that was tried.
struct Tried {
    file: Entry,
    times: u8,
    wrong: Option<String>,
}

/// A file as it was when it was looked at: one that was written again is another. The newest is the largest.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    modified: SystemTime,
    path: PathBuf,
    bytes: u64,
}

impl Run {
    fn watch(&mut self) {
        loop {
            self.look();
            if self.still_wanted.recv_timeout(EVERY) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    }

    /// Reads what is new.
    fn look(&mut self) {
        let mut files = match entries(&self.folder, |name| name.starts_with(EVENTS)) {
            Ok(files) => files,
            Err(e) => return self.tell(Some(Trouble::Gone(e.to_string()))),
        };
        files.sort_by(|a, b| a.path.cmp(&b.path));
        self.read(&files);
        let wrong = self.load_grid();
        let wrong = wrong.or_else(|| self.wrong.as_ref().map(|(_, why)| why.clone()));
        let nothing = files.is_empty() && self.tried.is_none();
        self.tell(match wrong {
            Some(why) => Some(Trouble::Unreadable(why)),
            None => nothing.then_some(Trouble::NoRun),
        });
    }

    /// Reads the event files on, in the order of their names, which is that of their times: a run that is resumed
    /// begins a new one.
    fn read(&mut self, files: &[Entry]) {
        for Entry { path, .. } in files {
            let mut events = match self.events.take() {
                Some(events) if events.path() > path.as_path() => {
                    self.events = Some(events);
                    continue;
                }
                Some(events) if events.path() == path => events,
                _ => Curves::of(path),
            };
            let end = self.read_file(&mut events);
            self.events = Some(events);
            match end {
                Err(e) => self.wrong = Some((path.clone(), format!("{}: {e}", brief(path)))),
                Ok(()) => self.wrong = self.wrong.take().filter(|(of, _)| of != path),
            }
        }
    }

    /// To its end, in bites.
    fn read_file(&mut self, events: &mut Curves) -> io::Result<()> {
        while self.is_wanted() {
            let values = events.more(BITE)?;
            if values.is_empty() {
                break;
            }
            self.seen.take(values);
            self.tell(self.seen.trouble.clone());
        }
        Ok(())
    }

    /// Opens the newest grid unless that was done; gives what is wrong with it.
    fn load_grid(&mut self) -> Option<String> {
        let grids = entries(&self.folder.join("grids"), |name| name.ends_with(".png"));
        let file = grids.unwrap_or_default().into_iter().max()?;
        let before = self.tried.take().filter(|tried| tried.file == file);
        let times = before.as_ref().map_or(0, |tried| tried.times);
        if times >= TRIES {
            self.tried = before;
        } else {
            let (times, wrong) = match open(&file.path, self.max_side) {
                Ok(picture) => {
                    let name = file.path.file_name().unwrap_or_default();
                    let name = name.to_string_lossy().into_owned();
                    self.found.grid.put((name, picture));
                    (TRIES, None)
                }
                Err(why) => (times + 1, Some(why)),
            };
            self.tried = Some(Tried { file, times, wrong });
        }
        let tried = self.tried.as_ref().filter(|tried| tried.times >= TRIES);
        tried.and_then(|tried| tried.wrong.clone())
    }

    /// Hands over what was read, and whether anything is wrong.
    fn tell(&mut self, trouble: Option<Trouble>) {
        self.seen.trouble = trouble;
        self.found.seen.put(self.seen.clone());
        super::wake(&self.ctx);
    }

    fn is_wanted(&self) -> bool {
        self.still_wanted.try_recv() != Err(TryRecvError::Disconnected)
    }
}

/// The files of a folder with such names. Files alone: a pipe would never be read to its end.
fn entries(folder: &Path, wanted: impl Fn(&str) -> bool) -> io::Result<Vec<Entry>> {
    let all = fs::read_dir(folder)?.take(MOST_ENTRIES).flatten();
    let named = all.filter(|entry| entry.file_name().to_str().is_some_and(&wanted));
    let files = named.filter_map(|entry| {
        let path = entry.path();
        let about = fs::metadata(&path).ok().filter(fs::Metadata::is_file)?;
        Some(Entry {
            modified: about.modified().ok()?,
            bytes: about.len(),
            path,
        })
    });
    Ok(files.collect())
}

/// A grid as it is shown.
fn open(path: &Path, max_side: u32) -> Result<RgbaImage, String> {
    let open = || media::open_photo(path).map_err(|e| e.to_string());
    let opened = std::panic::catch_unwind(open);
    let panicked = |panic: Box<dyn std::any::Any + Send>| {
        Err(format!("{}: {}", brief(path), panic_text(&*panic)))
    };
    let picture = opened.unwrap_or_else(panicked)?;
    Ok(fitted(&picture, LARGEST_SIDE.min(max_side)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_long_curve_is_thinned_to_means_and_stays_equally_fine() {
        let mut curve = Curve::new("loss/sum".to_owned());
        for step in 1..=100_000 {
            curve.push(step, step as f32);
            assert!(curve.points().len() <= MOST_POINTS);
        }
        let points = curve.points();
        assert!(points.len() > MOST_POINTS / 2);
        let latest = Point {
            step: 100_000,
            value: 100_000.0,
        };
        assert_eq!(points.last(), Some(&latest));
        let (gap, first) = (points[1].step - points[0].step, points[0]);
        assert!(first.step == gap && first.value == (gap + 1) as f32 / 2.0);
        let inner = &points[..points.len() - 1];
        assert!(inner.windows(2).all(|two| two[1].step - two[0].step == gap));
    }

    #[test]
    fn steps_that_are_done_again_take_the_place_of_what_was() {
        let mut curve = Curve::new("loss/sum".to_owned());
        for step in 1..=5 {
            curve.push(step * 10, 1.0);
        }
        curve.push(30, 7.0);
        let points: Vec<(u64, f32)> = curve.points().iter().map(|p| (p.step, p.value)).collect();
        assert_eq!(points, [(10, 1.0), (20, 1.0), (30, 7.0)]);
        curve.push(40, f32::NAN);
        assert_eq!(curve.points().len(), 3, "no number is no point");
        assert!(curve.latest.value.is_nan() && curve.latest.step == 40);
    }

    #[test]
    fn of_many_and_odd_names_a_bounded_number_becomes_curves_and_the_sum_is_first() {
        let mut seen = Seen::default();
        let scalar = |tag: String| Scalar {
            tag,
            step: 1,
            value: 1.0,
        };
        let odd = ["", "two\nlines", &"long".repeat(100)].map(String::from);
        seen.take(odd.into_iter().map(scalar).collect());
        assert!(seen.curves.is_empty());
        seen.take(["loss/l1", SUM].map(|tag| scalar(tag.to_owned())).to_vec());
        seen.take((0..1000).map(|i| scalar(i.to_string())).collect());
        assert_eq!(seen.curves.len(), MOST_CURVES);
        assert_eq!(seen.curves[0].tag, SUM);
    }

    proptest! {
        #[test]
        fn any_values_in_any_order_are_kept_in_order_and_bounded(
            values in proptest::collection::vec((any::<u64>(), any::<f32>()), 0..3000),
        ) {
            let mut curve = Curve::new(String::new());
            for (step, value) in values {
                curve.push(step, value);
                let points = curve.points();
                prop_assert!(points.len() <= MOST_POINTS);
                prop_assert!(points.iter().all(|point| point.value.is_finite()));
            }
            let points = curve.points();
            prop_assert!(points.windows(2).all(|two| two[0].step < two[1].step));
        }
    }
}

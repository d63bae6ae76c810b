//! Making clips ready for training: finds and follows the face, cuts where the scene changes or the face
//! leaves, and writes the frames of each part as pictures of one size.
//!
//! The crop of a part stands still, as that of VoxCeleb's clips does: a crop that followed would take out the
//! movements that are to be learnt. Two passes over each clip, the first for places alone; memory does not
//! grow with the pictures.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use image::RgbaImage;
use serde::{Deserialize, Serialize};

use super::data::{self, Clip, Kind};
use super::error::Error;
use crate::faces::{self, Tracker};
use crate::frame;
use crate::geometry::Rect;
use crate::media::clip::{self, FrameSource, ReadOptions};

/// Longest side at which clips are looked at; what is cut out of them is 256 or 512 wide.
const LONGEST: u32 = 1280;

/// Parts of fewer frames are left out.
const SHORTEST: usize = 12;

/// Parts of more frames are cut.
const MOST: usize = 1024;

/// The face has left when its crop overlaps that of the part's beginning by less than this.
const STAYS: f64 = 0.55;

/// Side of the thumbnails that scene changes are seen by.
const THUMBNAIL: u32 = 32;

/// Mean difference of thumbnails, of 255, that is a change of scene.
const CUT: f64 = 28.0;

/// Name of the report in the output folder.
pub const REPORT: &str = "prepared.json";

/// What to do.
#[derive(Clone, Debug)]
pub struct Job {
    /// The folder of clips, in any layout that training reads.
    pub input: PathBuf,
    /// Where frames go.
    pub output: PathBuf,
    /// Their width and height.
    pub size: u32,
    /// Take the square in the middle instead of looking for a face.
    pub no_face: bool,
}

/// What became of a folder of clips.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The size of the frames.
    pub size: u32,
    /// Whether faces were looked for.
    pub faces: bool,
    /// By the clip's file name, with the folder it was in.
    pub clips: BTreeMap<String, Outcome>,
    /// Files that are no clips, and why.
    pub not_clips: BTreeMap<String, String>,
}

/// What became of one clip.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Folders of frames.
    pub parts: usize,
    /// Frames in them.
    pub frames: usize,
    /// Frames that were left out, by the reason.
    pub left_out: BTreeMap<String, usize>,
    /// Why there is nothing of it.
    pub failed: Option<String>,
}

impl Report {
    /// Frames written in all.
    pub fn frames(&self) -> usize {
        self.clips.values().map(|clip| clip.frames).sum()
    }

    /// Parts written in all.
    pub fn parts(&self) -> usize {
        self.clips.values().map(|clip| clip.parts).sum()
    }
}

/// Prepares every clip that an earlier run has not; `tell` hears how many are done, of how many, and the
/// next one's name. The report is written after each.
///
/// # Errors
/// When the folders cannot be read or written. A clip that cannot be read is in the report.
pub fn run(
    job: &Job,
    mut tell: impl FnMut(usize, usize, &str),
    stop: &AtomicBool,
) -> Result<Report, Error> {
    fs::create_dir_all(&job.output).map_err(|e| Error::write(&job.output, e))?;
    let mut report = earlier(job)?;
    let mut clips: Vec<(&str, Clip)> = Vec::new();
    let split = job.input.join("train").is_dir();
    for (folder, root) in [("train", "train"), ("test", "test"), ("", "")] {
        if split == root.is_empty() {
            continue;
        }
        // Listed as a flat folder, so that nothing is divided here.
        let found = match data::list(&job.input.join(root)) {
            Err(_) if root == "test" => continue,
            found => found?,
        };
        for (path, why) in found.left_out {
            report.not_clips.insert(name_of(&path), why);
        }
        clips.extend(found.clips.into_iter().map(|clip| (folder, clip)));
    }
    if clips.is_empty() {
        return Err(Error::data(
            &job.input,
            "there is no clip: it holds neither videos nor folders of frames",
        ));
    }
    let mut tracker = if job.no_face {
        None
    } else {
        Some(Tracker::new()?)
    };
    let total = clips.len();
    for (done, (folder, clip)) in clips.iter().enumerate() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        tell(done, total, &clip.name);
        let key = Path::new(folder).join(clip.path.file_name().unwrap_or_default());
        let key = key.to_string_lossy().into_owned();
        if report.clips.contains_key(&key) {
            continue;
        }
        let outcome = match prepare(job, &job.output.join(folder), clip, tracker.as_mut(), stop) {
            Ok(Some(outcome)) => outcome,
            Ok(None) => break,
            // A disk that is full is full for the next clip too.
            Err(error @ Error::Write { .. }) => return Err(error),
            Err(error) => Outcome {
                failed: Some(error.to_string()),
                ..Outcome::default()
            },
        };
        report.clips.insert(key, outcome);
        write_report(job, &report)?;
    }
    write_report(job, &report)?;
    Ok(report)
}

/// The report of a run that was interrupted, if it was for the same frames.
fn earlier(job: &Job) -> Result<Report, Error> {
    let fresh = Report {
        size: job.size,
        faces: !job.no_face,
        ..Report::default()
    };
    let path = job.output.join(REPORT);
    let Ok(text) = fs::read_to_string(&path) else {
        return Ok(fresh);
    };
    let report: Report = serde_json::from_str(&text).map_err(|e| {
        Error::data(
            &path,
            format!("it is no report ({e}): remove it to prepare everything anew"),
        )
    })?;
    if (report.size, report.faces) != (fresh.size, fresh.faces) {
        return Err(Error::data(
            &path,
            format!(
                "the frames there are of {} pixels, {}: take another folder, or remove this one",
                report.size,
                if report.faces {
                    "around faces"
                } else {
                    "of the middle"
                }
            ),
        ));
    }
    Ok(report)
}

fn write_report(job: &Job, report: &Report) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(report).unwrap_or_default();
    data::write_text(&job.output.join(REPORT), &text)
}

/// Both passes over one clip; none when it was stopped.
fn prepare(
    job: &Job,
    folder: &Path,
    clip: &Clip,
    tracker: Option<&mut Tracker>,
    stop: &AtomicBool,
) -> Result<Option<Outcome>, Error> {
    if clip.kind == Kind::Strip {
        return Err(Error::data(
            &clip.path,
            "frames side by side have their size: copy the file, it is read as it is",
        ));
    }
    let mut source = open(&clip.path)?;
    let mut outcome = Outcome::default();
    let seen = look(source.as_mut(), tracker, stop)?;
    let parts = parts(&seen, &mut outcome.left_out);
    fs::create_dir_all(folder).map_err(|e| Error::write(folder, e))?;
    source.rewind()?;
    let mut picture = RgbaImage::default();
    let mut number = 0;
    for (i, part) in parts.iter().enumerate() {
        // What is half done has a name that no reader takes for a clip.
        let half = folder.join(format!(".half-{}", clip.name));
        let _ = fs::remove_dir_all(&half);
        fs::create_dir(&half).map_err(|e| Error::write(&half, e))?;
        while number < part.frames.end && source.read(&mut picture)? {
            if stop.load(Ordering::Relaxed) {
                let _ = fs::remove_dir_all(&half);
                return Ok(None);
            }
            if number >= part.frames.start {
                let crop = part
                    .crop
                    .intersect(&Rect::of_size(picture.width(), picture.height()));
                let small = frame::view(&picture, crop, job.size, job.size)
                    .map_err(|e| Error::data(&clip.path, e.to_string()))?;
                let path = half.join(format!("{:07}.png", number - part.frames.start));
                let rgb = image::DynamicImage::from(small).into_rgb8();
                rgb.save(&path)
                    .map_err(|e| Error::write(&path, std::io::Error::other(e)))?;
                outcome.frames += 1;
            }
            number += 1;
        }
        let whole = folder.join(format!("{}#{i:03}", clip.name));
        let _ = fs::remove_dir_all(&whole);
        fs::rename(&half, &whole).map_err(|e| Error::write(&whole, e))?;
        outcome.parts += 1;
    }
    if outcome.parts == 0 {
        outcome.failed = Some(match outcome.left_out.keys().next() {
            Some(why) => format!("nothing was left of it: {why}"),
            None => "it holds no frames".to_owned(),
        });
    }
    Ok(Some(outcome))
}

/// Opens a clip at its size, or smaller where it is very large.
fn open(path: &Path) -> Result<Box<dyn FrameSource>, Error> {
    let mut source = clip::open(path, &ReadOptions::default())?;
    let (width, height) = (source.info().width, source.info().height);
    let longest = width.max(height);
    if longest > LONGEST {
        let side = |n: u32| (u64::from(n) * u64::from(LONGEST) / u64::from(longest)).max(1) as u32;
        source.reopen(&ReadOptions {
            size: Some((side(width), side(height))),
            ..ReadOptions::default()
        })?;
    }
    Ok(source)
}

/// What the first pass remembers of a frame.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// Where the face's crop would be; none without a face.
    crop: Option<Rect>,
    /// Whether another scene begins here.
    cut: bool,
}

fn look(
    source: &mut dyn FrameSource,
    mut tracker: Option<&mut Tracker>,
    stop: &AtomicBool,
) -> Result<Vec<Seen>, Error> {
    let mut seen = Vec::new();
    let mut before: Option<Vec<u8>> = None;
    let mut picture = RgbaImage::default();
    if let Some(tracker) = tracker.as_mut() {
        tracker.reset();
    }
    while !stop.load(Ordering::Relaxed) && source.read(&mut picture)? {
        let (width, height) = picture.dimensions();
        let thumbnail = frame::view(&picture, Rect::of_size(width, height), THUMBNAIL, THUMBNAIL)
            .map_err(|e| Error::data(&source.info().path, e.to_string()))?
            .into_raw();
        let cut = before
            .as_ref()
            .is_some_and(|before| difference(before, &thumbnail) > CUT);
        before = Some(thumbnail);
        let crop = match tracker.as_mut() {
            None => Some(faces::middle(width, height)),
            Some(tracker) => {
                if cut {
                    tracker.reset();
                }
                let tracked = tracker.follow(&picture);
                tracked.found.then_some(tracked.crop)
            }
        };
        seen.push(Seen { crop, cut });
    }
    Ok(seen)
}

fn difference(a: &[u8], b: &[u8]) -> f64 {
    let sum: u64 = a
        .iter()
        .zip(b)
        .map(|(a, b)| u64::from(a.abs_diff(*b)))
        .sum();
    // Alpha does not differ.
    sum as f64 / (a.len() * 3 / 4).max(1) as f64
}

/// Frames that belong together, and the crop that they share.
#[derive(Clone, Debug, PartialEq)]
struct Part {
    frames: Range<usize>,
    crop: Rect,
}

/// Cuts a clip; what is left out is counted by its reason.
fn parts(seen: &[Seen], left_out: &mut BTreeMap<String, usize>) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut start = 0;
    let mut first: Option<Rect> = None;
    let mut close = |frames: Range<usize>| {
        let crops: Vec<Rect> = seen[frames.clone()].iter().filter_map(|s| s.crop).collect();
        if frames.len() >= SHORTEST && !crops.is_empty() {
            parts.push(Part {
                crop: shared(&crops),
                frames,
            });
        } else if !frames.is_empty() {
            let why = format!("a part of under {SHORTEST} frames");
            *left_out.entry(why).or_default() += frames.len();
        }
    };
    let mut lost = 0;
    for (i, frame) in seen.iter().enumerate() {
        let moved = match (first, frame.crop) {
            (Some(first), Some(crop)) => first.iou(&crop) < STAYS,
            _ => false,
        };
        if frame.cut || moved || frame.crop.is_none() || i - start == MOST {
            close(start..i);
            (start, first) = (i, None);
        }
        match frame.crop {
            None => {
                lost += 1;
                start = i + 1;
            }
            Some(crop) => first = first.or(Some(crop)),
        }
    }
    close(start..seen.len());
    if lost > 0 {
        left_out.insert("no face".to_owned(), lost);
    }
    parts
}

/// The square of the mean place and the largest size of some.
fn shared(crops: &[Rect]) -> Rect {
    let n = crops.len().max(1) as i64;
    let mean =
        |of: fn(&Rect) -> i32| (crops.iter().map(|c| i64::from(of(c))).sum::<i64>() / n) as i32;
    let side = crops.iter().map(Rect::width).max().unwrap_or(1) as i32;
    let x = mean(|c| c.x1.midpoint(c.x2)) - side / 2;
    let y = mean(|c| c.y1.midpoint(c.y2)) - side / 2;
    // Crops lie in the picture, so that a mean place can be off by half the difference of sizes only.
    let (x, y) = (x.max(0), y.max(0));
    Rect::new(x, y, x + side, y + side)
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(count: usize, x: i32) -> Vec<Seen> {
        let crop = Some(Rect::new(x, 10, x + 100, 110));
        vec![Seen { crop, cut: false }; count]
    }

    #[test]
    fn clips_are_cut_at_scenes_and_where_the_face_leaves() {
        let mut seen = frames(20, 0);
        seen.extend(frames(30, 5));
        seen.extend(frames(20, 200));
        seen[20].cut = true;
        let mut left_out = BTreeMap::new();
        let found = parts(&seen, &mut left_out);
        let cuts: Vec<Range<usize>> = found.iter().map(|p| p.frames.clone()).collect();
        assert_eq!(cuts, [0..20, 20..50, 50..70]);
        assert_eq!(found[2].crop, Rect::new(200, 10, 300, 110));
        assert!(left_out.is_empty());
    }

    #[test]
    fn what_is_left_out_is_counted_with_its_reason() {
        let mut seen = frames(5, 0);
        seen.extend(vec![
            Seen {
                crop: None,
                cut: false
            };
            7
        ]);
        seen.extend(frames(40, 0));
        let mut left_out = BTreeMap::new();
        let found = parts(&seen, &mut left_out);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].frames, 12..52);
        assert_eq!(left_out["no face"], 7);
        assert_eq!(left_out["a part of under 12 frames"], 5);
        assert!(parts(&[], &mut left_out).is_empty());
    }

    #[test]
    fn long_parts_are_cut() {
        let found = parts(&frames(MOST * 2 + 20, 0), &mut BTreeMap::new());
        let lengths: Vec<usize> = found.iter().map(|p| p.frames.len()).collect();
        assert_eq!(lengths, [MOST, MOST, 20]);
    }
}

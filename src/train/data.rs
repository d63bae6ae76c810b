//! Clips on disk, in the layouts of PaddleGAN's `FirstOrderDataset`: a folder with `train/` and `test/`, or
//! a flat one that is split here; in it videos, GIFs, folders of frames, and strips of frames side by side.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use image::{RgbaImage, imageops};

use super::config::DataConfig;
use super::error::Error;
use super::prepare;
use super::random::Random;
use crate::checkpoint;
use crate::faces;
use crate::frame;
use crate::geometry::Rect;
use crate::media::clip::{self, ReadOptions};
use crate::media::{natural, open_photo};

/// Which part of the clips.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// To learn from.
    Train,
    /// To measure by.
    Test,
}

impl Split {
    fn folder(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Test => "test",
        }
    }
}

/// One clip.
#[derive(Clone, Debug, PartialEq)]
pub struct Clip {
    /// Its file or folder.
    pub path: PathBuf,
    /// Its name, without an ending.
    pub name: String,
    /// How its frames are stored.
    pub kind: Kind,
}

/// How a clip's frames are stored.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// A video or GIF.
    Video,
    /// A folder of pictures, in their order.
    Folder(Vec<PathBuf>),
    /// One picture of frames side by side.
    Strip,
}

impl Clip {
    /// Who is in it: the name before the first `#`.
    pub fn identity(&self) -> &str {
        self.name.split('#').next().unwrap_or_default()
    }
}

/// The clips of one split.
#[derive(Clone, Debug)]
pub struct Clips {
    /// In the order of their names.
    pub clips: Vec<Clip>,
    /// What in the folder is no clip, and why.
    pub left_out: Vec<(PathBuf, String)>,
}

/// Share of a flat folder that is kept for measuring.
const TEST_SHARE: f64 = 0.2;

/// Files that ffmpeg is asked about.
const VIDEOS: [&str; 14] = [
    "mp4", "mov", "gif", "avi", "mkv", "webm", "m4v", "mpg", "mpeg", "wmv", "flv", "ts", "3gp",
    "ogv",
];

/// Files that hold a picture.
const PICTURES: [&str; 7] = ["png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff"];

/// Finds the clips of a split.
///
/// # Errors
/// When the folder cannot be read or holds no clip.
pub fn find(data: &DataConfig, split: Split) -> Result<Clips, Error> {
    let root = &data.root;
    if !root.is_dir() {
        return Err(Error::data(
            root,
            "there is no such folder; give one with --data or -o dataset.train.dataroot=DIR",
        ));
    }
    let found = if root.join("train").is_dir() {
        let folder = root.join(split.folder());
        if !folder.is_dir() {
            return Err(Error::data(
                root,
                format!("it has train/ but no {}/", split.folder()),
            ));
        }
        list(&folder)?
    } else {
        let all = list(root)?;
        let (train, test) = divide(all.clips);
        Clips {
            clips: if split == Split::Train { train } else { test },
            ..all
        }
    };
    if found.clips.is_empty() {
        let mut what = format!(
            "there is no clip for {}: put videos, GIFs or folders of frames into it",
            if split == Split::Train {
                "training"
            } else {
                "testing"
            }
        );
        if let Some((path, why)) = found.left_out.first() {
            what += &format!(
                " ({} of other files, such as {}: {why})",
                found.left_out.len(),
                path.display()
            );
        }
        return Err(Error::data(root, what));
    }
    Ok(found)
}

/// The clips in one folder.
///
/// # Errors
/// When it cannot be read.
pub fn list(folder: &Path) -> Result<Clips, Error> {
    let mut clips = Vec::new();
    let mut left_out = Vec::new();
    for path in entries(folder)? {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if name.starts_with('.') || name == prepare::REPORT {
            continue;
        }
        let kind = if path.is_dir() {
            let frames: Vec<PathBuf> = entries(&path)?
                .into_iter()
                .filter(|p| has_ending(p, &PICTURES) && p.is_file())
                .collect();
            if frames.is_empty() {
                left_out.push((path, "a folder without pictures".to_owned()));
                continue;
            }
            Kind::Folder(frames)
        } else if has_ending(&path, &VIDEOS) {
            Kind::Video
        } else if has_ending(&path, &PICTURES) {
            match image::image_dimensions(&path) {
                Ok((width, height)) if height > 0 && width >= 2 * height && width % height == 0 => {
                    Kind::Strip
                }
                Ok((width, height)) => {
                    let why = format!("one picture of {width}x{height}, not frames side by side");
                    left_out.push((path, why));
                    continue;
                }
                Err(e) => {
                    left_out.push((path, e.to_string()));
                    continue;
                }
            }
        } else {
            left_out.push((path, "neither video nor pictures".to_owned()));
            continue;
        };
        let name = if path.is_dir() {
            name
        } else {
            path.file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned()
        };
        clips.push(Clip { path, name, kind });
    }
    Ok(Clips { clips, left_out })
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let read = |e| Error::read(folder, e);
    let mut paths = fs::read_dir(folder)
        .map_err(read)?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(read)?;
    // Frames are numbered: 2 comes before 10.
    let name = |path: &PathBuf| {
        path.file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    paths.sort_by(|a, b| natural(&name(a), &name(b)));
    Ok(paths)
}

fn has_ending(path: &Path, endings: &[&str]) -> bool {
    let ending = path
        .extension()
        .unwrap_or_default()
        .to_string_lossy()
        .to_lowercase();
    endings.contains(&ending.as_str())
}

/// Splits by people, always alike: nobody is on both sides.
fn divide(clips: Vec<Clip>) -> (Vec<Clip>, Vec<Clip>) {
    let groups = identities(&clips);
    let count =
        ((groups.len() as f64 * TEST_SHARE).ceil() as usize).min(groups.len().saturating_sub(1));
    let order = Random::new(0, &[]).permutation(groups.len());
    let chosen: Vec<usize> = order
        .into_iter()
        .take(count)
        .flat_map(|i| groups[i].clone())
        .collect();
    let (mut train, mut test) = (Vec::new(), Vec::new());
    for (i, clip) in clips.into_iter().enumerate() {
        if chosen.contains(&i) {
            test.push(clip);
        } else {
            train.push(clip);
        }
    }
    (train, test)
}

/// The numbers of the clips of each person.
pub fn identities(clips: &[Clip]) -> Vec<Vec<usize>> {
    let mut groups: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (i, clip) in clips.iter().enumerate() {
        groups.entry(clip.identity()).or_default().push(i);
    }
    groups.into_values().collect()
}

/// Frames of a clip in memory: RGB bytes, square.
#[derive(Clone, Debug, Default)]
pub struct Frames {
    /// One after the other.
    pub bytes: Vec<u8>,
    /// How many.
    pub count: usize,
    /// Of every so many frames one is kept.
    pub stride: usize,
}

/// The most frames of one clip that are kept; of longer ones every second, third and so on.
const MOST_FRAMES: usize = 1024;

/// Reads a clip frame by frame, the square in the middle at `side` x `side`, until it ends or `see` breaks.
///
/// # Errors
/// When not one frame can be read, and what `see` gives.
pub fn each_frame(
    clip: &Clip,
    side: u32,
    mut see: impl FnMut(&RgbaImage) -> Result<ControlFlow<()>, Error>,
) -> Result<(), Error> {
    match &clip.kind {
        Kind::Folder(files) => {
            for path in files {
                let picture = open_photo(path)?;
                let part = faces::middle(picture.width(), picture.height());
                if see(&square(path, &picture, part, side)?)?.is_break() {
                    break;
                }
            }
        }
        Kind::Strip => {
            let strip = open_photo(&clip.path)?;
            let height = strip.height();
            for i in 0..strip.width() / height {
                // Cut out first: resizing looks beyond the edge of a part, at the next frame.
                let frame = imageops::crop_imm(&strip, i * height, 0, height, height).to_image();
                let whole = Rect::of_size(height, height);
                if see(&square(&clip.path, &frame, whole, side)?)?.is_break() {
                    break;
                }
            }
        }
        Kind::Video => {
            let mut source = clip::open(&clip.path, &ReadOptions::default())?;
            let info = source.info();
            let options = ReadOptions {
                crop: Some(faces::middle(info.width, info.height)),
                size: Some((side, side)),
                ..ReadOptions::default()
            };
            source.reopen(&options)?;
            let mut picture = RgbaImage::default();
            while source.read(&mut picture)? && see(&picture)?.is_continue() {}
        }
    }
    Ok(())
}

/// Reads all frames of a clip at once, of long ones every second, third and so on.
///
/// # Errors
/// When not one frame can be read.
pub fn read_all(clip: &Clip, side: u32) -> Result<Frames, Error> {
    let mut frames = Frames {
        stride: 1,
        ..Frames::default()
    };
    let mut number = 0;
    each_frame(clip, side, |picture| {
        if number % frames.stride == 0 {
            push(&mut frames, picture);
        }
        number += 1;
        if frames.count == MOST_FRAMES {
            thin(&mut frames, side as usize);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(frames)
}

/// Writes a text under its name when it is whole.
///
/// # Errors
/// When the disk is full; what was there stays.
pub(super) fn write_text(path: &Path, text: &str) -> Result<(), Error> {
    let failed = |e| Error::write(path, e);
    let mut file = checkpoint::temporary_beside(path).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.persist(path).map_err(|e| failed(e.error))?;
    Ok(())
}

/// Reads one picture of a folder, the square in its middle.
///
/// # Errors
/// When it cannot be read.
pub fn read_picture(path: &Path, side: u32) -> Result<Vec<u8>, Error> {
    let picture = open_photo(path)?;
    let part = faces::middle(picture.width(), picture.height());
    let mut frames = Frames::default();
    push(&mut frames, &square(path, &picture, part, side)?);
    Ok(frames.bytes)
}

fn square(path: &Path, picture: &RgbaImage, part: Rect, side: u32) -> Result<RgbaImage, Error> {
    frame::view(picture, part, side, side).map_err(|e| Error::data(path, e.to_string()))
}

fn push(frames: &mut Frames, picture: &RgbaImage) {
    frames
        .bytes
        .extend(picture.pixels().flat_map(|p| [p.0[0], p.0[1], p.0[2]]));
    frames.count += 1;
}

/// Drops every second frame.
fn thin(frames: &mut Frames, side: usize) {
    let size = 3 * side * side;
    let kept = frames
        .bytes
        .chunks_exact(size)
        .step_by(2)
        .flatten()
        .copied()
        .collect();
    frames.bytes = kept;
    frames.count = frames.count.div_ceil(2);
    frames.stride *= 2;
}

/// The pairs of a `pairs_list` (a table with the columns `source` and `driving`) as numbers of clips;
/// pairs of clips that are not there are left out.
///
/// # Errors
/// When the table cannot be read or has not these columns.
pub fn pairs(path: &Path, clips: &[Clip]) -> Result<Vec<(usize, usize)>, Error> {
    let text = fs::read_to_string(path).map_err(|e| Error::read(path, e))?;
    let mut lines = text
        .lines()
        .map(|line| line.split(',').map(str::trim).collect::<Vec<_>>());
    let header = lines.next().unwrap_or_default();
    let column = |name: &str| {
        let place = header.iter().position(|title| *title == name);
        place.ok_or_else(|| {
            Error::data(
                path,
                format!("the table has no column '{name}' in its first line"),
            )
        })
    };
    let (source, driving) = (column("source")?, column("driving")?);
    let number = |cell: Option<&&str>| {
        let name = Path::new(cell?);
        clips.iter().position(|clip| {
            clip.path.file_name() == name.file_name() || Some(clip.name.as_str()) == cell.copied()
        })
    };
    Ok(lines
        .filter_map(|line| Some((number(line.get(source))?, number(line.get(driving))?)))
        .collect())
}

//! The driving side: a stream of frames from a video, from numbered pictures, or from one picture.
//!
//! Frames come in order at a constant rate, upright, opaque, all of one size, and one at a time into the
//! caller's buffer: memory does not grow with the clip. A second pass is [`FrameSource::rewind`]. Seeking
//! and reading backwards are not here.

use std::fmt;
use std::path::{Path, PathBuf};

use image::RgbaImage;

use super::error::Error;
use super::pattern::Pattern;
use super::photo::{Kind, sniff};
use super::stills::Stills;
use super::video::Video;
use crate::geometry::Rect;

/// A clip's frames, one after the other.
pub trait FrameSource: Send {
    /// What is known about the clip.
    fn info(&self) -> &ClipInfo;

    /// Reads the next frame into `into`, which gets the right size if it has another; false at the end.
    ///
    /// The first call fails when there is not one frame. A clip that breaks off later gives the frames it
    /// has and a warning in the log.
    fn read(&mut self, into: &mut RgbaImage) -> Result<bool, Error>;

    /// Starts again from the first frame that was asked for.
    fn rewind(&mut self) -> Result<(), Error>;

    /// Starts again with other options, without looking into the clip once more.
    ///
    /// # Errors
    /// As [`open`] about the options; the source then goes on as it was.
    fn reopen(&mut self, options: &ReadOptions) -> Result<(), Error>;
}

/// Opens a driving clip.
///
/// - A video, or an animated GIF: anything the `ffmpeg` program decodes. A variable frame rate is made
///   constant at its average by leaving out and repeating frames.
/// - A folder of pictures in natural order (`2.png` before `10.png`), or a pattern (`frames/%05d.png`, by
///   number, gaps allowed): [`STILLS_RATE`] unless [`ReadOptions::fps`] says otherwise.
/// - A single picture other than GIF: a clip of one frame. Of animated WebP and PNG that is the first.
///
/// Frames that change their size on the way are stretched to one: what ffprobe says of a video, that of
/// the first picture.
pub fn open(path: &Path, options: &ReadOptions) -> Result<Box<dyn FrameSource>, Error> {
    if path.is_dir() {
        return Ok(Box::new(Stills::folder(path, options)?));
    }
    if let Some(pattern) = Pattern::parse(path).filter(|_| !path.exists()) {
        return Ok(Box::new(Stills::numbered(path, &pattern, options)?));
    }
    let not_a_video = |what: &str| Error::NotAVideo {
        path: path.to_owned(),
        what: what.to_owned(),
    };
    match sniff(path)?.1 {
        Kind::Picture(image::ImageFormat::Gif) | Kind::Video | Kind::Unknown => {
            Ok(Box::new(Video::open(path, options)?))
        }
        Kind::Picture(_) => Ok(Box::new(Stills::single(path, options)?)),
        Kind::Heif => Err(not_a_video(
            "a HEIC or AVIF picture, which mimic does not read",
        )),
        Kind::Text => Err(not_a_video("a text file")),
    }
}

/// Frames per second of numbered pictures, which do not say it themselves.
pub const STILLS_RATE: Fps = Fps { num: 25, den: 1 };

/// What part of a clip to read, and how.
#[derive(Clone, Debug, Default)]
pub struct ReadOptions {
    /// The part of each frame to keep, in pixels of the upright clip; clipped to it, None for all.
    pub crop: Option<Rect>,
    /// Width and height to scale that part to (bilinear, averaging when smaller); None keeps its size.
    /// Pixels that have this size already are not resampled.
    pub size: Option<(u32, u32)>,
    /// Another rate than the clip's own: a video is resampled to it, pictures are shown at it.
    pub fps: Option<Fps>,
    /// The first frame to read, counted from 0. Those of a video before it are decoded and dropped.
    pub start_frame: u64,
}

/// What is known about a clip before it is read.
#[derive(Clone, Debug, PartialEq)]
pub struct ClipInfo {
    /// The file, folder or pattern.
    pub path: PathBuf,
    /// Width of the whole upright frame in square pixels, before crop and scaling.
    pub width: u32,
    /// Height of it.
    pub height: u32,
    /// Frames per second as they are delivered.
    pub fps: Fps,
    /// About how many frames the clip has at that rate, as it says itself.
    pub frames: Option<u64>,
    /// Length in seconds, as it says itself.
    pub duration: Option<f64>,
    /// Whether there is sound.
    pub has_audio: bool,
}

impl ClipInfo {
    /// Resolves what is wanted of this clip into a rectangle of it and the size to deliver.
    pub(super) fn window(&self, options: &ReadOptions) -> Result<(Rect, (u32, u32)), Error> {
        let whole = Rect::of_size(self.width, self.height);
        let crop = options.crop.map_or(whole, |crop| crop.intersect(&whole));
        if crop.is_empty() {
            return Err(Error::OutsideTheFrame {
                path: self.path.clone(),
                crop: options.crop.unwrap_or(whole),
                width: self.width,
                height: self.height,
            });
        }
        let (width, height) = options.size.unwrap_or((crop.width(), crop.height()));
        super::photo::check_size(&self.path, width, height)?;
        Ok((crop, (width.max(1), height.max(1))))
    }
}

/// Frames per second as a fraction, 1 to 240.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fps {
    num: u32,
    den: u32,
}

impl Fps {
    /// A rate of `num / den`, brought into 1 to 240; None when it is no number (0/0, 1/0).
    ///
    /// Fractions that no real clip has are rounded to thousandths.
    pub fn new(num: u32, den: u32) -> Option<Self> {
        const PLAIN: u32 = 1_000_000;
        if num == 0 || den == 0 {
            return None;
        }
        let rate = f64::from(num) / f64::from(den);
        if rate < 1.0 {
            return Some(Self { num: 1, den: 1 });
        }
        if rate > 240.0 {
            return Some(Self { num: 240, den: 1 });
        }
        if num > PLAIN || den > PLAIN {
            return Some(Self {
                num: (rate * 1000.0).round() as u32,
                den: 1000,
            });
        }
        Some(Self { num, den })
    }

    /// Numerator.
    pub fn num(self) -> u32 {
        self.num
    }

    /// Denominator, at least 1.
    pub fn den(self) -> u32 {
        self.den
    }

    /// The rate as a number.
    pub fn as_f64(self) -> f64 {
        f64::from(self.num) / f64::from(self.den)
    }
}

impl fmt::Display for Fps {
    /// As ffmpeg reads it: `30000/1001`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.num, self.den)
    }
}

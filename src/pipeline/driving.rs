//! The driving side: from a clip's frames to what the networks see of them.

use image::RgbaImage;

use super::offline::Error;
use crate::faces::{self, Tracker};
use crate::geometry::Rect;
use crate::gpu;
use crate::media::{ClipInfo, FrameSource, ReadOptions};

/// Longest side at which frames are read in which a face is followed: its crop is brought to a few
/// hundred pixels anyway.
const LONGEST: u32 = 1280;

/// What of the driving frames the networks see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// The driver's face, which is followed.
    Auto,
    /// The largest square in the middle.
    Centre,
    /// All of it, squashed to a square.
    Whole,
    /// This part.
    Part(Rect),
}

impl Window {
    /// What is to be read of a clip, for networks that see pictures of `size` if that is known yet.
    pub(super) fn read_options(self, clip: &ClipInfo, size: Option<u32>) -> ReadOptions {
        let square = size.map(|side| (side, side));
        let (crop, size) = match self {
            Self::Auto => (None, limited(clip)),
            Self::Whole => (None, square),
            Self::Part(part) => (Some(part), square),
            Self::Centre => (Some(faces::middle(clip.width, clip.height)), square),
        };
        ReadOptions {
            crop,
            size,
            ..ReadOptions::default()
        }
    }
}

/// A frame as the networks see it.
#[derive(Debug, Default)]
pub(super) struct Views {
    /// One square picture for each driver.
    pub(super) pictures: Vec<RgbaImage>,
    /// Whether the drivers have appeared only now: what was seen before is nobody's pose.
    pub(super) appeared: bool,
    /// Whether all of them are in the frame.
    pub(super) found: bool,
    /// Whether one of them is suddenly elsewhere: a cut.
    pub(super) cut: bool,
}

/// A clip and who is followed in it.
pub(super) struct Driving {
    source: Box<dyn FrameSource>,
    read: ReadOptions,
    size: u32,
    tracker: Option<Tracker>,
    frame: RgbaImage,
    /// Frames since the start.
    frames: u64,
    /// Whether the drivers have been seen.
    seen: bool,
}

impl Driving {
    /// `drivers` faces, each to be seen at `size`.
    pub(super) fn new(
        mut source: Box<dyn FrameSource>,
        window: Window,
        drivers: usize,
        size: u32,
    ) -> Result<Self, Error> {
        let read = window.read_options(source.info(), Some(size));
        source.reopen(&read)?;
        let tracker = match window {
            Window::Auto => Some(Tracker::of_several(drivers)?),
            _ => None,
        };
        Ok(Self {
            source,
            read,
            size,
            tracker,
            frame: RgbaImage::default(),
            frames: 0,
            seen: false,
        })
    }

    pub(super) fn info(&self) -> &ClipInfo {
        self.source.info()
    }

    /// The next frame; false at the end.
    pub(super) fn read(&mut self, into: &mut Views) -> Result<bool, Error> {
        (into.appeared, into.found, into.cut) = (false, true, false);
        let Some(tracker) = &mut self.tracker else {
            into.pictures.resize_with(1, RgbaImage::default);
            return Ok(self.source.read(&mut into.pictures[0])?);
        };
        if !self.source.read(&mut self.frame)? {
            return Ok(false);
        }
        into.pictures.clear();
        let tracked = tracker.follow_all(&self.frame);
        for face in tracked {
            into.pictures
                .push(gpu::model_view(&self.frame, face.crop, self.size)?);
        }
        let all = tracked.iter().all(|face| face.found);
        if self.frames == 0 && !all {
            let whom = match tracked.len() {
                1 => "no face".to_owned(),
                drivers => format!("not {drivers} faces"),
            };
            tracing::warn!(
                "{whom} found where {} begins: its middle is looked at until that changes (--driving-crop X1,Y1,X2,Y2 for another part)",
                self.source.info().path.display()
            );
        }
        into.appeared = all && !self.seen && self.frames > 0;
        into.found = all;
        into.cut = all && tracked.iter().any(|face| face.cut);
        self.seen |= all;
        self.frames += 1;
        Ok(true)
    }

    /// Frame `number`, from 0; the next read gives the first.
    pub(super) fn frame(&mut self, number: u64) -> Result<Views, Error> {
        let mut views = Views::default();
        // Fails when the clip has no such frame.
        self.source.reopen(&ReadOptions {
            start_frame: number,
            ..self.read.clone()
        })?;
        if self.tracker.is_none() {
            self.read(&mut views)?;
        } else {
            self.source.read(&mut self.frame)?;
            // The face lies in a frame's crop as the frames before let it.
            self.rewind()?;
            for _ in 0..=number {
                self.read(&mut views)?;
            }
        }
        self.rewind()?;
        Ok(views)
    }

    /// Frame `number`, from 0, looked at as if it were the first: what came before is not followed.
    pub(super) fn glimpse(&mut self, number: u64) -> Result<Views, Error> {
        let mut views = Views::default();
        self.rewind()?;
        self.source.reopen(&ReadOptions {
            start_frame: number,
            ..self.read.clone()
        })?;
        self.read(&mut views)?;
        Ok(views)
    }

    pub(super) fn rewind(&mut self) -> Result<(), Error> {
        self.source.reopen(&self.read)?;
        if let Some(tracker) = &mut self.tracker {
            tracker.reset();
        }
        (self.frames, self.seen) = (0, false);
        Ok(())
    }
}

/// The size of a clip's frames with [`LONGEST`] for the longer side; `None` for small ones.
fn limited(clip: &ClipInfo) -> Option<(u32, u32)> {
    let longer = clip.width.max(clip.height);
    let scaled = |side: u32| {
        let scaled = u64::from(side) * u64::from(LONGEST) / u64::from(longer.max(1));
        (scaled as u32).max(1)
    };
    (longer > LONGEST).then(|| (scaled(clip.width), scaled(clip.height)))
}

//! The driving side: from a clip's frames to what the networks see of them, or from a take to poses.

use std::path::Path;

use image::{RgbaImage, imageops};

use super::offline::{Error, Job};
use crate::animate::{Animator, take};
use crate::faces::{self, Tracker};
use crate::geometry::Rect;
use crate::gpu;
use crate::media::{self, ClipInfo, FrameSource, ReadOptions};
use crate::model::Keypoints;

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

/// What drives, opened.
pub(super) enum Source {
    Clip(Box<dyn FrameSource>),
    Take(Box<take::Steady>, ClipInfo),
}

impl Source {
    /// A take, or anything that is a clip.
    pub(super) fn open(job: &Job) -> Result<Self, Error> {
        if take::is_take(&job.clip) {
            return Self::take(&job.clip);
        }
        let mut source = media::clip::open(&job.clip, &ReadOptions::default())?;
        let window = job.window.read_options(source.info(), None);
        source.reopen(&window)?;
        Ok(Self::Clip(source))
    }

    /// Poses at the rate that numbered pictures have too; there is no picture, so no size.
    fn take(path: &Path) -> Result<Self, Error> {
        let fps = media::clip::STILLS_RATE;
        let take = take::Steady::open(path, fps.as_f64())?;
        let info = ClipInfo {
            path: path.to_owned(),
            width: 0,
            height: 0,
            fps,
            frames: Some(take.frames()),
            duration: Some(take.frames() as f64 / fps.as_f64()),
            has_audio: false,
        };
        Ok(Self::Take(Box::new(take), info))
    }
}

/// A frame as the networks see it.
#[derive(Debug, Default)]
pub(super) struct Views {
    /// One square picture for each driver.
    pub(super) pictures: Vec<RgbaImage>,
    /// The driver's pose in place of pictures, where it is known already.
    pub(super) pose: Option<Keypoints>,
    /// Whether the drivers have appeared only now: what was seen before is nobody's pose.
    pub(super) appeared: bool,
    /// Whether all of them are in the frame.
    pub(super) found: bool,
    /// Whether one of them is suddenly elsewhere: a cut.
    pub(super) cut: bool,
}

impl Views {
    /// What each driver's pose is: what is known, or what `find` finds in the pictures.
    pub(super) fn keypoints(&self, find: impl FnMut(&RgbaImage) -> Keypoints) -> Vec<Keypoints> {
        match &self.pose {
            Some(pose) => vec![pose.clone()],
            None => self.pictures.iter().map(find).collect(),
        }
    }

    /// The pictures in which keypoints are to be found.
    pub(super) fn unknown(&self) -> &[RgbaImage] {
        match self.pose {
            Some(_) => &[],
            None => &self.pictures,
        }
    }
}

/// A clip and who is followed in it, or a take.
pub(super) struct Driving {
    source: Source,
    read: ReadOptions,
    size: u32,
    mirror: bool,
    tracker: Option<Tracker>,
    frame: RgbaImage,
    /// Frames since the start.
    frames: u64,
    /// Whether the drivers have been seen.
    seen: bool,
}

impl Driving {
    /// `drivers` faces, each to be seen at the animator's size.
    pub(super) fn new(
        mut source: Source,
        job: &Job,
        drivers: usize,
        animator: &Animator,
    ) -> Result<Self, Error> {
        let size = animator.size();
        let (read, tracker) = match &mut source {
            Source::Clip(clip) => {
                let read = job.window.read_options(clip.info(), Some(size));
                clip.reopen(&read)?;
                let tracker = match job.window {
                    Window::Auto => Some(Tracker::of_several(drivers)?),
                    _ => None,
                };
                (read, tracker)
            }
            Source::Take(take, info) => {
                fits(take.header(), info, drivers, animator)?;
                (ReadOptions::default(), None)
            }
        };
        Ok(Self {
            source,
            read,
            size,
            mirror: job.mirror,
            tracker,
            frame: RgbaImage::default(),
            frames: 0,
            seen: false,
        })
    }

    pub(super) fn info(&self) -> &ClipInfo {
        match &self.source {
            Source::Clip(clip) => clip.info(),
            Source::Take(_, info) => info,
        }
    }

    /// The next frame; false at the end.
    pub(super) fn read(&mut self, into: &mut Views) -> Result<bool, Error> {
        (into.appeared, into.found, into.cut) = (false, true, false);
        let clip = match &mut self.source {
            Source::Clip(clip) => clip,
            Source::Take(take, _) => {
                into.pose = take.read()?;
                return Ok(into.pose.is_some());
            }
        };
        let Some(tracker) = &mut self.tracker else {
            into.pictures.resize_with(1, RgbaImage::default);
            let picture = &mut into.pictures[0];
            let read = clip.read(picture)?;
            if read && self.mirror {
                imageops::flip_horizontal_in_place(picture);
            }
            return Ok(read);
        };
        if !clip.read(&mut self.frame)? {
            return Ok(false);
        }
        if self.mirror {
            imageops::flip_horizontal_in_place(&mut self.frame);
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
                clip.info().path.display()
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
        if self.tracker.is_none() {
            let views = self.glimpse(number)?;
            self.rewind()?;
            return Ok(views);
        }
        // The face lies in a frame's crop as the frames before let it. Fails when the clip has no such frame.
        self.start_at(number)?;
        let mut views = Views::default();
        self.read(&mut views)?;
        self.rewind()?;
        for _ in 0..=number {
            self.read(&mut views)?;
        }
        self.rewind()?;
        Ok(views)
    }

    /// Frame `number`, from 0, looked at as if it were the first: what came before is not followed.
    pub(super) fn glimpse(&mut self, number: u64) -> Result<Views, Error> {
        let mut views = Views::default();
        self.rewind()?;
        self.start_at(number)?;
        self.read(&mut views)?;
        Ok(views)
    }

    pub(super) fn rewind(&mut self) -> Result<(), Error> {
        self.start_at(0)?;
        if let Some(tracker) = &mut self.tracker {
            tracker.reset();
        }
        (self.frames, self.seen) = (0, false);
        Ok(())
    }

    /// The next frame that is read is `number`, from 0.
    fn start_at(&mut self, number: u64) -> Result<(), Error> {
        match &mut self.source {
            Source::Clip(clip) => clip.reopen(&ReadOptions {
                start_frame: number,
                ..self.read.clone()
            })?,
            Source::Take(take, _) => take.seek(number)?,
        }
        Ok(())
    }
}

/// Keypoints mean what the model that found them means by them, and a take holds one driver's.
fn fits(
    header: &take::Header,
    info: &ClipInfo,
    drivers: usize,
    animator: &Animator,
) -> Result<(), Error> {
    let config = animator.engine().config();
    if (header.keypoints, header.jacobian) != (config.num_kp, config.estimate_jacobian) {
        return Err(Error::OtherModel {
            path: info.path.clone(),
            model: header.model.clone(),
        });
    }
    if drivers > 1 {
        return Err(Error::OneDriver {
            path: info.path.clone(),
        });
    }
    Ok(())
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

//! Who plays whom: which parts of a photo move, and which driving face moves each.

use std::path::PathBuf;

use image::{RgbaImage, imageops};

use super::offline::{Error, Job};
use crate::faces::{self, Detector, DetectorChoice, Face};
use crate::geometry::Rect;
use crate::gpu::PasteMode;

/// More faces than this take noticeably long, and the log says so.
const MANY: usize = 8;

/// What of a photo moves.
#[derive(Clone, Debug)]
pub enum Faces {
    /// All of it.
    Whole,
    /// Faces as a detector gives them; the margin is added.
    Boxes(Vec<Rect>),
    /// Crops as they are.
    Crops(Vec<Rect>),
    /// What a detector finds.
    Found {
        /// Which detector.
        detector: DetectorChoice,
        /// S3FD's weights.
        weights: Option<PathBuf>,
        /// Which of the faces.
        selection: Selection,
    },
}

/// Which of a photo's faces move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// Each.
    All,
    /// Those with these numbers, from 1, counted from left to right.
    Numbers(Vec<usize>),
}

/// A driving face moves a photo's face; both have numbers from 1, counted from left to right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Role {
    /// In the clip.
    pub driver: usize,
    /// In the photo.
    pub face: usize,
}

/// The crops that move, and for each the index of its driver.
#[derive(Clone, Debug)]
pub(super) struct Cast {
    pub(super) crops: Vec<Rect>,
    pub(super) drivers: Vec<usize>,
}

impl Cast {
    /// How many driving faces there are to be followed.
    pub(super) fn drivers(&self) -> usize {
        self.drivers.iter().max().map_or(1, |last| last + 1)
    }
}

/// Finds and chooses a photo's faces as a job says.
///
/// # Errors
/// When there is no face, none of a number that is asked for, or a box outside the photo.
pub(super) fn cast(job: &Job, photo: &RgbaImage) -> Result<Cast, Error> {
    let (width, height) = photo.dimensions();
    let (boxes, as_they_are) = match &job.faces {
        Faces::Whole => (vec![Rect::of_size(width, height)], true),
        Faces::Crops(crops) => (crops.clone(), true),
        Faces::Boxes(boxes) => (boxes.clone(), false),
        Faces::Found {
            detector,
            weights,
            selection,
        } => {
            let detector = Detector::open(*detector, weights.as_deref())?;
            let found = find(detector, job, photo)?;
            (selection.of(&found)?, false)
        }
    };
    let boxes: Vec<(Rect, usize)> = if job.roles.is_empty() {
        boxes.into_iter().map(|rect| (rect, 0)).collect()
    } else {
        job.roles
            .iter()
            .map(|role| Ok((numbered(&boxes, role.face)?, role.driver.saturating_sub(1))))
            .collect::<Result<_, Error>>()?
    };
    if boxes.len() > MANY {
        tracing::warn!(
            "{} faces move, each takes its time: --faces 1,2 chooses some",
            boxes.len()
        );
    }
    let drivers: Vec<usize> = boxes.iter().map(|&(_, driver)| driver).collect();
    let rects: Vec<Rect> = boxes.iter().map(|&(rect, _)| rect).collect();
    let paddlegan = job.paste.mode == PasteMode::PaddleGan;
    let crops = if as_they_are {
        let clip = |&crop: &Rect| faces::clip_crop(crop, width, height);
        rects.iter().map(clip).collect::<Result<Vec<_>, _>>()?
    } else if paddlegan && job.roles.is_empty() {
        faces::paddlegan_crops(&rects, width, height)?
    } else if paddlegan {
        // Chosen one by one, so none is another's double.
        let one = |rect: &Rect| faces::paddlegan_crops(std::slice::from_ref(rect), width, height);
        rects
            .iter()
            .map(one)
            .collect::<Result<Vec<_>, _>>()?
            .concat()
    } else {
        let square = |&face: &Rect| faces::square_crop(face, width, height);
        rects.iter().map(square).collect::<Result<Vec<_>, _>>()?
    };
    Ok(Cast { crops, drivers })
}

impl Selection {
    /// The chosen faces, in the order of their choice.
    fn of(&self, found: &[Face]) -> Result<Vec<Rect>, Error> {
        let rects: Vec<Rect> = found.iter().map(|face| face.rect).collect();
        match self {
            Self::All => Ok(rects),
            Self::Numbers(numbers) => numbers
                .iter()
                .map(|&number| numbered(&rects, number))
                .collect(),
        }
    }
}

fn numbered(boxes: &[Rect], number: usize) -> Result<Rect, Error> {
    let found = number.checked_sub(1).and_then(|index| boxes.get(index));
    found.copied().ok_or(Error::NoSuchFace {
        number,
        count: boxes.len(),
    })
}

/// The faces of the photo, listed in the log.
fn find(mut detector: Detector, job: &Job, photo: &RgbaImage) -> Result<Vec<Face>, Error> {
    let found = detector.detect(photo)?;
    for (i, face) in found.iter().enumerate() {
        let number = i + 1;
        tracing::info!("face {number}: {} (score {:.2})", face.rect, face.score);
    }
    if found.is_empty() {
        return Err(Error::NoFace {
            photo: job.photo.clone(),
            hint: hint(&mut detector, photo),
        });
    }
    Ok(found)
}

/// What may be wrong with a photo in which no face was found.
fn hint(detector: &mut Detector, photo: &RgbaImage) -> &'static str {
    let mut surest = |turned: RgbaImage| {
        let faces = detector.detect(&turned).unwrap_or_default();
        faces.iter().map(|face| face.score).fold(0.0, f32::max)
    };
    let upside_down = surest(imageops::rotate180(photo));
    let on_its_side = surest(imageops::rotate90(photo)).max(surest(imageops::rotate270(photo)));
    if upside_down.max(on_its_side) == 0.0 {
        ""
    } else if upside_down > on_its_side {
        " (turned upside down it has one: turn the photo)"
    } else {
        " (turned by 90 degrees it has one: turn the photo)"
    }
}

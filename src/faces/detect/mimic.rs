//! `mimic-face`: from a picture to candidates.

use image::RgbaImage;

use super::Error;
use super::boxes::{Candidate, suppress};
use crate::checkpoint;
use crate::frame;
use crate::geometry::Rect;
use crate::model::face_detector::MULTIPLE;
use crate::model::packed::{Cells, FaceDetector};
use crate::ops::threads::Workers;

/// Longest side of what the network sees.
const LONGEST: u32 = 640;

/// A photo is looked at from farther and from nearer too, for faces that fill it and for small ones.
const OTHER_SIDES: [u32; 2] = [320, 1280];

/// Faces are surer than this.
const SURE: f32 = 0.5;

/// Those from farther and nearer must be surer: there the network takes more for a face than is one.
const OTHERS_SURE: f32 = 0.65;

/// A box of which more than this lies in a surer one is a part of that face.
const PART: f32 = 0.7;

/// Largest overlap of two faces.
const OVERLAP: f32 = 0.4;

/// The network and what is around it.
#[derive(Debug)]
pub(in crate::faces) struct Mimic(FaceDetector);

impl Mimic {
    pub(in crate::faces) fn new(threads: usize) -> Result<Self, Error> {
        let checkpoint = checkpoint::embedded_face_detector()?;
        let network = FaceDetector::new(&checkpoint.tensors, Workers::new(threads)?)?;
        Ok(Self(network))
    }

    /// The faces of a photo: small ones get a closer look.
    pub(super) fn detect_all(&mut self, photo: &RgbaImage) -> Result<Vec<Candidate>, Error> {
        let whole = Rect::of_size(photo.width(), photo.height());
        let mut found = self.detect_in(photo, whole, LONGEST)?;
        let longer = whole.width().max(whole.height());
        for side in OTHER_SIDES {
            // A photo is not enlarged.
            if longer > side.min(LONGEST) {
                let others = self.detect_in(photo, whole, side)?;
                found.extend(others.iter().filter(|face| face.score > OTHERS_SURE));
            }
        }
        let faces = suppress(found, OVERLAP, 0.0);
        let mut kept: Vec<Candidate> = Vec::with_capacity(faces.len());
        for face in faces {
            if kept.iter().all(|surer| face.part_in(surer) <= PART) {
                kept.push(face);
            }
        }
        Ok(kept)
    }

    /// The faces of a frame.
    pub(in crate::faces) fn detect(&mut self, frame: &RgbaImage) -> Result<Vec<Candidate>, Error> {
        let whole = Rect::of_size(frame.width(), frame.height());
        self.detect_in(frame, whole, LONGEST)
    }

    /// The faces in a part of a picture, brought to `longest` pixels if it is larger.
    pub(in crate::faces) fn detect_in(
        &mut self,
        picture: &RgbaImage,
        part: Rect,
        longest: u32,
    ) -> Result<Vec<Candidate>, Error> {
        let (width, height) = (part.width(), part.height());
        let scale = f64::from(longest) / f64::from(width.max(height)).max(1.0);
        // A side is stretched by a few percent at most to the nearest multiple, which faces bear
        // better than bars along the picture.
        let multiple = MULTIPLE as u32;
        let side = |length: u32| {
            let scaled = (f64::from(length) * scale.min(1.0)).round() as u32;
            ((scaled + multiple / 2) / multiple).max(1) * multiple
        };
        let (small_width, small_height) = (side(width), side(height));
        let view = frame::view(picture, part, small_width, small_height)?;
        let levels = self
            .0
            .run(&view, small_width as usize, small_height as usize);
        let mut found = Vec::new();
        for level in levels {
            read(level, &mut found);
        }
        let (x, y) = (
            width as f32 / small_width as f32,
            height as f32 / small_height as f32,
        );
        let in_picture = found
            .iter()
            .map(|face| face.scaled(x, y).moved(part.x1 as f32, part.y1 as f32));
        Ok(suppress(in_picture.collect(), OVERLAP, 0.0))
    }
}

/// The faces among a level's cells.
fn read(level: Cells<'_>, found: &mut Vec<Candidate>) {
    let stride = level.stride as f32;
    for (i, cell) in level.values.iter().enumerate() {
        let score = 1.0 / (1.0 + (-cell[0]).exp());
        if score.is_nan() || score <= SURE {
            continue;
        }
        let [left, top, right, bottom] =
            [1, 2, 3, 4].map(|side: usize| stride * cell[side].clamp(-5.0, 5.0).exp());
        let middle = |at: usize| (at as f32 + 0.5) * stride;
        let (x, y) = (middle(i % level.width), middle(i / level.width));
        found.push(Candidate {
            edges: [x - left, y - top, x + right, y + bottom],
            score,
        });
    }
}

//! S3FD: from a picture to candidates.

use std::path::Path;

use image::RgbaImage;

use super::Error;
use super::boxes::{Candidate, suppress};
use crate::checkpoint;
use crate::frame;
use crate::geometry::Rect;
use crate::model::S3fd;
use crate::model::packed::{self, Cells};
use crate::model::s3fd::classes;
use crate::ops::threads::{Workers, available_threads};

/// Longest side of what the network sees: PaddleGAN's shows it the whole photo, which takes seconds
/// and gigabytes from a camera of today.
const LONGEST: u32 = 1280;

/// Shortest side: the five halvings leave a pixel.
const SHORTEST: u32 = 32;

/// Faces are surer than this.
const SURE: f32 = 0.5;

/// What is looked at before boxes of the same face are sorted out.
const POSSIBLE: f32 = 0.05;

/// Largest overlap of two faces.
const OVERLAP: f32 = 0.3;

/// The network and what is around it.
#[derive(Debug)]
pub(super) struct Finder(packed::S3fd);

impl Finder {
    pub(super) fn new(weights: &Path) -> Result<Self, Error> {
        let checkpoint = checkpoint::open(weights)?;
        checkpoint::check(&checkpoint, &S3fd::expected_tensors())?;
        checkpoint::check_values(&checkpoint)?;
        let threads = available_threads();
        let network = packed::S3fd::new(&checkpoint.tensors, Workers::new(threads)?)?;
        Ok(Self(network))
    }

    pub(super) fn detect(&mut self, picture: &RgbaImage) -> Result<Vec<Candidate>, Error> {
        let (width, height) = picture.dimensions();
        let scale = f64::from(LONGEST) / f64::from(width.max(height)).max(1.0);
        let side = |length: u32| {
            let scaled = (f64::from(length) * scale.min(1.0)).round() as u32;
            scaled.max(SHORTEST)
        };
        let (small_width, small_height) = (side(width), side(height));
        let view = frame::view(
            picture,
            Rect::of_size(width, height),
            small_width,
            small_height,
        )?;
        let scales = self
            .0
            .run(&view, small_width as usize, small_height as usize);
        let (x, y) = (
            width as f32 / small_width as f32,
            height as f32 / small_height as f32,
        );
        let mut found = suppress(candidates(&scales), OVERLAP, 1.0);
        found.retain(|candidate| candidate.score > SURE);
        Ok(found.iter().map(|face| face.scaled(x, y)).collect())
    }
}

/// Every cell that may be a face's, scale by scale.
fn candidates(scales: &[Cells<'_>]) -> Vec<Candidate> {
    let mut found = Vec::new();
    for (i, scale) in scales.iter().enumerate() {
        let stride = scale.stride as f32;
        // Priors are squares of four cells.
        let prior = 4.0 * stride;
        let values = classes(i);
        for (at, cell) in scale.values.iter().enumerate() {
            let (none, face) = (&cell[..values - 1], cell[values - 1]);
            let none = none.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            // The softmax of two.
            let score = 1.0 / (1.0 + (none - face).exp());
            if score.is_nan() || score <= POSSIBLE {
                continue;
            }
            let [dx, dy, dw, dh] = [0, 1, 2, 3].map(|value| cell[values + value]);
            let middle =
                |at: usize, shift: f32| stride / 2.0 + at as f32 * stride + 0.1 * shift * prior;
            let (x, y) = (middle(at % scale.width, dx), middle(at / scale.width, dy));
            let (w, h) = (prior * (0.2 * dw).exp(), prior * (0.2 * dh).exp());
            let (left, top) = (x - w / 2.0, y - h / 2.0);
            found.push(Candidate {
                edges: [left, top, left + w, top + h],
                score,
            });
        }
    }
    found
}

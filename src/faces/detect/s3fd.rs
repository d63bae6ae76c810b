//! S3FD: from a picture to candidates.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use image::RgbaImage;

use super::Error;
use super::boxes::{Candidate, suppress};
use crate::checkpoint;
use crate::frame;
use crate::geometry::Rect;
use crate::model::S3fd;
use crate::model::s3fd::{MEAN_BGR, Scale};

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
pub(super) struct Finder(S3fd);

impl Finder {
    pub(super) fn new(weights: &Path) -> Result<Self, Error> {
        let checkpoint = checkpoint::open(weights)?;
        checkpoint::check(&checkpoint, &S3fd::expected_tensors())?;
        checkpoint::check_values(&checkpoint)?;
        let tensors: HashMap<String, Tensor> = checkpoint.tensors.into_iter().collect();
        let vb = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        Ok(Self(S3fd::new(vb)?))
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
        let scales = self.0.forward(&to_tensor(&view)?)?;
        let (x, y) = (
            width as f32 / small_width as f32,
            height as f32 / small_height as f32,
        );
        let mut found = suppress(candidates(&scales)?, OVERLAP, 1.0);
        found.retain(|candidate| candidate.score > SURE);
        Ok(found.iter().map(|face| face.scaled(x, y)).collect())
    }
}

fn to_tensor(picture: &RgbaImage) -> candle_core::Result<Tensor> {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let plane = width * height;
    let mut values = vec![0f32; 3 * plane];
    for (i, pixel) in picture.pixels().enumerate() {
        for channel in 0..3 {
            let level = f32::from(pixel.0[2 - channel]);
            values[channel * plane + i] = level - MEAN_BGR[channel];
        }
    }
    Tensor::from_vec(values, (1, 3, height, width), &Device::Cpu)
}

/// Every cell that may be a face's, scale by scale.
fn candidates(scales: &[Scale]) -> candle_core::Result<Vec<Candidate>> {
    let mut found = Vec::new();
    for (i, scale) in scales.iter().enumerate() {
        let stride = (4 << i) as f32;
        // Priors are squares of four cells.
        let prior = 4.0 * stride;
        let (_, _, height, width) = scale.boxes.dims4()?;
        let flat = |t: &Tensor| t.flatten_all()?.to_vec1::<f32>();
        let (classes, boxes) = (flat(&scale.classes)?, flat(&scale.boxes)?);
        let plane = height * width;
        for cell in 0..plane {
            // The softmax of two.
            let score = 1.0 / (1.0 + (classes[cell] - classes[plane + cell]).exp());
            if score.is_nan() || score <= POSSIBLE {
                continue;
            }
            let [dx, dy, dw, dh] = [0, 1, 2, 3].map(|value| boxes[value * plane + cell]);
            let middle =
                |at: usize, shift: f32| stride / 2.0 + at as f32 * stride + 0.1 * shift * prior;
            let (x, y) = (middle(cell % width, dx), middle(cell / width, dy));
            let (w, h) = (prior * (0.2 * dw).exp(), prior * (0.2 * dh).exp());
            let (left, top) = (x - w / 2.0, y - h / 2.0);
            found.push(Candidate {
                edges: [left, top, left + w, top + h],
                score,
            });
        }
    }
    Ok(found)
}

//! The networks once more, for CPUs: one frame at a time, packed layout, every buffer made at load.
//!
//! [`crate::model`] says in candle what the networks compute, for training and for GPUs; this engine
//! computes the same several times faster than a general library on a CPU can, and is tested against
//! it. What it does differently: channels in blocks of 16 throughout, batch norms folded into the
//! convolution before them or into the store before a residual block, Winograd filtering,
//! concatenations and up-sampled maps that are never copied, no allocation while frames run.

mod face_detector;
mod generator;
mod gfpgan;
mod gpen;
mod hourglass;
mod keypoints;
mod layers;
mod motion;
mod picture;
mod s3fd;
mod styled;

use std::collections::BTreeMap;

use candle_core::Tensor;

pub use face_detector::{Cells, FaceDetector};
pub use gfpgan::Gfpgan;
pub use gpen::Gpen;
pub use s3fd::S3fd;

use super::{Keypoints, ModelConfig};
use crate::frame::Prediction;
use crate::ops::threads::Workers;

/// Both networks of a model, ready to run frames on the CPU.
#[derive(Debug)]
pub struct Engine {
    config: ModelConfig,
    workers: Workers,
    keypoint_detector: keypoints::KeypointDetector,
    generator: generator::Generator,
}

/// What depends on the photo alone.
#[derive(Clone, Debug)]
pub struct Source {
    features: generator::SourceFeatures,
    /// The photo's keypoints.
    pub keypoints: Keypoints,
}

impl Engine {
    /// Packs a checkpoint's tensors (names as in [`ModelConfig::expected_tensors`]).
    ///
    /// # Errors
    /// When a tensor is missing or has another size.
    pub fn new(
        config: &ModelConfig,
        tensors: &BTreeMap<String, Tensor>,
        workers: Workers,
    ) -> candle_core::Result<Self> {
        let weights = |name: &str| layers::Weights::new(tensors, name, workers.isa);
        // A keypoint that is a little off moves a whole region, and finding them is a small part of a frame.
        let kp = keypoints::KeypointDetector::new(config, &weights("kp_detector").exact())?;
        let generator = generator::Generator::new(config, &weights("generator"))?;
        Ok(Self {
            config: config.clone(),
            workers,
            keypoint_detector: kp,
            generator,
        })
    }

    /// The same networks on threads of their own, for frames beside each other: with maps of their own,
    /// the weights shared.
    ///
    /// # Errors
    /// When the system refuses to start a thread.
    pub fn beside(&self, threads: usize) -> Result<Self, rayon::ThreadPoolBuildError> {
        Ok(Self {
            config: self.config.clone(),
            workers: Workers::with_isa(threads, self.workers.isa)?,
            keypoint_detector: self.keypoint_detector.clone(),
            generator: self.generator.clone(),
        })
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The threads it runs on; its meter times layers.
    pub fn workers(&self) -> &Workers {
        &self.workers
    }

    /// The keypoints of a square picture of the model's size, `size * size` RGBA pixels.
    ///
    /// # Panics
    /// When the picture has another size: a fault of the program.
    pub fn keypoints(&mut self, rgba: &[u8]) -> Keypoints {
        let Self {
            workers,
            keypoint_detector,
            ..
        } = self;
        workers.install(|| keypoint_detector.run(workers, rgba))
    }

    /// Prepares a photo's crop: a square picture of the model's size.
    ///
    /// # Panics
    /// As [`Engine::keypoints`].
    pub fn encode(&mut self, rgba: &[u8]) -> Source {
        let keypoints = self.keypoints(rgba);
        let Self {
            workers, generator, ..
        } = self;
        Source {
            features: workers.install(|| generator.encode(workers, rgba)),
            keypoints,
        }
    }

    /// Moves the photo to the driving keypoints (see `animate::normalise`) into `out`, whose buffers
    /// are reused.
    pub fn generate(&mut self, source: &Source, kp_driving: &Keypoints, out: &mut Prediction) {
        let size = self.config.image_size;
        let Self {
            workers, generator, ..
        } = self;
        workers.install(|| {
            let (picture, flow, flow_size) =
                generator.run(workers, &source.features, &source.keypoints, kp_driving);
            out.size = size;
            out.map_size = flow_size.width as u32;
            out.deformation.clear();
            out.deformation.extend(flow.iter().map(|flow| flow.from));
            out.occlusion.clear();
            out.occlusion.extend(flow.iter().map(|flow| flow.occlusion));
            out.rgba.resize(size as usize * size as usize * 4, 255);
            let planes: Vec<&[f32]> = picture.chunks_exact(picture.len() / 3).collect();
            let pixels: &mut [[u8; 4]] = out.rgba.as_chunks_mut().0;
            workers.rows(pixels, size as usize, |y, row| {
                for (x, pixel) in row.iter_mut().enumerate() {
                    let at = y * size as usize + x;
                    let byte = |c: usize| (planes[c][at] * 255.0 + 0.5) as u8;
                    *pixel = [byte(0), byte(1), byte(2), 255];
                }
            });
        });
    }

    /// The same as numbers: the picture (3, h, w) in 0..1, for comparisons that bytes would blur.
    pub fn generate_planes(&mut self, source: &Source, kp_driving: &Keypoints) -> Vec<f32> {
        let Self {
            workers, generator, ..
        } = self;
        workers.install(|| {
            generator
                .run(workers, &source.features, &source.keypoints, kp_driving)
                .0
                .to_vec()
        })
    }
}

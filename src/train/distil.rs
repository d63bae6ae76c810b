//! Learning from a model that is larger: what a student is told beside the pictures, stage by stage.

use candle_core::{Result, Tensor};
use serde::Deserialize;

use super::losses::{self, Losses};
use crate::model::{Border, GeneratorOutput, KeypointTensors, ModelConfig, Networks};

/// The section `mimic.compress`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Compress {
    /// Steps of the stages: keypoint detector, generator, both, after pruning.
    pub steps: [u64; 4],
    /// Weight of the distance to the teacher's keypoints.
    pub keypoints: f64,
    /// The same of their jacobians.
    pub jacobians: f64,
    /// Weight of the distance to the teacher's deformation, in -1..1.
    pub deformation: f64,
    /// The same of its occlusion map.
    pub occlusion: f64,
    /// The same of the pictures it draws.
    pub pictures: f64,
    /// The same of the source's features, where they have one shape.
    pub features: f64,
    /// Weight of the sum of batch norms' scales, which makes channels superfluous before they are pruned.
    pub slimming: f64,
    /// Share of the generator's channels that is pruned; 0 for none.
    pub prune: f64,
    /// Frames of each test clip that models are measured by.
    pub frames: usize,
}

impl Default for Compress {
    fn default() -> Self {
        Self {
            steps: [5_000, 20_000, 20_000, 10_000],
            keypoints: 50.0,
            jacobians: 10.0,
            deformation: 50.0,
            occlusion: 5.0,
            pictures: 20.0,
            features: 1.0,
            slimming: 1e-4,
            prune: 0.25,
            frames: 16,
        }
    }
}

/// Which networks of the student learn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The keypoint detector; the teacher's generator draws.
    Keypoints,
    /// The generator; the teacher's detector finds keypoints.
    Generator,
    /// Both together, scales of batch norms kept small.
    Both,
    /// Both after pruning.
    FineTune,
}

/// A teacher and what is asked of the student.
#[derive(Clone, Debug)]
pub struct Lesson {
    /// Which networks of the student learn.
    pub stage: Stage,
    /// The larger model, which stays as it is.
    pub teacher: Networks,
    /// What each distance counts.
    pub weights: Compress,
    /// The student's scales that are kept small.
    pub scales: Vec<String>,
}

/// What the student made of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// Keypoints of source and driving frames; the teacher's where the student's detector rests.
    pub keypoints: [&'a KeypointTensors; 2],
    /// Features of the sources (b, c, h, w).
    pub features: &'a Tensor,
    /// What was drawn of them.
    pub output: &'a GeneratorOutput,
}

impl Lesson {
    /// Distances to what the teacher makes of the same pictures (b, 3, h, w).
    ///
    /// # Errors
    /// When the device fails.
    pub fn losses(&self, source: &Tensor, driving: &Tensor, answer: Answer<'_>) -> Result<Losses> {
        let weights = &self.weights;
        let mut list = Losses::new();
        let mut add = |name, weight: f64, got: &Tensor, wanted: &Tensor| -> Result<()> {
            if weight > 0.0 && got.dims() == wanted.dims() {
                list.push((name, (losses::l1(got, &wanted.detach())? * weight)?));
            }
            Ok(())
        };
        let detector = &self.teacher.keypoint_detector;
        let taught = [detector.forward(source)?, detector.forward(driving)?];
        if self.stage != Stage::Generator {
            let value = |of: [&KeypointTensors; 2]| Tensor::cat(&of.map(|kp| &kp.value), 0);
            let both = [&taught[0], &taught[1]];
            let (got, wanted) = (value(answer.keypoints)?, value(both)?);
            add("teacher_keypoints", weights.keypoints, &got, &wanted)?;
            let jacobians = |of: [&KeypointTensors; 2]| -> Result<Option<Tensor>> {
                match of.map(|kp| kp.jacobian.as_ref()) {
                    [Some(a), Some(b)] => Tensor::cat(&[a, b], 0).map(Some),
                    _ => Ok(None),
                }
            };
            if let (Some(got), Some(wanted)) = (jacobians(answer.keypoints)?, jacobians(both)?) {
                add("teacher_jacobians", weights.jacobians, &got, &wanted)?;
            }
        }
        if self.stage != Stage::Keypoints {
            let generator = &self.teacher.generator;
            let features = generator.encode_source(source)?;
            let drawn = generator.forward(&features, &taught[0], &taught[1])?;
            let (got, wanted) = (answer.output, &drawn);
            let (deformation, pictures) = (weights.deformation, weights.pictures);
            add(
                "teacher_deformation",
                deformation,
                &got.deformation,
                &wanted.deformation,
            )?;
            if let (Some(got), Some(wanted)) = (&got.occlusion_map, &wanted.occlusion_map) {
                add("teacher_occlusion", weights.occlusion, got, wanted)?;
            }
            add(
                "teacher_pictures",
                pictures,
                &got.prediction,
                &wanted.prediction,
            )?;
            add(
                "teacher_features",
                weights.features,
                answer.features,
                &features.features,
            )?;
        }
        Ok(list)
    }
}

/// The teacher of students that are trained without treatment of the border, at their size.
pub fn as_teacher(config: &ModelConfig, student: &ModelConfig) -> ModelConfig {
    ModelConfig {
        border: Border::None,
        image_size: student.image_size,
        ..config.clone()
    }
}

//! Dense motion: from keypoints to where every pixel comes from (paper section 3.2).
//!
//! Around each keypoint the motion is linear (equation 4); a network looks at the source warped by
//! each of these motions (equation 7) and at heatmaps of the keypoints (equation 6), and says for
//! every pixel which to follow, and whether the source shows what is to be seen there.

use candle_core::{D, DType, Result, Tensor};
use candle_nn::{VarBuilder, ops};

use super::blocks::Head;
use super::config::ModelConfig;
use super::coordinate_grid;
use super::hourglass::{Hourglass, Shape};
use super::keypoint_detector::KeypointTensors;
use crate::ops::fused;
use crate::ops::grid_sample::{Padding, grid_sample};
use crate::ops::matrix::inverse_2x2;
use crate::ops::resample::AntiAlias;

/// `DenseMotionNetwork` of the reference.
#[derive(Clone, Debug)]
pub struct DenseMotion {
    pub(super) down: AntiAlias,
    pub(super) hourglass: Hourglass,
    pub(super) mask: Head,
    pub(super) occlusion: Option<Head>,
    pub(super) kp_variance: f64,
    /// What the hourglass computes in; places and the mask's shares have the keypoints' type.
    dtype: DType,
}

/// Dense motion of a batch; (h, w) is the source's size over the network's reduction.
#[derive(Clone, Debug)]
pub struct DenseMotionOutput {
    /// The source warped by every motion (b, K + 1, 3, h, w), the first the background's: none.
    pub sparse_deformed: Tensor,
    /// How much each motion counts (b, K + 1, h, w), together 1.
    pub mask: Tensor,
    /// Where each pixel comes from (b, h, w, 2) as (x, y) in -1..1.
    pub deformation: Tensor,
    /// Whether the source shows what is to be seen (b, 1, h, w), 0..1.
    pub occlusion_map: Option<Tensor>,
}

/// [`DenseMotionOutput`] as the ops of `ops::fused` give it.
struct FusedMotion {
    /// What the hourglass sees (b, 4 (K + 1), h, w).
    input: Tensor,
    /// The mask before its softmax.
    logits: Tensor,
    deformation: Tensor,
    occlusion_map: Option<Tensor>,
}

impl DenseMotion {
    /// Reads the tensors of a checkpoint under `generator.dense_motion_network`.
    pub fn new(config: &ModelConfig, vb: VarBuilder) -> Result<Self> {
        let motion = &config.generator.dense_motion;
        let mobile = config.generator.mobile;
        let shape = Shape::of_motion(config);
        let features = shape.c_out();
        let occlusion = if config.generator.estimate_occlusion_map {
            Some(Head::new(features, 1, mobile, vb.pp("occlusion"))?)
        } else {
            None
        };
        Ok(Self {
            down: super::reduction(motion.factor(), mobile, vb.device())?,
            hourglass: Hourglass::new(&shape, vb.pp("hourglass"))?,
            mask: Head::new(features, config.num_kp + 1, mobile, vb.pp("mask"))?,
            occlusion,
            kp_variance: motion.kp_variance,
            dtype: vb.dtype(),
        })
    }

    /// The source (b, 3, H, W) as [`DenseMotion::forward`] wants it: (b, 3, h, w).
    pub fn reduce(&self, source: &Tensor) -> Result<Tensor> {
        self.down.forward(source)
    }

    /// `source` (1 or b, 3, h, w) is reduced; `kp_source` is of 1 or b pictures, `kp_driving` of b.
    pub fn forward(
        &self,
        source: &Tensor,
        kp_source: &KeypointTensors,
        kp_driving: &KeypointTensors,
    ) -> Result<DenseMotionOutput> {
        let (_, channels, h, w) = source.dims4()?;
        let (b, k, _) = kp_driving.value.dims3()?;
        let dtype = kp_driving.value.dtype();
        if self.fuses(source, kp_source, kp_driving) {
            return self.forward_fused(source, kp_source, kp_driving);
        }
        let grid = coordinate_grid(h, w, dtype, source.device())?;
        let grid = grid.reshape((1, 1, h * w, 2))?;

        let motions = sparse_motions(&grid, kp_source, kp_driving)?;
        // Every motion samples the same picture: stack them into one tall grid.
        let tall = motions.reshape((b, (k + 1) * h, w, 2))?;
        let sparse_deformed = grid_sample(source, &tall, Padding::Zeros, true)?
            .reshape((b, channels, k + 1, h, w))?
            .transpose(1, 2)?
            .contiguous()?;

        let heatmaps = self
            .heatmaps(&grid, kp_source, kp_driving)?
            .reshape((b, k + 1, 1, h, w))?;
        let input = Tensor::cat(&[&heatmaps, &sparse_deformed], 2)?;
        let input = input.reshape((b, (), h, w))?.to_dtype(self.dtype)?;
        let features = self.hourglass.forward(&input)?;

        let mask = ops::softmax(&self.mask.forward(&features)?.to_dtype(dtype)?, 1)?;
        let weights = mask.reshape((b, k + 1, h * w, 1))?;
        let deformation = motions
            .broadcast_mul(&weights)?
            .sum(1)?
            .reshape((b, h, w, 2))?;
        Ok(DenseMotionOutput {
            sparse_deformed,
            mask,
            deformation,
            occlusion_map: self.occlusion_map(&features, dtype)?,
        })
    }

    /// As [`DenseMotion::forward`], but the deformation and the occlusion map alone.
    pub fn motion(
        &self,
        source: &Tensor,
        kp_source: &KeypointTensors,
        kp_driving: &KeypointTensors,
    ) -> Result<(Tensor, Option<Tensor>)> {
        if self.fuses(source, kp_source, kp_driving) {
            let fused = self.run_fused(source, kp_source, kp_driving)?;
            return Ok((fused.deformation, fused.occlusion_map));
        }
        let all = self.forward(source, kp_source, kp_driving)?;
        Ok((all.deformation, all.occlusion_map))
    }

    /// Whether [`DenseMotion::forward`] may take the ops of `ops::fused`.
    fn fuses(
        &self,
        source: &Tensor,
        kp_source: &KeypointTensors,
        kp_driving: &KeypointTensors,
    ) -> bool {
        // Who learns wants gradients of all of these.
        let learnt = [source, &kp_source.value, &kp_driving.value]
            .iter()
            .any(|t| t.track_op());
        let half = matches!(self.dtype, DType::F16 | DType::BF16);
        let (cpu, cuda) = (source.device().is_cpu(), source.device().is_cuda());
        !learnt && source.dtype() == DType::F32 && (cuda || (cpu && half)) && !self.mask.learns()
    }

    /// The same in fewer steps.
    fn forward_fused(
        &self,
        source: &Tensor,
        kp_source: &KeypointTensors,
        kp_driving: &KeypointTensors,
    ) -> Result<DenseMotionOutput> {
        let (_, channels, h, w) = source.dims4()?;
        let (b, k, _) = kp_driving.value.dims3()?;
        let fused = self.run_fused(source, kp_source, kp_driving)?;
        Ok(DenseMotionOutput {
            sparse_deformed: fused
                .input
                .reshape((b, k + 1, 1 + channels, h, w))?
                .narrow(2, 1, channels)?,
            mask: ops::softmax(&fused.logits.to_dtype(DType::F32)?, 1)?,
            deformation: fused.deformation,
            occlusion_map: fused.occlusion_map,
        })
    }

    fn run_fused(
        &self,
        source: &Tensor,
        kp_source: &KeypointTensors,
        kp_driving: &KeypointTensors,
    ) -> Result<FusedMotion> {
        let jacobians = match (&kp_source.jacobian, &kp_driving.jacobian) {
            (Some(source), Some(driving)) => Some([source, driving]),
            _ => None,
        };
        let linear = jacobians.is_some();
        let pairs = fused::pairs([&kp_source.value, &kp_driving.value], jacobians)?;
        let input = fused::sparse_motion(source, &pairs, linear, self.kp_variance, self.dtype)?;
        let features = self.hourglass.forward(&input)?;
        let logits = self.mask.forward(&features)?;
        Ok(FusedMotion {
            deformation: fused::deformation(&logits, &pairs, linear)?,
            occlusion_map: self.occlusion_map(&features, DType::F32)?,
            input,
            logits,
        })
    }

    fn occlusion_map(&self, features: &Tensor, dtype: DType) -> Result<Option<Tensor>> {
        let head = self.occlusion.as_ref();
        head.map(|head| ops::sigmoid(&head.forward(features)?.to_dtype(dtype)?))
            .transpose()
    }

    /// Gaussians at the driving keypoints less those at the source's (b, K + 1, hw); the
    /// background's is zero.
    fn heatmaps(
        &self,
        grid: &Tensor,
        kp_source: &KeypointTensors,
        kp_driving: &KeypointTensors,
    ) -> Result<Tensor> {
        let at = |kp: &KeypointTensors| gaussians(grid, &kp.value, self.kp_variance);
        let heatmaps = at(kp_driving)?.broadcast_sub(&at(kp_source)?)?;
        heatmaps.pad_with_zeros(1, 1, 0)
    }
}

/// Gaussians of `variance` at keypoints (b, K, 2), as high as 1, at the places (1, 1, hw, 2) of a grid:
/// (b, K, hw).
pub(super) fn gaussians(grid: &Tensor, value: &Tensor, variance: f64) -> Result<Tensor> {
    let distance = grid
        .broadcast_sub(&value.unsqueeze(2)?)?
        .sqr()?
        .sum(D::Minus1)?;
    (distance * (-0.5 / variance))?.exp()
}

/// The linear motion around each keypoint, the background's (none) first: (b, K + 1, hw, 2).
fn sparse_motions(
    grid: &Tensor,
    kp_source: &KeypointTensors,
    kp_driving: &KeypointTensors,
) -> Result<Tensor> {
    let mut motions = grid.broadcast_sub(&kp_driving.value.unsqueeze(2)?)?;
    if let (Some(source), Some(driving)) = (&kp_source.jacobian, &kp_driving.jacobian) {
        let jacobian = source.broadcast_matmul(&inverse_2x2(driving)?)?;
        // Places are rows here, so the matrix comes transposed and on the right.
        motions = motions
            .contiguous()?
            .matmul(&jacobian.transpose(2, 3)?.contiguous()?)?;
    }
    let motions = motions.broadcast_add(&kp_source.value.unsqueeze(2)?)?;
    let (b, _, places, _) = motions.dims4()?;
    let identity = grid.broadcast_as((b, 1, places, 2))?;
    Tensor::cat(&[&identity, &motions], 1)
}

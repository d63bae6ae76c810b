//! The embedded face detector, `mimic-face`: a picture to boxes and five points for each, at three
//! scales (`weights/mimic-face.md` has the training and the scores).
//!
//! A small residual network with a feature pyramid; one head for all levels says for every cell
//! whether a face's middle lies there, how far its edges are, and where eyes, nose and mouth lie.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::blocks::{Conv, ConvShape};
use crate::ops::resample;

/// Pixels between the cells of each level.
pub const STRIDES: [usize; 3] = [8, 16, 32];

/// Height and width of a picture are multiples of this.
pub const MULTIPLE: usize = 32;

/// Values per cell: score logit, four log distances, five points.
pub const OUTPUTS: usize = 15;

/// Features of the pyramid's levels.
pub const PYRAMID: usize = 48;

/// The network, ready for inference.
#[derive(Clone, Debug)]
pub struct FaceDetector {
    /// Each stage with whether it ends at a level of the pyramid.
    stages: [Vec<Layer>; 4],
    lateral: [Conv; 3],
    smooth: [Conv; 3],
    head: Conv,
}

impl FaceDetector {
    /// Reads the tensors of `mimic-face.safetensors`.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    pub fn new(vb: VarBuilder) -> Result<Self> {
        let lateral =
            |i: usize, c_in| normed(ConvShape::same(c_in, PYRAMID, 1), &vb.pp("lat").pp(i));
        let smooth =
            |i: usize| normed(ConvShape::same(PYRAMID, PYRAMID, 3), &vb.pp("smooth").pp(i));
        Ok(Self {
            stages: [
                vec![
                    Layer::halving(3, 16, &vb.pp("stem.0"))?,
                    Layer::halving(16, 24, &vb.pp("stem.1"))?,
                    Layer::residual(24, &vb.pp("stem.2"))?,
                ],
                vec![
                    Layer::halving(24, 48, &vb.pp("stage1.0"))?,
                    Layer::residual(48, &vb.pp("stage1.1"))?,
                ],
                vec![
                    Layer::halving(48, 64, &vb.pp("stage2.0"))?,
                    Layer::residual(64, &vb.pp("stage2.1"))?,
                    Layer::residual(64, &vb.pp("stage2.2"))?,
                ],
                vec![
                    Layer::halving(64, 80, &vb.pp("stage3.0"))?,
                    Layer::residual(80, &vb.pp("stage3.1"))?,
                    Layer::residual(80, &vb.pp("stage3.2"))?,
                ],
            ],
            lateral: [lateral(0, 48)?, lateral(1, 64)?, lateral(2, 80)?],
            smooth: [smooth(0)?, smooth(1)?, smooth(2)?],
            head: Conv::new(ConvShape::same(PYRAMID, OUTPUTS, 3), &vb.pp("head"))?,
        })
    }

    /// What the trunk sees in pictures (b, 3, h, w) in 0..1 at 1/2, 1/4, 1/8, 1/16 and 1/32 of their size:
    /// features that say how alike two faces look.
    pub fn features(&self, pictures: &Tensor) -> Result<Vec<Tensor>> {
        let mut x = ((pictures - 0.5)? / 0.25)?;
        let mut features = Vec::with_capacity(5);
        for layer in self.stages.iter().flatten() {
            // A size is done where the next begins.
            if matches!(layer, Layer::Halving(_)) && x.dim(1)? != 3 {
                features.push(x.clone());
            }
            x = layer.forward(&x)?;
        }
        features.push(x);
        Ok(features)
    }

    /// Pictures (b, 3, h, w) in 0..1, h and w multiples of [`MULTIPLE`], to (b, 15, h/s, w/s) for each
    /// of [`STRIDES`].
    pub fn forward(&self, pictures: &Tensor) -> Result<[Tensor; 3]> {
        let run = |stage: &[Layer], x: &Tensor| {
            stage
                .iter()
                .try_fold(x.clone(), |x, layer| layer.forward(&x))
        };
        let [stem, stage1, stage2, stage3] = &self.stages;
        let x = run(stem, &((pictures - 0.5)? / 0.25)?)?;
        let fine = run(stage1, &x)?;
        let middle = run(stage2, &fine)?;
        let coarse = run(stage3, &middle)?;

        let lateral = |i: usize, x: &Tensor| self.lateral[i].forward(x)?.relu();
        let coarse = lateral(2, &coarse)?;
        let middle = (lateral(1, &middle)? + resample::nearest_x2(&coarse)?)?;
        let fine = (lateral(0, &fine)? + resample::nearest_x2(&middle)?)?;
        let level = |i: usize, x: &Tensor| self.head.forward(&self.smooth[i].forward(x)?.relu()?);
        Ok([level(0, &fine)?, level(1, &middle)?, level(2, &coarse)?])
    }
}

/// One step of the trunk.
#[derive(Clone, Debug)]
enum Layer {
    /// Convolution of stride 2, relu.
    Halving(Conv),
    /// relu(x + second(relu(first(x)))).
    Residual(Conv, Conv),
}

impl Layer {
    fn halving(c_in: usize, c_out: usize, vb: &VarBuilder) -> Result<Self> {
        let shape = ConvShape::same(c_in, c_out, 3).halving();
        Ok(Self::Halving(normed(shape, vb)?))
    }

    fn residual(channels: usize, vb: &VarBuilder) -> Result<Self> {
        let conv = |name| normed(ConvShape::same(channels, channels, 3), &vb.pp(name));
        Ok(Self::Residual(conv("conv1")?, conv("conv2")?))
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Halving(conv) => conv.forward(x)?.relu(),
            Self::Residual(first, second) => {
                (x + second.forward(&first.forward(x)?.relu()?)?)?.relu()
            }
        }
    }
}

fn normed(shape: ConvShape, vb: &VarBuilder) -> Result<Conv> {
    Conv::with_norm(shape.without_bias(), &vb.pp("conv"), &vb.pp("norm"))
}

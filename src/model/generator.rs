//! The occlusion-aware generator (paper section 3.2): encodes the source, warps its features by the
//! dense motion, hides what the source does not show and decodes.
//!
//! What depends on the source alone is computed once, by [`Generator::encode_source`].

use candle_core::{DType, Device, Result, Tensor, bail};
use candle_nn::{VarBuilder, ops};

use super::blocks::{DownBlock, Head, ResBlock, SameBlock, UpBlock};
use super::border::{blurred, inside};
use super::config::{Border, ModelConfig};
use super::coordinate_grid;
use super::dense_motion::DenseMotion;
use super::keypoint_detector::KeypointTensors;
use crate::ops::grid_sample::{Padding, grid_sample};
use crate::ops::{fused, resample};

/// `OcclusionAwareGenerator` of the reference, with its dense motion network.
#[derive(Clone, Debug)]
pub struct Generator {
    pub(super) dense_motion: DenseMotion,
    pub(super) first: Vec<SameBlock>,
    pub(super) down_blocks: Vec<DownBlock>,
    pub(super) bottleneck: Vec<ResBlock>,
    pub(super) up_blocks: Vec<UpBlock>,
    pub(super) last: Head,
    border: Border,
    opens_border: bool,
    /// What the blocks compute in; places, occlusion and the result are f32 at least.
    dtype: DType,
}

/// What the generator needs of a source picture.
#[derive(Clone, Debug)]
pub struct SourceFeatures {
    /// The picture (b, 3, H, W).
    pub image: Tensor,
    /// The encoder's features (b, c, h, w).
    pub features: Tensor,
    /// The picture as dense motion wants it (b, 3, h', w').
    pub small: Tensor,
    /// How the border of deformation and occlusion map is treated.
    rim: Rim,
}

/// What is made of a picture's border, (h, w) its size in features.
#[derive(Clone, Debug, Default)]
pub(super) struct Rim {
    /// Where places do not move (1, h, w, 2), and how much of a motion is left inside (h, w, 1).
    pub(super) still: Option<(Tensor, Tensor)>,
    /// What of an occlusion map counts (h, w), and what is added to it.
    pub(super) open: Option<(Tensor, Tensor)>,
}

impl SourceFeatures {
    /// All that [`Generator::animate`] reads of it.
    pub fn tensors(&self) -> Vec<&Tensor> {
        let rim = [&self.rim.still, &self.rim.open];
        let rim = rim.into_iter().flatten().flat_map(|(a, b)| [a, b]);
        [&self.features, &self.small]
            .into_iter()
            .chain(rim)
            .collect()
    }

    /// The same of other tensors, in the order of [`SourceFeatures::tensors`].
    ///
    /// # Errors
    /// When there are too few.
    pub fn with_tensors(&self, tensors: &[Tensor]) -> Result<Self> {
        let [features, small, rim @ ..] = tensors else {
            bail!("{} tensors are no source", tensors.len());
        };
        let mut pairs = rim.as_chunks::<2>().0.iter();
        let mut pair = |like: &Option<(Tensor, Tensor)>| {
            let [a, b] = like.as_ref().and_then(|_| pairs.next())?;
            Some((a.clone(), b.clone()))
        };
        Ok(Self {
            image: self.image.clone(),
            features: features.clone(),
            small: small.clone(),
            rim: Rim {
                still: pair(&self.rim.still),
                open: pair(&self.rim.open),
            },
        })
    }

    /// Those of several pictures, one after the other, as those of a batch.
    ///
    /// # Errors
    /// When there are none, or they are of different models.
    pub fn batch(all: &[&Self]) -> Result<Self> {
        let Some(first) = all.first() else {
            bail!("a batch of no pictures");
        };
        let cat = |of: fn(&Self) -> &Tensor| {
            Tensor::cat(&all.iter().map(|s| of(s)).collect::<Vec<_>>(), 0)
        };
        Ok(Self {
            image: cat(|s| &s.image)?,
            features: cat(|s| &s.features)?,
            small: cat(|s| &s.small)?,
            rim: first.rim.clone(),
        })
    }
}

/// What the generator makes of a batch of driving keypoints; (h, w) is the source's size over dense
/// motion's reduction, (h', w') the size of the encoder's features.
#[derive(Clone, Debug)]
pub struct GeneratorOutput {
    /// The pictures (b, 3, H, W) in 0..1.
    pub prediction: Tensor,
    /// Where each pixel comes from (b, h, w, 2) as (x, y) in -1..1, as dense motion gives it.
    pub deformation: Tensor,
    /// How much each keypoint's motion counts (b, K + 1, h, w), the background's first.
    pub mask: Tensor,
    /// Whether the source shows what is to be seen (b, 1, h, w) in 0..1, as dense motion gives it.
    pub occlusion_map: Option<Tensor>,
    /// The reduced source warped by each motion (b, K + 1, 3, h, w).
    pub sparse_deformed: Tensor,
    /// The deformation (b, h', w', 2) as it was used on the features, its border treated.
    pub used_deformation: Tensor,
    /// The occlusion map (b, 1, h', w') as it was used on the features, its border treated.
    pub used_occlusion: Option<Tensor>,
}

/// What is shown of [`GeneratorOutput`], of the same shapes.
#[derive(Clone, Debug)]
pub struct Moved {
    /// [`GeneratorOutput::prediction`].
    pub prediction: Tensor,
    /// [`GeneratorOutput::used_deformation`].
    pub deformation: Tensor,
    /// [`GeneratorOutput::used_occlusion`].
    pub occlusion: Option<Tensor>,
}

impl Generator {
    /// Reads the tensors of a checkpoint under `generator`.
    pub fn new(config: &ModelConfig, vb: VarBuilder) -> Result<Self> {
        let generator = &config.generator;
        let (mobile, channels) = (generator.mobile, config.num_channels);
        let (levels, width) = (generator.num_down_blocks, |level| generator.width(level));
        let first = if mobile {
            [channels, channels, width(0)]
                .into_iter()
                .enumerate()
                .map(|(i, c_out)| SameBlock::new(channels, c_out, 3, false, vb.pp("first").pp(i)))
                .collect::<Result<_>>()?
        } else {
            vec![SameBlock::new(channels, width(0), 7, true, vb.pp("first"))?]
        };
        let down_blocks = (0..levels)
            .map(|i| DownBlock::new(width(i), width(i + 1), mobile, vb.pp("down_blocks").pp(i)))
            .collect::<Result<_>>()?;
        let bottleneck = (0..generator.num_bottleneck_blocks)
            .map(|i| {
                ResBlock::new(
                    width(levels),
                    mobile,
                    vb.pp("bottleneck").pp(format!("r{i}")),
                )
            })
            .collect::<Result<_>>()?;
        let up_blocks = (0..levels)
            .map(|i| {
                let (from, to) = (width(levels - i), width(levels - i - 1));
                UpBlock::new(from, to, mobile, vb.pp("up_blocks").pp(i))
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            dense_motion: DenseMotion::new(config, vb.pp("dense_motion_network"))?,
            first,
            down_blocks,
            bottleneck,
            up_blocks,
            last: Head::new(width(0), channels, mobile, vb.pp("final"))?,
            border: config.border,
            opens_border: config.border == Border::PaddleGan && !mobile,
            dtype: vb.dtype(),
        })
    }

    /// Everything that depends on the source alone: `source` (b, 3, H, W) in 0..1.
    pub fn encode_source(&self, source: &Tensor) -> Result<SourceFeatures> {
        let features = self
            .first
            .iter()
            .try_fold(source.to_dtype(self.dtype)?, |x, block| block.forward(&x))?;
        let features = self
            .down_blocks
            .iter()
            .try_fold(features, |x, block| block.forward(&x))?;
        let small = self.dense_motion.reduce(source)?;
        let (_, _, h, w) = features.dims4()?;
        Ok(SourceFeatures {
            image: source.clone(),
            rim: self.rim(h, w, source.dtype(), source.device())?,
            features,
            small,
        })
    }

    /// Moves the source from `kp_source` to `kp_driving`; one source serves a batch of driving
    /// keypoints.
    pub fn forward(
        &self,
        source: &SourceFeatures,
        kp_source: &KeypointTensors,
        kp_driving: &KeypointTensors,
    ) -> Result<GeneratorOutput> {
        let motion = self
            .dense_motion
            .forward(&source.small, kp_source, kp_driving)?;
        let moved = self.follow(source, &motion.deformation, motion.occlusion_map.as_ref())?;
        Ok(GeneratorOutput {
            prediction: moved.prediction,
            deformation: motion.deformation,
            mask: motion.mask,
            occlusion_map: motion.occlusion_map,
            sparse_deformed: motion.sparse_deformed,
            used_deformation: moved.deformation,
            used_occlusion: moved.occlusion,
        })
    }

    /// As [`Generator::forward`], but only what is shown.
    pub fn animate(
        &self,
        source: &SourceFeatures,
        kp_source: &KeypointTensors,
        kp_driving: &KeypointTensors,
    ) -> Result<Moved> {
        let (deformation, occlusion) =
            self.dense_motion
                .motion(&source.small, kp_source, kp_driving)?;
        self.follow(source, &deformation, occlusion.as_ref())
    }

    /// The source as a deformation moves it and an occlusion map hides it, decoded.
    fn follow(
        &self,
        source: &SourceFeatures,
        deformation: &Tensor,
        occlusion: Option<&Tensor>,
    ) -> Result<Moved> {
        let (_, _, h, w) = source.features.dims4()?;
        let rim = &source.rim;
        let deformation = rim.kept_still(deformation, h, w)?;
        let mut x = grid_sample(&source.features, &deformation, Padding::Zeros, true)?;
        let occlusion = match occlusion {
            Some(map) => Some(rim.opened(&resample::bilinear(map, h, w)?)?),
            None => None,
        };
        match &occlusion {
            Some(visible) if fused::fuses(&x) && visible.dtype() == DType::F32 => {
                x = fused::veiled(&x, visible)?;
            }
            Some(visible) => x = x.broadcast_mul(&visible.to_dtype(x.dtype())?)?,
            None => {}
        }
        let x = self
            .bottleneck
            .iter()
            .try_fold(x, |x, block| block.forward(&x))?;
        let x = self
            .up_blocks
            .iter()
            .try_fold(x, |x, block| block.forward(&x))?;
        Ok(Moved {
            prediction: ops::sigmoid(&self.last.forward(&x)?.to_dtype(source.image.dtype())?)?,
            deformation,
            occlusion,
        })
    }

    /// Warps pictures or features (1 or b, c, h, w) by a deformation (b, h', w', 2), the border
    /// treated as the configuration says: what the generator does to the source's features, and on
    /// the source itself the reference's `deformed` picture.
    pub fn deform(&self, input: &Tensor, deformation: &Tensor) -> Result<Tensor> {
        let (_, _, h, w) = input.dims4()?;
        let rim = self.rim(h, w, deformation.dtype(), deformation.device())?;
        let deformation = rim.kept_still(deformation, h, w)?;
        grid_sample(input, &deformation, Padding::Zeros, true)
    }

    pub(super) fn rim(&self, h: usize, w: usize, dtype: DType, device: &Device) -> Result<Rim> {
        let mut rim = Rim::default();
        if self.border != Border::None {
            let identity = coordinate_grid(h, w, dtype, device)?.unsqueeze(0)?;
            rim.still = Some((identity, soft_inside(h, w, dtype, device)?));
        }
        if self.opens_border {
            let inner = outer_product(&inside(h), &inside(w), dtype, device)?;
            let outer = inner.affine(-1.0, 1.0)?;
            rim.open = Some((inner, outer));
        }
        Ok(rim)
    }
}

impl Rim {
    /// A deformation (b, h', w', 2) brought to (b, h, w, 2), its border treated.
    fn kept_still(&self, deformation: &Tensor, h: usize, w: usize) -> Result<Tensor> {
        let channels_first = deformation.permute((0, 3, 1, 2))?;
        let deformation = resample::bilinear(&channels_first, h, w)?.permute((0, 2, 3, 1))?;
        let Some((identity, inner)) = &self.still else {
            return Ok(deformation);
        };
        if fused::fuses(&deformation) {
            return fused::kept_still(&deformation, &inner.squeeze(2)?);
        }
        let moved = deformation.broadcast_sub(identity)?.broadcast_mul(inner)?;
        moved.broadcast_add(identity)
    }

    /// An occlusion map (b, 1, h, w) with the border counted as visible, where that is asked for.
    fn opened(&self, map: &Tensor) -> Result<Tensor> {
        match &self.open {
            Some((inner, _)) if fused::fuses(map) => fused::opened(map, inner),
            Some((inner, outer)) => map.broadcast_mul(inner)?.broadcast_add(outer),
            None => Ok(map.clone()),
        }
    }
}

/// 1 inside the border, 0 in it, softened: (h, w, 1).
fn soft_inside(h: usize, w: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    outer_product(&blurred(&inside(h)), &blurred(&inside(w)), dtype, device)?.unsqueeze(2)
}

fn outer_product(rows: &[f64], columns: &[f64], dtype: DType, device: &Device) -> Result<Tensor> {
    let values: Vec<f64> = rows
        .iter()
        .flat_map(|row| columns.iter().map(move |column| row * column))
        .collect();
    Tensor::from_vec(values, (rows.len(), columns.len()), device)?.to_dtype(dtype)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn motion_fades_out_within_nine_pixels_of_the_edge() {
        let inner = soft_inside(32, 20, DType::F64, &Device::Cpu).unwrap();
        let inner = inner.squeeze(2).unwrap().to_vec2::<f64>().unwrap();
        let row = &inner[16];
        assert_eq!(row[0], 0.0);
        assert_eq!(row[1], 4.0 / 256.0);
        assert_eq!(row[4], (4.0 + 13.0 + 30.0 + 51.0) / 256.0);
        assert_eq!(row[9], 1.0);
        assert_eq!(row[10], 1.0);
        assert_eq!(row[15], row[4]);
        assert_eq!(row[19], 0.0);
        assert_eq!(inner[4][4], row[4] * row[4]);
    }
}

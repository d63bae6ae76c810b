//! The networks once more, for graphics cards: on maps of features that lie side by side, by few kernels.
//!
//! [`crate::model`] says in candle what the networks compute; this is built from it ([`Networks::of`]) and computes the same by the
//! ops of [`maps`], in which nearly everything that surrounds a convolution is part of it. Keypoints are found in f32; dense motion and
//! the generator compute in the precision asked for, places, masks and what is seen in f32.

mod layers;

use candle_core::{DType, Device, Result, Tensor, bail};

use super::{ModelConfig, generator, keypoint_detector};
use crate::ops::fused;
use crate::ops::maps::{self, Heads, Map, Then};
use crate::ops::resample::{self, AntiAlias};
use layers::{Block, Hourglass, Residual, chain, merged};

/// Both networks of a model on a card.
#[derive(Debug)]
pub struct Networks {
    config: ModelConfig,
    keypoints: KeypointDetector,
    motion: DenseMotion,
    generator: Generator,
    dtype: DType,
}

/// What depends on the photo alone.
#[derive(Clone, Debug)]
pub struct Source {
    /// The encoder's features.
    features: Map,
    /// The picture as dense motion wants it, f32.
    small: Map,
}

#[derive(Debug)]
struct KeypointDetector {
    eye: Eye,
    hourglass: Hourglass,
    last: Vec<maps::Convolution>,
    heads: Heads,
}

#[derive(Debug)]
struct DenseMotion {
    eye: Eye,
    hourglass: Hourglass,
    last: Vec<maps::Convolution>,
    variance: f64,
}

#[derive(Debug)]
struct Generator {
    /// The picture as it is.
    eye: Eye,
    first: Vec<maps::Convolution>,
    down: Vec<Block>,
    bottleneck: Vec<Residual>,
    up: Vec<Block>,
    last: Vec<maps::Convolution>,
    relu_between: bool,
    /// What is left of a motion (h, w), where the border is treated.
    still: Option<Tensor>,
    /// What counts of the map of what is seen (h, w), where the border is opened.
    open: Option<Tensor>,
}

/// How a network sees a picture: through a gaussian, reduced.
#[derive(Debug)]
struct Eye {
    kernel: Tensor,
    factor: usize,
}

impl Networks {
    /// Of networks for inference, on the CPU in f32. Dense motion and the generator compute in `dtype`.
    ///
    /// # Errors
    /// When the networks are of a form that this cannot compute, or the device fails.
    pub fn of(networks: &super::Networks, device: &Device, dtype: DType) -> Result<Self> {
        let config = &networks.config;
        if config.num_channels != 3 {
            bail!("pictures of {} channels", config.num_channels);
        }
        let keypoints = &networks.keypoint_detector;
        let generator = &networks.generator;
        Ok(Self {
            config: config.clone(),
            keypoints: KeypointDetector::of(keypoints, device)?,
            motion: DenseMotion::of(&generator.dense_motion, (device, dtype))?,
            generator: Generator::of(generator, config, (device, dtype))?,
            dtype,
        })
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Whether keypoints have jacobians.
    pub fn has_jacobians(&self) -> bool {
        self.keypoints.heads.jacobians > 0
    }

    /// Keypoints (b, K, 6) of pixels (b, h, w, 4) of RGBA bytes: places, then jacobians by rows, or zeros.
    pub fn numbers(&self, pixels: &Tensor) -> Result<Tensor> {
        let kp = &self.keypoints;
        let seen = kp.eye.look(pixels, DType::F32)?;
        let features = kp.hourglass.run(seen)?;
        let maps = chain(&kp.last, &features.each_ref(), false)?;
        maps::points(&maps, kp.heads)
    }

    /// What depends on the photo alone, of pixels (b, h, w, 4) of RGBA bytes.
    pub fn encode(&self, pixels: &Tensor) -> Result<Source> {
        let generator = &self.generator;
        let mut x = generator.eye.look(pixels, self.dtype)?;
        let relu = Then {
            relu: true,
            ..Then::default()
        };
        for conv in &generator.first {
            x = conv.run(&[&x], relu)?.0;
        }
        for block in &generator.down {
            x = block.pooled(&[&x])?;
        }
        Ok(Source {
            features: x,
            small: self.motion.eye.look(pixels, DType::F32)?,
        })
    }

    /// The photo of `source` (of 1 or b pictures) moved by `pairs` (b, K, 12) of its keypoints and the driver's (see
    /// [`fused::pairs`]): pixels (b, h, w, 4) of RGBA bytes, places (b, h', w', 2) and, where the model has one, the map of what is seen
    /// (b, 1, h', w'), both as they were used on the features.
    pub fn animate(&self, source: &Source, pairs: &Tensor) -> Result<Vec<Tensor>> {
        let (motion, generator) = (&self.motion, &self.generator);
        let linear = self.has_jacobians();
        let input = maps::motions(&source.small, pairs, linear, motion.variance, self.dtype)?;
        let features = motion.hourglass.run(input)?;
        let decided = chain(&motion.last, &features.each_ref(), true)?;
        let (deformation, seen) = maps::decide(&decided, pairs, linear)?;
        let (deformation, seen) = self.at_the_border(source, deformation, seen)?;

        let norm = |i: usize| generator.bottleneck.get(i).map(Residual::norm);
        let (mut x, mut opened) =
            maps::follow(&source.features, &deformation, seen.as_ref(), norm(0))?;
        for (i, block) in generator.bottleneck.iter().enumerate() {
            let Some(open) = &opened else {
                bail!("a residual block without its input");
            };
            (x, opened) = block.run(&x, open, norm(i + 1))?;
        }
        for block in &generator.up {
            x = block.run(&[&x])?;
        }
        let picture = chain(&generator.last, &[&x], generator.relu_between)?;
        let mut shown = vec![maps::paint(&picture)?, deformation];
        shown.extend(seen);
        Ok(shown)
    }

    /// Deformation and map of what is seen at the features' size, their border treated.
    fn at_the_border(
        &self,
        source: &Source,
        deformation: Tensor,
        seen: Option<Tensor>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let (_, h, w, _) = source.features.data().dims4()?;
        let (_, height, width, _) = deformation.dims4()?;
        let (mut deformation, mut seen) = (deformation, seen);
        if (h, w) != (height, width) {
            let planes = deformation.permute((0, 3, 1, 2))?.contiguous()?;
            let planes = resample::bilinear(&planes, h, w)?;
            deformation = planes.permute((0, 2, 3, 1))?.contiguous()?;
            seen = seen
                .map(|map| resample::bilinear(&map, h, w)?.contiguous())
                .transpose()?;
        }
        if let Some(inner) = &self.generator.still {
            deformation = fused::kept_still(&deformation, inner)?;
        }
        if let (Some(inner), Some(map)) = (&self.generator.open, &seen) {
            seen = Some(fused::opened(map, inner)?);
        }
        Ok((deformation, seen))
    }
}

impl Source {
    /// What is read of it when it is moved.
    pub fn tensors(&self) -> [&Tensor; 2] {
        [self.features.data(), self.small.data()]
    }

    /// The same of other tensors of these shapes.
    ///
    /// # Errors
    /// When they are of others.
    pub fn with_tensors(&self, [features, small]: [&Tensor; 2]) -> Result<Self> {
        Ok(Self {
            features: Map::new(features.clone(), self.features.channels())?,
            small: Map::new(small.clone(), self.small.channels())?,
        })
    }

    /// Those of several pictures as those of a batch.
    ///
    /// # Errors
    /// When there are none, or they are of different models.
    pub fn batch(all: &[&Self]) -> Result<Self> {
        let Some(first) = all.first() else {
            bail!("a batch of no pictures");
        };
        let cat = |of: fn(&Self) -> &Map| {
            let data: Vec<&Tensor> = all.iter().map(|source| of(source).data()).collect();
            Map::new(Tensor::cat(&data, 0)?, of(first).channels())
        };
        Ok(Self {
            features: cat(|source| &source.features)?,
            small: cat(|source| &source.small)?,
        })
    }
}

impl KeypointDetector {
    fn of(detector: &keypoint_detector::KeypointDetector, device: &Device) -> Result<Self> {
        let target = (device, DType::F32);
        let heads = [Some(&detector.kp), detector.jacobian.as_ref()];
        let heads: Vec<_> = heads.into_iter().flatten().collect();
        let hourglass = Hourglass::of(&detector.predictor, target)?;
        let outputs = |head: &super::blocks::Head| head.convs.last().map_or(0, |c| c.outputs());
        Ok(Self {
            eye: Eye::of(&detector.down, device)?,
            last: merged(&heads, hourglass.outputs(), target)?,
            hourglass,
            heads: Heads {
                count: detector.num_kp,
                jacobians: detector.jacobian.as_ref().map_or(0, outputs) / 4,
                temperature: detector.temperature,
            },
        })
    }
}

impl DenseMotion {
    fn of(motion: &super::DenseMotion, target: (&Device, DType)) -> Result<Self> {
        let heads = [Some(&motion.mask), motion.occlusion.as_ref()];
        let heads: Vec<_> = heads.into_iter().flatten().collect();
        let hourglass = Hourglass::of(&motion.hourglass, target)?;
        Ok(Self {
            eye: Eye::of(&motion.down, target.0)?,
            last: merged(&heads, hourglass.outputs(), target)?,
            hourglass,
            variance: motion.kp_variance,
        })
    }
}

impl Generator {
    fn of(
        generator: &generator::Generator,
        config: &ModelConfig,
        target: (&Device, DType),
    ) -> Result<Self> {
        let (device, _) = target;
        let first = generator.first.iter();
        let down = generator.down_blocks.iter();
        let up = generator.up_blocks.iter();
        let bottleneck = generator.bottleneck.iter();
        let one =
            |conv: &super::blocks::Conv| layers::convolution(conv, &[conv.inputs()], false, target);
        let side = config.image_size as usize >> generator.down_blocks.len();
        let rim = generator.rim(side, side, DType::F32, device)?;
        Ok(Self {
            eye: Eye {
                kernel: Tensor::ones((1, 1), DType::F32, device)?,
                factor: 1,
            },
            first: first.map(|block| one(&block.0)).collect::<Result<_>>()?,
            down: down
                .map(|block| Block::of(&block.0, &[block.inputs()], false, target))
                .collect::<Result<_>>()?,
            bottleneck: bottleneck
                .map(|block| Residual::of(block, target))
                .collect::<Result<_>>()?,
            up: up
                .map(|block| Block::of(&block.0, &[block.inputs()], true, target))
                .collect::<Result<_>>()?,
            last: generator
                .last
                .convs
                .iter()
                .map(one)
                .collect::<Result<_>>()?,
            relu_between: generator.last.relu_between,
            still: rim.still.map(|(_, inner)| inner.squeeze(2)).transpose()?,
            open: rim.open.map(|(inner, _)| inner),
        })
    }
}

impl Eye {
    fn of(down: &AntiAlias, device: &Device) -> Result<Self> {
        let factor = down.factor();
        Ok(Self {
            // By 1 pictures stay as they are.
            kernel: match factor {
                1 => Tensor::ones((1, 1), DType::F32, device)?,
                _ => down.kernel()?.to_device(device)?,
            },
            factor,
        })
    }

    fn look(&self, pixels: &Tensor, to: DType) -> Result<Map> {
        maps::look(pixels, &self.kernel, self.factor, to)
    }
}

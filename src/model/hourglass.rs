//! The hourglass (U-Net): down to a few pixels and up again, with every size handed across.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::ModelConfig;
use super::blocks::{DownBlock, UpBlock};

/// Encoder and decoder with skip connections.
#[derive(Clone, Debug)]
pub struct Hourglass {
    pub(super) down_blocks: Vec<DownBlock>,
    pub(super) up_blocks: Vec<UpBlock>,
}

impl Hourglass {
    /// Reads `encoder.down_blocks.N` and `decoder.up_blocks.N`. What comes out has
    /// [`Shape::c_out`] features.
    pub fn new(shape: &Shape, vb: VarBuilder) -> Result<Self> {
        let (down, up) = (vb.pp("encoder.down_blocks"), vb.pp("decoder.up_blocks"));
        let down_blocks = shape
            .encoder_widths()
            .into_iter()
            .enumerate()
            .map(|(i, (from, to))| DownBlock::new(from, to, shape.mobile, down.pp(i)))
            .collect::<Result<_>>()?;
        let up_blocks = shape
            .decoder_widths()
            .into_iter()
            .enumerate()
            .map(|(i, (from, to))| UpBlock::new(from, to, shape.mobile, up.pp(i)))
            .collect::<Result<_>>()?;
        Ok(Self {
            down_blocks,
            up_blocks,
        })
    }

    /// (b, c_in, h, w) to (b, c_out, h, w); h and w are multiples of
    /// 2^num_blocks.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut skips = Vec::with_capacity(self.down_blocks.len());
        let mut x = x.clone();
        for block in &self.down_blocks {
            let smaller = block.forward(&x)?;
            skips.push(std::mem::replace(&mut x, smaller));
        }
        for (block, skip) in self.up_blocks.iter().zip(skips.iter().rev()) {
            x = Tensor::cat(&[&block.forward(&x)?, skip], 1)?;
        }
        Ok(x)
    }
}

/// Features after halving the picture `level` times: doubled each time, up to a maximum.
pub fn width(block_expansion: usize, max_features: usize, level: usize) -> usize {
    block_expansion
        .saturating_mul(1 << level.min(32))
        .min(max_features)
}

/// How deep and wide an hourglass is.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Channels of its input.
    pub c_in: usize,
    /// Features of each size, from the full one to the smallest.
    pub widths: Vec<usize>,
    /// Depthwise convolutions.
    pub mobile: bool,
}

impl Shape {
    /// The keypoint detector's.
    pub fn of_keypoints(config: &ModelConfig) -> Self {
        let kp = &config.kp;
        Self {
            c_in: config.num_channels,
            widths: (0..=kp.num_blocks)
                .map(|level| width(kp.block_expansion, kp.max_features, level))
                .collect(),
            mobile: kp.mobile,
        }
    }

    /// Dense motion's: for the background and each keypoint a heatmap and the moved source.
    pub fn of_motion(config: &ModelConfig) -> Self {
        let motion = &config.generator.dense_motion;
        Self {
            c_in: (config.num_kp + 1) * (config.num_channels + 1),
            widths: (0..=motion.num_blocks)
                .map(|level| motion.width(level))
                .collect(),
            mobile: config.generator.mobile,
        }
    }

    /// How often it halves the picture.
    pub fn num_blocks(&self) -> usize {
        self.widths.len().saturating_sub(1)
    }

    /// Features that come out: the last up block's and the input's.
    pub fn c_out(&self) -> usize {
        self.widths[0] + self.c_in
    }

    /// Features into and out of each down block, first to last.
    pub fn encoder_widths(&self) -> Vec<(usize, usize)> {
        (0..self.num_blocks())
            .map(|i| {
                let from = if i == 0 { self.c_in } else { self.widths[i] };
                (from, self.widths[i + 1])
            })
            .collect()
    }

    /// Features into and out of each up block, first (the smallest picture) to last.
    pub fn decoder_widths(&self) -> Vec<(usize, usize)> {
        // All but the first get as many features again from the encoder.
        let shares = |level| if level + 1 == self.num_blocks() { 1 } else { 2 };
        (0..self.num_blocks())
            .rev()
            .map(|i| (shares(i) * self.widths[i + 1], self.widths[i]))
            .collect()
    }
}

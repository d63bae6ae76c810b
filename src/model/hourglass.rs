//! The hourglass (U-Net): down to a few pixels and up again, with every size handed across.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::blocks::{DownBlock, UpBlock};

/// Encoder and decoder with skip connections.
#[derive(Clone, Debug)]
pub struct Hourglass {
    down_blocks: Vec<DownBlock>,
    up_blocks: Vec<UpBlock>,
}

impl Hourglass {
    /// Reads `encoder.down_blocks.N` and `decoder.up_blocks.N`. What comes out has
    /// `block_expansion + c_in` features.
    pub fn new(
        c_in: usize,
        block_expansion: usize,
        max_features: usize,
        num_blocks: usize,
        mobile: bool,
        vb: VarBuilder,
    ) -> Result<Self> {
        let (down, up) = (vb.pp("encoder.down_blocks"), vb.pp("decoder.up_blocks"));
        let down_blocks = encoder_widths(c_in, block_expansion, max_features, num_blocks)
            .into_iter()
            .enumerate()
            .map(|(i, (from, to))| DownBlock::new(from, to, mobile, down.pp(i)))
            .collect::<Result<_>>()?;
        let up_blocks = decoder_widths(block_expansion, max_features, num_blocks)
            .into_iter()
            .enumerate()
            .map(|(i, (from, to))| UpBlock::new(from, to, mobile, up.pp(i)))
            .collect::<Result<_>>()?;
        Ok(Self {
            down_blocks,
            up_blocks,
        })
    }

    /// (b, c_in, h, w) to (b, block_expansion + c_in, h, w); h and w are multiples of
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

/// Features into and out of each down block, first to last.
pub fn encoder_widths(
    c_in: usize,
    block_expansion: usize,
    max_features: usize,
    num_blocks: usize,
) -> Vec<(usize, usize)> {
    let width = |level| width(block_expansion, max_features, level);
    (0..num_blocks)
        .map(|i| (if i == 0 { c_in } else { width(i) }, width(i + 1)))
        .collect()
}

/// Features into and out of each up block, first (the smallest picture) to last.
pub fn decoder_widths(
    block_expansion: usize,
    max_features: usize,
    num_blocks: usize,
) -> Vec<(usize, usize)> {
    let width = |level| width(block_expansion, max_features, level);
    // All but the first get as many features again from the encoder.
    let shares = |level| if level + 1 == num_blocks { 1 } else { 2 };
    (0..num_blocks)
        .rev()
        .map(|i| (shares(i) * width(i + 1), width(i)))
        .collect()
}

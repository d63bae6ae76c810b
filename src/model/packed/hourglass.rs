//! The hourglass (U-Net) of the packed engine.
//!
//! A decoder step's output and the encoder's map of that size, which are concatenated, lie in one
//! buffer: each is written where it belongs and nothing is copied.

use super::layers::{Step, Weights};
use crate::model::hourglass::{decoder_widths, encoder_widths};
use crate::ops::blocked::{Buffer, Channels, Size};
use crate::ops::threads::Workers;

/// Encoder, decoder and the maps between them.
#[derive(Debug)]
pub(super) struct Hourglass {
    down: Vec<Step>,
    up: Vec<Step>,
    /// For each size from the largest: the decoder's output, then the encoder's input of that size.
    maps: Vec<Buffer>,
    /// Where the second begins.
    seams: Vec<usize>,
    channels: Channels,
}

/// Widths and depth, as the configuration has them.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) block_expansion: usize,
    pub(super) max_features: usize,
    pub(super) num_blocks: usize,
    pub(super) mobile: bool,
}

impl Hourglass {
    pub(super) fn new(
        weights: &Weights<'_>,
        shape: Shape,
        c_in: usize,
        size: Size,
        workers: &Workers,
    ) -> candle_core::Result<Self> {
        let Shape {
            block_expansion,
            max_features,
            num_blocks,
            mobile,
        } = shape;
        let mut down: Vec<Step> = Vec::new();
        let mut skips = vec![Channels::new(c_in)];
        let mut sizes = vec![size];
        for (i, (_, out)) in encoder_widths(c_in, block_expansion, max_features, num_blocks)
            .into_iter()
            .enumerate()
        {
            let weights = weights.at("encoder.down_blocks").at(i);
            let step = Step::down(&weights, out, mobile, &skips[i], sizes[i], workers)?;
            skips.push(step.out().clone());
            sizes.push(step.output_size());
            down.push(step);
        }
        let mut up: Vec<Step> = Vec::new();
        let mut channels = skips[num_blocks].clone();
        let mut maps = vec![Buffer::zeroed(sizes[num_blocks].values(channels.blocks()))];
        let mut seams = vec![0];
        for (i, (_, out)) in decoder_widths(block_expansion, max_features, num_blocks)
            .into_iter()
            .enumerate()
        {
            let level = num_blocks - 1 - i;
            let weights = weights.at("decoder.up_blocks").at(i);
            let step = Step::up(&weights, out, mobile, &channels, sizes[level + 1], workers)?;
            channels = Channels::concat(out, skips[level].count());
            maps.insert(0, Buffer::zeroed(sizes[level].values(channels.blocks())));
            seams.insert(0, step.output_len());
            up.push(step);
        }
        Ok(Self {
            down,
            up,
            maps,
            seams,
            channels,
        })
    }

    /// Channels of [`Hourglass::run`]'s result: the decoder's, then the input's.
    pub(super) fn channels(&self) -> &Channels {
        &self.channels
    }

    /// Where the input is to be written, packed.
    pub(super) fn input(&mut self) -> &mut [f32] {
        &mut self.maps[0][self.seams[0]..]
    }

    /// Runs on what was written to [`Hourglass::input`].
    pub(super) fn run(&mut self, workers: &Workers) -> &[f32] {
        for (i, step) in self.down.iter_mut().enumerate() {
            let (upper, lower) = self.maps.split_at_mut(i + 1);
            step.run(
                workers,
                &upper[i][self.seams[i]..],
                &mut lower[0][self.seams[i + 1]..],
            );
        }
        for (i, step) in self.up.iter_mut().enumerate() {
            let level = self.down.len() - 1 - i;
            let (upper, lower) = self.maps.split_at_mut(level + 1);
            step.run(workers, &lower[0], &mut upper[level][..self.seams[level]]);
        }
        &self.maps[0]
    }
}

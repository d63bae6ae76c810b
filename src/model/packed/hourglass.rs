//! The hourglass (U-Net) of the packed engine.
//!
//! A decoder step's output and the encoder's map of that size, which are concatenated, lie in one
//! buffer: each is written where it belongs and nothing is copied.

use super::layers::{Map, Stage, Step, Way, Weights};
use crate::model::hourglass::Shape;
use crate::ops::blocked::{Buffer, Channels, Size};
use crate::ops::threads::Workers;

/// Encoder, decoder and the maps between them.
#[derive(Clone, Debug)]
pub(super) struct Hourglass {
    down: Vec<Step>,
    up: Vec<Step>,
    /// For each size from the largest: the decoder's output, then the encoder's input of that size.
    maps: Vec<Buffer>,
    /// Where the second begins.
    seams: Vec<usize>,
    out: Map,
}

impl Hourglass {
    pub(super) fn new(
        weights: &Weights<'_>,
        shape: &Shape,
        size: Size,
    ) -> candle_core::Result<Self> {
        let mut down: Vec<Step> = Vec::new();
        // The input, and what each step down gives.
        let mut skips = vec![Map {
            channels: Channels::new(shape.c_in),
            size,
        }];
        for (i, (_, out)) in shape.encoder_widths().into_iter().enumerate() {
            let weights = weights.at("encoder.down_blocks").at(i);
            let step = Step::new(Way::Down, &weights, out, shape.mobile, &skips[i])?;
            skips.push(step.out());
            down.push(step);
        }
        let mut up: Vec<Step> = Vec::new();
        let mut out = skips[shape.num_blocks()].clone();
        let mut maps = vec![Buffer::zeroed(out.len())];
        let mut seams = vec![0];
        for (i, (_, width)) in shape.decoder_widths().into_iter().enumerate() {
            let skip = &skips[shape.num_blocks() - 1 - i];
            let weights = weights.at("decoder.up_blocks").at(i);
            let step = Step::new(Way::Up, &weights, width, shape.mobile, &out)?;
            seams.insert(0, step.out().len());
            out = Map {
                channels: Channels::concat(width, skip.channels.count()),
                size: skip.size,
            };
            maps.insert(0, Buffer::zeroed(out.len()));
            up.push(step);
        }
        Ok(Self {
            down,
            up,
            maps,
            seams,
            out,
        })
    }

    /// What [`Hourglass::run`] gives: the decoder's channels, then the input's.
    pub(super) fn out(&self) -> &Map {
        &self.out
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

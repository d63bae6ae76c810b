//! Weights as the kernels read them.

use candle_core::{DType, Device, Result, Tensor};
use half::f16;

use super::padded_to;

/// Features of an input that are packed together where each is two numbers.
const TOGETHER: usize = 32;

/// Tensor cores sum over so many, of which a thread has four that follow each other.
const SUMMED: usize = 16;

/// The weight of a convolution.
#[derive(Clone, Debug)]
pub(super) struct Weight {
    /// (phases, features, taps, features of the inputs, each padded).
    pub(super) packed: Tensor,
    /// Of f32 where kernels fetch boxes.
    pub(super) pairs: Option<Pairs>,
    /// As it was (c_out, c_in, k, k) in f32, on the CPU, where nothing is packed.
    pub(super) plain: Option<Tensor>,
}

/// Weights of f32 as two numbers of f16 each, the second what the first leaves: 22 bits of 24.
#[derive(Clone, Debug)]
pub(super) struct Pairs {
    /// (phases, features, taps, features of the inputs by 32, first and second of each 32), in the order that `warpgroups.cu` wants.
    pub(super) packed: Tensor,
    /// By which sums are to be multiplied: a power of two, so that small weights are not too small for f16.
    pub(super) scale: f32,
}

impl Weight {
    /// Of a weight (phases * c_out, c_in, k, k); `inputs` are the features of each map that is convolved, together c_in.
    pub(super) fn new(
        weight: &Tensor,
        phases: usize,
        inputs: &[usize],
        (device, dtype): (&Device, DType),
    ) -> Result<Self> {
        let values = Values {
            outputs: weight.dim(0)? / phases,
            phases,
            taps: weight.dim(2)? * weight.dim(3)?,
            inputs,
            values: weight.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?,
        };
        let row: usize = inputs.iter().map(|&channels| padded_to(channels)).sum();
        let packed = values.packed(row, padded_to, |place, v| [(place, v)])?;
        let fetches = dtype == DType::F32 && super::fetches(device);
        Ok(Self {
            packed: packed.to_dtype(dtype)?.to_device(device)?,
            pairs: fetches.then(|| values.pairs(device)).transpose()?,
            plain: match device {
                Device::Cpu => Some(weight.to_dtype(dtype)?.to_dtype(DType::F32)?),
                _ => None,
            },
        })
    }
}

/// A weight as it was.
struct Values<'a> {
    outputs: usize,
    phases: usize,
    taps: usize,
    inputs: &'a [usize],
    values: Vec<f32>,
}

impl Values<'_> {
    fn pairs(&self, device: &Device) -> Result<Pairs> {
        let most = self.values.iter().fold(0f32, |most, v| most.max(v.abs()));
        // The largest then has 1024 to 2048, far from what f16 cannot hold.
        let by = match most.is_normal() {
            true => 2f32.powi((10 - most.log2().floor() as i32).clamp(-100, 100)),
            false => 1.0,
        };
        let padded = |channels: usize| 2 * channels.next_multiple_of(TOGETHER);
        let row = self.inputs.iter().map(|&channels| padded(channels)).sum();
        let packed = self.packed(row, padded, |channel, v| {
            let (group, within) = (channel / TOGETHER, channel % TOGETHER);
            let (sixteen, i) = (within / SUMMED, within % SUMMED);
            let slot = i / 4 * 2 + i % 4 / 2 * 8 + i % 2;
            let place = group * 2 * TOGETHER + sixteen * SUMMED + slot;
            let first = f16::from_f32(v * by).to_f32();
            [(place, first), (place + TOGETHER, v * by - first)]
        })?;
        Ok(Pairs {
            packed: packed.to_dtype(DType::F16)?.to_device(device)?,
            scale: 1.0 / by,
        })
    }

    /// (phases, features, taps, row) on the CPU: `put` says where among those of an input a channel's value goes, and as what; an input takes
    /// `padded` of them.
    fn packed<const N: usize>(
        &self,
        row: usize,
        padded: impl Fn(usize) -> usize,
        put: impl Fn(usize, f32) -> [(usize, f32); N],
    ) -> Result<Tensor> {
        let (features, c_in) = (padded_to(self.outputs), self.inputs.iter().sum::<usize>());
        let mut packed = vec![0f32; self.phases * features * self.taps * row];
        for output in 0..self.phases * self.outputs {
            let (phase, feature) = (output / self.outputs, output % self.outputs);
            for tap in 0..self.taps {
                let mut to = ((phase * features + feature) * self.taps + tap) * row;
                let mut from = output * c_in;
                for &channels in self.inputs {
                    for channel in 0..channels {
                        let value = self.values[(from + channel) * self.taps + tap];
                        for (place, value) in put(channel, value) {
                            packed[to + place] = value;
                        }
                    }
                    from += channels;
                    to += padded(channels);
                }
            }
        }
        Tensor::from_vec(
            packed,
            (self.phases, features, self.taps, row),
            &Device::Cpu,
        )
    }
}

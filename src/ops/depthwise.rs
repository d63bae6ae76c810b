//! Depthwise 3x3 convolution (padding 1), optionally after nearest x2: the compressed model's.

use super::blocked::{Buffer, Channels, Size};
use super::simd::{BLOCK, Isa, Simd, kernel};
use super::threads::{Shared, Workers};

/// A depthwise 3x3 convolution with bias and activation.
#[derive(Debug)]
pub struct Depthwise {
    blocks: usize,
    upsample: bool,
    relu: bool,
    /// `[block][tap][16]`.
    weights: Buffer,
    bias: Buffer,
    isa: Isa,
}

impl Depthwise {
    /// Packs `weight` (c, 1, 3, 3) and `bias` (c).
    pub fn new(
        weight: &[f32],
        bias: &[f32],
        channels: &Channels,
        upsample: bool,
        relu: bool,
        isa: Isa,
    ) -> Self {
        assert_eq!(
            weight.len(),
            channels.count() * 9,
            "weights of {} x 3 x 3",
            channels.count()
        );
        assert_eq!(bias.len(), channels.count());
        let blocks = channels.blocks();
        let mut weights = Buffer::zeroed(blocks * 9 * BLOCK);
        let mut padded = Buffer::zeroed(blocks * BLOCK);
        for (place, channel) in channels.places().into_iter().enumerate() {
            let Some(channel) = channel else { continue };
            padded[place] = bias[channel];
            for tap in 0..9 {
                weights[(place / BLOCK * 9 + tap) * BLOCK + place % BLOCK] =
                    weight[channel * 9 + tap];
            }
        }
        Self {
            blocks,
            upsample,
            relu,
            weights,
            bias: padded,
            isa,
        }
    }

    /// The size of the output for an input.
    pub fn output_size(&self, input: Size) -> Size {
        let scale = if self.upsample { 2 } else { 1 };
        Size {
            height: input.height * scale,
            width: input.width * scale,
        }
    }

    /// Convolves the packed `input` of `size` into `output`.
    ///
    /// # Panics
    /// When a slice has not the length that its size asks for: a fault of the program.
    pub fn run(&self, workers: &Workers, input: &[f32], size: Size, output: &mut [f32]) {
        let out_size = self.output_size(size);
        assert_eq!(input.len(), size.values(self.blocks), "input of {size:?}");
        assert_eq!(
            output.len(),
            out_size.values(self.blocks),
            "output of {out_size:?}"
        );
        let output = Shared(output.as_mut_ptr());
        // A few rows of one block are a job.
        let rows = (4096 / out_size.width).clamp(1, out_size.height);
        let runs = out_size.height.div_ceil(rows);
        workers.each(self.blocks * runs, |job| {
            let (block, first) = (job / runs, job % runs * rows);
            for y in first..(first + rows).min(out_size.height) {
                let row = Row {
                    input: input[block * size.pixels() * BLOCK..].as_ptr(),
                    size,
                    scale: out_size.height / size.height,
                    weights: self.weights[block * 9 * BLOCK..].as_ptr(),
                    bias: self.bias[block * BLOCK..].as_ptr(),
                    relu: self.relu,
                    // SAFETY: within the output, whose length was checked.
                    output: unsafe {
                        output
                            .get()
                            .add((block * out_size.height + y) * out_size.width * BLOCK)
                    },
                    y,
                };
                // SAFETY: lengths were checked; a job writes its own rows.
                unsafe { depthwise(self.isa, &row) };
            }
        });
    }
}

struct Row {
    input: *const f32,
    size: Size,
    /// Output pixels for each input pixel.
    scale: usize,
    weights: *const f32,
    bias: *const f32,
    relu: bool,
    output: *mut f32,
    y: usize,
}

kernel!(
    /// One output row of one block.
    depthwise(row: &Row) = body
);

#[inline(always)]
unsafe fn body<S: Simd, const ROWS: usize, const WIDE: usize>(row: &Row) {
    let Size { height, width } = row.size;
    let out_width = width * row.scale;
    // SAFETY: rows and columns are checked against the picture.
    unsafe {
        // A row outside the picture repeats one inside with weights of zero.
        let mut lines = [row.input; 3];
        let mut kept = [0.0; 3];
        for ky in 0..3 {
            let y = (row.y + ky).wrapping_sub(1);
            if y < height * row.scale {
                lines[ky] = row.input.add(y / row.scale * width * BLOCK);
                kept[ky] = 1.0;
            }
        }
        for lane in (0..BLOCK).step_by(S::LANES) {
            let mut taps = [[S::splat(0.0); 3]; 3];
            for ky in 0..3 {
                for kx in 0..3 {
                    let tap = S::load(row.weights.add((ky * 3 + kx) * BLOCK + lane));
                    taps[ky][kx] = S::mul(tap, S::splat(kept[ky]));
                }
            }
            let bias = S::load(row.bias.add(lane));
            for x in 0..out_width {
                let mut sum = bias;
                for kx in 0..3 {
                    let from = (x + kx).wrapping_sub(1);
                    if from < out_width {
                        let at = from / row.scale * BLOCK + lane;
                        for ky in 0..3 {
                            sum = S::fma(S::load(lines[ky].add(at)), taps[ky][kx], sum);
                        }
                    }
                }
                if row.relu {
                    sum = S::max(sum, S::splat(0.0));
                }
                S::store(row.output.add(x * BLOCK + lane), sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::blocked::{pack, unpack};
    use super::super::conv::Spec;
    use super::super::reference::{conv, error, noise};
    use super::*;

    #[test]
    fn every_channel_has_its_own_filter() {
        for (channels, height, width, upsample, relu) in [
            (5, 7, 9, false, false),
            (40, 16, 12, false, true),
            (20, 6, 5, true, true),
            (3, 1, 1, true, false),
        ] {
            let size = Size { height, width };
            let input = noise(channels * size.pixels(), 1);
            let (weight, bias) = (noise(channels * 9, 2), noise(channels, 3));
            let spec = Spec {
                kernel: 3,
                padding: 1,
                upsample,
                relu,
            };
            let (wanted, out_size) = conv(&input, size, &weight, &bias, spec, true);
            let channels = Channels::new(channels);
            for isa in Isa::available() {
                let workers = Workers::with_isa(2, isa).unwrap();
                let layer = Depthwise::new(&weight, &bias, &channels, upsample, relu, isa);
                assert_eq!(layer.output_size(size), out_size);
                let mut out = Buffer::zeroed(out_size.values(channels.blocks()));
                layer.run(&workers, &pack(&input, &channels, size), size, &mut out);
                let error = error(&unpack(&out, &channels, out_size), &wanted);
                assert!(error < 1e-5, "{} {size:?}: {error:e}", isa.name());
            }
        }
    }
}

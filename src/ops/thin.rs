//! Convolution to very few channels: the generator's last layer, 7x7 from 32 or 64 channels to three.
//!
//! With output channels as lanes most of a vector would be padding. Here lanes are *input* channels:
//! a register tile is four pixels by three outputs, each accumulator one vector of partial sums that is
//! added up once at the end. The result is planar, (c, h, w).

use super::blocked::{Buffer, Channels, Size};
use super::conv::Spec;
use super::simd::{BLOCK, Isa, Simd, kernel};
use super::threads::{Shared, Workers};

/// Output channels of one register tile.
const OUTS: usize = 3;
/// Pixels of one register tile.
const PIXELS: usize = 4;

/// A same-size convolution to few output channels, with bias.
#[derive(Debug)]
pub struct Thin {
    kernel: usize,
    outs: usize,
    in_blocks: usize,
    /// `[group of three outputs][ky][kx][in block][output][16]`.
    weights: Buffer,
    bias: Vec<f32>,
    isa: Isa,
}

static ZEROS: [f32; BLOCK] = [0.0; BLOCK];

impl Thin {
    /// Packs `weight` (out, in, k, k) and `bias` (out); the kernel is odd, the padding half of it, and
    /// there is neither activation nor upsampling.
    pub fn new(spec: Spec, weight: &[f32], bias: &[f32], input: &Channels, isa: Isa) -> Self {
        let (outs, ins, taps) = (bias.len(), input.count(), spec.kernel * spec.kernel);
        assert_eq!(
            weight.len(),
            outs * ins * taps,
            "weights of {outs} x {ins} x {taps}"
        );
        assert!(
            !spec.relu && !spec.upsample && spec.padding == spec.kernel / 2 && spec.kernel % 2 == 1
        );
        let in_blocks = input.blocks();
        let mut weights = Buffer::zeroed(outs.div_ceil(OUTS) * taps * in_blocks * OUTS * BLOCK);
        for o in 0..outs {
            for (place, channel) in input.places().into_iter().enumerate() {
                let Some(channel) = channel else { continue };
                for tap in 0..taps {
                    let line =
                        ((o / OUTS * taps + tap) * in_blocks + place / BLOCK) * OUTS + o % OUTS;
                    weights[line * BLOCK + place % BLOCK] =
                        weight[(o * ins + channel) * taps + tap];
                }
            }
        }
        Self {
            kernel: spec.kernel,
            outs,
            in_blocks,
            weights,
            bias: bias.to_vec(),
            isa,
        }
    }

    /// Convolves the packed `input` of `size` into the planar `output` (outs, h, w).
    ///
    /// # Panics
    /// When a slice has not the length that its size asks for: a fault of the program.
    pub fn run(&self, workers: &Workers, input: &[f32], size: Size, output: &mut [f32]) {
        assert_eq!(
            input.len(),
            size.values(self.in_blocks),
            "input of {size:?}"
        );
        assert_eq!(
            output.len(),
            self.outs * size.pixels(),
            "output of {size:?}"
        );
        let output = Shared(output.as_mut_ptr());
        workers.each(size.height, |y| {
            for first in (0..self.outs).step_by(OUTS) {
                let per_group = self.kernel * self.kernel * self.in_blocks * OUTS * BLOCK;
                let row = Row {
                    input: input.as_ptr(),
                    size,
                    kernel: self.kernel,
                    in_blocks: self.in_blocks,
                    weights: self.weights[first / OUTS * per_group..][..per_group].as_ptr(),
                    bias: &self.bias[first..(first + OUTS).min(self.outs)],
                    // SAFETY: within the output, whose length was checked.
                    output: unsafe { output.get().add((first * size.height + y) * size.width) },
                    y,
                };
                // SAFETY: lengths were checked; a job writes its own row.
                unsafe { thin(self.isa, &row) };
            }
        });
    }
}

struct Row<'a> {
    input: *const f32,
    size: Size,
    kernel: usize,
    in_blocks: usize,
    weights: *const f32,
    bias: &'a [f32],
    output: *mut f32,
    y: usize,
}

kernel!(
    /// One row of up to three outputs.
    thin(row: &Row<'_>) = body
);

#[inline(always)]
unsafe fn body<S: Simd, const ROWS: usize, const WIDE: usize>(row: &Row<'_>) {
    let Size { height, width } = row.size;
    let (half, plane) = (row.kernel / 2, height * width * BLOCK);
    for x in (0..width).step_by(PIXELS) {
        // SAFETY: taps are checked against the picture; pixels past the row's end are not stored.
        unsafe {
            let mut acc = [[S::splat(0.0); PIXELS]; OUTS];
            let inside = x >= half && x + PIXELS + half <= width;
            for ky in 0..row.kernel {
                let y = (row.y + ky).wrapping_sub(half);
                if y >= height {
                    continue;
                }
                let line = row.input.add(y * width * BLOCK);
                for kx in 0..row.kernel {
                    let weights = row
                        .weights
                        .add((ky * row.kernel + kx) * row.in_blocks * OUTS * BLOCK);
                    if inside {
                        let first = line.add((x + kx - half) * BLOCK);
                        let from = std::array::from_fn(|p| first.add(p * BLOCK));
                        tap::<S>(&mut acc, from, [plane; PIXELS], weights, row.in_blocks);
                    } else {
                        let mut from = [ZEROS.as_ptr(); PIXELS];
                        let mut step = [0; PIXELS];
                        for p in 0..PIXELS {
                            let x = (x + p + kx).wrapping_sub(half);
                            if x < width {
                                from[p] = line.add(x * BLOCK);
                                step[p] = plane;
                            }
                        }
                        tap::<S>(&mut acc, from, step, weights, row.in_blocks);
                    }
                }
            }
            for (o, (sums, bias)) in acc.iter().zip(row.bias).enumerate() {
                for (p, &sum) in sums.iter().enumerate().take(width - x) {
                    let mut lanes = [0f32; BLOCK];
                    S::store(lanes.as_mut_ptr(), sum);
                    let total: f32 = lanes[..S::LANES].iter().sum();
                    *row.output.add(o * height * width + x + p) = bias + total;
                }
            }
        }
    }
}

/// One tap, all input channels.
#[inline(always)]
unsafe fn tap<S: Simd>(
    acc: &mut [[S::V; PIXELS]; OUTS],
    from: [*const f32; PIXELS],
    step: [usize; PIXELS],
    weights: *const f32,
    blocks: usize,
) {
    for block in 0..blocks {
        for lane in (0..BLOCK).step_by(S::LANES) {
            // SAFETY: the caller gives pixels of the input, or a line of zeros with step 0.
            unsafe {
                let mut w = [S::splat(0.0); OUTS];
                for (o, weight) in w.iter_mut().enumerate() {
                    *weight = S::load(weights.add((block * OUTS + o) * BLOCK + lane));
                }
                for p in 0..PIXELS {
                    let value = S::load(from[p].add(block * step[p] + lane));
                    for o in 0..OUTS {
                        acc[o][p] = S::fma(value, w[o], acc[o][p]);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::blocked::pack;
    use super::super::reference::{conv, error, noise};
    use super::*;

    #[test]
    fn few_outputs_are_summed_over_the_lanes() {
        for (ins, outs, height, width, kernel) in [
            (20, 3, 9, 13, 7),
            (32, 3, 16, 16, 3),
            (5, 4, 6, 3, 7),
            (3, 1, 1, 1, 3),
        ] {
            let (size, channels) = (Size { height, width }, Channels::new(ins));
            let spec = Spec {
                kernel,
                padding: kernel / 2,
                upsample: false,
                relu: false,
            };
            let input = noise(ins * size.pixels(), 1);
            let (weight, bias) = (noise(outs * ins * kernel * kernel, 2), noise(outs, 3));
            let (wanted, _) = conv(&input, size, &weight, &bias, spec, false);
            for isa in Isa::available() {
                let workers = Workers::with_isa(2, isa).unwrap();
                let mut out = vec![0.0; wanted.len()];
                let layer = Thin::new(spec, &weight, &bias, &channels, isa);
                layer.run(&workers, &pack(&input, &channels, size), size, &mut out);
                let error = error(&out, &wanted);
                assert!(error < 1e-5, "{} {size:?}: {error:e}", isa.name());
            }
        }
    }
}

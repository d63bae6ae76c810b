//! Convolution to very few channels: the generator's last layer, 7x7 from 32 or 64 channels to three.
//!
//! With output channels as lanes most of a vector would be padding. Here lanes are *input* channels:
//! a register tile is some pixels by three outputs, each accumulator one vector of partial sums that is
//! added up once at the end. The result is planar, (c, h, w).
//!
//! For products of bf16 a job first packs the rows it reads, with zeros beside them.

use std::ops::Range;

use super::blocked::{Buffer, Channels, Size};
use super::conv::Spec;
use super::simd::{BLOCK, Isa, Simd, kernel, put_operand};
use super::threads::{Shared, Workers};

/// Output channels of one register tile.
pub(super) const OUTS: usize = 3;
/// Pixels of one register tile, at most: what fits 32 registers.
const PIXELS: usize = 8;

/// A same-size convolution to few output channels, with bias.
#[derive(Debug)]
pub struct Thin {
    kernel: usize,
    outs: usize,
    in_blocks: usize,
    /// `[group of three outputs][ky][kx][16 slots of in channels][output][16]`.
    weights: Buffer,
    /// Groups of 16 slots.
    depth: usize,
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
        let depth = input.blocks().div_ceil(isa.pair());
        let mut weights = Buffer::zeroed(outs.div_ceil(OUTS) * taps * depth * OUTS * BLOCK);
        for o in 0..outs {
            for (place, channel) in input.places().into_iter().enumerate() {
                let Some(channel) = channel else { continue };
                let slot = place / isa.pair();
                for tap in 0..taps {
                    let line = ((o / OUTS * taps + tap) * depth + slot / BLOCK) * OUTS + o % OUTS;
                    let value = weight[(o * ins + channel) * taps + tap];
                    let at = &mut weights[line * BLOCK + slot % BLOCK];
                    put_operand(at, place % isa.pair(), value, isa);
                }
            }
        }
        Self {
            kernel: spec.kernel,
            outs,
            in_blocks: input.blocks(),
            weights,
            depth,
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
        let packing = self.isa.pair() > 1;
        // Of packed rows some are needed by two jobs.
        let rows = if packing { 16 } else { 1 };
        let packed = (rows + self.kernel) * packed_row(size, self.kernel, self.depth);
        let scratch = if packing { packed } else { 0 };
        workers.each_with_scratch(size.height.div_ceil(rows), scratch, |job, scratch| {
            let task = Task {
                input: input.as_ptr(),
                size,
                kernel: self.kernel,
                in_blocks: self.in_blocks,
                depth: self.depth,
                weights: self.weights.as_ptr(),
                bias: &self.bias,
                output: output.get(),
                rows: job * rows..((job + 1) * rows).min(size.height),
                packed: scratch.as_mut_ptr(),
            };
            // SAFETY: lengths were checked; a job writes its own rows.
            unsafe { thin(self.isa, &task) };
        });
    }
}

struct Task<'a> {
    input: *const f32,
    size: Size,
    kernel: usize,
    in_blocks: usize,
    depth: usize,
    weights: *const f32,
    bias: &'a [f32],
    output: *mut f32,
    rows: Range<usize>,
    /// Room for the packed rows, where rows are packed.
    packed: *mut f32,
}

impl Task<'_> {
    /// The rows of the input that row `y` of the output sees, and the first of the kernel's that does.
    #[inline(always)]
    fn sees(&self, y: usize) -> (Range<usize>, usize) {
        let half = self.kernel / 2;
        let first = y.saturating_sub(half);
        let end = (y + half + 1).min(self.size.height);
        (first..end, first + half - y)
    }
}

/// Values of a packed row with its zeros, and some for the pixels past its end that are not stored.
#[inline(always)]
fn packed_row(size: Size, kernel: usize, depth: usize) -> usize {
    (size.width + kernel + PIXELS) * depth * BLOCK
}

kernel!(
    /// Some rows of all outputs.
    thin(task: &Task<'_>) = body
);

#[inline(always)]
unsafe fn body<S: Simd, const ROWS: usize, const WIDE: usize>(task: &Task<'_>) {
    // SAFETY: the caller's promises.
    unsafe {
        if S::PAIR > 1 {
            pack_rows::<S>(task);
        }
        let per_group = task.kernel * task.kernel * task.depth * OUTS * BLOCK;
        for y in task.rows.clone() {
            for (group, bias) in task.bias.chunks(OUTS).enumerate() {
                let weights = task.weights.add(group * per_group);
                // Half of it for 16 registers.
                if ROWS < 12 {
                    row::<S, { PIXELS / 2 }>(task, y, group * OUTS, weights, bias);
                } else {
                    row::<S, PIXELS>(task, y, group * OUTS, weights, bias);
                }
            }
        }
    }
}

/// The rows that a job reads, pixel by pixel, half a kernel of zeros before each and more behind.
#[inline(always)]
unsafe fn pack_rows<S: Simd>(task: &Task<'_>) {
    let Size { height, width } = task.size;
    let (length, half) = (
        packed_row(task.size, task.kernel, task.depth),
        task.kernel / 2,
    );
    let first = task.sees(task.rows.start).0.start;
    let end = task.sees(task.rows.end - 1).0.end;
    for y in first..end {
        // SAFETY: there is room for the rows of a job, and the input has these.
        unsafe {
            let row = task.packed.add((y - first) * length);
            std::slice::from_raw_parts_mut(row, length).fill(0.0);
            for block in 0..task.in_blocks {
                let from = task.input.add((block * height + y) * width * BLOCK);
                let to = row.add(half * task.depth * BLOCK + block * BLOCK / S::PAIR);
                for x in 0..width {
                    for lane in (0..BLOCK).step_by(S::LANES) {
                        let value = S::load(from.add(x * BLOCK + lane));
                        S::store_operand(to.add(x * task.depth * BLOCK + lane / S::PAIR), value);
                    }
                }
            }
        }
    }
}

/// One row of up to three outputs.
#[inline(always)]
unsafe fn row<S: Simd, const P: usize>(
    task: &Task<'_>,
    y: usize,
    first_out: usize,
    weights: *const f32,
    bias: &[f32],
) {
    let Size { height, width } = task.size;
    let (half, plane) = (task.kernel / 2, height * width * BLOCK);
    let (rows, first_ky) = task.sees(y);
    let first_packed = task.sees(task.rows.start).0.start;
    for x in (0..width).step_by(P) {
        // SAFETY: taps are checked against the picture; pixels past the row's end are not stored.
        unsafe {
            let mut acc = [[S::splat(0.0); P]; OUTS];
            let inside = x >= half && x + P + half <= width;
            for (ky, y) in (first_ky..).zip(rows.clone()) {
                let line = task.input.add(y * width * BLOCK);
                for kx in 0..task.kernel {
                    let weights = weights.add((ky * task.kernel + kx) * task.depth * OUTS * BLOCK);
                    if S::PAIR > 1 {
                        let length = packed_row(task.size, task.kernel, task.depth);
                        let row = task.packed.add((y - first_packed) * length);
                        let first = row.add((x + kx) * task.depth * BLOCK).cast_const();
                        let from = std::array::from_fn(|p| first.add(p * task.depth * BLOCK));
                        tap::<S, P>(&mut acc, from, [BLOCK; P], weights, task.depth);
                    } else if inside {
                        let first = line.add((x + kx - half) * BLOCK);
                        let from = std::array::from_fn(|p| first.add(p * BLOCK));
                        tap::<S, P>(&mut acc, from, [plane; P], weights, task.depth);
                    } else {
                        let mut from = [ZEROS.as_ptr(); P];
                        let mut step = [0; P];
                        for p in 0..P {
                            let x = (x + p + kx).wrapping_sub(half);
                            if x < width {
                                from[p] = line.add(x * BLOCK);
                                step[p] = plane;
                            }
                        }
                        tap::<S, P>(&mut acc, from, step, weights, task.depth);
                    }
                }
            }
            for (o, (sums, bias)) in acc.iter().zip(bias).enumerate() {
                for (p, &sum) in sums.iter().enumerate().take(width - x) {
                    let at = ((first_out + o) * height + y) * width + x + p;
                    *task.output.add(at) = bias + total::<S>(sum);
                }
            }
        }
    }
}

/// The sum over the lanes, by halves: one after the other they would take as long as a tap.
#[inline(always)]
unsafe fn total<S: Simd>(sum: S::V) -> f32 {
    let mut lanes = [0f32; BLOCK];
    // SAFETY: a vector has no more lanes than a block.
    unsafe { S::store(lanes.as_mut_ptr(), sum) };
    let mut half = S::LANES / 2;
    while half > 0 {
        let (low, high) = lanes.split_at_mut(half);
        for (low, high) in low.iter_mut().zip(high) {
            *low += *high;
        }
        half /= 2;
    }
    lanes[0]
}

/// One tap, all input channels: `blocks` groups of 16 slots.
#[inline(always)]
unsafe fn tap<S: Simd, const P: usize>(
    acc: &mut [[S::V; P]; OUTS],
    from: [*const f32; P],
    step: [usize; P],
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
                for p in 0..P {
                    let value = S::load(from[p].add(block * step[p] + lane));
                    for o in 0..OUTS {
                        acc[o][p] = S::dot(value, w[o], acc[o][p]);
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
            (40, 3, 37, 18, 7),
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
            for isa in Isa::available().into_iter().chain(Isa::bf16()) {
                let workers = Workers::with_isa(2, isa).unwrap();
                let mut out = vec![0.0; wanted.len()];
                let layer = Thin::new(spec, &weight, &bias, &channels, isa);
                layer.run(&workers, &pack(&input, &channels, size), size, &mut out);
                let error = error(&out, &wanted);
                let bound = if isa.pair() == 1 { 1e-5 } else { 0.02 };
                assert!(error < bound, "{} {size:?}: {error:e}", isa.name());
            }
        }
    }
}

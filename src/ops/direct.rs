//! Direct convolution of any square kernel, stride 1: 1x1, 7x7, and 3x3 on maps too small for tiles.
//!
//! A register tile is some neighbouring output pixels by one panel of output channels; the sum runs
//! over taps and blocks of input channels. Taps outside the picture read a line of zeros. Nearest x2
//! before the convolution is a matter of which pixel a tap reads.

use super::blocked::{Buffer, Channels, Size};
use super::conv::{Epilogue, Sink, Spec};
use super::simd::{BLOCK, Isa, Simd, accumulate, kernel};
use super::threads::Workers;

/// A direct convolution with packed weights.
#[derive(Debug)]
pub struct Direct {
    spec: Spec,
    out_blocks: usize,
    /// For each input block, its channels that are not padding.
    fill: Vec<usize>,
    /// `[panel][tap][in channel][panel width]`, padding left out.
    weights: Buffer,
    bias: Buffer,
    isa: Isa,
}

/// What a tap outside the picture reads.
static ZEROS: [f32; BLOCK] = [0.0; BLOCK];

impl Direct {
    /// Packs `weight` (out, in, k, k) and `bias` (out).
    pub fn new(spec: Spec, weight: &[f32], bias: &[f32], input: &Channels, isa: Isa) -> Self {
        let (out, ins) = (bias.len(), input.count());
        let taps = spec.kernel * spec.kernel;
        assert_eq!(
            weight.len(),
            out * ins * taps,
            "weights of {out} x {ins} x {taps}"
        );
        let out_blocks = out.div_ceil(BLOCK);
        let width = isa.panel();
        let panels = (out_blocks * BLOCK).div_ceil(width);
        let mut weights = Buffer::zeroed(panels * taps * ins * width);
        for o in 0..out {
            for channel in 0..ins {
                for tap in 0..taps {
                    let at = ((o / width * taps + tap) * ins + channel) * width + o % width;
                    weights[at] = weight[(o * ins + channel) * taps + tap];
                }
            }
        }
        let mut padded = Buffer::zeroed(panels * width);
        padded[..out].copy_from_slice(bias);
        Self {
            spec,
            out_blocks,
            fill: input.fill(),
            weights,
            bias: padded,
            isa,
        }
    }

    /// The size of the output for an input (before nearest x2).
    pub fn output_size(&self, input: Size, pool: bool) -> Size {
        let side = |n: usize| {
            let n = if self.spec.upsample { 2 * n } else { n };
            (n + 2 * self.spec.padding + 1 - self.spec.kernel) / if pool { 2 } else { 1 }
        };
        Size {
            height: side(input.height),
            width: side(input.width),
        }
    }

    /// Convolves the packed `input` of `size` into `output`.
    ///
    /// # Panics
    /// When a slice has not the length that its size asks for: a fault of the program.
    pub fn run(
        &self,
        workers: &Workers,
        input: &[f32],
        size: Size,
        output: &mut [f32],
        epilogue: Epilogue<'_>,
    ) {
        let out_size = self.output_size(size, false);
        assert_eq!(
            workers.isa, self.isa,
            "weights are packed for the workers' instruction set"
        );
        assert_eq!(
            input.len(),
            size.values(self.fill.len()),
            "input of {size:?}"
        );
        assert_eq!(
            output.len(),
            self.output_size(size, epilogue.pool)
                .values(self.out_blocks),
            "output of {out_size:?}"
        );
        assert!(!epilogue.pool || out_size.height % 2 + out_size.width % 2 == 0);
        // Pooling takes the pixels in the order of their 2x2 cells, so that a cell is finished at once.
        let pool = epilogue.pool;
        let sink_size = self.output_size(size, pool);
        let sink = Sink::new(output, sink_size, &self.bias, self.spec.relu, epilogue);
        let width = self.isa.panel();
        let panels = (self.out_blocks * BLOCK).div_ceil(width);
        let pixels = out_size.pixels();
        // Enough jobs to share; each at least some register tiles long. Small maps with many channels
        // are bound by their weights: there a job is a panel, and every weight is read once.
        let runs = if panels >= 2 * workers.threads() && pixels <= 256 {
            1
        } else {
            (4 * workers.threads()).min(pixels.div_ceil(24))
        };
        let run = pixels.div_ceil(runs).next_multiple_of(12);
        let runs = pixels.div_ceil(run);
        workers.each(runs * panels, |job| {
            let (panel, first) = (job % panels, job / panels * run);
            let ins: usize = self.fill.iter().sum();
            let task = Task {
                input: input.as_ptr(),
                size,
                out_size,
                spec: self.spec,
                fill: &self.fill,
                weights: self.weights[panel * self.spec.kernel.pow(2) * ins * width..].as_ptr(),
                lanes: panel * width..(panel * width + width).min(self.out_blocks * BLOCK),
                pool,
                sink,
                first,
                end: (first + run).min(pixels),
            };
            // SAFETY: lengths were checked above; a job writes its own channels of its own pixels.
            unsafe { direct(self.isa, &task) };
        });
    }
}

struct Task<'a> {
    input: *const f32,
    /// Of the input.
    size: Size,
    /// Before pooling.
    out_size: Size,
    spec: Spec,
    fill: &'a [usize],
    weights: *const f32,
    lanes: std::ops::Range<usize>,
    pool: bool,
    sink: Sink,
    first: usize,
    end: usize,
}

impl Task<'_> {
    /// The output pixel at a place of the order in which they are computed.
    #[inline(always)]
    fn pixel(&self, at: usize) -> (usize, usize) {
        if self.pool {
            let cells = self.out_size.width / 2;
            let (cell, corner) = (at / 4, at % 4);
            (cell / cells * 2 + corner / 2, cell % cells * 2 + corner % 2)
        } else {
            (at / self.out_size.width, at % self.out_size.width)
        }
    }
}

kernel!(
    /// One job of a direct convolution.
    direct(task: &Task<'_>) = body
);

#[inline(always)]
unsafe fn body<S: Simd, const ROWS: usize, const WIDE: usize>(task: &Task<'_>) {
    let Spec {
        kernel,
        padding,
        upsample,
        ..
    } = task.spec;
    let Size { height, width } = task.size;
    let scale = if upsample { 2 } else { 1 };
    let plane = height * width * BLOCK;
    // A register tile takes whole 2x2 cells when they are to be pooled.
    let rows = if task.pool { ROWS / 4 * 4 } else { ROWS };
    let mut at = task.first;
    while at < task.end {
        let count = rows.min(task.end - at);
        let pixels: [(usize, usize); ROWS] =
            std::array::from_fn(|r| task.pixel((at + r).min(task.end - 1)));
        // SAFETY: taps are checked against the picture; weights, channels and pixels are the job's.
        unsafe {
            let mut acc = [[S::splat(0.0); WIDE]; ROWS];
            let mut weights = task.weights;
            for ky in 0..kernel {
                for kx in 0..kernel {
                    let mut from = [ZEROS.as_ptr(); ROWS];
                    let mut step = [0; ROWS];
                    for (r, &(y, x)) in pixels.iter().enumerate() {
                        // Before the picture wraps around to far behind it.
                        let (y, x) = (
                            (y + ky).wrapping_sub(padding),
                            (x + kx).wrapping_sub(padding),
                        );
                        if y < height * scale && x < width * scale {
                            from[r] = task.input.add((y / scale * width + x / scale) * BLOCK);
                            step[r] = plane;
                        }
                    }
                    for &depth in task.fill {
                        accumulate::<S, ROWS, WIDE>(&mut acc, from, weights, depth);
                        weights = weights.add(depth * WIDE * S::LANES);
                        for r in 0..ROWS {
                            from[r] = from[r].wrapping_add(step[r]);
                        }
                    }
                }
            }
            for (w, lane) in task.lanes.clone().step_by(S::LANES).enumerate() {
                let mut values = [S::splat(0.0); ROWS];
                for (value, sums) in values.iter_mut().zip(&acc) {
                    *value = task.sink.activate::<S>(lane, sums[w]);
                }
                if task.pool {
                    for r in (0..count).step_by(4) {
                        let top = S::add(values[r], values[r + 1]);
                        let bottom = S::add(values[r + 2], values[r + 3]);
                        let mean = S::mul(S::add(top, bottom), S::splat(0.25));
                        task.sink
                            .store::<S>(lane, pixels[r].0 / 2, pixels[r].1 / 2, mean);
                    }
                } else {
                    for (&value, (y, x)) in values.iter().zip(pixels).take(count) {
                        task.sink.store::<S>(lane, y, x, value);
                    }
                }
            }
        }
        at += count;
    }
}

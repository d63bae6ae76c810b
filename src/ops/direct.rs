//! Direct convolution of any square kernel: 1x1, 7x7, 3x3 on maps too small for tiles, and with a stride.
//!
//! A register tile is some neighbouring output pixels by one panel of output channels; the sum runs
//! over taps and blocks of input channels. Taps outside the picture read a line of zeros. Nearest x2
//! before the convolution is a matter of which pixel a tap reads. For products of bf16 the whole map is
//! packed first: every pixel is read once for each tap and panel.
//!
//! 1x1 on a map of some size is a matrix product, and goes as one: a job gathers the channels of its pixels,
//! which lie a whole map apart, into rows, and multiplies them by every panel while they are in its core's
//! cache.

use std::ops::Range;

use super::blocked::{Buffer, Channels, Size};
use super::conv::{Maps, Sink, Spec};
use super::simd::{BLOCK, Isa, Simd, accumulate, kernel, put_operand};
use super::threads::Workers;

/// A direct convolution's packed weights.
#[derive(Debug)]
pub(super) struct Direct {
    spec: Spec,
    stride: usize,
    /// For each input block, its channels that are not padding.
    fill: Vec<usize>,
    /// `[panel][tap][slot of in channels][panel width]`, padding left out.
    weights: Buffer,
    /// The output channels of each panel: one block where two would be half padding.
    panels: Vec<Range<usize>>,
    /// Of all channels of one tap.
    slots: usize,
    isa: Isa,
}

/// Most pixels whose channels a job gathers: whole register tiles.
const GATHERED: usize = 48;

/// What a tap outside the picture reads.
static ZEROS: [f32; BLOCK] = [0.0; BLOCK];

impl Direct {
    /// Packs `weight` (outs, in, k, k).
    pub(super) fn new(
        (spec, stride): (Spec, usize),
        weight: &[f32],
        outs: usize,
        input: &Channels,
        isa: Isa,
    ) -> Self {
        let (ins, taps) = (input.count(), spec.kernel * spec.kernel);
        let out_blocks = outs.div_ceil(BLOCK);
        let padded = out_blocks * BLOCK;
        let panels: Vec<Range<usize>> = (0..padded)
            .step_by(isa.panel())
            .map(|first| first..(first + isa.panel()).min(padded))
            .collect();
        // For each channel its slot and its place there: a slot never spans two blocks.
        let (mut slots, mut places) = (0, Vec::with_capacity(ins));
        for &fill in &input.fill() {
            places.extend((0..fill).map(|c| (slots + c / isa.pair(), c % isa.pair())));
            slots += fill.div_ceil(isa.pair());
        }
        let mut weights = Buffer::zeroed(padded * taps * slots);
        for o in 0..outs {
            let panel = &panels[o / isa.panel()];
            for (channel, &(slot, place)) in places.iter().enumerate() {
                for tap in 0..taps {
                    let row = panel.start * taps * slots + (tap * slots + slot) * panel.len();
                    let value = weight[(o * ins + channel) * taps + tap];
                    put_operand(&mut weights[row + o - panel.start], place, value, isa);
                }
            }
        }
        Self {
            spec,
            stride,
            fill: input.fill(),
            weights,
            slots,
            panels,
            isa,
        }
    }

    pub(super) fn run(&self, workers: &Workers, maps: &Maps<'_>) {
        let pointwise = self.spec.kernel == 1 && self.spec.padding == 0 && !self.spec.upsample;
        if pointwise && maps.full_size.pixels() >= GATHERED / 2 * workers.threads() {
            self.gathered(workers, maps);
        } else {
            self.in_place(workers, maps);
        }
    }

    fn gathered(&self, workers: &Workers, maps: &Maps<'_>) {
        let pixels = maps.full_size.pixels();
        let share = pixels.div_ceil(workers.threads());
        let run = share.next_multiple_of(12).min(GATHERED);
        // The odd block keeps rows off the same cache set, and takes what the last block has beyond its channels.
        let stride = self.slots + BLOCK;
        workers.each_with_scratch(pixels.div_ceil(run), run * stride, |job, rows| {
            let pixels = job * run..(job * run + run).min(pixels);
            let lanes = 0..self.panels.last().map_or(0, |panel| panel.end);
            let task = self.task(maps, maps.input, lanes, pixels);
            // SAFETY: lengths were checked; a job writes its own pixels.
            unsafe { pointwise(self.isa, &task, &self.panels, rows.as_mut_ptr(), stride) };
        });
    }

    fn in_place(&self, workers: &Workers, maps: &Maps<'_>) {
        let panels = self.panels.len();
        let pixels = maps.full_size.pixels();
        // Enough jobs to share; each at least some register tiles long. Small maps with many channels
        // are bound by their weights: there a job is a panel, and every weight is read once.
        let runs = if panels >= 2 * workers.threads() && pixels <= 256 {
            1
        } else {
            (4 * workers.threads()).min(pixels.div_ceil(24))
        };
        let run = pixels.div_ceil(runs).next_multiple_of(12);
        let runs = pixels.div_ceil(run);
        let job = |input: &[f32], job: usize| {
            let (panel, first) = (&self.panels[job % panels], job / panels * run);
            let pixels = first..(first + run).min(pixels);
            let task = self.task(maps, input, panel.clone(), pixels);
            // SAFETY: lengths were checked; a job writes its own channels of its own pixels.
            unsafe { direct(self.isa, &task) };
        };
        if self.isa.pair() == 1 {
            return workers.each(runs * panels, |index| job(maps.input, index));
        }
        workers.with_shared_scratch(maps.input.len() / self.isa.pair(), |packed| {
            let run = 256 * BLOCK;
            workers.rows(packed, run / self.isa.pair(), |i, slots| {
                let values = &maps.input[i * run..][..slots.len() * self.isa.pair()];
                // SAFETY: the instruction set is one of this machine's, by who made the workers.
                unsafe { pack(self.isa, values, slots) };
            });
            workers.each(runs * panels, |index| job(packed, index));
        });
    }

    fn task<'a>(
        &'a self,
        maps: &Maps<'_>,
        input: &[f32],
        lanes: Range<usize>,
        pixels: Range<usize>,
    ) -> Task<'a> {
        let taps = self.spec.kernel * self.spec.kernel;
        Task {
            input: input.as_ptr(),
            size: maps.size,
            out_size: maps.full_size,
            spec: self.spec,
            stride: self.stride,
            fill: &self.fill,
            weights: self.weights[lanes.start * taps * self.slots..].as_ptr(),
            lanes,
            pool: maps.pool,
            sink: maps.sink,
            pixels,
        }
    }
}

kernel!(
    /// Channels as operands, block by block.
    pack(values: &[f32], slots: &mut [f32]) = pack_body
);

#[inline(always)]
unsafe fn pack_body<S: Simd, const ROWS: usize, const WIDE: usize>(
    values: &[f32],
    slots: &mut [f32],
) {
    let values = values.chunks_exact(S::LANES);
    for (from, to) in values.zip(slots.chunks_exact_mut(S::LANES / S::PAIR)) {
        // SAFETY: a vector of values, and room for its slots.
        unsafe { S::store_operand(to.as_mut_ptr(), S::load(from.as_ptr())) };
    }
}

struct Task<'a> {
    /// Operands: `BLOCK / PAIR` slots for each pixel of a block.
    input: *const f32,
    /// Of the input.
    size: Size,
    /// Before pooling.
    out_size: Size,
    spec: Spec,
    stride: usize,
    fill: &'a [usize],
    weights: *const f32,
    lanes: Range<usize>,
    pool: bool,
    sink: Sink,
    /// By the order in which they are computed.
    pixels: Range<usize>,
}

impl Task<'_> {
    /// The output pixel at a place of the order in which they are computed: 2x2 cells one after another
    /// when they are pooled, so that a cell is finished at once.
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

    /// Rows of a register tile that are used: whole 2x2 cells when they are to be pooled.
    #[inline(always)]
    fn rows(&self, rows: usize) -> usize {
        if self.pool { rows / 4 * 4 } else { rows }
    }

    /// Bias, activation and pooling for the sums of some pixels, and the way to memory of the first `count`.
    #[inline(always)]
    unsafe fn finish<S: Simd, const ROWS: usize, const WIDE: usize>(
        &self,
        acc: &[[S::V; WIDE]; ROWS],
        lanes: usize,
        pixels: &[(usize, usize); ROWS],
        count: usize,
    ) {
        for w in 0..WIDE {
            let lane = lanes + w * S::LANES;
            // SAFETY: the lanes and pixels are the job's, says the caller.
            unsafe {
                let mut values = [S::splat(0.0); ROWS];
                for (value, sums) in values.iter_mut().zip(acc) {
                    *value = self.sink.activate::<S>(lane, sums[w]);
                }
                if self.pool {
                    for r in (0..count).step_by(4) {
                        let top = S::add(values[r], values[r + 1]);
                        let bottom = S::add(values[r + 2], values[r + 3]);
                        let mean = S::mul(S::add(top, bottom), S::splat(0.25));
                        let (y, x) = pixels[r];
                        self.sink.store::<S>(lane, y / 2, x / 2, mean);
                    }
                } else {
                    for (&value, &(y, x)) in values.iter().zip(pixels).take(count) {
                        self.sink.store::<S>(lane, y, x, value);
                    }
                }
            }
        }
    }
}

kernel!(
    /// One job of a direct convolution.
    direct(task: &Task<'_>) = body
);

#[inline(always)]
unsafe fn body<S: Simd, const ROWS: usize, const WIDE: usize>(task: &Task<'_>) {
    // SAFETY: the caller's promises.
    unsafe {
        if task.lanes.len() == WIDE * S::LANES {
            tiles::<S, ROWS, WIDE>(task);
        } else {
            // One block, a half of the widest panel.
            debug_assert_eq!(task.lanes.len(), S::LANES);
            tiles::<S, ROWS, 1>(task);
        }
    }
}

#[inline(always)]
unsafe fn tiles<S: Simd, const ROWS: usize, const WIDE: usize>(task: &Task<'_>) {
    let Spec {
        kernel,
        padding,
        upsample,
        ..
    } = task.spec;
    let Size { height, width } = task.size;
    let stride = task.stride;
    // Pixels of the doubled map are halved by a shift: there is no time for divisions here.
    let doubling = usize::from(upsample);
    let pixel = BLOCK / S::PAIR;
    let plane = height * width * pixel;
    let Range { start, end } = task.pixels;
    for at in (start..end).step_by(task.rows(ROWS)) {
        let pixels: [(usize, usize); ROWS] =
            std::array::from_fn(|r| task.pixel((at + r).min(end - 1)));
        // SAFETY: taps are checked against the picture; weights, channels and pixels are the job's.
        unsafe {
            let mut acc = [[S::splat(0.0); WIDE]; ROWS];
            let mut weights = task.weights;
            // Neighbours in one row are a constant step apart, as long as a tap sees all of them.
            let (y0, x0) = pixels[0];
            let neighbours = !upsample && !task.pool && pixels[ROWS - 1] == (y0, x0 + ROWS - 1);
            for ky in 0..kernel {
                for kx in 0..kernel {
                    // Before the picture wraps around to far behind it.
                    let tap = |(y, x): (usize, usize)| {
                        let (y, x) = (
                            (y * stride + ky).wrapping_sub(padding),
                            (x * stride + kx).wrapping_sub(padding),
                        );
                        (y < height << doubling && x < width << doubling).then(|| {
                            task.input
                                .add(((y >> doubling) * width + (x >> doubling)) * pixel)
                        })
                    };
                    let ends = (tap((y0, x0)), tap((y0, x0 + ROWS - 1)));
                    if let (true, (Some(first), Some(_))) = (neighbours, ends) {
                        let mut first = first;
                        for &depth in task.fill {
                            let from = std::array::from_fn(|r| first.add(r * stride * pixel));
                            let depth = depth.div_ceil(S::PAIR);
                            accumulate::<S, ROWS, WIDE>(&mut acc, from, weights, depth);
                            weights = weights.add(depth * WIDE * S::LANES);
                            first = first.wrapping_add(plane);
                        }
                        continue;
                    }
                    let mut from = [ZEROS.as_ptr(); ROWS];
                    let mut step = [0; ROWS];
                    for (r, &pixel) in pixels.iter().enumerate() {
                        if let Some(place) = tap(pixel) {
                            (from[r], step[r]) = (place, plane);
                        }
                    }
                    for &depth in task.fill {
                        let depth = depth.div_ceil(S::PAIR);
                        accumulate::<S, ROWS, WIDE>(&mut acc, from, weights, depth);
                        weights = weights.add(depth * WIDE * S::LANES);
                        for r in 0..ROWS {
                            from[r] = from[r].wrapping_add(step[r]);
                        }
                    }
                }
            }
            let count = task.rows(ROWS).min(end - at);
            task.finish::<S, ROWS, WIDE>(&acc, task.lanes.start, &pixels, count);
        }
    }
}

kernel!(
    /// One job of a 1x1 convolution; `rows` has room for its pixels, `stride` apart.
    pointwise(task: &Task<'_>, panels: &[Range<usize>], rows: *mut f32, stride: usize) = pointwise_body
);

#[inline(always)]
unsafe fn pointwise_body<S: Simd, const ROWS: usize, const WIDE: usize>(
    task: &Task<'_>,
    panels: &[Range<usize>],
    rows: *mut f32,
    stride: usize,
) {
    let mut places = [(0, 0); GATHERED];
    let places = &mut places[..task.pixels.len()];
    // SAFETY: the caller's promises.
    unsafe {
        let depth = gather::<S>(task, places, rows, stride);
        for panel in panels {
            let weights = task.weights.add(panel.start * depth);
            let operands = (rows.cast_const(), stride, weights, depth);
            if panel.len() == WIDE * S::LANES {
                products::<S, ROWS, WIDE>(task, places, operands, panel.start);
            } else {
                debug_assert_eq!(panel.len(), S::LANES);
                products::<S, ROWS, 1>(task, places, operands, panel.start);
            }
        }
    }
}

/// The places of a job's pixels, and all channels of each as operands in a row; gives the slots of a row.
#[inline(always)]
unsafe fn gather<S: Simd>(
    task: &Task<'_>,
    places: &mut [(usize, usize)],
    rows: *mut f32,
    stride: usize,
) -> usize {
    let Size { height, width } = task.size;
    let mut depth = 0;
    for (r, place) in places.iter_mut().enumerate() {
        *place = task.pixel(task.pixels.start + r);
        let (y, x) = *place;
        depth = 0;
        for (block, &fill) in task.fill.iter().enumerate() {
            // SAFETY: the pixel is one of the input's; a row has room for its slots and one block more.
            unsafe {
                let pixel = (block * height + y * task.stride) * width + x * task.stride;
                let from = task.input.add(pixel * BLOCK);
                let to = rows.add(r * stride + depth);
                for lane in (0..BLOCK).step_by(S::LANES) {
                    S::store_operand(to.add(lane / S::PAIR), S::load(from.add(lane)));
                }
            }
            depth += fill.div_ceil(S::PAIR);
        }
    }
    depth
}

/// Gathered rows by one panel.
#[inline(always)]
unsafe fn products<S: Simd, const ROWS: usize, const WIDE: usize>(
    task: &Task<'_>,
    places: &[(usize, usize)],
    (rows, stride, weights, depth): (*const f32, usize, *const f32, usize),
    lanes: usize,
) {
    for at in (0..places.len()).step_by(task.rows(ROWS)) {
        // Past the last pixel it is repeated, and not stored.
        let tile: [usize; ROWS] = std::array::from_fn(|r| (at + r).min(places.len() - 1));
        // SAFETY: rows, weights, channels and pixels are the job's.
        unsafe {
            let mut acc = [[S::splat(0.0); WIDE]; ROWS];
            let from = tile.map(|r| rows.add(r * stride));
            accumulate::<S, ROWS, WIDE>(&mut acc, from, weights, depth);
            let count = task.rows(ROWS).min(places.len() - at);
            task.finish::<S, ROWS, WIDE>(&acc, lanes, &tile.map(|r| places[r]), count);
        }
    }
}

//! `grid_sample` in the packed layout: bilinear, zeros outside, `align_corners`, times an occlusion map.
//!
//! The four places and weights of each output pixel are found once and used for every channel block,
//! so nothing is gathered: each tap is a whole vector of channels.

use super::blocked::Size;
use super::conv::Sink;
use super::simd::{BLOCK, Simd, kernel};
use super::threads::Workers;

/// Where one output pixel comes from.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tap {
    /// Pixels of the input, row by row.
    places: [u32; 4],
    weights: [f32; 4],
}

impl Tap {
    /// The tap at (x, y) in -1..1, with -1 and 1 at the centres of the outermost pixels; `gain` scales it.
    pub fn at([x, y]: [f32; 2], size: Size, gain: f32) -> Self {
        let (x, x_weights) = axis(x, size.width);
        let (y, y_weights) = axis(y, size.height);
        let mut tap = Self::default();
        for i in 0..4 {
            tap.places[i] = y[i / 2] * size.width as u32 + x[i % 2];
            tap.weights[i] = y_weights[i / 2] * x_weights[i % 2] * gain;
        }
        tap
    }

    /// The sample of one channel whose pixels are `stride` apart.
    pub fn sample(&self, values: &[f32], stride: usize, offset: usize) -> f32 {
        (0..4)
            .map(|i| values[self.places[i] as usize * stride + offset] * self.weights[i])
            .sum()
    }

    /// The sample of four channels that lie together, as RGB and nothing do.
    pub fn sample4(&self, values: &[[f32; 4]]) -> [f32; 4] {
        let mut sum = [0.0; 4];
        for i in 0..4 {
            let pixel = values[self.places[i] as usize];
            for (total, value) in sum.iter_mut().zip(pixel) {
                *total += value * self.weights[i];
            }
        }
        sum
    }
}

/// The two pixels around a coordinate, with their weights; a pixel outside has the weight 0.
fn axis(coordinate: f32, pixels: usize) -> ([u32; 2], [f32; 2]) {
    let last = (pixels - 1) as f32;
    // Far outside is as good as just outside; the clamp also makes NaN harmless.
    let place = ((coordinate + 1.0) * 0.5 * last).max(-2.0).min(last + 2.0);
    let low = place.floor();
    let fraction = place - low;
    let weight = |at: f32, weight: f32| if at >= 0.0 && at <= last { weight } else { 0.0 };
    let index = |at: f32| at.clamp(0.0, last) as u32;
    (
        [index(low), index(low + 1.0)],
        [weight(low, 1.0 - fraction), weight(low + 1.0, fraction)],
    )
}

/// Samples every channel block of the packed `input` (of `size`) at `taps`, one for each pixel of the sink.
///
/// # Panics
/// When a length does not fit: a fault of the program.
pub(crate) fn warp(workers: &Workers, input: &[f32], size: Size, taps: &[Tap], sink: Sink) {
    let blocks = input.len() / (size.pixels() * BLOCK);
    assert_eq!(input.len(), size.values(blocks));
    assert_eq!(taps.len(), sink.size.pixels());
    // Places were made for an input of this size, by whom the taps come from.
    assert!(
        taps.iter()
            .all(|tap| tap.places.iter().all(|&p| (p as usize) < size.pixels()))
    );
    let rows = sink.size.height.div_ceil(4);
    workers.each(blocks * 4, |job| {
        let (block, first) = (job / 4, job % 4 * rows);
        let task = Task {
            input: input[block * size.pixels() * BLOCK..].as_ptr(),
            taps,
            block,
            rows: first..(first + rows).min(sink.size.height),
            sink,
        };
        // SAFETY: lengths and places were checked; a job writes its own rows of its own block.
        unsafe { sample(workers.isa, &task) };
    });
}

struct Task<'a> {
    input: *const f32,
    taps: &'a [Tap],
    block: usize,
    rows: std::ops::Range<usize>,
    sink: Sink,
}

kernel!(
    /// Some rows of one block.
    sample(task: &Task<'_>) = body
);

#[inline(always)]
unsafe fn body<S: Simd, const ROWS: usize, const WIDE: usize>(task: &Task<'_>) {
    for y in task.rows.clone() {
        for x in 0..task.sink.size.width {
            let tap = task.taps[y * task.sink.size.width + x];
            for lane in (0..BLOCK).step_by(S::LANES) {
                // SAFETY: places are pixels of the input, says the caller.
                unsafe {
                    let mut sum = S::splat(0.0);
                    for i in 0..4 {
                        let pixel = S::load(task.input.add(tap.places[i] as usize * BLOCK + lane));
                        sum = S::fma(pixel, S::splat(tap.weights[i]), sum);
                    }
                    task.sink.store::<S>(task.block * BLOCK + lane, y, x, sum);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::super::blocked::{Buffer, Channels, pack, unpack};
    use super::super::conv::Epilogue;
    use super::super::grid_sample::{Padding, grid_sample};
    use super::super::reference::{error, noise};
    use super::super::simd::Isa;
    use super::*;

    #[test]
    fn samples_are_those_of_grid_sample() {
        let (from, to) = (
            Size {
                height: 9,
                width: 7,
            },
            Size {
                height: 5,
                width: 6,
            },
        );
        let channels = Channels::new(20);
        let input = noise(20 * from.pixels(), 1);
        // Some outside, some far outside, some on the edge.
        let mut grid: Vec<f32> = noise(2 * to.pixels(), 2).iter().map(|v| v * 1.5).collect();
        grid[..6].copy_from_slice(&[-1.0, -1.0, 1.0, 1.0, 1e30, -1e30]);
        let tensor = |values: &[f32], shape: &[usize]| {
            Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
        };
        let wanted = grid_sample(
            &tensor(&input, &[1, 20, 9, 7]),
            &tensor(&grid, &[1, 5, 6, 2]),
            Padding::Zeros,
            true,
        );
        let wanted: Vec<f32> = wanted.unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let halved: Vec<f32> = wanted.iter().map(|v| v * 0.5).collect();
        let taps: Vec<Tap> = grid
            .as_chunks()
            .0
            .iter()
            .map(|&at| Tap::at(at, from, 0.5))
            .collect();
        let bias = Buffer::zeroed(32);
        for isa in Isa::available() {
            let workers = Workers::with_isa(2, isa).unwrap();
            let mut out = Buffer::zeroed(to.values(2));
            let sink = Sink::new(&mut out, to, &bias, false, Epilogue::default());
            warp(&workers, &pack(&input, &channels, from), from, &taps, sink);
            assert!(
                error(&unpack(&out, &channels, to), &halved) < 1e-5,
                "{}",
                isa.name()
            );
        }
    }

    #[test]
    fn no_coordinate_leaves_the_picture() {
        let size = Size::square(4);
        for at in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1e38, 1.0, -1.0] {
            let tap = Tap::at([at, 0.0], size, 1.0);
            assert!(tap.places.iter().all(|&p| p < 16), "{at}");
            assert!(tap.weights.iter().all(|w| w.is_finite()), "{at}");
        }
    }
}

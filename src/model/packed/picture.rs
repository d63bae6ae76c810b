//! Pictures on their way into the packed engine: 8-bit RGBA to 0..1, band-limited and reduced.

use crate::ops::blocked::{Buffer, Size};
use crate::ops::simd::BLOCK;
use crate::ops::threads::Workers;

/// The reduction by 1 / n before a network: `AntiAliasInterpolation2d`, every n-th pixel of the
/// picture under a gaussian. The gaussian is separable, so rows are filtered first (and only the
/// columns that are kept), then columns.
#[derive(Clone, Debug)]
pub(super) struct Reduction {
    side: usize,
    factor: usize,
    kernel: Vec<f32>,
    /// After the rows' filter: full height, reduced width.
    rows: Vec<[f32; 4]>,
}

impl Reduction {
    /// For pictures of `side`; the mobile form has a very narrow gaussian of three.
    pub(super) fn new(side: usize, factor: usize, mobile: bool) -> Self {
        let sigma = if mobile {
            0.25
        } else {
            (factor as f64 - 1.0) / 2.0
        };
        let radius = if mobile {
            1
        } else {
            (sigma * 4.0).round_ties_even() as usize
        };
        let at = |i: usize| (i as f64 - radius as f64).powi(2);
        let values: Vec<f64> = (0..=2 * radius)
            .map(|i| (-at(i) / (2.0 * sigma * sigma + 1e-9)).exp())
            .collect();
        let sum: f64 = values.iter().sum();
        let kernel = match factor {
            1 => vec![1.0],
            _ => values.iter().map(|v| (v / sum) as f32).collect(),
        };
        Self {
            side,
            factor,
            kernel,
            rows: vec![[0.0; 4]; side * (side / factor)],
        }
    }

    pub(super) fn size(&self) -> Size {
        Size::square(self.side / self.factor)
    }

    /// The reduced picture, RGB and nothing.
    pub(super) fn run(&mut self, workers: &Workers, rgba: &[u8]) -> Vec<[f32; 4]> {
        let mut small = vec![[0.0; 4]; self.size().pixels()];
        self.filter(workers, rgba, &mut small, |out, rgb| *out = rgb);
        small
    }

    /// The reduced picture into the first lanes of one packed block.
    pub(super) fn run_packed(&mut self, workers: &Workers, rgba: &[u8], out: &mut [f32]) {
        let lines: &mut [[f32; BLOCK]] = out.as_chunks_mut().0;
        self.filter(workers, rgba, lines, |line, rgb| {
            line[..4].copy_from_slice(&rgb);
        });
    }

    fn filter<T: Send>(
        &mut self,
        workers: &Workers,
        rgba: &[u8],
        out: &mut [T],
        store: impl Fn(&mut T, [f32; 4]) + Sync + Send,
    ) {
        let (side, factor, radius) = (self.side, self.factor, self.kernel.len() / 2);
        let (small, kernel) = (side / factor, &self.kernel);
        assert_eq!(rgba.len(), side * side * 4, "a picture of {side} x {side}");
        let pixels: &[[u8; 4]] = rgba.as_chunks().0;
        workers.rows(&mut self.rows, small, |y, row| {
            let line = &pixels[y * side..][..side];
            for (x, out) in row.iter_mut().enumerate() {
                let mut sum = [0.0; 3];
                for (k, weight) in kernel.iter().enumerate() {
                    if let Some(pixel) = (x * factor + k)
                        .checked_sub(radius)
                        .and_then(|i| line.get(i))
                    {
                        for c in 0..3 {
                            sum[c] += weight * f32::from(pixel[c]);
                        }
                    }
                }
                *out = [sum[0] / 255.0, sum[1] / 255.0, sum[2] / 255.0, 0.0];
            }
        });
        let rows = &self.rows;
        workers.rows(out, small, |y, row| {
            for (x, out) in row.iter_mut().enumerate() {
                let mut sum = [0.0; 4];
                for (k, weight) in kernel.iter().enumerate() {
                    let Some(from) = (y * factor + k).checked_sub(radius).filter(|&i| i < side)
                    else {
                        continue;
                    };
                    for (total, value) in sum.iter_mut().zip(rows[from * small + x]) {
                        *total += weight * value;
                    }
                }
                store(out, sum);
            }
        });
    }
}

/// A square picture as the encoder takes it: one packed block, RGB in its first lanes.
pub(super) fn packed(rgba: &[u8]) -> Buffer {
    let pixels: &[[u8; 4]] = rgba.as_chunks().0;
    let mut buffer = Buffer::zeroed(pixels.len() * BLOCK);
    let lines: &mut [[f32; BLOCK]] = buffer.as_chunks_mut().0;
    for (line, pixel) in lines.iter_mut().zip(pixels) {
        for c in 0..3 {
            line[c] = f32::from(pixel[c]) / 255.0;
        }
    }
    buffer
}

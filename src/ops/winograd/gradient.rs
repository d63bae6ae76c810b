//! The gradient of a 3x3 convolution's weight by minimal filtering: F(4, 3) read backwards.
//!
//! With Y = A^T ((G g G^T) * (B^T d B)) A for a tile d of 6x6 pixels and its 4x4 results, the gradient of g is
//! G^T ((A y A^T) * (B^T d B)) G, y being the results' gradient. So tiles of both are brought to 36 frequencies, in each of which
//! they are multiplied, every channel of one by every channel of the other, and summed over all tiles: 36 products where
//! taps ask for 144. G comes last and once.

use std::ops::Range;

use super::{Form, Windows, input_f4, taps, transform_input};
use crate::ops::blocked::{Buffer, Size};
use crate::ops::simd::{BLOCK, Isa, Simd, kernel};
use crate::ops::threads::{Shared, Workers};

/// Tiles of F(4, 3).
const FREQUENCIES: usize = 36;
const STEP: usize = 4;

/// Bytes of the frequencies that are multiplied at once: what the caches of some cores hold.
const CHUNK: usize = 4 << 20;

/// Sums over the tiles of as many pictures as there are.
pub(in crate::ops) struct Gradient {
    /// Channels of the input and of the output.
    channels: [usize; 2],
    /// Of the input and of the output.
    sizes: [Size; 2],
    padding: usize,
    /// (frequency, channel of the input, `columns`).
    sums: Buffer,
    /// Padded channels of the output.
    columns: usize,
    /// Frequencies of some tiles of both.
    tiles: Buffer,
    isa: Isa,
}

impl Gradient {
    /// Whether a kernel is for it, and maps are so large that it is worth it: sums are four times as large as the weight.
    pub(in crate::ops) fn suits(kernel: usize, padding: usize, to: Size) -> bool {
        kernel == 3 && padding <= 1 && to.height.min(to.width) >= 8
    }

    /// Of nothing yet.
    pub(in crate::ops) fn new(
        channels: [usize; 2],
        sizes: [Size; 2],
        padding: usize,
        isa: Isa,
    ) -> Self {
        let [c_in, c_out] = channels;
        let columns = c_out.next_multiple_of(isa.panel().max(BLOCK));
        Self {
            channels,
            sizes,
            padding,
            sums: Buffer::zeroed(FREQUENCIES * c_in * columns),
            columns,
            tiles: Buffer::default(),
            isa,
        }
    }

    /// Adds a picture: its blocks, and those of what is known of the gradient of its result.
    ///
    /// # Panics
    /// When a slice has not the length that its size asks for: a fault of the program.
    pub(in crate::ops) fn add(&mut self, workers: &Workers, input: &[f32], grad: &[f32]) {
        let blocks = self.channels.map(|n| n.div_ceil(BLOCK));
        let [depth, wide] = blocks.map(|n| n * BLOCK);
        assert_eq!(input.len(), self.sizes[0].values(blocks[0]), "input");
        assert_eq!(grad.len(), self.sizes[1].values(blocks[1]), "gradient");
        let tiles_x = self.sizes[1].width.div_ceil(STEP);
        let tiles = tiles_x * self.sizes[1].height.div_ceil(STEP);
        let of_tile = FREQUENCIES * (depth + wide) * size_of::<f32>();
        let chunk = tiles.div_ceil(tiles.div_ceil((CHUNK / of_tile).max(16)));
        // The odd block keeps frequencies, which are written together, off the same cache set; the last panel may reach into it.
        let strides = [depth, wide].map(|channels| chunk * channels + BLOCK);
        self.tiles.grow(FREQUENCIES * (strides[0] + strides[1]));
        let (v, w) = self.tiles.split_at_mut(FREQUENCIES * strides[0]);
        let (v, w) = (Shared(v.as_mut_ptr()), Shared(w.as_mut_ptr()));
        let sums = Shared(self.sums.as_mut_ptr());
        let isa = self.isa;
        for first in (0..tiles).step_by(chunk) {
            let count = chunk.min(tiles - first);
            let run = count.div_ceil(2 * workers.threads()).clamp(1, 16);
            let runs = count.div_ceil(run);
            workers.each(2 * runs, |job| {
                let (which, from) = (job / runs, job % runs * run);
                let (map, out) = [(input, v), (grad, w)][which];
                // SAFETY: both have room for `chunk` tiles, of which a job writes its own.
                let out = unsafe { out.get().add(from * [depth, wide][which]) };
                let windows = Windows {
                    map: map.as_ptr(),
                    size: self.sizes[which],
                    blocks: blocks[which],
                    padding: if which == 0 { self.padding } else { 0 },
                    tiles_x,
                    first: first + from,
                    count: run.min(count - from),
                    out,
                    stride: strides[which],
                };
                // SAFETY: lengths were checked.
                unsafe {
                    match which {
                        0 => input_f4(isa, &windows),
                        _ => of_gradient(isa, &windows),
                    }
                }
            });
            let panels = self.columns / isa.panel();
            let parts = (4 * workers.threads())
                .div_ceil(FREQUENCIES)
                .clamp(1, panels);
            workers.each(FREQUENCIES * parts, |job| {
                let (frequency, part) = (job / parts, job % parts);
                // SAFETY: places of this frequency.
                let products = unsafe {
                    Products {
                        v: v.get().add(frequency * strides[0]),
                        w: w.get().add(frequency * strides[1]),
                        sums: sums.get().add(frequency * self.channels[0] * self.columns),
                        rows: self.channels[0],
                        depth,
                        wide,
                        columns: self.columns,
                        panels: part * panels / parts..(part + 1) * panels / parts,
                        count,
                    }
                };
                // SAFETY: a job adds to sums of its own.
                unsafe { add_products(isa, &products) };
            });
        }
    }

    /// The gradient of the weight (output, input, 3, 3).
    pub(in crate::ops) fn weight(&self, workers: &Workers) -> Vec<f32> {
        let [c_in, c_out] = self.channels;
        let [g, _] = taps(Form::F4);
        let g: Vec<[f32; 3]> = g.iter().map(|row| row.map(|v| v as f32)).collect();
        let mut weight = vec![0.0; c_out * c_in * 9];
        workers.rows(&mut weight, BLOCK * c_in * 9, |block, weight| {
            for channel in 0..c_in {
                let mut half = [[[0f32; BLOCK]; 6]; 3];
                for (u, g) in g.iter().enumerate() {
                    for v in 0..6 {
                        let at = ((u * 6 + v) * c_in + channel) * self.columns + block * BLOCK;
                        let sums = &self.sums[at..at + BLOCK];
                        for (half, g) in half.iter_mut().zip(g) {
                            for (half, sum) in half[v].iter_mut().zip(sums) {
                                *half += g * sum;
                            }
                        }
                    }
                }
                for (tap, half) in half.iter().enumerate() {
                    let mut row = [[0f32; BLOCK]; 3];
                    for (half, g) in half.iter().zip(&g) {
                        for (row, g) in row.iter_mut().zip(g) {
                            for (row, half) in row.iter_mut().zip(half) {
                                *row += g * half;
                            }
                        }
                    }
                    for (output, weight) in weight.chunks_exact_mut(c_in * 9).enumerate() {
                        for (weight, row) in weight[channel * 9 + tap * 3..].iter_mut().zip(&row) {
                            *weight = row[output];
                        }
                    }
                }
            }
        });
        weight
    }
}

/// Frequencies of tiles of the input and of the gradient, multiplied.
struct Products {
    v: *const f32,
    w: *const f32,
    sums: *mut f32,
    /// Channels of the input.
    rows: usize,
    /// Padded channels of the input, and of the output.
    depth: usize,
    wide: usize,
    columns: usize,
    /// Of the output's channels.
    panels: Range<usize>,
    /// Tiles.
    count: usize,
}

kernel!(
    /// A y A^T of every tile.
    of_gradient(windows: &Windows) = of_gradient_body
);
kernel!(
    /// Adds to the sums (channel of the input, channel of the output).
    add_products(products: &Products) = add_products_body
);

#[inline(always)]
unsafe fn of_gradient_body<S: Simd, const ROWS: usize, const WIDE: usize>(windows: &Windows) {
    // SAFETY: the caller's promises.
    unsafe { transform_input::<S, STEP, 6, STEP>(windows) }
}

#[inline(always)]
unsafe fn add_products_body<S: Simd, const ROWS: usize, const WIDE: usize>(products: &Products) {
    let width = WIDE * S::LANES;
    let &Products {
        v,
        w,
        sums,
        rows,
        depth,
        wide,
        columns,
        ref panels,
        count,
    } = products;
    for panel in panels.clone() {
        for first in (0..rows).step_by(ROWS) {
            // Padding makes up for rows that there are not; of those that come once more nothing is added.
            let from = first.min(depth - ROWS);
            // SAFETY: a tile has `depth` rows, and at least a panel lies behind the last one's first column.
            unsafe {
                let mut acc = [[S::splat(0.0); WIDE]; ROWS];
                let (v, w) = (v.add(from), w.add(panel * width));
                multiply::<S, ROWS, WIDE>(&mut acc, (v, depth), (w, wide), count);
                for (r, acc) in acc.iter().enumerate() {
                    let row = from + r;
                    if (first..rows).contains(&row) {
                        for (i, &acc) in acc.iter().enumerate() {
                            let sum = sums.add(row * columns + panel * width + i * S::LANES);
                            S::store(sum, S::add(S::load(sum), acc));
                        }
                    }
                }
            }
        }
    }
}

/// `acc[r][w] += a[k][r] * panel[k][w]` over `k`; both with what lies between one k and the next.
#[inline(always)]
unsafe fn multiply<S: Simd, const ROWS: usize, const WIDE: usize>(
    acc: &mut [[S::V; WIDE]; ROWS],
    (a, a_stride): (*const f32, usize),
    (panel, panel_stride): (*const f32, usize),
    depth: usize,
) {
    // As in `accumulate`.
    let acc = std::hint::black_box(acc);
    let mut sums = *acc;
    for k in 0..depth {
        // SAFETY: within what the caller promises.
        unsafe {
            let (a, panel) = (a.add(k * a_stride), panel.add(k * panel_stride));
            let mut values = [S::splat(0.0); WIDE];
            for (w, value) in values.iter_mut().enumerate() {
                *value = S::load(panel.add(w * S::LANES));
            }
            for r in 0..ROWS {
                let x = S::splat(*a.add(r));
                for w in 0..WIDE {
                    sums[r][w] = S::fma(x, values[w], sums[r][w]);
                }
            }
        }
    }
    *acc = sums;
}

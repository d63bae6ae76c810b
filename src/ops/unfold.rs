//! The loops of [`conv2d`](super::conv2d): convolution as matrix products over unfolded pictures.

use std::marker::PhantomData;
use std::ops::{Deref, Range};

use candle_core::{Layout, Result, Storage, StorageRef, Tensor, WithDType, bail};
use rayon::prelude::*;

use super::packed;

/// Values of a tile of unfolded pixels: what the second-level cache holds.
const TILE: usize = 1 << 18;

/// What the matrix products are of.
pub(super) trait Element:
    WithDType + Copy + Send + Sync + std::ops::AddAssign + 'static
{
    /// What there is for convolutions of so many channels.
    fn quick(_window: Window, _c_in: usize, _c_out: usize) -> Option<Quick<Self>> {
        None
    }

    /// The sum, in f64.
    fn sum(values: &[Self]) -> f64 {
        // Parts of a size that f32 adds well, each in lanes.
        values
            .chunks(1024)
            .map(|part| {
                let mut lanes = [Self::from_f64(0.0); 16];
                let (rows, rest) = part.as_chunks::<16>();
                for row in rows {
                    for (lane, v) in lanes.iter_mut().zip(row) {
                        *lane += *v;
                    }
                }
                lanes.iter().chain(rest).map(|v| v.to_f64()).sum::<f64>()
            })
            .sum()
    }

    /// The scalar product, in f64.
    fn dot(a: &[Self], b: &[Self]) -> f64 {
        a.chunks(1024)
            .zip(b.chunks(1024))
            .map(|(a, b)| {
                let mut lanes = [Self::from_f64(0.0); 16];
                let ((rows, rest), (others, other_rest)) =
                    (a.as_chunks::<16>(), b.as_chunks::<16>());
                for (row, other) in rows.iter().zip(others) {
                    for i in 0..16 {
                        lanes[i] += row[i] * other[i];
                    }
                }
                let rest = rest.iter().zip(other_rest);
                lanes.iter().map(|v| v.to_f64()).sum::<f64>()
                    + rest.map(|(a, b)| a.to_f64() * b.to_f64()).sum::<f64>()
            })
            .sum()
    }
}

impl Element for f32 {
    fn quick(window: Window, c_in: usize, c_out: usize) -> Option<Quick<Self>> {
        packed::suits(window, c_in, c_out).then_some(Quick {
            gather: packed::gather,
            correlate: packed::correlate,
            turned: packed::better_turned(window, c_in, c_out),
        })
    }
}

impl Element for f64 {}

/// As [`gather`]; none where no thread can be had.
type Gather<T> = fn(&[T], [usize; 4], &[T], Option<&[T]>, usize, Window) -> Option<Vec<T>>;
/// As [`correlate`].
type Correlate<T> = fn(&[T], usize, &[T], [usize; 4], Window, (usize, usize)) -> Option<Vec<T>>;

/// Kernels that do the same in less time.
pub(super) struct Quick<T> {
    gather: Gather<T>,
    correlate: Correlate<T>,
    /// Whether a weight's gradient is found sooner as that of the mirrored convolution, from the output to the input.
    pub(super) turned: bool,
}

/// The values of a tensor on the CPU, where they lie.
pub(super) struct Values<'a, T> {
    storage: StorageRef<'a>,
    range: Range<usize>,
    of: PhantomData<T>,
}

impl<'a, T: Element> Values<'a, T> {
    /// # Errors
    /// When they do not lie in order, or are of another type or device.
    pub(super) fn of(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("an op's arguments must be contiguous");
        };
        let values = Self {
            storage,
            range: start..end,
            of: PhantomData,
        };
        values.get()?;
        Ok(values)
    }

    fn get(&self) -> Result<&[T]> {
        match &*self.storage {
            Storage::Cpu(storage) => Ok(&T::cpu_storage_as_slice(storage)?[self.range.clone()]),
            _ => bail!("an op's arguments must be on the CPU"),
        }
    }
}

impl<T: Element> Deref for Values<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // That there are some was seen when it was made.
        self.get().unwrap_or_default()
    }
}

/// The values of an argument that lies in order.
pub(super) fn part<'a, T>(values: &'a [T], layout: &Layout) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&values[start..end]),
        None => bail!("an op's arguments must be contiguous"),
    }
}

/// A square kernel on its way over a picture.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) side: usize,
    pub(super) padding: usize,
    pub(super) stride: usize,
}

impl Window {
    /// Height and width of what comes out of a picture.
    pub(super) fn output(self, [_, _, h, w]: [usize; 4]) -> (usize, usize) {
        let side = |n: usize| (n + 2 * self.padding - self.side) / self.stride + 1;
        (side(h), side(w))
    }

    /// The same window seen from the output, for a stride of one and less padding than kernel.
    pub(super) fn mirrored(self) -> Self {
        Self {
            padding: self.side - 1 - self.padding,
            ..self
        }
    }

    fn taps(self) -> usize {
        self.side * self.side
    }
}

/// Some rows of some pictures, whose pixels are the columns of one matrix.
#[derive(Clone, Debug)]
struct Tile {
    pictures: Range<usize>,
    rows: Range<usize>,
}

/// Cuts `pictures` of h x w into tiles of at most about [`TILE`] values at `depth` for each pixel; small
/// pictures share one.
fn tiles(pictures: usize, (h, w): (usize, usize), depth: usize) -> Vec<Tile> {
    let pixels = (TILE / depth.max(1)).clamp(128, 1 << 14);
    let together = (pixels / (h * w).max(1)).max(1);
    let rows = (pixels / w.max(1)).clamp(1, h.max(1));
    let mut all = Vec::new();
    let mut first = 0;
    while first < pictures {
        let last = (first + together).min(pictures);
        let mut row = 0;
        while row < h {
            let end = if together > 1 { h } else { (row + rows).min(h) };
            all.push(Tile {
                pictures: first..last,
                rows: row..end,
            });
            row = end;
        }
        first = last;
    }
    all
}

/// Convolution: each output pixel gathers what lies under the window. `weight` is (c_out, c * k * k).
pub(super) fn gather<T: Element>(
    x: &[T],
    dims: [usize; 4],
    weight: &[T],
    bias: Option<&[T]>,
    c_out: usize,
    window: Window,
) -> Vec<T> {
    let [b, c, ..] = dims;
    if let Some(quick) = T::quick(window, c, c_out)
        && let Some(y) = (quick.gather)(x, dims, weight, bias, c_out, window)
    {
        return y;
    }
    let (ho, wo) = window.output(dims);
    let (depth, plane) = (c * window.taps(), ho * wo);
    let zero = T::from_f64(0.0);
    let mut y = vec![zero; b * c_out * plane];
    let tiles = tiles(b, (ho, wo), depth);
    let output = Output(y.as_mut_ptr(), y.len());
    tiles.par_iter().for_each_init(
        || (Vec::new(), Vec::new()),
        |(columns, products), tile| {
            let n = tile.pictures.len() * tile.rows.len() * wo;
            unfold(x, dims, 0..c, window, wo, tile, columns);
            products.clear();
            for o in 0..c_out {
                products.resize((o + 1) * n, bias.map_or(zero, |bias| bias[o]));
            }
            product(
                [c_out, n, depth],
                Matrix::rows(weight, depth),
                Matrix::rows(columns, n),
                products,
                n,
            );
            let run = tile.rows.len() * wo;
            for (i, picture) in tile.pictures.clone().enumerate() {
                for o in 0..c_out {
                    let at = (picture * c_out + o) * plane + tile.rows.start * wo;
                    // SAFETY: tiles are disjoint, and so are the rows that they fill.
                    unsafe { output.write(at, &products[o * n + i * run..][..run]) };
                }
            }
        },
    );
    y
}

/// Transposed convolution: each input pixel is scattered over the window. `weight` is (c, c_out * k * k),
/// `to` the output's height and width.
pub(super) fn scatter<T: Element>(
    x: &[T],
    dims: [usize; 4],
    weight: &[T],
    c_out: usize,
    window: Window,
    to: (usize, usize),
) -> Vec<T> {
    let [b, c, h, w] = dims;
    let taps = window.taps();
    let plane = to.0 * to.1;
    let mut y = vec![T::from_f64(0.0); b * c_out * plane];
    if y.is_empty() {
        return y;
    }
    // A job is some output channels of one picture.
    let group = c_out.div_ceil(4).max(1);
    y.par_chunks_mut(plane * c_out)
        .enumerate()
        .for_each(|(picture, y)| {
            y.par_chunks_mut(plane * group).enumerate().for_each_init(
                Vec::new,
                |spread, (job, y)| {
                    let channels = y.len() / plane;
                    let depth = channels * taps;
                    for tile in tiles(1, (h, w), depth) {
                        let n = tile.rows.len() * w;
                        let from = picture * c * h * w + tile.rows.start * w;
                        spread.clear();
                        spread.resize(depth * n, T::from_f64(0.0));
                        product(
                            [depth, n, c],
                            Matrix {
                                values: &weight[job * group * taps..],
                                row: 1,
                                column: c_out * taps,
                            },
                            Matrix::rows(&x[from..], h * w),
                            spread,
                            n,
                        );
                        fold(spread, window, w, &tile.rows, y, to);
                    }
                },
            );
        });
    y
}

/// The gradient of a weight: `a` (b, c_a, ho, wo) against the unfolded `u` (b, c, h, w), summed over
/// pictures and pixels: (c_a, c * k * k).
pub(super) fn correlate<T: Element>(
    a: &[T],
    c_a: usize,
    u: &[T],
    dims: [usize; 4],
    window: Window,
    (ho, wo): (usize, usize),
) -> Vec<T> {
    let [b, c, ..] = dims;
    if let Some(quick) = T::quick(window, c, c_a)
        && let Some(sums) = (quick.correlate)(a, c_a, u, dims, window, (ho, wo))
    {
        return sums;
    }
    let (taps, plane) = (window.taps(), ho * wo);
    // A job is some channels of `u`; each sums over all tiles, in their order.
    let group = c.div_ceil(8).max(1);
    let jobs: Vec<Range<usize>> = (0..c)
        .step_by(group)
        .map(|first| first..(first + group).min(c))
        .collect();
    let parts: Vec<Vec<T>> = jobs
        .par_iter()
        .map_init(
            || (Vec::new(), Vec::new()),
            |(columns, rows), channels| {
                let depth = channels.len() * taps;
                let mut sums = vec![T::from_f64(0.0); c_a * depth];
                for tile in tiles(b, (ho, wo), depth.max(c_a)) {
                    let run = tile.rows.len() * wo;
                    let n = tile.pictures.len() * run;
                    unfold(u, dims, channels.clone(), window, wo, &tile, columns);
                    rows.clear();
                    for o in 0..c_a {
                        for picture in tile.pictures.clone() {
                            let at = (picture * c_a + o) * plane + tile.rows.start * wo;
                            rows.extend_from_slice(&a[at..at + run]);
                        }
                    }
                    product(
                        [c_a, depth, n],
                        Matrix::rows(rows, n),
                        Matrix {
                            values: columns,
                            row: 1,
                            column: n,
                        },
                        &mut sums,
                        depth,
                    );
                }
                sums
            },
        )
        .collect();
    let mut all = Vec::with_capacity(c_a * c * taps);
    for o in 0..c_a {
        for (channels, part) in jobs.iter().zip(&parts) {
            let depth = channels.len() * taps;
            all.extend_from_slice(&part[o * depth..(o + 1) * depth]);
        }
    }
    all
}

/// Each channel by its own kernel, stride one. `weight` is (c, k * k).
pub(super) fn depthwise<T: Element>(
    x: &[T],
    dims: [usize; 4],
    weight: &[T],
    bias: Option<&[T]>,
    window: Window,
) -> Vec<T> {
    let [b, c, h, w] = dims;
    let (ho, wo) = window.output(dims);
    let mut y = vec![T::from_f64(0.0); b * c * ho * wo];
    y.par_chunks_mut((ho * wo).max(1))
        .enumerate()
        .for_each(|(plane, y)| {
            let x = &x[plane * h * w..][..h * w];
            let taps = &weight[plane % c * window.taps()..][..window.taps()];
            if let Some(bias) = bias {
                y.fill(bias[plane % c]);
            }
            overlaps(window, (h, w), (ho, wo), |tap, from, to, length| {
                let weight = taps[tap];
                for (y, x) in y[to..to + length].iter_mut().zip(&x[from..from + length]) {
                    *y += weight * *x;
                }
            });
        });
    y
}

/// The gradient of [`depthwise`]'s weight.
pub(super) fn depthwise_weight<T: Element>(
    x: &[T],
    dims: [usize; 4],
    grad: &[T],
    [_, _, ho, wo]: [usize; 4],
    window: Window,
) -> Vec<T> {
    let [b, c, h, w] = dims;
    let sums = (0..c).into_par_iter().flat_map_iter(|channel| {
        let mut sums = vec![0f64; window.taps()];
        for picture in 0..b {
            let plane = picture * c + channel;
            let (x, grad) = (&x[plane * h * w..], &grad[plane * ho * wo..]);
            overlaps(window, (h, w), (ho, wo), |tap, from, to, length| {
                sums[tap] += T::dot(&x[from..from + length], &grad[to..to + length]);
            });
        }
        sums.into_iter().map(T::from_f64)
    });
    sums.collect()
}

/// Calls back with the number of each tap and, for each row, the first pixel of the input and of the
/// output that it joins, and how many. Stride one.
fn overlaps(
    window: Window,
    (h, w): (usize, usize),
    (ho, wo): (usize, usize),
    mut each: impl FnMut(usize, usize, usize, usize),
) {
    for tap in 0..window.taps() {
        let (ky, kx) = (tap / window.side, tap % window.side);
        let first = window.padding.saturating_sub(kx);
        let last = (w + window.padding).saturating_sub(kx).min(wo);
        for y in 0..ho {
            let row = (y + ky).wrapping_sub(window.padding);
            if row < h && first < last {
                let from = row * w + first + kx - window.padding;
                each(tap, from, y * wo + first, last - first);
            }
        }
    }
}

/// Writes what lies under each tap of the window, (channels * k * k, pixels of the tile).
fn unfold<T: Element>(
    x: &[T],
    [_, c, h, w]: [usize; 4],
    channels: Range<usize>,
    window: Window,
    wo: usize,
    tile: &Tile,
    columns: &mut Vec<T>,
) {
    let zero = T::from_f64(0.0);
    columns.clear();
    for channel in channels {
        for tap in 0..window.taps() {
            let (ky, kx) = (tap / window.side, tap % window.side);
            for picture in tile.pictures.clone() {
                let plane = &x[(picture * c + channel) * h * w..][..h * w];
                for y in tile.rows.clone() {
                    let row = (y * window.stride + ky).wrapping_sub(window.padding);
                    if row >= h {
                        columns.resize(columns.len() + wo, zero);
                        continue;
                    }
                    let row = &plane[row * w..][..w];
                    if window.stride == 1 {
                        let first = window.padding.saturating_sub(kx).min(wo);
                        let last = (w + window.padding).saturating_sub(kx).clamp(first, wo);
                        columns.resize(columns.len() + first, zero);
                        if first < last {
                            let from = first + kx - window.padding;
                            columns.extend_from_slice(&row[from..from + last - first]);
                        }
                        columns.resize(columns.len() + wo - last, zero);
                    } else {
                        columns.extend((0..wo).map(|x| {
                            let at = (x * window.stride + kx).wrapping_sub(window.padding);
                            row.get(at).copied().unwrap_or(zero)
                        }));
                    }
                }
            }
        }
    }
}

/// Adds each row of `spread` (channels * k * k, pixels of `rows`) to where its tap puts it.
fn fold<T: Element>(
    spread: &[T],
    window: Window,
    w: usize,
    rows: &Range<usize>,
    y: &mut [T],
    (ho, wo): (usize, usize),
) {
    let n = rows.len() * w;
    for (line, values) in spread.chunks_exact(n).enumerate() {
        let (channel, tap) = (line / window.taps(), line % window.taps());
        let (ky, kx) = (tap / window.side, tap % window.side);
        for (i, values) in values.chunks_exact(w).enumerate() {
            let row = ((rows.start + i) * window.stride + ky).wrapping_sub(window.padding);
            if row >= ho {
                continue;
            }
            let y = &mut y[(channel * ho + row) * wo..][..wo];
            if window.stride == 1 {
                let first = window.padding.saturating_sub(kx).min(w);
                let last = (wo + window.padding).saturating_sub(kx).clamp(first, w);
                if first < last {
                    let to = &mut y[first + kx - window.padding..];
                    for (to, v) in to.iter_mut().zip(&values[first..last]) {
                        *to += *v;
                    }
                }
            } else {
                for (x, v) in values.iter().enumerate() {
                    let at = (x * window.stride + kx).wrapping_sub(window.padding);
                    if let Some(to) = y.get_mut(at) {
                        *to += *v;
                    }
                }
            }
        }
    }
}

/// A matrix in memory: steps from row to row and from column to column.
#[derive(Clone, Copy)]
struct Matrix<'a, T> {
    values: &'a [T],
    row: usize,
    column: usize,
}

impl<'a, T> Matrix<'a, T> {
    fn rows(values: &'a [T], row: usize) -> Self {
        Self {
            values,
            row,
            column: 1,
        }
    }

    fn holds(&self, rows: usize, columns: usize) -> bool {
        rows == 0
            || columns == 0
            || (rows - 1) * self.row + (columns - 1) * self.column < self.values.len()
    }
}

/// Adds a b to `sums`: (m, k) times (k, n), the rows of `sums` `step` apart.
fn product<T: Element>(
    [m, n, k]: [usize; 3],
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    sums: &mut [T],
    step: usize,
) {
    let room = Matrix::rows(&*sums, step).holds(m, n);
    assert!(
        a.holds(m, k) && b.holds(k, n) && room,
        "a product out of bounds"
    );
    let one = T::from_f64(1.0);
    // SAFETY: all three matrices lie within their slices.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            sums.as_mut_ptr(),
            1,
            step as isize,
            true,
            a.values.as_ptr(),
            a.column as isize,
            a.row as isize,
            b.values.as_ptr(),
            b.column as isize,
            b.row as isize,
            one,
            one,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// Memory that jobs fill in parts.
struct Output<T>(*mut T, usize);

// SAFETY: who writes sees to it that the parts are disjoint.
unsafe impl<T: Send> Sync for Output<T> {}

impl<T: Copy> Output<T> {
    /// # Safety
    /// No other thread writes there.
    unsafe fn write(&self, at: usize, values: &[T]) {
        assert!(at + values.len() <= self.1, "a write out of bounds");
        // SAFETY: within the memory, as was checked, and nobody else's.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), self.0.add(at), values.len()) };
    }
}

//! 3x3 convolution with less arithmetic: Winograd's minimal filtering (Lavin & Gray, arXiv 1509.09308).
//!
//! An output tile of m x m costs (m + r - 1)^2 products instead of (m r)^2:
//! - [`Form::F4`]: F(4, 3), 36 instead of 144, with the points 0, +-5/8, +-3/2, infinity, whose rounding
//!   error is a third of the textbook's +-1, +-2.
//! - [`Form::F2`]: F(2, 3), 16 instead of 36, for maps too small for the larger tile.
//! - [`Form::Up`]: nearest x2 followed by 3x3, which the decoder does. On the small map that is four
//!   2x2 convolutions, one for each parity of the output's row and column, over the same windows
//!   {x\[p\], x\[p+1\]}, p from -1: taps that fall on the same small pixel are summed. F(3, 2) then
//!   computes 3 x 3 positions of all four from one 4 x 4 input tile: 16 products instead of 324.
//!
//! A job takes a run of tiles through all three steps while they are in its core's cache: input
//! transform (V), one matrix product for each of the 36 or 16 frequencies (M = V U), output transform
//! with bias, activation, residual, pooling.

use super::blocked::{Buffer, Channels, Size};
use super::conv::{Maps, Sink};
use super::simd::{BLOCK, Isa, Simd, accumulate, kernel, put_operand};
use super::threads::Workers;
use rayon::prelude::*;

mod gradient;

pub(super) use gradient::Gradient;

/// Which minimal filtering a layer uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// F(4, 3).
    F4,
    /// F(2, 3).
    F2,
    /// F(3, 2) on the small map in place of nearest x2 and 3x3.
    Up,
}

impl Form {
    /// Side of the transformed tile.
    const fn alpha(self) -> usize {
        match self {
            Self::F4 => 6,
            Self::F2 | Self::Up => 4,
        }
    }

    /// Output positions a tile covers in each direction.
    const fn step(self) -> usize {
        match self {
            Self::F4 => 4,
            Self::F2 => 2,
            Self::Up => 3,
        }
    }

    /// For the benchmark's table.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::F4 => "F(4,3)",
            Self::F2 => "F(2,3)",
            Self::Up => "up F(3,2)",
        }
    }

    const fn phases(self) -> usize {
        if matches!(self, Self::Up) { 4 } else { 1 }
    }
}

/// The transformed and packed weights of a 3x3 convolution, padding 0 or 1.
#[derive(Debug)]
pub(super) struct Winograd {
    form: Form,
    padding: usize,
    in_blocks: usize,
    out_blocks: usize,
    /// `[frequency][panel][slot of in channels][panel width]`.
    weights: Buffer,
    isa: Isa,
}

/// Bytes of V and M in one job: they should stay in the second-level cache of its core. On 256 channels
/// of 64x64 and a cache of 1 MB, 12 tiles take 8.3 ms (AVX-512) and 10.0 ms (AVX2), 24 take 10.6 and 13.5.
const JOB_BYTES: usize = 900 << 10;
/// Most tiles in one job.
const MAX_JOB_TILES: usize = 48;

impl Winograd {
    /// Transforms `weight` (outs, in, 3, 3), in f64.
    pub(super) fn new(
        form: Form,
        padding: usize,
        weight: &[f32],
        outs: usize,
        input: &Channels,
        isa: Isa,
    ) -> Self {
        assert!(
            padding == 1 || (padding == 0 && form != Form::Up),
            "windows of the folded form begin outside"
        );
        let ins = input.count();
        let out_blocks = outs.div_ceil(BLOCK);
        let alpha = form.alpha();
        let depth = input.blocks() * BLOCK / isa.pair();
        let width = isa.panel();
        let columns = (form.phases() * out_blocks * BLOCK).next_multiple_of(width);
        let mut weights = Buffer::zeroed(alpha * alpha * depth * columns);
        let (places, taps) = (input.places(), taps(form));
        // A frequency lies together, and many threads make it in a training step.
        let frequencies = weights.par_chunks_mut(depth * columns).enumerate();
        frequencies.for_each(|(frequency, weights)| {
            let (u, v) = (frequency / alpha, frequency % alpha);
            // For each phase what each of the nine taps counts.
            let shares: [[f64; 9]; 4] = std::array::from_fn(|phase| {
                let (rows, columns) = (taps[phase / 2][u], taps[phase % 2][v]);
                std::array::from_fn(|tap| rows[tap / 3] * columns[tap % 3])
            });
            for (panel, weights) in weights.chunks_exact_mut(width * depth).enumerate() {
                for lane in 0..width {
                    let column = panel * width + lane;
                    let (phase, o) = (column / (out_blocks * BLOCK), column % (out_blocks * BLOCK));
                    if phase >= form.phases() || o >= outs {
                        continue;
                    }
                    let kernels = &weight[o * ins * 9..][..ins * 9];
                    for (k, channel) in places.iter().enumerate() {
                        let Some(channel) = channel else { continue };
                        let kernel = &kernels[channel * 9..][..9];
                        let products = shares[phase].iter().zip(kernel);
                        let sum: f64 = products.map(|(share, w)| share * f64::from(*w)).sum();
                        let slot = &mut weights[k / isa.pair() * width + lane];
                        put_operand(slot, k % isa.pair(), sum as f32, isa);
                    }
                }
            }
        });
        Self {
            form,
            padding,
            in_blocks: input.blocks(),
            out_blocks,
            weights,
            isa,
        }
    }

    pub(super) fn form(&self) -> Form {
        self.form
    }

    pub(super) fn run(&self, workers: &Workers, maps: &Maps<'_>) {
        let (size, full_size) = (maps.size, maps.full_size);
        let step = self.form.step();
        // Window positions in each direction; the folded form has one more than the small map has pixels.
        let Size { height, width } = match self.form {
            Form::Up => Size {
                height: size.height + 1,
                width: size.width + 1,
            },
            Form::F4 | Form::F2 => full_size,
        };
        let tiles_x = width.div_ceil(step);
        let tiles = tiles_x * height.div_ceil(step);
        let columns =
            (self.form.phases() * self.out_blocks * BLOCK).next_multiple_of(self.isa.panel());
        let frequencies = self.form.alpha() * self.form.alpha();
        let depth = self.in_blocks * BLOCK / self.isa.pair();
        let tile_bytes = frequencies * (depth + columns) * size_of::<f32>();
        // Whole register tiles.
        let job_tiles = (JOB_BYTES / tile_bytes / 12 * 12).clamp(12, MAX_JOB_TILES);
        // Even jobs, at least one for each thread where there is enough to do.
        let jobs = tiles
            .div_ceil(job_tiles)
            .next_multiple_of(workers.threads())
            .min(tiles);
        let run = tiles.div_ceil(jobs);
        // The odd block keeps frequencies, which are written together, off the same cache set.
        let v_stride = run * depth + BLOCK;
        let m_stride = run * columns + BLOCK;
        workers.each_with_scratch(
            tiles.div_ceil(run),
            frequencies * (v_stride + m_stride),
            |job, scratch| {
                let first = job * run;
                let (v, m) = scratch.split_at_mut(frequencies * v_stride);
                let windows = Windows {
                    map: maps.input.as_ptr(),
                    size,
                    blocks: self.in_blocks,
                    padding: self.padding,
                    tiles_x,
                    first,
                    count: run.min(tiles - first),
                    out: v.as_mut_ptr(),
                    stride: v_stride,
                };
                let task = Task {
                    windows,
                    full_size,
                    out_blocks: self.out_blocks,
                    columns,
                    weights: self.weights.as_ptr(),
                    pool: maps.pool,
                    sink: maps.sink,
                    frequencies,
                    m: m.as_mut_ptr(),
                    m_stride,
                };
                // SAFETY: lengths were checked; a job writes the output pixels of its own tiles.
                unsafe {
                    match self.form {
                        Form::F4 => input_f4(self.isa, &task.windows),
                        Form::F2 => input_f2(self.isa, &task.windows),
                        Form::Up => input_up(self.isa, &task.windows),
                    }
                    products(self.isa, &task);
                    match self.form {
                        Form::F4 => output_f4(self.isa, &task),
                        Form::F2 => output_f2(self.isa, &task),
                        Form::Up => output_up(self.isa, &task),
                    }
                }
            },
        );
    }
}

/// Some tiles of a map, and where their frequencies go: (frequency, tile, channel).
struct Windows {
    map: *const f32,
    size: Size,
    blocks: usize,
    padding: usize,
    tiles_x: usize,
    first: usize,
    count: usize,
    out: *mut f32,
    /// From frequency to frequency.
    stride: usize,
}

/// One job, taken apart for the kernels.
struct Task {
    /// What is transformed into V.
    windows: Windows,
    /// Of the output before pooling.
    full_size: Size,
    out_blocks: usize,
    columns: usize,
    weights: *const f32,
    pool: bool,
    sink: Sink,
    frequencies: usize,
    m: *mut f32,
    m_stride: usize,
}

kernel!(input_f4(windows: &Windows) = input_f4_body);
kernel!(input_f2(windows: &Windows) = input_f2_body);
kernel!(input_up(windows: &Windows) = input_up_body);
kernel!(
    /// M = V U for every frequency.
    products(task: &Task) = products_body
);
kernel!(output_f4(task: &Task) = output_f4_body);
kernel!(output_f2(task: &Task) = output_f2_body);
kernel!(
    /// The output transform of [`Form::Up`].
    output_up(task: &Task) = output_up_body
);

/// Names one instance of a transform for the [`kernel!`] macro.
macro_rules! instance {
    ($name:ident($task:ty) = $body:ident<$($size:literal),+>) => {
        #[inline(always)]
        unsafe fn $name<S: Simd, const ROWS: usize, const WIDE: usize>(task: &$task) {
            // SAFETY: the caller's promises.
            unsafe { $body::<S, $($size),+>(task) }
        }
    };
}
instance!(input_f4_body(Windows) = transform_input<6, 6, 4>);
instance!(input_f2_body(Windows) = transform_input<4, 4, 2>);
instance!(input_up_body(Windows) = transform_input<4, 4, 3>);
instance!(output_f4_body(Task) = transform_output<6, 4>);
instance!(output_f2_body(Task) = transform_output<4, 2>);

/// Frequencies of every window, all channels: of A x A pixels, STEP apart, F x F of them.
#[inline(always)]
unsafe fn transform_input<S: Simd, const A: usize, const F: usize, const STEP: usize>(
    windows: &Windows,
) {
    let Size { height, width } = windows.size;
    let depth = windows.blocks * BLOCK / S::PAIR;
    let mut patch = [0f32; 36 * BLOCK];
    for t in 0..windows.count {
        let tile = windows.first + t;
        // The window's rows and columns are `y0 - pad + 0..A`.
        let (y0, x0) = (tile / windows.tiles_x * STEP, tile % windows.tiles_x * STEP);
        let pad = windows.padding;
        let inside = y0.min(x0) >= pad && y0 - pad + A <= height && x0 - pad + A <= width;
        for block in 0..windows.blocks {
            // SAFETY: `inside` says that the window lies in the map; else only the part that does is
            // read, into a patch that is zero elsewhere; there is room for all that is written.
            unsafe {
                let map = windows.map.add(block * height * width * BLOCK);
                let (window, stride) = if inside {
                    (
                        map.add(((y0 - pad) * width + x0 - pad) * BLOCK),
                        width * BLOCK,
                    )
                } else {
                    copy_window::<A>(map, windows.size, [y0, x0], pad, &mut patch);
                    (patch.as_ptr(), A * BLOCK)
                };
                let out = windows.out.add(t * depth + block * BLOCK / S::PAIR);
                for lane in (0..BLOCK).step_by(S::LANES) {
                    let (window, out) = (window.add(lane), out.add(lane / S::PAIR));
                    transform_tile::<S, A, F>(window, stride, out, windows.stride);
                }
            }
        }
    }
}

/// The part of a window that lies in the map; the rest of the patch becomes zero.
#[inline(always)]
unsafe fn copy_window<const A: usize>(
    map: *const f32,
    size: Size,
    [y0, x0]: [usize; 2],
    padding: usize,
    patch: &mut [f32; 36 * BLOCK],
) {
    patch[..A * A * BLOCK].fill(0.0);
    for i in 0..A {
        for j in 0..A {
            // Before the map wraps around to far behind it.
            let (y, x) = (
                (y0 + i).wrapping_sub(padding),
                (x0 + j).wrapping_sub(padding),
            );
            if y < size.height && x < size.width {
                // SAFETY: inside the map, as just checked.
                let pixel = unsafe {
                    std::slice::from_raw_parts(map.add((y * size.width + x) * BLOCK), BLOCK)
                };
                patch[(i * A + j) * BLOCK..][..BLOCK].copy_from_slice(pixel);
            }
        }
    }
}

/// B^T d B, or a gradient's A d A^T, of one window and one vector of channels.
#[inline(always)]
unsafe fn transform_tile<S: Simd, const A: usize, const F: usize>(
    window: *const f32,
    stride: usize,
    out: *mut f32,
    out_stride: usize,
) {
    // SAFETY: the caller gives A x A pixels and room for F x F frequencies.
    unsafe {
        let mut rows = [[S::splat(0.0); A]; F];
        for j in 0..A {
            let mut column = [S::splat(0.0); A];
            for (i, value) in column.iter_mut().enumerate() {
                *value = S::load(window.add(i * stride + j * BLOCK));
            }
            let column = data_transform::<S, A, F>(column);
            for i in 0..F {
                rows[i][j] = column[i];
            }
        }
        for (i, row) in rows.into_iter().enumerate() {
            for (j, value) in data_transform::<S, A, F>(row).into_iter().enumerate() {
                S::store_operand(out.add((i * F + j) * out_stride), value);
            }
        }
    }
}

#[inline(always)]
unsafe fn products_body<S: Simd, const ROWS: usize, const WIDE: usize>(task: &Task) {
    let Windows {
        blocks,
        count,
        out,
        stride,
        ..
    } = task.windows;
    let depth = blocks * BLOCK / S::PAIR;
    let width = WIDE * S::LANES;
    for f in 0..task.frequencies {
        for panel in 0..task.columns / width {
            // SAFETY: V, U and M have these places; rows past the last tile repeat it and are not stored.
            unsafe {
                let weights = task.weights.add((f * task.columns + panel * width) * depth);
                let v = out.add(f * stride);
                let m = task.m.add(f * task.m_stride + panel * width);
                for t in (0..count).step_by(ROWS) {
                    let mut acc = [[S::splat(0.0); WIDE]; ROWS];
                    let rows =
                        std::array::from_fn(|r| v.add((t + r).min(count - 1) * depth).cast_const());
                    accumulate::<S, ROWS, WIDE>(&mut acc, rows, weights, depth);
                    for (r, row) in acc.iter().enumerate() {
                        if t + r < count {
                            for (w, &value) in row.iter().enumerate() {
                                S::store(m.add((t + r) * task.columns + w * S::LANES), value);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A^T M A with the epilogue, for the forms whose tile is STEP x STEP output pixels.
#[inline(always)]
unsafe fn transform_output<S: Simd, const A: usize, const STEP: usize>(task: &Task) {
    let Size { height, width } = task.full_size;
    let tiles_x = task.windows.tiles_x;
    for t in 0..task.windows.count {
        let tile = task.windows.first + t;
        let (y0, x0) = (tile / tiles_x * STEP, tile % tiles_x * STEP);
        let (rows, cols) = (STEP.min(height - y0), STEP.min(width - x0));
        for lane in (0..task.out_blocks * BLOCK).step_by(S::LANES) {
            // SAFETY: M has these places; only pixels of the output are written (`rows`, `cols`).
            unsafe {
                let m = task.m.add(t * task.columns + lane);
                let mut values = inverse_tile::<S, A, STEP>(m, task.m_stride);
                for row in &mut values {
                    for value in row {
                        *value = task.sink.activate::<S>(lane, *value);
                    }
                }
                if task.pool {
                    for i in (0..rows).step_by(2) {
                        for j in (0..cols).step_by(2) {
                            let top = S::add(values[i][j], values[i][j + 1]);
                            let bottom = S::add(values[i + 1][j], values[i + 1][j + 1]);
                            let mean = S::mul(S::add(top, bottom), S::splat(0.25));
                            task.sink.store::<S>(lane, (y0 + i) / 2, (x0 + j) / 2, mean);
                        }
                    }
                } else {
                    for (i, row) in values.iter().enumerate().take(rows) {
                        for (j, &value) in row.iter().enumerate().take(cols) {
                            task.sink.store::<S>(lane, y0 + i, x0 + j, value);
                        }
                    }
                }
            }
        }
    }
}

/// The same for [`Form::Up`]: position p of phase s is output pixel 2 p + 1 + s, p from -1.
#[inline(always)]
unsafe fn output_up_body<S: Simd, const ROWS: usize, const WIDE: usize>(task: &Task) {
    let Size { height, width } = task.sink.size;
    let tiles_x = task.windows.tiles_x;
    for t in 0..task.windows.count {
        let tile = task.windows.first + t;
        // 2 p + 1 of the tile's first position, moved by one so that it is never negative.
        let (y0, x0) = (tile / tiles_x * 6, tile % tiles_x * 6);
        for lane in (0..task.out_blocks * BLOCK).step_by(S::LANES) {
            for phase in 0..4 {
                // SAFETY: M has these places; only pixels of the output are written.
                unsafe {
                    let m = task
                        .m
                        .add(t * task.columns + phase * task.out_blocks * BLOCK + lane);
                    let values = inverse_tile::<S, 4, 3>(m, task.m_stride);
                    for (i, row) in values.iter().enumerate() {
                        for (j, &value) in row.iter().enumerate() {
                            let (y, x) = (y0 + 2 * i + phase / 2, x0 + 2 * j + phase % 2);
                            if (1..=height).contains(&y) && (1..=width).contains(&x) {
                                let value = task.sink.activate::<S>(lane, value);
                                task.sink.store::<S>(lane, y - 1, x - 1, value);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A^T M A of one tile and one vector of channels.
#[inline(always)]
unsafe fn inverse_tile<S: Simd, const A: usize, const STEP: usize>(
    m: *const f32,
    stride: usize,
) -> [[S::V; STEP]; STEP] {
    // SAFETY: the caller gives A x A frequencies.
    unsafe {
        let mut half = [[S::splat(0.0); A]; STEP];
        for j in 0..A {
            let mut column = [S::splat(0.0); A];
            for (i, value) in column.iter_mut().enumerate() {
                *value = S::load(m.add((i * A + j) * stride));
            }
            let column = output_transform::<S, A, STEP>(column);
            for i in 0..STEP {
                half[i][j] = column[i];
            }
        }
        let mut out = [[S::splat(0.0); STEP]; STEP];
        for i in 0..STEP {
            out[i] = output_transform::<S, A, STEP>(half[i]);
        }
        out
    }
}

/// The two finite points of F(4, 3) besides 0: +-P and +-Q.
const P: f32 = 0.625;
const Q: f32 = 1.5;

/// B^T d: coefficients of the products of (x - point) over all other points. Of a gradient, whose 4 pixels have 6 frequencies, A d:
/// the polynomial of these coefficients at the points.
#[inline(always)]
unsafe fn data_transform<S: Simd, const A: usize, const F: usize>(d: [S::V; A]) -> [S::V; F] {
    // SAFETY: the caller is compiled for the unit.
    unsafe {
        let mut out = [d[0]; F];
        if A == 6 {
            let (pp, qq) = (S::splat(P * P), S::splat(Q * Q));
            let (sum, product) = (S::splat(P * P + Q * Q), S::splat(P * P * Q * Q));
            let even_p = S::fnma(qq, d[2], d[4]);
            let odd_p = S::mul(S::splat(P), S::fnma(qq, d[1], d[3]));
            let even_q = S::fnma(pp, d[2], d[4]);
            let odd_q = S::mul(S::splat(Q), S::fnma(pp, d[1], d[3]));
            out[0] = S::fma(product, d[0], S::fnma(sum, d[2], d[4]));
            out[1] = S::add(even_p, odd_p);
            out[2] = S::sub(even_p, odd_p);
            out[3] = S::add(even_q, odd_q);
            out[4] = S::sub(even_q, odd_q);
            out[5] = S::fma(product, d[1], S::fnma(sum, d[3], d[5]));
        } else if F == 6 {
            let (pp, qq) = (S::splat(P * P), S::splat(Q * Q));
            let even_p = S::fma(pp, d[2], d[0]);
            let odd_p = S::mul(S::splat(P), S::fma(pp, d[3], d[1]));
            let even_q = S::fma(qq, d[2], d[0]);
            let odd_q = S::mul(S::splat(Q), S::fma(qq, d[3], d[1]));
            out[1] = S::add(even_p, odd_p);
            out[2] = S::sub(even_p, odd_p);
            out[3] = S::add(even_q, odd_q);
            out[4] = S::sub(even_q, odd_q);
            out[5] = d[3];
        } else {
            out[0] = S::sub(d[0], d[2]);
            out[1] = S::add(d[1], d[2]);
            out[2] = S::sub(d[2], d[1]);
            out[3] = S::sub(d[3], d[1]);
        }
        out
    }
}

/// A^T m: the values of the powers at the points.
#[inline(always)]
unsafe fn output_transform<S: Simd, const A: usize, const STEP: usize>(
    m: [S::V; A],
) -> [S::V; STEP] {
    // SAFETY: the caller is compiled for the unit.
    unsafe {
        let mut out = [m[0]; STEP];
        let (even_p, odd_p) = (S::add(m[1], m[2]), S::sub(m[1], m[2]));
        if A == 6 {
            let (even_q, odd_q) = (S::add(m[3], m[4]), S::sub(m[3], m[4]));
            out[0] = S::add(m[0], S::add(even_p, even_q));
            out[1] = S::fma(S::splat(P), odd_p, S::mul(S::splat(Q), odd_q));
            out[2] = S::fma(S::splat(P * P), even_p, S::mul(S::splat(Q * Q), even_q));
            let cubes = S::fma(S::splat(Q * Q * Q), odd_q, m[5]);
            out[3] = S::fma(S::splat(P * P * P), odd_p, cubes);
        } else {
            out[0] = S::add(m[0], even_p);
            out[1] = odd_p;
            if STEP == 2 {
                out[1] = S::add(odd_p, m[3]);
            } else {
                out[2] = S::add(even_p, m[3]);
            }
        }
        out
    }
}

/// G, one row of three taps for each frequency; for [`Form::Up`] one matrix for each parity, on the
/// taps of the doubled map: an odd output sees w0 + w1 and w2 on its two small pixels, an even one
/// w0 and w1 + w2.
fn taps(form: Form) -> [Vec<[f64; 3]>; 2] {
    let (p, q) = (f64::from(P), f64::from(Q));
    let rows = |points: &[f64], scale: &dyn Fn(usize) -> f64| -> Vec<[f64; 3]> {
        let finite = points
            .iter()
            .enumerate()
            .map(|(i, x)| [1.0, *x, x * x].map(|v| v / scale(i)));
        finite.collect()
    };
    match form {
        Form::F4 => {
            let near = 2.0 * p * p * (p * p - q * q);
            let far = 2.0 * q * q * (q * q - p * p);
            let scales = [p * p * q * q, near, near, far, far];
            let mut g = rows(&[0.0, p, -p, q, -q], &|i| scales[i]);
            g.push([0.0, 0.0, 1.0]);
            [g.clone(), g]
        }
        Form::F2 => {
            let mut g = rows(&[0.0, 1.0, -1.0], &|i| [1.0, 2.0, 2.0][i]);
            g.push([0.0, 0.0, 1.0]);
            [g.clone(), g]
        }
        Form::Up => {
            // Two taps (a, b) at the points 0, 1, -1, infinity.
            let two = [[1.0, 0.0], [0.5, 0.5], [0.5, -0.5], [0.0, 1.0]];
            let odd = two.map(|[a, b]| [a, a, b]).to_vec();
            let even = two.map(|[a, b]| [a, b, b]).to_vec();
            [odd, even]
        }
    }
}

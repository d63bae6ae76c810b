//! Training's convolutions of f32 by the kernels of the packed engine: forward and both gradients.
//!
//! A picture at a time is brought into blocks of sixteen channels, convolved by whichever kernel the engine would take (which for 3x3
//! means a quarter of the products), and brought back. The gradient of the input is the same with the kernel turned. That of the weight
//! is filtered too where it is 3x3 and maps are of some size ([`Gradient`]), else summed here: of a band of rows, which the caches hold, sixteen
//! channels of the input against some planes of the output.
//!
//! Sums are taken in an order that the sizes decide, whatever number of threads there is.

use std::ops::Range;
use std::sync::{Mutex, OnceLock, PoisonError};

use super::blocked::{Buffer, Channels, Size, pack_block, unpack_block};
use super::conv::{Conv, Epilogue, Spec};
use super::simd::{BLOCK, Isa, Simd, accumulate, kernel};
use super::thin::{self, Thin};
use super::threads::{Shared, Workers};
use super::unfold::Window;
use super::winograd::Gradient;

/// With fewer channels on both sides, blocks would be mostly padding.
const FEWEST: usize = 8;

/// Planes that are summed at once by the narrower units.
const PLANES: usize = 6;

/// Bytes of a band of both maps: half of a core's second-level cache.
const BAND: usize = 512 << 10;

/// Whether a convolution of so many channels is for these kernels.
pub(super) fn suits(window: Window, c_in: usize, c_out: usize) -> bool {
    window.stride == 1 && c_in.max(c_out) >= FEWEST
}

/// Whether [`correlate`] has less to do with input and output exchanged: one goes by blocks, the other by some planes at a time.
pub(super) fn better_turned(window: Window, c_in: usize, c_out: usize) -> bool {
    let products = |blocks: usize, planes: usize| {
        blocks.next_multiple_of(BLOCK) * planes.next_multiple_of(PLANES)
    };
    window.side != 3 && products(c_out, c_in) < products(c_in, c_out)
}

/// Threads, and memory for maps that is used again.
struct Engine {
    workers: Workers,
    input: Buffer,
    output: Buffer,
}

/// Brings a picture (c, h, w) into blocks; gives them.
fn blocks<'a>(workers: &Workers, planes: &[f32], size: Size, room: &'a mut Buffer) -> &'a [f32] {
    let blocks = (planes.len() / size.pixels()).div_ceil(BLOCK);
    room.grow(size.values(blocks));
    let packed = &mut room[..size.values(blocks)];
    let of_block = BLOCK * size.pixels();
    workers.rows(packed, size.values(1), |block, packed| {
        let first = block * of_block;
        let mine = first..(first + of_block).min(planes.len());
        pack_block(&planes[mine], packed);
    });
    packed
}

impl Engine {
    /// The process's own, while `work` lasts; others wait. So this is not for rayon's tasks: one that waits for
    /// another's end may be given a third, which would wait for it.
    fn with<T>(work: impl FnOnce(&mut Self) -> T) -> Option<T> {
        static ENGINE: OnceLock<Option<Mutex<Engine>>> = OnceLock::new();
        let engine = ENGINE.get_or_init(|| {
            let isa = Isa::detected().exact();
            let workers = Workers::with_isa(rayon::current_num_threads(), isa).ok()?;
            Some(Mutex::new(Self {
                workers,
                input: Buffer::default(),
                output: Buffer::default(),
            }))
        });
        let mut engine = engine
            .as_ref()?
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Some(work(&mut engine))
    }
}

/// Convolution of `x` (b, c, h, w) with stride one: (b, c_out, h', w'); `weight` is (c_out, c, k, k). None when no thread can be had.
pub(super) fn gather(
    x: &[f32],
    dims: [usize; 4],
    weight: &[f32],
    bias: Option<&[f32]>,
    c_out: usize,
    window: Window,
) -> Option<Vec<f32>> {
    let spec = Spec {
        kernel: window.side,
        padding: window.padding,
        upsample: false,
        relu: false,
    };
    let none = vec![0.0; c_out];
    let bias = bias.unwrap_or(&none);
    let keeps_size = window.side % 2 == 1 && window.padding == window.side / 2;
    if keeps_size && c_out <= thin::OUTS {
        return to_few(x, dims, weight, bias, spec);
    }
    convolve(x, dims, weight, bias, spec, false)
}

/// The same by what `spec` says; with `pool`, the means of 2x2 of that. None when no thread can be had.
pub(super) fn convolve(
    x: &[f32],
    [b, c, height, width]: [usize; 4],
    weight: &[f32],
    bias: &[f32],
    spec: Spec,
    pool: bool,
) -> Option<Vec<f32>> {
    let (c_out, size) = (bias.len(), Size { height, width });
    Engine::with(|engine| {
        let isa = engine.workers.isa;
        let conv = Conv::new(spec, weight, bias, &Channels::new(c), size, isa);
        let to = conv.output_size(size, pool);
        let length = to.values(c_out.div_ceil(BLOCK));
        let mut y = vec![0.0; b * c_out * to.pixels()];
        engine.output.grow(length);
        let pictures = x.chunks_exact((c * size.pixels()).max(1));
        for (x, y) in pictures.zip(y.chunks_exact_mut((c_out * to.pixels()).max(1))) {
            let input = blocks(&engine.workers, x, size, &mut engine.input);
            let output = &mut engine.output[..length];
            let epilogue = Epilogue {
                pool,
                ..Epilogue::default()
            };
            conv.run(&engine.workers, input, size, output, epilogue);
            let of_block = to.values(1);
            engine
                .workers
                .rows(y, BLOCK * to.pixels(), |block, planes| {
                    unpack_block(&output[block * of_block..][..of_block], planes);
                });
        }
        y
    })
}

/// The same to very few channels.
fn to_few(
    x: &[f32],
    [b, c, height, width]: [usize; 4],
    weight: &[f32],
    bias: &[f32],
    spec: Spec,
) -> Option<Vec<f32>> {
    let size = Size { height, width };
    Engine::with(|engine| {
        let isa = engine.workers.isa;
        let thin = Thin::new(spec, weight, bias, &Channels::new(c), isa);
        let of_result = bias.len() * size.pixels();
        let mut y = vec![0.0; b * of_result];
        let pictures = x.chunks_exact((c * size.pixels()).max(1));
        for (x, y) in pictures.zip(y.chunks_exact_mut(of_result.max(1))) {
            let input = blocks(&engine.workers, x, size, &mut engine.input);
            thin.run(&engine.workers, input, size, y);
        }
        y
    })
}

/// The gradient of a weight (c_out, c, k, k) whose convolution of `x` (b, c, h, w) with stride one has the gradient `grad`
/// (b, c_out, h', w'). None when no thread can be had.
pub(super) fn correlate(
    grad: &[f32],
    c_out: usize,
    x: &[f32],
    dims: [usize; 4],
    window: Window,
    (ho, wo): (usize, usize),
) -> Option<Vec<f32>> {
    let [_, c, height, width] = dims;
    let (k, size) = (window.side, Size { height, width });
    let to = Size {
        height: ho,
        width: wo,
    };
    if Gradient::suits(k, window.padding, to) {
        return by_filtering(grad, x, [c, c_out], [size, to], window.padding);
    }
    let in_blocks = c.div_ceil(BLOCK);
    Engine::with(|engine| {
        // A job is a row of the kernel for some planes of the output and a block of the input.
        let group = c_out.div_ceil(2).next_multiple_of(12).min(60);
        let groups = c_out.div_ceil(group);
        let of_job = group * k * BLOCK;
        let mut sums = Buffer::zeroed(in_blocks * k * groups * of_job);
        let into = Shared(sums.as_mut_ptr());
        let rows = (BAND / (4 * width * (BLOCK + c_out))).clamp(1, ho.max(1));
        let pictures = x.chunks_exact((c * size.pixels()).max(1));
        for (x, grad) in pictures.zip(grad.chunks_exact((c_out * ho * wo).max(1))) {
            let input = blocks(&engine.workers, x, size, &mut engine.input);
            let isa = engine.workers.isa;
            for first in (0..ho).step_by(rows) {
                let rows = first..(first + rows).min(ho);
                // Planes lie a power of two apart, where caches would keep few of them; in the band they do not.
                let stride = rows.len() * wo + BLOCK;
                engine.output.grow(c_out * stride);
                let band = &mut engine.output[..c_out * stride];
                engine.workers.rows(band, stride, |plane, band| {
                    let part = &grad[(plane * ho + rows.start) * wo..][..rows.len() * wo];
                    band[..part.len()].copy_from_slice(part);
                });
                let band = &engine.output[..c_out * stride];
                engine.workers.each(in_blocks * k * groups, |job| {
                    let (block, ky, part) = (job / groups / k, job / groups % k, job % groups);
                    let task = Task {
                        input: &input[block * size.values(1)..][..size.values(1)],
                        size,
                        grad: band,
                        stride,
                        width: wo,
                        window,
                        ky,
                        planes: part * group..((part + 1) * group).min(c_out),
                        rows: rows.clone(),
                    };
                    // SAFETY: a job has sums of its own, as many as were made for each.
                    let sums = unsafe {
                        std::slice::from_raw_parts_mut(into.get().add(job * of_job), of_job)
                    };
                    // SAFETY: the instruction set is one of this machine's, by who made the workers; maps have the lengths that
                    // their sizes ask for.
                    unsafe { products(isa, &task, sums) };
                });
            }
        }
        let mut weights = vec![0.0; c_out * c * k * k];
        engine.workers.rows(&mut weights, k, |i, row| {
            let (o, channel, ky) = (i / (c * k), i / k % c, i % k);
            let job = (channel / BLOCK * k + ky) * groups + o / group;
            let at = job * of_job + o % group * k * BLOCK + channel % BLOCK;
            for (kx, weight) in row.iter_mut().enumerate() {
                *weight = sums[at + kx * BLOCK];
            }
        });
        weights
    })
}

/// The same with fewer products.
fn by_filtering(
    grad: &[f32],
    x: &[f32],
    channels: [usize; 2],
    sizes: [Size; 2],
    padding: usize,
) -> Option<Vec<f32>> {
    Engine::with(|engine| {
        let mut gradient = Gradient::new(channels, sizes, padding, engine.workers.isa);
        let of_picture = |which: usize| channels[which] * sizes[which].pixels();
        let pictures = x.chunks_exact(of_picture(0));
        for (x, grad) in pictures.zip(grad.chunks_exact(of_picture(1))) {
            let input = blocks(&engine.workers, x, sizes[0], &mut engine.input);
            let grad = blocks(&engine.workers, grad, sizes[1], &mut engine.output);
            gradient.add(&engine.workers, input, grad);
        }
        gradient.weight(&engine.workers)
    })
}

/// A job's part of a weight's gradient, of a band of rows.
struct Task<'a> {
    /// A block of the input.
    input: &'a [f32],
    size: Size,
    /// The band's part of all planes of the output's gradient.
    grad: &'a [f32],
    /// From plane to plane.
    stride: usize,
    /// Of the output.
    width: usize,
    window: Window,
    /// Row of the kernel.
    ky: usize,
    planes: Range<usize>,
    /// Of the output.
    rows: Range<usize>,
}

kernel!(
    /// Adds to the sums (plane, column of the kernel, channel of the block).
    products(task: &Task<'_>, sums: &mut [f32]) = products_body
);

#[inline(always)]
unsafe fn products_body<S: Simd, const ROWS: usize, const WIDE: usize>(
    task: &Task<'_>,
    sums: &mut [f32],
) {
    // SAFETY: the caller's promises.
    unsafe {
        if WIDE * S::LANES == BLOCK {
            tiles::<S, ROWS, WIDE>(task, sums);
        } else {
            tiles::<S, ROWS, 1>(task, sums);
        }
    }
}

#[inline(always)]
unsafe fn tiles<S: Simd, const ROWS: usize, const WIDE: usize>(task: &Task<'_>, sums: &mut [f32]) {
    debug_assert_eq!(WIDE * S::LANES, BLOCK);
    let Size { height, width } = task.size;
    let (wo, padding, k) = (task.width, task.window.padding, task.window.side);
    for first in task.planes.clone().step_by(ROWS) {
        for kx in 0..k {
            // Pixels of the output whose tap lies in the picture.
            let from = padding.saturating_sub(kx).min(wo);
            let end = (width + padding).saturating_sub(kx).clamp(from, wo);
            // SAFETY: rows and pixels are in both maps, as was checked; planes past the last are read as the last.
            unsafe {
                let mut acc = [[S::splat(0.0); WIDE]; ROWS];
                for y in task.rows.clone() {
                    let row = (y + task.ky).wrapping_sub(padding);
                    if row >= height || from == end {
                        continue;
                    }
                    let grad: [*const f32; ROWS] = std::array::from_fn(|r| {
                        let plane = (first + r).min(task.planes.end - 1);
                        let at = plane * task.stride + (y - task.rows.start) * wo + from;
                        task.grad.as_ptr().add(at)
                    });
                    let at = row * width + from + kx - padding;
                    let pixels = task.input.as_ptr().add(at * BLOCK);
                    accumulate::<S, ROWS, WIDE>(&mut acc, grad, pixels, end - from);
                }
                for (r, acc) in acc.iter().enumerate().take(task.planes.end - first) {
                    let place = (first - task.planes.start + r) * k + kx;
                    for (w, &acc) in acc.iter().enumerate() {
                        let sum = sums.as_mut_ptr().add(place * BLOCK + w * S::LANES);
                        S::store(sum, S::add(S::load(sum), acc));
                    }
                }
            }
        }
    }
}

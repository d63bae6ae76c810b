//! Bilinear sampling with half-pixel centres, the one kind the compositor uses, on the CPU.
//!
//! Positions are in pixels with 0 at the first pixel's centre; beyond the outermost centres the
//! outermost pixel goes on. The same arithmetic is in `shaders/warp.wgsl`.

/// 1.5 * 2^23: adding it to a number of less than 2^22 leaves the nearest whole number in the lowest
/// bits, which is faster than a checked cast.
const MAGIC: f32 = 12_582_912.0;

/// Where a pixel of the destination lies between two of the source.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tap {
    pub(super) low: usize,
    pub(super) high: usize,
    /// Weight of `high`, 0..=1.
    pub(super) weight: f32,
}

impl Tap {
    /// The pixels around `position` of `length` pixels; `length` is at least 1.
    #[inline(always)]
    pub(super) fn at(position: f32, length: usize) -> Self {
        let last = length - 1;
        let position = position.clamp(0.0, last as f32);
        // The whole number below, or at a whole number perhaps the one before with weight 1.
        let low = position - 0.5 + MAGIC;
        let index = (low.to_bits() & 0x003f_ffff) as usize;
        Self {
            low: index,
            high: (index + 1).min(last),
            weight: position - (low - MAGIC),
        }
    }
}

/// The taps that bring `from` pixels to `to`.
pub(super) fn resize_taps(taps: &mut Vec<Tap>, from: u32, to: u32) {
    taps.clear();
    taps.extend((0..to).map(|i| {
        let position = (i as f32 + 0.5) * from as f32 / to as f32 - 0.5;
        Tap::at(position, from as usize)
    }));
}

/// `a` at 0, `b` at 1.
#[inline(always)]
pub(super) fn lerp<const N: usize>(a: [f32; N], b: [f32; N], t: f32) -> [f32; N] {
    std::array::from_fn(|i| a[i] + (b[i] - a[i]) * t)
}

/// Bytes as numbers.
#[inline(always)]
pub(super) fn widen(p: [u8; 4]) -> [f32; 4] {
    p.map(f32::from)
}

/// The nearest bytes, ties to even, cut to 0..=255.
#[inline(always)]
pub(super) fn narrow(v: [f32; 4]) -> [u8; 4] {
    v.map(|x| (x.clamp(0.0, 255.0) + MAGIC).to_bits() as u8)
}

/// Rounded as [`narrow`] rounds, still as numbers.
#[inline(always)]
pub(super) fn round_level(v: [f32; 4]) -> [f32; 4] {
    v.map(|x| (x.clamp(0.0, 255.0) + MAGIC) - MAGIC)
}

/// A rectangle of a picture that is sampled as if it were all of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window<'a> {
    /// The rectangle's first pixel and all that follow it in the picture.
    pub(super) pixels: &'a [[u8; 4]],
    /// Pixels from one row of the picture to the next.
    pub(super) stride: usize,
    pub(super) width: usize,
    pub(super) height: usize,
}

impl Window<'_> {
    #[inline(always)]
    pub(super) fn bilinear(&self, x: f32, y: f32) -> [f32; 4] {
        let (x, y) = (Tap::at(x, self.width), Tap::at(y, self.height));
        let (top, bottom) = (y.low * self.stride, y.high * self.stride);
        let [a, b] = [x.low, x.high].map(|x| widen(self.pixels[top + x]));
        let [c, d] = [x.low, x.high].map(|x| widen(self.pixels[bottom + x]));
        lerp(lerp(a, b, x.weight), lerp(c, d, x.weight), y.weight)
    }
}

/// A whole row between two rows.
#[inline(always)]
pub(super) fn lerp_rows<const N: usize>(
    grid: &[[f32; N]],
    width: usize,
    tap: Tap,
    row: &mut [[f32; N]],
) {
    let low = &grid[tap.low * width..][..width];
    let high = &grid[tap.high * width..][..width];
    for ((out, &a), &b) in row.iter_mut().zip(low).zip(high) {
        *out = lerp(a, b, tap.weight);
    }
}

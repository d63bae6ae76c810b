//! The packed layout of the CPU engine: `[channels / 16][height][width][16]`, f32, 64-byte aligned.
//!
//! Sixteen neighbouring channels of one pixel are one cache line and one, two or four vectors, so no
//! kernel ever shuffles. Channels that do not fill a block are padded with zeros. There is no halo:
//! kernels treat the border themselves, which lets every buffer be used for any layer.
//! A concatenation is two runs of blocks behind each other, each padded on its own ([`Channels`]).

use std::mem::MaybeUninit;

use super::simd::BLOCK;

/// One block of one pixel.
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; BLOCK]);

/// A zeroed, 64-byte aligned run of f32 of whole blocks.
#[derive(Default)]
pub struct Buffer(Vec<Line>);

impl Clone for Buffer {
    /// On large pages again.
    fn clone(&self) -> Self {
        Self::from_slice(self)
    }
}

impl Buffer {
    /// `len` zeros, rounded up to a whole block.
    pub fn zeroed(len: usize) -> Self {
        let lines = len.div_ceil(BLOCK);
        let mut memory = Vec::with_capacity(lines);
        want_large_pages(memory.spare_capacity_mut());
        memory.resize(lines, Line::default());
        Self(memory)
    }

    /// The values, padded with zeros to a whole block.
    pub fn from_slice(values: &[f32]) -> Self {
        let mut buffer = Self::zeroed(values.len());
        buffer[..values.len()].copy_from_slice(values);
        buffer
    }

    /// Makes room for at least `len` values; what is there keeps its place.
    pub fn grow(&mut self, len: usize) {
        if self.len() < len {
            let mut larger = Self::zeroed(len);
            larger[..self.len()].copy_from_slice(self);
            *self = larger;
        }
    }
}

/// Asks for pages of 2 MiB where nothing has been written yet: a layer's weights and scratch are
/// thousands of small ones, more than the processor keeps the places of. A refusal costs time alone.
fn want_large_pages(memory: &mut [MaybeUninit<Line>]) {
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 4096;
        const LARGE: usize = 2 << 20;
        let bytes = memory.as_mut_ptr_range();
        let start = bytes.start.addr().next_multiple_of(PAGE);
        let end = bytes.end.addr() / PAGE * PAGE;
        if end.saturating_sub(start) >= LARGE {
            let first = bytes.start.with_addr(start);
            // SAFETY: whole pages of memory that this process owns; the advice changes no content.
            unsafe { libc::madvise(first.cast(), end - start, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

impl std::ops::Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        bytemuck::cast_slice(&self.0)
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} f32)", self.len())
    }
}

/// Which channels lie where: the runs of a concatenation, each padded to whole blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Channels(Vec<usize>);

impl Channels {
    /// One run of `count` channels.
    pub fn new(count: usize) -> Self {
        Self(vec![count])
    }

    /// Two tensors concatenated along the channels.
    pub fn concat(first: usize, second: usize) -> Self {
        Self(vec![first, second])
    }

    /// Channels that mean something.
    pub fn count(&self) -> usize {
        self.0.iter().sum()
    }

    /// Blocks of 16 they take.
    pub fn blocks(&self) -> usize {
        self.0.iter().map(|run| run.div_ceil(BLOCK)).sum()
    }

    /// For each padded place, the channel that lies there.
    pub fn places(&self) -> Vec<Option<usize>> {
        let mut places = Vec::with_capacity(self.blocks() * BLOCK);
        let mut next = 0;
        for &run in &self.0 {
            let padded = run.next_multiple_of(BLOCK);
            places.extend((0..padded).map(|i| (i < run).then(|| next + i)));
            next += run;
        }
        places
    }

    /// For each block, how many of its 16 places are channels (the rest is padding at its end).
    pub fn fill(&self) -> Vec<usize> {
        self.0
            .iter()
            .flat_map(|&run| (0..run.div_ceil(BLOCK)).map(move |b| (run - b * BLOCK).min(BLOCK)))
            .collect()
    }
}

/// Height and width of a feature map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl Size {
    /// A square.
    pub const fn square(side: usize) -> Self {
        Self {
            height: side,
            width: side,
        }
    }

    /// Pixels.
    pub const fn pixels(self) -> usize {
        self.height * self.width
    }

    /// Values in `blocks` blocks of this size.
    pub const fn values(self, blocks: usize) -> usize {
        blocks * self.pixels() * BLOCK
    }
}

/// Packs a (c, h, w) tensor.
pub fn pack(planar: &[f32], channels: &Channels, size: Size) -> Buffer {
    let mut packed = Buffer::zeroed(size.values(channels.blocks()));
    let mut planes = planar;
    for (block, fill) in packed.chunks_mut(size.values(1)).zip(channels.fill()) {
        let (mine, rest) = planes.split_at(fill * size.pixels());
        pack_block(mine, block);
        planes = rest;
    }
    packed
}

/// The (c, h, w) tensor of a packed one.
pub fn unpack(packed: &[f32], channels: &Channels, size: Size) -> Vec<f32> {
    let mut planar = vec![0.0; channels.count() * size.pixels()];
    let mut planes = &mut planar[..];
    for (block, fill) in packed.chunks(size.values(1)).zip(channels.fill()) {
        let (mine, rest) = planes.split_at_mut(fill * size.pixels());
        unpack_block(block, mine);
        planes = rest;
    }
    planar
}

/// Up to sixteen planes into their block; what they do not fill becomes zero.
pub(super) fn pack_block(planes: &[f32], block: &mut [f32]) {
    let (pixels, _) = block.as_chunks_mut::<BLOCK>();
    let count = pixels.len();
    let fill = planes.len() / count.max(1);
    if fill < BLOCK {
        pixels.fill([0.0; BLOCK]);
    }
    // A cache line of each plane at a time.
    for first in (0..count).step_by(BLOCK) {
        let pixels = &mut pixels[first..(first + BLOCK).min(count)];
        for c in 0..fill {
            let plane = &planes[c * count + first..][..pixels.len()];
            for (pixel, &value) in pixels.iter_mut().zip(plane) {
                pixel[c] = value;
            }
        }
    }
}

/// The planes of a block, as many as there is room for.
pub(super) fn unpack_block(block: &[f32], planes: &mut [f32]) {
    let (pixels, _) = block.as_chunks::<BLOCK>();
    let count = pixels.len();
    for first in (0..count).step_by(BLOCK) {
        let pixels = &pixels[first..(first + BLOCK).min(count)];
        for c in 0..planes.len() / count {
            let plane = &mut planes[c * count + first..][..pixels.len()];
            for (value, pixel) in plane.iter_mut().zip(pixels) {
                *value = pixel[c];
            }
        }
    }
}

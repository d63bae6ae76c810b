//! How a card makes a convolution: by which kernel, and cut into which blocks.

use std::borrow::Cow;

use candle_core::{DType, Result, Tensor, bail};

use super::convolution::Then;
use super::weight::Weight;
use super::{Map, UNIT};
use crate::ops::fused::{Block, Fetched, Fused, Launch, Params, flags};

/// One convolution as it is to be made.
pub(super) struct Job<'a> {
    /// The likeliest first.
    pub(super) forms: Vec<Form<'a>>,
    /// Of the result.
    pub(super) shape: [usize; 4],
    pub(super) dtype: DType,
    pub(super) maps: &'a [&'a Map],
    pub(super) bias: &'a Tensor,
    pub(super) then: Then<'a>,
}

/// What it is to the kernels: by a kernel as it is, or after an enlargement by four that are folded.
pub(super) struct Form<'a> {
    pub(super) params: Params,
    pub(super) by: &'a Weight,
}

/// How a convolution is cut into blocks: which of its forms and of [`TILES`], and into how many parts its sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) form: usize,
    pub(super) tile: usize,
    pub(super) parts: usize,
}

/// Pixels by features that a block of threads computes, by a kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tile {
    pub(super) kernel: &'static str,
    pixels: usize,
    features: usize,
    by: By,
}

/// Which kernels.
#[derive(Clone, Copy, Debug)]
enum By {
    /// `shaders/cuda/tensor_cores.cu`.
    Threads,
    /// `warpgroups.cu`, with so many boxes of pixels and weights in shared memory: of two-byte elements, and of f32 where there is
    /// such a kernel.
    Groups { halves: usize, f32: Option<usize> },
    /// `narrow.cu`: of two-byte elements, for kernels of this side alone, and no mean is taken.
    Rows { side: usize },
}

pub(super) const TILES: [Tile; 10] = [
    Tile::new("tensor_cores/convolve_128x128", 128, 128, By::Threads),
    Tile::new("tensor_cores/convolve_128x64", 128, 64, By::Threads),
    Tile::new("tensor_cores/convolve_64x64", 64, 64, By::Threads),
    Tile::new("tensor_cores/convolve_128x16", 128, 16, By::Threads),
    Tile::groups("warpgroups/convolve_box_128x256", 256, 4, None),
    Tile::groups("warpgroups/convolve_box_128x128", 128, 3, Some(6)),
    Tile::groups("warpgroups/convolve_deep_128x128", 128, 6, None),
    Tile::groups("warpgroups/convolve_box_128x64", 64, 3, Some(4)),
    Tile::new("narrow/narrow_7x7x8", 128, 8, By::Rows { side: 7 }),
    Tile::new("narrow/narrow_7x7x16", 128, 16, By::Rows { side: 7 }),
];

/// As the kernels have them: threads of a block that multiplies, and the pixels of the result that `narrow.cu` computes at once.
const THREADS: u32 = 128;
const THREADS_OF_GROUPS: u32 = 288;
const ACROSS: usize = 16;
const DOWN: usize = 8;

/// Threads of a block that puts sums together, and how many of them read parts of the same sums: as the kernel has them.
const FINISHERS: u32 = 256;
const MOST_READERS: usize = 8;

impl Tile {
    const fn new(kernel: &'static str, pixels: usize, features: usize, by: By) -> Self {
        Self {
            kernel,
            pixels,
            features,
            by,
        }
    }

    const fn groups(
        kernel: &'static str,
        features: usize,
        halves: usize,
        f32: Option<usize>,
    ) -> Self {
        Self::new(kernel, 128, features, By::Groups { halves, f32 })
    }

    /// Of a block.
    fn threads(&self) -> u32 {
        match self.by {
            By::Threads | By::Rows { .. } => THREADS,
            By::Groups { .. } => THREADS_OF_GROUPS,
        }
    }

    /// Whether there is a kernel for elements of a type.
    pub(super) fn takes(&self, dtype: DType) -> bool {
        match self.by {
            By::Threads => true,
            By::Groups { f32, .. } => dtype != DType::F32 || f32.is_some(),
            By::Rows { .. } => dtype != DType::F32,
        }
    }
}

impl Form<'_> {
    /// Rows of the product of matrices: pixels of all pictures.
    fn rows(&self) -> usize {
        let [b, ho, wo] = [self.params.outputs, self.params.ho, self.params.wo].map(|n| n as usize);
        match self.params.has(flags::POOLED) {
            true => b * (ho / 2) * (wo / 2) * 4,
            false => b * ho * wo,
        }
    }

    /// Steps that sums of elements of `size` bytes take, which can be parted among blocks.
    fn steps(&self, tile: &Tile, size: usize) -> usize {
        let p = &self.params;
        let [first, second, side] = [p.channels, p.second, p.count].map(|n| n as usize);
        let boxes = |depth| first.div_ceil(depth) + second.div_ceil(depth);
        match tile.by {
            // Of 64 bytes.
            By::Threads => (side * side * (first + second) * size).div_ceil(64),
            By::Groups { .. } => side * side * boxes(Fetched::WIDTH / size),
            By::Rows { side } => side * boxes(Fetched::WIDTH / size),
        }
    }

    fn blocks(&self, tile: &Tile, parts: usize) -> usize {
        let of_pixels = match tile.by {
            By::Threads => self.rows().div_ceil(tile.pixels),
            By::Groups { .. } => self.boxes(self.sides_of_box()),
            By::Rows { .. } => self.boxes([ACROSS as u32, DOWN as u32, 1]),
        };
        let of_features = (self.params.features as usize).div_ceil(tile.features);
        of_pixels * of_features * self.params.phases() as usize * parts
    }

    /// How many boxes of pixels in x and y, and pictures, the result is.
    fn boxes(&self, of: [u32; 3]) -> usize {
        let p = &self.params;
        let counts = [p.wo, p.ho, p.outputs].into_iter().zip(of);
        counts.map(|(n, side)| n.div_ceil(side) as usize).product()
    }

    /// Pixels of a box in x and y, and pictures, 128 in all: those that waste the fewest, and of these the squarest.
    fn sides_of_box(&self) -> [u32; 3] {
        // Those of a mean lie in one.
        let least = u32::from(self.params.has(flags::POOLED));
        let shapes = (least..=7).flat_map(|w| (least..=7 - w).map(move |h| (w, h)));
        let shapes = shapes.map(|(w, h)| [1 << w, 1 << h, 1 << (7 - w - h)]);
        let best = shapes.min_by_key(|&of| (self.boxes(of), of[2], of[0].abs_diff(of[1])));
        best.unwrap_or([16, 8, 1])
    }

    /// Whether a tile would not be half empty.
    fn suits(&self, tile: &Tile) -> bool {
        let features = self.params.features as usize;
        let filled = features > tile.features / 2;
        match tile.by {
            By::Rows { .. } => filled,
            _ if tile.features == 16 => features <= 16,
            By::Threads if tile.pixels == 64 => true,
            _ => features > 16 && (filled || tile.features == 64),
        }
    }

    /// What is fetched for a tile's blocks; elements are of `size` bytes, and a tap has `summed` of weights.
    fn fetched(&self, tile: &Tile, size: usize, summed: usize) -> Option<Fetched> {
        // Boxes begin at multiples of 1024 bytes.
        const START: usize = 1024;
        let box_of = |n: usize| (n * Fetched::WIDTH).next_multiple_of(START);
        let features = tile.features as u32;
        let (pixels, weights, bytes) = match tile.by {
            By::Threads => return None,
            By::Groups { halves, f32 } => {
                let stages = f32.filter(|_| size == 4).unwrap_or(halves);
                let bytes = stages * box_of(tile.pixels + tile.features);
                (self.sides_of_box(), [1, 1, features], bytes)
            }
            By::Rows { side } => {
                let [across, down] = [ACROSS, DOWN].map(|n| n + side - 1);
                let bytes = box_of(across * down) + 2 * box_of(side * tile.features);
                let pixels = [across as u32, down as u32, 1];
                (pixels, [1, side as u32, features], bytes)
            }
        };
        Some(Fetched {
            pixels,
            weights,
            summed: summed as u32,
            shared: (bytes + START) as u32,
        })
    }
}

impl Job<'_> {
    /// Whether a tile's kernel can make it in a form.
    pub(super) fn can_be(&self, form: &Form<'_>, tile: &Tile) -> bool {
        let p = &form.params;
        let boxes = super::fetches(self.bias.device()) && !p.has(flags::DOUBLED);
        tile.takes(self.dtype)
            && match tile.by {
                By::Threads => true,
                By::Groups { .. } => boxes,
                By::Rows { side } => {
                    let narrow = p.features as usize <= tile.features;
                    let plain = !p.has(flags::FOLDED) && !p.has(flags::POOLED);
                    boxes && narrow && plain && p.count as usize == side
                }
            }
    }

    /// The ways that are worth trying, the likeliest first.
    pub(super) fn cuts(&self) -> Vec<Cut> {
        let mut cuts = Vec::new();
        for (n, form) in self.forms.iter().enumerate() {
            let tiles = TILES.iter().enumerate();
            for (tile, of) in tiles.filter(|(_, of)| self.can_be(form, of) && form.suits(of)) {
                let by_threads = matches!(of.by, By::Threads);
                if n > 0 && by_threads {
                    continue;
                }
                let steps = form.steps(of, self.dtype.size_in_bytes());
                let least = if by_threads { 4 } else { 1 };
                for parts in [1, 2, 4, 8, 16, 32] {
                    let blocks = form.blocks(of, parts);
                    if parts == 1 || (steps >= least * parts && blocks <= 1024) {
                        // A card has some hundred multiprocessors, each with room for a few blocks.
                        let unlikely = blocks.abs_diff(256);
                        let form = n;
                        cuts.push((unlikely, Cut { form, tile, parts }));
                    }
                }
            }
        }
        cuts.sort_by_key(|&(unlikely, _)| unlikely);
        cuts.into_iter().map(|(_, cut)| cut).collect()
    }

    pub(super) fn launched(&self) -> Result<Tensor> {
        self.launch(self.cut()?)
    }

    fn cut(&self) -> Result<Cut> {
        #[cfg(test)]
        #[cfg(unix)]
        if let Some(asked) = super::tests::asked_cut() {
            return Ok(asked);
        }
        #[cfg(feature = "cuda")]
        if self.bias.device().is_cuda() {
            return super::tune::best(self);
        }
        let cuts = self.cuts();
        cuts.first().copied().ok_or_else(|| {
            let message = "a convolution that no kernel makes";
            candle_core::Error::msg(message)
        })
    }

    /// What the choice of a cut depends on.
    #[cfg(feature = "cuda")]
    pub(super) fn key(&self) -> (Vec<Params>, DType, [bool; 2]) {
        let then = [self.then.summand.is_some(), self.then.norm.is_some()];
        let forms = self.forms.iter().map(|form| form.params).collect();
        (forms, self.dtype, then)
    }

    #[cfg(feature = "cuda")]
    pub(super) fn device(&self) -> &candle_core::Device {
        self.bias.device()
    }

    #[cfg(feature = "cuda")]
    pub(super) fn any_tensor(&self) -> &Tensor {
        self.bias
    }

    pub(super) fn launch(&self, cut: Cut) -> Result<Tensor> {
        let (form, tile) = (&self.forms[cut.form], &TILES[cut.tile]);
        let twice = usize::from(self.then.norm.is_some());
        let [b, ho, wo, features] = self.shape;
        let to = if self.then.wide {
            DType::F32
        } else {
            self.dtype
        };
        let whole = (vec![b << twice, ho, wo, features], to);
        let of_parts = vec![
            cut.parts * form.params.phases() as usize,
            form.rows(),
            features,
        ];
        let (bias, norm) = (Some(self.bias), self.then.norm);
        let summand = self.then.summand.map(|map| map.data());
        let mut params = Params {
            parts: cut.parts as u32,
            ..form.params
        };
        let weight = match (tile.by, self.dtype) {
            (By::Groups { .. }, DType::F32) => {
                let Some(pairs) = &form.by.pairs else {
                    bail!("{}: no weights for f32", tile.kernel);
                };
                params.real = pairs.scale;
                &pairs.packed
            }
            _ => &form.by.packed,
        };
        let fetched = form.fetched(tile, self.dtype.size_in_bytes(), weight.dim(3)?);
        if let (By::Groups { .. }, Some(fetched)) = (tile.by, &fetched) {
            [params.tile_w, params.tile_h, _] = fetched.pixels.map(u32::ilog2);
        }
        let (shape, to) = match cut.parts {
            1 => whole.clone(),
            _ => (of_parts, DType::F32),
        };
        let blocks = form.blocks(tile, cut.parts);
        let mut launch = Launch::new(tile.kernel, self.dtype, blocks, shape)?;
        launch.block = Block::Of(tile.threads());
        launch.fetched = fetched;
        launch.to = to;
        launch.params = Params {
            threads: launch.params.threads,
            ..params
        };
        let input = self.maps.first().map(|map| map.data());
        let second = self.maps.get(1).map(|map| map.data());
        let (summand_here, norm_here) = match cut.parts {
            1 => (summand, norm),
            _ => (None, None),
        };
        let sums = Fused {
            launch,
            plain: by_cards_alone,
        }
        .run_with(&[input, Some(weight), bias, second, summand_here, norm_here])?;
        if cut.parts == 1 {
            return Ok(sums);
        }
        let places: usize = self.shape[..3].iter().product();
        let (shape, to) = whole;
        // Several threads read the parts of what one of them stores.
        let at_once = FINISHERS as usize / cut.parts.min(MOST_READERS);
        let blocks = (places * features / UNIT).div_ceil(at_once);
        let mut launch = Launch::new("tensor_cores/finish", self.dtype, blocks, shape)?;
        launch.block = Block::Of(FINISHERS);
        launch.to = to;
        launch.params = Params {
            threads: launch.params.threads,
            ..params
        };
        Fused {
            launch,
            plain: by_cards_alone,
        }
        .run_with(&[Some(&sums), None, bias, None, summand, norm])
    }
}

pub(super) fn by_cards_alone(_: &Params, _: &[Cow<'_, [f32]>]) -> Vec<f32> {
    Vec::new()
}

//! Maps of features as a graphics card wants them, and what the networks do with them: the kernels of `shaders/cuda/maps.cu` and
//! `tensor_cores.cu`.
//!
//! A map is (b, h, w, features): what tensor cores multiply lies side by side. Everything around a convolution is part of it: an
//! enlargement by two and the concatenation of two maps before it, bias, relu, the mean of 2x2 pixels, a summand and the norm of the
//! next block after it. Sums are f32. In f32 tensor cores multiply each number as two of 11 bits.
//!
//! As the ops of [`fused`](super::fused), each is also a plain function on the CPU.

mod convolution;
mod job;
mod motion;
#[cfg(test)]
#[cfg(unix)]
mod tests;
#[cfg(feature = "cuda")]
mod tune;
mod weight;

use std::borrow::Cow;

use candle_core::{DType, Device, Result, Tensor, bail};

use super::fused::{Block, Fused, Launch, Params};

pub use convolution::{Convolution, Depthwise, Then};
pub use motion::{Heads, decide, follow, motions, points};

/// Features of a pixel come in units of so many.
const UNIT: usize = 8;

/// Whether a device has what the kernels need: the CPU, where they are plain functions, and NVIDIA's cards from compute capability
/// 8.0 on (2020).
pub fn runs_on(device: &Device) -> bool {
    match device {
        Device::Cpu => true,
        #[cfg(feature = "cuda")]
        Device::Cuda(card) => card
            .cuda_stream()
            .context()
            .compute_capability()
            .is_ok_and(|(major, _)| major >= 8),
        _ => false,
    }
}

/// Whether a device has what the kernels need that fetch boxes: cards of compute capability 9.0 and, where tests run them, the CPU.
fn fetches(device: &Device) -> bool {
    match device {
        Device::Cpu => cfg!(test),
        #[cfg(feature = "cuda")]
        Device::Cuda(card) => {
            let capability = card.cuda_stream().context().compute_capability();
            capability.is_ok_and(|is| is == (9, 0))
        }
        _ => false,
    }
}

/// Features of the pixels of a batch of pictures.
#[derive(Clone, Debug)]
pub struct Map {
    /// (b, h, w, features padded to a multiple of 8), contiguous; what is padded is zero.
    data: Tensor,
    channels: usize,
}

impl Map {
    /// The tensor of a map of `channels` features: (b, h, w, features padded to a multiple of 8), the last of them zero.
    ///
    /// # Errors
    /// When it has another number of features.
    pub fn new(data: Tensor, channels: usize) -> Result<Self> {
        let (_, _, _, padded) = data.dims4()?;
        if padded != padded_to(channels) {
            bail!("a map of {channels} features is not {:?}", data.dims());
        }
        Ok(Self {
            data: data.contiguous()?,
            channels,
        })
    }

    /// Of planes (b, c, h, w).
    pub fn from_planes(planes: &Tensor) -> Result<Self> {
        let (_, channels, _, _) = planes.dims4()?;
        let data = planes.permute((0, 2, 3, 1))?.contiguous()?;
        let more = padded_to(channels) - channels;
        Self::new(data.pad_with_zeros(3, 0, more)?, channels)
    }

    /// As planes (b, c, h, w).
    pub fn to_planes(&self) -> Result<Tensor> {
        let features = self.data.narrow(3, 0, self.channels)?;
        features.permute((0, 3, 1, 2))?.contiguous()
    }

    /// (b, h, w, features padded to a multiple of 8).
    pub fn data(&self) -> &Tensor {
        &self.data
    }

    /// Features of a pixel.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Pictures, their height and width, and features with what they are padded by.
    fn dims(&self) -> Result<[usize; 4]> {
        let (b, h, w, padded) = self.data.dims4()?;
        Ok([b, h, w, padded])
    }
}

fn padded_to(channels: usize) -> usize {
    channels.next_multiple_of(UNIT)
}

/// Pixels (b, h, w, 4) of RGBA bytes as a map of three features in 0..1, seen through `kernel` (k, k; f32, k odd), every `factor`-th
/// from the first on: (b, ceil(h / factor), ceil(w / factor), 3) of type `to`.
pub fn look(pixels: &Tensor, kernel: &Tensor, factor: usize, to: DType) -> Result<Map> {
    let (b, h, w, bytes) = pixels.dims4()?;
    let (k, _) = kernel.dims2()?;
    if bytes != 4 || pixels.dtype() != DType::U8 || factor == 0 || k % 2 == 0 {
        bail!(
            "look: {:?} are no pixels, or {k} no odd kernel",
            pixels.dims()
        );
    }
    let (ho, wo) = (h.div_ceil(factor), w.div_ceil(factor));
    // Sixteen threads of a block look at one pixel.
    let blocks = (b * ho * wo).div_ceil(LOOK_THREADS as usize / 16);
    let mut launch = Launch::new("maps/look", to, blocks, (b, ho, wo, UNIT))?;
    launch.block = Block::Of(LOOK_THREADS);
    launch.params = Params {
        count: k as u32,
        padding: k as u32 / 2,
        stride: factor as u32,
        ..launch.params.sized([b, 4, h, w], [ho, wo])
    };
    let op = Fused {
        launch,
        plain: plain_look,
    };
    Map::new(op.run(&[pixels, kernel])?, 3)
}

const LOOK_THREADS: u32 = 128;

/// A map of three features as pixels (b, h, w, 4) of RGBA bytes, opaque, by the logistic function.
pub fn paint(map: &Map) -> Result<Tensor> {
    let [b, h, w, padded] = map.dims()?;
    if map.channels != 3 {
        bail!("paint: {} features are no picture", map.channels);
    }
    let mut launch = Launch::new("maps/paint", map.data.dtype(), b * h * w, (b, h, w, 4))?;
    launch.to = DType::U8;
    launch.params = launch.params.sized([b, padded, h, w], [h, w]);
    let op = Fused {
        launch,
        plain: plain_paint,
    };
    op.run(&[&map.data])
}

fn plain_look(p: &Params, args: &[Cow<'_, [f32]>]) -> Vec<f32> {
    let [h, w, ho, wo, k] = [p.h, p.w, p.ho, p.wo, p.count].map(|n| n as usize);
    let at = |out: usize, tap: usize, size: usize| {
        let place = out * p.stride as usize + tap;
        place.checked_sub(p.padding as usize).filter(|&v| v < size)
    };
    let mut seen = Vec::with_capacity(p.batch as usize * ho * wo * UNIT);
    for picture in args[0].chunks_exact((4 * h * w).max(1)) {
        for (y, x) in (0..ho * wo).map(|i| (i / wo, i % wo)) {
            let mut colours = [0f32; UNIT];
            for (ky, kx) in (0..k * k).map(|tap| (tap / k, tap % k)) {
                let (Some(row), Some(column)) = (at(y, ky, h), at(x, kx, w)) else {
                    continue;
                };
                for (n, colour) in colours.iter_mut().take(3).enumerate() {
                    *colour += picture[4 * (row * w + column) + n] * args[1][ky * k + kx];
                }
            }
            seen.extend(colours.map(|colour| colour / 255.0));
        }
    }
    seen
}

fn plain_paint(p: &Params, args: &[Cow<'_, [f32]>]) -> Vec<f32> {
    let pixels = args[0].chunks_exact((p.channels as usize).max(1));
    pixels
        .flat_map(|features| {
            // What is no number becomes 0.
            let byte = |n: usize| f32::from((255.0 * logistic(features[n]) + 0.5) as u8);
            [byte(0), byte(1), byte(2), 255.0]
        })
        .collect()
}

fn logistic(v: f32) -> f32 {
    1.0 / (1.0 + (-v).exp())
}

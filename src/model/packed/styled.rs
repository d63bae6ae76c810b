//! What the two packed face restorers share: linear layers, styles, and what is done to maps between
//! convolutions. The convolutions themselves are those of every network here: a style scales what goes in
//! and what comes out (see [`crate::model::gpen`]), so that weights are packed once.

use candle_core::Result;

use super::layers::Weights;
use crate::ops::blocked::{Buffer, Channels, Size};
use crate::ops::conv::{LEAK, Spec};
use crate::ops::doubling::{Edge, double};
use crate::ops::simd::BLOCK;
use crate::ops::threads::Workers;

/// Added to the squared length before the division.
const EPSILON: f32 = 1e-8;

/// One block of one pixel.
pub(super) type Line = [f32; BLOCK];

/// y = w x + b.
#[derive(Debug)]
pub(super) struct Linear {
    /// (in, out).
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Linear {
    /// Reads (out, in); `gains` are what weight and bias are multiplied by.
    pub(super) fn new(
        weights: &Weights<'_>,
        c_in: usize,
        c_out: usize,
        gains: (f32, f32),
    ) -> Result<Self> {
        let stored = weights.get("weight", c_in * c_out)?;
        let mut weight = vec![0.0; c_in * c_out];
        for (o, row) in stored.chunks_exact(c_in).enumerate() {
            for (i, value) in row.iter().enumerate() {
                weight[i * c_out + o] = value * gains.0;
            }
        }
        let bias = weights.get("bias", c_out)?;
        Ok(Self {
            weight,
            bias: bias.iter().map(|b| b * gains.1).collect(),
        })
    }

    pub(super) fn run(&self, x: &[f32]) -> Vec<f32> {
        let mut y = self.bias.clone();
        add_products(&self.weight, x, &mut y);
        y
    }
}

/// y += w x, of w (in, out).
fn add_products(weight: &[f32], x: &[f32], y: &mut [f32]) {
    for (x, row) in x.iter().zip(weight.chunks_exact(y.len())) {
        for (y, w) in y.iter_mut().zip(row) {
            *y += x * w;
        }
    }
}

/// What a style makes of a convolution.
#[derive(Debug)]
pub(super) struct Style {
    modulation: Linear,
    /// Sums of the squared weights (in, out) of each kernel.
    squares: Vec<f32>,
    c_out: usize,
    c_in: Channels,
}

impl Style {
    /// `weight` (out, in, k, k) as it is multiplied with; `gain` is the modulation's.
    pub(super) fn new(
        weights: &Weights<'_>,
        weight: &[f32],
        c_in: Channels,
        (width, gain): (usize, f32),
    ) -> Result<Self> {
        let ins = c_in.count();
        let modulation = Linear::new(&weights.at("modulation"), width, ins, (gain, 1.0))?;
        let taps = 9;
        let c_out = weight.len() / (ins * taps).max(1);
        let mut squares = vec![0.0; ins * c_out];
        for (at, kernel) in weight.chunks_exact(taps).enumerate() {
            squares[at % ins * c_out + at / ins] = kernel.iter().map(|w| w * w).sum();
        }
        Ok(Self {
            modulation,
            squares,
            c_out,
            c_in,
        })
    }

    /// What input channels are to be multiplied by, padded, and output channels times `gain`, padded.
    pub(super) fn scales(&self, latent: &[f32], gain: f32) -> (Buffer, Buffer) {
        let style = self.modulation.run(latent);
        let squared: Vec<f32> = style.iter().map(|s| s * s).collect();
        let mut lengths = vec![EPSILON; self.c_out];
        add_products(&self.squares, &squared, &mut lengths);
        let lengths: Vec<f32> = lengths.iter().map(|l| gain / l.sqrt()).collect();
        (
            padded(&style, &self.c_in),
            padded(&lengths, &Channels::new(self.c_out)),
        )
    }
}

impl Style {
    /// Products of input and output channels.
    pub(super) fn products(&self) -> usize {
        self.squares.len()
    }
}

/// One value for each channel as they lie in a map, zeros in its padding.
pub(super) fn padded(values: &[f32], channels: &Channels) -> Buffer {
    let places = channels.places();
    let mut buffer = Buffer::zeroed(places.len());
    for (to, channel) in buffer.iter_mut().zip(places) {
        *to = channel.map_or(0.0, |channel| values[channel]);
    }
    buffer
}

/// The pixels of a block of channels, of values that are one for each padded channel.
pub(super) fn line(values: &[f32], block: usize) -> Line {
    std::array::from_fn(|lane| values[block * BLOCK + lane])
}

pub(super) fn leaky(value: f32) -> f32 {
    value.max(LEAK * value)
}

/// A modulated 1x1 convolution to red, green and blue, which is summed up over the sizes.
#[derive(Debug)]
pub(super) struct ToRgb {
    modulation: Linear,
    /// (3, in).
    weight: Vec<f32>,
    bias: [f32; 3],
    c_in: Channels,
}

impl ToRgb {
    /// `conv` is what the convolution is called; the gains are of its weights and its modulation's.
    pub(super) fn new(
        weights: &Weights<'_>,
        conv: &str,
        c_in: Channels,
        width: usize,
        gains: (f32, f32),
    ) -> Result<Self> {
        let ins = c_in.count();
        let weight = weights.at(conv).get("weight", 3 * ins)?;
        let bias = weights.get("bias", 3)?;
        let modulation = weights.at(conv).at("modulation");
        Ok(Self {
            modulation: Linear::new(&modulation, width, ins, (gains.1, 1.0))?,
            weight: weight.iter().map(|w| w * gains.0).collect(),
            bias: [bias[0], bias[1], bias[2]],
            c_in,
        })
    }

    /// Adds what a map of `size` shows to the first three lanes of `rgb`.
    pub(super) fn add(
        &self,
        workers: &Workers,
        latent: &[f32],
        map: &[f32],
        size: Size,
        rgb: &mut [f32],
    ) {
        let style = self.modulation.run(latent);
        let ins = style.len();
        let weights: [Buffer; 3] = std::array::from_fn(|c| {
            let modulated: Vec<f32> = (0..ins)
                .map(|i| self.weight[c * ins + i] * style[i])
                .collect();
            padded(&modulated, &self.c_in)
        });
        let map: &[Line] = map.as_chunks().0;
        let rgb: &mut [Line] = rgb.as_chunks_mut().0;
        // Some pixels at a time, whose sums stay in the first-level cache.
        const RUN: usize = 64;
        workers.rows(rgb, RUN, |run, pixels| {
            let mut sums = [[[0f32; BLOCK]; 3]; RUN];
            for block in 0..self.c_in.blocks() {
                let weights: [Line; 3] = std::array::from_fn(|c| line(&weights[c], block));
                let from = &map[block * size.pixels() + run * RUN..][..pixels.len()];
                for (sums, pixel) in sums.iter_mut().zip(from) {
                    for (sum, weights) in sums.iter_mut().zip(&weights) {
                        for lane in 0..BLOCK {
                            sum[lane] += pixel[lane] * weights[lane];
                        }
                    }
                }
            }
            for (pixel, sums) in pixels.iter_mut().zip(&sums) {
                for c in 0..3 {
                    pixel[c] += sums[c].iter().sum::<f32>() + self.bias[c];
                }
            }
        });
    }
}

/// The picture that is summed up, and what it was at half the size.
#[derive(Debug, Default)]
pub(super) struct Canvas {
    now: Buffer,
    before: Buffer,
}

impl Canvas {
    /// Black, of a size.
    pub(super) fn start(&mut self, size: Size) -> &mut [f32] {
        let len = size.values(1);
        self.now.grow(len);
        self.now[..len].fill(0.0);
        &mut self.now[..len]
    }

    /// The picture of `size` at twice that.
    pub(super) fn enlarge(&mut self, workers: &Workers, size: Size, edge: Edge) -> &mut [f32] {
        std::mem::swap(&mut self.now, &mut self.before);
        let len = 4 * size.values(1);
        self.now.grow(len);
        double(
            workers,
            &self.before[..size.values(1)],
            size,
            None,
            edge,
            &mut self.now[..len],
        );
        &mut self.now[..len]
    }

    /// The picture (3, h, w).
    pub(super) fn planar(&self, size: Size) -> Vec<f32> {
        let pixels: &[Line] = self.now[..size.values(1)].as_chunks().0;
        (0..3)
            .flat_map(|c| pixels.iter().map(move |pixel| pixel[c]))
            .collect()
    }
}

/// Packs a picture (3, h, w).
pub(super) fn pack_picture(workers: &Workers, planar: &[f32], size: Size, to: &mut [f32]) {
    let pixels: &mut [Line] = to.as_chunks_mut().0;
    workers.rows(pixels, size.width, |y, row| {
        for (x, pixel) in row.iter_mut().enumerate() {
            for c in 0..3 {
                pixel[c] = planar[c * size.pixels() + y * size.width + x];
            }
        }
    });
}

/// `f(block, pixel)` of every pixel of a map, in place.
pub(super) fn each_pixel(
    workers: &Workers,
    map: &mut [f32],
    size: Size,
    f: impl Fn(usize, usize, &mut Line) + Sync + Send,
) {
    let pixels: &mut [Line] = map.as_chunks_mut().0;
    workers.rows(pixels, size.width, |row, line| {
        let (block, y) = (row / size.height, row % size.height);
        for (x, pixel) in line.iter_mut().enumerate() {
            f(block, y * size.width + x, pixel);
        }
    });
}

/// A convolution without activation.
pub(super) fn spec(kernel: usize, padding: usize) -> Spec {
    Spec {
        kernel,
        padding,
        upsample: false,
        relu: false,
    }
}

/// For channels that nothing scales.
pub(super) fn ones(channels: &Channels) -> Buffer {
    Buffer::from_slice(&vec![1.0; channels.blocks() * BLOCK])
}

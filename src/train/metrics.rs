//! How far a drawn picture is from the real one: L1, PSNR, SSIM, LPIPS.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::VarBuilder;

use super::error::Error;
use crate::checkpoint;
use crate::model::Perceptual;
use crate::model::perceptual::Kind;

/// A picture as three planes of numbers in 0..1.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Planes {
    /// Width and height.
    pub side: usize,
    /// Red, green, blue, each row by row.
    pub values: Vec<f32>,
}

impl Planes {
    /// Of RGBA bytes, `side` x `side`.
    pub fn of_rgba(rgba: &[u8], side: usize) -> Self {
        let channel = |c: usize| rgba.iter().skip(c).step_by(4);
        let values = (0..3).flat_map(channel).map(|v| f32::from(*v) / 255.0);
        Self {
            side,
            values: values.collect(),
        }
    }

    fn tensor(&self) -> Result<Tensor> {
        let shape = (1, 3, self.side, self.side);
        Tensor::from_slice(&self.values, shape, &Device::Cpu)
    }
}

/// The mean absolute difference, 0..1.
pub fn l1(a: &Planes, b: &Planes) -> f64 {
    mean(a, b, |d| d.abs())
}

/// The mean absolute difference of two changes: from `a` to `next_a` and from `b` to `next_b`.
pub fn jitter([a, next_a]: [&Planes; 2], [b, next_b]: [&Planes; 2]) -> f64 {
    let changes = a.values.iter().zip(&next_a.values);
    let others = b.values.iter().zip(&next_b.values);
    let sum: f64 = changes
        .zip(others)
        .map(|((a, next_a), (b, next_b))| f64::from(((next_a - a) - (next_b - b)).abs()))
        .sum();
    sum / a.values.len().max(1) as f64
}

/// Peak signal-to-noise ratio in decibels; 100 for pictures that are alike.
pub fn psnr(a: &Planes, b: &Planes) -> f64 {
    let error = mean(a, b, |d| d * d);
    (-10.0 * error.log10()).min(100.0)
}

fn mean(a: &Planes, b: &Planes, of: impl Fn(f64) -> f64) -> f64 {
    let pairs = a.values.iter().zip(&b.values);
    let sum: f64 = pairs.map(|(a, b)| of(f64::from(*a) - f64::from(*b))).sum();
    sum / a.values.len().max(1) as f64
}

/// Width of SSIM's window.
const WINDOW: usize = 11;

/// Structural similarity (Wang et al. 2004, equation 13): a Gaussian window of 11 pixels with a deviation of
/// 1.5 wherever it fits, the mean over it and over the channels. 1 for pictures that are alike; of pictures
/// smaller than the window it is of their means alone.
pub fn ssim(a: &Planes, b: &Planes) -> f64 {
    let side = a.side;
    let width = WINDOW.min(side);
    let mut taps: Vec<f64> = (0..width)
        .map(|i| (-0.5 * ((i as f64 - (width - 1) as f64 / 2.0) / 1.5).powi(2)).exp())
        .collect();
    let whole: f64 = taps.iter().sum();
    taps.iter_mut().for_each(|tap| *tap /= whole);
    let size = (side * side).max(1);
    let channels = a.values.chunks_exact(size).zip(b.values.chunks_exact(size));
    let of_channel = |(a, b): (&[f32], &[f32])| {
        let blurred = |of: &dyn Fn(f64, f64) -> f64| {
            let pairs = a.iter().zip(b);
            let product: Vec<f64> = pairs
                .map(|(a, b)| of(f64::from(*a), f64::from(*b)))
                .collect();
            blur(&product, side, &taps)
        };
        let (mean_a, mean_b) = (blurred(&|a, _| a), blurred(&|_, b| b));
        let (aa, bb, ab) = (
            blurred(&|a, _| a * a),
            blurred(&|_, b| b * b),
            blurred(&|a, b| a * b),
        );
        let (c1, c2) = (0.01f64.powi(2), 0.03f64.powi(2));
        let sum: f64 = (0..mean_a.len())
            .map(|i| {
                let (m, n) = (mean_a[i], mean_b[i]);
                let (variances, covariance) = (aa[i] - m * m + bb[i] - n * n, ab[i] - m * n);
                (2.0 * m * n + c1) * (2.0 * covariance + c2)
                    / ((m * m + n * n + c1) * (variances + c2))
            })
            .sum();
        sum / mean_a.len().max(1) as f64
    };
    channels.map(of_channel).sum::<f64>() / 3.0
}

/// Weighted means of rows, then of columns, wherever the taps fit.
fn blur(values: &[f64], side: usize, taps: &[f64]) -> Vec<f64> {
    let out = side + 1 - taps.len();
    let mut rows = vec![0.0; side * out];
    for (row, to) in values.chunks_exact(side).zip(rows.chunks_exact_mut(out)) {
        for (to, under) in to.iter_mut().zip(row.windows(taps.len())) {
            *to = under.iter().zip(taps).map(|(v, tap)| v * tap).sum();
        }
    }
    let mut all = vec![0.0; out * out];
    for (y, to) in all.chunks_exact_mut(out).enumerate() {
        for (i, tap) in taps.iter().enumerate() {
            let row = &rows[(y + i) * out..][..out];
            to.iter_mut().zip(row).for_each(|(to, v)| *to += tap * v);
        }
    }
    all
}

/// LPIPS 0.1 on SqueezeNet 1.1 (Zhang et al., CVPR 2018).
#[derive(Debug)]
pub struct Lpips {
    network: Perceptual,
    /// For each of the seven features the weights of its channels, (1, c, 1, 1).
    weights: Vec<Tensor>,
}

impl Lpips {
    /// Reads torchvision's SqueezeNet 1.1 and the linear layers of the package `lpips` (its `squeeze.pth`).
    ///
    /// # Errors
    /// When a file cannot be read or is something else.
    pub fn open(squeezenet: &Path, linear: &Path) -> std::result::Result<Self, Error> {
        let network = checkpoint::open(squeezenet)?;
        let layers = checkpoint::open(linear)?;
        let fits = |names: BTreeMap<String, Vec<usize>>,
                    path: &Path,
                    tensors: &BTreeMap<String, Tensor>,
                    what: &str| {
            let wrong = |(name, shape): &(&String, &Vec<usize>)| {
                tensors
                    .get(*name)
                    .is_none_or(|tensor| tensor.dims() != shape.as_slice())
            };
            match names.iter().find(wrong) {
                Some((name, shape)) => Err(Error::data(
                    path,
                    format!("this is not {what}: it has no {name} of {shape:?}"),
                )),
                None => Ok(()),
            }
        };
        fits(
            Kind::SqueezeNet.expected_tensors(),
            squeezenet,
            &network.tensors,
            "SqueezeNet 1.1 as torchvision has it",
        )?;
        let names = CHANNELS
            .iter()
            .enumerate()
            .map(|(i, c)| (linear_name(i), vec![1, *c, 1, 1]));
        fits(
            names.collect(),
            linear,
            &layers.tensors,
            "LPIPS's linear layers for SqueezeNet (squeeze.pth)",
        )?;
        let vb = VarBuilder::from_tensors(
            network.tensors.into_iter().collect(),
            DType::F32,
            &Device::Cpu,
        );
        let weights =
            (0..CHANNELS.len()).filter_map(|i| layers.tensors.get(&linear_name(i)).cloned());
        Ok(Self {
            network: Perceptual::new(Kind::SqueezeNet, &vb)?,
            weights: weights.collect(),
        })
    }

    /// The distance, 0 for pictures that are alike.
    ///
    /// # Errors
    /// When memory is short.
    pub fn distance(&self, a: &Planes, b: &Planes) -> Result<f64> {
        let (a, b) = (
            self.network.forward(&a.tensor()?)?,
            self.network.forward(&b.tensor()?)?,
        );
        let mut sum = 0.0;
        for ((a, b), weights) in a.iter().zip(&b).zip(&self.weights) {
            let difference = (unit(a)? - unit(b)?)?.sqr()?;
            let weighted = difference.broadcast_mul(weights)?.sum(1)?.mean_all()?;
            sum += f64::from(weighted.to_scalar::<f32>()?);
        }
        Ok(sum)
    }
}

/// Channels of SqueezeNet's features where LPIPS looks.
const CHANNELS: [usize; 7] = [64, 128, 256, 384, 384, 512, 512];

fn linear_name(layer: usize) -> String {
    format!("lin{layer}.model.1.weight")
}

/// Features divided by their length over the channels.
fn unit(features: &Tensor) -> Result<Tensor> {
    let length = features.sqr()?.sum_keepdim(D::Minus(3))?.sqrt()?;
    features.broadcast_div(&(length + 1e-10)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(value: f32) -> Planes {
        Planes {
            side: 16,
            values: vec![value; 3 * 256],
        }
    }

    fn noise(seed: u32) -> Planes {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32
        };
        Planes {
            side: 20,
            values: (0..3 * 400).map(|_| next()).collect(),
        }
    }

    #[test]
    fn pictures_that_are_alike_are_perfect() {
        let picture = noise(1);
        assert_eq!(
            (l1(&picture, &picture), psnr(&picture, &picture)),
            (0.0, 100.0)
        );
        assert!((ssim(&picture, &picture) - 1.0).abs() < 1e-12);
        let still = flat(0.25);
        assert_eq!(jitter([&still, &still], [&picture, &picture]), 0.0);
    }

    #[test]
    fn of_even_pictures_the_measures_are_known() {
        let (a, b) = (flat(0.25), flat(0.75));
        assert!((l1(&a, &b) - 0.5).abs() < 1e-9);
        assert!((psnr(&a, &b) - 6.0206).abs() < 1e-4);
        // Without variance the formula is that of the means.
        let wanted = (2.0 * 0.25 * 0.75 + 1e-4) / (0.0625 + 0.5625 + 1e-4);
        assert!((ssim(&a, &b) - wanted).abs() < 1e-9);
        assert!((jitter([&a, &b], [&b, &a]) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn ssim_is_that_of_the_definition() {
        let (a, b) = (noise(1), noise(2));
        let weight = |y: usize, x: usize| {
            let at = |i: usize| (-0.5 * ((i as f64 - 5.0) / 1.5).powi(2)).exp();
            at(y) * at(x)
        };
        let whole: f64 = (0..121).map(|i| weight(i / 11, i % 11)).sum();
        let mut sum = 0.0;
        for place in 0..3 * 100 {
            let (channel, y, x) = (place / 100, place / 10 % 10, place % 10);
            let window = |picture: &Planes, i: usize| {
                f64::from(picture.values[channel * 400 + (y + i / 11) * 20 + x + i % 11])
            };
            let expect = |of: &dyn Fn(usize) -> f64| {
                (0..121)
                    .map(|i| weight(i / 11, i % 11) / whole * of(i))
                    .sum::<f64>()
            };
            let (m, n) = (expect(&|i| window(&a, i)), expect(&|i| window(&b, i)));
            let v = expect(&|i| (window(&a, i) - m).powi(2));
            let w = expect(&|i| (window(&b, i) - n).powi(2));
            let c = expect(&|i| (window(&a, i) - m) * (window(&b, i) - n));
            sum +=
                (2.0 * m * n + 1e-4) * (2.0 * c + 9e-4) / ((m * m + n * n + 1e-4) * (v + w + 9e-4));
        }
        assert!((ssim(&a, &b) - sum / 300.0).abs() < 1e-9);
    }

    #[test]
    fn lpips_grows_with_the_difference() {
        let folder = tempfile::tempdir().unwrap();
        let names = Kind::SqueezeNet.expected_tensors();
        let values = crate::model::procedural::perceptual(Kind::SqueezeNet, "squeeze").unwrap();
        assert_eq!(values.len(), names.len());
        let network = folder.path().join("net.safetensors");
        let values: BTreeMap<String, Tensor> = values.into_iter().collect();
        checkpoint::save_lean(&network, &values, "{}", "net", false).unwrap();
        let layers: BTreeMap<String, Tensor> = CHANNELS
            .iter()
            .enumerate()
            .map(|(i, c)| {
                let ones = Tensor::ones((1, *c, 1, 1), DType::F32, &Device::Cpu);
                (linear_name(i), ones.unwrap())
            })
            .collect();
        let linear = folder.path().join("lin.safetensors");
        checkpoint::save_lean(&linear, &layers, "{}", "lin", false).unwrap();
        let lpips = Lpips::open(&network, &linear).unwrap();
        let picture = |seed| Planes {
            side: 64,
            values: (0..13u32)
                .flat_map(|i| noise(seed + i).values)
                .take(3 * 64 * 64)
                .collect(),
        };
        let (a, b) = (picture(1), picture(100));
        let near = Planes {
            values: a
                .values
                .iter()
                .zip(&b.values)
                .map(|(a, b)| 0.9 * a + 0.1 * b)
                .collect(),
            ..a.clone()
        };
        let distance = |b: &Planes| lpips.distance(&a, b).unwrap();
        assert_eq!(distance(&a), 0.0);
        assert!(0.0 < distance(&near) && distance(&near) < distance(&b));
        let error = Lpips::open(&linear, &network).unwrap_err().to_string();
        assert!(error.contains("SqueezeNet"), "{error}");
    }
}

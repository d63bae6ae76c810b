//! Weights made from their tensors' names: for tests and benchmarks of models too big to ship.
//!
//! Any program can rebuild them. For value i (row-major) of the tensor `NAME`, with `fnv1a64` and
//! `splitmix64` as everywhere and wrapping 64-bit arithmetic,
//!
//! ```text
//! z = splitmix64(fnv1a64(NAME) + (i + 1) * 0x9E3779B97F4A7C15)
//! v = 2 * ((z >> 40) * 2^-24) - 1
//! ```
//!
//! and what v comes to depends on the tensor: see `value_of`. The pictures such a model makes are
//! noise, but in a healthy range, and depend on every weight.

use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use super::config::ModelConfig;
use super::discriminator::DiscriminatorConfig;
use super::{gfpgan, gpen, perceptual};

/// Every tensor of [`ModelConfig::expected_tensors`] in f32 on the CPU. `prefix` and a dot come
/// before each name: other prefixes, other weights.
pub fn tensors(config: &ModelConfig, prefix: &str) -> Result<BTreeMap<String, Tensor>> {
    config
        .expected_tensors()
        .into_iter()
        .map(|(name, shape)| {
            let mut values = fill(prefix, &name, &shape, value_of);
            // Jacobians start as identities: those of the last bias, one for each map.
            if shape.len() == 1 && is_last_jacobian_bias(&name, config.kp.mobile) {
                for (i, value) in values.iter_mut().enumerate() {
                    *value += if matches!(i % 4, 0 | 3) { 1.0 } else { 0.0 };
                }
            }
            Ok((name, Tensor::from_vec(values, shape, &Device::Cpu)?))
        })
        .collect()
}

/// Every tensor of [`S3fd::expected_tensors`](super::S3fd::expected_tensors), as [`tensors`].
pub fn s3fd(prefix: &str) -> Result<BTreeMap<String, Tensor>> {
    super::S3fd::expected_tensors()
        .into_iter()
        .map(|(name, shape)| {
            let values = fill(prefix, &name, &shape, s3fd_value_of);
            Ok((name, Tensor::from_vec(values, shape, &Device::Cpu)?))
        })
        .collect()
}

/// Every tensor of a perceptual network, as [`tensors`]; `prefix` stands for its `features`.
pub fn perceptual(kind: perceptual::Kind, prefix: &str) -> Result<BTreeMap<String, Tensor>> {
    let value_of = |_: &str, rank: usize, fan_in: usize, v: f64| match rank {
        1 => 0.1 * v,
        _ => v * (6.0 / fan_in as f64).sqrt(),
    };
    kind.expected_tensors()
        .into_iter()
        .map(|(name, shape)| {
            let short = name.strip_prefix("features.").unwrap_or(&name);
            let values = fill(prefix, short, &shape, value_of);
            Ok((name, Tensor::from_vec(values, shape, &Device::Cpu)?))
        })
        .collect()
}

/// Every tensor of a discriminator without spectral norm, as [`tensors`].
pub fn discriminator(
    config: &DiscriminatorConfig,
    num_channels: usize,
    num_kp: usize,
    prefix: &str,
) -> Result<BTreeMap<String, Tensor>> {
    let value_of = |name: &str, rank: usize, fan_in: usize, v: f64| match name.rsplit('.').next() {
        Some("weight") if rank > 1 => v * (3.0 / fan_in as f64).sqrt() * 1.4,
        Some("scale") => 1.0 + 0.2 * v,
        _ => 0.1 * v,
    };
    config
        .expected_tensors(num_channels, num_kp)
        .into_iter()
        .map(|(name, shape)| {
            // Paddle's name of an instance norm's weight.
            let paddle = name.replace(".norm.weight", ".norm.scale");
            let values = fill(prefix, &paddle, &shape, value_of);
            Ok((name, Tensor::from_vec(values, shape, &Device::Cpu)?))
        })
        .collect()
}

/// Every tensor of a [`gpen::Shape`], as [`tensors`].
pub fn gpen(shape: &gpen::Shape, prefix: &str) -> Result<BTreeMap<String, Tensor>> {
    restorer(shape.expected_tensors(), |name, dims| {
        // The formula is about Paddle's layout: linear weights are (in, out).
        let turned: Vec<usize> = match dims {
            [first, second] => vec![*second, *first],
            _ => dims.to_vec(),
        };
        let values = fill(prefix, name, &turned, gpen_value_of);
        let tensor = Tensor::from_vec(values, turned, &Device::Cpu)?;
        match dims.len() {
            2 => tensor.t()?.contiguous(),
            _ => Ok(tensor),
        }
    })
}

/// Every tensor of a [`gfpgan::Shape`], as [`tensors`].
pub fn gfpgan(shape: &gfpgan::Shape, prefix: &str) -> Result<BTreeMap<String, Tensor>> {
    restorer(shape.expected_tensors(), |name, dims| {
        let values = fill(prefix, name, dims, gfpgan_value_of);
        Tensor::from_vec(values, dims, &Device::Cpu)
    })
}

fn restorer(
    expected: BTreeMap<String, Vec<usize>>,
    make: impl Fn(&str, &[usize]) -> Result<Tensor>,
) -> Result<BTreeMap<String, Tensor>> {
    let named = expected.into_iter().map(|(name, dims)| {
        let tensor = make(&name, &dims)?;
        Ok((name, tensor))
    });
    named.collect()
}

fn is_last_jacobian_bias(name: &str, mobile: bool) -> bool {
    name == if mobile {
        "kp_detector.jacobian.2.bias"
    } else {
        "kp_detector.jacobian.bias"
    }
}

/// `value_of` takes a tensor's name, rank and inputs of one output, and v.
fn fill(
    prefix: &str,
    name: &str,
    shape: &[usize],
    value_of: impl Fn(&str, usize, usize, f64) -> f64 + Sync,
) -> Vec<f32> {
    // The formula is about Paddle's names.
    let paddle = name
        .replace(".running_mean", "._mean")
        .replace(".running_var", "._variance");
    let seed = fnv1a64(&format!("{prefix}.{paddle}"));
    let fan_in: usize = shape.iter().skip(1).product();
    let factor = if name.contains("jacobian") { 0.3 } else { 1.0 };
    let count: usize = shape.iter().product();
    (0..count as u64)
        .into_par_iter()
        .map(|i| {
            let z = splitmix64(seed.wrapping_add((i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)));
            let v = 2.0 * ((z >> 40) as f64 / f64::from(1 << 24)) - 1.0;
            (factor * value_of(&paddle, shape.len(), fan_in, v)) as f32
        })
        .collect()
}

fn value_of(name: &str, rank: usize, fan_in: usize, v: f64) -> f64 {
    match name.rsplit('.').next() {
        Some("weight") if rank > 1 => v * (3.0 / fan_in as f64).sqrt() * 1.4,
        Some("weight" | "_variance") => 1.0 + 0.5 * v,
        Some("_mean") => 0.2 * v,
        _ => 0.1 * v,
    }
}

fn s3fd_value_of(name: &str, rank: usize, fan_in: usize, v: f64) -> f64 {
    let length = match name {
        "conv3_3_norm.weight" => 10.0,
        "conv4_3_norm.weight" => 8.0,
        "conv5_3_norm.weight" => 5.0,
        _ => return value_of(name, rank, fan_in, v),
    };
    length * (1.0 + 0.1 * v)
}

fn gpen_value_of(name: &str, rank: usize, _: usize, v: f64) -> f64 {
    match name.rsplit('.').next() {
        Some("weight" | "input") if rank > 1 => 1.7 * v,
        Some("bias") if name.ends_with("modulation.bias") => 1.0 + 0.1 * v,
        _ => 0.1 * v,
    }
}

fn gfpgan_value_of(name: &str, rank: usize, fan_in: usize, v: f64) -> f64 {
    match name.rsplit('.').next() {
        // (1, out, in, k, k), of which there is always a length to be divided by but for the last layer's.
        Some("weight") if rank == 5 || name.contains("constant_input") => v,
        Some("weight") if rank > 1 => v * (3.0 / fan_in as f64).sqrt() * 0.8,
        Some(noise) if noise.starts_with("noise") => 1.7 * v,
        _ if name.ends_with("modulation.bias") => 1.0 + 0.1 * v,
        _ => 0.1 * v,
    }
}

fn fnv1a64(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}

fn splitmix64(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generators_are_the_well_known_ones() {
        assert_eq!(fnv1a64(""), 0xCBF2_9CE4_8422_2325);
        assert_eq!(fnv1a64("a"), 0xAF63_DC4C_8601_EC8C);
        // The first output of splitmix64 seeded with 0.
        assert_eq!(splitmix64(0x9E37_79B9_7F4A_7C15), 0xE220_A839_7B1D_CDAF);
    }

    #[test]
    fn values_depend_on_name_and_prefix_and_stay_in_range() {
        let config = ModelConfig::preset("mimic-small").unwrap();
        let (one, other) = (
            fill("a", "x.weight", &[8, 4, 3, 3], value_of),
            fill("b", "x.weight", &[8, 4, 3, 3], value_of),
        );
        assert_ne!(one, other);
        let bound = (3f32 / 36.0).sqrt() * 1.4;
        assert!(one.iter().all(|v| v.abs() <= bound) && one.iter().any(|v| v.abs() > 0.9 * bound));
        let tensors = tensors(&config, "test").unwrap();
        assert_eq!(tensors.len(), config.expected_tensors().len());
        let bias: Vec<f32> = tensors["kp_detector.jacobian.bias"].to_vec1().unwrap();
        assert!((bias[0] - 1.0).abs() < 0.04 && bias[1].abs() < 0.04);
        let variance: Vec<f32> = tensors["generator.first.norm.running_var"]
            .to_vec1()
            .unwrap();
        assert!(variance.iter().all(|v| (0.5..=1.5).contains(v)));
    }
}

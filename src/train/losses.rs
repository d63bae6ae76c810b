//! The losses of the First Order Motion Model (paper section 3.3), each times its weight, and those that
//! face models gain from: landmarks, lips, enlarged windows.

use candle_core::{D, DType, Result, Tensor};
use serde::Deserialize;

use super::transform::Transform;
use crate::model::discriminator::Judgement;
use crate::model::{KeypointTensors, Perceptual};
use crate::ops::grid_sample::{Padding, grid_sample};
use crate::ops::matrix::inverse_2x2;
use crate::ops::resample::AntiAlias;

/// What each loss counts; keys as in the published files.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossWeights {
    /// The generator's part of the least-squares game.
    pub generator_gan: f64,
    /// The discriminator's.
    pub discriminator_gan: f64,
    /// The discriminator's features, one for each block.
    pub feature_matching: Vec<f64>,
    /// The perceptual network's features, from fine to coarse.
    pub perceptual: Vec<f64>,
    /// Places of keypoints under a deformation.
    pub equivariance_value: f64,
    /// Jacobians under a deformation.
    pub equivariance_jacobian: f64,
}

impl LossWeights {
    /// Whether a discriminator is trained at all.
    pub fn adversarial(&self) -> bool {
        self.generator_gan != 0.0
    }
}

/// Named values, each a scalar that has its weight.
pub type Losses = Vec<(&'static str, Tensor)>;

/// Pictures at several sizes.
#[derive(Clone, Debug)]
pub struct Pyramid(Vec<AntiAlias>);

impl Pyramid {
    /// For scales such as 1, 0.5, 0.25.
    ///
    /// # Errors
    /// When a scale is not 1 over a whole number.
    pub fn new(scales: &[f64], device: &candle_core::Device) -> Result<Self> {
        let reductions = scales.iter().map(|scale| {
            let factor = (1.0 / scale).round();
            if !(1.0..=64.0).contains(&factor) || (factor * scale - 1.0).abs() > 1e-3 {
                candle_core::bail!("a scale of {scale}: it must be 1, 1/2, 1/3 or so on");
            }
            AntiAlias::for_factor(factor as usize, device)
        });
        Ok(Self(reductions.collect::<Result<_>>()?))
    }

    /// (b, 3, h, w) at each scale.
    pub fn forward(&self, pictures: &Tensor) -> Result<Vec<Tensor>> {
        self.0
            .iter()
            .map(|reduction| reduction.forward(pictures))
            .collect()
    }
}

/// The mean absolute difference.
pub fn l1(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    mean(&(a - b)?.abs()?)
}

fn mean(x: &Tensor) -> Result<Tensor> {
    let &[b, c, ref rest @ ..] = x.dims() else {
        return x.mean_all();
    };
    if !x.device().is_cuda() || rest.is_empty() {
        return x.mean_all();
    }
    // On a card the sum of all is the work of one block of threads: one for each picture's channel are busy before.
    let sums = x.reshape((b * c, ()))?.sum(1)?;
    sums.sum_all()? / x.elem_count() as f64
}

/// How different two pyramids look, by the features of a perceptual network.
pub fn perceptual(
    network: &Perceptual,
    generated: &[Tensor],
    real: &[Tensor],
    weights: &[f64],
) -> Result<Tensor> {
    let mut terms = Vec::new();
    for (generated, real) in generated.iter().zip(real) {
        let wanted = network.loss_features(&real.detach())?;
        let got = network.loss_features(generated)?;
        for ((got, wanted), weight) in got.iter().zip(&wanted).zip(weights) {
            if *weight != 0.0 {
                terms.push((l1(got, wanted)? * *weight)?);
            }
        }
    }
    sum(&terms)
}

/// The generator's side of the game, and the distance of the discriminator's features.
pub fn adversarial(
    generated: &[Judgement],
    real: &[Judgement],
    weights: &LossWeights,
) -> Result<Losses> {
    let (mut games, mut matches) = (Vec::new(), Vec::new());
    for (generated, real) in generated.iter().zip(real) {
        let game = generated.map.affine(-1.0, 1.0)?.sqr()?.mean_all()?;
        games.push((game * weights.generator_gan)?);
        let features = generated.features.iter().zip(&real.features);
        for ((got, wanted), weight) in features.zip(&weights.feature_matching) {
            if *weight != 0.0 {
                matches.push((l1(got, &wanted.detach())? * *weight)?);
            }
        }
    }
    let mut losses = vec![("gen_gan", sum(&games)?)];
    if !matches.is_empty() {
        losses.push(("feature_matching", sum(&matches)?));
    }
    Ok(losses)
}

/// The discriminator's side.
pub fn discrimination(generated: &[Judgement], real: &[Judgement], weight: f64) -> Result<Tensor> {
    let terms = generated.iter().zip(real).map(|(generated, real)| {
        let wrong = (real.map.affine(-1.0, 1.0)?.sqr()? + generated.map.sqr()?)?;
        wrong.mean_all()? * weight
    });
    sum(&terms.collect::<Result<Vec<_>>>()?)
}

/// Keypoints of a picture against those of its deformation (equations 9 to 11).
pub fn equivariance(
    transform: &Transform,
    driving: &KeypointTensors,
    transformed: &KeypointTensors,
    weights: &LossWeights,
) -> Result<Losses> {
    let mut losses = Vec::new();
    if weights.equivariance_value != 0.0 {
        let back = transform.points(&transformed.value)?;
        let value = (l1(&driving.value, &back)? * weights.equivariance_value)?;
        losses.push(("equivariance_value", value));
    }
    if let (Some(of_driving), Some(of_transformed)) = (&driving.jacobian, &transformed.jacobian)
        && weights.equivariance_jacobian != 0.0
    {
        let moved = product_2x2(&transform.jacobian(&transformed.value)?, of_transformed)?;
        let product = product_2x2(&inverse_2x2(of_driving)?, &moved)?;
        let identity = Tensor::new(&[[1f64, 0.0], [0.0, 1.0]], product.device())?;
        let identity = identity.to_dtype(product.dtype())?;
        let off = product.broadcast_sub(&identity.reshape((1, 1, 2, 2))?)?;
        let value = (off.abs()?.mean_all()? * weights.equivariance_jacobian)?;
        losses.push(("equivariance_jacobian", value));
    }
    Ok(losses)
}

/// a b for matrices (.., 2, 2).
fn product_2x2(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let column = |j| a.narrow(D::Minus1, j, 1);
    let row = |i| b.narrow(D::Minus2, i, 1);
    column(0)?
        .broadcast_mul(&row(0)?)?
        .add(&column(1)?.broadcast_mul(&row(1)?)?)
}

/// Adds scalars up; of none it is zero.
pub fn sum(terms: &[Tensor]) -> Result<Tensor> {
    match terms {
        [] => Tensor::zeros((), DType::F32, &candle_core::Device::Cpu),
        [first, rest @ ..] => rest.iter().try_fold(first.clone(), |sum, term| sum + term),
    }
}

/// Keypoints (b, K, 2) against landmarks (b, n, 2) for the first n of them; `known` (b, 1, 1) is 1 where a
/// picture has landmarks and 0 where not.
pub fn landmarks(keypoints: &Tensor, wanted: &Tensor, known: &Tensor) -> Result<Tensor> {
    let n = wanted.dim(1)?;
    let off = (keypoints.narrow(1, 0, n)? - wanted)?.abs()?;
    masked_mean(&off, known)
}

/// How far apart the inner lips are (keypoints `upper` and `lower`) against the landmarks' distance.
pub fn lip_distance(
    keypoints: &Tensor,
    wanted: &Tensor,
    known: &Tensor,
    [upper, lower]: [usize; 2],
) -> Result<Tensor> {
    let opening = |points: &Tensor| points.narrow(1, lower, 1)? - points.narrow(1, upper, 1)?;
    masked_mean(&(opening(keypoints)? - opening(wanted)?)?.abs()?, known)
}

fn masked_mean(values: &Tensor, known: &Tensor) -> Result<Tensor> {
    let (_, n, m) = values.dims3()?;
    let count = known.sum_all()?.affine((n * m) as f64, 1e-6)?;
    values.broadcast_mul(known)?.sum_all()?.div(&count)
}

/// Windows of pictures (b, c, h, w), enlarged to `side` x `side`: for each picture a middle (b, 2) in -1..1
/// and half a width (b), in the same unit.
pub fn windows(pictures: &Tensor, middles: &Tensor, reach: &Tensor, side: usize) -> Result<Tensor> {
    let b = pictures.dim(0)?;
    let along = |i: usize| 2.0 * (i as f64 + 0.5) / side as f64 - 1.0;
    let places: Vec<f64> = (0..side * side)
        .flat_map(|i| [along(i % side), along(i / side)])
        .collect();
    let places = Tensor::from_vec(places, (1, side * side, 2), pictures.device())?;
    let grid = places
        .to_dtype(pictures.dtype())?
        .broadcast_mul(&reach.reshape((b, 1, 1))?)?
        .broadcast_add(&middles.reshape((b, 1, 2))?)?
        .reshape((b, side, side, 2))?;
    grid_sample(pictures, &grid, Padding::Zeros, true)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn unknown_landmarks_count_nothing() {
        let keypoints = Tensor::zeros((2, 10, 2), DType::F32, &Device::Cpu).unwrap();
        let wanted = Tensor::new(
            &[[[0.5f32, 0.5], [0.5, 0.5]], [[9.0, 9.0], [9.0, 9.0]]],
            &Device::Cpu,
        );
        let known = Tensor::new(&[[[1f32]], [[0.0]]], &Device::Cpu).unwrap();
        let loss = landmarks(&keypoints, &wanted.unwrap(), &known).unwrap();
        assert!((loss.to_scalar::<f32>().unwrap() - 0.5).abs() < 1e-5);
    }

    #[test]
    fn a_window_shows_its_part_enlarged() {
        let ramp: Vec<f32> = (0..65 * 65).map(|i| (i % 65) as f32 / 32.0 - 1.0).collect();
        let ramp = Tensor::from_vec(ramp, (1, 1, 65, 65), &Device::Cpu).unwrap();
        let middle = Tensor::new(&[[0.25f32, 0.0]], &Device::Cpu).unwrap();
        let reach = Tensor::new(&[0.5f32], &Device::Cpu).unwrap();
        let window = windows(&ramp, &middle, &reach, 32).unwrap();
        let row: Vec<f32> = window
            .squeeze(0)
            .unwrap()
            .squeeze(0)
            .unwrap()
            .get(7)
            .unwrap()
            .to_vec1()
            .unwrap();
        for (i, value) in row.iter().enumerate() {
            let wanted = 0.25 + 0.5 * (2.0 * (i as f32 + 0.5) / 32.0 - 1.0);
            assert!((value - wanted).abs() < 1e-5);
        }
    }
}

//! Random deformations for the equivariance losses (paper section 3.3): what happens to a picture must
//! happen to its keypoints. An affine map near the identity plus a thin-plate spline.

use candle_core::{D, DType, Device, Result, Tensor};

use super::random::Random;
use crate::ops::grid_sample::{Padding, grid_sample};

/// How strong deformations are; keys as in the published files.
#[derive(Clone, Copy, Debug, PartialEq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransformParams {
    /// Deviation of the affine map's six numbers.
    pub sigma_affine: f64,
    /// Deviation of the spline's weights; no spline without it.
    pub sigma_tps: Option<f64>,
    /// Control points of the spline along a side.
    pub points_tps: Option<usize>,
}

/// One deformation for each picture of a batch.
#[derive(Clone, Debug)]
pub struct Transform {
    /// (b, 2, 3): a matrix and a shift.
    theta: Tensor,
    spline: Option<Spline>,
}

#[derive(Clone, Debug)]
struct Spline {
    /// (1, 1, n, 2).
    points: Tensor,
    /// (b, 1, n).
    weights: Tensor,
}

impl Transform {
    /// Of a given affine map (b, 2, 3) and the weights (b, 1, n) of a spline on a square of control points.
    ///
    /// # Errors
    /// When `weights` are not those of a square.
    pub fn new(theta: Tensor, weights: Option<Tensor>) -> Result<Self> {
        let spline = match weights {
            None => None,
            Some(weights) => {
                let n = weights.dim(2)?;
                let side = n.isqrt();
                let along = |i: usize| 2.0 * i as f64 / (side.max(2) - 1) as f64 - 1.0;
                let points: Vec<f64> = (0..n)
                    .flat_map(|i| [along(i % side), along(i / side)])
                    .collect();
                let points = Tensor::from_vec(points, (1, 1, n, 2), theta.device())?;
                Some(Spline {
                    points: points.to_dtype(theta.dtype())?,
                    weights,
                })
            }
        };
        Ok(Self { theta, spline })
    }

    /// Draws one for each of `batch` pictures.
    pub fn random(
        params: &TransformParams,
        batch: usize,
        random: &mut Random,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let identity = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0];
        let theta: Vec<f64> = (0..batch)
            .flat_map(|_| identity)
            .map(|v| v + params.sigma_affine * random.normal())
            .collect();
        let theta = Tensor::from_vec(theta, (batch, 2, 3), device)?.to_dtype(dtype)?;
        let weights = match (params.sigma_tps, params.points_tps) {
            (Some(sigma), Some(side)) => {
                let n = side * side;
                let weights = (0..batch * n)
                    .map(|_| sigma * random.normal())
                    .collect::<Vec<_>>();
                Some(Tensor::from_vec(weights, (batch, 1, n), device)?.to_dtype(dtype)?)
            }
            _ => None,
        };
        Self::new(theta, weights)
    }

    /// Those of `count` of its pictures, from one on.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn of(&self, first: usize, count: usize) -> Result<Self> {
        let part = |t: &Tensor| t.narrow(0, first, count)?.contiguous();
        let spline = match &self.spline {
            None => None,
            Some(spline) => Some(Spline {
                points: spline.points.clone(),
                weights: part(&spline.weights)?,
            }),
        };
        let theta = part(&self.theta)?;
        Ok(Self { theta, spline })
    }

    /// Deforms pictures (b, c, h, w); outside is mirrored.
    pub fn frame(&self, pictures: &Tensor) -> Result<Tensor> {
        let (_, _, h, w) = pictures.dims4()?;
        let along = |i: usize, n: usize| 2.0 * i as f64 / (n.max(2) - 1) as f64 - 1.0;
        let places: Vec<f64> = (0..h * w)
            .flat_map(|i| [along(i % w, w), along(i / w, h)])
            .collect();
        let places = Tensor::from_vec(places, (1, h * w, 2), pictures.device())?;
        let grid = self.same_points(&places.to_dtype(pictures.dtype())?)?;
        let grid = grid.reshape(((), h, w, 2))?;
        grid_sample(pictures, &grid, Padding::Reflection, true)
    }

    /// [`Transform::points`] of points (1, n, 2) that are the same for all pictures: how far they are from the control points is
    /// computed once.
    fn same_points(&self, points: &Tensor) -> Result<Tensor> {
        let (b, n) = (self.theta.dim(0)?, points.dim(1)?);
        let moved = self.moved(&points.broadcast_as((b, n, 2))?)?;
        let Some(spline) = &self.spline else {
            return Ok(moved);
        };
        let (_, distance) = spline.offsets(points)?;
        let weights = spline.weights.squeeze(1)?.t()?.contiguous()?;
        let bend = bent(&distance.squeeze(0)?)?.matmul(&weights)?.t()?;
        moved.broadcast_add(&bend.contiguous()?.unsqueeze(2)?)
    }

    /// What the affine map makes of points.
    fn moved(&self, points: &Tensor) -> Result<Tensor> {
        let matrix = self.theta.narrow(2, 0, 2)?.t()?.contiguous()?;
        let shift = self.theta.narrow(2, 2, 1)?.t()?;
        points.contiguous()?.matmul(&matrix)?.broadcast_add(&shift)
    }

    /// Where points (b, n, 2) of a deformed picture are in the picture itself.
    pub fn points(&self, points: &Tensor) -> Result<Tensor> {
        let moved = self.moved(points)?;
        let Some(spline) = &self.spline else {
            return Ok(moved);
        };
        let (_, distance) = spline.offsets(points)?;
        let bend = bent(&distance)?
            .broadcast_mul(&spline.weights)?
            .sum_keepdim(2)?;
        moved.broadcast_add(&bend)
    }

    /// The derivatives of [`Transform::points`] there: (b, n, 2, 2), rows those of the new x and y.
    pub fn jacobian(&self, points: &Tensor) -> Result<Tensor> {
        let (b, n, _) = points.dims3()?;
        let matrix = self.theta.narrow(2, 0, 2)?.unsqueeze(1)?;
        let Some(spline) = &self.spline else {
            return matrix.broadcast_as((b, n, 2, 2))?.contiguous();
        };
        // The spline adds the same to x and y, so that both rows gain the same slope.
        let (offset, distance) = spline.offsets(points)?;
        let safe = (&distance + 1e-6)?;
        let steepness = ((&distance * safe.log()?)? * 2.0)?.add(&(distance.sqr()? / &safe)?)?;
        let signs = (offset.gt(0f64)?.to_dtype(offset.dtype())?
            - offset.lt(0f64)?.to_dtype(offset.dtype())?)?;
        let slope = steepness
            .broadcast_mul(&spline.weights)?
            .unsqueeze(D::Minus1)?
            .broadcast_mul(&signs)?
            .sum(2)?
            .unsqueeze(2)?;
        matrix.broadcast_add(&slope)
    }
}

/// How far a control point moves what is at a distance from it.
fn bent(distance: &Tensor) -> Result<Tensor> {
    distance.sqr()? * (distance + 1e-6)?.log()?
}

impl Spline {
    /// From each control point to each point (b, n, c, 2), and the sum of the two lengths (b, n, c).
    fn offsets(&self, points: &Tensor) -> Result<(Tensor, Tensor)> {
        let offset = points.unsqueeze(2)?.broadcast_sub(&self.points)?;
        let distance = offset.abs()?.sum(D::Minus1)?;
        Ok((offset, distance))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Transform {
        let params = TransformParams {
            sigma_affine: 0.1,
            sigma_tps: Some(0.02),
            points_tps: Some(5),
        };
        Transform::random(
            &params,
            2,
            &mut Random::new(3, &[]),
            DType::F64,
            &Device::Cpu,
        )
        .unwrap()
    }

    #[test]
    fn the_jacobian_is_the_slope_of_the_points() {
        let transform = some();
        let points = Tensor::rand(-0.9f64, 0.9, (2, 7, 2), &Device::Cpu).unwrap();
        let jacobian: Vec<f64> = transform
            .jacobian(&points)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1()
            .unwrap();
        let step = 1e-6;
        for direction in 0..2 {
            let offset: Vec<f64> = (0..28)
                .map(|i| if i % 2 == direction { step } else { 0.0 })
                .collect();
            let offset = Tensor::from_vec(offset, (2, 7, 2), &Device::Cpu).unwrap();
            let there = transform.points(&(&points + &offset).unwrap()).unwrap();
            let back = transform.points(&(&points - &offset).unwrap()).unwrap();
            let slopes = ((there - back).unwrap() / (2.0 * step)).unwrap();
            let slopes: Vec<f64> = slopes.flatten_all().unwrap().to_vec1().unwrap();
            for (i, slope) in slopes.iter().enumerate() {
                let wanted = jacobian[(i / 2) * 4 + (i % 2) * 2 + direction];
                assert!((slope - wanted).abs() < 1e-6, "{slope} {wanted}");
            }
        }
    }

    #[test]
    fn points_of_all_pictures_are_those_of_each() {
        let points = Tensor::rand(-0.9f64, 0.9, (1, 7, 2), &Device::Cpu).unwrap();
        for spline in [true, false] {
            let mut transform = some();
            transform.spline = transform.spline.filter(|_| spline);
            let of_each = points.broadcast_as((2, 7, 2)).unwrap();
            let wanted = transform.points(&of_each).unwrap();
            let off = (transform.same_points(&points).unwrap() - wanted).unwrap();
            let off = off.abs().unwrap().max_all().unwrap();
            assert!(off.to_scalar::<f64>().unwrap() < 1e-12);
        }
    }

    #[test]
    fn a_deformed_picture_shows_what_lay_at_the_points() {
        let transform = some();
        let ramp: Vec<f64> = (0..2 * 33 * 33)
            .map(|i| (i % 33) as f64 / 16.0 - 1.0)
            .collect();
        let ramp = Tensor::from_vec(ramp, (2, 1, 33, 33), &Device::Cpu).unwrap();
        let deformed = transform.frame(&ramp).unwrap();
        // The middle pixel shows the x of where it comes from.
        let origin = Tensor::zeros((2, 1, 2), DType::F64, &Device::Cpu).unwrap();
        let places = transform.points(&origin).unwrap();
        let wanted: Vec<f64> = places
            .narrow(2, 0, 1)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1()
            .unwrap();
        let middle = deformed.narrow(2, 16, 1).unwrap().narrow(3, 16, 1).unwrap();
        let got: Vec<f64> = middle.flatten_all().unwrap().to_vec1().unwrap();
        for (got, wanted) in got.iter().zip(&wanted) {
            assert!((got - wanted).abs() < 1e-9, "{got} {wanted}");
        }
    }
}

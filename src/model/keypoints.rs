//! Keypoints as plain numbers, for everything that is not a network.

use candle_core::{Device, Result, Tensor, bail};

use super::KeypointTensors;
use crate::ops::fused;

/// The keypoints of one picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Keypoints {
    /// Places as (x, y) in -1..1, the outermost pixels' centres being -1 and 1.
    pub value: Vec<[f32; 2]>,
    /// A 2x2 matrix by rows for each, unless the model is of zeroth order.
    pub jacobian: Option<Vec<[[f32; 2]; 2]>>,
}

impl Keypoints {
    /// The keypoints of each picture of a batch.
    pub fn from_tensors(tensors: &KeypointTensors) -> Result<Vec<Self>> {
        let numbers = tensors.numbers()?;
        let (_, count, _) = numbers.dims3()?;
        let numbers: Vec<f32> = numbers.flatten_all()?.to_vec1()?;
        Ok(Self::from_numbers(
            &numbers,
            count,
            tensors.jacobian.is_some(),
        ))
    }

    /// The keypoints of each picture of a batch, `count` of each, from [`KeypointTensors::numbers`].
    pub fn from_numbers(numbers: &[f32], count: usize, jacobians: bool) -> Vec<Self> {
        let (numbers, _) = numbers.as_chunks::<6>();
        let jacobian = |&[_, _, a, b, c, d]: &[f32; 6]| [[a, b], [c, d]];
        numbers
            .chunks_exact(count.max(1))
            .map(|of_picture| Self {
                value: of_picture.iter().map(|&[x, y, ..]| [x, y]).collect(),
                jacobian: jacobians.then(|| of_picture.iter().map(jacobian).collect()),
            })
            .collect()
    }

    /// As [`fused::pairs`]: (b, K, 12), f32, of each pair of a photo's keypoints and a driver's, of as many
    /// keypoints; zeros where there are no jacobians.
    pub fn pairs<'a>(
        moves: impl Iterator<Item = (&'a Self, &'a Self)>,
        device: &Device,
    ) -> Result<Tensor> {
        let (mut numbers, mut batch, mut count) = (Vec::<f32>::new(), 0, 0);
        for (source, driving) in moves {
            count = driving.value.len();
            for i in 0..count {
                for kp in [source, driving] {
                    let (Some(value), jacobian) = (kp.value.get(i), kp.jacobian.as_ref()) else {
                        bail!("keypoints of two models");
                    };
                    let jacobian = jacobian.and_then(|all| all.get(i)).copied();
                    numbers.extend(value);
                    numbers.extend(jacobian.unwrap_or_default().as_flattened());
                }
            }
            batch += 1;
        }
        Tensor::from_vec(numbers, (batch, count, fused::PAIR), device)
    }

    /// A batch for the generator; all have the same number of keypoints, and either all or none
    /// have jacobians.
    pub fn to_tensors(batch: &[Self], device: &Device) -> Result<KeypointTensors> {
        let keypoints = batch.first().map_or(0, |first| first.value.len());
        let values: Vec<f32> = batch
            .iter()
            .flat_map(|kp| kp.value.iter().flatten())
            .copied()
            .collect();
        let value = Tensor::from_vec(values, (batch.len(), keypoints, 2), device)?;
        let jacobian = if batch.iter().any(|kp| kp.jacobian.is_some()) {
            let matrices = batch.iter().filter_map(|kp| kp.jacobian.as_ref()).flatten();
            let values: Vec<f32> = matrices.flatten().flatten().copied().collect();
            Some(Tensor::from_vec(
                values,
                (batch.len(), keypoints, 2, 2),
                device,
            )?)
        } else {
            None
        };
        Ok(KeypointTensors { value, jacobian })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keypoints_survive_the_way_through_tensors() {
        let batch = [1.0, 2.0].map(|v| Keypoints {
            value: vec![[v, -v]; 5],
            jacobian: Some(vec![[[v, 2.0], [3.0, -v]]; 5]),
        });
        let tensors = Keypoints::to_tensors(&batch, &Device::Cpu).unwrap();
        assert_eq!(tensors.jacobian.as_ref().unwrap().dims(), [2, 5, 2, 2]);
        assert_eq!(Keypoints::from_tensors(&tensors).unwrap(), batch);
        let plain = batch.map(|kp| Keypoints {
            jacobian: None,
            ..kp
        });
        let tensors = Keypoints::to_tensors(&plain, &Device::Cpu).unwrap();
        assert!(tensors.jacobian.is_none());
        assert_eq!(Keypoints::from_tensors(&tensors).unwrap(), plain);
    }
}

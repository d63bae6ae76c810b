//! Batch norm at inference: a scale and a shift per channel, folded into the convolution before it.

use candle_core::{Result, Tensor};

/// What is added to the variance, as PyTorch and Paddle do by default.
pub const EPSILON: f64 = 1e-5;

/// Scale and shift (c) that a batch norm comes to once its statistics are fixed:
/// `y = x * scale + shift`.
pub fn scale_and_shift(
    weight: &Tensor,
    bias: &Tensor,
    running_mean: &Tensor,
    running_var: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let scale = (weight / (running_var + EPSILON)?.sqrt()?)?;
    let shift = (bias - (running_mean * &scale)?)?;
    Ok((scale, shift))
}

/// Weight (c, ..) and bias (c) of a convolution that does what the given one and then scale and
/// shift (c) do.
pub fn fold(
    weight: &Tensor,
    bias: Option<&Tensor>,
    scale: &Tensor,
    shift: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let mut per_output = vec![1; weight.rank()];
    per_output[0] = scale.elem_count();
    let weight = weight.broadcast_mul(&scale.reshape(per_output)?)?;
    let bias = match bias {
        Some(bias) => ((bias * scale)? + shift)?,
        None => shift.clone(),
    };
    Ok((weight, bias))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn a_folded_convolution_equals_convolution_and_normalisation() {
        let dev = &Device::Cpu;
        let random = |shape: &[usize]| Tensor::rand(-1f64, 1.0, shape, dev).unwrap();
        let (weight, bias) = (random(&[4, 3, 3, 3]), random(&[4]));
        let (gamma, beta, mean) = (random(&[4]), random(&[4]), random(&[4]));
        let var = random(&[4]).abs().unwrap();
        let x = random(&[2, 3, 6, 5]);
        let (scale, shift) = scale_and_shift(&gamma, &beta, &mean, &var).unwrap();
        for bias in [Some(&bias), None] {
            let mut plain = x.conv2d(&weight, 1, 1, 1, 1).unwrap();
            let per_channel = |t: &Tensor| t.reshape((1, 4, 1, 1)).unwrap();
            if let Some(bias) = bias {
                plain = plain.broadcast_add(&per_channel(bias)).unwrap();
            }
            let deviation = (&var + EPSILON).unwrap().sqrt().unwrap();
            let wanted = plain
                .broadcast_sub(&per_channel(&mean))
                .and_then(|t| t.broadcast_div(&per_channel(&deviation)))
                .and_then(|t| t.broadcast_mul(&per_channel(&gamma)))
                .and_then(|t| t.broadcast_add(&per_channel(&beta)))
                .unwrap();
            let (weight, bias) = fold(&weight, bias, &scale, &shift).unwrap();
            let got = x
                .conv2d(&weight, 1, 1, 1, 1)
                .unwrap()
                .broadcast_add(&per_channel(&bias));
            let error = (got.unwrap() - wanted)
                .unwrap()
                .abs()
                .unwrap()
                .max_all()
                .unwrap();
            assert!(error.to_scalar::<f64>().unwrap() < 1e-12);
        }
    }
}

//! Nearest x2 and the 3x3 convolution after it, for training on the CPU.
//!
//! In f32 the doubled map is not convolved: the packed engine's four 2x2 convolutions of the map itself, one for each parity of row
//! and column, need a fifth of the products. The gradient of the input is that of the doubled map summed over the four pixels that each
//! became, which the convolution does before it stores. Only the weight's gradient looks at the doubled map.

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};

use super::conv::Spec;
use super::conv2d::{Products, bias_gradient, conv2d, flip, products};
use super::packed;
use super::resample::nearest_x2;
use super::unfold::{Values, Window, correlate, part};

const WINDOW: Window = Window {
    side: 3,
    padding: 1,
    stride: 1,
};
const SPEC: Spec = Spec {
    kernel: 3,
    padding: 1,
    upsample: false,
    relu: false,
};

/// Repeats every pixel of `x` (b, c_in, h, w) twice in each direction, convolves by `weight` (c_out, c_in, 3, 3), zeros outside, and adds
/// `bias` (c_out): (b, c_out, 2h, 2w), with gradients of all three.
///
/// # Errors
/// When shapes do not fit.
pub fn up_conv2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (_, c_in, _, _) = x.dims4()?;
    let (c_out, of_weight, kh, kw) = weight.dims4()?;
    let quick = x.device().is_cpu()
        && [x, weight].iter().all(|t| t.dtype() == DType::F32)
        && products() != Products::Bf16
        && (of_weight, kh, kw) == (c_in, 3, 3)
        && bias.is_none_or(|bias| bias.dims() == [c_out])
        && packed::suits(WINDOW, c_in, c_out);
    if !quick {
        return conv2d(&nearest_x2(x)?, weight, bias, 1, 1, 1);
    }
    let bias = match bias {
        Some(bias) => bias.contiguous()?,
        None => Tensor::zeros(c_out, x.dtype(), x.device())?,
    };
    x.contiguous()?
        .apply_op3(&weight.contiguous()?, &bias, UpConv2d)
}

struct UpConv2d;

impl CustomOp3 for UpConv2d {
    fn name(&self) -> &'static str {
        "up_conv2d"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let dims: [usize; 4] = x_layout.shape().dims4()?.into();
        let (CpuStorage::F32(x), CpuStorage::F32(weight), CpuStorage::F32(bias)) =
            (x, weight, bias)
        else {
            bail!("up_conv2d: input, weight and bias must be f32");
        };
        let spec = Spec {
            upsample: true,
            ..SPEC
        };
        let (x, weight) = (part(x, x_layout)?, part(weight, weight_layout)?);
        let bias = part(bias, bias_layout)?;
        let y = packed::convolve(x, dims, weight, bias, spec, false);
        let [b, _, h, w] = dims;
        let shape = Shape::from((b, bias.len(), 2 * h, 2 * w));
        Ok((CpuStorage::F32(y.ok_or_else(no_thread)?), shape))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [of_x, of_weight, of_bias] = [x, weight, bias].map(Tensor::track_op);
        let (out, device): ([usize; 4], _) = (grad.dims4()?.into(), x.device());
        let (c_in, c_out) = (x.dim(1)?, out[1]);
        let grad = grad.contiguous()?;
        let grad = Values::<f32>::of(&grad)?;

        let of_x = of_x.then(|| {
            let mut turned = flip(&Values::<f32>::of(weight)?, c_out, c_in, 3);
            // Of what the convolution takes the mean of, the sum.
            turned.iter_mut().for_each(|weight| *weight *= 4.0);
            let summed = packed::convolve(&grad, out, &turned, &vec![0.0; c_in], SPEC, true);
            Tensor::from_vec(summed.ok_or_else(no_thread)?, x.shape(), device)
        });
        let of_weight = of_weight.then(|| {
            let doubled = nearest_x2(&x.detach())?;
            let dims = doubled.dims4()?.into();
            let doubled = Values::<f32>::of(&doubled)?;
            let values = correlate(&grad, c_out, &doubled, dims, WINDOW, (out[2], out[3]));
            Tensor::from_vec(values, weight.shape(), device)
        });
        let of_bias = of_bias.then(|| bias_gradient(&grad, out, device));
        Ok((
            of_x.transpose()?,
            of_weight.transpose()?,
            of_bias.transpose()?,
        ))
    }
}

fn no_thread() -> candle_core::Error {
    candle_core::Error::Msg("up_conv2d: the system gives no thread".to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::gradient;
    use super::*;

    /// Maps that are filtered, that are too small for it, and ends of blocks and tiles.
    #[test]
    fn it_is_the_convolution_of_the_doubled_map_and_so_are_its_gradients() {
        for (c_in, c_out, (h, w)) in [
            (20, 24, (35, 33)),
            (33, 17, (8, 11)),
            (8, 40, (5, 16)),
            (16, 16, (1, 1)),
            (3, 2, (9, 9)),
        ] {
            let inputs = [
                gradient::noise(&[2, c_in, h, w], 1),
                gradient::noise(&[c_out, c_in, 3, 3], 2),
                gradient::noise(&[c_out], 3),
            ];
            let cast = |dtype| inputs.each_ref().map(|t| t.to_dtype(dtype).unwrap());
            let run = |v: &[Tensor]| up_conv2d(&v[0], &v[1], Some(&v[2]));
            let plain = |v: &[Tensor]| conv2d(&nearest_x2(&v[0])?, &v[1], Some(&v[2]), 1, 1, 1);
            let mut got = gradient::of(&cast(DType::F32), &run);
            got.push(run(&cast(DType::F32)).unwrap());
            let mut wanted = gradient::of(&cast(DType::F64), &plain);
            wanted.push(plain(&cast(DType::F64)).unwrap());
            for (got, wanted) in got.iter().zip(&wanted) {
                assert_eq!(got.dims(), wanted.dims());
                let got = got.to_dtype(DType::F64).unwrap();
                let scale = gradient::distance(wanted, &wanted.zeros_like().unwrap());
                let off = gradient::distance(&got, wanted) / scale;
                assert!(off < 1e-5, "{c_in} to {c_out}, {h}x{w}: {off:.1e}");
            }
        }
    }

    #[test]
    fn without_a_bias_and_in_f64_it_is_the_same() {
        let (x, weight) = (
            gradient::noise(&[1, 9, 6, 7], 1),
            gradient::noise(&[8, 9, 3, 3], 2),
        );
        let wanted = conv2d(&nearest_x2(&x).unwrap(), &weight, None, 1, 1, 1).unwrap();
        assert_eq!(
            gradient::distance(&up_conv2d(&x, &weight, None).unwrap(), &wanted),
            0.0
        );
        let [x, weight] = [x, weight].map(|t| t.to_dtype(DType::F32).unwrap());
        let got = up_conv2d(&x, &weight, None).unwrap();
        assert!(gradient::distance(&got.to_dtype(DType::F64).unwrap(), &wanted) < 1e-5);
        assert!(up_conv2d(&x, &weight.narrow(1, 0, 4).unwrap(), None).is_err());
    }
}

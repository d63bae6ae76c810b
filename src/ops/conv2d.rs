//! Convolutions for training: forward and both gradients, on the CPU in f32 and f64.
//!
//! candle's forward is good and its backward is not: the gradient of the input is a naive transposed
//! convolution, that of the weight a convolution with a kernel as large as the picture. Here all three
//! are matrix products over unfolded pictures (im2col), a cache-sized tile at a time, and always the
//! side with fewer channels is unfolded; in f32, with enough channels and a stride of one, they are the engine's kernels
//! (`ops::packed`). Sums are taken in an order that depends on the sizes alone,
//! so that a run can be repeated to the last bit on any number of threads.
//!
//! On NVIDIA's cards cuDNN does the same (`ops/card`). Elsewhere (other cards, half precision) candle's own are used, but for one kernel
//! for each channel, which candle would do channel by channel; inference has ops of its own there ([`super::fused`]).

use std::cell::Cell;

use candle_core::{CpuStorage, CustomOp3, DType, Device, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::unfold::{Element, Values, Window, correlate, depthwise, gather, scatter};
use super::unfold::{depthwise_weight, part};

/// What convolutions of f32 multiply. Products are summed in f32, and everything between convolutions stays f32, as do weights and
/// gradients (mixed precision).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Products {
    /// As it is.
    #[default]
    Exact,
    /// Rounded to 11 bits (TF32) by cards that multiply those faster; elsewhere as it is.
    Tf32,
    /// Rounded to 8 bits (bf16): cards are faster so, the CPU computes the same numbers at its own pace.
    Bf16,
}

thread_local! {
    static PRODUCTS: Cell<Products> = const { Cell::new(Products::Exact) };
}

/// Does `work`, whose convolutions of f32 on this thread multiply so; their gradients too, whenever those are computed on a card.
pub fn multiplying<T>(products: Products, work: impl FnOnce() -> T) -> T {
    struct Restore(Products);
    impl Drop for Restore {
        fn drop(&mut self) {
            PRODUCTS.set(self.0);
        }
    }
    let _restore = Restore(PRODUCTS.replace(products));
    work()
}

/// Convolves `x` (b, c_in, h, w) by `weight` (c_out, c_in / groups, k, k), zeros outside, and adds
/// `bias` (c_out): (b, c_out, h', w'), with gradients of all three.
///
/// # Errors
/// When shapes do not fit, or `groups` is neither 1 nor c_in.
pub fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    padding: usize,
    stride: usize,
    groups: usize,
) -> Result<Tensor> {
    #[cfg(feature = "cudnn")]
    if groups == 1 && super::card::takes(x) {
        return super::card::conv2d(x, weight, bias, padding, stride, PRODUCTS.get());
    }
    if PRODUCTS.get() == Products::Bf16 && x.dtype() == DType::F32 {
        return rounded(x, weight, bias, padding, stride, groups);
    }
    let own = x.device().is_cpu()
        && matches!(x.dtype(), DType::F32 | DType::F64)
        && padding < weight.dim(3)?
        && (groups == 1 || (groups == x.dim(1)? && stride == 1 && weight.dim(0)? == groups));
    if !own {
        let y = if groups > 1 && groups == x.dim(1)? && stride == 1 && weight.dim(0)? == groups {
            by_taps(x, weight, padding)?
        } else {
            x.conv2d(weight, padding, stride, 1, groups)?
        };
        return with_bias(y, bias);
    }
    let (c_out, k) = (weight.dim(0)?, weight.dim(3)?);
    let op = Conv2d {
        window: Window {
            side: k,
            padding,
            stride,
        },
        depthwise: groups != 1,
    };
    op.check(x, weight)?;
    let bias = match bias {
        Some(bias) => bias.flatten_all()?.contiguous()?,
        None => Tensor::zeros(c_out, x.dtype(), x.device())?,
    };
    if bias.dims() != [c_out] {
        bail!("conv2d: a bias {:?} for {c_out} outputs", bias.dims());
    }
    x.contiguous()?.apply_op3(&weight.contiguous()?, &bias, op)
}

/// One kernel for each channel, tap by tap: of ops that every device has, with their gradients.
fn by_taps(x: &Tensor, weight: &Tensor, padding: usize) -> Result<Tensor> {
    let (_, c, _, _) = x.dims4()?;
    let (_, _, kh, kw) = weight.dims4()?;
    let x = x.pad_with_zeros(2, padding, padding)?;
    let x = x.pad_with_zeros(3, padding, padding)?;
    let (_, _, h, w) = x.dims4()?;
    if kh == 0 || kw == 0 || h < kh || w < kw {
        bail!(
            "conv2d: a weight {:?} does not fit an input {:?}",
            weight.dims(),
            x.dims()
        );
    }
    let mut sum: Option<Tensor> = None;
    for (row, column) in (0..kh).flat_map(|row| (0..kw).map(move |column| (row, column))) {
        let tap = weight
            .narrow(2, row, 1)?
            .narrow(3, column, 1)?
            .reshape((1, c, 1, 1))?;
        let seen = x
            .narrow(2, row, h - kh + 1)?
            .narrow(3, column, w - kw + 1)?;
        let part = seen.broadcast_mul(&tap)?;
        sum = Some(match sum {
            Some(sum) => (sum + part)?,
            None => part,
        });
    }
    match sum {
        Some(sum) => Ok(sum),
        None => bail!("conv2d: a kernel without taps"),
    }
}

/// The same with operands in bf16.
fn rounded(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    padding: usize,
    stride: usize,
    groups: usize,
) -> Result<Tensor> {
    let (mut x, mut weight) = (x.to_dtype(DType::BF16)?, weight.to_dtype(DType::BF16)?);
    if x.device().is_cpu() {
        // candle has no products of bf16 here.
        (x, weight) = (x.to_dtype(DType::F32)?, weight.to_dtype(DType::F32)?);
    }
    let plain = || conv2d(&x, &weight, None, padding, stride, groups);
    let y = multiplying(Products::Exact, plain)?;
    with_bias(y.to_dtype(DType::F32)?, bias)
}

fn with_bias(y: Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    match bias {
        Some(bias) => y.broadcast_add(&bias.reshape((1, (), 1, 1))?),
        None => Ok(y),
    }
}

struct Conv2d {
    window: Window,
    depthwise: bool,
}

impl Conv2d {
    fn check(&self, x: &Tensor, weight: &Tensor) -> Result<()> {
        let (_, c_in, h, w) = x.dims4()?;
        let (_, per_group, kh, kw) = weight.dims4()?;
        let wanted = if self.depthwise { 1 } else { c_in };
        let side = h.min(w) + 2 * self.window.padding;
        if per_group != wanted || kh != kw || side < kh || kh == 0 || self.window.stride == 0 {
            bail!(
                "conv2d: a weight {:?} does not fit an input {:?}",
                weight.dims(),
                x.dims()
            );
        }
        Ok(())
    }

    fn forward<T: Element>(&self, x: &[T], dims: [usize; 4], weight: &[T], bias: &[T]) -> Vec<T> {
        let [_, c_in, ..] = dims;
        let c_out = bias.len();
        let quick = T::quick(self.window, c_in, c_out).is_some();
        if self.depthwise {
            depthwise(x, dims, weight, Some(bias), self.window)
        } else if self.window.stride == 1 && 2 * c_out <= c_in && !quick {
            let flipped = flip(weight, c_out, c_in, self.window.side);
            let to = self.window.output(dims);
            let mut y = scatter(x, dims, &flipped, c_out, self.window.mirrored(), to);
            for (plane, values) in y.chunks_exact_mut((to.0 * to.1).max(1)).enumerate() {
                let bias = bias[plane % c_out];
                values.iter_mut().for_each(|v| *v += bias);
            }
            y
        } else {
            gather(x, dims, weight, Some(bias), c_out, self.window)
        }
    }

    fn backward<T: Element>(
        &self,
        [x, weight, grad]: [&Tensor; 3],
        wanted: [bool; 3],
    ) -> Result<[Option<Tensor>; 3]> {
        let dims: [usize; 4] = x.dims4()?.into();
        let out: [usize; 4] = grad.dims4()?.into();
        let ([_, c_in, h, w], c_out, k) = (dims, out[1], self.window.side);
        let device = x.device();
        let grad = grad.contiguous()?;
        let (grad, weights) = (Values::<T>::of(&grad)?, Values::<T>::of(weight)?);
        let whole = self.window.stride == 1;
        let quick = T::quick(self.window, c_in, c_out);
        // Pixels of the input against the unfolded gradient.
        let turned = whole
            && quick
                .as_ref()
                .map_or(2 * c_out <= c_in, |quick| quick.turned);
        let quick = quick.is_some();

        let of_x = if !wanted[0] {
            None
        } else {
            let values = if self.depthwise {
                let flipped: Vec<T> = weights
                    .chunks_exact(k * k)
                    .flat_map(|taps| taps.iter().rev().copied())
                    .collect();
                depthwise(&grad, out, &flipped, None, self.window.mirrored())
            } else if quick || (whole && 2 * c_in > c_out) {
                let flipped = flip(&weights, c_out, c_in, k);
                gather(&grad, out, &flipped, None, c_in, self.window.mirrored())
            } else {
                scatter(&grad, out, &weights, c_in, self.window, (h, w))
            };
            Some(Tensor::from_vec(values, dims.to_vec(), device)?)
        };
        let of_weight = if !wanted[1] {
            None
        } else {
            let x = Values::<T>::of(x)?;
            let values = if self.depthwise {
                depthwise_weight(&x, dims, &grad, out, self.window)
            } else if turned {
                let mirrored = self.window.mirrored();
                flip(
                    &correlate(&x, c_in, &grad, out, mirrored, (h, w)),
                    c_in,
                    c_out,
                    k,
                )
            } else {
                correlate(&grad, c_out, &x, dims, self.window, (out[2], out[3]))
            };
            Some(Tensor::from_vec(values, weight.shape(), device)?)
        };
        let of_bias = if !wanted[2] {
            None
        } else {
            Some(bias_gradient::<T>(&grad, out, device)?)
        };
        Ok([of_x, of_weight, of_bias])
    }
}

impl CustomOp3 for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
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
        let c_out = weight_layout.shape().dims()[0];
        let (h, w) = self.window.output(dims);
        let storage = match (x, weight, bias) {
            (CpuStorage::F32(x), CpuStorage::F32(weight), CpuStorage::F32(bias)) => {
                let weight = part(weight, weight_layout)?;
                let y = self.forward(part(x, x_layout)?, dims, weight, part(bias, bias_layout)?);
                CpuStorage::F32(y)
            }
            (CpuStorage::F64(x), CpuStorage::F64(weight), CpuStorage::F64(bias)) => {
                let weight = part(weight, weight_layout)?;
                let y = self.forward(part(x, x_layout)?, dims, weight, part(bias, bias_layout)?);
                CpuStorage::F64(y)
            }
            _ => bail!("conv2d: input, weight and bias must be of one type, f32 or f64"),
        };
        Ok((storage, Shape::from((dims[0], c_out, h, w))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let wanted = [x, weight, bias].map(Tensor::track_op);
        let all = [x, weight, grad];
        let [x, weight, bias] = match x.dtype() {
            DType::F64 => self.backward::<f64>(all, wanted)?,
            _ => self.backward::<f32>(all, wanted)?,
        };
        Ok((x, weight, bias))
    }
}

/// What convolutions multiply on this thread.
pub(super) fn products() -> Products {
    PRODUCTS.get()
}

/// The gradient of a bias: the sum of all pixels of each channel of `grad` (b, c, h, w).
pub(super) fn bias_gradient<T: Element>(
    grad: &[T],
    [b, channels, h, w]: [usize; 4],
    device: &Device,
) -> Result<Tensor> {
    let plane = h * w;
    let sum = |channel: usize| {
        let planes = (0..b).map(|i| T::sum(&grad[(i * channels + channel) * plane..][..plane]));
        T::from_f64(planes.sum())
    };
    let sums: Vec<T> = (0..channels).into_par_iter().map(sum).collect();
    Tensor::from_vec(sums, channels, device)
}

/// (a, b, k, k) to (b, a, k, k), every kernel turned by half a turn: the same convolution seen from its
/// output.
pub(super) fn flip<T: Element>(weight: &[T], a: usize, b: usize, k: usize) -> Vec<T> {
    let taps = k * k;
    let mut flipped = vec![T::from_f64(0.0); weight.len()];
    for i in 0..a {
        for j in 0..b {
            let from = &weight[(i * b + j) * taps..][..taps];
            let to = &mut flipped[(j * a + i) * taps..][..taps];
            for (to, from) in to.iter_mut().zip(from.iter().rev()) {
                *to = *from;
            }
        }
    }
    flipped
}

#[cfg(test)]
mod tests {
    use super::super::gradient;
    use super::*;

    fn random(shape: &[usize], seed: u32) -> Tensor {
        gradient::noise(shape, seed)
    }

    /// Sizes that take every path: fewer, as many and more outputs than inputs; tiles of part of a
    /// picture and of several pictures.
    const CASES: [(usize, usize, usize, usize, usize, usize); 8] = [
        (3, 3, 5, 3, 1, 1),
        (2, 8, 3, 3, 1, 1),
        (1, 8, 2, 7, 3, 1),
        (2, 2, 9, 4, 0, 1),
        (2, 5, 4, 1, 0, 1),
        (2, 1, 1, 5, 2, 4),
        (2, 2, 7, 3, 1, 2),
        (1, 4, 2, 7, 0, 1),
    ];

    #[test]
    fn forward_is_candles() {
        for (b, c_in, c_out, k, padding, stride) in CASES {
            for (h, w) in [(9, 11), (40, 33)] {
                let x = random(&[b, c_in, h, w], 1);
                let weight = random(&[c_out, c_in, k, k], 2);
                let bias = random(&[c_out], 3);
                let wanted = x
                    .conv2d(&weight, padding, stride, 1, 1)
                    .and_then(|y| y.broadcast_add(&bias.reshape((1, c_out, 1, 1))?))
                    .unwrap();
                for dtype in [DType::F64, DType::F32] {
                    let cast = |t: &Tensor| t.to_dtype(dtype).unwrap();
                    let (x, weight, bias) = (cast(&x), cast(&weight), cast(&bias));
                    let got = conv2d(&x, &weight, Some(&bias), padding, stride, 1).unwrap();
                    let got = got.to_dtype(DType::F64).unwrap();
                    let limit = if dtype == DType::F64 { 1e-12 } else { 1e-4 };
                    assert!(gradient::distance(&got, &wanted) < limit);
                }
            }
        }
    }

    #[test]
    fn depthwise_forward_is_candles() {
        let (x, weight) = (random(&[2, 5, 9, 12], 1), random(&[5, 1, 3, 3], 2));
        let wanted = x.conv2d(&weight, 1, 1, 1, 5).unwrap();
        let got = conv2d(&x, &weight, None, 1, 1, 5).unwrap();
        assert!(gradient::distance(&got, &wanted) < 1e-12);
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        for (b, c_in, c_out, k, padding, stride) in CASES {
            let inputs = [
                random(&[b, c_in, 8, 9], 1),
                random(&[c_out, c_in, k, k], 2),
                random(&[c_out], 3),
            ];
            gradient::check(&inputs, |v| {
                conv2d(&v[0], &v[1], Some(&v[2]), padding, stride, 1)
            });
        }
        let inputs = [random(&[2, 3, 5, 6], 1), random(&[3, 1, 3, 3], 2)];
        gradient::check(&inputs, |v| conv2d(&v[0], &v[1], None, 1, 1, 3));
    }

    /// Channels that the engine's kernels take: whole blocks and parts of them, bands and pictures that end anywhere.
    #[test]
    fn f32_and_its_gradients_are_those_of_f64() {
        for (c_in, c_out, k, padding, (h, w)) in [
            (20, 24, 3, 1, (70, 66)),
            (40, 50, 3, 1, (72, 71)),
            (33, 17, 3, 0, (19, 30)),
            (3, 16, 3, 1, (12, 9)),
            (16, 40, 7, 3, (13, 17)),
            (33, 10, 1, 0, (40, 9)),
            (9, 8, 3, 0, (5, 33)),
            (8, 70, 3, 2, (3, 4)),
            (64, 32, 3, 1, (1, 1)),
            (8, 9, 7, 0, (7, 7)),
            (3, 16, 7, 3, (21, 18)),
            (20, 3, 7, 3, (18, 21)),
            (1, 8, 3, 1, (9, 9)),
        ] {
            let inputs = [
                random(&[2, c_in, h, w], 1),
                random(&[c_out, c_in, k, k], 2),
                random(&[c_out], 3),
            ];
            let run = |v: &[Tensor]| conv2d(&v[0], &v[1], Some(&v[2]), padding, 1, 1);
            let of = |dtype: DType| {
                let cast = |t: &Tensor| t.to_dtype(dtype).unwrap();
                let inputs: Vec<Tensor> = inputs.iter().map(cast).collect();
                let mut all = gradient::of(&inputs, &run);
                all.push(run(&inputs).unwrap());
                all
            };
            for (got, wanted) in of(DType::F32).iter().zip(of(DType::F64)) {
                let got = got.to_dtype(DType::F64).unwrap();
                let scale = gradient::distance(&wanted, &wanted.zeros_like().unwrap());
                let off = gradient::distance(&got, &wanted) / scale;
                assert!(off < 1e-5, "{c_in} to {c_out}, {k}x{k}, {h}x{w}: {off:.1e}");
            }
        }
    }

    #[test]
    fn one_kernel_for_each_channel_tap_by_tap_is_the_same() {
        let (x, weight) = (random(&[2, 3, 6, 5], 1), random(&[3, 1, 3, 3], 2));
        let wanted = conv2d(&x, &weight, None, 1, 1, 3).unwrap();
        assert!(gradient::distance(&by_taps(&x, &weight, 1).unwrap(), &wanted) < 1e-12);
        gradient::check(&[x.clone(), weight], |v| by_taps(&v[0], &v[1], 1));
        assert!(by_taps(&x, &random(&[3, 1, 9, 9], 2), 1).is_err());
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let x = random(&[1, 3, 4, 4], 1);
        for weight in [&[2, 4, 3, 3][..], &[2, 3, 7, 7], &[2, 3, 3, 2]] {
            assert!(conv2d(&x, &random(weight, 2), None, 1, 1, 1).is_err());
        }
        let weight = random(&[2, 3, 3, 3], 2);
        assert!(conv2d(&x, &weight, Some(&random(&[3], 1)), 1, 1, 1).is_err());
        assert_eq!(x.device().is_cpu(), Device::Cpu.is_cpu());
    }
}

//! Convolutions with what surrounds them: bias, relu, a batch norm that is fixed, an enlargement before them.

use std::borrow::Cow;

use candle_core::{DType, Result, Tensor, bail};

use super::{Fused, Launch, Params, flags, relu_if};

/// Smaller maps than this are enlarged as they are: what a folded convolution saves is arithmetic, and theirs is little beside
/// the reading of its weights, which are 16/9 as many.
const FOLDED_FROM: usize = 16;

/// As [`conv2d`](crate::ops::conv2d::conv2d), then zero for what is below it if `relu`; sums are f32 whatever the elements
/// are.
///
/// # Errors
/// When shapes do not fit, or there are groups that are not of one channel.
pub fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    padding: usize,
    stride: usize,
    groups: usize,
    relu: bool,
) -> Result<Tensor> {
    if groups != 1 {
        return depthwise(x, weight, bias, [padding, stride, groups], relu);
    }
    #[cfg(feature = "cudnn")]
    if x.device().is_cuda() {
        return super::cudnn::conv2d(x, weight, bias, padding, stride, relu);
    }
    let y = sums(x, weight, padding, stride)?;
    match bias {
        Some(bias) => add_bias(&y, bias, relu),
        None if relu => y.relu(),
        None => Ok(y),
    }
}

/// Nearest x2 of (b, c, h, w), then [`conv2d`] by `weight` (c_out, c, 3, 3) with a padding of 1: (b, c_out, 2h, 2w).
/// `folded` is [`fold`]'s weight, by which the enlarged map need not be made.
pub fn up_conv2d(
    x: &Tensor,
    weight: &Tensor,
    folded: &Tensor,
    bias: &Tensor,
    relu: bool,
) -> Result<Tensor> {
    let (b, _, h, w) = x.dims4()?;
    if h.min(w) < FOLDED_FROM {
        let large = super::nearest_x2(x)?;
        return conv2d(&large, weight, Some(bias), 1, 1, 1, relu);
    }
    let windows = conv2d(x, folded, None, 1, 1, 1, false)?;
    unfold(&windows, bias, [b, weight.dim(0)?, h, w], relu)
}

/// The weight (4 c_out, c_in, 2, 2) of the 2x2 convolution that a 3x3 one (c_out, c_in, 3, 3) over a map enlarged by two
/// is on the map itself: one for the odd rows and columns, odd rows and even columns, and so on.
///
/// Of three neighbours on the enlarged map two are the same pixel. A window on pixels i - 1, i holds the outputs 2i - 1, whose
/// taps are w0 + w1, w2, and 2i, whose taps are w0, w1 + w2.
pub fn fold(weight: &Tensor) -> Result<Tensor> {
    let wide = weight.to_dtype(DType::F32)?;
    let phases = |w: &Tensor, dim: usize| -> Result<[Tensor; 2]> {
        let tap = |i| w.narrow(dim, i, 1);
        let (first, middle, last) = (tap(0)?, tap(1)?, tap(2)?);
        let odd = Tensor::cat(&[&(&first + &middle)?, &last], dim)?;
        let even = Tensor::cat(&[&first, &(&middle + &last)?], dim)?;
        Ok([odd, even])
    };
    let mut folded = Vec::new();
    for rows in phases(&wide, 2)? {
        folded.extend(phases(&rows, 3)?);
    }
    Tensor::cat(&folded, 0)?.to_dtype(weight.dtype())
}

/// A batch norm that is fixed, and relu: (b, c, h, w) by `scale` and `shift` (c), f32.
pub fn scale_shift_relu(x: &Tensor, scale: &Tensor, shift: &Tensor) -> Result<Tensor> {
    let mut launch = per_element(x, "convolution/scale_shift", true)?;
    check_vector(&launch, scale)?;
    check_vector(&launch, shift)?;
    launch.to = x.dtype();
    let plain: super::Plain =
        |p, args| each(p, &args[0], |v, c| relu_if(v * args[1][c] + args[2][c], p));
    Fused { launch, plain }.run(&[x, scale, shift])
}

/// A convolution without bias.
fn sums(x: &Tensor, weight: &Tensor, padding: usize, stride: usize) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return x.conv2d(weight, padding, stride, 1, 1);
    }
    // Half precision, as a card does it: f32 until the sum is there.
    let [wide, weight] = [x, weight].map(|t| t.to_dtype(DType::F32));
    crate::ops::conv2d::conv2d(&wide?, &weight?, None, padding, stride, 1)?.to_dtype(x.dtype())
}

pub(super) fn add_bias(y: &Tensor, bias: &Tensor, relu: bool) -> Result<Tensor> {
    let launch = per_element(y, "convolution/bias", relu)?;
    check_vector(&launch, bias)?;
    let plain: super::Plain = |p, args| each(p, &args[0], |v, c| relu_if(v + args[1][c], p));
    Fused { launch, plain }.run(&[y, bias])
}

pub(super) fn depthwise(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    [padding, stride, groups]: [usize; 3],
    relu: bool,
) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    let (c_out, one, k, kw) = weight.dims4()?;
    let fits = h.min(w) + 2 * padding >= k && k > 0 && k == kw && stride > 0;
    if groups != c || c_out != c || one != 1 || !fits {
        bail!(
            "depthwise: a weight {:?} does not fit an input {:?}",
            weight.dims(),
            x.dims()
        );
    }
    let side = |n: usize| (n + 2 * padding - k) / stride + 1;
    let (ho, wo) = (side(h), side(w));
    let mut launch = Launch::new(
        "convolution/depthwise",
        x.dtype(),
        b * c * ho * wo,
        (b, c, ho, wo),
    )?;
    launch.params = Params {
        count: k as u32,
        padding: padding as u32,
        stride: stride as u32,
        flags: if relu { flags::RELU } else { 0 } | if bias.is_some() { flags::BIAS } else { 0 },
        ..launch.params.sized([b, c, h, w], [ho, wo])
    };
    if let Some(bias) = bias {
        check_vector(&launch, bias)?;
    }
    let op = Fused {
        launch,
        plain: plain_depthwise,
    };
    match bias {
        Some(bias) => op.run(&[x, weight, bias]),
        None => op.run(&[x, weight]),
    }
}

/// The windows of a folded convolution put in their places, with bias.
fn unfold(windows: &Tensor, bias: &Tensor, [b, c, h, w]: [usize; 4], relu: bool) -> Result<Tensor> {
    if windows.dims() != [b, 4 * c, h + 1, w + 1] {
        bail!(
            "unfold: windows {:?} of ({b}, {c}, {h}, {w})",
            windows.dims()
        );
    }
    let mut launch = Launch::new(
        "convolution/unfold",
        windows.dtype(),
        4 * b * c * h * w,
        (b, c, 2 * h, 2 * w),
    )?;
    launch.params = Params {
        flags: if relu { flags::RELU } else { 0 },
        ..launch.params.sized([b, c, h + 1, w + 1], [2 * h, 2 * w])
    };
    check_vector(&launch, bias)?;
    let op = Fused {
        launch,
        plain: plain_unfold,
    };
    op.run(&[windows, bias])
}

fn per_element(x: &Tensor, kernel: &'static str, relu: bool) -> Result<Launch> {
    let (b, c, h, w) = x.dims4()?;
    let mut launch = Launch::new(kernel, x.dtype(), x.elem_count(), x.shape())?;
    launch.params = Params {
        flags: if relu { flags::RELU } else { 0 },
        ..launch.params.sized([b, c, h, w], [h, w])
    };
    Ok(launch)
}

fn check_vector(launch: &Launch, vector: &Tensor) -> Result<()> {
    if vector.dims() != [launch.params.channels as usize] {
        bail!(
            "{}: a vector {:?} for {} channels",
            launch.kernel,
            vector.dims(),
            launch.params.channels
        );
    }
    Ok(())
}

/// What `of` makes of each value and the number of its channel.
fn each(p: &Params, x: &[f32], of: impl Fn(f32, usize) -> f32) -> Vec<f32> {
    let channels = p.channels as usize;
    x.chunks_exact(p.plane().max(1))
        .enumerate()
        .flat_map(|(plane, values)| {
            let of = &of;
            values.iter().map(move |&v| of(v, plane % channels))
        })
        .collect()
}

/// The sum of a kernel's taps over a plane, at output (y, x), zeros outside.
pub(super) fn window(p: &Params, plane: &[f32], taps: &[f32], y: usize, x: usize) -> f32 {
    let (h, w, k) = (p.h as usize, p.w as usize, p.count as usize);
    let at = |out: usize, tap: usize, size: usize| {
        let place = out * p.stride as usize + tap;
        place.checked_sub(p.padding as usize).filter(|&v| v < size)
    };
    let mut sum = 0.0;
    for ky in 0..k {
        for kx in 0..k {
            if let (Some(row), Some(column)) = (at(y, ky, h), at(x, kx, w)) {
                sum += plane[row * w + column] * taps[ky * k + kx];
            }
        }
    }
    sum
}

fn plain_depthwise(p: &Params, args: &[Cow<'_, [f32]>]) -> Vec<f32> {
    let (channels, wo) = (p.channels as usize, p.wo as usize);
    let taps = (p.count * p.count) as usize;
    let planes = args[0].chunks_exact(p.plane().max(1)).enumerate();
    planes
        .flat_map(|(i, plane)| {
            let channel = i % channels;
            let bias = args.get(2).map_or(0.0, |bias| bias[channel]);
            let taps = &args[1][channel * taps..][..taps];
            (0..p.plane_out())
                .map(move |i| relu_if(bias + window(p, plane, taps, i / wo, i % wo), p))
        })
        .collect()
}

fn plain_unfold(p: &Params, args: &[Cow<'_, [f32]>]) -> Vec<f32> {
    let (channels, wo, w) = (p.channels as usize, p.wo as usize, p.w as usize);
    let windows = &args[0];
    let mut large = Vec::with_capacity(p.outputs as usize * channels * p.plane_out());
    for plane in 0..p.outputs as usize * channels {
        let (picture, channel) = (plane / channels, plane % channels);
        for i in 0..p.plane_out() {
            let (y, x) = (i / wo + 1, i % wo + 1);
            let phase = 2 * (y % 2) + x % 2;
            let from = (picture * 4 + phase) * channels + channel;
            let v = windows[from * p.plane() + y / 2 * w + x / 2];
            large.push(relu_if(v + args[1][channel], p));
        }
    }
    large
}

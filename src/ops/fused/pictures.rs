//! Changing a picture's size, and from planes to bytes.

use std::borrow::Cow;

use candle_core::{DType, Result, Tensor, bail};

use super::{Fused, Launch, Params};

/// As [`nearest_x2`](crate::ops::resample::nearest_x2).
pub fn nearest_x2(x: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    resized(x, "resample/nearest_x2", [b, c, 2 * h, 2 * w])?.run(&[x])
}

/// As [`mean_2x2`](crate::ops::resample::mean_2x2).
pub fn mean_2x2(x: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    resized(x, "resample/mean_2x2", [b, c, h / 2, w / 2])?.run(&[x])
}

/// Pictures (b, c, h, w) seen through `kernel` (k, k; f32; k odd), every `factor`-th pixel from the first on:
/// (b, c, ceil(h / factor), ceil(w / factor)).
pub fn reduce(x: &Tensor, kernel: &Tensor, factor: usize) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    let (k, _) = kernel.dims2()?;
    let mut op = resized(
        x,
        "resample/reduce",
        [b, c, h.div_ceil(factor), w.div_ceil(factor)],
    )?;
    let params = &mut op.launch.params;
    (params.count, params.padding, params.stride) = (k as u32, k as u32 / 2, factor as u32);
    op.run(&[x, kernel])
}

/// Pictures (b, 3, h, w) in 0..1 as pixels: (b, h, w, 4) bytes of RGBA, opaque.
pub fn pack(planes: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = planes.dims4()?;
    if c != 3 {
        bail!("pack: {c} planes are no picture");
    }
    let mut launch = Launch::new("pack/pack", planes.dtype(), b * h * w, (b, h, w, 4))?;
    launch.to = DType::U8;
    launch.params = launch.params.sized([b, c, h, w], [h, w]);
    let op = Fused {
        launch,
        plain: plain_pack,
    };
    op.run(&[planes])
}

/// Pixels (b, h, w, 4) of RGBA bytes as pictures (b, 3, h, w) in 0..1, f32.
pub fn unpack(pixels: &Tensor) -> Result<Tensor> {
    let (b, h, w, bytes) = pixels.dims4()?;
    if bytes != 4 || pixels.dtype() != DType::U8 {
        bail!("unpack: {:?} are no pixels", pixels.dims());
    }
    let mut launch = Launch::new("pack/unpack", DType::F32, b * h * w, (b, 3, h, w))?;
    launch.params = launch.params.sized([b, 4, h, w], [h, w]);
    let op = Fused {
        launch,
        plain: |p, args| {
            let pictures = args[0].chunks_exact(4 * p.plane().max(1));
            let plane = |picture: &[f32], c| -> Vec<f32> {
                let bytes = picture.iter().skip(c).step_by(4);
                bytes.map(|byte| byte / 255.0).collect()
            };
            pictures
                .flat_map(|picture| (0..3).flat_map(move |c| plane(picture, c)))
                .collect()
        },
    };
    op.run(&[pixels])
}

fn resized(x: &Tensor, kernel: &'static str, to: [usize; 4]) -> Result<Fused> {
    let (b, c, h, w) = x.dims4()?;
    let mut launch = Launch::new(kernel, x.dtype(), to.iter().product(), to.to_vec())?;
    launch.params = launch.params.sized([b, c, h, w], [to[2], to[3]]);
    let plain = match kernel {
        "resample/nearest_x2" => plain_nearest_x2,
        "resample/mean_2x2" => plain_mean_2x2,
        _ => plain_reduce,
    };
    Ok(Fused { launch, plain })
}

/// Every output pixel of every plane: what `of` makes of the plane's pixels and the place (y, x).
fn planes(p: &Params, x: &[f32], of: impl Fn(&[f32], usize, usize) -> f32) -> Vec<f32> {
    let (ho, wo) = (p.ho as usize, p.wo as usize);
    x.chunks_exact(p.plane().max(1))
        .flat_map(|plane| {
            let of = &of;
            (0..ho * wo).map(move |i| of(plane, i / wo, i % wo))
        })
        .collect()
}

fn plain_nearest_x2(p: &Params, args: &[Cow<'_, [f32]>]) -> Vec<f32> {
    planes(p, &args[0], |plane, y, x| {
        plane[y / 2 * p.w as usize + x / 2]
    })
}

fn plain_mean_2x2(p: &Params, args: &[Cow<'_, [f32]>]) -> Vec<f32> {
    let w = p.w as usize;
    planes(p, &args[0], |plane, y, x| {
        let at = 2 * y * w + 2 * x;
        0.25 * (plane[at] + plane[at + 1] + plane[at + w] + plane[at + w + 1])
    })
}

fn plain_reduce(p: &Params, args: &[Cow<'_, [f32]>]) -> Vec<f32> {
    planes(p, &args[0], |plane, y, x| {
        super::convolution::window(p, plane, &args[1], y, x)
    })
}

fn plain_pack(p: &Params, args: &[Cow<'_, [f32]>]) -> Vec<f32> {
    let places = p.plane();
    args[0]
        .chunks_exact(3 * places.max(1))
        .flat_map(|picture| {
            (0..places).flat_map(move |i| {
                let byte = |c: usize| {
                    // Cut to what a byte holds; what is no number becomes 0.
                    f32::from((picture[c * places + i] * 255.0 + 0.5) as u8)
                };
                [byte(0), byte(1), byte(2), 255.0]
            })
        })
        .collect()
}

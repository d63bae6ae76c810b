//! Plain references of the packed ops, in f64 and (c, h, w): what the tests compare kernels with.

use super::blocked::Size;
use super::conv::Spec;

/// Numbers without a pattern, in -1..1.
pub(crate) fn noise(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// The value of a picture's pixel, 0 outside it, after nearest x2 if asked for.
fn pixel(plane: &[f32], size: Size, upsample: bool, y: isize, x: isize) -> f64 {
    let scale = if upsample { 2 } else { 1 };
    let (height, width) = (size.height * scale, size.width * scale);
    match (usize::try_from(y), usize::try_from(x)) {
        (Ok(y), Ok(x)) if y < height && x < width => {
            f64::from(plane[y / scale * size.width + x / scale])
        }
        _ => 0.0,
    }
}

/// A convolution; `depthwise` pairs each input channel with one output.
pub(crate) fn conv(
    input: &[f32],
    size: Size,
    weight: &[f32],
    bias: &[f32],
    spec: Spec,
    depthwise: bool,
) -> (Vec<f32>, Size) {
    let Spec {
        kernel,
        padding,
        upsample,
        relu,
    } = spec;
    let side = |n: usize| n * if upsample { 2 } else { 1 } + 2 * padding + 1 - kernel;
    let out = Size {
        height: side(size.height),
        width: side(size.width),
    };
    let ins = weight.len() / bias.len() / (kernel * kernel);
    let mut result = Vec::with_capacity(bias.len() * out.pixels());
    for (o, bias) in bias.iter().enumerate() {
        for i in 0..out.pixels() {
            let (y, x) = (i / out.width, i % out.width);
            let mut sum = f64::from(*bias);
            for c in 0..ins {
                let from = if depthwise { o } else { c };
                let plane = &input[from * size.pixels()..][..size.pixels()];
                for k in 0..kernel * kernel {
                    let (ky, kx) = (k / kernel, k % kernel);
                    let at = |a: usize, b: usize| (a + b) as isize - padding as isize;
                    let tap = f64::from(weight[(o * ins + c) * kernel * kernel + k]);
                    sum += tap * pixel(plane, size, upsample, at(y, ky), at(x, kx));
                }
            }
            result.push(if relu { sum.max(0.0) } else { sum } as f32);
        }
    }
    (result, out)
}

/// Means of 2x2.
pub(crate) fn pool(input: &[f32], size: Size) -> Vec<f32> {
    let planes = input.chunks_exact(size.pixels());
    planes
        .flat_map(|plane| {
            let half = Size {
                height: size.height / 2,
                width: size.width / 2,
            };
            (0..half.pixels()).map(move |i| {
                let (y, x) = (i / half.width * 2, i % half.width * 2);
                let at = |dy: usize, dx: usize| plane[(y + dy) * size.width + x + dx];
                (at(0, 0) + at(0, 1) + at(1, 0) + at(1, 1)) / 4.0
            })
        })
        .collect()
}

/// The largest difference over the root of the mean square of what was wanted.
pub(crate) fn error(got: &[f32], wanted: &[f32]) -> f64 {
    assert_eq!(got.len(), wanted.len());
    let squares: f64 = wanted.iter().map(|v| f64::from(*v).powi(2)).sum();
    let rms = (squares / wanted.len() as f64).sqrt().max(1e-12);
    let differences = got.iter().zip(wanted).map(|(a, b)| f64::from(a - b).abs());
    differences.fold(
        0.0,
        |a: f64, d| if d.is_nan() { f64::INFINITY } else { a.max(d) },
    ) / rms
}

//! What dense motion and the keypoint detector do beside their convolutions.

use std::borrow::Cow;

use candle_core::{D, DType, Result, Tensor, bail};

use super::{Block, Fused, Launch, Params, centre, flags};
use crate::ops::grid_sample::{GridSample, Padding};
use crate::ops::matrix;

/// The numbers of a pair of keypoints: place and jacobian of the source's and of the driver's.
pub(crate) const PAIR: usize = 12;

/// The pairs (b, K, 12) of the source's keypoints (1 or b) and the driver's (b), f32: `values` are (.., K, 2), `jacobians`
/// (.., K, 2, 2), the source's first.
pub fn pairs(values: [&Tensor; 2], jacobians: Option<[&Tensor; 2]>) -> Result<Tensor> {
    let (b, k, _) = values[1].dims3()?;
    let mut parts = Vec::with_capacity(4);
    for i in 0..2 {
        parts.push(values[i].broadcast_as((b, k, 2))?);
        parts.push(match jacobians {
            Some(both) => both[i].flatten_from(2)?.broadcast_as((b, k, 4))?,
            None => Tensor::zeros((b, k, 4), DType::F32, values[1].device())?,
        });
    }
    Tensor::cat(&parts, D::Minus1)?.to_dtype(DType::F32)
}

/// What dense motion's hourglass sees (paper, equations 4, 6 and 7), (b, 4 (K + 1), h, w) of type `to`: for the background
/// and each of the `pairs` (b, K, 12) the difference of two gaussians of `variance`, and `source` (1 or b, 3, h, w), f32, moved.
/// `linear`: the pairs have jacobians.
pub fn sparse_motion(
    source: &Tensor,
    pairs: &Tensor,
    linear: bool,
    variance: f64,
    to: DType,
) -> Result<Tensor> {
    let (batch, channels, h, w) = source.dims4()?;
    let (b, k, numbers) = pairs.dims3()?;
    if numbers != PAIR || (batch != 1 && batch != b) {
        bail!(
            "sparse_motion: pairs {:?} for a source {:?}",
            pairs.dims(),
            source.dims()
        );
    }
    let shape = (b, (1 + channels) * (k + 1), h, w);
    let mut launch = Launch::new("motion/sparse_motion", to, b * (k + 1) * h * w, shape)?;
    launch.params = Params {
        outputs: b as u32,
        count: k as u32,
        flags: if linear { flags::LINEAR } else { 0 },
        real: variance as f32,
        ..launch.params.sized([batch, channels, h, w], [h, w])
    };
    let op = Fused {
        launch,
        plain: plain_sparse_motion,
    };
    op.run(&[source, pairs])
}

/// Where each pixel comes from (b, h, w, 2), f32: the mean of the motions of `pairs` (b, K, 12) and of none, by the softmax of
/// `logits` (b, K + 1, h, w) over them.
pub fn deformation(logits: &Tensor, pairs: &Tensor, linear: bool) -> Result<Tensor> {
    let (b, motions, h, w) = logits.dims4()?;
    if pairs.dims() != [b, motions - 1, PAIR] {
        bail!(
            "deformation: pairs {:?} for a mask {:?}",
            pairs.dims(),
            logits.dims()
        );
    }
    let kernel = "motion/deformation";
    let mut launch = Launch::new(kernel, logits.dtype(), b * h * w, (b, h, w, 2))?;
    launch.to = DType::F32;
    launch.params = Params {
        count: motions as u32 - 1,
        flags: if linear { flags::LINEAR } else { 0 },
        ..launch.params.sized([b, motions, h, w], [h, w])
    };
    let op = Fused {
        launch,
        plain: plain_deformation,
    };
    op.run(&[logits, pairs])
}

/// Keypoints (b, K, 6) of maps (b, K, h, w), f32: the softmax of `logits` over `temperature` has its centre of mass at the first two
/// numbers, as (x, y) in -1..1; the others are its mean of the map of jacobians (b, 4 K, h, w), or (b, 4, h, w) for all, and zeros
/// without one.
pub fn keypoints(logits: &Tensor, maps: Option<&Tensor>, temperature: f64) -> Result<Tensor> {
    let (b, k, h, w) = logits.dims4()?;
    let mut launch = Launch::new("keypoints/keypoints", DType::F32, b * k, (b, k, 6))?;
    launch.block = Block::Together;
    launch.params = Params {
        count: k as u32,
        real: temperature as f32,
        ..launch.params.sized([b, k, h, w], [h, w])
    };
    if let Some(maps) = maps {
        let one = maps.dim(1)? == 4;
        if maps.dims() != [b, if one { 4 } else { 4 * k }, h, w] {
            bail!(
                "keypoints: jacobians {:?} for maps {:?}",
                maps.dims(),
                logits.dims()
            );
        }
        launch.params.flags = flags::LINEAR | if one { flags::ONE_MAP } else { 0 };
    }
    let op = Fused {
        launch,
        plain: plain_keypoints,
    };
    match maps {
        Some(maps) => op.run(&[logits, maps]),
        None => op.run(&[logits]),
    }
}

/// A deformation (b, h, w, 2), f32, of whose motion `inner` (h, w) is left: none where that is 0.
pub fn kept_still(deformation: &Tensor, inner: &Tensor) -> Result<Tensor> {
    let (b, h, w, axes) = deformation.dims4()?;
    if inner.dims() != [h, w] || axes != 2 {
        bail!(
            "kept_still: {:?} of a deformation {:?}",
            inner.dims(),
            deformation.dims()
        );
    }
    let mut launch = Launch::new(
        "motion/kept_still",
        DType::F32,
        b * h * w * 2,
        deformation.shape(),
    )?;
    launch.params = launch.params.sized([b, 2, h, w], [h, w]);
    let op = Fused {
        launch,
        plain: plain_kept_still,
    };
    op.run(&[deformation, inner])
}

/// An occlusion map (b, 1, h, w), f32, that counts as far as `inner` (h, w) says: all is seen where that is 0.
pub fn opened(map: &Tensor, inner: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = map.dims4()?;
    if inner.dims() != [h, w] || c != 1 {
        bail!("opened: {:?} of a map {:?}", inner.dims(), map.dims());
    }
    let mut launch = Launch::new("motion/opened", DType::F32, b * h * w, map.shape())?;
    launch.params = launch.params.sized([b, c, h, w], [h, w]);
    let op = Fused {
        launch,
        plain: |p, args| {
            let inner = args[1].iter().cycle();
            let map = args[0].iter().take((p.batch * p.h * p.w) as usize);
            map.zip(inner)
                .map(|(v, inner)| v * inner + (1.0 - inner))
                .collect()
        },
    };
    op.run(&[map, inner])
}

/// Features (b, c, h, w) of which a map (b, 1, h, w), f32, says how much is seen.
pub fn veiled(x: &Tensor, map: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    if map.dims() != [b, 1, h, w] {
        bail!("veiled: a map {:?} of {:?}", map.dims(), x.dims());
    }
    let mut launch = Launch::new("motion/veiled", x.dtype(), x.elem_count(), x.shape())?;
    launch.params = launch.params.sized([b, c, h, w], [h, w]);
    let op = Fused {
        launch,
        plain: |p, args| {
            let seen = |i: usize| args[1][i / p.channels as usize * p.plane()..].iter();
            let planes = args[0].chunks_exact(p.plane().max(1)).enumerate();
            planes
                .flat_map(|(i, plane)| plane.iter().zip(seen(i)).map(|(v, seen)| v * seen))
                .collect()
        },
    };
    op.run(&[x, map])
}

/// Where a pair takes a place, none for the background.
pub(crate) struct Motion {
    source: [f32; 2],
    driving: [f32; 2],
    jacobian: [[f32; 2]; 2],
}

impl Motion {
    pub(crate) fn of(pair: &[f32], linear: bool) -> Self {
        let matrix =
            |at: usize| matrix::widen([[pair[at], pair[at + 1]], [pair[at + 2], pair[at + 3]]]);
        let jacobian = match linear {
            true => matrix::product(matrix(2), matrix::inverse_or_large(matrix(8))),
            false => [[1.0, 0.0], [0.0, 1.0]],
        };
        Self {
            source: [pair[0], pair[1]],
            driving: [pair[6], pair[7]],
            jacobian: matrix::narrow(jacobian),
        }
    }

    /// The difference of the gaussians of `variance` at its keypoints.
    pub(crate) fn heat(&self, at: [f32; 2], variance: f32) -> f32 {
        gaussian(at, self.driving, variance) - gaussian(at, self.source, variance)
    }

    pub(crate) fn at(&self, [x, y]: [f32; 2]) -> [f32; 2] {
        let (x, y) = (x - self.driving[0], y - self.driving[1]);
        let [of_x, of_y] = self.jacobian;
        [
            of_x[0] * x + of_x[1] * y + self.source[0],
            of_y[0] * x + of_y[1] * y + self.source[1],
        ]
    }
}

fn gaussian([x, y]: [f32; 2], at: [f32; 2], variance: f32) -> f32 {
    let (x, y) = (x - at[0], y - at[1]);
    (-0.5 / variance * (x * x + y * y)).exp()
}

/// The places of a picture's pixels.
pub(crate) fn places(p: &Params) -> impl Iterator<Item = [f32; 2]> {
    let (h, w) = (p.h as usize, p.w as usize);
    (0..h).flat_map(move |y| (0..w).map(move |x| [centre(x, w), centre(y, h)]))
}

fn plain_sparse_motion(p: &Params, args: &[Cow<'_, [f32]>]) -> Vec<f32> {
    let (source, pairs) = (&args[0], &args[1]);
    let (channels, k) = (p.channels as usize, p.count as usize);
    let sampler = GridSample::new(Padding::Zeros, true);
    let mut out = Vec::with_capacity(p.outputs as usize * (k + 1) * (channels + 1) * p.plane());
    for b in 0..p.outputs as usize {
        for motion in 0..=k {
            let pair = motion
                .checked_sub(1)
                .map(|i| &pairs[(b * k + i) * PAIR..][..PAIR]);
            let motion = pair.map(|pair| Motion::of(pair, p.has(flags::LINEAR)));
            out.extend(places(p).map(|at| match &motion {
                None => 0.0,
                Some(m) => m.heat(at, p.real),
            }));
            let from = if p.batch == 1 { 0 } else { b };
            for plane in
                (0..channels).map(|c| &source[(from * channels + c) * p.plane()..][..p.plane()])
            {
                out.extend(places(p).map(|at| {
                    let [x, y] = motion.as_ref().map_or(at, |m| m.at(at)).map(f64::from);
                    let corners = sampler.corners::<f32>(x, y, p.h as usize, p.w as usize);
                    corners
                        .iter()
                        .map(|&(at, weight)| plane[at] * weight)
                        .sum::<f32>()
                }));
            }
        }
    }
    out
}

fn plain_deformation(p: &Params, args: &[Cow<'_, [f32]>]) -> Vec<f32> {
    let (logits, pairs) = (&args[0], &args[1]);
    let k = p.count as usize;
    let mut out = Vec::with_capacity(2 * p.outputs as usize * p.plane());
    for b in 0..p.outputs as usize {
        let motions: Vec<Motion> = pairs[b * k * PAIR..][..k * PAIR]
            .chunks_exact(PAIR)
            .map(|pair| Motion::of(pair, p.has(flags::LINEAR)))
            .collect();
        let logits = &logits[b * (k + 1) * p.plane()..][..(k + 1) * p.plane()];
        for (i, at) in places(p).enumerate() {
            let mine = || logits.iter().skip(i).step_by(p.plane());
            let most = mine().copied().fold(f32::NEG_INFINITY, f32::max);
            let (mut sum, mut place) = (0.0, [0.0; 2]);
            for (motion, logit) in mine().enumerate() {
                let weight = (logit - most).exp();
                let to = motion.checked_sub(1).map_or(at, |i| motions[i].at(at));
                sum += weight;
                place = [place[0] + weight * to[0], place[1] + weight * to[1]];
            }
            out.extend(place.map(|v| v / sum));
        }
    }
    out
}

fn plain_kept_still(p: &Params, args: &[Cow<'_, [f32]>]) -> Vec<f32> {
    let (moved, _) = args[0].as_chunks::<2>();
    let fields = moved.chunks_exact(p.plane().max(1));
    fields
        .flat_map(|field| field.iter().zip(places(p)).zip(args[1].iter()))
        .flat_map(|((to, still), inner)| {
            [0, 1].map(|axis| (to[axis] - still[axis]) * inner + still[axis])
        })
        .collect()
}

fn plain_keypoints(p: &Params, args: &[Cow<'_, [f32]>]) -> Vec<f32> {
    let plane = p.plane();
    let mut out = Vec::with_capacity(6 * (p.outputs * p.count) as usize);
    for (i, logits) in args[0].chunks_exact(plane.max(1)).enumerate() {
        let maps = args.get(1).map(|maps| {
            let map = if p.has(flags::ONE_MAP) {
                i / p.count as usize
            } else {
                i
            };
            &maps[4 * map * plane..][..4 * plane]
        });
        let most = logits
            .iter()
            .map(|v| v / p.real)
            .fold(f32::NEG_INFINITY, f32::max);
        let mut sums = [0f64; 7];
        for (n, (logit, [x, y])) in logits.iter().zip(places(p)).enumerate() {
            let weight = f64::from((logit / p.real - most).exp());
            let jacobian = [0, 1, 2, 3].map(|j| maps.map_or(0.0, |maps| maps[j * plane + n]));
            let [a, b, c, d] = jacobian;
            for (sum, value) in sums.iter_mut().zip([x, y, a, b, c, d, 1.0]) {
                *sum += weight * f64::from(value);
            }
        }
        out.extend(sums[..6].iter().map(|sum| (sum / sums[6]) as f32));
    }
    out
}

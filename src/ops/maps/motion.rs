//! Keypoints and dense motion, as maps.

use std::borrow::Cow;

use candle_core::{DType, Result, Tensor, bail};

use super::{Map, UNIT, logistic, padded_to};
use crate::ops::fused::{self, Block, Fused, Launch, Params, flags};
use crate::ops::grid_sample::{GridSample, Padding};

/// What lies in the map of the keypoint detector's last layers: logits of keypoints, then their jacobians' maps.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Keypoints.
    pub count: usize,
    /// Maps of jacobians: none, one for all keypoints, or one for each.
    pub jacobians: usize,
    /// By which logits are divided.
    pub temperature: f64,
}

/// Keypoints (b, K, 6) of a map of `heads`, f32: places as (x, y) in -1..1, then jacobians by rows, or zeros.
pub fn points(map: &Map, heads: Heads) -> Result<Tensor> {
    let [b, h, w, padded] = map.dims()?;
    let k = heads.count;
    if map.channels != k + 4 * heads.jacobians || ![0, 1, k].contains(&heads.jacobians) {
        bail!("points: {} features are not {heads:?}", map.channels);
    }
    let mut launch = Launch::new("maps/points", DType::F32, b * k, (b, k, 6))?;
    launch.block = Block::Together;
    launch.params = Params {
        count: k as u32,
        real: heads.temperature as f32,
        flags: match heads.jacobians {
            0 => 0,
            maps if maps == k => flags::LINEAR,
            _ => flags::LINEAR | flags::ONE_MAP,
        },
        ..launch.params.sized([b, padded, h, w], [h, w])
    };
    let op = Fused {
        launch,
        plain: plain_points,
    };
    op.run(&[&map.data])
}

/// What dense motion's hourglass sees (paper, equations 4, 6 and 7), a map of 4 (K + 1) features of type `to`: for the background and
/// each of the `pairs` (b, K, 12) (see [`fused::pairs`]) the difference of two gaussians of `variance`, and `source`, a map of three
/// features of 1 or b pictures, f32, moved. `linear`: the pairs have jacobians.
pub fn motions(
    source: &Map,
    pairs: &Tensor,
    linear: bool,
    variance: f64,
    to: DType,
) -> Result<Map> {
    let [batch, h, w, padded] = source.dims()?;
    let (b, k, numbers) = pairs.dims3()?;
    if numbers != fused::PAIR || (batch != 1 && batch != b) || source.channels != 3 {
        bail!(
            "motions: pairs {:?} for {:?}",
            pairs.dims(),
            source.data.dims()
        );
    }
    let features = padded_to(4 * (k + 1));
    let threads = b * h * w * features / 4;
    let mut launch = Launch::new("maps/motions", to, threads, (b, h, w, features))?;
    launch.params = Params {
        outputs: b as u32,
        count: k as u32,
        flags: if linear { flags::LINEAR } else { 0 },
        real: variance as f32,
        features: features as u32,
        ..launch.params.sized([batch, padded, h, w], [h, w])
    };
    let op = Fused {
        launch,
        plain: plain_motions,
    };
    Map::new(op.run(&[&source.data, pairs])?, 4 * (k + 1))
}

/// Where each pixel comes from (b, h, w, 2) and, where the map has a feature for it, what of the source is seen (b, 1, h, w), f32: from a
/// map of logits of the background and the `pairs` (b, K, 12), f32.
pub fn decide(map: &Map, pairs: &Tensor, linear: bool) -> Result<(Tensor, Option<Tensor>)> {
    let [b, h, w, padded] = map.dims()?;
    let (batch, k, numbers) = pairs.dims3()?;
    let seen = map.channels == k + 2;
    if !(seen || map.channels == k + 1) || batch != b || numbers != fused::PAIR {
        bail!(
            "decide: {} features for pairs {:?}",
            map.channels,
            pairs.dims()
        );
    }
    let places = b * h * w;
    let all = places * if seen { 3 } else { 2 };
    let mut launch = Launch::new("maps/decide", DType::F32, places, all)?;
    launch.params = Params {
        count: k as u32,
        flags: if linear { flags::LINEAR } else { 0 } | if seen { flags::BIAS } else { 0 },
        ..launch.params.sized([b, padded, h, w], [h, w])
    };
    let op = Fused {
        launch,
        plain: plain_decide,
    };
    let made = op.run(&[&map.data, pairs])?;
    let deformation = made.narrow(0, 0, 2 * places)?.reshape((b, h, w, 2))?;
    let occlusion = match seen {
        true => Some(made.narrow(0, 2 * places, places)?.reshape((b, 1, h, w))?),
        false => None,
    };
    Ok((deformation, occlusion))
}

/// Features of 1 or b pictures moved by a `deformation` (b, h', w', 2) and multiplied by what is `seen` (b, 1, h', w'), f32; with `norm`
/// (2, features padded), f32, a second time by its scale and shift, zero for what is below it.
pub fn follow(
    features: &Map,
    deformation: &Tensor,
    seen: Option<&Tensor>,
    norm: Option<&Tensor>,
) -> Result<(Map, Option<Map>)> {
    let [batch, h, w, padded] = features.dims()?;
    let (b, ho, wo, _) = deformation.dims4()?;
    let fits = seen.is_none_or(|seen| seen.dims() == [b, 1, ho, wo])
        && norm.is_none_or(|norm| norm.dims() == [2, padded]);
    if !fits || (batch != 1 && batch != b) {
        bail!(
            "follow: {:?} for {:?}",
            deformation.dims(),
            features.data.dims()
        );
    }
    let threads = b * ho * wo * padded / UNIT;
    let results = b << u8::from(norm.is_some());
    let dtype = features.data.dtype();
    let mut launch = Launch::new("maps/follow", dtype, threads, (results, ho, wo, padded))?;
    launch.params = Params {
        outputs: b as u32,
        ..launch.params.sized([batch, padded, h, w], [ho, wo])
    };
    let op = Fused {
        launch,
        plain: plain_follow,
    };
    let made = op.run_with(&[Some(&features.data), Some(deformation), seen, norm])?;
    let one = |from| Map::new(made.narrow(0, from, b)?, features.channels);
    Ok((one(0)?, norm.map(|_| one(b)).transpose()?))
}

fn plain_points(p: &Params, args: &[Cow<'_, [f32]>]) -> Vec<f32> {
    let (padded, k, places) = (p.channels as usize, p.count as usize, p.plane());
    let mut found = Vec::with_capacity(p.batch as usize * k * 6);
    for picture in args[0].chunks_exact((places * padded).max(1)) {
        for point in 0..k {
            let logits = picture
                .chunks_exact(padded)
                .map(|pixel| pixel[point] / p.real);
            let most = logits.clone().fold(f32::NEG_INFINITY, f32::max);
            let first = k + if p.has(flags::ONE_MAP) { 0 } else { 4 * point };
            let (mut sums, mut whole) = ([0f64; 6], 0f64);
            for ((logit, pixel), [x, y]) in logits
                .zip(picture.chunks_exact(padded))
                .zip(fused::places(p))
            {
                let weight = f64::from((logit - most).exp());
                whole += weight;
                sums[0] += weight * f64::from(x);
                sums[1] += weight * f64::from(y);
                if p.has(flags::LINEAR) {
                    for (sum, v) in sums[2..].iter_mut().zip(&pixel[first..][..4]) {
                        *sum += weight * f64::from(*v);
                    }
                }
            }
            found.extend(sums.map(|sum| (sum / whole) as f32));
        }
    }
    found
}

/// The motion of each of a picture's pairs, none for the background.
fn motions_of<'a>(
    p: &'a Params,
    pairs: &'a [f32],
    picture: usize,
) -> impl Iterator<Item = Option<fused::Motion>> + 'a {
    let k = p.count as usize;
    (0..=k).map(move |motion| {
        let pair = &pairs[(picture * k + motion.checked_sub(1)?) * fused::PAIR..][..fused::PAIR];
        Some(fused::Motion::of(pair, p.has(flags::LINEAR)))
    })
}

fn plain_motions(p: &Params, args: &[Cow<'_, [f32]>]) -> Vec<f32> {
    let (padded, features) = (p.channels as usize, p.features as usize);
    let sampler = GridSample::new(Padding::Zeros, true);
    let mut out = Vec::with_capacity(p.outputs as usize * p.plane() * features);
    for picture in 0..p.outputs as usize {
        let from = if p.batch == 1 { 0 } else { picture };
        let source = &args[0][from * p.plane() * padded..][..p.plane() * padded];
        let motions: Vec<_> = motions_of(p, &args[1], picture).collect();
        for place in fused::places(p) {
            for motion in &motions {
                out.push(motion.as_ref().map_or(0.0, |m| m.heat(place, p.real)));
                let to = motion.as_ref().map_or(place, |m| m.at(place));
                let [x, y] = to.map(f64::from);
                let corners = sampler.corners::<f32>(x, y, p.h as usize, p.w as usize);
                for colour in 0..3 {
                    let parts = corners
                        .iter()
                        .map(|&(at, weight)| source[at * padded + colour] * weight);
                    out.push(parts.sum());
                }
            }
            out.resize(out.len().next_multiple_of(features), 0.0);
        }
    }
    out
}

fn plain_decide(p: &Params, args: &[Cow<'_, [f32]>]) -> Vec<f32> {
    let (padded, k) = (p.channels as usize, p.count as usize);
    let (mut places, mut seen) = (Vec::new(), Vec::new());
    for (picture, logits) in args[0]
        .chunks_exact((p.plane() * padded).max(1))
        .enumerate()
    {
        let motions: Vec<_> = motions_of(p, &args[1], picture).collect();
        for (logits, place) in logits.chunks_exact(padded).zip(fused::places(p)) {
            let most = logits[..=k]
                .iter()
                .copied()
                .fold(f32::NEG_INFINITY, f32::max);
            let (mut sums, mut whole) = ([0f32; 2], 0f32);
            for (motion, logit) in motions.iter().zip(logits) {
                let weight = (logit - most).exp();
                let to = motion.as_ref().map_or(place, |m| m.at(place));
                whole += weight;
                sums[0] += weight * to[0];
                sums[1] += weight * to[1];
            }
            places.extend(sums.map(|sum| sum / whole));
            if p.has(flags::BIAS) {
                seen.push(logistic(logits[k + 1]));
            }
        }
    }
    places.extend(seen);
    places
}

fn plain_follow(p: &Params, args: &[Cow<'_, [f32]>]) -> Vec<f32> {
    let padded = p.channels as usize;
    let sampler = GridSample::new(Padding::Zeros, true);
    let of_picture = p.plane() * padded;
    let mut moved = Vec::with_capacity(p.outputs as usize * p.plane_out() * padded);
    let (grid, _) = args[1].as_chunks::<2>();
    for (i, &[x, y]) in grid.iter().enumerate() {
        let picture = if p.batch == 1 { 0 } else { i / p.plane_out() };
        let features = &args[0][picture * of_picture..][..of_picture];
        let corners = sampler.corners::<f32>(x.into(), y.into(), p.h as usize, p.w as usize);
        let seen = args[2].get(i).copied().unwrap_or(1.0);
        moved.extend((0..padded).map(|feature| {
            let parts = corners
                .iter()
                .map(|&(at, weight)| features[at * padded + feature] * weight);
            parts.sum::<f32>() * seen
        }));
    }
    if let Some(norm) = args.get(3).filter(|norm| !norm.is_empty()) {
        let (scale, shift) = norm.split_at(padded);
        let opened: Vec<f32> = moved
            .iter()
            .enumerate()
            .map(|(i, v)| (v * scale[i % padded] + shift[i % padded]).max(0.0))
            .collect();
        moved.extend(opened);
    }
    moved
}

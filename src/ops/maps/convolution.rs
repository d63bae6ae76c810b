//! Convolutions with what surrounds them.

use std::borrow::Cow;

use candle_core::{DType, Device, Result, Tensor, bail};

use super::job::{Form, Job};
use super::weight::Weight;
use super::{Map, UNIT, padded_to};
use crate::ops::conv2d::conv2d;
use crate::ops::fused::{self, Fused, Launch, Params, flags};
use crate::ops::resample;

/// From such maps on folded weights are taken for an enlargement. For smaller ones, where what is saved in arithmetic may be little beside
/// the reading of weights, which are 16/9 as many, cards that fetch boxes are asked.
const FOLDED_FROM: usize = 16;

/// A convolution of one map, or of two side by side, that keeps the pictures' size or, `doubled`, comes after an enlargement by two.
#[derive(Clone, Debug)]
pub struct Convolution {
    weight: Weight,
    /// For the 2x2 kernels that it is after an enlargement.
    folded: Option<Weight>,
    /// (features), f32, padded as they are.
    bias: Tensor,
    /// Features of each input.
    inputs: Vec<usize>,
    outputs: usize,
    side: usize,
    padding: usize,
    doubled: bool,
}

/// What follows a convolution.
#[derive(Clone, Copy, Debug, Default)]
pub struct Then<'a> {
    /// Zero for what is below it.
    pub relu: bool,
    /// Then the mean of every 2x2 pixels.
    pub pooled: bool,
    /// The result is f32.
    pub wide: bool,
    /// Then this is added, which is of the result's shape.
    pub summand: Option<&'a Map>,
    /// Scale and shift (2, features padded), f32: there is a second result, the first by them, and zero for what is below it.
    pub norm: Option<&'a Tensor>,
}

impl Convolution {
    /// Of a weight (c_out, c_in, k, k) and a bias (c_out), f32, on the CPU; `inputs` are the features of each map that is
    /// convolved, together c_in.
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub fn new(
        (weight, bias): (&Tensor, Option<&Tensor>),
        inputs: &[usize],
        padding: usize,
        doubled: bool,
        (device, dtype): (&Device, DType),
    ) -> Result<Self> {
        let (outputs, c_in, side, width) = weight.dims4()?;
        if side != width || !matches!(inputs.len(), 1 | 2) || inputs.iter().sum::<usize>() != c_in {
            bail!(
                "a weight {:?} does not fit maps of {inputs:?} features",
                weight.dims()
            );
        }
        let mut of_features = match bias {
            Some(bias) => bias.to_dtype(DType::F32)?.to_vec1()?,
            None => vec![0f32; outputs],
        };
        of_features.resize(padded_to(outputs), 0.0);
        let packed = |weight: &Tensor, phases| Weight::new(weight, phases, inputs, (device, dtype));
        let folds = doubled && side == 3 && padding == 1;
        Ok(Self {
            weight: packed(weight, 1)?,
            folded: folds
                .then(|| packed(&fused::fold(weight)?, 4))
                .transpose()?,
            bias: Tensor::new(of_features, device)?,
            inputs: inputs.to_vec(),
            outputs,
            side,
            padding,
            doubled,
        })
    }

    /// The convolution of `maps` and what follows it.
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub fn run(&self, maps: &[&Map], then: Then<'_>) -> Result<(Map, Option<Map>)> {
        let job = self.job(maps, then)?;
        let made = match self.plain() {
            Some(weight) => self.plainly(weight, maps, then)?,
            None => job.launched()?,
        };
        self.results(&made, job.shape[0], then)
    }

    pub(super) fn job<'a>(&'a self, maps: &'a [&'a Map], then: Then<'a>) -> Result<Job<'a>> {
        let channels: Vec<usize> = maps.iter().map(|map| map.channels).collect();
        let [first, rest @ ..] = maps else {
            bail!("a convolution of no map");
        };
        let [b, h, w, padded] = first.dims()?;
        if channels != self.inputs || rest.iter().any(|m| m.data.dims()[..3] != [b, h, w]) {
            bail!(
                "maps of {channels:?} features for a convolution of {:?}",
                self.inputs
            );
        }
        let second = rest.first().map(|map| map.dims()).transpose()?;
        let features = padded_to(self.outputs);
        let flag = |is: bool, flag| if is { flag } else { 0 };
        let params = Params {
            flags: flag(then.relu, flags::RELU)
                | flag(then.pooled, flags::POOLED)
                | flag(then.wide, flags::WIDE),
            second: second.map_or(0, |[_, _, _, padded]| padded as u32),
            features: features as u32,
            parts: 1,
            ..Params::default()
        };
        let shift = u8::from(self.doubled);
        let size = |n: usize| ((n << shift) + 2 * self.padding).checked_sub(self.side - 1);
        let (Some(ho), Some(wo)) = (size(h), size(w)) else {
            bail!("a kernel of {} over {h}x{w} pixels", self.side);
        };
        // Each of the folded kernels has as many places as the map has pixels.
        let folded = self.folded.as_ref().map(|by| Form {
            by,
            params: Params {
                count: 2,
                padding: 1,
                flags: params.flags | flags::FOLDED,
                ..params.sized([b, padded, h, w], [h, w])
            },
        });
        let as_it_is = Form {
            by: &self.weight,
            params: Params {
                count: self.side as u32,
                padding: self.padding as u32,
                flags: params.flags | flag(self.doubled, flags::DOUBLED),
                ..params.sized([b, padded, h, w], [ho, wo])
            },
        };
        let can_fold = !then.pooled && then.norm.is_none();
        let forms = match folded {
            Some(_) if h.min(w) >= FOLDED_FROM && !can_fold => {
                bail!("a mean or a norm after a convolution that is folded")
            }
            Some(folded) if h.min(w) >= FOLDED_FROM => vec![folded],
            Some(folded) if can_fold && super::fetches(self.bias.device()) => {
                vec![as_it_is, folded]
            }
            _ => vec![as_it_is],
        };
        let shape = match then.pooled {
            true => [b, ho / 2, wo / 2, features],
            false => [b, ho, wo, features],
        };
        if let Some(summand) = then.summand
            && (summand.data.dims() != shape || then.pooled)
        {
            bail!("{:?} cannot be added to {shape:?}", summand.data.dims());
        }
        if then.norm.is_some_and(|norm| norm.dims() != [2, features])
            || (then.norm.is_some() && (then.wide || then.pooled))
        {
            bail!("a norm that does not fit {shape:?}");
        }
        Ok(Job {
            forms,
            shape,
            dtype: first.data.dtype(),
            maps,
            bias: &self.bias,
            then,
        })
    }

    /// [`Convolution::run`] in every way that a card can be asked for it, for tests.
    ///
    /// # Errors
    /// As [`Convolution::run`].
    pub fn run_every_way(&self, maps: &[&Map], then: Then<'_>) -> Result<Vec<(Map, Option<Map>)>> {
        let job = self.job(maps, then)?;
        if self.plain().is_some() {
            return Ok(vec![self.run(maps, then)?]);
        }
        let ways = job.cuts().into_iter();
        ways.map(|cut| self.results(&job.launch(cut)?, job.shape[0], then))
            .collect()
    }

    /// The weight where it is not kernels that compute.
    fn plain(&self) -> Option<&Tensor> {
        #[cfg(test)]
        #[cfg(unix)]
        if fused::host::active() {
            return None;
        }
        self.weight.plain.as_ref()
    }

    fn results(&self, made: &Tensor, batch: usize, then: Then<'_>) -> Result<(Map, Option<Map>)> {
        let one = |from| Map::new(made.narrow(0, from, batch)?, self.outputs);
        let second = then.norm.map(|_| one(batch)).transpose()?;
        Ok((one(0)?, second))
    }

    /// By the convolution of the CPU.
    fn plainly(&self, weight: &Tensor, maps: &[&Map], then: Then<'_>) -> Result<Tensor> {
        let planes: Vec<Tensor> = maps
            .iter()
            .map(|map| map.to_planes()?.to_dtype(DType::F32))
            .collect::<Result<_>>()?;
        let mut x = Tensor::cat(&planes, 1)?;
        if self.doubled {
            x = resample::nearest_x2(&x)?;
        }
        let bias = self.bias.narrow(0, 0, self.outputs)?;
        let mut y = conv2d(&x, weight, Some(&bias), self.padding, 1, 1)?;
        if then.relu {
            y = y.relu()?;
        }
        if then.pooled {
            y = resample::mean_2x2(&y)?;
        }
        let to = match (then.wide, maps) {
            (false, [first, ..]) => first.data.dtype(),
            _ => DType::F32,
        };
        let mut map = Map::from_planes(&y)?.data;
        if let Some(summand) = then.summand {
            map = (map + summand.data.to_dtype(DType::F32)?)?;
        }
        match then.norm {
            Some(norm) => {
                let (scale, shift) = (norm.narrow(0, 0, 1)?, norm.narrow(0, 1, 1)?);
                let opened = map
                    .broadcast_mul(&scale.reshape((1, 1, 1, ()))?)?
                    .broadcast_add(&shift.reshape((1, 1, 1, ()))?)?
                    .relu()?;
                Tensor::cat(&[&map, &opened], 0)?.to_dtype(to)
            }
            None => map.to_dtype(to),
        }
    }
}

/// A convolution of each feature by itself.
#[derive(Clone, Debug)]
pub struct Depthwise {
    /// (k * k, features), f32, padded.
    taps: Tensor,
    bias: Tensor,
    channels: usize,
    side: usize,
}

impl Depthwise {
    /// Of a weight (c, 1, k, k), k odd, and a bias (c), f32, on the CPU.
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>, device: &Device) -> Result<Self> {
        let (channels, one, side, width) = weight.dims4()?;
        if one != 1 || side != width || side % 2 == 0 {
            bail!("{:?} is no depthwise weight", weight.dims());
        }
        let more = padded_to(channels) - channels;
        let taps = weight.to_dtype(DType::F32)?.reshape((channels, ()))?.t()?;
        let bias = match bias {
            Some(bias) => bias.to_dtype(DType::F32)?,
            None => Tensor::zeros(channels, DType::F32, &Device::Cpu)?,
        };
        Ok(Self {
            taps: taps
                .contiguous()?
                .pad_with_zeros(1, 0, more)?
                .to_device(device)?,
            bias: bias.pad_with_zeros(0, 0, more)?.to_device(device)?,
            channels,
            side,
        })
    }

    /// (b, h, w, c) to the same size, or, `doubled`, after an enlargement by two; then zero for what is below it if `relu`.
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub fn run(&self, map: &Map, doubled: bool, relu: bool) -> Result<Map> {
        let [b, h, w, padded] = map.dims()?;
        if map.channels != self.channels {
            bail!(
                "a map of {} features for a depthwise convolution of {}",
                map.channels,
                self.channels
            );
        }
        let [ho, wo] = [h, w].map(|n| n << u8::from(doubled));
        let threads = b * ho * wo * padded / UNIT;
        let mut launch = Launch::new(
            "maps/each_feature",
            map.data.dtype(),
            threads,
            (b, ho, wo, padded),
        )?;
        launch.params = Params {
            count: self.side as u32,
            padding: self.side as u32 / 2,
            flags: if relu { flags::RELU } else { 0 } | if doubled { flags::DOUBLED } else { 0 },
            ..launch.params.sized([b, padded, h, w], [ho, wo])
        };
        let op = Fused {
            launch,
            plain: plain_depthwise,
        };
        Map::new(op.run(&[&map.data, &self.taps, &self.bias])?, map.channels)
    }
}

fn plain_depthwise(p: &Params, args: &[Cow<'_, [f32]>]) -> Vec<f32> {
    let [c, h, w, ho, wo, k] = [p.channels, p.h, p.w, p.ho, p.wo, p.count].map(|n| n as usize);
    let shift = u8::from(p.has(flags::DOUBLED));
    let at = |out: usize, tap: usize, size: usize| {
        let place = (out + tap).checked_sub(p.padding as usize);
        place.filter(|&v| v < size << shift).map(|v| v >> shift)
    };
    let mut out = Vec::with_capacity(p.batch as usize * ho * wo * c);
    for picture in args[0].chunks_exact((h * w * c).max(1)) {
        for (y, x) in (0..ho * wo).map(|i| (i / wo, i % wo)) {
            let mut sums = args[2].to_vec();
            for (ky, kx) in (0..k * k).map(|tap| (tap / k, tap % k)) {
                let (Some(row), Some(column)) = (at(y, ky, h), at(x, kx, w)) else {
                    continue;
                };
                let pixel = &picture[(row * w + column) * c..][..c];
                let taps = &args[1][(ky * k + kx) * c..][..c];
                for ((sum, v), tap) in sums.iter_mut().zip(pixel).zip(taps) {
                    *sum += v * tap;
                }
            }
            out.extend(sums.iter().map(|&sum| fused::relu_if(sum, p)));
        }
    }
    out
}

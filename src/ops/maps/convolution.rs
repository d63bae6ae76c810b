//! Convolutions with what surrounds them.

use std::borrow::Cow;

use candle_core::{DType, Device, Result, Tensor, bail};

use super::{Map, UNIT, padded_to};
use crate::ops::conv2d::conv2d;
use crate::ops::fused::{self, Block, Fused, Launch, Params, flags};
use crate::ops::resample;

/// Smaller maps than this are enlarged as they are read: what folded weights save is arithmetic, and theirs is little beside the
/// reading of weights, which are 16/9 as many.
const FOLDED_FROM: usize = 16;

/// Pixels by features that a block of threads computes: the kernels of `shaders/cuda/tensor_cores.cu`.
pub(super) const TILES: [(&str, usize, usize); 4] = [
    ("tensor_cores/convolve_128x128", 128, 128),
    ("tensor_cores/convolve_128x64", 128, 64),
    ("tensor_cores/convolve_64x64", 64, 64),
    ("tensor_cores/convolve_128x16", 128, 16),
];

/// Threads of a block that puts sums together, and how many of them read parts of the same sums: as the kernel has them.
const FINISHERS: u32 = 256;
const MOST_READERS: usize = 8;

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

/// A weight as the kernels read it.
#[derive(Clone, Debug)]
struct Weight {
    /// (phases, features, taps, features of the inputs, each padded).
    packed: Tensor,
    /// As it was (c_out, c_in, k, k) in f32, on the CPU, where nothing is packed.
    plain: Option<Tensor>,
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
        let made = if job.is_plain() {
            job.plainly(self)?
        } else {
            job.launched()?
        };
        self.results(&made, job.shape[0], then)
    }

    fn job<'a>(&'a self, maps: &'a [&'a Map], then: Then<'a>) -> Result<Job<'a>> {
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
        let (by, folded) = match &self.folded {
            Some(folded) if h.min(w) >= FOLDED_FROM => (folded, true),
            _ => (&self.weight, false),
        };
        let doubled = self.doubled && !folded;
        let (high, wide) = (h << u8::from(doubled), w << u8::from(doubled));
        let (side, padding) = if folded {
            (2, 1)
        } else {
            (self.side, self.padding)
        };
        let size = |n: usize| (n + 2 * padding).checked_sub(side).map(|n| n + 1);
        // Each of the folded kernels has as many places as the map has pixels.
        let (ho, wo) = match (size(high), size(wide)) {
            _ if folded => (h, w),
            (Some(ho), Some(wo)) => (ho, wo),
            _ => bail!("a kernel of {side} over {h}x{w} pixels"),
        };
        let features = padded_to(self.outputs);
        let shape = match (then.pooled, folded) {
            (true, _) => [b, ho / 2, wo / 2, features],
            (_, true) => [b, 2 * h, 2 * w, features],
            _ => [b, ho, wo, features],
        };
        if let Some(summand) = then.summand
            && (summand.data.dims() != shape || then.pooled)
        {
            bail!("{:?} cannot be added to {shape:?}", summand.data.dims());
        }
        if then.norm.is_some_and(|norm| norm.dims() != [2, features])
            || (then.norm.is_some() && (then.wide || then.pooled || folded))
        {
            bail!("a norm that does not fit {shape:?}");
        }
        let flag = |is: bool, flag| if is { flag } else { 0 };
        let params = Params {
            count: side as u32,
            padding: padding as u32,
            flags: flag(then.relu, flags::RELU)
                | flag(doubled, flags::DOUBLED)
                | flag(folded, flags::FOLDED)
                | flag(then.pooled, flags::POOLED)
                | flag(then.wide, flags::WIDE),
            second: second.map_or(0, |[_, _, _, padded]| padded as u32),
            features: features as u32,
            parts: 1,
            ..Params::default().sized([b, padded, h, w], [ho, wo])
        };
        Ok(Job {
            params,
            shape,
            dtype: first.data.dtype(),
            maps,
            by,
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
        if job.is_plain() {
            return Ok(vec![self.run(maps, then)?]);
        }
        let batch = job.shape[0];
        let ways = job.cuts().into_iter();
        ways.map(|cut| self.results(&job.launch(cut)?, batch, then))
            .collect()
    }

    fn results(&self, made: &Tensor, batch: usize, then: Then<'_>) -> Result<(Map, Option<Map>)> {
        let one = |from| Map::new(made.narrow(0, from, batch)?, self.outputs);
        let second = then.norm.map(|_| one(batch)).transpose()?;
        Ok((one(0)?, second))
    }
}

impl Weight {
    fn new(
        weight: &Tensor,
        phases: usize,
        inputs: &[usize],
        (device, dtype): (&Device, DType),
    ) -> Result<Self> {
        let (all, c_in, side, _) = weight.dims4()?;
        let (outputs, taps) = (all / phases, side * side);
        let values: Vec<f32> = weight.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        let features = padded_to(outputs);
        let row: usize = inputs.iter().map(|&channels| padded_to(channels)).sum();
        let mut packed = vec![0f32; phases * features * taps * row];
        for output in 0..all {
            let (phase, feature) = (output / outputs, output % outputs);
            for tap in 0..taps {
                let to = ((phase * features + feature) * taps + tap) * row;
                let (mut from, mut place) = (0, to);
                for &channels in inputs {
                    for channel in 0..channels {
                        packed[place + channel] =
                            values[(output * c_in + from + channel) * taps + tap];
                    }
                    from += channels;
                    place += padded_to(channels);
                }
            }
        }
        let shape = (phases, features, taps, row);
        Ok(Self {
            packed: Tensor::from_vec(packed, shape, &Device::Cpu)?
                .to_dtype(dtype)?
                .to_device(device)?,
            plain: match device {
                Device::Cpu => Some(weight.to_dtype(dtype)?.to_dtype(DType::F32)?),
                _ => None,
            },
        })
    }
}

/// One convolution as it is to be made.
pub(super) struct Job<'a> {
    params: Params,
    shape: [usize; 4],
    dtype: DType,
    maps: &'a [&'a Map],
    by: &'a Weight,
    bias: &'a Tensor,
    then: Then<'a>,
}

/// How a convolution is cut into blocks: which of [`TILES`], and into how many parts its sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) tile: usize,
    pub(super) parts: usize,
}

impl Job<'_> {
    /// Whether it is not to be made by kernels.
    fn is_plain(&self) -> bool {
        #[cfg(test)]
        #[cfg(unix)]
        if fused::host::active() {
            return false;
        }
        self.by.plain.is_some()
    }

    fn phases(&self) -> usize {
        match self.params.has(flags::FOLDED) {
            true => 4,
            false => 1,
        }
    }

    /// Rows of the product of matrices: pixels of all pictures.
    fn rows(&self) -> usize {
        let [b, ho, wo] = [self.params.outputs, self.params.ho, self.params.wo].map(|n| n as usize);
        match self.then.pooled {
            true => b * (ho / 2) * (wo / 2) * 4,
            false => b * ho * wo,
        }
    }

    /// Steps of 64 bytes that its sums take.
    fn steps(&self) -> usize {
        let row = (self.params.channels + self.params.second) as usize;
        let taps = (self.params.count * self.params.count) as usize;
        (taps * row * self.dtype.size_in_bytes()).div_ceil(64)
    }

    fn blocks(&self, cut: Cut) -> usize {
        let (_, pixels, features) = TILES[cut.tile];
        let tiles =
            self.rows().div_ceil(pixels) * (self.params.features as usize).div_ceil(features);
        tiles * self.phases() * cut.parts
    }

    /// The ways that are worth trying, the likeliest first.
    pub(super) fn cuts(&self) -> Vec<Cut> {
        let mut cuts = Vec::new();
        for (tile, &(_, pixels, features)) in TILES.iter().enumerate() {
            let narrow = self.params.features as usize <= 16;
            // Tiles that would be half empty, or far too small.
            if (features > 64 && self.params.features as usize <= 64)
                || (features == 16) != narrow && !(narrow && features == 64 && pixels == 64)
            {
                continue;
            }
            for parts in [1, 2, 4, 8, 16, 32] {
                let cut = Cut { tile, parts };
                let blocks = self.blocks(cut);
                if parts == 1 || (self.steps() >= 4 * parts && blocks <= 1024) {
                    cuts.push(cut);
                }
            }
        }
        // A card has some hundred multiprocessors, each with room for a few blocks.
        cuts.sort_by_key(|&cut| self.blocks(cut).abs_diff(256));
        cuts
    }

    fn launched(&self) -> Result<Tensor> {
        self.launch(self.cut()?)
    }

    fn cut(&self) -> Result<Cut> {
        #[cfg(test)]
        #[cfg(unix)]
        if let Some(asked) = super::tests::asked_cut() {
            return Ok(asked);
        }
        #[cfg(feature = "cuda")]
        if self.bias.device().is_cuda() {
            return super::tune::best(self);
        }
        Ok(self.cuts()[0])
    }

    /// What the choice of a cut depends on.
    #[cfg(feature = "cuda")]
    pub(super) fn key(&self) -> (Params, DType, [bool; 2]) {
        let then = [self.then.summand.is_some(), self.then.norm.is_some()];
        (self.params, self.dtype, then)
    }

    #[cfg(feature = "cuda")]
    pub(super) fn device(&self) -> &Device {
        self.bias.device()
    }

    #[cfg(feature = "cuda")]
    pub(super) fn any_tensor(&self) -> &Tensor {
        self.bias
    }

    pub(super) fn launch(&self, cut: Cut) -> Result<Tensor> {
        let (kernel, _, _) = TILES[cut.tile];
        let twice = usize::from(self.then.norm.is_some());
        let [b, ho, wo, features] = self.shape;
        let shape = [b << twice, ho, wo, features];
        let to = if self.then.wide {
            DType::F32
        } else {
            self.dtype
        };
        let (bias, norm) = (Some(self.bias), self.then.norm);
        let summand = self.then.summand.map(|map| &map.data);
        let params = Params {
            parts: cut.parts as u32,
            ..self.params
        };
        let whole = (shape.to_vec(), to);
        let of_parts = vec![cut.parts * self.phases(), self.rows(), features];
        let (shape, to) = match cut.parts {
            1 => whole.clone(),
            _ => (of_parts, DType::F32),
        };
        let mut launch = Launch::new(kernel, self.dtype, self.blocks(cut), shape)?;
        launch.block = Block::Of(128);
        launch.to = to;
        launch.params = Params {
            threads: launch.params.threads,
            ..params
        };
        let [input, weight] = [&self.maps[0].data, &self.by.packed].map(Some);
        let second = self.maps.get(1).map(|map| &map.data);
        let (summand_here, norm_here) = match cut.parts {
            1 => (summand, norm),
            _ => (None, None),
        };
        let sums = Fused {
            launch,
            plain: by_cards_alone,
        }
        .run_with(&[input, weight, bias, second, summand_here, norm_here])?;
        if cut.parts == 1 {
            return Ok(sums);
        }
        let places: usize = self.shape[..3].iter().product();
        let (shape, to) = whole;
        // Several threads read the parts of what one of them stores.
        let at_once = FINISHERS as usize / cut.parts.min(MOST_READERS);
        let blocks = (places * features / UNIT).div_ceil(at_once);
        let mut launch = Launch::new("tensor_cores/finish", self.dtype, blocks, shape)?;
        launch.block = Block::Of(FINISHERS);
        launch.to = to;
        launch.params = Params {
            threads: launch.params.threads,
            ..params
        };
        Fused {
            launch,
            plain: by_cards_alone,
        }
        .run_with(&[Some(&sums), None, bias, None, summand, norm])
    }

    /// By the convolution of the CPU.
    fn plainly(&self, of: &Convolution) -> Result<Tensor> {
        let Some(weight) = &of.weight.plain else {
            bail!("a weight of a card, on the CPU");
        };
        let planes: Vec<Tensor> = self
            .maps
            .iter()
            .map(|map| map.to_planes()?.to_dtype(DType::F32))
            .collect::<Result<_>>()?;
        let mut x = Tensor::cat(&planes, 1)?;
        if of.doubled {
            x = resample::nearest_x2(&x)?;
        }
        let bias = of.bias.narrow(0, 0, of.outputs)?;
        let mut y = conv2d(&x, weight, Some(&bias), of.padding, 1, 1)?;
        if self.then.relu {
            y = y.relu()?;
        }
        if self.then.pooled {
            y = resample::mean_2x2(&y)?;
        }
        let to = if self.then.wide {
            DType::F32
        } else {
            self.dtype
        };
        let mut map = Map::from_planes(&y)?.data;
        if let Some(summand) = self.then.summand {
            map = (map + summand.data.to_dtype(DType::F32)?)?;
        }
        match self.then.norm {
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

pub(super) fn by_cards_alone(_: &Params, _: &[Cow<'_, [f32]>]) -> Vec<f32> {
    Vec::new()
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

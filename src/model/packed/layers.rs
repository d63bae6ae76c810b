//! Layers of the packed engine, built from a checkpoint's tensors: batch norm folded, weights packed.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Tensor};

use crate::ops::blocked::{Buffer, Channels, Size};
use crate::ops::conv::{Conv, Epilogue, Spec};
use crate::ops::depthwise::Depthwise;
use crate::ops::simd::{BLOCK, Isa};
use crate::ops::threads::Workers;

/// A feature map's channels and size: what a layer is built for, and what it gives.
#[derive(Clone, Debug)]
pub(super) struct Map {
    pub(super) channels: Channels,
    pub(super) size: Size,
}

impl Map {
    /// Values when packed.
    pub(super) fn len(&self) -> usize {
        self.size.values(self.channels.blocks())
    }
}

/// A checkpoint's tensors under a name, and the instruction set they are packed for.
#[derive(Clone)]
pub(super) struct Weights<'a> {
    tensors: &'a BTreeMap<String, Tensor>,
    prefix: String,
    pub(super) isa: Isa,
}

impl<'a> Weights<'a> {
    pub(super) fn new(tensors: &'a BTreeMap<String, Tensor>, prefix: &str, isa: Isa) -> Self {
        Self {
            tensors,
            prefix: prefix.to_owned(),
            isa,
        }
    }

    pub(super) fn at(&self, name: impl std::fmt::Display) -> Self {
        Self {
            prefix: format!("{}.{name}", self.prefix),
            ..self.clone()
        }
    }

    /// For products of f32, whatever the instruction set.
    pub(super) fn exact(self) -> Self {
        Self {
            isa: self.isa.exact(),
            ..self
        }
    }

    /// One tensor in f32, row by row.
    pub(super) fn get(&self, name: &str, len: usize) -> candle_core::Result<Vec<f32>> {
        let name = format!("{}.{name}", self.prefix);
        let Some(tensor) = self.tensors.get(&name) else {
            candle_core::bail!("'{name}' is missing");
        };
        if tensor.elem_count() != len {
            candle_core::bail!(
                "'{name}' has the shape {:?}, not {len} values",
                tensor.dims()
            );
        }
        tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
    }

    /// A convolution's weight (out, in, k, k) and bias, zeros when it has none.
    pub(super) fn conv(
        &self,
        out: usize,
        per_out: usize,
    ) -> candle_core::Result<(Vec<f32>, Vec<f32>)> {
        let weight = self.get("weight", out * per_out)?;
        let bias = match self.tensors.contains_key(&format!("{}.bias", self.prefix)) {
            true => self.get("bias", out)?,
            false => vec![0.0; out],
        };
        Ok((weight, bias))
    }

    /// A batch norm with running statistics, as y = scale x + shift.
    pub(super) fn norm(&self, channels: usize) -> candle_core::Result<(Vec<f32>, Vec<f32>)> {
        let get = |name| self.get(name, channels);
        let (weight, bias) = (get("weight")?, get("bias")?);
        let (mean, variance) = (get("running_mean")?, get("running_var")?);
        let scale: Vec<f32> = weight
            .iter()
            .zip(&variance)
            .map(|(w, v)| w / (v + BATCH_NORM_EPSILON).sqrt())
            .collect();
        let shift = (0..channels)
            .map(|i| bias[i] - mean[i] * scale[i])
            .collect();
        Ok((scale, shift))
    }

    /// A convolution and the batch norm after it as one.
    pub(super) fn folded(
        &self,
        conv: &str,
        norm: &str,
        out: usize,
        per_out: usize,
    ) -> candle_core::Result<(Vec<f32>, Vec<f32>)> {
        let (mut weight, mut bias) = self.at(conv).conv(out, per_out)?;
        let (scale, shift) = self.at(norm).norm(out)?;
        for o in 0..out {
            weight[o * per_out..][..per_out]
                .iter_mut()
                .for_each(|w| *w *= scale[o]);
            bias[o] = bias[o] * scale[o] + shift[o];
        }
        Ok((weight, bias))
    }
}

/// Both PyTorch's and Paddle's default.
const BATCH_NORM_EPSILON: f32 = 1e-5;

/// A part of a network that reads one packed map and writes another.
pub(super) trait Stage {
    /// What it gives.
    fn out(&self) -> Map;

    fn run(&mut self, workers: &Workers, input: &[f32], out: &mut [f32]);

    /// As [`Stage::run`], into a new map.
    fn run_once(&mut self, workers: &Workers, input: &[f32]) -> Buffer {
        let mut out = Buffer::zeroed(self.out().len());
        self.run(workers, input, &mut out);
        out
    }
}

/// Stages behind each other, with the map that each gave last.
#[derive(Clone, Debug)]
pub(super) struct Chain<S>(Vec<(S, Buffer)>);

impl<S: Stage> Chain<S> {
    pub(super) fn new(stages: Vec<S>) -> Self {
        let with_map = |stage: S| {
            let map = Buffer::zeroed(stage.out().len());
            (stage, map)
        };
        Self(stages.into_iter().map(with_map).collect())
    }

    /// What it gives; `None` when it is empty.
    pub(super) fn out(&self) -> Option<Map> {
        self.0.last().map(|(stage, _)| stage.out())
    }

    /// Gives the last map, which is `input` when there are no stages.
    pub(super) fn run<'a>(&'a mut self, workers: &Workers, input: &'a [f32]) -> &'a [f32] {
        let mut from = input;
        for (stage, map) in &mut self.0 {
            stage.run(workers, from, map);
            from = map;
        }
        from
    }

    /// What [`Chain::run`] gave last.
    pub(super) fn last(&self) -> &[f32] {
        self.0.last().map_or(&[], |(_, map)| map)
    }
}

/// A convolution of the network with its place, so that the benchmark can name it. Clones share weights.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    name: String,
    conv: Arc<Conv>,
    /// Of the input.
    size: Size,
    out: Channels,
    /// Multiplications and additions of the convolution as defined, per pixel before pooling.
    flops: usize,
}

impl Layer {
    fn new(
        weights: &Weights<'_>,
        spec: Spec,
        (weight, bias): &(Vec<f32>, Vec<f32>),
        input: &Map,
    ) -> Self {
        let conv = Conv::new(spec, weight, bias, &input.channels, input.size, weights.isa);
        let flops = 2 * weight.len() * conv.output_size(input.size, false).pixels();
        Self {
            name: weights.prefix.clone(),
            conv: Arc::new(conv),
            size: input.size,
            out: Channels::new(bias.len()),
            flops,
        }
    }

    /// A convolution without batch norm.
    pub(super) fn plain(
        weights: &Weights<'_>,
        out: usize,
        spec: Spec,
        input: &Map,
    ) -> candle_core::Result<Self> {
        Self::joined(&[(weights.clone(), out)], spec, input)
    }

    /// Several convolutions that read the same input, as one.
    pub(super) fn joined(
        weights: &[(Weights<'_>, usize)],
        spec: Spec,
        input: &Map,
    ) -> candle_core::Result<Self> {
        let (mut weight, mut bias) = (Vec::new(), Vec::new());
        for (weights, out) in weights {
            let (w, b) = weights.conv(*out, input.channels.count() * spec.kernel * spec.kernel)?;
            weight.extend(w);
            bias.extend(b);
        }
        Ok(Self::new(&weights[0].0, spec, &(weight, bias), input))
    }

    /// `conv` with the batch norm `norm` folded in.
    pub(super) fn normed(
        weights: &Weights<'_>,
        (conv, norm): (&str, &str),
        out: usize,
        spec: Spec,
        input: &Map,
    ) -> candle_core::Result<Self> {
        let per_out = input.channels.count() * spec.kernel * spec.kernel;
        let folded = weights.folded(conv, norm, out, per_out)?;
        Ok(Self::new(&weights.at(conv), spec, &folded, input))
    }

    /// What it gives, with pooling or without.
    fn out(&self, pool: bool) -> Map {
        Map {
            channels: self.out.clone(),
            size: self.conv.output_size(self.size, pool),
        }
    }

    /// As [`Stage::run`], with what happens to the sums on their way to memory.
    pub(super) fn run_with(
        &self,
        workers: &Workers,
        input: &[f32],
        out: &mut [f32],
        epilogue: Epilogue<'_>,
    ) {
        workers
            .meter
            .time(&self.name, self.conv.algorithm(), self.flops, || {
                self.conv.run(workers, input, self.size, out, epilogue);
            });
    }
}

impl Stage for Layer {
    fn out(&self) -> Map {
        self.out(false)
    }

    fn run(&mut self, workers: &Workers, input: &[f32], out: &mut [f32]) {
        self.run_with(workers, input, out, Epilogue::default());
    }
}

/// A depthwise convolution with its batch norm folded in, and the map it gave last. Clones share weights.
#[derive(Clone, Debug)]
pub(super) struct DepthwiseLayer {
    name: String,
    conv: Arc<Depthwise>,
    size: Size,
    out: Map,
    flops: usize,
    map: Buffer,
}

impl DepthwiseLayer {
    pub(super) fn normed(
        weights: &Weights<'_>,
        (conv, norm): (&str, &str),
        upsample: bool,
        input: &Map,
    ) -> candle_core::Result<Self> {
        let channels = &input.channels;
        let (weight, bias) = weights.folded(conv, norm, channels.count(), 9)?;
        let name = weights.at(conv).prefix;
        let conv = Depthwise::new(&weight, &bias, channels, upsample, true, weights.isa);
        let out = Map {
            channels: channels.clone(),
            size: conv.output_size(input.size),
        };
        Ok(Self {
            name,
            conv: Arc::new(conv),
            size: input.size,
            flops: 2 * weight.len() * out.size.pixels(),
            map: Buffer::zeroed(out.len()),
            out,
        })
    }

    pub(super) fn run(&mut self, workers: &Workers, input: &[f32]) -> &[f32] {
        workers.meter.time(&self.name, "depthwise", self.flops, || {
            self.conv.run(workers, input, self.size, &mut self.map);
        });
        &self.map
    }
}

/// Which way a step of an encoder or decoder goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// `DownBlock2d`: halves the map.
    Down,
    /// `UpBlock2d`: doubles it.
    Up,
}

/// The step of an encoder or decoder: convolution, batch norm, relu, with pooling after it or nearest
/// x2 before it; in the mobile form a depthwise and a 1x1 convolution.
#[derive(Clone, Debug)]
pub(super) struct Step {
    depthwise: Option<DepthwiseLayer>,
    layer: Layer,
    pool: bool,
}

impl Step {
    pub(super) fn new(
        way: Way,
        weights: &Weights<'_>,
        out: usize,
        mobile: bool,
        input: &Map,
    ) -> candle_core::Result<Self> {
        let (pool, upsample) = (way == Way::Down, way == Way::Up);
        let norm = ("conv", "norm");
        if !mobile {
            let spec = Spec {
                kernel: 3,
                padding: 1,
                upsample,
                relu: true,
            };
            return Ok(Self {
                depthwise: None,
                layer: Layer::normed(weights, norm, out, spec, input)?,
                pool,
            });
        }
        let depthwise = DepthwiseLayer::normed(weights, norm, upsample, input)?;
        let spec = Spec {
            kernel: 1,
            padding: 0,
            upsample: false,
            relu: true,
        };
        let norm = ("conv1", "norm1");
        Ok(Self {
            layer: Layer::normed(weights, norm, out, spec, &depthwise.out)?,
            depthwise: Some(depthwise),
            pool,
        })
    }
}

impl Stage for Step {
    fn out(&self) -> Map {
        self.layer.out(self.pool)
    }

    fn run(&mut self, workers: &Workers, input: &[f32], out: &mut [f32]) {
        let epilogue = Epilogue {
            pool: self.pool,
            ..Epilogue::default()
        };
        let input = match &mut self.depthwise {
            None => input,
            Some(depthwise) => depthwise.run(workers, input),
        };
        self.layer.run_with(workers, input, out, epilogue);
    }
}

/// The last layers of a network with what they gave: one 7x7 convolution for all that read the same
/// features, or in the mobile form three of 3x3 for each.
#[derive(Clone, Debug)]
pub(super) struct Heads {
    chains: Vec<Chain<Layer>>,
    /// For each head, its chain and its first channel there.
    places: Vec<(usize, usize)>,
}

impl Heads {
    /// `heads` are names and numbers of channels. The mobile form's convolutions are called `mobile`.
    pub(super) fn new(
        weights: &Weights<'_>,
        heads: &[(&str, usize)],
        spec: Spec,
        mobile: Option<&[&str]>,
        input: &Map,
    ) -> candle_core::Result<Self> {
        let Some(names) = mobile else {
            let joined: Vec<_> = heads
                .iter()
                .map(|&(name, out)| (weights.at(name), out))
                .collect();
            let layer = Layer::joined(&joined, spec, input)?;
            let firsts = heads.iter().scan(0, |next, head| {
                let first = *next;
                *next += head.1;
                Some((0, first))
            });
            return Ok(Self {
                places: firsts.collect(),
                chains: vec![Chain::new(vec![layer])],
            });
        };
        let mut chains = Vec::new();
        for &(head, out) in heads {
            let (mut layers, mut from) = (Vec::new(), input.clone());
            for (i, name) in names.iter().enumerate() {
                let last = i + 1 == names.len();
                let out = if last { out } else { input.channels.count() };
                let spec = Spec {
                    relu: spec.relu && !last,
                    ..spec
                };
                let layer = Layer::plain(&weights.at(head).at(name), out, spec, &from)?;
                from = layer.out(false);
                layers.push(layer);
            }
            chains.push(Chain::new(layers));
        }
        Ok(Self {
            places: (0..chains.len()).map(|i| (i, 0)).collect(),
            chains,
        })
    }

    pub(super) fn output_size(&self) -> Size {
        self.chains[0].out().map_or(Size::square(0), |map| map.size)
    }

    pub(super) fn run(&mut self, workers: &Workers, input: &[f32]) {
        for chain in &mut self.chains {
            chain.run(workers, input);
        }
    }

    /// The packed output that holds a head, and the head's first channel in it.
    pub(super) fn output(&self, head: usize) -> (&[f32], usize) {
        let (chain, first) = self.places[head];
        (self.chains[chain].last(), first)
    }
}

/// Where the values of one channel lie in a packed map: the first, and how far apart they are.
pub(super) fn channel(size: Size, channel: usize) -> (usize, usize) {
    (
        channel / BLOCK * size.pixels() * BLOCK + channel % BLOCK,
        BLOCK,
    )
}

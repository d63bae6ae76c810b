//! Layers of the packed engine, built from a checkpoint's tensors: batch norm folded, weights packed.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};

use crate::ops::blocked::{Buffer, Channels, Size};
use crate::ops::conv::{Conv, Epilogue, Spec};
use crate::ops::depthwise::Depthwise;
use crate::ops::simd::BLOCK;
use crate::ops::threads::Workers;

/// A checkpoint's tensors under a name.
#[derive(Clone)]
pub(super) struct Weights<'a> {
    tensors: &'a BTreeMap<String, Tensor>,
    prefix: String,
}

impl<'a> Weights<'a> {
    pub(super) fn new(tensors: &'a BTreeMap<String, Tensor>, prefix: &str) -> Self {
        Self {
            tensors,
            prefix: prefix.to_owned(),
        }
    }

    pub(super) fn at(&self, name: impl std::fmt::Display) -> Self {
        Self {
            tensors: self.tensors,
            prefix: format!("{}.{name}", self.prefix),
        }
    }

    /// One tensor in f32, row by row.
    fn get(&self, name: &str, len: usize) -> candle_core::Result<Vec<f32>> {
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
    fn folded(
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

/// A convolution of the network with its place, so that the benchmark can name it.
#[derive(Debug)]
pub(super) struct Layer {
    name: String,
    conv: Conv,
    /// Of the input.
    pub(super) size: Size,
    pub(super) out: Channels,
    /// Multiplications and additions of the convolution as defined, per pixel before pooling.
    flops: usize,
}

impl Layer {
    fn new(
        name: &str,
        spec: Spec,
        (weight, bias): (&[f32], &[f32]),
        input: &Channels,
        size: Size,
        workers: &Workers,
    ) -> Self {
        let conv = Conv::new(spec, weight, bias, input, size, workers.isa);
        let flops = 2 * weight.len() * conv.output_size(size, false).pixels();
        Self {
            name: name.to_owned(),
            conv,
            size,
            out: Channels::new(bias.len()),
            flops,
        }
    }

    /// A convolution without batch norm.
    pub(super) fn plain(
        weights: &Weights<'_>,
        out: usize,
        spec: Spec,
        input: &Channels,
        size: Size,
        workers: &Workers,
    ) -> candle_core::Result<Self> {
        let (weight, bias) = weights.conv(out, input.count() * spec.kernel * spec.kernel)?;
        Ok(Self::new(
            &weights.prefix,
            spec,
            (&weight, &bias),
            input,
            size,
            workers,
        ))
    }

    /// Several convolutions that read the same input, as one.
    pub(super) fn joined(
        weights: &[(Weights<'_>, usize)],
        spec: Spec,
        input: &Channels,
        size: Size,
        workers: &Workers,
    ) -> candle_core::Result<Self> {
        let (mut weight, mut bias) = (Vec::new(), Vec::new());
        for (weights, out) in weights {
            let (w, b) = weights.conv(*out, input.count() * spec.kernel * spec.kernel)?;
            weight.extend(w);
            bias.extend(b);
        }
        Ok(Self::new(
            &weights[0].0.prefix,
            spec,
            (&weight, &bias),
            input,
            size,
            workers,
        ))
    }

    /// `conv` with the batch norm `norm` folded in.
    pub(super) fn normed(
        weights: &Weights<'_>,
        (conv, norm): (&str, &str),
        out: usize,
        spec: Spec,
        input: &Channels,
        size: Size,
        workers: &Workers,
    ) -> candle_core::Result<Self> {
        let per_out = input.count() * spec.kernel * spec.kernel;
        let (weight, bias) = weights.folded(conv, norm, out, per_out)?;
        let name = format!("{}.{conv}", weights.prefix);
        Ok(Self::new(
            &name,
            spec,
            (&weight, &bias),
            input,
            size,
            workers,
        ))
    }

    pub(super) fn output_size(&self, pool: bool) -> Size {
        self.conv.output_size(self.size, pool)
    }

    /// Values in the packed output.
    pub(super) fn output_len(&self, pool: bool) -> usize {
        self.output_size(pool).values(self.out.blocks())
    }

    pub(super) fn run(
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

/// A depthwise convolution with its batch norm folded in.
#[derive(Debug)]
pub(super) struct DepthwiseLayer {
    name: String,
    conv: Depthwise,
    size: Size,
    blocks: usize,
    flops: usize,
}

impl DepthwiseLayer {
    pub(super) fn normed(
        weights: &Weights<'_>,
        (conv, norm): (&str, &str),
        channels: &Channels,
        upsample: bool,
        size: Size,
        workers: &Workers,
    ) -> candle_core::Result<Self> {
        let (weight, bias) = weights.folded(conv, norm, channels.count(), 9)?;
        let name = format!("{}.{conv}", weights.prefix);
        let conv = Depthwise::new(&weight, &bias, channels, upsample, true, workers.isa);
        let flops = 2 * weight.len() * conv.output_size(size).pixels();
        Ok(Self {
            name,
            conv,
            size,
            blocks: channels.blocks(),
            flops,
        })
    }

    pub(super) fn output_size(&self) -> Size {
        self.conv.output_size(self.size)
    }

    pub(super) fn run(&self, workers: &Workers, input: &[f32], out: &mut [f32]) {
        workers.meter.time(&self.name, "depthwise", self.flops, || {
            self.conv.run(workers, input, self.size, out);
        });
    }

    fn output_len(&self) -> usize {
        self.output_size().values(self.blocks)
    }
}

/// The step of an encoder or decoder: convolution, batch norm, relu, with pooling after it or nearest
/// x2 before it; in the mobile form a depthwise and a 1x1 convolution.
#[derive(Debug)]
pub(super) struct Step {
    depthwise: Option<(DepthwiseLayer, Buffer)>,
    layer: Layer,
    pool: bool,
}

impl Step {
    /// `DownBlock2d`: halves the map.
    pub(super) fn down(
        weights: &Weights<'_>,
        out: usize,
        mobile: bool,
        input: &Channels,
        size: Size,
        workers: &Workers,
    ) -> candle_core::Result<Self> {
        Self::new(weights, out, mobile, false, input, size, workers)
    }

    /// `UpBlock2d`: doubles the map.
    pub(super) fn up(
        weights: &Weights<'_>,
        out: usize,
        mobile: bool,
        input: &Channels,
        size: Size,
        workers: &Workers,
    ) -> candle_core::Result<Self> {
        Self::new(weights, out, mobile, true, input, size, workers)
    }

    fn new(
        weights: &Weights<'_>,
        out: usize,
        mobile: bool,
        upsample: bool,
        input: &Channels,
        size: Size,
        workers: &Workers,
    ) -> candle_core::Result<Self> {
        let pool = !upsample;
        if !mobile {
            let spec = Spec {
                kernel: 3,
                padding: 1,
                upsample,
                relu: true,
            };
            let layer = Layer::normed(weights, ("conv", "norm"), out, spec, input, size, workers)?;
            return Ok(Self {
                depthwise: None,
                layer,
                pool,
            });
        }
        let depthwise =
            DepthwiseLayer::normed(weights, ("conv", "norm"), input, upsample, size, workers)?;
        let spec = Spec {
            kernel: 1,
            padding: 0,
            upsample: false,
            relu: true,
        };
        let size = depthwise.output_size();
        let layer = Layer::normed(weights, ("conv1", "norm1"), out, spec, input, size, workers)?;
        let between = Buffer::zeroed(depthwise.output_len());
        Ok(Self {
            depthwise: Some((depthwise, between)),
            layer,
            pool,
        })
    }

    pub(super) fn out(&self) -> &Channels {
        &self.layer.out
    }

    pub(super) fn output_size(&self) -> Size {
        self.layer.output_size(self.pool)
    }

    pub(super) fn output_len(&self) -> usize {
        self.layer.output_len(self.pool)
    }

    pub(super) fn run(&mut self, workers: &Workers, input: &[f32], out: &mut [f32]) {
        let epilogue = Epilogue {
            pool: self.pool,
            ..Epilogue::default()
        };
        match &mut self.depthwise {
            None => self.layer.run(workers, input, out, epilogue),
            Some((depthwise, between)) => {
                depthwise.run(workers, input, between);
                self.layer.run(workers, between, out, epilogue);
            }
        }
    }
}

/// The last layers of a network with what they gave: one 7x7 convolution for all that read the same
/// features, or in the mobile form three of 3x3 for each.
#[derive(Debug)]
pub(super) struct Heads {
    chains: Vec<Vec<(Layer, Buffer)>>,
    /// For each head, its chain and its first channel there.
    places: Vec<(usize, usize)>,
}

impl Heads {
    /// `heads` are names and numbers of channels. The mobile form's convolutions are called `between`.
    pub(super) fn new(
        weights: &Weights<'_>,
        heads: &[(&str, usize)],
        spec: Spec,
        mobile: Option<&[&str]>,
        input: &Channels,
        size: Size,
        workers: &Workers,
    ) -> candle_core::Result<Self> {
        let with_buffer = |layer: Layer| {
            let buffer = Buffer::zeroed(layer.output_len(false));
            (layer, buffer)
        };
        let Some(names) = mobile else {
            let joined: Vec<_> = heads
                .iter()
                .map(|&(name, out)| (weights.at(name), out))
                .collect();
            let layer = Layer::joined(&joined, spec, input, size, workers)?;
            let firsts = heads.iter().scan(0, |next, head| {
                let first = *next;
                *next += head.1;
                Some((0, first))
            });
            return Ok(Self {
                places: firsts.collect(),
                chains: vec![vec![with_buffer(layer)]],
            });
        };
        let mut chains = Vec::new();
        for &(head, out) in heads {
            let (mut size, mut chain) = (size, Vec::new());
            for (i, name) in names.iter().enumerate() {
                let last = i + 1 == names.len();
                let (from, out) = match chain.last() {
                    Some((layer, _)) => (&layer_out(layer), if last { out } else { input.count() }),
                    None => (input, if last { out } else { input.count() }),
                };
                let spec = Spec {
                    relu: spec.relu && !last,
                    ..spec
                };
                let layer =
                    Layer::plain(&weights.at(head).at(name), out, spec, from, size, workers)?;
                size = layer.output_size(false);
                chain.push(with_buffer(layer));
            }
            chains.push(chain);
        }
        Ok(Self {
            places: (0..chains.len()).map(|i| (i, 0)).collect(),
            chains,
        })
    }

    pub(super) fn output_size(&self) -> Size {
        self.chains[0]
            .last()
            .map_or(Size::square(0), |(layer, _)| layer.output_size(false))
    }

    pub(super) fn run(&mut self, workers: &Workers, input: &[f32]) {
        for chain in &mut self.chains {
            for i in 0..chain.len() {
                let (before, rest) = chain.split_at_mut(i);
                let from = before.last().map_or(input, |(_, buffer)| &buffer[..]);
                let (layer, out) = &mut rest[0];
                layer.run(workers, from, out, Epilogue::default());
            }
        }
    }

    /// The packed output that holds a head, and the head's first channel in it.
    pub(super) fn output(&self, head: usize) -> (&[f32], usize) {
        let (chain, first) = self.places[head];
        let buffer = self.chains[chain]
            .last()
            .map_or(&[][..], |(_, buffer)| buffer);
        (buffer, first)
    }
}

fn layer_out(layer: &Layer) -> Channels {
    layer.out.clone()
}

/// Where the values of one channel lie in a packed map: the first, and how far apart they are.
pub(super) fn channel(size: Size, channel: usize) -> (usize, usize) {
    (
        channel / BLOCK * size.pixels() * BLOCK + channel % BLOCK,
        BLOCK,
    )
}

//! Blocks of convolutions, from those of `model::blocks`.

use candle_core::{DType, Device, Result, Tensor, bail};

use crate::model::{blocks, hourglass};
use crate::ops::maps::{Convolution, Depthwise, Map, Then};

const RELU: Then<'static> = Then {
    relu: true,
    pooled: false,
    wide: false,
    summand: None,
    norm: None,
};

/// A convolution of one or two maps of so many features.
pub(super) fn convolution(
    conv: &blocks::Conv,
    inputs: &[usize],
    doubled: bool,
    target: (&Device, DType),
) -> Result<Convolution> {
    let parts = (conv.weight(), conv.bias());
    Convolution::new(parts, inputs, conv.padding(), doubled, target)
}

/// Convolution, batch norm, relu; the depthwise form filters each feature before.
#[derive(Debug)]
pub(super) struct Block {
    /// One for each input.
    filters: Vec<Depthwise>,
    mix: Convolution,
    doubled: bool,
}

impl Block {
    /// `inputs` are the features of the maps that it takes; `doubled`: after an enlargement by two.
    pub(super) fn of(
        convs: &[blocks::Conv],
        inputs: &[usize],
        doubled: bool,
        target: (&Device, DType),
    ) -> Result<Self> {
        let (filters, mix) = match convs {
            [mix] => (Vec::new(), convolution(mix, inputs, doubled, target)?),
            [filter, mix] => {
                let mut first = 0;
                let mut filters = Vec::with_capacity(inputs.len());
                for &channels in inputs {
                    let part = |t: &Tensor| t.narrow(0, first, channels)?.contiguous();
                    let bias = filter.bias().map(part).transpose()?;
                    let weight = part(filter.weight())?;
                    filters.push(Depthwise::new(&weight, bias.as_ref(), target.0)?);
                    first += channels;
                }
                (filters, convolution(mix, inputs, false, target)?)
            }
            _ => bail!("a block of {} convolutions", convs.len()),
        };
        Ok(Self {
            filters,
            mix,
            doubled,
        })
    }

    /// Of maps side by side.
    pub(super) fn run(&self, maps: &[&Map]) -> Result<Map> {
        self.with(maps, RELU)
    }

    /// The same, then the mean of every 2x2 pixels.
    pub(super) fn pooled(&self, maps: &[&Map]) -> Result<Map> {
        self.with(
            maps,
            Then {
                pooled: true,
                ..RELU
            },
        )
    }

    fn with(&self, maps: &[&Map], then: Then<'_>) -> Result<Map> {
        if self.filters.is_empty() {
            return Ok(self.mix.run(maps, then)?.0);
        }
        let filtered = maps
            .iter()
            .zip(&self.filters)
            .map(|(map, filter)| filter.run(map, self.doubled, true))
            .collect::<Result<Vec<_>>>()?;
        Ok(self.mix.run(&filtered.iter().collect::<Vec<_>>(), then)?.0)
    }
}

/// The hourglass.
#[derive(Debug)]
pub(super) struct Hourglass {
    down: Vec<Block>,
    up: Vec<Block>,
    outputs: [usize; 2],
}

impl Hourglass {
    pub(super) fn of(of: &hourglass::Hourglass, target: (&Device, DType)) -> Result<Self> {
        // Features of each size, the full one first.
        let mut widths = vec![of.down_blocks.first().map_or(0, blocks::DownBlock::inputs)];
        let mut down = Vec::new();
        for block in &of.down_blocks {
            down.push(Block::of(&block.0, &[block.inputs()], false, target)?);
            widths.push(block.outputs());
        }
        let mut up = Vec::new();
        let mut made = None;
        for (block, width) in of.up_blocks.iter().zip(widths.iter().rev()) {
            let inputs = match made {
                Some(made) => vec![made, *width],
                None => vec![*width],
            };
            up.push(Block::of(&block.0, &inputs, true, target)?);
            made = Some(block.outputs());
        }
        Ok(Self {
            down,
            up,
            outputs: [made.unwrap_or(0), widths[0]],
        })
    }

    /// Features of what [`Hourglass::run`] gives.
    pub(super) fn outputs(&self) -> [usize; 2] {
        self.outputs
    }

    /// What is made, and the input, which lies beside it.
    pub(super) fn run(&self, x: Map) -> Result<[Map; 2]> {
        let mut sizes = vec![x];
        for block in &self.down {
            if let Some(x) = sizes.last() {
                sizes.push(block.pooled(&[x])?);
            }
        }
        let mut made: Option<Map> = None;
        for block in &self.up {
            let Some(beside) = sizes.pop() else {
                bail!("an hourglass of unequal halves");
            };
            made = Some(match &made {
                Some(made) => block.run(&[made, &beside])?,
                None => block.run(&[&beside])?,
            });
        }
        match (made, sizes.pop()) {
            (Some(made), Some(input)) => Ok([made, input]),
            _ => bail!("an hourglass without blocks"),
        }
    }
}

/// A residual block after its first norm.
#[derive(Debug)]
pub(super) struct Residual {
    norm: Tensor,
    first: Convolution,
    filter: Option<Depthwise>,
    last: Convolution,
}

impl Residual {
    pub(super) fn of(block: &blocks::ResBlock, target: (&Device, DType)) -> Result<Self> {
        let one = |conv: &blocks::Conv| convolution(conv, &[conv.inputs()], false, target);
        let (first, filter, last) = match &block.convs[..] {
            [(first, true), (last, false)] => (one(first)?, None, one(last)?),
            [(first, false), (filter, true), (last, false)] => {
                let filter = Depthwise::new(filter.weight(), filter.bias(), target.0)?;
                (one(first)?, Some(filter), one(last)?)
            }
            _ => bail!("a residual block of another form"),
        };
        let Some((scale, shift)) = block.norm.fixed() else {
            bail!("networks that learn");
        };
        let channels = scale.dim(0)?;
        let both = Tensor::stack(&[scale, shift], 0)?;
        let more = channels.next_multiple_of(8) - channels;
        Ok(Self {
            norm: both.pad_with_zeros(1, 0, more)?.to_device(target.0)?,
            first,
            filter,
            last,
        })
    }

    /// Scale and shift (2, features padded) of what it begins with.
    pub(super) fn norm(&self) -> &Tensor {
        &self.norm
    }

    /// `x`, and what the block's norm and a relu make of it, to the block's result, and what the `next` norm and a relu make of
    /// that.
    pub(super) fn run(
        &self,
        x: &Map,
        opened: &Map,
        next: Option<&Tensor>,
    ) -> Result<(Map, Option<Map>)> {
        let first = Then {
            relu: self.filter.is_none(),
            ..Then::default()
        };
        let mut y = self.first.run(&[opened], first)?.0;
        if let Some(filter) = &self.filter {
            y = filter.run(&y, false, true)?;
        }
        let last = Then {
            summand: Some(x),
            norm: next,
            ..Then::default()
        };
        self.last.run(&[&y], last)
    }
}

/// Last layers of several heads as those of one, whose features lie side by side: weights that mix what belongs to one
/// head only are zero. `inputs` are the features of the two maps that all of them read.
pub(super) fn merged(
    heads: &[&blocks::Head],
    inputs: [usize; 2],
    target: (&Device, DType),
) -> Result<Vec<Convolution>> {
    let Some(first) = heads.first() else {
        bail!("no heads");
    };
    let mut merged = Vec::with_capacity(first.convs.len());
    for layer in 0..first.convs.len() {
        let convs: Vec<&blocks::Conv> = heads
            .iter()
            .filter_map(|head| head.convs.get(layer))
            .collect();
        let like = |conv: &&blocks::Conv| conv.padding() == convs[0].padding();
        if convs.len() != heads.len() || !convs.iter().all(like) {
            bail!("heads of different forms");
        }
        let mut weights = Vec::with_capacity(convs.len());
        let all: usize = convs.iter().map(|conv| conv.inputs()).sum();
        let mut before = 0;
        for conv in &convs {
            let weight = conv.weight().clone();
            weights.push(match layer {
                0 => weight,
                _ => weight.pad_with_zeros(1, before, all - before - conv.inputs())?,
            });
            before += conv.inputs();
        }
        let biases = convs
            .iter()
            .map(|conv| match conv.bias() {
                Some(bias) => Ok(bias.clone()),
                None => Tensor::zeros(conv.outputs(), DType::F32, &Device::Cpu),
            })
            .collect::<Result<Vec<_>>>()?;
        let (weight, bias) = (Tensor::cat(&weights, 0)?, Tensor::cat(&biases, 0)?);
        let of_layer = match layer {
            0 => inputs.to_vec(),
            _ => vec![all],
        };
        merged.push(Convolution::new(
            (&weight, Some(&bias)),
            &of_layer,
            convs[0].padding(),
            false,
            target,
        )?);
    }
    Ok(merged)
}

/// The last layers of a network, in f32 at the end.
pub(super) fn chain(convs: &[Convolution], maps: &[&Map], relu_between: bool) -> Result<Map> {
    let Some((last, before)) = convs.split_last() else {
        bail!("no last layer");
    };
    let wide = Then {
        wide: true,
        ..Then::default()
    };
    let between = Then {
        relu: relu_between,
        ..Then::default()
    };
    let mut made: Option<Map> = None;
    for conv in before {
        let (map, _) = match &made {
            Some(made) => conv.run(&[made], between)?,
            None => conv.run(maps, between)?,
        };
        made = Some(map);
    }
    match &made {
        Some(made) => Ok(last.run(&[made], wide)?.0),
        None => Ok(last.run(maps, wide)?.0),
    }
}

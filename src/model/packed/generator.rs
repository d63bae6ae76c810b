//! The occlusion-aware generator of the packed engine (paper section 3.2).

use std::sync::Arc;

use super::keypoints::position;
use super::layers::{Chain, DepthwiseLayer, Layer, Map, Stage, Step, Way, Weights};
use super::motion::{DenseMotion, Flow};
use super::picture;
use crate::model::border::{blurred, inside};
use crate::model::{Border, Keypoints, ModelConfig};
use crate::ops::activation::sigmoid;
use crate::ops::blocked::{Buffer, Channels, Size};
use crate::ops::conv::{Activated, Epilogue, Sink, Spec};
use crate::ops::simd::BLOCK;
use crate::ops::thin::Thin;
use crate::ops::threads::Workers;
use crate::ops::warp::{Tap, warp};

/// What the generator needs of one source picture: computed once for each photo.
#[derive(Clone, Debug)]
pub(super) struct SourceFeatures {
    /// The encoder's, packed.
    features: Buffer,
    /// The picture as dense motion wants it.
    small: Vec<[f32; 4]>,
}

/// The generator with its maps.
#[derive(Clone, Debug)]
pub(super) struct Generator {
    motion: DenseMotion,
    first: Vec<Layer>,
    down: Vec<Step>,
    bottleneck: Vec<ResBlock>,
    up: Chain<Step>,
    last: Last,
    /// Of the bottleneck.
    size: Size,
    taps: Vec<Tap>,
    /// How far each bottleneck pixel may move, where the border is treated.
    moves: Option<Vec<f32>>,
    /// Whether a bottleneck pixel's occlusion counts, where the border is opened.
    hides: Option<Vec<f32>>,
    /// The flow at the bottleneck's size, the border treated.
    flow: Vec<Flow>,
    /// The residual stream.
    stream: Buffer,
    activated: Buffer,
    zeros: Buffer,
    prediction: Vec<f32>,
}

impl Generator {
    pub(super) fn new(config: &ModelConfig, weights: &Weights<'_>) -> candle_core::Result<Self> {
        let generator = &config.generator;
        let (mobile, levels) = (generator.mobile, generator.num_down_blocks);
        let full = Size::square(config.image_size as usize);
        let (weights_of_first, kernel, widths) = match mobile {
            true => {
                let widths = vec![config.num_channels, config.num_channels, generator.width(0)];
                let weights = |i| weights.at("first").at(i);
                ((0..3).map(weights).collect(), 3, widths)
            }
            false => (vec![weights.at("first")], 7, vec![generator.width(0)]),
        };
        let mut map = Map {
            channels: Channels::new(config.num_channels),
            size: full,
        };
        let mut first: Vec<Layer> = Vec::new();
        for (weights, out) in weights_of_first.iter().zip(widths) {
            let spec = Spec {
                kernel,
                padding: kernel / 2,
                upsample: false,
                relu: true,
            };
            let layer = Layer::normed(weights, ("conv", "norm"), out, spec, &map)?;
            map = Stage::out(&layer);
            first.push(layer);
        }
        let steps = |way, part: &str, width: &dyn Fn(usize) -> usize, map: &mut Map| {
            (0..levels)
                .map(|i| {
                    let weights = weights.at(part).at(i);
                    let step = Step::new(way, &weights, width(i), mobile, map)?;
                    *map = step.out();
                    Ok(step)
                })
                .collect::<candle_core::Result<Vec<Step>>>()
        };
        let down = steps(
            Way::Down,
            "down_blocks",
            &|i| generator.width(i + 1),
            &mut map,
        )?;
        let Map { channels, size } = map.clone();
        let bottleneck = (0..generator.num_bottleneck_blocks)
            .map(|i| {
                let weights = weights.at("bottleneck").at(format!("r{i}"));
                ResBlock::new(&weights, mobile, &map)
            })
            .collect::<candle_core::Result<_>>()?;
        let stream = Buffer::zeroed(map.len());
        let width = |i| generator.width(levels - i - 1);
        let up = steps(Way::Up, "up_blocks", &width, &mut map)?;
        let paddle = config.border == Border::PaddleGan;
        let product = |soften: fn(&[f64]) -> Vec<f64>| -> Vec<f32> {
            let (rows, columns) = (soften(&inside(size.height)), soften(&inside(size.width)));
            rows.iter()
                .flat_map(|row| columns.iter().map(move |column| (row * column) as f32))
                .collect()
        };
        Ok(Self {
            motion: DenseMotion::new(config, &weights.at("dense_motion_network"))?,
            first,
            down,
            bottleneck,
            up: Chain::new(up),
            last: Last::new(&weights.at("final"), config, &map)?,
            taps: vec![Tap::default(); size.pixels()],
            moves: paddle.then(|| product(blurred)),
            hides: (paddle && !mobile).then(|| product(|line| line.to_vec())),
            flow: vec![Flow::default(); size.pixels()],
            zeros: Buffer::zeroed(channels.blocks() * BLOCK),
            activated: stream.clone(),
            prediction: vec![0.0; config.num_channels * full.pixels()],
            size,
            stream,
        })
    }

    /// `rgba` is a square picture of the model's size.
    pub(super) fn encode(&mut self, workers: &Workers, rgba: &[u8]) -> SourceFeatures {
        let mut map = picture::packed(rgba);
        for layer in &mut self.first {
            map = layer.run_once(workers, &map);
        }
        for step in &mut self.down {
            map = step.run_once(workers, &map);
        }
        SourceFeatures {
            features: map,
            small: self.motion.reduce(workers, rgba),
        }
    }

    /// Moves the source from its keypoints to the driving ones: the picture (3, h, w) in 0..1, and the
    /// flow that was used with its size.
    pub(super) fn run(
        &mut self,
        workers: &Workers,
        source: &SourceFeatures,
        kp_source: &Keypoints,
        kp_driving: &Keypoints,
    ) -> (&[f32], &[Flow], Size) {
        let flow_size = self.motion.size();
        let flow = self
            .motion
            .run(workers, &source.small, kp_source, kp_driving);
        for (i, (used, tap)) in self.flow.iter_mut().zip(&mut self.taps).enumerate() {
            let (y, x) = (i / self.size.width, i % self.size.width);
            *used = resized(flow, flow_size, self.size, y, x);
            if let Some(moves) = &self.moves {
                let here = [position(x, self.size.width), position(y, self.size.height)];
                used.from = [0, 1].map(|c| moves[i] * used.from[c] + (1.0 - moves[i]) * here[c]);
            }
            if let Some(hides) = &self.hides {
                used.occlusion = 1.0 - hides[i] * (1.0 - used.occlusion);
            }
            *tap = Tap::at(used.from, self.size, used.occlusion);
        }
        workers.meter.time("generator warp", "bilinear", 0, || {
            let activated = self
                .bottleneck
                .first()
                .map(|block| block.opening(&mut self.activated));
            let epilogue = Epilogue {
                activated,
                ..Epilogue::default()
            };
            let sink = Sink::new(&mut self.stream, self.size, &self.zeros, false, epilogue);
            warp(workers, &source.features, self.size, &self.taps, sink);
        });
        for i in 0..self.bottleneck.len() {
            let (done, rest) = self.bottleneck.split_at_mut(i + 1);
            let next = rest.first();
            done[i].run(workers, &mut self.stream, &mut self.activated, next);
        }
        let decoded = self.up.run(workers, &self.stream);
        self.last.run(workers, decoded, &mut self.prediction);
        workers.meter.time("generator sigmoid", "vector", 0, || {
            workers.rows(&mut self.prediction, 4096, |_, row| {
                sigmoid(workers.isa, row);
            });
        });
        (&self.prediction, &self.flow, self.size)
    }
}

/// The flow at a pixel of another size, bilinear between pixel centres (`align_corners` off).
fn resized(flow: &[Flow], from: Size, to: Size, y: usize, x: usize) -> Flow {
    if from == to {
        return flow[y * from.width + x];
    }
    let axis = |i: usize, to: usize, from: usize| {
        let place = ((i as f32 + 0.5) * from as f32 / to as f32 - 0.5).max(0.0);
        let low = (place as usize).min(from - 1);
        (low, (low + 1).min(from - 1), place - low as f32)
    };
    let (top, bottom, v) = axis(y, to.height, from.height);
    let (left, right, u) = axis(x, to.width, from.width);
    let mix = |value: &dyn Fn(Flow) -> f32| {
        let at = |y: usize, x: usize| value(flow[y * from.width + x]);
        let above = at(top, left) * (1.0 - u) + at(top, right) * u;
        let below = at(bottom, left) * (1.0 - u) + at(bottom, right) * u;
        above * (1.0 - v) + below * v
    };
    Flow {
        from: [mix(&|f| f.from[0]), mix(&|f| f.from[1])],
        occlusion: mix(&|f| f.occlusion),
    }
}

/// A residual block. Its opening batch norm and relu are applied by whoever writes the stream before
/// it, its input is therefore the activated copy.
#[derive(Clone, Debug)]
struct ResBlock {
    scale: Buffer,
    shift: Buffer,
    enter: Chain<Layer>,
    /// The mobile form's filter between the two.
    depthwise: Option<DepthwiseLayer>,
    leave: Layer,
}

impl ResBlock {
    fn new(weights: &Weights<'_>, mobile: bool, map: &Map) -> candle_core::Result<Self> {
        let count = map.channels.count();
        let (scale, shift) = weights.at("norm1").norm(count)?;
        let spec = |kernel: usize, relu| Spec {
            kernel,
            padding: kernel / 2,
            upsample: false,
            relu,
        };
        let (enter, depthwise, leave) = if mobile {
            let norms = ("conv_pw", "norm_pw");
            let enter = Layer::normed(weights, norms, 2 * count, spec(1, false), map)?;
            let wide = Stage::out(&enter);
            let filter = DepthwiseLayer::normed(weights, ("conv_dw", "norm_dw"), false, &wide)?;
            let norms = ("conv_pw_linear", "norm_pw_linear");
            let leave = Layer::normed(weights, norms, count, spec(1, false), &wide)?;
            (enter, Some(filter), leave)
        } else {
            let norms = ("conv1", "norm2");
            let enter = Layer::normed(weights, norms, count, spec(3, true), map)?;
            let leave = Layer::plain(&weights.at("conv2"), count, spec(3, false), map)?;
            (enter, None, leave)
        };
        Ok(Self {
            scale: Buffer::from_slice(&scale),
            shift: Buffer::from_slice(&shift),
            enter: Chain::new(vec![enter]),
            depthwise,
            leave,
        })
    }

    /// The second output that whoever writes the stream owes this block.
    fn opening<'a>(&'a self, out: &'a mut [f32]) -> Activated<'a> {
        Activated {
            out,
            scale: &self.scale,
            shift: &self.shift,
        }
    }

    /// Adds to the stream; leaves in `activated` what the next block begins with.
    fn run(
        &mut self,
        workers: &Workers,
        stream: &mut [f32],
        activated: &mut [f32],
        next: Option<&Self>,
    ) {
        self.enter.run(workers, activated);
        let inner = match &mut self.depthwise {
            None => self.enter.last(),
            Some(depthwise) => depthwise.run(workers, self.enter.last()),
        };
        let activated = next.map(|block| block.opening(activated));
        self.leave.run_with(
            workers,
            inner,
            stream,
            Epilogue {
                residual: true,
                activated,
                ..Epilogue::default()
            },
        );
    }
}

/// The last layers: 7x7 to three channels, or in the mobile form three of 3x3.
#[derive(Clone, Debug)]
struct Last {
    before: Chain<Layer>,
    thin: Arc<Thin>,
    size: Size,
    flops: usize,
}

impl Last {
    fn new(weights: &Weights<'_>, config: &ModelConfig, input: &Map) -> candle_core::Result<Self> {
        let channels = input.channels.count();
        let (kernel, before, last) = match config.generator.mobile {
            true => (3, &["0", "2"][..], weights.at("4")),
            false => (7, &[][..], weights.clone()),
        };
        let spec = |relu| Spec {
            kernel,
            padding: kernel / 2,
            upsample: false,
            relu,
        };
        let before = before
            .iter()
            .map(|name| Layer::plain(&weights.at(name), channels, spec(true), input))
            .collect::<candle_core::Result<_>>()?;
        let (weight, bias) = last.conv(config.num_channels, channels * kernel * kernel)?;
        let thin = Thin::new(spec(false), &weight, &bias, &input.channels, weights.isa);
        Ok(Self {
            before: Chain::new(before),
            thin: Arc::new(thin),
            size: input.size,
            flops: 2 * weight.len() * input.size.pixels(),
        })
    }

    fn run(&mut self, workers: &Workers, input: &[f32], out: &mut [f32]) {
        let from = self.before.run(workers, input);
        workers
            .meter
            .time("generator.final", "thin", self.flops, || {
                self.thin.run(workers, from, self.size, out);
            });
    }
}

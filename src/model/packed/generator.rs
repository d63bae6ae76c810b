//! The occlusion-aware generator of the packed engine (paper section 3.2).

use super::keypoints::position;
use super::layers::{DepthwiseLayer, Layer, Step, Weights};
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
#[derive(Debug)]
pub(super) struct Generator {
    motion: DenseMotion,
    first: Vec<Layer>,
    down: Vec<Step>,
    bottleneck: Vec<ResBlock>,
    up: Vec<(Step, Buffer)>,
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
    pub(super) fn new(
        config: &ModelConfig,
        weights: &Weights<'_>,
        workers: &Workers,
    ) -> candle_core::Result<Self> {
        let generator = &config.generator;
        let (mobile, levels) = (generator.mobile, generator.num_down_blocks);
        let full = Size::square(config.image_size as usize);
        let (first_kernel, first_outs) = match mobile {
            true => (
                3,
                vec![config.num_channels, config.num_channels, generator.width(0)],
            ),
            false => (7, vec![generator.width(0)]),
        };
        let mut first: Vec<Layer> = Vec::new();
        let mut channels = Channels::new(config.num_channels);
        for (i, &out) in first_outs.iter().enumerate() {
            let weights = if mobile {
                weights.at("first").at(i)
            } else {
                weights.at("first")
            };
            let spec = Spec {
                kernel: first_kernel,
                padding: first_kernel / 2,
                upsample: false,
                relu: true,
            };
            let layer = Layer::normed(
                &weights,
                ("conv", "norm"),
                out,
                spec,
                &channels,
                full,
                workers,
            )?;
            channels = layer.out.clone();
            first.push(layer);
        }
        let (mut down, mut size): (Vec<Step>, _) = (Vec::new(), full);
        for i in 0..levels {
            let weights = weights.at("down_blocks").at(i);
            let step = Step::down(
                &weights,
                generator.width(i + 1),
                mobile,
                &channels,
                size,
                workers,
            )?;
            channels = step.out().clone();
            size = step.output_size();
            down.push(step);
        }
        let bottleneck = (0..generator.num_bottleneck_blocks)
            .map(|i| {
                let weights = weights.at("bottleneck").at(format!("r{i}"));
                ResBlock::new(&weights, mobile, &channels, size, workers)
            })
            .collect::<candle_core::Result<_>>()?;
        let (mut up, mut from, mut at): (Vec<(Step, Buffer)>, _, _) =
            (Vec::new(), channels.clone(), size);
        for i in 0..levels {
            let weights = weights.at("up_blocks").at(i);
            let step = Step::up(
                &weights,
                generator.width(levels - i - 1),
                mobile,
                &from,
                at,
                workers,
            )?;
            from = step.out().clone();
            at = step.output_size();
            let buffer = Buffer::zeroed(step.output_len());
            up.push((step, buffer));
        }
        let paddle = config.border == Border::PaddleGan;
        let product = |soften: fn(&[f64]) -> Vec<f64>| -> Vec<f32> {
            let (rows, columns) = (soften(&inside(size.height)), soften(&inside(size.width)));
            rows.iter()
                .flat_map(|row| columns.iter().map(move |column| (row * column) as f32))
                .collect()
        };
        let stream = Buffer::zeroed(size.values(channels.blocks()));
        Ok(Self {
            motion: DenseMotion::new(config, &weights.at("dense_motion_network"), workers)?,
            first,
            down,
            bottleneck,
            up,
            last: Last::new(&weights.at("final"), config, &from, at, workers)?,
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
        for layer in &self.first {
            let mut out = Buffer::zeroed(layer.output_len(false));
            layer.run(workers, &map, &mut out, Epilogue::default());
            map = out;
        }
        for step in &mut self.down {
            let mut out = Buffer::zeroed(step.output_len());
            step.run(workers, &map, &mut out);
            map = out;
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
        for i in 0..self.up.len() {
            let (before, rest) = self.up.split_at_mut(i);
            let from = before
                .last()
                .map_or(&self.stream[..], |(_, buffer)| &buffer[..]);
            let (step, out) = &mut rest[0];
            step.run(workers, from, out);
        }
        let from = self
            .up
            .last()
            .map_or(&self.stream[..], |(_, buffer)| &buffer[..]);
        self.last.run(workers, from, &mut self.prediction);
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
#[derive(Debug)]
struct ResBlock {
    scale: Buffer,
    shift: Buffer,
    enter: Layer,
    /// The mobile form's filter between the two.
    depthwise: Option<(DepthwiseLayer, Buffer)>,
    leave: Layer,
    inner: Buffer,
}

impl ResBlock {
    fn new(
        weights: &Weights<'_>,
        mobile: bool,
        channels: &Channels,
        size: Size,
        workers: &Workers,
    ) -> candle_core::Result<Self> {
        let (scale, shift) = weights.at("norm1").norm(channels.count())?;
        let spec = |kernel: usize, relu| Spec {
            kernel,
            padding: kernel / 2,
            upsample: false,
            relu,
        };
        let count = channels.count();
        let (enter, depthwise, leave) = if mobile {
            let pw = ("conv_pw", "norm_pw");
            let wide = Layer::normed(
                weights,
                pw,
                2 * count,
                spec(1, false),
                channels,
                size,
                workers,
            )?;
            let dw = ("conv_dw", "norm_dw");
            let filter = DepthwiseLayer::normed(weights, dw, &wide.out, false, size, workers)?;
            let linear = ("conv_pw_linear", "norm_pw_linear");
            let narrow = Layer::normed(
                weights,
                linear,
                count,
                spec(1, false),
                &wide.out,
                size,
                workers,
            )?;
            let between = Buffer::zeroed(wide.output_len(false));
            (wide, Some((filter, between)), narrow)
        } else {
            let norm = ("conv1", "norm2");
            let enter =
                Layer::normed(weights, norm, count, spec(3, true), channels, size, workers)?;
            let conv2 = weights.at("conv2");
            let leave = Layer::plain(&conv2, count, spec(3, false), channels, size, workers)?;
            (enter, None, leave)
        };
        Ok(Self {
            scale: Buffer::from_slice(&scale),
            shift: Buffer::from_slice(&shift),
            inner: Buffer::zeroed(enter.output_len(false)),
            enter,
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
        self.enter
            .run(workers, activated, &mut self.inner, Epilogue::default());
        let inner = match &mut self.depthwise {
            None => &self.inner,
            Some((depthwise, between)) => {
                depthwise.run(workers, &self.inner, between);
                between
            }
        };
        let activated = next.map(|block| block.opening(activated));
        self.leave.run(
            workers,
            inner,
            stream,
            Epilogue {
                residual: true,
                activated,
                pool: false,
            },
        );
    }
}

/// The last layers: 7x7 to three channels, or in the mobile form three of 3x3.
#[derive(Debug)]
struct Last {
    before: Vec<(Layer, Buffer)>,
    thin: Thin,
    size: Size,
    flops: usize,
}

impl Last {
    fn new(
        weights: &Weights<'_>,
        config: &ModelConfig,
        input: &Channels,
        size: Size,
        workers: &Workers,
    ) -> candle_core::Result<Self> {
        let mobile = config.generator.mobile;
        let mut before = Vec::new();
        if mobile {
            for name in ["0", "2"] {
                let spec = Spec {
                    kernel: 3,
                    padding: 1,
                    upsample: false,
                    relu: true,
                };
                let layer =
                    Layer::plain(&weights.at(name), input.count(), spec, input, size, workers)?;
                let buffer = Buffer::zeroed(layer.output_len(false));
                before.push((layer, buffer));
            }
        }
        let kernel = if mobile { 3 } else { 7 };
        let weights = if mobile {
            weights.at("4")
        } else {
            weights.clone()
        };
        let (weight, bias) = weights.conv(config.num_channels, input.count() * kernel * kernel)?;
        let spec = Spec {
            kernel,
            padding: kernel / 2,
            upsample: false,
            relu: false,
        };
        Ok(Self {
            before,
            thin: Thin::new(spec, &weight, &bias, input, workers.isa),
            size,
            flops: 2 * weight.len() * size.pixels(),
        })
    }

    fn run(&mut self, workers: &Workers, input: &[f32], out: &mut [f32]) {
        for i in 0..self.before.len() {
            let (before, rest) = self.before.split_at_mut(i);
            let from = before.last().map_or(input, |(_, buffer)| &buffer[..]);
            let (layer, out) = &mut rest[0];
            layer.run(workers, from, out, Epilogue::default());
        }
        let from = self.before.last().map_or(input, |(_, buffer)| &buffer[..]);
        workers
            .meter
            .time("generator.final", "thin", self.flops, || {
                self.thin.run(workers, from, self.size, out);
            });
    }
}

//! GPEN on the packed engine: see [`crate::model::Gpen`].

use std::collections::BTreeMap;

use candle_core::{Result, Tensor};

use super::layers::Weights;
use super::styled::{
    Canvas, Line, Linear, Style, ToRgb, each_pixel, leaky, line, ones, pack_picture, padded, spec,
};
use crate::model::gpen::{GAIN, MAPPING_RATE, Shape};
use crate::ops::blocked::{Buffer, Channels, Size, pack, unpack};
use crate::ops::conv::{Conv, Epilogue, Styled};
use crate::ops::doubling::{Edge, blur, blurred, double, doubled};
use crate::ops::simd::BLOCK;
use crate::ops::threads::Workers;

const ROOT: f32 = GAIN as f32;

/// Restores one face at a time.
#[derive(Debug)]
pub struct Gpen {
    workers: Workers,
    size: usize,
    /// From the picture's size downwards.
    encoder: Vec<Down>,
    last: Linear,
    mapping: Vec<Linear>,
    /// (c, 4, 4).
    input: Vec<f32>,
    first: Layer,
    first_rgb: ToRgb,
    levels: Vec<Level>,
    maps: Maps,
    canvas: Canvas,
}

/// Maps between layers; they grow with the levels, and hold what was.
#[derive(Debug, Default)]
struct Maps {
    picture: Buffer,
    blurred: Buffer,
    enlarged: Buffer,
    between: Buffer,
    features: Buffer,
}

/// A level of the encoder and what it gave last.
#[derive(Debug)]
struct Down {
    conv: Conv,
    channels: Channels,
    /// Of the output.
    size: Size,
    ones: Buffer,
    out: Buffer,
}

#[derive(Debug)]
struct Level {
    up: Layer,
    same: Layer,
    rgb: ToRgb,
}

/// A modulated convolution, with the noise that comes beside its features.
#[derive(Debug)]
struct Layer {
    conv: Conv,
    style: Style,
    /// Of the output, without the noise.
    channels: Channels,
    noise: f32,
    noise_bias: Buffer,
    ones: Buffer,
}

impl Gpen {
    /// Packs tidy tensors (see [`crate::model::gpen::tidy`]) of a shape.
    ///
    /// # Errors
    /// When a tensor is missing or has another size.
    pub fn new(
        shape: &Shape,
        tensors: &BTreeMap<String, Tensor>,
        workers: Workers,
    ) -> Result<Self> {
        let weights = |name: &str| Weights::new(tensors, name, workers.isa);
        let (widths, style) = (&shape.widths, shape.style);
        let smallest = widths[0];
        let generator = weights("generator");
        let mut c_in = 3;
        let mut encoder = Vec::with_capacity(widths.len());
        for (i, &width) in widths.iter().rev().enumerate() {
            let size = Size::square(shape.size() >> i);
            encoder.push(Down::new(
                &weights(&format!("ecd{i}.0")),
                (c_in, width),
                size,
                i > 0,
            )?);
            c_in = width;
        }
        let equal = |c_in: usize, gain: f32| gain / (c_in as f32).sqrt();
        let rgb = |name: &str, width: usize| {
            let channels = Channels::concat(width, width);
            let gains = (equal(2 * width, 1.0), equal(style, 1.0));
            ToRgb::new(&generator.at(name), "conv", channels, style, gains)
        };
        let mapping = (1..=shape.mapping)
            .map(|i| {
                let rate = MAPPING_RATE as f32;
                let gains = (equal(style, rate), rate);
                Linear::new(&generator.at("style").at(i), style, style, gains)
            })
            .collect::<Result<_>>()?;
        let levels = widths
            .windows(2)
            .enumerate()
            .map(|(i, pair)| {
                let convs = |i: usize| generator.at("convs").at(i);
                let size = Size::square(8 << i);
                let (before, after) = (pair[0], pair[1]);
                let channels = |width| Channels::concat(width, width);
                Ok(Level {
                    up: Layer::new(&convs(2 * i), channels(before), after, style, size, true)?,
                    same: Layer::new(
                        &convs(2 * i + 1),
                        channels(after),
                        after,
                        style,
                        size,
                        false,
                    )?,
                    rgb: rgb(&format!("to_rgbs.{i}"), after)?,
                })
            })
            .collect::<Result<_>>()?;
        let gains = (equal(16 * smallest, 1.0), 1.0);
        Ok(Self {
            size: shape.size(),
            encoder,
            last: Linear::new(&weights("final_linear.0"), 16 * smallest, style, gains)?,
            mapping,
            input: generator.at("input").get("input", smallest * 16)?,
            first: Layer::new(
                &generator.at("conv1"),
                Channels::new(smallest),
                smallest,
                style,
                Size::square(4),
                false,
            )?,
            first_rgb: rgb("to_rgb1", smallest)?,
            levels,
            maps: Maps::default(),
            canvas: Canvas::default(),
            workers,
        })
    }

    /// Side of the pictures.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The threads, and what they measure.
    pub fn workers(&self) -> &Workers {
        &self.workers
    }

    /// A picture (3, s, s) in -1..1 to the restored one, about -1..1.
    ///
    /// # Panics
    /// When the picture has another size: a fault of the program.
    pub fn run(&mut self, picture: &[f32]) -> Vec<f32> {
        let Self {
            workers,
            size,
            encoder,
            last,
            mapping,
            input,
            first,
            first_rgb,
            levels,
            maps,
            canvas,
        } = self;
        let whole = Size::square(*size);
        assert_eq!(picture.len(), 3 * whole.pixels());
        workers.install(|| {
            maps.picture.grow(whole.values(1));
            pack_picture(workers, picture, whole, &mut maps.picture);
            for i in 0..encoder.len() {
                let (done, rest) = encoder.split_at_mut(i);
                match done.last() {
                    None => rest[0].run(workers, &maps.picture, whole),
                    Some(before) => {
                        let (from, size) = (&before.out, before.size);
                        let out = blurred(size).values(before.channels.blocks());
                        maps.blurred.grow(out);
                        workers.meter.time("blur", "blur", 0, || {
                            blur(workers, from, size, &mut maps.blurred[..out]);
                        });
                        rest[0].run(workers, &maps.blurred[..out], blurred(size));
                    }
                }
            }
            let style = style_of(encoder, last, mapping);
            let mut noise = encoder.iter().rev();
            let mut size = Size::square(4);
            if let Some(noise) = noise.next() {
                let (scale, lengths) = first.style.scales(&style, ROOT);
                let channels = first.channels.clone();
                let mut constant = pack(input, &channels, size);
                each_pixel(workers, &mut constant, size, |block, _, pixel| {
                    let scale = line(&scale, block);
                    for lane in 0..BLOCK {
                        pixel[lane] *= scale[lane];
                    }
                });
                first.run(
                    workers,
                    &constant,
                    size,
                    &lengths,
                    None,
                    noise,
                    &mut maps.features,
                );
                let len = size.values(2 * channels.blocks());
                let rgb = canvas.start(size);
                first_rgb.add(workers, &style, &maps.features[..len], size, rgb);
            }
            for (level, noise) in levels.iter().zip(noise) {
                size = level.run(workers, &style, size, noise, maps, canvas);
            }
        });
        canvas.planar(whole)
    }
}

/// The style that the encoder's last level comes to.
fn style_of(encoder: &[Down], last: &Linear, mapping: &[Linear]) -> Vec<f32> {
    let activated = |mut values: Vec<f32>| {
        values.iter_mut().for_each(|v| *v = leaky(*v) * ROOT);
        values
    };
    let smallest = encoder
        .last()
        .map(|down| unpack(&down.out, &down.channels, down.size));
    let code = activated(last.run(&smallest.unwrap_or_default()));
    let mean = code.iter().map(|v| v * v).sum::<f32>() / code.len() as f32;
    let length = (mean + 1e-8).sqrt();
    let start = code.iter().map(|v| v / length).collect();
    mapping
        .iter()
        .fold(start, |style, linear| activated(linear.run(&style)))
}

impl Down {
    /// `size` is the output's.
    fn new(
        weights: &Weights<'_>,
        (c_in, c_out): (usize, usize),
        size: Size,
        halving: bool,
    ) -> Result<Self> {
        let (at, kernel) = if halving { (1, 3) } else { (0, 1) };
        let fan_in = c_in * kernel * kernel;
        let gain = ROOT / (fan_in as f32).sqrt();
        let mut weight = weights.at(at).get("weight", c_out * fan_in)?;
        weight.iter_mut().for_each(|w| *w *= gain);
        let mut bias = weights.at(at + 1).get("bias", c_out)?;
        bias.iter_mut().for_each(|b| *b *= ROOT);
        let spec = spec(kernel, 0);
        let input = Channels::new(c_in);
        let isa = weights.isa;
        let channels = Channels::new(c_out);
        Ok(Self {
            conv: match halving {
                true => Conv::with_stride(spec, 2, &weight, &bias, &input, isa),
                false => Conv::new(spec, &weight, &bias, &input, size, isa),
            },
            ones: ones(&channels),
            out: Buffer::zeroed(size.values(channels.blocks())),
            size,
            channels,
        })
    }

    fn run(&mut self, workers: &Workers, input: &[f32], size: Size) {
        let styled = Styled {
            scale: &self.ones,
            after: &self.ones,
        };
        let epilogue = Epilogue {
            styled: Some(styled),
            ..Epilogue::default()
        };
        let (conv, out) = (&self.conv, &mut self.out);
        workers.meter.time("encoder", conv.algorithm(), 0, || {
            conv.run(workers, input, size, out, epilogue);
        });
    }
}

impl Level {
    /// From the features of `before` to those of twice that, which it gives.
    fn run(
        &self,
        workers: &Workers,
        style: &[f32],
        before: Size,
        noise: &Down,
        maps: &mut Maps,
        canvas: &mut Canvas,
    ) -> Size {
        let Maps {
            enlarged,
            between,
            features,
            ..
        } = maps;
        let (size, margin) = (noise.size, doubled(before, Edge::Margin));
        let (scale_up, lengths_up) = self.up.style.scales(style, ROOT);
        let (scale, lengths) = self.same.style.scales(style, ROOT);
        let blocks = scale_up.len() / BLOCK;
        let len = margin.values(blocks);
        enlarged.grow(len);
        workers.meter.time("enlarge", "bilinear", 0, || {
            let from = &features[..before.values(blocks)];
            double(
                workers,
                from,
                before,
                Some(&scale_up),
                Edge::Margin,
                &mut enlarged[..len],
            );
        });
        let (up, same) = (&self.up, &self.same);
        up.run(
            workers,
            &enlarged[..len],
            margin,
            &lengths_up,
            Some(&scale),
            noise,
            between,
        );
        let len = size.values(2 * same.channels.blocks());
        same.run(
            workers,
            &between[..len],
            size,
            &lengths,
            None,
            noise,
            features,
        );
        let rgb = canvas.enlarge(workers, before, Edge::Zero);
        workers.meter.time("to rgb", "sums", 0, || {
            self.rgb.add(workers, style, &features[..len], size, rgb);
        });
        size
    }
}

impl Layer {
    /// `size` is the output's.
    fn new(
        weights: &Weights<'_>,
        c_in: Channels,
        c_out: usize,
        style: usize,
        size: Size,
        up: bool,
    ) -> Result<Self> {
        let ins = c_in.count();
        let gain = 1.0 / ((9 * ins) as f32).sqrt();
        let conv = weights.at("conv");
        let mut weight = conv.get("weight", c_out * ins * 9)?;
        weight.iter_mut().for_each(|w| *w *= gain);
        if up {
            // See `model::gpen::Styled`.
            weight.chunks_exact_mut(9).for_each(<[f32]>::reverse);
        }
        let mut bias = weights.at("activate").get("bias", 2 * c_out)?;
        bias.iter_mut().for_each(|b| *b *= ROOT);
        let channels = Channels::new(c_out);
        let gain = 1.0 / (style as f32).sqrt();
        Ok(Self {
            conv: Conv::new(
                spec(3, usize::from(!up)),
                &weight,
                &bias[..c_out],
                &c_in,
                size,
                weights.isa,
            ),
            style: Style::new(&conv, &weight, c_in, (style, gain))?,
            noise: ROOT * weights.at("noise").get("weight", 1)?[0],
            noise_bias: padded(&bias[c_out..], &channels),
            ones: ones(&channels),
            channels,
        })
    }

    /// The convolution's features and behind them the noise, both times what `next` says.
    #[allow(
        clippy::too_many_arguments,
        reason = "two maps, two scales and a noise"
    )]
    fn run(
        &self,
        workers: &Workers,
        input: &[f32],
        size: Size,
        lengths: &[f32],
        next: Option<&[f32]>,
        noise: &Down,
        out: &mut Buffer,
    ) {
        let half = noise.size.values(self.channels.blocks());
        out.grow(2 * half);
        let (features, beside) = out[..2 * half].split_at_mut(half);
        let lanes = self.channels.blocks() * BLOCK;
        let (after, after_noise) = match next {
            Some(next) => next.split_at(lanes),
            None => (&*self.ones, &*self.ones),
        };
        let styled = Styled {
            scale: lengths,
            after,
        };
        let epilogue = Epilogue {
            styled: Some(styled),
            ..Epilogue::default()
        };
        let flops = 2 * 9 * self.style.products() * noise.size.pixels();
        workers
            .meter
            .time("styled", self.conv.algorithm(), flops, || {
                self.conv.run(workers, input, size, features, epilogue);
            });
        workers.meter.time("noise", "sums", 0, || {
            let from: &[Line] = noise.out.as_chunks().0;
            let pixels = noise.size.pixels();
            each_pixel(workers, beside, noise.size, |block, at, pixel| {
                let (bias, after) = (line(&self.noise_bias, block), line(after_noise, block));
                let from = &from[block * pixels + at];
                for lane in 0..BLOCK {
                    let value = self.noise * from[lane] + bias[lane];
                    pixel[lane] = leaky(value) * after[lane];
                }
            });
        });
    }
}

//! GFPGAN on the packed engine: see [`crate::model::Gfpgan`].

use std::collections::BTreeMap;

use candle_core::{Result, Tensor};

use super::layers::Weights;
use super::styled::{
    Canvas, Line, Linear, Style, ToRgb, each_pixel, leaky, line, ones, pack_picture, padded, spec,
};
use crate::model::gfpgan::Shape;
use crate::model::gpen::GAIN;
use crate::ops::blocked::{Buffer, Channels, Size, pack, unpack};
use crate::ops::conv::{Conv, Epilogue, Styled};
use crate::ops::doubling::{Edge, double};
use crate::ops::simd::BLOCK;
use crate::ops::threads::Workers;

/// Restores one face at a time.
#[derive(Debug)]
pub struct Gfpgan {
    workers: Workers,
    size: usize,
    style: usize,
    first: Plain,
    down: Vec<Block>,
    last: Plain,
    styles: Linear,
    up: Vec<Block>,
    /// (c, 4, 4).
    input: Vec<f32>,
    first_conv: Layer,
    first_rgb: ToRgb,
    levels: Vec<Level>,
    /// The U-Net's features where no block has made them.
    features: Buffer,
    maps: Maps,
    canvas: Canvas,
}

/// Maps between layers; they grow with the levels, and hold what was.
#[derive(Debug, Default)]
struct Maps {
    picture: Buffer,
    inner: Buffer,
    enlarged: Buffer,
    condition: Buffer,
    scale: Buffer,
    shift: Buffer,
    /// The decoder's features.
    between: Buffer,
    decoded: Buffer,
}

/// A convolution with its bias.
#[derive(Debug)]
struct Plain {
    conv: Conv,
    c_in: Channels,
    channels: Channels,
    /// For the activation; none where there is none.
    ones: Option<Buffer>,
}

/// A residual block of the U-Net and what it gave last.
#[derive(Debug)]
struct Block {
    first: Plain,
    second: Plain,
    skip: Plain,
    out: Buffer,
}

#[derive(Debug)]
struct Level {
    scale: [Plain; 2],
    shift: [Plain; 2],
    up: Layer,
    same: Layer,
    rgb: ToRgb,
}

/// A modulated convolution with its noise.
#[derive(Debug)]
struct Layer {
    conv: Conv,
    style: Style,
    channels: Channels,
    /// Times its weight, for each pixel.
    noise: Vec<f32>,
    bias: Buffer,
}

/// What happens to a layer's features.
#[derive(Clone, Copy, Default)]
struct Finish<'a> {
    /// The upper half of the channels is multiplied by the first map, and the second is added.
    moved: Option<(&'a [f32], &'a [f32])>,
    /// What the next layer wants its input multiplied by.
    next: Option<&'a [f32]>,
}

impl Gfpgan {
    /// Packs tidy tensors (see [`crate::model::gfpgan::tidy`]) of a shape.
    ///
    /// # Errors
    /// When a tensor is missing or has another size.
    pub fn new(
        shape: &Shape,
        tensors: &BTreeMap<String, Tensor>,
        workers: Workers,
    ) -> Result<Self> {
        let weights = |name: &str| Weights::new(tensors, name, workers.isa);
        let Shape { widths, style } = shape;
        let (smallest, largest) = (widths[0], widths[widths.len() - 1]);
        let decoder = weights("stylegan_decoder");
        let steps = || widths.windows(2).enumerate();
        let side = |i: usize| Size::square(4 << i);
        let down = steps()
            .rev()
            .map(|(i, pair)| {
                let name = format!("conv_body_down.{}", widths.len() - 2 - i);
                Block::new(&weights(&name), (pair[1], pair[0]), (side(i + 1), side(i)))
            })
            .collect::<Result<_>>()?;
        let up = steps()
            .map(|(i, pair)| {
                let name = format!("conv_body_up.{i}");
                Block::new(&weights(&name), (pair[0], pair[1]), (side(i), side(i + 1)))
            })
            .collect::<Result<_>>()?;
        let layer = |name: String, c_in: usize, c_out: usize, noise: usize| {
            let size = Size::square(4 << noise.div_ceil(2));
            let noise = decoder
                .at("noises")
                .get(&format!("noise{noise}"), size.pixels())?;
            Layer::new(&decoder.at(name), (c_in, c_out, *style), noise, size)
        };
        let rgb = |name: String, c_in: usize| {
            let channels = Channels::new(c_in);
            ToRgb::new(
                &decoder.at(name),
                "modulated_conv",
                channels,
                *style,
                (1.0, 1.0),
            )
        };
        let levels = steps()
            .map(|(i, pair)| {
                let (before, after) = (2 * pair[0], 2 * pair[1]);
                let condition = |part: &str| {
                    let conv = |at: usize| {
                        let name = format!("condition_{part}.{i}.{at}");
                        Plain::new(&weights(&name), (pair[1], pair[1], 3), side(i + 1), at == 0)
                    };
                    Ok::<_, candle_core::Error>([conv(0)?, conv(2)?])
                };
                Ok(Level {
                    scale: condition("scale")?,
                    shift: condition("shift")?,
                    up: layer(format!("style_convs.{}", 2 * i), before, after, 2 * i + 1)?,
                    same: layer(
                        format!("style_convs.{}", 2 * i + 1),
                        after,
                        after,
                        2 * i + 2,
                    )?,
                    rgb: rgb(format!("to_rgbs.{i}"), after)?,
                })
            })
            .collect::<Result<_>>()?;
        let whole = Size::square(shape.size());
        let styles = 2 * widths.len() * style;
        Ok(Self {
            size: shape.size(),
            style: *style,
            first: Plain::new(&weights("conv_body_first"), (3, largest, 1), whole, true)?,
            down,
            last: Plain::new(
                &weights("final_conv"),
                (smallest, smallest, 3),
                side(0),
                true,
            )?,
            styles: Linear::new(&weights("final_linear"), 16 * smallest, styles, (1.0, 1.0))?,
            up,
            input: decoder
                .at("constant_input")
                .get("weight", 2 * smallest * 16)?,
            first_conv: layer("style_conv1".to_owned(), 2 * smallest, 2 * smallest, 0)?,
            first_rgb: rgb("to_rgb1".to_owned(), 2 * smallest)?,
            levels,
            features: Buffer::default(),
            maps: Maps::default(),
            canvas: Canvas::default(),
            workers,
        })
    }

    /// Side of the pictures.
    pub fn size(&self) -> usize {
        self.size
    }

    /// A picture (3, s, s) in -1..1 to the restored one, about -1..1.
    ///
    /// # Panics
    /// When the picture has another size: a fault of the program.
    pub fn run(&mut self, picture: &[f32]) -> Vec<f32> {
        let whole = Size::square(self.size);
        assert_eq!(picture.len(), 3 * whole.pixels());
        let Self {
            workers,
            style: width,
            first,
            down,
            last,
            styles,
            up,
            input,
            first_conv,
            first_rgb,
            levels,
            features,
            maps,
            canvas,
            ..
        } = self;
        workers.install(|| {
            maps.picture.grow(whole.values(1));
            pack_picture(workers, picture, whole, &mut maps.picture);
            let mut size = whole;
            let plain = Epilogue::default;
            first.run(workers, &maps.picture, size, features, plain());
            for i in 0..down.len() {
                let (done, rest) = down.split_at_mut(i);
                let from = done.last().map_or(&*features, |block| &block.out);
                size = rest[0].down(workers, from, size, &mut maps.inner, &mut maps.enlarged);
            }
            if let Some(smallest) = down.last() {
                last.run(workers, &smallest.out, size, features, plain());
            }
            let code = unpack(features, &last.channels, size);
            let code = styles.run(&code);
            let style = |i: usize| &code[i * *width..][..*width];

            let (scale, lengths) = first_conv.style.scales(style(0), GAIN as f32);
            let mut constant = pack(input, &first_conv.channels, size);
            each_pixel(workers, &mut constant, size, |block, _, pixel| {
                let scale = line(&scale, block);
                for lane in 0..BLOCK {
                    pixel[lane] *= scale[lane];
                }
            });
            let finish = Finish::default();
            let decoded = &mut maps.decoded;
            let decoded = first_conv.run(workers, &constant, size, &lengths, decoded, finish);
            first_rgb.add(workers, style(1), decoded, size, canvas.start(size));
            for (i, (level, skip)) in levels.iter().zip(down.iter().rev()).enumerate() {
                let (done, rest) = up.split_at_mut(i);
                let from = done
                    .last_mut()
                    .map_or(&mut *features, |block| &mut block.out);
                let len = size.values(rest[0].first.c_in.blocks());
                add(workers, &mut from[..len], &skip.out, size);
                let inner = [&mut maps.inner, &mut maps.enlarged, &mut maps.condition];
                rest[0].up(workers, from, size, inner);
                let styles = [2 * i + 1, 2 * i + 2, 2 * i + 3].map(style);
                size = level.run(workers, &rest[0].out, size, styles, maps, canvas);
            }
        });
        canvas.planar(whole)
    }
}

impl Level {
    /// From the features of `before` to those of twice that, which it gives.
    fn run(
        &self,
        workers: &Workers,
        features: &[f32],
        before: Size,
        styles: [&[f32]; 3],
        maps: &mut Maps,
        canvas: &mut Canvas,
    ) -> Size {
        let Maps {
            enlarged,
            condition,
            scale,
            shift,
            between,
            decoded,
            ..
        } = maps;
        let size = Size {
            height: 2 * before.height,
            width: 2 * before.width,
        };
        for (convs, out) in [(&self.scale, &mut *scale), (&self.shift, &mut *shift)] {
            convs[0].run(workers, features, size, condition, Epilogue::default());
            convs[1].run(workers, condition, size, out, Epilogue::default());
        }
        let (scale_up, lengths_up) = self.up.style.scales(styles[0], GAIN as f32);
        let (scale_same, lengths) = self.same.style.scales(styles[1], GAIN as f32);
        let blocks = scale_up.len() / BLOCK;
        let larger = size.values(blocks);
        enlarged.grow(larger);
        let from = &decoded[..before.values(blocks)];
        double(
            workers,
            from,
            before,
            Some(&scale_up),
            Edge::Repeat,
            &mut enlarged[..larger],
        );
        let finish = Finish {
            moved: Some((scale, shift)),
            next: Some(&scale_same),
        };
        let up_features = self.up.run(
            workers,
            &enlarged[..larger],
            size,
            &lengths_up,
            between,
            finish,
        );
        let finish = Finish::default();
        let made = self
            .same
            .run(workers, up_features, size, &lengths, decoded, finish);
        let rgb = canvas.enlarge(workers, before, Edge::Repeat);
        self.rgb.add(workers, styles[2], made, size, rgb);
        size
    }
}

impl Plain {
    fn new(
        weights: &Weights<'_>,
        (c_in, c_out, kernel): (usize, usize, usize),
        size: Size,
        leaky: bool,
    ) -> Result<Self> {
        let (weight, bias) = weights.conv(c_out, c_in * kernel * kernel)?;
        let channels = Channels::new(c_out);
        let input = Channels::new(c_in);
        let spec = spec(kernel, kernel / 2);
        Ok(Self {
            conv: Conv::new(spec, &weight, &bias, &input, size, weights.isa),
            ones: leaky.then(|| ones(&channels)),
            c_in: input,
            channels,
        })
    }

    /// Of what `input` holds the first values are read, and `out` becomes as large as the result at least.
    fn run(
        &self,
        workers: &Workers,
        input: &[f32],
        size: Size,
        out: &mut Buffer,
        epilogue: Epilogue<'_>,
    ) {
        let len = self
            .conv
            .output_size(size, epilogue.pool)
            .values(self.channels.blocks());
        out.grow(len);
        let styled = self.ones.as_ref().map(|ones| Styled {
            scale: ones,
            after: ones,
        });
        let input = &input[..size.values(self.c_in.blocks())];
        let (conv, epilogue) = (&self.conv, Epilogue { styled, ..epilogue });
        workers.meter.time("u-net", conv.algorithm(), 0, || {
            conv.run(workers, input, size, &mut out[..len], epilogue);
        });
    }
}

impl Block {
    /// `sizes` are the input's and the output's.
    fn new(
        weights: &Weights<'_>,
        (c_in, c_out): (usize, usize),
        sizes: (Size, Size),
    ) -> Result<Self> {
        let conv =
            |name: &str, shape, size, leaky| Plain::new(&weights.at(name), shape, size, leaky);
        let channels = Channels::new(c_out);
        Ok(Self {
            first: conv("conv1", (c_in, c_in, 3), sizes.0, true)?,
            second: conv("conv2", (c_in, c_out, 3), sizes.1, true)?,
            skip: conv("skip", (c_in, c_out, 1), sizes.0, false)?,
            out: Buffer::zeroed(sizes.1.values(channels.blocks())),
        })
    }

    /// To half the size, which it gives.
    fn down(
        &mut self,
        workers: &Workers,
        input: &[f32],
        size: Size,
        inner: &mut Buffer,
        small: &mut Buffer,
    ) -> Size {
        let half = Size {
            height: size.height / 2,
            width: size.width / 2,
        };
        let blocks = self.first.c_in.blocks();
        small.grow(half.values(blocks));
        halve(workers, &input[..size.values(blocks)], size, small, half);
        let pooled = Epilogue {
            pool: true,
            ..Epilogue::default()
        };
        self.first.run(workers, input, size, inner, pooled);
        self.skip
            .run(workers, small, half, &mut self.out, Epilogue::default());
        let onto = Epilogue {
            residual: true,
            ..Epilogue::default()
        };
        self.second.run(workers, inner, half, &mut self.out, onto);
        half
    }

    /// To twice the size. What is beside the convolutions is linear: it is made small and then enlarged.
    fn up(
        &mut self,
        workers: &Workers,
        input: &[f32],
        size: Size,
        [inner, enlarged, beside]: [&mut Buffer; 3],
    ) {
        let twice = |from: &[f32], channels: &Channels, to: &mut Buffer| {
            let (small, large) = (
                size.values(channels.blocks()),
                4 * size.values(channels.blocks()),
            );
            to.grow(large);
            double(
                workers,
                &from[..small],
                size,
                None,
                Edge::Repeat,
                &mut to[..large],
            );
        };
        self.skip
            .run(workers, input, size, beside, Epilogue::default());
        twice(beside, &self.skip.channels, &mut self.out);
        self.first
            .run(workers, input, size, inner, Epilogue::default());
        twice(inner, &self.first.channels, enlarged);
        let onto = Epilogue {
            residual: true,
            ..Epilogue::default()
        };
        let large = Size {
            height: 2 * size.height,
            width: 2 * size.width,
        };
        self.second
            .run(workers, enlarged, large, &mut self.out, onto);
    }
}

impl Layer {
    /// `size` is the output's.
    fn new(
        weights: &Weights<'_>,
        (c_in, c_out, style): (usize, usize, usize),
        mut noise: Vec<f32>,
        size: Size,
    ) -> Result<Self> {
        let conv = weights.at("modulated_conv");
        let weight = conv.get("weight", c_out * c_in * 9)?;
        let input = Channels::new(c_in);
        let strength = weights.get("weight", 1)?[0];
        noise.iter_mut().for_each(|value| *value *= strength);
        let channels = Channels::new(c_out);
        let nothing = vec![0.0; c_out];
        Ok(Self {
            conv: Conv::new(spec(3, 1), &weight, &nothing, &input, size, weights.isa),
            style: Style::new(&conv, &weight, input, (style, 1.0))?,
            noise,
            bias: padded(&weights.get("bias", c_out)?, &channels),
            channels,
        })
    }

    /// Gives what it has put into `out`.
    fn run<'a>(
        &self,
        workers: &Workers,
        input: &[f32],
        size: Size,
        lengths: &[f32],
        out: &'a mut Buffer,
        finish: Finish<'_>,
    ) -> &'a [f32] {
        let len = size.values(self.channels.blocks());
        out.grow(len);
        let out = &mut out[..len];
        workers.meter.time("styled", self.conv.algorithm(), 0, || {
            self.conv
                .run(workers, input, size, out, Epilogue::default());
        });
        let halves = self.channels.blocks() / 2;
        let moved = finish.moved.map(|(scale, shift)| -> (&[Line], &[Line]) {
            (scale.as_chunks().0, shift.as_chunks().0)
        });
        each_pixel(workers, out, size, |block, at, pixel| {
            let (lengths, bias) = (line(lengths, block), line(&self.bias, block));
            let noise = self.noise[at];
            for lane in 0..BLOCK {
                pixel[lane] = leaky(pixel[lane] * lengths[lane] + bias[lane] + noise);
            }
            if let (Some((scale, shift)), Some(upper)) = (moved, block.checked_sub(halves)) {
                let at = upper * size.pixels() + at;
                for lane in 0..BLOCK {
                    pixel[lane] = pixel[lane] * scale[at][lane] + shift[at][lane];
                }
            }
            if let Some(next) = finish.next {
                let next = line(next, block);
                for lane in 0..BLOCK {
                    pixel[lane] *= next[lane];
                }
            }
        });
        out
    }
}

/// Adds a map to another.
fn add(workers: &Workers, to: &mut [f32], what: &[f32], size: Size) {
    let what: &[Line] = what.as_chunks().0;
    each_pixel(workers, to, size, |block, at, pixel| {
        let what = &what[block * size.pixels() + at];
        for lane in 0..BLOCK {
            pixel[lane] += what[lane];
        }
    });
}

/// The means of 2x2.
fn halve(workers: &Workers, from: &[f32], size: Size, to: &mut [f32], half: Size) {
    let blocks = from.len() / (size.pixels() * BLOCK);
    let from: &[Line] = from.as_chunks().0;
    each_pixel(
        workers,
        &mut to[..half.values(blocks)],
        half,
        |block, at, pixel| {
            let (y, x) = (at / half.width * 2, at % half.width * 2);
            let first = block * size.pixels() + y * size.width + x;
            let four = [first, first + 1, first + size.width, first + size.width + 1];
            for lane in 0..BLOCK {
                pixel[lane] = four.iter().map(|&at| from[at][lane]).sum::<f32>() / 4.0;
            }
        },
    );
}

//! GFPGAN 1.2 to 1.4 in its "clean" form (Wang et al., "Towards Real-World Blind Face Restoration with
//! Generative Facial Prior", CVPR 2021): a U-Net finds a style for every layer of a StyleGAN2 decoder,
//! and for half of its features at every size a scale and a shift.
//!
//! Tensors are named as in `GFPGANv1.4.pth`; sizes and widths are read from their shapes. Where the
//! published program draws new noise for every picture, the noise that is stored with the weights is
//! used: a still face must not flicker.

use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor};
use candle_nn::VarBuilder;

use super::blocks::{Conv, ConvShape};
use super::gpen::{GAIN, SIZES};
use super::modulated::{Linear, Modulated, ModulatedShape, ToRgb, bilinear_twice, builder, leaky};

/// What a set of weights is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Features of the U-Net at each size: 4 pixels, 8, 16, up to the picture's side. The decoder has twice
    /// as many.
    pub widths: Vec<usize>,
    /// Width of the styles.
    pub style: usize,
}

impl Shape {
    /// The published network of a size, a power of two.
    pub fn published(size: usize) -> Self {
        let decoder = super::gpen::Shape::published(size);
        Self {
            widths: decoder.widths.iter().map(|width| width / 2).collect(),
            style: decoder.style,
        }
    }

    /// What tidy tensors are of; None when they are another network's or out of range.
    pub fn of(tensors: &BTreeMap<String, Tensor>) -> Option<Self> {
        let first = |name: &str| tensors.get(name).and_then(|t| t.dims().first().copied());
        let mut widths = vec![first("conv_body_first.weight")?];
        let next = |i: usize| first(&format!("conv_body_down.{i}.conv2.weight"));
        widths.extend((0..32).map_while(next));
        widths.reverse();
        let style = tensors.get("stylegan_decoder.style_conv1.modulated_conv.modulation.weight")?;
        let shape = Self {
            widths,
            style: style.dims().get(1).copied()?,
        };
        // The packed engine takes features apart by blocks of 16.
        let sane = |width: &usize| (1..=1024).contains(width);
        let whole = |width: &usize| sane(width) && width.is_multiple_of(16);
        let sound =
            SIZES.contains(&shape.size()) && shape.widths.iter().all(whole) && sane(&shape.style);
        sound.then_some(shape)
    }

    /// Side of the picture.
    pub fn size(&self) -> usize {
        2 << self.widths.len()
    }

    /// Every tensor with its shape, but for those that restoring does not need.
    pub fn expected_tensors(&self) -> BTreeMap<String, Vec<usize>> {
        let mut list = BTreeMap::new();
        let mut add = |name: String, shape: &[usize]| list.insert(name, shape.to_vec());
        let mut conv = |name: String, c_in: usize, c_out: usize, kernel: usize, bias: bool| {
            add(format!("{name}.weight"), &[c_out, c_in, kernel, kernel]);
            if bias {
                add(format!("{name}.bias"), &[c_out]);
            }
        };
        let (smallest, largest) = (self.widths[0], self.widths[self.widths.len() - 1]);
        conv("conv_body_first".to_owned(), 3, largest, 1, true);
        conv("final_conv".to_owned(), smallest, smallest, 3, true);
        for (i, pair) in self.widths.windows(2).enumerate() {
            let down = self.widths.len() - 2 - i;
            for (name, c_in, c_out) in [
                (format!("conv_body_down.{down}"), pair[1], pair[0]),
                (format!("conv_body_up.{i}"), pair[0], pair[1]),
            ] {
                conv(format!("{name}.conv1"), c_in, c_in, 3, true);
                conv(format!("{name}.conv2"), c_in, c_out, 3, true);
                conv(format!("{name}.skip"), c_in, c_out, 1, false);
            }
            for part in ["scale", "shift"] {
                for layer in [0, 2] {
                    let name = format!("condition_{part}.{i}.{layer}");
                    conv(name, pair[1], pair[1], 3, true);
                }
            }
        }
        let styles = 2 * self.widths.len() * self.style;
        add("final_linear.weight".to_owned(), &[styles, 16 * smallest]);
        add("final_linear.bias".to_owned(), &[styles]);

        let mut modulated = |name: &str, c_in: usize, c_out: usize, kernel: usize| {
            let name = format!("stylegan_decoder.{name}");
            let conv = format!("{name}.modulated_conv");
            add(format!("{conv}.weight"), &[1, c_out, c_in, kernel, kernel]);
            add(format!("{conv}.modulation.weight"), &[c_in, self.style]);
            add(format!("{conv}.modulation.bias"), &[c_in]);
            add(format!("{name}.bias"), &[1, c_out, 1, 1]);
            if kernel > 1 {
                add(format!("{name}.weight"), &[1]);
            }
        };
        modulated("style_conv1", 2 * smallest, 2 * smallest, 3);
        modulated("to_rgb1", 2 * smallest, 3, 1);
        for (i, pair) in self.widths.windows(2).enumerate() {
            let (before, after) = (2 * pair[0], 2 * pair[1]);
            modulated(&format!("style_convs.{}", 2 * i), before, after, 3);
            modulated(&format!("style_convs.{}", 2 * i + 1), after, after, 3);
            modulated(&format!("to_rgbs.{i}"), after, 3, 1);
        }
        let input = "stylegan_decoder.constant_input.weight".to_owned();
        add(input, &[1, 2 * smallest, 4, 4]);
        for i in 0..2 * self.widths.len() - 1 {
            let side = 4 << i.div_ceil(2);
            let name = format!("stylegan_decoder.noises.noise{i}");
            add(name, &[1, 1, side, side]);
        }
        list
    }
}

/// Leaves out what training alone needs: the mapping of random codes to styles, and the pictures that the
/// U-Net draws on its way.
pub fn tidy(mut tensors: BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    let unused = ["stylegan_decoder.style_mlp.", "toRGB."];
    tensors.retain(|name, _| !unused.iter().any(|prefix| name.starts_with(prefix)));
    tensors
}

/// The network, ready for inference.
#[derive(Clone, Debug)]
pub struct Gfpgan {
    first: Conv,
    down: Vec<Residual>,
    last: Conv,
    styles: Linear,
    style: usize,
    up: Vec<Residual>,
    scale: Vec<[Conv; 2]>,
    shift: Vec<[Conv; 2]>,
    input: Tensor,
    first_conv: Styled,
    first_rgb: ToRgb,
    levels: Vec<Level>,
}

impl Gfpgan {
    /// Builds the network from tidy tensors (see [`tidy`]) of a shape.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    pub fn new(shape: &Shape, tensors: &BTreeMap<String, Tensor>, device: &Device) -> Result<Self> {
        let vb = builder(tensors, device);
        let Shape { widths, style } = shape;
        let (smallest, largest) = (widths[0], widths[widths.len() - 1]);
        let decoder = vb.pp("stylegan_decoder");
        let conv = |c_in, c_out, kernel, name: String| {
            Conv::new(ConvShape::same(c_in, c_out, kernel), &vb.pp(name))
        };
        let steps = || widths.windows(2).enumerate();
        let condition = |part: &str| {
            let pair = |(i, pair): (usize, &[usize])| {
                let layer = |at| conv(pair[1], pair[1], 3, format!("condition_{part}.{i}.{at}"));
                Ok([layer(0)?, layer(2)?])
            };
            steps().map(pair).collect::<Result<Vec<_>>>()
        };
        let down = steps()
            .rev()
            .map(|(i, pair)| {
                let at = widths.len() - 2 - i;
                Residual::new(pair[1], pair[0], &vb.pp(format!("conv_body_down.{at}")))
            })
            .collect::<Result<_>>()?;
        let up = steps()
            .map(|(i, pair)| Residual::new(pair[0], pair[1], &vb.pp(format!("conv_body_up.{i}"))))
            .collect::<Result<_>>()?;
        let styled = |c_in, c_out, up, at: usize, name: String| {
            let noise = format!("noises.noise{at}");
            let side = 4 << at.div_ceil(2);
            let noise = decoder.get((1, 1, side, side), &noise)?;
            Styled::new((c_in, c_out, *style), up, noise, &decoder.pp(name))
        };
        let rgb = |c_in, name: String| {
            ToRgb::new((c_in, *style), false, "modulated_conv", &decoder.pp(name))
        };
        let levels = steps()
            .map(|(i, pair)| {
                let (before, after) = (2 * pair[0], 2 * pair[1]);
                let name = |i: usize| format!("style_convs.{i}");
                Ok(Level {
                    up: styled(before, after, true, 2 * i + 1, name(2 * i))?,
                    same: styled(after, after, false, 2 * i + 2, name(2 * i + 1))?,
                    rgb: rgb(after, format!("to_rgbs.{i}"))?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            first: conv(3, largest, 1, "conv_body_first".to_owned())?,
            down,
            last: conv(smallest, smallest, 3, "final_conv".to_owned())?,
            styles: Linear::new(
                16 * smallest,
                2 * widths.len() * style,
                None,
                &vb.pp("final_linear"),
            )?,
            style: *style,
            up,
            scale: condition("scale")?,
            shift: condition("shift")?,
            input: decoder.get((1, 2 * smallest, 4, 4), "constant_input.weight")?,
            first_conv: styled(
                2 * smallest,
                2 * smallest,
                false,
                0,
                "style_conv1".to_owned(),
            )?,
            first_rgb: rgb(2 * smallest, "to_rgb1".to_owned())?,
            levels,
        })
    }

    /// Pictures (b, 3, s, s) in -1..1 to restored ones, about -1..1.
    pub fn forward(&self, pictures: &Tensor) -> Result<Tensor> {
        let batch = pictures.dim(0)?;
        let mut x = leaky(&self.first.forward(pictures)?)?;
        let mut skips = Vec::with_capacity(self.down.len());
        for block in &self.down {
            x = block.forward(&x, |x| x.avg_pool2d(2))?;
            skips.push(x.clone());
        }
        x = leaky(&self.last.forward(&x)?)?;
        let styles = self.styles.forward(&x.flatten_from(1)?)?;
        let style = |i: usize| styles.narrow(1, i * self.style, self.style)?.contiguous();

        let input = self.input.repeat((batch, 1, 1, 1))?;
        let mut y = self.first_conv.forward(&input, &style(0)?)?;
        let mut rgb = self.first_rgb.forward(&y, &style(1)?)?;
        for (i, level) in self.levels.iter().enumerate() {
            x = (x + &skips[skips.len() - 1 - i])?;
            x = self.up[i].forward(&x, bilinear_twice)?;
            let condition = |convs: &[Conv; 2]| convs[1].forward(&leaky(&convs[0].forward(&x)?)?);
            let (scale, shift) = (condition(&self.scale[i])?, condition(&self.shift[i])?);
            y = level.up.forward(&y, &style(2 * i + 1)?)?;
            let half = y.dim(1)? / 2;
            let moved = ((y.narrow(1, half, half)? * scale)? + shift)?;
            y = Tensor::cat(&[y.narrow(1, 0, half)?, moved], 1)?;
            y = level.same.forward(&y, &style(2 * i + 2)?)?;
            rgb = (level.rgb.forward(&y, &style(2 * i + 3)?)? + bilinear_twice(&rgb)?)?;
        }
        Ok(rgb)
    }
}

/// Two convolutions with a change of size between them, and one beside them.
#[derive(Clone, Debug)]
struct Residual {
    first: Conv,
    second: Conv,
    skip: Conv,
}

impl Residual {
    fn new(c_in: usize, c_out: usize, vb: &VarBuilder) -> Result<Self> {
        let skip = ConvShape::same(c_in, c_out, 1).without_bias();
        Ok(Self {
            first: Conv::new(ConvShape::same(c_in, c_in, 3), &vb.pp("conv1"))?,
            second: Conv::new(ConvShape::same(c_in, c_out, 3), &vb.pp("conv2"))?,
            skip: Conv::new(skip, &vb.pp("skip"))?,
        })
    }

    fn forward(&self, x: &Tensor, resize: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let y = resize(&leaky(&self.first.forward(x)?)?)?;
        leaky(&self.second.forward(&y)?)? + self.skip.forward(&resize(x)?)?
    }
}

/// A level of the decoder: a map twice as large, and what it adds to the picture.
#[derive(Clone, Debug)]
struct Level {
    up: Styled,
    same: Styled,
    rgb: ToRgb,
}

/// Modulated convolution, noise, activation.
#[derive(Clone, Debug)]
struct Styled {
    conv: Modulated,
    up: bool,
    /// Noise times its weight, and bias.
    shift: Tensor,
}

impl Styled {
    fn new(
        (c_in, c_out, style): (usize, usize, usize),
        up: bool,
        noise: Tensor,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let shape = ModulatedShape {
            c_in,
            c_out,
            kernel: 3,
            padding: 1,
            style,
            demodulate: true,
            equalised: false,
            turned: false,
        };
        let weight = vb.get(1, "weight")?.reshape((1, 1, 1, 1))?;
        let bias = vb.get((1, c_out, 1, 1), "bias")?;
        Ok(Self {
            conv: Modulated::new(shape, &vb.pp("modulated_conv"))?,
            up,
            shift: noise.broadcast_mul(&weight)?.broadcast_add(&bias)?,
        })
    }

    fn forward(&self, x: &Tensor, style: &Tensor) -> Result<Tensor> {
        let x = if self.up { &bilinear_twice(x)? } else { x };
        let y = (self.conv.forward(x, style)? * GAIN)?;
        leaky(&y.broadcast_add(&self.shift)?)
    }
}

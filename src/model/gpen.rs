//! GPEN, the face restorer of PaddleGAN (Yang et al., "GAN Prior Embedded Network for Blind Face
//! Restoration in the Wild", CVPR 2021): an encoder whose every level becomes the noise of a StyleGAN2
//! generator, and whose last level its style.
//!
//! Tensors are named as in `GPEN-BFR-512.pth`, which are PaddleGAN's names too; [`tidy`] takes out what
//! the two files differ in. Any size and width of the architecture runs: both are read from the tensors'
//! shapes.

use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor};
use candle_nn::VarBuilder;

use super::modulated::{Linear, Modulated, ModulatedShape, ToRgb, blur, builder, leaky, spread};

/// Learning rate of the mapping network: its weights are stored over it.
pub(super) const MAPPING_RATE: f64 = 0.01;

/// The leaky relus keep the variance.
pub(super) const GAIN: f64 = std::f64::consts::SQRT_2;

/// Sides of pictures that are taken.
pub const SIZES: std::ops::RangeInclusive<usize> = 32..=1024;

/// What a set of weights is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Features at each size: 4 pixels, 8, 16, up to the picture's side.
    pub widths: Vec<usize>,
    /// Width of the style.
    pub style: usize,
    /// Layers of the mapping network.
    pub mapping: usize,
}

impl Shape {
    /// The published network of a size, a power of two.
    pub fn published(size: usize) -> Self {
        let levels = size.max(4).ilog2() as usize - 1;
        let width = |level: usize| (512 * 32 / (2 << level)).min(512);
        Self {
            widths: (0..levels).map(|level| width(level.max(4))).collect(),
            style: 512,
            mapping: 8,
        }
    }

    /// What tidy tensors are of; None when they are another network's or out of range.
    pub fn of(tensors: &BTreeMap<String, Tensor>) -> Option<Self> {
        let first = |name: &str| tensors.get(name).and_then(|t| t.dims().first().copied());
        let count = |name: &dyn Fn(usize) -> String| {
            (0..32)
                .take_while(|&i| tensors.contains_key(&name(i)))
                .count()
        };
        let levels = count(&|i| format!("ecd{i}.0.{}.weight", usize::from(i > 0)));
        let mut widths: Vec<usize> = (0..levels)
            .map_while(|i| first(&format!("ecd{i}.0.{}.weight", usize::from(i > 0))))
            .collect();
        widths.reverse();
        let shape = Self {
            widths,
            style: first("generator.style.1.weight")?,
            mapping: count(&|i| format!("generator.style.{}.weight", i + 1)),
        };
        let sane = |width: &usize| (1..=2048).contains(width);
        let sound = !shape.widths.is_empty()
            && SIZES.contains(&shape.size())
            && shape.widths.iter().all(sane)
            && sane(&shape.style);
        sound.then_some(shape)
    }

    /// Side of the picture.
    pub fn size(&self) -> usize {
        2 << self.widths.len()
    }

    /// Every tensor with its shape, as PyTorch has them, but for constants.
    pub fn expected_tensors(&self) -> BTreeMap<String, Vec<usize>> {
        let mut list = BTreeMap::new();
        let mut add = |name: String, shape: &[usize]| list.insert(name, shape.to_vec());
        let style = self.style;
        let smallest = self.widths[0];
        for i in 1..=self.mapping {
            add(format!("generator.style.{i}.weight"), &[style, style]);
            add(format!("generator.style.{i}.bias"), &[style]);
        }
        add("generator.input.input".to_owned(), &[1, smallest, 4, 4]);
        let mut modulated = |name: &str, c_in: usize, c_out: usize, kernel: usize| {
            add(
                format!("{name}.conv.weight"),
                &[1, c_out, c_in, kernel, kernel],
            );
            add(format!("{name}.conv.modulation.weight"), &[c_in, style]);
            add(format!("{name}.conv.modulation.bias"), &[c_in]);
            if kernel == 1 {
                add(format!("{name}.bias"), &[1, 3, 1, 1]);
            } else {
                add(format!("{name}.noise.weight"), &[1]);
                add(format!("{name}.activate.bias"), &[2 * c_out]);
            }
        };
        modulated("generator.conv1", smallest, smallest, 3);
        modulated("generator.to_rgb1", 2 * smallest, 3, 1);
        for (i, pair) in self.widths.windows(2).enumerate() {
            let (before, after) = (2 * pair[0], pair[1]);
            modulated(&format!("generator.convs.{}", 2 * i), before, after, 3);
            modulated(
                &format!("generator.convs.{}", 2 * i + 1),
                2 * after,
                after,
                3,
            );
            modulated(&format!("generator.to_rgbs.{i}"), 2 * after, 3, 1);
        }
        let mut c_in = 3;
        for (i, &width) in self.widths.iter().rev().enumerate() {
            let (at, kernel) = if i == 0 { (0, 1) } else { (1, 3) };
            add(
                format!("ecd{i}.0.{at}.weight"),
                &[width, c_in, kernel, kernel],
            );
            add(format!("ecd{i}.0.{}.bias", at + 1), &[width]);
            c_in = width;
        }
        add("final_linear.0.weight".to_owned(), &[style, 16 * smallest]);
        add("final_linear.0.bias".to_owned(), &[style]);
        list
    }
}

/// Leaves out constants (the filter, and noise that the encoder replaces), and turns Paddle's linear
/// weights (in, out) into PyTorch's.
///
/// # Errors
/// When memory is short.
pub fn tidy(mut tensors: BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
    tensors.retain(|name, _| !name.ends_with(".kernel") && !name.contains(".noises."));
    let style = tensors.get("generator.style.1.weight").map(Tensor::dims);
    let last = tensors.get("final_linear.0.weight").map(Tensor::dims);
    // Of the last layer's two sides one is the style's width.
    let paddle = matches!((style, last), (Some([style, _]), Some([first, second])) if first != style && second == style);
    if paddle {
        for tensor in tensors.values_mut().filter(|tensor| tensor.rank() == 2) {
            *tensor = tensor.t()?.contiguous()?;
        }
    }
    Ok(tensors)
}

/// The network, ready for inference.
#[derive(Clone, Debug)]
pub struct Gpen {
    encoder: Vec<Down>,
    last: Linear,
    mapping: Vec<Linear>,
    input: Tensor,
    first: Styled,
    first_rgb: ToRgb,
    levels: Vec<Level>,
}

impl Gpen {
    /// Builds the network from tidy tensors (see [`tidy`]) of a shape.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    pub fn new(shape: &Shape, tensors: &BTreeMap<String, Tensor>, device: &Device) -> Result<Self> {
        let vb = builder(tensors, device);
        let generator = vb.pp("generator");
        let (smallest, style) = (shape.widths[0], shape.style);
        let mut c_in = 3;
        let mut encoder = Vec::with_capacity(shape.widths.len());
        for (i, &width) in shape.widths.iter().rev().enumerate() {
            encoder.push(Down::new(c_in, width, i > 0, &vb.pp(format!("ecd{i}.0")))?);
            c_in = width;
        }
        let linear = |i| {
            let vb = generator.pp(format!("style.{i}"));
            Linear::new(style, style, Some(MAPPING_RATE), &vb)
        };
        let rgb = |c_in, name: String| ToRgb::new((c_in, style), true, "conv", &generator.pp(name));
        let levels = shape.widths.windows(2).enumerate().map(|(i, pair)| {
            let (before, after) = (2 * pair[0], pair[1]);
            let convs = |i: usize| generator.pp(format!("convs.{i}"));
            Ok(Level {
                up: Styled::new(before, after, style, true, &convs(2 * i))?,
                same: Styled::new(2 * after, after, style, false, &convs(2 * i + 1))?,
                rgb: rgb(2 * after, format!("to_rgbs.{i}"))?,
            })
        });
        Ok(Self {
            encoder,
            last: Linear::new(16 * smallest, style, Some(1.0), &vb.pp("final_linear.0"))?,
            mapping: (1..=shape.mapping).map(linear).collect::<Result<_>>()?,
            input: generator.get((1, smallest, 4, 4), "input.input")?,
            first: Styled::new(smallest, smallest, style, false, &generator.pp("conv1"))?,
            first_rgb: rgb(2 * smallest, "to_rgb1".to_owned())?,
            levels: levels.collect::<Result<_>>()?,
        })
    }

    /// Pictures (b, 3, s, s) in -1..1 to restored ones, about -1..1.
    pub fn forward(&self, pictures: &Tensor) -> Result<Tensor> {
        let mut x = pictures.clone();
        let mut noise = Vec::with_capacity(self.encoder.len());
        for down in &self.encoder {
            x = down.forward(&x)?;
            noise.push(x.clone());
        }
        let code = (leaky(&self.last.forward(&x.flatten_from(1)?)?)? * GAIN)?;
        let length = (code.sqr()?.mean_keepdim(1)? + 1e-8)?.sqrt()?;
        let mut style = code.broadcast_div(&length)?;
        for linear in &self.mapping {
            style = (leaky(&linear.forward(&style)?)? * GAIN)?;
        }
        // From 4 pixels upwards, where the encoder ended.
        let mut noise = noise.into_iter().rev();
        let mut next = || {
            noise
                .next()
                .ok_or_else(|| candle_core::Error::msg("no noise"))
        };
        let batch = pictures.dim(0)?;
        let input = self.input.repeat((batch, 1, 1, 1))?;
        let mut x = self.first.forward(&input, &style, &next()?)?;
        let mut rgb = self.first_rgb.forward(&x, &style)?;
        for level in &self.levels {
            let noise = next()?;
            x = level.up.forward(&x, &style, &noise)?;
            x = level.same.forward(&x, &style, &noise)?;
            let enlarged = blur(&spread(&rgb)?, 2, 1, 2.0)?;
            rgb = (level.rgb.forward(&x, &style)? + enlarged)?;
        }
        Ok(rgb)
    }
}

/// One level of the encoder.
#[derive(Clone, Debug)]
struct Down {
    weight: Tensor,
    bias: Tensor,
    /// Whether it halves the map; the first only widens it.
    halving: bool,
}

impl Down {
    fn new(c_in: usize, c_out: usize, halving: bool, vb: &VarBuilder) -> Result<Self> {
        let (at, kernel) = if halving { (1, 3) } else { (0, 1) };
        let weight = vb.get((c_out, c_in, kernel, kernel), &format!("{at}.weight"))?;
        let bias = vb.get(c_out, &format!("{}.bias", at + 1))?;
        Ok(Self {
            weight: (weight / ((c_in * kernel * kernel) as f64).sqrt())?,
            bias: bias.reshape((1, c_out, 1, 1))?,
            halving,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = if self.halving {
            blur(x, 2, 2, 1.0)?.conv2d(&self.weight, 0, 2, 1, 1)?
        } else {
            x.conv2d(&self.weight, 0, 1, 1, 1)?
        };
        leaky(&y.broadcast_add(&self.bias)?)? * GAIN
    }
}

/// A level of the generator: a map twice as large, and what it adds to the picture.
#[derive(Clone, Debug)]
struct Level {
    up: Styled,
    same: Styled,
    rgb: ToRgb,
}

/// Modulated convolution, noise beside its features, activation.
#[derive(Clone, Debug)]
struct Styled {
    conv: Modulated,
    up: bool,
    noise: Tensor,
    bias: Tensor,
}

impl Styled {
    fn new(c_in: usize, c_out: usize, style: usize, up: bool, vb: &VarBuilder) -> Result<Self> {
        let shape = ModulatedShape {
            c_in,
            c_out,
            kernel: 3,
            padding: usize::from(!up),
            style,
            demodulate: true,
            equalised: true,
            turned: up,
        };
        Ok(Self {
            conv: Modulated::new(shape, &vb.pp("conv"))?,
            up,
            noise: vb.get(1, "noise.weight")?.reshape((1, 1, 1, 1))?,
            bias: vb
                .get(2 * c_out, "activate.bias")?
                .reshape((1, 2 * c_out, 1, 1))?,
        })
    }

    /// Gives twice the convolution's features.
    fn forward(&self, x: &Tensor, style: &Tensor, noise: &Tensor) -> Result<Tensor> {
        // The reference convolves transposed, then blurs. Both are filters, so their order is free: what
        // is spread is blurred, a pixel more on each side, and convolved by the kernel turned round.
        let x = if self.up {
            &blur(&spread(x)?, 3, 2, 2.0)?
        } else {
            x
        };
        let y = self.conv.forward(x, style)?;
        let noise = noise.broadcast_mul(&self.noise)?;
        leaky(&Tensor::cat(&[y, noise], 1)?.broadcast_add(&self.bias)?)? * GAIN
    }
}

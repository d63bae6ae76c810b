//! What the two face restorers share: convolutions whose input channels a style scales (Karras et al.,
//! "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020), and linear layers.
//!
//! The paper scales the weights by the style, `w' = s w`, and divides each output channel by the length
//! of what that gives ("demodulation"). Here the same is done to what goes in and what comes out:
//! `y = d conv(s x, w)`, so that the weights stay as they are.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;

/// Added to the squared length before the division.
const EPSILON: f64 = 1e-8;

/// y = w x + b.
#[derive(Clone, Debug)]
pub(super) struct Linear {
    /// (in, out).
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    /// Weights of (out, in), multiplied by `gain` over the root of the inputs, and the bias by `gain`, as
    /// StyleGAN2 equalises learning rates; as they are without.
    pub(super) fn new(
        c_in: usize,
        c_out: usize,
        gain: Option<f64>,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let (weight, bias) = (vb.get((c_out, c_in), "weight")?, vb.get(c_out, "bias")?);
        let weight = weight.t()?.contiguous()?;
        Ok(match gain {
            None => Self { weight, bias },
            Some(gain) => Self {
                weight: (weight * (gain / (c_in as f64).sqrt()))?,
                bias: (bias * gain)?,
            },
        })
    }

    /// (b, in) to (b, out).
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.matmul(&self.weight)?.broadcast_add(&self.bias)
    }
}

/// A modulated convolution that keeps the map's size, or loses a border.
#[derive(Clone, Debug)]
pub(super) struct Modulated {
    weight: Tensor,
    /// Sums of the squared weights of each kernel (in, out); none where nothing is demodulated.
    squares: Option<Tensor>,
    style: Linear,
    padding: usize,
}

/// How a [`Modulated`] convolution is stored and used.
#[derive(Clone, Copy, Debug)]
pub(super) struct ModulatedShape {
    pub(super) c_in: usize,
    pub(super) c_out: usize,
    pub(super) kernel: usize,
    pub(super) padding: usize,
    /// Width of the style.
    pub(super) style: usize,
    /// Whether outputs are brought to unit length.
    pub(super) demodulate: bool,
    /// Whether weights are stored before the equalised learning rate.
    pub(super) equalised: bool,
    /// Whether the kernel is turned round: a transposed convolution's.
    pub(super) turned: bool,
}

impl Modulated {
    /// Reads `weight` (1, out, in, k, k) and `modulation`.
    pub(super) fn new(shape: ModulatedShape, vb: &VarBuilder) -> Result<Self> {
        let ModulatedShape {
            c_in,
            c_out,
            kernel,
            ..
        } = shape;
        let mut weight = vb
            .get((1, c_out, c_in, kernel, kernel), "weight")?
            .squeeze(0)?;
        if shape.equalised {
            weight = (weight / ((c_in * kernel * kernel) as f64).sqrt())?;
        }
        if shape.turned {
            weight = weight.flip(&[2, 3])?;
        }
        let squares = match shape.demodulate {
            true => Some(weight.sqr()?.sum((2, 3))?.t()?.contiguous()?),
            false => None,
        };
        let gain = shape.equalised.then_some(1.0);
        Ok(Self {
            weight,
            squares,
            style: Linear::new(shape.style, c_in, gain, &vb.pp("modulation"))?,
            padding: shape.padding,
        })
    }

    /// (b, in, h, w) and the layer's latent (b, style).
    pub(super) fn forward(&self, x: &Tensor, latent: &Tensor) -> Result<Tensor> {
        let style = self.style.forward(latent)?;
        let scaled = x.broadcast_mul(&style.unsqueeze(2)?.unsqueeze(3)?)?;
        let y = scaled.conv2d(&self.weight, self.padding, 1, 1, 1)?;
        match &self.squares {
            None => Ok(y),
            Some(squares) => {
                let length = (style.sqr()?.matmul(squares)? + EPSILON)?.sqrt()?.recip()?;
                y.broadcast_mul(&length.unsqueeze(2)?.unsqueeze(3)?)
            }
        }
    }
}

/// What a level adds to the picture: a 1x1 convolution to red, green and blue.
#[derive(Clone, Debug)]
pub(super) struct ToRgb {
    conv: Modulated,
    bias: Tensor,
}

impl ToRgb {
    /// `conv` is what the convolution is called; see [`ModulatedShape::equalised`].
    pub(super) fn new(
        (c_in, style): (usize, usize),
        equalised: bool,
        conv: &str,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let shape = ModulatedShape {
            c_in,
            c_out: 3,
            kernel: 1,
            padding: 0,
            style,
            demodulate: false,
            equalised,
            turned: false,
        };
        Ok(Self {
            conv: Modulated::new(shape, &vb.pp(conv))?,
            bias: vb.get((1, 3, 1, 1), "bias")?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor, style: &Tensor) -> Result<Tensor> {
        self.conv.forward(x, style)?.broadcast_add(&self.bias)
    }
}

/// Below zero a fifth is left.
pub(super) fn leaky(x: &Tensor) -> Result<Tensor> {
    x.maximum(&(x * 0.2)?)
}

/// Each row and column, then one of zeros: (b, c, h, w) to (b, c, 2h, 2w).
pub(super) fn spread(x: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    let zeros = x.zeros_like()?;
    let rows = Tensor::stack(&[x, &zeros], 4)?.reshape((b, c, h, 2 * w))?;
    let zeros = rows.zeros_like()?;
    Tensor::stack(&[&rows, &zeros], 3)?.reshape((b, c, 2 * h, 2 * w))
}

/// Filters rows and columns by 1, 3, 3, 1 over their sum, times `gain` each, `before` and `after` zeros
/// around the map.
pub(super) fn blur(x: &Tensor, before: usize, after: usize, gain: f64) -> Result<Tensor> {
    let mut x = x.clone();
    for dim in [2, 3] {
        let padded = x.pad_with_zeros(dim, before, after)?;
        let long = padded.dim(dim)? - 3;
        let at = |i: usize| padded.narrow(dim, i, long);
        let outer = (at(0)? + at(3)?)?;
        let inner = (at(1)? + at(2)?)?;
        x = ((outer + (inner * 3.0)?)? * (gain / 8.0))?;
    }
    Ok(x)
}

/// Twice the size, bilinear with half-pixel centres, the border repeated.
pub(super) fn bilinear_twice(x: &Tensor) -> Result<Tensor> {
    let mut x = x.clone();
    for dim in [3, 2] {
        let n = x.dim(dim)?;
        let padded = x.pad_with_same(dim, 1, 1)?;
        let near = (&x * 0.75)?;
        let even = (&near + (padded.narrow(dim, 0, n)? * 0.25)?)?;
        let odd = (&near + (padded.narrow(dim, 2, n)? * 0.25)?)?;
        let mut shape = x.dims().to_vec();
        shape[dim] *= 2;
        x = Tensor::stack(&[even, odd], dim + 1)?.reshape(shape)?;
    }
    Ok(x)
}

/// The names of a network's tensors under `prefix`, in f32 on `device`.
pub(super) fn builder<'a>(
    tensors: &std::collections::BTreeMap<String, Tensor>,
    device: &Device,
) -> VarBuilder<'a> {
    let tensors = tensors
        .iter()
        .map(|(name, tensor)| (name.clone(), tensor.clone()))
        .collect();
    VarBuilder::from_tensors(tensors, DType::F32, device)
}

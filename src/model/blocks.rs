//! What the networks are built of: convolutions with batch norm folded in, blocks, last layers.
//!
//! What a block is built of decides what it is for. Plain tensors: inference, batch norm has its running
//! statistics and is folded when the block is built, no graph is recorded. Variables
//! ([`candle_core::Var`]): training, batch norm takes the statistics of each batch and moves the running
//! ones towards them. A builder of half precision makes blocks that compute in it; batch norm is folded in f32 before.
//! Every block exists in the full form and in PaddleGAN's depthwise one
//! (`mobile_net`), under the names of the published checkpoints.

use candle_core::{DType, Result, Shape, Tensor, Var};
use candle_nn::VarBuilder;

use crate::ops::{batch_norm, conv2d::conv2d, fused, resample, up_conv2d::up_conv2d};

/// How far the running statistics go towards those of a batch, as PyTorch does by default.
pub const MOMENTUM: f64 = 0.1;

/// A convolution with bias, in training followed by its batch norm.
#[derive(Clone, Debug)]
pub struct Conv {
    weight: Tensor,
    bias: Option<Tensor>,
    /// The weight folded with an enlargement by two before it, where that is used.
    folded: Option<Tensor>,
    norm: Option<BatchNorm>,
    padding: usize,
    stride: usize,
    groups: usize,
}

/// Shape of a convolution as its checkpoint has it.
#[derive(Clone, Copy, Debug)]
pub struct ConvShape {
    /// Features that go in.
    pub c_in: usize,
    /// Features that come out.
    pub c_out: usize,
    /// Side of the kernel.
    pub kernel: usize,
    /// Zeros added at each edge.
    pub padding: usize,
    /// Step from one output pixel to the next.
    pub stride: usize,
    /// One group per feature instead of one for all.
    pub depthwise: bool,
    /// Whether it has a bias of its own.
    pub bias: bool,
}

impl ConvShape {
    /// An odd kernel that keeps the picture's size, with bias.
    pub fn same(c_in: usize, c_out: usize, kernel: usize) -> Self {
        Self {
            c_in,
            c_out,
            kernel,
            padding: kernel / 2,
            stride: 1,
            depthwise: false,
            bias: true,
        }
    }

    /// Every second pixel of every second row.
    pub fn halving(self) -> Self {
        Self { stride: 2, ..self }
    }

    /// As a batch norm after it makes its own superfluous.
    pub fn without_bias(self) -> Self {
        Self {
            bias: false,
            ..self
        }
    }

    fn depthwise(channels: usize) -> Self {
        Self {
            depthwise: true,
            ..Self::same(channels, channels, 3).without_bias()
        }
    }
}

impl Conv {
    /// Reads `weight` and `bias`.
    pub fn new(shape: ConvShape, vb: &VarBuilder) -> Result<Self> {
        let (weight, bias) = Self::load(shape, vb)?;
        Self::from_tensors(shape, weight, bias, vb.dtype())
    }

    /// Reads a convolution and the batch norm that follows it as one.
    pub fn with_norm(shape: ConvShape, conv: &VarBuilder, norm: &VarBuilder) -> Result<Self> {
        let (weight, bias) = Self::load(shape, conv)?;
        match Norm::new(shape.c_out, norm)? {
            Norm::Fixed { scale, shift } => {
                let (weight, bias) = batch_norm::fold(&weight, bias.as_ref(), &scale, &shift)?;
                Self::from_tensors(shape, weight, Some(bias), conv.dtype())
            }
            Norm::Learning(norm) => Ok(Self {
                norm: Some(norm),
                ..Self::from_tensors(shape, weight, bias, conv.dtype())?
            }),
        }
    }

    /// (b, c_in, h, w) to (b, c_out, h', w').
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, false)
    }

    /// The same, then zero for what is below it.
    pub fn forward_relu(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, true)
    }

    fn run(&self, x: &Tensor, relu: bool) -> Result<Tensor> {
        let bias = self.bias.as_ref();
        if fused::fuses(x) && self.is_fixed() {
            let (padding, stride, groups) = (self.padding, self.stride, self.groups);
            return fused::conv2d(x, &self.weight, bias, padding, stride, groups, relu);
        }
        let y = conv2d(
            x,
            &self.weight,
            bias,
            self.padding,
            self.stride,
            self.groups,
        )?;
        self.finish(&y, relu)
    }

    /// What follows the sums.
    fn finish(&self, y: &Tensor, relu: bool) -> Result<Tensor> {
        match &self.norm {
            Some(norm) => norm.forward(y, relu),
            None if relu => y.relu(),
            None => Ok(y.clone()),
        }
    }

    /// Nearest x2, the convolution, and zero for what is below it.
    fn forward_doubled_relu(&self, x: &Tensor) -> Result<Tensor> {
        match (&self.folded, &self.bias) {
            (Some(folded), Some(bias)) if fused::fuses(x) => {
                fused::up_conv2d(x, &self.weight, folded, bias, true)
            }
            _ if fused::fuses(x) => self.forward_relu(&resample::nearest_x2(x)?),
            _ => {
                let y = up_conv2d(x, &self.weight, self.bias.as_ref())?;
                self.finish(&y, true)
            }
        }
    }

    /// (c_out, c_in, k, k), batch norm folded where it is for inference.
    pub(super) fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// (c_out).
    pub(super) fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    pub(super) fn padding(&self) -> usize {
        self.padding
    }

    /// Features that go in, those of a depthwise convolution too.
    pub(super) fn inputs(&self) -> usize {
        self.weight.dims()[1] * self.groups
    }

    /// Features that come out.
    pub(super) fn outputs(&self) -> usize {
        self.weight.dims()[0]
    }

    /// Whether it is for inference.
    fn is_fixed(&self) -> bool {
        self.norm.is_none() && !self.weight.track_op()
    }

    fn load(shape: ConvShape, vb: &VarBuilder) -> Result<(Tensor, Option<Tensor>)> {
        let per_group = if shape.depthwise { 1 } else { shape.c_in };
        let weight = exact(
            vb,
            (shape.c_out, per_group, shape.kernel, shape.kernel),
            "weight",
        )?;
        let bias = if shape.bias {
            Some(exact(vb, shape.c_out, "bias")?)
        } else {
            None
        };
        Ok((weight, bias))
    }

    fn from_tensors(
        shape: ConvShape,
        weight: Tensor,
        bias: Option<Tensor>,
        dtype: DType,
    ) -> Result<Self> {
        let groups = if shape.depthwise { shape.c_in } else { 1 };
        Ok(Self {
            weight: weight.to_dtype(dtype)?,
            bias: bias.map(|bias| bias.to_dtype(dtype)).transpose()?,
            folded: None,
            norm: None,
            padding: shape.padding,
            stride: shape.stride,
            groups,
        })
    }
}

/// Convolution, batch norm, relu (`SameBlock2d`): keeps the picture's size.
#[derive(Clone, Debug)]
pub struct SameBlock(pub(super) Conv);

impl SameBlock {
    /// Reads `conv` and `norm`; `bias` says whether the convolution has one.
    pub fn new(
        c_in: usize,
        c_out: usize,
        kernel: usize,
        bias: bool,
        vb: VarBuilder,
    ) -> Result<Self> {
        let shape = ConvShape {
            bias,
            ..ConvShape::same(c_in, c_out, kernel)
        };
        Ok(Self(Conv::with_norm(
            shape,
            &vb.pp("conv"),
            &vb.pp("norm"),
        )?))
    }

    /// (b, c_in, h, w) to (b, c_out, h, w).
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.0.forward_relu(x)
    }
}

/// Convolution, batch norm, relu, then the mean of every 2x2 pixels (`DownBlock2d`).
#[derive(Clone, Debug)]
pub struct DownBlock(pub(super) Vec<Conv>);

impl DownBlock {
    /// Reads `conv` and `norm`, for the depthwise form `conv1` and `norm1` too.
    pub fn new(c_in: usize, c_out: usize, mobile: bool, vb: VarBuilder) -> Result<Self> {
        Ok(Self(scaling_convs(c_in, c_out, mobile, &vb)?))
    }

    /// Features that go in.
    pub(super) fn inputs(&self) -> usize {
        self.0.first().map_or(0, Conv::inputs)
    }

    /// Features that come out.
    pub(super) fn outputs(&self) -> usize {
        self.0.last().map_or(0, Conv::outputs)
    }

    /// (b, c_in, h, w) to (b, c_out, h/2, w/2).
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        resample::mean_2x2(&conv_relu_all(&self.0, x)?)
    }
}

/// Nearest x2, then convolution, batch norm, relu (`UpBlock2d`).
#[derive(Clone, Debug)]
pub struct UpBlock(pub(super) Vec<Conv>);

impl UpBlock {
    /// Reads `conv` and `norm`, for the depthwise form `conv1` and `norm1` too.
    pub fn new(c_in: usize, c_out: usize, mobile: bool, vb: VarBuilder) -> Result<Self> {
        let mut convs = scaling_convs(c_in, c_out, mobile, &vb)?;
        if let [conv] = &mut convs[..]
            && conv.is_fixed()
            && fused::fuses(&conv.weight)
        {
            conv.folded = Some(fused::fold(&conv.weight)?);
        }
        Ok(Self(convs))
    }

    /// Features that go in.
    pub(super) fn inputs(&self) -> usize {
        self.0.first().map_or(0, Conv::inputs)
    }

    /// Features that come out.
    pub(super) fn outputs(&self) -> usize {
        self.0.last().map_or(0, Conv::outputs)
    }

    /// (b, c_in, h, w) to (b, c_out, 2h, 2w).
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.0[..] {
            [conv] => conv.forward_doubled_relu(x),
            convs => conv_relu_all(convs, &resample::nearest_x2(x)?),
        }
    }
}

/// Residual block with batch norm and relu before its convolutions (`ResBlock2d`); the depthwise
/// form widens, filters and narrows (`MobileResBlock2d`).
#[derive(Clone, Debug)]
pub struct ResBlock {
    pub(super) norm: Norm,
    /// Each with whether a relu follows.
    pub(super) convs: Vec<(Conv, bool)>,
}

impl ResBlock {
    /// Reads `norm1`, `conv1`, `norm2`, `conv2`; or `norm1` and the pairs `conv_pw` / `norm_pw`,
    /// `conv_dw` / `norm_dw`, `conv_pw_linear` / `norm_pw_linear`.
    pub fn new(channels: usize, mobile: bool, vb: VarBuilder) -> Result<Self> {
        let norm = Norm::new(channels, &vb.pp("norm1"))?;
        let convs = if mobile {
            let inner = 2 * channels;
            let pair = |name: &str, shape: ConvShape| {
                let (conv, norm) = (format!("conv_{name}"), format!("norm_{name}"));
                Conv::with_norm(shape, &vb.pp(conv), &vb.pp(norm))
            };
            let wide = ConvShape::same(channels, inner, 1).without_bias();
            let narrow = ConvShape::same(inner, channels, 1).without_bias();
            vec![
                (pair("pw", wide)?, false),
                (pair("dw", ConvShape::depthwise(inner))?, true),
                (pair("pw_linear", narrow)?, false),
            ]
        } else {
            let shape = ConvShape::same(channels, channels, 3);
            vec![
                (
                    Conv::with_norm(shape, &vb.pp("conv1"), &vb.pp("norm2"))?,
                    true,
                ),
                (Conv::new(shape, &vb.pp("conv2"))?, false),
            ]
        };
        Ok(Self { norm, convs })
    }

    /// (b, c, h, w) to the same.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut y = self.norm.forward_relu(x)?;
        for (conv, relu) in &self.convs {
            y = conv.run(&y, *relu)?;
        }
        y + x
    }
}

/// The last layers of a network: one 7x7 convolution, or three of 3x3 in the mobile form.
#[derive(Clone, Debug)]
pub struct Head {
    pub(super) convs: Vec<Conv>,
    pub(super) relu_between: bool,
}

impl Head {
    /// A full head reads `weight` and `bias`, a mobile one those of `0`, `2`, `4` (relus lie
    /// between) and keeps the picture's size.
    pub fn new(c_in: usize, c_out: usize, mobile: bool, vb: VarBuilder) -> Result<Self> {
        let places = if mobile { &["0", "2", "4"][..] } else { &[] };
        let padding = if mobile { 1 } else { 3 };
        Self::load(c_in, c_out, places, padding, true, vb)
    }

    /// The keypoint detector's heads: `pad` zeros at each edge, and in the mobile form (`0`, `1`,
    /// `2`) nothing between the convolutions.
    pub fn for_keypoints(
        c_in: usize,
        c_out: usize,
        pad: usize,
        mobile: bool,
        vb: VarBuilder,
    ) -> Result<Self> {
        let places = if mobile { &["0", "1", "2"][..] } else { &[] };
        Self::load(c_in, c_out, places, pad, false, vb)
    }

    /// Whether it is built of variables.
    pub(super) fn learns(&self) -> bool {
        self.convs.iter().any(|conv| !conv.is_fixed())
    }

    /// (b, c_in, h, w) to (b, c_out, h', w').
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut y = x.clone();
        for (i, conv) in self.convs.iter().enumerate() {
            if i > 0 && self.relu_between {
                y = y.relu()?;
            }
            y = conv.forward(&y)?;
        }
        Ok(y)
    }

    fn load(
        c_in: usize,
        c_out: usize,
        places: &[&str],
        padding: usize,
        relu_between: bool,
        vb: VarBuilder,
    ) -> Result<Self> {
        let mut convs = Vec::with_capacity(places.len().max(1));
        if places.is_empty() {
            let shape = ConvShape {
                padding,
                ..ConvShape::same(c_in, c_out, 7)
            };
            convs.push(Conv::new(shape, &vb)?);
        }
        for (i, place) in places.iter().enumerate() {
            let c_out = if i + 1 == places.len() { c_out } else { c_in };
            let shape = ConvShape {
                padding,
                ..ConvShape::same(c_in, c_out, 3)
            };
            convs.push(Conv::new(shape, &vb.pp(place))?);
        }
        Ok(Self {
            convs,
            relu_between,
        })
    }
}

/// The convolutions of a block that halves or doubles the picture.
fn scaling_convs(c_in: usize, c_out: usize, mobile: bool, vb: &VarBuilder) -> Result<Vec<Conv>> {
    let (conv, norm) = (vb.pp("conv"), vb.pp("norm"));
    if !mobile {
        return Ok(vec![Conv::with_norm(
            ConvShape::same(c_in, c_out, 3),
            &conv,
            &norm,
        )?]);
    }
    let mix = ConvShape::same(c_in, c_out, 1).without_bias();
    Ok(vec![
        Conv::with_norm(ConvShape::depthwise(c_in), &conv, &norm)?,
        Conv::with_norm(mix, &vb.pp("conv1"), &vb.pp("norm1"))?,
    ])
}

fn conv_relu_all(convs: &[Conv], x: &Tensor) -> Result<Tensor> {
    convs
        .iter()
        .try_fold(x.clone(), |x, conv| conv.forward_relu(&x))
}

/// A tensor as it is to be computed with at load: what will be of half precision, in f32 still.
fn exact(vb: &VarBuilder, shape: impl Into<Shape>, name: &str) -> Result<Tensor> {
    let dtype = match vb.dtype() {
        DType::F16 | DType::BF16 => DType::F32,
        other => other,
    };
    vb.get_with_hints_dtype(shape, name, candle_nn::Init::default(), dtype)
}

/// A batch norm, by what it was given.
#[derive(Clone, Debug)]
pub(super) enum Norm {
    /// Plain tensors: a scale and a shift (c).
    Fixed { scale: Tensor, shift: Tensor },
    /// Variables.
    Learning(BatchNorm),
}

impl Norm {
    /// Reads `weight`, `bias`, `running_mean` and `running_var`.
    fn new(channels: usize, vb: &VarBuilder) -> Result<Self> {
        let get = |name| exact(vb, channels, name);
        let (weight, bias) = (get("weight")?, get("bias")?);
        let (mean, variance) = (get("running_mean")?, get("running_var")?);
        if weight.is_variable() {
            return Ok(Self::Learning(BatchNorm {
                weight,
                bias,
                running_mean: Var::from_tensor(&mean)?,
                running_var: Var::from_tensor(&variance)?,
            }));
        }
        let (scale, shift) = batch_norm::scale_and_shift(&weight, &bias, &mean, &variance)?;
        Ok(Self::Fixed { scale, shift })
    }

    /// Scale and shift, where it does not learn.
    pub(super) fn fixed(&self) -> Option<(&Tensor, &Tensor)> {
        match self {
            Self::Fixed { scale, shift } => Some((scale, shift)),
            Self::Learning(_) => None,
        }
    }

    fn forward_relu(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Learning(norm) => norm.forward(x, true),
            Self::Fixed { scale, shift } if fused::fuses(x) => {
                fused::scale_shift_relu(x, scale, shift)
            }
            Self::Fixed { scale, shift } => x
                .broadcast_mul(&scale.to_dtype(x.dtype())?.reshape((1, (), 1, 1))?)?
                .broadcast_add(&shift.to_dtype(x.dtype())?.reshape((1, (), 1, 1))?)?
                .relu(),
        }
    }
}

/// A batch norm in training.
#[derive(Clone, Debug)]
pub(super) struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    running_mean: Var,
    running_var: Var,
}

impl BatchNorm {
    fn forward(&self, x: &Tensor, relu: bool) -> Result<Tensor> {
        let (y, seen) = batch_norm::normalise(x, &self.weight, &self.bias, relu)?;
        for (running, seen) in [
            (&self.running_mean, seen.mean),
            (&self.running_var, seen.variance),
        ] {
            let kept = (running.as_detached_tensor() * (1.0 - MOMENTUM))?;
            running.set(&(kept + (seen * MOMENTUM)?)?)?;
        }
        Ok(y)
    }
}

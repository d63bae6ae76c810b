//! S3FD, the face detector of PaddleGAN and face-alignment (Zhang et al., "S3FD: Single Shot
//! Scale-invariant Face Detector", ICCV 2017): VGG16 with heads at six scales.
//!
//! Tensors are named as in the published `s3fd-619a316812.pth`; PaddleGAN's are the same.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::blocks::{Conv, ConvShape};

/// Number of scales; the cells of scale i are 4 * 2^i pixels apart.
pub const SCALES: usize = 6;

/// What is subtracted from blue, green and red in 0..255.
pub const MEAN_BGR: [f32; 3] = [104.0, 117.0, 123.0];

/// The trunk: name, features out, kernel, padding, stride. What goes in is what came out before.
pub(super) const TRUNK: [(&str, usize, usize, usize, usize); 19] = [
    ("conv1_1", 64, 3, 1, 1),
    ("conv1_2", 64, 3, 1, 1),
    ("conv2_1", 128, 3, 1, 1),
    ("conv2_2", 128, 3, 1, 1),
    ("conv3_1", 256, 3, 1, 1),
    ("conv3_2", 256, 3, 1, 1),
    ("conv3_3", 256, 3, 1, 1),
    ("conv4_1", 512, 3, 1, 1),
    ("conv4_2", 512, 3, 1, 1),
    ("conv4_3", 512, 3, 1, 1),
    ("conv5_1", 512, 3, 1, 1),
    ("conv5_2", 512, 3, 1, 1),
    ("conv5_3", 512, 3, 1, 1),
    ("fc6", 1024, 3, 3, 1),
    ("fc7", 1024, 1, 0, 1),
    ("conv6_1", 256, 1, 0, 1),
    ("conv6_2", 512, 3, 1, 2),
    ("conv7_1", 128, 1, 0, 1),
    ("conv7_2", 256, 3, 1, 2),
];

/// After these the map is halved.
pub(super) const POOLED: [&str; 5] = ["conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3"];

/// Where the heads read, and what their names begin with.
pub(super) const HEADS: [(&str, &str); SCALES] = [
    ("conv3_3", "conv3_3_norm"),
    ("conv4_3", "conv4_3_norm"),
    ("conv5_3", "conv5_3_norm"),
    ("fc7", "fc7"),
    ("conv6_2", "conv6_2"),
    ("conv7_2", "conv7_2"),
];

/// Scales whose features are divided by their length first.
pub(super) const NORMED: usize = 3;

/// The first head says in three ways that there is no face; the largest counts.
const FIRST_HEAD_CLASSES: usize = 4;

/// The network, ready for inference.
#[derive(Clone, Debug)]
pub struct S3fd {
    trunk: Vec<Conv>,
    heads: Vec<Head>,
}

/// What one scale says, before softmax.
#[derive(Clone, Debug)]
pub struct Scale {
    /// No face and face (b, 2, h, w).
    pub classes: Tensor,
    /// Distance of the face's middle from the cell's in tenths of 4 cells, and logarithm of its size
    /// over 4 cells in fifths, (b, 4, h, w) as x, y, width, height.
    pub boxes: Tensor,
}

impl S3fd {
    /// Reads the tensors of a checkpoint.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    pub fn new(vb: VarBuilder) -> Result<Self> {
        let mut c_in = 3;
        let mut trunk = Vec::with_capacity(TRUNK.len());
        let mut heads = Vec::with_capacity(SCALES);
        for (name, c_out, kernel, padding, stride) in TRUNK {
            let shape = ConvShape {
                padding,
                stride,
                ..ConvShape::same(c_in, c_out, kernel)
            };
            trunk.push(Conv::new(shape, &vb.pp(name))?);
            c_in = c_out;
            if let Some(scale) = HEADS.iter().position(|(at, _)| *at == name) {
                heads.push(Head::new(scale, c_out, &vb)?);
            }
        }
        Ok(Self { trunk, heads })
    }

    /// Every tensor with its shape.
    pub fn expected_tensors() -> BTreeMap<String, Vec<usize>> {
        let mut expected = BTreeMap::new();
        let mut conv = |name: &str, c_in: usize, c_out: usize, kernel: usize| {
            expected.insert(format!("{name}.weight"), vec![c_out, c_in, kernel, kernel]);
            expected.insert(format!("{name}.bias"), vec![c_out]);
        };
        let mut c_in = 3;
        for (name, c_out, kernel, _, _) in TRUNK {
            conv(name, c_in, c_out, kernel);
            c_in = c_out;
            if let Some(scale) = HEADS.iter().position(|(at, _)| *at == name) {
                let head = HEADS[scale].1;
                conv(&format!("{head}_mbox_conf"), c_out, classes(scale), 3);
                conv(&format!("{head}_mbox_loc"), c_out, 4, 3);
            }
        }
        for (at, name) in &HEADS[..NORMED] {
            let channels = TRUNK.iter().find(|layer| layer.0 == *at);
            expected.insert(
                format!("{name}.weight"),
                vec![channels.map_or(0, |layer| layer.1)],
            );
        }
        expected
    }

    /// Pictures (b, 3, h, w) as blue, green, red in 0..255 less [`MEAN_BGR`], at least 32 pixels high
    /// and wide, to what each scale says.
    pub fn forward(&self, pictures: &Tensor) -> Result<Vec<Scale>> {
        let mut x = pictures.clone();
        let mut scales = Vec::with_capacity(SCALES);
        for (conv, (name, ..)) in self.trunk.iter().zip(TRUNK) {
            x = conv.forward(&x)?.relu()?;
            if HEADS[scales.len().min(SCALES - 1)].0 == name {
                scales.push(self.heads[scales.len()].forward(&x)?);
            }
            if POOLED.contains(&name) {
                x = x.max_pool2d(2)?;
            }
        }
        Ok(scales)
    }
}

/// The two convolutions of one scale.
#[derive(Clone, Debug)]
struct Head {
    /// What features are multiplied by once their length is 1, (1, c, 1, 1).
    norm: Option<Tensor>,
    classes: Conv,
    boxes: Conv,
}

impl Head {
    fn new(scale: usize, channels: usize, vb: &VarBuilder) -> Result<Self> {
        let name = HEADS[scale].1;
        let conv = |what: &str, c_out| {
            let shape = ConvShape::same(channels, c_out, 3);
            Conv::new(shape, &vb.pp(format!("{name}_mbox_{what}")))
        };
        let norm = if scale < NORMED {
            let weight = vb.pp(name).get(channels, "weight")?;
            Some(weight.reshape((1, channels, 1, 1))?)
        } else {
            None
        };
        Ok(Self {
            norm,
            classes: conv("conf", classes(scale))?,
            boxes: conv("loc", 4)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Scale> {
        let normed = match &self.norm {
            Some(weight) => {
                let length = (x.sqr()?.sum_keepdim(1)?.sqrt()? + 1e-10)?;
                &x.broadcast_div(&length)?.broadcast_mul(weight)?
            }
            None => x,
        };
        let classes = self.classes.forward(normed)?;
        let classes = if classes.dim(1)? == FIRST_HEAD_CLASSES {
            let none = classes.narrow(1, 0, FIRST_HEAD_CLASSES - 1)?;
            let face = classes.narrow(1, FIRST_HEAD_CLASSES - 1, 1)?;
            Tensor::cat(&[&none.max_keepdim(1)?, &face], 1)?
        } else {
            classes
        };
        Ok(Scale {
            classes,
            boxes: self.boxes.forward(normed)?,
        })
    }
}

/// How many of a cell's values say whether there is a face; the last is for one.
pub fn classes(scale: usize) -> usize {
    if scale == 0 { FIRST_HEAD_CLASSES } else { 2 }
}

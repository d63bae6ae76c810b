//! The discriminator of training (`MultiScaleDiscriminator` of the reference): pictures at some scales to
//! maps that say for each part whether it was photographed or drawn, by least squares (LSGAN), with the
//! features on the way.

use std::collections::BTreeMap;

use candle_core::{D, DType, Result, Tensor, Var};
use candle_nn::{VarBuilder, ops};
use serde::{Deserialize, Serialize};

use super::coordinate_grid;
use super::dense_motion::gaussians;
use super::hourglass;
use crate::ops::batch_norm;
use crate::ops::conv2d::conv2d;
use crate::ops::resample::mean_2x2;

/// Side of its kernels.
const KERNEL: usize = 4;

/// The discriminator's shape; keys as in the published files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiscriminatorConfig {
    /// One network for each: 1 is the whole picture, 0.5 the picture at half its size.
    #[serde(default = "one_scale")]
    pub scales: Vec<f64>,
    /// Features after the first block are twice as many.
    pub block_expansion: usize,
    /// Most features anywhere.
    pub max_features: usize,
    /// Blocks; all but the last halve the picture.
    pub num_blocks: usize,
    /// Spectral norm: weights are divided by their largest singular value.
    #[serde(default)]
    pub sn: bool,
    /// Whether heatmaps of the driving keypoints are looked at beside the picture.
    #[serde(default)]
    pub use_kp: bool,
    /// Variance of the gaussians in them.
    #[serde(default = "usual_variance")]
    pub kp_variance: f64,
}

fn one_scale() -> Vec<f64> {
    vec![1.0]
}

fn usual_variance() -> f64 {
    0.01
}

impl DiscriminatorConfig {
    /// Name and shape of every tensor, as PyTorch has them.
    pub fn expected_tensors(
        &self,
        num_channels: usize,
        num_kp: usize,
    ) -> BTreeMap<String, Vec<usize>> {
        let mut list = BTreeMap::new();
        for &scale in &self.scales {
            let prefix = format!("discs.{}", scale_name(scale));
            let mut conv = |name: String, shape: [usize; 4]| {
                let weight = if self.sn { "weight_orig" } else { "weight" };
                if self.sn {
                    list.insert(format!("{name}.weight_u"), vec![shape[0]]);
                    list.insert(
                        format!("{name}.weight_v"),
                        vec![shape[1] * shape[2] * shape[3]],
                    );
                }
                list.insert(format!("{name}.bias"), vec![shape[0]]);
                list.insert(format!("{name}.{weight}"), shape.to_vec());
            };
            for (i, (c_in, c_out)) in self.widths(num_channels, num_kp).into_iter().enumerate() {
                conv(
                    format!("{prefix}.down_blocks.{i}.conv"),
                    [c_out, c_in, KERNEL, KERNEL],
                );
            }
            conv(
                format!("{prefix}.conv"),
                [1, self.width(self.num_blocks), 1, 1],
            );
            for i in 1..self.num_blocks {
                for part in ["weight", "bias"] {
                    let name = format!("{prefix}.down_blocks.{i}.norm.{part}");
                    list.insert(name, vec![self.width(i + 1)]);
                }
            }
        }
        list
    }

    /// Features into and out of each block.
    fn widths(&self, num_channels: usize, num_kp: usize) -> Vec<(usize, usize)> {
        let first = num_channels + if self.use_kp { num_kp } else { 0 };
        let into = |i: usize| if i == 0 { first } else { self.width(i) };
        (0..self.num_blocks)
            .map(|i| (into(i), self.width(i + 1)))
            .collect()
    }

    fn width(&self, level: usize) -> usize {
        hourglass::width(self.block_expansion, self.max_features, level)
    }
}

/// How the reference names a scale: `1`, `0-5`.
fn scale_name(scale: f64) -> String {
    scale.to_string().replace('.', "-")
}

/// One network for each scale.
#[derive(Clone, Debug)]
pub struct Discriminator {
    nets: Vec<Net>,
    kp_variance: Option<f64>,
}

/// What a discriminator makes of a picture at one scale.
#[derive(Clone, Debug)]
pub struct Judgement {
    /// The features after each block.
    pub features: Vec<Tensor>,
    /// Near 1 where the picture seems photographed, near 0 where drawn: (b, 1, h, w).
    pub map: Tensor,
}

impl Discriminator {
    /// Reads the tensors under `discs`.
    ///
    /// # Errors
    /// When one is missing or of another shape.
    pub fn new(
        config: &DiscriminatorConfig,
        num_channels: usize,
        num_kp: usize,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let nets = config.scales.iter().map(|&scale| {
            let vb = vb.pp("discs").pp(scale_name(scale));
            let widths = config.widths(num_channels, num_kp);
            let blocks = widths.into_iter().enumerate().map(|(i, (c_in, c_out))| {
                let vb = vb.pp("down_blocks").pp(i);
                let conv = SpectralConv::new((c_out, c_in, KERNEL), config.sn, &vb.pp("conv"))?;
                let norm = if i == 0 {
                    None
                } else {
                    let norm = vb.pp("norm");
                    Some((norm.get(c_out, "weight")?, norm.get(c_out, "bias")?))
                };
                Ok(Block { conv, norm })
            });
            let last = (1, config.width(config.num_blocks), 1);
            Ok(Net {
                blocks: blocks.collect::<Result<_>>()?,
                last: SpectralConv::new(last, config.sn, &vb.pp("conv"))?,
            })
        });
        Ok(Self {
            nets: nets.collect::<Result<_>>()?,
            kp_variance: config.use_kp.then_some(config.kp_variance),
        })
    }

    /// The same network, its weights taken as they are: what it says has gradients of the pictures alone.
    pub fn frozen(&self) -> Self {
        let conv = |conv: &SpectralConv| SpectralConv {
            weight: conv.weight.detach(),
            bias: conv.bias.detach(),
            vectors: conv.vectors.clone(),
        };
        let nets = self.nets.iter().map(|net| Net {
            blocks: net
                .blocks
                .iter()
                .map(|block| Block {
                    conv: conv(&block.conv),
                    norm: block
                        .norm
                        .as_ref()
                        .map(|(weight, bias)| (weight.detach(), bias.detach())),
                })
                .collect(),
            last: conv(&net.last),
        });
        Self {
            nets: nets.collect(),
            kp_variance: self.kp_variance,
        }
    }

    /// One judgement for each scale of pictures (b, 3, h, w); the keypoints (b, K, 2) are used where the
    /// configuration says so.
    pub fn forward(&self, pictures: &[Tensor], keypoints: &Tensor) -> Result<Vec<Judgement>> {
        let judge = |(net, picture): (&Net, &Tensor)| match self.kp_variance {
            None => net.forward(picture),
            Some(variance) => {
                let (b, _, h, w) = picture.dims4()?;
                let grid = coordinate_grid(h, w, picture.dtype(), picture.device())?;
                let grid = grid.reshape((1, 1, h * w, 2))?;
                let maps = gaussians(&grid, keypoints, variance)?.reshape((b, (), h, w))?;
                net.forward(&Tensor::cat(&[picture, &maps], 1)?)
            }
        };
        self.nets.iter().zip(pictures).map(judge).collect()
    }
}

#[derive(Clone, Debug)]
struct Net {
    blocks: Vec<Block>,
    last: SpectralConv,
}

#[derive(Clone, Debug)]
struct Block {
    conv: SpectralConv,
    norm: Option<(Tensor, Tensor)>,
}

impl Net {
    fn forward(&self, x: &Tensor) -> Result<Judgement> {
        let mut x = x.clone();
        let mut features = Vec::with_capacity(self.blocks.len());
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.conv.forward(&x)?;
            if let Some((weight, bias)) = &block.norm {
                x = instance_norm(&x, weight, bias)?;
            }
            x = ops::leaky_relu(&x, 0.2)?;
            if i + 1 < self.blocks.len() {
                x = mean_2x2(&x)?;
            }
            features.push(x.clone());
        }
        Ok(Judgement {
            map: self.last.forward(&x)?,
            features,
        })
    }
}

/// Each channel of each picture by its own mean and variance: the batch norm of a batch of one whose
/// channels are those of all pictures.
fn instance_norm(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    let all = x.reshape((1, b * c, h, w))?;
    let y = batch_norm::normalise_alone(&all, &weight.repeat(b)?, &bias.repeat(b)?)?;
    y.reshape((b, c, h, w))
}

/// A convolution without padding, its weight divided by its largest singular value where asked for: by
/// one step of power iteration each time, as PyTorch's `spectral_norm`.
#[derive(Clone, Debug)]
struct SpectralConv {
    weight: Tensor,
    bias: Tensor,
    /// The left and right singular vector as far as they are known.
    vectors: Option<(Var, Var)>,
}

impl SpectralConv {
    fn new(
        (c_out, c_in, kernel): (usize, usize, usize),
        spectral: bool,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let name = if spectral { "weight_orig" } else { "weight" };
        let vector = |length: usize, name: &str| Var::from_tensor(&vb.get(length, name)?);
        let vectors = if spectral {
            let right = c_in * kernel * kernel;
            Some((vector(c_out, "weight_u")?, vector(right, "weight_v")?))
        } else {
            None
        };
        Ok(Self {
            weight: vb.get((c_out, c_in, kernel, kernel), name)?,
            bias: vb.get(c_out, "bias")?,
            vectors,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let weight = match &self.vectors {
            None => self.weight.clone(),
            Some((u, v)) => {
                let matrix = self.weight.flatten_from(1)?;
                let fixed = matrix.detach();
                v.set(&unit(
                    &fixed.t()?.matmul(&u.as_detached_tensor().unsqueeze(1)?)?,
                )?)?;
                u.set(&unit(
                    &fixed.matmul(&v.as_detached_tensor().unsqueeze(1)?)?,
                )?)?;
                // Copies: the next pass moves the vectors, and a gradient may still want these.
                let (u, v) = (
                    u.as_detached_tensor().copy()?,
                    v.as_detached_tensor().copy()?,
                );
                let sigma = u.unsqueeze(0)?.matmul(&matrix.matmul(&v.unsqueeze(1)?)?)?;
                self.weight.broadcast_div(&sigma.reshape((1, 1, 1, 1))?)?
            }
        };
        conv2d(x, &weight, Some(&self.bias), 0, 1, 1)
    }
}

/// (n, 1) to (n), of length 1.
fn unit(vector: &Tensor) -> Result<Tensor> {
    let length = vector.sqr()?.sum_all()?.sqrt()?.to_dtype(DType::F64)?;
    let length = length.to_scalar::<f64>()?.max(1e-12);
    vector.squeeze(D::Minus1)?.affine(1.0 / length, 0.0)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use candle_core::Device;

    use super::*;

    fn config() -> DiscriminatorConfig {
        DiscriminatorConfig {
            scales: vec![1.0, 0.5],
            block_expansion: 4,
            max_features: 16,
            num_blocks: 3,
            sn: true,
            use_kp: true,
            kp_variance: 0.01,
        }
    }

    fn build(config: &DiscriminatorConfig) -> (Discriminator, HashMap<String, Tensor>) {
        let tensors: HashMap<String, Tensor> = config
            .expected_tensors(3, 2)
            .into_iter()
            .map(|(name, shape)| {
                let values = Tensor::randn(0f64, 1.0, shape, &Device::Cpu).unwrap();
                (name, Var::from_tensor(&values).unwrap().as_tensor().clone())
            })
            .collect();
        let vb = VarBuilder::from_tensors(tensors.clone(), DType::F64, &Device::Cpu);
        (Discriminator::new(config, 3, 2, &vb).unwrap(), tensors)
    }

    #[test]
    fn every_scale_gives_features_and_a_map() {
        let (net, _) = build(&config());
        let picture = |side| Tensor::rand(0f64, 1.0, (2, 3, side, side), &Device::Cpu).unwrap();
        let keypoints = Tensor::rand(-1f64, 1.0, (2, 2, 2), &Device::Cpu).unwrap();
        let judged = net
            .forward(&[picture(64), picture(32)], &keypoints)
            .unwrap();
        assert_eq!(judged.len(), 2);
        // 64 -> 61 -> 30 -> 27 -> 13 -> 10.
        assert_eq!(judged[0].map.dims(), [2, 1, 10, 10]);
        let widths: Vec<usize> = judged[1].features.iter().map(|f| f.dims()[1]).collect();
        assert_eq!(widths, [8, 16, 16]);
    }

    #[test]
    fn spectral_norm_finds_the_largest_singular_value() {
        let (net, tensors) = build(&config());
        let picture = Tensor::rand(0f64, 1.0, (1, 3, 40, 40), &Device::Cpu).unwrap();
        for _ in 0..200 {
            net.nets[0]
                .forward(&Tensor::cat(&[&picture, &picture.narrow(1, 0, 2).unwrap()], 1).unwrap())
                .unwrap();
        }
        let name = |part: &str| format!("discs.1.down_blocks.1.conv.{part}");
        let matrix = tensors[&name("weight_orig")]
            .flatten_from(1)
            .unwrap()
            .detach();
        // Squared again and again, a matrix comes to be of its largest singular value alone.
        let mut gram = matrix.matmul(&matrix.t().unwrap()).unwrap();
        for _ in 0..30 {
            let largest = gram.abs().unwrap().max_all().unwrap();
            gram = gram.broadcast_div(&largest).unwrap();
            gram = gram.matmul(&gram).unwrap();
        }
        let length = |t: &Tensor| {
            let square = t.sqr().unwrap().sum_all().unwrap();
            square.to_scalar::<f64>().unwrap().sqrt()
        };
        let column = gram.narrow(1, 0, 1).unwrap().t().unwrap();
        let wanted = length(&column.matmul(&matrix).unwrap()) / length(&column);
        let found = tensors[&name("weight_u")].detach().unsqueeze(0).unwrap();
        let found = length(&found.matmul(&matrix).unwrap());
        assert!((found / wanted - 1.0).abs() < 1e-3, "{found} {wanted}");
    }
}

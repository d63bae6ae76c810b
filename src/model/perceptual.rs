//! Networks that were trained to tell what is in a picture, and whose features say how alike two pictures
//! look (perceptual loss, paper section 3.3): VGG19, the small SqueezeNet 1.1, both with tensors named as
//! torchvision names them, and the embedded face detector, which needs no download. Their weights stay as
//! they are.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::FaceDetector;
use super::blocks::{Conv, ConvShape};
use crate::ops::max_pool::max_pool;

/// Mean and deviation of ImageNet's colours, which both networks were trained with.
const COLOURS: [(f64, f64); 3] = [(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)];

/// VGG19 up to `relu5_1`: the number of the layer in torchvision, its channels, and what follows its relu.
const VGG19: [(usize, usize, usize, After); 13] = [
    (0, 3, 64, After::Tap),
    (2, 64, 64, After::Pool),
    (5, 64, 128, After::Tap),
    (7, 128, 128, After::Pool),
    (10, 128, 256, After::Tap),
    (12, 256, 256, After::Nothing),
    (14, 256, 256, After::Nothing),
    (16, 256, 256, After::Pool),
    (19, 256, 512, After::Tap),
    (21, 512, 512, After::Nothing),
    (23, 512, 512, After::Nothing),
    (25, 512, 512, After::Pool),
    (28, 512, 512, After::Tap),
];

/// SqueezeNet 1.1's fire modules: number of the layer, channels in, squeezed, expanded twice.
const FIRES: [(usize, usize, usize, usize); 8] = [
    (3, 64, 16, 64),
    (4, 128, 16, 64),
    (6, 128, 32, 128),
    (7, 256, 32, 128),
    (9, 256, 48, 192),
    (10, 384, 48, 192),
    (11, 384, 64, 256),
    (12, 512, 64, 256),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Nothing,
    Tap,
    Pool,
}

/// Which network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 13 convolutions, 13 M parameters: the reference's.
    Vgg19,
    /// 0.7 M parameters, a fiftieth of the work.
    SqueezeNet,
    /// The embedded face detector, 0.4 M parameters: sees what is in a face, and little else.
    MimicFace,
}

impl Kind {
    /// Name and shape of every tensor that is used of the published networks.
    pub fn expected_tensors(self) -> BTreeMap<String, Vec<usize>> {
        let mut list = BTreeMap::new();
        let mut conv = |name: String, c_in: usize, c_out: usize, kernel: usize| {
            list.insert(format!("{name}.weight"), vec![c_out, c_in, kernel, kernel]);
            list.insert(format!("{name}.bias"), vec![c_out]);
        };
        match self {
            Self::Vgg19 => {
                for (layer, c_in, c_out, _) in VGG19 {
                    conv(format!("features.{layer}"), c_in, c_out, 3);
                }
            }
            Self::SqueezeNet => {
                conv("features.0".to_owned(), 3, 64, 3);
                for (layer, c_in, few, many) in FIRES {
                    conv(format!("features.{layer}.squeeze"), c_in, few, 1);
                    conv(format!("features.{layer}.expand1x1"), few, many, 1);
                    conv(format!("features.{layer}.expand3x3"), few, many, 3);
                }
            }
            Self::MimicFace => {}
        }
        list
    }

    /// The network's usual name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vgg19 => "VGG19",
            Self::SqueezeNet => "SqueezeNet 1.1",
            Self::MimicFace => "the embedded face detector",
        }
    }
}

/// A perceptual network.
#[derive(Clone, Debug)]
pub struct Perceptual {
    kind: Kind,
    net: Net,
}

#[derive(Clone, Debug)]
enum Net {
    Vgg19(Vec<(Conv, After)>),
    Squeeze { first: Conv, fires: Vec<Fire> },
    MimicFace(Box<FaceDetector>),
}

#[derive(Clone, Debug)]
struct Fire {
    layer: usize,
    squeeze: Conv,
    expand1: Conv,
    expand3: Conv,
}

impl Perceptual {
    /// Reads the tensors under `features`; the face detector's as they are.
    ///
    /// # Errors
    /// When one is missing or of another shape.
    pub fn new(kind: Kind, vb: &VarBuilder) -> Result<Self> {
        let features = vb.pp("features");
        let net = match kind {
            Kind::Vgg19 => {
                let layers = VGG19.iter().map(|&(layer, c_in, c_out, after)| {
                    let shape = ConvShape::same(c_in, c_out, 3);
                    Ok((Conv::new(shape, &features.pp(layer))?, after))
                });
                Net::Vgg19(layers.collect::<Result<_>>()?)
            }
            Kind::SqueezeNet => {
                let first = ConvShape {
                    padding: 0,
                    ..ConvShape::same(3, 64, 3).halving()
                };
                let fires = FIRES.iter().map(|&(layer, c_in, few, many)| {
                    let vb = features.pp(layer);
                    let conv = |c_in, c_out, kernel, name: &str| {
                        Conv::new(ConvShape::same(c_in, c_out, kernel), &vb.pp(name))
                    };
                    Ok(Fire {
                        layer,
                        squeeze: conv(c_in, few, 1, "squeeze")?,
                        expand1: conv(few, many, 1, "expand1x1")?,
                        expand3: conv(few, many, 3, "expand3x3")?,
                    })
                });
                Net::Squeeze {
                    first: Conv::new(first, &features.pp(0))?,
                    fires: fires.collect::<Result<_>>()?,
                }
            }
            Kind::MimicFace => Net::MimicFace(Box::new(FaceDetector::new(vb.clone())?)),
        };
        Ok(Self { kind, net })
    }

    /// Which network it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Features of pictures (b, 3, h, w) in 0..1, the finest first. VGG19: after `relu1_1` to `relu5_1`.
    /// SqueezeNet: at the seven places that LPIPS looks at. The face detector: at each size.
    pub fn forward(&self, pictures: &Tensor) -> Result<Vec<Tensor>> {
        let channels = COLOURS.iter().enumerate().map(|(i, (mean, deviation))| {
            pictures
                .narrow(1, i, 1)?
                .affine(1.0 / deviation, -mean / deviation)
        });
        let mut x = Tensor::cat(&channels.collect::<Result<Vec<_>>>()?, 1)?;
        let mut taps = Vec::new();
        match &self.net {
            Net::Vgg19(layers) => {
                for (conv, after) in layers {
                    x = conv.forward_relu(&x)?;
                    match after {
                        After::Tap => taps.push(x.clone()),
                        After::Pool => x = max_pool(&x, 2, 2, false)?,
                        After::Nothing => {}
                    }
                }
            }
            Net::Squeeze { first, fires } => {
                x = first.forward_relu(&x)?;
                taps.push(x.clone());
                for fire in fires {
                    if matches!(fire.layer, 3 | 6 | 9) {
                        x = max_pool(&x, 3, 2, true)?;
                    }
                    x = fire.forward(&x)?;
                    if !matches!(fire.layer, 3 | 6) {
                        taps.push(x.clone());
                    }
                }
            }
            Net::MimicFace(net) => taps = net.features(pictures)?,
        }
        Ok(taps)
    }

    /// The five of these that the perceptual loss weighs.
    pub fn loss_features(&self, pictures: &Tensor) -> Result<Vec<Tensor>> {
        let taps = self.forward(pictures)?;
        Ok(match self.kind {
            Kind::Vgg19 | Kind::MimicFace => taps,
            Kind::SqueezeNet => [0, 1, 2, 4, 6]
                .into_iter()
                .filter_map(|i| taps.get(i).cloned())
                .collect(),
        })
    }
}

impl Fire {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let few = self.squeeze.forward_relu(x)?;
        Tensor::cat(
            &[
                self.expand1.forward_relu(&few)?,
                self.expand3.forward_relu(&few)?,
            ],
            1,
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn features_have_the_sizes_of_torchvisions() {
        for (kind, sizes) in [
            (
                Kind::Vgg19,
                vec![(64, 64), (128, 32), (256, 16), (512, 8), (512, 4)],
            ),
            // 64 -> 31, pooled upwards 15, 7, 3.
            (
                Kind::SqueezeNet,
                vec![
                    (64, 31),
                    (128, 15),
                    (256, 7),
                    (384, 3),
                    (384, 3),
                    (512, 3),
                    (512, 3),
                ],
            ),
        ] {
            let tensors: HashMap<String, Tensor> = kind
                .expected_tensors()
                .into_iter()
                .map(|(name, shape)| (name, Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap()))
                .collect();
            let vb = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
            let net = Perceptual::new(kind, &vb).unwrap();
            let picture = Tensor::ones((1, 3, 64, 64), DType::F32, &Device::Cpu).unwrap();
            let taps = net.forward(&picture).unwrap();
            let found: Vec<(usize, usize)> =
                taps.iter().map(|t| (t.dims()[1], t.dims()[3])).collect();
            assert_eq!(found, sizes);
            assert_eq!(net.loss_features(&picture).unwrap().len(), 5);
        }
    }
}

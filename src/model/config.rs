//! The shape of a model: widths, depths, keypoints, sizes; from a preset, a YAML file of PaddleGAN
//! or first-order-model as it is, or the header of a weights file.
//!
//! Sections about training are left out. Configurations may come from strangers: whatever is read
//! is checked against [limits](ModelConfig::check), so that no tensor is sized by an absurd number.

use serde::{Deserialize, Serialize};

use super::hourglass;

/// Names that [`ModelConfig::preset`] knows.
pub const PRESETS: [&str; 4] = ["vox-256", "vox-512", "vox-mobile", "mimic-small"];

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not YAML or JSON, or a key is missing, unknown or of the wrong kind.
    #[error("the model configuration cannot be read: {0}")]
    Unreadable(String),
    /// It describes no model.
    #[error(
        "the file describes no model: it needs a section 'model' (as in PaddleGAN) or \
         'model_params' (as in first-order-model)"
    )]
    NoModel,
    /// A number is out of range.
    #[error("the model configuration says {key} = {value}, but it must be {allowed}")]
    OutOfRange {
        /// The key, with the section it is in.
        key: String,
        /// What the configuration says.
        value: String,
        /// What it could say.
        allowed: String,
    },
}

/// Everything that decides which tensors a model has and how they are used.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Number of keypoints.
    pub num_kp: usize,
    /// Channels of a picture: 3.
    pub num_channels: usize,
    /// Whether each keypoint has a 2x2 jacobian (first-order motion) or only a place.
    pub estimate_jacobian: bool,
    /// The keypoint detector.
    pub kp: KpConfig,
    /// The generator with its dense motion network.
    pub generator: GeneratorConfig,
    /// Side of the square pictures in pixels.
    pub image_size: u32,
    /// What happens at the picture's border.
    pub border: Border,
}

/// The keypoint detector's shape; keys as in the published files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KpConfig {
    /// Features of the hourglass at full size.
    pub block_expansion: usize,
    /// Most features anywhere.
    pub max_features: usize,
    /// Depth of the hourglass.
    pub num_blocks: usize,
    /// The heatmaps' softmax is taken of values over this.
    pub temperature: f64,
    /// The picture is reduced by this first: 1 / n.
    #[serde(default = "one")]
    pub scale_factor: f64,
    /// One jacobian map for all keypoints instead of one each.
    #[serde(default)]
    pub single_jacobian_map: bool,
    /// Padding of the last convolutions.
    #[serde(default)]
    pub pad: usize,
    /// Depthwise convolutions, three small ones at the end.
    #[serde(default, rename = "mobile_net")]
    pub mobile: bool,
}

/// The generator's shape; keys as in the published files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GeneratorConfig {
    /// Features at full size.
    pub block_expansion: usize,
    /// Most features anywhere.
    pub max_features: usize,
    /// Features of each size from the full one down, where channels were pruned: instead of what the two
    /// numbers above say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub widths: Option<Vec<usize>>,
    /// How often the encoder halves the picture.
    pub num_down_blocks: usize,
    /// Residual blocks at the smallest size.
    pub num_bottleneck_blocks: usize,
    /// Whether the model says where the source does not show what is to be drawn.
    #[serde(default)]
    pub estimate_occlusion_map: bool,
    /// The dense motion network.
    #[serde(rename = "dense_motion_params")]
    pub dense_motion: DenseMotionConfig,
    /// Depthwise convolutions, in the dense motion network too.
    #[serde(default, rename = "mobile_net")]
    pub mobile: bool,
}

/// The dense motion network's shape; keys as in the published files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenseMotionConfig {
    /// Features of the hourglass at full size.
    pub block_expansion: usize,
    /// Most features anywhere.
    pub max_features: usize,
    /// Features of each size from the full one down, where channels were pruned: instead of what the two
    /// numbers above say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub widths: Option<Vec<usize>>,
    /// Depth of the hourglass.
    pub num_blocks: usize,
    /// The picture is reduced by this first: 1 / n.
    #[serde(default = "one")]
    pub scale_factor: f64,
    /// Variance of the gaussians around keypoints.
    #[serde(default = "usual_variance")]
    pub kp_variance: f64,
}

/// What happens in the outermost five pixels when animating.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Border {
    /// As PaddleGAN: the motion fades out, and what is there counts as visible.
    #[default]
    PaddleGan,
    /// As first-order-model: nothing.
    None,
}

impl ModelConfig {
    /// One of [`PRESETS`].
    pub fn preset(name: &str) -> Option<Self> {
        let hourglass = |block_expansion, max_features| DenseMotionConfig {
            block_expansion,
            max_features,
            widths: None,
            num_blocks: 5,
            scale_factor: 0.25,
            kp_variance: usual_variance(),
        };
        let kp = |block_expansion, max_features| KpConfig {
            block_expansion,
            max_features,
            num_blocks: 5,
            temperature: 0.1,
            scale_factor: 0.25,
            single_jacobian_map: false,
            pad: 0,
            mobile: false,
        };
        let generator = |block_expansion, max_features, blocks, dense_motion| GeneratorConfig {
            block_expansion,
            max_features,
            widths: None,
            num_down_blocks: 2,
            num_bottleneck_blocks: blocks,
            estimate_occlusion_map: true,
            dense_motion,
            mobile: false,
        };
        let vox = Self {
            num_kp: 10,
            num_channels: 3,
            estimate_jacobian: true,
            kp: kp(32, 1024),
            generator: generator(64, 512, 6, hourglass(64, 1024)),
            image_size: 256,
            border: Border::PaddleGan,
        };
        match name {
            "vox-256" => Some(vox),
            "vox-512" => Some(Self {
                image_size: 512,
                ..vox
            }),
            "vox-mobile" => Some(Self {
                kp: KpConfig {
                    mobile: true,
                    ..kp(32, 256)
                },
                generator: GeneratorConfig {
                    mobile: true,
                    ..generator(32, 256, 6, hourglass(32, 256))
                },
                ..vox
            }),
            "mimic-small" => Some(Self {
                kp: kp(16, 256),
                generator: generator(32, 256, 4, hourglass(32, 256)),
                border: usual_border(Some(name)),
                ..vox
            }),
            _ => None,
        }
    }

    /// Reads a whole YAML file of PaddleGAN (`model: ..`) or first-order-model (`model_params: ..`).
    pub fn from_yaml(text: &str) -> Result<Self, Error> {
        let file: YamlFile = parse_yaml(text).map_err(Error::Unreadable)?;
        let (mut sections, shape) = match file {
            YamlFile {
                model: Some(model),
                dataset,
                ..
            } => {
                let sections = Sections {
                    common_params: model.common_params,
                    kp_detector_params: model.generator.kp_detector_cfg,
                    generator_params: model.generator.generator_cfg,
                    discriminator_params: None,
                    image_size: None,
                    border: None,
                };
                (
                    sections,
                    dataset.and_then(|d| d.train).and_then(|d| d.frame_shape),
                )
            }
            YamlFile {
                model_params: Some(sections),
                dataset_params,
                ..
            } => (sections, dataset_params.and_then(|d| d.frame_shape)),
            _ => return Err(Error::NoModel),
        };
        if let (None, Some(shape)) = (sections.image_size, shape) {
            match shape[..] {
                [height, width] | [height, width, _] if height == width => {
                    sections.image_size = Some(height);
                }
                _ => {
                    let allowed = "a square such as [256, 256, 3]";
                    return Err(out_of_range("frame_shape", format!("{shape:?}"), allowed));
                }
            }
        }
        sections.into_config(None)
    }

    /// Reads the configuration in the header of a weights file: the sections of first-order-model's
    /// `model_params`, `image_size` and `border`. `name` is the model's, as the header has it; it
    /// decides about the border when the configuration does not.
    pub fn from_json(text: &str, name: Option<&str>) -> Result<Self, Error> {
        let sections: Sections =
            serde_json::from_str(text).map_err(|e| Error::Unreadable(one_line(&e.to_string())))?;
        sections.into_config(name)
    }

    /// What [`ModelConfig::from_json`] reads.
    pub fn to_json(&self) -> String {
        let sections = Sections {
            common_params: Common {
                num_kp: self.num_kp,
                num_channels: self.num_channels,
                estimate_jacobian: self.estimate_jacobian,
            },
            kp_detector_params: self.kp.clone(),
            generator_params: self.generator.clone(),
            discriminator_params: None,
            image_size: Some(self.image_size),
            border: Some(self.border),
        };
        // Plain structs of numbers: nothing in them can fail to be written.
        serde_json::to_string(&sections).unwrap_or_default()
    }

    /// Whether every number is within what the networks can do and a machine can hold.
    pub fn check(&self) -> Result<(), Error> {
        let generator = &self.generator;
        let motion = &generator.dense_motion;
        within("num_kp", self.num_kp, 1, 64)?;
        within("num_channels", self.num_channels, 3, 3)?;
        within("image_size", self.image_size as usize, 32, 1024)?;
        check_widths("kp_detector", self.kp.block_expansion, self.kp.max_features)?;
        check_widths(
            "generator",
            generator.block_expansion,
            generator.max_features,
        )?;
        check_widths("dense_motion", motion.block_expansion, motion.max_features)?;
        within("kp_detector num_blocks", self.kp.num_blocks, 1, 8)?;
        within("dense_motion num_blocks", motion.num_blocks, 1, 8)?;
        within("generator num_down_blocks", generator.num_down_blocks, 1, 8)?;
        within(
            "generator num_bottleneck_blocks",
            generator.num_bottleneck_blocks,
            0,
            64,
        )?;
        check_listed("generator", &generator.widths, generator.num_down_blocks)?;
        check_listed("dense_motion", &motion.widths, motion.num_blocks)?;
        within("kp_detector pad", self.kp.pad, 0, 3)?;
        positive("kp_detector temperature", self.kp.temperature)?;
        positive("dense_motion kp_variance", motion.kp_variance)?;
        let kp_factor = factor("kp_detector scale_factor", self.kp.scale_factor)?;
        let motion_factor = factor("dense_motion scale_factor", motion.scale_factor)?;
        self.check_size("kp_detector", kp_factor << self.kp.num_blocks)?;
        self.check_size("dense_motion", motion_factor << motion.num_blocks)?;
        self.check_size("generator", 1 << generator.num_down_blocks)?;

        // The last convolutions take six pixels off, less their padding.
        let heatmap = self.image_size as usize / kp_factor + 2 * self.kp.pad;
        if heatmap < 7 {
            return Err(out_of_range(
                "image_size",
                self.image_size.to_string(),
                "large enough for heatmaps of 7 pixels: raise it, scale_factor or pad",
            ));
        }

        // Together the numbers can still ask for more than a machine has.
        let pixels = (self.image_size as usize).pow(2);
        within(
            "generator block_expansion * image_size^2",
            generator.width(0) * pixels,
            1,
            1 << 28,
        )?;
        let parameters: usize = self
            .expected_tensors()
            .values()
            .map(|shape| shape.iter().product::<usize>())
            .sum();
        within("number of parameters", parameters, 1, 500_000_000)
    }

    fn check_size(&self, network: &str, multiple: usize) -> Result<(), Error> {
        if (self.image_size as usize).is_multiple_of(multiple) {
            return Ok(());
        }
        let allowed = format!("a multiple of {multiple} for a {network} of this depth");
        Err(out_of_range(
            "image_size",
            self.image_size.to_string(),
            &allowed,
        ))
    }
}

impl KpConfig {
    /// n of the reduction by 1 / n.
    pub fn factor(&self) -> usize {
        nearest_factor(self.scale_factor)
    }
}

impl GeneratorConfig {
    /// Features after halving the picture `level` times.
    pub fn width(&self, level: usize) -> usize {
        let listed = self.widths.as_ref().and_then(|widths| widths.get(level));
        listed
            .copied()
            .unwrap_or_else(|| hourglass::width(self.block_expansion, self.max_features, level))
    }
}

impl DenseMotionConfig {
    /// Features of the hourglass after halving the picture `level` times.
    pub fn width(&self, level: usize) -> usize {
        let listed = self.widths.as_ref().and_then(|widths| widths.get(level));
        listed
            .copied()
            .unwrap_or_else(|| hourglass::width(self.block_expansion, self.max_features, level))
    }

    /// n of the reduction by 1 / n.
    pub fn factor(&self) -> usize {
        nearest_factor(self.scale_factor)
    }
}

/// `model_params` of first-order-model, and the configuration in a weights file's header.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sections {
    common_params: Common,
    kp_detector_params: KpConfig,
    generator_params: GeneratorConfig,
    #[serde(default, skip_serializing)]
    #[expect(dead_code, reason = "known, but only needed for training")]
    discriminator_params: Option<serde::de::IgnoredAny>,
    image_size: Option<u32>,
    border: Option<Border>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Common {
    num_kp: usize,
    num_channels: usize,
    #[serde(default)]
    estimate_jacobian: bool,
}

#[derive(Deserialize)]
struct YamlFile {
    model: Option<PaddleModel>,
    dataset: Option<PaddleData>,
    model_params: Option<Sections>,
    dataset_params: Option<Frames>,
}

#[derive(Deserialize)]
struct PaddleModel {
    common_params: Common,
    generator: PaddleGenerator,
}

#[derive(Deserialize)]
struct PaddleGenerator {
    kp_detector_cfg: KpConfig,
    generator_cfg: GeneratorConfig,
}

#[derive(Deserialize)]
struct PaddleData {
    train: Option<Frames>,
}

#[derive(Deserialize)]
struct Frames {
    frame_shape: Option<Vec<u32>>,
}

impl Sections {
    fn into_config(self, name: Option<&str>) -> Result<ModelConfig, Error> {
        let config = ModelConfig {
            num_kp: self.common_params.num_kp,
            num_channels: self.common_params.num_channels,
            estimate_jacobian: self.common_params.estimate_jacobian,
            kp: self.kp_detector_params,
            generator: self.generator_params,
            image_size: self.image_size.unwrap_or(256),
            border: self.border.unwrap_or_else(|| usual_border(name)),
        };
        config.check()?;
        Ok(config)
    }
}

/// mimic's own models are trained without anything at the border; the first ones do not say so.
fn usual_border(name: Option<&str>) -> Border {
    match name {
        Some("mimic-small") => Border::None,
        _ => Border::PaddleGan,
    }
}

fn one() -> f64 {
    1.0
}

fn usual_variance() -> f64 {
    0.01
}

fn nearest_factor(scale_factor: f64) -> usize {
    // A float as an integer saturates: no number becomes an absurd one here.
    ((1.0 / scale_factor).round() as usize).clamp(1, 16)
}

fn check_widths(section: &str, block_expansion: usize, max_features: usize) -> Result<(), Error> {
    within(&format!("{section} max_features"), max_features, 1, 4096)?;
    within(
        &format!("{section} block_expansion"),
        block_expansion,
        1,
        max_features,
    )
}

/// Listed widths: one for each size of a network that halves its picture `depth` times.
fn check_listed(section: &str, widths: &Option<Vec<usize>>, depth: usize) -> Result<(), Error> {
    let Some(widths) = widths else { return Ok(()) };
    if widths.len() != depth + 1 {
        return Err(out_of_range(
            &format!("{section} widths"),
            format!("{widths:?}"),
            &format!("{} numbers, one for each size", depth + 1),
        ));
    }
    widths
        .iter()
        .try_for_each(|&width| within(&format!("{section} widths"), width, 1, 4096))
}

fn within(key: &str, value: usize, low: usize, high: usize) -> Result<(), Error> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    let allowed = if low == high {
        low.to_string()
    } else {
        format!("{low} to {high}")
    };
    Err(out_of_range(key, value.to_string(), &allowed))
}

fn positive(key: &str, value: f64) -> Result<(), Error> {
    if (1e-6..=1e6).contains(&value) {
        return Ok(());
    }
    Err(out_of_range(
        key,
        value.to_string(),
        "over 0 (0.000001 to 1000000)",
    ))
}

fn factor(key: &str, scale_factor: f64) -> Result<usize, Error> {
    let factor = nearest_factor(scale_factor);
    if (scale_factor * factor as f64 - 1.0).abs() < 1e-3 {
        return Ok(factor);
    }
    Err(out_of_range(
        key,
        scale_factor.to_string(),
        "1, 1/2, 1/3 or so on down to 1/16",
    ))
}

fn out_of_range(key: &str, value: String, allowed: &str) -> Error {
    Error::OutOfRange {
        key: key.to_owned(),
        value,
        allowed: allowed.to_owned(),
    }
}

/// Parsers speak in several lines.
/// Reads a foreign YAML file, within limits; the error is one line.
pub(crate) fn parse_yaml<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    // The longest published file has 120 lines and is five sections deep.
    let options = serde_saphyr::options! {
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_reader_input_bytes: Some(1 << 20),
            max_events: 50_000,
            max_nodes: 20_000,
            max_depth: 24,
            max_documents: 1,
            max_aliases: 100,
            max_anchors: 100,
            max_total_scalar_bytes: 1 << 20,
        },
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|e| one_line(&e.to_string()))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;

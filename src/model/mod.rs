//! The First Order Motion Model's networks, written once, in candle: what each of them computes is
//! defined here, for every device; faster engines are tested against it.
//!
//! Siarohin et al., "First Order Motion Model for Image Animation", NeurIPS 2019; the variants and
//! the border handling are PaddleGAN's. Tensors are named as PyTorch names them, shapes are
//! (b, c, h, w), pictures lie in 0..1 and keypoints in -1..1. Built of plain tensors the networks are
//! for inference, built of variables they learn (see [`blocks`]). No files, no threads, no logging.

pub mod blocks;
mod border;
pub mod config;
pub mod dense_motion;
pub mod discriminator;
pub mod face_detector;
pub mod generator;
pub mod gfpgan;
pub mod gpen;
pub mod hourglass;
pub mod keypoint_detector;
mod keypoints;
pub mod mapped;
mod modulated;
pub mod packed;
pub mod perceptual;
pub mod procedural;
pub mod s3fd;
mod tensors;

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;

pub use config::{Border, ModelConfig};
pub use dense_motion::DenseMotion;
pub use discriminator::{Discriminator, DiscriminatorConfig};
pub use face_detector::FaceDetector;
pub use generator::{Generator, GeneratorOutput, Moved, SourceFeatures};
pub use gfpgan::Gfpgan;
pub use gpen::Gpen;
pub use keypoint_detector::{KeypointDetector, KeypointTensors};
pub use keypoints::Keypoints;
pub use perceptual::Perceptual;
pub use s3fd::S3fd;

use crate::ops::resample::AntiAlias;

/// Both networks of a model.
#[derive(Clone, Debug)]
pub struct Networks {
    /// The model's shape.
    pub config: ModelConfig,
    /// Finds keypoints.
    pub keypoint_detector: KeypointDetector,
    /// Moves a picture from keypoints to keypoints.
    pub generator: Generator,
}

impl Networks {
    /// Builds the networks in f32 from a checkpoint's tensors (see `checkpoint::check_values`), for
    /// inference; what they do not name is left alone.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape, or the device fails.
    pub fn new(
        config: &ModelConfig,
        tensors: &BTreeMap<String, Tensor>,
        device: &Device,
    ) -> candle_core::Result<Self> {
        Self::in_precision(config, tensors, device, DType::F32)
    }

    /// As [`Networks::new`] with the generator's blocks in `precision`, f32 or a half one. Keypoints, places and occlusion stay
    /// f32: one that is a little off moves a whole region.
    ///
    /// # Errors
    /// As [`Networks::new`].
    pub fn in_precision(
        config: &ModelConfig,
        tensors: &BTreeMap<String, Tensor>,
        device: &Device,
        precision: DType,
    ) -> candle_core::Result<Self> {
        let tensors: HashMap<String, Tensor> = tensors
            .iter()
            .map(|(name, tensor)| (name.clone(), tensor.clone()))
            .collect();
        let vb = VarBuilder::from_tensors(tensors, DType::F32, device);
        let generator = vb.pp("generator").to_dtype(precision);
        Ok(Self {
            config: config.clone(),
            keypoint_detector: KeypointDetector::new(config, vb.pp("kp_detector"))?,
            generator: Generator::new(config, generator)?,
        })
    }

    /// Builds the networks of plain tensors, for inference, or of variables, for training.
    ///
    /// # Errors
    /// As [`Networks::new`].
    pub fn build(config: &ModelConfig, vb: &VarBuilder) -> candle_core::Result<Self> {
        Ok(Self {
            config: config.clone(),
            keypoint_detector: KeypointDetector::new(config, vb.pp("kp_detector"))?,
            generator: Generator::new(config, vb.pp("generator"))?,
        })
    }
}

/// Coordinates of pixel centres (h, w, 2) as (x, y) in -1..1.
fn coordinate_grid(
    h: usize,
    w: usize,
    dtype: DType,
    device: &Device,
) -> candle_core::Result<Tensor> {
    let along = |i: usize, n: usize| 2.0 * i as f64 / (n.max(2) - 1) as f64 - 1.0;
    let places: Vec<f64> = (0..h)
        .flat_map(|y| (0..w).flat_map(move |x| [along(x, w), along(y, h)]))
        .collect();
    Tensor::from_vec(places, (h, w, 2), device)?.to_dtype(dtype)
}

/// The reduction by 1 / `factor` before a network; the mobile form has a very narrow gaussian.
fn reduction(factor: usize, mobile: bool, device: &Device) -> candle_core::Result<AntiAlias> {
    if mobile {
        AntiAlias::new(factor, 3, 0.25, device)
    } else {
        AntiAlias::for_factor(factor, device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn smallest() -> ModelConfig {
        let mut config = ModelConfig::preset("vox-256").unwrap();
        config.image_size = 64;
        config.num_kp = 3;
        config.kp.block_expansion = 2;
        config.kp.max_features = 4;
        config.kp.num_blocks = 2;
        config.generator.block_expansion = 2;
        config.generator.max_features = 4;
        config.generator.num_bottleneck_blocks = 1;
        config.generator.dense_motion.block_expansion = 2;
        config.generator.dense_motion.max_features = 4;
        config.generator.dense_motion.num_blocks = 2;
        config.check().unwrap();
        config
    }

    fn run(config: &ModelConfig, driving: usize) -> GeneratorOutput {
        run_in(config, driving, DType::F32)
    }

    fn run_in(config: &ModelConfig, driving: usize, precision: DType) -> GeneratorOutput {
        let tensors = procedural::tensors(config, "test").unwrap();
        let networks = Networks::in_precision(config, &tensors, &Device::Cpu, precision).unwrap();
        let side = config.image_size as usize;
        let shape = (driving, 3, side, side);
        let frames: Vec<f32> = (0..driving * 3 * side * side)
            .map(|i| (i as f32 * 0.01).sin().abs())
            .collect();
        let frames = Tensor::from_vec(frames, shape, &Device::Cpu).unwrap();
        let photo = frames.narrow(0, 0, 1).unwrap();
        let source = networks.generator.encode_source(&photo).unwrap();
        let kp_source = networks.keypoint_detector.forward(&photo).unwrap();
        let kp_driving = networks.keypoint_detector.forward(&frames).unwrap();
        networks
            .generator
            .forward(&source, &kp_source, &kp_driving)
            .unwrap()
    }

    #[test]
    fn every_shape_of_model_runs() {
        let base = smallest();
        let with = |change: &dyn Fn(&mut ModelConfig)| {
            let mut config = base.clone();
            change(&mut config);
            config.check().unwrap();
            let output = run(&config, 2);
            let side = config.image_size as usize;
            assert_eq!(output.prediction.dims(), [2, 3, side, side]);
            let prediction: Vec<f32> = output.prediction.flatten_all().unwrap().to_vec1().unwrap();
            assert!(prediction.iter().all(|v| (0.0..=1.0).contains(v)));
            output
        };
        with(&|_| ());
        with(&|c| c.border = Border::None);
        with(&|c| (c.kp.mobile, c.generator.mobile) = (true, true));
        with(&|c| (c.kp.mobile, c.generator.mobile) = (false, true));
        with(&|c| c.estimate_jacobian = false);
        with(&|c| c.kp.single_jacobian_map = true);
        with(&|c| c.kp.pad = 3);
        with(&|c| c.image_size = 96);
        with(&|c| c.kp.scale_factor = 1.0);
        with(&|c| c.generator.num_bottleneck_blocks = 0);
        let output = with(&|c| c.generator.estimate_occlusion_map = false);
        assert!(output.occlusion_map.is_none());
        // Features, deformation and occlusion map of different sizes.
        let output = with(&|c| c.generator.dense_motion.scale_factor = 0.5);
        assert_eq!(output.deformation.dims(), [2, 32, 32, 2]);
        assert_eq!(output.occlusion_map.unwrap().dims(), [2, 1, 32, 32]);
        with(&|c| c.generator.num_down_blocks = 3);
    }

    #[test]
    fn a_batch_gives_what_its_frames_give_one_by_one() {
        let config = smallest();
        let three = run(&config, 3).prediction;
        let one = run(&config, 1).prediction;
        let difference = (three.narrow(0, 0, 1).unwrap() - one)
            .unwrap()
            .abs()
            .unwrap();
        assert_eq!(
            difference.max_all().unwrap().to_scalar::<f32>().unwrap(),
            0.0
        );
    }

    /// In half precision the networks take the ops of a card, with the kernels themselves in their place.
    #[test]
    #[cfg(unix)]
    fn networks_of_a_cards_kernels_compute_what_those_of_the_ops_do() {
        use crate::ops::fused::host::with_kernels;
        let distance = |a: &Tensor, b: &Tensor| -> f32 {
            let difference = (a - b).unwrap().abs().unwrap();
            difference.max_all().unwrap().to_scalar().unwrap()
        };
        for (mobile, jacobian) in [(false, true), (true, true), (false, false)] {
            let mut config = smallest();
            (config.kp.mobile, config.generator.mobile) = (mobile, mobile);
            config.estimate_jacobian = jacobian;
            let exact = run(&config, 2);
            for precision in [DType::F16, DType::BF16] {
                let plain = run_in(&config, 2, precision);
                let kernels = with_kernels(4, || run_in(&config, 2, precision));
                for (kernels, plain, exact) in [
                    (&kernels.prediction, &plain.prediction, &exact.prediction),
                    (&kernels.deformation, &plain.deformation, &exact.deformation),
                ] {
                    let (to_plain, to_exact) = (distance(kernels, plain), distance(kernels, exact));
                    let limit = if precision == DType::F16 { 5e-3 } else { 4e-2 };
                    assert!(to_plain <= limit, "{precision:?}: {to_plain}");
                    assert!(
                        to_exact <= 2.0 * limit,
                        "{precision:?}: {to_exact} from f32"
                    );
                }
                let sparse = distance(
                    &kernels.sparse_deformed.to_dtype(DType::F32).unwrap(),
                    &exact.sparse_deformed,
                );
                assert!(sparse < 2e-2, "{sparse}");
            }
        }
    }

    #[test]
    fn what_is_missing_or_misshapen_is_named() {
        let config = smallest();
        let tensors = procedural::tensors(&config, "test").unwrap();
        let complaint = |name: &str, value: Option<Tensor>| {
            let mut tensors = tensors.clone();
            let old = tensors.remove(name).expect(name);
            if let Some(value) = value {
                let dtype = old.dtype();
                tensors.insert(name.to_owned(), value.to_dtype(dtype).unwrap());
            }
            Networks::new(&config, &tensors, &Device::Cpu)
                .unwrap_err()
                .to_string()
        };
        let fill =
            |value: f64, shape: &[usize]| Some(Tensor::full(value, shape, &Device::Cpu).unwrap());
        for (name, value, wanted) in [
            ("generator.final.bias", None, "generator.final.bias"),
            (
                "kp_detector.kp.bias",
                fill(0.0, &[4]),
                "kp_detector.kp.bias",
            ),
        ] {
            let message = complaint(name, value);
            assert!(
                message.contains(wanted) && message.contains(name),
                "{message}"
            );
        }
    }

    #[test]
    fn the_grid_spans_the_outermost_pixels() {
        let grid = coordinate_grid(2, 3, DType::F32, &Device::Cpu).unwrap();
        assert_eq!(
            grid.reshape((6, 2)).unwrap().to_vec2::<f32>().unwrap(),
            [
                [-1., -1.],
                [0., -1.],
                [1., -1.],
                [-1., 1.],
                [0., 1.],
                [1., 1.]
            ]
        );
    }
}

//! One step of training against the record: PaddleGAN's losses, and gradients computed independently in f64.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use mimic::model::perceptual::Kind;
use mimic::model::{DiscriminatorConfig, Perceptual, procedural};
use mimic::train::TrainConfig;
use mimic::train::learner::Learner;
use mimic::train::loader::Batch;
use mimic::train::losses::sum;
use mimic::train::transform::Transform;

use crate::common;

/// The recorded run's configuration.
const CONFIG: &str = "
dataset:
  train: {batch_size: 2, dataroot: nowhere, frame_shape: [256, 256, 3]}
model:
  common_params: {num_kp: 10, num_channels: 3, estimate_jacobian: True}
  generator:
    kp_detector_cfg: {temperature: 0.1, block_expansion: 8, max_features: 64, scale_factor: 0.25, num_blocks: 5}
    generator_cfg:
      block_expansion: 8
      max_features: 64
      num_down_blocks: 2
      num_bottleneck_blocks: 6
      estimate_occlusion_map: True
      dense_motion_params: {block_expansion: 8, max_features: 64, num_blocks: 5, scale_factor: 0.25}
  discriminator:
    discriminator_cfg: {scales: [1], block_expansion: 8, max_features: 64, num_blocks: 4, sn: False}
  train_params:
    scales: [1, 0.5, 0.25, 0.125]
    transform_params: {sigma_affine: 0.05, sigma_tps: 0.005, points_tps: 5}
    loss_weights:
      generator_gan: 1
      discriminator_gan: 1
      feature_matching: [10, 10, 10, 10]
      perceptual: [10, 10, 10, 10, 10]
      equivariance_value: 10
      equivariance_jacobian: 10
lr_scheduler: {lr_generator: 2.0e-4, lr_discriminator: 2.0e-4, lr_kp_detector: 2.0e-4}
";

struct Computed {
    losses: BTreeMap<String, f64>,
    gradients: BTreeMap<String, Tensor>,
}

fn compute(dtype: DType) -> Computed {
    let device = Device::Cpu;
    let recorded = common::tensors("tests/fixtures/train_step.safetensors");
    let config = TrainConfig::from_yaml(CONFIG, &[]).unwrap();
    let mut values = procedural::tensors(&config.model, "vox_tiny").unwrap();
    let shape: &DiscriminatorConfig = &config.discriminator;
    for (name, value) in procedural::discriminator(shape, 3, 10, "disc_tiny").unwrap() {
        values.insert(format!("discriminator.{name}"), value);
    }
    let vgg: HashMap<String, Tensor> = procedural::perceptual(Kind::Vgg19, "vgg19.features")
        .unwrap()
        .into_iter()
        .collect();
    let vgg = Perceptual::new(Kind::Vgg19, &VarBuilder::from_tensors(vgg, dtype, &device)).unwrap();
    let learner = Learner::new(&config, &values, Some(vgg), dtype, &device).unwrap();

    let cast = |t: &Tensor| t.to_dtype(dtype).unwrap();
    // The record in f64 is of weights rounded to f32, of bytes divided in f64, and of the deformed frame in f32.
    let frames = recorded["frames"].permute((0, 3, 1, 2)).unwrap();
    let frames = (cast(&frames) / 255.0).unwrap().contiguous().unwrap();
    let pick = |places: [u32; 2]| {
        let places = Tensor::new(&places, &device).unwrap();
        frames.index_select(&places, 0).unwrap()
    };
    let batch = Batch {
        source: pick([0, 2]),
        driving: pick([1, 3]),
        marks: None,
    };
    let transform = Transform::new(cast(&recorded["theta"]), Some(cast(&recorded["tps"]))).unwrap();
    let deformed = cast(&recorded["transformed_frame"]);
    let ours = transform.frame(&batch.driving).unwrap();
    let off = (&ours - &deformed)
        .unwrap()
        .abs()
        .unwrap()
        .max_all()
        .unwrap();
    let off = off
        .to_dtype(DType::F64)
        .unwrap()
        .to_scalar::<f64>()
        .unwrap();
    assert!(off < 1e-4, "the deformed frame is off by {off:.1e}");
    let (losses, generated) = learner.generate(&batch, &transform, &deformed).unwrap();
    let total = sum(&losses.iter().map(|(_, l)| l.clone()).collect::<Vec<_>>()).unwrap();
    let mut gradients = learner
        .gradients(&total, |n| !n.starts_with("discriminator."))
        .unwrap();
    let game = learner.discriminate(&batch, &generated).unwrap().unwrap();
    let of_game = learner
        .gradients(&game, |n| n.starts_with("discriminator."))
        .unwrap();
    gradients.extend(of_game);
    let scalar = |t: &Tensor| t.to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap();
    let mut losses: BTreeMap<String, f64> = losses
        .iter()
        .map(|(name, loss)| ((*name).to_owned(), scalar(loss)))
        .collect();
    losses.insert("disc_gan".to_owned(), scalar(&game));
    Computed { losses, gradients }
}

/// How far an f32 run may be off: the step is ill-conditioned (random weights, kinks).
fn bar_of_f32(name: &str) -> f64 {
    if name.starts_with("discriminator") || name.starts_with("generator.final") {
        0.002
    } else if name.starts_with("generator.up_blocks") {
        0.006
    } else if name.starts_with("generator.bottleneck") {
        0.02
    } else if name.starts_with("generator.first") || name.starts_with("generator.down_blocks") {
        0.06
    } else {
        0.3
    }
}

fn flat(tensor: &Tensor) -> Vec<f64> {
    tensor
        .to_dtype(DType::F64)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

fn length(values: &[f64]) -> f64 {
    values.iter().map(|v| v * v).sum::<f64>().sqrt()
}

fn compare(computed: &Computed, bar: impl Fn(&str) -> f64) {
    let first = common::tensors("tests/fixtures/train_step.safetensors");
    let exact = common::tensors("tests/fixtures/train_step_f64.safetensors");
    for record in [&first, &exact] {
        let mut compared = 0;
        for (name, wanted) in record
            .iter()
            .filter_map(|(n, t)| Some((n.strip_prefix("loss.")?, t)))
        {
            let (wanted, got) = (flat(wanted)[0], computed.losses[name]);
            println!("{name}: {got} (recorded {wanted})");
            assert!(
                ((got - wanted) / wanted).abs() <= 1e-4,
                "{name}: {got} is not {wanted}"
            );
            compared += 1;
        }
        assert_eq!(compared, computed.losses.len());
    }
    let (mut norms, mut whole) = (0, 0);
    let mut wrong = Vec::new();
    for (name, wanted) in &exact {
        let Some((kind, name)) = name
            .split_once('.')
            .filter(|(kind, _)| kind.starts_with("grad"))
        else {
            continue;
        };
        let ours = name.replace(".norm.scale", ".norm.weight");
        let (got, wanted) = (flat(&computed.gradients[&ours]), flat(wanted));
        let off = if kind == "gradnorm" {
            norms += 1;
            (length(&got) - wanted[0]).abs() / wanted[0]
        } else {
            whole += 1;
            let difference: Vec<f64> = got.iter().zip(&wanted).map(|(a, b)| a - b).collect();
            println!(
                "{name}: off by {:.1e}",
                length(&difference) / length(&wanted)
            );
            length(&difference) / length(&wanted)
        };
        if off.is_nan() || off > bar(name) {
            wrong.push(format!(
                "{kind} {name}: off by {off:.1e}, allowed {:.1e}",
                bar(name)
            ));
        }
    }
    assert!(
        norms > 100 && whole == 8,
        "{norms} norms, {whole} gradients"
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn losses_and_gradients_in_f64_are_the_recorded_ones() {
    compare(&compute(DType::F64), |_| 1e-3);
}

#[test]
fn losses_and_gradients_in_f32_are_as_near_as_f32_comes() {
    compare(&compute(DType::F32), bar_of_f32);
}

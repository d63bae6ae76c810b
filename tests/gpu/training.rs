//! A step of training on the device, against the same on the CPU: losses, gradients, what Adam makes of them.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use mimic::model::perceptual::Kind;
use mimic::model::{Perceptual, procedural};
use mimic::train::TrainConfig;
use mimic::train::adam::Adam;
use mimic::train::learner::{Learner, initial};
use mimic::train::loader::{Batch, Marks};
use mimic::train::losses::sum;
use mimic::train::random::Random;
use mimic::train::transform::Transform;

use crate::{card, flat, noise};

const CONFIG: &str = "
dataset:
  train: {batch_size: 2, dataroot: nowhere, frame_shape: [64, 64, 3]}
model:
  common_params: {num_kp: 10, num_channels: 3, estimate_jacobian: True}
  generator:
    kp_detector_cfg: {temperature: 0.1, block_expansion: 8, max_features: 32, scale_factor: 0.25, num_blocks: 2}
    generator_cfg:
      block_expansion: 8
      max_features: 32
      num_down_blocks: 2
      num_bottleneck_blocks: 2
      estimate_occlusion_map: True
      dense_motion_params: {block_expansion: 8, max_features: 32, num_blocks: 2, scale_factor: 0.25}
  discriminator:
    discriminator_cfg: {scales: [1], block_expansion: 8, max_features: 32, num_blocks: 2, sn: True}
  train_params:
    scales: [1, 0.5]
    transform_params: {sigma_affine: 0.05, sigma_tps: 0.005, points_tps: 5}
    loss_weights:
      generator_gan: 1
      discriminator_gan: 1
      feature_matching: [10, 10]
      perceptual: [10, 10, 10, 10, 10]
      equivariance_value: 10
      equivariance_jacobian: 10
lr_scheduler: {lr_generator: 2.0e-4, lr_discriminator: 2.0e-4, lr_kp_detector: 2.0e-4}
mimic: {l1: 10, landmarks: some, keypoint_landmarks: 10, lip_distance: 20, windows: 0.5}
";

struct Step {
    losses: Vec<(&'static str, f64)>,
    gradients: BTreeMap<String, Tensor>,
    /// After Adam.
    values: BTreeMap<String, Tensor>,
}

fn step(device: &Device, precision: &str) -> Result<Step> {
    let changes = [format!("mimic.precision={precision}")];
    let config = TrainConfig::from_yaml(CONFIG, &changes).unwrap();
    let network = procedural::perceptual(Kind::SqueezeNet, "squeezenet")?;
    let network: HashMap<String, Tensor> = network.into_iter().collect();
    let vb = VarBuilder::from_tensors(network, DType::F32, device);
    let network = Perceptual::new(Kind::SqueezeNet, &vb)?;
    let values = initial(&config, 1)?;
    let learner = Learner::new(&config, &values, Some(network), DType::F32, device)?;

    let smooth = |seed: u32| -> Result<Tensor> {
        let wave = |i: usize| {
            let (x, y, c) = (i % 64, i / 64 % 64, i / 4096);
            let phase = 0.11 * (x as f32) + 0.07 * (y as f32) + c as f32 * seed as f32;
            0.5 + 0.4 * phase.sin() * (0.05 * y as f32).cos()
        };
        let values: Vec<f32> = (0..2 * 3 * 4096).map(wave).collect();
        Tensor::from_vec(values, (2, 3, 64, 64), device)
    };
    let points = |seed| (noise(&[2, 9, 2], seed) * 0.6)?.to_device(device);
    let batch = Batch {
        source: smooth(1)?,
        driving: smooth(2)?,
        marks: Some(Marks {
            source: points(1)?,
            driving: points(2)?,
            known: Tensor::new(&[[[1f32]], [[0.0]]], device)?,
        }),
    };
    let random = &mut Random::new(5, &[]);
    let transform = Transform::random(&config.transform, 2, random, DType::F32, device)?;
    let deformed = transform.frame(&batch.driving)?;
    let (mut losses, generated) = learner.generate(&batch, &transform, &deformed)?;
    let all: Vec<Tensor> = losses.iter().map(|(_, loss)| loss.clone()).collect();
    let mut gradients =
        learner.gradients(&sum(&all)?, |name| !name.starts_with("discriminator."))?;
    if let Some(loss) = learner.discriminate(&batch, &generated)? {
        let of_game = learner.gradients(&loss, |name| name.starts_with("discriminator."))?;
        gradients.extend(of_game);
        losses.push(("disc_gan", loss));
    }
    let mut adam = Adam::new([0.5, 0.999]);
    let vars = learner.vars();
    let changes: Vec<_> = gradients
        .iter()
        .map(|(name, gradient)| (name.as_str(), &vars[name], gradient))
        .collect();
    adam.update_all(&changes, 1e-3)?;
    adam.update_all(&changes, 1e-3)?;
    let values = gradients.keys().map(|name| {
        let var = vars[name].as_detached_tensor();
        (name.clone(), var)
    });
    let values = values.collect();
    let losses = losses.iter().map(|(name, loss)| {
        let number = loss.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        Ok((*name, number))
    });
    Ok(Step {
        losses: losses.collect::<Result<_>>()?,
        values,
        gradients,
    })
}

#[test]
fn a_step_of_training() {
    let card = card();
    let wanted = step(&Device::Cpu, "f32").unwrap();
    for (precision, of_losses, of_gradients) in
        [("f32", 1e-3, 0.05), ("tf32", 0.02, 0.4), ("bf16", 0.1, 1.0)]
    {
        let got = step(&card.device, precision).unwrap();
        for ((name, got), (_, wanted)) in got.losses.iter().zip(&wanted.losses) {
            println!("{name} in {precision}: {got} for {wanted}");
            assert!(
                (got - wanted).abs() <= of_losses * wanted.abs().max(0.1),
                "{name} in {precision}: {got} for {wanted}"
            );
        }
        assert!(got.gradients.keys().eq(wanted.gradients.keys()));
        // Keypoints come of sharp peaks, so that the last digits of their gradients are anything.
        for (part, limit) in [
            ("discriminator.", of_gradients),
            ("generator.", of_gradients),
            ("kp_detector.", 3.0 * of_gradients),
        ] {
            let (mut off, mut all) = (0f64, 0f64);
            for (name, wanted) in &wanted.gradients {
                if name.starts_with(part) {
                    for (a, b) in flat(&got.gradients[name]).iter().zip(flat(wanted)) {
                        off += f64::from(a - b).powi(2);
                        all += f64::from(b).powi(2);
                    }
                }
            }
            let off = (off / all).sqrt();
            println!("gradients of {part} in {precision}: {off:.1e} of their length off");
            assert!(off <= limit, "gradients of {part} in {precision}: {off}");
        }
        // Adam moves by the rate at most, whichever way.
        for (name, wanted) in &wanted.values {
            let (_, most) = crate::distance(&got.values[name], wanted);
            assert!(most < 5e-3, "{name} in {precision}: {most}");
        }
    }
}

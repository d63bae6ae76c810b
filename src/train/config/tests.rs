//! Files as they are published, and files with mistakes.

use super::*;

/// The keys and values of PaddleGAN's `firstorder_vox_256.yaml`, written anew.
pub(super) const PADDLE: &str = "
epochs: 100
output_dir: output_dir
dataset:
  train:
    name: FirstOrderDataset
    batch_size: 8
    num_workers: 4
    use_shared_memory: False
    phase: train
    dataroot: data/first_order/Voxceleb/
    frame_shape: [256, 256, 3]
    id_sampling: True
    pairs_list: None
    time_flip: True
    num_repeats: 75
    create_frames_folder: False
    transforms:
      - {name: PairedRandomHorizontalFlip, prob: 0.5, keys: [image, image]}
      - {name: PairedColorJitter, brightness: 0.1, contrast: 0.1, saturation: 0.1, hue: 0.1, keys: [image, image]}
  test: {name: FirstOrderDataset, phase: test, frame_shape: [256, 256, 3]}
model:
  name: FirstOrderModel
  common_params: {num_kp: 10, num_channels: 3, estimate_jacobian: True}
  generator:
    name: FirstOrderGenerator
    kp_detector_cfg: {temperature: 0.1, block_expansion: 32, max_features: 1024, scale_factor: 0.25, num_blocks: 5}
    generator_cfg:
      block_expansion: 64
      max_features: 512
      num_down_blocks: 2
      num_bottleneck_blocks: 6
      estimate_occlusion_map: True
      dense_motion_params: {block_expansion: 64, max_features: 1024, num_blocks: 5, scale_factor: 0.25}
  discriminator:
    name: FirstOrderDiscriminator
    discriminator_cfg: {scales: [1], block_expansion: 32, max_features: 512, num_blocks: 4, sn: True}
  train_params:
    num_epochs: 100
    scales: [1, 0.5, 0.25, 0.125]
    checkpoint_freq: 50
    transform_params: {sigma_affine: 0.05, sigma_tps: 0.005, points_tps: 5}
    loss_weights:
      generator_gan: 0
      discriminator_gan: 1
      feature_matching: [10, 10, 10, 10]
      perceptual: [10, 10, 10, 10, 10]
      equivariance_value: 10
      equivariance_jacobian: 10
lr_scheduler:
  name: MultiStepDecay
  epoch_milestones: [237360, 356040]
  lr_generator: 2.0e-4
  lr_discriminator: 2.0e-4
  lr_kp_detector: 2.0e-4
reconstruction_params: {num_videos: 1000, format: '.mp4'}
visualizer_params: {kp_size: 5, draw_border: True, colormap: 'gist_rainbow'}
log_config: {interval: 10, visiual_interval: 10}
validate: {interval: 3000, save_img: false}
snapshot_config: {interval: 10}
optimizer: {name: Adam}
";

/// The same of first-order-model's `vox-256.yaml`.
const SIAROHIN: &str = "
dataset_params:
  root_dir: data/vox-png
  frame_shape: [256, 256, 3]
  id_sampling: True
  pairs_list: data/vox256.csv
  augmentation_params:
    flip_param: {horizontal_flip: True, time_flip: True}
    jitter_param: {brightness: 0.1, contrast: 0.1, saturation: 0.1, hue: 0.1}
model_params:
  common_params: {num_kp: 10, num_channels: 3, estimate_jacobian: True}
  kp_detector_params: {temperature: 0.1, block_expansion: 32, max_features: 1024, scale_factor: 0.25, num_blocks: 5}
  generator_params:
    block_expansion: 64
    max_features: 512
    num_down_blocks: 2
    num_bottleneck_blocks: 6
    estimate_occlusion_map: True
    dense_motion_params: {block_expansion: 64, max_features: 1024, num_blocks: 5, scale_factor: 0.25}
  discriminator_params: {scales: [1], block_expansion: 32, max_features: 512, num_blocks: 4, sn: True}
train_params:
  num_epochs: 100
  num_repeats: 75
  epoch_milestones: [60, 90]
  lr_generator: 2.0e-4
  lr_discriminator: 2.0e-4
  lr_kp_detector: 2.0e-4
  batch_size: 40
  scales: [1, 0.5, 0.25, 0.125]
  checkpoint_freq: 50
  transform_params: {sigma_affine: 0.05, sigma_tps: 0.005, points_tps: 5}
  loss_weights:
    generator_gan: 0
    discriminator_gan: 1
    feature_matching: [10, 10, 10, 10]
    perceptual: [10, 10, 10, 10, 10]
    equivariance_value: 10
    equivariance_jacobian: 10
reconstruction_params: {num_videos: 1000}
";

fn changed(text: &str, changes: &[&str]) -> Result<TrainConfig, Complaint> {
    let changes: Vec<String> = changes.iter().map(|&c| c.to_owned()).collect();
    TrainConfig::from_yaml(text, &changes)
}

#[test]
fn both_layouts_of_the_published_model_say_the_same() {
    let (paddle, siarohin) = (
        changed(PADDLE, &[]).unwrap(),
        changed(SIAROHIN, &[]).unwrap(),
    );
    assert_eq!(paddle.model, siarohin.model);
    assert_eq!(paddle.model.border, Border::None);
    assert_eq!(paddle.discriminator, siarohin.discriminator);
    assert!(paddle.discriminator.sn);
    assert_eq!(paddle.losses, siarohin.losses);
    assert!(!paddle.losses.adversarial());
    assert_eq!(paddle.data.augment, siarohin.data.augment);
    assert_eq!(paddle.data.augment.hue, 0.1);
    assert_eq!(paddle.rates, [2e-4; 3]);
    assert_eq!(paddle.data.pairs_list, None);
    assert_eq!(siarohin.data.pairs_list, Some("data/vox256.csv".into()));
    assert_eq!(siarohin.milestones, Milestones::Epochs(vec![60, 90]));
    assert_eq!(paddle.milestones, Milestones::Steps(vec![237_360, 356_040]));
    assert_eq!((paddle.data.batch_size, siarohin.data.batch_size), (8, 40));
}

#[test]
fn overrides_reach_into_sections_and_lists() {
    let config = changed(
        PADDLE,
        &[
            "dataset.train.batch_size=3",
            "dataset.train.transforms.1.hue=0.25",
            "model.train_params.loss_weights.perceptual=[1, 2, 3, 4, 5]",
            "lr_scheduler.epoch_milestones=2000000000000",
            "mimic.lip_distance=20",
            "mimic.landmarks=marks.safetensors",
        ],
    )
    .unwrap();
    assert_eq!(config.data.batch_size, 3);
    assert_eq!(config.data.augment.hue, 0.25);
    assert_eq!(config.losses.perceptual, [1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(
        config.milestones,
        Milestones::Steps(vec![2_000_000_000_000])
    );
    assert_eq!(config.recipe.lip_distance, 20.0);
}

#[test]
fn an_unknown_key_is_named_with_the_nearest_known() {
    for (change, key, known) in [
        ("dataset.train.batchsize=3", "batchsize", "batch_size"),
        (
            "lr_schedular.lr_generator=1",
            "lr_schedular",
            "lr_scheduler",
        ),
        (
            "lr_scheduler.lr_generater=1",
            "lr_generater",
            "lr_generator",
        ),
        (
            "model.generator.generator_cfg.num_bottelneck_blocks=1",
            "num_bottelneck_blocks",
            "num_bottleneck_blocks",
        ),
        (
            "model.train_params.loss_weights.perzeptual=1",
            "perzeptual",
            "perceptual",
        ),
        (
            "model.discriminator.discriminator_cfg.spectral=1",
            "spectral",
            "scales",
        ),
        ("mimic.lipdistance=1", "lipdistance", "lip_distance"),
    ] {
        let complaint = changed(PADDLE, &[change]).unwrap_err();
        assert!(
            complaint.contains(&format!("'{key}'")) && complaint.contains(&format!("'{known}'")),
            "{change}: {complaint}"
        );
        assert!(!complaint.contains('\n'));
    }
    let complaint = changed(
        PADDLE,
        &["dataset.train.transforms.0.name=PairedRandomHorizontlFlip"],
    )
    .unwrap_err();
    assert!(
        complaint.contains("PairedRandomHorizontalFlip"),
        "{complaint}"
    );
}

#[test]
fn impossible_numbers_are_refused() {
    for (change, said) in [
        ("dataset.train.batch_size=0", "batch_size"),
        ("lr_scheduler.lr_generator=-1", "lr_generator"),
        ("dataset.train.transforms.1.hue=2", "hue"),
        (
            "model.discriminator.discriminator_cfg.scales=[0.3]",
            "scale",
        ),
        ("mimic.lip_distance=1", "--landmarks"),
        ("optimizer.name=SGD", "Adam"),
        ("dataset.train.batch_size", "section.key=value"),
        ("model.common_params.num_kp=100000", "num_kp"),
        ("dataset.train.transforms.9.hue=2", "no entry 9"),
    ] {
        let complaint = changed(PADDLE, &[change]).unwrap_err();
        assert!(complaint.contains(said), "{change}: {complaint}");
    }
    assert!(changed("a: [", &[]).is_err());
    assert!(changed("3", &[]).is_err());
}

#[test]
fn rates_fall_at_milestones_or_along_a_cosine() {
    let config = changed(SIAROHIN, &[]).unwrap();
    let factor = |step| config.rate_factor(step, 10, 1000);
    assert_eq!(
        [factor(599), factor(600), factor(899), factor(900)].map(|v| (v * 100.0).round()),
        [100.0, 10.0, 10.0, 1.0]
    );
    let config = changed(SIAROHIN, &["mimic.cosine=true"]).unwrap();
    assert!((config.rate_factor(500, 10, 1000) - 0.5).abs() < 1e-9);
    assert!(config.rate_factor(1000, 10, 1000) < 1e-9);
}

#[test]
fn the_files_that_come_with_mimic_are_read() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    let mut read = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        // As `--landmarks` says, which those for faces ask for.
        let landmarks = ["mimic.landmarks=\"marks.safetensors\"".to_owned()];
        let config = TrainConfig::from_yaml(&text, &landmarks);
        assert!(config.is_ok(), "{}: {:?}", path.display(), config.err());
        read += 1;
    }
    assert!(read > 0);
}

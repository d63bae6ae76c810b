use super::*;

/// As PaddleGAN's `configs/firstorder_vox_mobile_256.yaml` is laid out.
const PADDLE: &str = "
epochs: 100
output_dir: output_dir
dataset:
  train:
    name: FirstOrderDataset
    batch_size: 8
    use_shared_memory: False
    frame_shape: [256, 256, 3]
    pairs_list: None
    transforms:
      - name: PairedRandomHorizontalFlip
        prob: 0.5
        keys: [image, image]
model:
  name: FirstOrderModelMobile
  mode: generator # should be kp_detector, generator, both
  kp_weight_path: None
  common_params:
    num_kp: 10
    num_channels: 3
    estimate_jacobian: True
  generator:
    name: FirstOrderGenerator
    kp_detector_cfg:
      temperature: 0.1
      block_expansion: 32
      max_features: 256
      scale_factor: 0.25
      num_blocks: 5
      mobile_net: True
    generator_cfg:
      block_expansion: 32
      max_features: 256
      num_down_blocks: 2
      num_bottleneck_blocks: 6
      estimate_occlusion_map: True
      dense_motion_params:
        block_expansion: 32
        max_features: 256
        num_blocks: 5
        scale_factor: 0.25
      mobile_net: True
  discriminator:
    name: FirstOrderDiscriminator
    discriminator_cfg: {scales: [1], sn: True}
  train_params: {scales: [1, 0.5, 0.25, 0.125]}
lr_scheduler:
  epoch_milestones: [2000000000000] #just fix learning rate
export_model:
  - {}
";

/// As first-order-model's `config/vox-256.yaml` is laid out.
const FIRST_ORDER: &str = "
dataset_params:
  root_dir: data/vox-png
  frame_shape: [256, 256, 3]
  augmentation_params:
    flip_param: {horizontal_flip: True}
model_params:
  common_params:
    num_kp: 10
    num_channels: 3
    # Using first or zero order model
    estimate_jacobian: True
  kp_detector_params:
     temperature: 0.1
     block_expansion: 32
     max_features: 1024
     scale_factor: 0.25
     num_blocks: 5
  generator_params:
    block_expansion: 64
    max_features: 512
    num_down_blocks: 2
    num_bottleneck_blocks: 6
    estimate_occlusion_map: True

    dense_motion_params:
      block_expansion: 64
      max_features: 1024
      num_blocks: 5
      scale_factor: 0.25
  discriminator_params:
    scales: [1]
    block_expansion: 32
train_params:
  num_epochs: 100
visualizer_params:
  colormap: 'gist_rainbow'
";

#[test]
fn published_files_are_read_as_they_are() {
    assert_eq!(
        ModelConfig::from_yaml(PADDLE).unwrap(),
        ModelConfig::preset("vox-mobile").unwrap()
    );
    assert_eq!(
        ModelConfig::from_yaml(FIRST_ORDER).unwrap(),
        ModelConfig::preset("vox-256").unwrap()
    );
    let large = FIRST_ORDER.replace("[256, 256, 3]", "[512, 512, 3]");
    assert_eq!(
        ModelConfig::from_yaml(&large).unwrap(),
        ModelConfig::preset("vox-512").unwrap()
    );
    let shallow = "     num_blocks: 4\n     single_jacobian_map: True";
    let single = FIRST_ORDER.replacen("     num_blocks: 5", shallow, 1);
    let single = ModelConfig::from_yaml(&single).unwrap();
    assert!(single.kp.single_jacobian_map);
    assert_eq!(
        (
            single.kp.num_blocks,
            single.generator.dense_motion.num_blocks
        ),
        (4, 5)
    );
}

#[test]
fn presets_are_sound_and_survive_a_weights_header() {
    for name in PRESETS {
        let config = ModelConfig::preset(name).unwrap();
        config.check().unwrap();
        assert_eq!(
            ModelConfig::from_json(&config.to_json(), None).unwrap(),
            config,
            "{name}"
        );
    }
    assert_eq!(ModelConfig::preset("vox-1024"), None);
}

#[test]
fn the_name_decides_about_the_border_only_where_the_header_is_silent() {
    let silent = r#"{"common_params": {"num_kp": 10, "num_channels": 3, "estimate_jacobian": true},
        "kp_detector_params": {"temperature": 0.1, "block_expansion": 16, "max_features": 256,
            "scale_factor": 0.25, "num_blocks": 5},
        "generator_params": {"block_expansion": 32, "max_features": 256, "num_down_blocks": 2,
            "num_bottleneck_blocks": 4, "estimate_occlusion_map": true, "dense_motion_params":
            {"block_expansion": 32, "max_features": 256, "num_blocks": 5, "scale_factor": 0.25}},
        "image_size": 256}"#;
    let small = ModelConfig::from_json(silent, Some("mimic-small")).unwrap();
    assert_eq!(small, ModelConfig::preset("mimic-small").unwrap());
    assert_eq!(small.border, Border::None);
    assert_eq!(
        ModelConfig::from_json(silent, Some("other"))
            .unwrap()
            .border,
        Border::PaddleGan
    );
    let spoken = silent.replace(
        "\"image_size\"",
        "\"border\": \"paddlegan\", \"image_size\"",
    );
    let spoken = ModelConfig::from_json(&spoken, Some("mimic-small")).unwrap();
    assert_eq!(spoken.border, Border::PaddleGan);
}

fn complaint(text: &str) -> String {
    let error = ModelConfig::from_yaml(text).expect_err(text).to_string();
    assert!(!error.contains('\n'), "{error}");
    error
}

#[test]
fn missing_and_unknown_keys_are_named() {
    let missing = complaint(&FIRST_ORDER.replace("     temperature: 0.1\n", ""));
    assert!(missing.contains("temperature"), "{missing}");
    let unknown = complaint(&FIRST_ORDER.replace("num_down_blocks", "num_dwon_blocks"));
    assert!(unknown.contains("num_dwon_blocks"), "{unknown}");
    let wrong = complaint(&FIRST_ORDER.replace("num_kp: 10", "num_kp: ten"));
    assert!(wrong.contains("ten") || wrong.contains("line 9"), "{wrong}");
    let header = ModelConfig::preset("vox-256").unwrap().to_json();
    let unknown = ModelConfig::from_json(&header.replace("num_kp", "kps"), None).unwrap_err();
    assert!(unknown.to_string().contains("kps"), "{unknown}");
}

#[test]
fn every_number_has_limits_and_is_named_when_it_is_beyond() {
    for (from, to, named) in [
        ("num_kp: 10", "num_kp: 0", "num_kp = 0"),
        ("num_kp: 10", "num_kp: 1000", "num_kp = 1000"),
        ("num_channels: 3", "num_channels: 4", "num_channels"),
        ("[256, 256, 3]", "[100000, 100000, 3]", "image_size"),
        ("[256, 256, 3]", "[250, 250, 3]", "image_size"),
        ("[256, 256, 3]", "[256, 128, 3]", "frame_shape"),
        ("[256, 256, 3]", "[]", "frame_shape"),
        ("[256, 256, 3]", "[32, 32, 3]", "image_size"),
        (
            "block_expansion: 32",
            "block_expansion: 999999999",
            "kp_detector block_expansion",
        ),
        (
            "block_expansion: 64",
            "block_expansion: 0",
            "generator block_expansion",
        ),
        (
            "max_features: 512",
            "max_features: 5000",
            "generator max_features",
        ),
        (
            "num_down_blocks: 2",
            "num_down_blocks: 60",
            "num_down_blocks",
        ),
        (
            "num_bottleneck_blocks: 6",
            "num_bottleneck_blocks: 600",
            "num_bottleneck_blocks",
        ),
        (
            "     num_blocks: 5",
            "     num_blocks: 63",
            "kp_detector num_blocks",
        ),
        (
            "     num_blocks: 5",
            "     num_blocks: 5\n     pad: 900",
            "pad",
        ),
        ("temperature: 0.1", "temperature: 0", "temperature"),
        ("temperature: 0.1", "temperature: .nan", "temperature"),
        (
            "     scale_factor: 0.25",
            "     scale_factor: 0.3",
            "kp_detector scale_factor",
        ),
        (
            "     scale_factor: 0.25",
            "     scale_factor: 0",
            "kp_detector scale_factor",
        ),
        (
            "     scale_factor: 0.25",
            "     scale_factor: -.inf",
            "kp_detector scale_factor",
        ),
        (
            "block_expansion: 64\n    max_features: 512",
            "block_expansion: 4096\n    max_features: 4096",
            "parameters",
        ),
    ] {
        let text = FIRST_ORDER.replacen(from, to, 1);
        assert_ne!(text, FIRST_ORDER, "{from}");
        let error = complaint(&text);
        assert!(error.contains(named), "{to}: {error}");
    }
}

#[test]
fn files_that_are_no_configuration_are_refused_in_one_sentence() {
    complaint("");
    complaint("just words");
    complaint("[1, 2, 3]");
    complaint("model_params: {common_params: ");
    assert!(complaint("dataset: {}").contains("describes no model"));
    complaint(&"[".repeat(100_000));
    complaint(&"a: ".repeat(10_000));
    // Ten anchors that multiply by ten each.
    let mut laughs = String::from("a0: &a0 [x]\n");
    for i in 1..10 {
        let before = vec![format!("*a{}", i - 1); 10].join(", ");
        laughs += &format!("a{i}: &a{i} [{before}]\n");
    }
    complaint(&laughs);
    complaint(&format!("{FIRST_ORDER}\nname: {}", "x".repeat(3 << 20)));
}

#[test]
fn scale_factors_are_whole_reductions() {
    let mut config = ModelConfig::preset("vox-256").unwrap();
    for (scale, wanted) in [(1.0, 1), (0.5, 2), (0.25, 4), (0.3333, 3), (0.0625, 16)] {
        config.kp.scale_factor = scale;
        assert_eq!(config.kp.factor(), wanted);
    }
}

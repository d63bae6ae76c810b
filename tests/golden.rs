//! The networks and the arithmetic of motion against what the reference computed.
//!
//! The records come from PaddleGAN, `*.no_border_blend` from first-order-model, `mimic-small` from
//! the networks of `benches/peers` in PyTorch. All pictures in them are drawn.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "shows the distances to the record")]

mod common;

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use common::Comparison;
use mimic::animate::{MotionOptions, normalise};
use mimic::model::{
    Border, FaceDetector, GeneratorOutput, Gfpgan, Gpen, KeypointTensors, Keypoints, ModelConfig,
    Networks, S3fd, SourceFeatures, gfpgan, gpen, procedural, s3fd,
};

/// Largest difference of keypoints and jacobians.
const KEYPOINTS: f64 = 1e-4;
/// Largest difference of deformation, mask and occlusion map.
const MAPS: f64 = 1e-3;
/// Mean and largest difference of pictures in 0..1.
const PICTURES: (f64, f64) = (1e-3, 2e-2);

#[test]
fn the_full_networks_compute_what_the_reference_does() {
    compare("vox_tiny", false);
}

#[test]
fn the_mobile_networks_compute_what_the_reference_does() {
    compare("mobile_tiny", true);
}

#[test]
fn without_border_handling_the_picture_is_the_original_models() {
    let Recorded {
        tensors,
        mut config,
    } = recorded("vox_tiny", false);
    config.border = Border::None;
    let networks = networks(&config, "vox_tiny");
    let source = encode(&networks, &tensors["source"]);
    let kp_source = common::keypoints(&tensors, "kp_source");
    let kp_norm = common::keypoints(&tensors, "kp_norm.1.relative_adapt");
    let output = networks
        .generator
        .forward(&source, &kp_source, &kp_norm)
        .unwrap();
    let mut comparison = Comparison::default();
    let name = "out.1.relative_adapt.prediction.no_border_blend";
    comparison.add(
        name,
        &output.prediction,
        &tensors[name],
        PICTURES.0,
        PICTURES.1,
    );
    comparison.judge();
}

#[test]
fn the_embedded_model_computes_what_it_was_trained_to() {
    let recorded = common::tensors("tests/fixtures/mimic-small.golden.safetensors");
    let weights: BTreeMap<String, Tensor> = common::tensors("weights/mimic-small.safetensors")
        .into_iter()
        .collect();
    let config = ModelConfig::preset("mimic-small").unwrap();
    let networks = Networks::new(&config, &weights, &Device::Cpu).unwrap();

    let detect = |name: &str| {
        networks
            .keypoint_detector
            .forward(&common::pictures(&recorded[name]))
            .unwrap()
    };
    let (kp_source, kp_initial) = (detect("source"), detect("driving_initial"));
    let kp_driving = detect("driving");
    let options = MotionOptions {
        relative: true,
        adapt_scale: false,
        gain: 1.0,
    };
    let kp_norm = move_keypoints(&kp_source, &kp_driving, &kp_initial, options);
    let source = encode(&networks, &recorded["source"]);
    let output = networks
        .generator
        .forward(&source, &kp_source, &kp_norm)
        .unwrap();

    let mut comparison = Comparison::default();
    for (name, got) in [
        ("kp_source", &kp_source),
        ("kp_initial", &kp_initial),
        ("kp_driving", &kp_driving),
        ("kp_norm", &kp_norm),
    ] {
        comparison.add_keypoints(name, got, &common::keypoints(&recorded, name), 1e-3);
    }
    let occlusion = output.occlusion_map.as_ref().unwrap();
    for (name, got) in [
        ("deformation", &output.deformation),
        ("occlusion", occlusion),
        ("prediction", &output.prediction),
    ] {
        comparison.add(name, got, &recorded[name], 1e-3, 2e-2);
    }
    comparison.judge();
}

#[test]
fn the_embedded_detector_computes_what_it_was_trained_to() {
    let recorded = common::tensors("tests/fixtures/mimic-face.golden.safetensors");
    let weights = common::tensors("weights/mimic-face.safetensors");
    let vb = VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
    let network = FaceDetector::new(vb).unwrap();
    let levels = network
        .forward(&common::pictures(&recorded["image"]))
        .unwrap();
    let mut comparison = Comparison::default();
    for (i, level) in levels.iter().enumerate() {
        let name = format!("level{i}");
        comparison.add(&name, level, &recorded[&name], 1e-4, 1e-3);
    }
    comparison.judge();
}

#[test]
fn s3fd_computes_what_the_reference_does() {
    let recorded = common::tensors("tests/fixtures/s3fd_procedural.safetensors");
    let tensors: HashMap<String, Tensor> = procedural::s3fd("s3fd").unwrap().into_iter().collect();
    let network = S3fd::new(VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu)).unwrap();
    let rgb = (common::pictures(&recorded["image"]) * 255.0).unwrap();
    let bgr: Vec<Tensor> = (0..3)
        .map(|i| {
            let channel = rgb.narrow(1, 2 - i, 1).unwrap();
            (channel - f64::from(s3fd::MEAN_BGR[i])).unwrap()
        })
        .collect();
    let scales = network.forward(&Tensor::cat(&bgr, 1).unwrap()).unwrap();
    assert_eq!(scales.len(), s3fd::SCALES);
    let mut comparison = Comparison::default();
    for (i, scale) in scales.iter().enumerate() {
        for (name, got) in [("cls", &scale.classes), ("reg", &scale.boxes)] {
            let name = format!("{name}{i}");
            let wanted = &recorded[&name];
            let largest = wanted.abs().unwrap().max_all().unwrap();
            let largest = f64::from(largest.to_scalar::<f32>().unwrap());
            comparison.add(&name, got, wanted, 1e-4 * largest, 1e-3 * largest);
        }
    }
    comparison.judge();
}

struct Recorded {
    tensors: HashMap<String, Tensor>,
    config: ModelConfig,
}

fn recorded(name: &str, mobile: bool) -> Recorded {
    let config = common::tiny(mobile);
    config.check().unwrap();
    let tensors = common::tensors(&format!("tests/fixtures/{name}.safetensors"));
    Recorded { tensors, config }
}

fn networks(config: &ModelConfig, name: &str) -> Networks {
    let weights = procedural::tensors(config, name).unwrap();
    Networks::new(config, &weights, &Device::Cpu).unwrap()
}

fn encode(networks: &Networks, picture: &Tensor) -> SourceFeatures {
    networks
        .generator
        .encode_source(&common::pictures(picture))
        .unwrap()
}

fn move_keypoints(
    source: &KeypointTensors,
    driving: &KeypointTensors,
    initial: &KeypointTensors,
    options: MotionOptions,
) -> KeypointTensors {
    let one = |kp: &KeypointTensors| Keypoints::from_tensors(kp).unwrap().remove(0);
    let moved = normalise(&one(source), &one(driving), &one(initial), options);
    Keypoints::to_tensors(&[moved], &Device::Cpu).unwrap()
}

/// Every recorded quantity, from the recorded pictures on.
fn compare(name: &str, mobile: bool) {
    let Recorded { tensors, config } = recorded(name, mobile);
    let networks = networks(&config, name);
    let mut comparison = Comparison::default();
    let mut compared = vec!["source".to_owned(), "driving".to_owned()];

    let photo = common::pictures(&tensors["source"]);
    let kp_source = networks.keypoint_detector.forward(&photo).unwrap();
    comparison.add_keypoints(
        "kp_source",
        &kp_source,
        &common::keypoints(&tensors, "kp_source"),
        KEYPOINTS,
    );
    compared.push("kp_source".into());
    let source = encode(&networks, &tensors["source"]);

    let frames = common::pictures(&tensors["driving"]);
    let detect = |frame: usize| {
        networks
            .keypoint_detector
            .forward(&frames.narrow(0, frame, 1).unwrap())
            .unwrap()
    };
    let initial = detect(0);
    for frame in 0..3 {
        let kp_driving = detect(frame);
        let name = format!("kp_driving.{frame}");
        let wanted = common::keypoints(&tensors, &name);
        comparison.add_keypoints(&name, &kp_driving, &wanted, KEYPOINTS);
        compared.push(name);
        for (mode, relative) in [("relative_adapt", true), ("absolute", false)] {
            let options = MotionOptions {
                relative,
                adapt_scale: relative,
                gain: 1.0,
            };
            let kp_norm = move_keypoints(&kp_source, &kp_driving, &initial, options);
            let name = format!("kp_norm.{frame}.{mode}");
            let wanted = common::keypoints(&tensors, &name);
            comparison.add_keypoints(&name, &kp_norm, &wanted, KEYPOINTS);
            compared.push(name);

            let output = networks
                .generator
                .forward(&source, &kp_source, &kp_norm)
                .unwrap();
            for (quantity, got, (mean, max)) in quantities(&networks, &source, &output) {
                for (name, got) in [
                    (format!("out.{frame}.{mode}.{quantity}"), got.clone()),
                    (
                        format!("out.{frame}.{mode}.{quantity}.stride2"),
                        every_second(&got),
                    ),
                ] {
                    if let Some(wanted) = tensors.get(&name) {
                        comparison.add(&name, &got, wanted, mean, max);
                        compared.push(name);
                    }
                }
            }
        }
    }
    for name in tensors
        .keys()
        .filter(|name| !name.ends_with("no_border_blend"))
    {
        let covered = compared.iter().any(|done| name.starts_with(done.as_str()));
        assert!(covered, "{name} was recorded and not compared");
    }
    comparison.judge();
}

fn quantities(
    networks: &Networks,
    source: &SourceFeatures,
    output: &GeneratorOutput,
) -> Vec<(&'static str, Tensor, (f64, f64))> {
    let deformed = networks
        .generator
        .deform(&source.image, &output.deformation)
        .unwrap();
    vec![
        ("prediction", output.prediction.clone(), PICTURES),
        ("deformed", deformed, PICTURES),
        // Recorded in half precision.
        ("sparse_deformed", output.sparse_deformed.clone(), PICTURES),
        ("deformation", output.deformation.clone(), (MAPS, MAPS)),
        ("mask", output.mask.clone(), (MAPS, MAPS)),
        (
            "occlusion_map",
            output.occlusion_map.clone().unwrap(),
            (MAPS, MAPS),
        ),
    ]
}

/// Every second row and column.
fn every_second(picture: &Tensor) -> Tensor {
    let (h, w) = (picture.rank() - 2, picture.rank() - 1);
    let even = |n: usize| Tensor::arange_step(0u32, n as u32, 2, &Device::Cpu).unwrap();
    let picture = picture.contiguous().unwrap();
    let rows = picture.index_select(&even(picture.dims()[h]), h).unwrap();
    rows.index_select(&even(rows.dims()[w]), w).unwrap()
}

#[test]
fn gpen_restores_what_the_reference_does() {
    let recorded = common::tensors("tests/fixtures/gpen64_procedural.safetensors");
    let shape = gpen::Shape::published(64);
    let tensors = procedural::gpen(&shape, "gpen64").unwrap();
    let network = Gpen::new(&shape, &tensors, &Device::Cpu).unwrap();
    let output = network.forward(&signed(&recorded["image"])).unwrap();
    relative("gpen64", &output, &recorded["output"]);
}

/// Recorded by PyTorch 2.15 from the published program's `GFPGANv1Clean` of 64 pixels, 32 style features and
/// a sixteenth of the width, filled by `procedural::gfpgan`, with the noise of its buffers.
#[test]
fn gfpgan_restores_what_pytorch_does() {
    let recorded = common::tensors("tests/fixtures/gfpgan64_procedural.safetensors");
    let shape = gfpgan::Shape {
        widths: vec![16; 5],
        style: 32,
    };
    let tensors = procedural::gfpgan(&shape, "gfpgan64").unwrap();
    let network = Gfpgan::new(&shape, &tensors, &Device::Cpu).unwrap();
    let output = network.forward(&signed(&recorded["image"])).unwrap();
    relative("gfpgan64", &output, &recorded["output"]);
}

#[test]
fn restorers_take_the_tensors_that_their_publishers_save() {
    let empty = |file: &str| -> BTreeMap<String, Tensor> {
        let text = std::fs::read_to_string(common::file(file)).unwrap();
        let saved: BTreeMap<String, Vec<usize>> = serde_json::from_str(&text).unwrap();
        let tensor = |shape| Tensor::zeros(shape, DType::U8, &Device::Cpu).unwrap();
        saved
            .into_iter()
            .map(|(name, shape)| (name, tensor(shape)))
            .collect()
    };
    let shapes = |tensors: &BTreeMap<String, Tensor>| -> BTreeMap<String, Vec<usize>> {
        let dims = |tensor: &Tensor| tensor.dims().to_vec();
        tensors
            .iter()
            .map(|(name, tensor)| (name.clone(), dims(tensor)))
            .collect()
    };
    for (file, size) in [
        ("tests/fixtures/gpen64.keys.json", 64),
        ("tests/fixtures/gpen512.keys.json", 512),
        ("tests/fixtures/gpen512.torch.keys.json", 512),
    ] {
        let tensors = gpen::tidy(empty(file)).unwrap();
        let shape = gpen::Shape::of(&tensors).unwrap();
        assert_eq!(
            (shape.size(), &shape),
            (size, &gpen::Shape::published(size))
        );
        assert_eq!(shapes(&tensors), shape.expected_tensors(), "{file}");
    }
    let tensors = gfpgan::tidy(empty("tests/fixtures/gfpgan512.keys.json"));
    let shape = gfpgan::Shape::of(&tensors).unwrap();
    assert_eq!(shape, gfpgan::Shape::published(512));
    assert_eq!(shapes(&tensors), shape.expected_tensors());
    assert_eq!(gpen::Shape::of(&tensors), None);
}

/// A recorded picture as restorers take it.
fn signed(picture: &Tensor) -> Tensor {
    ((common::pictures(picture) * 2.0).unwrap() - 1.0).unwrap()
}

/// At most a thousandth of the largest value away.
fn relative(name: &str, got: &Tensor, wanted: &Tensor) {
    let largest = wanted.abs().unwrap().max_all().unwrap();
    let limit = 1e-3 * f64::from(largest.to_scalar::<f32>().unwrap());
    let mut comparison = Comparison::default();
    comparison.add(name, got, wanted, limit, limit);
    comparison.judge();
}

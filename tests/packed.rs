//! The CPU engine against the networks in candle and against what the reference computed, on every
//! instruction set of this machine.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "shows the distances")]

mod common;

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use common::Comparison;
use image::RgbaImage;
use mimic::animate::pictures;
use mimic::frame::Prediction;
use mimic::model::face_detector::OUTPUTS;
use mimic::model::packed::{self, Engine};
use mimic::model::{
    FaceDetector, Gfpgan, Gpen, Keypoints, ModelConfig, Networks, S3fd, gfpgan, gpen, procedural,
    s3fd,
};
use mimic::ops::simd::Isa;
use mimic::ops::threads::Workers;

#[test]
fn full_networks_are_the_same_packed() {
    let config = common::tiny(false);
    let weights = procedural::tensors(&config, "vox_tiny").unwrap();
    let recorded = common::tensors("tests/fixtures/vox_tiny.safetensors");
    compare(
        "vox_tiny",
        &config,
        &weights,
        &recorded,
        "kp_norm.1.relative_adapt",
        "driving",
    );
}

#[test]
fn mobile_networks_are_the_same_packed() {
    let config = common::tiny(true);
    let weights = procedural::tensors(&config, "mobile_tiny").unwrap();
    let recorded = common::tensors("tests/fixtures/mobile_tiny.safetensors");
    compare(
        "mobile_tiny",
        &config,
        &weights,
        &recorded,
        "kp_norm.1.relative_adapt",
        "driving",
    );
}

#[test]
fn the_embedded_model_is_the_same_packed() {
    let config = ModelConfig::preset("mimic-small").unwrap();
    let weights = common::tensors("weights/mimic-small.safetensors")
        .into_iter()
        .collect();
    let recorded = common::tensors("tests/fixtures/mimic-small.golden.safetensors");
    compare(
        "mimic-small",
        &config,
        &weights,
        &recorded,
        "kp_norm",
        "driving",
    );
}

#[test]
fn gpen_is_the_same_packed() {
    // Widths that fill no block, one and several.
    let shape = gpen::Shape {
        widths: vec![40, 24, 33, 16, 8],
        style: 20,
        mapping: 2,
    };
    let weights = procedural::gpen(&shape, "gpen").unwrap();
    let network = Gpen::new(&shape, &weights, &Device::Cpu).unwrap();
    let (picture, input) = a_face(shape.size());
    let wanted = network.forward(&input).unwrap();
    for isa in Isa::available() {
        let workers = Workers::with_isa(2, isa).unwrap();
        let mut packed = packed::Gpen::new(&shape, &weights, workers).unwrap();
        // The second time buffers hold what is left of the first.
        for _ in 0..2 {
            same_face(isa.name(), packed.run(&picture), &wanted);
        }
    }
}

#[test]
fn gfpgan_is_the_same_packed() {
    let shape = gfpgan::Shape {
        widths: vec![32, 16, 48, 32, 16],
        style: 20,
    };
    let weights = procedural::gfpgan(&shape, "gfpgan").unwrap();
    let network = Gfpgan::new(&shape, &weights, &Device::Cpu).unwrap();
    let (picture, input) = a_face(shape.size());
    let wanted = network.forward(&input).unwrap();
    for isa in Isa::available() {
        let workers = Workers::with_isa(2, isa).unwrap();
        let mut packed = packed::Gfpgan::new(&shape, &weights, workers).unwrap();
        for _ in 0..2 {
            same_face(isa.name(), packed.run(&picture), &wanted);
        }
    }
}

#[test]
fn s3fd_is_the_same_packed() {
    let weights = procedural::s3fd("s3fd").unwrap();
    let vb = VarBuilder::from_tensors(
        weights.clone().into_iter().collect(),
        DType::F32,
        &Device::Cpu,
    );
    let network = S3fd::new(vb).unwrap();
    let workers = Workers::new(2).unwrap();
    let mut packed = packed::S3fd::new(&weights, workers).unwrap();
    // Odd sides: halvings leave rows and columns out.
    for (width, height) in [(171, 98), (32, 32), (64, 130)] {
        let picture = RgbaImage::from_fn(width, height, |x, y| {
            let level = |step: u32| (x * step + y * (step + 4) * (1 + x / 40)) as u8;
            image::Rgba([level(3), level(5), level(9), 255])
        });
        let plane = (width * height) as usize;
        let mut values = vec![0f32; 3 * plane];
        for (i, pixel) in picture.pixels().enumerate() {
            for c in 0..3 {
                values[c * plane + i] = f32::from(pixel.0[2 - c]) - s3fd::MEAN_BGR[c];
            }
        }
        let shape = (1, 3, height as usize, width as usize);
        let input = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
        let wanted = network.forward(&input).unwrap();
        let scales = packed.run(&picture, width as usize, height as usize);
        assert_eq!(scales.len(), wanted.len());
        let mut comparison = Comparison::default();
        for (i, (cells, wanted)) in scales.iter().zip(&wanted).enumerate() {
            let values = s3fd::classes(i);
            let none = |cell: &[f32]| cell.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let plane = |value: &dyn Fn(&[f32; 16]) -> f32| -> Vec<f32> {
                cells.values.iter().map(value).collect()
            };
            let mut classes = plane(&|cell| none(&cell[..values - 1]));
            classes.extend(plane(&|cell| cell[values - 1]));
            let boxes: Vec<f32> = (0..4)
                .flat_map(|b| plane(&|cell| cell[values + b]))
                .collect();
            for (what, made, wanted) in [
                ("classes", classes, &wanted.classes),
                ("boxes", boxes, &wanted.boxes),
            ] {
                let made = Tensor::from_vec(made, wanted.shape(), &Device::Cpu).unwrap();
                let largest = wanted.abs().unwrap().max_all().unwrap();
                let limit = 1e-3 * f64::from(largest.to_scalar::<f32>().unwrap());
                let name = format!("{width}x{height}/{} {what}", cells.stride);
                comparison.add(&name, &made, wanted, limit, limit);
            }
        }
        comparison.judge();
    }
}

/// A picture for the restorers, flat and as candle takes it.
fn a_face(side: usize) -> (Vec<f32>, Tensor) {
    let picture: Vec<f32> = (0..3 * side * side)
        .map(|i| (i as f32 * 0.37).sin() * (i as f32 * 0.011).cos())
        .collect();
    let input = Tensor::from_slice(&picture, (1, 3, side, side), &Device::Cpu).unwrap();
    (picture, input)
}

fn same_face(name: &str, made: Vec<f32>, wanted: &Tensor) {
    let largest = wanted.abs().unwrap().max_all().unwrap();
    let limit = 1e-4 * f64::from(largest.to_scalar::<f32>().unwrap());
    let made = Tensor::from_vec(made, wanted.shape(), &Device::Cpu).unwrap();
    let mut comparison = Comparison::default();
    comparison.add(name, &made, wanted, limit, limit);
    comparison.judge();
}

#[test]
fn the_face_detector_is_the_same_packed() {
    let weights = common::tensors("weights/mimic-face.safetensors");
    let vb = VarBuilder::from_tensors(weights.clone(), DType::F32, &Device::Cpu);
    let network = FaceDetector::new(vb).unwrap();
    let weights: BTreeMap<String, Tensor> = weights.into_iter().collect();
    for isa in Isa::available() {
        let workers = Workers::with_isa(2, isa).unwrap();
        let mut packed = packed::FaceDetector::new(&weights, workers).unwrap();
        // Larger, then smaller: buffers hold what is left of the picture before.
        for (width, height) in [(320, 192), (32, 32), (64, 352)] {
            let picture = RgbaImage::from_fn(width, height, |x, y| {
                let level = |step: u32| (x * step + y * (step + 4) * (1 + x / 40)) as u8;
                image::Rgba([level(3), level(5), level(9), 255])
            });
            let tensor = pictures::to_tensor(&picture, &Device::Cpu).unwrap();
            let wanted = network.forward(&tensor).unwrap();
            let mut comparison = Comparison::default();
            let levels = packed.run(&picture, width as usize, height as usize);
            for (cells, wanted) in levels.iter().zip(&wanted) {
                let name = format!("{} {width}x{height}/{}", isa.name(), cells.stride);
                let planes: Vec<f32> = (0..OUTPUTS)
                    .flat_map(|output| cells.values.iter().map(move |cell| cell[output]))
                    .collect();
                let shape = (1, OUTPUTS, cells.height, cells.width);
                let got = Tensor::from_vec(planes, shape, &Device::Cpu).unwrap();
                comparison.add(&name, &got, wanted, 1e-4, 1e-3);
            }
            comparison.judge();
        }
    }
}

#[test]
fn odd_shapes_of_model_are_the_same_packed() {
    let base = || {
        let mut config = common::tiny(false);
        config.image_size = 96;
        config.num_kp = 3;
        config.kp.num_blocks = 2;
        config.generator.dense_motion.num_blocks = 2;
        config.generator.num_bottleneck_blocks = 1;
        config
    };
    let with = |change: &dyn Fn(&mut ModelConfig)| {
        let mut config = base();
        change(&mut config);
        config.check().unwrap();
        let weights = procedural::tensors(&config, "odd").unwrap();
        let pixels = |phase: f32| -> Vec<u8> {
            let values =
                (0..config.image_size.pow(2) * 3).map(|i| (i as f32 * 0.013 + phase).sin());
            values.map(|v| (v * 127.0 + 128.0) as u8).collect()
        };
        let side = config.image_size as usize;
        let picture =
            |phase| Tensor::from_vec(pixels(phase), (side, side, 3), &Device::Cpu).unwrap();
        let recorded = HashMap::from([
            ("source".into(), picture(0.0)),
            ("driving".into(), picture(1.0)),
        ]);
        compare("odd", &config, &weights, &recorded, "", "driving");
    };
    with(&|_| ());
    with(&|c| (c.kp.mobile, c.generator.mobile) = (false, true));
    with(&|c| c.estimate_jacobian = false);
    with(&|c| c.kp.single_jacobian_map = true);
    with(&|c| c.kp.pad = 3);
    with(&|c| c.kp.scale_factor = 1.0);
    with(&|c| c.generator.num_bottleneck_blocks = 0);
    with(&|c| c.generator.estimate_occlusion_map = false);
    with(&|c| c.generator.dense_motion.scale_factor = 0.5);
    with(&|c| c.generator.num_down_blocks = 3);
    with(&|c| c.generator.block_expansion = 20);
}

#[test]
fn bf16_pictures_of_the_embedded_model_are_within_a_step_of_255() {
    let Some(isa) = Isa::bf16() else {
        return println!("skipped: this machine has no AVX-512 BF16");
    };
    let mut comparison = Comparison::default();
    // Weights that were never trained amplify every rounding: those two are held to what bf16 costs
    // them at best, by direct sums too.
    for (name, config, weights, file, (mean, max)) in [
        (
            "vox_tiny",
            common::tiny(false),
            None,
            "vox_tiny.safetensors",
            (2.0 / 255.0, 0.25),
        ),
        (
            "mobile_tiny",
            common::tiny(true),
            None,
            "mobile_tiny.safetensors",
            (10.0 / 255.0, 1.0),
        ),
        (
            "mimic-small",
            ModelConfig::preset("mimic-small").unwrap(),
            Some("weights/mimic-small.safetensors"),
            "mimic-small.golden.safetensors",
            (1.0 / 255.0, 0.05),
        ),
    ] {
        let recorded = common::tensors(&format!("tests/fixtures/{file}"));
        let weights = match weights {
            Some(file) => common::tensors(file).into_iter().collect(),
            None => procedural::tensors(&config, name).unwrap(),
        };
        let pictures = [Isa::detected(), isa].map(|isa| {
            let workers = Workers::with_isa(2, isa).unwrap();
            let mut engine = Engine::new(&config, &weights, workers).unwrap();
            let source = engine.encode(&rgba(&recorded["source"]));
            let driving = engine.keypoints(&rgba(&recorded["driving"]));
            let tensor = |kp: &Keypoints| {
                Keypoints::to_tensors(std::slice::from_ref(kp), &Device::Cpu).unwrap()
            };
            let side = config.image_size as usize;
            let picture = engine.generate_planes(&source, &driving);
            let picture = Tensor::from_vec(picture, (3, side, side), &Device::Cpu).unwrap();
            (tensor(&source.keypoints), tensor(&driving), picture)
        });
        let [
            (kp_source, kp_driving, exact),
            (bf16_source, bf16_driving, bf16),
        ] = pictures;
        let name = |what: &str| format!("{name} {what}");
        comparison.add_keypoints(&name("kp_source"), &bf16_source, &kp_source, 1e-4);
        comparison.add_keypoints(&name("kp_driving"), &bf16_driving, &kp_driving, 1e-4);
        comparison.add(&name("prediction"), &bf16, &exact, mean, max);
    }
    comparison.judge();
}

#[test]
fn engines_beside_each_other_make_the_same_frames() {
    let config = common::tiny(false);
    let weights = procedural::tensors(&config, "vox_tiny").unwrap();
    let recorded = common::tensors("tests/fixtures/vox_tiny.safetensors");
    let (photo, frame) = (rgba(&recorded["source"]), rgba(&recorded["driving"]));
    for isa in Isa::available().into_iter().chain(Isa::bf16()) {
        let workers = Workers::with_isa(3, isa).unwrap();
        let mut engine = Engine::new(&config, &weights, workers).unwrap();
        let source = engine.encode(&photo);
        let pose = engine.keypoints(&frame);
        let mut wanted = Prediction::default();
        engine.generate(&source, &pose, &mut wanted);
        let mut lanes = [1, 2].map(|threads| engine.beside(threads).unwrap());
        std::thread::scope(|scope| {
            for lane in &mut lanes {
                let (source, wanted) = (&source, &wanted);
                let (photo, frame) = (&photo, &frame);
                scope.spawn(move || {
                    for _ in 0..3 {
                        let mut made = Prediction::default();
                        // Another picture in between leaves nothing behind.
                        lane.keypoints(photo);
                        lane.generate(source, &source.keypoints, &mut made);
                        let pose = lane.keypoints(frame);
                        lane.generate(source, &pose, &mut made);
                        assert!(made == *wanted, "{}", isa.name());
                    }
                });
            }
        });
    }
}

#[test]
fn singular_jacobians_leave_a_picture() {
    let config = common::tiny(false);
    let weights = procedural::tensors(&config, "vox_tiny").unwrap();
    let recorded = common::tensors("tests/fixtures/vox_tiny.safetensors");
    let mut engine = Engine::new(&config, &weights, Workers::new(2).unwrap()).unwrap();
    let source = engine.encode(&rgba(&recorded["source"]));
    let sound = engine.keypoints(&rgba(&recorded["driving"]));
    for singular in [[[0.0; 2]; 2], [[1.0, 2.0], [2.0, 4.0]]] {
        let mut driving = sound.clone();
        driving.jacobian.as_mut().unwrap()[3] = singular;
        let mut out = Prediction::default();
        engine.generate(&source, &driving, &mut out);
        let finite = |values: &[f32]| values.iter().all(|v| v.is_finite());
        assert!(finite(out.deformation.as_flattened()), "{singular:?}");
        assert!(finite(&out.occlusion), "{singular:?}");
        let planes = engine.generate_planes(&source, &driving);
        assert!(
            planes.iter().all(|v| (0.0..=1.0).contains(v)),
            "{singular:?}"
        );
    }
}

/// Both engines from the same keypoints, and the detectors' own keypoints.
fn compare(
    name: &str,
    config: &ModelConfig,
    weights: &BTreeMap<String, Tensor>,
    recorded: &HashMap<String, Tensor>,
    kp_norm: &str,
    driving: &str,
) {
    let networks = Networks::new(config, weights, &Device::Cpu).unwrap();
    let photo = common::pictures(&recorded["source"]);
    let frame = common::pictures(&recorded[driving])
        .narrow(0, 0, 1)
        .unwrap();
    let kp_photo = networks.keypoint_detector.forward(&photo).unwrap();
    let kp_frame = networks.keypoint_detector.forward(&frame).unwrap();
    let (kp_source, kp_driving) = if kp_norm.is_empty() {
        (kp_photo.clone(), kp_frame.clone())
    } else {
        (
            common::keypoints(recorded, "kp_source"),
            common::keypoints(recorded, kp_norm),
        )
    };
    let features = networks.generator.encode_source(&photo).unwrap();
    let wanted = networks
        .generator
        .forward(&features, &kp_source, &kp_driving)
        .unwrap();
    let plain = |kp| Keypoints::from_tensors(kp).unwrap().remove(0);

    for isa in Isa::available() {
        let workers = Workers::with_isa(2, isa).unwrap();
        let mut engine = Engine::new(config, weights, workers).unwrap();
        let mut source = engine.encode(&rgba(&recorded["source"]));
        let found = engine.keypoints(&rgba(&recorded[driving]));
        let mut comparison = Comparison::default();
        let tensors =
            |kp: &Keypoints| Keypoints::to_tensors(std::slice::from_ref(kp), &Device::Cpu);
        let label = |what: &str| format!("{name} {} {what}", isa.name());
        comparison.add_keypoints(
            &label("kp_source"),
            &tensors(&source.keypoints).unwrap(),
            &kp_photo,
            1e-4,
        );
        comparison.add_keypoints(
            &label("kp_driving"),
            &tensors(&found).unwrap(),
            &kp_frame,
            1e-4,
        );

        source.keypoints = plain(&kp_source);
        let planes = engine.generate_planes(&source, &plain(&kp_driving));
        let mut out = Prediction::default();
        engine.generate(&source, &plain(&kp_driving), &mut out);
        let like = |values: Vec<f32>, tensor: &Tensor| {
            Tensor::from_vec(values, tensor.dims(), &Device::Cpu).unwrap()
        };
        let deformation = out.deformation.as_flattened().to_vec();
        comparison.add(
            &label("deformation"),
            &like(deformation, &wanted.used_deformation),
            &wanted.used_deformation,
            1e-4,
            1e-3,
        );
        if let Some(map) = &wanted.used_occlusion {
            comparison.add(
                &label("occlusion"),
                &like(out.occlusion.clone(), map),
                map,
                1e-4,
                1e-3,
            );
        }
        let picture = like(planes, &wanted.prediction);
        comparison.add(
            &label("prediction"),
            &picture,
            &wanted.prediction,
            1e-4,
            5e-3,
        );
        let record = format!(
            "out.1.{}.prediction",
            kp_norm.trim_start_matches("kp_norm.1.")
        );
        if let Some(record) = recorded.get(&record).or(recorded.get("prediction")) {
            comparison.add(&label("prediction recorded"), &picture, record, 1e-3, 2e-2);
        }
        comparison.judge();
    }
}

/// The first of recorded pictures (.., h, w, 3) as RGBA.
fn rgba(recorded: &Tensor) -> Vec<u8> {
    let side = recorded.dim(candle_core::D::Minus2).unwrap();
    let bytes: Vec<u8> = recorded.flatten_all().unwrap().to_vec1().unwrap();
    bytes
        .chunks_exact(3)
        .take(side * side)
        .flat_map(|p| [p[0], p[1], p[2], 255])
        .collect()
}

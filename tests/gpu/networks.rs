//! Whole networks on the device against the recorded results of the reference, and half precision against f32.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Tensor};
use mimic::model::{GeneratorOutput, KeypointTensors, ModelConfig, Networks, procedural};

use crate::common::{self, Comparison};
use crate::{card, distance};

/// What half precision may cost: a step of 255 in the mean.
const STEP: f64 = 1.0 / 255.0;
/// What half precision may cost on weights that mean nothing: they do not forgive what trained ones do.
const MADE_UP: f64 = 3.0 * STEP;

struct Recorded {
    config: ModelConfig,
    weights: BTreeMap<String, Tensor>,
    tensors: HashMap<String, Tensor>,
}

impl Recorded {
    fn tiny(name: &str, mobile: bool) -> Self {
        let config = common::tiny(mobile);
        let weights = procedural::tensors(&config, name).unwrap();
        let tensors = common::tensors(&format!("tests/fixtures/{name}.safetensors"));
        Self {
            config,
            weights,
            tensors,
        }
    }

    fn embedded() -> Self {
        Self {
            config: ModelConfig::preset("mimic-small").unwrap(),
            weights: common::tensors("weights/mimic-small.safetensors")
                .into_iter()
                .collect(),
            tensors: common::tensors("tests/fixtures/mimic-small.golden.safetensors"),
        }
    }

    /// What the networks make of the recorded source, moved to recorded keypoints.
    fn run(&self, precision: DType, to: &str) -> (KeypointTensors, GeneratorOutput) {
        let device = card().device;
        let networks =
            Networks::in_precision(&self.config, &self.weights, &device, precision).unwrap();
        let photo = common::pictures(&self.tensors["source"])
            .to_device(&device)
            .unwrap();
        let found = networks.keypoint_detector.forward(&photo).unwrap();
        let source = networks.generator.encode_source(&photo).unwrap();
        let on = |name: &str| {
            let kp = common::keypoints(&self.tensors, name);
            KeypointTensors {
                value: kp.value.to_device(&device).unwrap(),
                jacobian: kp
                    .jacobian
                    .map(|jacobian| jacobian.to_device(&device).unwrap()),
            }
        };
        let made = networks
            .generator
            .forward(&source, &on("kp_source"), &on(to))
            .unwrap();
        (found, made)
    }
}

fn cpu(t: &Tensor) -> Tensor {
    t.to_dtype(DType::F32)
        .unwrap()
        .to_device(&Device::Cpu)
        .unwrap()
}

fn record_holds(recorded: &Recorded, to: &str, prediction: &str, deformation: &str) {
    let (found, made) = recorded.run(DType::F32, to);
    let mut comparison = Comparison::default();
    let found = KeypointTensors {
        value: cpu(&found.value),
        jacobian: found.jacobian.as_ref().map(cpu),
    };
    comparison.add_keypoints(
        "kp_source",
        &found,
        &common::keypoints(&recorded.tensors, "kp_source"),
        1e-3,
    );
    comparison.add(
        "prediction",
        &cpu(&made.prediction),
        &recorded.tensors[prediction],
        1e-3,
        2e-2,
    );
    comparison.add(
        "deformation",
        &cpu(&made.deformation),
        &recorded.tensors[deformation],
        1e-3,
        2e-2,
    );
    comparison.judge();
}

#[test]
fn the_networks_compute_what_the_reference_does() {
    for (name, mobile) in [("vox_tiny", false), ("mobile_tiny", true)] {
        let recorded = Recorded::tiny(name, mobile);
        let out = |what: &str| format!("out.1.relative_adapt.{what}");
        record_holds(
            &recorded,
            "kp_norm.1.relative_adapt",
            &out("prediction"),
            &out("deformation"),
        );
    }
}

#[test]
fn the_embedded_model_computes_what_it_was_trained_to() {
    record_holds(
        &Recorded::embedded(),
        "kp_norm",
        "prediction",
        "deformation",
    );
}

#[test]
fn half_precision_is_within_a_step_of_f32() {
    for (name, recorded, to) in [
        (
            "vox_tiny",
            Recorded::tiny("vox_tiny", false),
            "kp_norm.1.relative_adapt",
        ),
        (
            "mobile_tiny",
            Recorded::tiny("mobile_tiny", true),
            "kp_norm.1.relative_adapt",
        ),
        ("mimic-small", Recorded::embedded(), "kp_norm"),
    ] {
        let (exact_kp, exact) = recorded.run(DType::F32, to);
        // The 8 bits of bf16 are too few for a depthwise network of such weights.
        let precisions: &[DType] = match name {
            "mobile_tiny" => &[DType::F16],
            _ => &[DType::F16, DType::BF16],
        };
        for &precision in precisions {
            let (kp, made) = recorded.run(precision, to);
            let (mean, most) = distance(&made.prediction, &exact.prediction);
            let (place, _) = distance(&made.deformation, &exact.deformation);
            println!(
                "{name} in {precision:?}: mean {mean:.2e}, largest {most:.2e}; places {place:.2e}"
            );
            let limit = match (name, precision) {
                ("mimic-small", _) | ("vox_tiny", DType::F16) => STEP,
                _ => MADE_UP,
            };
            assert!(
                mean <= limit,
                "{name} in {precision:?} is {mean} off f32 in the mean"
            );
            // Keypoints are found in f32 whatever the generator computes in.
            assert!(distance(&kp.value, &exact_kp.value).1 <= 1e-5, "{name}");
        }
    }
}

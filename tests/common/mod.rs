//! What the tests of recorded results share: reading them and measuring the distance to them.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use mimic::model::{KeypointTensors, ModelConfig};

/// A file of the repository, or of a folder that has some of them: tests are carried to machines that have nothing else.
pub(crate) fn file(path: &str) -> PathBuf {
    let root =
        std::env::var_os("MIMIC_TEST_ROOT").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    PathBuf::from(root).join(path)
}

/// Named tensors of a safetensors file.
pub(crate) fn tensors(path: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(file(path), &Device::Cpu).unwrap()
}

/// The shape of the recorded networks.
pub(crate) fn tiny(mobile: bool) -> ModelConfig {
    let mut config = ModelConfig::preset("vox-256").unwrap();
    (config.kp.block_expansion, config.kp.max_features) = (8, 64);
    (
        config.generator.block_expansion,
        config.generator.max_features,
    ) = (8, 64);
    let motion = &mut config.generator.dense_motion;
    (motion.block_expansion, motion.max_features) = (8, 64);
    (config.kp.mobile, config.generator.mobile) = (mobile, mobile);
    config
}

/// Recorded pictures (.., h, w, 3) of bytes as (b, 3, h, w) in 0..1.
pub(crate) fn pictures(recorded: &Tensor) -> Tensor {
    let recorded = if recorded.rank() == 3 {
        recorded.unsqueeze(0).unwrap()
    } else {
        recorded.clone()
    };
    let recorded = recorded
        .permute((0, 3, 1, 2))
        .unwrap()
        .to_dtype(DType::F32)
        .unwrap();
    (recorded / 255.0).unwrap().contiguous().unwrap()
}

/// The recorded keypoints under `name`.
pub(crate) fn keypoints(recorded: &HashMap<String, Tensor>, name: &str) -> KeypointTensors {
    KeypointTensors {
        value: recorded[&format!("{name}.value")].clone(),
        jacobian: recorded.get(&format!("{name}.jacobian")).cloned(),
    }
}

/// Distances between what was computed and what was recorded, with their limits; prints them all
/// before it judges.
#[derive(Default)]
pub(crate) struct Comparison(BTreeMap<String, (f64, f64, f64, f64)>);

impl Comparison {
    /// The mean and the largest absolute difference may be as large as said.
    pub(crate) fn add(&mut self, name: &str, got: &Tensor, wanted: &Tensor, mean: f64, max: f64) {
        assert_eq!(got.dims(), wanted.dims(), "{name}");
        let flat = |t: &Tensor| -> Vec<f64> {
            t.to_dtype(DType::F64)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1()
                .unwrap()
        };
        let (got, wanted) = (flat(got), flat(wanted));
        let differences: Vec<f64> = got
            .iter()
            .zip(&wanted)
            .map(|(a, b)| (a - b).abs())
            .collect();
        let largest =
            differences.iter().fold(
                0.0,
                |a: f64, &b| if b.is_nan() { f64::INFINITY } else { a.max(b) },
            );
        let average = differences.iter().sum::<f64>() / differences.len() as f64;
        self.0
            .insert(name.to_owned(), (average, mean, largest, max));
    }

    /// Value and jacobian, each difference at most `max`.
    pub(crate) fn add_keypoints(
        &mut self,
        name: &str,
        got: &KeypointTensors,
        wanted: &KeypointTensors,
        max: f64,
    ) {
        self.add(
            &format!("{name}.value"),
            &got.value,
            &wanted.value,
            max,
            max,
        );
        assert_eq!(got.jacobian.is_some(), wanted.jacobian.is_some(), "{name}");
        if let (Some(got), Some(wanted)) = (&got.jacobian, &wanted.jacobian) {
            self.add(&format!("{name}.jacobian"), got, wanted, max, max);
        }
    }

    /// Fails when a difference is beyond its limit.
    pub(crate) fn judge(self) {
        for (name, (average, mean, largest, max)) in &self.0 {
            println!(
                "{name:58} mean {average:.1e} (<= {mean:.0e})  max {largest:.1e} (<= {max:.0e})"
            );
        }
        for (name, (average, mean, largest, max)) in self.0 {
            assert!(
                average <= mean && largest <= max,
                "{name} is too far from the record"
            );
        }
    }
}

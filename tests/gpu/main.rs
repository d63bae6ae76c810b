//! What graphics cards compute, against the CPU: ops, gradients, networks, a step of training, the engine.
//!
//! On the device of `MIMIC_TEST_DEVICE` (cpu, cuda:N or metal; the CPU when it says nothing, where all of it runs too). The files of
//! the project are looked for in `MIMIC_TEST_ROOT`: the program made of these tests runs on a machine that has nothing else of it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "shows the distances")]

#[path = "../common/mod.rs"]
mod common;
mod engine;
mod maps;
mod networks;
mod ops;
mod training;

use candle_core::{DType, Device, Tensor};
use mimic::device::{self, Card, Choice};

/// The device that is tested.
fn card() -> Card {
    let asked = std::env::var("MIMIC_TEST_DEVICE").unwrap_or_default();
    match asked.parse() {
        Ok(choice @ (Choice::Cuda(_) | Choice::Metal)) => {
            device::open(choice).unwrap_or_else(|why| panic!("{why}"))
        }
        Ok(Choice::Cpu) => on_cpu(),
        _ if asked.is_empty() => on_cpu(),
        _ => panic!("MIMIC_TEST_DEVICE={asked} is none of cpu, cuda:N and metal"),
    }
}

/// The CPU as if it were a card.
fn on_cpu() -> Card {
    Card {
        device: Device::Cpu,
        name: "the CPU".to_owned(),
        usual: DType::F16,
    }
}

/// Numbers without a pattern in -1..1, f32, on the CPU.
fn noise(shape: &[usize], seed: u32) -> Tensor {
    let mut state = seed.wrapping_mul(2_654_435_769) | 1;
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as f32 / u32::MAX as f32 * 2.0 - 1.0
        })
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn flat(t: &Tensor) -> Vec<f32> {
    let t = t
        .to_dtype(DType::F32)
        .unwrap()
        .to_device(&Device::Cpu)
        .unwrap();
    t.flatten_all().unwrap().to_vec1().unwrap()
}

/// Mean and largest difference.
fn distance(got: &Tensor, wanted: &Tensor) -> (f64, f64) {
    assert_eq!(got.dims(), wanted.dims());
    let (got, wanted) = (flat(got), flat(wanted));
    let differences = got
        .iter()
        .zip(&wanted)
        .map(|(a, b)| f64::from((a - b).abs()));
    let (mut sum, mut most) = (0.0, 0f64);
    for difference in differences {
        assert!(!difference.is_nan(), "a value is no number");
        sum += difference;
        most = most.max(difference);
    }
    (sum / got.len().max(1) as f64, most)
}

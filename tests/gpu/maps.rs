//! The ops on maps of features, on the device, against the CPU.

use candle_core::{DType, Device, Tensor};
use mimic::ops::maps::{self, Convolution, Map, Then};

use crate::{card, distance, noise};

const TYPES: [(DType, f64); 3] = [(DType::F32, 1e-5), (DType::F16, 4e-3), (DType::BF16, 3e-2)];

fn map(shape: [usize; 4], seed: u32, device: &Device, dtype: DType) -> Map {
    // Rounded before, so that both devices see the same.
    let planes = noise(&shape, seed).to_dtype(dtype).unwrap();
    let map = Map::from_planes(&planes).unwrap();
    Map::new(map.data().to_device(device).unwrap(), map.channels()).unwrap()
}

/// Inputs' features, features that come out, kernel, padding, whether after an enlargement, size.
type Shape = (&'static [usize], usize, usize, usize, bool, usize);

const SHAPES: [Shape; 9] = [
    (&[256], 256, 3, 1, false, 64),
    (&[3], 64, 3, 1, false, 33),
    (&[32, 3], 50, 7, 0, false, 64),
    (&[64, 44], 12, 7, 3, false, 32),
    (&[1024], 1024, 3, 1, true, 2),
    (&[128, 128], 64, 3, 1, true, 16),
    (&[64], 3, 7, 3, false, 40),
    (&[40], 80, 1, 0, false, 24),
    (&[512, 512], 256, 3, 1, true, 8),
];

#[test]
fn every_way_of_a_convolution() {
    let card = card();
    if !maps::runs_on(&card.device) {
        println!("{} has no such kernels", card.name);
        return;
    }
    for (inputs, outputs, side, padding, doubled, size) in SHAPES {
        let c_in: usize = inputs.iter().sum();
        let scale = 1.0 / ((c_in * side * side) as f64).sqrt();
        let weight = (noise(&[outputs, c_in, side, side], 1) * scale).unwrap();
        let bias = noise(&[outputs], 2);
        let norm = noise(&[2, outputs.next_multiple_of(8)], 3);
        for (dtype, limit) in TYPES {
            // Tensor cores cut what they add to a sum off: what that makes of f32 grows with how much is summed.
            let summed = (c_in * side * side) as f64;
            let limit = match dtype {
                DType::F32 => limit * (summed / 4096.0).max(1.0),
                _ => limit,
            };
            let on = |device: &Device| {
                let target = (device, dtype);
                let parts = (&weight, Some(&bias));
                let conv = Convolution::new(parts, inputs, padding, doubled, target).unwrap();
                let of_input = inputs.iter().enumerate();
                let maps: Vec<Map> = of_input
                    .map(|(i, &c)| map([2, c, size, size + 1], 4 + i as u32, device, dtype))
                    .collect();
                (conv, maps)
            };
            let (exact, exact_maps) = on(&Device::Cpu);
            let (conv, maps) = on(&card.device);
            let (exact_maps, maps): (Vec<&Map>, Vec<&Map>) =
                (exact_maps.iter().collect(), maps.iter().collect());
            let norm_here = norm.to_device(&card.device).unwrap();
            let large = match (doubled, size >= 16) {
                (true, true) => 2,
                _ => 1,
            };
            let mut thens = vec![(
                Then {
                    relu: true,
                    ..Then::default()
                },
                Then {
                    relu: true,
                    ..Then::default()
                },
            )];
            if !doubled || large == 1 {
                let pooled = Then {
                    relu: true,
                    pooled: true,
                    ..Then::default()
                };
                let wide = Then {
                    wide: true,
                    ..Then::default()
                };
                let normed = |norm| Then {
                    norm: Some(norm),
                    ..Then::default()
                };
                thens.extend([
                    (pooled, pooled),
                    (wide, wide),
                    (normed(&norm_here), normed(&norm)),
                ]);
            }
            let (mut ways, mut worst) = (0, 0f64);
            for (then, then_exact) in thens {
                let (wanted, second_wanted) = exact.run(&exact_maps, then_exact).unwrap();
                for (got, second) in conv.run_every_way(&maps, then).unwrap() {
                    ways += 1;
                    let mut off = distance(got.data(), wanted.data()).1;
                    if let (Some(second), Some(wanted)) = (second, &second_wanted) {
                        off = off.max(distance(second.data(), wanted.data()).1);
                    }
                    worst = worst.max(off);
                }
            }
            println!(
                "{inputs:?} to {outputs}, {side}x{side}, {size} pixels, {dtype:?}: {ways} ways, largest {worst:.2e}"
            );
            assert!(
                worst <= 5.0 * limit,
                "{inputs:?} to {outputs}, {side}x{side}, {dtype:?}: {worst} off"
            );
        }
    }
}

/// A residual block's second convolution: what went into the block is added.
#[test]
fn a_summand_and_the_next_norm() {
    let card = card();
    if !maps::runs_on(&card.device) {
        return;
    }
    let weight = (noise(&[64, 64, 3, 3], 1) / 24.0).unwrap();
    let norm = noise(&[2, 64], 3);
    for (dtype, limit) in TYPES {
        let on = |device: &Device| -> Vec<Tensor> {
            let conv = Convolution::new((&weight, None), &[64], 1, false, (device, dtype)).unwrap();
            let [x, summand] = [4, 5].map(|seed| map([3, 64, 17, 16], seed, device, dtype));
            let norm = norm.to_device(device).unwrap();
            let then = Then {
                summand: Some(&summand),
                norm: Some(&norm),
                ..Then::default()
            };
            let ways = conv.run_every_way(&[&x], then).unwrap().into_iter();
            ways.flat_map(|(first, second)| [Some(first), second])
                .flatten()
                .map(|map| map.data().clone())
                .collect()
        };
        let wanted = on(&Device::Cpu);
        for (i, got) in on(&card.device).iter().enumerate() {
            let (_, most) = distance(got, &wanted[i % 2]);
            assert!(most <= 5.0 * limit, "{dtype:?}: {most} off");
        }
    }
}

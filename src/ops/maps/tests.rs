//! The kernels on the host against what the ops say they compute, and the ops against candle's on planes.

use std::cell::Cell;

use candle_core::{DType, Device, Result, Tensor};

use super::job::{Cut, Job, TILES};
use super::*;
use crate::ops::conv2d::conv2d;
use crate::ops::fused::host::with_kernels;
use crate::ops::{fused, gradient, resample};

const TYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

thread_local! {
    static ASKED: Cell<Option<Cut>> = const { Cell::new(None) };
}

/// The cut that this thread's test wants, instead of the likeliest.
pub(super) fn asked_cut() -> Option<Cut> {
    ASKED.get()
}

fn noise(shape: &[usize], seed: u32) -> Tensor {
    gradient::noise(shape, seed).to_dtype(DType::F32).unwrap()
}

fn map(shape: [usize; 4], seed: u32, dtype: DType) -> Map {
    let planes = noise(&shape, seed).to_dtype(dtype).unwrap();
    Map::from_planes(&planes).unwrap()
}

fn flat(t: &Tensor) -> Vec<f32> {
    let t = t.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
    t.to_vec1().unwrap()
}

fn close(what: &str, got: &Tensor, wanted: &Tensor, dtype: DType) {
    assert_eq!(got.dims(), wanted.dims(), "{what}");
    let step = match dtype {
        DType::F16 => 2.0 / 1024.0,
        DType::BF16 => 2.0 / 128.0,
        DType::U8 => 1.0,
        _ => 2e-5,
    };
    for (i, (got, wanted)) in flat(got).iter().zip(flat(wanted)).enumerate() {
        assert!(
            (got - wanted).abs() <= step * wanted.abs().max(1.0),
            "{what} of {dtype:?}, value {i}: {got} is not {wanted}"
        );
    }
}

/// The kernel makes of the op what its plain form does, up to rounding.
fn same(what: &str, dtype: DType, op: impl Fn() -> Result<Tensor>) {
    let plain = op().unwrap();
    for threads in [1, 8] {
        let kernel = with_kernels(threads, &op).unwrap();
        assert_eq!(kernel.dtype(), plain.dtype(), "{what}");
        close(what, &kernel, &plain, dtype);
    }
}

/// Both results of a convolution, one after the other.
fn both((first, second): (Map, Option<Map>)) -> Result<Tensor> {
    match second {
        Some(second) => Tensor::cat(&[first.data(), second.data()], 0),
        None => Ok(first.data().clone()),
    }
}

struct Case {
    inputs: &'static [usize],
    outputs: usize,
    side: usize,
    padding: usize,
    doubled: bool,
    size: [usize; 2],
}

impl Case {
    fn convolution(&self, dtype: DType) -> Convolution {
        let c_in: usize = self.inputs.iter().sum();
        let scale = 1.0 / ((c_in * self.side * self.side) as f64).sqrt();
        let weight = (noise(&[self.outputs, c_in, self.side, self.side], 2) * scale).unwrap();
        let bias = noise(&[self.outputs], 3);
        let target = (&Device::Cpu, dtype);
        Convolution::new(
            (&weight, Some(&bias)),
            self.inputs,
            self.padding,
            self.doubled,
            target,
        )
        .unwrap()
    }

    fn maps(&self, batch: usize, dtype: DType) -> Vec<Map> {
        let [h, w] = self.size;
        let maps = self.inputs.iter().enumerate();
        maps.map(|(i, &channels)| map([batch, channels, h, w], 4 + i as u32, dtype))
            .collect()
    }
}

const CASES: [Case; 7] = [
    Case {
        inputs: &[5, 19],
        outputs: 20,
        side: 3,
        padding: 1,
        doubled: false,
        size: [6, 7],
    },
    Case {
        inputs: &[3],
        outputs: 70,
        side: 7,
        padding: 3,
        doubled: false,
        size: [5, 4],
    },
    Case {
        inputs: &[12],
        outputs: 3,
        side: 7,
        padding: 0,
        doubled: false,
        size: [9, 8],
    },
    Case {
        inputs: &[40],
        outputs: 136,
        side: 1,
        padding: 0,
        doubled: false,
        size: [4, 6],
    },
    Case {
        inputs: &[8, 8],
        outputs: 9,
        side: 3,
        padding: 1,
        doubled: true,
        size: [4, 3],
    },
    Case {
        inputs: &[9],
        outputs: 8,
        side: 3,
        padding: 1,
        doubled: true,
        size: [16, 17],
    },
    Case {
        inputs: &[70, 9],
        outputs: 11,
        side: 7,
        padding: 3,
        doubled: false,
        size: [9, 18],
    },
];

/// Kernels that are others with larger blocks.
const SAME_IN_LARGE: [&str; 2] = ["box_128x256", "deep_128x128"];

/// Every tile that can make it, in all its forms.
fn every_cut<const N: usize>(job: &Job<'_>, parts: [usize; N]) -> Vec<Cut> {
    let mut cuts = Vec::new();
    for (form, of) in job.forms.iter().enumerate() {
        let tiles = TILES.iter().enumerate();
        for (tile, _) in tiles.filter(|(_, tile)| job.can_be(of, tile)) {
            cuts.extend(parts.map(|parts| Cut { form, tile, parts }));
        }
    }
    cuts
}

#[test]
fn every_tile_computes_every_convolution() {
    for (n, case) in CASES.iter().enumerate() {
        for dtype in TYPES {
            let (conv, maps) = (case.convolution(dtype), case.maps(1 + n % 2, dtype));
            let maps: Vec<&Map> = maps.iter().collect();
            let relu = Then {
                relu: true,
                ..Then::default()
            };
            let wanted = both(conv.run(&maps, relu).unwrap()).unwrap();
            let job = conv.job(&maps, relu).unwrap();
            for cut in every_cut(&job, [1, 3]) {
                // Blocks of a card are threads here, and take their time: one of the types that a tile has. Of the tiles that fetch boxes,
                // which are one kernel in several sizes, the smaller ones, every other time, of few pixels and taps.
                let tile = &TILES[cut.tile];
                let types: Vec<DType> = TYPES.into_iter().filter(|&t| tile.takes(t)).collect();
                let has_boxes = !tile.kernel.starts_with("tensor_cores");
                let is_large = case.size.iter().product::<usize>() > 200
                    || case.side == 7 && tile.kernel.starts_with("warpgroups");
                if dtype != types[(n + cut.tile) % types.len()]
                    || has_boxes
                        && (is_large || cut.form == 0 && (n + cut.tile + cut.parts / 2) % 2 == 0)
                    || SAME_IN_LARGE
                        .iter()
                        .any(|large| tile.kernel.ends_with(large))
                {
                    continue;
                }
                ASKED.set(Some(cut));
                let got = with_kernels(1, || both(conv.run(&maps, relu)?)).unwrap();
                let what = format!("case {n}, {}, {cut:?}", tile.kernel);
                close(&what, &got, &wanted, dtype);
            }
            ASKED.set(None);
        }
    }
}

#[test]
fn what_follows_a_convolution_is_part_of_it() {
    let case = Case {
        inputs: &[16],
        outputs: 24,
        side: 3,
        padding: 1,
        doubled: false,
        size: [7, 6],
    };
    let norm = noise(&[2, 24], 9);
    for dtype in TYPES {
        let (conv, maps) = (case.convolution(dtype), case.maps(2, dtype));
        let maps: Vec<&Map> = maps.iter().collect();
        let summand = map([2, 24, 7, 6], 8, dtype);
        let pooled = Then {
            relu: true,
            pooled: true,
            ..Then::default()
        };
        let summed = Then {
            summand: Some(&summand),
            norm: Some(&norm),
            ..Then::default()
        };
        let wide = Then {
            wide: true,
            ..Then::default()
        };
        for (what, then) in [("pooled", pooled), ("summed", summed), ("wide", wide)] {
            let wanted = both(conv.run(&maps, then).unwrap()).unwrap();
            let job = conv.job(&maps, then).unwrap();
            for cut in every_cut(&job, [1, 2, 9]) {
                let kernel = TILES[cut.tile].kernel;
                let fetches = kernel.ends_with("box_128x64") && dtype != DType::BF16;
                if !kernel.ends_with("64x64") && !fetches {
                    continue;
                }
                ASKED.set(Some(cut));
                let got = with_kernels(1, || both(conv.run(&maps, then)?)).unwrap();
                assert_eq!(got.dtype(), wanted.dtype());
                close(&format!("{what}, {kernel}, {cut:?}"), &got, &wanted, dtype);
            }
            ASKED.set(None);
        }
    }
}

#[test]
fn a_convolution_of_maps_is_that_of_planes() {
    for case in CASES {
        let conv = case.convolution(DType::F32);
        let maps = case.maps(2, DType::F32);
        let planes: Vec<Tensor> = maps.iter().map(|map| map.to_planes().unwrap()).collect();
        let mut x = Tensor::cat(&planes, 1).unwrap();
        if case.doubled {
            x = resample::nearest_x2(&x).unwrap();
        }
        let c_in: usize = case.inputs.iter().sum();
        let scale = 1.0 / ((c_in * case.side * case.side) as f64).sqrt();
        let weight = (noise(&[case.outputs, c_in, case.side, case.side], 2) * scale).unwrap();
        let bias = noise(&[case.outputs], 3);
        let wanted = conv2d(&x, &weight, Some(&bias), case.padding, 1, 1).unwrap();
        let maps: Vec<&Map> = maps.iter().collect();
        let (got, none) = conv.run(&maps, Then::default()).unwrap();
        assert!(none.is_none());
        close(
            "convolution",
            &got.to_planes().unwrap(),
            &wanted,
            DType::F32,
        );
        // What is padded is zero.
        let padded = got.data().dims()[3];
        let rest = got
            .data()
            .narrow(3, case.outputs, padded - case.outputs)
            .unwrap();
        assert!(flat(&rest).iter().all(|v| *v == 0.0));
    }
}

#[test]
fn depthwise_kernels_compute_what_their_op_says() {
    for (c, side, size) in [(5, 3, [4, 7]), (16, 1, [1, 1]), (9, 5, [3, 2])] {
        let weight = noise(&[c, 1, side, side], 1);
        let bias = noise(&[c], 2);
        let filter = Depthwise::new(&weight, Some(&bias), &Device::Cpu).unwrap();
        for dtype in TYPES {
            let x = map([2, c, size[0], size[1]], 3, dtype);
            for (doubled, relu) in [(false, true), (true, false)] {
                same("depthwise", dtype, || {
                    Ok(filter.run(&x, doubled, relu)?.data().clone())
                });
            }
        }
        let x = map([2, c, size[0], size[1]], 3, DType::F32);
        let planes = x.to_planes().unwrap();
        let large = resample::nearest_x2(&planes).unwrap();
        for (doubled, planes) in [(false, planes), (true, large)] {
            let wanted = conv2d(&planes, &weight, Some(&bias), side / 2, 1, c).unwrap();
            let got = filter.run(&x, doubled, false).unwrap();
            close("depthwise", &got.to_planes().unwrap(), &wanted, DType::F32);
        }
    }
}

#[test]
fn pictures_are_looked_at_and_painted_as_their_ops_say() {
    let pixels: Vec<u8> = (0..2 * 9 * 7 * 4).map(|i| (i * 31 % 256) as u8).collect();
    let pixels = Tensor::from_vec(pixels, (2, 9, 7, 4), &Device::Cpu).unwrap();
    for (side, factor) in [(13, 4), (1, 1), (3, 2)] {
        let kernel = (noise(&[side, side], 4) / side as f64).unwrap();
        for dtype in TYPES {
            same("look", dtype, || {
                Ok(look(&pixels, &kernel, factor, dtype)?.data().clone())
            });
        }
        let planes = fused::unpack(&pixels).unwrap();
        let wanted = fused::reduce(&planes, &kernel, factor).unwrap();
        let got = look(&pixels, &kernel, factor, DType::F32).unwrap();
        close("look", &got.to_planes().unwrap(), &wanted, DType::F32);
    }
    for dtype in TYPES {
        let planes = (noise(&[2, 3, 5, 4], 5) * 7.0).unwrap();
        let x = Map::from_planes(&planes.to_dtype(dtype).unwrap()).unwrap();
        same("paint", DType::U8, || paint(&x));
        let wanted = fused::pack(&candle_nn::ops::sigmoid(&x.to_planes().unwrap()).unwrap());
        close("paint", &paint(&x).unwrap(), &wanted.unwrap(), DType::U8);
    }
}

/// Pairs of keypoints with jacobians that are nearly the identity.
fn some_pairs(b: usize, k: usize) -> Tensor {
    let eye = Tensor::new(&[1f32, 0.0, 0.0, 1.0], &Device::Cpu).unwrap();
    let jacobian = |seed| {
        (noise(&[b, k, 4], seed) * 0.3)
            .unwrap()
            .broadcast_add(&eye)
            .unwrap()
    };
    let parts = [
        noise(&[b, k, 2], 1),
        jacobian(2),
        noise(&[b, k, 2], 3),
        jacobian(4),
    ];
    Tensor::cat(&parts, 2).unwrap()
}

#[test]
fn motion_is_that_of_planes() {
    for (b, k, h, w) in [(2, 10, 8, 9), (1, 1, 1, 1), (3, 2, 5, 4)] {
        let pairs = some_pairs(b, k);
        for linear in [true, false] {
            for batch in [1, b] {
                let source = map([batch, 3, h, w], 6, DType::F32);
                for to in TYPES {
                    same("motions", to, || {
                        Ok(motions(&source, &pairs, linear, 0.01, to)?.data().clone())
                    });
                }
                let planes = source.to_planes().unwrap();
                let wanted =
                    fused::sparse_motion(&planes, &pairs, linear, 0.01, DType::F32).unwrap();
                let got = motions(&source, &pairs, linear, 0.01, DType::F32).unwrap();
                close("motions", &got.to_planes().unwrap(), &wanted, DType::F32);
            }
            for seen in [false, true] {
                let logits = (noise(&[b, k + 1 + usize::from(seen), h, w], 7) * 5.0).unwrap();
                let x = Map::from_planes(&logits).unwrap();
                same("decide", DType::F32, || {
                    let (places, map) = decide(&x, &pairs, linear)?;
                    let all = [
                        Some(places.flatten_all()?),
                        map.map(|map| map.flatten_all()).transpose()?,
                    ];
                    Tensor::cat(&all.into_iter().flatten().collect::<Vec<_>>(), 0)
                });
                let of_motions = logits.narrow(1, 0, k + 1).unwrap();
                let wanted = fused::deformation(&of_motions, &pairs, linear).unwrap();
                let (got, map) = decide(&x, &pairs, linear).unwrap();
                close("decide", &got, &wanted, DType::F32);
                if let Some(map) = map {
                    let last = logits.narrow(1, k + 1, 1).unwrap();
                    close(
                        "seen",
                        &map,
                        &candle_nn::ops::sigmoid(&last).unwrap(),
                        DType::F32,
                    );
                }
            }
        }
    }
}

#[test]
fn features_follow_as_planes_do() {
    let norm = noise(&[2, 24], 1);
    for (batch, h, w) in [(1, 5, 7), (2, 1, 1)] {
        let grid = (noise(&[2, 4, 5, 2], 2) * 1.4).unwrap();
        let seen = noise(&[2, 1, 4, 5], 3).abs().unwrap();
        for dtype in TYPES {
            let x = map([batch, 20, h, w], 4, dtype);
            for (seen, norm) in [
                (None, None),
                (Some(&seen), None),
                (None, Some(&norm)),
                (Some(&seen), Some(&norm)),
            ] {
                same("follow", dtype, || both(follow(&x, &grid, seen, norm)?));
            }
            let (got, _) = follow(&x, &grid, Some(&seen), Some(&norm)).unwrap();
            let planes = x.to_planes().unwrap();
            let moved = crate::ops::grid_sample::grid_sample(
                &planes,
                &grid,
                crate::ops::grid_sample::Padding::Zeros,
                true,
            );
            let wanted = fused::veiled(&moved.unwrap(), &seen).unwrap();
            close("follow", &got.to_planes().unwrap(), &wanted, dtype);
        }
    }
}

#[test]
fn points_are_those_of_planes() {
    for (b, k, h, w) in [(2, 10, 8, 9), (1, 1, 1, 1), (1, 3, 58, 58)] {
        for jacobians in [0, 1, k] {
            let planes = (noise(&[b, k + 4 * jacobians, h, w], 1) * 3.0).unwrap();
            let x = Map::from_planes(&planes).unwrap();
            let heads = Heads {
                count: k,
                jacobians,
                temperature: 0.1,
            };
            same("points", DType::F32, || points(&x, heads));
            let logits = planes.narrow(1, 0, k).unwrap();
            let maps = (jacobians > 0).then(|| planes.narrow(1, k, 4 * jacobians).unwrap());
            let wanted = fused::keypoints(&logits, maps.as_ref(), 0.1).unwrap();
            close("points", &points(&x, heads).unwrap(), &wanted, DType::F32);
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let case = &CASES[0];
    let conv = case.convolution(DType::F32);
    let maps = case.maps(1, DType::F32);
    assert!(conv.run(&[], Then::default()).is_err());
    assert!(conv.run(&[&maps[0]], Then::default()).is_err());
    assert!(conv.run(&[&maps[1], &maps[0]], Then::default()).is_err());
    let both: Vec<&Map> = maps.iter().collect();
    let norm = noise(&[2, 9], 1);
    let then = Then {
        norm: Some(&norm),
        ..Then::default()
    };
    assert!(conv.run(&both, then).is_err());
    let then = Then {
        summand: Some(&maps[0]),
        ..Then::default()
    };
    assert!(conv.run(&both, then).is_err());
    assert!(Map::new(noise(&[1, 2, 2, 9], 1), 9).is_err());
    assert!(paint(&maps[0]).is_err());
    assert!(look(&noise(&[1, 2, 2, 4], 1), &noise(&[1, 1], 1), 1, DType::F32).is_err());
    assert!(
        points(
            &maps[0],
            Heads {
                count: 3,
                jacobians: 2,
                temperature: 0.1
            }
        )
        .is_err()
    );
    assert!(motions(&maps[0], &noise(&[1, 3, 12], 1), true, 0.01, DType::F32).is_err());
    assert!(decide(&maps[0], &noise(&[1, 9, 12], 1), true).is_err());
    assert!(follow(&maps[0], &noise(&[2, 3, 3, 2], 1), None, Some(&norm)).is_err());
    assert!(Depthwise::new(&noise(&[3, 2, 3, 3], 1), None, &Device::Cpu).is_err());
}

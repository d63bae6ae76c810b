//! Each kernel, on the host, against what the op says it computes, in every type and on ugly input; and the ops against the
//! steps that they stand for.

use candle_core::{D, DType, Device, IndexOp, Result, Tensor};

use super::host::with_kernels;
use super::*;
use crate::ops::gradient;
use crate::ops::grid_sample::{GridSample, Padding, grid_sample};

const TYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

fn noise(shape: &[usize], seed: u32) -> Tensor {
    gradient::noise(shape, seed).to_dtype(DType::F32).unwrap()
}

/// The same with numbers that are none, endless or far too large here and there.
fn ugly(shape: &[usize], seed: u32) -> Tensor {
    let mut values: Vec<f32> = noise(shape, seed).flatten_all().unwrap().to_vec1().unwrap();
    let bad = [
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        1e30,
        -1e30,
        65504.0,
        1e-40,
    ];
    for (i, bad) in bad
        .iter()
        .cycle()
        .take(values.len().div_ceil(17))
        .enumerate()
    {
        values[i * 17 % shape.iter().product::<usize>().max(1)] = *bad;
    }
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.to_dtype(DType::F32)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

/// The kernel makes of the op what its plain form does, up to rounding.
fn same(what: &str, dtype: DType, op: impl Fn() -> Result<Tensor>) {
    let plain = op().unwrap();
    for threads in [1, 8] {
        let kernel = with_kernels(threads, &op).unwrap();
        assert_eq!(
            (kernel.dims(), kernel.dtype()),
            (plain.dims(), plain.dtype()),
            "{what}"
        );
        let step = match (plain.dtype(), dtype) {
            (DType::U8, _) => 1.0 / 255.0,
            (DType::F16, _) => 1.0 / 1024.0,
            (DType::BF16, _) => 1.0 / 128.0,
            _ => 2e-5,
        };
        for (i, (got, wanted)) in flat(&kernel).iter().zip(flat(&plain)).enumerate() {
            let close = (got - wanted).abs() <= step * wanted.abs().max(1.0);
            let alike = got.is_nan() == wanted.is_nan() && (got.is_nan() || *got == wanted);
            assert!(
                close || alike,
                "{what} of {dtype:?}, value {i} of {:?}: {got} is not {wanted}",
                plain.dims()
            );
        }
    }
}

/// Random input, and ugly input, in every type.
fn for_inputs(shape: &[usize], check: impl Fn(&Tensor, DType)) {
    for dtype in TYPES {
        for x in [noise(shape, 3), ugly(shape, 5)] {
            check(&x.to_dtype(dtype).unwrap(), dtype);
        }
    }
}

#[test]
fn kernels_around_convolutions_compute_what_their_ops_say() {
    for (shape, k, padding) in [
        ([2, 5, 7, 9], 3, 1),
        ([1, 1, 1, 1], 1, 0),
        ([3, 2, 6, 3], 5, 2),
    ] {
        let c = shape[1];
        for_inputs(&shape, |x, dtype| {
            let weight = noise(&[c, 1, k, k], 8).to_dtype(dtype).unwrap();
            let bias = noise(&[c], 9).to_dtype(dtype).unwrap();
            for relu in [false, true] {
                same("depthwise", dtype, || {
                    convolution::depthwise(x, &weight, Some(&bias), [padding, 1, c], relu)
                });
                same("bias", dtype, || convolution::add_bias(x, &bias, relu));
            }
            same("scale_shift", dtype, || {
                scale_shift_relu(x, &noise(&[c], 1), &noise(&[c], 2))
            });
        });
    }
    for_inputs(&[2, 3, 17, 16], |x, dtype| {
        let [weight, bias] =
            [noise(&[4, 3, 3, 3], 1), noise(&[4], 2)].map(|t| t.to_dtype(dtype).unwrap());
        let folded = fold(&weight).unwrap();
        // A value that is none spreads by another way through a folded convolution.
        let tame = Tensor::zeros_like(x).unwrap();
        let x = x
            .eq(x)
            .unwrap()
            .where_cond(x, &tame)
            .unwrap()
            .clamp(-9.0, 9.0)
            .unwrap();
        same("unfold", dtype, || {
            up_conv2d(&x, &weight, &folded, &bias, true)
        });
    });
}

#[test]
fn kernels_on_pictures_compute_what_their_ops_say() {
    for shape in [[2, 3, 7, 9], [1, 1, 2, 2], [1, 3, 16, 5]] {
        for_inputs(&shape, |x, dtype| {
            same("nearest_x2", dtype, || nearest_x2(x));
            same("mean_2x2", dtype, || mean_2x2(x));
            for (side, factor) in [(13, 4), (1, 1), (3, 2)] {
                same("reduce", dtype, || {
                    reduce(x, &noise(&[side, side], 4), factor)
                });
            }
            if shape[1] == 3 {
                same("pack", dtype, || pack(x));
                let pixels = pack(x).unwrap();
                same("unpack", DType::F32, || unpack(&pixels));
            }
        });
    }
}

#[test]
fn sampling_kernels_compute_what_their_ops_say() {
    for (c, batch, h, w) in [(3, 1, 5, 7), (17, 2, 1, 1), (8, 2, 6, 4)] {
        for_inputs(&[batch, c, h, w], |input, dtype| {
            // A weight of 0 on what is no number is no number, so the picture is tame and the grid is not.
            let tame = input.to_dtype(DType::F32).unwrap();
            let tame = tame
                .eq(&tame)
                .unwrap()
                .where_cond(&tame, &tame.zeros_like().unwrap())
                .unwrap();
            let input = tame.clamp(-9.0, 9.0).unwrap().to_dtype(dtype).unwrap();
            for grid in [
                (noise(&[2, 4, 5, 2], 6) * 1.4).unwrap(),
                ugly(&[2, 4, 5, 2], 7),
            ] {
                for (padding, align) in [
                    (Padding::Zeros, true),
                    (Padding::Zeros, false),
                    (Padding::Reflection, true),
                    (Padding::Reflection, false),
                ] {
                    let sampler = GridSample::new(padding, align);
                    let launch = sampler.launch(input.dims(), grid.dims(), dtype).unwrap();
                    let plain = crate::ops::grid_sample::plain_sample;
                    // 1e30 mirrored is anywhere.
                    let grid = match padding {
                        Padding::Zeros => grid.clone(),
                        Padding::Reflection => grid
                            .eq(&grid)
                            .unwrap()
                            .where_cond(&grid, &grid.zeros_like().unwrap())
                            .unwrap()
                            .clamp(-7.0, 7.0)
                            .unwrap(),
                    };
                    same("grid_sample", dtype, || {
                        Fused {
                            launch: launch.clone(),
                            plain,
                        }
                        .run(&[&input, &grid])
                    });
                    if dtype == DType::F32 {
                        let grad = noise(&[2, c, 4, 5], 8);
                        let (of_input, of_grid) = (input.dims(), grid.dims());
                        same("of_input", dtype, || {
                            sampler.of_input(of_input, of_grid)?.run(&[&grid, &grad])
                        });
                        same("of_grid", dtype, || {
                            sampler
                                .of_grid(of_input, of_grid)?
                                .run(&[&input, &grid, &grad])
                        });
                    }
                }
            }
        });
    }
}

/// Pairs of keypoints with jacobians that are nearly the identity, one of them singular.
fn some_pairs(b: usize, k: usize) -> (Tensor, Tensor, Tensor, Tensor) {
    let eye = Tensor::new(&[[1f32, 0.0], [0.0, 1.0]], &Device::Cpu).unwrap();
    let jacobian = |batch, seed| {
        let noise = (noise(&[batch, k, 2, 2], seed) * 0.3).unwrap();
        noise.broadcast_add(&eye).unwrap()
    };
    let (source, driving) = (noise(&[1, k, 2], 1), noise(&[b, k, 2], 2));
    (source, jacobian(1, 3), driving, jacobian(b, 4))
}

#[test]
fn motion_kernels_compute_what_their_ops_say() {
    for (b, k, h, w) in [(2, 10, 8, 9), (1, 1, 1, 1), (3, 2, 5, 4)] {
        let (value, jacobian, driving, of_driving) = some_pairs(b, k);
        for linear in [true, false] {
            let jacobians = linear.then_some([&jacobian, &of_driving]);
            let pairs = pairs([&value, &driving], jacobians).unwrap();
            let singular = Tensor::zeros_like(&pairs).unwrap();
            for pairs in [&pairs, &singular] {
                for to in TYPES {
                    for batch in [1, b] {
                        let source = noise(&[batch, 3, h, w], 6);
                        same("sparse_motion", to, || {
                            sparse_motion(&source, pairs, linear, 0.01, to)
                        });
                    }
                    let logits = (noise(&[b, k + 1, h, w], 7) * 5.0)
                        .unwrap()
                        .to_dtype(to)
                        .unwrap();
                    same("deformation", to, || deformation(&logits, pairs, linear));
                    let map = noise(&[b, 1, h, w], 8);
                    same("veiled", to, || veiled(&logits, &map));
                }
            }
        }
    }
}

#[test]
fn border_kernels_compute_what_their_ops_say() {
    for (b, h, w) in [(2, 8, 9), (1, 1, 1), (3, 5, 2)] {
        let inner = noise(&[h, w], 1).abs().unwrap();
        for deformation in [noise(&[b, h, w, 2], 2), ugly(&[b, h, w, 2], 3)] {
            same("kept_still", DType::F32, || {
                kept_still(&deformation, &inner)
            });
        }
        for map in [noise(&[b, 1, h, w], 4), ugly(&[b, 1, h, w], 5)] {
            same("opened", DType::F32, || opened(&map, &inner));
        }
    }
}

#[test]
fn the_keypoint_kernel_computes_what_its_op_says_on_one_thread_and_on_several() {
    for (b, k, h, w) in [(2, 10, 8, 9), (1, 1, 1, 1), (1, 3, 58, 58)] {
        let logits = (noise(&[b, k, h, w], 1) * 3.0).unwrap();
        same("keypoints", DType::F32, || keypoints(&logits, None, 0.1));
        for maps in [noise(&[b, 4 * k, h, w], 2), noise(&[b, 4, h, w], 3)] {
            same("keypoints", DType::F32, || {
                keypoints(&logits, Some(&maps), 0.1)
            });
        }
    }
}

fn close(what: &str, got: &Tensor, wanted: &Tensor, limit: f32) {
    assert_eq!(got.dims(), wanted.dims(), "{what}");
    for (got, wanted) in flat(got).iter().zip(flat(wanted)) {
        assert!(
            (got - wanted).abs() <= limit,
            "{what}: {got} is not {wanted}"
        );
    }
}

#[test]
fn a_folded_convolution_is_one_over_the_enlarged_map() {
    for side in [4, 16, 19] {
        let (x, weight, bias) = (
            noise(&[2, 3, side, side + 1], 1),
            noise(&[5, 3, 3, 3], 2),
            noise(&[5], 3),
        );
        let large = crate::ops::resample::nearest_x2(&x).unwrap();
        let wanted = crate::ops::conv2d::conv2d(&large, &weight, Some(&bias), 1, 1, 1).unwrap();
        let got = up_conv2d(&x, &weight, &fold(&weight).unwrap(), &bias, false).unwrap();
        close("folded", &got, &wanted, 1e-4);
        let got = up_conv2d(&x, &weight, &fold(&weight).unwrap(), &bias, true).unwrap();
        close("folded, relu", &got, &wanted.relu().unwrap(), 1e-4);
    }
}

#[test]
fn an_op_is_the_steps_that_it_stands_for() {
    let x = noise(&[2, 4, 9, 8], 1);
    close(
        "nearest",
        &nearest_x2(&x).unwrap(),
        &x.upsample_nearest2d(18, 16).unwrap(),
        0.0,
    );
    close(
        "mean",
        &mean_2x2(&x).unwrap(),
        &x.avg_pool2d(2).unwrap(),
        1e-6,
    );
    let (weight, bias) = (noise(&[4, 1, 3, 3], 2), noise(&[4], 3));
    let wanted = crate::ops::conv2d::conv2d(&x, &weight, Some(&bias), 1, 1, 4).unwrap();
    close(
        "depthwise",
        &conv2d(&x, &weight, Some(&bias), 1, 1, 4, false).unwrap(),
        &wanted,
        1e-5,
    );
    let logits = noise(&[1, 2, 5, 6], 4);
    let heat = candle_nn::ops::softmax(&logits.reshape((1, 2, 30)).unwrap(), D::Minus1).unwrap();
    let columns: Vec<f32> = (0..30).map(|i| (i % 6) as f32 / 2.5 - 1.0).collect();
    let columns = Tensor::from_vec(columns, (1, 1, 30), &Device::Cpu).unwrap();
    let x_of = heat
        .broadcast_mul(&columns)
        .unwrap()
        .sum(D::Minus1)
        .unwrap();
    let found = keypoints(&logits, None, 1.0).unwrap();
    close("keypoints", &found.i((.., .., 0)).unwrap(), &x_of, 1e-5);
    let pixels =
        pack(&Tensor::new(&[[[[0f32]], [[0.5]], [[7.0]]]], &Device::Cpu).unwrap()).unwrap();
    assert_eq!(
        pixels.flatten_all().unwrap().to_vec1::<u8>().unwrap(),
        [0, 128, 255, 255]
    );
}

#[test]
fn half_precision_samples_at_places_of_f32() {
    let input = noise(&[1, 3, 6, 5], 1);
    let grid = noise(&[2, 4, 4, 2], 2);
    let wanted = grid_sample(&input, &grid, Padding::Zeros, true).unwrap();
    let half = input.to_dtype(DType::F16).unwrap();
    let got = grid_sample(&half, &grid, Padding::Zeros, true).unwrap();
    assert_eq!(got.dtype(), DType::F16);
    close("f16", &got, &wanted, 2e-3);
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let x = noise(&[1, 3, 4, 4], 1);
    assert!(conv2d(&x, &noise(&[3, 1, 9, 9], 1), None, 1, 1, 3, false).is_err());
    assert!(conv2d(&x, &noise(&[4, 1, 3, 3], 1), None, 1, 1, 3, false).is_err());
    assert!(scale_shift_relu(&x, &noise(&[2], 1), &noise(&[3], 1)).is_err());
    assert!(pack(&noise(&[1, 4, 2, 2], 1)).is_err());
    assert!(sparse_motion(&x, &noise(&[2, 5, 11], 1), true, 0.01, DType::F32).is_err());
    assert!(
        sparse_motion(
            &noise(&[3, 3, 4, 4], 1),
            &noise(&[2, 5, 12], 1),
            true,
            0.01,
            DType::F32
        )
        .is_err()
    );
    assert!(deformation(&noise(&[1, 4, 2, 2], 1), &noise(&[1, 4, 12], 1), true).is_err());
    assert!(keypoints(&x, Some(&noise(&[1, 5, 4, 4], 1)), 0.1).is_err());
    assert!(kept_still(&noise(&[1, 4, 4, 2], 1), &noise(&[4, 3], 1)).is_err());
    assert!(opened(&x, &noise(&[4, 4], 1)).is_err());
    assert!(veiled(&x, &noise(&[2, 1, 4, 4], 1)).is_err());
    assert!(unpack(&x).is_err());
    let many = Launch::new("pack/pack", DType::F32, usize::MAX, (1, 1));
    assert!(many.is_err());
}

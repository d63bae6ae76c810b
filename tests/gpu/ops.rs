//! Every op of the networks on the device, and every gradient of training, against candle's own on the CPU.

use candle_core::{DType, Device, Result, Tensor, Var};
use mimic::ops::conv2d::{Products, multiplying};
use mimic::ops::grid_sample::{Padding, grid_sample};
use mimic::ops::max_pool::max_pool;
use mimic::ops::{batch_norm, conv2d, fused, resample};

use crate::{card, distance, noise};

/// `op` of inputs on the device in a type, against the same on the CPU in f32, relative to the largest value.
fn on_device(what: &str, dtype: DType, limit: f64, op: impl Fn(&Device, DType) -> Result<Tensor>) {
    let card = card();
    let wanted = op(&Device::Cpu, DType::F32).unwrap();
    let got = op(&card.device, dtype).unwrap();
    let largest = crate::flat(&wanted)
        .iter()
        .fold(1f32, |most, v| most.max(v.abs()));
    let (mean, most) = distance(&got, &wanted);
    println!(
        "{what} in {dtype:?} on {}: mean {mean:.2e}, largest {most:.2e}",
        card.name
    );
    assert!(
        most <= limit * f64::from(largest),
        "{what} in {dtype:?}: {most} off"
    );
}

/// In f32 and in both half precisions.
fn in_each(what: &str, op: impl Fn(&Device, DType) -> Result<Tensor>) {
    for (dtype, limit) in [(DType::F32, 2e-5), (DType::F16, 4e-3), (DType::BF16, 3e-2)] {
        on_device(what, dtype, limit, &op);
    }
}

fn at(shape: &[usize], seed: u32, device: &Device, dtype: DType) -> Result<Tensor> {
    noise(shape, seed).to_device(device)?.to_dtype(dtype)
}

#[test]
fn convolutions() {
    for (b, c, c_out, side, k) in [
        (1, 3, 16, 33, 7),
        (2, 32, 16, 17, 3),
        (4, 8, 24, 64, 1),
        (1, 64, 64, 5, 3),
    ] {
        in_each("convolution", |device, dtype| {
            let x = at(&[b, c, side, side + 1], 1, device, dtype)?;
            // Sums of about one, as in a network.
            let weight = (at(&[c_out, c, k, k], 2, device, dtype)? / ((c * k * k) as f64).sqrt())?;
            let bias = at(&[c_out], 3, device, dtype)?;
            fused::conv2d(&x, &weight, Some(&bias), k / 2, 1, 1, true)
        });
    }
}

#[test]
fn depthwise_convolutions() {
    in_each("depthwise", |device, dtype| {
        let x = at(&[2, 37, 19, 23], 1, device, dtype)?;
        let (weight, bias) = (
            at(&[37, 1, 3, 3], 2, device, dtype)?,
            at(&[37], 3, device, dtype)?,
        );
        fused::conv2d(&x, &weight, Some(&bias), 1, 1, 37, true)
    });
}

#[test]
fn convolutions_after_an_enlargement() {
    for side in [8, 16, 33] {
        in_each("enlargement and convolution", |device, dtype| {
            let x = at(&[2, 16, side, side], 1, device, dtype)?;
            let weight = (at(&[12, 16, 3, 3], 2, device, dtype)? / 12.0)?;
            let bias = at(&[12], 3, device, dtype)?;
            fused::up_conv2d(&x, &weight, &fused::fold(&weight)?, &bias, true)
        });
    }
}

#[test]
fn norms_and_changes_of_size() {
    let shape = [2, 6, 21, 18];
    in_each("norm", |device, dtype| {
        let vector = |seed| at(&[6], seed, device, DType::F32);
        fused::scale_shift_relu(&at(&shape, 1, device, dtype)?, &vector(2)?, &vector(3)?)
    });
    in_each("nearest", |device, dtype| {
        fused::nearest_x2(&at(&shape, 1, device, dtype)?)
    });
    in_each("mean", |device, dtype| {
        fused::mean_2x2(&at(&shape, 1, device, dtype)?)
    });
    in_each("reduction", |device, dtype| {
        let kernel = (at(&[13, 13], 2, device, DType::F32)? / 13.0)?;
        fused::reduce(&at(&shape, 1, device, dtype)?, &kernel, 4)
    });
}

#[test]
fn sampling() {
    for (batch, padding, align) in [
        (1, Padding::Zeros, true),
        (3, Padding::Zeros, true),
        (3, Padding::Zeros, false),
        (1, Padding::Reflection, true),
        (3, Padding::Reflection, false),
    ] {
        in_each("sampling", |device, dtype| {
            let input = at(&[batch, 19, 16, 17], 1, device, dtype)?;
            let grid = (at(&[3, 9, 8, 2], 2, device, DType::F32)? * 1.3)?;
            grid_sample(&input, &grid, padding, align)
        });
    }
}

#[test]
fn motion() {
    for linear in [true, false] {
        let pairs = |device: &Device| -> Result<Tensor> {
            let eye = Tensor::new(&[[1f32, 0.0], [0.0, 1.0]], device)?;
            let jacobian = |b, seed| {
                (at(&[b, 10, 2, 2], seed, device, DType::F32)? * 0.2)?.broadcast_add(&eye)
            };
            let (source, driving) = (jacobian(1, 1)?, jacobian(3, 2)?);
            let jacobians = linear.then_some([&source, &driving]);
            let values = [
                at(&[1, 10, 2], 3, device, DType::F32)?,
                at(&[3, 10, 2], 4, device, DType::F32)?,
            ];
            fused::pairs([&values[0], &values[1]], jacobians)
        };
        in_each("sparse motion", |device, dtype| {
            let source = at(&[1, 3, 24, 24], 5, device, DType::F32)?;
            fused::sparse_motion(&source, &pairs(device)?, linear, 0.01, dtype)
        });
        in_each("deformation", |device, dtype| {
            let logits = at(&[3, 11, 24, 24], 6, device, dtype)?;
            fused::deformation(&logits, &pairs(device)?, linear)
        });
    }
}

#[test]
fn keypoints_and_bytes() {
    for maps in [Some(40), Some(4), None] {
        on_device("keypoints", DType::F32, 2e-5, |device, dtype| {
            let logits = at(&[2, 10, 58, 58], 1, device, dtype)?;
            let maps = maps
                .map(|maps| at(&[2, maps, 58, 58], 2, device, dtype))
                .transpose()?;
            fused::keypoints(&logits, maps.as_ref(), 0.1)
        });
    }
    on_device("bytes", DType::F32, 1.0 / 255.0, |device, dtype| {
        fused::pack(&at(&[2, 3, 31, 17], 1, device, dtype)?)
    });
}

/// Gradients of a weighted sum of what `op` makes of inputs, on the device and on the CPU.
fn gradients(what: &str, shapes: &[&[usize]], op: impl Fn(&[Tensor]) -> Result<Tensor>) {
    gradients_within(1e-3, what, shapes, op);
}

fn gradients_within(
    limit: f64,
    what: &str,
    shapes: &[&[usize]],
    op: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let of = |device: &Device| -> Result<Vec<Tensor>> {
        let vars = shapes
            .iter()
            .enumerate()
            .map(|(i, shape)| Var::from_tensor(&at(shape, i as u32 + 1, device, DType::F32)?));
        let vars = vars.collect::<Result<Vec<_>>>()?;
        let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
        let y = op(&tensors)?;
        let weights = at(y.dims(), 99, device, DType::F32)?;
        let grads = (y * weights)?.sum_all()?.backward()?;
        vars.iter()
            .map(|var| Ok(grads.get(var).unwrap().clone()))
            .collect()
    };
    let card = card();
    let (got, wanted) = (of(&card.device).unwrap(), of(&Device::Cpu).unwrap());
    for (i, (got, wanted)) in got.iter().zip(&wanted).enumerate() {
        let largest = crate::flat(wanted)
            .iter()
            .fold(1f32, |most, v| most.max(v.abs()));
        let (mean, most) = distance(got, wanted);
        println!(
            "gradient {i} of {what} on {}: mean {mean:.2e}, largest {most:.2e}",
            card.name
        );
        assert!(
            most <= limit * f64::from(largest),
            "gradient {i} of {what}: {most} off"
        );
    }
}

#[test]
fn gradients_of_sampling() {
    for (batch, padding, align) in [
        (1, Padding::Zeros, true),
        (2, Padding::Zeros, false),
        (2, Padding::Reflection, true),
    ] {
        gradients("sampling", &[&[batch, 5, 9, 8], &[2, 6, 7, 2]], |v| {
            grid_sample(&v[0], &v[1], padding, align)
        });
    }
}

#[test]
fn gradients_of_convolutions_and_changes_of_size() {
    gradients("convolution", &[&[2, 5, 9, 8], &[4, 5, 3, 3], &[4]], |v| {
        conv2d::conv2d(&v[0], &v[1], Some(&v[2]), 1, 1, 1)
    });
    gradients("depthwise", &[&[2, 5, 9, 8], &[5, 1, 3, 3], &[5]], |v| {
        conv2d::conv2d(&v[0], &v[1], Some(&v[2]), 1, 1, 5)
    });
    gradients("nearest", &[&[2, 3, 5, 4]], |v| resample::nearest_x2(&v[0]));
    gradients("mean", &[&[2, 3, 6, 4]], |v| resample::mean_2x2(&v[0]));
    gradients("mean of an odd picture", &[&[2, 3, 7, 5]], |v| {
        resample::mean_2x2(&v[0])
    });
    gradients("bilinear", &[&[2, 3, 6, 4]], |v| {
        resample::bilinear(&v[0], 9, 7)
    });
    for relu in [true, false] {
        gradients("batch norm", &[&[2, 3, 6, 4], &[3], &[3]], |v| {
            Ok(batch_norm::normalise(&v[0], &v[1], &v[2], relu)?.0)
        });
    }
    for (side, stride, partial) in [(2, 2, false), (3, 2, true), (3, 2, false)] {
        gradients("max pooling", &[&[2, 3, 12, 9]], |v| {
            max_pool(&v[0], side, stride, partial)
        });
    }
}

/// Those that the networks of training have: strided, of one channel, with and without bias, of kernels with an even side.
#[test]
fn convolutions_of_training() {
    for (b, c, c_out, k, padding, stride) in [
        (2, 32, 48, 3, 1, 1),
        (2, 3, 16, 7, 3, 1),
        (2, 3, 16, 3, 0, 2),
        (6, 1, 1, 13, 6, 4),
        (2, 16, 8, 1, 0, 1),
        (2, 4, 6, 4, 0, 1),
        (2, 16, 3, 7, 0, 1),
    ] {
        let what = format!("convolution of {c} to {c_out} by {k}, {padding}, {stride}");
        let (x, weight) = ([b, c, 33, 34], [c_out, c, k, k]);
        // Of both values and gradients sums are long.
        on_device(&what, DType::F32, 1e-4, |device, dtype| {
            let (x, weight) = (at(&x, 1, device, dtype)?, at(&weight, 2, device, dtype)?);
            // Learnt from, so that it is not the op of inference.
            let weight = Var::from_tensor(&weight)?;
            conv2d::conv2d(&x, &weight, None, padding, stride, 1)
        });
        for (products, limit) in [
            (Products::Exact, 1e-3),
            (Products::Tf32, 5e-3),
            (Products::Bf16, 3e-2),
        ] {
            gradients_within(limit, &what, &[&x, &weight, &[c_out]], |v| {
                multiplying(products, || {
                    conv2d::conv2d(&v[0], &v[1], Some(&v[2]), padding, stride, 1)
                })
            });
        }
    }
}

#[test]
fn statistics_of_a_batch() {
    for part in [0, 1] {
        on_device("statistics", DType::F32, 1e-5, |device, dtype| {
            let x = (at(&[3, 5, 9, 7], 1, device, dtype)? * 2.0)?;
            let (weight, bias) = (at(&[5], 2, device, dtype)?, at(&[5], 3, device, dtype)?);
            let (_, statistics) = batch_norm::normalise(&(x + 0.5)?, &weight, &bias, true)?;
            Ok([statistics.mean, statistics.variance][part].clone())
        });
    }
}

//! Checking gradients by finite differences, for the tests of the ops.

use candle_core::{DType, Device, Result, Tensor, Var};

use super::reference;

/// Numbers without a pattern in -1..1, in f64.
pub(crate) fn noise(shape: &[usize], seed: u32) -> Tensor {
    let values = reference::noise(shape.iter().product(), seed);
    Tensor::from_vec(values, shape, &Device::Cpu)
        .and_then(|t| t.to_dtype(DType::F64))
        .unwrap()
}

/// The largest difference of two tensors of f64.
pub(crate) fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let largest = (a - b).and_then(|d| d.abs()?.max_all()?.to_scalar());
    let largest: f64 = largest.unwrap();
    if largest.is_nan() {
        f64::INFINITY
    } else {
        largest
    }
}

/// Gradients of a weighted sum of what `op` makes of `inputs`.
pub(crate) fn of(inputs: &[Tensor], op: &dyn Fn(&[Tensor]) -> Result<Tensor>) -> Vec<Tensor> {
    let vars: Vec<Var> = inputs
        .iter()
        .map(|t| Var::from_tensor(t).unwrap())
        .collect();
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let gradients = weighted(&op(&tensors).unwrap()).backward().unwrap();
    vars.iter()
        .map(|v| match gradients.get(v) {
            Some(gradient) => gradient.clone(),
            None => v.zeros_like().unwrap(),
        })
        .collect()
}

/// Compares every gradient of `op` with the difference of two values nearby, in f64.
pub(crate) fn check(inputs: &[Tensor], op: impl Fn(&[Tensor]) -> Result<Tensor>) {
    check_all(inputs, &op, 1e-5, 1e-6);
}

/// The same with the step and the tolerance that the op asks for.
pub(crate) fn check_all(
    inputs: &[Tensor],
    op: &dyn Fn(&[Tensor]) -> Result<Tensor>,
    step: f64,
    tolerance: f64,
) {
    let gradients = of(inputs, op);
    for (which, gradient) in gradients.iter().enumerate() {
        let gradient: Vec<f64> = gradient.flatten_all().unwrap().to_vec1().unwrap();
        let values: Vec<f64> = inputs[which].flatten_all().unwrap().to_vec1().unwrap();
        // A few dozen places of a large input are enough.
        for i in (0..values.len()).step_by((values.len() / 40).max(1)) {
            let at = |offset: f64| {
                let mut moved = values.clone();
                moved[i] += offset;
                let mut inputs = inputs.to_vec();
                inputs[which] =
                    Tensor::from_vec(moved, inputs[which].shape(), &Device::Cpu).unwrap();
                weighted(&op(&inputs).unwrap()).to_scalar::<f64>().unwrap()
            };
            let wanted = (at(step) - at(-step)) / (2.0 * step);
            let difference = (gradient[i] - wanted).abs();
            assert!(
                difference <= tolerance * wanted.abs().max(1.0),
                "input {which}, place {i}: {} is not {wanted}",
                gradient[i]
            );
        }
    }
}

/// Every value counts, each by a number of its own.
fn weighted(output: &Tensor) -> Tensor {
    let weights = noise(output.dims(), 99).to_dtype(output.dtype()).unwrap();
    (output * weights).unwrap().sum_all().unwrap()
}

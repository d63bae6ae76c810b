//! Sigmoid and softmax over slices, with an exponential that the compiler can turn into vectors.

use super::simd::{Isa, Simd, kernel};

/// e^x to about one unit in the last place, for x in -87..88 (clamped), branch-free.
///
/// Split into a power of two and a polynomial over -ln 2 / 2 .. ln 2 / 2, the coefficients as in
/// Cephes' `expf`.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 leaves the nearest whole number in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts, so that the product with n is exact.
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for c in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        0.166_666_65,
        0.5,
    ] {
        p = p * r + c;
    }
    let mantissa = p * r * r + r + 1.0;
    let power = (shifted.to_bits() << 23).wrapping_add(1f32.to_bits());
    mantissa * f32::from_bits(power)
}

/// 1 / (1 + e^-x) in place.
pub fn sigmoid(isa: Isa, values: &mut [f32]) {
    // SAFETY: the instruction set is one of this machine's, by who made the workers.
    unsafe { sigmoid_kernel(isa, values) };
}

/// exp(scale * (x - maximum)) in place; returns the sum.
pub fn exponentials(isa: Isa, values: &mut [f32], scale: f32) -> f32 {
    let mut sum = 0.0;
    // SAFETY: as above.
    unsafe { exponentials_kernel(isa, values, scale, &mut sum) };
    sum
}

kernel!(sigmoid_kernel(values: &mut [f32]) = sigmoid_body);
kernel!(exponentials_kernel(values: &mut [f32], scale: f32, sum: &mut f32) = exponentials_body);

#[inline(always)]
unsafe fn sigmoid_body<S: Simd, const ROWS: usize, const WIDE: usize>(values: &mut [f32]) {
    for value in values {
        *value = 1.0 / (1.0 + exp(-*value));
    }
}

#[inline(always)]
unsafe fn exponentials_body<S: Simd, const ROWS: usize, const WIDE: usize>(
    values: &mut [f32],
    scale: f32,
    sum: &mut f32,
) {
    let highest = values
        .iter()
        .copied()
        .fold(f32::NEG_INFINITY, |a, b| if a > b { a } else { b });
    for value in &mut *values {
        *value = exp(scale * (*value - highest));
    }
    *sum = values.iter().sum();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_right_to_the_last_places() {
        for i in -8700..8800 {
            let x = i as f32 * 0.01;
            let error = f64::from(exp(x)) / f64::from(x).exp() - 1.0;
            assert!(error.abs() < 3e-7, "exp({x}) is off by {error:e}");
        }
    }

    #[test]
    fn sigmoids_and_softmaxes_stay_in_range() {
        for isa in Isa::available() {
            let mut values = vec![-1000.0, -1.0, 0.0, 2.5, 1000.0];
            sigmoid(isa, &mut values);
            let wanted = [0.0, 0.268_941_43, 0.5, 0.924_141_8, 1.0];
            for (value, wanted) in values.iter().zip(wanted) {
                assert!((value - wanted).abs() < 1e-6, "{value} is not {wanted}");
            }
            let mut values = vec![1.0, 2.0, -1000.0];
            let sum = exponentials(isa, &mut values, 10.0);
            assert!((values[1] - 1.0).abs() < 1e-6 && values[2] < 1e-30);
            assert!((sum - 1.0 - (-10f32).exp()).abs() < 1e-6);
        }
    }
}

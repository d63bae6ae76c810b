//! 2x2 matrices in closed form, as tensors (candle has no inverse) and as plain numbers.

use candle_core::{D, Result, Tensor};

/// How close to zero a determinant may come; a singular matrix gets a large inverse instead of an
/// infinite one, so that one bad keypoint cannot turn a whole picture into NaN.
pub const MIN_DETERMINANT: f64 = 1e-8;

/// A matrix, row by row.
pub type Matrix = [[f64; 2]; 2];

/// a b.
pub fn product(a: Matrix, b: Matrix) -> Matrix {
    a.map(|row| [0, 1].map(|column| row[0] * b[0][column] + row[1] * b[1][column]))
}

/// The inverse; `None` for a matrix that is singular (see [`MIN_DETERMINANT`]) or holds no numbers.
pub fn inverse(m: Matrix) -> Option<Matrix> {
    let determinant = determinant(m);
    // Written so that NaN counts as singular too.
    let regular = determinant.abs() > MIN_DETERMINANT && determinant.is_finite();
    regular.then(|| inverse_or_large(m))
}

/// The inverse as [`inverse_2x2`] gives it: large and finite for a singular matrix.
pub fn inverse_or_large(m: Matrix) -> Matrix {
    let [[a, b], [c, d]] = m;
    let determinant = determinant(m);
    let sign = if determinant >= 0.0 { 1.0 } else { -1.0 };
    let determinant = determinant.abs().max(MIN_DETERMINANT) * sign;
    [[d, -b], [-c, a]].map(|row| row.map(|v| v / determinant))
}

fn determinant([[a, b], [c, d]]: Matrix) -> f64 {
    a * d - b * c
}

/// A matrix of f32 with more room to compute.
pub fn widen(m: [[f32; 2]; 2]) -> Matrix {
    m.map(|row| row.map(f64::from))
}

/// The same in f32 again.
pub fn narrow(m: Matrix) -> [[f32; 2]; 2] {
    m.map(|row| row.map(|v| v as f32))
}

/// The inverses of matrices (.., 2, 2), with gradients.
pub fn inverse_2x2(matrices: &Tensor) -> Result<Tensor> {
    let element = |row, column| {
        matrices
            .narrow(D::Minus2, row, 1)?
            .narrow(D::Minus1, column, 1)
    };
    let (a, b) = (element(0, 0)?, element(0, 1)?);
    let (c, d) = (element(1, 0)?, element(1, 1)?);
    let determinant = ((&a * &d)? - (&b * &c)?)?;
    let sign = determinant
        .ge(0f64)?
        .to_dtype(determinant.dtype())?
        .affine(2.0, -1.0)?;
    let determinant = (determinant.abs()?.maximum(MIN_DETERMINANT)? * sign)?;
    let top = Tensor::cat(&[&d, &b.neg()?], D::Minus1)?;
    let bottom = Tensor::cat(&[&c.neg()?, &a], D::Minus1)?;
    Tensor::cat(&[top, bottom], D::Minus2)?.broadcast_div(&determinant)
}

#[cfg(test)]
mod tests {
    use super::super::gradient;
    use super::*;
    use candle_core::Device;

    fn invert(matrix: [[f64; 2]; 2]) -> Vec<Vec<f64>> {
        inverse_2x2(&Tensor::new(&matrix, &Device::Cpu).unwrap())
            .unwrap()
            .to_vec2()
            .unwrap()
    }

    #[test]
    fn an_inverse_undoes_its_matrix() {
        assert_eq!(invert([[4.0, 7.0], [2.0, 6.0]]), [[0.6, -0.7], [-0.2, 0.4]]);
        assert_eq!(invert([[0.0, 2.0], [4.0, 0.0]]), [[0.0, 0.25], [0.5, 0.0]]);
        let batch = Tensor::rand(-2f32, 2.0, (3, 10, 2, 2), &Device::Cpu).unwrap();
        let product = batch.matmul(&inverse_2x2(&batch).unwrap()).unwrap();
        let product: Vec<f32> = product.flatten_all().unwrap().to_vec1().unwrap();
        for (i, value) in product.iter().enumerate() {
            let wanted = if matches!(i % 4, 0 | 3) { 1.0 } else { 0.0 };
            assert!((value - wanted).abs() < 1e-2, "element {i} is {value}");
        }
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let matrices = gradient::noise(&[5, 2, 2], 7);
        gradient::check_all(&[matrices], &|v| inverse_2x2(&v[0]), 1e-6, 1e-4);
    }

    #[test]
    fn a_singular_matrix_gives_large_but_finite_numbers() {
        for matrix in [[[0.0, 0.0], [0.0, 0.0]], [[1.0, 2.0], [2.0, 4.0]]] {
            assert!(invert(matrix).iter().flatten().all(|v| v.is_finite()));
        }
    }

    #[test]
    fn plain_numbers_are_inverted_as_tensors_are() {
        for matrix in [
            [[4.0, 7.0], [2.0, 6.0]],
            [[0.0, 2.0], [4.0, 0.0]],
            [[0.0, 0.0], [0.0, 0.0]],
            [[1.0, 2.0], [2.0, 4.0]],
            [[1e-5, 0.0], [3.0, -1e-5]],
        ] {
            let plain = inverse_or_large(matrix);
            assert_eq!(plain.map(Vec::from).to_vec(), invert(matrix), "{matrix:?}");
            let regular = determinant(matrix).abs() > MIN_DETERMINANT;
            assert_eq!(inverse(matrix), regular.then_some(plain), "{matrix:?}");
        }
        assert_eq!(inverse([[f64::NAN, 0.0], [0.0, 1.0]]), None);
    }
}

//! 2x2 matrices in closed form: candle has no inverse.

use candle_core::{D, Result, Tensor};

/// How close to zero a determinant may come; a singular matrix gets a large inverse instead of an
/// infinite one, so that one bad keypoint cannot turn a whole picture into NaN.
pub const MIN_DETERMINANT: f64 = 1e-8;

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
    fn a_singular_matrix_gives_large_but_finite_numbers() {
        for matrix in [[[0.0, 0.0], [0.0, 0.0]], [[1.0, 2.0], [2.0, 4.0]]] {
            assert!(invert(matrix).iter().flatten().all(|v| v.is_finite()));
        }
    }
}

//! Max pooling with a gradient for windows that overlap, which candle's has not.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::unfold::{Element, Values, part};

/// The largest value of every window of `side` x `side` pixels, `stride` apart, of (b, c, h, w). With
/// `partial` the last windows may reach beyond the picture (PyTorch's `ceil_mode`).
///
/// # Errors
/// When the picture is smaller than a window.
pub fn max_pool(x: &Tensor, side: usize, stride: usize, partial: bool) -> Result<Tensor> {
    let op = MaxPool {
        side,
        stride,
        partial,
    };
    let (_, _, h, w) = x.dims4()?;
    if side == 0 || stride == 0 || h.min(w) < side {
        bail!("max_pool: windows of {side} in a picture of {h}x{w}");
    }
    if x.device().is_cpu() && matches!(x.dtype(), DType::F32 | DType::F64) {
        return x.contiguous()?.apply_op1(op);
    }
    let x = op.completed(x)?;
    #[cfg(feature = "cudnn")]
    if super::card::takes(&x) {
        return super::card::max_pool(&x, side, stride);
    }
    x.max_pool2d_with_stride(side, stride)
}

struct MaxPool {
    side: usize,
    stride: usize,
    partial: bool,
}

impl MaxPool {
    fn output(&self, n: usize) -> usize {
        let steps = n - self.side;
        let whole = steps / self.stride + 1;
        // A partial window must begin inside.
        let more = self.partial && !steps.is_multiple_of(self.stride) && whole * self.stride < n;
        whole + usize::from(more)
    }

    /// Of (b, c, h, w) the same with its edge repeated, so that all windows are whole and their largest values what they were.
    fn completed(&self, x: &Tensor) -> Result<Tensor> {
        let (_, _, h, w) = x.dims4()?;
        let missing = |n: usize| ((self.output(n) - 1) * self.stride + self.side).saturating_sub(n);
        x.pad_with_same(2, 0, missing(h))?
            .pad_with_same(3, 0, missing(w))
    }

    /// The place of the largest value under the window of an output pixel.
    fn largest<T: Element>(
        &self,
        x: &[T],
        (h, w): (usize, usize),
        y: usize,
        column: usize,
    ) -> usize {
        let (top, left) = (y * self.stride, column * self.stride);
        let mut best = top * w + left;
        for row in top..(top + self.side).min(h) {
            for at in row * w + left..row * w + (left + self.side).min(w) {
                if x[at] > x[best] {
                    best = at;
                }
            }
        }
        best
    }

    fn forward<T: Element>(&self, x: &[T], (h, w): (usize, usize)) -> Vec<T> {
        let (ho, wo) = (self.output(h), self.output(w));
        let mut y = vec![T::from_f64(0.0); x.len() / (h * w) * ho * wo];
        let planes = y.par_chunks_mut(ho * wo).zip(x.par_chunks(h * w));
        planes.for_each(|(y, x)| {
            for (i, y) in y.iter_mut().enumerate() {
                *y = x[self.largest(x, (h, w), i / wo, i % wo)];
            }
        });
        y
    }

    fn backward<T: Element>(&self, x: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let (_, _, h, w) = x.dims4()?;
        let (ho, wo) = (self.output(h), self.output(w));
        let grad = grad.contiguous()?;
        let (pixels, grads) = (Values::<T>::of(x)?, Values::<T>::of(&grad)?);
        let mut sums = vec![T::from_f64(0.0); pixels.len()];
        let planes = sums.par_chunks_mut(h * w).zip(pixels.par_chunks(h * w));
        planes
            .zip(grads.par_chunks(ho * wo))
            .for_each(|((sums, x), grads)| {
                for (i, grad) in grads.iter().enumerate() {
                    sums[self.largest(x, (h, w), i / wo, i % wo)] += *grad;
                }
            });
        Tensor::from_vec(sums, x.shape(), x.device())
    }
}

impl CustomOp1 for MaxPool {
    fn name(&self) -> &'static str {
        "max_pool"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (b, c, h, w) = layout.shape().dims4()?;
        let storage = match x {
            CpuStorage::F32(x) => CpuStorage::F32(self.forward(part(x, layout)?, (h, w))),
            CpuStorage::F64(x) => CpuStorage::F64(self.forward(part(x, layout)?, (h, w))),
            _ => bail!("max_pool: pixels must be f32 or f64"),
        };
        Ok((storage, Shape::from((b, c, self.output(h), self.output(w)))))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(match x.dtype() {
            DType::F64 => self.backward::<f64>(x, grad)?,
            _ => self.backward::<f32>(x, grad)?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::gradient;
    use super::*;

    #[test]
    fn whole_windows_are_candles() {
        let x = gradient::noise(&[2, 3, 9, 8], 1);
        for (side, stride) in [(2, 2), (3, 2), (3, 3)] {
            let wanted = x.max_pool2d_with_stride(side, stride).unwrap();
            let got = max_pool(&x, side, stride, false).unwrap();
            assert_eq!(gradient::distance(&got, &wanted), 0.0);
        }
    }

    #[test]
    fn partial_windows_count_when_they_begin_inside() {
        // PyTorch: 31 -> 15, 8 -> 4, 5 -> 2, 4 -> 2 for windows of 3, 2 apart.
        for (n, wanted) in [(31, 15), (8, 4), (5, 2), (4, 2)] {
            let x = gradient::noise(&[1, 1, n, n], 1);
            assert_eq!(max_pool(&x, 3, 2, true).unwrap().dims()[3], wanted, "{n}");
        }
        assert!(max_pool(&gradient::noise(&[1, 1, 2, 9], 1), 3, 2, true).is_err());
    }

    #[test]
    fn windows_are_made_whole_by_repeating_the_edge() {
        for (h, w) in [(8, 9), (7, 4), (31, 10), (5, 6)] {
            let x = gradient::noise(&[1, 2, h, w], 1);
            for (side, stride, partial) in
                [(3, 2, true), (2, 2, false), (3, 2, false), (3, 1, true)]
            {
                let op = MaxPool {
                    side,
                    stride,
                    partial,
                };
                let got = op.completed(&x).unwrap();
                let got = got.max_pool2d_with_stride(side, stride).unwrap();
                let wanted = max_pool(&x, side, stride, partial).unwrap();
                assert_eq!(gradient::distance(&got, &wanted), 0.0);
            }
        }
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let x = [gradient::noise(&[2, 2, 8, 9], 1)];
        gradient::check(&x, |v| max_pool(&v[0], 2, 2, false));
        gradient::check(&x, |v| max_pool(&v[0], 3, 2, true));
    }
}

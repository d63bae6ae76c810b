//! Changing a picture's size: nearest x2, anti-aliased reduction, bilinear.
//!
//! candle's own versions lack a gradient (bilinear) or have a wrong one (nearest), and its grouped
//! convolution runs group by group; these are put together from ops that have none of it.

use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::conv2d::{Products, conv2d, multiplying};
use super::fused;
#[cfg(feature = "cuda")]
use super::fused::Launch;
use super::unfold::{Element, part};

/// Doubles height and width of (b, c, h, w), repeating every pixel.
pub fn nearest_x2(x: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    if fused::fuses(x) {
        return fused::nearest_x2(x);
    }
    if plain(x) {
        return x
            .contiguous()?
            .apply_op1(Quads::Repeat { h: 2 * h, w: 2 * w });
    }
    #[cfg(feature = "cuda")]
    if on_card(x) {
        return x.contiguous()?.apply_op1(OnCard::Double);
    }
    x.reshape((b, c, h, 1, w, 1))?
        .broadcast_as((b, c, h, 2, w, 2))?
        .reshape((b, c, 2 * h, 2 * w))
}

/// The mean of every 2x2 pixels of (b, c, h, w); a last odd row or column is left out.
pub fn mean_2x2(x: &Tensor) -> Result<Tensor> {
    if fused::fuses(x) {
        return fused::mean_2x2(x);
    }
    if plain(x) {
        return x.contiguous()?.apply_op1(Quads::Sum)?.affine(0.25, 0.0);
    }
    #[cfg(feature = "cuda")]
    if on_card(x) {
        return x.contiguous()?.apply_op1(OnCard::Mean);
    }
    x.avg_pool2d(2)
}

fn plain(x: &Tensor) -> bool {
    x.device().is_cpu() && matches!(x.dtype(), DType::F32 | DType::F64)
}

#[cfg(feature = "cuda")]
fn on_card(x: &Tensor) -> bool {
    x.device().is_cuda() && x.dtype() == DType::F32
}

/// The kernels of [`fused`] with gradients, by each other.
#[cfg(feature = "cuda")]
#[derive(Clone, Copy)]
enum OnCard {
    Double,
    Mean,
}

#[cfg(feature = "cuda")]
impl CustomOp1 for OnCard {
    fn name(&self) -> &'static str {
        "quads_on_card"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("quads: kernels are run by cards alone")
    }

    fn cuda_fwd(
        &self,
        x: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let (b, c, h, w) = layout.shape().dims4()?;
        let (kernel, ho, wo) = match self {
            Self::Double => ("resample/nearest_x2", 2 * h, 2 * w),
            Self::Mean => ("resample/mean_2x2", h / 2, w / 2),
        };
        let to = (b, c, ho, wo);
        let mut launch = Launch::new(kernel, DType::F32, b * c * ho * wo, to)?;
        launch.params = launch.params.sized([b, c, h, w], [ho, wo]);
        fused::launch(&launch, &[(x, layout)])
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (_, _, h, w) = x.dims4()?;
        Ok(Some(match self {
            Self::Double => fused::mean_2x2(grad)?.affine(4.0, 0.0)?,
            Self::Mean => fused::nearest_x2(&grad.affine(0.25, 0.0)?)?
                .pad_with_zeros(2, 0, h % 2)?
                .pad_with_zeros(3, 0, w % 2)?,
        }))
    }
}

/// Two ops that are each other's gradient.
#[derive(Clone, Copy)]
enum Quads {
    /// The sums of 2x2 pixels.
    Sum,
    /// Every pixel 2x2 times, zeros in what is left of h x w.
    Repeat { h: usize, w: usize },
}

impl Quads {
    fn run<T: Element>(self, x: &[T], (h, w): (usize, usize), (ho, wo): (usize, usize)) -> Vec<T> {
        let planes = x.len() / (h * w).max(1);
        let mut y = vec![T::from_f64(0.0); planes * ho * wo];
        if y.is_empty() {
            return y;
        }
        y.par_chunks_mut(ho * wo)
            .enumerate()
            .for_each(|(plane, y)| {
                let x = &x[plane * h * w..][..h * w];
                for (i, y) in y.chunks_exact_mut(wo).enumerate() {
                    match self {
                        Self::Sum => {
                            let (upper, lower) = x[2 * i * w..][..2 * w].split_at(w);
                            let (upper, lower) =
                                (upper.as_chunks::<2>().0, lower.as_chunks::<2>().0);
                            for ((y, a), b) in y.iter_mut().zip(upper).zip(lower) {
                                *y = a[0] + a[1] + b[0] + b[1];
                            }
                        }
                        Self::Repeat { .. } if i / 2 < h => {
                            let (y, _) = y.as_chunks_mut::<2>();
                            for (y, x) in y.iter_mut().zip(&x[i / 2 * w..][..w]) {
                                *y = [*x, *x];
                            }
                        }
                        Self::Repeat { .. } => {}
                    }
                }
            });
        y
    }
}

impl CustomOp1 for Quads {
    fn name(&self) -> &'static str {
        "quads"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (b, c, h, w) = layout.shape().dims4()?;
        let to = match *self {
            Self::Sum => (h / 2, w / 2),
            Self::Repeat { h, w } => (h, w),
        };
        let storage = match x {
            CpuStorage::F32(x) => CpuStorage::F32(self.run(part(x, layout)?, (h, w), to)),
            CpuStorage::F64(x) => CpuStorage::F64(self.run(part(x, layout)?, (h, w), to)),
            _ => bail!("pixels must be f32 or f64"),
        };
        Ok((storage, Shape::from((b, c, to.0, to.1))))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (_, _, h, w) = x.dims4()?;
        let inverse = match self {
            Self::Sum => Self::Repeat { h, w },
            Self::Repeat { .. } => Self::Sum,
        };
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&inverse)?))
    }
}

/// Band-limited reduction to one pixel in `factor`: a gaussian, then every `factor`-th pixel from
/// the first on.
#[derive(Clone, Debug)]
pub struct AntiAlias {
    /// On the device, in f32.
    kernel: Tensor,
    factor: usize,
}

impl AntiAlias {
    /// `kernel_size` is odd; `factor` 1 leaves pictures as they are.
    pub fn new(factor: usize, kernel_size: usize, sigma: f64, device: &Device) -> Result<Self> {
        if factor == 0 || kernel_size.is_multiple_of(2) {
            bail!("anti-aliasing needs an odd kernel, not {kernel_size}, and a factor over 0");
        }
        let line = gaussian(kernel_size, sigma);
        let mut square: Vec<f32> = line
            .iter()
            .flat_map(|a| line.iter().map(move |b| a * b))
            .collect();
        let sum = square.iter().map(|v| f64::from(*v)).sum::<f64>() as f32;
        square.iter_mut().for_each(|v| *v /= sum);
        Ok(Self {
            kernel: Tensor::from_vec(square, (1, 1, kernel_size, kernel_size), device)?,
            factor,
        })
    }

    /// The gaussian that the reference takes for a reduction by `factor`.
    pub fn for_factor(factor: usize, device: &Device) -> Result<Self> {
        let sigma = (factor as f64 - 1.0) / 2.0;
        // 4 sigma to each side; twice (factor - 1) is always whole.
        Self::new(factor, 4 * factor.saturating_sub(1) + 1, sigma, device)
    }

    /// The gaussian (k, k), f32.
    pub(crate) fn kernel(&self) -> Result<Tensor> {
        self.kernel.squeeze(0)?.squeeze(0)
    }

    /// By how much pictures are reduced.
    pub(crate) fn factor(&self) -> usize {
        self.factor
    }

    /// (b, c, h, w) to (b, c, ceil(h / factor), ceil(w / factor)).
    ///
    /// One strided convolution over channels taken as pictures: only the pixels that are kept are
    /// computed.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if self.factor == 1 {
            return Ok(x.clone());
        }
        let (b, c, h, w) = x.dims4()?;
        let side = self.kernel.dim(3)?;
        if fused::fuses(x) {
            return fused::reduce(x, &self.kernel.reshape((side, side))?, self.factor);
        }
        let padding = side / 2;
        let kernel = self.kernel.to_dtype(x.dtype())?;
        let x = x.reshape((b * c, 1, h, w))?;
        // Pictures that losses compare: always in full.
        let exactly = || conv2d(&x, &kernel, None, padding, self.factor, 1);
        let small = multiplying(Products::Exact, exactly)?;
        let (_, _, h, w) = small.dims4()?;
        small.reshape((b, c, h, w))
    }
}

/// Bilinear change of size of (b, c, h, w), pixels taken as areas (`align_corners` off): two matrix
/// products, so that it has a gradient on every device.
pub fn bilinear(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    if (h, w) == (height, width) {
        return Ok(x.clone());
    }
    let rows = bilinear_weights(h, height, x.dtype(), x.device())?;
    let columns = bilinear_weights(w, width, x.dtype(), x.device())?;
    let wide = x
        .contiguous()?
        .reshape((b * c * h, w))?
        .matmul(&columns.t()?)?;
    let wide = wide.reshape((b * c, h, width))?;
    rows.broadcast_as((b * c, height, h))?
        .contiguous()?
        .matmul(&wide)?
        .reshape((b, c, height, width))
}

/// Row i holds the shares of the `from` old pixels in new pixel i, (to, from).
fn bilinear_weights(from: usize, to: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    let mut weights = vec![0f64; from * to];
    let scale = from as f64 / to as f64;
    for (i, row) in weights.chunks_exact_mut(from.max(1)).enumerate() {
        let position = ((i as f64 + 0.5) * scale - 0.5).max(0.0);
        let first = (position as usize).min(from - 1);
        let share = position - first as f64;
        row[first] += 1.0 - share;
        row[(first + 1).min(from - 1)] += share;
    }
    Tensor::from_vec(weights, (to, from), device)?.to_dtype(dtype)
}

/// A sampled gaussian around the middle of `size` places, 1 there. In f32 whatever computes with it, as the reference's is: the
/// gradients of training are so ill-conditioned that its last bit shows.
fn gaussian(size: usize, sigma: f64) -> Vec<f32> {
    let mean = (size as f32 - 1.0) / 2.0;
    // The small term is the reference's; it keeps sigma 0 defined.
    let width = (2.0 * sigma * sigma + 1e-9) as f32;
    let line = (0..size).map(|i| (-(i as f32 - mean).powi(2) / width).exp());
    line.collect()
}

#[cfg(test)]
mod tests {
    use super::super::gradient;
    use super::*;

    fn ramp(b: usize, c: usize, h: usize, w: usize) -> Tensor {
        let values: Vec<f32> = (0..b * c * h * w).map(|i| (i as f32 * 0.7).sin()).collect();
        Tensor::from_vec(values, (b, c, h, w), &Device::Cpu).unwrap()
    }

    fn flat(t: &Tensor) -> Vec<f32> {
        t.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn doubling_repeats_every_pixel() {
        let x = Tensor::new(&[[[[1f32, 2.0], [3.0, 4.0]]]], &Device::Cpu).unwrap();
        let wanted = [
            1., 1., 2., 2., 1., 1., 2., 2., 3., 3., 4., 4., 3., 3., 4., 4.,
        ]
        .map(|v: f32| v);
        assert_eq!(flat(&nearest_x2(&x).unwrap()), wanted);
        let x = ramp(2, 3, 5, 4);
        let wanted = x.upsample_nearest2d(10, 8).unwrap();
        assert_eq!(flat(&nearest_x2(&x).unwrap()), flat(&wanted));
    }

    #[test]
    fn reduction_is_a_blur_of_which_every_nth_pixel_is_kept() {
        let (h, w) = (16i64, 12i64);
        let x = ramp(2, 3, h as usize, w as usize);
        let got = AntiAlias::for_factor(4, &Device::Cpu)
            .unwrap()
            .forward(&x)
            .unwrap();
        assert_eq!(got.dims(), [2, 3, 4, 3]);
        let (x, got) = (flat(&x), flat(&got));
        // A 13-wide gaussian of deviation 1.5, zeros outside.
        let weight = |d: i64| (-(d * d) as f64 / 4.5).exp();
        let sum: f64 = (-6..=6).map(weight).sum();
        for (i, got) in got.iter().enumerate() {
            let (plane, row, column) = (i / 12, 4 * (i as i64 / 3 % 4), 4 * (i as i64 % 3));
            let mut wanted = 0.0;
            for (dy, dx) in (-6..=6).flat_map(|dy| (-6..=6).map(move |dx| (dy, dx))) {
                let (y, x_at) = (row + dy, column + dx);
                if (0..h).contains(&y) && (0..w).contains(&x_at) {
                    let value = x[plane * 192 + (y * w + x_at) as usize];
                    wanted += weight(dy) * weight(dx) / (sum * sum) * f64::from(value);
                }
            }
            assert!(
                (f64::from(*got) - wanted).abs() < 1e-6,
                "{i}: {got} {wanted}"
            );
        }
    }

    #[test]
    fn a_factor_of_one_changes_nothing() {
        let x = ramp(1, 2, 3, 3);
        let same = AntiAlias::for_factor(1, &Device::Cpu)
            .unwrap()
            .forward(&x)
            .unwrap();
        assert_eq!(flat(&same), flat(&x));
    }

    #[test]
    fn bilinear_takes_pixels_as_areas() {
        let x = Tensor::new(&[[[[0f32, 4.0]]]], &Device::Cpu).unwrap();
        assert_eq!(flat(&bilinear(&x, 1, 4).unwrap()), [0.0, 1.0, 3.0, 4.0]);
        for (h, w) in [(20, 12), (3, 2), (7, 9)] {
            let x = ramp(2, 2, 5, 6);
            let wanted = x.upsample_bilinear2d(h, w, false).unwrap();
            let got = bilinear(&x, h, w).unwrap();
            for (got, wanted) in flat(&got).iter().zip(flat(&wanted)) {
                assert!((got - wanted).abs() < 1e-6, "{got} {wanted}");
            }
        }
    }

    #[test]
    fn the_mean_of_four_leaves_odd_edges_out() {
        let x = ramp(2, 3, 5, 7);
        let wanted = x.avg_pool2d(2).unwrap();
        for (got, wanted) in flat(&mean_2x2(&x).unwrap()).iter().zip(flat(&wanted)) {
            assert!((got - wanted).abs() < 1e-6);
        }
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let x = [gradient::noise(&[2, 2, 9, 8], 1)];
        gradient::check(&x, |v| nearest_x2(&v[0]));
        gradient::check(&x, |v| mean_2x2(&v[0]));
        gradient::check(&x, |v| bilinear(&v[0], 5, 13));
        let reduction = AntiAlias::for_factor(2, &Device::Cpu).unwrap();
        gradient::check(&x, |v| reduction.forward(&v[0]));
    }
}

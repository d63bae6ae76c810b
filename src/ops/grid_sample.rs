//! Bilinear sampling of a picture at arbitrary places (spatial transformer networks, equation 5).
//!
//! candle has no such op. This is the plain CPU version in f32 and f64 with both gradients, the
//! definition that faster versions are tested against; on CUDA the kernels of `shaders/cuda/grid_sample.cu`, elsewhere
//! candle's own ops put together.

use std::borrow::Cow;

use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, WithDType, bail};
use rayon::prelude::*;

use super::fused::{self, Fused, Launch, Params, flags};
use super::unfold::part;

/// Channels of one thread of the kernel; as in `shaders/cuda/grid_sample.cu`.
const SHARE: usize = 8;

/// What is seen outside the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// Nothing: zeros.
    Zeros,
    /// The picture mirrored at its edge.
    Reflection,
}

/// Samples `input` (b, c, h, w) at `grid` (b, ho, wo, 2), giving (b, c, ho, wo).
///
/// The grid holds (x, y) in -1..1. With `align_corners` -1 and 1 are the centres of the outermost
/// pixels, without it their outer edges. An `input` of batch 1 serves every grid of the batch. An input
/// of half precision has a grid of f32, and no gradient.
pub fn grid_sample(
    input: &Tensor,
    grid: &Tensor,
    padding: Padding,
    align_corners: bool,
) -> Result<Tensor> {
    let (batch, _, h, w) = input.dims4()?;
    let (grids, _, _, coordinates) = grid.dims4()?;
    if coordinates != 2 || (batch != 1 && batch != grids) || h == 0 || w == 0 {
        bail!(
            "grid_sample: a grid {:?} does not fit an input {:?}",
            grid.dims(),
            input.dims()
        );
    }
    let op = GridSample::new(padding, align_corners);
    if fused::fuses(input) && !grid.track_op() {
        let launch = op.launch(input.dims(), grid.dims(), input.dtype())?;
        let plain = plain_sample;
        return Fused { launch, plain }.run(&[input, &grid.to_dtype(DType::F32)?]);
    }
    if !input.device().is_cpu()
        && !input.device().is_cuda()
        && op == GridSample::new(Padding::Zeros, true)
    {
        return composed(input, grid);
    }
    input.contiguous()?.apply_op2(&grid.contiguous()?, op)
}

/// Zeros outside, corners aligned, of candle's own ops: for devices that have no kernel of ours.
fn composed(input: &Tensor, grid: &Tensor) -> Result<Tensor> {
    let (batch, c, h, w) = input.dims4()?;
    let (b, ho, wo, _) = grid.dims4()?;
    let pixels = input.contiguous()?.reshape((batch, c, h * w))?;
    let pixels = pixels.broadcast_as((b, c, h * w))?.contiguous()?;
    let along = |i: usize, size: usize| -> Result<Tensor> {
        let half = (size as f64 - 1.0) / 2.0;
        let place = grid
            .narrow(3, i, 1)?
            .reshape((b, ho * wo))?
            .affine(half, half)?;
        // Farther outside nothing is to be seen, and a place must be countable.
        place.clamp(-2.0, size as f64 + 1.0)
    };
    let (x, y) = (along(0, w)?, along(1, h)?);
    let (left, top) = (x.floor()?, y.floor()?);
    let inside = |v: &Tensor, size: usize| -> Result<Tensor> {
        let dtype = v.dtype();
        v.ge(0.0)?.to_dtype(dtype)? * v.le(size as f64 - 1.0)?.to_dtype(dtype)?
    };
    let mut sum: Option<Tensor> = None;
    for (column, row) in [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)] {
        let (at_x, at_y) = ((&left + column)?, (&top + row)?);
        let share = |place: &Tensor, at: &Tensor| (place - at)?.abs()?.affine(-1.0, 1.0);
        let weight =
            ((share(&x, &at_x)? * share(&y, &at_y)?)? * (inside(&at_x, w)? * inside(&at_y, h)?)?)?;
        let at_x = at_x.clamp(0.0, w as f64 - 1.0)?;
        let at = ((at_y.clamp(0.0, h as f64 - 1.0)? * w as f64)? + at_x)?;
        let at = at.to_dtype(DType::U32)?.unsqueeze(1)?;
        let seen = pixels.gather(&at.broadcast_as((b, c, ho * wo))?.contiguous()?, 2)?;
        let part = seen.broadcast_mul(&weight.unsqueeze(1)?.to_dtype(seen.dtype())?)?;
        sum = Some(match sum {
            Some(sum) => (sum + part)?,
            None => part,
        });
    }
    match sum {
        Some(sum) => sum.reshape((b, c, ho, wo)),
        None => bail!("grid_sample: nothing to add"),
    }
}

/// What is sampled how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GridSample {
    padding: Padding,
    align_corners: bool,
}

impl GridSample {
    pub(super) fn new(padding: Padding, align_corners: bool) -> Self {
        Self {
            padding,
            align_corners,
        }
    }

    fn of(params: &Params) -> Self {
        let reflects = params.has(flags::REFLECT);
        let padding = if reflects {
            Padding::Reflection
        } else {
            Padding::Zeros
        };
        Self::new(padding, params.has(flags::ALIGN))
    }

    fn flags(self) -> u32 {
        let reflects = self.padding == Padding::Reflection;
        (if reflects { flags::REFLECT } else { 0 })
            | (if self.align_corners { flags::ALIGN } else { 0 })
    }

    /// The kernel for an input (batch, c, h, w) and a grid (b, ho, wo, 2).
    pub(super) fn launch(self, input: &[usize], grid: &[usize], dtype: DType) -> Result<Launch> {
        let &[batch, c, h, w] = input else {
            bail!("grid_sample: an input {input:?}")
        };
        let &[b, ho, wo, _] = grid else {
            bail!("grid_sample: a grid {grid:?}")
        };
        let threads = b * c.div_ceil(SHARE) * ho * wo;
        let mut launch = Launch::new("grid_sample/grid_sample", dtype, threads, (b, c, ho, wo))?;
        launch.params = Params {
            outputs: b as u32,
            flags: self.flags(),
            ..launch.params.sized([batch, c, h, w], [ho, wo])
        };
        Ok(launch)
    }

    /// The gradient of the input, of a grid and the output's gradient.
    pub(super) fn of_input(self, input: &[usize], grid: &[usize]) -> Result<Fused> {
        let mut launch = self.launch(input, grid, DType::F32)?;
        let p = &mut launch.params;
        p.threads = p.outputs * p.channels * p.ho * p.wo;
        (launch.kernel, launch.shape, launch.zeroed) = (
            "grid_sample/grid_sample_of_input",
            input.to_vec().into(),
            true,
        );
        let plain = plain_of_input;
        Ok(Fused { launch, plain })
    }

    /// The gradient of the grid, of input, grid and the output's gradient.
    pub(super) fn of_grid(self, input: &[usize], grid: &[usize]) -> Result<Fused> {
        let mut launch = self.launch(input, grid, DType::F32)?;
        let p = &mut launch.params;
        p.threads = p.outputs * p.ho * p.wo;
        (launch.kernel, launch.shape) = ("grid_sample/grid_sample_of_grid", grid.to_vec().into());
        let plain = plain_of_grid;
        Ok(Fused { launch, plain })
    }
}

pub(super) fn plain_sample(p: &Params, args: &[Cow<'_, [f32]>]) -> Vec<f32> {
    GridSample::of(p).sample(&args[0], &args[1], Sizes::of(p))
}

fn plain_of_input(p: &Params, args: &[Cow<'_, [f32]>]) -> Vec<f32> {
    let slopes = GridSample::of(p).all_slopes(&args[0], p.h as usize, p.w as usize);
    gradient_of_input(&slopes, &args[1], Sizes::of(p))
}

fn plain_of_grid(p: &Params, args: &[Cow<'_, [f32]>]) -> Vec<f32> {
    let slopes = GridSample::of(p).all_slopes(&args[1], p.h as usize, p.w as usize);
    gradient_of_grid(&slopes, &args[0], &args[2], Sizes::of(p))
}

impl CustomOp2 for GridSample {
    fn name(&self) -> &'static str {
        "grid_sample"
    }

    fn cpu_fwd(
        &self,
        input: &CpuStorage,
        input_layout: &Layout,
        grid: &CpuStorage,
        grid_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (batch, c, h, w) = input_layout.shape().dims4()?;
        let (grids, ho, wo, _) = grid_layout.shape().dims4()?;
        let size = Sizes {
            batch,
            c,
            h,
            w,
            grids,
            out: ho * wo,
        };
        let storage = match (input, grid) {
            (CpuStorage::F32(input), CpuStorage::F32(grid)) => {
                let grid = part(grid, grid_layout)?;
                CpuStorage::F32(self.sample(part(input, input_layout)?, grid, size))
            }
            (CpuStorage::F64(input), CpuStorage::F64(grid)) => {
                let grid = part(grid, grid_layout)?;
                CpuStorage::F64(self.sample(part(input, input_layout)?, grid, size))
            }
            _ => bail!("grid_sample: picture and grid must both be f32 or both be f64"),
        };
        Ok((storage, Shape::from((grids, c, ho, wo))))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        input: &candle_core::CudaStorage,
        input_layout: &Layout,
        grid: &candle_core::CudaStorage,
        grid_layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let dtype = candle_core::backend::BackendStorage::dtype(input);
        let launch = self.launch(input_layout.dims(), grid_layout.dims(), dtype)?;
        fused::launch(&launch, &[(input, input_layout), (grid, grid_layout)])
    }

    fn bwd(
        &self,
        input: &Tensor,
        grid: &Tensor,
        _sampled: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        if input.device().is_cuda() {
            let (of_input, of_grid) = (input.dims(), grid.dims());
            let of_input = input
                .track_op()
                .then(|| self.of_input(of_input, of_grid)?.run(&[grid, grad]));
            let of_grid = grid.track_op().then(|| {
                self.of_grid(input.dims(), grid.dims())?
                    .run(&[input, grid, grad])
            });
            return Ok((of_input.transpose()?, of_grid.transpose()?));
        }
        match input.dtype() {
            DType::F64 => self.backward::<f64>(input, grid, grad),
            _ => self.backward::<f32>(input, grid, grad),
        }
    }
}

#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    c: usize,
    h: usize,
    w: usize,
    grids: usize,
    out: usize,
}

impl Sizes {
    fn of(p: &Params) -> Self {
        let [batch, c, h, w, grids, ho, wo] =
            [p.batch, p.channels, p.h, p.w, p.outputs, p.ho, p.wo].map(|v| v as usize);
        Self {
            batch,
            c,
            h,
            w,
            grids,
            out: ho * wo,
        }
    }
}

/// The four pixels around a place, as offsets in a channel's plane, and their weights.
type Corners<T> = [(usize, T); 4];

/// The same with what the weights gain when x and y of the place grow.
type Slopes<T> = [(usize, [T; 3]); 4];

impl GridSample {
    fn sample<T: WithDType>(&self, input: &[T], grid: &[T], size: Sizes) -> Vec<T> {
        let zero = T::from_f64(0.0);
        let mut output = vec![zero; size.grids * size.c * size.out];
        if output.is_empty() {
            return output;
        }
        // Where to look is the same for every channel.
        let corners: Vec<Corners<T>> = grid
            .par_chunks_exact(2)
            .map(|xy| self.corners(xy[0].to_f64(), xy[1].to_f64(), size.h, size.w))
            .collect();
        output
            .par_chunks_mut(size.out)
            .enumerate()
            .for_each(|(plane, output)| {
                let (b, channel) = (plane / size.c, plane % size.c);
                let picture = if size.batch == 1 { 0 } else { b };
                let input = &input[(picture * size.c + channel) * size.h * size.w..];
                let corners = &corners[b * size.out..(b + 1) * size.out];
                for (value, corners) in output.iter_mut().zip(corners) {
                    *value = corners
                        .iter()
                        .fold(zero, |sum, &(at, weight)| sum + input[at] * weight);
                }
            });
        output
    }

    pub(super) fn corners<T: WithDType>(&self, x: f64, y: f64, h: usize, w: usize) -> Corners<T> {
        self.slopes(x, y, h, w)
            .map(|(at, [weight, ..])| (at, weight))
    }

    fn slopes<T: WithDType>(&self, x: f64, y: f64, h: usize, w: usize) -> Slopes<T> {
        let ((x, dx), (y, dy)) = (self.pixel(x, w), self.pixel(y, h));
        let (left, top) = (x.floor(), y.floor());
        let (right_share, bottom_share) = (x - left, y - top);
        // Shares of a column or row, and their slopes.
        let columns = [(1.0 - right_share, -dx), (right_share, dx)];
        let rows = [(1.0 - bottom_share, -dy), (bottom_share, dy)];
        [(0, 0), (1, 0), (0, 1), (1, 1)].map(|(column, row)| {
            let (x, y) = (left + column as f64, top + row as f64);
            let inside = x >= 0.0 && x < w as f64 && y >= 0.0 && y < h as f64;
            if !inside {
                return (0, [T::from_f64(0.0); 3]);
            }
            let ((across, by_x), (down, by_y)) = (columns[column], rows[row]);
            let weights = [across * down, by_x * down, across * by_y];
            (y as usize * w + x as usize, weights.map(T::from_f64))
        })
    }

    /// A coordinate in -1..1 as a position in pixels, 0 at the centre of the first, and the slope of
    /// the one against the other. A place that is no number lies outside.
    fn pixel(&self, coordinate: f64, size: usize) -> (f64, f64) {
        let size = size as f64;
        let (position, slope) = if self.align_corners {
            ((coordinate + 1.0) / 2.0 * (size - 1.0), (size - 1.0) / 2.0)
        } else {
            (((coordinate + 1.0) * size - 1.0) / 2.0, size / 2.0)
        };
        if !position.is_finite() {
            return (-2.0, 0.0);
        }
        match (self.padding, self.align_corners) {
            (Padding::Zeros, _) => (position, slope),
            (Padding::Reflection, true) => {
                let (position, sign) = reflect(position, 0.0, size - 1.0);
                (position, sign * slope)
            }
            (Padding::Reflection, false) => {
                let (position, sign) = reflect(position, -0.5, size - 0.5);
                let clamped = position.clamp(0.0, size - 1.0);
                let moves = if clamped == position { sign } else { 0.0 };
                (clamped, moves * slope)
            }
        }
    }

    /// Gradients of the input, which gathers what was read of each pixel, and of the grid.
    fn backward<T: WithDType>(
        &self,
        input: &Tensor,
        grid: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (batch, c, h, w) = input.dims4()?;
        let (grids, ho, wo, _) = grid.dims4()?;
        let size = Sizes {
            batch,
            c,
            h,
            w,
            grids,
            out: ho * wo,
        };
        let flat = |t: &Tensor| t.flatten_all()?.to_vec1::<T>();
        let (places, grads) = (flat(grid)?, flat(grad)?);
        let slopes: Vec<Slopes<T>> = self.all_slopes(&places, h, w);
        let of_input = if input.track_op() {
            let sums = gradient_of_input(&slopes, &grads, size);
            Some(Tensor::from_vec(sums, input.shape(), input.device())?)
        } else {
            None
        };
        let of_grid = if grid.track_op() {
            let sums = gradient_of_grid(&slopes, &flat(input)?, &grads, size);
            Some(Tensor::from_vec(sums, grid.shape(), grid.device())?)
        } else {
            None
        };
        Ok((of_input, of_grid))
    }

    fn all_slopes<T: WithDType>(&self, places: &[T], h: usize, w: usize) -> Vec<Slopes<T>> {
        places
            .par_chunks_exact(2)
            .map(|xy| self.slopes(xy[0].to_f64(), xy[1].to_f64(), h, w))
            .collect()
    }
}

/// What the output's gradients say of each pixel that was read.
fn gradient_of_input<T: WithDType>(slopes: &[Slopes<T>], grads: &[T], size: Sizes) -> Vec<T> {
    let Sizes { batch, c, out, .. } = size;
    let plane = size.h * size.w;
    let mut sums = vec![T::from_f64(0.0); batch * c * plane];
    let planes = sums.par_chunks_mut(plane).enumerate();
    planes.for_each(|(place, sums)| {
        let (picture, channel) = (place / c, place % c);
        let served = if batch == 1 {
            0..size.grids
        } else {
            picture..picture + 1
        };
        for b in served {
            let grads = &grads[(b * c + channel) * out..][..out];
            for (grad, corners) in grads.iter().zip(&slopes[b * out..]) {
                for &(at, [weight, ..]) in corners {
                    sums[at] += *grad * weight;
                }
            }
        }
    });
    sums
}

/// What they say of each place that was looked at.
fn gradient_of_grid<T: WithDType>(
    slopes: &[Slopes<T>],
    pixels: &[T],
    grads: &[T],
    size: Sizes,
) -> Vec<T> {
    let Sizes { c, out, .. } = size;
    let plane = size.h * size.w;
    let mut sums = vec![T::from_f64(0.0); size.grids * out * 2];
    sums.par_chunks_mut(2)
        .enumerate()
        .for_each(|(place, sums)| {
            let (b, at_out) = (place / out, place % out);
            let picture = if size.batch == 1 { 0 } else { b };
            for channel in 0..c {
                let grad = grads[(b * c + channel) * out + at_out];
                let pixels = &pixels[(picture * c + channel) * plane..][..plane];
                for &(at, [_, by_x, by_y]) in &slopes[place] {
                    sums[0] += grad * pixels[at] * by_x;
                    sums[1] += grad * pixels[at] * by_y;
                }
            }
        });
    sums
}

/// Mirrors a position into `low..=high`; gives also whether it goes forward there or back.
fn reflect(position: f64, low: f64, high: f64) -> (f64, f64) {
    let span = high - low;
    if span <= 0.0 {
        return (0.0, 0.0);
    }
    let sign = if position < low { -1.0 } else { 1.0 };
    let folded = (position - low).abs() % (2.0 * span);
    if folded > span {
        (low + 2.0 * span - folded, -sign)
    } else {
        (low + folded, sign)
    }
}

#[cfg(test)]
mod tests {
    use super::super::gradient;
    use super::*;
    use candle_core::Device;

    /// 1 2 3
    /// 4 5 6
    fn picture() -> Tensor {
        Tensor::new(&[1f32, 2.0, 3.0, 4.0, 5.0, 6.0], &Device::Cpu)
            .unwrap()
            .reshape((1, 1, 2, 3))
            .unwrap()
    }

    fn sample_at(places: &[[f32; 2]], padding: Padding, align_corners: bool) -> Vec<f32> {
        let shape = (1, 1, places.len(), 2);
        let grid = Tensor::from_slice(places.as_flattened(), shape, &Device::Cpu).unwrap();
        let sampled = grid_sample(&picture(), &grid, padding, align_corners).unwrap();
        assert_eq!(sampled.dims(), [1, 1, 1, places.len()]);
        sampled.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn assert_close(got: &[f32], wanted: &[f32]) {
        assert_eq!(got.len(), wanted.len());
        for (got, wanted) in got.iter().zip(wanted) {
            assert!((got - wanted).abs() < 1e-5, "{got} is not {wanted}");
        }
    }

    // Worked out on paper: with aligned corners x = -1, 0, 1 are columns 0, 1, 2 and y = -1, 1 rows
    // 0, 1; otherwise x = -2/3, 0, 2/3 and y = -1/2, 1/2 are. A column is worth 1, a row 3.
    #[test]
    fn zeros_with_aligned_corners() {
        let places = [
            [-1.0, -1.0],
            [1.0, 1.0],
            [0.5, 0.0],
            [1.5, -1.0],
            [0.0, 2.0],
            [4.0, 0.0],
        ];
        // The fourth lies half a column outside row 0, the fifth half a row under column 1.
        let wanted = [1.0, 6.0, 4.0, 0.5 * 3.0, 0.5 * 5.0, 0.0];
        assert_close(&sample_at(&places, Padding::Zeros, true), &wanted);
    }

    #[test]
    fn zeros_with_corners_at_the_edges() {
        let places = [
            [-2.0 / 3.0, -0.5],
            [0.0, 0.0],
            [1.0, 0.5],
            [-1.0, -1.0],
            [1.5, 0.0],
        ];
        // Column 2.5 of row 1 is half of 6; (-1, -1) is a quarter of the first pixel; column 3.25
        // of three shows nothing.
        let wanted = [1.0, 3.5, 3.0, 0.25, 0.0];
        assert_close(&sample_at(&places, Padding::Zeros, false), &wanted);
    }

    #[test]
    fn reflection_with_aligned_corners() {
        let places = [
            [1.5, -1.0],
            [-2.0, 1.0],
            [3.5, -1.0],
            [0.0, 1.5],
            [0.0, 5.0],
        ];
        // Columns 2.5 -> 1.5, -1 -> 1 and 4.5 -> 0.5; rows 1.25 -> 0.75 and 3 -> 1.
        let wanted = [2.5, 5.0, 1.5, 2.0 + 0.75 * 3.0, 5.0];
        assert_close(&sample_at(&places, Padding::Reflection, true), &wanted);
    }

    #[test]
    fn reflection_with_corners_at_the_edges() {
        let places = [
            [1.0, -0.5],
            [1.5, -0.5],
            [-2.0, 0.5],
            [0.0, -1.75],
            [0.0, 7.0 / 3.0],
        ];
        // Columns 2.5 -> 2.5 -> the last; 3.25 -> 1.75; -2 -> 1. Rows -1.25 -> 0.25 and
        // 17/6 -> 1/6.
        let wanted = [3.0, 2.75, 5.0, 2.0 + 0.25 * 3.0, 2.0 + 0.5];
        assert_close(&sample_at(&places, Padding::Reflection, false), &wanted);
    }

    #[test]
    fn candles_ops_put_together_sample_the_same() {
        let (input, grid) = (
            gradient::noise(&[1, 3, 5, 4], 1),
            gradient::noise(&[2, 6, 7, 2], 2),
        );
        let grid = (grid * 1.6).unwrap();
        let wanted = grid_sample(&input, &grid, Padding::Zeros, true).unwrap();
        assert!(gradient::distance(&composed(&input, &grid).unwrap(), &wanted) < 1e-12);
        let far = Tensor::new(&[[[[1e30f64, 0.0], [f64::INFINITY, 0.5]]]], &Device::Cpu).unwrap();
        let seen: Vec<f64> = composed(&input, &far)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1()
            .unwrap();
        assert_eq!(seen, [0.0; 6]);
    }

    /// Bilinear sampling by its definition: the sum over all pixels of a product of two hats. For
    /// reflection the picture is mirrored out into a large one first.
    fn by_hats(
        input: &[f64],
        h: i64,
        w: i64,
        x: f64,
        y: f64,
        padding: Padding,
        align: bool,
    ) -> f64 {
        let position = |v: f64, n: i64| match align {
            true => (v + 1.0) * (n - 1) as f64 / 2.0,
            false => ((v + 1.0) * n as f64 - 1.0) / 2.0,
        };
        // A mirror on a pixel shows it once, a mirror on its edge twice.
        let mirrored = |i: i64, n: i64| {
            let period = if align { 2 * (n - 1) } else { 2 * n };
            let i = i.rem_euclid(period);
            if i < n {
                i
            } else {
                period - i - i64::from(!align)
            }
        };
        let (x, y) = (position(x, w), position(y, h));
        let mut sum = 0.0;
        for row in -40..40i64 {
            for column in -40..40i64 {
                let hat = (1.0 - (x - column as f64).abs()).max(0.0)
                    * (1.0 - (y - row as f64).abs()).max(0.0);
                let inside = (0..h).contains(&row) && (0..w).contains(&column);
                if padding == Padding::Reflection {
                    sum += hat * input[(mirrored(row, h) * w + mirrored(column, w)) as usize];
                } else if inside {
                    sum += hat * input[(row * w + column) as usize];
                }
            }
        }
        sum
    }

    #[test]
    fn every_mode_agrees_with_the_definition_in_batches_and_channels() {
        let (h, w, places) = (5, 4, 60);
        let noise = |i: usize| ((i as f64 * 12.9898).sin() * 43758.5453).fract();
        let input: Vec<f64> = (0..2 * 3 * h * w).map(noise).collect();
        let grid: Vec<f64> = (0..2 * places * 2).map(|i| 2.5 * noise(i + 1000)).collect();
        let on = |values: &[f64], shape: &[usize]| {
            Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
        };
        for dtype in [DType::F64, DType::F32] {
            let tensor = on(&input, &[2, 3, h, w]).to_dtype(dtype).unwrap();
            let places_tensor = on(&grid, &[2, 6, 10, 2]).to_dtype(dtype).unwrap();
            for padding in [Padding::Zeros, Padding::Reflection] {
                for align in [false, true] {
                    let got = grid_sample(&tensor, &places_tensor, padding, align).unwrap();
                    assert_eq!(got.dims(), [2, 3, 6, 10]);
                    let got: Vec<f64> = got
                        .to_dtype(DType::F64)
                        .unwrap()
                        .flatten_all()
                        .unwrap()
                        .to_vec1()
                        .unwrap();
                    for (i, got) in got.iter().enumerate() {
                        let (b, plane, place) = (i / (3 * places), i / places, i % places);
                        let xy = &grid[(b * places + place) * 2..];
                        let picture = &input[plane * h * w..];
                        let wanted =
                            by_hats(picture, h as i64, w as i64, xy[0], xy[1], padding, align);
                        assert!(
                            (got - wanted).abs() < 2e-5,
                            "{padding:?} {align}: {got} {wanted}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let grid = gradient::noise(&[2, 4, 5, 2], 2).affine(1.6, 0.0).unwrap();
        for pictures in [1, 2] {
            let input = gradient::noise(&[pictures, 3, 5, 4], 1);
            for padding in [Padding::Zeros, Padding::Reflection] {
                for align in [false, true] {
                    gradient::check(&[input.clone(), grid.clone()], |v| {
                        grid_sample(&v[0], &v[1], padding, align)
                    });
                }
            }
        }
    }

    #[test]
    fn one_picture_serves_a_batch_of_grids() {
        let grid = Tensor::rand(-1f32, 1.0, (3, 2, 2, 2), &Device::Cpu).unwrap();
        let shared = grid_sample(&picture(), &grid, Padding::Zeros, true).unwrap();
        let repeated = picture().repeat((3, 1, 1, 1)).unwrap();
        let repeated = grid_sample(&repeated, &grid, Padding::Zeros, true).unwrap();
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(flat(&shared), flat(&repeated));
    }

    #[test]
    fn places_that_are_no_numbers_show_nothing_and_do_not_panic() {
        let places = [
            [f32::NAN, 0.0],
            [f32::INFINITY, 0.0],
            [0.0, f32::NEG_INFINITY],
            [1e30, 0.0],
        ];
        for align in [false, true] {
            assert_eq!(sample_at(&places, Padding::Zeros, align), [0.0; 4]);
            assert!(
                sample_at(&places, Padding::Reflection, align)
                    .iter()
                    .all(|v| v.is_finite())
            );
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors() {
        let grid = Tensor::zeros((1, 2, 2, 3), DType::F32, &Device::Cpu).unwrap();
        assert!(grid_sample(&picture(), &grid, Padding::Zeros, true).is_err());
        let two = picture().repeat((2, 1, 1, 1)).unwrap();
        let grid = Tensor::zeros((3, 2, 2, 2), DType::F32, &Device::Cpu).unwrap();
        assert!(grid_sample(&two, &grid, Padding::Zeros, true).is_err());
    }
}

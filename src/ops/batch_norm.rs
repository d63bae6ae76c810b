//! Batch norm: at inference a scale and a shift per channel, folded into the convolution before it; in
//! training the batch's own statistics, with gradients.

use std::cell::RefCell;
use std::fmt;
use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp1, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::unfold::{Element, Values, part};

/// What is added to the variance, as PyTorch and Paddle do by default.
pub const EPSILON: f64 = 1e-5;

/// Scale and shift (c) that a batch norm comes to once its statistics are fixed:
/// `y = x * scale + shift`.
pub fn scale_and_shift(
    weight: &Tensor,
    bias: &Tensor,
    running_mean: &Tensor,
    running_var: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let scale = (weight / (running_var + EPSILON)?.sqrt()?)?;
    let shift = (bias - (running_mean * &scale)?)?;
    Ok((scale, shift))
}

/// Weight (c, ..) and bias (c) of a convolution that does what the given one and then scale and
/// shift (c) do.
pub fn fold(
    weight: &Tensor,
    bias: Option<&Tensor>,
    scale: &Tensor,
    shift: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let mut per_output = vec![1; weight.rank()];
    per_output[0] = scale.elem_count();
    let weight = weight.broadcast_mul(&scale.reshape(per_output)?)?;
    let bias = match bias {
        Some(bias) => ((bias * scale)? + shift)?,
        None => shift.clone(),
    };
    Ok((weight, bias))
}

/// Mean and variance of a batch for each channel (c); the variance is that of the population the batch
/// is a sample of (over n - 1), as PyTorch keeps it.
#[derive(Clone, Debug)]
pub struct Statistics {
    /// Means.
    pub mean: Tensor,
    /// Variances.
    pub variance: Tensor,
}

/// Sums a tensor over all processes that compute parts of one batch; every one of them calls it equally often
/// and in the same order. What it gives has no graph.
#[derive(Clone)]
pub struct SumOver(Arc<Sum>);

type Sum = dyn Fn(&Tensor) -> Result<Tensor> + Send + Sync;

impl SumOver {
    /// By a function.
    pub fn new(sum: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static) -> Self {
        Self(Arc::new(sum))
    }

    /// The sum.
    ///
    /// # Errors
    /// When another process cannot be reached.
    pub fn of(&self, x: &Tensor) -> Result<Tensor> {
        (self.0)(x)
    }
}

impl fmt::Debug for SumOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SumOver")
    }
}

thread_local! {
    static TOGETHER: RefCell<Option<SumOver>> = const { RefCell::new(None) };
}

/// While it lives, [`normalise`] on this thread takes the statistics of the whole batch, of which other
/// processes have other parts. Gradients of what was normalised so also are of all parts.
#[derive(Debug)]
#[must_use = "it ends when it is dropped"]
pub struct Synchronised {
    before: Option<SumOver>,
}

impl Synchronised {
    /// From here on.
    pub fn by(sum: SumOver) -> Self {
        let before = TOGETHER.with(|together| together.replace(Some(sum)));
        Self { before }
    }
}

impl Drop for Synchronised {
    fn drop(&mut self) {
        TOGETHER.with(|together| *together.borrow_mut() = self.before.take());
    }
}

/// Normalises (b, c, h, w) by its own mean and variance for each channel, then scales by `weight` and
/// shifts by `bias` (c); with `relu`, what is below zero becomes zero. Gives also the statistics. They are
/// those of all parts of the batch while it is [`Synchronised`].
///
/// # Errors
/// When shapes or types do not fit.
pub fn normalise(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    relu: bool,
) -> Result<(Tensor, Statistics)> {
    let together = TOGETHER.with(|together| together.borrow().clone());
    normalise_over(x, weight, bias, relu, together)
}

/// As [`normalise`], of this process's part alone.
///
/// # Errors
/// When shapes or types do not fit.
pub fn normalise_alone(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    Ok(normalise_over(x, weight, bias, false, None)?.0)
}

fn normalise_over(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    relu: bool,
    together: Option<SumOver>,
) -> Result<(Tensor, Statistics)> {
    #[cfg(feature = "cudnn")]
    if together.is_none() && super::card::takes(x) {
        return super::card::normalise(x, weight, bias, relu);
    }
    if !x.device().is_cpu() || !matches!(x.dtype(), DType::F32 | DType::F64) {
        return composed(x, weight, bias, relu, together);
    }
    let c = x.dims4()?.1;
    if weight.dims() != [c] || bias.dims() != [c] {
        bail!("batch norm: {:?} of {:?}", weight.dims(), x.dims());
    }
    let saved = Arc::new(OnceLock::new());
    let op = BatchNorm {
        relu,
        together,
        saved: Arc::clone(&saved),
    };
    let (x, weight, bias) = (x.contiguous()?, weight.contiguous()?, bias.contiguous()?);
    let y = x.apply_op3(&weight, &bias, op)?;
    let (channels, count) = match saved.get() {
        Some(batch) => (batch.channels.as_slice(), batch.count),
        None => bail!("batch norm: a value without its statistics"),
    };
    let of = |value: &dyn Fn(&Channel) -> f64| {
        let values: Vec<f64> = channels.iter().map(value).collect();
        Tensor::from_vec(values, c, x.device())?.to_dtype(x.dtype())
    };
    let statistics = Statistics {
        mean: of(&|channel| channel.mean)?,
        variance: of(&|channel| channel.variance * count / (count - 1.0).max(1.0))?,
    };
    Ok((y, statistics))
}

/// The same of candle's ops, for every device.
fn composed(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    relu: bool,
    together: Option<SumOver>,
) -> Result<(Tensor, Statistics)> {
    let (b, _, h, w) = x.dims4()?;
    let own = (b * h * w) as f64;
    let (parts, all) = match together {
        None => (1.0, None),
        Some(sum) => {
            let one = Tensor::ones(1, DType::F32, x.device())?;
            let parts = sum.of(&one)?.to_dtype(DType::F64)?.to_vec1::<f64>()?[0];
            (parts, Some(sum))
        }
    };
    // Every process has as many pictures, so that a mean of means is the mean.
    let count = own * parts;
    let mean_of = |x: &Tensor| -> Result<Tensor> {
        let own = x.mean_keepdim((0, 2, 3))?;
        match &all {
            None => Ok(own),
            Some(sum) => summed(&own, sum)? / parts,
        }
    };
    let mean = mean_of(x)?;
    let centred = x.broadcast_sub(&mean)?;
    let variance = mean_of(&centred.sqr()?)?;
    let per_channel = (1, weight.elem_count(), 1, 1);
    let y = centred
        .broadcast_div(&(&variance + EPSILON)?.sqrt()?)?
        .broadcast_mul(&weight.reshape(per_channel)?)?
        .broadcast_add(&bias.reshape(per_channel)?)?;
    let statistics = Statistics {
        mean: mean.flatten_all()?.detach(),
        variance: (variance.flatten_all()? * (count / (count - 1.0).max(1.0)))?.detach(),
    };
    Ok((if relu { y.relu()? } else { y }, statistics))
}

/// The sum over all processes with its gradient, which is the sum of theirs.
fn summed(x: &Tensor, sum: &SumOver) -> Result<Tensor> {
    let own = x.detach();
    let others = (sum.of(&own)? - &own)?.detach();
    x.contiguous()?.apply_op1(Summed(sum.clone()))? + others
}

/// What it is given; of the gradient the sum over all processes.
struct Summed(SumOver);

impl CustomOp1 for Summed {
    fn name(&self) -> &'static str {
        "summed_over_processes"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        use candle_core::backend::BackendStorage as _;
        Ok((x.try_clone(layout)?, layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        use candle_core::backend::BackendStorage as _;
        Ok((x.try_clone(layout)?, layout.shape().clone()))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        self.0.of(&grad.detach()).map(Some)
    }
}

/// What the forward pass found out.
#[derive(Debug)]
struct Found {
    channels: Vec<Channel>,
    /// Values of a channel, in all parts of the batch.
    count: f64,
}

#[derive(Clone, Copy, Debug)]
struct Channel {
    mean: f64,
    /// Of the batch itself, over n.
    variance: f64,
}

impl Channel {
    fn inverse_deviation(self) -> f64 {
        1.0 / (self.variance + EPSILON).sqrt()
    }
}

/// Statistics of all parts of a batch from those of one (Chan, Golub and LeVeque 1979).
fn merged(own: &[Channel], count: f64, sum: &SumOver) -> Result<Found> {
    let parts = own.iter().flat_map(|channel| {
        let Channel { mean, variance } = *channel;
        [count * mean, count * (variance + mean * mean)]
    });
    let values: Vec<f64> = parts.chain([count]).collect();
    let totals = total(&values, sum)?;
    let count = totals[2 * own.len()];
    let of = |sums: &[f64]| {
        let mean = sums[0] / count;
        Channel {
            mean,
            variance: (sums[1] / count - mean * mean).max(0.0),
        }
    };
    Ok(Found {
        channels: totals[..2 * own.len()].chunks(2).map(of).collect(),
        count,
    })
}

/// Numbers summed over all processes.
fn total(values: &[f64], sum: &SumOver) -> Result<Vec<f64>> {
    let own = Tensor::from_slice(values, values.len(), &candle_core::Device::Cpu)?;
    sum.of(&own)?.to_vec1()
}

struct BatchNorm {
    relu: bool,
    together: Option<SumOver>,
    saved: Arc<OnceLock<Found>>,
}

impl BatchNorm {
    fn forward<T: Element>(
        &self,
        x: &[T],
        (b, c, plane): (usize, usize, usize),
        weight: &[T],
        bias: &[T],
    ) -> Result<Vec<T>> {
        let count = (b * plane) as f64;
        let channels: Vec<Channel> = (0..c)
            .into_par_iter()
            .map(|channel| {
                let planes = || (0..b).map(|i| &x[(i * c + channel) * plane..][..plane]);
                let mean = planes().map(T::sum).sum::<f64>() / count;
                let middle = T::from_f64(mean);
                let squares = planes().map(|plane| {
                    let part = |part: &[T]| {
                        let mut sum = T::from_f64(0.0);
                        for v in part {
                            sum += (*v - middle) * (*v - middle);
                        }
                        sum.to_f64()
                    };
                    plane.chunks(64).map(part).sum::<f64>()
                });
                Channel {
                    mean,
                    variance: squares.sum::<f64>() / count,
                }
            })
            .collect();
        let found = match &self.together {
            Some(sum) => merged(&channels, count, sum)?,
            None => Found { channels, count },
        };
        let channels = &found.channels;
        let mut y = vec![T::from_f64(0.0); x.len()];
        let planes = y
            .par_chunks_mut(plane.max(1))
            .zip(x.par_chunks(plane.max(1)));
        planes.enumerate().for_each(|(i, (y, x))| {
            let channel = channels[i % c];
            let scale = weight[i % c].to_f64() * channel.inverse_deviation();
            let shift = T::from_f64(bias[i % c].to_f64() - channel.mean * scale);
            let (scale, zero) = (T::from_f64(scale), T::from_f64(0.0));
            for (y, x) in y.iter_mut().zip(x) {
                let value = *x * scale + shift;
                *y = if self.relu && value < zero {
                    zero
                } else {
                    value
                };
            }
        });
        // A graph is computed once.
        let _ = self.saved.set(found);
        Ok(y)
    }

    fn backward<T: Element>(
        &self,
        [x, weight, y, grad]: [&Tensor; 4],
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (b, c, h, w) = x.dims4()?;
        let plane = h * w;
        let Some(Found { channels, count }) = self.saved.get() else {
            bail!("batch norm: a gradient before the value");
        };
        let grad = grad.contiguous()?;
        let (grad, y) = (Values::<T>::of(&grad)?, Values::<T>::of(y)?);
        let zero = T::from_f64(0.0);
        let mut grads = vec![zero; grad.len()];
        let planes = grads.par_chunks_mut(plane.max(1)).enumerate();
        planes.for_each(|(i, grads)| {
            let mine = i * plane..(i + 1) * plane;
            if !self.relu {
                return grads.copy_from_slice(&grad[mine]);
            }
            let known = grad[mine.clone()].iter().zip(&y[mine]);
            for (to, (grad, y)) in grads.iter_mut().zip(known) {
                *to = if *y > zero { *grad } else { zero };
            }
        });
        let (x_values, weights) = (Values::<T>::of(x)?, Values::<T>::of(weight)?);
        // For each channel the sums of the gradient and of its product with the normalised values.
        let sums: Vec<(f64, f64)> = (0..c)
            .into_par_iter()
            .map(|channel| {
                let Channel { mean, .. } = channels[channel];
                let (mut sum, mut product) = (0.0, 0.0);
                for i in 0..b {
                    let at = (i * c + channel) * plane;
                    let (grads, x) = (&grads[at..at + plane], &x_values[at..at + plane]);
                    let of_plane = T::sum(grads);
                    sum += of_plane;
                    product += T::dot(grads, x) - mean * of_plane;
                }
                (sum, product * channels[channel].inverse_deviation())
            })
            .collect();
        let of_x = if x.track_op() {
            let all = match &self.together {
                Some(sum) => {
                    let own: Vec<f64> = sums.iter().flat_map(|s| [s.0, s.1]).collect();
                    let all = total(&own, sum)?;
                    all.chunks(2).map(|s| (s[0], s[1])).collect()
                }
                None => sums.clone(),
            };
            let planes = grads
                .par_chunks_mut(plane.max(1))
                .zip(x_values.par_chunks(plane.max(1)));
            planes.enumerate().for_each(|(i, (grads, x))| {
                let (channel, (sum, product)) = (channels[i % c], all[i % c]);
                let inverse = channel.inverse_deviation();
                let scale = weights[i % c].to_f64() * inverse;
                // grad * scale - x * slope + rest
                let slope = scale * product * inverse / count;
                let rest = T::from_f64(slope * channel.mean - scale * sum / count);
                let (scale, slope) = (T::from_f64(scale), T::from_f64(slope));
                for (grad, x) in grads.iter_mut().zip(x) {
                    *grad = *grad * scale - *x * slope + rest;
                }
            });
            Some(Tensor::from_vec(grads, x.shape(), x.device())?)
        } else {
            None
        };
        let of = |value: fn(&(f64, f64)) -> f64| {
            let values: Vec<T> = sums.iter().map(|s| T::from_f64(value(s))).collect();
            Tensor::from_vec(values, c, x.device())
        };
        Ok((of_x, Some(of(|s| s.1)?), Some(of(|s| s.0)?)))
    }
}

impl CustomOp3 for BatchNorm {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (b, c, h, w) = x_layout.shape().dims4()?;
        let dims = (b, c, h * w);
        let storage = match (x, weight, bias) {
            (CpuStorage::F32(x), CpuStorage::F32(weight), CpuStorage::F32(bias)) => {
                let (weight, bias) = (part(weight, weight_layout)?, part(bias, bias_layout)?);
                CpuStorage::F32(self.forward(part(x, x_layout)?, dims, weight, bias)?)
            }
            (CpuStorage::F64(x), CpuStorage::F64(weight), CpuStorage::F64(bias)) => {
                let (weight, bias) = (part(weight, weight_layout)?, part(bias, bias_layout)?);
                CpuStorage::F64(self.forward(part(x, x_layout)?, dims, weight, bias)?)
            }
            _ => bail!("batch norm: input, weight and bias must be of one type, f32 or f64"),
        };
        Ok((storage, x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _bias: &Tensor,
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        match x.dtype() {
            DType::F64 => self.backward::<f64>([x, weight, y, grad]),
            _ => self.backward::<f32>([x, weight, y, grad]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Barrier, Mutex};
    use std::thread;

    use super::super::gradient;
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn the_batchs_own_statistics_are_used_and_told() {
        let x = gradient::noise(&[3, 4, 5, 6], 1).affine(2.0, 0.7).unwrap();
        let (weight, bias) = (gradient::noise(&[4], 2), gradient::noise(&[4], 3));
        for relu in [false, true] {
            let (got, statistics) = normalise(&x, &weight, &bias, relu).unwrap();
            let (wanted, wanted_statistics) = composed(&x, &weight, &bias, relu, None).unwrap();
            assert!(gradient::distance(&got, &wanted) < 1e-12);
            assert!(gradient::distance(&statistics.mean, &wanted_statistics.mean) < 1e-12);
            let variance = &wanted_statistics.variance;
            assert!(gradient::distance(&statistics.variance, variance) < 1e-12);
            let small = |t: &Tensor| t.to_dtype(DType::F32).unwrap();
            let (got, _) = normalise(&small(&x), &small(&weight), &small(&bias), relu).unwrap();
            assert!(gradient::distance(&got.to_dtype(DType::F64).unwrap(), &wanted) < 1e-5);
        }
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let inputs = [
            gradient::noise(&[2, 3, 4, 5], 1),
            gradient::noise(&[3], 2),
            // With these no value lies at the kink of the relu.
            gradient::noise(&[3], 29),
        ];
        for relu in [false, true] {
            gradient::check(&inputs, |v| Ok(normalise(&v[0], &v[1], &v[2], relu)?.0));
            gradient::check(
                &inputs,
                |v| Ok(composed(&v[0], &v[1], &v[2], relu, None)?.0),
            );
        }
    }

    /// Two that sum for each other, each on a thread of its own.
    fn two() -> [SumOver; 2] {
        let place = Arc::new((Barrier::new(2), Mutex::new([None::<Tensor>, None])));
        [0, 1].map(|i| {
            let place = Arc::clone(&place);
            SumOver::new(move |x| {
                let (barrier, parts) = &*place;
                parts.lock().unwrap()[i] = Some(x.clone());
                barrier.wait();
                let both = parts.lock().unwrap().clone().map(Option::unwrap);
                barrier.wait();
                &both[0] + &both[1]
            })
        })
    }

    type Normalise = fn(&Tensor, &Tensor, &Tensor, Option<SumOver>) -> Result<(Tensor, Statistics)>;

    /// What is normalised, and the gradients of input, weight and bias; `judge` says what each value counts.
    fn results(
        normalise: Normalise,
        inputs: &[Tensor; 3],
        judge: &Tensor,
        sum: Option<SumOver>,
    ) -> (Tensor, Statistics, [Tensor; 3]) {
        let vars = inputs.each_ref().map(|t| Var::from_tensor(t).unwrap());
        let (y, statistics) = normalise(&vars[0], &vars[1], &vars[2], sum).unwrap();
        let loss = (&y * judge).unwrap().sum_all().unwrap();
        let gradients = loss.backward().unwrap();
        let of = vars.map(|var| gradients.get(&var).unwrap().clone());
        (y.detach(), statistics, of)
    }

    #[test]
    fn a_batch_in_two_parts_is_normalised_as_a_whole() {
        let x = gradient::noise(&[4, 3, 4, 5], 1).affine(2.0, 0.7).unwrap();
        let (weight, bias) = (gradient::noise(&[3], 2), gradient::noise(&[3], 29));
        let judge = gradient::noise(&[4, 3, 4, 5], 5);
        let fused: Normalise = |x, weight, bias, sum| {
            let _together = sum.map(Synchronised::by);
            normalise(x, weight, bias, true)
        };
        let plain: Normalise = |x, weight, bias, sum| composed(x, weight, bias, true, sum);
        for way in [fused, plain] {
            let inputs = [x.clone(), weight.clone(), bias.clone()];
            let (y, statistics, [of_x, of_weight, of_bias]) = results(way, &inputs, &judge, None);
            let parts: Vec<_> = thread::scope(|scope| {
                let threads = two().into_iter().enumerate().map(|(i, sum)| {
                    let part = |t: &Tensor| t.narrow(0, 2 * i, 2).unwrap().contiguous().unwrap();
                    let inputs = [part(&x), weight.clone(), bias.clone()];
                    let judge = part(&judge);
                    scope.spawn(move || results(way, &inputs, &judge, Some(sum)))
                });
                let threads: Vec<_> = threads.collect();
                threads.into_iter().map(|t| t.join().unwrap()).collect()
            });
            let near = |a: &Tensor, b: &Tensor| assert!(gradient::distance(a, b) < 1e-12);
            let [(y0, seen0, of0), (y1, seen1, of1)] = &parts[..] else {
                unreachable!()
            };
            near(&Tensor::cat(&[y0, y1], 0).unwrap(), &y);
            near(&Tensor::cat(&[&of0[0], &of1[0]], 0).unwrap(), &of_x);
            near(&(&of0[1] + &of1[1]).unwrap(), &of_weight);
            near(&(&of0[2] + &of1[2]).unwrap(), &of_bias);
            for seen in [seen0, seen1] {
                near(&seen.mean, &statistics.mean);
                near(&seen.variance, &statistics.variance);
            }
        }
        // Alone again.
        let (alone, _) = normalise(&x, &weight, &bias, true).unwrap();
        let (wanted, _) = composed(&x, &weight, &bias, true, None).unwrap();
        assert!(gradient::distance(&alone, &wanted) < 1e-12);
    }

    #[test]
    fn a_folded_convolution_equals_convolution_and_normalisation() {
        let dev = &Device::Cpu;
        let random = |shape: &[usize]| Tensor::rand(-1f64, 1.0, shape, dev).unwrap();
        let (weight, bias) = (random(&[4, 3, 3, 3]), random(&[4]));
        let (gamma, beta, mean) = (random(&[4]), random(&[4]), random(&[4]));
        let var = random(&[4]).abs().unwrap();
        let x = random(&[2, 3, 6, 5]);
        let (scale, shift) = scale_and_shift(&gamma, &beta, &mean, &var).unwrap();
        for bias in [Some(&bias), None] {
            let mut plain = x.conv2d(&weight, 1, 1, 1, 1).unwrap();
            let per_channel = |t: &Tensor| t.reshape((1, 4, 1, 1)).unwrap();
            if let Some(bias) = bias {
                plain = plain.broadcast_add(&per_channel(bias)).unwrap();
            }
            let deviation = (&var + EPSILON).unwrap().sqrt().unwrap();
            let wanted = plain
                .broadcast_sub(&per_channel(&mean))
                .and_then(|t| t.broadcast_div(&per_channel(&deviation)))
                .and_then(|t| t.broadcast_mul(&per_channel(&gamma)))
                .and_then(|t| t.broadcast_add(&per_channel(&beta)))
                .unwrap();
            let (weight, bias) = fold(&weight, bias, &scale, &shift).unwrap();
            let got = x
                .conv2d(&weight, 1, 1, 1, 1)
                .unwrap()
                .broadcast_add(&per_channel(&bias));
            let error = (got.unwrap() - wanted)
                .unwrap()
                .abs()
                .unwrap()
                .max_all()
                .unwrap();
            assert!(error.to_scalar::<f64>().unwrap() < 1e-12);
        }
    }
}

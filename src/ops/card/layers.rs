//! Batch norm and max pooling, with their gradients.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::cudnn::result as dnn;
use candle_core::cuda_backend::cudarc::cudnn::sys::{
    self, cudnnBatchNormMode_t as Normalisation, cudnnDataType_t as Type,
    cudnnNanPropagation_t as Nan, cudnnPoolingMode_t as Pooling,
};
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp3, DType, Layout, Result, Shape, Tensor, bail,
};

use super::{
    Answer, Described, ON_CPU, ONE, ZERO, fresh, int, place, read, relu, scale, tensor, with_state,
    write,
};
use crate::ops::batch_norm::{EPSILON, Statistics};

/// As [`crate::ops::batch_norm::normalise`], on a card, of this process's part alone.
pub(in crate::ops) fn normalise(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    relu: bool,
) -> Result<(Tensor, Statistics)> {
    let c = x.dims4()?.1;
    if weight.dims() != [c] || bias.dims() != [c] {
        bail!("batch norm: {:?} of {:?}", weight.dims(), x.dims());
    }
    let zeros = Tensor::zeros((4, c), DType::F32, x.device())?;
    let op = BatchNorm {
        relu,
        mean: zeros.get(0)?,
        variance: zeros.get(1)?,
        saved: [zeros.get(2)?, zeros.get(3)?],
    };
    let statistics = Statistics {
        mean: op.mean.clone(),
        variance: op.variance.clone(),
    };
    let (x, weight, bias) = (x.contiguous()?, weight.contiguous()?, bias.contiguous()?);
    Ok((x.apply_op3(&weight, &bias, op)?, statistics))
}

/// The tensors are written by the forward pass and by nobody else.
struct BatchNorm {
    relu: bool,
    mean: Tensor,
    /// Of the population.
    variance: Tensor,
    /// Mean and one over the deviation.
    saved: [Tensor; 2],
}

impl CustomOp3 for BatchNorm {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        bail!("{ON_CPU}")
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        lx: &Layout,
        weight: &CudaStorage,
        lw: &Layout,
        bias: &CudaStorage,
        lbias: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let dims: [usize; 4] = lx.shape().dims4()?.into();
        let device = x.device().clone();
        let stream = device.cuda_stream();
        let mut y = fresh(&device, dims, DType::F32)?;
        let x_is = tensor(Type::CUDNN_DATA_FLOAT, dims)?;
        let channels_are = tensor(Type::CUDNN_DATA_FLOAT, [1, dims[1], 1, 1])?;
        {
            let (x, _reads_x) = read((x, lx), &stream)?;
            let (weight, _reads_weight) = read((weight, lw), &stream)?;
            let (bias, _reads_bias) = read((bias, lbias), &stream)?;
            let (to, _writes) = write(&mut y, &stream)?;
            let mean = place(&self.mean, &stream)?;
            let variance = place(&self.variance, &stream)?;
            let [saved_mean, saved_inverse] = [&self.saved[0], &self.saved[1]];
            let saved_mean = place(saved_mean, &stream)?;
            let saved_inverse = place(saved_inverse, &stream)?;
            with_state(&device, |state| {
                let (handle, one, zero) = (state.handle.0, scale(&ONE), scale(&ZERO));
                // SAFETY: buffers are as long as the descriptors say; nobody else has the four that are written beside the result yet.
                unsafe {
                    sys::cudnnBatchNormalizationForwardTraining(
                        handle,
                        Normalisation::CUDNN_BATCHNORM_SPATIAL,
                        one,
                        zero,
                        x_is.0,
                        x,
                        x_is.0,
                        to,
                        channels_are.0,
                        weight,
                        bias,
                        // All of what was there gives way to this batch's.
                        1.0,
                        mean,
                        variance,
                        EPSILON,
                        saved_mean,
                        saved_inverse,
                    )
                    .result()?;
                    if self.relu {
                        let relu = relu()?;
                        dnn::activation_forward(handle, relu.0, one, x_is.0, to, zero, x_is.0, to)?;
                    }
                }
                Ok(())
            })?;
        }
        Ok((y, Shape::from(dims.to_vec())))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _bias: &Tensor,
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let zeros = Tensor::zeros((2, weight.elem_count()), DType::F32, weight.device())?;
        let op = BatchNormGradient {
            relu: self.relu,
            weight: weight.contiguous()?,
            saved: self.saved.clone(),
            of_weight: zeros.get(0)?,
            of_bias: zeros.get(1)?,
        };
        let x = x.contiguous()?;
        let of_x = x.apply_op3_no_bwd(&y.contiguous()?, &grad.contiguous()?, &op)?;
        Ok((Some(of_x), Some(op.of_weight), Some(op.of_bias)))
    }
}

/// Of a batch norm's input; those of weight and bias are written beside it.
struct BatchNormGradient {
    relu: bool,
    weight: Tensor,
    saved: [Tensor; 2],
    of_weight: Tensor,
    of_bias: Tensor,
}

impl CustomOp3 for BatchNormGradient {
    fn name(&self) -> &'static str {
        "batch_norm_gradient"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        bail!("{ON_CPU}")
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        lx: &Layout,
        y: &CudaStorage,
        ly: &Layout,
        grad: &CudaStorage,
        lgrad: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let dims: [usize; 4] = lx.shape().dims4()?.into();
        let device = x.device().clone();
        let stream = device.cuda_stream();
        let mut of_x = fresh(&device, dims, DType::F32)?;
        // What is left of the gradient before the relu.
        let mut passed = match self.relu {
            true => Some(fresh(&device, dims, DType::F32)?),
            false => None,
        };
        let x_is = tensor(Type::CUDNN_DATA_FLOAT, dims)?;
        let channels_are = tensor(Type::CUDNN_DATA_FLOAT, [1, dims[1], 1, 1])?;
        {
            let (x, _reads_x) = read((x, lx), &stream)?;
            let (y, _reads_y) = read((y, ly), &stream)?;
            let (grad, _reads_grad) = read((grad, lgrad), &stream)?;
            let (to, _writes) = write(&mut of_x, &stream)?;
            let passed = passed
                .as_mut()
                .map(|passed| write(passed, &stream))
                .transpose()?;
            let weight = place(&self.weight, &stream)?;
            let saved_mean = place(&self.saved[0], &stream)?;
            let saved_inverse = place(&self.saved[1], &stream)?;
            let of_weight = place(&self.of_weight, &stream)?;
            let of_bias = place(&self.of_bias, &stream)?;
            with_state(&device, |state| {
                let (handle, one, zero) = (state.handle.0, scale(&ONE), scale(&ZERO));
                // SAFETY: buffers are as long as the descriptors say; nobody else has the two that are written beside the result.
                unsafe {
                    let grad = match &passed {
                        None => grad,
                        Some((passed, _)) => {
                            let relu = relu()?;
                            sys::cudnnActivationBackward(
                                handle, relu.0, one, x_is.0, y, x_is.0, grad, x_is.0, y, zero,
                                x_is.0, *passed,
                            )
                            .result()?;
                            passed.cast_const()
                        }
                    };
                    sys::cudnnBatchNormalizationBackward(
                        handle,
                        Normalisation::CUDNN_BATCHNORM_SPATIAL,
                        one,
                        zero,
                        one,
                        zero,
                        x_is.0,
                        x,
                        x_is.0,
                        grad,
                        x_is.0,
                        to,
                        channels_are.0,
                        weight,
                        of_weight,
                        of_bias,
                        EPSILON,
                        saved_mean,
                        saved_inverse,
                    )
                    .result()?;
                }
                Ok(())
            })?;
        }
        Ok((of_x, Shape::from(dims.to_vec())))
    }
}

/// As [`crate::ops::max_pool::max_pool`], on a card, of whole windows.
pub(in crate::ops) fn max_pool(x: &Tensor, side: usize, stride: usize) -> Result<Tensor> {
    x.contiguous()?.apply_op1(MaxPool { side, stride })
}

#[derive(Clone, Copy)]
struct MaxPool {
    side: usize,
    stride: usize,
}

impl MaxPool {
    fn output(self, [b, c, h, w]: [usize; 4]) -> [usize; 4] {
        let along = |n: usize| (n - self.side) / self.stride + 1;
        [b, c, along(h), along(w)]
    }

    fn described(self) -> Result<Described<sys::cudnnPoolingDescriptor_t>> {
        unsafe fn free(it: sys::cudnnPoolingDescriptor_t) -> Answer<()> {
            // SAFETY: by who calls.
            unsafe { sys::cudnnDestroyPoolingDescriptor(it) }.result()
        }
        let described = Described(dnn::create_pooling_descriptor()?, free as _);
        let (mode, nan) = (Pooling::CUDNN_POOLING_MAX, Nan::CUDNN_PROPAGATE_NAN);
        let (window, step) = ([int(self.side); 2], [int(self.stride); 2]);
        // SAFETY: it was just created.
        unsafe { dnn::set_pooling_descriptor(described.0, mode, nan, 2, &window, &[0; 2], &step) }?;
        Ok(described)
    }
}

impl CustomOp1 for MaxPool {
    fn name(&self) -> &'static str {
        "max_pool"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("{ON_CPU}")
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let dims: [usize; 4] = layout.shape().dims4()?.into();
        let to = self.output(dims);
        let device = x.device().clone();
        let stream = device.cuda_stream();
        let mut result = fresh(&device, to, DType::F32)?;
        let (x_is, y_is) = (
            tensor(Type::CUDNN_DATA_FLOAT, dims)?,
            tensor(Type::CUDNN_DATA_FLOAT, to)?,
        );
        let pool = self.described()?;
        {
            let (x, _reads) = read((x, layout), &stream)?;
            let (y, _writes) = write(&mut result, &stream)?;
            with_state(&device, |state| {
                let (handle, one, zero) = (state.handle.0, scale(&ONE), scale(&ZERO));
                // SAFETY: buffers are as long as the descriptors say.
                unsafe { dnn::pooling_forward(handle, pool.0, one, x_is.0, x, zero, y_is.0, y) }?;
                Ok(())
            })?;
        }
        Ok((result, Shape::from(to.to_vec())))
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let op = MaxPoolGradient(*self);
        let (y, grad) = (y.contiguous()?, grad.contiguous()?);
        x.contiguous()?.apply_op3_no_bwd(&y, &grad, &op).map(Some)
    }
}

struct MaxPoolGradient(MaxPool);

impl CustomOp3 for MaxPoolGradient {
    fn name(&self) -> &'static str {
        "max_pool_gradient"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        bail!("{ON_CPU}")
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        lx: &Layout,
        y: &CudaStorage,
        ly: &Layout,
        grad: &CudaStorage,
        lgrad: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let dims: [usize; 4] = lx.shape().dims4()?.into();
        let device = x.device().clone();
        let stream = device.cuda_stream();
        let mut result = fresh(&device, dims, DType::F32)?;
        let (x_is, y_is) = (
            tensor(Type::CUDNN_DATA_FLOAT, dims)?,
            tensor(Type::CUDNN_DATA_FLOAT, self.0.output(dims))?,
        );
        let pool = self.0.described()?;
        {
            let (x, _reads_x) = read((x, lx), &stream)?;
            let (y, _reads_y) = read((y, ly), &stream)?;
            let (grad, _reads_grad) = read((grad, lgrad), &stream)?;
            let (to, _writes) = write(&mut result, &stream)?;
            with_state(&device, |state| {
                let (handle, one, zero) = (state.handle.0, scale(&ONE), scale(&ZERO));
                // SAFETY: buffers are as long as the descriptors say.
                let done = unsafe {
                    sys::cudnnPoolingBackward(
                        handle, pool.0, one, y_is.0, y, y_is.0, grad, x_is.0, x, zero, x_is.0, to,
                    )
                };
                Ok(done.result()?)
            })?;
        }
        Ok((result, Shape::from(dims.to_vec())))
    }
}

//! Convolution and the gradients of its input, weight and bias.

use std::ffi::c_void;
use std::ptr::null_mut;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::cudnn::result as dnn;
use candle_core::cuda_backend::cudarc::cudnn::sys::{
    self, cudnnConvolutionMode_t as Mode, cudnnDataType_t as Type, cudnnMathType_t as Math,
};
use candle_core::cuda_backend::cudarc::driver::DevicePtrMut;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Tensor,
    bail,
};

use super::{
    Answer, Described, ON_CPU, ONE, ZERO, filter, fresh, int, read, scale, tensor, with_state,
    write,
};
use crate::ops::conv2d::Products;

/// Workspaces above this are not asked for: another algorithm is taken.
const MOST_WORKSPACE: usize = 4 << 30;

/// Of an argument the values that are multiplied.
fn multiplied(
    (storage, layout): (&CudaStorage, &Layout),
    products: Products,
) -> Result<Option<(CudaStorage, Layout)>> {
    if products != Products::Bf16 {
        return Ok(None);
    }
    let rounded = storage.to_dtype(layout, DType::BF16)?;
    Ok(Some((rounded, Layout::contiguous(layout.shape()))))
}

/// Which of a convolution's three products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Part {
    Output,
    OfInput,
    OfWeight,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Convolution {
    padding: usize,
    stride: usize,
    products: Products,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Sizes {
    x: [usize; 4],
    weight: [usize; 4],
    y: [usize; 4],
}

pub(super) type Key = (Part, Convolution, Sizes);

#[derive(Clone, Copy)]
pub(super) struct Plan {
    algorithm: Algorithm,
    math: Math,
}

#[derive(Clone, Copy)]
enum Algorithm {
    Output(sys::cudnnConvolutionFwdAlgo_t),
    OfInput(sys::cudnnConvolutionBwdDataAlgo_t),
    OfWeight(sys::cudnnConvolutionBwdFilterAlgo_t),
}

/// As [`crate::ops::conv2d::conv2d`], on a card, without groups.
pub(in crate::ops) fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    padding: usize,
    stride: usize,
    products: Products,
) -> Result<Tensor> {
    let op = Convolution {
        padding,
        stride,
        products,
    };
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    match bias {
        Some(bias) => {
            let bias = bias.flatten_all()?.contiguous()?;
            if bias.dims() != [weight.dim(0)?] {
                bail!("conv2d: a bias {:?} for {:?}", bias.dims(), weight.dims());
            }
            x.apply_op3(&weight, &bias, op)
        }
        None => x.apply_op2(&weight, op),
    }
}

impl Convolution {
    fn sizes(&self, x: &[usize], weight: &[usize]) -> Result<Sizes> {
        let (&[b, c, h, w], &[c_out, c_in, kh, kw]) = (x, weight) else {
            bail!("conv2d: a weight {weight:?} does not fit an input {x:?}");
        };
        let (high, wide) = (h + 2 * self.padding, w + 2 * self.padding);
        if c != c_in || self.stride == 0 || high < kh || wide < kw || kh == 0 || kw == 0 {
            bail!("conv2d: a weight {weight:?} does not fit an input {x:?}");
        }
        let side = |n: usize, k: usize| (n - k) / self.stride + 1;
        Ok(Sizes {
            x: [b, c, h, w],
            weight: [c_out, c_in, kh, kw],
            y: [b, c_out, side(high, kh), side(wide, kw)],
        })
    }

    /// Output: of input and weight. Gradient of the input: of weight and the output's gradient. Of the weight: of input and the output's.
    fn compute(
        self,
        part: Part,
        sizes: Sizes,
        a: (&CudaStorage, &Layout),
        b: (&CudaStorage, &Layout),
    ) -> Result<CudaStorage> {
        let device = a.0.device().clone();
        let (dtype, kind) = match self.products {
            Products::Bf16 => (DType::BF16, Type::CUDNN_DATA_BFLOAT16),
            _ => (DType::F32, Type::CUDNN_DATA_FLOAT),
        };
        let to = match part {
            Part::Output => sizes.y,
            Part::OfInput => sizes.x,
            Part::OfWeight => sizes.weight,
        };
        let (own_a, own_b) = (multiplied(a, self.products)?, multiplied(b, self.products)?);
        let a = own_a
            .as_ref()
            .map_or(a, |(storage, layout)| (storage, layout));
        let b = own_b
            .as_ref()
            .map_or(b, |(storage, layout)| (storage, layout));
        let mut result = fresh(&device, to, dtype)?;
        let stream = device.cuda_stream();

        let x_is = tensor(kind, sizes.x)?;
        let y_is = tensor(kind, sizes.y)?;
        let w_is = filter(kind, sizes.weight)?;
        let conv = Described(
            dnn::create_convolution_descriptor()?,
            dnn::destroy_convolution_descriptor as _,
        );
        let (pad, step) = (int(self.padding), int(self.stride));
        let mode = Mode::CUDNN_CROSS_CORRELATION;
        let sums = Type::CUDNN_DATA_FLOAT;
        // SAFETY: it was just created.
        unsafe {
            dnn::set_convolution2d_descriptor(conv.0, pad, pad, step, step, 1, 1, mode, sums)
        }?;
        let described = Shapes {
            x: x_is.0,
            y: y_is.0,
            weight: w_is.0,
            conv: conv.0,
        };
        let key = (part, self, sizes);
        with_state(&device, |state| {
            let handle = state.handle.0;
            let known = state.plans.get(&key).copied();
            let plans = match known {
                Some(plan) => vec![plan],
                None => described.plans(handle, part, self.products)?,
            };
            let mut failed = None;
            for plan in plans {
                let bytes = match described.workspace(handle, plan) {
                    Ok(bytes) if bytes <= MOST_WORKSPACE => bytes,
                    Ok(_) => continue,
                    Err(error) => {
                        failed = Some(error);
                        continue;
                    }
                };
                if state.workspace.len() < bytes {
                    state.workspace = device.alloc_zeros(bytes)?;
                }
                let (workspace, _keeps) = state.workspace.device_ptr_mut(&stream);
                let (a, _reads_a) = read(a, &stream)?;
                let (b, _reads_b) = read(b, &stream)?;
                let (to, _writes) = write(&mut result, &stream)?;
                // SAFETY: buffers are as long as the descriptors say, by `sizes`, which their shapes were checked against.
                let done = unsafe {
                    described.launch(handle, plan, [a, b], to, (workspace as *mut c_void, bytes))
                };
                match done {
                    Ok(()) => {
                        state.plans.insert(key, plan);
                        return Ok(());
                    }
                    Err(error) => failed = Some(error),
                }
            }
            match failed {
                Some(error) => {
                    bail!("conv2d: cuDNN cannot compute {part:?} of {sizes:?}: {error}")
                }
                None => bail!("conv2d: cuDNN knows no algorithm for {part:?} of {sizes:?}"),
            }
        })?;
        if dtype == DType::F32 {
            return Ok(result);
        }
        result.to_dtype(&Layout::contiguous(to.to_vec()), DType::F32)
    }

    fn forward(
        &self,
        x: (&CudaStorage, &Layout),
        weight: (&CudaStorage, &Layout),
        bias: Option<(&CudaStorage, &Layout)>,
    ) -> Result<(CudaStorage, Shape)> {
        let sizes = self.sizes(x.1.dims(), weight.1.dims())?;
        let mut y = self.compute(Part::Output, sizes, x, weight)?;
        if let Some(bias) = bias {
            let device = y.device().clone();
            let stream = device.cuda_stream();
            let bias_is = tensor(Type::CUDNN_DATA_FLOAT, [1, sizes.y[1], 1, 1])?;
            let y_is = tensor(Type::CUDNN_DATA_FLOAT, sizes.y)?;
            let (bias, _reads) = read(bias, &stream)?;
            let (y, _writes) = write(&mut y, &stream)?;
            with_state(&device, |state| {
                let (handle, one) = (state.handle.0, scale(&ONE));
                // SAFETY: buffers are as long as the descriptors say.
                let done =
                    unsafe { sys::cudnnAddTensor(handle, one, bias_is.0, bias, one, y_is.0, y) };
                Ok(done.result()?)
            })?;
        }
        Ok((y, Shape::from(sizes.y.to_vec())))
    }

    fn backward(
        self,
        [x, weight]: [&Tensor; 2],
        bias: Option<&Tensor>,
        grad: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let grad = grad.contiguous()?;
        let sizes = self.sizes(x.dims(), weight.dims())?;
        let gradient = |part| Gradient {
            of: self,
            part,
            sizes,
        };
        let of_x = x.track_op().then(|| {
            let op = gradient(Part::OfInput);
            weight.contiguous()?.apply_op2_no_bwd(&grad, &op)
        });
        let of_weight = weight.track_op().then(|| {
            let op = gradient(Part::OfWeight);
            x.contiguous()?.apply_op2_no_bwd(&grad, &op)
        });
        let of_bias = bias
            .filter(|bias| bias.track_op())
            .map(|_| grad.apply_op1_no_bwd(&SumOfChannels));
        Ok([
            of_x.transpose()?,
            of_weight.transpose()?,
            of_bias.transpose()?,
        ])
    }
}

/// What cuDNN is told of a convolution.
struct Shapes {
    x: sys::cudnnTensorDescriptor_t,
    y: sys::cudnnTensorDescriptor_t,
    weight: sys::cudnnFilterDescriptor_t,
    conv: sys::cudnnConvolutionDescriptor_t,
}

/// How many algorithms cuDNN may name.
const MOST_ALGORITHMS: usize = 8;

/// What cuDNN recommends, the best first.
macro_rules! recommended {
    ($ask:path, $of:expr, $perf:ty, $algorithm:path, $first:expr, $second:expr, $third:expr, $fourth:expr) => {{
        let mut count = 0;
        // SAFETY: numbers and enumerations, for which zeros are values; only `count` of them are read.
        let mut found: [$perf; MOST_ALGORITHMS] = unsafe { std::mem::zeroed() };
        // SAFETY: descriptors are there, and there is room for so many.
        unsafe {
            $ask(
                $of,
                $first,
                $second,
                $third,
                $fourth,
                MOST_ALGORITHMS as i32,
                &raw mut count,
                found.as_mut_ptr(),
            )
        }?;
        let found = found.into_iter().take(count.max(0) as usize);
        found
            .filter(|perf| perf.status == sys::cudnnStatus_t::CUDNN_STATUS_SUCCESS)
            .map(|perf| Plan {
                algorithm: $algorithm(perf.algo),
                math: perf.mathType,
            })
            .collect()
    }};
}

impl Shapes {
    fn plans(
        &self,
        handle: sys::cudnnHandle_t,
        part: Part,
        products: Products,
    ) -> Result<Vec<Plan>> {
        // Rounded only where that was asked for.
        let math = match products {
            Products::Exact => Math::CUDNN_FMA_MATH,
            _ => Math::CUDNN_DEFAULT_MATH,
        };
        // SAFETY: the descriptor is there.
        unsafe { dnn::set_convolution_math_type(self.conv, math) }?;
        let (x, y, w, conv) = (self.x, self.y, self.weight, self.conv);
        let mut plans: Vec<Plan> = match part {
            Part::Output => recommended!(
                dnn::get_convolution_forward_algorithm,
                handle,
                sys::cudnnConvolutionFwdAlgoPerf_t,
                Algorithm::Output,
                x,
                w,
                conv,
                y
            ),
            Part::OfInput => recommended!(
                dnn::get_convolution_backward_data_algorithm,
                handle,
                sys::cudnnConvolutionBwdDataAlgoPerf_t,
                Algorithm::OfInput,
                w,
                y,
                conv,
                x
            ),
            Part::OfWeight => recommended!(
                dnn::get_convolution_backward_filter_algorithm,
                handle,
                sys::cudnnConvolutionBwdFilterAlgoPerf_t,
                Algorithm::OfWeight,
                x,
                y,
                conv,
                w
            ),
        };
        if products == Products::Exact {
            plans.iter_mut().for_each(|plan| plan.math = math);
        }
        Ok(plans)
    }

    /// Bytes; sets the kind of products of a plan.
    fn workspace(&self, handle: sys::cudnnHandle_t, plan: Plan) -> Answer<usize> {
        let (x, y, w, conv) = (self.x, self.y, self.weight, self.conv);
        // SAFETY: all are there.
        unsafe {
            dnn::set_convolution_math_type(conv, plan.math)?;
            match plan.algorithm {
                Algorithm::Output(it) => {
                    dnn::get_convolution_forward_workspace_size(handle, x, w, conv, y, it)
                }
                Algorithm::OfInput(it) => {
                    dnn::get_convolution_backward_data_workspace_size(handle, w, y, conv, x, it)
                }
                Algorithm::OfWeight(it) => {
                    dnn::get_convolution_backward_filter_workspace_size(handle, x, y, conv, w, it)
                }
            }
        }
    }

    /// # Safety
    /// Buffers are those of the descriptors.
    unsafe fn launch(
        &self,
        handle: sys::cudnnHandle_t,
        plan: Plan,
        [a, b]: [*const c_void; 2],
        to: *mut c_void,
        (workspace, bytes): (*mut c_void, usize),
    ) -> Answer<()> {
        let (x, y, w, conv) = (self.x, self.y, self.weight, self.conv);
        let (one, zero) = (scale(&ONE), scale(&ZERO));
        let workspace = if bytes == 0 { null_mut() } else { workspace };
        // SAFETY: by who calls.
        unsafe {
            match plan.algorithm {
                Algorithm::Output(it) => dnn::convolution_forward(
                    handle, one, x, a, w, b, conv, it, workspace, bytes, zero, y, to,
                ),
                Algorithm::OfInput(it) => dnn::convolution_backward_data(
                    handle, one, w, a, y, b, conv, it, workspace, bytes, zero, x, to,
                ),
                Algorithm::OfWeight(it) => dnn::convolution_backward_filter(
                    handle, one, x, a, y, b, conv, it, workspace, bytes, zero, w, to,
                ),
            }
        }
    }
}

impl CustomOp2 for Convolution {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
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
    ) -> Result<(CudaStorage, Shape)> {
        self.forward((x, lx), (weight, lw), None)
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [of_x, of_weight, _] = self.backward([x, weight], None, grad)?;
        Ok((of_x, of_weight))
    }
}

impl CustomOp3 for Convolution {
    fn name(&self) -> &'static str {
        "conv2d"
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
        self.forward((x, lx), (weight, lw), Some((bias, lbias)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [of_x, of_weight, of_bias] = self.backward([x, weight], Some(bias), grad)?;
        Ok((of_x, of_weight, of_bias))
    }
}

/// Of a convolution's input or weight.
struct Gradient {
    of: Convolution,
    part: Part,
    sizes: Sizes,
}

impl CustomOp2 for Gradient {
    fn name(&self) -> &'static str {
        "conv2d_gradient"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        bail!("{ON_CPU}")
    }

    fn cuda_fwd(
        &self,
        a: &CudaStorage,
        la: &Layout,
        grad: &CudaStorage,
        lgrad: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        if lgrad.dims() != self.sizes.y {
            bail!(
                "conv2d: a gradient {:?} of {:?}",
                lgrad.dims(),
                self.sizes.y
            );
        }
        let to = match self.part {
            Part::OfWeight => self.sizes.weight,
            _ => self.sizes.x,
        };
        let result = self
            .of
            .compute(self.part, self.sizes, (a, la), (grad, lgrad))?;
        Ok((result, Shape::from(to.to_vec())))
    }
}

/// (b, c, h, w) to (c).
struct SumOfChannels;

impl CustomOp1 for SumOfChannels {
    fn name(&self) -> &'static str {
        "sum_of_channels"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("{ON_CPU}")
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let dims: [usize; 4] = layout.shape().dims4()?.into();
        let device = x.device().clone();
        let stream = device.cuda_stream();
        let mut sums = fresh(&device, [1, dims[1], 1, 1], DType::F32)?;
        let x_is = tensor(Type::CUDNN_DATA_FLOAT, dims)?;
        let sums_are = tensor(Type::CUDNN_DATA_FLOAT, [1, dims[1], 1, 1])?;
        {
            let (x, _reads) = read((x, layout), &stream)?;
            let (to, _writes) = write(&mut sums, &stream)?;
            with_state(&device, |state| {
                let (handle, one, zero) = (state.handle.0, scale(&ONE), scale(&ZERO));
                // SAFETY: buffers are as long as the descriptors say.
                let done = unsafe {
                    sys::cudnnConvolutionBackwardBias(handle, one, x_is.0, x, zero, sums_are.0, to)
                };
                Ok(done.result()?)
            })?;
        }
        Ok((sums, Shape::from(dims[1])))
    }
}

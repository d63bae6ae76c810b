//! Convolution by cuDNN: bias and relu in the same call, f32 sums for every type of element, algorithm and workspace
//! found once for each shape.
//!
//! candle's own convolution adds up in f16 for f16, asks for the algorithm and clears a workspace in every call.

use std::cell::RefCell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::cudnn::sys::{
    cudnnActivationMode_t as Activation, cudnnConvolutionFwdAlgo_t as Algorithm,
    cudnnConvolutionMode_t as Mode, cudnnMathType_t as Math, cudnnNanPropagation_t as Nan,
    cudnnTensorFormat_t as Format,
};
use candle_core::cuda_backend::cudarc::cudnn::{
    ConvBiasActivationForward, ConvForward, Cudnn, CudnnDataType, TensorDescriptor,
};
use candle_core::cuda_backend::cudarc::driver::sys::CUstreamCaptureStatus;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, DeviceRepr};
use candle_core::cuda_backend::{CudaDType, DeviceId, WrapErr};
use candle_core::{
    CpuStorage, CudaDevice, CudaStorage, CustomOp2, CustomOp3, DType, Layout, Result, Shape,
    Tensor, WithDType, bail,
};
use half::{bf16, f16};

use super::convolution::add_bias;

thread_local! {
    /// A handle belongs to the thread that made it.
    static STATES: RefCell<HashMap<DeviceId, State>> = RefCell::default();
}

/// As [`super::conv2d`], on a card, without groups.
pub(super) fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    padding: usize,
    stride: usize,
    relu: bool,
) -> Result<Tensor> {
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    let op = Convolution {
        padding,
        stride,
        relu,
    };
    let Some(bias) = bias else {
        let y = x.apply_op2_no_bwd(&weight, &op)?;
        return if relu { y.relu() } else { Ok(y) };
    };
    let known = STATES.with_borrow(|states| {
        let id = x.device().as_cuda_device().ok()?.id();
        states
            .get(&id)?
            .plans
            .get(&op.key(x.dims(), weight.dims(), x.dtype(), true))
            .copied()
    });
    // Once cuDNN has refused a shape with its bias, it is asked without.
    if known.is_none_or(|plan| plan.fused) {
        match x.apply_op3_no_bwd(&weight, &bias.contiguous()?, &op) {
            Ok(y) => return Ok(y),
            Err(error) if known.is_some() => return Err(error),
            Err(_) => STATES.with_borrow_mut(|states| {
                let device = x.device().as_cuda_device()?;
                if let Some(state) = states.get_mut(&device.id()) {
                    let plan = Plan {
                        algorithm: Algorithm::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM,
                        workspace: 0,
                        fused: false,
                    };
                    state
                        .plans
                        .insert(op.key(x.dims(), weight.dims(), x.dtype(), true), plan);
                }
                Ok::<_, candle_core::Error>(())
            })?,
        }
    }
    add_bias(&x.apply_op2_no_bwd(&weight, &op)?, bias, relu)
}

#[derive(Clone, Copy)]
struct Convolution {
    padding: usize,
    stride: usize,
    relu: bool,
}

/// Sizes of input and weight, padding, stride, type, and whether bias and relu are of the call.
type Key = ([usize; 4], [usize; 4], [usize; 2], DType, Option<bool>);

#[derive(Clone, Copy)]
struct Plan {
    algorithm: Algorithm,
    /// Bytes.
    workspace: usize,
    /// cuDNN takes bias and relu with it.
    fused: bool,
}

/// What a thread keeps for a device.
struct State {
    cudnn: Handle,
    plans: HashMap<Key, Plan>,
    /// Shared by all convolutions, which come one after the other on one stream.
    scratch: Scratch,
}

/// Memory that cuDNN works with.
struct Scratch {
    workspace: CudaSlice<u8>,
    /// Stands for the summand that there is none of: zeros, because cuDNN turns its layout, and what is no number would stay so times 0.
    nothing: CudaSlice<u8>,
}

/// cuDNN's handle. Dropped with its thread, when a panic would end the program: and that is what cudarc answers a card with that has
/// failed.
struct Handle(Option<Arc<Cudnn>>);

impl Drop for Handle {
    fn drop(&mut self) {
        let handle = self.0.take();
        let _ = catch_unwind(AssertUnwindSafe(|| drop(handle)));
    }
}

impl Convolution {
    fn key(&self, x: &[usize], weight: &[usize], dtype: DType, with_bias: bool) -> Key {
        let four = |dims: &[usize]| std::array::from_fn(|i| dims.get(i).copied().unwrap_or(0));
        (
            four(x),
            four(weight),
            [self.padding, self.stride],
            dtype,
            with_bias.then_some(self.relu),
        )
    }

    fn run(
        &self,
        x: (&CudaStorage, &Layout),
        weight: (&CudaStorage, &Layout),
        bias: Option<(&CudaStorage, &Layout)>,
    ) -> Result<(CudaStorage, Shape)> {
        match x.0.dtype() {
            DType::F32 => self.typed::<f32>(x, weight, bias),
            DType::F16 => self.typed::<f16>(x, weight, bias),
            DType::BF16 => self.typed::<bf16>(x, weight, bias),
            other => bail!("conv2d: no convolution of {other:?} on a card"),
        }
    }

    fn typed<T: CudaDType + DeviceRepr + WithDType + CudnnDataType>(
        &self,
        x: (&CudaStorage, &Layout),
        weight: (&CudaStorage, &Layout),
        bias: Option<(&CudaStorage, &Layout)>,
    ) -> Result<(CudaStorage, Shape)> {
        let device = x.0.device().clone();
        let (b, c, h, w) = x.1.shape().dims4()?;
        let (c_out, c_in, kh, kw) = weight.1.shape().dims4()?;
        if c != c_in || self.stride == 0 || h + 2 * self.padding < kh || w + 2 * self.padding < kw {
            bail!(
                "conv2d: a weight {:?} does not fit an input {:?}",
                weight.1.dims(),
                x.1.dims()
            );
        }
        let side = |n: usize, k: usize| (n + 2 * self.padding - k) / self.stride + 1;
        let (ho, wo) = (side(h, kh), side(w, kw));
        let shape = Shape::from((b, c_out, ho, wo));
        // SAFETY: a convolution writes all of its output.
        let mut y: CudaSlice<T> = unsafe { device.alloc(shape.elem_count())? };
        let key = self.key(x.1.dims(), weight.1.dims(), x.0.dtype(), bias.is_some());
        let (x, weight) = (view::<T>(x)?, view::<T>(weight)?);
        let bias = bias.map(view::<T>).transpose()?;

        STATES.with_borrow_mut(|states| {
            let state = match states.entry(device.id()) {
                std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::hash_map::Entry::Vacant(entry) => entry.insert(State {
                    cudnn: Handle(Some(Cudnn::new(device.cuda_stream())?)),
                    plans: HashMap::new(),
                    scratch: Scratch {
                        workspace: device.alloc_zeros(1)?,
                        nothing: device.alloc_zeros(1)?,
                    },
                }),
            };
            let Some(cudnn) = &state.cudnn.0 else {
                bail!("conv2d: cuDNN is gone");
            };
            let int = |v: usize| v as i32;
            let mut conv = cudnn.create_conv2d::<f32>(
                [int(self.padding); 2],
                [int(self.stride); 2],
                [1; 2],
                Mode::CUDNN_CROSS_CORRELATION,
            )?;
            conv.set_math_type(match T::DTYPE {
                // 24 bits and not the 11 of TF32: that is what f32 is asked for.
                DType::F32 => Math::CUDNN_FMA_MATH,
                _ => Math::CUDNN_TENSOR_OP_MATH,
            })?;
            let tensor = |dims: [usize; 4]| -> Result<TensorDescriptor<T>> {
                Ok(cudnn.create_4d_tensor(Format::CUDNN_TENSOR_NCHW, dims.map(int))?)
            };
            let x_is = tensor([b, c, h, w])?;
            let y_is = tensor([b, c_out, ho, wo])?;
            let w_is = cudnn
                .create_4d_filter::<T>(Format::CUDNN_TENSOR_NCHW, [c_out, c_in, kh, kw].map(int))?;
            let plain = ConvForward {
                conv: &conv,
                x: &x_is,
                w: &w_is,
                y: &y_is,
            };
            let plan = match state.plans.get(&key) {
                Some(&plan) => plan,
                None => {
                    // Without an activation cuDNN adds a bias by this algorithm alone.
                    let algorithm = match bias {
                        Some(_) => Algorithm::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM,
                        None => plain.pick_algorithm()?,
                    };
                    let workspace = plain.get_workspace_size(algorithm)?;
                    Plan {
                        algorithm,
                        workspace,
                        fused: bias.is_some(),
                    }
                }
            };
            let bytes = match bias {
                Some(_) => shape.elem_count() * T::DTYPE.size_in_bytes(),
                None => 0,
            };
            // What is recorded outlives this thread, and so must what it works with: memory of the recording itself.
            let mut of_recording;
            let scratch = if is_recorded(&device)? {
                of_recording = Scratch {
                    // SAFETY: cuDNN writes its workspace before it reads it.
                    workspace: unsafe { device.alloc(plan.workspace.max(1))? },
                    nothing: device.alloc_zeros(bytes.max(1))?,
                };
                &mut of_recording
            } else {
                let scratch = &mut state.scratch;
                if scratch.workspace.len() < plan.workspace {
                    scratch.workspace = device.alloc_zeros(plan.workspace)?;
                }
                if scratch.nothing.len() < bytes {
                    scratch.nothing = device.alloc_zeros(bytes)?;
                }
                scratch
            };
            let workspace = Some(&mut scratch.workspace);
            match &bias {
                Some(bias) => {
                    // SAFETY: zeros are numbers of every type here.
                    let nothing = unsafe { scratch.nothing.transmute::<T>(shape.elem_count()) };
                    let Some(nothing) = nothing else {
                        bail!("conv2d: no memory for the summand");
                    };
                    let mode = if self.relu {
                        Activation::CUDNN_ACTIVATION_RELU
                    } else {
                        Activation::CUDNN_ACTIVATION_IDENTITY
                    };
                    let act =
                        cudnn.create_activation::<f32>(mode, Nan::CUDNN_NOT_PROPAGATE_NAN, 0.0)?;
                    let bias_is = tensor([1, c_out, 1, 1])?;
                    let fused = ConvBiasActivationForward {
                        conv: &conv,
                        act: &act,
                        x: &x_is,
                        w: &w_is,
                        z: &y_is,
                        bias: &bias_is,
                        y: &y_is,
                    };
                    let scales = (T::one(), T::zero());
                    // SAFETY: the buffers are as long as the descriptors say.
                    unsafe {
                        fused.launch(
                            plan.algorithm,
                            workspace,
                            scales,
                            &x,
                            &weight,
                            &nothing,
                            bias,
                            &mut y,
                        )?;
                    }
                }
                None => {
                    let scales = (T::one(), T::zero());
                    // SAFETY: as above.
                    unsafe {
                        plain.launch(plan.algorithm, workspace, scales, &x, &weight, &mut y)?;
                    }
                }
            }
            state.plans.insert(key, plan);
            Ok::<_, candle_core::Error>(())
        })?;
        Ok((CudaStorage::wrap_cuda_slice(y, device), shape))
    }
}

/// Whether what is launched on the device's stream is recorded: see [`super::Recorder`].
fn is_recorded(device: &CudaDevice) -> Result<bool> {
    let status = device.cuda_stream().capture_status().w()?;
    Ok(status != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
}

fn view<'a, T: CudaDType>(
    (storage, layout): (&'a CudaStorage, &Layout),
) -> Result<CudaView<'a, T>> {
    let slice = storage.as_cuda_slice::<T>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(slice.slice(start..end)),
        None => bail!("conv2d: an op's arguments must be contiguous"),
    }
}

const ON_CPU: &str = "conv2d: cuDNN computes on cards alone";

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
        w: &CudaStorage,
        lw: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.run((x, lx), (w, lw), None)
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
        w: &CudaStorage,
        lw: &Layout,
        bias: &CudaStorage,
        lbias: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.run((x, lx), (w, lw), Some((bias, lbias)))
    }
}

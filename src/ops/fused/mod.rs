//! Ops of inference on a graphics card: several steps of the networks in one kernel of `shaders/cuda`.
//!
//! Elements may be f32, f16 or bf16; arithmetic is f32 throughout, and so are coordinates. None has a gradient. Each op is here
//! twice: as a plain function on the CPU, which says what it computes, and as a kernel, which is held against it:
//! compiled by the host's C++ compiler everywhere, and on the card where there is one. What a kernel is given (`Launch`) is the
//! same in all three places.
//!
//! The networks take these ops for tensors that [`fuses`] says yes to, and candle's otherwise.

mod convolution;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cudnn")]
mod cudnn;
#[cfg(test)]
#[cfg(unix)]
pub(crate) mod host;
mod motion;
mod pictures;
mod recorder;
#[cfg(test)]
#[cfg(unix)]
mod tests;

use std::borrow::Cow;

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, DType, Device, Layout, Result, Shape,
    Tensor, bail,
};
use half::{bf16, f16};

use super::unfold::part;

pub use convolution::{conv2d, fold, scale_shift_relu, up_conv2d};
pub use motion::{deformation, kept_still, keypoints, opened, pairs, sparse_motion, veiled};
pub use pictures::{mean_2x2, nearest_x2, pack, reduce, unpack};
pub use recorder::{Recorder, floats};

/// Whether the networks are to take these ops for what they make of `x`: it is not learnt from, and on a CUDA card, or in
/// half precision on the CPU, where they show what a card computes.
pub fn fuses(x: &Tensor) -> bool {
    let half = matches!(x.dtype(), DType::F16 | DType::BF16);
    !x.track_op()
        && ((x.device().is_cuda() && (half || x.dtype() == DType::F32))
            || (x.device().is_cpu() && half))
}

/// Says that all work of a device goes through its one stream, as all of ours does: then no event has to be recorded for
/// each tensor that is made or read.
pub fn one_stream(device: &Device) {
    #[cfg(feature = "cuda")]
    cuda::one_stream(device);
    #[cfg(not(feature = "cuda"))]
    let _ = device;
}

/// What a kernel is told beside its tensors; mirrored by `Params` in `shaders/cuda/common.cuh`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Params {
    pub(crate) threads: u32,
    pub(crate) batch: u32,
    pub(crate) channels: u32,
    pub(crate) h: u32,
    pub(crate) w: u32,
    pub(crate) outputs: u32,
    pub(crate) ho: u32,
    pub(crate) wo: u32,
    pub(crate) count: u32,
    pub(crate) padding: u32,
    pub(crate) stride: u32,
    pub(crate) flags: u32,
    pub(crate) real: f32,
}

/// Bits of [`Params::flags`].
pub(crate) mod flags {
    pub(crate) const REFLECT: u32 = 1;
    pub(crate) const ALIGN: u32 = 2;
    pub(crate) const RELU: u32 = 4;
    pub(crate) const BIAS: u32 = 8;
    pub(crate) const LINEAR: u32 = 16;
    pub(crate) const ONE_MAP: u32 = 32;
}

impl Params {
    /// The same for pictures (b, c, h, w) that become pictures of (h', w').
    pub(crate) fn sized(self, [b, c, h, w]: [usize; 4], [ho, wo]: [usize; 2]) -> Self {
        Self {
            batch: b as u32,
            channels: c as u32,
            h: h as u32,
            w: w as u32,
            outputs: b as u32,
            ho: ho as u32,
            wo: wo as u32,
            ..self
        }
    }

    pub(crate) fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Height and width of the input, in pixels.
    fn plane(&self) -> usize {
        self.h as usize * self.w as usize
    }

    /// Of the output.
    fn plane_out(&self) -> usize {
        self.ho as usize * self.wo as usize
    }
}

/// A kernel and what it runs on.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    /// Its file in `shaders/cuda` and its name there, without the type of the elements that it is an instance for: "file/name".
    pub(crate) kernel: &'static str,
    /// Type of those elements.
    #[cfg(any(test, feature = "cuda"))]
    pub(crate) dtype: DType,
    pub(crate) params: Params,
    pub(crate) shape: Shape,
    /// Type of the output.
    pub(crate) to: DType,
    /// Whether the output must hold zeros before.
    pub(crate) zeroed: bool,
    /// Whether the threads of a block work on one thing together; `threads` counts blocks then.
    pub(crate) together: bool,
}

impl Launch {
    /// A thread for each of `threads` things.
    pub(crate) fn new(
        kernel: &'static str,
        dtype: DType,
        threads: usize,
        shape: impl Into<Shape>,
    ) -> Result<Self> {
        // The kernels count in 32 bits, and so do the sizes of tensors that fit a card.
        let Some(threads) = u32::try_from(threads).ok().filter(|&n| n <= u32::MAX / 2) else {
            bail!("{kernel}: {threads} are more than a card counts");
        };
        Ok(Self {
            kernel,
            #[cfg(any(test, feature = "cuda"))]
            dtype,
            params: Params {
                threads,
                ..Params::default()
            },
            shape: shape.into(),
            to: dtype,
            zeroed: false,
            together: false,
        })
    }

    /// The file without its ending, and the kernel's whole name.
    #[cfg(any(test, feature = "cuda"))]
    pub(crate) fn names(&self) -> Result<(&'static str, String)> {
        let suffix = match self.dtype {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            other => bail!("{}: no kernel for {other:?}", self.kernel),
        };
        let (file, kernel) = self
            .kernel
            .split_once('/')
            .unwrap_or((self.kernel, self.kernel));
        Ok((file, format!("{kernel}_{suffix}")))
    }
}

/// What an op computes, on the CPU: from its arguments to the output, all widened to f32.
pub(crate) type Plain = fn(&Params, &[Cow<'_, [f32]>]) -> Vec<f32>;

/// A kernel, and what it computes.
#[derive(Clone, Debug)]
pub(crate) struct Fused {
    pub(crate) launch: Launch,
    pub(crate) plain: Plain,
}

impl Fused {
    /// Runs it on one to three tensors of one device.
    pub(crate) fn run(&self, args: &[&Tensor]) -> Result<Tensor> {
        let args = args
            .iter()
            .map(|arg| arg.contiguous())
            .collect::<Result<Vec<_>>>()?;
        match &args[..] {
            [a] => a.apply_op1_no_bwd(self),
            [a, b] => a.apply_op2_no_bwd(b, self),
            [a, b, c] => a.apply_op3_no_bwd(b, c, self),
            _ => bail!("{}: {} arguments", self.launch.kernel, args.len()),
        }
    }

    fn on_cpu(&self, args: &[(&CpuStorage, &Layout)]) -> Result<(CpuStorage, Shape)> {
        #[cfg(test)]
        #[cfg(unix)]
        if host::active() {
            return host::launch(&self.launch, args);
        }
        let args = args
            .iter()
            .map(|&(storage, layout)| widened(storage, layout))
            .collect::<Result<Vec<_>>>()?;
        let values = (self.plain)(&self.launch.params, &args);
        let storage = match self.launch.to {
            DType::F32 => CpuStorage::F32(values),
            DType::F16 => CpuStorage::F16(values.into_iter().map(f16::from_f32).collect()),
            DType::BF16 => CpuStorage::BF16(values.into_iter().map(bf16::from_f32).collect()),
            DType::U8 => CpuStorage::U8(values.into_iter().map(|v| v as u8).collect()),
            other => bail!("{}: no output of {other:?}", self.launch.kernel),
        };
        Ok((storage, self.launch.shape.clone()))
    }

    #[cfg(feature = "cuda")]
    fn on_cuda(&self, args: &[(&CudaStorage, &Layout)]) -> Result<(CudaStorage, Shape)> {
        cuda::launch(&self.launch, args)
    }

    #[cfg(not(feature = "cuda"))]
    fn on_cuda(&self, _args: &[(&CudaStorage, &Layout)]) -> Result<(CudaStorage, Shape)> {
        Err(candle_core::Error::NotCompiledWithCudaSupport)
    }
}

/// Runs a kernel on what another op was given.
#[cfg(feature = "cuda")]
pub(crate) fn launch(
    launch: &Launch,
    args: &[(&CudaStorage, &Layout)],
) -> Result<(CudaStorage, Shape)> {
    cuda::launch(launch, args)
}

impl CustomOp1 for Fused {
    fn name(&self) -> &'static str {
        self.launch.kernel
    }

    fn cpu_fwd(&self, a: &CpuStorage, la: &Layout) -> Result<(CpuStorage, Shape)> {
        self.on_cpu(&[(a, la)])
    }

    fn cuda_fwd(&self, a: &CudaStorage, la: &Layout) -> Result<(CudaStorage, Shape)> {
        self.on_cuda(&[(a, la)])
    }
}

impl CustomOp2 for Fused {
    fn name(&self) -> &'static str {
        self.launch.kernel
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        la: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.on_cpu(&[(a, la), (b, lb)])
    }

    fn cuda_fwd(
        &self,
        a: &CudaStorage,
        la: &Layout,
        b: &CudaStorage,
        lb: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.on_cuda(&[(a, la), (b, lb)])
    }
}

impl CustomOp3 for Fused {
    fn name(&self) -> &'static str {
        self.launch.kernel
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        la: &Layout,
        b: &CpuStorage,
        lb: &Layout,
        c: &CpuStorage,
        lc: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.on_cpu(&[(a, la), (b, lb), (c, lc)])
    }

    fn cuda_fwd(
        &self,
        a: &CudaStorage,
        la: &Layout,
        b: &CudaStorage,
        lb: &Layout,
        c: &CudaStorage,
        lc: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.on_cuda(&[(a, la), (b, lb), (c, lc)])
    }
}

/// An argument's values in f32.
pub(crate) fn widened<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<Cow<'a, [f32]>> {
    Ok(match storage {
        CpuStorage::F32(values) => Cow::Borrowed(part(values, layout)?),
        CpuStorage::F16(values) => {
            Cow::Owned(part(values, layout)?.iter().map(|v| v.to_f32()).collect())
        }
        CpuStorage::BF16(values) => {
            Cow::Owned(part(values, layout)?.iter().map(|v| v.to_f32()).collect())
        }
        CpuStorage::U8(values) => Cow::Owned(
            part(values, layout)?
                .iter()
                .map(|v| f32::from(*v))
                .collect(),
        ),
        _ => bail!("an op's arguments must be f32, f16, bf16 or bytes"),
    })
}

/// Coordinates of a pixel's centre among `size` as -1..1.
fn centre(i: usize, size: usize) -> f32 {
    if size > 1 {
        2.0 * i as f32 / (size - 1) as f32 - 1.0
    } else {
        -1.0
    }
}

/// Zero for what is below it, where that is asked for; what is no number becomes 0 too.
fn relu_if(value: f32, params: &Params) -> f32 {
    if params.has(flags::RELU) {
        value.max(0.0)
    } else {
        value
    }
}

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
mod pinned;
mod recorder;
mod shared;
#[cfg(test)]
#[cfg(unix)]
mod tests;

use std::borrow::Cow;

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, DType, Device, Layout, Result, Shape, Storage, Tensor, bail,
};
use half::{bf16, f16};

use super::unfold::part;

pub use convolution::{conv2d, fold, scale_shift_relu, up_conv2d};
pub(crate) use motion::{Motion, PAIR, places};
pub use motion::{deformation, kept_still, keypoints, opened, pairs, sparse_motion, veiled};
pub use pictures::{mean_2x2, nearest_x2, pack, reduce, unpack};
pub use pinned::Staging;
pub use recorder::{Recorder, floats};
pub use shared::Shared;

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
#[derive(Clone, Copy, Debug, Default, PartialEq)]
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
    pub(crate) second: u32,
    pub(crate) features: u32,
    pub(crate) parts: u32,
    pub(crate) tile_w: u32,
    pub(crate) tile_h: u32,
}

/// Bits of [`Params::flags`].
pub(crate) mod flags {
    pub(crate) const REFLECT: u32 = 1;
    pub(crate) const ALIGN: u32 = 2;
    pub(crate) const RELU: u32 = 4;
    pub(crate) const BIAS: u32 = 8;
    pub(crate) const LINEAR: u32 = 16;
    pub(crate) const ONE_MAP: u32 = 32;
    pub(crate) const DOUBLED: u32 = 64;
    pub(crate) const FOLDED: u32 = 128;
    pub(crate) const POOLED: u32 = 256;
    pub(crate) const WIDE: u32 = 512;
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

    /// Kernels that a convolution is folded into, or the one that it is.
    pub(crate) fn phases(&self) -> u32 {
        if self.has(flags::FOLDED) { 4 } else { 1 }
    }

    /// Height and width of the input, in pixels.
    pub(crate) fn plane(&self) -> usize {
        self.h as usize * self.w as usize
    }

    /// Of the output.
    pub(crate) fn plane_out(&self) -> usize {
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
    pub(crate) block: Block,
    /// Of a kernel that has its first, second and fourth argument fetched by the card's copying engine.
    pub(crate) fetched: Option<Fetched>,
}

/// The boxes that a kernel of `shaders/cuda/boxes.cuh` fetches, [`WIDTH`](Self::WIDTH) bytes of each pixel or tap: of maps
/// (b, h, w, features), its first and fourth argument, and of weights (features, taps in y, taps in x, what is summed of a tap), its second.
/// Sides are those that change quickest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fetched {
    pub(crate) pixels: [u32; 3],
    pub(crate) weights: [u32; 3],
    /// Elements of weights that a tap has.
    pub(crate) summed: u32,
    /// Bytes that a block keeps in shared memory.
    pub(crate) shared: u32,
}

impl Fetched {
    pub(crate) const WIDTH: usize = 128;
}

/// How a kernel's threads are grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    /// Each works for itself.
    Alone,
    /// Those of a block work on one thing together, however many they are, up to [`MOST_TOGETHER`]; `threads` counts blocks.
    Together,
    /// So many of them; `threads` counts blocks.
    Of(u32),
}

/// Threads of a block that work together at most; as in `shaders/cuda`.
#[cfg(feature = "cuda")]
pub(crate) const MOST_TOGETHER: u32 = 256;

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
            block: Block::Alone,
            fetched: None,
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

/// What an op computes, on the CPU: from its arguments to the output, all widened to f32; one that is left out is empty.
pub(crate) type Plain = fn(&Params, &[Cow<'_, [f32]>]) -> Vec<f32>;

/// A kernel, and what it computes.
#[derive(Clone, Debug)]
pub(crate) struct Fused {
    pub(crate) launch: Launch,
    pub(crate) plain: Plain,
}

/// What a kernel reads at most.
pub(crate) const MOST_ARGUMENTS: usize = 6;

/// Storage of an argument that is there.
pub(crate) type Argument<'a, S> = Option<(&'a S, &'a Layout)>;

impl Fused {
    /// Runs it on tensors of one device.
    pub(crate) fn run(&self, args: &[&Tensor]) -> Result<Tensor> {
        let args: Vec<_> = args.iter().map(|&arg| Some(arg)).collect();
        self.run_with(&args)
    }

    /// The same, where some may be left out, but not the first.
    pub(crate) fn run_with(&self, args: &[Option<&Tensor>]) -> Result<Tensor> {
        let [Some(first), rest @ ..] = args else {
            bail!("{}: no arguments", self.launch.kernel);
        };
        if args.len() > MOST_ARGUMENTS {
            bail!("{}: {} arguments", self.launch.kernel, args.len());
        }
        let rest = rest
            .iter()
            .map(|arg| arg.map(Tensor::contiguous).transpose());
        let bound = Bound {
            op: self,
            rest: rest.collect::<Result<_>>()?,
        };
        first.contiguous()?.apply_op1_no_bwd(&bound)
    }

    fn on_cpu(&self, args: &[Argument<'_, CpuStorage>]) -> Result<CpuStorage> {
        #[cfg(test)]
        #[cfg(unix)]
        if host::active() {
            return host::launch(&self.launch, args);
        }
        let args = args
            .iter()
            .map(|arg| match *arg {
                Some((storage, layout)) => widened(storage, layout),
                None => Ok(Cow::Borrowed(&[][..])),
            })
            .collect::<Result<Vec<_>>>()?;
        let values = (self.plain)(&self.launch.params, &args);
        if values.len() != self.launch.shape.elem_count() {
            bail!("{} is not for the CPU", self.launch.kernel);
        }
        Ok(match self.launch.to {
            DType::F32 => CpuStorage::F32(values),
            DType::F16 => CpuStorage::F16(values.into_iter().map(f16::from_f32).collect()),
            DType::BF16 => CpuStorage::BF16(values.into_iter().map(bf16::from_f32).collect()),
            DType::U8 => CpuStorage::U8(values.into_iter().map(|v| v as u8).collect()),
            other => bail!("{}: no output of {other:?}", self.launch.kernel),
        })
    }

    #[cfg(feature = "cuda")]
    fn on_cuda(&self, args: &[Argument<'_, CudaStorage>]) -> Result<CudaStorage> {
        cuda::launch(&self.launch, args)
    }

    #[cfg(not(feature = "cuda"))]
    fn on_cuda(&self, _args: &[Argument<'_, CudaStorage>]) -> Result<CudaStorage> {
        Err(candle_core::Error::NotCompiledWithCudaSupport)
    }
}

/// Runs a kernel on what another op was given.
#[cfg(feature = "cuda")]
pub(crate) fn launch(
    launch: &Launch,
    args: &[(&CudaStorage, &Layout)],
) -> Result<(CudaStorage, Shape)> {
    let args: Vec<_> = args.iter().map(|&arg| Some(arg)).collect();
    Ok((cuda::launch(launch, &args)?, launch.shape.clone()))
}

/// An op with all its arguments but the first, which candle hands over.
struct Bound<'a> {
    op: &'a Fused,
    rest: Vec<Option<Tensor>>,
}

impl CustomOp1 for Bound<'_> {
    fn name(&self) -> &'static str {
        self.op.launch.kernel
    }

    fn cpu_fwd(&self, first: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.with_rest(
            (first, layout),
            |storage| match storage {
                Storage::Cpu(storage) => Some(storage),
                _ => None,
            },
            |args| self.op.on_cpu(args),
        )
    }

    fn cuda_fwd(&self, first: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        self.with_rest(
            (first, layout),
            |storage| match storage {
                Storage::Cuda(storage) => Some(storage),
                _ => None,
            },
            |args| self.op.on_cuda(args),
        )
    }
}

impl Bound<'_> {
    /// Runs it on all its arguments, whose storages are `of` the first one's kind.
    fn with_rest<S>(
        &self,
        first: (&S, &Layout),
        of: impl Fn(&Storage) -> Option<&S>,
        run: impl FnOnce(&[Argument<'_, S>]) -> Result<S>,
    ) -> Result<(S, Shape)> {
        let rest = self.rest.iter();
        let rest: Vec<_> = rest
            .map(|arg| arg.as_ref().map(Tensor::storage_and_layout))
            .collect();
        let mut args = vec![Some(first)];
        for held in &rest {
            args.push(match held {
                Some((storage, layout)) => match of(storage) {
                    Some(storage) => Some((storage, *layout)),
                    None => bail!("{}: arguments of two devices", self.name()),
                },
                None => None,
            });
        }
        Ok((run(&args)?, self.op.launch.shape.clone()))
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
pub(crate) fn relu_if(value: f32, params: &Params) -> f32 {
    if params.has(flags::RELU) {
        value.max(0.0)
    } else {
        value
    }
}

//! The kernels on a card: their PTX, and how they are launched.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::sys::{
    self, CUfunction_attribute_enum, CUtensorMap, CUtensorMapDataType, CUtensorMapFloatOOBfill,
    CUtensorMapInterleave, CUtensorMapL2promotion, CUtensorMapSwizzle,
};
use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, DevicePtr, DeviceRepr, LaunchConfig, PushKernelArg, SyncOnDrop, ValidAsZeroBits,
};
use candle_core::cuda_backend::{CudaDType, CudaStorageSlice, WrapErr};
use candle_core::{CudaDevice, CudaStorage, DType, Device, Result, bail};
use half::{bf16, f16};

use super::{Argument, Block, Fetched, Launch, MOST_ARGUMENTS, MOST_TOGETHER, Params};

/// Threads of a block, where each works for itself.
const THREADS: u32 = 256;

macro_rules! ptx {
    ($($file:literal),*) => {
        &[$(($file, include_str!(concat!(env!("OUT_DIR"), "/", $file, ".ptx")))),*]
    };
}

/// The files of `shaders/cuda`, compiled.
const PTX: &[(&str, &str)] = ptx!(
    "convolution",
    "grid_sample",
    "keypoints",
    "maps",
    "motion",
    "narrow",
    "pack",
    "resample",
    "tensor_cores",
    "warpgroups"
);

// SAFETY: a repr(C) struct of 32-bit numbers without padding, as the kernels declare it.
unsafe impl DeviceRepr for Params {}

/// Where a kernel's boxes come from: its first, fourth and second argument; mirrored by `Boxes` in `shaders/cuda/boxes.cuh`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Boxes([CUtensorMap; 3]);

// SAFETY: three descriptions of 128 bytes, as the kernels declare them.
unsafe impl DeviceRepr for Boxes {}

/// See [`super::one_stream`].
pub(super) fn one_stream(device: &Device) {
    if let Ok(device) = device.as_cuda_device() {
        // SAFETY: candle and the kernels here use the device's own stream and no other, and tensors do not cross between devices;
        // what reads and what frees them comes one after the other on it.
        unsafe { device.disable_event_tracking() };
    }
}

/// Runs a kernel on contiguous arguments of one device.
///
/// # Errors
/// When the driver refuses the code, memory is short, or an argument's type is none that kernels take.
pub(super) fn launch(launch: &Launch, args: &[Argument<'_, CudaStorage>]) -> Result<CudaStorage> {
    let Some(Some((first, _))) = args.first() else {
        bail!("{}: no arguments", launch.kernel);
    };
    let device = first.device().clone();
    match launch.to {
        DType::F32 => run::<f32>(launch, args, device),
        DType::F16 => run::<f16>(launch, args, device),
        DType::BF16 => run::<bf16>(launch, args, device),
        DType::U8 => run::<u8>(launch, args, device),
        other => bail!("{}: no output of {other:?}", launch.kernel),
    }
}

fn run<T: CudaDType + DeviceRepr + ValidAsZeroBits>(
    launch: &Launch,
    args: &[Argument<'_, CudaStorage>],
    device: CudaDevice,
) -> Result<CudaStorage> {
    let (file, name) = launch.names()?;
    let Some(&(file, ptx)) = PTX.iter().find(|(known, _)| *known == file) else {
        bail!("{}: no kernels of {file}", launch.kernel);
    };
    let kernel = device.get_or_load_custom_func(&name, &format!("mimic_{file}"), ptx)?;
    let elements = launch.shape.elem_count();
    let mut out: CudaSlice<T> = if launch.zeroed {
        device.alloc_zeros(elements)?
    } else {
        // SAFETY: every kernel that does not add to its output writes all of it.
        unsafe { device.alloc(elements)? }
    };
    if launch.params.threads == 0 {
        return Ok(CudaStorage::wrap_cuda_slice(out, device));
    }
    let (grid, block) = match launch.block {
        Block::Alone => (launch.params.threads.div_ceil(THREADS), THREADS),
        Block::Together => (launch.params.threads, MOST_TOGETHER),
        Block::Of(threads) => (launch.params.threads, threads),
    };
    let config = LaunchConfig {
        grid_dim: (grid, 1, 1),
        block_dim: (block, 1, 1),
        shared_mem_bytes: launch.fetched.map_or(0, |fetched| fetched.shared),
    };
    // Null for arguments that the kernel has not.
    let mut pointers = [0u64; MOST_ARGUMENTS];
    let stream = device.cuda_stream();
    let mut reads = Vec::with_capacity(args.len());
    for (pointer, arg) in pointers.iter_mut().zip(args) {
        let Some((storage, layout)) = *arg else {
            continue;
        };
        let Some((start, _)) = layout.contiguous_offsets() else {
            bail!("{}: an op's arguments must be contiguous", launch.kernel);
        };
        let (address, read): (u64, SyncOnDrop<'_>) = match &storage.slice {
            CudaStorageSlice::F32(slice) => slice.device_ptr(&stream),
            CudaStorageSlice::F16(slice) => slice.device_ptr(&stream),
            CudaStorageSlice::BF16(slice) => slice.device_ptr(&stream),
            CudaStorageSlice::U8(slice) => slice.device_ptr(&stream),
            _ => bail!(
                "{}: an op's arguments must be f32, f16, bf16 or bytes",
                launch.kernel
            ),
        };
        *pointer = address + (start * storage.dtype().size_in_bytes()) as u64;
        reads.push(read);
    }
    let mut builder = kernel.builder();
    builder.arg(&mut out);
    let (first, more) = pointers.split_at(3);
    for pointer in first {
        builder.arg(pointer);
    }
    builder.arg(&launch.params);
    for pointer in more {
        builder.arg(pointer);
    }
    let boxes;
    if let Some(fetched) = launch.fetched {
        boxes = described(launch, fetched, pointers)?;
        builder.arg(&boxes);
        let most = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        kernel.set_attribute(most, fetched.shared as i32).w()?;
    }
    // SAFETY: the kernel takes these arguments, or of the last as many as it names; what it reads and writes is what the op that made `launch` has
    // checked the shapes of, and the same kernel is run on the host over the same buffers by this module's tests.
    unsafe { builder.launch(config) }.w()?;
    drop(reads);
    Ok(CudaStorage::wrap_cuda_slice(out, device))
}

/// The boxes of a convolution's maps and weights.
fn described(launch: &Launch, fetched: Fetched, at: [u64; MOST_ARGUMENTS]) -> Result<Boxes> {
    let p = &launch.params;
    let map = |address, channels| {
        let sizes = [channels, p.w, p.h, p.batch];
        described_box(address, launch.dtype, sizes, fetched.pixels)
    };
    let input = map(at[0], p.channels)?;
    let second = match p.second {
        0 => input,
        channels => map(at[3], channels)?,
    };
    // Those of f32 are pairs of f16.
    let of_weights = match launch.dtype {
        DType::F32 => DType::F16,
        halves => halves,
    };
    let sizes = [fetched.summed, p.count, p.count, p.phases() * p.features];
    let weights = described_box(at[1], of_weights, sizes, fetched.weights)?;
    Ok(Boxes([input, second, weights]))
}

/// A box of an array that lies at `address`, its sizes those that change quickest first; zeros outside.
fn described_box(
    address: u64,
    dtype: DType,
    sizes: [u32; 4],
    [x, y, n]: [u32; 3],
) -> Result<CUtensorMap> {
    let kind = match dtype {
        DType::F32 => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        DType::F16 => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        DType::BF16 => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        other => bail!("no boxes of {other:?}"),
    };
    let bytes = dtype.size_in_bytes();
    let sizes = sizes.map(u64::from);
    // From one to the next of each but the first, in bytes.
    let steps = [1, 2, 3].map(|i| sizes[..i].iter().product::<u64>() * bytes as u64);
    let of_box = [(Fetched::WIDTH / bytes) as u32, x, y, n];
    let mut description = std::mem::MaybeUninit::<CUtensorMap>::uninit();
    // SAFETY: arrays are of four numbers, that of steps of three, and there is room for what is written; nothing is read at the address.
    unsafe {
        sys::cuTensorMapEncodeTiled(
            description.as_mut_ptr(),
            kind,
            sizes.len() as u32,
            address as *mut std::ffi::c_void,
            sizes.as_ptr(),
            steps.as_ptr(),
            of_box.as_ptr(),
            [1u32; 4].as_ptr(),
            CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    }
    .result()
    .w()?;
    // SAFETY: it has been written.
    Ok(unsafe { description.assume_init() })
}

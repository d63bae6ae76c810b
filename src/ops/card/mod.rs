//! Training on NVIDIA's cards, by cuDNN: convolution, batch norm and max pooling, each with its gradients.
//!
//! candle's convolution has gradients that no card can bear: that of the input is a naive transposed convolution, that of the weight a
//! convolution with a kernel as large as the picture, even where the weight does not learn. Its max pooling has none for windows that
//! overlap, and of its ops a batch norm is fifteen passes over memory. What is here is for f32 alone; [`Products`] says what convolutions
//! multiply. The ops of inference ([`super::fused`]) have no gradients.

mod convolution;
mod layers;

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cuda_backend::cudarc::cudnn::sys::{
    self, cudnnActivationMode_t as Activation, cudnnDataType_t as Type,
    cudnnNanPropagation_t as Nan, cudnnTensorFormat_t as Format,
};
use candle_core::cuda_backend::cudarc::cudnn::{CudnnError, result as dnn};
use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaStream, DevicePtr, DevicePtrMut, SyncOnDrop, result as driver,
    sys::CUmemPool_attribute,
};
use candle_core::cuda_backend::{CudaStorageSlice, DeviceId, WrapErr};
use candle_core::{
    CudaDevice, CudaStorage, DType, Device, Layout, Result, Shape, Storage, Tensor, bail,
};

pub(super) use convolution::conv2d;
pub(super) use layers::{max_pool, normalise};

use convolution::{Key, Plan};

/// Whether these ops are for `x`.
pub(super) fn takes(x: &Tensor) -> bool {
    x.device().is_cuda() && x.dtype() == DType::F32
}

/// Lets a device keep the memory that tensors gave back. Otherwise the driver takes it from the program whenever something is waited for,
/// which a training does in every step.
pub fn keep_memory(device: &Device) -> Result<()> {
    let device = device.as_cuda_device()?;
    let mut limit = u64::MAX;
    // SAFETY: the device is there, and this attribute is 64 bits.
    unsafe {
        let pool =
            driver::device::get_default_mem_pool(device.cuda_stream().context().cu_device()).w()?;
        driver::mem_pool::set_attribute(
            pool,
            CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
            (&raw mut limit).cast(),
        )
        .w()
    }
}

type Answer<T> = std::result::Result<T, CudnnError>;

const ON_CPU: &str = "cuDNN computes on cards alone";

/// What cuDNN scales results by: all of what it computed, and nothing of what was there.
const ONE: f32 = 1.0;
const ZERO: f32 = 0.0;

fn scale(value: &'static f32) -> *const c_void {
    (&raw const *value).cast()
}

thread_local! {
    /// A handle belongs to the thread that made it.
    static STATES: RefCell<HashMap<DeviceId, State>> = RefCell::default();
}

/// What a thread keeps for a device.
struct State {
    handle: Handle,
    plans: HashMap<Key, Plan>,
    /// Shared by all convolutions, which come one after the other on one stream.
    workspace: CudaSlice<u8>,
}

struct Handle(sys::cudnnHandle_t);

impl Handle {
    fn new(device: &CudaDevice) -> Result<Self> {
        let stream = device.cuda_stream();
        stream.context().bind_to_thread().w()?;
        let handle = Self(dnn::create_handle()?);
        // SAFETY: both are there.
        unsafe { dnn::set_stream(handle.0, stream.cu_stream().cast()) }?;
        Ok(handle)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: it was created by `new`, and nobody else has it. A card that has failed says so here too: nothing is to be done.
        let _ = unsafe { dnn::destroy_handle(self.0) };
    }
}

fn with_state<T>(device: &CudaDevice, work: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
    STATES.with_borrow_mut(|states| {
        let state = match states.entry(device.id()) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => entry.insert(State {
                handle: Handle::new(device)?,
                plans: HashMap::new(),
                workspace: device.alloc_zeros(1)?,
            }),
        };
        work(state)
    })
}

/// A descriptor of cuDNN's, and what frees it.
struct Described<T: Copy>(T, unsafe fn(T) -> Answer<()>);

impl<T: Copy> Drop for Described<T> {
    fn drop(&mut self) {
        // SAFETY: it was created together with the function that frees it.
        let _ = unsafe { (self.1)(self.0) };
    }
}

type TensorIs = Described<sys::cudnnTensorDescriptor_t>;

fn tensor(dtype: Type, dims: [usize; 4]) -> Result<TensorIs> {
    let described = Described(
        dnn::create_tensor_descriptor()?,
        dnn::destroy_tensor_descriptor as _,
    );
    let format = Format::CUDNN_TENSOR_NCHW;
    // SAFETY: it was just created.
    unsafe { dnn::set_tensor4d_descriptor(described.0, format, dtype, dims.map(int)) }?;
    Ok(described)
}

fn filter(dtype: Type, dims: [usize; 4]) -> Result<Described<sys::cudnnFilterDescriptor_t>> {
    let described = Described(
        dnn::create_filter_descriptor()?,
        dnn::destroy_filter_descriptor as _,
    );
    let format = Format::CUDNN_TENSOR_NCHW;
    // SAFETY: it was just created.
    unsafe { dnn::set_filter4d_descriptor(described.0, dtype, format, dims.map(int)) }?;
    Ok(described)
}

fn relu() -> Result<Described<sys::cudnnActivationDescriptor_t>> {
    unsafe fn free(it: sys::cudnnActivationDescriptor_t) -> Answer<()> {
        // SAFETY: by who calls.
        unsafe { sys::cudnnDestroyActivationDescriptor(it) }.result()
    }
    let described = Described(dnn::create_activation_descriptor()?, free as _);
    let (mode, nan) = (Activation::CUDNN_ACTIVATION_RELU, Nan::CUDNN_PROPAGATE_NAN);
    // SAFETY: it was just created.
    unsafe { dnn::set_activation_descriptor(described.0, mode, nan, 0.0) }?;
    Ok(described)
}

fn int(value: usize) -> i32 {
    value as i32
}

/// Where an argument begins; what is given with it is dropped when work on it was launched.
fn read<'a>(
    (storage, layout): (&'a CudaStorage, &Layout),
    stream: &'a CudaStream,
) -> Result<(*const c_void, SyncOnDrop<'a>)> {
    let Some((start, _)) = layout.contiguous_offsets() else {
        bail!("cuDNN's arguments must be contiguous");
    };
    let (at, guard) = match &storage.slice {
        CudaStorageSlice::F32(slice) => slice.device_ptr(stream),
        CudaStorageSlice::BF16(slice) => slice.device_ptr(stream),
        _ => bail!("cuDNN's arguments must be f32 or bf16"),
    };
    let at = at + (start * storage.dtype().size_in_bytes()) as u64;
    Ok((at as *const c_void, guard))
}

fn write<'a>(
    storage: &'a mut CudaStorage,
    stream: &'a CudaStream,
) -> Result<(*mut c_void, SyncOnDrop<'a>)> {
    let (at, guard) = match &mut storage.slice {
        CudaStorageSlice::F32(slice) => slice.device_ptr_mut(stream),
        CudaStorageSlice::BF16(slice) => slice.device_ptr_mut(stream),
        _ => bail!("cuDNN's results must be f32 or bf16"),
    };
    Ok((at as *mut c_void, guard))
}

/// Where a tensor of f32 begins.
fn place(tensor: &Tensor, stream: &CudaStream) -> Result<*mut c_void> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cuda(storage) => Ok(read((storage, layout), stream)?.0.cast_mut()),
        _ => bail!("{ON_CPU}"),
    }
}

/// Memory for a result, all of which will be written.
fn fresh(device: &CudaDevice, dims: [usize; 4], dtype: DType) -> Result<CudaStorage> {
    // SAFETY: by who calls.
    unsafe { device.alloc_uninit(&Shape::from(dims.to_vec()), dtype) }
}

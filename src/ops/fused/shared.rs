//! Results that stay on the card, in memory that the compositor reads too.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor, bail};

use crate::frame::{Lent, SharedMemory};

/// Memory of the compositor's, as the networks' device has it.
#[derive(Debug)]
pub struct Shared {
    memory: Arc<SharedMemory>,
    to: To,
}

#[derive(Debug)]
enum To {
    #[cfg(feature = "cuda")]
    Cuda(cuda::Mapped),
    /// Where the CPU stands for a card, as it does in tests, a file stands for its memory.
    File(File),
}

impl Shared {
    /// # Errors
    /// In a sentence why the device cannot have that memory: it is another card's, or its driver refuses.
    pub fn open(memory: &Arc<SharedMemory>, device: &Device) -> std::result::Result<Self, String> {
        let handle = memory
            .handle()
            .map_err(|e| format!("its handle cannot be had: {e}"))?;
        let to = match device {
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => To::Cuda(cuda::Mapped::new(handle, device)?),
            Device::Cpu => To::File(handle.file),
            #[cfg(not(feature = "cuda"))]
            Device::Cuda(_) => return Err("this mimic was built without CUDA".to_owned()),
            Device::Metal(_) => return Err("Metal's memory is not shared".to_owned()),
        };
        let memory = Arc::clone(memory);
        Ok(Self { memory, to })
    }

    /// So many places, for as long as they are kept; none when there are not as many.
    pub fn lend(&self, count: usize) -> Option<Vec<Arc<Lent>>> {
        self.memory.lend(count)
    }

    /// Puts the i-th picture's part of each result into the i-th place, one result after the other; returns when that is done. False,
    /// and nothing is written, when a place is too small.
    ///
    /// # Errors
    /// The device's, and results that are no such batch.
    pub(super) fn write(&self, results: &[Tensor], places: &[Arc<Lent>]) -> Result<bool> {
        let mut parts = Vec::new();
        for result in results {
            let bytes = result.elem_count() * result.dtype().size_in_bytes();
            if result.dim(0)? != places.len() || !result.is_contiguous() {
                bail!("results of another batch than of {}", places.len());
            }
            parts.push(bytes / places.len());
        }
        let bytes: usize = parts.iter().sum();
        if places.iter().any(|place| place.room() < bytes as u64) {
            return Ok(false);
        }
        for (i, place) in places.iter().enumerate() {
            let mut at = place.start();
            for (result, part) in results.iter().zip(&parts) {
                self.copy(result, i * part..(i + 1) * part, at)?;
                at += *part as u64;
            }
        }
        self.wait()?;
        Ok(true)
    }

    /// Copies bytes of a result to a place that has room for them.
    fn copy(&self, result: &Tensor, from: Range<usize>, to: u64) -> Result<()> {
        match &self.to {
            #[cfg(feature = "cuda")]
            To::Cuda(mapped) => mapped.copy(result, from, to),
            To::File(file) => {
                let bytes = super::recorder::bytes(result)?;
                let mut file = file;
                file.seek(SeekFrom::Start(to))
                    .and_then(|_| file.write_all(&bytes[from]))
                    .map_err(candle_core::Error::wrap)
            }
        }
    }

    fn wait(&self) -> Result<()> {
        match &self.to {
            #[cfg(feature = "cuda")]
            To::Cuda(mapped) => mapped.wait(),
            To::File(_) => Ok(()),
        }
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::ops::Range;
    use std::sync::Arc;

    use candle_core::cuda_backend::cudarc::driver::{
        CudaStream, DevicePtr, DeviceSlice, MappedBuffer, result,
    };
    use candle_core::cuda_backend::{CudaDevice, WrapErr};
    use candle_core::{Result, Tensor, bail};

    use crate::frame::Handle;
    use crate::ops::fused::pinned::cuda::address;

    #[derive(Debug)]
    pub(super) struct Mapped {
        buffer: MappedBuffer,
        stream: Arc<CudaStream>,
    }

    // SAFETY: CUDA takes its handles from any thread, and cudarc makes the context the thread's own before it frees them.
    unsafe impl Send for Mapped {}
    // SAFETY: through a shared reference its address is read, and copies are put on a stream, which any thread may do.
    unsafe impl Sync for Mapped {}

    impl Mapped {
        pub(super) fn new(
            handle: Handle,
            device: &CudaDevice,
        ) -> std::result::Result<Self, String> {
            let stream = device.cuda_stream();
            let context = stream.context();
            let uuid = context.uuid().map_err(|e| e.to_string())?;
            if uuid.bytes.map(|b| b as u8) != handle.card {
                return Err("the window is drawn by another card".to_owned());
            }
            // SAFETY: Vulkan has said how large it is.
            let memory = unsafe { context.import_external_memory(handle.file, handle.bytes) };
            let buffer = memory
                .and_then(|memory| memory.map_all())
                .map_err(|e| e.to_string())?;
            Ok(Self { buffer, stream })
        }

        /// As the stream comes to it.
        pub(super) fn copy(&self, result: &Tensor, from: Range<usize>, to: u64) -> Result<()> {
            if to as usize + from.len() > self.buffer.len() {
                bail!("a place beyond the memory");
            }
            let source = address(result, &self.stream)? + from.start as u64;
            let (start, _read) = self.buffer.device_ptr(&self.stream);
            // SAFETY: both are as long as that, and nobody reads a place that was not let go.
            unsafe {
                result::memcpy_dtod_async(start + to, source, from.len(), self.stream.cu_stream())
            }
            .w()
        }

        pub(super) fn wait(&self) -> Result<()> {
            self.stream.synchronize().w()
        }
    }
}

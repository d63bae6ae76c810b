//! Memory of the host that stays where it is, so that a card copies from it and to it by itself while others work.

use candle_core::{Device, Result, Tensor};

/// Pictures on their way to a card.
#[derive(Debug, Default)]
pub struct Staging {
    #[cfg(feature = "cuda")]
    room: Option<cuda::Pinned>,
}

impl Staging {
    /// Bytes, one part after the other, as a tensor of `shape`.
    ///
    /// # Errors
    /// When there are not as many as that, and the device's.
    pub fn upload(&mut self, parts: &[&[u8]], shape: &[usize], device: &Device) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(card) = device {
            return cuda::upload(&mut self.room, parts, shape, card);
        }
        Tensor::from_vec(parts.concat(), shape, device)
    }
}

#[cfg(feature = "cuda")]
pub(super) mod cuda {
    use std::ffi::c_void;
    use std::ptr::NonNull;
    use std::sync::Arc;

    use candle_core::cuda_backend::cudarc::driver::{CudaStream, DevicePtr, result};
    use candle_core::cuda_backend::{CudaDevice, CudaStorageSlice, WrapErr};
    use candle_core::{DType, Device, Result, Storage, Tensor, bail};

    /// See [`super::Staging::upload`].
    pub(super) fn upload(
        room: &mut Option<Pinned>,
        parts: &[&[u8]],
        shape: &[usize],
        card: &CudaDevice,
    ) -> Result<Tensor> {
        let length = parts.iter().map(|part| part.len()).sum();
        if length != shape.iter().product::<usize>() {
            bail!("{length} bytes are no tensor of {shape:?}");
        }
        let stream = card.cuda_stream();
        stream.context().bind_to_thread().w()?;
        // What was uploaded before is there when the stream has come so far.
        stream.synchronize().w()?;
        let from = match room.take() {
            Some(pinned) if pinned.length >= length => pinned,
            _ => Pinned::new(length)?,
        };
        let from = room.insert(from);
        let made = Tensor::zeros(shape, DType::U8, &Device::Cuda(card.clone()))?;
        from.write(parts, &made, &stream)?;
        Ok(made)
    }

    /// Memory of the host that stays where it is, so that a card copies to it by itself.
    pub(crate) struct Pinned {
        start: NonNull<u8>,
        length: usize,
    }

    impl Pinned {
        /// In the context of a stream that was used by this thread.
        pub(crate) fn new(length: usize) -> Result<Self> {
            // SAFETY: whoever reads it has written it before: `Graph::record` runs the graph that does.
            let start = unsafe { result::malloc_host(length.max(1), 0) }.w()?;
            match NonNull::new(start.cast::<u8>()) {
                Some(start) => Ok(Self { start, length }),
                None => bail!("no memory of the host for a card"),
            }
        }

        pub(crate) fn bytes(&self) -> &[u8] {
            // SAFETY: as long as was allocated, and what a card has been told to copy there was waited for.
            unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
        }

        /// Copies parts, one after the other, into a tensor of as many bytes, when the stream has come so far.
        fn write(&mut self, parts: &[&[u8]], to: &Tensor, stream: &Arc<CudaStream>) -> Result<()> {
            let mut at = 0;
            for part in parts {
                if at + part.len() > self.length {
                    bail!("more than there is room for");
                }
                // SAFETY: there is room, and nothing is being copied from here.
                unsafe {
                    let to = self.start.as_ptr().add(at);
                    to.copy_from_nonoverlapping(part.as_ptr(), part.len());
                }
                at += part.len();
            }
            if to.elem_count() * to.dtype().size_in_bytes() != at {
                bail!("a tensor of another size");
            }
            let to = address(to, stream)?;
            // SAFETY: both are as long as that, and who writes here again waits for the stream.
            unsafe { result::memcpy_htod_async(to, &self.bytes()[..at], stream.cu_stream()).w() }
        }

        /// Copies a tensor there, when the stream has come so far.
        pub(crate) fn read(&mut self, tensor: &Tensor, stream: &Arc<CudaStream>) -> Result<()> {
            if tensor.elem_count() * tensor.dtype().size_in_bytes() != self.length {
                bail!("a result of another size");
            }
            let from = address(tensor, stream)?;
            // SAFETY: both are as long as that, and the host's stays where it is.
            unsafe {
                let to = std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length);
                result::memcpy_dtoh_async(to, from, stream.cu_stream()).w()
            }
        }
    }

    // SAFETY: it is memory like any other, which whoever has it alone may write.
    unsafe impl Send for Pinned {}
    // SAFETY: a shared reference reads.
    unsafe impl Sync for Pinned {}

    impl std::fmt::Debug for Pinned {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "Pinned of {} bytes", self.length)
        }
    }

    impl Drop for Pinned {
        fn drop(&mut self) {
            // SAFETY: it was allocated so. Where that fails the card is lost, and with it its memory.
            let _ = unsafe { result::free_host(self.start.as_ptr().cast::<c_void>()) };
        }
    }

    /// Where the elements of a tensor without strides begin on its card, for work on a stream.
    pub(crate) fn address(tensor: &Tensor, stream: &Arc<CudaStream>) -> Result<u64> {
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else {
            bail!("a result that is not on the card");
        };
        let Some((start, _)) = layout.contiguous_offsets() else {
            bail!("a result that is not contiguous");
        };
        let (address, _read) = match &storage.slice {
            CudaStorageSlice::F32(slice) => slice.device_ptr(stream),
            CudaStorageSlice::U8(slice) => slice.device_ptr(stream),
            _ => bail!("{:?} is not read back", tensor.dtype()),
        };
        Ok(address + (start * tensor.dtype().size_in_bytes()) as u64)
    }
}

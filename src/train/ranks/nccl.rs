//! Ranks on NVIDIA's GPUs, one for each process, by NCCL.

use std::cell::RefCell;
use std::ffi::c_char;

use candle_core::cuda_backend::cudarc::driver::DeviceRepr;
use candle_core::cuda_backend::cudarc::nccl::{Comm, Id, ReduceOp, safe::NcclType};
use candle_core::cuda_backend::{CudaDType, CudaStorage, cudarc};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, DType, Device, Storage, Tensor};

use super::launch::Place;
use super::watch::{Lost, Watch};
use super::{Error, Others, Ranks, SumOver, listen};

thread_local! {
    /// Of the thread that trains; it may not leave it.
    static COMM: RefCell<Option<(Comm, CudaDevice)>> = const { RefCell::new(None) };
}

pub(super) fn meet(place: &Place, lost: Lost) -> Result<Ranks, Error> {
    let Place {
        rank, size, local, ..
    } = *place;
    let Device::Cuda(device) = Device::new_cuda(local)? else {
        return Err(Error::Ranks(format!("GPU {local} is none")));
    };
    let Some(host) = &place.host else {
        let what = "nobody says where rank 0 is: set MASTER_ADDR and MASTER_PORT";
        return Err(Error::Ranks(what.to_owned()));
    };
    let failed = |e: cudarc::nccl::result::NcclError| Error::Ranks(format!("NCCL failed: {e:?}"));
    let (watch, id) = if rank == 0 {
        let listener = listen(place.port)?;
        let id = Id::new().map_err(failed)?;
        let bytes: Vec<u8> = id.internal().iter().map(|c| c.to_ne_bytes()[0]).collect();
        (Watch::host(&listener, size, &bytes, lost)?, id)
    } else {
        let (watch, bytes) = Watch::join((host, place.port), rank, size, lost)?;
        let mut internal = [0; 128];
        if bytes.len() != internal.len() {
            let what = "rank 0 was built without nccl: start the same program everywhere";
            return Err(Error::Ranks(what.to_owned()));
        }
        for (to, from) in internal.iter_mut().zip(bytes) {
            *to = c_char::from_ne_bytes([from]);
        }
        (watch, Id::uninit(internal))
    };
    // On candle's own stream: what is summed was computed before, and is read after.
    let comm = Comm::from_rank(device.cuda_stream(), rank, size, id).map_err(failed)?;
    COMM.with(|place| *place.borrow_mut() = Some((comm, device.clone())));
    Ok(Ranks {
        rank,
        size,
        device: Device::Cuda(device),
        others: Some(Others {
            sum: SumOver::new(sum),
            watch,
            ends: Some(Box::new(|| {
                COMM.with(|place| place.borrow_mut().take());
            })),
        }),
    })
}

fn sum(x: &Tensor) -> candle_core::Result<Tensor> {
    COMM.with(|place| match &*place.borrow() {
        None => candle_core::bail!("NCCL is used on another thread than it was started on"),
        Some((comm, device)) => {
            let here = x.to_device(&Device::Cuda(device.clone()))?.contiguous()?;
            let all = match x.dtype() {
                DType::F64 => total::<f64>(comm, device, &here)?,
                DType::F32 => total::<f32>(comm, device, &here)?,
                // Sums of many small numbers want more digits.
                _ => total::<f32>(comm, device, &here.to_dtype(DType::F32)?)?,
            };
            all.to_dtype(x.dtype())?.to_device(x.device())
        }
    })
}

fn total<T>(comm: &Comm, device: &CudaDevice, x: &Tensor) -> candle_core::Result<Tensor>
where
    T: CudaDType + DeviceRepr + NcclType + cudarc::driver::ValidAsZeroBits,
{
    let (storage, layout) = x.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        candle_core::bail!("NCCL sums what is on a GPU");
    };
    let (from, to) = (
        layout.start_offset(),
        layout.start_offset() + x.elem_count(),
    );
    let own = storage.as_cuda_slice::<T>()?.slice(from..to);
    let mut all = device.alloc_zeros::<T>(x.elem_count())?;
    comm.all_reduce(&own, &mut all, &ReduceOp::Sum)
        .map_err(|e| candle_core::Error::Msg(format!("NCCL failed: {e:?}")))?;
    let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(all, device.clone()));
    Ok(Tensor::from_storage(
        storage,
        x.shape(),
        BackpropOp::none(),
        false,
    ))
}

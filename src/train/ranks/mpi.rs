//! Ranks on CPUs, by MPI. It is called on the thread that trains and on no other.

use candle_core::{DType, Device, Tensor};
use mpi::Threading;
use mpi::collective::SystemOperation;
use mpi::topology::SimpleCommunicator;
use mpi::traits::*;

use super::launch::Place;
use super::watch::{Lost, Watch};
use super::{Error, Others, Ranks, SumOver, listen};

pub(super) fn meet(place: &Place, lost: Lost) -> Result<Ranks, Error> {
    let started = mpi::initialize_with_threading(Threading::Funneled);
    let (universe, _) = started.ok_or_else(|| Error::Ranks("MPI was started before".to_owned()))?;
    let world = universe.world();
    let (rank, size) = (world.rank() as usize, world.size() as usize);
    if size != place.size {
        // A launcher of another MPI starts processes that do not see each other.
        return Err(Error::Ranks(format!(
            "the launcher says that there are {} processes, MPI that there are {size}: use the mpirun of the MPI that mimic was built with",
            place.size
        )));
    }
    let watch = if rank == 0 {
        let listener = listen(0)?;
        let port = listener.local_addr().map_or(0, |address| address.port());
        let host = match &place.host {
            Some(host) => host.clone(),
            None => mpi::environment::processor_name().unwrap_or_default(),
        };
        announce(&world, Some((host, port)));
        Watch::host(&listener, size, &[], lost)?
    } else {
        let (host, port) = announce(&world, None);
        Watch::join((&host, port), rank, size, lost)?.0
    };
    Ok(Ranks {
        rank,
        size,
        device: Device::Cpu,
        others: Some(Others {
            sum: SumOver::new(sum),
            watch,
            ends: Some(Box::new(move || drop(universe))),
        }),
    })
}

/// What rank 0 says goes to all.
fn announce(world: &SimpleCommunicator, here: Option<(String, u16)>) -> (String, u16) {
    let (host, port) = here.unwrap_or_default();
    let root = world.process_at_rank(0);
    let mut numbers = [host.len() as u64, u64::from(port)];
    root.broadcast_into(&mut numbers[..]);
    let mut name = host.into_bytes();
    name.resize(numbers[0] as usize, 0);
    root.broadcast_into(&mut name[..]);
    (
        String::from_utf8_lossy(&name).into_owned(),
        numbers[1] as u16,
    )
}

fn sum(x: &Tensor) -> candle_core::Result<Tensor> {
    let flat = x.flatten_all()?;
    let all = if x.dtype() == DType::F64 {
        Tensor::from_vec(total(&flat.to_vec1::<f64>()?), x.shape(), x.device())
    } else {
        let own = flat.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        Tensor::from_vec(total(&own), x.shape(), x.device())
    };
    all?.to_dtype(x.dtype())
}

fn total<T: Equivalence + Clone + Default>(own: &[T]) -> Vec<T> {
    let mut all = vec![T::default(); own.len()];
    SimpleCommunicator::world().all_reduce_into(own, &mut all[..], SystemOperation::sum());
    all
}

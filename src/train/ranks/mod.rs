//! Several processes train one model: each takes its share of every batch, and gradients are averaged over all.
//!
//! All that crosses between them is one operation, [`SumOver`]: a sum of tensors over all processes, by MPI
//! (feature `mpi`, on CPUs) or NCCL (feature `nccl`, one GPU for each process). A mean is a sum divided; what
//! rank 0 has is a sum to which the others add zeros. Every process calls it equally often, in the same order.

use std::collections::BTreeMap;
use std::fmt;

use candle_core::{Device, Tensor};

use super::error::Error;
use super::learner::Gradients;
use crate::ops::batch_norm::{SumOver, Synchronised};

mod launch;
#[cfg(all(feature = "mpi", not(feature = "nccl")))]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;
#[cfg_attr(
    not(any(feature = "mpi", feature = "nccl")),
    allow(dead_code, reason = "ranks need a way to sum")
)]
mod watch;

pub use launch::Place;
pub use watch::Lost;

use watch::Watch;

/// Gradients are summed in pieces of so many numbers: few calls, and little memory beside them.
const BUCKET: usize = 25 << 18;

/// This process among those of a run.
pub struct Ranks {
    rank: usize,
    size: usize,
    device: Device,
    others: Option<Others>,
}

struct Others {
    sum: SumOver,
    watch: Watch,
    /// What ends the library when a run ends well, and is forgotten when it does not: it would wait for the others.
    ends: Option<Box<dyn FnOnce()>>,
}

impl fmt::Debug for Ranks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {}", self.rank, self.size)
    }
}

impl Default for Ranks {
    fn default() -> Self {
        Self {
            rank: 0,
            size: 1,
            device: Device::Cpu,
            others: None,
        }
    }
}

impl Ranks {
    /// Meets the others that the launcher (torchrun, Slurm, mpirun) has started; a process by itself is rank 0
    /// of 1. From then on `lost` is called, on a thread of its own, when one of the others is gone: this one
    /// may be waiting for it inside MPI or NCCL and can only be ended.
    ///
    /// # Errors
    /// When the environment contradicts itself, the others do not come, or this program was built without a
    /// way to reach them.
    pub fn meet(lost: Lost) -> Result<Self, Error> {
        match Place::read(|name| std::env::var(name).ok())? {
            Some(place) if place.size > 1 => Self::among(&place, lost),
            _ => Ok(Self::default()),
        }
    }

    #[cfg(feature = "nccl")]
    fn among(place: &Place, lost: Lost) -> Result<Self, Error> {
        nccl::meet(place, lost)
    }

    #[cfg(all(feature = "mpi", not(feature = "nccl")))]
    fn among(place: &Place, lost: Lost) -> Result<Self, Error> {
        mpi::meet(place, lost)
    }

    #[cfg(not(any(feature = "mpi", feature = "nccl")))]
    fn among(place: &Place, _: Lost) -> Result<Self, Error> {
        Err(Error::Ranks(format!(
            "this is one of {} processes, but mimic was built without a way to reach the others: build it with --features mpi for CPUs or nccl for GPUs",
            place.size
        )))
    }

    /// The same, a process by itself, computing elsewhere.
    #[must_use]
    pub fn on(mut self, device: Device) -> Self {
        if self.others.is_none() {
            self.device = device;
        }
        self
    }

    /// From 0 on.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many there are.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Whether this one writes and tells.
    pub fn is_first(&self) -> bool {
        self.rank == 0
    }

    /// Where this one computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Takes batch norm's statistics over all ranks until what it gives is dropped.
    pub fn synchronise(&self) -> Option<Synchronised> {
        let others = self.others.as_ref()?;
        Some(Synchronised::by(others.sum.clone()))
    }

    /// Makes gradients their mean over all ranks.
    ///
    /// # Errors
    /// When the others cannot be reached.
    pub fn average(&self, gradients: &mut Gradients) -> Result<(), Error> {
        let Some(others) = &self.others else {
            return Ok(());
        };
        let mut left: Vec<&mut Tensor> = gradients.values_mut().collect();
        while !left.is_empty() {
            let mut filled = 0;
            let fits = left.iter().take_while(|gradient| {
                let first = filled == 0;
                filled += gradient.elem_count();
                first || filled <= BUCKET
            });
            let count = fits.count();
            let rest = left.split_off(count);
            let flat = left.iter().map(|gradient| gradient.flatten_all());
            let flat = Tensor::cat(&flat.collect::<candle_core::Result<Vec<_>>>()?, 0)?;
            let mean = (others.sum.of(&flat)? / self.size as f64)?;
            let mut at = 0;
            for gradient in left {
                let length = gradient.elem_count();
                *gradient = mean.narrow(0, at, length)?.reshape(gradient.shape())?;
                at += length;
            }
            left = rest;
        }
        Ok(())
    }

    /// Makes numbers their means over all ranks.
    ///
    /// # Errors
    /// When the others cannot be reached.
    pub fn mean<'a>(&self, numbers: impl IntoIterator<Item = &'a mut f64>) -> Result<(), Error> {
        let Some(others) = &self.others else {
            return Ok(());
        };
        let numbers: Vec<&mut f64> = numbers.into_iter().collect();
        let own: Vec<f64> = numbers.iter().map(|number| **number).collect();
        let all = others.sum.of(&Tensor::new(own, &Device::Cpu)?)?;
        for (number, sum) in numbers.into_iter().zip(all.to_vec1::<f64>()?) {
            *number = sum / self.size as f64;
        }
        Ok(())
    }

    /// Whether it is so for any of the ranks.
    ///
    /// # Errors
    /// When the others cannot be reached.
    pub fn any(&self, here: bool) -> Result<bool, Error> {
        let mut share = f64::from(u8::from(here));
        self.mean([&mut share])?;
        Ok(share > 0.0)
    }

    /// Refuses to go on when something is not what it is for rank 0.
    ///
    /// # Errors
    /// Then, or when the others cannot be reached.
    pub fn agree(&self, what: &[(&str, f64)]) -> Result<(), Error> {
        let mut firsts: Vec<f64> = what
            .iter()
            .map(|(_, value)| if self.is_first() { *value } else { 0.0 })
            .collect();
        self.mean(&mut firsts)?;
        for ((name, here), first) in what.iter().zip(firsts) {
            let first = first * self.size as f64;
            if (first - here).abs() > 0.5 {
                return Err(Error::Ranks(format!(
                    "rank {} has {here} {name}, rank 0 has {first}: give all the same training file, clips and checkpoint",
                    self.rank
                )));
            }
        }
        Ok(())
    }

    /// Gives all ranks the tensors of rank 0; names and shapes are the same everywhere.
    ///
    /// # Errors
    /// When the others cannot be reached.
    pub fn share(&self, tensors: &mut BTreeMap<String, Tensor>) -> Result<(), Error> {
        let Some(others) = &self.others else {
            return Ok(());
        };
        for tensor in tensors.values_mut() {
            let own = if self.is_first() {
                tensor.clone()
            } else {
                tensor.zeros_like()?
            };
            *tensor = others.sum.of(&own)?;
        }
        Ok(())
    }

    /// The run is over; because of a failure if there is one, which the others are told. They need not come
    /// to the same end: this does not wait for those that fail.
    pub fn leave(&mut self, failure: Option<&Error>) {
        let Some(mut others) = self.others.take() else {
            return;
        };
        let why = failure.map(|error| format!("failed: {error}"));
        others.watch.leave(why.as_deref());
        if let (None, Some(end)) = (failure, others.ends.take()) {
            end();
        }
        std::mem::forget(others.ends);
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        if let Some(others) = &mut self.others {
            std::mem::forget(others.ends.take());
        }
    }
}

/// Where to wait for the others, as rank 0.
#[cfg(any(feature = "mpi", feature = "nccl"))]
fn listen(port: u16) -> Result<std::net::TcpListener, Error> {
    use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
    TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
        .map_err(|e| {
            Error::Ranks(format!(
                "port {port} cannot be opened for the other processes: {e}"
            ))
        })
}

//! Memory of a card that both the networks and the compositor reach, for predictions that stay where they were made.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// What one interface to a card gives another for memory of it.
#[derive(Debug)]
pub struct Handle {
    /// The system's name for it: an opaque handle of Vulkan's.
    pub file: File,
    /// How much memory it stands for.
    pub bytes: u64,
    /// The number that Vulkan and CUDA know the card by (its UUID).
    pub card: [u8; 16],
}

/// Memory of a card, cut into places of one size for a prediction each.
///
/// In a place lie the picture, the deformation and the occlusion map as [`Prediction`](super::Prediction) has them, one after the
/// other without a gap.
#[derive(Debug)]
pub struct SharedMemory {
    handle: Handle,
    /// Bytes of a place.
    place: u64,
    /// Those that nobody has.
    free: Mutex<Vec<u32>>,
}

impl SharedMemory {
    /// Memory that `handle` stands for, in which there are `places` of `place` bytes each from its beginning.
    pub fn new(handle: Handle, place: u64, places: u32) -> Arc<Self> {
        Arc::new(Self {
            handle,
            place,
            free: Mutex::new((0..places).rev().collect()),
        })
    }

    /// A handle to be given away.
    ///
    /// # Errors
    /// When the system has no further one.
    pub fn handle(&self) -> io::Result<Handle> {
        Ok(Handle {
            file: self.handle.file.try_clone()?,
            ..self.handle
        })
    }

    /// So many places, for as long as they are kept; none when there are not as many.
    pub fn lend(self: &Arc<Self>, count: usize) -> Option<Vec<Arc<Lent>>> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = free.len().checked_sub(count)?;
        let lent = free.split_off(rest).into_iter().map(|place| {
            let memory = Arc::clone(self);
            Arc::new(Lent { memory, place })
        });
        Some(lent.collect())
    }
}

/// A place, which can be lent anew when the last who has it lets go.
#[derive(Debug)]
pub struct Lent {
    memory: Arc<SharedMemory>,
    place: u32,
}

impl Lent {
    /// What it is a part of.
    pub fn memory(&self) -> &Arc<SharedMemory> {
        &self.memory
    }

    /// Where it begins, in bytes.
    pub fn start(&self) -> u64 {
        u64::from(self.place) * self.memory.place
    }

    /// Its length in bytes.
    pub fn room(&self) -> u64 {
        self.memory.place
    }
}

impl PartialEq for Lent {
    /// The same place of the same memory.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.memory, &other.memory) && self.place == other.place
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let free = &self.memory.free;
        free.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(self.place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_lent_once_until_it_comes_back() {
        let handle = Handle {
            file: tempfile::tempfile().unwrap(),
            bytes: 768,
            card: [7; 16],
        };
        let memory = SharedMemory::new(handle, 256, 3);
        let first = memory.lend(2).unwrap();
        assert_ne!(first[0], first[1]);
        assert!(memory.lend(2).is_none());
        let kept = Arc::clone(&first[0]);
        drop(first);
        let starts: Vec<u64> = memory.lend(2).unwrap().iter().map(|l| l.start()).collect();
        assert!(!starts.contains(&kept.start()), "{starts:?}");
        drop(kept);
        assert_eq!(memory.lend(3).unwrap().len(), 3);
    }
}

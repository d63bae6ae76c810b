//! A place for one thing, the latest: what a camera, the networks and the screen hand to each other.
//!
//! None of them waits for the next: who is faster overwrites, and what was overwritten is counted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Holds the newest value until it is taken.
#[derive(Debug)]
pub struct Slot<T> {
    value: Mutex<Option<T>>,
    filled: Condvar,
    dropped: AtomicU64,
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self {
            value: Mutex::new(None),
            filled: Condvar::new(),
            dropped: AtomicU64::new(0),
        }
    }
}

impl<T> Slot<T> {
    /// Puts a value in and gives back the one that nobody took, whose buffers can be used again.
    pub fn put(&self, value: T) -> Option<T> {
        let old = self.lock().replace(value);
        if old.is_some() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        self.filled.notify_one();
        old
    }

    /// What is there.
    pub fn take(&self) -> Option<T> {
        self.lock().take()
    }

    /// Whether there is anything.
    pub fn is_full(&self) -> bool {
        self.lock().is_some()
    }

    /// What is there, or comes within `patience`.
    pub fn wait(&self, patience: Duration) -> Option<T> {
        let guard = self.lock();
        let waited = self
            .filled
            .wait_timeout_while(guard, patience, |value| value.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.take()
    }

    /// How many values were overwritten before anybody took them.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Option<T>> {
        // A thread that died while it held the lock left a whole value or none.
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn the_latest_wins_and_the_lost_are_counted() {
        let slot = Slot::default();
        assert_eq!(slot.put(1), None);
        assert_eq!(slot.put(2), Some(1));
        assert_eq!(slot.put(3), Some(2));
        assert_eq!((slot.take(), slot.take()), (Some(3), None));
        assert_eq!(slot.dropped(), 2);
    }

    #[test]
    fn who_waits_wakes_for_a_value_and_gives_up_without_one() {
        let slot = Arc::new(Slot::default());
        assert_eq!(slot.wait(Duration::from_millis(1)), None::<u32>);
        let other = Arc::clone(&slot);
        let giver = std::thread::Builder::new().spawn(move || other.put(7));
        assert_eq!(slot.wait(Duration::from_secs(20)), Some(7));
        giver.unwrap().join().unwrap();
    }
}

//! The CPU engine's threads: a pool of its own, one parallel region per layer.

use super::blocked::Buffer;
use super::simd::Isa;
use rayon::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Threads that this process may use.
pub fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Lets the allocator keep what is freed, for work that asks for the same memory again and again: else every large tensor's pages
/// come from the system anew, zeroed, which took a fifth of a training step. For as long as the process lives.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it changes when memory goes back to the system and nothing else. Refusals cost time alone.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
    }
}

/// A pool of worker threads with the scratch memory of each, and the instruction set they run.
///
/// Run a whole frame inside [`Workers::install`]: then a layer costs no hand-over between pools.
#[derive(Debug)]
pub struct Workers {
    /// None for one thread, which is the caller's: there is nothing to share, wait for or hand over.
    pool: Option<rayon::ThreadPool>,
    scratch: Vec<Mutex<Buffer>>,
    /// What all threads read, for as long as a layer takes.
    shared: Mutex<Buffer>,
    /// What the kernels are run on.
    pub isa: Isa,
    /// Times layers when asked to.
    pub meter: Meter,
}

impl Workers {
    /// `threads` workers, on the widest instruction set of this machine.
    ///
    /// # Errors
    /// When the system refuses to start a thread.
    pub fn new(threads: usize) -> Result<Self, rayon::ThreadPoolBuildError> {
        Self::with_isa(threads, Isa::detected())
    }

    /// As [`Workers::new`], on a given instruction set (the portable one where this machine has not the asked for).
    ///
    /// # Errors
    /// When the system refuses to start a thread.
    pub fn with_isa(threads: usize, isa: Isa) -> Result<Self, rayon::ThreadPoolBuildError> {
        let threads = threads.max(1);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("infer-{i}"));
        let pool = (threads > 1).then(|| pool.build()).transpose()?;
        let scratch = (0..threads).map(|_| Mutex::default()).collect();
        let isa = if isa.runs_here() { isa } else { Isa::Portable };
        Ok(Self {
            pool,
            scratch,
            shared: Mutex::default(),
            isa,
            meter: Meter::default(),
        })
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.scratch.len()
    }

    /// Runs `work` on the pool and waits for it.
    pub fn install<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match &self.pool {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }

    /// Runs `job` for 0..`jobs` on all threads and waits.
    pub fn each(&self, jobs: usize, job: impl Fn(usize) + Sync + Send) {
        match &self.pool {
            Some(pool) if jobs > 1 => {
                pool.install(|| (0..jobs).into_par_iter().with_max_len(1).for_each(job));
            }
            _ => (0..jobs).for_each(job),
        }
    }

    /// Runs `job` for each row of `width` values, with its number.
    pub fn rows<T: Send>(
        &self,
        values: &mut [T],
        width: usize,
        job: impl Fn(usize, &mut [T]) + Sync + Send,
    ) {
        let Some(pool) = &self.pool else {
            let rows = values.chunks_mut(width.max(1)).enumerate();
            return rows.for_each(|(y, row)| job(y, row));
        };
        let rows = values.len().div_ceil(width.max(1));
        let run = rows.div_ceil(4 * self.threads()).max(1);
        pool.install(|| {
            values
                .par_chunks_mut(run * width)
                .enumerate()
                .for_each(|(i, rows)| {
                    for (j, row) in rows.chunks_mut(width).enumerate() {
                        job(i * run + j, row);
                    }
                });
        });
    }

    /// As [`Workers::each`], with `len` values of scratch memory for each thread, of any content.
    pub fn each_with_scratch(
        &self,
        jobs: usize,
        len: usize,
        job: impl Fn(usize, &mut [f32]) + Sync + Send,
    ) {
        self.each(jobs, |index| {
            let worker = rayon::current_thread_index().unwrap_or(0) % self.scratch.len();
            let mut scratch = locked(&self.scratch[worker]);
            scratch.grow(len);
            job(index, &mut scratch[..len]);
        });
    }

    /// Runs `work` with `len` values of scratch memory, of any content, that its jobs may share.
    pub(crate) fn with_shared_scratch(&self, len: usize, work: impl FnOnce(&mut [f32])) {
        let mut scratch = locked(&self.shared);
        scratch.grow(len);
        work(&mut scratch[..len]);
    }
}

fn locked(scratch: &Mutex<Buffer>) -> MutexGuard<'_, Buffer> {
    // A job that panicked leaves garbage, which is what scratch holds anyway.
    scratch.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Times the layers of a network, for the benchmark; does nothing until switched on.
#[derive(Debug, Default)]
pub struct Meter {
    on: AtomicBool,
    records: Mutex<Vec<Record>>,
}

/// What one layer took.
#[derive(Clone, Debug)]
pub struct Record {
    /// The layer's name in the checkpoint.
    pub name: String,
    /// How it is computed.
    pub algorithm: &'static str,
    /// Multiplications and additions of the layer as defined (not as computed).
    pub flops: usize,
    /// Wall time.
    pub seconds: f64,
}

impl Meter {
    /// Starts or stops recording.
    pub fn switch(&self, on: bool) {
        self.on.store(on, Ordering::Relaxed);
    }

    /// What was recorded since the last call.
    pub fn take(&self) -> Vec<Record> {
        self.records
            .lock()
            .map(|mut records| std::mem::take(&mut *records))
            .unwrap_or_default()
    }

    /// Runs `work`, and records how long it took when switched on.
    pub fn time<T>(
        &self,
        name: &str,
        algorithm: &'static str,
        flops: usize,
        work: impl FnOnce() -> T,
    ) -> T {
        if !self.on.load(Ordering::Relaxed) {
            return work();
        }
        let start = Instant::now();
        let result = work();
        let seconds = start.elapsed().as_secs_f64();
        if let Ok(mut records) = self.records.lock() {
            records.push(Record {
                name: name.to_owned(),
                algorithm,
                flops,
                seconds,
            });
        }
        result
    }
}

/// A pointer that jobs share to write places that are theirs alone.
#[derive(Clone, Copy)]
pub(crate) struct Shared(pub(crate) *mut f32);

// SAFETY: who makes one promises that its jobs write disjoint places (see each use).
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// The pointer; a method, so that closures capture the wrapper and not its field.
    pub(crate) fn get(self) -> *mut f32 {
        self.0
    }
}

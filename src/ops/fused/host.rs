//! The kernels of `shaders/cuda` on the host, for tests: compiled by its C++ compiler (`CXX`, else `c++`) and run thread by
//! thread over the buffers that a card would be given.

use std::cell::Cell;
use std::ffi::{CString, c_void};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use candle_core::{CpuStorage, DType, Result};
use half::{bf16, f16};

use super::{Argument, Block, Launch, MOST_ARGUMENTS, Params};
use crate::ops::unfold::part;

/// Threads of a block of each kind.
const THREADS: u32 = 256;

thread_local! {
    static TOGETHER: Cell<u32> = const { Cell::new(0) };
}

/// Runs `work` with the kernels in place of the plain ops; a block that works together has `threads` threads.
pub(crate) fn with_kernels<T>(threads: u32, work: impl FnOnce() -> T) -> T {
    TOGETHER.set(threads);
    let made = work();
    TOGETHER.set(0);
    made
}

pub(crate) fn active() -> bool {
    TOGETHER.get() > 0
}

/// With all arguments that a kernel may have; by the C ABI one may have fewer.
type Kernel = unsafe extern "C" fn(
    *mut c_void,
    *const c_void,
    *const c_void,
    *const c_void,
    Params,
    *const c_void,
    *const c_void,
    *const c_void,
);

/// As the card's: see `super::cuda::launch`.
pub(super) fn launch(launch: &Launch, args: &[Argument<'_, CpuStorage>]) -> Result<CpuStorage> {
    let library = library();
    let kernel = symbol(library, &launch.names()?.1);
    // SAFETY: every kernel of shaders/cuda has this signature.
    let kernel: Kernel = unsafe { std::mem::transmute(kernel) };
    let mut pointers = [std::ptr::null::<c_void>(); MOST_ARGUMENTS];
    for (pointer, arg) in pointers.iter_mut().zip(args) {
        let Some((storage, layout)) = *arg else {
            continue;
        };
        *pointer = match storage {
            CpuStorage::F32(values) => part(values, layout)?.as_ptr().cast(),
            CpuStorage::F16(values) => part(values, layout)?.as_ptr().cast(),
            CpuStorage::BF16(values) => part(values, layout)?.as_ptr().cast(),
            CpuStorage::U8(values) => part(values, layout)?.as_ptr().cast(),
            _ => panic!("{}: an argument of another type", launch.kernel),
        };
    }
    let run = |out: *mut c_void| run(kernel, library, launch, out, pointers);
    let elements = launch.shape.elem_count();
    // What a kernel forgets to write is seen.
    let rubbish = |zero: f32| if launch.zeroed { 0.0 } else { zero };
    Ok(match launch.to {
        DType::F32 => {
            let mut out = vec![rubbish(f32::NAN); elements];
            run(out.as_mut_ptr().cast());
            CpuStorage::F32(out)
        }
        DType::F16 => {
            let mut out = vec![f16::from_f32(rubbish(f32::NAN)); elements];
            run(out.as_mut_ptr().cast());
            CpuStorage::F16(out)
        }
        DType::BF16 => {
            let mut out = vec![bf16::from_f32(rubbish(f32::NAN)); elements];
            run(out.as_mut_ptr().cast());
            CpuStorage::BF16(out)
        }
        DType::U8 => {
            // A kernel writes whole pixels.
            let mut out = vec![0x5555_5555_u32; elements / 4];
            run(out.as_mut_ptr().cast());
            CpuStorage::U8(bytemuck::cast_slice(&out).to_vec())
        }
        other => panic!("{}: an output of {other:?}", launch.kernel),
    })
}

fn run(
    kernel: Kernel,
    library: usize,
    launch: &Launch,
    out: *mut c_void,
    inputs: [*const c_void; MOST_ARGUMENTS],
) {
    // SAFETY: tests/cuda/host.h declares them so.
    let (place, block): (
        unsafe extern "C" fn(u32, u32, u32),
        unsafe extern "C" fn(u32),
    ) = unsafe {
        (
            std::mem::transmute::<usize, unsafe extern "C" fn(u32, u32, u32)>(symbol(
                library,
                "mimic_thread",
            )),
            std::mem::transmute::<usize, unsafe extern "C" fn(u32)>(symbol(library, "mimic_block")),
        )
    };
    let params = launch.params;
    let [a, b, c, d, e, f] = inputs;
    if launch.block == Block::Alone {
        for i in 0..params.threads.div_ceil(THREADS) * THREADS {
            // SAFETY: the buffers are those that the op has checked the sizes of; one thread is at work.
            unsafe {
                place(i / THREADS, i % THREADS, THREADS);
                kernel(out, a, b, c, params, d, e, f);
            }
        }
        return;
    }
    let threads = match launch.block {
        Block::Of(threads) => threads,
        _ => TOGETHER.get(),
    };
    let (out, inputs) = (out as usize, inputs.map(|input| input as usize));
    // What a block shares, memory and barrier, is there once for all tests.
    static ONE_BLOCK: Mutex<()> = Mutex::new(());
    let _here = ONE_BLOCK.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: as above; the threads of a block write different things between its barriers.
    unsafe { block(threads) };
    for number in 0..params.threads {
        std::thread::scope(|scope| {
            for thread in 0..threads {
                // SAFETY: as above.
                scope.spawn(move || unsafe {
                    place(number, thread, threads);
                    let [a, b, c, d, e, f] = inputs.map(|input| input as *const c_void);
                    kernel(out as *mut c_void, a, b, c, params, d, e, f);
                });
            }
        });
    }
}

/// The handle of the compiled kernels.
fn library() -> usize {
    static LIBRARY: OnceLock<usize> = OnceLock::new();
    *LIBRARY.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = tempfile::tempdir().unwrap();
        let made = folder.path().join("kernels.so");
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
        let said = Command::new(&compiler)
            .args([
                "-DMIMIC_HOST",
                "-std=c++17",
                "-O1",
                "-shared",
                "-fPIC",
                "-Wall",
                "-Wextra",
                "-Werror",
            ])
            .arg("-I")
            .arg(root.join("shaders/cuda"))
            .arg("-I")
            .arg(root.join("tests/cuda"))
            .arg("-o")
            .arg(&made)
            .arg(root.join("tests/cuda/kernels.cpp"))
            .arg("-lpthread")
            .output()
            .unwrap_or_else(|e| panic!("no C++ compiler: {compiler}: {e}"));
        assert!(
            said.status.success(),
            "{}",
            String::from_utf8_lossy(&said.stderr)
        );
        let path = CString::new(made.to_str().unwrap()).unwrap();
        // SAFETY: a library of functions and nothing that runs when it is loaded.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        assert!(
            !handle.is_null(),
            "the kernels that were compiled cannot be loaded"
        );
        handle as usize
    })
}

fn symbol(library: usize, name: &str) -> usize {
    let text = CString::new(name).unwrap();
    // SAFETY: the handle is of a library that stays loaded.
    let found = unsafe { libc::dlsym(library as *mut c_void, text.as_ptr()) };
    assert!(!found.is_null(), "shaders/cuda has no kernel {name}");
    found as usize
}

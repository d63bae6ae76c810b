//! How a convolution of some shape is cut into blocks: each way is timed once on the card that it is for.

use std::sync::{Mutex, PoisonError};

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::sys::{CUevent_flags, CUstreamCaptureStatus};
use candle_core::{CudaDevice, DType, Result};

use super::convolution::{Cut, Job, by_cards_alone};
use crate::ops::fused::{Fused, Launch, Params};

/// Runs of each way, one after the other.
const RUNS: u32 = 8;

/// Clocks for which the card is held up, so that what is timed is not the host's launching: a third of a millisecond.
const HELD: u32 = 600_000;

/// By the card's number.
type Known = Vec<(usize, (Params, DType, [bool; 2]), Cut)>;

/// What has been found, whichever stream asked.
static KNOWN: Mutex<Known> = Mutex::new(Vec::new());

/// The quickest cut.
///
/// # Errors
/// When the card fails.
pub(super) fn best(job: &Job<'_>) -> Result<Cut> {
    let card = job.device().as_cuda_device()?;
    let (number, key) = (card.cuda_stream().context().ordinal(), job.key());
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let find = |(on, of, _): &&(usize, _, Cut)| *on == number && *of == key;
    if let Some((_, _, cut)) = known().iter().find(find) {
        return Ok(*cut);
    }
    let cuts = job.cuts();
    let status = card.cuda_stream().capture_status().w()?;
    if status != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE {
        // Nothing can be timed while it is recorded.
        return Ok(cuts[0]);
    }
    let mut best = (f32::INFINITY, cuts[0]);
    for cut in cuts {
        let took = time(job, card, cut)?;
        if took < best.0 {
            best = (took, cut);
        }
    }
    tracing::debug!("{:?}: {:?}, {:.1} us", key.0, best.1, best.0 * 1e3);
    known().push((number, key, best.1));
    Ok(best.1)
}

/// Milliseconds of a run.
fn time(job: &Job<'_>, card: &CudaDevice, cut: Cut) -> Result<f32> {
    // What is loaded at first use is then there.
    drop(job.launch(cut)?);
    let mut launch = Launch::new("maps/hold", DType::F32, 1, 1)?;
    launch.params.count = HELD;
    let hold = Fused {
        launch,
        plain: by_cards_alone,
    };
    drop(hold.run(&[job.any_tensor()])?);
    let stream = card.cuda_stream();
    let event = || {
        let flags = CUevent_flags::CU_EVENT_DEFAULT;
        stream.record_event(Some(flags)).w()
    };
    let start = event()?;
    for _ in 0..RUNS {
        drop(job.launch(cut)?);
    }
    let end = event()?;
    Ok(start.elapsed_ms(&end).w()? / RUNS as f32)
}

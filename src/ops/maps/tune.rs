//! How a convolution of some shape is cut into blocks: each way is timed once on the card that it is for.

use std::sync::{Mutex, PoisonError};

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::sys::{CUevent_flags, CUstreamCaptureStatus};
use candle_core::{CudaDevice, DType, Result};

use super::job::{Cut, Job, by_cards_alone};
use crate::ops::fused::{Fused, Launch, Params};

/// Runs of each way, one after the other.
const RUNS: u32 = 8;

/// Clocks for which the card is held up, so that what is timed is not the host's launching: a third of a millisecond.
const HELD: u32 = 600_000;

/// By the card's number.
type Known = Vec<(usize, (Vec<Params>, DType, [bool; 2]), Cut)>;

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
    let (mut best, mut failed): (Option<(f32, Cut)>, _) = (None, None);
    for cut in cuts {
        match time(job, card, cut) {
            Ok(took) if best.is_none_or(|(least, _)| took < least) => best = Some((took, cut)),
            Ok(_) => {}
            // A kernel that the driver refuses, or no room for all parts: there are other ways.
            Err(error) => failed = Some(error),
        }
    }
    let Some((took, cut)) = best else {
        return Err(failed.unwrap_or_else(|| candle_core::Error::msg("no kernel makes it")));
    };
    if let Some(error) = failed {
        tracing::debug!("{:?}: a way that cannot be gone: {error}", key.0);
    }
    tracing::debug!("{:?}: {cut:?}, {:.1} us", key.0, took * 1e3);
    known().push((number, key, cut));
    Ok(cut)
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

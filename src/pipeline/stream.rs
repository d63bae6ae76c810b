//! Frames through the threads of a job: in order, bounded, several beside each other.
//!
//! ```text
//! decode --> lane 0 --> encode --> the caller, for progress
//!       `--> lane 1 --'
//! ```
//!
//! A lane makes whole frames, keypoints to picture, by itself: on two cores, two frames of one thread each
//! take less time than two of two, whose threads wait for each other in every layer. Frames go to the
//! lanes in turn and are fetched from them in turn, so their order is kept without sorting. On a graphics card a lane is a stream, whose
//! turn is a batch of frames that it makes at once: while they come and go, the other lane's are computed. What must see
//! frames in order (the reference, smoothing) is one value that goes round the lanes between a frame's
//! keypoints and its picture.
//!
//! Channels hold a few frames whose buffers go round, so memory does not depend on the clip's length. Who
//! stops, for whatever reason, drops its ends of the channels, which stops its neighbours. The
//! compositor lives on the encoding thread alone.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, ScopedJoinHandle};
use std::time::Instant;

use super::driving::{Driving, Views};
use super::live::panic_text;
use super::offline::{Error, Stages, enhance};
use crate::animate::{Animator, Direction, Lane, Lanes, Smoother, Source};
use crate::faces::Enhancer;
use crate::frame::Prediction;
use crate::gpu::{Compositor, PasteSettings};
use crate::media::FrameSink;
use crate::model::Keypoints;

/// What the encoding thread owns.
pub(super) struct Compose {
    pub(super) enhancer: Option<Enhancer>,
    pub(super) compositor: Compositor,
    pub(super) sink: Box<dyn FrameSink>,
    pub(super) paste: PasteSettings,
}

/// How much the driver is smoothed, and how many frames a second of the clip's there are.
#[derive(Clone, Copy)]
pub(super) struct Smooth {
    pub(super) amount: f32,
    pub(super) fps: f64,
}

/// What a stream of frames took.
pub(super) struct Streamed {
    pub(super) frames: u64,
    pub(super) seconds: Stages,
}

/// Reads, animates and writes until the clip ends, up to `batch` frames beside each other; gives back the
/// sink to be finished.
pub(super) fn stream(
    driving: Driving,
    animator: &mut Animator,
    compose: Compose,
    smooth: Smooth,
    batch: usize,
    mut progress: impl FnMut(u64),
    cancel: &AtomicBool,
) -> Result<(Compose, Streamed), Error> {
    let Lanes {
        direction,
        sources,
        lanes,
        at_once,
    } = animator.lanes(batch).map_err(|e| Error::Thread {
        name: "infer",
        why: e.to_string(),
    })?;
    let count = lanes.len();
    // At most so many wait before and behind a lane.
    let ahead = at_once.max(batch.div_ceil(count));
    let mut order = Order {
        direction,
        sources,
        smooth,
        smoothers: Vec::new(),
        before: Vec::new(),
        frames: 0,
    };
    std::thread::scope(|scope| {
        let (spent_views, reuse_views) = sync_channel(2 * count * ahead + 2);
        let (written, frames_written) = sync_channel(batch);
        // Ends with this function, whatever ends it: then everybody stops.
        let mut to_lanes = Vec::new();
        let mut from_lanes = Vec::new();
        let mut turns: Vec<(SyncSender<&mut Order<'_>>, Receiver<&mut Order<'_>>)> =
            (0..count).map(|_| sync_channel(1)).collect();
        // The first frame is lane 0's; the channel is empty and its receiver here.
        let _ = turns[0].0.send(&mut order);
        // Lane i gives the order to lane i + 1.
        let mut next_turns: Vec<_> = turns.iter().map(|(give, _)| give.clone()).collect();
        next_turns.rotate_left(1);
        let turns = turns.drain(..).map(|(_, take)| take);

        let mut running = Vec::new();
        for (lane, (turn, next_turn)) in lanes.into_iter().zip(turns.zip(next_turns)) {
            let (to_lane, views) = sync_channel(ahead);
            let (made, from_lane) = sync_channel(ahead);
            let (spent, reuse) = sync_channel(ahead + 2);
            to_lanes.push(to_lane);
            from_lanes.push((from_lane, spent));
            let task = Task {
                lane,
                at_once,
                views,
                spent: spent_views.clone(),
                turn,
                next_turn,
                made,
                reuse,
                cancel,
            };
            running.push(spawn(scope, "infer", move || task.run())?);
        }
        let decoder = spawn(scope, "decode", move || {
            decode(driving, in_turn(&to_lanes, at_once), &reuse_views)
        })?;
        let encoder = spawn(scope, "encode", move || {
            encode(compose, in_turn(&from_lanes, at_once), &written)
        })?;

        let mut frames = 0;
        for () in frames_written {
            frames += 1;
            progress(frames);
        }
        let (compose, [enhancing, composing, encoding]) = join("encode", encoder)??;
        let mut seconds = Stages {
            enhance: enhancing,
            compose: composing,
            encode: encoding,
            ..Stages::default()
        };
        for lane in running {
            let (keypoints, generate) = join("infer", lane)?;
            seconds.keypoints += keypoints;
            seconds.generate += generate;
        }
        seconds.decode = join("decode", decoder)??;
        if cancel.load(Ordering::Relaxed) {
            Err(Error::Cancelled)
        } else {
            Ok((compose, Streamed { frames, seconds }))
        }
    })
}

/// What frames must pass one after the other.
struct Order<'a> {
    direction: &'a mut Direction,
    sources: &'a [Source],
    smooth: Smooth,
    /// One for each driver.
    smoothers: Vec<Smoother>,
    /// The drivers' poses when they were seen last.
    before: Vec<Keypoints>,
    frames: u64,
}

impl Order<'_> {
    /// From the drivers' keypoints in the next frame to the pose of each face.
    fn next(&mut self, mut drivers: Vec<Keypoints>, views: &Views) -> Vec<Keypoints> {
        if views.appeared {
            self.direction.driver_appeared();
            self.smoothers.clear();
        }
        if views.cut {
            self.direction.cut(&self.before, &drivers);
            self.smoothers.clear();
        }
        if views.found {
            self.before.clone_from(&drivers);
        }
        self.smoothers.resize_with(drivers.len(), Smoother::default);
        let at = self.frames as f64 / self.smooth.fps;
        for (keypoints, smoother) in drivers.iter_mut().zip(&mut self.smoothers) {
            smoother.smooth(keypoints, self.smooth.amount, at);
        }
        self.frames += 1;
        self.direction.poses(self.sources, &drivers)
    }
}

/// A lane with its ends of the channels.
struct Task<'a, 'o, 'd> {
    lane: Lane<'a>,
    /// Frames of a batch.
    at_once: usize,
    views: Receiver<Views>,
    spent: SyncSender<Views>,
    turn: Receiver<&'o mut Order<'d>>,
    next_turn: SyncSender<&'o mut Order<'d>>,
    made: SyncSender<Vec<Prediction>>,
    reuse: Receiver<Vec<Prediction>>,
    cancel: &'a AtomicBool,
}

impl Task<'_, '_, '_> {
    /// Makes frames while there are any and somebody wants them; gives the seconds of keypoints and of
    /// the rest.
    fn run(mut self) -> (f64, f64) {
        let (mut finding, mut generating) = (0.0, 0.0);
        let mut batch = Vec::with_capacity(self.at_once);
        loop {
            batch.extend(self.views.iter().take(self.at_once));
            if batch.is_empty() || self.cancel.load(Ordering::Relaxed) {
                break;
            }
            let pictures = batch.iter().flat_map(Views::unknown);
            let pictures: Vec<&[u8]> = pictures.map(|picture| &**picture).collect();
            let found = timed(&mut finding, || self.lane.keypoints(&pictures));
            let Ok(order) = self.turn.recv() else { break };
            let mut found = found.into_iter();
            let poses = batch.iter().map(|views| {
                let drivers = match &views.pose {
                    Some(pose) => vec![pose.clone()],
                    None => found.by_ref().take(views.pictures.len()).collect(),
                };
                order.next(drivers, views)
            });
            let poses: Vec<Vec<Keypoints>> = poses.collect();
            // The next lane is gone when this is the clip's last frame: it is made all the same.
            let _ = self.next_turn.send(order);
            // A full channel drops the buffer, which costs an allocation and nothing else.
            for views in batch.drain(..) {
                let _ = self.spent.try_send(views);
            }
            let mut made = self.reuse.try_iter().take(poses.len()).collect::<Vec<_>>();
            made.resize_with(poses.len(), Vec::new);
            timed(&mut generating, || self.lane.animate(&poses, &mut made));
            if made.into_iter().any(|frame| self.made.send(frame).is_err()) {
                break;
            }
        }
        (finding, generating)
    }
}

/// The lanes as frames come to them: `at_once` to the first, as many to the next, and so on round.
fn in_turn<T>(lanes: &[T], at_once: usize) -> impl Iterator<Item = &T> {
    let rounds = lanes.iter().cycle();
    rounds.flat_map(move |lane| std::iter::repeat_n(lane, at_once))
}

/// The decoding thread: gives the seconds it waited for pictures.
fn decode<'a>(
    mut driving: Driving,
    lanes: impl Iterator<Item = &'a SyncSender<Views>>,
    spent: &Receiver<Views>,
) -> Result<f64, Error> {
    let mut seconds = 0.0;
    for lane in lanes {
        let mut views = spent.try_recv().unwrap_or_default();
        if !timed(&mut seconds, || driving.read(&mut views))? || lane.send(views).is_err() {
            break;
        }
    }
    Ok(seconds)
}

/// A lane's frames, and where their buffers go back.
type Made = (Receiver<Vec<Prediction>>, SyncSender<Vec<Prediction>>);

/// The encoding thread: gives back what it owns, and the seconds of enhancing, composing and writing.
fn encode<'a>(
    mut compose: Compose,
    lanes: impl Iterator<Item = &'a Made>,
    written: &SyncSender<()>,
) -> Result<(Compose, [f64; 3]), Error> {
    let [mut enhancing, mut composing, mut writing] = [0.0; 3];
    for (frames, spent) in lanes {
        // The first lane that has no more frame is the one after the last frame's.
        let Ok(mut made) = frames.recv() else { break };
        timed(&mut enhancing, || enhance(&mut compose.enhancer, &mut made))?;
        let picture = timed(&mut composing, || {
            compose.compositor.composite(&made, &compose.paste)
        })?;
        timed(&mut writing, || compose.sink.write(picture))?;
        let _ = spent.try_send(made);
        let _ = written.send(());
    }
    Ok((compose, [enhancing, composing, writing]))
}

fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    name: &'static str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>, Error> {
    let thread = Builder::new().name(name.to_owned());
    thread.spawn_scoped(scope, work).map_err(|e| Error::Thread {
        name,
        why: e.to_string(),
    })
}

fn join<T>(name: &'static str, thread: ScopedJoinHandle<'_, T>) -> Result<T, Error> {
    thread.join().map_err(|panic| Error::Thread {
        name,
        why: panic_text(&*panic),
    })
}

fn timed<T>(seconds: &mut f64, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    *seconds += start.elapsed().as_secs_f64();
    result
}

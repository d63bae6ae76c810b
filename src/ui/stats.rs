//! What is measured while it runs, honest and plain: rates over the last second, a minute to look back on.

use std::collections::VecDeque;
use std::time::Instant;

use crate::pipeline::live::{Shown, Stages};

/// Samples of the last minute, ten a second.
const MINUTE: usize = 600;
/// Seconds between two samples.
const STEP: f64 = 0.1;

/// What the strip at the bottom says.
#[derive(Clone, Debug)]
pub(super) struct Stats {
    started: Instant,
    driver: Rate,
    inference: Rate,
    /// Milliseconds of the last frames, smoothed.
    pub(super) stages: Stages,
    pub(super) compose: f32,
    /// From the driver's frame to the window, milliseconds, smoothed.
    pub(super) latency: f32,
    pub(super) dropped: u64,
    /// Every how many frames faces are enhanced.
    pub(super) enhanced_every: Option<f32>,
    /// Frames per second and latency over the last minute, the newest last.
    pub(super) minute: VecDeque<Sample>,
    sampled: f64,
}

/// One tenth of a second.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sample {
    pub(super) fps: f32,
    pub(super) latency: f32,
}

/// Counts a second.
#[derive(Clone, Debug, Default)]
struct Rate {
    count: u64,
    before: VecDeque<(f64, u64)>,
}

impl Rate {
    fn at(&mut self, now: f64, count: u64) {
        // A driver that was changed counts from zero.
        if count < self.count {
            self.before.clear();
        }
        self.count = count;
        self.before.push_back((now, count));
        while self.before.len() > 2 && self.before[1].0 < now - 1.5 {
            self.before.pop_front();
        }
    }

    fn fps(&self) -> f32 {
        match (self.before.front(), self.before.back()) {
            (Some(&(then, before)), Some(&(now, count))) if now > then => {
                ((count - before) as f64 / (now - then)) as f32
            }
            _ => 0.0,
        }
    }
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            driver: Rate::default(),
            inference: Rate::default(),
            stages: Stages::default(),
            compose: 0.0,
            latency: 0.0,
            dropped: 0,
            enhanced_every: None,
            minute: VecDeque::with_capacity(MINUTE),
            sampled: 0.0,
        }
    }
}

impl Stats {
    /// Without a minute to look back on: what a picture shows must not hang on how long it took to draw.
    #[cfg(test)]
    pub(super) fn still() -> Self {
        Self {
            sampled: f64::INFINITY,
            ..Self::default()
        }
    }

    /// A frame has come from the networks.
    pub(super) fn frame(&mut self, shown: &Shown, compose: f32) {
        let now = self.started.elapsed().as_secs_f64();
        let count = self.inference.count + 1;
        self.inference.at(now, count);
        let smooth =
            |old: &mut f32, new: f32| *old += (new - *old) * if *old == 0.0 { 1.0 } else { 0.1 };
        smooth(&mut self.stages.crop, shown.stages.crop);
        smooth(&mut self.stages.keypoints, shown.stages.keypoints);
        smooth(&mut self.stages.generate, shown.stages.generate);
        smooth(&mut self.compose, compose);
        self.enhanced_every = shown.enhanced_every;
        let latency = shown.captured.elapsed().as_secs_f32() * 1000.0;
        smooth(&mut self.latency, latency);
    }

    /// What the driver has given and lost so far.
    pub(super) fn driver(&mut self, frames: u64, dropped: u64) {
        let now = self.started.elapsed().as_secs_f64();
        self.driver.at(now, frames);
        let inference = self.inference.count;
        self.inference.at(now, inference);
        self.dropped = dropped;
        if now - self.sampled >= STEP {
            self.sampled = now;
            if self.minute.len() == MINUTE {
                self.minute.pop_front();
            }
            self.minute.push_back(Sample {
                fps: self.inference_fps(),
                latency: self.latency,
            });
        }
    }

    pub(super) fn driver_fps(&self) -> f32 {
        self.driver.fps()
    }

    pub(super) fn inference_fps(&self) -> f32 {
        self.inference.fps()
    }
}

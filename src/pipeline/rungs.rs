//! The ways of running a model, from the best to the cheapest, and the engines of one of them.
//!
//! First the products of the networks get shorter (bf16, where the processor multiplies it: nothing is to be
//! seen of that; on a graphics card they are short from the start), then the picture smaller: the generator at half the side costs about a quarter, and what it
//! loses in sharpness comes back from the photo as far as the compositor's detail goes. Keypoints are found at
//! the full size still, so that the motion stays the same and counts from the same reference. Only then comes a
//! smaller model, which sees other keypoints.

use std::path::PathBuf;
use std::sync::Arc;

use image::RgbaImage;

use super::live::{LiveModel, embedded_bytes};
use crate::animate::load::{self, ModelOptions, Precision};
use crate::animate::{Engine, Source};
use crate::device::Choice;
use crate::frame::{Prediction, SharedMemory};
use crate::geometry::Rect;
use crate::gpu;
use crate::model::{Keypoints, ModelConfig};
use crate::ops::simd::Isa;

/// A model counts as smaller when its file has at most so much of the other's bytes.
const SMALLER: f64 = 0.7;

/// One way of running.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rung {
    /// The embedded model without.
    pub(super) weights: Option<PathBuf>,
    pub(super) precision: Precision,
    /// The generator works at half the side.
    pub(super) half: bool,
}

/// The best way of running a model.
pub(super) fn best(model: &LiveModel) -> Rung {
    Rung {
        weights: model.weights.clone(),
        precision: Precision::Auto,
        half: false,
    }
}

/// What is there for a model: [`best`] first, then what is quicker, by products of `quick`.
pub(super) fn ladder(model: &LiveModel, quick: Precision) -> Vec<Rung> {
    let bytes = |weights: &Option<PathBuf>| match weights {
        None => embedded_bytes(),
        Some(path) => std::fs::metadata(path).map_or(0, |file| file.len()),
    };
    let mut smaller: Vec<(u64, &Option<PathBuf>)> = model
        .others
        .iter()
        .map(|weights| (bytes(weights), weights))
        .filter(|&(bytes, _)| bytes > 0)
        .collect();
    smaller.sort_by_key(|&(bytes, _)| std::cmp::Reverse(bytes));
    let rung = |weights: &Option<PathBuf>, precision, half| Rung {
        weights: weights.clone(),
        precision,
        half,
    };
    let mut rungs = vec![best(model)];
    if quick != Precision::Auto {
        rungs.push(rung(&model.weights, quick, false));
    }
    rungs.push(rung(&model.weights, quick, true));
    let mut last = bytes(&model.weights);
    for (bytes, weights) in smaller {
        if bytes as f64 <= SMALLER * last as f64 {
            last = bytes;
            rungs.extend([false, true].map(|half| rung(weights, quick, half)));
        }
    }
    rungs
}

/// The engines of a rung.
pub(super) struct Engines {
    pub(super) rung: Rung,
    full: Engine,
    /// The generator's, when it works at half the side.
    half: Option<Engine>,
}

impl Engines {
    /// Loads what a rung needs.
    ///
    /// # Errors
    /// See [`load::engine`].
    pub(super) fn load(rung: Rung, threads: usize, device: Choice) -> Result<Self, load::Error> {
        let options = ModelOptions {
            weights: rung.weights.as_deref(),
            threads,
            precision: rung.precision,
            device,
            ..ModelOptions::default()
        };
        let full = load::engine(&options)?;
        let half = Self::load_half(&rung, &options, &full)?;
        Ok(Self { rung, full, half })
    }

    fn load_half(
        rung: &Rung,
        options: &ModelOptions<'_>,
        full: &Engine,
    ) -> Result<Option<Engine>, load::Error> {
        let size = Some(full.config().image_size / 2);
        rung.half
            .then(|| load::engine(&ModelOptions { size, ..*options }))
            .transpose()
    }

    /// The model's shape.
    pub(super) fn config(&self) -> &ModelConfig {
        self.full.config()
    }

    /// Side of the squares that are looked at.
    pub(super) fn size(&self) -> u32 {
        self.full.config().image_size
    }

    /// Where it runs, for people.
    pub(super) fn device(&self) -> String {
        self.full.device()
    }

    /// The shorter products that there are beside those of [`Precision::Auto`].
    pub(super) fn quick(&self) -> Precision {
        match self.full.packed() {
            Some(_) if Isa::bf16().is_some() => Precision::Bf16,
            _ => Precision::Auto,
        }
    }

    /// What the window should know of the device, once.
    pub(super) fn notice(&mut self) -> Option<String> {
        let half = self.half.as_mut().and_then(Engine::notice);
        self.full.notice().or(half)
    }

    /// See [`Engine::share`].
    pub(super) fn share(&mut self, memory: Option<&Arc<SharedMemory>>) -> Result<(), String> {
        self.half.as_mut().unwrap_or(&mut self.full).share(memory)
    }

    /// The driver's keypoints in a square of [`Engines::size`].
    pub(super) fn keypoints(&mut self, view: &RgbaImage) -> Keypoints {
        self.full.keypoints(view)
    }

    /// What depends on the photo, from a square of any size.
    pub(super) fn encode(&mut self, view: &RgbaImage) -> Source {
        let Some(half) = &mut self.half else {
            return self
                .full
                .encode(&sized(view, self.full.config().image_size));
        };
        let source = half.encode(&sized(view, half.config().image_size));
        let full = self.full.config().image_size;
        source.with_keypoints(self.full.keypoints(&sized(view, full)))
    }

    /// See [`Engine::generate_all`].
    pub(super) fn generate(&mut self, moves: &[(&Source, &Keypoints)], out: &mut [Prediction]) {
        self.half
            .as_mut()
            .unwrap_or(&mut self.full)
            .generate_all(moves, out);
    }
}

/// A square at another size.
fn sized(view: &RgbaImage, size: u32) -> RgbaImage {
    let whole = Rect::of_size(view.width(), view.height());
    if view.dimensions() == (size, size) {
        return view.clone();
    }
    gpu::model_view(view, whole, size).unwrap_or_else(|error| {
        tracing::warn!("{error}");
        RgbaImage::new(size, size)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ladder_goes_from_precision_to_size_to_smaller_models() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: u64| {
            let path = folder.path().join(name);
            let file = std::fs::File::create(&path).unwrap();
            file.set_len(bytes).unwrap();
            Some(path)
        };
        let (large, similar) = (file("large", 200 << 20), file("similar", 190 << 20));
        let middle = file("middle", 60 << 20);
        let model = LiveModel {
            weights: large.clone(),
            others: vec![None, middle.clone(), similar, large.clone()],
            ..LiveModel::default()
        };
        let rungs = ladder(&model, Precision::Bf16);
        assert_eq!(rungs[0], best(&model));
        assert!(
            rungs[1..]
                .iter()
                .all(|rung| rung.precision == Precision::Bf16)
        );
        let ways: Vec<_> = rungs[1..]
            .iter()
            .map(|rung| (rung.weights.clone(), rung.half))
            .collect();
        let expected = [
            (&large, false),
            (&large, true),
            (&middle, false),
            (&middle, true),
            (&None, false),
            (&None, true),
        ];
        assert_eq!(
            ways,
            expected.map(|(weights, half)| (weights.clone(), half))
        );
    }

    #[test]
    fn where_nothing_is_shorter_no_step_is_made_for_it() {
        let rungs = ladder(&LiveModel::default(), Precision::Auto);
        let half: Vec<bool> = rungs.iter().map(|rung| rung.half).collect();
        assert_eq!(half, [false, true]);
    }
}

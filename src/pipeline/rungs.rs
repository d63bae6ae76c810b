//! The ways of running a model, from the best to the cheapest, and the engines of one of them.
//!
//! First the products of the networks get shorter (bf16, where the processor multiplies it: nothing is to be
//! seen of that), then the picture smaller: the generator at half the side costs about a quarter, and what it
//! loses in sharpness comes back from the photo as far as the compositor's detail goes. Keypoints are found at
//! the full size still, so that the motion stays the same and counts from the same reference. Only then comes a
//! smaller model, which sees other keypoints.

use std::path::PathBuf;

use image::RgbaImage;

use super::live::{LiveModel, embedded_bytes};
use crate::animate::load::{self, ModelOptions, Precision};
use crate::frame::Prediction;
use crate::geometry::Rect;
use crate::gpu;
use crate::model::packed::{Engine, Source};
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

/// What is there for a model: the best first.
pub(super) fn ladder(model: &LiveModel) -> Vec<Rung> {
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
    let quick = match Isa::bf16() {
        Some(_) => Precision::Bf16,
        None => Precision::F32,
    };
    let rung = |weights: &Option<PathBuf>, precision, half| Rung {
        weights: weights.clone(),
        precision,
        half,
    };
    let mut rungs = vec![rung(&model.weights, Precision::F32, false)];
    if quick != Precision::F32 {
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
    pub(super) fn load(rung: Rung, threads: usize) -> Result<Self, load::Error> {
        let options = ModelOptions {
            weights: rung.weights.as_deref(),
            threads,
            precision: rung.precision,
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
        let workers = self.full.workers();
        format!(
            "CPU ({}, {} threads)",
            workers.isa.name(),
            workers.threads()
        )
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
        let mut source = half.encode(&sized(view, half.config().image_size));
        source.keypoints = self
            .full
            .keypoints(&sized(view, self.full.config().image_size));
        source
    }

    /// See [`Engine::generate`].
    pub(super) fn generate(&mut self, source: &Source, moved: &Keypoints, out: &mut Prediction) {
        self.half
            .as_mut()
            .unwrap_or(&mut self.full)
            .generate(source, moved, out);
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
        let mut rungs = ladder(&model);
        assert_eq!(rungs[0].precision, Precision::F32);
        rungs.retain(|rung| Some(rung.precision) == rungs_end_precision(&model));
        let ways: Vec<_> = rungs
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

    fn rungs_end_precision(model: &LiveModel) -> Option<Precision> {
        ladder(model).last().map(|rung| rung.precision)
    }
}

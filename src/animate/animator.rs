//! One photo's faces, made to move as one driver.

use image::RgbaImage;

use super::motion::{MotionOptions, normalise, normalised_distance};
use crate::frame::Prediction;
use crate::model::Keypoints;
use crate::model::packed::{Engine, Source};

/// A model with a photo and the frame from which the driver's motion counts.
///
/// The networks see one face at a time; several faces share the driver's keypoints.
#[derive(Debug)]
pub struct Animator {
    engine: Engine,
    motion: MotionOptions,
    sources: Vec<Source>,
    reference: Reference,
    predictions: Vec<Prediction>,
}

/// Since which frame relative motion counts.
#[derive(Clone, Debug, Default)]
enum Reference {
    /// The next driving frame becomes it.
    #[default]
    Next,
    /// The same for all faces, or one each.
    Fixed(Vec<Keypoints>),
}

impl Animator {
    /// An animator without a photo.
    pub fn new(engine: Engine, motion: MotionOptions) -> Self {
        Self {
            engine,
            motion,
            sources: Vec::new(),
            reference: Reference::default(),
            predictions: Vec::new(),
        }
    }

    /// The networks.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Side of the square pictures that the networks see.
    pub fn size(&self) -> u32 {
        self.engine.config().image_size
    }

    /// Takes a photo's faces, each as the square of [`Animator::size`] that the networks see: encodes them
    /// and finds their keypoints.
    pub fn set_photo(&mut self, faces: &[RgbaImage]) {
        self.sources = faces.iter().map(|face| self.engine.encode(face)).collect();
        self.reference = Reference::Next;
    }

    /// The driver's keypoints in a frame of [`Animator::size`].
    pub fn keypoints(&mut self, frame: &RgbaImage) -> Keypoints {
        self.engine.keypoints(frame)
    }

    /// Makes a frame the one from which relative motion counts; until then it is the first one seen.
    pub fn set_reference(&mut self, driving: Keypoints) {
        self.reference = Reference::Fixed(vec![driving]);
    }

    /// Looks for the frame that resembles each face of the photo most.
    pub fn search(&self) -> BestFrame {
        BestFrame {
            best: vec![None; self.sources.len()],
            seen: 0,
        }
    }

    /// Makes what a search found the reference.
    pub fn set_best(&mut self, search: BestFrame) {
        let found: Option<Vec<Keypoints>> = search
            .best
            .into_iter()
            .map(|best| best.map(|(_, _, keypoints)| keypoints))
            .collect();
        if let Some(found) = found.filter(|found| !found.is_empty()) {
            self.reference = Reference::Fixed(found);
        }
    }

    /// Shows the search a frame's keypoints.
    pub fn consider(&self, search: &mut BestFrame, driving: &Keypoints) {
        for (source, best) in self.sources.iter().zip(&mut search.best) {
            let distance = normalised_distance(&source.keypoints, driving);
            if best.as_ref().is_none_or(|(least, _, _)| distance < *least) {
                *best = Some((distance, search.seen, driving.clone()));
            }
        }
        search.seen += 1;
    }

    /// One prediction for each face, moved as the driver has; the buffers are reused by the next call.
    pub fn animate(&mut self, driving: &Keypoints) -> &[Prediction] {
        if matches!(self.reference, Reference::Next) {
            self.set_reference(driving.clone());
        }
        self.predictions
            .resize_with(self.sources.len(), Prediction::default);
        let Reference::Fixed(references) = &self.reference else {
            return &[];
        };
        for (i, source) in self.sources.iter().enumerate() {
            let reference = references.get(i).unwrap_or(&references[0]);
            let moved = normalise(&source.keypoints, driving, reference, self.motion);
            self.engine
                .generate(source, &moved, &mut self.predictions[i]);
        }
        &self.predictions
    }

    /// Exchanges the predictions of the last [`Animator::animate`] for other buffers to be reused.
    pub fn take(&mut self, reuse: Vec<Prediction>) -> Vec<Prediction> {
        std::mem::replace(&mut self.predictions, reuse)
    }
}

/// The frame of a clip that resembles each face most (see [`normalised_distance`]).
#[derive(Clone, Debug)]
pub struct BestFrame {
    /// For each face: distance, number of the frame, its keypoints.
    best: Vec<Option<(f64, u64, Keypoints)>>,
    seen: u64,
}

impl BestFrame {
    /// The numbers of the frames found, from 0, one for each face.
    pub fn frames(&self) -> Vec<u64> {
        self.best
            .iter()
            .flatten()
            .map(|&(_, frame, _)| frame)
            .collect()
    }
}

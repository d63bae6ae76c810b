//! One photo's faces, made to move as one driver or as several.

use image::RgbaImage;

use super::motion::{MotionOptions, carried_over, normalise, normalised_distance};
use crate::frame::Prediction;
use crate::model::Keypoints;
use crate::model::packed::{Engine, Source};

/// A model with a photo and the frame from which the driver's motion counts.
///
/// The networks see one face at a time; several faces share the driver's keypoints unless
/// [`Animator::set_drivers`] gives each its own.
#[derive(Debug)]
pub struct Animator {
    engine: Engine,
    motion: MotionOptions,
    sources: Vec<Source>,
    /// For each face its driver; where it ends, the first.
    drivers: Vec<usize>,
    reference: Reference,
    predictions: Vec<Prediction>,
}

/// Since which frame relative motion counts.
#[derive(Clone, Debug, Default)]
enum Reference {
    /// The next driving frame becomes it.
    #[default]
    Next,
    /// The first frame: one for each driver.
    First(Vec<Keypoints>),
    /// Given: the same for all faces, or one for each driver.
    Given(Vec<Keypoints>),
    /// Found: one for each face.
    Best(Vec<Keypoints>),
}

impl Animator {
    /// An animator without a photo.
    pub fn new(engine: Engine, motion: MotionOptions) -> Self {
        Self {
            engine,
            motion,
            sources: Vec::new(),
            drivers: Vec::new(),
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
        self.drivers.clear();
        self.reference = Reference::Next;
    }

    /// Says for each face of the photo which driver moves it, by their index in what
    /// [`Animator::animate_by`] is given; until then it is the first.
    pub fn set_drivers(&mut self, drivers: Vec<usize>) {
        self.drivers = drivers;
    }

    /// The driver's keypoints in a frame of [`Animator::size`].
    pub fn keypoints(&mut self, frame: &RgbaImage) -> Keypoints {
        self.engine.keypoints(frame)
    }

    /// Makes a frame the one from which relative motion counts; until then it is the first one seen.
    pub fn set_reference(&mut self, driving: Keypoints) {
        self.reference = Reference::Given(vec![driving]);
    }

    /// As [`Animator::set_reference`], with the keypoints of each driver.
    pub fn set_references(&mut self, drivers: &[Keypoints]) {
        self.reference = Reference::Given(drivers.to_vec());
    }

    /// What was seen so far was nobody's pose: unless a reference was set, the next frame becomes it.
    pub fn driver_appeared(&mut self) {
        if matches!(self.reference, Reference::First(_)) {
            self.reference = Reference::Next;
        }
    }

    /// There was a cut: motion goes on from where it was, see [`carried_over`]. `before` is each driver's pose
    /// when it was last seen, `after` the present one.
    pub fn cut(&mut self, before: &[Keypoints], after: &[Keypoints]) {
        let drivers = &self.drivers;
        let of = |all: &[Keypoints], driver: usize| all.get(driver).or(all.first()).cloned();
        let carry = |reference: Option<Keypoints>, driver: usize| {
            let (before, after) = (of(before, driver)?, of(after, driver)?);
            Some(carried_over(&reference?, &before, &after))
        };
        match &mut self.reference {
            Reference::Next => {}
            Reference::First(frames) | Reference::Given(frames) => {
                let carried = (0..after.len()).map(|driver| carry(of(frames, driver), driver));
                if let Some(carried) = carried.collect() {
                    *frames = carried;
                }
            }
            Reference::Best(frames) => {
                for (face, frame) in frames.iter_mut().enumerate() {
                    let driver = drivers.get(face).copied().unwrap_or(0);
                    if let Some(carried) = carry(Some(frame.clone()), driver) {
                        *frame = carried;
                    }
                }
            }
        }
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
            self.reference = Reference::Best(found);
        }
    }

    /// Shows the search each driver's keypoints in a frame.
    pub fn consider(&self, search: &mut BestFrame, drivers: &[Keypoints]) {
        for (i, (source, best)) in self.sources.iter().zip(&mut search.best).enumerate() {
            let Some(driving) = self.of_driver(i, drivers) else {
                continue;
            };
            let distance = normalised_distance(&source.keypoints, driving);
            if best.as_ref().is_none_or(|(least, _, _)| distance < *least) {
                *best = Some((distance, search.seen, driving.clone()));
            }
        }
        search.seen += 1;
    }

    /// One prediction for each face, moved as the driver has; the buffers are reused by the next call.
    pub fn animate(&mut self, driving: &Keypoints) -> &[Prediction] {
        self.animate_by(std::slice::from_ref(driving))
    }

    /// As [`Animator::animate`], each face moved as its own driver has.
    pub fn animate_by(&mut self, drivers: &[Keypoints]) -> &[Prediction] {
        if matches!(self.reference, Reference::Next) {
            self.reference = Reference::First(drivers.to_vec());
        }
        let mut predictions = std::mem::take(&mut self.predictions);
        predictions.resize_with(self.sources.len(), Prediction::default);
        for (i, prediction) in predictions.iter_mut().enumerate() {
            let reference = match &self.reference {
                Reference::Next => None,
                Reference::First(frame) | Reference::Given(frame) => self.of_driver(i, frame),
                Reference::Best(frames) => frames.get(i),
            };
            let (Some(driving), Some(reference)) = (self.of_driver(i, drivers), reference) else {
                continue;
            };
            let source = &self.sources[i];
            let moved = normalise(&source.keypoints, driving, reference, self.motion);
            self.engine.generate(source, &moved, prediction);
        }
        self.predictions = predictions;
        &self.predictions
    }

    /// What of all drivers belongs to the driver of a face.
    fn of_driver<'a>(&self, face: usize, drivers: &'a [Keypoints]) -> Option<&'a Keypoints> {
        let index = self.drivers.get(face).copied().unwrap_or(0);
        drivers.get(index).or(drivers.first())
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

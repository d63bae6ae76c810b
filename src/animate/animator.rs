//! One photo's faces, made to move as one driver or as several.

use image::RgbaImage;

use super::engine::{Engine, Source};
use super::motion::{MotionOptions, carried_over, normalise, normalised_distance};
use crate::frame::Prediction;
use crate::model::Keypoints;

/// A model with a photo and the frame from which the driver's motion counts.
///
/// The networks see one face at a time; several faces share the driver's keypoints unless
/// [`Animator::set_drivers`] gives each its own.
#[derive(Debug)]
pub struct Animator {
    engine: Engine,
    /// Engines beside it, made when they are first asked for: see [`Animator::lanes`].
    beside: Vec<Engine>,
    sources: Vec<Source>,
    direction: Direction,
    predictions: Vec<Prediction>,
}

/// Who moves how: the part of an animation in which one frame follows the other.
#[derive(Debug)]
pub(crate) struct Direction {
    motion: MotionOptions,
    /// For each face its driver; where it ends, the first.
    drivers: Vec<usize>,
    reference: Reference,
}

/// An animator taken apart for frames beside each other.
#[derive(Debug)]
pub(crate) struct Lanes<'a> {
    /// What must see frames in order.
    pub(crate) direction: &'a mut Direction,
    /// The photo's faces.
    pub(crate) sources: &'a [Source],
    /// Who makes frames.
    pub(crate) lanes: Vec<Lane<'a>>,
    /// How many frames each makes at once.
    pub(crate) at_once: usize,
}

/// One of those who make frames beside each other: the networks, and the photo they move.
#[derive(Debug)]
pub(crate) struct Lane<'a> {
    engine: &'a mut Engine,
    sources: &'a [Source],
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
            beside: Vec::new(),
            sources: Vec::new(),
            direction: Direction {
                motion,
                drivers: Vec::new(),
                reference: Reference::default(),
            },
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
        self.direction.drivers.clear();
        self.direction.reference = Reference::Next;
    }

    /// Says for each face of the photo which driver moves it, by their index in what
    /// [`Animator::animate_by`] is given; until then it is the first.
    pub fn set_drivers(&mut self, drivers: Vec<usize>) {
        self.direction.drivers = drivers;
    }

    /// The driver's keypoints in a frame of [`Animator::size`].
    pub fn keypoints(&mut self, frame: &RgbaImage) -> Keypoints {
        self.engine.keypoints(frame)
    }

    /// Makes a frame the one from which relative motion counts; until then it is the first one seen.
    pub fn set_reference(&mut self, driving: Keypoints) {
        self.direction.reference = Reference::Given(vec![driving]);
    }

    /// As [`Animator::set_reference`], with the keypoints of each driver.
    pub fn set_references(&mut self, drivers: &[Keypoints]) {
        self.direction.reference = Reference::Given(drivers.to_vec());
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
            self.direction.reference = Reference::Best(found);
        }
    }

    /// Shows the search each driver's keypoints in a frame.
    pub fn consider(&self, search: &mut BestFrame, drivers: &[Keypoints]) {
        for (i, (source, best)) in self.sources.iter().zip(&mut search.best).enumerate() {
            let Some(driving) = self.direction.of_driver(i, drivers) else {
                continue;
            };
            let distance = normalised_distance(source.keypoints(), driving);
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
        let sources = &self.sources;
        let poses = self.direction.poses(sources, drivers);
        let mut lane = Lane {
            engine: &mut self.engine,
            sources,
        };
        lane.animate(&[poses], std::slice::from_mut(&mut self.predictions));
        &self.predictions
    }

    /// Takes the animator apart for up to `batch` frames beside each other. A frame is the same whoever makes it.
    ///
    /// # Errors
    /// When the system refuses to start a thread.
    pub(crate) fn lanes(&mut self, batch: usize) -> candle_core::Result<Lanes<'_>> {
        let (engines, at_once) = match self.engine.packed() {
            Some(_) => (on_threads(&mut self.engine, &mut self.beside, batch)?, 1),
            None => (on_streams(&mut self.engine, &mut self.beside, batch), batch),
        };
        let sources = &self.sources[..];
        let lanes = engines.into_iter().map(|engine| Lane { engine, sources });
        Ok(Lanes {
            lanes: lanes.collect(),
            at_once,
            direction: &mut self.direction,
            sources,
        })
    }
}

/// The CPU's engines for `batch` frames, among which the threads are divided; they share the weights.
fn on_threads<'a>(
    engine: &'a mut Engine,
    beside: &'a mut Vec<Engine>,
    batch: usize,
) -> candle_core::Result<Vec<&'a mut Engine>> {
    let threads = engine.packed().map_or(1, |e| e.workers().threads());
    let count = batch.min(threads);
    if count < 2 {
        return Ok(vec![engine]);
    }
    if beside.len() != count {
        beside.clear();
        for lane in 0..count {
            // The first ones have what is left over.
            let threads = threads / count + usize::from(lane < threads % count);
            beside.push(engine.beside(threads)?);
        }
    }
    Ok(beside.iter_mut().collect())
}

/// A card's engines for batches of `batch` frames, one for each of its streams. It stays at one where the card has no room for
/// another, or one frame is all that is wanted at a time.
fn on_streams<'a>(
    engine: &'a mut Engine,
    beside: &'a mut Vec<Engine>,
    batch: usize,
) -> Vec<&'a mut Engine> {
    if batch < 2 {
        return vec![engine];
    }
    if beside.is_empty() {
        match engine.beside(1) {
            Ok(other) => beside.push(other),
            Err(error) => tracing::warn!("frames are made by one stream of the card: {error}"),
        }
    }
    std::iter::once(engine).chain(beside).collect()
}

impl Direction {
    /// What was seen so far was nobody's pose: unless a reference was set, the next frame becomes it.
    pub(crate) fn driver_appeared(&mut self) {
        if matches!(self.reference, Reference::First(_)) {
            self.reference = Reference::Next;
        }
    }

    /// There was a cut: motion goes on from where it was, see [`carried_over`]. `before` is each driver's pose
    /// when it was last seen, `after` the present one.
    pub(crate) fn cut(&mut self, before: &[Keypoints], after: &[Keypoints]) {
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

    /// The keypoints to which each face of the photo is to be moved; a face without a driver rests.
    pub(crate) fn poses(&mut self, sources: &[Source], drivers: &[Keypoints]) -> Vec<Keypoints> {
        if matches!(self.reference, Reference::Next) {
            self.reference = Reference::First(drivers.to_vec());
        }
        let faces = sources.iter().enumerate();
        faces
            .map(|(i, source)| {
                let reference = match &self.reference {
                    Reference::Next => None,
                    Reference::First(frame) | Reference::Given(frame) => self.of_driver(i, frame),
                    Reference::Best(frames) => frames.get(i),
                };
                match (self.of_driver(i, drivers), reference) {
                    (Some(driving), Some(reference)) => {
                        normalise(source.keypoints(), driving, reference, self.motion)
                    }
                    _ => source.keypoints().clone(),
                }
            })
            .collect()
    }

    /// What of all drivers belongs to the driver of a face.
    fn of_driver<'a>(&self, face: usize, drivers: &'a [Keypoints]) -> Option<&'a Keypoints> {
        let index = self.drivers.get(face).copied().unwrap_or(0);
        drivers.get(index).or(drivers.first())
    }
}

impl Lane<'_> {
    /// The keypoints of drivers in frames of [`Animator::size`].
    pub(crate) fn keypoints(&mut self, frames: &[&[u8]]) -> Vec<Keypoints> {
        self.engine.keypoints_of(frames)
    }

    /// Moves each face of each frame to its pose, into buffers that are reused: one for each frame.
    pub(crate) fn animate(&mut self, frames: &[Vec<Keypoints>], out: &mut [Vec<Prediction>]) {
        let faces = self.sources.len();
        let moves: Vec<(&Source, &Keypoints)> = frames
            .iter()
            .flat_map(|poses| self.sources.iter().zip(poses))
            .collect();
        let mut made: Vec<Prediction> = Vec::with_capacity(moves.len());
        for out in out.iter_mut() {
            made.append(out);
        }
        made.resize_with(moves.len(), Prediction::default);
        self.engine.generate_all(&moves, &mut made);
        let mut made = made.into_iter();
        for out in out {
            out.extend(made.by_ref().take(faces));
        }
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

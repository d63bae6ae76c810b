//! Enhancement beside the live path: a thread, `enhance`, makes the newest faces sharper while the networks
//! go on, and what it has added is carried over to the faces after them (see [`Carried`]). So the picture
//! never waits for it; how many frames pass between two results depends on the machine, and is measured.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::slot::Slot;
use crate::faces::{Carried, EnhanceError, Enhancement, Enhancer};
use crate::frame::Prediction;
use crate::ops::threads::available_threads;

/// How often the thread looks whether it is still needed.
const PATIENCE: Duration = Duration::from_millis(100);

/// The faces of one frame.
struct Task {
    photo: u64,
    frame: u64,
    faces: Vec<Prediction>,
}

/// What was added to them, or why nothing will ever be.
type Answer = Result<(Task, Vec<Carried>), EnhanceError>;

/// What both sides see.
#[derive(Default)]
struct Shared {
    tasks: Slot<Task>,
    answers: Slot<Answer>,
    /// A task is under way, or its answer not yet taken.
    busy: AtomicBool,
    /// Nobody wants answers any more.
    over: AtomicBool,
}

/// The side of the networks. Dropping it lets the thread end by itself.
pub(super) struct Refiner {
    shared: Arc<Shared>,
    wanted: Enhancement,
    photo: u64,
    carried: Vec<Carried>,
    /// Frames since the start, and at the last two results.
    frame: u64,
    enhanced: Option<u64>,
    every: Option<f32>,
}

impl Refiner {
    /// Starts the thread, which loads the weights first.
    pub(super) fn start(wanted: Enhancement) -> Result<Self, std::io::Error> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        // How strong what is added becomes is said when it is added.
        let full = Enhancement {
            strength: 1.0,
            ..wanted.clone()
        };
        std::thread::Builder::new()
            .name("enhance".to_owned())
            .spawn(move || work(&full, &theirs))?;
        Ok(Self {
            shared,
            wanted,
            photo: 0,
            carried: Vec::new(),
            frame: 0,
            enhanced: None,
            every: None,
        })
    }

    /// Changes the strength; false when something else is wanted too, which takes another thread.
    pub(super) fn retune(&mut self, wanted: &Enhancement) -> bool {
        self.wanted.strength = wanted.strength;
        self.wanted == *wanted
    }

    /// Forgets what was added: the faces are others.
    pub(super) fn forget(&mut self) {
        self.carried.clear();
    }

    /// Whether there is a result that no frame has yet.
    pub(super) fn has_news(&self) -> bool {
        self.shared.answers.is_full()
    }

    /// How many frames pass from one result to the next; none before the second.
    pub(super) fn every(&self) -> Option<f32> {
        self.every
    }

    /// Gives the newest faces to the thread, if it waits for some, and makes them sharper by what it has
    /// made of those before.
    ///
    /// # Errors
    /// When the weights cannot be used: there will be no results.
    pub(super) fn step(
        &mut self,
        photo: u64,
        faces: &mut [Prediction],
    ) -> Result<(), EnhanceError> {
        self.frame += 1;
        if let Some(answer) = self.shared.answers.take() {
            let (task, carried) = answer?;
            self.shared.busy.store(false, Ordering::Relaxed);
            if let Some(before) = self.enhanced {
                let passed = task.frame.saturating_sub(before).max(1) as f32;
                let every = self.every.get_or_insert(passed);
                *every += (passed - *every) * 0.3;
            }
            self.enhanced = Some(task.frame);
            (self.photo, self.carried) = (task.photo, carried);
        }
        if !self.shared.busy.swap(true, Ordering::Relaxed) {
            self.shared.tasks.put(Task {
                photo,
                frame: self.frame,
                faces: faces.to_vec(),
            });
        }
        if photo == self.photo && faces.len() == self.carried.len() {
            for (face, carried) in faces.iter_mut().zip(&self.carried) {
                carried.add_to(face, self.wanted.strength)?;
            }
        }
        Ok(())
    }
}

impl Drop for Refiner {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
    }
}

/// The thread: until nobody wants answers.
fn work(enhancement: &Enhancement, shared: &Shared) {
    // The networks of the live path have the others.
    let threads = (available_threads() / 2).max(1);
    let mut enhancer = match Enhancer::open(enhancement, threads) {
        Ok(enhancer) => enhancer,
        Err(error) => {
            shared.answers.put(Err(error));
            return;
        }
    };
    while !shared.over.load(Ordering::Relaxed) {
        let Some(task) = shared.tasks.wait(PATIENCE) else {
            continue;
        };
        let added = task.faces.iter().map(|face| {
            let mut made = face.clone();
            enhancer.enhance(&mut made)?;
            Carried::between(face, &made)
        });
        let added = added.collect::<Result<Vec<_>, _>>();
        let failed = added.is_err();
        shared.answers.put(added.map(|carried| (task, carried)));
        if failed {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::checkpoint;
    use crate::model::{gpen, procedural};

    fn face() -> Prediction {
        let here = |i: usize| 2.0 * i as f32 / 7.0 - 1.0;
        Prediction {
            size: 64,
            rgba: [90, 120, 150, 255].repeat(64 * 64),
            map_size: 8,
            deformation: (0..64).map(|i| [here(i % 8), here(i / 8)]).collect(),
            occlusion: vec![1.0; 64],
            lent: None,
        }
    }

    fn wait_for(refiner: &Refiner) {
        let start = Instant::now();
        while !refiner.has_news() {
            assert!(start.elapsed() < Duration::from_secs(30), "no answer");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn frames_do_not_wait_and_get_what_was_added_to_those_before() {
        let shape = gpen::Shape {
            widths: vec![16; 5],
            style: 16,
            mapping: 1,
        };
        let folder = tempfile::tempdir().unwrap();
        let weights = folder.path().join("small.safetensors");
        let tensors = procedural::gpen(&shape, "small").unwrap();
        checkpoint::save_lean(&weights, &tensors, "{}", "gpen", false).unwrap();
        let mut refiner = Refiner::start(Enhancement {
            weights: Some(weights),
            strength: 1.0,
            ..Enhancement::default()
        })
        .unwrap();
        let mut faces = vec![face()];
        refiner.step(7, &mut faces).unwrap();
        assert_eq!(
            faces[0].rgba,
            face().rgba,
            "there is nothing to be added yet"
        );
        wait_for(&refiner);
        refiner.step(7, &mut faces).unwrap();
        assert_ne!(faces[0].rgba, face().rgba);
        assert_eq!(refiner.every(), None, "one result is no interval");
        wait_for(&refiner);
        // The photo was changed: what was added to the other's face is not added to this one's.
        let mut other = vec![face()];
        refiner.step(8, &mut other).unwrap();
        assert_eq!(other[0].rgba, face().rgba);
        assert!(refiner.every().is_some());
    }

    #[test]
    fn weights_that_are_none_are_said_once() {
        let mut refiner = Refiner::start(Enhancement {
            weights: Some("no/such/file.pth".into()),
            strength: 1.0,
            ..Enhancement::default()
        })
        .unwrap();
        wait_for(&refiner);
        let error = refiner.step(1, &mut [face()]).unwrap_err().to_string();
        assert!(error.contains("no/such/file.pth"), "{error}");
    }
}

//! The networks, wherever they run: the packed engine on the CPU, or candle's on a graphics card.
//!
//! A card may go away or run out of memory at any time. Then fewer frames are made at once, and at last the CPU takes
//! over: nobody who animates needs to know, and [`Engine::notice`] says it.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Result, Tensor};

use super::on_card::{CardSource, OnCard};
use crate::device::Card;
use crate::frame::{Prediction, SharedMemory};
use crate::model::{Keypoints, ModelConfig, packed};
use crate::ops::threads::Workers;

/// A model that is ready to run.
#[derive(Debug)]
pub struct Engine {
    run: Run,
    /// Why it does not run where it was to.
    why: Option<String>,
    /// That has been said.
    told: bool,
}

#[derive(Debug)]
enum Run {
    Packed(Box<packed::Engine>),
    Card(Box<OnCard>),
}

/// What depends on the photo alone.
#[derive(Clone, Debug)]
pub struct Source(Kept);

#[derive(Clone, Debug)]
enum Kept {
    Packed(packed::Source),
    Card(Box<CardSource>),
}

impl Source {
    /// The photo's keypoints.
    pub fn keypoints(&self) -> &Keypoints {
        match &self.0 {
            Kept::Packed(source) => &source.keypoints,
            Kept::Card(source) => &source.keypoints,
        }
    }

    /// The same with keypoints that were found otherwise.
    pub fn with_keypoints(mut self, keypoints: Keypoints) -> Self {
        match &mut self.0 {
            Kept::Packed(source) => source.keypoints = keypoints,
            Kept::Card(source) => source.keypoints = keypoints,
        }
        self
    }
}

impl Engine {
    /// On the CPU.
    pub fn on_cpu(engine: packed::Engine) -> Self {
        Self {
            run: Run::Packed(Box::new(engine)),
            why: None,
            told: false,
        }
    }

    /// On a card, in `precision`; `workers` are for the CPU, should it have to take over. One frame is made, so that what the
    /// card cannot do is known now.
    ///
    /// # Errors
    /// When the card cannot make that frame.
    pub fn on_card(
        config: &ModelConfig,
        tensors: &BTreeMap<String, Tensor>,
        card: &Card,
        precision: DType,
        workers: Workers,
    ) -> Result<Self> {
        let mut card = OnCard::new(config, tensors, card, precision, workers)?;
        let side = config.image_size as usize;
        let grey = vec![128u8; side * side * 4];
        let source = card.encode(&grey)?;
        let keypoints = source.keypoints.clone();
        card.generate(&[(&source, &keypoints)], &mut [Prediction::default()])?;
        Ok(Self {
            run: Run::Card(Box::new(card)),
            why: None,
            told: false,
        })
    }

    /// The same, which was to run elsewhere: why it does not.
    pub(crate) fn instead(mut self, why: Option<String>) -> Self {
        self.why = why;
        self
    }

    /// Why it does not run where it was to, once.
    pub fn notice(&mut self) -> Option<String> {
        match std::mem::replace(&mut self.told, true) {
            false => self.why.clone(),
            true => None,
        }
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        match &self.run {
            Run::Packed(engine) => engine.config(),
            Run::Card(card) => card.config(),
        }
    }

    /// Where it runs, for people.
    pub fn device(&self) -> String {
        match &self.run {
            Run::Packed(engine) => {
                let workers = engine.workers();
                let isa = workers.isa.name();
                let cpu = match workers.threads() {
                    1 => format!("CPU ({isa}, 1 thread)"),
                    threads => format!("CPU ({isa}, {threads} threads)"),
                };
                match &self.why {
                    Some(why) => format!("{cpu}: {why}"),
                    None => cpu,
                }
            }
            Run::Card(card) => format!("{} ({})", card.card.name, card.precision.as_str()),
        }
    }

    /// The engine of the CPU, when it runs there: for what only that has.
    pub fn packed(&self) -> Option<&packed::Engine> {
        match &self.run {
            Run::Packed(engine) => Some(engine),
            Run::Card(_) => None,
        }
    }

    /// The same networks for frames that are made beside this engine's: on the CPU on so many threads of their own (see
    /// [`packed::Engine::beside`]), on a card by another of its streams.
    ///
    /// # Errors
    /// When the system refuses to start a thread, or the card has no room or no further stream.
    pub fn beside(&self, threads: usize) -> Result<Self> {
        let run = match &self.run {
            Run::Packed(engine) => {
                let engine = engine.beside(threads).map_err(candle_core::Error::wrap)?;
                Run::Packed(Box::new(engine))
            }
            Run::Card(card) => Run::Card(Box::new(card.beside()?)),
        };
        Ok(Self {
            run,
            why: None,
            told: false,
        })
    }

    /// From now on predictions stay in this memory, as [`Prediction::lent`] says; without one they are read back. Where that fails,
    /// and when all places are taken, they are read back too.
    ///
    /// # Errors
    /// In a sentence why they cannot stay on the card.
    pub fn share(&mut self, memory: Option<&Arc<SharedMemory>>) -> std::result::Result<(), String> {
        match (&mut self.run, memory) {
            (Run::Card(card), memory) => card.share(memory),
            (Run::Packed(_), None) => Ok(()),
            (Run::Packed(_), Some(_)) => Err("the networks run on the CPU".to_owned()),
        }
    }

    /// The keypoints of a square picture of the model's size, `size * size` RGBA pixels.
    ///
    /// # Panics
    /// When the picture has another size: a fault of the program.
    pub fn keypoints(&mut self, rgba: &[u8]) -> Keypoints {
        self.keypoints_of(&[rgba]).remove(0)
    }

    /// The keypoints of several pictures.
    ///
    /// # Panics
    /// As [`Engine::keypoints`].
    pub fn keypoints_of(&mut self, pictures: &[&[u8]]) -> Vec<Keypoints> {
        let mut found = Vec::with_capacity(pictures.len());
        while found.len() < pictures.len() {
            let rest = &pictures[found.len()..];
            match &mut self.run {
                Run::Packed(engine) => found.extend(rest.iter().map(|rgba| engine.keypoints(rgba))),
                Run::Card(card) => {
                    let some = &rest[..rest.len().min(card.at_once)];
                    match card.keypoints(some) {
                        Ok(keypoints) => found.extend(keypoints),
                        Err(error) => self.give_way(some.len(), &error),
                    }
                }
            }
        }
        found
    }

    /// Prepares a photo's crop: a square picture of the model's size.
    ///
    /// # Panics
    /// As [`Engine::keypoints`].
    pub fn encode(&mut self, rgba: &[u8]) -> Source {
        loop {
            match &mut self.run {
                Run::Packed(engine) => return Source(Kept::Packed(engine.encode(rgba))),
                Run::Card(card) => match card.encode(rgba) {
                    Ok(source) => return Source(Kept::Card(Box::new(source))),
                    Err(error) => self.give_way(1, &error),
                },
            }
        }
    }

    /// Moves a photo to the driving keypoints (see [`normalise`](super::normalise)) into `out`, whose buffers are reused.
    pub fn generate(&mut self, source: &Source, driving: &Keypoints, out: &mut Prediction) {
        self.generate_all(&[(source, driving)], std::slice::from_mut(out));
    }

    /// Several at once: faces of one frame, or frames.
    pub fn generate_all(&mut self, moves: &[(&Source, &Keypoints)], out: &mut [Prediction]) {
        let mut done = 0;
        while done < moves.len().min(out.len()) {
            let rest = &moves[done..];
            match &mut self.run {
                Run::Packed(engine) => {
                    for ((source, driving), out) in rest.iter().zip(&mut out[done..]) {
                        let source = source.on_cpu(engine);
                        out.lent = None;
                        engine.generate(source, driving, out);
                    }
                    return;
                }
                Run::Card(card) => {
                    let count = rest.len().min(card.at_once).min(out.len() - done);
                    let some: Option<Vec<_>> = rest[..count]
                        .iter()
                        .map(|(source, driving)| match &source.0 {
                            Kept::Card(source) => Some((&**source, *driving)),
                            Kept::Packed(_) => None,
                        })
                        .collect();
                    let made = match some {
                        Some(some) => card.generate(&some, &mut out[done..done + count]),
                        None => Err(candle_core::Error::Msg(
                            "the photo was prepared on the CPU".to_owned(),
                        )),
                    };
                    match made {
                        Ok(()) => done += count,
                        Err(error) => self.give_way(count, &error),
                    }
                }
            }
        }
    }

    /// After the card has failed on `count` things at once: half as many from now on, and after one the CPU.
    fn give_way(&mut self, count: usize, error: &candle_core::Error) {
        let Run::Card(card) = &mut self.run else {
            return;
        };
        let (name, error) = (card.card.name.clone(), error.to_string());
        let why = error.lines().next().unwrap_or_default().to_owned();
        if count > 1 {
            card.at_once = count / 2;
            tracing::warn!(
                "{name} failed on {count} frames at once ({why}); trying {}",
                card.at_once
            );
            return;
        }
        let packed = card
            .spare
            .take()
            .map(|(tensors, workers)| packed::Engine::new(card.config(), &tensors, workers));
        match packed {
            Some(Ok(engine)) => {
                self.run = Run::Packed(Box::new(engine));
                let why = format!("{name} has failed ({why})");
                tracing::warn!("{why}: the networks go on on the CPU");
                (self.why, self.told) = (Some(why), false);
            }
            // The same tensors have made networks before.
            _ => panic!("{name} has failed ({why}), and the CPU's engine could not be made"),
        }
    }
}

impl Source {
    /// As the CPU's engine has it; made when it is first asked for after a card was lost.
    fn on_cpu(&self, engine: &mut packed::Engine) -> &packed::Source {
        match &self.0 {
            Kept::Packed(source) => source,
            Kept::Card(source) => source.packed.get_or_init(|| {
                let mut packed = engine.encode(&source.rgba);
                packed.keypoints = source.keypoints.clone();
                packed
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::animate::load;

    /// The embedded model on the CPU as if it were a card.
    fn engine() -> Engine {
        let (checkpoint, config) = load::checkpoint(None, load::ConfigSource::Found).unwrap();
        let card = Card {
            device: Device::Cpu,
            name: "a card".to_owned(),
            usual: DType::F32,
        };
        let workers = Workers::new(1).unwrap();
        Engine::on_card(&config, &checkpoint.tensors, &card, card.usual, workers).unwrap()
    }

    /// A photo, as it was and in another pose.
    fn posed(engine: &mut Engine) -> (Source, Keypoints) {
        let side = engine.config().image_size as usize;
        let photo: Vec<u8> = (0..4 * side * side).map(|i| (i * 7 % 256) as u8).collect();
        let source = engine.encode(&photo);
        let mut pose = source.keypoints().clone();
        pose.value[0][0] += 0.2;
        (source, pose)
    }

    #[test]
    fn a_card_that_fails_makes_less_at_once_and_gives_way_to_the_cpu() {
        let mut engine = engine();
        let (source, pose) = posed(&mut engine);
        let moves = [(&source, source.keypoints()), (&source, &pose)];
        let mut on_card = vec![Prediction::default(); 2];
        engine.generate_all(&moves, &mut on_card);
        assert_eq!(engine.notice(), None);

        let full = || candle_core::Error::Msg("out of memory\nand a backtrace".to_owned());
        engine.give_way(2, &full());
        assert!(engine.packed().is_none());
        let mut singly = vec![Prediction::default(); 2];
        engine.generate_all(&moves, &mut singly);
        assert_eq!(singly[1].rgba, on_card[1].rgba);

        engine.give_way(1, &full());
        assert!(engine.packed().is_some());
        let said = engine.notice().unwrap();
        assert!(
            said.contains("a card") && said.contains("out of memory") && !said.contains('\n'),
            "{said}"
        );
        assert!(engine.device().contains(&said));
        assert_eq!(engine.notice(), None);
        // What was prepared on the card goes on on the CPU, as it was.
        let mut on_cpu = vec![Prediction::default(); 2];
        engine.generate_all(&moves, &mut on_cpu);
        for (a, b) in on_cpu.iter().zip(&on_card) {
            let off: u64 = a
                .rgba
                .iter()
                .zip(&b.rgba)
                .map(|(a, b)| u64::from(a.abs_diff(*b)))
                .sum();
            assert!((off as f64) < a.rgba.len() as f64, "{off}");
        }
    }

    #[test]
    fn predictions_stay_in_shared_memory_as_long_as_it_has_places() {
        use std::io::{Read, Seek, SeekFrom};

        use crate::frame::Handle;

        let mut engine = engine();
        let (source, pose) = posed(&mut engine);
        let moves = [(&source, source.keypoints()), (&source, &pose)];
        let mut read = vec![Prediction::default(); 2];
        engine.generate_all(&moves, &mut read);

        let memory = |place: u64| {
            let handle = Handle {
                file: tempfile::tempfile().unwrap(),
                bytes: 3 * place,
                card: [0; 16],
            };
            SharedMemory::new(handle, place, 3)
        };
        let place = (read[0].rgba.len() + 12 * read[0].deformation.len()) as u64;
        let shared = memory(place);
        engine.share(Some(&shared)).unwrap();
        let mut left = vec![Prediction::default(); 2];
        engine.generate_all(&moves, &mut left);
        for (left, read) in left.iter().zip(&read) {
            assert_eq!((left.size, left.map_size), (read.size, read.map_size));
            assert!(left.rgba.is_empty() && left.deformation.is_empty());
            let mut bytes = vec![0; place as usize];
            let start = left.lent.as_ref().unwrap().start();
            let mut file = shared.handle().unwrap().file;
            file.seek(SeekFrom::Start(start)).unwrap();
            file.read_exact(&mut bytes).unwrap();
            let parts = [
                read.rgba.clone(),
                bytemuck::cast_slice(&read.deformation).to_vec(),
                bytemuck::cast_slice(&read.occlusion).to_vec(),
            ];
            assert!(bytes == parts.concat());
        }
        // One place is left for two: these are read back. Those of before, made again, find theirs.
        let mut others = vec![Prediction::default(); 2];
        engine.generate_all(&moves, &mut others);
        assert!(others == read);
        engine.generate_all(&moves, &mut left);
        assert!(left.iter().all(|left| left.lent.is_some()));

        engine.share(None).unwrap();
        engine.generate_all(&moves, &mut left);
        assert!(left == read);
        assert!(shared.lend(3).is_some(), "all came back");
        engine.share(Some(&memory(place - 1))).unwrap();
        engine.generate_all(&moves, &mut left);
        assert!(left == read, "what is too small is not used");

        engine.give_way(1, &candle_core::Error::Msg("gone".to_owned()));
        assert!(engine.share(Some(&shared)).unwrap_err().contains("CPU"));
        engine.share(None).unwrap();
    }
}

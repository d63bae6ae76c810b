//! Pairs of frames for training, read ahead by worker threads, always in the same order.
//!
//! Which frames sample n shows, and how they are varied, follows from the seed, n and the files alone. Clips
//! that cannot be read are replaced by others, pictures of a folder by the next one, and both are reported
//! once; frames stay in memory up to a limit.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::augment::Variation;
use super::config::{DataConfig, Recipe};
use super::data::{self, Clip, Clips, Frames, Kind, Split};
use super::error::Error;
use super::landmarks::Landmarks;
use super::random::Random;

/// What one sample is varied and chosen by.
const PASS: u64 = 1;
const CHOICE: u64 = 2;

/// How many frames a choice by mouth opening looks at.
const CANDIDATES: usize = 12;

/// How many clips are tried in place of one that cannot be read.
const ATTEMPTS: u64 = 20;

/// Two frames of a clip, ready for the networks.
#[derive(Clone, Debug)]
pub struct Sample {
    /// (3, side, side) in 0..1.
    pub source: Vec<f32>,
    /// The same of the frame to be drawn.
    pub driving: Vec<f32>,
    /// Landmarks of both, where they are known.
    pub marks: Option<[Vec<[f32; 2]>; 2]>,
}

/// Samples as tensors.
#[derive(Clone, Debug)]
pub struct Batch {
    /// (b, 3, h, w) in 0..1.
    pub source: Tensor,
    /// The same.
    pub driving: Tensor,
    /// Landmarks, when a file of them was given.
    pub marks: Option<Marks>,
}

/// Landmarks of a batch.
#[derive(Clone, Debug)]
pub struct Marks {
    /// (b, n, 2) in -1..1; anything for pictures without.
    pub source: Tensor,
    /// The same of the driving frames.
    pub driving: Tensor,
    /// 1 for pictures with landmarks, 0 for those without: (b, 1, 1).
    pub known: Tensor,
}

/// The clips of a run and what is known about them.
#[derive(Debug)]
pub struct Dataset {
    clips: Vec<Clip>,
    left_out: Vec<(PathBuf, String)>,
    /// What is drawn from: clips, or all clips of one person.
    items: Vec<Vec<usize>>,
    side: usize,
    config: DataConfig,
    recipe: Recipe,
    landmarks: Option<Landmarks>,
    cache: Mutex<Cache>,
    /// What cannot be read, a clip or one picture of a folder, and why.
    broken: Mutex<BTreeMap<Key, String>>,
}

/// A clip, and which picture of it where it is a folder of them.
type Key = (usize, Option<usize>);

impl Dataset {
    /// Finds the clips for training; `side` is the pictures' size.
    ///
    /// # Errors
    /// When there is none, or the landmarks cannot be read.
    pub fn open(config: &DataConfig, recipe: &Recipe, side: u32) -> Result<Self, Error> {
        let Clips { clips, left_out } = data::find(config, Split::Train)?;
        let items = if config.id_sampling {
            data::identities(&clips)
        } else {
            (0..clips.len()).map(|i| vec![i]).collect()
        };
        let landmarks = recipe
            .landmarks
            .as_deref()
            .map(Landmarks::open)
            .transpose()?;
        if let Some(landmarks) = &landmarks {
            landmarks.check(&clips, recipe)?;
        }
        Ok(Self {
            clips,
            left_out,
            items,
            side: side as usize,
            config: config.clone(),
            recipe: recipe.clone(),
            landmarks,
            cache: Mutex::new(Cache::new(recipe.cache << 20)),
            broken: Mutex::default(),
        })
    }

    /// Samples in an epoch: every clip, or person, `num_repeats` times.
    pub fn epoch(&self) -> usize {
        self.items.len().saturating_mul(self.config.num_repeats)
    }

    /// How many clips there are.
    pub fn clips(&self) -> usize {
        self.clips.len()
    }

    /// Landmarks of each frame; 0 without a file of them.
    pub fn marks(&self) -> usize {
        self.landmarks.as_ref().map_or(0, Landmarks::count)
    }

    /// What is not used, with the reason: files that are no clips, and clips and pictures that could not be
    /// read so far.
    pub fn left_out(&self) -> Vec<(PathBuf, String)> {
        let broken = lock(&self.broken);
        let broken = broken
            .iter()
            .map(|(&key, why)| (self.path(key).to_owned(), why.clone()));
        self.left_out.iter().cloned().chain(broken).collect()
    }

    /// Sample `number` of the run.
    ///
    /// # Errors
    /// When one clip after the other cannot be read.
    pub fn sample(&self, number: u64) -> Result<Sample, Error> {
        let count = self.items.len() as u64;
        let seed = self.recipe.seed;
        let mut failed = None;
        for attempt in 0..ATTEMPTS {
            // Every pass shows each item once.
            let place = number.wrapping_add(attempt.wrapping_mul(7919));
            let order = Random::new(seed, &[PASS, place / count]).permutation(self.items.len());
            let item = &self.items[order[(place % count) as usize]];
            let mut random = Random::new(seed, &[CHOICE, number, attempt]);
            let clip = item[random.below(item.len())];
            if self.is_broken((clip, None)) {
                continue;
            }
            match self.pair(clip, &mut random) {
                Ok(sample) => return Ok(sample),
                Err(error) => {
                    self.leave_out((clip, None), &error);
                    failed = Some(error);
                }
            }
        }
        let why = failed.map_or_else(String::new, |error| format!("; the last one: {error}"));
        Err(Error::data(
            &self.config.root,
            format!("{ATTEMPTS} clips in a row could not be read{why}"),
        ))
    }

    fn path(&self, (clip, picture): Key) -> &Path {
        match (&self.clips[clip].kind, picture) {
            (Kind::Folder(files), Some(picture)) => &files[picture],
            _ => &self.clips[clip].path,
        }
    }

    fn is_broken(&self, key: Key) -> bool {
        lock(&self.broken).contains_key(&key)
    }

    fn leave_out(&self, key: Key, error: &Error) {
        if lock(&self.broken).insert(key, error.to_string()).is_none() {
            tracing::warn!("{} is left out: {error}", self.path(key).display());
        }
    }

    fn pair(&self, clip: usize, random: &mut Random) -> Result<Sample, Error> {
        let loaded = self.load(clip)?;
        let marks = self
            .landmarks
            .as_ref()
            .and_then(|all| all.of(&self.clips[clip].name));
        let count = loaded.count;
        let mut pair = [random.below(count), random.below(count)];
        let by_mouth = random.chance(self.recipe.mouth_pairs);
        if let (Some(marks), true) = (&marks, by_mouth) {
            let candidates: Vec<usize> = (0..CANDIDATES.min(count))
                .map(|_| random.below(count))
                .collect();
            let opening = |frame: &usize| marks.opening(frame * loaded.stride, self.recipe.lips);
            let widest = candidates
                .iter()
                .max_by(|a, b| opening(a).total_cmp(&opening(b)));
            let narrowest = candidates
                .iter()
                .min_by(|a, b| opening(a).total_cmp(&opening(b)));
            if let (Some(&wide), Some(&narrow)) = (widest, narrowest) {
                pair = [wide, narrow];
            }
        }
        pair.sort_unstable();
        if random.chance(self.config.augment.time_flip) {
            pair.reverse();
        }
        let variation = Variation::random(&self.config.augment, random);
        let [source, driving] = pair.map(|frame| self.frame(clip, &loaded, frame));
        let (source, driving) = (source?, driving?);
        let points = marks.map(|marks| {
            [source.0, driving.0].map(|frame| {
                variation.points(marks.at(frame * loaded.stride), &self.recipe.mirrored)
            })
        });
        Ok(Sample {
            source: variation.picture(&source.1, self.side),
            driving: variation.picture(&driving.1, self.side),
            marks: points,
        })
    }

    /// The frames of a clip; of a folder only how many there are.
    fn load(&self, clip: usize) -> Result<Arc<Frames>, Error> {
        if let Kind::Folder(files) = &self.clips[clip].kind {
            return Ok(Arc::new(Frames {
                bytes: Vec::new(),
                count: files.len(),
                stride: 1,
            }));
        }
        let key = (clip, None);
        if let Some(frames) = lock(&self.cache).get(key) {
            return Ok(frames);
        }
        let frames = Arc::new(data::read_all(&self.clips[clip], self.side as u32)?);
        lock(&self.cache).put(key, &frames);
        Ok(frames)
    }

    /// A frame of a clip with its number: where a picture of a folder cannot be read, the next one that can.
    fn frame(&self, clip: usize, loaded: &Frames, frame: usize) -> Result<(usize, Vec<u8>), Error> {
        let Kind::Folder(files) = &self.clips[clip].kind else {
            let size = 3 * self.side * self.side;
            return Ok((
                frame,
                loaded.bytes[frame * size..(frame + 1) * size].to_vec(),
            ));
        };
        let mut failed = None;
        for number in (frame..files.len()).chain(0..frame) {
            let key = (clip, Some(number));
            if let Some(frames) = lock(&self.cache).get(key) {
                return Ok((number, frames.bytes.clone()));
            }
            if self.is_broken(key) {
                continue;
            }
            match data::read_picture(&files[number], self.side as u32) {
                Ok(bytes) => {
                    let frames = Frames {
                        bytes: bytes.clone(),
                        count: 1,
                        stride: 1,
                    };
                    lock(&self.cache).put(key, &Arc::new(frames));
                    return Ok((number, bytes));
                }
                Err(error) => {
                    self.leave_out(key, &error);
                    failed = Some(error);
                }
            }
        }
        let none = || Error::data(&self.clips[clip].path, "none of its pictures can be read");
        Err(failed.unwrap_or_else(none))
    }

    /// Puts samples together; landmarks are there when the run has a file of them.
    ///
    /// # Errors
    /// When memory is short.
    pub fn batch(&self, samples: &[Sample], device: &Device) -> Result<Batch, Error> {
        let (b, side, n) = (samples.len(), self.side, self.marks());
        let pictures = |of: fn(&Sample) -> &Vec<f32>| {
            let size = 3 * side * side;
            let mut values = vec![0f32; b * size];
            let parts = values.par_chunks_mut(size.max(1));
            parts
                .zip(samples.par_iter())
                .for_each(|(to, sample)| to.copy_from_slice(of(sample)));
            Tensor::from_vec(values, (b, 3, side, side), device)
        };
        let marks = if n == 0 {
            None
        } else {
            let points = |which: usize| {
                let of = |sample: &Sample| match &sample.marks {
                    Some(marks) => marks[which].clone(),
                    None => vec![[0.0; 2]; n],
                };
                let values: Vec<f32> = samples.iter().flat_map(of).flatten().collect();
                Tensor::from_vec(values, (b, n, 2), device)
            };
            let known: Vec<f32> = samples
                .iter()
                .map(|s| f32::from(u8::from(s.marks.is_some())))
                .collect();
            Some(Marks {
                source: points(0)?,
                driving: points(1)?,
                known: Tensor::from_vec(known, (b, 1, 1), device)?.to_dtype(DType::F32)?,
            })
        };
        Ok(Batch {
            source: pictures(|s| &s.source)?,
            driving: pictures(|s| &s.driving)?,
            marks,
        })
    }
}

/// A mutex is poisoned by a panic that is reported anyway.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Frames in memory, the longest unused given up first.
#[derive(Debug)]
struct Cache {
    limit: u64,
    used: u64,
    clock: u64,
    entries: HashMap<Key, (u64, Arc<Frames>)>,
}

impl Cache {
    fn new(limit: u64) -> Self {
        Self {
            limit,
            used: 0,
            clock: 0,
            entries: HashMap::new(),
        }
    }

    fn get(&mut self, key: Key) -> Option<Arc<Frames>> {
        self.clock += 1;
        let (used, frames) = self.entries.get_mut(&key)?;
        *used = self.clock;
        Some(Arc::clone(frames))
    }

    fn put(&mut self, key: Key, frames: &Arc<Frames>) {
        let size = frames.bytes.len() as u64;
        if size > self.limit || self.entries.contains_key(&key) {
            return;
        }
        while self.used + size > self.limit {
            let oldest = self
                .entries
                .iter()
                .min_by_key(|(_, (used, _))| *used)
                .map(|(key, _)| *key);
            let Some((_, gone)) = oldest.and_then(|key| self.entries.remove(&key)) else {
                break;
            };
            self.used -= gone.bytes.len() as u64;
        }
        self.clock += 1;
        self.used += size;
        self.entries.insert(key, (self.clock, Arc::clone(frames)));
    }
}

/// Samples from one on, in their order, read ahead by threads.
#[derive(Debug)]
pub struct Loader {
    /// Worker w makes samples w, w + n, w + 2n and so on.
    lanes: Vec<Receiver<Result<Sample, Error>>>,
    next: usize,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Loader {
    /// Starts the workers; `number` gives the sample of each place from 0 on, so that ranks can share one
    /// order.
    ///
    /// # Errors
    /// When the system gives no threads.
    pub fn start(
        dataset: &Arc<Dataset>,
        ahead: usize,
        number: impl Fn(u64) -> u64 + Clone + Send + 'static,
    ) -> Result<Self, Error> {
        let workers = dataset.config.workers;
        let stop = Arc::new(AtomicBool::new(false));
        let mut loader = Self {
            lanes: Vec::with_capacity(workers),
            next: 0,
            stop: Arc::clone(&stop),
            threads: Vec::with_capacity(workers),
        };
        for worker in 0..workers {
            let (to, from) = sync_channel(ahead.div_ceil(workers).max(1));
            let (dataset, number) = (Arc::clone(dataset), number.clone());
            let stop = Arc::clone(&stop);
            let thread = thread::Builder::new()
                .name(format!("decode-{worker}"))
                .spawn(move || work(&dataset, worker, workers, number, &to, &stop))
                .map_err(Error::Threads)?;
            loader.lanes.push(from);
            loader.threads.push(thread);
        }
        Ok(loader)
    }

    /// The next samples.
    ///
    /// # Errors
    /// As [`Dataset::sample`].
    pub fn next(&mut self, count: usize) -> Result<Vec<Sample>, Error> {
        (0..count)
            .map(|_| {
                let lane = self.next % self.lanes.len();
                self.next += 1;
                let gone = |_| Error::Threads(std::io::Error::other("a reading thread ended"));
                self.lanes[lane].recv().map_err(gone)?
            })
            .collect()
    }
}

fn work(
    dataset: &Dataset,
    worker: usize,
    workers: usize,
    number: impl Fn(u64) -> u64,
    to: &SyncSender<Result<Sample, Error>>,
    stop: &AtomicBool,
) {
    for place in (worker as u64..).step_by(workers) {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let sample = dataset.sample(number(place));
        let ends = sample.is_err();
        if to.send(sample).is_err() || ends {
            return;
        }
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Workers that wait for room find nobody there.
        self.lanes.clear();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

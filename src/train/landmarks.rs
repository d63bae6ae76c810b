//! Landmarks of clips: for each a tensor (frames, n, 2) in -1..1 in one safetensors file, named as the clip.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};

use super::config::Recipe;
use super::data::Clip;
use super::error::Error;
use crate::checkpoint;

/// Landmarks of every clip.
#[derive(Debug)]
pub struct Landmarks {
    path: PathBuf,
    count: usize,
    clips: BTreeMap<String, Track>,
}

/// Landmarks of the frames of one clip.
#[derive(Debug)]
pub struct Track {
    frames: Vec<Vec<[f32; 2]>>,
}

impl Landmarks {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, or clips have different numbers of landmarks.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let wrong = |what: String| Error::Landmarks {
            path: path.to_owned(),
            what,
        };
        let file = checkpoint::open(path)?;
        let mut clips = BTreeMap::new();
        let mut count = 0;
        for (name, tensor) in &file.tensors {
            let (frames, n) = match tensor.dims() {
                [frames, n, 2] if *frames > 0 && *n > 0 => (*frames, *n),
                dims => return Err(wrong(format!("{name} is {dims:?}, not (frames, n, 2)"))),
            };
            if count != 0 && n != count {
                return Err(wrong(format!(
                    "{name} has {n} landmarks, others have {count}"
                )));
            }
            count = n;
            let values = tensor
                .to_dtype(DType::F32)
                .and_then(|t: Tensor| t.flatten_all()?.to_vec1::<f32>())?;
            if !values.iter().all(|v| v.is_finite()) {
                return Err(wrong(format!("{name} holds values that are no numbers")));
            }
            let frames = values
                .as_chunks::<2>()
                .0
                .chunks(n)
                .take(frames)
                .map(<[_]>::to_vec)
                .collect();
            clips.insert(name.clone(), Track { frames });
        }
        Ok(Self {
            path: path.to_owned(),
            count,
            clips,
        })
    }

    /// Landmarks of a frame.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Those of a clip.
    pub fn of(&self, clip: &str) -> Option<&Track> {
        self.clips.get(clip)
    }

    /// Whether they are of these clips and have the landmarks that a recipe names.
    ///
    /// # Errors
    /// When not.
    pub fn check(&self, clips: &[Clip], recipe: &Recipe) -> Result<(), Error> {
        let wrong = |what: String| Error::Landmarks {
            path: self.path.clone(),
            what,
        };
        let named = recipe.lips.iter().chain(&recipe.mouth).chain(&recipe.eyes);
        let named = named.chain(recipe.mirrored.iter().flatten()).max();
        if let Some(largest) = named.filter(|largest| **largest >= self.count) {
            return Err(wrong(format!(
                "the section mimic names landmark {largest}, but there are {} (from 0)",
                self.count
            )));
        }
        let known = clips
            .iter()
            .filter(|clip| self.of(&clip.name).is_some())
            .count();
        if known == 0 {
            let example = self.clips.keys().next().map_or("", String::as_str);
            return Err(wrong(format!(
                "none of the clips is in it: its names are such as '{example}'"
            )));
        }
        if known < clips.len() {
            tracing::warn!(
                "{} of {} clips have no landmarks",
                clips.len() - known,
                clips.len()
            );
        }
        Ok(())
    }
}

impl Track {
    /// Of a frame; of the last for those beyond it.
    pub fn at(&self, frame: usize) -> &[[f32; 2]] {
        &self.frames[frame.min(self.frames.len() - 1)]
    }

    /// How far apart the inner lips are.
    pub fn opening(&self, frame: usize, [upper, lower]: [usize; 2]) -> f32 {
        let points = self.at(frame);
        let [a, b] = [upper, lower].map(|i| points.get(i).copied().unwrap_or_default());
        (a[0] - b[0]).hypot(a[1] - b[1])
    }
}

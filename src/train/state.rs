//! Checkpoints of a run: one safetensors file with the weights under the names that every other command
//! reads, Adam's moments (`adam.first.NAME`, `adam.second.NAME`), the average of the weights
//! (`average.NAME`), and in its header the configuration and how far the run has come.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::adam::State;
use super::error::Error;
use crate::checkpoint;

/// How far a run has come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// Steps done, the skipped among them.
    pub step: u64,
    /// Steps whose losses or gradients were no numbers.
    pub skipped: u64,
    /// How often Adam has moved each variable.
    pub updates: BTreeMap<String, u64>,
}

/// Everything that a run needs to go on.
#[derive(Clone, Debug)]
pub struct Saved {
    /// Every variable.
    pub values: BTreeMap<String, Tensor>,
    /// The average of the weights, if one is kept.
    pub average: BTreeMap<String, Tensor>,
    /// Adam's moments.
    pub moments: BTreeMap<String, State>,
    /// How far.
    pub counters: Counters,
}

const FIRST: &str = "adam.first.";
const SECOND: &str = "adam.second.";
const AVERAGE: &str = "average.";

/// Writes a checkpoint; the one before stays until this is whole.
///
/// # Errors
/// When it cannot be written.
pub fn save(path: &Path, saved: &Saved, config_json: &str) -> Result<(), Error> {
    let mut tensors = saved.values.clone();
    for (name, state) in &saved.moments {
        tensors.insert(format!("{FIRST}{name}"), state.first.clone());
        tensors.insert(format!("{SECOND}{name}"), state.second.clone());
    }
    for (name, value) in &saved.average {
        tensors.insert(format!("{AVERAGE}{name}"), value.clone());
    }
    // A plain struct of numbers: nothing in it can fail to be written.
    let counters = serde_json::to_string(&saved.counters).unwrap_or_default();
    let texts = BTreeMap::from([
        ("config".to_owned(), config_json.to_owned()),
        ("training".to_owned(), counters),
    ]);
    Ok(checkpoint::save_everything(path, &tensors, &texts)?)
}

/// Reads a checkpoint of a run.
///
/// # Errors
/// When it cannot be read, or is a model without a run.
pub fn load(path: &Path) -> Result<Saved, Error> {
    let (tensors, texts) = checkpoint::open_everything(path)?;
    let text = texts.get("training").ok_or_else(|| {
        Error::data(
            path,
            "this is a model, not a checkpoint of a training: start from it with --load, or resume from state.safetensors",
        )
    })?;
    let counters: Counters = serde_json::from_str(text).map_err(|e| {
        Error::data(
            path,
            format!("its header does not say how far the training is: {e}"),
        )
    })?;
    let mut saved = Saved {
        values: BTreeMap::new(),
        average: BTreeMap::new(),
        moments: BTreeMap::new(),
        counters,
    };
    for (name, tensor) in &tensors {
        if let Some(name) = name.strip_prefix(AVERAGE) {
            saved.average.insert(name.to_owned(), tensor.clone());
        } else if let Some(name) = name.strip_prefix(FIRST) {
            let second = tensors.get(&format!("{SECOND}{name}"));
            let steps = saved.counters.updates.get(name);
            let (Some(second), Some(&steps)) = (second, steps) else {
                return Err(Error::data(
                    path,
                    format!("half of Adam's state of {name} is missing"),
                ));
            };
            let state = State {
                steps,
                first: tensor.clone(),
                second: second.clone(),
            };
            saved.moments.insert(name.to_owned(), state);
        } else if !name.starts_with(SECOND) {
            saved.values.insert(name.clone(), tensor.clone());
        }
    }
    Ok(saved)
}

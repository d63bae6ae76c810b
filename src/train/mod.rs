//! Training: models of one's own, by the First Order Motion Model's losses (paper section 3.3).
//!
//! ```text
//! clips --data, loader--> pairs --augment--> batches --learner--> losses, gradients --adam--> variables
//!                                                                     |                          |
//!                                          watch: log, TensorBoard, grid of pictures    state: checkpoints
//! ```
//!
//! [`trainer`] is the loop, [`learner`] one step of it. What a run does follows from its configuration and
//! seed alone: sample n is the same whoever reads it, sums have a fixed order, and a run that was
//! interrupted goes on as if it had not been.

pub mod adam;
pub mod augment;
pub mod compress;
pub mod config;
pub mod curves;
pub mod data;
pub mod distil;
pub mod error;
pub mod evaluate;
pub mod events;
pub mod grid;
pub mod landmarks;
pub mod learner;
pub mod loader;
pub mod losses;
pub mod metrics;
pub mod onnx;
pub mod prepare;
pub mod prune;
pub mod random;
pub mod ranks;
pub mod state;
pub mod trainer;
pub mod transform;

pub use config::TrainConfig;
pub use error::Error;
pub use ranks::Ranks;
pub use trainer::{Options, Progress, Trainer};

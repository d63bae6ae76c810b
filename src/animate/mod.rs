//! Animation: from driving frames to the motion of a photo.

pub mod motion;
pub mod pictures;

pub use motion::{MotionOptions, normalise, normalised_distance};

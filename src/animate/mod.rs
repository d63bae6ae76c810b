//! Animation: from driving frames to the motion of a photo.

mod animator;
pub mod load;
pub mod motion;
pub mod pictures;

pub use animator::{Animator, BestFrame};
pub use motion::{MotionOptions, normalise, normalised_distance};

//! Animation: from driving frames to the motion of a photo.

mod animator;
mod engine;
pub mod load;
pub mod motion;
mod on_card;
mod performer;
pub mod pictures;
mod smooth;
pub mod take;

pub use animator::{Animator, BestFrame};
pub(crate) use animator::{Direction, Lane, Lanes};
pub use engine::{Engine, Source};
pub use motion::{MotionOptions, normalise, normalised_distance};
pub use performer::{PerformOptions, Performer};
pub use smooth::Smoother;

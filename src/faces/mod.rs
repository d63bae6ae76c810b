//! Faces in a photo: which part of it each of them animates.
//!
//! A face box comes from a [`Detector`] or from `--face`; [`square_crop`] and [`paddlegan_crops`] put
//! the margin around it that the networks want, [`clip_crop`] checks a crop given as it is.
//!
//! [`Enhancer`] makes a generated face sharper.

mod crop;
mod detect;
mod enhance;
mod track;

pub use crop::{Error, clip_crop, middle, paddlegan_crops, square_crop};
pub use detect::{Detector, DetectorChoice, Error as DetectError, Face};
pub use enhance::{Carried, Enhancement, Enhancer, Error as EnhanceError, Restorer};
pub use track::{Tracked, Tracker};

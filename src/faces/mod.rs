//! Faces in a photo: which part of it each of them animates.
//!
//! A face box comes from a [`Detector`] or from `--face`; [`square_crop`] and [`paddlegan_crops`] put
//! the margin around it that the networks want, [`clip_crop`] checks a crop given as it is.
//!
//! Left out: enhancing a generated face, which goes into `faces/enhance.rs`.

mod crop;
mod detect;
mod track;

pub use crop::{Error, clip_crop, middle, paddlegan_crops, square_crop};
pub use detect::{Detector, DetectorChoice, Error as DetectError, Face};
pub use track::{Tracked, Tracker};

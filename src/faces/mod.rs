//! Faces in a photo: which part of it each of them animates.
//!
//! A face box comes from a detector or from `--face`; [`square_crop`] and [`paddlegan_crops`] put
//! the margin around it that the networks want, [`clip_crop`] checks a crop given as it is. All of
//! it is arithmetic on [`Rect`](crate::geometry::Rect)s: no picture is touched here.
//!
//! Left out: finding the faces. Detectors go into `faces/detect/`, one file each, behind one
//! function from a picture to boxes in the shape these crops take; enhancing a generated face goes
//! into `faces/enhance.rs`. Neither exists yet, so neither has a trait.

mod crop;

pub use crop::{Error, clip_crop, paddlegan_crops, square_crop};

//! mimic makes a photo move as you do.

pub mod frame;
pub mod geometry;
pub mod media;

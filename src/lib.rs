//! mimic makes a photo move as you do.

pub mod animate;
pub mod checkpoint;
pub mod frame;
pub mod geometry;
pub mod model;
pub mod ops;

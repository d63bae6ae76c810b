//! What candle lacks or does slowly.
//!
//! Every op has a plain reference. The ops of the candle networks take and give candle tensors:
//! [`grid_sample`], [`resample`], [`batch_norm`] and [`matrix`].

pub mod batch_norm;
pub mod grid_sample;
pub mod matrix;
pub mod resample;

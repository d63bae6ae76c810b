//! What candle lacks or does slowly.
//!
//! Two families. The ops of the candle networks take and give candle tensors and have gradients:
//! [`conv2d`], [`grid_sample`], [`resample`], [`batch_norm`] and [`matrix`]; [`fused`] has those of inference on a graphics card, which have none. The ops of the CPU engine work on the packed layout of
//! [`blocked`]: [`conv`] chooses between minimal filtering and direct sums, beside it [`depthwise`], [`thin`],
//! [`warp`] and [`activation`], on [`threads`] and the vector units of [`simd`].
//!
//! Every op has a plain reference, which its tests compare it with.

#![allow(
    clippy::needless_range_loop,
    reason = "several arrays of a register tile are walked by one index"
)]
#![allow(
    unsafe_code,
    reason = "kernels on raw pointers and vector units; each block says why it holds"
)]

pub mod activation;
pub mod batch_norm;
pub mod blocked;
#[cfg(feature = "cudnn")]
pub mod card;
pub mod conv;
pub mod conv2d;
pub mod depthwise;
mod direct;
pub mod doubling;
pub mod fused;
#[cfg(test)]
pub(crate) mod gradient;
pub mod grid_sample;
pub mod maps;
pub mod matrix;
pub mod max_pool;
mod packed;
#[cfg(test)]
pub(crate) mod reference;
pub mod resample;
pub mod simd;
pub mod thin;
pub mod threads;
mod unfold;
pub mod up_conv2d;
pub mod warp;
mod winograd;

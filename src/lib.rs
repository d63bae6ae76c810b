//! mimic makes a photo move as you do: the First Order Motion Model (Siarohin et al., NeurIPS 2019)
//! as PaddleGAN packages it, for one machine without a network.
//!
//! ```text
//! clip --media--> frames --model--> keypoints --animate--> motion --model--> predictions --gpu--> pictures --media--> file
//! ```
//!
//! From the top: [`cli`] reads the command line, [`pipeline`] runs the threads, [`animate`] and
//! [`faces`] know motion and crops, [`gpu`] puts predictions back into the photo, [`media`] reads and
//! writes pictures, [`model`] has the networks, [`checkpoint`] their weights, [`ops`] the kernels.
//! `ARCHITECTURE.md` has the rules.

pub mod animate;
pub mod checkpoint;
pub mod cli;
pub mod device;
pub mod faces;
pub mod frame;
pub mod geometry;
pub mod gpu;
pub mod media;
pub mod model;
pub mod ops;
pub mod pipeline;
pub mod settings;
pub mod train;
pub mod ui;

//! Pictures and video in and out: photos, driving clips, results.
//!
//! Photos and lossless frames go through the `image` crate, everything that moves through the `ffmpeg`
//! program over pipes: every codec it knows, and a hostile file can only crash a child process. Frames
//! stream: no part of this module holds a clip.
//!
//! - [`photo`]: a file to an upright, opaque picture.
//! - [`clip`]: the driving side, [`FrameSource`]: a video, a folder of pictures, a single picture.
//! - [`sink`]: the result side, [`FrameSink`]: mp4, webm, gif, numbered pictures, and where they go.
//! - [`camera`]: live pictures from a camera; [`pixels`] makes RGBA of what drivers give.
//! - [`record`]: what is shown live, to an mp4 with the microphone's sound.
//! - [`virtual_camera`]: what is shown live, as a camera for other programs.
//! - [`provenance`]: what a result says of itself; [`Signer`] signs it.
//! - [`ffmpeg`]: finding and running the program.

pub mod camera;
pub mod clip;
pub mod error;
pub mod ffmpeg;
pub mod photo;
pub mod pixels;
pub mod provenance;
pub mod record;
pub mod samples;
pub mod sink;
pub mod virtual_camera;

mod encode;
mod fit;
mod leftovers;
mod microphone;
mod pattern;
mod planes;
mod probe;
mod sequence;
mod sign;
mod stills;
mod video;

pub use clip::{ClipInfo, Fps, FrameSource, ReadOptions};
pub use error::Error;
pub use photo::open_photo;
pub use provenance::{Provenance, save_picture};
pub use sign::Signer;
pub use sink::{FrameSink, WriteOptions, resolve_output};
pub use stills::natural;

/// The most pixels a photo or a frame may have: 100 megapixels, 400 MB as RGBA.
///
/// A size is a number that a stranger wrote into a file: nothing is allocated before it has been held
/// against this.
pub const MAX_PIXELS: u64 = 100_000_000;

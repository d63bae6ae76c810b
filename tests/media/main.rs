//! Pictures and video in and out, with the real ffmpeg and files made on the spot.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod clips;
mod helpers;
mod photos;
mod provenance;
mod recordings;
mod sinks;
mod trouble;

//! Training: one step against the reference's record, runs that are interrupted, and bad input.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "shows the distances to the record")]

#[path = "../common/mod.rs"]
#[allow(dead_code, reason = "shared with tests that use more of it")]
mod common;

mod compress;
mod data;
mod evaluate;
mod runs;
mod step;

//! Models from a server of this test to a weights folder: whatever the server does, what is there in the end is the
//! model or nothing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod commands;
mod downloads;
mod places;
mod server;
mod setup;

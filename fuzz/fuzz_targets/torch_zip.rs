//! Zip checkpoints: the zip's structure. Checksums keep mutations out of the pickle inside, which is
//! the `pickle` target's.
#![no_main]

#[path = "common.rs"]
mod common;

libfuzzer_sys::fuzz_target!(|input: &[u8]| common::check(input));

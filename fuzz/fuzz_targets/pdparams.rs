//! Paddle checkpoints: a pickle with arrays inside.
#![no_main]

#[path = "common.rs"]
mod common;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    common::check(&[b"\x80\x04", input.get(2..).unwrap_or_default()].concat());
});

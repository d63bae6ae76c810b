//! Legacy checkpoints: the input as it is, and behind the three pickles that all of them start with.
#![no_main]

#[path = "common.rs"]
mod common;

/// Magic number, protocol version, and a little-endian machine.
const START: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\
    \x80\x02}X\x0d\x00\x00\x00little_endian\x88s.";

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    common::check(input);
    common::check(&[START, input].concat());
});

//! `paddle.save`: one pickle with the numbers inside.
//!
//! Protocol 4 holds each parameter as a pair of its name and an array, the older protocol 2 as a
//! plain array whose bytes are spelled as text. Both nest one dictionary for each network. Arrays
//! that paddle split in pieces (over 4 GiB) are left out.

use super::Fault;
use super::names::select;
use super::pickle;
use super::raw::Decoder;
use super::state_dict::entries;

/// Reads the tensors of a paddle checkpoint.
pub(super) fn read(file: &[u8]) -> Result<super::Loaded, Fault> {
    let pickle = pickle::parse(file)?;
    let no_storages = |_: &str| {
        Err(Fault::corrupt(
            "its tensors are in a storage that no paddle file has",
        ))
    };
    select(entries(&pickle)?, Decoder::new(file.len(), no_storages))
}

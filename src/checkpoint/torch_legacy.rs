//! `torch.save` before 1.6, the form of the published vox checkpoints.
//!
//! Five pickles in a row (a magic number, the protocol version, the machine's type sizes, the
//! object, the list of storage keys), then each storage in the list's order: its count of numbers
//! as 8 bytes and the numbers themselves. The tar files of torch before 0.1.10 are left out.

use std::collections::BTreeMap;

use super::Fault;
use super::names::select;
use super::pickle::{self, Node, Pickle};
use super::raw::Decoder;
use super::reader::Reader;
use super::state_dict::entries;

/// The number that the first pickle holds.
const MAGIC: i128 = 0x1950_a86a_20f9_469c_fc6c;
const PROTOCOL: i128 = 1001;

/// Whether a file that starts as a pickle does starts as these do.
pub(super) fn detect(file: &[u8]) -> bool {
    let magic = &MAGIC.to_le_bytes()[..10];
    file[..file.len().min(32)]
        .windows(magic.len())
        .any(|window| window == magic)
}

/// Reads the tensors of a legacy checkpoint.
pub(super) fn read(file: &[u8]) -> Result<super::Loaded, Fault> {
    let mut rest = Reader::new(file);
    let magic = next(file, &mut rest)?;
    let version = next(file, &mut rest)?;
    for (pickle, expected) in [(magic, MAGIC), (version, PROTOCOL)] {
        if !matches!(pickle.node(pickle.root()), Node::Int(value) if *value == expected) {
            return Err(Fault::corrupt(
                "its magic number or protocol version is not torch's",
            ));
        }
    }
    let machine = next(file, &mut rest)?;
    if !is_little_endian(&machine) {
        return Err(Fault::corrupt(
            "it was not saved on a little-endian machine",
        ));
    }
    let object = next(file, &mut rest)?;
    let keys = next(file, &mut rest)?;
    let storages = storages(&object, &keys, rest)?;
    let storage = |key: &str| {
        storages
            .get(key)
            .copied()
            .ok_or_else(|| Fault::corrupt(format!("its storage {key:?} is missing")))
    };
    select(entries(&object)?, Decoder::new(file.len(), storage))
}

/// Parses the pickle at the cursor and moves behind it.
fn next<'a>(file: &'a [u8], rest: &mut Reader<'a>) -> Result<Pickle<'a>, Fault> {
    let pickle = pickle::parse(&file[rest.position()..])?;
    rest.take(pickle.len)?;
    Ok(pickle)
}

fn is_little_endian(machine: &Pickle<'_>) -> bool {
    let Node::Dict(facts) = machine.node(machine.root()) else {
        return false;
    };
    facts.iter().any(|&(key, value)| {
        matches!(machine.node(key), Node::Text("little_endian"))
            && matches!(machine.node(value), Node::Bool(true))
    })
}

/// The storages' bytes by key, cut from what follows the pickles.
fn storages<'a>(
    object: &Pickle<'a>,
    keys: &Pickle<'a>,
    mut rest: Reader<'a>,
) -> Result<BTreeMap<&'a str, &'a [u8]>, Fault> {
    let mut types = BTreeMap::new();
    for storage in object.storages() {
        let kind = (storage.dtype.size(), storage.len);
        if *types.entry(storage.key).or_insert(kind) != kind {
            return Err(Fault::corrupt(format!(
                "its storage {:?} has two types",
                storage.key
            )));
        }
    }
    let Node::List(keys_list) = keys.node(keys.root()) else {
        return Err(Fault::corrupt("its list of storages is missing"));
    };
    let mut storages = BTreeMap::new();
    for &key in keys_list {
        let &Node::Text(key) = keys.node(key) else {
            return Err(Fault::corrupt("its list of storages is damaged"));
        };
        let Some(&(size, len)) = types.get(key) else {
            return Err(Fault::corrupt(format!(
                "its storage {key:?} belongs to no tensor"
            )));
        };
        if rest.len64()? != len {
            return Err(Fault::corrupt(format!(
                "its storage {key:?} has two lengths"
            )));
        }
        let bytes = rest.take(len.checked_mul(size).ok_or(Fault::Truncated)?)?;
        if storages.insert(key, bytes).is_some() {
            return Err(Fault::corrupt(format!("it has two storages named {key:?}")));
        }
    }
    Ok(storages)
}

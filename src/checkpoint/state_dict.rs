//! From the graph of a pickle to a flat list of named tensors.
//!
//! Checkpoints nest dictionaries: networks, then tensors, and beside them optimisers and counters.
//! A tensor is a torch tensor, a numpy array, or paddle's pair of a parameter's name and its array.

use super::Fault;
use super::pickle::{Id, Node, Pickle};
use super::raw::{Data, RawTensor, fortran_strides};

/// Deepest nesting of dictionaries; torch's optimisers need three.
const MAX_DEPTH: usize = 8;
/// Most tensors and other values in one file; the published checkpoints hold about two thousand.
const MAX_ENTRIES: usize = 1 << 16;
/// Longest name with the dots between its parts.
const MAX_NAME: usize = 512;

/// A value with its path, `.` between the keys; `None` for what is no tensor.
pub(super) type Entry<'a> = (String, Option<RawTensor<'a>>);

/// Everything a pickled dictionary holds, in file order.
pub(super) fn entries<'a>(pickle: &Pickle<'a>) -> Result<Vec<Entry<'a>>, Fault> {
    let Node::Dict(_) = pickle.node(pickle.root()) else {
        return Err(Fault::corrupt("it holds no dictionary of tensors"));
    };
    let mut entries = Vec::new();
    walk(pickle, pickle.root(), "", 0, &mut entries)?;
    Ok(entries)
}

/// Recursion ends at [`MAX_DEPTH`], also in a dictionary that contains itself.
fn walk<'a>(
    pickle: &Pickle<'a>,
    dict: Id,
    path: &str,
    depth: usize,
    entries: &mut Vec<Entry<'a>>,
) -> Result<(), Fault> {
    if depth > MAX_DEPTH {
        return Err(Fault::Limit(format!(
            "dictionaries nested over {MAX_DEPTH} deep"
        )));
    }
    let Node::Dict(pairs) = pickle.node(dict) else {
        return Ok(());
    };
    if pairs.is_empty() {
        count(entries, path.to_owned(), None)?;
    }
    for &(key, value) in pairs {
        let key = match pickle.node(key) {
            Node::Text(text) => (*text).to_owned(),
            // Optimisers number their parameters.
            Node::Int(number) => number.to_string(),
            _ => return Err(Fault::corrupt("a name in it is no text")),
        };
        if path.len() + key.len() >= MAX_NAME {
            return Err(Fault::Limit(format!(
                "a tensor's name of {} bytes",
                path.len() + key.len()
            )));
        }
        let name = if path.is_empty() {
            key
        } else {
            format!("{path}.{key}")
        };
        if let Node::Dict(_) = pickle.node(value) {
            walk(pickle, value, &name, depth + 1, entries)?;
        } else {
            let tensor = tensor(pickle, value, &name)?;
            count(entries, name, tensor)?;
        }
    }
    Ok(())
}

fn count<'a>(
    entries: &mut Vec<Entry<'a>>,
    name: String,
    tensor: Option<RawTensor<'a>>,
) -> Result<(), Fault> {
    if entries.len() == MAX_ENTRIES {
        return Err(Fault::Limit(format!("more than {MAX_ENTRIES} values")));
    }
    entries.push((name, tensor));
    Ok(())
}

/// The tensor that a value is, if it is one.
fn tensor<'a>(pickle: &Pickle<'a>, value: Id, name: &str) -> Result<Option<RawTensor<'a>>, Fault> {
    let array = match pickle.node(value) {
        Node::Tensor(tensor) => {
            let storage = tensor.storage;
            return Ok(Some(RawTensor {
                dtype: storage.dtype,
                big_endian: false,
                shape: tensor.shape.clone(),
                strides: Some(tensor.strides.clone()),
                offset: tensor.offset,
                data: Data::Storage {
                    key: storage.key,
                    len: storage.len,
                    view: storage.view,
                },
            }));
        }
        Node::Array(array) => array,
        Node::Tuple(pair) => match pair[..] {
            [parameter, array] => match (pickle.node(parameter), pickle.node(array)) {
                (Node::Text(_), Node::Array(array)) => array,
                _ => return Ok(None),
            },
            _ => return Ok(None),
        },
        _ => return Ok(None),
    };
    let data = match array.data.map(|data| pickle.node(data)) {
        Some(Node::Bytes(bytes)) => Data::Bytes(bytes),
        Some(Node::Latin1(text)) => Data::Latin1(text),
        // A byte string of Python 2 that happens to be valid text.
        Some(Node::Text(text)) => Data::Bytes(text.as_bytes()),
        _ => return Err(Fault::corrupt(format!("the array {name} has no data"))),
    };
    let strides = if array.fortran {
        let too_large = || Fault::Limit(format!("the tensor {name} of shape {:?}", array.shape));
        Some(fortran_strides(&array.shape).ok_or_else(too_large)?)
    } else {
        None
    };
    Ok(Some(RawTensor {
        dtype: array.dtype,
        big_endian: array.big_endian,
        shape: array.shape.clone(),
        strides,
        offset: 0,
        data,
    }))
}

//! safetensors: a JSON header and the numbers; read in any shape, written in mimic's lean form.
//!
//! The lean form is one type for all tensors (f16 or f32), names in order, and two texts in the
//! header's metadata: `config`, the model's configuration as JSON, and `name`.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use candle_core::Tensor;
use half::f16;
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use serde_json::{Map, Value, json};

use super::names::select;
use super::raw::{DType, Data, Decoder, RawTensor};
use super::state_dict::Entry;
use super::{Error, Fault, Loaded};

/// Longest header; those of the published models are under 100 KB.
const MAX_HEADER: u64 = 8 << 20;

/// Whether a file starts with a header's length and a header.
pub(super) fn detect(file: &[u8]) -> bool {
    file.get(8) == Some(&b'{')
}

/// A safetensors file's tensors and the texts `config` and `name` of its metadata.
pub(super) struct Contents {
    pub(super) loaded: Loaded,
    pub(super) config: Option<String>,
    pub(super) name: Option<String>,
}

/// Every tensor of a file by its name, and the texts of its header.
pub type Everything = (BTreeMap<String, Tensor>, BTreeMap<String, String>);

/// Reads the tensors of the networks and the metadata.
pub(super) fn read(file: &[u8]) -> Result<Contents, Fault> {
    let (entries, texts) = entries(file)?;
    let loaded = select(entries, decoder(file))?;
    let text = |key| texts.get(key).cloned();
    Ok(Contents {
        loaded,
        config: text("config"),
        name: text("name"),
    })
}

/// Reads everything.
pub(super) fn read_everything(file: &[u8]) -> Result<Everything, Fault> {
    let (entries, texts) = entries(file)?;
    let mut decoder = decoder(file);
    let mut tensors = BTreeMap::new();
    for (name, raw) in entries {
        if let Some(raw) = raw {
            let tensor = decoder.tensor(&name, &raw)?;
            tensors.insert(name, tensor);
        }
    }
    Ok((tensors, texts))
}

fn decoder<'a>(file: &[u8]) -> Decoder<impl FnMut(&str) -> Result<&'a [u8], Fault>> {
    Decoder::new(file.len(), |_: &str| {
        Err(Fault::corrupt("a storage in a safetensors file"))
    })
}

/// A file's tensors as they lie in it, and the texts of its metadata.
fn entries(file: &[u8]) -> Result<(Vec<Entry<'_>>, BTreeMap<String, String>), Fault> {
    let header = file
        .first_chunk()
        .map(|&len| u64::from_le_bytes(len))
        .ok_or(Fault::Truncated)?;
    if header > MAX_HEADER {
        return Err(Fault::Limit(format!("a header of {header} bytes")));
    }
    let (header, metadata) = SafeTensors::read_metadata(file).map_err(fault)?;
    // That has checked the offsets below against the file's length.
    let data = &file[size_of::<u64>() + header..];
    let entries = metadata
        .tensors()
        .into_iter()
        .map(|(name, info)| {
            let (start, end) = info.data_offsets;
            let raw = RawTensor {
                dtype: dtype(info.dtype),
                big_endian: false,
                shape: info.shape.clone(),
                strides: None,
                offset: 0,
                data: Data::Bytes(&data[start..end]),
            };
            (name, Some(raw))
        })
        .collect();
    let texts = metadata.metadata().iter().flatten();
    let texts = texts
        .map(|(key, text)| (key.clone(), text.clone()))
        .collect();
    Ok((entries, texts))
}

fn dtype(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::Bf16,
        Dtype::F32 => DType::F32,
        Dtype::F64 => DType::F64,
        Dtype::I64 | Dtype::U64 => DType::Other("64-bit integers", 8),
        Dtype::I32 | Dtype::U32 => DType::Other("32-bit integers", 4),
        Dtype::I16 | Dtype::U16 => DType::Other("16-bit integers", 2),
        Dtype::I8 | Dtype::U8 => DType::Other("8-bit integers", 1),
        Dtype::BOOL => DType::Other("booleans", 1),
        _ => DType::Other("numbers of a rare type", 1),
    }
}

fn fault(error: SafeTensorError) -> Fault {
    match error {
        SafeTensorError::HeaderTooSmall | SafeTensorError::InvalidHeaderLength => Fault::Truncated,
        SafeTensorError::MetadataIncompleteBuffer => {
            Fault::corrupt("its header and its length disagree, it may be cut short")
        }
        SafeTensorError::InvalidHeaderDeserialization(e) => {
            Fault::corrupt(format!("its header is no list of tensors: {e}"))
        }
        other => Fault::corrupt(other.to_string()),
    }
}

/// Writes tensors in the lean form, in f16 when `half` and in f32 otherwise.
///
/// `config_json` is the model's configuration as JSON and `name` what to call the model; both go
/// into the header. The same tensors give the same bytes. The file appears under its name when it
/// is whole, and a file that was there is replaced only then.
///
/// # Errors
/// [`Error::Write`] when the file cannot be written, [`Error::NotFinite`] for a weight that is not
/// a number, [`Error::HalfRange`] for one that f16 cannot hold.
pub fn save_lean(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    config_json: &str,
    name: &str,
    half: bool,
) -> Result<(), Error> {
    save(
        path,
        tensors,
        &json!({ "config": config_json, "name": name }),
        half,
    )
}

/// Writes tensors in f32 with texts in the header: a training that is to go on. As [`save_lean`].
///
/// # Errors
/// As [`save_lean`].
pub fn save_everything(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    texts: &BTreeMap<String, String>,
) -> Result<(), Error> {
    save(path, tensors, &json!(texts), false)
}

fn save(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &Value,
    half: bool,
) -> Result<(), Error> {
    let what = path.display().to_string();
    let mut header = Map::new();
    header.insert("__metadata__".into(), metadata.clone());
    let size = if half { 2 } else { 4 };
    let mut end = 0;
    for (name, tensor) in tensors {
        let start = end;
        end += tensor.elem_count() * size;
        let dtype = if half { "F16" } else { "F32" };
        let info = json!({ "dtype": dtype, "shape": tensor.dims(), "data_offsets": [start, end] });
        header.insert(name.clone(), info);
    }
    let mut header = Value::Object(header).to_string();
    // Tensors start at a multiple of 8 bytes, so that readers may map them.
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }

    let write = |source| Error::Write {
        what: what.clone(),
        source,
    };
    let mut file = temporary_beside(path).map_err(write)?;
    let mut out = io::BufWriter::with_capacity(1 << 20, file.as_file_mut());
    out.write_all(&(header.len() as u64).to_le_bytes())
        .map_err(write)?;
    out.write_all(header.as_bytes()).map_err(write)?;
    for (name, tensor) in tensors {
        let bytes = lean_bytes(tensor, name, &what, half)?;
        out.write_all(&bytes).map_err(write)?;
    }
    out.flush().map_err(write)?;
    drop(out);
    // A full disk may say so only here.
    file.as_file().sync_all().map_err(write)?;
    file.persist(path).map_err(|e| write(e.error))?;
    Ok(())
}

/// A tensor's numbers in the lean type, row by row.
fn lean_bytes(tensor: &Tensor, name: &str, what: &str, half: bool) -> Result<Vec<u8>, Error> {
    let values = super::values(tensor).map_err(|e| Error::Write {
        what: what.to_owned(),
        source: io::Error::other(e),
    })?;
    if values.iter().any(|value| !value.is_finite()) {
        return Err(Error::NotFinite {
            what: what.to_owned(),
            name: name.to_owned(),
        });
    }
    if !half {
        return Ok(values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect());
    }
    let halves: Vec<f16> = values.iter().map(|&value| f16::from_f32(value)).collect();
    if halves.iter().any(|value| !value.is_finite()) {
        return Err(Error::HalfRange {
            what: what.to_owned(),
            name: name.to_owned(),
        });
    }
    Ok(halves
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect())
}

/// A temporary file in the directory of `path`, readable by whom the user's other files are.
pub(crate) fn temporary_beside(path: &Path) -> io::Result<tempfile::NamedTempFile> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".mimic-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(directory)
}

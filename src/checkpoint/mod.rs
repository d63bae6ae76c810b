//! Checkpoints: bytes to named tensors, for every form that the First Order Motion Model is
//! published in.
//!
//! | format | who writes it | where it is read |
//! |---|---|---|
//! | safetensors | mimic itself, converters | `safetensors.rs` |
//! | zip | `torch.save` since 1.6 | `torch_zip.rs` |
//! | legacy | `torch.save` before 1.6: the published `vox-cpk.pth.tar` | `torch_legacy.rs` |
//! | pdparams | `paddle.save`: PaddleGAN | `pdparams.rs` |
//!
//! [`open`] tells them apart by content, not by name. The last three are pickles; they are parsed by
//! an allow-list (`pickle.rs`), never executed. A file is not trusted: sizes are checked before
//! anything is allocated, memory is bounded by a small multiple of the file's size, and whatever is
//! wrong gives one [`Error`] and no panic.
//!
//! ```no_run
//! # use std::{collections::BTreeMap, path::Path};
//! # fn expected() -> BTreeMap<String, Vec<usize>> { BTreeMap::new() }
//! use mimic::checkpoint;
//!
//! let weights = checkpoint::open(Path::new("vox-cpk.pth.tar"))?;
//! checkpoint::check(&weights, &expected())?;
//! checkpoint::check_values(&weights)?;
//! let config = weights.config.as_deref().unwrap_or("{}");
//! checkpoint::save_lean(Path::new("vox.safetensors"), &weights.tensors, config, "vox", true)?;
//! # Ok::<(), checkpoint::Error>(())
//! ```
//!
//! Published models are listed in [`manifest`], kept in the weights folder by [`store`] and come there by
//! [`download`].
//!
//! Left out: anything about networks beyond the names of their tensors and the configuration they go with.

pub mod download;
mod error;
mod globals;
pub mod manifest;
mod names;
mod pdparams;
mod pickle;
mod raw;
mod reader;
mod safetensors;
mod state_dict;
pub mod store;
mod torch_legacy;
mod torch_zip;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::ops::Deref;
use std::path::Path;

use candle_core::{DType, Tensor};

use error::Fault;
pub use error::{Error, Mismatch};
pub(crate) use safetensors::temporary_beside;
pub use safetensors::{Everything, save_everything, save_lean};
pub use store::find;

/// Tensors by name, and how many entries of the file were left behind.
type Loaded = (BTreeMap<String, Tensor>, usize);

/// The weights of a model.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Dense CPU tensors in their stored type: f16, bf16 or f32 (f64 becomes f32). Names are
    /// PyTorch's: `generator.…` and `kp_detector.…`, batch-norm statistics `running_mean` and
    /// `running_var`, convolutions (out, in, height, width).
    pub tensors: BTreeMap<String, Tensor>,
    /// The model's configuration as JSON, when the file brings one (the lean form does).
    pub config: Option<String>,
    /// The model's name, when the file brings one.
    pub name: Option<String>,
    /// What the file was.
    pub format: Format,
    /// Entries left behind: discriminators, optimiser states, epochs, counters.
    pub skipped: usize,
    /// What was opened, for messages: the path, or what [`from_bytes`] was told.
    pub what: String,
}

/// The forms a checkpoint comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// safetensors.
    Safetensors,
    /// `torch.save` since 1.6.
    TorchZip,
    /// `torch.save` before 1.6.
    TorchLegacy,
    /// `paddle.save`, both layouts.
    Pdparams,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Safetensors => "safetensors",
            Self::TorchZip => "PyTorch (zip)",
            Self::TorchLegacy => "PyTorch (before 1.6)",
            Self::Pdparams => "Paddle",
        })
    }
}

/// Opens a checkpoint of any format.
///
/// # Errors
/// When the file cannot be read, is none of the formats, is damaged, or is hostile.
pub fn open(path: &Path) -> Result<Checkpoint, Error> {
    let what = path.display().to_string();
    let read = |source| Error::Read {
        what: what.clone(),
        source,
    };
    let metadata = fs::metadata(path).map_err(read)?;
    // A pipe or a device has no length to check against.
    if !metadata.is_file() {
        return Err(Error::NotAFile { what });
    }
    if metadata.len() == 0 {
        return Err(Error::Empty { what });
    }
    let bytes = Contents::of(path).map_err(read)?;
    from_bytes(&bytes, &what)
}

/// Opens a safetensors file whole: every tensor under its name as it is, and the texts of its header. What
/// [`save_everything`] writes.
///
/// # Errors
/// When the file cannot be read or is no sound safetensors file.
pub fn open_everything(path: &Path) -> Result<Everything, Error> {
    let what = path.display().to_string();
    let read = |source| Error::Read {
        what: what.clone(),
        source,
    };
    if !fs::metadata(path).map_err(read)?.is_file() {
        return Err(Error::NotAFile { what });
    }
    let bytes = Contents::of(path).map_err(read)?;
    if !safetensors::detect(&bytes) {
        return Err(Error::unrecognised(&bytes, what));
    }
    safetensors::read_everything(&bytes)
        .map_err(|fault| Error::new(fault, what, Format::Safetensors))
}

/// Reads a checkpoint of any format from memory; `what` names it in messages.
///
/// # Errors
/// When the bytes are none of the formats, damaged, or hostile.
pub fn from_bytes(bytes: &[u8], what: &str) -> Result<Checkpoint, Error> {
    let what = what.to_owned();
    let Some(format) = detect(bytes) else {
        return Err(Error::unrecognised(bytes, what));
    };
    let (mut config, mut name) = (None, None);
    let loaded = match format {
        Format::Safetensors => safetensors::read(bytes).map(|contents| {
            (config, name) = (contents.config, contents.name);
            contents.loaded
        }),
        Format::TorchZip => torch_zip::read(bytes),
        Format::TorchLegacy => torch_legacy::read(bytes),
        Format::Pdparams => pdparams::read(bytes),
    };
    let (tensors, skipped) = loaded.map_err(|fault| Error::new(fault, what.clone(), format))?;
    if tensors.is_empty() {
        return Err(Error::NoTensors { what });
    }
    Ok(Checkpoint {
        tensors,
        config,
        name,
        format,
        skipped,
        what,
    })
}

/// Name of the model in the binary.
pub const EMBEDDED: &str = "mimic-small";

/// Size of the model in the binary.
pub const EMBEDDED_BYTES: u64 = MIMIC_SMALL.len() as u64;

const MIMIC_SMALL: &[u8] = include_bytes!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/weights/mimic-small.safetensors"
));

/// The model that is built into the program: `mimic-small`, for faces at 256x256.
///
/// # Errors
/// None in a program that was built from sound sources.
pub fn embedded() -> Result<Checkpoint, Error> {
    from_bytes(MIMIC_SMALL, "the embedded model")
}

/// The face detector that is built into the program: `mimic-face`.
///
/// # Errors
/// None in a program that was built from sound sources.
pub fn embedded_face_detector() -> Result<Checkpoint, Error> {
    const MIMIC_FACE: &[u8] = include_bytes!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/weights/mimic-face.safetensors"
    ));
    from_bytes(MIMIC_FACE, "the embedded face detector")
}

/// Compares a checkpoint with the tensors that a model needs, by name and shape, both ways.
///
/// The Gaussian of the anti-aliased down-sampling (`down.weight`) is a constant that networks
/// compute: it may be there or not.
///
/// # Errors
/// [`Error::Mismatch`] with every missing and extra tensor and every one of another shape.
pub fn check(
    checkpoint: &Checkpoint,
    expected: &BTreeMap<String, Vec<usize>>,
) -> Result<(), Error> {
    let mut mismatch = Mismatch::default();
    for (name, shape) in expected
        .iter()
        .filter(|(name, _)| !names::is_constant(name))
    {
        match checkpoint.tensors.get(name) {
            None => mismatch.missing.push((name.clone(), shape.clone())),
            Some(tensor) if tensor.dims() != shape.as_slice() => {
                let found = tensor.dims().to_vec();
                mismatch
                    .wrong_shape
                    .push((name.clone(), found, shape.clone()));
            }
            Some(_) => {}
        }
    }
    mismatch.extra = checkpoint
        .tensors
        .keys()
        .filter(|name| !names::is_constant(name) && !expected.contains_key(*name))
        .cloned()
        .collect();
    if mismatch == Mismatch::default() {
        return Ok(());
    }
    Err(Error::Mismatch {
        what: checkpoint.what.clone(),
        mismatch: Box::new(mismatch),
    })
}

/// Looks for weights that no sound training leaves: values that are no numbers, and variances below
/// zero, which become none.
///
/// # Errors
/// [`Error::NotFinite`] or [`Error::NegativeVariance`] naming the first such tensor.
pub fn check_values(checkpoint: &Checkpoint) -> Result<(), Error> {
    for (name, tensor) in &checkpoint.tensors {
        // Every tensor was built on the CPU from plain numbers, so this reads without failing.
        let values = values(tensor).unwrap_or_else(|_| vec![f32::NAN]);
        let (what, name) = (checkpoint.what.clone(), name.clone());
        if !values.iter().all(|v| v.is_finite()) {
            return Err(Error::NotFinite { what, name });
        }
        if name.ends_with(".running_var") && values.iter().any(|&v| v < 0.0) {
            return Err(Error::NegativeVariance { what, name });
        }
    }
    Ok(())
}

/// A tensor's numbers as f32, row by row.
fn values(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

/// What a file is, by its first bytes.
fn detect(bytes: &[u8]) -> Option<Format> {
    if bytes.starts_with(torch_zip::MAGIC) {
        Some(Format::TorchZip)
    } else if let [0x80, 2..=5, ..] = bytes {
        let legacy = torch_legacy::detect(bytes);
        Some(if legacy {
            Format::TorchLegacy
        } else {
            Format::Pdparams
        })
    } else if safetensors::detect(bytes) {
        Some(Format::Safetensors)
    } else {
        None
    }
}

/// A file's bytes: mapped, or read where the file system cannot map.
enum Contents {
    Mapped(memmap2::Mmap),
    Read(Vec<u8>),
}

impl Contents {
    fn of(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        #[allow(
            unsafe_code,
            reason = "weights are up to 750 MB, of which a third is copied"
        )]
        // SAFETY: a map is sound while nobody changes the file. No program can enforce that for its
        // input, so the map lives only within `open`, which copies out what it keeps: the time in
        // which another program could do harm is the time of the copy. Sizes are checked against
        // the map's length, never against what the file claims.
        let map = unsafe { memmap2::Mmap::map(&file) };
        match map {
            Ok(map) => Ok(Self::Mapped(map)),
            Err(_) => fs::read(path).map(Self::Read),
        }
    }
}

impl Deref for Contents {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Read(bytes) => bytes,
        }
    }
}

//! A published model from its mirror, or from a file that somebody has, into the weights folder: fetched, checked,
//! converted once to the lean form, remembered.

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::animate::load::{self, ConfigSource};
use crate::checkpoint::download::{self, Patience};
use crate::checkpoint::manifest::{Kind, Model};
use crate::checkpoint::store::{self, Progress, Receipt, Step, Store, Tell};
use crate::checkpoint::{self, Checkpoint};
use crate::model::S3fd;

/// Files that are looked at in a folder of copies.
const MOST_FILES: usize = 10_000;

/// How a model is fetched.
#[derive(Clone, Debug, Default)]
pub struct Fetch {
    /// Take it from this folder, without the net.
    pub from: Option<PathBuf>,
    /// Keep the publisher's file beside the lean form.
    pub keep: bool,
    /// How long servers are waited for.
    pub patience: Patience,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// The lean form.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Size of the publisher's file; none when the model was here already.
    pub from_bytes: Option<u64>,
}

/// Why a model is not here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder, the net, or another file than expected.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The file came and is no such model.
    #[error("{name} came, and cannot be used: {source}")]
    Unusable {
        /// The model.
        name: String,
        /// What is wrong.
        source: Box<load::Error>,
    },
    /// A file that is no model of the manifest.
    #[error(
        "{path} is none of the files that mimic knows by their hash: say which model it is with --as NAME, or write it where you like with -o FILE.safetensors"
    )]
    Unrecognised {
        /// The file.
        path: PathBuf,
    },
}

/// Fetches a model, unless it is here.
///
/// # Errors
/// When it cannot be had, is not what it should be, or cannot be written; [`store::Error::Cancelled`].
pub fn fetch(
    store: &Store,
    name: &str,
    how: &Fetch,
    tell: &mut Tell<'_>,
) -> Result<Fetched, Error> {
    let model = store.model(name)?;
    let _lock = store.lock(model, tell)?;
    // Another process may have fetched it meanwhile.
    if store.has(model) {
        let path = store.path(model);
        return Ok(Fetched {
            bytes: size(&path),
            path,
            from_bytes: None,
        });
    }
    match &how.from {
        Some(folder) => {
            let (file, hash) = find_in(store, model, folder, tell)?;
            install(store, model, &file, hash, tell)
        }
        None => {
            let (file, hash) = download::original(store, model, &how.patience, tell)?;
            let installed = install(store, model, &file, hash, tell);
            // Bytes of an unknown hash that are no such model are not worth keeping.
            let useless = installed.is_err() && !model.has_hash();
            if useless || (installed.is_ok() && !how.keep) {
                discard(&file);
            }
            installed
        }
    }
}

/// Takes a file that somebody has for a model: the one that its hash says, or the one that is named.
///
/// # Errors
/// As [`fetch`]; [`Error::Unrecognised`].
pub fn import(
    store: &Store,
    file: &Path,
    name: Option<&str>,
    tell: &mut Tell<'_>,
) -> Result<(String, Fetched), Error> {
    let model = match name {
        Some(name) => store.model(name)?,
        None => store
            .recognise(file, tell)?
            .ok_or_else(|| Error::Unrecognised {
                path: file.to_owned(),
            })?,
    };
    let _lock = store.lock(model, tell)?;
    let hash = store.check(model, file, tell)?;
    Ok((model.name.clone(), install(store, model, file, hash, tell)?))
}

/// The file of a folder that is a model: by the publisher's name, else any of a fitting size, by its hash.
fn find_in(
    store: &Store,
    model: &Model,
    folder: &Path,
    tell: &mut Tell<'_>,
) -> Result<(PathBuf, String), store::Error> {
    let named = folder.join(&model.file);
    let mut files = Vec::new();
    let entries = fs::read_dir(folder).map_err(|source| store::Error::Read {
        path: folder.to_owned(),
        source,
    })?;
    for entry in entries.flatten().take(MOST_FILES) {
        let path = entry.path();
        let fits = path.is_file() && model.sizes().contains(&size(&path));
        // Without a hash only the name says what a file is.
        if fits && path != named && model.has_hash() {
            files.push(path);
        }
    }
    files.sort();
    let mut refused = None;
    for file in named.is_file().then_some(named).into_iter().chain(files) {
        match store.check(model, &file, tell) {
            Ok(hash) => return Ok((file, hash)),
            Err(store::Error::NotThis { .. }) => {}
            Err(error @ store::Error::Changed { .. }) => refused = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(refused.unwrap_or_else(|| store::Error::NotIn {
        folder: folder.to_owned(),
        name: model.name.clone(),
        file: model.file.clone(),
    }))
}

/// Writes the lean form of a checked file, and remembers it.
fn install(
    store: &Store,
    model: &Model,
    file: &Path,
    sha256: String,
    tell: &mut Tell<'_>,
) -> Result<Fetched, Error> {
    if tell(&Progress::of(Step::Converting)) == ControlFlow::Break(()) {
        return Err(store::Error::Cancelled.into());
    }
    let unusable = |source: load::Error| match &source {
        load::Error::Checkpoint(checkpoint::Error::Write { source, .. })
            if source.kind() == io::ErrorKind::StorageFull =>
        {
            Error::Store(store::Error::Full {
                path: store.folder().to_owned(),
                needed: 1 + size(file) / 2_000_000,
            })
        }
        _ => Error::Unusable {
            name: model.name.clone(),
            source: Box::new(source),
        },
    };
    let (checkpoint, config) = open(model, file).map_err(unusable)?;
    let path = store.path(model);
    let save = |half| {
        let tensors = &checkpoint.tensors;
        checkpoint::save_lean(&path, tensors, &config, &model.name, half)
    };
    let saved = match save(true) {
        Err(checkpoint::Error::HalfRange { .. }) => save(false),
        other => other,
    };
    saved.map_err(|error| unusable(error.into()))?;
    let receipt = Receipt {
        sha256,
        bytes: size(file),
        lean_sha256: Some(store::sha256(&path)?),
    };
    store.remember(model, &receipt)?;
    Ok(Fetched {
        bytes: size(&path),
        path,
        from_bytes: Some(receipt.bytes),
    })
}

/// Opens a model's file, sees that it is one, and gives its configuration as JSON.
fn open(model: &Model, file: &Path) -> Result<(Checkpoint, String), load::Error> {
    match (model.kind, &model.config) {
        (Kind::Animation, Some(preset)) => {
            let (checkpoint, mut config) =
                load::checkpoint(Some(file), ConfigSource::Preset(preset))?;
            config.border = model.border.unwrap_or(config.border);
            Ok((checkpoint, config.to_json()))
        }
        (kind, _) => {
            let checkpoint = checkpoint::open(file)?;
            if kind == Kind::Detector {
                checkpoint::check(&checkpoint, &S3fd::expected_tensors())?;
            }
            checkpoint::check_values(&checkpoint)?;
            Ok((checkpoint, "{}".to_owned()))
        }
    }
}

/// Removes a publisher's file and its folder.
fn discard(file: &Path) {
    if let Err(e) = fs::remove_file(file) {
        tracing::warn!("cannot remove {}: {e}", file.display());
    }
    let _ = file.parent().map(fs::remove_dir);
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |file| file.len())
}

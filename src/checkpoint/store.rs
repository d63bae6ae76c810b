//! The weights folder: which models of the manifest are here, and what is remembered of each.
//!
//! ```text
//! vox-256.safetensors     the model in its lean form
//! vox-256.json            its receipt: hash of the file it was made from, hash of what was made
//! originals/vox-256/…     that file, where it was to be kept
//! downloads/vox-256.…     what is on its way
//! ```
//!
//! The receipt stays when the model is removed: of a model without a published hash it is the pin, and another
//! file under the same address is refused.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use md5::Md5;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::manifest::{self, Manifest, Model};

/// The largest receipt that is read.
const LARGEST_RECEIPT: u64 = 64 << 10;

/// How far a fetch is. The listener answers whether to go on; a break is [`Error::Cancelled`].
pub type Tell<'a> = dyn FnMut(&Progress) -> ControlFlow<()> + 'a;

/// What is being done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Another process fetches the same model; it is waited for.
    Waiting,
    /// Asking this host, or having been given a reason to ask the next one.
    Asking(String),
    /// Bytes come from this host.
    Downloading(String),
    /// The hash is computed.
    Checking,
    /// The lean form is written.
    Converting,
}

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub step: Step,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all; 0 where there is nothing to count.
    pub total: u64,
}

impl Progress {
    /// Something without bytes to count.
    pub fn of(step: Step) -> Self {
        Self {
            step,
            done: 0,
            total: 0,
        }
    }
}

/// A model of the manifest that is not in the weights folder.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the model {name} is not here yet: `mimic weights fetch {name}` gets it ({size}; licence: {licence})"
)]
pub struct NotHere {
    /// Its name.
    pub name: String,
    /// What it is.
    pub title: String,
    /// Size of the download, for people.
    pub size: String,
    /// Under which terms it may be used.
    pub licence: String,
}

/// Why a model is not here, or could not be got.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The manifest cannot be used.
    #[error(transparent)]
    Manifest(#[from] manifest::Error),
    /// It can be fetched.
    #[error(transparent)]
    NotHere(#[from] NotHere),
    /// No such name.
    #[error("there is no model {name}: there are {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// The platform has no place for data.
    #[error("this system names no folder for a program's data: set MIMIC_WEIGHTS to one")]
    NoFolder,
    /// It cannot be written to.
    #[error(
        "cannot write to the weights folder, {path}: {source}; set MIMIC_WEIGHTS to a folder that you may write to"
    )]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file in it cannot be read.
    #[error("cannot read {path}: {source}; check its permissions")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The disk is full.
    #[error(
        "the disk of the weights folder {path} is full: make room for {needed} MB, or set MIMIC_WEIGHTS to a folder on another disk, and start again: what has come is kept"
    )]
    Full {
        /// The folder.
        path: PathBuf,
        /// Megabytes that are still to come.
        needed: u64,
    },
    /// No mirror gave the file.
    #[error("{name} could not be fetched: {reasons}")]
    Unreachable {
        /// The model.
        name: String,
        /// What happened with each mirror, `; ` between them.
        reasons: String,
    },
    /// Another file than the first time.
    #[error(
        "{what} is not the {name} that was here first (sha256 {pinned}, and this has {got}) and was not taken: if you trust it all the same, delete {receipt} and try again"
    )]
    Changed {
        /// The model.
        name: String,
        /// The file or address.
        what: String,
        /// Hash at first.
        pinned: String,
        /// Hash now.
        got: String,
        /// Where the first is remembered.
        receipt: PathBuf,
    },
    /// A file that is given is not the model's.
    #[error("{path} is not {name}: {why}")]
    NotThis {
        /// The file.
        path: PathBuf,
        /// The model.
        name: String,
        /// In what it differs.
        why: String,
    },
    /// A folder without the file.
    #[error(
        "{folder} has no file that is {name}: it is looked for as {file}, or by its hash; correct --from, or leave it out to download"
    )]
    NotIn {
        /// The folder.
        folder: PathBuf,
        /// The model.
        name: String,
        /// The publisher's name for it.
        file: String,
    },
    /// Stopped by hand.
    #[error("stopped: what has come is kept, and the next fetch goes on from there")]
    Cancelled,
}

/// What is remembered of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// Hash of the publisher's file.
    pub sha256: String,
    /// Its size.
    pub bytes: u64,
    /// Hash of the lean form; none when it has been removed.
    #[serde(default)]
    pub lean_sha256: Option<String>,
}

/// What [`Store::verify`] finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it was written.
    Sound,
    /// There is no model.
    Absent,
    /// It is not what was written, or there is no telling; a sentence.
    Wrong(String),
}

/// The weights folder and the manifest.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
    manifest: Manifest,
}

/// The file of what was given for weights: a path as it is, or the name of a model that is in the weights folder.
///
/// # Errors
/// [`Error::NotHere`] for a model that can be fetched; when the manifest cannot be used.
pub fn find(given: &Path) -> Result<PathBuf, Error> {
    let mut parts = given.components();
    let bare = match (parts.next(), parts.next()) {
        (Some(Component::Normal(name)), None) => name.to_str(),
        _ => None,
    };
    // A file of that name is meant before a model is.
    match bare {
        Some(name) if !given.is_file() => Store::of_environment()?.find(name),
        _ => Ok(given.to_owned()),
    }
}

/// The weights folder: `MIMIC_WEIGHTS`, else the platform's for data. None where there is no home.
pub fn folder() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("MIMIC_WEIGHTS").filter(|value| !value.is_empty()) {
        return Some(folder.into());
    }
    let dirs = directories::ProjectDirs::from("", "", "mimic")?;
    Some(dirs.data_dir().join("weights"))
}

impl Store {
    /// The folder and the manifest that the environment names, or the usual ones.
    ///
    /// # Errors
    /// When there is no folder, or the manifest cannot be used.
    pub fn of_environment() -> Result<Self, Error> {
        let folder = folder().ok_or(Error::NoFolder)?;
        Ok(Self::new(folder, Manifest::of_environment()?))
    }

    /// A folder, made when something is written to it, and a manifest.
    pub fn new(folder: PathBuf, manifest: Manifest) -> Self {
        Self { folder, manifest }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The models that can be here.
    pub fn models(&self) -> &[Model] {
        &self.manifest.models
    }

    /// The model of that name.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub fn model(&self, name: &str) -> Result<&Model, Error> {
        self.manifest.model(name).ok_or_else(|| Error::Unknown {
            name: name.chars().filter(|c| !c.is_control()).take(80).collect(),
            known: (self.models().iter())
                .map(|model| model.name.as_str())
                .collect::<Vec<_>>()
                .join(", "),
        })
    }

    /// Where a model is when it is here.
    pub fn path(&self, model: &Model) -> PathBuf {
        self.folder.join(format!("{}.safetensors", model.name))
    }

    /// Where its publisher's file is, if it is kept.
    pub fn original(&self, model: &Model) -> PathBuf {
        self.folder
            .join("originals")
            .join(&model.name)
            .join(&model.file)
    }

    /// Where what is remembered of it is.
    pub fn receipt_path(&self, model: &Model) -> PathBuf {
        self.folder.join(format!("{}.json", model.name))
    }

    /// A file in the folder of what is on its way.
    pub(super) fn download(&self, model: &Model, ending: &str) -> PathBuf {
        self.folder
            .join("downloads")
            .join(format!("{}.{ending}", model.name))
    }

    /// Whether a model is here.
    pub fn has(&self, model: &Model) -> bool {
        self.path(model).is_file()
    }

    /// A model's file by its name; what is no name of a model is given back as a path.
    ///
    /// # Errors
    /// [`Error::NotHere`].
    pub fn find(&self, name: &str) -> Result<PathBuf, Error> {
        match self.manifest.model(name) {
            None => Ok(name.into()),
            Some(model) if self.has(model) => Ok(self.path(model)),
            Some(model) => Err(NotHere {
                name: model.name.clone(),
                title: model.title.clone(),
                size: model.size_text(),
                licence: model.licence.clone(),
            }
            .into()),
        }
    }

    /// The file of the first of some models that is here.
    pub fn first_here(&self, names: &[&str]) -> Option<PathBuf> {
        let models = names.iter().filter_map(|name| self.manifest.model(name));
        let mut here = models.filter(|model| self.has(model));
        here.next().map(|model| self.path(model))
    }

    /// What is remembered of a model.
    ///
    /// # Errors
    /// When there is something that cannot be read: a pin that is not understood must not be passed over.
    pub fn receipt(&self, model: &Model) -> Result<Option<Receipt>, Error> {
        let path = self.receipt_path(model);
        let read = |path: &Path| -> io::Result<Receipt> {
            let mut text = String::new();
            (File::open(path)?.take(LARGEST_RECEIPT)).read_to_string(&mut text)?;
            Ok(serde_json::from_str(&text)?)
        };
        match read(&path) {
            Ok(receipt) => Ok(Some(receipt)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Read { path, source }),
        }
    }

    /// Remembers a model.
    ///
    /// # Errors
    /// When the folder cannot be written to.
    pub fn remember(&self, model: &Model, receipt: &Receipt) -> Result<(), Error> {
        let path = self.receipt_path(model);
        crate::settings::write_json(&path, receipt).map_err(|source| Error::Write { path, source })
    }

    /// Whether a file is the model, and its hash: by the published hash, else by the pin. A file of a model that
    /// has neither is taken for it if its size may be the model's.
    ///
    /// # Errors
    /// [`Error::NotThis`] and [`Error::Changed`]; when the file cannot be read; [`Error::Cancelled`].
    pub fn check(&self, model: &Model, file: &Path, tell: &mut Tell<'_>) -> Result<String, Error> {
        let hashes = Hashes::of(file, model.md5.is_some(), tell)?;
        let not_this = |why: String| Error::NotThis {
            path: file.to_owned(),
            name: model.name.clone(),
            why,
        };
        if !model.sizes().contains(&hashes.bytes) {
            return Err(not_this(format!(
                "it has {} bytes, and {} is expected",
                hashes.bytes,
                model.size_text()
            )));
        }
        for (kind, wanted, got) in [
            ("sha256", &model.sha256, Some(&hashes.sha256)),
            ("md5", &model.md5, hashes.md5.as_ref()),
        ] {
            if let (Some(wanted), Some(got)) = (wanted, got)
                && wanted != got
            {
                return Err(not_this(format!(
                    "its {kind} is {got}, and {wanted} is expected"
                )));
            }
        }
        match self.receipt(model)? {
            Some(pin) if model.sha256.is_none() && pin.sha256 != hashes.sha256 => {
                Err(Error::Changed {
                    name: model.name.clone(),
                    what: file.display().to_string(),
                    pinned: pin.sha256,
                    got: hashes.sha256,
                    receipt: self.receipt_path(model),
                })
            }
            _ => Ok(hashes.sha256),
        }
    }

    /// Which model a file is, by its hash; where no hash says it, by the name that a publisher without hashes gives it.
    ///
    /// # Errors
    /// When the file cannot be read; [`Error::Cancelled`].
    pub fn recognise(&self, file: &Path, tell: &mut Tell<'_>) -> Result<Option<&Model>, Error> {
        let hashes = Hashes::of(file, true, tell)?;
        let same = |known: &Option<String>, got: Option<&String>| {
            known.as_ref().is_some_and(|known| Some(known) == got)
        };
        for model in self.models() {
            let pinned = match model.has_hash() {
                true => None,
                false => self.receipt(model)?.map(|receipt| receipt.sha256),
            };
            if same(&model.sha256, Some(&hashes.sha256))
                || same(&model.md5, hashes.md5.as_ref())
                || same(&pinned, Some(&hashes.sha256))
            {
                return Ok(Some(model));
            }
        }
        let named = |model: &&Model| {
            !model.has_hash()
                && file.file_name().is_some_and(|name| *name == *model.file)
                && model.sizes().contains(&hashes.bytes)
        };
        Ok(self.models().iter().find(named))
    }

    /// Whether a model is what was written.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    pub fn verify(&self, model: &Model, tell: &mut Tell<'_>) -> Result<Verdict, Error> {
        if !self.has(model) {
            return Ok(Verdict::Absent);
        }
        let again = format!(
            "`mimic weights remove {0}` and `mimic weights fetch {0}` get it anew",
            model.name
        );
        let receipt = match self.receipt(model) {
            Ok(receipt) => receipt,
            Err(error) => return Ok(Verdict::Wrong(error.to_string())),
        };
        let Some(written) = receipt.and_then(|receipt| receipt.lean_sha256) else {
            return Ok(Verdict::Wrong(format!(
                "nothing says what it should be; {again}"
            )));
        };
        match Hashes::of(&self.path(model), false, tell) {
            Ok(hashes) if hashes.sha256 == written => {}
            Ok(_) => return Ok(Verdict::Wrong(format!("it is damaged; {again}"))),
            Err(Error::Cancelled) => return Err(Error::Cancelled),
            Err(error) => return Ok(Verdict::Wrong(error.to_string())),
        }
        let original = self.original(model);
        if original.is_file() {
            match self.check(model, &original, tell) {
                Err(Error::Cancelled) => return Err(Error::Cancelled),
                Err(error) => return Ok(Verdict::Wrong(error.to_string())),
                Ok(_) => {}
            }
        }
        Ok(Verdict::Sound)
    }

    /// Removes a model, its original and what was on its way; the pin stays. Gives how many bytes that freed.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn remove(&self, model: &Model) -> Result<u64, Error> {
        let mut freed = 0;
        let files = [
            self.path(model),
            self.original(model),
            self.download(model, "part"),
            self.download(model, "part.json"),
        ];
        for path in files {
            let bytes = fs::metadata(&path).map_or(0, |file| file.len());
            match fs::remove_file(&path) {
                Ok(()) => freed += bytes,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(Error::Write { path, source }),
            }
        }
        // Goes when it is empty.
        let _ = self.original(model).parent().map(fs::remove_dir);
        if let Ok(Some(receipt)) = self.receipt(model) {
            let lean_sha256 = None;
            self.remember(
                model,
                &Receipt {
                    lean_sha256,
                    ..receipt
                },
            )?;
        }
        Ok(freed)
    }

    /// Keeps other processes from the model until the file is dropped; waits for one that has it.
    ///
    /// # Errors
    /// When the folder cannot be written to; [`Error::Cancelled`].
    pub fn lock(&self, model: &Model, tell: &mut Tell<'_>) -> Result<File, Error> {
        let path = self.download(model, "lock");
        let write = |source| Error::Write {
            path: path.clone(),
            source,
        };
        make_folder_of(&path)?;
        let file = (File::options().create(true).append(true))
            .open(&path)
            .map_err(write)?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => {}
                // A file system that cannot lock has no second process either, most likely.
                Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => {
                    return Ok(file);
                }
                Err(TryLockError::Error(e)) => return Err(write(e)),
            }
            say(tell, &Progress::of(Step::Waiting))?;
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// The folder of a file, made if it is missing.
pub(super) fn make_folder_of(path: &Path) -> Result<(), Error> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|source| Error::Write {
        path: folder.to_owned(),
        source,
    })
}

/// Tells, and hears whether to go on.
pub(super) fn say(tell: &mut Tell<'_>, progress: &Progress) -> Result<(), Error> {
    match tell(progress) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Cancelled),
    }
}

/// What a file is known by.
#[derive(Debug)]
pub(super) struct Hashes {
    pub(super) bytes: u64,
    pub(super) sha256: String,
    md5: Option<String>,
}

impl Hashes {
    /// Reads a file from its start to its end.
    pub(super) fn of(path: &Path, md5: bool, tell: &mut Tell<'_>) -> Result<Self, Error> {
        let read = |source| Error::Read {
            path: path.to_owned(),
            source,
        };
        let mut file = File::open(path).map_err(read)?;
        let metadata = file.metadata().map_err(read)?;
        if !metadata.is_file() {
            return Err(read(io::Error::other("it is not a regular file")));
        }
        let (mut sha256, mut older) = (Sha256::new(), md5.then(Md5::new));
        let mut buffer = vec![0; 1 << 20];
        let mut bytes = 0;
        loop {
            let count = file.read(&mut buffer).map_err(read)?;
            if count == 0 {
                break;
            }
            sha256.update(&buffer[..count]);
            if let Some(older) = &mut older {
                older.update(&buffer[..count]);
            }
            bytes += count as u64;
            say(
                tell,
                &Progress {
                    step: Step::Checking,
                    done: bytes,
                    total: metadata.len(),
                },
            )?;
        }
        Ok(Self {
            bytes,
            sha256: hex(&sha256.finalize()),
            md5: older.map(|older| hex(&older.finalize())),
        })
    }
}

/// Hash of a file in hexadecimal.
///
/// # Errors
/// When it cannot be read.
pub fn sha256(path: &Path) -> Result<String, Error> {
    Hashes::of(path, false, &mut |_| ControlFlow::Continue(())).map(|hashes| hashes.sha256)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

//! Why training, or getting ready for it, failed.

use std::io;
use std::path::{Path, PathBuf};

use crate::{checkpoint, faces, media, model};

/// One sentence each, with what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file or folder cannot be written.
    #[error("cannot write {path}: {source}; what was saved before is as it was", path = path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The training file cannot be used.
    #[error("the training file {path} cannot be used: {what}")]
    Config {
        /// The file.
        path: String,
        /// What is wrong, and what is allowed.
        what: String,
    },
    /// There is nothing to train on.
    #[error("{path}: {what}", path = path.display())]
    Data {
        /// The folder.
        path: PathBuf,
        /// What is wrong, and what to do.
        what: String,
    },
    /// A model is no teacher for this student.
    #[error("{name} cannot be the teacher: {what}")]
    Teacher {
        /// The model.
        name: String,
        /// What is wrong, and what to do.
        what: String,
    },
    /// A file of landmarks cannot be used.
    #[error("the landmarks {path} cannot be used: {what}", path = path.display())]
    Landmarks {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Weights cannot be opened, do not fit or cannot be saved.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// The model's configuration is impossible.
    #[error(transparent)]
    Model(#[from] model::config::Error),
    /// A clip cannot be read.
    #[error(transparent)]
    Media(#[from] media::Error),
    /// Faces could not be looked for.
    #[error(transparent)]
    Faces(#[from] faces::DetectError),
    /// Arithmetic failed: shapes, or the device.
    #[error("training failed: {0}")]
    Tensor(#[from] candle_core::Error),
    /// The losses are no numbers, again and again.
    #[error(
        "{steps} steps in a row gave no numbers: start again from the last checkpoint with a lower learning rate (-o lr_scheduler.lr_generator=1e-4)"
    )]
    Diverged {
        /// How many.
        steps: usize,
    },
    /// Several processes cannot train together, or one of them was lost.
    #[error("the processes of this training cannot work together: {0}")]
    Ranks(String),
    /// The system gives no threads.
    #[error("cannot start the threads that read clips: {0}")]
    Threads(io::Error),
}

impl Error {
    pub(super) fn read(path: &Path, source: io::Error) -> Self {
        Self::Read {
            path: path.to_owned(),
            source,
        }
    }

    pub(super) fn write(path: &Path, source: io::Error) -> Self {
        Self::Write {
            path: path.to_owned(),
            source,
        }
    }

    pub(super) fn data(path: &Path, what: impl Into<String>) -> Self {
        Self::Data {
            path: path.to_owned(),
            what: what.into(),
        }
    }
}

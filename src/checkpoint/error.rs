//! What can be wrong with a checkpoint, in sentences that name the file and say what to do.

use std::fmt;
use std::io;

use super::Format;

/// Why a checkpoint was not opened, does not fit, or was not written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system says no.
    #[error("cannot read the weights {what}: {source}; check the path and its permissions")]
    Read {
        /// The file.
        what: String,
        /// The reason.
        source: io::Error,
    },
    /// A directory, a pipe or a device.
    #[error("the weights {what} are not a regular file: give the path of a checkpoint")]
    NotAFile {
        /// The path.
        what: String,
    },
    /// No bytes.
    #[error("the weights {what} are an empty file: fetch or copy them again")]
    Empty {
        /// The file.
        what: String,
    },
    /// A repository was cloned without its large files.
    #[error(
        "the weights {what} are only a git-lfs pointer: run `git lfs pull` where they came from, \
         or download the file itself"
    )]
    LfsPointer {
        /// The file.
        what: String,
    },
    /// The server answered a download with a page.
    #[error(
        "the weights {what} are a web page, not weights: the download was answered with an error \
         or a form, open the link in a browser and save the file itself"
    )]
    WebPage {
        /// The file.
        what: String,
    },
    /// Nothing known.
    #[error(
        "the weights {what} are in no known format: give safetensors, a PyTorch checkpoint \
         (.pth, .pth.tar, .pt) or a Paddle one (.pdparams), unpacked"
    )]
    Unrecognised {
        /// The file.
        what: String,
    },
    /// The file ends before its contents do.
    #[error(
        "the weights {what} end too early for a {format} file: the download or copy was cut \
         short, fetch them again"
    )]
    Truncated {
        /// The file.
        what: String,
        /// What it started as.
        format: Format,
    },
    /// The contents contradict themselves.
    #[error(
        "the weights {what} are not a sound {format} file: {detail}; fetch them again, or use \
         another checkpoint"
    )]
    Corrupt {
        /// The file.
        what: String,
        /// What it started as.
        format: Format,
        /// What is wrong, without a full stop.
        detail: String,
    },
    /// The file wants code to be run.
    #[error(
        "the weights {what} ask Python to load {global}, which plain weights never do: nothing was \
         run; take weights from a source you trust, or save the state dictionary alone"
    )]
    Refused {
        /// The file.
        what: String,
        /// The Python function or class it names.
        global: String,
    },
    /// The file claims more than it can hold.
    #[error(
        "the weights {what} claim to hold {claim}, which no model needs: the file is damaged or \
         hostile and was not opened"
    )]
    Limit {
        /// The file.
        what: String,
        /// The claim.
        claim: String,
    },
    /// A sound file without weights.
    #[error(
        "the weights {what} hold no tensors: give a checkpoint of the First Order Motion Model"
    )]
    NoTensors {
        /// The file.
        what: String,
    },
    /// Weights of another architecture or configuration.
    #[error(
        "the weights {what} do not fit the model: {mismatch}; give the YAML file they were trained \
         with"
    )]
    Mismatch {
        /// The file.
        what: String,
        /// Tensor by tensor.
        mismatch: Box<Mismatch>,
    },
    /// NaN or infinite weights.
    #[error(
        "the weights {what} are unusable: {name} has values that are NaN or infinite; take an \
         earlier checkpoint of that training"
    )]
    NotFinite {
        /// The file.
        what: String,
        /// The tensor.
        name: String,
    },
    /// A batch norm whose variance is below zero.
    #[error(
        "the weights {what} are unusable: {name} has variances below zero; take an earlier \
         checkpoint of that training"
    )]
    NegativeVariance {
        /// The file.
        what: String,
        /// The tensor.
        name: String,
    },
    /// Over 65504.
    #[error("{what} was not written: {name} has values too large for f16; write f32 with --f32")]
    HalfRange {
        /// The file.
        what: String,
        /// The tensor.
        name: String,
    },
    /// The file system says no.
    #[error("cannot write the weights {what}: {source}; make room there, or choose another place")]
    Write {
        /// The file.
        what: String,
        /// The reason.
        source: io::Error,
    },
}

impl Error {
    pub(super) fn new(fault: Fault, what: String, format: Format) -> Self {
        match fault {
            Fault::Truncated => Self::Truncated { what, format },
            Fault::Corrupt(detail) => Self::Corrupt {
                what,
                format,
                detail: printable(&detail),
            },
            Fault::Refused(global) => Self::Refused {
                what,
                global: printable(&global),
            },
            Fault::Limit(claim) => Self::Limit {
                what,
                claim: printable(&claim),
            },
        }
    }

    /// For bytes that start as no format does: says what they are instead, where that helps.
    pub(super) fn unrecognised(bytes: &[u8], what: String) -> Self {
        let text = bytes
            .strip_prefix(b"\xef\xbb\xbf")
            .unwrap_or(bytes)
            .trim_ascii_start();
        if bytes.is_empty() {
            Self::Empty { what }
        } else if text.starts_with(b"version https://git-lfs") {
            Self::LfsPointer { what }
        } else if text.starts_with(b"<") {
            Self::WebPage { what }
        } else {
            Self::Unrecognised { what }
        }
    }
}

/// How a checkpoint differs from what a model needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mismatch {
    /// Name and shape of what the model needs and the file lacks.
    pub missing: Vec<(String, Vec<usize>)>,
    /// What the file has and the model does not know.
    pub extra: Vec<String>,
    /// Name, shape in the file, shape in the model.
    pub wrong_shape: Vec<(String, Vec<usize>, Vec<usize>)>,
}

/// How many of each kind a message lists.
const LISTED: usize = 8;

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lists = [
            (
                "missing",
                list(&self.missing, |(name, shape)| format!("{name} {shape:?}")),
            ),
            ("unknown", list(&self.extra, String::clone)),
            (
                "of another shape",
                list(&self.wrong_shape, |(name, found, needed)| {
                    format!("{name} {found:?} in place of {needed:?}")
                }),
            ),
        ];
        let lists: Vec<String> = lists
            .into_iter()
            .filter_map(|(kind, (count, names))| {
                let noun = if count == 1 {
                    "tensor is"
                } else {
                    "tensors are"
                };
                (count > 0).then(|| format!("{count} {noun} {kind} ({names})"))
            })
            .collect();
        f.write_str(&lists.join(", "))
    }
}

fn list<T>(items: &[T], show: impl Fn(&T) -> String) -> (usize, String) {
    let mut names = items
        .iter()
        .take(LISTED)
        .map(show)
        .collect::<Vec<_>>()
        .join(", ");
    if items.len() > LISTED {
        names.push_str(&format!(" and {} more", items.len() - LISTED));
    }
    (items.len(), names)
}

/// What a parser finds wrong, before the file's name is known.
#[derive(Debug)]
pub(super) enum Fault {
    Truncated,
    Corrupt(String),
    Refused(String),
    Limit(String),
}

impl Fault {
    pub(super) fn corrupt(detail: impl Into<String>) -> Self {
        Self::Corrupt(detail.into())
    }
}

/// Text of a file made fit for a message: short, and without control characters.
fn printable(text: &str) -> String {
    const LONGEST: usize = 200;
    let clean: String = text
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .take(LONGEST)
        .collect();
    if text.chars().nth(LONGEST).is_some() {
        clean + "…"
    } else {
        clean
    }
}

//! The list of published models that mimic can run, `weights/manifest.toml`: where they are, how large, by which
//! hash they are known, under which licence, and of which configuration.
//!
//! A manifest may come from a stranger (a file named with `MIMIC_MANIFEST` is read in place of the one in the
//! program): it is read strictly and with limits, and what it names stays inside the weights folder.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::{Deserialize, Deserializer};

use crate::model::Border;

/// The version of the form.
const VERSION: u32 = 1;
/// The largest manifest that is read; the program's own has 5 KB.
const LARGEST: u64 = 1 << 20;
/// No published model is larger: 4 GiB.
const MOST_BYTES: u64 = 4 << 30;

/// The models, in the order in which they are listed.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    version: u32,
    /// Every model once.
    #[serde(rename = "model", default)]
    pub models: Vec<Model>,
}

/// A published model.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// What it is called on the command line and, with `.safetensors`, in the weights folder.
    pub name: String,
    /// What it is for.
    pub kind: Kind,
    /// What it is, in a few words.
    pub title: String,
    /// The publisher's name for the file; two models may share one.
    pub file: String,
    /// Addresses in the order in which they are tried.
    pub mirrors: Vec<String>,
    /// Exact size of the file, where it is known.
    #[serde(default)]
    bytes: Option<u64>,
    /// What its size is about, where that is all that is known.
    #[serde(default)]
    about_bytes: Option<u64>,
    /// Hash of the file, where it is published or several copies agree.
    #[serde(default, deserialize_with = "hex::<32, _>")]
    pub sha256: Option<String>,
    /// The older hash, where the publisher gives only that.
    #[serde(default, deserialize_with = "hex::<16, _>")]
    pub md5: Option<String>,
    /// Under which terms it may be used.
    pub licence: String,
    /// The preset that the weights are of: [`crate::model::config::PRESETS`].
    #[serde(default)]
    pub config: Option<String>,
    /// How the picture's border is treated, where it is not as the preset says.
    #[serde(default)]
    pub border: Option<Border>,
}

/// What a model is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Moves faces.
    Animation,
    /// Finds faces.
    Detector,
    /// Restores faces.
    Enhancer,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Animation => "animation",
            Self::Detector => "detector",
            Self::Enhancer => "enhancer",
        })
    }
}

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system says no.
    #[error("cannot read the manifest {path}: {source}; correct MIMIC_MANIFEST, or unset it")]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// It is no manifest, or one of a later form.
    #[error("the manifest {what} cannot be used: {why}")]
    Form {
        /// The file.
        what: String,
        /// What is wrong, where.
        why: String,
    },
}

impl Manifest {
    /// The one that `MIMIC_MANIFEST` names, else the one in the program.
    ///
    /// # Errors
    /// When the named file cannot be read or used.
    pub fn of_environment() -> Result<Self, Error> {
        match std::env::var_os("MIMIC_MANIFEST") {
            Some(path) if !path.is_empty() => Self::open(Path::new(&path)),
            _ => Ok(Self::embedded().clone()),
        }
    }

    /// The one in the program.
    pub fn embedded() -> &'static Self {
        const TEXT: &str = include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/weights/manifest.toml"
        ));
        static PARSED: OnceLock<Manifest> = OnceLock::new();
        // A test reads it.
        PARSED.get_or_init(|| {
            Self::parse(TEXT, "of the program").unwrap_or_else(|_| Self {
                version: VERSION,
                models: Vec::new(),
            })
        })
    }

    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read or used.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let read = |source| Error::Read {
            path: path.to_owned(),
            source,
        };
        let what = path.display().to_string();
        if std::fs::metadata(path).map_err(read)?.len() > LARGEST {
            let why = "it is far too large".to_owned();
            return Err(Error::Form { what, why });
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        Self::parse(&text, &what)
    }

    /// Reads a text; `what` names it in messages.
    ///
    /// # Errors
    /// With the first field that is unknown, missing, doubled or out of its range.
    pub fn parse(text: &str, what: &str) -> Result<Self, Error> {
        let wrong = |why: String| Error::Form {
            what: what.to_owned(),
            why,
        };
        let manifest: Self = toml::from_str(text).map_err(|e| {
            let line = e
                .span()
                .map(|span| 1 + text[..span.start.min(text.len())].matches('\n').count());
            let place = line.map_or(String::new(), |line| format!("line {line}: "));
            wrong(format!("{place}{}", one_line(e.message())))
        })?;
        if manifest.version != VERSION {
            let version = manifest.version;
            return Err(wrong(format!(
                "it is of version {version}, and this mimic reads version {VERSION}"
            )));
        }
        let mut names = BTreeSet::new();
        for model in &manifest.models {
            model
                .check()
                .map_err(|why| wrong(format!("{}: {why}", one_line(&model.name))))?;
            if !names.insert(&model.name) {
                return Err(wrong(format!("{} is in it twice", model.name)));
            }
        }
        Ok(manifest)
    }

    /// The model of that name.
    pub fn model(&self, name: &str) -> Option<&Model> {
        self.models.iter().find(|model| model.name == name)
    }
}

impl Model {
    /// Its size, or about its size, in bytes.
    pub fn size(&self) -> u64 {
        self.bytes.or(self.about_bytes).unwrap_or_default()
    }

    /// Exact size of the file, where it is known.
    pub fn exact_size(&self) -> Option<u64> {
        self.bytes
    }

    /// Its size for people: "751 MB".
    pub fn size_text(&self) -> String {
        let about = if self.bytes.is_some() { "" } else { "about " };
        format!("{about}{:.0} MB", self.size() as f64 / 1e6)
    }

    /// The sizes that a file of it may have: the one it has, or an eighth more or less than it is said to have.
    pub fn sizes(&self) -> std::ops::RangeInclusive<u64> {
        match self.bytes {
            Some(bytes) => bytes..=bytes,
            None => {
                let (size, slack) = (self.size(), self.size() / 8 + (1 << 20));
                size.saturating_sub(slack)..=size.saturating_add(slack)
            }
        }
    }

    /// Whether its publisher, or agreement of copies, says which bytes it has.
    pub fn has_hash(&self) -> bool {
        self.sha256.is_some() || self.md5.is_some()
    }

    fn check(&self) -> Result<(), String> {
        let tidy = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
        if self.name.is_empty() || self.name.starts_with(['.', '-']) || !self.name.chars().all(tidy)
        {
            return Err("a name is of small letters, digits, '-' and '.'".to_owned());
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if self.file.is_empty() || self.file.starts_with('.') || !self.file.chars().all(plain) {
            return Err(format!("file = {:?} is no plain name of a file", self.file));
        }
        if self.name.len().max(self.file.len()) > 64 {
            return Err("names have at most 64 letters".to_owned());
        }
        if self.mirrors.is_empty() {
            return Err("it has no mirrors".to_owned());
        }
        for mirror in &self.mirrors {
            if !mirror.starts_with("https://") && !mirror.starts_with("http://") {
                return Err(format!("{mirror:?} is no address of the web"));
            }
        }
        match (self.bytes, self.about_bytes) {
            (Some(size), None) | (None, Some(size)) if (1..=MOST_BYTES).contains(&size) => {}
            (Some(_), Some(_)) | (None, None) => {
                return Err("it needs bytes or about_bytes, and not both".to_owned());
            }
            _ => return Err(format!("no model is of {} bytes", self.size())),
        }
        match (self.kind, &self.config) {
            (Kind::Animation, None) => Err("an animation model needs a config".to_owned()),
            (Kind::Animation, Some(config)) => {
                match crate::model::config::PRESETS.contains(&config.as_str()) {
                    true => Ok(()),
                    false => Err(format!("config = {config:?} is no preset")),
                }
            }
            (_, Some(_)) => Err("only an animation model has a config".to_owned()),
            (_, None) => Ok(()),
        }
    }
}

/// A hash of N bytes in hexadecimal, made small.
fn hex<'de, const N: usize, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(from)?.to_ascii_lowercase();
    if text.len() != 2 * N || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(serde::de::Error::custom(format_args!(
            "a hash of {} hexadecimal digits is expected",
            2 * N
        )));
    }
    Ok(Some(text))
}

/// Text of a stranger fit for a sentence.
fn one_line(text: &str) -> String {
    let clean = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    clean.take(200).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ONE: &str = r#"
version = 1
[[model]]
name = "a"
kind = "detector"
title = "t"
file = "a.pth"
mirrors = ["https://example.org/a.pth"]
bytes = 10
licence = "MIT"
"#;

    fn says(text: &str) -> String {
        Manifest::parse(text, "m.toml").unwrap_err().to_string()
    }

    #[test]
    fn the_manifest_of_the_program_is_sound() {
        let text = include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/weights/manifest.toml"
        ));
        let manifest = Manifest::parse(text, "of the program").unwrap();
        assert!(manifest.models.len() >= 10);
        for model in &manifest.models {
            assert!(
                model.mirrors.iter().all(|m| m.starts_with("https://")),
                "{}",
                model.name
            );
            assert!(model.has_hash() || model.file.ends_with(".pdparams"));
        }
        assert_eq!(
            manifest.model("vox-adv").unwrap().file,
            manifest.model("vox-adv-slim").unwrap().file
        );
    }

    #[test]
    fn an_unknown_field_is_named_with_its_line() {
        assert!(Manifest::parse(ONE, "m.toml").is_ok());
        let text = format!("{ONE}licnce = \"MIT\"\n");
        let said = says(&text);
        assert!(
            said.contains("licnce") && said.contains("line 11") && said.contains("m.toml"),
            "{said}"
        );
        assert!(!said.contains('\n'));
        assert!(says(&format!("more = 1\n{ONE}")).contains("more"));
    }

    #[test]
    fn what_is_out_of_range_is_refused() {
        for (old, new, word) in [
            ("name = \"a\"", "name = \"../a\"", "name"),
            ("name = \"a\"", "name = \".a\"", "name"),
            ("file = \"a.pth\"", "file = \"/etc/passwd\"", "file"),
            ("file = \"a.pth\"", "file = \"..\"", "file"),
            ("bytes = 10", "bytes = 0", "bytes"),
            ("bytes = 10", "bytes = 99999999999999", "bytes"),
            ("bytes = 10", "bytes = -1", "line"),
            ("bytes = 10", "", "bytes or about_bytes"),
            ("bytes = 10", "bytes = 10\nabout_bytes = 10", "not both"),
            ("bytes = 10", "bytes = 10\nsha256 = \"12\"", "hash of 64"),
            ("https://", "ftp://", "address"),
            (
                "mirrors = [\"https://example.org/a.pth\"]",
                "mirrors = []",
                "mirrors",
            ),
            ("version = 1", "version = 2", "version 2"),
            ("\"detector\"", "\"animation\"", "config"),
            ("\"detector\"", "\"miner\"", "miner"),
        ] {
            let said = says(&ONE.replace(old, new));
            assert!(said.contains(word), "{new}: {said}");
        }
        let twice = format!("{ONE}{}", ONE.replace("version = 1", ""));
        assert!(says(&twice).contains("twice"));
    }

    #[test]
    fn sizes_leave_room_where_they_are_not_exact() {
        let model = |line: &str| {
            let text = ONE.replace("bytes = 10", line);
            Manifest::parse(&text, "").unwrap().models.remove(0)
        };
        assert_eq!(model("bytes = 10").sizes(), 10..=10);
        let sizes = model("about_bytes = 80_000_000").sizes();
        assert!(sizes.contains(&75_000_000) && sizes.contains(&84_000_000));
        assert!(!sizes.contains(&60_000_000) && !sizes.contains(&100_000_000));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,200}", at in 0..400usize) {
            let _ = Manifest::parse(&text, "");
            let mut damaged = ONE.to_owned();
            let at = at.min(damaged.len());
            damaged.insert_str(at, &text);
            let _ = Manifest::parse(&damaged, "");
        }
    }
}

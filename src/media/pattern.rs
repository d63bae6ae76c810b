//! Names of numbered files, `frames/%05d.png`, as in printf and ffmpeg.

use std::path::{Path, PathBuf};

/// A folder and the names `PREFIX` number `SUFFIX` in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern {
    /// The folder, "." when none is named.
    pub(super) folder: PathBuf,
    prefix: String,
    suffix: String,
    width: usize,
}

impl Pattern {
    /// Reads a path whose file name has exactly one `%d`, `%5d` or `%05d` and no other `%`.
    pub(super) fn parse(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let (prefix, rest) = name.split_once('%')?;
        let (digits, suffix) = rest.split_once('d')?;
        let width = if digits.is_empty() {
            0
        } else {
            digits.parse().ok().filter(|w| *w <= 20)?
        };
        if suffix.contains('%') {
            return None;
        }
        let folder = path
            .parent()
            .filter(|f| !f.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        Some(Self {
            folder: folder.to_owned(),
            prefix: prefix.to_owned(),
            suffix: suffix.to_owned(),
            width,
        })
    }

    /// The file name with a number, filled with zeros.
    pub(super) fn name(&self, number: u64) -> String {
        format!(
            "{}{number:0width$}{}",
            self.prefix,
            self.suffix,
            width = self.width
        )
    }

    /// The number in a file name that this pattern would have given.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        let digits = name
            .strip_prefix(&self.prefix)?
            .strip_suffix(&self.suffix)?;
        let number = digits
            .bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| digits.parse().ok())??;
        (self.name(number) == name).then_some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_gives_names_and_knows_them_again() {
        let pattern = Pattern::parse(Path::new("out/frame-%05d.png")).unwrap();
        assert_eq!(pattern.folder, Path::new("out"));
        assert_eq!(pattern.name(42), "frame-00042.png");
        assert_eq!(pattern.name(1_234_567), "frame-1234567.png");
        assert_eq!(pattern.number("frame-00042.png"), Some(42));
        for other in [
            "frame-42.png",
            "frame-+0042.png",
            "frame-.png",
            "frame-00042.jpg",
            "x-00042.png",
        ] {
            assert_eq!(pattern.number(other), None, "{other}");
        }
        assert_eq!(
            Pattern::parse(Path::new("%d.png")).unwrap().folder,
            Path::new(".")
        );
    }

    #[test]
    fn other_names_are_no_pattern() {
        for name in [
            "plain.png",
            "100%.png",
            "%s.png",
            "%d-%d.png",
            "%99d.png",
            "%-3d.png",
            "100%/x.png",
            "",
        ] {
            assert_eq!(Pattern::parse(Path::new(name)), None, "{name}");
        }
    }
}

//! Numbered PNG files as a [`FrameSink`]: lossless.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder as _, ImageError, RgbaImage};
use tempfile::TempDir;

use super::error::{Error, plain};
use super::pattern::Pattern;
use super::sink::{FrameSink, make_folder};

/// Pictures on their way: in a temporary folder inside the one they will be in.
pub(super) struct Sequence {
    output: PathBuf,
    pattern: Pattern,
    size: (u32, u32),
    /// None once it is cleared away.
    temporary: Option<TempDir>,
    /// Whether the folder was made for these pictures, and goes if they do not come.
    made: bool,
    written: u64,
    rgb: Vec<u8>,
}

impl Sequence {
    pub(super) fn create(output: &Path, pattern: Pattern, size: (u32, u32)) -> Result<Self, Error> {
        let made = !pattern.folder.exists();
        make_folder(output)?;
        let temporary = tempfile::Builder::new()
            .prefix(".mimic-")
            .tempdir_in(&pattern.folder)
            .map_err(|e| Error::write(output, &e))?;
        let output = output.to_owned();
        Ok(Self {
            output,
            pattern,
            size,
            temporary: Some(temporary),
            made,
            written: 0,
            rgb: Vec::new(),
        })
    }

    fn save(&mut self, file: &Path, frame: &RgbaImage) -> Result<(), ImageError> {
        // Frames are opaque: a fourth of the bytes says nothing.
        self.rgb.clear();
        self.rgb
            .extend(frame.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]));
        let mut writer = BufWriter::new(File::create(file)?);
        let encoder =
            PngEncoder::new_with_quality(&mut writer, CompressionType::Fast, FilterType::Adaptive);
        encoder.write_image(
            &self.rgb,
            frame.width(),
            frame.height(),
            ExtendedColorType::Rgb8,
        )?;
        Ok(writer.flush()?)
    }

    /// Says so when numbered files of an earlier, longer result stay behind the last of this one.
    fn warn_of_leftovers(&self) {
        let Ok(entries) = fs::read_dir(&self.pattern.folder) else {
            return;
        };
        let numbers = entries
            .flatten()
            .filter_map(|e| self.pattern.number(e.file_name().to_str()?));
        let older = numbers.filter(|n| *n > self.written || *n == 0).count();
        if older > 0 {
            let folder = self.pattern.folder.display();
            tracing::warn!(
                "{folder} also holds {older} older pictures that are not part of this result"
            );
        }
    }
}

impl FrameSink for Sequence {
    fn write(&mut self, frame: &RgbaImage) -> Result<(), Error> {
        if frame.dimensions() != self.size {
            return Err(Error::FrameSize {
                path: self.output.clone(),
                got: frame.dimensions(),
                want: self.size,
            });
        }
        let Some(temporary) = &self.temporary else {
            return Ok(());
        };
        let file = temporary.path().join(self.pattern.name(self.written + 1));
        self.save(&file, frame).map_err(|e| {
            let why = match e {
                ImageError::IoError(e) => plain(&e),
                e => e.to_string(),
            };
            Error::Write {
                path: self.output.clone(),
                why,
            }
        })?;
        self.written += 1;
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<Vec<PathBuf>, Error> {
        if self.written == 0 {
            return Err(Error::NothingWritten {
                path: self.output.clone(),
            });
        }
        let Some(temporary) = self.temporary.take() else {
            return Ok(Vec::new());
        };
        // From here on there is a result, if only a part of it.
        self.made = false;
        let mut files = Vec::new();
        for number in 1..=self.written {
            let name = self.pattern.name(number);
            let file = self.pattern.folder.join(&name);
            fs::rename(temporary.path().join(&name), &file).map_err(|e| Error::write(&file, &e))?;
            files.push(file);
        }
        self.warn_of_leftovers();
        Ok(files)
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        drop(self.temporary.take());
        if self.made {
            // Only goes when it is empty.
            let _ = fs::remove_dir(&self.pattern.folder);
        }
    }
}

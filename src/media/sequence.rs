//! Numbered PNG or JPEG files as a [`FrameSink`].

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use image::RgbaImage;
use tempfile::TempDir;

use super::error::Error;
use super::leftovers;
use super::pattern::Pattern;
use super::provenance::{Provenance, Room, Still, picture_error};
use super::sink::{FrameSink, make_folder};

/// Pictures on their way: in a temporary folder inside the one they will be in.
pub(super) struct Sequence {
    output: PathBuf,
    pattern: Pattern,
    still: Still,
    size: (u32, u32),
    said: Option<Provenance>,
    /// None once it is cleared away.
    temporary: Option<TempDir>,
    /// Says that this is at work in it; see [`leftovers`].
    _held: Option<File>,
    /// Whether the folder was made for these pictures, and goes if they do not come.
    made: bool,
    written: u64,
    room: Room,
}

impl Sequence {
    pub(super) fn create(
        output: &Path,
        pattern: Pattern,
        still: Still,
        size: (u32, u32),
        said: Option<Provenance>,
    ) -> Result<Self, Error> {
        let made = !pattern.folder.exists();
        make_folder(output)?;
        leftovers::clear(&pattern.folder);
        let temporary = tempfile::Builder::new()
            .prefix(leftovers::PREFIX)
            .tempdir_in(&pattern.folder)
            .map_err(|e| Error::write(output, &e))?;
        let output = output.to_owned();
        Ok(Self {
            output,
            pattern,
            still,
            size,
            said,
            _held: leftovers::hold(temporary.path()),
            temporary: Some(temporary),
            made,
            written: 0,
            room: Room::default(),
        })
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
        (self.still)
            .write(&file, frame, self.said.as_ref(), &mut self.room)
            .map_err(|e| picture_error(&self.output, e))?;
        if let Some(signer) = self.said.as_ref().and_then(|said| said.signer.as_ref()) {
            signer.sign(&file, self.said.as_ref())?;
        }
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

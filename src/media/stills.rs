//! Pictures as a [`FrameSource`]: a folder in natural order, a numbered pattern, a single picture.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};

use image::RgbaImage;
use image::imageops::{self, FilterType};

use super::clip::{ClipInfo, FrameSource, ReadOptions, STILLS_RATE};
use super::error::Error;
use super::pattern::Pattern;
use super::photo::{open_photo, photo_size};
use crate::geometry::Rect;

/// Which files of a folder are frames; others (a log, `.DS_Store`) are passed over.
const EXTENSIONS: [&str; 8] = ["png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff", "gif"];

/// Pictures in order.
pub(super) struct Stills {
    info: ClipInfo,
    files: Vec<PathBuf>,
    crop: Rect,
    size: (u32, u32),
    start: usize,
    next: usize,
    /// Whether the log has already said that the sizes differ.
    warned: bool,
}

impl Stills {
    /// The pictures of a folder in natural order.
    pub(super) fn folder(path: &Path, options: &ReadOptions) -> Result<Self, Error> {
        let mut names = names(path)?;
        names.retain(|name| {
            let extension = Path::new(name)
                .extension()
                .and_then(|e| e.to_str())
                .map(str::to_ascii_lowercase);
            !name.starts_with('.') && extension.is_some_and(|e| EXTENSIONS.contains(&e.as_str()))
        });
        names.sort_by(|a, b| natural(a, b));
        Self::new(
            path,
            names.into_iter().map(|name| path.join(name)).collect(),
            options,
        )
    }

    /// The files that a pattern names, by number.
    pub(super) fn numbered(
        path: &Path,
        pattern: &Pattern,
        options: &ReadOptions,
    ) -> Result<Self, Error> {
        let mut numbers: Vec<u64> = names(&pattern.folder)?
            .iter()
            .filter_map(|name| pattern.number(name))
            .collect();
        numbers.sort_unstable();
        let files = numbers
            .into_iter()
            .map(|n| pattern.folder.join(pattern.name(n)))
            .collect();
        Self::new(path, files, options)
    }

    /// One picture, a clip of one frame.
    pub(super) fn single(path: &Path, options: &ReadOptions) -> Result<Self, Error> {
        Self::new(path, vec![path.to_owned()], options)
    }

    fn new(path: &Path, files: Vec<PathBuf>, options: &ReadOptions) -> Result<Self, Error> {
        let first = files.first().ok_or_else(|| Error::NoPictures {
            path: path.to_owned(),
        })?;
        let size = photo_size(first)?;
        Self::of(path, size, files, options)
    }

    /// Of pictures the first of which has this size.
    fn of(
        path: &Path,
        (width, height): (u32, u32),
        files: Vec<PathBuf>,
        options: &ReadOptions,
    ) -> Result<Self, Error> {
        let fps = options.fps.unwrap_or(STILLS_RATE);
        let count = files.len() as u64;
        let info = ClipInfo {
            path: path.to_owned(),
            width,
            height,
            fps,
            frames: Some(count),
            duration: Some(count as f64 / fps.as_f64()),
            has_audio: false,
        };
        let (crop, size) = info.window(options)?;
        let start = usize::try_from(options.start_frame)
            .ok()
            .filter(|s| *s < files.len())
            .ok_or_else(|| Error::PastTheEnd {
                path: path.to_owned(),
                frames: count,
                wanted: options.start_frame,
            })?;
        Ok(Self {
            info,
            files,
            crop,
            size,
            start,
            next: start,
            warned: false,
        })
    }
}

impl FrameSource for Stills {
    fn info(&self) -> &ClipInfo {
        &self.info
    }

    fn read(&mut self, into: &mut RgbaImage) -> Result<bool, Error> {
        let Some(file) = self.files.get(self.next) else {
            return Ok(false);
        };
        let mut picture = open_photo(file)?;
        let (width, height) = (self.info.width, self.info.height);
        if picture.dimensions() != (width, height) {
            if !std::mem::replace(&mut self.warned, true) {
                tracing::warn!(
                    "{} has another size than the first picture: such frames are stretched",
                    file.display()
                );
            }
            picture = imageops::resize(&picture, width, height, FilterType::Triangle);
        }
        let crop = self.crop;
        if crop != Rect::of_size(width, height) {
            let (x, y) = (crop.x1.unsigned_abs(), crop.y1.unsigned_abs());
            picture = imageops::crop_imm(&picture, x, y, crop.width(), crop.height()).to_image();
        }
        if picture.dimensions() != self.size {
            picture = imageops::resize(&picture, self.size.0, self.size.1, FilterType::Triangle);
        }
        *into = picture;
        self.next += 1;
        Ok(true)
    }

    fn rewind(&mut self) -> Result<(), Error> {
        self.next = self.start;
        Ok(())
    }

    fn reopen(&mut self, options: &ReadOptions) -> Result<(), Error> {
        let size = (self.info.width, self.info.height);
        let again = Self::of(&self.info.path, size, self.files.clone(), options)?;
        *self = Self {
            warned: self.warned,
            ..again
        };
        Ok(())
    }
}

/// The names of the files in a folder that are text; the others cannot be numbered names.
fn names(folder: &Path) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| Error::read(folder, e))? {
        let entry = entry.map_err(|e| Error::read(folder, e))?;
        names.extend(entry.file_name().into_string());
    }
    Ok(names)
}

/// The order in which people count names: numbers by value, the rest by character, `2.png` before `10.png`.
pub fn natural(a: &str, b: &str) -> Ordering {
    let (mut rest_a, mut rest_b) = (a, b);
    loop {
        let (digits_a, digits_b) = (leading_digits(rest_a), leading_digits(rest_b));
        if !digits_a.is_empty() && !digits_b.is_empty() {
            let (value_a, value_b) = (
                digits_a.trim_start_matches('0'),
                digits_b.trim_start_matches('0'),
            );
            let order = value_a
                .len()
                .cmp(&value_b.len())
                .then_with(|| value_a.cmp(value_b));
            if order != Ordering::Equal {
                return order;
            }
            (rest_a, rest_b) = (&rest_a[digits_a.len()..], &rest_b[digits_b.len()..]);
            continue;
        }
        let (mut chars_a, mut chars_b) = (rest_a.chars(), rest_b.chars());
        match (chars_a.next(), chars_b.next()) {
            // Names that differ only in zeros still need an order.
            (None, None) => return a.cmp(b),
            (x, y) if x != y => return x.cmp(&y),
            _ => (rest_a, rest_b) = (chars_a.as_str(), chars_b.as_str()),
        }
    }
}

fn leading_digits(text: &str) -> &str {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_ordered_as_people_count() {
        let mut names = [
            "f10.png", "f9.png", "f1.png", "f010.png", "e11.png", "f2b.png", "f2.png", "f.png",
        ];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(
            names,
            [
                "e11.png", "f.png", "f1.png", "f2.png", "f2b.png", "f9.png", "f010.png", "f10.png"
            ]
        );
    }
}

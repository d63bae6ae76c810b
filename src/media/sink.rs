//! The result side: where frames go, by the name of the output.
//!
//! Everything is written under a temporary name in the folder it will be in, and renamed when it is whole:
//! a sink that is dropped leaves no result, not even half of one.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use image::RgbaImage;

use super::MAX_PIXELS;
use super::clip::Fps;
use super::encode::{Encoded, Format};
use super::error::Error;
use super::pattern::Pattern;
use super::provenance::{Provenance, Still};
use super::sequence::Sequence;

/// Takes frames in order and makes a result of them.
pub trait FrameSink: Send {
    /// Adds a frame of the size the sink was made for. Blocks while the encoder is behind.
    fn write(&mut self, frame: &RgbaImage) -> Result<(), Error>;

    /// Completes the result and puts it under its name; gives the files written.
    ///
    /// Without this call there is no result.
    fn finish(self: Box<Self>) -> Result<Vec<PathBuf>, Error>;
}

/// What is to be written.
#[derive(Clone, Debug)]
pub struct WriteOptions {
    /// Width of every frame.
    pub width: u32,
    /// Height of every frame.
    pub height: u32,
    /// Frames per second.
    pub fps: Fps,
    /// The clip whose sound the result gets, from its start and no longer than the pictures; a clip
    /// without sound is fine. GIF and pictures have none.
    pub audio_from: Option<PathBuf>,
    /// Files and folders that are being read and must not be overwritten.
    pub inputs: Vec<PathBuf>,
    /// What the result says of itself.
    pub provenance: Option<Provenance>,
}

/// Makes the sink for an output name, and the folder it is in.
///
/// - `.mp4`: H.264, yuv420p, BT.709, the index in front. H.264 wants even sizes: an odd width or height
///   gets one more column or row, a copy of the last. Sound is copied when mp4 can hold it, else AAC.
/// - `.webm`: VP9 (VP8 where there is none). Sound is copied when it is Opus or Vorbis, else Opus.
/// - `.gif`: loops for ever, at most 50 frames a second; the palette is taken from the first frames.
/// - a pattern such as `frames/%05d.png`: lossless pictures, numbered from 1; JPEGs with `.jpg`.
pub fn create(output: &Path, options: &WriteOptions) -> Result<Box<dyn FrameSink>, Error> {
    check_size(output, options)?;
    let size = (options.width, options.height);
    let format = match kind(output, &options.inputs)? {
        Kind::Pictures(pattern, still) => {
            let said = options.provenance.clone();
            return Ok(Box::new(Sequence::create(
                output, pattern, still, size, said,
            )?));
        }
        Kind::Video(format) => format,
    };
    check_name(output)?;
    Ok(Box::new(Encoded::create(output, format, options)?))
}

/// Whether [`create`] knows what to write, from the name alone, and would not write over `inputs`.
///
/// # Errors
/// [`Error::UnknownOutput`] and [`Error::Overwrites`].
pub fn check(output: &Path, inputs: &[PathBuf]) -> Result<(), Error> {
    kind(output, inputs).map(|_| ())
}

/// What a name asks for.
enum Kind {
    Pictures(Pattern, Still),
    Video(Format),
}

fn kind(output: &Path, inputs: &[PathBuf]) -> Result<Kind, Error> {
    let kind = match extension(output).as_str() {
        "mp4" => Some(Kind::Video(Format::Mp4)),
        "webm" => Some(Kind::Video(Format::Webm)),
        "gif" => Some(Kind::Video(Format::Gif)),
        _ => {
            Still::of(output).and_then(|still| Some(Kind::Pictures(Pattern::parse(output)?, still)))
        }
    };
    let kind = kind.ok_or_else(|| Error::UnknownOutput {
        path: output.to_owned(),
    })?;
    refuse_overwriting(output, inputs)?;
    Ok(kind)
}

/// Where the result goes.
///
/// `out` with an extension is the file itself; without one, or when it is a folder already, it is a folder
/// that gets `filename`, or `result.mp4`. Nothing at all means the folder `output`. A file name without an
/// extension gets `.mp4`.
pub fn resolve_output(out: Option<&Path>, filename: Option<&str>) -> PathBuf {
    let out = out.unwrap_or(Path::new("output"));
    if out.extension().is_some() && !out.is_dir() {
        return out.to_owned();
    }
    let file = out.join(
        filename
            .filter(|name| !name.is_empty())
            .unwrap_or("result.mp4"),
    );
    if file.extension().is_some() {
        file
    } else {
        file.with_extension("mp4")
    }
}

/// Fails for frames of no pixels or too many.
pub(super) fn check_size(output: &Path, options: &WriteOptions) -> Result<(), Error> {
    let (width, height) = (options.width, options.height);
    if u64::from(width) * u64::from(height) > MAX_PIXELS || width.min(height) == 0 {
        return Err(Error::FrameSize {
            path: output.to_owned(),
            got: (width, height),
            want: (width, height),
        });
    }
    Ok(())
}

/// Fails for a name that cannot be a file's: found now rather than when the work is done.
pub(super) fn check_name(output: &Path) -> Result<(), Error> {
    match fs::metadata(output) {
        Ok(there) if there.is_dir() => Err(Error::Write {
            path: output.to_owned(),
            why: "it is a folder".to_owned(),
        }),
        // One that is too long, say.
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::write(output, &e)),
        _ => Ok(()),
    }
}

/// The folder of an output, made if it is missing.
pub(super) fn make_folder(output: &Path) -> Result<PathBuf, Error> {
    let folder = output
        .parent()
        .filter(|f| !f.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|e| {
        if folder.exists() && !folder.is_dir() {
            Error::Write {
                path: output.to_owned(),
                why: format!("{} is not a folder", folder.display()),
            }
        } else {
            Error::write(output, &e)
        }
    })?;
    Ok(folder.to_owned())
}

/// Fails when writing to `output` would touch one of `inputs`, by whatever names they go.
fn refuse_overwriting(output: &Path, inputs: &[PathBuf]) -> Result<(), Error> {
    let same = |a: &Path, b: &Path| matches!((fs::canonicalize(a), fs::canonicalize(b)), (Ok(a), Ok(b)) if a == b);
    let overwrites = |input: &&PathBuf| match Pattern::parse(output) {
        None => same(output, input),
        // Numbered pictures would land among those of the input: in its folder, or over one of its files.
        Some(pattern) => {
            let named = |file: &Path| {
                file.file_name()
                    .and_then(|n| n.to_str())
                    .and_then(|n| pattern.number(n))
                    .is_some()
            };
            let folder = input
                .parent()
                .filter(|f| !f.as_os_str().is_empty())
                .unwrap_or(Path::new("."));
            let sequence = Pattern::parse(input).is_some() && !input.exists();
            same(&pattern.folder, input)
                || ((sequence || named(input)) && same(&pattern.folder, folder))
        }
    };
    match inputs.iter().find(overwrites) {
        Some(input) => Err(Error::Overwrites {
            path: output.to_owned(),
            input: input.clone(),
        }),
        None => Ok(()),
    }
}

fn extension(path: &Path) -> String {
    path.extension()
        .and_then(|e| e.to_str())
        .unwrap_or_default()
        .to_ascii_lowercase()
}

//! Photos: a file to an upright, opaque picture.
//!
//! PNG, JPEG, WebP, BMP, TIFF (first page) and GIF (first frame), told apart by content and never by name;
//! 1 to 16 bits, grey, palette, alpha, float. The EXIF orientation is applied. Transparency is laid over
//! white, the paper that most cut-outs are looked at on. Colour profiles are ignored: samples are taken as
//! sRGB, as the networks' training data was. HEIC and AVIF are refused with the way to convert them.

use std::fs::File;
use std::io::{BufReader, Read as _, Seek as _};
use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, RgbaImage};

use super::MAX_PIXELS;
use super::error::{Error, plain};

/// Larger files are not looked into: some decoders read the whole file into memory first.
const MAX_BYTES: u64 = 1 << 30;

/// What a decoder may allocate: 100 megapixels of 16-bit RGBA, and some room to work in.
const MAX_ALLOC: u64 = MAX_PIXELS * 8 + (256 << 20);

/// Opens a photo upright and opaque.
///
/// Memory stays under about 12 bytes for each pixel of at most [`MAX_PIXELS`].
pub fn open_photo(path: &Path) -> Result<RgbaImage, Error> {
    let header = Header::read(path)?;
    let orientation = header.orientation;
    let decoded = DynamicImage::from_decoder(header.decoder).map_err(|e| damaged(path, &e))?;
    let mut upright = decoded.into_rgba8();
    flatten(&mut upright);
    if orientation != Orientation::NoTransforms {
        let mut turned = DynamicImage::ImageRgba8(upright);
        turned.apply_orientation(orientation);
        upright = turned.into_rgba8();
    }
    Ok(upright)
}

/// Width and height of a photo as [`open_photo`] would give it, from the header alone.
pub(super) fn photo_size(path: &Path) -> Result<(u32, u32), Error> {
    let header = Header::read(path)?;
    let (width, height) = header.decoder.dimensions();
    Ok(match header.orientation {
        Orientation::Rotate90
        | Orientation::Rotate270
        | Orientation::Rotate90FlipH
        | Orientation::Rotate270FlipH => (height, width),
        _ => (width, height),
    })
}

/// Lays transparent pixels over white.
pub(super) fn flatten(picture: &mut RgbaImage) {
    for pixel in picture.chunks_exact_mut(4) {
        if pixel[3] != 255 {
            let alpha = u32::from(pixel[3]);
            for sample in &mut pixel[..3] {
                let over = (u32::from(*sample) * alpha + 255 * (255 - alpha) + 127) / 255;
                *sample = u8::try_from(over).unwrap_or(255);
            }
            pixel[3] = 255;
        }
    }
}

/// What the first bytes of a file say it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A picture that [`open_photo`] reads.
    Picture(ImageFormat),
    /// HEIC or AVIF.
    Heif,
    /// A container that ffmpeg may read.
    Video,
    /// Readable text.
    Text,
    /// Something else.
    Unknown,
}

/// Opens a file and looks at its first bytes; what is not a regular file, or empty, is an error.
pub(super) fn sniff(path: &Path) -> Result<(File, Kind), Error> {
    let read_error = |e| Error::read(path, e);
    // Asked before opening: opening a pipe would wait for its writer.
    let about = std::fs::metadata(path).map_err(read_error)?;
    if about.is_dir() {
        return Err(read_error(std::io::Error::other("it is a folder")));
    }
    if !about.is_file() {
        return Err(read_error(std::io::Error::other(
            "it is not a regular file",
        )));
    }
    if about.len() == 0 {
        return Err(Error::Empty {
            path: path.to_owned(),
        });
    }
    let mut file = File::open(path).map_err(read_error)?;
    let mut start = Vec::with_capacity(512);
    file.by_ref()
        .take(512)
        .read_to_end(&mut start)
        .map_err(read_error)?;
    file.rewind().map_err(read_error)?;
    Ok((file, kind(&start)))
}

fn kind(start: &[u8]) -> Kind {
    if start.get(4..8) == Some(b"ftyp") {
        return match start.get(8..12) {
            Some(b"heic" | b"heix" | b"heim" | b"heis" | b"mif1" | b"msf1" | b"avif" | b"avis") => {
                Kind::Heif
            }
            _ => Kind::Video,
        };
    }
    let avi = start.starts_with(b"RIFF") && start.get(8..12) == Some(b"AVI ");
    let matroska = start.starts_with(&[0x1a, 0x45, 0xdf, 0xa3]);
    let transport = start.first() == Some(&0x47) && start.get(188) == Some(&0x47);
    if avi || matroska || transport {
        return Kind::Video;
    }
    match image::guess_format(start) {
        Ok(
            format @ (ImageFormat::Png
            | ImageFormat::Jpeg
            | ImageFormat::WebP
            | ImageFormat::Bmp
            | ImageFormat::Tiff
            | ImageFormat::Gif),
        ) => Kind::Picture(format),
        // The window may end inside a character.
        _ if std::str::from_utf8(start).map_or_else(|e| e.error_len().is_none(), |_| true)
            && !start.iter().any(|b| *b < 9 || (14..32).contains(b)) =>
        {
            Kind::Text
        }
        _ => Kind::Unknown,
    }
}

/// A picture's header, its size within the limits.
struct Header {
    decoder: Box<dyn ImageDecoder>,
    orientation: Orientation,
}

impl Header {
    fn read(path: &Path) -> Result<Self, Error> {
        let (mut file, kind) = sniff(path)?;
        let not_a_photo = |what, advice| Error::NotAPhoto {
            path: path.to_owned(),
            what,
            advice,
        };
        let format = match kind {
            Kind::Picture(format) => format,
            Kind::Heif => {
                return Err(not_a_photo(
                    "a HEIC or AVIF file, which mimic does not read",
                    "convert it first, for example with `ffmpeg -i IN photo.png` (ffmpeg 7.1 or newer) or `heif-convert IN photo.png`",
                ));
            }
            Kind::Video => {
                return Err(not_a_photo(
                    "a video",
                    "give it as the driving video, and a picture as the photo",
                ));
            }
            Kind::Text => return Err(not_a_photo("a text file", PICTURES)),
            Kind::Unknown => return Err(not_a_photo("of no kind mimic knows", PICTURES)),
        };
        let bytes = file.metadata().map_err(|e| Error::read(path, e))?.len();
        if bytes > MAX_BYTES {
            return Err(Error::TooLarge {
                path: path.to_owned(),
                size: format!("{} MB", bytes >> 20),
                limit: format!("{} MB", MAX_BYTES >> 20),
            });
        }
        if format == ImageFormat::Jpeg {
            check_jpeg_is_whole(path, &mut file)?;
        }
        let mut limits = Limits::default();
        limits.max_alloc = Some(MAX_ALLOC);
        let mut reader = ImageReader::with_format(BufReader::new(file), format);
        reader.limits(limits);
        let mut decoder = reader.into_decoder().map_err(|e| damaged(path, &e))?;
        let (width, height) = decoder.dimensions();
        check_size(path, width, height)?;
        if decoder.total_bytes() > MAX_ALLOC {
            return Err(too_much_memory(path));
        }
        let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
        Ok(Self {
            decoder: Box::new(decoder),
            orientation,
        })
    }
}

const PICTURES: &str = "give a PNG, JPEG, WebP, BMP, TIFF or GIF";

/// Holds a picture's size against [`MAX_PIXELS`].
pub(super) fn check_size(path: &Path, width: u32, height: u32) -> Result<(), Error> {
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(Error::TooLarge {
            path: path.to_owned(),
            size: format!("{width}x{height} pixels"),
            limit: format!("{} megapixels", MAX_PIXELS / 1_000_000),
        });
    }
    Ok(())
}

/// Refuses a JPEG that was cut: its decoder would fill what is missing with grey and say nothing.
///
/// Such a file lacks the end marker FF D9, which cannot occur inside compressed data. Thumbnails have
/// one of their own, in the segments before the first scan (FF DA): those are stepped over.
fn check_jpeg_is_whole(path: &Path, file: &mut File) -> Result<(), Error> {
    let mut bytes = Vec::new();
    file.by_ref()
        .take(MAX_BYTES)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::read(path, e))?;
    file.rewind().map_err(|e| Error::read(path, e))?;
    let mut at = 2;
    while let Some(&[0xff, marker, high, low]) = bytes.get(at..at + 4) {
        match marker {
            0xda => break,
            0xff => at += 1,
            _ => at += 2 + usize::from(u16::from_be_bytes([high, low])),
        }
    }
    let scans = bytes.get(at..).unwrap_or_default();
    if scans.windows(2).any(|pair| pair == [0xff, 0xd9]) {
        return Ok(());
    }
    Err(Error::DamagedPhoto {
        path: path.to_owned(),
        why: "the picture breaks off".to_owned(),
    })
}

fn damaged(path: &Path, error: &ImageError) -> Error {
    let why = match error {
        ImageError::Limits(_) => return too_much_memory(path),
        ImageError::IoError(e) => plain(e),
        e => e.to_string(),
    };
    Error::DamagedPhoto {
        path: path.to_owned(),
        why: super::ffmpeg::one_line(&why),
    }
}

fn too_much_memory(path: &Path) -> Error {
    Error::TooLarge {
        path: path.to_owned(),
        size: "it asks for more memory than any photo needs".to_owned(),
        limit: format!("{} megapixels", MAX_PIXELS / 1_000_000),
    }
}

//! What can go wrong with pictures and video, each in one sentence that names the file and the way out.

use std::io;
use std::path::{Path, PathBuf};

use crate::geometry::Rect;

/// Why a photo, a clip or a result could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program is not on this machine.
    #[error(
        "the {program} program was not found: install it with `{install}`, or set MIMIC_FFMPEG to where ffmpeg is"
    )]
    NoFfmpeg {
        /// What was looked for.
        program: String,
        /// The command that installs it here.
        install: &'static str,
    },
    /// The program is there and does not start or does not answer.
    #[error("{program} does not run ({why}): reinstall it, or set MIMIC_FFMPEG to another one")]
    BrokenFfmpeg {
        /// What was started.
        program: String,
        /// What it said.
        why: String,
    },
    /// A file cannot be opened or read.
    #[error("cannot read {}: {}; check the name and the permissions", .path.display(), plain(.source))]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file of no bytes.
    #[error("{} is empty: fetch or save it again", .path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Something else under the name of a photo.
    #[error("{} is {what}, not a photo: {advice}", .path.display())]
    NotAPhoto {
        /// The file.
        path: PathBuf,
        /// What its content looks like.
        what: &'static str,
        /// What to do instead.
        advice: &'static str,
    },
    /// A picture that breaks off or does not decode.
    #[error(
        "{} is damaged or cut short ({why}): open it in an image editor and save it again, or use another photo",
        .path.display()
    )]
    DamagedPhoto {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        why: String,
    },
    /// More pixels or bytes than are ever decoded.
    #[error("{} is too large ({size}; the limit is {limit}): scale it down first", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// How large it is, with its unit.
        size: String,
        /// The limit, with its unit.
        limit: String,
    },
    /// Something that ffmpeg does not read as a video.
    #[error(
        "{} is {what}: give a video, a folder of numbered pictures, a pattern such as frames/%05d.png, or a picture",
        .path.display()
    )]
    NotAVideo {
        /// The file.
        path: PathBuf,
        /// What it is instead, or what is wrong with it.
        what: String,
    },
    /// A clip from which not one frame came.
    #[error("no frame of {} can be decoded ({why}): use another clip, or convert it with ffmpeg first", .path.display())]
    NoFrames {
        /// The file.
        path: PathBuf,
        /// What ffmpeg said.
        why: String,
    },
    /// The first frame asked for lies behind the last.
    #[error("{} has only {frames} frames: frame {wanted} does not exist, choose one from 0 to {}", .path.display(), .frames.saturating_sub(1))]
    PastTheEnd {
        /// The clip.
        path: PathBuf,
        /// How many frames it has.
        frames: u64,
        /// The frame asked for, counted from 0.
        wanted: u64,
    },
    /// A folder or pattern that matches no picture.
    #[error("{} holds no pictures: it needs files such as 00001.png, 00002.png or 1.jpg, 2.jpg", .path.display())]
    NoPictures {
        /// The folder or pattern.
        path: PathBuf,
    },
    /// A crop that shares no pixel with the picture.
    #[error("the box {crop} lies outside {}, which is {width}x{height} pixels: choose one inside", .path.display())]
    OutsideTheFrame {
        /// The clip or photo.
        path: PathBuf,
        /// The box asked for.
        crop: Rect,
        /// Width of the picture.
        width: u32,
        /// Height of the picture.
        height: u32,
    },
    /// An output name that says no known format.
    #[error(
        "cannot tell what to write from the name {}: it must end in .mp4, .webm or .gif, or be a pattern such as frames/%05d.png or .jpg",
        .path.display()
    )]
    UnknownOutput {
        /// The name asked for.
        path: PathBuf,
    },
    /// Writing would destroy what is being read.
    #[error("the output {} would overwrite the input {}: choose another name with -o", .path.display(), .input.display())]
    Overwrites {
        /// The output.
        path: PathBuf,
        /// The input it stands for.
        input: PathBuf,
    },
    /// The result cannot be put where it was asked for.
    #[error("cannot write {}: {why}; choose another place with -o", .path.display())]
    Write {
        /// The result.
        path: PathBuf,
        /// The reason.
        why: String,
    },
    /// ffmpeg gave up on the result.
    #[error("ffmpeg could not write {} ({why}): free space or choose another place or format with -o", .path.display())]
    Encode {
        /// The result.
        path: PathBuf,
        /// What ffmpeg said.
        why: String,
    },
    /// A recording that ended before it was told to; what there was is kept.
    #[error("the recording ended early ({why}): its first {seconds:.0} seconds are in {}", .path.display())]
    Interrupted {
        /// Where they are.
        path: PathBuf,
        /// How long that is.
        seconds: f64,
        /// What was wrong.
        why: String,
    },
    /// This ffmpeg was built without what the format needs.
    #[error(
        "this ffmpeg has no encoder for {} (looked for {tried}): install a full build of ffmpeg or choose another format with -o",
        .path.display()
    )]
    NoEncoder {
        /// The result.
        path: PathBuf,
        /// The encoders that would do.
        tried: String,
    },
    /// A certificate or key that does not sign.
    #[error(
        "cannot sign with {} and {}: {why}; give a chain of certificates in PEM, your own first, and its private key as PKCS#8",
        .certificate.display(), .key.display()
    )]
    Certificate {
        /// The chain of certificates.
        certificate: PathBuf,
        /// The private key.
        key: PathBuf,
        /// What is wrong with them.
        why: String,
    },
    /// The result could not be signed.
    #[error("{} could not be signed ({why}): leave --sign out, or write mp4, gif, PNG or JPEG", .path.display())]
    Sign {
        /// The result.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The sink was finished before it was given a frame.
    #[error("nothing was written to {}: there was no frame to write, check the driving clip", .path.display())]
    NothingWritten {
        /// The result.
        path: PathBuf,
    },
    /// The sink was given a frame of another size than it was made for, or was made for none.
    #[error("a frame of {}x{} pixels cannot go into {}, which takes {}x{}: all frames must have one size", .got.0, .got.1, .path.display(), .want.0, .want.1)]
    FrameSize {
        /// The result.
        path: PathBuf,
        /// Width and height of the frame.
        got: (u32, u32),
        /// Width and height the sink was made for.
        want: (u32, u32),
    },
}

impl Error {
    pub(super) fn read(path: &Path, source: io::Error) -> Self {
        Self::Read {
            path: path.to_owned(),
            source,
        }
    }

    pub(super) fn write(path: &Path, source: &io::Error) -> Self {
        Self::Write {
            path: path.to_owned(),
            why: plain(source),
        }
    }
}

/// The system's reason without its number: "No such file or directory", not "… (os error 2)".
pub(super) fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

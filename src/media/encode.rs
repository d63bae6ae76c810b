//! Video as a [`FrameSink`]: raw RGBA over a pipe to the ffmpeg program, then its sound.
//!
//! The pictures are encoded while they come; the sound is put beside them at the end, when their length is
//! known, without encoding them again.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Stdio};

use image::RgbaImage;
use tempfile::TempPath;

use super::clip::Fps;
use super::error::{Error, plain};
use super::ffmpeg::{Running, add_input, encoders, ffmpeg, local, quiet, run};
use super::probe::probe;
use super::sink::{FrameSink, WriteOptions, make_folder};

/// A format ffmpeg writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Mp4,
    Webm,
    Gif,
}

/// A video on its way.
pub(super) struct Encoded {
    // Before the file: dropped in this order, the encoder ends before its file goes.
    encoder: Running,
    /// None once all frames are in.
    pipe: Option<ChildStdin>,
    temporary: TempPath,
    output: PathBuf,
    format: Format,
    size: (u32, u32),
    /// The size that goes over the pipe: even where the format wants it.
    padded: (u32, u32),
    row: Vec<u8>,
    fps: Fps,
    audio_from: Option<PathBuf>,
    written: u64,
}

impl Encoded {
    pub(super) fn create(
        output: &Path,
        format: Format,
        options: &WriteOptions,
    ) -> Result<Self, Error> {
        let known = encoders()?;
        let codec = format.choose(format.pictures(), output, |name| known.contains(name))?;
        let size = (options.width, options.height);
        let padded = match format {
            Format::Mp4 => (size.0.next_multiple_of(2), size.1.next_multiple_of(2)),
            Format::Webm | Format::Gif => size,
        };
        let temporary = temporary(output, format)?;

        let mut command = quiet(ffmpeg());
        command.args(["-y", "-f", "rawvideo", "-pix_fmt", "rgba"]);
        command.args(["-video_size", &format!("{}x{}", padded.0, padded.1)]);
        command.args(["-framerate", &options.fps.to_string(), "-i", "pipe:0"]);
        command.args(format.encoding(codec, padded, options.fps));
        command.args(["-f", format.muxer()]).arg(local(&temporary));
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let mut encoder = Running::start(command)?;
        Ok(Self {
            pipe: encoder.stdin(),
            encoder,
            temporary,
            output: output.to_owned(),
            format,
            size,
            padded,
            row: Vec::new(),
            fps: options.fps,
            audio_from: options
                .audio_from
                .clone()
                .filter(|_| !format.sounds().is_empty()),
            written: 0,
        })
    }

    /// Puts the sound of the driving clip beside the finished pictures; gives the new file, or none when
    /// there is no sound. Sound that fails is not worth the pictures: it is left out with a warning.
    fn add_sound(&self, clip: &Path) -> Result<Option<TempPath>, Error> {
        let Some(codec) = probe(clip)?.audio else {
            return Ok(None);
        };
        let with_sound = temporary(&self.output, self.format)?;
        let seconds = self.written as f64 / self.fps.as_f64();
        let mut command = quiet(ffmpeg());
        command.args(["-nostdin", "-y"]);
        add_input(&mut command, &self.temporary);
        // A limit on the input: one on the output could cost the last frame.
        command.args(["-t", &format!("{seconds:.6}")]);
        add_input(&mut command, clip);
        command.args([
            "-map",
            "0:v:0",
            "-map",
            "1:a:0",
            "-map_chapters",
            "-1",
            "-c:v",
            "copy",
        ]);
        if self.format.holds(&codec) {
            command.args(["-c:a", "copy"]);
        } else {
            let known = encoders()?;
            let codec = self
                .format
                .choose(self.format.sounds(), &self.output, |name| {
                    known.contains(name)
                })?;
            command.args(["-c:a", codec, "-b:a", "192k"]);
        }
        command
            .args(self.format.muxing())
            .args(["-f", self.format.muxer()])
            .arg(local(&with_sound));
        let answer = run(command, 0)?;
        if answer.status.success() {
            Ok(Some(with_sound))
        } else {
            Err(Error::Encode {
                path: self.output.clone(),
                why: answer.said,
            })
        }
    }

    /// Why the encoder stopped taking frames, or did not end well.
    fn failure(&mut self) -> Error {
        self.pipe = None;
        match self.encoder.wait() {
            Ok((_, said)) => {
                let why = if said.is_empty() {
                    "it stopped without a word".to_owned()
                } else {
                    said
                };
                Error::Encode {
                    path: self.output.clone(),
                    why,
                }
            }
            Err(error) => error,
        }
    }

    fn send(&mut self, frame: &RgbaImage) -> std::io::Result<()> {
        let Some(pipe) = &mut self.pipe else {
            return Ok(());
        };
        if self.padded == self.size {
            return pipe.write_all(frame);
        }
        let rows = frame.chunks_exact(self.size.0 as usize * 4);
        let last = rows
            .clone()
            .next_back()
            .filter(|_| self.padded.1 > self.size.1);
        for row in rows.chain(last) {
            self.row.clear();
            self.row.extend_from_slice(row);
            if self.padded.0 > self.size.0 {
                self.row.extend_from_slice(&row[row.len() - 4..]);
            }
            pipe.write_all(&self.row)?;
        }
        Ok(())
    }
}

impl FrameSink for Encoded {
    fn write(&mut self, frame: &RgbaImage) -> Result<(), Error> {
        if frame.dimensions() != self.size {
            return Err(Error::FrameSize {
                path: self.output.clone(),
                got: frame.dimensions(),
                want: self.size,
            });
        }
        // The only way a write fails is that the encoder has gone.
        if self.send(frame).is_err() {
            return Err(self.failure());
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
        self.pipe = None;
        let (status, said) = self.encoder.wait()?;
        if !status.success() {
            return Err(Error::Encode {
                path: self.output.clone(),
                why: said,
            });
        }
        if let Some(clip) = self.audio_from.clone() {
            match self.add_sound(&clip) {
                Ok(Some(with_sound)) => self.temporary = with_sound,
                Ok(None) => tracing::debug!("{} has no sound", clip.display()),
                Err(error) => tracing::warn!(
                    "{} is written without sound: {error}",
                    self.output.display()
                ),
            }
        }
        let Self {
            encoder,
            temporary,
            output,
            ..
        } = *self;
        drop(encoder);
        temporary.persist(&output).map_err(|e| Error::Write {
            path: output.clone(),
            why: plain(&e.error),
        })?;
        Ok(vec![output])
    }
}

impl Format {
    /// Encoders for the pictures, best first.
    fn pictures(self) -> &'static [&'static str] {
        match self {
            Self::Mp4 => &["libx264", "h264_videotoolbox", "libopenh264", "h264_mf"],
            Self::Webm => &["libvpx-vp9", "libvpx"],
            Self::Gif => &["gif"],
        }
    }

    /// Encoders for sound, best first; none where the format has no sound.
    fn sounds(self) -> &'static [&'static str] {
        match self {
            Self::Mp4 => &["aac"],
            Self::Webm => &["libopus", "libvorbis"],
            Self::Gif => &[],
        }
    }

    /// Whether sound of a codec can be copied as it is, and played by most.
    fn holds(self, codec: &str) -> bool {
        match self {
            Self::Mp4 => ["aac", "mp3", "ac3", "eac3", "alac"].contains(&codec),
            Self::Webm => ["opus", "vorbis"].contains(&codec),
            Self::Gif => false,
        }
    }

    fn muxer(self) -> &'static str {
        match self {
            Self::Mp4 => "mp4",
            Self::Webm => "webm",
            Self::Gif => "gif",
        }
    }

    /// Options of the container.
    fn muxing(self) -> &'static [&'static str] {
        match self {
            Self::Mp4 => &["-movflags", "+faststart"],
            Self::Webm | Self::Gif => &[],
        }
    }

    fn choose(
        self,
        wanted: &[&'static str],
        output: &Path,
        known: impl Fn(&str) -> bool,
    ) -> Result<&'static str, Error> {
        wanted
            .iter()
            .copied()
            .find(|name| known(name))
            .ok_or_else(|| Error::NoEncoder {
                path: output.to_owned(),
                tried: wanted.join(", "),
            })
    }

    /// Everything between the input and the container.
    fn encoding(self, codec: &str, size: (u32, u32), fps: Fps) -> Vec<String> {
        let mut args = Vec::new();
        let mut add = |words: &str| args.extend(words.split(' ').map(str::to_owned));
        if self == Self::Gif {
            add("-filter_complex");
            add(&palette(size, fps));
            add("-loop 0");
            return args;
        }
        // The conversion and the label must agree, or players show other colours.
        add("-vf");
        add(concat!(
            "scale=out_color_matrix=bt709:out_range=tv:flags=bilinear+accurate_rnd+full_chroma_inp,format=yuv420p,",
            "setparams=range=tv:color_primaries=bt709:color_trc=bt709:colorspace=bt709"
        ));
        add("-color_range tv -color_primaries bt709 -color_trc bt709 -colorspace bt709");
        add(&format!("-c:v {codec}"));
        match codec {
            // Measured at 858x1280 and at 256x256: as cheap as superfast (14 and 1.5 ms of processor time a
            // frame, half of the former for reading and converting RGBA) at less than half its size.
            "libx264" => add("-preset veryfast -crf 15"),
            "libvpx-vp9" => add("-deadline realtime -cpu-used 6 -row-mt 1 -crf 24 -b:v 0"),
            "libvpx" => add(&format!(
                "-deadline realtime -cpu-used 6 -crf 10 -b:v {}",
                bitrate(size, fps)
            )),
            _ => add(&format!("-b:v {}", bitrate(size, fps))),
        }
        self.muxing().iter().for_each(|words| add(words));
        args
    }
}

/// A file beside the output that goes when it is dropped; it is made with the rights any new file has.
fn temporary(output: &Path, format: Format) -> Result<TempPath, Error> {
    let folder = make_folder(output)?;
    let suffix = format!(".{}", format.muxer());
    let mut builder = tempfile::Builder::new();
    builder.prefix(".mimic-").suffix(&suffix);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    Ok(builder
        .tempfile_in(folder)
        .map_err(|e| Error::write(output, &e))?
        .into_temp_path())
}

/// Bits a second for encoders that cannot be asked for a quality: 0.2 bits a pixel.
fn bitrate(size: (u32, u32), fps: Fps) -> u64 {
    let pixels = f64::from(size.0) * f64::from(size.1) * fps.as_f64();
    ((pixels * 0.2) as u64).max(200_000)
}

/// A palette from the first frames, which ffmpeg holds (up to 16 of them, no more than 128 MB), then a
/// fixed dither, so that what stands still does not flicker. One from all frames would hold them all.
fn palette(size: (u32, u32), fps: Fps) -> String {
    let frame = u64::from(size.0) * u64::from(size.1) * 4;
    let held = ((128 << 20) / frame.max(1)).clamp(1, 16);
    // Delays are in hundredths of a second, and players slow one down that is under two.
    let rate = if fps.as_f64() > 50.0 { "fps=50," } else { "" };
    format!(
        "{rate}split[look][draw];[look]trim=end_frame={held},palettegen[colours];\
         [draw][colours]paletteuse=dither=bayer:bayer_scale=4"
    )
}

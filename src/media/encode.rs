//! Video as a [`FrameSink`]: raw frames over a pipe to the ffmpeg program, then its sound.
//!
//! The pictures are encoded while they come; the sound is put beside them at the end, when their length is
//! known, without encoding them again.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Stdio};

use image::RgbaImage;
use tempfile::TempPath;

use super::clip::Fps;
use super::error::{Error, plain};
use super::ffmpeg::{Running, add_input, encoders, ffmpeg, local, quiet, run};
use super::leftovers;
use super::planes::Planes;
use super::probe::{length, probe};
use super::provenance::Provenance;
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
    /// Says that this is at work on it; see [`leftovers`].
    _held: Option<File>,
    output: PathBuf,
    format: Format,
    size: (u32, u32),
    /// What goes over the pipe; None for RGBA as it is.
    planes: Option<Planes>,
    fps: Fps,
    audio_from: Option<PathBuf>,
    said: Option<Provenance>,
    written: u64,
    /// In fragments, each of which can be played without what comes after it.
    live: bool,
}

impl Encoded {
    pub(super) fn create(
        output: &Path,
        format: Format,
        options: &WriteOptions,
    ) -> Result<Self, Error> {
        Self::start(output, format, options, false)
    }

    /// An mp4 of which [`Encoded::salvage`] can save what was written if the encoder dies.
    pub(super) fn live(output: &Path, options: &WriteOptions) -> Result<Self, Error> {
        Self::start(output, Format::Mp4, options, true)
    }

    fn start(
        output: &Path,
        format: Format,
        options: &WriteOptions,
        live: bool,
    ) -> Result<Self, Error> {
        let known = encoders()?;
        let codec = format.choose(format.pictures(), output, |name| known.contains(name))?;
        let size = (options.width, options.height);
        let padded = match format {
            Format::Mp4 => (size.0.next_multiple_of(2), size.1.next_multiple_of(2)),
            Format::Webm | Format::Gif => size,
        };
        let planes = (format != Format::Gif).then(|| Planes::new(size, padded));
        // What there is of a recording can be played, and stays when this is killed.
        let prefix = if live { ".mimic-" } else { leftovers::PREFIX };
        leftovers::clear(&make_folder(output)?);
        let temporary = temporary(output, prefix, format)?;
        let held = leftovers::hold(&temporary);

        let pixels = if planes.is_some() { "yuv420p" } else { "rgba" };
        let mut command = quiet(ffmpeg());
        command.args(["-y", "-f", "rawvideo", "-pix_fmt", pixels]);
        command.args(["-video_size", &format!("{}x{}", padded.0, padded.1)]);
        command.args(["-framerate", &options.fps.to_string(), "-i", "pipe:0"]);
        command.args(format.encoding(codec, padded, options.fps));
        if live {
            // Written without a plus sign it takes the place of the format's own flags.
            command.args(["-movflags", "frag_keyframe+empty_moov+default_base_moof"]);
            let seconds = 2.0;
            let frames = (options.fps.as_f64() * seconds).ceil();
            command.args(["-g", &frames.to_string(), "-flush_packets", "1"]);
        }
        command.args(format.tags(options.provenance.as_ref()));
        command.args(["-f", format.muxer()]).arg(local(&temporary));
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let mut encoder = Running::start(command)?;
        Ok(Self {
            pipe: encoder.stdin(),
            encoder,
            temporary,
            _held: held,
            output: output.to_owned(),
            format,
            size,
            planes,
            fps: options.fps,
            audio_from: options
                .audio_from
                .clone()
                .filter(|_| !format.sounds().is_empty()),
            said: options.provenance.clone(),
            written: 0,
            live,
        })
    }

    /// Takes the sound of a clip, from its start; see [`WriteOptions::audio_from`].
    pub(super) fn sound_from(&mut self, clip: PathBuf) {
        self.audio_from = Some(clip);
    }

    /// What the result will say of itself, in the place of what it was to say.
    pub(super) fn say(&mut self, said: Provenance) {
        self.said = Some(said);
    }

    /// What was written of a recording whose encoder has died, put under its name; none when not one frame
    /// of it can be played.
    pub(super) fn salvage(mut self) -> Option<PathBuf> {
        self.pipe = None;
        let _ = self.encoder.wait();
        let playable = |file: &Path| length(file).is_some_and(|seconds| seconds > 0.0);
        let sound = self.audio_from.clone();
        let whole = match sound.map(|clip| self.add_sound(&clip)) {
            Some(Ok(Some(with_sound))) => Ok(with_sound),
            _ => self.assemble(None),
        };
        let saved = match whole {
            Ok(whole) if playable(&whole) => whole,
            // There was no room for a second file: most players take the fragments as they are.
            _ if playable(&self.temporary) => self.temporary,
            _ => return None,
        };
        if let Err(error) = self.format.state(&saved, self.said.as_ref(), &self.output) {
            tracing::warn!("{error}");
        }
        saved.persist(&self.output).ok()?;
        Some(self.output)
    }

    /// Puts the sound of the driving clip beside the finished pictures; gives the new file, or none when
    /// there is no sound. Sound that fails is not worth the pictures: it is left out with a warning.
    fn add_sound(&self, clip: &Path) -> Result<Option<TempPath>, Error> {
        match probe(clip)?.audio {
            Some(codec) => self.assemble(Some((clip, &codec))).map(Some),
            None => Ok(None),
        }
    }

    /// A new file in one piece of the finished pictures and, if any, the sound of a clip in a codec.
    fn assemble(&self, sound: Option<(&Path, &str)>) -> Result<TempPath, Error> {
        let assembled = temporary(&self.output, leftovers::PREFIX, self.format)?;
        let seconds = self.written as f64 / self.fps.as_f64();
        let mut command = quiet(ffmpeg());
        command.args(["-nostdin", "-y"]);
        add_input(&mut command, &self.temporary);
        if let Some((clip, _)) = sound {
            // A limit on the input: one on the output could cost the last frame.
            command.args(["-t", &format!("{seconds:.6}")]);
            add_input(&mut command, clip);
        }
        command.args(["-map", "0:v:0", "-map_chapters", "-1", "-c:v", "copy"]);
        if sound.is_some() {
            command.args(["-map", "1:a:0"]);
        }
        match sound {
            Some((_, codec)) if self.format.holds(codec) => {
                command.args(["-c:a", "copy"]);
            }
            Some(_) => {
                let known = encoders()?;
                let codec = self
                    .format
                    .choose(self.format.sounds(), &self.output, |name| {
                        known.contains(name)
                    })?;
                command.args(["-c:a", codec, "-b:a", "192k"]);
            }
            None => {}
        }
        command
            .args(self.format.muxing())
            .args(self.format.tags(self.said.as_ref()))
            .args(["-f", self.format.muxer()])
            .arg(local(&assembled));
        let answer = run(command, 0)?;
        if answer.status.success() {
            Ok(assembled)
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
        match &mut self.planes {
            Some(planes) => pipe.write_all(planes.convert(frame)),
            None => pipe.write_all(frame),
        }
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
        let mut whole = !self.live;
        if let Some(clip) = self.audio_from.clone() {
            match self.add_sound(&clip) {
                Ok(Some(with_sound)) => {
                    self.temporary = with_sound;
                    whole = true;
                }
                Ok(None) => tracing::debug!("{} has no sound", clip.display()),
                Err(error) => tracing::warn!(
                    "{} is written without sound: {error}",
                    self.output.display()
                ),
            }
        }
        if !whole {
            match self.assemble(None) {
                Ok(assembled) => self.temporary = assembled,
                Err(error) => tracing::warn!("the recording stays in fragments: {error}"),
            }
        }
        self.format
            .state(&self.temporary, self.said.as_ref(), &self.output)?;
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

    /// Options that write what a result says of itself; a GIF has no tags.
    fn tags(self, said: Option<&Provenance>) -> Vec<String> {
        let tags = said.filter(|_| self != Self::Gif);
        let tags = tags.map_or(Vec::new(), |said| said.tags(self == Self::Webm));
        tags.iter()
            .flat_map(|(key, value)| ["-metadata".to_owned(), format!("{key}={value}")])
            .collect()
    }

    /// Lets a file that is whole say what it is, and signs it; `output` is what it will be called.
    fn state(self, file: &Path, said: Option<&Provenance>, output: &Path) -> Result<(), Error> {
        let Some(said) = said else {
            return Ok(());
        };
        match self {
            Self::Mp4 => said.append_to_mp4(file),
            Self::Gif => said.insert_into_gif(file),
            // Its tags are in it already.
            Self::Webm => Ok(()),
        }
        .map_err(|e| Error::write(output, &e))?;
        match &said.signer {
            Some(signer) => signer.sign(file, Some(said)),
            None => Ok(()),
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
        // What `Planes` has made must be called so, or players show other colours.
        add("-vf");
        add("setparams=range=tv:color_primaries=bt709:color_trc=bt709:colorspace=bt709");
        add("-color_range tv -color_primaries bt709 -color_trc bt709 -colorspace bt709");
        add(&format!("-c:v {codec}"));
        match codec {
            // Measured on the demo (docs/performance.md): four fifths of veryfast's time for a file a tenth
            // larger. What superfast leaves out with its usual look-ahead of none would make it four times as large.
            "libx264" => add("-preset superfast -x264-params mbtree=1:rc-lookahead=10 -crf 15"),
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
fn temporary(output: &Path, prefix: &str, format: Format) -> Result<TempPath, Error> {
    let folder = make_folder(output)?;
    let suffix = format!(".{}", format.muxer());
    let mut builder = tempfile::Builder::new();
    builder.prefix(prefix).suffix(&suffix);
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

//! A video as a [`FrameSource`]: the ffmpeg program decodes, turns, crops, scales and resamples, and hands
//! raw RGBA over a pipe. One frame is held here, and the pipe makes ffmpeg wait for the reader.

use std::io::Read;
use std::path::Path;
use std::process::{ChildStdout, Stdio};

use image::RgbaImage;

use super::clip::{ClipInfo, FrameSource, ReadOptions};
use super::error::Error;
use super::ffmpeg::{Running, add_input, ffmpeg, quiet};
use super::photo::flatten;
use super::probe::{VideoStream, probe};
use crate::geometry::Rect;

/// Bilinear, which averages when it makes smaller. Rounding is exact; without it colours are off by up
/// to two steps.
const SCALER: &str = "bilinear+accurate_rnd";

/// A video file.
pub(super) struct Video {
    info: ClipInfo,
    stream: VideoStream,
    crop: Rect,
    size: (u32, u32),
    start_frame: u64,
    /// None before the first read and after the end.
    decoder: Option<(Running, ChildStdout)>,
    /// Frames read in this pass, those before `start_frame` included.
    read: u64,
    ended: bool,
    /// Whether the log has already said that the clip is damaged.
    warned: bool,
}

impl Video {
    pub(super) fn open(path: &Path, options: &ReadOptions) -> Result<Self, Error> {
        let probe = probe(path)?;
        let Some(stream) = probe.video else {
            let what = if probe.audio.is_some() {
                "sound without pictures"
            } else {
                "a container without pictures"
            };
            return Err(Error::NotAVideo {
                path: path.to_owned(),
                what: what.to_owned(),
            });
        };
        Self::of(path, stream, probe.audio.is_some(), options)
    }

    /// Of what ffprobe has said.
    fn of(
        path: &Path,
        stream: VideoStream,
        has_audio: bool,
        options: &ReadOptions,
    ) -> Result<Self, Error> {
        let fps = options.fps.unwrap_or(stream.fps);
        let info = ClipInfo {
            path: path.to_owned(),
            width: stream.width,
            height: stream.height,
            fps,
            frames: stream
                .duration
                .map(|s| (s * fps.as_f64()).round() as u64)
                .or(stream.stored),
            duration: stream.duration,
            has_audio,
        };
        let (crop, size) = info.window(options)?;
        Ok(Self {
            stream,
            crop,
            size,
            start_frame: options.start_frame,
            decoder: None,
            read: 0,
            ended: false,
            warned: false,
            info,
        })
    }

    fn start(&self) -> Result<(Running, ChildStdout), Error> {
        let mut command = quiet(ffmpeg());
        command.arg("-nostdin");
        add_input(&mut command, &self.info.path);
        command.args([
            "-map",
            &format!("0:{}", self.stream.index),
            "-vf",
            &self.filters(),
        ]);
        // The filters make the rate constant and start over when the size changes; the rate of the output
        // bridges those gaps, and the one before a first frame that comes late.
        command.args([
            "-r",
            &self.info.fps.to_string(),
            "-pix_fmt",
            "rgba",
            "-f",
            "rawvideo",
            "pipe:1",
        ]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut running = Running::start(command)?;
        let pipe = running.stdout().ok_or_else(|| Error::BrokenFfmpeg {
            program: ffmpeg().to_string_lossy().into_owned(),
            why: "it has no output".to_owned(),
        })?;
        Ok((running, pipe))
    }

    /// What ffmpeg does to each frame after it has turned it upright.
    ///
    /// Every chain ends in one size, whatever comes in; scaling to the size a frame has already is free.
    fn filters(&self) -> String {
        let (width, height) = self.size;
        let mut chain = format!("fps={}", self.info.fps);
        let crop = self.crop;
        if crop != Rect::of_size(self.info.width, self.info.height) {
            chain += &format!(
                ",scale={}:{}:flags={SCALER}",
                self.info.width, self.info.height
            );
            chain += &format!(
                ",crop={}:{}:{}:{}:exact=1",
                crop.width(),
                crop.height(),
                crop.x1,
                crop.y1
            );
        }
        chain + &format!(",scale={width}:{height}:flags={SCALER}")
    }

    /// Reads one frame off the pipe; false at the end.
    fn pull(&mut self, into: &mut RgbaImage) -> Result<bool, Error> {
        if self.ended {
            return Ok(false);
        }
        if self.decoder.is_none() {
            self.decoder = Some(self.start()?);
        }
        let Some((_, pipe)) = &mut self.decoder else {
            return Ok(false);
        };
        // A pipe that fails has ended: why, its program says.
        if pipe.read_exact(into).is_ok() {
            self.read += 1;
            return Ok(true);
        }
        self.end()?;
        self.ended = true;
        Ok(false)
    }

    /// Judges the end of a pass: no frames are an error, too few a warning.
    fn end(&mut self) -> Result<(), Error> {
        let Some((mut running, pipe)) = self.decoder.take() else {
            return Ok(());
        };
        drop(pipe);
        let (_, said) = running.wait()?;
        let path = &self.info.path;
        if self.read == 0 {
            let why = if said.is_empty() {
                "it holds none".to_owned()
            } else {
                said
            };
            return Err(Error::NoFrames {
                path: path.clone(),
                why,
            });
        }
        if std::mem::replace(&mut self.warned, true) {
            return Ok(());
        }
        let (read, reason) = (
            self.read,
            if said.is_empty() {
                "no reason given"
            } else {
                &said
            },
        );
        match self.info.frames {
            // A frame more or less is how durations are rounded.
            Some(promised) if read + 1 + promised / 50 < promised => {
                tracing::warn!(
                    "{} breaks off after {read} of about {promised} frames ({reason}): going on with those",
                    path.display()
                );
            }
            _ if !said.is_empty() => {
                tracing::warn!(
                    "{} is damaged in places ({reason}): some frames may look wrong",
                    path.display()
                );
            }
            _ => {}
        }
        Ok(())
    }
}

impl FrameSource for Video {
    fn info(&self) -> &ClipInfo {
        &self.info
    }

    fn read(&mut self, into: &mut RgbaImage) -> Result<bool, Error> {
        if into.dimensions() != self.size {
            *into = RgbaImage::new(self.size.0, self.size.1);
        }
        loop {
            if !self.pull(into)? {
                if self.read > self.start_frame {
                    return Ok(false);
                }
                return Err(Error::PastTheEnd {
                    path: self.info.path.clone(),
                    frames: self.read,
                    wanted: self.start_frame,
                });
            }
            if self.read > self.start_frame {
                flatten(into);
                return Ok(true);
            }
        }
    }

    fn rewind(&mut self) -> Result<(), Error> {
        self.decoder = None;
        self.read = 0;
        self.ended = false;
        Ok(())
    }
    fn reopen(&mut self, options: &ReadOptions) -> Result<(), Error> {
        let again = Self::of(
            &self.info.path,
            self.stream.clone(),
            self.info.has_audio,
            options,
        )?;
        *self = Self {
            warned: self.warned,
            ..again
        };
        Ok(())
    }
}

//! What a clip says of itself, asked of ffprobe. Its answer is as untrusted as the clip.

use std::path::Path;

use serde::Deserialize;

use super::clip::Fps;
use super::error::Error;
use super::ffmpeg::{add_input, ffprobe, quiet, run};
use super::photo::check_size;

/// The picture and the sound of a clip.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Probe {
    /// The first stream of moving pictures: not a cover.
    pub(super) video: Option<VideoStream>,
    /// Codec of the first sound.
    pub(super) audio: Option<String>,
}

/// A stream of pictures.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct VideoStream {
    /// Its number in the file.
    pub(super) index: u32,
    /// Width in square pixels after rotation.
    pub(super) width: u32,
    /// Height in square pixels after rotation.
    pub(super) height: u32,
    /// The average rate.
    pub(super) fps: Fps,
    /// Length in seconds.
    pub(super) duration: Option<f64>,
    /// Frames in the file, whose rate may vary.
    pub(super) stored: Option<u64>,
}

/// The answer is cut here: a clip with thousands of streams is not asked further.
const MAX_ANSWER: u64 = 4 << 20;

/// What is not said or not believable gets this rate.
const FALLBACK_RATE: Fps = super::clip::STILLS_RATE;

/// Length of a file's pictures in seconds, if it has any and says so.
pub(super) fn length(path: &Path) -> Option<f64> {
    probe(path).ok()?.video?.duration
}

/// Asks ffprobe about a regular file.
pub(super) fn probe(path: &Path) -> Result<Probe, Error> {
    let mut command = quiet(ffprobe());
    command.args(["-of", "json", "-show_entries"]).arg(concat!(
        "format=duration",
        ":stream=index,codec_type,codec_name,width,height,sample_aspect_ratio,avg_frame_rate,r_frame_rate,nb_frames,duration",
        ":stream_disposition=attached_pic:stream_side_data=rotation",
    ));
    add_input(&mut command, path);
    let answer = run(command, MAX_ANSWER)?;
    let not_a_video = |what| Error::NotAVideo {
        path: path.to_owned(),
        what,
    };
    if !answer.status.success() {
        return Err(not_a_video(format!(
            "not readable as a video ({})",
            answer.said
        )));
    }
    let report: Report = serde_json::from_slice(&answer.stdout).map_err(|e| {
        not_a_video(format!(
            "described by ffprobe in a way mimic does not understand ({e})"
        ))
    })?;
    let container = report.format.and_then(|f| f.duration);
    let video = report
        .streams
        .iter()
        .find(|s| s.is("video") && s.disposition.attached_pic == 0)
        .map(|s| s.video(path, container.as_deref()))
        .transpose()?;
    let audio = report
        .streams
        .iter()
        .find(|s| s.is("audio"))
        .map(|s| s.codec_name.clone().unwrap_or_default());
    Ok(Probe { video, audio })
}

#[derive(Deserialize)]
struct Report {
    #[serde(default)]
    streams: Vec<Stream>,
    format: Option<Format>,
}

#[derive(Deserialize)]
struct Format {
    duration: Option<String>,
}

#[derive(Deserialize)]
struct Stream {
    index: u32,
    codec_type: Option<String>,
    codec_name: Option<String>,
    width: Option<u32>,
    height: Option<u32>,
    sample_aspect_ratio: Option<String>,
    avg_frame_rate: Option<String>,
    r_frame_rate: Option<String>,
    nb_frames: Option<String>,
    duration: Option<String>,
    #[serde(default)]
    disposition: Disposition,
    #[serde(default)]
    side_data_list: Vec<SideData>,
}

#[derive(Default, Deserialize)]
struct Disposition {
    #[serde(default)]
    attached_pic: u8,
}

#[derive(Deserialize)]
struct SideData {
    rotation: Option<f64>,
}

impl Stream {
    fn is(&self, kind: &str) -> bool {
        self.codec_type.as_deref() == Some(kind)
    }

    fn video(&self, path: &Path, container: Option<&str>) -> Result<VideoStream, Error> {
        let (coded_width, coded_height) = (self.width.unwrap_or(0), self.height.unwrap_or(0));
        if coded_width == 0 || coded_height == 0 {
            return Err(Error::NoFrames {
                path: path.to_owned(),
                why: "its pictures have no size".to_owned(),
            });
        }
        check_size(path, coded_width, coded_height)?;
        let (mut width, mut height) = (
            squared(coded_width, self.sample_aspect_ratio.as_deref()),
            coded_height,
        );
        if self
            .side_data_list
            .iter()
            .filter_map(|d| d.rotation)
            .any(is_quarter_turn)
        {
            (width, height) = (height, width);
        }
        check_size(path, width, height)?;
        let duration = [self.duration.as_deref(), container]
            .into_iter()
            .flatten()
            .find_map(seconds);
        Ok(VideoStream {
            index: self.index,
            width,
            height,
            fps: self.rate(duration),
            duration,
            stored: self.stored(),
        })
    }

    /// The average rate; when that is not said, frames by seconds, or the base rate unless it is only a
    /// clock (1000/1).
    fn rate(&self, seconds: Option<f64>) -> Fps {
        let named = |text: &Option<String>| text.as_deref().and_then(fraction);
        let average = named(&self.avg_frame_rate).and_then(|(n, d)| Fps::new(n, d));
        let counted = || {
            Fps::new(
                u32::try_from(self.stored()? * 1000).ok()?,
                (seconds? * 1000.0).round() as u32,
            )
        };
        let base = || {
            named(&self.r_frame_rate)
                .filter(|(n, d)| n / d.max(&1) <= 120)
                .and_then(|(n, d)| Fps::new(n, d))
        };
        average
            .or_else(counted)
            .or_else(base)
            .unwrap_or(FALLBACK_RATE)
    }

    fn stored(&self) -> Option<u64> {
        self.nb_frames
            .as_deref()
            .and_then(|n| n.parse().ok())
            .filter(|n| (1..u64::MAX / 1000).contains(n))
    }
}

/// The width that gives square pixels, for a shape of pixel ("32:27") within reason.
fn squared(width: u32, shape: Option<&str>) -> u32 {
    let ratio = shape
        .and_then(fraction)
        .map_or(1.0, |(num, den)| f64::from(num) / f64::from(den));
    // Also false for the NaN and infinity of 0:0 and 1:0.
    if (0.1..=10.0).contains(&ratio) {
        ((f64::from(width) * ratio).round() as u32).max(1)
    } else {
        width
    }
}

/// As ffmpeg decides whether to turn a frame onto its side.
fn is_quarter_turn(degrees: f64) -> bool {
    ((degrees.rem_euclid(180.0)) - 90.0).abs() < 1.0
}

fn fraction(text: &str) -> Option<(u32, u32)> {
    let (num, den) = text.split_once(['/', ':'])?;
    Some((num.parse().ok()?, den.parse().ok()?))
}

fn seconds(text: &str) -> Option<f64> {
    text.parse()
        .ok()
        .filter(|s: &f64| s.is_finite() && *s > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(json: &str) -> Stream {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn the_rate_is_the_average_and_always_believable() {
        for (average, base, want) in [
            ("30000/1001", "30000/1001", (30000, 1001)),
            ("133200/4453", "359/12", (133_200, 4453)),
            ("0/0", "24/1", (24, 1)),
            ("0/0", "1000/1", (25, 1)),
            ("0/0", "0/0", (25, 1)),
            ("90000/1", "90000/1", (240, 1)),
            ("1/10", "1/10", (1, 1)),
            ("4000000000/133333333", "30/1", (30000, 1000)),
            ("-25/1", "99999999999/1", (25, 1)),
        ] {
            let s = stream(&format!(
                r#"{{"index":0,"avg_frame_rate":"{average}","r_frame_rate":"{base}"}}"#
            ));
            assert_eq!(
                (s.rate(None).num(), s.rate(None).den()),
                want,
                "{average} {base}"
            );
        }
    }

    #[test]
    fn a_rate_that_is_not_said_is_counted() {
        let s =
            stream(r#"{"index":0,"avg_frame_rate":"0/0","r_frame_rate":"100/1","nb_frames":"2"}"#);
        assert_eq!(s.rate(Some(0.08)).as_f64(), 25.0);
        assert_eq!(s.rate(Some(1e-9)).as_f64(), 100.0);
        assert_eq!(s.rate(None).as_f64(), 100.0);
    }

    #[test]
    fn sizes_are_upright_and_square() {
        for (json, want) in [
            (
                r#"{"index":0,"width":720,"height":576,"sample_aspect_ratio":"16:15"}"#,
                (768, 576),
            ),
            (
                r#"{"index":0,"width":720,"height":576,"sample_aspect_ratio":"0:1"}"#,
                (720, 576),
            ),
            (
                r#"{"index":0,"width":8,"height":4,"sample_aspect_ratio":"1:0"}"#,
                (8, 4),
            ),
            (
                r#"{"index":0,"width":8,"height":4,"side_data_list":[{"rotation":-90}]}"#,
                (4, 8),
            ),
            (
                r#"{"index":0,"width":8,"height":4,"side_data_list":[{"rotation":270}]}"#,
                (4, 8),
            ),
            (
                r#"{"index":0,"width":8,"height":4,"side_data_list":[{},{"rotation":180}]}"#,
                (8, 4),
            ),
        ] {
            let video = stream(json).video(Path::new("x"), None).unwrap();
            assert_eq!((video.width, video.height), want, "{json}");
        }
        let huge = stream(r#"{"index":0,"width":4000000000,"height":4000000000}"#);
        assert!(matches!(
            huge.video(Path::new("x"), None),
            Err(Error::TooLarge { .. })
        ));
        let none = stream(r#"{"index":0,"width":0,"height":0}"#);
        assert!(matches!(
            none.video(Path::new("x"), None),
            Err(Error::NoFrames { .. })
        ));
    }
}

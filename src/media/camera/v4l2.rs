//! Cameras of Linux, through Video4Linux.

use std::fs;
use std::io::ErrorKind;

use v4l::buffer::{Flags as BufferFlags, Type};
use v4l::capability::Flags;
use v4l::format::{Colorspace, Quantization};
use v4l::frameinterval::FrameIntervalEnum;
use v4l::framesize::FrameSizeEnum;
use v4l::io::mmap;
use v4l::io::traits::CaptureStream as _;
use v4l::video::Capture as _;
use v4l::video::capture::Parameters;
use v4l::{Device, Format, FourCC, Fraction};

use super::mode::{Mode, Wish};
use super::{CameraInfo, Error, Opened, STALLED_AFTER, Stream, TICK};
use crate::frame::{Colours, PixelFormat, Raw};

/// The devices that give pictures. One that may not be opened is listed too: starting it says why.
pub(super) fn list() -> Vec<CameraInfo> {
    nodes().into_iter().filter_map(describe).collect()
}

/// Numbers of the video devices, in order.
pub(crate) fn nodes() -> Vec<u32> {
    let entries = fs::read_dir("/sys/class/video4linux").into_iter().flatten();
    let mut nodes: Vec<u32> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            name.to_str()?.strip_prefix("video")?.parse().ok()
        })
        .collect();
    nodes.sort_unstable();
    nodes
}

fn describe(index: u32) -> Option<CameraInfo> {
    let about = |what: &str| {
        let text = fs::read_to_string(format!("/sys/class/video4linux/video{index}/{what}"));
        text.unwrap_or_default().trim().to_owned()
    };
    let mut camera = CameraInfo {
        index,
        name: about("name"),
        place: String::new(),
        formats: String::new(),
    };
    match Device::new(index as usize) {
        Ok(device) => {
            let caps = device.query_caps().ok()?;
            if !caps.capabilities.contains(Flags::VIDEO_CAPTURE) {
                return None;
            }
            let offered = offered(&device);
            if offered.is_empty() {
                return None; // the second node of a webcam, for metadata
            }
            camera.name = caps.card;
            camera.place = caps.bus;
            camera.formats = summary(&modes(&device)).unwrap_or(offered);
        }
        // The first node of a device is the one with the pictures.
        Err(_) if about("index") == "0" => {}
        Err(_) => return None,
    }
    Some(camera)
}

/// "YUYV, MJPEG up to 1280x720"; None of a device without a mode that mimic reads.
fn summary(modes: &[Mode]) -> Option<String> {
    let area = |mode: &&Mode| u64::from(mode.width) * u64::from(mode.height);
    let largest = modes.iter().max_by_key(area)?;
    let mut names: Vec<String> = Vec::new();
    for mode in modes {
        let name = mode.format.to_string();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let (width, height) = (largest.width, largest.height);
    Some(format!("{} up to {width}x{height}", names.join(", ")))
}

/// What a device offers, readable by mimic or not, for people.
fn offered(device: &Device) -> String {
    let mut names: Vec<String> = Vec::new();
    for format in device.enum_formats().unwrap_or_default() {
        let name = match known(format.fourcc) {
            Some(known) => known.to_string(),
            None => format.fourcc.to_string(),
        };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.join(", ")
}

/// Every mode that mimic can read. Ranges of sizes stand for the size closest to the usual ones.
fn modes(device: &Device) -> Vec<Mode> {
    let mut modes = Vec::new();
    for offer in device.enum_formats().unwrap_or_default() {
        let Some(format) = known(offer.fourcc) else {
            continue;
        };
        for size in device.enum_framesizes(offer.fourcc).unwrap_or_default() {
            let sizes = match size.size {
                FrameSizeEnum::Discrete(size) => vec![(size.width, size.height)],
                FrameSizeEnum::Stepwise(range) => [(640, 480), (1280, 720), (320, 240)]
                    .map(|(width, height)| {
                        (
                            step(width, range.min_width, range.max_width, range.step_width),
                            step(
                                height,
                                range.min_height,
                                range.max_height,
                                range.step_height,
                            ),
                        )
                    })
                    .to_vec(),
            };
            for (width, height) in sizes {
                let mut rates = rates(device, offer.fourcc, width, height);
                if rates.is_empty() {
                    rates.push(0.0);
                }
                modes.extend(rates.into_iter().map(|fps| Mode {
                    format,
                    width,
                    height,
                    fps,
                }));
            }
        }
    }
    modes
}

fn rates(device: &Device, format: FourCC, width: u32, height: u32) -> Vec<f32> {
    let intervals = device.enum_frameintervals(format, width, height);
    let mut rates = Vec::new();
    for interval in intervals.unwrap_or_default() {
        match interval.interval {
            FrameIntervalEnum::Discrete(interval) => rates.extend(fps(interval)),
            FrameIntervalEnum::Stepwise(range) => {
                let slowest = fps(range.max).unwrap_or(1.0);
                let fastest = fps(range.min).unwrap_or(30.0);
                rates.push(30f32.min(fastest).max(slowest));
            }
        }
    }
    rates
}

fn fps(interval: Fraction) -> Option<f32> {
    let fps = interval.denominator as f32 / interval.numerator as f32;
    (fps.is_finite() && fps > 0.0).then_some(fps)
}

/// The multiple of the step closest below `want` that is in range.
fn step(want: u32, min: u32, max: u32, step: u32) -> u32 {
    let inside = want.min(max).max(min);
    inside - (inside - min) % step.max(1)
}

fn known(fourcc: FourCC) -> Option<PixelFormat> {
    FORMATS
        .iter()
        .find(|(code, _)| **code == fourcc.repr)
        .map(|&(_, format)| format)
}

const FORMATS: [(&[u8; 4], PixelFormat); 7] = [
    (b"YUYV", PixelFormat::Yuyv),
    (b"NV12", PixelFormat::Nv12),
    (b"MJPG", PixelFormat::Mjpeg),
    (b"JPEG", PixelFormat::Mjpeg),
    (b"RGB3", PixelFormat::Rgb),
    (b"BGR3", PixelFormat::Bgr),
    (b"GREY", PixelFormat::Grey),
];

/// A camera that streams into buffers it shares with the kernel.
pub(super) struct Streaming {
    stream: mmap::Stream<'static>,
    name: String,
    format: Format,
    pixels: PixelFormat,
    fps: f32,
    started: bool,
}

/// Opens a camera in the mode closest to the wish.
pub(super) fn open(camera: &CameraInfo, wish: &Wish) -> Result<Streaming, Error> {
    let name = camera.name.as_str();
    let failed = |error: std::io::Error| Error::from_io(name, &error);
    let device = Device::new(camera.index as usize).map_err(failed)?;
    let mode = wish.closest(modes(&device)).ok_or_else(|| Error::Format {
        name: name.to_owned(),
        offered: offered(&device),
    })?;
    let fourcc = device
        .enum_formats()
        .map_err(failed)?
        .into_iter()
        .map(|offer| offer.fourcc)
        .find(|fourcc| known(*fourcc) == Some(mode.format))
        .unwrap_or_default();
    // What is set is what counts: a driver may change any part of the wish.
    let format = device
        .set_format(&Format::new(mode.width, mode.height, fourcc))
        .map_err(failed)?;
    let pixels = known(format.fourcc).ok_or_else(|| Error::Format {
        name: name.to_owned(),
        offered: format.fourcc.to_string(),
    })?;
    if mode.fps > 0.0 {
        let interval = Fraction::new(1000, (mode.fps * 1000.0).round() as u32);
        // Cameras of one rate refuse to set it.
        if let Err(error) = device.set_params(&Parameters::new(interval)) {
            tracing::debug!("{name} keeps its rate: {error}");
        }
    }
    let rate = device.params().ok().and_then(|p| fps(p.interval));
    let mut stream = mmap::Stream::new(&device, Type::VideoCapture).map_err(failed)?;
    // Longer than the watchdog's: when it is over nobody listens any more.
    stream.set_timeout(STALLED_AFTER * 3);
    Ok(Streaming {
        stream,
        name: name.to_owned(),
        format,
        pixels,
        fps: rate.unwrap_or(0.0),
        started: false,
    })
}

impl Stream for Streaming {
    fn opened(&self) -> Opened {
        Opened {
            name: self.name.clone(),
            width: self.format.width,
            height: self.format.height,
            fps: self.fps,
            format: self.pixels,
        }
    }

    fn next(&mut self, each: &mut dyn FnMut(&Raw<'_>)) -> Result<bool, Error> {
        // Once it runs, wait without giving the last buffer back, and look up now and then.
        if self.started {
            let wait = i32::try_from(TICK.as_millis()).unwrap_or(100);
            match self.stream.handle().poll(libc::POLLIN, wait) {
                Ok(0) => return Ok(false),
                Err(e) if e.kind() == ErrorKind::Interrupted => return Ok(false),
                Err(e) => return Err(Error::from_io(&self.name, &e)),
                Ok(_) => {}
            }
        }
        self.started = true;
        let (buffer, about) = match self.stream.next() {
            Ok(frame) => frame,
            Err(e) => return Err(Error::from_io(&self.name, &e)),
        };
        if about.flags.contains(BufferFlags::ERROR) {
            return Ok(false); // a frame that was damaged on the way
        }
        let used = match about.bytesused as usize {
            0 => buffer.len(),
            used => used.min(buffer.len()),
        };
        each(&Raw {
            format: self.pixels,
            width: self.format.width,
            height: self.format.height,
            stride: self.format.stride as usize,
            colours: colours(&self.format),
            bytes: &buffer[..used],
        });
        Ok(true)
    }
}

/// As the kernel's documentation defines the defaults of each colour space.
fn colours(format: &Format) -> Colours {
    let jpeg = matches!(format.colorspace, Colorspace::JPEG);
    Colours {
        bt709: matches!(
            format.colorspace,
            Colorspace::Rec709 | Colorspace::SMPTE240M | Colorspace::Rec2020 | Colorspace::DCIP3
        ),
        full_range: match format.quantization {
            Quantization::FullRange => true,
            Quantization::LimitedRange => false,
            Quantization::Default => jpeg,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_sizes_is_kept_to() {
        assert_eq!(step(640, 16, 4096, 2), 640);
        assert_eq!(step(640, 800, 4096, 2), 800);
        assert_eq!(step(640, 10, 600, 100), 510);
        assert_eq!(step(640, 10, 600, 0), 600);
    }

    #[test]
    fn a_rate_that_is_no_number_is_none() {
        assert_eq!(fps(Fraction::new(1001, 30000)), Some(30000.0 / 1001.0));
        assert_eq!(fps(Fraction::new(0, 30)), None);
        assert_eq!(fps(Fraction::new(1, 0)), None);
    }
}

//! Cameras of macOS and Windows (and, when asked for, Linux), through `nokhwa`.

use std::sync::Once;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use nokhwa::utils::{
    ApiBackend, CameraFormat, CameraIndex, FrameFormat, RequestedFormat, RequestedFormatType,
};
use nokhwa::{Camera, NokhwaError};

use super::mode::{Mode, Wish};
use super::{CameraInfo, Error, Opened, Stream};
use crate::frame::{Colours, PixelFormat, Raw, row_bytes};

/// How long the user may think about whether mimic may use the camera (macOS).
const PERMISSION: Duration = Duration::from_secs(60);

pub(super) fn list() -> Vec<CameraInfo> {
    let found = nokhwa::query(ApiBackend::Auto).unwrap_or_else(|error| {
        tracing::warn!("cameras cannot be listed: {error}");
        Vec::new()
    });
    let mut cameras: Vec<CameraInfo> = (0..)
        .zip(&found)
        .map(|(position, camera)| CameraInfo {
            index: camera.index().as_index().unwrap_or(position),
            name: camera.human_name().trim_matches('\0').to_owned(),
            place: camera.misc(),
            formats: String::new(),
        })
        .collect();
    cameras.sort_by_key(|camera| camera.index);
    cameras
}

/// A camera that streams.
pub(super) struct Streaming {
    camera: Camera,
    name: String,
    mode: CameraFormat,
}

pub(super) fn open(info: &CameraInfo, wish: &Wish) -> Result<Streaming, Error> {
    let failed = |error: NokhwaError| Error::from_text(&info.name, &error.to_string());
    ask_permission();
    let formats: Vec<FrameFormat> = wish.formats.iter().map(|&f| to_nokhwa(f)).collect();
    let any = RequestedFormat::with_formats(RequestedFormatType::None, &formats);
    let mut camera = Camera::new(CameraIndex::Index(info.index), any).map_err(|error| {
        // Its word for having none of the formats asked for.
        if error.to_string().to_lowercase().contains("fufill") {
            Error::Format {
                name: info.name.clone(),
                offered: "other formats".to_owned(),
            }
        } else {
            failed(error)
        }
    })?;
    // Its own "closest" finds no rate for a size that is not exactly the one asked for.
    let offered = camera.compatible_camera_formats().unwrap_or_default();
    let modes = offered.iter().map(|offer| Mode {
        format: from_nokhwa(offer.format()),
        width: offer.width(),
        height: offer.height(),
        fps: offer.frame_rate() as f32,
    });
    if let Some(mode) = wish.closest(modes) {
        let format = to_nokhwa(mode.format);
        let exact = CameraFormat::new_from(mode.width, mode.height, format, mode.fps as u32);
        let formats = [format];
        let request = RequestedFormat::with_formats(RequestedFormatType::Exact(exact), &formats);
        if let Err(error) = camera.set_camera_requset(request) {
            tracing::debug!("{} keeps its mode: {error}", info.name);
        }
    }
    camera.open_stream().map_err(failed)?;
    Ok(Streaming {
        mode: camera.camera_format(),
        name: info.name.clone(),
        camera,
    })
}

impl Stream for Streaming {
    fn opened(&self) -> Opened {
        Opened {
            name: self.name.clone(),
            width: self.mode.width(),
            height: self.mode.height(),
            fps: self.mode.frame_rate() as f32,
            format: from_nokhwa(self.mode.format()),
        }
    }

    fn next(&mut self, each: &mut dyn FnMut(&Raw<'_>)) -> Result<bool, Error> {
        let bytes = self
            .camera
            .frame_raw()
            .map_err(|error| Error::from_text(&self.name, &error.to_string()))?;
        let format = from_nokhwa(self.mode.format());
        each(&Raw {
            format,
            width: self.mode.width(),
            height: self.mode.height(),
            stride: stride(format, self.mode.width(), self.mode.height(), bytes.len()),
            colours: Colours::default(),
            bytes: &bytes,
        });
        Ok(true)
    }
}

/// Bytes from row to row, which nokhwa does not tell: worked out from the length where rows are padded.
fn stride(format: PixelFormat, width: u32, height: u32, length: usize) -> usize {
    let Some(row) = row_bytes(format, width) else {
        return 0;
    };
    let rows = match format {
        PixelFormat::Nv12 => height as usize + height.div_ceil(2) as usize,
        _ => height as usize,
    };
    if rows > 0 && length > row * rows && length.is_multiple_of(rows) {
        length / rows
    } else {
        row
    }
}

/// Asks the user once, where the system wants that, and waits for the answer.
fn ask_permission() {
    static ASKED: Once = Once::new();
    ASKED.call_once(|| {
        if nokhwa::nokhwa_check() {
            return;
        }
        let (send, answer) = sync_channel(1);
        nokhwa::nokhwa_initialize(move |granted| {
            let _ = send.try_send(granted);
        });
        // A refusal shows when the camera is opened.
        let _ = answer.recv_timeout(PERMISSION);
    });
}

fn to_nokhwa(format: PixelFormat) -> FrameFormat {
    match format {
        PixelFormat::Yuyv => FrameFormat::YUYV,
        PixelFormat::Nv12 => FrameFormat::NV12,
        PixelFormat::Mjpeg => FrameFormat::MJPEG,
        PixelFormat::Rgb => FrameFormat::RAWRGB,
        PixelFormat::Bgr => FrameFormat::RAWBGR,
        PixelFormat::Grey => FrameFormat::GRAY,
    }
}

fn from_nokhwa(format: FrameFormat) -> PixelFormat {
    match format {
        FrameFormat::YUYV => PixelFormat::Yuyv,
        FrameFormat::NV12 => PixelFormat::Nv12,
        FrameFormat::MJPEG => PixelFormat::Mjpeg,
        FrameFormat::RAWRGB => PixelFormat::Rgb,
        FrameFormat::RAWBGR => PixelFormat::Bgr,
        FrameFormat::GRAY => PixelFormat::Grey,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padded_rows_are_found_by_the_length() {
        assert_eq!(stride(PixelFormat::Yuyv, 640, 480, 640 * 480 * 2), 1280);
        assert_eq!(stride(PixelFormat::Yuyv, 640, 480, 1344 * 480), 1344);
        assert_eq!(stride(PixelFormat::Nv12, 640, 480, 704 * 720), 704);
        // Trailing bytes are no padding.
        assert_eq!(stride(PixelFormat::Rgb, 640, 480, 640 * 480 * 3 + 7), 1920);
        assert_eq!(stride(PixelFormat::Mjpeg, 640, 480, 9999), 0);
    }
}

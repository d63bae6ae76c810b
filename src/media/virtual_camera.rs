//! The animated picture as a camera that other programs can choose: Linux, through v4l2loopback.
//!
//! Other systems want a signed system extension (macOS) or a COM server (Windows) for that: there it is one
//! sentence that says so.

use std::path::PathBuf;

/// Why there is no virtual camera.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// This system has no such device.
    #[error(
        "there is no virtual camera yet: run `sudo apt install v4l2loopback-dkms && sudo modprobe v4l2loopback exclusive_caps=1 card_label=mimic`"
    )]
    None,
    /// All of them are being written to.
    #[error(
        "the virtual camera {0} is in use by another program: close that program, or add a device with `sudo modprobe v4l2loopback`"
    )]
    Busy(PathBuf),
    /// The system does not let mimic use it.
    #[error(
        "the virtual camera {0} may not be opened: run `sudo usermod -aG video $USER` and log in again"
    )]
    Denied(PathBuf),
    /// It went away, or does not do what it should.
    #[error(
        "the virtual camera {path} failed ({why}): run `sudo modprobe -r v4l2loopback && sudo modprobe v4l2loopback exclusive_caps=1 card_label=mimic`"
    )]
    Device {
        /// The device.
        path: PathBuf,
        /// What the driver said.
        why: String,
    },
    /// Not on this system.
    #[error("a virtual camera needs Linux: here, share mimic's window in full screen instead")]
    NotLinux,
}

#[cfg(target_os = "linux")]
pub use linux::VirtualCamera;

#[cfg(not(target_os = "linux"))]
pub use elsewhere::VirtualCamera;

#[cfg(target_os = "linux")]
mod linux {
    use std::fs;
    use std::io::{ErrorKind, Write as _};
    use std::path::{Path, PathBuf};

    use image::RgbaImage;
    use v4l::capability::Flags;
    use v4l::format::{Colorspace, FieldOrder, Quantization};
    use v4l::video::Output as _;
    use v4l::{Device, Format, FourCC};

    use super::Error;
    use crate::frame::MAX_FRAME_PIXELS;
    use crate::media::camera::nodes;
    use crate::media::error::plain;
    use crate::media::fit::fit;
    use crate::media::pixels::to_yuyv;

    /// A virtual camera that shows what is written to it.
    pub struct VirtualCamera {
        device: Device,
        path: PathBuf,
        name: String,
        size: (u32, u32),
        fitted: RgbaImage,
        bytes: Vec<u8>,
    }

    impl VirtualCamera {
        /// Opens the first free device for pictures of about this size; odd sizes lose a column or row.
        ///
        /// A v4l2loopback device goes before other outputs, one that is labelled "mimic" before all.
        pub fn open(width: u32, height: u32) -> Result<Self, Error> {
            let mut refused = None;
            let mut found = Vec::new();
            for index in nodes() {
                let path = PathBuf::from(format!("/dev/video{index}"));
                match candidate(&path) {
                    Ok(Some((rank, device, name))) => found.push((rank, path, device, name)),
                    Ok(None) => {}
                    Err(error) => refused = Some(error),
                }
            }
            found.sort_by_key(|(rank, ..)| *rank);
            for (_, path, device, name) in found {
                match set_up(&device, &path, width, height) {
                    Ok(size) => {
                        return Ok(Self {
                            device,
                            path,
                            name,
                            size,
                            fitted: RgbaImage::new(0, 0),
                            bytes: Vec::new(),
                        });
                    }
                    Err(error) => refused = Some(error),
                }
            }
            Err(refused.unwrap_or(Error::None))
        }

        /// What other programs call it.
        pub fn name(&self) -> &str {
            &self.name
        }

        /// Its device file.
        pub fn path(&self) -> &Path {
            &self.path
        }

        /// Width and height of its pictures, as the driver has set them.
        pub fn size(&self) -> (u32, u32) {
            self.size
        }

        /// Shows a picture; one of another size is fitted in, with black beside it. Where the device still
        /// has the last picture to show, this one is left out.
        pub fn write(&mut self, picture: &RgbaImage) -> Result<(), Error> {
            let (width, height) = self.size;
            let picture = fit(picture, width, height, &mut self.fitted);
            to_yuyv(picture, &mut self.bytes);
            match self.device.write(&self.bytes) {
                Ok(written) if written == self.bytes.len() => Ok(()),
                Ok(written) => Err(Error::Device {
                    path: self.path.clone(),
                    why: format!("it took {written} of {} bytes", self.bytes.len()),
                }),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                    Ok(())
                }
                Err(e) => Err(from_io(&self.path, "writing a picture", &e)),
            }
        }
    }

    impl std::fmt::Debug for VirtualCamera {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("VirtualCamera")
                .field("path", &self.path)
                .field("name", &self.name)
                .field("size", &self.size)
                .finish_non_exhaustive()
        }
    }

    /// A device that takes pictures, with its rank (the lowest first) and name.
    fn candidate(path: &Path) -> Result<Option<(u8, Device, String)>, Error> {
        let device = match Device::with_path(path) {
            Ok(device) => device,
            // Only of interest if it is one of these.
            Err(e) if is_loopback(path) => return Err(from_io(path, "opening", &e)),
            Err(_) => return Ok(None),
        };
        let Ok(caps) = device.query_caps() else {
            return Ok(None);
        };
        let loopback = caps.driver.contains("loopback");
        if !caps.capabilities.contains(Flags::VIDEO_OUTPUT) {
            // With exclusive_caps, one that is being written to is a camera and nothing else.
            return if loopback {
                Err(Error::Busy(path.to_owned()))
            } else {
                Ok(None)
            };
        }
        let rank = match (loopback, caps.card.to_lowercase().contains("mimic")) {
            (true, true) => 0,
            (true, false) => 1,
            (false, _) => 2,
        };
        Ok(Some((rank, device, caps.card)))
    }

    /// By the system's record of the device, which can be read without opening it.
    fn is_loopback(path: &Path) -> bool {
        let node = path.file_name().unwrap_or_default();
        let device = Path::new("/sys/class/video4linux").join(node);
        fs::canonicalize(device)
            .is_ok_and(|real| real.to_string_lossy().contains("/devices/virtual/"))
    }

    /// Agrees on YUYV with the driver, and on a size.
    fn set_up(device: &Device, path: &Path, width: u32, height: u32) -> Result<(u32, u32), Error> {
        let mut format = Format::new(even(width), even(height), FourCC::new(b"YUYV"));
        format.colorspace = Colorspace::SRGB;
        format.quantization = Quantization::LimitedRange;
        format.field_order = FieldOrder::Progressive;
        let set = device
            .set_format(&format)
            .map_err(|e| from_io(path, "setting the format", &e))?;
        let wrong = |why: String| Error::Device {
            path: path.to_owned(),
            why,
        };
        if set.fourcc.repr != *b"YUYV" {
            return Err(wrong(format!("it takes {} in place of YUYV", set.fourcc)));
        }
        let (width, height) = (set.width, set.height);
        if width == 0
            || height == 0
            || width % 2 == 1
            || u64::from(width) * u64::from(height) > MAX_FRAME_PIXELS
        {
            return Err(wrong(format!("it wants pictures of {width}x{height}")));
        }
        if set.stride != 0 && set.stride != width * 2 {
            return Err(wrong(format!("it wants rows of {} bytes", set.stride)));
        }
        Ok((width, height))
    }

    fn even(side: u32) -> u32 {
        (side & !1).max(2)
    }

    fn from_io(path: &Path, doing: &str, error: &std::io::Error) -> Error {
        let path = path.to_owned();
        match error.raw_os_error() {
            Some(libc::EBUSY) => Error::Busy(path),
            Some(libc::EACCES | libc::EPERM) => Error::Denied(path),
            _ => Error::Device {
                path,
                why: format!("{doing}: {}", plain(error)),
            },
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod elsewhere {
    use std::path::Path;

    use image::RgbaImage;

    use super::Error;

    /// A virtual camera; there is none on this system.
    #[derive(Debug)]
    pub enum VirtualCamera {}

    impl VirtualCamera {
        /// Fails on this system.
        pub fn open(_width: u32, _height: u32) -> Result<Self, Error> {
            Err(Error::NotLinux)
        }

        /// What other programs call it.
        pub fn name(&self) -> &str {
            match *self {}
        }

        /// Its device file.
        pub fn path(&self) -> &Path {
            match *self {}
        }

        /// Width and height of its pictures.
        pub fn size(&self) -> (u32, u32) {
            match *self {}
        }

        /// Shows a picture.
        pub fn write(&mut self, _picture: &RgbaImage) -> Result<(), Error> {
            match *self {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_device_one_sentence_says_how_to_get_it() {
        // Whatever this machine has: it opens, or it says what to do.
        match VirtualCamera::open(641, 481) {
            Ok(camera) => {
                let (width, height) = camera.size();
                assert!(width % 2 == 0 && height > 0);
            }
            Err(error) => {
                let sentence = error.to_string();
                assert!(!sentence.contains('\n'), "{sentence}");
                if error == Error::None {
                    assert!(sentence.contains("modprobe v4l2loopback exclusive_caps=1"));
                }
            }
        }
    }
}

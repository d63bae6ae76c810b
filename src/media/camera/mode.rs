//! Which of a camera's modes is asked for.

use crate::frame::PixelFormat;

/// What is wanted of a camera; it gets the closest that the camera has.
#[derive(Clone, Debug, PartialEq)]
pub struct Wish {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Frames per second.
    pub fps: f32,
    /// Formats that will do.
    pub formats: Vec<PixelFormat>,
}

impl Default for Wish {
    /// 640x480 at 30 in any format: the networks see 256x256, and more pixels cost frames a second.
    fn default() -> Self {
        use PixelFormat::{Bgr, Grey, Mjpeg, Nv12, Rgb, Yuyv};
        Self {
            width: 640,
            height: 480,
            fps: 30.0,
            formats: vec![Yuyv, Nv12, Mjpeg, Rgb, Bgr, Grey],
        }
    }
}

/// One way in which a camera can run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Mode {
    pub(super) format: PixelFormat,
    pub(super) width: u32,
    pub(super) height: u32,
    /// 0: not known.
    pub(super) fps: f32,
}

impl Wish {
    /// The mode closest to the wish, None if none has a format that will do.
    pub(super) fn closest(&self, modes: impl IntoIterator<Item = Mode>) -> Option<Mode> {
        modes
            .into_iter()
            .filter(|mode| self.formats.contains(&mode.format) && mode.width > 0 && mode.height > 0)
            .min_by(|a, b| self.distance(a).total_cmp(&self.distance(b)))
    }

    /// How far a mode is from the wish. Half the width and height weigh as much as 12 of 30 frames a second
    /// less; 5 less hardly matter.
    fn distance(&self, mode: &Mode) -> f32 {
        let times = |have: u32, want: u32| (have as f32 / want.max(1) as f32).log2().abs();
        let size = times(mode.width, self.width) + times(mode.height, self.height);
        let fps = if mode.fps <= 0.0 {
            0.5
        } else if mode.fps < self.fps {
            12.0 * ((self.fps - mode.fps) / self.fps).powi(2)
        } else {
            // More than was asked for is only a little waste.
            0.1 * (mode.fps / self.fps).log2()
        };
        let format = match mode.format {
            PixelFormat::Yuyv => 0.0,
            PixelFormat::Nv12 => 0.01,
            PixelFormat::Rgb | PixelFormat::Bgr => 0.02,
            PixelFormat::Mjpeg => 0.05, // costs a few milliseconds a frame
            PixelFormat::Grey => 1.0,
        };
        size + fps + format
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(format: PixelFormat, width: u32, height: u32, fps: f32) -> Mode {
        Mode {
            format,
            width,
            height,
            fps,
        }
    }

    #[test]
    fn speed_weighs_more_than_size_and_size_more_than_format() {
        use PixelFormat::{Grey, Mjpeg, Nv12, Yuyv};
        let wish = Wish::default();
        let vga = mode(Yuyv, 640, 480, 30.0);
        for others in [
            vec![mode(Yuyv, 320, 180, 1.0), mode(Yuyv, 1280, 720, 30.0)],
            vec![mode(Mjpeg, 640, 480, 30.0), mode(Yuyv, 640, 480, 15.0)],
            vec![mode(Grey, 640, 480, 30.0), mode(Nv12, 640, 480, 60.0)],
            vec![mode(Yuyv, 640, 360, 40.0), mode(Yuyv, 640, 480, 15.0)],
        ] {
            let all = others.iter().copied().chain([vga]);
            assert_eq!(wish.closest(all), Some(vga), "{others:?}");
        }
        // A camera that is slow uncompressed runs compressed, one that has no VGA the next size.
        let fast = mode(Mjpeg, 640, 480, 30.0);
        assert_eq!(wish.closest([mode(Yuyv, 640, 480, 10.0), fast]), Some(fast));
        let hd = mode(Mjpeg, 1280, 720, 30.0);
        assert_eq!(wish.closest([mode(Yuyv, 1920, 1080, 5.0), hd]), Some(hd));
        let pal = mode(Yuyv, 640, 480, 25.0);
        assert_eq!(wish.closest([mode(Yuyv, 640, 360, 30.0), pal]), Some(pal));
        let only_grey = mode(Grey, 640, 360, 15.0);
        assert_eq!(wish.closest([only_grey]), Some(only_grey));
    }

    #[test]
    fn what_is_not_wanted_is_not_chosen() {
        let wish = Wish {
            formats: vec![PixelFormat::Bgr],
            ..Wish::default()
        };
        assert_eq!(
            wish.closest([mode(PixelFormat::Yuyv, 640, 480, 30.0)]),
            None
        );
        assert_eq!(wish.closest([mode(PixelFormat::Bgr, 0, 480, 30.0)]), None);
    }
}

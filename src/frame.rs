//! What crosses between the parts: predictions from the networks to the compositor, a camera's raw frames to
//! whoever makes pictures of them.
//!
//! Pictures everywhere are [`image::RgbaImage`]: 8-bit sRGB, opaque, rows from the top. What a network
//! sees of one is a [`view`].

mod shared;

use std::sync::Arc;

use fast_image_resize as fir;
use image::RgbaImage;

use crate::geometry::Rect;
pub use shared::{Handle, Lent, SharedMemory};

/// One face of one frame as the generator gives it: small, whatever the photo's size.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prediction {
    /// Side of the generated square in pixels (256 for most models).
    pub size: u32,
    /// The generated picture: `size * size` RGBA pixels.
    pub rgba: Vec<u8>,
    /// Side of the two maps below (64 for most models).
    pub map_size: u32,
    /// Deformation: for each cell, row by row, where in the source crop it comes from, as (x, y) in
    /// -1..1 with -1 and 1 at the centres of the outermost pixels (`align_corners`).
    pub deformation: Vec<[f32; 2]>,
    /// Occlusion map, 0..1 for each cell: 1 where the source shows what is to be drawn, 0 where the
    /// generator had to invent it. All ones when the model has none.
    pub occlusion: Vec<f32>,
    /// Where all three are in place of the vectors, which are empty then.
    pub lent: Option<Arc<Lent>>,
}

/// Why a part of a picture could not be brought to another size.
#[derive(Debug, thiserror::Error)]
#[error("the part {part} of a picture could not be resized: {reason}")]
pub struct ViewError {
    /// The part.
    pub part: Rect,
    /// What the resizer said.
    pub reason: String,
}

/// A part of a picture at another size, low-passed (a triangle as wide as two new pixels).
///
/// # Errors
/// When the part is empty or not inside the picture, or the size is 0.
pub fn view(
    picture: &RgbaImage,
    part: Rect,
    width: u32,
    height: u32,
) -> Result<RgbaImage, ViewError> {
    let failed = |reason: String| ViewError { part, reason };
    if part.is_empty() {
        return Err(failed("it is empty".to_owned()));
    }
    let (from_width, from_height) = picture.dimensions();
    let pixels = fir::PixelType::U8x4;
    let source = fir::images::ImageRef::new(from_width, from_height, picture.as_raw(), pixels)
        .map_err(|e| failed(e.to_string()))?;
    let mut target = fir::images::Image::new(width, height, pixels);
    let options = fir::ResizeOptions::new()
        .crop(
            part.x1.into(),
            part.y1.into(),
            part.width().into(),
            part.height().into(),
        )
        .resize_alg(fir::ResizeAlg::Convolution(fir::FilterType::Bilinear))
        .use_alpha(false);
    fir::Resizer::new()
        .resize(&source, &mut target, &options)
        .map_err(|e| failed(e.to_string()))?;
    RgbaImage::from_raw(width, height, target.into_vec())
        .ok_or_else(|| failed("the result has another size".to_owned()))
}

/// How the bytes of a camera's frame are laid out, rows from the top.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PixelFormat {
    /// Two pixels in four bytes: Y U Y V.
    Yuyv,
    /// A plane of Y, then at half width and height one of pairs U V.
    Nv12,
    /// A JPEG file for each frame.
    Mjpeg,
    /// Three bytes: red, green, blue.
    Rgb,
    /// Three bytes: blue, green, red.
    Bgr,
    /// One byte.
    Grey,
}

impl std::fmt::Display for PixelFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Yuyv => "YUYV",
            Self::Nv12 => "NV12",
            Self::Mjpeg => "MJPEG",
            Self::Rgb => "RGB",
            Self::Bgr => "BGR",
            Self::Grey => "GREY",
        })
    }
}

/// What the numbers of a YUV picture mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Colours {
    /// BT.709 (high definition) in place of BT.601 (nearly every webcam).
    pub bt709: bool,
    /// Black to white is 0 to 255 in place of 16 to 235.
    pub full_range: bool,
}

impl Colours {
    /// `[black, luma, red of V, green of U, green of V, blue of U]`: with `l = luma * (Y - black)` and
    /// U and V less 128, red is `l + red * V`, green `l + green_u * U + green_v * V`, blue `l + blue * U`,
    /// each 0 to 255.
    pub fn coefficients(self) -> [f32; 6] {
        let (red, blue) = if self.bt709 {
            (0.2126, 0.0722)
        } else {
            (0.299, 0.114)
        };
        let green = 1.0 - red - blue;
        let (black, luma, chroma) = if self.full_range {
            (0.0, 1.0, 1.0)
        } else {
            (16.0, 255.0 / 219.0, 255.0 / 224.0)
        };
        let v = 2.0 * (1.0 - red) * chroma;
        let u = 2.0 * (1.0 - blue) * chroma;
        [black, luma, v, -u * blue / green, -v * red / green, u]
    }
}

/// The most pixels a frame may have: 8K.
pub const MAX_FRAME_PIXELS: u64 = 7680 * 4320;

/// A frame's bytes and what they mean.
#[derive(Clone, Copy, Debug)]
pub struct Raw<'a> {
    /// Their layout.
    pub format: PixelFormat,
    /// Width in pixels; of MJPEG that of the JPEG counts.
    pub width: u32,
    /// Height in pixels; of MJPEG that of the JPEG counts.
    pub height: u32,
    /// Bytes from one row to the next, 0 where rows follow each other without a gap. Of NV12 in both planes.
    pub stride: usize,
    /// What Y, U and V mean.
    pub colours: Colours,
    /// The bytes; there may be more than the picture needs.
    pub bytes: &'a [u8],
}

/// Why a frame's bytes are no picture.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// No pixels, or more than [`MAX_FRAME_PIXELS`].
    #[error("a frame of {0}x{1} pixels is out of range")]
    Size(u32, u32),
    /// Rows that overlap.
    #[error("rows of {stride} bytes cannot hold {width} pixels of {format}")]
    Stride {
        /// Bytes from row to row.
        stride: usize,
        /// Width in pixels.
        width: u32,
        /// The layout.
        format: PixelFormat,
    },
    /// Fewer bytes than the size asks for.
    #[error("a frame has {found} bytes in place of {expected}")]
    Short {
        /// Bytes there are.
        found: usize,
        /// Bytes it takes.
        expected: usize,
    },
    /// A JPEG that does not decode.
    #[error("a frame is no valid JPEG ({0})")]
    Jpeg(String),
    /// Something else where YUV is wanted.
    #[error("a frame of {0} holds no YUV")]
    NotYuv(PixelFormat),
}

impl Raw<'_> {
    /// Bytes from row to row, if all bytes are there and the numbers agree; 0 for MJPEG, which has no rows.
    pub fn stride(&self) -> Result<usize, Malformed> {
        let (width, height) = (self.width, self.height);
        let pixels = u64::from(width) * u64::from(height);
        if pixels == 0 || pixels > MAX_FRAME_PIXELS {
            return Err(Malformed::Size(width, height));
        }
        let Some(row) = row_bytes(self.format, width) else {
            return Ok(0);
        };
        let stride = if self.stride == 0 { row } else { self.stride };
        let wrong = Malformed::Stride {
            stride,
            width,
            format: self.format,
        };
        if stride < row {
            return Err(wrong);
        }
        let rows = match self.format {
            PixelFormat::Nv12 => height as usize + height.div_ceil(2) as usize,
            _ => height as usize,
        };
        // The last row need not be padded.
        let expected = stride
            .checked_mul(rows - 1)
            .and_then(|bytes| bytes.checked_add(row))
            .ok_or(wrong)?;
        if self.bytes.len() < expected {
            return Err(Malformed::Short {
                found: self.bytes.len(),
                expected,
            });
        }
        Ok(stride)
    }
}

/// Bytes from row to row of a frame without gaps; None for MJPEG, which has no rows.
pub fn row_bytes(format: PixelFormat, width: u32) -> Option<usize> {
    let width = width as usize;
    match format {
        PixelFormat::Yuyv => Some(width.div_ceil(2) * 4),
        PixelFormat::Nv12 => Some(width.next_multiple_of(2)),
        PixelFormat::Rgb | PixelFormat::Bgr => Some(width * 3),
        PixelFormat::Grey => Some(width),
        PixelFormat::Mjpeg => None,
    }
}

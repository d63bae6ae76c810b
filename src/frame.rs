//! What crosses from the networks to the compositor.
//!
//! Pictures everywhere are [`image::RgbaImage`]: 8-bit sRGB, opaque, rows from the top. What a network
//! sees of one is a [`view`].

use fast_image_resize as fir;
use image::RgbaImage;

use crate::geometry::Rect;

/// One face of one frame as the generator gives it: small, whatever the photo's size.
#[derive(Clone, Debug, Default)]
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

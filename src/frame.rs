//! What crosses from the networks to the compositor.
//!
//! Pictures everywhere are [`image::RgbaImage`]: 8-bit sRGB, opaque, rows from the top.

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

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

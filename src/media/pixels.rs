//! A camera's frame as it comes from the driver, to RGBA.
//!
//! Sizes and lengths are a stranger's numbers: they are held against each other before a byte is read.
//! Arithmetic is in whole numbers, within one level of the exact result; `shaders/yuv_to_rgb.wgsl` does the
//! same on a graphics card.

use std::io::Cursor;

use image::codecs::jpeg::JpegDecoder;
use image::{ColorType, ImageDecoder, Limits, RgbaImage};

use crate::frame::{Colours, MAX_FRAME_PIXELS, Malformed, PixelFormat, Raw};

/// Converts a frame into `into`, which gets the right size if it has another. Alpha is 255.
pub fn to_rgba(raw: &Raw<'_>, into: &mut RgbaImage) -> Result<(), Malformed> {
    if raw.format == PixelFormat::Mjpeg {
        return decode_jpeg(raw.bytes, into);
    }
    let stride = raw.stride()?;
    resize(into, raw.width, raw.height);
    let width = raw.width as usize;
    let luma = raw.bytes.chunks(stride);
    let rows = into.chunks_exact_mut(width * 4);
    match raw.format {
        PixelFormat::Yuyv => {
            let convert = Convert::new(raw.colours);
            luma.zip(rows).for_each(|(from, to)| convert.yuyv(from, to));
        }
        PixelFormat::Nv12 => {
            let convert = Convert::new(raw.colours);
            let chroma = raw.bytes[stride * raw.height as usize..].chunks(stride);
            let twice = chroma.flat_map(|row| [row, row]);
            luma.zip(twice)
                .zip(rows)
                .for_each(|((y, uv), to)| convert.nv12(y, uv, to));
        }
        PixelFormat::Rgb => luma.zip(rows).for_each(|(from, to)| {
            for (from, to) in from.chunks_exact(3).zip(to.chunks_exact_mut(4)) {
                to.copy_from_slice(&[from[0], from[1], from[2], 255]);
            }
        }),
        PixelFormat::Bgr => luma.zip(rows).for_each(|(from, to)| {
            for (from, to) in from.chunks_exact(3).zip(to.chunks_exact_mut(4)) {
                to.copy_from_slice(&[from[2], from[1], from[0], 255]);
            }
        }),
        PixelFormat::Grey => luma.zip(rows).for_each(|(from, to)| {
            for (&level, to) in from.iter().zip(to.chunks_exact_mut(4)) {
                to.copy_from_slice(&[level, level, level, 255]);
            }
        }),
        PixelFormat::Mjpeg => {} // above
    }
    Ok(())
}

/// Makes YUYV (BT.601, limited range, no gaps) of a picture for a camera; an odd last column is left out.
///
/// `into` gets the right length if it has another.
pub fn to_yuyv(picture: &RgbaImage, into: &mut Vec<u8>) {
    // 16-bit whole numbers: luma of 0.299, 0.587, 0.114 scaled to 16..235, chroma to 16..240.
    let luma = |p: &[u8]| {
        let sum = 66 * i32::from(p[0]) + 129 * i32::from(p[1]) + 25 * i32::from(p[2]);
        (((sum + 128) >> 8) + 16) as u8
    };
    let chroma = |r: i32, g: i32, b: i32| (((r + g + b + 256) >> 9) + 128) as u8;
    let width = picture.width() as usize / 2 * 2;
    into.resize(width * 2 * picture.height() as usize, 0);
    let rows = picture.chunks_exact(picture.width().max(1) as usize * 4);
    for (from, to) in rows.zip(into.chunks_exact_mut((width * 2).max(1))) {
        for (from, to) in from.chunks_exact(8).zip(to.chunks_exact_mut(4)) {
            let [r, g, b] = [0, 1, 2].map(|c| i32::from(from[c]) + i32::from(from[c + 4]));
            to[0] = luma(&from[..4]);
            to[1] = chroma(-38 * r, -74 * g, 112 * b);
            to[2] = luma(&from[4..]);
            to[3] = chroma(112 * r, -94 * g, -18 * b);
        }
    }
}

fn decode_jpeg(bytes: &[u8], into: &mut RgbaImage) -> Result<(), Malformed> {
    let wrong = |e: image::ImageError| Malformed::Jpeg(super::ffmpeg::one_line(&e.to_string()));
    let mut decoder = JpegDecoder::new(Cursor::new(bytes)).map_err(wrong)?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels == 0 || pixels > MAX_FRAME_PIXELS {
        return Err(Malformed::Size(width, height));
    }
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_FRAME_PIXELS * 8);
    decoder.set_limits(limits).map_err(wrong)?;
    let colour = decoder.color_type();
    let mut samples = vec![0; decoder.total_bytes() as usize];
    decoder.read_image(&mut samples).map_err(wrong)?;
    let format = match colour {
        ColorType::L8 => PixelFormat::Grey,
        ColorType::Rgb8 => PixelFormat::Rgb,
        other => return Err(Malformed::Jpeg(format!("its colours are {other:?}"))),
    };
    let raw = Raw {
        format,
        width,
        height,
        stride: 0,
        colours: Colours::default(),
        bytes: &samples,
    };
    to_rgba(&raw, into)
}

fn resize(image: &mut RgbaImage, width: u32, height: u32) {
    if image.dimensions() != (width, height) {
        *image = RgbaImage::new(width, height);
    }
}

/// Bits behind the point.
const SHIFT: i32 = 14;

/// [`Colours::coefficients`] in whole numbers.
struct Convert {
    black: i32,
    luma: i32,
    red: i32,
    green_u: i32,
    green_v: i32,
    blue: i32,
}

impl Convert {
    fn new(colours: Colours) -> Self {
        let fixed = |value: f32| (value * (1 << SHIFT) as f32).round() as i32;
        let [black, luma, red, green_u, green_v, blue] = colours.coefficients();
        Self {
            black: black as i32,
            luma: fixed(luma),
            red: fixed(red),
            green_u: fixed(green_u),
            green_v: fixed(green_v),
            blue: fixed(blue),
        }
    }

    fn yuyv(&self, from: &[u8], to: &mut [u8]) {
        let pairs = from.chunks_exact(4);
        let whole = to.len() / 8;
        for (from, to) in pairs.clone().zip(to.chunks_exact_mut(8)) {
            let pair = self.pair([from[0], from[2]], from[1], from[3]);
            to.copy_from_slice(&pair);
        }
        // An odd width ends with half a pair.
        if let (Some(from), half @ [_, ..]) = (
            pairs.into_iter().nth(whole),
            to.chunks_exact_mut(8).into_remainder(),
        ) {
            let pair = self.pair([from[0]; 2], from[1], from[3]);
            half.copy_from_slice(&pair[..half.len()]);
        }
    }

    fn nv12(&self, luma: &[u8], chroma: &[u8], to: &mut [u8]) {
        let whole = to.len() / 8;
        let pairs = luma.chunks_exact(2).zip(chroma.chunks_exact(2));
        for ((y, uv), to) in pairs.clone().zip(to.chunks_exact_mut(8)) {
            to.copy_from_slice(&self.pair([y[0], y[1]], uv[0], uv[1]));
        }
        if let (Some((y, uv)), half @ [_, ..]) = (
            pairs.into_iter().nth(whole),
            to.chunks_exact_mut(8).into_remainder(),
        ) {
            half.copy_from_slice(&self.pair([y[0]; 2], uv[0], uv[1])[..half.len()]);
        }
    }

    /// Two pixels that share their chroma.
    #[inline(always)]
    fn pair(&self, y: [u8; 2], u: u8, v: u8) -> [u8; 8] {
        let (u, v) = (i32::from(u) - 128, i32::from(v) - 128);
        let half = 1 << (SHIFT - 1);
        let red = self.red * v + half;
        let green = self.green_u * u + self.green_v * v + half;
        let blue = self.blue * u + half;
        let level = |luma: i32, chroma: i32| ((luma + chroma) >> SHIFT).clamp(0, 255) as u8;
        let [a, b] = y.map(|y| self.luma * (i32::from(y) - self.black));
        [
            level(a, red),
            level(a, green),
            level(a, blue),
            255,
            level(b, red),
            level(b, green),
            level(b, blue),
            255,
        ]
    }
}

#[cfg(test)]
mod tests {
    use image::codecs::jpeg::JpegEncoder;
    use proptest::prelude::*;

    use super::*;
    use crate::frame::row_bytes;

    const ALL: [PixelFormat; 6] = [
        PixelFormat::Yuyv,
        PixelFormat::Nv12,
        PixelFormat::Mjpeg,
        PixelFormat::Rgb,
        PixelFormat::Bgr,
        PixelFormat::Grey,
    ];

    fn raw(format: PixelFormat, width: u32, height: u32, bytes: &[u8]) -> Raw<'_> {
        Raw {
            format,
            width,
            height,
            stride: 0,
            colours: Colours::default(),
            bytes,
        }
    }

    fn rgba(raw: &Raw<'_>) -> RgbaImage {
        let mut image = RgbaImage::new(0, 0);
        to_rgba(raw, &mut image).unwrap();
        image
    }

    #[test]
    fn the_colours_of_the_standards_come_out() {
        // 75 % bars of BT.601 and BT.709 in limited range, as the standards' tables have them.
        for (bt709, yuv, rgb) in [
            (false, [16, 128, 128], [0, 0, 0]),
            (false, [235, 128, 128], [255, 255, 255]),
            (false, [65, 100, 212], [191, 0, 0]),
            (false, [112, 72, 58], [0, 191, 0]),
            (false, [35, 212, 114], [0, 0, 191]),
            (true, [51, 109, 212], [191, 0, 0]),
            (true, [133, 63, 52], [0, 191, 0]),
            (true, [28, 212, 120], [0, 0, 191]),
        ] {
            let [y, u, v] = yuv;
            let bytes = [y, u, y, v];
            let mut frame = raw(PixelFormat::Yuyv, 2, 1, &bytes);
            frame.colours.bt709 = bt709;
            let image = rgba(&frame);
            for (&got, want) in image.get_pixel(1, 0).0.iter().zip(rgb) {
                assert!(got.abs_diff(want) <= 2, "{yuv:?} {bt709}: {image:?}");
            }
        }
    }

    #[test]
    fn whole_numbers_are_within_a_level_of_the_exact_result() {
        for (bt709, full_range) in [(false, false), (true, false), (false, true), (true, true)] {
            let colours = Colours { bt709, full_range };
            let [black, luma, red, green_u, green_v, blue] = colours.coefficients().map(f64::from);
            for n in (0..1u32 << 24).step_by(4099) {
                let [y, u, v, _] = n.to_le_bytes();
                let bytes = [y, u, y, v];
                let image = rgba(&Raw {
                    colours,
                    ..raw(PixelFormat::Yuyv, 2, 1, &bytes)
                });
                let l = luma * (f64::from(y) - black);
                let (u, v) = (f64::from(u) - 128.0, f64::from(v) - 128.0);
                let exact = [l + red * v, l + green_u * u + green_v * v, l + blue * u];
                for (&got, exact) in image.get_pixel(0, 0).0.iter().zip(exact) {
                    let off = f64::from(got) - exact.clamp(0.0, 255.0);
                    assert!(off.abs() <= 0.52, "{bytes:?} {colours:?}: {off}");
                }
            }
        }
    }

    #[test]
    fn there_and_back_is_the_same_picture() {
        // Of one colour in each pair of pixels: their chroma is shared.
        let picture = RgbaImage::from_fn(11, 5, |x, y| {
            let x = (x / 2 * 40) as u8;
            image::Rgba([x, y as u8 * 50, 255 - x, 255])
        });
        let mut bytes = Vec::new();
        to_yuyv(&picture, &mut bytes);
        assert_eq!(bytes.len(), 10 * 5 * 2);
        let back = rgba(&raw(PixelFormat::Yuyv, 10, 5, &bytes));
        for (x, y, pixel) in back.enumerate_pixels() {
            let want = picture.get_pixel(x, y);
            let near = (0..3).all(|c| pixel[c].abs_diff(want[c]) <= 3);
            assert!(near, "{x},{y}: {pixel:?} {want:?}");
        }
        for (width, height) in [(0, 0), (1, 3), (2, 1)] {
            to_yuyv(&RgbaImage::new(width, height), &mut bytes);
            assert_eq!(bytes.len() as u32, width / 2 * 4 * height);
        }
    }

    #[test]
    fn nv12_shares_its_chroma_among_four_pixels() {
        let (width, height) = (3, 3);
        let mut bytes = vec![90; 4 * 3]; // rows of three, padded to four
        bytes.extend([10, 200, 128, 128, 128, 128, 220, 30]);
        let image = rgba(&raw(PixelFormat::Nv12, width, height, &bytes));
        let of = |u, v| {
            let bytes = [90, u, 90, v];
            *rgba(&raw(PixelFormat::Yuyv, 2, 1, &bytes)).get_pixel(0, 0)
        };
        for (x, y, pixel) in image.enumerate_pixels() {
            let want = match (x / 2, y / 2) {
                (0, 0) => of(10, 200),
                (1, 1) => of(220, 30),
                _ => of(128, 128),
            };
            assert_eq!(*pixel, want, "{x},{y}");
        }
    }

    #[test]
    fn packed_formats_keep_their_order() {
        let bytes = [1, 2, 3, 4, 5, 6];
        assert_eq!(
            rgba(&raw(PixelFormat::Rgb, 2, 1, &bytes)).as_raw(),
            &[1, 2, 3, 255, 4, 5, 6, 255]
        );
        assert_eq!(
            rgba(&raw(PixelFormat::Bgr, 1, 2, &bytes)).as_raw(),
            &[3, 2, 1, 255, 6, 5, 4, 255]
        );
        assert_eq!(
            rgba(&raw(PixelFormat::Grey, 1, 2, &bytes)).as_raw(),
            &[1, 1, 1, 255, 2, 2, 2, 255]
        );
    }

    #[test]
    fn a_padded_frame_is_the_same_picture() {
        for format in ALL {
            let Some(row) = row_bytes(format, 5) else {
                continue;
            };
            let rows = if format == PixelFormat::Nv12 { 6 } else { 4 };
            let tight: Vec<u8> = (0..row * rows).map(|i| (i * 37 % 251) as u8).collect();
            let mut padded = Vec::new();
            for line in tight.chunks(row) {
                padded.extend_from_slice(line);
                padded.extend([0xaa; 7]);
            }
            padded.truncate(padded.len() - 7);
            let want = rgba(&raw(format, 5, 4, &tight));
            let got = rgba(&Raw {
                stride: row + 7,
                ..raw(format, 5, 4, &padded)
            });
            assert_eq!(got, want, "{format}");
        }
    }

    /// A JPEG without its Huffman tables, as webcams send them to save 400 bytes.
    fn without_tables(jpeg: &[u8]) -> Vec<u8> {
        let mut out = jpeg[..2].to_vec();
        out.extend(b"\xff\xe0\x00\x10AVI1\0\0\0\0\0\0\0\0\0\0");
        let mut at = 2;
        while jpeg[at + 1] != 0xda {
            let length = usize::from(u16::from_be_bytes([jpeg[at + 2], jpeg[at + 3]])) + 2;
            if ![0xc4, 0xe0].contains(&jpeg[at + 1]) {
                out.extend_from_slice(&jpeg[at..at + length]);
            }
            at += length;
        }
        out.extend_from_slice(&jpeg[at..]);
        out
    }

    #[test]
    fn a_jpeg_is_decoded_with_and_without_its_tables() {
        let picture =
            image::RgbImage::from_fn(40, 24, |x, y| image::Rgb([x as u8 * 6, y as u8 * 10, 128]));
        let mut jpeg = Vec::new();
        JpegEncoder::new_with_quality(&mut jpeg, 95)
            .encode_image(&picture)
            .unwrap();
        for bytes in [jpeg.clone(), without_tables(&jpeg)] {
            let mut padded = bytes;
            padded.extend([0; 500]); // drivers hand out whole buffers
            // What the driver says of the size does not count.
            let image = rgba(&raw(PixelFormat::Mjpeg, 1, 1, &padded));
            assert_eq!(image.dimensions(), (40, 24));
            for (x, y, pixel) in image.enumerate_pixels() {
                let want = picture.get_pixel(x, y);
                assert!((0..3).all(|c| pixel[c].abs_diff(want[c]) < 16), "{x},{y}");
            }
        }
    }

    #[test]
    fn wrong_numbers_are_errors() {
        let mut image = RgbaImage::new(0, 0);
        for format in ALL.into_iter().filter(|&f| f != PixelFormat::Mjpeg) {
            let huge = raw(format, u32::MAX, u32::MAX, &[]);
            assert!(matches!(
                to_rgba(&huge, &mut image),
                Err(Malformed::Size(..))
            ));
            let none = raw(format, 0, 7, &[]);
            assert!(matches!(
                to_rgba(&none, &mut image),
                Err(Malformed::Size(..))
            ));
            let short = raw(format, 640, 480, &[0; 1000]);
            assert!(matches!(
                to_rgba(&short, &mut image),
                Err(Malformed::Short { .. })
            ));
            let narrow = Raw {
                stride: 3,
                ..raw(format, 640, 480, &[0; 1000])
            };
            assert!(matches!(
                to_rgba(&narrow, &mut image),
                Err(Malformed::Stride { .. })
            ));
            let wide = Raw {
                stride: usize::MAX / 2,
                ..raw(format, 640, 480, &[0; 1000])
            };
            assert!(to_rgba(&wide, &mut image).is_err());
        }
        let nonsense = raw(PixelFormat::Mjpeg, 2, 2, b"\xff\xd8\xff\xff\xff");
        assert!(matches!(
            to_rgba(&nonsense, &mut image),
            Err(Malformed::Jpeg(_))
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_picture_or_an_error(
            format in 0..ALL.len(),
            width in 0u32..70,
            height in 0u32..40,
            stride in prop_oneof![Just(0usize), 0usize..300],
            bytes in proptest::collection::vec(any::<u8>(), 0..9000),
        ) {
            let mut image = RgbaImage::new(0, 0);
            let frame = Raw { stride, ..raw(ALL[format], width, height, &bytes) };
            if to_rgba(&frame, &mut image).is_ok() {
                prop_assert!(image.pixels().all(|p| p[3] == 255));
                prop_assert!(image.width() * image.height() > 0);
            }
        }
    }
}

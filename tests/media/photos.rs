//! Photos: every kind of good one, and the bad ones.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use image::{
    DynamicImage, GrayAlphaImage, GrayImage, ImageBuffer, ImageFormat, LumaA, Rgba, RgbaImage,
};
use mimic::media::{Error, open_photo};

use crate::helpers::{Folder, H264, assert_sentence, corners, difference, quarters};

fn encode(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Vec::new();
    picture
        .write_to(&mut Cursor::new(&mut bytes), format)
        .unwrap();
    bytes
}

const FORMATS: [ImageFormat; 6] = [
    ImageFormat::Png,
    ImageFormat::Jpeg,
    ImageFormat::WebP,
    ImageFormat::Bmp,
    ImageFormat::Tiff,
    ImageFormat::Gif,
];

fn sample(format: ImageFormat, width: u32, height: u32) -> Vec<u8> {
    let picture = DynamicImage::ImageRgba8(quarters(width, height));
    let rgb = DynamicImage::ImageRgb8(picture.to_rgb8());
    encode(
        if format == ImageFormat::Gif {
            &picture
        } else {
            &rgb
        },
        format,
    )
}

#[test]
fn every_format_is_known_by_its_content() {
    let folder = Folder::new();
    let want = quarters(32, 24);
    for format in FORMATS {
        for name in ["photo", "photo.mp4", "photo.png", "photo.jpeg"] {
            let got = open_photo(&folder.file(name, sample(format, 32, 24))).unwrap();
            let close = if matches!(format, ImageFormat::Jpeg | ImageFormat::Gif) {
                4.0
            } else {
                0.0
            };
            assert!(difference(&got, &want) <= close, "{format:?} as {name}");
        }
    }
}

#[test]
fn deep_grey_and_transparent_pictures_become_opaque_colour() {
    let folder = Folder::new();
    let open = |name: &str, bytes: Vec<u8>| open_photo(&folder.file(name, bytes)).unwrap();
    for format in [ImageFormat::Png, ImageFormat::Tiff] {
        let deep = ImageBuffer::from_pixel(3, 2, Rgba([0x80ff_u16, 0xffff, 0x0101, 0xffff]));
        let got = open("deep", encode(&DynamicImage::ImageRgba16(deep), format));
        assert_eq!(
            *got.get_pixel(2, 1),
            Rgba([0x80, 255, 1, 255]),
            "{format:?}"
        );

        let grey = GrayImage::from_pixel(3, 2, image::Luma([77]));
        let got = open("grey", encode(&DynamicImage::ImageLuma8(grey), format));
        assert_eq!(*got.get_pixel(2, 1), Rgba([77, 77, 77, 255]), "{format:?}");

        let clear = RgbaImage::from_fn(2, 1, |x, _| {
            Rgba([200, 0, 100, if x == 0 { 0 } else { 102 }])
        });
        let got = open("clear", encode(&DynamicImage::ImageRgba8(clear), format));
        assert_eq!(
            got.as_raw()[..],
            [255, 255, 255, 255, 233, 153, 193, 255],
            "{format:?} over white"
        );
    }
    let both = GrayAlphaImage::from_pixel(1, 1, LumaA([0, 51]));
    let got = open(
        "both",
        encode(&DynamicImage::ImageLumaA8(both), ImageFormat::Png),
    );
    assert_eq!(got.as_raw()[..], [204, 204, 204, 255]);

    for pixels in ["pal8", "gray16be", "ya8", "rgba64be"] {
        let file = folder.ffmpeg(
            &format!("-f lavfi -i color=white:s=6x4 -frames:v 1 -pix_fmt {pixels}"),
            "kinds.png",
        );
        let white = *open_photo(&file).unwrap().get_pixel(5, 3);
        assert!(
            white.0.iter().all(|sample| *sample > 250),
            "{pixels}: {white:?}"
        );
    }
}

/// A JPEG with an EXIF segment that holds nothing but an orientation.
fn turned_jpeg(picture: &RgbaImage, orientation: u8) -> Vec<u8> {
    let rgb = DynamicImage::ImageRgb8(DynamicImage::ImageRgba8(picture.clone()).to_rgb8());
    let jpeg = encode(&rgb, ImageFormat::Jpeg);
    let tiff = [
        &b"II*\0\x08\0\0\0\x01\0"[..],
        &[0x12, 0x01, 3, 0, 1, 0, 0, 0, orientation, 0, 0, 0],
        &[0, 0, 0, 0],
    ]
    .concat();
    let length = u16::try_from(2 + 6 + tiff.len()).unwrap().to_be_bytes();
    [
        &jpeg[..2],
        &[0xff, 0xe1],
        &length,
        b"Exif\0\0",
        &tiff,
        &jpeg[2..],
    ]
    .concat()
}

#[test]
fn photos_are_turned_upright() {
    let folder = Folder::new();
    // What the camera stores for each orientation so that the upright picture reads r g b w.
    let upright = DynamicImage::ImageRgba8(quarters(40, 24));
    let stored = [
        upright.clone(),
        upright.fliph(),
        upright.rotate180(),
        upright.flipv(),
        upright.rotate90().fliph(),
        upright.rotate270(),
        upright.rotate270().fliph(),
        upright.rotate90(),
    ];
    for (number, stored) in (1..).zip(stored) {
        let file = folder.file("turned.jpg", turned_jpeg(&stored.to_rgba8(), number));
        let got = open_photo(&file).unwrap();
        assert_eq!(
            (got.dimensions(), corners(&got)),
            ((40, 24), "rgbw".to_owned()),
            "orientation {number}"
        );
        // A clip of one picture says the same size without decoding it.
        let clip = crate::helpers::open(&file);
        assert_eq!(
            (clip.info().width, clip.info().height),
            (40, 24),
            "orientation {number}"
        );
    }
    let nonsense = folder.file("nonsense.jpg", turned_jpeg(&quarters(40, 24), 77));
    assert_eq!(corners(&open_photo(&nonsense).unwrap()), "rgbw");
}

#[test]
fn the_smallest_photo_loads() {
    let folder = Folder::new();
    for format in FORMATS {
        let got = open_photo(&folder.file("dot", sample(format, 1, 1))).unwrap();
        assert_eq!(got.dimensions(), (1, 1), "{format:?}");
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| {
            if c & 1 == 1 {
                (c >> 1) ^ 0xedb8_8320
            } else {
                c >> 1
            }
        })
    })
}

/// A small PNG whose header says another size.
fn png_that_claims(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = sample(ImageFormat::Png, 8, 8);
    bytes[16..20].copy_from_slice(&width.to_be_bytes());
    bytes[20..24].copy_from_slice(&height.to_be_bytes());
    let crc = crc32(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&crc.to_be_bytes());
    bytes
}

#[test]
fn huge_photos_are_refused_by_their_header() {
    let folder = Folder::new();
    let mut bmp = sample(ImageFormat::Bmp, 8, 8);
    bmp[18..22].copy_from_slice(&20000_i32.to_le_bytes());
    bmp[22..26].copy_from_slice(&20000_i32.to_le_bytes());
    let mut gif = sample(ImageFormat::Gif, 8, 8);
    gif[6..10].copy_from_slice(&[0xff; 4]);
    for (name, bytes) in [
        ("huge.png", png_that_claims(20000, 20000)),
        ("endless.png", png_that_claims(0x7fff_ffff, 0x7fff_ffff)),
        ("huge.bmp", bmp),
        ("huge.gif", gif),
    ] {
        let path = folder.file(name, bytes);
        let error = open_photo(&path).unwrap_err();
        assert!(matches!(error, Error::TooLarge { .. }), "{error}");
        assert_sentence(&error, &path);
        assert!(error.to_string().contains("100 megapixels"), "{error}");
    }
}

#[test]
fn what_is_no_photo_is_named() {
    let folder = Folder::new();
    let video = fs::read(folder.clip(2, "64x48", H264, "clip.mp4")).unwrap();
    let webm = fs::read(folder.clip(2, "64x48", "-c:v libvpx", "clip.webm")).unwrap();
    for (name, content, says) in [
        (
            "text.png",
            b"these are words\nand more words\n".to_vec(),
            "a text file",
        ),
        ("umlaut.png", "ä".repeat(400).into_bytes(), "a text file"),
        ("video.jpg", video, "a video"),
        ("matroska.jpg", webm, "a video"),
        (
            "photo.heic",
            b"\0\0\0\x18ftypheic\0\0\0\0mif1heic".to_vec(),
            "heif-convert",
        ),
        (
            "photo.avif",
            b"\0\0\0\x18ftypavif\0\0\0\0mif1avif".to_vec(),
            "ffmpeg -i",
        ),
        (
            "noise.png",
            (0..=255).cycle().take(999).collect(),
            "no kind mimic knows",
        ),
    ] {
        let path = folder.file(name, content);
        let error = open_photo(&path).unwrap_err();
        assert!(matches!(error, Error::NotAPhoto { .. }), "{error}");
        assert_sentence(&error, &path);
        assert!(error.to_string().contains(says), "{error}");
    }
    let empty = folder.file("empty.png", "");
    assert_sentence(&open_photo(&empty).unwrap_err(), &empty);
    let missing = folder.path("missing.png");
    assert_sentence(&open_photo(&missing).unwrap_err(), &missing);
    let directory = folder.path("");
    assert_sentence(&open_photo(&directory).unwrap_err(), &directory);
}

#[test]
fn truncated_photos_are_refused() {
    let folder = Folder::new();
    for format in FORMATS {
        let whole = sample(format, 64, 48);
        for kept in [12, 40, whole.len() / 2, whole.len() * 3 / 4] {
            let path = folder.file("cut", &whole[..kept.min(whole.len() - 20)]);
            let error = open_photo(&path)
                .map(|_| ())
                .expect_err(&format!("{format:?} cut to {kept}"));
            assert!(
                matches!(error, Error::DamagedPhoto { .. } | Error::NotAPhoto { .. }),
                "{format:?}: {error}"
            );
            assert_sentence(&error, &path);
        }
    }
    // A thumbnail's end marker is not the photo's.
    let thumbnail = sample(ImageFormat::Jpeg, 8, 8);
    let mut photo = sample(ImageFormat::Jpeg, 64, 48);
    let length = u16::try_from(2 + thumbnail.len()).unwrap().to_be_bytes();
    photo.splice(2..2, [&[0xff, 0xe1][..], &length, &thumbnail].concat());
    assert!(open_photo(&folder.file("whole.jpg", &photo)).is_ok());
    photo.truncate(photo.len() - 30);
    assert!(open_photo(&folder.file("cut.jpg", &photo)).is_err());
}

#[test]
fn no_bytes_make_the_decoders_panic() {
    let folder = Folder::new();
    let mut state = 1_u64;
    let mut random = move |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for format in FORMATS {
        let whole = sample(format, 13, 9);
        for _ in 0..100 {
            let mut bytes = whole.clone();
            for _ in 0..=random(4) {
                let at = random(bytes.len());
                bytes[at] = u8::try_from(random(256)).unwrap();
            }
            if random(3) == 0 {
                bytes.truncate(random(bytes.len()) + 1);
            }
            let path = folder.file("mutated", bytes);
            if let Err(error) = open_photo(&path) {
                assert!(error.to_string().contains("mutated"), "{error}");
            }
        }
    }
}

#[test]
fn a_pipe_is_not_waited_for() {
    let path = Path::new("/dev/null");
    if path.exists() {
        assert!(matches!(open_photo(path), Err(Error::Read { .. })));
    }
}

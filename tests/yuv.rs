//! A camera's frames: the shader against its twin.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use image::RgbaImage;
use mimic::frame::{Colours, Malformed, PixelFormat, Raw, row_bytes};
use mimic::gpu::{Error, YuvToRgb};
use mimic::media::pixels::to_rgba;

/// The shader on whatever adapter there is, lavapipe too.
fn shader() -> Option<YuvToRgb> {
    match YuvToRgb::open(true) {
        Ok(shader) => Some(shader),
        Err(_) if std::env::var("MIMIC_TEST_NO_ADAPTER").is_ok_and(|v| v == "1") => None,
        Err(error) => panic!("{error}; MIMIC_TEST_NO_ADAPTER=1 leaves this test out"),
    }
}

#[test]
fn shader_and_twin_agree_within_a_level() {
    let Some(mut shader) = shader() else { return };
    let (mut on_card, mut on_cpu) = (RgbaImage::new(0, 0), RgbaImage::new(0, 0));
    let mut state = 7u32;
    let mut exact = 0;
    let mut all = 0;
    for format in [PixelFormat::Yuyv, PixelFormat::Nv12] {
        for (width, height, padding) in [
            (640u32, 480u32, 0),
            (33, 17, 0),
            (1, 1, 0),
            (2, 3, 1),
            (639, 5, 7),
            (64, 64, 64),
        ] {
            let stride = row_bytes(format, width).unwrap() + padding;
            let rows = height as usize + height.div_ceil(2) as usize;
            let bytes: Vec<u8> = (0..stride * rows)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 24) as u8
                })
                .collect();
            for (bt709, full_range) in [(false, false), (true, false), (false, true), (true, true)]
            {
                let frame = Raw {
                    format,
                    width,
                    height,
                    stride,
                    colours: Colours { bt709, full_range },
                    bytes: &bytes,
                };
                shader.convert(&frame, &mut on_card).unwrap();
                to_rgba(&frame, &mut on_cpu).unwrap();
                assert_eq!(on_card.dimensions(), (width, height));
                for (a, b) in on_card.iter().zip(on_cpu.iter()) {
                    assert!(
                        a.abs_diff(*b) <= 1,
                        "{format} {width}x{height}+{padding}: {a} {b}"
                    );
                    exact += usize::from(a == b);
                    all += 1;
                }
            }
        }
    }
    assert!(exact * 100 > all * 99, "{exact} of {all} are the same");
}

#[test]
fn numbers_that_do_not_agree_are_errors() {
    let Some(mut shader) = shader() else { return };
    let frame = Raw {
        format: PixelFormat::Yuyv,
        width: 640,
        height: 480,
        stride: 0,
        colours: Colours::default(),
        bytes: &[0; 1000],
    };
    let mut picture = RgbaImage::new(0, 0);
    for (wrong, short) in [
        (frame, true),
        (
            Raw {
                width: u32::MAX,
                ..frame
            },
            false,
        ),
        (Raw { height: 0, ..frame }, false),
        (Raw { stride: 3, ..frame }, false),
        (
            Raw {
                format: PixelFormat::Rgb,
                ..frame
            },
            false,
        ),
    ] {
        let error = shader.convert(&wrong, &mut picture).unwrap_err();
        assert!(matches!(error, Error::Frame(_)), "{error}");
        if short {
            assert!(
                matches!(error, Error::Frame(Malformed::Short { .. })),
                "{error}"
            );
        }
    }
}

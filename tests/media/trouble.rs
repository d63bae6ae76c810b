//! Driving clips that are none: each gives one sentence.

use std::path::Path;

use image::RgbaImage;
use mimic::geometry::Rect;
use mimic::media::{Error, ReadOptions, clip};

use crate::helpers::{Folder, H264, assert_sentence, quarters};

/// What goes wrong when a clip is opened and its first frame read.
fn trouble(path: &Path, options: &ReadOptions) -> Error {
    let mut frame = RgbaImage::new(0, 0);
    let result = clip::open(path, options).and_then(|mut clip| clip.read(&mut frame));
    result
        .map(|_| ())
        .expect_err(&format!("{} gives a frame", path.display()))
}

#[test]
fn what_is_no_clip_is_named() {
    let folder = Folder::new();
    let default = ReadOptions::default();
    folder.clip(10, "64x48", H264, "good.mp4");
    let good = std::fs::read(folder.path("good.mp4")).unwrap();
    let sound = std::fs::read(folder.ffmpeg("-f lavfi -i sine=d=1 -c:a aac", "sound.m4a")).unwrap();
    quarters(32, 32).save(folder.path("cover.png")).unwrap();
    let cover = "-i sound.m4a -i cover.png -map 0 -map 1";
    let song = folder.ffmpeg(
        &format!("{cover} -c:a copy -c:v mjpeg -disposition:v attached_pic"),
        "cover.m4a",
    );
    let song = std::fs::read(song).unwrap();
    for (name, content, says) in [
        ("empty.mp4", Vec::new(), "is empty"),
        ("words.mp4", b"once upon a time\n".to_vec(), "a text file"),
        (
            "noise.mp4",
            (1..=255).rev().cycle().take(5000).collect(),
            "not readable",
        ),
        ("sound.mp4", sound, "sound without pictures"),
        ("song.mp4", song, "sound without pictures"),
        // The index of this one is at its end.
        ("cut.mp4", good[..good.len() / 2].to_vec(), "cut short"),
        (
            "photo.heic",
            b"\0\0\0\x18ftypheic\0\0\0\0mif1heic".to_vec(),
            "HEIC",
        ),
        (
            "list.m3u8",
            b"#EXTM3U\n#EXTINF:1,\ngood.mp4\n".to_vec(),
            "text",
        ),
        (
            "list.ffconcat",
            b"ffconcat version 1.0\nfile good.mp4\n".to_vec(),
            "text",
        ),
        // Not text, so that ffmpeg is asked: it must refuse to look further.
        (
            "list.mp4",
            b"ffconcat version 1.0\nfile good.mp4\n# \x01".to_vec(),
            "playlist",
        ),
    ] {
        let path = folder.file(name, content);
        let error = trouble(&path, &default);
        assert_sentence(&error, &path);
        assert!(error.to_string().contains(says), "{error}");
    }
    for name in ["missing.mp4", "missing-%d.png", "nowhere/%d.png"] {
        let path = folder.path(name);
        let error = trouble(&path, &default);
        assert!(
            matches!(error, Error::Read { .. } | Error::NoPictures { .. }),
            "{error}"
        );
        assert!(
            error.to_string().contains("missing") || error.to_string().contains("nowhere"),
            "{error}"
        );
    }
}

#[test]
fn a_clip_without_frames_is_an_error() {
    let folder = Folder::new();
    let default = ReadOptions::default();
    let none = folder.ffmpeg(
        &format!("-f lavfi -i testsrc2=s=64x48 -frames:v 0 {H264}"),
        "none.mp4",
    );
    assert_sentence(&trouble(&none, &default), &none);

    // A header that promises frames, and zeros where they should be.
    let good = folder.clip(
        20,
        "64x48",
        &format!("{H264} -movflags +faststart"),
        "good.mp4",
    );
    let mut bytes = std::fs::read(good).unwrap();
    let data = bytes.windows(4).position(|w| w == b"mdat").unwrap() + 4;
    bytes[data..].fill(0);
    let zeros = folder.file("zeros.mp4", bytes);
    let error = trouble(&zeros, &default);
    assert!(matches!(error, Error::NoFrames { .. }), "{error}");
    assert_sentence(&error, &zeros);

    let empty = folder.path("empty");
    std::fs::create_dir(&empty).unwrap();
    assert!(matches!(
        trouble(&empty, &default),
        Error::NoPictures { .. }
    ));
    assert_sentence(&trouble(&empty, &default), &empty);
}

#[test]
fn a_damaged_picture_among_good_ones_is_named() {
    let folder = Folder::new();
    quarters(16, 16).save(folder.path("1.png")).unwrap();
    let bad = folder.file("2.png", "");
    let mut clip = clip::open(&folder.path("%d.png"), &ReadOptions::default()).unwrap();
    let mut frame = RgbaImage::new(0, 0);
    assert!(clip.read(&mut frame).unwrap());
    assert_sentence(&clip.read(&mut frame).unwrap_err(), &bad);
}

#[test]
fn a_frame_behind_the_last_is_an_error() {
    let folder = Folder::new();
    let video = folder.clip(5, "64x48", H264, "clip.mp4");
    quarters(16, 16).save(folder.path("one.png")).unwrap();
    for (path, wanted) in [
        (&video, 5),
        (&video, 6),
        (&video, 5000),
        (&folder.path("one.png"), 1),
    ] {
        let error = trouble(
            path,
            &ReadOptions {
                start_frame: wanted,
                ..ReadOptions::default()
            },
        );
        assert!(
            matches!(error, Error::PastTheEnd { wanted: w, .. } if w == wanted),
            "{error}"
        );
        assert_sentence(&error, path);
    }
}

#[test]
fn a_crop_outside_the_clip_is_an_error() {
    let folder = Folder::new();
    let video = folder.clip(2, "64x48", H264, "clip.mp4");
    quarters(64, 48).save(folder.path("one.png")).unwrap();
    for path in [video, folder.path("one.png")] {
        for crop in [
            Rect::new(64, 0, 80, 10),
            Rect::new(-9, -9, 0, 0),
            Rect::new(i32::MIN, 5, i32::MAX, 5),
        ] {
            let error = trouble(
                &path,
                &ReadOptions {
                    crop: Some(crop),
                    ..ReadOptions::default()
                },
            );
            assert!(matches!(error, Error::OutsideTheFrame { .. }), "{error}");
            assert_sentence(&error, &path);
        }
        let size = Some((u32::MAX, u32::MAX));
        assert!(matches!(
            trouble(
                &path,
                &ReadOptions {
                    size,
                    ..ReadOptions::default()
                }
            ),
            Error::TooLarge { .. }
        ));
    }
}

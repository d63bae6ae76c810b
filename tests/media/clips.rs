//! Driving clips: every kind that must be read, frame by frame.

use std::time::{Duration, Instant};

use image::{ImageFormat, RgbaImage};
use mimic::geometry::Rect;
use mimic::media::{Fps, ReadOptions};

use crate::helpers::{
    Folder, H264, corners, difference, frames, largest_difference, open, open_with, probe,
    quarters, read_all, warnings,
};

/// Red, green, blue and white quarters that stand still, through ffmpeg.
fn quarters_clip(
    folder: &Folder,
    size: (u32, u32),
    options: &str,
    name: &str,
) -> std::path::PathBuf {
    quarters(size.0, size.1)
        .save_with_format(folder.path("quarters.png"), ImageFormat::Png)
        .unwrap();
    folder.ffmpeg(
        &format!("-loop 1 -framerate 25 -i quarters.png -frames:v 5 {options}"),
        name,
    )
}

#[test]
fn a_plain_clip_gives_its_frames_and_facts() {
    let folder = Folder::new();
    let path = folder.ffmpeg(
        "-f lavfi -i testsrc2=s=64x48:r=30000/1001 -f lavfi -i sine -frames:v 31 -shortest -c:v libx264 -pix_fmt yuv420p",
        "clip.mp4",
    );
    let mut source = open(&path);
    let info = source.info().clone();
    assert_eq!((info.width, info.height, info.path.clone()), (64, 48, path));
    assert_eq!((info.fps.num(), info.fps.den()), (30000, 1001));
    assert_eq!((info.frames, info.has_audio), (Some(31), true));
    assert!((info.duration.unwrap() - 31.0 * 1001.0 / 30000.0).abs() < 0.01);
    assert_eq!(frames(source.as_mut()).len(), 31);
}

#[test]
fn pixels_of_the_right_size_are_not_touched() {
    let folder = Folder::new();
    let lossless = folder.clip(3, "50x38", "-c:v ffv1 -pix_fmt bgr0", "clip.mkv");
    assert!(folder.try_ffmpeg(
        "-f lavfi -i testsrc2=s=50x38:r=25 -frames:v 3 -pix_fmt rgba -f rawvideo",
        "raw"
    ));
    let raw = std::fs::read(folder.path("raw")).unwrap();
    let size = Some((50, 38));
    for options in [
        ReadOptions::default(),
        ReadOptions {
            size,
            ..ReadOptions::default()
        },
    ] {
        let got = frames(open_with(&lossless, &options).as_mut());
        assert!(
            got.iter().flat_map(|frame| frame.iter()).eq(raw.iter()),
            "bytes differ"
        );
    }
    let crop = Some(Rect::new(7, 5, 36, 30));
    let got = frames(
        open_with(
            &lossless,
            &ReadOptions {
                crop,
                ..ReadOptions::default()
            },
        )
        .as_mut(),
    );
    let whole = RgbaImage::from_raw(50, 38, raw[..50 * 38 * 4].to_vec()).unwrap();
    assert!(got[0] == image::imageops::crop_imm(&whole, 7, 5, 29, 25).to_image());
}

#[test]
fn every_codec_is_read() {
    let folder = Folder::new();
    for (codec, name) in [
        (
            "-c:v libx265 -x265-params log-level=none -preset ultrafast -tag:v hvc1",
            "hevc.MP4",
        ),
        ("-c:v libvpx-vp9 -cpu-used 8 -deadline realtime", "vp9.webm"),
        ("-c:v libx264 -pix_fmt yuv444p10le", "deep.mkv"),
        ("-c:v mpeg4 -q:v 3", "divx.avi"),
        ("-c:v mjpeg -pix_fmt yuvj420p", "motion.mov"),
        ("-c:v mpeg2video -q:v 3", "broadcast.ts"),
        ("", "picture.gif"),
        (
            "-c:v libx264 -pix_fmt yuv420p",
            "no-extension-matters.bin.flv",
        ),
    ] {
        let path = quarters_clip(&folder, (64, 48), codec, name);
        let got = read_all(&path);
        assert_eq!(got.len(), 5, "{name}");
        assert!(got.iter().all(|frame| corners(frame) == "rgbw"), "{name}");
        // ffmpeg's GIFs have 256 fixed colours unless told otherwise.
        let close = if name.ends_with("gif") { 25.0 } else { 8.0 };
        assert!(
            difference(&got[4], &quarters(64, 48)) < close,
            "{name}: colours are off"
        );
    }
}

#[test]
fn colours_follow_the_label_of_the_clip() {
    let folder = Folder::new();
    for (matrix, range) in [("bt709", "tv"), ("smpte170m", "tv"), ("bt709", "pc")] {
        let label = format!(
            "-vf scale=out_color_matrix={matrix}:out_range={range},format=yuv444p -colorspace {matrix} -color_range {range} -c:v libx264 -qp 1"
        );
        let path = quarters_clip(&folder, (64, 48), &label, "clip.mp4");
        let got = read_all(&path);
        assert!(
            largest_difference(&got[0], &quarters(64, 48)) <= 4,
            "{matrix} {range}"
        );
    }
}

#[test]
fn a_variable_rate_becomes_constant() {
    let folder = Folder::new();
    // 20 frames 1/25 s apart, then every third only: the picture's own clock tells which frame is which.
    let source = "-f lavfi -i testsrc2=s=64x48:r=25:d=3 -vf select='lt(n,20)+not(mod(n,3))'";
    // The option has an old name and a new one.
    let made = ["-fps_mode", "-vsync"].iter().any(|option| {
        folder.try_ffmpeg(
            &format!("{source} {option} vfr -c:v libx264 -pix_fmt yuv420p"),
            "vfr.mp4",
        )
    });
    assert!(made);
    let path = folder.path("vfr.mp4");
    let info = open(&path).info().clone();
    let stored: f64 = probe(&path, "v:0", "nb_read_frames").parse().unwrap();
    assert!(
        info.fps.as_f64() < 20.0,
        "the average of 25 and 8.3: {}",
        info.fps
    );
    let got = read_all(&path);
    assert!(
        (got.len() as f64 - stored).abs() <= 3.0,
        "{} of {stored} stored",
        got.len()
    );

    // At 25 again every frame stands where it stood.
    let even = ReadOptions {
        fps: Fps::new(25, 1),
        ..ReadOptions::default()
    };
    let original = read_all(&folder.clip(75, "64x48", "-c:v libx264 -pix_fmt yuv420p", "cfr.mp4"));
    let got = frames(open_with(&path, &even).as_mut());
    for n in [0, 10, 19, 30, 60] {
        assert!(difference(&got[n], &original[n]) < 3.0, "frame {n}");
    }
}

#[test]
fn another_rate_keeps_the_length() {
    let folder = Folder::new();
    let path = folder.clip(50, "64x48", H264, "clip.mp4");
    for (rate, want) in [(10, 20), (50, 100)] {
        let mut source = open_with(
            &path,
            &ReadOptions {
                fps: Fps::new(rate, 1),
                ..ReadOptions::default()
            },
        );
        assert_eq!(
            (source.info().frames, source.info().fps),
            (Some(want), Fps::new(rate, 1).unwrap())
        );
        assert_eq!(frames(source.as_mut()).len() as u64, want);
    }
}

#[test]
fn a_late_picture_stays_with_its_sound() {
    let folder = Folder::new();
    let path = folder.ffmpeg(
        "-f lavfi -i sine=d=2 -itsoffset 1 -f lavfi -i testsrc2=s=64x48:r=25:d=1 -c:v libx264 -pix_fmt yuv420p",
        "late.mkv",
    );
    let got = read_all(&path);
    assert_eq!(got.len(), 50);
    assert_eq!(
        got[0], got[24],
        "the first picture fills the second before it"
    );
}

#[test]
fn rotation_flags_turn_the_frames() {
    let folder = Folder::new();
    for (degrees, size) in [(90, (48, 64)), (180, (64, 48)), (270, (48, 64))] {
        quarters_clip(&folder, (64, 48), H264, "flat.mp4");
        // Newer versions of ffmpeg dropped the first spelling, older ones lack the second.
        let made = folder.try_ffmpeg(
            &format!("-display_rotation {degrees} -i flat.mp4 -c copy"),
            "turned.mp4",
        ) || folder.try_ffmpeg(
            &format!("-i flat.mp4 -c copy -metadata:s:v:0 rotate={degrees}"),
            "turned.mp4",
        );
        assert!(made);
        let path = folder.path("turned.mp4");
        let mut source = open(&path);
        assert_eq!(
            (source.info().width, source.info().height),
            size,
            "{degrees}"
        );
        let got = frames(source.as_mut());
        assert_eq!(got.len(), 5);
        assert_eq!(got[0].dimensions(), size);
        let seen = corners(&got[0]);
        let want: &[&str] = if degrees == 180 {
            &["wbgr"]
        } else {
            &["brwg", "gwrb"]
        };
        assert!(want.contains(&seen.as_str()), "{degrees}: {seen}");
        // A crop counts in the turned picture.
        let crop = Some(Rect::new(0, 0, size.0 as i32 / 2, size.1 as i32 / 2));
        let got = frames(
            open_with(
                &path,
                &ReadOptions {
                    crop,
                    ..ReadOptions::default()
                },
            )
            .as_mut(),
        );
        assert_eq!(corners(&got[0]), seen[..1].repeat(4), "{degrees}");
    }
}

#[test]
fn pixels_are_made_square() {
    let folder = Folder::new();
    let path = quarters_clip(
        &folder,
        (64, 48),
        &format!("-vf setsar=3/2 {H264}"),
        "wide.mp4",
    );
    let mut source = open(&path);
    assert_eq!((source.info().width, source.info().height), (96, 48));
    let got = frames(source.as_mut());
    assert_eq!(
        (got[0].dimensions(), corners(&got[0])),
        ((96, 48), "rgbw".to_owned())
    );
}

#[test]
fn ffmpeg_crops_and_scales_as_the_pictures_do() {
    let folder = Folder::new();
    let path = folder.clip(2, "320x240", "-c:v ffv1 -pix_fmt bgr0", "clip.mkv");
    assert!(folder.try_ffmpeg("-i clip.mkv -start_number 1", "f%d.png"));
    let pictures = folder.path("f%d.png");
    for (crop, size) in [
        (None, (64, 64)),
        (Some(Rect::new(30, 20, 230, 220)), (64, 64)),
        (Some(Rect::new(31, 21, 94, 84)), (256, 256)),
        (Some(Rect::new(-50, -50, 100, 100)), (100, 100)),
    ] {
        let options = ReadOptions {
            crop,
            size: Some(size),
            ..ReadOptions::default()
        };
        let video = frames(open_with(&path, &options).as_mut());
        let stills = frames(open_with(&pictures, &options).as_mut());
        assert_eq!((video.len(), video[0].dimensions()), (2, size));
        for (a, b) in video.iter().zip(&stills) {
            assert!(
                difference(a, b) < 1.5,
                "{crop:?} {size:?}: {}",
                difference(a, b)
            );
        }
    }
    let file = quarters_clip(&folder, (64, 48), H264, "yuv.mp4");
    let crop = Some(Rect::new(33, 25, 64, 48));
    let corner = frames(
        open_with(
            &file,
            &ReadOptions {
                crop,
                ..ReadOptions::default()
            },
        )
        .as_mut(),
    );
    assert_eq!(
        (corner[0].dimensions(), corners(&corner[0])),
        ((31, 23), "wwww".to_owned())
    );
}

#[test]
fn a_second_pass_and_a_later_start_give_the_same_frames() {
    let folder = Folder::new();
    let video = folder.clip(12, "64x48", H264, "clip.mp4");
    folder.ffmpeg("-i clip.mp4", "p%02d.png");
    for path in [video, folder.path("p%02d.png")] {
        let mut source = open(&path);
        let mut frame = RgbaImage::new(0, 0);
        for _ in 0..4 {
            assert!(source.read(&mut frame).unwrap());
        }
        source.rewind().unwrap();
        let all = frames(source.as_mut());
        assert_eq!(all.len(), 12);
        assert!(!source.read(&mut frame).unwrap(), "the end stays the end");
        source.rewind().unwrap();
        assert!(frames(source.as_mut()) == all);

        let mut later = open_with(
            &path,
            &ReadOptions {
                start_frame: 7,
                ..ReadOptions::default()
            },
        );
        assert!(frames(later.as_mut()) == all[7..]);
        later.rewind().unwrap();
        assert!(frames(later.as_mut()) == all[7..]);
    }
}

#[test]
fn reading_reuses_the_callers_buffer() {
    let folder = Folder::new();
    let mut source = open(&folder.clip(3, "64x48", H264, "clip.mp4"));
    let mut frame = RgbaImage::new(64, 48);
    let address = frame.as_ptr();
    while source.read(&mut frame).unwrap() {
        assert_eq!(frame.as_ptr(), address);
    }
}

#[test]
fn frames_that_change_their_size_are_stretched_to_one() {
    let folder = Folder::new();
    let plain = format!("-muxdelay 0 -bf 0 {H264}");
    quarters_clip(&folder, (64, 48), &plain, "a.ts");
    quarters_clip(
        &folder,
        (40, 80),
        &format!("-output_ts_offset 0.2 {plain}"),
        "b.ts",
    );
    let joined = [folder.path("a.ts"), folder.path("b.ts")]
        .map(|p| std::fs::read(p).unwrap())
        .concat();
    let video = folder.file("joined.ts", joined);
    let info = open(&video).info().clone();
    let quarter = Rect::of_size(info.width / 2, info.height / 2);
    for (crop, want) in [(None, "rgbw"), (Some(quarter), "rrrr")] {
        let got = frames(
            open_with(
                &video,
                &ReadOptions {
                    crop,
                    ..ReadOptions::default()
                },
            )
            .as_mut(),
        );
        assert_eq!(got.len(), 10);
        for (n, frame) in got.iter().enumerate() {
            assert_eq!(
                (frame.dimensions(), corners(frame).as_str()),
                (got[0].dimensions(), want),
                "frame {n}"
            );
        }
    }
    for (n, size) in [(1, (64, 48)), (2, (40, 80)), (3, (64, 48))] {
        quarters(size.0, size.1)
            .save(folder.path(&format!("still-{n}.png")))
            .unwrap();
    }
    let log = warnings(|| {
        let got = read_all(&folder.path("still-%d.png"));
        assert_eq!(got.len(), 3);
        assert!(
            got.iter()
                .all(|frame| frame.dimensions() == (64, 48) && corners(frame) == "rgbw")
        );
    });
    assert!(log.contains("stretched"), "{log}");
}

#[test]
fn a_clip_that_breaks_off_gives_what_it_has() {
    let folder = Folder::new();
    let whole = folder.clip(
        100,
        "128x96",
        &format!("{H264} -g 10 -movflags +faststart"),
        "whole.mp4",
    );
    let bytes = std::fs::read(whole).unwrap();
    let cut = folder.file("cut.mp4", &bytes[..bytes.len() / 2]);
    let log = warnings(|| {
        let mut source = open(&cut);
        assert_eq!(source.info().frames, Some(100));
        let got = frames(source.as_mut()).len();
        assert!((20..80).contains(&got), "{got} frames");
        source.rewind().unwrap();
        assert_eq!(frames(source.as_mut()).len(), got);
    });
    assert!(log.contains("cut.mp4 breaks off after"), "{log}");
    assert_eq!(log.lines().count(), 1, "said once: {log}");
}

#[test]
fn a_clip_may_have_one_frame() {
    let folder = Folder::new();
    let mp4 = folder.clip(1, "64x48", H264, "one.mp4");
    let gif = folder.clip(1, "64x48", "", "one.gif");
    quarters(64, 48).save(folder.path("one.png")).unwrap();
    for path in [mp4, gif, folder.path("one.png")] {
        let mut source = open(&path);
        assert_eq!(source.info().frames, Some(1), "{}", path.display());
        assert_eq!(frames(source.as_mut()).len(), 1);
        source.rewind().unwrap();
        assert_eq!(frames(source.as_mut()).len(), 1);
    }
}

#[test]
fn a_folder_is_read_in_natural_order() {
    let folder = Folder::new();
    // Frame n is n + 1 pixels of grey: the sizes are evened out, the greys tell.
    for n in [1, 2, 9, 10, 11, 100] {
        let grey = image::GrayImage::from_pixel(8, 8, image::Luma([n]));
        grey.save(folder.path(&format!("frame{n}.png"))).unwrap();
    }
    folder.file("notes.txt", "not a frame");
    folder.file(".DS_Store", "not a frame");
    folder.file("._frame1.png", "not a frame");
    let greys = |frames: Vec<RgbaImage>| frames.iter().map(|f| f[(0, 0)][0]).collect::<Vec<_>>();
    let mut source = open(&folder.path(""));
    assert_eq!(
        (
            source.info().frames,
            source.info().fps.as_f64(),
            source.info().has_audio
        ),
        (Some(6), 25.0, false)
    );
    assert_eq!(greys(frames(source.as_mut())), [1, 2, 9, 10, 11, 100]);
    let options = ReadOptions {
        fps: Fps::new(10, 1),
        ..ReadOptions::default()
    };
    let mut source = open_with(&folder.path("frame%d.png"), &options);
    assert_eq!(source.info().duration, Some(0.6));
    assert_eq!(greys(frames(source.as_mut())), [1, 2, 9, 10, 11, 100]);
}

#[test]
fn names_are_never_options_addresses_or_patterns() {
    let folder = Folder::new();
    let video = std::fs::read(folder.clip(2, "64x48", H264, "clip.mp4")).unwrap();
    let gif = std::fs::read(folder.clip(2, "64x48", "", "clip.gif")).unwrap();
    for (name, content) in [
        ("-i.mp4", &video),
        ("http:colon.mp4", &video),
        ("take %03d 100%.mp4", &video),
        ("take%03d.gif", &gif),
        ("it's \"$(quoted)\"; [x] & 'y'.mp4", &video),
        ("line\nbreak.mp4", &video),
        ("gif in disguise.mp4", &gif),
        ("mp4 in disguise.gif", &video),
        ("no extension", &video),
    ] {
        let path = folder.file(name, content);
        assert_eq!(read_all(&path).len(), 2, "{name}");
    }
}

#[test]
fn transparent_clips_are_laid_over_white() {
    let folder = Folder::new();
    let path = folder.ffmpeg(
        "-f lavfi -i color=red@0.0:s=16x16:r=10,format=rgba -frames:v 2 -c:v ffv1 -pix_fmt bgra",
        "clear.mkv",
    );
    assert!(read_all(&path)[0].iter().all(|sample| *sample == 255));
}

#[test]
fn a_reader_that_loses_interest_ends_the_decoder() {
    let folder = Folder::new();
    let path = folder.clip(3000, "320x240", H264, "long.mp4");
    let mut source = open(&path);
    let mut frame = RgbaImage::new(0, 0);
    assert!(source.read(&mut frame).unwrap());
    let start = Instant::now();
    drop(source);
    assert!(start.elapsed() < Duration::from_secs(2));
}

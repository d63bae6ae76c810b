//! Results: what is written, and that nothing is written by halves.

use std::fs;
use std::path::{Path, PathBuf};

use image::{Rgba, RgbaImage};
use mimic::media::{Error, Fps, FrameSink, WriteOptions, resolve_output, sink};

use crate::helpers::{
    Folder, H264, assert_sentence, corners, difference, largest_difference, probe, quarters,
    read_all, warnings,
};

fn options(width: u32, height: u32) -> WriteOptions {
    WriteOptions {
        width,
        height,
        fps: Fps::new(25, 1).unwrap(),
        audio_from: None,
        inputs: Vec::new(),
        provenance: None,
    }
}

fn create(path: &Path, options: &WriteOptions) -> Box<dyn FrameSink> {
    sink::create(path, options).unwrap_or_else(|e| panic!("{e}"))
}

/// Frames that differ from each other and hold all colours.
fn moving(width: u32, height: u32, count: u32) -> Vec<RgbaImage> {
    (0..count)
        .map(|n| {
            let mut frame = quarters(width, height);
            let x = n * width / count;
            (0..height).for_each(|y| frame.put_pixel(x, y, Rgba([0, 0, 0, 255])));
            frame
        })
        .collect()
}

fn write(path: &Path, options: &WriteOptions, frames: &[RgbaImage]) -> Vec<PathBuf> {
    let mut sink = create(path, options);
    for frame in frames {
        sink.write(frame).unwrap_or_else(|e| panic!("{e}"));
    }
    sink.finish().unwrap_or_else(|e| panic!("{e}"))
}

fn refusal(path: &Path, options: &WriteOptions) -> Error {
    sink::create(path, options)
        .map(|_| ())
        .expect_err(&path.display().to_string())
}

#[test]
fn an_mp4_plays_everywhere_and_keeps_its_colours() {
    let folder = Folder::new();
    let path = folder.path("deep/down/result.MP4");
    let frames = moving(96, 64, 12);
    assert_eq!(
        write(&path, &options(96, 64), &frames),
        std::slice::from_ref(&path)
    );
    let entries = "codec_name,pix_fmt,color_range,color_space,color_transfer,color_primaries,avg_frame_rate,nb_read_frames";
    let said = probe(&path, "v:0", entries);
    let said: Vec<&str> = said.lines().collect();
    assert_eq!(
        said,
        [
            "h264", "yuv420p", "tv", "bt709", "bt709", "bt709", "25/1", "12"
        ]
    );
    let bytes = fs::read(&path).unwrap();
    let at = |name: &[u8]| bytes.windows(4).position(|w| w == name).unwrap();
    assert!(at(b"moov") < at(b"mdat"), "the index comes first");
    let back = read_all(&path);
    for (a, b) in frames.iter().zip(&back) {
        assert!(difference(a, b) < 4.0, "{}", difference(a, b));
    }
    // Away from edges, which yuv420p blurs.
    for (x, y) in [(80, 10), (80, 50), (20, 50)] {
        let (want, got) = (frames[0].get_pixel(x, y), back[0].get_pixel(x, y));
        assert!(
            want.0.iter().zip(got.0).all(|(a, b)| a.abs_diff(b) <= 4),
            "{want:?} became {got:?}"
        );
    }
}

#[test]
fn odd_sizes_get_a_copy_of_their_last_row_and_column() {
    let folder = Folder::new();
    for (size, even) in [
        ((33, 17), "34\n18"),
        ((34, 17), "34\n18"),
        ((33, 18), "34\n18"),
        ((1, 1), "2\n2"),
    ] {
        let path = folder.path("odd.mp4");
        write(&path, &options(size.0, size.1), &moving(size.0, size.1, 3));
        assert_eq!(probe(&path, "v:0", "width,height"), even, "{size:?}");
        if size.0 > 1 {
            let back = read_all(&path);
            assert_eq!(corners(&back[2]), "rgbw", "{size:?}");
            let (last, copy) = (back[2].get_pixel(32, 3).0, back[2].get_pixel(33, 3).0);
            assert!(
                last.iter().zip(copy).all(|(a, b)| a.abs_diff(b) < 12),
                "{last:?} {copy:?}"
            );
        }
    }
    for name in ["odd.webm", "odd.gif", "odd%d.png"] {
        let files = write(&folder.path(name), &options(33, 17), &moving(33, 17, 2));
        assert_eq!(probe(&files[0], "v:0", "width,height"), "33\n17", "{name}");
    }
}

#[test]
fn sound_is_copied_as_long_as_there_are_pictures() {
    let folder = Folder::new();
    let clip = folder.ffmpeg(
        &format!(
            "-f lavfi -i testsrc2=s=64x48:r=25:d=4 -f lavfi -i sine=d=4 {H264} -c:a aac -ar 22050"
        ),
        "clip.mp4",
    );
    let opus = folder.ffmpeg("-f lavfi -i sine=d=1 -c:a libopus", "opus.mkv");
    let none = folder.clip(3, "64x48", H264, "none.mp4");
    let late = folder.ffmpeg(
        "-f lavfi -i sine=d=1:r=48000 -af adelay=0 -c:a pcm_s16le",
        "sound.wav",
    );
    for (name, from, codec) in [
        ("copied.mp4", &clip, "aac"),
        ("encoded.mp4", &opus, "aac"),
        ("encoded.webm", &clip, "opus"),
        ("copied.webm", &opus, "opus"),
        ("from-wav.mp4", &late, "aac"),
        ("silent.mp4", &none, ""),
    ] {
        let path = folder.path(name);
        let with_sound = WriteOptions {
            audio_from: Some(from.clone()),
            ..options(64, 48)
        };
        write(&path, &with_sound, &moving(64, 48, 50));
        assert_eq!(probe(&path, "a:0", "codec_name"), codec, "{name}");
        if from == &clip {
            assert_eq!(probe(&path, "v:0", "nb_read_frames"), "50", "{name}");
            let seconds = sound_length(&path);
            assert!(
                (1.9..2.15).contains(&seconds),
                "{name}: {seconds} s of sound for 2 s of pictures"
            );
        }
    }
    // Copied, not encoded again: the same packets.
    assert_eq!(
        probe(&folder.path("copied.mp4"), "a:0", "sample_rate"),
        "22050"
    );
    assert_eq!(
        first_packets(&folder.path("copied.mp4")),
        first_packets(&clip)
    );
    let gif = folder.path("none.gif");
    write(
        &gif,
        &WriteOptions {
            audio_from: Some(clip),
            ..options(64, 48)
        },
        &moving(64, 48, 3),
    );
    assert_eq!(probe(&gif, "a:0", "codec_name"), "");
    assert!(
        folder.list().iter().all(|name| !name.starts_with('.')),
        "{:?}",
        folder.list()
    );
}

/// Seconds of sound in a file, by its packets.
fn sound_length(path: &Path) -> f64 {
    let output = std::process::Command::new("ffprobe")
        .args([
            "-v",
            "error",
            "-select_streams",
            "a:0",
            "-show_entries",
            "packet=pts_time,duration_time",
            "-of",
            "csv=p=0",
        ])
        .arg(path)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let last = text.lines().rfind(|line| !line.is_empty()).unwrap();
    last.split(',')
        .filter_map(|number| number.parse::<f64>().ok())
        .sum()
}

/// Checksums of the first packets of sound.
fn first_packets(path: &Path) -> Vec<String> {
    let output = std::process::Command::new("ffmpeg")
        .args(["-v", "error", "-i"])
        .arg(path)
        .args(["-map", "0:a:0", "-c", "copy", "-f", "framecrc", "-"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let packets = text.lines().filter(|line| !line.starts_with('#'));
    packets
        .take(20)
        .map(|line| line.rsplit(',').next().unwrap().trim().to_owned())
        .collect()
}

#[test]
fn sound_that_fails_does_not_cost_the_pictures() {
    let folder = Folder::new();
    let clip = folder.file("clip.mp4", b"\0\0\0\x18ftypmp42 and nothing that follows");
    let path = folder.path("result.mp4");
    let log = warnings(|| {
        write(
            &path,
            &WriteOptions {
                audio_from: Some(clip),
                ..options(32, 32)
            },
            &moving(32, 32, 3),
        );
    });
    assert!(log.contains("result.mp4 is written without sound"), "{log}");
    assert_eq!(probe(&path, "v:0", "nb_read_frames"), "3");
}

#[test]
fn webm_and_gif_hold_the_frames() {
    let folder = Folder::new();
    let frames = moving(64, 48, 10);
    for (name, codec, close) in [("a.webm", "vp9", 5.0), ("a.gif", "gif", 5.0)] {
        let path = folder.path(name);
        write(&path, &options(64, 48), &frames);
        assert_eq!(probe(&path, "v:0", "codec_name"), codec);
        let back = read_all(&path);
        assert_eq!(back.len(), 10, "{name}");
        for (a, b) in frames.iter().zip(&back) {
            assert!(difference(a, b) < close, "{name}: {}", difference(a, b));
        }
    }
    let gif = fs::read(folder.path("a.gif")).unwrap();
    assert!(
        gif.windows(14).any(|w| w == b"NETSCAPE2.0\x03\x01\0"),
        "loops for ever"
    );
    // Longer than the frames the palette is taken from, and faster than a GIF can be.
    let fast = WriteOptions {
        fps: Fps::new(100, 1).unwrap(),
        ..options(64, 48)
    };
    write(&folder.path("fast.gif"), &fast, &moving(64, 48, 60));
    assert_eq!(
        probe(&folder.path("fast.gif"), "v:0", "nb_read_frames"),
        "30"
    );
}

#[test]
fn numbered_pictures_are_lossless() {
    let folder = Folder::new();
    let frames = moving(31, 17, 11);
    fs::create_dir(folder.path("frames")).unwrap();
    folder.file("frames/00003.png", "an older one, replaced");
    folder.file("frames/00012.png", "an older one, behind the last");
    folder.file("frames/other.txt", "not touched");
    let pattern = folder.path("frames/%05d.png");
    let log = warnings(|| {
        let files = write(&pattern, &options(31, 17), &frames);
        assert_eq!(files.len(), 11);
        assert_eq!(files[0], folder.path("frames/00001.png"));
        for (file, frame) in files.iter().zip(&frames) {
            assert_eq!(
                largest_difference(&image::open(file).unwrap().to_rgba8(), frame),
                0
            );
        }
    });
    assert!(log.contains("holds 1 older"), "{log}");
    assert_eq!(fs::read_dir(folder.path("frames")).unwrap().count(), 13);
}

#[test]
fn a_dropped_sink_leaves_nothing() {
    let folder = Folder::new();
    for name in ["a.mp4", "a.webm", "a.gif", "made/%03d.png"] {
        let mut sink = create(&folder.path(name), &options(64, 48));
        for frame in moving(64, 48, 5) {
            sink.write(&frame).unwrap();
        }
        drop(sink);
        assert_eq!(folder.list(), [""; 0], "{name}");
    }
    // What was there before stays as it was.
    for name in ["old.mp4", "1.png"] {
        folder.file(name, "precious");
        let pattern = if name == "1.png" { "%d.png" } else { name };
        let mut sink = create(&folder.path(pattern), &options(64, 48));
        sink.write(&moving(64, 48, 1)[0]).unwrap();
        drop(sink);
        assert_eq!(fs::read(folder.path(name)).unwrap(), b"precious");
    }
    assert_eq!(folder.list(), ["1.png", "old.mp4"]);
}

#[test]
fn an_older_result_is_replaced_and_has_ordinary_rights() {
    let folder = Folder::new();
    let path = folder.file("result.mp4", "old");
    write(&path, &options(64, 48), &moving(64, 48, 3));
    assert_eq!(folder.list(), ["result.mp4"]);
    let rights = |path: &Path| fs::metadata(path).unwrap().permissions();
    assert_eq!(rights(&path), rights(&folder.file("ordinary", "")));
}

#[test]
fn nothing_to_write_and_odd_frames_are_errors() {
    let folder = Folder::new();
    for name in ["a.mp4", "a.gif", "f/%d.png"] {
        let path = folder.path(name);
        let error = create(&path, &options(64, 48)).finish().unwrap_err();
        assert!(matches!(error, Error::NothingWritten { .. }), "{error}");
        assert_sentence(&error, &path);

        let mut sink = create(&path, &options(64, 48));
        let error = sink.write(&quarters(48, 64)).unwrap_err();
        assert!(matches!(error, Error::FrameSize { .. }), "{error}");
        assert_sentence(&error, &path);
        drop(sink);
        for (width, height) in [(0, 48), (u32::MAX, u32::MAX)] {
            assert!(matches!(
                refusal(&path, &options(width, height)),
                Error::FrameSize { .. }
            ));
        }
        assert_eq!(folder.list(), [""; 0]);
    }
}

#[test]
fn unknown_names_are_refused_with_the_known_ones() {
    let folder = Folder::new();
    for name in ["a.mov", "a", "a.png", "100%.png", "%d-%d.png", "a.mp4.exe"] {
        let path = folder.path(name);
        let error = refusal(&path, &options(64, 48));
        assert!(matches!(error, Error::UnknownOutput { .. }), "{error}");
        assert_sentence(&error, &path);
        for known in [".mp4", ".webm", ".gif", "%05d.png"] {
            assert!(error.to_string().contains(known), "{error}");
        }
    }
}

#[test]
fn inputs_are_never_overwritten() {
    let folder = Folder::new();
    let clip = folder.file("clip.mp4", "precious");
    let still = folder.file("in/7.png", "precious");
    let with = |input: &Path| WriteOptions {
        inputs: vec![input.to_owned()],
        ..options(64, 48)
    };
    for (output, input) in [
        (clip.clone(), clip.clone()),
        (folder.path("in/../clip.mp4"), clip.clone()),
        (folder.path("in/%d.png"), still.clone()),
        (folder.path("in/%d.png"), folder.path("in")),
        (folder.path("in/%d.png"), folder.path("in/%d.png")),
        (folder.path("in/out-%d.png"), folder.path("in/%d.png")),
    ] {
        let error = refusal(&output, &with(&input));
        assert!(matches!(error, Error::Overwrites { .. }), "{error}");
        assert_sentence(&error, &output);
    }
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(&clip, folder.path("link.mp4")).unwrap();
        assert!(matches!(
            refusal(&folder.path("link.mp4"), &with(&clip)),
            Error::Overwrites { .. }
        ));
    }
    // Beside an input is fine.
    drop(create(&folder.path("in/x%d.png"), &with(&still)));
    drop(create(&folder.path("clip2.mp4"), &with(&clip)));
}

#[test]
fn places_that_cannot_be_written_are_named() {
    let folder = Folder::new();
    folder.file("file", "a file");
    fs::create_dir(folder.path("taken.mp4")).unwrap();
    for name in [
        "file/result.mp4",
        "file/deeper/result.gif",
        "file/%d.png",
        "taken.mp4",
    ] {
        let path = folder.path(name);
        let error = refusal(&path, &options(64, 48));
        assert!(matches!(error, Error::Write { .. }), "{error}");
        assert_sentence(&error, &path);
    }
    let long = folder.path(&format!("{}.mp4", "long".repeat(99)));
    assert!(matches!(
        refusal(&long, &options(64, 48)),
        Error::Write { .. }
    ));
}

#[test]
fn odd_output_names_are_only_names() {
    let folder = Folder::new();
    for name in [
        "-y.mp4",
        "a:b.mp4",
        "100%d.mp4",
        "it's $(x) & [y].gif",
        "http:%03d.webm",
    ] {
        let path = folder.path(name);
        write(&path, &options(32, 32), &moving(32, 32, 2));
        assert_eq!(fs::read_dir(folder.path("")).unwrap().count(), 1, "{name}");
        fs::remove_file(path).unwrap();
    }
}

#[test]
fn outputs_are_resolved_as_the_manual_says() {
    let folder = Folder::new();
    fs::create_dir(folder.path("v1.2")).unwrap();
    let there = folder.path("v1.2");
    for (out, filename, want) in [
        (None, None, Path::new("output/result.mp4")),
        (None, Some("x.gif"), Path::new("output/x.gif")),
        (Some(Path::new("a/b")), None, Path::new("a/b/result.mp4")),
        (
            Some(Path::new("a/b/")),
            Some("x.webm"),
            Path::new("a/b/x.webm"),
        ),
        (Some(Path::new("a/b")), Some("x"), Path::new("a/b/x.mp4")),
        (
            Some(Path::new("a/b")),
            Some(""),
            Path::new("a/b/result.mp4"),
        ),
        (
            Some(Path::new("a/b.mp4")),
            Some("x.gif"),
            Path::new("a/b.mp4"),
        ),
        (Some(Path::new("f/%05d.png")), None, Path::new("f/%05d.png")),
        (Some(Path::new(".")), None, Path::new("./result.mp4")),
        (Some(&there), None, &there.join("result.mp4")),
    ] {
        assert_eq!(resolve_output(out, filename), want, "{out:?} {filename:?}");
    }
}

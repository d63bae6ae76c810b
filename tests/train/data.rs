//! Clips as people keep them, and clips that are broken.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;

use image::{Rgb, RgbImage};
use mimic::train::config::{Augment, DataConfig, Recipe};
use mimic::train::data::{self, Kind, Split};
use mimic::train::loader::{Dataset, Loader};
use mimic::train::prepare::{self, Job};

pub(crate) fn ffmpeg(args: &[&str]) {
    let status = Command::new("ffmpeg")
        .args(["-v", "error", "-nostdin", "-y"])
        .args(args)
        .status();
    assert!(status.unwrap().success(), "{args:?}");
}

/// A video or GIF of moving shapes.
pub(crate) fn clip(path: &Path, size: &str, frames: u32) {
    let source = format!("testsrc2=size={size}:rate=10");
    let frames = frames.to_string();
    ffmpeg(&[
        "-f",
        "lavfi",
        "-i",
        &source,
        "-frames:v",
        &frames,
        path.to_str().unwrap(),
    ]);
}

fn picture(path: &Path, width: u32, height: u32, shade: u8) {
    RgbImage::from_pixel(width, height, Rgb([shade, 0, 0]))
        .save(path)
        .unwrap();
}

pub(crate) fn config(root: &Path) -> DataConfig {
    DataConfig {
        root: root.to_owned(),
        id_sampling: false,
        pairs_list: None,
        num_repeats: 2,
        batch_size: 2,
        workers: 2,
        augment: Augment::default(),
    }
}

#[test]
fn every_layout_of_the_reference_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let train = folder.path().join("train");
    fs::create_dir_all(train.join("frames#1")).unwrap();
    fs::create_dir(folder.path().join("test")).unwrap();
    clip(&train.join("video.mp4"), "96x64", 6);
    clip(&train.join("moving.gif"), "64x64", 5);
    // Frame 10 comes after frame 9, pictures of other sizes are brought to one.
    for i in 1..=10 {
        picture(
            &train.join(format!("frames#1/{i}.png")),
            40 + i,
            40,
            20 * i as u8,
        );
    }
    // Three frames side by side, red, green, blue.
    let strip = RgbImage::from_fn(96, 32, |x, _| {
        let mut pixel = [0; 3];
        pixel[x as usize / 32] = 255;
        Rgb(pixel)
    });
    strip.save(train.join("strip.png")).unwrap();
    fs::write(train.join("notes.txt"), "no clip").unwrap();
    picture(&train.join("single.png"), 30, 30, 9);
    // What `mimic train prepare` leaves beside the clips it makes.
    fs::write(train.join("prepared.json"), "{}").unwrap();

    let config = config(folder.path());
    let found = data::find(&config, Split::Train).unwrap();
    let names: Vec<&str> = found.clips.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["frames#1", "moving", "strip", "video"]);
    assert_eq!(found.clips[0].identity(), "frames");
    let Kind::Folder(files) = &found.clips[0].kind else {
        panic!()
    };
    assert!(files[9].ends_with("10.png"));
    let left: Vec<String> = found
        .left_out
        .iter()
        .map(|(p, _)| p.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(left, ["notes.txt", "single.png"]);

    let strip = data::read_all(&found.clips[2], 16).unwrap();
    assert_eq!(strip.count, 3);
    assert_eq!(strip.bytes[..3], [255, 0, 0]);
    assert_eq!(strip.bytes[2 * 16 * 16 * 3..][..3], [0, 0, 255]);
    let video = data::read_all(&found.clips[3], 16).unwrap();
    assert_eq!((video.count, video.bytes.len()), (6, 6 * 16 * 16 * 3));

    let dataset = Dataset::open(&config, &Recipe::default(), 16).unwrap();
    assert_eq!((dataset.clips(), dataset.epoch()), (4, 8));
    for number in 0..8 {
        let sample = dataset.sample(number).unwrap();
        assert_eq!(sample.source.len(), 3 * 16 * 16);
        assert!(
            sample
                .source
                .iter()
                .chain(&sample.driving)
                .all(|v| (0.0..=1.0).contains(v))
        );
    }
    // An empty test/ does not stop training; measuring says what is wrong.
    let error = data::find(&config, Split::Test).unwrap_err().to_string();
    assert!(error.contains("testing"), "{error}");
}

#[test]
fn a_flat_folder_is_split_by_people() {
    let folder = tempfile::tempdir().unwrap();
    for person in 0..5 {
        for scene in 0..2 {
            let path = folder.path().join(format!("p{person}#{scene}"));
            fs::create_dir(&path).unwrap();
            picture(&path.join("1.png"), 8, 8, person);
        }
    }
    let mut config = config(folder.path());
    let of = |split| data::find(&config, split).unwrap().clips;
    let (train, test) = (of(Split::Train), of(Split::Test));
    assert_eq!((train.len(), test.len()), (8, 2));
    assert_eq!(test[0].identity(), test[1].identity());
    assert!(
        train
            .iter()
            .all(|clip| clip.identity() != test[0].identity())
    );
    assert_eq!(train, of(Split::Train));
    config.id_sampling = true;
    let dataset = Dataset::open(&config, &Recipe::default(), 8).unwrap();
    assert_eq!((dataset.clips(), dataset.epoch()), (8, 4 * 2));
    let table = folder.path().join("pairs.csv");
    fs::write(
        &table,
        "distance,source,driving\n1,p0#0,p1#1\n2,nobody,p0#0\n",
    )
    .unwrap();
    let all = data::list(folder.path()).unwrap().clips;
    assert_eq!(data::pairs(&table, &all).unwrap(), [(0, 3)]);
}

#[test]
fn broken_clips_are_left_out_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let train = folder.path().join("train");
    fs::create_dir(&train).unwrap();
    clip(&train.join("good.mp4"), "64x64", 8);
    clip(&train.join("one-frame.mp4"), "64x64", 1);
    fs::write(train.join("corrupt.mp4"), [7; 5000]).unwrap();
    let good = fs::read(train.join("good.mp4")).unwrap();
    fs::write(train.join("cut.mp4"), &good[..good.len() / 3]).unwrap();
    fs::write(train.join("empty.mp4"), []).unwrap();
    let dataset = Dataset::open(&config(folder.path()), &Recipe::default(), 32).unwrap();
    for number in 0..20 {
        dataset.sample(number).unwrap();
    }
    let left: Vec<String> = dataset
        .left_out()
        .iter()
        .map(|(path, why)| format!("{} {why}", path.display()))
        .collect();
    assert_eq!(left.len(), 3, "{left:?}");
    for name in ["corrupt.mp4", "cut.mp4", "empty.mp4"] {
        assert!(left.iter().any(|line| line.contains(name)), "{left:?}");
    }
    // Of one frame both pictures are the same.
    let only = tempfile::tempdir().unwrap();
    fs::create_dir(only.path().join("train")).unwrap();
    fs::rename(
        train.join("one-frame.mp4"),
        only.path().join("train/one.mp4"),
    )
    .unwrap();
    let dataset = Dataset::open(&config(only.path()), &Recipe::default(), 32).unwrap();
    let sample = dataset.sample(3).unwrap();
    assert_eq!(sample.source, sample.driving);

    for name in ["good.mp4", "one-frame.mp4"] {
        let _ = fs::remove_file(train.join(name));
    }
    let dataset = Dataset::open(&config(folder.path()), &Recipe::default(), 32).unwrap();
    let error = dataset.sample(0).unwrap_err().to_string();
    assert!(
        error.contains("in a row") && !error.contains('\n'),
        "{error}"
    );
    let error = Dataset::open(&config(&train.join("nowhere")), &Recipe::default(), 32).unwrap_err();
    assert!(error.to_string().contains("--data"), "{error}");
}

#[test]
fn for_a_picture_that_cannot_be_read_the_next_one_stands_whatever_was_read_before() {
    let folder = tempfile::tempdir().unwrap();
    let frames = folder.path().join("train/walk");
    fs::create_dir_all(&frames).unwrap();
    for i in 0..4u8 {
        picture(&frames.join(format!("{i}.png")), 32, 32, 60 * i);
    }
    fs::write(frames.join("1.png"), [7; 500]).unwrap();
    fs::write(frames.join("3.png"), []).unwrap();
    let open = || Dataset::open(&config(folder.path()), &Recipe::default(), 32).unwrap();
    let shades = |dataset: &Dataset, number: u64| {
        let sample = dataset.sample(number).unwrap();
        [sample.source[0], sample.driving[0]].map(|red| (red * 255.0).round() as u8)
    };
    let forwards = open();
    let seen: Vec<_> = (0..20).map(|number| shades(&forwards, number)).collect();
    assert!(seen.concat().iter().all(|shade| [0, 120].contains(shade)));
    assert!(seen.contains(&[0, 120]) && seen.contains(&[120, 120]));
    let backwards = open();
    for number in (0..20).rev() {
        assert_eq!(shades(&backwards, number), seen[number as usize]);
    }
    let left = forwards.left_out();
    let names: Vec<_> = left.iter().map(|(path, _)| path.file_name()).collect();
    assert_eq!(names, [Some("1.png".as_ref()), Some("3.png".as_ref())]);

    for name in ["0.png", "2.png"] {
        fs::write(frames.join(name), [7; 500]).unwrap();
    }
    let error = open().sample(0).unwrap_err().to_string();
    assert!(
        error.contains("in a row") && error.contains("walk"),
        "{error}"
    );
}

#[test]
fn samples_come_in_the_same_order_whatever_reads_them() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("train")).unwrap();
    for i in 0..3 {
        clip(
            &folder.path().join(format!("train/{i}.mp4")),
            "32x32",
            4 + i,
        );
    }
    let mut config = config(folder.path());
    config.augment = Augment {
        time_flip: 0.5,
        horizontal_flip: 0.5,
        hue: 0.1,
        ..Augment::default()
    };
    // A cache of nothing: every clip is decoded each time.
    let recipe = Recipe {
        cache: 0,
        seed: 5,
        ..Recipe::default()
    };
    let read = |workers, first: u64| {
        config.workers = workers;
        let dataset = std::sync::Arc::new(Dataset::open(&config, &recipe, 16).unwrap());
        let mut loader = Loader::start(&dataset, 4, move |place| first + place).unwrap();
        loader
            .next(6)
            .unwrap()
            .into_iter()
            .map(|s| (s.source, s.driving))
            .collect::<Vec<_>>()
    };
    let mut read = read;
    let one = read(1, 0);
    assert!(one == read(3, 0));
    assert!(one[2..] == read(2, 2)[..4]);
}

#[test]
fn prepared_clips_are_square_frames_cut_at_scenes_and_can_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in"), folder.path().join("out"));
    fs::create_dir(&input).unwrap();
    // Two scenes: a light one and a dark one.
    ffmpeg(&[
        "-f",
        "lavfi",
        "-i",
        "color=white:size=120x80:rate=10:duration=2",
        "-f",
        "lavfi",
        "-i",
        "color=black:size=120x80:rate=10:duration=3",
        "-filter_complex",
        "concat=n=2",
        input.join("two.mp4").to_str().unwrap(),
    ]);
    fs::write(input.join("corrupt.mp4"), [1; 3000]).unwrap();
    fs::write(input.join("readme.md"), "text").unwrap();
    let job = Job {
        input: input.clone(),
        output: output.clone(),
        size: 48,
        no_face: true,
    };
    let go = |job: &Job| prepare::run(job, |_, _, _| (), &AtomicBool::new(false));
    let report = go(&job).unwrap();
    assert_eq!((report.parts(), report.frames()), (2, 50));
    assert!(report.clips["corrupt.mp4"].failed.is_some());
    assert!(report.not_clips.contains_key("readme.md"));
    let first = image::open(output.join("two#000/0000000.png")).unwrap();
    assert_eq!((first.width(), first.height()), (48, 48));
    assert_eq!(fs::read_dir(output.join("two#001")).unwrap().count(), 30);
    // What is done is not done again; the result is what training reads.
    fs::remove_dir_all(output.join("two#000")).unwrap();
    assert_eq!(go(&job).unwrap(), report);
    assert!(!output.join("two#000").exists());
    let found = data::list(&output).unwrap();
    assert_eq!(found.clips.len(), 1);
    // Frames of another size would be mixed with these.
    let error = go(&Job {
        size: 64,
        ..job.clone()
    })
    .unwrap_err();
    assert!(error.to_string().contains("48"), "{error}");
    // Of a clip without a face nothing is left.
    let report = go(&Job {
        output: folder.path().join("faces"),
        no_face: false,
        ..job
    })
    .unwrap();
    let why = report.clips["two.mp4"].failed.clone().unwrap();
    assert!(why.contains("no face"), "{why}");
}

#[test]
fn the_face_of_a_clip_is_found_and_its_crop_stands_still() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    fs::create_dir(&input).unwrap();
    // The drawn performer beside a grey wall.
    let driver = crate::common::file("assets/driver.mp4");
    ffmpeg(&[
        "-i",
        driver.to_str().unwrap(),
        "-frames:v",
        "24",
        "-an",
        "-vf",
        "pad=iw*2:ih:iw:0:gray",
        input.join("drawn.mp4").to_str().unwrap(),
    ]);
    let job = Job {
        input,
        output: folder.path().join("out"),
        size: 64,
        no_face: false,
    };
    let report = prepare::run(&job, |_, _, _| (), &AtomicBool::new(false)).unwrap();
    assert_eq!(report.parts(), 1, "{report:?}");
    assert!(report.frames() >= 20, "{report:?}");
}

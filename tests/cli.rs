//! The program itself, from the command line: what it makes, what it says when it cannot, and how it leaves.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use image::{Rgba, RgbaImage, imageops};
use mimic::checkpoint;
use mimic::model::{gpen, procedural};
use tempfile::TempDir;

const PHOTO: &str = "assets/mona-lisa.jpg";
const CROP: &str = "150,60,670,580";

fn mimic(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mimic"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env_remove("MIMIC_LOG")
        // None are here, whatever this machine has.
        .env("MIMIC_WEIGHTS", env!("CARGO_TARGET_TMPDIR"))
        .args(args)
        .output()
        .unwrap()
}

/// Runs what must work; gives what it printed.
fn works(args: &[&str]) -> String {
    let output = mimic(args);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs what must fail with `code`, without a panic and with one line of complaint; gives that line.
fn fails(args: &[&str], code: i32) -> String {
    let output = mimic(args);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?} printed a result");
    if code == 1 {
        let complaints = stderr
            .lines()
            .filter(|line| line.starts_with("mimic: "))
            .count();
        assert_eq!(complaints, 1, "{args:?}: {stderr}");
    }
    stderr
}

fn ffmpeg(args: &[&str]) {
    let status = Command::new("ffmpeg")
        .args(["-v", "error", "-nostdin", "-y"])
        .args(args)
        .status();
    assert!(status.unwrap().success(), "{args:?}");
}

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    /// The driver's first frames as a clip.
    fn clip(&self, frames: usize) -> String {
        let clip = self.path("clip.mp4");
        let frames = frames.to_string();
        ffmpeg(&[
            "-ss",
            "0.6",
            "-i",
            "assets/driver.mp4",
            "-frames:v",
            &frames,
            &clip,
        ]);
        clip
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> = std::fs::read_dir(self.0.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        files
    }
}

fn animate<'a>(photo: &'a str, clip: &'a str, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec![
        "animate",
        "--source-image",
        photo,
        "--driving-video",
        clip,
        "-o",
        out,
    ];
    args.extend(more);
    args
}

fn picture(path: impl AsRef<Path>) -> RgbaImage {
    image::open(path).unwrap().into_rgba8()
}

fn difference(a: &RgbaImage, b: &RgbaImage) -> f64 {
    assert_eq!(a.dimensions(), b.dimensions());
    let sum: f64 = a
        .iter()
        .zip(b.iter())
        .map(|(a, b)| f64::from(a.abs_diff(*b)))
        .sum();
    sum / a.len() as f64
}

#[test]
fn the_face_moves_and_the_rest_of_the_photo_stays() {
    let folder = Folder::new();
    let clip = folder.clip(20);
    let frames = folder.path("frames/%05d.png");
    works(&animate(PHOTO, &clip, &frames, &["--crop", CROP]));
    let photo = picture(PHOTO);
    let last = picture(folder.path("frames/00020.png"));
    let face = |picture: &RgbaImage| imageops::crop_imm(picture, 300, 180, 200, 250).to_image();
    assert!(
        difference(&face(&photo), &face(&last)) > 4.0,
        "the head has not turned"
    );
    let below = |picture: &RgbaImage| imageops::crop_imm(picture, 0, 600, 859, 680).to_image();
    assert_eq!(below(&photo), below(&last));
}

#[test]
fn frames_do_not_depend_on_the_batch_size() {
    let folder = Folder::new();
    let clip = folder.clip(3);
    for batch in ["1", "2", "64"] {
        let out = folder.path(&format!("{batch}/%02d.png"));
        works(&animate(
            PHOTO,
            &clip,
            &out,
            &["--crop", CROP, "--batch-size", batch],
        ));
    }
    for frame in ["01.png", "02.png", "03.png"] {
        let one = picture(Path::new(&folder.path("1")).join(frame));
        for batch in ["2", "64"] {
            assert_eq!(
                one,
                picture(Path::new(&folder.path(batch)).join(frame)),
                "{batch} {frame}"
            );
        }
    }
}

#[test]
fn the_tutorials_command_runs_with_its_underscores() {
    let folder = Folder::new();
    let clip = folder.clip(2);
    let out = folder.path("result");
    let printed = works(&[
        "animate",
        "--driving_video",
        &clip,
        "--source_image",
        PHOTO,
        "--relative",
        "--adapt_scale",
        "--ratio=0.4",
        "--output",
        &out,
        "--filename",
        "mona.mp4",
        "--image_size",
        "256",
        "--batch_size",
        "1",
        "--multi_person",
        "--cpu",
        "--mobile_net",
        "--best_frame",
        "1",
    ]);
    assert_eq!(
        printed.trim(),
        Path::new(&out).join("mona.mp4").to_str().unwrap()
    );
    assert!(Path::new(printed.trim()).exists());
}

/// The flags of PaddleGAN's tutorial and those that it has besides, with weights that mean nothing.
#[test]
fn the_tutorials_command_runs_with_every_flag() {
    let folder = Folder::new();
    let (clip, config) = (folder.clip(3), tiny_config(&folder, true));
    let (out, restorer) = (folder.path("result"), restorer(&folder, 64));
    let printed = works(&[
        "animate",
        "--driving_video",
        &clip,
        "--source_image",
        "assets/american-gothic.jpg",
        "--weight_path",
        "tests/fixtures/mobile_tiny.pdparams",
        "--config",
        &config,
        "--relative",
        "--adapt_scale",
        "--find_best_frame",
        "--ratio",
        "0.4",
        "--output",
        &out,
        "--filename",
        "gothic.mp4",
        "--image_size",
        "256",
        "--batch_size",
        "2",
        "--multi_person",
        "--mobile_net",
        "--face_detector",
        "mimic",
        "--face_enhancement",
        "--enhancer_weights",
        &restorer,
        "--paste",
        "paddlegan",
        "--cpu",
        "--json",
    ]);
    let report: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(report["frames"], 3);
    assert!(report["seconds"]["enhance"].as_f64().unwrap() > 0.0);
    assert!(Path::new(&out).join("gothic.mp4").exists());
}

#[test]
fn enhancement_changes_the_face_by_its_strength_and_nothing_else() {
    let folder = Folder::new();
    let clip = folder.clip(2);
    let weights = restorer(&folder, 128);
    let last = |name: &str, more: &[&str]| {
        let out = folder.path(&format!("{name}/%02d.png"));
        let flags = [&["--crop", CROP][..], more].concat();
        works(&animate(PHOTO, &clip, &out, &flags));
        picture(out.replace("%02d", "02"))
    };
    let enhanced = |strength: &'static str| {
        [
            "--face-enhancement",
            "--enhancer-weights",
            &weights,
            "--enhancement-strength",
            strength,
        ]
    };
    let plain = last("plain", &[]);
    let none = last("none", &enhanced("0"));
    let half = last("half", &enhanced("0.5"));
    let full = last("full", &enhanced("1"));
    assert_eq!(plain, none);
    let face = |picture: &RgbaImage| imageops::crop_imm(picture, 300, 180, 200, 250).to_image();
    let by = |other: &RgbaImage| difference(&face(&plain), &face(other));
    assert!(by(&full) > 4.0 && by(&half) > 0.3 * by(&full) && by(&half) < 0.8 * by(&full));
    let below = |picture: &RgbaImage| imageops::crop_imm(picture, 0, 600, 859, 680).to_image();
    assert_eq!(below(&plain), below(&full));
}

#[test]
fn weights_that_enhance_nothing_get_one_sentence() {
    let folder = Folder::new();
    let clip = folder.clip(2);
    let (small, tiny) = (restorer(&folder, 64), restorer(&folder, 16));
    let out = folder.path("out.mp4");
    let fails_with = |more: &[&str], wanted: &[&str]| {
        let flags = [&["--crop", CROP, "--face-enhancement"][..], more].concat();
        let complaint = fails(&animate(PHOTO, &clip, &out, &flags), 1);
        for wanted in wanted {
            assert!(complaint.contains(wanted), "{more:?}: {complaint}");
        }
        assert!(!Path::new(&out).exists());
    };
    fails_with(&[], &["mimic weights fetch gpen-512", "licence"]);
    fails_with(
        &["--enhancer", "gfpgan"],
        &["mimic weights fetch gfpgan-1.4"],
    );
    let other = "tests/fixtures/vox_tiny.pdparams";
    fails_with(&["--enhancer-weights", other], &[other, "GPEN or GFPGAN"]);
    fails_with(&["--enhancer-weights", &tiny], &["from 32 to 1024 pixels"]);
    fails_with(
        &["--enhancer", "gfpgan", "--enhancer-weights", &small],
        &[&small, "GFPGAN's clean form"],
    );
    let missing = folder.path("missing.pth");
    fails_with(&["--enhancer-weights", &missing], &[&missing]);
    // Without the switch the others mean nothing.
    let alone = ["--crop", CROP, "--enhancer-weights", &small];
    let complaint = fails(&animate(PHOTO, &clip, &out, &alone), 2);
    assert!(complaint.contains("--face-enhancement"), "{complaint}");
}

#[test]
fn faces_at_the_edge_tiny_ones_and_many_are_animated() {
    let folder = Folder::new();
    let clip = folder.clip(2);
    let out = folder.path("out/%02d.png");
    let size = picture(PHOTO).dimensions();
    for flags in [
        &["--face", "400,300,412,312"][..],
        &["--face", "-60,200,60,350"],
        &["--face", "800,1200,1000,1500", "--paste", "paddlegan"],
        &["--crop", "-50,-60,5000,4000"],
        &["--crop", "-50,-60,3,3"],
    ] {
        works(&animate(PHOTO, &clip, &out, flags));
        assert_eq!(picture(out.replace("%02d", "02")).dimensions(), size);
    }
    // Sixty.
    let head = imageops::crop_imm(&picture(PHOTO), 150, 60, 520, 520).to_image();
    let head = imageops::resize(&head, 120, 120, imageops::FilterType::Triangle);
    let mut crowd = RgbaImage::from_pixel(1200, 720, Rgba([120, 124, 128, 255]));
    for i in 0..60 {
        imageops::overlay(&mut crowd, &head, i % 10 * 120, i / 10 * 120);
    }
    let photo = folder.path("crowd.png");
    crowd.save(&photo).unwrap();
    let found = works(&["faces", &photo]).lines().count();
    // Repeated so close the detector is sure of fewer than half; none is invented.
    assert!((20..=60).contains(&found), "{found}");
    let tiny = ["--weights", "tests/fixtures/mobile_tiny.pdparams"];
    let config = tiny_config(&folder, true);
    let flags = [&tiny[..], &["--config", &config]].concat();
    works(&animate(&photo, &clip, &out, &flags));
    let last = picture(out.replace("%02d", "02"));
    let before = picture(&photo);
    let changed = (0..60u32)
        .filter(|i| {
            let (x, y) = (i % 10 * 120, i / 10 * 120);
            let face = |p: &RgbaImage| imageops::crop_imm(p, x, y, 120, 120).to_image();
            difference(&face(&before), &face(&last)) > 0.5
        })
        .count();
    assert!(changed >= found.min(50), "{changed} of {found}");
}

#[test]
fn after_a_cut_in_the_clip_the_face_does_not_jump() {
    let folder = Folder::new();
    let shot = |name: &str, at: (i64, i64)| {
        let face = picture(format!("assets/{name}.jpg"));
        let face = imageops::resize(&face, 300, 380, imageops::FilterType::Triangle);
        let mut frame = RgbaImage::from_pixel(960, 540, Rgba([120, 124, 128, 255]));
        imageops::overlay(&mut frame, &face, at.0, at.1);
        frame
    };
    let shots = [
        shot("mona-lisa", (20, 60)),
        shot("rembrandt-self-portrait", (620, 120)),
    ];
    std::fs::create_dir(folder.path("clip")).unwrap();
    for i in 0..6 {
        let name = folder.path(&format!("clip/{i:03}.png"));
        shots[i / 3].save(name).unwrap();
    }
    let out = folder.path("out/%02d.png");
    let clip = folder.path("clip");
    works(&animate(PHOTO, &clip, &out, &["--crop", CROP]));
    let frame = |i: usize| picture(out.replace("%02d", &format!("{i:02}")));
    let jump = difference(&frame(3), &frame(4));
    assert!(jump < 0.3, "the face jumps by {jump}");
    works(&animate(
        PHOTO,
        &clip,
        &out,
        &["--crop", CROP, "--absolute"],
    ));
    let jump = difference(&frame(3), &frame(4));
    assert!(jump > 1.0, "these are different poses: {jump}");
}

/// The configuration of the recorded networks.
fn tiny_config(folder: &Folder, mobile: bool) -> String {
    let path = folder.path("tiny.yaml");
    let text = format!(
        "model_params:\n  common_params: {{num_kp: 10, num_channels: 3, estimate_jacobian: true}}\n  \
         kp_detector_params: {{temperature: 0.1, block_expansion: 8, max_features: 64, scale_factor: 0.25, num_blocks: 5, mobile_net: {mobile}}}\n  \
         generator_params:\n    mobile_net: {mobile}\n    block_expansion: 8\n    max_features: 64\n    num_down_blocks: 2\n    \
         num_bottleneck_blocks: 6\n    estimate_occlusion_map: true\n    dense_motion_params: {{block_expansion: 8, \
         max_features: 64, num_blocks: 5, scale_factor: 0.25}}\n"
    );
    std::fs::write(&path, text).unwrap();
    path
}

/// Weights of GPEN for pictures of `size`, with few features.
fn restorer(folder: &Folder, size: usize) -> String {
    let shape = gpen::Shape {
        widths: vec![16; size.ilog2() as usize - 1],
        style: 16,
        mapping: 2,
    };
    let tensors = procedural::gpen(&shape, "test").unwrap();
    let path = folder.path(&format!("gpen-{size}.safetensors"));
    checkpoint::save_lean(Path::new(&path), &tensors, "{}", "gpen", false).unwrap();
    path
}

#[test]
fn json_tells_frames_seconds_memory_device_and_outputs() {
    let folder = Folder::new();
    let clip = folder.clip(2);
    let out = folder.path("a.webm");
    let printed = works(&animate(
        PHOTO,
        &clip,
        &out,
        &["--face", "300,150,480,400", "--find-best-frame", "--json"],
    ));
    let report: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(report["frames"], 2);
    assert_eq!(report["outputs"][0], out);
    assert!(report["seconds"]["generate"].as_f64().unwrap() > 0.0);
    assert!(report["seconds"]["search"].as_f64().unwrap() > 0.0);
    assert!(
        report["device"]["networks"]
            .as_str()
            .unwrap()
            .starts_with("CPU")
    );
    if cfg!(target_os = "linux") {
        assert!(report["peak_memory_bytes"].as_u64().unwrap() > 1 << 20);
    }
}

#[test]
fn bf16_runs_where_the_processor_has_it_and_says_so_elsewhere() {
    let folder = Folder::new();
    let clip = folder.clip(1);
    let out = folder.path("a/%d.png");
    let args = animate(PHOTO, &clip, &out, &["--precision", "bf16", "--json"]);
    if mimic::ops::simd::Isa::bf16().is_some() {
        let report: serde_json::Value = serde_json::from_str(&works(&args)).unwrap();
        let device = report["device"]["networks"].as_str().unwrap();
        assert!(device.contains("bf16"), "{device}");
    } else {
        println!("this machine has no AVX-512 BF16: only the refusal is tested");
        let complaint = fails(&args, 2);
        assert!(complaint.contains("--precision f32"), "{complaint}");
    }
}

#[test]
fn several_boxes_move_several_faces() {
    let folder = Folder::new();
    let clip = folder.clip(12);
    let photo = "assets/american-gothic.jpg";
    for paste in ["feather", "paddlegan"] {
        let out = folder.path(&format!("{paste}/%02d.png"));
        works(&animate(
            photo,
            &clip,
            &out,
            &[
                "--face",
                "285,75,385,215",
                "--face",
                "130,140,210,250",
                "--paste",
                paste,
            ],
        ));
        let (before, after) = (
            picture(photo),
            picture(folder.path(&format!("{paste}/12.png"))),
        );
        for (x, y) in [(300, 100), (140, 160)] {
            let face = |p: &RgbaImage| imageops::crop_imm(p, x, y, 70, 80).to_image();
            assert!(
                difference(&face(&before), &face(&after)) > 2.0,
                "{paste} {x},{y}"
            );
        }
    }
}

#[test]
fn faces_are_found_numbered_and_chosen() {
    let photo = "assets/american-gothic.jpg";
    let listed = works(&["faces", photo, "--json"]);
    let faces: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let left = |face: usize| faces[face]["face"][0].as_u64().unwrap() as u32;
    assert!(faces.as_array().unwrap().len() == 2 && left(0) < left(1));
    assert_eq!(works(&["faces", photo]).lines().count(), 2);

    let folder = Folder::new();
    let clip = folder.clip(12);
    let before = picture(photo);
    for (flags, moves) in [
        (&[][..], [true, true]),
        (&["--single"], [true, false]),
        (&["--faces", "2"], [false, true]),
    ] {
        let out = folder.path(&format!("{}/%02d.png", flags.concat()));
        works(&animate(photo, &clip, &out, flags));
        let after = picture(out.replace("%02d", "12"));
        for (x, moves) in [(140, moves[0]), (300, moves[1])] {
            let face = |p: &RgbaImage| imageops::crop_imm(p, x, 130, 60, 70).to_image();
            let moved = difference(&face(&before), &face(&after));
            assert_eq!(moved > 1.5, moves, "{flags:?} at {x}: {moved}");
        }
    }
    let complaint = fails(
        &animate(photo, &clip, &folder.path("o.mp4"), &["--faces", "3"]),
        1,
    );
    assert!(complaint.contains("mimic faces"), "{complaint}");
}

#[test]
fn a_photo_without_a_face_is_an_error_that_says_what_to_do() {
    let folder = Folder::new();
    let clip = folder.clip(2);
    let (blank, turned) = (folder.path("blank.png"), folder.path("turned.png"));
    let grey = RgbaImage::from_pixel(300, 200, Rgba([90, 90, 90, 255]));
    grey.save(&blank).unwrap();
    let upright = picture("assets/rembrandt-self-portrait.jpg");
    imageops::rotate90(&upright).save(&turned).unwrap();
    for (photo, wanted) in [(&blank, "--crop whole"), (&turned, "by 90 degrees")] {
        let out = folder.path("o.mp4");
        let complaint = fails(&animate(photo, &clip, &out, &[]), 1);
        assert!(
            complaint.contains("--face X1,Y1,X2,Y2") && complaint.contains(wanted),
            "{complaint}"
        );
        assert!(!Path::new(&out).exists());
    }
    works(&animate(
        &blank,
        &clip,
        &folder.path("o.mp4"),
        &["--crop", "whole"],
    ));
}

#[test]
fn each_driver_moves_the_face_it_is_given() {
    let folder = Folder::new();
    // To the left a head that stays, to the right one that sinks by a tenth of its crop.
    let duet = folder.path("duet.mp4");
    ffmpeg(&[
        "-loop",
        "1",
        "-i",
        PHOTO,
        "-loop",
        "1",
        "-i",
        PHOTO,
        "-filter_complex",
        "[0]crop=520:520:150:60,scale=256:256[a];[1]crop=520:520:150:60-4*n,scale=256:256[b];[a][b]hstack,format=yuv420p",
        "-frames:v",
        "12",
        &duet,
    ]);
    let photo = "assets/american-gothic.jpg";
    let before = picture(photo);
    for (map, still, moving) in [("1:1,2:2", 140, 300), ("1:2,2:1", 300, 140)] {
        let out = folder.path(&format!("{}/%02d.png", map.replace([':', ','], "-")));
        works(&animate(photo, &duet, &out, &["--map", map]));
        let after = picture(out.replace("%02d", "12"));
        let moved = |x: u32| {
            let face = |p: &RgbaImage| imageops::crop_imm(p, x, 130, 60, 70).to_image();
            difference(&face(&before), &face(&after))
        };
        let (still, moving) = (moved(still), moved(moving));
        assert!(moving > 2.0 * still, "{map}: {still} and {moving}");
    }
}

#[test]
fn weights_of_every_form_import_to_half_the_size() {
    let folder = Folder::new();
    let config = tiny_config(&folder, false);
    let clip = folder.clip(1);
    for file in [
        "vox_tiny.pdparams",
        "vox_tiny_zip.pth.tar",
        "vox_tiny_legacy.pth.tar",
    ] {
        let from = format!("tests/fixtures/{file}");
        let lean = folder.path(&format!("{file}.safetensors"));
        works(&["weights", "import", &from, "--config", &config, "-o", &lean]);
        let size = |path: &str| std::fs::metadata(path).unwrap().len();
        assert!(size(&lean) < size(&from) * 6 / 10, "{file}");
        works(&animate(
            PHOTO,
            &clip,
            &folder.path("x/%d.png"),
            &["--weights", &lean],
        ));
    }
    let lean = folder.path("no-config.safetensors");
    let complaint = fails(
        &[
            "weights",
            "import",
            "tests/fixtures/vox_tiny.pdparams",
            "-o",
            &lean,
        ],
        1,
    );
    assert!(complaint.contains("--config"), "{complaint}");
    assert!(!Path::new(&lean).exists());
}

#[test]
fn wrong_usage_leaves_with_two() {
    for args in [
        &["animate"][..],
        &["animate", "--source-image", PHOTO],
        &["nonsense"],
        &["--demo", "--driver", "clip.mp4"],
        &animate(PHOTO, "clip.mp4", "o.mp4", &["--ratio", "0.05"]),
        &animate(PHOTO, "clip.mp4", "o.mp4", &["--ratio", "1.5"]),
        &animate(PHOTO, "clip.mp4", "o.mp4", &["--ratio", "nan"]),
        &animate(PHOTO, "clip.mp4", "o.mp4", &["--face", "1,2,3"]),
        &animate(PHOTO, "clip.mp4", "o.mp4", &["--crop", "9,9,1,1"]),
        &animate(PHOTO, "clip.mp4", "o.mp4", &["--relative", "--absolute"]),
        &animate(PHOTO, "clip.mp4", "o.mp4", &["--faces", "0"]),
        &animate(PHOTO, "clip.mp4", "o.mp4", &["--faces", "1", "--single"]),
        &animate(PHOTO, "clip.mp4", "o.mp4", &["--map", "1"]),
        &animate(PHOTO, "clip.mp4", "o.mp4", &["--map", "1:0"]),
        &animate(PHOTO, "clip.mp4", "o.mp4", &["--batch-size", "0"]),
        &animate(PHOTO, "clip.mp4", "o.mp4", &["--image-size", "300"]),
        &animate(PHOTO, "clip.mp4", "o.mp4", &["--precision", "f64"]),
    ] {
        fails(args, 2);
    }
}

#[test]
fn bad_inputs_get_one_sentence_and_leave_nothing() {
    let folder = Folder::new();
    let clip = folder.clip(2);
    let make = |name: &str, bytes: &[u8]| {
        let path = folder.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let photo_bytes = std::fs::read(PHOTO).unwrap();
    let clip_bytes = std::fs::read(&clip).unwrap();
    let empty = make("empty.png", b"");
    let cut = make("cut.jpg", &photo_bytes[..200]);
    let text = make("text.png", b"this is no picture\n");
    let mislabelled = make("clip.png", &clip_bytes);
    let text_clip = make("text.mp4", b"this is no video\n");
    let empty_clip = make("empty.mp4", b"");
    let cut_clip = make("cut.mp4", &clip_bytes[..300]);
    let not_weights = make("weights.pth", b"<html>404</html>");
    let frameless = folder.path("sound.mp4");
    ffmpeg(&["-f", "lavfi", "-i", "sine=d=0.2", "-c:a", "aac", &frameless]);
    let nothing = folder.path("nothing");
    std::fs::create_dir(&nothing).unwrap();
    let before = folder.files();
    let out = folder.path("out.mp4");

    for photo in [
        &empty,
        &cut,
        &text,
        &mislabelled,
        &folder.path("missing.png"),
        &nothing,
    ] {
        let complaint = fails(&animate(photo, &clip, &out, &[]), 1);
        assert!(complaint.contains(photo.as_str()), "{complaint}");
    }
    for clip in [
        &text_clip,
        &empty_clip,
        &cut_clip,
        &frameless,
        &folder.path("missing.mp4"),
        &nothing,
    ] {
        let complaint = fails(&animate(PHOTO, clip, &out, &[]), 1);
        assert!(complaint.contains(clip.as_str()), "{complaint}");
    }
    for (more, wanted) in [
        (&["--crop", "2000,2000,2100,2100"][..], "outside"),
        (&["--face", "-500,-500,-10,-10"], "outside"),
        (&["--driving-crop", "5000,0,5100,100"], "outside"),
        (&["--weights", &not_weights], "weights.pth"),
        (
            &[
                "--weights",
                "tests/fixtures/vox_tiny.pdparams",
                "--config",
                "vox-256",
            ],
            "vox_tiny.pdparams",
        ),
        (&["--config", "no-such.yaml"], "no-such.yaml"),
        (&["--best-frame", "99"], "99"),
    ] {
        let complaint = fails(&animate(PHOTO, &clip, &out, more), 1);
        assert!(complaint.contains(wanted), "{more:?}: {complaint}");
    }
    fails(&animate(PHOTO, &clip, "/proc/nothing/out.mp4", &[]), 1);
    for (out, wanted) in [(&folder.path("out.xyz"), "out.xyz"), (&clip, "overwrite")] {
        let complaint = fails(&animate(PHOTO, &clip, out, &[]), 2);
        assert!(complaint.contains(wanted), "{complaint}");
    }
    assert_eq!(folder.files(), before, "something was left behind");
}

#[test]
fn the_smallest_photo_and_a_clip_of_one_frame_work() {
    let folder = Folder::new();
    let photo = folder.path("dot.png");
    RgbaImage::from_pixel(1, 1, Rgba([200, 100, 50, 255]))
        .save(&photo)
        .unwrap();
    let out = folder.path("out/%d.png");
    works(&animate(&photo, PHOTO, &out, &["--crop", "whole"]));
    assert_eq!(picture(folder.path("out/1.png")).dimensions(), (1, 1));
}

#[test]
fn weights_that_are_no_numbers_are_named() {
    let folder = Folder::new();
    let clip = folder.clip(1);
    // The last tensor of the embedded file, by its bytes.
    let mut bytes = std::fs::read("weights/mimic-small.safetensors").unwrap();
    let end = bytes.len();
    bytes[end - 64..].fill(0xff);
    let nan = folder.path("nan.safetensors");
    std::fs::write(&nan, &bytes).unwrap();
    let complaint = fails(
        &animate(PHOTO, &clip, &folder.path("o.mp4"), &["--weights", &nan]),
        1,
    );
    assert!(complaint.contains("nan.safetensors"), "{complaint}");
}

#[test]
fn doctor_finds_what_this_machine_has() {
    let printed = works(&["doctor"]);
    for wanted in ["processor", "ffmpeg", "mimic-small", "CUDA"] {
        assert!(printed.contains(wanted), "{printed}");
    }
}

#[test]
fn a_card_that_is_not_there_is_a_sentence_and_the_cpu_goes_on() {
    let folder = Folder::new();
    let (clip, out) = (folder.path("pose.png"), folder.path("out.mp4"));
    std::fs::copy(PHOTO, &clip).unwrap();
    let on = |more: &[&'static str]| {
        let mut args = animate(PHOTO, &clip, &out, &["--crop", CROP, "--json"]);
        args.extend(more);
        mimic(&args.iter().map(|arg| &**arg).collect::<Vec<_>>())
    };
    let output = on(&["--device", "cuda:77"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success() && said.contains("cuda:77 cannot be"),
        "{said}"
    );
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let device = report["device"]["networks"].as_str().unwrap();
    assert!(
        device.starts_with("CPU") && device.contains("cuda:77"),
        "{device}"
    );
    for wrong in [["--device", "gpu"], ["--precision", "f16"]] {
        let output = on(&[&wrong[..], &["--cpu"]].concat());
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
    }
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_leaves_no_result() {
    use std::time::{Duration, Instant};
    let folder = Folder::new();
    let out = folder.path("out.mp4");
    let mut child = Command::new(env!("CARGO_BIN_EXE_mimic"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(animate(PHOTO, "assets/driver.mp4", &out, &["--crop", CROP]))
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // Once something is there it is being written under its temporary name.
    let start = Instant::now();
    while folder.files().is_empty() && start.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(300));
    let interrupt = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(interrupt.unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert_eq!(folder.files(), [] as [PathBuf; 0]);
}

#[test]
fn a_take_moves_the_photo_as_the_clip_that_it_was_made_of() {
    let folder = Folder::new();
    let clip = folder.clip(8);
    let take = folder.path("turn.mimic-take");
    record(&clip, &take);
    let more = ["--crop", CROP, "--driving-crop", "whole"];
    let [by_clip, by_take] = ["clip", "take"].map(|name| folder.path(&format!("{name}/%05d.png")));
    works(&animate(PHOTO, &clip, &by_clip, &more));
    works(&animate(PHOTO, &take, &by_take, &more));
    for n in [1, 4, 8] {
        let [a, b] =
            [&by_clip, &by_take].map(|path| picture(path.replace("%05d", &format!("{n:05}"))));
        assert!(difference(&a, &b) < 0.1, "frame {n}");
    }
    assert!(!Path::new(&by_take.replace("%05d", "00009")).exists());

    let out = folder.path("out.mp4");
    let sentence = fails(&animate(PHOTO, &take, &out, &["--map", "1:1,2:1"]), 1);
    assert!(sentence.contains("one driver"), "{sentence}");
    std::fs::write(&take, "mimic-take 1\n{}").unwrap();
    let sentence = fails(&animate(PHOTO, &take, &out, &[]), 1);
    assert!(sentence.contains("turn.mimic-take"), "{sentence}");
}

/// What the embedded model sees in a clip's frames, as a take.
fn record(clip: &str, take: &str) {
    use mimic::animate::load::{self, ModelOptions};
    use mimic::animate::take::{Header, Writer};
    use mimic::media::{ReadOptions, clip};

    let mut engine = load::engine(&ModelOptions::default()).unwrap();
    let size = engine.config().image_size;
    let options = ReadOptions {
        size: Some((size, size)),
        ..ReadOptions::default()
    };
    let mut clip = clip::open(Path::new(clip), &options).unwrap();
    let mut writer = None;
    let mut frame = RgbaImage::default();
    let mut seconds = 0.0;
    while clip.read(&mut frame).unwrap() {
        let pose = engine.keypoints(&frame);
        let begin = || Writer::create(Path::new(take), Header::of("mimic-small", &pose)).unwrap();
        writer
            .get_or_insert_with(begin)
            .push(seconds, &pose)
            .unwrap();
        seconds += 1.0 / 25.0;
    }
    writer.unwrap().finish().unwrap();
}

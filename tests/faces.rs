//! The face detectors: against what was recorded, and on the paintings.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use candle_core::Device;
use image::{Rgba, RgbaImage, imageops};
use mimic::checkpoint;
use mimic::faces::{Detector, Tracker, square_crop};
use mimic::geometry::Rect;
use mimic::media;
use mimic::model::procedural;

#[test]
fn s3fd_keeps_the_boxes_that_the_reference_keeps() {
    let recorded = file("tests/fixtures/s3fd_procedural.safetensors");
    let recorded = candle_core::safetensors::load(recorded, &Device::Cpu).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let weights = folder.path().join("s3fd.safetensors");
    let tensors = procedural::s3fd("s3fd").unwrap();
    checkpoint::save_lean(&weights, &tensors, "{}", "s3fd", false).unwrap();
    let mut detector = Detector::s3fd(&weights).unwrap();

    let [height, width, _] = recorded["image"].dims()[..] else {
        panic!("a picture");
    };
    let bytes: Vec<u8> = recorded["image"].flatten_all().unwrap().to_vec1().unwrap();
    let picture = RgbaImage::from_fn(width as u32, height as u32, |x, y| {
        let at = (y as usize * width + x as usize) * 3;
        Rgba([bytes[at], bytes[at + 1], bytes[at + 2], 255])
    });
    let mut wanted: Vec<(Rect, f32)> = recorded["kept_nms_0.3"]
        .to_vec2::<f32>()
        .unwrap()
        .iter()
        .filter(|kept| kept[4] > 0.5)
        .map(|kept| {
            let [x1, y1, x2, y2] = [0, 1, 2, 3].map(|i| kept[i].round() as i32);
            (Rect::new(x1, y1, x2, y2), kept[4])
        })
        // Untrained weights give some without a pixel, which are nobody's face.
        .filter(|(rect, _)| !rect.is_empty())
        .collect();
    wanted.sort_by_key(|(rect, _)| (rect.x1, rect.y1, rect.x2));
    let mut found = detector.detect(&picture).unwrap();
    found.sort_by_key(|face| (face.rect.x1, face.rect.y1, face.rect.x2));
    assert!(wanted.len() > 10);
    assert_eq!(found.len(), wanted.len());
    for (face, (rect, score)) in found.iter().zip(wanted) {
        // Halves may be rounded either way; of untrained weights some boxes are enormous.
        let near =
            |a: i32, b: i32| (i64::from(a) - i64::from(b)).abs() <= 1 + i64::from(b).abs() / 10_000;
        let got = face.rect;
        assert!(
            near(got.x1, rect.x1)
                && near(got.y1, rect.y1)
                && near(got.x2, rect.x2)
                && near(got.y2, rect.y2)
                && (face.score - score).abs() < 1e-4,
            "{got} {} is not {rect} {score}",
            face.score
        );
    }
}

#[test]
fn the_embedded_detector_finds_every_face_of_the_paintings_and_no_other() {
    let mut detector = Detector::embedded().unwrap();
    for (name, faces) in [
        ("mona-lisa", 1),
        ("girl-with-a-pearl-earring", 1),
        ("la-donna-velata", 1),
        ("rembrandt-self-portrait", 1),
        ("lady-with-an-ermine", 1),
        ("american-gothic", 2),
        ("syndics", 6),
    ] {
        let picture = painting(name);
        let found = detector.detect(&picture).unwrap();
        assert_eq!(found.len(), faces, "{name}: {found:?}");
        assert!(found.is_sorted_by_key(|face| face.rect.x1), "{name}");
    }
}

#[test]
fn of_sixty_faces_in_one_picture_none_is_counted_twice() {
    let tile = 128;
    let face = resized(&portrait(), tile - 8);
    let mut crowd = RgbaImage::from_pixel(10 * tile, 6 * tile, GREY);
    for i in 0..60 {
        let place = |i: u32| i64::from(i * tile + 4);
        imageops::overlay(&mut crowd, &face, place(i % 10), place(i / 10));
    }
    let found = Detector::embedded().unwrap().detect(&crowd).unwrap();
    let mut tiles: Vec<(i32, i32)> = found
        .iter()
        .map(|face| {
            let middle = |low: i32, high: i32| (low + high) / 2 / tile as i32;
            (
                middle(face.rect.x1, face.rect.x2),
                middle(face.rect.y1, face.rect.y2),
            )
        })
        .collect();
    tiles.sort_unstable();
    tiles.dedup();
    assert_eq!(tiles.len(), found.len());
}

#[test]
fn odd_pictures_give_faces_inside_or_none_and_never_a_panic() {
    let mut detector = Detector::embedded().unwrap();
    let portrait = portrait();
    let half = imageops::crop_imm(&portrait, 0, 0, portrait.width() / 2, portrait.height());
    let mut speck = RgbaImage::from_pixel(400, 300, GREY);
    // The face is two fifths of the portrait.
    imageops::overlay(&mut speck, &resized(&portrait, 28), 200, 150);
    for (what, picture) in [
        ("half a face", half.to_image()),
        ("a face of 12 pixels", speck),
        ("upside down", imageops::rotate180(&portrait)),
        ("on its side", imageops::rotate90(&portrait)),
        ("a pixel", RgbaImage::from_pixel(1, 1, GREY)),
        ("a line", RgbaImage::from_pixel(3000, 1, GREY)),
        ("nothing", RgbaImage::from_pixel(640, 480, GREY)),
    ] {
        for face in detector.detect(&picture).unwrap() {
            let crop = square_crop(face.rect, picture.width(), picture.height()).unwrap();
            let whole = Rect::of_size(picture.width(), picture.height());
            assert_eq!(crop.intersect(&whole), crop, "{what}");
        }
    }
}

#[test]
fn a_face_is_followed_found_again_after_a_cut_and_missed_when_gone() {
    let face = resized(&portrait(), 240);
    let frame = |x: i64, y: i64| {
        let mut frame = RgbaImage::from_pixel(960, 540, GREY);
        imageops::overlay(&mut frame, &face, x, y);
        frame
    };
    let mut tracker = Tracker::new().unwrap();
    let nobody = tracker.follow(&RgbaImage::from_pixel(960, 540, GREY));
    assert_eq!(nobody.crop, Rect::new(210, 0, 750, 540));
    assert!(!nobody.found);
    tracker.reset();

    let first = tracker.follow(&frame(100, 100));
    assert!(first.found);
    let still = tracker.follow(&frame(103, 101));
    assert_eq!(still, first, "a small movement moves the crop");
    assert!(!first.cut);
    let mut last = still;
    for step in 1..=40 {
        last = tracker.follow(&frame(100 + 8 * step, 100 + step));
        assert!(last.found && !last.cut, "step {step}");
    }
    let moved = last.crop.x1 - first.crop.x1;
    assert!((280..=330).contains(&moved), "{moved}");
    // A cut to elsewhere is followed at once.
    let cut = tracker.follow(&frame(20, 200));
    assert!(
        cut.found && cut.cut && (cut.crop.x1 - first.crop.x1).abs() < 100,
        "{cut:?}"
    );
    let gone = tracker.follow(&RgbaImage::from_pixel(960, 540, GREY));
    assert_eq!((gone.found, gone.crop), (false, cut.crop));
    // Who comes back is no cut.
    let mut back = gone;
    for _ in 0..12 {
        back = tracker.follow(&frame(500, 100));
    }
    assert!(back.found && !back.cut);
}

#[test]
fn several_drivers_keep_their_numbers() {
    let face = resized(&portrait(), 240);
    let mut tracker = Tracker::of_several(2).unwrap();
    for step in 0..10_i64 {
        let mut frame = RgbaImage::from_pixel(960, 540, GREY);
        imageops::overlay(&mut frame, &face, 100 + step, 100 + 4 * step);
        imageops::overlay(&mut frame, &face, 600, 150);
        let tracked = tracker.follow_all(&frame);
        assert_eq!(tracked.len(), 2);
        assert!(tracked.iter().all(|face| face.found), "step {step}");
        assert!(tracked[0].crop.x2 < tracked[1].crop.x2);
    }
}

const GREY: Rgba<u8> = Rgba([120, 124, 128, 255]);

/// A square around the Mona Lisa's head.
fn portrait() -> RgbaImage {
    let whole = painting("mona-lisa");
    let found = Detector::embedded().unwrap().detect(&whole).unwrap();
    let crop = square_crop(found[0].rect, whole.width(), whole.height()).unwrap();
    let (x, y) = (crop.x1.unsigned_abs(), crop.y1.unsigned_abs());
    imageops::crop_imm(&whole, x, y, crop.width(), crop.height()).to_image()
}

fn resized(picture: &RgbaImage, side: u32) -> RgbaImage {
    imageops::resize(picture, side, side, imageops::FilterType::Triangle)
}

fn painting(name: &str) -> RgbaImage {
    media::open_photo(&file(&format!("assets/{name}.jpg"))).unwrap()
}

fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

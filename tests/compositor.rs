//! The compositor: recorded paste-backs, shader against twin, and what must hold for any input.

#![allow(clippy::print_stdout, reason = "shows what was found")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::fs;
use std::path::Path;

use image::{Rgba, RgbaImage};
use mimic::faces::paddlegan_crops;
use mimic::frame::Prediction;
use mimic::geometry::Rect;
use mimic::gpu::{Choice, Compositor, Error, PasteMode, PasteSettings, model_view};
use proptest::prelude::*;
use safetensors::SafeTensors;

/// The recorded cases: name and ratio.
const CASES: [(&str, f32); 6] = [
    ("one", 0.4),
    ("two_far", 0.4),
    ("two_near", 0.4),
    ("two_near", 0.5),
    ("dup", 0.4),
    ("edge", 0.5),
];

#[test]
fn crops_are_those_that_paddlegan_computes() {
    let golden = Golden::open();
    for name in ["one", "two_far", "two_near", "dup", "edge"] {
        let detections = golden.boxes(&format!("{name}.detections"), 4);
        let recorded = golden.boxes(&format!("{name}.boxes"), 5);
        let crops = paddlegan_crops(&detections, 600, 450).unwrap();
        assert_eq!(crops, recorded, "{name}");
    }
}

#[test]
fn the_twin_pastes_back_as_paddlegan_does() {
    check_recorded(Compositor::new(Choice::Cpu).unwrap());
}

#[test]
fn the_shaders_paste_back_as_paddlegan_does() {
    if let Some(compositor) = adapter() {
        check_recorded(compositor);
    }
}

#[test]
fn shaders_and_twin_agree_on_the_recorded_pictures() {
    let Some(mut shaders) = adapter() else { return };
    let mut twin = Compositor::new(Choice::Cpu).unwrap();
    let golden = Golden::open();
    let mut seen = [0u32; 2];
    for (name, ratio) in CASES {
        let crops = golden.boxes(&format!("{name}.boxes"), 5);
        let mut predictions = golden.predictions(name, crops.len());
        for (i, prediction) in predictions.iter_mut().enumerate() {
            bend(prediction, 0.1 + 0.05 * i as f32);
        }
        shaders.set_photo(&golden.photo, &crops, 256).unwrap();
        twin.set_photo(&golden.photo, &crops, 256).unwrap();
        assert_ne!(shaders.device_name(), twin.device_name());
        for mode in [PasteMode::PaddleGan, PasteMode::Feather] {
            for detail in [0.0, 0.5, 1.0] {
                for (feather, colour_match) in [(0.2, 0.0), (0.0, 1.0), (1.0, 0.5)] {
                    let settings = PasteSettings {
                        mode,
                        ratio,
                        feather,
                        colour_match,
                        detail,
                    };
                    let a = shaders.composite(&predictions, &settings).unwrap();
                    let b = twin.composite(&predictions, &settings).unwrap();
                    let differences = a
                        .as_raw()
                        .iter()
                        .zip(b.as_raw())
                        .map(|(a, b)| a.abs_diff(*b));
                    let worst = differences.clone().max().unwrap();
                    assert!(worst <= 1, "{name} {settings:?}: {worst} levels apart");
                    seen[usize::from(worst)] += 1;
                }
            }
        }
    }
    eprintln!("{} frames equal, {} within one level", seen[0], seen[1]);
}

#[test]
fn shaders_and_twin_agree_whatever_the_sizes() {
    let Some(mut shaders) = adapter() else { return };
    let mut twin = Compositor::new(Choice::Cpu).unwrap();
    let photo = noise(150, 110, 5);
    // Side of the prediction, of its maps, of what the networks saw; the crop. Cells that are cut off, predictions that are halved.
    for (size, map, model, crop) in [
        (30, 7, 64, Rect::new(10, 4, 90, 84)),
        (1, 1, 1, Rect::new(0, 0, 40, 30)),
        (64, 16, 32, Rect::new(100, 60, 150, 110)),
        (96, 24, 48, Rect::new(20, 20, 40, 32)),
        (128, 33, 64, Rect::new(50, 50, 57, 58)),
    ] {
        let mut prediction = identity(&photo, crop, size, map);
        bend(&mut prediction, 0.12);
        for (i, level) in prediction.rgba.iter_mut().enumerate() {
            if i % 4 != 3 {
                *level = level.saturating_add((i / 40 % 24) as u8);
            }
        }
        let middle = prediction.deformation.len() / 2;
        prediction.deformation[middle] = [f32::NAN, 0.0];
        prediction.deformation[0] = [1e30, -f32::INFINITY];
        prediction.occlusion[middle / 2] = f32::NAN;
        shaders.set_photo(&photo, &[crop], model).unwrap();
        twin.set_photo(&photo, &[crop], model).unwrap();
        for mode in [PasteMode::PaddleGan, PasteMode::Feather] {
            let settings = PasteSettings {
                mode,
                colour_match: 0.8,
                ..PasteSettings::default()
            };
            let faces = [prediction.clone()];
            let a = shaders.composite(&faces, &settings).unwrap();
            let b = twin.composite(&faces, &settings).unwrap();
            let apart = worst(a, b);
            assert!(apart <= 1, "{size} {map} {model} {crop} {mode:?}: {apart}");
        }
    }
}

#[test]
fn a_missing_or_foreign_part_of_a_prediction_is_named() {
    let photo = noise(64, 48, 1);
    let mut compositor = Compositor::new(Choice::Cpu).unwrap();
    let crop = Rect::new(8, 8, 40, 40);
    let settings = PasteSettings::default();
    let good = identity(&photo, crop, 32, 8);

    compositor.set_photo(&photo, &[crop], 32).unwrap();
    assert!(matches!(
        compositor.composite(&[], &settings),
        Err(Error::Count { crops: 1, .. })
    ));
    type Damage = fn(&mut Prediction);
    let broken: [(&str, Damage); 5] = [
        ("picture", |p| p.rgba.truncate(7)),
        ("picture", |p| p.size = 33),
        ("deformation", |p| p.map_size = 9),
        ("deformation", |p| p.deformation.clear()),
        ("occlusion", |p| p.occlusion.push(1.0)),
    ];
    for (what, damage) in broken {
        let mut prediction = good.clone();
        damage(&mut prediction);
        let error = compositor.composite(&[prediction], &settings).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
    }
    for size in [0, 4097, u32::MAX] {
        let empty = Prediction {
            size,
            ..good.clone()
        };
        assert!(matches!(
            compositor.composite(&[empty], &settings),
            Err(Error::ModelSize(_))
        ));
    }
    let out = PasteSettings {
        ratio: 0.05,
        ..settings
    };
    let error = compositor
        .composite(std::slice::from_ref(&good), &out)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("ratio 0.05") && error.contains("0.1 to 1"),
        "{error}"
    );
    for value in [-0.1, 1.5, f32::NAN] {
        let out = PasteSettings {
            detail: value,
            ..settings
        };
        assert!(
            compositor
                .composite(std::slice::from_ref(&good), &out)
                .is_err()
        );
    }
    assert!(
        compositor.composite(&[good], &settings).is_ok(),
        "an error leaves nothing behind"
    );
}

#[test]
fn crops_outside_the_photo_and_empty_photos_are_refused() {
    let mut compositor = Compositor::new(Choice::Cpu).unwrap();
    let photo = noise(64, 48, 1);
    for crop in [
        Rect::new(0, 0, 65, 48),
        Rect::new(-1, 0, 5, 5),
        Rect::new(9, 9, 9, 20),
    ] {
        let error = compositor
            .set_photo(&photo, &[crop], 256)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&crop.to_string()) && error.contains("64x48"),
            "{error}"
        );
    }
    assert!(matches!(
        compositor.set_photo(&RgbaImage::new(0, 9), &[], 256),
        Err(Error::EmptyPhoto { .. })
    ));
    let pixel = RgbaImage::from_pixel(1, 1, Rgba([9, 9, 9, 255]));
    let crop = Rect::new(0, 0, 1, 1);
    compositor.set_photo(&pixel, &[crop], 256).unwrap();
    let prediction = identity(&pixel, crop, 256, 64);
    assert!(
        compositor
            .composite(&[prediction], &PasteSettings::default())
            .is_ok()
    );
}

#[test]
fn deformations_that_are_no_numbers_or_far_away_do_no_harm() {
    let photo = noise(96, 96, 3);
    let crop = Rect::new(10, 10, 86, 86);
    for choice in [Choice::Cpu, Choice::Wgpu] {
        let compositor = if choice == Choice::Wgpu {
            adapter()
        } else {
            Compositor::new(choice).ok()
        };
        let Some(mut compositor) = compositor else {
            continue;
        };
        compositor.set_photo(&photo, &[crop], 64).unwrap();
        let mut prediction = identity(&photo, crop, 64, 16);
        let bad = [f32::NAN, f32::INFINITY, -1e30, 1e30, 7.0, -7.0];
        for (i, cell) in prediction.deformation.iter_mut().enumerate() {
            *cell = [bad[i % 6], bad[(i / 6) % 6]];
        }
        prediction.occlusion.fill(f32::NAN);
        let settings = PasteSettings {
            detail: 1.0,
            ..Default::default()
        };
        let plain = PasteSettings {
            detail: 0.0,
            ..settings
        };
        let frame = compositor
            .composite(std::slice::from_ref(&prediction), &settings)
            .unwrap()
            .clone();
        assert!(frame == *compositor.composite(&[prediction], &plain).unwrap());
    }
}

#[test]
fn a_crop_at_the_photos_border_neither_fades_nor_ends_there() {
    let photo = RgbaImage::from_pixel(300, 400, Rgba([0, 0, 0, 255]));
    let white = |size| {
        let mut p = identity(&photo, Rect::new(0, 0, 9, 9), size, 16);
        p.rgba.fill(255);
        p
    };
    let mut compositor = Compositor::new(Choice::Cpu).unwrap();
    let settings = PasteSettings::default();
    compositor
        .set_photo(&photo, &[Rect::of_size(300, 400)], 64)
        .unwrap();
    let whole = compositor.composite(&[white(64)], &settings).unwrap();
    assert!(
        whole.pixels().all(|p| p.0 == [255; 4]),
        "the whole picture is the whole rectangle"
    );

    compositor
        .set_photo(&photo, &[Rect::new(0, 100, 200, 300)], 64)
        .unwrap();
    let left = compositor.composite(&[white(64)], &settings).unwrap();
    assert_eq!(
        left.get_pixel(0, 200).0[0],
        255,
        "whole at the photo's border"
    );
    assert_eq!(left.get_pixel(100, 200).0[0], 255);
    for (x, y) in [(199, 200), (100, 100), (100, 299)] {
        assert_eq!(
            left.get_pixel(x, y).0[0],
            0,
            "gone at the crop's edge ({x}, {y})"
        );
    }
    let profile: Vec<u8> = (100..200).map(|x| left.get_pixel(x, 200).0[0]).collect();
    assert!(
        profile.windows(2).all(|w| w[0] >= w[1] && w[0] - w[1] < 32),
        "fades smoothly"
    );
}

#[test]
fn colour_match_takes_a_tint_off_and_leaves_the_photo_alone() {
    let photo = RgbaImage::from_fn(320, 320, |x, y| {
        Rgba([100 + (x / 8) as u8, 90 + (y / 8) as u8, 110, 255])
    });
    let crop = Rect::new(40, 40, 280, 280);
    let mut tinted = identity(&photo, crop, 64, 16);
    for pixel in tinted.rgba.as_chunks_mut::<4>().0 {
        pixel[0] += 12;
        pixel[2] -= 9;
    }
    let mut compositor = Compositor::new(Choice::Cpu).unwrap();
    compositor.set_photo(&photo, &[crop], 64).unwrap();
    let settings = PasteSettings {
        detail: 0.0,
        colour_match: 1.0,
        ..Default::default()
    };
    let matched = worst(
        &photo,
        compositor.composite(&[tinted.clone()], &settings).unwrap(),
    );
    assert!(matched <= 2, "{matched}");
    let plain = PasteSettings {
        colour_match: 0.0,
        ..settings
    };
    assert!(worst(&photo, compositor.composite(&[tinted], &plain).unwrap()) >= 11);
}

#[test]
fn neighbours_share_their_overlap_and_shaders_do_as_their_twin() {
    let photo = noise(420, 300, 7);
    let crops = [
        Rect::new(10, 20, 230, 240),
        Rect::new(140, 40, 400, 300),
        Rect::new(60, 130, 220, 290),
    ];
    let colours = [[255, 0, 0, 255], [0, 255, 0, 255], [0, 0, 255, 255]];
    let predictions: Vec<Prediction> = colours
        .iter()
        .map(|&colour| with_maps(RgbaImage::from_pixel(64, 64, Rgba(colour)), 1))
        .collect();
    let settings = PasteSettings {
        colour_match: 0.0,
        detail: 0.0,
        ..PasteSettings::default()
    };
    let mut twin = Compositor::new(Choice::Cpu).unwrap();
    twin.set_photo(&photo, &crops, 64).unwrap();
    let frame = twin.composite(&predictions, &settings).unwrap().clone();
    // The first face's cheek, well inside the second one's mask.
    assert_eq!(frame.get_pixel(165, 130).0, colours[0]);
    assert_eq!(frame.get_pixel(250, 170).0, colours[1]);
    // Across the seam one face goes over into the other, and nothing of the photo shows.
    for x in 150..260 {
        let [r, g, b, _] = frame.get_pixel(x, 120).0;
        assert!(
            i32::from(r) + i32::from(g) >= 250 && b < 5,
            "{r} {g} {b} at {x}"
        );
    }
    if let Some(mut shaders) = adapter() {
        shaders.set_photo(&photo, &crops, 64).unwrap();
        let other = shaders.composite(&predictions, &settings).unwrap();
        assert!(worst(&frame, other) <= 1);
    }
}

#[test]
fn detail_is_kept_off_what_the_prediction_has_drawn_anew() {
    // A photo of noise, and a prediction that holds a flat patch in its middle.
    let photo = noise(256, 256, 5);
    let crop = Rect::of_size(256, 256);
    let mut prediction = identity(&photo, crop, 64, 16);
    for y in 24..40usize {
        for x in 24..40 {
            let stripe = if x % 4 < 2 { 255 } else { 0 };
            prediction.rgba[(y * 64 + x) * 4..][..3].fill(stripe);
        }
    }
    let mut compositor = Compositor::new(Choice::Cpu).unwrap();
    compositor.set_photo(&photo, &[crop], 64).unwrap();
    let settings = |detail| PasteSettings {
        detail,
        ..Default::default()
    };
    let plain = compositor
        .composite(std::slice::from_ref(&prediction), &settings(0.0))
        .unwrap()
        .clone();
    let detailed = compositor.composite(&[prediction], &settings(1.0)).unwrap();
    let patch = Rect::new(112, 112, 144, 144);
    let (new, old) = (
        mean_difference(&plain, detailed, patch),
        mean_difference(&photo, detailed, patch),
    );
    assert!(
        new < 8.0 && old > 60.0,
        "{new} from the prediction, {old} from the photo"
    );
    let corner = Rect::new(8, 8, 60, 60);
    assert!(
        mean_difference(&photo, detailed, corner) < 2.0,
        "and goes everywhere else"
    );
}

/// One scene for the properties: photo size, crop inside, model size, prediction and map size.
fn scenes() -> impl Strategy<Value = (RgbaImage, Rect, u32, u32, u32)> {
    (
        8u32..120,
        8u32..120,
        any::<u64>(),
        prop::sample::select(vec![8u32, 16, 27, 32, 64]),
        2u32..20,
    )
        .prop_flat_map(|(width, height, seed, size, map)| {
            let edge = |limit: u32| {
                (0..limit as i32 - 3).prop_flat_map(move |a| (Just(a), a + 3..=limit as i32))
            };
            let model = prop::sample::select(vec![8u32, 20, 32, 64]);
            (edge(width), edge(height), model).prop_map(move |((x1, x2), (y1, y2), model)| {
                (
                    noise(width, height, seed),
                    Rect::new(x1, y1, x2, y2),
                    model,
                    size,
                    map,
                )
            })
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..Default::default() })]

    #[test]
    fn detail_0_is_the_plain_enlargement(
        (photo, crop, model, size, map) in scenes(), seed in any::<u64>(), bent in 0.0f32..0.5,
    ) {
        let mut prediction = random_prediction(size, map, seed);
        bend(&mut prediction, bent);
        let mut compositor = Compositor::new(Choice::Cpu).unwrap();
        compositor.set_photo(&photo, &[crop], model).unwrap();
        let settings = PasteSettings { mode: PasteMode::PaddleGan, detail: 0.0, ..Default::default() };
        let frame = compositor.composite(std::slice::from_ref(&prediction), &settings).unwrap();
        for y in crop.y1..crop.y2 {
            for x in crop.x1..crop.x2 {
                let expected = enlarged(&prediction, crop, x, y);
                let found = frame.get_pixel(x as u32, y as u32).0;
                for c in 0..3 {
                    prop_assert!((f64::from(found[c]) - expected[c]).abs() <= 0.51, "{x},{y}");
                }
            }
        }
    }

    #[test]
    fn a_larger_ratio_never_covers_less(
        width in 8u32..90, height in 8u32..90, left in 0..40i32, top in 0..40i32,
        right in 0..40u32, bottom in 0..40u32,
        ratio in 0.1f32..1.0, more in 0.0f32..0.5, feather in 0.0f32..=1.0, hard in any::<bool>(),
    ) {
        let photo = RgbaImage::from_pixel(
            width + left as u32 + right, height + top as u32 + bottom, Rgba([0, 0, 0, 255]),
        );
        let crop = Rect::new(left, top, left + width as i32, top + height as i32);
        let mut prediction = random_prediction(8, 4, 1);
        prediction.rgba.fill(255);
        let mode = if hard { PasteMode::PaddleGan } else { PasteMode::Feather };
        let mut compositor = Compositor::new(Choice::Cpu).unwrap();
        // Twice the same, since PaddleGAN's mask of a single face has no ratio.
        compositor.set_photo(&photo, &[crop, crop], 8).unwrap();
        let faces = [prediction.clone(), prediction];
        let settings = |ratio| PasteSettings { mode, ratio, feather, detail: 0.0, colour_match: 0.0 };
        let small = compositor.composite(&faces, &settings(ratio)).unwrap().clone();
        let large = compositor.composite(&faces, &settings((ratio + more).min(1.0))).unwrap();
        prop_assert!(small.as_raw().iter().zip(large.as_raw()).all(|(s, l)| s <= l));
    }

    #[test]
    fn pixels_outside_every_mask_stay_as_they_are_frame_after_frame(
        (photo, crop, model, size, map) in scenes(), seed in any::<u64>(),
        ratio in 0.1f32..0.45, feather in 0.0f32..0.2, detail in 0.0f32..=1.0, hard in any::<bool>(),
    ) {
        let mode = if hard { PasteMode::PaddleGan } else { PasteMode::Feather };
        let white = |value: u8| { let mut p = random_prediction(size, map, 1); p.rgba.fill(value); p };
        let mut compositor = Compositor::new(Choice::Cpu).unwrap();
        // Where black and white predictions give the same, the mask is nothing.
        let flat = PasteSettings { mode, ratio, feather, detail: 0.0, colour_match: 0.0 };
        compositor.set_photo(&photo, &[crop, crop], model).unwrap();
        let black = compositor.composite(&[white(0), white(0)], &flat).unwrap().clone();
        let white = compositor.composite(&[white(255), white(255)], &flat).unwrap().clone();
        let settings = PasteSettings { detail, colour_match: 1.0, ..flat };
        let faces = [random_prediction(size, map, seed), random_prediction(size, map, seed ^ 1)];
        let frame = compositor.composite(&faces, &settings).unwrap().clone();
        let crops = Rect::of_size(photo.width(), photo.height()).intersect(&crop);
        for (x, y, pixel) in frame.enumerate_pixels() {
            let inside = crops.intersect(&Rect::new(x as i32, y as i32, x as i32 + 1, y as i32 + 1));
            if inside.is_empty() || black.get_pixel(x, y) == white.get_pixel(x, y) {
                prop_assert_eq!(pixel, photo.get_pixel(x, y));
            }
        }
        // The frame does not depend on what was drawn before.
        let mut fresh = Compositor::new(Choice::Cpu).unwrap();
        fresh.set_photo(&photo, &[crop, crop], model).unwrap();
        prop_assert!(*fresh.composite(&faces, &settings).unwrap() == frame);
    }

    #[test]
    fn a_perfect_prediction_gives_the_photo_back(
        (photo, crop, model, _, map) in scenes(), hard in any::<bool>(), ratio in 0.1f32..=1.0,
    ) {
        // At least as many pixels as the model's: there is detail to bring back, not to lose.
        let model = model.min(crop.width()).min(crop.height());
        let prediction = identity(&photo, crop, model, map);
        let mode = if hard { PasteMode::PaddleGan } else { PasteMode::Feather };
        let settings = PasteSettings { mode, ratio, detail: 1.0, colour_match: 1.0, feather: 0.2 };
        let mut compositor = Compositor::new(Choice::Cpu).unwrap();
        compositor.set_photo(&photo, &[crop], model).unwrap();
        let frame = compositor.composite(&[prediction], &settings).unwrap();
        prop_assert!(worst(&photo, frame) <= 1);
    }
}

fn check_recorded(mut compositor: Compositor) {
    let golden = Golden::open();
    for (name, ratio) in CASES {
        let crops = golden.boxes(&format!("{name}.boxes"), 5);
        let clipped = format!("expected_clipped.{name}_{ratio}");
        let expected = golden
            .picture(&clipped)
            .or_else(|| golden.picture(&format!("expected.{name}_{ratio}")));
        let expected = expected.expect("the case is recorded");
        let settings = PasteSettings {
            mode: PasteMode::PaddleGan,
            ratio,
            detail: 0.0,
            ..Default::default()
        };
        compositor.set_photo(&golden.photo, &crops, 256).unwrap();
        let frame = compositor
            .composite(&golden.predictions(name, crops.len()), &settings)
            .unwrap();
        let mut at_edges = 0;
        for (x, y, pixel) in frame.enumerate_pixels() {
            let found = pixel
                .0
                .iter()
                .zip(expected.get_pixel(x, y).0)
                .map(|(a, b)| a.abs_diff(b));
            if found.max().unwrap() > 2 {
                assert!(
                    crops.len() > 1 && crops.iter().any(|c| near_edge(c, ratio, x, y)),
                    "{name} {ratio}: {:?} in place of {:?} at {x},{y}",
                    pixel.0,
                    expected.get_pixel(x, y).0,
                );
                at_edges += 1;
            }
        }
        // Two drawers of a circle: OpenCV's differs at its four tips.
        assert!(
            at_edges <= 4,
            "{name} {ratio}: {at_edges} pixels at the masks' edges"
        );
    }
}

/// Whether a pixel is within one pixel of the edge of the crop's circle.
fn near_edge(crop: &Rect, ratio: f32, x: u32, y: u32) -> bool {
    let radius = (f64::from(crop.height()) * f64::from(ratio) - 1e-4).ceil();
    let (cx, cy) = ((crop.x1 + crop.x2) / 2, (crop.y1 + crop.y2) / 2);
    let distance = f64::hypot(f64::from(x as i32 - cx), f64::from(y as i32 - cy));
    (distance - radius).abs() <= 1.0
}

/// The shaders on whatever adapter there is; without any the tests fail unless told otherwise.
fn adapter() -> Option<Compositor> {
    match Compositor::new(Choice::Wgpu) {
        Ok(compositor) => Some(compositor),
        Err(error) if std::env::var("MIMIC_TEST_NO_ADAPTER").is_ok_and(|v| v == "1") => {
            eprintln!("not tested: {error}");
            None
        }
        Err(error) => panic!(
            "{error}\nThe shaders are tested on a real adapter: install mesa-vulkan-drivers \
             (lavapipe), or set MIMIC_TEST_NO_ADAPTER=1 to leave these tests out."
        ),
    }
}

struct Golden {
    bytes: Vec<u8>,
    photo: RgbaImage,
}

impl Golden {
    fn open() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/paste.safetensors");
        let mut golden = Self {
            bytes: fs::read(path).unwrap(),
            photo: RgbaImage::default(),
        };
        golden.photo = golden.picture("photo").unwrap();
        golden
    }

    fn picture(&self, name: &str) -> Option<RgbaImage> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = tensors.tensor(name).ok()?;
        let &[height, width, 3] = tensor.shape() else {
            panic!("{name} is no picture")
        };
        let rgba = tensor
            .data()
            .as_chunks::<3>()
            .0
            .iter()
            .flat_map(|&[r, g, b]| [r, g, b, 255]);
        RgbaImage::from_raw(width as u32, height as u32, rgba.collect())
    }

    fn boxes(&self, name: &str, columns: usize) -> Vec<Rect> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let data = tensors.tensor(name).unwrap().data().to_vec();
        let numbers: Vec<i32> = data
            .as_chunks()
            .0
            .iter()
            .map(|b| i32::from_le_bytes(*b))
            .collect();
        numbers
            .chunks(columns)
            .map(|b| Rect::new(b[0], b[1], b[2], b[3]))
            .collect()
    }

    fn predictions(&self, name: &str, count: usize) -> Vec<Prediction> {
        let picture = |i| self.picture(&format!("{name}.prediction.{i}")).unwrap();
        (0..count).map(|i| with_maps(picture(i), 64)).collect()
    }
}

/// What a generator would give that reproduces the source as the networks see it, unmoved.
fn identity(photo: &RgbaImage, crop: Rect, size: u32, map: u32) -> Prediction {
    with_maps(model_view(photo, crop, size).unwrap(), map)
}

fn with_maps(picture: RgbaImage, map: u32) -> Prediction {
    let at = |i: u32| {
        if map == 1 {
            0.0
        } else {
            2.0 * i as f32 / (map - 1) as f32 - 1.0
        }
    };
    Prediction {
        size: picture.width(),
        rgba: picture.into_raw(),
        map_size: map,
        deformation: (0..map * map).map(|i| [at(i % map), at(i / map)]).collect(),
        occlusion: vec![1.0; (map * map) as usize],
        lent: None,
    }
}

fn random_prediction(size: u32, map: u32, seed: u64) -> Prediction {
    with_maps(noise(size, size, seed), map)
}

/// Moves the source about smoothly and hides some of it.
fn bend(prediction: &mut Prediction, by: f32) {
    for ([x, y], occlusion) in prediction
        .deformation
        .iter_mut()
        .zip(&mut prediction.occlusion)
    {
        let (a, b) = (*x, *y);
        *x += by * (2.0 * b + 0.3).sin();
        *y += by * (3.0 * a).cos() * 0.7;
        *occlusion = (1.2 - a * a * b).clamp(0.0, 1.0);
    }
}

/// Repeatable opaque noise, smooth and rough.
fn noise(width: u32, height: u32, seed: u64) -> RgbaImage {
    let mut state = seed;
    let mut next = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    RgbaImage::from_fn(width, height, |x, y| {
        let wave = ((x as f32 / 9.0).sin() + (y as f32 / 7.0).cos()) * 40.0;
        let mut level = || (100.0 + wave + f32::from(next()) * 0.28) as u8;
        Rgba([level(), level(), level(), 255])
    })
}

/// The prediction at a pixel of the photo, bilinear with half-pixel centres, in f64.
fn enlarged(prediction: &Prediction, crop: Rect, x: i32, y: i32) -> [f64; 3] {
    let side = f64::from(prediction.size);
    let place = |i: i32, low: i32, length: u32| {
        let at = (f64::from(i - low) + 0.5) * side / f64::from(length) - 0.5;
        at.clamp(0.0, side - 1.0)
    };
    let (u, v) = (
        place(x, crop.x1, crop.width()),
        place(y, crop.y1, crop.height()),
    );
    let (s, t) = (u.fract(), v.fract());
    let at = |dx: usize, dy: usize, c: usize| {
        let last = prediction.size as usize - 1;
        let (px, py) = ((u as usize + dx).min(last), (v as usize + dy).min(last));
        f64::from(prediction.rgba[(py * (last + 1) + px) * 4 + c])
    };
    std::array::from_fn(|c| {
        (at(0, 0, c) * (1.0 - s) + at(1, 0, c) * s) * (1.0 - t)
            + (at(0, 1, c) * (1.0 - s) + at(1, 1, c) * s) * t
    })
}

fn worst(a: &RgbaImage, b: &RgbaImage) -> u8 {
    a.as_raw()
        .iter()
        .zip(b.as_raw())
        .map(|(a, b)| a.abs_diff(*b))
        .max()
        .unwrap()
}

fn mean_difference(a: &RgbaImage, b: &RgbaImage, part: Rect) -> f64 {
    let mut sum = 0.0;
    for y in part.y1..part.y2 {
        for x in part.x1..part.x2 {
            let (a, b) = (
                a.get_pixel(x as u32, y as u32),
                b.get_pixel(x as u32, y as u32),
            );
            sum += f64::from(a.0[1].abs_diff(b.0[1]));
        }
    }
    sum / part.area() as f64
}

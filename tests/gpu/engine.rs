//! The engine of a card: a batch is its frames, its pictures are those of the CPU's engine.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use image::RgbaImage;
use mimic::animate::load::{self, ConfigSource};
use mimic::animate::take::{Header, Writer};
use mimic::animate::{Animator, Engine, MotionOptions, Source};
use mimic::frame::Prediction;
use mimic::gpu::{self, PasteSettings};
use mimic::model::{Keypoints, packed};
use mimic::ops::threads::Workers;
use mimic::pipeline::offline::{self, Faces, Job, ReferenceFrame, Window};

use crate::{card, common};

fn engines() -> (Engine, Engine) {
    let weights = common::file("weights/mimic-small.safetensors");
    let (checkpoint, config) = load::checkpoint(Some(&weights), ConfigSource::Found).unwrap();
    let workers = || Workers::new(2).unwrap();
    let card = card();
    let on_card =
        Engine::on_card(&config, &checkpoint.tensors, &card, card.usual, workers()).unwrap();
    let packed = packed::Engine::new(&config, &checkpoint.tensors, workers()).unwrap();
    (on_card, Engine::on_cpu(packed))
}

fn picture(name: &str, side: u32) -> RgbaImage {
    let recorded = common::tensors("tests/fixtures/mimic-small.golden.safetensors");
    let bytes: Vec<u8> = recorded[name].flatten_all().unwrap().to_vec1().unwrap();
    let picture = RgbaImage::from_fn(side, side, |x, y| {
        let at = 3 * (y * side + x) as usize;
        image::Rgba([bytes[at], bytes[at + 1], bytes[at + 2], 255])
    });
    assert_eq!(bytes.len(), 3 * (side * side) as usize);
    picture
}

fn mean(a: &[u8], b: &[u8]) -> f64 {
    assert_eq!(a.len(), b.len());
    let sum: u64 = a
        .iter()
        .zip(b)
        .map(|(a, b)| u64::from(a.abs_diff(*b)))
        .sum();
    sum as f64 / a.len() as f64
}

#[test]
fn its_frames_are_those_of_the_cpus_engine() {
    let (mut on_card, mut on_cpu) = engines();
    let side = on_card.config().image_size;
    let (photo, driving) = (picture("source", side), picture("driving", side));
    let mut frames = [&mut on_card, &mut on_cpu].map(|engine| {
        let source = engine.encode(&photo);
        let keypoints = engine.keypoints(&driving);
        let mut out = Prediction::default();
        engine.generate(&source, &keypoints, &mut out);
        (keypoints, out)
    });
    let [(kp, got), (kp_wanted, wanted)] = &mut frames;
    for (got, wanted) in kp
        .value
        .iter()
        .flatten()
        .zip(kp_wanted.value.iter().flatten())
    {
        assert!((got - wanted).abs() < 1e-3, "{got} is not {wanted}");
    }
    assert_eq!((got.size, got.map_size), (wanted.size, wanted.map_size));
    assert_eq!(got.occlusion.len(), wanted.occlusion.len());
    let off = mean(&got.rgba, &wanted.rgba);
    println!(
        "{}: {off:.3} steps of 255 off the CPU's engine",
        on_card.device()
    );
    assert!(off <= 1.0, "{off} steps of 255 off");
    let places = got
        .deformation
        .iter()
        .flatten()
        .zip(wanted.deformation.iter().flatten());
    let places: f32 =
        places.map(|(a, b)| (a - b).abs()).sum::<f32>() / (2 * got.deformation.len()) as f32;
    assert!(places < 5e-3, "{places}");
}

#[test]
fn a_batch_of_frames_and_faces_is_what_they_are_one_by_one() {
    let (mut engine, _) = engines();
    let side = engine.config().image_size;
    let pictures = [picture("source", side), picture("driving", side)];
    let sources = [engine.encode(&pictures[0]), engine.encode(&pictures[1])];
    let frames: Vec<&[u8]> = pictures.iter().map(|p| &**p).collect();
    let keypoints = engine.keypoints_of(&frames);
    let alone: Vec<Keypoints> = frames.iter().map(|frame| engine.keypoints(frame)).collect();
    let flat = |all: &[Keypoints]| -> Vec<f32> {
        all.iter()
            .flat_map(|kp| kp.value.iter().flatten().copied())
            .collect()
    };
    for (a, b) in flat(&keypoints).iter().zip(flat(&alone)) {
        assert!((a - b).abs() < 1e-4, "{a} is not {b}");
    }
    for moves in [
        // One photo, several frames; several photos.
        vec![(&sources[0], &keypoints[0]), (&sources[0], &keypoints[1])],
        vec![
            (&sources[0], &keypoints[1]),
            (&sources[1], &keypoints[1]),
            (&sources[0], &keypoints[0]),
        ],
    ] {
        let moves: Vec<(&Source, &Keypoints)> = moves;
        let mut together = vec![Prediction::default(); moves.len()];
        engine.generate_all(&moves, &mut together);
        for (&(source, driving), together) in moves.iter().zip(&together) {
            let mut one = Prediction::default();
            engine.generate(source, driving, &mut one);
            let off = mean(&one.rgba, &together.rgba);
            assert!(off < 0.5, "{off} steps of 255 off");
        }
    }
}

#[test]
fn several_faces_are_animated_as_one_batch() {
    let (engine, _) = engines();
    let mut animator = Animator::new(engine, MotionOptions::default());
    let side = animator.size();
    let faces = [picture("source", side), picture("driving", side)];
    animator.set_photo(&faces);
    let still = animator.keypoints(&faces[1]);
    let made = animator.animate(&still);
    assert_eq!(made.len(), 2);
    // The first frame is the reference: faces stay about where they are.
    for (made, face) in made.iter().zip(&faces) {
        let off = mean(&made.rgba, face);
        assert!(off < 25.0, "{off}");
    }
}

/// Seven frames, smoothed, by one stream frame by frame, and by two, two frames each in turn: the last turn is not full.
#[test]
fn a_jobs_frames_are_the_same_by_one_stream_and_by_two() {
    let folder = tempfile::tempdir().unwrap();
    let (engine, _) = engines();
    let mut animator = Animator::new(engine, MotionOptions::default());
    let photo = picture("source", animator.size());
    photo.save(folder.path().join("photo.png")).unwrap();
    let mut pose = animator.keypoints(&photo);
    let take = folder.path().join("motion.mimic-take");
    let mut writer = Writer::create(&take, Header::of("any", &pose)).unwrap();
    for i in 0..7 {
        pose.value[i][1] += if i % 2 == 0 { 0.15 } else { -0.15 };
        writer.push(i as f64 / 25.0, &pose).unwrap();
    }
    assert_eq!(writer.finish().unwrap(), 7);

    let mut frames = |batch: usize| -> Vec<RgbaImage> {
        let job = job(folder.path(), &take, batch);
        let report = offline::run(&job, &mut animator, |_| {}, &AtomicBool::new(false)).unwrap();
        assert_eq!(report.frames, 7);
        let files = report.outputs.iter();
        files
            .map(|file| image::open(file).unwrap().into_rgba8())
            .collect()
    };
    let (singly, together) = (frames(1), frames(2));
    assert_eq!((singly.len(), together.len()), (7, 7));
    assert!(mean(&singly[0], &singly[6]) > 1.0);
    for (i, (one, other)) in singly.iter().zip(&together).enumerate() {
        let off = mean(one, other);
        println!("frame {i}: {off:.3} steps of 255 off");
        assert!(off < 0.25, "frame {i}: {off} steps of 255 off");
    }
}

/// A folder's photo, moved by a take into numbered pictures, which needs no other program.
fn job(folder: &Path, take: &Path, batch: usize) -> Job {
    Job {
        photo: folder.join("photo.png"),
        faces: Faces::Whole,
        roles: Vec::new(),
        clip: take.to_owned(),
        window: Window::Whole,
        mirror: false,
        reference: ReferenceFrame::Number(0),
        output: folder.join(format!("{batch}-%d.png")),
        audio: false,
        provenance: false,
        signer: None,
        paste: PasteSettings::default(),
        ratios: Vec::new(),
        smoothing: 1.0,
        enhancement: None,
        compositor: gpu::Choice::Cpu,
        batch,
    }
}

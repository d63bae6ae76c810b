//! The window without a display: pictures of the panels, and what a person does by accessible names.
//!
//! The networks are not started: what comes on stage is drawn here, so that every picture is the same.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use eframe::egui::{self, Event, Key, Modifiers, PointerButton, Pos2, accesskit::Role, vec2};
use egui_kittest::{
    Harness,
    kittest::{NodeT as _, Queryable as _},
};
use image::RgbaImage;

use super::app::{App, ModelState};
use super::command::{Command, Place};
use super::{Start, jobs::JobCommand};
use crate::checkpoint::manifest::Manifest;
use crate::checkpoint::store::Store;
use crate::frame::Prediction;
use crate::geometry::Rect;
use crate::model::Keypoints;
use crate::pipeline::live::{Shown, Stages};
use crate::settings::{self, Driver, Language, Settings, Theme};

#[allow(dead_code, reason = "the tests of downloads need more of it")]
#[path = "../../tests/weights/server.rs"]
mod server;
use server::{Server, give, head};

const SIZE: [f32; 2] = [1280.0, 800.0];

/// A window with the settings of `config`, its photos opened and a drawn driver seen.
pub(super) fn window(config: &Path) -> Harness<'static, App> {
    sized(config, SIZE)
}

fn sized(config: &Path, size: [f32; 2]) -> Harness<'static, App> {
    let start = Start {
        still: true,
        config: Some(config.to_owned()),
        compositor: crate::gpu::Choice::Cpu,
        ..Start::default()
    };
    let mut harness = Harness::builder()
        .with_size(size)
        .with_step_dt(1.0 / 60.0)
        .wgpu()
        .build_eframe(move |cc| {
            let state = cc
                .wgpu_render_state
                .as_ref()
                .expect("a Vulkan driver, such as lavapipe");
            App::new(&cc.egui_ctx, state, start).unwrap()
        });
    let patience = Instant::now();
    while !harness
        .state()
        .reel
        .photos
        .iter()
        .all(|photo| photo.opened().is_some())
    {
        assert!(
            patience.elapsed() < Duration::from_secs(60),
            "the photos do not open"
        );
        std::thread::sleep(Duration::from_millis(10));
        harness.step();
    }
    harness.state_mut().model = ModelState::Ready {
        name: "mimic-small".to_owned(),
        size: 256,
        device: "CPU (drawn)".to_owned(),
    };
    draw(harness.state_mut());
    // What lies over the picture comes with the mouse.
    harness.event(Event::PointerMoved(Pos2::new(500.0, 300.0)));
    harness.run_steps(30);
    harness
}

/// A frame as the networks would send it: the photo's own crop in red.
fn draw(app: &mut App) {
    let photo = app.reel.current().unwrap();
    let (id, faces) = (photo.id, photo.faces.len());
    let prediction = Prediction {
        size: 64,
        rgba: [200, 60, 40, 255].repeat(64 * 64),
        map_size: 1,
        deformation: vec![[0.0, 0.0]],
        occlusion: vec![0.0],
    };
    app.show_frame(Shown {
        photo: id,
        predictions: vec![prediction; faces],
        driver: Some(RgbaImage::from_fn(160, 120, |x, y| {
            image::Rgba([x as u8, 2 * y as u8, 90, 255])
        })),
        crop: Rect::new(30, 10, 130, 110),
        keypoints: Some(Keypoints {
            value: vec![[0.0, 0.0], [0.4, -0.3]],
            jacobian: None,
        }),
        found: true,
        match_score: 0.82,
        captured: Instant::now(),
        enhanced_every: None,
        stages: Stages::default(),
    });
    // What is measured differs from run to run.
    app.stats = super::stats::Stats::default();
}

pub(super) fn saved(settings: &Settings) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    settings::save(folder.path(), settings).unwrap();
    folder
}

pub(super) fn fresh() -> tempfile::TempDir {
    // Whatever the system's language, and nothing written outside.
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings {
        language: Some(Language::English),
        output: Some(folder.path().join("output")),
        ..Settings::default()
    };
    settings::save(folder.path(), &settings).unwrap();
    folder
}

/// The picture on stage.
fn composed(harness: &mut Harness<'static, App>) -> RgbaImage {
    let image = harness.state_mut().stage.image().unwrap();
    image.unwrap().clone()
}

/// Presses at `from`, moves to `to` in steps, lets go.
fn drag(harness: &mut Harness<'static, App>, from: Pos2, to: Pos2) {
    let button = |pos, pressed| Event::PointerButton {
        pos,
        button: PointerButton::Primary,
        pressed,
        modifiers: Modifiers::NONE,
    };
    harness.event(Event::PointerMoved(from));
    harness.step();
    harness.event(button(from, true));
    harness.step();
    for step in 1..=5 {
        harness.event(Event::PointerMoved(from + (to - from) * step as f32 / 5.0));
        harness.step();
    }
    harness.event(button(to, false));
    harness.run_steps(3);
}

#[test]
fn the_stage_looks_as_it_should_in_the_dark() {
    let config = fresh();
    window(config.path()).snapshot("live-dark");
}

#[test]
fn the_stage_looks_as_it_should_in_the_light_and_narrow() {
    let config = saved(&Settings {
        language: Some(Language::English),
        theme: Theme::Light,
        ..Settings::default()
    });
    let mut harness = sized(config.path(), [1024.0, 640.0]);
    // The harness chooses the dark theme after the window has been made.
    harness.state_mut().want(Command::Theme(Theme::Light));
    harness.run_steps(5);
    harness.snapshot("live-light-narrow");
}

#[test]
fn a_drop_of_both_halves_makes_a_job_and_shows_it() {
    let config = fresh();
    let mut harness = window(config.path());
    let assets = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("assets");
    let files = ["mona-lisa.jpg", "driver.mp4"].map(|name| assets.join(name));
    harness.input_mut().dropped_files = files.map(|file| Arc::new(Dropped(file)) as _).to_vec();
    harness.run_steps(3);
    let app = harness.state();
    assert_eq!(app.place, Place::Render);
    let [job] = app.jobs.queue.jobs() else {
        panic!("{} jobs", app.jobs.queue.jobs().len());
    };
    assert!(matches!(&job.driver, Driver::Clip(path) if path.ends_with("driver.mp4")));
    let patience = Instant::now();
    while harness.state().jobs.looks.is_empty() {
        assert!(patience.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(10));
        harness.step();
    }
    harness.get_by_role_and_label(Role::Button, "mona-lisa + driver.mp4");
    harness.get_by_label("Remove").click();
    harness.run_steps(3);
    assert!(harness.state().jobs.queue.jobs().is_empty());
}

#[test]
fn a_job_is_cancelled_and_what_there_was_is_not_left_behind() {
    let config = fresh();
    let mut harness = window(config.path());
    harness.state_mut().want(Command::Go(Place::Render));
    harness.state_mut().want(Command::Job(JobCommand::AddStage));
    harness.run_steps(2);
    harness.state_mut().want(Command::Job(JobCommand::Go));
    harness.run_steps(2);
    harness.get_by_label("Cancel").click();
    let patience = Instant::now();
    while harness.query_by_label("Retry").is_none() {
        assert!(
            patience.elapsed() < Duration::from_secs(120),
            "it does not stop"
        );
        std::thread::sleep(Duration::from_millis(20));
        harness.step();
    }
    let output = config.path().join("output");
    let left = std::fs::read_dir(output).map_or(0, |files| files.count());
    assert_eq!(left, 0);
}

#[test]
fn the_ring_on_the_photo_sets_the_ratio_of_its_face_alone() {
    let config = fresh();
    let mut harness = window(config.path());
    let handle = harness.get_by_label("Ratio Face 1").rect().center();
    let before = composed(&mut harness);
    drag(&mut harness, handle, handle - vec2(40.0, -40.0));
    let app = harness.state();
    let ratio = app.reel.current().unwrap().faces[0]
        .ratio
        .expect("its own ratio");
    assert!(ratio < app.settings.blend.ratio && ratio >= 0.1, "{ratio}");
    assert_eq!(app.settings.blend, settings::Blend::default());
    assert!(
        composed(&mut harness) != before,
        "the mask is smaller at once"
    );
}

#[test]
fn a_slider_acts_on_the_very_next_frame_and_its_arrow_takes_it_back() {
    let config = fresh();
    let mut harness = window(config.path());
    let before = composed(&mut harness);
    let rail = harness
        .get_all_by_role_and_label(Role::Slider, "Feather")
        .next()
        .unwrap()
        .rect();
    drag(&mut harness, rail.center(), rail.right_center());
    assert!(harness.state().settings.blend.feather > 0.9);
    assert!(composed(&mut harness) != before);
    harness.get_by_label("Reset Feather").click();
    harness.run_steps(3);
    assert_eq!(harness.state().settings.blend, settings::Blend::default());
    assert!(composed(&mut harness) == before);
}

#[test]
fn faces_can_be_enhanced_once_there_are_weights() {
    let config = fresh();
    let mut harness = window(config.path());
    let switch = harness.get_by_label("Sharper faces");
    assert!(switch.accesskit_node().is_disabled());
    harness.get_by_label_contains("Needs GPEN or GFPGAN");
    harness.get_by_label("Choose weights…");
    // A restorer's weights are no model to animate with.
    let weights = config.path().join("GPEN-BFR-512.pth");
    std::fs::write(&weights, b"not looked at here").unwrap();
    harness.input_mut().dropped_files = vec![Arc::new(Dropped(weights.clone())) as _];
    harness.run_steps(3);
    let settings = &harness.state().settings;
    assert_eq!(settings.model, None);
    assert_eq!(settings.enhance.weights, Some(weights));
    assert!(settings.enhance.on);
    assert!(harness.query_by_label("Choose weights…").is_none());
    harness.get_by_label("Sharper faces").click();
    harness.run_steps(3);
    assert!(!harness.state().settings.enhance.on);
}

#[test]
fn keys_change_the_photo_the_mirror_and_the_help() {
    let config = fresh();
    let mut harness = window(config.path());
    harness.key_press(Key::Num3);
    harness.run_steps(2);
    assert_eq!(harness.state().reel.on_stage, 2);
    harness.key_press(Key::ArrowLeft);
    harness.run_steps(2);
    assert_eq!(harness.state().reel.on_stage, 1);
    let mirror = harness.state().settings.motion.mirror;
    harness.key_press(Key::M);
    harness.run_steps(2);
    assert_eq!(harness.state().settings.motion.mirror, !mirror);
    harness.key_press(Key::F1);
    harness.run_steps(2);
    assert!(harness.state().open.help);
    harness.key_press(Key::Escape);
    harness.run_steps(2);
    assert!(!harness.state().open.help);
}

#[test]
fn calibrating_by_hand_keeps_the_reference_until_auto_is_on_again() {
    let config = fresh();
    let mut harness = window(config.path());
    assert!(harness.state().settings.motion.auto_reference);
    harness.get_by_label("Calibrate").click();
    harness.run_steps(3);
    assert!(!harness.state().settings.motion.auto_reference);
    harness.get_by_label("Auto").click();
    harness.run_steps(3);
    assert!(harness.state().settings.motion.auto_reference);
}

#[test]
fn chinese_is_said_by_every_panel_and_remembered() {
    let config = fresh();
    let mut harness = window(config.path());
    harness
        .state_mut()
        .want(Command::Language(Language::Chinese));
    harness.run_steps(3);
    harness.get_by_label("实时");
    assert!(harness.get_all_by_label("羽化").count() > 0);
    harness.state_mut().remember(true);
    let settings::Loaded::Kept(kept) = settings::load(config.path()) else {
        panic!("nothing was saved");
    };
    assert_eq!(kept.language, Some(Language::Chinese));
}

#[test]
fn broken_settings_are_set_aside_with_a_notice() {
    let config = tempfile::tempdir().unwrap();
    std::fs::write(config.path().join("settings.json"), "{ not json").unwrap();
    std::fs::write(config.path().join("jobs.json"), "[{]").unwrap();
    let mut harness = window(config.path());
    let texts: Vec<String> = harness
        .state_mut()
        .notices
        .shown()
        .map(|n| n.text.clone())
        .collect();
    assert!(
        texts
            .iter()
            .any(|text| text.contains("settings.broken.json")),
        "{texts:?}"
    );
    assert!(
        texts.iter().any(|text| text.contains("jobs.broken.json")),
        "{texts:?}"
    );
}

#[test]
fn a_photo_that_is_gone_says_so_and_the_rest_runs_on() {
    let config = fresh();
    let mut harness = window(config.path());
    let gone = config.path().join("gone.png");
    harness.state_mut().want(Command::AddPhotos(vec![gone]));
    let patience = Instant::now();
    let why = loop {
        harness.step();
        if let Some(super::reel::State::Failed(why)) =
            harness.state().reel.current().map(|photo| &photo.state)
        {
            break why.clone();
        }
        assert!(patience.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(10));
    };
    assert!(why.contains("gone.png"), "{why}");
    harness.key_press(Key::Num1);
    harness.run_steps(2);
    assert!(harness.state().stage.photo().is_some());
}

/// Runs frames until something is so.
fn wait_until(
    harness: &mut Harness<'static, App>,
    what: &str,
    mut so: impl FnMut(&Harness<'static, App>) -> bool,
) {
    let patience = Instant::now();
    while !so(harness) {
        assert!(patience.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(10));
        harness.step();
    }
}

#[test]
fn a_missing_model_has_a_card_is_downloaded_stopped_taken_up_used_and_removed() {
    let file = std::fs::read("weights/mimic-small.safetensors").unwrap();
    let serve = file.clone();
    let server = Server::start(move |_, request, stream| {
        if request.from().is_some() {
            return give(&serve, "\"v1\"", request, stream);
        }
        head(stream, "200 OK", &[("ETag", "\"v1\"")], serve.len())?;
        for piece in serve.chunks(serve.len() / 100) {
            std::io::Write::write_all(stream, piece)?;
            std::thread::sleep(Duration::from_millis(30));
        }
        Ok(())
    });
    let config = tempfile::tempdir().unwrap();
    let photo = config.path().join("photo.png");
    RgbaImage::new(96, 96).save(&photo).unwrap();
    let settings = Settings {
        language: Some(Language::English),
        reel: vec![settings::Photo {
            origin: settings::PhotoOrigin::File(photo),
            faces: None,
        }],
        ..Settings::default()
    };
    settings::save(config.path(), &settings).unwrap();
    let mut harness = window(config.path());
    let manifest = format!(
        "version = 1\n[[model]]\nname = \"m\"\nkind = \"animation\"\ntitle = \"a test\"\nfile = \"m.pth\"\n\
         mirrors = [\"{}\"]\nabout_bytes = {}\nlicence = \"its own\"\nconfig = \"mimic-small\"",
        server.url("/m"),
        file.len()
    );
    let manifest = Manifest::parse(&manifest, "test").unwrap();
    let weights = config.path().join("weights");
    harness.state_mut().downloads.store = Ok(Store::new(weights.clone(), manifest));
    harness.state_mut().want(Command::Go(Place::Models));
    harness.run_steps(3);
    harness.get_by_label("Download m").click();
    wait_until(&mut harness, "it does not begin", |h| {
        h.query_by_label("Cancel").is_some()
            && h.state().downloads.cards()[0]
                .progress
                .as_ref()
                .is_some_and(|p| p.done > 500_000)
    });
    harness.get_by_label("Cancel").click();
    wait_until(&mut harness, "it does not stop", |h| {
        h.query_by_label("Download m").is_some()
    });
    assert!(!weights.join("m.safetensors").exists());
    harness.get_by_label("Download m").click();
    wait_until(&mut harness, "it does not come", |h| {
        h.query_by_label("Use this one").is_some()
    });
    assert!(server.seen()[1].from().unwrap() > 500_000);
    assert!(harness.state().downloads.cards().is_empty());
    harness.get_by_label("Use this one").click();
    harness.run_steps(3);
    let path = weights.join("m.safetensors");
    assert_eq!(harness.state().settings.model.as_ref(), Some(&path));
    // The embedded one again, and the card comes back when it is removed.
    harness.get_by_label("Use this one").click();
    harness.run_steps(3);
    harness.get_by_label("Remove").click();
    harness.run_steps(3);
    assert!(!path.exists());
    // The thread of the download may need a moment to end.
    wait_until(&mut harness, "the card does not come back", |h| {
        h.query_by_label("Download m").is_some()
    });
}

#[derive(Debug)]
struct Dropped(PathBuf);

impl egui::DroppedFile for Dropped {
    fn path(&self) -> &Path {
        &self.0
    }

    fn bytes(&self) -> Result<Vec<u8>, String> {
        std::fs::read(&self.0).map_err(|e| e.to_string())
    }
}

//! The window without a display: pictures of the panels, and what a person does by accessible names.
//!
//! The networks are not started: what comes on stage is drawn here, so that every picture is the same.

mod access;
mod downloads;
mod faults;
mod pictures;
mod training;
mod trouble;

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
use super::reel::{Photo, State};
use super::{Start, jobs::JobCommand};
use crate::animate::take;
use crate::frame::Prediction;
use crate::geometry::Rect;
use crate::model::Keypoints;
use crate::pipeline::live::{Shown, Stages};
use crate::pipeline::queue::{RenderJob, State as JobState};
use crate::settings::{self, Driver, Language, Settings, Theme};

const SIZE: [f32; 2] = [1280.0, 800.0];

/// A window with the settings of `config`, its photos opened and a drawn driver seen.
fn window(config: &Path) -> Harness<'static, App> {
    sized(config, SIZE)
}

/// With networks and a driver.
fn alive(config: &Path) -> Harness<'static, App> {
    let start = Start {
        config: Some(config.to_owned()),
        compositor: crate::gpu::Choice::Cpu,
        threads: 1,
        ..Start::default()
    };
    started(start, SIZE)
}

fn sized(config: &Path, size: [f32; 2]) -> Harness<'static, App> {
    let start = Start {
        still: true,
        config: Some(config.to_owned()),
        compositor: crate::gpu::Choice::Cpu,
        ..Start::default()
    };
    let mut harness = started(start, size);
    wait(&mut harness, "the photos open", |app| {
        let photos = &app.reel.photos;
        let opened = |photo: &Photo| !matches!(photo.state, State::Loading);
        photos.iter().all(opened).then_some(())
    });
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

fn started(start: Start, size: [f32; 2]) -> Harness<'static, App> {
    Harness::builder()
        .with_size(size)
        .with_step_dt(1.0 / 60.0)
        .wgpu()
        .build_eframe(move |cc| {
            let state = cc
                .wgpu_render_state
                .as_ref()
                .expect("a Vulkan driver, such as lavapipe");
            App::new(&cc.egui_ctx, state, start).unwrap()
        })
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
        lent: None,
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
    app.stats = super::stats::Stats::still();
}

fn saved(settings: &Settings) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    settings::save(folder.path(), settings).unwrap();
    folder
}

fn fresh() -> tempfile::TempDir {
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

/// Steps until it is so.
fn wait<T>(harness: &mut Harness<'static, App>, what: &str, so: impl Fn(&App) -> Option<T>) -> T {
    let patience = Instant::now();
    loop {
        if let Some(found) = so(harness.state()) {
            return found;
        }
        assert!(
            patience.elapsed() < Duration::from_secs(120),
            "never: {what}"
        );
        std::thread::sleep(Duration::from_millis(10));
        harness.step();
    }
}

/// What the notices say.
fn said(harness: &mut Harness<'static, App>) -> Vec<String> {
    let shown = harness.state_mut().notices.shown();
    shown.map(|notice| notice.text.clone()).collect()
}

/// Drops files on the window.
fn drop_files(harness: &mut Harness<'static, App>, files: &[PathBuf]) {
    let dropped = files
        .iter()
        .map(|file| Arc::new(Dropped(file.clone())) as _);
    harness.input_mut().dropped_files = dropped.collect();
    harness.run_steps(3);
}

/// A take of a fifth of a second, as the embedded model has them.
fn recorded(folder: &Path) -> PathBuf {
    let path = folder.join("nod.mimic-take");
    let pose = |y: f32| Keypoints {
        value: (0..10).map(|i| [i as f32 / 10.0 - 0.5, y]).collect(),
        jacobian: Some(vec![[[1.0, 0.0], [0.0, 1.0]]; 10]),
    };
    let header = take::Header::of("mimic-small", &pose(0.0));
    let mut writer = take::Writer::create(&path, header).unwrap();
    for i in 0..6 {
        let at = f64::from(i) / 25.0;
        writer.push(at, &pose(i as f32 / 100.0)).unwrap();
    }
    writer.finish().unwrap();
    path
}

fn asset(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("assets")
        .join(name)
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
fn a_drop_of_both_halves_makes_a_job_and_shows_it() {
    let config = fresh();
    let mut harness = window(config.path());
    drop_files(&mut harness, &["mona-lisa.jpg", "driver.mp4"].map(asset));
    let app = harness.state();
    assert_eq!(app.place, Place::Render);
    let [job] = app.jobs.queue.jobs() else {
        panic!("{} jobs", app.jobs.queue.jobs().len());
    };
    assert!(matches!(&job.driver, Driver::Clip(path) if path.ends_with("driver.mp4")));
    wait(&mut harness, "its pictures come", |app| {
        (!app.jobs.looks.is_empty()).then_some(())
    });
    harness.get_by_role_and_label(Role::Button, "mona-lisa + driver.mp4");
    harness.get_by_label("Remove").click();
    harness.run_steps(3);
    assert!(harness.state().jobs.queue.jobs().is_empty());
}

#[test]
fn halves_wait_for_each_other_and_a_take_is_one() {
    let config = fresh();
    let take = recorded(config.path());
    let mut harness = window(config.path());
    harness.state_mut().want(Command::Go(Place::Render));
    harness.run_steps(2);
    drop_files(
        &mut harness,
        &["mona-lisa.jpg", "la-donna-velata.jpg"].map(asset),
    );
    assert!(harness.state().jobs.queue.jobs().is_empty());
    harness.get_by_label_contains("waits for a video or take");
    drop_files(&mut harness, std::slice::from_ref(&take));
    let jobs = harness.state().jobs.queue.jobs();
    assert_eq!(jobs.len(), 2, "each photo with the take");
    assert!(
        jobs.iter()
            .all(|job| job.driver == Driver::Take(take.clone()))
    );
    assert!(harness.state().jobs.half().is_none());
    let frames = wait(&mut harness, "its pictures come", |app| {
        let look = app.jobs.looks.get(&app.jobs.chosen?)?;
        look.driver.as_ref().and(look.frames)
    });
    assert_eq!(frames, (6, 25.0));
}

#[test]
fn a_take_drives_a_job_to_its_end_and_another_driver_is_chosen_for_it() {
    let config = fresh();
    let take = recorded(config.path());
    let mut harness = window(config.path());
    drop_files(&mut harness, &[asset("mona-lisa.jpg"), take]);
    harness.get_by_label_contains("Render waiting jobs").click();
    let outputs = wait(&mut harness, "it is done", |app| {
        match &app.jobs.queue.jobs()[0].state {
            JobState::Done {
                outputs, frames, ..
            } => Some((outputs.clone(), *frames)),
            JobState::Failed(why) => panic!("{why}"),
            _ => None,
        }
    });
    let (outputs, frames) = outputs;
    assert_eq!(frames, 6);
    assert!(outputs[0].exists());
    // A change makes it wait again, and what it has made is kept.
    harness.run_steps(2);
    harness.get_by_label_contains("Driver: ").click();
    harness.run_steps(3);
    harness.get_by_label("Drawn performer").click();
    harness.run_steps(3);
    let job = &harness.state().jobs.queue.jobs()[0];
    assert_eq!(
        (&job.driver, &job.state),
        (&Driver::Demo, &JobState::Waiting)
    );
    assert!(job.output != outputs[0]);
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
    wait(&mut harness, "it stops", |app| {
        (app.jobs.queue.jobs()[0].state == JobState::Cancelled).then_some(())
    });
    harness.run_steps(2);
    harness.get_by_label("Retry");
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
fn a_switch_has_its_arrow_back_while_it_is_not_as_usual() {
    let config = fresh();
    let mut harness = window(config.path());
    let usual = settings::Motion::default();
    assert!(harness.query_by_label("Reset Relative motion").is_none());
    harness.get_by_label("Relative motion").click();
    harness.run_steps(3);
    assert_eq!(harness.state().settings.motion.relative, !usual.relative);
    harness.get_by_label("Reset Relative motion").click();
    harness.run_steps(3);
    assert_eq!(harness.state().settings.motion, usual);
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

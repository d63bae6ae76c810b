//! Pictures of every panel, dark and light, in both languages: `tests/snapshots`. The photos are drawn.

use egui_kittest::SnapshotResults;

use super::*;
use crate::checkpoint::manifest::Manifest;
use crate::checkpoint::store::Store;
use crate::pipeline::queue::Step;
use crate::settings::{Blend, Enhance, Motion, PhotoOrigin};
use crate::ui::fonts;
use crate::ui::jobs::Look;
use crate::ui::training::{Curve, Seen, Trouble};

const WIDE: [f32; 2] = [1280.0, 800.0];
const NARROW: [f32; 2] = [1024.0, 640.0];

/// A look: theme and language.
#[derive(Clone, Copy)]
struct Dress(Theme, Language);

const DARK: Dress = Dress(Theme::Dark, Language::English);
const LIGHT: Dress = Dress(Theme::Light, Language::English);
const DARK_CHINESE: Dress = Dress(Theme::Dark, Language::Chinese);
const LIGHT_CHINESE: Dress = Dress(Theme::Light, Language::Chinese);

/// Somebody, drawn: a head before a hill.
fn drawn(hue: [u8; 3]) -> RgbaImage {
    RgbaImage::from_fn(480, 640, |x, y| {
        let within = |cx: f32, cy: f32, rx: f32, ry: f32| {
            ((x as f32 - cx) / rx).powi(2) + ((y as f32 - cy) / ry).powi(2) < 1.0
        };
        let [r, g, b] = if within(205.0, 250.0, 10.0, 7.0) || within(275.0, 250.0, 10.0, 7.0) {
            [40, 34, 30]
        } else if within(240.0, 325.0, 34.0, 9.0) {
            [150, 70, 60]
        } else if within(240.0, 270.0, 84.0, 112.0) {
            [222, 184, 150]
        } else if within(240.0, 250.0, 112.0, 140.0) {
            [70, 48, 36]
        } else if within(240.0, 640.0, 190.0, 240.0) {
            hue
        } else if within(120.0, 700.0, 420.0, 330.0) {
            [92, 118, 92]
        } else {
            [176, 196, 204]
        };
        image::Rgba([r, g, b, 255])
    })
}

/// Settings with drawn photos in the reel, whose faces are known.
fn dressed(Dress(theme, language): Dress) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let hues = [[148, 84, 92], [84, 104, 150], [96, 132, 96], [150, 128, 72]];
    let reel = hues.iter().enumerate().map(|(i, hue)| {
        let path = folder.path().join(format!("portrait {}.png", i + 1));
        drawn(*hue).save(&path).unwrap();
        settings::Photo {
            origin: PhotoOrigin::File(path),
            faces: Some(vec![settings::Face {
                crop: [80, 110, 400, 430],
                ratio: None,
            }]),
        }
    });
    let settings = Settings {
        theme,
        // A font for Chinese is added first.
        language: Some(Language::English),
        output: Some(PathBuf::from("/home/me/Videos/mimic")),
        reel: reel.collect(),
        ..Settings::default()
    };
    settings::save(folder.path(), &settings).unwrap();
    if language == Language::Chinese {
        assert!(
            fonts::named(CHINESE).is_some(),
            "these pictures want the font {CHINESE}: scripts/packages.sh installs it"
        );
    }
    folder
}

/// The font of the pictures in Chinese.
const CHINESE: &str = "WenQuanYi Micro Hei";

/// The window in a look; what else it should show is done by `set`.
fn look(dress: Dress, size: [f32; 2], set: impl FnOnce(&mut Harness<'static, App>)) -> Dressed {
    let config = dressed(dress);
    let mut harness = sized(config.path(), size);
    // Whatever was downloaded here.
    let published = Store::new(config.path().join("weights"), Manifest::embedded().clone());
    harness.state_mut().downloads.store = Ok(published);
    // The harness has a theme of its own.
    harness.state_mut().want(Command::Theme(dress.0));
    if dress.1 == Language::Chinese {
        fonts::add_chinese(&harness.ctx, fonts::named(CHINESE).unwrap());
        harness.run_steps(2);
        harness.state_mut().want(Command::Language(dress.1));
        harness.run_steps(3);
    }
    set(&mut harness);
    harness.run_steps(30);
    Dressed {
        harness,
        _config: config,
    }
}

/// A window, and the folder that it lives in.
struct Dressed {
    harness: Harness<'static, App>,
    _config: tempfile::TempDir,
}

/// Compares a window with its picture.
fn compare(results: &mut SnapshotResults, name: &str, mut dressed: Dressed) {
    results.add(dressed.harness.try_snapshot(name));
}

#[test]
fn the_stage() {
    let all = &mut SnapshotResults::new();
    compare(all, "live-dark", look(DARK, WIDE, |_| {}));
    compare(all, "live-light", look(LIGHT, WIDE, |_| {}));
}

#[test]
#[cfg(target_os = "linux")]
fn the_stage_in_chinese() {
    let all = &mut SnapshotResults::new();
    compare(all, "live-dark-chinese", look(DARK_CHINESE, WIDE, |_| {}));
    compare(
        all,
        "live-light-chinese-narrow",
        look(LIGHT_CHINESE, NARROW, |_| {}),
    );
}

#[test]
fn the_stage_where_there_is_little_room() {
    let all = &mut SnapshotResults::new();
    compare(all, "live-light-narrow", look(LIGHT, NARROW, |_| {}));
    let closed = |harness: &mut Harness<'static, App>| {
        harness.state_mut().want(Command::Tuning);
        harness.state_mut().settings.show.plot = true;
    };
    compare(all, "live-dark-narrow", look(DARK, NARROW, closed));
}

#[test]
fn the_stage_without_a_face_or_a_photo() {
    let all = &mut SnapshotResults::new();
    let lost = |harness: &mut Harness<'static, App>| harness.state_mut().mirror.found = false;
    compare(all, "live-lost", look(DARK, NARROW, lost));
    let waiting = |harness: &mut Harness<'static, App>| {
        harness.state_mut().want(Command::Drive(Driver::Demo));
    };
    compare(all, "live-waiting", look(LIGHT, NARROW, waiting));
    let empty = |harness: &mut Harness<'static, App>| {
        for _ in 0..4 {
            harness.state_mut().want(Command::RemovePhoto(0));
            harness.run_steps(2);
        }
    };
    compare(all, "live-empty", look(LIGHT, NARROW, empty));
}

#[test]
fn the_list_of_drivers() {
    let all = &mut SnapshotResults::new();
    let open = |harness: &mut Harness<'static, App>| {
        harness.get_by_label("Drawn performer").click();
        harness.run_steps(5);
    };
    compare(all, "drivers", look(DARK, NARROW, open));
}

#[test]
fn render_jobs() {
    let all = &mut SnapshotResults::new();
    compare(all, "render-dark", look(DARK, WIDE, jobs));
    compare(all, "render-light-narrow", look(LIGHT, NARROW, jobs));
    compare(
        all,
        "render-empty",
        look(LIGHT, NARROW, |harness| go(harness, Place::Render)),
    );
}

#[test]
#[cfg(target_os = "linux")]
fn render_jobs_in_chinese() {
    let all = &mut SnapshotResults::new();
    compare(
        all,
        "render-dark-chinese-narrow",
        look(DARK_CHINESE, NARROW, jobs),
    );
    compare(all, "render-light-chinese", look(LIGHT_CHINESE, WIDE, jobs));
}

#[test]
fn models() {
    let all = &mut SnapshotResults::new();
    compare(
        all,
        "models-dark",
        look(DARK, NARROW, |harness| go(harness, Place::Models)),
    );
    compare(
        all,
        "models-light",
        look(LIGHT, NARROW, |harness| go(harness, Place::Models)),
    );
}

#[test]
fn a_training() {
    let all = &mut SnapshotResults::new();
    compare(all, "train-dark", look(DARK, WIDE, training));
    compare(
        all,
        "train-empty",
        look(LIGHT, NARROW, |harness| go(harness, Place::Train)),
    );
}

#[test]
#[cfg(target_os = "linux")]
fn a_training_in_chinese() {
    let all = &mut SnapshotResults::new();
    let broken = |harness: &mut Harness<'static, App>| {
        training(harness);
        let why = "/home/me/runs/faces/grids/step-0000300.png: no picture".to_owned();
        let seen = harness.state_mut().training.seen.as_mut().unwrap();
        seen.trouble = Some(Trouble::Unreadable(why));
    };
    compare(
        all,
        "train-light-chinese-narrow",
        look(LIGHT_CHINESE, NARROW, broken),
    );
}

#[test]
#[cfg(target_os = "linux")]
fn models_and_sheets_in_chinese() {
    let all = &mut SnapshotResults::new();
    compare(
        all,
        "models-chinese",
        look(DARK_CHINESE, NARROW, |harness| go(harness, Place::Models)),
    );
    compare(
        all,
        "settings-chinese",
        look(LIGHT_CHINESE, NARROW, |h| open(h, Command::Settings)),
    );
    compare(
        all,
        "keys-chinese",
        look(DARK_CHINESE, NARROW, |h| open(h, Command::Help)),
    );
}

#[test]
fn sheets() {
    let all = &mut SnapshotResults::new();
    compare(
        all,
        "settings",
        look(DARK, NARROW, |h| open(h, Command::Settings)),
    );
    compare(all, "keys", look(LIGHT, NARROW, |h| open(h, Command::Help)));
}

#[test]
fn notices_and_what_a_drop_will_do() {
    let all = &mut SnapshotResults::new();
    let notices = |harness: &mut Harness<'static, App>| {
        let app = harness.state_mut();
        let take = PathBuf::from("/home/me/Videos/mimic/take-001.mimic-take");
        let text = format!("{} {}", app.words.take_saved, take.display());
        let play = Command::Drive(Driver::Take(take));
        app.notices.offer(text, app.words.play_take, play);
        app.notices
            .warn("the camera Integrated Camera is in use by another program".to_owned());
    };
    compare(all, "notices-dark", look(DARK, NARROW, notices));
    compare(all, "notices-light", look(LIGHT, NARROW, notices));
    let hover = |harness: &mut Harness<'static, App>| {
        let hovered = ["photo.jpg", "clip.mp4"].map(|name| egui::HoveredFile {
            path: Some(PathBuf::from(name)),
            ..Default::default()
        });
        harness.input_mut().hovered_files = hovered.to_vec();
    };
    compare(all, "drop", look(DARK, NARROW, hover));
}

fn go(harness: &mut Harness<'static, App>, place: Place) {
    harness.state_mut().want(Command::Go(place));
    harness.run_steps(3);
}

fn open(harness: &mut Harness<'static, App>, sheet: Command) {
    harness.state_mut().want(sheet);
    harness.run_steps(3);
}

/// A run after 300 steps, whose curves and pictures are drawn.
fn training(harness: &mut Harness<'static, App>) {
    go(harness, Place::Train);
    let app = harness.state_mut();
    app.settings.run = Some(PathBuf::from("/home/me/runs/faces"));
    let falls: [(&str, f32, f32); 5] = [
        ("loss/sum", 57.4, 24.2),
        ("loss/perceptual", 48.1, 20.6),
        ("loss/equivariance_value", 7.2, 2.9),
        ("loss/equivariance_jacobian", 2.1, 0.7),
        ("steps per second", 0.82, 0.85),
    ];
    let curves = falls.map(|(tag, from, to)| {
        let mut curve = Curve::new(tag.to_owned());
        for step in 1..=300 {
            let way = (-(step as f32) / 70.0).exp();
            // Never quite the same, and yet in every picture.
            let noise = ((step * step) % 17) as f32 / 17.0 - 0.5;
            let value = to + (from - to) * way + noise * 0.04 * from;
            curve.push(step, value);
        }
        curve
    });
    app.training.seen = Some(Seen {
        curves: curves.to_vec(),
        trouble: None,
    });
    let side = 128;
    let mut sheet = RgbaImage::from_pixel(16 * 130, 2 * 130, image::Rgba([255; 4]));
    for (i, hue) in (0..32).zip(
        [[148, 84, 92], [84, 104, 150], [96, 132, 96]]
            .iter()
            .cycle(),
    ) {
        let cell = image::imageops::thumbnail(&drawn(*hue), side, side);
        image::imageops::replace(&mut sheet, &cell, i % 16 * 130 + 1, i / 16 * 130 + 1);
    }
    app.training.grid.show(&sheet);
    app.training.grid_name = Some("step-0000300.png".to_owned());
    harness.run_steps(3);
}

/// A job of each state, whose pictures are drawn.
fn jobs(harness: &mut Harness<'static, App>) {
    let outputs = |name: &str| vec![PathBuf::from("/home/me/Videos/mimic").join(name)];
    let states = [
        (
            "interview.mov",
            JobState::Running(Step {
                done: 412,
                total: Some(1860),
                fps: 26.8,
            }),
        ),
        ("song.mp4", JobState::Waiting),
        (
            "take-003.mimic-take",
            JobState::Done {
                outputs: outputs("portrait 3.mp4"),
                frames: 300,
                seconds: 11.0,
            },
        ),
        (
            "old.avi",
            JobState::Failed(
                "/home/me/old.avi breaks off after 12 frames: fetch or save it again".to_owned(),
            ),
        ),
        ("dance.webm", JobState::Cancelled),
    ];
    let ctx = harness.ctx.clone();
    let app = harness.state_mut();
    let texture = |name: &str, picture: &RgbaImage| {
        let size = [picture.width() as usize, picture.height() as usize];
        let image = egui::ColorImage::from_rgba_unmultiplied(size, picture.as_raw());
        ctx.load_texture(name, image, egui::TextureOptions::LINEAR)
    };
    let hues = [
        [148, 84, 92],
        [84, 104, 150],
        [96, 132, 96],
        [150, 128, 72],
        [96, 132, 96],
    ];
    let mut ids = Vec::new();
    for (i, ((driver, _), hue)) in states.iter().zip(hues).enumerate() {
        let driver = match *driver {
            name if name.ends_with("take") => Driver::Take(PathBuf::from(name)),
            name => Driver::Clip(PathBuf::from(name)),
        };
        let job = RenderJob {
            id: 0,
            photo: PhotoOrigin::File(PathBuf::from(format!("portrait {}.png", i + 1))),
            faces: None,
            driver,
            blend: Blend::default(),
            motion: Motion::default(),
            enhance: Enhance::default(),
            model: None,
            device: "auto".to_owned(),
            output: PathBuf::from("/home/me/Videos/mimic/portrait.mp4"),
            state: JobState::Waiting,
        };
        let id = app.jobs.queue.add(job).unwrap();
        let look = Look {
            photo: Some(texture("photo", &drawn(hue))),
            driver: (i != 2).then(|| texture("driver", &drawn([120, 90, 150]))),
            frames: Some((1860, 30.0)),
        };
        app.jobs.looks.insert(id, look);
        ids.push(id);
    }
    for (id, (_, state)) in ids.iter().zip(states) {
        app.jobs.queue.edit(*id, |job| job.state = state);
    }
    app.jobs.chosen = Some(ids[1]);
    app.jobs.frame = 412;
    app.jobs.preview.show(&drawn([84, 104, 150]));
    app.jobs.shown = Some(Ok(ids[1]));
    go(harness, Place::Render);
}

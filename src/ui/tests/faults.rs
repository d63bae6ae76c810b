//! What goes wrong while the window is open: it is said, the rest goes on, and nothing is lost.

use eframe::egui::ViewportCommand;

use super::*;
use crate::pipeline::live::{Event, Quality};
use crate::settings::{Hold, Loaded, Photo, PhotoOrigin};
use crate::ui::notices::Topic;
use crate::ui::screenshot;

#[test]
fn when_the_adapter_is_lost_the_window_asks_to_be_opened_anew_and_forgets_nothing() {
    let config = fresh();
    let mut harness = window(config.path());
    let mut blend = harness.state().settings.blend;
    blend.ratio = 0.77;
    harness.state_mut().want(Command::Blend(blend));
    harness.step();
    let device = harness.state().device.clone();
    device.device.destroy();
    let _ = device.device.poll(wgpu::PollType::wait_indefinitely());
    assert!(device.lost().is_some());
    // Nothing panics, however many frames are still asked for.
    let mut closed = false;
    for _ in 0..3 {
        harness.step();
        let asked = &harness.output().viewport_output;
        closed |= asked
            .values()
            .any(|viewport| viewport.commands.contains(&ViewportCommand::Close));
    }
    assert!(closed);
    let Loaded::Kept(kept) = settings::load(config.path()) else {
        panic!("the settings are not there")
    };
    assert_eq!(kept.blend.ratio, 0.77);
    assert_eq!(kept.reel.len(), harness.state().reel.photos.len());
}

#[test]
fn the_window_after_a_lost_adapter_says_why_it_is_new() {
    let config = fresh();
    let start = Start {
        still: true,
        config: Some(config.path().to_owned()),
        lost: Some("the card fell off the bus".to_owned()),
        ..Start::default()
    };
    let mut harness = started(start, SIZE);
    let texts = said(&mut harness);
    assert!(texts.iter().any(|text| text.contains("fell off the bus")));
}

#[test]
fn a_photo_whose_file_is_deleted_stays_on_stage_and_that_is_said_until_it_is_back() {
    let config = tempfile::tempdir().unwrap();
    let file = config.path().join("grandmother.png");
    let picture = RgbaImage::from_pixel(300, 200, image::Rgba([90, 120, 60, 255]));
    picture.save(&file).unwrap();
    let settings = Settings {
        language: Some(Language::English),
        reel: vec![Photo {
            origin: PhotoOrigin::File(file.clone()),
            faces: None,
        }],
        ..Settings::default()
    };
    settings::save(config.path(), &settings).unwrap();
    let mut harness = window(config.path());
    assert_eq!(said(&mut harness), Vec::<String>::new());
    let aside = config.path().join("aside.png");
    std::fs::rename(&file, &aside).unwrap();
    wait(&mut harness, "it is said", |app| {
        app.notices.about(Topic::Photo(0)).then_some(())
    });
    assert!(said(&mut harness)[0].contains("grandmother"));
    let app = harness.state_mut();
    assert_eq!(app.stage.photo(), Some(0));
    assert_eq!(app.stage.image().unwrap().unwrap().dimensions(), (300, 200));
    assert_eq!(app.reel.to_settings(), settings.reel, "it is not forgotten");
    std::fs::rename(&aside, &file).unwrap();
    wait(&mut harness, "it is no longer said", |app| {
        (!app.notices.about(Topic::Photo(0))).then_some(())
    });
}

#[test]
fn dead_networks_are_said_once_and_can_be_started_again_while_the_photo_stays() {
    let config = fresh();
    let mut harness = window(config.path());
    harness.state_mut().taking = true;
    harness
        .state_mut()
        .hear(Event::Died("index out of bounds".to_owned()));
    harness.run_steps(3);
    let texts = said(&mut harness);
    assert_eq!(texts.len(), 1, "{texts:?}");
    assert!(texts[0].contains("index out of bounds"));
    assert!(!harness.state().taking);
    assert!(harness.state().stage.photo().is_some());
    harness.get_by_label("Start again").click();
    harness.run_steps(3);
    assert_eq!(harness.state().model, ModelState::Loading);
}

#[test]
fn a_model_chosen_away_from_the_stage_starts_no_driver_until_somebody_looks() {
    let config = fresh();
    let mut harness = alive(config.path());
    harness.step();
    assert!(harness.state().driver.is_some());
    harness.state_mut().want(Command::Go(Place::Models));
    harness.state_mut().want(Command::UseModel(None));
    harness.step();
    assert!(harness.state().driver.is_none());
    harness.state_mut().want(Command::Go(Place::Live));
    harness.step();
    assert!(harness.state().driver.is_some());
    // And it all comes to life.
    wait(&mut harness, "the demo moves the photo", |app| {
        (app.stats.latency > 0.0).then_some(())
    });
}

#[test]
fn what_the_frame_rate_costs_is_said_in_both_languages() {
    for (language, expected) in [
        (
            Language::English,
            [
                "Holding 30 fps: half size, bf16",
                "Slower than 30 fps: tiny",
            ],
        ),
        (
            Language::Chinese,
            ["保持 30 帧/秒: 半尺寸, bf16", "低于 30 帧/秒: tiny"],
        ),
    ] {
        let config = saved(&Settings {
            language: Some(language),
            hold: Hold {
                on: true,
                fps: 30.0,
            },
            ..Settings::default()
        });
        let mut harness = window(config.path());
        assert_eq!(harness.state().quality_text(), None);
        let mut quality = Quality {
            lowered: true,
            half: true,
            bf16: true,
            holds: true,
            device: "CPU (drawn)".to_owned(),
            ..Quality::default()
        };
        harness.state_mut().hear(Event::Quality(quality.clone()));
        harness.run_steps(2);
        harness.get_by_label(expected[0]);
        quality = Quality {
            model: Some("tiny".to_owned()),
            half: false,
            bf16: false,
            holds: false,
            ..quality
        };
        harness.state_mut().hear(Event::Quality(quality));
        harness.run_steps(2);
        harness.get_by_label(expected[1]);
    }
}

#[test]
fn a_photo_larger_than_any_screen_is_shown_pixel_for_pixel() {
    let config = tempfile::tempdir().unwrap();
    let file = config.path().join("large.png");
    let fine = RgbaImage::from_fn(3000, 2400, |x, y| {
        let level = if (x + y) % 2 == 0 { 255 } else { 0 };
        image::Rgba([level, level, level, 255])
    });
    fine.save(&file).unwrap();
    let settings = Settings {
        language: Some(Language::English),
        reel: vec![Photo {
            origin: PhotoOrigin::File(file),
            faces: None,
        }],
        ..Settings::default()
    };
    settings::save(config.path(), &settings).unwrap();
    let harness = window(config.path());
    let stage = &harness.state().stage;
    assert_eq!(stage.size(), Some((3000, 2400)));
    let (_, size) = stage.picture.texture().unwrap();
    assert_eq!((size.x, size.y), (3000.0, 2400.0));
    // A chequerboard of single pixels is grey from afar; without its halves it would be a pattern. (The
    // pictures of the tests are sampled by a way of their own, so this one is drawn as the window is.)
    let shot = config.path().join("window.png");
    let start = Start {
        still: true,
        config: Some(config.path().to_owned()),
        ..Start::default()
    };
    screenshot(start, [1280.0, 800.0], Duration::from_secs(3), &shot).unwrap();
    let picture = image::open(&shot).unwrap().to_luma8();
    let part = image::imageops::crop_imm(&picture, 400, 200, 60, 60).to_image();
    let (least, most) = (part.iter().min().unwrap(), part.iter().max().unwrap());
    assert!(
        most - least < 30 && (90..170).contains(most),
        "{least} to {most}"
    );
}

//! A real window on a real (virtual) screen: Xvfb, a Vulkan driver, the program as a person starts it, and
//! xdotool for hands. What the screen shows is looked at pixel by pixel.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod clipboard;
mod drag;
mod screen;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use image::RgbImage;

use clipboard::Clipboard;
use drag::Drag;
use screen::{Area, Screen, difference};

const SIZE: [u32; 2] = [1280, 800];
/// The Mona Lisa's face, as the window shows it first.
const FACE: Area = [480, 140, 110, 150];
/// Her hair and the sky over it: within the crop, outside a small mask.
const HAIR: Area = [440, 95, 190, 40];
/// Her hands: nothing moves there.
const HANDS: Area = [430, 560, 180, 100];
/// The slider of the ratio: its rail from end to end.
const RAIL: Area = [1001, 111, 263, 18];

#[test]
fn the_window_opens_moves_answers_and_remembers() {
    let began = Instant::now();
    let mut screen = Screen::open(SIZE, &["--demo", "--threads", "1"]);
    let first = screen.wait("the painting is on stage", HANDS, lit);
    eprintln!("first picture after {:.2} s", began.elapsed().as_secs_f64());
    // What lies over the picture fades away, and the face moves.
    let before = screen.area(FACE);
    screen.wait("the face moves", FACE, |now| {
        (difference(now, &before) > 3.0).then_some(())
    });
    assert!(
        difference(&screen.area(HANDS), &first) < 1.0,
        "only the face moves"
    );

    // The ratio changes the mask: a small one leaves the hair alone, a large one moves it.
    let end = |x: u32| [x, RAIL[1] + RAIL[3] / 2];
    let middle = RAIL[0] + RAIL[2] / 2;
    slide(&screen, end(middle), end(RAIL[0] + 2));
    away(&screen);
    still(&mut screen, HAIR);
    slide(&screen, end(RAIL[0] + 8), end(RAIL[0] + RAIL[2] - 2));
    away(&screen);
    let small = screen.area(HAIR);
    screen.wait("the hair moves, too", HAIR, |now| {
        (difference(now, &small) > 1.0).then_some(())
    });

    answers(&screen);
    // What it is left at is asked of the settings.
    slide(&screen, end(RAIL[0] + 60), end(RAIL[0] + RAIL[2] - 2));

    // Without a window manager nobody gives the window the keyboard.
    screen.hand(&["search", "--name", "mimic", "windowfocus"]);
    screen.hand(&["key", "2"]);
    screen.wait("another photo is on stage", HANDS, |now| {
        (difference(now, &first) > 10.0).then_some(())
    });
    drag::close(&screen.display);
    assert!(screen.ended().success());
    let settings = std::fs::read_to_string(screen.config("settings.json")).unwrap();
    let settings: serde_json::Value = serde_json::from_str(&settings).unwrap();
    assert_eq!(settings["on_stage"], 1);
    assert!(
        settings["blend"]["ratio"].as_f64().unwrap() > 0.4,
        "{settings}"
    );
}

#[test]
fn files_dropped_on_the_window_join_the_reel_and_become_jobs() {
    let mut screen = Screen::open(SIZE, &["--demo", "--threads", "1"]);
    let before = screen.wait("the painting is on stage", HANDS, lit);
    // The dashes of the sheet that says what a drop does.
    let edge = [24, 22, 1200, 5];
    let dashes = |now: &RgbImage| {
        let accent = |p: &&image::Rgb<u8>| p.0[0] > 200 && p.0[2] < 120;
        (now.pixels().filter(accent).count() > 300).then_some(())
    };
    let photo = file("assets/girl-with-a-pearl-earring.jpg");
    let drag = Drag::over(&screen.display, &[&photo], (640, 400));
    screen.wait("the window says what a drop does", edge, dashes);
    drag.drop();
    screen.wait("the photo is on stage", HANDS, |now| {
        (difference(now, &before) > 10.0).then_some(())
    });

    let clip = file("assets/driver.mp4");
    Drag::over(&screen.display, &[&photo, &clip], (640, 400)).drop();
    let jobs = screen.config("jobs.json");
    screen.wait("there is a job", HANDS, |_| {
        let jobs: serde_json::Value = serde_json::from_slice(&std::fs::read(&jobs).ok()?).ok()?;
        let job = &jobs.as_array()?.first()?;
        job["photo"]["File"]
            .as_str()
            .filter(|name| name.ends_with("earring.jpg"))?;
        job["driver"]["Clip"]
            .as_str()
            .filter(|name| name.ends_with("driver.mp4"))?;
        Some(())
    });
}

#[test]
fn a_picture_that_was_copied_elsewhere_is_pasted() {
    let mut screen = Screen::open(SIZE, &["--demo", "--threads", "1"]);
    let before = screen.wait("the painting is on stage", HANDS, lit);
    let picture = image::open(file("assets/la-donna-velata.jpg")).unwrap();
    let mut png = std::io::Cursor::new(Vec::new());
    let small = picture.thumbnail(200, 300);
    small.write_to(&mut png, image::ImageFormat::Png).unwrap();
    let copied = Clipboard::with(&screen.display, png.into_inner());
    screen.hand(&["search", "--name", "mimic", "windowfocus"]);
    screen.hand(&["key", "ctrl+v"]);
    screen.wait("it is on stage", HANDS, |now| {
        (difference(now, &before) > 10.0).then_some(())
    });
    drop(copied);
    let kept = screen.folder.path().join("Videos/pasted-001.png");
    assert_eq!(
        image::image_dimensions(kept).unwrap(),
        (small.width(), small.height())
    );
}

/// Builds the Vulkan layer that loses the graphics card, and its manifest beside it.
fn build_layer(folder: &std::path::Path) {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/lose.c");
    let library = folder.join("liblose.so");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-Wall", "-Werror", source, "-o"])
        .arg(&library)
        .status();
    assert!(built.expect("cc is what Rust links with").success());
    let manifest = serde_json::json!({
        "file_format_version": "1.2.0",
        "layer": {
            "name": "VK_LAYER_MIMIC_lose", "type": "GLOBAL", "library_path": library,
            "api_version": "1.3.0", "implementation_version": "1", "description": "loses the card",
        },
    });
    std::fs::write(folder.join("lose.json"), manifest.to_string()).unwrap();
}

#[test]
fn when_the_graphics_card_is_lost_the_window_is_opened_anew_says_so_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    build_layer(folder.path());
    let (place, lose) = (folder.path().to_owned(), folder.path().join("lose"));
    let environment = [
        ("VK_LAYER_PATH", place.as_path()),
        ("VK_INSTANCE_LAYERS", "VK_LAYER_MIMIC_lose".as_ref()),
        ("LOSE_FILE", lose.as_path()),
    ];
    let arguments = ["--demo", "--threads", "1"];
    let looks = ["Dark", "English"];
    let mut screen = Screen::open_in(folder, SIZE, looks, &arguments, &environment);
    screen.wait("the painting is on stage", HANDS, lit);
    // A card that is lost at once, again and again, would be given up.
    std::thread::sleep(Duration::from_secs(6));
    std::fs::write(&lose, "").unwrap();
    // The program starts itself anew in its own place.
    let environment = format!("/proc/{}/environ", screen.window.id());
    screen.wait("it starts anew", HANDS, |_| {
        let environment = std::fs::read(&environment).unwrap_or_default();
        let anew = |at: &[u8]| at == b"MIMIC_ADAPTER_LOST=";
        environment.windows(19).any(anew).then_some(())
    });
    assert!(!lose.exists());
    screen.wait("the painting is on stage again", HANDS, lit);
    let again = screen.area(FACE);
    screen.wait("the face moves", FACE, |now| {
        (difference(now, &again) > 1.5).then_some(())
    });
    assert!(screen.window.try_wait().unwrap().is_none(), "it still runs");
}

/// The pictures in `screenshots/`, and more of them in `$MIMIC_SCREENSHOTS` if that names a folder. `$MIMIC_RUN` is a run of
/// `mimic train`.
#[test]
#[ignore = "run by make screenshots"]
fn screenshots() {
    let folder =
        std::env::var_os("MIMIC_SCREENSHOTS").map_or_else(|| file("screenshots"), PathBuf::from);
    let all = folder != file("screenshots");
    std::fs::create_dir_all(&folder).unwrap();
    let save = |screen: &Screen, name: &str| {
        let picture = image::DynamicImage::from(screen.picture());
        let mut file = std::fs::File::create(folder.join(format!("{name}.jpg"))).unwrap();
        let quality = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut file, 88);
        picture.write_with_encoder(quality).unwrap();
    };
    let looks = [
        ([1440, 900], "Dark", "English"),
        ([1024, 640], "Light", "English"),
        ([1280, 800], "Light", "Chinese"),
        ([1920, 1080], "Dark", "Chinese"),
    ];
    for (size, theme, language) in looks.into_iter().take(if all { 4 } else { 1 }) {
        let name = |place: &str| match all {
            true => format!("{place}-{}-{theme}-{language}", size[0]).to_lowercase(),
            false => place.to_owned(),
        };
        let home = tempfile::tempdir().unwrap();
        let run = std::env::var_os("MIMIC_RUN").expect("scripts/screenshots.sh trains one");
        std::os::unix::fs::symlink(run, home.path().join(screen::RUN)).unwrap();
        let place = home.path().to_owned();
        let environment = [("HOME", place.as_path())];
        let looks = [theme, language];
        let mut screen = Screen::open_in(home, size, looks, &["--demo"], &environment);
        let [width, height] = size;
        let middle = [width / 2 - 100, height / 2, 100, 60];
        screen.wait("the painting is on stage", middle, lit);
        screen.hand(&["search", "--name", "mimic", "windowfocus"]);
        // The performer turns his head, while the mouse keeps what lies over the picture.
        let patience = Instant::now();
        while patience.elapsed() < Duration::from_secs(9) {
            let x = (width / 2 + u32::from(patience.elapsed().as_millis().is_multiple_of(2)))
                .to_string();
            screen.hand(&["mousemove", &x, "60"]);
            std::thread::sleep(Duration::from_millis(300));
        }
        save(&screen, &name("live"));
        let clip = file("assets/driver.mp4");
        for photo in ["american-gothic.jpg", "girl-with-a-pearl-earring.jpg"] {
            let photo = file("assets").join(photo);
            let at = (width as u16 / 2, height as u16 / 2);
            Drag::over(&screen.display, &[&photo, &clip], at).drop();
        }
        std::thread::sleep(Duration::from_secs(8));
        save(&screen, &name("render"));
        let places = [
            ("F4", "models"),
            ("F5", "train"),
            ("F2", "again"),
            ("F1", "keys"),
        ];
        for (key, place) in places.into_iter().take(if all { 4 } else { 2 }) {
            screen.hand(&["key", key]);
            std::thread::sleep(Duration::from_secs(4));
            save(&screen, &name(place));
        }
    }
}

/// The window answers while the networks are busy: the handle of a slider is where the hand is within a
/// tenth of a second. A machine that does something else now and then may be late now and then.
fn answers(screen: &Screen) {
    let began = Instant::now();
    let y = (RAIL[1] + RAIL[3] / 2).to_string();
    let mut times = Vec::new();
    let in_time = |times: &[f64]| times.iter().filter(|&&ms| ms < 100.0).count() >= 5;
    while !in_time(&times) {
        assert!(
            began.elapsed() < Duration::from_secs(120),
            "answers took {times:.0?} ms"
        );
        let there = RAIL[0] + if times.len() % 2 == 0 { 60 } else { 200 };
        let handle = [there - 3, RAIL[1] + RAIL[3] / 2 - 3, 6, 6];
        let before = screen.area(handle);
        // xdotool's own start is counted, too.
        let asked = Instant::now();
        let mut hand = screen.start_hand(&["mousemove", &there.to_string(), &y, "click", "1"]);
        while difference(&screen.area(handle), &before) < 5.0 {
            assert!(
                asked.elapsed() < Duration::from_secs(20),
                "the slider does not follow"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        times.push(asked.elapsed().as_secs_f64() * 1000.0);
        assert!(hand.wait().unwrap().success());
        std::thread::sleep(Duration::from_millis(50));
    }
    eprintln!("the slider answered after {times:.0?} ms");
}

/// Drags the ratio's handle until it is there: a press, a way and a release that come within one of the window's frames, as
/// on a machine that does much else, are no drag to it.
fn slide(screen: &Screen, from: [u32; 2], to: [u32; 2]) {
    let mut at = None;
    for _ in 0..20 {
        screen.drag(from, to);
        let asked = Instant::now();
        while asked.elapsed() < Duration::from_secs(1) {
            at = handle(screen);
            if at.is_some_and(|x| x.abs_diff(to[0]) < 12) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    panic!("the slider's handle is at {at:?}, not at {}", to[0]);
}

/// The middle of the ratio's handle: it stands out of the rail, which is four pixels high.
fn handle(screen: &Screen) -> Option<u32> {
    let rail = screen.area(RAIL);
    let ground = *rail.get_pixel(0, 0);
    let high = |x: &u32| {
        let other = |y: &u32| (0..3).any(|c| rail.get_pixel(*x, *y)[c].abs_diff(ground[c]) > 24);
        (0..RAIL[3]).filter(other).count() > 6
    };
    let columns: Vec<u32> = (0..RAIL[2]).filter(high).collect();
    Some(RAIL[0] + (columns.first()? + columns.last()?) / 2)
}

/// Moves the mouse to where it shows nothing, and waits until what lies over the picture is gone.
fn away(screen: &Screen) {
    screen.hand(&["mousemove", "640", "20"]);
    std::thread::sleep(Duration::from_secs(4));
}

/// Nothing moves there for two seconds, at some time.
fn still(screen: &mut Screen, area: Area) {
    let mut last = (screen.area(area), Instant::now());
    screen.wait("the hair is still", area, |now| {
        if difference(now, &last.0) > 0.3 {
            last = (now.clone(), Instant::now());
        }
        (last.1.elapsed() > Duration::from_secs(2)).then_some(())
    });
}

fn lit(picture: &RgbImage) -> Option<RgbImage> {
    let dark = RgbImage::new(picture.width(), picture.height());
    (difference(picture, &dark) > 25.0).then(|| picture.clone())
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

#[test]
fn without_a_display_one_sentence_says_what_to_do() {
    let output = Command::new(env!("CARGO_BIN_EXE_mimic"))
        .env_remove("DISPLAY")
        .env_remove("WAYLAND_DISPLAY")
        .env_remove("WAYLAND_SOCKET")
        .env("MIMIC_CONFIG", tempfile::tempdir().unwrap().path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("mimic animate"), "{text}");
}

#[test]
fn the_window_is_drawn_without_a_display_too() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("window.png");
    let output = Command::new(env!("CARGO_BIN_EXE_mimic"))
        .args(["--demo", "--after", "6", "--screenshot"])
        .arg(&file)
        .env_remove("DISPLAY")
        .env_remove("WAYLAND_DISPLAY")
        .env_remove("XDG_RUNTIME_DIR")
        .env("MIMIC_CONFIG", folder.path().join("config"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert_eq!(text, "", "nothing to complain of");
    let picture = image::open(&file).unwrap().to_rgb8();
    assert_eq!(picture.dimensions(), (1440, 900));
    let hands = image::imageops::crop_imm(&picture, 500, 500, 200, 200).to_image();
    assert!(lit(&hands).is_some(), "the painting is there");
}

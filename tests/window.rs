//! A real window on a real (virtual) screen: Xvfb, a Vulkan driver, the program as a person starts it, and
//! xdotool for hands. Pictures of the screen are looked at pixel by pixel.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use image::RgbImage;

const WIDTH: u32 = 1280;
const HEIGHT: u32 = 800;

/// An X server of its own, and the window in it.
struct Screen {
    server: Child,
    window: Child,
    display: String,
    folder: tempfile::TempDir,
}

impl Screen {
    fn open(arguments: &[&str]) -> Self {
        Self::open_in(tempfile::tempdir().unwrap(), arguments, &[])
    }

    fn open_in(
        folder: tempfile::TempDir,
        arguments: &[&str],
        environment: &[(&str, &std::path::Path)],
    ) -> Self {
        let config = folder.path().join("config");
        std::fs::create_dir_all(&config).unwrap();
        let language = r#"{"version":1,"language":"English","window":[1280.0,800.0]}"#;
        std::fs::write(config.join("settings.json"), language).unwrap();
        let shared = folder.path().join("screen");
        std::fs::create_dir_all(&shared).unwrap();
        // The server chooses a free display and says which.
        let mut server = Command::new("Xvfb")
            .args(["-displayfd", "1", "-screen", "0"])
            .arg(format!("{WIDTH}x{HEIGHT}x24"))
            .arg("-fbdir")
            .arg(&shared)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("Xvfb is installed by scripts/packages.sh");
        let mut line = String::new();
        let mut said = std::io::BufReader::new(server.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut said, &mut line).unwrap();
        let display = format!(":{}", line.trim());
        let window = Command::new(env!("CARGO_BIN_EXE_mimic"))
            .args(arguments)
            .env("DISPLAY", &display)
            .env("MIMIC_CONFIG", &config)
            .env("XDG_RUNTIME_DIR", folder.path())
            .env_remove("WAYLAND_DISPLAY")
            .envs(environment.iter().copied())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            server,
            window,
            display,
            folder,
        }
    }

    /// What the screen shows: the server's frame buffer, an XWD file.
    fn picture(&self) -> RgbImage {
        let bytes = std::fs::read(self.folder.path().join("screen/Xvfb_screen0")).unwrap();
        let number =
            |at: usize| u32::from_be_bytes(bytes[4 * at..4 * at + 4].try_into().unwrap()) as usize;
        let (header, width, height, row, colours) =
            (number(0), number(4), number(5), number(12), number(19));
        let pixels = &bytes[header + 12 * colours..];
        RgbImage::from_fn(width as u32, height as u32, |x, y| {
            let at = y as usize * row + 4 * x as usize;
            image::Rgb([pixels[at + 2], pixels[at + 1], pixels[at]])
        })
    }

    fn hand(&self, arguments: &[&str]) {
        let status = Command::new("xdotool")
            .args(arguments)
            .env("DISPLAY", &self.display)
            .status();
        assert!(
            status
                .expect("xdotool is installed by scripts/packages.sh")
                .success()
        );
        std::thread::sleep(Duration::from_millis(150));
    }

    /// Looks until `what` is so.
    fn wait(&self, what: &str, patience: u64, so: impl Fn(&RgbImage) -> bool) -> RgbImage {
        let began = Instant::now();
        loop {
            let picture = self.picture();
            if so(&picture) {
                return picture;
            }
            assert!(
                began.elapsed() < Duration::from_secs(patience),
                "never: {what}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        for child in [&mut self.window, &mut self.server] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// How different a part of two pictures is: mean of the channels' differences.
fn difference(a: &RgbImage, b: &RgbImage, [x, y, width, height]: [u32; 4]) -> f64 {
    let mut sum = 0u64;
    for (x, y) in (x..x + width).flat_map(|x| (y..y + height).map(move |y| (x, y))) {
        let (a, b) = (a.get_pixel(x, y).0, b.get_pixel(x, y).0);
        sum += a
            .iter()
            .zip(b)
            .map(|(a, b)| u64::from(a.abs_diff(b)))
            .sum::<u64>();
    }
    sum as f64 / f64::from(3 * width * height)
}

/// Around the painted face, as the window shows it first.
const FACE: [u32; 4] = [450, 110, 140, 200];
/// The painting's hands: nothing moves there.
const HANDS: [u32; 4] = [430, 560, 180, 100];
/// The slider of the ratio.
const RAIL: [u32; 4] = [1000, 115, 270, 24];

#[test]
fn the_window_opens_moves_answers_and_closes() {
    let began = Instant::now();
    let mut screen = Screen::open(&["--demo", "--threads", "1"]);
    let lit = |picture: &RgbImage| picture.get_pixel(510, 600).0 != [0, 0, 0];
    let first = screen.wait("the painting is on stage", 60, |picture| {
        lit(picture) && difference(picture, &RgbImage::new(WIDTH, HEIGHT), HANDS) > 5.0
    });
    eprintln!("first picture after {:.2} s", began.elapsed().as_secs_f64());
    // What lies over the picture fades away first.
    std::thread::sleep(Duration::from_millis(4500));
    let first = {
        drop(first);
        screen.picture()
    };
    let moved = screen.wait("the face moves", 120, |picture| {
        difference(picture, &first, FACE) > 1.5
    });
    assert!(
        difference(&moved, &first, HANDS) < 0.5,
        "only the face moves"
    );

    // The window answers while the networks are busy: the slider follows the hand.
    let before = screen.picture();
    screen.hand(&["mousemove", "1090", "126", "mousedown", "1"]);
    screen.hand(&["mousemove", "1240", "126"]);
    let asked = Instant::now();
    screen.wait("the slider follows", 10, |picture| {
        difference(picture, &before, RAIL) > 1.0
    });
    eprintln!(
        "the slider answered after {:.0} ms",
        asked.elapsed().as_secs_f64() * 1000.0
    );
    screen.hand(&["mouseup", "1"]);
    let wide = screen.picture();
    assert!(difference(&wide, &before, RAIL) > 1.0);

    // Without a window manager nobody gives the window the keyboard.
    screen.hand(&["search", "--name", "mimic", "windowfocus"]);
    screen.hand(&["key", "2"]);
    screen.wait("another photo is on stage", 60, |picture| {
        difference(picture, &wide, HANDS) > 10.0
    });
    assert!(screen.window.try_wait().unwrap().is_none(), "it still runs");
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
    let mut screen = Screen::open_in(folder, &["--demo", "--threads", "1"], &environment);
    let black = RgbImage::new(WIDTH, HEIGHT);
    let painting = |picture: &RgbImage| difference(picture, &black, HANDS) > 5.0;
    screen.wait("the painting is on stage", 60, painting);
    // A card that is lost at once, again and again, would be given up.
    std::thread::sleep(Duration::from_secs(6));
    std::fs::write(&lose, "").unwrap();
    // The program starts itself anew in its own place.
    let environment = format!("/proc/{}/environ", screen.window.id());
    screen.wait("it starts anew", 60, |_| {
        let environment = std::fs::read(&environment).unwrap_or_default();
        environment
            .windows(19)
            .any(|at| at == b"MIMIC_ADAPTER_LOST=")
    });
    assert!(!lose.exists());
    let again = screen.wait("the painting is on stage again", 60, painting);
    screen.wait("the face moves", 120, |picture| {
        difference(picture, &again, FACE) > 1.5
    });
    assert!(screen.window.try_wait().unwrap().is_none(), "it still runs");
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
    let dark = RgbImage::new(1440, 900);
    assert!(
        difference(&picture, &dark, [500, 500, 200, 200]) > 5.0,
        "the painting is there"
    );
}

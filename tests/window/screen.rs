//! A virtual screen with the program on it: Xvfb, xdotool for hands, and the frame buffer for eyes.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use image::RgbImage;

/// Left, top, width, height.
pub(crate) type Area = [u32; 4];

/// Where in its folder a training run is looked for.
pub(crate) const RUN: &str = "faces";

/// An X server of its own, and the window in it.
pub(crate) struct Screen {
    pub(crate) display: String,
    pub(crate) folder: tempfile::TempDir,
    server: Child,
    pub(crate) window: Child,
    buffer: Buffer,
}

impl Screen {
    /// Starts the program on a screen of that size, which it fills.
    pub(crate) fn open(size: [u32; 2], arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::open_in(folder, size, ["Dark", "English"], arguments, &[])
    }

    /// With this folder for everything that is written, in this theme and language, and more in the environment.
    pub(crate) fn open_in(
        folder: tempfile::TempDir,
        [width, height]: [u32; 2],
        [theme, language]: [&str; 2],
        arguments: &[&str],
        environment: &[(&str, &Path)],
    ) -> Self {
        let config = folder.path().join("config");
        std::fs::create_dir_all(&config).unwrap();
        let output = folder.path().join("Videos");
        let run = folder.path().join(RUN);
        let settings = serde_json::json!({
            "version": 1,
            "theme": theme,
            "language": language,
            "window": [width, height],
            "output": output,
            "run": run.exists().then_some(run),
        })
        .to_string();
        std::fs::write(config.join("settings.json"), settings).unwrap();
        let shared = folder.path().join("screen");
        std::fs::create_dir_all(&shared).unwrap();
        // The server chooses a free display and says which.
        let mut server = Command::new("Xvfb")
            .args(["-displayfd", "1", "-screen", "0"])
            .arg(format!("{width}x{height}x24"))
            .arg("-fbdir")
            .arg(&shared)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("Xvfb is installed by scripts/packages.sh");
        let mut line = String::new();
        let mut said = BufReader::new(server.stdout.take().unwrap());
        said.read_line(&mut line).unwrap();
        let display = format!(":{}", line.trim());
        let log = File::create(folder.path().join("log")).unwrap();
        // Pictures for people are made by the program as people have it.
        let program = std::env::var_os("MIMIC_PROGRAM");
        let window = Command::new(program.unwrap_or_else(|| env!("CARGO_BIN_EXE_mimic").into()))
            .args(arguments)
            .env("DISPLAY", &display)
            .env("MIMIC_CONFIG", &config)
            .env("XDG_RUNTIME_DIR", folder.path())
            .env_remove("WAYLAND_DISPLAY")
            .env_remove("WAYLAND_SOCKET")
            .envs(environment.iter().copied())
            .stderr(log)
            .spawn()
            .unwrap();
        Self {
            buffer: Buffer::open(&shared.join("Xvfb_screen0")),
            server,
            window,
            display,
            folder,
        }
    }

    /// A file of the settings.
    pub(crate) fn config(&self, name: &str) -> PathBuf {
        self.folder.path().join("config").join(name)
    }

    /// What the screen shows.
    pub(crate) fn picture(&self) -> RgbImage {
        self.buffer
            .area([0, 0, self.buffer.size[0], self.buffer.size[1]])
    }

    /// What a part of it shows.
    pub(crate) fn area(&self, area: Area) -> RgbImage {
        self.buffer.area(area)
    }

    /// Mouse and keyboard, as xdotool has them.
    pub(crate) fn hand(&self, arguments: &[&str]) {
        let status = self.start_hand(arguments).wait().unwrap();
        assert!(status.success(), "xdotool {arguments:?}");
    }

    /// As [`Self::hand`], which is not waited for: it rests for a tenth of a second after each click.
    pub(crate) fn start_hand(&self, arguments: &[&str]) -> Child {
        let hand = Command::new("xdotool")
            .args(arguments)
            .env("DISPLAY", &self.display)
            .stdout(Stdio::null())
            .spawn();
        hand.expect("xdotool is installed by scripts/packages.sh")
    }

    /// Presses here and lets go there.
    pub(crate) fn drag(&self, from: [u32; 2], to: [u32; 2]) {
        let [from, to] = [from, to].map(|at| at.map(|v| v.to_string()));
        self.hand(&["mousemove", &from[0], &from[1], "mousedown", "1"]);
        std::thread::sleep(Duration::from_millis(200));
        self.hand(&["mousemove", &to[0], &to[1]]);
        std::thread::sleep(Duration::from_millis(200));
        self.hand(&["mouseup", "1"]);
    }

    /// Looks until `so` finds something in the picture of a part of the screen.
    pub(crate) fn wait<T>(
        &mut self,
        what: &str,
        area: Area,
        mut so: impl FnMut(&RgbImage) -> Option<T>,
    ) -> T {
        let began = Instant::now();
        loop {
            if let Some(found) = so(&self.area(area)) {
                return found;
            }
            let ended = self.window.try_wait().unwrap();
            if ended.is_some() || began.elapsed() > Duration::from_secs(120) {
                let picture = std::env::temp_dir().join("mimic-window-test.png");
                let _ = self.picture().save(&picture);
                let log = std::fs::read_to_string(self.folder.path().join("log"));
                panic!(
                    "never: {what} (ended: {ended:?}, the screen is in {})\n{}",
                    picture.display(),
                    log.unwrap_or_default()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until the program has ended.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.window.try_wait().unwrap() {
                return status;
            }
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "it does not end; its threads: {:?}",
                threads(self.window.id())
            );
            std::thread::sleep(Duration::from_millis(20));
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

/// A process's threads, and where in the kernel each waits.
fn threads(id: u32) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{id}/task")).into_iter();
    let tasks = tasks.flatten().flatten().map(|task| {
        let say = |name: &str| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        format!("{} in {}", say("comm").trim(), say("wchan"))
    });
    tasks.collect()
}

/// The server's frame buffer: an XWD file, which it draws into.
struct Buffer {
    file: File,
    size: [u32; 2],
    start: u64,
    row: u64,
}

impl Buffer {
    fn open(path: &Path) -> Self {
        let mut file = File::open(path).unwrap();
        let mut header = [0; 100];
        file.read_exact(&mut header).unwrap();
        let number = |at: usize| u32::from_be_bytes(header[4 * at..4 * at + 4].try_into().unwrap());
        Self {
            file,
            size: [number(4), number(5)],
            start: u64::from(number(0)) + 12 * u64::from(number(19)),
            row: u64::from(number(12)),
        }
    }

    fn area(&self, [left, top, width, height]: Area) -> RgbImage {
        let mut picture = RgbImage::new(width, height);
        let mut bytes = vec![0; 4 * width as usize];
        for (y, row) in picture.rows_mut().enumerate() {
            let line = self.start + self.row * (u64::from(top) + y as u64);
            self.file
                .read_exact_at(&mut bytes, line + 4 * u64::from(left))
                .unwrap();
            for (pixel, bytes) in row.zip(bytes.as_chunks::<4>().0) {
                pixel.0 = [bytes[2], bytes[1], bytes[0]];
            }
        }
        picture
    }
}

/// How different two pictures are: the mean of the channels' differences.
pub(crate) fn difference(a: &RgbImage, b: &RgbImage) -> f64 {
    assert_eq!(a.dimensions(), b.dimensions());
    let sum: u64 = (a.as_raw().iter())
        .zip(b.as_raw())
        .map(|(a, b)| u64::from(a.abs_diff(*b)))
        .sum();
    sum as f64 / a.as_raw().len() as f64
}

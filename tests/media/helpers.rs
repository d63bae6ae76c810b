//! Makes inputs and looks at results.

use std::error::Error;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use image::{Rgba, RgbaImage};
use mimic::media::{FrameSource, ReadOptions, clip};
use tempfile::TempDir;

/// A folder that goes when the test ends.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// Makes a file with ffmpeg; `args` are split at spaces.
    pub(crate) fn ffmpeg(&self, args: &str, name: &str) -> PathBuf {
        let path = self.path(name);
        assert!(self.try_ffmpeg(args, name), "ffmpeg {args} {name}");
        path
    }

    pub(crate) fn try_ffmpeg(&self, args: &str, name: &str) -> bool {
        let mut output = std::ffi::OsString::from("file:");
        output.push(self.path(name));
        let status = Command::new("ffmpeg")
            .args(["-v", "error", "-nostdin", "-y"])
            .args(args.split_whitespace())
            .arg(output)
            .current_dir(self.0.path())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        status.success()
    }

    /// A clip of `frames` frames at 25 per second, encoded as `codec` says.
    pub(crate) fn clip(&self, frames: u32, size: &str, codec: &str, name: &str) -> PathBuf {
        self.ffmpeg(
            &format!("-f lavfi -i testsrc2=s={size}:r=25 -frames:v {frames} {codec}"),
            name,
        )
    }

    /// Everything in the folder, hidden files too.
    pub(crate) fn list(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.0.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

pub(crate) const H264: &str = "-c:v libx264 -preset ultrafast -pix_fmt yuv420p";

/// One value that ffprobe knows of the first stream of a kind.
pub(crate) fn probe(path: &Path, stream: &str, entry: &str) -> String {
    let output = Command::new("ffprobe")
        .args([
            "-v",
            "error",
            "-count_frames",
            "-select_streams",
            stream,
            "-of",
            "default=nw=1:nk=1",
        ])
        .args(["-show_entries", &format!("stream={entry}")])
        .arg(path)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

pub(crate) fn open(path: &Path) -> Box<dyn FrameSource> {
    open_with(path, &ReadOptions::default())
}

pub(crate) fn open_with(path: &Path, options: &ReadOptions) -> Box<dyn FrameSource> {
    clip::open(path, options).unwrap_or_else(|e| panic!("{e}"))
}

/// All frames of a clip, in a test's memory.
pub(crate) fn frames(source: &mut dyn FrameSource) -> Vec<RgbaImage> {
    let mut all = Vec::new();
    let mut frame = RgbaImage::new(0, 0);
    while source.read(&mut frame).unwrap_or_else(|e| panic!("{e}")) {
        assert!(frame.pixels().all(|p| p[3] == 255), "frames are opaque");
        all.push(frame.clone());
    }
    all
}

pub(crate) fn read_all(path: &Path) -> Vec<RgbaImage> {
    frames(open(path).as_mut())
}

/// Red, green, blue and white quarters: top left, top right, bottom left, bottom right.
pub(crate) fn quarters(width: u32, height: u32) -> RgbaImage {
    RgbaImage::from_fn(width, height, |x, y| {
        match (x * 2 >= width, y * 2 >= height) {
            (false, false) => Rgba([220, 30, 30, 255]),
            (true, false) => Rgba([30, 200, 30, 255]),
            (false, true) => Rgba([30, 30, 220, 255]),
            (true, true) => Rgba([240, 240, 240, 255]),
        }
    })
}

/// The initials of the colours in the middles of the four quarters, in reading order.
pub(crate) fn corners(picture: &RgbaImage) -> String {
    let (w, h) = picture.dimensions();
    [(1, 1), (3, 1), (1, 3), (3, 3)]
        .iter()
        .map(|(x, y)| {
            let Rgba([r, g, b, _]) = *picture.get_pixel(w * x / 4, h * y / 4);
            match (r > 128, g > 128, b > 128) {
                (true, false, false) => 'r',
                (false, true, false) => 'g',
                (false, false, true) => 'b',
                (true, true, true) => 'w',
                _ => '?',
            }
        })
        .collect()
}

/// Mean absolute difference of two pictures in steps of 255.
pub(crate) fn difference(a: &RgbaImage, b: &RgbaImage) -> f64 {
    assert_eq!(a.dimensions(), b.dimensions());
    let sum: u64 = a
        .iter()
        .zip(b.iter())
        .map(|(x, y)| u64::from(x.abs_diff(*y)))
        .sum();
    sum as f64 / a.len() as f64
}

pub(crate) fn largest_difference(a: &RgbaImage, b: &RgbaImage) -> u8 {
    assert_eq!(a.dimensions(), b.dimensions());
    a.iter()
        .zip(b.iter())
        .map(|(x, y)| x.abs_diff(*y))
        .max()
        .unwrap_or(0)
}

/// A message as users see it: one sentence that names the file and says what to do.
pub(crate) fn assert_sentence(error: &dyn Error, path: &Path) {
    let text = error.to_string();
    assert!(
        text.contains(&path.display().to_string()),
        "does not name {}: {text}",
        path.display()
    );
    assert!(
        !text.contains('\n') && text.len() < 500,
        "not one sentence: {text}"
    );
    assert!(
        !text.contains("Error(") && !text.contains("os error"),
        "not for users: {text}"
    );
    assert!(
        text.contains(": ") || text.contains("; "),
        "no way out: {text}"
    );
}

/// What is written to the log at warning level and above while `work` runs.
pub(crate) fn warnings(work: impl FnOnce()) -> String {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, work);
    let bytes = log.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

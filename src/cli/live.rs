//! `mimic` without a command: the window.

use std::path::PathBuf;
use std::time::Duration;

use super::Failure;
use crate::device::Choice as Device;
use crate::gpu::Choice;
use crate::settings::{self, Driver};
use crate::ui::{self, Start};

/// Size of screenshots.
const SCREENSHOT: [f32; 2] = [1440.0, 900.0];

/// How the window begins.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A photo for the stage; repeatable, all join the reel
    #[arg(long, value_name = "PHOTO")]
    source: Vec<PathBuf>,
    /// What drives: a video, a picture, a take, or a camera's name
    #[arg(long, value_name = "CLIP|TAKE|CAMERA", conflicts_with = "demo")]
    driver: Option<String>,
    /// The drawn performer drives
    #[arg(long)]
    demo: bool,
    /// Draw the window without one into this PNG, and leave
    #[arg(long, value_name = "FILE")]
    screenshot: Option<PathBuf>,
    /// Seconds to run before the screenshot
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 5.0,
        requires = "screenshot"
    )]
    after: f64,
    /// Who puts the pictures together: auto, wgpu or cpu
    #[arg(long, value_name = "WHO", default_value = "auto")]
    compositor: Choice,
    /// Threads of the networks [default: all but one]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
    /// What the networks run on: auto, cpu, cuda:N or metal [default: as set in the window]
    #[arg(long, value_name = "DEVICE")]
    device: Option<Device>,
    /// Leave what the networks make on the graphics card; for NVIDIA's on Linux, when it draws the window too
    #[arg(long)]
    zero_copy: bool,
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    let driver = match (args.demo, args.driver) {
        (true, _) => Some(Driver::Demo),
        (false, Some(given)) => Some(driver(given)),
        (false, None) => None,
    };
    let start = Start {
        photos: args.source,
        driver,
        compositor: args.compositor,
        threads: args.threads.map_or(0, usize::from),
        device: args.device,
        zero_copy: args.zero_copy,
        config: settings::folder(),
        ..Start::default()
    };
    match args.screenshot {
        Some(file) => {
            let after = Duration::try_from_secs_f64(args.after)
                .map_err(|e| Failure::Usage(format!("--after {}: {e}", args.after)))?;
            ui::screenshot(start, SCREENSHOT, after, &file)?;
        }
        None => ui::run(start)?,
    }
    Ok(())
}

/// A file if there is one of that name, else a camera.
fn driver(given: String) -> Driver {
    let path = PathBuf::from(&given);
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("mimic-take") => Driver::Take(path),
        _ if path.exists() || path.extension().is_some() => Driver::Clip(path),
        _ => Driver::Camera(given),
    }
}

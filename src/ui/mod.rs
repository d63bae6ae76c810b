//! The window: `mimic` without a command.
//!
//! [`App`] is the state; `logic` takes events and commands in between two frames, `panels` draw and say
//! what a person wants by commands. The networks run on their own thread (`pipeline::live`), drivers on
//! theirs: the window stays at the display's rate whatever they do. All wgpu work is done here, on the
//! thread of the window.

mod app;
mod command;
mod dialogs;
mod fonts;
mod headless;
mod jobs;
mod logic;
mod models;
mod notices;
mod outputs;
mod panels;
mod picture;
mod reel;
mod stage;
mod stats;
mod theme;
mod training;
mod widgets;
mod words;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eframe::egui;
use eframe::egui_wgpu::{WgpuConfiguration, WgpuSetupCreateNew};

pub use app::{App, Error};
pub use headless::{Measured, measure, screenshot};

use crate::device;
use crate::gpu;
use crate::settings;

/// How the window begins.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// Photos to be added to the reel; the last one comes on stage.
    pub photos: Vec<PathBuf>,
    /// The driver, in place of the last one.
    pub driver: Option<settings::Driver>,
    /// Who composes.
    pub compositor: gpu::Choice,
    /// Threads of the networks; all but one of the machine's when 0.
    pub threads: usize,
    /// What the networks run on, in place of what the settings say.
    pub device: Option<device::Choice>,
    /// Predictions stay on the card that draws the window, if the networks run on it too.
    pub zero_copy: bool,
    /// The folder of the settings; nothing is remembered without.
    pub config: Option<PathBuf>,
    /// Start neither networks nor driver: for pictures of the window alone.
    pub still: bool,
    /// Why the window before this one had to go, to be said.
    pub lost: Option<String>,
}

/// A device that allows pictures as large as the adapter can.
fn graphics() -> WgpuConfiguration {
    let mut setup = WgpuSetupCreateNew::without_display_handle();
    setup.device_descriptor = Arc::new(|adapter| wgpu::DeviceDescriptor {
        label: Some("window"),
        required_limits: gpu::limits(adapter),
        ..wgpu::DeviceDescriptor::default()
    });
    WgpuConfiguration {
        wgpu_setup: setup.into(),
        ..WgpuConfiguration::default()
    }
}

/// Wants the window to look at what a thread has made. A request without any delay would be answered with two
/// frames, of which the second shows nothing new.
fn wake(ctx: &egui::Context) {
    ctx.request_repaint_after(WAKE);
}

/// The shortest delay there is.
const WAKE: Duration = Duration::from_nanos(1);

/// Opens the window and returns when it is closed. When the graphics adapter is lost the program is started anew
/// in its place, with all that is remembered.
///
/// # Errors
/// When there is no display, no adapter, or the system refuses threads.
pub fn run(mut start: Start) -> Result<(), Error> {
    start.lost = std::env::var(LOST).ok();
    if start.lost.is_some() && start.config.is_some() {
        // They are in the reel and in the settings.
        start.photos.clear();
        start.driver = None;
    }
    let size = match start.config.as_deref().map(settings::load) {
        Some(settings::Loaded::Kept(settings)) => settings.window,
        // Reading them once more says what was wrong with them.
        _ => settings::Settings::default().window,
    };
    let options = eframe::NativeOptions {
        viewport: egui::ViewportBuilder::default()
            .with_title("mimic")
            .with_app_id("mimic")
            .with_inner_size(size)
            .with_min_inner_size([640.0, 420.0])
            .with_drag_and_drop(true),
        renderer: eframe::Renderer::Wgpu,
        wgpu_options: graphics(),
        // Colours are flat, and pictures have their own eight bits.
        dithering: false,
        ..eframe::NativeOptions::default()
    };
    // eframe wants a boxed error: the typed one comes out by the side.
    let mut failed = None;
    let create = |cc: &eframe::CreationContext<'_>| {
        let state = cc.wgpu_render_state.as_ref().ok_or(Error::NoAdapter);
        match state.and_then(|state| App::new(&cc.egui_ctx, state, start)) {
            Ok(app) => Ok(Box::new(app) as Box<dyn eframe::App>),
            Err(error) => {
                let text = error.to_string();
                failed = Some(error);
                Err(text.into())
            }
        }
    };
    let result = eframe::run_native("mimic", options, Box::new(create));
    match (failed, result) {
        (Some(error), _) => Err(error),
        (None, Err(eframe::Error::Wgpu(_))) => Err(Error::NoAdapter),
        (None, Err(error)) => Err(Error::Window(error.to_string())),
        (None, Ok(())) => Ok(()),
    }
}

/// Tells a program that takes another's place why: the adapter's last words.
const LOST: &str = "MIMIC_ADAPTER_LOST";
/// A device that is lost again within this time is given up.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Puts the program anew in its own place, after its device was lost. eframe cannot exchange the device, and
/// wgpu panics when a window is closed whose device is gone.
fn start_anew(why: &str, opened: Instant) -> ! {
    let error = if opened.elapsed() < AT_ONCE {
        Error::AdapterLost(why.to_owned())
    } else {
        match std::env::current_exe().map(|program| replace(&program, why)) {
            Ok(error) | Err(error) => Error::Again(error),
        }
    };
    tracing::error!("{error}");
    std::process::exit(1)
}

/// Does not return when it succeeds.
fn replace(program: &Path, why: &str) -> std::io::Error {
    let mut program = Command::new(program);
    program.args(std::env::args_os().skip(1)).env(LOST, why);
    #[cfg(unix)]
    return std::os::unix::process::CommandExt::exec(&mut program);
    #[cfg(not(unix))]
    match program.spawn() {
        Ok(_) => std::process::exit(0),
        Err(error) => error,
    }
}

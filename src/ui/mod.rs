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
mod widgets;
mod words;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use eframe::egui;

pub use app::{App, Error};
pub use headless::{Measured, measure, screenshot};

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
    /// The folder of the settings; nothing is remembered without.
    pub config: Option<PathBuf>,
    /// Start neither networks nor driver: for pictures of the window alone.
    pub still: bool,
}

/// Opens the window and returns when it is closed.
///
/// # Errors
/// When there is no display, no adapter, or the system refuses threads.
pub fn run(start: Start) -> Result<(), Error> {
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

//! The models that are here, and what was measured of them.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::mpsc::Receiver;

use super::app::App;
use super::outputs::on_thread;
use crate::pipeline::live::{self, LiveModel};

/// How long a self-test takes.
const SELF_TEST: std::time::Duration = std::time::Duration::from_secs(3);

/// Milliseconds a frame, or why the model does not run.
type Speed = Result<f64, String>;

/// A model, for its card.
pub(super) struct ModelCard {
    pub(super) name: String,
    /// None for the one in the program.
    pub(super) file: Option<PathBuf>,
    pub(super) bytes: u64,
    pub(super) in_use: bool,
    pub(super) measuring: bool,
    pub(super) speed: Option<Speed>,
}

/// What is measured, and what was.
#[derive(Default)]
pub(super) struct Speeds {
    known: HashMap<Option<PathBuf>, Speed>,
    running: Option<(Option<PathBuf>, Receiver<Speed>)>,
}

impl App {
    /// The embedded model and those that were imported.
    pub(super) fn models(&self) -> Vec<ModelCard> {
        let files = std::iter::once(None).chain(self.settings.models.iter().cloned().map(Some));
        files
            .map(|file| ModelCard {
                name: live::model_name(file.as_deref()),
                bytes: match &file {
                    None => crate::pipeline::live::embedded_bytes(),
                    Some(path) => std::fs::metadata(path).map_or(0, |file| file.len()),
                },
                in_use: self.settings.model == file,
                measuring: self
                    .speeds
                    .running
                    .as_ref()
                    .is_some_and(|(which, _)| *which == file),
                speed: self.speeds.known.get(&file).cloned(),
                file,
            })
            .collect()
    }

    /// Animates with this model from now on, and remembers it.
    pub(super) fn use_model(&mut self, file: Option<PathBuf>) {
        if let Some(path) = &file
            && !self.settings.models.contains(path)
        {
            self.settings.models.push(path.clone());
        }
        self.settings.model = file;
        self.start_live();
        self.start_driver();
    }

    /// Takes an imported model out of the list; its file stays.
    pub(super) fn forget_model(&mut self, file: Option<PathBuf>) {
        self.settings
            .models
            .retain(|path| Some(path) != file.as_ref());
        self.speeds.known.remove(&file);
    }

    /// Measures a model for three seconds, on a thread.
    pub(super) fn measure_model(&mut self, file: Option<PathBuf>) {
        if self.speeds.running.is_some() {
            return;
        }
        let model = LiveModel {
            weights: file.clone(),
            threads: 0,
        };
        match on_thread("self-test", &self.ctx, move || {
            live::measure(&model, SELF_TEST)
        }) {
            Ok(answer) => self.speeds.running = Some((file, answer)),
            Err(e) => self.notices.warn(e.to_string()),
        }
    }

    /// Takes over what was measured.
    pub(super) fn listen_to_speeds(&mut self) {
        if let Some((file, answer)) = &self.speeds.running
            && let Ok(speed) = answer.try_recv()
        {
            self.speeds.known.insert(file.clone(), speed);
            self.speeds.running = None;
        }
    }
}

//! The models that are here, what was measured of them, and those that can be downloaded.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};

use super::app::App;
use super::outputs::on_thread;
use crate::checkpoint::manifest::{Kind, Model};
use crate::checkpoint::store::{self, Progress, Step, Store};
use crate::faces::Restorer;
use crate::pipeline::live::{self, LiveModel};
use crate::pipeline::slot::Slot;
use crate::pipeline::weights::{self, Error, Fetch, Fetched};

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
    /// Of a model of the manifest.
    pub(super) licence: Option<String>,
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

/// A model of the manifest, for its card.
pub(super) struct DownloadCard {
    pub(super) name: String,
    pub(super) title: String,
    pub(super) size: String,
    pub(super) licence: String,
    /// Whether it is here; models that animate are not listed then, they have cards of their own.
    pub(super) here: bool,
    /// How far its download is.
    pub(super) progress: Option<Progress>,
}

/// The weights folder, and the model on its way there.
pub(super) struct Downloads {
    /// None where it cannot be used; that is said when it is wanted.
    pub(super) store: Result<Store, String>,
    running: Option<Download>,
}

struct Download {
    name: String,
    progress: Arc<Slot<Progress>>,
    last: Progress,
    cancel: Arc<AtomicBool>,
    end: Receiver<Result<Fetched, Error>>,
}

impl Default for Downloads {
    fn default() -> Self {
        Self {
            store: Store::of_environment().map_err(|e| e.to_string()),
            running: None,
        }
    }
}

impl Downloads {
    fn models(&self) -> &[Model] {
        self.store.as_ref().map_or(&[], Store::models)
    }

    /// The model of the weights folder that a file is.
    fn model_of(&self, file: &Path) -> Option<(&Store, &Model)> {
        let store = self.store.as_ref().ok()?;
        let model = store.models().iter().find(|m| store.path(m) == file)?;
        Some((store, model))
    }

    /// Whether a model that makes faces sharper is here.
    pub(super) fn has_enhancer(&self) -> bool {
        let store = self.store.as_ref().ok();
        store.is_some_and(|store| store.first_here(Restorer::models(None)).is_some())
    }

    /// Files of the models that are here and animate.
    fn here(&self) -> impl Iterator<Item = PathBuf> {
        let animate = |model: &&Model| model.kind == Kind::Animation;
        let models = self.models().iter().filter(animate);
        models.filter_map(|model| {
            let store = self.store.as_ref().ok()?;
            store.has(model).then(|| store.path(model))
        })
    }

    /// The models that can be had, those that animate and are here left out.
    pub(super) fn cards(&self) -> Vec<DownloadCard> {
        let running = self.running.as_ref();
        let has = |model| self.store.as_ref().is_ok_and(|store| store.has(model));
        let models = self.models().iter().map(|model| (model, has(model)));
        let wanted = models.filter(|(model, here)| !here || model.kind != Kind::Animation);
        wanted
            .map(|(model, here)| DownloadCard {
                name: model.name.clone(),
                title: model.title.clone(),
                size: model.size_text(),
                licence: model.licence.clone(),
                here,
                progress: running
                    .filter(|download| download.name == model.name)
                    .map(|download| download.last.clone()),
            })
            .collect()
    }
}

impl App {
    /// Downloads a model, on a thread; one at a time.
    pub(super) fn download(&mut self, name: String) {
        if self.downloads.running.is_some() {
            return;
        }
        let store = match &self.downloads.store {
            Ok(store) => store.clone(),
            Err(why) => return self.notices.warn(why.clone()),
        };
        let progress = Arc::<Slot<Progress>>::default();
        let cancel = Arc::<AtomicBool>::default();
        let (tell, stop) = (Arc::clone(&progress), Arc::clone(&cancel));
        let (model, ctx) = (name.clone(), self.ctx.clone());
        let fetch = move || {
            weights::fetch(&store, &model, &Fetch::default(), &mut |progress| {
                tell.put(progress.clone());
                super::wake(&ctx);
                match stop.load(Ordering::Relaxed) {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            })
        };
        match on_thread("download", &self.ctx, fetch) {
            Ok(end) => {
                self.downloads.running = Some(Download {
                    name,
                    progress,
                    last: Progress::of(Step::Waiting),
                    cancel,
                    end,
                });
            }
            Err(e) => self.notices.warn(e.to_string()),
        }
    }

    /// Stops the download; what has come is kept for the next time.
    pub(super) fn cancel_download(&mut self) {
        if let Some(download) = &self.downloads.running {
            download.cancel.store(true, Ordering::Relaxed);
        }
    }

    /// Takes over how far the download is.
    pub(super) fn listen_to_downloads(&mut self) {
        let Some(download) = &mut self.downloads.running else {
            return;
        };
        if let Some(progress) = download.progress.take() {
            download.last = progress;
        }
        let end = match download.end.try_recv() {
            Err(TryRecvError::Empty) => return,
            Err(TryRecvError::Disconnected) => None,
            Ok(end) => Some(end),
        };
        let name = std::mem::take(&mut download.name);
        self.downloads.running = None;
        match end {
            Some(Ok(_)) => (self.notices).info(format!("{name}: {}", self.words.model_here)),
            Some(Err(Error::Store(store::Error::Cancelled))) => {}
            Some(Err(error)) => self.notices.warn(error.to_string()),
            None => self
                .notices
                .warn(format!("{name}: the download thread failed")),
        }
    }

    /// The embedded model, those that were imported, and those of the weights folder.
    pub(super) fn models(&self) -> Vec<ModelCard> {
        let imported = &self.settings.models;
        let fetched = self
            .downloads
            .here()
            .filter(|file| !imported.contains(file));
        let files = imported.iter().cloned().chain(fetched).map(Some);
        std::iter::once(None)
            .chain(files)
            .map(|file| ModelCard {
                licence: (file.as_deref())
                    .and_then(|file| self.downloads.model_of(file))
                    .map(|(_, model)| model.licence.clone()),
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

    /// What may stand in for the model while it is too slow: all others that are here.
    pub(super) fn other_models(&self) -> Vec<Option<PathBuf>> {
        let files = self.models().into_iter().map(|card| card.file);
        files.filter(|file| *file != self.settings.model).collect()
    }

    /// Animates with this model from now on, and remembers it.
    pub(super) fn use_model(&mut self, file: Option<PathBuf>) {
        if let Some(path) = &file
            && !self.settings.models.contains(path)
        {
            self.settings.models.push(path.clone());
        }
        self.settings.model = file;
        self.restart();
    }

    /// Takes a model out of the list. An imported one's file stays; one of the weights folder is removed, and can be
    /// downloaded again.
    pub(super) fn forget_model(&mut self, file: Option<PathBuf>) {
        if let Some((store, model)) = file.as_deref().and_then(|f| self.downloads.model_of(f))
            && let Err(error) = store.remove(model)
        {
            self.notices.warn(error.to_string());
        }
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
            device: self.device(),
            ..LiveModel::default()
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

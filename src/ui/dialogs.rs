//! File dialogs that never hold the window up: the system's own, on a thread; where no portal answers,
//! one inside the window.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use eframe::egui::Context;

use crate::animate::take;

/// A system's dialog that is closed sooner than anybody could was never open: no portal answered.
const TOO_SOON: Duration = Duration::from_millis(250);

/// What is to be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pick {
    Photos,
    Clip,
    Take,
    Model,
    /// Weights of a face restorer.
    Enhancer,
    /// Photos and clips, for render jobs.
    Jobs,
    /// What drives this render job.
    JobDriver(u64),
    /// Where results go.
    Folder,
    /// The folder of a training run.
    Run,
}

impl Pick {
    /// Endings of the files to be shown; all when empty.
    fn endings(self) -> Vec<&'static str> {
        const PHOTOS: [&str; 7] = ["png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff"];
        const CLIPS: [&str; 9] = [
            "mp4", "mov", "mkv", "webm", "avi", "m4v", "gif", "mpg", "wmv",
        ];
        match self {
            Self::Photos => [&PHOTOS[..], &["gif"]].concat(),
            Self::Clip => [&PHOTOS[..], &CLIPS[..]].concat(),
            Self::Jobs | Self::JobDriver(_) => [&PHOTOS[..], &CLIPS[..], &[take::ENDING]].concat(),
            Self::Take => vec![take::ENDING],
            Self::Model | Self::Enhancer => vec!["safetensors", "pth", "tar", "pt", "pdparams"],
            Self::Folder | Self::Run => vec![],
        }
    }

    fn several(self) -> bool {
        matches!(self, Self::Photos | Self::Jobs)
    }

    fn is_folder(self) -> bool {
        matches!(self, Self::Folder | Self::Run)
    }
}

/// The dialog that is open, if one is.
#[derive(Default)]
pub(super) struct Dialogs {
    system: Option<System>,
    inside: Option<(Pick, egui_file::FileDialog)>,
}

struct System {
    pick: Pick,
    opened: Instant,
    answer: Receiver<Option<Vec<PathBuf>>>,
}

impl std::fmt::Debug for Dialogs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let inside = self.inside.as_ref().map(|(pick, _)| pick);
        let system = self.system.as_ref().map(|system| system.pick);
        f.debug_struct("Dialogs")
            .field("system", &system)
            .field("inside", &inside)
            .finish()
    }
}

impl Dialogs {
    /// Opens a dialog, unless one is open.
    pub(super) fn open(&mut self, pick: Pick, title: &str, ctx: &Context) {
        if self.system.is_some() || self.inside.is_some() {
            return;
        }
        let mut dialog = rfd::AsyncFileDialog::new().set_title(title);
        if !pick.endings().is_empty() {
            dialog = dialog.add_filter(title, &pick.endings());
        }
        let (tell, answer) = sync_channel(1);
        let ctx = ctx.clone();
        let ask = move || {
            let path = |file: rfd::FileHandle| file.path().to_owned();
            let chosen = pollster::block_on(async {
                if pick.is_folder() {
                    let folder = dialog.pick_folder().await;
                    folder.map(|folder| vec![path(folder)])
                } else if pick.several() {
                    let files = dialog.pick_files().await;
                    files.map(|files| files.into_iter().map(path).collect())
                } else {
                    dialog.pick_file().await.map(|file| vec![path(file)])
                }
            });
            let _ = tell.send(chosen);
            super::wake(&ctx);
        };
        let thread = std::thread::Builder::new()
            .name("dialog".to_owned())
            .spawn(ask);
        match thread {
            Ok(_) => {
                self.system = Some(System {
                    pick,
                    opened: Instant::now(),
                    answer,
                });
            }
            Err(_) => self.open_inside(pick, title),
        }
    }

    /// Shows the dialog inside the window, if that is the one; gives what was chosen in either.
    pub(super) fn show(&mut self, ctx: &Context, title: &str) -> Option<(Pick, Vec<PathBuf>)> {
        if let Some(system) = &self.system {
            let (pick, soon) = (system.pick, system.opened.elapsed() < TOO_SOON);
            match system.answer.try_recv() {
                Err(TryRecvError::Empty) => {}
                Ok(Some(files)) => {
                    self.system = None;
                    return Some((pick, files));
                }
                Ok(None) if !soon => self.system = None,
                Ok(None) | Err(TryRecvError::Disconnected) => {
                    self.system = None;
                    self.open_inside(pick, title);
                }
            }
        }
        let (pick, dialog) = self.inside.as_mut()?;
        dialog.show(ctx);
        let pick = *pick;
        match dialog.state() {
            egui_file::State::Open => None,
            egui_file::State::Selected => {
                let (_, dialog) = self.inside.take()?;
                let mut files: Vec<PathBuf> =
                    dialog.selection().into_iter().map(PathBuf::from).collect();
                if files.is_empty() {
                    files.extend(dialog.path().map(PathBuf::from));
                }
                Some((pick, files))
            }
            egui_file::State::Closed | egui_file::State::Cancelled => {
                self.inside = None;
                None
            }
        }
    }

    fn open_inside(&mut self, pick: Pick, title: &str) {
        let home = directories::UserDirs::new().map(|dirs| dirs.home_dir().to_owned());
        let mut dialog = if pick.is_folder() {
            egui_file::FileDialog::select_folder()
        } else {
            egui_file::FileDialog::open_file()
        };
        if let Some(home) = home {
            dialog = dialog.initial_path(home);
        }
        dialog = dialog.title(title).multi_select(pick.several());
        let endings = pick.endings();
        if !endings.is_empty() {
            dialog = dialog.show_files_filter(Box::new(move |path: &std::path::Path| {
                let ending = path
                    .extension()
                    .and_then(|e| e.to_str())
                    .unwrap_or_default();
                endings.contains(&ending.to_lowercase().as_str())
            }));
        }
        dialog.open();
        self.inside = Some((pick, dialog));
    }
}

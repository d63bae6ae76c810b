//! What the widgets want. They change nothing themselves: `logic` applies these, after the frame is drawn.

use std::path::PathBuf;

use crate::device::Choice;
use crate::geometry::Rect;
use crate::settings::{Blend, Driver, Enhance, Hold, Language, Motion, Show, Theme};

use super::dialogs::Pick;
use super::jobs::JobCommand;

/// The four places of the window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Place {
    #[default]
    Live,
    Render,
    Models,
    Train,
}

/// Something that a person wants.
#[derive(Clone, Debug)]
pub(super) enum Command {
    /// Another place.
    Go(Place),
    /// This photo of the reel comes on stage.
    ShowPhoto(usize),
    /// The photo before or after it.
    StepPhoto(isize),
    AddPhotos(Vec<PathBuf>),
    RemovePhoto(usize),
    /// The clipboard's picture, or files copied.
    PastePhoto,
    /// Whatever was dropped on the window.
    Dropped(Vec<PathBuf>),
    /// Open a file dialog.
    Pick(Pick),
    Drive(Driver),
    /// Look again which cameras there are.
    FindCameras,
    Blend(Blend),
    Motion(Motion),
    Enhance(Enhance),
    Show(Show),
    /// The mask of one face; None gives it back to the slider.
    FaceRatio(usize, Option<f32>),
    /// A face's crop was moved or resized by hand.
    MoveFace(usize, Rect),
    /// Around that pixel of the photo; in its middle when None.
    AddFace(Option<[i32; 2]>),
    RemoveFace(usize),
    Calibrate,
    Record,
    RecordTake,
    Screenshot,
    VirtualCamera,
    FullScreen,
    /// Driver and photo change places.
    Swap,
    Tuning,
    Help,
    Settings,
    /// Close what is open, leave full screen.
    Escape,
    Language(Language),
    Theme(Theme),
    Microphone(bool),
    /// What the networks run on.
    Device(Choice),
    /// Hold a frame rate at the cost of quality.
    Hold(Hold),
    /// Start the networks anew, after they died.
    Restart,
    Dismiss(u64),
    /// Animate with this model; the embedded one when none.
    UseModel(Option<PathBuf>),
    /// Take a model out of the list.
    ForgetModel(Option<PathBuf>),
    MeasureModel(Option<PathBuf>),
    /// Download the model of that name; none stops the download.
    Download(Option<String>),
    /// Watch the training run of this folder.
    WatchRun(PathBuf),
    Job(JobCommand),
}

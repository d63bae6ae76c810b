//! What mimic remembers between two starts: one JSON file, versioned, written whole or not at all.
//!
//! A file that cannot be read is set aside under another name and the defaults are used: nothing is
//! lost and nothing is in the way. Numbers out of range come back into it. The command line has its own
//! defaults and does not look here.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Of the file; a newer one is set aside.
pub const VERSION: u32 = 1;
/// The largest file that is read.
const LARGEST: u64 = 4 << 20;
/// Models in the list.
const MOST_MODELS: usize = 64;
/// Photos in the reel.
pub const MOST_PHOTOS: usize = 24;

/// Everything that persists.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// [`VERSION`] of the program that wrote it.
    pub version: u32,
    /// Language of the window; the system's when none.
    pub language: Option<Language>,
    /// Colours of the window.
    pub theme: Theme,
    /// Size of the window in points, when it was closed.
    pub window: [f32; 2],
    /// How faces are put back.
    pub blend: Blend,
    /// How motion is taken over.
    pub motion: Motion,
    /// How faces are made sharper.
    pub enhance: Enhance,
    /// What is drawn over the picture.
    pub show: Show,
    /// Whether quality gives way to the frame rate.
    pub hold: Hold,
    /// The source photos, in order.
    pub reel: Vec<Photo>,
    /// The one on stage.
    pub on_stage: usize,
    /// What drove last.
    pub driver: Driver,
    /// The weights that animate; the embedded model when none.
    pub model: Option<PathBuf>,
    /// Weights that were imported, for the list of models.
    pub models: Vec<PathBuf>,
    /// Where results, recordings, takes and screenshots go; the system's folder for videos when none.
    pub output: Option<PathBuf>,
    /// The folder of the training run that is watched.
    pub run: Option<PathBuf>,
    /// Record the microphone with the picture.
    pub microphone: bool,
    /// What the networks run on, in the words of `--device`.
    pub device: String,
}

/// Language of the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Language {
    /// English.
    English,
    /// 简体中文.
    Chinese,
}

/// Colours of the window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Theme {
    /// As the sketches.
    #[default]
    Dark,
    /// For bright rooms.
    Light,
}

/// How faces are put back: see `gpu::PasteSettings`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Blend {
    /// 0.1..=1, for faces that have none of their own.
    pub ratio: f32,
    /// 0..=1.
    pub feather: f32,
    /// 0..=1.
    pub colour_match: f32,
    /// 0..=1.
    pub detail: f32,
}

/// How motion is taken over: see `animate::PerformOptions`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Motion {
    /// 0..=2.
    pub scale: f32,
    /// 0..=1.
    pub smoothing: f32,
    /// As the driver has moved, not where the driver is.
    pub relative: bool,
    /// By how large the faces are.
    pub adapt_scale: bool,
    /// Left and right as in a mirror.
    pub mirror: bool,
    /// Keep the frame that resembles the photo most as the reference.
    pub auto_reference: bool,
}

/// How faces are made sharper: see `faces::Enhancement`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Enhance {
    /// Whether they are.
    pub on: bool,
    /// 0..=1.
    pub strength: f32,
    /// The restorer's weights, where they were chosen by hand.
    pub weights: Option<PathBuf>,
}

/// What is drawn over the picture.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Show {
    /// Boxes around the faces, and the ring of the mask.
    pub faces: bool,
    /// The driver's keypoints.
    pub keypoints: bool,
    /// The driver's picture in the corner.
    pub driver: bool,
    /// The last minute of measurements.
    pub plot: bool,
}

/// The frame rate that is held at the cost of quality: see `pipeline::governor`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hold {
    /// Whether it is.
    pub on: bool,
    /// Frames per second: 5..=60.
    pub fps: f32,
}

/// A photo of the reel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Photo {
    /// The file, or a painting that mimic brings.
    pub origin: PhotoOrigin,
    /// What of it moves, where that was set by hand; otherwise what is found.
    #[serde(default)]
    pub faces: Option<Vec<Face>>,
}

/// Where a photo is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PhotoOrigin {
    /// A file.
    File(PathBuf),
    /// The painting of that name in the program.
    Painting(String),
}

/// A face of a photo.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Face {
    /// The crop that the networks see: x1, y1, x2, y2 in pixels of the photo.
    pub crop: [i32; 4],
    /// The size of its mask, if it has its own: 0.1..=1.
    #[serde(default)]
    pub ratio: Option<f32>,
}

/// What drives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Driver {
    /// The drawn performer that mimic brings.
    #[default]
    Demo,
    /// The camera of that name.
    Camera(String),
    /// A video or picture.
    Clip(PathBuf),
    /// A recorded take.
    Take(PathBuf),
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            version: VERSION,
            language: None,
            theme: Theme::Dark,
            window: [1280.0, 800.0],
            blend: Blend::default(),
            motion: Motion::default(),
            enhance: Enhance::default(),
            show: Show::default(),
            hold: Hold::default(),
            reel: Vec::new(),
            on_stage: 0,
            driver: Driver::Demo,
            model: None,
            models: Vec::new(),
            output: None,
            run: None,
            microphone: true,
            device: "auto".to_owned(),
        }
    }
}

impl Default for Blend {
    fn default() -> Self {
        Self {
            ratio: 0.4,
            feather: 0.2,
            colour_match: 1.0,
            detail: 0.5,
        }
    }
}

impl Default for Enhance {
    fn default() -> Self {
        Self {
            on: false,
            strength: 0.8,
            weights: None,
        }
    }
}

impl Default for Motion {
    fn default() -> Self {
        Self {
            scale: 1.0,
            smoothing: 0.25,
            relative: true,
            adapt_scale: true,
            mirror: true,
            auto_reference: true,
        }
    }
}

impl Default for Show {
    fn default() -> Self {
        Self {
            faces: true,
            keypoints: false,
            driver: true,
            plot: false,
        }
    }
}

impl Default for Hold {
    fn default() -> Self {
        Self {
            on: true,
            fps: 25.0,
        }
    }
}

/// What came of reading the file.
#[derive(Debug, PartialEq)]
pub enum Loaded {
    /// There is none yet.
    New,
    /// As they were.
    Kept(Box<Settings>),
    /// The file could not be read and is now the one named.
    SetAside {
        /// Where it is.
        aside: PathBuf,
        /// What was wrong with it.
        why: String,
    },
}

/// The folder of the settings: `MIMIC_CONFIG`, else the platform's. None where there is no home.
pub fn folder() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("MIMIC_CONFIG") {
        return Some(folder.into());
    }
    let dirs = directories::ProjectDirs::from("", "", "mimic")?;
    Some(dirs.config_dir().to_owned())
}

/// Reads the settings of `folder`.
pub fn load(folder: &Path) -> Loaded {
    let path = folder.join("settings.json");
    let read = || -> Result<Settings, String> {
        if fs::metadata(&path).map_err(|e| e.to_string())?.len() > LARGEST {
            return Err("it is far too large".to_owned());
        }
        let text = fs::read_to_string(&path).map_err(|e| e.to_string())?;
        let settings: Settings = serde_json::from_str(&text).map_err(|e| e.to_string())?;
        if settings.version > VERSION {
            return Err("a newer mimic wrote it".to_owned());
        }
        Ok(settings.in_range())
    };
    if !path.exists() {
        return Loaded::New;
    }
    match read() {
        Ok(settings) => Loaded::Kept(Box::new(settings)),
        Err(why) => {
            let aside = folder.join("settings.broken.json");
            // Where even that fails the defaults are used all the same.
            let _ = fs::rename(&path, &aside);
            Loaded::SetAside { aside, why }
        }
    }
}

/// Writes the settings into `folder`, whole or not at all.
///
/// # Errors
/// What the system says.
pub fn save(folder: &Path, settings: &Settings) -> std::io::Result<()> {
    write_json(&folder.join("settings.json"), settings)
}

/// Writes a value as JSON under a temporary name, then renames.
///
/// # Errors
/// What the system says.
pub fn write_json(path: &Path, value: &impl Serialize) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    serde_json::to_writer_pretty(&mut file, value)?;
    file.write_all(b"\n")?;
    file.persist(path)?;
    Ok(())
}

impl Settings {
    /// The same with every number where it may be.
    fn in_range(mut self) -> Self {
        let usual = Self::default();
        let within = |value: &mut f32, low: f32, high: f32, usual: f32| {
            *value = if value.is_finite() {
                value.clamp(low, high)
            } else {
                usual
            };
        };
        within(&mut self.enhance.strength, 0.0, 1.0, usual.enhance.strength);
        let (blend, motion) = (&mut self.blend, &mut self.motion);
        within(&mut blend.ratio, 0.1, 1.0, usual.blend.ratio);
        within(&mut blend.feather, 0.0, 1.0, usual.blend.feather);
        within(&mut blend.colour_match, 0.0, 1.0, usual.blend.colour_match);
        within(&mut blend.detail, 0.0, 1.0, usual.blend.detail);
        within(&mut motion.scale, 0.0, 2.0, usual.motion.scale);
        within(&mut motion.smoothing, 0.0, 1.0, usual.motion.smoothing);
        within(&mut self.hold.fps, 5.0, 60.0, usual.hold.fps);
        within(&mut self.window[0], 480.0, 16384.0, usual.window[0]);
        within(&mut self.window[1], 320.0, 16384.0, usual.window[1]);
        self.reel.truncate(MOST_PHOTOS);
        self.models.truncate(MOST_MODELS);
        for face in self
            .reel
            .iter_mut()
            .flat_map(|photo| photo.faces.iter_mut().flatten())
        {
            face.ratio = face.ratio.filter(|ratio| (0.1..=1.0).contains(ratio));
        }
        self.on_stage = self.on_stage.min(self.reel.len().saturating_sub(1));
        self
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn settings_are_read_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("not yet there");
        assert_eq!(load(&inside), Loaded::New);
        let settings = Settings {
            reel: vec![Photo {
                origin: PhotoOrigin::File("/a/photo.png".into()),
                faces: Some(vec![Face {
                    crop: [1, 2, 30, 40],
                    ratio: Some(0.5),
                }]),
            }],
            driver: Driver::Camera("Integrated".to_owned()),
            ..Settings::default()
        };
        save(&inside, &settings).unwrap();
        assert_eq!(load(&inside), Loaded::Kept(Box::new(settings)));
        assert_eq!(
            fs::read_dir(&inside).unwrap().count(),
            1,
            "no temporary file stays"
        );
    }

    #[test]
    fn a_broken_file_is_set_aside_and_said() {
        let folder = tempfile::tempdir().unwrap();
        for text in [
            "",
            "{",
            "7",
            r#"{"version": 99}"#,
            "\u{0}\u{1}",
            r#"{"blend": 3}"#,
        ] {
            fs::write(folder.path().join("settings.json"), text).unwrap();
            let Loaded::SetAside { aside, why } = load(folder.path()) else {
                panic!("{text:?} was kept");
            };
            assert_eq!(fs::read_to_string(aside).unwrap(), text);
            assert!(!why.is_empty());
            assert_eq!(load(folder.path()), Loaded::New);
        }
    }

    #[test]
    fn settings_from_before_the_frame_rate_was_held_are_kept_and_it_is_held_from_now_on() {
        let folder = tempfile::tempdir().unwrap();
        let mut old = serde_json::to_value(Settings {
            microphone: false,
            ..Settings::default()
        })
        .unwrap();
        old.as_object_mut().unwrap().remove("hold").unwrap();
        write_json(&folder.path().join("settings.json"), &old).unwrap();
        let Loaded::Kept(kept) = load(folder.path()) else {
            panic!("set aside")
        };
        assert!(!kept.microphone);
        assert_eq!(
            kept.hold,
            Hold {
                on: true,
                fps: 25.0
            }
        );
    }

    #[test]
    fn what_is_missing_has_its_default_and_what_is_unknown_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let text = r#"{"version":1,"blend":{"ratio":0.7},"of the future":[1]}"#;
        fs::write(folder.path().join("settings.json"), text).unwrap();
        let mut expected = Settings::default();
        expected.blend.ratio = 0.7;
        assert_eq!(load(folder.path()), Loaded::Kept(Box::new(expected)));
    }

    proptest! {
        #[test]
        fn numbers_come_back_into_range(ratio in any::<f32>(), scale in any::<f32>(), fps in any::<f32>(), on in any::<usize>()) {
            let mut settings = Settings::default();
            settings.hold.fps = fps;
            settings.blend.ratio = ratio;
            settings.motion.scale = scale;
            settings.on_stage = on;
            let settings = settings.in_range();
            prop_assert!((0.1..=1.0).contains(&settings.blend.ratio));
            prop_assert!((0.0..=2.0).contains(&settings.motion.scale));
            prop_assert!((5.0..=60.0).contains(&settings.hold.fps));
            prop_assert_eq!(settings.on_stage, 0);
        }
    }
}

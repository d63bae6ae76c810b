//! What is on stage: the photo, the last predictions for it, and the picture composed of both.
//!
//! A change of the paste-back settings composes again from the same predictions: no inference, and on the
//! screen with the very next frame.

use std::sync::Arc;
use std::time::Instant;

use image::RgbaImage;

use super::picture::Picture;
use super::reel::Face;
use crate::frame::{Prediction, SharedMemory};
use crate::geometry::Rect;
use crate::gpu::{self, Compositor, PasteSettings};

/// The compositor with the photo on stage.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) picture: Picture,
    compositor: Compositor,
    photo: Option<OnStage>,
    predictions: Vec<Prediction>,
    settings: PasteSettings,
    /// The texture has the photo in it: only the faces' part changes from frame to frame.
    plain: bool,
    /// The picture is not what photo, predictions and settings make.
    stale: bool,
    /// What composing took last, milliseconds.
    pub(super) compose_ms: f32,
}

#[derive(Debug)]
struct OnStage {
    id: u64,
    image: Arc<RgbaImage>,
    crops: Vec<Rect>,
    ratios: Vec<Option<f32>>,
    model_size: u32,
}

impl Stage {
    /// An empty stage.
    ///
    /// # Errors
    /// When the window's device cannot do what `choice` asks for.
    pub(super) fn new(
        picture: Picture,
        choice: gpu::Choice,
        device: &gpu::Device,
    ) -> Result<Self, gpu::Error> {
        Ok(Self {
            picture,
            compositor: Compositor::on(choice, device)?,
            plain: false,
            photo: None,
            predictions: Vec::new(),
            settings: PasteSettings::default(),
            stale: false,
            compose_ms: 0.0,
        })
    }

    /// Puts a photo on stage; at once it is seen as it is. The same photo with the same crops stays.
    pub(super) fn set_photo(
        &mut self,
        id: u64,
        image: &Arc<RgbaImage>,
        faces: &[Face],
        model_size: u32,
    ) -> Result<(), gpu::Error> {
        let crops: Vec<Rect> = faces.iter().map(|face| face.crop).collect();
        let ratios: Vec<Option<f32>> = faces.iter().map(|face| face.ratio).collect();
        let same =
            |on: &&mut OnStage| on.id == id && on.crops == crops && Arc::ptr_eq(&on.image, image);
        if let Some(on) = self.photo.as_mut().filter(same) {
            if on.model_size != model_size {
                self.compositor.set_photo(image, &crops, model_size)?;
                (on.model_size, on.ratios) = (model_size, Vec::new());
                self.stale = true;
            }
            if on.ratios != ratios {
                self.compositor.set_ratios(&ratios)?;
                on.ratios = ratios;
                self.stale = true;
            }
            return Ok(());
        }
        self.photo = None;
        self.compositor.set_photo(image, &crops, model_size)?;
        self.compositor.set_ratios(&ratios)?;
        self.predictions.clear();
        self.photo = Some(OnStage {
            id,
            image: Arc::clone(image),
            crops,
            ratios,
            model_size,
        });
        self.stale = true;
        self.plain = false;
        Ok(())
    }

    /// Nothing on stage.
    pub(super) fn clear(&mut self) {
        self.photo = None;
    }

    /// Number of the photo on stage.
    pub(super) fn photo(&self) -> Option<u64> {
        self.photo.as_ref().map(|on| on.id)
    }

    /// Takes over the newest predictions, if they are of the photo on stage.
    pub(super) fn set_predictions(&mut self, photo: u64, predictions: Vec<Prediction>) {
        let fits = |on: &OnStage| on.id == photo && on.crops.len() == predictions.len();
        if self.photo.as_ref().is_some_and(fits) {
            self.predictions = predictions;
            self.stale = true;
        }
    }

    /// The largest side of the predictions: enhanced ones are larger than the model's, and smaller ones hold the
    /// frame rate.
    pub(super) fn predicted(&self) -> Option<u32> {
        self.predictions.iter().map(|face| face.size).max()
    }

    pub(super) fn set_settings(&mut self, settings: PasteSettings) {
        if settings != self.settings {
            self.settings = settings;
            self.stale = true;
        }
    }

    /// Composes if anything has changed; true when the picture is new.
    pub(super) fn compose(&mut self) -> Result<bool, gpu::Error> {
        let Some(on) = self.photo.as_ref().filter(|_| self.stale) else {
            return Ok(false);
        };
        self.stale = false;
        let start = Instant::now();
        if !std::mem::replace(&mut self.plain, true) {
            self.picture.show(&on.image);
        }
        if !self.predictions.is_empty() {
            self.compositor.compose(&self.predictions, &self.settings)?;
            let part = self.compositor.touched();
            let texture = self.picture.canvas().texture();
            match texture.map(|texture| self.compositor.copy_into(texture)) {
                Some(Ok(true)) => self.picture.canvas().halve(part),
                Some(Err(error)) => return Err(error),
                _ => self.picture.update(self.compositor.output()?, part),
            }
        }
        self.compose_ms = start.elapsed().as_secs_f32() * 1000.0;
        Ok(true)
    }

    /// Size of the picture on stage.
    pub(super) fn size(&self) -> Option<(u32, u32)> {
        self.photo.as_ref().map(|on| on.image.dimensions())
    }

    /// The picture composed last, for a recording or a screenshot: from a graphics card it is read back.
    pub(super) fn image(&mut self) -> Result<Option<&RgbaImage>, gpu::Error> {
        let Some(on) = &self.photo else {
            return Ok(None);
        };
        Ok(Some(if self.predictions.is_empty() {
            &on.image
        } else {
            self.compositor.output()?
        }))
    }

    /// See [`Compositor::share`].
    pub(super) fn share(&mut self) -> Result<Arc<SharedMemory>, gpu::Error> {
        self.compositor.share()
    }

    /// Whether the newest predictions have stayed on the card.
    pub(super) fn on_card(&self) -> bool {
        self.predictions.iter().any(|face| face.lent.is_some())
    }

    /// Who composes.
    pub(super) fn device(&self) -> String {
        self.compositor.device_name()
    }
}

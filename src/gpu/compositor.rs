//! One photo, its faces, and the frames made of them: on a graphics card or by the CPU twin.

use std::sync::Arc;

use image::RgbaImage;

use super::Error;
use super::context::{Context, Device};
use super::mask::{PasteMode, PasteSettings, Raster};
use super::neighbours::Share;
use super::prepare::{Face, Prepared, Rim, Taste, check_crop, check_prediction, model_view};
use super::reference::{self, Twin};
use super::scene::Gpu;
use crate::frame::{Prediction, SharedMemory};
use crate::geometry::Rect;

/// Who composes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// A graphics card if there is one, else the CPU. Software adapters (lavapipe, WARP) are passed
    /// over: the CPU twin does the same work faster.
    #[default]
    Auto,
    /// The best adapter that wgpu finds, a software one if need be; none is an error.
    Wgpu,
    /// The CPU twin.
    Cpu,
}

impl std::str::FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "wgpu" => Ok(Self::Wgpu),
            "cpu" => Ok(Self::Cpu),
            _ => Err(format!(
                "'{text}' is not a compositor: choose auto, wgpu or cpu"
            )),
        }
    }
}

/// Puts predictions back into a photo, frame after frame.
///
/// Keep it on one thread: with a graphics card, all its queue work is done by the calls below.
#[derive(Debug)]
pub struct Compositor {
    choice: Choice,
    gpu: Option<Gpu>,
    photo: RgbaImage,
    output: RgbaImage,
    /// The frame is on the adapter and not yet in `output`.
    unread: bool,
    faces: Vec<Face>,
    prepared: Vec<Prepared>,
    /// Ratios of faces that have their own.
    ratios: Vec<Option<f32>>,
    /// What `shares` and `rims` were made for.
    masked: Option<PasteSettings>,
    shares: Vec<Share>,
    rims: Vec<Vec<Rim>>,
    /// The CPU's: one for each face while `output` differs from the photo only inside them.
    rasters: Vec<Raster>,
    twins: Vec<Twin>,
}

impl Compositor {
    /// A compositor without a photo.
    ///
    /// # Errors
    /// Only for [`Choice::Wgpu`], when no adapter can be opened.
    pub fn new(choice: Choice) -> Result<Self, Error> {
        Self::with(choice, Context::open)
    }

    /// A compositor on the window's device, see [`Compositor::copy_into`]. Of [`Choice::Auto`] a software
    /// adapter is passed over here too.
    ///
    /// # Errors
    /// Only for [`Choice::Wgpu`], when the device runs no compute shaders.
    pub fn on(choice: Choice, device: &Device) -> Result<Self, Error> {
        Self::with(choice, |software| {
            let reason = if !device.computes() {
                "the window's runs no compute shaders"
            } else if device.is_software() && !software {
                "the window's computes on the CPU"
            } else {
                return Ok(Context::on(device.clone()));
            };
            Err(Error::NoAdapter {
                reason: reason.to_owned(),
            })
        })
    }

    fn with(choice: Choice, open: impl Fn(bool) -> Result<Context, Error>) -> Result<Self, Error> {
        let gpu = match choice {
            Choice::Cpu => None,
            Choice::Wgpu => Some(open(true).and_then(Gpu::new)?),
            Choice::Auto => match open(false).and_then(Gpu::new) {
                Ok(gpu) => Some(gpu),
                Err(error) => {
                    tracing::debug!("composing on the CPU: {error}");
                    None
                }
            },
        };
        Ok(Self {
            choice,
            gpu,
            photo: RgbaImage::default(),
            output: RgbaImage::default(),
            unread: false,
            faces: Vec::new(),
            prepared: Vec::new(),
            ratios: Vec::new(),
            masked: None,
            shares: Vec::new(),
            rims: Vec::new(),
            rasters: Vec::new(),
            twins: Vec::new(),
        })
    }

    /// Takes a photo and the crop of each face, in the order in which they are pasted.
    /// `model_size` is the side of the square that the networks saw of a crop: see [`model_view`].
    ///
    /// # Errors
    /// An empty photo, a crop that is empty or not inside it, a model size out of 1..=4096; with
    /// [`Choice::Wgpu`] also what the adapter says.
    pub fn set_photo(
        &mut self,
        photo: &RgbaImage,
        crops: &[Rect],
        model_size: u32,
    ) -> Result<(), Error> {
        check_crop(photo, Rect::of_size(photo.width(), photo.height()))?;
        let faces = crops
            .iter()
            .map(|&crop| {
                Ok(Face {
                    crop,
                    low: model_view(photo, crop, model_size)?,
                })
            })
            .collect::<Result<Vec<_>, Error>>()?;
        self.photo = photo.clone();
        self.output = photo.clone();
        self.unread = false;
        self.prepared.clear();
        self.prepared.resize_with(faces.len(), Prepared::default);
        self.twins.clear();
        self.twins.resize_with(faces.len(), Twin::default);
        self.faces = faces;
        self.ratios.clear();
        self.masked = None;
        self.rasters.clear();
        if let Some(gpu) = &mut self.gpu {
            let result = gpu.set_photo(&self.photo, &self.faces);
            self.gpu_or_fall_back(result)?;
        }
        Ok(())
    }

    /// Gives faces of the photo a ratio of their own in place of [`PasteSettings::ratio`], in the
    /// crops' order.
    ///
    /// # Errors
    /// A ratio that is not in 0.1..=1.
    pub fn set_ratios(&mut self, ratios: &[Option<f32>]) -> Result<(), Error> {
        for ratio in ratios.iter().flatten() {
            let alone = PasteSettings {
                ratio: *ratio,
                ..PasteSettings::default()
            };
            alone.check()?;
        }
        if self.ratios != ratios {
            self.ratios = ratios.to_vec();
            self.masked = None;
        }
        Ok(())
    }

    /// The photo with one prediction for each crop in it. The picture is the compositor's own and
    /// changes with the next call.
    ///
    /// # Errors
    /// A setting out of range, a prediction too many or too few or of another size than it states;
    /// with [`Choice::Wgpu`] also what the adapter says.
    pub fn composite(
        &mut self,
        predictions: &[Prediction],
        settings: &PasteSettings,
    ) -> Result<&RgbaImage, Error> {
        self.compose(predictions, settings)?;
        let on_gpu = self.on_gpu();
        self.read()?;
        if on_gpu && !self.on_gpu() {
            // It went away with the frame.
            self.compose(predictions, settings)?;
        }
        Ok(&self.output)
    }

    /// As [`Compositor::composite`], but with a graphics card the frame stays there until it is asked for.
    ///
    /// # Errors
    /// As [`Compositor::composite`].
    pub fn compose(
        &mut self,
        predictions: &[Prediction],
        settings: &PasteSettings,
    ) -> Result<(), Error> {
        settings.check()?;
        if predictions.len() != self.faces.len() {
            let (predictions, crops) = (predictions.len(), self.faces.len());
            return Err(Error::Count { predictions, crops });
        }
        for (index, prediction) in predictions.iter().enumerate() {
            check_prediction(index, prediction)?;
            if let Some(lent) = &prediction.lent
                && !self.gpu.as_ref().is_some_and(|gpu| gpu.holds(lent))
            {
                return Err(Error::Elsewhere { index });
            }
        }
        self.make_masks(settings);
        let feathered = settings.mode == PasteMode::Feather;
        let taste = Taste {
            detail: settings.detail,
            matched: if feathered {
                settings.colour_match
            } else {
                0.0
            },
            shrinks: feathered,
        };
        self.unread = false;
        if let Some(gpu) = self.gpu.as_mut().filter(|gpu| gpu.ready()) {
            // What is left by the CPU's frames is in rows that are read back.
            self.rasters.clear();
            let result = gpu.render(&self.faces, predictions, &taste, &self.shares);
            self.gpu_or_fall_back(result)?;
            self.unread = self.on_gpu();
        }
        if !self.on_gpu() {
            let faces = self.faces.iter().zip(&self.rims).zip(&mut self.prepared);
            for (index, (((face, rim), prepared), given)) in faces.zip(predictions).enumerate() {
                match (&given.lent, &self.gpu) {
                    (None, _) => prepared.update(given, face, &taste, rim),
                    (Some(_), Some(gpu)) => {
                        prepared.update(&gpu.fetch(given)?, face, &taste, rim);
                    }
                    (Some(_), None) => return Err(Error::Elsewhere { index }),
                }
            }
            self.paint();
        }
        Ok(())
    }

    /// What was composed last; the photo itself before that. What an adapter takes with it when it fails is missing in it.
    ///
    /// # Errors
    /// With [`Choice::Wgpu`], what the adapter says.
    pub fn output(&mut self) -> Result<&RgbaImage, Error> {
        self.read()?;
        Ok(&self.output)
    }

    fn read(&mut self) -> Result<(), Error> {
        if std::mem::take(&mut self.unread)
            && let Some(gpu) = &self.gpu
        {
            let result = gpu.read(&mut self.output);
            self.gpu_or_fall_back(result)?;
        }
        Ok(())
    }

    /// Copies what was composed last into a texture of the compositor's device that holds the photo; false
    /// when it was composed on the CPU: then [`Compositor::output`] has it, and differs from the photo in
    /// [`Compositor::touched`].
    ///
    /// # Errors
    /// With [`Choice::Wgpu`], what the adapter says.
    pub fn copy_into(&mut self, texture: &wgpu::Texture) -> Result<bool, Error> {
        let (width, height) = self.photo.dimensions();
        let fits = (texture.width(), texture.height()) == (width, height);
        let Some(gpu) = self.gpu.as_ref().filter(|gpu| fits && gpu.ready()) else {
            return Ok(false);
        };
        let result = gpu.copy_into(texture);
        self.gpu_or_fall_back(result)?;
        self.unread &= self.on_gpu();
        Ok(self.on_gpu())
    }

    /// Memory on the compositor's card in which the networks may leave predictions, if they run on the same one.
    ///
    /// # Errors
    /// When it is not a graphics card that composes, or not one that lets its memory be shared.
    pub fn share(&mut self) -> Result<Arc<SharedMemory>, Error> {
        match &mut self.gpu {
            Some(gpu) => gpu.share(),
            None => Err(Error::Sharing {
                adapter: self.device_name(),
                reason: "it composes by itself".to_owned(),
            }),
        }
    }

    /// The part of the photo that its faces are in; empty without any.
    pub fn touched(&self) -> Rect {
        let crops = self.faces.iter().map(|face| face.crop);
        crops
            .reduce(|all, crop| {
                Rect::new(
                    all.x1.min(crop.x1),
                    all.y1.min(crop.y1),
                    all.x2.max(crop.x2),
                    all.y2.max(crop.y2),
                )
            })
            .unwrap_or(Rect::new(0, 0, 0, 0))
    }

    /// Who composes the photo set last: the adapter's name, or "CPU".
    pub fn device_name(&self) -> String {
        match &self.gpu {
            Some(gpu) if self.photo.is_empty() || gpu.ready() => gpu.context.name.clone(),
            _ => "CPU".to_owned(),
        }
    }

    /// Lowers the adapter's limits, to test what happens beyond them.
    #[cfg(test)]
    pub(super) fn pretend_max_side(&mut self, side: u32) {
        if let Some(gpu) = &mut self.gpu {
            gpu.context.pretend_max_side(side);
        }
    }

    fn on_gpu(&self) -> bool {
        self.gpu.as_ref().is_some_and(Gpu::ready)
    }

    /// An adapter nobody asked for by name may fail: the CPU goes on.
    fn gpu_or_fall_back(&mut self, result: Result<(), Error>) -> Result<(), Error> {
        match result {
            Err(error) if self.choice == Choice::Auto => {
                tracing::warn!("{error}; going on with the CPU");
                self.gpu = None;
                Ok(())
            }
            other => other,
        }
    }

    fn make_masks(&mut self, settings: &PasteSettings) {
        let shape = |s: &PasteSettings| (s.mode, s.ratio, s.feather);
        if self
            .masked
            .is_some_and(|made| shape(&made) == shape(settings))
        {
            return;
        }
        let crops: Vec<Rect> = self.faces.iter().map(|face| face.crop).collect();
        self.shares = Share::of_all(&crops, &self.ratios, self.photo.dimensions(), settings);
        self.rims = self
            .faces
            .iter()
            .zip(&self.shares)
            .map(|(face, share)| Rim::of(&share.mask, face.crop))
            .collect();
        if let Some(gpu) = &mut self.gpu {
            gpu.set_rims(&self.rims);
        }
        self.masked = Some(*settings);
        self.rasters.clear();
    }

    fn paint(&mut self) {
        if self.rasters.is_empty() {
            self.output.copy_from_slice(&self.photo);
            self.rasters.resize_with(self.faces.len(), Raster::default);
            let faces = self.faces.iter().zip(&self.shares);
            for ((face, share), raster) in faces.zip(&mut self.rasters) {
                raster.draw(share, face.crop.width(), face.crop.height());
            }
        } else {
            for (face, raster) in self.faces.iter().zip(&self.rasters) {
                reference::restore(&mut self.output, &self.photo, face.crop, raster);
            }
        }
        let twins = self
            .twins
            .iter_mut()
            .zip(&self.faces)
            .zip(&self.prepared)
            .zip(&self.rasters);
        for (((twin, face), prepared), raster) in twins {
            twin.paint(&mut self.output, &self.photo, face, prepared, raster);
        }
    }
}

#[cfg(test)]
mod tests {
    use image::Rgba;

    use super::*;

    const CROP: Rect = Rect::new(10, 5, 74, 69);

    /// A compositor on whatever adapter there is, even where `choice` would not take it.
    fn on_adapter(choice: Choice) -> Option<Compositor> {
        let mut compositor = Compositor::new(Choice::Cpu).unwrap();
        compositor.choice = choice;
        compositor.gpu = match Context::open(true).and_then(Gpu::new) {
            Ok(gpu) => Some(gpu),
            Err(_) if std::env::var("MIMIC_TEST_NO_ADAPTER").is_ok_and(|v| v == "1") => {
                return None;
            }
            Err(error) => panic!("{error}; MIMIC_TEST_NO_ADAPTER=1 leaves this test out"),
        };
        Some(compositor)
    }

    fn photo() -> RgbaImage {
        RgbaImage::from_fn(90, 80, |x, y| {
            Rgba([(x * 2) as u8, (y * 3) as u8, (x ^ y) as u8, 255])
        })
    }

    fn prediction() -> Prediction {
        Prediction {
            size: 32,
            rgba: model_view(&photo(), CROP, 32).unwrap().into_raw(),
            map_size: 1,
            deformation: vec![[0.0, 0.0]],
            occlusion: vec![1.0],
            lent: None,
        }
    }

    fn expected() -> RgbaImage {
        let mut cpu = Compositor::new(Choice::Cpu).unwrap();
        cpu.set_photo(&photo(), &[CROP], 32).unwrap();
        cpu.composite(&[prediction()], &PasteSettings::default())
            .unwrap()
            .clone()
    }

    #[test]
    fn a_photo_too_large_for_the_adapter_is_composed_on_the_cpu() {
        let Some(mut compositor) = on_adapter(Choice::Wgpu) else {
            return;
        };
        compositor.pretend_max_side(64);
        compositor.set_photo(&photo(), &[CROP], 32).unwrap();
        assert_eq!(compositor.device_name(), "CPU");
        let settings = PasteSettings::default();
        assert!(*compositor.composite(&[prediction()], &settings).unwrap() == expected());
        compositor.pretend_max_side(8192);
        compositor.set_photo(&photo(), &[CROP], 32).unwrap();
        assert_ne!(compositor.device_name(), "CPU");
    }

    #[test]
    fn an_adapter_that_is_lost_stops_only_who_asked_for_it() {
        let settings = PasteSettings::default();
        for choice in [Choice::Auto, Choice::Wgpu] {
            let Some(mut compositor) = on_adapter(choice) else {
                return;
            };
            compositor.set_photo(&photo(), &[CROP], 32).unwrap();
            compositor.composite(&[prediction()], &settings).unwrap();
            let name = compositor.device_name();
            compositor.gpu.as_ref().unwrap().context.device.destroy();
            let result = compositor.composite(&[prediction()], &settings).cloned();
            match choice {
                Choice::Auto => {
                    assert!(result.unwrap() == expected());
                    assert_eq!(compositor.device_name(), "CPU");
                }
                _ => {
                    let text = result.unwrap_err().to_string();
                    assert!(
                        text.contains(&name) && text.contains("--compositor cpu"),
                        "{text}"
                    );
                }
            }
        }
    }

    #[test]
    fn auto_passes_software_adapters_over() {
        let auto = Compositor::new(Choice::Auto).unwrap();
        let cards = crate::gpu::adapters()
            .iter()
            .any(|adapter| adapter.kind != "software");
        assert_eq!(auto.device_name() == "CPU", !cards);
    }
}

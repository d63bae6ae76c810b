//! The source photos: which there are, what of them moves, and the thread that opens them.
//!
//! Photos are opened on the thread `load`, one after the other: the window never waits for a file. What
//! is kept of a photo is a copy small enough for the stage; results are rendered from the file itself.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use eframe::egui::{ColorImage, Context, TextureHandle, TextureOptions};
use image::RgbaImage;
use image::imageops::FilterType;

use crate::faces::{self, Detector};
use crate::geometry::Rect;
use crate::media;
use crate::settings::{self, MOST_PHOTOS, PhotoOrigin};

/// The longer side of a photo on stage, in pixels: as large as most screens.
const STAGE_SIDE: u32 = 2048;
/// Faces of a photo that move without being asked to.
const MOST_FACES: usize = 4;
/// Side of a picture in the reel.
const THUMB: u32 = 140;

/// A photo of the reel.
pub(super) struct Photo {
    pub(super) id: u64,
    pub(super) origin: PhotoOrigin,
    pub(super) state: State,
    /// Set by hand: to be remembered.
    pub(super) own_faces: bool,
    pub(super) faces: Vec<Face>,
}

pub(super) enum State {
    Loading,
    Ready(Opened),
    Failed(String),
}

/// A face: what of the photo on stage moves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Face {
    /// In pixels of the copy on stage.
    pub(super) crop: Rect,
    pub(super) ratio: Option<f32>,
}

/// A photo that has been opened.
pub(super) struct Opened {
    pub(super) image: Arc<RgbaImage>,
    pub(super) thumb: TextureHandle,
    /// Size of the file's picture over that of the copy on stage.
    pub(super) scale: f32,
}

impl Photo {
    /// What to call it.
    pub(super) fn name(&self) -> String {
        match &self.origin {
            PhotoOrigin::Painting(name) => name.replace('-', " "),
            PhotoOrigin::File(path) => {
                let stem = path.file_stem().unwrap_or(path.as_os_str());
                stem.to_string_lossy().into_owned()
            }
        }
    }

    pub(super) fn opened(&self) -> Option<&Opened> {
        match &self.state {
            State::Ready(opened) => Some(opened),
            _ => None,
        }
    }
}

/// The reel.
pub(super) struct Reel {
    pub(super) photos: Vec<Photo>,
    pub(super) on_stage: usize,
    next: u64,
    orders: SyncSender<Order>,
    results: Receiver<Loaded>,
}

struct Order {
    id: u64,
    origin: PhotoOrigin,
}

struct Loaded {
    id: u64,
    result: Result<Fresh, String>,
}

struct Fresh {
    image: RgbaImage,
    thumb: ColorImage,
    scale: f32,
    faces: Vec<Rect>,
}

impl Reel {
    /// A reel with the photos of the settings, or the paintings; they are being opened.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn new(settings: &settings::Settings, ctx: &Context) -> std::io::Result<Self> {
        let (orders, waiting) = sync_channel::<Order>(2 * MOST_PHOTOS);
        let (tell, results) = sync_channel(2 * MOST_PHOTOS);
        let ctx = ctx.clone();
        let work = move || {
            let mut detector = Detector::embedded()
                .map_err(|error| tracing::warn!("{error}"))
                .ok();
            for Order { id, origin } in waiting {
                let open = AssertUnwindSafe(|| open(&origin, detector.as_mut()));
                let result = std::panic::catch_unwind(open).unwrap_or_else(|panic| {
                    Err(format!(
                        "the photo could not be read: {}",
                        crate::pipeline::live::panic_text(&*panic)
                    ))
                });
                if tell.send(Loaded { id, result }).is_err() {
                    return;
                }
                ctx.request_repaint();
            }
        };
        std::thread::Builder::new()
            .name("load".to_owned())
            .spawn(work)?;
        let mut reel = Self {
            photos: Vec::new(),
            on_stage: 0,
            next: 0,
            orders,
            results,
        };
        let mut known = settings.reel.clone();
        if known.is_empty() {
            known.extend(media::samples::paintings().map(|name| settings::Photo {
                origin: PhotoOrigin::Painting(name.to_owned()),
                faces: None,
            }));
        }
        // The one on stage is opened first.
        let first = settings.on_stage.min(known.len().saturating_sub(1));
        for photo in known {
            reel.push(photo, false);
        }
        reel.on_stage = first;
        let order = (first..reel.photos.len()).chain(0..first);
        for index in order {
            reel.order(index);
        }
        Ok(reel)
    }

    /// Adds a photo and shows it; false when the reel is full. One that is there is shown.
    pub(super) fn add(&mut self, origin: PhotoOrigin) -> bool {
        if let Some(index) = self.photos.iter().position(|photo| photo.origin == origin) {
            self.on_stage = index;
            if matches!(self.photos[index].state, State::Failed(_)) {
                self.photos[index].state = State::Loading;
                self.order(index);
            }
            return true;
        }
        if self.photos.len() >= MOST_PHOTOS {
            return false;
        }
        self.push(
            settings::Photo {
                origin,
                faces: None,
            },
            true,
        );
        self.on_stage = self.photos.len() - 1;
        true
    }

    /// Removes a photo; gives its number.
    pub(super) fn remove(&mut self, index: usize) -> Option<u64> {
        if index >= self.photos.len() {
            return None;
        }
        let photo = self.photos.remove(index);
        if self.on_stage > index || self.on_stage == self.photos.len() {
            self.on_stage = self.on_stage.saturating_sub(1);
        }
        Some(photo.id)
    }

    pub(super) fn current(&self) -> Option<&Photo> {
        self.photos.get(self.on_stage)
    }

    pub(super) fn current_mut(&mut self) -> Option<&mut Photo> {
        self.photos.get_mut(self.on_stage)
    }

    /// Takes over what the thread has opened; gives the numbers of the photos.
    pub(super) fn take_opened(&mut self, ctx: &Context) -> Vec<u64> {
        let mut opened = Vec::new();
        for Loaded { id, result } in self.results.try_iter() {
            let Some(photo) = self.photos.iter_mut().find(|photo| photo.id == id) else {
                continue;
            };
            photo.state = match result {
                Err(why) => State::Failed(why),
                Ok(fresh) => {
                    let name = format!("photo {id}");
                    let whole = Rect::of_size(fresh.image.width(), fresh.image.height());
                    if photo.own_faces {
                        // From the file's pixels; a file that has changed may be smaller now.
                        for face in &mut photo.faces {
                            face.crop = scaled(face.crop, 1.0 / fresh.scale).intersect(&whole);
                        }
                        photo.faces.retain(|face| !face.crop.is_empty());
                    } else {
                        let found = fresh.faces.into_iter();
                        photo.faces = found.map(|crop| Face { crop, ratio: None }).collect();
                    }
                    opened.push(id);
                    State::Ready(Opened {
                        image: Arc::new(fresh.image),
                        thumb: ctx.load_texture(name, fresh.thumb, TextureOptions::LINEAR),
                        scale: fresh.scale,
                    })
                }
            };
        }
        opened
    }

    /// As the settings remember it.
    pub(super) fn to_settings(&self) -> Vec<settings::Photo> {
        let face = |face: &Face, scale: f32| {
            let crop = scaled(face.crop, scale);
            settings::Face {
                crop: [crop.x1, crop.y1, crop.x2, crop.y2],
                ratio: face.ratio,
            }
        };
        self.photos
            .iter()
            .map(|photo| {
                // Unopened photos still have the file's pixels.
                let scale = photo.opened().map_or(1.0, |opened| opened.scale);
                let faces = photo.faces.iter().map(|f| face(f, scale)).collect();
                settings::Photo {
                    origin: photo.origin.clone(),
                    faces: photo.own_faces.then_some(faces),
                }
            })
            .collect()
    }

    fn push(&mut self, photo: settings::Photo, order: bool) {
        let faces = photo.faces.iter().flatten().map(|face| {
            let [x1, y1, x2, y2] = face.crop;
            Face {
                crop: Rect::new(x1, y1, x2, y2),
                ratio: face.ratio,
            }
        });
        self.photos.push(Photo {
            id: self.next,
            origin: photo.origin,
            state: State::Loading,
            own_faces: photo.faces.is_some(),
            faces: faces.collect(),
        });
        self.next += 1;
        if order {
            self.order(self.photos.len() - 1);
        }
    }

    fn order(&self, index: usize) {
        let Photo { id, origin, .. } = &self.photos[index];
        let order = Order {
            id: *id,
            origin: origin.clone(),
        };
        // The channel holds more than the reel.
        let _ = self.orders.try_send(order);
    }
}

/// Opens a photo: the copy for the stage, the small picture, and the faces.
fn open(origin: &PhotoOrigin, detector: Option<&mut Detector>) -> Result<Fresh, String> {
    let whole = match origin {
        PhotoOrigin::File(path) => media::open_photo(path).map_err(|e| e.to_string())?,
        PhotoOrigin::Painting(name) => media::samples::painting(name)
            .ok_or_else(|| format!("mimic brings no painting called {name}"))?,
    };
    let (width, height) = whole.dimensions();
    let longest = width.max(height);
    let (image, scale) = if longest > STAGE_SIDE {
        let fit = |side: u32| {
            ((u64::from(side) * u64::from(STAGE_SIDE) / u64::from(longest)) as u32).max(1)
        };
        let small = image::imageops::resize(&whole, fit(width), fit(height), FilterType::Triangle);
        (small, longest as f32 / STAGE_SIDE as f32)
    } else {
        (whole, 1.0)
    };
    let faces = crops(&image, detector);
    let about = faces::middle(image.width(), image.height());
    let about = faces.first().copied().unwrap_or(about);
    let cut = image::imageops::crop_imm(
        &image,
        about.x1.unsigned_abs(),
        about.y1.unsigned_abs(),
        about.width(),
        about.height(),
    );
    let thumb = image::imageops::resize(&*cut, THUMB, THUMB, FilterType::Triangle);
    let thumb = ColorImage::from_rgba_unmultiplied([THUMB as usize; 2], thumb.as_raw());
    Ok(Fresh {
        image,
        thumb,
        scale,
        faces,
    })
}

fn scaled(rect: Rect, by: f32) -> Rect {
    let edge = |v: i32| (v as f32 * by).round() as i32;
    Rect::new(edge(rect.x1), edge(rect.y1), edge(rect.x2), edge(rect.y2))
}

/// What of a photo moves, to begin with.
fn crops(image: &RgbaImage, detector: Option<&mut Detector>) -> Vec<Rect> {
    let (width, height) = image.dimensions();
    let found = detector.map_or(Ok(Vec::new()), |detector| detector.detect(image));
    let mut found = found.unwrap_or_else(|error| {
        tracing::warn!("{error}");
        Vec::new()
    });
    // Many small faces would be slow and small: the largest move, the others can be added by hand.
    found.sort_by_key(|face| std::cmp::Reverse(face.rect.area()));
    found.truncate(MOST_FACES);
    found.sort_by_key(|face| face.rect.x1);
    let crops: Vec<Rect> = found
        .iter()
        .filter_map(|face| faces::square_crop(face.rect, width, height).ok())
        .collect();
    if crops.is_empty() {
        vec![faces::middle(width, height)]
    } else {
        crops
    }
}

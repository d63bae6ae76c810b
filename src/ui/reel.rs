//! The source photos: which there are, what of them moves, and the thread that opens them.
//!
//! Photos are opened on the thread `load`, one after the other: the window never waits for a file. A photo is
//! kept at its own size as long as that fits the adapter and all of them into a gigabyte; beyond that a copy
//! is kept. Results are rendered from the file itself.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use eframe::egui::{ColorImage, Context, TextureHandle, TextureOptions};
use image::RgbaImage;
use image::imageops::FilterType;

use crate::faces::{self, Detector};
use crate::geometry::Rect;
use crate::media;
use crate::settings::{self, MOST_PHOTOS, PhotoOrigin};

/// Bytes of pixels that the reel keeps. The compositor holds the one on stage three times more: as it is, as
/// composed, and on the adapter.
const ROOM: u64 = 1 << 30;
/// The longer side of the copy of a photo for which there is no room: as large as most screens.
const COPY_SIDE: u32 = 2048;
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
    _held: Held,
}

/// A share of the [`ROOM`], until it is dropped.
struct Held(Arc<AtomicU64>, u64);

impl Held {
    /// So many bytes of it, if there are.
    fn of(room: &Arc<AtomicU64>, bytes: u64) -> Option<Self> {
        let take = |left: u64| left.checked_sub(bytes);
        let taken = room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        taken.ok().map(|_| Self(Arc::clone(room), bytes))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_add(self.1, Ordering::Relaxed);
    }
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

    fn take(&mut self, fresh: Fresh, ctx: &Context) {
        let whole = Rect::of_size(fresh.image.width(), fresh.image.height());
        if self.own_faces {
            // From the file's pixels; a file that has changed may be smaller now.
            for face in &mut self.faces {
                face.crop = scaled(face.crop, 1.0 / fresh.scale).intersect(&whole);
            }
            self.faces.retain(|face| !face.crop.is_empty());
        } else {
            let found = fresh.faces.into_iter();
            self.faces = found.map(|crop| Face { crop, ratio: None }).collect();
        }
        let name = format!("photo {}", self.id);
        self.state = State::Ready(Opened {
            image: Arc::new(fresh.image),
            thumb: ctx.load_texture(name, fresh.thumb, TextureOptions::LINEAR),
            scale: fresh.scale,
            _held: fresh.held,
        });
    }

    pub(super) fn opened(&self) -> Option<&Opened> {
        match &self.state {
            State::Ready(opened) => Some(opened),
            _ => None,
        }
    }
}

/// What the thread has found out of a photo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum News {
    Opened(u64),
    /// It cannot be opened, and why.
    Failed(u64, String),
    /// Whether the file of the one on stage is there.
    There(u64, bool),
}

/// The reel.
pub(super) struct Reel {
    pub(super) photos: Vec<Photo>,
    pub(super) on_stage: usize,
    next: u64,
    orders: SyncSender<Order>,
    answers: Receiver<(u64, Answer)>,
    /// When the file of the one on stage was looked for last, and whether the answer is due.
    looked: Instant,
    looking: bool,
}

struct Order {
    id: u64,
    origin: PhotoOrigin,
    what: What,
}

#[derive(Clone, Copy, PartialEq)]
enum What {
    Open,
    /// Whether its file is still there.
    Look,
}

enum Answer {
    Opened(Result<Fresh, String>),
    There(bool),
}

/// How often the thread looks whether the file of the photo on stage is still there.
const LOOK_EVERY: Duration = Duration::from_secs(2);

struct Fresh {
    image: RgbaImage,
    thumb: ColorImage,
    scale: f32,
    faces: Vec<Rect>,
    held: Held,
}

impl Reel {
    /// A reel with the photos of the settings, or the paintings; they are being opened.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn new(
        settings: &settings::Settings,
        max_side: u32,
        ctx: &Context,
    ) -> std::io::Result<Self> {
        let (orders, waiting) = sync_channel::<Order>(2 * MOST_PHOTOS);
        let (tell, answers) = sync_channel(2 * MOST_PHOTOS);
        let room = Arc::new(AtomicU64::new(ROOM));
        let ctx = ctx.clone();
        let work = move || {
            let mut detector = Detector::embedded()
                .map_err(|error| tracing::warn!("{error}"))
                .ok();
            for Order { id, origin, what } in waiting {
                let answer = if what == What::Look {
                    let there = |path: &std::path::Path| path.try_exists().unwrap_or(true);
                    Answer::There(!matches!(&origin, PhotoOrigin::File(path) if !there(path)))
                } else {
                    let open =
                        AssertUnwindSafe(|| open(&origin, max_side, &room, detector.as_mut()));
                    Answer::Opened(std::panic::catch_unwind(open).unwrap_or_else(|panic| {
                        Err(format!(
                            "the photo could not be read: {}",
                            crate::pipeline::live::panic_text(&*panic)
                        ))
                    }))
                };
                if tell.send((id, answer)).is_err() {
                    return;
                }
                super::wake(&ctx);
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
            answers,
            looked: Instant::now(),
            looking: false,
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
            reel.order(index, What::Open);
        }
        Ok(reel)
    }

    /// Adds a photo and shows it; false when the reel is full. One that is there is shown.
    pub(super) fn add(&mut self, origin: PhotoOrigin) -> bool {
        if let Some(index) = self.photos.iter().position(|photo| photo.origin == origin) {
            self.on_stage = index;
            if matches!(self.photos[index].state, State::Failed(_)) {
                self.photos[index].state = State::Loading;
                self.order(index, What::Open);
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

    /// Takes over what the thread has found out.
    pub(super) fn listen(&mut self, ctx: &Context) -> Vec<News> {
        if !self.looking && self.looked.elapsed() > LOOK_EVERY {
            self.looked = Instant::now();
            self.looking = self.order(self.on_stage, What::Look);
        }
        let mut news = Vec::new();
        for (id, answer) in self.answers.try_iter() {
            if matches!(answer, Answer::There(_)) {
                self.looking = false;
            }
            let Some(photo) = self.photos.iter_mut().find(|photo| photo.id == id) else {
                continue;
            };
            match answer {
                Answer::There(there) if photo.opened().is_some() => {
                    news.push(News::There(id, there));
                }
                Answer::There(_) => {}
                Answer::Opened(Err(why)) => {
                    photo.state = State::Failed(why.clone());
                    news.push(News::Failed(id, why));
                }
                Answer::Opened(Ok(fresh)) => {
                    photo.take(fresh, ctx);
                    news.push(News::Opened(id));
                }
            }
        }
        news
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
            self.order(self.photos.len() - 1, What::Open);
        }
    }

    fn order(&self, index: usize, what: What) -> bool {
        let Some(Photo { id, origin, .. }) = self.photos.get(index) else {
            return false;
        };
        let order = Order {
            id: *id,
            origin: origin.clone(),
            what,
        };
        // The channel holds more than the reel.
        self.orders.try_send(order).is_ok()
    }
}

/// Opens a photo: its pixels for the stage, the small picture, and the faces.
fn open(
    origin: &PhotoOrigin,
    max_side: u32,
    room: &Arc<AtomicU64>,
    detector: Option<&mut Detector>,
) -> Result<Fresh, String> {
    let whole = match origin {
        PhotoOrigin::File(path) => media::open_photo(path).map_err(|e| e.to_string())?,
        PhotoOrigin::Painting(name) => media::samples::painting(name)
            .ok_or_else(|| format!("mimic brings no painting called {name}"))?,
    };
    let longest = whole.width().max(whole.height());
    let (image, held) = match Held::of(room, bytes(&whole)).filter(|_| longest <= max_side) {
        Some(held) => (whole, held),
        None => {
            let copy = fitted(&whole, COPY_SIDE.min(max_side));
            let held = Held::of(room, bytes(&copy));
            let full = "there is no room for more photos of this size: remove some from the reel";
            (copy, held.ok_or_else(|| full.to_owned())?)
        }
    };
    let scale = longest as f32 / image.width().max(image.height()).max(1) as f32;
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
        held,
    })
}

fn bytes(image: &RgbaImage) -> u64 {
    u64::from(image.width()) * u64::from(image.height()) * 4
}

/// The picture with that for its longer side, or as it is when it is smaller.
pub(super) fn fitted(image: &RgbaImage, longer: u32) -> RgbaImage {
    let (width, height) = image.dimensions();
    let longest = width.max(height);
    if longest <= longer {
        return image.clone();
    }
    let fit =
        |side: u32| ((u64::from(side) * u64::from(longer) / u64::from(longest)) as u32).max(1);
    image::imageops::resize(image, fit(width), fit(height), FilterType::Triangle)
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

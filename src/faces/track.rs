//! Following faces through a clip or a camera's pictures.
//!
//! The first picture with a face says which: the largest, or for several drivers the largest so many
//! from left to right. From then on the detector looks only near where each was, at a small size,
//! which costs milliseconds. A face that is not there is looked for in the whole picture: at once
//! (after a cut it is elsewhere), then now and then; until it is found the crop stays where it was.
//!
//! The crop is dragged behind the face as if on a leash. While the face moves within a tenth of the
//! crop nothing moves, so that the driver's own movements reach the photo and the detector's trembling
//! does not; beyond that the crop follows, so that the face does not leave it.

use image::RgbaImage;

use super::crop::{middle, square_crop};
use super::detect::{Error, Mimic};
use crate::geometry::Rect;

/// Length of the leash, in lengths of the face (its longer side); the crop has 2.1.
const LEASH: f64 = 0.2;

/// How much larger or smaller than fits the face a crop may become before it changes.
const SLACK: f64 = 1.15;

/// How much of the way to what the detector says a face's place goes with each picture.
const HASTE: f64 = 0.4;

/// The part that is searched for a face: so many lengths of the face to each side of its middle.
const NEAR: f64 = 1.7;

/// Longest side at which that part is looked at.
const NEAR_PIXELS: u32 = 192;

/// Pictures between two searches of the whole picture for a lost face.
const SEARCH_EVERY: u32 = 8;

/// Two places farther apart than so many lengths of the face are not one face that moved.
const JUMP: f64 = 1.2;

/// What the networks are to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tracked {
    /// A square inside the picture, the face in it as in a photo's crop. The middle of the picture
    /// until a face has been seen.
    pub crop: Rect,
    /// Whether the face is in this picture.
    pub found: bool,
    /// Whether it was in the picture before too, but elsewhere: there was a cut, and the crop is a new one.
    pub cut: bool,
}

/// Follows one face, or several.
#[derive(Debug)]
pub struct Tracker {
    network: Mimic,
    /// One for each driver, empty until all are seen at once.
    trails: Vec<Trail>,
    drivers: usize,
    /// Pictures until the next search.
    wait: u32,
    tracked: Vec<Tracked>,
}

impl Tracker {
    /// Follows the largest face.
    ///
    /// # Errors
    /// When the system gives no threads.
    pub fn new() -> Result<Self, Error> {
        Self::of_several(1)
    }

    /// Follows the `drivers` largest faces, numbered from left to right as they first appear together.
    ///
    /// # Errors
    /// When the system gives no threads.
    pub fn of_several(drivers: usize) -> Result<Self, Error> {
        Ok(Self {
            // On the caller's thread: pictures are small, and what follows has the others.
            network: Mimic::new(1)?,
            trails: Vec::new(),
            drivers: drivers.max(1),
            wait: 0,
            tracked: Vec::new(),
        })
    }

    /// Where the face is in the next picture.
    pub fn follow(&mut self, picture: &RgbaImage) -> Tracked {
        self.follow_all(picture)[0]
    }

    /// Where each face is in the next picture: as many as there are drivers, at least one.
    pub fn follow_all(&mut self, picture: &RgbaImage) -> &[Tracked] {
        if let Err(error) = self.look(picture) {
            tracing::warn!("the driving face is not followed in a frame: {error}");
            self.trails.iter_mut().for_each(|trail| trail.found = false);
        }
        let (width, height) = picture.dimensions();
        self.tracked.clear();
        if self.trails.is_empty() {
            let crop = middle(width, height);
            self.tracked.resize(
                self.drivers,
                Tracked {
                    crop,
                    found: false,
                    cut: false,
                },
            );
        }
        self.tracked
            .extend(self.trails.iter().map(|trail| trail.tracked(width, height)));
        &self.tracked
    }

    /// Forgets the faces: the next picture is the first of another clip.
    pub fn reset(&mut self) {
        self.trails.clear();
        self.wait = 0;
    }

    fn look(&mut self, picture: &RgbaImage) -> Result<(), Error> {
        let seen = self.trails.len() == self.drivers;
        for trail in &mut self.trails {
            (trail.before, trail.cut) = (trail.found, false);
            if trail.found {
                let near = trail.near(picture.width(), picture.height());
                let found = self.network.detect_in(picture, near, NEAR_PIXELS)?;
                trail.step(found.iter().map(|face| face.edges));
            }
        }
        if seen && self.trails.iter().all(|trail| trail.found) {
            self.wait = 0;
            return Ok(());
        }
        if self.wait > 0 {
            self.wait -= 1;
            return Ok(());
        }
        self.wait = SEARCH_EVERY;
        let mut faces: Vec<[f32; 4]> = self
            .network
            .detect(picture)?
            .iter()
            .map(|face| face.edges)
            .collect();
        // The largest first.
        let area = |[x1, y1, x2, y2]: [f32; 4]| (x2 - x1) * (y2 - y1);
        faces.sort_by(|&a, &b| area(b).total_cmp(&area(a)));
        if !seen {
            if faces.len() >= self.drivers {
                faces.truncate(self.drivers);
                faces.sort_by(|a, b| a[0].total_cmp(&b[0]));
                self.trails = faces.into_iter().map(Trail::start).collect();
            }
            return Ok(());
        }
        // Those that are followed keep their faces; the others get what is left, the nearest first.
        for trail in self.trails.iter().filter(|trail| trail.found) {
            faces.retain(|&face| trail.distance(face) > trail.length / 2.0);
        }
        for trail in self.trails.iter_mut().filter(|trail| !trail.found) {
            let nearest = (0..faces.len()).min_by(|&a, &b| {
                trail
                    .distance(faces[a])
                    .total_cmp(&trail.distance(faces[b]))
            });
            if let Some(nearest) = nearest {
                let cut = trail.before;
                *trail = Trail::start(faces.swap_remove(nearest));
                trail.cut = cut;
            }
        }
        Ok(())
    }
}

/// One face on its way.
#[derive(Clone, Debug)]
struct Trail {
    /// The face, smoothed: middle, width, height.
    face: [f64; 4],
    /// Middle and length of the face that the crop is for, dragged behind.
    x: f64,
    y: f64,
    length: f64,
    found: bool,
    /// Whether it was found in the picture before.
    before: bool,
    cut: bool,
}

impl Trail {
    fn start(edges: [f32; 4]) -> Self {
        let face = measures(edges);
        Self {
            face,
            x: face[0],
            y: face[1],
            length: longer(face),
            found: true,
            before: false,
            cut: false,
        }
    }

    /// The part of the picture in which the face should be.
    fn near(&self, width: u32, height: u32) -> Rect {
        let part = square(self.face[0], self.face[1], NEAR * longer(self.face));
        let inside = part.intersect(&Rect::of_size(width, height));
        if inside.is_empty() {
            Rect::of_size(width, height)
        } else {
            inside
        }
    }

    /// Takes the nearest of what was found there.
    fn step(&mut self, found: impl Iterator<Item = [f32; 4]>) {
        let nearest = found.min_by(|&a, &b| self.distance(a).total_cmp(&self.distance(b)));
        let Some(edges) = nearest.filter(|&edges| self.distance(edges) < JUMP * self.length) else {
            self.found = false;
            return;
        };
        let seen = measures(edges);
        for (value, seen) in self.face.iter_mut().zip(seen) {
            *value += HASTE * (seen - *value);
        }
        let length = longer(self.face);
        self.length = self.length.clamp(length / SLACK, length * SLACK);
        let leash = LEASH * self.length;
        self.x = self.x.clamp(self.face[0] - leash, self.face[0] + leash);
        self.y = self.y.clamp(self.face[1] - leash, self.face[1] + leash);
    }

    fn distance(&self, edges: [f32; 4]) -> f64 {
        let [x, y, ..] = measures(edges);
        (x - self.face[0]).hypot(y - self.face[1])
    }

    fn tracked(&self, width: u32, height: u32) -> Tracked {
        let face = square(self.x, self.y, self.length / 2.0);
        Tracked {
            crop: square_crop(face, width, height).unwrap_or_else(|_| middle(width, height)),
            found: self.found,
            cut: self.cut,
        }
    }
}

/// Middle x and y, width and height.
fn measures([x1, y1, x2, y2]: [f32; 4]) -> [f64; 4] {
    let [x1, y1, x2, y2] = [x1, y1, x2, y2].map(f64::from);
    [(x1 + x2) / 2.0, (y1 + y2) / 2.0, x2 - x1, y2 - y1]
}

fn longer([_, _, width, height]: [f64; 4]) -> f64 {
    width.max(height).max(1.0)
}

/// So far to each side of a middle; floats as integers saturate.
fn square(x: f64, y: f64, reach: f64) -> Rect {
    let edge = |v: f64| v.round() as i32;
    Rect::new(
        edge(x - reach),
        edge(y - reach),
        edge(x + reach),
        edge(y + reach),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn face(x: f32, y: f32, length: f32) -> [f32; 4] {
        let half = length / 2.0;
        [x - 0.8 * half, y - half, x + 0.8 * half, y + half]
    }

    #[test]
    fn a_trembling_face_keeps_its_crop_and_a_wandering_one_takes_it_along() {
        let mut trail = Trail::start(face(300.0, 200.0, 100.0));
        let first = trail.tracked(1000, 600);
        for i in 0..50_i16 {
            let tremble = f32::from(i % 3) * 4.0;
            trail.step([face(300.0 + tremble, 204.0 - tremble, 102.0)].into_iter());
            assert_eq!(trail.tracked(1000, 600), first);
        }
        for i in 0..100_i16 {
            let x = 300.0 + 3.0 * f32::from(i);
            let before = trail.tracked(1000, 600).crop;
            trail.step([face(x, 200.0, 100.0)].into_iter());
            let after = trail.tracked(1000, 600);
            assert!(after.found && after.crop.width() == first.crop.width());
            assert!((0..=5).contains(&(after.crop.x1 - before.x1)), "no jump");
            let middle = f64::from(after.crop.x1 + after.crop.x2) / 2.0;
            assert!((middle - f64::from(x)).abs() < 0.3 * 100.0, "{middle} {x}");
        }
    }

    #[test]
    fn of_two_faces_the_nearer_is_followed_and_a_far_one_never() {
        let mut trail = Trail::start(face(300.0, 200.0, 100.0));
        trail.step([face(390.0, 200.0, 100.0), face(310.0, 200.0, 100.0)].into_iter());
        assert!(trail.found && trail.face[0] < 320.0);
        trail.step([face(700.0, 200.0, 100.0)].into_iter());
        assert!(!trail.found && trail.face[0] < 320.0);
    }

    #[test]
    fn a_crop_fits_a_face_that_grows() {
        let mut trail = Trail::start(face(300.0, 300.0, 80.0));
        for i in 0..60_i16 {
            trail.step([face(300.0, 300.0, 80.0 + 2.0 * f32::from(i))].into_iter());
        }
        let crop = trail.tracked(1000, 1000).crop;
        let ratio = f64::from(crop.width()) / 198.0;
        assert!((1.7..=2.6).contains(&ratio), "{ratio}");
    }
}

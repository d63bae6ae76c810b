//! What a restorer added to one face, on the faces after it.
//!
//! A restorer that takes longer than a frame enhances every Nth. Were the frames between shown as they
//! are, the picture would pulse; were its result held, it would hang behind the face. So only what it has
//! added is kept, and moved along: a place of a face comes from a place of the photo (the deformation),
//! and what was added where the same place of the photo lay is added again. Where the two faces do not
//! move alike, an opening mouth say, less of it is.

use rayon::prelude::*;

use super::{Error, enlarge};
use crate::frame::Prediction;

/// How far a place may have moved until half of what was added to it is left, in sides of the face.
const HALF_AT: f32 = 0.06;

/// Looks for the place of the photo: each halves what is left of the distance, or better.
const STEPS: usize = 3;

/// What was added to a face, and where its places came from.
#[derive(Clone, Debug, Default)]
pub struct Carried {
    side: usize,
    /// Levels, for each pixel.
    added: Vec<[i16; 3]>,
    map: usize,
    deformation: Vec<[f32; 2]>,
}

impl Carried {
    /// What has been added to `before` to make `after`: the same face, enhanced.
    ///
    /// # Errors
    /// When a picture has no pixels.
    pub fn between(before: &Prediction, after: &Prediction) -> Result<Self, Error> {
        let plain = enlarge(before, after.size)?;
        let difference = |(after, before): (&u8, &u8)| i16::from(*after) - i16::from(*before);
        let pixels = after.rgba.chunks_exact(4).zip(plain.chunks_exact(4));
        Ok(Self {
            side: after.size as usize,
            added: pixels
                .map(|(after, before)| std::array::from_fn(|c| difference((&after[c], &before[c]))))
                .collect(),
            map: before.map_size as usize,
            deformation: before.deformation.clone(),
        })
    }

    /// Adds as much of it as `strength` says, 0..=1, to another face, which gets the enhanced one's size.
    ///
    /// # Errors
    /// When the face has no pixels.
    pub fn add_to(&self, face: &mut Prediction, strength: f32) -> Result<(), Error> {
        let map = face.map_size as usize;
        let cells = self.map * self.map;
        let fits = map == self.map && map > 1 && face.deformation.len() == cells;
        if !fits || self.deformation.len() != cells || self.added.is_empty() {
            return Ok(());
        }
        let mut rgba = enlarge(face, self.side as u32)?;
        // Where each cell of the map lay in the enhanced face, and how much of it is left there.
        let places: Vec<Place> = (0..cells)
            .map(|cell| self.find(cell, face.deformation[cell]))
            .collect();
        let (side, strength) = (self.side, strength.clamp(0.0, 1.0));
        let to_map = (map - 1) as f32 / (side.max(2) - 1) as f32;
        rgba.par_chunks_exact_mut(side * 4)
            .enumerate()
            .for_each(|(y, row)| {
                for (x, pixel) in row.chunks_exact_mut(4).enumerate() {
                    let [from_x, from_y, share] =
                        bilinear(&places, map, [x as f32 * to_map, y as f32 * to_map]);
                    let at = [from_x, from_y].map(|v| (v + 1.0) / 2.0 * (side - 1) as f32);
                    let added = self.sample(at);
                    for (level, added) in pixel.iter_mut().zip(added) {
                        let sum = f32::from(*level) + strength * share * added;
                        *level = sum.round().clamp(0.0, 255.0) as u8;
                    }
                }
            });
        (face.size, face.rgba) = (side as u32, rgba);
        Ok(())
    }

    /// The place (x, y) in -1..1 of the enhanced face that came from the same place of the photo, and how
    /// much of what was added to it fits: 1 where nothing has moved.
    fn find(&self, cell: usize, source: [f32; 2]) -> Place {
        let row = self.map;
        let here = |i: usize| 2.0 * i as f32 / (row - 1) as f32 - 1.0;
        let start = [here(cell % row), here(cell / row)];
        let mut place = start;
        let mut missed = [0.0; 2];
        for _ in 0..STEPS {
            let at = place.map(|v| (v.clamp(-1.0, 1.0) + 1.0) / 2.0 * (row - 1) as f32);
            let found = bilinear(&self.deformation, row, at);
            missed = [source[0] - found[0], source[1] - found[1]];
            for i in 0..2 {
                place[i] += missed[i];
            }
        }
        // Sides of the face are 2 long here.
        let length = |[x, y]: [f32; 2]| x.hypot(y) / 2.0;
        let moved = length([place[0] - start[0], place[1] - start[1]]);
        let far = (moved + 4.0 * length(missed)) / HALF_AT;
        let share = 1.0 / (1.0 + far * far);
        if share.is_finite() && place.iter().all(|v| v.abs() <= 1.0) {
            [place[0], place[1], share]
        } else {
            [start[0], start[1], 0.0]
        }
    }

    /// What was added at a place in pixels.
    fn sample(&self, [x, y]: [f32; 2]) -> [f32; 3] {
        let last = self.side - 1;
        let (x, y) = (x.clamp(0.0, last as f32), y.clamp(0.0, last as f32));
        let (left, top) = (x as usize, y as usize);
        let (right, below) = ((left + 1).min(last), (top + 1).min(last));
        let (u, v) = (x - left as f32, y - top as f32);
        let at = |x: usize, y: usize| self.added[y * self.side + x].map(f32::from);
        let corners = [
            at(left, top),
            at(right, top),
            at(left, below),
            at(right, below),
        ];
        std::array::from_fn(|c| {
            let [a, b, d, e] = corners.map(|corner| corner[c]);
            let (upper, lower) = (a + (b - a) * u, d + (e - d) * u);
            upper + (lower - upper) * v
        })
    }
}

/// x and y in -1..1, and a share.
type Place = [f32; 3];

/// A square map's values between its cells, at a place in cells.
fn bilinear<const N: usize>(map: &[[f32; N]], row: usize, [x, y]: [f32; 2]) -> [f32; N] {
    let inside = |v: f32| {
        if v.is_finite() {
            v.clamp(0.0, (row - 1) as f32)
        } else {
            0.0
        }
    };
    let (x, y) = (inside(x), inside(y));
    let (left, top) = (x as usize, y as usize);
    let (right, below) = ((left + 1).min(row - 1), (top + 1).min(row - 1));
    let (u, v) = (x - left as f32, y - top as f32);
    std::array::from_fn(|c| {
        let at = |x: usize, y: usize| map[y * row + x][c];
        let upper = at(left, top) + (at(right, top) - at(left, top)) * u;
        let lower = at(left, below) + (at(right, below) - at(left, below)) * u;
        upper + (lower - upper) * v
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A grey face whose places came from a distance (x, y) in -1..1 away.
    fn face(shift: [f32; 2], map: u32) -> Prediction {
        let here = |i: u32| 2.0 * i as f32 / (map - 1) as f32 - 1.0;
        Prediction {
            size: 32,
            rgba: [100, 100, 100, 255].repeat(32 * 32),
            map_size: map,
            deformation: (0..map * map)
                .map(|i| [here(i % map) + shift[0], here(i / map) + shift[1]])
                .collect(),
            occlusion: vec![1.0; (map * map) as usize],
            lent: None,
        }
    }

    /// The face, twice as large, with a bright spot.
    fn enhanced(face: &Prediction, [x, y]: [u32; 2]) -> Prediction {
        let mut made = Prediction {
            size: 64,
            rgba: [100, 100, 100, 255].repeat(64 * 64),
            ..face.clone()
        };
        for (dx, dy) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
            let at = ((y + dy) * 64 + x + dx) as usize * 4;
            made.rgba[at..at + 3].fill(200);
        }
        made
    }

    fn brightest(face: &Prediction) -> ([usize; 2], u8) {
        let pixels = face.rgba.chunks(4).enumerate();
        let (at, pixel) = pixels.max_by_key(|(_, pixel)| pixel[0]).unwrap();
        ([at % 64, at / 64], pixel[0])
    }

    #[test]
    fn on_the_same_face_it_is_the_same_again() {
        let plain = face([0.0, 0.0], 16);
        let wanted = enhanced(&plain, [20, 40]);
        let carried = Carried::between(&plain, &wanted).unwrap();
        let mut made = plain.clone();
        carried.add_to(&mut made, 1.0).unwrap();
        assert_eq!(made.size, 64);
        for (made, wanted) in made.rgba.iter().zip(&wanted.rgba) {
            assert!(made.abs_diff(*wanted) <= 1);
        }
    }

    #[test]
    fn it_moves_with_the_face() {
        let before = face([0.0, 0.0], 16);
        let carried = Carried::between(&before, &enhanced(&before, [30, 30])).unwrap();
        // What came from here came from further left before: the face has moved four pixels to the right.
        let shift = -4.0 * 2.0 / 63.0;
        let mut after = face([shift, 0.0], 16);
        carried.add_to(&mut after, 1.0).unwrap();
        let ([x, y], level) = brightest(&after);
        assert!(x.abs_diff(34) <= 1 && y.abs_diff(30) <= 1, "{x} {y}");
        assert!((120..190).contains(&level), "a part of it is left: {level}");
    }

    #[test]
    fn of_a_face_that_is_elsewhere_nothing_is_left() {
        let before = face([0.0, 0.0], 16);
        let carried = Carried::between(&before, &enhanced(&before, [30, 30])).unwrap();
        for shift in [[0.9, 0.0], [f32::NAN, 0.0], [0.0, f32::INFINITY]] {
            let mut after = face(shift, 16);
            carried.add_to(&mut after, 1.0).unwrap();
            let (_, level) = brightest(&after);
            assert!(level <= 104, "{shift:?}: {level}");
        }
        // Another model's maps.
        let mut other = face([0.0, 0.0], 8);
        let untouched = other.clone();
        carried.add_to(&mut other, 1.0).unwrap();
        assert_eq!(other.rgba, untouched.rgba);
        Carried::default().add_to(&mut other, 1.0).unwrap();
        assert_eq!(other.rgba, untouched.rgba);
    }
}

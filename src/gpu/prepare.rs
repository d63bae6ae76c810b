//! What happens to a prediction at the model's own size, before it is enlarged.
//!
//! A generator loses sharpness that the photo has: all that is finer than the model's size, and a
//! good deal of what is finer than its feature maps. Both come back from the photo. With p the
//! prediction, F the photo moved by the deformation (at full resolution) and s the same at the model's
//! size, q = s - p, and B the coarse band that survives 4x4 averaging, a face is
//!
//! ```text
//! p + gain * (fine band of F - fine band of p)  =  [(1 - gain) * p - gain * B q]  +  gain * F
//! ```
//!
//! that is, the coarse band is the prediction's, the fine band the photo's as far as the gain says. The
//! bracket is computed here, F is added by the shaders. The gain falls to 0 where the moved photo must
//! not be believed, or else edges would double:
//!
//! - where the occlusion map says that the source does not show the place, and where the deformation
//!   points out of the crop;
//! - where p and s differ in the coarse band (another colour: something moved in or out);
//! - where the fine band of q has more energy than that of s itself. A blurred copy differs from its
//!   original by less than the original's fine band; what the generator has drawn anew (an open mouth,
//!   a lid) differs by more.
//!
//! A perfect prediction, p = s, gives the photo back exactly. `detail` scales the gain; without
//! detail the bracket is p.
//!
//! Here this is done on the CPU; on a graphics card by `shaders/prepare.wgsl`, whose twin this is.

use bytemuck::{Pod, Zeroable};
use image::RgbaImage;
use rayon::prelude::*;

use super::mask::{Mask, smoothstep};
use super::sample::{Tap, Window, lerp, lerp_rows, resize_taps, widen};
use super::{Error, MAX_SIZE};
use crate::frame::{self, Prediction};
use crate::geometry::Rect;

/// Side of the cells in which prediction and source are compared, in pixels of the prediction.
pub(crate) const CELL: usize = 4;
/// Fine band: energy of the difference over the source's own, full gain up to the first number, none
/// from the second.
const FINE: (f32, f32) = (1.0, 1.8);
/// Fewest bands of cells that are worth a thread's while.
const BANDS: usize = 4;
/// Energy (levels squared) that counts as noise.
const NOISE: f32 = 24.0;
/// Coarse band: difference in levels, full gain up to the first number, none from the second.
const COARSE: (f32, f32) = (10.0, 40.0);

/// Colour match: samples per side of the crop.
const RIM_SIDE: u32 = 64;
/// Colour match: a difference over this is another thing, not another shade.
const RIM_SHADE: f32 = 40.0;
/// Colour match: most that is ever added to a channel.
const RIM_LIMIT: f32 = 24.0;

/// A crop and its version of the model's size.
#[derive(Debug)]
pub(crate) struct Face {
    pub(crate) crop: Rect,
    pub(crate) low: RgbaImage,
}

impl Face {
    pub(crate) fn low_pixels(&self) -> Window<'_> {
        let side = self.low.width() as usize;
        Window {
            pixels: self.low.as_raw().as_chunks().0,
            stride: side,
            width: side,
            height: side,
        }
    }
}

/// The crop at the model's size, `size` x `size`, low-passed (a triangle as wide as two new
/// pixels): what the networks should see of it, and what the compositor takes for what they saw.
///
/// # Errors
/// When the crop is not inside the photo or `size` is not 1..=4096.
pub fn model_view(photo: &RgbaImage, crop: Rect, size: u32) -> Result<RgbaImage, Error> {
    check_crop(photo, crop)?;
    if size == 0 || size > MAX_SIZE {
        return Err(Error::ModelSize(size));
    }
    Ok(frame::view(photo, crop, size, size)?)
}

/// # Errors
/// When the photo or the crop is empty, or the crop not inside.
pub(crate) fn check_crop(photo: &RgbaImage, crop: Rect) -> Result<(), Error> {
    let (width, height) = photo.dimensions();
    if width == 0 || height == 0 {
        return Err(Error::EmptyPhoto { width, height });
    }
    if crop.is_empty() || crop.intersect(&Rect::of_size(width, height)) != crop {
        return Err(Error::Crop {
            crop,
            width,
            height,
        });
    }
    Ok(())
}

/// What of the settings counts for a prediction at the model's own size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taste {
    /// How much of the photo's detail is taken, 0..=1.
    pub(crate) detail: f32,
    /// How much of the difference in colour along the mask's edge is evened out, 0..=1.
    pub(crate) matched: f32,
    /// A prediction much larger than its crop is halved first.
    pub(crate) shrinks: bool,
}

/// How often a prediction is halved while it is at least twice as large as the crop: bilinear sampling alone would skip pixels.
pub(crate) fn halvings(size: u32, crop: Rect) -> u32 {
    let side = crop.width().max(crop.height());
    let (mut size, mut times) = (size, 0);
    while size.is_multiple_of(2) && size / 2 >= side {
        (size, times) = (size / 2, times + 1);
    }
    times
}

/// A prediction made ready for the CPU's twin; its buffers are used again for the next frame.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    /// Side of the picture.
    pub(crate) size: u32,
    /// The bracket above in levels (r, g, b) and the gain, `size * size` pixels.
    pub(crate) picture: Vec<[f32; 4]>,
    /// Side of the field.
    pub(crate) map_size: u32,
    /// Per cell: how far away the source lies, (x, y) in sides of the crop. Empty without detail.
    pub(crate) field: Vec<[f32; 2]>,
    /// Levels to add to each channel.
    pub(crate) offset: [f32; 3],
    scratch: Scratch,
}

#[derive(Debug, Default)]
struct Scratch {
    /// Per cell: the mean of q.
    coarse: Vec<[f32; 4]>,
    /// Per cell: the energies of the fine bands of q and of s.
    energy: Vec<[f32; 2]>,
    /// Per cell: the gate.
    gate: Vec<f32>,
    /// Per map cell: the gain.
    gain: Vec<f32>,
    /// From the map to the picture, and from the cells to the picture.
    map_taps: Vec<Tap>,
    cell_taps: Vec<Tap>,
}

impl Prepared {
    /// Takes a prediction over that [`check_prediction`] has found good. Its colours are shifted to meet the photo's along the `rim`.
    pub(crate) fn update(
        &mut self,
        prediction: &Prediction,
        face: &Face,
        taste: &Taste,
        rim: &[Rim],
    ) {
        let pixels = prediction.rgba.as_chunks().0;
        let side = prediction.size as usize;
        let window = Window {
            pixels,
            stride: side,
            width: side,
            height: side,
        };
        self.size = prediction.size;
        self.map_size = prediction.map_size;
        self.offset = match taste.matched > 0.0 {
            true => rim_offset(&window, &face.low_pixels(), rim).map(|c| c * taste.matched),
            false => [0.0; 3],
        };
        self.field.clear();
        self.picture.clear();
        if taste.detail > 0.0 {
            self.displacements(prediction);
            self.scratch.compare(
                &window,
                self.map_size as usize,
                &self.field,
                &face.low_pixels(),
            );
            self.scratch.gains(prediction, taste.detail);
            self.scratch
                .bracket(&window, self.map_size as usize, &mut self.picture);
        } else {
            self.picture
                .extend(pixels.iter().map(|&[r, g, b, _]| widen([r, g, b, 0])));
        }
        if taste.shrinks {
            self.shrink(halvings(self.size, face.crop));
        }
    }

    fn shrink(&mut self, times: u32) {
        for _ in 0..times {
            let (size, half) = (self.size as usize, self.size as usize / 2);
            for i in 0..half * half {
                let at = 2 * (i / half) * size + 2 * (i % half);
                let [a, b, c, d] = [at, at + 1, at + size, at + size + 1].map(|i| self.picture[i]);
                self.picture[i] = std::array::from_fn(|i| (a[i] + b[i] + c[i] + d[i]) / 4.0);
            }
            self.picture.truncate(half * half);
            self.size = half as u32;
        }
    }

    /// The deformation as a distance in sides of the crop. The networks' -1 and 1 are the centres of
    /// the outermost cells; relative to where a cell itself lies, the distance can be upsampled to any
    /// size without a seam at the border.
    fn displacements(&mut self, prediction: &Prediction) {
        let (row, side) = (prediction.map_size as usize, prediction.map_size as f32);
        let gain = &mut self.scratch.gain;
        gain.clear();
        self.field.extend(
            prediction
                .deformation
                .iter()
                .enumerate()
                .map(|(i, &[x, y])| {
                    let source = |v: f32| ((v + 1.0) / 2.0 * (side - 1.0) + 0.5) / side;
                    let here = |i: usize| (i as f32 + 0.5) / side;
                    let (x, y) = (source(x), source(y));
                    if !(x.is_finite() && y.is_finite()) {
                        gain.push(0.0);
                        return [0.0; 2];
                    }
                    // How far out of the crop, in cells.
                    let out = |s: f32| (s - s.clamp(0.0, 1.0)).abs() * side;
                    gain.push(1.0 - out(x).max(out(y)).min(1.0));
                    [
                        x.clamp(-1.0, 2.0) - here(i % row),
                        y.clamp(-1.0, 2.0) - here(i / row),
                    ]
                }),
        );
    }
}

impl Scratch {
    /// Fills `coarse` and `gate`.
    fn compare(&mut self, p: &Window<'_>, map: usize, field: &[[f32; 2]], low: &Window<'_>) {
        let size = p.width;
        let cells = size.div_ceil(CELL);
        resize_taps(&mut self.map_taps, map as u32, size as u32);
        self.cell_taps.clear();
        self.cell_taps
            .extend((0..size).map(|i| Tap::at((i as f32 + 0.5) / CELL as f32 - 0.5, cells)));
        self.coarse.resize(cells * cells, [0.0; 4]);
        self.energy.resize(cells * cells, [0.0; 2]);

        let taps = &self.map_taps;
        let cells_rows = self
            .coarse
            .par_chunks_mut(cells)
            .zip(self.energy.par_chunks_mut(cells));
        let bands = p.pixels.par_chunks(CELL * size).zip(cells_rows);
        bands.enumerate().with_min_len(BANDS).for_each_init(
            || (vec![[0.0; 2]; map], vec![Sums::default(); cells]),
            |(between, sums), (i, (pixels, (coarse, energy)))| {
                sums.fill(Sums::default());
                for (y, pixels) in pixels.chunks(size).enumerate() {
                    let y = i * CELL + y;
                    lerp_rows(field, map, taps[y], between);
                    let v = (y as f32 + 0.5) / size as f32;
                    add_row(sums, pixels, between, taps, v, low);
                }
                for (sums, (coarse, energy)) in sums.iter().zip(coarse.iter_mut().zip(energy)) {
                    (*coarse, *energy) = sums.bands();
                }
            },
        );
        self.gate(cells);
    }

    /// The gate from the two bands, smoothed so that it has no edges of its own.
    fn gate(&mut self, cells: usize) {
        let [difference, source] = [0, 1].map(|i| {
            let energy: Vec<f32> = self.energy.iter().map(|e| e[i]).collect();
            smooth(&energy, cells)
        });
        let raw: Vec<f32> = self
            .coarse
            .iter()
            .zip(difference.iter().zip(&source))
            .map(|(&[r, g, b, _], (difference, source))| {
                let coarse = r.abs().max(g.abs()).max(b.abs());
                falling(FINE, difference / (source + NOISE)) * falling(COARSE, coarse)
            })
            .collect();
        self.gate = smooth(&raw, cells);
    }

    /// Takes the gate, seen through the occlusion map, into the gain.
    fn gains(&mut self, prediction: &Prediction, detail: f32) {
        let cells = (prediction.size as usize).div_ceil(CELL);
        let map = prediction.map_size as usize;
        let mut taps = Vec::new();
        resize_taps(&mut taps, cells as u32, prediction.map_size);
        for (i, (gain, &occlusion)) in self.gain.iter_mut().zip(&prediction.occlusion).enumerate() {
            let (x, y) = (taps[i % map], taps[i / map]);
            let row = |y: usize| {
                let (a, b) = (self.gate[y * cells + x.low], self.gate[y * cells + x.high]);
                a + (b - a) * x.weight
            };
            let (top, bottom) = (row(y.low), row(y.high));
            let gate = top + (bottom - top) * y.weight;
            let occlusion = if occlusion.is_finite() {
                occlusion.clamp(0.0, 1.0)
            } else {
                0.0
            };
            *gain *= gate * occlusion * detail;
        }
    }

    /// (1 - gain) * p - gain * B q, and the gain.
    fn bracket(&self, p: &Window<'_>, map: usize, picture: &mut Vec<[f32; 4]>) {
        let size = p.width;
        let cells = size.div_ceil(CELL);
        picture.resize(size * size, [0.0; 4]);
        let rows = picture
            .par_chunks_mut(size)
            .zip(p.pixels.par_chunks(size))
            .enumerate();
        rows.with_min_len(CELL * BANDS).for_each_init(
            || (vec![[0.0; 4]; cells], vec![[0.0; 1]; map]),
            |(coarse, gains), (y, (out, pixels))| {
                lerp_rows(&self.coarse, cells, self.cell_taps[y], coarse);
                lerp_rows(self.gain.as_chunks().0, map, self.map_taps[y], gains);
                let taps = self.cell_taps.iter().zip(&self.map_taps);
                for ((out, &p), (cell, tap)) in out.iter_mut().zip(pixels).zip(taps) {
                    let [gain] = lerp(gains[tap.low], gains[tap.high], tap.weight);
                    let bq = lerp(coarse[cell.low], coarse[cell.high], cell.weight);
                    let p = widen(p);
                    *out = std::array::from_fn(|c| p[c] - gain * (p[c] + bq[c]));
                    out[3] = gain;
                }
            },
        );
    }
}

/// What is summed over a cell, for each channel.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    count: f32,
    q: [f32; 4],
    q_squares: [f32; 4],
    s: [f32; 4],
    s_squares: [f32; 4],
}

impl Sums {
    /// The mean of q, and the energies (variances within the cell, means of r, g, b) of q and s.
    fn bands(&self) -> ([f32; 4], [f32; 2]) {
        let mean = |sum: [f32; 4]| sum.map(|sum| sum / self.count);
        let energy = |sum, squares| {
            let (mean, squares) = (mean(sum), mean(squares));
            let [r, g, b, _]: [f32; 4] = std::array::from_fn(|c| squares[c] - mean[c] * mean[c]);
            // Rounding can make nothing a little less than nothing.
            ((r + g + b) / 3.0).max(0.0)
        };
        (
            mean(self.q),
            [
                energy(self.q, self.q_squares),
                energy(self.s, self.s_squares),
            ],
        )
    }
}

/// Adds one row of the prediction, at height `v` of the crop, to the sums of its cells.
fn add_row(
    sums: &mut [Sums],
    pixels: &[[u8; 4]],
    field: &[[f32; 2]],
    taps: &[Tap],
    v: f32,
    low: &Window<'_>,
) {
    let (size, side) = (pixels.len() as f32, low.width as f32);
    let y = v * side - 0.5;
    let cells = sums
        .iter_mut()
        .zip(pixels.chunks(CELL).zip(taps.chunks(CELL)));
    for (i, (sums, (pixels, taps))) in cells.enumerate() {
        let mut cell = *sums;
        for (x, (&p, tap)) in pixels.iter().zip(taps).enumerate() {
            let [dx, dy] = lerp(field[tap.low], field[tap.high], tap.weight);
            let u = ((i * CELL + x) as f32 + 0.5) / size;
            let s = low.bilinear((u + dx) * side - 0.5, y + dy * side);
            let p = widen(p);
            let q: [f32; 4] = std::array::from_fn(|c| s[c] - p[c]);
            cell.count += 1.0;
            cell.q = std::array::from_fn(|c| cell.q[c] + q[c]);
            cell.q_squares = std::array::from_fn(|c| cell.q_squares[c] + q[c] * q[c]);
            cell.s = std::array::from_fn(|c| cell.s[c] + s[c]);
            cell.s_squares = std::array::from_fn(|c| cell.s_squares[c] + s[c] * s[c]);
        }
        *sums = cell;
    }
}

/// 1 up to the first number, 0 from the second.
fn falling((from, to): (f32, f32), value: f32) -> f32 {
    1.0 - smoothstep((value - from) / (to - from))
}

/// A 3x3 binomial filter, the border going on beyond itself.
fn smooth(grid: &[f32], side: usize) -> Vec<f32> {
    let pass = |grid: &[f32], step: usize| -> Vec<f32> {
        let along = |i: usize| (i / step) % side;
        (0..grid.len())
            .map(|i| {
                let before = if along(i) == 0 { i } else { i - step };
                let after = if along(i) + 1 == side { i } else { i + step };
                (grid[before] + 2.0 * grid[i] + grid[after]) / 4.0
            })
            .collect()
    };
    pass(&pass(grid, 1), side)
}

/// A place on the mask's soft edge, where the prediction meets the photo.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Rim {
    /// (x, y) in sides of the crop.
    place: [f32; 2],
    weight: f32,
    pad: f32,
}

impl Rim {
    /// The most places there can be.
    pub(crate) const MOST: usize = (RIM_SIDE * RIM_SIDE) as usize;

    /// The soft edge of a mask.
    pub(crate) fn of(mask: &Mask, crop: Rect) -> Vec<Self> {
        let (width, height) = (crop.width(), crop.height());
        let mut rim = Vec::new();
        for y in 0..RIM_SIDE {
            for x in 0..RIM_SIDE {
                let centre = |i: u32| (i as f32 + 0.5) / RIM_SIDE as f32;
                let pixel = |i: u32, side: u32| ((centre(i) * side as f32) as u32).min(side - 1);
                let m = mask.at(pixel(x, width), pixel(y, height), width, height);
                let weight = 4.0 * m * (1.0 - m);
                if weight > 0.05 {
                    rim.push(Self {
                        place: [centre(x), centre(y)],
                        weight,
                        pad: 0.0,
                    });
                }
            }
        }
        rim
    }
}

/// The mean of photo less prediction along the rim, in levels.
fn rim_offset(prediction: &Window<'_>, photo: &Window<'_>, rim: &[Rim]) -> [f32; 3] {
    let (mut sum, mut accepted, mut all) = ([0.0; 3], 0.0, 0.0);
    for &Rim {
        place: [u, v],
        weight,
        ..
    } in rim
    {
        let at = |w: &Window<'_>| w.bilinear(u * w.width as f32 - 0.5, v * w.height as f32 - 0.5);
        let (p, s) = (at(prediction), at(photo));
        let difference: [f32; 3] = std::array::from_fn(|c| s[c] - p[c]);
        all += weight;
        if difference.iter().all(|d| d.abs() <= RIM_SHADE) {
            accepted += weight;
            sum = std::array::from_fn(|c| sum[c] + weight * difference[c]);
        }
    }
    // Too little in common to say anything.
    if accepted <= 0.2 * all {
        return [0.0; 3];
    }
    sum.map(|s| (s / accepted).clamp(-RIM_LIMIT, RIM_LIMIT))
}

/// # Errors
/// A side that no model has, or parts of other lengths than the sides ask for. `index` is the face's, for the message.
pub(crate) fn check_prediction(index: usize, prediction: &Prediction) -> Result<(), Error> {
    let side = |side: u32| {
        if side == 0 || side > MAX_SIZE {
            Err(Error::ModelSize(side))
        } else {
            Ok(side as usize)
        }
    };
    let size = side(prediction.size)?;
    let map = side(prediction.map_size)?;
    if let Some(lent) = &prediction.lent {
        let (found, expected) = (lent.room() as usize, 4 * size * size + 12 * map * map);
        return match found < expected {
            true => Err(Error::Prediction {
                index,
                part: "its place",
                found,
                expected,
            }),
            false => Ok(()),
        };
    }
    let parts = [
        ("picture", prediction.rgba.len(), size * size * 4),
        ("deformation", prediction.deformation.len(), map * map),
        ("occlusion", prediction.occlusion.len(), map * map),
    ];
    for (part, found, expected) in parts {
        if found != expected {
            return Err(Error::Prediction {
                index,
                part,
                found,
                expected,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use image::Rgba;

    use super::*;

    #[test]
    fn what_the_networks_see_has_no_alias_of_what_they_cannot() {
        let board = RgbaImage::from_fn(600, 600, |x, y| {
            let level = if (x + y) % 2 == 0 { 255 } else { 0 };
            Rgba([level, level, level, 255])
        });
        let view = model_view(&board, Rect::new(20, 30, 532, 542), 64).unwrap();
        assert!(view.pixels().all(|p| (120..=135).contains(&p.0[0])));
        let same = model_view(&board, Rect::new(20, 30, 84, 94), 64).unwrap();
        assert!((0..64).all(|i| same.get_pixel(i, i) == board.get_pixel(20 + i, 30 + i)));
        assert!(matches!(
            model_view(&board, Rect::of_size(600, 600), 0),
            Err(Error::ModelSize(0))
        ));
    }

    #[test]
    fn a_prediction_far_larger_than_its_crop_is_averaged_not_skipped() {
        let mut prepared = Prepared {
            size: 64,
            ..Prepared::default()
        };
        prepared.picture = (0..64 * 64)
            .map(|i| [if i % 2 == 0 { 200.0 } else { 0.0 }; 4])
            .collect();
        prepared.shrink(halvings(64, Rect::new(0, 0, 20, 12)));
        assert_eq!((prepared.size, prepared.picture.len()), (32, 32 * 32));
        assert!(prepared.picture.iter().all(|p| *p == [100.0; 4]));
    }
}

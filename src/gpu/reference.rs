//! The CPU twins of `warp.wgsl` and `paste_back.wgsl`: their oracle in the tests, and what composes
//! where there is no graphics card.
//!
//! Both steps are one pass over the pixels inside the mask. Results agree with the shaders' within
//! one level: the arithmetic is the same, its last bits are the machine's.

use image::RgbaImage;
use rayon::prelude::*;

use super::mask::Raster;
use super::prepare::{Face, Prepared};
use super::sample::{Tap, Window, lerp, lerp_rows, narrow, resize_taps, round_level, widen};
use crate::geometry::Rect;

/// Fewest rows that are worth a thread's while.
const ROWS: usize = 16;

/// Tables of one face, kept between frames.
#[derive(Debug, Default)]
pub(crate) struct Twin {
    columns: Vec<Tap>,
    rows: Vec<Tap>,
    map_columns: Vec<Tap>,
    map_rows: Vec<Tap>,
}

/// Puts the photo's own pixels back wherever the mask has let others in.
pub(crate) fn restore(output: &mut RgbaImage, photo: &RgbaImage, crop: Rect, raster: &Raster) {
    let original = photo.as_raw().as_chunks::<4>().0;
    each_row(output, crop, |y, row| {
        let (from, to) = raster.spans[y];
        let (from, to) = (from as usize, to as usize);
        let start = pixel_at(photo, crop.x1, crop.y1 + y as i32);
        row[from..to].copy_from_slice(&original[start + from..start + to]);
    });
}

impl Twin {
    /// Draws a face over what `output` holds.
    pub(crate) fn paint(
        &mut self,
        output: &mut RgbaImage,
        photo: &RgbaImage,
        face: &Face,
        prepared: &Prepared,
        raster: &Raster,
    ) {
        let (width, height) = (face.crop.width(), face.crop.height());
        resize_taps(&mut self.columns, prepared.size, width);
        resize_taps(&mut self.rows, prepared.size, height);
        resize_taps(&mut self.map_columns, prepared.map_size, width);
        resize_taps(&mut self.map_rows, prepared.map_size, height);

        let (size, map) = (prepared.size as usize, prepared.map_size as usize);
        let source = Window {
            pixels: &photo.as_raw().as_chunks().0[pixel_at(photo, face.crop.x1, face.crop.y1)..],
            stride: photo.width() as usize,
            width: width as usize,
            height: height as usize,
        };
        let [r, g, b] = prepared.offset;
        let offset = [r, g, b, 0.0];
        let scratch = || {
            (
                vec![[0.0; 4]; size],
                vec![[0.0; 2]; map],
                vec![[0.0; 4]; width as usize],
            )
        };

        let tables = &*self;
        each_row_with(
            output,
            face.crop,
            scratch,
            |(picture, field, line), y, pixels| {
                let (from, to) = raster.spans[y];
                let span = from as usize..to as usize;
                if span.is_empty() {
                    return;
                }
                let line = &mut line[span.clone()];
                lerp_rows(&prepared.picture, size, tables.rows[y], picture);
                for (out, tap) in line.iter_mut().zip(&tables.columns[span.clone()]) {
                    *out = lerp(picture[tap.low], picture[tap.high], tap.weight);
                }
                if !prepared.field.is_empty() {
                    lerp_rows(&prepared.field, map, tables.map_rows[y], field);
                    add_moved_photo(
                        line,
                        field,
                        &tables.map_columns[span.clone()],
                        span.start,
                        y,
                        source,
                    );
                }
                let masks = &raster.bytes[y * width as usize..][span.clone()];
                paste_row(line, masks, offset, &mut pixels[span]);
            },
        );
    }
}

/// Adds the photo, moved by the deformation and weighted by the gain, to a row of a face that starts
/// at (x, y) of the crop.
fn add_moved_photo(
    line: &mut [[f32; 4]],
    field: &[[f32; 2]],
    taps: &[Tap],
    x: usize,
    y: usize,
    source: Window<'_>,
) {
    let (width, height) = (source.width as f32, source.height as f32);
    for (i, (out, tap)) in line.iter_mut().zip(taps).enumerate() {
        let gain = out[3];
        if gain > 0.0 {
            let [dx, dy] = lerp(field[tap.low], field[tap.high], tap.weight);
            let full = source.bilinear((x + i) as f32 + dx * width, y as f32 + dy * height);
            *out = std::array::from_fn(|c| out[c] + gain * full[c]);
        }
    }
}

/// Mixes a row into the frame. No branches, so that it runs several pixels at a time; where the mask
/// is 0 a pixel comes out as it was.
fn paste_row(line: &[[f32; 4]], masks: &[u8], offset: [f32; 4], pixels: &mut [[u8; 4]]) {
    for ((&face, &mask), pixel) in line.iter().zip(masks).zip(pixels) {
        let face = round_level(face);
        let face = std::array::from_fn(|c| face[c] + offset[c]);
        let mixed = narrow(lerp(widen(*pixel), face, f32::from(mask) * (1.0 / 255.0)));
        let alpha = u32::from_le_bytes(*pixel) & 0xff00_0000;
        *pixel = (u32::from_le_bytes(mixed) & 0x00ff_ffff | alpha).to_le_bytes();
    }
}

fn each_row(output: &mut RgbaImage, crop: Rect, work: impl Fn(usize, &mut [[u8; 4]]) + Sync) {
    each_row_with(output, crop, || (), |(), y, row| work(y, row));
}

/// Runs `work` for every row of the crop, in parallel, with something of its own per thread.
fn each_row_with<T>(
    output: &mut RgbaImage,
    crop: Rect,
    own: impl Fn() -> T + Sync + Send,
    work: impl Fn(&mut T, usize, &mut [[u8; 4]]) + Sync + Send,
) {
    let stride = output.width() as usize;
    let first = crop.x1 as usize;
    let pixels = output.as_chunks_mut::<4>().0;
    let rows = pixels[crop.y1 as usize * stride..].par_chunks_mut(stride);
    rows.take(crop.height() as usize)
        .enumerate()
        .with_min_len(ROWS)
        .for_each_init(own, |own, (y, row)| {
            work(own, y, &mut row[first..first + crop.width() as usize]);
        });
}

/// Index of a pixel that is in the picture.
fn pixel_at(picture: &RgbaImage, x: i32, y: i32) -> usize {
    y as usize * picture.width() as usize + x as usize
}

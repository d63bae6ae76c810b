//! The reference's picture of how far a training is: for each pair a row of source with keypoints, deformed
//! and driving frame with theirs, source as the motion deforms it, prediction, occlusion map, and what each
//! keypoint's motion alone would show with where it counts.

use candle_core::{DType, Result, Tensor};
use image::{Rgb, RgbImage, imageops};

use super::learner::Generated;
use super::loader::Batch;
use crate::model::Generator;

/// Widest side of one picture in it.
const SIDE: u32 = 128;

/// Rows at most.
const ROWS: usize = 4;

/// Draws the grid of a batch.
///
/// # Errors
/// When the device fails.
pub fn draw(generator: &Generator, batch: &Batch, generated: &Generated) -> Result<RgbImage> {
    let output = &generated.output;
    let (b, keypoints, _) = generated.kp_source.value.dims3()?;
    let deformed = generator.deform(&batch.source, &output.deformation)?;
    let rows = b.min(ROWS);
    let mut cells = Vec::new();
    for row in 0..rows {
        let marked = |pictures: &Tensor, points: &Tensor| {
            let mut picture = picture(&pictures.get(row)?)?;
            let points: Vec<Vec<f32>> = points.get(row)?.to_dtype(DType::F32)?.to_vec2()?;
            for (i, point) in points.iter().enumerate() {
                dot(&mut picture, [point[0], point[1]], colour(i, keypoints));
            }
            Ok::<_, candle_core::Error>(picture)
        };
        let mut line = vec![marked(&batch.source, &generated.kp_source.value)?];
        if let Some((frame, points)) = &generated.transformed {
            line.push(marked(frame, &points.value)?);
        }
        line.push(marked(&batch.driving, &generated.kp_driving.value)?);
        line.push(picture(&deformed.get(row)?)?);
        line.push(picture(&output.prediction.get(row)?)?);
        if let Some(map) = &output.occlusion_map {
            line.push(picture(&map.get(row)?)?);
        }
        let (sparse, masks) = (output.sparse_deformed.get(row)?, output.mask.get(row)?);
        for i in 0..=keypoints {
            let shown = picture(&sparse.get(i)?)?;
            let mask = picture(&masks.get(i)?.unsqueeze(0)?)?;
            line.push(tinted(
                &shown,
                &mask,
                i.checked_sub(1).map(|i| colour(i, keypoints)),
            ));
        }
        cells.push(line);
    }
    let columns = cells.iter().map(Vec::len).max().unwrap_or(0) as u32;
    let mut sheet = RgbImage::from_pixel(
        columns * (SIDE + 2),
        rows as u32 * (SIDE + 2),
        Rgb([255; 3]),
    );
    for (y, line) in cells.iter().enumerate() {
        for (x, cell) in line.iter().enumerate() {
            let place = |i: usize| i as i64 * i64::from(SIDE + 2) + 1;
            imageops::replace(&mut sheet, cell, place(x), place(y));
        }
    }
    Ok(sheet)
}

/// A tensor (1 or 3, h, w) in 0..1 as a picture of the grid's size.
fn picture(tensor: &Tensor) -> Result<RgbImage> {
    let (channels, h, w) = tensor.dims3()?;
    let values: Vec<f32> = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    let small = RgbImage::from_fn(w as u32, h as u32, |x, y| {
        let at = y as usize * w + x as usize;
        // A float as a byte saturates.
        Rgb([0, 1, 2].map(|c| (255.0 * values[c.min(channels - 1) * h * w + at]).round() as u8))
    });
    Ok(imageops::resize(
        &small,
        SIDE,
        SIDE,
        imageops::FilterType::Triangle,
    ))
}

/// A dot with a dark rim at a place in -1..1.
fn dot(picture: &mut RgbImage, [x, y]: [f32; 2], colour: Rgb<u8>) {
    let (width, height) = picture.dimensions();
    let place = |v: f32, n: u32| ((v + 1.0) / 2.0 * (n - 1) as f32).round() as i64;
    let (x, y) = (place(x, width), place(y, height));
    for (dy, dx) in (-4..=4).flat_map(|dy| (-4..=4).map(move |dx| (dy, dx))) {
        let distance = dx * dx + dy * dy;
        let (px, py) = (x.saturating_add(dx), y.saturating_add(dy));
        let inside = (0..i64::from(width)).contains(&px) && (0..i64::from(height)).contains(&py);
        if inside && distance <= 14 {
            let shade = if distance <= 8 { colour } else { Rgb([0; 3]) };
            picture.put_pixel(px as u32, py as u32, shade);
        }
    }
}

/// The picture where the mask is white, the keypoint's colour under it, black elsewhere.
fn tinted(shown: &RgbImage, mask: &RgbImage, colour: Option<Rgb<u8>>) -> RgbImage {
    RgbImage::from_fn(shown.width(), shown.height(), |x, y| {
        let weight = f32::from(mask.get_pixel(x, y).0[0]) / 255.0;
        let (pixel, tint) = (shown.get_pixel(x, y).0, colour.map_or([128; 3], |c| c.0));
        let mix = |i: usize| {
            let (shown, tint) = (f32::from(pixel[i]), f32::from(tint[i]));
            (weight * (0.7 * shown + 0.3 * tint) + (1.0 - weight) * 0.25 * shown).round() as u8
        };
        Rgb([mix(0), mix(1), mix(2)])
    })
}

/// Colours around the circle.
fn colour(i: usize, of: usize) -> Rgb<u8> {
    let hue = 6.0 * i as f32 / of.max(1) as f32;
    let channel = |offset: f32| {
        let k = (offset + hue).rem_euclid(6.0);
        (255.0 * (1.0 - k.min(4.0 - k).clamp(0.0, 1.0))) as u8
    };
    Rgb([channel(5.0), channel(3.0), channel(1.0)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_differ_and_dots_stay_inside() {
        assert_eq!(
            (colour(0, 10), colour(5, 10)),
            (Rgb([255, 0, 0]), Rgb([0, 255, 255]))
        );
        let mut picture = RgbImage::new(20, 20);
        for place in [
            [-1.0, -1.0],
            [1.0, 1.0],
            [9.0, 0.0],
            [f32::NAN, 0.0],
            [f32::INFINITY, 0.0],
        ] {
            dot(&mut picture, place, Rgb([1, 2, 3]));
        }
        assert_eq!(picture.get_pixel(0, 0), &Rgb([1, 2, 3]));
    }
}

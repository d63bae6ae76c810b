//! Which pixels of a crop come from the prediction, and how much of each.
//!
//! PaddleGAN's masks are hard: one face fills its crop, several are cut by a circle of radius
//! ceil(height * ratio), here clipped to the crop (the reference paints black beyond it). The
//! default mask is soft: a rounded square around the crop's middle that is whole up to `ratio` and
//! then fades out over the feather; towards edges of the crop inside the photo it fades as well, so
//! that no edge shows; where the crop touches the photo's border it neither fades nor ends, since
//! there is nothing beyond. A crop that is the whole photo is therefore the whole rectangle, whatever
//! the ratio (unless it is set under 0.4, which asks for less).
//!
//! The same formulas are in `shaders/paste_back.wgsl`.

use bytemuck::{Pod, Zeroable};
use rayon::prelude::*;

use super::Error;
use super::neighbours::Share;
use crate::geometry::Rect;

/// How faces are put back into the photo.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PasteMode {
    /// A rounded square with a soft edge.
    #[default]
    Feather,
    /// As PaddleGAN: the crop's rectangle for one face, hard circles for several.
    PaddleGan,
}

/// What can be tuned on the running picture, without inference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PasteSettings {
    /// How faces are put back.
    pub mode: PasteMode,
    /// Size of the mask, 0.1..=1: the fraction of the crop's height from its middle that the mask
    /// covers. From 0.6 on the rounded square reaches the corners.
    pub ratio: f32,
    /// Width of the soft edge, 0..=1 in halves of the crop's shorter side; in `Feather` mode only.
    pub feather: f32,
    /// How far the face's colours are shifted to meet the photo's along the soft edge, 0..=1; in
    /// `Feather` mode only.
    pub colour_match: f32,
    /// How much of the photo's own detail is put on the prediction, 0..=1; 0 enlarges the prediction
    /// and does nothing else.
    pub detail: f32,
}

impl Default for PasteSettings {
    fn default() -> Self {
        Self {
            mode: PasteMode::Feather,
            ratio: 0.4,
            feather: 0.2,
            colour_match: 1.0,
            detail: 0.5,
        }
    }
}

impl PasteSettings {
    /// Whether every number is in its range.
    ///
    /// # Errors
    /// Names the first that is not.
    pub fn check(&self) -> Result<(), Error> {
        let numbers = [
            ("ratio", self.ratio, 0.1),
            ("feather", self.feather, 0.0),
            ("colour match", self.colour_match, 0.0),
            ("detail", self.detail, 0.0),
        ];
        for (name, value, low) in numbers {
            // Not the other way round: NaN is in no range.
            if !(low..=1.0).contains(&value) {
                return Err(Error::Setting {
                    name,
                    value,
                    low,
                    high: 1.0,
                });
            }
        }
        Ok(())
    }
}

/// The mask of one crop, also the uniform of `paste_back.wgsl` (`struct Mask`): three rows of 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub(crate) struct Mask {
    /// 0: the rectangle, 1: the hard circle, 2: the soft rounded square.
    pub(crate) kind: u32,
    /// Hard circle: middle in pixels of the crop, and radius.
    pub(crate) circle: [i32; 3],
    /// Soft: left, top, right, bottom: how much the distance from the middle counts on that side,
    /// 1 inside the photo, down to 0 at its border.
    pub(crate) sides: [f32; 4],
    /// Soft: ratio; width of the soft edge in pixels; the crop's shorter side in pixels; unused.
    pub(crate) soft: [f32; 4],
}

const RECTANGLE: u32 = 0;
const CIRCLE: u32 = 1;
const SOFT: u32 = 2;

impl Mask {
    /// The mask of `crop`, one of `count` in a photo of that size.
    pub(crate) fn new(
        crop: Rect,
        count: usize,
        photo: (u32, u32),
        settings: &PasteSettings,
    ) -> Self {
        let mut mask = Self::zeroed();
        match settings.mode {
            PasteMode::PaddleGan if count <= 1 => mask.kind = RECTANGLE,
            PasteMode::PaddleGan => {
                mask.kind = CIRCLE;
                // As the reference: the middle of the absolute corners, cut to whole pixels. The
                // ratio goes through its decimal notation, so that 0.4f32 is 0.4 and not a little more.
                let radius = f64::from(crop.height()) * decimal(settings.ratio);
                let x = (crop.x1 + crop.x2) / 2 - crop.x1;
                let y = (crop.y1 + crop.y2) / 2 - crop.y1;
                mask.circle = [x, y, radius.ceil() as i32];
            }
            PasteMode::Feather => {
                mask.kind = SOFT;
                // Below 0.4 somebody wants a small mask: let go of the photo's border.
                let border = 1.0 - smoothstep((settings.ratio - 0.3) / 0.1);
                let photo = Rect::of_size(photo.0, photo.1);
                let touches = [
                    crop.x1 <= photo.x1,
                    crop.y1 <= photo.y1,
                    crop.x2 >= photo.x2,
                    crop.y2 >= photo.y2,
                ];
                mask.sides = touches.map(|touch| if touch { border } else { 1.0 });
                let shorter = crop.width().min(crop.height()) as f32;
                mask.soft = [
                    settings.ratio,
                    (settings.feather * shorter / 2.0).max(1.0),
                    shorter,
                    0.0,
                ];
            }
        }
        mask
    }

    /// How much of pixel (x, y) of a crop of that size comes from the prediction, 0..=1.
    pub(crate) fn at(&self, x: u32, y: u32, width: u32, height: u32) -> f32 {
        self.combine(&self.column(x, width), &self.row(y, height))
    }

    fn column(&self, x: u32, width: u32) -> Part {
        self.part(x, width, self.circle[0], self.sides[0], self.sides[2])
    }

    fn row(&self, y: u32, height: u32) -> Part {
        self.part(y, height, self.circle[1], self.sides[1], self.sides[3])
    }

    /// What a pixel's column or row says; `low` and `high` are the sides at its ends.
    fn part(&self, at: u32, length: u32, middle: i32, low: f32, high: f32) -> Part {
        let (position, length) = (at as f32 + 0.5, length as f32);
        let feather = self.soft[1].max(1.0);
        let side = if position < length / 2.0 { low } else { high };
        let distance = (position / length - 0.5) * side;
        let square = distance * distance;
        // The outermost pixel is the photo's own, wherever the photo goes on beyond it.
        let fade =
            |side: f32, inside: f32| 1.0 + side * (smoothstep((inside - 1.0) / feather) - 1.0);
        Part {
            steps: i64::from(at) - i64::from(middle),
            fourth: square * square,
            edges: fade(low, position) * fade(high, length - position),
        }
    }

    #[inline(always)]
    fn combine(&self, column: &Part, row: &Part) -> f32 {
        match self.kind {
            RECTANGLE => 1.0,
            CIRCLE => {
                let radius = i64::from(self.circle[2]);
                let square = column.steps * column.steps + row.steps * row.steps;
                f32::from(square <= radius * radius)
            }
            _ => {
                let [ratio, feather, shorter, _] = self.soft;
                // The fourth-power norm: a square with round corners.
                let distance = (column.fourth + row.fourth).sqrt().sqrt();
                let round = smoothstep((ratio - distance) * shorter / feather + 1.0);
                round * column.edges * row.edges
            }
        }
    }
}

/// A column's or a row's part in a mask.
#[derive(Clone, Copy, Debug)]
struct Part {
    /// Pixels from the hard circle's middle.
    steps: i64,
    /// Fourth power of the distance from the soft mask's middle.
    fourth: f32,
    /// How far the soft mask has faded towards the crop's edges.
    edges: f32,
}

/// A crop's mask with one byte per pixel, and for each row the part that is not zero.
#[derive(Debug, Default)]
pub(crate) struct Raster {
    pub(crate) bytes: Vec<u8>,
    pub(crate) spans: Vec<(u32, u32)>,
}

impl Raster {
    pub(crate) fn draw(&mut self, share: &Share, width: u32, height: u32) {
        let mask = &share.mask;
        let row = width as usize;
        self.bytes.resize(row * height as usize, 0);
        self.spans.resize(height as usize, (0, 0));
        let columns: Vec<Part> = (0..width).map(|x| mask.column(x, width)).collect();
        let rows = self
            .bytes
            .par_chunks_mut(row)
            .zip(&mut self.spans)
            .enumerate();
        rows.with_min_len(16).for_each(|(y, (bytes, span))| {
            let row = mask.row(y as u32, height);
            for ((x, byte), column) in (0..).zip(bytes.iter_mut()).zip(&columns) {
                let value = mask.combine(column, &row) * share.kept(x, y as u32, width, height);
                *byte = (value * 255.0 + 0.5) as u8;
            }
            let first = bytes.iter().position(|&byte| byte > 0).unwrap_or(0);
            let end = bytes
                .iter()
                .rposition(|&byte| byte > 0)
                .map_or(0, |last| last + 1);
            *span = (first as u32, end as u32);
        });
    }
}

/// 3t² - 2t³ with t cut to 0..1.
pub(crate) fn smoothstep(t: f32) -> f32 {
    let t = t.clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

fn decimal(value: f32) -> f64 {
    value
        .to_string()
        .parse()
        .unwrap_or_else(|_| f64::from(value))
}

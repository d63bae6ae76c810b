//! Faces whose crops overlap: who gets which pixels.
//!
//! Faces are pasted one after the other. Left alone, the last one's soft mask would cut into its
//! neighbour's cheek, since a crop is twice as wide as its face. So a face gives way to those before
//! it where they are nearer: with d the distance to a crop's middle over the crop's shorter side, the
//! overlap is parted where both d are equal, softly, and only as far as the other's mask covers it.
//! The face before has its whole mask there, so nothing of the photo shows through the seam.
//!
//! PaddleGAN's masks overlap as the reference's do. The same formulas are in
//! `shaders/paste_back.wgsl`.

use bytemuck::{Pod, Zeroable};

use super::mask::{Mask, PasteMode, PasteSettings, smoothstep};
use crate::geometry::Rect;

/// Half the width of a seam at least, as a difference of d.
const SEAM: f32 = 0.02;

/// A mask and the faces it gives way to.
#[derive(Clone, Debug)]
pub(crate) struct Share {
    pub(crate) mask: Mask,
    pub(crate) neighbours: Vec<Neighbour>,
}

/// A face that was pasted before, seen from the crop of one that comes after; also an element of the
/// array in `paste_back.wgsl` (`struct Neighbour`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub(crate) struct Neighbour {
    pub(crate) mask: Mask,
    /// Its crop's left and top from this one's, its width and height, in pixels.
    pub(crate) place: [i32; 4],
    /// Half the seam's width; unused.
    pub(crate) seam: [f32; 4],
}

impl Share {
    /// The masks of crops in the order of pasting; a crop may have its own ratio in `ratios`.
    pub(crate) fn of_all(
        crops: &[Rect],
        ratios: &[Option<f32>],
        photo: (u32, u32),
        settings: &PasteSettings,
    ) -> Vec<Self> {
        let own = ratios.iter().copied().chain(std::iter::repeat(None));
        let mask = |(&crop, own): (&Rect, Option<f32>)| {
            let settings = PasteSettings {
                ratio: own.unwrap_or(settings.ratio),
                ..*settings
            };
            Mask::new(crop, crops.len(), photo, &settings)
        };
        let masks: Vec<Mask> = crops.iter().zip(own).map(mask).collect();
        let soft = settings.mode == PasteMode::Feather;
        let seam = (settings.feather / 4.0).max(SEAM);
        let shares = crops.iter().enumerate().map(|(i, &crop)| {
            let before = crops[..i].iter().zip(&masks);
            let beside = before.filter(|(other, _)| soft && are_beside(crop, **other));
            Self {
                mask: masks[i],
                neighbours: beside
                    .map(|(other, &mask)| Neighbour {
                        mask,
                        // Crops lie in the photo, whose sides are i32.
                        place: [
                            other.x1 - crop.x1,
                            other.y1 - crop.y1,
                            other.x2 - other.x1,
                            other.y2 - other.y1,
                        ],
                        seam: [seam, 0.0, 0.0, 0.0],
                    })
                    .collect(),
            }
        });
        shares.collect()
    }

    /// How much of what the mask gives pixel (x, y) of a crop of that size it keeps, 0..=1.
    pub(crate) fn kept(&self, x: u32, y: u32, width: u32, height: u32) -> f32 {
        let mut kept = 1.0;
        for neighbour in &self.neighbours {
            kept *= 1.0 - neighbour.takes(x, y, width, height);
        }
        kept
    }
}

impl Neighbour {
    fn takes(&self, x: u32, y: u32, width: u32, height: u32) -> f32 {
        let [left, top, other_width, other_height] = self.place;
        let (dx, dy) = (
            i64::from(x) - i64::from(left),
            i64::from(y) - i64::from(top),
        );
        let inside = |d: i64, length: i32| (0..i64::from(length)).contains(&d);
        if !inside(dx, other_width) || !inside(dy, other_height) {
            return 0.0;
        }
        let (other_width, other_height) = (other_width as u32, other_height as u32);
        let here = distance(x as f32, y as f32, width as f32, height as f32);
        let there = distance(
            dx as f32,
            dy as f32,
            other_width as f32,
            other_height as f32,
        );
        let nearer = smoothstep(0.5 + (here - there) / (2.0 * self.seam[0]));
        let covered = self
            .mask
            .at(dx as u32, dy as u32, other_width, other_height);
        covered * nearer
    }
}

/// From a pixel's centre to the crop's, over the crop's shorter side.
fn distance(x: f32, y: f32, width: f32, height: f32) -> f32 {
    let (x, y) = (x + 0.5 - width / 2.0, y + 0.5 - height / 2.0);
    (x * x + y * y).sqrt() / width.min(height)
}

/// Whether two crops share pixels and neither lies in the other: of such the later is meant to be on
/// top.
fn are_beside(a: Rect, b: Rect) -> bool {
    let shared = a.intersect(&b);
    !shared.is_empty() && shared != a && shared != b
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEFT: Rect = Rect::new(0, 100, 200, 300);
    const RIGHT: Rect = Rect::new(110, 100, 310, 300);

    fn shares(mode: PasteMode, crops: &[Rect]) -> Vec<Share> {
        let settings = PasteSettings {
            mode,
            ..PasteSettings::default()
        };
        Share::of_all(crops, &[], (600, 600), &settings)
    }

    #[test]
    fn a_neighbour_keeps_its_face_and_gives_no_more_than_half() {
        let shares = shares(PasteMode::Feather, &[LEFT, RIGHT]);
        assert!(shares[0].neighbours.is_empty());
        let kept = |x: i32, y: i32| {
            let (x, y) = (x - RIGHT.x1, y - RIGHT.y1);
            shares[1].kept(x.unsigned_abs(), y.unsigned_abs(), 200, 200)
        };
        // Towards the left face's middle nothing, towards its own all, in between a seam.
        assert_eq!(kept(130, 200), 0.0);
        assert_eq!(kept(195, 200), 1.0);
        assert!((0.3..0.7).contains(&kept(154, 200)), "{}", kept(154, 200));
        // Where the other has no pixels there is nothing to give way to.
        assert_eq!(kept(120, 100), 1.0);
    }

    #[test]
    fn what_lies_in_another_is_on_top_and_paddlegans_circles_are_left_alone() {
        let inner = Rect::new(20, 120, 120, 220);
        assert!(
            shares(PasteMode::Feather, &[LEFT, inner])[1]
                .neighbours
                .is_empty()
        );
        assert!(
            shares(PasteMode::PaddleGan, &[LEFT, RIGHT])[1]
                .neighbours
                .is_empty()
        );
    }
}

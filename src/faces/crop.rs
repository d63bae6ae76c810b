//! From a face to the crop that the networks see.
//!
//! Two rules: the default (a square of the size that the embedded model was trained on) and
//! PaddleGAN's (`FirstOrderPredictor.extract_bbox`: an upright 4:5 rectangle, cut at the photo's
//! edges, boxes of the same person dropped), the latter to the pixel.

use crate::geometry::Rect;

/// Side of the default crop over the face's longer side: the middle of the 1.7 to 2.6 that
/// models of talking heads are trained on.
const SIDE: f64 = 2.1;

/// How far the crop's middle lies under the face's, in sides of the crop: the face is a little
/// above the middle, chin and neck get the room.
const SINK: f64 = 0.05;

/// Two PaddleGAN crops that overlap more than this are the same person.
const SAME_PERSON: f64 = 0.5;

/// A box that cannot be animated.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// No pixel of the box is in the photo.
    #[error(
        "the {what} {rect} lies outside the {width}x{height} picture: give X1,Y1,X2,Y2 in pixels of the picture"
    )]
    Outside {
        /// "face" or "crop".
        what: &'static str,
        /// The box as given.
        rect: Rect,
        /// The photo's width in pixels.
        width: u32,
        /// The photo's height in pixels.
        height: u32,
    },
}

/// The square around a face that the models know: 2.1 times the face's longer side, the face a
/// little above its middle, moved (not cut) to stay inside the photo and smaller only when the
/// photo is.
///
/// # Errors
/// When no pixel of the face is in the photo.
pub fn square_crop(face: Rect, photo_width: u32, photo_height: u32) -> Result<Rect, Error> {
    require_overlap("face", face, photo_width, photo_height)?;
    let longer = f64::from(face.width().max(face.height()));
    // A photo's coordinates are i32: see `Rect::of_size`.
    let edge = |length: u32| f64::from(length.min(i32::MAX as u32));
    let limit = edge(photo_width.min(photo_height));
    let side = (SIDE * longer).round().clamp(1.0, limit);
    let place = |low: i32, high: i32, sink: f64, photo: u32| {
        let middle = f64::midpoint(f64::from(low), f64::from(high)) + sink * side;
        (middle - side / 2.0).round().clamp(0.0, edge(photo) - side) as i32
    };
    let x1 = place(face.x1, face.x2, 0.0, photo_width);
    let y1 = place(face.y1, face.y2, SINK, photo_height);
    Ok(Rect::new(x1, y1, x1 + side as i32, y1 + side as i32))
}

/// PaddleGAN's crops: the longer side of each face up and down from its middle, 0.8 of it left and
/// right, cut at the photo's edges; of crops that overlap by more than half the largest stays.
///
/// The order is that of `detections`, in which PaddleGAN pastes. Its code means to keep the largest
/// of a person's boxes but discards the sorted list, so that it keeps the first: not repeated here.
///
/// # Errors
/// When no pixel of a detection is in the photo.
pub fn paddlegan_crops(
    detections: &[Rect],
    photo_width: u32,
    photo_height: u32,
) -> Result<Vec<Rect>, Error> {
    let mut crops = Vec::with_capacity(detections.len());
    for (index, &face) in detections.iter().enumerate() {
        require_overlap("face", face, photo_width, photo_height)?;
        crops.push((index, paddlegan_crop(face, photo_width, photo_height)));
    }
    crops.sort_by_key(|(_, crop)| std::cmp::Reverse(crop.area()));
    let mut kept: Vec<(usize, Rect)> = Vec::with_capacity(crops.len());
    for (index, crop) in crops {
        if kept
            .iter()
            .all(|(_, larger)| larger.iou(&crop) <= SAME_PERSON)
        {
            kept.push((index, crop));
        }
    }
    kept.sort_by_key(|&(index, _)| index);
    Ok(kept.into_iter().map(|(_, crop)| crop).collect())
}

/// A crop given by hand, cut at the photo's edges.
///
/// # Errors
/// When no pixel of the crop is in the photo.
pub fn clip_crop(crop: Rect, photo_width: u32, photo_height: u32) -> Result<Rect, Error> {
    require_overlap("crop", crop, photo_width, photo_height)?;
    Ok(crop.intersect(&Rect::of_size(photo_width, photo_height)))
}

/// The largest square in the middle of a picture.
pub fn middle(width: u32, height: u32) -> Rect {
    let whole = Rect::of_size(width, height);
    let side = whole.x2.min(whole.y2);
    let (x, y) = ((whole.x2 - side) / 2, (whole.y2 - side) / 2);
    Rect::new(x, y, x + side, y + side)
}

fn require_overlap(what: &'static str, rect: Rect, width: u32, height: u32) -> Result<(), Error> {
    if rect.intersect(&Rect::of_size(width, height)).is_empty() {
        return Err(Error::Outside {
            what,
            rect,
            width,
            height,
        });
    }
    Ok(())
}

/// Whole-number arithmetic as the reference's, halves and 0.8 of the margin cut towards zero; in 64
/// bits, because boxes may be given as far out as `i32` goes.
fn paddlegan_crop(face: Rect, photo_width: u32, photo_height: u32) -> Rect {
    let (width, height) = (i64::from(face.width()), i64::from(face.height()));
    let middle_x = i64::from(face.x1) + width / 2;
    let middle_y = i64::from(face.y1) + height / 2;
    let margin = width.max(height);
    let beside = (0.8 * margin as f64) as i64;
    let inside =
        |v: i64, limit: u32| i32::try_from(v.clamp(0, i64::from(limit))).unwrap_or(i32::MAX);
    let crop = Rect::new(
        inside(middle_x - beside, photo_width),
        inside(middle_y - margin, photo_height),
        inside(middle_x + beside, photo_width),
        inside(middle_y + margin, photo_height),
    );
    // 0.8 of a one-pixel margin is nothing.
    if crop.is_empty() {
        face.intersect(&Rect::of_size(photo_width, photo_height))
    } else {
        crop
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paddlegan_keeps_the_largest_of_a_persons_boxes_in_the_order_of_detection() {
        let small = Rect::new(150, 150, 240, 250);
        let large = Rect::new(148, 148, 244, 264);
        let other = Rect::new(400, 50, 450, 115);
        let crops = paddlegan_crops(&[other, small, large], 600, 450).unwrap();
        assert_eq!(crops.len(), 2);
        assert_eq!(crops[0], paddlegan_crop(other, 600, 450));
        assert_eq!(crops[1], paddlegan_crop(large, 600, 450));
    }

    #[test]
    fn a_single_face_gets_a_square_with_the_face_a_little_above_the_middle() {
        let face = Rect::new(400, 300, 500, 420);
        let crop = square_crop(face, 2000, 2000).unwrap();
        assert_eq!((crop.width(), crop.height()), (252, 252));
        assert_eq!(crop.x1 + crop.x2, 900);
        let middle = (crop.y1 + crop.y2) / 2;
        assert!((360 + 8..=360 + 18).contains(&middle), "{middle}");
    }

    #[test]
    fn a_crop_at_the_edge_is_moved_and_shrinks_only_in_a_small_photo() {
        let corner = square_crop(Rect::new(0, 0, 100, 100), 640, 480).unwrap();
        assert_eq!(corner, Rect::new(0, 0, 210, 210));
        let large = square_crop(Rect::new(100, 100, 500, 400), 640, 480).unwrap();
        assert_eq!((large.width(), large.height()), (480, 480));
        assert_eq!(
            square_crop(Rect::new(0, 0, 1, 1), 1, 1).unwrap(),
            Rect::new(0, 0, 1, 1)
        );
    }

    #[test]
    fn boxes_outside_the_photo_are_named() {
        let out = Rect::new(700, 10, 800, 90);
        for error in [
            square_crop(out, 640, 480).unwrap_err(),
            paddlegan_crops(&[out], 640, 480).unwrap_err(),
            clip_crop(out, 640, 480).unwrap_err(),
        ] {
            let text = error.to_string();
            assert!(
                text.contains("700,10,800,90") && text.contains("640x480"),
                "{text}"
            );
        }
        let half = Rect::new(600, -5, 700, 9);
        assert_eq!(
            clip_crop(half, 640, 480).unwrap(),
            Rect::new(600, 0, 640, 9)
        );
    }

    proptest! {
        #[test]
        fn crops_of_any_box_stay_in_the_photo(
            x1 in any::<i32>(), y1 in any::<i32>(), x2 in any::<i32>(), y2 in any::<i32>(),
            near in 0..3u8, width in 1u32..5000, height in 1u32..5000,
        ) {
            let shift = |v: i32| if near == 0 { v } else { v % 6000 };
            let face = Rect::new(shift(x1), shift(y1), shift(x2), shift(y2));
            let photo = Rect::of_size(width, height);
            if let Ok(crop) = square_crop(face, width, height) {
                prop_assert!(!crop.is_empty() && crop.intersect(&photo) == crop, "{crop}");
                prop_assert_eq!(crop.width(), crop.height());
            }
            if let Ok(crops) = paddlegan_crops(&[face], width, height) {
                prop_assert!(crops.iter().all(|c| c.intersect(&photo) == *c));
            }
        }
    }
}

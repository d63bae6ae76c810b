//! A picture into a frame of another size.

use image::{GenericImage as _, RgbaImage};

use crate::frame::view;
use crate::geometry::Rect;

/// The picture as it is when it has the size, else scaled to fit into `room`, centred, with black beside it.
pub(super) fn fit<'a>(
    picture: &'a RgbaImage,
    width: u32,
    height: u32,
    room: &'a mut RgbaImage,
) -> &'a RgbaImage {
    if picture.dimensions() == (width, height) {
        return picture;
    }
    if room.dimensions() != (width, height) {
        *room = RgbaImage::new(width, height);
    }
    room.pixels_mut()
        .for_each(|p| *p = image::Rgba([0, 0, 0, 255]));
    let inside = inside(picture.dimensions(), (width, height));
    if inside.is_empty() {
        return room;
    }
    let (x, y) = (inside.x1.unsigned_abs(), inside.y1.unsigned_abs());
    let whole = Rect::of_size(picture.width(), picture.height());
    match view(picture, whole, inside.width(), inside.height()) {
        Ok(scaled) => {
            // It fits: that is how `inside` was made.
            let _ = room.copy_from(&scaled, x, y);
        }
        Err(error) => tracing::warn!("{error}"),
    }
    room
}

/// Where a picture of one size goes in a frame of another; empty if it has no pixels.
fn inside(picture: (u32, u32), frame: (u32, u32)) -> Rect {
    if picture.0 == 0 || picture.1 == 0 || frame.0 == 0 || frame.1 == 0 {
        return Rect::of_size(0, 0);
    }
    let scale =
        (f64::from(frame.0) / f64::from(picture.0)).min(f64::from(frame.1) / f64::from(picture.1));
    let side = |side: u32, most: u32| ((f64::from(side) * scale).round() as u32).clamp(1, most);
    let (width, height) = (side(picture.0, frame.0), side(picture.1, frame.1));
    let (x, y) = ((frame.0 - width) / 2, (frame.1 - height) / 2);
    Rect::new(x as i32, y as i32, (x + width) as i32, (y + height) as i32)
}

#[cfg(test)]
mod tests {
    use image::Rgba;

    use super::*;

    #[test]
    fn a_picture_is_centred_with_black_beside_it() {
        let red = RgbaImage::from_pixel(100, 50, Rgba([200, 0, 0, 255]));
        let mut room = RgbaImage::new(0, 0);
        let fitted = fit(&red, 40, 40, &mut room);
        assert_eq!(fitted.dimensions(), (40, 40));
        assert_eq!(fitted.get_pixel(20, 5).0, [0, 0, 0, 255]);
        assert_eq!(fitted.get_pixel(20, 20).0, [200, 0, 0, 255]);
        assert_eq!(fitted.get_pixel(20, 35).0, [0, 0, 0, 255]);
        // What was there before does not shine through.
        let tall = RgbaImage::from_pixel(1, 500, Rgba([0, 0, 200, 255]));
        let fitted = fit(&tall, 40, 40, &mut room);
        assert_eq!(fitted.get_pixel(5, 20).0, [0, 0, 0, 255]);
        assert_eq!(fitted.get_pixel(19, 20).0, [0, 0, 200, 255]);
    }

    #[test]
    fn the_right_size_is_not_touched_and_none_is_black() {
        let red = RgbaImage::from_pixel(4, 4, Rgba([200, 0, 0, 255]));
        let mut room = RgbaImage::new(0, 0);
        assert!(std::ptr::eq(fit(&red, 4, 4, &mut room), &raw const red));
        let nothing = RgbaImage::new(0, 9);
        let black = fit(&nothing, 2, 2, &mut room);
        assert_eq!(black.as_raw(), &[0, 0, 0, 255].repeat(4));
    }
}

//! Varying pairs: both pictures are flipped, coloured, turned and moved alike, as the reference does.

use super::config::Augment;
use super::random::Random;

/// What one pair undergoes.
#[derive(Clone, Debug)]
pub struct Variation {
    flip: bool,
    /// In the order in which they are done.
    colours: Vec<Colour>,
    /// Where a pixel of the result comes from, in -1..1: `[[a, b, tx], [c, d, ty]]`.
    place: Option<[[f64; 3]; 2]>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Colour {
    Brightness(f32),
    Contrast(f32),
    Saturation(f32),
    Hue(f32),
}

impl Variation {
    /// Draws one.
    pub fn random(augment: &Augment, random: &mut Random) -> Self {
        let flip = random.chance(augment.horizontal_flip);
        let mut colours = Vec::new();
        let mut factor = |by: f64, make: fn(f32) -> Colour| {
            let factor = random.between((1.0 - by).max(0.0), 1.0 + by);
            if by > 0.0 {
                colours.push(make(factor as f32));
            }
        };
        factor(augment.brightness, Colour::Brightness);
        factor(augment.contrast, Colour::Contrast);
        factor(augment.saturation, Colour::Saturation);
        let turn = random.between(-augment.hue, augment.hue);
        if augment.hue > 0.0 {
            colours.push(Colour::Hue(turn as f32));
        }
        let order = random.permutation(colours.len());
        let colours = order.into_iter().map(|i| colours[i]).collect();

        let angle = random
            .between(-augment.rotation, augment.rotation)
            .to_radians();
        let size = augment
            .scale
            .map_or(1.0, |[low, high]| random.between(low, high));
        let mut shift = || 2.0 * random.between(-augment.shift, augment.shift);
        let (x, y) = (shift(), shift());
        let still = augment.rotation == 0.0 && augment.scale.is_none() && augment.shift == 0.0;
        let (sin, cos) = (angle.sin() / size, angle.cos() / size);
        let place = (!still).then_some([[cos, -sin, x], [sin, cos, y]]);
        Self {
            flip,
            colours,
            place,
        }
    }

    /// A picture of RGB bytes, `side` x `side`, as planes (3, side, side) in 0..1.
    pub fn picture(&self, rgb: &[u8], side: usize) -> Vec<f32> {
        let plane = side * side;
        let mut planes = vec![0f32; 3 * plane];
        for (i, pixel) in rgb.as_chunks::<3>().0.iter().enumerate() {
            let at = if self.flip {
                i / side * side + side - 1 - i % side
            } else {
                i
            };
            for channel in 0..3 {
                planes[channel * plane + at] = f32::from(pixel[channel]) / 255.0;
            }
        }
        for colour in &self.colours {
            colour.apply(&mut planes);
        }
        match &self.place {
            Some(place) => moved(&planes, side, place),
            None => planes,
        }
    }

    /// Points (x, y) in -1..1 of the picture; `mirrored` change places when it is flipped.
    pub fn points(&self, points: &[[f32; 2]], mirrored: &[[usize; 2]]) -> Vec<[f32; 2]> {
        let mut points = points.to_vec();
        if self.flip {
            points.iter_mut().for_each(|p| p[0] = -p[0]);
            for &[a, b] in mirrored {
                if a < points.len() && b < points.len() {
                    points.swap(a, b);
                }
            }
        }
        if let Some([[a, b, tx], [c, d, ty]]) = self.place {
            let determinant = a * d - b * c;
            for p in &mut points {
                let (x, y) = (f64::from(p[0]) - tx, f64::from(p[1]) - ty);
                let back = [d * x - b * y, a * y - c * x];
                *p = back.map(|v| (v / determinant) as f32);
            }
        }
        points
    }
}

impl Colour {
    /// As torchvision: blends with black, with the mean grey, with each pixel's grey; turns the hue.
    fn apply(self, planes: &mut [f32]) {
        let plane = planes.len() / 3;
        let (red, rest) = planes.split_at_mut(plane);
        let (green, blue) = rest.split_at_mut(plane);
        let grey = |r: f32, g: f32, b: f32| 0.299 * r + 0.587 * g + 0.114 * b;
        let mean = match self {
            Self::Contrast(_) => {
                let sum: f32 = (0..plane).map(|i| grey(red[i], green[i], blue[i])).sum();
                sum / plane.max(1) as f32
            }
            _ => 0.0,
        };
        for i in 0..plane {
            let pixel = [red[i], green[i], blue[i]];
            let blend = |other: f32, factor: f32| {
                pixel.map(|v| (other + factor * (v - other)).clamp(0.0, 1.0))
            };
            let [r, g, b] = match self {
                Self::Brightness(factor) => blend(0.0, factor),
                Self::Contrast(factor) => blend(mean, factor),
                Self::Saturation(factor) => blend(grey(pixel[0], pixel[1], pixel[2]), factor),
                Self::Hue(turn) => turned(pixel, turn),
            };
            (red[i], green[i], blue[i]) = (r, g, b);
        }
    }
}

/// The same value and saturation, the hue a part of the circle further.
fn turned([r, g, b]: [f32; 3], turn: f32) -> [f32; 3] {
    let (value, least) = (r.max(g).max(b), r.min(g).min(b));
    let chroma = value - least;
    if chroma <= 0.0 {
        return [r, g, b];
    }
    let sixth = if value == r {
        (g - b) / chroma
    } else if value == g {
        2.0 + (b - r) / chroma
    } else {
        4.0 + (r - g) / chroma
    };
    let hue = sixth + 6.0 * turn;
    let channel = |offset: f32| {
        let k = (offset + hue).rem_euclid(6.0);
        value - chroma * k.min(4.0 - k).clamp(0.0, 1.0)
    };
    [channel(5.0), channel(3.0), channel(1.0)]
}

/// Samples planes where `place` says, mirrored at the edge.
fn moved(planes: &[f32], side: usize, place: &[[f64; 3]; 2]) -> Vec<f32> {
    let plane = side * side;
    let mut result = vec![0f32; planes.len()];
    let half = (side.max(2) - 1) as f64 / 2.0;
    let last = (side - 1) as f64;
    let mirror = |v: f64| {
        let v = v.abs() % (2.0 * last.max(1.0));
        if v > last {
            (2.0 * last - v).max(0.0)
        } else {
            v
        }
    };
    for i in 0..plane {
        let (x, y) = (
            (i % side) as f64 / half - 1.0,
            (i / side) as f64 / half - 1.0,
        );
        let [from_x, from_y] = place.map(|[a, b, t]| mirror((a * x + b * y + t + 1.0) * half));
        let (left, top) = (from_x as usize, from_y as usize);
        let (right, bottom) = ((left + 1).min(side - 1), (top + 1).min(side - 1));
        let (fx, fy) = ((from_x - left as f64) as f32, (from_y - top as f64) as f32);
        for channel in 0..3 {
            let at = |row: usize, column: usize| planes[channel * plane + row * side + column];
            let upper = at(top, left) + fx * (at(top, right) - at(top, left));
            let lower = at(bottom, left) + fx * (at(bottom, right) - at(bottom, left));
            result[channel * plane + i] = upper + fy * (lower - upper);
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Variation {
        Variation {
            flip: false,
            colours: Vec::new(),
            place: None,
        }
    }

    #[test]
    fn nothing_asked_for_changes_nothing() {
        let variation = Variation::random(&Augment::default(), &mut Random::new(1, &[]));
        let rgb: Vec<u8> = (0..4 * 4 * 3).map(|i| i * 5).collect();
        let planes = variation.picture(&rgb, 4);
        assert_eq!(planes[16 + 5], f32::from(rgb[5 * 3 + 1]) / 255.0);
        assert_eq!(variation.points(&[[0.5, -0.25]], &[]), [[0.5, -0.25]]);
    }

    #[test]
    fn a_flip_takes_points_along_and_swaps_left_and_right() {
        let variation = Variation {
            flip: true,
            ..plain()
        };
        let mut rgb = vec![0u8; 3 * 3 * 3];
        rgb[0] = 255;
        assert_eq!(variation.picture(&rgb, 3)[2], 1.0);
        let points = variation.points(&[[0.5, 0.1], [-0.25, 0.2]], &[[0, 1]]);
        assert_eq!(points, [[0.25, 0.2], [-0.5, 0.1]]);
    }

    #[test]
    fn points_go_where_the_picture_goes() {
        let augment = Augment {
            rotation: 30.0,
            scale: Some([0.8, 1.2]),
            shift: 0.1,
            ..Augment::default()
        };
        let side = 65;
        for seed in 0..8 {
            let variation = Variation::random(&augment, &mut Random::new(seed, &[]));
            // A blob around (0.25, -0.125), which is pixel (40, 28).
            let rgb: Vec<u8> = (0..side * side)
                .flat_map(|i| {
                    let (x, y) = ((i % side) as f64 - 40.0, (i / side) as f64 - 28.0);
                    [(255.0 * (-(x * x + y * y) / 18.0).exp()) as u8; 3]
                })
                .collect();
            let planes = variation.picture(&rgb, side);
            let (mut sum, mut middle) = (0.0, [0.0; 2]);
            for (i, v) in planes[..side * side].iter().enumerate() {
                sum += f64::from(*v);
                middle[0] += f64::from(*v) * ((i % side) as f64 / 32.0 - 1.0);
                middle[1] += f64::from(*v) * ((i / side) as f64 / 32.0 - 1.0);
            }
            let wanted = variation.points(&[[0.25, -0.125]], &[])[0];
            for (got, wanted) in middle.map(|v| v / sum).iter().zip(wanted) {
                assert!((got - f64::from(wanted)).abs() < 0.02, "{got} {wanted}");
            }
        }
    }

    #[test]
    fn colours_are_torchvisions() {
        let apply = |colour: Colour, [r, g, b]: [f32; 3]| {
            let mut planes = [r, g, b];
            colour.apply(&mut planes);
            planes
        };
        let close = |a: [f32; 3], b: [f32; 3]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5);
        let pixel = [0.8, 0.4, 0.2];
        assert!(close(
            apply(Colour::Brightness(1.5), pixel),
            [1.0, 0.6, 0.3]
        ));
        let grey = 0.299 * 0.8 + 0.587 * 0.4 + 0.114 * 0.2;
        assert!(close(apply(Colour::Saturation(0.0), pixel), [grey; 3]));
        assert!(close(apply(Colour::Contrast(0.0), pixel), [grey; 3]));
        // Red turned by a third is green, by half cyan; grey stays.
        assert!(close(
            apply(Colour::Hue(1.0 / 3.0), [1.0, 0.0, 0.0]),
            [0.0, 1.0, 0.0]
        ));
        assert!(close(
            apply(Colour::Hue(0.5), [1.0, 0.0, 0.0]),
            [0.0, 1.0, 1.0]
        ));
        assert!(close(apply(Colour::Hue(0.0), pixel), pixel));
        assert!(close(apply(Colour::Hue(0.3), [0.5; 3]), [0.5; 3]));
    }
}

//! Rectangles in whole pixels: the vocabulary that photos, crops and masks share.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

/// A rectangle in pixels, half open: `x1 <= x < x2`, `y1 <= y < y2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rect {
    /// Left edge, inclusive.
    pub x1: i32,
    /// Top edge, inclusive.
    pub y1: i32,
    /// Right edge, exclusive.
    pub x2: i32,
    /// Bottom edge, exclusive.
    pub y2: i32,
}

impl Rect {
    /// A rectangle from its corners.
    pub const fn new(x1: i32, y1: i32, x2: i32, y2: i32) -> Self {
        Self { x1, y1, x2, y2 }
    }

    /// The whole of a picture.
    pub fn of_size(width: u32, height: u32) -> Self {
        let edge = |v: u32| i32::try_from(v).unwrap_or(i32::MAX);
        Self::new(0, 0, edge(width), edge(height))
    }

    /// Width in pixels, 0 when the corners are the wrong way round.
    pub fn width(&self) -> u32 {
        u32::try_from(i64::from(self.x2) - i64::from(self.x1)).unwrap_or(0)
    }

    /// Height in pixels, 0 when the corners are the wrong way round.
    pub fn height(&self) -> u32 {
        u32::try_from(i64::from(self.y2) - i64::from(self.y1)).unwrap_or(0)
    }

    /// Number of pixels inside.
    pub fn area(&self) -> u64 {
        u64::from(self.width()) * u64::from(self.height())
    }

    /// Whether no pixel is inside.
    pub fn is_empty(&self) -> bool {
        self.area() == 0
    }

    /// What both rectangles cover; empty (and possibly with crossed corners) when they are apart.
    #[must_use]
    pub fn intersect(&self, other: &Self) -> Self {
        Self::new(
            self.x1.max(other.x1),
            self.y1.max(other.y1),
            self.x2.min(other.x2),
            self.y2.min(other.y2),
        )
    }

    /// Intersection over union, 0..=1.
    pub fn iou(&self, other: &Self) -> f64 {
        let shared = self.intersect(other).area();
        let union = self.area() + other.area() - shared;
        if union == 0 {
            0.0
        } else {
            shared as f64 / union as f64
        }
    }
}

impl fmt::Display for Rect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{},{},{}", self.x1, self.y1, self.x2, self.y2)
    }
}

impl FromStr for Rect {
    type Err = String;

    /// Reads `X1,Y1,X2,Y2`, the corners in order and apart.
    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Vec<i32> = text
            .split(',')
            .map(|part| part.trim().parse())
            .collect::<Result<_, _>>()
            .map_err(|e: ParseIntError| {
                format!("'{text}' is not four whole numbers X1,Y1,X2,Y2 ({e})")
            })?;
        let [x1, y1, x2, y2] = numbers[..] else {
            return Err(format!("'{text}' is not four whole numbers X1,Y1,X2,Y2"));
        };
        let rect = Self::new(x1, y1, x2, y2);
        if rect.is_empty() {
            return Err(format!(
                "the box {text} is empty: X2 must be over X1 and Y2 over Y1"
            ));
        }
        Ok(rect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_are_read_as_they_are_written() {
        let rect: Rect = "10, -20,30,40".parse().unwrap();
        assert_eq!(rect, Rect::new(10, -20, 30, 40));
        assert_eq!(rect.to_string().parse::<Rect>().unwrap(), rect);
        for bad in [
            "",
            "1,2,3",
            "1,2,3,4,5",
            "a,b,c,d",
            "5,5,5,9",
            "9,0,1,4",
            "1e9,0,2,2",
        ] {
            assert!(bad.parse::<Rect>().is_err(), "{bad}");
        }
    }

    #[test]
    fn overlap_is_measured_by_the_union() {
        let a = Rect::new(0, 0, 10, 10);
        assert_eq!(a.iou(&a), 1.0);
        assert_eq!(a.iou(&Rect::new(10, 0, 20, 10)), 0.0);
        assert_eq!(a.iou(&Rect::new(5, 0, 15, 10)), 50.0 / 150.0);
    }
}

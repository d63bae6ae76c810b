//! What networks say before it is decided: boxes with scores, and which of them are the same face.

use crate::geometry::Rect;

/// A candidate for a face, in pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::faces) struct Candidate {
    /// Left, top, right, bottom.
    pub(in crate::faces) edges: [f32; 4],
    /// 0..=1.
    pub(in crate::faces) score: f32,
}

/// Most candidates that are looked at, the surest first: a picture of noise must not take minutes.
const MOST: usize = 5000;

impl Candidate {
    /// The face in whole pixels; `None` when it has no area or an edge is no number.
    pub(super) fn face(&self) -> Option<super::Face> {
        // A float as an integer saturates.
        let [x1, y1, x2, y2] = self.edges.map(|edge| edge.round() as i32);
        let rect = Rect::new(x1, y1, x2, y2);
        let sound = self.edges.iter().all(|edge| edge.is_finite()) && !rect.is_empty();
        sound.then_some(super::Face {
            rect,
            score: self.score,
        })
    }

    /// How much of it lies in another, 0..=1.
    pub(super) fn part_in(&self, other: &Self) -> f32 {
        let own = area(&self.edges, 0.0);
        let common = area(&shared(&self.edges, &other.edges), 0.0);
        if own > 0.0 { common / own } else { 0.0 }
    }

    /// From the network's picture to the photo.
    pub(super) fn scaled(&self, x: f32, y: f32) -> Self {
        let [x1, y1, x2, y2] = self.edges;
        Self {
            edges: [x1 * x, y1 * y, x2 * x, y2 * y],
            ..*self
        }
    }

    /// From a part of the photo to the photo.
    pub(super) fn moved(&self, x: f32, y: f32) -> Self {
        let [x1, y1, x2, y2] = self.edges;
        Self {
            edges: [x1 + x, y1 + y, x2 + x, y2 + y],
            ..*self
        }
    }
}

/// Of candidates that overlap more than `limit` (intersection over union) the surest, surest first.
///
/// `pixel` is added to every side, as S3FD's code does with 1: its boxes include their last pixel.
pub(super) fn suppress(mut candidates: Vec<Candidate>, limit: f32, pixel: f32) -> Vec<Candidate> {
    candidates.sort_by(|a, b| b.score.total_cmp(&a.score));
    candidates.truncate(MOST);
    let mut kept: Vec<Candidate> = Vec::new();
    for candidate in candidates {
        if kept
            .iter()
            .all(|surer| overlap(&surer.edges, &candidate.edges, pixel) <= limit)
        {
            kept.push(candidate);
        }
    }
    kept
}

fn overlap(a: &[f32; 4], b: &[f32; 4], pixel: f32) -> f32 {
    let common = area(&shared(a, b), pixel);
    let both = area(a, pixel) + area(b, pixel) - common;
    if both > 0.0 { common / both } else { 0.0 }
}

/// What two boxes have in common; with crossed edges when they are apart.
fn shared(a: &[f32; 4], b: &[f32; 4]) -> [f32; 4] {
    [
        a[0].max(b[0]),
        a[1].max(b[1]),
        a[2].min(b[2]),
        a[3].min(b[3]),
    ]
}

fn area([x1, y1, x2, y2]: &[f32; 4], pixel: f32) -> f32 {
    (x2 - x1 + pixel).max(0.0) * (y2 - y1 + pixel).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(edges: [f32; 4], score: f32) -> Candidate {
        Candidate { edges, score }
    }

    #[test]
    fn of_one_face_the_surest_box_stays() {
        let sure = candidate([10.0, 10.0, 50.0, 50.0], 0.9);
        let near = candidate([12.0, 11.0, 52.0, 49.0], 0.8);
        let apart = candidate([100.0, 10.0, 140.0, 50.0], 0.6);
        let touching = candidate([40.0, 10.0, 80.0, 50.0], 0.7);
        let kept = suppress(vec![apart, near, touching, sure], 0.4, 0.0);
        assert_eq!(kept, [sure, touching, apart]);
    }

    #[test]
    fn a_part_is_measured_by_itself() {
        let face = candidate([0.0, 0.0, 100.0, 100.0], 0.9);
        let nose = candidate([40.0, 40.0, 60.0, 60.0], 0.8);
        assert_eq!((nose.part_in(&face), face.part_in(&nose)), (1.0, 0.04));
        assert_eq!(nose.part_in(&candidate([60.0, 0.0, 90.0, 90.0], 0.9)), 0.0);
    }

    #[test]
    fn what_is_no_box_is_no_face() {
        for edges in [
            [f32::NAN, 0.0, 10.0, 10.0],
            [10.0, 0.0, 10.0, 10.0],
            [10.0, 0.0, 0.0, 10.0],
            [0.0, 0.0, f32::INFINITY, 10.0],
        ] {
            assert_eq!(candidate(edges, 0.9).face(), None, "{edges:?}");
        }
        let face = candidate([-3.4, 0.6, 10.2, 10.0], 0.9).face().unwrap();
        assert_eq!(face.rect, Rect::new(-3, 1, 10, 10));
    }
}

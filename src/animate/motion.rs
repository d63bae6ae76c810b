//! The arithmetic of keypoints: relative motion, scale, and which frame resembles a photo.
//!
//! Plain numbers, a few dozen at a time. What comes out is finite for whatever finite goes in:
//! keypoints on a line have no area to scale by, and a singular jacobian has no inverse.

use geo::{Area, ConvexHull, MultiPoint};

use crate::model::Keypoints;
use crate::ops::matrix::{inverse, narrow, product, widen};

/// Below this area (the picture has 4) keypoints count as lying on a line.
const MIN_AREA: f64 = 1e-8;

/// How the motion of the driver becomes the photo's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MotionOptions {
    /// Move the photo as the driver has moved since the initial frame, instead of to where the
    /// driver is.
    pub relative: bool,
    /// Scale relative motion by how large the photo's face is against the driver's.
    pub adapt_scale: bool,
    /// How strongly the motion is taken over: 1 as it is, 0 not at all, 2 twice.
    pub gain: f32,
}

impl Default for MotionOptions {
    fn default() -> Self {
        Self {
            relative: true,
            adapt_scale: true,
            gain: 1.0,
        }
    }
}

/// Where the photo's keypoints go.
///
/// All three come from the same detector. Relative motion is value = source + scale * (driving -
/// initial) and jacobian = driving * initial^-1 * source, with scale the root of the convex hulls'
/// area ratio; a hull without area scales by 1, a singular initial jacobian leaves the source's.
/// Absolute motion is the driver's own. Either is then taken over by `gain` (see [`between`]).
pub fn normalise(
    source: &Keypoints,
    driving: &Keypoints,
    initial: &Keypoints,
    options: MotionOptions,
) -> Keypoints {
    let moved = if options.relative {
        relative(source, driving, initial, options.adapt_scale)
    } else {
        driving.clone()
    };
    // Not only for speed: one times a number is not always that number.
    if options.gain == 1.0 {
        return moved;
    }
    between(source, &moved, options.gain)
}

/// Keypoints on the way from one set to another: `a` at 0, `b` at 1, beyond it the way goes on.
pub fn between(a: &Keypoints, b: &Keypoints, way: f32) -> Keypoints {
    let mix = |a: f32, b: f32| a + way * (b - a);
    let places = a.value.iter().zip(&b.value);
    let jacobian = a.jacobian.as_ref().zip(b.jacobian.as_ref());
    Keypoints {
        value: places
            .map(|(a, b)| [0, 1].map(|axis| mix(a[axis], b[axis])))
            .collect(),
        jacobian: jacobian.map(|(a, b)| {
            let matrices = a.iter().zip(b);
            matrices
                .map(|(a, b)| {
                    [0, 1].map(|row| [0, 1].map(|column| mix(a[row][column], b[row][column])))
                })
                .collect()
        }),
    }
}

/// The reference from which motion goes on after a cut: with it `after` is the pose that `before`, the last
/// one before the cut, was with `reference`. What the driver did between the two nobody has seen, and
/// another shot looks at another face, or at the same one differently.
pub fn carried_over(reference: &Keypoints, before: &Keypoints, after: &Keypoints) -> Keypoints {
    let value = reference
        .value
        .iter()
        .zip(before.value.iter().zip(&after.value))
        .map(|(reference, (before, after))| {
            [0, 1].map(|axis| after[axis] - before[axis] + reference[axis])
        })
        .collect();
    let jacobian = match (&reference.jacobian, &before.jacobian, &after.jacobian) {
        (Some(reference), Some(before), Some(after)) => Some(
            reference
                .iter()
                .zip(before.iter().zip(after))
                .map(
                    |(reference, (before, after))| match inverse(widen(*before)) {
                        Some(undone) => {
                            narrow(product(product(widen(*reference), undone), widen(*after)))
                        }
                        None => *reference,
                    },
                )
                .collect(),
        ),
        _ => reference.jacobian.clone(),
    };
    Keypoints { value, jacobian }
}

fn relative(
    source: &Keypoints,
    driving: &Keypoints,
    initial: &Keypoints,
    adapt_scale: bool,
) -> Keypoints {
    let scale = if adapt_scale {
        scale_between(source, initial)
    } else {
        1.0
    };
    let value = source
        .value
        .iter()
        .zip(driving.value.iter().zip(&initial.value))
        .map(|(source, (driving, initial))| {
            let moved = |axis: usize| {
                let motion = f64::from(driving[axis]) - f64::from(initial[axis]);
                (f64::from(source[axis]) + scale * motion) as f32
            };
            [moved(0), moved(1)]
        })
        .collect();
    let jacobian = match (&source.jacobian, &driving.jacobian, &initial.jacobian) {
        (Some(source), Some(driving), Some(initial)) => Some(
            source
                .iter()
                .zip(driving.iter().zip(initial))
                .map(
                    |(source, (driving, initial))| match inverse(widen(*initial)) {
                        Some(undone) => {
                            narrow(product(product(widen(*driving), undone), widen(*source)))
                        }
                        None => *source,
                    },
                )
                .collect(),
        ),
        _ => None,
    };
    Keypoints { value, jacobian }
}

/// How far apart the poses of two faces are, wherever they lie and however large they are: the sum
/// of squared distances between keypoints, each set centred and divided by the root of its convex
/// hull's area. Infinite when a set has no area: such a frame resembles nothing.
pub fn normalised_distance(photo: &Keypoints, frame: &Keypoints) -> f64 {
    match (centred(photo), centred(frame)) {
        (Some(photo), Some(frame)) => photo
            .iter()
            .zip(&frame)
            .map(|(a, b)| (a[0] - b[0]).powi(2) + (a[1] - b[1]).powi(2))
            .sum(),
        _ => f64::INFINITY,
    }
}

fn scale_between(source: &Keypoints, initial: &Keypoints) -> f64 {
    match (hull_area(source), hull_area(initial)) {
        (Some(source), Some(initial)) => source.sqrt() / initial.sqrt(),
        _ => 1.0,
    }
}

/// Places around their mean, in units of the root of their hull's area.
fn centred(kp: &Keypoints) -> Option<Vec<[f64; 2]>> {
    let unit = hull_area(kp)?.sqrt();
    let mean = |axis: usize| {
        kp.value.iter().map(|v| f64::from(v[axis])).sum::<f64>() / kp.value.len() as f64
    };
    let (x, y) = (mean(0), mean(1));
    let place = |v: &[f32; 2]| [(f64::from(v[0]) - x) / unit, (f64::from(v[1]) - y) / unit];
    Some(kp.value.iter().map(place).collect())
}

/// Area of the convex hull; `None` when it has none or a place is no number.
fn hull_area(kp: &Keypoints) -> Option<f64> {
    let places = kp.value.iter().map(|v| (f64::from(v[0]), f64::from(v[1])));
    if !places.clone().all(|(x, y)| x.is_finite() && y.is_finite()) {
        return None;
    }
    let area = places
        .collect::<MultiPoint<f64>>()
        .convex_hull()
        .unsigned_area();
    (area > MIN_AREA).then_some(area)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keypoints() -> impl Strategy<Value = Keypoints> {
        let places = prop::collection::vec(prop::array::uniform2(-1f32..1.0), 10);
        // Near the identity, as detectors give them: never singular.
        let near = prop::array::uniform4(-0.3f32..0.3);
        let matrices = prop::collection::vec(near, 10);
        (places, matrices).prop_map(|(value, near)| {
            let matrix = |m: [f32; 4]| [[1.0 + m[0], m[1]], [m[2], 1.0 + m[3]]];
            Keypoints {
                value,
                jacobian: Some(near.into_iter().map(matrix).collect()),
            }
        })
    }

    fn map_places(kp: &Keypoints, f: impl Fn(f32, usize) -> f32) -> Keypoints {
        let value = kp.value.iter().map(|v| [f(v[0], 0), f(v[1], 1)]).collect();
        Keypoints {
            value,
            ..kp.clone()
        }
    }

    fn distance(a: &Keypoints, b: &Keypoints) -> f32 {
        let flat = |kp: &Keypoints| -> Vec<f32> {
            let jacobian = kp.jacobian.iter().flatten().flatten().flatten();
            kp.value.iter().flatten().chain(jacobian).copied().collect()
        };
        let (a, b) = (flat(a), flat(b));
        assert_eq!(a.len(), b.len());
        a.iter()
            .zip(&b)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max)
    }

    const RELATIVE: MotionOptions = MotionOptions {
        relative: true,
        adapt_scale: false,
        gain: 1.0,
    };
    const ADAPTED: MotionOptions = MotionOptions {
        relative: true,
        adapt_scale: true,
        gain: 1.0,
    };
    const ABSOLUTE: MotionOptions = MotionOptions {
        relative: false,
        adapt_scale: true,
        gain: 1.0,
    };

    proptest! {
        #[test]
        fn after_a_cut_motion_goes_on_from_where_it_was(
            source in keypoints(), reference in keypoints(), before in keypoints(), after in keypoints(),
        ) {
            let carried = carried_over(&reference, &before, &after);
            let was = normalise(&source, &before, &reference, RELATIVE);
            let is = normalise(&source, &after, &carried, RELATIVE);
            prop_assert!(distance(&was, &is) < 1e-4, "{}", distance(&was, &is));
            // Without a cut nothing changes.
            let same = carried_over(&reference, &before, &before);
            prop_assert!(distance(&same, &reference) < 1e-4);
        }

        #[test]
        fn a_driver_that_has_not_moved_leaves_the_photo(source in keypoints(), driving in keypoints()) {
            for options in [RELATIVE, ADAPTED] {
                let still = normalise(&source, &driving, &driving, options);
                prop_assert!(distance(&still, &source) < 1e-5);
            }
        }

        #[test]
        fn where_the_driver_sits_does_not_matter(
            source in keypoints(), driving in keypoints(), initial in keypoints(),
            shift in prop::array::uniform2(-1f32..1.0),
        ) {
            let aside = |kp: &Keypoints| map_places(kp, |v, axis| v + shift[axis]);
            for options in [RELATIVE, ADAPTED] {
                let here = normalise(&source, &driving, &initial, options);
                let there = normalise(&source, &aside(&driving), &aside(&initial), options);
                prop_assert!(distance(&here, &there) < 1e-4);
            }
        }

        #[test]
        fn how_large_the_driver_is_does_not_matter_once_adapted(
            source in keypoints(), driving in keypoints(), initial in keypoints(),
            factor in 0.2f32..3.0,
        ) {
            let resized = |kp: &Keypoints| map_places(kp, |v, _| v * factor);
            let here = normalise(&source, &driving, &initial, ADAPTED);
            let there = normalise(&source, &resized(&driving), &resized(&initial), ADAPTED);
            prop_assert!(distance(&here, &there) < 1e-3);
            let unadapted = normalise(&source, &resized(&driving), &resized(&initial), RELATIVE);
            let moved = distance(&map_places(&driving, |v, _| v), &initial);
            prop_assume!(moved > 0.1 && (factor - 1.0).abs() > 0.1);
            let plain = normalise(&source, &driving, &initial, RELATIVE);
            prop_assert!(distance(&unadapted, &plain) > 0.0);
        }

        #[test]
        fn absolute_motion_is_the_drivers(
            source in keypoints(), driving in keypoints(), initial in keypoints(),
        ) {
            prop_assert_eq!(normalise(&source, &driving, &initial, ABSOLUTE), driving);
        }

        #[test]
        fn likeness_looks_at_neither_place_nor_size(
            photo in keypoints(), shift in prop::array::uniform2(-1f32..1.0), factor in 0.3f32..3.0,
        ) {
            let frame = map_places(&photo, |v, axis| v * factor + shift[axis]);
            prop_assert!(normalised_distance(&photo, &frame) < 1e-6);
            prop_assert_eq!(normalised_distance(&photo, &photo), 0.0);
        }
    }

    fn square(side: f32, jacobian: [[f32; 2]; 2]) -> Keypoints {
        let value = vec![
            [0.0, 0.0],
            [side, 0.0],
            [side, side],
            [0.0, side],
            [side / 2.0, side / 2.0],
        ];
        Keypoints {
            jacobian: Some(vec![jacobian; value.len()]),
            value,
        }
    }

    #[test]
    fn motion_is_scaled_by_the_hulls_and_jacobians_follow() {
        let source = square(0.5, [[2.0, 0.0], [0.0, 1.0]]);
        let initial = square(1.0, [[0.0, 2.0], [1.0, 0.0]]);
        let mut driving = square(1.0, [[0.0, 4.0], [1.0, 0.0]]);
        driving.value[0] = [0.2, -0.4];
        let moved = normalise(&source, &driving, &initial, ADAPTED);
        assert_eq!(moved.value[0], [0.1, -0.2]);
        assert_eq!(moved.value[2], source.value[2]);
        // driving * initial^-1 doubles the first row.
        assert_eq!(moved.jacobian.unwrap()[3], [[4.0, 0.0], [0.0, 1.0]]);
        assert_eq!(
            normalise(&source, &driving, &initial, RELATIVE).value[0],
            [0.2, -0.4]
        );
    }

    #[test]
    fn gain_takes_motion_over_by_as_much() {
        let source = square(0.5, [[1.0, 0.0], [0.0, 1.0]]);
        let mut driving = square(0.5, [[1.5, 0.0], [0.0, 1.0]]);
        driving.value[0] = [0.2, -0.4];
        let by = |gain| {
            normalise(
                &source,
                &driving,
                &source,
                MotionOptions { gain, ..RELATIVE },
            )
        };
        assert_eq!(by(0.0), source);
        assert_eq!(by(1.0), driving);
        assert_eq!(by(2.0).value[0], [0.4, -0.8]);
        assert_eq!(by(0.5).jacobian.unwrap()[1], [[1.25, 0.0], [0.0, 1.0]]);
    }

    #[test]
    fn a_pose_is_nearest_to_itself() {
        let photo = square(0.5, [[1.0, 0.0], [0.0, 1.0]]);
        let mut turned = photo.clone();
        turned.value[4] = [0.1, 0.25];
        let mut turned_more = photo.clone();
        turned_more.value[4] = [0.0, 0.25];
        let near = normalised_distance(&photo, &turned);
        assert!(near > 0.0 && near < normalised_distance(&photo, &turned_more));
    }

    #[test]
    fn degenerate_keypoints_give_finite_motion() {
        let line = |n: usize| Keypoints {
            value: (0..n).map(|i| [i as f32 / 10.0, i as f32 / 10.0]).collect(),
            jacobian: Some(vec![[[1.0, 2.0], [2.0, 4.0]]; n]),
        };
        let still = |n: usize| Keypoints {
            value: vec![[0.3, 0.3]; n],
            jacobian: Some(vec![[[0.0; 2]; 2]; n]),
        };
        let nan = Keypoints {
            value: vec![[f32::NAN, 0.0]; 5],
            jacobian: None,
        };
        let sound = square(1.0, [[1.0, 0.0], [0.0, 1.0]]);
        for odd in [line(5), still(5)] {
            for (source, initial) in [(&sound, &odd), (&odd, &sound), (&odd, &odd)] {
                let moved = normalise(source, &sound, initial, ADAPTED);
                assert!(moved.value.iter().flatten().all(|v| v.is_finite()));
                assert!(
                    moved
                        .jacobian
                        .iter()
                        .flatten()
                        .flatten()
                        .flatten()
                        .all(|v| v.is_finite())
                );
            }
            assert_eq!(normalised_distance(&sound, &odd), f64::INFINITY);
        }
        assert_eq!(normalised_distance(&sound, &nan), f64::INFINITY);
        assert_eq!(scale_between(&nan, &sound), 1.0);
        for n in 0..4 {
            assert_eq!(
                normalise(&line(n), &line(n), &line(n), ADAPTED).value.len(),
                n
            );
        }
    }
}

//! A live driver's keypoints to the photo's: smoothing, calibration that needs no key, and rest.
//!
//! Relative motion counts from a reference: the driver in the pose of the photo. Nobody has to start in
//! it: of all frames seen the one that resembles the photo most is kept, and when a better one comes the
//! reference fades over to it. When the driver's face is lost the photo eases to its own pose, and back
//! when it is found again. Time is given, never asked for: the same frames at the same times make the
//! same motion.

use super::motion::{MotionOptions, between, carried_over, normalise, normalised_distance};
use super::smooth::Smoother;
use crate::model::Keypoints;

/// How long a reference fades over to a better one: seconds.
const FADE: f64 = 0.3;
/// How long the photo takes to come to rest when the face is lost: seconds.
const EASE: f64 = 0.5;
/// A frame must resemble the photo by this much more to become the reference.
const BETTER: f64 = 0.9;
/// The distance at which two poses match by half. A turned head is at about 1.
const HALF_MATCH: f64 = 0.35;

/// What can be tuned while it runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PerformOptions {
    /// Relative or absolute, and how strongly.
    pub motion: MotionOptions,
    /// How much trembling is smoothed away, 0..=1.
    pub smoothing: f32,
    /// Keep the frame that resembles the photo most as the reference.
    pub auto_reference: bool,
}

impl Default for PerformOptions {
    fn default() -> Self {
        Self {
            motion: MotionOptions::default(),
            smoothing: 0.25,
            auto_reference: true,
        }
    }
}

/// One driver, moving the faces of one photo.
#[derive(Clone, Debug, Default)]
pub struct Performer {
    smoother: Smoother,
    faces: Vec<Calibration>,
    /// The driver as seen last.
    driving: Option<Keypoints>,
    /// 0 at rest, 1 following.
    presence: f32,
    last: Option<f64>,
}

/// Since which pose of the driver a face's motion counts.
#[derive(Clone, Debug)]
struct Calibration {
    reference: Keypoints,
    /// How far the reference is from the face's own pose.
    distance: f64,
    /// The reference before, and since when it fades.
    fading: Option<(Keypoints, f64)>,
}

impl Performer {
    /// Where the keypoints of each face (`photo`) go at the moment `at`, in seconds that rise, given the
    /// driver's keypoints, or None when there is no face to be seen.
    pub fn perform(
        &mut self,
        photo: &[&Keypoints],
        driving: Option<Keypoints>,
        options: &PerformOptions,
        at: f64,
    ) -> Vec<Keypoints> {
        let dt = self.last.map_or(0.0, |last| (at - last).clamp(0.0, EASE));
        self.last = Some(at);
        let step = (dt / EASE) as f32;
        match driving {
            Some(mut driving) => {
                let first = self.driving.is_none();
                self.smoother.smooth(&mut driving, options.smoothing, at);
                self.presence = if first {
                    1.0
                } else {
                    (self.presence + step).min(1.0)
                };
                self.calibrate(photo, &driving, options.auto_reference, at);
                self.driving = Some(driving);
            }
            None => {
                self.smoother.restart();
                self.presence = (self.presence - step).max(0.0);
            }
        }
        let Some(driving) = &self.driving else {
            return photo.iter().map(|&face| face.clone()).collect();
        };
        let smooth = self.presence * self.presence * (3.0 - 2.0 * self.presence);
        photo
            .iter()
            .zip(&self.faces)
            .map(|(face, calibration)| {
                let reference = calibration.at(at);
                let moved = normalise(face, driving, &reference, options.motion);
                if smooth < 1.0 {
                    between(face, &moved, smooth)
                } else {
                    moved
                }
            })
            .collect()
    }

    /// Takes the driver as seen last for the reference of every face.
    pub fn take_reference(&mut self, photo: &[&Keypoints], at: f64) {
        let Some(driving) = self.driving.clone() else {
            return;
        };
        for (face, calibration) in photo.iter().zip(&mut self.faces) {
            calibration.change(&driving, normalised_distance(face, &driving), at);
        }
    }

    /// There was a cut, after which the driver is as given: motion goes on from where it was.
    pub fn cut(&mut self, after: &Keypoints) {
        if let Some(before) = &self.driving {
            for calibration in &mut self.faces {
                calibration.reference = carried_over(&calibration.reference, before, after);
                calibration.fading = None;
            }
        }
        self.smoother.restart();
    }

    /// Forgets the references: another driver, or another photo.
    pub fn restart(&mut self) {
        *self = Self::default();
    }

    /// Forgets the photo and keeps the driver.
    pub fn change_photo(&mut self) {
        self.faces.clear();
    }

    /// How close the driver's pose is to the photo's first face: 0..=1.
    pub fn match_score(&self, photo: &[&Keypoints]) -> f32 {
        match (photo.first(), &self.driving) {
            (Some(face), Some(driving)) => {
                let distance = normalised_distance(face, driving);
                (1.0 / (1.0 + (distance / HALF_MATCH).powi(2))) as f32
            }
            _ => 0.0,
        }
    }

    fn calibrate(&mut self, photo: &[&Keypoints], driving: &Keypoints, auto: bool, at: f64) {
        if self.faces.len() != photo.len() {
            self.faces = photo
                .iter()
                .map(|face| Calibration {
                    reference: driving.clone(),
                    distance: normalised_distance(face, driving),
                    fading: None,
                })
                .collect();
            return;
        }
        for (face, calibration) in photo.iter().zip(&mut self.faces).filter(|_| auto) {
            let distance = normalised_distance(face, driving);
            if distance < BETTER * calibration.distance {
                calibration.change(driving, distance, at);
            }
        }
    }
}

impl Calibration {
    /// The reference in force: on the way from the one before while it fades.
    fn at(&self, at: f64) -> Keypoints {
        match &self.fading {
            Some((before, since)) if at - since < FADE => {
                let way = ((at - since) / FADE).clamp(0.0, 1.0) as f32;
                between(before, &self.reference, way)
            }
            _ => self.reference.clone(),
        }
    }

    fn change(&mut self, reference: &Keypoints, distance: f64, at: f64) {
        self.fading = Some((self.at(at), at));
        self.reference = reference.clone();
        self.distance = distance;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: PerformOptions = PerformOptions {
        motion: MotionOptions {
            relative: true,
            adapt_scale: false,
            gain: 1.0,
        },
        smoothing: 0.0,
        auto_reference: true,
    };

    /// A face whose nose is `turn` off the middle, moved by `shift`.
    fn face(turn: f32, shift: f32) -> Keypoints {
        let places = [
            [-0.5, -0.5],
            [0.5, -0.5],
            [0.5, 0.5],
            [-0.5, 0.5],
            [turn, 0.0],
        ];
        Keypoints {
            value: places.map(|[x, y]| [x + shift, y]).to_vec(),
            jacobian: Some(vec![[[1.0, 0.0], [0.0, 1.0]]; 5]),
        }
    }

    fn nose(moved: &[Keypoints]) -> f32 {
        moved[0].value[4][0]
    }

    #[test]
    fn the_best_match_becomes_the_reference_and_the_motion_fades_over() {
        let photo = face(0.0, 0.0);
        let mut performer = Performer::default();
        let mut at = |turn: f32, time: f64| {
            nose(&performer.perform(&[&photo], Some(face(turn, 0.0)), &OPTIONS, time))
        };
        assert_eq!(at(0.3, 0.0), 0.0, "the first frame is the reference");
        assert!((at(0.4, 0.1) - 0.1).abs() < 1e-6);
        // The driver looks straight: from now on that is rest.
        assert!((at(0.0, 0.2) - -0.3).abs() < 1e-6, "nothing jumps");
        let half = at(0.0, 0.35);
        assert!(half > -0.2 && half < -0.1, "{half}");
        assert!(at(0.0, 0.6).abs() < 1e-6);
        assert!((at(0.3, 0.7) - 0.3).abs() < 1e-6);
    }

    #[test]
    fn without_auto_only_the_key_changes_the_reference() {
        let photo = face(0.0, 0.0);
        let options = PerformOptions {
            auto_reference: false,
            ..OPTIONS
        };
        let mut performer = Performer::default();
        let at = |performer: &mut Performer, turn, time| {
            nose(&performer.perform(&[&photo], Some(face(turn, 0.0)), &options, time))
        };
        at(&mut performer, 0.3, 0.0);
        assert!((at(&mut performer, 0.0, 1.0) - -0.3).abs() < 1e-6);
        performer.take_reference(&[&photo], 1.0);
        assert!(at(&mut performer, 0.0, 2.0).abs() < 1e-6);
    }

    #[test]
    fn a_lost_face_eases_to_rest_within_half_a_second_and_comes_back() {
        let photo = face(0.1, 0.0);
        let mut performer = Performer::default();
        performer.perform(&[&photo], Some(face(0.0, 0.0)), &OPTIONS, 0.0);
        let moved = performer.perform(&[&photo], Some(face(0.4, 0.0)), &OPTIONS, 0.03);
        let mut before = nose(&moved);
        for step in 1..=15 {
            let lost = performer.perform(&[&photo], None, &OPTIONS, 0.03 + 0.04 * f64::from(step));
            assert!(nose(&lost) <= before && before - nose(&lost) < 0.1);
            before = nose(&lost);
        }
        assert_eq!(
            performer.perform(&[&photo], None, &OPTIONS, 0.7),
            std::slice::from_ref(&photo)
        );
        let back = performer.perform(&[&photo], Some(face(0.4, 0.0)), &OPTIONS, 0.74);
        assert!(nose(&back) < 0.2, "it does not jump back either");
        for step in 0..20 {
            performer.perform(
                &[&photo],
                Some(face(0.4, 0.0)),
                &OPTIONS,
                0.75 + 0.04 * f64::from(step),
            );
        }
        let back = performer.perform(&[&photo], Some(face(0.4, 0.0)), &OPTIONS, 1.6);
        assert!((nose(&back) - nose(&moved)).abs() < 1e-6);
    }

    #[test]
    fn after_a_cut_the_face_goes_on_from_where_it_was() {
        let photo = face(0.1, 0.0);
        let mut performer = Performer::default();
        performer.perform(&[&photo], Some(face(0.1, 0.0)), &OPTIONS, 0.0);
        let before = performer.perform(&[&photo], Some(face(0.3, 0.0)), &OPTIONS, 0.1);
        // Another shot: the driver looks elsewhere, from elsewhere.
        performer.cut(&face(-0.4, 0.2));
        let after = performer.perform(&[&photo], Some(face(-0.4, 0.2)), &OPTIONS, 0.2);
        assert!((nose(&before) - nose(&after)).abs() < 1e-6);
        let later = performer.perform(&[&photo], Some(face(-0.3, 0.2)), &OPTIONS, 0.3);
        assert!((nose(&later) - nose(&after) - 0.1).abs() < 1e-6);
    }

    #[test]
    fn without_a_driver_the_photo_is_at_rest() {
        let photo = face(0.1, 0.2);
        let mut performer = Performer::default();
        assert_eq!(
            performer.perform(&[&photo], None, &OPTIONS, 0.0),
            std::slice::from_ref(&photo)
        );
        assert_eq!(performer.match_score(&[&photo]), 0.0);
    }

    #[test]
    fn the_score_is_one_for_the_photos_own_pose_wherever_it_is() {
        let photo = face(0.1, 0.0);
        let mut performer = Performer::default();
        let mut score = |turn, shift| {
            performer.perform(&[&photo], Some(face(turn, shift)), &OPTIONS, 0.0);
            performer.match_score(&[&photo])
        };
        assert!(score(0.1, 0.3) > 0.999);
        assert!(score(0.3, 0.0) < score(0.2, 0.0));
    }

    #[test]
    fn another_photo_keeps_the_driver_and_starts_its_own_reference() {
        let (one, two) = (face(0.0, 0.0), face(0.2, 0.0));
        let mut performer = Performer::default();
        performer.perform(&[&one], Some(face(0.3, 0.0)), &OPTIONS, 0.0);
        performer.change_photo();
        let moved = performer.perform(&[&two], Some(face(0.4, 0.0)), &OPTIONS, 0.1);
        assert_eq!(moved, [two]);
    }
}

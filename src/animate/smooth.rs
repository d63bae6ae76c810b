//! The one-euro filter (Casiez, Roussel, Vogel, CHI 2012) over a set of keypoints.
//!
//! A first-order low pass whose cut-off rises with speed: a still face does not tremble, a quick turn is
//! not late. Places and jacobians are filtered number by number.

use crate::model::Keypoints;

/// Cut-off of a face at rest in Hz, at the strongest smoothing; the weakest is [`LOOSE`].
const TIGHT: f32 = 0.5;
/// Cut-off at rest at the weakest smoothing that is not none.
const LOOSE: f32 = 8.0;
/// By how much the cut-off rises with speed, per unit a second (the picture is 2 units wide).
const BETA: f32 = 4.0;
/// Cut-off of the speed itself, Hz.
const SPEED_CUTOFF: f32 = 1.0;
/// A pause longer than this starts the filter anew: seconds.
const FORGET: f64 = 1.0;

/// The filter and what it remembers.
#[derive(Clone, Debug, Default)]
pub struct Smoother {
    last: Option<(f64, Vec<Axis>)>,
}

#[derive(Clone, Copy, Debug)]
struct Axis {
    value: f32,
    speed: f32,
}

impl Smoother {
    /// Smooths the keypoints of the moment `at` (seconds, rising) by `amount` in 0..=1; 0 leaves them.
    pub fn smooth(&mut self, keypoints: &mut Keypoints, amount: f32, at: f64) {
        let count = numbers(keypoints).count();
        let known = self
            .last
            .take()
            .filter(|(then, axes)| at - then < FORGET && at > *then && axes.len() == count);
        let (dt, mut axes) = match known {
            Some((then, axes)) => ((at - then) as f32, axes),
            None => {
                let axes = numbers(keypoints).map(|value| Axis {
                    value: *value,
                    speed: 0.0,
                });
                self.last = Some((at, axes.collect()));
                return;
            }
        };
        // The slider moves the cut-off by factors, as the ear and the eye hear and see them.
        let rest = LOOSE * (TIGHT / LOOSE).powf(amount.clamp(0.0, 1.0));
        for (value, axis) in numbers(keypoints).zip(&mut axes) {
            let speed = (*value - axis.value) / dt;
            // What is no number would stay for ever; without smoothing the value itself is remembered.
            if amount <= 0.0 || !speed.is_finite() {
                *axis = Axis {
                    value: *value,
                    speed: 0.0,
                };
                continue;
            }
            axis.speed += share(SPEED_CUTOFF, dt) * (speed - axis.speed);
            let cutoff = rest + BETA * axis.speed.abs();
            axis.value += share(cutoff, dt) * (*value - axis.value);
            *value = axis.value;
        }
        self.last = Some((at, axes));
    }

    /// Forgets what came before: the next keypoints come out as they are.
    pub fn restart(&mut self) {
        self.last = None;
    }
}

fn numbers(keypoints: &mut Keypoints) -> impl Iterator<Item = &mut f32> {
    let jacobians = keypoints.jacobian.iter_mut().flatten().flatten().flatten();
    keypoints.value.iter_mut().flatten().chain(jacobians)
}

/// Which share of the way a low pass of `cutoff` Hz goes in `dt` seconds.
fn share(cutoff: f32, dt: f32) -> f32 {
    let turns = std::f32::consts::TAU * cutoff * dt;
    turns / (1.0 + turns)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(x: f32) -> Keypoints {
        Keypoints {
            value: vec![[x, -x]],
            jacobian: Some(vec![[[1.0, x], [0.0, 1.0]]]),
        }
    }

    fn smoothed(smoother: &mut Smoother, x: f32, amount: f32, when: f64) -> Keypoints {
        let mut keypoints = at(x);
        smoother.smooth(&mut keypoints, amount, when);
        keypoints
    }

    /// What the filter makes of places sampled at 30 Hz.
    fn run(places: impl IntoIterator<Item = f32>, amount: f32) -> Vec<f32> {
        let mut smoother = Smoother::default();
        places
            .into_iter()
            .enumerate()
            .map(|(i, x)| smoothed(&mut smoother, x, amount, i as f64 / 30.0).value[0][0])
            .collect()
    }

    #[test]
    fn trembling_is_damped_the_more_the_stronger() {
        let trembling = (0..90).map(|i| if i % 2 == 0 { 0.01 } else { -0.01 });
        let width = |amount| {
            let out = run(trembling.clone(), amount);
            let tail = &out[60..];
            tail.iter().fold(0f32, |most, x| most.max(x.abs()))
        };
        assert_eq!(width(0.0), 0.01);
        assert!(width(0.25) < 0.008 && width(1.0) < 0.25 * width(0.25));
    }

    #[test]
    fn a_step_is_followed_within_a_third_of_a_second() {
        let step = (0..30).map(|i| if i < 10 { 0.0 } else { 0.5 });
        let out = run(step, 0.5);
        assert!(out[20] > 0.45 && out[29] > 0.49, "{out:?}");
    }

    #[test]
    fn a_pause_a_restart_and_a_step_back_in_time_start_anew() {
        let mut smoother = Smoother::default();
        smoothed(&mut smoother, 0.0, 1.0, 0.0);
        assert_eq!(smoothed(&mut smoother, 1.0, 1.0, 2.0), at(1.0));
        assert_eq!(smoothed(&mut smoother, 0.5, 1.0, 1.0), at(0.5));
        smoother.restart();
        assert_eq!(smoothed(&mut smoother, -1.0, 1.0, 1.01), at(-1.0));
    }

    #[test]
    fn what_is_no_number_does_not_stay() {
        let mut smoother = Smoother::default();
        smoothed(&mut smoother, 0.0, 0.5, 0.0);
        smoothed(&mut smoother, f32::NAN, 0.5, 0.03);
        assert_eq!(smoothed(&mut smoother, 0.2, 0.5, 0.06), at(0.2));
        assert_eq!(smoothed(&mut smoother, 0.2, 0.5, 0.09), at(0.2));
    }
}

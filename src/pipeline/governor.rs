//! Holds a frame rate: when the networks are too slow for it, a cheaper way of running them is asked for, and a
//! dearer one again when there is time.
//!
//! The ways are numbered from the best, 0, down; what they are this does not know. Time is given, never asked
//! for, so that the same frames at the same times end in the same decisions. It does not flap:
//!
//! - down when frames have taken longer than there is time for `OVER` seconds;
//! - up when they would still fit on the better way, with room to spare, for some time. What the better way
//!   costs is known from when it was left: as a ratio, since whatever else the machine does slows both;
//! - each time that going up was soon undone the next attempt waits twice as long.

/// Too slow for so long: down. Seconds.
const OVER: f64 = 1.5;
/// Fast enough for so long: up. Seconds; doubled by every attempt that fails.
const UNDER: f64 = 5.0;
/// The longest wait for an attempt.
const LONGEST: f64 = 160.0;
/// An attempt has failed when it is undone within so many seconds.
const TRIAL: f64 = 20.0;
/// So much over the time that there is still passes.
const TOLERANCE: f32 = 1.05;
/// The better way must leave so much of the time.
const ROOM: f32 = 0.85;
/// How much of the way to a new measurement the mean goes.
const HASTE: f32 = 0.15;
/// Frames until the mean says something: those right after a change are slower.
const SETTLED: u32 = 8;
/// Of very slow ones so few are enough, when they took so many seconds.
const SETTLED_SLOWLY: (u32, f64) = (3, 1.5);

/// Decides which way of running is in force.
#[derive(Clone, Debug)]
pub struct Governor {
    /// Frames per second; None when it is switched off.
    target: Option<f32>,
    at: usize,
    ways: Vec<Way>,
    /// Milliseconds a frame, smoothed.
    mean: f32,
    frames: u32,
    /// When the first of them came.
    began: f64,
    /// The mean was within the time when it last said something.
    holds: bool,
    over_since: Option<f64>,
    under_since: Option<f64>,
    patience: f64,
    climbed: Option<f64>,
    /// Where the last change came from, with the mean there, until its ratio is known.
    left: Option<(usize, f32)>,
}

#[derive(Clone, Debug)]
struct Way {
    /// Milliseconds there over milliseconds on the next cheaper one.
    ratio: f32,
    /// Whether it can be had.
    there: bool,
}

impl Governor {
    /// For so many `ways`, at the best.
    pub fn new(ways: usize) -> Self {
        Self {
            target: None,
            at: 0,
            ways: vec![
                Way {
                    ratio: 1.0,
                    there: true
                };
                ways.max(1)
            ],
            mean: 0.0,
            frames: 0,
            began: 0.0,
            holds: true,
            over_since: None,
            under_since: None,
            patience: UNDER,
            climbed: None,
            left: None,
        }
    }

    /// Another target, in frames per second; None lets everything run as well as it can.
    pub fn aim(&mut self, target: Option<f32>) {
        if self.target != target {
            self.target = target;
            (self.over_since, self.under_since) = (None, None);
            self.patience = UNDER;
        }
    }

    /// The way in force.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Whether frames come as often as is wanted, or nothing is wanted.
    pub fn holds(&self) -> bool {
        self.holds
    }

    /// A frame has taken `ms` at the moment `now` (seconds, rising); the driver gives one every `interval`
    /// milliseconds. Says which way should be next, until that is in force ([`Governor::arrive`]) or cannot be
    /// had ([`Governor::refuse`]).
    pub fn frame(&mut self, now: f64, ms: f32, interval: f32) -> Option<usize> {
        self.frames += 1;
        if self.frames == 1 {
            self.began = now;
        }
        self.mean += (ms - self.mean) * HASTE.max(1.0 / self.frames as f32);
        let (few, seconds) = SETTLED_SLOWLY;
        if self.frames < SETTLED && (self.frames < few || now - self.began < seconds) {
            return None;
        }
        self.learn();
        let budget = self.budget(interval);
        self.holds = self.mean <= TOLERANCE * budget;
        if self.target.is_none() {
            return (0..self.at).find(|&way| self.ways[way].there);
        }
        if !self.holds {
            self.under_since = None;
            let since = *self.over_since.get_or_insert(now);
            return (now - since >= OVER).then(|| self.cheaper()).flatten();
        }
        self.over_since = None;
        let next = self.better()?;
        if self.mean * self.dearer(next) > ROOM * budget {
            self.under_since = None;
            return None;
        }
        let since = *self.under_since.get_or_insert(now);
        (now - since >= self.patience).then_some(next)
    }

    /// That way is in force from `now` on.
    pub fn arrive(&mut self, way: usize, now: f64) {
        if way > self.at {
            self.left = Some((self.at, self.mean));
            let soon = self.climbed.take().is_some_and(|then| now - then < TRIAL);
            self.patience = if soon {
                (2.0 * self.patience).min(LONGEST)
            } else {
                UNDER
            };
        } else {
            self.left = None;
            self.climbed = Some(now);
        }
        self.at = way;
        (self.mean, self.frames) = (0.0, 0);
        (self.over_since, self.under_since) = (None, None);
    }

    /// That way cannot be had, now or later.
    pub fn refuse(&mut self, way: usize) {
        if let Some(way) = self.ways.get_mut(way) {
            way.there = false;
        }
        (self.over_since, self.under_since) = (None, None);
    }

    /// Milliseconds that a frame may take: a driver that is slower than the target gives more of them.
    fn budget(&self, interval: f32) -> f32 {
        self.target.map_or(f32::INFINITY, |target| {
            (1000.0 / target.max(1.0)).max(interval)
        })
    }

    /// What the change has saved, once that is known.
    fn learn(&mut self) {
        if let Some((from, before)) = self.left.take() {
            self.ways[from].ratio = (before / self.mean.max(0.01)).max(1.0);
        }
    }

    /// How much dearer than now `way` would be. Only the one that was left was measured; those in between
    /// cannot be had.
    fn dearer(&self, way: usize) -> f32 {
        self.ways[way].ratio
    }

    fn cheaper(&self) -> Option<usize> {
        (self.at + 1..self.ways.len()).find(|&way| self.ways[way].there)
    }

    fn better(&self) -> Option<usize> {
        (0..self.at).rev().find(|&way| self.ways[way].there)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A machine on which a frame takes so many milliseconds on each way, and changes at once.
    struct Machine {
        governor: Governor,
        costs: Vec<f32>,
        now: f64,
        changes: Vec<(f64, usize)>,
    }

    impl Machine {
        fn new(costs: &[f32], target: f32) -> Self {
            let mut governor = Governor::new(costs.len());
            governor.aim(Some(target));
            Self {
                governor,
                costs: costs.to_vec(),
                now: 0.0,
                changes: Vec::new(),
            }
        }

        /// Runs for so many seconds under `load`; a driver of 30 frames a second.
        fn run(&mut self, seconds: f64, load: impl Fn(f64) -> f32) -> usize {
            let end = self.now + seconds;
            while self.now < end {
                let ms = self.costs[self.governor.at()] * load(self.now);
                self.now += f64::from(ms.max(1000.0 / 30.0)) / 1000.0;
                if let Some(next) = self.governor.frame(self.now, ms, 1000.0 / 30.0) {
                    self.governor.arrive(next, self.now);
                    self.changes.push((self.now, next));
                }
            }
            self.governor.at()
        }
    }

    #[test]
    fn a_slow_machine_goes_down_until_the_rate_holds_and_stays_there() {
        let mut machine = Machine::new(&[100.0, 67.0, 30.0, 10.0], 25.0);
        assert_eq!(machine.run(6.0, |_| 1.0), 2, "{:?}", machine.changes);
        assert_eq!(machine.run(600.0, |_| 1.0), 2);
        assert_eq!(machine.changes.len(), 2, "{:?}", machine.changes);
    }

    #[test]
    fn it_climbs_back_when_the_load_is_gone() {
        let mut machine = Machine::new(&[30.0, 20.0, 8.0], 25.0);
        machine.run(10.0, |_| 1.0);
        assert_eq!(machine.governor.at(), 0);
        machine.run(10.0, |_| 3.0);
        assert_eq!(machine.governor.at(), 2);
        machine.run(30.0, |_| 1.0);
        assert_eq!(machine.governor.at(), 0, "{:?}", machine.changes);
    }

    #[test]
    fn a_load_that_comes_and_goes_makes_it_try_less_and_less_often() {
        let mut machine = Machine::new(&[35.0, 15.0], 25.0);
        // Every twenty seconds, for six.
        machine.run(1200.0, |now| if now % 20.0 < 6.0 { 1.5 } else { 0.9 });
        assert!(machine.changes.len() < 40, "{}", machine.changes.len());
        let early = machine
            .changes
            .iter()
            .filter(|&&(at, _)| at < 400.0)
            .count();
        let late = machine.changes.len() - early;
        assert!(late <= 2 * early, "{:?}", machine.changes);
    }

    #[test]
    fn a_hiccup_changes_nothing() {
        let mut machine = Machine::new(&[30.0, 10.0], 25.0);
        machine.run(60.0, |now| if now % 10.0 < 0.7 { 3.0 } else { 1.0 });
        assert_eq!(machine.changes, []);
    }

    #[test]
    fn switched_off_everything_is_at_its_best_again() {
        let mut machine = Machine::new(&[100.0, 50.0, 10.0], 25.0);
        machine.run(10.0, |_| 1.0);
        assert_eq!(machine.governor.at(), 2);
        machine.governor.aim(None);
        assert_eq!(machine.run(10.0, |_| 1.0), 0);
        assert!(machine.governor.holds());
    }

    #[test]
    fn a_slow_driver_is_nobodys_fault() {
        let mut governor = Governor::new(2);
        governor.aim(Some(25.0));
        for frame in 0..200 {
            let now = f64::from(frame) * 0.1;
            assert_eq!(governor.frame(now, 90.0, 100.0), None);
        }
        assert!(governor.holds());
        governor.frame(20.0, 90.0, 40.0);
        assert!(!governor.holds());
    }

    #[test]
    fn after_a_change_nothing_is_promised_that_was_not_seen() {
        let mut machine = Machine::new(&[1500.0, 700.0], 25.0);
        machine.run(12.0, |_| 1.0);
        assert_eq!(machine.governor.at(), 1);
        assert!(!machine.governor.holds());
        assert!(machine.changes[0].0 < 8.0, "{:?}", machine.changes);
        let now = machine.now;
        machine.governor.arrive(0, now);
        assert!(!machine.governor.holds());
    }

    #[test]
    fn what_cannot_be_had_is_passed_over() {
        let mut machine = Machine::new(&[100.0, 90.0, 10.0], 25.0);
        machine.governor.refuse(1);
        assert_eq!(machine.run(5.0, |_| 1.0), 2);
        machine.governor.aim(Some(5.0));
        assert_eq!(machine.run(30.0, |_| 1.0), 0);
    }

    proptest! {
        #[test]
        fn it_ends_on_the_best_way_that_holds_and_is_calm_there(
            first in 5.0f32..200.0,
            steps in prop::collection::vec(1.1f32..4.0, 0..5),
            target in 10.0f32..60.0,
            noise in 0.0f32..0.04,
        ) {
            let mut costs = vec![first];
            costs.extend(steps.iter().scan(first, |cost, step| {
                *cost /= step;
                Some(*cost)
            }));
            let mut machine = Machine::new(&costs, target);
            let shaking = |now: f64| 1.0 + noise * (now * 37.0).sin() as f32;
            let at = machine.run(120.0, shaking);
            let budget = (1000.0 / target).max(1000.0 / 30.0);
            // The next better one does not hold, the one it is on does or there is none cheaper.
            prop_assert!(at == 0 || costs[at - 1] * 1.04 > ROOM * budget);
            prop_assert!(costs[at] * 0.96 <= TOLERANCE * budget || at + 1 == costs.len());
            let before = machine.changes.len();
            prop_assert!(before <= costs.len() + 4, "{:?}", machine.changes);
            machine.run(600.0, shaking);
            prop_assert!(machine.changes.len() <= before + 4, "{:?}", machine.changes);
        }
    }
}

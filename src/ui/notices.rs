//! Short sentences in the corner: what happened, and what to do about it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long one that is only information stays.
const LINGER: Duration = Duration::from_secs(6);
/// The most at once; the oldest goes.
const MOST: usize = 5;

/// How serious it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Goes by itself.
    Info,
    /// Stays until it is dismissed.
    Problem,
}

/// What a problem is about, where it can go away by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Topic {
    Driver,
    /// The file of a photo.
    Photo(u64),
}

/// One sentence.
#[derive(Clone, Debug)]
pub(super) struct Notice {
    pub(super) id: u64,
    pub(super) kind: Kind,
    pub(super) text: String,
    topic: Option<Topic>,
    since: Instant,
}

/// The ones that are shown.
#[derive(Clone, Debug, Default)]
pub(super) struct Notices {
    shown: VecDeque<Notice>,
    next: u64,
}

impl Notices {
    pub(super) fn info(&mut self, text: String) {
        self.push(Kind::Info, None, text);
    }

    pub(super) fn warn(&mut self, text: String) {
        tracing::warn!("{text}");
        self.push(Kind::Problem, None, text);
    }

    /// As [`Notices::warn`], until the topic is settled or something else is wrong with it.
    pub(super) fn problem(&mut self, topic: Topic, text: String) {
        tracing::warn!("{text}");
        self.settle(topic);
        self.push(Kind::Problem, Some(topic), text);
    }

    /// Whether something is said to be wrong with that.
    pub(super) fn about(&self, topic: Topic) -> bool {
        self.shown.iter().any(|notice| notice.topic == Some(topic))
    }

    /// What was wrong with that is well again; whether anything was said of it.
    pub(super) fn settle(&mut self, topic: Topic) -> bool {
        let before = self.shown.len();
        self.shown.retain(|notice| notice.topic != Some(topic));
        self.shown.len() < before
    }

    pub(super) fn dismiss(&mut self, id: u64) {
        self.shown.retain(|notice| notice.id != id);
    }

    /// Those that are to be seen now.
    pub(super) fn shown(&mut self) -> impl Iterator<Item = &Notice> {
        self.shown
            .retain(|notice| notice.kind == Kind::Problem || notice.since.elapsed() < LINGER);
        self.shown.iter()
    }

    fn push(&mut self, kind: Kind, topic: Option<Topic>, text: String) {
        // The same sentence twice is one sentence.
        self.shown.retain(|notice| notice.text != text);
        if self.shown.len() == MOST {
            self.shown.pop_front();
        }
        self.next += 1;
        self.shown.push_back(Notice {
            id: self.next,
            kind,
            text,
            topic,
            since: Instant::now(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_goes_when_it_is_settled_or_another_takes_its_place() {
        let mut notices = Notices::default();
        notices.warn("another matter".to_owned());
        notices.problem(Topic::Driver, "busy".to_owned());
        notices.problem(Topic::Driver, "unplugged".to_owned());
        let texts = |notices: &mut Notices| -> Vec<String> {
            notices.shown().map(|notice| notice.text.clone()).collect()
        };
        assert_eq!(texts(&mut notices), ["another matter", "unplugged"]);
        assert!(!notices.settle(Topic::Photo(1)));
        assert!(notices.settle(Topic::Driver));
        assert_eq!(texts(&mut notices), ["another matter"]);
        assert!(!notices.settle(Topic::Driver));
    }

    #[test]
    fn a_sentence_said_twice_is_shown_once_and_the_oldest_make_room() {
        let mut notices = Notices::default();
        for i in 0..7 {
            notices.warn(format!("{i}"));
        }
        notices.warn("6".to_owned());
        let texts: Vec<String> = notices.shown().map(|n| n.text.clone()).collect();
        assert_eq!(texts, ["2", "3", "4", "5", "6"]);
        let id = notices.shown().next().unwrap().id;
        notices.dismiss(id);
        assert_eq!(notices.shown().count(), 4);
    }
}

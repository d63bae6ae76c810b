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

/// One sentence.
#[derive(Clone, Debug)]
pub(super) struct Notice {
    pub(super) id: u64,
    pub(super) kind: Kind,
    pub(super) text: String,
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
        self.push(Kind::Info, text);
    }

    pub(super) fn warn(&mut self, text: String) {
        tracing::warn!("{text}");
        self.push(Kind::Problem, text);
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

    fn push(&mut self, kind: Kind, text: String) {
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
            since: Instant::now(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

//! The last facts, within fixed bounds. Pages read them by their numbers, so a slow page costs no memory: it misses the
//! oldest facts.

use std::collections::VecDeque;
use std::sync::Arc;

use super::fact::Fact;

/// The most facts that are kept.
pub(super) const MAX_FACTS: usize = 20_000;

/// The most bytes that they take, about.
pub(super) const MAX_BYTES: usize = 16 * 1024 * 1024;

/// The most facts that are read at once.
const PAGE: usize = 200;

/// The last facts in order.
#[derive(Debug, Default)]
pub(super) struct Journal {
    facts: VecDeque<Arc<Fact>>,
    bytes: usize,
    /// The number of the newest fact.
    newest: u64,
}

/// What a page reads.
#[derive(Debug)]
pub(super) struct Page {
    /// How many facts were dropped before the page read them.
    pub(super) missed: u64,
    pub(super) facts: Vec<Arc<Fact>>,
}

impl Journal {
    /// Adds a fact and returns its number. The oldest ones go when there are too many.
    pub(super) fn push(&mut self, mut fact: Fact) -> u64 {
        self.newest += 1;
        fact.n = self.newest;
        self.bytes += fact.bytes();
        self.facts.push_back(Arc::new(fact));
        while self.facts.len() > MAX_FACTS || self.bytes > MAX_BYTES {
            let Some(oldest) = self.facts.pop_front() else { break };
            self.bytes -= oldest.bytes();
        }
        self.newest
    }

    /// Returns the next facts after this number, a page of them.
    pub(super) fn after(&self, number: u64) -> Page {
        let first = self.facts.front().map_or(self.newest + 1, |fact| fact.n);
        let skipped = usize::try_from((number + 1).saturating_sub(first)).unwrap_or(usize::MAX);
        Page {
            missed: first.saturating_sub(number + 1),
            facts: self.facts.iter().skip(skipped).take(PAGE).cloned().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Story;
    use super::super::fact::{EVENT_LIMIT, Event, Text};
    use super::*;

    fn line(text: &str) -> Fact {
        Fact::new(Story(1), Event::Line { invocation: 1, text: Text::event(text) })
    }

    fn all(journal: &Journal) -> (u64, u64) {
        let (mut number, mut missed, mut count) = (0, 0, 0);
        loop {
            let page = journal.after(number);
            missed += page.missed;
            count += page.facts.len() as u64;
            let Some(last) = page.facts.last() else { return (missed, count) };
            number = last.n;
        }
    }

    #[test]
    fn only_the_last_facts_are_kept() {
        let mut journal = Journal::default();
        assert_eq!(all(&journal), (0, 0));
        for _ in 0..MAX_FACTS + 7 {
            journal.push(line("x"));
        }
        assert_eq!(all(&journal), (7, MAX_FACTS as u64));
        assert_eq!(journal.after(journal.newest).facts.len(), 0);
        assert_eq!(journal.after(journal.newest - 1).facts[0].n, journal.newest);
    }

    #[test]
    fn long_texts_take_the_place_of_many_short_ones() {
        let mut journal = Journal::default();
        for _ in 0..1000 {
            journal.push(line("x"));
        }
        let long = "x".repeat(2 * EVENT_LIMIT);
        for _ in 0..3 * MAX_BYTES / EVENT_LIMIT {
            journal.push(line(&long));
            assert!(journal.bytes <= MAX_BYTES);
        }
        let kept = journal.facts.len();
        assert!((MAX_BYTES / EVENT_LIMIT - 1..=MAX_BYTES / EVENT_LIMIT).contains(&kept), "{kept}");
        let sum: usize = journal.facts.iter().map(|fact| fact.bytes()).sum();
        assert_eq!(sum, journal.bytes);
    }
}

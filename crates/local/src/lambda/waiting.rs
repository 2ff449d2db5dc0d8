//! The events that wait for an execution environment.
//!
//! Lambda starts an environment for each of them, so on AWS no event waits for those of others. Here they do when a function has
//! as many environments as it may have. Sources take turns then, so that a client that sends a lot waits for itself. The events of
//! one source keep their order.

use std::collections::{HashMap, VecDeque};

/// Events by their sources. No queue is empty.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    queues: HashMap<String, VecDeque<T>>,
    /// Each source once, the next one first.
    turns: VecDeque<String>,
}

impl<T> Default for Waiting<T> {
    fn default() -> Self {
        Self { queues: HashMap::new(), turns: VecDeque::new() }
    }
}

impl<T> Waiting<T> {
    pub(super) fn push(&mut self, source: String, event: T) {
        if !self.queues.contains_key(&source) {
            self.turns.push_back(source.clone());
        }
        self.queues.entry(source).or_default().push_back(event);
    }

    pub(super) fn pop(&mut self) -> Option<T> {
        let source = self.turns.pop_front()?;
        let queue = self.queues.get_mut(&source)?;
        let event = queue.pop_front();
        if queue.is_empty() {
            self.queues.remove(&source);
        } else {
            self.turns.push_back(source);
        }
        event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_take_turns_and_each_keeps_its_order() {
        let mut waiting = Waiting::default();
        for event in ["a1", "a2", "a3", "b1", "a4", "b2", "c1"] {
            waiting.push(event[..1].to_owned(), event);
        }
        let mut next = |count: usize| (0..count).filter_map(|_| waiting.pop()).collect::<Vec<_>>();
        assert_eq!(next(4), ["a1", "b1", "c1", "a2"]);
        waiting.push("c".to_owned(), "c2");
        let mut next = |count: usize| (0..count).filter_map(|_| waiting.pop()).collect::<Vec<_>>();
        assert_eq!(next(9), ["b2", "a3", "c2", "a4"]);
        assert!(waiting.queues.is_empty() && waiting.turns.is_empty());
    }
}

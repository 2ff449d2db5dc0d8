//! An execution environment, as the inspector sees it: its number, what it does now, and how to know its calls.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Caller, Event, Inspector, Story, Text};

/// An invocation that somebody watches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Invocation {
    pub(crate) story: Story,
    pub(crate) number: u64,
    /// The Lambda request id.
    pub(crate) request_id: String,
}

/// An execution environment.
#[derive(Debug)]
pub(crate) struct Seat {
    inspector: Arc<Inspector>,
    pub(super) number: u64,
    pub(super) function: String,
    /// The id of the process; 0 before it has started.
    pub(super) process: AtomicU32,
    /// Whether it has an event now.
    pub(super) is_busy: AtomicBool,
    /// How many events it has had.
    pub(super) events: AtomicU64,
    /// The present invocation and the one before.
    invocations: Mutex<[Option<Invocation>; 2]>,
}

impl Seat {
    /// Registers a new environment of a function.
    pub(crate) fn new(inspector: &Arc<Inspector>, function: &str) -> Arc<Self> {
        let number = inspector.last_seat.fetch_add(1, Ordering::Relaxed) + 1;
        let seat = Arc::new(Self {
            inspector: inspector.clone(),
            number,
            function: function.to_owned(),
            process: AtomicU32::default(),
            is_busy: AtomicBool::default(),
            events: AtomicU64::default(),
            invocations: Mutex::default(),
        });
        inspector.seats().insert(number, Arc::downgrade(&seat));
        seat
    }

    /// Returns the session token of this environment's credentials.
    pub(crate) fn session_token(&self, of_function: &str) -> String {
        format!("{of_function}.{}", self.number)
    }

    /// Returns the number and the process.
    pub(crate) fn identity(&self) -> (u64, u32) {
        (self.number, self.process.load(Ordering::Relaxed))
    }

    /// Notes the process.
    pub(crate) fn started(&self, process: Option<u32>) {
        self.process.store(process.unwrap_or_default(), Ordering::Relaxed);
    }

    /// Begins an event. Without an invocation nobody watches it.
    pub(crate) fn take(&self, invocation: Option<Invocation>) {
        self.is_busy.store(true, Ordering::Relaxed);
        let mut invocations = self.invocations();
        // The init of a new environment belongs to the first event.
        if invocations[0] != invocation {
            invocations[1] = std::mem::replace(&mut invocations[0], invocation);
        }
    }

    /// Ends an event.
    pub(crate) fn end(&self) {
        self.is_busy.store(false, Ordering::Relaxed);
        self.events.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn caller(&self) -> Caller {
        match &self.invocations()[0] {
            Some(invocation) => Caller::Function(invocation.story, invocation.number),
            None => Caller::Unseen,
        }
    }

    /// Tells a line that the environment has written. A line that names the invocation before is a late one of it.
    pub(crate) fn line(&self, text: &str) {
        if !self.inspector.is_watched() {
            return;
        }
        let invocations = self.invocations();
        let [now, before] = &*invocations;
        let is_late = |before: &&Invocation| text.contains(&before.request_id);
        if let Some(invocation) = before.as_ref().filter(is_late).or(now.as_ref()) {
            let number = invocation.number;
            self.inspector.tell(Some(invocation.story), || Event::Line { invocation: number, text: Text::new(text) });
        }
    }

    fn invocations(&self) -> MutexGuard<'_, [Option<Invocation>; 2]> {
        self.invocations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.inspector.seats().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Watcher;
    use super::*;

    #[test]
    fn a_late_line_belongs_to_the_invocation_that_it_names() {
        let inspector = Arc::new(Inspector::default());
        let _watcher = Watcher::new(inspector.clone());
        let seat = Seat::new(&inspector, "f");
        let invocation = |number| Invocation { story: Story(number), number, request_id: format!("request-{number}") };
        seat.line("nobody's");
        seat.take(Some(invocation(1)));
        seat.line("of 1");
        seat.end();
        seat.take(Some(invocation(2)));
        seat.line(r#"{"requestId":"request-1"}"#);
        seat.line("of 2");
        seat.take(None);
        seat.line("of an event that nobody watches");
        let facts = inspector.journal().after(0).facts;
        let numbers = facts.iter().map(|fact| match &fact.event {
            Event::Line { invocation, .. } => *invocation,
            other => panic!("{other:?}"),
        });
        assert_eq!(numbers.collect::<Vec<_>>(), [1, 1, 2]);
    }
}

//! The inspector: it shows a developer what happens in the stack, as it happens, at `/inspect` of the web port.
//!
//! A story is everything that one frame, handshake, disconnect or batch causes. The parts of the stack tell facts, each
//! under the number of its story. Nothing is built while nobody watches: each place first asks an atomic counter.
//!
//! An execution environment has one event at a time and a session token of its own. So a call that is signed with that
//! token belongs to the environment's present invocation.
//!
//! The facts contain bodies and query strings. They go to the page and nowhere else.

mod fact;
mod journal;
mod seat;
mod server;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use http::HeaderMap;
use tokio::sync::watch;

pub(crate) use self::fact::{Event, Text};
pub(crate) use self::seat::{Invocation, Seat};
pub(crate) use self::server::{Parts, router};

use self::fact::Fact;
use self::journal::Journal;
use crate::signature;

/// The number of a story. It exists only if somebody watched when the story began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Story(u64);

/// The facts of a stack, and who watches them.
#[derive(Debug, Default)]
pub struct Inspector {
    watchers: AtomicUsize,
    journal: Mutex<Journal>,
    /// The number of the newest fact.
    newest: watch::Sender<u64>,
    last_story: AtomicU64,
    last_invocation: AtomicU64,
    last_seat: AtomicU64,
    /// The execution environments by their numbers.
    seats: Mutex<BTreeMap<u64, Weak<Seat>>>,
}

/// The caller of DynamoDB or of the management API.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// A function, in this invocation.
    Function(Story, u64),
    /// A function whose invocation began before anybody watched.
    Unseen,
    /// A program that is no function of the stack.
    Outside,
}

/// A page that watches. It stops when this is dropped.
#[derive(Debug)]
struct Watcher(Arc<Inspector>);

impl Watcher {
    fn new(inspector: Arc<Inspector>) -> Self {
        inspector.watchers.fetch_add(1, Ordering::Relaxed);
        Self(inspector)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.watchers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Inspector {
    /// Tells whether somebody watches.
    pub(crate) fn is_watched(&self) -> bool {
        self.watchers.load(Ordering::Relaxed) > 0
    }

    /// Begins a story with its first fact, if somebody watches.
    pub(crate) fn begin(&self, event: impl FnOnce() -> Event) -> Option<Story> {
        if !self.is_watched() {
            return None;
        }
        let story = Story(self.last_story.fetch_add(1, Ordering::Relaxed) + 1);
        self.record(story, event());
        Some(story)
    }

    /// Adds a fact to a story, if there is one.
    pub(crate) fn tell(&self, story: Option<Story>, event: impl FnOnce() -> Event) {
        if let Some(story) = story
            && self.is_watched()
        {
            self.record(story, event());
        }
    }

    /// Tells of a call. It belongs to the invocation in which it was signed; a call from outside is a story of its own.
    pub(crate) fn tell_of(&self, caller: &Caller, event: impl FnOnce(Option<u64>) -> Event) {
        match *caller {
            Caller::Function(story, invocation) => self.tell(Some(story), || event(Some(invocation))),
            Caller::Outside => drop(self.begin(|| event(None))),
            Caller::Unseen => {}
        }
    }

    /// Makes the number of an invocation.
    pub(crate) fn invocation(&self) -> u64 {
        self.last_invocation.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Finds the invocation in which a request was signed.
    pub(crate) fn caller(&self, headers: &HeaderMap, query: Option<&str>) -> Caller {
        let token = signature::session_token(headers, query);
        let number = token.and_then(|token| token.rsplit_once('.')?.1.parse().ok());
        match number.and_then(|number: u64| self.seats().get(&number)?.upgrade()) {
            Some(seat) => seat.caller(),
            None => Caller::Outside,
        }
    }

    fn record(&self, story: Story, event: Event) {
        let mut journal = self.journal();
        let number = journal.push(Fact::new(story, event));
        drop(journal);
        self.newest.send_replace(number);
    }

    /// Locks the journal. It ignores poison: a push cannot leave a half.
    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seats(&self) -> MutexGuard<'_, BTreeMap<u64, Weak<Seat>>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> Event {
        Event::Run { function: "f".to_owned() }
    }

    #[test]
    fn nothing_is_built_while_nobody_watches() {
        let inspector = Arc::new(Inspector::default());
        assert_eq!(inspector.begin(|| panic!("nobody watches")), None);
        let watcher = Watcher::new(inspector.clone());
        let story = inspector.begin(frame);
        inspector.tell(story, frame);
        inspector.tell(None, || panic!("there is no story"));
        assert_eq!(inspector.journal().after(0).facts.len(), 2);
        drop(watcher);
        inspector.tell(story, || panic!("nobody watches any more"));
        assert_eq!(inspector.begin(|| panic!("nobody watches any more")), None);
        assert_eq!(inspector.journal().after(0).facts.len(), 2);
    }

    #[test]
    fn a_call_belongs_to_the_present_invocation_of_the_environment_that_signed_it() {
        let inspector = Arc::new(Inspector::default());
        let signed = |token: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("x-amz-security-token", token.parse().unwrap());
            inspector.caller(&headers, None)
        };
        let seat = Seat::new(&inspector, "connect");
        let token = seat.session_token("local");
        assert_eq!(signed(&token), Caller::Unseen);
        seat.take(Some(Invocation { story: Story(3), number: 7, request_id: "r".to_owned() }));
        assert_eq!(signed(&token), Caller::Function(Story(3), 7));
        seat.take(None);
        assert_eq!(signed(&token), Caller::Unseen);
        for token in ["local", "local.x", "local.999", "", "."] {
            assert_eq!(signed(token), Caller::Outside, "{token}");
        }
        assert_eq!(inspector.caller(&HeaderMap::new(), None), Caller::Outside);
        drop(seat);
        assert_eq!(signed(&token), Caller::Outside);
        assert!(inspector.seats().is_empty());
    }
}

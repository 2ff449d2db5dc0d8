//! How fast one connection may send frames.
//!
//! Each execution environment counts for itself, in its memory, so the limit costs no call. A client whose frames reach several
//! environments may send as many times more. A frame beyond the limit is answered with `rate_limited`. A client that goes on
//! all the same is disconnected, because each of its frames still costs an invocation and an answer. One that does not read the
//! answer is disconnected at once.

use std::collections::HashMap;
use std::sync::Mutex;

use tokio::time::Instant;

use crate::connection::ConnectionId;

/// The most connections that are counted at once. Those that have been silent for longest are forgotten first.
const MAX_COUNTED: usize = 4096;

/// A burst of frames takes this many seconds of the rate at once.
const BURST_S: f64 = 2.0;

/// The frames of each connection, as token buckets.
#[derive(Debug)]
pub struct FrameRate {
    /// Frames a second. Zero means no limit.
    rate: f64,
    buckets: Mutex<HashMap<ConnectionId, Bucket>>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// The frames that may still come at once. Frames that were refused count, too, so this may be negative.
    left: f64,
    at: Instant,
}

/// What to do with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Serve it.
    Serve,
    /// Answer it with `rate_limited`.
    Refuse,
    /// Answer it so, and close the connection.
    Disconnect,
}

impl FrameRate {
    /// A limit of so many frames a second for each connection, or none for zero.
    #[must_use]
    pub fn new(frames_per_second: u32) -> Self {
        Self { rate: f64::from(frames_per_second), buckets: Mutex::default() }
    }

    /// Counts one more frame of a connection.
    pub fn count(&self, id: &ConnectionId) -> Verdict {
        if self.rate == 0.0 {
            return Verdict::Serve;
        }
        let (now, burst) = (Instant::now(), self.rate * BURST_S);
        let refilled = |bucket: &Bucket| {
            burst.min(bucket.left + self.rate * now.saturating_duration_since(bucket.at).as_secs_f64())
        };
        let mut buckets = self.buckets.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if buckets.len() >= MAX_COUNTED && !buckets.contains_key(id) {
            // A full bucket says nothing. If none is full, everybody begins anew.
            buckets.retain(|_, bucket| refilled(bucket) < burst);
            if buckets.len() >= MAX_COUNTED {
                buckets.clear();
            }
        }
        let left = buckets.get(id).map_or(burst, refilled) - 1.0;
        if left < -burst {
            buckets.remove(id);
            return Verdict::Disconnect;
        }
        buckets.insert(id.clone(), Bucket { left, at: now });
        if left < 0.0 { Verdict::Refuse } else { Verdict::Serve }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn id(name: &str) -> ConnectionId {
        ConnectionId::new(name.to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_then_frames_are_refused_and_at_last_the_connection_is_closed() {
        let rate = FrameRate::new(10);
        let verdicts = |count: usize| (0..count).map(|_| rate.count(&id("a"))).collect::<Vec<_>>();
        assert_eq!(verdicts(20), [Verdict::Serve; 20]);
        assert_eq!(verdicts(20), [Verdict::Refuse; 20]);
        // Another connection is not concerned.
        assert_eq!(rate.count(&id("b")), Verdict::Serve);
        assert_eq!(verdicts(1), [Verdict::Disconnect]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_keeps_to_the_rate_is_never_refused() {
        let rate = FrameRate::new(10);
        for _ in 0..1000 {
            assert_eq!(rate.count(&id("a")), Verdict::Serve);
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        // One that is refused and then waits goes on.
        while rate.count(&id("a")) == Verdict::Serve {}
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(rate.count(&id("a")), Verdict::Serve);
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded_and_silent_connections_are_forgotten_first() {
        let rate = FrameRate::new(1);
        for _ in 0..4 {
            rate.count(&id("busy"));
        }
        for round in 0..3 {
            tokio::time::advance(Duration::from_millis(10)).await;
            (0..MAX_COUNTED - 1).for_each(|number| _ = rate.count(&id(&format!("{round} {number}"))));
            assert!(rate.buckets.lock().unwrap().len() <= MAX_COUNTED);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(FrameRate::new(0).count(&id("a")), Verdict::Serve);
    }
}

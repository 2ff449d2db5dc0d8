//! The time that an invocation still has, and its waits between attempts.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use lambda_runtime::Context;
use tokio::time::Instant;

use crate::clock;

/// The end of an invocation's time that is reserved for writing a continuation and for answering the sender.
pub(crate) const RESERVE: Duration = Duration::from_secs(1);

/// The part of the reserve that is left for returning.
const RETURN: Duration = Duration::from_millis(100);

/// `cargo lambda watch` says how long an invocation may take where Lambda says when its time is over. Such a deadline is
/// decades old, and no other one is as old as this when the invocation begins.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The instant at which an invocation stops trying and reports.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    /// Returns the invocation's own deadline, less the reserve.
    #[must_use]
    pub fn of(context: &Context) -> Self {
        let left = match context.deadline().duration_since(clock::now()) {
            Ok(left) => left,
            Err(late) if late.duration() > DAY => Duration::from_millis(context.deadline),
            Err(_) => Duration::ZERO,
        };
        Self::after(left.saturating_sub(RESERVE))
    }

    /// Returns a deadline that far from now.
    #[must_use]
    pub fn after(left: Duration) -> Self {
        Self(Instant::now() + left)
    }

    /// Returns the time left; zero once the deadline has passed.
    #[must_use]
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Whether there is no time left.
    #[must_use]
    pub fn passed(self) -> bool {
        self.left().is_zero()
    }

    /// Returns the deadline of the reply to the sender. It is later, because a reply must be possible after all the time for
    /// the work is spent.
    #[must_use]
    pub fn of_reply(self) -> Self {
        Self(self.0 + RESERVE - RETURN)
    }

    /// Returns the earlier of this deadline and `left` from now.
    #[must_use]
    pub fn at_most(self, left: Duration) -> Self {
        Self(self.0.min(Instant::now() + left))
    }
}

/// Exponential waits with jitter, for one operation: 50 ms, doubling to at most 2 s, each up to twice as long.
#[derive(Debug)]
pub struct Backoff(backon::ExponentialBackoff);

impl Default for Backoff {
    fn default() -> Self {
        let policy = ExponentialBuilder::new()
            .with_min_delay(Duration::from_millis(50))
            .with_max_delay(Duration::from_secs(2))
            .with_jitter()
            .without_max_times();
        Self(policy.build())
    }
}

impl Backoff {
    /// Waits before the next attempt, or returns false at once when the deadline would pass first.
    pub async fn wait(&mut self, deadline: Deadline) -> bool {
        let delay = self.0.next().unwrap_or(Duration::from_secs(2));
        if delay >= deadline.left() {
            return false;
        }
        tokio::time::sleep(delay).await;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_deadline_that_is_decades_old_is_a_length_of_time() {
        let mut context = Context::default();
        context.deadline = 600_000;
        assert_eq!(Deadline::of(&context).left(), Duration::from_secs(599));
        let now = u64::try_from(clock::now_ms()).unwrap();
        context.deadline = now - 60_000;
        assert!(Deadline::of(&context).passed());
    }

    // On tokio's paused clock: a wait takes as long as it says, and a test takes no time.
    #[tokio::test(start_paused = true)]
    async fn each_wait_doubles_to_two_seconds_and_is_at_most_twice_as_long() {
        let deadline = Deadline::after(Duration::from_secs(3600));
        let mut backoff = Backoff::default();
        for least in [50, 100, 200, 400, 800, 1600, 2000, 2000].map(Duration::from_millis) {
            let began = Instant::now();
            assert!(backoff.wait(deadline).await);
            let waited = began.elapsed();
            // The timer has whole milliseconds.
            assert!(waited >= least && waited <= 2 * least + Duration::from_millis(1), "{waited:?} after {least:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_would_pass_the_deadline_does_not_begin() {
        let deadline = Deadline::after(Duration::from_millis(400));
        let mut backoff = Backoff::default();
        let mut last = Instant::now();
        while backoff.wait(deadline).await {
            last = Instant::now();
        }
        assert_eq!(last.elapsed(), Duration::ZERO, "the last answer came at once");
        // The first two waits fit, however long they are within their bounds; the fourth does not.
        let left = deadline.left();
        assert!(left > Duration::ZERO && left <= Duration::from_millis(250), "{left:?}");
    }
}

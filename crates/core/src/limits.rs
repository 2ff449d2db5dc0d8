//! How fast one connection may send frames.
//!
//! Each execution environment counts for itself, in its memory, so this limit costs no call. A frame beyond the limit is answered
//! with `rate_limited`. A client that goes on all the same is disconnected, because each of its frames still costs an invocation and
//! an answer. One that does not read the answer is disconnected at once.
//!
//! A client whose frames reach several environments may send as many times more there. So each environment also takes a sample of
//! all its frames: one in as many as a connection may send in a second, after a gap that nobody can foretell. Samples are counted
//! in an item that all environments share: for a user and each of its connections, or for a connection without a user, in each
//! window of [`WINDOW_S`] seconds. That is at most about one write for each second in which a connection uses its whole rate.
//!
//! A connection that keeps to its limit sends at most the frames of a window and a burst: 12 samples on average. They are at most
//! as scattered as a Poisson distribution. [`MARGIN`] of its standard deviations above the mean, 39 samples, is the most that is
//! allowed. A client that always uses its whole limit exceeds that in 2 of 10,000,000,000 windows. For a user with 100
//! connections the mean is 1,200 and the most is 1,477, which is rarer still.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

use crate::connection::ConnectionId;

/// The most connections that are counted at once. Those that have been silent for longest are forgotten first.
const MAX_COUNTED: usize = 4096;

/// A burst of frames takes this many seconds of the rate at once.
const BURST_S: f64 = 2.0;

/// How long samples are counted together.
pub const WINDOW_S: u32 = 10;

/// How many standard deviations above the mean are allowed.
const MARGIN: f64 = 8.0;

/// The frames of each connection, as token buckets.
#[derive(Debug)]
pub struct FrameRate {
    /// Frames a second. Zero means no limit.
    rate: u32,
    buckets: Mutex<HashMap<ConnectionId, Bucket>>,
    /// How many frames there are up to the next sample.
    gap: Mutex<u32>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// The frames that may still come at once. Frames that were refused count, too, so this may be negative.
    left: f64,
    at: Instant,
    /// Whether the connection is known to have ended.
    has_ended: bool,
}

/// The samples of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Samples {
    /// Those of one connection.
    pub of_connection: u32,
    /// Those of all connections of its user, if it has one.
    pub of_user: Option<u32>,
}

impl Samples {
    /// Whether a client floods: it exceeds what one connection may send, or what so many connections may. Zero connections mean
    /// that a user may have any number of them.
    ///
    /// The first sample that is too many says so, and no sample right behind it: one function ends a flood. That function may be
    /// killed, so a later sample says so again.
    #[must_use]
    pub fn are_a_flood(self, max_connections: u32) -> bool {
        let exceed = |samples: u32, connections: u32| {
            let most = most_samples(connections);
            samples > most && samples % most == 1
        };
        let of_user = self.of_user.filter(|_| max_connections > 0);
        exceed(self.of_connection, 1) || of_user.is_some_and(|samples| exceed(samples, max_connections))
    }
}

/// The most samples of a window that so many connections may have.
fn most_samples(connections: u32) -> u32 {
    let mean = (f64::from(WINDOW_S) + BURST_S) * f64::from(connections);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast of a float saturates")]
    let most = (mean + MARGIN * mean.sqrt()) as u32;
    most
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
    /// Do nothing: it is one of many that were under way when the connection ended.
    Drop,
}

impl FrameRate {
    /// A limit of so many frames a second for each connection, or none for zero.
    #[must_use]
    pub fn new(frames_per_second: u32) -> Self {
        // The first gap is longer, so that a few frames after a start cost nothing. It differs, because many environments may
        // start at the same time.
        let gap = frames_per_second.saturating_add(fastrand::u32(0..=frames_per_second.saturating_mul(2)));
        Self { rate: frames_per_second, buckets: Mutex::default(), gap: Mutex::new(gap) }
    }

    /// Counts one more frame of this execution environment, and tells whether it is a sample.
    pub fn is_sample(&self) -> bool {
        if self.rate == 0 {
            return false;
        }
        let mut gap = self.gap.lock().unwrap_or_else(PoisonError::into_inner);
        *gap -= 1;
        let is_sample = *gap == 0;
        if is_sample {
            *gap = fastrand::u32(1..=self.rate.saturating_mul(2) - 1);
        }
        is_sample
    }

    /// Notes that a connection has ended. Its frames that are under way are dropped for the time of a burst.
    pub fn end(&self, id: &ConnectionId) {
        let bucket = Bucket { left: f64::from(self.rate) * -BURST_S, at: Instant::now(), has_ended: true };
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), bucket);
    }

    /// Counts one more frame of a connection.
    pub fn count(&self, id: &ConnectionId) -> Verdict {
        if self.rate == 0 {
            return Verdict::Serve;
        }
        let rate = f64::from(self.rate);
        let (now, burst) = (Instant::now(), rate * BURST_S);
        let refilled =
            |bucket: &Bucket| burst.min(bucket.left + rate * now.saturating_duration_since(bucket.at).as_secs_f64());
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= MAX_COUNTED && !buckets.contains_key(id) {
            // A full bucket says nothing. If none is full, everybody begins anew.
            buckets.retain(|_, bucket| refilled(bucket) < burst);
            if buckets.len() >= MAX_COUNTED {
                buckets.clear();
            }
        }
        let known = buckets.get(id);
        let left = known.map_or(burst, refilled) - 1.0;
        // A frame that is dropped costs nothing, so it does not count. A connection that is open after all is served again soon.
        if left < 0.0 && known.is_some_and(|bucket| bucket.has_ended) {
            return Verdict::Drop;
        }
        let has_ended = left < -burst;
        buckets.insert(id.clone(), Bucket { left, at: now, has_ended });
        if has_ended {
            return Verdict::Disconnect;
        }
        if left < 0.0 { Verdict::Refuse } else { Verdict::Serve }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
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
        // Frames that were under way cost nothing. If the connection is open all the same, it is served again.
        assert_eq!(verdicts(50), [Verdict::Drop; 50]);
        tokio::time::advance(Duration::from_millis(2_300)).await;
        assert_eq!(verdicts(2), [Verdict::Serve; 2]);
        rate.end(&id("a"));
        assert_eq!(verdicts(1), [Verdict::Drop]);
    }

    #[test]
    fn one_frame_in_as_many_as_a_connection_may_send_in_a_second_is_a_sample() {
        fastrand::seed(7);
        let samples = |rate: u32, frames: usize| {
            let rate = FrameRate::new(rate);
            (0..frames).filter(|_| rate.is_sample()).collect::<Vec<_>>()
        };
        // A client that sends little is in no sample of a new environment.
        assert!((0..1_000).all(|_| samples(50, 49).is_empty()));
        let many = samples(50, 100_000);
        assert!((1_900..2_100).contains(&many.len()), "{}", many.len());
        let gaps: BTreeSet<_> = many.windows(2).map(|two| two[1] - two[0]).collect();
        assert_eq!((gaps.first(), gaps.last(), gaps.len()), (Some(&1), Some(&99), 99), "nobody can foretell a gap");
        assert!(samples(1, 103).len() >= 100 && samples(0, 1_000).is_empty());
    }

    /// The probability that more than `most` of independent rare events happen, when `mean` do on average.
    fn poisson_beyond(mean: f64, most: u32) -> f64 {
        let mut term = (-mean).exp();
        let mut beyond = 0.0;
        for count in 1..most + 200 {
            term *= mean / f64::from(count);
            beyond += if count > most { term } else { 0.0 };
        }
        beyond
    }

    #[test]
    fn a_client_at_its_limit_is_never_taken_for_a_flood_and_one_far_beyond_it_soon_is() {
        assert_eq!((most_samples(1), most_samples(10), most_samples(100)), (39, 207, 1_477));
        assert!(poisson_beyond(12.0, 39) < 2.5e-10, "{}", poisson_beyond(12.0, 39));
        let of = |of_connection, of_user| Samples { of_connection, of_user };
        let floods = |samples: &dyn Fn(u32) -> Samples, max: u32| {
            (1..=3_000).filter(|count| samples(*count).are_a_flood(max)).take(3).collect::<Vec<_>>()
        };
        // One sample finds out, and later ones in case that its function is killed.
        assert_eq!(floods(&|count| of(count, None), 100), [40, 79, 118]);
        assert_eq!(floods(&|count| of(count, Some(count)), 100), [40, 79, 118]);
        assert_eq!(floods(&|count| of(1, Some(count)), 100), [1_478, 2_955]);
        assert_eq!(floods(&|count| of(1, Some(count)), 10), [208, 415, 622]);
        assert_eq!(floods(&|count| of(1, Some(count)), 0), [0; 0]);
    }

    /// Many environments share the frames of clients, and each one takes its own samples.
    #[test]
    fn samples_of_many_environments_are_no_more_scattered_than_is_allowed() {
        fastrand::seed(3);
        let environments: Vec<_> = (0..200).map(|_| FrameRate::new(50)).collect();
        let (mut all, mut worst) = (0, 0);
        let windows = 20_000;
        for _ in 0..windows {
            let samples = (0..600).filter(|_| fastrand::choice(&environments).unwrap().is_sample()).count();
            (all, worst) = (all + samples, worst.max(samples));
        }
        let mean = f64::from(u32::try_from(all).unwrap()) / f64::from(windows);
        assert!((11.8..12.2).contains(&mean), "{mean}");
        assert!((25..=39).contains(&worst), "{worst}");
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

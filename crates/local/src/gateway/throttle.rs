//! Rate limits, as token buckets.
//!
//! This module implements "Protecting your WebSocket APIs in API Gateway", section "Throttling": a rate of requests per
//! second, and a burst of requests at once. AWS counts the requests of a whole account. Here they are those of one API.

use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

/// A bucket that starts full.
#[derive(Debug)]
pub(super) struct Throttle {
    /// The tokens that are added per second.
    rate: f64,
    /// The most tokens that the bucket holds.
    burst: f64,
    /// The number of tokens at the last request, and its time.
    tokens: Mutex<(f64, Instant)>,
}

impl Throttle {
    pub(super) fn new(rate: u32, burst: u32) -> Self {
        let burst = f64::from(burst);
        Self { rate: f64::from(rate), burst, tokens: Mutex::new((burst, Instant::now())) }
    }

    /// Takes a token. Returns `false` if the bucket is empty.
    pub(super) fn admits(&self) -> bool {
        let now = Instant::now();
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, since) = *tokens;
        let left = self.burst.min(left + self.rate * now.duration_since(since).as_secs_f64());
        let admits = left >= 1.0;
        *tokens = (if admits { left - 1.0 } else { left }, now);
        admits
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn admitted(throttle: &Throttle, requests: usize) -> usize {
        (0..requests).filter(|_| throttle.admits()).count()
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_admitted_at_once_and_then_the_rate() {
        let throttle = Throttle::new(10, 5);
        assert_eq!(admitted(&throttle, 100), 5);
        tokio::time::advance(Duration::from_millis(300)).await;
        assert_eq!(admitted(&throttle, 100), 3);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(admitted(&throttle, 100), 5);
        // Even slow requests never get more than the rate.
        let mut total = 0;
        for _ in 0..100 {
            tokio::time::advance(Duration::from_millis(10)).await;
            total += admitted(&throttle, 1);
        }
        assert!((9..=10).contains(&total), "{total}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_of_zero_admits_nobody() {
        let throttle = Throttle::new(0, 0);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert!(!throttle.admits());
    }
}

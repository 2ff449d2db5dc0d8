//! The time, in the two units that the tables use.

use std::cell::Cell;
use std::time::SystemTime;

thread_local! {
    static SOURCE: Cell<fn() -> SystemTime> = const { Cell::new(SystemTime::now) };
}

/// Takes the time of this thread from `source` instead of the system: for tests whose time is not real.
pub fn set_source(source: fn() -> SystemTime) {
    SOURCE.set(source);
}

/// The time now.
#[must_use]
pub fn now() -> SystemTime {
    SOURCE.get()()
}

/// Epoch milliseconds now.
#[must_use]
pub fn now_ms() -> i64 {
    let since = now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Epoch seconds now.
#[must_use]
pub fn now_s() -> i64 {
    now_ms() / 1000
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lambda_runtime::Context;

    use super::*;
    use crate::deadline::Deadline;

    #[tokio::test(start_paused = true)]
    async fn one_source_gives_the_time_and_the_deadline_of_an_invocation() {
        set_source(|| SystemTime::UNIX_EPOCH + Duration::from_millis(5_999));
        assert_eq!((now_ms(), now_s()), (5_999, 5));
        let mut context = Context::default();
        context.deadline = 15_999;
        assert_eq!(Deadline::of(&context).left(), Duration::from_secs(9), "a second is in reserve");
    }
}

//! The time, in the two units that the tables use.

use std::time::SystemTime;

/// Epoch milliseconds now.
#[must_use]
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Epoch seconds now.
#[must_use]
pub fn now_s() -> i64 {
    now_ms() / 1000
}

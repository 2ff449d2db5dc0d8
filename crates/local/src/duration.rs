//! Times on the command line: `30s`, `1h 30m`.

use std::time::Duration;

/// The longest time. It keeps sums of the clock and a time from overflowing.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Parses a time with its unit.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration <= LONGEST => Ok(duration),
        Ok(_) => Err("at most 365 days".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Writes a time in the form that [`duration`] parses.
pub(crate) fn text(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

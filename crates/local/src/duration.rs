//! Times on the command line: `30s`, `1h 30m`.

use std::time::Duration;

/// Times may be that long, so that adding one to the clock cannot overflow.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Reads a time with its unit.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration <= LONGEST => Ok(duration),
        Ok(_) => Err("at most 365 days".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// What [`duration`] reads.
pub(crate) fn text(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

//! The stack's terminal: whole lines, each with the name of who says it.

use std::io::Write;

/// Prints `name | text` to standard output, as one line and in one write.
///
/// A terminal that has gone away is not worth dying for, so a failed write is ignored.
pub fn line(name: &str, text: &str) {
    let _ = std::io::stdout().lock().write_all(format!("{name} | {text}\n").as_bytes());
}

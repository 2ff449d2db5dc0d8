//! A hint for functions that put together the host of `@connections` themselves, from the id of the API.
//!
//! That host is AWS, so the calls leave this machine and fail. SDKs then often say no more than `dispatch failure` or
//! `Forbidden`. But the code of such a function contains a part of the host.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{FunctionError, FunctionSettings};
use crate::terminal;

/// The part of the host behind the id. The SDKs' own endpoints have a slash in front of it instead of the dot.
const PART: &str = ".execute-api.";

/// How much of a binary is read at a time.
const CHUNK_BYTES: usize = 1 << 20;

const HINT: &str = "if this function puts its endpoint together as https://{apiId}.execute-api.{region}.amazonaws.com, its \
                    calls go to AWS and not to this stack: leave the endpoint out, or make it from the event's domainName";

/// What a function has been told, and whether its code has been searched.
#[derive(Debug, Default)]
pub struct Hint {
    is_told: AtomicBool,
    is_searched: AtomicBool,
}

impl Hint {
    /// Gives the hint if a line that the function wrote names such a host.
    pub(super) fn of_line(&self, function: &str, line: &str) {
        if line.contains(PART) && !self.is_told.swap(true, Ordering::Relaxed) {
            terminal::line(function, HINT);
        }
    }

    /// Gives the hint if the error of a failed event names such a host, or if the function's code does.
    pub(super) fn of_failure(settings: &FunctionSettings, error: &FunctionError) {
        let hint = &settings.hint;
        hint.of_line(&settings.key, &error.to_string());
        if hint.is_told.load(Ordering::Relaxed) || hint.is_searched.swap(true, Ordering::Relaxed) {
            return;
        }
        let (hint, key, binary) = (Arc::clone(hint), settings.key.clone(), settings.binary.clone());
        tokio::task::spawn_blocking(move || {
            if contains(&binary, PART.as_bytes()) {
                hint.of_line(&key, PART);
            }
        });
    }
}

/// Tells whether a file contains these bytes. A file that cannot be read does not.
fn contains(path: &Path, part: &[u8]) -> bool {
    let Ok(mut file) = File::open(path) else { return false };
    let mut bytes = Vec::new();
    loop {
        // A part may begin in one chunk and end in the next one.
        bytes.drain(..bytes.len().saturating_sub(part.len()));
        match file.by_ref().take(CHUNK_BYTES as u64).read_to_end(&mut bytes) {
            Ok(1..) if bytes.windows(part.len()).any(|window| window == part) => return true,
            Ok(1..) => {}
            Ok(0) | Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_found_wherever_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("binary");
        for before in [0, 1, CHUNK_BYTES - 14, CHUNK_BYTES - 13, CHUNK_BYTES - 1, CHUNK_BYTES, 2 * CHUNK_BYTES - 5] {
            std::fs::write(&file, [&vec![b'.'; before], PART.as_bytes(), b"x"].concat()).unwrap();
            assert!(contains(&file, PART.as_bytes()), "{before}");
        }
        std::fs::write(&file, "https://execute-api.us-east-1.amazonaws.com").unwrap();
        assert!(!contains(&file, PART.as_bytes()));
        assert!(!contains(&folder.path().join("nothing"), PART.as_bytes()));
    }
}

//! Errors in a service's files, with their places.

use std::fmt;

use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_path_to_error::Segment;

use super::key_path::KeyPath;

/// The reason why a service cannot be loaded. Each names the file, and the key if there is one.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// A file cannot be read.
    #[error("{file}: cannot be read")]
    Read {
        /// Relative to the service's folder.
        file: String,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A file is not valid YAML.
    #[error("{file}:{line}:{column}: {reason}")]
    Syntax {
        /// Relative to the service's folder.
        file: String,
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
        /// The parser's text.
        reason: String,
    },
    /// A key is unknown, missing, not supported, or has a value that it cannot have.
    #[error("{location}: {reason}")]
    Invalid {
        /// The place of the value, which may be in an included file.
        location: Location,
        /// The reason why the value is wrong.
        reason: String,
    },
}

/// A key of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// Relative to the service's folder.
    pub file: String,
    /// Counted from 1. A missing key has the line of the mapping that lacks it.
    pub line: Option<usize>,
    /// The key, such as `functions.connect.events[0].websocket`. It is empty for the file as a whole.
    pub(super) key: KeyPath,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        match self.key.0.as_slice() {
            [] => Ok(()),
            _ => write!(f, ": {}", self.key),
        }
    }
}

/// A problem at a key of the resolved document. [`Document`](super::variables::Document) knows the file of the key.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) at: KeyPath,
    pub(super) reason: String,
}

impl Problem {
    pub(super) fn new(at: &KeyPath, reason: impl Into<String>) -> Self {
        Self { at: at.clone(), reason: reason.into() }
    }
}

/// Deserialises `value`, which has the key `at`. The problem names the innermost key.
pub(super) fn parse<T: DeserializeOwned>(value: &Value, at: &KeyPath) -> Result<T, Problem> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let mut at = at.clone();
        for segment in error.path() {
            match segment {
                Segment::Map { key } => at = at.key(key),
                Segment::Seq { index } => at = at.index(*index),
                Segment::Enum { .. } | Segment::Unknown => {}
            }
        }
        Problem::new(&at, error.inner().to_string())
    })
}

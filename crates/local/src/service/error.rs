//! Errors in a service's files, with their places.

use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_path_to_error::Segment;

use super::key_path::KeyPath;

/// The reason why a service cannot be loaded. Each names the file, and the key if there is one.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ServiceError {
    /// A file cannot be read.
    #[error("{file}: cannot be read")]
    Read {
        /// Relative to the service's folder.
        file: String,
        /// The system's error.
        #[source]
        source: Arc<std::io::Error>,
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

impl Location {
    /// Makes the place of a file as a whole.
    pub(super) fn of_file(file: String) -> Self {
        Self { file, line: None, key: KeyPath::default() }
    }
}

impl ServiceError {
    /// Returns the text of the error with its cause.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Read { source, .. } => format!("{self}: {source}"),
            Self::Syntax { .. } | Self::Invalid { .. } => self.to_string(),
        }
    }

    /// Returns the file and the line, which sort errors.
    pub(super) fn place(&self) -> (String, usize) {
        match self {
            Self::Read { file, .. } => (file.clone(), 0),
            Self::Syntax { file, line, .. } => (file.clone(), *line),
            Self::Invalid { location, .. } => (location.file.clone(), location.line.unwrap_or_default()),
        }
    }
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

/// All reasons why a service cannot be loaded, one a line.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ServiceError::describe).collect::<Vec<_>>().join("\n"))]
pub struct ServiceErrors(pub Vec<ServiceError>);

/// A part of a service that the stack leaves out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ignored {
    /// The place of the part.
    pub location: Location,
    /// The lines of further parts that are left out for the same reason.
    pub also: Vec<usize>,
    /// The reason.
    pub reason: String,
}

impl fmt::Display for Ignored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.location, self.reason)?;
        let lines: Vec<_> = self.also.iter().map(ToString::to_string).collect();
        match lines.as_slice() {
            [] => Ok(()),
            [line] => write!(f, " (also line {line})"),
            lines => write!(f, " (also lines {})", lines.join(", ")),
        }
    }
}

/// A problem at a key of the resolved document. [`Document`](super::variables::Document) knows the file of the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) at: KeyPath,
    pub(super) reason: String,
    /// Whether a deployment would know the value. Then a placeholder may stand for it.
    pub(super) is_unknown_here: bool,
}

impl Problem {
    pub(super) fn new(at: &KeyPath, reason: impl Into<String>) -> Self {
        Self { at: at.clone(), reason: reason.into(), is_unknown_here: false }
    }

    /// Makes a problem about a value that only a deployment knows.
    pub(super) fn unknown_here(at: &KeyPath, reason: impl Into<String>) -> Self {
        Self { is_unknown_here: true, ..Self::new(at, reason) }
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

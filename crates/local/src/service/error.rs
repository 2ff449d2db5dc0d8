//! Errors in a service's files, with their places.

use std::fmt;
use std::path::Path;

use super::yaml;

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

impl ServiceError {
    /// Adds the line of the key. It reads the file once more for that.
    pub(super) fn with_line(mut self, folder: &Path) -> Self {
        if let Self::Invalid { location, .. } = &mut self {
            let text = std::fs::read_to_string(folder.join(&location.file));
            location.line = text.ok().and_then(|text| yaml::line(&text, &location.key));
        }
        self
    }
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

/// The path from the top of a document to one of its values.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct KeyPath(pub(super) Vec<Step>);

/// One level of a [`KeyPath`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

impl KeyPath {
    pub(super) fn key(&self, key: &str) -> Self {
        self.then(Step::Key(key.to_owned()))
    }

    pub(super) fn index(&self, index: usize) -> Self {
        self.then(Step::Index(index))
    }

    pub(super) fn then(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }

    /// Returns the keys without the indexes, so that a list of mappings reads like one mapping.
    pub(super) fn keys(&self) -> Vec<&str> {
        self.0
            .iter()
            .filter_map(|step| match step {
                Step::Key(key) => Some(key.as_str()),
                Step::Index(_) => None,
            })
            .collect()
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) if position == 0 => write!(f, "{key}")?,
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

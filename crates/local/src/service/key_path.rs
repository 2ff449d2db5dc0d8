//! Places in a document.

use std::fmt;

use serde_json::Value;

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

    /// Tells whether this is `other` or a place in it.
    pub(super) fn is_within(&self, other: &Self) -> bool {
        self.0.starts_with(&other.0)
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

/// A value of a document, and its key there.
pub(super) type Placed = (Value, KeyPath);

/// Returns the elements of a list with their keys, or the value itself if it is not a list.
pub(super) fn parts<'a>(value: &'a Value, at: &KeyPath) -> Vec<(&'a Value, KeyPath)> {
    let parts = match value {
        Value::Array(items) => items.iter().enumerate().map(|(index, item)| (item, at.index(index))).collect(),
        other => vec![(other, at.clone())],
    };
    parts.into_iter().filter(|(part, _)| !part.is_null()).collect()
}

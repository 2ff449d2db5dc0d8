//! What the readers find in a service: parts that are refused, and parts that are ignored. A reader reports a problem and
//! goes on, so that one start tells all problems.

use std::cell::RefCell;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::{self, Problem};
use super::key_path::{KeyPath, Step};

/// `configValidationMode`: what the framework does about keys that its schema does not have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Validation {
    Error,
    #[default]
    Warn,
    Off,
}

/// The problems that have been found so far.
#[derive(Debug, Default)]
pub(super) struct Findings {
    validation: Validation,
    refused: RefCell<Vec<Problem>>,
    ignored: RefCell<Vec<Problem>>,
}

impl Findings {
    pub(super) fn new(validation: Validation) -> Self {
        Self { validation, ..Self::default() }
    }

    /// Returns the refused and the ignored parts.
    pub(super) fn into_parts(self) -> (Vec<Problem>, Vec<Problem>) {
        (self.refused.into_inner(), self.ignored.into_inner())
    }

    /// Reports a part that stops the start.
    pub(super) fn refuse(&self, problem: Problem) {
        let mut refused = self.refused.borrow_mut();
        if !refused.contains(&problem) {
            refused.push(problem);
        }
    }

    /// Reports a part that the stack leaves out.
    pub(super) fn ignore(&self, at: &KeyPath, reason: impl Into<String>) {
        let problem = Problem::new(at, reason);
        let mut ignored = self.ignored.borrow_mut();
        if !ignored.contains(&problem) {
            ignored.push(problem);
        }
    }

    /// Tells whether nothing has been refused.
    pub(super) fn has_refused_nothing(&self) -> bool {
        self.refused.borrow().is_empty()
    }

    /// Returns a result's value, or reports its problem.
    pub(super) fn keep<T>(&self, result: Result<T, Problem>) -> Option<T> {
        result.map_err(|problem| self.refuse(problem)).ok()
    }

    /// Deserialises `value`, which has the key `at`. It reports each part that does not fit and leaves it out, so a result
    /// may be incomplete. Unknown keys of the framework are treated as the framework treats them.
    pub(super) fn parse<T: DeserializeOwned>(&self, value: &Value, at: &KeyPath) -> Option<T> {
        let mut value = value.clone();
        let mut refused = Vec::new();
        loop {
            let problem = match error::parse(&value, at) {
                Ok(parsed) => return Some(parsed),
                Err(problem) => problem,
            };
            let below = problem.at.0.get(at.0.len()..).unwrap_or_default().to_vec();
            // A part around one that has been left out may only be wrong without that.
            if !refused.iter().any(|at: &KeyPath| at.is_within(&problem.at)) {
                refused.extend(self.report(problem));
            }
            if !leave_out(&mut value, &below) {
                return None;
            }
        }
    }

    /// Reports a part that cannot be deserialised. Returns its key if it is refused.
    fn report(&self, problem: Problem) -> Option<KeyPath> {
        let is_of_framework = problem.at.keys().first() != Some(&"resources");
        let is_unknown = is_of_framework && problem.reason.starts_with("unknown field");
        let at = problem.at.clone();
        if is_unknown {
            self.report_unknown(&at)
        } else {
            self.refuse(problem)
        }
        Some(at).filter(|_| !is_unknown)
    }

    /// Reports a key that the framework does not have.
    pub(super) fn report_unknown(&self, at: &KeyPath) {
        if self.validation == Validation::Error {
            self.report_invalid(at, "the framework has no such key");
        } else {
            self.report_invalid(at, "the framework has no such key, and plugins do not run here");
        }
    }

    /// Reports a part that changes nothing here, and that the framework refuses unless `configValidationMode` says otherwise.
    pub(super) fn report_invalid(&self, at: &KeyPath, reason: impl Into<String>) {
        match self.validation {
            Validation::Error => {
                let reason = format!("{}, and `configValidationMode: error` refuses it", reason.into());
                self.refuse(Problem::new(at, reason));
            }
            Validation::Warn => self.ignore(at, reason),
            Validation::Off => {}
        }
    }
}

/// Removes the part of `value` at `steps`, or the innermost part around it. An item of a list becomes null, so that the
/// others keep their places. Returns whether there was something to remove.
fn leave_out(value: &mut Value, steps: &[Step]) -> bool {
    let Some((last, parents)) = steps.split_last() else { return false };
    let mut parent = Some(&mut *value);
    for step in parents {
        parent = parent.and_then(|parent| match step {
            Step::Key(key) => parent.get_mut(key),
            Step::Index(index) => parent.get_mut(index),
        });
    }
    let is_removed = match (parent, last) {
        (Some(Value::Object(entries)), Step::Key(key)) => entries.remove(key).is_some(),
        (Some(Value::Array(items)), Step::Index(index)) => {
            items.get_mut(*index).is_some_and(|item| !std::mem::take(item).is_null())
        }
        _ => false,
    };
    is_removed || leave_out(value, parents)
}

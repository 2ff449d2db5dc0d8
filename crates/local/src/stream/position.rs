//! The position of each mapping, saved in the data directory.
//!
//! On AWS the checkpoint of an event source mapping outlives everything else; here it lives as long as the tables. A
//! rename replaces the whole file, so that it is never half written. The file is not synced to the disk: it survives a
//! crash of this process, but not a crash of the machine.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::source::SequenceNumber;
use crate::table::private_file;

/// The name of the file in the data directory.
const FILE: &str = "positions.json";

/// The position of a mapping in a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Position {
    /// The stream. A table that is created again has a new one.
    pub(super) stream_arn: String,
    /// The last record that is done. There is none before the first record.
    pub(super) sequence_number: Option<SequenceNumber>,
}

/// The positions of all mappings, by name.
#[derive(Debug, Default)]
pub(super) struct Positions {
    /// The file. There is none without a data directory.
    path: Option<PathBuf>,
    by_mapping: Mutex<BTreeMap<String, Position>>,
}

impl Positions {
    /// Reads the positions that an earlier stack left in `data_dir`.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or has another form. The error has its path.
    pub(super) fn open(data_dir: Option<&Path>) -> Result<Self, (PathBuf, io::Error)> {
        let Some(path) = data_dir.map(|data_dir| data_dir.join(FILE)) else {
            return Ok(Self::default());
        };
        let by_mapping = match std::fs::read(&path) {
            // An earlier version let other users read the file.
            Ok(text) => private_file(&path).and_then(|_| serde_json::from_slice(&text).map_err(io::Error::from)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(error),
        };
        match by_mapping {
            Ok(by_mapping) => Ok(Self { path: Some(path), by_mapping: Mutex::new(by_mapping) }),
            Err(error) => Err((path, error)),
        }
    }

    /// Returns the position of a mapping, if it has one.
    pub(super) fn get(&self, mapping: &str) -> Option<Position> {
        self.by_mapping.lock().unwrap_or_else(PoisonError::into_inner).get(mapping).cloned()
    }

    /// Saves the position of a mapping.
    ///
    /// # Errors
    ///
    /// When the file cannot be written. The position is then kept in memory until the stack ends.
    pub(super) fn set(&self, mapping: &str, position: Position) -> io::Result<()> {
        let mut by_mapping = self.by_mapping.lock().unwrap_or_else(PoisonError::into_inner);
        if by_mapping.get(mapping) == Some(&position) {
            return Ok(());
        }
        by_mapping.insert(mapping.to_owned(), position);
        let Some(path) = &self.path else {
            return Ok(());
        };
        let new = path.with_extension("json.new");
        // Writing a few hundred bytes into the page cache is faster than a change of threads.
        let mut file = private_file(&new)?;
        file.set_len(0)?;
        file.write_all(&serde_json::to_vec_pretty(&*by_mapping)?)?;
        std::fs::rename(&new, path)
    }
}

/// The progress of a mapping: which of the records that it has read are done. Lanes finish out of order, so the
/// position is before the first record that is not done.
#[derive(Debug)]
pub(super) struct Progress {
    /// The last record that was read.
    pub(super) read: Option<SequenceNumber>,
    /// The last record up to which all records are done.
    pub(super) done: Option<SequenceNumber>,
    /// Records that are not done, and records that are done after one that is not. They are in order.
    open: VecDeque<SequenceNumber>,
    /// The records of `open` that are done.
    early: BTreeSet<SequenceNumber>,
}

impl Progress {
    /// Starts with all records up to `position` done.
    pub(super) fn new(position: Option<SequenceNumber>) -> Self {
        Self { read: position, done: position, open: VecDeque::new(), early: BTreeSet::new() }
    }

    /// Adds records that have to be done. `last` is the last record that was read, even if the filter skips it.
    pub(super) fn read(&mut self, records: impl IntoIterator<Item = SequenceNumber>, last: SequenceNumber) {
        self.open.extend(records);
        self.read = Some(last);
        self.advance();
    }

    /// Marks records as done.
    pub(super) fn finish(&mut self, records: impl IntoIterator<Item = SequenceNumber>) {
        self.early.extend(records);
        self.advance();
    }

    fn advance(&mut self) {
        while let Some(first) = self.open.front()
            && self.early.remove(first)
        {
            self.done = self.open.pop_front();
        }
        if self.open.is_empty() {
            self.done = self.read;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(number: u128) -> SequenceNumber {
        SequenceNumber::of(number)
    }

    fn at(sequence_number: u128) -> Position {
        Position { stream_arn: "arn".to_owned(), sequence_number: Some(number(sequence_number)) }
    }

    #[test]
    fn the_position_is_before_the_first_record_that_is_not_done() {
        let mut progress = Progress::new(Some(number(10)));
        progress.read([11, 12, 14].map(number), number(15));
        assert_eq!((progress.done, progress.read), (Some(number(10)), Some(number(15))));
        progress.finish([number(12)]);
        assert_eq!(progress.done, Some(number(10)));
        progress.finish([number(11)]);
        assert_eq!(progress.done, Some(number(12)));
        progress.finish([number(14)]);
        assert_eq!(progress.done, Some(number(15)));
        progress.read([], number(16));
        assert_eq!(progress.done, Some(number(16)));
    }

    #[test]
    fn positions_survive_in_a_data_directory() {
        let directory = tempfile::tempdir().unwrap();
        let positions = Positions::open(Some(directory.path())).unwrap();
        assert_eq!(positions.get("publish/events"), None);
        positions.set("publish/events", at(1)).unwrap();
        positions.set("audit/events", at(2)).unwrap();
        positions.set("publish/events", at(3)).unwrap();
        let positions = Positions::open(Some(directory.path())).unwrap();
        assert_eq!(positions.get("publish/events"), Some(at(3)));
        assert_eq!(positions.get("audit/events"), Some(at(2)));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_in_another_form_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        for text in ["", "[]", r#"{"publish/events":{"streamArn":"arn","sequenceNumber":"one"}}"#] {
            std::fs::write(directory.path().join(FILE), text).unwrap();
            assert!(Positions::open(Some(directory.path())).is_err(), "{text}");
        }
    }

    #[test]
    fn without_a_data_directory_positions_are_kept_until_the_end() {
        let positions = Positions::open(None).unwrap();
        positions.set("publish/events", at(1)).unwrap();
        assert_eq!(positions.get("publish/events"), Some(at(1)));
    }
}

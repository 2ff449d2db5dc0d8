//! Finds Python, for the clients that are written in it.

use std::path::PathBuf;

use crate::stack::root;

/// Whether this machine has Python at all. Rows that need it are skipped without it.
pub fn is_installed() -> bool {
    std::env::split_paths(env!("PATH")).any(|folder| folder.join("python3").is_file())
}

/// The interpreter that has the packages of `tests/clients/requirements.txt`.
///
/// # Panics
///
/// If nobody has installed them.
pub fn interpreter() -> PathBuf {
    let program = root().join("target/python/bin/python");
    assert!(program.is_file(), "no Python packages in target/python: `make conformance` installs them");
    program
}

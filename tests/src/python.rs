//! Finds Python, for the clients that are written in it.

use std::path::PathBuf;
use std::process::Command;

use crate::stack::root;

/// Whether this machine has Python 3.11 or later, which the clients need. Rows that need it are skipped without it.
pub fn is_installed() -> bool {
    let check = "import sys; sys.exit(sys.version_info < (3, 11))";
    Command::new("python3").args(["-c", check]).status().is_ok_and(|status| status.success())
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

//! End to end tests: the real local stack as a process, the real function binaries behind it, real clients in front.
//!
//! Each test starts its own stack on free ports with an empty database. Nothing sleeps to wait: a test waits for a
//! frame, for a line of the log, or for a row.

#![expect(clippy::unwrap_used, reason = "a helper that fails should fail its test, like `unwrap` in the test itself")]
#![expect(unreachable_pub, reason = "in a test binary nothing is reachable, and `pub` is what its modules share")]

mod another_service;
mod batches;
mod budget;
mod canaries;
mod chat;
mod concurrency;
mod cost;
mod delivery;
mod deployment;
mod endpoints;
mod events;
mod failures;
mod history;
mod iam;
mod inbox;
mod json;
mod keys;
mod lifecycle;
mod log;
mod mistakes;
mod presence;
mod publish;
mod readme;
mod rights;
mod sessions;
mod signatures;
mod subscribe;
mod tidy;
mod tokens;
mod topics;
mod warm;
mod wildcards;

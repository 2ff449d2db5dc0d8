//! What the test binaries share: a stack of a test's own, clients, and a proxy between functions and AWS.
//!
//! The end to end tests, the conformance suite, the soak test and the benchmark use it, and so do the tests of
//! `crates/local` and of the Rust client. It depends on no crate of this workspace, so that each of them can.
//!
//! There are two clients. [`client::Client`] is a WebSocket library that speaks JSON: most tests need no more.
//! [`wire::Client`] writes every frame by hand, for tests that look at frames, close codes or the handshake.

#![expect(clippy::unwrap_used, reason = "a helper that fails should fail its test, like `unwrap` in the test itself")]

pub mod client;
pub mod cost;
pub mod keys;
pub mod network;
pub mod proxy;
pub mod python;
pub mod stack;
pub mod tls;
pub mod wire;

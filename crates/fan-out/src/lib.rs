//! The function behind the continuations in the events table: it goes on where a publish ended early.

mod handler;

pub use handler::handle;

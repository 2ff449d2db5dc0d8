//! The function behind the stream of the events table: publishes what any backend put there.

mod handler;
mod record;

pub use handler::handle;

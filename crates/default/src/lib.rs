//! The function behind the route `$default`: topics, pings, and an error frame for anything else.

mod handler;

pub use handler::handle;

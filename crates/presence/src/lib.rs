//! The function behind the stream of the topics table: it tells subscribers who joined and who left.

mod handler;
mod sweep;

pub use handler::handle;

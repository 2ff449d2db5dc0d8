//! The function behind the stream of the topics table: it tells subscribers who joined and who left.

mod handler;

pub use handler::handle;

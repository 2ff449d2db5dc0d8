//! The function behind the route `sendMessage`: a direct message to every connection of a user.

mod handler;

pub use handler::handle;

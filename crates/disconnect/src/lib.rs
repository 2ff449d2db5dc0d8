//! The function behind the route `$disconnect`: forgets the connection and all its subscriptions.

mod handler;

pub use handler::handle;

//! The function behind the route `$connect`: says who connects, stores the connection, or refuses the handshake.

mod config;
#[cfg(test)]
mod example_keys;
mod handler;
mod keys;
mod source;
mod token;

pub use config::{Config, both};
pub use handler::{Identity, handle};

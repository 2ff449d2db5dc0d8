//! The function behind the route `$connect`: says who connects, stores the connection, or refuses the handshake.

mod config;
#[cfg(test)]
mod example_keys;
mod handler;
mod keys;
mod token;

use config::{Config, both};
use switchboard_core::function::{Backend, run, start_log};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), lambda_runtime::Error> {
    start_log();
    let (backend, config) = both(Backend::from_env().await, Config::from_env())?;
    let identity = handler::Identity::new(config);
    run(|event| handler::handle(&backend, &identity, event)).await
}

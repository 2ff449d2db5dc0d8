//! The function behind the route `$connect`: says who connects, stores the connection, or refuses the handshake.

mod handler;
mod token;

use switchboard_core::function::{Backend, run, start_log};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), lambda_runtime::Error> {
    start_log();
    let backend = Backend::from_env().await?;
    let identity = handler::Identity::new(&backend.config)?;
    run(|event| handler::handle(&backend, &identity, event)).await
}

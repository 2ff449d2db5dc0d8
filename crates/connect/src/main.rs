//! The function behind the route `$connect`: says who connects, stores the connection, or refuses the handshake.

mod handler;

use switchboard_core::function::{Backend, run, start_log};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), lambda_runtime::Error> {
    start_log();
    let backend = Backend::from_env().await?;
    handler::announce(backend.config.identity_mode);
    run(|event| handler::handle(&backend, event)).await
}

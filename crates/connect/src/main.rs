//! The function behind the route `$connect`: says who connects, stores the connection, or refuses the handshake.

mod handler;

use lambda_runtime::{run, service_fn, tracing};
use switchboard_core::function::Backend;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), lambda_runtime::Error> {
    tracing::init_default_subscriber();
    let backend = Backend::from_env().await?;
    handler::announce(backend.config.identity_mode);
    run(service_fn(|event| handler::handle(&backend, event))).await
}

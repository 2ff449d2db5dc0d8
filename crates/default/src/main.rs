//! The function behind the route `$default`: topics, pings, and an error frame for anything else.

mod handler;

use lambda_runtime::{run, service_fn, tracing};
use switchboard_core::function::Backend;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), lambda_runtime::Error> {
    tracing::init_default_subscriber();
    let backend = Backend::from_env().await?;
    run(service_fn(|event| handler::handle(&backend, event))).await
}

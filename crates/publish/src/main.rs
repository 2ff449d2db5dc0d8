//! The function behind the stream of the events table: publishes what any backend put there.

mod handler;
mod record;

use switchboard_core::function::{Backend, run, start_log};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), lambda_runtime::Error> {
    start_log();
    let backend = Backend::from_env().await?;
    backend.config.require_publish_endpoint()?;
    run(|event| handler::handle(&backend, event)).await
}

//! The function behind the route `$default`: topics, pings, and an error frame for anything else.

mod handler;

use switchboard_core::function::{Backend, run, start_log};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), lambda_runtime::Error> {
    start_log();
    let backend = Backend::from_env().await?;
    run(|event| handler::handle(&backend, event)).await
}

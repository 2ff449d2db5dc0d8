//! The function behind the route `$disconnect`: forgets the connection and all its subscriptions.

mod handler;

use switchboard_core::function::{Backend, run, start_log};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), lambda_runtime::Error> {
    start_log();
    let backend = Backend::from_env().await?;
    run(|event| handler::handle(&backend, event)).await
}

//! The binary: it builds what lives as long as its execution environment, and serves events.

use connect::{Config, Identity, both};
use switchboard_core::backend::Backend;
use switchboard_core::function::{forever, run};
use switchboard_core::log;

/// mimalloc: a post takes a fifth less CPU time than with glibc's allocator (`make bench`), for 0.1 MB more of memory.
/// Small functions are short of CPU, not of memory.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), lambda_runtime::Error> {
    log::start();
    let (backend, config) = both(Backend::from_env().await, Config::from_env()).inspect_err(log::cannot_start)?;
    let (backend, identity) = (forever(backend), forever(Identity::new(config)));
    identity.read_keys(&backend.sdk).await.inspect_err(log::cannot_start)?;
    backend.warm_up().await;
    run(backend.config.log_one_in, move |event| connect::handle(backend, identity, event)).await
}

//! Ends a connection. The gateway calls this at most once and sometimes never, and it may call while functions of
//! earlier frames still run. The tombstone that stays for a minute is their sender.

use aws_lambda_events::apigw::{ApiGatewayProxyResponse, ApiGatewayWebsocketProxyRequest};
use lambda_runtime::LambdaEvent;
use switchboard_core::Error;
use switchboard_core::backend::Backend;
use switchboard_core::function::{Peer, lifecycle};

/// Turns the connection's row into a tombstone and removes every topic row that it lists.
///
/// # Errors
///
/// A fault, which fails the invocation.
pub async fn handle(
    backend: &Backend,
    event: LambdaEvent<ApiGatewayWebsocketProxyRequest>,
) -> Result<ApiGatewayProxyResponse, Error> {
    lifecycle(
        backend,
        event,
        |_| 400,
        async |caller, _| {
            let closed = backend.store.close(&caller.connection_id, None, caller.deadline).await?;
            Ok(Peer { user: closed.user, named_by: None })
        },
    )
    .await
}

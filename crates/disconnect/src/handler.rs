//! Forgets a connection. Best effort on the gateway's side: it may never call, and it may call while functions of
//! earlier messages still run.

use aws_lambda_events::apigw::{ApiGatewayProxyResponse, ApiGatewayWebsocketProxyRequest};
use lambda_runtime::LambdaEvent;
use switchboard_core::Error;
use switchboard_core::function::{Backend, lifecycle};

/// Removes the connection's row and every topic row that it lists.
pub(crate) async fn handle(
    backend: &Backend,
    event: LambdaEvent<ApiGatewayWebsocketProxyRequest>,
) -> Result<ApiGatewayProxyResponse, Error> {
    lifecycle(
        backend,
        event,
        |_| 400,
        async |caller, _| {
            backend.store.remove(&caller.connection_id, None, caller.deadline).await?;
            Ok(())
        },
    )
    .await
}

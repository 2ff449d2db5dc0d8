//! A direct message: from the user behind this connection to every connection of another.

use aws_lambda_events::apigw::{ApiGatewayProxyResponse, ApiGatewayWebsocketProxyRequest};
use futures_util::{TryStreamExt, future, stream};
use lambda_runtime::LambdaEvent;
use switchboard_core::frame;
use switchboard_core::function::{Backend, Served, message};
use switchboard_core::topic::Topic;
use switchboard_core::{ClientError, Error, Failure};

/// Who sends is read from the connection's row, never from the frame.
pub(crate) async fn handle(
    backend: &Backend,
    event: LambdaEvent<ApiGatewayWebsocketProxyRequest>,
) -> Result<ApiGatewayProxyResponse, Error> {
    message(backend, event, async |caller, frame| {
        let message = frame.direct_message()?;
        let address = Topic::address(&message.destination);
        let (sender, devices) = future::try_join(
            backend.store.get(&caller.connection_id),
            backend.store.subscribers(&address).try_collect::<Vec<_>>(),
        )
        .await?;
        let anonymous = ClientError::Unidentified { reason: "this connection has no user, so it cannot send" };
        let sender = sender.ok_or_else(ClientError::unregistered)?.user_id.ok_or(anonymous)?;

        let frame = frame::direct_message(&sender, message.body);
        let devices = stream::iter(devices.into_iter().map(Ok));
        let fanout = backend.publisher.publish(&address, devices, |_| frame.clone(), caller.deadline).await?;
        match fanout.reached(&address)? {
            0 => Err(Failure::from(ClientError::UserOffline { user_id: message.destination })),
            delivered => Ok(Served::Delivered(delivered)),
        }
    })
    .await
}

//! A direct message: from the user behind this connection to every connection of another.

use aws_lambda_events::apigw::{ApiGatewayProxyResponse, ApiGatewayWebsocketProxyRequest};
use futures_util::{TryStreamExt, future, stream};
use lambda_runtime::LambdaEvent;
use switchboard_core::function::{Backend, Served, message};
use switchboard_core::publication::{Audience, Content, Publication};
use switchboard_core::topic::Topic;
use switchboard_core::{ClientError, Error, Failure};

/// Who sends is read from the connection's row, never from the frame.
pub(crate) async fn handle(
    backend: &Backend,
    event: LambdaEvent<ApiGatewayWebsocketProxyRequest>,
) -> Result<ApiGatewayProxyResponse, Error> {
    message(backend, event, async |caller, frame| {
        let message = frame.direct_message()?;
        let address = Audience::Topic(Topic::address(&message.destination));
        let (sender, devices) = future::try_join(
            backend.store.get(&caller.connection_id),
            backend.store.receivers(&address, None).try_collect::<Vec<_>>(),
        )
        .await?;
        let anonymous = ClientError::Unidentified { reason: "this connection has no user, so it cannot send" };
        let sender = sender.ok_or_else(ClientError::unregistered)?.user_id.ok_or(anonymous)?;

        let content = Content::DirectMessage { sender, body: message.body.to_owned() };
        let publication = Publication::new(address, content);
        let devices = stream::iter(devices.into_iter().map(Ok));
        let publish = backend.publisher.publish(&publication, devices, &caller.request_id, caller.deadline);
        let fanout = publish.await?;
        match fanout.reached(publication.topic())? {
            0 if !fanout.continued => Err(Failure::from(ClientError::UserOffline { user_id: message.destination })),
            delivered => Ok(Served::Delivered(delivered)),
        }
    })
    .await
}

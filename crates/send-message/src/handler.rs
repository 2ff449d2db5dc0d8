//! A direct message: from the user behind this connection to every connection of another.

use aws_lambda_events::apigw::{ApiGatewayProxyResponse, ApiGatewayWebsocketProxyRequest};
use futures_util::future;
use lambda_runtime::LambdaEvent;
use switchboard_core::backend::Backend;
use switchboard_core::function::{Served, message};
use switchboard_core::publication::{Audience, Content, Position, Publication};
use switchboard_core::topic::Topic;
use switchboard_core::{ClientError, Error, Failure};

/// The sender is read from the connection's row, never from the frame.
///
/// # Errors
///
/// A fault, which fails the invocation.
pub async fn handle(
    backend: &Backend,
    event: LambdaEvent<ApiGatewayWebsocketProxyRequest>,
) -> Result<ApiGatewayProxyResponse, Error> {
    message(backend, event, async |caller, frame| {
        let message = frame.direct_message()?;
        let address = Audience::Topic(Topic::address(&message.destination));
        let mut devices = backend.store.receivers(&address, &Position::Start);
        let (sender, ()) = future::try_join(backend.store.get(&caller.connection_id), devices.fetch()).await?;
        let anonymous = ClientError::Unidentified { reason: "this connection has no user, so it cannot send" };
        let sender = sender.ok_or_else(ClientError::unregistered)?.user_id.ok_or(anonymous)?;

        let content = Content::DirectMessage { sender, body: message.body.to_owned() };
        let publication = Publication::new(address, content, &caller.request_id);
        let fanout = backend.publisher.publish(&caller.gateway, publication, devices, caller.deadline).await?;
        if fanout.delivered == 0 && !fanout.continued {
            return Err(Failure::from(ClientError::UserOffline { user_id: message.destination }));
        }
        Ok(Served::Published { delivered: fanout.delivered, continued: fanout.continued, kept: None })
    })
    .await
}

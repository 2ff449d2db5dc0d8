//! A direct message: from the user behind this connection to every connection of another.

use aws_lambda_events::apigw::{ApiGatewayProxyResponse, ApiGatewayWebsocketProxyRequest};
use futures_util::future;
use lambda_runtime::LambdaEvent;
use switchboard_core::backend::Backend;
use switchboard_core::function::{Served, message};
use switchboard_core::publication::{Audience, Content, Kept, Position, Publication};
use switchboard_core::rights::{Act, Grants, Who};
use switchboard_core::topic::{Name, Topic};
use switchboard_core::{ClientError, Error, Failure};

/// The sender is read from the connection's row, never from the frame. If a rule keeps direct messages, the message is kept
/// before the user's connections are read. A connection that reads its inbox meanwhile misses nothing. If the right to write
/// depends on grants, these come first, too.
pub async fn handle(
    backend: &Backend,
    event: LambdaEvent<ApiGatewayWebsocketProxyRequest>,
) -> Result<ApiGatewayProxyResponse, Error> {
    message(backend, event, async |caller, frame| {
        let message = frame.direct_message()?;
        let address = Topic::address(&message.destination);
        let (rules, log) = (&backend.config.topic_rules, backend.history.of(&address));
        let (act, name, who) = (Act::Publish, Name::Topic(address.clone()), rules.who(Act::Publish, &address));
        if who == Who::Backend {
            rules.allow(act, &name, None, &Grants::default())?;
        }
        rules.check_size(&address, "body", &[message.body])?;
        let mut devices = backend.store.receivers(&Audience::Topic(address.clone()), &Position::Start);
        let is_read_now = log.is_none() && who != Who::Granted;
        let fetch = async { if is_read_now { devices.fetch().await } else { Ok(()) } };
        let get = backend.store.get(&caller.connection_id, who.freshness());
        let (connection, ()) = future::try_join(get, fetch).await?;
        let connection = connection.ok_or_else(ClientError::unregistered)?;
        let anonymous = ClientError::Unidentified { reason: "this connection has no user, so it cannot send" };
        let sender = connection.user_id.clone().ok_or(anonymous)?;
        rules.allow(act, &name, Some(&sender), &connection.grants)?;

        let kept = match &log {
            Some(log) => {
                let draft =
                    frame.draft("body", std::slice::from_ref(&message.body), &connection, &caller.invocation_id)?;
                Some(log.append(&draft, caller.deadline).await?)
            }
            None => None,
        };
        let content = Content::DirectMessage { sender: sender.clone(), body: message.body.to_owned() };
        let mut publication = Publication::new(Audience::Topic(address.clone()), content, &caller.request_id);
        publication.kept = kept.as_ref().map(|kept| Kept { stamp: kept.stamp.clone(), sender: Some(sender) });
        let fanout = backend.publisher.publish(&caller.gateway, publication, devices, caller.deadline).await?;
        if kept.is_none() && fanout.delivered == 0 && !fanout.continued {
            return Err(Failure::from(ClientError::UserOffline { user_id: message.destination }));
        }
        Ok(Served::Published { delivered: fanout.delivered, continued: fanout.continued, kept })
    })
    .await
}

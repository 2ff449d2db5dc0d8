//! Frames without a route of their own: subscribe, unsubscribe, message, ping.

use aws_lambda_events::apigw::{ApiGatewayProxyResponse, ApiGatewayWebsocketProxyRequest};
use lambda_runtime::LambdaEvent;
use serde_json::value::RawValue;
use switchboard_core::backend::Backend;
use switchboard_core::clock::now_s;
use switchboard_core::connection::UserId;
use switchboard_core::frame::{Frame, Request};
use switchboard_core::function::{Caller, Served, message};
use switchboard_core::history::{Appended, Draft, Log, Writer};
use switchboard_core::publication::{Audience, Content, Kept, Publication};
use switchboard_core::topic::{Subscriber, Topic};
use switchboard_core::{ClientError, Error, Failure};

/// Reads the frame and does what it asks for.
pub(crate) async fn handle(
    backend: &Backend,
    event: LambdaEvent<ApiGatewayWebsocketProxyRequest>,
) -> Result<ApiGatewayProxyResponse, Error> {
    message(backend, event, async |caller, frame| match frame.request()? {
        Request::Subscribe { topic, ttl_s, positions } => {
            subscribe(backend, caller, &topic, frame.id()?, ttl_s, positions).await
        }
        Request::Unsubscribe { topic } => {
            backend.store.unsubscribe(&topic, &caller.connection_id, caller.deadline).await?;
            Ok(Served::Done)
        }
        Request::Message { topic, message } => publish(backend, caller, frame, topic, message).await,
        Request::Ping => ping(backend, caller).await,
    })
    .await
}

/// A frame without an `id` gets its subscription named after its request, which is unique as well.
async fn subscribe(
    backend: &Backend,
    caller: &Caller,
    topic: &Topic,
    id: Option<String>,
    ttl_s: Option<i64>,
    positions: bool,
) -> Result<Served, Failure> {
    if ttl_s.is_some_and(|ttl_s| ttl_s <= now_s()) {
        let expected = "an epoch second in the future".to_owned();
        return Err(ClientError::InvalidField { field: "ttl", expected }.into());
    }
    let subscriber = Subscriber {
        connection_id: caller.connection_id.clone(),
        subscription_id: Some(id.unwrap_or_else(|| caller.request_id.clone())),
        connected_at_ms: caller.connected_at_ms,
        positions,
    };
    backend.store.subscribe(topic, &subscriber, ttl_s, caller.deadline).await?;
    Ok(Served::Done)
}

/// A topic without subscribers is no mistake; the acknowledgement says `"delivered":0`. On a topic with history the message
/// is kept before its first post, and the subscribers are read after that. So whoever subscribes meanwhile and reads the
/// history misses nothing.
async fn publish(
    backend: &Backend,
    caller: &Caller,
    frame: &Frame<'_>,
    topic: Topic,
    message: &RawValue,
) -> Result<Served, Failure> {
    let (kept, sender) = match backend.history.of(&topic) {
        Some(log) => keep(backend, caller, frame, &log, message).await.map(|(kept, sender)| (Some(kept), sender))?,
        None => (None, None),
    };
    let content = Content::Data(message.to_owned());
    let mut publication = Publication::new(Audience::Topic(topic), content, &caller.request_id);
    publication.kept = kept.as_ref().map(|kept| Kept { stamp: kept.stamp.clone(), sender });
    let receivers = backend.store.receivers(&publication.audience, &publication.position);
    let fanout = backend.publisher.publish(&caller.gateway, publication, receivers, caller.deadline).await?;
    Ok(Served::Published { delivered: fanout.delivered, continued: fanout.continued, kept })
}

/// Keeps a message, and says who sent it. The sender is read from the connection's row, so that nobody can repeat a message of somebody else.
async fn keep(
    backend: &Backend,
    caller: &Caller,
    frame: &Frame<'_>,
    log: &Log<'_>,
    message: &RawValue,
) -> Result<(Appended, Option<UserId>), Failure> {
    let again = frame.again()?;
    Frame::check_kept("message", message)?;
    let connection = backend.store.get(&caller.connection_id).await?.ok_or_else(ClientError::unregistered)?;
    let writer = connection.user_id.clone().map_or(Writer::Connection(connection.id), Writer::User);
    let id = frame.id()?;
    let draft = Draft {
        json: message,
        sender: connection.user_id.as_ref(),
        id: id.as_deref().map(|id| (writer, id)),
        again,
        invocation_id: &caller.invocation_id,
    };
    let kept = log.append(&draft, caller.deadline).await?;
    Ok((kept, connection.user_id))
}

/// A connection without a record receives nothing, so its client has to hear that instead of a pong.
async fn ping(backend: &Backend, caller: &Caller) -> Result<Served, Failure> {
    let connection = backend.store.get(&caller.connection_id).await?;
    connection.filter(|connection| connection.is_open).ok_or_else(ClientError::unregistered)?;
    Ok(Served::Ping)
}

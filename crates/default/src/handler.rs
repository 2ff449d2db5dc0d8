//! Frames without a route of their own: subscribe, unsubscribe, message, ping.

use aws_lambda_events::apigw::{ApiGatewayProxyResponse, ApiGatewayWebsocketProxyRequest};
use lambda_runtime::LambdaEvent;
use serde_json::value::RawValue;
use switchboard_core::backend::Backend;
use switchboard_core::clock::now_s;
use switchboard_core::frame::{self, Frame, Request};
use switchboard_core::function::{Caller, Served, message};
use switchboard_core::history::{From, Range, Stamp};
use switchboard_core::publication::{Audience, Content, Kept, Publication};
use switchboard_core::store;
use switchboard_core::topic::Topic;
use switchboard_core::{ClientError, Error, Failure};

/// Reads the frame and does what it asks for.
///
/// # Errors
///
/// A fault, which fails the invocation.
pub async fn handle(
    backend: &Backend,
    event: LambdaEvent<ApiGatewayWebsocketProxyRequest>,
) -> Result<ApiGatewayProxyResponse, Error> {
    message(backend, event, async |caller, frame| match frame.request()? {
        Request::Subscribe { topic, ttl_s, positions, from } => {
            let subscription = Subscription { topic, id: frame.id()?, ttl_s, positions, from };
            // Without the box, the futures inside each other are more than the compiler takes.
            Box::pin(subscribe(backend, caller, subscription)).await
        }
        Request::Unsubscribe { topic } => {
            backend.store.unsubscribe(&topic, &caller.connection_id, caller.deadline).await?;
            Ok(Served::Done)
        }
        Request::Message { topic, messages } => publish(backend, caller, frame, topic, &messages).await,
        Request::History { topic, range, limit } => history(backend, caller, frame, &topic, &range, limit).await,
        Request::Ping { positions, is_quiet } => ping(backend, caller, &positions, is_quiet).await,
    })
    .await
}

/// The contents of a subscribe frame.
struct Subscription {
    topic: Topic,
    id: Option<String>,
    ttl_s: Option<i64>,
    positions: bool,
    from: Option<From>,
}

/// A frame without an `id` gets its subscription named after its request, which is unique as well. The row comes first and
/// then the history, so that nothing falls between what is read and what arrives live.
async fn subscribe(backend: &Backend, caller: &Caller, asked: Subscription) -> Result<Served, Failure> {
    let Subscription { topic, id, ttl_s, positions, from } = asked;
    if ttl_s.is_some_and(|ttl_s| ttl_s <= now_s()) {
        let expected = "an epoch second in the future".to_owned();
        return Err(ClientError::InvalidField { field: "ttl", expected }.into());
    }
    let log = backend.history.of(&topic);
    if from.is_some() && log.is_none() {
        return Err(ClientError::NoHistory { topic: topic.to_string() }.into());
    }
    let row_id = Some(id.clone().unwrap_or_else(|| caller.request_id.clone()));
    let row = store::Subscription { topic: topic.clone(), id: row_id, ttl_s, positions };
    backend.store.subscribe(&caller.connection_id, caller.connected_at_ms, &[row], caller.deadline).await?;
    let Some(log) = log.filter(|_| positions) else { return Ok(Served::Done) };
    // A client that asks only for positions gets the topic's position.
    let resumed = log.resume(&from.unwrap_or(From::Newest(0)), caller.deadline).await?;
    let frames = frame::histories(id.as_deref(), &topic, &resumed.stamp.epoch, &resumed.entries);
    if !backend.publisher.send_all(&caller.gateway, &caller.connection_id, frames, caller.deadline).await? {
        return Err(ClientError::Busy.into());
    }
    Ok(Served::Subscribed { stamp: resumed.stamp, recovered: resumed.recovered })
}

/// One frame answers, and it says whether there is more. The client asks again from the last position that it got.
async fn history(
    backend: &Backend,
    caller: &Caller,
    frame: &Frame<'_>,
    topic: &Topic,
    range: &Range,
    limit: usize,
) -> Result<Served, Failure> {
    let log = backend.history.of(topic).ok_or_else(|| ClientError::NoHistory { topic: topic.to_string() })?;
    let page = log.page(range, limit, caller.deadline).await?;
    let answer = frame::page(frame.id()?.as_deref(), topic, page);
    backend.publisher.reply(&caller.gateway, &caller.connection_id, answer, caller.deadline).await?;
    Ok(Served::Answered)
}

/// A topic without subscribers is no mistake; the acknowledgement says `"delivered":0`. On a topic with history the messages
/// are kept before the first post, and the subscribers are read after that. A client that subscribes meanwhile and reads the
/// history misses nothing.
async fn publish(
    backend: &Backend,
    caller: &Caller,
    frame: &Frame<'_>,
    topic: Topic,
    messages: &[&RawValue],
) -> Result<Served, Failure> {
    let mut kept = None;
    let mut sender = None;
    if let Some(log) = backend.history.of(&topic) {
        // The sender is read from the connection's row, never from the frame.
        let connection = backend.store.get(&caller.connection_id).await?.ok_or_else(ClientError::unregistered)?;
        let field = if messages.len() == 1 { "message" } else { "messages" };
        let draft = frame.draft(field, messages, &connection, &caller.invocation_id)?;
        kept = Some(log.append(&draft, caller.deadline).await?);
        sender = connection.user_id;
    }
    let content = Content::Data(messages.iter().map(|message| (*message).to_owned()).collect());
    let mut publication = Publication::new(Audience::Topic(topic), content, &caller.request_id);
    publication.kept = kept.as_ref().map(|kept| Kept { stamp: kept.stamp.clone(), sender });
    let receivers = backend.store.receivers(&publication.audience, &publication.position);
    let fanout = backend.publisher.publish(&caller.gateway, publication, receivers, caller.deadline).await?;
    Ok(Served::Published { delivered: fanout.delivered, continued: fanout.continued, kept })
}

/// A connection without a record receives nothing, so its client has to hear that instead of a pong.
async fn ping(
    backend: &Backend,
    caller: &Caller,
    positions: &[(Topic, Stamp)],
    is_quiet: bool,
) -> Result<Served, Failure> {
    let connection = backend.store.get(&caller.connection_id).await?;
    connection.filter(|connection| connection.is_open).ok_or_else(ClientError::unregistered)?;
    let behind = backend.history.behind(positions).await?;
    Ok(Served::Ping { behind, is_quiet })
}

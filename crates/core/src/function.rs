//! The Lambda glue between the gateway's events and the decisions of a handler.
//!
//! A handler returns a result. This module turns it into a proxy response, a reply to the sender, a line of the [log](crate::log),
//! and for a fault into a failed invocation. The log never carries bodies or query strings.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use aws_lambda_events::apigw::{
    ApiGatewayProxyResponse, ApiGatewayWebsocketProxyRequest, ApiGatewayWebsocketProxyRequestContext,
};
use lambda_runtime::tracing::{error, info, warn};
use lambda_runtime::{Context, Diagnostic, LambdaEvent, Runtime, service_fn};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::backend::Backend;
use crate::connection::{ConnectionId, UserId};
use crate::deadline::Deadline;
use crate::frame::{Ack, Frame, Reply, TopicAck};
use crate::gateway::Gateway;
use crate::history::{Appended, Stamp};
use crate::limits::Verdict;
use crate::log::{self, DETAIL};
use crate::publisher::Replied;
use crate::topic::Topic;
use crate::{ClientError, Error, Failure};

/// Keeps a part of a function for as long as its process lives, so that each event can borrow it.
pub fn forever<T>(part: T) -> &'static T {
    Box::leak(Box::new(part))
}

/// Serves events until Lambda ends the execution environment: one at a time, or on Lambda Managed Instances as many at once as
/// `AWS_LAMBDA_MAX_CONCURRENCY` says.
///
/// One thread serves all of them, so `main` asks for tokio's `current_thread`. An event waits for DynamoDB and the gateway nearly
/// all its time, and threads would cost a small function more at its start, and at each wake, than they give it.
///
/// Each event is a task of its own, so the future of a handler is `Send`. Where the compiler does not see that of a closure, the
/// closure's futures are collected before they run, or its stream is boxed.
///
/// The runtime has no tracing layer, unlike that of `lambda_runtime::run`. The layer's span would write the same two ids twice
/// into every log line, and log lines are paid for by the byte. [`Caller::invocation_id`] is in the lines instead. One event in
/// `log_one_in` writes its [details](crate::log), also if it goes well.
///
/// # Errors
///
/// When the Runtime API cannot be reached.
pub async fn run<E, R, F>(
    log_one_in: u32,
    handle: impl Fn(LambdaEvent<E>) -> F + Clone + Send + 'static,
) -> Result<(), lambda_runtime::Error>
where
    E: DeserializeOwned + Send + 'static,
    R: Serialize + Send + 'static,
    F: Future<Output = Result<R, Error>> + Send + 'static,
{
    Runtime::new(service_fn(handle)).layer(log::Layer { one_in: log_one_in }).run_concurrent().await
}

/// The connection that an event is about, and the means to serve it.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The connection.
    pub connection_id: ConnectionId,
    /// When it was made: epoch milliseconds.
    pub connected_at_ms: i64,
    /// The gateway's id of this event.
    pub request_id: String,
    /// Lambda's id of this invocation, as in its own log lines.
    pub invocation_id: String,
    /// `$connect`, `sendMessage`, …
    pub route_key: String,
    /// When to stop trying.
    pub deadline: Deadline,
    /// The API that the event came through.
    pub gateway: Gateway,
}

impl Caller {
    fn of(backend: &Backend, event: &ApiGatewayWebsocketProxyRequestContext, context: &Context) -> Result<Self, Error> {
        let field = |value: &Option<String>, missing| value.clone().ok_or(Error::Event { missing });
        let (domain_name, stage) = (field(&event.domain_name, "domainName")?, field(&event.stage, "stage")?);
        Ok(Self {
            connection_id: ConnectionId::new(field(&event.connection_id, "connectionId")?),
            connected_at_ms: event.connected_at,
            request_id: field(&event.request_id, "requestId")?,
            invocation_id: context.request_id.clone(),
            route_key: field(&event.route_key, "routeKey")?,
            deadline: Deadline::of(context),
            gateway: backend.gateways.of_event(&domain_name, &stage),
        })
    }
}

/// What serving a frame came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Served {
    /// Done, and nothing to count.
    Done,
    /// A message.
    Published {
        /// How many connections took it.
        delivered: usize,
        /// Whether more connections will get it later.
        continued: bool,
        /// Where the message is kept, on a topic with history.
        kept: Option<Appended>,
    },
    /// A message is written down, and is posted together with others in a moment.
    Queued,
    /// The sender listens to a topic, and asked for positions.
    Subscribed {
        /// The position from which it goes on.
        stamp: Stamp,
        /// Whether it missed nothing, if it named its last position.
        recovered: Option<bool>,
    },
    /// The sender has sent a list of topics.
    Topics(Vec<TopicAck>),
    /// The sender has a new token.
    Renewed {
        /// The topics to which it listened, and no longer may.
        removed: Vec<String>,
    },
    /// The handler has answered by itself.
    Answered,
    /// The sender wants to hear a pong.
    Ping {
        /// The topics in which the sender is behind, and where they are.
        behind: BTreeMap<String, Stamp>,
        /// Whether the sender wants to hear only of those.
        is_quiet: bool,
    },
}

/// Who begins or ends a connection. The log is the only place that keeps it.
#[derive(Debug, Default)]
pub struct Peer {
    /// The user, if there is one.
    pub user: Option<UserId>,
    /// Who said that it is this user, at `$connect`.
    pub named_by: Option<&'static str>,
}

/// Serves `$connect` and `$disconnect`: a mistake refuses the handshake with the status that `status` gives it. Each is one
/// line of the log, which ties the connection to its user. It is always written, so it has nothing that another line or metric has:
/// the function says the route, and the access log has the request, by the connection. The reason of a close is the gateway's or the
/// client's.
///
/// # Errors
///
/// A fault, which fails the invocation.
pub async fn lifecycle(
    backend: &Backend,
    event: LambdaEvent<ApiGatewayWebsocketProxyRequest>,
    status: impl FnOnce(&ClientError) -> i64,
    handle: impl AsyncFnOnce(&Caller, &ApiGatewayWebsocketProxyRequest) -> Result<Peer, Failure>,
) -> Result<ApiGatewayProxyResponse, Error> {
    let start = Instant::now();
    let caller = caller(backend, &event)?;
    match handle(&caller, &event.payload).await {
        Ok(Peer { user, named_by }) => {
            let duration_ms = milliseconds(start);
            let context = &event.payload.request_context;
            info!(
                connection.id = %caller.connection_id, user.id = user.as_ref().map(UserId::as_str), user.named_by = named_by,
                close.code = context.disconnect_status_code, close.reason = context.disconnect_reason,
                duration_ms, "served"
            );
            backend.metrics.served(None);
            Ok(response(200))
        }
        Err(Failure::Mistake(mistake)) => {
            let duration_ms = milliseconds(start);
            // The gateway passes on no more than the status, so the reason is only here.
            info!(
                route.key = caller.route_key, connection.id = %caller.connection_id, request.id = caller.request_id,
                invocation.id = caller.invocation_id, outcome = mistake.code(), reason = %mistake, duration_ms,
                "the handshake is refused"
            );
            backend.metrics.served(None);
            Ok(response(status(&mistake)))
        }
        Err(Failure::Fault(fault)) => Err(report(backend, &caller, start, fault)),
    }
}

/// Serves a message route: reads the frame, and answers its sender through `@connections` where an answer is due.
///
/// # Errors
///
/// A fault, which fails the invocation; the sender then gets the gateway's own error frame.
pub async fn message(
    backend: &Backend,
    event: LambdaEvent<ApiGatewayWebsocketProxyRequest>,
    handle: impl AsyncFnOnce(&Caller, &Frame) -> Result<Served, Failure>,
) -> Result<ApiGatewayProxyResponse, Error> {
    let start = Instant::now();
    let caller = caller(backend, &event)?;
    let text = event.payload.body.as_deref().unwrap_or_default();
    let frame = Frame::parse(text);
    let id = match &frame {
        Ok(frame) => frame.id().ok().flatten(),
        Err(_) => Frame::id_of(text),
    };
    let verdict = backend.frame_rate.count(&caller.connection_id);
    let is_sample = backend.frame_rate.is_sample();
    info!(target: DETAIL, bytes = text.len(), "a frame came");
    if verdict == Verdict::Drop {
        note(backend, &caller, start, "rate_limited");
        return Ok(response(200));
    }
    let serve = async {
        if verdict != Verdict::Serve {
            return Err(ClientError::RateLimited { rate: backend.config.max_frames_per_second }.into());
        }
        let frame = frame?;
        frame.id()?;
        handle(&caller, &frame).await
    };
    // Both at the same time, so that a sample delays no frame. What is rare is boxed, so that each frame's future is small.
    let sampled = async { if is_sample { Box::pin(sample(backend, &caller)).await } else { None } };
    let (served, flood) = tokio::join!(serve, sampled);
    let ack = |ack| id.as_deref().map(|id| Reply::Ack(Ack { id, ..ack }));
    let (reply, outcome) = match &served {
        Ok(Served::Ping { behind, is_quiet }) => {
            let is_due = !is_quiet || !behind.is_empty();
            (is_due.then_some(Reply::Pong { id: id.as_deref(), behind }), "ok")
        }
        Ok(Served::Answered) => (None, "ok"),
        Ok(Served::Done) => (ack(Ack::default()), "ok"),
        Ok(Served::Queued) => (ack(Ack { queued: true, ..Ack::default() }), "ok"),
        Ok(Served::Published { delivered, continued, kept }) => {
            let stamp = kept.as_ref().map(|kept| &kept.stamp);
            let stored = kept.is_some() && *delivered == 0 && !continued;
            let duplicate = kept.as_ref().is_some_and(|kept| kept.duplicate);
            let (delivered, continued) = (Some(*delivered), *continued);
            (ack(Ack { delivered, continued, stored, stamp, duplicate, ..Ack::default() }), "ok")
        }
        Ok(Served::Topics(topics)) => {
            // A client must hear of a topic that it does not listen to, even if it asked for no answer.
            let is_due = id.is_some() || topics.iter().any(TopicAck::is_mistake);
            (is_due.then_some(Reply::Acks { id: id.as_deref(), topics }), "ok")
        }
        Ok(Served::Renewed { removed }) => {
            // As with a list of topics: nobody becomes deaf without a word.
            let is_due = id.is_some() || !removed.is_empty();
            (is_due.then_some(Reply::Renewed { id: id.as_deref(), removed }), "ok")
        }
        Ok(Served::Subscribed { stamp, recovered }) => {
            (ack(Ack { stamp: Some(stamp), recovered: *recovered, ..Ack::default() }), "ok")
        }
        Err(Failure::Mistake(mistake)) => {
            let (code, message, temporary) = (mistake.code(), mistake.to_string(), mistake.is_temporary());
            let request_id = Some(caller.request_id.as_str());
            (Some(Reply::Error { code, message, temporary, request_id, id: id.as_deref() }), code)
        }
        Err(Failure::Fault(_)) => (None, "fault"),
    };
    let is_flood = flood.is_some();
    if let Some(flood) = flood {
        let cut_off = Box::pin(cut_off(backend, &caller, flood)).await;
        cut_off.map_err(|fault| report(backend, &caller, start, fault))?;
    }
    if let Err(Failure::Fault(fault)) = served {
        return Err(report(backend, &caller, start, fault));
    }
    if is_flood {
        note(backend, &caller, start, outcome);
        return Ok(response(200));
    }
    let mut replied = Replied::Read;
    if let Some(reply) = reply {
        // A refusal is not worth the time that a post may hang. It has the part that is in reserve for replies.
        let deadline =
            if verdict == Verdict::Serve { caller.deadline } else { caller.deadline.at_most(Duration::ZERO) };
        let posted = backend.publisher.reply(&caller.gateway, &caller.connection_id, reply.to_bytes(), deadline).await;
        replied = posted.map_err(|fault| report(backend, &caller, start, fault))?;
    }
    match (verdict, replied) {
        (Verdict::Disconnect, _) | (Verdict::Refuse, Replied::Unread) => {
            warn!(connection.id = %caller.connection_id, "a connection is closed: it goes on sending too fast");
            // The lock comes first, so that a client that connects again at once finds it. `$disconnect` removes the rows.
            let locked = async {
                match backend.store.user_of(&caller.connection_id).await? {
                    Some(user) => backend.store.lock_out(&user).await,
                    None => Ok(()),
                }
            }
            .await;
            caller.gateway.delete(&caller.connection_id, caller.deadline).await;
            locked.map_err(|fault| report(backend, &caller, start, fault))?;
        }
        // Another execution environment has closed it, and frames may still be on their way.
        (Verdict::Refuse, Replied::Gone) => backend.frame_rate.end(&caller.connection_id),
        _ => {}
    }
    note(backend, &caller, start, outcome);
    Ok(response(200))
}

/// A client that sends more than all execution environments together allow. It may have no user.
struct Flood(Option<UserId>);

/// Counts a sample of the frames of all execution environments. A failure costs a sample, and no frame.
async fn sample(backend: &Backend, caller: &Caller) -> Option<Flood> {
    let counted = async {
        let user = backend.store.user_of(&caller.connection_id).await?;
        let samples = backend.store.count_sample(&caller.connection_id, user.as_ref()).await?;
        Ok::<_, Error>(samples.are_a_flood(backend.config.max_connections_per_user).then_some(Flood(user)))
    };
    counted.await.unwrap_or_else(|error| {
        warn!(connection.id = %caller.connection_id, %error, "a sample of the frames could not be counted");
        None
    })
}

/// Ends a flood: the user is locked out for a while, and all its connections hear why and are closed. Without a user it is the one
/// connection. Its address is not refused, because many people may share one.
async fn cut_off(backend: &Backend, caller: &Caller, Flood(user): Flood) -> Result<(), Error> {
    let mistake = ClientError::RateLimited { rate: backend.config.max_frames_per_second };
    let (code, message, temporary) = (mistake.code(), mistake.to_string(), mistake.is_temporary());
    let request_id = Some(caller.request_id.as_str());
    let last = Reply::Error { code, message, temporary, request_id, id: None }.to_bytes();
    let (gateway, deadline) = (&caller.gateway, caller.deadline);
    let count = match &user {
        Some(user) => {
            // As above, the lock comes first.
            backend.store.lock_out(user).await?;
            backend.publisher.disconnect(gateway, &Topic::address(user), last, deadline).await?
        }
        None => {
            backend.publisher.reply(gateway, &caller.connection_id, last, deadline.at_most(Duration::ZERO)).await?;
            usize::from(gateway.delete(&caller.connection_id, deadline).await)
        }
    };
    backend.frame_rate.end(&caller.connection_id);
    let user = user.as_ref().map(UserId::as_str);
    warn!(connection.id = %caller.connection_id, user.id = user, count, "a flood is over: its connections are closed");
    Ok(())
}

/// Who calls; an event that does not say is a fault like any other.
fn caller(backend: &Backend, event: &LambdaEvent<ApiGatewayWebsocketProxyRequest>) -> Result<Caller, Error> {
    Caller::of(backend, &event.payload.request_context, &event.context).inspect_err(|fault| {
        let (outcome, invocation) = (fault.error_type(), &event.context.request_id);
        error!(invocation.id = invocation, outcome, error = %fault, "failed");
        backend.metrics.served(Some(outcome));
    })
}

fn response(status: i64) -> ApiGatewayProxyResponse {
    let mut response = ApiGatewayProxyResponse::default();
    response.status_code = status;
    response
}

fn note(backend: &Backend, caller: &Caller, start: Instant, outcome: &str) {
    let duration_ms = milliseconds(start);
    info!(
        target: DETAIL,
        {
            route.key = caller.route_key, connection.id = %caller.connection_id, request.id = caller.request_id,
            invocation.id = caller.invocation_id, outcome, duration_ms
        },
        "served"
    );
    backend.metrics.served(None);
}

fn report(backend: &Backend, caller: &Caller, start: Instant, fault: Error) -> Error {
    let duration_ms = milliseconds(start);
    error!(
        route.key = caller.route_key, connection.id = %caller.connection_id, request.id = caller.request_id,
        invocation.id = caller.invocation_id, outcome = fault.error_type(), duration_ms, error = %fault, "failed"
    );
    backend.metrics.served(Some(fault.error_type()));
    fault
}

/// Milliseconds since `start`, with microsecond precision.
#[must_use]
pub fn milliseconds(start: Instant) -> f64 {
    (start.elapsed().as_secs_f64() * 1e6).round() / 1e3
}

impl From<Error> for Diagnostic {
    fn from(error: Error) -> Self {
        Self { error_type: error.error_type().to_owned(), error_message: error.to_string() }
    }
}

#[cfg(test)]
mod tests;

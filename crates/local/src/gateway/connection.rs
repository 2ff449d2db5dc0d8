//! Open connections: the registry of them, and the life of each from its 101 to its `$disconnect`.
//!
//! Implements "Manage connected users and client apps: $connect and $disconnect routes", "Set up a WebSocket API
//! integration" (every message is an invocation of its own; nothing is serialised per connection) and the frame and
//! message limits, time limits and close codes of "Amazon API Gateway quotas and important notes" and "WebSocket APIs".

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{FutureExt, Sink, SinkExt, StreamExt};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes, error::ProtocolError};

use super::authorizer::Context;
use super::deflate::{self, Deflater, Inflating, Negotiated};
use super::event::{DisconnectEvent, Identity, MessageEvent};
use super::id::Id;
use super::integration::IntegrationError;
use super::knobs::{IdleCounts, Knobs, Limits, OnewayErrorStatus, ThrottleFrame};
use super::order::{Order, Turn};
use super::throttle::Throttle;
use super::{Gateway, log};
use crate::faults::{Chance, Delay};

/// Messages that wait for a client to read. A post to a connection beyond that waits too. Ours; AWS names no number.
const OUTBOUND_QUEUE: usize = 16;

/// How long a closing connection may take to get rid of what is queued and to hear the client's side of the close.
/// Ours.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// What tungstenite allocates per connection to read with. Its default of 128 KiB would be most of the memory that a
/// thousand idle connections need.
const READ_BUFFER: usize = 4096;

/// A connection, from its handshake on.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: Id,
    pub(super) connected_at: Timestamp,
    pub(super) identity: Identity,
    /// The handshake's `Host`.
    pub(super) domain_name: String,
    /// What the authorizer said about the client.
    pub(super) authorizer: Option<Context>,
    /// The last message in either direction, in milliseconds since 1970.
    last_active_at: AtomicI64,
    /// When it was last not idle.
    stirred: watch::Sender<Instant>,
    idle_counts: IdleCounts,
    outbound: mpsc::Sender<Bytes>,
}

/// The connection's own ends of its channels: what is sent to the client, and why to close.
#[derive(Debug)]
pub(super) struct Mailbox {
    outbound: mpsc::Receiver<Bytes>,
    close: oneshot::Receiver<Close>,
}

/// The connections that are open.
#[derive(Debug, Default)]
pub(super) struct Registry {
    open: Mutex<HashMap<Id, Entry>>,
    /// Those whose `$connect` runs.
    pending: watch::Sender<HashSet<Id>>,
}

/// A connection whose `$connect` runs, as long as this exists.
#[derive(Debug)]
pub(super) struct Pending<'a> {
    registry: &'a Registry,
    id: Id,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.registry.pending.send_modify(|pending| {
            pending.remove(&self.id);
        });
    }
}

#[derive(Debug)]
struct Entry {
    connection: Arc<Connection>,
    close: oneshot::Sender<Close>,
}

/// Why the gateway closes a connection.
///
/// The codes are documented. Of the reasons only that of a deletion is known, and only as `$disconnect` shows it; that
/// the client sees the same text, and the other texts, are inferred.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Close {
    code: u16,
    reason: Cow<'static, str>,
}

impl Close {
    const GOING_AWAY: Self = Self::new(1001, "Going away");
    const PROTOCOL_ERROR: Self = Self::new(1002, "Protocol error");
    const BINARY: Self = Self::new(1003, "Binary messages are not supported");
    const INVALID_UTF8: Self = Self::new(1007, "Invalid UTF-8");
    /// That the code is this one is inferred, too.
    const CORRUPT: Self = Self::new(1007, "Invalid compressed data");
    const TOO_MANY_REQUESTS: Self = Self::new(1008, "Too many requests");
    const TOO_BIG: Self = Self::new(1009, "Message too big");
    const INTERNAL_ERROR: Self = Self::new(1011, "Internal server error");
    const RESTART: Self = Self::new(1012, "Service restart");

    const fn new(code: u16, reason: &'static str) -> Self {
        Self { code, reason: Cow::Borrowed(reason) }
    }

    /// By `DELETE` of the management API.
    pub(super) fn deleted(knobs: &Knobs) -> Self {
        Self { code: 1000, reason: Cow::Owned(knobs.delete_close_reason.clone()) }
    }
}

/// How a connection ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The client sent a close frame, with a code and a reason or without.
    ByClient(Option<(u16, String)>),
    ByGateway(Close),
    /// TCP ended without a close frame.
    Lost,
}

type Tcp = TokioIo<Upgraded>;

impl From<Inflating<Tcp>> for Tcp {
    fn from(inflating: Inflating<Tcp>) -> Self {
        inflating.into_inner()
    }
}

impl Connection {
    /// A connection whose `$connect` is still to run: in no registry, so there is nothing to post to.
    pub(super) fn new(
        source_ip: IpAddr,
        user_agent: Option<String>,
        domain_name: String,
        knobs: &Knobs,
    ) -> (Self, Outbound) {
        let connected_at = Timestamp::now();
        let (outbound, queue) = mpsc::channel(OUTBOUND_QUEUE);
        let connection = Self {
            id: Id::new(),
            connected_at,
            identity: Identity { api_key: None, api_key_id: None, user_agent, source_ip },
            domain_name,
            authorizer: None,
            last_active_at: AtomicI64::new(connected_at.as_millisecond()),
            stirred: watch::Sender::new(Instant::now()),
            idle_counts: knobs.idle_counts,
            outbound,
        };
        (connection, Outbound(queue))
    }

    /// Queues a text message to the client, and waits while the queue is full. `false` when the connection has closed.
    pub(super) async fn post(&self, payload: Bytes) -> bool {
        let queued = self.outbound.send(payload).await.is_ok();
        if queued {
            self.touch();
            if self.idle_counts == IdleCounts::Both {
                self.stir();
            }
        }
        queued
    }

    /// When the last message passed, in either direction.
    pub(super) fn last_active_at(&self) -> Timestamp {
        Timestamp::from_millisecond(self.last_active_at.load(Ordering::Relaxed)).unwrap_or(self.connected_at)
    }

    /// Resolves when the connection has been idle, or open, for too long. It is open from the first poll on.
    async fn expired(&self, limits: &Limits) {
        self.stir();
        let end = Instant::now() + limits.connection_duration;
        loop {
            let deadline = end.min(*self.stirred.borrow() + limits.idle_timeout);
            if deadline <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(deadline).await;
        }
    }

    fn stir(&self) {
        self.stirred.send_replace(Instant::now());
    }

    fn touch(&self) {
        self.last_active_at.fetch_max(Timestamp::now().as_millisecond(), Ordering::Relaxed);
    }
}

/// The messages to a client that have not been written yet.
#[derive(Debug)]
pub(super) struct Outbound(mpsc::Receiver<Bytes>);

impl Registry {
    /// Makes the id of a connection known before there is anything to post to.
    pub(super) fn announce(&self, id: &Id) -> Pending<'_> {
        self.pending.send_modify(|pending| {
            pending.insert(id.clone());
        });
        Pending { registry: self, id: id.clone() }
    }

    /// Waits while the connection's `$connect` runs.
    pub(super) async fn settled(&self, id: &Id) {
        // An error would mean that the registry is gone, and it is borrowed here.
        let _ = self.pending.subscribe().wait_for(|pending| !pending.contains(id)).await;
    }

    /// Opens a connection: from here on it can be posted to.
    pub(super) fn insert(&self, connection: &Arc<Connection>, outbound: Outbound) -> Mailbox {
        let (close, closed) = oneshot::channel();
        self.lock().insert(connection.id.clone(), Entry { connection: connection.clone(), close });
        Mailbox { outbound: outbound.0, close: closed }
    }

    pub(super) fn get(&self, id: &Id) -> Option<Arc<Connection>> {
        self.lock().get(id).map(|entry| entry.connection.clone())
    }

    /// Makes a connection end as `close` says. It is no longer open when this returns; `false` when it was not before.
    pub(super) fn close(&self, id: &Id, close: Close) -> bool {
        let entry = self.lock().remove(id);
        // A connection that no longer listens is ending for a reason of its own.
        entry.is_some_and(|entry| entry.close.send(close).is_ok())
    }

    fn remove(&self, id: &Id) {
        self.lock().remove(id);
    }

    /// A panic cannot leave the map half changed, so a poisoned lock is as good as any.
    fn lock(&self) -> MutexGuard<'_, HashMap<Id, Entry>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lives a connection that is in the registry: waits for its upgrade, serves it until it ends, runs `$disconnect`.
pub(super) async fn run(
    gateway: Arc<Gateway>,
    connection: Arc<Connection>,
    upgrade: OnUpgrade,
    mailbox: Mailbox,
    negotiated: Option<Negotiated>,
) {
    let Ok(upgraded) = upgrade.await else {
        // The client left while its 101 was on the way.
        disconnect(&gateway, &connection, &End::Lost).await;
        return;
    };
    let tcp = Tcp::new(upgraded);
    match negotiated {
        None => serve(gateway, connection, tcp, mailbox, None).await,
        Some(negotiated) => {
            let tcp = Inflating::new(tcp, gateway.settings.limits.frame_limit);
            serve(gateway, connection, tcp, mailbox, Some(Deflater::new(negotiated))).await;
        }
    }
}

/// Serves a connection over TCP, or what inflates it, until it ends, and runs `$disconnect`.
async fn serve<S>(
    gateway: Arc<Gateway>,
    connection: Arc<Connection>,
    stream: S,
    mailbox: Mailbox,
    deflater: Option<Deflater>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Into<Tcp>,
{
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        .max_frame_size(Some(gateway.settings.limits.frame_limit))
        .max_message_size(Some(gateway.settings.limits.message_limit));
    let socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
    let (sink, mut stream) = socket.split();
    let (stop, stopped) = oneshot::channel();
    let is_half_open = gateway.faults.strikes(Chance::HalfOpen);
    let writing = Writing { fragment: gateway.settings.knobs.outbound_fragment, deflater, is_half_open };
    let mut writing = pin!(write(sink, mailbox.outbound, stopped, writing));
    let reading = async {
        match read(&gateway, &connection, &mut stream).await {
            End::Lost if is_half_open => std::future::pending().await,
            end => end,
        }
    };

    let end = or_internal_error(async {
        tokio::select! {
            // In this order, so that a client's close counts even when writing has failed because of it.
            biased;
            end = reading => end,
            close = mailbox.close => End::ByGateway(close.unwrap_or(Close::INTERNAL_ERROR)),
            () = gateway.stopped() => End::ByGateway(Close::RESTART),
            () = connection.expired(&gateway.settings.limits) => End::ByGateway(Close::GOING_AWAY),
            _ = &mut writing => End::Lost,
        }
    })
    .await;

    let closing = async {
        let frame = match &end {
            End::Lost => return,
            End::ByClient(_) => None,
            End::ByGateway(close) => Some(close.clone()),
        };
        // A client that does not read must not keep its connection: what it has not taken by then is lost.
        // What has panicked may do so again here, which must not take `$disconnect` with it.
        let closing = AssertUnwindSafe(close(writing, stream, stop, frame)).catch_unwind();
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, closing).await;
    };
    tokio::join!(disconnect(&gateway, &connection, &end), closing);
}

/// The end of a connection, also when it is that the gateway fails: a panic must not leave a client or `$disconnect`
/// waiting.
async fn or_internal_error(end: impl Future<Output = End>) -> End {
    AssertUnwindSafe(end).catch_unwind().await.unwrap_or(End::ByGateway(Close::INTERNAL_ERROR))
}

/// Reads until the connection ends. Every message becomes a task of its own.
async fn read<S>(
    gateway: &Arc<Gateway>,
    connection: &Arc<Connection>,
    stream: &mut SplitStream<WebSocketStream<S>>,
) -> End
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let rate = gateway.settings.knobs.client_message_rate;
    let throttle = rate.map(|rate| Throttle::new(rate, rate));
    let mut order = gateway.faults.may_strike(Chance::ReorderMessages).then(Order::default);
    loop {
        match stream.next().await {
            Some(Ok(Message::Text(text))) => {
                connection.touch();
                connection.stir();
                if throttle.as_ref().is_some_and(|throttle| !throttle.admits()) {
                    return End::ByGateway(Close::TOO_MANY_REQUESTS);
                }
                if gateway.faults.strikes(Chance::InternalError) {
                    // What comes of it is what would come of a panic of ours; only its text in the terminal is spared.
                    std::panic::resume_unwind(Box::new("a fault on demand"));
                }
                let turn = order.as_mut().map(|order| order.turn(|| gateway.faults.strikes(Chance::ReorderMessages)));
                gateway.spawn(route(gateway.clone(), connection.clone(), text, turn));
            }
            Some(Ok(Message::Binary(_))) => return End::ByGateway(Close::BINARY),
            // Tungstenite answers pings. A raw frame is never read.
            Some(Ok(Message::Ping(_))) if gateway.settings.knobs.ping_resets_idle => connection.stir(),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
            Some(Ok(Message::Close(frame))) => {
                return End::ByClient(frame.map(|frame| (frame.code.into(), frame.reason.as_str().to_owned())));
            }
            Some(Err(error)) => return ended_by(&error),
            None => return End::Lost,
        }
    }
}

/// RFC 6455, section 7.4.1, except where API Gateway documents a code of its own.
fn ended_by(error: &Error) -> End {
    match error {
        Error::Io(error) if deflate::is_corrupt(error) => End::ByGateway(Close::CORRUPT),
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) | Error::Io(_) => End::Lost,
        Error::Protocol(_) => End::ByGateway(Close::PROTOCOL_ERROR),
        Error::Utf8(_) => End::ByGateway(Close::INVALID_UTF8),
        Error::Capacity(_) => End::ByGateway(Close::TOO_BIG),
        _ => End::ByGateway(Close::INTERNAL_ERROR),
    }
}

/// How messages are written.
#[derive(Debug)]
struct Writing {
    /// The most bytes in a frame, after compression; 0 for any number.
    fragment: usize,
    deflater: Option<Deflater>,
    /// What cannot be written is dropped, as if it had been.
    is_half_open: bool,
}

/// Writes what is queued, one message after the other, until writing fails; once told to stop, until the queue is
/// empty. The one writer of its connection, so the frames of two messages are never mixed.
async fn write<S>(
    mut sink: S,
    mut outbound: mpsc::Receiver<Bytes>,
    stop: oneshot::Receiver<()>,
    Writing { fragment, mut deflater, is_half_open }: Writing,
) -> S
where
    S: Sink<Message, Error = Error> + Unpin,
{
    let mut stop = pin!(stop);
    let (mut stopping, mut is_broken) = (false, false);
    loop {
        tokio::select! {
            payload = outbound.recv() => {
                let Some(payload) = payload else { return sink };
                is_broken = is_broken || send(&mut sink, payload, fragment, deflater.as_mut()).await.is_err();
                if is_broken && !is_half_open {
                    return sink;
                }
            }
            _ = &mut stop, if !stopping => {
                stopping = true;
                outbound.close();
            }
        }
    }
}

/// Sends one text message in frames of at most `fragment` bytes, or in one frame if that is 0.
async fn send<S>(
    sink: &mut S,
    mut payload: Bytes,
    fragment: usize,
    deflater: Option<&mut Deflater>,
) -> Result<(), Error>
where
    S: Sink<Message, Error = Error> + Unpin,
{
    // What the first frame says of the message (RFC 7692, section 6).
    let mut rsv1 = deflater.is_some();
    if let Some(deflater) = deflater {
        payload = deflater.message(&payload);
    }
    let fragment = if fragment == 0 { usize::MAX } else { fragment };
    let mut opcode = OpCode::Data(Data::Text);
    loop {
        let part = payload.split_to(payload.len().min(fragment));
        let is_final = payload.is_empty();
        let mut frame = Frame::message(part, opcode, is_final);
        frame.header_mut().rsv1 = rsv1;
        sink.send(Message::Frame(frame)).await?;
        if is_final {
            return Ok(());
        }
        (opcode, rsv1) = (OpCode::Data(Data::Continue), false);
    }
}

/// Ends the WebSocket and then TCP. Without a `frame` of our own, it is the client's that is answered.
async fn close<S>(
    writing: impl Future<Output = SplitSink<WebSocketStream<S>, Message>>,
    mut stream: SplitStream<WebSocketStream<S>>,
    stop: oneshot::Sender<()>,
    frame: Option<Close>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Into<Tcp>,
{
    // What was accepted before the close still goes out before it. The writer listens, so this cannot fail.
    let _ = stop.send(());
    let mut sink = writing.await;
    if let Some(Close { code, reason }) = frame {
        let frame = CloseFrame { code: CloseCode::from(code), reason: reason.as_ref().into() };
        if sink.send(Message::Close(Some(frame))).await.is_err() {
            return;
        }
    }
    // Up to the client's answer, or until ours to its close is out.
    while let Some(Ok(_)) = stream.next().await {}
    // A socket dropped with unread bytes in it is reset, and the client might never see the close frame.
    if let Ok(socket) = sink.reunite(stream) {
        let mut tcp: Tcp = socket.into_inner().into();
        if tcp.shutdown().await.is_ok() {
            let _ = tokio::io::copy(&mut tcp, &mut tokio::io::sink()).await;
        }
    }
}

/// Sees a message through, up to what its sender hears of it.
async fn route(gateway: Arc<Gateway>, connection: Arc<Connection>, body: Utf8Bytes, mut turn: Option<Turn>) {
    gateway.faults.random_delay(Delay::MessageDelay).await;
    if let Some(turn) = &mut turn {
        turn.come().await;
    }
    if let Some(frame) = answer(&gateway, &connection, &body, turn).await {
        // Dropped when the client has left meanwhile.
        connection.post(frame).await;
    }
}

/// Gives a message to the function of its route. Of a one-way route the client hears only failures; a two-way route
/// ("Set up route responses for a WebSocket API") sends it the body of the result, whatever the status.
async fn answer(gateway: &Gateway, connection: &Connection, body: &str, turn: Option<Turn>) -> Option<Bytes> {
    let request_id = Id::new();
    let knobs = &gateway.settings.knobs;
    let error = |message| Some(error_frame(message, &connection.id, &request_id));
    if !gateway.requests.admits() {
        log(format_args!("{} sent too many messages, request {request_id}", connection.id));
        return match knobs.throttle_frame {
            ThrottleFrame::TooManyRequests => error("Too Many Requests"),
            ThrottleFrame::None => None,
        };
    }
    let routes = &gateway.api.routes;
    let Some(route_key) = gateway.expression.select(body, knobs.lenient_json, |key| routes.contains_key(key)) else {
        log(format_args!("{} no route for a message, request {request_id}", connection.id));
        return error("Forbidden");
    };
    let models = gateway.api.request_models.get(&route_key);
    if models.is_some_and(|models| !models.accept(body, knobs.lenient_json)) {
        log(format_args!("{} sent {route_key} what is not as its model, request {request_id}", connection.id));
        return Some(bad_request_body(&connection.id, &Id::new()));
    }
    let event = MessageEvent::new(gateway.source(), connection, &request_id, &route_key, body);
    // The turn ends when the invocation has been polled, which is when it begins.
    let invocation = gateway.invoke(&route_key, &request_id, &event);
    let (result, ()) = tokio::join!(biased; invocation, async { drop(turn) });
    match result? {
        Ok(response) if gateway.api.two_way.contains(&route_key) => {
            let body = response.body.unwrap_or_default();
            if body.len() > gateway.settings.limits.message_limit {
                // Inferred: no message can be that long.
                log(format_args!("{route_key} failed, request {request_id}: its body is too long to be sent"));
                return error("Internal server error");
            }
            Some(body.into())
        }
        Ok(response) if response.status_code >= 400 && knobs.oneway_error_status == OnewayErrorStatus::ErrorFrame => {
            error("Internal server error")
        }
        // "Won't send any information about the result".
        Ok(_) => None,
        Err(IntegrationError::TimedOut) => error("Endpoint request timed out"),
        Err(_) => error("Internal server error"),
    }
}

/// Spaced as recorded.
fn error_frame(message: &str, connection_id: &Id, request_id: &Id) -> Bytes {
    format!(r#"{{"message": "{message}", "connectionId":"{connection_id}", "requestId":"{request_id}"}}"#).into()
}

/// Spaced as documented, which is otherwise than other frames are recorded.
fn bad_request_body(connection_id: &Id, message_id: &Id) -> Bytes {
    format!(r#"{{"message" : "Bad request body", "connectionId": "{connection_id}", "messageId": "{message_id}"}}"#)
        .into()
}

/// Runs `$disconnect` for a client that left before it was connected (`--abort-during-connect disconnect`).
pub(super) async fn lost(gateway: &Gateway, connection: &Connection) {
    disconnect(gateway, connection, &End::Lost).await;
}

/// Takes the connection out of the registry and runs `$disconnect`, whose result interests nobody.
async fn disconnect(gateway: &Gateway, connection: &Connection, end: &End) {
    gateway.connections.remove(&connection.id);
    let (code, reason) = match end {
        End::ByClient(Some((code, reason))) => (*code, reason.as_str()),
        End::ByClient(None) => (1005, "Client-side close frame status not set"),
        End::ByGateway(close) => (close.code, close.reason.as_ref()),
        End::Lost => (1006, gateway.settings.knobs.abnormal_reason.as_str()),
    };
    log(format_args!("{} disconnected, code {code}", connection.id));
    if gateway.faults.strikes(Chance::LostDisconnect) {
        return;
    }
    gateway.faults.delay(Delay::DisconnectDelay).await;
    let request_id = Id::new();
    let event = DisconnectEvent::new(gateway.source(), connection, &request_id, code, reason);
    gateway.invoke("$disconnect", &request_id, &event).await;
}

#[cfg(test)]
mod tests {
    use super::super::Settings;
    use super::*;

    fn connection(settings: &Settings) -> (Arc<Connection>, Outbound) {
        let ip = IpAddr::from([127, 0, 0, 1]);
        let (connection, outbound) = Connection::new(ip, None, "localhost".to_owned(), &settings.knobs);
        (Arc::new(connection), outbound)
    }

    /// How long a connection lives in which `traffic` happens every nine minutes.
    async fn life(settings: &Settings, traffic: impl AsyncFn(&Connection)) -> Duration {
        let (connection, mut outbound) = connection(settings);
        let start = Instant::now();
        let traffic = async {
            loop {
                tokio::time::sleep(Duration::from_secs(9 * 60)).await;
                traffic(&connection).await;
                while outbound.0.try_recv().is_ok() {}
            }
        };
        tokio::select! {
            () = connection.expired(&settings.limits) => start.elapsed(),
            () = traffic => unreachable!(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_lives_ten_minutes_without_traffic_and_two_hours_with_it() {
        const MINUTE: Duration = Duration::from_secs(60);
        let settings = Settings::default();
        assert_eq!(life(&settings, async |_| {}).await, 10 * MINUTE);
        assert_eq!(life(&settings, async |connection| connection.stir()).await, 120 * MINUTE);
        let post = async |connection: &Connection| assert!(connection.post(Bytes::new()).await);
        assert_eq!(life(&settings, post).await, 120 * MINUTE);

        let mut inbound_only = Settings::default();
        inbound_only.knobs.idle_counts = IdleCounts::Inbound;
        assert_eq!(life(&inbound_only, post).await, 10 * MINUTE);
    }

    #[test]
    fn every_way_to_break_the_protocol_has_its_close_code() {
        for (error, end) in [
            (Error::Protocol(ProtocolError::UnmaskedFrameFromClient), End::ByGateway(Close::PROTOCOL_ERROR)),
            (Error::Protocol(ProtocolError::ResetWithoutClosingHandshake), End::Lost),
            (Error::Io(std::io::ErrorKind::ConnectionReset.into()), End::Lost),
            (Error::Utf8(String::new()), End::ByGateway(Close::INVALID_UTF8)),
        ] {
            assert_eq!(ended_by(&error), end, "{error}");
        }
    }

    #[tokio::test]
    async fn a_panic_of_the_gateway_ends_a_connection_with_1011() {
        let panicking = async { panic!("the gateway fails") };
        assert_eq!(or_internal_error(panicking).await, End::ByGateway(Close::INTERNAL_ERROR));
        assert_eq!(or_internal_error(async { End::Lost }).await, End::Lost);
    }

    #[tokio::test]
    async fn a_closed_registry_entry_is_gone_at_once_and_only_once() {
        let registry = Registry::default();
        let (connection, outbound) = connection(&Settings::default());
        assert!(registry.get(&connection.id).is_none());
        let mailbox = registry.insert(&connection, outbound);
        assert!(registry.close(&connection.id, Close::RESTART));
        assert!(registry.get(&connection.id).is_none());
        assert!(!registry.close(&connection.id, Close::RESTART));
        assert_eq!(mailbox.close.await, Ok(Close::RESTART));
    }
}

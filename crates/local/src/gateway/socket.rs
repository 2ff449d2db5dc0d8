//! The life of a connection, from its 101 to its `$disconnect`.
//!
//! Implements the frame and message limits, time limits and close codes of "Amazon API Gateway quotas and important notes"
//! and "WebSocket APIs".

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{FutureExt, Sink, SinkExt, StreamExt};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message, error::ProtocolError};

use super::connection::{Close, Connection, Mailbox};
use super::deflate::{self, Deflater, Inflating, Negotiated};
use super::event::DisconnectEvent;
use super::id::Id;
use super::order::Order;
use super::throttle::Throttle;
use super::{Gateway, log, message};
use crate::faults::{Chance, Delay};

/// How long a closing connection may take to get rid of what is queued and to hear the client's side of the close.
/// Ours.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// What tungstenite allocates per connection to read with. Its default of 128 KiB would be most of the memory that a
/// thousand idle connections need.
const READ_BUFFER: usize = 4096;

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
    let is_half_open = gateway.faults.injects(Chance::HalfOpen);
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
    let mut order = gateway.faults.is_enabled(Chance::ReorderMessages).then(Order::default);
    loop {
        match stream.next().await {
            Some(Ok(Message::Text(text))) => {
                connection.touch();
                connection.stir();
                if throttle.as_ref().is_some_and(|throttle| !throttle.admits()) {
                    return End::ByGateway(Close::TOO_MANY_REQUESTS);
                }
                if gateway.faults.injects(Chance::InternalError) {
                    // What comes of it is what would come of a panic of ours; only its text in the terminal is spared.
                    std::panic::resume_unwind(Box::new("a fault on demand"));
                }
                let turn = order.as_mut().map(|order| order.turn(|| gateway.faults.injects(Chance::ReorderMessages)));
                gateway.spawn(message::route(gateway.clone(), connection.clone(), text, turn));
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
    if gateway.faults.injects(Chance::LostDisconnect) {
        return;
    }
    gateway.faults.delay(Delay::DisconnectDelay).await;
    let request_id = Id::new();
    let event = DisconnectEvent::new(gateway.source(), connection, &request_id, code, reason);
    gateway.invoke("$disconnect", &request_id, &event).await;
}

#[cfg(test)]
mod tests {
    use super::*;

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
}

//! The life of a connection, from its 101 to its `$disconnect`.
//!
//! This module implements the frame and message limits, the time limits and the close codes of "Amazon API Gateway
//! quotas and important notes" and "WebSocket APIs".

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{FutureExt, Sink, SinkExt, StreamExt};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message, error::ProtocolError};

use super::connection::{Close, Connection, Mailbox};
use super::deflate::{self, Deflater, Negotiated, Transport};
use super::event::DisconnectEvent;
use super::id::Id;
use super::message;
use super::order::Order;
use super::state::{Gateway, log};
use super::throttle::Throttle;
use crate::faults::{Chance, Delay};
use crate::inspector::Event;

/// The time in which a closing connection must write its queue and receive the client's close frame. The value is ours.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The size of the read buffer that tungstenite allocates per connection. With its default of 128 KiB, the buffers
/// would be most of the memory of a thousand idle connections.
const READ_BUFFER: usize = 4096;

/// The way a connection ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The client sent a close frame, perhaps with a code and a reason.
    ByClient(Option<(u16, String)>),
    /// The gateway sends a close frame.
    ByGateway(Close),
    /// TCP ended without a close frame.
    Lost,
}

/// The WebSocket of a connection.
type Socket = WebSocketStream<Transport<TokioIo<Upgraded>>>;

/// Serves a connection that is in the registry. Waits for its upgrade, serves it until it ends, and runs `$disconnect`.
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
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        .max_frame_size(Some(gateway.settings.limits.frame_limit))
        .max_message_size(Some(gateway.settings.limits.message_limit));
    let transport = Transport::new(TokioIo::new(upgraded), negotiated, gateway.settings.limits.frame_limit);
    let socket = Socket::from_raw_socket(transport, Role::Server, Some(config)).await;
    let (sink, mut stream) = socket.split();
    let (stop, stopped) = oneshot::channel();
    let is_half_open = gateway.faults.injects(Chance::HalfOpen);
    let deflater = negotiated.map(Deflater::new);
    let writing = Writing { fragment: gateway.settings.behaviour.outbound_fragment, deflater, is_half_open };
    let mut writing = pin!(write(sink, mailbox.outbound, stopped, writing));
    let reading = async {
        match read(&gateway, &connection, &mut stream).await {
            End::Lost if is_half_open => std::future::pending().await,
            end => end,
        }
    };

    let end = or_internal_error(async {
        tokio::select! {
            // The order matters: a client's close also makes writing fail, and then the close must win.
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
        // A client that does not read must not keep its connection open, so messages that are still queued are lost.
        // The close can panic for the same reason as before. `$disconnect` must run even then.
        let closing = AssertUnwindSafe(close(writing, stream, stop, frame)).catch_unwind();
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, closing).await;
    };
    tokio::join!(disconnect(&gateway, &connection, &end), closing);
}

/// Turns a panic of the gateway into the end of the connection, so that the client and `$disconnect` do not wait for
/// ever.
async fn or_internal_error(end: impl Future<Output = End>) -> End {
    AssertUnwindSafe(end).catch_unwind().await.unwrap_or(End::ByGateway(Close::INTERNAL_ERROR))
}

/// Reads until the connection ends. Spawns a task for every message, and reads no further while many of them run.
async fn read(gateway: &Arc<Gateway>, connection: &Arc<Connection>, stream: &mut SplitStream<Socket>) -> End {
    let rate = gateway.settings.behaviour.client_message_rate;
    let throttle = rate.map(|rate| Throttle::new(rate, rate));
    let mut order = gateway.faults.is_enabled(Chance::ReorderMessages).then(Order::default);
    let at_once = Arc::new(Semaphore::new(gateway.settings.behaviour.client_messages_at_once.get().into()));
    loop {
        match stream.next().await {
            Some(Ok(Message::Text(text))) => {
                connection.record_activity();
                connection.restart_idle_timer();
                if throttle.as_ref().is_some_and(|throttle| !throttle.admits()) {
                    return End::ByGateway(Close::TOO_MANY_REQUESTS);
                }
                if gateway.faults.injects(Chance::InternalError) {
                    // This has the effect of a real panic, except that the panic hook prints nothing.
                    std::panic::resume_unwind(Box::new("a fault on demand"));
                }
                let turn = order.as_mut().map(|order| order.turn(|| gateway.faults.injects(Chance::ReorderMessages)));
                let slot = at_once.clone().acquire_owned().await;
                let route = message::route(gateway.clone(), connection.clone(), text, turn);
                gateway.spawn(async move {
                    route.await;
                    drop(slot);
                });
            }
            Some(Ok(Message::Binary(_))) => return End::ByGateway(Close::BINARY),
            // Tungstenite answers pings, and it never returns a raw frame.
            Some(Ok(Message::Ping(_))) if gateway.settings.behaviour.ping_resets_idle => {
                connection.restart_idle_timer()
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
            Some(Ok(Message::Close(frame))) => {
                return End::ByClient(frame.map(|frame| (frame.code.into(), frame.reason.as_str().to_owned())));
            }
            Some(Err(error)) => return ended_by(&error),
            None => return End::Lost,
        }
    }
}

/// Chooses the close code for an error: that of RFC 6455, section 7.4.1, unless API Gateway documents another one.
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

/// The settings of a connection's writer.
#[derive(Debug)]
struct Writing {
    /// The most bytes in a frame, after compression. 0 means no limit.
    fragment: usize,
    deflater: Option<Deflater>,
    /// Whether messages that cannot be written are dropped as if they had been written.
    is_half_open: bool,
}

/// Writes the queued messages one after the other until writing fails. After `stop`, it writes the rest of the queue
/// and ends. A connection has one writer, so the frames of two messages are never mixed.
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

/// Sends one text message in frames of at most `fragment` bytes. If `fragment` is 0, it sends one frame.
async fn send<S>(
    sink: &mut S,
    mut payload: Bytes,
    fragment: usize,
    deflater: Option<&mut Deflater>,
) -> Result<(), Error>
where
    S: Sink<Message, Error = Error> + Unpin,
{
    // In the first frame, RSV1 says that the message is compressed (RFC 7692, section 6).
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

/// Ends the WebSocket and then TCP. Sends `frame`, or without one answers the client's close frame.
async fn close(
    writing: impl Future<Output = SplitSink<Socket, Message>>,
    mut stream: SplitStream<Socket>,
    stop: oneshot::Sender<()>,
    frame: Option<Close>,
) {
    // The writer sends the queue before the close frame. It still listens, so this cannot fail.
    let _ = stop.send(());
    let mut sink = writing.await;
    if let Some(Close { code, reason }) = frame {
        let frame = CloseFrame { code: CloseCode::from(code), reason: reason.as_ref().into() };
        if sink.send(Message::Close(Some(frame))).await.is_err() {
            return;
        }
    }
    // Reads until the client has answered our close frame, or until our answer to its close frame is written.
    while let Some(Ok(_)) = stream.next().await {}
    // The system resets a socket that is dropped with unread bytes, and then the client may never see the close frame.
    if let Ok(socket) = sink.reunite(stream) {
        let mut tcp = socket.into_inner().into_inner();
        if tcp.shutdown().await.is_ok() {
            let _ = tokio::io::copy(&mut tcp, &mut tokio::io::sink()).await;
        }
    }
}

/// Runs `$disconnect` for a client that left before it was connected (`--abort-during-connect disconnect`).
pub(super) async fn disconnect_lost(gateway: &Gateway, connection: &Connection) {
    disconnect(gateway, connection, &End::Lost).await;
}

/// Removes the connection from the registry and runs `$disconnect`. Nobody uses the result.
async fn disconnect(gateway: &Gateway, connection: &Connection, end: &End) {
    gateway.connections.remove(&connection.id);
    let (code, reason) = match end {
        End::ByClient(Some((code, reason))) => (*code, reason.as_str()),
        End::ByClient(None) => (1005, "Client-side close frame status not set"),
        End::ByGateway(close) => (close.code, close.reason.as_ref()),
        End::Lost => (1006, gateway.settings.behaviour.abnormal_reason.as_str()),
    };
    log(format_args!("{} disconnected, code {code}", connection.id));
    let request_id = Id::new();
    let story = gateway.inspector.begin(|| Event::Disconnect {
        connection: connection.id.to_string(),
        request: request_id.to_string(),
        code,
        reason: reason.to_owned(),
    });
    if gateway.faults.injects(Chance::LostDisconnect) {
        return;
    }
    gateway.faults.delay(Delay::DisconnectDelay).await;
    let event = DisconnectEvent::new(&gateway.api, connection, &request_id, code, reason);
    gateway.invoke("$disconnect", connection, &request_id, &event, story).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_protocol_error_has_its_close_code() {
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

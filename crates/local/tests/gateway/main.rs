//! The gateway as clients, functions and callers of `@connections` see it, over real sockets and frame by frame.
//!
//! Functions are scripted closures that record their events. The client is written by hand, because client libraries
//! hide fragments, broken frames, close codes and the exact handshake. A test says so if its expectation is inferred
//! and not documented or observed on AWS.
//!
//! The client is `switchboard_tests::wire`, and `bed` is the gateway. The life of a connection is in `handshake`,
//! `events`, `authorizers`, `routing`, `responses` and `management`. Its limits are in `quotas`, and behaviour that has
//! a flag is in `settings`, `compression` and `faults_on_demand`.
#![expect(clippy::unwrap_used, reason = "a test's helpers fail as its assertions do")]
#![expect(unreachable_pub, reason = "in a test binary nothing is reachable, and `pub` is what its modules share")]

mod authorizers;
mod bed;
mod compression;
mod events;
mod faults_on_demand;
mod handshake;
mod management;
mod quotas;
mod responses;
mod routing;
mod settings;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use switchboard_tests::wire::CLOSE;
use tokio::net::TcpStream;

use bed::{KIB, OK, Script, connection_id};

#[tokio::test]
async fn an_ordinary_client_library_connects_talks_and_closes() {
    use futures_util::{SinkExt, StreamExt};
    use tokio_tungstenite::tungstenite::Message;

    let mut bed = Script::new().start().await;
    let url = format!("ws://{}/dev?userId=2", bed.address);
    let (mut socket, response) = tokio_tungstenite::connect_async(url).await.unwrap();
    assert_eq!(response.status(), 101);
    let id = connection_id(&bed.event_of("$connect").await);
    socket.send(Message::text(r#"{"action":"sendMessage"}"#)).await.unwrap();
    bed.event_of("sendMessage").await;
    bed.call("POST", &id, "x".repeat(100 * KIB).as_bytes()).await;
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("x".repeat(100 * KIB)));
    socket.close(None).await.unwrap();
    while let Some(message) = socket.next().await {
        message.unwrap();
    }
    assert_eq!(bed.disconnected().await["disconnectStatusCode"], 1005);
}

#[tokio::test]
async fn a_shutdown_closes_connections_with_1012_and_waits_for_their_disconnects() {
    let disconnected = Arc::new(AtomicUsize::new(0));
    let counter = disconnected.clone();
    let script = Script::new().on_async("$disconnect", move |_| {
        let counter = counter.clone();
        async move {
            tokio::task::yield_now().await;
            counter.fetch_add(1, Ordering::Relaxed);
            Ok(OK.into())
        }
    });
    let (mut bed, mut first) = script.connected().await;
    let mut second = bed.connect().await;
    bed.interrupt();
    for client in [&mut first, &mut second] {
        assert_eq!(client.close_frame().await, b"\x03\xf4Service restart");
        client.frame(true, CLOSE, b"\x03\xf4Service restart").await;
    }
    bed.ended().await;
    assert_eq!(disconnected.load(Ordering::Relaxed), 2);
    assert!(TcpStream::connect(bed.address).await.is_err(), "still listening");
    for _ in 0..2 {
        assert_eq!(bed.disconnected().await["disconnectStatusCode"], 1012);
    }
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_ever_for_a_function() {
    let script = Script::new().on_async("sendMessage", |_| std::future::pending());
    let (mut bed, mut client) = script.connected().await;
    bed.invoke(&mut client, "sendMessage").await;
    bed.interrupt();
    bed.ended().await;
}

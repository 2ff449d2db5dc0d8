//! What the gateway does that only a test inside this crate can show, over real sockets and frame by frame.
//!
//! How API Gateway behaves is tested in `tests/conformance`, on real functions and from outside. Here functions are
//! closures that answer by a script and record their events, so a test can hold one back, let it panic, or set a limit
//! that has no flag. Results that no real function has are in `results`; what has a flag is in `settings`, `compression`
//! and `faults_on_demand`; shutdowns are below.
#![expect(clippy::unwrap_used, reason = "a test's helpers fail as its assertions do")]
#![expect(unreachable_pub, reason = "in a test binary nothing is reachable, and `pub` is what its modules share")]

mod compression;
mod faults_on_demand;
mod results;
mod scripted;
mod settings;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use switchboard_tests::wire::CLOSE;
use tokio::net::TcpStream;

use scripted::{OK, ScriptedApi};

#[tokio::test]
async fn a_shutdown_closes_connections_with_1012_and_waits_for_their_disconnects() {
    let disconnected = Arc::new(AtomicUsize::new(0));
    let counter = disconnected.clone();
    let script = ScriptedApi::new().on_async("$disconnect", move |_| {
        let counter = counter.clone();
        async move {
            tokio::task::yield_now().await;
            counter.fetch_add(1, Ordering::Relaxed);
            Ok(OK.into())
        }
    });
    let (mut gateway, mut first) = script.connected().await;
    let mut second = gateway.connect().await;
    gateway.interrupt();
    for client in [&mut first, &mut second] {
        assert_eq!(client.close_frame().await, b"\x03\xf4Service restart");
        client.frame(true, CLOSE, b"\x03\xf4Service restart").await;
    }
    gateway.ended().await;
    assert_eq!(disconnected.load(Ordering::Relaxed), 2);
    assert!(TcpStream::connect(gateway.address).await.is_err(), "still listening");
    for _ in 0..2 {
        assert_eq!(gateway.disconnected().await["disconnectStatusCode"], 1012);
    }
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_ever_for_a_function() {
    let script = ScriptedApi::new().on_async("sendMessage", |_| std::future::pending());
    let (mut gateway, mut client) = script.connected().await;
    gateway.invoke(&mut client, "sendMessage").await;
    gateway.interrupt();
    gateway.ended().await;
}

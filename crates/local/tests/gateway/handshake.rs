//! The handshake, from its request to a 101 or a refusal.

use std::collections::BTreeSet;
use std::sync::Arc;

use switchboard_tests::wire::{A_WHILE, CLOSE, Reply, SOON};
use tokio::io::AsyncReadExt;
use tokio::sync::Semaphore;

use crate::bed::{RFC_6455_ACCEPT, Script, connection_id, error, ok};

#[tokio::test]
async fn the_101_comes_when_connect_has_answered_and_not_before() {
    let gate = Arc::new(Semaphore::new(0));
    let mut bed = Script::new().on_held("$connect", &gate, ok).start().await;
    for path in ["/dev", "/dev/", "/"] {
        let mut tcp = bed.request_to_reset(path).await;
        let event = bed.event_of("$connect").await;
        assert!(tokio::time::timeout(A_WHILE, tcp.read_u8()).await.is_err(), "answered before $connect ended");
        // Before that, nobody can post to the connection.
        bed.assert_gone("POST", &connection_id(&event)).await;
        gate.add_permits(1);
        let reply = Reply::read(&mut tcp).await;
        assert_eq!(reply.status, 101, "{path}");
        assert_eq!(reply.header("sec-websocket-accept"), Some(RFC_6455_ACCEPT));
        drop(tcp);
        bed.event_of("$disconnect").await;
    }
}

#[tokio::test]
async fn refusals_before_connect_invoke_nothing() {
    let mut bed = Script::new().start().await;
    let long = format!("/dev?q={}", "x".repeat(4096));
    for (path, status) in [("/nostage", 403), ("/dev/extra", 403), (long.as_str(), 414)] {
        let client = bed.handshake(path, &[]).await;
        assert_eq!(client.reply.status, status, "{path}");
    }
    assert_eq!(bed.handshake("/nostage", &[]).await.reply.body, r#"{"message":"Forbidden"}"#);
    assert_eq!(bed.call_path("GET", "/dev", None, b"").await.status, 426);
    bed.assert_nothing_invoked().await;
}

#[tokio::test]
async fn connect_decides_on_the_status_and_a_refused_client_never_disconnects() {
    for (answer, status) in [
        (r#"{"statusCode":204}"#, 101),
        (r#"{"statusCode":302,"headers":{"Location":"https://example.com"}}"#, 302),
        (r#"{"statusCode":400,"body":"secret"}"#, 400),
        (r#"{"statusCode":401}"#, 401),
        (r#"{"statusCode":403}"#, 403),
        (r#"{"statusCode":404}"#, 404),
        (r#"{"statusCode":500}"#, 500),
        (r#"{"statusCode":503}"#, 503),
        (r#"{"statusCode":101}"#, 502),
        (r#"{"ok":true}"#, 502),
        (r#"{"statusCode":200,"foo":1}"#, 502),
        (r#""string""#, 502),
        ("null", 502),
        ("", 502),
    ] {
        let mut bed = Script::new().on("$connect", answer).start().await;
        let client = bed.handshake("/dev", &[]).await;
        assert_eq!(client.reply.status, status, "{answer}");
        assert_eq!(client.reply.header("location"), None);
        assert!(!client.reply.body.contains("secret"), "{}", client.reply.body);
        let event = bed.event_of("$connect").await;
        if status != 101 {
            bed.assert_gone("POST", &connection_id(&event)).await;
            // The next event is another handshake's, so there was no $disconnect.
            bed.handshake("/dev", &[]).await;
            bed.event_of("$connect").await;
        }
    }
}

#[tokio::test]
async fn a_failing_connect_is_a_502() {
    let mut bed = Script::new().on_async("$connect", |_| async { error() }).start().await;
    let client = bed.handshake("/dev", &[]).await;
    assert_eq!((client.reply.status, client.reply.body.as_str()), (502, r#"{"message":"Internal server error"}"#));
    bed.event_of("$connect").await;
    assert_eq!(bed.handshake("/dev", &[]).await.reply.status, 502);
    bed.event_of("$connect").await;
}

#[tokio::test]
async fn an_api_without_connect_accepts_everybody() {
    let mut bed = Script::new().without("$connect").start().await;
    let mut client = bed.handshake("/dev", &[]).await;
    assert_eq!(client.reply.status, 101);
    client.text("hello").await;
    bed.event_of("$default").await;
    client.frame(true, CLOSE, b"").await;
    bed.event_of("$disconnect").await;
}

#[tokio::test]
async fn the_function_alone_chooses_the_subprotocol() {
    for (answer, chosen) in [
        (r#"{"statusCode":200,"headers":{"Sec-WebSocket-Protocol":"myprotocol"}}"#, Some("myprotocol")),
        (r#"{"statusCode":200,"headers":{"sec-websocket-protocol":"myprotocol"}}"#, Some("myprotocol")),
        (r#"{"statusCode":200,"multiValueHeaders":{"Sec-WebSocket-Protocol":["myprotocol"]}}"#, Some("myprotocol")),
        (r#"{"statusCode":200,"headers":{"Set-Cookie":"a=b","X-Foo":"bar"},"body":"secret"}"#, None),
    ] {
        let mut bed = Script::new().on("$connect", answer).start().await;
        let offer = [("Sec-WebSocket-Protocol", "chat1,myprotocol")];
        let client = bed.handshake("/dev", &offer).await;
        assert_eq!((client.reply.status, client.reply.header("sec-websocket-protocol")), (101, chosen), "{answer}");
        let names: BTreeSet<_> = client.reply.headers.iter().map(|(name, _)| name.as_str()).collect();
        let allowed = ["connection", "date", "sec-websocket-accept", "sec-websocket-protocol", "upgrade"];
        assert!(names.is_subset(&BTreeSet::from(allowed)), "{names:?}");
        let event = bed.event_of("$connect").await;
        assert_eq!(event["headers"]["Sec-WebSocket-Protocol"], "chat1,myprotocol");
    }
}

#[tokio::test]
async fn compression_is_declined() {
    let bed = Script::new().start().await;
    let offer = [("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")];
    let client = bed.handshake("/dev", &offer).await;
    assert_eq!((client.reply.status, client.reply.header("sec-websocket-extensions")), (101, None));
}

/// This is inferred, because AWS's behaviour is unknown.
#[tokio::test]
async fn connect_runs_to_its_end_when_the_client_leaves_meanwhile() {
    let (gate, ended) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (opened, end) = (gate.clone(), ended.clone());
    let script = Script::new().on_async("$connect", move |_| {
        let (opened, end) = (opened.clone(), end.clone());
        async move {
            opened.acquire().await.unwrap().forget();
            end.add_permits(1);
            ok()
        }
    });
    let mut bed = script.start().await;
    let tcp = bed.request("/dev", &[]).await;
    let id = connection_id(&bed.event_of("$connect").await);
    drop(tcp);
    // No event shows when the gateway has noticed that the client left.
    tokio::time::sleep(A_WHILE).await;
    gate.add_permits(2);
    tokio::time::timeout(SOON, ended.acquire()).await.unwrap().unwrap().forget();
    bed.assert_gone("GET", &id).await;
    bed.assert_nothing_invoked().await;
}

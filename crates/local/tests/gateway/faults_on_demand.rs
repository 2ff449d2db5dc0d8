//! Faults on demand (`--fault`).

use std::time::{Duration, Instant};

use switchboard_tests::wire::{A_WHILE, CLOSE, Client, TEXT, masked};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::scripted::ScriptedApi;

#[tokio::test]
async fn a_disconnect_can_be_lost_and_the_connection_is_gone_all_the_same() {
    let (mut gateway, mut client) = ScriptedApi::new().fault("lost-disconnect=1").connected().await;
    client.frame(true, CLOSE, b"").await;
    assert_eq!(client.closed_without_echo().await, None);
    gateway.assert_gone("POST", &client.id).await;
    gateway.assert_nothing_invoked().await;
}

#[tokio::test]
async fn posts_can_be_refused_though_the_connection_is_open() {
    for (fault, status, error_type) in [
        ("gone=1", 410, "GoneException"),
        ("throttle=1", 429, "LimitExceededException"),
        ("error=1", 500, "InternalServerErrorException"),
    ] {
        let (mut gateway, mut client) = ScriptedApi::new().fault(fault).connected().await;
        let reply = gateway.call("POST", &client.id, b"hello").await;
        assert_eq!(reply.error(), (status, Some(error_type)), "{fault}");
        assert_eq!(gateway.call("GET", &client.id, b"").await.status, 200);
        client.text("hello").await;
        gateway.event_of("$default").await;
    }
}

#[tokio::test]
async fn the_same_posts_fail_in_every_run_with_the_same_seed() {
    let mut runs = Vec::new();
    for _ in 0..2 {
        let (gateway, client) = ScriptedApi::new().fault("gone=0.5").connected().await;
        let mut statuses = Vec::new();
        for _ in 0..20 {
            statuses.push(gateway.call("POST", &client.id, b"hello").await.status);
        }
        assert!(statuses.contains(&200) && statuses.contains(&410), "{statuses:?}");
        runs.push(statuses);
    }
    assert_eq!(runs[0], runs[1]);
}

#[tokio::test]
async fn posts_can_be_slow_or_hang_without_holding_up_a_shutdown() {
    let (gateway, client) = ScriptedApi::new().fault("post-delay=100ms").connected().await;
    let start = Instant::now();
    assert_eq!(gateway.call("POST", &client.id, b"hello").await.status, 200);
    assert!(start.elapsed() >= Duration::from_millis(100));

    let (mut gateway, client) = ScriptedApi::new().fault("hang=1").connected().await;
    let path = format!("/dev/@connections/{}", client.id);
    let mut tcp = gateway.dial().await;
    let head =
        format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\nauthorization: {SIGNED}\r\n\r\n");
    tcp.write_all(head.as_bytes()).await.unwrap();
    assert!(tokio::time::timeout(A_WHILE, tcp.read_u8()).await.is_err(), "answered");
    gateway.interrupt();
    gateway.ended().await;
}

#[tokio::test]
async fn a_client_that_is_gone_can_go_unnoticed_until_it_is_idle() {
    let script = ScriptedApi::new().fault("half-open=1");
    let mut gateway = script.limits(|limits| limits.idle_timeout = Duration::from_millis(500)).start().await;
    let tcp = gateway.request_to_reset("/dev").await;
    // Everything but its id is dropped, which ends TCP.
    let Client { id, .. } = gateway.connect_on(tcp).await;
    let mut posts = 0;
    while posts < 40 {
        assert_eq!(gateway.call("POST", &id, b"hello").await.status, 200);
        posts += 1;
    }
    assert_eq!(gateway.disconnected().await["disconnectStatusCode"], 1001);
    gateway.assert_gone("POST", &id).await;
}

#[tokio::test]
async fn the_gateway_can_fail_at_a_message() {
    let (mut gateway, mut client) = ScriptedApi::new().fault("internal-error=1").connected().await;
    assert_eq!(gateway.call("POST", &client.id, b"hello").await.status, 200);
    assert_eq!(client.hears().await, "hello");
    client.text("hello").await;
    assert_eq!(client.close_frame().await, b"\x03\xf3Internal server error");
    assert_eq!(gateway.disconnected().await["disconnectStatusCode"], 1011);
    gateway.assert_gone("POST", &client.id).await;
    gateway.assert_nothing_invoked().await;
}

#[tokio::test]
async fn messages_can_overtake_each_other() {
    let (mut gateway, mut client) = ScriptedApi::new().fault("message-delay=100ms").connected().await;
    let sent: Vec<_> = (0..20).map(|number| number.to_string()).collect();
    for text in &sent {
        client.text(text).await;
    }
    let mut received = Vec::new();
    for _ in &sent {
        received.push(gateway.event_of("$default").await["body"].as_str().unwrap().to_owned());
    }
    assert_ne!(received, sent);
    received.sort_by_key(|text| text.parse::<u8>().unwrap());
    assert_eq!(received, sent);
}

/// Sends texts at once to a gateway with these faults, whose functions never end. Returns the order in which functions
/// are invoked with them.
async fn order(faults: &[&str], seed: u64) -> Vec<usize> {
    let mut script = ScriptedApi::new().on_async("$default", |_| std::future::pending());
    script.faults.seed = seed;
    let (mut gateway, mut client) = faults.iter().fold(script, |script, fault| script.fault(fault)).connected().await;
    let texts: Vec<_> = (0..40).flat_map(|number| masked(true, TEXT, number.to_string().as_bytes())).collect();
    client.raw(&texts).await;
    let mut order = Vec::new();
    for _ in 0..40 {
        order.push(gateway.event_of("$default").await["body"].as_str().unwrap().parse().unwrap());
    }
    order
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn messages_can_be_put_in_another_order_that_the_seed_decides() {
    let sent: Vec<_> = (0..40).collect();
    let pairs: Vec<_> = sent.chunks(2).flat_map(|pair| [pair[1], pair[0]]).collect();
    assert_eq!(order(&["reorder-messages=0"], 7).await, sent);
    assert_eq!(order(&["reorder-messages=1"], 7).await, pairs);
    assert_eq!(order(&["reorder-messages=1", "message-delay=20ms"], 7).await, pairs);
    let some = order(&["reorder-messages=0.3"], 7).await;
    assert!(some != sent && some != pairs, "{some:?}");
    assert_ne!(order(&["reorder-messages=0.3"], 8).await, some);
    for _ in 0..10 {
        assert_eq!(order(&["reorder-messages=0.3"], 7).await, some);
    }
}

#[tokio::test]
async fn a_message_that_is_held_back_is_not_lost_with_its_connection() {
    let (mut gateway, mut client) = ScriptedApi::new().fault("reorder-messages=1").connected().await;
    client.text("hello").await;
    client.frame(true, CLOSE, b"").await;
    let events = [gateway.event().await, gateway.event().await];
    let mut keys = events.each_ref().map(|event| event["requestContext"]["routeKey"].as_str().unwrap());
    keys.sort_unstable();
    assert_eq!(keys, ["$default", "$disconnect"]);

    // A message that no other one follows comes after a second.
    let mut client = gateway.connect().await;
    let start = Instant::now();
    client.text("hello").await;
    gateway.event_of("$default").await;
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
}

const SIGNED: &str = "AWS4-HMAC-SHA256 Credential=AK/20240120/us-east-1/execute-api/aws4_request";

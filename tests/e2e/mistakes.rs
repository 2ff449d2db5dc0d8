//! Bad input: the client learns what was wrong, and connection and stack go on.

use std::time::SystemTime;

use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use switchboard_tests::proxy::Proxy;
use switchboard_tests::stack::{NO_RULES, PATIENCE, Stack, number, table_name, text};
use tokio_tungstenite::tungstenite::Message;

#[tokio::test]
async fn a_mistake_in_a_frame_is_named_on_each_route_and_survived() {
    let stack = Stack::start().await;
    let mut one = stack.connect("?userId=1").await;
    // The unit tests of `frame` and `topic` in core have the whole table.
    for (frame, route_key, code, names) in [
        ("hello", "$default", "malformed_json", "JSON"),
        (r#"{"type":"subscribe","topic":"@2"}"#, "$default", "forbidden_topic", "`@2`"),
        (r#"{"action":"sendMessage","destinationUserId":"2"}"#, "sendMessage", "missing_field", "`body`"),
    ] {
        one.send_text(frame).await;
        let error = one.next().await;
        assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!(code)), "{frame}: {error}");
        assert!(error["message"].as_str().unwrap().contains(names), "{frame}: {error}");
        let request_id = error["requestId"].as_str().unwrap();
        stack.logged(1, &[request_id, &format!(r#""route.key":"{route_key}""#)]).await;
    }
    one.hears_nothing().await;
    assert_eq!(stack.rows("topics").await.len(), 1);
}

#[tokio::test]
async fn an_error_carries_the_id_of_its_frame() {
    let stack = Stack::start().await;
    let mut one = stack.connect("?userId=1").await;
    let error = one.ask(json!({"action": "sendMessage", "id": "42"})).await;
    assert_eq!((&error["code"], &error["id"]), (&json!("missing_field"), &json!("42")));
    let error = one.ask(json!({"action": "sendMessage"})).await;
    assert!(error.get("id").is_none());
}

#[tokio::test]
async fn the_largest_frames_are_served_and_larger_ones_named() {
    let stack = Stack::with(&NO_RULES).await;
    let mut one = stack.connect("?userId=1").await;
    let frame =
        |bytes: usize| json!({"action": "sendMessage", "destinationUserId": "1", "body": "x".repeat(bytes - 2)});
    send_in_fragments(&mut one, &frame(126 * 1024).to_string()).await;
    assert_eq!(one.next().await["body"].as_str().unwrap().len(), 126 * 1024 - 2);
    send_in_fragments(&mut one, &frame(126 * 1024 + 1).to_string()).await;
    let error = one.next().await;
    assert_eq!(error["code"], "invalid_field");
    assert!(error["message"].as_str().unwrap().contains("129024 bytes"), "{error}");

    // The gateway's largest message has 128 KB. Spaces fill it up.
    let ping = json!({"type": "ping"}).to_string();
    let padded = ping.clone() + &" ".repeat(128 * 1024 - ping.len());
    send_in_fragments(&mut one, &padded).await;
    assert_eq!(one.next().await, json!({"type": "pong"}));
}

#[tokio::test]
async fn beyond_the_gateways_limits_the_connection_is_closed_with_the_reason() {
    let stack = Stack::start().await;
    for (message, code) in [(Message::text("x".repeat(32 * 1024 + 1)), 1009), (Message::binary(b"{}".to_vec()), 1003)] {
        let mut one = stack.connect("?userId=1").await;
        one.socket.send(message).await.unwrap();
        assert_eq!(one.closed().await, code);
    }
    let mut one = stack.connect("?userId=1").await;
    send_in_fragments(&mut one, &"x".repeat(128 * 1024 + 1)).await;
    assert_eq!(one.closed().await, 1009);
    stack.settled("connections", 0).await;
    stack.connect("?userId=1").await.hears_nothing().await;
}

#[tokio::test]
async fn a_wrong_user_id_refuses_the_handshake_and_leaves_no_row() {
    let stack = Stack::start().await;
    let long = format!("?userId={}", "x".repeat(300));
    for query in ["?userId=", "?userId", "?userId=1&userId=2", "?userId=a%00b", "?userId=a%0Ab", &long] {
        assert_eq!(stack.refused(query).await, 400, "{query}");
    }
    let reasons = stack.logged(6, &["connect |", "the handshake is refused"]).await;
    assert!(reasons.iter().all(|line| line.contains("userId")), "{reasons:?}");
    let ten_kilobytes = format!("?userId={}", "x".repeat(10_240));
    assert_eq!(stack.refused(&ten_kilobytes).await, 414);
    assert!(stack.rows("connections").await.is_empty());
    stack.connect("?userId=1&other=x").await.hears_nothing().await;
}

/// Sends a text message in frames of 32 KB, the most that the gateway takes.
pub async fn send_in_fragments(client: &mut switchboard_tests::client::Client, text: &str) {
    use tokio_tungstenite::tungstenite::protocol::frame::Frame;
    use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
    let chunks: Vec<_> = text.as_bytes().chunks(32 * 1024).collect();
    for (count, chunk) in chunks.iter().enumerate() {
        let data = if count == 0 { Data::Text } else { Data::Continue };
        let frame = Frame::message(chunk.to_vec(), OpCode::Data(data), count + 1 == chunks.len());
        // The gateway may have closed already and refuse the rest.
        let _ = client.socket.send(Message::Frame(frame)).await;
    }
}

#[tokio::test]
async fn unknown_fields_are_ignored() {
    let stack = Stack::start().await;
    let mut one = stack.connect("?userId=1").await;
    let pong: Value = one.ask(json!({"type": "ping", "extra": {"a": [1]}, "id": "p"})).await;
    assert_eq!(pong, json!({"type": "pong", "id": "p"}));
}

#[tokio::test]
async fn a_client_that_sends_too_fast_hears_it_and_is_disconnected_if_it_goes_on() {
    // One frame after the other is served by one environment.
    let stack = Stack::with(&["--env", "MAX_FRAMES_PER_SECOND=1"]).await;
    let mut fast = stack.connect("?userId=1").await;
    let mut other = stack.connect("?userId=2").await;
    let ping = |id: usize| json!({"type": "ping", "id": id.to_string()});
    let mut refused = 0;
    let code = loop {
        if fast.socket.send(Message::text(ping(refused).to_string())).await.is_err() {
            break None;
        }
        match tokio::time::timeout(PATIENCE, fast.socket.next()).await.expect("no frame came") {
            Some(Ok(Message::Text(text))) => {
                let frame: Value = serde_json::from_str(&text).unwrap();
                if frame["type"] != "pong" {
                    assert_eq!(
                        (&frame["code"], &frame["temporary"]),
                        (&json!("rate_limited"), &json!(true)),
                        "{frame}"
                    );
                    assert!(frame["message"].as_str().unwrap().contains("1 frames a second"), "{frame}");
                    refused += 1;
                }
            }
            Some(Ok(Message::Close(Some(frame)))) => break Some(u16::from(frame.code)),
            other => panic!("neither a frame nor the end: {other:?}"),
        }
    };
    assert!(refused >= 2 && code == Some(1000), "{refused} {code:?}");
    stack.logged(1, &["default |", "a connection is closed: it goes on sending too fast"]).await;
    assert_eq!(other.ask(ping(0)).await["type"], "pong");
    let rows = stack.settled("connections", 1).await;
    assert_eq!(text(&rows[0], "userId"), "2");
    // The user is locked out for a while, and nobody else is.
    assert_eq!(stack.refused("?userId=1").await, 429);
    stack.logged(1, &["connect |", "the handshake is refused", "locked_out"]).await;
    let _third = stack.connect("?userId=3").await;
    let (dynamodb, table) = (stack.dynamodb().await, table_name("connections"));
    let key = AttributeValue::S("@1".to_owned());
    let lock =
        dynamodb.get_item().table_name(&table).key("connectionId", key.clone()).send().await.unwrap().item.unwrap();
    let left = number(&lock, "ttl") - i64::try_from(SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap();
    assert!((1..=60).contains(&left), "{left} s");
    dynamodb.delete_item().table_name(&table).key("connectionId", key).send().await.unwrap();
    let _again = stack.connect("?userId=1").await;
}

/// With one frame a second, one of the first three frames of an environment is a sample. Others seem to have counted enough of them.
#[tokio::test]
async fn a_flood_over_many_environments_ends_all_connections_of_its_user() {
    let limits = ["--env", "MAX_FRAMES_PER_SECOND=1", "--env", "MAX_CONNECTIONS_PER_USER=3", "--max-environments", "1"];
    let stack = Stack::with(&limits).await;
    let (mut phone, mut desk) = (stack.connect("?userId=1").await, stack.connect("?userId=1").await);
    let mut other = stack.connect("?userId=2").await;
    let window = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() / 10;
    let dynamodb = stack.dynamodb().await;
    for window in window..window + 6 {
        // 84 samples are the most that three connections may have.
        let put = dynamodb.put_item().table_name(table_name("connections"));
        let put = put.item("connectionId", AttributeValue::S(format!("#{window}#@1")));
        let put = put.item("samples", AttributeValue::N("84".to_owned()));
        put.item("closedAt", AttributeValue::N("1".to_owned())).send().await.unwrap();
    }
    for _ in 0..3 {
        phone.send(json!({"type": "ping", "quiet": true})).await;
    }
    for client in [&mut phone, &mut desk] {
        let last = client.next().await;
        assert_eq!((&last["type"], &last["code"]), (&json!("error"), &json!("rate_limited")), "{last}");
        assert_eq!(client.closed().await, 1000);
    }
    stack.logged(1, &["default |", "a flood is over", "\"user.id\":\"1\"", "\"count\":2"]).await;
    let rows = stack.settled("connections", 1).await;
    assert_eq!(text(&rows[0], "userId"), "2");
    assert_eq!(stack.refused("?userId=1").await, 429);
    other.hears_nothing().await;
}

#[tokio::test]
async fn a_user_has_only_so_many_connections() {
    let stack = Stack::with(&["--env", "MAX_CONNECTIONS_PER_USER=2"]).await;
    let one = stack.connect("?userId=1").await;
    let _also_one = stack.connect("?userId=1").await;
    assert_eq!(stack.refused("?userId=1").await, 429);
    stack.logged(1, &["connect |", "user `1` already has 2 connections"]).await;
    let (_two, _nobody) = (stack.connect("?userId=2").await, stack.connect("").await);
    one.close().await;
    stack.settled("topics", 2).await;
    stack.connect("?userId=1").await.hears_nothing().await;
}

/// The limit is about what clients cause on topics without history. A message that is kept is never refused for its receivers.
#[tokio::test]
async fn a_message_with_too_many_receivers_reaches_nobody() {
    let rules = r#"TOPIC_RULES=[{"topic":"room.*","history":{"hours":1}},{"topic":"hall","maxReceivers":4},
        {"topic":"small","maxReceivers":3},{"topic":"all","maxReceivers":0}]"#;
    let arguments = ["--env", "MAX_RECEIVERS_PER_PUBLISH=3", "--env", rules];
    let (proxy, stack) = Proxy::in_front(&arguments, |_| None).await;
    let mut listeners = Vec::new();
    for _ in 0..4 {
        let mut listener = stack.connect("?userId=1").await;
        let topics = ["t", "room.1", "hall", "small", "all"].map(|topic| json!({"topic": topic}));
        listener.ask(json!({"type": "subscribe", "topics": topics, "id": "s"})).await;
        listeners.push(listener);
    }
    let mut sender = stack.connect("?userId=2").await;
    let message = |topic: &str| json!({"type": "message", "topic": topic, "message": "x", "id": "m"});
    for (topic, limit) in [("t", 3), ("small", 3)] {
        proxy.take();
        let error = sender.ask(message(topic)).await;
        assert_eq!((&error["code"], &error["temporary"]), (&json!("too_many_receivers"), &json!(false)), "{error}");
        let expected = format!("more than {limit} connections listen to the topic `{topic}`");
        assert!(error["message"].as_str().unwrap().starts_with(&expected), "{error}");
        assert_eq!(proxy.take(), ["Query", "POST"], "one read, and the answer");
    }
    for listener in &mut listeners {
        listener.hears_nothing().await;
    }
    for topic in ["room.1", "hall", "all"] {
        assert_eq!(sender.ask(message(topic)).await["delivered"], 4, "{topic}");
    }
    let direct = json!({"action": "sendMessage", "destinationUserId": "1", "body": "x", "id": "d"});
    assert_eq!(sender.ask(direct).await["delivered"], 4);
    for listener in &mut listeners {
        for _ in 0..4 {
            listener.next().await;
        }
    }
    let put = stack.dynamodb().await.put_item().table_name(table_name("events"));
    let string = |text: &str| AttributeValue::S(text.to_owned());
    put.item("topic", string("t")).item("id", string("1")).item("data", string("e")).send().await.unwrap();
    for listener in &mut listeners {
        assert_eq!(listener.next().await["payload"]["data"], "e", "a backend has no such limit");
    }
    listeners[0].ask(json!({"type": "unsubscribe", "topic": "t", "id": "u"})).await;
    assert_eq!(sender.ask(message("t")).await["delivered"], 3);
}

#[tokio::test]
async fn a_user_who_looks_like_another_one_cannot_connect() {
    let stack = Stack::start().await;
    for query in ["?userId=alice%20", "?userId=al%E2%80%8Bice", "?userId=%E2%80%AEecila"] {
        assert_eq!(stack.refused(query).await, 400, "{query}");
    }
    let mut one = stack.connect("?userId=alice").await;
    let error = one.ask(json!({"type": "subscribe", "topic": "general\u{200b}"})).await;
    assert_eq!(error["code"], "invalid_field");
    assert!(error["message"].as_str().unwrap().contains("invisible characters"), "{error}");
}

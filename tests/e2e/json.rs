//! Whatever JSON's grammar allows: it passes both routes byte for byte, also where no number or string type holds it.

use aws_sdk_dynamodb::types::AttributeValue;
use serde_json::json;

use switchboard_tests::client::Client;
use switchboard_tests::stack::{NO_RULES, Stack, table_name};

/// How deep a frame may nest.
const LEVELS: usize = 127;

/// Arrays in arrays.
fn nested(levels: usize) -> String {
    format!("{}{}", "[".repeat(levels), "]".repeat(levels))
}

fn direct(body: &str) -> String {
    format!(r#"{{"action":"sendMessage","destinationUserId":"2","body":{body},"id":"m"}}"#)
}

fn message(message: &str) -> String {
    format!(r#"{{"type":"message","topic":"t","message":{message},"id":"m"}}"#)
}

/// User 1, and user 2 who also subscribes to the topic `t`.
async fn pair(stack: &Stack) -> (Client, Client) {
    let one = stack.connect("?userId=1").await;
    let mut two = stack.connect("?userId=2").await;
    assert_eq!(two.ask(json!({"type": "subscribe", "topic": "t", "id": "s"})).await, json!({"type": "ack", "id": "s"}));
    (one, two)
}

#[tokio::test]
async fn any_json_arrives_byte_for_byte_on_every_way() {
    let stack = Stack::with(&NO_RULES).await;
    let (mut one, mut two) = pair(&stack).await;
    let long = format!("1{}", "0".repeat(309));
    let ack = json!({"type": "ack", "id": "m", "delivered": 1});
    let payloads = [
        "1e400",
        "-1e+400",
        &long,
        r#""so happy \ud83d""#,
        r#"{"\ud83d":1}"#,
        r#"{"a":{"\uDC00":[ 1E999,-0 ]},"a":"\ud83d\ude00\ud83d"}"#,
        "null",
    ];
    for (count, payload) in payloads.into_iter().enumerate() {
        one.send_text(&direct(payload)).await;
        assert_eq!(two.next_text().await, format!(r#"{{"senderId":"1","body":{payload}}}"#));
        assert_eq!(one.next().await, ack);

        let data = format!(r#"{{"id":"s","payload":{{"data":{payload}}},"type":"data"}}"#);
        one.send_text(&message(payload)).await;
        assert_eq!(two.next_text().await, data);
        assert_eq!(one.next().await, ack);

        let string = |text: &str| AttributeValue::S(text.to_owned());
        let put = stack.dynamodb().await.put_item().table_name(table_name("events")).item("topic", string("t"));
        put.item("id", string(&count.to_string())).item("json", string(payload)).send().await.unwrap();
        assert_eq!(two.next_text().await, data);
    }
}

#[tokio::test]
async fn unknown_fields_may_hold_and_be_named_any_json() {
    let stack = Stack::start().await;
    let (mut one, mut two) = pair(&stack).await;
    for junk in [r#""junk":1e400"#, r#""junk":"\ud83d""#, r#""junk":[{"\ud83d":1e400}]"#, r#""\ud83d":1"#] {
        one.send_text(&format!(r#"{{"type":"ping",{junk},"id":"p"}}"#)).await;
        assert_eq!(one.next().await, json!({"type": "pong", "id": "p"}), "{junk}");
        one.send_text(&format!(r#"{{{junk},"action":"sendMessage","destinationUserId":"2","body":0}}"#)).await;
        assert_eq!(two.next_text().await, r#"{"senderId":"1","body":0}"#, "{junk}");
    }
}

#[tokio::test]
async fn null_is_as_if_it_were_absent() {
    let stack = Stack::start().await;
    let (mut one, mut two) = pair(&stack).await;
    one.send_text(r#"{"action":null,"type":"ping","id":"p"}"#).await;
    assert_eq!(one.next().await, json!({"type": "pong", "id": "p"}));
    one.send_text(r#"{"type":"ping","id":null}"#).await;
    assert_eq!(one.next().await, json!({"type": "pong"}));
    one.send_text(r#"{"type":"subscribe","topic":"n","id":"n","ttl":null}"#).await;
    assert_eq!(one.next().await, json!({"type": "ack", "id": "n"}));
    one.send_text(r#"{"action":"sendMessage","destinationUserId":"2","body":"x","id":null}"#).await;
    assert_eq!(two.next_text().await, r#"{"senderId":"1","body":"x"}"#);
    one.hears_nothing().await;

    for (frame, names) in [
        (r#"{"action":null,"type":null}"#, "`action` or `type`"),
        (r#"{"action":"subscribe","topic":null}"#, "`topic`"),
        (r#"{"action":"sendMessage","destinationUserId":null,"body":"x"}"#, "`destinationUserId`"),
    ] {
        one.send_text(frame).await;
        let error = one.next().await;
        assert_eq!(error["code"], "missing_field", "{frame}: {error}");
        assert!(error["message"].as_str().unwrap().contains(names), "{frame}: {error}");
    }
}

#[tokio::test]
async fn a_field_that_we_read_must_be_whole_text() {
    let stack = Stack::start().await;
    let (mut one, _two) = pair(&stack).await;
    for (frame, names) in [
        (r#"{"action":"\ud83d","type":"ping"}"#, "`action`"),
        (r#"{"type":"\ud83d"}"#, "`type`"),
        (r#"{"type":"ping","id":"\ud83d"}"#, "`id`"),
        (r#"{"type":"subscribe","topic":"t\ud83d"}"#, "`topic`"),
        (r#"{"action":"sendMessage","destinationUserId":"2\ud83d","body":"x"}"#, "`destinationUserId`"),
    ] {
        one.send_text(frame).await;
        let error = one.next().await;
        assert_eq!(error["code"], "invalid_field", "{frame}: {error}");
        assert!(error["message"].as_str().unwrap().contains(names), "{frame}: {error}");
    }
}

#[tokio::test]
async fn a_frame_that_is_delivered_could_be_sent_again() {
    let stack = Stack::with(&NO_RULES).await;
    let (mut one, mut two) = pair(&stack).await;
    for (frame, code) in
        [(message(&nested(LEVELS - 2)), "unknown_type"), (direct(&nested(LEVELS - 1)), "missing_field")]
    {
        one.send_text(&frame).await;
        let delivered = two.next_text().await;
        assert_eq!(one.next().await["delivered"], 1);
        // It can be read, though it asks for nothing that exists.
        two.send_text(&delivered).await;
        assert_eq!(two.next().await["code"], code, "{delivered}");
    }
    for (frame, code, names) in [
        (message(&nested(LEVELS - 1)), "invalid_field", "125"),
        (message(&nested(LEVELS)), "malformed_json", "127"),
        (direct(&nested(LEVELS)), "malformed_json", "127"),
    ] {
        one.send_text(&frame).await;
        let error = one.next().await;
        assert_eq!(error["code"], code, "{frame}: {error}");
        assert!(error["message"].as_str().unwrap().contains(names), "{frame}: {error}");
    }
    two.hears_nothing().await;
}

//! Subscriptions to patterns, and the list of what a connection listens to.

use aws_sdk_dynamodb::types::AttributeValue;
use serde_json::{Value, json};
use switchboard_tests::client::Client;
use switchboard_tests::proxy::Proxy;
use switchboard_tests::stack::{NO_RULES, Stack, table_name};

use crate::rights::{connect, token, verified};

fn subscribe(topic: &str, id: &str) -> Value {
    json!({"type": "subscribe", "topic": topic, "id": id})
}

fn message(topic: &str, message: &str) -> Value {
    json!({"type": "message", "topic": topic, "message": message, "id": "m"})
}

/// Sends a frame and returns the code and the message of the error that answers it.
async fn refused(client: &mut Client, frame: Value) -> (String, String) {
    let error = client.ask(frame.clone()).await;
    assert_eq!(error["type"], "error", "{frame}: {error}");
    (error["code"].as_str().unwrap().to_owned(), error["message"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn a_pattern_hears_each_of_its_topics_once_and_says_which() {
    let stack = Stack::start().await;
    let (mut one, mut two) = (stack.connect("").await, stack.connect("").await);
    assert_eq!(one.ask(subscribe("room.*", "p")).await, json!({"type": "ack", "id": "p"}));
    for (topic, delivered) in [("room.7", 1), ("room.eu.7", 1), ("room", 0), ("hall.7", 0)] {
        assert_eq!(two.ask(message(topic, "hi")).await["delivered"], delivered, "{topic}");
        if delivered == 1 {
            let expected = format!(r#"{{"id":"p","payload":{{"data":"hi"}},"type":"data","topic":"{topic}"}}"#);
            assert_eq!(one.next_text().await, expected);
        }
    }
    // A connection that matches three times hears a message once, and what it named itself says how.
    two.ask(subscribe("room.eu.7", "plain")).await;
    one.ask(subscribe("room.eu.*", "q")).await;
    for (frame, expected) in [
        (None, r#"{"id":"q","payload":{"data":"hi"},"type":"data","topic":"room.eu.7"}"#),
        (Some(subscribe("room.eu.7", "s")), r#"{"id":"s","payload":{"data":"hi"},"type":"data"}"#),
        (
            Some(json!({"type": "unsubscribe", "topic": "room.eu.7", "id": "u"})),
            r#"{"id":"q","payload":{"data":"hi"},"type":"data","topic":"room.eu.7"}"#,
        ),
        (
            Some(json!({"type": "unsubscribe", "topic": "room.eu.*", "id": "u"})),
            r#"{"id":"p","payload":{"data":"hi"},"type":"data","topic":"room.eu.7"}"#,
        ),
    ] {
        if let Some(frame) = frame {
            assert_eq!(one.ask(frame).await["type"], "ack");
        }
        two.send(message("room.eu.7", "hi")).await;
        assert_eq!(one.next_text().await, expected);
        one.hears_nothing().await;
        // A subscriber that named the topic gets the same bytes as ever.
        let mut heard = [two.next_text().await, two.next_text().await];
        heard.sort();
        assert_eq!(heard[0], r#"{"id":"plain","payload":{"data":"hi"},"type":"data"}"#);
        assert!(heard[1].starts_with(r#"{"type":"ack","id":"m","delivered":2,"#), "{heard:?}");
    }
}

#[tokio::test]
async fn the_positions_of_a_pattern_are_those_of_the_real_topics() {
    let stack = Stack::start().await;
    let (mut one, mut two) = (stack.connect("?userId=1").await, stack.connect("?userId=2").await);
    let mut frame = subscribe("room.*", "p");
    frame["positions"] = json!(true);
    assert_eq!(one.ask(frame).await, json!({"type": "ack", "id": "p"}));
    for (topic, seq) in [("room.7", 1), ("room.8", 1), ("room.7", 2)] {
        let id = format!("m{seq}");
        let ack = two.ask(json!({"type": "message", "topic": topic, "message": "hi", "id": id})).await;
        let heard = one.next().await;
        assert_eq!((&ack["seq"], &heard["seq"], &heard["topic"]), (&json!(seq), &json!(seq), &json!(topic)));
        assert_eq!((&heard["epoch"], &heard["senderId"]), (&ack["epoch"], &json!("2")));
    }
    let position = json!({"epoch": "k3f9xq2a", "seq": 1});
    for (field, value) in [("after", position), ("last", json!(1))] {
        let mut frame = subscribe("room.*", "p");
        frame[field] = value.clone();
        let (code, text) = refused(&mut one, frame).await;
        assert_eq!(code, "invalid_field");
        assert!(text.contains("absent with a pattern, because a position is of one topic"), "{text}");
        let entries = json!([{"topic": "room.8"}, {"topic": "room.*", field: value}]);
        let ack = one.ask(json!({"type": "subscribe", "topics": entries, "id": "l"})).await;
        assert_eq!(
            (&ack["topics"][0], &ack["topics"][1]["code"]),
            (&json!({"topic": "room.8"}), &json!("invalid_field"))
        );
    }
}

#[tokio::test]
async fn a_pattern_that_no_rule_allows_is_an_error_that_names_it() {
    let stack = Stack::start().await;
    let mut one = stack.connect("?userId=1").await;
    let position = json!({"epoch": "k3f9xq2a", "seq": 1});
    for (name, frame) in [
        ("other.*", subscribe("other.*", "s")),
        ("*", subscribe("*", "s")),
        ("room.*.7", subscribe("room.*.7", "s")),
        ("room.**", subscribe("room.**", "s")),
        ("room..*", subscribe("room..*", "s")),
        ("room7*", subscribe("room7*", "s")),
        ("room.*", message("room.*", "hi")),
        ("a*b", message("a*b", "hi")),
        ("room.*", json!({"type": "history", "topic": "room.*"})),
        ("room.*", json!({"type": "ping", "positions": {"room.*": position}})),
    ] {
        let (code, text) = refused(&mut one, frame.clone()).await;
        assert_eq!(code, "forbidden_topic", "{frame}");
        assert!(text.starts_with(&format!("the name `{name}` is a pattern, because rules reserve `*`: ")), "{text}");
    }
    assert_eq!(stack.rows("topics").await.len(), 1, "only the user's address");

    // A backend has no better right: its event is given up.
    let string = |text: &str| AttributeValue::S(text.to_owned());
    let put = stack.dynamodb().await.put_item().table_name(table_name("events"));
    put.item("topic", string("room.*")).item("id", string("1")).item("data", string("x")).send().await.unwrap();
    stack.logged(1, &["publish |", "an event was given up", "the name `room.*` is a pattern"]).await;

    // A connection listens to as many patterns as topics.
    let entries: Vec<_> = (0..99).map(|number| json!({"topic": format!("room.{number}.*")})).collect();
    let ack = one.ask(json!({"type": "subscribe", "topics": entries, "id": "s"})).await;
    assert_eq!(ack["topics"].as_array().unwrap().len(), 99);
    assert_eq!(refused(&mut one, subscribe("room.*", "s")).await.0, "too_many_topics");
}

#[tokio::test]
async fn without_rules_a_star_is_a_character_like_others() {
    let stack = Stack::with(&NO_RULES).await;
    let mut one = stack.connect("").await;
    one.ask(subscribe("room.*", "p")).await;
    assert_eq!(one.ask(message("room.7", "hi")).await["delivered"], 0);
    one.send(json!({"type": "message", "topic": "room.*", "message": "hi"})).await;
    assert_eq!(one.next_text().await, r#"{"id":"p","payload":{"data":"hi"},"type":"data"}"#);
}

const RULES: &str = r#"TOPIC_RULES=[
    {"topic": "room.secret", "subscribe": "granted"},
    {"topic": "room.*", "wildcard": true},
    {"topic": "hall.*", "wildcard": true, "subscribe": "granted"}
]"#;

#[tokio::test]
async fn a_pattern_never_hears_what_a_rule_keeps_apart() {
    let stack = verified(RULES).await;
    let mut bob = connect(&stack, "bob", &json!(null)).await;
    for (topics, name, expected) in [
        (json!(null), "room.*", "none of its grants contains `room.*`"),
        (json!({"subscribe": ["room.7", "hall.7"]}), "room.*", "none of its grants contains `room.*`"),
        (json!({"subscribe": ["room.7", "hall.7"]}), "hall.*", "none of its grants contains `hall.*`"),
        (json!({"subscribe": ["room.secret"]}), "room.*", ""),
        (json!({"subscribe": ["hall.*"]}), "hall.eu.*", ""),
        (json!(null), "room.eu.*", ""),
    ] {
        let mut alice = connect(&stack, "alice", &topics).await;
        let answer = alice.ask(subscribe(name, "p")).await;
        assert_eq!(answer["type"] == "ack", expected.is_empty(), "{topics} {name}: {answer}");
        assert!(answer["message"].as_str().unwrap_or_default().ends_with(expected), "{answer}");
        for topic in ["room.secret", "hall.7"] {
            bob.ask(message(topic, "x")).await;
        }
        if name == "room.*" && expected.is_empty() {
            assert_eq!(alice.next().await["topic"], "room.secret");
        }
        alice.hears_nothing().await;
    }
    // A fresh token without the grant takes the pattern away.
    let mut alice = connect(&stack, "alice", &json!({"subscribe": ["room.secret"]})).await;
    alice.ask(subscribe("room.*", "p")).await;
    alice.ask(subscribe("room.eu.*", "q")).await;
    let renewed = alice.ask(json!({"action": "auth", "token": token("alice", 600, &json!(null)), "id": "a"})).await;
    assert_eq!(renewed, json!({"type": "ack", "id": "a", "removed": ["room.*"]}));
    assert_eq!(bob.ask(message("room.secret", "x")).await["delivered"], 0);
}

#[tokio::test]
async fn a_client_reads_what_it_listens_to() {
    let rules = ["--env", r#"TOPIC_RULES=[{"topic":"room.*","history":{"hours":24},"wildcard":true}]"#];
    let (proxy, stack) = Proxy::in_front(&rules, |_| None).await;
    let mut one = stack.connect("?userId=1").await;
    let mut nobody = stack.connect("").await;
    let ask = json!({"type": "topics", "id": "t"});
    assert_eq!(nobody.ask(json!({"type": "topics"})).await, json!({"type": "topics", "topics": []}));
    assert_eq!(one.ask(ask.clone()).await, json!({"type": "topics", "id": "t", "topics": [{"topic": "@me"}]}));
    let entries = json!([{"topic": "room.7", "positions": true}, {"topic": "news", "ttl": 4_102_444_800_i64}]);
    one.ask(json!({"type": "subscribe", "topics": entries, "id": "s"})).await;
    one.ask(subscribe("room.*", "p")).await;
    proxy.take();
    let expected = json!([
        {"topic": "@me"},
        {"topic": "news", "id": "s", "ttl": 4_102_444_800_i64},
        {"topic": "room.*", "id": "p"},
        {"topic": "room.7", "id": "s", "positions": true},
    ]);
    assert_eq!(one.ask(ask.clone()).await["topics"], expected);
    assert_eq!(proxy.take(), ["GetItem", "BatchGetItem", "POST"]);
    // The set in the connection's row still names it, but only rows count.
    one.ask(json!({"type": "unsubscribe", "topic": "room.*", "id": "u"})).await;
    assert_eq!(one.ask(ask.clone()).await["topics"].as_array().unwrap().len(), 3);
    for row in stack.rows("connections").await {
        let delete = stack.dynamodb().await.delete_item().table_name(table_name("connections"));
        delete.key("connectionId", row["connectionId"].clone()).send().await.unwrap();
    }
    assert_eq!(refused(&mut one, ask).await.0, "unidentified");
}

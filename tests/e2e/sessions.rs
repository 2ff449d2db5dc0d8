//! Sessions: they end with their token, `auth` frames renew them, and backends end them.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use switchboard_tests::client::Client;
use switchboard_tests::proxy::Proxy;
use switchboard_tests::stack::{PATIENCE, Stack, matching, number, table_name, text};
use tokio_tungstenite::tungstenite::Message;

use crate::rights::{RULES, connect, token, verified};

/// A token is good for this long after its `exp`, so a session may be shorter than tokens usually are.
const LEEWAY_S: i64 = 60;

fn now_s() -> i64 {
    i64::try_from(jsonwebtoken::get_current_timestamp()).unwrap()
}

fn auth(token: &str) -> Value {
    json!({"action": "auth", "token": token, "id": "a"})
}

/// The ends of all rows of both tables.
async fn ends(stack: &Stack) -> Vec<i64> {
    let rows = [stack.rows("connections").await, stack.rows("topics").await].concat();
    rows.iter().map(|row| number(row, "ttl")).collect()
}

#[tokio::test]
async fn a_session_ends_with_its_token_and_its_frames_say_so() {
    let stack = verified(RULES).await;
    let mut other = connect(&stack, "other", &json!({"publish": ["hall.*"]})).await;
    // Three seconds are left of it.
    let short = token("1", 3 - LEEWAY_S, &json!({"subscribe": ["hall.*"], "publish": ["*"]}));
    let mut one = stack.connect(&format!("?token={short}")).await;
    one.ask(json!({"type": "subscribe", "topic": "hall.1", "id": "s"})).await;
    let rows = [stack.rows("connections").await, stack.rows("topics").await].concat();
    let mine: Vec<_> = rows.iter().filter(|row| number(row, "ttl") <= now_s() + 3).collect();
    assert_eq!(mine.len(), 3, "the connection, its address and its topic: {rows:?}");

    let ended = loop {
        let answer = one.ask(json!({"type": "ping"})).await;
        if answer["type"] != "pong" {
            break answer;
        }
    };
    assert_eq!(ended["code"], "unidentified");
    assert_eq!(ended["message"], "this connection is not registered, or its session has ended; connect again");
    for frame in [
        json!({"type": "ping", "quiet": true}),
        json!({"type": "subscribe", "topic": "news"}),
        json!({"type": "subscribe", "topic": "members"}),
        json!({"type": "unsubscribe", "topic": "hall.1"}),
        json!({"action": "sendMessage", "destinationUserId": "other", "body": "x"}),
        json!({"type": "message", "topic": "members", "message": "x"}),
        json!({"type": "message", "topic": "hall.1", "message": "x"}),
        json!({"type": "message", "topic": "room.1", "message": "x"}),
        json!({"type": "history", "topic": "room.1"}),
        auth(&token("1", 600, &json!(null))),
    ] {
        assert_eq!(one.ask(frame.clone()).await["code"], "unidentified", "{frame}");
    }
    // It hears nothing more, neither from the topic nor from users.
    let ack = other.ask(json!({"type": "message", "topic": "hall.1", "message": "x", "id": "m"})).await;
    assert_eq!(ack["delivered"], 0);
    let offline = other.ask(json!({"action": "sendMessage", "destinationUserId": "1", "body": "x"})).await;
    assert_eq!(offline["code"], "user_offline");
    // Where no rule asks who somebody is, nobody looks.
    let ack = one.ask(json!({"type": "message", "topic": "news", "message": "x", "id": "m"})).await;
    assert_eq!(ack["type"], "ack");
}

#[tokio::test]
async fn a_fresh_token_makes_the_session_longer_and_changes_its_rights() {
    let stack = verified(RULES).await;
    let mut other = connect(&stack, "other", &json!({"publish": ["hall.*"]})).await;
    let first = token("1", 300, &json!({"subscribe": ["hall.*"], "publish": ["hall.1"]}));
    let mut one = stack.connect(&format!("?token={first}")).await;
    let client_end_s = now_s() + 400;
    for (topic, ttl) in [("hall.1", None), ("hall.2", None), ("news", None), ("soon", Some(client_end_s))] {
        one.ask(json!({"type": "subscribe", "topic": topic, "ttl": ttl, "id": "s"})).await;
    }
    one.ask(json!({"type": "unsubscribe", "topic": "hall.2", "id": "u"})).await;
    one.ask(json!({"type": "subscribe", "topic": "hall.3", "id": "s"})).await;

    // Subscriptions that are no longer allowed end. The ack does not name a topic that ended before.
    let second = token("1", 600, &json!({"subscribe": ["hall.3"], "publish": ["hall.2"]}));
    assert_eq!(one.ask(auth(&second)).await, json!({"type": "ack", "id": "a", "removed": ["hall.1"]}));
    assert_eq!(one.ask(auth(&second)).await, json!({"type": "ack", "id": "a"}));
    let rows = stack.rows("topics").await;
    let end_s = |topic: &str| rows.iter().find(|row| text(row, "topic") == topic).map(|row| number(row, "ttl"));
    let expected_s = now_s() + 600 + LEEWAY_S;
    for topic in ["@1", "hall.3", "news"] {
        let end_s = end_s(topic).unwrap();
        assert!((expected_s - 10..=expected_s).contains(&end_s), "{topic}: {end_s} {expected_s}");
    }
    assert_eq!((end_s("soon"), end_s("hall.1"), end_s("hall.2")), (Some(client_end_s), None, None));
    for (topic, delivered) in [("hall.1", 0), ("hall.3", 1)] {
        let ack = other.ask(json!({"type": "message", "topic": topic, "message": topic, "id": "m"})).await;
        assert_eq!(ack["delivered"], delivered);
    }
    assert_eq!(one.next().await["payload"]["data"], "hall.3");
    for (frame, code) in [
        (json!({"type": "subscribe", "topic": "hall.1"}), Some("forbidden_topic")),
        (json!({"type": "message", "topic": "hall.1", "message": 1}), Some("forbidden_topic")),
        (json!({"type": "message", "topic": "hall.2", "message": 1}), None),
    ] {
        let mut frame = frame;
        frame["id"] = json!("f");
        assert_eq!(one.ask(frame).await["code"].as_str(), code);
    }
    // A frame without an `id` hears only of what was taken away.
    let mut third = auth(&token("1", 30, &json!(null)));
    third.as_object_mut().unwrap().remove("id");
    assert_eq!(one.ask(third.clone()).await, json!({"type": "ack", "removed": ["hall.3"]}));
    one.send(third).await;
    one.hears_nothing().await;
    let ends = ends(&stack).await;
    assert_eq!(ends.iter().filter(|end_s| **end_s <= now_s() + 30 + LEEWAY_S).count(), 4, "{ends:?}");
    let log = stack.whole_log().await;
    assert_eq!(matching(&log, &["eyJ"]), Vec::<String>::new(), "a token is in the log");
}

#[tokio::test]
async fn a_token_that_does_not_count_changes_nothing() {
    let stack = verified(RULES).await;
    let mut one = connect(&stack, "1", &json!({"subscribe": ["hall.*"]})).await;
    one.ask(json!({"type": "subscribe", "topic": "hall.1", "id": "s"})).await;
    let before = [stack.rows("connections").await, stack.rows("topics").await];
    let good = token("1", 600, &json!(null));
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let other = if signature.starts_with('A') { 'B' } else { 'A' };
    let forged = format!("{signed}.{other}{}", &signature[1..]);
    for (frame, code, names) in [
        (auth(&token("2", 600, &json!({"subscribe": ["*"]}))), "invalid_token", "the token is another user's"),
        (auth(&token("1", -LEEWAY_S - 10, &json!(null))), "invalid_token", "the token has expired"),
        (auth(&token("1", 600, &json!({"subscribe": ["a*b"]}))), "invalid_token", "`topics.subscribe[0]` may have"),
        (auth(&token("1", 600, &json!({"subscribe": vec!["t"; 1000]}))), "invalid_token", "at most 100 patterns"),
        (auth(&forged), "invalid_token", "the token's signature is wrong"),
        (auth("x"), "invalid_token", "the token is not a JSON Web Token"),
        (auth(""), "invalid_token", "the token is not a JSON Web Token"),
        (json!({"action": "auth", "id": "a"}), "missing_field", "`token`"),
        (json!({"action": "auth", "token": null, "id": "a"}), "missing_field", "`token`"),
        (json!({"action": "auth", "token": 7, "id": "a"}), "invalid_field", "`token` must be a string"),
        (json!({"type": "auth", "token": good, "id": "a"}), "unknown_type", "`auth`"),
    ] {
        let error = one.ask(frame.clone()).await;
        assert_eq!(
            (&error["code"], &error["id"], &error["temporary"]),
            (&json!(code), &json!("a"), &json!(false)),
            "{frame}"
        );
        assert!(error["message"].as_str().unwrap().contains(names), "{error}");
    }
    assert_eq!([stack.rows("connections").await, stack.rows("topics").await], before);
    let log = stack.whole_log().await;
    assert_eq!(matching(&log, &["eyJ"]), Vec::<String>::new(), "a token is in the log");
}

#[tokio::test]
async fn a_stage_without_keys_and_a_connection_without_a_user_take_no_token() {
    let stack = Stack::start().await;
    let good = token("1", 600, &json!(null));
    for query in ["?userId=1", ""] {
        let error = stack.connect(query).await.ask(auth(&good)).await;
        assert_eq!(error["code"], "invalid_token");
        assert_eq!(error["message"], "there is a token, but no keys are configured");
    }
    let mode = "IDENTITY_MODE=open-with-tokens";
    let stack = Stack::with(&["--env", crate::rights::KEYS, "--env", mode, "--env", RULES]).await;
    let mut nobody = stack.connect("").await;
    assert_eq!(
        nobody.ask(auth(&good)).await["message"],
        "the token is another user's, and a connection never changes its user"
    );
    // A client that has said that it is 1 may prove it, and gets what the token grants.
    let mut one = stack.connect("?userId=1").await;
    let topics = json!({"subscribe": ["hall.*"]});
    assert_eq!(one.ask(auth(&token("1", 600, &topics))).await, json!({"type": "ack", "id": "a"}));
    assert_eq!(one.ask(json!({"type": "subscribe", "topic": "hall.1", "id": "s"})).await["type"], "ack");
}

/// The right is there when a subscribe looks for it, and gone before its row is written.
#[tokio::test]
async fn a_right_that_is_taken_away_during_a_subscribe_leaves_no_row() {
    let arguments = ["--env", crate::rights::KEYS, "--env", "IDENTITY_MODE=verified", "--env", RULES];
    let (proxy, stack) = Proxy::in_front(&arguments, |_| None).await;
    let mut one = connect(&stack, "1", &json!({"subscribe": ["hall.1"]})).await;
    proxy.take();
    // An attempt of a call may take 1.5 s.
    proxy.delay("BatchWriteItem", Duration::from_secs(1));
    one.send(json!({"type": "subscribe", "topic": "hall.1", "id": "s"})).await;
    proxy.called("BatchWriteItem").await;
    assert_eq!(one.ask(auth(&token("1", 600, &json!(null)))).await, json!({"type": "ack", "id": "a"}));
    let refused = one.next().await;
    assert_eq!((&refused["id"], &refused["code"]), (&json!("s"), &json!("forbidden_topic")));
    let topics: Vec<_> = stack.rows("topics").await.iter().map(|row| text(row, "topic")).collect();
    assert_eq!(topics, ["@1"]);
}

#[tokio::test]
async fn auth_frames_are_limited_like_others() {
    let limit = "MAX_FRAMES_PER_SECOND=1";
    let stack = Stack::with(&["--env", crate::rights::KEYS, "--env", "IDENTITY_MODE=verified", "--env", limit]).await;
    let mut one = connect(&stack, "1", &json!(null)).await;
    // One frame after the other is served by one environment.
    let mut codes = Vec::new();
    while one.socket.send(Message::text(auth("x").to_string())).await.is_ok() {
        match tokio::time::timeout(PATIENCE, one.socket.next()).await.expect("no frame came") {
            Some(Ok(Message::Text(text))) => {
                codes.push(serde_json::from_str::<Value>(&text).unwrap()["code"].as_str().unwrap().to_owned());
            }
            _ => break,
        }
    }
    stack.logged(1, &["connect |", "it goes on sending too fast"]).await;
    codes.dedup();
    assert!(codes.starts_with(&["invalid_token".to_owned(), "rate_limited".to_owned()]), "{codes:?}");
}

async fn put(stack: &Stack, topic: &str, id: &str, attributes: &[(&str, AttributeValue)]) {
    let string = |text: &str| AttributeValue::S(text.to_owned());
    let mut put = stack.dynamodb().await.put_item().table_name(table_name("events"));
    put = put.item("topic", string(topic)).item("id", string(id));
    for (name, value) in attributes {
        put = put.item(*name, value.clone());
    }
    put.send().await.unwrap();
}

/// Waits for the frame that says why the connection ends, and then for its end.
async fn is_ended(client: &mut Client, reason: &str) {
    let expected = json!({"type": "error", "code": "disconnected", "message": reason, "temporary": false});
    assert_eq!(client.next().await, expected);
    tokio::time::timeout(Duration::from_secs(20), client.closed()).await.unwrap();
}

#[tokio::test]
async fn a_backend_ends_all_connections_of_a_user_and_says_why() {
    let stack = Stack::start().await;
    let (mut phone, mut desk) = (stack.connect("?userId=2").await, stack.connect("?userId=2").await);
    let mut other = stack.connect("?userId=3").await;
    desk.ask(json!({"type": "subscribe", "topic": "t", "id": "s"})).await;
    let on = AttributeValue::Bool(true);
    put(
        &stack,
        "@2",
        "1",
        &[("disconnect", on.clone()), ("reason", AttributeValue::S("your account is closed".to_owned()))],
    )
    .await;
    is_ended(&mut phone, "your account is closed").await;
    is_ended(&mut desk, "your account is closed").await;
    stack.logged(1, &["publish |", "connections were ended", "\"count\":2"]).await;
    stack.settled("connections", 1).await;
    stack.settled("topics", 1).await;
    // Direct messages are kept in `dev`, and this is none.
    let heads = stack.all_rows("messages").await;
    assert_eq!(heads, [], "the event took a number");
    other.hears_nothing().await;

    // The user may come back, and without a reason there is a sentence of ours.
    let mut again = stack.connect("?userId=2").await;
    put(&stack, "@2", "2", &[("disconnect", on.clone())]).await;
    is_ended(&mut again, "a backend has ended this connection").await;
    // Nobody is there, and what is wrong holds up nobody.
    put(&stack, "@2", "3", &[("disconnect", on.clone())]).await;
    put(&stack, "general", "4", &[("disconnect", on)]).await;
    stack.logged(1, &["publish |", "connections were ended", "\"count\":0"]).await;
    stack
        .logged(1, &["publish |", "poison", "`topic` must be the address of a user where there is `disconnect`"])
        .await;
}

//! Direct messages between users.

use serde_json::json;
use switchboard_tests::stack::{NO_RULES, Stack};

#[tokio::test]
async fn user_1_writes_to_user_2() {
    let stack = Stack::start().await;
    let mut one = stack.connect("?userId=1").await;
    let mut two = stack.connect("?userId=2").await;
    one.send_text(r#"{"action":"sendMessage","destinationUserId":"2","body":"hello there!"}"#).await;
    assert_eq!(two.next_text().await, r#"{"senderId":"1","body":"hello there!"}"#);
    two.send(json!({"action": "sendMessage", "destinationUserId": "1", "body": "hello back"})).await;
    assert_eq!(one.next().await, json!({"senderId": "2", "body": "hello back"}));
}

#[tokio::test]
async fn every_device_of_a_user_receives_and_closing_one_leaves_the_others() {
    let stack = Stack::with(&NO_RULES).await;
    let mut sender = stack.connect("?userId=1").await;
    let mut phone = stack.connect("?userId=2").await;
    let mut desk = stack.connect("?userId=2").await;
    let tablet = stack.connect("?userId=2").await;

    let frame = |id: &str| json!({"action": "sendMessage", "destinationUserId": "2", "body": id, "id": id});
    assert_eq!(sender.ask(frame("a")).await, json!({"type": "ack", "id": "a", "delivered": 3}));
    for device in [&mut phone, &mut desk] {
        assert_eq!(device.next().await, json!({"senderId": "1", "body": "a"}));
    }

    tablet.close().await;
    stack.settled("connections", 3).await;
    stack.settled("topics", 3).await;
    assert_eq!(sender.ask(frame("b")).await, json!({"type": "ack", "id": "b", "delivered": 2}));
    for device in [&mut phone, &mut desk] {
        assert_eq!(device.next().await, json!({"senderId": "1", "body": "b"}));
    }
}

#[tokio::test]
async fn a_user_can_write_to_their_own_devices() {
    let stack = Stack::start().await;
    let mut one = stack.connect("?userId=1").await;
    one.send(json!({"action": "sendMessage", "destinationUserId": "1", "body": "note"})).await;
    assert_eq!(one.next().await, json!({"senderId": "1", "body": "note"}));
}

#[tokio::test]
async fn a_message_to_nobody_is_answered_with_user_offline() {
    let stack = Stack::with(&NO_RULES).await;
    let mut one = stack.connect("?userId=1").await;
    let frame = json!({"action": "sendMessage", "destinationUserId": "nobody", "body": "?", "id": "7"});
    let error = one.ask(frame).await;
    assert_eq!((&error["type"], &error["code"], &error["id"]), (&json!("error"), &json!("user_offline"), &json!("7")));
    assert!(error["message"].as_str().unwrap().contains("`nobody`"), "{error}");
    let request = error["requestId"].as_str().unwrap();
    stack.logged(1, &["sendMessage |", request, "user_offline"]).await;
}

#[tokio::test]
async fn an_anonymous_connection_cannot_send_but_can_use_topics() {
    let stack = Stack::start().await;
    let mut nobody = stack.connect("").await;
    let two = stack.connect("?userId=2").await;
    let error = nobody.ask(json!({"action": "sendMessage", "destinationUserId": "2", "body": "hi"})).await;
    assert_eq!(error["code"], "unidentified");
    let ack = nobody.ask(json!({"type": "subscribe", "topic": "general", "id": "s"})).await;
    assert_eq!(ack, json!({"type": "ack", "id": "s"}));
    drop(two);
}

#[tokio::test]
async fn the_sender_is_who_connected_whatever_the_frame_says() {
    let stack = Stack::start().await;
    let mut mallory = stack.connect("?userId=mallory").await;
    let mut two = stack.connect("?userId=2").await;
    let forged =
        json!({"action": "sendMessage", "destinationUserId": "2", "body": "x", "senderId": "1", "userId": "1"});
    mallory.send(forged).await;
    assert_eq!(two.next().await, json!({"senderId": "mallory", "body": "x"}));
}

#[tokio::test]
async fn any_json_arrives_as_it_was_sent() {
    let stack = Stack::start().await;
    let mut one = stack.connect("?userId=1").await;
    let mut two = stack.connect("?userId=2").await;
    for body in ["null", "0", "123456789012345678901234567890", r#"{"b":1.0,"a":[]}"#, r#""é\u0000\n""#, r#""🦀""#] {
        one.send_text(&format!(r#"{{"action":"sendMessage","destinationUserId":"2","body":{body}}}"#)).await;
        assert_eq!(two.next_text().await, format!(r#"{{"senderId":"1","body":{body}}}"#));
    }
}

#[tokio::test]
async fn unicode_user_ids_work() {
    let stack = Stack::start().await;
    let mut one = stack.connect("?userId=%D1%8E%D0%BB%D0%B8%D1%8F").await;
    let mut two = stack.connect("?userId=a%2Bb%40example.com").await;
    one.send(json!({"action": "sendMessage", "destinationUserId": "a+b@example.com", "body": 1})).await;
    assert_eq!(two.next().await, json!({"senderId": "юлия", "body": 1}));
}

#[tokio::test]
async fn two_hundred_messages_of_one_connection_all_arrive() {
    // More than a client may send at once where one environment serves all of it.
    let stack = Stack::with(&["--env", "MAX_FRAMES_PER_SECOND=0"]).await;
    let mut one = stack.connect("?userId=1").await;
    let mut two = stack.connect("?userId=2").await;
    for count in 0..200 {
        one.send(json!({"action": "sendMessage", "destinationUserId": "2", "body": count})).await;
    }
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < 200 {
        let frame = two.next().await;
        assert!(seen.insert(frame["body"].as_u64().unwrap()), "twice: {frame}");
    }
    one.hears_nothing().await;
}

//! Direct messages that are kept for users who are away, events that are kept, and several messages in one frame.

use aws_sdk_dynamodb::types::AttributeValue;
use serde_json::{Value, json};
use switchboard_tests::proxy::Proxy;
use switchboard_tests::stack::{Stack, table_name, text};

use crate::history::kept;

fn direct(body: &str, id: &str) -> Value {
    json!({"action": "sendMessage", "destinationUserId": "2", "body": body, "id": id})
}

/// Puts an event as a backend does, or the same one once more.
async fn put_event(stack: &Stack, topic: &str, id: &str, attributes: &[(&str, &str)]) {
    let string = |text: &str| AttributeValue::S(text.to_owned());
    let mut put = stack.dynamodb().await.put_item().table_name(table_name("events"));
    for (name, value) in [("topic", topic), ("id", id)].iter().chain(attributes) {
        put = put.item(*name, string(value));
    }
    put.send().await.unwrap();
}

async fn delete_event(stack: &Stack, topic: &str, id: &str) {
    let string = |text: &str| AttributeValue::S(text.to_owned());
    let delete = stack.dynamodb().await.delete_item().table_name(table_name("events"));
    delete.key("topic", string(topic)).key("id", string(id)).send().await.unwrap();
}

#[tokio::test]
async fn a_direct_message_to_a_user_who_is_away_is_stored_and_each_device_reads_it_from_its_own_position() {
    let stack = Stack::start().await;
    let mut one = stack.connect("?userId=1").await;
    let mut phone = stack.connect("?userId=2").await;
    let mut desk = stack.connect("?userId=2").await;
    let subscribe = json!({"type": "subscribe", "topic": "@me", "id": "s", "positions": true});
    let start = phone.ask(subscribe).await;
    let epoch = start["epoch"].as_str().unwrap().to_owned();
    // The desk never asked for positions, and hears the frame that it always heard.
    let ack = one.ask(direct("a", "m1")).await;
    assert_eq!(ack, json!({"type": "ack", "id": "m1", "delivered": 2, "epoch": epoch, "seq": 1}));
    assert_eq!(phone.next().await, json!({"senderId": "1", "body": "a", "epoch": epoch, "seq": 1}));
    assert_eq!(desk.next_text().await, r#"{"senderId":"1","body":"a"}"#);
    phone.close().await;
    stack.settled("connections", 2).await;
    one.ask(direct("b", "m2")).await;
    assert_eq!(desk.next_text().await, r#"{"senderId":"1","body":"b"}"#);
    desk.close().await;
    stack.settled("connections", 1).await;

    let stored = json!({"type": "ack", "id": "m3", "delivered": 0, "stored": true, "epoch": epoch, "seq": 3});
    assert_eq!(one.ask(direct("c", "m3")).await, stored);
    let mut repeated = direct("c", "m3");
    repeated["again"] = json!(true);
    let ack = one.ask(repeated).await;
    assert_eq!((&ack["seq"], &ack["duplicate"], &ack["stored"]), (&json!(3), &json!(true), &json!(true)));

    for (seq, expected) in [(1, vec!["b", "c"]), (2, vec!["c"]), (3, vec![])] {
        let mut back = stack.connect("?userId=2").await;
        let after = json!({"epoch": epoch, "seq": seq});
        back.send(json!({"type": "subscribe", "topic": "@me", "id": "s", "after": after})).await;
        let mut found = Vec::new();
        let ack = loop {
            let frame = back.next().await;
            if frame["type"] == "ack" {
                break frame;
            }
            assert_eq!((&frame["type"], &frame["topic"]), (&json!("history"), &json!("@me")));
            found.extend(frame["messages"].as_array().unwrap().iter().map(|entry| entry["data"].clone()));
        };
        assert_eq!(found, expected);
        assert_eq!(ack, json!({"type": "ack", "id": "s", "epoch": epoch, "seq": 3, "recovered": true}));
    }
    // Nobody else reads them.
    let history = one.ask(json!({"type": "history", "topic": "@2"})).await;
    assert_eq!(history["code"], "forbidden_topic");
}

#[tokio::test]
async fn what_cannot_be_stored_for_a_user_is_a_clear_mistake() {
    let stack = Stack::start().await;
    let mut one = stack.connect("?userId=1").await;
    one.ask(direct("a", "m1")).await;
    let mut without_id = direct("a", "m2");
    without_id.as_object_mut().unwrap().remove("id");
    without_id["again"] = json!(true);
    for (frame, code, names) in [
        (direct("b", "m1"), "invalid_field", "`id` must be one that this sender has not used"),
        (direct(&"x".repeat(32 * 1024 - 1), "m2"), "invalid_field", "`body` must be at most 32768 bytes"),
        (without_id, "missing_field", "`id`"),
    ] {
        crate::mistakes::send_in_fragments(&mut one, &frame.to_string()).await;
        let error = one.next().await;
        assert_eq!(error["code"], code, "{error}");
        assert!(error["message"].as_str().unwrap().contains(names), "{error}");
    }
    let mut nobody = stack.connect("").await;
    assert_eq!(nobody.ask(direct("a", "m1")).await["code"], "unidentified");
    let messages = kept(&stack, "@2").await.into_iter().filter(|row| !row.contains_key("hole"));
    assert_eq!(messages.count(), 1);
}

/// It compares with the table in crates/REFERENCE.md.
#[tokio::test]
async fn what_is_kept_costs_the_documented_write_units() {
    let (proxy, stack) = Proxy::in_front(&[], |_| None).await;
    let mut one = stack.connect("?userId=1").await;
    proxy.take();
    proxy.take_write_units();
    let message = |topic: &str, more: Value| {
        let mut frame = json!({"type": "message", "topic": topic});
        frame.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        frame
    };
    for (frame, units) in [
        (direct("a", "m1"), 3.0),
        (message("room.7", json!({"message": 1, "id": "m1"})), 3.0),
        // DynamoDB charges for a write whose condition fails, too, but its error does not say so.
        (message("room.7", json!({"message": 1, "id": "m1", "again": true})), 0.0),
        (message("room.7", json!({"messages": [1, 2, 3], "id": "m2"})), 8.0),
        (message("general", json!({"message": 1, "id": "m1"})), 0.0),
        (message("general", json!({"messages": [1, 2, 3], "id": "m2"})), 0.0),
    ] {
        one.ask(frame.clone()).await;
        assert_eq!(proxy.take_write_units(), units, "{frame}");
    }
    one.send(message("room.7", json!({"message": 1}))).await;
    stack.logged(6, &["default |", "served"]).await;
    assert_eq!(proxy.take_write_units(), 2.0);
    // The backend's own write does not come through here.
    put_event(&stack, "room.7", "e1", &[("data", "x")]).await;
    stack.logged(1, &["publish |", "\"published\""]).await;
    assert_eq!(proxy.take_write_units(), 3.0);
}

/// The stream may bring an event again, and a backend may put it again after it was deleted.
#[tokio::test]
async fn an_event_has_one_number_however_often_it_comes() {
    let stack = Stack::start().await;
    let mut one = stack.connect("?userId=1").await;
    for topic in ["room.7", "@me"] {
        one.ask(json!({"type": "subscribe", "topic": topic, "id": "s", "positions": true})).await;
    }
    let of_topic = [("data", "deploy done")];
    let of_user = [("body", "hi"), ("senderId", "7")];
    for _ in 0..2 {
        put_event(&stack, "room.7", "e1", &of_topic).await;
        let frame = one.next().await;
        assert_eq!(
            (&frame["payload"]["data"], &frame["topic"], &frame["seq"]),
            (&json!("deploy done"), &json!("room.7"), &json!(1))
        );
        assert!(frame.get("senderId").is_none());
        put_event(&stack, "@1", "e1", &of_user).await;
        let frame = one.next().await;
        assert_eq!(frame, json!({"senderId": "7", "body": "hi", "epoch": frame["epoch"], "seq": 1}));
        delete_event(&stack, "room.7", "e1").await;
        delete_event(&stack, "@1", "e1").await;
    }
    for topic in ["room.7", "@1"] {
        let messages: Vec<_> = kept(&stack, topic).await.into_iter().filter(|row| !row.contains_key("hole")).collect();
        assert_eq!(messages.len(), 1, "{topic}");
        assert!(text(&messages[0], "s").ends_with("/000000000001"));
    }
    // The same id with another payload is another event, and nobody can say which of the two has the number.
    put_event(&stack, "room.7", "e1", &[("data", "other")]).await;
    stack.logged(1, &["publish |", "poison", "`id` must be one that this sender has not used"]).await;
    put_event(&stack, "room.7", "e2", &[("data", &"x".repeat(32 * 1024))]).await;
    stack.logged(1, &["publish |", "poison", "`data` must be at most 32768 bytes"]).await;
    put_event(&stack, "room.7", "e3", &of_topic).await;
    assert_eq!(one.next().await["payload"]["data"], "deploy done");
}

#[tokio::test]
async fn several_messages_of_one_frame_are_kept_and_delivered_together() {
    let stack = Stack::start().await;
    let mut one = stack.connect("?userId=1").await;
    let mut two = stack.connect("?userId=2").await;
    let mut plain = stack.connect("?userId=3").await;
    let start = two.ask(json!({"type": "subscribe", "topic": "room.7", "id": "s", "positions": true})).await;
    plain.ask(json!({"type": "subscribe", "topic": "room.7", "id": "p"})).await;
    let frame = json!({"type": "message", "topic": "room.7", "messages": ["a", null, {"n": 1}], "id": "m1"});
    let epoch = &start["epoch"];
    let ack = one.ask(frame.clone()).await;
    assert_eq!(ack, json!({"type": "ack", "id": "m1", "delivered": 2, "epoch": epoch, "seq": 3}));
    let mut repeated = frame.clone();
    repeated["again"] = json!(true);
    assert_eq!(one.ask(repeated).await["duplicate"], true);
    for _ in 0..2 {
        for (seq, data) in (1..).zip(["\"a\"", "null", r#"{"n":1}"#]) {
            let expected = format!(
                r#"{{"id":"s","payload":{{"data":{data}}},"type":"data","topic":"room.7","senderId":"1","epoch":{epoch},"seq":{seq}}}"#
            );
            assert_eq!(two.next_text().await, expected);
            assert_eq!(plain.next_text().await, format!(r#"{{"id":"p","payload":{{"data":{data}}},"type":"data"}}"#));
        }
    }
    assert_eq!(kept(&stack, "room.7").await.len(), 3);

    // On a topic without history they are delivered as well, and a wrong one spoils all.
    plain.ask(json!({"type": "subscribe", "topic": "t", "id": "p"})).await;
    let ack = one.ask(json!({"type": "message", "topic": "t", "messages": [1, 2], "id": "m2"})).await;
    assert_eq!(ack, json!({"type": "ack", "id": "m2", "delivered": 1}));
    for data in [1, 2] {
        assert_eq!(plain.next().await["payload"]["data"], data);
    }
    let long = "x".repeat(33 * 1024);
    let too_long = json!({"type": "message", "topic": "room.7", "messages": [1, long], "id": "m3"});
    crate::mistakes::send_in_fragments(&mut one, &too_long.to_string()).await;
    let error = one.next().await;
    assert_eq!((&error["code"], &error["id"]), (&json!("invalid_field"), &json!("m3")));
    assert_eq!(kept(&stack, "room.7").await.len(), 3);
}

//! Topics with history: what is kept, and what senders and subscribers hear of it.

use aws_sdk_dynamodb::types::AttributeValue;
use serde_json::{Value, json};
use switchboard_tests::proxy::{Proxy, answer};
use switchboard_tests::stack::{NO_RULES, Row, Stack, number, table_name, text};

use crate::mistakes::send_in_fragments;

/// Rules with nothing but history: calls are counted.
pub const HISTORY: [&str; 2] =
    ["--env", r#"TOPIC_RULES=[{"topic":"room.*","history":{"hours":24}},{"topic":"@*","history":{"hours":72}}]"#];

/// The messages and tombstones of a topic, in the order of their numbers.
pub async fn kept(stack: &Stack, topic: &str) -> Vec<Row> {
    let partition = format!("m:{topic}");
    let mut rows = stack.all_rows("messages").await;
    rows.retain(|row| text(row, "p") == partition);
    rows.sort_by_key(|row| text(row, "s"));
    rows
}

fn message(topic: &str, message: impl Into<Value>, id: &str) -> Value {
    let message = message.into();
    json!({"type": "message", "topic": topic, "message": message, "id": id})
}

fn again(mut frame: Value) -> Value {
    frame["again"] = json!(true);
    frame
}

#[tokio::test]
async fn the_ack_of_a_message_says_where_it_is_kept_and_subscribers_hear_what_they_always_did() {
    let stack = Stack::start().await;
    let mut one = stack.connect("?userId=1").await;
    let mut two = stack.connect("?userId=2").await;
    two.ask(json!({"type": "subscribe", "topic": "room.7", "id": "s"})).await;
    let ack = one.ask(message("room.7", json!("hi"), "m1")).await;
    let epoch = ack["epoch"].as_str().unwrap().to_owned();
    assert_eq!(ack, json!({"type": "ack", "id": "m1", "delivered": 1, "epoch": epoch, "seq": 1}));
    assert_eq!(two.next_text().await, r#"{"id":"s","payload":{"data":"hi"},"type":"data"}"#);
    // Without an id there is no ack, and the message is kept all the same.
    one.send(json!({"type": "message", "topic": "room.7", "message": {"n": 1.0}})).await;
    assert_eq!(two.next_text().await, r#"{"id":"s","payload":{"data":{"n":1.0}},"type":"data"}"#);
    one.hears_nothing().await;

    let rows = kept(&stack, "room.7").await;
    let found: Vec<_> = rows.iter().map(|row| (text(row, "s"), text(row, "json"), text(row, "senderId"))).collect();
    let expected = [("000000000001", r#""hi""#), ("000000000002", r#"{"n":1.0}"#)];
    assert_eq!(found, expected.map(|(seq, json)| (format!("{epoch}/{seq}"), json.to_owned(), "1".to_owned())));
    for row in &rows {
        assert!((0..=1).contains(&(number(row, "ttl") - number(row, "at") / 1000 - 24 * 3600)));
    }
}

#[tokio::test]
async fn a_subscriber_that_asks_for_positions_gets_them_and_the_others_do_not() {
    let stack = Stack::start().await;
    let mut one = stack.connect("?userId=1").await;
    let mut asks = stack.connect("").await;
    let mut plain = stack.connect("").await;
    for topic in ["room.7", "general"] {
        let subscribe = json!({"type": "subscribe", "topic": topic, "id": "s", "positions": true});
        let ack = asks.ask(subscribe).await;
        let expected = match topic {
            "general" => json!({"type": "ack", "id": "s"}),
            _ => json!({"type": "ack", "id": "s", "epoch": ack["epoch"], "seq": 0}),
        };
        assert_eq!(ack, expected);
        plain.ask(json!({"type": "subscribe", "topic": topic, "id": "s", "positions": false})).await;
    }
    for sender in ["1", ""] {
        let mut nobody = stack.connect("").await;
        let from = if sender.is_empty() { &mut nobody } else { &mut one };
        let ack = from.ask(message("room.7", "hi", "m")).await;
        let mut expected = r#"{"id":"s","payload":{"data":"hi"},"type":"data","topic":"room.7","#.to_owned();
        if !sender.is_empty() {
            expected.push_str(r#""senderId":"1","#);
        }
        expected.push_str(&format!(r#""epoch":{},"seq":{}}}"#, ack["epoch"], ack["seq"]));
        assert_eq!(asks.next_text().await, expected);
        assert_eq!(plain.next_text().await, r#"{"id":"s","payload":{"data":"hi"},"type":"data"}"#);
    }
    // A topic without history has no positions.
    one.ask(message("general", "hi", "m")).await;
    for subscriber in [&mut asks, &mut plain] {
        assert_eq!(subscriber.next_text().await, r#"{"id":"s","payload":{"data":"hi"},"type":"data"}"#);
    }
    // To subscribe again without asking ends it.
    asks.ask(json!({"type": "subscribe", "topic": "room.7", "id": "s"})).await;
    one.ask(message("room.7", "hi", "m2")).await;
    assert_eq!(asks.next_text().await, r#"{"id":"s","payload":{"data":"hi"},"type":"data"}"#);
}

/// The function `fan-out` sends what the first function would have sent.
#[tokio::test]
async fn a_receiver_that_is_served_later_gets_the_same_frame() {
    let fails = std::sync::atomic::AtomicUsize::new(0);
    let (_proxy, stack) = Proxy::in_front(&HISTORY, move |call| {
        // The first post is the ack of the subscribe. The next five are all tries of the first publish.
        let is_post = call.operation == "POST" && call.path.contains("@connections");
        let count = if is_post { fails.fetch_add(1, std::sync::atomic::Ordering::SeqCst) } else { usize::MAX };
        (1..6).contains(&count).then(|| answer(500, "", ""))
    })
    .await;
    let mut one = stack.connect("?userId=1").await;
    one.ask(json!({"type": "subscribe", "topic": "room.7", "id": "s", "positions": true})).await;
    let mut two = stack.connect("?userId=2").await;
    let ack = two.ask(message("room.7", "hi", "m")).await;
    assert_eq!((&ack["delivered"], &ack["continued"], &ack["seq"]), (&json!(0), &json!(true), &json!(1)));
    let epoch = &ack["epoch"];
    let expected = json!({
        "id": "s", "payload": {"data": "hi"}, "type": "data", "topic": "room.7", "senderId": "2", "epoch": epoch, "seq": 1,
    });
    assert_eq!(one.next().await, expected);
}

#[tokio::test]
async fn a_topic_without_a_rule_keeps_nothing() {
    let stack = Stack::start().await;
    let mut one = stack.connect("?userId=1").await;
    for frame in [message("room", json!(1), "m"), again(message("general", json!(1), "m"))] {
        assert_eq!(one.ask(frame).await, json!({"type": "ack", "id": "m", "delivered": 0}));
    }
    assert!(stack.all_rows("messages").await.is_empty());
}

#[tokio::test]
async fn a_repetition_gets_the_number_of_its_first_try_and_is_delivered_again() {
    let stack = Stack::start().await;
    let mut one = stack.connect("?userId=1").await;
    one.ask(json!({"type": "subscribe", "topic": "room.7", "id": "s"})).await;
    let first = message("room.7", json!("hi"), "m1");
    for (frame, duplicate) in [(first.clone(), None), (again(first.clone()), Some(true)), (first, Some(true))] {
        one.send(frame).await;
        let (data, ack) = (one.next().await, one.next().await);
        assert_eq!((&data["payload"]["data"], &ack["seq"]), (&json!("hi"), &json!(1)));
        assert_eq!(ack.get("duplicate").and_then(Value::as_bool), duplicate, "{ack}");
    }
    // The user is what counts, not the connection, and nobody else shares its ids.
    let mut phone = stack.connect("?userId=1").await;
    assert_eq!(phone.ask(again(message("room.7", json!("hi"), "m1"))).await["duplicate"], true);
    let mut two = stack.connect("?userId=2").await;
    let other = two.ask(message("room.7", json!("hi"), "m1")).await;
    assert_eq!((&other["seq"], other.get("duplicate")), (&json!(3), None));
    let mut nobody = stack.connect("").await;
    assert_eq!(nobody.ask(again(message("room.7", json!("hi"), "m1"))).await["seq"], 4);
    assert_eq!(nobody.ask(again(message("room.7", json!("hi"), "m1"))).await["duplicate"], true);
}

#[tokio::test]
async fn what_cannot_be_kept_is_a_clear_mistake() {
    let stack = Stack::start().await;
    let mut one = stack.connect("?userId=1").await;
    one.ask(message("room.7", json!("hi"), "m1")).await;
    let long = "x".repeat(32 * 1024 - 1);
    for (frame, code, names) in [
        (
            message("room.7", json!(long), "m2"),
            "invalid_field",
            "`message` must be at most 32768 bytes of JSON, because",
        ),
        (message("room.7", json!("other"), "m1"), "invalid_field", "`id` must be one that this sender has not used"),
        (json!({"type": "message", "topic": "room.7", "message": 1, "again": true}), "missing_field", "`id`"),
        (json!({"type": "message", "topic": "room.7", "message": 1, "again": 1}), "invalid_field", "`again`"),
    ] {
        send_in_fragments(&mut one, &frame.to_string()).await;
        let error = one.next().await;
        assert_eq!(error["code"], code, "{error}");
        assert!(error["message"].as_str().unwrap().contains(names), "{error}");
    }
    let messages = kept(&stack, "room.7").await.into_iter().filter(|row| !row.contains_key("hole"));
    assert_eq!(messages.count(), 1);
    send_in_fragments(&mut one, &message("room.7", &long[1..], "m3").to_string()).await;
    assert_eq!(one.next().await["type"], "ack");
}

#[tokio::test]
async fn a_message_with_history_costs_a_read_and_three_writes_more_and_without_an_id_two() {
    let (proxy, stack) = Proxy::in_front(&HISTORY, |_| None).await;
    let mut one = stack.connect("?userId=1").await;
    proxy.take();
    one.ask(message("room.7", json!(1), "m1")).await;
    assert_eq!(proxy.take(), ["GetItem", "UpdateItem", "PutItem", "PutItem", "Query", "POST"]);
    one.ask(again(message("room.7", json!(1), "m1"))).await;
    assert_eq!(proxy.take(), ["GetItem", "GetItem", "PutItem", "Query", "POST"]);
    one.send(json!({"type": "message", "topic": "room.7", "message": 1})).await;
    one.hears_nothing().await;
    stack.logged(4, &["default |", "served"]).await;
    let mut calls = proxy.take();
    // The ping reads the connection and is answered.
    for operation in ["GetItem", "POST"] {
        calls.remove(calls.iter().rposition(|call| call == operation).unwrap());
    }
    assert_eq!(calls, ["GetItem", "UpdateItem", "PutItem", "Query"]);
}

/// A message that could not be kept was not posted to anybody either.
#[tokio::test]
async fn an_append_that_fails_is_an_error_before_anything_was_posted() {
    for (code, expected) in [("ProvisionedThroughputExceededException", "busy"), ("ResourceNotFoundException", "")] {
        let (proxy, stack) = Proxy::in_front(&HISTORY, move |call| {
            let is_message = call.body["Item"]["p"]["S"].as_str().is_some_and(|p| p.starts_with("m:"));
            is_message.then(|| answer(400, code, &json!({"__type": code}).to_string()))
        })
        .await;
        let mut one = stack.connect("?userId=1").await;
        one.ask(json!({"type": "subscribe", "topic": "room.7", "id": "s"})).await;
        proxy.take();
        let error = one.ask(message("room.7", json!(1), "m1")).await;
        assert_eq!(error["code"].as_str().unwrap_or_default(), expected, "{error}");
        let calls = proxy.take();
        assert!(!calls.contains(&"Query".to_owned()), "{calls:?}");
        // The gateway's own error frame is no post of the function.
        assert_eq!(calls.iter().filter(|call| *call == "POST").count(), usize::from(expected == "busy"));
    }
}

#[tokio::test]
async fn a_sender_without_a_record_has_to_connect_again() {
    let stack = Stack::start().await;
    let mut one = stack.connect("?userId=1").await;
    let row = stack.rows("connections").await.remove(0);
    let delete = stack.dynamodb().await.delete_item().table_name("switchboard-dev-connections");
    delete.key("connectionId", row["connectionId"].clone()).send().await.unwrap();
    assert_eq!(one.ask(message("room.7", json!(1), "m1")).await["code"], "unidentified");
    assert!(stack.all_rows("messages").await.is_empty());
}

#[tokio::test]
async fn a_client_that_was_away_gets_what_it_missed() {
    let stack = Stack::start().await;
    let mut one = stack.connect("?userId=1").await;
    let mut away = stack.connect("?userId=2").await;
    let subscribe = json!({"type": "subscribe", "topic": "room.7", "id": "s", "positions": true});
    let start = away.ask(subscribe.clone()).await;
    one.ask(message("room.7", "a", "m1")).await;
    assert_eq!(away.next().await["seq"], 1);
    away.close().await;
    for (data, id) in [("b", "m2"), ("c", "m3")] {
        one.ask(message("room.7", data, id)).await;
    }
    let mut nobody = stack.connect("").await;
    nobody.ask(message("room.7", json!({"n": 1.0}), "m4")).await;

    let epoch = start["epoch"].as_str().unwrap();
    let mut back = stack.connect("?userId=2").await;
    let subscribe = json!({"type": "subscribe", "topic": "room.7", "id": "s", "after": {"epoch": epoch, "seq": 1}});
    let history = back.ask(subscribe.clone()).await;
    let ats: Vec<_> = history["messages"].as_array().unwrap().iter().map(|message| message["at"].clone()).collect();
    let expected = json!({"type": "history", "id": "s", "topic": "room.7", "epoch": epoch, "messages": [
        {"seq": 2, "data": "b", "senderId": "1", "at": ats[0]},
        {"seq": 3, "data": "c", "senderId": "1", "at": ats[1]},
        {"seq": 4, "data": {"n": 1.0}, "at": ats[2]},
    ]});
    assert_eq!(history, expected);
    assert_eq!(back.next().await, json!({"type": "ack", "id": "s", "epoch": epoch, "seq": 4, "recovered": true}));
    // It goes on live, with the next number.
    one.ask(message("room.7", "d", "m5")).await;
    assert_eq!(back.next().await["seq"], 5);

    // Nothing missed: no history, only the ack.
    let ack =
        back.ask(json!({"type": "subscribe", "topic": "room.7", "id": "s", "after": {"epoch": epoch, "seq": 5}})).await;
    assert_eq!(ack, json!({"type": "ack", "id": "s", "epoch": epoch, "seq": 5, "recovered": true}));
    // Positions that the topic does not have.
    for after in [json!({"epoch": epoch, "seq": 6}), json!({"epoch": "00000000", "seq": 5})] {
        let ack = back.ask(json!({"type": "subscribe", "topic": "room.7", "id": "s", "after": after})).await;
        assert_eq!(ack, json!({"type": "ack", "id": "s", "epoch": epoch, "seq": 5, "recovered": false}));
    }
    // Without an id there is no ack.
    back.send(json!({"type": "subscribe", "topic": "room.7", "after": {"epoch": epoch, "seq": 4}})).await;
    let history = back.next().await;
    assert_eq!((&history["messages"][0]["data"], history.get("id")), (&json!("d"), None));
    back.hears_nothing().await;
}

#[tokio::test]
async fn a_newcomer_gets_the_newest_messages() {
    let stack = Stack::start().await;
    let mut one = stack.connect("?userId=1").await;
    for count in 1..=4 {
        one.ask(message("room.7", count, &format!("m{count}"))).await;
    }
    let mut two = stack.connect("").await;
    let history = two.ask(json!({"type": "subscribe", "topic": "room.7", "id": "s", "last": 2})).await;
    let found: Vec<_> = history["messages"].as_array().unwrap().iter().map(|message| message["data"].clone()).collect();
    assert_eq!(found, [json!(3), json!(4)]);
    let ack = two.next().await;
    assert_eq!(ack, json!({"type": "ack", "id": "s", "epoch": history["epoch"], "seq": 4}));
}

#[tokio::test]
async fn long_histories_come_in_frames_of_32_kb() {
    let stack = Stack::start().await;
    let mut one = stack.connect("?userId=1").await;
    let start = one.ask(json!({"type": "subscribe", "topic": "room.7", "id": "s", "positions": true})).await;
    one.ask(json!({"type": "unsubscribe", "topic": "room.7", "id": "u"})).await;
    for count in 0..10 {
        one.ask(message("room.7", "x".repeat(10_000), &format!("m{count}"))).await;
    }
    let after = json!({"epoch": start["epoch"], "seq": 0});
    one.send(json!({"type": "subscribe", "topic": "room.7", "id": "s", "after": after})).await;
    let mut seen = Vec::new();
    for frames in 1.. {
        let text = one.next_text().await;
        assert!(text.len() <= 32 * 1024, "{}", text.len());
        let frame: Value = serde_json::from_str(&text).unwrap();
        if frame["type"] == "ack" {
            assert_eq!((frames, &frame["recovered"]), (5, &json!(true)));
            break;
        }
        seen.extend(frame["messages"].as_array().unwrap().iter().map(|message| message["seq"].as_u64().unwrap()));
    }
    assert_eq!(seen, (1..=10).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_topic_without_history_has_none_to_give() {
    let stack = Stack::start().await;
    let mut one = stack.connect("?userId=1").await;
    for more in [json!({"last": 1}), json!({"after": {"epoch": "k3f9xq2a", "seq": 1}})] {
        let mut frame = json!({"type": "subscribe", "topic": "general", "id": "s"});
        frame.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let error = one.ask(frame).await;
        assert_eq!((&error["code"], &error["id"]), (&json!("no_history"), &json!("s")));
    }
    assert_eq!(stack.rows("topics").await.len(), 1);
}

#[tokio::test]
async fn a_resume_costs_two_reads_more_than_a_subscribe() {
    let (proxy, stack) = Proxy::in_front(&HISTORY, |_| None).await;
    let mut one = stack.connect("?userId=1").await;
    let ack = one.ask(message("room.7", 1, "m1")).await;
    proxy.take();
    let after = json!({"epoch": ack["epoch"], "seq": 0});
    one.ask(json!({"type": "subscribe", "topic": "room.7", "id": "s", "after": after})).await;
    one.next().await;
    let calls = proxy.take_calls();
    let operations: Vec<_> = calls.iter().map(|call| call.operation.as_str()).collect();
    assert_eq!(operations, ["UpdateItem", "BatchWriteItem", "GetItem", "BatchGetItem", "Query", "POST", "POST"]);
    assert!([&calls[2], &calls[4]].iter().all(|call| call.body["ConsistentRead"] == true));
    assert_eq!(calls[3].body["RequestItems"]["switchboard-dev-messages"]["ConsistentRead"], true);
}

#[tokio::test]
async fn history_is_read_without_a_subscription_and_in_both_directions() {
    let (proxy, stack) = Proxy::in_front(&HISTORY, |_| None).await;
    let mut one = stack.connect("?userId=1").await;
    let mut epoch = json!(null);
    for count in 1..=5 {
        epoch = one.ask(message("room.7", count, &format!("m{count}"))).await["epoch"].clone();
    }
    proxy.take();
    for (more, data, is_more) in [
        (json!({"after": {"epoch": epoch, "seq": 1}, "limit": 2}), vec![2, 3], true),
        (json!({"after": {"epoch": epoch, "seq": 3}}), vec![4, 5], false),
        (json!({"before": {"epoch": epoch, "seq": 3}}), vec![2, 1], false),
        (json!({"limit": 1}), vec![5], true),
        (json!({"after": {"epoch": epoch, "seq": 5}}), vec![], false),
    ] {
        let mut frame = json!({"type": "history", "topic": "room.7", "id": "h"});
        frame.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let page = one.ask(frame).await;
        let found: Vec<_> =
            page["messages"].as_array().unwrap().iter().map(|message| message["data"].clone()).collect();
        assert_eq!(found, data.into_iter().map(Value::from).collect::<Vec<_>>(), "{more}");
        assert_eq!((&page["type"], &page["id"], &page["epoch"]), (&json!("history"), &json!("h"), &epoch));
        assert_eq!(page.get("more"), is_more.then_some(&json!(true)), "{more}");
        assert_eq!(proxy.take(), ["GetItem", "Query", "POST"]);
    }
    let error = one.ask(json!({"type": "history", "topic": "general", "id": "h"})).await;
    assert_eq!(error["code"], "no_history");
    one.hears_nothing().await;
}

#[tokio::test]
async fn a_ping_finds_the_topics_that_have_gone_on() {
    let (proxy, stack) = Proxy::in_front(&HISTORY, |_| None).await;
    let mut one = stack.connect("?userId=1").await;
    one.ask(message("room.7", 1, "m1")).await;
    let ack = one.ask(message("room.7", 2, "m2")).await;
    let at = |seq: u64| json!({"epoch": ack["epoch"], "seq": seq});
    proxy.take();
    let positions = json!({"room.7": at(1), "room.8": at(1), "general": at(1)});
    let pong = one.ask(json!({"type": "ping", "id": "p", "positions": positions})).await;
    assert_eq!(pong, json!({"type": "pong", "id": "p", "behind": {"room.7": at(2)}}));
    assert_eq!(proxy.take(), ["GetItem", "BatchGetItem", "POST"]);
    for (position, expected) in [(at(2), None), (at(3), None), (json!({"epoch": "00000000", "seq": 9}), Some(at(2)))] {
        let pong = one.ask(json!({"type": "ping", "positions": {"room.7": position}})).await;
        assert_eq!(pong.get("behind").map(|behind| behind["room.7"].clone()), expected);
    }
    // A quiet ping is answered only if there is something to say.
    one.send(json!({"type": "ping", "quiet": true, "id": "q1", "positions": {"room.7": at(2)}})).await;
    one.hears_nothing().await;
    let pong = one.ask(json!({"type": "ping", "quiet": true, "positions": {"room.7": at(1)}})).await;
    assert_eq!(pong, json!({"type": "pong", "behind": {"room.7": at(2)}}));
    let many: serde_json::Map<_, _> = (0..21).map(|count| (format!("room.{count}"), at(1))).collect();
    for wrong in [json!(many), json!([]), json!({"room.7": 1}), json!({"room.7": {"epoch": "x", "seq": -1}})] {
        let error = one.ask(json!({"type": "ping", "positions": wrong})).await;
        assert_eq!(error["code"], "invalid_field", "{error}");
    }
    let row = stack.rows("connections").await.remove(0);
    let delete = stack.dynamodb().await.delete_item().table_name("switchboard-dev-connections");
    delete.key("connectionId", row["connectionId"].clone()).send().await.unwrap();
    assert_eq!(one.ask(json!({"type": "ping", "quiet": true})).await["code"], "unidentified");
}

/// Puts a row into the table of messages that no function of ours has written.
async fn put_foreign(stack: &Stack, p: &str, s: &str, attributes: &[(&str, AttributeValue)]) {
    let string = |text: &str| AttributeValue::S(text.to_owned());
    let mut put = stack.dynamodb().await.put_item().table_name(table_name("messages"));
    put = put.item("p", string(p)).item("s", string(s));
    for (name, value) in attributes {
        put = put.item(*name, value.clone());
    }
    put.send().await.unwrap();
}

#[tokio::test]
async fn a_topic_whose_history_was_switched_off_is_one_without_history() {
    let folder = tempfile::tempdir().unwrap();
    let data = ["--data-dir", folder.path().to_str().unwrap()];
    let stack = Stack::with(&data).await;
    let mut one = stack.connect("?userId=1").await;
    let kept = one.ask(message("room.7", "a", "m1")).await;
    let after = json!({"epoch": kept["epoch"], "seq": 0});
    assert_eq!(stack.interrupt().await, Some(0));

    let stack = Stack::with(&[&data[..], &NO_RULES].concat()).await;
    let mut one = stack.connect("?userId=1").await;
    let rows = stack.all_rows("messages").await.len();
    assert!(rows > 0, "the table was not kept");
    for frame in [
        json!({"type": "subscribe", "topic": "room.7", "id": "s", "after": after}),
        json!({"type": "subscribe", "topic": "room.7", "id": "s", "last": 1}),
        json!({"type": "history", "topic": "room.7", "id": "s", "after": after}),
        json!({"type": "history", "topic": "room.7", "id": "s"}),
    ] {
        let error = one.ask(frame).await;
        assert_eq!((&error["code"], &error["id"]), (&json!("no_history"), &json!("s")), "{error}");
    }
    // A client that knows a position hears the frames of a topic without history, and nothing of the position.
    let list = json!([{"topic": "room.7", "positions": true}, {"topic": "room.8", "after": after}]);
    let ack = one.ask(json!({"type": "subscribe", "topics": list, "id": "s"})).await;
    assert_eq!(ack["topics"][0], json!({"topic": "room.7"}));
    assert_eq!((&ack["topics"][1]["code"], &ack["topics"][1]["temporary"]), (&json!("no_history"), &json!(false)));
    let ping = json!({"type": "ping", "positions": {"room.7": after}});
    assert_eq!(one.ask(ping).await, json!({"type": "pong"}));
    let mut two = stack.connect("?userId=2").await;
    for frame in [message("room.7", "b", "m2"), again(message("room.7", "b", "m2"))] {
        assert_eq!(two.ask(frame).await, json!({"type": "ack", "id": "m2", "delivered": 1}));
        assert_eq!(one.next_text().await, r#"{"id":"s","payload":{"data":"b"},"type":"data"}"#);
    }
    assert_eq!(stack.all_rows("messages").await.len(), rows);
    assert_eq!(stack.interrupt().await, Some(0));

    // Switched on again, it goes on where it was. What was sent meanwhile is not in it.
    let stack = Stack::with(&data).await;
    let mut one = stack.connect("?userId=1").await;
    let ack = one.ask(message("room.7", "c", "m3")).await;
    assert_eq!((&ack["epoch"], &ack["seq"]), (&kept["epoch"], &json!(2)));
    let history = one.ask(json!({"type": "subscribe", "topic": "room.7", "id": "s", "after": after})).await;
    let found: Vec<_> = history["messages"].as_array().unwrap().iter().map(|message| message["data"].clone()).collect();
    assert_eq!(found, ["a", "c"]);
    assert_eq!(one.next().await["recovered"], true);
}

/// Rows that somebody else has written: they are skipped, or count as numbers that have no message.
#[tokio::test]
async fn foreign_rows_in_the_table_of_messages_harm_nobody() {
    let string = |text: &str| AttributeValue::S(text.to_owned());
    let numeric = |text: &str| AttributeValue::N(text.to_owned());
    let stack = Stack::start().await;
    let mut one = stack.connect("?userId=1").await;
    let first = one.ask(message("room.7", "a", "m1")).await;
    let epoch = first["epoch"].as_str().unwrap().to_owned();
    let at = |seq: &str| format!("{epoch}/{seq}");
    // Keys without a number of the epoch.
    for s in [&epoch, "", "zzzzzzzz", &at("2"), &at("two"), &at("00000000000x"), &at("000000000000"), "0/000000000002"]
    {
        let s = if s.is_empty() { "-" } else { s };
        put_foreign(&stack, "m:room.7", s, &[("json", string("\"foreign\""))]).await;
    }
    // Keys of the next three numbers, with other content: nothing, text that is not JSON, and attributes of other types.
    put_foreign(&stack, "m:room.7", &at("000000000002"), &[]).await;
    let broken = [("json", string("{")), ("at", numeric("1")), ("ttl", numeric("1"))];
    put_foreign(&stack, "m:room.7", &at("000000000003"), &broken).await;
    let wrong =
        [("json", numeric("1")), ("at", string("x")), ("ttl", string("x")), ("prev", AttributeValue::Bool(true))];
    put_foreign(&stack, "m:room.7", &at("000000000004"), &wrong).await;
    // Heads of two other topics, and keys that belong to nobody.
    put_foreign(&stack, "h:room.8", "-", &[("epoch", numeric("1")), ("last", string("x"))]).await;
    put_foreign(&stack, "h:room.9", "-", &[]).await;
    put_foreign(&stack, "x", "y", &[]).await;

    // The next message passes over the numbers that are taken.
    let ack = one.ask(message("room.7", "b", "m2")).await;
    assert_eq!((&ack["type"], &ack["epoch"], &ack["seq"]), (&json!("ack"), &json!(epoch), &json!(5)), "{ack}");
    assert_eq!(one.ask(again(message("room.7", "b", "m2"))).await["duplicate"], true);
    let after = json!({"epoch": epoch, "seq": 0});
    let history = one.ask(json!({"type": "subscribe", "topic": "room.7", "id": "s", "after": after})).await;
    let found: Vec<_> = history["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| if entry["hole"] == true { json!("hole") } else { entry["data"].clone() })
        .collect();
    assert_eq!(found, ["a", "hole", "hole", "hole", "b"]);
    assert_eq!(one.next().await, json!({"type": "ack", "id": "s", "epoch": epoch, "seq": 5, "recovered": true}));
    let page =
        one.ask(json!({"type": "history", "topic": "room.7", "id": "h", "before": {"epoch": epoch, "seq": 5}})).await;
    let data: Vec<_> = page["messages"].as_array().unwrap().iter().filter_map(|entry| entry.get("data")).collect();
    assert_eq!(data, [&json!("a")]);

    // Nobody can count on a head with other types, so its topic fails. A head without attributes begins an epoch.
    assert_eq!(one.ask(message("room.8", "c", "m3")).await["message"], "Internal server error");
    let list = json!([{"topic": "room.8", "last": 1}, {"topic": "room.7", "after": {"epoch": epoch, "seq": 5}}]);
    let ack = one.ask(json!({"type": "subscribe", "topics": list, "id": "s"})).await;
    assert_eq!((&ack["topics"][0]["code"], &ack["topics"][1]["recovered"]), (&json!("busy"), &json!(true)), "{ack}");
    for topic in ["room.9", "room.10"] {
        let ack = one.ask(message(topic, "d", "m4")).await;
        assert_eq!((&ack["type"], &ack["seq"]), (&json!("ack"), &json!(1)));
    }
    let broken = stack.log(&["a row of the table of messages is skipped"]);
    assert!(!broken.is_empty(), "the log does not name the rows that are skipped");
}

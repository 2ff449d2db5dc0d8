//! Topics whose messages wait for others: they go through the events table, and a subscriber that asks gets several in one frame.

use aws_sdk_dynamodb::types::AttributeValue;
use serde_json::{Value, json};
use switchboard_tests::client::Client;
use switchboard_tests::proxy::{Proxy, Units};
use switchboard_tests::stack::{Stack, table_name};

const RULES: [&str; 2] = ["--env", r#"TOPIC_RULES=[{"topic":"ticks.*","batchMs":250,"wildcard":true}]"#];

/// Receives frames until there are `count` messages. Returns them, and the frames.
async fn messages(client: &mut Client, count: usize) -> (Vec<Value>, Vec<Value>) {
    let (mut messages, mut frames) = (Vec::new(), Vec::new());
    while messages.len() < count {
        let frame = client.next().await;
        match frame["type"].as_str() {
            Some("batch") => {
                messages.extend(frame["items"].as_array().unwrap().iter().map(|item| item["data"].clone()))
            }
            _ => messages.push(frame["payload"]["data"].clone()),
        }
        frames.push(frame);
    }
    assert_eq!(messages.len(), count);
    (messages, frames)
}

#[tokio::test]
async fn several_messages_reach_those_that_ask_in_one_frame_and_the_others_as_ever() {
    let stack = Stack::with(&RULES).await;
    let mut sender = stack.connect("").await;
    let mut old = stack.connect("").await;
    old.ask(json!({"type": "subscribe", "topic": "ticks.1", "id": "s"})).await;
    let mut new = stack.connect("").await;
    new.ask(json!({"type": "subscribe", "topic": "ticks.1", "batch": true, "id": "s"})).await;
    let mut pattern = stack.connect("").await;
    pattern.ask(json!({"type": "subscribe", "topics": [{"topic": "ticks.*", "batch": true}], "id": "p"})).await;

    let ack =
        sender.ask(json!({"type": "message", "topic": "ticks.1", "messages": [1, "two", {"n": 3}], "id": "m"})).await;
    assert_eq!(ack, json!({"type": "ack", "id": "m", "queued": true}));
    let items = json!([{"data": 1}, {"data": "two"}, {"data": {"n": 3}}]);
    assert_eq!(new.next().await, json!({"type": "batch", "id": "s", "items": items}));
    assert_eq!(pattern.next().await, json!({"type": "batch", "id": "p", "topic": "ticks.1", "items": items}));
    for data in [json!(1), json!("two"), json!({"n": 3})] {
        assert_eq!(old.next().await, json!({"id": "s", "payload": {"data": data}, "type": "data"}));
    }

    // A message that is alone is an ordinary frame.
    sender.send(json!({"type": "message", "topic": "ticks.1", "message": "alone"})).await;
    assert_eq!(new.next().await, json!({"id": "s", "payload": {"data": "alone"}, "type": "data"}));
    let listed = new.ask(json!({"type": "topics", "id": "t"})).await;
    assert_eq!(listed["topics"], json!([{"topic": "ticks.1", "id": "s", "batch": true}]));
    sender.hears_nothing().await;
}

#[tokio::test]
async fn messages_of_one_poll_share_a_frame_and_keep_their_order() {
    const COUNT: usize = 60;
    let stack = Stack::with(&[&RULES[..], &["--env", "MAX_FRAMES_PER_SECOND=0"]].concat()).await;
    let mut sender = stack.connect("").await;
    let mut new = stack.connect("").await;
    new.ask(json!({"type": "subscribe", "topic": "ticks.1", "batch": true, "id": "s"})).await;
    for number in 0..COUNT {
        let ack = sender.ask(json!({"type": "message", "topic": "ticks.1", "message": number, "id": "m"})).await;
        assert_eq!(ack["queued"], true);
    }
    let (found, frames) = messages(&mut new, COUNT).await;
    assert_eq!(found, (0..COUNT).map(|number| json!(number)).collect::<Vec<_>>());
    assert!(frames.len() <= COUNT / 3, "{} frames", frames.len());
    new.hears_nothing().await;
}

#[tokio::test]
async fn events_of_backends_wait_with_them_and_a_wrong_one_holds_up_nobody() {
    let stack = Stack::with(&RULES).await;
    let mut new = stack.connect("").await;
    new.ask(json!({"type": "subscribe", "topic": "ticks.1", "batch": true, "id": "s"})).await;
    let string = |text: &str| AttributeValue::S(text.to_owned());
    let dynamodb = stack.dynamodb().await;
    let mut batch = Vec::new();
    for (id, name, value) in
        [("1", "data", "a"), ("2", "json", "{"), ("3", "other", "c"), ("4", "json", "[4]"), ("5", "data", "e")]
    {
        let put = aws_sdk_dynamodb::types::PutRequest::builder();
        let put = put.item("topic", string("ticks.1")).item("id", string(id)).item(name, string(value));
        let put = put.build().unwrap();
        batch.push(aws_sdk_dynamodb::types::WriteRequest::builder().put_request(put).build());
    }
    dynamodb.batch_write_item().request_items(table_name("events"), batch).send().await.unwrap();
    let (found, _) = messages(&mut new, 3).await;
    let mut found: Vec<_> = found.iter().map(Value::to_string).collect();
    found.sort();
    assert_eq!(found, ["\"a\"", "\"e\"", "[4]"]);
    stack.logged(2, &["publish |", "an event was given up"]).await;
}

/// It costs one write unit for each KB, and no read: nobody looks who listens before the ack.
#[tokio::test]
async fn a_message_that_waits_costs_one_write_unit_and_its_batch_one_query_and_one_post_a_receiver() {
    let (proxy, stack) = Proxy::in_front(&RULES, |_| None).await;
    let mut sender = stack.connect("").await;
    let mut new = stack.connect("").await;
    new.ask(json!({"type": "subscribe", "topic": "ticks.1", "batch": true, "id": "s"})).await;
    proxy.take();
    proxy.take_units();
    let items: Vec<_> = (0..20).collect();
    sender.ask(json!({"type": "message", "topic": "ticks.1", "messages": items, "id": "m"})).await;
    messages(&mut new, 20).await;
    // The topic's own list, and that of the pattern which the rule allows.
    assert_eq!(proxy.take_units(), Units { read: 2.0, write: 1.0 });
    let mut calls = proxy.take();
    calls.sort();
    assert_eq!(calls, ["POST", "POST", "PutItem", "Query", "Query"]);
}

#[tokio::test]
async fn history_and_waiting_exclude_each_other() {
    let rules = r#"TOPIC_RULES=[{"topic":"a"},{"topic":"t","history":{"hours":1},"batchMs":250}]"#;
    let stack = Stack::with(&["--env", rules]).await;
    assert_eq!(stack.refused("").await, 502);
    stack.logged(1, &["connect |", "rule 2: `batchMs` must be absent: with `history`"]).await;
}

//! Publishing through the events table: a backend that puts an item reaches connected clients.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use serde_json::json;
use switchboard_tests::client::Client;
use switchboard_tests::proxy::Proxy;
use switchboard_tests::stack::{Stack, binaries, environments, signal, table_name};

use crate::failures::hurried;

/// The attributes of an event besides its key.
type Attributes<'a> = &'a [(&'a str, AttributeValue)];

/// Puts an item into the events table.
async fn put(stack: &Stack, topic: &str, id: &str, attributes: Attributes<'_>) {
    let mut put = stack.dynamodb().await.put_item().table_name(table_name("events"));
    put = put.item("topic", string(topic)).item("id", string(id));
    for (name, value) in attributes {
        put = put.item(*name, value.clone());
    }
    put.send().await.unwrap();
}

fn string(text: &str) -> AttributeValue {
    AttributeValue::S(text.to_owned())
}

fn number(digits: &str) -> AttributeValue {
    AttributeValue::N(digits.to_owned())
}

async fn subscriber(stack: &Stack, topic: &str) -> Client {
    let mut client = stack.connect("").await;
    client.ask(json!({"type": "subscribe", "topic": topic, "id": "s"})).await;
    client
}

#[tokio::test]
async fn a_topics_subscribers_receive_what_is_put() {
    let stack = Stack::start().await;
    let mut one = subscriber(&stack, "general").await;
    let mut other = subscriber(&stack, "other").await;
    put(&stack, "general", "1", &[("data", string("deploy done"))]).await;
    assert_eq!(one.next_text().await, r#"{"id":"s","payload":{"data":"deploy done"},"type":"data"}"#);
    other.hears_nothing().await;
}

#[tokio::test]
async fn a_users_devices_receive_a_direct_message() {
    let stack = Stack::start().await;
    let mut phone = stack.connect("?userId=2").await;
    let mut desk = stack.connect("?userId=2").await;
    put(&stack, "@2", "1", &[("senderId", string("robot")), ("body", string("hi"))]).await;
    for device in [&mut phone, &mut desk] {
        assert_eq!(device.next_text().await, r#"{"senderId":"robot","body":"hi"}"#);
    }
}

#[tokio::test]
async fn everybody_receives_a_broadcast() {
    let stack = Stack::start().await;
    let mut clients = Vec::new();
    for count in 0..20 {
        let query = if count % 2 == 0 { format!("?userId={count}") } else { String::new() };
        clients.push(stack.connect(&query).await);
    }
    put(&stack, "INITIAL_CONNECTION", "1", &[("data", string("maintenance at noon"))]).await;
    for client in &mut clients {
        let expected = json!({"id": "INITIAL_CONNECTION", "payload": {"data": "maintenance at noon"}, "type": "data"});
        assert_eq!(client.next().await, expected);
    }
    clients[0].hears_nothing().await;
}

#[tokio::test]
async fn a_thousand_events_of_one_topic_arrive_in_the_order_in_which_they_were_put() {
    let stack = Stack::start().await;
    let mut one = subscriber(&stack, "t").await;
    let dynamodb = stack.dynamodb().await;
    for count in 0..1000 {
        let put = dynamodb.put_item().table_name(table_name("events")).item("topic", string("t"));
        put.item("id", string(&count.to_string())).item("data", number(&count.to_string())).send().await.unwrap();
    }
    for count in 0..1000 {
        assert_eq!(one.next().await["payload"]["data"], count);
    }
}

#[tokio::test]
async fn only_an_insert_publishes() {
    let stack = Stack::start().await;
    let mut one = subscriber(&stack, "t").await;
    put(&stack, "t", "1", &[("data", number("1"))]).await;
    put(&stack, "t", "1", &[("data", number("2"))]).await;
    let delete = stack.dynamodb().await.delete_item().table_name(table_name("events"));
    delete.key("topic", string("t")).key("id", string("1")).send().await.unwrap();
    put(&stack, "t", "2", &[("data", number("3"))]).await;
    assert_eq!(one.next().await["payload"]["data"], 1);
    assert_eq!(one.next().await["payload"]["data"], 3);
}

#[tokio::test]
async fn poison_is_logged_with_its_key_and_holds_up_nobody() {
    let stack = Stack::start().await;
    let mut one = subscriber(&stack, "t").await;
    // The unit tests of `record` in publish have the whole table.
    let poison: &[(&str, &str, Attributes<'_>, &str)] = &[
        ("t", "no-data", &[], "`data` is missing"),
        ("@2", "no-sender", &[("body", string("x"))], "`senderId` is missing"),
    ];
    put(&stack, "t", "first", &[("data", string("first"))]).await;
    for (topic, id, attributes, _) in poison {
        put(&stack, topic, id, attributes).await;
    }
    put(&stack, "@nobody", "unknown-user", &[("senderId", string("1")), ("body", string("x"))]).await;
    put(&stack, "t", "last", &[("data", string("last"))]).await;
    assert_eq!(one.next().await["payload"]["data"], "first");
    assert_eq!(one.next().await["payload"]["data"], "last");
    for (_, id, _, reason) in poison {
        let lines = stack.logged(1, &["publish |", "ERROR", "poison", &format!("\"event.id\":\"{id}\""), reason]).await;
        assert_eq!(lines.len(), 1, "once is enough: {lines:?}");
    }
}

#[tokio::test]
async fn data_that_is_nested_arrives_as_json() {
    let stack = Stack::start().await;
    let mut one = subscriber(&stack, "t").await;
    // The unit tests of `record` in publish have every type of DynamoDB.
    let map = AttributeValue::M([("n".to_owned(), AttributeValue::Null(true))].into());
    let list = AttributeValue::L(vec![number("1.5"), string("\"quoted\"\n"), map]);
    put(&stack, "t", "1", &[("data", list)]).await;
    assert_eq!(one.next().await["payload"]["data"], json!([1.5, "\"quoted\"\n", {"n": null}]));
}

#[tokio::test]
async fn the_command_behind_make_publish_publishes() {
    let stack = Stack::start().await;
    let mut one = subscriber(&stack, "general").await;
    let mut command = tokio::process::Command::new(binaries().join("examples/put-event"));
    command.args([&table_name("events"), "general", r#"{"deploy": "done"}"#]);
    command.env("AWS_ENDPOINT_URL", format!("http://{}", stack.dynamodb)).env("AWS_REGION", "us-east-1");
    command.env("AWS_ACCESS_KEY_ID", "local").env("AWS_SECRET_ACCESS_KEY", "local");
    assert!(command.status().await.unwrap().success());
    assert_eq!(one.next_text().await, r#"{"id":"s","payload":{"data":{"deploy": "done"}},"type":"data"}"#);
}

/// A stack whose functions have a timeout of 4 s.
async fn slow() -> (tempfile::TempDir, Proxy, Stack) {
    let folder = hurried(4);
    let config = folder.path().join("serverless.yml");
    let (proxy, stack) = Proxy::in_front(&["--config", config.to_str().unwrap()], |_| None).await;
    (folder, proxy, stack)
}

#[tokio::test]
async fn a_publish_that_runs_out_of_time_goes_on_until_everybody_has_it() {
    let (_folder, proxy, stack) = slow().await;
    let mut subscribers = Vec::new();
    for _ in 0..200 {
        subscribers.push(subscriber(&stack, "t").await);
    }
    proxy.delay("POST", Duration::from_millis(400));

    // The sender's own function makes 16 posts at once, again and again, before its 4 s are over. It still answers the
    // sender, with the number of deliveries so far.
    let mut publisher = stack.connect("").await;
    let ack = publisher.ask(json!({"type": "message", "topic": "t", "message": "direct", "id": "m"})).await;
    assert_eq!(ack["type"], "ack", "{ack}");
    assert!((1..200).contains(&ack["delivered"].as_u64().unwrap()), "{ack}");
    for subscriber in &mut subscribers {
        assert_eq!(subscriber.next().await["payload"]["data"], "direct");
    }
    assert_eq!(ack["continued"], true, "{ack}");
    stack.logged(1, &["default |", "a continuation goes on"]).await;
    stack.logged(1, &["fanOut |", "\"published\"", "\"event.id\""]).await;

    // A broadcast goes through the stream. Repeated frames of the first part may still arrive.
    put(&stack, "INITIAL_CONNECTION", "1", &[("data", string("broadcast"))]).await;
    for subscriber in &mut subscribers {
        while subscriber.next().await["payload"]["data"] != "broadcast" {}
    }
}

#[tokio::test]
async fn a_crash_in_the_middle_of_a_batch_loses_nothing() {
    let (proxy, stack) = Proxy::in_front(&[], |_| None).await;
    let mut one = subscriber(&stack, "t").await;
    proxy.take();
    proxy.delay("POST", Duration::from_secs(60));
    put(&stack, "t", "1", &[("data", number("1"))]).await;
    proxy.called("POST").await;
    for process in environments(&stack).await {
        signal("-KILL", process).await;
    }
    proxy.delay("POST", Duration::ZERO);
    put(&stack, "t", "2", &[("data", number("2"))]).await;
    assert_eq!(one.next().await["payload"]["data"], 1);
    assert_eq!(one.next().await["payload"]["data"], 2);
    stack.logged(1, &["publish", "Runtime.ExitError"]).await;
}

#[tokio::test]
async fn a_restarted_stack_continues_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--data-dir", folder.path().to_str().unwrap()];
    let stack = Stack::with(&arguments).await;
    let mut one = subscriber(&stack, "t").await;
    put(&stack, "t", "1", &[("data", number("1"))]).await;
    assert_eq!(one.next().await["payload"]["data"], 1);
    drop(one);
    stack.settled("connections", 0).await;
    assert_eq!(stack.interrupt().await, Some(0));

    let stack = Stack::with(&arguments).await;
    let mut one = subscriber(&stack, "t").await;
    put(&stack, "t", "2", &[("data", number("2"))]).await;
    // If the stream had begun anew, the first event would come first.
    assert_eq!(one.next().await["payload"]["data"], 2);
}

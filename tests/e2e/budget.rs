//! The cost of an event: the AWS calls of each handler, counted between it and AWS.

use serde_json::json;
use switchboard_tests::proxy::{Call, Proxy, Units};
use switchboard_tests::stack::{NO_RULES, Stack};

async fn counted() -> (Proxy, Stack) {
    Proxy::in_front(&[], |_| None).await
}

/// How many items a `BatchWriteItem` writes or deletes.
fn items(call: &Call) -> usize {
    call.body["RequestItems"].as_object().unwrap().values().map(|writes| writes.as_array().unwrap().len()).sum()
}

fn sorted(mut operations: Vec<String>) -> Vec<String> {
    operations.sort();
    operations
}

#[tokio::test]
async fn connect_costs_two_reads_and_a_batch_of_two_rows_or_a_batch_of_one() {
    let (proxy, stack) = counted().await;
    let _one = stack.connect("?userId=1").await;
    // The query counts the connections of the user, and the item would say that the user is locked out.
    let calls = proxy.take_calls();
    let operations = sorted(calls.iter().map(|call| call.operation.clone()).collect());
    assert_eq!(operations, ["BatchWriteItem", "GetItem", "Query"]);
    assert_eq!(items(&calls[2]), 2);
    let _nobody = stack.connect("").await;
    let calls = proxy.take_calls();
    assert_eq!(
        calls.iter().map(|call| (call.operation.as_str(), items(call))).collect::<Vec<_>>(),
        [("BatchWriteItem", 1)]
    );
}

#[tokio::test]
async fn a_refused_handshake_costs_nothing() {
    let (proxy, stack) = counted().await;
    assert_eq!(stack.refused("?userId=").await, 400);
    assert!(proxy.take().is_empty());
}

#[tokio::test]
async fn disconnect_costs_one_update_and_a_batch_for_every_25_topics() {
    for (topics, batches) in [(0, vec![]), (1, vec![1]), (25, vec![25]), (26, vec![25, 1]), (60, vec![25, 25, 10])] {
        let (proxy, stack) = counted().await;
        let mut one = stack.connect("").await;
        for topic in 0..topics {
            one.ask(json!({"type": "subscribe", "topic": format!("{topic}"), "id": "s"})).await;
        }
        proxy.take();
        one.close().await;
        stack.logged(1, &["disconnect |", "served"]).await;
        let calls = proxy.take_calls();
        assert_eq!(calls[0].operation, "UpdateItem");
        assert!(calls[1..].iter().all(|call| call.operation == "BatchWriteItem"));
        assert_eq!(calls[1..].iter().map(items).collect::<Vec<_>>(), batches, "{topics} topics");
    }
}

#[tokio::test]
async fn a_direct_message_costs_a_get_a_query_and_a_post_per_device() {
    let (proxy, stack) = Proxy::in_front(&NO_RULES, |_| None).await;
    let mut one = stack.connect("?userId=1").await;
    let mut two = stack.connect("?userId=2").await;
    let mut also_two = stack.connect("?userId=2").await;
    proxy.take();
    proxy.take_bytes();
    one.send(json!({"action": "sendMessage", "destinationUserId": "2", "body": "hi"})).await;
    two.next().await;
    also_two.next().await;
    stack.logged(1, &["sendMessage |", "served"]).await;
    assert_eq!(sorted(proxy.take()), ["GetItem", "POST", "POST", "Query"]);
    // The bytes of all bodies, there and back: queries ask only for the attributes that they need.
    let bytes = proxy.take_bytes();
    assert!((1..1200).contains(&bytes), "{bytes} bytes");
}

#[tokio::test]
async fn subscribe_costs_three_calls_and_unsubscribe_two_and_an_ack_one_post() {
    let (proxy, stack) = counted().await;
    let mut one = stack.connect("").await;
    proxy.take();
    let costs: [(_, &[_]); 2] =
        [("subscribe", &["UpdateItem", "BatchWriteItem", "GetItem"]), ("unsubscribe", &["GetItem", "DeleteItem"])];
    for (count, (kind, calls)) in costs.into_iter().enumerate() {
        one.send(json!({"type": kind, "topic": "t"})).await;
        stack.logged(2 * count + 1, &["default |", "served"]).await;
        assert_eq!(proxy.take(), calls);
        one.ask(json!({"type": kind, "topic": "t", "id": "a"})).await;
        stack.logged(2 * count + 2, &["default |", "served"]).await;
        assert_eq!(proxy.take(), [calls, &["POST"]].concat());
    }
}

/// One unit is for the connection's row. Rows and sets of usual names have less than 1 KB.
#[tokio::test]
async fn subscribe_costs_a_write_unit_and_one_for_each_topic_and_unsubscribe_one() {
    let (proxy, stack) = counted().await;
    let mut one = stack.connect("?userId=1").await;
    proxy.take_write_units();
    one.ask(json!({"type": "subscribe", "topic": "t", "id": "s"})).await;
    assert_eq!(proxy.take_write_units(), 2.0);
    one.ask(json!({"type": "unsubscribe", "topic": "t", "id": "u"})).await;
    assert_eq!(proxy.take_write_units(), 1.0);
}

/// Queries are strongly consistent. The sender's row is read eventually consistent, and strongly where grants count.
#[tokio::test]
async fn a_senders_row_costs_half_a_read_unit_unless_grants_count() {
    let rules = r#"TOPIC_RULES=[{"topic":"members","publish":"identified"},{"topic":"room","publish":"granted"}]"#;
    let arguments = ["--env", crate::rights::KEYS, "--env", "IDENTITY_MODE=verified", "--env", rules];
    let (proxy, stack) = Proxy::in_front(&arguments, |_| None).await;
    let mut one = crate::rights::connect(&stack, "1", &json!({"publish": ["room"]})).await;
    proxy.take_units();
    for (frame, read) in [
        (json!({"type": "ping"}), 0.5),
        (json!({"action": "sendMessage", "destinationUserId": "1", "body": "hi"}), 1.5),
        (json!({"type": "message", "topic": "plain", "message": "hi", "id": "a"}), 1.0),
        (json!({"type": "message", "topic": "members", "message": "hi", "id": "b"}), 1.5),
        (json!({"type": "message", "topic": "room", "message": "hi", "id": "c"}), 2.0),
    ] {
        one.ask(frame.clone()).await;
        assert_eq!(proxy.take_units(), Units { read, write: 0.0 }, "{frame}");
    }
}

#[tokio::test]
async fn subscribe_to_n_topics_costs_n_and_one_write_units_and_one_read_unit() {
    let (proxy, stack) = counted().await;
    let mut one = stack.connect("?userId=1").await;
    proxy.take_units();
    for count in [1, 5, 40] {
        let topics: Vec<_> = (0..count).map(|topic| json!({"topic": format!("{count}-{topic}")})).collect();
        proxy.take();
        one.ask(json!({"type": "subscribe", "topics": topics, "id": "s"})).await;
        assert_eq!(proxy.take_units(), Units { read: 1.0, write: 1.0 + f64::from(count) }, "{count}");
        assert!(!proxy.take().contains(&"TransactWriteItems".to_owned()));
    }
}

#[tokio::test]
async fn a_quiet_ping_costs_no_post() {
    let (proxy, stack) = counted().await;
    let mut one = stack.connect("?userId=1").await;
    one.ask(json!({"type": "ping"})).await;
    proxy.take();
    one.send(json!({"type": "ping", "quiet": true})).await;
    stack.logged(2, &["default |", "served"]).await;
    assert_eq!(proxy.take(), ["GetItem"]);
}

#[tokio::test]
async fn a_message_costs_a_query_a_page_and_a_post_per_subscriber() {
    let (proxy, stack) = counted().await;
    let mut subscribers = Vec::new();
    for _ in 0..5 {
        let mut subscriber = stack.connect("").await;
        subscriber.ask(json!({"type": "subscribe", "topic": "t", "id": "s"})).await;
        subscribers.push(subscriber);
    }
    proxy.take();
    subscribers[0].send(json!({"type": "message", "topic": "t", "message": 1})).await;
    stack.logged(6, &["default |", "served"]).await;
    assert_eq!(proxy.take(), ["Query", "POST", "POST", "POST", "POST", "POST"]);
}

#[tokio::test]
async fn a_mistake_costs_one_post_and_a_ping_one_more_read() {
    let (proxy, stack) = counted().await;
    let mut one = stack.connect("?userId=1").await;
    proxy.take();
    for frame in [json!({"type": "dance"}), json!({"action": "sendMessage"})] {
        one.ask(frame).await;
        assert_eq!(proxy.take(), ["POST"]);
    }
    one.ask(json!({"type": "ping"})).await;
    let calls = proxy.take_calls();
    assert_eq!(calls.iter().map(|call| call.operation.as_str()).collect::<Vec<_>>(), ["GetItem", "POST"]);
    assert_eq!(calls[0].body["ConsistentRead"], false);
}

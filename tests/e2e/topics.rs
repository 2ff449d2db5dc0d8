//! Topics.

use aws_sdk_dynamodb::types::{AttributeValue, TimeToLiveSpecification};
use serde_json::json;
use switchboard_tests::stack::{Stack, number, table_name, text};

#[tokio::test]
async fn a_subscriber_receives_what_is_published() {
    let stack = Stack::start().await;
    let mut subscriber = stack.connect("").await;
    let mut publisher = stack.connect("").await;
    let ack = subscriber.ask(json!({"type": "subscribe", "topic": "general", "id": "my-id"})).await;
    assert_eq!(ack, json!({"type": "ack", "id": "my-id"}));
    publisher.send(json!({"type": "message", "topic": "general", "message": "count is 0"})).await;
    assert_eq!(subscriber.next_text().await, r#"{"id":"my-id","payload":{"data":"count is 0"},"type":"data"}"#);
    publisher.hears_nothing().await;
}

#[tokio::test]
async fn a_subscription_without_an_id_gets_one_and_no_reply() {
    let stack = Stack::start().await;
    let mut one = stack.connect("").await;
    one.send(json!({"type": "subscribe", "topic": "general"})).await;
    let rows = stack.settled("topics", 1).await;
    let mut other = stack.connect("").await;
    let ack = other.ask(json!({"type": "message", "topic": "general", "message": {"n": 1}, "id": "m"})).await;
    assert_eq!(ack, json!({"type": "ack", "id": "m", "delivered": 1}));
    let id = text(&rows[0], "subscriptionId");
    assert_eq!(one.next().await, json!({"id": id, "payload": {"data": {"n": 1}}, "type": "data"}));
}

#[tokio::test]
async fn action_works_as_well_as_type() {
    let stack = Stack::start().await;
    let mut one = stack.connect("").await;
    one.ask(json!({"action": "subscribe", "topic": "t", "id": "s"})).await;
    one.send(json!({"action": "message", "topic": "t", "message": 1})).await;
    assert_eq!(one.next().await["payload"]["data"], 1);
}

#[tokio::test]
async fn after_unsubscribe_nothing_comes() {
    let stack = Stack::start().await;
    let mut one = stack.connect("").await;
    for (count, kind) in ["unsubscribe", "stop"].into_iter().enumerate() {
        one.ask(json!({"type": "subscribe", "topic": "t", "id": "s"})).await;
        assert_eq!(one.ask(json!({"type": kind, "topic": "t", "id": "u"})).await, json!({"type": "ack", "id": "u"}));
        let ack = one.ask(json!({"type": "message", "topic": "t", "message": count, "id": "m"})).await;
        assert_eq!(ack, json!({"type": "ack", "id": "m", "delivered": 0}));
    }
    assert!(stack.rows("topics").await.is_empty());
}

#[tokio::test]
async fn unsubscribing_from_what_was_never_subscribed_is_fine() {
    let stack = Stack::start().await;
    let mut one = stack.connect("?userId=1").await;
    let ack = one.ask(json!({"type": "unsubscribe", "topic": "never", "id": "u"})).await;
    assert_eq!(ack, json!({"type": "ack", "id": "u"}));
}

#[tokio::test]
async fn subscribing_twice_changes_the_id_and_delivers_once() {
    let stack = Stack::start().await;
    let mut one = stack.connect("").await;
    one.ask(json!({"type": "subscribe", "topic": "t", "id": "first"})).await;
    one.ask(json!({"type": "subscribe", "topic": "t", "id": "second"})).await;
    let mut other = stack.connect("").await;
    let ack = other.ask(json!({"type": "message", "topic": "t", "message": 1, "id": "m"})).await;
    assert_eq!(ack["delivered"], 1);
    assert_eq!(one.next().await["id"], "second");
}

#[tokio::test]
async fn every_row_expires_with_its_connection_unless_asked_sooner() {
    let stack = Stack::start().await;
    let mut one = stack.connect("?userId=1").await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    one.ask(json!({"type": "subscribe", "topic": "default", "id": "s"})).await;
    one.ask(json!({"type": "subscribe", "topic": "sooner", "id": "s", "ttl": now + 600})).await;
    one.ask(json!({"type": "subscribe", "topic": "never", "id": "s", "ttl": now + 1_000_000})).await;
    one.ask(json!({"type": "subscribe", "topic": "fraction", "id": "s", "ttl": now as f64 + 600.75})).await;

    let connection = &stack.rows("connections").await[0];
    let end = number(connection, "ttl");
    assert_eq!(end, number(connection, "connectedAt") / 1000 + 2 * 3600 + 300);
    let mut topics = stack.rows("topics").await;
    topics.sort_by_key(|row| text(row, "topic"));
    let ttls: Vec<_> = topics.iter().map(|row| (text(row, "topic"), number(row, "ttl"))).collect();
    let sooner = i64::try_from(now).unwrap() + 600;
    let expected = [("@1", end), ("default", end), ("fraction", sooner), ("never", end), ("sooner", sooner)];
    assert_eq!(ttls, expected.map(|(topic, ttl)| (topic.to_owned(), ttl)));

    let error = one.ask(json!({"type": "subscribe", "topic": "past", "ttl": now - 1})).await;
    assert_eq!(
        (&error["code"], &error["message"]),
        (&json!("invalid_field"), &json!("the field `ttl` must be an epoch second in the future"))
    );
}

#[tokio::test]
async fn an_expired_row_is_not_served_though_it_is_still_there() {
    let stack = Stack::start().await;
    let mut one = stack.connect("").await;
    one.ask(json!({"type": "subscribe", "topic": "t", "id": "s"})).await;
    let mut row = stack.rows("topics").await.remove(0);
    // DynamoDB may take days to delete an expired row, and the local stack takes 30 s. Without TTL on the table the row
    // stays.
    let dynamodb = stack.dynamodb().await;
    let off = TimeToLiveSpecification::builder().attribute_name("ttl").enabled(false).build().unwrap();
    dynamodb
        .update_time_to_live()
        .table_name(table_name("topics"))
        .time_to_live_specification(off)
        .send()
        .await
        .unwrap();
    row.insert("ttl".to_owned(), AttributeValue::N("1".to_owned()));
    let mut other = stack.connect("").await;
    let ask = json!({"type": "message", "topic": "t", "message": 1, "id": "m"});
    assert_eq!(other.ask(ask.clone()).await["delivered"], 1);
    dynamodb.put_item().table_name(table_name("topics")).set_item(Some(row.clone())).send().await.unwrap();
    assert_eq!(other.ask(ask).await["delivered"], 0);
    assert_eq!(stack.rows("topics").await, [row]);
}

#[tokio::test]
async fn a_connection_listens_to_a_hundred_topics_and_leaves_none_behind() {
    let stack = Stack::start().await;
    let mut one = stack.connect("?userId=1").await;
    for count in 1..100 {
        let ack = one.ask(json!({"type": "subscribe", "topic": format!("topic-{count}"), "id": "s"})).await;
        assert_eq!(ack["type"], "ack", "{count}: {ack}");
    }
    let error = one.ask(json!({"type": "subscribe", "topic": "one-too-many"})).await;
    assert_eq!(error["code"], "too_many_topics");
    let again = one.ask(json!({"type": "subscribe", "topic": "topic-7", "id": "again"})).await;
    assert_eq!(again, json!({"type": "ack", "id": "again"}));
    assert_eq!(stack.rows("topics").await.len(), 100);
    one.close().await;
    stack.settled("topics", 0).await;
    stack.settled("connections", 0).await;
}

/// Names are bounded, so that a list of a hundred of them is. The connection's row has all of them.
#[tokio::test]
async fn three_hundred_long_names_leave_a_small_row() {
    let stack = Stack::with(&["--env", "MAX_FRAMES_PER_SECOND=0"]).await;
    let mut one = stack.connect("?userId=1").await;
    let name = |number: usize, bytes: usize| format!("{number:03}{}", "x".repeat(bytes - 3));
    for number in 0..300 {
        let error = one.ask(json!({"type": "subscribe", "topic": name(number, 1024), "id": "s"})).await;
        assert_eq!(error["code"], "invalid_field", "{error}");
    }
    assert_eq!(stack.rows("topics").await.len(), 1, "its own address");
    for number in 0..300 {
        let answer = one.ask(json!({"type": "subscribe", "topic": name(number, 256), "id": "s"})).await;
        let expected = if number < 99 { json!(null) } else { json!("too_many_topics") };
        assert_eq!(answer["code"], expected, "{number}: {answer}");
    }
    let topics = stack.rows("connections").await[0]["topics"].as_ss().unwrap().concat();
    assert_eq!(topics.len(), 99 * 256 + "@1".len());
}

#[tokio::test]
async fn a_thousand_frames_to_fifty_subscribers() {
    let stack = Stack::start().await;
    let mut subscribers = Vec::new();
    for _ in 0..50 {
        let mut subscriber = stack.connect("").await;
        subscriber.ask(json!({"type": "subscribe", "topic": "t", "id": "s"})).await;
        subscribers.push(subscriber);
    }
    let mut publisher = stack.connect("").await;
    for count in 0..20 {
        publisher.send(json!({"type": "message", "topic": "t", "message": count})).await;
    }
    for subscriber in &mut subscribers {
        let mut seen = std::collections::BTreeSet::new();
        while seen.len() < 20 {
            seen.insert(subscriber.next().await["payload"]["data"].as_u64().unwrap());
        }
    }
}

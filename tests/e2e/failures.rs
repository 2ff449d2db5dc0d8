//! Failures behind the functions: receivers that are gone, posts that fail, writes that DynamoDB leaves undone.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use aws_sdk_dynamodb::types::AttributeValue;
use serde_json::json;
use switchboard_tests::proxy::{Answer, Call, Proxy, answer};
use switchboard_tests::stack::{Row, Stack, root, table_name, text};

/// Leaves the rows of a connection that is gone, as a lost `$disconnect` does. The connection is `age_s` old.
async fn leave_rows_of_a_gone_connection(stack: &Stack, user: &str, age_s: i64) -> Vec<(&'static str, Row)> {
    let before = [stack.rows("connections").await, stack.rows("topics").await];
    let client = stack.connect(&format!("?userId={user}")).await;
    let mut left = Vec::new();
    for (table, before) in ["connections", "topics"].into_iter().zip(&before) {
        let rows = stack.rows(table).await.into_iter().filter(|row| !before.contains(row));
        left.extend(rows.map(|row| (table, row)));
    }
    client.close().await;
    stack.settled("connections", before[0].len()).await;
    stack.settled("topics", before[1].len()).await;
    let dynamodb = stack.dynamodb().await;
    for (table, row) in &mut left {
        let connected_at_ms = switchboard_tests::stack::number(row, "connectedAt") - 1000 * age_s;
        row.insert("connectedAt".to_owned(), AttributeValue::N(connected_at_ms.to_string()));
        dynamodb.put_item().table_name(table_name(table)).set_item(Some(row.clone())).send().await.unwrap();
    }
    left
}

#[tokio::test]
async fn a_receiver_that_vanished_without_disconnect_is_forgotten_at_the_next_message() {
    let stack = Stack::start().await;
    let mut one = stack.connect("?userId=1").await;
    leave_rows_of_a_gone_connection(&stack, "2", 60).await;
    let frame = json!({"action": "sendMessage", "destinationUserId": "2", "body": "anybody?"});
    assert_eq!(one.ask(frame).await["code"], "user_offline");
    stack.settled("connections", 1).await;
    stack.settled("topics", 1).await;
    stack.logged(1, &["sendMessage |", "stale", "forgotten"]).await;
    one.hears_nothing().await;
}

#[tokio::test]
async fn a_410_from_a_young_connection_is_doubted_and_nothing_is_forgotten() {
    let stack = Stack::start().await;
    let mut one = stack.connect("?userId=1").await;
    leave_rows_of_a_gone_connection(&stack, "2", 0).await;
    let frame = json!({"action": "sendMessage", "destinationUserId": "2", "body": "there yet?"});
    assert_eq!(one.ask(frame).await["code"], "user_offline");
    assert_eq!((stack.rows("connections").await.len(), stack.rows("topics").await.len()), (2, 2));
    stack.logged(1, &["sendMessage |", "not open yet"]).await;
}

#[tokio::test]
async fn one_stale_subscriber_among_many_spoils_nothing() {
    let stack = Stack::start().await;
    let mut subscribers = Vec::new();
    for _ in 0..5 {
        let mut subscriber = stack.connect("").await;
        subscriber.ask(json!({"type": "subscribe", "topic": "t", "id": "s"})).await;
        subscribers.push(subscriber);
    }
    let left = leave_rows_of_a_gone_connection(&stack, "ghost", 60).await;
    let ghost = text(&left[0].1, "connectionId");
    let dynamodb = stack.dynamodb().await;
    let mut row = left.iter().find(|(table, _)| *table == "topics").unwrap().1.clone();
    row.insert("topic".to_owned(), AttributeValue::S("t".to_owned()));
    dynamodb.put_item().table_name(table_name("topics")).set_item(Some(row)).send().await.unwrap();

    let ack = subscribers[0].ask(json!({"type": "message", "topic": "t", "message": 1, "id": "m"})).await;
    // The sender is a subscriber, too, so its own delivery may come before the acknowledgement.
    let (data, ack) = if ack["type"] == "ack" {
        (subscribers[0].next().await, ack)
    } else {
        let next = subscribers[0].next().await;
        (ack, next)
    };
    assert_eq!((&data["type"], &ack["delivered"]), (&json!("data"), &json!(5)));
    for subscriber in &mut subscribers[1..] {
        assert_eq!(subscriber.next().await["payload"]["data"], 1);
    }
    let rows = stack.settled("connections", 5).await;
    assert!(rows.iter().all(|row| text(row, "connectionId") != ghost));
    assert_eq!(stack.settled("topics", 5).await.len(), 5);
}

#[tokio::test]
async fn a_bare_410_means_gone_as_well() {
    // The SDK recognises GoneException by a header alone, and a proxy may drop that header.
    let gone = Arc::new(std::sync::Mutex::new(None::<String>));
    let rule_gone = Arc::clone(&gone);
    let (_proxy, stack) = Proxy::in_front(&[], move |call| {
        let gone = rule_gone.lock().unwrap();
        let id = gone.as_deref().filter(|_| call.operation == "POST")?;
        call.path.contains(id.trim_end_matches('=')).then(|| answer(410, "", ""))
    })
    .await;
    let mut one = stack.connect("?userId=1").await;
    let left = leave_rows_of_a_gone_connection(&stack, "2", 60).await;
    *gone.lock().unwrap() = Some(text(&left[0].1, "connectionId"));
    let frame = json!({"action": "sendMessage", "destinationUserId": "2", "body": "?"});
    assert_eq!(one.ask(frame).await["code"], "user_offline");
    stack.settled("connections", 1).await;
}

/// Answers the first `times` calls of `operation` and passes on all others.
fn at_first(
    operation: &'static str,
    times: usize,
    with: impl Fn(&Call) -> Answer + Send + Sync + 'static,
) -> impl Fn(&Call) -> Option<Answer> {
    let count = AtomicUsize::new(0);
    move |call| (call.operation == operation && count.fetch_add(1, Ordering::SeqCst) < times).then(|| with(call))
}

#[tokio::test]
async fn throttled_and_failing_posts_are_tried_again() {
    for (status, error_type) in [(429, "LimitExceededException"), (500, ""), (503, "")] {
        let (proxy, stack) = Proxy::in_front(&[], at_first("POST", 3, move |_| answer(status, error_type, ""))).await;
        let mut one = stack.connect("?userId=1").await;
        let mut two = stack.connect("?userId=2").await;
        one.send(json!({"action": "sendMessage", "destinationUserId": "2", "body": status})).await;
        assert_eq!(two.next().await["body"], status);
        assert_eq!(proxy.take().iter().filter(|operation| *operation == "POST").count(), 4);
    }
}

/// Our serverless.yml with another timeout for every function.
pub fn hurried(timeout_s: u32) -> tempfile::TempDir {
    let folder = copied();
    let path = folder.path().join("serverless.yml");
    let ours = std::fs::read_to_string(&path).unwrap();
    let line = |line: &str| match line.trim_start().starts_with("timeout:") {
        true => format!("{}timeout: {timeout_s}\n", &line[..line.find("timeout:").unwrap()]),
        false => format!("{line}\n"),
    };
    std::fs::write(&path, ours.lines().map(line).collect::<String>()).unwrap();
    folder
}

/// A copy of our serverless.yml and of what it includes.
pub fn copied() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(root().join("serverless.yml"), folder.path().join("serverless.yml")).unwrap();
    std::fs::create_dir(folder.path().join("infra")).unwrap();
    for entry in std::fs::read_dir(root().join("infra")).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), folder.path().join("infra").join(entry.file_name())).unwrap();
        }
    }
    folder
}

#[tokio::test]
async fn a_message_that_reaches_nobody_because_posting_fails_is_an_error_of_ours() {
    let folder = hurried(2);
    let config = folder.path().join("serverless.yml");
    let two_id = Arc::new(std::sync::Mutex::new(String::from("nobody yet")));
    let failing = Arc::clone(&two_id);
    let (_proxy, stack) = Proxy::in_front(&["--config", config.to_str().unwrap()], move |call| {
        let fails = call.operation == "POST" && call.path.contains(failing.lock().unwrap().trim_end_matches('='));
        fails.then(|| answer(500, "", ""))
    })
    .await;
    let mut one = stack.connect("?userId=1").await;
    let first = text(&stack.rows("connections").await[0], "connectionId");
    let _two = stack.connect("?userId=2").await;
    let rows = stack.rows("connections").await;
    *two_id.lock().unwrap() = rows.iter().map(|row| text(row, "connectionId")).find(|id| *id != first).unwrap();

    let error = one.ask(json!({"action": "sendMessage", "destinationUserId": "2", "body": "x", "id": "1"})).await;
    assert_eq!(error["message"], "Internal server error");
    stack.logged(1, &["sendMessage |", "ERROR", "Publish.Undelivered"]).await;

    // With another device of user 2 the message arrives somewhere, and the count says where it did not.
    let mut also_two = stack.connect("?userId=2").await;
    let ack = one.ask(json!({"action": "sendMessage", "destinationUserId": "2", "body": "y", "id": "2"})).await;
    assert_eq!(ack, json!({"type": "ack", "id": "2", "delivered": 1}));
    assert_eq!(also_two.next().await["body"], "y");
    stack.logged(1, &["sendMessage |", "WARN", "not every subscriber was reached", "\"failed\":1"]).await;
}

#[tokio::test]
async fn unprocessed_items_are_asked_for_again() {
    let unprocessed =
        |call: &Call| answer(200, "", &json!({"UnprocessedItems": call.body["RequestItems"]}).to_string());
    let (proxy, stack) = Proxy::in_front(&[], at_first("BatchWriteItem", 3, unprocessed)).await;
    let _one = stack.connect("?userId=1").await;
    assert_eq!(proxy.take(), ["BatchWriteItem"; 4]);
    assert_eq!((stack.rows("connections").await.len(), stack.rows("topics").await.len()), (1, 1));
}

#[tokio::test]
async fn a_write_that_stays_unprocessed_is_a_loud_error_and_refuses_the_handshake() {
    let folder = hurried(2);
    let config = folder.path().join("serverless.yml");
    let (_proxy, stack) = Proxy::in_front(&["--config", config.to_str().unwrap()], |call| {
        let unprocessed = json!({"UnprocessedItems": call.body["RequestItems"]}).to_string();
        (call.operation == "BatchWriteItem").then(|| answer(200, "", &unprocessed))
    })
    .await;
    assert_eq!(stack.refused("?userId=1").await, 502);
    stack.logged(1, &["connect |", "ERROR", "Store.Unfinished", "2 item(s) undone"]).await;
}

#[tokio::test]
async fn a_throttled_batch_is_written_in_the_end() {
    let throttled = json!({"__type": "com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException"});
    // The SDK alone does not try so often.
    let rule = at_first("BatchWriteItem", 5, move |_| answer(400, "", &throttled.to_string()));
    let (_proxy, stack) = Proxy::in_front(&[], rule).await;
    let _one = stack.connect("?userId=1").await;
    assert_eq!(stack.rows("connections").await.len(), 1);
}

#[tokio::test]
async fn a_transaction_that_conflicts_with_another_is_tried_again() {
    let conflict = json!({
        "__type": "com.amazonaws.dynamodb.v20120810#TransactionCanceledException",
        "message": "Transaction cancelled, please refer cancellation reasons for specific reasons [TransactionConflict, None]",
        "CancellationReasons": [{"Code": "TransactionConflict", "Message": "Transaction is ongoing for the item"}, {"Code": "None"}],
    });
    let rule = at_first("TransactWriteItems", 3, move |_| answer(400, "", &conflict.to_string()));
    let (proxy, stack) = Proxy::in_front(&[], rule).await;
    let mut one = stack.connect("").await;
    let ack = one.ask(json!({"type": "subscribe", "topic": "t", "id": "s"})).await;
    assert_eq!(ack, json!({"type": "ack", "id": "s"}));
    assert_eq!(proxy.take().iter().filter(|operation| *operation == "TransactWriteItems").count(), 4);
}

#[tokio::test]
async fn a_subscribe_that_loses_against_disconnect_leaves_nothing_behind() {
    let stack = Stack::start().await;
    let mut one = stack.connect("?userId=1").await;
    let id = text(&stack.rows("connections").await[0], "connectionId");
    let dynamodb = stack.dynamodb().await;
    let delete = dynamodb.delete_item().table_name(table_name("connections"));
    delete.key("connectionId", AttributeValue::S(id)).send().await.unwrap();
    for kind in ["subscribe", "unsubscribe"] {
        assert_eq!(one.ask(json!({"type": kind, "topic": "t"})).await["code"], "unidentified");
    }
    let error = one.ask(json!({"action": "sendMessage", "destinationUserId": "1", "body": 1})).await;
    assert_eq!(error["code"], "unidentified");
    assert!(error["message"].as_str().unwrap().contains("connect again"), "{error}");
    assert!(stack.rows("connections").await.is_empty());
    assert!(stack.rows("topics").await.iter().all(|row| text(row, "topic") == "@1"));
}

//! Failures behind the functions: receivers that are gone, posts that fail, writes that DynamoDB leaves undone.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use aws_sdk_dynamodb::types::AttributeValue;
use serde_json::json;
use switchboard_tests::proxy::{Answer, Call, Proxy, answer};
use switchboard_tests::stack::{NO_RULES, Row, Stack, root, table_name, text};

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

/// Makes the mark of the first 410 older, instead of waiting for that.
async fn mark_earlier(stack: &Stack, seconds: i64) {
    let marked: Vec<_> = stack.rows("connections").await.into_iter().filter(|row| row.contains_key("goneAt")).collect();
    assert!(!marked.is_empty(), "no connection is marked");
    for mut row in marked {
        let gone_at_ms = switchboard_tests::stack::number(&row, "goneAt") - 1000 * seconds;
        row.insert("goneAt".to_owned(), AttributeValue::N(gone_at_ms.to_string()));
        let put = stack.dynamodb().await.put_item().table_name(table_name("connections"));
        put.set_item(Some(row)).send().await.unwrap();
    }
}

#[tokio::test]
async fn a_receiver_that_vanished_without_disconnect_is_forgotten_at_the_second_410() {
    let stack = Stack::with(&NO_RULES).await;
    let mut one = stack.connect("?userId=1").await;
    leave_rows_of_a_gone_connection(&stack, "2", 60).await;
    let frame = json!({"action": "sendMessage", "destinationUserId": "2", "body": "anybody?"});
    // The first one marks, and a second one of the same moment proves nothing.
    for _ in 0..2 {
        assert_eq!(one.ask(frame.clone()).await["code"], "user_offline");
        assert_eq!((stack.rows("connections").await.len(), stack.rows("topics").await.len()), (2, 2));
    }
    mark_earlier(&stack, 6).await;
    assert_eq!(one.ask(frame.clone()).await["code"], "user_offline");
    stack.settled("connections", 1).await;
    stack.settled("topics", 1).await;
    stack.logged(1, &["sendMessage |", "stale", "forgotten"]).await;
    one.hears_nothing().await;
}

#[tokio::test]
async fn a_mark_of_long_ago_says_nothing_any_more() {
    let stack = Stack::with(&NO_RULES).await;
    let mut one = stack.connect("?userId=1").await;
    leave_rows_of_a_gone_connection(&stack, "2", 3600).await;
    let frame = json!({"action": "sendMessage", "destinationUserId": "2", "body": "anybody?"});
    for _ in 0..2 {
        assert_eq!(one.ask(frame.clone()).await["code"], "user_offline");
        mark_earlier(&stack, 11 * 60).await;
    }
    assert_eq!((stack.rows("connections").await.len(), stack.rows("topics").await.len()), (2, 2));
}

/// API Gateway has been seen to answer 410 for a connection that was alive.
#[tokio::test]
async fn a_live_client_that_is_called_gone_is_never_deaf_without_knowing_it() {
    let gone = Arc::new(std::sync::Mutex::new(None::<String>));
    let rule_gone = Arc::clone(&gone);
    let (_proxy, stack) = Proxy::in_front(&NO_RULES, move |call| {
        let gone = rule_gone.lock().unwrap();
        let id = gone.as_deref().filter(|_| call.operation == "POST")?;
        call.path.contains(id.trim_end_matches('=')).then(|| answer(410, "GoneException", ""))
    })
    .await;
    let mut two = stack.connect("?userId=2").await;
    let id = text(&stack.rows("connections").await[0], "connectionId");
    let mut one = stack.connect("?userId=1").await;
    let dynamodb = stack.dynamodb().await;
    for table in ["connections", "topics"] {
        for mut row in stack.rows(table).await {
            row.insert("connectedAt".to_owned(), AttributeValue::N("1".to_owned()));
            dynamodb.put_item().table_name(table_name(table)).set_item(Some(row)).send().await.unwrap();
        }
    }
    let frame = |body: i32| json!({"action": "sendMessage", "destinationUserId": "2", "body": body, "id": "m"});

    // A connection that is called gone for a while loses the frame, and nothing else.
    *gone.lock().unwrap() = Some(id.clone());
    assert_eq!(one.ask(frame(1)).await["code"], "user_offline");
    *gone.lock().unwrap() = None;
    assert_eq!(one.ask(frame(2)).await["delivered"], 1);
    assert_eq!(two.next().await["body"], 2);

    // A second one after a while ends the connection, and its client hears that.
    mark_earlier(&stack, 6).await;
    *gone.lock().unwrap() = Some(id.clone());
    assert_eq!(one.ask(frame(3)).await["code"], "user_offline");
    assert_eq!(two.closed().await, 1000);
    assert!(stack.rows("connections").await.iter().all(|row| text(row, "connectionId") != id));
}

#[tokio::test]
async fn a_ping_without_a_record_is_no_pong() {
    let stack = Stack::start().await;
    let mut one = stack.connect("?userId=1").await;
    assert_eq!(one.ask(json!({"type": "ping", "id": "p"})).await, json!({"type": "pong", "id": "p"}));
    let id = text(&stack.rows("connections").await[0], "connectionId");
    let delete = stack.dynamodb().await.delete_item().table_name(table_name("connections"));
    delete.key("connectionId", AttributeValue::S(id)).send().await.unwrap();
    let error = one.ask(json!({"type": "ping", "id": "p"})).await;
    assert_eq!((&error["code"], &error["id"]), (&json!("unidentified"), &json!("p")));
    assert_eq!(error["temporary"], false);
}

#[tokio::test]
async fn a_410_from_a_young_connection_is_doubted_and_nothing_is_forgotten() {
    let stack = Stack::with(&NO_RULES).await;
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
    mark_earlier(&stack, 6).await;
    subscribers[1].send(json!({"type": "message", "topic": "t", "message": 2})).await;
    let rows = stack.settled("connections", 5).await;
    assert!(rows.iter().all(|row| text(row, "connectionId") != ghost));
    // The row of the ghost's own address goes as well.
    assert_eq!(stack.settled("topics", 5).await.len(), 5);
}

#[tokio::test]
async fn a_bare_410_means_gone_as_well() {
    // The SDK recognises GoneException by a header alone, and a proxy may drop that header.
    let gone = Arc::new(std::sync::Mutex::new(None::<String>));
    let rule_gone = Arc::clone(&gone);
    let (_proxy, stack) = Proxy::in_front(&NO_RULES, move |call| {
        let gone = rule_gone.lock().unwrap();
        let id = gone.as_deref().filter(|_| call.operation == "POST")?;
        call.path.contains(id.trim_end_matches('=')).then(|| answer(410, "", ""))
    })
    .await;
    let mut one = stack.connect("?userId=1").await;
    let left = leave_rows_of_a_gone_connection(&stack, "2", 60).await;
    *gone.lock().unwrap() = Some(text(&left[0].1, "connectionId"));
    let frame = json!({"action": "sendMessage", "destinationUserId": "2", "body": "?"});
    assert_eq!(one.ask(frame.clone()).await["code"], "user_offline");
    mark_earlier(&stack, 6).await;
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
async fn a_receiver_that_refuses_is_tried_again_later_and_the_sender_is_told() {
    let two_id = Arc::new(std::sync::Mutex::new(String::from("nobody yet")));
    let (failing, count) = (Arc::clone(&two_id), Arc::new(AtomicUsize::new(0)));
    let posts = Arc::clone(&count);
    // A first publish tries five times, and the continuation's second try succeeds.
    let (_proxy, stack) = Proxy::in_front(&NO_RULES, move |call| {
        let fails = call.operation == "POST" && call.path.contains(failing.lock().unwrap().trim_end_matches('='));
        (fails && posts.fetch_add(1, Ordering::SeqCst) < 6).then(|| answer(500, "", ""))
    })
    .await;
    let mut one = stack.connect("?userId=1").await;
    let first = text(&stack.rows("connections").await[0], "connectionId");
    let mut two = stack.connect("?userId=2").await;
    let mut also_two = stack.connect("?userId=2").await;
    let rows = stack.rows("connections").await;
    *two_id.lock().unwrap() = rows.iter().map(|row| text(row, "connectionId")).find(|id| *id != first).unwrap();

    let ack = one.ask(json!({"action": "sendMessage", "destinationUserId": "2", "body": "x", "id": "1"})).await;
    assert_eq!(ack, json!({"type": "ack", "id": "1", "delivered": 1, "continued": true}));
    assert_eq!((two.next().await["body"].clone(), also_two.next().await["body"].clone()), (json!("x"), json!("x")));
    assert_eq!(count.load(Ordering::SeqCst), 7);
    stack.logged(1, &["fanOut |", "\"published\"", "\"delivered\":1"]).await;
    // The other device heard it once.
    also_two.hears_nothing().await;
    two.hears_nothing().await;
}

#[tokio::test]
async fn a_post_that_is_denied_is_an_error_of_ours() {
    let (_proxy, stack) = Proxy::in_front(&[], |call| (call.operation == "POST").then(|| answer(403, "", ""))).await;
    let mut one = stack.connect("?userId=1").await;
    let error = one.ask(json!({"action": "sendMessage", "destinationUserId": "1", "body": "x", "id": "1"})).await;
    assert_eq!(error["message"], "Internal server error");
    stack.logged(1, &["sendMessage |", "ERROR", "Publish.Undelivered"]).await;
}

#[tokio::test]
async fn unprocessed_items_are_asked_for_again() {
    let unprocessed =
        |call: &Call| answer(200, "", &json!({"UnprocessedItems": call.body["RequestItems"]}).to_string());
    let (proxy, stack) = Proxy::in_front(&[], at_first("BatchWriteItem", 3, unprocessed)).await;
    let _one = stack.connect("?userId=1").await;
    assert_eq!(proxy.take()[2..], ["BatchWriteItem"; 4]);
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
    let rule = at_first("BatchWriteItem", 4, move |_| answer(400, "", &throttled.to_string()));
    let (_proxy, stack) = Proxy::in_front(&[], rule).await;
    let _one = stack.connect("?userId=1").await;
    assert_eq!(stack.rows("connections").await.len(), 1);
}

#[tokio::test]
async fn a_subscribe_that_is_put_off_is_tried_again_and_ends_as_busy() {
    let name = "ProvisionedThroughputExceededException";
    let throttled = json!({"__type": format!("com.amazonaws.dynamodb.v20120810#{name}")});
    for (times, expected) in [(4, "ack"), (usize::MAX, "error")] {
        let throttled = throttled.clone();
        let rule = at_first("UpdateItem", times, move |_| answer(400, "", &throttled.to_string()));
        let (_proxy, stack) = Proxy::in_front(&[], rule).await;
        let mut one = stack.connect("").await;
        let start = std::time::Instant::now();
        let reply = one.ask(json!({"type": "subscribe", "topic": "t", "id": "s"})).await;
        assert_eq!((&reply["type"], &reply["id"]), (&json!(expected), &json!("s")));
        if expected == "error" {
            assert_eq!((&reply["code"], &reply["temporary"]), (&json!("busy"), &json!(true)));
        }
        assert!(start.elapsed() < std::time::Duration::from_secs(10), "{:?}", start.elapsed());
        one.hears_nothing().await;
    }
}

/// `$disconnect` deletes the rows before the subscribe writes them.
#[tokio::test]
async fn a_row_that_is_written_after_its_connection_ended_does_not_stay() {
    let (proxy, stack) = Proxy::in_front(&[], |_| None).await;
    let mut one = stack.connect("?userId=1").await;
    proxy.take();
    proxy.delay("BatchWriteItem", std::time::Duration::from_secs(1));
    one.send(json!({"type": "subscribe", "topic": "t"})).await;
    proxy.called("BatchWriteItem").await;
    proxy.delay("BatchWriteItem", std::time::Duration::ZERO);
    one.close().await;
    stack.logged(1, &["disconnect |", "served"]).await;
    stack.logged(1, &["default |", "served", "unidentified"]).await;
    assert!(stack.rows("topics").await.is_empty());
    let calls = proxy.take();
    assert_eq!(calls.iter().filter(|call| *call == "BatchWriteItem").count(), 3, "{calls:?}");
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

use std::sync::Mutex;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::*;
use crate::scripted::{Answer, Aws, answer, failure};

const TIME: Duration = Duration::from_secs(28);

fn id() -> ConnectionId {
    ConnectionId::new("c=".to_owned())
}

fn subscriber() -> Subscriber {
    Subscriber { connection_id: id(), subscription_id: Some("s".to_owned()), connected_at_ms: now_ms() }
}

/// DynamoDB's answer to a transaction that is cancelled because of its first part.
fn cancelled(code: &str, item: &Value) -> Answer {
    let mut reason = json!({"Code": code});
    if *item != Value::Null {
        reason["Item"] = item.clone();
    }
    answer(
        400,
        json!({
            "__type": "com.amazonaws.dynamodb.v20120810#TransactionCanceledException",
            "CancellationReasons": [reason, {"Code": "None"}],
        }),
    )
}

fn code<T>(result: Result<T, Failure>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(Failure::Mistake(mistake)) => mistake.code(),
        Err(Failure::Fault(fault)) => fault.error_type(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_row_is_read_eventually_consistent_and_again_strongly_when_it_is_missing() {
    let alive = json!({"userId": {"S": "1"}, "connectedAt": {"N": "7"}, "ttl": {"N": "9999999999"}});
    let with = |name: &str, value: Value| {
        let mut row = alive.clone();
        row[name] = value;
        row
    };
    for (row, reads, found) in [
        (alive.clone(), 1, Some(true)),
        (with("closedAt", json!({"N": "8"})), 1, Some(false)),
        (with("ttl", json!({"N": "1"})), 1, None),
        (with("connectedAt", json!({"S": "today"})), 1, None),
        (with("userId", json!({"S": ""})), 1, None),
        (Value::Null, 2, None),
    ] {
        let item = row.clone();
        let (aws, backend) =
            Aws::backend(move |_| answer(200, if item.is_null() { json!({}) } else { json!({"Item": item}) }));
        let connection = backend.store.get(&id()).await.unwrap();
        assert_eq!(connection.map(|connection| connection.is_open), found, "{row}");
        let consistent: Vec<_> = aws.calls().iter().map(|call| call.body["ConsistentRead"].clone()).collect();
        assert_eq!(consistent, [json!(false), json!(true)][..reads], "{row}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_transaction_that_keeps_conflicting_ends_as_busy() {
    for (answer_with, calls, expected) in [
        ("TransactionConflict", 5, "busy"),
        ("ThrottlingError", 5, "busy"),
        ("ProvisionedThroughputExceeded", 5, "busy"),
        ("ValidationError", 1, "Store.Failed"),
    ] {
        let (aws, backend) = Aws::backend(move |_| cancelled(answer_with, &Value::Null));
        let start = Instant::now();
        let topic = Topic::parse("t").unwrap();
        let result = backend.store.subscribe(&topic, &subscriber(), None, Deadline::after(TIME)).await;
        assert_eq!((code(result), aws.calls().len()), (expected, calls), "{answer_with}");
        assert!(start.elapsed() <= MAX_TIME);
    }
    // The whole call may be throttled, too, and the SDK tries each one three times.
    let (aws, backend) = Aws::backend(|_| failure("ThrottlingException"));
    let result = backend.store.unsubscribe(&Topic::parse("t").unwrap(), &id(), Deadline::after(TIME)).await;
    assert_eq!(code(result), "busy");
    assert!(aws.calls().len() <= 15, "{}", aws.calls().len());
}

#[tokio::test(start_paused = true)]
async fn a_call_that_hangs_is_given_up() {
    let (_aws, backend) = Aws::backend(|_| Answer::Hang);
    let start = Instant::now();
    let topic = Topic::parse("t").unwrap();
    let result = backend.store.subscribe(&topic, &subscriber(), None, Deadline::after(TIME)).await;
    assert_eq!(code(result), "Store.Failed");
    assert!(backend.store.get(&id()).await.is_err());
    assert!(start.elapsed() <= Duration::from_secs(10), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_a_row_or_with_a_tombstone_cannot_subscribe() {
    for (item, expected) in [
        (Value::Null, "unidentified"),
        (json!({}), "unidentified"),
        (json!({"connectionId": {"S": "c="}, "closedAt": {"N": "1"}}), "unidentified"),
        (json!({"connectionId": {"S": "c="}, "topics": {"SS": ["t1"]}}), "too_many_topics"),
    ] {
        let row = item.clone();
        let (_aws, backend) = Aws::backend(move |call| match call.operation.as_str() {
            "TransactWriteItems" => cancelled("ConditionalCheckFailed", &row),
            _ => answer(
                200,
                json!({"Responses": {"TOPICS_TABLE": [{"topic": {"S": "t1"}, "ttl": {"N": "9999999999"}}]}}),
            ),
        });
        let topic = Topic::parse("t").unwrap();
        let result = backend.store.subscribe(&topic, &subscriber(), None, Deadline::after(TIME)).await;
        assert_eq!(code(result), expected, "{item}");
    }
}

#[tokio::test(start_paused = true)]
async fn expired_names_make_room_for_a_new_one() {
    let row = json!({"connectionId": {"S": "c="}, "topics": {"SS": ["live", "expired", "lost"]}});
    let refused = Mutex::new(false);
    let (aws, backend) = Aws::backend(move |call| match call.operation.as_str() {
        "TransactWriteItems" if !std::mem::replace(&mut *refused.lock().unwrap(), true) => {
            cancelled("ConditionalCheckFailed", &row)
        }
        "BatchGetItem" => {
            let rows = json!([{"topic": {"S": "live"}, "ttl": {"N": "9999999999"}},
                              {"topic": {"S": "expired"}, "ttl": {"N": "1"}}]);
            answer(200, json!({"Responses": {"TOPICS_TABLE": rows}}))
        }
        _ => answer(200, json!({})),
    });
    let topic = Topic::parse("t").unwrap();
    backend.store.subscribe(&topic, &subscriber(), None, Deadline::after(TIME)).await.unwrap();
    let calls = aws.calls();
    let operations: Vec<_> = calls.iter().map(|call| call.operation.as_str()).collect();
    assert_eq!(operations, ["TransactWriteItems", "BatchGetItem", "UpdateItem", "TransactWriteItems"]);
    assert_eq!(calls[2].body["ExpressionAttributeValues"][":expired"], json!({"SS": ["expired", "lost"]}));
}

#[tokio::test(start_paused = true)]
async fn writes_that_stay_unprocessed_are_given_up() {
    let (aws, backend) = Aws::backend(|call| answer(200, json!({"UnprocessedItems": call.body["RequestItems"]})));
    let connection = Connection { id: id(), user_id: None, connected_at_ms: now_ms(), is_open: true };
    let start = Instant::now();
    let error = backend.store.put(&connection, Deadline::after(TIME)).await.unwrap_err();
    assert_eq!((error.error_type(), aws.calls().len()), ("Store.Unfinished", 5));
    assert!(start.elapsed() <= MAX_TIME);
}

#[tokio::test(start_paused = true)]
async fn closing_leaves_a_tombstone_and_removes_every_topic_row() {
    let topics: Vec<_> = (0..30).map(|number| format!("t{number:02}")).collect();
    let old = topics.clone();
    let (aws, backend) = Aws::backend(move |call| match call.operation.as_str() {
        "UpdateItem" => answer(200, json!({"Attributes": {"topics": {"SS": old}}})),
        _ => answer(200, json!({})),
    });
    let count = backend.store.close(&id(), Some(&Topic::parse("also").unwrap()), Deadline::after(TIME)).await.unwrap();
    assert_eq!(count, 31);
    let calls = aws.calls();
    let update = &calls[0].body;
    let value = |name: &str| update["ExpressionAttributeValues"][name]["N"].as_str().unwrap().parse::<i64>().unwrap();
    assert_eq!(update["UpdateExpression"], "SET closedAt = :now, #ttl = :soon REMOVE topics, goneAt");
    assert!((value(":soon") - value(":now") / 1000 - TOMBSTONE_TTL_S).abs() <= 1);
    let deleted = calls[1..].iter().map(|call| call.body["RequestItems"]["TOPICS_TABLE"].as_array().unwrap().len());
    assert_eq!(deleted.collect::<Vec<_>>(), [25, 6]);

    // Without a row there is nothing to close, and what the caller knows of goes all the same.
    let (aws, backend) = Aws::backend(|call| match call.operation.as_str() {
        "UpdateItem" => failure("ConditionalCheckFailedException"),
        _ => answer(200, json!({})),
    });
    assert_eq!(backend.store.close(&id(), None, Deadline::after(TIME)).await.unwrap(), 0);
    assert_eq!(aws.calls().len(), 1);
}

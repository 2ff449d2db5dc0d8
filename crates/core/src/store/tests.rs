use std::sync::Mutex;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::*;
use crate::backend::Backend;
use crate::scripted::{Answer, Aws, answer, failure};

const TIME: Duration = Duration::from_secs(28);

fn id() -> ConnectionId {
    ConnectionId::new("c=".to_owned())
}

fn subscription(topic: &str) -> Subscription {
    Subscription::new(Topic::parse(topic).unwrap(), Some("s".to_owned()))
}

/// Subscribes connection `c=` to topics.
async fn subscribe(store: &ConnectionStore, topics: &[&str]) -> Result<Grants, Failure> {
    let subscriptions: Vec<_> = topics.iter().map(|topic| subscription(topic)).collect();
    store.subscribe(&id(), now_ms(), &subscriptions, Deadline::after(TIME)).await
}

/// DynamoDB's answer to a write whose condition does not hold for this item.
fn refused(item: &Value) -> Answer {
    let name = "com.amazonaws.dynamodb.v20120810#ConditionalCheckFailedException";
    let mut body = json!({"__type": name, "message": "The conditional request failed"});
    if *item != Value::Null {
        body["Item"] = item.clone();
    }
    answer(400, body)
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
        (with("expiresAt", json!({"N": "9999999999"})), 1, Some(true)),
        // Another frame may have made the session longer a moment ago.
        (with("ttl", json!({"N": "1"})), 2, None),
        (with("expiresAt", json!({"N": "1"})), 2, None),
        (with("connectedAt", json!({"S": "today"})), 2, None),
        (with("userId", json!({"S": ""})), 2, None),
        (Value::Null, 2, None),
    ] {
        let item = row.clone();
        let (aws, backend) =
            Aws::backend(move |_| answer(200, if item.is_null() { json!({}) } else { json!({"Item": item}) }));
        let connection = backend.store.get(&id(), Freshness::Usual).await.unwrap();
        assert_eq!(connection.map(|connection| connection.is_open), found, "{row}");
        backend.store.get(&id(), Freshness::Latest).await.unwrap();
        let consistent: Vec<_> = aws.calls().iter().map(|call| call.body["ConsistentRead"].clone()).collect();
        assert_eq!(consistent, [&[false, true][..reads], &[true]].concat(), "{row}");
    }
}

/// The row of an open connection that listens to these topics.
fn listening(topics: &[&str]) -> Value {
    json!({"connectionId": {"S": "c="}, "topics": {"SS": topics}})
}

#[tokio::test(start_paused = true)]
async fn the_set_comes_before_the_rows_and_is_read_after_them() {
    let topics: Vec<_> = (0..60).map(|number| format!("t{number:02}")).collect();
    let topics: Vec<_> = topics.iter().map(String::as_str).collect();
    let row = listening(&topics);
    let (aws, backend) = Aws::backend(move |call| match call.operation.as_str() {
        "GetItem" => answer(200, json!({"Item": row})),
        _ => answer(200, json!({})),
    });
    subscribe(&backend.store, &topics).await.unwrap();
    let calls = aws.calls();
    let operations: Vec<_> = calls.iter().map(|call| call.operation.as_str()).collect();
    assert_eq!(operations, ["UpdateItem", "BatchWriteItem", "BatchWriteItem", "BatchWriteItem", "GetItem"]);
    assert_eq!(calls[0].body["UpdateExpression"], "ADD topics :names");
    assert_eq!(calls[0].body["ExpressionAttributeValues"][":names"], json!({"SS": topics}));
    let mut written = Vec::new();
    for call in &calls[1..4] {
        let writes = call.body["RequestItems"]["TOPICS_TABLE"].as_array().unwrap();
        assert!(writes.len() <= 25);
        written.extend(writes.iter().map(|write| write["PutRequest"]["Item"]["topic"]["S"].as_str().unwrap()));
    }
    assert_eq!(written, topics);
    assert_eq!(calls[4].body["ConsistentRead"], true);
}

/// The connection ended after its set was written and before its rows were. `close` may have been faster than the rows.
#[tokio::test(start_paused = true)]
async fn a_subscribe_that_loses_against_the_end_of_its_connection_removes_its_rows() {
    for row in [json!({}), json!({"Item": {"connectionId": {"S": "c="}, "closedAt": {"N": "1"}}})] {
        let (aws, backend) = Aws::backend(move |call| match call.operation.as_str() {
            "GetItem" => answer(200, row.clone()),
            _ => answer(200, json!({})),
        });
        assert_eq!(code(subscribe(&backend.store, &["a", "b"]).await), "unidentified");
        let calls = aws.calls();
        let deletes = &calls.last().unwrap().body["RequestItems"]["TOPICS_TABLE"];
        let deleted: Vec<_> = deletes
            .as_array()
            .unwrap()
            .iter()
            .map(|write| write["DeleteRequest"]["Key"]["topic"]["S"].as_str().unwrap())
            .collect();
        assert_eq!(deleted, ["a", "b"]);
    }
}

/// Another frame of the connection took the name out, because it found no row yet.
#[tokio::test(start_paused = true)]
async fn a_name_that_is_gone_after_its_row_was_written_is_added_again() {
    let (reads, reads_to_lose) = (Mutex::new(0), 2);
    let (aws, backend) = Aws::backend(move |call| match call.operation.as_str() {
        "GetItem" => {
            let mut reads = reads.lock().unwrap();
            *reads += 1;
            let names: &[_] = if *reads <= reads_to_lose { &["other"] } else { &["other", "t"] };
            answer(200, json!({"Item": listening(names)}))
        }
        _ => answer(200, json!({})),
    });
    subscribe(&backend.store, &["t"]).await.unwrap();
    assert_eq!((aws.count("UpdateItem"), aws.count("BatchWriteItem"), aws.count("GetItem")), (3, 3, 3));
}

#[tokio::test(start_paused = true)]
async fn a_subscribe_that_is_put_off_ends_as_busy() {
    for operation in ["UpdateItem", "BatchWriteItem", "GetItem"] {
        for name in ["ThrottlingException", "ProvisionedThroughputExceededException", "ValidationException"] {
            let (aws, backend) = Aws::backend(move |call| match &call.operation {
                called if called == operation => failure(name),
                _ => answer(200, json!({"Item": listening(&["t"])})),
            });
            let start = Instant::now();
            let result = subscribe(&backend.store, &["t"]).await;
            match name {
                "ValidationException" => assert_eq!((code(result), aws.count(operation)), ("Store.Failed", 1)),
                _ => {
                    assert_eq!(code(result), "busy", "{operation} {name}");
                    // The SDK tries each call three times.
                    assert!(aws.count(operation) <= 15, "{}", aws.count(operation));
                }
            }
            assert!(start.elapsed() <= 2 * MAX_TIME, "{:?}", start.elapsed());
        }
    }
    let (aws, backend) = Aws::backend(|call| answer(200, json!({"UnprocessedItems": call.body["RequestItems"]})));
    assert_eq!(code(subscribe(&backend.store, &["t"]).await), "busy");
    assert_eq!(aws.count("BatchWriteItem"), 5);
}

#[tokio::test(start_paused = true)]
async fn an_unsubscribe_deletes_the_row_of_an_open_connection() {
    let open = json!({"connectedAt": {"N": "7"}, "ttl": {"N": "9999999999"}});
    let mut closed = open.clone();
    closed["closedAt"] = json!({"N": "8"});
    for (row, delete, expected) in [
        (open.clone(), answer(200, json!({})), "ok"),
        (open, failure("ThrottlingException"), "busy"),
        (closed, answer(200, json!({})), "unidentified"),
    ] {
        let delete = Mutex::new(Some(delete));
        let (aws, backend) = Aws::backend(move |call| match call.operation.as_str() {
            "GetItem" => answer(200, json!({"Item": row})),
            _ => delete.lock().unwrap().take().unwrap_or_else(|| failure("ThrottlingException")),
        });
        let result = backend.store.unsubscribe(&Topic::parse("t").unwrap(), &id(), Deadline::after(TIME)).await;
        assert_eq!(code(result), expected);
        assert_eq!(aws.count("DeleteItem") > 0, expected != "unidentified");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_hangs_is_given_up() {
    let (_aws, backend) = Aws::backend(|_| Answer::Hang);
    let start = Instant::now();
    assert_eq!(code(subscribe(&backend.store, &["t"]).await), "Store.Failed");
    assert!(backend.store.get(&id(), Freshness::Usual).await.is_err());
    assert!(start.elapsed() <= Duration::from_secs(10), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_a_row_or_with_a_tombstone_cannot_subscribe() {
    for item in [Value::Null, json!({}), json!({"connectionId": {"S": "c="}, "closedAt": {"N": "1"}})] {
        let row = item.clone();
        let (aws, backend) = Aws::backend(move |_| refused(&row));
        assert_eq!(code(subscribe(&backend.store, &["t"]).await), "unidentified", "{item}");
        assert_eq!(aws.calls().len(), 1);
    }
}

/// A table of one connection and its topic rows, as far as the list of topics needs it.
fn full(names: usize, live: usize) -> (Aws, Backend, std::sync::Arc<Mutex<BTreeSet<String>>>) {
    let all: Vec<_> = (0..names).map(|number| format!("t{number:02}")).collect();
    let set: BTreeSet<_> = all.iter().cloned().collect();
    let set = std::sync::Arc::new(Mutex::new(set));
    let shared = std::sync::Arc::clone(&set);
    let (aws, backend) = Aws::backend(move |call| {
        let mut set = shared.lock().unwrap();
        let row = |set: &BTreeSet<String>| json!({"connectionId": {"S": "c="}, "topics": {"SS": set}});
        match call.operation.as_str() {
            "UpdateItem" => {
                let values = &call.body["ExpressionAttributeValues"];
                let names: Vec<String> = serde_json::from_value(values[":names"]["SS"].clone()).unwrap();
                let most = values[":most"]["N"].as_str().map_or(usize::MAX, |most| most.parse().unwrap());
                if set.len() > most {
                    return refused(&row(&set));
                }
                match call.body["UpdateExpression"].as_str().unwrap().starts_with("ADD") {
                    true => set.extend(names),
                    false => set.retain(|name| !names.contains(name)),
                }
                answer(200, json!({}))
            }
            "BatchGetItem" => {
                let keys = call.body["RequestItems"]["TOPICS_TABLE"]["Keys"].as_array().unwrap();
                assert!((1..=100).contains(&keys.len()));
                let rows = keys.iter().filter_map(|key| {
                    let number = all.iter().position(|name| key["topic"]["S"] == **name)?;
                    let ttl = if number < live { "9999999999" } else { "1" };
                    (number % 2 == 0 || number < live).then(|| json!({"topic": key["topic"], "ttl": {"N": ttl}}))
                });
                answer(200, json!({"Responses": {"TOPICS_TABLE": rows.collect::<Vec<_>>()}}))
            }
            "GetItem" => answer(200, json!({"Item": row(&set)})),
            _ => answer(200, json!({})),
        }
    });
    (aws, backend, set)
}

#[tokio::test(start_paused = true)]
async fn a_list_counts_only_what_is_live_and_new() {
    let new: Vec<_> = (0..100).map(|number| format!("n{number:02}")).collect();
    let new = |count: usize| new[..count].iter().map(String::as_str);
    for (names, live, topics, expected) in [
        // There is room for as many new names as there are.
        (0, 0, new(100).collect::<Vec<_>>(), "ok"),
        (50, 50, new(50).collect(), "ok"),
        (50, 50, new(51).collect(), "too_many_topics"),
        (1, 1, new(100).collect(), "too_many_topics"),
        // Known names do not count twice, in a full list neither.
        (100, 100, vec!["t07"], "ok"),
        (99, 99, vec!["t07", "t08", "new"], "ok"),
        (99, 99, vec!["t07", "new", "newer"], "too_many_topics"),
        // Those whose rows have expired or gone make room, but not if they are wanted themselves.
        (100, 99, vec!["new"], "ok"),
        (100, 99, vec!["new", "newer"], "too_many_topics"),
        (100, 0, new(100).collect(), "ok"),
        (100, 98, vec!["t98", "t99"], "ok"),
        (100, 98, vec!["t98", "t99", "new"], "too_many_topics"),
    ] {
        let (aws, backend, set) = full(names, live);
        assert_eq!(code(subscribe(&backend.store, &topics).await), expected, "{names} {live} {topics:?}");
        let set = set.lock().unwrap();
        assert!(set.len() <= 100);
        assert_eq!(topics.iter().all(|topic| set.contains(*topic)), expected == "ok", "{set:?}");
        assert_eq!(aws.count("BatchWriteItem") > 0, expected == "ok", "nothing else is written");
        let live = (0..live).map(|number| format!("t{number:02}"));
        assert!(live.into_iter().all(|name| set.contains(&name)));
    }
}

/// A row that is written between the two looks keeps its name.
#[tokio::test(start_paused = true)]
async fn a_name_that_seems_expired_comes_back_if_its_row_does() {
    let looks = Mutex::new(0);
    let names: Vec<_> = (0..100).map(|number| format!("t{number:02}")).collect();
    let (aws, backend) = Aws::backend(move |call| match call.operation.as_str() {
        "UpdateItem" if call.body["ExpressionAttributeValues"][":most"]["N"] == "99" && *looks.lock().unwrap() == 0 => {
            refused(&json!({"connectionId": {"S": "c="}, "topics": {"SS": names}}))
        }
        "BatchGetItem" => {
            *looks.lock().unwrap() += 1;
            let keys = call.body["RequestItems"]["TOPICS_TABLE"]["Keys"].as_array().unwrap().clone();
            // At first the rows of two are missing, and then one of them is there.
            let late = *looks.lock().unwrap() > 1;
            let rows = keys.into_iter().map(|key| key["topic"].clone());
            let rows = rows.filter(|topic| topic["S"] != "t98" && (late || topic["S"] != "t99"));
            let rows: Vec<_> = rows.map(|topic| json!({"topic": topic, "ttl": {"N": "9999999999"}})).collect();
            answer(200, json!({"Responses": {"TOPICS_TABLE": rows}}))
        }
        "GetItem" => answer(200, json!({"Item": listening(&["new"])})),
        _ => answer(200, json!({})),
    });
    subscribe(&backend.store, &["new"]).await.unwrap();
    let updates = aws.calls().into_iter().filter(|call| call.operation == "UpdateItem");
    let updates: Vec<_> = updates
        .map(|call| {
            let names = call.body["ExpressionAttributeValues"][":names"]["SS"].to_string();
            format!("{} {names}", call.body["UpdateExpression"].as_str().unwrap())
        })
        .collect();
    let expected = [
        r#"ADD topics :names ["new"]"#,
        r#"DELETE topics :names ["t98","t99"]"#,
        r#"ADD topics :names ["t99"]"#,
        r#"ADD topics :names ["new"]"#,
    ];
    assert_eq!(updates, expected);
}

#[tokio::test(start_paused = true)]
async fn writes_that_stay_unprocessed_are_given_up() {
    let (aws, backend) = Aws::backend(|call| answer(200, json!({"UnprocessedItems": call.body["RequestItems"]})));
    let connection = Connection::for_tests(None);
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
        "UpdateItem" => answer(200, json!({"Attributes": {"topics": {"SS": old}, "userId": {"S": "alice"}}})),
        _ => answer(200, json!({})),
    });
    let closed = backend.store.close(&id(), Some(&Topic::parse("also").unwrap()), Deadline::after(TIME)).await.unwrap();
    assert_eq!((closed.user.unwrap().as_str(), closed.subscriptions), ("alice", 31));
    let calls = aws.calls();
    let update = &calls[0].body;
    let value = |name: &str| update["ExpressionAttributeValues"][name]["N"].as_str().unwrap().parse::<i64>().unwrap();
    assert_eq!(update["UpdateExpression"], "SET closedAt = :now, #ttl = :soon REMOVE goneAt");
    // The list of topics stays in the tombstone. If the answer is lost, the SDK calls again and still gets the list.
    assert!((value(":soon") - value(":now") / 1000 - TOMBSTONE_TTL_S).abs() <= 1);
    let deleted = calls[1..].iter().map(|call| call.body["RequestItems"]["TOPICS_TABLE"].as_array().unwrap().len());
    assert_eq!(deleted.collect::<Vec<_>>(), [25, 6]);

    // Without a row there is nothing to close, and what the caller knows of goes all the same.
    let (aws, backend) = Aws::backend(|call| match call.operation.as_str() {
        "UpdateItem" => failure("ConditionalCheckFailedException"),
        _ => answer(200, json!({})),
    });
    let closed = backend.store.close(&id(), None, Deadline::after(TIME)).await.unwrap();
    assert_eq!(closed, Closed { user: None, subscriptions: 0 });
    assert_eq!(aws.calls().len(), 1);
}

/// The row of a connection of user 1 whose session ends then, and which may listen to `a`, `b` and so on.
fn session_row(end_s: i64, granted: &[&str], topics: &[&str]) -> Value {
    let mut row = listening(topics);
    row["ttl"] = json!({"N": end_s.to_string()});
    row["userId"] = json!({"S": "1"});
    if !granted.is_empty() {
        row["maySubscribe"] = json!({"SS": granted});
    }
    row
}

/// A connection of user 1 with a new session.
fn renewed(end_s: i64, granted: &[&str]) -> Connection {
    let grants = Grants::parse(&json!({"subscribe": granted})).unwrap();
    Connection { expires_at_s: Some(end_s), grants, ..Connection::for_tests(Some("1")) }
}

/// Renews a session, and keeps what is granted. Returns the topics that are taken away.
async fn renew(store: &ConnectionStore, connection: &Connection) -> Result<Vec<String>, Failure> {
    let keeps = |topic: &Topic, grants: &Grants| grants.contain(crate::rights::Act::Subscribe, &Pattern::of(topic));
    store.renew(connection, keeps, Deadline::after(TIME)).await
}

/// The calls in short: the operation, the topic if there is one, and the end that it sets.
fn in_short(aws: &Aws) -> Vec<String> {
    let short = aws.calls().into_iter().map(|call| {
        let topic = call.body["Key"]["topic"]["S"].as_str().unwrap_or("-").to_owned();
        let end_s = call.body["ExpressionAttributeValues"][":end"]["N"].as_str().unwrap_or("-").to_owned();
        format!("{} {topic} {end_s}", call.operation)
    });
    short.collect()
}

#[tokio::test(start_paused = true)]
async fn a_new_session_deletes_what_it_does_not_keep_and_moves_the_ends_of_the_rest() {
    let (old_s, end_s) = (now_s() + 100, now_s() + 200);
    let end = json!({"N": end_s.to_string()});
    let (aws, backend) = Aws::backend(move |call| {
        let topic = call.body["Key"]["topic"]["S"].as_str();
        match (call.operation.as_str(), topic) {
            ("UpdateItem", None) => {
                answer(200, json!({"Attributes": session_row(old_s, &["*"], &["a", "b", "c", "d"])}))
            }
            // The client wants this one to end earlier.
            ("UpdateItem", Some("b")) if call.body["ExpressionAttributeValues"][":end"] == end => {
                refused(&json!({"endsAt": {"N": "7"}}))
            }
            // This name has no row.
            ("DeleteItem", Some("c")) => answer(200, json!({})),
            ("DeleteItem", Some(_)) => answer(200, json!({"Attributes": session_row(old_s, &[], &[])})),
            ("GetItem", _) => answer(200, json!({"Item": session_row(end_s, &["a", "b"], &["a", "b", "c", "d"])})),
            _ => answer(200, json!({})),
        }
    });
    assert_eq!(renew(&backend.store, &renewed(end_s, &["a", "b"])).await.unwrap(), ["d"]);
    let mut calls = in_short(&aws);
    calls[1..].sort();
    let expected = [
        "UpdateItem - -",
        "DeleteItem c -",
        "DeleteItem d -",
        "GetItem - -",
        "UpdateItem a",
        "UpdateItem b",
        "UpdateItem b 7",
    ];
    let ends = [5, 6].map(|_| format!(" {end_s}"));
    let expected: Vec<_> = expected
        .iter()
        .map(|call| {
            if ["UpdateItem a", "UpdateItem b"].contains(call) {
                format!("{call}{}", ends[0])
            } else {
                (*call).to_owned()
            }
        })
        .collect();
    assert_eq!(calls, expected);
    let update = &aws.calls()[0].body;
    assert_eq!(
        update["UpdateExpression"],
        "SET #ttl = :ttl, expiresAt = :expiresAt, maySubscribe = :maySubscribe REMOVE mayPublish"
    );
    assert_eq!(update["ConditionExpression"], "userId = :user AND attribute_not_exists(closedAt) AND #ttl > :now");
    assert_eq!(update["ExpressionAttributeValues"][":ttl"], json!({"N": end_s.to_string()}));
}

/// Two `auth` frames of one moment: the other one wrote the connection's row later, so its session counts for the topics.
#[tokio::test(start_paused = true)]
async fn a_session_that_another_frame_replaces_meanwhile_leaves_its_end_and_its_grants_everywhere() {
    let (end_s, other_s) = (now_s() + 100, now_s() + 200);
    let (aws, backend) = Aws::backend(move |call| {
        let topic = call.body["Key"]["topic"]["S"].as_str();
        match (call.operation.as_str(), topic) {
            ("UpdateItem", None) => answer(200, json!({"Attributes": session_row(end_s, &["*"], &["a", "b"])})),
            ("DeleteItem", _) => answer(200, json!({"Attributes": session_row(end_s, &[], &[])})),
            ("GetItem", _) => answer(200, json!({"Item": session_row(other_s, &["a"], &["a", "b"])})),
            _ => answer(200, json!({})),
        }
    });
    assert_eq!(renew(&backend.store, &renewed(end_s, &["a", "b"])).await.unwrap(), ["b"]);
    let last = ["GetItem - -", "DeleteItem b -", &format!("UpdateItem a {other_s}"), "GetItem - -"];
    assert_eq!(in_short(&aws)[1..], last);
}

#[tokio::test(start_paused = true)]
async fn a_session_is_refused_to_others_and_after_its_end() {
    let alive_s = now_s() + 100;
    let mut tombstone = session_row(alive_s, &[], &[]);
    tombstone["closedAt"] = json!({"N": "1"});
    for (row, expected) in [
        (session_row(alive_s, &[], &[]), "invalid_token"),
        (session_row(now_s() - 1, &[], &[]), "unidentified"),
        (tombstone, "unidentified"),
        (Value::Null, "unidentified"),
    ] {
        let item = row.clone();
        let (aws, backend) = Aws::backend(move |_| refused(&item));
        assert_eq!(code(renew(&backend.store, &renewed(alive_s, &[])).await), expected, "{row}");
        assert_eq!(aws.calls().len(), 1);
    }
}

/// An `auth` frame between the first and the last step of a subscribe.
#[tokio::test(start_paused = true)]
async fn a_subscribe_writes_its_rows_again_when_the_session_changes_meanwhile() {
    let (old_s, new_s) = (now_s() + 100, now_s() + 200);
    let updates = Mutex::new(0);
    let (aws, backend) = Aws::backend(move |call| match call.operation.as_str() {
        "UpdateItem" => {
            let mut updates = updates.lock().unwrap();
            *updates += 1;
            let end_s = if *updates == 1 { old_s } else { new_s };
            answer(200, json!({"Attributes": session_row(end_s, &[], &["t"])}))
        }
        "GetItem" => answer(200, json!({"Item": session_row(new_s, &["t"], &["t"])})),
        _ => answer(200, json!({})),
    });
    let grants = subscribe(&backend.store, &["t"]).await.unwrap();
    assert!(grants.contain(crate::rights::Act::Subscribe, &Pattern::of(&Topic::parse("t").unwrap())));
    let batches = aws.calls().into_iter().filter(|call| call.operation == "BatchWriteItem");
    let ends =
        batches.map(|call| call.body["RequestItems"]["TOPICS_TABLE"][0]["PutRequest"]["Item"]["ttl"]["N"].clone());
    assert_eq!(ends.collect::<Vec<_>>(), [json!(old_s.to_string()), json!(new_s.to_string())]);
}

//! A table of what receivers and tables may do to a publish: each row in milliseconds, on a paused clock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::time::Instant;

use super::*;
use crate::backend::Backend;
use crate::event;
use crate::gateway::ATTEMPT_TIMEOUT;
use crate::history::Stamp;
use crate::publication::{Content, Kept};
use crate::scripted::{Answer, Aws, Call, answer, failure};
use crate::topic::Topic;

mod large;

/// An invocation's time.
const TIME: Duration = Duration::from_secs(28);

fn topic() -> Audience {
    Audience::Topic(Topic::parse("t").unwrap())
}

/// The id of the receiver with this number. Ids sort like their numbers.
fn id(number: usize) -> String {
    format!("c{number:06}=")
}

/// The rows of receivers, which connected `age_s` ago.
fn rows(numbers: std::ops::Range<usize>, age_s: i64) -> Vec<Value> {
    let connected_at = (now_ms() - 1000 * age_s).to_string();
    let row = |number| json!({"connectionId": {"S": id(number)}, "subscriptionId": {"S": "s"}, "connectedAt": {"N": connected_at}});
    numbers.map(row).collect()
}

/// Pages of 100 old receivers, out of `count`.
fn page(call: &Call, count: usize) -> Answer {
    let start = &call.body["ExclusiveStartKey"]["connectionId"]["S"];
    let first = start.as_str().map_or(0, |last| last[1..7].parse::<usize>().unwrap() + 1);
    let end = count.min(first + 100);
    let mut page = json!({"Items": rows(first..end, 60)});
    if end < count {
        page["LastEvaluatedKey"] = json!({"topic": {"S": "t"}, "connectionId": {"S": id(end - 1)}});
    }
    answer(200, page)
}

/// What the tables answer when nothing is special: the receivers, and success.
fn tables(call: &Call, count: usize) -> Answer {
    match call.operation.as_str() {
        "Query" => page(call, count),
        "POST" => Answer::After(Duration::from_millis(5), 200, json!({})),
        _ => answer(200, json!({})),
    }
}

/// A gateway that answers 410 for a connection.
fn gone() -> Answer {
    answer(410, json!({}))
}

/// DynamoDB's answer when a condition does not hold for this row.
fn refused_for(row: &Value) -> Answer {
    answer(400, json!({"__type": "com.amazonaws.dynamodb.v20120810#ConditionalCheckFailedException", "Item": row}))
}

async fn publish_for(backend: &Backend, publication: Publication, time: Duration) -> Result<Fanout, Error> {
    let gateway = backend.gateways.configured().unwrap();
    let receivers = backend.store.receivers(&publication.audience, &publication.position);
    backend.publisher.publish(&gateway, publication, receivers, Deadline::after(time)).await
}

/// Goes on with a continuation, as `fan-out` does.
async fn go_on(backend: &Backend, rest: Publication) -> Fanout {
    let gateway = backend.gateways.configured().unwrap();
    backend.publisher.go_on(&gateway, rest, Deadline::after(TIME)).await.unwrap()
}

fn message() -> Publication {
    let data = serde_json::value::to_raw_value("hi").unwrap();
    Publication::new(topic(), Content::Data(vec![data]), "request")
}

/// The continuations that were put, as the stream brings them to `fan-out`.
fn continuations(aws: &Aws) -> Vec<Publication> {
    let puts = aws.calls().into_iter().filter(|call| call.operation == "PutItem");
    puts.map(|put| event::continuation(serde_json::from_value(put.body["Item"].clone()).unwrap()).unwrap()).collect()
}

/// The only one.
fn continuation(aws: &Aws) -> Option<Publication> {
    let mut continuations = continuations(aws);
    assert!(continuations.len() <= 1, "there is one continuation");
    continuations.pop()
}

/// How often each connection was posted to.
fn posts(aws: &Aws) -> BTreeMap<String, usize> {
    let mut posts = BTreeMap::new();
    for call in aws.calls().into_iter().filter(|call| call.operation == "POST") {
        *posts.entry(call.connection_id).or_default() += 1;
    }
    posts
}

#[tokio::test(start_paused = true)]
async fn everybody_is_posted_to_once() {
    let (aws, backend) = Aws::backend(|call| tables(call, 300));
    let fanout = publish_for(&backend, message(), TIME).await.unwrap();
    assert_eq!(fanout, Fanout { delivered: 300, ..Fanout::default() });
    assert!(posts(&aws).values().all(|count| *count == 1));
    assert_eq!((aws.count("Query"), aws.count("POST"), aws.calls().len()), (3, 300, 303));
}

#[tokio::test(start_paused = true)]
async fn receivers_are_counted_before_the_first_post_and_no_page_is_read_twice() {
    for (count, limit, exceed, queries) in [
        (0, 1, false, 1),
        (50, 100, false, 1),
        (300, 300, false, 3),
        (301, 300, true, 4),
        (300, 100, true, 2),
        (300, 99, true, 1),
    ] {
        let (aws, backend) = Aws::backend(move |call| tables(call, count));
        let mut receivers = backend.store.receivers(&topic(), &Position::Start);
        assert_eq!(receivers.exceed(limit, Deadline::after(TIME)).await.unwrap(), exceed, "{count} {limit}");
        assert_eq!((aws.count("Query"), aws.calls().len()), (queries, queries), "{count} {limit}");
        let gateway = backend.gateways.configured().unwrap();
        let fanout = backend.publisher.publish(&gateway, message(), receivers, Deadline::after(TIME)).await.unwrap();
        assert_eq!((fanout.delivered, aws.count("Query")), (count, count.div_ceil(100).max(1)), "{count} {limit}");
    }
}

/// The limit is not worth a message: those that are known get it, and a continuation serves the rest.
#[tokio::test(start_paused = true)]
async fn a_page_that_fails_while_receivers_are_counted_loses_nobody() {
    let (aws, backend) = Aws::backend(|call| match call.operation.as_str() {
        "Query" if call.body["ExclusiveStartKey"] != Value::Null => failure("InternalServerError"),
        _ => tables(call, 300),
    });
    let mut receivers = backend.store.receivers(&topic(), &Position::Start);
    assert!(!receivers.exceed(250, Deadline::after(TIME)).await.unwrap());
    let queries = aws.count("Query");
    let gateway = backend.gateways.configured().unwrap();
    let fanout = backend.publisher.publish(&gateway, message(), receivers, Deadline::after(TIME)).await.unwrap();
    assert_eq!(fanout, Fanout { delivered: 100, continued: true, ..Fanout::default() });
    assert_eq!(continuation(&aws).unwrap().position, Position::After(ConnectionId::new(id(99))));
    assert_eq!(aws.count("Query"), queries, "the page is not tried again before the continuation");

    let (_, backend) = Aws::backend(|_| failure("InternalServerError"));
    let mut receivers = backend.store.receivers(&topic(), &Position::Start);
    assert!(receivers.exceed(250, Deadline::after(TIME)).await.is_err());
}

/// Three bad receivers once made all others hear a message three times.
#[tokio::test(start_paused = true)]
async fn a_bad_receiver_changes_nothing_for_the_others() {
    let bad = [id(10), id(100), id(200)];
    for status in [Some(429), Some(500), None] {
        let is_bad = bad.clone();
        let (aws, backend) = Aws::backend(move |call| match call.operation.as_str() {
            "POST" if is_bad.contains(&call.connection_id) => {
                status.map_or(Answer::Hang, |status| answer(status, json!({})))
            }
            _ => tables(call, 300),
        });
        let start = Instant::now();
        let fanout = publish_for(&backend, message(), TIME).await.unwrap();
        assert_eq!(fanout, Fanout { delivered: 297, continued: true, ..Fanout::default() }, "{status:?}");
        assert!(start.elapsed() < Duration::from_secs(5), "{status:?}: {:?}", start.elapsed());
        let others = posts(&aws).into_iter().filter(|(id, _)| !bad.contains(id));
        assert!(others.map(|(_, count)| count).eq([1; 297]), "{status:?}");

        let rest = continuation(&aws).unwrap();
        assert_eq!(rest.position, Position::End);
        let again: BTreeSet<_> = rest.again.iter().map(|receiver| receiver.connection_id.as_str().to_owned()).collect();
        assert_eq!(again, bad.clone().into(), "{status:?}");
        assert_eq!(rest.again[0].subscription_id.as_deref(), Some("s"));

        // Their last chance ends them, and posts to nobody else.
        let before = aws.calls().len();
        let fanout = publish_for(&backend, rest, TIME).await.unwrap();
        let expected = match status {
            Some(_) => Fanout { failed: 3, ..Fanout::default() },
            None => Fanout { dropped: 3, ..Fanout::default() },
        };
        assert_eq!(fanout, expected, "{status:?}");
        let calls = aws.calls().split_off(before);
        assert!(calls.iter().all(|call| call.operation != "POST" || bad.contains(&call.connection_id)), "{status:?}");
        assert!(calls.iter().all(|call| call.operation != "PutItem"), "a continuation has no end");
        let deleted: BTreeSet<_> =
            calls.into_iter().filter(|call| call.operation == "DELETE").map(|call| call.connection_id).collect();
        // Who was only refused keeps the connection; who does not read loses it.
        assert_eq!(deleted, if status.is_none() { bad.clone().into() } else { BTreeSet::new() });
    }
}

/// More receivers hang than posts run at once, and they come first. The others do not even wait for the first try of those.
#[tokio::test(start_paused = true)]
async fn receivers_that_hang_hold_up_nobody() {
    let (start, last) = (Instant::now(), Arc::new(Mutex::new(Duration::ZERO)));
    let latest = Arc::clone(&last);
    let (aws, backend) = Aws::backend(move |call| match call.operation.as_str() {
        "POST" if call.connection_id < id(50) => Answer::Hang,
        "POST" => {
            *latest.lock().unwrap() = start.elapsed();
            tables(call, 100)
        }
        _ => tables(call, 100),
    });
    let first = async {
        let fanout = publish_for(&backend, message(), TIME).await.unwrap();
        assert_eq!((fanout.delivered, fanout.continued), (0, true));
        // The receivers that hang were put last.
        let again = continuations(&aws).pop().unwrap().again.len();
        assert!(again > 16 && again < 50, "{again}");
    };
    let second = async {
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        let rest = continuation(&aws).unwrap();
        assert!(rest.again.is_empty());
        let again = go_on(&backend, rest).await;
        assert_eq!((again.delivered, again.continued), (50, true));
    };
    future::join(first, second).await;
    let last = *last.lock().unwrap();
    assert!(last < ATTEMPT_TIMEOUT, "the last of the others was posted to after {last:?}");
}

/// Each part of a broadcast may use all of the posts, also when it is the only one that is left.
#[tokio::test(start_paused = true)]
async fn a_continuation_of_a_broadcast_posts_as_many_at_once_as_any_other() {
    let (_aws, backend) = Aws::backend(|call| match call.operation.as_str() {
        "Scan" => answer(200, json!({"Items": rows(0..100, 60)})),
        "POST" => Answer::After(Duration::from_millis(100), 200, json!({})),
        _ => tables(call, 0),
    });
    let mut rest = message();
    rest.audience = Audience::Everybody { segment: 2 };
    rest.position = Position::After(ConnectionId::new("c=".to_owned()));
    let start = Instant::now();
    assert_eq!(publish_for(&backend, rest, TIME).await.unwrap().delivered, 100);
    // 100 posts of 100 ms, 16 at a time.
    assert_eq!(start.elapsed().as_millis() / 100, 7);
}

/// A table that cannot be read makes the same continuation come again, instead of one continuation after the other.
#[tokio::test(start_paused = true)]
async fn a_continuation_without_progress_is_an_error() {
    for hangs in [false, true] {
        let (aws, backend) = Aws::backend(move |call| match call.operation.as_str() {
            "Query" if hangs => Answer::Hang,
            "Query" => failure("InternalServerError"),
            _ => tables(call, 10),
        });
        let mut rest = message();
        rest.position = Position::After(ConnectionId::new(id(3)));
        let error = publish_for(&backend, rest, TIME).await.unwrap_err();
        assert_eq!((error.error_type(), aws.count("PutItem")), ("Store.Failed", 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_post_that_is_refused_for_a_moment_is_repeated() {
    let refusals = Mutex::new(BTreeMap::<String, usize>::new());
    let (aws, backend) = Aws::backend(move |call| {
        let mut refusals = refusals.lock().unwrap();
        let count = refusals.entry(call.connection_id.clone()).or_default();
        *count += 1;
        let refuse = call.operation == "POST" && *count < 5;
        if refuse { answer([429, 500, 503, 504][*count - 1], json!({})) } else { tables(call, 20) }
    });
    let fanout = publish_for(&backend, message(), TIME).await.unwrap();
    assert_eq!(fanout, Fanout { delivered: 20, ..Fanout::default() });
    assert!(posts(&aws).values().all(|count| *count == 5));
}

/// Reading page 2 of 3 fails, or never ends.
#[tokio::test(start_paused = true)]
async fn a_page_that_fails_or_hangs_cancels_no_post_and_leaves_a_continuation() {
    for hangs in [false, true] {
        let (aws, backend) = Aws::backend(move |call| match call.operation.as_str() {
            "Query" if call.body["ExclusiveStartKey"] != Value::Null => {
                if hangs {
                    Answer::Hang
                } else {
                    failure("ProvisionedThroughputExceededException")
                }
            }
            _ => tables(call, 300),
        });
        let start = Instant::now();
        let fanout = publish_for(&backend, message(), TIME).await.unwrap();
        assert_eq!(fanout, Fanout { delivered: 100, continued: true, ..Fanout::default() });
        assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
        let rest = continuation(&aws).unwrap();
        assert_eq!((rest.position, rest.again.len()), (Position::After(ConnectionId::new(id(99))), 0));
        assert_eq!((rest.audience, rest.id.as_str()), (topic(), "request"));
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_first_page_nothing_was_done_and_that_is_an_error() {
    for (first_page, error_type) in [
        (failure("ProvisionedThroughputExceededException") as Answer, "Store.Throttled"),
        (failure("InternalServerError"), "Store.Failed"),
        (Answer::Hang, "Store.Failed"),
    ] {
        let first_page = Mutex::new(Some(first_page));
        let (aws, backend) = Aws::backend(move |call| match call.operation.as_str() {
            "Query" => match first_page.lock().unwrap().as_ref().unwrap() {
                Answer::Hang => Answer::Hang,
                Answer::After(delay, status, body) => Answer::After(*delay, *status, body.clone()),
            },
            _ => tables(call, 10),
        });
        let start = Instant::now();
        let error = publish_for(&backend, message(), TIME).await.unwrap_err();
        assert_eq!(error.error_type(), error_type, "{error}");
        assert!(start.elapsed() <= Duration::from_secs(5), "{:?}", start.elapsed());
        assert_eq!(aws.count("Query"), aws.calls().len());
    }
}

#[tokio::test(start_paused = true)]
async fn the_deadline_leaves_the_rest_to_a_continuation_and_each_receiver_gets_one_frame() {
    let (aws, backend) = Aws::backend(|call| match call.operation.as_str() {
        "POST" => Answer::After(Duration::from_millis(400), 200, json!({})),
        _ => tables(call, 500),
    });
    let mut served = 0;
    let mut publication = message();
    for _ in 0..100 {
        let before = aws.calls().len();
        let fanout = publish_for(&backend, publication, Duration::from_secs(2)).await.unwrap();
        served += fanout.delivered;
        if !fanout.continued {
            break;
        }
        let put = aws.calls()[before..].iter().find(|call| call.operation == "PutItem").unwrap().body["Item"].clone();
        publication = event::continuation(serde_json::from_value(put).unwrap()).unwrap();
    }
    assert_eq!(served, 500);
    let posts = posts(&aws);
    assert_eq!(posts.len(), 500);
    // A post that the deadline cuts off may have arrived: it is the only one that may be repeated.
    let repeated = posts.values().filter(|count| **count > 1).count();
    assert!(repeated <= 500 / 48 * 16, "{repeated} of 500 receivers heard it twice");
}

#[tokio::test(start_paused = true)]
async fn a_publish_without_time_is_an_error() {
    let (aws, backend) = Aws::backend(|call| tables(call, 10));
    let error = publish_for(&backend, message(), Duration::ZERO).await.unwrap_err();
    assert_eq!(error.error_type(), "Publish.OutOfTime");
    assert!(aws.calls().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_refuses_everybody_is_no_receivers_fault() {
    let (aws, backend) = Aws::backend(|call| match call.operation.as_str() {
        "POST" => answer(429, json!({})),
        _ => tables(call, 5000),
    });
    let start = Instant::now();
    let fanout = publish_for(&backend, message(), TIME).await.unwrap();
    assert_eq!(fanout, Fanout { continued: true, ..Fanout::default() });
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    let [rest, again] = continuations(&aws).try_into().unwrap();
    assert!(again.again.len() <= 16 * 8, "{} are named", again.again.len());
    assert_eq!((rest.again.len(), again.position.clone()), (0, Position::End));
    // A continuation has no other place to wait than the stream.
    for rest in [rest, again] {
        let puts = aws.count("PutItem");
        let gateway = backend.gateways.configured().unwrap();
        let error = backend.publisher.go_on(&gateway, rest, Deadline::after(TIME)).await.unwrap_err();
        assert_eq!(error.error_type(), "Publish.Undelivered");
        assert_eq!(aws.count("PutItem"), puts);
    }
}

#[tokio::test(start_paused = true)]
async fn a_denied_post_is_an_error_of_ours() {
    let (aws, backend) = Aws::backend(|call| match call.operation.as_str() {
        "POST" => answer(403, json!({})),
        _ => tables(call, 2),
    });
    let error = publish_for(&backend, message(), TIME).await.unwrap_err();
    assert_eq!(error.error_type(), "Publish.Undelivered");
    assert_eq!((aws.count("POST"), aws.count("PutItem")), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_is_rejected_for_good_is_counted() {
    let (aws, backend) = Aws::backend(|call| match call.operation.as_str() {
        "POST" if call.connection_id == id(0) => answer(400, json!({})),
        _ => tables(call, 2),
    });
    let fanout = publish_for(&backend, message(), TIME).await.unwrap();
    assert_eq!(fanout, Fanout { delivered: 1, failed: 1, ..Fanout::default() });
    assert_eq!(aws.count("POST"), 2);
}

/// The connection of a receiver that hangs is not forgotten while it cannot be closed.
#[tokio::test(start_paused = true)]
async fn rows_stay_until_the_connection_is_closed() {
    for (post, marked) in [(None, None), (Some(410), Some(6))] {
        let (aws, backend) = Aws::backend(move |call| match call.operation.as_str() {
            "POST" => post.map_or(Answer::Hang, |status| answer(status, json!({}))),
            "DELETE" => answer(500, json!({})),
            "UpdateItem" if call.body["UpdateExpression"] == "SET goneAt = :now" => {
                let gone_at = now_ms() - 1000 * marked.unwrap_or_default();
                refused_for(&json!({"connectionId": {"S": id(0)}, "goneAt": {"N": gone_at.to_string()}}))
            }
            _ => tables(call, 1),
        });
        let mut publication = message();
        if post.is_none() {
            let connection_id = ConnectionId::new(id(0));
            publication.again = vec![Subscriber {
                connection_id,
                subscription_id: None,
                connected_at_ms: 0,
                positions: false,
                batches: false,
                pattern: None,
            }];
            publication.position = Position::End;
        }
        let fanout = publish_for(&backend, publication, TIME).await.unwrap();
        assert_eq!((fanout.failed, fanout.suspect), if post.is_none() { (1, 0) } else { (0, 1) });
        assert_eq!((aws.count("DELETE"), aws.count("BatchWriteItem")), (1, 0));
    }
}

/// A first 410 only marks, a second one soon after changes nothing, and a later one removes and closes.
#[tokio::test(start_paused = true)]
async fn a_410_is_believed_the_second_time() {
    let at = |ago_s: i64| json!({"connectionId": {"S": id(0)}, "goneAt": {"N": (now_ms() - 1000 * ago_s).to_string()}});
    let tombstone = json!({"connectionId": {"S": id(0)}, "closedAt": {"N": "1"}});
    for (marked, expected, removed) in [
        (None, Fanout { suspect: 1, ..Fanout::default() }, false),
        (Some(at(1)), Fanout { suspect: 1, ..Fanout::default() }, false),
        (Some(at(6)), Fanout { stale: 1, ..Fanout::default() }, true),
        (Some(tombstone), Fanout { stale: 1, ..Fanout::default() }, true),
        (Some(json!({})), Fanout { stale: 1, ..Fanout::default() }, true),
    ] {
        let row = marked.clone();
        let (aws, backend) = Aws::backend(move |call| match call.operation.as_str() {
            "POST" => gone(),
            "UpdateItem" if call.body["UpdateExpression"] == "SET goneAt = :now" => {
                row.clone().map_or_else(|| answer(200, json!({})), |row| refused_for(&row))
            }
            _ => tables(call, 1),
        });
        assert_eq!(publish_for(&backend, message(), TIME).await.unwrap(), expected, "{marked:?}");
        // After the first 410 the frame is posted once more.
        assert_eq!(aws.count("POST"), if marked.is_none() { 2 } else { 1 }, "{marked:?}");
        assert_eq!(aws.count("UpdateItem"), if removed { 2 } else { 1 }, "{marked:?}");
        assert_eq!((aws.count("BatchWriteItem"), aws.count("DELETE")), if removed { (1, 1) } else { (0, 0) });
    }
}

#[tokio::test(start_paused = true)]
async fn a_410_of_a_moment_costs_a_live_client_nothing() {
    let posts = Mutex::new(0);
    let (aws, backend) = Aws::backend(move |call| match call.operation.as_str() {
        "POST" if std::mem::replace(&mut *posts.lock().unwrap(), 1) == 0 => gone(),
        _ => tables(call, 1),
    });
    let fanout = publish_for(&backend, message(), TIME).await.unwrap();
    assert_eq!(fanout, Fanout { delivered: 1, ..Fanout::default() });
    assert_eq!((aws.count("POST"), aws.count("UpdateItem"), aws.count("DELETE")), (2, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_410_of_a_young_connection_is_doubted_for_a_second() {
    let (aws, backend) = Aws::backend(|call| match call.operation.as_str() {
        "Query" => answer(200, json!({"Items": rows(0..1, 0)})),
        "POST" => gone(),
        _ => tables(call, 1),
    });
    let start = Instant::now();
    assert_eq!(publish_for(&backend, message(), TIME).await.unwrap(), Fanout { pending: 1, ..Fanout::default() });
    assert!(start.elapsed() <= SETTLING_PATIENCE);
    assert!(aws.count("POST") > 2 && aws.count("UpdateItem") == 0);
}

#[tokio::test(start_paused = true)]
async fn a_strange_row_is_skipped_and_counted() {
    let (aws, backend) = Aws::backend(|call| match call.operation.as_str() {
        "Query" => {
            let mut rows = rows(0..3, 60);
            rows[1].as_object_mut().unwrap().remove("connectedAt");
            rows.push(json!({"connectionId": {"N": "7"}, "connectedAt": {"N": "0"}}));
            rows.push(json!({}));
            answer(200, json!({"Items": rows}))
        }
        _ => tables(call, 3),
    });
    let fanout = publish_for(&backend, message(), TIME).await.unwrap();
    assert_eq!(fanout, Fanout { delivered: 2, unreadable: 3, ..Fanout::default() });
    assert_eq!(aws.count("POST"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_continuation_that_cannot_be_put_is_an_error() {
    for hangs in [false, true] {
        let (_aws, backend) = Aws::backend(move |call| match call.operation.as_str() {
            "PutItem" if hangs => Answer::Hang,
            "PutItem" => answer(500, json!({})),
            "POST" if call.connection_id == id(0) => answer(429, json!({})),
            _ => tables(call, 2),
        });
        let error = publish_for(&backend, message(), TIME).await.unwrap_err();
        assert_eq!(error.error_type(), "Store.Failed");
    }
}

/// Only who asked hears positions, in the first try and in the last.
#[tokio::test(start_paused = true)]
async fn positions_survive_a_continuation() {
    let rows = || {
        let mut rows = rows(0..4, 60);
        rows[1]["positions"] = json!({"BOOL": true});
        rows[3]["positions"] = json!({"BOOL": true});
        answer(200, json!({"Items": rows}))
    };
    let (aws, backend) = Aws::backend(move |call| match call.operation.as_str() {
        "Query" => rows(),
        "POST" if call.connection_id >= id(2) => answer(429, json!({})),
        _ => tables(call, 4),
    });
    for sender in [Some("1"), None] {
        let before = aws.calls().len();
        let mut publication = message();
        let stamp = Stamp { epoch: "k3f9xq2a".to_owned(), seq: 42 };
        let sender = sender.map(|user| crate::connection::UserId::parse("userId", user).unwrap());
        publication.kept = Some(Kept { stamp, sender });
        let kept = publication.kept.clone();
        assert_eq!(publish_for(&backend, publication, TIME).await.unwrap().delivered, 2);
        let calls = aws.calls().split_off(before);
        let put = calls.iter().find(|call| call.operation == "PutItem").unwrap().body["Item"].clone();
        let rest = event::continuation(serde_json::from_value(put).unwrap()).unwrap();
        assert_eq!(rest.kept, kept);
        publish_for(&backend, rest, TIME).await.unwrap();
        for call in aws.calls().split_off(before).into_iter().filter(|call| call.operation == "POST") {
            let asked = [id(1), id(3)].contains(&call.connection_id);
            assert_eq!(call.body["seq"], if asked { json!(42) } else { Value::Null }, "{}", call.connection_id);
            assert_eq!(call.body.get("topic").is_some(), asked);
        }
    }
}

#[test]
fn a_continuation_has_a_key_of_its_own_and_names_are_not_parsed() {
    for id in ["deploy after lunch", &"x".repeat(1024), "", " after "] {
        let mut rest = message();
        rest.id = id.to_owned();
        rest.position = Position::After(ConnectionId::new("c=".to_owned()));
        let items: Vec<_> = (0..2).map(|_| event::item(rest.clone())).collect();
        let key = |item: &serde_dynamo::Item| format!("{:?} {:?}", item["topic"], item["id"]);
        assert_ne!(key(&items[0]), key(&items[1]));
        assert!(key(&items[0]).len() < 100);
        assert_eq!(event::continuation(items[0].clone()).unwrap().id, id);
    }
}

/// The receiver subscribed to a pattern, so its frame says the topic, and its row is the pattern's.
#[test]
fn the_pattern_of_a_receiver_survives_a_continuation() {
    let receiver = |pattern: Option<&str>| Subscriber {
        connection_id: ConnectionId::new(id(0)),
        subscription_id: Some("s".to_owned()),
        connected_at_ms: 1,
        positions: false,
        batches: false,
        pattern: pattern.map(|pattern| Topic::parse(pattern).unwrap()),
    };
    let mut publication = message();
    publication.again = vec![receiver(Some("room.*")), receiver(None)];
    let read = event::continuation(event::item(publication.clone())).unwrap();
    assert_eq!(read.again, publication.again);
}

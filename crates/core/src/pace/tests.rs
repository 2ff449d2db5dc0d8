//! The lease on a paused clock, against an item that a script plays.

use std::sync::Mutex as StdMutex;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::*;
use crate::backend::Backend;
use crate::scripted::{Answer, Aws, Call, answer, failure};

/// The time of these tests: tokio's, from a fixed second on.
pub(crate) fn paused() {
    thread_local! {
        static START: Instant = Instant::now();
    }
    START.with(|_| {});
    clock::set_source(|| SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000) + START.with(Instant::elapsed));
}

/// DynamoDB's item: it knows the two conditions of `tat` and the one of `slowedAt`.
pub(crate) fn item(item: &StdMutex<Value>, call: &Call) -> Answer {
    let mut item = item.lock().unwrap();
    let values = &call.body["ExpressionAttributeValues"];
    let number = |value: &Value| value["N"].as_str().map(|text| text.parse::<f64>().unwrap());
    let old = item.clone();
    let between = |attribute: &str, low: &str| {
        number(&item[attribute])
            .map(|it| number(&values[low]).unwrap() <= it && it <= number(&values[":ceiling"]).unwrap())
    };
    let holds = match call.body["UpdateExpression"].as_str().unwrap() {
        "SET tat = tat + :cost" => {
            let holds = between("tat", ":floor") == Some(true);
            if holds {
                let tat = number(&item["tat"]).unwrap() + number(&values[":cost"]).unwrap();
                item["tat"] = json!({"N": format!("{tat:.0}")});
            }
            holds
        }
        "SET tat = :start" => {
            let holds = between("tat", ":floor") != Some(true);
            if holds {
                item["tat"] = values[":start"].clone();
            }
            holds
        }
        "SET #share = :share, slowedAt = :now" => {
            let holds = between("slowedAt", ":before") != Some(true);
            if holds {
                item["share"] = values[":share"].clone();
                item["slowedAt"] = values[":now"].clone();
            }
            holds
        }
        other => panic!("{other}"),
    };
    if !holds {
        return failure("ConditionalCheckFailedException");
    }
    Answer::After(Duration::from_millis(5), 200, json!({"Attributes": old}))
}

fn backend(lease: &'static StdMutex<Value>) -> (Aws, Backend) {
    paused();
    Aws::backend(move |call| match call.operation.as_str() {
        "UpdateItem" => item(lease, call),
        "POST" => answer(429, json!({})),
        _ => answer(200, json!({})),
    })
}

fn lease() -> &'static StdMutex<Value> {
    Box::leak(Box::new(StdMutex::new(json!({}))))
}

fn deadline() -> Deadline {
    Deadline::after(Duration::from_secs(3600))
}

async fn turns(backend: &Backend, count: usize) {
    let gateway = backend.gateways.configured().unwrap();
    for _ in 0..count {
        backend.pace.turn(&gateway, CHUNK, deadline()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn all_functions_together_take_nine_tenths_of_the_rate_and_of_the_burst() {
    let lease = lease();
    let backends: Vec<_> = (0..4).map(|_| backend(lease)).collect();
    let start = Instant::now();
    let all = backends.iter().map(|(_, backend)| turns(backend, 12_375));
    futures_util::future::join_all(all).await;
    // 49,500 at 9,000 a second, and 4,500 of them are the burst.
    let took = start.elapsed().as_secs_f64();
    assert!((4.95..5.15).contains(&took), "{took} s");
    let writes: usize = backends.iter().map(|(aws, _)| aws.count("UpdateItem")).sum();
    assert!(writes <= 49_500 / 250 + 8, "{writes}");
}

/// A deleted item, and one that a wrong clock wrote, are begun anew.
#[tokio::test(start_paused = true)]
async fn an_item_that_is_missing_or_nonsense_stops_nobody() {
    let lease = lease();
    let (_aws, backend) = backend(lease);
    for nonsense in [json!({}), json!({"tat": {"N": "9999999999999999"}}), json!({"tat": {"N": "1"}})] {
        *lease.lock().unwrap() = nonsense.clone();
        let start = Instant::now();
        turns(&backend, 9_000).await;
        assert!(start.elapsed() < Duration::from_millis(1_300), "{nonsense}: {:?}", start.elapsed());
    }
}

/// A clock that is 5 s off makes its function or the others wait; nobody waits for ever.
#[tokio::test(start_paused = true)]
async fn a_clock_that_is_five_seconds_off_delays_and_does_not_stop() {
    for off_us in [-5_000_000, 5_000_000] {
        let lease = lease();
        let (_aws, backend) = backend(lease);
        lease.lock().unwrap()["tat"] = json!({"N": (now_us() + off_us).to_string()});
        let start = Instant::now();
        turns(&backend, 2_500).await;
        assert!(start.elapsed() < Duration::from_secs(21), "{off_us}: {:?}", start.elapsed());
    }
}

/// An execution environment may serve several events at once, and each one has a deadline of its own.
#[tokio::test(start_paused = true)]
async fn a_turn_that_is_far_away_holds_up_no_event_whose_deadline_is_earlier() {
    let lease = lease();
    let (_aws, backend) = backend(lease);
    lease.lock().unwrap()["tat"] = json!({"N": (now_us() + 5_000_000).to_string()});
    let gateway = backend.gateways.configured().unwrap();
    let start = Instant::now();
    let turn = async |deadline| {
        backend.pace.turn(&gateway, CHUNK, deadline).await;
        start.elapsed().as_millis()
    };
    let (far, near) = tokio::join!(turn(deadline()), turn(Deadline::after(Duration::from_millis(100))));
    assert!((2_000..2_020).contains(&far), "{far} ms");
    assert!((100..120).contains(&near), "{near} ms");
}

#[tokio::test(start_paused = true)]
async fn without_dynamodb_the_pace_is_the_one_that_is_known() {
    paused();
    for hangs in [false, true] {
        let (_aws, backend) = Aws::backend(move |_| if hangs { Answer::Hang } else { failure("InternalServerError") });
        turns(&backend, 1).await;
        let start = Instant::now();
        turns(&backend, 500).await;
        assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    }
}

/// One refusal is a receiver's own. Several are the account's rate: the shared rate falls once, and comes back by itself.
#[tokio::test(start_paused = true)]
async fn refusals_for_the_rate_slow_everybody_down_for_a_while() {
    let lease = lease();
    let (_aws, one) = backend(lease);
    let (_, two) = backend(lease);
    turns(&one, 1).await;
    let post = async |backend: &Backend| {
        let gateway = backend.gateways.configured().unwrap();
        let id = crate::connection::ConnectionId::new("c=".to_owned());
        gateway.post(None, &id, Vec::new(), Deadline::after(Duration::from_millis(60)), Duration::ZERO).await;
    };
    post(&one).await;
    turns(&one, 250).await;
    assert_eq!(lease.lock().unwrap()["share"], Value::Null, "one receiver alone is not the rate");
    for backend in [&one, &two] {
        for _ in 0..3 {
            post(backend).await;
        }
    }
    turns(&one, 250).await;
    turns(&two, 250).await;
    assert_eq!(lease.lock().unwrap()["share"], json!({"N": "0.9000"}), "it falls at most once a second");
    // Both know it with their next chunk.
    turns(&two, 500).await;
    assert!((0.9..0.91).contains(&two.pace.chunk.lock().await.share));
    tokio::time::sleep(Duration::from_secs(5)).await;
    turns(&two, 500).await;
    assert!((0.95..0.96).contains(&two.pace.chunk.lock().await.share));
}

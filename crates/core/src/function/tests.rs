use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::*;
use crate::clock::now_s;
use crate::config::Config;
use crate::scripted::{Answer, Aws, Call, answer, failure};

/// An event that API Gateway sent once, with another body.
fn event(body: &str) -> LambdaEvent<ApiGatewayWebsocketProxyRequest> {
    let mut event: Value = serde_json::from_str(include_str!("../../../../tests/events/send-message.json")).unwrap();
    event["body"] = json!(body);
    let mut context = Context::default();
    let deadline = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap() + Duration::from_secs(29);
    context.deadline = deadline.as_millis().try_into().unwrap();
    LambdaEvent::new(serde_json::from_value(event).unwrap(), context)
}

/// Serves a frame with what a handler returns, and gives the reply that the sender gets.
async fn serve(
    body: &str,
    post: impl Fn() -> Answer + Send + Sync + 'static,
    handle: impl AsyncFnOnce(&Caller, &Frame) -> Result<Served, Failure>,
) -> (Result<i64, &'static str>, Option<Value>) {
    let (aws, backend) = Aws::backend(move |_| post());
    let result = message(&backend, event(body), handle).await;
    let reply = aws.calls().into_iter().find(|call| call.operation == "POST").map(|call| call.body);
    (result.map(|response| response.status_code).map_err(|error| error.error_type()), reply)
}

fn ok() -> Answer {
    answer(200, json!({}))
}

#[tokio::test(start_paused = true)]
async fn a_sender_is_answered_when_it_asks_for_that() {
    let published = |delivered, continued| {
        async move |_: &Caller, _: &Frame<'_>| Ok(Served::Published { delivered, continued, kept: None })
    };
    for (body, expected) in [
        (r#"{"id":"m"}"#, Some(json!({"type": "ack", "id": "m", "delivered": 3}))),
        (r#"{"id":null}"#, None),
        ("{}", None),
    ] {
        assert_eq!(serve(body, ok, published(3, false)).await, (Ok(200), expected), "{body}");
    }
    let continued = json!({"type": "ack", "id": "m", "delivered": 0, "continued": true});
    assert_eq!(serve(r#"{"id":"m"}"#, ok, published(0, true)).await, (Ok(200), Some(continued)));
    assert_eq!(
        serve(r#"{"id":"m"}"#, ok, async |_, _| Ok(Served::Done)).await,
        (Ok(200), Some(json!({"type": "ack", "id": "m"})))
    );
    assert_eq!(
        serve("{}", ok, async |_, _| Ok(Served::Ping { behind: BTreeMap::new(), is_quiet: false })).await,
        (Ok(200), Some(json!({"type": "pong"})))
    );
}

/// Otherwise each of its frames would hold an execution environment for as long as a post may hang.
#[tokio::test(start_paused = true)]
async fn a_client_that_sends_too_fast_and_does_not_read_is_disconnected_at_its_first_refusal() {
    let (aws, backend) = Aws::backend(|call| if call.operation == "POST" { Answer::Hang } else { ok() });
    let frame = async || message(&backend, event("{}"), async |_, _| Ok(Served::Done)).await.unwrap();
    let burst = 2 * backend.config.max_frames_per_second;
    for _ in 0..burst {
        frame().await;
    }
    assert_eq!((aws.count("POST"), aws.count("DELETE")), (0, 0));
    let start = tokio::time::Instant::now();
    frame().await;
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!((aws.count("POST"), aws.count("DELETE")), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_mistake_is_answered_with_the_frames_id_wherever_it_can_be_read() {
    for (body, code, id) in [
        (r#"{"id":"m","type":"dance"}"#, "busy", json!("m")),
        (r#"{"id":7}"#, "invalid_field", Value::Null),
        (r#"{"id":"m","body":NaN}"#, "malformed_json", json!("m")),
        ("hello", "malformed_json", Value::Null),
        ("", "malformed_json", Value::Null),
    ] {
        let (result, reply) = serve(body, ok, async |_, _| Err(ClientError::Busy.into())).await;
        let reply = reply.unwrap();
        assert_eq!((result, &reply["type"]), (Ok(200), &json!("error")), "{body}");
        assert_eq!((reply["code"].as_str().unwrap(), &reply["id"]), (code, &id), "{body}");
        assert_eq!(reply["temporary"], code == "busy", "{body}");
        assert!(reply["requestId"].is_string(), "{body}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_fault_fails_the_invocation_and_the_sender_hears_the_gateways_own_frame() {
    let fault = async |_: &Caller, _: &Frame<'_>| Err(Error::OutOfTime { topic: "t".to_owned() }.into());
    assert_eq!(serve(r#"{"id":"m"}"#, ok, fault).await, (Err("Publish.OutOfTime"), None));
}

/// What was done stays done, so a sender that cannot be reached is no reason to fail. A role that may not post is.
#[tokio::test(start_paused = true)]
async fn a_reply_that_cannot_be_posted_does_not_fail_the_frame() {
    for status in [410, 429, 400] {
        let (result, _) =
            serve(r#"{"id":"m"}"#, move || answer(status, json!({})), async |_, _| Ok(Served::Done)).await;
        assert_eq!(result, Ok(200), "{status}");
    }
    assert_eq!(serve(r#"{"id":"m"}"#, || Answer::Hang, async |_, _| Ok(Served::Done)).await.0, Ok(200));
    let denied = serve(r#"{"id":"m"}"#, || answer(403, json!({})), async |_, _| Ok(Served::Done)).await;
    assert_eq!(denied.0, Err("Publish.ReplyFailed"));
}

#[tokio::test(start_paused = true)]
async fn an_event_without_an_address_is_a_fault() {
    let (_aws, backend) = Aws::backend(|_| ok());
    for missing in ["connectionId", "requestId", "routeKey", "domainName", "stage"] {
        let mut event = event("{}");
        let context = &mut event.payload.request_context;
        match missing {
            "connectionId" => context.connection_id = None,
            "requestId" => context.request_id = None,
            "routeKey" => context.route_key = None,
            "domainName" => context.domain_name = None,
            _ => context.stage = None,
        }
        let error = message(&backend, event, async |_, _| Ok(Served::Done)).await.unwrap_err();
        assert_eq!(error.to_string(), format!("the event has no {missing}"));
    }
}

/// With one frame a second, the first samples of an environment come after a few frames, and then each frame is one.
fn every_frame_is_a_sample() -> Config {
    Config { max_frames_per_second: 1, ..Config::for_tests() }
}

/// What API Gateway and DynamoDB say in a flood. A user has three connections. `samples` were counted before.
fn flooded(call: &Call, user: Option<&str>, samples: &AtomicU32) -> Answer {
    let end = json!({"N": (now_s() + 3600).to_string()});
    match call.operation.as_str() {
        "GetItem" => {
            let mut row = json!({"connectedAt": {"N": "1"}, "ttl": end});
            if let Some(user) = user {
                row["userId"] = json!({"S": user});
            }
            answer(200, json!({"Item": row}))
        }
        "UpdateItem" if call.body["UpdateExpression"].as_str().unwrap().starts_with("ADD #samples") => {
            let count = samples.fetch_add(1, Ordering::Relaxed) + 1;
            let name = call.body["ExpressionAttributeNames"]["#connection"].as_str().unwrap();
            answer(200, json!({"Attributes": {"samples": {"N": count.to_string()}, name: {"N": count.to_string()}}}))
        }
        "Query" => {
            let row = |id: &str| json!({"topic": {"S": "@one"}, "connectionId": {"S": id}, "connectedAt": {"N": "1"}, "ttl": end});
            let rows = ["a=", "b=", "c="].map(row);
            answer(200, json!({"Items": rows, "Count": 3, "ScannedCount": 3}))
        }
        _ => ok(),
    }
}

/// Serves one frame, which is a sample, and returns the calls by their names.
async fn one_frame_of_a_flood(user: Option<&'static str>, before: u32) -> (Aws, Vec<String>) {
    let samples = AtomicU32::new(before);
    let (aws, backend) = Aws::configured(every_frame_is_a_sample(), move |call| flooded(call, user, &samples));
    while !backend.frame_rate.is_sample() {}
    let served = message(&backend, event(r#"{"id":"m"}"#), async |_, _| Ok(Served::Done)).await;
    assert_eq!(served.unwrap().status_code, 200);
    let calls = aws.calls().into_iter().map(|call| match call.connection_id.as_str() {
        "" => call.operation,
        id => format!("{} {id}", call.operation),
    });
    (aws, calls.collect())
}

#[tokio::test(start_paused = true)]
async fn a_user_that_floods_many_environments_is_locked_out_and_all_its_connections_are_closed() {
    let (_aws, calls) = one_frame_of_a_flood(Some("one"), 38).await;
    assert!(!calls.iter().any(|call| call.starts_with("DELETE")), "39 samples are allowed: {calls:?}");
    let (aws, calls) = one_frame_of_a_flood(Some("one"), 39).await;
    let sample = &aws.calls()[1].body;
    let key = sample["Key"]["connectionId"]["S"].as_str().unwrap();
    assert!(key.starts_with('#') && key.ends_with("#@one"), "{key}");
    // Nobody delivers to a tombstone, and it expires.
    assert!(sample["UpdateExpression"].as_str().unwrap().contains("SET closedAt = :now, #ttl = :end"), "{sample}");
    let of =
        |operation: &str| calls.iter().filter(|call| call.starts_with(operation)).cloned().collect::<BTreeSet<_>>();
    assert_eq!(of("DELETE"), ["DELETE a=", "DELETE b=", "DELETE c="].map(str::to_owned).into());
    assert_eq!(of("POST"), ["POST a=", "POST b=", "POST c="].map(str::to_owned).into());
    for post in aws.calls().iter().filter(|call| call.operation == "POST") {
        assert_eq!((&post.body["type"], &post.body["code"]), (&json!("error"), &json!("rate_limited")), "{post:?}");
    }
    let (lock, delete) = (
        aws.calls().iter().position(|call| call.body["Key"]["connectionId"]["S"] == "@one"),
        calls.iter().position(|call| call.starts_with("DELETE")),
    );
    assert!(lock.is_some() && lock < delete, "the lock comes first: {calls:?}");
}

#[tokio::test(start_paused = true)]
async fn a_flood_without_a_user_ends_its_connection_alone() {
    let (aws, calls) = one_frame_of_a_flood(None, 39).await;
    let id = event("{}").payload.request_context.connection_id.unwrap();
    let key = aws.calls()[1].body["Key"]["connectionId"]["S"].as_str().unwrap().to_owned();
    assert!(key.starts_with('#') && key.ends_with(&format!("#{id}")), "{key}");
    let expected = ["GetItem", "UpdateItem", &format!("POST {id}"), &format!("DELETE {id}")].map(str::to_owned);
    assert_eq!(calls, expected);
}

#[tokio::test(start_paused = true)]
async fn a_sample_that_cannot_be_counted_costs_no_frame() {
    let (aws, backend) = Aws::configured(every_frame_is_a_sample(), |call| match call.operation.as_str() {
        "GetItem" => failure("InternalServerError"),
        _ => ok(),
    });
    while !backend.frame_rate.is_sample() {}
    let served = message(&backend, event(r#"{"id":"m"}"#), async |_, _| Ok(Served::Done)).await;
    assert_eq!((served.unwrap().status_code, aws.count("POST")), (200, 1));
}

/// Frames that were under way when another environment closed their connection cost one call, and then none.
#[tokio::test(start_paused = true)]
async fn frames_of_a_connection_that_is_closed_for_its_speed_are_dropped() {
    let (aws, backend) = Aws::backend(|call| if call.operation == "POST" { answer(410, json!({})) } else { ok() });
    let frame = async || message(&backend, event("{}"), async |_, _| Ok(Served::Done)).await.unwrap();
    for _ in 0..2 * backend.config.max_frames_per_second {
        frame().await;
    }
    let before = aws.calls().len();
    for _ in 0..500 {
        frame().await;
    }
    let refusals = aws.calls().split_off(before);
    assert!(refusals.iter().all(|call| call.operation != "DELETE"), "it is closed already: {refusals:?}");
    assert_eq!(refusals.iter().filter(|call| call.operation == "POST").count(), 1);
}

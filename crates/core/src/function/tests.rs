use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::*;
use crate::scripted::{Answer, Aws, answer};

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
    assert_eq!(aws.calls(), []);
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

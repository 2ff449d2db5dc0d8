//! RS: what the gateway does with a function's result.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use switchboard_tests::wire::{A_WHILE, CLOSE, Client};

use crate::api::{Api, echo_returns};
use crate::table::{FLAGS, LOG, Row, SERVICE, row};

const INTERNAL: &str = "Internal server error";

/// Checks that an error frame about the client's own connection answers this message, and that the connection stays open.
async fn fails(client: &mut Client, message: &Value, text: &str) -> Value {
    let frame = client.ask(message).await;
    assert_eq!((&frame["message"], &frame["connectionId"]), (&json!(text), &json!(client.id)), "{frame}");
    assert_eq!(client.ask(&json!({"action": "echo"})).await["requestContext"]["routeKey"], "echo");
    frame
}

/// A message to the one-way route whose function returns `response`.
fn sends(response: &Value) -> Value {
    json!({"action": "sendMessage", "do": "respond", "response": response})
}

/// An API whose functions have one process each, so they end one event before they begin the next. Elsewhere nobody can
/// promise that.
async fn in_order(api: Arc<Api>) -> Arc<Api> {
    if api.is_ours() { Arc::new(Api::ours(&["--max-environments", "1"]).await) } else { api }
}

fn process(environment: &Value) -> u64 {
    environment["pid"].as_u64().unwrap()
}

pub fn rows() -> Vec<Row> {
    vec![
        row("RS-01", "D", "D-integ", "a one-way route sends nothing of a 200").anywhere(|api| async move {
            let api = in_order(api).await;
            let mut client = api.connect().await;
            let token = api.token();
            client.send(&sends(&json!({"statusCode": 200, "body": token}))).await;
            api.wait_for_event(&token).await;
            // The first frame is about the next event of the same function.
            fails(&mut client, &json!({"action": "sendMessage", "do": "error"}), INTERNAL).await;
        }),
        row("RS-02", "D", "D-routeresp", "a two-way route sends the body as it is").anywhere(|api| async move {
            let mut client = api.connect().await;
            client.send(&echo_returns(&json!({"statusCode": 200, "body": "pong"}))).await;
            assert_eq!(client.hears().await, "pong");
            assert_eq!(client.ask(&json!({"action": "echo"})).await["requestContext"]["routeKey"], "echo");
        }),
        row("RS-03", "D+O", "D-routeresp; serverless-websockets-plugin#18", "a two-way route sends no headers")
            .anywhere(|api| async move {
                let mut client = api.connect().await;
                client
                    .send(&echo_returns(&json!({"statusCode": 200, "headers": {"X-Foo": "bar"}, "body": "pong"})))
                    .await;
                assert_eq!(client.hears().await, "pong");
                assert_eq!(client.ask(&json!({"action": "echo"})).await["requestContext"]["routeKey"], "echo");
            }),
        row("RS-04", "O", "serverless#6816", "a two-way route sends an empty message when there is no body").anywhere(
            |api| async move {
                let mut client = api.connect().await;
                client.send(&echo_returns(&json!({"statusCode": 200}))).await;
                assert_eq!(client.hears().await, "");
            },
        ),
        row("RS-05", "O", "React-Chat-App#2", "a two-way route sends the body of a 500, too").anywhere(
            |api| async move {
                let mut client = api.connect().await;
                client.send(&echo_returns(&json!({"statusCode": 500, "body": "broken"}))).await;
                assert_eq!(client.hears().await, "broken");
            },
        ),
        row(
            "RS-06",
            "O",
            "simple-websockets-chat-app#42",
            "the sender gets an error frame for a handler's error, and stays connected",
        )
        .anywhere(|api| async move {
            fails(&mut api.connect().await, &json!({"action": "boom"}), INTERNAL).await;
        }),
        row(
            "RS-07",
            "O+S",
            "simple-websockets-chat-app#42; S",
            "the sender gets an error frame for a panic, and the process serves on",
        )
        .ours(SERVICE, |_| async move {
            // One execution environment, so that the process is the same if it lives.
            let api = Api::ours(&["--max-environments", "1"]).await;
            let mut client = api.connect().await;
            let before = client.ask(&json!({"action": "echo", "do": "environment"})).await;
            fails(&mut client, &json!({"action": "echo", "do": "panic"}), INTERNAL).await;
            let after = client.ask(&json!({"action": "echo", "do": "environment"})).await;
            assert_eq!(process(&before), process(&after));
        }),
        row(
            "RS-08",
            "D+O",
            "RIE; simple-websockets-chat-app#42",
            "the sender gets an error frame for an exit, and the next message has a new process",
        )
        .ours(FLAGS, |_| async move {
            let api = Api::ours(&["--max-environments", "1"]).await;
            let mut client = api.connect().await;
            let before = client.ask(&json!({"action": "echo", "do": "environment"})).await;
            fails(&mut client, &json!({"action": "echo", "do": "exit"}), INTERNAL).await;
            let after = client.ask(&json!({"action": "echo", "do": "environment"})).await;
            assert_ne!(process(&before), process(&after));
        }),
        row(
            "RS-09",
            "I",
            "L-apigw; RIE",
            "the sender gets an error frame for a function's timeout, and the process is killed",
        )
        .anywhere(|api| async move {
            let mut client = api.connect().await;
            let began = Instant::now();
            fails(&mut client, &json!({"action": "nap", "do": "sleep", "ms": 60_000}), INTERNAL).await;
            assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
        }),
        row(
            "RS-10",
            "O",
            "chalice#1406",
            "the sender gets an error frame for the integration timeout, and the function goes on",
        )
        .ours(FLAGS, |_| async move {
            // One process, so that the last answer comes after the end of the function before.
            let api = Api::ours(&["--integration-timeout", "300ms", "--max-environments", "1"]).await;
            let mut client = api.connect().await;
            let began = Instant::now();
            // It posts long after its time is over, which proves that it went on.
            client.send(&json!({"action": "echo", "do": "post", "ms": 1500, "data": "late"})).await;
            let frame = client.hears_json().await;
            assert_eq!(frame["message"], "Endpoint request timed out");
            assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
            assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
            assert_eq!(client.hears().await, "late");
            assert_eq!(client.ask(&json!({"action": "echo"})).await["requestContext"]["routeKey"], "echo");
        }),
        row("RS-11", "O", "middy#1219", "an unknown member makes a response malformed, on a one-way route, too")
            .anywhere(|api| async move {
                let response = json!({"statusCode": 200, "foo": 1});
                let mut client = api.connect().await;
                fails(&mut client, &sends(&response), INTERNAL).await;
                fails(&mut client, &echo_returns(&response), INTERNAL).await;
            }),
        row("RS-12", "D+O", "D-proxyout; bref#773", "a body that is not a string makes a response malformed").anywhere(
            |api| async move {
                let mut client = api.connect().await;
                fails(&mut client, &echo_returns(&json!({"statusCode": 200, "body": {}})), INTERNAL).await;
            },
        ),
        row("RS-13", "?", "none", "a response without statusCode is malformed [missing_status_code]").ours(
            FLAGS,
            |api| async move {
                for response in [json!({}), json!({"body": "text"})] {
                    fails(&mut api.connect().await, &echo_returns(&response), INTERNAL).await;
                }
                let api = Api::ours(&["--missing-status-code", "ok"]).await;
                let mut client = api.connect().await;
                client.send(&echo_returns(&json!({"body": "text"}))).await;
                assert_eq!(client.hears().await, "text");
            },
        ),
        row("RS-14", "I", "D-proxyout", "a null response is malformed").anywhere(|api| async move {
            fails(&mut api.connect().await, &echo_returns(&json!(null)), INTERNAL).await;
        }),
        row("RS-15", "?", "D-integ", "a one-way route sends nothing of a well-formed 400 [oneway_error_status]").ours(
            FLAGS,
            |api| async move {
                let api = in_order(api).await;
                let mut client = api.connect().await;
                let token = api.token();
                client.send(&sends(&json!({"statusCode": 400, "body": token}))).await;
                api.wait_for_event(&token).await;
                // The first message is what the same function posts at the next event.
                client.send(&json!({"action": "sendMessage", "do": "post", "data": "later"})).await;
                assert_eq!(client.hears().await, "later");
                let api = Api::ours(&["--oneway-error-status", "error-frame"]).await;
                fails(&mut api.connect().await, &sends(&json!({"statusCode": 400})), INTERNAL).await;
            },
        ),
        row("RS-16", "S", "S", "Rust's ApiGatewayProxyResponse is well formed").anywhere(|api| async move {
            let text = r#"{"statusCode":200,"headers":{},"multiValueHeaders":{},"body":"ok","isBase64Encoded":false}"#;
            let mut client = api.connect().await;
            client.send(&echo_returns(&serde_json::from_str(text).unwrap())).await;
            assert_eq!(client.hears().await, "ok");
        }),
        row("RS-17", "O", "aws-cdk#18208", "a gateway that may not invoke answers Internal server error")
            .skipped("the stack has no permissions to invoke"),
        row("RS-18", "D", "L-apigw", "a failing function is not invoked again").ours(LOG, |api| async move {
            let mut client = api.connect().await;
            fails(&mut client, &json!({"action": "boom"}), INTERNAL).await;
            api.claim_invoked(&client.id, &["$connect", "boom", "echo", "echo", "$disconnect"]);
        }),
        row("RS-19", "O", "simple-websockets-chat-app#42", "the error frame's bytes are those that were seen")
            .anywhere(|api| async move {
                let mut client = api.connect().await;
                client.send(&json!({"action": "boom"})).await;
                let text = client.hears().await;
                let frame: Value = serde_json::from_str(&text).unwrap();
                let (id, request_id) = (&client.id, frame["requestId"].as_str().unwrap());
                let bytes =
                    format!(r#"{{"message": "{INTERNAL}", "connectionId":"{id}", "requestId":"{request_id}"}}"#);
                assert_eq!(text, bytes);
            }),
        row("RS-20", "I", "D-ctx", "the error frame's requestId is that of the event").ours(LOG, |api| async move {
            let mut client = api.connect().await;
            let frame = fails(&mut client, &json!({"action": "boom"}), INTERNAL).await;
            assert_eq!(api.event(&client.id, "boom").await["requestContext"]["requestId"], frame["requestId"]);
        }),
        row(
            "RS-21",
            "I",
            "D-protect",
            "a message above the rate is answered Too Many Requests, and a post gets a 429 [throttle_frame]",
        )
        .ours(FLAGS, |_| async move {
            for value in ["too-many-requests", "none"] {
                let flags = ["--request-rate", "0", "--request-burst", "2", "--throttle-frame", value];
                let api = Api::ours(&flags).await;
                let mut client = api.connect().await;
                client.ask(&json!({"action": "echo"})).await;
                client.send(&json!({"action": "echo"})).await;
                if value == "none" {
                    api.stack().logged(1, &[&client.id, "sent a message above the request rate"]).await;
                    // Nothing can come later to prove it: posts count as requests, too.
                    let frame = tokio::time::timeout(A_WHILE, client.receive()).await;
                    assert!(frame.is_err(), "{frame:?}");
                } else {
                    let frame = client.hears_json().await;
                    assert_eq!(frame["message"], "Too Many Requests");
                    assert_eq!(frame["connectionId"], json!(client.id));
                }
                let reply = api.call("POST", &client.id, b"hello").await;
                assert_eq!(reply.error(), (429, Some("LimitExceededException")));
                api.claim_invoked(&client.id, &["$connect", "echo", "echo", "$disconnect"]);
                api.end().await;
            }
        }),
        row("RS-22", "D", "D-connect", "a failing $disconnect has no effect, and it is not invoked again").ours(
            SERVICE,
            |_| async move {
                let failing =
                    "disconnect:\n    handler: fixture\n    environment: {FIXTURE_COMMAND: '{\"do\":\"error\"}'}";
                let api = Api::edited(&[("disconnect:\n    handler: fixture", failing)], &[]).await;
                let mut client = api.connect().await;
                assert_eq!(client.close(1000, "").await, Some(1000));
                api.event(&client.id, "$disconnect").await;
                api.connect().await;
                api.claim_invoked(&client.id, &["$connect", "echo", "$disconnect"]);
                api.end().await;
            },
        ),
        row("RS-23", "I", "D-integ", "the result for a sender that has left is dropped").ours(FLAGS, |_| async move {
            // One process serves one event at a time, so the second answer proves that the first function has ended.
            let api = Api::ours(&["--max-environments", "1"]).await;
            let (mut sender, mut other) = (api.connect().await, api.connect().await);
            sender.send(&json!({"action": "echo", "do": "sleep", "ms": 500})).await;
            sender.frame(true, CLOSE, b"").await;
            assert_eq!(sender.closed().await, None, "only the echo of the close frame, and the end");
            let event = other.ask(&json!({"action": "echo"})).await;
            assert_eq!(
                event["requestContext"]["connectionId"],
                json!(other.id),
                "not the result of the first function"
            );
            api.claim_invoked(&sender.id, &["$connect", "echo", "echo", "$disconnect"]);
            assert_eq!(api.stack().log(&["panicked"]), Vec::<String>::new());
            api.end().await;
        }),
    ]
}

//! Results that no function of the conformance suite can have. The gateway's answers to them are ours or inferred.

use std::time::Duration;

use serde_json::json;
use switchboard_local::lambda::FunctionError;

use crate::scripted::{KIB, ScriptedApi, error};

#[tokio::test]
async fn a_refused_client_is_told_the_status_of_connect_and_nothing_else() {
    for (answer, status) in [
        (Ok(r#"{"statusCode":400,"body":"secret","headers":{"x-secret":"1"}}"#), 400),
        (Ok(r#"{"statusCode":101,"body":"secret"}"#), 502),
        (Ok(""), 502),
        (Err(()), 502),
    ] {
        let script = ScriptedApi::new()
            .on_async("$connect", move |_| async move { answer.map(Into::into).or_else(|()| error()) });
        let reply = script.start().await.handshake("/dev", &[]).await.reply;
        assert_eq!((reply.status, reply.header("x-secret")), (status, None), "{answer:?}");
        assert!(!reply.body.contains("secret"), "{}", reply.body);
        if status == 502 {
            assert_eq!(reply.body, r#"{"message":"Internal server error"}"#);
        }
    }
}

#[tokio::test]
async fn a_body_that_no_message_can_carry_is_an_error() {
    let body = json!({ "statusCode": 200, "body": "x".repeat(128 * KIB + 1) }).to_string();
    let script = ScriptedApi::new().on_async("sendMessage", move |_| std::future::ready(Ok(body.clone().into())));
    let (mut gateway, mut client) = script.two_way("sendMessage").connected().await;
    assert_eq!(gateway.failure(&mut client, "sendMessage").await, "Internal server error");
}

#[tokio::test]
async fn a_message_whose_function_is_throttled_is_an_error() {
    let script = ScriptedApi::new().on_async("sendMessage", |_| async { Err(FunctionError::throttled()) });
    let (mut gateway, mut client) = script.connected().await;
    assert_eq!(gateway.failure(&mut client, "sendMessage").await, "Internal server error");
}

#[tokio::test]
async fn an_authorizer_that_takes_longer_than_the_gateway_waits_is_a_500() {
    let script = ScriptedApi::new().authorizer(&[], |_| std::future::pending());
    let mut gateway = script.limits(|limits| limits.integration_timeout = Duration::from_millis(50)).start().await;
    assert_eq!(gateway.handshake("/dev", &[]).await.reply.status, 500);
    assert_eq!(gateway.event().await["type"], "REQUEST");
}

/// A panic inside of the gateway must not leave a client without an answer.
#[tokio::test]
async fn a_panic_while_a_message_is_served_shows_as_internal_server_error() {
    let script =
        ScriptedApi::new().on_async("$default", |event| async move { panic!("no answer to {}", event["body"]) });
    let (mut gateway, mut client) = script.connected().await;
    assert_eq!(gateway.failure(&mut client, "$default").await, "Internal server error");
    assert_eq!(gateway.failure(&mut client, "$default").await, "Internal server error");
}

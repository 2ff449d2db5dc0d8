//! The answers that clients get to their messages.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::json;
use switchboard_tests::wire::CLOSE;
use tokio::sync::Semaphore;

use crate::bed::{KIB, Script, error};

/// Inferred from "won't send any information about the result": a well-formed error status sends nothing.
#[tokio::test]
async fn a_one_way_route_answers_nothing_to_a_well_formed_response() {
    for answer in [
        r#"{"statusCode":200,"body":"text"}"#,
        r#"{"statusCode":400}"#,
        r#"{"statusCode":500,"body":"text"}"#,
        r#"{"statusCode":200,"headers":{},"multiValueHeaders":{},"isBase64Encoded":false}"#,
    ] {
        let (mut bed, mut client) = Script::new().on("sendMessage", answer).connected().await;
        bed.invoke(&mut client, "sendMessage").await;
        assert_eq!(bed.failure(&mut client, "boom").await, "Internal server error", "{answer}");
        client.frame(true, CLOSE, b"").await;
        assert_eq!(client.closed_without_echo().await, None, "{answer}");
    }
}

#[tokio::test]
async fn a_two_way_route_answers_with_the_body_of_its_result_and_nothing_else() {
    for (answer, received) in [
        (r#"{"statusCode":200,"body":"pong"}"#, "pong"),
        (r#"{"statusCode":200,"body":"pong","headers":{"X-Foo":"bar"}}"#, "pong"),
        (r#"{"statusCode":200}"#, ""),
        (r#"{"statusCode":500,"body":"žluť"}"#, "žluť"),
    ] {
        let (_bed, mut client) = Script::new().on("sendMessage", answer).two_way("sendMessage").connected().await;
        client.text(r#"{"action":"sendMessage"}"#).await;
        assert_eq!(client.hears().await, received, "{answer}");
    }
}

/// Inferred: a body that is too long is an error.
#[tokio::test]
async fn a_two_way_route_that_fails_answers_with_an_error_frame() {
    let too_long = || json!({ "statusCode": 200, "body": "x".repeat(128 * KIB + 1) }).to_string();
    for answer in [
        Err(()),
        Ok("{}".to_owned()),
        Ok(r#"{"statusCode":200,"body":{}}"#.to_owned()),
        Ok(r#"{"statusCode":200,"body":"pong","extra":1}"#.to_owned()),
        Ok(too_long()),
    ] {
        let script = Script::new().on_async("sendMessage", move |_| {
            let answer = answer.clone();
            async move { answer.map(Bytes::from).or_else(|()| error()) }
        });
        let (mut bed, mut client) = script.two_way("sendMessage").connected().await;
        assert_eq!(bed.failure(&mut client, "sendMessage").await, "Internal server error");
    }
}

/// Inferred: a response without a status code is malformed.
#[tokio::test]
async fn a_malformed_response_is_an_internal_server_error() {
    for answer in [r#"{"statusCode":200,"foo":1}"#, r#"{"statusCode":200,"body":{}}"#, "{}", "null", r#""text""#] {
        let (mut bed, mut client) = Script::new().on("sendMessage", answer).connected().await;
        assert_eq!(bed.failure(&mut client, "sendMessage").await, "Internal server error", "{answer}");
    }
}

#[tokio::test]
async fn a_failing_function_is_told_to_the_sender_and_never_retried() {
    let (mut bed, mut other) = Script::new().connected().await;
    let mut client = bed.connect().await;
    for _ in 0..2 {
        assert_eq!(bed.failure(&mut client, "boom").await, "Internal server error");
    }
    bed.assert_nothing_invoked().await;
    bed.call("POST", &other.id, b"only this").await;
    assert_eq!(other.hears().await, "only this");
}

#[tokio::test]
async fn the_result_for_a_sender_that_left_is_dropped() {
    let gate = Arc::new(Semaphore::new(0));
    let (mut bed, mut client) = Script::new().on_held("sendMessage", &gate, error).connected().await;
    bed.invoke(&mut client, "sendMessage").await;
    client.frame(true, CLOSE, b"").await;
    // $disconnect does not wait for the function of the message.
    bed.event_of("$disconnect").await;
    gate.add_permits(1);
    assert_eq!(client.closed_without_echo().await, None);
    bed.assert_nothing_invoked().await;
}

#[tokio::test]
async fn a_failing_disconnect_has_no_effect() {
    let (mut bed, mut client) = Script::new().on_async("$disconnect", |_| async { error() }).connected().await;
    client.frame(true, CLOSE, b"").await;
    bed.event_of("$disconnect").await;
    assert_eq!(client.closed_without_echo().await, None);
    bed.assert_nothing_invoked().await;
}

/// The client must get an answer even if the gateway panics.
#[tokio::test]
async fn a_panic_while_a_message_is_served_shows_as_internal_server_error() {
    let script = Script::new().on_async("$default", |event| async move { panic!("no answer to {}", event["body"]) });
    let (mut bed, mut client) = script.connected().await;
    assert_eq!(bed.failure(&mut client, "$default").await, "Internal server error");
    assert_eq!(bed.failure(&mut client, "$default").await, "Internal server error");
}

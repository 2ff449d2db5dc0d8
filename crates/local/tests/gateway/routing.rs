//! The selection of a message's route.

use std::sync::Arc;

use switchboard_tests::wire::{CLOSE, Frame, PING, PONG};
use tokio::sync::Semaphore;

use crate::bed::{OK, Script, error};

#[tokio::test]
async fn every_message_goes_to_one_route() {
    let (mut bed, mut client) = Script::new().on("1", OK).on("[a, b]", OK).connected().await;
    for (text, route_key) in [
        (r#"{"action":"sendMessage","body":"hello there!"}"#, "sendMessage"),
        (r#"{"action":"unknown"}"#, "$default"),
        (r#"{"foo":1}"#, "$default"),
        ("hello", "$default"),
        ("", "$default"),
        (r#"{"action":""}"#, "$default"),
        (r#"{"action":null}"#, "$default"),
        ("42", "$default"),
        ("[1,2]", "$default"),
        (r#""x""#, "$default"),
        ("true", "$default"),
        (r#"{"action":"SendMessage"}"#, "$default"),
        (r#"{"action":"$connect"}"#, "$default"),
        (r#"{"action":"$disconnect"}"#, "$default"),
        (r#"{"action":"$default"}"#, "$default"),
        (r#"{"action":1}"#, "1"),
        (r#"{"action":["a","b"]}"#, "[a, b]"),
        (r#"{"action":"sendMessage", body:"x"}"#, "$default"),
        (r#"{"action":"a","action":"sendMessage"}"#, "sendMessage"),
    ] {
        client.text(text).await;
        // This is the next event of all, so one message makes one invocation.
        let event = bed.event_of(route_key).await;
        assert_eq!(event["body"], text);
    }
}

#[tokio::test]
async fn expressions_select_as_documented_and_leave_connect_and_disconnect_alone() {
    for (expression, text, route_key) in [
        ("${request.body.service}/${request.body.action}", r#"{"service":"chat","action":"join"}"#, "chat/join"),
        ("${request.body.action}-${request.body.invalidPath}", r#"{"action":"join"}"#, "join-"),
        ("$request.body.data.room", r#"{"data":{"room":"room1234"}}"#, "room1234"),
        ("$request.body.type", r#"{"type":"subscribe"}"#, "subscribe"),
    ] {
        let (mut bed, mut client) = Script::new().expression(expression).on(route_key, OK).connected().await;
        client.text(text).await;
        bed.event_of(route_key).await;
        client.frame(true, CLOSE, b"").await;
        bed.event_of("$disconnect").await;
    }
}

#[tokio::test]
async fn without_default_an_unmatched_message_is_forbidden_and_the_connection_stays() {
    let (mut bed, mut client) = Script::new().without("$default").connected().await;
    client.text(r#"{"action":"unknown"}"#).await;
    assert_eq!(client.hears_error().await.0, "Forbidden");
    bed.invoke(&mut client, "sendMessage").await;
}

#[tokio::test]
async fn a_ping_is_answered_and_invokes_nothing() {
    let (mut bed, mut client) = Script::new().connected().await;
    client.frame(true, PING, b"payload").await;
    assert_eq!(client.receive().await, Frame { fin: true, opcode: PONG, payload: b"payload".to_vec() });
    bed.assert_nothing_invoked().await;
}

#[tokio::test]
async fn messages_of_one_connection_are_invoked_side_by_side() {
    let gate = Arc::new(Semaphore::new(0));
    let (mut bed, mut client) = Script::new().on_held("sendMessage", &gate, error).connected().await;
    let slow = bed.invoke(&mut client, "sendMessage").await;
    assert_eq!(bed.failure(&mut client, "boom").await, "Internal server error");
    gate.add_permits(1);
    let (message, request_id) = client.hears_error().await;
    assert_eq!(message, "Internal server error");
    assert_eq!(slow["requestContext"]["requestId"], request_id);
}

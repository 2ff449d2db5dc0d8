//! The way of a client's message to a function, and the answer to its sender.
//!
//! This module implements "Set up a WebSocket API integration". Every message is an invocation of its own, and the
//! messages of a connection do not wait for each other.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::connection::Connection;
use super::event::MessageEvent;
use super::id::Id;
use super::integration::IntegrationError;
use super::order::Turn;
use super::settings::{OnewayErrorStatus, ThrottleFrame};
use super::state::{Gateway, log};
use crate::faults::Delay;
use crate::inspector::{Event, Story, Text};

/// Handles one message and sends the answer, if there is one, to the client.
pub(super) async fn route(gateway: Arc<Gateway>, connection: Arc<Connection>, body: Utf8Bytes, mut turn: Option<Turn>) {
    let begin = Instant::now();
    let request_id = Id::new();
    let story = gateway.inspector.begin(|| Event::Frame {
        connection: connection.id.to_string(),
        request: request_id.to_string(),
        text: Text::new(body.as_str()),
    });
    gateway.faults.random_delay(Delay::MessageDelay).await;
    if let Some(turn) = &mut turn {
        turn.wait().await;
    }
    let answer = AssertUnwindSafe(answer(&gateway, &connection, &request_id, &body, turn, story)).catch_unwind().await;
    // The client gets an answer even if the gateway panics.
    let answer = answer.unwrap_or_else(|_| Some(error_frame("Internal server error", &connection.id, &request_id)));
    if let Some(frame) = answer {
        gateway.inspector.tell(story, || Event::Reply { text: Text::new(&frame) });
        // The frame is dropped if the client has left in the meantime.
        connection.post(frame).await;
    }
    gateway.inspector.tell(story, || Event::Done { error: None, ms: begin.elapsed().into() });
}

/// Invokes the function of the message's route and returns the answer to the client.
///
/// A one-way route answers only failures. A two-way route ("Set up route responses for a WebSocket API") answers with
/// the body of the result, whatever its status is.
async fn answer(
    gateway: &Gateway,
    connection: &Connection,
    request_id: &Id,
    body: &str,
    turn: Option<Turn>,
    story: Option<Story>,
) -> Option<Bytes> {
    let behaviour = &gateway.settings.behaviour;
    let error = |message| Some(error_frame(message, &connection.id, request_id));
    let trouble = |reason: &str| gateway.inspector.tell(story, || Event::Trouble { reason: reason.to_owned() });
    if !gateway.requests.admits() {
        trouble("the message is above the request rate");
        log(format_args!("{} sent a message above the request rate, request {request_id}", connection.id));
        return match behaviour.throttle_frame {
            ThrottleFrame::TooManyRequests => error("Too Many Requests"),
            ThrottleFrame::None => None,
        };
    }
    let routes = &gateway.api.routes;
    let Some(route_key) = gateway.expression.select(body, behaviour.lenient_json, |key| routes.contains_key(key))
    else {
        trouble("no route takes the message");
        log(format_args!("{} sent a message that no route takes, request {request_id}", connection.id));
        return error("Forbidden");
    };
    gateway.inspector.tell(story, || Event::Route { route: route_key.clone() });
    let models = gateway.api.request_models.get(&route_key);
    if models.is_some_and(|models| !models.accept(body, behaviour.lenient_json)) {
        let id = &connection.id;
        trouble("the message does not match the model of its route");
        log(format_args!("{id} sent a message that does not match the model of {route_key}, request {request_id}"));
        return Some(bad_request_body(&connection.id, &Id::new()));
    }
    let event = MessageEvent::new(&gateway.api, connection, request_id, &route_key, body);
    // The invocation begins with its first poll. The turn ends right after that.
    let invocation = gateway.invoke(&route_key, connection, request_id, &event, story);
    let end_turn = async {
        if let Some(turn) = turn {
            turn.end();
        }
    };
    let (result, ()) = tokio::join!(biased; invocation, end_turn);
    match result? {
        Ok(response) if gateway.api.two_way_routes.contains(&route_key) => {
            let body = response.body.unwrap_or_default();
            if body.len() > gateway.settings.limits.message_limit {
                // Inferred: a message cannot be that long.
                trouble("the body of the result is longer than a message can be");
                log(format_args!("{route_key} failed, request {request_id}: its body is longer than a message can be"));
                return error("Internal server error");
            }
            Some(body.into())
        }
        Ok(response)
            if response.status_code >= 400 && behaviour.oneway_error_status == OnewayErrorStatus::ErrorFrame =>
        {
            error("Internal server error")
        }
        // The guide says: "won't send any information about the result".
        Ok(_) => None,
        Err(IntegrationError::TimedOut) => error("Endpoint request timed out"),
        Err(_) => error("Internal server error"),
    }
}

/// Formats an error frame with the spaces of the recorded ones.
fn error_frame(message: &str, connection_id: &Id, request_id: &Id) -> Bytes {
    format!(r#"{{"message": "{message}", "connectionId":"{connection_id}", "requestId":"{request_id}"}}"#).into()
}

/// Formats the frame with the spaces of the documentation. They differ from those of recorded error frames.
fn bad_request_body(connection_id: &Id, message_id: &Id) -> Bytes {
    format!(r#"{{"message" : "Bad request body", "connectionId": "{connection_id}", "messageId": "{message_id}"}}"#)
        .into()
}

//! What becomes of a client's message.
//!
//! Implements "Set up a WebSocket API integration": every message is an invocation of its own, and nothing is serialised
//! per connection.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::connection::Connection;
use super::event::MessageEvent;
use super::id::Id;
use super::integration::IntegrationError;
use super::knobs::{OnewayErrorStatus, ThrottleFrame};
use super::order::Turn;
use super::{Gateway, log};
use crate::faults::Delay;

/// Sees a message through, up to what its sender hears of it.
pub(super) async fn route(gateway: Arc<Gateway>, connection: Arc<Connection>, body: Utf8Bytes, mut turn: Option<Turn>) {
    gateway.faults.random_delay(Delay::MessageDelay).await;
    if let Some(turn) = &mut turn {
        turn.come().await;
    }
    let request_id = Id::new();
    let answer = AssertUnwindSafe(answer(&gateway, &connection, &request_id, &body, turn)).catch_unwind().await;
    // A panic of ours leaves no client without an answer.
    let answer = answer.unwrap_or_else(|_| Some(error_frame("Internal server error", &connection.id, &request_id)));
    if let Some(frame) = answer {
        // Dropped when the client has left meanwhile.
        connection.post(frame).await;
    }
}

/// Gives a message to the function of its route. Of a one-way route the client hears only failures; a two-way route
/// ("Set up route responses for a WebSocket API") sends it the body of the result, whatever the status.
async fn answer(
    gateway: &Gateway,
    connection: &Connection,
    request_id: &Id,
    body: &str,
    turn: Option<Turn>,
) -> Option<Bytes> {
    let knobs = &gateway.settings.knobs;
    let error = |message| Some(error_frame(message, &connection.id, request_id));
    if !gateway.requests.admits() {
        log(format_args!("{} sent too many messages, request {request_id}", connection.id));
        return match knobs.throttle_frame {
            ThrottleFrame::TooManyRequests => error("Too Many Requests"),
            ThrottleFrame::None => None,
        };
    }
    let routes = &gateway.api.routes;
    let Some(route_key) = gateway.expression.select(body, knobs.lenient_json, |key| routes.contains_key(key)) else {
        log(format_args!("{} no route for a message, request {request_id}", connection.id));
        return error("Forbidden");
    };
    let models = gateway.api.request_models.get(&route_key);
    if models.is_some_and(|models| !models.accept(body, knobs.lenient_json)) {
        log(format_args!("{} sent {route_key} what is not as its model, request {request_id}", connection.id));
        return Some(bad_request_body(&connection.id, &Id::new()));
    }
    let event = MessageEvent::new(gateway.source(), connection, request_id, &route_key, body);
    // The turn ends when the invocation has been polled, which is when it begins.
    let invocation = gateway.invoke(&route_key, request_id, &event);
    let (result, ()) = tokio::join!(biased; invocation, async { drop(turn) });
    match result? {
        Ok(response) if gateway.api.two_way.contains(&route_key) => {
            let body = response.body.unwrap_or_default();
            if body.len() > gateway.settings.limits.message_limit {
                // Inferred: no message can be that long.
                log(format_args!("{route_key} failed, request {request_id}: its body is too long to be sent"));
                return error("Internal server error");
            }
            Some(body.into())
        }
        Ok(response) if response.status_code >= 400 && knobs.oneway_error_status == OnewayErrorStatus::ErrorFrame => {
            error("Internal server error")
        }
        // "Won't send any information about the result".
        Ok(_) => None,
        Err(IntegrationError::TimedOut) => error("Endpoint request timed out"),
        Err(_) => error("Internal server error"),
    }
}

/// Spaced as recorded.
fn error_frame(message: &str, connection_id: &Id, request_id: &Id) -> Bytes {
    format!(r#"{{"message": "{message}", "connectionId":"{connection_id}", "requestId":"{request_id}"}}"#).into()
}

/// Spaced as documented, which is otherwise than other frames are recorded.
fn bad_request_body(connection_id: &Id, message_id: &Id) -> Bytes {
    format!(r#"{{"message" : "Bad request body", "connectionId": "{connection_id}", "messageId": "{message_id}"}}"#)
        .into()
}

//! The [Extensions API](https://docs.aws.amazon.com/lambda/latest/dg/runtimes-extensions-api.html) for internal extensions: those
//! that run in the function's own process.
//!
//! An extension that wants no events only makes Lambda announce the end of its environment: the process gets SIGTERM, and
//! [`SHUTDOWN`] later SIGKILL. One that wants `INVOKE` hears of every event, and the environment is frozen only when it asks
//! for the next one. Not here: external extensions, and the Telemetry API. The statuses of refusals follow AWS's Runtime Interface
//! Emulator as far as they are known.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{oneshot, watch};
use uuid::Uuid;

use super::runtime_api::{Invocation, accepted, json as response, refusal};

/// The time between SIGTERM and SIGKILL: "500 ms – A function with a registered internal extension" ("Understanding the Lambda
/// execution environment lifecycle"). Without an extension it is 0.
pub(super) const SHUTDOWN: Duration = Duration::from_millis(500);

/// The headers with the name of an extension, and with the id that it got for its registration.
const NAME: &str = "lambda-extension-name";
const IDENTIFIER: &str = "lambda-extension-identifier";

/// The extensions of one process.
#[derive(Debug, Clone)]
pub(super) struct Extensions {
    registered: watch::Sender<Vec<Extension>>,
    /// Whether the init goes on. Later registrations are refused.
    is_init: watch::Sender<bool>,
    about: Arc<About>,
}

/// The facts about the function that a registration gets.
#[derive(Debug, Default)]
pub(super) struct About {
    pub(super) function_name: String,
    pub(super) handler: String,
}

#[derive(Debug)]
struct Extension {
    id: Uuid,
    /// Whether it wants to hear of events.
    hears: bool,
    /// Its call of `next`, which waits for one.
    poll: Option<oneshot::Sender<Bytes>>,
}

#[derive(Deserialize, Default)]
struct Registration {
    #[serde(default)]
    events: Vec<String>,
}

impl Extensions {
    pub(super) fn new(about: About) -> Self {
        Self { registered: watch::Sender::default(), is_init: watch::Sender::new(true), about: Arc::new(about) }
    }

    /// The routes of the API.
    pub(super) fn router(&self) -> Router {
        Router::new()
            .route("/2020-01-01/extension/register", post(register))
            .route("/2020-01-01/extension/event/next", get(next))
            .route("/2020-01-01/extension/init/error", post(async || accepted()))
            .route("/2020-01-01/extension/exit/error", post(async || accepted()))
            .with_state(self.clone())
    }

    /// Ends the time of registrations.
    pub(super) fn close(&self) {
        self.is_init.send_replace(false);
    }

    /// Tells whether there is one.
    pub(super) fn are_there(&self) -> bool {
        !self.registered.borrow().is_empty()
    }

    /// Tells those that want to hear of it about an event.
    pub(super) fn announce(&self, invocation: &Invocation) {
        let event = json!({
            "eventType": "INVOKE",
            "deadlineMs": u64::try_from(invocation.deadline_ms).unwrap_or(u64::MAX),
            "requestId": invocation.request_id.to_string(),
            "invokedFunctionArn": invocation.function_arn,
            "tracing": { "type": "X-Amzn-Trace-Id", "value": invocation.trace_id },
        });
        let event = Bytes::from(event.to_string());
        self.registered.send_if_modified(|extensions| {
            for extension in extensions.iter_mut().filter(|extension| extension.hears) {
                if let Some(poll) = extension.poll.take() {
                    // An extension that has hung up hears nothing.
                    let _ = poll.send(event.clone());
                }
            }
            false
        });
    }

    /// Waits until each of those has asked for its next event.
    pub(super) async fn ready(&self) {
        let ready = |extensions: &Vec<Extension>| extensions.iter().all(|one| !one.hears || one.poll.is_some());
        // This fails only when the sender is dropped, and `self` owns it.
        let _ = self.registered.subscribe().wait_for(ready).await;
    }
}

async fn register(State(extensions): State<Extensions>, headers: HeaderMap, body: Bytes) -> Response {
    let Some(name) = headers.get(NAME).and_then(|name| name.to_str().ok()).filter(|name| !name.is_empty()) else {
        return refusal(StatusCode::BAD_REQUEST, "Extension.InvalidExtensionName", "The extension has no name");
    };
    let registration: Registration = match serde_json::from_slice(&body) {
        Ok(registration) => registration,
        Err(error) => {
            return refusal(StatusCode::BAD_REQUEST, "InvalidRequestFormat", &error.to_string());
        }
    };
    for event in &registration.events {
        let (error_type, message) = match event.as_str() {
            "INVOKE" => continue,
            "SHUTDOWN" => ("ShutdownEventNotSupportedForInternalExtension", "Only external extensions get SHUTDOWN"),
            _ => ("Extension.InvalidEventType", "The events are INVOKE and SHUTDOWN"),
        };
        return refusal(StatusCode::BAD_REQUEST, error_type, &format!("{message}: {name}"));
    }
    if !*extensions.is_init.borrow() {
        let message = format!("The init is over, so {name} cannot register");
        return refusal(StatusCode::FORBIDDEN, "Extension.RegistrationClosed", &message);
    }
    let id = Uuid::new_v4();
    let extension = Extension { id, hears: !registration.events.is_empty(), poll: None };
    extensions.registered.send_modify(|extensions| extensions.push(extension));
    let About { function_name, handler } = &*extensions.about;
    let about = json!({ "functionName": function_name, "functionVersion": "$LATEST", "handler": handler });
    let mut answer = response(StatusCode::OK, &about);
    if let Ok(id) = id.to_string().try_into() {
        answer.headers_mut().insert(IDENTIFIER, id);
    }
    answer
}

async fn next(State(extensions): State<Extensions>, headers: HeaderMap) -> Response {
    let id = headers.get(IDENTIFIER).and_then(|id| id.to_str().ok()).and_then(|id| id.parse::<Uuid>().ok());
    let (poll, event) = oneshot::channel();
    let mut poll = Some(poll);
    extensions.registered.send_if_modified(|extensions| {
        let known = extensions.iter_mut().find(|extension| Some(extension.id) == id);
        known.map(|extension| extension.poll = poll.take()).is_some()
    });
    if poll.is_some() {
        let message = "There is no extension with this identifier";
        return refusal(StatusCode::FORBIDDEN, "Extension.UnknownExtensionIdentifier", message);
    }
    match event.await {
        Ok(event) => {
            let id = Uuid::new_v4().to_string();
            ([("content-type", "application/json".to_owned()), ("lambda-extension-event-identifier", id)], event)
                .into_response()
        }
        // The extension has asked again, and this call is forgotten.
        Err(_) => std::future::pending().await,
    }
}

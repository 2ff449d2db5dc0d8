//! API Gateway's `@connections` API: it posts a frame to one connection, or closes one.
//!
//! A post ends in one of a few ways, and none of them is an error: the caller decides what each one means. The time and
//! the number of attempts for one receiver are bounded, so that a bad receiver costs the others little.

use std::collections::HashMap;
use std::fmt;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_apigatewaymanagement::Client;
use aws_sdk_apigatewaymanagement::config::Builder;
use aws_sdk_apigatewaymanagement::config::retry::RetryConfig;
use aws_sdk_apigatewaymanagement::error::SdkError;
use aws_sdk_apigatewaymanagement::operation::post_to_connection::PostToConnectionError;
use aws_sdk_apigatewaymanagement::primitives::Blob;
use lambda_runtime::tracing::{info, warn};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::Error;
use crate::connection::ConnectionId;
use crate::deadline::{Backoff, Deadline};
use crate::error::describe;

/// The longest that one attempt of a post may take. Posts hang while a client does not read.
pub(crate) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long an attempt occupies a slot. Slots bound the work of posting, and a post that takes longer only waits.
const SLOT_TIME: Duration = Duration::from_millis(500);

/// The most posts that run at once in a function.
pub(crate) const MAX_POSTS_AT_ONCE: usize = 128;

/// How often, and for how long, a post that is refused is tried.
const MAX_ATTEMPTS: u32 = 5;
const MAX_TIME: Duration = Duration::from_secs(3);

/// The URL in front of `/@connections`, without a slash at its end.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint(String);

impl Endpoint {
    /// Checks a configured URL.
    ///
    /// # Errors
    ///
    /// Returns the problem as the end of a sentence that begins with the variable's name.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.split_once("://").map_or("", |(scheme, _)| scheme) {
            "http" | "https" => {}
            scheme @ ("ws" | "wss") => {
                return Err(format!("must begin with http:// or https://, not with {scheme}://"));
            }
            _ => return Err("must begin with http:// or https://".to_owned()),
        }
        let uri: http::Uri = text.parse().map_err(|_| "is not a URL".to_owned())?;
        if uri.authority().is_none_or(|authority| authority.as_str().contains('@')) {
            return Err("must be a URL with a host and without a user".to_owned());
        }
        if uri.query().is_some() {
            return Err("must be a URL without a query".to_owned());
        }
        if uri.path().contains("/@connections") {
            return Err("must end before /@connections".to_owned());
        }
        Ok(Self(text.trim_end_matches('/').to_owned()))
    }

    /// Whether posts go through TLS.
    #[must_use]
    pub fn has_tls(&self) -> bool {
        self.0.starts_with("https://")
    }

    /// The address through which an event came.
    #[must_use]
    pub fn of_event(domain_name: &str, stage: &str) -> Self {
        Self(format!("https://{domain_name}/{stage}"))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// The gateways that an execution environment posts to. There is one for each address through which events come,
/// unless the configuration names one for all of them.
#[derive(Debug)]
pub struct Gateways {
    sdk: SdkConfig,
    configured: Option<Endpoint>,
    posts_at_once: usize,
    slots: Arc<Semaphore>,
    throttled: Arc<AtomicUsize>,
    known: Mutex<HashMap<Endpoint, Gateway>>,
}

impl Gateways {
    /// `memory_mb` is the function's: below 512 MB its share of a CPU limits posting, and more simultaneous posts would
    /// only add handshakes. With 1,769 MB it has a whole CPU, which 128 posts of 10 ms keep busy.
    #[must_use]
    pub fn new(sdk: SdkConfig, configured: Option<Endpoint>, memory_mb: i32) -> Self {
        let posts_at_once = match memory_mb {
            ..512 => 16,
            512..1769 => 64,
            1769.. => MAX_POSTS_AT_ONCE,
        };
        let slots = Arc::new(Semaphore::new(posts_at_once));
        Self { sdk, configured, posts_at_once, slots, throttled: Arc::default(), known: Mutex::default() }
    }

    /// The gateway through which an event came, or the configured one.
    #[must_use]
    pub fn of_event(&self, domain_name: &str, stage: &str) -> Gateway {
        self.at(self.configured.clone().unwrap_or_else(|| Endpoint::of_event(domain_name, stage)))
    }

    /// The configured gateway, for functions whose events name none.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] when none is configured.
    pub fn configured(&self) -> Result<Gateway, Error> {
        let none = || Error::Config { problems: "PUBLISH_ENDPOINT is not set".to_owned() };
        self.configured.clone().map(|endpoint| self.at(endpoint)).ok_or_else(none)
    }

    fn at(&self, endpoint: Endpoint) -> Gateway {
        // The map only grows by whole entries, so a panic elsewhere cannot leave it half changed.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let gateway = known.entry(endpoint).or_insert_with_key(|endpoint| {
            // `Gateway::post` repeats on its own: it knows the deadline, and which 410 to doubt.
            let config = Builder::from(&self.sdk).endpoint_url(&endpoint.0).retry_config(RetryConfig::disabled());
            Gateway {
                client: Client::from_conf(config.build()),
                posts_at_once: self.posts_at_once,
                slots: Arc::clone(&self.slots),
                throttled: Arc::clone(&self.throttled),
            }
        });
        gateway.clone()
    }
}

/// One API's `@connections`.
#[derive(Debug, Clone)]
pub struct Gateway {
    client: Client,
    /// The number of `slots`.
    pub(crate) posts_at_once: usize,
    /// One for each attempt that may run at once, over all publishes of the execution environment.
    slots: Arc<Semaphore>,
    /// How many answers were 429 since somebody asked.
    throttled: Arc<AtomicUsize>,
}

/// How a post ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Post {
    /// The gateway took the frame. Nobody can know more: the peer may be gone without a word.
    Taken,
    /// 410: the connection is gone, or it is not open yet, or the gateway is wrong.
    Gone,
    /// An attempt took longer than [`ATTEMPT_TIMEOUT`].
    Hung,
    /// 429, 5xx or a broken transport, for [`MAX_ATTEMPTS`] attempts or [`MAX_TIME`].
    Refused,
    /// 403: this function may not post here.
    Denied,
    /// Another 4xx: this receiver or this frame will never do.
    Rejected,
    /// The deadline passed first.
    OutOfTime,
}

/// How one attempt ended, when the gateway did not take the frame.
enum Attempt {
    Gone,
    Refused(String),
    Denied(String),
    Rejected(String),
}

/// What the gateway says about a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    Open,
    Gone,
    /// It did not answer.
    Unclear,
}

impl Gateway {
    /// Waits for the right to run one attempt; `None` when the deadline passes first.
    pub(crate) async fn slot(&self, deadline: Deadline) -> Option<OwnedSemaphorePermit> {
        let slot = tokio::time::timeout(deadline.left(), Arc::clone(&self.slots).acquire_owned()).await;
        slot.ok().and_then(Result::ok)
    }

    /// Posts a frame; the first attempt runs in `slot`, if there is one. A 410 is doubted for as long as `patience`.
    pub(crate) async fn post(
        &self,
        mut slot: Option<OwnedSemaphorePermit>,
        id: &ConnectionId,
        frame: Vec<u8>,
        deadline: Deadline,
        patience: Duration,
    ) -> Post {
        let frame = Blob::new(frame);
        let (settled, bound) = (deadline.at_most(patience), deadline.at_most(MAX_TIME));
        let mut backoff = Backoff::default();
        for attempt in 1.. {
            if slot.is_none() {
                slot = self.slot(deadline).await;
            }
            let Some(running) = slot.take() else { return Post::OutOfTime };
            let call = self.client.post_to_connection().connection_id(id.as_str()).data(frame.clone()).send();
            let mut call = pin!(tokio::time::timeout(deadline.left().min(ATTEMPT_TIMEOUT), call));
            let answer = match tokio::time::timeout(SLOT_TIME, &mut call).await {
                Ok(answer) => answer,
                Err(_) => {
                    drop(running);
                    call.await
                }
            };
            let attempt_error = |error: SdkError<PostToConnectionError>| {
                if status(&error) == Some(429) {
                    self.throttled.fetch_add(1, Ordering::Relaxed);
                }
                Attempt::from(&error)
            };
            let reason = match answer.map(|answer| answer.map_err(attempt_error)) {
                Ok(Ok(_)) => return Post::Taken,
                Err(_) if deadline.left().is_zero() => return Post::OutOfTime,
                Err(_) => {
                    warn!(connection.id = %id, "a post hangs: the receiver does not read");
                    return Post::Hung;
                }
                Ok(Err(Attempt::Gone)) if backoff.wait(settled).await => continue,
                Ok(Err(Attempt::Gone)) => return Post::Gone,
                Ok(Err(Attempt::Denied(reason))) => {
                    warn!(connection.id = %id, reason, "a post is denied: look at the role and at PUBLISH_ENDPOINT");
                    return Post::Denied;
                }
                Ok(Err(Attempt::Rejected(reason))) => {
                    warn!(connection.id = %id, reason, "a post is rejected for good");
                    return Post::Rejected;
                }
                Ok(Err(Attempt::Refused(reason))) => reason,
            };
            if attempt == MAX_ATTEMPTS || !backoff.wait(bound).await {
                let left = deadline.left();
                info!(connection.id = %id, attempt, reason, "a post is refused again and again");
                return if left.is_zero() { Post::OutOfTime } else { Post::Refused };
            }
        }
        Post::Refused
    }

    /// Opens an HTTP connection, which the first post then finds open. The request is one of the gateway's health check: it needs
    /// no permission. `/ping` is reserved for that ("Amazon API Gateway important notes"). Nobody needs the answer.
    pub(crate) async fn warm_up(&self) {
        // It begins as a post, because posts are linked in any case.
        let post = self.client.post_to_connection().connection_id("warm-up").data(Blob::new([]));
        let call = post.customize().mutate_request(|request| {
            let Ok(uri) = request.uri().parse::<http::Uri>() else { return };
            let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return };
            // The method and the path are right, so neither fails.
            let _ = request.set_method("GET");
            let _ = request.set_uri(format!("{scheme}://{authority}/ping"));
        });
        let _ = call.send().await;
    }

    /// How many answers were 429 since the last time.
    pub(crate) fn take_throttled(&self) -> usize {
        self.throttled.swap(0, Ordering::Relaxed)
    }

    /// Asks whether a connection is open. It hears nothing of that.
    pub(crate) async fn ask(&self, id: &ConnectionId, deadline: Deadline) -> Known {
        let call = self.client.get_connection().connection_id(id.as_str()).send();
        match tokio::time::timeout(deadline.left().min(ATTEMPT_TIMEOUT), call).await {
            Ok(Ok(_)) => Known::Open,
            Ok(Err(error)) if status(&error) == Some(410) => Known::Gone,
            Ok(Err(error)) => {
                info!(connection.id = %id, error = describe(&error), "the gateway does not say whether a connection is open");
                Known::Unclear
            }
            Err(_) => Known::Unclear,
        }
    }

    /// Closes a connection, so that a client that is alive after all notices and connects again. Returns whether the
    /// connection is closed now; it is, too, when the gateway answers 410.
    pub(crate) async fn delete(&self, id: &ConnectionId, deadline: Deadline) -> bool {
        let call = self.client.delete_connection().connection_id(id.as_str()).send();
        match tokio::time::timeout(deadline.left().min(ATTEMPT_TIMEOUT), call).await {
            Ok(Ok(_)) => {
                info!(connection.id = %id, "a connection was closed by its backend");
                true
            }
            Ok(Err(error)) if status(&error) == Some(410) => true,
            Ok(Err(error)) => {
                warn!(connection.id = %id, error = describe(&error), "a connection could not be closed");
                false
            }
            Err(_) => {
                warn!(connection.id = %id, "a connection could not be closed in time");
                false
            }
        }
    }
}

fn status<E>(error: &SdkError<E>) -> Option<u16> {
    error.raw_response().map(|response| response.status().as_u16())
}

impl From<&SdkError<PostToConnectionError>> for Attempt {
    /// The SDK recognises `GoneException` by a header alone, so the raw status counts as well.
    fn from(error: &SdkError<PostToConnectionError>) -> Self {
        match status(error).filter(|_| matches!(error, SdkError::ServiceError(_))) {
            Some(410) => Self::Gone,
            Some(403) => Self::Denied(describe(error)),
            Some(429 | 500..) => Self::Refused(describe(error)),
            Some(_) if error.as_service_error().is_some_and(PostToConnectionError::is_gone_exception) => Self::Gone,
            Some(_) => Self::Rejected(describe(error)),
            None if matches!(error, SdkError::ConstructionFailure(_)) => Self::Rejected(describe(error)),
            None => Self::Refused(describe(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::scripted::{Aws, answer};

    #[test]
    fn an_endpoint_is_a_url_in_front_of_connections() {
        for right in ["https://a.execute-api.eu-west-1.amazonaws.com/dev", "http://127.0.0.1:3001/dev/", "https://x"] {
            assert_eq!(Endpoint::parse(right).unwrap().to_string(), right.trim_end_matches('/'));
        }
        for (wrong, expected) in [
            ("127.0.0.1:3001/dev", "must begin with http:// or https://"),
            ("ws://127.0.0.1:3001/dev", "not with ws://"),
            ("wss://abc.execute-api.us-east-1.amazonaws.com/dev", "not with wss://"),
            ("yes please", "must begin with http:// or https://"),
            ("https://yes please", "is not a URL"),
            ("https:///dev", "is not a URL"),
            ("https://user:secret@host/dev", "without a user"),
            ("https://host/dev?a=b", "without a query"),
            ("https://host/dev/@connections", "must end before /@connections"),
            ("https://host/dev/@connections/abc=", "must end before /@connections"),
        ] {
            let problem = Endpoint::parse(wrong).unwrap_err();
            assert!(problem.contains(expected), "{wrong}: {problem}");
        }
    }

    /// One execution environment may serve events of several domains and stages.
    #[tokio::test(start_paused = true)]
    async fn a_post_goes_where_its_event_came_from_unless_an_endpoint_is_configured() {
        let (aws, _backend) = Aws::backend(|_| answer(200, json!({})));
        let post = async |gateways: &Gateways| {
            for (domain_name, stage) in [("one.example", "dev"), ("two.example", "prod"), ("one.example", "dev")] {
                let gateway = gateways.of_event(domain_name, stage);
                let deadline = Deadline::after(Duration::from_secs(9));
                let id = ConnectionId::new("c=".to_owned());
                assert_eq!(gateway.post(None, &id, Vec::new(), deadline, Duration::ZERO).await, Post::Taken);
            }
        };
        post(&Gateways::new(aws.sdk(), None, 256)).await;
        let configured = Endpoint::parse("https://chat.example.com/v1").unwrap();
        post(&Gateways::new(aws.sdk(), Some(configured), 256)).await;
        let hosts = aws.calls().into_iter().map(|call| call.url.split_once("/@").unwrap().0.to_owned());
        let configured = ["chat.example.com/v1"; 3];
        let expected = [&["one.example/dev", "two.example/prod", "one.example/dev"][..], &configured].concat();
        assert_eq!(hosts.collect::<Vec<_>>(), expected);
    }
}

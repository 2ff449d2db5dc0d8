//! Posting frames to connections, through API Gateway's `@connections` API.
//!
//! What happens to one receiver is an outcome and not an error, so that it cannot spoil the others. A connection that
//! is gone is forgotten with all its rows; a post that is throttled or fails is tried again while there is time, and
//! counted and logged when it was in vain. A post that timed out may have arrived all the same, so a frame can reach
//! a client twice; it is never dropped in silence.

use std::sync::OnceLock;
use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_apigatewaymanagement::Client;
use aws_sdk_apigatewaymanagement::config::Builder;
use aws_sdk_apigatewaymanagement::config::retry::RetryConfig;
use aws_sdk_apigatewaymanagement::error::{DisplayErrorContext, SdkError};
use aws_sdk_apigatewaymanagement::operation::post_to_connection::PostToConnectionError;
use aws_sdk_apigatewaymanagement::primitives::Blob;
use futures_util::stream::{Stream, TryStreamExt};
use lambda_runtime::tracing::{info, warn};

use crate::Error;
use crate::config::Config;
use crate::connection::ConnectionId;
use crate::deadline::{Backoff, Deadline};
use crate::metrics::Metrics;
use crate::store::{ConnectionStore, now_ms};
use crate::topic::{Subscriber, Topic};

/// How long one attempt of a post may take. Posts have been seen to hang while a client does not read.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);

/// How often an attempt may time out: a receiver that hangs once more is given up, and the others need the time.
const MAX_TIMEOUTS: u32 = 2;

/// Rows are written before the socket opens, and `$connect` has at most 29 s to return (Amazon API Gateway quotas,
/// WebSocket APIs). Until then 410 may mean "not yet".
const SETTLING_MS: i64 = 30_000;

/// How long a post to a connection that may still be opening is repeated.
const SETTLING_PATIENCE: Duration = Duration::from_secs(1);

/// What became of one post.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// The gateway took the frame. That is all anybody can know: the peer may be gone without a word.
    Delivered,
    /// The connection is gone (410) and its rows are deleted.
    Stale,
    /// 410 from a connection so young that it may still be opening. Its rows stay.
    Pending,
    /// The gateway did not take the frame within the time there was, or refused it for good.
    Failed,
}

/// How many receivers met which fate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fanout {
    /// [`Delivery::Delivered`].
    pub delivered: usize,
    /// [`Delivery::Stale`].
    pub stale: usize,
    /// [`Delivery::Pending`].
    pub pending: usize,
    /// [`Delivery::Failed`].
    pub failed: usize,
}

impl Fanout {
    /// How many connections took a message to `topic`; none at all is only right when no post failed.
    ///
    /// # Errors
    ///
    /// [`Error::Undelivered`].
    pub fn reached(&self, topic: &Topic) -> Result<usize, Error> {
        match (self.delivered, self.failed) {
            (0, failed @ 1..) => Err(Error::Undelivered { topic: topic.clone(), failed }),
            (delivered, _) => Ok(delivered),
        }
    }

    fn count(&mut self, delivery: Delivery) {
        *match delivery {
            Delivery::Delivered => &mut self.delivered,
            Delivery::Stale => &mut self.stale,
            Delivery::Pending => &mut self.pending,
            Delivery::Failed => &mut self.failed,
        } += 1;
    }
}

/// Posts frames to connections. One for the life of an execution environment.
#[derive(Debug)]
pub struct Publisher {
    sdk: SdkConfig,
    endpoint: Option<String>,
    gateway: OnceLock<Client>,
    store: ConnectionStore,
    metrics: Metrics,
    concurrency: usize,
}

/// How a single post ended, before anybody drew a conclusion.
enum Post {
    Taken,
    Gone,
    Failed,
}

/// How a single attempt ended.
enum Attempt {
    Taken,
    Gone,
    TimedOut,
    /// Worth another attempt.
    Refused(String),
    /// Not worth another attempt.
    Rejected(String),
}

impl Publisher {
    /// A publisher that forgets stale connections in `store`. `memory_mb` is the function's: below 512 MB its share of
    /// a CPU is what limits posting, and more simultaneous posts only add handshakes.
    #[must_use]
    pub fn new(sdk: SdkConfig, config: &Config, store: ConnectionStore, metrics: Metrics, memory_mb: i32) -> Self {
        Self {
            sdk,
            endpoint: config.publish_endpoint.clone(),
            gateway: OnceLock::new(),
            store,
            metrics,
            concurrency: if memory_mb < 512 { 16 } else { 64 },
        }
    }

    /// Settles where posts go, unless configuration has done so: to the domain and stage that an event came through.
    pub fn answer_through(&self, domain_name: Option<&str>, stage: Option<&str>) {
        if let (None, Some(domain), Some(stage)) = (&self.endpoint, domain_name, stage) {
            self.gateway.get_or_init(|| self.client(&format!("https://{domain}/{stage}")));
        }
    }

    /// Posts a frame to every subscriber, a bounded number at a time.
    ///
    /// # Errors
    ///
    /// Only when `subscribers` fails; whoever it named before has been served.
    pub async fn publish(
        &self,
        topic: &Topic,
        subscribers: impl Stream<Item = Result<Subscriber, Error>>,
        frame: impl Fn(&Subscriber) -> Vec<u8>,
        deadline: Deadline,
    ) -> Result<Fanout, Error> {
        let frame = &frame;
        let fanout = subscribers
            .map_ok(|subscriber| async move {
                let frame = frame(&subscriber);
                Ok(self.deliver(topic, &subscriber, frame, deadline).await)
            })
            .try_buffer_unordered(self.concurrency)
            .try_fold(Fanout::default(), |mut fanout, delivery| async move {
                fanout.count(delivery);
                Ok(fanout)
            })
            .await?;
        self.metrics.published(&fanout);
        if fanout.failed > 0 {
            warn!(
                topic.name = %topic, delivered = fanout.delivered, stale = fanout.stale, pending = fanout.pending,
                failed = fanout.failed, "not every subscriber was reached"
            );
        }
        Ok(fanout)
    }

    /// Posts a frame to the connection whose own frame is being served.
    ///
    /// # Errors
    ///
    /// [`Error::Reply`] when the gateway did not take it. A sender that has gone meanwhile is no error.
    pub async fn reply(&self, id: &ConnectionId, frame: Vec<u8>, deadline: Deadline) -> Result<(), Error> {
        match self.post(id, frame, deadline, Duration::ZERO).await {
            Post::Taken => Ok(()),
            Post::Gone => {
                info!(connection.id = %id, "the sender has gone before its reply");
                Ok(())
            }
            Post::Failed => Err(Error::Reply { connection_id: id.clone() }),
        }
    }

    async fn deliver(&self, topic: &Topic, to: &Subscriber, frame: Vec<u8>, deadline: Deadline) -> Delivery {
        let id = &to.connection_id;
        let settling = now_ms() - to.connected_at_ms < SETTLING_MS;
        let patience = if settling { SETTLING_PATIENCE } else { Duration::ZERO };
        match self.post(id, frame, deadline, patience).await {
            Post::Taken => Delivery::Delivered,
            Post::Failed => Delivery::Failed,
            Post::Gone if settling => {
                warn!(connection.id = %id, topic.name = %topic, "gone, or not open yet: not forgotten");
                Delivery::Pending
            }
            Post::Gone => {
                match self.store.remove(id, Some(topic), deadline).await {
                    Ok(topics) => info!(connection.id = %id, topics, "a stale connection was forgotten"),
                    Err(error) => warn!(connection.id = %id, %error, "a stale connection could not be forgotten"),
                }
                Delivery::Stale
            }
        }
    }

    /// Posts until the gateway takes the frame, says 410 for longer than `patience`, or time runs out.
    async fn post(&self, id: &ConnectionId, frame: Vec<u8>, deadline: Deadline, patience: Duration) -> Post {
        let frame = Blob::new(frame);
        let settled = deadline.at_most(patience);
        let mut backoff = Backoff::default();
        let mut timeouts = 0;
        loop {
            let reason = match self.attempt(id, frame.clone(), deadline).await {
                Attempt::Taken => return Post::Taken,
                Attempt::Gone if backoff.wait(settled).await => continue,
                Attempt::Gone => return Post::Gone,
                Attempt::TimedOut => {
                    timeouts += 1;
                    if timeouts < MAX_TIMEOUTS && backoff.wait(deadline).await {
                        continue;
                    }
                    "timed out".to_owned()
                }
                Attempt::Refused(reason) => {
                    if backoff.wait(deadline).await {
                        continue;
                    }
                    reason
                }
                Attempt::Rejected(reason) => reason,
            };
            warn!(connection.id = %id, reason, "a post was given up");
            return Post::Failed;
        }
    }

    async fn attempt(&self, id: &ConnectionId, frame: Blob, deadline: Deadline) -> Attempt {
        let gateway = self.gateway.get_or_init(|| self.client(self.endpoint.as_deref().unwrap_or_default()));
        let call = gateway.post_to_connection().connection_id(id.as_str()).data(frame).send();
        match tokio::time::timeout(deadline.left().min(ATTEMPT_TIMEOUT), call).await {
            Err(_) => Attempt::TimedOut,
            Ok(Ok(_)) => Attempt::Taken,
            Ok(Err(error)) => read(&error),
        }
    }

    fn client(&self, endpoint: &str) -> Client {
        let config = Builder::from(&self.sdk)
            .endpoint_url(endpoint)
            // `post` repeats on its own: it knows the deadline, and which 410 to doubt.
            .retry_config(RetryConfig::disabled());
        Client::from_conf(config.build())
    }
}

/// What an error of the SDK means. It recognises `GoneException` by a header alone, so the raw status counts as well.
fn read(error: &SdkError<PostToConnectionError>) -> Attempt {
    let reason = || DisplayErrorContext(error).to_string();
    match error {
        SdkError::ServiceError(context) => match context.raw().status().as_u16() {
            410 => Attempt::Gone,
            429 | 500.. => Attempt::Refused(reason()),
            _ if context.err().is_gone_exception() => Attempt::Gone,
            _ => Attempt::Rejected(reason()),
        },
        SdkError::TimeoutError(_) => Attempt::TimedOut,
        SdkError::DispatchFailure(_) | SdkError::ResponseError(_) => Attempt::Refused(reason()),
        _ => Attempt::Rejected(reason()),
    }
}

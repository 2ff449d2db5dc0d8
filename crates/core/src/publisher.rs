//! Posting frames to connections, through API Gateway's `@connections` API.
//!
//! What happens to one receiver is an outcome and not an error, so that it cannot spoil the others. A connection that
//! is gone is forgotten with all its rows; a post that is throttled or fails is tried again while there is time, and
//! counted and logged when it was in vain. A post that timed out may have arrived all the same, so a frame can reach
//! a client twice; it is never dropped in silence.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::future::ready;
use std::pin::pin;
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
use crate::event::EventStore;
use crate::metrics::Metrics;
use crate::publication::{Audience, Fanout, Publication, SEGMENTS};
use crate::store::{ConnectionStore, now_ms};
use crate::topic::Subscriber;

/// How long one attempt of a post may take. Posts have been seen to hang while a client does not read.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);

/// How often an attempt may time out: a receiver that hangs once more is given up, and the others need the time.
const MAX_TIMEOUTS: u32 = 2;

/// Rows are written before the socket opens, and `$connect` has at most 29 s to return (Amazon API Gateway quotas,
/// WebSocket APIs). Until then 410 may mean "not yet".
const SETTLING_MS: i64 = 30_000;

/// How long a post to a connection that may still be opening is repeated.
const SETTLING_PATIENCE: Duration = Duration::from_secs(1);

/// What became of one receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Delivery {
    /// The gateway took the frame. That is all anybody can know: the peer may be gone without a word.
    Delivered,
    /// The connection is gone (410) and its rows are deleted.
    Stale,
    /// 410 from a connection so young that it may still be opening. Its rows stay.
    Pending,
    /// The gateway refused the frame for good, or hung.
    Failed,
    /// Time ran out first.
    Unserved,
}

impl Fanout {
    fn count(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::Delivered => self.delivered += 1,
            Delivery::Stale => self.stale += 1,
            Delivery::Pending => self.pending += 1,
            Delivery::Failed => self.failed += 1,
            Delivery::Unserved => {}
        }
    }
}

/// How far a publish has got. Posts end in any order, but a continuation can only begin behind a key, so what counts
/// is the run of receivers, from the first on, that are all settled.
#[derive(Debug, Default)]
struct Progress {
    settled: usize,
    last: Option<ConnectionId>,
    ahead: BTreeMap<usize, ConnectionId>,
}

impl Progress {
    /// Settles the receiver with this number, counted from 0.
    fn settle(&mut self, number: usize, id: ConnectionId) {
        self.ahead.insert(number, id);
        while let Some(id) = self.ahead.remove(&self.settled) {
            self.last = Some(id);
            self.settled += 1;
        }
    }
}

/// Posts frames to connections. One for the life of an execution environment.
#[derive(Debug)]
pub struct Publisher {
    sdk: SdkConfig,
    endpoint: Option<String>,
    gateway: OnceLock<Client>,
    store: ConnectionStore,
    events: EventStore,
    metrics: Metrics,
    concurrency: usize,
}

/// How a single post ended, before anybody drew a conclusion.
enum Post {
    Taken,
    Gone,
    Failed,
    OutOfTime,
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
    /// A publisher that forgets stale connections in `store` and leaves continuations in `events`. `memory_mb` is the
    /// function's: below 512 MB its share of a CPU is what limits posting, and more simultaneous posts only add
    /// handshakes.
    #[must_use]
    pub fn new(
        sdk: SdkConfig,
        config: &Config,
        store: ConnectionStore,
        events: EventStore,
        metrics: Metrics,
        memory_mb: i32,
    ) -> Self {
        Self {
            sdk,
            endpoint: config.publish_endpoint.clone(),
            gateway: OnceLock::new(),
            store,
            events,
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

    /// Posts a publication to its receivers, a bounded number at a time. Whom it cannot reach before the deadline it
    /// leaves to the function `publish`, through a continuation in the events table that is named after `id`. Every
    /// publish settles at least one receiver, so that continuations come to an end.
    ///
    /// # Errors
    ///
    /// When `receivers` fails, whoever it named before having been served; and when there was no time to begin or the
    /// rest could not be put down.
    pub async fn publish(
        &self,
        publication: &Publication,
        receivers: impl Stream<Item = Result<Subscriber, Error>>,
        id: &str,
        deadline: Deadline,
    ) -> Result<Fanout, Error> {
        let topic = publication.topic();
        let concurrency = match publication.audience {
            Audience::Topic(_) => self.concurrency,
            Audience::Everybody { .. } => self.concurrency.div_ceil(SEGMENTS.into()),
        };
        let mut fanout = Fanout::default();
        let mut progress = Progress::default();
        let mut unserved = BTreeMap::new();
        let unread = Cell::new(false);

        let in_time = |_: &Subscriber| {
            unread.set(deadline.left().is_zero());
            ready(Ok(!unread.get()))
        };
        let mut number = 0..;
        let posts = receivers.try_take_while(in_time).map_ok(|receiver| {
            let number = number.next().unwrap_or(usize::MAX);
            async move {
                let delivery = self.deliver(publication, &receiver, deadline).await;
                Ok((number, receiver.connection_id, delivery))
            }
        });
        let mut posts = pin!(posts.try_buffer_unordered(concurrency));
        while let Some((number, connection_id, delivery)) = posts.try_next().await? {
            fanout.count(delivery);
            match delivery {
                Delivery::Unserved => drop(unserved.insert(number, connection_id)),
                _ => progress.settle(number, connection_id),
            }
        }

        if progress.settled == 0
            && let Some((number, connection_id)) = unserved.pop_first()
        {
            warn!(connection.id = %connection_id, topic.name = topic, "a post was given up after all the time there was");
            fanout.failed += 1;
            progress.settle(number, connection_id);
        }
        if unread.get() || !unserved.is_empty() {
            let Some(last) = progress.last else { return Err(Error::OutOfTime { topic: topic.to_owned() }) };
            info!(topic.name = topic, settled = progress.settled, "out of time: a continuation will go on");
            self.events.put_continuation(&publication.clone().after(last), id).await?;
            fanout.continued = true;
        }
        self.metrics.published(&fanout);
        if fanout.failed > 0 {
            warn!(
                topic.name = topic,
                delivered = fanout.delivered,
                stale = fanout.stale,
                pending = fanout.pending,
                failed = fanout.failed,
                "not every subscriber was reached"
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
        match self.post(id, frame, deadline.of_reply(), Duration::ZERO).await {
            Post::Taken => Ok(()),
            Post::Gone => {
                info!(connection.id = %id, "the sender has gone before its reply");
                Ok(())
            }
            Post::Failed | Post::OutOfTime => Err(Error::Reply { connection_id: id.clone() }),
        }
    }

    async fn deliver(&self, publication: &Publication, to: &Subscriber, deadline: Deadline) -> Delivery {
        let id = &to.connection_id;
        let settling = now_ms() - to.connected_at_ms < SETTLING_MS;
        let patience = if settling { SETTLING_PATIENCE } else { Duration::ZERO };
        match self.post(id, publication.frame(to), deadline, patience).await {
            Post::Taken => Delivery::Delivered,
            Post::Failed => Delivery::Failed,
            Post::OutOfTime => Delivery::Unserved,
            Post::Gone if settling => {
                warn!(connection.id = %id, topic.name = publication.topic(), "gone, or not open yet: not forgotten");
                Delivery::Pending
            }
            Post::Gone => {
                let topic = match &publication.audience {
                    Audience::Topic(topic) => Some(topic),
                    Audience::Everybody { .. } => None,
                };
                match self.store.remove(id, topic, deadline).await {
                    Ok(topics) => info!(connection.id = %id, topics, "a stale connection was forgotten"),
                    Err(error) => warn!(connection.id = %id, %error, "a stale connection could not be forgotten"),
                }
                Delivery::Stale
            }
        }
    }

    /// Posts until the gateway takes the frame, refuses it for good, hangs once too often, says 410 for longer than
    /// `patience`, or time runs out.
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
                Attempt::TimedOut if timeouts + 1 < MAX_TIMEOUTS || deadline.left().is_zero() => {
                    timeouts += 1;
                    "timed out".to_owned()
                }
                Attempt::Refused(reason) => reason,
                Attempt::TimedOut => {
                    warn!(connection.id = %id, "a post was given up: it hangs");
                    return Post::Failed;
                }
                Attempt::Rejected(reason) => {
                    warn!(connection.id = %id, reason, "a post was given up: it is refused");
                    return Post::Failed;
                }
            };
            if !backoff.wait(deadline).await {
                info!(connection.id = %id, reason, "a post did not succeed in time");
                return Post::OutOfTime;
            }
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

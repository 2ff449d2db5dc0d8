//! The parts of a function that live as long as its execution environment.

use std::time::Duration;

use aws_config::{BehaviorVersion, SdkConfig};
use aws_sdk_dynamodb::config::Builder;
use aws_sdk_dynamodb::config::timeout::TimeoutConfig;
use aws_smithy_http_client::tls::{self, rustls_provider::CryptoMode};

use crate::Error;
use crate::config::Config;
use crate::connection::ConnectionId;
use crate::event::EventStore;
use crate::gateway::Gateways;
use crate::history::History;
use crate::limits::FrameRate;
use crate::metrics::Metrics;
use crate::pace::Pace;
use crate::presence::Presence;
use crate::publisher::Publisher;
use crate::store::{ConnectionStore, Freshness};

/// The longest that one attempt of a DynamoDB call may take. DynamoDB answers in single-digit milliseconds; a call that
/// takes longer has most likely met a connection that died while the execution environment was frozen.
const DYNAMODB_ATTEMPT: Duration = Duration::from_millis(1500);

/// The longest that a DynamoDB call may take with all attempts of the SDK, which makes 3.
const DYNAMODB_OPERATION: Duration = Duration::from_secs(5);

/// Idle connections are closed after this time, so that few of them are dead when an environment thaws.
const POOL_IDLE: Duration = Duration::from_secs(20);

/// The longest that warming up may take. The events that come after it would wait as well.
const WARM_UP: Duration = Duration::from_secs(1);

/// Everything that the handlers of a function use.
#[derive(Debug)]
pub struct Backend {
    /// The configuration.
    pub config: Config,
    /// The tables of connections and subscriptions.
    pub store: ConnectionStore,
    /// The messages that are kept.
    pub history: History,
    /// Who is in a topic, and what was told of that.
    pub presence: Presence,
    /// The ways back to the clients.
    pub gateways: Gateways,
    /// How fast each connection sends.
    pub frame_rate: FrameRate,
    /// The lease that everything that posts a lot shares.
    pub pace: Pace,
    /// The table of events.
    pub events: EventStore,
    /// Fan-out.
    pub publisher: Publisher,
    /// Numbers for CloudWatch.
    pub metrics: Metrics,
    /// The region and the credentials, for a function that calls another service.
    pub sdk: SdkConfig,
}

impl Backend {
    /// Reads the configuration and builds the SDK clients, all of them on one HTTP client.
    ///
    /// # Errors
    ///
    /// [`Error::Config`].
    pub async fn from_env() -> Result<Self, Error> {
        let config = Config::from_env()?;
        let http = aws_smithy_http_client::Builder::new()
            .pool_idle_timeout(POOL_IDLE)
            .tls_provider(tls::Provider::Rustls(CryptoMode::Ring))
            .build_https();
        let sdk = aws_config::defaults(BehaviorVersion::latest()).http_client(http).load().await;
        let lambda = lambda_runtime::Config::from_env();
        Ok(Self::new(config, &sdk, lambda.function_name, lambda.memory))
    }

    /// Opens the HTTP connections that the first event needs, so that its handler makes no TLS handshake. A small function has a
    /// fraction of a CPU, and handshakes take most of its first event; during the initialisation Lambda gives it a whole one.
    ///
    /// It reads a row that does not exist, twice at the same time, and asks the gateway's health check. That costs two read units. Two
    /// connections to DynamoDB are needed because handlers make two calls at once, and because the HTTP client opens another
    /// one when the last answer has only just been read. If something fails, the first event tells. Without TLS nothing is to be
    /// gained, so the local stack sees none of these calls.
    pub async fn warm_up(&self) {
        if self.config.publish_endpoint.as_ref().is_some_and(|endpoint| !endpoint.has_tls()) {
            return;
        }
        let nobody = ConnectionId::new("warm-up".to_owned());
        let gateway = async {
            if let Ok(gateway) = self.gateways.configured() {
                gateway.warm_up().await;
            }
        };
        let read = || self.store.get(&nobody, Freshness::Latest);
        let all = async { tokio::join!(read(), read(), gateway) };
        let _ = tokio::time::timeout(WARM_UP, all).await;
    }

    /// Builds the same from parts. `memory_mb` is the function's memory, which decides how many posts run at once.
    #[must_use]
    pub fn new(config: Config, sdk: &SdkConfig, function_name: String, memory_mb: i32) -> Self {
        let timeouts = TimeoutConfig::builder()
            .operation_attempt_timeout(DYNAMODB_ATTEMPT)
            .operation_timeout(DYNAMODB_OPERATION)
            .build();
        let dynamodb = Builder::from(sdk).timeout_config(timeouts).build();
        let dynamodb = aws_sdk_dynamodb::Client::from_conf(dynamodb);
        let store = ConnectionStore::new(dynamodb.clone(), &config);
        let history = History::new(dynamodb.clone(), &config);
        let presence = Presence::new(dynamodb.clone(), config.messages_table.clone(), store.clone());
        let pace = Pace::new(&dynamodb, &config);
        let events = EventStore::new(dynamodb, config.events_table.clone());
        let metrics = Metrics::new(&config, function_name);
        let gateways = Gateways::new(sdk.clone(), config.publish_endpoint.clone(), memory_mb);
        let frame_rate = FrameRate::new(config.max_frames_per_second);
        let publisher = Publisher::new(store.clone(), events.clone(), pace.clone(), metrics.clone());
        let sdk = sdk.clone();
        Self { config, store, history, presence, gateways, frame_rate, pace, events, publisher, metrics, sdk }
    }
}

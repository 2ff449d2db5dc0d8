//! AWS as a script, for unit tests: a function from a request to what comes back, and when. The SDK around it is the real
//! one, and a paused clock makes its time-outs and retries instant.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_dynamodb::config::{Credentials, SharedCredentialsProvider};
use aws_smithy_runtime_api::client::http::{HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_types::body::SdkBody;
use serde_json::{Value, json};

use crate::backend::Backend;
use crate::config::Config;

/// One call as it was made.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Call {
    /// DynamoDB's operation, or the HTTP method of a call of `@connections`.
    pub(crate) operation: String,
    /// The URL without scheme.
    pub(crate) url: String,
    /// The connection of a call of `@connections`.
    pub(crate) connection_id: String,
    /// DynamoDB's JSON, or the frame.
    pub(crate) body: Value,
}

/// What comes back.
#[derive(Debug)]
pub(crate) enum Answer {
    /// A response, after a while.
    After(Duration, u16, Value),
    /// Nothing, ever.
    Hang,
}

/// A response at once.
pub(crate) fn answer(status: u16, body: Value) -> Answer {
    Answer::After(Duration::ZERO, status, body)
}

/// DynamoDB's error of that name.
pub(crate) fn failure(name: &str) -> Answer {
    answer(400, json!({"__type": format!("com.amazonaws.dynamodb.v20120810#{name}")}))
}

type Script = dyn Fn(&Call) -> Answer + Send + Sync;

#[derive(Clone)]
pub(crate) struct Aws {
    calls: Arc<Mutex<Vec<Call>>>,
    script: Arc<Script>,
    /// Whether posts are recorded. A million of them take much memory.
    records_posts: bool,
}

impl std::fmt::Debug for Aws {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Aws")
    }
}

impl Aws {
    /// A backend that talks to this script, and the record of its calls.
    pub(crate) fn backend(script: impl Fn(&Call) -> Answer + Send + Sync + 'static) -> (Self, Backend) {
        Self::configured(Config::for_tests(), script)
    }

    /// The same with a configuration of the test's own.
    pub(crate) fn configured(
        config: Config,
        script: impl Fn(&Call) -> Answer + Send + Sync + 'static,
    ) -> (Self, Backend) {
        let aws = Self { calls: Arc::default(), script: Arc::new(script), records_posts: true };
        let backend = Backend::new(config, &aws.sdk(), "test".to_owned(), 256);
        (aws, backend)
    }

    /// A script for many posts, which are not recorded.
    pub(crate) fn busy(script: impl Fn(&Call) -> Answer + Send + Sync + 'static) -> Self {
        Self { calls: Arc::default(), script: Arc::new(script), records_posts: false }
    }

    /// The SDK's configuration, whose every call goes to this script.
    pub(crate) fn sdk(&self) -> SdkConfig {
        let connector = SharedHttpConnector::new(self.clone());
        let credentials = Credentials::new("test", "test", None, None, "test");
        SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .http_client(http_client_fn(move |_, _| connector.clone()))
            .sleep_impl(aws_sdk_dynamodb::config::SharedAsyncSleep::new(Sleep))
            .retry_config(aws_sdk_dynamodb::config::retry::RetryConfig::standard())
            .build()
    }

    /// The calls so far, in their order.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    /// How many calls of `operation` there were.
    pub(crate) fn count(&self, operation: &str) -> usize {
        self.calls().iter().filter(|call| call.operation == operation).count()
    }
}

#[derive(Debug)]
struct Sleep;

impl aws_sdk_dynamodb::config::AsyncSleep for Sleep {
    fn sleep(&self, duration: Duration) -> aws_sdk_dynamodb::config::Sleep {
        aws_sdk_dynamodb::config::Sleep::new(tokio::time::sleep(duration))
    }
}

impl HttpConnector for Aws {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let target = request.headers().get("x-amz-target").map(|target| target.rsplit('.').next().unwrap().to_owned());
        let id = request.uri().rsplit("connections/").next().unwrap_or_default().replace("%3D", "=");
        let body = request.body().bytes().unwrap_or_default();
        let call = Call {
            url: request.uri().split("://").nth(1).unwrap_or_default().to_owned(),
            connection_id: if target.is_none() { id } else { String::new() },
            operation: target.unwrap_or_else(|| request.method().to_owned()),
            body: serde_json::from_slice(body).unwrap_or_default(),
        };
        if self.records_posts || call.operation != "POST" {
            self.calls.lock().unwrap().push(call.clone());
        }
        let answer = (self.script)(&call);
        HttpConnectorFuture::new(async move {
            match answer {
                Answer::After(delay, status, body) => {
                    tokio::time::sleep(delay).await;
                    Ok(HttpResponse::new(status.try_into().unwrap(), SdkBody::from(body.to_string())))
                }
                Answer::Hang => std::future::pending().await,
            }
        })
    }
}

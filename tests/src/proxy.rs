//! A proxy in front of DynamoDB and `@connections`: it counts calls, and answers some of them itself.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::Response;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::sync::watch;

use crate::stack::{PATIENCE, Stack};

type Bytes = axum::body::Bytes;

/// One call as it arrived.
#[derive(Debug, Clone)]
pub struct Call {
    /// DynamoDB's operation, or the HTTP method of a management call.
    pub operation: String,
    /// DynamoDB's JSON; null for a management call.
    pub body: Value,
    /// The path as sent.
    pub path: String,
}

/// Capacity units of DynamoDB.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Units {
    /// Read units: half of one for an eventually consistent read of 4 KB.
    pub read: f64,
    /// Write units.
    pub write: f64,
}

/// An answer that replaces AWS's.
pub type Answer = BoxFuture<'static, Response<Body>>;

/// Answers a call instead of AWS, or returns `None` to pass it on.
pub type Rule = dyn Fn(&Call) -> Option<Answer> + Send + Sync;

/// A running proxy.
pub struct Proxy {
    /// Its URL.
    pub address: String,
    shared: Arc<Shared>,
}

struct Shared {
    calls: watch::Sender<Vec<Call>>,
    /// The length of all bodies, there and back.
    bytes: AtomicUsize,
    /// The capacity units that calls have consumed, once somebody asks for them.
    units: Mutex<Option<Units>>,
    /// How long an operation waits before it is passed on.
    delays: Mutex<HashMap<String, Duration>>,
    rule: Box<Rule>,
    /// DynamoDB and the gateway, once the stack runs.
    upstream: OnceLock<(String, String)>,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy").finish_non_exhaustive()
    }
}

impl Proxy {
    /// A stack whose functions reach AWS only through this proxy.
    pub async fn in_front(
        arguments: &[&str],
        rule: impl Fn(&Call) -> Option<Answer> + Send + Sync + 'static,
    ) -> (Self, Stack) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let client = Client::builder(TokioExecutor::new()).build_http();
        let shared = Shared {
            calls: watch::Sender::default(),
            bytes: AtomicUsize::default(),
            units: Mutex::default(),
            delays: Mutex::default(),
            rule: Box::new(rule),
            upstream: OnceLock::new(),
            client,
        };
        let shared = Arc::new(shared);
        let router = axum::Router::new().fallback(serve).with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });

        let dynamodb = format!("AWS_ENDPOINT_URL_DYNAMODB={address}");
        let gateway = format!("AWS_ENDPOINT_URL_APIGATEWAYMANAGEMENTAPI={address}/dev");
        let stack = Stack::with(&[&["--env", &dynamodb, "--env", &gateway][..], arguments].concat()).await;
        shared.upstream.set((stack.dynamodb.clone(), stack.gateway.clone())).unwrap();
        (Self { address, shared }, stack)
    }

    /// The calls since the last time, as operations in order of arrival.
    pub fn take(&self) -> Vec<String> {
        self.take_calls().into_iter().map(|call| call.operation).collect()
    }

    /// The calls since the last time, in order of arrival.
    pub fn take_calls(&self) -> Vec<Call> {
        self.shared.calls.send_replace(Vec::new())
    }

    /// How many bytes the bodies of calls and of AWS's answers had since the last time.
    pub fn take_bytes(&self) -> usize {
        self.shared.bytes.swap(0, Ordering::Relaxed)
    }

    /// The capacity units that calls have consumed since the last time, as DynamoDB counts them. The first call begins to count.
    pub fn take_units(&self) -> Units {
        self.shared.units.lock().unwrap().replace(Units::default()).unwrap_or_default()
    }

    /// Those of writes alone.
    pub fn take_write_units(&self) -> f64 {
        self.take_units().write
    }

    /// Makes an operation slow from now on.
    pub fn delay(&self, operation: &str, delay: Duration) {
        self.shared.delays.lock().unwrap().insert(operation.to_owned(), delay);
    }

    /// Waits until an operation has been called since the last `take`.
    pub async fn called(&self, operation: &str) {
        let mut calls = self.shared.calls.subscribe();
        let called = calls.wait_for(|calls| calls.iter().any(|call| call.operation == operation));
        tokio::time::timeout(PATIENCE, called).await.expect("it was not called").unwrap();
    }
}

async fn serve(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    let (mut parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let target = parts.headers.get("x-amz-target").map(|target| target.to_str().unwrap().to_owned());
    let call = match &target {
        Some(target) => Call {
            operation: target.rsplit('.').next().unwrap().to_owned(),
            body: serde_json::from_slice(&body).unwrap(),
            path: parts.uri.path().to_owned(),
        },
        None => Call { operation: parts.method.to_string(), body: Value::Null, path: parts.uri.path().to_owned() },
    };
    shared.calls.send_modify(|calls| calls.push(call.clone()));
    let delay = shared.delays.lock().unwrap().get(&call.operation).copied();
    tokio::time::sleep(delay.unwrap_or_default()).await;
    if let Some(answer) = (shared.rule)(&call) {
        return answer.await;
    }
    let (dynamodb, gateway) = shared.upstream.get().expect("the stack runs");
    let upstream = if target.is_some() { dynamodb } else { gateway };
    parts.uri = format!("http://{upstream}{}", parts.uri).parse().unwrap();
    shared.bytes.fetch_add(body.len(), Ordering::Relaxed);
    let is_write = ["BatchWriteItem", "UpdateItem", "PutItem", "DeleteItem", "TransactWriteItems"]
        .contains(&call.operation.as_str());
    let is_counted = target.is_some() && shared.units.lock().unwrap().is_some();
    let body = match is_counted {
        true => {
            let mut call = call.body;
            call["ReturnConsumedCapacity"] = "TOTAL".into();
            Bytes::from(call.to_string())
        }
        false => body,
    };
    parts.headers.insert("content-length", body.len().into());
    let Ok(answer) = shared.client.request(axum::http::Request::from_parts(parts, Full::new(body))).await else {
        // The stack has ended, and its functions are about to.
        return Response::builder().status(502).body(Body::empty()).unwrap();
    };
    let length = answer.headers().get("content-length").and_then(|length| length.to_str().ok()?.parse().ok());
    shared.bytes.fetch_add(length.unwrap_or(0), Ordering::Relaxed);
    if !is_counted {
        return answer.map(Body::new);
    }
    let (parts, body) = answer.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let consumed = serde_json::from_slice::<Value>(&body).unwrap_or_default()["ConsumedCapacity"].take();
    let tables = if consumed.is_object() { vec![consumed] } else { consumed.as_array().cloned().unwrap_or_default() };
    let units: f64 = tables.iter().map(|table| table["CapacityUnits"].as_f64().unwrap()).sum();
    let mut counted = shared.units.lock().unwrap();
    let counted = counted.get_or_insert_default();
    *if is_write { &mut counted.write } else { &mut counted.read } += units;
    Response::from_parts(parts, Body::from(body))
}

/// An answer with a status, a body, and the header `x-amzn-errortype` unless it is empty.
pub fn answer(status: u16, error_type: &str, body: &str) -> Answer {
    let mut response = Response::builder().status(status).header("content-type", "application/json");
    if !error_type.is_empty() {
        response = response.header("x-amzn-errortype", error_type);
    }
    let response = response.body(Body::from(body.to_owned())).unwrap();
    Box::pin(async { response })
}

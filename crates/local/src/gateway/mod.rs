//! API Gateway: the WebSocket side and the management API.
//!
//! One listener serves both, as one host does on AWS: `ws://{host}/{stage}` for clients and
//! `http://{host}/{stage}/@connections/{connectionId}` for callers; custom domains are other paths of it. It implements
//! "Working with WebSocket APIs" with Lambda proxy integrations, one-way and two-way routes, request models, Lambda
//! authorizers, signed handshakes and API keys. It does not speak TLS.

mod api_key;
mod authorizer;
mod connection;
mod deflate;
mod event;
mod handshake;
mod id;
mod integration;
mod json;
pub mod knobs;
mod management;
mod message;
mod model;
mod order;
mod paths;
mod refusal;
mod route;
mod signature;
mod socket;
mod throttle;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::io::InspectReader;

pub use self::api_key::{ApiKey, ApiKeys, KeySource};
pub use self::authorizer::Authorizer;
use self::connection::Registry;
use self::event::Source;
use self::handshake::Head;
use self::id::Id;
pub use self::integration::Integration;
use self::integration::{IntegrationError, ProxyResponse};
use self::knobs::NullStyle;
pub use self::knobs::Settings;
pub use self::model::{Model, RequestModels};
pub use self::paths::Paths;
use self::route::SelectionExpression;
pub(crate) use self::signature::access_key_id;
use self::throttle::Throttle;
use crate::access::{self, Access};
use crate::faults::Faults;
use crate::iam::Callers;
use crate::lambda::Credentials;
use crate::terminal;

/// How long a shutdown waits for connections to close and for invocations to end. Ours.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// How long not to accept after accepting failed; out of file descriptors, most likely. Ours.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What a WebSocket API is made of.
pub struct Api {
    /// `requestContext.apiId` in events; ten lower-case letters and digits on AWS.
    pub api_id: String,
    /// `arn:aws:execute-api:{region}:{account}:{api-id}`, what policies name.
    pub arn: String,
    /// The one stage.
    pub stage: String,
    /// Where clients and callers reach it.
    pub paths: Paths,
    /// Such as `$request.body.action`.
    pub route_selection_expression: String,
    /// What to invoke, by route key; `$connect`, `$disconnect` and `$default` are optional.
    pub routes: HashMap<String, Arc<dyn Integration>>,
    /// The keys of the routes that have a route response: the body of a result is sent to the sender of the message.
    /// `$connect` and `$disconnect` have nobody to send it to.
    pub two_way: HashSet<String>,
    /// By the keys of the routes that have a `ModelSelectionExpression`.
    pub request_models: HashMap<String, RequestModels>,
    /// Those that calls of the management API and handshakes may be signed with, when signatures are verified.
    pub credentials: Vec<Credentials>,
    /// What functions may do with the management API, and whether they may connect.
    pub callers: Callers,
    /// Runs before `$connect`, even if there is no such route.
    pub authorizer: Option<Authorizer>,
    /// `stageVariables` of events, which have none when there are none.
    pub stage_variables: BTreeMap<String, String>,
    /// Whether handshakes must be signed, and allowed by the role of whoever signed them.
    pub is_iam_authorized: bool,
    /// Of which a client must have one, if there are any; an empty list refuses everybody.
    pub api_keys: Option<ApiKeys>,
}

impl Api {
    /// What a policy must allow for a client to connect.
    fn connect_arn(&self) -> String {
        format!("{}/{}/$connect", self.arn, self.stage)
    }
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api")
            .field("api_id", &self.api_id)
            .field("arn", &self.arn)
            .field("stage", &self.stage)
            .field("paths", &self.paths)
            .field("route_selection_expression", &self.route_selection_expression)
            .field("routes", &self.routes.keys())
            .field("two_way", &self.two_way)
            .field("request_models", &self.request_models)
            .field("authorizer", &self.authorizer)
            .field("stage_variables", &self.stage_variables)
            .field("is_iam_authorized", &self.is_iam_authorized)
            .field("api_keys", &self.api_keys)
            .finish()
    }
}

/// A local API Gateway with one WebSocket API.
#[derive(Debug)]
pub struct Gateway {
    api: Api,
    settings: Settings,
    access: Access,
    faults: Arc<Faults>,
    expression: SelectionExpression,
    connections: Registry,
    /// Handshakes.
    handshakes: Throttle,
    /// Messages and calls of the management API.
    requests: Throttle,
    /// Whether the gateway shuts down. Every task holds a receiver as long as it runs, so that a shutdown can wait for
    /// the last one to be dropped.
    stopping: watch::Sender<bool>,
}

impl Gateway {
    /// A gateway without connections.
    #[must_use]
    pub fn new(api: Api, settings: Settings, access: access::Settings, faults: Arc<Faults>) -> Self {
        let settings = Settings { limits: settings.limits.by_clock(), ..settings };
        let limits = &settings.limits;
        Self {
            handshakes: Throttle::new(limits.connection_rate, limits.connection_rate),
            requests: Throttle::new(limits.request_rate, limits.request_burst),
            access: Access::new("gateway", access, settings.knobs.domain_name.clone()),
            expression: SelectionExpression::parse(&api.route_selection_expression),
            api,
            settings,
            faults,
            connections: Registry::default(),
            stopping: watch::Sender::new(false),
        }
    }

    /// Serves `listener` until `shutdown` resolves. Then closes every connection with 1012, runs their `$disconnect`s,
    /// and returns when all invocations have ended, or after 2 s.
    ///
    /// # Errors
    ///
    /// When the listener has no local address.
    pub async fn serve(self, listener: TcpListener, shutdown: impl Future<Output = ()>) -> io::Result<()> {
        let gateway = Arc::new(self);
        let port = listener.local_addr()?.port();
        let mut shutdown = pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                () = &mut shutdown => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((tcp, peer)) => {
                    gateway.spawn(serve_tcp(gateway.clone(), tcp, Endpoints { peer, port }));
                }
                Err(error) => {
                    log(format_args!("cannot accept: {error}"));
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        gateway.stopping.send_replace(true);
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, gateway.stopping.closed()).await.is_err() {
            log(format_args!("stopped without waiting for the last invocations"));
        }
        Ok(())
    }

    /// Runs a task that a shutdown waits for. Tasks report their failures themselves; a panic is printed by its hook.
    fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        let running = self.stopping.subscribe();
        tokio::spawn(async move {
            let result = task.await;
            drop(running);
            result
        })
    }

    /// Invokes the function of a route. `None` when there is no such route. A failure has been logged.
    async fn invoke(
        &self,
        route_key: &str,
        request_id: &Id,
        event: &impl Serialize,
    ) -> Option<Result<ProxyResponse, IntegrationError>> {
        let integration = self.api.routes.get(route_key)?;
        let response = self.call(integration.as_ref(), event).await;
        let missing_status_code = self.settings.knobs.missing_status_code;
        let result = response.and_then(|response| Ok(ProxyResponse::parse(&response, missing_status_code)?));
        if let Err(error) = &result {
            log(format_args!("{route_key} failed, request {request_id}: {error}"));
        }
        Some(result)
    }

    /// The result of an integration, whatever it is.
    async fn call(&self, integration: &dyn Integration, event: &impl Serialize) -> Result<Bytes, IntegrationError> {
        // An invocation that takes too long goes on; only its result is not waited for any more.
        let invocation = integration.invoke(self.encode(event));
        match tokio::time::timeout(self.settings.limits.integration_timeout, invocation).await {
            Ok(response) => Ok(response?),
            Err(_) => Err(IntegrationError::TimedOut),
        }
    }

    fn encode(&self, event: &impl Serialize) -> Bytes {
        const ENCODABLE: &str = "events have string keys and no fallible values";
        match self.settings.knobs.null_style {
            NullStyle::Omit => serde_json::to_vec(event).expect(ENCODABLE).into(),
            NullStyle::Explicit => {
                let mut event = serde_json::to_value(event).expect(ENCODABLE);
                event::add_nulls(&mut event);
                event.to_string().into()
            }
        }
    }

    /// Resolves when the gateway shuts down.
    async fn stopped(&self) {
        // An error would mean that the gateway is gone, and it is borrowed here.
        let _ = self.stopping.subscribe().wait_for(|stopping| *stopping).await;
    }

    fn source(&self) -> Source<'_> {
        Source { api_id: &self.api.api_id, stage: &self.api.stage, stage_variables: &self.api.stage_variables }
    }
}

/// The two ends of a TCP connection, as far as events tell of them.
#[derive(Debug, Clone, Copy)]
struct Endpoints {
    peer: SocketAddr,
    /// The one that we listen on.
    port: u16,
}

/// Serves the HTTP requests of one TCP connection, up to an upgrade.
async fn serve_tcp(gateway: Arc<Gateway>, tcp: TcpStream, endpoints: Endpoints) {
    // Frames are small and answers to something; a failure costs milliseconds.
    let _ = tcp.set_nodelay(true);
    let head = Head::default();
    let service = service_fn(|request| {
        let (gateway, head) = (gateway.clone(), head.clone());
        async move { Ok::<_, Infallible>(respond(&gateway, request, endpoints, &head).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new());
    let tcp = TokioIo::new(InspectReader::new(tcp, head.recorder()));
    let mut serving = pin!(http.serve_connection(tcp, service).with_upgrades());
    let served = tokio::select! {
        served = &mut serving => served,
        () = gateway.stopped() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    // A client that goes away is its own business; what else goes wrong here is not HTTP.
    if let Err(error) = served
        && error.is_parse()
    {
        log(format_args!("refused a request from {}: {error}", endpoints.peer));
    }
}

async fn respond(
    gateway: &Arc<Gateway>,
    request: Request<Incoming>,
    endpoints: Endpoints,
    head: &Head,
) -> Response<Full<Bytes>> {
    if let Err(stranger) = gateway.access.check(request.headers(), request.uri()) {
        return refusal::of_stranger(&stranger);
    }
    match management::path(request.uri().path()) {
        Some(path) => management::respond(gateway, request, &path).await,
        None => handshake::respond(gateway, request, endpoints, head).await,
    }
}

/// A line of the gateway. Never a body or a query string.
fn log(text: fmt::Arguments<'_>) {
    terminal::line("gateway", &text.to_string());
}

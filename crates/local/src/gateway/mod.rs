//! A local API Gateway: one WebSocket API and its management API.
//!
//! One listener serves both, as one host does on AWS. Clients use `ws://{host}/{stage}`, and callers use
//! `http://{host}/{stage}/@connections/{connectionId}`. Custom domains are further paths of the same listener.
//!
//! The gateway implements "Working with WebSocket APIs" with Lambda proxy integrations, one-way and two-way routes,
//! request models, Lambda authorizers, signed handshakes and API keys. It does not speak TLS.

mod api_key;
mod authorizer;
mod connection;
mod definition;
mod deflate;
mod event;
mod handshake;
mod id;
mod integration;
mod json;
mod management;
mod message;
mod model;
mod order;
mod paths;
mod refusal;
mod route;
pub mod settings;
mod socket;
mod throttle;

use std::collections::HashMap;
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
use self::connection::Registry;
pub use self::definition::{Authorizer, Definition};
use self::handshake::Head;
use self::id::Id;
pub use self::integration::Integration;
use self::integration::{IntegrationError, ProxyResponse};
pub use self::model::{Model, RequestModels};
pub use self::paths::Paths;
use self::route::SelectionExpression;
use self::settings::NullStyle;
pub use self::settings::Settings;
use self::throttle::Throttle;
use crate::access::{self, Access};
use crate::faults::Faults;
use crate::iam::Callers;
use crate::lambda::Credentials;
use crate::terminal;

/// The time that a shutdown gives connections to close and invocations to end. The value is ours.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// The pause after a failed accept. The usual cause is a lack of file descriptors. The value is ours.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The functions behind an API, and the identities that sign handshakes and calls.
#[derive(Clone, Default)]
pub struct Functions {
    /// The functions by their keys.
    pub integrations: HashMap<String, Arc<dyn Integration>>,
    /// The credentials that can sign handshakes and calls of the management API, when signatures are verified.
    pub credentials: Vec<Credentials>,
    /// The roles of the functions. A role says whether its function may connect and use the management API.
    pub callers: Callers,
}

impl fmt::Debug for Functions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Functions").field("integrations", &self.integrations.keys()).finish_non_exhaustive()
    }
}

/// A local API Gateway with one WebSocket API.
#[derive(Debug)]
pub struct Gateway {
    api: Definition,
    functions: Functions,
    settings: Settings,
    access: Access,
    faults: Arc<Faults>,
    expression: SelectionExpression,
    connections: Registry,
    /// The rate limit of handshakes.
    handshakes: Throttle,
    /// The rate limit of messages and of calls of the management API.
    requests: Throttle,
    /// Whether the gateway is shutting down. Every task holds a receiver while it runs. A shutdown waits until all
    /// receivers are dropped.
    stopping: watch::Sender<bool>,
}

impl Gateway {
    /// Makes a gateway without connections.
    ///
    /// # Panics
    ///
    /// Panics if the API names a function that `functions` does not have.
    #[must_use]
    pub fn new(
        api: Definition,
        functions: Functions,
        settings: Settings,
        access: access::Settings,
        faults: Arc<Faults>,
    ) -> Self {
        let authorizer = api.authorizer.iter().map(|authorizer| &authorizer.function);
        for key in api.routes.values().chain(authorizer) {
            assert!(functions.integrations.contains_key(key), "there is no function {key}");
        }
        let settings = Settings { limits: settings.limits.by_clock(), ..settings };
        let limits = &settings.limits;
        Self {
            handshakes: Throttle::new(limits.connection_rate, limits.connection_rate),
            requests: Throttle::new(limits.request_rate, limits.request_burst),
            access: Access::new("gateway", access, settings.behaviour.domain_name.clone()),
            expression: SelectionExpression::parse(&api.route_selection_expression),
            api,
            functions,
            settings,
            faults,
            connections: Registry::default(),
            stopping: watch::Sender::new(false),
        }
    }

    /// Serves `listener` until `shutdown` resolves. Then it closes every connection with 1012 and runs the
    /// `$disconnect`s. It returns when all invocations have ended, or after 2 s.
    ///
    /// # Errors
    ///
    /// Fails if the listener has no local address.
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
            log(format_args!("the gateway stopped before the last invocations ended"));
        }
        Ok(())
    }

    /// Spawns a task that a shutdown waits for. A task reports its failures itself, and the panic hook prints a panic.
    fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        let running = self.stopping.subscribe();
        tokio::spawn(async move {
            let result = task.await;
            drop(running);
            result
        })
    }

    /// Invokes the function of a route and logs a failure. Returns `None` if there is no such route.
    async fn invoke(
        &self,
        route_key: &str,
        request_id: &Id,
        event: &impl Serialize,
    ) -> Option<Result<ProxyResponse, IntegrationError>> {
        let function = self.api.routes.get(route_key)?;
        let response = self.call(function, event).await;
        let missing_status_code = self.settings.behaviour.missing_status_code;
        let result = response.and_then(|response| Ok(ProxyResponse::parse(&response, missing_status_code)?));
        if let Err(error) = &result {
            log(format_args!("{route_key} failed, request {request_id}: {error}"));
        }
        Some(result)
    }

    /// Invokes the function of this key and returns its unparsed response.
    async fn call(&self, function: &str, event: &impl Serialize) -> Result<Bytes, IntegrationError> {
        // An invocation that takes too long continues. Only the gateway stops waiting for its result.
        let invocation = self.functions.integrations[function].invoke(self.encode(event));
        match tokio::time::timeout(self.settings.limits.integration_timeout, invocation).await {
            Ok(response) => Ok(response?),
            Err(_) => Err(IntegrationError::TimedOut),
        }
    }

    fn encode(&self, event: &impl Serialize) -> Bytes {
        const ENCODABLE: &str = "events have string keys and no fallible values";
        match self.settings.behaviour.null_style {
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
        // `wait_for` fails only when the sender is dropped, and `self` owns the sender.
        let _ = self.stopping.subscribe().wait_for(|stopping| *stopping).await;
    }
}

/// The parts of a TCP connection's two addresses that events show.
#[derive(Debug, Clone, Copy)]
struct Endpoints {
    peer: SocketAddr,
    /// The port of the listener.
    port: u16,
}

/// Serves the HTTP requests of one TCP connection until one of them upgrades it.
async fn serve_tcp(gateway: Arc<Gateway>, tcp: TcpStream, endpoints: Endpoints) {
    // Frames are small, and the other side waits for each. If the call fails, frames are only some milliseconds late.
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
    // Only bytes that are not HTTP are worth a line. All other errors mean that the client has left.
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

/// Prints a line of the gateway. The text must not contain a body or a query string.
fn log(text: fmt::Arguments<'_>) {
    terminal::line("gateway", &text.to_string());
}

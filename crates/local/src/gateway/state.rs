//! The state of the gateway that all its tasks share, and the invocation of functions.

use std::fmt;
use std::sync::{Arc, Once};

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::connection::{Connection, Registry};
use super::definition::Definition;
use super::event;
use super::id::Id;
use super::integration::{Functions, IntegrationError, ProxyResponse};
use super::route::SelectionExpression;
use super::settings::{NullStyle, Settings};
use super::throttle::Throttle;
use crate::access::{self, Access};
use crate::faults::Faults;
use crate::inspector::{Event, Inspector, Story};
use crate::terminal;
use crate::tls::Authority;

/// A local API Gateway with one WebSocket API.
#[derive(Debug)]
pub struct Gateway {
    pub(super) api: Definition,
    pub(super) functions: Functions,
    pub(super) settings: Settings,
    pub(super) access: Access,
    pub(super) faults: Arc<Faults>,
    /// It is told what happens.
    pub(super) inspector: Arc<Inspector>,
    /// It makes the certificates of TLS connections. Without it the gateway speaks no TLS.
    pub(super) authority: Option<Arc<Authority>>,
    pub(super) expression: SelectionExpression,
    pub(super) connections: Registry,
    /// The rate limit of handshakes.
    pub(super) handshakes: Throttle,
    /// The rate limit of messages and of calls of the management API.
    pub(super) requests: Throttle,
    /// Whether the gateway is shutting down. Every task holds a receiver while it runs. A shutdown waits until all
    /// receivers are dropped.
    pub(super) stopping: watch::Sender<bool>,
    /// Whether the terminal has said where `@connections` is.
    wrong_path: Once,
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
            access: Access::new("gateway", access, settings.behaviour.domain_name.clone()).open(),
            expression: SelectionExpression::parse(&api.route_selection_expression),
            api,
            functions,
            settings,
            faults,
            inspector: Arc::default(),
            authority: None,
            connections: Registry::default(),
            stopping: watch::Sender::new(false),
            wrong_path: Once::new(),
        }
    }

    /// Tells this inspector what happens.
    #[must_use]
    pub fn inspected_by(self, inspector: Arc<Inspector>) -> Self {
        Self { inspector, ..self }
    }

    /// Accepts TLS connections with certificates of this authority.
    #[must_use]
    pub fn certified_by(self, authority: Arc<Authority>) -> Self {
        Self { authority: Some(authority), ..self }
    }

    /// Spawns a task that a shutdown waits for. A task reports its failures itself, and the panic hook prints a panic.
    pub(super) fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        let running = self.stopping.subscribe();
        tokio::spawn(async move {
            let result = task.await;
            drop(running);
            result
        })
    }

    /// Invokes the function of a route and logs a failure. Returns `None` if there is no such route.
    pub(super) async fn invoke(
        &self,
        route_key: &str,
        connection: &Connection,
        request_id: &Id,
        event: &impl Serialize,
        story: Option<Story>,
    ) -> Option<Result<ProxyResponse, IntegrationError>> {
        let function = self.api.routes.get(route_key)?;
        let response = self.call(function, connection, event, story).await;
        let missing_status_code = self.settings.behaviour.missing_status_code;
        let result = response.and_then(|response| Ok(ProxyResponse::parse(&response, missing_status_code)?));
        if let Err(error) = &result {
            self.inspector.tell(story, || Event::Trouble { reason: error.to_string() });
            log(format_args!("{route_key} failed, request {request_id}: {error}"));
        }
        Some(result)
    }

    /// Invokes the function of this key and returns its unparsed response.
    pub(super) async fn call(
        &self,
        function: &str,
        connection: &Connection,
        event: &impl Serialize,
        story: Option<Story>,
    ) -> Result<Bytes, IntegrationError> {
        // An invocation that takes too long continues. Only the gateway stops waiting for its result.
        let connection = connection.id.to_string();
        let invocation = self.functions.integrations[function].invoke_for(&connection, self.encode(event), story);
        match tokio::time::timeout(self.settings.limits.integration_timeout, invocation).await {
            Ok(response) => Ok(response?),
            Err(_) => Err(IntegrationError::TimedOut),
        }
    }

    /// Says once where `@connections` is. Programs that were written for other local gateways leave out the stage.
    pub(super) fn tell_of_wrong_path(&self) {
        self.wrong_path.call_once(|| {
            let path = self.api.paths.primary();
            log(format_args!("a call was refused, as API Gateway does: its path must be `{path}/@connections/{{id}}`"));
        });
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
    pub(super) async fn stopped(&self) {
        // `wait_for` fails only when the sender is dropped, and `self` owns the sender.
        let _ = self.stopping.subscribe().wait_for(|stopping| *stopping).await;
    }
}

/// Prints a line of the gateway. The text must not contain a body or a query string.
pub(super) fn log(text: fmt::Arguments<'_>) {
    terminal::line("gateway", &text.to_string());
}

//! The handshake: from an upgrade request, through `$connect`, to a 101 or a refusal.
//!
//! This module implements "Manage connected users and client apps: $connect and $disconnect routes" and "WebSocket
//! subprotocols" ("Set up routes that require a WebSocket subprotocol"). The gateway answers only after `$connect` has
//! ended. The client sees the status and the subprotocol of its response, never another header or the body.
//!
//! The checks run in this order, which is inferred: the request itself, the rate of new connections, the API key in the
//! header, the signature, the authorizer, and the API key that the authorizer returns. `$connect` runs last.
//!
//! AWS does not document the `identity` of a client that signed its handshake. Here it has the same members as that of
//! any other client.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_PROTOCOL, UPGRADE, USER_AGENT,
};
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::api_key::KeySource;
use super::authorizer::{self, ACTION};
use super::connection::Connection;
use super::deflate::Negotiated;
use super::event::ConnectEvent;
use super::head::{Endpoints, Head, event_headers, parse_query, text};
use super::id::Id;
use super::integration::{IntegrationError, ProxyResponse};
use super::refusal::Refusal;
use super::settings::{AbortDuringConnect, Behaviour, Deflate};
use super::socket;
use super::state::{Gateway, log};
use super::upgrade::{self, Upgrade};
use crate::inspector::{Event, Story};
use crate::signature;

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// The decision of `$connect` to accept a client.
#[derive(Debug)]
struct Accepted {
    /// The reason, for the log.
    why: String,
    subprotocol: Option<HeaderValue>,
}

/// Answers a handshake and logs a refusal.
pub(super) async fn respond(
    gateway: &Arc<Gateway>,
    request: Request<Incoming>,
    endpoints: Endpoints,
    head: &Head,
) -> Response<Full<Bytes>> {
    let begin = Instant::now();
    let story = gateway.inspector.begin(|| Event::Handshake {
        path: request.uri().path_and_query().map(ToString::to_string).unwrap_or_default(),
        address: endpoints.peer.to_string(),
    });
    let answers = |status: StatusCode, reason: &str| Event::Answer {
        status: status.as_u16(),
        reason: reason.to_owned(),
        ms: begin.elapsed().into(),
    };
    match connect(gateway, request, endpoints, head, story).await {
        Ok(response) => {
            gateway.inspector.tell(story, || answers(response.status(), ""));
            response
        }
        Err(refusal) => {
            gateway.inspector.tell(story, || answers(refusal.status, refusal.reason));
            log(format_args!("refused a handshake with {}: {}", refusal.status.as_u16(), refusal.reason));
            refusal.response()
        }
    }
}

/// Runs the checks and `$connect`, and opens the connection.
async fn connect(
    gateway: &Arc<Gateway>,
    mut request: Request<Incoming>,
    endpoints: Endpoints,
    head: &Head,
    story: Option<Story>,
) -> Result<Response<Full<Bytes>>, Refusal> {
    let Upgrade { accept, host } = upgrade::check(&gateway.api.paths, gateway.settings.limits.url_limit, &request)?;
    let domain_name = gateway.settings.behaviour.domain_name.clone().unwrap_or(host);
    if !gateway.handshakes.admits() {
        return Err(Refusal::new(StatusCode::TOO_MANY_REQUESTS, "too many new connections"));
    }
    let headers = event_headers(request.headers(), &head.header_names(), endpoints);
    let query = request.uri().query().map(parse_query).filter(|query| !query.is_empty());
    let user_agent = request.headers().get(USER_AGENT).map(text);
    let (mut connection, outbound) =
        Connection::new(endpoints.peer.ip().to_canonical(), user_agent, domain_name, &gateway.settings.behaviour);
    let _pending = gateway.connections.announce(&connection.id);
    let keys_from = |source| gateway.api.api_keys.as_ref().filter(|keys| keys.source == source);
    if let Some(keys) = keys_from(KeySource::Header) {
        let key = request.headers().get(API_KEY).and_then(|key| key.to_str().ok());
        keys.identify(key, &mut connection.identity)?;
    }
    if gateway.api.is_iam_authorized {
        request = check_iam(gateway, request)?;
    }
    let mut usage_identifier_key = None;
    if let Some(authorizer) = &gateway.api.authorizer {
        let allowed = authorizer::authorize(gateway, authorizer, &connection, &headers, query.as_ref(), story).await?;
        connection.authorizer = Some(allowed.context);
        usage_identifier_key = allowed.usage_identifier_key;
    }
    if let Some(keys) = keys_from(KeySource::Authorizer) {
        keys.identify(usage_identifier_key.as_deref(), &mut connection.identity)?;
    }
    let connection = Arc::new(connection);
    let request_id = Id::new();
    gateway
        .inspector
        .tell(story, || Event::Connection { connection: connection.id.to_string(), request: request_id.to_string() });

    // `$connect` runs in a task of its own. If the client leaves, hyper drops this future, and the invocation must end.
    let (decide, decided) = oneshot::channel();
    gateway.spawn({
        let (gateway, connection) = (gateway.clone(), connection.clone());
        async move {
            let event = ConnectEvent::new(&gateway.api, &connection, &request_id, headers, query);
            let behaviour = &gateway.settings.behaviour;
            let decision =
                decision(gateway.invoke("$connect", &connection, &request_id, &event, story).await, behaviour);
            let undelivered = decide.send(decision).err();
            let accepted_too_late = matches!(undelivered, Some(Ok(_)));
            if accepted_too_late && behaviour.abort_during_connect == AbortDuringConnect::Disconnect {
                socket::disconnect_lost(&gateway, &connection).await;
            }
        }
    });
    let panicked = |_| Refusal::new(StatusCode::BAD_GATEWAY, "invoking $connect panicked");
    let Accepted { why, subprotocol } = decided.await.map_err(panicked)??;

    // The connection opens before the 101 is written, because callers may post to a client that has seen it.
    let mailbox = gateway.connections.insert(&connection, outbound);
    log(format_args!("{} connected, {why}", connection.id));
    let negotiated = match gateway.settings.behaviour.deflate {
        Deflate::Never => None,
        Deflate::Negotiate => Negotiated::from_offers(request.headers()),
    };
    let upgrade = hyper::upgrade::on(&mut request);
    gateway.spawn(socket::run(gateway.clone(), connection, upgrade, mailbox, negotiated));

    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
    response.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
    if let Some(subprotocol) = subprotocol {
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, subprotocol);
    }
    if let Some(negotiated) = negotiated {
        response.headers_mut().insert(SEC_WEBSOCKET_EXTENSIONS, negotiated.answer());
    }
    Ok(response)
}

/// Refuses a client if its handshake is not signed or the signer's role does not allow it to connect.
fn check_iam<B>(gateway: &Gateway, request: Request<B>) -> Result<Request<B>, Refusal> {
    let (parts, body) = request.into_parts();
    let how = gateway.settings.behaviour.sigv4();
    // A handshake has no body.
    signature::check(&parts, Sha256::new(), how, &gateway.functions.credentials).map_err(|error| {
        log(format_args!("the signature of a handshake is not valid: {error}"));
        Refusal::new(StatusCode::FORBIDDEN, "the signature is missing or not valid")
    })?;
    let caller = signature::access_key_id(&parts.headers, parts.uri.query());
    let allowed = gateway.functions.callers.check(caller.as_deref(), ACTION, &gateway.api.connect_arn());
    allowed.map_err(|_| Refusal::new(StatusCode::FORBIDDEN, "the signer's role does not allow it to connect"))?;
    Ok(Request::from_parts(parts, body))
}

/// Decides from the result of `$connect` whether to accept the client. Without that route every client is accepted.
fn decision(
    result: Option<Result<ProxyResponse, IntegrationError>>,
    behaviour: &Behaviour,
) -> Result<Accepted, Refusal> {
    let bad_gateway = |why| Refusal::new(StatusCode::BAD_GATEWAY, why);
    match result {
        None => Ok(Accepted { why: "there is no $connect route".to_owned(), subprotocol: None }),
        Some(Err(IntegrationError::TimedOut)) => {
            let status = StatusCode::from_u16(behaviour.connect_timeout_status).unwrap_or(StatusCode::GATEWAY_TIMEOUT);
            Err(Refusal::new(status, "$connect took too long"))
        }
        Some(Err(IntegrationError::Throttled)) => {
            Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "Lambda throttled $connect"))
        }
        Some(Err(_)) => Err(bad_gateway("$connect failed")),
        Some(Ok(response)) if (200..300).contains(&response.status_code) => {
            let subprotocol = response.header(&SEC_WEBSOCKET_PROTOCOL).map(HeaderValue::from_str);
            // Inferred: a subprotocol that cannot be sent makes the response malformed.
            let subprotocol =
                subprotocol.transpose().map_err(|_| bad_gateway("the subprotocol is not a valid header value"))?;
            Ok(Accepted { why: format!("$connect answered {}", response.status_code), subprotocol })
        }
        Some(Ok(response)) => {
            let status = StatusCode::from_u16(response.status_code).ok();
            Err(match status.filter(|status| !status.is_informational()) {
                Some(status) => Refusal::new(status, "$connect answered with this status"),
                // A final HTTP response cannot have such a status. That includes a 101 from the function.
                None => bad_gateway("$connect answered with a 1xx status"),
            })
        }
    }
}

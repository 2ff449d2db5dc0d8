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

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::header::{
    CONNECTION, HOST, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE, USER_AGENT,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::api_key::KeySource;
use super::authorizer::{self, ACTION};
use super::connection::Connection;
use super::deflate::Negotiated;
use super::event::{ConnectEvent, Multi};
use super::id::Id;
use super::integration::{IntegrationError, ProxyResponse};
use super::refusal::Refusal;
use super::settings::{AbortDuringConnect, Behaviour, Deflate};
use super::{Endpoints, Gateway, Paths, log, socket};
use crate::signature;

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// The bytes of a request's head that are kept, because only they show the case of header names. The value is ours.
const HEAD_LIMIT: usize = 64 * 1024;

/// The most headers of a request. hyper refuses a request with more.
const HEADERS_LIMIT: usize = 100;

/// The decision of `$connect` to accept a client.
#[derive(Debug)]
struct Accepted {
    /// The reason, for the log.
    why: String,
    subprotocol: Option<HeaderValue>,
}

/// The parts of a valid upgrade request that the answer needs.
#[derive(Debug)]
struct Upgrade {
    accept: HeaderValue,
    host: String,
}

/// Answers a handshake and logs a refusal.
pub(super) async fn respond(
    gateway: &Arc<Gateway>,
    request: Request<Incoming>,
    endpoints: Endpoints,
    head: &Head,
) -> Response<Full<Bytes>> {
    match connect(gateway, request, endpoints, head).await {
        Ok(response) => response,
        Err(refusal) => {
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
) -> Result<Response<Full<Bytes>>, Refusal> {
    let Upgrade { accept, host } = check(&gateway.api.paths, gateway.settings.limits.url_limit, &request)?;
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
        let allowed = authorizer::authorize(gateway, authorizer, &connection, &headers, query.as_ref()).await?;
        connection.authorizer = Some(allowed.context);
        usage_identifier_key = allowed.usage_identifier_key;
    }
    if let Some(keys) = keys_from(KeySource::Authorizer) {
        keys.identify(usage_identifier_key.as_deref(), &mut connection.identity)?;
    }
    let connection = Arc::new(connection);

    // `$connect` runs in a task of its own. If the client leaves, hyper drops this future, and the invocation must end.
    let (decide, decided) = oneshot::channel();
    gateway.spawn({
        let (gateway, connection) = (gateway.clone(), connection.clone());
        async move {
            let request_id = Id::new();
            let event = ConnectEvent::new(&gateway.api, &connection, &request_id, headers, query);
            let behaviour = &gateway.settings.behaviour;
            let decision = decision(gateway.invoke("$connect", &request_id, &event).await, behaviour);
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

/// Runs the checks that need no function. If two of them fail, the first one is reported. That order is inferred.
fn check<B>(paths: &Paths, url_limit: usize, request: &Request<B>) -> Result<Upgrade, Refusal> {
    let (headers, path) = (request.headers(), request.uri().path());
    let is_upgrade = request.method() == Method::GET
        && has_token(headers, &CONNECTION, "upgrade")
        && has_token(headers, &UPGRADE, "websocket");
    if !is_upgrade {
        return Err(Refusal::new(StatusCode::UPGRADE_REQUIRED, "the request is not a WebSocket upgrade"));
    }

    let bad_request = |why| Refusal::new(StatusCode::BAD_REQUEST, why);
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(bad_request("Sec-WebSocket-Version is not 13"));
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes).filter(|key| is_key(key));
    let accept = key.and_then(|key| HeaderValue::try_from(derive_accept_key(key)).ok());
    let accept = accept.ok_or(bad_request("Sec-WebSocket-Key is not the Base64 of 16 bytes"))?;
    let host = headers.get(HOST).map(text).ok_or(bad_request("the Host header is missing"))?;

    let segment = path.strip_prefix('/').unwrap_or(path);
    let segment = segment.strip_suffix('/').filter(|segment| !segment.is_empty()).unwrap_or(segment);
    if !paths.serves_clients(segment) {
        return Err(Refusal::new(StatusCode::FORBIDDEN, "the API is not available at this path"));
    }

    let path_and_query = request.uri().path_and_query().map_or(0, |path| path.as_str().len());
    // The limit is for the URL that a client uses on AWS, with scheme and host.
    if "wss://".len() + host.len() + path_and_query > url_limit {
        return Err(Refusal::new(StatusCode::URI_TOO_LONG, "the URL is too long"));
    }
    Ok(Upgrade { accept, host })
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(token))
}

/// Returns whether the key is the Base64 of 16 bytes (RFC 6455, section 4.1).
fn is_key(key: &[u8]) -> bool {
    let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    key.len() == 24 && key.ends_with(b"==") && key[..22].iter().all(is_base64)
}

/// Makes the headers of an event: the client's with its own case, without `Connection` and `Upgrade`, and the
/// gateway's.
fn event_headers(headers: &HeaderMap, names: &HashMap<String, String>, endpoints: Endpoints) -> Multi {
    const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
    const REPLACED: [&str; 4] = ["connection", "upgrade", "x-forwarded-port", "x-forwarded-proto"];

    let mut event = Multi::new();
    for (name, value) in headers {
        if name != FORWARDED_FOR && !REPLACED.contains(&name.as_str()) {
            let name = names.get(name.as_str()).map_or(name.as_str(), String::as_str);
            event.entry(name.to_owned()).or_default().push(text(value));
        }
    }
    let mut forwarded_for: Vec<_> = headers.get_all(FORWARDED_FOR).into_iter().map(text).collect();
    forwarded_for.push(endpoints.peer.ip().to_canonical().to_string());
    // On AWS these are always 443 and https. Here they are the port and the scheme of this listener.
    for (name, value) in [
        ("X-Forwarded-For", forwarded_for.join(", ")),
        ("X-Forwarded-Port", endpoints.port.to_string()),
        ("X-Forwarded-Proto", "http".to_owned()),
    ] {
        event.insert(name.to_owned(), vec![value]);
    }
    if !headers.contains_key("x-amzn-trace-id") {
        event.insert("X-Amzn-Trace-Id".to_owned(), vec![trace_id()]);
    }
    event
}

/// Makes an X-Ray trace id: `Root=1-{epoch seconds}-{96 random bits}`, in hexadecimal.
pub(super) fn trace_id() -> String {
    let seconds = jiff::Timestamp::now().as_second();
    format!("Root=1-{seconds:08x}-{:024x}", fastrand::u128(..1 << 96))
}

/// Decodes the keys and values of a query. Inferred: `+` is a space, because HTML forms write it so.
fn parse_query(query: &str) -> Multi {
    let mut parsed = Multi::new();
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        parsed.entry(key.into_owned()).or_default().push(value.into_owned());
    }
    parsed
}

fn text(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

/// The bytes of a TCP connection's first request, up to its body.
#[derive(Debug, Clone, Default)]
pub(super) struct Head(Arc<Mutex<Vec<u8>>>);

impl Head {
    /// Returns a function that keeps the bytes of a TCP connection until the head is complete or too long.
    pub(super) fn recorder(&self) -> impl FnMut(&[u8]) + use<> {
        let mut head = Some(self.clone());
        move |read| {
            let Some(Self(bytes)) = &head else { return };
            let mut bytes = bytes.lock().unwrap_or_else(PoisonError::into_inner);
            let unsearched = bytes.len().saturating_sub(3);
            let room = HEAD_LIMIT - bytes.len();
            bytes.extend_from_slice(&read[..read.len().min(room)]);
            if bytes.len() == HEAD_LIMIT || bytes[unsearched..].windows(4).any(|window| window == b"\r\n\r\n") {
                drop(bytes);
                head = None;
            }
        }
    }

    /// Returns the header names as the client wrote them, by their lower-case form. hyper keeps only the latter.
    ///
    /// The head is forgotten. A second request of the same TCP connection would have lower-case names, but WebSocket
    /// clients send only one.
    fn header_names(&self) -> HashMap<String, String> {
        let head = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_LIMIT];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(&head) {
            Ok(_) => request.headers.iter().map(|header| (header.name.to_ascii_lowercase(), header.name.to_owned())),
            // hyper has parsed the request, so the head is longer than the bytes that were kept.
            Err(_) => return HashMap::new(),
        }
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upgrade(path: &str) -> http::request::Builder {
        Request::get(path)
            .header("host", "localhost:3001")
            .header("connection", "keep-alive, Upgrade")
            .header("upgrade", "WebSocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
    }

    fn refused(request: http::request::Builder) -> Option<u16> {
        refused_by(&Paths { stage: Some("dev".to_owned()), ..Paths::default() }, request)
    }

    fn refused_by(paths: &Paths, request: http::request::Builder) -> Option<u16> {
        check(paths, 4096, &request.body(()).unwrap()).err().map(|refusal| refusal.status.as_u16())
    }

    #[test]
    fn clients_can_connect_at_the_stage_and_at_the_root() {
        for path in ["/dev", "/dev/", "/dev?userId=2", "/"] {
            assert_eq!(refused(upgrade(path)), None, "{path}");
        }
        for path in ["/nostage", "/dev/extra", "/dev//", "/de", "/Dev", "//", "//dev"] {
            assert_eq!(refused(upgrade(path)), Some(403), "{path}");
        }
    }

    #[test]
    fn a_disabled_endpoint_has_no_stage() {
        let paths = Paths::default();
        assert_eq!(refused_by(&paths, upgrade("/")), None);
        assert_eq!((refused_by(&paths, upgrade("/dev")), refused_by(&paths, upgrade("//"))), (Some(403), Some(403)));
    }

    #[test]
    fn a_request_that_is_not_a_websocket_handshake_is_refused() {
        let edited = |name: &str, value: &'static str| {
            let mut request = upgrade("/nostage");
            if let Some(headers) = request.headers_mut() {
                headers.insert(HeaderName::try_from(name).unwrap(), HeaderValue::from_static(value));
            }
            request
        };
        assert_eq!(refused(edited("connection", "close")), Some(426));
        assert_eq!(refused(edited("upgrade", "h2c")), Some(426));
        assert_eq!(refused(upgrade("/dev").method(Method::POST)), Some(426));
        assert_eq!(refused(edited("sec-websocket-version", "8")), Some(400));
        assert_eq!(refused(edited("sec-websocket-key", "short")), Some(400));
    }

    #[test]
    fn a_url_has_at_most_4096_characters() {
        let fixed = "wss://localhost:3001/dev?q=".len();
        let url = |length: usize| format!("/dev?q={}", "x".repeat(length - fixed));
        assert_eq!(refused(upgrade(&url(4096))), None);
        assert_eq!(refused(upgrade(&url(4097))), Some(414));
    }

    #[test]
    fn a_query_is_decoded_and_keeps_repeated_keys_in_order() {
        let parsed = parse_query("a=1&b=%20y+z&a=2&&c&%64=%3D&e=a=b");
        let expected =
            [("a", vec!["1", "2"]), ("b", vec![" y z"]), ("c", vec![""]), ("d", vec!["="]), ("e", vec!["a=b"])];
        let expected: Multi =
            expected.map(|(key, values)| (key.to_owned(), values.into_iter().map(str::to_owned).collect())).into();
        assert_eq!(parsed, expected);
    }
}

//! The management API: `POST`, `GET` and `DELETE` of `/{stage}/@connections/{connectionId}`, or of another path of the API.
//!
//! Implements "Use @connections commands in your backend service" and the operations of the service model
//! `apigatewaymanagementapi` (2018-11-29), with headers and bodies as recorded. SDKs tell errors apart by the header
//! `x-amzn-errortype` alone, so every error has one. Calls must be signed (`signature.rs`), and
//! allowed by the role of the function that signed them.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use jiff::Timestamp;
use percent_encoding::percent_decode_str;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::Gateway;
use super::connection::{Close, Connection};
use super::handshake::trace_id;
use super::id::Id;
use super::knobs::{IdValidation, NonUtf8Post, PostToPending, Sigv4};
use super::signature::{self, SignatureError};
use crate::faults::{Chance, Delay};
use crate::iam::Denial;

const ERROR_TYPE: HeaderName = HeaderName::from_static("x-amzn-errortype");

/// The segments of a path, each decoded once. Right are the path of the API, `@connections` and an id.
pub(super) struct Path {
    segments: Vec<String>,
}

impl Path {
    /// The path of the API, empty for the root, and the connection's id.
    fn split(&self) -> Option<(&str, &str)> {
        match self.segments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["@connections", id] => Some(("", id)),
            [base, "@connections", id] if !base.is_empty() => Some((base, id)),
            _ => None,
        }
    }
}

/// The path, if it is one of the management API, right or wrong. Everything else is a client's.
pub(super) fn path(path: &str) -> Option<Path> {
    let decode = |segment| percent_decode_str(segment).decode_utf8_lossy().into_owned();
    let segments: Vec<_> = path.split('/').skip(1).map(decode).collect();
    segments.iter().any(|segment| segment == "@connections").then_some(Path { segments })
}

/// An error as it goes over the wire.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    /// The connection has closed, or there never was one.
    Gone,
    /// Not in the service model, but recorded.
    MalformedId(String),
    /// That the text is this one is inferred.
    PayloadTooLarge,
    /// Ours; see `--non-utf8-post`.
    NotUtf8,
    /// Beyond the request rate. The model has no members for it, so the text is anybody's guess.
    LimitExceeded,
    /// Only ever a fault on demand.
    Internal,
    /// Another path than the API's.
    Forbidden,
    /// The caller's role does not allow it.
    AccessDenied(Denial),
    /// Not signed as it should be; [`SignatureError::Missing`] also when it is not one of the three methods (inferred,
    /// from what REST APIs do).
    Signature(SignatureError),
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::Gone => StatusCode::GONE,
            Self::MalformedId(_) | Self::NotUtf8 => StatusCode::BAD_REQUEST,
            Self::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::LimitExceeded => StatusCode::TOO_MANY_REQUESTS,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Forbidden | Self::AccessDenied(_) | Self::Signature(_) => StatusCode::FORBIDDEN,
        }
    }

    fn error_type(&self) -> &'static str {
        match self {
            Self::Gone => "GoneException",
            Self::MalformedId(_) | Self::NotUtf8 => "BadRequestException",
            Self::PayloadTooLarge => "PayloadTooLargeException",
            Self::LimitExceeded => "LimitExceededException",
            Self::Internal => "InternalServerErrorException",
            Self::Forbidden => "ForbiddenException",
            Self::AccessDenied(_) => "AccessDeniedException",
            Self::Signature(error) => error.error_type(),
        }
    }
}

/// What `message` says; nothing for [`Refusal::Gone`], whose body is empty.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => Ok(()),
            Self::MalformedId(id) => write!(f, "Invalid connectionId: {id}"),
            Self::PayloadTooLarge => f.write_str("Message too long"),
            Self::NotUtf8 => f.write_str("The message is not UTF-8"),
            Self::LimitExceeded => f.write_str("Too Many Requests"),
            Self::Internal => f.write_str("Internal server error"),
            Self::Forbidden => f.write_str("Forbidden"),
            Self::AccessDenied(denial) => denial.fmt(f),
            Self::Signature(error) => error.fmt(f),
        }
    }
}

pub(super) async fn respond(gateway: &Arc<Gateway>, request: Request<Incoming>, path: &Path) -> Response<Full<Bytes>> {
    let mut response = call(gateway, request, path).await.unwrap_or_else(|refusal| {
        let body = match refusal.to_string() {
            message if message.is_empty() => Bytes::new(),
            // Recorded with a capital letter, unlike all others.
            message if matches!(refusal, Refusal::AccessDenied(_)) => json!({ "Message": message }).to_string().into(),
            message => json!({ "message": message }).to_string().into(),
        };
        let mut response = answer(refusal.status(), body);
        response.headers_mut().insert(ERROR_TYPE, HeaderValue::from_static(refusal.error_type()));
        response
    });
    let succeeded = response.status().is_success();
    for (name, value) in [
        ("x-amzn-requestid", Some(uuid::Uuid::new_v4().to_string())),
        ("x-amz-apigw-id", Some(Id::new().to_string())),
        ("x-amzn-trace-id", succeeded.then(trace_id)),
    ] {
        if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

async fn call(gateway: &Gateway, request: Request<Incoming>, path: &Path) -> Result<Response<Full<Bytes>>, Refusal> {
    let (base, id) = path.split().ok_or(Refusal::Forbidden)?;
    if !gateway.api.paths.are_called(base) {
        return Err(Refusal::Forbidden);
    }
    let knobs = &gateway.settings.knobs;
    let (request, body) = request.into_parts();
    let mut digest = Sha256::new();
    let is_verified = knobs.sigv4() == Sigv4::Verify;
    let payload = read_body(body, gateway.settings.limits.message_limit, |data| {
        if is_verified {
            digest.update(data);
        }
    });
    let payload = payload.await;
    signature::check(&request, digest, knobs.sigv4(), &gateway.api.credentials).map_err(Refusal::Signature)?;
    if ![Method::POST, Method::GET, Method::DELETE].contains(&request.method) {
        return Err(Refusal::Signature(SignatureError::Missing));
    }
    let caller = signature::access_key_id(&request.headers, request.uri.query());
    let (arn, stage) = (&gateway.api.arn, &gateway.api.stage);
    let resource = format!("{arn}/{stage}/{}/@connections/{id}", request.method);
    let denied = gateway.api.callers.check(caller.as_deref(), "execute-api:ManageConnections", &resource);
    denied.map_err(Refusal::AccessDenied)?;
    if !gateway.requests.admits() {
        return Err(Refusal::LimitExceeded);
    }
    let id = Id::parse(id).ok_or_else(|| match knobs.id_validation {
        IdValidation::Form => Refusal::MalformedId(id.to_owned()),
        IdValidation::None => Refusal::Gone,
    })?;
    if request.method == Method::DELETE {
        let closed = gateway.connections.close(&id, Close::deleted(knobs));
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::NO_CONTENT;
        return if closed { Ok(response) } else { Err(Refusal::Gone) };
    }
    if request.method == Method::POST && knobs.post_to_pending == PostToPending::Hang {
        gateway.connections.settled(&id).await;
    }
    let connection = gateway.connections.get(&id).ok_or(Refusal::Gone)?;
    if request.method == Method::GET {
        return Ok(answer(StatusCode::OK, describe(&connection).into()));
    }
    let payload = payload.ok_or(Refusal::PayloadTooLarge)?;
    suffer(gateway).await?;
    // A text frame carries nothing but UTF-8. What AWS makes of other bytes is unknown.
    let payload = match String::from_utf8_lossy(&payload) {
        Cow::Borrowed(_) => payload,
        Cow::Owned(_) if knobs.non_utf8_post == NonUtf8Post::Refuse => return Err(Refusal::NotUtf8),
        Cow::Owned(replaced) => replaced.into(),
    };
    if connection.post(payload).await { Ok(answer(StatusCode::OK, Bytes::new())) } else { Err(Refusal::Gone) }
}

/// What goes wrong with a POST to an open connection, if anything does.
async fn suffer(gateway: &Gateway) -> Result<(), Refusal> {
    gateway.faults.delay(Delay::PostDelay).await;
    for (chance, refusal) in
        [(Chance::Gone, Refusal::Gone), (Chance::Throttle, Refusal::LimitExceeded), (Chance::Error, Refusal::Internal)]
    {
        if gateway.faults.injects(chance) {
            return Err(refusal);
        }
    }
    if gateway.faults.injects(Chance::Hang) {
        gateway.stopped().await;
        return Err(Refusal::Internal);
    }
    Ok(())
}

/// The whole body, or `None` when it is longer than a message. One that is too long is read to its end all the same:
/// a caller that still writes would see a reset and not the answer. `see` is shown all of it.
async fn read_body(mut body: Incoming, limit: usize, mut see: impl FnMut(&[u8])) -> Option<Bytes> {
    let mut payload = BytesMut::new();
    let mut fits = true;
    while let Some(frame) = body.frame().await {
        // A caller that left; nobody will read the answer.
        let data = frame.ok()?.into_data().unwrap_or_default();
        see(&data);
        fits &= payload.len() + data.len() <= limit;
        if fits {
            payload.extend_from_slice(&data);
        }
    }
    fits.then(|| payload.freeze())
}

/// Printed as recorded. The service model requires `userAgent`; what AWS prints without one is unknown.
fn describe(connection: &Connection) -> String {
    let source_ip = connection.identity.source_ip;
    let user_agent = serde_json::Value::from(connection.identity.user_agent.as_deref().unwrap_or_default());
    let time = |timestamp: Timestamp| timestamp.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string();
    format!(
        r#"{{
  "identity" : {{
    "sourceIp" : "{source_ip}",
    "userAgent" : {user_agent}
  }},
  "connectedAt" : "{}",
  "lastActiveAt" : "{}"
}}"#,
        time(connection.connected_at),
        time(connection.last_active_at()),
    )
}

fn answer(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_front_of_connections_is_the_path_of_the_api() {
        let split = |text| path(text).unwrap().split().map(|(base, id)| format!("{base}|{id}"));
        assert_eq!(split("/dev/@connections/a").as_deref(), Some("dev|a"));
        assert_eq!(split("/@connections/a").as_deref(), Some("|a"));
        for text in
            ["//@connections/a", "/@connections", "/a/b/@connections/c", "/dev/x/@connections", "/@connections/a/b"]
        {
            assert_eq!(split(text), None, "{text}");
        }
    }

    #[test]
    fn a_path_is_decoded_once_and_after_it_was_split() {
        let segments = |text| path(text).map(|path| path.segments);
        let expected = Some(vec!["dev".to_owned(), "@connections".to_owned(), "a/b%3D=".to_owned()]);
        assert_eq!(segments("/dev/%40connections/a%2Fb%253D%3D"), expected);
        assert_eq!(segments("/dev"), None);
        assert_eq!(segments("/@connections/id").map(|segments| segments.len()), Some(2));
    }
}

//! The management API: `POST`, `GET` and `DELETE` of `{path}/@connections/{connectionId}`. The path is one of the
//! API's.
//!
//! This module implements "Use @connections commands in your backend service" and the operations of the service model
//! `apigatewaymanagementapi` (2018-11-29). Headers and bodies are as recorded. Every error has the header
//! `x-amzn-errortype`, because SDKs use only that header to tell errors apart. A call must be signed (`signature.rs`),
//! and the role of the function that signed it must allow it.

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
use super::settings::{IdValidation, NonUtf8Post, PostToPending, Sigv4};
use crate::faults::{Chance, Delay};
use crate::iam::Denial;
use crate::signature::{self, SignatureError};

const ERROR_TYPE: HeaderName = HeaderName::from_static("x-amzn-errortype");

/// The segments of a path, each decoded once. In a valid path they are the API's path, `@connections` and an id.
pub(super) struct Path {
    segments: Vec<String>,
}

impl Path {
    /// Splits a valid path into the API's path and the connection's id. The API's path is empty for the root.
    fn split(&self) -> Option<(&str, &str)> {
        match self.segments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["@connections", id] => Some(("", id)),
            [base, "@connections", id] if !base.is_empty() => Some((base, id)),
            _ => None,
        }
    }
}

/// Parses a path if it belongs to the management API, even if it is not valid. All other paths belong to clients.
pub(super) fn path(path: &str) -> Option<Path> {
    let decode = |segment| percent_decode_str(segment).decode_utf8_lossy().into_owned();
    let segments: Vec<_> = path.split('/').skip(1).map(decode).collect();
    segments.iter().any(|segment| segment == "@connections").then_some(Path { segments })
}

/// The reason why a call is refused, as the caller sees it.
#[derive(Debug, PartialEq, Eq)]
enum CallRefusal {
    /// The connection has closed or has never existed.
    Gone,
    /// The id does not have the form of an id. The service model does not name this error, but it was recorded.
    MalformedId(String),
    /// The message is longer than the limit. The text is inferred.
    PayloadTooLarge,
    /// The message is not UTF-8. This error is ours; see `--non-utf8-post`.
    NotUtf8,
    /// The call is above the request rate. The service model has no members for this error, so the text is a guess.
    LimitExceeded,
    /// The gateway failed. Only a fault on demand causes this.
    Internal,
    /// The path is not one of the API's.
    Forbidden,
    /// The caller's role does not allow the call.
    AccessDenied(Denial),
    /// The signature is missing or not valid. A method other than the three is [`SignatureError::Missing`]. That is
    /// inferred from REST APIs.
    Signature(SignatureError),
}

impl CallRefusal {
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

/// Prints the text of `message`. It is empty for [`CallRefusal::Gone`], because that answer has no body.
impl fmt::Display for CallRefusal {
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

/// Answers a call with AWS's headers.
pub(super) async fn respond(gateway: &Arc<Gateway>, request: Request<Incoming>, path: &Path) -> Response<Full<Bytes>> {
    let mut response = call(gateway, request, path).await.unwrap_or_else(|refusal| {
        let body = match refusal.to_string() {
            message if message.is_empty() => Bytes::new(),
            // In recordings only this error has a capital letter.
            message if matches!(refusal, CallRefusal::AccessDenied(_)) => {
                json!({ "Message": message }).to_string().into()
            }
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

async fn call(
    gateway: &Gateway,
    request: Request<Incoming>,
    path: &Path,
) -> Result<Response<Full<Bytes>>, CallRefusal> {
    let (base, id) = path.split().ok_or(CallRefusal::Forbidden)?;
    if !gateway.api.paths.serves_callers(base) {
        return Err(CallRefusal::Forbidden);
    }
    let behaviour = &gateway.settings.behaviour;
    let (request, body) = request.into_parts();
    let mut digest = Sha256::new();
    let is_verified = behaviour.sigv4() == Sigv4::Verify;
    let payload = read_body(body, gateway.settings.limits.message_limit, |data| {
        if is_verified {
            digest.update(data);
        }
    });
    let payload = payload.await;
    signature::check(&request, digest, behaviour.sigv4(), &gateway.functions.credentials)
        .map_err(CallRefusal::Signature)?;
    if ![Method::POST, Method::GET, Method::DELETE].contains(&request.method) {
        return Err(CallRefusal::Signature(SignatureError::Missing));
    }
    let caller = signature::access_key_id(&request.headers, request.uri.query());
    let (arn, stage) = (&gateway.api.arn, &gateway.api.stage);
    let resource = format!("{arn}/{stage}/{}/@connections/{id}", request.method);
    let denied = gateway.functions.callers.check(caller.as_deref(), "execute-api:ManageConnections", &resource);
    denied.map_err(CallRefusal::AccessDenied)?;
    if !gateway.requests.admits() {
        return Err(CallRefusal::LimitExceeded);
    }
    let id = Id::parse(id).ok_or_else(|| match behaviour.id_validation {
        IdValidation::Form => CallRefusal::MalformedId(id.to_owned()),
        IdValidation::None => CallRefusal::Gone,
    })?;
    if request.method == Method::DELETE {
        let closed = gateway.connections.close(&id, Close::deleted(behaviour));
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::NO_CONTENT;
        return if closed { Ok(response) } else { Err(CallRefusal::Gone) };
    }
    if request.method == Method::POST && behaviour.post_to_pending == PostToPending::Hang {
        gateway.connections.wait_for_connect(&id).await;
    }
    let connection = gateway.connections.get(&id).ok_or(CallRefusal::Gone)?;
    if request.method == Method::GET {
        return Ok(answer(StatusCode::OK, describe(&connection).into()));
    }
    let payload = payload.ok_or(CallRefusal::PayloadTooLarge)?;
    inject_faults(gateway).await?;
    // A text frame can carry only UTF-8. AWS's behaviour with other bytes is unknown.
    let payload = match String::from_utf8_lossy(&payload) {
        Cow::Borrowed(_) => payload,
        Cow::Owned(_) if behaviour.non_utf8_post == NonUtf8Post::Refuse => return Err(CallRefusal::NotUtf8),
        Cow::Owned(replaced) => replaced.into(),
    };
    if connection.post(payload).await { Ok(answer(StatusCode::OK, Bytes::new())) } else { Err(CallRefusal::Gone) }
}

/// Injects the faults of a POST to an open connection.
async fn inject_faults(gateway: &Gateway) -> Result<(), CallRefusal> {
    gateway.faults.delay(Delay::PostDelay).await;
    for (chance, refusal) in [
        (Chance::Gone, CallRefusal::Gone),
        (Chance::Throttle, CallRefusal::LimitExceeded),
        (Chance::Error, CallRefusal::Internal),
    ] {
        if gateway.faults.strikes(chance) {
            return Err(refusal);
        }
    }
    if gateway.faults.strikes(Chance::Hang) {
        gateway.stopped().await;
        return Err(CallRefusal::Internal);
    }
    Ok(())
}

/// Reads the whole body and shows it to `see`. Returns `None` if it is longer than a message.
///
/// A body that is too long is read to its end as well. Otherwise a caller that is still writing would see a TCP reset
/// instead of the answer.
async fn read_body(mut body: Incoming, limit: usize, mut see: impl FnMut(&[u8])) -> Option<Bytes> {
    let mut payload = BytesMut::new();
    let mut fits = true;
    while let Some(frame) = body.frame().await {
        // The read fails if the caller has left. Then nobody reads the answer.
        let data = frame.ok()?.into_data().unwrap_or_default();
        see(&data);
        fits &= payload.len() + data.len() <= limit;
        if fits {
            payload.extend_from_slice(&data);
        }
    }
    fits.then(|| payload.freeze())
}

/// Prints the answer to a GET as recorded. The service model requires `userAgent`. AWS's answer for a client without
/// one is unknown.
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
    fn the_path_of_the_api_stands_before_connections() {
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
    fn a_path_is_split_and_then_decoded_once() {
        let segments = |text| path(text).map(|path| path.segments);
        let expected = Some(vec!["dev".to_owned(), "@connections".to_owned(), "a/b%3D=".to_owned()]);
        assert_eq!(segments("/dev/%40connections/a%2Fb%253D%3D"), expected);
        assert_eq!(segments("/dev"), None);
        assert_eq!(segments("/@connections/id").map(|segments| segments.len()), Some(2));
    }
}

//! The management API: `POST`, `GET` and `DELETE` of `{path}/@connections/{connectionId}`. The path is one of the
//! API's.
//!
//! This module implements "Use @connections commands in your backend service" and the operations of the service model
//! `apigatewaymanagementapi` (2018-11-29). Headers and bodies are as recorded. Every error has the header
//! `x-amzn-errortype`, because SDKs use only that header to tell errors apart. A call must be signed (`signature.rs`),
//! and the role of the function that signed it must allow it.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use jiff::Timestamp;
use percent_encoding::percent_decode_str;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::connection::{Close, Connection};
use super::id::Id;
use super::refusal::{CallRefusal, json};
use super::settings::{IdValidation, NonUtf8Post, PostToPending, Sigv4};
use super::state::Gateway;
use crate::faults::{Chance, Delay};
use crate::inspector::{Event, Text};
use crate::signature::{self, SignatureError};
use crate::trace::trace_id;

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

/// Answers a call with AWS's headers.
pub(super) async fn respond(gateway: &Gateway, request: Request<Incoming>, path: &Path) -> Response<Full<Bytes>> {
    let inspector = &gateway.inspector;
    let witness = inspector.is_watched().then(|| {
        let caller = inspector.caller(request.headers(), request.uri().query());
        (caller, request.method().to_string(), Instant::now())
    });
    let mut payload = None;
    let served = serve(gateway, request, path, &mut payload).await;
    if let Some((caller, method, begin)) = witness {
        let status = served.as_ref().map_or_else(CallRefusal::status, Response::status);
        let connection = path.split().map(|(_, id)| id.to_owned()).unwrap_or_default();
        let error = served.as_ref().err().map(|refusal| refusal.error_type().to_owned());
        inspector.tell_of(&caller, |invocation| Event::Post {
            invocation,
            method,
            connection,
            ms: begin.elapsed().into(),
            status: status.as_u16(),
            error,
            text: payload.map(Text::new),
        });
    }
    let mut response = served.unwrap_or_else(|refusal| refusal.response());
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

/// Serves a call in three steps: it is parsed, authorised and then executed. `seen` gets the body.
async fn serve(
    gateway: &Gateway,
    request: Request<Incoming>,
    path: &Path,
    seen: &mut Option<Bytes>,
) -> Result<Response<Full<Bytes>>, CallRefusal> {
    let call = Call::parse(gateway, request, path).await?;
    seen.clone_from(&call.payload);
    let operation = call.authorise(gateway)?;
    let id = Id::parse(call.id).ok_or_else(|| match gateway.settings.behaviour.id_validation {
        IdValidation::Form => CallRefusal::MalformedId(call.id.to_owned()),
        IdValidation::None => CallRefusal::Gone,
    })?;
    match operation {
        Operation::Post => post(gateway, &id, call.payload).await,
        Operation::Get => get(gateway, &id),
        Operation::Delete => delete(gateway, &id),
    }
}

/// The operations of the service model.
#[derive(Debug, Clone, Copy)]
enum Operation {
    Post,
    Get,
    Delete,
}

/// A call to a path of the API.
struct Call<'a> {
    /// The connection's id, as the caller wrote it.
    id: &'a str,
    request: Parts,
    /// The body. `None` if it is longer than a message.
    payload: Option<Bytes>,
    /// The digest of the body. It is empty unless signatures are verified.
    digest: Sha256,
}

impl<'a> Call<'a> {
    /// Parses the path and reads the body.
    async fn parse(gateway: &Gateway, request: Request<Incoming>, path: &'a Path) -> Result<Self, CallRefusal> {
        let (base, id) = path.split().ok_or(CallRefusal::Forbidden)?;
        if !gateway.api.paths.serves_callers(base) {
            gateway.tell_of_wrong_path();
            return Err(CallRefusal::Forbidden);
        }
        let (request, body) = request.into_parts();
        let mut digest = Sha256::new();
        let is_verified = gateway.settings.behaviour.sigv4() == Sigv4::Verify;
        let payload = read_body(body, gateway.settings.limits.message_limit, |data| {
            if is_verified {
                digest.update(data);
            }
        });
        let payload = payload.await;
        Ok(Self { id, request, payload, digest })
    }

    /// Checks the signature, the method, the caller's role and the request rate, in this order.
    fn authorise(&self, gateway: &Gateway) -> Result<Operation, CallRefusal> {
        let (request, functions) = (&self.request, &gateway.functions);
        let how = gateway.settings.behaviour.sigv4();
        signature::check(request, self.digest.clone(), how, &functions.credentials).map_err(CallRefusal::Signature)?;
        let operation = match request.method {
            Method::POST => Operation::Post,
            Method::GET => Operation::Get,
            Method::DELETE => Operation::Delete,
            _ => return Err(CallRefusal::Signature(SignatureError::Missing)),
        };
        let caller = signature::access_key_id(&request.headers, request.uri.query());
        let (arn, stage) = (&gateway.api.arn, &gateway.api.stage);
        let resource = format!("{arn}/{stage}/{}/@connections/{}", request.method, self.id);
        let allowed = functions.callers.check(caller.as_deref(), "execute-api:ManageConnections", &resource);
        allowed.map_err(CallRefusal::AccessDenied)?;
        if gateway.requests.admits() { Ok(operation) } else { Err(CallRefusal::LimitExceeded) }
    }
}

/// Sends a message to a connection.
async fn post(gateway: &Gateway, id: &Id, payload: Option<Bytes>) -> Result<Response<Full<Bytes>>, CallRefusal> {
    let behaviour = &gateway.settings.behaviour;
    if behaviour.post_to_pending == PostToPending::Hang {
        gateway.connections.wait_for_connect(id).await;
    }
    let connection = gateway.connections.get(id).ok_or(CallRefusal::Gone)?;
    let payload = payload.ok_or(CallRefusal::PayloadTooLarge)?;
    inject_faults(gateway).await?;
    // A text frame can carry only UTF-8. AWS's behaviour with other bytes is unknown.
    let payload = match String::from_utf8_lossy(&payload) {
        Cow::Borrowed(_) => payload,
        Cow::Owned(_) if behaviour.non_utf8_post == NonUtf8Post::Refuse => return Err(CallRefusal::NotUtf8),
        Cow::Owned(replaced) => replaced.into(),
    };
    if connection.post(payload).await { Ok(json(StatusCode::OK, Bytes::new())) } else { Err(CallRefusal::Gone) }
}

/// Describes a connection.
fn get(gateway: &Gateway, id: &Id) -> Result<Response<Full<Bytes>>, CallRefusal> {
    let connection = gateway.connections.get(id).ok_or(CallRefusal::Gone)?;
    Ok(json(StatusCode::OK, describe(&connection)))
}

/// Closes a connection.
fn delete(gateway: &Gateway, id: &Id) -> Result<Response<Full<Bytes>>, CallRefusal> {
    if !gateway.connections.close(id, Close::deleted(&gateway.settings.behaviour)) {
        return Err(CallRefusal::Gone);
    }
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

/// Injects the faults of a POST to an open connection.
async fn inject_faults(gateway: &Gateway) -> Result<(), CallRefusal> {
    gateway.faults.delay(Delay::PostDelay).await;
    for (chance, refusal) in [
        (Chance::Gone, CallRefusal::Gone),
        (Chance::Throttle, CallRefusal::LimitExceeded),
        (Chance::Error, CallRefusal::Internal),
    ] {
        if gateway.faults.injects(chance) {
            return Err(refusal);
        }
    }
    if gateway.faults.injects(Chance::Hang) {
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

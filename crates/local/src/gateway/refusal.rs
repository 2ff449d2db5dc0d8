//! Handshakes that are refused: the status that the client sees, and the reason that only the log has.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, UPGRADE};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;
use serde_json::json;

use crate::access::Stranger;

/// The status that the client sees, and why, for the log.
#[derive(Debug)]
pub(super) struct Refused(pub(super) StatusCode, pub(super) &'static str);

/// What a request is told that does not come from this machine, whatever it wants. Not AWS's.
pub(super) fn of_stranger(stranger: &Stranger) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(json!({ "message": stranger.to_string() }).to_string()));
    *response.status_mut() = StatusCode::FORBIDDEN;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The body's form is that of API Gateway's other errors; for a handshake it is inferred.
pub(super) fn refusal(status: StatusCode) -> Response<Full<Bytes>> {
    let message = match status {
        StatusCode::INTERNAL_SERVER_ERROR | StatusCode::BAD_GATEWAY => "Internal server error",
        _ => status.canonical_reason().unwrap_or(status.as_str()),
    };
    let mut response = Response::new(Full::from(format!(r#"{{"message":"{message}"}}"#)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if status == StatusCode::UPGRADE_REQUIRED {
        // RFC 9110, section 15.5.22, demands it.
        response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
    }
    response
}

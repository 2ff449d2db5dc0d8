//! Refused handshakes. The client sees the status, and only the log has the reason.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, UPGRADE};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;
use serde_json::json;

use crate::access::Stranger;

/// A refused handshake.
#[derive(Debug)]
pub(super) struct Refusal {
    /// The status that the client sees.
    pub(super) status: StatusCode,
    /// The reason, for the log.
    pub(super) reason: &'static str,
}

/// Makes the answer to a request that does not come from this machine. AWS has no such answer.
pub(super) fn of_stranger(stranger: &Stranger) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(json!({ "message": stranger.to_string() }).to_string()));
    *response.status_mut() = StatusCode::FORBIDDEN;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

impl Refusal {
    pub(super) fn new(status: StatusCode, reason: &'static str) -> Self {
        Self { status, reason }
    }

    /// Makes the answer to the client. Inferred: its body has the form of API Gateway's other errors.
    pub(super) fn response(&self) -> Response<Full<Bytes>> {
        let message = match self.status {
            StatusCode::INTERNAL_SERVER_ERROR | StatusCode::BAD_GATEWAY => "Internal server error",
            status => status.canonical_reason().unwrap_or(self.status.as_str()),
        };
        let mut response = Response::new(Full::from(format!(r#"{{"message":"{message}"}}"#)));
        *response.status_mut() = self.status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if self.status == StatusCode::UPGRADE_REQUIRED {
            // RFC 9110, section 15.5.22, requires this header.
            response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
        }
        response
    }
}

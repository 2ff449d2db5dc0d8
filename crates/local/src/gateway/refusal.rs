//! Refused handshakes and calls, and the answers to them.

use std::fmt;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, UPGRADE};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::Full;
use serde_json::json;

use crate::access::Stranger;
use crate::iam::Denial;
use crate::signature::SignatureError;

/// A refused handshake. The client sees the status, and only the log has the reason.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) reason: &'static str,
}

/// Makes the answer to a request that does not come from this machine. AWS has no such answer.
pub(super) fn of_stranger(stranger: &Stranger) -> Response<Full<Bytes>> {
    json(StatusCode::FORBIDDEN, json!({ "message": stranger.to_string() }).to_string())
}

/// Makes an answer with a JSON body.
pub(super) fn json(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
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
        let mut response = json(self.status, format!(r#"{{"message":"{message}"}}"#));
        if self.status == StatusCode::UPGRADE_REQUIRED {
            // RFC 9110, section 15.5.22, requires this header.
            response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
        }
        response
    }
}

/// The reason why a call is refused, as the caller sees it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum CallRefusal {
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
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Gone => StatusCode::GONE,
            Self::MalformedId(_) | Self::NotUtf8 => StatusCode::BAD_REQUEST,
            Self::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::LimitExceeded => StatusCode::TOO_MANY_REQUESTS,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Forbidden | Self::AccessDenied(_) | Self::Signature(_) => StatusCode::FORBIDDEN,
        }
    }

    pub(super) fn error_type(&self) -> &'static str {
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

    /// Makes the answer to the caller.
    pub(super) fn response(&self) -> Response<Full<Bytes>> {
        const ERROR_TYPE: HeaderName = HeaderName::from_static("x-amzn-errortype");

        let body = match (self, self.to_string()) {
            (Self::Gone, _) => String::new(),
            // In recordings only this error has a capital letter.
            (Self::AccessDenied(_), message) => json!({ "Message": message }).to_string(),
            (_, message) => json!({ "message": message }).to_string(),
        };
        let mut response = json(self.status(), body);
        response.headers_mut().insert(ERROR_TYPE, HeaderValue::from_static(self.error_type()));
        response
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

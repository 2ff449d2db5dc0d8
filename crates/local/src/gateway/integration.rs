//! Lambda proxy integrations: the function behind a route, and the format of its response.
//!
//! This module implements "Set up Lambda proxy integrations in API Gateway", section "Output format of a Lambda
//! function for proxy integration". A response has five top-level keys and no others.
//!
//! Values are read strictly. AWS may accept more, such as a status code in quotes or a header that is a number, but
//! nothing is known about that. An error here is cheaper than one after the deployment. The gateway never invokes a
//! function twice for one event.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::HeaderName;
use serde_json::{Map, Value};

use super::settings::MissingStatusCode;
use crate::iam::Callers;
use crate::inspector::Story;
use crate::lambda::{Credentials, Function, FunctionError};

/// The target of a route: a [`Function`], or a closure in a test.
pub trait Integration: Send + Sync {
    /// Invokes the target synchronously with `event` and returns its response. The gateway drops the future after the
    /// integration timeout. A [`Function`] keeps running.
    fn invoke(&self, event: Bytes) -> BoxFuture<'_, Result<Bytes, FunctionError>>;

    /// Does the same for a connection, as a part of a story that somebody watches.
    fn invoke_for<'a>(
        &'a self,
        _connection: &'a str,
        event: Bytes,
        _story: Option<Story>,
    ) -> BoxFuture<'a, Result<Bytes, FunctionError>> {
        self.invoke(event)
    }
}

impl Integration for Function {
    fn invoke(&self, event: Bytes) -> BoxFuture<'_, Result<Bytes, FunctionError>> {
        Box::pin(Function::invoke(self, event))
    }

    fn invoke_for<'a>(
        &'a self,
        connection: &'a str,
        event: Bytes,
        story: Option<Story>,
    ) -> BoxFuture<'a, Result<Bytes, FunctionError>> {
        Box::pin(Function::invoke_for(self, connection, event, story))
    }
}

impl<F, R> Integration for F
where
    F: Fn(Bytes) -> R + Send + Sync,
    R: Future<Output = Result<Bytes, FunctionError>> + Send + 'static,
{
    fn invoke(&self, event: Bytes) -> BoxFuture<'_, Result<Bytes, FunctionError>> {
        Box::pin(self(event))
    }
}

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

/// The reason why an integration has no result. It is for the log: a client learns only whether the time ran out.
#[derive(Debug, thiserror::Error)]
pub(super) enum IntegrationError {
    /// The function reported an error, crashed or exceeded its own timeout.
    #[error(transparent)]
    Function(FunctionError),
    /// Lambda refused the event.
    #[error("throttled by Lambda")]
    Throttled,
    /// The integration timeout of the gateway ran out.
    #[error("Endpoint request timed out")]
    TimedOut,
    /// The response does not have the format of a proxy response.
    #[error("malformed proxy response: {0}")]
    Malformed(#[from] MalformedResponse),
}

impl From<FunctionError> for IntegrationError {
    fn from(error: FunctionError) -> Self {
        if error.is_throttle() { Self::Throttled } else { Self::Function(error) }
    }
}

/// The mistake in a response. The text names the key and never shows the value.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum MalformedResponse {
    /// For example `null`: a Rust function that returns `()` answers it.
    #[error("it is not a JSON object")]
    NotAnObject,
    /// The allowed keys are `statusCode`, `headers`, `multiValueHeaders`, `body` and `isBase64Encoded`.
    #[error("unknown key `{0}`")]
    UnknownKey(String),
    /// AWS does not document this case; see `--missing-status-code`.
    #[error("`statusCode` is missing")]
    NoStatusCode,
    #[error("`{key}` is not {expected}")]
    WrongType { key: &'static str, expected: &'static str },
}

/// A response in the proxy format.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ProxyResponse {
    /// A number from 100 to 599.
    pub(super) status_code: u16,
    pub(super) body: Option<String>,
    /// The pairs of `headers`, then those of `multiValueHeaders`.
    headers: Vec<(String, String)>,
}

impl ProxyResponse {
    pub(super) fn parse(response: &[u8], missing: MissingStatusCode) -> Result<Self, MalformedResponse> {
        let Ok(Value::Object(mut response)) = serde_json::from_slice(response) else {
            return Err(MalformedResponse::NotAnObject);
        };
        let status_code = match (response.remove("statusCode"), missing) {
            (Some(status_code), _) => status_code,
            (None, MissingStatusCode::Ok) => Value::from(200),
            (None, MissingStatusCode::Error) => return Err(MalformedResponse::NoStatusCode),
        };
        let status_code = status_code.as_u64().and_then(|code| u16::try_from(code).ok());
        let status_code = status_code.filter(|code| (100..600).contains(code));
        let wrong_type = |key, expected| MalformedResponse::WrongType { key, expected };
        let status_code = status_code.ok_or(wrong_type("statusCode", "an integer from 100 to 599"))?;

        let mut headers = Vec::new();
        for (name, value) in take_object(&mut response, "headers")? {
            let Value::String(value) = value else {
                return Err(wrong_type("headers", "an object of strings"));
            };
            headers.push((name, value));
        }
        for (name, values) in take_object(&mut response, "multiValueHeaders")? {
            let error = || wrong_type("multiValueHeaders", "an object of lists of strings");
            for value in values.as_array().ok_or_else(error)? {
                headers.push((name.clone(), value.as_str().ok_or_else(error)?.to_owned()));
            }
        }
        let body = match response.remove("body") {
            None | Some(Value::Null) => None,
            Some(Value::String(body)) => Some(body),
            Some(_) => return Err(wrong_type("body", "a string")),
        };
        if !matches!(response.remove("isBase64Encoded"), None | Some(Value::Null | Value::Bool(_))) {
            return Err(wrong_type("isBase64Encoded", "a boolean"));
        }
        match response.into_iter().next() {
            Some((key, _)) => Err(MalformedResponse::UnknownKey(key)),
            None => Ok(Self { status_code, body, headers }),
        }
    }

    /// Returns the value of a header and ignores the case of its name.
    ///
    /// If there are several values, `multiValueHeaders` wins over `headers`, as the proxy output format says. Inferred:
    /// the last value wins over earlier ones.
    pub(super) fn header(&self, name: &HeaderName) -> Option<&str> {
        let mut named = self.headers.iter().rev().filter(|(header, _)| header.eq_ignore_ascii_case(name.as_str()));
        named.next().map(|(_, value)| value.as_str())
    }
}

fn take_object(response: &mut Map<String, Value>, key: &'static str) -> Result<Map<String, Value>, MalformedResponse> {
    match response.remove(key) {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(object)) => Ok(object),
        Some(_) => Err(MalformedResponse::WrongType { key, expected: "an object" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(response: &str) -> Result<ProxyResponse, MalformedResponse> {
        ProxyResponse::parse(response.as_bytes(), MissingStatusCode::Error)
    }

    #[test]
    fn well_formed_responses_are_accepted() {
        for (response, status_code) in [
            (r#"{"statusCode":200}"#, 200),
            (r#"{"statusCode":400,"body":"text"}"#, 400),
            // The JSON of `ApiGatewayProxyResponse` in aws_lambda_events.
            (r#"{"statusCode":200,"headers":{},"multiValueHeaders":{},"isBase64Encoded":false}"#, 200),
            (r#"{"statusCode":204,"headers":null,"multiValueHeaders":null,"body":null}"#, 204),
        ] {
            assert_eq!(parse(response).unwrap().status_code, status_code, "{response}");
        }
    }

    #[test]
    fn a_missing_status_code_can_be_made_a_200() {
        let parse = |response: &[u8]| ProxyResponse::parse(response, MissingStatusCode::Ok);
        assert_eq!(parse(b"{}").unwrap().status_code, 200);
        assert_eq!(parse(br#"{"statusCode":201}"#).unwrap().status_code, 201);
        assert!(parse(br#"{"statusCode":null}"#).is_err() && parse(b"null").is_err());
    }

    #[test]
    fn malformed_responses_are_named_without_their_values() {
        for (response, complaint) in [
            ("", "it is not a JSON object"),
            ("null", "it is not a JSON object"),
            (r#""secret""#, "it is not a JSON object"),
            ("[200]", "it is not a JSON object"),
            ("{}", "`statusCode` is missing"),
            (r#"{"ok":true}"#, "`statusCode` is missing"),
            (r#"{"statusCode":"secret"}"#, "`statusCode` is not an integer from 100 to 599"),
            (r#"{"statusCode":20}"#, "`statusCode` is not an integer from 100 to 599"),
            (r#"{"statusCode":200,"foo":"secret"}"#, "unknown key `foo`"),
            (r#"{"statusCode":200,"body":{"a":"secret"}}"#, "`body` is not a string"),
            (r#"{"statusCode":200,"headers":["secret"]}"#, "`headers` is not an object"),
            (r#"{"statusCode":200,"headers":{"a":1}}"#, "`headers` is not an object of strings"),
            (r#"{"statusCode":200,"multiValueHeaders":{"a":"b"}}"#, "`multiValueHeaders` is not an object of lists"),
            (r#"{"statusCode":200,"isBase64Encoded":"secret"}"#, "`isBase64Encoded` is not a boolean"),
        ] {
            let error = parse(response).unwrap_err().to_string();
            assert!(error.starts_with(complaint), "{response}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn the_case_of_a_header_name_does_not_matter_and_the_list_form_wins() {
        let response = r#"{"statusCode":200,"headers":{"SEC-websocket-protocol":"a"},
            "multiValueHeaders":{"sec-websocket-protocol":["b"]}}"#;
        let response = parse(response).unwrap();
        assert_eq!(response.header(&http::header::SEC_WEBSOCKET_PROTOCOL), Some("b"));
        assert_eq!(response.header(&http::header::SET_COOKIE), None);
    }
}

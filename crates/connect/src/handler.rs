//! Who is this? The one moment at which a connection gets its identity.

use aws_lambda_events::apigw::{ApiGatewayProxyResponse, ApiGatewayWebsocketProxyRequest};
use lambda_runtime::{LambdaEvent, tracing};
use switchboard_core::connection::{Connection, UserId};
use switchboard_core::function::{Backend, lifecycle};
use switchboard_core::{ClientError, Error};

use crate::config::{Config, IdentityMode};
use crate::token::Verifier;

/// The query parameter of open mode.
const USER_ID: &str = "userId";

/// The query parameter that carries a token, for browsers, which cannot set headers.
const TOKEN: &str = "token";

/// By what a client can be known.
#[derive(Debug)]
pub(crate) struct Identity {
    mode: IdentityMode,
    verifier: Option<Verifier>,
}

impl Identity {
    /// As configured. Says once per execution environment what an operator should know.
    pub(crate) fn new(config: Config) -> Self {
        for warning in config.warnings {
            tracing::warn!("{warning}");
        }
        Self { mode: config.identity_mode, verifier: config.tokens }
    }

    /// What an authorizer says counts before a token, and a token before what the client says of itself. A token that is
    /// not right refuses the client, whatever else it could be.
    fn of(&self, event: &ApiGatewayWebsocketProxyRequest) -> Result<Option<UserId>, ClientError> {
        if let Some(principal) = event.request_context.authorizer.fields.get("principalId") {
            return UserId::parse("principalId", principal.as_str().unwrap_or_default()).map(Some);
        }
        if let Some(token) = query(event, TOKEN)?.or_else(|| bearer(event)) {
            let verifier = self.verifier.as_ref();
            let verifier =
                verifier.ok_or(ClientError::Unidentified { reason: "there is a token, but TOKEN_KEYS is not set" })?;
            return verifier.verify(token).map(Some);
        }
        match self.mode {
            IdentityMode::Verified => {
                Err(ClientError::Unidentified { reason: "neither an authorizer nor a token says who this is" })
            }
            IdentityMode::Open => query(event, USER_ID)?.map(|claim| UserId::parse(USER_ID, claim)).transpose(),
        }
    }
}

/// A parameter of the query, which may be given once.
fn query<'a>(event: &'a ApiGatewayWebsocketProxyRequest, name: &'static str) -> Result<Option<&'a str>, ClientError> {
    let once = &event.query_string_parameters;
    let every = &event.multi_value_query_string_parameters;
    match every.all(name).or_else(|| once.all(name)).unwrap_or_default()[..] {
        [] => Ok(None),
        [value] => Ok(Some(value)),
        _ => Err(ClientError::InvalidField { field: name, expected: "given once".to_owned() }),
    }
}

/// The token in the header `Authorization: Bearer …` (RFC 6750, section 2.1).
fn bearer(event: &ApiGatewayWebsocketProxyRequest) -> Option<&str> {
    let (scheme, token) = event.headers.get("authorization")?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim_start())
}

/// Stores the connection before the socket opens, so that the client's first message finds it.
pub(crate) async fn handle(
    backend: &Backend,
    identity: &Identity,
    event: LambdaEvent<ApiGatewayWebsocketProxyRequest>,
) -> Result<ApiGatewayProxyResponse, Error> {
    lifecycle(backend, event, status, async |caller, event| {
        let connection = Connection {
            id: caller.connection_id.clone(),
            user_id: identity.of(event)?,
            connected_at_ms: caller.connected_at_ms,
        };
        Ok(backend.store.put(&connection, caller.deadline).await?)
    })
    .await
}

/// The status of a refused handshake.
fn status(mistake: &ClientError) -> i64 {
    match mistake {
        ClientError::Unidentified { .. } => 401,
        _ => 400,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The recorded `$connect` event, with this query and authorizer context.
    fn event(query: &[&str], principal: Option<&str>) -> ApiGatewayWebsocketProxyRequest {
        let mut event: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/events/connect.json")).unwrap();
        event["multiValueQueryStringParameters"] = serde_json::json!({ "userId": query });
        event["queryStringParameters"] = serde_json::json!({ "userId": query.last() });
        if query.is_empty() {
            for key in ["multiValueQueryStringParameters", "queryStringParameters"] {
                event.as_object_mut().unwrap().remove(key);
            }
        }
        if let Some(principal) = principal {
            event["requestContext"]["authorizer"] = serde_json::json!({ "principalId": principal });
        }
        serde_json::from_value(event).unwrap()
    }

    fn identify(mode: IdentityMode, event: &ApiGatewayWebsocketProxyRequest) -> Result<Option<UserId>, ClientError> {
        Identity { mode, verifier: None }.of(event)
    }

    #[test]
    fn in_open_mode_the_query_names_the_user() {
        let identity = identify(IdentityMode::Open, &event(&["2"], None)).unwrap();
        assert_eq!(identity.unwrap().as_str(), "2");
        assert_eq!(identify(IdentityMode::Open, &event(&[], None)).unwrap(), None);
    }

    #[test]
    fn a_wrong_user_id_refuses_the_handshake() {
        for query in [&[""][..], &["1", "2"], &["a\u{7}"], &[&"x".repeat(10_240)]] {
            let mistake = identify(IdentityMode::Open, &event(query, None)).unwrap_err();
            assert_eq!(status(&mistake), 400, "{mistake}");
        }
    }

    #[test]
    fn the_authorizers_word_beats_the_clients() {
        for mode in [IdentityMode::Open, IdentityMode::Verified] {
            let identity = identify(mode, &event(&["mallory"], Some("alice"))).unwrap();
            assert_eq!(identity.unwrap().as_str(), "alice");
        }
    }

    #[test]
    fn without_authorizer_and_token_a_query_is_no_identity_unless_the_mode_is_open() {
        let mistake = identify(IdentityMode::Verified, &event(&["2"], None)).unwrap_err();
        assert_eq!(status(&mistake), 401);
    }

    #[test]
    fn a_token_is_in_the_query_or_the_header_and_never_ignored() {
        let mut event = event(&["mallory"], None);
        let mistake = |event: &_| identify(IdentityMode::Open, event).unwrap_err();
        event.headers.insert("authorization", "bearer  x.y.z".parse().unwrap());
        assert_eq!(bearer(&event), Some("x.y.z"));
        assert_eq!(status(&mistake(&event)), 401);
        event.headers.insert("authorization", "Basic x".parse().unwrap());
        assert_eq!(identify(IdentityMode::Open, &event).unwrap().unwrap().as_str(), "mallory");

        let with = |tokens: &[&str]| {
            let mut event = serde_json::to_value(&event).unwrap();
            event["multiValueQueryStringParameters"]["token"] = serde_json::json!(tokens);
            serde_json::from_value(event).unwrap()
        };
        assert_eq!(status(&mistake(&with(&["x.y.z"]))), 401);
        assert_eq!(status(&mistake(&with(&["x.y.z", "x.y.z"]))), 400);
    }
}

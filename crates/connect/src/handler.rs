//! Who is this? The one moment at which a connection gets its identity.

use aws_lambda_events::apigw::{ApiGatewayProxyResponse, ApiGatewayWebsocketProxyRequest};
use lambda_runtime::{LambdaEvent, tracing};
use switchboard_core::config::IdentityMode;
use switchboard_core::connection::{Connection, UserId};
use switchboard_core::function::{Backend, lifecycle};
use switchboard_core::{ClientError, Error};

/// The query parameter of open mode.
const USER_ID: &str = "userId";

/// Says once per execution environment when anybody may claim to be anybody.
pub(crate) fn announce(mode: IdentityMode) {
    if mode == IdentityMode::Open {
        tracing::warn!("IDENTITY_MODE is `open`: clients name themselves with ?userId= and nobody checks it");
    }
}

/// Stores the connection before the socket opens, so that the client's first message finds it.
pub(crate) async fn handle(
    backend: &Backend,
    event: LambdaEvent<ApiGatewayWebsocketProxyRequest>,
) -> Result<ApiGatewayProxyResponse, Error> {
    lifecycle(backend, event, status, async |caller, event| {
        let connection = Connection {
            id: caller.connection_id.clone(),
            user_id: identify(backend.config.identity_mode, event)?,
            connected_at_ms: caller.connected_at_ms,
        };
        Ok(backend.store.put(&connection, caller.deadline).await?)
    })
    .await
}

/// An authorizer's word counts before anything that the client says of itself.
fn identify(mode: IdentityMode, event: &ApiGatewayWebsocketProxyRequest) -> Result<Option<UserId>, ClientError> {
    if let Some(principal) = event.request_context.authorizer.fields.get("principalId") {
        return UserId::parse("principalId", principal.as_str().unwrap_or_default()).map(Some);
    }
    if mode == IdentityMode::Authorizer {
        return Err(ClientError::Unidentified { reason: "no authorizer says who this is" });
    }
    let once = &event.query_string_parameters;
    let every = &event.multi_value_query_string_parameters;
    let claims = every.all(USER_ID).or_else(|| once.all(USER_ID)).unwrap_or_default();
    match claims[..] {
        [] => Ok(None),
        [claim] => UserId::parse(USER_ID, claim).map(Some),
        _ => Err(ClientError::InvalidField { field: USER_ID, expected: "given once".to_owned() }),
    }
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
        for mode in [IdentityMode::Open, IdentityMode::Authorizer] {
            let identity = identify(mode, &event(&["mallory"], Some("alice"))).unwrap();
            assert_eq!(identity.unwrap().as_str(), "alice");
        }
    }

    #[test]
    fn without_an_authorizer_a_query_is_no_identity_unless_the_mode_is_open() {
        let mistake = identify(IdentityMode::Authorizer, &event(&["2"], None)).unwrap_err();
        assert_eq!(status(&mistake), 401);
    }
}

//! Who is this? The one moment at which a connection gets its identity.

use aws_lambda_events::apigw::{ApiGatewayProxyResponse, ApiGatewayWebsocketProxyRequest};
use lambda_runtime::{LambdaEvent, tracing};
use switchboard_core::backend::Backend;
use switchboard_core::connection::{Connection, UserId};
use switchboard_core::function::lifecycle;
use switchboard_core::{ClientError, Error, Failure};

use crate::config::{Config, IdentityMode};
use crate::token::Verifier;

/// The query parameter of open mode.
const USER_ID: &str = "userId";

/// The query parameter that carries a token, for browsers, which cannot set headers.
const TOKEN: &str = "token";

/// The header that carries a token, and the scheme that it has then.
const AUTHORIZATION: &str = "authorization";
const BEARER: &[u8] = b"bearer";

/// Decides which user a client is.
#[derive(Debug)]
pub struct Identity {
    mode: IdentityMode,
    verifier: Option<Verifier>,
    max_connections: u32,
}

impl Identity {
    /// As configured. Says once per execution environment what an operator should know.
    #[must_use]
    pub fn new(config: Config) -> Self {
        for warning in config.warnings {
            tracing::warn!("{warning}");
        }
        Self { mode: config.identity_mode, verifier: config.tokens, max_connections: config.max_connections }
    }

    /// The authorizer's word counts before a token, and a token before the client's own word. A wrong token refuses the
    /// client, whatever else it could be.
    fn of(&self, event: &ApiGatewayWebsocketProxyRequest) -> Result<Option<UserId>, ClientError> {
        let principal = event.request_context.authorizer.fields.get("principalId");
        let principal = principal
            .map(|principal| UserId::parse("principalId", principal.as_str().unwrap_or_default()))
            .transpose()?;
        // Without keys of ours the authorizer alone can check a token, and it has let the client through.
        let token = if self.verifier.is_none() && principal.is_some() { None } else { token(event)? };
        let named = token.map(|token| self.verify(token)).transpose()?;
        match (principal.or(named), self.mode) {
            (Some(user), _) => Ok(Some(user)),
            (None, IdentityMode::Verified) => {
                Err(ClientError::Unidentified { reason: "neither an authorizer nor a token says who this is" })
            }
            (None, IdentityMode::Open) => query(event, USER_ID)?.map(|claim| UserId::parse(USER_ID, claim)).transpose(),
        }
    }

    fn verify(&self, token: &str) -> Result<UserId, ClientError> {
        let no_keys = ClientError::Unidentified { reason: "there is a token, but TOKEN_KEYS is not set" };
        self.verifier.as_ref().ok_or(no_keys)?.verify(token)
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

/// The token, which is in the query or in a header. A client may not use both (RFC 6750, section 2), since only one can count.
fn token(event: &ApiGatewayWebsocketProxyRequest) -> Result<Option<&str>, ClientError> {
    match (query(event, TOKEN)?, bearer(event)?) {
        (Some(_), Some(_)) => {
            let expected = "given once, in the query or in the header `Authorization`".to_owned();
            Err(ClientError::InvalidField { field: TOKEN, expected })
        }
        (token, None) | (None, token) => Ok(token),
    }
}

/// The token in the header `Authorization: Bearer …` (RFC 6750, section 2.1). Other schemes are ignored.
fn bearer(event: &ApiGatewayWebsocketProxyRequest) -> Result<Option<&str>, ClientError> {
    let (once, every) = (&event.headers, &event.multi_value_headers);
    let mut values = if every.contains_key(AUTHORIZATION) { every } else { once }.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(ClientError::InvalidField { field: "Authorization", expected: "given once".to_owned() });
    }
    let (scheme, token) = value.as_bytes().split_at_checked(BEARER.len()).unwrap_or_default();
    if !scheme.eq_ignore_ascii_case(BEARER) || !matches!(token, [] | [b' ' | b'\t', ..]) {
        return Ok(None);
    }
    let token = str::from_utf8(token);
    let token = token.map_err(|_| ClientError::Unidentified { reason: "the token in the header is not text" })?;
    Ok(Some(token.trim_start()))
}

/// Stores the connection before the socket opens, so that the client's first message finds it.
///
/// # Errors
///
/// A fault, which fails the invocation.
pub async fn handle(
    backend: &Backend,
    identity: &Identity,
    event: LambdaEvent<ApiGatewayWebsocketProxyRequest>,
) -> Result<ApiGatewayProxyResponse, Error> {
    lifecycle(backend, event, status, async |caller, event| {
        let connection = Connection {
            id: caller.connection_id.clone(),
            user_id: identity.of(event)?,
            connected_at_ms: caller.connected_at_ms,
            is_open: true,
        };
        if let Some(user) = &connection.user_id {
            check_count(backend, user, identity.max_connections).await?;
        }
        Ok(backend.store.put(&connection, caller.deadline).await?)
    })
    .await
}

/// Checks that a user may have one more connection. Handshakes of the same moment do not see each other, so a few more are
/// possible.
async fn check_count(backend: &Backend, user: &UserId, limit: u32) -> Result<(), Failure> {
    if limit > 0 && backend.store.count(user).await? >= limit {
        return Err(ClientError::TooManyConnections { user_id: user.clone(), limit }.into());
    }
    Ok(())
}

/// The status of a refused handshake.
fn status(mistake: &ClientError) -> i64 {
    match mistake {
        ClientError::Unidentified { .. } => 401,
        ClientError::TooManyConnections { .. } => 429,
        _ => 400,
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::Algorithm;
    use serde_json::{Value, json};

    use super::*;
    use crate::example_keys::{at, header, jwk, set};
    use crate::keys::KeySet;

    /// The recorded `$connect` event, with these parameters of the query, `Authorization` headers and principal.
    fn event(query: &[(&str, &str)], headers: &[&str], principal: Option<Value>) -> ApiGatewayWebsocketProxyRequest {
        let mut event: Value = serde_json::from_str(include_str!("../../../tests/events/connect.json")).unwrap();
        for key in ["multiValueQueryStringParameters", "queryStringParameters"] {
            event.as_object_mut().unwrap().remove(key);
        }
        for (name, value) in query {
            event["queryStringParameters"][name] = json!(value);
            let values = &mut event["multiValueQueryStringParameters"][name];
            *values = json!([values.as_array().cloned().unwrap_or_default(), vec![json!(value)]].concat());
        }
        if let Some(last) = headers.last() {
            event["headers"]["Authorization"] = json!(last);
            event["multiValueHeaders"]["Authorization"] = json!(headers);
        }
        if let Some(principal) = principal {
            event["requestContext"]["authorizer"] = json!({ "principalId": principal });
        }
        serde_json::from_value(event).unwrap()
    }

    fn open(query: &[(&str, &str)]) -> Result<Option<UserId>, ClientError> {
        Identity { mode: IdentityMode::Open, verifier: None, max_connections: 0 }.of(&event(query, &[], None))
    }

    fn good(user: &str) -> String {
        let claims = json!({"sub": user, "exp": at(60)});
        crate::example_keys::token(&header(Algorithm::HS256, None), &claims)
    }

    #[test]
    fn in_open_mode_the_query_names_the_user() {
        assert_eq!(open(&[("userId", "2")]).unwrap().unwrap().as_str(), "2");
        assert_eq!(open(&[]).unwrap(), None);
    }

    #[test]
    fn a_wrong_user_id_refuses_the_handshake() {
        let long = "x".repeat(10_240);
        for query in
            [&[("userId", "")][..], &[("userId", "1"), ("userId", "2")], &[("userId", "a\u{7}")], &[("userId", &long)]]
        {
            let mistake = open(query).unwrap_err();
            assert_eq!(status(&mistake), 400, "{mistake}");
        }
    }

    #[test]
    fn an_authorizer_beats_a_token_and_a_token_beats_the_client_and_a_wrong_token_refuses_all_of_them() {
        let keys = || KeySet::parse(&set(&[jwk(Algorithm::HS256, &json!({}))])).unwrap().keys;
        let (token, other) = (good("alice"), good("bob"));
        let (query, header) = (("token", token.as_str()), format!("Bearer {token}"));
        let (mallory, forged) = (("userId", "mallory"), ("token", "x.y.z"));
        let accented = format!("Bearer {token}\u{e9}");
        let two = [header.as_str(), &format!("Bearer {other}")];
        let (alice, carol) = (Ok(Some("alice")), Ok(Some("carol")));
        // Who that is with keys, and without, or the status of the refusal.
        for (query, headers, principal, with_keys, without) in [
            (&[query, mallory][..], &[][..], None, alice, Err(401)),
            (&[mallory], &[header.as_str()], None, alice, Err(401)),
            (&[], &[&header.replace("Bearer ", "BEARER \t")], None, alice, Err(401)),
            (&[forged, mallory], &[], None, Err(401), Err(401)),
            (&[("token", "")], &[], None, Err(401), Err(401)),
            // A token that cannot be read is wrong, too.
            (&[mallory], &["Bearer x.y.z"], None, Err(401), Err(401)),
            (&[mallory], &["Bearer"], None, Err(401), Err(401)),
            (&[mallory], &["bearer "], None, Err(401), Err(401)),
            (&[mallory], &[&accented], None, Err(401), Err(401)),
            (&[mallory], &two, None, Err(400), Err(400)),
            (&[mallory], &[&header, &header], None, Err(400), Err(400)),
            (&[query, query], &[], None, Err(400), Err(400)),
            (&[query], &[&header], None, Err(400), Err(400)),
            // Other schemes are for somebody else.
            (&[query], &["Basic YTpi"], None, alice, Err(401)),
            (&[query], &["Basic \u{e9}"], None, alice, Err(401)),
            (&[query], &["Bearers x"], None, alice, Err(401)),
            // An authorizer has spoken. Without keys of ours the token is for it alone.
            (&[mallory], &[], Some("carol"), carol, carol),
            (&[query, mallory], &[], Some("carol"), carol, carol),
            (&[forged], &[], Some("carol"), Err(401), carol),
            (&[], &["Bearer opaque"], Some("carol"), Err(401), carol),
            (&[], &[&accented], Some("carol"), Err(401), carol),
            (&[], &two, Some("carol"), Err(400), carol),
            (&[query], &[], Some(""), Err(400), Err(400)),
            // Nobody has said anything. Where that is allowed, the client may.
            (&[mallory], &[], None, Err(401), Err(401)),
            (&[mallory], &["Basic YTpi"], None, Err(401), Err(401)),
            (&[], &[], None, Err(401), Err(401)),
        ] {
            let event = event(query, headers, principal.map(Value::from));
            let token = query.iter().any(|(name, _)| *name == "token")
                || headers.iter().any(|header| !header.starts_with("Basic"));
            for mode in [IdentityMode::Verified, IdentityMode::Open] {
                for (has_keys, expected) in [(true, with_keys), (false, without)] {
                    let expected = match mode {
                        IdentityMode::Open if !token && principal.is_none() => Ok(query.first().map(|(_, user)| *user)),
                        _ => expected,
                    };
                    let verifier = has_keys.then(|| Verifier::new(keys(), None, None, 3600));
                    let found = Identity { mode, verifier, max_connections: 0 }.of(&event);
                    let found = found.as_ref().map(|user| user.as_ref().map(UserId::as_str)).map_err(status);
                    assert_eq!(found, expected, "{mode:?} {has_keys} {query:?} {headers:?} {principal:?}");
                }
            }
        }
    }

    #[test]
    fn an_authorizer_that_names_nobody_is_an_error() {
        for principal in [json!(null), json!(7), json!("")] {
            let event = event(&[("userId", "mallory")], &[], Some(principal));
            let mistake =
                Identity { mode: IdentityMode::Open, verifier: None, max_connections: 0 }.of(&event).unwrap_err();
            assert_eq!(status(&mistake), 400, "{mistake}");
        }
    }

    #[test]
    fn a_header_is_found_where_an_event_has_it_only_once() {
        let mut event = event(&[], &["Bearer x.y.z"], None);
        event.multi_value_headers.clear();
        assert_eq!(bearer(&event).unwrap(), Some("x.y.z"));
        // Not text at all.
        event.headers.insert("authorization", b"Bearer \xff".as_slice().try_into().unwrap());
        assert_eq!(status(&bearer(&event).unwrap_err()), 401);
    }
}

//! Who is this? The one moment at which a connection gets its identity.

use aws_config::SdkConfig;
use aws_lambda_events::apigw::{ApiGatewayProxyResponse, ApiGatewayWebsocketProxyRequest};
use http::HeaderValue;
use lambda_runtime::{LambdaEvent, tracing};
use serde_json::Value;
use switchboard_core::backend::Backend;
use switchboard_core::connection::{Connection, UserId};
use switchboard_core::frame::Frame;
use switchboard_core::function::{Caller, Peer, Served, lifecycle, message};
use switchboard_core::rights::{Act, Grants};
use switchboard_core::topic::{Name, Topic};
use switchboard_core::{ClientError, Error, Failure};

use crate::config::{Config, IdentityMode};
use crate::source::Tokens;
use crate::token::Verified;

/// The route of the frames that bring a fresh token.
const AUTH: &str = "auth";

/// The attribute of an authorizer's context that has grants, as JSON text. A context has no lists and no objects.
const TOPICS: &str = "topics";

/// The query parameter of open mode.
const USER_ID: &str = "userId";

/// The query parameter that carries a token, for browsers, which cannot set headers.
const TOKEN: &str = "token";

/// The header that carries a token, and the scheme that it has then.
const AUTHORIZATION: &str = "authorization";
const BEARER: &str = "bearer";

/// The header with the subprotocols that a client offers, and the one that the server chooses.
const SUBPROTOCOL: &str = "sec-websocket-protocol";

/// Decides which user a client is.
#[derive(Debug)]
pub struct Identity {
    mode: IdentityMode,
    tokens: Option<Tokens>,
    origins: Option<Vec<String>>,
}

/// A client's identity, as its handshake proved it.
#[derive(Debug, Default)]
struct Named {
    user: Option<UserId>,
    /// For the log.
    by: Option<&'static str>,
    expires_at_s: Option<i64>,
    grants: Grants,
}

impl Identity {
    /// As configured. Says once per execution environment what an operator should know.
    #[must_use]
    pub fn new(config: Config) -> Self {
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        let Config { identity_mode, tokens, origins, .. } = config;
        Self { mode: identity_mode, tokens, origins }
    }

    /// Reads the keys, if they come from a parameter or from an address.
    ///
    /// # Errors
    ///
    /// [`Error::Config`], when they cannot be read.
    pub async fn read_keys(&self, sdk: &SdkConfig) -> Result<(), Error> {
        match &self.tokens {
            Some(tokens) => tokens.start(sdk).await,
            None => Ok(()),
        }
    }

    /// Browsers say which page opens a connection, and pages cannot change that. Other programs send no origin, and could send
    /// any, so the check is for pages alone.
    fn check_origin(&self, event: &ApiGatewayWebsocketProxyRequest) -> Result<(), ClientError> {
        let (Some(allowed), Some(origin)) = (&self.origins, event.headers.get("origin")) else { return Ok(()) };
        let origin = origin.to_str().unwrap_or_default().to_lowercase();
        if allowed.contains(&origin) {
            return Ok(());
        }
        tracing::debug!(origin, "pages of this origin may not connect");
        Err(ClientError::ForbiddenOrigin)
    }

    /// The authorizer's word counts before a token, and a token before the client's own word. A wrong token refuses the
    /// client, whatever else it could be. Grants come from where the user's name does, and an authorizer may give some to a
    /// client that has no name. A session ends with its token, also where the authorizer names the user.
    async fn of(&self, event: &ApiGatewayWebsocketProxyRequest) -> Result<Named, ClientError> {
        let principal = event.request_context.authorizer.fields.get("principalId");
        let principal = principal
            .map(|principal| UserId::parse("principalId", principal.as_str().unwrap_or_default()))
            .transpose()?;
        // Without keys of ours the authorizer alone can check a token, and it has let the client through.
        let token = if self.tokens.is_none() && principal.is_some() { None } else { token(event)? };
        let named = match token {
            Some(token) => Some(self.verify(token).await?),
            None => None,
        };
        let by_authorizer = granted_by_authorizer(event)?;
        let expires_at_s = named.as_ref().map(|token| token.expires_at_s);
        let (user, by, by_token) = match (principal, named, self.mode) {
            (Some(user), _, _) => (Some(user), Some("authorizer"), None),
            (None, Some(Verified { user, grants, .. }), _) => (Some(user), Some("token"), Some(grants)),
            (None, None, IdentityMode::Verified) => {
                return Err(ClientError::Unidentified { reason: "neither an authorizer nor a token says who this is" });
            }
            (None, None, IdentityMode::Open) => {
                let user = query(event, USER_ID)?.map(|claim| UserId::parse(USER_ID, claim)).transpose()?;
                let by = user.as_ref().map(|_| "client");
                (user, by, None)
            }
        };
        Ok(Named { user, by, expires_at_s, grants: by_authorizer.or(by_token).unwrap_or_default() })
    }

    async fn verify(&self, token: &str) -> Result<Verified, ClientError> {
        let no_keys =
            || ClientError::InvalidToken { reason: "there is a token, but no keys are configured".to_owned() };
        self.tokens.as_ref().ok_or_else(no_keys)?.verify(token).await
    }
}

/// The grants in an authorizer's context, if it has any.
fn granted_by_authorizer(event: &ApiGatewayWebsocketProxyRequest) -> Result<Option<Grants>, ClientError> {
    let Some(topics) = event.request_context.authorizer.fields.get(TOPICS) else { return Ok(None) };
    let topics = topics.as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
    let topics = topics.ok_or_else(|| "`topics` must be JSON text".to_owned());
    let wrong = |problem| ClientError::InvalidToken { reason: format!("the authorizer gave wrong grants: {problem}") };
    topics.and_then(|topics| Grants::parse(&topics)).map(Some).map_err(wrong)
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

/// The token, which is in the query or in a header. A client may use one way only (RFC 6750, section 2), since only one token
/// can count.
fn token(event: &ApiGatewayWebsocketProxyRequest) -> Result<Option<&str>, ClientError> {
    let tokens = [query(event, TOKEN)?, bearer(event)?, offered(event)?];
    let mut tokens = tokens.into_iter().flatten();
    let token = tokens.next();
    if tokens.next().is_some() {
        let expected = "given once, in the query or in a header".to_owned();
        return Err(ClientError::InvalidField { field: TOKEN, expected });
    }
    Ok(token)
}

/// The token in the header `Sec-WebSocket-Protocol: bearer, <token>`. A browser can set no other header, and an address ends up
/// in logs.
fn offered(event: &ApiGatewayWebsocketProxyRequest) -> Result<Option<&str>, ClientError> {
    let unreadable = |_| ClientError::Unidentified { reason: "the subprotocols are not text" };
    let offer = event.headers.get(SUBPROTOCOL).map(|value| value.to_str().map_err(unreadable)).transpose()?;
    let mut offers = offer.unwrap_or_default().split(',').map(str::trim);
    if offers.next() != Some(BEARER) {
        return Ok(None);
    }
    let missing = ClientError::Unidentified { reason: "there is no token behind the subprotocol `bearer`" };
    offers.next().filter(|token| !token.is_empty()).map(Some).ok_or(missing)
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
    if !scheme.eq_ignore_ascii_case(BEARER.as_bytes()) || !matches!(token, [] | [b' ' | b'\t', ..]) {
        return Ok(None);
    }
    let token = str::from_utf8(token);
    let token = token.map_err(|_| ClientError::Unidentified { reason: "the token in the header is not text" })?;
    Ok(Some(token.trim_start()))
}

/// Serves `$connect` and `auth`, the routes on which a client says who it is. A handshake stores the connection before the
/// socket opens, so that the client's first message finds it.
///
/// # Errors
///
/// A fault, which fails the invocation.
pub async fn handle(
    backend: &Backend,
    identity: &Identity,
    event: LambdaEvent<ApiGatewayWebsocketProxyRequest>,
) -> Result<ApiGatewayProxyResponse, Error> {
    if event.payload.request_context.route_key.as_deref() == Some(AUTH) {
        // Without the box, the futures inside each other are more than the compiler takes.
        let renew = async |caller: &Caller, frame: &Frame<'_>| Box::pin(renew(backend, identity, caller, frame)).await;
        return message(backend, event, renew).await;
    }
    let offers_bearer = matches!(offered(&event.payload), Ok(Some(_)));
    let mut response = lifecycle(backend, event, status, async |caller, event| {
        identity.check_origin(event)?;
        let Named { user, by, expires_at_s, grants } = identity.of(event).await?;
        let connection = Connection {
            id: caller.connection_id.clone(),
            user_id: user,
            connected_at_ms: caller.connected_at_ms,
            is_open: true,
            expires_at_s,
            grants,
        };
        if let Some(user) = &connection.user_id {
            tokio::try_join!(
                check_count(backend, user, backend.config.max_connections_per_user),
                check_lock(backend, user)
            )?;
        }
        backend.store.put(&connection, caller.deadline).await?;
        Ok(Peer { user: connection.user_id, named_by: by })
    })
    .await?;
    if offers_bearer {
        // A browser fails the connection when the server chooses none of the subprotocols that it offered.
        response.headers.insert(SUBPROTOCOL, HeaderValue::from_static(BEARER));
    }
    Ok(response)
}

/// Checks that a user may have one more connection. Handshakes of the same moment do not see each other, so a few more are
/// possible.
async fn check_count(backend: &Backend, user: &UserId, limit: u32) -> Result<(), Failure> {
    if limit > 0 && backend.store.count(user).await? >= limit {
        return Err(ClientError::TooManyConnections { user_id: user.clone(), limit }.into());
    }
    Ok(())
}

/// Checks that the user is not locked out for sending too fast.
async fn check_lock(backend: &Backend, user: &UserId) -> Result<(), Failure> {
    match backend.config.max_frames_per_second > 0 && backend.store.is_locked_out(user).await? {
        true => Err(ClientError::LockedOut { user_id: user.clone() }.into()),
        false => Ok(()),
    }
}

/// Gives an open connection the session of a fresh token of its user. What that does not allow is unsubscribed at once.
async fn renew(backend: &Backend, identity: &Identity, caller: &Caller, frame: &Frame<'_>) -> Result<Served, Failure> {
    let Verified { user, expires_at_s, grants } = identity.verify(&frame.token()?).await?;
    let (rules, act) = (&backend.config.topic_rules, Act::Subscribe);
    let keeps =
        |topic: &Topic, grants: &Grants| rules.allow(act, &Name::Topic(topic.clone()), Some(&user), grants).is_ok();
    let connection = Connection {
        id: caller.connection_id.clone(),
        user_id: Some(user.clone()),
        connected_at_ms: caller.connected_at_ms,
        is_open: true,
        expires_at_s: Some(expires_at_s),
        grants,
    };
    let removed = backend.store.renew(&connection, keeps, caller.deadline).await?;
    Ok(Served::Renewed { removed })
}

/// The status of a refused handshake.
fn status(mistake: &ClientError) -> i64 {
    match mistake {
        ClientError::Unidentified { .. } | ClientError::InvalidToken { .. } => 401,
        ClientError::ForbiddenOrigin => 403,
        ClientError::TooManyConnections { .. } | ClientError::LockedOut { .. } => 429,
        _ => 400,
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::Algorithm;
    use serde_json::{Value, json};
    use switchboard_core::rights::Pattern;

    use super::*;
    use crate::example_keys::{at, header, jwk, set};
    use crate::keys::{KeySet, Origin};
    use crate::token::Verifier;

    /// The recorded `$connect` event, with these parameters of the query, `Authorization` headers and principal.
    fn event(query: &[(&str, &str)], headers: &[&str], principal: Option<Value>) -> ApiGatewayWebsocketProxyRequest {
        authorized(query, headers, principal.map(|principal| json!({ "principalId": principal })))
    }

    /// The same with all that an authorizer has said.
    fn authorized(
        query: &[(&str, &str)],
        headers: &[&str],
        authorizer: Option<Value>,
    ) -> ApiGatewayWebsocketProxyRequest {
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
        if let Some(authorizer) = authorizer {
            event["requestContext"]["authorizer"] = authorizer;
        }
        serde_json::from_value(event).unwrap()
    }

    async fn open(query: &[(&str, &str)]) -> Result<Option<UserId>, ClientError> {
        let identity = Identity { mode: IdentityMode::Open, tokens: None, origins: None };
        identity.of(&event(query, &[], None)).await.map(|named| named.user)
    }

    fn good(user: &str) -> String {
        let claims = json!({"sub": user, "exp": at(60)});
        crate::example_keys::token(&header(Algorithm::HS256, None), &claims)
    }

    #[tokio::test]
    async fn in_open_mode_the_query_names_the_user() {
        assert_eq!(open(&[("userId", "2")]).await.unwrap().unwrap().as_str(), "2");
        assert_eq!(open(&[]).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_wrong_user_id_refuses_the_handshake() {
        let long = "x".repeat(10_240);
        for query in
            [&[("userId", "")][..], &[("userId", "1"), ("userId", "2")], &[("userId", "a\u{7}")], &[("userId", &long)]]
        {
            let mistake = open(query).await.unwrap_err();
            assert_eq!(status(&mistake), 400, "{mistake}");
        }
    }

    #[tokio::test]
    async fn an_authorizer_beats_a_token_and_a_token_beats_the_client_and_a_wrong_token_refuses_all_of_them() {
        let keys = || KeySet::parse(&set(&[jwk(Algorithm::HS256, &json!({}))]), Origin::Vault).unwrap().keys;
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
                    let tokens = has_keys.then(|| Verifier::new(keys(), None, None, 3600).into());
                    let found = Identity { mode, tokens, origins: None }.of(&event).await;
                    let found = found.as_ref().map(|named| named.user.as_ref().map(UserId::as_str)).map_err(status);
                    assert_eq!(found, expected, "{mode:?} {has_keys} {query:?} {headers:?} {principal:?}");
                }
            }
        }
    }

    #[tokio::test]
    async fn grants_come_from_where_the_users_name_does_and_sessions_end_with_tokens() {
        let claims = json!({"sub": "alice", "exp": at(60), "topics": {"subscribe": ["by.token"]}});
        let token = crate::example_keys::token(&header(Algorithm::HS256, None), &claims);
        let text = |topics: &str| json!({"principalId": "alice", "topics": topics});
        let by_authorizer = text(r#"{"subscribe":["by.authorizer"]}"#);
        let nameless = json!({"topics": r#"{"subscribe":["by.authorizer"]}"#});
        let no_topics = json!({"principalId": "alice"});
        let verifier = || {
            Verifier::new(
                KeySet::parse(&set(&[jwk(Algorithm::HS256, &json!({}))]), Origin::Vault).unwrap().keys,
                None,
                None,
                3600,
            )
        };
        for (query, authorizer, granted, expires) in [
            (vec![("token", token.as_str())], None, "by.token", true),
            (vec![("token", token.as_str())], Some(&by_authorizer), "by.authorizer", true),
            (vec![("token", token.as_str())], Some(&no_topics), "", true),
            (vec![], Some(&by_authorizer), "by.authorizer", false),
            (vec![("userId", "alice")], Some(&nameless), "by.authorizer", false),
            (vec![("userId", "alice")], None, "", false),
        ] {
            let event = authorized(&query, &[], authorizer.cloned());
            let identity = Identity { mode: IdentityMode::Open, tokens: Some(verifier().into()), origins: None };
            let named = identity.of(&event).await.unwrap();
            assert_eq!(named.user.unwrap().as_str(), "alice");
            assert_eq!(named.expires_at_s.is_some(), expires, "{query:?} {authorizer:?}");
            for topic in ["by.token", "by.authorizer"] {
                let is_granted = named.grants.contain(Act::Subscribe, &Pattern::of(&Topic::parse(topic).unwrap()));
                assert_eq!(is_granted, topic == granted, "{query:?} {authorizer:?}");
            }
        }
        for (topics, problem) in [
            (json!({"subscribe": []}), "`topics` must be JSON text"),
            (json!("{"), "`topics` must be JSON text"),
            (json!(7), "`topics` must be JSON text"),
            (json!("[]"), "`topics` must be an object"),
            (json!(r#"{"publish":["a*b"]}"#), "`topics.publish[0]` may have a `*` only at its end"),
        ] {
            let event = authorized(&[], &[], Some(json!({"principalId": "alice", "topics": topics})));
            let identity = Identity { mode: IdentityMode::Verified, tokens: None, origins: None };
            let mistake = identity.of(&event).await.unwrap_err();
            assert_eq!(
                mistake.to_string(),
                format!("the authorizer gave wrong grants: {problem}")
                    .replace("an object", "an object with the lists `subscribe` and `publish`")
            );
            assert_eq!(status(&mistake), 401);
        }
    }

    #[tokio::test]
    async fn an_authorizer_that_names_nobody_is_an_error() {
        for principal in [json!(null), json!(7), json!("")] {
            let event = event(&[("userId", "mallory")], &[], Some(principal));
            let mistake =
                Identity { mode: IdentityMode::Open, tokens: None, origins: None }.of(&event).await.unwrap_err();
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

    #[test]
    fn a_token_may_be_offered_as_a_subprotocol() {
        let offered_by = |values: &str| {
            let mut event = event(&[], &[], None);
            event.headers.insert(SUBPROTOCOL, values.parse().unwrap());
            offered(&event).map(|token| token.map(str::to_owned)).map_err(|mistake| status(&mistake))
        };
        assert_eq!(offered_by("bearer, x.y.z"), Ok(Some("x.y.z".to_owned())));
        assert_eq!(offered_by("bearer,x.y.z,chat"), Ok(Some("x.y.z".to_owned())));
        assert_eq!(offered_by("chat, bearer"), Ok(None));
        assert_eq!((offered_by("bearer"), offered_by("bearer, ")), (Err(401), Err(401)));
        let mut both = event(&[("token", "x.y.z")], &[], None);
        both.headers.insert(SUBPROTOCOL, "bearer, x.y.z".parse().unwrap());
        assert_eq!(status(&token(&both).unwrap_err()), 400);
    }

    #[test]
    fn pages_of_other_origins_are_refused() {
        let check = |origins: Option<&str>, origin: Option<&str>| {
            let origins = origins.map(|origin| vec![origin.to_owned()]);
            let identity = Identity { mode: IdentityMode::Open, tokens: None, origins };
            let mut event = event(&[], &[], None);
            event.headers.remove("origin");
            if let Some(origin) = origin {
                event.headers.insert("origin", origin.parse().unwrap());
            }
            identity.check_origin(&event).map_err(|mistake| status(&mistake))
        };
        let ours = Some("https://chat.example.org");
        assert_eq!(check(ours, Some("https://chat.example.org")), Ok(()));
        assert_eq!(check(ours, Some("HTTPS://Chat.example.org")), Ok(()));
        for other in
            ["https://evil.example", "http://chat.example.org", "https://chat.example.org.evil.example", "null", ""]
        {
            assert_eq!(check(ours, Some(other)), Err(403), "{other}");
        }
        // A program that is no browser, and a stage without a list.
        assert_eq!((check(ours, None), check(None, Some("https://evil.example"))), (Ok(()), Ok(())));
    }
}

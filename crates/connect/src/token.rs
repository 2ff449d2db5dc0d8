//! Tokens, which say which user a client is.
//!
//! A token is a [JSON Web Token](https://www.rfc-editor.org/rfc/rfc7519) whose `sub` is the user. An identity provider or a
//! backend signs it with a key that `source.rs` reads. It may also grant topics, in `topics`. A session ends with its token.

use std::fmt;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Validation};
use serde::Deserialize;
use serde_json::Value;
use switchboard_core::ClientError;
use switchboard_core::connection::UserId;
use switchboard_core::rights::Grants;

use crate::keys::Key;

/// How many seconds the clock of the signer may differ from ours. A token is good this much earlier and longer than it says.
const LEEWAY_S: u64 = 60;

/// Checks tokens. Keys are not in its debug output.
pub(crate) struct Verifier {
    keys: Vec<Key>,
    /// The rules for every token. The algorithm is not among them, because each key has its own.
    validation: Validation,
    max_lifetime_s: u64,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Verifier").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

/// The claims that are read here. They may have any type, because `jsonwebtoken` checks their types and then says which one
/// is wrong; an error of deserialization would not.
#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    sub: Value,
    #[serde(default)]
    exp: Value,
    #[serde(default)]
    topics: Value,
}

/// What a good token says.
#[derive(Debug)]
pub(crate) struct Verified {
    /// Its `sub`.
    pub(crate) user: UserId,
    /// The epoch second from which it is no longer good: its `exp`, and the leeway.
    pub(crate) expires_at_s: i64,
    /// Its `topics`.
    pub(crate) grants: Grants,
}

impl Verifier {
    /// Every token must be for `audience` and of `issuer`, if these are given, and expire within `max_lifetime_s` seconds.
    pub(crate) fn new(keys: Vec<Key>, audience: Option<String>, issuer: Option<String>, max_lifetime_s: u32) -> Self {
        let mut validation = Validation::new(Algorithm::default());
        validation.leeway = LEEWAY_S;
        validation.validate_nbf = true;
        let mut required = vec!["exp", "sub"];
        if let Some(audience) = audience {
            validation.set_audience(&[audience]);
            required.push("aud");
        }
        if let Some(issuer) = issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        validation.set_required_spec_claims(&required);
        Self { keys, validation, max_lifetime_s: max_lifetime_s.into() }
    }

    /// The same rules with other keys.
    pub(crate) fn with_keys(&self, keys: Vec<Key>) -> Self {
        Self { keys, validation: self.validation.clone(), max_lifetime_s: self.max_lifetime_s }
    }

    /// Whether it has the key that a token names. A token that names none, or that cannot be read, needs no other key.
    pub(crate) fn knows(&self, token: &str) -> bool {
        let header = jsonwebtoken::decode_header(token);
        header.is_err() || header.is_ok_and(|header| self.keys.iter().any(|key| key.is_meant_by(&header)))
    }

    /// The user whom a token names, and what it says of the session.
    ///
    /// # Errors
    ///
    /// [`ClientError`], when it is not signed with a known key, not valid now or not for us, names nobody, or has wrong grants.
    pub(crate) fn verify(&self, token: &str) -> Result<Verified, ClientError> {
        let claims = self.claims(token).map_err(|reason| ClientError::InvalidToken { reason: reason.to_owned() })?;
        let user = UserId::parse("sub", claims.sub.as_str().unwrap_or_default())?;
        let wrong = |problem| ClientError::InvalidToken { reason: format!("the token has wrong grants: {problem}") };
        let grants = Grants::parse(&claims.topics).map_err(wrong)?;
        #[expect(clippy::cast_possible_truncation, reason = "a cast from float saturates, and a fraction may go")]
        let expiry_s = claims.exp.as_f64().unwrap_or_default() as i64;
        Ok(Verified { user, expires_at_s: expiry_s.saturating_add_unsigned(LEEWAY_S), grants })
    }

    /// The claims of a good token, or why it is not good.
    fn claims(&self, token: &str) -> Result<Claims, &'static str> {
        let header = jsonwebtoken::decode_header(token)
            .map_err(|_| "the token is not a JSON Web Token, or its algorithm is not known here")?;
        // `crit` lists extensions that a reader must understand (RFC 7515, section 4.1.11), and this one understands none.
        if header.crit.is_some() {
            return Err("the token's header has `crit`, and no extension is understood here");
        }
        if !header.typ.as_deref().is_none_or(is_for_sessions) {
            return Err("the token's header has a `typ` other than `JWT` and `at+jwt`, so it is for another purpose");
        }
        let mut meant = self.keys.iter().filter(|key| key.is_meant_by(&header)).peekable();
        if meant.peek().is_none() {
            return Err("no key here has the token's `kid`");
        }
        let mut refused = "the token's algorithm does not fit its key";
        for key in meant.filter(|key| key.algorithms.contains(&header.alg)) {
            let validation = Validation { algorithms: key.algorithms.clone(), ..self.validation.clone() };
            match jsonwebtoken::decode::<Claims>(token, &key.key, &validation) {
                Ok(token) => return self.expires_in_time(token.claims),
                Err(error) if *error.kind() == ErrorKind::InvalidSignature => {
                    refused = "the token's signature is wrong"
                }
                // The signature is right, so no other key can do better.
                Err(error) => return Err(self.reason(error.kind())),
            }
        }
        Err(refused)
    }

    /// The claims of a token that does not last too long. One that lasts for ever is a password that nobody can change.
    fn expires_in_time(&self, claims: Claims) -> Result<Claims, &'static str> {
        let latest = jsonwebtoken::get_current_timestamp() + self.max_lifetime_s + LEEWAY_S;
        if claims.exp.as_f64().is_some_and(|expiry| expiry <= latest as f64) {
            Ok(claims)
        } else {
            Err("the token expires later than TOKEN_MAX_LIFETIME_S allows")
        }
    }

    /// Why a token is refused although its signature is right.
    fn reason(&self, error: &ErrorKind) -> &'static str {
        match error {
            ErrorKind::ExpiredSignature => "the token has expired",
            ErrorKind::ImmatureSignature => "the token is not valid yet: its `nbf` is in the future",
            // A reader must find itself in `aud` (RFC 7519, section 4.1.3), and without TOKEN_AUDIENCE it has no name.
            ErrorKind::InvalidAudience if self.validation.aud.is_none() => {
                "the token is for another audience: it has an `aud`, and TOKEN_AUDIENCE is not set"
            }
            ErrorKind::InvalidAudience => "the token is for another audience: its `aud` is not TOKEN_AUDIENCE",
            ErrorKind::InvalidIssuer => "the token is from another issuer: its `iss` is not TOKEN_ISSUER",
            ErrorKind::MissingRequiredClaim(claim) => match claim.as_str() {
                "exp" => "the token has no usable `exp`",
                "sub" => "the token has no usable `sub`",
                "aud" => "the token has no usable `aud`, and TOKEN_AUDIENCE asks for one",
                _ => "the token has no usable `iss`, and TOKEN_ISSUER asks for one",
            },
            ErrorKind::InvalidClaimFormat(_) => "the token has an `nbf` that is not a time",
            _ => "the token is not a JSON Web Token: its claims cannot be read",
        }
    }
}

/// Whether a `typ` may be that of a token which says who somebody is. Issuers sign other things with the same keys, such as
/// logout tokens and security events, and those say so (RFC 8725, section 3.11). Access tokens may have a type of their own
/// (RFC 9068, section 2.1). Case does not count, and neither does the prefix (RFC 7515, section 4.1.9).
fn is_for_sessions(kind: &str) -> bool {
    let kind = kind.to_ascii_lowercase();
    matches!(kind.strip_prefix("application/").unwrap_or(&kind), "jwt" | "at+jwt")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::example_keys::{at, header, jwk, set, token};
    use crate::keys::{KeySet, Origin};

    const A_DAY_S: u32 = 24 * 60 * 60;

    fn verifier(keys: &[Value]) -> Verifier {
        let KeySet { keys, skipped } = KeySet::parse(&set(keys), Origin::Vault).unwrap();
        assert!(skipped.is_empty(), "{skipped:?}");
        Verifier::new(keys, None, None, A_DAY_S)
    }

    fn hs256(id: Option<&str>) -> Value {
        jwk(Algorithm::HS256, &json!({ "kid": id }))
    }

    fn claims() -> Value {
        json!({"sub": "alice", "exp": at(60), "anything": [1]})
    }

    fn reason(verifier: &Verifier, token: &str) -> String {
        verifier.verify(token).unwrap_err().to_string()
    }

    #[test]
    fn a_token_of_every_algorithm_names_its_user() {
        for algorithm in [
            Algorithm::HS256,
            Algorithm::HS384,
            Algorithm::HS512,
            Algorithm::RS256,
            Algorithm::PS512,
            Algorithm::ES256,
            Algorithm::ES384,
            Algorithm::EdDSA,
        ] {
            let verifier = verifier(&[jwk(algorithm, &json!({"kid": "1"}))]);
            for id in [Some("1"), None] {
                let token = token(&header(algorithm, id), &claims());
                assert_eq!(verifier.verify(&token).unwrap().user.as_str(), "alice", "{algorithm:?}");
                // Not the last character, whose bits are not all part of the signature.
                let (claims, signature) = token.rsplit_once('.').unwrap();
                let other = if signature.starts_with('A') { 'B' } else { 'A' };
                let forged = format!("{claims}.{other}{}", &signature[1..]);
                assert_eq!(reason(&verifier, &forged), "the token's signature is wrong", "{algorithm:?}");
            }
        }
    }

    #[test]
    fn a_token_with_a_kid_is_tried_with_every_key_of_that_name_and_with_no_other() {
        let token = |id| token(&header(Algorithm::HS256, id), &claims());
        let other = |id: Option<&str>| jwk(Algorithm::HS256, &json!({"kid": id, "k": "B".repeat(42) + "A"}));
        let no_key = Err("no key here has the token's `kid`");
        let wrong = Err("the token's signature is wrong");
        for (keys, id, expected) in [
            (vec![other(Some("1")), hs256(Some("2"))], Some("2"), Ok("alice")),
            (vec![other(Some("2")), hs256(Some("2"))], Some("2"), Ok("alice")),
            (vec![hs256(Some("1")), other(Some("2"))], Some("2"), wrong),
            (vec![hs256(Some("1"))], Some("2"), no_key),
            (vec![hs256(None)], Some("2"), no_key),
            // A token without a name may mean any key, whether that has a name or not.
            (vec![hs256(None)], None, Ok("alice")),
            (vec![hs256(Some("1"))], None, Ok("alice")),
            (vec![other(Some("1")), other(None), hs256(None)], None, Ok("alice")),
            (vec![other(Some("1")), hs256(Some("2"))], None, Ok("alice")),
            (vec![other(Some("1")), other(None)], None, wrong),
        ] {
            let found = verifier(&keys).verify(&token(id));
            let found = found.as_ref().map(|token| token.user.as_str()).map_err(ToString::to_string);
            assert_eq!(found, expected.map_err(str::to_owned), "{id:?} {}", set(&keys));
        }
    }

    #[test]
    fn keys_of_one_name_are_told_apart_by_their_kind_and_algorithm() {
        let token = token(&header(Algorithm::RS256, Some("k")), &claims());
        let key = |algorithm| jwk(algorithm, &json!({"kid": "k"}));
        for keys in [
            [key(Algorithm::RS512), key(Algorithm::RS256)],
            [key(Algorithm::ES256), key(Algorithm::RS256)],
            [key(Algorithm::RS256), key(Algorithm::HS256)],
        ] {
            assert_eq!(verifier(&keys).verify(&token).unwrap().user.as_str(), "alice", "{}", set(&keys));
        }
        let keys = [key(Algorithm::RS512), key(Algorithm::ES256)];
        assert_eq!(reason(&verifier(&keys), &token), "the token's algorithm does not fit its key");
    }

    #[test]
    fn a_token_cannot_choose_how_a_key_checks_it() {
        let public = jwk(Algorithm::RS256, &json!({"alg": null}));
        let pinned = jwk(Algorithm::HS384, &json!({"k": "A".repeat(86), "alg": "HS256"}));
        for (key, algorithm) in [
            // The public key would be a secret that everybody knows.
            (&public, Algorithm::HS256),
            (&jwk(Algorithm::ES256, &json!({"alg": null})), Algorithm::HS256),
            (&jwk(Algorithm::EdDSA, &json!({"alg": null})), Algorithm::HS512),
            (&public, Algorithm::EdDSA),
            (&jwk(Algorithm::ES256, &json!({"alg": null})), Algorithm::ES384),
            // The right key, and another algorithm than its own.
            (&pinned, Algorithm::HS384),
            (&jwk(Algorithm::RS256, &json!({})), Algorithm::PS256),
            // A secret that is too short for the digest.
            (&jwk(Algorithm::HS256, &json!({"alg": null})), Algorithm::HS512),
        ] {
            for id in [Some("1"), None] {
                let mut key = key.clone();
                key["kid"] = json!("1");
                let token = token(&header(algorithm, id), &claims());
                let found = reason(&verifier(&[key]), &token);
                assert_eq!(found, "the token's algorithm does not fit its key", "{algorithm:?}");
            }
        }
        // The modulus as the secret, as text and as bytes.
        let modulus = public["n"].as_str().unwrap();
        let by_bytes = jsonwebtoken::EncodingKey::from_urlsafe_base64_secret(&format!("{modulus}==")).unwrap();
        for secret in [jsonwebtoken::EncodingKey::from_secret(modulus.as_bytes()), by_bytes] {
            let token = jsonwebtoken::encode(&header(Algorithm::HS256, None), &claims(), &secret).unwrap();
            assert_eq!(
                reason(&verifier(std::slice::from_ref(&public)), &token),
                "the token's algorithm does not fit its key"
            );
        }
        let any = jwk(Algorithm::HS384, &json!({"alg": null}));
        verifier(&[any]).verify(&token(&header(Algorithm::HS384, None), &claims())).unwrap();
    }

    #[test]
    fn a_token_whose_claims_are_not_right_is_refused_with_its_reason() {
        let verifier = verifier(&[hs256(None)]);
        for (claims, expected) in [
            (json!({"sub": "a", "exp": at(-3600)}), "the token has expired"),
            (json!({"sub": "a", "exp": at(3600), "nbf": at(1800)}), "the token is not valid yet"),
            (json!({"sub": "a", "exp": at(60), "nbf": "0"}), "the token has an `nbf` that is not a time"),
            (json!({"sub": "a"}), "the token has no usable `exp`"),
            (json!({"sub": "a", "exp": null}), "the token has no usable `exp`"),
            (json!({"sub": "a", "exp": "never"}), "the token has no usable `exp`"),
            (json!({"sub": "a", "exp": -1}), "the token has no usable `exp`"),
            (json!({"exp": at(60)}), "the token has no usable `sub`"),
            (json!({"sub": 7, "exp": at(60)}), "the token has no usable `sub`"),
            (json!({"sub": "", "exp": at(60)}), "the field `sub` must be"),
            (json!({"sub": "a\u{7}", "exp": at(60)}), "the field `sub` must be"),
            (json!({"sub": "a", "exp": at(60), "aud": "others"}), "the token is for another audience"),
            (
                json!({"sub": "a", "exp": at(60), "topics": ["t"]}),
                "the token has wrong grants: `topics` must be an object",
            ),
            (
                json!({"sub": "a", "exp": at(60), "topics": {"publish": "t"}}),
                "the token has wrong grants: `topics.publish`",
            ),
            (
                json!({"sub": "a", "exp": at(60), "topics": {"subscribe": ["a*b"]}}),
                "the token has wrong grants: `topics.subscribe[0]` may have a `*` only at its end",
            ),
            (
                json!({"sub": "a", "exp": at(60), "topics": {"subscribe": vec!["t"; 10_000]}}),
                "the token has wrong grants: `topics` must have at most 100 patterns",
            ),
            (json!([]), "the token is not a JSON Web Token"),
        ] {
            let reason = reason(&verifier, &token(&header(Algorithm::HS256, None), &claims));
            assert!(reason.starts_with(expected), "{claims}: {reason}");
        }
    }

    #[test]
    fn a_token_expires_within_the_longest_lifetime_and_clocks_may_differ_by_the_leeway() {
        let leeway = i64::try_from(LEEWAY_S).unwrap();
        let day = i64::from(A_DAY_S);
        let keys = || KeySet::parse(&set(&[hs256(None)]), Origin::Vault).unwrap().keys;
        let hour = Verifier::new(keys(), None, None, 60 * 60);
        let day_long = Verifier::new(keys(), None, None, A_DAY_S);
        let far = Some("the token expires later than TOKEN_MAX_LIFETIME_S allows");
        // Ten seconds for a machine that is busy.
        for (verifier, expiry, expected) in [
            (&day_long, json!(at(day)), None),
            (&day_long, json!(at(day + leeway)), None),
            (&day_long, json!(at(day + leeway + 10)), far),
            (&day_long, json!(1_000_000_000_000_000_000_u64), far),
            (&day_long, json!(1e18), far),
            (&hour, json!(at(60 * 60)), None),
            (&hour, json!(at(60 * 60 + leeway + 10)), far),
            (&day_long, json!(at(10 - leeway)), None),
            (&day_long, json!(at(-leeway - 10)), Some("the token has expired")),
        ] {
            let token = token(&header(Algorithm::HS256, None), &json!({"sub": "a", "exp": expiry}));
            let found = verifier.verify(&token).err().map(|error| error.to_string());
            assert_eq!(found.as_deref(), expected, "{expiry}");
        }
        for (start, good) in [(leeway, true), (leeway + 10, false)] {
            let claims = json!({"sub": "a", "exp": at(600), "nbf": at(start)});
            assert_eq!(day_long.verify(&token(&header(Algorithm::HS256, None), &claims)).is_ok(), good, "{start}");
        }
    }

    #[test]
    fn a_session_ends_when_its_token_is_no_longer_good_and_has_its_grants() {
        let verifier = verifier(&[hs256(None)]);
        let end = at(600);
        for (expiry, topics) in [
            (json!(end), json!({"subscribe": ["room.*"], "publish": ["room.7"]})),
            (json!(end as f64 + 0.5), json!(null)),
        ] {
            let claims = json!({"sub": "a", "exp": expiry, "topics": topics});
            let token = verifier.verify(&token(&header(Algorithm::HS256, None), &claims)).unwrap();
            assert_eq!(token.expires_at_s, end + 60);
            assert_eq!(token.grants, Grants::parse(&topics).unwrap());
        }
    }

    #[test]
    fn an_extension_that_a_token_calls_critical_refuses_it() {
        let verifier = verifier(&[hs256(None)]);
        for critical in [vec!["exp2"], vec!["b64"], vec![]] {
            let critical = Some(critical.into_iter().map(str::to_owned).collect());
            let header = jsonwebtoken::Header { crit: critical, ..header(Algorithm::HS256, None) };
            let reason = reason(&verifier, &token(&header, &claims()));
            assert_eq!(reason, "the token's header has `crit`, and no extension is understood here");
        }
    }

    #[test]
    fn a_token_that_says_it_is_for_another_purpose_is_refused() {
        let verifier = verifier(&[hs256(None)]);
        for (kind, good) in [
            (None, true),
            (Some("JWT"), true),
            (Some("jwt"), true),
            (Some("at+jwt"), true),
            (Some("application/at+JWT"), true),
            (Some("logout+jwt"), false),
            (Some("secevent+jwt"), false),
            (Some("dpop+jwt"), false),
            (Some("application/"), false),
            (Some(""), false),
        ] {
            let header = jsonwebtoken::Header { typ: kind.map(str::to_owned), ..header(Algorithm::HS256, None) };
            let found = verifier.verify(&token(&header, &claims())).err().map(|error| error.to_string());
            let expected = "the token's header has a `typ` other than `JWT` and `at+jwt`, so it is for another purpose";
            assert_eq!(found.as_deref(), (!good).then_some(expected), "{kind:?}");
        }
    }

    /// Cognito signs both with the same keys. One configuration takes only one of them.
    #[test]
    fn an_id_token_and_an_access_token_of_cognito_do_not_both_pass() {
        let keys = || KeySet::parse(&set(&[hs256(None)]), Origin::Vault).unwrap().keys;
        let id = json!({"sub": "a", "exp": at(60), "token_use": "id", "aud": "app"});
        let access = json!({"sub": "a", "exp": at(60), "token_use": "access", "client_id": "app", "scope": "openid"});
        for (audience, takes_id, takes_access) in [(None, false, true), (Some("app"), true, false)] {
            let verifier = Verifier::new(keys(), audience.map(str::to_owned), None, A_DAY_S);
            for (claims, good) in [(&id, takes_id), (&access, takes_access)] {
                let token = token(&header(Algorithm::HS256, None), claims);
                assert_eq!(verifier.verify(&token).is_ok(), good, "{audience:?} {claims}");
            }
        }
    }

    #[test]
    fn what_is_not_a_token_is_refused() {
        let verifier = verifier(&[hs256(Some("1"))]);
        let good = token(&header(Algorithm::HS256, Some("1")), &claims());
        let (signed, _) = good.rsplit_once('.').unwrap();
        let body = signed.split_once('.').unwrap().1;
        // {"alg":"none","kid":"1"} and {"alg":"ES512","kid":"1"}
        let unsigned = format!("eyJhbGciOiJub25lIiwia2lkIjoiMSJ9.{body}.");
        let unknown = format!("eyJhbGciOiJFUzUxMiIsImtpZCI6IjEifQ.{body}.AAAA");
        for no_token in ["", ".", "..", "a.b.c", "alice", signed, &unsigned, &unknown, &format!("{good}.")] {
            assert!(reason(&verifier, no_token).starts_with("the token is not a JSON Web Token"), "{no_token}");
        }
    }

    #[test]
    fn audience_and_issuer_must_be_those_that_are_asked_for() {
        let text = |text: &str| Some(text.to_owned());
        let keys = KeySet::parse(&set(&[hs256(None)]), Origin::Vault).unwrap().keys;
        let verifier = Verifier::new(keys, text("chat"), text("us"), A_DAY_S);
        for (audience, issuer, expected) in [
            (json!("chat"), json!("us"), None),
            (json!(["mail", "chat"]), json!("us"), None),
            (json!("mail"), json!("us"), Some("the token is for another audience")),
            (json!("chat"), json!("them"), Some("the token is from another issuer")),
            (json!(null), json!("us"), Some("the token has no usable `aud`")),
            (json!("chat"), json!(null), Some("the token has no usable `iss`")),
        ] {
            let claims = json!({"sub": "a", "exp": at(60), "aud": audience, "iss": issuer});
            let error = verifier.verify(&token(&header(Algorithm::HS256, None), &claims)).err();
            let error = error.map(|error| error.to_string());
            assert_eq!(error.is_some(), expected.is_some(), "{claims}: {error:?}");
            assert!(error.unwrap_or_default().starts_with(expected.unwrap_or_default()), "{claims}");
        }
    }

    #[test]
    fn no_key_is_in_the_debug_output() {
        assert!(!format!("{:?}", verifier(&[hs256(None)])).contains("AAAA"));
    }
}

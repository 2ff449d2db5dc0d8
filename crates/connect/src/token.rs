//! Tokens: what somebody with a key says of who a client is.
//!
//! A token is a [JSON Web Token](https://www.rfc-editor.org/rfc/rfc7519) whose `sub` is the user. It is signed with a key of
//! the [JWK Set](https://www.rfc-editor.org/rfc/rfc7517) in `TOKEN_KEYS`: that of an identity provider, or keys of one's own.
//! It must have an `exp`, and is looked at once, at `$connect`: a connection outlives its token, by two hours at the most.

use std::fmt;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use switchboard_core::ClientError;
use switchboard_core::connection::UserId;

/// The least that a key of HS256 must have, in bytes (RFC 7518, section 3.2).
const LEAST_SECRET: usize = 32;

/// Checks tokens. Keys are not in its debug output.
pub(crate) struct Verifier {
    keys: Vec<Key>,
    audience: Option<String>,
    issuer: Option<String>,
}

struct Key {
    /// `kid`, by which a token names it.
    id: Option<String>,
    key: DecodingKey,
    /// Which signatures it may check. A token cannot choose: that a public key is the secret of HS256, say.
    algorithms: Vec<Algorithm>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Verifier").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Claims {
    /// Required, but not by its type, whose error would not say what is missing.
    #[serde(default)]
    sub: String,
}

impl Verifier {
    /// With the keys of a JWK Set. Every token must be for `audience` and of `issuer`, if these are given.
    ///
    /// # Errors
    ///
    /// Why there is no JWK Set, or which of its keys cannot be used.
    pub(crate) fn new(keys: &str, audience: Option<String>, issuer: Option<String>) -> Result<Self, String> {
        // What is wrong is told by its place: the text is a secret.
        let set: JwkSet = serde_json::from_str(keys)
            .map_err(|error| format!("this is no JWK Set, from line {} column {} on", error.line(), error.column()))?;
        // Identity providers also publish keys that others shall encrypt with.
        let signs = |jwk: &Jwk| jwk.common.public_key_use != Some(PublicKeyUse::Encryption);
        let keys = set.keys.iter().enumerate().filter(|(_, jwk)| signs(jwk));
        let keys = keys.map(|(index, jwk)| Key::new(jwk).map_err(|reason| format!("keys[{index}]: {reason}")));
        let keys = keys.collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() {
            return Err("there is no key in it that signs".to_owned());
        }
        Ok(Self { keys, audience, issuer })
    }

    /// The user whom a token names.
    ///
    /// # Errors
    ///
    /// [`ClientError`], when it is not signed with a known key, not valid now or not for us, or names nobody.
    pub(crate) fn verify(&self, token: &str) -> Result<UserId, ClientError> {
        let refused = |reason| ClientError::Unidentified { reason };
        let header = jsonwebtoken::decode_header(token).map_err(|_| refused("its token is none"))?;
        let key = match &header.kid {
            Some(id) => self.keys.iter().find(|key| key.id.as_ref() == Some(id)),
            // Without a name there must be no choice.
            None => Some(&self.keys[..]).filter(|keys| keys.len() == 1).and_then(<[Key]>::first),
        };
        let key = key.ok_or_else(|| refused("nobody here has its token's key"))?;
        if !key.algorithms.contains(&header.alg) {
            return Err(refused("its token is signed otherwise than its key signs"));
        }
        let mut validation = Validation::new(header.alg);
        validation.validate_nbf = true;
        let mut required = vec!["exp", "sub"];
        if let Some(audience) = &self.audience {
            validation.set_audience(&[audience]);
            required.push("aud");
        }
        if let Some(issuer) = &self.issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        validation.set_required_spec_claims(&required);
        let claims = jsonwebtoken::decode::<Claims>(token, &key.key, &validation).map_err(|error| {
            refused(match error.kind() {
                ErrorKind::InvalidSignature => "its token has a wrong signature",
                ErrorKind::ExpiredSignature => "its token has expired",
                ErrorKind::ImmatureSignature => "its token is not valid yet",
                ErrorKind::InvalidAudience => "its token is for another audience",
                ErrorKind::InvalidIssuer => "its token is of another issuer",
                ErrorKind::MissingRequiredClaim(_) => "its token lacks a claim",
                _ => "its token is none",
            })
        })?;
        UserId::parse("sub", &claims.claims.sub)
    }
}

impl Key {
    fn new(jwk: &Jwk) -> Result<Self, String> {
        let key = DecodingKey::from_jwk(jwk).map_err(|error| error.to_string())?;
        if let AlgorithmParameters::OctetKey(_) = jwk.algorithm {
            let length = key.try_get_as_bytes().map_or(0, <[u8]>::len);
            if length < LEAST_SECRET {
                return Err(format!("a secret needs {LEAST_SECRET} bytes or more, and this has {length}"));
            }
        }
        let mut algorithms = key.family().algorithms().to_vec();
        if let Some(algorithm) = jwk.common.key_algorithm {
            algorithms.retain(|known| KeyAlgorithm::from(*known) == algorithm);
        }
        if algorithms.is_empty() {
            return Err("its `alg` is none that its `kty` signs with".to_owned());
        }
        Ok(Self { id: jwk.common.key_id.clone(), key, algorithms })
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{EncodingKey, Header};
    use serde_json::{Value, json};

    use super::*;

    /// `k` of a secret of 32 bytes, all of them zero, and of one byte.
    const SECRET: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    const SHORT: &str = "AA";

    /// A point of P-256, from RFC 7515, appendix A.3.
    const EC: &str = r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0","kid":"ec"}"#;

    fn key(id: &str) -> String {
        format!(r#"{{"kty":"oct","k":"{SECRET}","kid":"{id}","alg":"HS256"}}"#)
    }

    fn verifier(keys: &[&str]) -> Result<Verifier, String> {
        Verifier::new(&format!(r#"{{"keys":[{}]}}"#, keys.join(",")), None, None)
    }

    fn header(id: Option<&str>) -> Header {
        Header { kid: id.map(str::to_owned), ..Header::default() }
    }

    fn token(header: &Header, claims: &Value) -> String {
        jsonwebtoken::encode(header, claims, &EncodingKey::from_secret(&[0; 32])).unwrap()
    }

    /// Seconds since 1970, so many from now.
    fn at(seconds: i64) -> i64 {
        i64::try_from(jsonwebtoken::get_current_timestamp()).unwrap() + seconds
    }

    fn reason(verifier: &Verifier, token: &str) -> String {
        verifier.verify(token).unwrap_err().to_string()
    }

    #[test]
    fn a_token_names_its_user() {
        let token = |id| token(&header(id), &json!({"sub": "alice", "exp": at(60), "anything": [1]}));
        let (one, two) = (verifier(&[&key("1")]).unwrap(), verifier(&[&key("1"), &key("2")]).unwrap());
        assert_eq!(one.verify(&token(None)).unwrap().as_str(), "alice");
        assert_eq!(two.verify(&token(Some("2"))).unwrap().as_str(), "alice");
        for (verifier, id) in [(&one, Some("2")), (&two, None)] {
            assert!(reason(verifier, &token(id)).contains("nobody here has its token's key"), "{id:?}");
        }
    }

    #[test]
    fn a_token_that_is_not_right_is_refused_with_its_reason() {
        let verifier = verifier(&[&key("1")]).unwrap();
        let signed = |claims: Value| token(&header(Some("1")), &claims);
        for (claims, expected) in [
            (json!({"sub": "a", "exp": at(-3600)}), "has expired"),
            (json!({"sub": "a", "exp": at(3600), "nbf": at(1800)}), "is not valid yet"),
            (json!({"sub": "a"}), "lacks a claim"),
            (json!({"sub": "a", "exp": "never"}), "its token "),
            (json!({"sub": "a", "exp": at(60), "nbf": "0"}), "its token "),
            (json!({"exp": at(60)}), "lacks a claim"),
            (json!({"sub": 7, "exp": at(60)}), "its token "),
            (json!({"sub": "", "exp": at(60)}), "`sub`"),
            (json!({"sub": "a\u{7}", "exp": at(60)}), "`sub`"),
            (json!({"sub": "a", "exp": at(60), "aud": "others"}), "another audience"),
        ] {
            let reason = reason(&verifier, &signed(claims.clone()));
            assert!(reason.contains(expected), "{claims}: {reason}");
        }
        let good = signed(json!({"sub": "a", "exp": at(60)}));
        let forged = jsonwebtoken::encode(
            &header(Some("1")),
            &json!({"sub": "a", "exp": at(60)}),
            &EncodingKey::from_secret(&[1; 32]),
        );
        assert!(reason(&verifier, &forged.unwrap()).contains("a wrong signature"));
        let (claims, _) = good.rsplit_once('.').unwrap();
        // {"alg":"none","kid":"1"}
        let unsigned = format!("eyJhbGciOiJub25lIiwia2lkIjoiMSJ9.{}.", claims.split_once('.').unwrap().1);
        for no_token in ["", ".", "..", "a.b.c", "alice", claims, &unsigned, &format!("{good}.")] {
            assert!(reason(&verifier, no_token).contains("its token "), "{no_token}");
        }
    }

    #[test]
    fn a_key_signs_in_its_own_way_only() {
        let other = Header { alg: Algorithm::HS384, ..header(Some("1")) };
        let token = token(&other, &json!({"sub": "a", "exp": at(60)}));
        assert!(reason(&verifier(&[&key("1")]).unwrap(), &token).contains("signed otherwise"));
        let any = key("1").replace(r#","alg":"HS256""#, "");
        assert!(verifier(&[&any]).unwrap().verify(&token).is_ok());
        // A public key is not a secret that everybody knows.
        let public = EC.replace("ec", "1");
        assert!(reason(&verifier(&[&public]).unwrap(), &token).contains("signed otherwise"));
    }

    #[test]
    fn audience_and_issuer_must_be_those_that_are_asked_for() {
        let text = |text: &str| Some(text.to_owned());
        let verifier = Verifier::new(&format!(r#"{{"keys":[{}]}}"#, key("1")), text("chat"), text("us")).unwrap();
        for (audience, issuer, expected) in [
            (json!("chat"), json!("us"), None),
            (json!(["mail", "chat"]), json!("us"), None),
            (json!("mail"), json!("us"), Some("another audience")),
            (json!("chat"), json!("them"), Some("another issuer")),
            (json!(null), json!("us"), Some("its token ")),
            (json!("chat"), json!(null), Some("its token ")),
        ] {
            let claims = json!({"sub": "a", "exp": at(60), "aud": audience, "iss": issuer});
            let error = verifier.verify(&token(&header(None), &claims)).err().map(|error| error.to_string());
            assert_eq!(error.is_some(), expected.is_some(), "{claims}: {error:?}");
            assert!(error.unwrap_or_default().contains(expected.unwrap_or_default()), "{claims}");
        }
        let bare = token(&header(None), &json!({"sub": "a", "exp": at(60)}));
        assert!(reason(&verifier, &bare).contains("lacks a claim"));
    }

    #[test]
    fn keys_that_cannot_be_used_are_named_by_their_place() {
        let short = format!(r#"{{"kty":"oct","k":"{SHORT}"}}"#);
        let mixed = EC.replace(r#""kid""#, r#""alg":"HS256","kid""#);
        for (keys, expected) in [
            (&[key("1").as_str(), &short][..], "keys[1]: a secret needs 32 bytes or more, and this has 1"),
            (&[&mixed], "keys[0]: its `alg` is none that its `kty` signs with"),
            (&[], "there is no key in it that signs"),
            (
                &[&mixed.replace("HS256", "ECDH-ES").replace(r#""kid""#, r#""use":"enc","kid""#)],
                "there is no key in it that signs",
            ),
            (&[SECRET], "this is no JWK Set, from line 1 column "),
        ] {
            let error = verifier(keys).unwrap_err();
            assert!(error.starts_with(expected) && !error.contains(SECRET), "{error}");
        }
        assert!(!format!("{:?}", verifier(&[&key("1")]).unwrap()).contains("AAAA"));
    }
}

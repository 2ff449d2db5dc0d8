//! The configuration that only this function has: who may say which user a client is.

use switchboard_core::Error;
use switchboard_core::config::variable;

use crate::keys::KeySet;
use crate::token::Verifier;

/// The default of `TOKEN_MAX_LIFETIME_S`: 24 hours.
const DEFAULT_MAX_LIFETIME_S: u32 = 24 * 60 * 60;

/// Ours. A person has a few devices, each with a few tabs.
const DEFAULT_MAX_CONNECTIONS: u32 = 100;

/// Read once per execution environment.
#[derive(Debug)]
pub struct Config {
    /// `IDENTITY_MODE`: `verified` (the default), `open` or `open-with-tokens`.
    pub(crate) identity_mode: IdentityMode,
    /// Checks tokens with `TOKEN_KEYS`, the keys that sign them, as a JWK Set (RFC 7517). Every token must have the `aud`
    /// `TOKEN_AUDIENCE` and the `iss` `TOKEN_ISSUER`, if these are set, and expire within `TOKEN_MAX_LIFETIME_S` seconds.
    /// Without keys there are no tokens.
    pub(crate) tokens: Option<Verifier>,
    /// `MAX_CONNECTIONS_PER_USER`, default 100: a user who has so many gets no further one. Zero means no limit.
    pub(crate) max_connections: u32,
    /// The function starts, but an operator should know this.
    pub(crate) warnings: Vec<String>,
}

/// Who may say which user a connection belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IdentityMode {
    /// Only a Lambda authorizer in front of `$connect`, through its `principalId`, or a token that is signed with one of
    /// `TOKEN_KEYS`. Without either a handshake is refused.
    Verified,
    /// The client itself may say it, too, through `?userId=`; nobody checks that. For demos.
    Open,
}

impl Config {
    /// Reads the process environment.
    ///
    /// # Errors
    ///
    /// [`Error::Config`], naming every variable that is wrong, not only the first.
    pub fn from_env() -> Result<Self, Error> {
        Self::read(variable)
    }

    fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let (mut problems, mut warnings) = (Vec::new(), Vec::new());
        let keys = variable("TOKEN_KEYS");
        // Where the mode is open, a client that leaves its token out can be anybody, and tokens protect nobody. Keys therefore
        // need a mode of their own, which nobody gets by default.
        let identity_mode = match (variable("IDENTITY_MODE").as_deref(), &keys) {
            (None | Some("verified"), _) => IdentityMode::Verified,
            (Some("open"), None) | (Some("open-with-tokens"), Some(_)) => {
                let mode = "IDENTITY_MODE is open: clients name themselves with ?userId= and nobody checks it";
                warnings.push(mode.to_owned());
                IdentityMode::Open
            }
            (wrong, _) => {
                problems.push(match wrong {
                    Some("open") => {
                        "IDENTITY_MODE is `open`, but TOKEN_KEYS is set: set `verified`, or `open-with-tokens` if clients \
                         without a token may be anybody"
                    }
                    Some("open-with-tokens") => "IDENTITY_MODE is `open-with-tokens`, but TOKEN_KEYS is not set",
                    _ => "IDENTITY_MODE is none of `verified`, `open` and `open-with-tokens`",
                }
                .to_owned());
                IdentityMode::Verified
            }
        };
        let max_lifetime_s = match variable("TOKEN_MAX_LIFETIME_S").map(|text| text.parse::<u32>()) {
            None => DEFAULT_MAX_LIFETIME_S,
            Some(Ok(seconds)) if seconds > 0 => seconds,
            Some(_) => {
                problems.push("TOKEN_MAX_LIFETIME_S is not a whole number of seconds above 0".to_owned());
                DEFAULT_MAX_LIFETIME_S
            }
        };
        let max_connections = match variable("MAX_CONNECTIONS_PER_USER").map(|text| text.parse()) {
            None => DEFAULT_MAX_CONNECTIONS,
            Some(Ok(connections)) => connections,
            Some(Err(_)) => {
                problems.push("MAX_CONNECTIONS_PER_USER is not a whole number".to_owned());
                DEFAULT_MAX_CONNECTIONS
            }
        };
        let tokens = match keys.map(|text| KeySet::parse(&text)) {
            None => None,
            Some(Ok(set)) => {
                warnings.extend(set.skipped.iter().map(|reason| format!("TOKEN_KEYS: {reason}")));
                let (audience, issuer) = (variable("TOKEN_AUDIENCE"), variable("TOKEN_ISSUER"));
                Some(Verifier::new(set.keys, audience, issuer, max_lifetime_s))
            }
            Some(Err(problem)) => {
                problems.push(format!("TOKEN_KEYS: {problem}"));
                None
            }
        };
        if problems.is_empty() {
            Ok(Self { identity_mode, tokens, max_connections, warnings })
        } else {
            Err(Error::Config { problems: problems.join("; ") })
        }
    }
}

/// Joins two results, and the problems of both, so that an operator hears of all of them at the first deployment.
///
/// # Errors
///
/// The error of either, or one that has the problems of both.
pub fn both<A, B>(one: Result<A, Error>, two: Result<B, Error>) -> Result<(A, B), Error> {
    match (one, two) {
        (Ok(one), Ok(two)) => Ok((one, two)),
        (Err(Error::Config { problems: one }), Err(Error::Config { problems: two })) => {
            Err(Error::Config { problems: format!("{one}; {two}") })
        }
        (Err(error), _) | (_, Err(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::Algorithm;
    use serde_json::json;

    use super::*;
    use crate::example_keys::{at, header, jwk, set, token};

    fn read(variables: &[(&str, &str)]) -> Result<Config, String> {
        let variable =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Config::read(variable).map_err(|error| error.to_string())
    }

    fn keys() -> String {
        set(&[jwk(Algorithm::HS256, &json!({}))])
    }

    #[test]
    fn identity_is_not_open_unless_somebody_opens_it() {
        let config = read(&[]).unwrap();
        assert_eq!((config.identity_mode, config.tokens.is_none()), (IdentityMode::Verified, true));
        assert_eq!(config.warnings, [""; 0]);
    }

    #[test]
    fn keys_close_what_is_not_opened_in_spite_of_them() {
        use IdentityMode::{Open, Verified};
        let keys = keys();
        for (mode, keys, expected) in [
            (None, None, Ok(Verified)),
            (None, Some(&keys), Ok(Verified)),
            (Some("verified"), None, Ok(Verified)),
            (Some("verified"), Some(&keys), Ok(Verified)),
            (Some("open"), None, Ok(Open)),
            (Some("open"), Some(&keys), Err("IDENTITY_MODE is `open`, but TOKEN_KEYS is set")),
            (Some("open-with-tokens"), Some(&keys), Ok(Open)),
            (Some("open-with-tokens"), None, Err("but TOKEN_KEYS is not set")),
            (Some("trust"), None, Err("IDENTITY_MODE is none of")),
            (Some("Open"), None, Err("IDENTITY_MODE is none of")),
        ] {
            let variables = [("IDENTITY_MODE", mode), ("TOKEN_KEYS", keys.map(String::as_str))];
            let variables: Vec<_> = variables.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
            match (read(&variables), expected) {
                (Ok(config), Ok(expected)) => {
                    assert_eq!(config.identity_mode, expected, "{mode:?}");
                    assert_eq!(config.tokens.is_some(), keys.is_some(), "{mode:?}");
                    assert_eq!(config.warnings.len(), usize::from(expected == Open), "{:?}", config.warnings);
                }
                (Err(problems), Err(expected)) => assert!(problems.contains(expected), "{problems}"),
                (found, _) => panic!("{mode:?}: {found:?}"),
            }
        }
    }

    #[test]
    fn everything_that_is_wrong_is_named_at_once_and_without_secrets() {
        let secret = "c2hvcnQtYW5kLXNlY3JldA";
        let keys = set(&[json!({"kty": "oct", "k": secret})]);
        let error =
            read(&[("IDENTITY_MODE", "open"), ("TOKEN_KEYS", &keys), ("TOKEN_MAX_LIFETIME_S", "0")]).unwrap_err();
        for problem in
            ["IDENTITY_MODE is `open`", "TOKEN_KEYS: keys[0]: its secret has 16", "TOKEN_MAX_LIFETIME_S is not"]
        {
            assert!(error.contains(problem), "{problem} is not in: {error}");
        }
        assert!(!error.contains(secret), "{error}");
    }

    #[test]
    fn a_key_that_is_skipped_is_a_warning() {
        let keys = set(&[jwk(Algorithm::HS256, &json!({})), json!({"kty": "AKP"})]);
        let config = read(&[("TOKEN_KEYS", &keys)]).unwrap();
        assert_eq!(config.warnings, ["TOKEN_KEYS: keys[1] is skipped: its `kty` is not known here"]);
    }

    #[test]
    fn the_longest_lifetime_is_a_day_unless_it_is_configured() {
        let keys = keys();
        let good = |lifetime: &[(&str, &str)], expiry: i64| {
            let config = read(&[&[("TOKEN_KEYS", keys.as_str())], lifetime].concat()).unwrap();
            let token = token(&header(Algorithm::HS256, None), &json!({"sub": "a", "exp": at(expiry)}));
            config.tokens.unwrap().verify(&token).is_ok()
        };
        assert!(good(&[], 86_400) && !good(&[], 86_400 + 120));
        let week = [("TOKEN_MAX_LIFETIME_S", "604800")];
        assert!(good(&week, 604_800) && !good(&week, 604_800 + 120));
        for wrong in ["0", "-1", "1.5", "a day", "4294967296"] {
            assert!(read(&[("TOKEN_MAX_LIFETIME_S", wrong)]).unwrap_err().contains("TOKEN_MAX_LIFETIME_S"), "{wrong}");
        }
    }

    #[test]
    fn problems_of_both_configurations_are_told_at_once() {
        let config = |problems: &str| Error::Config { problems: problems.to_owned() };
        let error = both::<(), ()>(Err(config("one")), Err(config("two"))).unwrap_err();
        assert_eq!(error.to_string(), "configuration: one; two");
        assert_eq!(both::<(), _>(Err(config("one")), Ok(2)).unwrap_err().to_string(), "configuration: one");
        assert_eq!(both::<_, ()>(Ok(1), Err(config("two"))).unwrap_err().to_string(), "configuration: two");
        assert_eq!(both(Ok(1), Ok(2)).unwrap(), (1, 2));
    }
}

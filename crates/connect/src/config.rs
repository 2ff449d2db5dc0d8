//! The configuration that only this function has: who may say which user a client is.

use switchboard_core::Error;
use switchboard_core::config::{variable, whole_number};

use crate::keys::{KeySet, Origin};
use crate::source::{Source, Tokens};
use crate::token::Verifier;

/// The default of `TOKEN_MAX_LIFETIME_S`: 24 hours.
const DEFAULT_MAX_LIFETIME_S: u32 = 24 * 60 * 60;

/// Read once per execution environment.
#[derive(Debug)]
pub struct Config {
    /// `IDENTITY_MODE`: `verified` (the default), `open` or `open-with-tokens`.
    pub(crate) identity_mode: IdentityMode,
    /// Checks tokens with the keys that sign them, which are a JWK Set (RFC 7517). One variable says where that is:
    /// `TOKEN_KEYS` is the set, `TOKEN_KEYS_PARAMETER` names an SSM parameter of the type SecureString, and `TOKEN_KEYS_URL` is
    /// the address where a provider publishes it. Every token must have the `aud` `TOKEN_AUDIENCE` and the `iss`
    /// `TOKEN_ISSUER`, if these are set, and expire within `TOKEN_MAX_LIFETIME_S` seconds. Without keys there are no tokens.
    pub(crate) tokens: Option<Tokens>,
    /// `ALLOWED_ORIGINS`, separated by commas: pages of other origins cannot connect. Without it pages of any origin can.
    pub(crate) origins: Option<Vec<String>>,
    /// The function starts, but an operator should know this.
    pub(crate) warnings: Vec<String>,
}

/// Who may say which user a connection belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IdentityMode {
    /// Only a Lambda authorizer in front of `$connect`, through its `principalId`, or a token that is signed with one of
    /// the keys. Without either a handshake is refused.
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
        let names = ["TOKEN_KEYS", "TOKEN_KEYS_PARAMETER", "TOKEN_KEYS_URL"];
        let mut given = names.into_iter().filter_map(|name| Some((name, variable(name)?)));
        let keys = given.next();
        for (name, _) in given {
            let first = keys.as_ref().map_or("", |(first, _)| *first);
            problems.push(format!("{first} and {name} are both set, and only one place may have the keys"));
        }
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
                problems.push(match (wrong, &keys) {
                    (Some("open"), Some((name, _))) => format!(
                        "IDENTITY_MODE is `open`, but {name} is set: set `verified`, or `open-with-tokens` if clients without a \
                         token may be anybody"
                    ),
                    (Some("open-with-tokens"), _) => {
                        "IDENTITY_MODE is `open-with-tokens`, but there are no keys: set TOKEN_KEYS, TOKEN_KEYS_PARAMETER or \
                         TOKEN_KEYS_URL"
                            .to_owned()
                    }
                    _ => "IDENTITY_MODE is none of `verified`, `open` and `open-with-tokens`".to_owned(),
                });
                IdentityMode::Verified
            }
        };
        let mut number = |name, least, default| whole_number(&variable, name, least, default, &mut problems);
        let max_lifetime_s = number("TOKEN_MAX_LIFETIME_S", 1, DEFAULT_MAX_LIFETIME_S);
        let origins = variable("ALLOWED_ORIGINS").map(|list| origins(&list));
        let origins = origins.transpose().unwrap_or_else(|problem| {
            problems.push(problem);
            None
        });
        if origins.is_none() {
            warnings.push("ALLOWED_ORIGINS is not set: web pages of any origin can connect".to_owned());
        }
        let (mut given, mut source) = (Vec::new(), None);
        let read = match &keys {
            None => Ok(()),
            Some(("TOKEN_KEYS", text)) => KeySet::parse(text, Origin::Variable)
                .map(|set| {
                    warnings.extend(set.skipped.iter().map(|reason| format!("TOKEN_KEYS: {reason}")));
                    given = set.keys;
                })
                .map_err(|problem| format!("TOKEN_KEYS: {problem}")),
            Some(("TOKEN_KEYS_PARAMETER", name)) => {
                // As every AWS SDK looks for the URL of a service.
                let endpoint = variable("AWS_ENDPOINT_URL_SSM").or_else(|| variable("AWS_ENDPOINT_URL"));
                Source::parameter(name.clone(), endpoint).map(|it| source = Some(it))
            }
            Some((_, url)) => Source::url(url).map(|it| source = Some(it)),
        };
        problems.extend(read.err());
        let tokens = keys.map(|_| {
            let (audience, issuer) = (variable("TOKEN_AUDIENCE"), variable("TOKEN_ISSUER"));
            Tokens::new(Verifier::new(given, audience, issuer, max_lifetime_s), source)
        });
        if problems.is_empty() {
            Ok(Self { identity_mode, tokens, origins, warnings })
        } else {
            Err(Error::Config { problems: problems.join("; ") })
        }
    }
}

/// The origins of a list, as browsers write them (RFC 6454, section 6.2): scheme, host, and a port that is not the default.
fn origins(list: &str) -> Result<Vec<String>, String> {
    let origins: Vec<_> = list.split(',').map(|origin| origin.trim().to_lowercase()).collect();
    let is_origin = |origin: &String| {
        origin.split_once("://").is_some_and(|(scheme, host)| {
            !scheme.is_empty() && !host.is_empty() && !host.contains(['/', '*', '?', '#', ' '])
        })
    };
    match origins.iter().find(|origin| !is_origin(origin)) {
        None => Ok(origins),
        Some(wrong) => Err(format!("ALLOWED_ORIGINS has `{wrong}`, which is no origin such as `https://example.com`")),
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

    /// The origins are listed unless a test says otherwise, so that nobody is warned of them.
    fn read(variables: &[(&str, &str)]) -> Result<Config, String> {
        let variables = [variables, &[("ALLOWED_ORIGINS", "https://chat.example.org")]].concat();
        let variable =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Config::read(variable).map_err(|error| error.to_string())
    }

    fn keys() -> String {
        set(&[jwk(Algorithm::ES256, &json!({}))])
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
            (Some("open-with-tokens"), None, Err("but there are no keys")),
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
        for problem in ["IDENTITY_MODE is `open`", "TOKEN_KEYS: keys[0]: it is a secret", "TOKEN_MAX_LIFETIME_S is not"]
        {
            assert!(error.contains(problem), "{problem} is not in: {error}");
        }
        assert!(!error.contains(secret), "{error}");
    }

    #[test]
    fn a_variable_with_a_secret_is_refused_and_not_shown() {
        let public = jwk(Algorithm::ES256, &json!({}));
        for (key, kind) in [
            (jwk(Algorithm::HS256, &json!({})), "it is a secret"),
            (jwk(Algorithm::HS256, &json!({"use": "enc"})), "it is a secret"),
            (jwk(Algorithm::ES256, &json!({"d": "c2VjcmV0"})), "it is a private key"),
            (jwk(Algorithm::RS256, &json!({"dp": "c2VjcmV0"})), "it is a private key"),
        ] {
            let problem = read(&[("TOKEN_KEYS", &set(&[public.clone(), key]))]).unwrap_err();
            assert!(problem.contains(&format!("TOKEN_KEYS: keys[1]: {kind}, which")), "{problem}");
            assert!(problem.contains("TOKEN_KEYS_PARAMETER") && !problem.contains("AAAA"), "{problem}");
            assert!(!problem.contains("c2VjcmV0"), "{problem}");
        }
    }

    #[test]
    fn one_place_has_the_keys() {
        let keys = keys();
        let places = [
            ("TOKEN_KEYS", keys.as_str()),
            ("TOKEN_KEYS_PARAMETER", "/switchboard/prod/keys"),
            ("TOKEN_KEYS_URL", "https://issuer.example.org/jwks.json"),
        ];
        for (one, place) in places.iter().enumerate() {
            assert!(read(&[*place]).unwrap().tokens.is_some());
            assert!(read(&[*place, ("IDENTITY_MODE", "open-with-tokens")]).is_ok());
            let problem = read(&[*place, ("IDENTITY_MODE", "open")]).unwrap_err();
            assert!(problem.contains(&format!("`open`, but {} is set", place.0)), "{problem}");
            for other in &places[one + 1..] {
                let problem = read(&[*place, *other]).unwrap_err();
                assert!(problem.contains(&format!("{} and {} are both set", place.0, other.0)), "{problem}");
            }
        }
        let problem = read(&[("TOKEN_KEYS_PARAMETER", "keys")]).unwrap_err();
        assert!(problem.contains("TOKEN_KEYS_PARAMETER is not the name"), "{problem}");
        let problem = read(&[("TOKEN_KEYS_URL", "http://issuer.example.org")]).unwrap_err();
        assert!(problem.contains("TOKEN_KEYS_URL is not an address"), "{problem}");
    }

    #[test]
    fn origins_are_listed_as_browsers_write_them() {
        let origins = |list: &str| read(&[("ALLOWED_ORIGINS", list)]).map(|config| config.origins.unwrap());
        assert_eq!(
            origins("https://a.example, HTTP://B.example:8080").unwrap(),
            ["https://a.example", "http://b.example:8080"]
        );
        for wrong in ["*", "a.example", "https://a.example/", "https://*.example", "https://a.example,", "://a"] {
            assert!(origins(wrong).unwrap_err().contains("ALLOWED_ORIGINS has `"), "{wrong}");
        }
        let config = Config::read(|_| None).unwrap();
        assert_eq!(config.warnings, ["ALLOWED_ORIGINS is not set: web pages of any origin can connect"]);
    }

    #[test]
    fn a_key_that_is_skipped_is_a_warning() {
        let keys = set(&[jwk(Algorithm::ES256, &json!({})), json!({"kty": "AKP"})]);
        let config = read(&[("TOKEN_KEYS", &keys)]).unwrap();
        assert_eq!(config.warnings, ["TOKEN_KEYS: keys[1] is skipped: its `kty` is not known here"]);
    }

    #[tokio::test]
    async fn the_longest_lifetime_is_a_day_unless_it_is_configured() {
        let keys = keys();
        let good = async |lifetime: &[(&str, &str)], expiry: i64| {
            let config = read(&[&[("TOKEN_KEYS", keys.as_str())], lifetime].concat()).unwrap();
            let token = token(&header(Algorithm::ES256, None), &json!({"sub": "a", "exp": at(expiry)}));
            config.tokens.unwrap().verify(&token).await.is_ok()
        };
        assert!(good(&[], 86_400).await && !good(&[], 86_400 + 120).await);
        let week = [("TOKEN_MAX_LIFETIME_S", "604800")];
        assert!(good(&week, 604_800).await && !good(&week, 604_800 + 120).await);
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

//! The keys that sign tokens, read from a [JWK Set](https://www.rfc-editor.org/rfc/rfc7517).
//!
//! Each key is proven usable once, when the set is read, so that no token meets a key that fails or panics. A key of an unknown
//! kind is skipped (RFC 7517, section 5), because identity providers add such keys without asking. A weak key is an error,
//! because its owner believes that it protects something.
//!
//! The text of a set may hold secrets, so problems name places and members of keys, and never a value.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, Header, crypto};
use serde_json::Value;

/// The shortest RSA modulus, in bits (RFC 7518, sections 3.3 and 3.5).
const MIN_RSA_BITS: usize = 2048;

/// The longest RSA modulus and the longest exponent that the `rsa` crate takes, in bits.
const MAX_RSA_BITS: usize = 4096;
const MAX_RSA_EXPONENT_BITS: usize = 33;

/// A key that can check signatures.
pub(crate) struct Key {
    /// `kid`, by which a token names it.
    id: Option<String>,
    /// The key itself.
    pub(crate) key: DecodingKey,
    /// The signatures that it may check. The key decides that, because a token that chose its algorithm could use a public key
    /// as the secret of HS256.
    pub(crate) algorithms: Vec<Algorithm>,
}

/// The usable keys of a JWK Set.
pub(crate) struct KeySet {
    /// At least one.
    pub(crate) keys: Vec<Key>,
    /// One text for each key that cannot be used: its place and the reason.
    pub(crate) skipped: Vec<String>,
}

/// Where the text of a set comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A variable of the function. Too many people can read it, so it may have no secret.
    Variable,
    /// A place for secrets.
    Vault,
    /// A web server, which gives the text to everybody. A secret in it is none.
    Public,
}

/// The members that only private keys have (RFC 7518, section 6; RFC 8037, section 2).
const PRIVATE: [&str; 7] = ["d", "p", "q", "dp", "dq", "qi", "oth"];

/// Why a key cannot be used.
enum Unusable {
    /// It is not understood, or it is for something else. The others of its set are used.
    Skipped(String),
    /// It is too weak, or it is a secret that others can read. The function does not start.
    Unsafe(String),
}

impl<T: Into<String>> From<T> for Unusable {
    fn from(reason: T) -> Self {
        Self::Skipped(reason.into())
    }
}

impl KeySet {
    /// Reads a set, key by key.
    ///
    /// # Errors
    ///
    /// The text is not a JWK Set, a key of it is unsafe, or none of its keys can be used.
    pub(crate) fn parse(text: &str, origin: Origin) -> Result<Self, String> {
        let set: Value = serde_json::from_str(text).map_err(|error| {
            format!("the text is not JSON, from line {} column {} on", error.line(), error.column())
        })?;
        let set =
            set.get("keys").and_then(Value::as_array).ok_or("the JSON is not a JWK Set: it has no list `keys`")?;
        let (mut keys, mut skipped, mut not_safe) = (Vec::new(), Vec::new(), Vec::new());
        for (place, jwk) in set.iter().enumerate() {
            match Key::read(jwk, origin) {
                Ok(None) => {}
                Ok(Some(key)) => keys.push(key),
                Err(Unusable::Skipped(reason)) => skipped.push(format!("keys[{place}] is skipped: {reason}")),
                Err(Unusable::Unsafe(reason)) => not_safe.push(format!("keys[{place}]: {reason}")),
            }
        }
        if !not_safe.is_empty() {
            return Err(not_safe.join(", "));
        }
        if keys.is_empty() {
            return Err([vec!["no key of the set can check signatures".to_owned()], skipped].concat().join(", "));
        }
        Ok(Self { keys, skipped })
    }
}

impl Key {
    /// Reads a key. A key for encryption is none of ours. Many identity providers publish one, so it causes no warning.
    fn read(jwk: &Value, origin: Origin) -> Result<Option<Self>, Unusable> {
        let is_secret = jwk.get("kty").is_some_and(|kind| kind == "oct");
        if is_secret || PRIVATE.iter().any(|member| jwk.get(member).is_some()) {
            let kind = if is_secret { "a secret" } else { "a private key" };
            match origin {
                Origin::Vault => {}
                Origin::Public => return Err(format!("it is {kind}, and everybody can read it there").into()),
                Origin::Variable => {
                    return Err(Unusable::Unsafe(format!(
                        "it is {kind}, which does not belong in a variable: put the set into an SSM parameter of the type \
                         SecureString, and its name into TOKEN_KEYS_PARAMETER"
                    )));
                }
            }
        }
        if jwk.get("use").is_some_and(|usage| usage == "enc") {
            return Ok(None);
        }
        let text = |name: &str| match jwk.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(_) => Err(format!("its `{name}` is not a string")),
        };
        let bytes = |name: &str| {
            let text = text(name)?.ok_or_else(|| format!("it has no `{name}`"))?;
            URL_SAFE_NO_PAD.decode(text).map_err(|_| format!("its `{name}` is not base64url"))
        };

        let id = text("kid")?.map(str::to_owned);
        if text("use")?.is_some_and(|usage| usage != "sig") {
            return Err("its `use` is not `sig`".into());
        }
        let verifies = |operations: &Value| operations.as_array().is_some_and(|all| all.contains(&"verify".into()));
        if jwk.get("key_ops").is_some_and(|operations| !operations.is_null() && !verifies(operations)) {
            return Err("its `key_ops` does not list `verify`".into());
        }
        let mut algorithms = match (text("kty")?, text("crv")?) {
            (None, _) => return Err("it has no `kty`".into()),
            (Some("oct"), _) => AlgorithmFamily::Hmac.algorithms().to_vec(),
            (Some("RSA"), _) => AlgorithmFamily::Rsa.algorithms().to_vec(),
            (Some("EC"), Some("P-256")) => vec![Algorithm::ES256],
            (Some("EC"), Some("P-384")) => vec![Algorithm::ES384],
            (Some("OKP"), Some("Ed25519")) => vec![Algorithm::EdDSA],
            (Some("EC" | "OKP"), _) => return Err("its `crv` is not known here".into()),
            (Some(_), _) => return Err("its `kty` is not known here".into()),
        };
        if let Some(name) = text("alg")? {
            algorithms.retain(|algorithm| name.parse() == Ok(*algorithm));
        }

        let key = match algorithms[..] {
            [] => return Err("its `alg` is not one that its `kty` and `crv` sign with".into()),
            [Algorithm::ES256] => point(&bytes("x")?, &bytes("y")?, 32)?,
            [Algorithm::ES384] => point(&bytes("x")?, &bytes("y")?, 48)?,
            [Algorithm::EdDSA] => DecodingKey::from_ed_der(coordinate("x", &bytes("x")?, 32)?),
            [algorithm, ..] if algorithm.family() == AlgorithmFamily::Rsa => rsa(&bytes("n")?, &bytes("e")?)?,
            _ => secret(&bytes("k")?, &mut algorithms)?,
        };
        for algorithm in &algorithms {
            crypto::verify("", b"", &key, *algorithm).map_err(|_| "it is not a point on its curve")?;
        }
        Ok(Some(Self { id, key, algorithms }))
    }

    /// Whether a token means this key.
    ///
    /// `kid` is optional in a token and in a key. A token without it may mean any key, so that keys can rotate. A token with it
    /// means all keys of exactly that name: several may share one (RFC 7517, section 4.5). It does not mean a key without a
    /// name, because the token's `kid` has to match the key's (RFC 7515, section 4.1.4).
    pub(crate) fn is_meant_by(&self, header: &Header) -> bool {
        header.kid.is_none() || self.id == header.kid
    }
}

/// A point of a curve whose coordinates have `size` bytes.
fn point(x: &[u8], y: &[u8], size: usize) -> Result<DecodingKey, String> {
    // SEC 1, section 2.3.3: 4 stands for an uncompressed point.
    Ok(DecodingKey::from_ec_der(&[&[4], coordinate("x", x, size)?, coordinate("y", y, size)?].concat()))
}

/// A coordinate has every leading zero (RFC 7518, section 6.2.1.2; RFC 8037, section 2).
fn coordinate<'a>(name: &str, bytes: &'a [u8], size: usize) -> Result<&'a [u8], String> {
    let length = bytes.len();
    if length == size { Ok(bytes) } else { Err(format!("its `{name}` has {length} bytes, and its curve needs {size}")) }
}

fn rsa(modulus: &[u8], exponent: &[u8]) -> Result<DecodingKey, Unusable> {
    let bits = bits(modulus);
    if bits < MIN_RSA_BITS {
        return Err(Unusable::Unsafe(format!("its modulus has {bits} bits, and RSA needs {MIN_RSA_BITS} or more")));
    }
    if bits > MAX_RSA_BITS {
        return Err(format!("its modulus has {bits} bits, and {MAX_RSA_BITS} is the most that is supported").into());
    }
    let is_odd = |number: &[u8]| number.last().is_some_and(|byte| byte % 2 == 1);
    if !is_odd(modulus) {
        return Err("its `n` is not the modulus of an RSA key".into());
    }
    if !is_odd(exponent) || !(2..=MAX_RSA_EXPONENT_BITS).contains(&self::bits(exponent)) {
        return Err("its `e` is not a supported exponent of an RSA key".into());
    }
    Ok(DecodingKey::from_rsa_raw_components(modulus, exponent))
}

/// How long a number is without its leading zeros.
fn bits(number: &[u8]) -> usize {
    let zeros: usize = number.iter().take_while(|byte| **byte == 0).count();
    number.get(zeros).map_or(0, |first| (number.len() - zeros) * 8 - first.leading_zeros() as usize)
}

/// A secret, which must be as long as the digest (RFC 7518, section 3.2). Algorithms with a longer digest are dropped.
fn secret(secret: &[u8], algorithms: &mut Vec<Algorithm>) -> Result<DecodingKey, Unusable> {
    let digest = |algorithm: &Algorithm| match algorithm {
        Algorithm::HS256 => 32,
        Algorithm::HS384 => 48,
        _ => 64,
    };
    let least = algorithms[0];
    algorithms.retain(|algorithm| secret.len() >= digest(algorithm));
    if algorithms.is_empty() {
        let (length, needed) = (secret.len(), digest(&least));
        return Err(Unusable::Unsafe(format!("its secret has {length} bytes, and {least:?} needs {needed} or more")));
    }
    Ok(DecodingKey::from_secret(secret))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::example_keys::{at, header, jwk, set, token};

    /// A number of so many bits, in base64url: the first bit and the last are 1.
    fn number(bits: usize) -> String {
        let mut bytes = vec![0xa5; bits.div_ceil(8)];
        bytes[0] = 1 << ((bits - 1) % 8);
        *bytes.last_mut().unwrap() |= 1;
        URL_SAFE_NO_PAD.encode(bytes)
    }

    fn zeros(bytes: usize) -> String {
        URL_SAFE_NO_PAD.encode(vec![0; bytes])
    }

    /// Reads a set, and tries each of its keys with signatures that are nonsense: none may panic.
    fn parse(text: &str) -> Result<KeySet, String> {
        let set = KeySet::parse(text, Origin::Vault);
        if let Ok(set) = &set {
            for key in &set.keys {
                for algorithm in &key.algorithms {
                    for signature in [vec![], vec![0; 32], vec![0xff; 64], vec![1; 96], vec![0; 256], vec![0xff; 512]] {
                        let signature = URL_SAFE_NO_PAD.encode(signature);
                        assert!(
                            !crypto::verify(&signature, b"message", &key.key, *algorithm).unwrap(),
                            "{algorithm:?}"
                        );
                    }
                }
            }
        }
        set
    }

    #[test]
    fn a_key_that_cannot_be_used_is_skipped_with_its_place_and_its_reason() {
        use Algorithm::{ES256, ES384, EdDSA, HS256, RS256};
        let good = jwk(RS256, &json!({"kid": "good"}));
        let token = token(&header(RS256, Some("good")), &json!({"sub": "alice", "exp": at(60)}));
        let coordinate = jwk(ES256, &json!({}))["x"].clone();
        for (odd, reason) in [
            (
                json!({"kty": "AKP", "alg": "ML-DSA-44", "kid": "pq", "use": "sig", "pub": "AAAA"}),
                "its `kty` is not known here",
            ),
            (
                json!({"kty": "EC", "crv": "secp256k1", "alg": "ES256K", "x": zeros(32), "y": zeros(32)}),
                "its `crv` is not known",
            ),
            (
                json!({"kty": "EC", "crv": "P-521", "alg": "ES512", "x": zeros(66), "y": zeros(66)}),
                "its `crv` is not known",
            ),
            (json!({"kty": "OKP", "crv": "X25519", "x": zeros(32)}), "its `crv` is not known here"),
            (
                json!({"kty": "OKP", "crv": "Ed448", "alg": "EdDSA", "use": "sig", "x": zeros(57)}),
                "its `crv` is not known here",
            ),
            (json!({"kty": "OKP", "x": zeros(32)}), "its `crv` is not known here"),
            (json!({"kty": 1}), "its `kty` is not a string"),
            (json!({}), "it has no `kty`"),
            (json!("text"), "it has no `kty`"),
            (json!(null), "it has no `kty`"),
            // Keys for something else.
            (jwk(RS256, &json!({"alg": "RSA-OAEP"})), "its `alg` is not one that"),
            (jwk(RS256, &json!({"alg": "RSA-OAEP", "n": number(1024)})), "its `alg` is not one that"),
            (jwk(RS256, &json!({"alg": "HS256"})), "its `alg` is not one that"),
            (jwk(HS256, &json!({"alg": "RS256"})), "its `alg` is not one that"),
            (jwk(ES256, &json!({"alg": "ES384"})), "its `alg` is not one that"),
            (jwk(EdDSA, &json!({"alg": "none"})), "its `alg` is not one that"),
            (jwk(RS256, &json!({"alg": 256})), "its `alg` is not a string"),
            (jwk(RS256, &json!({"use": "tls"})), "its `use` is not `sig`"),
            (jwk(RS256, &json!({"use": ["sig"]})), "its `use` is not a string"),
            (jwk(RS256, &json!({"key_ops": ["encrypt"]})), "its `key_ops` does not list `verify`"),
            (jwk(RS256, &json!({"key_ops": []})), "its `key_ops` does not list `verify`"),
            (jwk(RS256, &json!({"key_ops": "verify"})), "its `key_ops` does not list `verify`"),
            (jwk(HS256, &json!({"key_ops": ["sign"], "k": "AA"})), "its `key_ops` does not list `verify`"),
            (jwk(RS256, &json!({"kid": 7})), "its `kid` is not a string"),
            (jwk(RS256, &json!({"kid": ["good"]})), "its `kid` is not a string"),
            // Points that would be found out, or panic, at the first token.
            (jwk(EdDSA, &json!({"x": zeros(20)})), "its `x` has 20 bytes, and its curve needs 32"),
            (jwk(EdDSA, &json!({"x": zeros(33)})), "its `x` has 33 bytes, and its curve needs 32"),
            (jwk(EdDSA, &json!({"x": ""})), "its `x` has 0 bytes, and its curve needs 32"),
            (jwk(EdDSA, &json!({"x": URL_SAFE_NO_PAD.encode([2; 32])})), "it is not a point on its curve"),
            (jwk(ES256, &json!({"x": zeros(31)})), "its `x` has 31 bytes, and its curve needs 32"),
            (jwk(ES256, &json!({"x": zeros(31), "y": zeros(33)})), "its `x` has 31 bytes, and its curve needs 32"),
            (jwk(ES384, &json!({"y": zeros(32)})), "its `y` has 32 bytes, and its curve needs 48"),
            (jwk(ES256, &json!({"y": zeros(32)})), "it is not a point on its curve"),
            (jwk(ES256, &json!({"x": zeros(32), "y": zeros(32)})), "it is not a point on its curve"),
            (jwk(ES256, &json!({"y": coordinate})), "it is not a point on its curve"),
            (jwk(ES384, &json!({"x": URL_SAFE_NO_PAD.encode([0xff; 48])})), "it is not a point on its curve"),
            (jwk(ES256, &json!({"y": null})), "it has no `y`"),
            // Numbers that are no RSA key, or not one that can be checked with.
            (jwk(RS256, &json!({"n": null})), "it has no `n`"),
            (jwk(RS256, &json!({"n": "!"})), "its `n` is not base64url"),
            (jwk(RS256, &json!({"n": number(4097)})), "its modulus has 4097 bits, and 4096 is the most"),
            (jwk(RS256, &json!({"n": URL_SAFE_NO_PAD.encode([0xfe; 256])})), "its `n` is not the modulus"),
            (jwk(RS256, &json!({"e": ""})), "its `e` is not a supported exponent"),
            (jwk(RS256, &json!({"e": "AA"})), "its `e` is not a supported exponent"),
            (jwk(RS256, &json!({"e": "AQ"})), "its `e` is not a supported exponent"),
            (jwk(RS256, &json!({"e": "AQAA"})), "its `e` is not a supported exponent"),
            (jwk(RS256, &json!({"e": number(34)})), "its `e` is not a supported exponent"),
            (jwk(HS256, &json!({"k": null})), "it has no `k`"),
            (jwk(HS256, &json!({"k": "a secret with spaces"})), "its `k` is not base64url"),
        ] {
            for (keys, place) in [([good.clone(), odd.clone()], 1), ([odd.clone(), good.clone()], 0)] {
                let KeySet { keys, skipped } = parse(&set(&keys)).unwrap();
                assert_eq!((keys.len(), skipped.len()), (1, 1), "{odd}");
                assert!(skipped[0].starts_with(&format!("keys[{place}] is skipped: {reason}")), "{odd}: {skipped:?}");
                let validation = jsonwebtoken::Validation::new(RS256);
                jsonwebtoken::decode::<Value>(&token, &keys[0].key, &validation).unwrap();
                for secret in ["k", "x", "y", "n"].into_iter().filter_map(|name| odd[name].as_str()) {
                    assert!(secret.len() < 4 || !skipped[0].contains(secret), "{skipped:?}");
                }
            }
            let alone = parse(&set(std::slice::from_ref(&odd))).err().unwrap();
            let expected = format!("no key of the set can check signatures, keys[0] is skipped: {reason}");
            assert!(alone.starts_with(&expected), "{alone}");
        }
    }

    #[test]
    fn a_key_that_is_too_weak_ends_the_function_whatever_else_is_in_its_set() {
        use Algorithm::{HS256, HS512, RS256};
        let rsa = "and RSA needs 2048 or more";
        for (weak, problem) in [
            (jwk(RS256, &json!({"n": number(1024)})), format!("its modulus has 1024 bits, {rsa}")),
            (jwk(RS256, &json!({"n": number(2047)})), format!("its modulus has 2047 bits, {rsa}")),
            (jwk(RS256, &json!({"n": ""})), format!("its modulus has 0 bits, {rsa}")),
            // Zeros in front do not make a number longer.
            (
                jwk(RS256, &json!({"n": URL_SAFE_NO_PAD.encode([[0; 128], [0xff; 128]].concat())})),
                format!("its modulus has 1024 bits, {rsa}"),
            ),
            (jwk(HS256, &json!({"k": zeros(31)})), "its secret has 31 bytes, and HS256 needs 32 or more".to_owned()),
            (jwk(HS256, &json!({"k": zeros(1), "alg": null})), "its secret has 1 bytes, and HS256 needs 32".to_owned()),
            (jwk(HS256, &json!({"k": ""})), "its secret has 0 bytes, and HS256 needs 32".to_owned()),
            (
                jwk(HS512, &json!({"k": zeros(47), "alg": "HS384"})),
                "its secret has 47 bytes, and HS384 needs 48".to_owned(),
            ),
            (jwk(HS512, &json!({"k": zeros(63)})), "its secret has 63 bytes, and HS512 needs 64".to_owned()),
        ] {
            let good = jwk(Algorithm::ES256, &json!({}));
            let error = parse(&set(&[good, weak.clone(), weak.clone()])).err().unwrap();
            assert!(
                error.starts_with(&format!("keys[1]: {problem}")) && error.contains(", keys[2]: "),
                "{weak}: {error}"
            );
        }
    }

    #[test]
    fn a_key_signs_in_the_ways_of_its_kind_that_it_is_strong_enough_for() {
        use Algorithm::{ES256, ES384, EdDSA, HS256, HS384, HS512, PS256, PS384, PS512, RS256, RS384, RS512};
        let any = |algorithm, members: &Value| {
            let mut key = jwk(algorithm, members);
            key.as_object_mut().unwrap().remove("alg");
            key
        };
        for (key, algorithms) in [
            (any(RS256, &json!({})), &[RS256, RS384, RS512, PS256, PS384, PS512][..]),
            (jwk(RS256, &json!({"alg": "PS384"})), &[PS384]),
            (any(RS256, &json!({"n": number(2048)})), &[RS256, RS384, RS512, PS256, PS384, PS512]),
            (any(RS256, &json!({"n": number(4096), "e": number(33)})), &[RS256, RS384, RS512, PS256, PS384, PS512]),
            (any(RS256, &json!({"e": "Aw"})), &[RS256, RS384, RS512, PS256, PS384, PS512]),
            (any(ES256, &json!({})), &[ES256]),
            (any(ES384, &json!({})), &[ES384]),
            (any(EdDSA, &json!({})), &[EdDSA]),
            (any(HS256, &json!({"k": zeros(32)})), &[HS256]),
            (any(HS256, &json!({"k": zeros(48)})), &[HS256, HS384]),
            (any(HS256, &json!({"k": zeros(64)})), &[HS256, HS384, HS512]),
            (jwk(HS256, &json!({"k": zeros(64)})), &[HS256]),
            // Members that say what is true anyway, that are not set, or that nobody needs here.
            (
                jwk(ES256, &json!({"use": "sig", "key_ops": ["sign", "verify"], "x5c": 7, "d": "AAAA", "new": {}})),
                &[ES256],
            ),
        ] {
            let KeySet { keys, skipped } = parse(&set(std::slice::from_ref(&key))).unwrap();
            assert_eq!((keys[0].algorithms.as_slice(), skipped.len()), (algorithms, 0), "{key}");
        }
        let unset = r#"{"keys":[{"kty":"oct","k":"K","kid":null,"use":null,"key_ops":null,"alg":null,"crv":null}]}"#;
        assert_eq!(parse(&unset.replace('K', &zeros(32))).unwrap().keys[0].algorithms, [HS256]);
    }

    #[test]
    fn a_key_for_encryption_is_passed_over_without_a_word() {
        let encrypts = jwk(Algorithm::RS256, &json!({"use": "enc", "alg": "RSA-OAEP", "n": number(1024)}));
        let KeySet { keys, skipped } = parse(&set(&[encrypts.clone(), jwk(Algorithm::ES256, &json!({}))])).unwrap();
        assert_eq!((keys.len(), skipped.len()), (1, 0));
        assert_eq!(parse(&set(&[encrypts])).err().unwrap(), "no key of the set can check signatures");
    }

    #[test]
    fn what_is_not_a_set_is_told_by_its_place_and_not_by_its_text() {
        let secret = "c2hvcnQtYW5kLXNlY3JldA";
        for (text, expected) in [
            (secret.to_owned(), "the text is not JSON, from line 1 column "),
            (format!("{{\"keys\":[{{\"k\":\"{secret}\""), "the text is not JSON, from line 1 column "),
            (format!("\"{secret}\""), "the JSON is not a JWK Set"),
            (format!(r#"{{"kty":"oct","k":"{secret}"}}"#), "the JSON is not a JWK Set"),
            (format!(r#"{{"keys":{{"k":"{secret}"}}}}"#), "the JSON is not a JWK Set"),
            (r#"{"keys":[]}"#.to_owned(), "no key of the set can check signatures"),
            (
                format!(r#"{{"keys":["{secret}"]}}"#),
                "no key of the set can check signatures, keys[0] is skipped: it has no `kty`",
            ),
        ] {
            let error = parse(&text).err().unwrap();
            assert!(error.starts_with(expected) && !error.contains(secret), "{error}");
        }
    }
}

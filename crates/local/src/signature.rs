//! Signature Version 4. Callers of the management API and of SSM sign with it, and clients do if `$connect` requires it.
//!
//! This module implements the receiving side of "Create a signed AWS API request" (IAM User Guide). A signature must be
//! present (`--sigv4 present`), or it is also verified (`--sigv4 verify`) with the credentials of the functions. Error
//! types and texts are those of AWS services in general. Inferred: API Gateway answers with the same ones.
//!
//! A signature can be in the query, because browsers cannot set headers in a handshake. Such a signature says how long
//! it is valid. This module does not implement Signature Version 4A.

use clap::ValueEnum;
use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit, Mac};
use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{HeaderMap, HeaderName};
use jiff::{SignedDuration, Timestamp};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha2::{Digest, Sha256};

use crate::lambda::Credentials;

/// The service name in the scope of the credentials (`signingName` in the service model).
const SIGNING_NAME: &str = "execute-api";

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// The largest difference between a signature's time and now.
const SKEW: SignedDuration = SignedDuration::from_mins(5);

/// The longest validity of a signature in the query, in seconds ("X-Amz-Expires").
const MAX_EXPIRES_S: i64 = 604_800;

/// "Do not URI-encode any of the unreserved characters".
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const RESERVED_IN_PATH: &AsciiSet = &RESERVED.remove(b'/');

/// The reason why a signature is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SignatureError {
    /// The request has no signature.
    #[error("Missing Authentication Token")]
    Missing,
    /// The request is signed for another service. Some SDK versions did that by mistake. The text ends with a space.
    #[error("Credential should be scoped to correct service: '{0}'. ")]
    WrongService(&'static str),
    /// A part of the signature is missing or malformed.
    #[error("Authorization header requires 'Credential', 'Signature' and 'SignedHeaders', and a date.")]
    Incomplete,
    /// The access key is unknown, or its session token is another one.
    #[error("The security token included in the request is invalid.")]
    UnknownKey,
    /// The time of the signature is more than five minutes from now, or the validity of a signature in the query is
    /// over.
    #[error("Signature expired or not yet current.")]
    Expired,
    /// The request was signed with another secret, or was changed after it was signed.
    #[error("The request signature we calculated does not match the signature you provided.")]
    Mismatch,
}

impl SignatureError {
    /// Returns the value of `x-amzn-errortype`.
    pub(crate) fn error_type(self) -> &'static str {
        match self {
            Self::Missing => "MissingAuthenticationTokenException",
            Self::Incomplete => "IncompleteSignatureException",
            Self::UnknownKey => "UnrecognizedClientException",
            Self::WrongService(_) | Self::Expired | Self::Mismatch => "InvalidSignatureException",
        }
    }
}

/// The check of signatures (`--sigv4`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Sigv4 {
    /// Do not check them. Unsigned calls and handshakes are accepted.
    Off,
    /// They must be present and made for execute-api.
    #[default]
    Present,
    /// They must also be valid for the credentials of a function.
    Verify,
}

/// The parts of a request's signature.
#[derive(Debug, Default)]
struct Claim {
    /// The access key, date, region, service and `aws4_request`.
    credential: Vec<String>,
    signed_headers: String,
    signature: String,
    /// The time of the signature, for example `20150830T123600Z`.
    time: String,
    token: Option<String>,
    in_query: bool,
    /// The validity of a signature in the query, in seconds.
    expires: String,
}

/// Refuses a request if its signature does not satisfy `how`. `body` is the digest of the body. It is used only when
/// signatures are verified.
pub(crate) fn check(
    request: &Parts,
    body: Sha256,
    how: Sigv4,
    credentials: &[Credentials],
) -> Result<(), SignatureError> {
    if how == Sigv4::Off {
        return Ok(());
    }
    let claim = Claim::for_service(request, SIGNING_NAME)?;
    if how == Sigv4::Present { Ok(()) } else { verify(&claim, request, body, credentials) }
}

/// Refuses a call of another service if its signature is not valid.
pub(crate) fn check_call(
    request: &Parts,
    body: &[u8],
    service: &'static str,
    credentials: &[Credentials],
) -> Result<(), SignatureError> {
    let claim = Claim::for_service(request, service)?;
    verify(&claim, request, Sha256::new_with_prefix(body), credentials)
}

fn verify(claim: &Claim, request: &Parts, body: Sha256, credentials: &[Credentials]) -> Result<(), SignatureError> {
    let [access_key_id, date, ..] = claim.credential.as_slice() else { return Err(SignatureError::Incomplete) };
    let time = jiff::fmt::strtime::parse("%Y%m%dT%H%M%SZ", &claim.time).and_then(|time| time.to_datetime());
    let time = time.and_then(|time| time.to_zoned(jiff::tz::TimeZone::UTC)).map_err(|_| SignatureError::Incomplete)?;
    if claim.credential.len() != 5 || !claim.time.starts_with(date) || claim.signed_headers.is_empty() {
        return Err(SignatureError::Incomplete);
    }
    let known = credentials
        .iter()
        .find(|known| known.access_key_id == *access_key_id && known.is_token(claim.token.as_deref()));
    let known = known.ok_or(SignatureError::UnknownKey)?;
    let age = Timestamp::now().duration_since(time.timestamp());
    if age < -SKEW || age > claim.lifetime().ok_or(SignatureError::Incomplete)? {
        return Err(SignatureError::Expired);
    }
    let expected = HEXLOWER.encode(&claim.mac(request, &HEXLOWER.encode(&body.finalize()), &known.secret_access_key));
    if expected == claim.signature { Ok(()) } else { Err(SignatureError::Mismatch) }
}

/// Returns the access key id in a request's signature. The signature is not verified.
pub(crate) fn access_key_id(headers: &HeaderMap, query: Option<&str>) -> Option<String> {
    Claim::of(headers, query)?.credential.into_iter().next()
}

/// Returns the session token of a request, which says which execution environment signed it.
pub(crate) fn session_token(headers: &HeaderMap, query: Option<&str>) -> Option<String> {
    match headers.get("x-amz-security-token") {
        Some(token) => token.to_str().ok().map(str::to_owned),
        None => parameters(query?).find(|(name, _)| name == "X-Amz-Security-Token").map(|(_, token)| token),
    }
}

impl Claim {
    /// Reads a signature that must be for a service.
    fn for_service(request: &Parts, service: &'static str) -> Result<Self, SignatureError> {
        let claim = Self::of(&request.headers, request.uri.query()).ok_or(SignatureError::Missing)?;
        let is_for_it = claim.credential.iter().rev().nth(1).is_some_and(|name| name == service);
        if is_for_it { Ok(claim) } else { Err(SignatureError::WrongService(service)) }
    }

    /// Reads the signature from the header, else from the query.
    fn of(headers: &HeaderMap, query: Option<&str>) -> Option<Self> {
        let header = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let mut claim = Self::default();
        if let Some(authorization) = header(AUTHORIZATION).as_deref().and_then(|value| value.strip_prefix(ALGORITHM)) {
            for part in authorization.split(',') {
                match part.trim().split_once('=') {
                    Some(("Credential", value)) => claim.credential = split(value),
                    Some(("SignedHeaders", value)) => value.clone_into(&mut claim.signed_headers),
                    Some(("Signature", value)) => value.clone_into(&mut claim.signature),
                    _ => {}
                }
            }
            claim.time = header(HeaderName::from_static("x-amz-date")).unwrap_or_default();
            claim.token = header(HeaderName::from_static("x-amz-security-token"));
        } else {
            claim.in_query = true;
            for (name, value) in parameters(query.unwrap_or_default()) {
                match name.as_str() {
                    "X-Amz-Credential" => claim.credential = split(&value),
                    "X-Amz-SignedHeaders" => claim.signed_headers = value,
                    "X-Amz-Signature" => claim.signature = value,
                    "X-Amz-Date" => claim.time = value,
                    "X-Amz-Expires" => claim.expires = value,
                    "X-Amz-Security-Token" => claim.token = Some(value),
                    _ => {}
                }
            }
        }
        (!claim.credential.is_empty()).then_some(claim)
    }

    /// Returns the longest age of the signature. Returns `None` if it is in the query and has no valid lifetime.
    fn lifetime(&self) -> Option<SignedDuration> {
        if !self.in_query {
            return Some(SKEW);
        }
        let seconds = self.expires.parse().ok().filter(|seconds| (1..=MAX_EXPIRES_S).contains(seconds))?;
        Some(SignedDuration::from_secs(seconds))
    }

    /// Computes the signature that the request should have.
    fn mac(&self, request: &Parts, body_sha256: &str, secret_access_key: &str) -> Vec<u8> {
        let scope = &self.credential[1..];
        let canonical = HEXLOWER.encode(&Sha256::digest(self.canonical_request(request, body_sha256)));
        let to_sign = format!("{ALGORITHM}\n{}\n{}\n{canonical}", self.time, scope.join("/"));
        let key = scope.iter().fold(format!("AWS4{secret_access_key}").into_bytes(), |key, part| hmac(&key, part));
        hmac(&key, &to_sign)
    }

    fn canonical_request(&self, request: &Parts, body_sha256: &str) -> String {
        // The path is encoded a second time, as for every service except S3.
        let path = utf8_percent_encode(request.uri.path(), RESERVED_IN_PATH);
        let encode = |text: &str| utf8_percent_encode(text, RESERVED).to_string();
        let mut query: Vec<_> = parameters(request.uri.query().unwrap_or_default())
            .filter(|(name, _)| !(self.in_query && name == "X-Amz-Signature"))
            .map(|(name, value)| format!("{}={}", encode(&name), encode(&value)))
            .collect();
        query.sort_unstable();
        let mut headers = String::new();
        for name in self.signed_headers.split(';') {
            let values =
                request.headers.get_all(name).into_iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
            let values = values.map(|value| value.split_ascii_whitespace().collect::<Vec<_>>().join(" "));
            headers.push_str(&format!("{name}:{}\n", values.collect::<Vec<_>>().join(",")));
        }
        let payload = match request.headers.get("x-amz-content-sha256").and_then(|value| value.to_str().ok()) {
            Some(unsigned @ "UNSIGNED-PAYLOAD") => unsigned,
            _ => body_sha256,
        };
        let (method, query, signed) = (&request.method, query.join("&"), &self.signed_headers);
        format!("{method}\n{path}\n{query}\n{headers}\n{signed}\n{payload}")
    }
}

fn split(credential: &str) -> Vec<String> {
    credential.split('/').map(str::to_owned).collect()
}

/// Decodes the names and values of a query. Unlike in a form, `+` stays `+`.
fn parameters(query: &str) -> impl Iterator<Item = (String, String)> {
    let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    query.split('&').filter(|pair| !pair.is_empty()).map(move |pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(name), decode(value))
    })
}

fn hmac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(request: http::request::Builder) -> Parts {
        request.body(()).unwrap().into_parts().0
    }

    fn credentials() -> Vec<Credentials> {
        vec![Credentials {
            access_key_id: "AK".to_owned(),
            secret_access_key: "secret".to_owned(),
            session_token: "token".to_owned(),
        }]
    }

    /// Makes a request with a valid signature of this time.
    fn signed(time: Timestamp) -> Parts {
        let time = time.strftime("%Y%m%dT%H%M%SZ").to_string();
        let request = Request::post("/dev/@connections/PJqB0fHsqRcCHlw%3D?b=2&a=%20")
            .header("host", "localhost:3001")
            .header("x-amz-date", &time)
            .header("x-amz-security-token", "token");
        let claim = Claim {
            credential: split(&format!("AK/{}/us-east-1/execute-api/aws4_request", &time[..8])),
            signed_headers: "host;x-amz-date;x-amz-security-token".to_owned(),
            time,
            ..Claim::default()
        };
        let mut request = parts(request);
        let signature = HEXLOWER.encode(&claim.mac(&request, &HEXLOWER.encode(&Sha256::digest(b"hello")), "secret"));
        let authorization = format!(
            "{ALGORITHM} Credential={}, SignedHeaders={}, Signature={signature}",
            claim.credential.join("/"),
            claim.signed_headers
        );
        request.headers.insert(AUTHORIZATION, authorization.parse().unwrap());
        request
    }

    fn verify(request: &Parts, body: &'static [u8]) -> Result<(), SignatureError> {
        check(request, Sha256::new_with_prefix(body), Sigv4::Verify, &credentials())
    }

    #[test]
    fn the_signature_of_awss_own_example_is_right() {
        // The example is `get-vanilla` in the test suite of Signature Version 4.
        let request =
            Request::get("/").header("host", "example.amazonaws.com").header("x-amz-date", "20150830T123600Z");
        let claim = Claim {
            credential: split("AKIDEXAMPLE/20150830/us-east-1/service/aws4_request"),
            signed_headers: "host;x-amz-date".to_owned(),
            time: "20150830T123600Z".to_owned(),
            ..Claim::default()
        };
        let mac = claim.mac(
            &parts(request),
            &HEXLOWER.encode(&Sha256::digest(b"")),
            "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
        );
        assert_eq!(HEXLOWER.encode(&mac), "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31");
    }

    #[test]
    fn the_path_is_encoded_twice_and_the_query_is_sorted() {
        let claim = Claim { signed_headers: "host".to_owned(), ..Claim::default() };
        let canonical = claim.canonical_request(&signed(Timestamp::now()), "");
        assert!(
            canonical.starts_with(
                "POST\n/dev/%40connections/PJqB0fHsqRcCHlw%253D\na=%20&b=2\nhost:localhost:3001\n\nhost\n"
            )
        );
    }

    #[test]
    fn a_signature_must_be_present_and_for_this_service() {
        let present = |request: http::request::Builder| check(&parts(request), Sha256::new(), Sigv4::Present, &[]);
        let authorized = |value: &'static str| present(Request::get("/").header("authorization", value));
        assert_eq!(present(Request::get("/")), Err(SignatureError::Missing));
        assert_eq!(authorized("Bearer token"), Err(SignatureError::Missing));
        let sigv4 = "AWS4-HMAC-SHA256 Credential=AK/20240120/us-east-1/execute-api/aws4_request, SignedHeaders=host, \
                     Signature=0";
        assert_eq!(authorized(sigv4), Ok(()));
        let other = "AWS4-HMAC-SHA256 Credential=AK/20240120/us-east-1/apigateway/aws4_request,Signature=0";
        assert_eq!(authorized(other), Err(SignatureError::WrongService("execute-api")));
        let query = "/?X-Amz-Credential=AK%2F20240120%2Fus-east-1%2Fexecute-api%2Faws4_request&X-Amz-Signature=0";
        assert_eq!(present(Request::get(query)), Ok(()));
        assert_eq!(check(&parts(Request::get("/")), Sha256::new(), Sigv4::Off, &[]), Ok(()));
    }

    #[test]
    fn a_request_that_was_changed_after_it_was_signed_is_refused() {
        let request = || signed(Timestamp::now());
        assert_eq!(verify(&request(), b"hello"), Ok(()));
        assert_eq!(verify(&request(), b"hellO"), Err(SignatureError::Mismatch));
        let mut other_host = request();
        other_host.headers.insert("host", "localhost:3002".parse().unwrap());
        assert_eq!(verify(&other_host, b"hello"), Err(SignatureError::Mismatch));
        let mut other_path = request();
        other_path.uri = "/dev/@connections/PJqB0fHsqRcCHlx%3D?b=2&a=%20".parse().unwrap();
        assert_eq!(verify(&other_path, b"hello"), Err(SignatureError::Mismatch));
        let mut other_token = request();
        other_token.headers.insert("x-amz-security-token", "other".parse().unwrap());
        assert_eq!(verify(&other_token, b"hello"), Err(SignatureError::UnknownKey));
        let mut no_date = request();
        no_date.headers.remove("x-amz-date");
        assert_eq!(verify(&no_date, b"hello"), Err(SignatureError::Incomplete));
    }

    /// Makes a handshake's request with a signature of this age in its query.
    fn presigned(age: SignedDuration, expires: &str) -> Parts {
        let time = (Timestamp::now() - age).strftime("%Y%m%dT%H%M%SZ").to_string();
        let credential = format!("AK/{}/us-east-1/execute-api/aws4_request", &time[..8]);
        let query = format!(
            "X-Amz-Algorithm={ALGORITHM}&X-Amz-Credential={}&X-Amz-Date={time}&X-Amz-Expires={expires}\
             &X-Amz-Security-Token=token&X-Amz-SignedHeaders=host&userId=1",
            credential.replace('/', "%2F")
        );
        let request = |query: &str| parts(Request::get(format!("/dev?{query}")).header("host", "localhost:3001"));
        let unsigned = request(&query);
        let claim = Claim::of(&unsigned.headers, unsigned.uri.query()).unwrap();
        let signature = HEXLOWER.encode(&claim.mac(&unsigned, &HEXLOWER.encode(&Sha256::digest(b"")), "secret"));
        request(&format!("{query}&X-Amz-Signature={signature}"))
    }

    #[test]
    fn a_signature_in_the_query_is_valid_for_as_long_as_it_says() {
        let seconds = SignedDuration::from_secs;
        let verify = |age, expires| verify(&presigned(seconds(age), expires), b"");
        assert_eq!((verify(0, "60"), verify(50, "60"), verify(-200, "60")), (Ok(()), Ok(()), Ok(())));
        assert_eq!(verify(604_000, "604800"), Ok(()));
        assert_eq!(
            (verify(70, "60"), verify(-400, "60")),
            (Err(SignatureError::Expired), Err(SignatureError::Expired))
        );
        for expires in ["", "0", "-1", "604801", "x", "99999999999999999999"] {
            assert_eq!(verify(0, expires), Err(SignatureError::Incomplete), "{expires}");
        }
        let mut longer = presigned(seconds(70), "60");
        longer.uri = longer.uri.to_string().replace("Expires=60", "Expires=600").parse().unwrap();
        assert_eq!(self::verify(&longer, b""), Err(SignatureError::Mismatch));
    }

    #[test]
    fn a_signature_in_the_header_is_valid_for_five_minutes() {
        let at = |minutes| verify(&signed(Timestamp::now() - SignedDuration::from_mins(minutes)), b"hello");
        assert_eq!((at(4), at(-4)), (Ok(()), Ok(())));
        assert_eq!((at(6), at(-6)), (Err(SignatureError::Expired), Err(SignatureError::Expired)));
    }
}

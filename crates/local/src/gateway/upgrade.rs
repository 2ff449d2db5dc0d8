//! The checks of an upgrade request that need no function.

use http::header::{CONNECTION, HOST, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::head::text;
use super::paths::Paths;
use super::refusal::Refusal;

/// The parts of a valid upgrade request that the answer needs.
#[derive(Debug)]
pub(super) struct Upgrade {
    /// The value of `Sec-WebSocket-Accept`.
    pub(super) accept: HeaderValue,
    pub(super) host: String,
}

/// Runs the checks that need no function. If two of them fail, the first one is reported. That order is inferred.
pub(super) fn check<B>(paths: &Paths, url_limit: usize, request: &Request<B>) -> Result<Upgrade, Refusal> {
    let (headers, path) = (request.headers(), request.uri().path());
    let is_upgrade = request.method() == Method::GET
        && has_token(headers, &CONNECTION, "upgrade")
        && has_token(headers, &UPGRADE, "websocket");
    if !is_upgrade {
        return Err(Refusal::new(StatusCode::UPGRADE_REQUIRED, "the request is not a WebSocket upgrade"));
    }

    let bad_request = |why| Refusal::new(StatusCode::BAD_REQUEST, why);
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(bad_request("Sec-WebSocket-Version is not 13"));
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes).filter(|key| is_key(key));
    let accept = key.and_then(|key| HeaderValue::try_from(derive_accept_key(key)).ok());
    let accept = accept.ok_or(bad_request("Sec-WebSocket-Key is not the Base64 of 16 bytes"))?;
    let host = headers.get(HOST).map(text).ok_or(bad_request("the Host header is missing"))?;

    let segment = path.strip_prefix('/').unwrap_or(path);
    let segment = segment.strip_suffix('/').filter(|segment| !segment.is_empty()).unwrap_or(segment);
    if !paths.serves_clients(segment) {
        return Err(Refusal::new(StatusCode::FORBIDDEN, "the API is not available at this path"));
    }

    let path_and_query = request.uri().path_and_query().map_or(0, |path| path.as_str().len());
    // The limit is for the URL that a client uses on AWS, with scheme and host.
    if "wss://".len() + host.len() + path_and_query > url_limit {
        return Err(Refusal::new(StatusCode::URI_TOO_LONG, "the URL is too long"));
    }
    Ok(Upgrade { accept, host })
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(token))
}

/// Returns whether the key is the Base64 of 16 bytes (RFC 6455, section 4.1).
fn is_key(key: &[u8]) -> bool {
    let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    key.len() == 24 && key.ends_with(b"==") && key[..22].iter().all(is_base64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upgrade(path: &str) -> http::request::Builder {
        Request::get(path)
            .header("host", "localhost:3001")
            .header("connection", "keep-alive, Upgrade")
            .header("upgrade", "WebSocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
    }

    fn refused(request: http::request::Builder) -> Option<u16> {
        refused_by(&Paths { stage: Some("dev".to_owned()), ..Paths::default() }, request)
    }

    fn refused_by(paths: &Paths, request: http::request::Builder) -> Option<u16> {
        check(paths, 4096, &request.body(()).unwrap()).err().map(|refusal| refusal.status.as_u16())
    }

    #[test]
    fn clients_can_connect_at_the_stage_and_at_the_root() {
        for path in ["/dev", "/dev/", "/dev?userId=2", "/"] {
            assert_eq!(refused(upgrade(path)), None, "{path}");
        }
        for path in ["/nostage", "/dev/extra", "/dev//", "/de", "/Dev", "//", "//dev"] {
            assert_eq!(refused(upgrade(path)), Some(403), "{path}");
        }
    }

    #[test]
    fn a_disabled_endpoint_has_no_stage() {
        let paths = Paths::default();
        assert_eq!(refused_by(&paths, upgrade("/")), None);
        assert_eq!((refused_by(&paths, upgrade("/dev")), refused_by(&paths, upgrade("//"))), (Some(403), Some(403)));
    }

    #[test]
    fn a_request_that_is_not_a_websocket_handshake_is_refused() {
        let edited = |name: &str, value: &'static str| {
            let mut request = upgrade("/nostage");
            if let Some(headers) = request.headers_mut() {
                headers.insert(HeaderName::try_from(name).unwrap(), HeaderValue::from_static(value));
            }
            request
        };
        assert_eq!(refused(edited("connection", "close")), Some(426));
        assert_eq!(refused(edited("upgrade", "h2c")), Some(426));
        assert_eq!(refused(upgrade("/dev").method(Method::POST)), Some(426));
        assert_eq!(refused(edited("sec-websocket-version", "8")), Some(400));
        assert_eq!(refused(edited("sec-websocket-key", "short")), Some(400));
    }

    #[test]
    fn a_url_has_at_most_4096_characters() {
        let fixed = "wss://localhost:3001/dev?q=".len();
        let url = |length: usize| format!("/dev?q={}", "x".repeat(length - fixed));
        assert_eq!(refused(upgrade(&url(4096))), None);
        assert_eq!(refused(upgrade(&url(4097))), Some(414));
    }
}

//! The head of a handshake: the case of its header names, and its headers and query as events show them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use http::{HeaderMap, HeaderName, HeaderValue};

use super::event::Multi;
use crate::trace::trace_id;

/// The bytes of a request's head that are kept, because only they show the case of header names. The value is ours.
const HEAD_LIMIT: usize = 64 * 1024;

/// The most headers of a request. hyper refuses a request with more.
const HEADERS_LIMIT: usize = 100;

/// The parts of a TCP connection's two addresses that events show.
#[derive(Debug, Clone, Copy)]
pub(super) struct Endpoints {
    pub(super) peer: SocketAddr,
    /// The port of the listener.
    pub(super) port: u16,
    /// `http` or `https`.
    pub(super) scheme: &'static str,
}

/// Makes the headers of an event: the client's with its own case, without `Connection` and `Upgrade`, and the
/// gateway's.
pub(super) fn event_headers(headers: &HeaderMap, names: &HashMap<String, String>, endpoints: Endpoints) -> Multi {
    const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
    const REPLACED: [&str; 4] = ["connection", "upgrade", "x-forwarded-port", "x-forwarded-proto"];

    let mut event = Multi::new();
    for (name, value) in headers {
        if name != FORWARDED_FOR && !REPLACED.contains(&name.as_str()) {
            let name = names.get(name.as_str()).map_or(name.as_str(), String::as_str);
            event.entry(name.to_owned()).or_default().push(text(value));
        }
    }
    let mut forwarded_for: Vec<_> = headers.get_all(FORWARDED_FOR).into_iter().map(text).collect();
    forwarded_for.push(endpoints.peer.ip().to_canonical().to_string());
    // On AWS these are always 443 and https. Here they are the port and the scheme of this connection.
    for (name, value) in [
        ("X-Forwarded-For", forwarded_for.join(", ")),
        ("X-Forwarded-Port", endpoints.port.to_string()),
        ("X-Forwarded-Proto", endpoints.scheme.to_owned()),
    ] {
        event.insert(name.to_owned(), vec![value]);
    }
    if !headers.contains_key("x-amzn-trace-id") {
        event.insert("X-Amzn-Trace-Id".to_owned(), vec![trace_id()]);
    }
    event
}

/// Decodes the keys and values of a query. Inferred: `+` is a space, because HTML forms write it so.
pub(super) fn parse_query(query: &str) -> Multi {
    let mut parsed = Multi::new();
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        parsed.entry(key.into_owned()).or_default().push(value.into_owned());
    }
    parsed
}

/// Returns the text of a header, with U+FFFD for bytes that are not UTF-8.
pub(super) fn text(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

/// The bytes of a TCP connection's first request, up to its body.
#[derive(Debug, Clone, Default)]
pub(super) struct Head(Arc<Mutex<Vec<u8>>>);

impl Head {
    /// Returns a function that keeps the bytes of a TCP connection until the head is complete or too long.
    pub(super) fn recorder(&self) -> impl FnMut(&[u8]) + use<> {
        let mut head = Some(self.clone());
        move |read| {
            let Some(Self(bytes)) = &head else { return };
            let mut bytes = bytes.lock().unwrap_or_else(PoisonError::into_inner);
            let unsearched = bytes.len().saturating_sub(3);
            let room = HEAD_LIMIT - bytes.len();
            bytes.extend_from_slice(&read[..read.len().min(room)]);
            if bytes.len() == HEAD_LIMIT || bytes[unsearched..].windows(4).any(|window| window == b"\r\n\r\n") {
                drop(bytes);
                head = None;
            }
        }
    }

    /// Returns the header names as the client wrote them, by their lower-case form. hyper keeps only the latter.
    ///
    /// The head is forgotten. A second request of the same TCP connection would have lower-case names, but WebSocket
    /// clients send only one.
    pub(super) fn header_names(&self) -> HashMap<String, String> {
        let head = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_LIMIT];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(&head) {
            Ok(_) => request.headers.iter().map(|header| (header.name.to_ascii_lowercase(), header.name.to_owned())),
            // hyper has parsed the request, so the head is longer than the bytes that were kept.
            Err(_) => return HashMap::new(),
        }
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_decoded_and_keeps_repeated_keys_in_order() {
        let parsed = parse_query("a=1&b=%20y+z&a=2&&c&%64=%3D&e=a=b");
        let expected =
            [("a", vec!["1", "2"]), ("b", vec![" y z"]), ("c", vec![""]), ("d", vec!["="]), ("e", vec!["a=b"])];
        let expected: Multi =
            expected.map(|(key, values)| (key.to_owned(), values.into_iter().map(str::to_owned).collect())).into();
        assert_eq!(parsed, expected);
    }
}

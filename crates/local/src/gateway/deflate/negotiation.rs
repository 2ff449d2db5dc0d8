//! The negotiation of compression in a handshake.

use http::header::SEC_WEBSOCKET_EXTENSIONS;
use http::{HeaderMap, HeaderValue};

/// The base-2 logarithm of the gateway's window, unless a client asks for a smaller one.
const WINDOW_BITS: u8 = 12;

/// The smallest window of the compressor. RFC 7692 also allows 8.
const LEAST_WINDOW_BITS: u8 = 9;

/// The parameters of an accepted offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::gateway) struct Negotiated {
    /// The base-2 logarithm of the gateway's window.
    pub(super) window_bits: u8,
    /// Whether a message of the gateway may refer to earlier messages.
    pub(super) takes_over: bool,
}

impl Negotiated {
    /// Accepts the first valid offer of a handshake and ignores all other offers.
    pub(in crate::gateway) fn from_offers(headers: &HeaderMap) -> Option<Self> {
        let values = headers.get_all(SEC_WEBSOCKET_EXTENSIONS).into_iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).find_map(Self::accept)
    }

    /// Accepts one offer. Returns `None` if it is malformed or cannot be met.
    fn accept(offer: &str) -> Option<Self> {
        let mut parts = offer.split(';').map(str::trim);
        if parts.next() != Some("permessage-deflate") {
            return None;
        }
        let mut negotiated = Self { window_bits: WINDOW_BITS, takes_over: true };
        let mut seen = Vec::new();
        for part in parts {
            let (name, value) = match part.split_once('=') {
                Some((name, value)) => (name.trim(), Some(window_bits(value.trim())?)),
                None => (part, None),
            };
            if seen.contains(&name) {
                return None;
            }
            seen.push(name);
            match (name, value) {
                ("server_max_window_bits", Some(bits)) if bits >= LEAST_WINDOW_BITS => {
                    negotiated.window_bits = bits.min(WINDOW_BITS);
                }
                ("server_no_context_takeover", None) => negotiated.takes_over = false,
                ("client_max_window_bits", _) | ("client_no_context_takeover", None) => {}
                _ => return None,
            }
        }
        Some(negotiated)
    }

    /// Returns the value of `Sec-WebSocket-Extensions` in the 101, with the spaces of the recording.
    pub(in crate::gateway) fn answer(self) -> HeaderValue {
        let takeover = if self.takes_over { "" } else { ";server_no_context_takeover" };
        let answer = format!("permessage-deflate;server_max_window_bits={}{takeover}", self.window_bits);
        HeaderValue::try_from(answer).expect("a number and names are a header value")
    }
}

/// Reads the value of a parameter. It is a number from 8 to 15 without leading zeros, and may be in quotation marks.
fn window_bits(value: &str) -> Option<u8> {
    let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
    (8..=15).find(|bits: &u8| bits.to_string() == value)
}

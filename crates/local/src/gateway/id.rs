//! Ids as API Gateway makes them: connection, message and request ids all look alike.
//!
//! Their form is known from recorded events only ("API Gateway WebSocket API mapping template reference" names them
//! without saying how they look). Nothing may be derived from an id; that ours increase with time is a convenience.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// Characters in an id, the closing `=` included.
const LENGTH: usize = 16;

/// The URL-safe Base64 alphabet.
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// The low bits of an id's first eight bytes that are not time.
const COUNTER_BITS: u32 = 12;

/// The first eight bytes of the latest id of this process.
static LATEST: AtomicU64 = AtomicU64::new(0);

/// The id of a connection, a message or a request: 16 characters, `[A-Za-z0-9_-]{15}=`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub(super) struct Id(String);

impl Id {
    /// Makes an id that this process has not made before.
    pub(super) fn new() -> Self {
        let micros = u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap_or(0);
        let now = micros << COUNTER_BITS;
        // The later of the clock and the id before: two ids of one microsecond differ, and so do two around a clock
        // that was set back.
        let before = LATEST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |latest| Some(now.max(latest + 1)));
        let value = now.max(before.unwrap_or_else(|latest| latest) + 1);

        let mut bytes = [0; 11];
        bytes[..8].copy_from_slice(&value.to_be_bytes());
        fastrand::Rng::new().fill(&mut bytes[8..]);
        Self(base64(&bytes))
    }

    /// Takes an id from outside, if it has the form of one.
    ///
    /// What exactly AWS calls malformed is unknown; this is the form of every id ever recorded.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let stem = text.strip_suffix('=')?;
        let well_formed = text.len() == LENGTH && stem.bytes().all(|byte| ALPHABET.contains(&byte));
        well_formed.then(|| Self(text.to_owned()))
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Eleven bytes fill fifteen characters and leave two bits of the last one unused, hence the one `=`.
fn base64(bytes: &[u8; 11]) -> String {
    let mut text = String::with_capacity(LENGTH);
    for group in bytes.chunks(3) {
        let word = group.iter().chain(&[0, 0]).take(3).fold(0_usize, |word, byte| word << 8 | usize::from(*byte));
        for position in 0..=group.len() {
            text.push(char::from(ALPHABET[word >> (18 - 6 * position) & 63]));
        }
    }
    text.push('=');
    text
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_made_id_has_the_form_of_recorded_ids() {
        let id = Id::new();
        assert_eq!(Id::parse(&id.to_string()), Some(id));
    }

    #[test]
    fn ids_made_at_once_differ() {
        let threads: Vec<_> =
            (0..4).map(|_| std::thread::spawn(|| (0..1000).map(|_| Id::new()).collect::<Vec<_>>())).collect();
        let ids: HashSet<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        assert_eq!(ids.len(), 4000);
    }

    #[test]
    fn base64_is_what_everybody_calls_url_safe_base64() {
        assert_eq!(base64(b"hello world"), "aGVsbG8gd29ybGQ=");
        assert_eq!(base64(&[0xff; 11]), "______________8=");
    }

    #[test]
    fn recorded_ids_are_well_formed_and_others_are_not() {
        for id in ["PJqB0fHsqRcCHlw=", "e_d2EewNLPECIGw=", "JC1dgf9yoAMCK-g="] {
            assert!(Id::parse(id).is_some(), "{id}");
        }
        for text in
            ["", "abc", "WDGT8fY4joECJrQ=test", "cjy8i76bx002884le6n17d49b", "PJqB0fHsqRcCHl/=", "PJqB0fHsqRcCHlwA"]
        {
            assert!(Id::parse(text).is_none(), "{text}");
        }
    }
}

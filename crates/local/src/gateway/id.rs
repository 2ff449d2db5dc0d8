//! Ids in the form of API Gateway. Connection, message and request ids all have the same form.
//!
//! The form is known only from recorded events. "API Gateway WebSocket API mapping template reference" names the ids
//! and does not describe them. Nothing may be derived from an id. Ours increase with time, but only for convenience.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use data_encoding::BASE64URL;
use serde::Serialize;

/// The characters of an id, including the closing `=`.
const LENGTH: usize = 16;

/// The number of low bits in an id's first eight bytes that are a counter. The other bits are the time.
const COUNTER_BITS: u32 = 12;

/// The first eight bytes of the newest id of this process.
static LATEST: AtomicU64 = AtomicU64::new(0);

/// The id of a connection, a message or a request: 16 characters, `[A-Za-z0-9_-]{15}=`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub(super) struct Id(String);

impl Id {
    /// Makes an id that is new in this process.
    pub(super) fn new() -> Self {
        let micros = u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap_or(0);
        let now = micros << COUNTER_BITS;
        // Takes the clock or the previous id plus one, the larger of the two. So ids differ within one microsecond,
        // and also after the clock was set back.
        let before = LATEST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |latest| Some(now.max(latest + 1)));
        let value = now.max(before.unwrap_or_else(|latest| latest) + 1);

        let mut bytes = [0; 11];
        bytes[..8].copy_from_slice(&value.to_be_bytes());
        fastrand::Rng::new().fill(&mut bytes[8..]);
        // They fill fifteen characters except for two bits, so one `=` follows.
        Self(BASE64URL.encode(&bytes))
    }

    /// Reads an id from a request. Returns `None` if the text does not have the form of an id.
    ///
    /// Every recorded id has this form. The exact rule of AWS is unknown.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let stem = text.strip_suffix('=')?;
        let is_url_safe = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        let well_formed = text.len() == LENGTH && stem.bytes().all(is_url_safe);
        well_formed.then(|| Self(text.to_owned()))
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_new_id_has_the_form_of_recorded_ids() {
        let id = Id::new();
        assert_eq!(Id::parse(&id.to_string()), Some(id));
    }

    #[test]
    fn ids_that_are_made_at_the_same_time_differ() {
        let threads: Vec<_> =
            (0..4).map(|_| std::thread::spawn(|| (0..1000).map(|_| Id::new()).collect::<Vec<_>>())).collect();
        let ids: HashSet<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        assert_eq!(ids.len(), 4000);
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

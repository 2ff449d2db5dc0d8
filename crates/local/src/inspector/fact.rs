//! What the parts of the stack tell. A page receives each fact as JSON.

use std::time::{Duration, SystemTime};

use serde::{Serialize, Serializer};

use super::Story;

/// The most bytes of an event that are kept. An event that was cut cannot run again.
pub(super) const EVENT_LIMIT: usize = 256 * 1024;

/// The most bytes of any other text that are kept.
pub(super) const TEXT_LIMIT: usize = 16 * 1024;

/// A fact of a story.
#[derive(Debug, Serialize)]
pub(super) struct Fact {
    /// The number of the fact. The journal gives it.
    pub(super) n: u64,
    /// Microseconds since 1970.
    at: u64,
    story: u64,
    #[serde(flatten)]
    pub(super) event: Event,
}

impl Fact {
    pub(super) fn new(story: Story, event: Event) -> Self {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        Self { n: 0, at: u64::try_from(now.as_micros()).unwrap_or(u64::MAX), story: story.0, event }
    }

    /// Returns about how many bytes of memory the fact takes.
    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>() + self.event.texts().into_iter().flatten().map(|text| text.text.len()).sum::<usize>()
    }
}

/// A text that may be long: what is kept of it, and how many bytes it had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Text {
    text: String,
    bytes: usize,
}

impl Text {
    /// Keeps the beginning of a text.
    pub(crate) fn new(text: impl AsRef<[u8]>) -> Self {
        Self::cut(text.as_ref(), TEXT_LIMIT)
    }

    /// Keeps an event, which may be longer than other texts.
    pub(crate) fn event(text: impl AsRef<[u8]>) -> Self {
        Self::cut(text.as_ref(), EVENT_LIMIT)
    }

    fn cut(whole: &[u8], limit: usize) -> Self {
        let mut end = whole.len().min(limit);
        // A character is not cut in two.
        while end < whole.len() && end > 0 && whole[end] & 0xc0 == 0x80 {
            end -= 1;
        }
        Self { text: String::from_utf8_lossy(&whole[..end]).into_owned(), bytes: whole.len() }
    }
}

/// What has happened. Times are in milliseconds.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(crate) enum Event {
    /// A client asks for a connection.
    Handshake { path: String, address: String },
    /// The handshake has this connection.
    Connection { connection: String, request: String },
    /// The handshake is answered.
    Answer { status: u16, reason: String, ms: Millis },
    /// A client has sent a frame.
    Frame { connection: String, request: String, text: Text },
    /// The frame goes to this route.
    Route { route: String },
    /// The event has no result that the gateway or the mapping could use. The reason is not one that the function told.
    Trouble { reason: String },
    /// The gateway itself sends a frame to the sender.
    Reply { text: Text },
    /// The frame is done.
    Done { error: Option<String>, ms: Millis },
    /// A connection has ended.
    Disconnect { connection: String, request: String, code: u16, reason: String },
    /// A mapping delivers records of a stream.
    Batch { function: String, table: String, records: usize },
    /// The developer runs an event.
    Run { function: String },
    /// A function gets an event.
    Invocation {
        invocation: u64,
        function: String,
        /// The number and the process of the environment, if one has started.
        environment: Option<u64>,
        process: Option<u32>,
        /// The time that the init took, in a new environment.
        init: Option<Millis>,
        /// The time that the event waited for an environment.
        waited: Millis,
        request: String,
        event: Text,
    },
    /// A function has answered.
    Response { invocation: u64, ms: Millis, text: Option<Text>, error: Option<String> },
    /// DynamoDB has answered a call.
    Call {
        invocation: Option<u64>,
        operation: String,
        tables: Vec<String>,
        units: Option<f64>,
        ms: Millis,
        status: u16,
        error: Option<String>,
        input: Text,
        output: Text,
    },
    /// The management API has answered a call.
    Post {
        invocation: Option<u64>,
        method: String,
        connection: String,
        ms: Millis,
        status: u16,
        error: Option<String>,
        text: Option<Text>,
    },
    /// A function has written a line.
    Line { invocation: u64, text: Text },
}

impl Event {
    fn texts(&self) -> [Option<&Text>; 2] {
        match self {
            Self::Frame { text, .. } | Self::Reply { text } | Self::Line { text, .. } => [Some(text), None],
            Self::Invocation { event, .. } => [Some(event), None],
            Self::Response { text, .. } | Self::Post { text, .. } => [text.as_ref(), None],
            Self::Call { input, output, .. } => [Some(input), Some(output)],
            _ => [None, None],
        }
    }
}

/// A time in milliseconds, with three digits after the point.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Millis(Duration);

impl From<Duration> for Millis {
    fn from(time: Duration) -> Self {
        Self(time)
    }
}

impl Serialize for Millis {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let micros = u32::try_from(self.0.as_micros()).unwrap_or(u32::MAX);
        serializer.serialize_f64(f64::from(micros) / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_between_two_characters_and_says_how_long_it_was() {
        let long = "ž".repeat(TEXT_LIMIT);
        let text = Text::new(&long);
        assert_eq!((text.text.len(), text.bytes), (TEXT_LIMIT, 2 * TEXT_LIMIT));
        let text = Text::new(format!("x{long}"));
        assert_eq!((text.text.len(), text.text.contains('\u{fffd}')), (TEXT_LIMIT - 1, false));
        assert_eq!(Text::new("ž").text, "ž");
        assert_eq!(Text::new([0xff, b'a']).text, "\u{fffd}a");
        assert_eq!(Text::new([0x80; 2 * TEXT_LIMIT]).text, "");
        assert_eq!(Text::event(&long).text, long);
    }

    #[test]
    fn a_fact_is_one_flat_object() {
        let event = Event::Answer { status: 200, reason: "why".to_owned(), ms: Duration::from_micros(1500).into() };
        let json = serde_json::to_value(Fact::new(Story(3), event)).unwrap();
        assert_eq!((&json["story"], &json["kind"], &json["ms"]), (&3.into(), &"answer".into(), &1.5.into()));
    }
}

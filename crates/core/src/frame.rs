//! What clients send and receive: text frames, each one JSON object.
//!
//! The only module that reads or writes client JSON. An inbound frame stays text: this module finds its fields and leaves
//! their values as they were typed. So everything that the grammar of JSON allows reaches its receiver byte for byte: no
//! number is rounded or too large, no key is reordered, and half a surrogate pair (`"\ud83d"`) is no mistake. Unknown
//! fields are ignored, and `null` means that a field is absent.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::{RawValue, to_raw_value};

use crate::ClientError;
use crate::connection::{Connection, UserId, is_printable};
use crate::history::{DEFAULT_LIMIT, Draft, Entry, From, MAX_LIMIT, MAX_NEWEST, MAX_SEQ, Page, Range, Stamp, Writer};
use crate::presence::{Change, MAX_DATA_BYTES, MAX_LISTED, Members};
use crate::rights::Act;
use crate::store::{MAX_TOPICS, Subscription};
use crate::topic::{Name, Topic};

/// Longest `id` of a frame, in characters, which are at most 512 bytes of UTF-8.
pub const MAX_ID_CHARS: usize = 128;

/// Largest `body` or `message`, in bytes of JSON. The gateway takes at most 128 KB (131,072 bytes) a post (Amazon API
/// Gateway quotas, WebSocket APIs); 2 KB are kept for the envelope around it.
pub const MAX_PAYLOAD_BYTES: usize = 126 * 1024;

/// How many levels of arrays and objects a frame may have, its own included. Many parsers stop here, serde_json's too.
/// The frames that we send keep to it, so each of them can be read again.
pub const MAX_NESTING: usize = 127;

/// How many levels a `message` or an event's `data` may have. A data frame adds two.
pub const MAX_MESSAGE_NESTING: usize = MAX_NESTING - 2;

/// How many levels the `body` of a direct message may have. Its frame adds one.
pub const MAX_BODY_NESTING: usize = MAX_NESTING - 1;

/// Largest `body` or `message` that is kept, in bytes of JSON: as much as the gateway takes in one frame of its own, and what
/// it counts as one message.
pub const MAX_KEPT_BYTES: usize = 32 * 1024;

/// How many levels a `body` or `message` that is kept may have. A frame of history adds three.
pub const MAX_KEPT_NESTING: usize = MAX_NESTING - 3;

/// Largest frame of several messages, in bytes: the gateway counts each 32 KB as a message (Amazon API Gateway pricing).
const MAX_BATCH_BYTES: usize = 32 * 1024;

/// How many messages one frame may publish. DynamoDB writes as many items in one transaction.
pub const MAX_MESSAGES: usize = 100;

/// How many topics a ping may ask about.
pub const MAX_POSITIONS: usize = 20;

/// How much of a client's own text an error message repeats, in characters.
const QUOTED_CHARS: usize = 64;

/// An inbound frame: a JSON object whose fields are still unread, but for its `id`.
#[derive(Debug)]
pub struct Frame<'a> {
    fields: Fields<'a>,
    id: Result<Option<String>, ClientError>,
}

/// A frame for `$default`, read.
#[derive(Debug)]
pub enum Request<'a> {
    /// `{"type":"subscribe","topic":"general"}`, or a list of such objects in `topics`. An `id` becomes that of each
    /// subscription.
    Subscribe {
        /// What to listen to: each topic once.
        topics: Vec<Wanted>,
        /// Whether the frame has a list.
        is_list: bool,
    },
    /// `{"type":"unsubscribe","topic":"general"}`, or `stop`.
    Unsubscribe {
        /// What to listen to no longer.
        topic: Topic,
    },
    /// `{"type":"message","topic":"general","message":…}`, or `"messages":[…]` for several.
    Message {
        /// Where to publish.
        topic: Topic,
        /// What to publish, in order.
        messages: Vec<&'a RawValue>,
    },
    /// `{"type":"history","topic":"room.7"}`, with an optional `after` or `before`, and an optional `limit`.
    History {
        /// The topic.
        topic: Name,
        /// The part of its history.
        range: Range,
        /// How many messages at most.
        limit: usize,
    },
    /// `{"type":"presence","topic":"room.7"}`: who is there. With `data` the client says something about itself instead.
    Presence {
        /// The topic.
        topic: Name,
        /// What the client says, as JSON.
        data: Option<String>,
    },
    /// `{"type":"topics"}`: what the connection listens to.
    Topics,
    /// `{"type":"ping"}`.
    Ping {
        /// Where the client is in topics that have been silent.
        positions: Vec<(Name, Stamp)>,
        /// Whether a pong is wanted only when there is something to say.
        is_quiet: bool,
    },
}

impl Request<'_> {
    /// What a client does by this frame, and with which topics: the rights that it needs. No right is needed
    /// to unsubscribe.
    #[must_use]
    pub fn acts(&self) -> Vec<(Act, Name)> {
        match self {
            Self::Subscribe { topics, .. } => {
                let acts = |wanted: &Wanted| {
                    let says = wanted.data.is_some().then(|| (Act::Publish, wanted.name.clone()));
                    std::iter::once((Act::Subscribe, wanted.name.clone())).chain(says)
                };
                topics.iter().flat_map(acts).collect()
            }
            Self::Presence { topic, data } => {
                let says = data.as_ref().map(|_| (Act::Publish, topic.clone()));
                std::iter::once((Act::Read, topic.clone())).chain(says).collect()
            }
            Self::Unsubscribe { .. } | Self::Topics => Vec::new(),
            Self::Message { topic, .. } => vec![(Act::Publish, Name::Topic(topic.clone()))],
            Self::History { topic, .. } => vec![(Act::Read, topic.clone())],
            Self::Ping { positions, .. } => positions.iter().map(|(name, _)| (Act::Read, name.clone())).collect(),
        }
    }
}

/// A topic that a client wants to listen to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// What to listen to.
    pub name: Name,
    /// Epoch seconds after which the subscription no longer counts.
    pub ttl_s: Option<i64>,
    /// Whether its data frames say where each message is in the topic's history.
    pub positions: bool,
    /// Where its history begins, if it asks for any.
    pub from: Option<From>,
    /// Whether it takes several messages in one frame.
    pub batches: bool,
    /// Whether it asks for changes of members.
    pub presence: bool,
    /// What the client says about itself, as JSON.
    pub data: Option<String>,
}

/// A frame for `sendMessage`, read.
#[derive(Debug)]
pub struct DirectMessage<'a> {
    /// `destinationUserId`.
    pub destination: UserId,
    /// `body`: any JSON value.
    pub body: &'a RawValue,
}

impl<'a> Frame<'a> {
    /// Reads a text frame as far as its field names and its `id`.
    ///
    /// # Errors
    ///
    /// [`ClientError::MalformedJson`], also for JSON that is not an object or nests deeper than [`MAX_NESTING`].
    pub fn parse(text: &'a str) -> Result<Self, ClientError> {
        let malformed = |reason| Err(ClientError::MalformedJson { reason });
        if text.trim().is_empty() {
            return malformed("it is empty".to_owned());
        }
        if !text.trim_start_matches([' ', '\t', '\n', '\r']).starts_with('{') {
            return malformed(match serde_json::from_str::<&RawValue>(text) {
                Ok(value) => format!("it is {}", kind_of(value)),
                Err(error) => error.to_string(),
            });
        }
        let mut fields = Fields::default();
        if let Err(error) = fields.read(text) {
            return malformed(error.to_string());
        }
        if nests_deeper(text, MAX_NESTING) {
            return malformed(format!("it nests deeper than {MAX_NESTING} levels"));
        }
        let id = fields.id();
        Ok(Self { fields, id })
    }

    /// Finds the `id` of a text that [`Frame::parse`] refused, for the error frame. Only fields count that stand in front of
    /// the first thing that is not JSON. In a frame that nests too deeply, or that has text behind it, these are all fields.
    #[must_use]
    pub fn id_of(text: &str) -> Option<String> {
        let mut fields = Fields::default();
        // The caller knows this error already, and the fields in front of it have been taken.
        let _ = fields.read(text);
        fields.id().ok().flatten()
    }

    /// The frame's `id`, which asks for an acknowledgement. It has been read once, by [`Frame::parse`].
    ///
    /// # Errors
    ///
    /// [`ClientError::InvalidField`] when it is not a string of 1 to 128 characters.
    pub fn id(&self) -> Result<Option<String>, ClientError> {
        self.id.clone()
    }

    /// Reads a frame for `$default` by its `action` or, when it has none, its `type`.
    ///
    /// # Errors
    ///
    /// Whatever is wrong with it.
    pub fn request(&self) -> Result<Request<'a>, ClientError> {
        let tag = ["action", "type"].into_iter().find(|tag| self.fields.get(tag).is_some());
        let tag = tag.ok_or(ClientError::MissingField { field: "action` or `type" })?;
        let kind = self.string(tag)?;
        match kind.as_str() {
            "subscribe" => match self.fields.get("topics") {
                Some(list) => Ok(Request::Subscribe { topics: self.list(list)?, is_list: true }),
                None => Ok(Request::Subscribe { topics: vec![self.wanted()?], is_list: false }),
            },
            "unsubscribe" | "stop" => match self.name()? {
                Name::Topic(topic) => Ok(Request::Unsubscribe { topic }),
                Name::Own => {
                    let expected = "another one than `@me`: a connection always hears its direct messages".to_owned();
                    Err(ClientError::InvalidField { field: "topic", expected })
                }
            },
            "message" => Ok(Request::Message { topic: self.topic()?, messages: self.messages()? }),
            "history" => Ok(Request::History { topic: self.name()?, range: self.range()?, limit: self.limit()? }),
            "presence" => Ok(Request::Presence { topic: self.name()?, data: self.says()? }),
            "topics" => Ok(Request::Topics),
            "ping" => Ok(Request::Ping { positions: self.positions()?, is_quiet: self.flag("quiet")? }),
            _ => Err(ClientError::UnknownType { kind: kind.chars().take(QUOTED_CHARS).collect() }),
        }
    }

    /// The `body` or messages of this frame as a draft of what has to be kept. Its sender is the user of the connection, so
    /// nobody can repeat a message of another user.
    ///
    /// # Errors
    ///
    /// [`ClientError::InvalidField`] when it is too large or `again` is wrong, and [`ClientError::MissingField`] for a
    /// repetition without an `id`.
    pub fn draft<'b>(
        &'b self,
        field: &'static str,
        payloads: &'b [&'b RawValue],
        connection: &'b Connection,
        invocation_id: &'b str,
    ) -> Result<Draft<'b>, ClientError> {
        payloads.iter().try_for_each(|payload| check_kept(field, payload))?;
        let id = self.id.as_ref().map_err(Clone::clone)?.as_deref();
        let again = self.flag("again")?;
        if again && id.is_none() {
            return Err(ClientError::MissingField { field: "id" });
        }
        let sender = connection.user_id.as_ref();
        let writer = sender.cloned().map_or_else(|| Writer::Connection(connection.id.clone()), Writer::User);
        Ok(Draft { jsons: payloads, sender, id: id.map(|id| (writer, id)), again, invocation_id })
    }

    /// Reads a frame for `sendMessage`.
    ///
    /// # Errors
    ///
    /// Whatever is wrong with it.
    pub fn direct_message(&self) -> Result<DirectMessage<'a>, ClientError> {
        Ok(DirectMessage {
            destination: UserId::parse("destinationUserId", &self.string("destinationUserId")?)?,
            body: self.payload("body", MAX_BODY_NESTING)?,
        })
    }

    /// Reads the token of an `auth` frame.
    ///
    /// # Errors
    ///
    /// Whatever is wrong with the field.
    pub fn token(&self) -> Result<String, ClientError> {
        self.string("token")
    }

    fn topic(&self) -> Result<Topic, ClientError> {
        Topic::parse(&self.string("topic")?)
    }

    fn name(&self) -> Result<Name, ClientError> {
        Name::parse(&self.string("topic")?)
    }

    /// A topic of a subscribe frame, or of an entry of its list.
    fn wanted(&self) -> Result<Wanted, ClientError> {
        let (name, ttl_s, from) = (self.name()?, self.ttl_s()?, self.from()?);
        if ttl_s.is_some() && name == Name::Own {
            let expected = "absent with `@me`: a connection hears its direct messages until it ends".to_owned();
            return Err(ClientError::InvalidField { field: "ttl", expected });
        }
        let positions = self.flag("positions")? || from.is_some();
        let (batches, presence) = (self.flag("batch")?, self.flag("presence")?);
        Ok(Wanted { name, ttl_s, positions, from, batches, presence, data: self.says()? })
    }

    fn list(&self, list: &'a RawValue) -> Result<Vec<Wanted>, ClientError> {
        for field in ["topic", "after", "last", "positions", "batch", "ttl", "presence", "data"] {
            if self.fields.get(field).is_some() {
                let expected = "absent when there is `topics`, whose entries have it".to_owned();
                return Err(ClientError::InvalidField { field, expected });
            }
        }
        let wrong = |expected| ClientError::InvalidField { field: "topics", expected };
        let entries = serde_json::from_str::<Vec<&RawValue>>(list.get()).unwrap_or_default();
        if !(1..=MAX_TOPICS).contains(&entries.len()) {
            return Err(wrong(format!("a list of 1 to {MAX_TOPICS} objects")));
        }
        let mut topics: Vec<Wanted> = Vec::new();
        for (index, entry) in entries.into_iter().enumerate() {
            let mut fields = Fields::default();
            if !entry.get().starts_with('{') || fields.read(entry.get()).is_err() {
                return Err(wrong(format!("a list of objects, and `topics[{index}]` is {}", kind_of(entry))));
            }
            let in_entry = |mistake| ClientError::Entry { index, mistake: Box::new(mistake) };
            let wanted = Self { fields, id: Ok(None) }.wanted().map_err(in_entry)?;
            if topics.iter().any(|other| other.name == wanted.name) {
                let expected = "one that no other entry has".to_owned();
                return Err(in_entry(ClientError::InvalidField { field: "topic", expected }));
            }
            topics.push(wanted);
        }
        Ok(topics)
    }

    fn ttl_s(&self) -> Result<Option<i64>, ClientError> {
        let Some(raw) = self.fields.get("ttl") else { return Ok(None) };
        match serde_json::from_str::<f64>(raw.get()) {
            #[expect(clippy::cast_possible_truncation, reason = "a cast from float saturates, and a fraction may go")]
            Ok(seconds) => Ok(Some(seconds as i64)),
            Err(_) => Err(ClientError::InvalidField {
                field: "ttl",
                expected: "a number: the epoch second at which the subscription ends".to_owned(),
            }),
        }
    }

    /// `after` or `last`, of a client that wants history.
    fn from(&self) -> Result<Option<From>, ClientError> {
        let after = self.position("after")?;
        let Some(raw) = self.fields.get("last") else { return Ok(after.map(From::After)) };
        if after.is_some() {
            let expected = "absent when there is `after`".to_owned();
            return Err(ClientError::InvalidField { field: "last", expected });
        }
        match serde_json::from_str::<u64>(raw.get()) {
            Ok(count) if (1..=MAX_NEWEST).contains(&count) => Ok(Some(From::Newest(count))),
            _ => {
                let expected = format!("a whole number from 1 to {MAX_NEWEST}");
                Err(ClientError::InvalidField { field: "last", expected })
            }
        }
    }

    fn positions(&self) -> Result<Vec<(Name, Stamp)>, ClientError> {
        let Some(raw) = self.fields.get("positions") else { return Ok(Vec::new()) };
        match serde_json::from_str::<BTreeMap<String, Stamp>>(raw.get()) {
            Ok(positions) if positions.len() <= MAX_POSITIONS => {
                positions.into_iter().map(|(topic, stamp)| Ok((Name::parse(&topic)?, stamp))).collect()
            }
            _ => {
                let expected = format!("an object of at most {MAX_POSITIONS} topics, each with its position");
                Err(ClientError::InvalidField { field: "positions", expected })
            }
        }
    }

    fn range(&self) -> Result<Range, ClientError> {
        match (self.position("after")?, self.position("before")?) {
            (None, None) => Ok(Range::Newest),
            (Some(after), None) => Ok(Range::After(after)),
            (None, Some(before)) => Ok(Range::Before(before)),
            (Some(_), Some(_)) => {
                let expected = "absent when there is `after`".to_owned();
                Err(ClientError::InvalidField { field: "before", expected })
            }
        }
    }

    fn limit(&self) -> Result<usize, ClientError> {
        let limit = self.fields.get("limit").map_or(Ok(DEFAULT_LIMIT), |raw| serde_json::from_str(raw.get()));
        match limit.ok().filter(|limit| (1..=MAX_LIMIT).contains(limit)).and_then(|limit| usize::try_from(limit).ok()) {
            Some(limit) => Ok(limit),
            None => {
                let expected = format!("a whole number from 1 to {MAX_LIMIT}");
                Err(ClientError::InvalidField { field: "limit", expected })
            }
        }
    }

    fn position(&self, field: &'static str) -> Result<Option<Stamp>, ClientError> {
        let Some(raw) = self.fields.get(field) else { return Ok(None) };
        let is_epoch = |epoch: &str| epoch.len() == 8 && epoch.bytes().all(|byte| byte.is_ascii_alphanumeric());
        match serde_json::from_str::<Stamp>(raw.get()) {
            Ok(stamp) if is_epoch(&stamp.epoch) && stamp.seq <= MAX_SEQ && raw.get().starts_with('{') => {
                Ok(Some(stamp))
            }
            _ => {
                let expected = "a position: an object with the `epoch` and the `seq` that a frame had".to_owned();
                Err(ClientError::InvalidField { field, expected })
            }
        }
    }

    /// `data`: what a member says about itself.
    fn says(&self) -> Result<Option<String>, ClientError> {
        let Some(raw) = self.fields.get("data") else { return Ok(None) };
        let expected = if raw.get().len() > MAX_DATA_BYTES {
            format!("at most {MAX_DATA_BYTES} bytes of JSON")
        } else if nests_deeper(raw.get(), MAX_MESSAGE_NESTING) {
            format!("JSON of at most {MAX_MESSAGE_NESTING} levels")
        } else {
            return Ok(Some(raw.get().to_owned()));
        };
        Err(ClientError::InvalidField { field: "data", expected })
    }

    fn flag(&self, field: &'static str) -> Result<bool, ClientError> {
        let Some(raw) = self.fields.get(field) else { return Ok(false) };
        let wrong = |_| ClientError::InvalidField { field, expected: "true or false".to_owned() };
        serde_json::from_str(raw.get()).map_err(wrong)
    }

    /// `message`, or else `messages`.
    fn messages(&self) -> Result<Vec<&'a RawValue>, ClientError> {
        let Some(raw) = self.fields.get("messages") else {
            return Ok(vec![self.payload("message", MAX_MESSAGE_NESTING)?]);
        };
        if self.fields.get("message").is_some() {
            let expected = "absent when there is `message`".to_owned();
            return Err(ClientError::InvalidField { field: "messages", expected });
        }
        match serde_json::from_str::<Vec<&RawValue>>(raw.get()) {
            Ok(messages) if (1..=MAX_MESSAGES).contains(&messages.len()) => {
                messages.iter().try_for_each(|message| check_payload("messages", message, MAX_MESSAGE_NESTING))?;
                Ok(messages)
            }
            _ => {
                let expected = format!("an array of 1 to {MAX_MESSAGES} messages");
                Err(ClientError::InvalidField { field: "messages", expected })
            }
        }
    }

    /// Any value, `null` included.
    fn payload(&self, field: &'static str, max_levels: usize) -> Result<&'a RawValue, ClientError> {
        let raw = self.fields.get_or_null(field).ok_or(ClientError::MissingField { field })?;
        check_payload(field, raw, max_levels)?;
        Ok(raw)
    }

    fn string(&self, field: &'static str) -> Result<String, ClientError> {
        let raw = self.fields.get(field).ok_or(ClientError::MissingField { field })?;
        serde_json::from_str(raw.get()).map_err(|_| {
            let half = if raw.get().starts_with('"') { " without half a surrogate pair" } else { "" };
            ClientError::InvalidField { field, expected: format!("a string{half}") }
        })
    }
}

fn check_payload(field: &'static str, payload: &RawValue, max_levels: usize) -> Result<(), ClientError> {
    let expected = if payload.get().len() > MAX_PAYLOAD_BYTES {
        format!("at most {MAX_PAYLOAD_BYTES} bytes of JSON")
    } else if nests_deeper(payload.get(), max_levels) {
        format!("JSON of at most {max_levels} levels")
    } else {
        return Ok(());
    };
    Err(ClientError::InvalidField { field, expected })
}

/// Checks that a `body` or `message` is small enough to be kept.
///
/// # Errors
///
/// [`ClientError::InvalidField`].
pub fn check_kept(field: &'static str, payload: &RawValue) -> Result<(), ClientError> {
    let expected = if payload.get().len() > MAX_KEPT_BYTES {
        format!("at most {MAX_KEPT_BYTES} bytes of JSON, because this topic keeps its messages")
    } else if nests_deeper(payload.get(), MAX_KEPT_NESTING) {
        format!("JSON of at most {MAX_KEPT_NESTING} levels, because this topic keeps its messages")
    } else {
        return Ok(());
    };
    Err(ClientError::InvalidField { field, expected })
}

/// The fields of an object in their order, each value as it was typed.
#[derive(Debug, Default)]
struct Fields<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Fields<'a> {
    /// Takes the fields up to the end of the text, or up to where it is not JSON.
    fn read(&mut self, text: &'a str) -> serde_json::Result<()> {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        deserializer.deserialize_map(&mut *self)?;
        deserializer.end()
    }

    /// A field that is neither absent nor `null`.
    fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.get_or_null(name).filter(|value| value.get() != "null")
    }

    /// The last one counts of fields with the same name, as in JavaScript and for the gateway's routes.
    fn get_or_null(&self, name: &str) -> Option<&'a RawValue> {
        self.0.iter().rev().find(|(field, _)| field == name).map(|(_, value)| *value)
    }

    fn id(&self) -> Result<Option<String>, ClientError> {
        let Some(raw) = self.get("id") else { return Ok(None) };
        match serde_json::from_str::<String>(raw.get()) {
            Ok(id) if is_printable(&id) && id.chars().count() <= MAX_ID_CHARS => Ok(Some(id)),
            _ => Err(ClientError::InvalidField {
                field: "id",
                expected: format!("a string of 1 to {MAX_ID_CHARS} characters without control characters"),
            }),
        }
    }
}

impl<'a> Visitor<'a> for &mut Fields<'a> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        // Names are read as raw text, too: read as strings they would refuse half a surrogate pair, and read as bytes
        // they would allow control characters.
        while let Some((name, value)) = map.next_entry::<&RawValue, &RawValue>()? {
            self.0.extend(unquoted(name.get()).map(|name| (name, value)));
        }
        Ok(())
    }
}

/// What a JSON string says. `None` when no text can say it; then it is no name that we look for.
fn unquoted(json: &str) -> Option<Cow<'_, str>> {
    if json.contains('\\') {
        return serde_json::from_str(json).ok().map(Cow::Owned);
    }
    json.get(1..json.len() - 1).map(Cow::Borrowed)
}

/// Whether arrays and objects of this JSON text are nested in more levels than that.
#[must_use]
pub fn nests_deeper(json: &str, levels: usize) -> bool {
    // Nearly always there are too few brackets for that. Counting them by chunks, so that each count fits a byte, takes
    // a small part of the time of what follows.
    let brackets = |chunk: &[u8]| chunk.iter().map(|byte| u8::from(matches!(byte, b'[' | b'{'))).sum::<u8>();
    if json.as_bytes().chunks(255).map(|chunk| usize::from(brackets(chunk))).sum::<usize>() <= levels {
        return false;
    }
    let (mut depth, mut is_in_string) = (0_usize, false);
    let mut bytes = json.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => is_in_string = !is_in_string,
            b'\\' => _ = bytes.next(),
            b'[' | b'{' if !is_in_string => {
                depth += 1;
                if depth > levels {
                    return true;
                }
            }
            b']' | b'}' if !is_in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

fn kind_of(value: &RawValue) -> &'static str {
    match value.get().as_bytes().first() {
        Some(b'n') => "null",
        Some(b't' | b'f') => "a boolean",
        Some(b'"') => "a string",
        Some(b'[') => "an array",
        _ => "a number",
    }
}

/// A frame from us to the client whose frame it answers.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Reply<'a> {
    /// Acknowledges a frame that carried an `id`.
    Ack(Ack<'a>),
    /// Acknowledges a subscribe frame with a list of topics, in the order of the list.
    #[serde(rename = "ack")]
    Acks {
        /// The frame's. A frame without one hears only of topics that went wrong.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a str>,
        /// What became of each topic.
        topics: &'a [TopicAck],
    },
    /// Acknowledges an `auth` frame.
    #[serde(rename = "ack")]
    Renewed {
        /// The frame's. A frame without one hears only of topics that it took away.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a str>,
        /// The topics to which the connection listened, and no longer may.
        #[serde(skip_serializing_if = "<[String]>::is_empty")]
        removed: &'a [String],
    },
    /// Answers a ping.
    Pong {
        /// The ping's, when it had one.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a str>,
        /// The topics that have gone on, and how far; absent when there are none.
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        behind: &'a BTreeMap<String, Stamp>,
    },
    /// Says what was wrong with a frame.
    Error {
        /// [`ClientError::code`].
        code: &'static str,
        /// The sentence for a person.
        message: String,
        /// [`ClientError::is_temporary`].
        temporary: bool,
        /// The gateway's request id, to be found in our logs. What a backend does has none.
        #[serde(rename = "requestId", skip_serializing_if = "Option::is_none")]
        request_id: Option<&'a str>,
        /// The frame's, when it had one.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a str>,
    },
}

/// The acknowledgement of a frame. Each kind of frame has its own fields, and the others are absent.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Ack<'a> {
    /// The frame's.
    pub id: &'a str,
    /// How many connections a message reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delivered: Option<usize>,
    /// Whether more connections will receive the message after this acknowledgement.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub continued: bool,
    /// Whether a message is written down, and waits to be posted together with others.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub queued: bool,
    /// Whether a message reached nobody yet, and is kept for its receivers.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stored: bool,
    /// Where a message is in the history of its topic, or where a subscriber goes on.
    #[serde(flatten)]
    pub stamp: Option<&'a Stamp>,
    /// Whether a subscriber that named its last position missed nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovered: Option<bool>,
    /// Whether the message was there before.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub duplicate: bool,
}

/// What became of one topic in a subscribe frame with a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TopicAck {
    topic: String,
    #[serde(flatten)]
    stamp: Option<Stamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recovered: Option<bool>,
    #[serde(flatten)]
    mistake: Option<TopicMistake>,
}

/// The part of an error frame that stands in an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct TopicMistake {
    code: &'static str,
    message: String,
    temporary: bool,
}

impl TopicAck {
    /// The entry of a topic: its position and whether its subscriber missed nothing, as far as both are known, or a mistake
    /// that concerns this topic alone.
    #[must_use]
    pub fn new(name: &Name, result: Result<Option<(Stamp, Option<bool>)>, ClientError>) -> Self {
        let (topic, mut entry) = (name.as_str().to_owned(), (None, None, None));
        match result {
            Ok(None) => {}
            Ok(Some((stamp, recovered))) => entry = (Some(stamp), recovered, None),
            Err(mistake) => {
                let (code, temporary) = (mistake.code(), mistake.is_temporary());
                entry.2 = Some(TopicMistake { code, message: mistake.to_string(), temporary });
            }
        }
        let (stamp, recovered, mistake) = entry;
        Self { topic, stamp, recovered, mistake }
    }

    /// Whether something went wrong.
    #[must_use]
    pub fn is_mistake(&self) -> bool {
        self.mistake.is_some()
    }
}

impl Reply<'_> {
    /// The frame's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        to_bytes(self)
    }
}

/// The last frame of a connection that a backend ends, with its reason.
#[must_use]
pub fn disconnected(reason: &str) -> Vec<u8> {
    let message = reason.to_owned();
    Reply::Error { code: "disconnected", message, temporary: false, request_id: None, id: None }.to_bytes()
}

/// The frame in which a user's connections receive a direct message: `{"senderId":"1","body":"hello there!"}`.
#[must_use]
pub fn direct_message(sender: &UserId, body: &RawValue) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Delivery<'a> {
        sender_id: &'a str,
        body: &'a RawValue,
    }
    to_bytes(&Delivery { sender_id: sender.as_str(), body })
}

/// The same for a connection that asked for positions of its own address, which keeps messages:
/// `{"senderId":"1","body":"hello there!","epoch":"p0a11c7z","seq":7}`.
#[must_use]
pub fn kept_direct_message(sender: &UserId, body: &RawValue, stamp: &Stamp) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct KeptDelivery<'a> {
        sender_id: &'a str,
        body: &'a RawValue,
        #[serde(flatten)]
        stamp: &'a Stamp,
    }
    to_bytes(&KeptDelivery { sender_id: sender.as_str(), body, stamp })
}

/// The frame in which a subscriber receives what was published to its topic; `id` is its subscription's:
/// `{"id":"<subscriptionId>","payload":{"data":"count is 0"},"type":"data"}`. A subscriber to a pattern also reads the `topic`.
#[must_use]
pub fn data(id: Option<&str>, message: &RawValue, topic: Option<&str>) -> Vec<u8> {
    #[derive(Serialize)]
    struct OfPattern<'a> {
        #[serde(flatten)]
        data: Data<'a>,
        #[serde(skip_serializing_if = "Option::is_none")]
        topic: Option<&'a str>,
    }
    let data = Data { id, payload: Payload { data: message }, r#type: "data" };
    if topic.is_some() { to_bytes(&OfPattern { data, topic }) } else { to_bytes(&data) }
}

/// The frames in which a subscriber that asked for `batch` gets several messages, each with as many as fit:
/// `{"type":"batch","id":"<subscriptionId>","items":[{"data":"a"},{"data":"b"}]}`. A message that is alone in its frame is a data frame.
#[must_use]
pub fn batches(id: Option<&str>, messages: &[Box<RawValue>], topic: Option<&str>) -> Vec<Vec<u8>> {
    #[derive(Serialize)]
    struct Batch<'a> {
        r#type: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        topic: Option<&'a str>,
        items: Vec<Payload<'a>>,
    }
    // The text around the items and around each of them. A name may need six characters for one byte (`\u0001`).
    let envelope = 64 + 6 * (id.map_or(0, str::len) + topic.map_or(0, str::len));
    let frame = |part: &[Box<RawValue>]| match part {
        [message] => data(id, message, topic),
        _ => {
            let items = part.iter().map(|data| Payload { data }).collect();
            to_bytes(&Batch { r#type: "batch", id, topic, items })
        }
    };
    let most = MAX_BATCH_BYTES.saturating_sub(envelope);
    let parts = parts_of(most, messages, |message| message.get().len() + r#"{"data":},"#.len());
    parts.into_iter().map(frame).collect()
}

/// The same for a subscriber that asked for positions, on a topic with history:
/// `{"id":"…","payload":{"data":"hi"},"type":"data","topic":"room.7","senderId":"1","epoch":"k3f9xq2a","seq":42}`.
#[must_use]
pub fn kept_data(id: Option<&str>, message: &RawValue, topic: &str, stamp: &Stamp, sender: Option<&UserId>) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct KeptData<'a> {
        #[serde(flatten)]
        data: Data<'a>,
        topic: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        sender_id: Option<&'a str>,
        #[serde(flatten)]
        stamp: &'a Stamp,
    }
    let data = Data { id, payload: Payload { data: message }, r#type: "data" };
    to_bytes(&KeptData { data, topic, sender_id: sender.map(UserId::as_str), stamp })
}

/// The frame that lists the subscriptions of a connection. Each has what its subscribe frame had:
/// `{"type":"topics","id":"t1","topics":[{"topic":"@me"},{"topic":"room.7","id":"s1","positions":true}]}`.
#[must_use]
pub fn topics(id: Option<&str>, subscriptions: &[Subscription]) -> Vec<u8> {
    #[derive(Serialize)]
    struct Topics<'a> {
        r#type: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a str>,
        topics: Vec<Listed<'a>>,
    }
    #[derive(Serialize)]
    struct Listed<'a> {
        topic: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        ttl: Option<i64>,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        positions: bool,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        batch: bool,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        presence: bool,
    }
    let listed =
        subscriptions.iter().map(|Subscription { topic, id, ttl_s, positions, batches, presence, .. }| Listed {
            // Nobody listens to the address of another user.
            topic: if topic.is_address() { Name::OWN } else { topic.as_str() },
            id: id.as_deref(),
            ttl: *ttl_s,
            positions: *positions,
            batch: *batches,
            presence: *presence,
        });
    to_bytes(&Topics { r#type: "topics", id, topics: listed.collect() })
}

/// Splits a list into parts of at most [`MAX_KEPT_BYTES`] each, by the size of each entry. There is always one part.
fn parts<T>(list: &[T], size: impl Fn(&T) -> usize) -> Vec<&[T]> {
    parts_of(MAX_KEPT_BYTES, list, size)
}

/// The same with another size.
fn parts_of<T>(most: usize, mut list: &[T], size: impl Fn(&T) -> usize) -> Vec<&[T]> {
    let mut parts = Vec::new();
    loop {
        let mut left = most;
        let fits = |entry: &&T| {
            let room = left.checked_sub(size(entry));
            left = room.unwrap_or(0);
            room.is_some()
        };
        let count = list.iter().take_while(fits).count().max(1).min(list.len());
        let (now, later) = list.split_at(count);
        parts.push(now);
        if later.is_empty() {
            return parts;
        }
        list = later;
    }
}

/// How many bytes a member takes in a frame, at most: its name twice, each character escaped, and what it says.
fn size_of_member(user: &str, data: Option<&String>) -> usize {
    4 * user.len() + data.map_or(0, String::len) + 16
}

fn raw(json: &str) -> Option<Box<RawValue>> {
    RawValue::from_string(json.to_owned()).ok()
}

/// The frames that answer who is in a topic, each with as many members as fit:
/// `{"type":"presence","id":"p1","topic":"room.7","users":["1","2"],"data":{"1":{"status":"away"}},"count":2}`. Beyond
/// [`MAX_LISTED`] members there is only their number. All frames but the last one say `"more":true`.
#[must_use]
pub fn presence_list(id: Option<&str>, topic: &Name, members: &Members) -> Vec<Vec<u8>> {
    #[derive(Serialize)]
    struct List<'a> {
        r#type: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a str>,
        topic: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        users: Option<Vec<&'a str>>,
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        data: BTreeMap<&'a str, Box<RawValue>>,
        count: usize,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        more: bool,
    }
    let count = members.len();
    let is_listed = count <= MAX_LISTED;
    let listed: Vec<_> = members.iter().take(if is_listed { count } else { 0 }).collect();
    let parts = parts(&listed, |(user, data)| size_of_member(user, data.as_ref()));
    let frame = |(index, part): (usize, &&[(&String, &Option<String>)])| {
        let data = part.iter().filter_map(|(user, data)| Some((user.as_str(), raw(data.as_ref()?)?)));
        to_bytes(&List {
            r#type: "presence",
            id,
            topic: topic.as_str(),
            users: is_listed.then(|| part.iter().map(|(user, _)| user.as_str()).collect()),
            data: data.collect(),
            count,
            more: index + 1 < parts.len(),
        })
    };
    parts.iter().enumerate().map(frame).collect()
}

/// The frames that tell what has changed in a topic, each with as many changes as fit:
/// `{"type":"presence","topic":"room.7","joined":["3"],"left":["1"],"data":{"3":{"status":"away"}}}`. In `data` there is also
/// who says something else, and null for who says nothing any more.
#[must_use]
pub fn presence_changes(topic: &Topic, changes: &BTreeMap<String, Change>) -> Vec<Box<RawValue>> {
    #[derive(Serialize)]
    struct Changes<'a> {
        r#type: &'static str,
        topic: &'a str,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        joined: Vec<&'a str>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        left: Vec<&'a str>,
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        data: BTreeMap<&'a str, Option<Box<RawValue>>>,
    }
    if changes.is_empty() {
        return Vec::new();
    }
    let changes: Vec<_> = changes.iter().collect();
    let said = |change: &Change| match change {
        Change::Joined(data) | Change::Says(data) => data.clone(),
        Change::Left => None,
    };
    let frame = |part: &[(&String, &Change)]| {
        let (mut joined, mut left, mut data) = (Vec::new(), Vec::new(), BTreeMap::new());
        for (user, change) in part {
            match change {
                Change::Joined(says) => {
                    joined.push(user.as_str());
                    data.extend(says.as_deref().and_then(raw).map(|says| (user.as_str(), Some(says))));
                }
                Change::Left => left.push(user.as_str()),
                Change::Says(says) => _ = data.insert(user.as_str(), says.as_deref().and_then(raw)),
            }
        }
        let changes = Changes { r#type: "presence", topic: topic.as_str(), joined, left, data };
        to_raw_value(&changes).expect("names and JSON always become JSON")
    };
    parts(&changes, |(user, change)| size_of_member(user, said(change).as_ref())).into_iter().map(frame).collect()
}

/// How many of these entries fit one frame of history: those with at most [`MAX_KEPT_BYTES`] together, or one.
fn fitting(entries: &[Entry]) -> usize {
    let mut left = MAX_KEPT_BYTES;
    let fits = |entry: &&Entry| {
        let message = entry.message.as_ref().map_or(0, |message| {
            message.json.get().len() + message.sender.as_ref().map_or(0, |sender| 2 * sender.as_str().len())
        });
        let room = left.checked_sub(message + MAX_ENTRY_ENVELOPE);
        left = room.unwrap_or(0);
        room.is_some()
    };
    entries.iter().take_while(fits).count().max(1).min(entries.len())
}

/// The frames in which a subscriber gets what it missed, each with as many entries as fit.
#[must_use]
pub fn histories(id: Option<&str>, topic: &Name, epoch: &str, mut entries: &[Entry]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while !entries.is_empty() {
        let (now, later) = entries.split_at(fitting(entries));
        frames.push(history(id, topic, epoch, now, None));
        entries = later;
    }
    frames
}

/// The frame that answers a query: as much of the page as fits. If the reader named its last position, `seq` is the position
/// from which it goes on, and `recovered` says whether nothing is missing in between.
#[must_use]
pub fn page(id: Option<&str>, topic: &Name, mut page: Page) -> Vec<u8> {
    page.truncate(fitting(&page.entries));
    history(id, topic, &page.epoch, &page.entries, Some(&page))
}

/// A frame of history:
/// `{"type":"history","id":"s1","topic":"room.7","epoch":"k3f9xq2a","messages":[{"seq":40,"data":"a","senderId":"1","at":…}]}`.
/// A number that has no message says `"hole":true`. In the history of a user's address, `data` is the `body` of a message.
fn history(id: Option<&str>, topic: &Name, epoch: &str, entries: &[Entry], page: Option<&Page>) -> Vec<u8> {
    #[derive(Serialize)]
    struct History<'a> {
        r#type: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a str>,
        topic: &'a str,
        epoch: &'a str,
        messages: Vec<Number<'a>>,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        more: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        seq: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        recovered: Option<bool>,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Number<'a> {
        seq: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        data: Option<&'a RawValue>,
        #[serde(skip_serializing_if = "Option::is_none")]
        sender_id: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        at: Option<i64>,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        hole: bool,
    }
    let number = |entry| {
        let Entry { seq, message, at_ms, .. }: &Entry = entry;
        Number {
            seq: *seq,
            data: message.as_ref().map(|message| &*message.json),
            sender_id: message.as_ref().and_then(|message| message.sender.as_ref()).map(UserId::as_str),
            at: message.as_ref().map(|_| *at_ms),
            hole: message.is_none(),
        }
    };
    let messages = entries.iter().map(number).collect();
    let reached = page.and_then(|page| page.reached);
    to_bytes(&History {
        r#type: "history",
        id,
        topic: topic.as_str(),
        epoch,
        messages,
        more: page.is_some_and(|page| page.more),
        seq: reached.map(|reached| reached.seq),
        recovered: reached.map(|reached| reached.recovered()),
    })
}

/// How many bytes a message has in a frame of history besides its payload and its sender, at most.
const MAX_ENTRY_ENVELOPE: usize = 80;

#[derive(Serialize)]
struct Data<'a> {
    id: Option<&'a str>,
    payload: Payload<'a>,
    r#type: &'static str,
}

#[derive(Serialize)]
struct Payload<'a> {
    data: &'a RawValue,
}

fn to_bytes(frame: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(frame).expect("strings, numbers and raw JSON always serialise")
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::{Just, Strategy, any, prop};
    use proptest::test_runner::{Config, TestCaseError, TestRunner};
    use proptest::{prop_assert, prop_assert_eq, prop_oneof};

    use super::*;

    fn mistake(text: &str) -> ClientError {
        match Frame::parse(text) {
            Err(error) => error,
            Ok(frame) => frame.request().map(|_| ()).unwrap_err(),
        }
    }

    /// Arrays in arrays.
    fn nested(levels: usize) -> String {
        format!("{}{}", "[".repeat(levels), "]".repeat(levels))
    }

    fn message(message: &str) -> String {
        format!(r#"{{"type":"message","topic":"t","message":{message}}}"#)
    }

    fn direct(body: &str) -> String {
        format!(r#"{{"action":"sendMessage","destinationUserId":"2","body":{body}}}"#)
    }

    /// A topic of a subscribe frame that asks for nothing more.
    fn plain(name: &str) -> Wanted {
        Wanted {
            name: Name::parse(name).unwrap(),
            ttl_s: None,
            positions: false,
            from: None,
            presence: false,
            data: None,
            batches: false,
        }
    }

    fn text(frame: Vec<u8>) -> String {
        String::from_utf8(frame).unwrap()
    }

    /// What receivers get when this is published to a topic.
    fn published(payload: &str) -> String {
        let frame = message(payload);
        match Frame::parse(&frame).unwrap().request().unwrap() {
            Request::Message { messages, .. } => text(data(Some("s"), messages[0], None)),
            other => panic!("not a message: {other:?}"),
        }
    }

    /// What the devices of user 2 get when user 1 sends them this.
    fn sent(payload: &str) -> String {
        let frame = direct(payload);
        let sender = UserId::parse("userId", "1").unwrap();
        text(super::direct_message(&sender, Frame::parse(&frame).unwrap().direct_message().unwrap().body))
    }

    fn try_all<S: Strategy>(strategy: &S, check: impl Fn(S::Value) -> Result<(), TestCaseError>) {
        let config = Config { failure_persistence: None, ..Config::default() };
        TestRunner::new(config).run(strategy, check).unwrap_or_else(|harm| panic!("{harm}"));
    }

    /// JSON text of any form that the grammar has: also numbers beyond a double, and surrogates without their other half.
    fn any_json() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            any::<char>()
                .prop_filter("must be escaped", |c| *c >= ' ' && !['"', '\\'].contains(c))
                .prop_map(String::from),
            "\\\\u[0-9a-fA-F]{4}",
            "\\\\u[dD][89a-fA-F][0-9a-fA-F]{2}",
            "\\\\[\"\\\\/bfnrt]",
            "[{}\\[\\]:,]",
        ];
        let string = vec(piece, 0..8).prop_map(|pieces| format!("\"{}\"", pieces.concat()));
        let number = "-?(0|[1-9][0-9]{0,4}|[1-9][0-9]{308,320})(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,4})?";
        let leaf = prop_oneof![
            Just("null".to_owned()),
            Just("true".to_owned()),
            Just("false".to_owned()),
            number.prop_map(String::from),
            string.clone(),
        ];
        let space = "[ \t\r\n]{0,2}";
        leaf.prop_recursive(8, 64, 6, move |inner| {
            let member = (string.clone(), space, inner.clone())
                .prop_map(|(name, space, value)| format!("{name}{space}:{value}"));
            prop_oneof![
                (vec(inner, 0..6), space).prop_map(|(values, space)| format!("[{space}{}{space}]", values.join(","))),
                (vec(member, 0..6), space)
                    .prop_map(|(members, space)| format!("{{{space}{}{space}}}", members.join(","))),
            ]
        })
    }

    #[test]
    fn several_messages_fit_into_frames_of_32_kb_and_one_alone_is_a_data_frame() {
        let message = |bytes: usize| to_raw_value(&"x".repeat(bytes - 2)).unwrap();
        let texts = |messages: &[Box<RawValue>], topic| -> Vec<String> {
            batches(Some("s"), messages, topic).into_iter().map(|frame| String::from_utf8(frame).unwrap()).collect()
        };
        let small = [message(3), message(4)];
        assert_eq!(texts(&small, None), [r#"{"type":"batch","id":"s","items":[{"data":"x"},{"data":"xx"}]}"#]);
        let named = r#"{"type":"batch","id":"s","topic":"room.7","items":[{"data":"x"},{"data":"xx"}]}"#;
        assert_eq!(texts(&small, Some("room.7")), [named]);
        assert_eq!(texts(&small[..1], None), [r#"{"id":"s","payload":{"data":"x"},"type":"data"}"#]);
        for size in [100, 1000, 16_000, 20_000, 40_000] {
            let messages: Vec<_> = (0..50).map(|_| message(size)).collect();
            let frames = texts(&messages, Some("room.7"));
            let count = |frame: &String| frame.matches("\"data\":").count();
            assert_eq!(frames.iter().map(count).sum::<usize>(), 50);
            let is_full = |frame: &&String| frame.len() + size + 100 > MAX_BATCH_BYTES;
            let fits = frames.iter().all(|frame| frame.len() <= MAX_BATCH_BYTES || count(frame) == 1);
            assert!(fits && frames[..frames.len() - 1].iter().filter(is_full).count() == frames.len() - 1, "{size}");
        }
    }

    #[test]
    fn the_articles_frames_are_understood() {
        let frame = Frame::parse(r#"{"action":"sendMessage","destinationUserId":"2","body":"hello there!"}"#).unwrap();
        let message = frame.direct_message().unwrap();
        assert_eq!((message.destination.as_str(), message.body.get()), ("2", r#""hello there!""#));

        let frame = Frame::parse(r#"{"type":"subscribe","topic":"general"}"#).unwrap();
        assert!(
            matches!(frame.request().unwrap(), Request::Subscribe { topics, is_list: false } if topics == [plain("general")])
        );
        let frame = Frame::parse(r#"{"type":"message","topic":"general","message":"count is 0"}"#).unwrap();
        assert!(
            matches!(frame.request().unwrap(), Request::Message { messages, .. } if messages[0].get() == r#""count is 0""#)
        );
        for stop in [r#"{"action":"unsubscribe","topic":"general"}"#, r#"{"type":"stop","topic":"general"}"#] {
            assert!(matches!(Frame::parse(stop).unwrap().request().unwrap(), Request::Unsubscribe { .. }));
        }
    }

    #[test]
    fn a_payload_is_passed_on_byte_for_byte() {
        let long = format!("1{}", "0".repeat(309));
        for payload in [
            r#"{ "b":1.0, "a": 123456789012345678901234567890, "b": null }"#,
            "null",
            "1e400",
            "-1E+400",
            "1e-400",
            "-0",
            &long,
            r#""so happy \ud83d""#,
            r#""\udc00\ud83d""#,
            r#"{"\ud83d":1}"#,
            r#"[{"a":{"\uDFFF":[ 1e999 ]}}]"#,
            "\"\u{2028}\u{7f}🦀\\u0000\"",
        ] {
            assert_eq!(published(payload), format!(r#"{{"id":"s","payload":{{"data":{payload}}},"type":"data"}}"#));
            assert_eq!(sent(payload), format!(r#"{{"senderId":"1","body":{payload}}}"#));
        }
    }

    #[test]
    fn any_json_is_a_payload_and_any_name_may_stand_beside_it() {
        try_all(&(any_json(), any_json()), |(payload, other)| {
            prop_assert_eq!(
                published(&payload),
                format!(r#"{{"id":"s","payload":{{"data":{payload}}},"type":"data"}}"#)
            );
            prop_assert_eq!(sent(&payload), format!(r#"{{"senderId":"1","body":{payload}}}"#));
            let name = if other.starts_with('"') { &other } else { r#""junk""# };
            let ping = format!(r#"{{{name}:{payload},"type":"ping","id":"p","action":null}}"#);
            let frame = Frame::parse(&ping).unwrap();
            prop_assert!(matches!(frame.request(), Ok(Request::Ping { .. })), "{}", ping);
            prop_assert_eq!(frame.id().unwrap(), Some("p".to_owned()));
            Ok(())
        });
    }

    #[test]
    fn no_text_makes_the_reader_panic() {
        let tokens = prop_oneof![
            prop::sample::select(vec![
                "{",
                "}",
                "[",
                "]",
                ":",
                ",",
                "\"",
                "\\",
                "\\u",
                "\\ud83d",
                "\\udc00",
                "\n",
                " ",
                "-",
                "0",
                "1e400",
                ".",
                "null",
                "true",
                "\"id\":",
                "\"id\":\"p\"",
                "\"type\":",
                "\"action\":",
                "\"message\"",
                "\"topic\":\"t\"",
                "\"message\":",
                "\"body\":",
                "\"ttl\":",
                "\"topics\":",
                "\"type\":\"subscribe\"",
                "[{\"topic\":\"t\"}]",
                "\"after\":",
                "\"destinationUserId\":\"2\"",
                "\u{feff}",
                "\0",
                "é",
                "🦀",
            ])
            .prop_map(str::to_owned),
            any::<char>().prop_map(String::from),
        ];
        let texts = (any::<bool>(), vec(tokens, 0..40)).prop_map(|(is_object, tokens)| {
            if is_object { format!("{{{}}}", tokens.join(",")) } else { tokens.concat() }
        });
        try_all(&texts, |text| {
            if let Ok(frame) = Frame::parse(&text) {
                let _ = (frame.request(), frame.direct_message());
                prop_assert_eq!(frame.id().ok().flatten(), Frame::id_of(&text));
                let is_object = serde_json::from_str::<&RawValue>(&text).is_ok_and(|json| json.get().starts_with('{'));
                prop_assert!(is_object, "{}", text);
            }
            for levels in 0..3 {
                let _ = nests_deeper(&text, levels);
            }
            let _ = Frame::id_of(&text);
            Ok(())
        });
    }

    #[test]
    fn of_fields_with_one_name_the_last_counts_however_it_is_spelled() {
        for (text, id) in [
            (r#"{"id":"a","id":"b","type":"ping"}"#, Some("b")),
            (r#"{"id":"a","\u0069d":"b","type":"ping"}"#, Some("b")),
            (r#"{"i\u0064":"a","type":"dance","id":"b","t\u0079pe":"ping"}"#, Some("b")),
            (r#"{"id":"a","type":"ping","id":null}"#, None),
            (r#"{"id":"a","type":"ping","id\ud83d":"b"}"#, Some("a")),
        ] {
            let frame = Frame::parse(text).unwrap();
            assert!(matches!(frame.request(), Ok(Request::Ping { .. })), "{text}");
            assert_eq!(frame.id().unwrap().as_deref(), id, "{text}");
        }
    }

    #[test]
    fn null_is_absent_but_as_a_message() {
        let ping = Frame::parse(r#"{"action":null,"type":"ping","id": null }"#).unwrap();
        assert!(matches!(ping.request(), Ok(Request::Ping { .. })));
        assert_eq!(ping.id().unwrap(), None);
        let subscribe = Frame::parse(r#"{"type":"subscribe","topic":"t","ttl":null}"#).unwrap();
        assert!(matches!(subscribe.request(), Ok(Request::Subscribe { topics, .. }) if topics == [plain("t")]));
        for (text, names) in [
            (r#"{"action":null}"#, "`action` or `type`"),
            (r#"{"action":null,"type":null}"#, "`action` or `type`"),
            (r#"{"type":"unsubscribe","topic":null}"#, "`topic`"),
        ] {
            assert_eq!(mistake(text).code(), "missing_field", "{text}");
            assert!(mistake(text).to_string().contains(names), "{text}");
        }
        let to_null = Frame::parse(r#"{"destinationUserId":null,"body":1}"#).unwrap();
        assert_eq!(to_null.direct_message().unwrap_err(), ClientError::MissingField { field: "destinationUserId" });
        assert_eq!(sent("null"), r#"{"senderId":"1","body":null}"#);
    }

    #[test]
    fn what_is_no_json_object_is_malformed_and_its_place_is_told_but_not_its_content() {
        for (text, reason) in [
            ("", "it is empty"),
            ("  ", "it is empty"),
            ("42", "it is a number"),
            (" 1e400 ", "it is a number"),
            ("-1", "it is a number"),
            ("null", "it is null"),
            ("false", "it is a boolean"),
            ("[1]", "it is an array"),
            (r#""\ud800""#, "it is a string"),
            (r#""""#, "it is a string"),
            (r#"{"action":""#, "line 1 column 11"),
            ("secret", "line 1 column 1"),
            ("\u{feff}{}", "line 1 column 1"),
            ("[1", "line 1 column 2"),
            (r#"{"a":}"#, "line 1 column 6"),
            (r#"{"a":01}"#, "line 1 column 7"),
            (r#"{"a":NaN}"#, "line 1 column 6"),
            (r#"{"a":"\ud80"}"#, "line 1 column 12"),
            (r#"{"a":"\x"}"#, "line 1 column 8"),
            ("{\"\nsecret\":1}", "line 1 column 2"),
            ("{\"a\":\n[{\"\tsecret\":1}]}", "line 2 column 3"),
            (r#"{secret:1}"#, "line 1 column 2"),
            (r#"{"a":1,}"#, "line 1 column 8"),
            (r#"{"a":1} secret"#, "line 1 column 9"),
            (r#"{"a":"secret"#, "line 1 column 12"),
        ] {
            let error = mistake(text);
            assert_eq!(error.code(), "malformed_json", "{text}");
            assert!(error.to_string().ends_with(reason), "{text}: {error}");
            assert!(!error.to_string().contains("secret"), "{text}: {error}");
        }
    }

    #[test]
    fn nesting_is_bounded_so_that_each_frame_can_be_read_again() {
        for (text, error) in [
            (message(&nested(125)), None),
            (message(&nested(126)), Some(("invalid_field", "`message` must be JSON of at most 125 levels"))),
            (message(&nested(127)), Some(("malformed_json", "127 levels"))),
            (message(&nested(60_000)), Some(("malformed_json", "127 levels"))),
            (format!(r#"{{"type":"ping","junk":{}}}"#, nested(126)), None),
            (format!(r#"{{"type":"ping","\ud83d":{}}}"#, nested(127)), Some(("malformed_json", "127 levels"))),
            (message(&format!("[{}\"\\\"]{}\"]", "[],".repeat(200), "[".repeat(200))), None),
        ] {
            let read = Frame::parse(&text).and_then(|frame| frame.request().map(|_| ()));
            match error {
                None => assert_eq!(read, Ok(())),
                Some((code, names)) => {
                    let error = read.unwrap_err();
                    assert_eq!(error.code(), code, "{text}");
                    assert!(error.to_string().contains(names), "{error}");
                }
            }
        }
        Frame::parse(&published(&nested(125))).unwrap();
        Frame::parse(&sent(&nested(126))).unwrap();
        assert_eq!(Frame::parse(&direct(&nested(127))).unwrap_err().code(), "malformed_json");
    }

    #[test]
    fn nesting_is_counted_outside_of_strings() {
        for (json, levels) in [
            ("1", 0),
            ("[]", 1),
            (r#"{"a":[{}]}"#, 3),
            ("[[],[],[[]]]", 3),
            (r#""[[[""#, 0),
            (r#"["\"[[","]]]","\\",{"[{":1}]"#, 2),
        ] {
            assert!(!nests_deeper(json, levels), "{json}");
            assert!(levels == 0 || nests_deeper(json, levels - 1), "{json}");
        }
    }

    #[test]
    fn a_mistake_names_the_field() {
        for (text, code, names) in [
            (r#"{"body":"hello!"}"#, "missing_field", "`action` or `type`"),
            (r#"{"action":7}"#, "invalid_field", "`action`"),
            (r#"{"type":"dance"}"#, "unknown_type", "`dance`"),
            (r#"{"type":"$connect"}"#, "unknown_type", "`$connect`"),
            (r#"{"action":"$disconnect"}"#, "unknown_type", "`$disconnect`"),
            (r#"{"type":"sendMessage","destinationUserId":"2","body":1}"#, "unknown_type", "`sendMessage`"),
            (
                r#"{"type":"message","topic":"INITIAL_CONNECTION","message":1}"#,
                "forbidden_topic",
                "`INITIAL_CONNECTION`",
            ),
            (r#"{"type":"message","topic":"@1","message":1}"#, "forbidden_topic", "`@1`"),
            (r#"{"type":"message","topic":"@me","message":1}"#, "forbidden_topic", "`@me`"),
            (r#"{"type":"history","topic":"@1"}"#, "forbidden_topic", "`@1`"),
            (r#"{"type":"unsubscribe","topic":"@1"}"#, "forbidden_topic", "`@1`"),
            (r#"{"type":"unsubscribe","topic":"@me"}"#, "invalid_field", "`topic` must be another one than `@me`"),
            (r#"{"type":"stop","topic":"@me"}"#, "invalid_field", "a connection always hears its direct messages"),
            (r#"{"type":"subscribe","topic":"@me","ttl":1}"#, "invalid_field", "`ttl` must be absent with `@me`"),
            (r#"{"type":"ping","positions":{"@1":{"epoch":"k3f9xq2a","seq":1}}}"#, "forbidden_topic", "`@1`"),
            (r#"{"type":"ping","positions":{"":{"epoch":"k3f9xq2a","seq":1}}}"#, "invalid_field", "`topic`"),
            (r#"{"type":"subscribe"}"#, "missing_field", "`topic`"),
            (r#"{"type":"subscribe","topic":["a"]}"#, "invalid_field", "`topic`"),
            (r#"{"type":"subscribe","topic":""}"#, "invalid_field", "`topic`"),
            (r#"{"type":"subscribe","topic":"@2"}"#, "forbidden_topic", "`@2`"),
            (r#"{"type":"subscribe","topic":"t","ttl":"soon"}"#, "invalid_field", "`ttl`"),
            (r#"{"type":"message","topic":"t"}"#, "missing_field", "`message`"),
            (r#"{"action":"\ud83d","type":"ping"}"#, "invalid_field", "`action`"),
            (r#"{"type":"pin\ud83dg"}"#, "invalid_field", "`type`"),
            (r#"{"type":"subscribe","topic":"\udc00"}"#, "invalid_field", "`topic` must be a string without half"),
            (r#"{"type":"subscribe","topic":"t","ttl":"\ud83d"}"#, "invalid_field", "`ttl`"),
            (r#"{"type":"subscribe","topic":"t","ttl":1e400}"#, "invalid_field", "`ttl`"),
            (r#"{"type":"subscribe","topic":"t","positions":"yes"}"#, "invalid_field", "`positions`"),
            (r#"{"type":"history"}"#, "missing_field", "`topic`"),
            (r#"{"type":"history","topic":"t","limit":0}"#, "invalid_field", "`limit`"),
            (r#"{"type":"history","topic":"t","limit":1001}"#, "invalid_field", "`limit`"),
            (r#"{"type":"history","topic":"t","limit":1.5}"#, "invalid_field", "`limit`"),
            (r#"{"type":"history","topic":"t","before":7}"#, "invalid_field", "`before`"),
            (
                r#"{"type":"history","topic":"t","before":{"epoch":"k3f9xq2a","seq":1},"after":{"epoch":"k3f9xq2a","seq":1}}"#,
                "invalid_field",
                "`before`",
            ),
        ] {
            let error = mistake(text);
            assert_eq!(error.code(), code, "{text}");
            assert!(error.to_string().contains(names), "{text}: {error}");
        }
        let to_half = Frame::parse(r#"{"destinationUserId":"2\ud83d","body":1}"#).unwrap();
        assert!(to_half.direct_message().unwrap_err().to_string().contains("`destinationUserId`"));
        let huge = message(&format!("\"{}\"", "x".repeat(MAX_PAYLOAD_BYTES)));
        assert!(mistake(&huge).to_string().contains("129024 bytes"));
    }

    #[test]
    fn a_direct_message_needs_a_destination_and_a_body() {
        for (fields, code, names) in [
            (r#""body":"hi""#, "missing_field", "`destinationUserId` is missing"),
            (r#""destinationUserId":null,"body":"hi""#, "missing_field", "`destinationUserId` is missing"),
            (r#""destinationUserId":2,"body":"hi""#, "invalid_field", "`destinationUserId` must be a string"),
            (
                r#""destinationUserId":"","body":"hi""#,
                "invalid_field",
                "`destinationUserId` must be a string of 1 to 256",
            ),
            (r#""destinationUserId":"2""#, "missing_field", "`body` is missing"),
        ] {
            let text = format!(r#"{{"action":"sendMessage",{fields}}}"#);
            let error = Frame::parse(&text).unwrap().direct_message().map(|_| ()).unwrap_err();
            assert_eq!(error.code(), code, "{text}");
            assert!(error.to_string().contains(names), "{text}: {error}");
        }
    }

    /// What a subscribe frame with a list asks for.
    fn list(topics: &str) -> Result<Vec<Wanted>, ClientError> {
        let text = format!(r#"{{"type":"subscribe","topics":{topics}}}"#);
        match Frame::parse(&text).unwrap().request()? {
            Request::Subscribe { topics, is_list: true } => Ok(topics),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_list_of_topics_has_what_single_topics_have() {
        let stamp = Stamp { epoch: "k3f9xq2a".to_owned(), seq: 39 };
        let wanted = |name: &str, ttl_s, positions, from| Wanted { ttl_s, positions, from, ..plain(name) };
        let topics = r#"[
            {"topic":"room.7","after":{"epoch":"k3f9xq2a","seq":39}},
            {"topic":"@me","positions":true,"ttl":null},
            {"to\u0070ic":"news","id":7,"x":[{}]},
            {"topic":"room.8","last":20,"ttl":1795650067.9}
        ]"#;
        let expected = vec![
            wanted("room.7", None, true, Some(From::After(stamp))),
            wanted("@me", None, true, None),
            plain("news"),
            wanted("room.8", Some(1_795_650_067), true, Some(From::Newest(20))),
        ];
        assert_eq!(list(topics), Ok(expected));
        let entries = |count: usize| {
            let entries: Vec<_> = (0..count).map(|number| format!(r#"{{"topic":"{number}"}}"#)).collect();
            format!("[{}]", entries.join(","))
        };
        assert_eq!(list(&entries(100)).unwrap().len(), 100);
        for count in [0, 101, 10_000] {
            let error = list(&entries(count)).unwrap_err().to_string();
            assert_eq!(error, "the field `topics` must be a list of 1 to 100 objects", "{count}");
        }
        // `null` means that there is no list.
        let text = r#"{"type":"subscribe","topic":"t","topics":null}"#;
        assert!(matches!(Frame::parse(text).unwrap().request(), Ok(Request::Subscribe { is_list: false, .. })));
    }

    #[test]
    fn a_mistake_in_a_list_names_the_entry() {
        let after = |after: &str| format!(r#"[{{"topic":"a"}},{{"topic":"b","after":{after}}}]"#);
        let last = |last: &str| format!(r#"[{{"topic":"a"}},{{"topic":"b","last":{last}}}]"#);
        let position = "in `topics[1]`, the field `after` must be a position";
        let number = "in `topics[1]`, the field `last` must be a whole number from 1 to 100";
        let rows = [
            (r#"{"topic":"a"}"#.to_owned(), "invalid_field", "`topics` must be a list of 1 to 100 objects"),
            (r#""a""#.to_owned(), "invalid_field", "`topics` must be a list of 1 to 100 objects"),
            ("7".to_owned(), "invalid_field", "`topics` must be a list of 1 to 100 objects"),
            (r#"["a"]"#.to_owned(), "invalid_field", "`topics` must be a list of objects, and `topics[0]` is a string"),
            (r#"[{"topic":"a"},null]"#.to_owned(), "invalid_field", "`topics[1]` is null"),
            (r#"[{"topic":"a"},[]]"#.to_owned(), "invalid_field", "`topics[1]` is an array"),
            ("[{}]".to_owned(), "missing_field", "in `topics[0]`, the field `topic` is missing"),
            (r#"[{"topic":7}]"#.to_owned(), "invalid_field", "in `topics[0]`, the field `topic` must be a string"),
            (r#"[{"topic":"@1"}]"#.to_owned(), "forbidden_topic", "in `topics[0]`, the topic `@1` is reserved"),
            (
                r#"[{"topic":"a"},{"topic":"b"},{"topic":"a"}]"#.to_owned(),
                "invalid_field",
                "in `topics[2]`, the field `topic` must be one that no other entry has",
            ),
            (
                r#"[{"topic":"@me"},{"topic":"@me","last":1}]"#.to_owned(),
                "invalid_field",
                "in `topics[1]`, the field `topic`",
            ),
            (
                r#"[{"topic":"a","positions":1}]"#.to_owned(),
                "invalid_field",
                "in `topics[0]`, the field `positions` must be",
            ),
            (r#"[{"topic":"a","ttl":"x"}]"#.to_owned(), "invalid_field", "in `topics[0]`, the field `ttl` must be"),
            (after(r#"{"epoch":"no epoch","seq":1}"#), "invalid_field", position),
            (after(r#"{"epoch":"k3f9xq2a","seq":-1}"#), "invalid_field", position),
            (after(r#"{"epoch":"k3f9xq2a","seq":1.5}"#), "invalid_field", position),
            (after(r#"{"epoch":"k3f9xq2a","seq":1e3}"#), "invalid_field", position),
            (after(r#"{"epoch":"k3f9xq2a","seq":"1"}"#), "invalid_field", position),
            (after(r#""k3f9xq2a/1""#), "invalid_field", position),
            (last("0"), "invalid_field", number),
            (last("-1"), "invalid_field", number),
            (last("1000000000"), "invalid_field", number),
            (last("1e9"), "invalid_field", number),
            (last("101"), "invalid_field", number),
            (
                last(r#"1,"after":{"epoch":"k3f9xq2a","seq":1}"#),
                "invalid_field",
                "`last` must be absent when there is `after`",
            ),
        ];
        for (topics, code, names) in rows {
            let error = list(&topics).unwrap_err();
            assert_eq!(error.code(), code, "{topics}");
            assert!(error.to_string().contains(names), "{topics}: {error}");
        }
        for field in ["topic", "after", "last", "positions", "ttl"] {
            let text = format!(r#"{{"type":"subscribe","topics":[{{"topic":"a"}}],"{field}":0}}"#);
            let error = mistake(&text);
            assert_eq!(error.code(), "invalid_field");
            let names = format!("the field `{field}` must be absent when there is `topics`");
            assert!(error.to_string().starts_with(&names), "{error}");
        }
    }

    #[test]
    fn the_largest_ack_of_a_list_fits_a_post() {
        let name = Name::parse(&"\"".repeat(Topic::MAX_BYTES)).unwrap();
        let stamp = Stamp { epoch: "k3f9xq2a".to_owned(), seq: MAX_SEQ };
        let entries = [
            TopicAck::new(&name, Ok(Some((stamp, Some(false))))),
            TopicAck::new(&name, Err(ClientError::NoHistory { topic: name.as_str().to_owned() })),
            TopicAck::new(&name, Err(ClientError::Busy)),
        ];
        for entry in entries {
            let topics = vec![entry; MAX_TOPICS];
            let ack = Reply::Acks { id: Some(&"\u{10ffff}".repeat(MAX_ID_CHARS)), topics: &topics }.to_bytes();
            assert!(ack.len() <= 128 * 1024, "{}", ack.len());
        }
    }

    #[test]
    fn a_repetition_says_so_with_an_id() {
        for (fields, expected) in [
            ("", Ok(false)),
            (r#","again":null"#, Ok(false)),
            (r#","again":false"#, Ok(false)),
            (r#","again":true,"id":"m""#, Ok(true)),
            (r#","again":true"#, Err("missing_field")),
            (r#","again":1,"id":"m""#, Err("invalid_field")),
            (r#","again":"true","id":"m""#, Err("invalid_field")),
        ] {
            let text = format!(r#"{{"type":"message"{fields}}}"#);
            let frame = Frame::parse(&text).unwrap();
            let connection = Connection::for_tests(None);
            let draft = frame.draft("message", &[], &connection, "w").map(|draft| draft.again);
            assert_eq!(draft.map_err(|error| error.code()), expected, "{text}");
        }
    }

    #[test]
    fn a_subscriber_says_where_its_history_begins() {
        let from = |fields: &str| {
            let text = format!(r#"{{"type":"subscribe","topic":"room.7",{fields}}}"#);
            match Frame::parse(&text).unwrap().request() {
                Ok(Request::Subscribe { mut topics, is_list: false }) => {
                    let Wanted { positions, from, .. } = topics.remove(0);
                    Ok((positions, from))
                }
                Ok(other) => panic!("{other:?}"),
                Err(error) => Err(error.to_string()),
            }
        };
        let stamp = |seq| Stamp { epoch: "k3f9xq2a".to_owned(), seq };
        assert_eq!(from(r#""after":null,"last":null"#), Ok((false, None)));
        assert_eq!(from(r#""after":{"epoch":"k3f9xq2a","seq":0}"#), Ok((true, Some(From::After(stamp(0))))));
        assert_eq!(from(r#""after":{"seq":7,"epoch":"k3f9xq2a","x":1}"#), Ok((true, Some(From::After(stamp(7))))));
        assert_eq!(from(r#""last":100"#), Ok((true, Some(From::Newest(100)))));
        for after in [
            "7",
            r#""k3f9xq2a/7""#,
            "{}",
            r#"["k3f9xq2a",7]"#,
            r#"{"epoch":"k3f9xq2a"}"#,
            r#"{"epoch":"k3f9xq2a","seq":-1}"#,
            r#"{"epoch":"k3f9xq2a","seq":1.5}"#,
            r#"{"epoch":"k3f9xq2a","seq":"1"}"#,
            r#"{"epoch":"k3f9xq2a","seq":1000000000000}"#,
            r#"{"epoch":"k3f9/q2a","seq":1}"#,
            r#"{"epoch":"k3f9","seq":1}"#,
            r#"{"epoch":7,"seq":1}"#,
        ] {
            let error = from(&format!(r#""after":{after}"#)).unwrap_err();
            assert!(error.contains("`after` must be a position"), "{after}: {error}");
        }
        for last in ["0", "-1", "101", "1000000000", "1.5", r#""1""#, "true"] {
            let error = from(&format!(r#""last":{last}"#)).unwrap_err();
            assert!(error.contains("`last` must be a whole number from 1 to 100"), "{last}: {error}");
        }
        let both = from(r#""last":1,"after":{"epoch":"k3f9xq2a","seq":0}"#).unwrap_err();
        assert!(both.contains("`last` must be absent"), "{both}");
    }

    #[test]
    fn what_is_kept_fits_a_frame_of_history() {
        let raw = |json: String| RawValue::from_string(json).unwrap();
        for (payload, names) in [
            (raw(format!("\"{}\"", "x".repeat(MAX_KEPT_BYTES - 2))), None),
            (raw(format!("\"{}\"", "x".repeat(MAX_KEPT_BYTES - 1))), Some("at most 32768 bytes")),
            (raw(nested(124)), None),
            (raw(nested(125)), Some("at most 124 levels")),
        ] {
            match (check_kept("message", &payload), names) {
                (Ok(()), None) => {}
                (Err(error), Some(names)) => assert!(error.to_string().contains(names), "{error}"),
                (result, _) => panic!("{result:?}"),
            }
        }
    }

    #[test]
    fn an_id_is_a_short_string() {
        for (text, id) in [
            ("{}", None),
            (r#"{"id":null}"#, None),
            (r#"{"id":"7"}"#, Some("7".to_owned())),
            (&format!(r#"{{"id":"{}"}}"#, "🦀".repeat(128)), Some("🦀".repeat(128))),
        ] {
            assert_eq!(Frame::parse(text).unwrap().id().unwrap(), id);
        }
        for wrong in ["7", "\"\"", "[]", r#""\ud83d""#, r#""a\u0000""#, &format!("\"{}\"", "i".repeat(129))] {
            let text = format!(r#"{{"id":{wrong}}}"#);
            let error = Frame::parse(&text).unwrap().id().unwrap_err();
            assert!(error.to_string().contains("`id` must be a string of 1 to 128 characters"), "{error}");
            assert_eq!(Frame::id_of(&text), None);
        }
    }

    #[test]
    fn the_id_of_a_malformed_frame_is_found_in_front_of_what_is_wrong() {
        let deep = format!(r#"{{"body":{},"id":"p"}}"#, nested(60_000));
        for (text, id) in [
            (deep.as_str(), Some("p")),
            (r#"{"body":1,"id":"p"} and more"#, Some("p")),
            (r#"{"id":"p","type":"ping"}{"id":"q"}"#, Some("p")),
            (r#"{"id":"p","body":NaN}"#, Some("p")),
            (r#"{"id":"p","body":"cut o"#, Some("p")),
            (r#"{"id":"p","id":"q","body":}"#, Some("q")),
            (r#"{"id":"p","#, Some("p")),
            (r#"{"id":"p"#, None),
            (r#"{"body":NaN,"id":"p"}"#, None),
            (r#"{"body":{"id":"p"},"x":}"#, None),
            (r#"[{"id":"p"}]"#, None),
            (r#"{"id":7,"x":}"#, None),
            ("", None),
        ] {
            assert_eq!(Frame::parse(text).unwrap_err().code(), "malformed_json", "{text}");
            assert_eq!(Frame::id_of(text).as_deref(), id, "{text}");
        }
    }

    #[test]
    fn replies_have_the_documented_shape() {
        let text = |reply: Reply<'_>| String::from_utf8(reply.to_bytes()).unwrap();
        let stamp = Stamp { epoch: "k3f9xq2a".to_owned(), seq: 42 };
        let ack = |delivered, continued, stamp, duplicate| {
            text(Reply::Ack(Ack { id: "7", delivered, continued, stamp, duplicate, ..Ack::default() }))
        };
        assert_eq!(ack(Some(2), false, None, false), r#"{"type":"ack","id":"7","delivered":2}"#);
        assert_eq!(ack(Some(2), true, None, false), r#"{"type":"ack","id":"7","delivered":2,"continued":true}"#);
        assert_eq!(ack(None, false, None, false), r#"{"type":"ack","id":"7"}"#);
        assert_eq!(
            ack(Some(3), true, Some(&stamp), true),
            r#"{"type":"ack","id":"7","delivered":3,"continued":true,"epoch":"k3f9xq2a","seq":42,"duplicate":true}"#
        );
        assert_eq!(text(Reply::Pong { id: None, behind: &BTreeMap::new() }), r#"{"type":"pong"}"#);
        let behind = BTreeMap::from([("room.7".to_owned(), stamp.clone())]);
        assert_eq!(
            text(Reply::Pong { id: Some("p"), behind: &behind }),
            r#"{"type":"pong","id":"p","behind":{"room.7":{"epoch":"k3f9xq2a","seq":42}}}"#
        );
        let entry = |name: &str, result| TopicAck::new(&Name::parse(name).unwrap(), result);
        let topics = [
            entry("room.7", Ok(Some((stamp.clone(), Some(true))))),
            entry("@me", Ok(Some((stamp.clone(), None)))),
            entry("news", Ok(None)),
            entry("log", Err(ClientError::NoHistory { topic: "log".to_owned() })),
            entry("t", Err(ClientError::Busy)),
        ];
        let expected = [
            r#"{"type":"ack","id":"s","topics":[{"topic":"room.7","epoch":"k3f9xq2a","seq":42,"recovered":true},"#,
            r#"{"topic":"@me","epoch":"k3f9xq2a","seq":42},{"topic":"news"},"#,
            r#"{"topic":"log","code":"no_history","message":"the topic `log` keeps no history","temporary":false},"#,
            r#"{"topic":"t","code":"busy","message":"too much is going on at once; send this frame again in a moment","temporary":true}]}"#,
        ];
        assert_eq!(text(Reply::Acks { id: Some("s"), topics: &topics }), expected.concat());
        assert_eq!(text(Reply::Acks { id: None, topics: &[] }), r#"{"type":"ack","topics":[]}"#);
        let error =
            Reply::Error { code: "c", message: "m".to_owned(), temporary: false, request_id: Some("r="), id: None };
        assert_eq!(text(error), r#"{"type":"error","code":"c","message":"m","temporary":false,"requestId":"r="}"#);
    }

    #[test]
    fn a_position_stands_behind_the_articles_frame_and_the_payload_stays_as_it_is() {
        let stamp = Stamp { epoch: "k3f9xq2a".to_owned(), seq: 42 };
        let message = RawValue::from_string(r#"{ "n": 1e400, "h": "\ud83d" }"#.to_owned()).unwrap();
        for (sender, expected) in [(Some("1"), r#""senderId":"1","#), (None, "")] {
            let sender = sender.map(|user| UserId::parse("userId", user).unwrap());
            let plain = text(data(Some("s"), &message, None));
            let kept = text(kept_data(Some("s"), &message, "room.7", &stamp, sender.as_ref()));
            let more = format!(r#","topic":"room.7",{expected}"epoch":"k3f9xq2a","seq":42}}"#);
            assert_eq!(kept, format!("{}{more}", plain.strip_suffix('}').unwrap()));
        }
    }

    #[test]
    fn the_largest_payload_fits_a_post_in_any_envelope() {
        let body = serde_json::value::to_raw_value(&"x".repeat(MAX_PAYLOAD_BYTES - 2)).unwrap();
        for widest in ["\u{10ffff}", "\"", "\\"] {
            let sender = UserId::parse("userId", &widest.repeat(UserId::MAX_BYTES / widest.len())).unwrap();
            assert!(super::direct_message(&sender, &body).len() <= 128 * 1024);
            assert!(data(Some(&widest.repeat(MAX_ID_CHARS)), &body, Some(&widest.repeat(64))).len() <= 128 * 1024);
        }
    }

    #[test]
    fn the_list_of_subscriptions_has_what_their_frames_had() {
        let subscription = |topic: &str, id: Option<&str>, ttl_s, positions| Subscription {
            ttl_s,
            positions,
            ..Subscription::new(Topic::of_event(topic).unwrap(), id.map(str::to_owned))
        };
        let subscriptions = [
            subscription("@7", None, None, false),
            subscription("general", Some("s1"), Some(1_795_650_067), false),
            subscription("room.*", Some("s2"), None, true),
        ];
        let listed = r#"[{"topic":"@me"},{"topic":"general","id":"s1","ttl":1795650067},{"topic":"room.*","id":"s2","positions":true}]"#;
        assert_eq!(
            text(topics(Some("t1"), &subscriptions)),
            format!(r#"{{"type":"topics","id":"t1","topics":{listed}}}"#)
        );
        assert_eq!(text(topics(None, &[])), r#"{"type":"topics","topics":[]}"#);
        // The longest list fits what the gateway takes.
        let longest =
            subscription(&"\"".repeat(Topic::MAX_BYTES), Some(&"\"".repeat(MAX_ID_CHARS)), Some(i64::MAX), true);
        assert!(topics(Some("t1"), &vec![longest; MAX_TOPICS]).len() < MAX_PAYLOAD_BYTES);
    }

    #[test]
    fn long_lists_and_many_changes_come_in_frames_of_32_kb() {
        let room = Name::Topic(Topic::parse("room.7").unwrap());
        let says = |number: usize| (number.is_multiple_of(2)).then(|| format!("\"{}\"", "x".repeat(1000)));
        let members = |count: usize| -> Members {
            (0..count).map(|number| (format!("user {number:05}"), says(number))).collect()
        };
        let read = |frames: Vec<Vec<u8>>| {
            let frames = frames
                .into_iter()
                .map(|frame| (frame.len(), serde_json::from_slice::<serde_json::Value>(&frame).unwrap()));
            frames.collect::<Vec<_>>()
        };
        for (count, listed) in [(0, 0), (1, 1), (MAX_LISTED, MAX_LISTED), (MAX_LISTED + 1, 0)] {
            let frames = read(presence_list(Some("p"), &room, &members(count)));
            let users: usize = frames.iter().map(|(_, frame)| frame["users"].as_array().map_or(0, Vec::len)).sum();
            let more = frames.iter().filter(|(_, frame)| frame["more"] == true).count();
            assert_eq!((users, more), (listed, frames.len() - 1), "{count}");
            assert!(frames.iter().all(|(size, frame)| *size < 34 * 1024 && frame["count"] == count), "{count}");
            assert_eq!(frames.len() > 1, listed == MAX_LISTED);
        }
        let topic = Topic::parse("room.7").unwrap();
        let changes: BTreeMap<_, _> =
            members(1000).into_iter().map(|(user, says)| (user, Change::Joined(says))).collect();
        let frames = presence_changes(&topic, &changes);
        assert!(frames.len() > 10 && frames.iter().all(|frame| frame.get().len() < 34 * 1024));
        assert!(presence_changes(&topic, &BTreeMap::new()).is_empty());
        let changes = [("1", Change::Left), ("2", Change::Joined(None)), ("3", Change::Says(None))];
        let changes = changes.map(|(user, change)| (user.to_owned(), change)).into();
        let frame = r#"{"type":"presence","topic":"room.7","joined":["2"],"left":["1"],"data":{"3":null}}"#;
        assert_eq!(presence_changes(&topic, &changes).iter().map(|frame| frame.get()).collect::<Vec<_>>(), [frame]);
    }

    #[test]
    fn a_frame_has_one_message_or_several() {
        let messages = |fields: &str| {
            let text = format!(r#"{{"type":"message","topic":"t",{fields}}}"#);
            match Frame::parse(&text).unwrap().request() {
                Ok(Request::Message { messages, .. }) => {
                    Ok(messages.iter().map(|message| message.get().to_owned()).collect::<Vec<_>>().join(" "))
                }
                Ok(other) => panic!("not a message: {other:?}"),
                Err(error) => Err(error.to_string()),
            }
        };
        let several = |count: usize| format!(r#""messages":[{}]"#, vec!["1"; count].join(","));
        assert_eq!(messages(r#""message":[1,2]"#).unwrap(), "[1,2]");
        assert_eq!(messages(r#""messages":[ {"a":1.0}, null,[]]"#).unwrap(), r#"{"a":1.0} null []"#);
        assert!(messages(&several(100)).is_ok());
        for wrong in [several(0), several(101), r#""messages":{}"#.to_owned(), r#""messages":"x""#.to_owned()] {
            assert_eq!(messages(&wrong).unwrap_err(), "the field `messages` must be an array of 1 to 100 messages");
        }
        let both = messages(r#""messages":[1],"message":2"#).unwrap_err();
        assert_eq!(both, "the field `messages` must be absent when there is `message`");
        assert_eq!(messages(r#""messages":null"#).unwrap_err(), "the field `message` is missing");
        let large = messages(&format!(r#""messages":[1,"{}"]"#, "x".repeat(MAX_PAYLOAD_BYTES))).unwrap_err();
        assert_eq!(large, "the field `messages` must be at most 129024 bytes of JSON");
    }
}

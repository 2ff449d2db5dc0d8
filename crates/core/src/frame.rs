//! What clients send and receive: text frames, each one JSON object.
//!
//! The only module that reads or writes client JSON. Inbound, a frame is a map from field names to the raw text of
//! their values, so that what a person typed reaches its receiver byte for byte: no number is rounded, no key is
//! reordered. Unknown fields are ignored.

use std::collections::HashMap;

use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::ClientError;
use crate::connection::{UserId, is_printable};
use crate::topic::Topic;

/// Longest `id` of a frame, in characters, which are at most 512 bytes of UTF-8.
pub const MAX_ID_CHARS: usize = 128;

/// Largest `body` or `message`, in bytes of JSON. The gateway takes at most 128 KB (131,072 bytes) a post (Amazon API
/// Gateway quotas, WebSocket APIs); 2 KB are kept for the envelope around it.
pub const MAX_PAYLOAD_BYTES: usize = 126 * 1024;

/// How much of a client's own text an error message repeats, in characters.
const QUOTED_CHARS: usize = 64;

/// An inbound frame: a JSON object whose fields are still unread.
#[derive(Debug)]
pub struct Frame {
    fields: HashMap<String, Box<RawValue>>,
}

/// A frame for `$default`, read.
#[derive(Debug)]
pub enum Request<'a> {
    /// `{"type":"subscribe","topic":"general"}`, with an optional `ttl`. An `id` becomes the subscription's.
    Subscribe {
        /// What to listen to.
        topic: Topic,
        /// Epoch seconds after which the subscription no longer counts.
        ttl_s: Option<i64>,
    },
    /// `{"type":"unsubscribe","topic":"general"}`, or `stop`.
    Unsubscribe {
        /// What to listen to no longer.
        topic: Topic,
    },
    /// `{"type":"message","topic":"general","message":…}`.
    Message {
        /// Where to publish.
        topic: Topic,
        /// What to publish.
        message: &'a RawValue,
    },
    /// `{"type":"ping"}`.
    Ping,
}

/// A frame for `sendMessage`, read.
#[derive(Debug)]
pub struct DirectMessage<'a> {
    /// `destinationUserId`.
    pub destination: UserId,
    /// `body`: any JSON value.
    pub body: &'a RawValue,
}

impl Frame {
    /// Reads a text frame as far as its field names.
    ///
    /// # Errors
    ///
    /// [`ClientError::MalformedJson`], also for JSON that is not an object or nests deeper than 127 levels.
    pub fn parse(text: &str) -> Result<Self, ClientError> {
        if text.trim().is_empty() {
            return Err(ClientError::MalformedJson { reason: "it is empty".to_owned() });
        }
        // Raw values are only skimmed, so this first pass is what bounds the depth and refuses broken escapes.
        match serde_json::from_str(text) {
            Ok(Value::Object(_)) => {}
            Ok(other) => {
                return Err(ClientError::MalformedJson { reason: format!("it is {}", kind_of(&other)) });
            }
            Err(error) => return Err(ClientError::MalformedJson { reason: error.to_string() }),
        }
        let fields = serde_json::from_str(text)
            .map_err(|error: serde_json::Error| ClientError::MalformedJson { reason: error.to_string() })?;
        Ok(Self { fields })
    }

    /// The frame's `id`, which asks for an acknowledgement.
    ///
    /// # Errors
    ///
    /// [`ClientError::InvalidField`] when it is not a string of 1 to 128 characters.
    pub fn id(&self) -> Result<Option<String>, ClientError> {
        if !self.fields.contains_key("id") {
            return Ok(None);
        }
        let expected = || format!("a string of 1 to {MAX_ID_CHARS} characters without control characters");
        let id = self.string("id", expected)?;
        if !is_printable(&id) || id.chars().count() > MAX_ID_CHARS {
            return Err(ClientError::InvalidField { field: "id", expected: expected() });
        }
        Ok(Some(id))
    }

    /// Reads a frame for `$default` by its `action` or, when it has none, its `type`.
    ///
    /// # Errors
    ///
    /// Whatever is wrong with it.
    pub fn request(&self) -> Result<Request<'_>, ClientError> {
        let tag = if self.fields.contains_key("action") { "action" } else { "type" };
        if !self.fields.contains_key(tag) {
            return Err(ClientError::MissingField { field: "action` or `type" });
        }
        let kind = self.string(tag, || "a string".to_owned())?;
        match kind.as_str() {
            "subscribe" => Ok(Request::Subscribe { topic: self.topic()?, ttl_s: self.ttl_s()? }),
            "unsubscribe" | "stop" => Ok(Request::Unsubscribe { topic: self.topic()? }),
            "message" => Ok(Request::Message { topic: self.topic()?, message: self.payload("message")? }),
            "ping" => Ok(Request::Ping),
            _ => Err(ClientError::UnknownType { kind: kind.chars().take(QUOTED_CHARS).collect() }),
        }
    }

    /// Reads a frame for `sendMessage`.
    ///
    /// # Errors
    ///
    /// Whatever is wrong with it.
    pub fn direct_message(&self) -> Result<DirectMessage<'_>, ClientError> {
        let destination = self.string("destinationUserId", || "a string".to_owned())?;
        Ok(DirectMessage {
            destination: UserId::parse("destinationUserId", &destination)?,
            body: self.payload("body")?,
        })
    }

    fn topic(&self) -> Result<Topic, ClientError> {
        Topic::parse(&self.string("topic", || "a string".to_owned())?)
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

    fn payload(&self, field: &'static str) -> Result<&RawValue, ClientError> {
        let raw = self.fields.get(field).ok_or(ClientError::MissingField { field })?;
        if raw.get().len() > MAX_PAYLOAD_BYTES {
            let expected = format!("at most {MAX_PAYLOAD_BYTES} bytes of JSON");
            return Err(ClientError::InvalidField { field, expected });
        }
        Ok(raw)
    }

    fn string(&self, field: &'static str, expected: impl FnOnce() -> String) -> Result<String, ClientError> {
        let raw = self.fields.get(field).ok_or(ClientError::MissingField { field })?;
        serde_json::from_str(raw.get()).map_err(|_| ClientError::InvalidField { field, expected: expected() })
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// A frame from us to the client whose frame it answers.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Reply<'a> {
    /// Acknowledges a frame that carried an `id`.
    Ack {
        /// The frame's.
        id: &'a str,
        /// How many connections a message reached; absent for anything else.
        #[serde(skip_serializing_if = "Option::is_none")]
        delivered: Option<usize>,
        /// Whether more connections will receive the message after this acknowledgement; absent when none will.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        continued: bool,
    },
    /// Answers a ping.
    Pong {
        /// The ping's, when it had one.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a str>,
    },
    /// Says what was wrong with a frame.
    Error {
        /// [`ClientError::code`].
        code: &'static str,
        /// The sentence for a person.
        message: String,
        /// [`ClientError::is_temporary`].
        temporary: bool,
        /// The gateway's request id, to be found in our logs.
        #[serde(rename = "requestId")]
        request_id: &'a str,
        /// The frame's, when it had one.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a str>,
    },
}

impl Reply<'_> {
    /// The frame's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        to_bytes(self)
    }
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

/// The frame in which a subscriber receives what was published to its topic; `id` is its subscription's:
/// `{"id":"<subscriptionId>","payload":{"data":"count is 0"},"type":"data"}`.
#[must_use]
pub fn data(id: Option<&str>, message: &RawValue) -> Vec<u8> {
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
    to_bytes(&Data { id, payload: Payload { data: message }, r#type: "data" })
}

fn to_bytes(frame: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(frame).expect("strings, numbers and raw JSON always serialise")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistake(text: &str) -> ClientError {
        match Frame::parse(text) {
            Err(error) => error,
            Ok(frame) => frame.request().map(|_| ()).unwrap_err(),
        }
    }

    #[test]
    fn the_articles_frames_are_understood() {
        let frame = Frame::parse(r#"{"action":"sendMessage","destinationUserId":"2","body":"hello there!"}"#).unwrap();
        let message = frame.direct_message().unwrap();
        assert_eq!((message.destination.as_str(), message.body.get()), ("2", r#""hello there!""#));

        let frame = Frame::parse(r#"{"type":"subscribe","topic":"general"}"#).unwrap();
        assert!(
            matches!(frame.request().unwrap(), Request::Subscribe { topic, ttl_s: None } if topic.as_str() == "general")
        );
        let frame = Frame::parse(r#"{"type":"message","topic":"general","message":"count is 0"}"#).unwrap();
        assert!(
            matches!(frame.request().unwrap(), Request::Message { message, .. } if message.get() == r#""count is 0""#)
        );
        for stop in [r#"{"action":"unsubscribe","topic":"general"}"#, r#"{"type":"stop","topic":"general"}"#] {
            assert!(matches!(Frame::parse(stop).unwrap().request().unwrap(), Request::Unsubscribe { .. }));
        }
    }

    #[test]
    fn a_payload_is_passed_on_byte_for_byte() {
        let payload = r#"{ "b":1.0, "a": 123456789012345678901234567890, "b": null }"#;
        let text = format!(r#"{{"type":"message","topic":"t","message":{payload}}}"#);
        let frame = Frame::parse(&text).unwrap();
        let Request::Message { message, .. } = frame.request().unwrap() else { panic!("not a message") };
        let sent = String::from_utf8(data(Some("s"), message)).unwrap();
        assert_eq!(sent, format!(r#"{{"id":"s","payload":{{"data":{payload}}},"type":"data"}}"#));
    }

    #[test]
    fn null_is_a_message_like_any_other() {
        let frame = Frame::parse(r#"{"action":"sendMessage","destinationUserId":"2","body":null}"#).unwrap();
        assert_eq!(frame.direct_message().unwrap().body.get(), "null");
    }

    #[test]
    fn what_is_no_json_object_is_malformed() {
        let deep =
            format!("{{\"type\":\"message\",\"topic\":\"t\",\"message\":{}{}}}", "[".repeat(200), "]".repeat(200));
        for text in ["", "  ", "hello", "42", "null", "[1]", "\"x\"", "{\"a\":}", "{\"a\":\"\\ud800\"}", &deep] {
            assert_eq!(mistake(text).code(), "malformed_json", "{text}");
        }
        assert!(mistake(&deep).to_string().contains("recursion limit"), "{}", mistake(&deep));
        assert!(mistake("[1]").to_string().contains("an array"));
    }

    #[test]
    fn a_mistake_names_the_field() {
        for (text, code, names) in [
            (r#"{"body":"hello!"}"#, "missing_field", "`action` or `type`"),
            (r#"{"action":7}"#, "invalid_field", "`action`"),
            (r#"{"type":"dance"}"#, "unknown_type", "`dance`"),
            (r#"{"type":"subscribe"}"#, "missing_field", "`topic`"),
            (r#"{"type":"subscribe","topic":["a"]}"#, "invalid_field", "`topic`"),
            (r#"{"type":"subscribe","topic":""}"#, "invalid_field", "`topic`"),
            (r#"{"type":"subscribe","topic":"@2"}"#, "forbidden_topic", "`@2`"),
            (r#"{"type":"subscribe","topic":"t","ttl":"soon"}"#, "invalid_field", "`ttl`"),
            (r#"{"type":"message","topic":"t"}"#, "missing_field", "`message`"),
        ] {
            let error = mistake(text);
            assert_eq!(error.code(), code, "{text}");
            assert!(error.to_string().contains(names), "{text}: {error}");
        }
        let huge = format!(r#"{{"type":"message","topic":"t","message":"{}"}}"#, "x".repeat(MAX_PAYLOAD_BYTES));
        assert!(mistake(&huge).to_string().contains("129024 bytes"));
    }

    #[test]
    fn an_id_is_a_short_string() {
        assert_eq!(Frame::parse("{}").unwrap().id().unwrap(), None);
        assert_eq!(Frame::parse(r#"{"id":"7"}"#).unwrap().id().unwrap().as_deref(), Some("7"));
        for wrong in [r#"{"id":7}"#, r#"{"id":""}"#, r#"{"id":null}"#, &format!(r#"{{"id":"{}"}}"#, "i".repeat(129))] {
            assert_eq!(Frame::parse(wrong).unwrap().id().unwrap_err().code(), "invalid_field");
        }
    }

    #[test]
    fn replies_have_the_documented_shape() {
        let text = |reply: Reply<'_>| String::from_utf8(reply.to_bytes()).unwrap();
        assert_eq!(
            text(Reply::Ack { id: "7", delivered: Some(2), continued: false }),
            r#"{"type":"ack","id":"7","delivered":2}"#
        );
        assert_eq!(
            text(Reply::Ack { id: "7", delivered: Some(2), continued: true }),
            r#"{"type":"ack","id":"7","delivered":2,"continued":true}"#
        );
        assert_eq!(text(Reply::Ack { id: "7", delivered: None, continued: false }), r#"{"type":"ack","id":"7"}"#);
        assert_eq!(text(Reply::Pong { id: None }), r#"{"type":"pong"}"#);
        let error = Reply::Error { code: "c", message: "m".to_owned(), temporary: false, request_id: "r=", id: None };
        assert_eq!(text(error), r#"{"type":"error","code":"c","message":"m","temporary":false,"requestId":"r="}"#);
    }

    #[test]
    fn the_largest_payload_fits_a_post_in_any_envelope() {
        let body = serde_json::value::to_raw_value(&"x".repeat(MAX_PAYLOAD_BYTES - 2)).unwrap();
        for widest in ["\u{10ffff}", "\"", "\\"] {
            let sender = UserId::parse("userId", &widest.repeat(UserId::MAX_BYTES / widest.len())).unwrap();
            assert!(direct_message(&sender, &body).len() <= 128 * 1024);
            assert!(data(Some(&widest.repeat(MAX_ID_CHARS)), &body).len() <= 128 * 1024);
        }
    }
}

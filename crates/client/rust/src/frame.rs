//! The frames that come from the server.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::types::{Ack, Error, Message, Page, Position, Users};

/// Any frame of the server. Each kind has some of the fields.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Frame {
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    pub(crate) id: Option<String>,
    pub(crate) topic: Option<String>,
    pub(crate) sender_id: Option<String>,
    #[serde(deserialize_with = "raw")]
    pub(crate) body: Option<Box<RawValue>>,
    pub(crate) payload: Payload,
    pub(crate) code: Option<String>,
    pub(crate) message: String,
    pub(crate) temporary: bool,
    pub(crate) epoch: Option<String>,
    pub(crate) seq: Option<u64>,
    recovered: Option<bool>,
    /// The answers for the topics of a subscribe frame with several.
    pub(crate) topics: Option<Vec<Answer>>,
    request_id: Option<String>,
    delivered: Option<u64>,
    continued: bool,
    duplicate: bool,
    stored: bool,
    pub(crate) messages: Vec<Entry>,
    pub(crate) more: bool,
    pub(crate) behind: BTreeMap<String, Position>,
    /// The members of a topic, and what they say about themselves.
    pub(crate) users: Option<Vec<String>>,
    pub(crate) count: u64,
    pub(crate) data: Users,
    pub(crate) joined: Vec<String>,
    pub(crate) left: Vec<String>,
    /// The frames of a list before this one.
    #[serde(skip)]
    pub(crate) parts: Vec<Frame>,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct Payload {
    #[serde(default, deserialize_with = "raw")]
    pub(crate) data: Option<Box<RawValue>>,
}

/// The answer to a subscribe frame, for one topic.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Answer {
    pub(crate) code: Option<String>,
    pub(crate) message: String,
    pub(crate) temporary: bool,
    pub(crate) epoch: Option<String>,
    pub(crate) seq: Option<u64>,
    pub(crate) recovered: Option<bool>,
}

impl Answer {
    pub(crate) fn position(&self) -> Option<Position> {
        Some(Position { epoch: self.epoch.clone()?, seq: self.seq? })
    }
}

/// A number of a history.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Entry {
    pub(crate) seq: u64,
    /// No message will ever have the number.
    #[serde(default)]
    hole: bool,
    #[serde(default, deserialize_with = "raw")]
    data: Option<Box<RawValue>>,
    sender_id: Option<String>,
    at: Option<u64>,
}

impl Entry {
    /// The message, or nothing for a hole.
    pub(crate) fn message(self, topic: &str, epoch: &str) -> Option<Message> {
        let data = self.data.filter(|_| !self.hole)?;
        let position = Some(Position { epoch: epoch.to_owned(), seq: self.seq });
        Some(Message { topic: topic.to_owned(), data, sender_id: self.sender_id, position, at: self.at })
    }
}

impl Frame {
    pub(crate) fn error(self) -> Error {
        Error { code: self.code.unwrap_or_default(), message: self.message, request_id: self.request_id }
    }

    /// The answer for the only topic that was asked for.
    pub(crate) fn answer(&self) -> Answer {
        Answer {
            code: self.code.clone(),
            message: self.message.clone(),
            temporary: self.temporary,
            epoch: self.epoch.clone(),
            seq: self.seq,
            recovered: self.recovered,
        }
    }

    pub(crate) fn ack(self) -> Ack {
        Ack {
            position: self.epoch.zip(self.seq).map(|(epoch, seq)| Position { epoch, seq }),
            id: self.id.unwrap_or_default(),
            delivered: self.delivered,
            is_continued: self.continued,
            is_duplicate: self.duplicate,
            is_stored: self.stored,
        }
    }

    pub(crate) fn page(self, topic: &str) -> Page {
        let epoch = self.epoch.unwrap_or_default();
        let messages = self.messages.into_iter().filter_map(|entry| entry.message(topic, &epoch)).collect();
        Page { messages, epoch, has_more: self.more }
    }

    pub(crate) fn is(&self, kind: &str) -> bool {
        self.kind.as_deref() == Some(kind)
    }
}

/// A payload may be null, which is not the same as no payload.
fn raw<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(deserializer).map(Some)
}

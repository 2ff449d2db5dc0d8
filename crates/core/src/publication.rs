//! What is published: to whom, what, from where on, and what became of it.

use serde_json::value::RawValue;

use crate::Error;
use crate::connection::{ConnectionId, UserId};
use crate::frame;
use crate::topic::{Subscriber, Topic};

/// A message on its way to everybody who listens.
#[derive(Debug, Clone)]
pub struct Publication {
    /// Who receives it.
    pub audience: Audience,
    /// What they receive.
    pub content: Content,
    /// Receivers up to and including this one have been served already; `None` at the beginning.
    pub after: Option<ConnectionId>,
}

/// Who receives a publication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Audience {
    /// The subscribers of a topic; for a user's address, that user's connections.
    Topic(Topic),
    /// Every connection, as one of [`SEGMENTS`] parts of a parallel scan.
    Everybody {
        /// From 0.
        segment: u8,
    },
}

/// Into how many parts the connections table is scanned at once.
pub const SEGMENTS: u8 = 4;

/// What receivers get.
#[derive(Debug, Clone)]
pub enum Content {
    /// A frame of type `data`, with each subscriber's own id.
    Data(Box<RawValue>),
    /// A direct message.
    DirectMessage {
        /// Whose.
        sender: UserId,
        /// Any JSON.
        body: Box<RawValue>,
    },
}

impl Publication {
    /// A publication of which nobody has been served yet.
    #[must_use]
    pub fn new(audience: Audience, content: Content) -> Self {
        Self { audience, content, after: None }
    }

    /// The same for whoever comes after `last`.
    #[must_use]
    pub fn after(self, last: ConnectionId) -> Self {
        Self { after: Some(last), ..self }
    }

    /// The name of its topic, which is reserved when everybody is meant.
    #[must_use]
    pub fn topic(&self) -> &str {
        match &self.audience {
            Audience::Topic(topic) => topic.as_str(),
            Audience::Everybody { .. } => Topic::INITIAL_CONNECTION,
        }
    }

    /// The frame for one receiver. Its `id` is the receiver's subscription, or `INITIAL_CONNECTION` for everybody.
    #[must_use]
    pub fn frame(&self, to: &Subscriber) -> Vec<u8> {
        match &self.content {
            Content::Data(data) => {
                let id = match self.audience {
                    Audience::Topic(_) => to.subscription_id.as_deref(),
                    Audience::Everybody { .. } => Some(Topic::INITIAL_CONNECTION),
                };
                frame::data(id, data)
            }
            Content::DirectMessage { sender, body } => frame::direct_message(sender, body),
        }
    }
}

/// How many receivers met which fate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fanout {
    /// The gateway took their frame.
    pub delivered: usize,
    /// Gone, and forgotten.
    pub stale: usize,
    /// Gone or not open yet, and kept.
    pub pending: usize,
    /// Given up.
    pub failed: usize,
    /// Whether the rest was left to a continuation.
    pub continued: bool,
}

impl Fanout {
    /// How many connections took a message to `topic`; none at all is only right when no post failed.
    ///
    /// # Errors
    ///
    /// [`Error::Undelivered`].
    pub fn reached(&self, topic: &str) -> Result<usize, Error> {
        match (self.delivered, self.failed) {
            (0, failed @ 1..) => Err(Error::Undelivered { topic: topic.to_owned(), failed }),
            (delivered, _) => Ok(delivered),
        }
    }
}

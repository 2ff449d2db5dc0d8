//! Topics, and the connections that listen to them.

use std::fmt;

use crate::ClientError;
use crate::connection::{ConnectionId, UserId, checked};

/// A name that connections listen to: clients chose it, or it is a user's address.
///
/// A user's address is the topic `@<userId>`. Every connection of that user is subscribed to it, so a direct message
/// is a publish like any other. Clients can neither subscribe to nor publish on an address.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Topic(String);

impl Topic {
    /// Longest name that a client may choose, in bytes of UTF-8.
    pub const MAX_BYTES: usize = 256;

    /// The reserved topic that every connection belongs to without a subscription. It has no rows.
    pub const INITIAL_CONNECTION: &str = "INITIAL_CONNECTION";

    /// Checks the name of a topic that a client sent in the field `topic`.
    ///
    /// # Errors
    ///
    /// [`ClientError::InvalidField`], and [`ClientError::ForbiddenTopic`] for reserved names.
    pub fn parse(text: &str) -> Result<Self, ClientError> {
        let name = checked("topic", text, Self::MAX_BYTES)?;
        if name.starts_with('@') || name == Self::INITIAL_CONNECTION {
            return Err(ClientError::ForbiddenTopic { topic: name });
        }
        Ok(Self(name))
    }

    /// The topic of a user's direct messages.
    #[must_use]
    pub fn address(user: &UserId) -> Self {
        Self(format!("@{user}"))
    }

    /// Reads the topic of an event, which may be an address. `INITIAL_CONNECTION` is no topic of subscribers.
    ///
    /// # Errors
    ///
    /// As [`Topic::parse`].
    pub fn of_event(text: &str) -> Result<Self, ClientError> {
        match text.strip_prefix('@') {
            Some(user) => UserId::parse("topic", user).map(|user| Self::address(&user)),
            None => Self::parse(text),
        }
    }

    /// Whether this is a user's address.
    #[must_use]
    pub fn is_address(&self) -> bool {
        self.0.starts_with('@')
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A connection that listens to a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscriber {
    /// The connection that gets the frames.
    pub connection_id: ConnectionId,
    /// The `id` of its data frames, chosen by its subscribe frame. A subscription to a user's address has none.
    pub subscription_id: Option<String>,
    /// The time when the connection was made, in epoch milliseconds.
    pub connected_at_ms: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_topics_are_forbidden_and_others_are_not() {
        for reserved in ["@2", "@", "INITIAL_CONNECTION"] {
            assert_eq!(Topic::parse(reserved).unwrap_err().code(), "forbidden_topic");
        }
        for free in ["general", "a@b", "initial_connection", "с пробелом"] {
            assert_eq!(Topic::parse(free).unwrap().as_str(), free);
        }
    }

    #[test]
    fn topics_are_bounded_and_printable() {
        for wrong in ["", "tab\t", &"x".repeat(257), &"\u{10ffff}".repeat(65)] {
            assert_eq!(Topic::parse(wrong).unwrap_err().code(), "invalid_field");
            assert_eq!(Topic::of_event(&format!("@{wrong}")).unwrap_err().code(), "invalid_field");
        }
        for longest in ["x".repeat(256), "\u{10ffff}".repeat(64)] {
            assert!(Topic::parse(&longest).is_ok() && Topic::of_event(&format!("@{longest}")).is_ok());
        }
    }
}

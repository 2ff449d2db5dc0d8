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

    /// The name of the pattern of all topics that begin with `prefix`.
    pub(crate) fn below(prefix: &str) -> Self {
        Self(format!("{prefix}*"))
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

/// A topic as a client names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Name {
    /// `@me`: the address of the connection's own user.
    Own,
    /// Any other topic.
    Topic(Topic),
}

impl Name {
    /// The name of the connection's own address.
    pub const OWN: &str = "@me";

    /// Checks a name as [`Topic::parse`] does, and knows `@me`.
    ///
    /// # Errors
    ///
    /// As [`Topic::parse`].
    pub fn parse(text: &str) -> Result<Self, ClientError> {
        if text == Self::OWN { Ok(Self::Own) } else { Topic::parse(text).map(Self::Topic) }
    }

    /// The topic that a user means by the name.
    ///
    /// # Errors
    ///
    /// [`ClientError::Unidentified`] for `@me` of a connection without a user.
    pub fn of(&self, user: Option<&UserId>) -> Result<Topic, ClientError> {
        let reason = "this connection has no user, so it has no address `@me`";
        match self {
            Self::Topic(topic) => Ok(topic.clone()),
            Self::Own => user.map(Topic::address).ok_or(ClientError::Unidentified { reason }),
        }
    }

    /// The name as the client wrote it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Own => Self::OWN,
            Self::Topic(topic) => topic.as_str(),
        }
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
    /// Whether it asked for positions: where each message is in the history of the topic.
    pub positions: bool,
    /// Whether it takes several messages in one frame.
    pub batches: bool,
    /// The pattern that it subscribed to, if it did not name the topic. Its data frames then say which topic it was.
    pub pattern: Option<Topic>,
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
    fn a_client_calls_its_own_address_me_and_names_no_other() {
        let user = UserId::parse("userId", "7").unwrap();
        let own = Name::parse("@me").unwrap();
        assert_eq!((own.as_str(), own.of(Some(&user)).unwrap().as_str()), ("@me", "@7"));
        assert_eq!(own.of(None).unwrap_err().code(), "unidentified");
        let topic = Name::parse("me").unwrap();
        assert_eq!((topic.as_str(), topic.of(Some(&user)).unwrap().as_str()), ("me", "me"));
        for other in ["@7", "@", "@ME", "INITIAL_CONNECTION"] {
            assert_eq!(Name::parse(other).unwrap_err().code(), "forbidden_topic", "{other}");
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

//! Connections and the users behind them.

use std::fmt;

use crate::ClientError;

/// The gateway's name of one WebSocket connection. Opaque, never reused.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(String);

impl ConnectionId {
    /// Takes the id out of an event or an item; clients cannot choose it, so there is nothing to check.
    #[must_use]
    pub fn new(id: String) -> Self {
        Self(id)
    }

    /// The id as the gateway wrote it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// The name of a user: 1 to 256 characters, none of them a control character.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UserId(String);

impl UserId {
    /// Longest user id, in characters.
    pub const MAX_CHARS: usize = 256;

    /// Checks a user id; `field` is where the client wrote it, for the error.
    ///
    /// # Errors
    ///
    /// [`ClientError::InvalidField`].
    pub fn parse(field: &'static str, text: &str) -> Result<Self, ClientError> {
        checked(field, text, Self::MAX_CHARS).map(Self)
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// One row of the connections table, as far as functions look at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// Its key.
    pub id: ConnectionId,
    /// The user, unless the connection has none.
    pub user_id: Option<UserId>,
    /// The gateway's `connectedAt`: epoch milliseconds.
    pub connected_at_ms: i64,
    /// Whether it is open. A connection that ended a moment ago is not, and may still be the sender of a frame.
    pub is_open: bool,
}

/// The rule for every name that a person or a client chooses: not empty, bounded, printable.
pub(crate) fn checked(field: &'static str, text: &str, max_chars: usize) -> Result<String, ClientError> {
    let length = text.chars().take(max_chars + 1).count();
    if length == 0 || length > max_chars || text.chars().any(char::is_control) {
        let expected = format!("a string of 1 to {max_chars} characters without control characters");
        return Err(ClientError::InvalidField { field, expected });
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_ids_are_bounded_and_printable() {
        assert_eq!(UserId::parse("userId", "2").unwrap().as_str(), "2");
        assert!(UserId::parse("userId", &"é".repeat(256)).is_ok());
        for wrong in ["", "a\u{0}b", "line\nbreak", &"x".repeat(257), &"x".repeat(10_240)] {
            let error = UserId::parse("userId", wrong).unwrap_err();
            assert_eq!(error.code(), "invalid_field");
            assert!(error.to_string().contains("`userId`"), "{error}");
        }
    }
}

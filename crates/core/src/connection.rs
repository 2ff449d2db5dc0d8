//! Connections and the users behind them.

use std::fmt;

use crate::ClientError;
use crate::rights::Grants;

/// The gateway's name of one WebSocket connection. It is opaque, and the gateway never uses it again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(String);

impl ConnectionId {
    /// Takes the id of an event or an item. Clients cannot choose it, so there is nothing to check.
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

/// The name of a user: 1 to 256 bytes of UTF-8 without control characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UserId(String);

impl UserId {
    /// Longest user id, in bytes of UTF-8.
    pub const MAX_BYTES: usize = 256;

    /// Checks a user id; `field` is where the client wrote it, for the error.
    ///
    /// # Errors
    ///
    /// [`ClientError::InvalidField`].
    pub fn parse(field: &'static str, text: &str) -> Result<Self, ClientError> {
        checked(field, text, Self::MAX_BYTES).map(Self)
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

/// The part of a row of the connections table that functions look at.
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
    /// The epoch second at which its session ends, if that is before the connection's own end.
    pub expires_at_s: Option<i64>,
    /// What its token or its authorizer allows, where a rule asks for that.
    pub grants: Grants,
}

#[cfg(test)]
impl Connection {
    /// An open connection that was made now.
    pub(crate) fn for_tests(user: Option<&str>) -> Self {
        Self {
            id: ConnectionId::new("c=".to_owned()),
            user_id: user.map(|user| UserId::parse("userId", user).unwrap()),
            connected_at_ms: crate::clock::now_ms(),
            is_open: true,
            expires_at_s: None,
            grants: Grants::default(),
        }
    }
}

/// Checks the name of a user or a topic: not empty, bounded, printable. The bound is in bytes, because a connection's row
/// holds the names of all its topics, and each subscribe pays for the row by its size.
pub(crate) fn checked(field: &'static str, text: &str, max_bytes: usize) -> Result<String, ClientError> {
    if text.len() > max_bytes || !is_printable(text) {
        let expected = format!("a string of 1 to {max_bytes} bytes of UTF-8 without control characters");
        return Err(ClientError::InvalidField { field, expected });
    }
    Ok(text.to_owned())
}

/// Returns whether the name is not empty and has no control character.
pub(crate) fn is_printable(text: &str) -> bool {
    !text.is_empty() && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_ids_are_bounded_and_printable() {
        assert_eq!(UserId::parse("userId", "2").unwrap().as_str(), "2");
        assert!(UserId::parse("userId", &"é".repeat(128)).is_ok());
        for wrong in ["", "a\u{0}b", "line\nbreak", &"x".repeat(257), &"é".repeat(129), &"x".repeat(10_240)] {
            let error = UserId::parse("userId", wrong).unwrap_err();
            assert_eq!(error.code(), "invalid_field");
            assert!(error.to_string().contains("`userId` must be a string of 1 to 256 bytes"), "{error}");
        }
    }
}

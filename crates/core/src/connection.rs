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

/// Checks the name of a user or a topic: not empty, bounded, and visible. The bound is in bytes, because a connection's row
/// holds the names of all its topics, and each subscribe pays for the row by its size.
pub(crate) fn checked(field: &'static str, text: &str, max_bytes: usize) -> Result<String, ClientError> {
    let expected = if text.len() > max_bytes || !is_printable(text) {
        format!("a string of 1 to {max_bytes} bytes of UTF-8 without control characters")
    } else if text.chars().any(is_invisible) || text.trim() != text {
        "a name without invisible characters, and without spaces at its ends".to_owned()
    } else {
        return Ok(text.to_owned());
    };
    Err(ClientError::InvalidField { field, expected })
}

/// Returns whether the text is not empty and has no control character.
pub(crate) fn is_printable(text: &str) -> bool {
    !text.is_empty() && !text.chars().any(char::is_control)
}

/// Returns whether a character is shown as nothing, or changes the direction of others. With it, two names look the same and
/// are different. These are the line and paragraph separators and all characters with the property
/// `Default_Ignorable_Code_Point` (Unicode 16, DerivedCoreProperties.txt): zero-width and bidirectional ones are among them.
fn is_invisible(character: char) -> bool {
    matches!(u32::from(character),
        0x2028 | 0x2029
        | 0xAD | 0x34F | 0x61C | 0x115F..=0x1160 | 0x17B4..=0x17B5 | 0x180B..=0x180F | 0x200B..=0x200F
        | 0x202A..=0x202E | 0x2060..=0x206F | 0x3164 | 0xFE00..=0xFE0F | 0xFEFF | 0xFFA0 | 0xFFF0..=0xFFF8
        | 0x1BCA0..=0x1BCA3 | 0x1D173..=0x1D17A | 0xE0000..=0xE0FFF)
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

    #[test]
    fn names_that_look_like_others_are_refused() {
        for same in ["é", "שלום", "李", "a b", "Ωmega", "🙂"] {
            assert!(UserId::parse("userId", same).is_ok(), "{same}");
        }
        for twin in [
            "alice ",
            " alice",
            "alice\u{a0}",
            "alice\u{3000}",
            "al\u{200b}ice",
            "al\u{200d}ice",
            "\u{202e}ecila",
            "alice\u{2069}",
            "al\u{ad}ice",
            "alice\u{fe0f}",
            "\u{feff}alice",
            "alice\u{e0041}",
            "a\u{2028}b",
            "\u{3164}",
        ] {
            let error = UserId::parse("userId", twin).unwrap_err().to_string();
            assert!(error.contains("`userId` must be a name without invisible characters"), "{twin:?}: {error}");
        }
    }
}

//! Rights: who may subscribe to a topic, and who may publish on it. A rule says what a right needs, and the grants of a
//! connection say what its token or authorizer gave to it.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::Value;

use crate::ClientError;
use crate::connection::UserId;
use crate::store::Freshness;
use crate::topic::Topic;

/// How many patterns a connection may have been granted.
pub const MAX_GRANTS: usize = 100;

/// How many bytes these patterns may have together. Each frame whose right depends on them reads all of them.
pub const MAX_GRANTS_BYTES: usize = 8 * 1024;

/// What a client does with a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// It listens.
    Subscribe,
    /// It reads history or positions. That needs the right to listen.
    Read,
    /// It sends a message, or a direct message to the user whose address the topic is.
    Publish,
}

/// Who may do it. The order is from the least to the most that is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Who {
    /// Every connection.
    #[default]
    Anyone,
    /// Every connection that has a user.
    Identified,
    /// Every connection whose grants contain the topic.
    Granted,
    /// No client.
    Backend,
}

/// What a connection lacks for a right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    /// A user.
    User,
    /// A grant that contains the topic.
    Grant,
    /// Nothing helps: only backends may.
    Everything,
}

impl Who {
    /// How the row of a connection has to be read, so that this can be checked. An `auth` frame changes no user.
    #[must_use]
    pub fn freshness(self) -> Freshness {
        if self == Self::Granted { Freshness::Latest } else { Freshness::Usual }
    }

    /// Decides whether a connection has the right. Nothing else decides that.
    ///
    /// # Errors
    ///
    /// What the connection lacks.
    pub fn check(self, act: Act, topic: &Topic, user: Option<&UserId>, grants: &Grants) -> Result<(), ClientError> {
        self.check_all(act, topic, &Pattern::of(topic), user, grants)
    }

    /// Decides the same about all topics of a pattern. `name` is what the client asked for.
    pub(crate) fn check_all(
        self,
        act: Act,
        name: &Topic,
        topics: &Pattern,
        user: Option<&UserId>,
        grants: &Grants,
    ) -> Result<(), ClientError> {
        let lacks = match self {
            Self::Anyone => return Ok(()),
            Self::Identified if user.is_some() => return Ok(()),
            Self::Granted if grants.contain(act, topics) => return Ok(()),
            Self::Identified => Lack::User,
            Self::Granted => Lack::Grant,
            Self::Backend => Lack::Everything,
        };
        Err(ClientError::MissingRight { act, topic: name.as_str().to_owned(), lacks })
    }
}

/// The topics of a rule or of a grant: one name, or all names that begin with a text.
///
/// Users' addresses are apart: `*` contains all topics and no address, and `@*` all addresses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pattern {
    /// This name.
    Exact(String),
    /// All names that begin with this.
    Prefix(String),
}

impl Pattern {
    /// Reads a name, or the beginning of names with a `*` behind it.
    ///
    /// # Errors
    ///
    /// The problem as a sentence about `field`.
    pub fn parse(field: &str, text: &str) -> Result<Self, String> {
        let (name, is_prefix) = match text.strip_suffix('*') {
            Some(prefix) => (prefix, true),
            None => (text, false),
        };
        if name.contains('*') {
            return Err(format!("`{field}` may have a `*` only at its end"));
        }
        // An empty prefix matches everything, and `@` is that of all addresses.
        if !(is_prefix && ["", "@"].contains(&name)) {
            Topic::of_event(name).map_err(|error| match error {
                ClientError::InvalidField { expected, .. } => format!("`{field}` must be {expected}"),
                error => error.to_string(),
            })?;
        }
        Ok(if is_prefix { Self::Prefix(name.to_owned()) } else { Self::Exact(name.to_owned()) })
    }

    /// The pattern as it was written.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Exact(name) => name.clone(),
            Self::Prefix(prefix) => format!("{prefix}*"),
        }
    }

    /// Whether every topic of the other pattern is one of this pattern, too. Overlapping is not enough.
    #[must_use]
    pub fn contains(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(name), Self::Exact(other)) => name == other,
            (Self::Exact(_), Self::Prefix(_)) => false,
            (Self::Prefix(prefix), Self::Exact(other) | Self::Prefix(other)) => {
                other.starts_with(prefix) && other.starts_with('@') == prefix.starts_with('@')
            }
        }
    }

    /// The pattern that a name stands for. A name that ends in `*` is no topic like others: to a reader it means all names
    /// that begin like it. So a grant of some of these names does not contain it.
    #[must_use]
    pub fn of(topic: &Topic) -> Self {
        let name = topic.as_str();
        match name.strip_suffix('*') {
            Some(prefix) => Self::Prefix(prefix.to_owned()),
            None => Self::Exact(name.to_owned()),
        }
    }

    /// Whether the topic, or each topic of a name that ends in `*`, is one of this pattern.
    #[must_use]
    pub fn contains_topic(&self, topic: &Topic) -> bool {
        self.contains(&Self::of(topic))
    }
}

/// What a token or an authorizer gave to a connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grants {
    pub(crate) subscribe: BTreeSet<Pattern>,
    pub(crate) publish: BTreeSet<Pattern>,
}

impl Grants {
    /// Reads `{"subscribe":["room.*"],"publish":["room.7"]}`. Each list may be absent, and null grants nothing.
    ///
    /// # Errors
    ///
    /// The problem as a sentence about `topics`. It repeats nothing that a client wrote.
    pub fn parse(topics: &Value) -> Result<Self, String> {
        let lists = match topics {
            Value::Null => return Ok(Self::default()),
            Value::Object(lists) => lists,
            _ => return Err("`topics` must be an object with the lists `subscribe` and `publish`".to_owned()),
        };
        if lists.keys().any(|name| !["subscribe", "publish"].contains(&name.as_str())) {
            return Err("`topics` must have no other members than `subscribe` and `publish`".to_owned());
        }
        let texts = |name: &str| match lists.get(name) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(list) => Vec::<String>::deserialize(list)
                .map_err(|_| format!("`topics.{name}` must be a list of names and patterns, which are strings")),
        };
        let (subscribe, publish) = (texts("subscribe")?, texts("publish")?);
        let count = subscribe.len() + publish.len();
        let size: usize = subscribe.iter().chain(&publish).map(String::len).sum();
        if count > MAX_GRANTS || size > MAX_GRANTS_BYTES {
            return Err(format!(
                "`topics` must have at most {MAX_GRANTS} patterns of {MAX_GRANTS_BYTES} bytes together, and has {count} of {size}"
            ));
        }
        let patterns = |name: &str, texts: Vec<String>| {
            let pattern = |(index, text): (usize, &String)| Pattern::parse(&format!("topics.{name}[{index}]"), text);
            texts.iter().enumerate().map(pattern).collect::<Result<BTreeSet<_>, String>>()
        };
        Ok(Self { subscribe: patterns("subscribe", subscribe)?, publish: patterns("publish", publish)? })
    }

    /// Whether one of the granted patterns contains all of these topics.
    #[must_use]
    pub fn contain(&self, act: Act, topics: &Pattern) -> bool {
        let patterns = match act {
            Act::Subscribe | Act::Read => &self.subscribe,
            Act::Publish => &self.publish,
        };
        patterns.iter().any(|pattern| pattern.contains(topics))
    }
}

#[cfg(test)]
mod tests;

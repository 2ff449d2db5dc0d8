//! Mistakes and faults, kept apart because they have different readers.
//!
//! A [`ClientError`] is written for the client that sent the frame, and the invocation succeeds. An [`Error`] is
//! written for operators: it fails the invocation and its text never reaches a client.

use std::error::Error as _;

use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};

use crate::connection::{ConnectionId, UserId};
use crate::rights::{Act, Lack};

/// A mistake of a client. The client gets `Display` as a sentence for people, and [`ClientError::code`] for its program.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The text is not a JSON object, or it nests deeper than 127 levels.
    #[error("the frame is not a JSON object: {reason}")]
    MalformedJson {
        /// Where and why parsing stopped. It has positions and no content.
        reason: String,
    },
    /// `action` or `type` has a value that does not exist.
    #[error("`{kind}` is not an action or type of frame that exists here")]
    UnknownType {
        /// The name as sent, cut to a printable length.
        kind: String,
    },
    /// A field that this frame needs is absent.
    #[error("the field `{field}` is missing")]
    MissingField {
        /// Its name.
        field: &'static str,
    },
    /// A field has the wrong type, or a value that is not allowed.
    #[error("the field `{field}` must be {expected}")]
    InvalidField {
        /// Its name.
        field: &'static str,
        /// What it must be, as the end of a sentence.
        expected: String,
    },
    /// One entry of a list of topics is wrong.
    #[error("in `topics[{index}]`, {mistake}")]
    Entry {
        /// Its place in the list, from 0.
        index: usize,
        /// The mistake in this entry.
        mistake: Box<ClientError>,
    },
    /// The topic's name is reserved.
    #[error("the topic `{topic}` is reserved: names that begin with `@` and `INITIAL_CONNECTION` are not for clients")]
    ForbiddenTopic {
        /// The name as sent.
        topic: String,
    },
    /// The name is a pattern, and no rule allows it, or the frame needs one topic.
    #[error("the name `{topic}` is a pattern, because rules reserve `*`: {problem}")]
    Pattern {
        /// The name as sent.
        topic: String,
        /// The problem, as a sentence.
        problem: &'static str,
    },
    /// A rule asks for more than the connection has.
    #[error("{}", missing_right(*act, topic, *lacks))]
    MissingRight {
        /// What the client wanted to do.
        act: Act,
        /// The topic.
        topic: String,
        /// What the connection lacks.
        lacks: Lack,
    },
    /// A client asks for the history of a topic that keeps none.
    #[error("the topic `{topic}` keeps no history")]
    NoHistory {
        /// The topic.
        topic: String,
    },
    /// A client asks for presence, and no rule gives it to the topic.
    #[error("the topic `{topic}` has no presence")]
    NoPresence {
        /// The topic.
        topic: String,
    },
    /// A connection says something about itself in a topic to which it does not listen.
    #[error("this connection does not listen to the topic `{topic}`, so it is no member of it")]
    NoMember {
        /// The topic.
        topic: String,
    },
    /// The connection already listens to as many topics as it may.
    #[error("this connection already listens to {limit} topics, its own address included; unsubscribe from one first")]
    TooManyTopics {
        /// [`crate::store::MAX_TOPICS`].
        limit: usize,
    },
    /// A direct message from a connection without a user, or a frame from a connection that has no record any more.
    #[error("{reason}")]
    Unidentified {
        /// The sentence that says which of the two it is.
        reason: &'static str,
    },
    /// A token that does not count, or grants that are wrong.
    #[error("{reason}")]
    InvalidToken {
        /// The sentence that says why. It repeats nothing of the token.
        reason: String,
    },
    /// DynamoDB was too busy for this frame. Nothing was posted.
    #[error("too much is going on at once; send this frame again in a moment")]
    Busy,
    /// The connection sends frames too fast. Nothing was done.
    #[error("this connection sends more than {rate} frames a second; wait a moment, or it will be closed")]
    RateLimited {
        /// Frames a second.
        rate: u32,
    },
    /// A message would have too many receivers. Nobody got it.
    #[error("more than {limit} connections listen to the topic `{topic}`, so only backends may publish on it")]
    TooManyReceivers {
        /// The topic.
        topic: String,
        /// How many receivers a message of a client may have.
        limit: u32,
    },
    /// At the handshake: a web page of another origin opens the connection.
    #[error("the page's origin is not one of ALLOWED_ORIGINS; the level DEBUG shows it")]
    ForbiddenOrigin,
    /// At the handshake: the user has as many connections as one user may have.
    #[error("user `{user_id}` already has {limit} connections")]
    TooManyConnections {
        /// The user.
        user_id: UserId,
        /// How many there may be.
        limit: u32,
    },
    /// At the handshake: a connection of the user has sent too fast a moment ago.
    #[error("a connection of user `{user_id}` has sent too fast, so the user cannot connect for a minute")]
    LockedOut {
        /// The user.
        user_id: UserId,
    },
    /// No connection of the destination user took the message.
    #[error("user `{user_id}` is not connected")]
    UserOffline {
        /// The destination.
        user_id: UserId,
    },
}

impl ClientError {
    /// The stable name of this mistake in an error frame.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::MalformedJson { .. } => "malformed_json",
            Self::UnknownType { .. } => "unknown_type",
            Self::MissingField { .. } => "missing_field",
            Self::InvalidField { .. } => "invalid_field",
            Self::Entry { mistake, .. } => mistake.code(),
            Self::ForbiddenTopic { .. } | Self::Pattern { .. } | Self::MissingRight { .. } => "forbidden_topic",
            Self::NoHistory { .. } => "no_history",
            Self::NoPresence { .. } => "no_presence",
            Self::NoMember { .. } => "no_member",
            Self::TooManyTopics { .. } => "too_many_topics",
            Self::TooManyReceivers { .. } => "too_many_receivers",
            Self::Unidentified { .. } => "unidentified",
            Self::InvalidToken { .. } => "invalid_token",
            Self::UserOffline { .. } => "user_offline",
            Self::Busy => "busy",
            Self::ForbiddenOrigin => "forbidden_origin",
            Self::RateLimited { .. } => "rate_limited",
            Self::TooManyConnections { .. } => "too_many_connections",
            Self::LockedOut { .. } => "locked_out",
        }
    }

    /// Whether the same frame may succeed when the client sends it again in a moment.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Busy | Self::RateLimited { .. })
    }

    /// The mistake of a frame whose connection is not in the connections table (any more), or whose session has ended.
    #[must_use]
    pub fn unregistered() -> Self {
        Self::Unidentified { reason: "this connection is not registered, or its session has ended; connect again" }
    }
}

/// The sentence that says what a connection lacks. A direct message is a publish to the address of its receiver.
fn missing_right(act: Act, topic: &str, lacks: Lack) -> String {
    let wanted = match (act, topic.strip_prefix('@')) {
        (Act::Subscribe | Act::Read, _) => format!("subscribe to the topic `{topic}`"),
        (Act::Publish, None) => format!("publish on the topic `{topic}`"),
        (Act::Publish, Some(user)) => format!("write to the user `{user}`"),
    };
    match lacks {
        Lack::User => format!("this connection may not {wanted}: it has no user"),
        Lack::Grant => format!("this connection may not {wanted}: none of its grants contains `{topic}`"),
        Lack::Everything => format!("no client may {wanted}: a rule leaves that to backends"),
    }
}

/// The fault type of rows that this code did not write. Readers skip and count them, so there is no [`Error`] for them.
pub const UNKNOWN_ITEM: &str = "Store.UnknownItem";

/// The type of requests that the gateway refused for their rate. They are repeated, so no event fails because of one.
pub const GATEWAY_THROTTLED: &str = "Gateway.Throttled";

/// A fault on our side.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// At start: environment variables are missing or wrong.
    #[error("configuration: {problems}")]
    Config {
        /// All of them.
        problems: String,
    },
    /// The gateway's event lacks a field that every event of its kind has.
    #[error("the event has no {missing}")]
    Event {
        /// The field.
        missing: &'static str,
    },
    /// A DynamoDB call failed after the SDK's own retries.
    #[error("{operation} on {table} failed: {detail}")]
    Store {
        /// DynamoDB's name of the operation.
        operation: &'static str,
        /// The table's name.
        table: String,
        /// What the SDK says, without bodies.
        detail: String,
        /// Whether DynamoDB asked to slow down.
        throttled: bool,
    },
    /// DynamoDB put off the items of a `BatchWriteItem` for too long.
    #[error("{operation} on {table} was given up with {left} item(s) undone: DynamoDB keeps putting them off")]
    Unfinished {
        /// DynamoDB's name of the operation.
        operation: &'static str,
        /// The table's name, or both.
        table: String,
        /// How many items were not written or deleted.
        left: usize,
    },
    /// The gateway denies this function its posts.
    #[error("the reply to connection {connection_id} was denied")]
    Reply {
        /// The sender's connection.
        connection_id: ConnectionId,
    },
    /// The gateway as a whole took no post: it denied or refused every one.
    #[error("the gateway took no post for {topic}; it denied or refused {failed}")]
    Undelivered {
        /// Where the message went.
        topic: String,
        /// How many posts it did not take.
        failed: usize,
    },
    /// A backend asked to end the connections of a user, and the gateway did not close all of them.
    #[error("the gateway did not close {failed} connections of {topic}")]
    NotEnded {
        /// The user's address.
        topic: String,
        /// How many are still open.
        failed: usize,
    },
    /// A publish could not begin before the invocation's end.
    #[error("there was no time left to publish to {topic}")]
    OutOfTime {
        /// Where the message was to go.
        topic: String,
    },
}

impl Error {
    /// The stable `errorType` of a failed invocation. Alarms match these strings.
    #[must_use]
    pub fn error_type(&self) -> &'static str {
        match self {
            Self::Config { .. } => "Config.Invalid",
            Self::Event { .. } => "Event.Incomplete",
            Self::Store { throttled: true, .. } => "Store.Throttled",
            Self::Store { throttled: false, .. } => "Store.Failed",
            Self::Unfinished { .. } => "Store.Unfinished",
            Self::Reply { .. } => "Publish.ReplyFailed",
            Self::Undelivered { .. } | Self::NotEnded { .. } => "Publish.Undelivered",
            Self::OutOfTime { .. } => "Publish.OutOfTime",
        }
    }

    /// Wraps the SDK's error of one DynamoDB operation.
    pub(crate) fn store<E>(operation: &'static str, table: &str, error: &SdkError<E>) -> Self
    where
        SdkError<E>: std::error::Error + ProvideErrorMetadata,
    {
        let throttled = matches!(
            error.code(),
            Some(
                "ProvisionedThroughputExceededException"
                    | "ThrottlingException"
                    | "RequestLimitExceeded"
                    | "TransactionConflictException"
            )
        );
        Self::Store { operation, table: table.to_owned(), detail: describe(error), throttled }
    }
}

/// Describes an error of the SDK without any part of a request or of a response. Those contain bodies, and the SDK's own
/// texts repeat them.
pub(crate) fn describe<E>(error: &SdkError<E>) -> String
where
    SdkError<E>: std::error::Error + ProvideErrorMetadata,
{
    match error {
        SdkError::ServiceError(context) => {
            let (code, status) = (error.code().unwrap_or("no code"), context.raw().status());
            // The service's own sentence names actions, tables and attributes, and repeats no value.
            let message = error.message().unwrap_or("no message");
            format!("{code}, status {status}: {message}")
        }
        SdkError::ConstructionFailure(_) => "the request could not be built".to_owned(),
        SdkError::ResponseError(context) => {
            format!("the response could not be read, status {}", context.raw().status())
        }
        _ => {
            let mut text = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                text = format!("{text}: {error}");
                cause = error.source();
            }
            text
        }
    }
}

/// The reason why a frame was not served: the client's mistake or our fault.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The client gets an error frame.
    #[error(transparent)]
    Mistake(#[from] ClientError),
    /// The invocation fails.
    #[error(transparent)]
    Fault(#[from] Error),
}

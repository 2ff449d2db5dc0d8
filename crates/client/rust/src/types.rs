//! The values that an application gives to the client and gets from it.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio_rustls::rustls::ClientConfig;

/// The place of a message in its topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The name of the run of numbers.
    pub epoch: String,
    /// The number of the message, from 1.
    pub seq: u64,
}

/// Settings of a client. `Options::default()` has the values that fit API Gateway.
#[derive(Debug, Clone)]
pub struct Options {
    /// Gives the token for each handshake, if there is one.
    pub token: Option<TokenSource>,
    /// How to check the certificate of a server at `wss://`, and what to show to it. Without this the client trusts the
    /// certificate authorities of the machine, or those of the file that the variable `SSL_CERT_FILE` names.
    pub tls: Option<Arc<ClientConfig>>,
    /// The most messages without an ack. A further one is dropped. Default: 1000.
    pub buffer: usize,
    /// The client closes after this many refused connections in a row. Default: 20.
    pub refusals: u32,
    /// How long an answer may take. Default: 10 seconds.
    pub timeout: Duration,
    /// The longest pause between two attempts. Default: 30 seconds.
    pub max_delay: Duration,
    /// The longest time between two pings. API Gateway cuts a connection that is idle for 10 minutes. Default: 9 minutes.
    pub heartbeat: Duration,
    /// How long the gateway lets a connection live. A new one replaces it at 65 to 95 % of that. Default: 2 hours.
    pub lifetime: Duration,
    /// The most bytes of a frame. Default: 32,768, which is API Gateway's limit.
    pub frame_limit: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            token: None,
            tls: None,
            buffer: 1000,
            refusals: 20,
            timeout: Duration::from_secs(10),
            max_delay: Duration::from_secs(30),
            heartbeat: Duration::from_secs(540),
            lifetime: Duration::from_secs(7200),
            frame_limit: 32_768,
        }
    }
}

/// Why the client wants a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Counts the attempts since the last stable connection, from 1.
    pub number: u32,
    /// Says in words why a new connection is needed. The first one needs no reason.
    pub reason: Option<String>,
}

type Ask = dyn Fn(Attempt) -> BoxFuture<'static, Result<String, String>> + Send + Sync;

/// A function that the client asks for a token before each handshake.
#[derive(Clone)]
pub struct TokenSource(Arc<Ask>);

impl TokenSource {
    /// Makes a source of tokens from an async function. When it fails, the client tries again later.
    pub fn new<F, T, E>(ask: F) -> Self
    where
        F: Fn(Attempt) -> T + Send + Sync + 'static,
        T: Future<Output = Result<String, E>> + Send + 'static,
        E: fmt::Display,
    {
        Self(Arc::new(move |attempt| {
            let answer = ask(attempt);
            Box::pin(async move { answer.await.map_err(|error| error.to_string()) })
        }))
    }

    pub(crate) fn ask(&self, attempt: Attempt) -> BoxFuture<'static, Result<String, String>> {
        (self.0)(attempt)
    }
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSource")
    }
}

/// A message as a subscription hears it.
#[derive(Debug, Clone)]
pub struct Message {
    /// The topic, or `@me` for a direct message.
    pub topic: String,
    /// The published value, byte for byte. [`Message::json`] parses it.
    pub data: Box<RawValue>,
    /// The user that sent it, if the server says so: on topics with history, and for direct messages.
    pub sender_id: Option<String>,
    /// Where it is, on topics with history.
    pub position: Option<Position>,
    /// When the server took its number, in milliseconds since 1970. Only messages from the history have it.
    pub at: Option<u64>,
}

impl Message {
    /// Parses what was published.
    ///
    /// # Errors
    ///
    /// The message is not what `T` expects.
    pub fn json<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_str(self.data.get())
    }
}

/// The answer of the server to a message that it took.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ack {
    /// The message's id.
    pub id: String,
    /// How many connections got the message.
    pub delivered: Option<u64>,
    /// There are more receivers, and the server goes on.
    pub is_continued: bool,
    /// The message was kept before: this was a repetition.
    pub is_duplicate: bool,
    /// The message is kept although nobody was there.
    pub is_stored: bool,
    /// Where the message is, on topics with history.
    pub position: Option<Position>,
}

/// Where a subscription begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// With what is published from now on.
    Now,
    /// With this many of the newest messages, 1 to 100.
    Last(u32),
    /// Behind this position.
    After(Position),
}

/// A subscription hears everything that is published from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ready {
    /// Whether the topic keeps its messages. Without that, what is published during a reconnect is missed.
    pub has_history: bool,
    /// For [`Start::After`]: whether nothing is missing behind that position.
    pub is_recovered: Option<bool>,
}

/// The part of a history that is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Range {
    /// Reads on from this position, in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Position>,
    /// Reads back from this position, the newest message first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Position>,
    /// 1 to 1000. Default: 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// A page of a history.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Page {
    /// The run of numbers that the messages belong to.
    pub epoch: String,
    /// The messages, in the direction that was asked for.
    pub messages: Vec<Message>,
    /// Whether there are more in the same direction.
    pub has_more: bool,
}

/// What each member of a topic says about itself, as JSON.
pub type Users = BTreeMap<String, Option<Box<RawValue>>>;

/// Who is in a topic.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Members {
    /// The topic.
    pub topic: String,
    /// What each member says about itself, by user. It is absent where the server only counts: beyond 1,000 members.
    pub users: Option<Arc<Users>>,
    /// How many members there are.
    pub count: u64,
    /// Whether this is true now. It is false while there is no connection: then it shows who was there. A list of the new
    /// connection makes it true again.
    pub is_current: bool,
    /// The users that came since the call before.
    pub joined: Vec<String>,
    /// The users that left since the call before.
    pub left: Vec<String>,
    /// The users that say something else since the call before.
    pub changed: Vec<String>,
}

/// Whether there is a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// There is none, and the client tries to get one.
    Connecting,
    /// There is one.
    Connected,
    /// The client has ended.
    Closed,
}

/// Something that the client tells its application.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// There is no connection, and the next attempt is `delay` away.
    Connecting {
        /// Counts the attempts since the last stable connection, from 1.
        attempt: u32,
        /// The pause before the attempt.
        delay: Duration,
        /// Says in words what ended the connection, or the attempt before.
        reason: Option<String>,
    },
    /// There is a connection.
    Connected {
        /// Whether it replaced another one that was still open.
        is_rotated: bool,
    },
    /// Nothing was missed in this topic. Everything behind `from` was delivered, or is on its way to the application.
    Recovered {
        /// The topic.
        topic: String,
        /// Where the client was.
        from: Position,
        /// Where the topic is.
        to: Position,
    },
    /// Something may have been missed in this topic.
    Gap {
        /// The topic.
        topic: String,
        /// Where the client was.
        from: Option<Position>,
        /// Where it goes on.
        to: Option<Position>,
        /// `expired`: the server no longer has it. `no_history`: the topic does not keep its messages. Otherwise this is
        /// the code of an error.
        reason: String,
    },
    /// The server has too much to do, or this client sends too fast. The client waits, and sends the frame again.
    Busy {
        /// Says in words what the server, or the gateway in front of it, answered.
        reason: String,
    },
    /// The server refused a subscription, which has ended with that.
    Refused {
        /// The topic.
        topic: String,
        /// The words of the server.
        error: Error,
    },
    /// The client has ended. No event follows.
    Closed {
        /// `closed`: the application asked for it. `refused`: the server refused it too often.
        code: String,
        /// Says why, in words.
        reason: String,
    },
}

/// The server refused something, or the client could not send it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Error {
    /// A code of the server, or `too_large`, `buffer_full`, `closed`, `refused`, `invalid_url`, `invalid_field`.
    pub code: String,
    /// Says in words what is wrong.
    pub message: String,
    /// The id under which the server's log has it.
    pub request_id: Option<String>,
}

impl Error {
    pub(crate) fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into(), request_id: None }
    }

    pub(crate) fn closed() -> Self {
        Self::new("closed", "The client is closed.")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

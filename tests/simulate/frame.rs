//! The frames to clients, the publications, the records of the stream, and the reasons why a function runs.

use std::fmt;

use crate::table::{Author, Content, Ms, Position, Socket};

/// What a client receives.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Frame {
    /// A live message.
    Data { position: Position, content: Content },
    /// What the log has; a hole has no content.
    History { entries: Vec<(Position, Option<Content>)> },
    /// The ack of a subscription, or the end of a history.
    Answer { request: u32, recovered: bool, start: Position, end: Position },
    /// An ack without a position.
    Empty { request: u32 },
    /// `behind` is where the topic is, if the client is not.
    Pong { request: u32, behind: Option<Position> },
    /// The connection has no row.
    Unidentified,
    /// The answer of the real function to a question: history and answer in one.
    Page { request: u32, recovered: bool, start: Position, end: Position, entries: Vec<(Position, Option<Content>)> },
    /// The ack of a message, or of the last message of a frame.
    Acknowledged { author: Author, position: Position },
    /// The ack of an unsubscribe frame.
    Unsubscribed { request: u32 },
    /// The answer to a query, newest first unless the query asked for what is behind a position.
    Queried(Queried),
    /// A message of a backend to everybody.
    Broadcast { content: Content },
    /// A frame that clients with positions ignore.
    Other { text: String },
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Data { position, content } => write!(f, "data {position} {content}"),
            Self::History { entries } => {
                write!(f, "history")?;
                entries.iter().try_for_each(|(position, content)| match content {
                    Some(content) => write!(f, " {position} {content}"),
                    None => write!(f, " {position} hole"),
                })
            }
            Self::Answer { request, recovered, start, end } => {
                write!(f, "ack of request {request}, recovered: {recovered}, from {start} to {end}")
            }
            Self::Empty { request } => write!(f, "ack of request {request}, no position"),
            Self::Pong { request, behind: None } => write!(f, "pong of request {request}"),
            Self::Pong { request, behind: Some(behind) } => write!(f, "pong of request {request}, behind {behind}"),
            Self::Unidentified => write!(f, "error unidentified"),
            Self::Page { request, recovered, start, end, .. } => {
                write!(f, "page of request {request}, recovered: {recovered}, from {start} to {end}")
            }
            Self::Acknowledged { author, position } => write!(f, "ack of {author} as {position}"),
            Self::Unsubscribed { request } => write!(f, "ack of request {request}, unsubscribed"),
            Self::Queried(Queried { request, epoch, entries, more, .. }) => {
                write!(f, "answer to query {request} of e{epoch}, {} entries, more: {more}", entries.len())
            }
            Self::Broadcast { content } => write!(f, "to everybody {content}"),
            Self::Other { text } => write!(f, "{text}"),
        }
    }
}

/// The result of a query.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Queried {
    pub request: u32,
    pub epoch: Ms,
    pub entries: Vec<(Position, Option<Content>)>,
    pub more: bool,
    /// For a query behind a position: the position to go on from, and whether nothing is missing up to there.
    pub reached: Option<(Position, bool)>,
}

/// The part of the history that a query asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Range {
    After(Position),
    Before(Position),
    Newest,
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::After(position) => write!(f, "after {position}"),
            Self::Before(position) => write!(f, "before {position}"),
            Self::Newest => write!(f, "of the newest"),
        }
    }
}

/// A message that a client or a backend wants published.
#[derive(Debug, Clone, Copy, Hash)]
pub struct Publication {
    pub user: u32,
    /// A frame without `id` has no author.
    pub author: Option<Author>,
    /// The first message. The others have the contents behind it.
    pub content: Content,
    /// How many messages the frame has.
    pub count: u32,
    pub again: bool,
}

/// A record of the events table's stream.
#[derive(Debug, Clone, Copy, Hash)]
pub enum Record {
    Event {
        id: u32,
        content: Content,
    },
    /// An event for everybody.
    Broadcast {
        id: usize,
        content: Content,
    },
    Range {
        position: Position,
        content: Content,
        after: Socket,
    },
}

/// Why a function runs.
#[derive(Debug, Clone, Copy, Hash)]
pub enum Invocation {
    Connect(Socket),
    Disconnect(Socket),
    Subscribe {
        socket: Socket,
        request: u32,
        after: Option<Position>,
        /// Without `after`: how many of the newest messages it wants.
        newest: Option<u32>,
    },
    Unsubscribe {
        socket: Socket,
        request: u32,
    },
    /// A client looks into the history. It has no other use for the answer.
    Query {
        socket: Socket,
        request: u32,
        range: Range,
        limit: u32,
    },
    History {
        socket: Socket,
        request: u32,
        after: Position,
    },
    Ping {
        socket: Socket,
        request: u32,
        position: Option<Position>,
    },
    Publish(Publication),
    Record {
        index: usize,
        record: Record,
    },
    /// A reader that goes through the whole log when everything is over.
    Audit,
}

impl Invocation {
    /// The connection whose rows the function writes first.
    pub fn socket(&self) -> Option<Socket> {
        match self {
            Self::Connect(socket)
            | Self::Disconnect(socket)
            | Self::Subscribe { socket, .. }
            | Self::Unsubscribe { socket, .. } => Some(*socket),
            _ => None,
        }
    }
}

impl fmt::Display for Invocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(socket) => write!(f, "connect c{socket}"),
            Self::Disconnect(socket) => write!(f, "disconnect c{socket}"),
            Self::Subscribe { socket, after: Some(after), .. } => write!(f, "subscribe c{socket} after {after}"),
            Self::Subscribe { socket, newest: Some(count), .. } => write!(f, "subscribe c{socket} last {count}"),
            Self::Subscribe { socket, .. } => write!(f, "subscribe c{socket}"),
            Self::Unsubscribe { socket, .. } => write!(f, "unsubscribe c{socket}"),
            Self::Query { socket, range, limit, .. } => write!(f, "query c{socket} {limit} {range}"),
            Self::History { socket, after, .. } => write!(f, "history c{socket} after {after}"),
            Self::Ping { socket, .. } => write!(f, "ping c{socket}"),
            Self::Publish(Publication { author: None, .. }) => write!(f, "publish without id"),
            Self::Publish(Publication { author: Some(author), count, again, .. }) => {
                write!(f, "publish {author}")?;
                if *count > 1 {
                    write!(f, ", {count} messages")?;
                }
                write!(f, "{}", if *again { " again" } else { "" })
            }
            Self::Record { record: Record::Event { id, .. }, .. } => write!(f, "stream event{id}"),
            Self::Record { record: Record::Broadcast { id, .. }, .. } => write!(f, "stream broadcast{id}"),
            Self::Record { record: Record::Range { position, .. }, .. } => write!(f, "stream range of {position}"),
            Self::Audit => write!(f, "audit"),
        }
    }
}

//! The items that DynamoDB holds of one topic, with the conditional writes that the protocol makes.
//!
//! Each method is one call, and atomic. An item whose `ttl` has passed stays until it is removed, in no order, much later.

use std::collections::BTreeMap;
use std::fmt;

/// Milliseconds: a time, or how long something takes.
pub type Ms = i64;

/// A message's place in its topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// When the head was made, so a later epoch is a larger one.
    pub epoch: Ms,
    pub seq: i64,
}

impl Position {
    /// Before the first number of its epoch.
    pub fn begin(self) -> Self {
        Self { seq: 0, ..self }
    }

    pub fn next(self) -> Self {
        Self { seq: self.seq + 1, ..self }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "e{}/{}", self.epoch, self.seq)
    }
}

/// A number was taken at one time, and its item is kept until the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Span {
    pub at: Ms,
    pub until: Ms,
}

/// A number of the sequence, with what its taker was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Number {
    pub position: Position,
    pub span: Span,
    /// The span of the number before it, which tells readers what it means if that number is missing.
    pub before: Option<Span>,
}

/// What a sender wants to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Content(pub u32);

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"text {}\"", self.0)
    }
}

/// Who wrote a message, as far as a repetition must be recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Author {
    /// A client's frame, by user and `id`.
    Frame { user: u32, id: u32 },
    /// A further message of a client's frame, from 1.
    Part { user: u32, id: u32, part: u32 },
    /// A backend's event, by its `id`.
    Event(u32),
    /// A frame without `id`, by the invocation that serves it.
    Invocation(u32),
}

impl Author {
    /// The author of a further message of this author's frame.
    pub fn part(self, part: u32) -> Self {
        match self {
            Self::Frame { user, id } if part > 0 => Self::Part { user, id, part },
            author => author,
        }
    }
}

impl fmt::Display for Author {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frame { user, id } => write!(f, "u{user}.m{id}"),
            Self::Part { user, id, part } => write!(f, "u{user}.m{id}+{part}"),
            Self::Event(id) => write!(f, "event{id}"),
            Self::Invocation(id) => write!(f, "invocation{id}"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Head {
    pub epoch: Ms,
    pub last: i64,
    /// The span of the last number.
    pub span: Span,
    pub ttl: Ms,
}

impl Head {
    pub fn position(&self) -> Position {
        Position { epoch: self.epoch, seq: self.last }
    }

    pub fn begin(&self) -> Position {
        self.position().begin()
    }
}

/// The number that belongs to an `id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Binding {
    pub number: Number,
    pub ttl: Ms,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum What {
    Message {
        author: Author,
        content: Content,
    },
    /// A tombstone: nothing was ever written here, and nothing will be.
    Hole,
}

/// An item of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Entry {
    pub number: Number,
    pub what: What,
    pub ttl: Ms,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.what {
            What::Message { author, content } => {
                write!(f, "message {} {content} of {author}", self.number.position)
            }
            What::Hole => write!(f, "tombstone {}", self.number.position),
        }
    }
}

/// A connection to the gateway, by its id.
pub type Socket = usize;

/// A row of the connections table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Connection {
    pub connected_at: Ms,
    /// The topic is in the row's set.
    pub subscribed: bool,
    pub gone_at: Option<Ms>,
    pub ttl: Ms,
}

/// What a Query returns.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Page<T> {
    pub items: Vec<T>,
    pub more: bool,
}

/// A compare-and-set of a binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rebound {
    Done,
    Changed(Binding),
    Gone,
}

/// Names an item that can expire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    Head,
    Binding(Author),
    Entry(Position),
    Connection(Socket),
    Subscription(Socket),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head => write!(f, "head"),
            Self::Binding(author) => write!(f, "binding {author}"),
            Self::Entry(position) => write!(f, "entry {position}"),
            Self::Connection(socket) => write!(f, "connection c{socket}"),
            Self::Subscription(socket) => write!(f, "subscription c{socket}"),
        }
    }
}

#[derive(Debug, Default)]
pub struct Table {
    pub head: Option<Head>,
    pub bindings: BTreeMap<Author, Binding>,
    pub log: BTreeMap<Position, Entry>,
    pub connections: BTreeMap<Socket, Connection>,
    /// The rows of the topics table, each with its `ttl`.
    pub subscriptions: BTreeMap<Socket, Ms>,
    /// What an eventually consistent read of the head may still see.
    pub old_head: Option<Head>,
}

impl Table {
    pub fn set_head(&mut self, head: Option<Head>) {
        self.old_head = std::mem::replace(&mut self.head, head);
    }

    /// `UpdateItem` of the head: `ADD last 1`, if there is a head.
    pub fn take_number(&mut self, span: Span, ttl: Ms) -> Option<Number> {
        let head = self.head?;
        let last = head.last + 1;
        self.set_head(Some(Head { last, span, ttl, ..head }));
        Some(Number { position: Position { epoch: head.epoch, seq: last }, span, before: Some(head.span) })
    }

    /// `PutItem` of a head, if there is none.
    pub fn make_head(&mut self, head: Head) -> bool {
        if self.head.is_some() {
            return false;
        }
        self.set_head(Some(head));
        true
    }

    /// `PutItem` of a binding, if there is none or it has expired. Returns the one that is there.
    pub fn put_binding(&mut self, author: Author, binding: Binding, now: Ms) -> Option<Binding> {
        if let Some(found) = self.bindings.get(&author)
            && found.ttl > now
        {
            return Some(*found);
        }
        self.bindings.insert(author, binding);
        None
    }

    /// `UpdateItem` of a binding, if it is still that of `old`.
    pub fn rebind(&mut self, author: Author, old: Position, binding: Binding) -> Rebound {
        match self.bindings.get_mut(&author) {
            None => Rebound::Gone,
            Some(found) if found.number.position == old => {
                *found = binding;
                Rebound::Done
            }
            Some(found) => Rebound::Changed(*found),
        }
    }

    /// `PutItem` of a message or tombstone, if there is none. Returns the one that is there.
    pub fn put_entry(&mut self, entry: Entry) -> Option<Entry> {
        let found = self.log.get(&entry.number.position).copied();
        if found.is_none() {
            self.log.insert(entry.number.position, entry);
        }
        found
    }

    /// `Query` of the log from a position on, within its epoch.
    pub fn query_log(&self, from: Position, limit: usize) -> Page<Entry> {
        let end = Position { seq: i64::MAX, ..from };
        let mut items: Vec<_> = self.log.range(from..=end).take(limit + 1).map(|(_, entry)| *entry).collect();
        let more = items.len() > limit;
        items.truncate(limit);
        Page { items, more }
    }

    /// `Query` of the subscribers behind one.
    pub fn query_subscribers(&self, after: Option<Socket>, limit: usize) -> Page<(Socket, Ms)> {
        let from = after.map_or(0, |after| after + 1);
        let mut items: Vec<_> =
            self.subscriptions.range(from..).take(limit + 1).map(|(socket, ttl)| (*socket, *ttl)).collect();
        let more = items.len() > limit;
        items.truncate(limit);
        Page { items, more }
    }

    /// `UpdateItem` of a connection, if there is one: puts the topic into its set.
    pub fn add_topic(&mut self, socket: Socket) -> bool {
        let row = self.connections.get_mut(&socket);
        row.map(|row| row.subscribed = true).is_some()
    }

    /// `UpdateItem` of a connection, if there is one: notes a first 410. One that is too old does not count.
    pub fn mark_gone(&mut self, socket: Socket, now: Ms, too_old: Ms) -> Option<Connection> {
        let row = self.connections.get_mut(&socket)?;
        if row.gone_at.is_none_or(|at| now - at > too_old) {
            row.gone_at = Some(now);
        }
        Some(*row)
    }

    /// The `ttl` of an item, if it is there.
    pub fn ttl(&self, key: Key) -> Option<Ms> {
        match key {
            Key::Head => self.head.map(|head| head.ttl),
            Key::Binding(author) => self.bindings.get(&author).map(|binding| binding.ttl),
            Key::Entry(position) => self.log.get(&position).map(|entry| entry.ttl),
            Key::Connection(socket) => self.connections.get(&socket).map(|row| row.ttl),
            Key::Subscription(socket) => self.subscriptions.get(&socket).copied(),
        }
    }

    /// Removes an item.
    pub fn remove(&mut self, key: Key) {
        match key {
            Key::Head => self.set_head(None),
            Key::Binding(author) => drop(self.bindings.remove(&author)),
            Key::Entry(position) => drop(self.log.remove(&position)),
            Key::Connection(socket) => drop(self.connections.remove(&socket)),
            Key::Subscription(socket) => drop(self.subscriptions.remove(&socket)),
        }
    }
}

//! Every call that a function makes: to DynamoDB, to the gateway's `@connections`, and the reply to a sender.
//!
//! A call takes effect in one step. Its text and that of its answer stand beside each other, for the trace.

use std::hash::Hash;

use crate::frame::{Frame, Record};
use crate::settings::Bug;
use crate::table::{
    Author, Binding, Connection, Content, Entry, Head, Key, Ms, Number, Page, Position, Rebound, Socket, Span, What,
};
use crate::world::World;

/// A request and what it does.
pub trait Call: Clone + Hash + 'static {
    type Answer: Clone + Hash;

    /// Write units of the log, for small items.
    const WRITES: u32 = 0;

    fn apply(&self, world: &mut World) -> Self::Answer;

    fn text(&self) -> String;

    fn outcome(&self, answer: &Self::Answer) -> String;

    /// The connection whose rows it writes, if it writes any.
    fn socket(&self) -> Option<Socket> {
        None
    }
}

fn yes(done: bool, yes: &str, no: &str) -> String {
    if done { yes.to_owned() } else { no.to_owned() }
}

/// Takes the next number, if there is a head.
#[derive(Debug, Clone, Copy, Hash)]
pub struct TakeNumber {
    pub span: Span,
    pub ttl: Ms,
}

impl Call for TakeNumber {
    type Answer = Option<Number>;
    const WRITES: u32 = 1;

    fn apply(&self, world: &mut World) -> Option<Number> {
        let number = world.table.take_number(self.span, self.ttl)?;
        world.ledger.taken(&number, world.now);
        world.changed_head();
        Some(number)
    }

    fn text(&self) -> String {
        "UpdateItem head ADD last 1".to_owned()
    }

    fn outcome(&self, answer: &Option<Number>) -> String {
        answer.map_or("there is no head".to_owned(), |number| format!("number {}", number.position))
    }
}

#[derive(Debug, Clone, Copy, Hash)]
pub struct MakeHead(pub Head);

impl Call for MakeHead {
    type Answer = bool;
    const WRITES: u32 = 1;

    fn apply(&self, world: &mut World) -> bool {
        let made = world.table.make_head(self.0);
        if made {
            world.ledger.head_made(&self.0);
            world.changed_head();
        }
        made
    }

    fn text(&self) -> String {
        format!("PutItem head e{} if there is none", self.0.epoch)
    }

    fn outcome(&self, made: &bool) -> String {
        yes(*made, "made", "there is one")
    }
}

#[derive(Debug, Clone, Copy, Hash)]
pub struct ReadHead {
    pub strong: bool,
}

impl Call for ReadHead {
    type Answer = Option<Head>;

    fn apply(&self, world: &mut World) -> Option<Head> {
        if !self.strong && world.reads_old_head() { world.table.old_head } else { world.table.head }
    }

    fn text(&self) -> String {
        yes(self.strong, "GetItem head", "GetItem head, eventually consistent")
    }

    fn outcome(&self, head: &Option<Head>) -> String {
        head.map_or("there is none".to_owned(), |head| head.position().to_string())
    }
}

#[derive(Debug, Clone, Copy, Hash)]
pub struct PutBinding {
    pub author: Author,
    pub binding: Binding,
    pub now: Ms,
}

impl Call for PutBinding {
    /// The binding that is already there.
    type Answer = Option<Binding>;
    const WRITES: u32 = 1;

    fn apply(&self, world: &mut World) -> Option<Binding> {
        if world.settings.has(Bug::NoBinding) {
            world.table.bindings.remove(&self.author);
        }
        let found = world.table.put_binding(self.author, self.binding, self.now);
        world.expires(Key::Binding(self.author));
        found
    }

    fn text(&self) -> String {
        format!("PutItem binding {} to {} if there is none", self.author, self.binding.number.position)
    }

    fn outcome(&self, found: &Option<Binding>) -> String {
        found.map_or("bound".to_owned(), |found| format!("bound to {}", found.number.position))
    }
}

#[derive(Debug, Clone, Copy, Hash)]
pub struct ReadBinding(pub Author);

impl Call for ReadBinding {
    type Answer = Option<Binding>;

    fn apply(&self, world: &mut World) -> Option<Binding> {
        world.table.bindings.get(&self.0).copied()
    }

    fn text(&self) -> String {
        format!("GetItem binding {}", self.0)
    }

    fn outcome(&self, found: &Option<Binding>) -> String {
        found.map_or("there is none".to_owned(), |found| format!("bound to {}", found.number.position))
    }
}

#[derive(Debug, Clone, Copy, Hash)]
pub struct Rebind {
    pub author: Author,
    pub old: Position,
    pub binding: Binding,
}

impl Call for Rebind {
    type Answer = Rebound;
    const WRITES: u32 = 1;

    fn apply(&self, world: &mut World) -> Rebound {
        let rebound = world.table.rebind(self.author, self.old, self.binding);
        world.expires(Key::Binding(self.author));
        rebound
    }

    fn text(&self) -> String {
        let Self { author, old, binding } = self;
        format!("UpdateItem binding {author} from {old} to {}", binding.number.position)
    }

    fn outcome(&self, rebound: &Rebound) -> String {
        match rebound {
            Rebound::Done => "bound".to_owned(),
            Rebound::Changed(binding) => format!("bound to {}", binding.number.position),
            Rebound::Gone => "there is none".to_owned(),
        }
    }
}

#[derive(Debug, Clone, Copy, Hash)]
pub struct PutEntry(pub Entry);

impl Call for PutEntry {
    /// The entry that is already there.
    type Answer = Option<Entry>;
    const WRITES: u32 = 1;

    fn apply(&self, world: &mut World) -> Option<Entry> {
        let position = self.0.number.position;
        if world.settings.has(Bug::LateWriterOverwritesTombstone)
            && matches!(self.0.what, What::Message { .. })
            && world.table.log.get(&position).is_some_and(|entry| entry.what == What::Hole)
        {
            world.table.log.remove(&position);
        }
        let found = world.table.put_entry(self.0);
        if found.is_none() {
            world.written(&self.0);
        }
        found
    }

    fn text(&self) -> String {
        format!("PutItem {} if there is none", self.0)
    }

    fn outcome(&self, found: &Option<Entry>) -> String {
        found.map_or("written".to_owned(), |found| format!("there is a {found}"))
    }
}

/// A page of the log, strongly consistent.
#[derive(Debug, Clone, Copy, Hash)]
pub struct QueryLog {
    pub from: Position,
    pub limit: usize,
}

impl Call for QueryLog {
    type Answer = Page<Entry>;

    fn apply(&self, world: &mut World) -> Page<Entry> {
        world.table.query_log(self.from, self.limit)
    }

    fn text(&self) -> String {
        format!("Query log from {}", self.from)
    }

    fn outcome(&self, page: &Page<Entry>) -> String {
        let entries: Vec<_> = page.items.iter().map(Entry::to_string).collect();
        format!("[{}]{}", entries.join(", "), if page.more { " and more" } else { "" })
    }
}

/// A page of the topic's subscribers with the `ttl` of their rows, strongly consistent.
#[derive(Debug, Clone, Copy, Hash)]
pub struct QuerySubscribers {
    pub after: Option<Socket>,
    pub limit: usize,
}

impl Call for QuerySubscribers {
    type Answer = Page<(Socket, Ms)>;

    fn apply(&self, world: &mut World) -> Page<(Socket, Ms)> {
        world.table.query_subscribers(self.after, self.limit)
    }

    fn text(&self) -> String {
        let after = self.after.map_or(String::new(), |after| format!(" behind c{after}"));
        format!("Query subscribers{after}")
    }

    fn outcome(&self, page: &Page<(Socket, Ms)>) -> String {
        let sockets: Vec<_> = page.items.iter().map(|(socket, _)| format!("c{socket}")).collect();
        format!("[{}]{}", sockets.join(", "), if page.more { " and more" } else { "" })
    }
}

#[derive(Debug, Clone, Copy, Hash)]
pub struct PutConnection {
    pub socket: Socket,
    pub row: Connection,
}

impl Call for PutConnection {
    type Answer = ();

    fn apply(&self, world: &mut World) {
        world.table.connections.insert(self.socket, self.row);
        world.expires(Key::Connection(self.socket));
    }

    fn text(&self) -> String {
        format!("PutItem connection c{}", self.socket)
    }

    fn outcome(&self, (): &()) -> String {
        "written".to_owned()
    }

    fn socket(&self) -> Option<Socket> {
        Some(self.socket)
    }
}

/// Puts the topic into the set of a connection that exists.
#[derive(Debug, Clone, Copy, Hash)]
pub struct AddTopic(pub Socket);

impl Call for AddTopic {
    type Answer = bool;

    fn apply(&self, world: &mut World) -> bool {
        world.table.add_topic(self.0)
    }

    fn text(&self) -> String {
        format!("UpdateItem connection c{} ADD topics", self.0)
    }

    fn outcome(&self, found: &bool) -> String {
        yes(*found, "added", "there is no such connection")
    }

    fn socket(&self) -> Option<Socket> {
        Some(self.0)
    }
}

#[derive(Debug, Clone, Copy, Hash)]
pub struct PutSubscription {
    pub socket: Socket,
    pub ttl: Ms,
}

impl Call for PutSubscription {
    type Answer = ();

    fn apply(&self, world: &mut World) {
        world.table.subscriptions.insert(self.socket, self.ttl);
        world.expires(Key::Subscription(self.socket));
    }

    fn text(&self) -> String {
        format!("PutItem subscription c{}", self.socket)
    }

    fn outcome(&self, (): &()) -> String {
        "written".to_owned()
    }

    fn socket(&self) -> Option<Socket> {
        Some(self.socket)
    }
}

#[derive(Debug, Clone, Copy, Hash)]
pub struct DeleteSubscription(pub Socket);

impl Call for DeleteSubscription {
    type Answer = ();

    fn apply(&self, world: &mut World) {
        world.table.remove(Key::Subscription(self.0));
    }

    fn text(&self) -> String {
        format!("DeleteItem subscription c{}", self.0)
    }

    fn outcome(&self, (): &()) -> String {
        "deleted".to_owned()
    }

    fn socket(&self) -> Option<Socket> {
        Some(self.0)
    }
}

#[derive(Debug, Clone, Copy, Hash)]
pub struct ReadConnection {
    pub socket: Socket,
    pub strong: bool,
}

impl Call for ReadConnection {
    type Answer = Option<Connection>;

    fn apply(&self, world: &mut World) -> Option<Connection> {
        if !self.strong
            && let Some(row) = world.reads_old_connection(self.socket)
        {
            return Some(row);
        }
        world.table.connections.get(&self.socket).copied()
    }

    fn text(&self) -> String {
        let consistency = if self.strong { "" } else { ", eventually consistent" };
        format!("GetItem connection c{}{consistency}", self.socket)
    }

    fn outcome(&self, found: &Option<Connection>) -> String {
        yes(found.is_some(), "it is there", "there is none")
    }
}

#[derive(Debug, Clone, Copy, Hash)]
pub struct DeleteConnection(pub Socket);

impl Call for DeleteConnection {
    /// The row that was there.
    type Answer = Option<Connection>;

    fn apply(&self, world: &mut World) -> Option<Connection> {
        let row = world.table.connections.get(&self.0).copied();
        world.removes_connection(self.0);
        row
    }

    fn text(&self) -> String {
        format!("DeleteItem connection c{}", self.0)
    }

    fn outcome(&self, row: &Option<Connection>) -> String {
        match row {
            None => "there was none".to_owned(),
            Some(row) => yes(row.subscribed, "it was subscribed", "it was not subscribed"),
        }
    }

    fn socket(&self) -> Option<Socket> {
        Some(self.0)
    }
}

#[derive(Debug, Clone, Copy, Hash)]
pub struct MarkGone {
    pub socket: Socket,
    pub now: Ms,
    pub too_old: Ms,
}

impl Call for MarkGone {
    type Answer = Option<Connection>;

    fn apply(&self, world: &mut World) -> Option<Connection> {
        world.table.mark_gone(self.socket, self.now, self.too_old)
    }

    fn text(&self) -> String {
        format!("UpdateItem connection c{} SET goneAt", self.socket)
    }

    fn outcome(&self, row: &Option<Connection>) -> String {
        let gone_at = row.and_then(|row| row.gone_at);
        gone_at.map_or("there is none".to_owned(), |at| format!("since {at} ms"))
    }
}

/// Puts the rest of a fan-out into the events table.
#[derive(Debug, Clone, Copy, Hash)]
pub struct PutRange {
    pub position: Position,
    pub content: Content,
    pub after: Socket,
}

impl Call for PutRange {
    type Answer = ();

    fn apply(&self, world: &mut World) {
        let Self { position, content, after } = *self;
        world.put_record(Record::Range { position, content, after });
    }

    fn text(&self) -> String {
        format!("PutItem range of {} behind c{}", self.position, self.after)
    }

    fn outcome(&self, (): &()) -> String {
        "written".to_owned()
    }
}

#[derive(Debug, Clone, Hash)]
pub struct Post {
    pub socket: Socket,
    pub frame: Frame,
}

impl Call for Post {
    /// Whether the gateway took it: 200, or 410.
    type Answer = bool;

    fn apply(&self, world: &mut World) -> bool {
        world.post(self.socket, &self.frame)
    }

    fn text(&self) -> String {
        format!("POST c{} {}", self.socket, self.frame)
    }

    fn outcome(&self, taken: &bool) -> String {
        yes(*taken, "200", "410")
    }
}

/// Closes a connection.
#[derive(Debug, Clone, Copy, Hash)]
pub struct Close(pub Socket);

impl Call for Close {
    type Answer = bool;

    fn apply(&self, world: &mut World) -> bool {
        world.close(self.0)
    }

    fn text(&self) -> String {
        format!("DELETE c{}", self.0)
    }

    fn outcome(&self, open: &bool) -> String {
        yes(*open, "204", "410")
    }
}

/// The ack to a sender.
#[derive(Debug, Clone, Copy, Hash)]
pub struct Acknowledge {
    pub author: Author,
    pub position: Position,
}

impl Call for Acknowledge {
    type Answer = ();

    fn apply(&self, world: &mut World) {
        world.acknowledge(self.author, self.position);
    }

    fn text(&self) -> String {
        format!("POST ack of {} as {}", self.author, self.position)
    }

    fn outcome(&self, (): &()) -> String {
        "200".to_owned()
    }
}

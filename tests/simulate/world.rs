//! The world of one run: virtual time, a random schedule, faults, the gateway and the stream.
//!
//! A run has two phases. In the first, senders send and faults happen. When every sender has its acks, or has given up, the
//! faults end; a while later everything must be in order.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::hash::{Hash, Hasher};
use std::rc::Rc;

use crate::calls::Call;
use crate::client::Client;
use crate::faults::{Faults, Kept};
use crate::frame::{Frame, Invocation, Publication, Range, Record};
use crate::handlers::{Engine, Subject};
use crate::invariants::{Answered, Asked, Invariant, Ledger, Newest};
use crate::random::{Random, Trail};
use crate::run::Outcome;
use crate::sender::Sender;
use crate::settings::Settings;
use crate::table::{Author, Connection, Content, Entry, Key, Ms, Position, Socket, Table, What};

/// One invocation.
struct Process {
    invocation: Invocation,
    invoked_at: Ms,
    /// When the publish began that it is a part of.
    root_at: Ms,
    deadline: Ms,
    running: bool,
    /// The connection whose rows it wrote last.
    touches: Option<Socket>,
    writes: u32,
    killed: bool,
    /// What it has sent of the history.
    sent: Vec<(Position, Option<Content>)>,
    /// The last message that it has posted to each connection.
    posted: BTreeMap<Socket, Position>,
}

/// A connection as the gateway sees it.
struct Connected {
    client: usize,
    open: bool,
    /// The client is still there.
    attached: bool,
    opened_at: Ms,
    closed_at: Option<Ms>,
    /// A fault met a function that writes its rows, so they may be wrong until they expire.
    touched: bool,
    /// The last function that was to subscribe or unsubscribe it.
    switched_by: Option<usize>,
    /// Since when it was told that it does not listen any more.
    deaf_since: Option<Ms>,
}

/// A message of a backend to everybody.
struct Broadcast {
    /// The connections that must get it: those that are there from before it until it ends.
    expected: BTreeSet<Socket>,
    /// The connections to which it was posted, if only in vain.
    posted: BTreeSet<Socket>,
    /// The event and its continuations.
    records: Vec<usize>,
    given_up: bool,
    ended: bool,
}

struct Put {
    record: Record,
    at: Ms,
    /// When the publish began that it is a part of.
    root_at: Option<Ms>,
    done: bool,
}

/// What may happen next.
pub enum Event {
    /// A function goes on.
    Wake(usize),
    /// A call that timed out takes effect.
    Late(Box<dyn FnOnce(&mut World)>),
    Expire(Key),
    Arrive {
        socket: Socket,
        frame: Frame,
    },
    Closed {
        client: usize,
        socket: Socket,
    },
    Client {
        index: usize,
        timer: u64,
    },
    Sender {
        user: u32,
        timer: u64,
    },
    Acknowledged {
        user: u32,
        author: Author,
    },
    Backend,
    Stream(usize),
    Cut(Socket),
    /// A live connection has had no row for too long, unless it has one by now.
    Rowless(Socket),
    /// A closed connection must have no rows left.
    Forgotten(Socket),
}

struct Timed {
    at: Ms,
    /// At the same time, the event that was planned first comes first.
    order: u64,
    event: Event,
}

impl PartialEq for Timed {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Timed {}

impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timed {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

pub struct World {
    pub settings: Rc<Settings>,
    pub now: Ms,
    pub random: Random,
    pub table: Table,
    pub ledger: Ledger,
    /// Until when nobody begins a message.
    pub quiet_until: Ms,
    faults: Faults,
    kept: Kept,
    queue: BinaryHeap<Reverse<Timed>>,
    order: u64,
    sockets: Vec<Connected>,
    clients: Vec<Option<Client>>,
    /// On which connection each client has been live, and since when.
    live: Vec<Option<(Socket, Ms)>>,
    /// Since when each client is subscribed without a position.
    promised: Vec<Option<Ms>>,
    senders: Vec<Option<Sender>>,
    records: Vec<Put>,
    events: u32,
    broadcasts: Vec<Broadcast>,
    contents: u32,
    /// The messages of frames with several: which one it is, of how many.
    parts: BTreeMap<Content, (u32, u32)>,
    /// The function whose call takes effect.
    acting: Option<usize>,
    processes: Vec<Process>,
    starting: Vec<usize>,
    old_head_until: Ms,
    old_connections: Vec<(Socket, Connection, Ms)>,
    settles: Option<Ms>,
    end: Ms,
    trail: Trail,
    trace: Option<Vec<String>>,
    /// The real tables, if real handlers run.
    pub engine: Option<Rc<Engine>>,
}

// ---- What the calls of functions do ----

impl World {
    pub fn changed_head(&mut self) {
        self.old_head_until = self.now + self.settings.stale;
        self.expires(Key::Head);
    }

    pub fn reads_old_head(&mut self) -> bool {
        self.now < self.old_head_until && self.random.chance(0.5)
    }

    pub fn reads_old_connection(&mut self, socket: Socket) -> Option<Connection> {
        let now = self.now;
        let old = self.old_connections.iter().find(|(it, _, until)| *it == socket && now < *until);
        let row = old.map(|(_, row, _)| *row)?;
        self.random.chance(0.5).then_some(row)
    }

    pub fn written(&mut self, entry: &Entry) {
        let Settings { binding_gap, margin, life, settled, .. } = *self.settings;
        self.ledger.written(entry, &self.table, binding_gap + margin + life, settled, self.now);
        self.expires(Key::Entry(entry.number.position));
    }

    /// An item was written: it is removed at some time after its `ttl`.
    pub fn expires(&mut self, key: Key) {
        let Some(ttl) = self.table.ttl(key) else { return };
        let late = if self.random.chance(0.5) { self.settings.flight } else { 2 * self.settings.kept };
        let at = ttl.max(self.now) + self.random.between((1, late));
        self.plan(at, Event::Expire(key));
    }

    fn expire(&mut self, key: Key) {
        if self.table.ttl(key).is_none_or(|ttl| ttl > self.now) {
            return;
        }
        if let Key::Connection(socket) = key {
            self.removes_connection(socket);
        } else {
            self.table.remove(key);
        }
        if let Some(engine) = &self.engine {
            engine.remove(key);
        }
        self.tell(|| ("DynamoDB".to_owned(), format!("removes the expired {key}")));
    }

    pub fn removes_connection(&mut self, socket: Socket) {
        let Some(row) = self.table.connections.get(&socket).copied() else { return };
        self.table.remove(Key::Connection(socket));
        self.old_connections.retain(|(it, ..)| *it != socket);
        self.old_connections.push((socket, row, self.now + self.settings.stale));
        self.plan_rowless(socket);
    }

    pub fn put_record(&mut self, record: Record) {
        let root_at = self.acting.map(|process| self.processes[process].root_at);
        self.records.push(Put { record, at: self.now, root_at, done: false });
        self.stream(self.records.len() - 1);
    }

    /// A function leaves the rest of a broadcast.
    pub fn put_rest_of_broadcast(&mut self, id: usize, record: Record) {
        self.broadcasts[id].records.push(self.records.len());
        self.put_record(record);
    }

    /// A subscriber's row is gone.
    pub fn removes_subscription(&mut self, socket: Socket) {
        let was_there = self.table.subscriptions.contains_key(&socket);
        self.table.remove(Key::Subscription(socket));
        if was_there {
            self.row_was_switched(socket);
            self.plan_rowless(socket);
        }
    }

    /// A subscriber's row is written.
    pub fn adds_subscription(&mut self, socket: Socket, ttl: Ms) {
        self.table.subscriptions.insert(socket, ttl);
        self.expires(Key::Subscription(socket));
        self.row_was_switched(socket);
    }

    /// Frames of one connection may overtake each other, and a call may take effect late. If an earlier frame has the last
    /// word over a later one that says the opposite, nobody can tell what is right. The gateway then ends the connection.
    fn row_was_switched(&mut self, socket: Socket) {
        let Some((acting, last)) = self.acting.zip(self.sockets[socket].switched_by) else { return };
        let subscribes = |process: usize| match self.processes[process].invocation {
            Invocation::Subscribe { .. } => Some(true),
            Invocation::Unsubscribe { .. } => Some(false),
            _ => None,
        };
        if acting < last && subscribes(acting).is_some_and(|it| subscribes(last) == Some(!it)) {
            self.ledger.counts.handlers.overtaken += 1;
            self.tell(|| ("gateway".to_owned(), format!("ends c{socket}: a frame was overtaken by the next one")));
            self.plan(self.now, Event::Cut(socket));
        }
    }

    fn plan_rowless(&mut self, socket: Socket) {
        let connected = &self.sockets[socket];
        if connected.open && connected.attached {
            let Settings { ping, patience, stale, call, .. } = *self.settings;
            self.plan(self.now + ping + 2 * patience + stale + 4 * call.1, Event::Rowless(socket));
        }
    }

    /// The stream delivers a record, for the first time or again.
    fn stream(&mut self, index: usize) {
        let at = self.now + self.random.spread((1, 4 * self.settings.call.1));
        self.plan(at, Event::Stream(index));
    }

    pub fn post(&mut self, socket: Socket, frame: &Frame) -> bool {
        let connected = &self.sockets[socket];
        if !connected.open {
            return false;
        }
        let attached = connected.attached;
        if self.faults.hit(self.settings.false_gone) {
            self.tell(|| ("fault".to_owned(), format!("c{socket} is said to be gone")));
            return false;
        }
        if attached && !self.faults.hit(self.settings.lost_post) {
            let at = self.now + self.random.between(self.settings.call);
            self.plan(at, Event::Arrive { socket, frame: frame.clone() });
        } else {
            self.tell(|| ("fault".to_owned(), format!("the frame to c{socket} never arrives")));
        }
        true
    }

    pub fn close(&mut self, socket: Socket) -> bool {
        let Connected { client, open, attached, .. } = self.sockets[socket];
        if !open {
            return false;
        }
        self.sockets[socket].open = false;
        self.sockets[socket].attached = false;
        if attached {
            let at = self.now + self.random.between(self.settings.call);
            self.plan(at, Event::Closed { client, socket });
        }
        self.disconnected(socket);
        true
    }

    fn disconnected(&mut self, socket: Socket) {
        self.sockets[socket].closed_at = Some(self.now);
        for broadcast in &mut self.broadcasts {
            broadcast.expected.remove(&socket);
        }
        if self.faults.hit(self.settings.lost_disconnect) {
            self.sockets[socket].touched = true;
            self.tell(|| ("fault".to_owned(), format!("$disconnect of c{socket} is lost")));
            return;
        }
        self.invoke(Invocation::Disconnect(socket));
        // Every function that is running now has ended by then.
        self.plan(self.now + 2 * self.settings.life, Event::Forgotten(socket));
    }

    pub fn acknowledge(&mut self, author: Author, position: Position) {
        let now = self.now;
        self.ledger.acknowledged(author, position, now, &self.table);
        if let Author::Frame { user, .. } = author {
            let at = self.now + self.random.between(self.settings.call);
            self.plan(at, Event::Acknowledged { user, author });
        }
    }

    /// Judges what a function is about to answer.
    pub fn judge(&mut self, socket: Socket, answered: &Answered<'_>) {
        let client = self.sockets[socket].client;
        let healthy = match (self.settles, self.live[client]) {
            (Some(settles), Some((live, since))) if live == socket => Some(since.max(settles)),
            _ => None,
        };
        let grace = self.grace();
        self.ledger.answered(client, answered, healthy, grace);
    }

    /// A client is about to begin at this position.
    pub fn is_given(&mut self, position: Position) {
        self.ledger.given.push((position, self.now));
    }

    /// Judges a pong.
    pub fn is_behind(&mut self, socket: Socket, position: Position, behind: Option<Position>) {
        if let Some(behind) = behind {
            let client = self.sockets[socket].client;
            self.ledger.is_behind(client, position, behind);
        }
    }

    /// How long after the faults a live client may need: a ping, a question, and the answer.
    fn grace(&self) -> Ms {
        let Settings { ping, patience, hold, flight, call, .. } = *self.settings;
        ping + patience + 2 * hold + flight + 20 * call.1
    }
}

// ---- What clients and senders do ----

impl World {
    pub fn settling(&self) -> bool {
        self.settles.is_some()
    }

    pub fn invoke(&mut self, invocation: Invocation) {
        let root_at = match invocation {
            Invocation::Record { index, .. } => self.records[index].root_at,
            _ => None,
        };
        if let Invocation::Subscribe { socket, .. } | Invocation::Unsubscribe { socket, .. } = invocation {
            self.sockets[socket].switched_by = Some(self.processes.len());
            self.sockets[socket].deaf_since = None;
        }
        self.processes.push(Process {
            invocation,
            invoked_at: self.now,
            root_at: root_at.unwrap_or(self.now),
            deadline: Ms::MAX,
            running: true,
            touches: None,
            writes: 0,
            killed: false,
            sent: Vec::new(),
            posted: BTreeMap::new(),
        });
        self.starting.push(self.processes.len() - 1);
    }

    pub fn publish(&mut self, publication: Publication) {
        self.invoke(Invocation::Publish(publication));
    }

    /// Begins a handshake.
    pub fn open(&mut self, client: usize) {
        let socket = self.sockets.len();
        self.sockets.push(Connected {
            client,
            open: false,
            attached: true,
            opened_at: self.now,
            closed_at: None,
            touched: false,
            switched_by: None,
            deaf_since: None,
        });
        self.tell(|| (format!("client {client}"), format!("opens c{socket}")));
        self.invoke(Invocation::Connect(socket));
    }

    /// A client goes away; the gateway notices if it says so.
    pub fn leave(&mut self, socket: Socket, clean: bool) {
        self.tell(|| {
            let connected = if clean { "leaves" } else { "vanishes from" };
            (format!("client of c{socket}"), format!("{connected} c{socket}"))
        });
        self.sockets[socket].attached = false;
        if !clean {
            self.sockets[socket].touched = true;
        } else if self.sockets[socket].open {
            self.sockets[socket].open = false;
            self.disconnected(socket);
        }
    }

    /// How long a client stays away. While nobody says anything for days, it does so, too.
    pub fn time_away(&mut self) -> Ms {
        let pause = self.random.spread(self.settings.offline);
        if self.quiet_until > self.now + self.settings.head_extra / 2 {
            pause.max(self.quiet_until - self.now)
        } else {
            pause
        }
    }

    pub fn leaves_half_open(&mut self) -> bool {
        self.faults.hit(self.settings.half_open)
    }

    pub fn is_live(&mut self, socket: Socket) {
        let client = self.sockets[socket].client;
        self.live[client] = Some((socket, self.now));
    }

    /// A client is subscribed, and was told no position.
    pub fn promised(&mut self, client: usize) {
        self.promised[client].get_or_insert(self.now);
    }

    /// A client without a position has got one.
    pub fn begins(&mut self, client: usize, start: Position) {
        if let Some(since) = self.promised[client] {
            self.ledger.begins(client, start, since);
        }
    }

    pub fn applied(&mut self, client: usize, last: Position, position: Position, content: Option<Content>) {
        (client, position, content).hash(&mut self.trail);
        self.ledger.applied(client, last, position, content);
        self.tell(|| {
            let content = content.map_or("hole".to_owned(), |content| content.to_string());
            (format!("client {client}"), format!("applies {position} {content}"))
        });
    }

    pub fn wake_client(&mut self, index: usize, timer: u64, at: Ms) {
        if at < Ms::MAX {
            self.plan(at, Event::Client { index, timer });
        }
    }

    pub fn wake_sender(&mut self, user: u32, timer: u64, at: Ms) {
        self.plan(at, Event::Sender { user, timer });
    }

    pub fn new_content(&mut self) -> Content {
        self.contents += 1;
        Content(self.contents)
    }

    /// The first of several contents, for the messages of one frame.
    pub fn new_contents(&mut self, count: u32) -> Content {
        let first = self.new_content();
        for part in 1..count {
            self.parts.insert(Content(first.0 + part), (part, count));
        }
        if count > 1 {
            self.parts.insert(first, (0, count));
        }
        self.contents += count - 1;
        first
    }

    /// The place of a content in its frame, from 0.
    pub fn part_of(&self, content: Content) -> u32 {
        self.parts.get(&content).map_or(0, |(part, _)| *part)
    }

    /// How many messages the next frame has. Direct messages come alone.
    pub fn parts_of_frame(&mut self) -> u32 {
        let Settings { several, parts, .. } = *self.settings;
        if self.listens_to_inbox() || !self.random.chance(several) {
            return 1;
        }
        u32::try_from(self.random.between((2, i64::from(parts).max(2)))).unwrap_or(2)
    }

    fn listens_to_inbox(&self) -> bool {
        self.engine.as_ref().is_some_and(|engine| engine.subject == Subject::Inbox)
    }

    /// When a client does something else than listening.
    pub fn next_whim(&mut self) -> Ms {
        if self.settling() || self.settings.whim.0 == Ms::MAX {
            return Ms::MAX;
        }
        self.now + self.random.spread(self.settings.whim)
    }

    /// Nobody stops hearing direct messages.
    pub fn unsubscribes(&mut self) -> bool {
        !self.listens_to_inbox() && self.random.chance(self.settings.unsubscribes)
    }

    pub fn time_deaf(&mut self) -> Ms {
        self.random.spread(self.settings.deaf)
    }

    pub fn forgets(&mut self, client: usize) -> bool {
        let forgets = self.settings.forgets > 0.0 && self.random.chance(self.settings.forgets);
        if forgets {
            self.promised[client] = None;
            self.tell(|| (format!("client {client}"), "has forgotten its position".to_owned()));
        }
        forgets
    }

    pub fn wants_newest(&mut self) -> Option<u32> {
        let wants = self.settings.wants_newest > 0.0 && self.random.chance(self.settings.wants_newest);
        if wants { u32::try_from(self.random.between((1, 6))).ok() } else { None }
    }

    /// The part of the history that a client at a position asks for.
    pub fn query(&mut self, position: Option<Position>) -> (Range, u32) {
        let limit = u32::try_from(self.random.between((1, 6))).unwrap_or(1);
        let away = self.random.between((-2, 12));
        let range = match (position, self.random.between((0, 4))) {
            (None, _) | (_, 0) => Range::Newest,
            (Some(position), 1 | 2) => Range::After(Position { seq: (position.seq - away).max(0), ..position }),
            (Some(position), _) => Range::Before(Position { seq: (position.seq + 3 - away).max(0), ..position }),
        };
        (range, limit)
    }

    /// A client is about to unsubscribe.
    pub fn listens_no_more(&mut self, client: usize) {
        self.live[client] = None;
        self.promised[client] = None;
    }

    pub fn sends_without_id(&mut self) -> bool {
        self.random.chance(self.settings.without_id)
    }

    pub fn reuses_id(&mut self) -> bool {
        self.faults.hit(self.settings.reused_id)
    }

    pub fn waits_too_long(&mut self) -> bool {
        self.faults.hit(self.settings.stubborn)
    }

    /// So long after its first try a frame is repeated that should not be repeated any more: about when its binding or its
    /// message ends.
    pub fn late_repetition(&mut self) -> Ms {
        let Settings { kept, other_kept, binding_gap, life, .. } = *self.settings;
        let kept = if self.random.chance(0.7) { kept } else { other_kept };
        let gap = if self.random.chance(0.5) { binding_gap } else { 0 };
        kept - gap - self.random.between((-life / 2, life / 2))
    }

    pub fn repeats_needlessly(&mut self) -> bool {
        self.faults.hit(self.settings.needless_repetition)
    }

    /// Now and then everybody is silent for about as long as messages are kept, or as the head is.
    pub fn quiet_spell(&mut self) {
        let Settings { kept, head_extra, quiet, very_quiet, .. } = *self.settings;
        if self.random.chance(quiet) {
            let until = self.now + self.random.spread((kept / 4, 2 * kept));
            self.quiet_until = self.quiet_until.max(until);
        }
        if self.random.chance(very_quiet) {
            self.quiet_until = self.now + kept + head_extra + self.random.between((0, 3 * kept));
        }
    }

    /// The kept time that a function starts with.
    pub fn kept_time(&mut self) -> Ms {
        self.kept.at(self.now, &mut self.random)
    }
}

// ---- What real handlers need ----

impl World {
    pub fn trail(&mut self) -> &mut Trail {
        &mut self.trail
    }

    /// Does what a call of a function does.
    pub fn act_for<T>(&mut self, process: usize, act: impl FnOnce(&mut Self) -> T) -> T {
        self.acting = Some(process);
        let done = act(self);
        self.acting = None;
        done
    }

    /// Judges a post when it sets out, whatever becomes of it.
    pub fn judge_post(&mut self, process: usize, socket: Socket, frame: &Frame) {
        match (frame, self.processes[process].invocation) {
            (Frame::Data { position, .. }, _) => {
                let before = self.processes[process].posted.insert(socket, *position);
                if let Some(before) = before.filter(|before| before > position) {
                    let text = format!("{position} is posted to c{socket} after {before} by one function");
                    self.ledger.broken(Invariant::I6, text);
                }
            }
            (Frame::Broadcast { .. }, Invocation::Record { index, .. }) => {
                let mut broadcasts = self.broadcasts.iter_mut();
                if let Some(broadcast) = broadcasts.find(|broadcast| broadcast.records.contains(&index)) {
                    let is_new = broadcast.posted.insert(socket);
                    self.ledger.counts.handlers.broadcast += 1;
                    if !is_new && self.nothing_fails() {
                        self.ledger.broken(Invariant::I15, format!("c{socket} gets a broadcast twice without a fault"));
                    }
                }
            }
            _ => {}
        }
    }

    fn nothing_fails(&self) -> bool {
        let Settings { kill, lost_request, lost_response, late, stalls, false_gone, .. } = *self.settings;
        kill + lost_request + lost_response + late + stalls + false_gone + self.settings.duplicate_record == 0.0
    }

    /// When the next event is due, or nothing when the run is over.
    pub fn next_at(&self) -> Option<Ms> {
        self.queue.peek().map(|Reverse(timed)| timed.at).filter(|at| *at <= self.end)
    }

    pub fn invocation(&self, process: usize) -> Invocation {
        self.processes[process].invocation
    }

    pub fn begins_to_run(&mut self, process: usize, life: Ms) {
        self.processes[process].deadline = self.now + life;
    }

    /// When a connection was opened, and whose it is.
    pub fn connected(&self, socket: Socket) -> (Ms, u32) {
        let Connected { opened_at, client, .. } = self.sockets[socket];
        (opened_at, u32::try_from(client).unwrap_or(u32::MAX))
    }

    /// The connection of a user who is connected.
    pub fn socket_of(&self, user: u32) -> Option<Socket> {
        let client = self.clients.get(user as usize)?.as_ref()?;
        client.socket()
    }

    pub fn any_open_socket(&self) -> Option<Socket> {
        self.sockets.iter().position(|socket| socket.open && socket.attached)
    }

    /// Whether functions go on although no event is planned: their waits are not in the queue.
    pub fn functions_go_on(&self) -> bool {
        self.now <= self.end && self.processes.iter().any(|process| process.running)
    }

    pub fn hit(&mut self, rate: f64) -> bool {
        self.faults.hit(rate)
    }

    /// Whether an eventually consistent read does not see a new connection yet.
    pub fn reads_before_connect(&mut self, socket: Socket) -> bool {
        self.now < self.sockets[socket].opened_at + self.settings.stale && self.random.chance(0.2)
    }

    pub fn drops_write(&mut self) -> bool {
        self.random.chance(0.05)
    }

    /// How long a request or an answer travels, and whether it stalls.
    pub fn travel_time(&mut self) -> (Ms, bool) {
        let stalls = self.faults.hit(self.settings.stalls);
        let time = if stalls { self.settings.stall } else { self.settings.call };
        (self.random.between(time), stalls)
    }

    pub fn late_by(&mut self) -> Ms {
        self.random.between((1, self.settings.life))
    }

    /// Whether the function is dead from now on.
    pub fn dies_now(&mut self, process: usize) -> bool {
        if self.processes[process].running && self.faults.hit(self.settings.kill / 2.0) {
            self.processes[process].killed = true;
        }
        self.processes[process].killed
    }

    pub fn was_killed(&self, process: usize) -> bool {
        self.processes[process].killed
    }

    /// Notes what a call writes. Whether a call with a fault has written it is not known.
    pub fn note_call(&mut self, process: usize, sockets: &[Socket], has_fault: bool, writes: u32) {
        self.processes[process].writes += writes;
        for socket in sockets {
            self.processes[process].touches = Some(*socket);
            self.sockets[*socket].touched |= has_fault;
        }
    }

    pub fn tell_process(&mut self, process: usize, line: impl FnOnce() -> String) {
        let invocation = self.processes[process].invocation;
        self.tell(|| (format!("{invocation} ({process})"), line()));
    }

    /// Judges a frame that a function posts, whether it arrives or not.
    pub fn judge_frame(&mut self, process: usize, socket: Socket, frame: &Frame) {
        let Process { invoked_at, root_at, invocation, .. } = self.processes[process];
        match (frame, invocation) {
            (Frame::Data { position, .. }, _) => {
                let Connected { open, deaf_since, .. } = self.sockets[socket];
                if let Some(since) = deaf_since.filter(|since| open && *since < root_at) {
                    let text = format!("c{socket} does not listen since {since} ms and gets {position}");
                    self.ledger.broken(Invariant::I11, text);
                }
            }
            (Frame::Unsubscribed { .. }, _) => {
                self.ledger.counts.handlers.unsubscribed += 1;
                // If the client has sent another frame meanwhile, that one counts.
                if self.sockets[socket].switched_by == Some(process) {
                    self.sockets[socket].deaf_since = Some(self.now);
                }
            }
            (Frame::Queried(queried), Invocation::Query { range, limit, .. }) => {
                let client = self.sockets[socket].client;
                let asked = Asked { range, limit, began: invoked_at };
                self.ledger.queried(client, &asked, queried, self.now);
            }
            (Frame::History { entries }, _) => self.processes[process].sent.extend(entries),
            (Frame::Answer { recovered, start, end, .. }, Invocation::Subscribe { after, newest, .. }) => match after {
                Some(after) => {
                    let (recovered, start, end) = (*recovered, *start, *end);
                    let entries = std::mem::take(&mut self.processes[process].sent);
                    let answered = Answered { after, recovered, start, end, entries: &entries, resumes: true };
                    self.judge(socket, &answered);
                    self.processes[process].sent = entries;
                }
                None => {
                    self.is_given(*start);
                    if let Some(count) = newest {
                        let (client, entries) = (self.sockets[socket].client, &self.processes[process].sent);
                        let newest = Newest { count, end: *start, entries, began: invoked_at };
                        self.ledger.newest(client, &newest, self.now);
                    }
                }
            },
            (Frame::Page { recovered, start, end, entries, .. }, Invocation::History { after, .. }) => {
                let (recovered, start, end) = (*recovered, *start, *end);
                self.judge(socket, &Answered { after, recovered, start, end, entries, resumes: false });
            }
            (Frame::Pong { behind, .. }, Invocation::Ping { position: Some(position), .. }) => {
                self.is_behind(socket, position, *behind);
            }
            (Frame::Acknowledged { author, position }, Invocation::Publish(Publication { content, count, .. })) => {
                self.ledger.counts.handlers.several += u64::from(count > 1);
                for part in 0..count {
                    let position = Position { seq: position.seq - i64::from(count - 1 - part), ..*position };
                    self.ledger.acknowledged(author.part(part), position, self.now, &self.table);
                    let content = Content(content.0 + part);
                    if let Some(What::Message { content: stored, .. }) = self.table.log.get(&position).map(|it| it.what)
                        && stored != content
                    {
                        let text = format!("{content} was acknowledged as {position}, where there is {stored}");
                        self.ledger.broken(Invariant::I1, text);
                    }
                }
            }
            _ => {}
        }
    }
}

// ---- Time ----

impl World {
    pub fn new(seed: u64, settings: &Rc<Settings>, left_out: Vec<u64>, trace: bool) -> Self {
        let mut random = Random::new(seed);
        let kept = Kept::new(&mut random, settings);
        let clients = settings.clients;
        let mut world = Self {
            settings: settings.clone(),
            now: 0,
            random,
            table: Table::default(),
            ledger: Ledger::default(),
            quiet_until: 0,
            faults: Faults::new(seed, left_out),
            kept,
            queue: BinaryHeap::new(),
            order: 0,
            sockets: Vec::new(),
            clients: (0..clients).map(|index| Some(Client::new(index))).collect(),
            live: vec![None; clients],
            promised: vec![None; clients],
            senders: (0..settings.senders).map(|user| Some(Sender::new(user))).collect(),
            records: Vec::new(),
            // Those for everybody come first.
            events: settings.events + settings.broadcasts,
            broadcasts: Vec::new(),
            contents: 0,
            parts: BTreeMap::new(),
            acting: None,
            processes: Vec::new(),
            starting: Vec::new(),
            old_head_until: 0,
            old_connections: Vec::new(),
            settles: None,
            end: Ms::MAX,
            trail: Trail::default(),
            trace: trace.then(Vec::new),
            engine: None,
        };
        for index in 0..clients {
            // Timer 0 is the one that a new client has.
            let at = world.random.between((1, world.settings.online.0));
            world.plan(at, Event::Client { index, timer: 0 });
        }
        for user in 0..world.settings.senders {
            world.with_sender(user, Sender::pause);
        }
        let at = world.random.spread(world.settings.gap);
        world.plan(at, Event::Backend);
        world
    }

    pub fn plan(&mut self, at: Ms, event: Event) {
        self.order += 1;
        self.queue.push(Reverse(Timed { at, order: self.order, event }));
    }

    fn tell(&mut self, line: impl FnOnce() -> (String, String)) {
        if let Some(trace) = &mut self.trace {
            let (actor, what) = line();
            trace.push(format!("{:>7} ms  {actor:<26} {what}", self.now));
        }
    }

    /// What happens next, or nothing when the run is over.
    pub fn next(&mut self) -> Option<Event> {
        if self.queue.peek().is_none_or(|Reverse(timed)| timed.at > self.end) {
            return None;
        }
        let Reverse(timed) = self.queue.pop()?;
        self.now = timed.at;
        Some(timed.event)
    }

    pub fn handle(&mut self, event: Event) {
        match event {
            Event::Wake(_) => {}
            Event::Late(call) => call(self),
            Event::Expire(key) => self.expire(key),
            Event::Arrive { socket, frame } => {
                if self.sockets[socket].attached {
                    let client = self.sockets[socket].client;
                    if let Frame::Acknowledged { author: author @ Author::Frame { user, .. }, .. } = frame {
                        self.with_sender(user, |sender, world| sender.acknowledged(author, world));
                    }
                    self.with_client(client, |client, world| client.receive(socket, frame, world));
                }
            }
            Event::Closed { client, socket } => {
                self.with_client(client, |client, world| client.closed(Some(socket), world));
            }
            Event::Client { index, timer } => self.with_client(index, |client, world| client.wake(timer, world)),
            Event::Sender { user, timer } => self.with_sender(user, |sender, world| sender.wake(timer, world)),
            Event::Acknowledged { user, author } => {
                self.with_sender(user, |sender, world| sender.acknowledged(author, world));
            }
            Event::Backend => self.put_event(),
            Event::Stream(index) => {
                let record = self.records[index].record;
                self.invoke(Invocation::Record { index, record });
            }
            Event::Cut(socket) => {
                self.close(socket);
            }
            Event::Rowless(socket) => {
                let Connected { open, attached, client, .. } = self.sockets[socket];
                if open && attached && !self.table.connections.contains_key(&socket) {
                    self.ledger.broken(Invariant::I9, format!("c{socket} lives and has no row"));
                }
                let listens = self.live[client].is_some_and(|(live, _)| live == socket);
                if open && attached && listens && !self.table.subscriptions.contains_key(&socket) {
                    self.ledger.broken(Invariant::I9, format!("c{socket} listens and has no row in the topic"));
                }
            }
            Event::Forgotten(socket) => self.check_forgotten(socket),
        }
    }

    fn with_client(&mut self, index: usize, act: impl FnOnce(&mut Client, &mut Self)) {
        if let Some(mut client) = self.clients[index].take() {
            act(&mut client, self);
            self.clients[index] = Some(client);
        }
    }

    fn with_sender(&mut self, user: u32, act: impl FnOnce(&mut Sender, &mut Self)) {
        let index = user as usize;
        if let Some(mut sender) = self.senders[index].take() {
            act(&mut sender, self);
            self.senders[index] = Some(sender);
        }
    }

    fn put_event(&mut self) {
        if self.events == 0 {
            return;
        }
        if self.now < self.quiet_until {
            return self.plan(self.quiet_until + 1, Event::Backend);
        }
        let content = self.new_content();
        if self.events > self.settings.events {
            self.put_broadcast(content);
        } else {
            if let Some(engine) = &self.engine {
                engine.event(self.events, content);
            }
            self.put_record(Record::Event { id: self.events, content });
        }
        self.events -= 1;
        let at = self.now + self.random.spread(self.settings.gap);
        self.plan(at, Event::Backend);
    }

    fn put_broadcast(&mut self, content: Content) {
        let Some(engine) = self.engine.clone() else { return };
        let id = self.broadcasts.len();
        engine.broadcast(id, content);
        let is_there = |socket: &Socket| self.sockets[*socket].open && self.table.connections.contains_key(socket);
        self.broadcasts.push(Broadcast {
            expected: (0..self.sockets.len()).filter(is_there).collect(),
            posted: BTreeSet::new(),
            records: vec![self.records.len()],
            given_up: false,
            ended: false,
        });
        self.put_record(Record::Broadcast { id, content });
    }

    /// Once everybody has said everything, the faults end and the rest is given time.
    pub fn settle_when_done(&mut self) {
        let is_done = |sender: &Option<Sender>| sender.as_ref().is_some_and(|sender| sender.is_done(self));
        if self.settles.is_some() || self.events > 0 || !self.senders.iter().all(is_done) {
            return;
        }
        self.settles = Some(self.now);
        self.faults.on = false;
        let Settings { patience, life, call, cut, .. } = *self.settings;
        self.end = self.now + 4 * patience + 2 * life + 2 * self.grace() + 40 * call.1;
        self.tell(|| ("the faults end".to_owned(), String::new()));
        // A connection that would be cut on the way goes now.
        for socket in 0..self.sockets.len() {
            if self.sockets[socket].open && self.sockets[socket].opened_at + cut <= self.end {
                self.close(socket);
            }
        }
        for index in 0..self.clients.len() {
            self.with_client(index, Client::settle);
        }
    }
}

// ---- Processes ----

impl World {
    /// The functions that were invoked and have not started.
    pub fn starting(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.starting)
    }

    /// Starts a function. It makes its first call later.
    pub fn starts(&mut self, process: usize) -> Invocation {
        self.processes[process].deadline = self.now + self.settings.life;
        let at = self.now + self.random.between(self.settings.call);
        self.plan(at, Event::Wake(process));
        self.processes[process].invocation
    }

    /// Lets a last reader go through the whole log, and nothing else happen.
    pub fn audit(&mut self) {
        self.end = Ms::MAX;
        self.queue.clear();
        self.invoke(Invocation::Audit);
    }

    pub fn outcome(&mut self) -> Outcome {
        self.ledger.counts.faults = self.faults.fired;
        Outcome {
            violation: self.ledger.violation.take(),
            counts: self.ledger.counts,
            hash: self.trail.finish(),
            steps: self.order,
            trace: self.trace.take().unwrap_or_default(),
        }
    }

    /// The function's call travels, or its answer.
    pub fn wake_after_travel(&mut self, process: usize) {
        let stalls = self.faults.hit(self.settings.stalls);
        let time = if stalls { self.settings.stall } else { self.settings.call };
        let at = self.now + self.random.between(time);
        self.plan(at, Event::Wake(process));
    }

    /// A call takes effect, or seems to. Nothing: it times out.
    pub fn perform<C: Call>(&mut self, process: usize, call: &C) -> Option<C::Answer> {
        self.ledger.counts.calls += 1;
        self.processes[process].writes += C::WRITES;
        if call.socket().is_some() {
            self.processes[process].touches = call.socket();
        }
        let mut answer = None;
        let mut fault = "";
        if self.faults.hit(self.settings.lost_request) {
            fault = "times out, and did nothing";
        } else if self.faults.hit(self.settings.late) {
            fault = "times out, and takes effect later";
            let at = self.now + self.random.between((1, self.settings.life));
            let call = call.clone();
            let late = move |world: &mut Self| {
                let answer = call.apply(world);
                world.tell(|| ("late".to_owned(), format!("{} -> {}", call.text(), call.outcome(&answer))));
            };
            self.plan(at, Event::Late(Box::new(late)));
        } else {
            let effect = call.apply(self);
            if self.faults.hit(self.settings.lost_response) {
                fault = "takes effect, and times out";
            } else {
                answer = Some(effect);
            }
        }
        if answer.is_none()
            && let Some(socket) = call.socket()
        {
            self.sockets[socket].touched = true;
        }
        (self.now, process, call, &answer).hash(&mut self.trail);
        let invocation = self.processes[process].invocation;
        self.tell(|| {
            let outcome = answer.as_ref().map_or(fault.to_owned(), |answer| call.outcome(answer));
            (format!("{invocation} ({process})"), format!("{} -> {outcome}", call.text()))
        });
        answer
    }

    /// Whether a function that is about to go on is dead instead.
    pub fn dies(&mut self, process: usize) -> Option<&'static str> {
        if self.now > self.processes[process].deadline {
            return Some("runs out of time");
        }
        // Each call has two such points.
        self.faults.hit(self.settings.kill / 2.0).then_some("is killed")
    }

    /// A function has ended: well, or with a fault.
    pub fn ended(&mut self, process: usize, fault: Option<&str>) {
        let Process { invocation, touches, writes, .. } = self.processes[process];
        self.processes[process].running = false;
        if let Some(fault) = fault {
            self.tell(|| (format!("{invocation} ({process})"), fault.to_owned()));
            for socket in [touches, invocation.socket()].into_iter().flatten() {
                self.sockets[socket].touched = true;
            }
        } else {
            self.check_writes(&invocation, writes);
        }
        match invocation {
            Invocation::Connect(socket) => self.handshake(socket, fault.is_none()),
            Invocation::Record { index, .. } => self.served(index, fault.is_none()),
            _ => {}
        }
        if self.settling() && self.is_over() {
            self.end = self.now - 1;
        }
    }

    /// Every client has everything, and nothing is under way that could change that.
    fn is_over(&self) -> bool {
        let head = self.table.head.map(|head| head.position());
        let arrived = |client: &Option<Client>| {
            let in_order = |socket: Socket| self.sockets[socket].open && self.has_rows(socket);
            let live = client.as_ref().filter(|client| client.live().is_some_and(in_order));
            live.is_some_and(|client| client.position() == head)
        };
        let running = |process: &Process| process.running && !matches!(process.invocation, Invocation::Ping { .. });
        let records = self.records.iter().all(|put| put.done);
        // The last reader must not take the last number for one that may still be written.
        let Settings { flight, skew, .. } = *self.settings;
        let settled = self.table.head.is_none_or(|head| head.span.at + flight + 2 * skew < self.now);
        settled && records && self.clients.iter().all(arrived) && !self.processes.iter().any(running)
    }

    fn check_writes(&mut self, invocation: &Invocation, writes: u32) {
        let Settings { kill, lost_request, lost_response, late, stalls, .. } = *self.settings;
        let Invocation::Publish(Publication { author, count, again: false, .. }) = *invocation else { return };
        if kill + lost_request + lost_response + late + stalls > 0.0 {
            return;
        }
        let expected = match (count, author) {
            (1, Some(_)) => 3,
            (1, None) => 2,
            // Each write of a transaction counts twice.
            (count, author) => 1 + u32::from(author.is_some()) + 2 * count,
        };
        // The first message of an epoch tries the head in vain, and makes it.
        if writes != expected && writes != expected + 2 {
            self.ledger.broken(Invariant::I14, format!("{invocation} took {writes} writes"));
        }
    }

    fn handshake(&mut self, socket: Socket, accepted: bool) {
        let client = self.sockets[socket].client;
        if accepted {
            self.sockets[socket].open = true;
            self.plan(self.now + self.settings.cut, Event::Cut(socket));
            self.with_client(client, |client, world| client.opened(socket, world));
        } else {
            self.sockets[socket].attached = false;
            self.with_client(client, |client, world| client.closed(None, world));
        }
    }

    /// The stream goes on, or repeats the record.
    fn served(&mut self, index: usize, served: bool) {
        self.records[index].done |= served;
        let again = if served { self.faults.hit(self.settings.duplicate_record) } else { true };
        if again && self.now < self.records[index].at + self.settings.repeats() {
            self.stream(index);
        } else if !served {
            // Given up: it is in the failure store.
            self.records[index].done = true;
            if let Some(broadcast) = self.broadcasts.iter_mut().find(|it| it.records.contains(&index)) {
                broadcast.given_up = true;
            }
        }
        self.check_broadcasts();
    }

    /// When the event and all of its continuations are served, every connection was served.
    fn check_broadcasts(&mut self) {
        let records = &self.records;
        let mut forgotten = None;
        for broadcast in self.broadcasts.iter_mut().filter(|broadcast| !broadcast.ended) {
            broadcast.ended = broadcast.records.iter().all(|index| records[*index].done);
            if broadcast.ended && !broadcast.given_up {
                forgotten = forgotten.or(broadcast.expected.difference(&broadcast.posted).next().copied());
            }
        }
        if let Some(socket) = forgotten {
            self.ledger.broken(Invariant::I15, format!("a broadcast has ended and nobody has posted it to c{socket}"));
        }
    }

    fn check_forgotten(&mut self, socket: Socket) {
        let rows = [Key::Connection(socket), Key::Subscription(socket)];
        if !self.sockets[socket].touched && rows.iter().any(|key| self.table.ttl(*key).is_some()) {
            self.ledger.broken(Invariant::I10, format!("c{socket} is closed and has a row"));
        }
    }

    /// After everything the rows are those of the open connections, and no others.
    fn check_rows(&self, engine: &Engine) -> Vec<(Invariant, String)> {
        let mut broken = Vec::new();
        let now = self.now;
        let rows = engine.rows(now);
        for (socket, topic) in &rows {
            let Connected { open, closed_at, touched, .. } = self.sockets[*socket];
            // Every function that is running when it ends has ended by then.
            let is_over = closed_at.is_some_and(|closed_at| closed_at + 2 * self.settings.life < now);
            if !open && is_over && !touched {
                let topic = topic.as_deref().unwrap_or("the connections");
                broken.push((Invariant::I10, format!("c{socket} is closed and has a row of {topic}")));
            }
        }
        for client in self.clients.iter().flatten() {
            let Some(socket) = client.live() else { continue };
            let (_, user) = self.connected(socket);
            for topic in engine.subject.topics(user) {
                if !rows.contains(&(socket, Some(topic.clone()))) {
                    broken.push((Invariant::I9, format!("c{socket} listens and has no row of {topic}")));
                }
            }
        }
        broken
    }

    fn has_rows(&self, socket: Socket) -> bool {
        self.table.connections.contains_key(&socket) && self.table.subscriptions.contains_key(&socket)
    }

    /// What must be true when everything is over.
    pub fn account(&mut self) {
        let mut broken = Vec::new();
        for (index, client) in self.clients.iter().enumerate() {
            let client = client.as_ref();
            let position = client.and_then(Client::position);
            let head = self.table.head.map(|head| head.position());
            match client.and_then(Client::live) {
                None => broken.push((Invariant::I8, format!("client {index} is not connected"))),
                Some(socket) => {
                    // A head that has expired says that nothing has come for long.
                    if head.is_some() && position != head {
                        broken
                            .push((Invariant::I8, format!("client {index} is at {position:?}, the topic at {head:?}")));
                    }
                    if !self.has_rows(socket) {
                        broken.push((Invariant::I9, format!("client {index} on c{socket} lacks a row")));
                    }
                }
            }
        }
        if let Some(engine) = self.engine.clone() {
            broken.extend(self.check_rows(&engine));
            let parts = &self.parts;
            self.ledger.check_frames(|content| parts.get(&content).copied().unwrap_or((0, 1)));
        }
        for put in self.records.iter().filter(|put| !put.done) {
            broken.push((Invariant::I12, format!("{:?} has not ended", put.record)));
        }
        for (invariant, text) in broken {
            self.ledger.broken(invariant, text);
        }
        let fresh_after = self.now - self.settings.shortest() + self.settings.settled + 2 * self.settings.margin;
        self.ledger.account(&self.table, self.now, fresh_after);
    }
}

//! Everything that the client decides, without sockets and without a clock of its own: connections, requests, and the
//! messages that wait for an ack. [`crate::topics`] has the half about topics.
//!
//! Each method takes what happened. It leaves effects for the driver, and timers that the driver brings back in time.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::AGAIN;
use crate::frame::Frame;
use crate::presence::{Answer, Said, Watcher};
use crate::topics::{Topic, Twin};
use crate::types::{Ack, Attempt, Error, Event, Message, Options, Page, Position, Range, Ready, Start, State};

/// After a rotation the old connection stays open this long, because posts to it may be under way.
pub(crate) const GRACE: Duration = Duration::from_secs(2);

/// At most this many messages wait for their answers. The server takes bursts of 100 frames, and 50 a second.
const AT_ONCE: usize = 20;

/// The shortest pause: the base of the back-off, and what the client waits at least when the server is busy.
const PAUSE: Duration = Duration::from_millis(500);

pub(crate) type ConnectionId = u64;

/// A wish of the application.
#[derive(Debug)]
pub(crate) enum Command {
    Post {
        lane: String,
        id: String,
        text: String,
        room: OwnedSemaphorePermit,
        reply: oneshot::Sender<Result<Ack, Error>>,
    },
    Read {
        topic: String,
        range: Range,
        reply: oneshot::Sender<Result<Page, Error>>,
    },
    Listen(Listen),
    Say {
        topic: String,
        listener: u64,
        data: Option<Value>,
        reply: Answer,
    },
    Members {
        topic: String,
        listener: u64,
        reply: Answer,
    },
    Leave {
        topic: String,
        listener: u64,
    },
    Wake,
    Reconnect,
    Close,
}

/// A new subscription.
#[derive(Debug)]
pub(crate) struct Listen {
    pub(crate) topic: String,
    pub(crate) listener: u64,
    pub(crate) start: Start,
    pub(crate) heard: mpsc::UnboundedSender<Heard>,
    pub(crate) ready: oneshot::Sender<Result<Ready, Error>>,
    /// Set if it asks who is there.
    pub(crate) watcher: Option<Watcher>,
}

/// A thing that a subscription hears.
#[derive(Debug)]
pub(crate) enum Heard {
    Message(Message),
    /// The subscription is here now, without a message.
    Position(Position),
}

/// An event of a connection.
#[derive(Debug)]
pub(crate) enum Input {
    Opened,
    Text(String),
    Ended(End),
}

/// Why a connection ended, or did not begin.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) reason: String,
    /// The code of a close frame.
    pub(crate) code: Option<u16>,
    /// The server, or something else that answers at its address, does not want this client.
    pub(crate) is_refused: bool,
}

impl End {
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), code: None, is_refused: false }
    }
}

/// A task for the driver.
#[derive(Debug)]
pub(crate) enum Effect {
    Open(ConnectionId, Attempt),
    Send(ConnectionId, String),
    Close(ConnectionId),
}

/// A thing that is due later. When its cause is gone, a timer does nothing.
#[derive(Debug)]
pub(crate) enum Timer {
    Open(String),
    Handshake(ConnectionId),
    Stable(ConnectionId),
    Rotate(ConnectionId),
    Retire(ConnectionId),
    Beat(ConnectionId, Instant),
    Answer(String, u64),
    Pump,
    Fill(String, u64),
    Resume(Vec<(String, u64)>),
    Left(String),
}

/// A connection that is open, or being opened.
#[derive(Debug, Default)]
pub(crate) struct Connection {
    /// The topics without history, by the ids of their subscribe frames: their data frames name no topic.
    pub(crate) named: HashMap<String, String>,
    heard_at: Option<Instant>,
    /// A ping waits for its pong.
    is_checking: bool,
    /// The server has answered as Switchboard does.
    is_answered: bool,
    pub(crate) is_retired: bool,
}

/// A frame that waits for its answer.
#[derive(Debug)]
struct Request {
    connection: ConnectionId,
    serial: u64,
    purpose: Purpose,
    /// The frames of a long answer, without the last one.
    parts: Vec<Frame>,
}

#[derive(Debug)]
pub(crate) enum Purpose {
    /// Whether the connection is alive.
    Check(Instant),
    /// Whether the connection is unknown, or only its user. The other request got the frame.
    Probe(Box<Purpose>, Box<Frame>),
    /// The topics, and where each of them was.
    Subscribe(Vec<(String, Option<Position>)>),
    Unsubscribe(String),
    /// Something in the outbox.
    Item(u64),
}

impl Purpose {
    fn is_ping(&self) -> bool {
        matches!(self, Self::Check(_) | Self::Probe(..))
    }
}

/// A message without an ack, or a question for history. It survives its connection.
#[derive(Debug)]
struct Item {
    id: String,
    /// Frames of one lane go one after another, because the server works on frames in parallel.
    lane: Option<String>,
    text: String,
    is_message: bool,
    /// It was sent before.
    is_repeated: bool,
    connection: Option<ConnectionId>,
    reply: Reply,
}

/// Who waits for the answer of an item.
#[derive(Debug)]
pub(crate) enum Reply {
    /// The permit's end gives the room back.
    Ack(oneshot::Sender<Result<Ack, Error>>, OwnedSemaphorePermit),
    Page(String, oneshot::Sender<Result<Page, Error>>),
    Fill {
        topic: String,
        key: u64,
        from: Position,
    },
    CatchUp {
        topic: String,
        listener: u64,
    },
    Members {
        topic: String,
        listener: u64,
        turn: Option<u64>,
        reply: Option<Answer>,
    },
    Said(Said),
}

/// The client without its sockets.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) options: Options,
    pub(crate) now: Instant,
    state: watch::Sender<State>,
    events: mpsc::UnboundedSender<Event>,
    pub(crate) effects: Vec<Effect>,
    timers: BTreeMap<(Instant, u64), Timer>,
    /// Numbers that are used once: for timers, connections, topics and ids.
    last_serial: u64,
    prefix: String,
    pub(crate) connections: HashMap<ConnectionId, Connection>,
    /// The connection in use, the one that is being opened, and the one that a rotation replaced.
    pub(crate) current: Option<ConnectionId>,
    pub(crate) next: Option<ConnectionId>,
    pub(crate) old: Option<ConnectionId>,
    /// The next attempt.
    waiting: Option<u64>,
    attempts: u32,
    refused: u32,
    requests: HashMap<String, Request>,
    outbox: BTreeMap<u64, Item>,
    /// While the server is busy: the next try, and how often it was busy in a row.
    pause: Option<u64>,
    errors: u32,
    /// How many messages may wait for their answers.
    room: usize,
    pub(crate) topics: BTreeMap<String, Topic>,
    /// Messages without a position that one of two open connections delivered, while the other may bring a copy.
    pub(crate) twins: Vec<Twin>,
    pub(crate) pings: u64,
    /// Subscriptions have changed, and the server has not heard of that.
    is_stale: bool,
}

impl Machine {
    pub(crate) fn new(
        options: Options,
        now: Instant,
        state: watch::Sender<State>,
        events: mpsc::UnboundedSender<Event>,
        prefix: String,
    ) -> Self {
        let mut machine = Self {
            options,
            now,
            state,
            events,
            effects: Vec::new(),
            timers: BTreeMap::new(),
            last_serial: 0,
            prefix,
            connections: HashMap::new(),
            current: None,
            next: None,
            old: None,
            waiting: None,
            attempts: 0,
            refused: 0,
            requests: HashMap::new(),
            outbox: BTreeMap::new(),
            pause: None,
            errors: 0,
            room: AT_ONCE,
            topics: BTreeMap::new(),
            twins: Vec::new(),
            pings: 0,
            is_stale: false,
        };
        machine.emit(Event::Connecting { attempt: 1, delay: Duration::ZERO, reason: None });
        machine.open(None);
        machine
    }

    pub(crate) fn is_closed(&self) -> bool {
        *self.state.borrow() == State::Closed
    }

    /// When the next timer is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.timers.keys().next().map(|(at, _)| *at)
    }

    /// Does what is due.
    pub(crate) fn tick(&mut self, now: Instant) {
        self.now = now;
        while let Some(entry) = self.timers.first_entry().filter(|entry| entry.key().0 <= now) {
            let ((_, serial), timer) = entry.remove_entry();
            self.fire(serial, timer);
        }
        if std::mem::take(&mut self.is_stale) {
            self.sync();
        }
    }

    pub(crate) fn command(&mut self, command: Command) {
        match command {
            Command::Post { lane, id, text, room, reply } => {
                if self.outbox.values().any(|item| item.id == id) {
                    let message = format!("A message with the id {id} still waits for its ack.");
                    let _ = reply.send(Err(Error::new("invalid_field", message)));
                    return;
                }
                self.put(Some(lane), id, text, true, Reply::Ack(reply, room));
            }
            Command::Read { topic, range, reply } => {
                let reply = Reply::Page(topic.clone(), reply);
                self.read(&topic, &range, reply);
            }
            Command::Listen(listen) => self.listen(listen),
            Command::Say { topic, listener, data, reply } => self.say(Said::new(topic, listener, data, Some(reply))),
            Command::Members { topic, listener, reply } => self.list(&topic, listener, Some(reply)),
            Command::Leave { topic, listener } => self.unlisten(&topic, listener),
            Command::Wake if self.waiting.is_some() && self.current.is_none() => {
                self.open(Some("The network or the application is back.".to_owned()));
            }
            Command::Wake => self.check(),
            Command::Reconnect => {
                if let Some(current) = self.current {
                    self.end(current, End::new("The application asked for a new connection."));
                }
            }
            Command::Close => self.close("closed", "The application closed the client."),
        }
    }

    pub(crate) fn input(&mut self, connection: ConnectionId, input: Input) {
        if !self.connections.contains_key(&connection) {
            return;
        }
        match input {
            Input::Opened => self.opened(connection),
            Input::Text(text) => self.hear(connection, &text),
            Input::Ended(end) => self.end(connection, end),
        }
    }

    pub(crate) fn emit(&self, event: Event) {
        // The application need not listen.
        let _ = self.events.send(event);
    }

    pub(crate) fn after(&mut self, delay: Duration, timer: Timer) -> u64 {
        let serial = self.serial();
        self.timers.insert((self.now + delay, serial), timer);
        serial
    }

    pub(crate) fn serial(&mut self) -> u64 {
        self.last_serial += 1;
        self.last_serial
    }

    pub(crate) fn new_id(&mut self) -> String {
        let serial = self.serial();
        format!("{}-{serial}", self.prefix)
    }

    /// The frame has to be sent to the server, but other commands may still change it.
    pub(crate) fn changed(&mut self) {
        self.is_stale = true;
    }

    pub(crate) fn back_off(&self, tries: u32) -> Duration {
        self.options.max_delay.min(PAUSE * 2_u32.pow(tries.min(20))).mul_f64(fastrand::f64())
    }

    fn fire(&mut self, serial: u64, timer: Timer) {
        match timer {
            Timer::Open(reason) if self.waiting == Some(serial) => self.open(Some(reason)),
            Timer::Handshake(connection) if self.next == Some(connection) => {
                self.end(connection, End::new("The handshake took too long."));
            }
            Timer::Stable(connection) if self.current == Some(connection) => self.attempts = 0,
            Timer::Rotate(connection) if self.current == Some(connection) && !self.is_opening() => {
                self.open(Some("rotation".to_owned()));
            }
            Timer::Retire(connection) if self.old == Some(connection) => self.end(connection, End::new("")),
            Timer::Beat(connection, since) if self.current == Some(connection) => self.beat(connection, since),
            Timer::Answer(id, asked) if self.requests.get(&id).is_some_and(|request| request.serial == asked) => {
                let Some(request) = self.requests.remove(&id) else { return };
                if !request.purpose.is_ping() {
                    self.check();
                }
                self.lost(request.connection, request.purpose);
            }
            Timer::Pump if self.pause == Some(serial) => {
                self.pause = None;
                self.pump();
            }
            Timer::Fill(topic, key) => self.due(&topic, key, serial),
            Timer::Resume(topics) => self.resumed(&topics),
            Timer::Left(topic) => self.left(&topic, false),
            _ => {}
        }
    }

    // ---- Connections ------------------------------------------------------------------------------------------------

    /// Opens a connection. If there is one, both are open until the new one has taken over.
    fn open(&mut self, reason: Option<String>) {
        self.waiting = None;
        self.attempts += 1;
        let connection = self.serial();
        self.connections.insert(connection, Connection::default());
        self.next = Some(connection);
        self.after(3 * self.options.timeout, Timer::Handshake(connection));
        self.effects.push(Effect::Open(connection, Attempt { number: self.attempts, reason }));
    }

    /// Whether an attempt is under way, or will be.
    fn is_opening(&self) -> bool {
        self.next.is_some() || self.waiting.is_some()
    }

    fn opened(&mut self, connection: ConnectionId) {
        if let Some(old) = self.old {
            self.end(old, End::new(""));
        }
        self.old = self.current.replace(connection);
        self.next = None;
        self.state.send_replace(State::Connected);
        // A million clients that connected in the same second would rotate at 463 connections a second.
        self.after(self.options.lifetime.mul_f64(0.65 + 0.3 * fastrand::f64()), Timer::Rotate(connection));
        // A connection that does not answer has ended by then.
        self.after(3 * self.options.timeout, Timer::Stable(connection));
        self.next_beat(connection);
        self.emit(Event::Connected { is_rotated: self.old.is_some() });
        self.sync();
        self.pump();
    }

    fn end(&mut self, connection: ConnectionId, end: End) {
        if self.connections.remove(&connection).is_none() {
            return;
        }
        self.effects.push(Effect::Close(connection));
        let is_old = self.old == Some(connection);
        for place in [&mut self.old, &mut self.current, &mut self.next] {
            if *place == Some(connection) {
                *place = None;
            }
        }
        if end.code == Some(1009) {
            let sent = self.outbox.iter().filter(|(_, item)| item.connection == Some(connection));
            let largest = sent.max_by_key(|(_, item)| item.text.len()).map(|(number, _)| *number);
            if let Some(number) = largest {
                self.settle(number, Err(Error::new("too_large", "The message is too large for the gateway.")));
            }
        }
        for topic in self.topics.values_mut().filter(|topic| topic.run.home == Some(connection)) {
            topic.watchers().for_each(|watcher| watcher.lost(None));
        }
        let requests: Vec<_> = self.requests.extract_if(|_, request| request.connection == connection).collect();
        for (_, request) in requests {
            self.lost(connection, request.purpose);
        }
        if is_old || self.is_closed() {
            return;
        }
        if end.is_refused {
            self.refuse(&end.reason);
        }
        if self.is_closed() {
            return;
        }
        let mut delay = Duration::ZERO;
        if !self.is_opening() {
            delay = self.back_off(self.attempts);
            self.waiting = Some(self.after(delay, Timer::Open(end.reason.clone())));
        }
        if self.current.is_none() {
            self.state.send_replace(State::Connecting);
            let attempt = self.attempts + u32::from(self.next.is_none());
            self.emit(Event::Connecting { attempt, delay, reason: Some(end.reason) });
        }
    }

    fn refuse(&mut self, reason: &str) {
        self.refused += 1;
        if self.refused >= self.options.refusals && self.current.is_none() {
            let count = self.refused;
            let words = "connections in a row. The token or the address may be wrong.";
            self.close("refused", &format!("The server refused {count} {words} {reason}"));
        }
    }

    fn close(&mut self, code: &str, reason: &str) {
        if self.is_closed() {
            return;
        }
        self.state.send_replace(State::Closed);
        let error = Error::new(code, reason);
        for (_, item) in std::mem::take(&mut self.outbox) {
            match item.reply {
                Reply::Ack(reply, _) => drop(reply.send(Err(error.clone()))),
                Reply::Page(_, reply) => drop(reply.send(Err(error.clone()))),
                Reply::Fill { .. } | Reply::CatchUp { .. } => {}
                Reply::Members { reply, .. } | Reply::Said(Said { reply, .. }) => {
                    let _ = reply.map(|reply| reply.send(Err(error.clone())));
                }
            }
        }
        for (_, topic) in std::mem::take(&mut self.topics) {
            topic.refuse(&error);
        }
        self.requests.clear();
        for connection in [self.old, self.next, self.current].into_iter().flatten() {
            self.end(connection, End::new(reason));
        }
        self.emit(Event::Closed { code: code.to_owned(), reason: reason.to_owned() });
    }

    fn next_beat(&mut self, connection: ConnectionId) {
        let delay = self.options.heartbeat.mul_f64(0.8 + 0.2 * fastrand::f64());
        self.after(delay, Timer::Beat(connection, self.now));
    }

    /// Pings. It is quiet, which costs less, if the server was heard since the ping before.
    fn beat(&mut self, connection: ConnectionId, since: Instant) {
        self.next_beat(connection);
        if self.connections[&connection].heard_at.is_some_and(|at| at > since) {
            let mut ping = self.ping();
            ping["quiet"] = json!(true);
            self.effects.push(Effect::Send(connection, ping.to_string()));
        } else {
            self.check();
        }
    }

    /// Finds out whether the connection is alive.
    pub(crate) fn check(&mut self) {
        let Some((current, connection)) = self.current.and_then(|id| Some((id, self.connections.get_mut(&id)?))) else {
            return;
        };
        if !std::mem::replace(&mut connection.is_checking, true) {
            let ping = self.ping();
            self.ask(current, ping, Purpose::Check(self.now));
        }
    }

    // ---- Requests ---------------------------------------------------------------------------------------------------

    /// Sends a frame. Then either `done` gets the answer, or `lost` is called. Returns the frame's id.
    pub(crate) fn ask(&mut self, connection: ConnectionId, mut frame: Value, purpose: Purpose) -> String {
        let id = self.new_id();
        frame["id"] = json!(id);
        self.send(connection, id.clone(), frame.to_string(), purpose);
        id
    }

    fn send(&mut self, connection: ConnectionId, id: String, text: String, purpose: Purpose) {
        let serial = self.serial();
        self.after(self.options.timeout, Timer::Answer(id.clone(), serial));
        self.requests.insert(id, Request { connection, serial, purpose, parts: Vec::new() });
        self.effects.push(Effect::Send(connection, text));
    }

    /// No answer came.
    fn lost(&mut self, connection: ConnectionId, purpose: Purpose) {
        match purpose {
            Purpose::Check(at) => {
                let Some(state) = self.connections.get_mut(&connection) else { return };
                state.is_checking = false;
                if state.heard_at.is_some_and(|heard| heard >= at) {
                    return;
                }
                // The timer came much too late, so this machine slept. The answer may be there in a moment.
                if self.now - at > 2 * self.options.timeout {
                    return self.check();
                }
                let is_refused = !state.is_answered;
                self.end(connection, End { is_refused, ..End::new("The server does not answer.") });
            }
            Purpose::Probe(purpose, _) => self.lost(connection, *purpose),
            Purpose::Subscribe(topics) => self.subscribe_lost(connection, &topics),
            Purpose::Unsubscribe(topic) => self.left(&topic, false),
            Purpose::Item(number) => {
                if let Some(item) = self.outbox.get_mut(&number) {
                    item.connection = None;
                }
                self.pump();
            }
        }
    }

    fn done(&mut self, connection: ConnectionId, id: &str, purpose: Purpose, frame: Frame) {
        match purpose {
            Purpose::Check(_) => {
                if let Some(connection) = self.connections.get_mut(&connection) {
                    connection.is_checking = false;
                }
            }
            Purpose::Probe(purpose, frame) => self.done(connection, id, *purpose, *frame),
            Purpose::Subscribe(topics) => self.subscribe_done(connection, id, &topics, &frame),
            Purpose::Unsubscribe(topic) if frame.temporary => {
                let delay = self.left_later(&topic);
                self.after(delay, Timer::Left(topic));
            }
            Purpose::Unsubscribe(topic) => self.left(&topic, true),
            Purpose::Item(number) => self.answered(number, frame),
        }
    }

    fn hear(&mut self, id: ConnectionId, text: &str) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.heard_at = Some(self.now);
        let Ok(mut frame) = serde_json::from_str::<Frame>(text) else {
            let is_object = serde_json::from_str::<serde_json::Map<_, _>>(text).is_ok();
            if !is_object && !connection.is_answered {
                let start: String = text.chars().take(80).collect();
                let reason = format!("The server does not answer as Switchboard does. It sent: {start}");
                self.end(id, End { is_refused: true, ..End::new(reason) });
            }
            return;
        };
        let kind = frame.kind.as_deref().unwrap_or_default();
        let is_answer = matches!(kind, "ack" | "error" | "history" | "pong" | "presence");
        if is_answer || kind == "data" {
            connection.is_answered = true;
            self.refused = 0;
        }
        if kind == "data" {
            let named = || connection.named.get(frame.id.as_ref()?).cloned();
            let own = frame.topic.clone().filter(|topic| self.topics.contains_key(topic)).or_else(named);
            let (Some(topic), Some(data)) = (frame.topic.or_else(|| own.clone()), frame.payload.data) else { return };
            // The server sends a message once, also if this client listens to its topic and to patterns that contain it.
            let is_in = |name: &&String| {
                let prefix = name.strip_suffix('*').filter(|_| own.as_ref() != Some(name));
                prefix.is_some_and(|prefix| topic.starts_with(prefix))
            };
            let patterns: Vec<_> = self.topics.keys().filter(is_in).cloned().collect();
            let position = frame.epoch.zip(frame.seq).map(|(epoch, seq)| Position { epoch, seq });
            let message = Message { topic, data, sender_id: frame.sender_id, position, at: None };
            for name in own.iter().chain(&patterns) {
                self.take(id, name, message.clone());
            }
            return;
        }
        if frame.kind.is_none() && frame.sender_id.is_some() {
            if let Some(data) = frame.body {
                let position = frame.epoch.zip(frame.seq).map(|(epoch, seq)| Position { epoch, seq });
                let topic = "@me".to_owned();
                self.take(id, "@me", Message { topic, data, sender_id: frame.sender_id, position, at: None });
            }
            return;
        }
        if frame.kind.is_none() && !frame.message.is_empty() {
            // The gateway's own error frames have no id. What they are about is repeated when its time is over.
            return self.emit(Event::Busy { reason: frame.message });
        }
        for (topic, position) in &frame.behind {
            self.is_behind(topic, position);
        }

        let asked = frame.id.clone().unwrap_or_default();
        let purpose = self.requests.get(&asked).map(|request| &request.purpose);
        let is_unknown = kind == "error" && frame.code.as_deref() == Some("unidentified");
        // A ping without an id was quiet.
        if is_unknown && (purpose.is_some_and(Purpose::is_ping) || frame.id.is_none()) {
            return self.end(id, End::new(frame.error().message));
        }
        if !is_answer {
            return;
        }
        if kind == "history" && matches!(purpose, Some(Purpose::Subscribe(_))) {
            return self.offer_all(frame);
        }
        if kind == "presence" && frame.id.is_none() {
            // While a rotation has not come to this topic yet, the old connection still tells.
            let name = frame.topic.clone().unwrap_or_default();
            let home = self.topics.get(&name).map(|topic| topic.run.home);
            if home.is_some_and(|home| home == Some(id) || self.current == Some(id)) {
                self.members_changed(&name, frame);
            }
            return;
        }
        if let (Some(request), true) = (self.requests.get_mut(&asked), kind == "presence") {
            // A long list of members comes in several frames.
            if frame.more {
                return request.parts.push(frame);
            }
            frame.parts = std::mem::take(&mut request.parts);
        }
        let Some(request) = self.requests.remove(&asked) else { return };
        // Either the connection has no record, or a connection without a user asked for what needs one. A ping tells.
        if is_unknown {
            let probe = Purpose::Probe(Box::new(request.purpose), Box::new(frame));
            self.ask(request.connection, json!({"type": "ping"}), probe);
        } else {
            self.done(request.connection, &asked, request.purpose, frame);
        }
    }

    // ---- Messages to the server -------------------------------------------------------------------------------------

    pub(crate) fn put(&mut self, lane: Option<String>, id: String, text: String, is_message: bool, reply: Reply) {
        let number = self.serial();
        let item = Item { id, lane, text, is_message, is_repeated: false, connection: None, reply };
        self.outbox.insert(number, item);
        self.pump();
    }

    /// Asks for a part of a topic's history.
    pub(crate) fn read(&mut self, topic: &str, range: &Range, reply: Reply) {
        let id = self.new_id();
        let mut frame = json!(range);
        frame["type"] = json!("history");
        frame["topic"] = json!(topic);
        frame["id"] = json!(id);
        self.put(None, id, frame.to_string(), false, reply);
    }

    /// Sends what waits.
    fn pump(&mut self) {
        let (Some(current), None) = (self.current, self.pause) else { return };
        let (mut lanes, mut ready, mut under_way) = (HashSet::new(), Vec::new(), 0);
        for (number, item) in &self.outbox {
            if under_way >= self.room {
                break;
            }
            let is_free = item.lane.as_ref().is_none_or(|lane| lanes.insert(lane));
            if item.connection.is_none() && is_free {
                ready.push(*number);
            }
            under_way += usize::from(item.connection.is_some() || is_free);
        }
        for number in ready {
            let Some(item) = self.outbox.get_mut(&number) else { continue };
            item.connection = Some(current);
            let text = match item.is_repeated {
                true => format!("{}{AGAIN}}}", &item.text[..item.text.len() - 1]),
                false => item.text.clone(),
            };
            item.is_repeated = item.is_message;
            let id = item.id.clone();
            self.send(current, id, text, Purpose::Item(number));
        }
    }

    fn answered(&mut self, number: u64, frame: Frame) {
        if !frame.temporary {
            self.errors = 0;
            self.room = AT_ONCE.min(self.room + 1);
            let result = if frame.is("error") { Err(frame.error()) } else { Ok(frame) };
            return self.settle(number, result);
        }
        // The server has too much to do, or this client sends too fast. So it waits, and then begins with little.
        self.emit(Event::Busy { reason: frame.message });
        if let Some(item) = self.outbox.get_mut(&number) {
            item.connection = None;
        }
        self.room = 1;
        if self.pause.is_none() {
            self.errors += 1;
            let delay = PAUSE + self.back_off(self.errors);
            self.pause = Some(self.after(delay, Timer::Pump));
        }
    }

    fn settle(&mut self, number: u64, result: Result<Frame, Error>) {
        let Some(item) = self.outbox.remove(&number) else { return };
        match item.reply {
            Reply::Ack(reply, _room) => drop(reply.send(result.map(Frame::ack))),
            Reply::Page(topic, reply) => drop(reply.send(result.map(|frame| frame.page(&topic)))),
            Reply::Fill { topic, key, from } => self.filled(&topic, key, &from, result),
            Reply::CatchUp { topic, listener } => self.caught_up(&topic, listener, result),
            Reply::Members { topic, listener, turn, reply } => self.listed(&topic, listener, turn, reply, result),
            Reply::Said(said) => self.said(said, result),
        }
        self.pump();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// A machine that nobody drives, and its first connection.
    fn machine() -> (Machine, ConnectionId, mpsc::UnboundedReceiver<Event>) {
        let (events, told) = mpsc::unbounded_channel();
        let state = watch::Sender::new(State::Connecting);
        let mut machine = Machine::new(Options::default(), Instant::now(), state, events, "id".to_owned());
        let (connection, attempt) = opened(&mut machine);
        assert_eq!(attempt, 1);
        machine.input(connection, Input::Opened);
        (machine, connection, told)
    }

    /// The connection that the machine opens, and the number of the attempt.
    fn opened(machine: &mut Machine) -> (ConnectionId, u32) {
        let effects = std::mem::take(&mut machine.effects);
        let open = effects.into_iter().find_map(|effect| match effect {
            Effect::Open(connection, attempt) => Some((connection, attempt.number)),
            _ => None,
        });
        open.expect("nothing is opened")
    }

    /// The frames that go out.
    fn sent(machine: &mut Machine) -> Vec<Value> {
        let effects = std::mem::take(&mut machine.effects);
        let frames = effects.into_iter().filter_map(|effect| match effect {
            Effect::Send(_, text) => Some(serde_json::from_str(&text).unwrap()),
            _ => None,
        });
        frames.collect()
    }

    /// The id of the only frame of this kind that goes out.
    fn id_of(machine: &mut Machine, kind: &str) -> Value {
        let frames: Vec<_> = sent(machine).into_iter().filter(|frame| frame["type"] == kind).collect();
        assert_eq!(frames.len(), 1, "{frames:?}");
        frames[0]["id"].clone()
    }

    fn hear(machine: &mut Machine, connection: ConnectionId, frame: &Value) {
        machine.input(connection, Input::Text(frame.to_string()));
    }

    fn pass(machine: &mut Machine, time: Duration) {
        machine.tick(machine.now + time);
    }

    #[test]
    fn a_message_without_an_ack_is_sent_again_with_its_id_and_says_so() {
        let (mut machine, connection, _told) = machine();
        let (reply, mut ack) = oneshot::channel();
        let room = std::sync::Arc::new(tokio::sync::Semaphore::new(1)).try_acquire_owned().unwrap();
        let (lane, id, text) = ("hall".to_owned(), "m1".to_owned(), r#"{"type":"message","id":"m1"}"#.to_owned());
        machine.command(Command::Post { lane, id, text, room, reply });
        assert_eq!(sent(&mut machine), [json!({"type": "message", "id": "m1"})]);
        // Only the ack is missing: the connection answers.
        let timeout = machine.options.timeout;
        pass(&mut machine, timeout);
        let frames = sent(&mut machine);
        assert!(frames.contains(&json!({"type": "message", "id": "m1", "again": true})), "{frames:?}");
        machine.input(connection, Input::Text(r#"{"type":"ack","id":"m1","delivered":1}"#.to_owned()));
        assert_eq!(ack.try_recv().unwrap().unwrap().delivered, Some(1));
    }

    /// Listens to a topic from a place on. Returns what is heard, and whether the subscription is there.
    fn listen(
        machine: &mut Machine,
        listener: u64,
        topic: &str,
        start: Start,
    ) -> (mpsc::UnboundedReceiver<Heard>, oneshot::Receiver<Result<Ready, Error>>) {
        let ((heard, incoming), (ready, answer)) = (mpsc::unbounded_channel(), oneshot::channel());
        let topic = topic.to_owned();
        machine.command(Command::Listen(Listen { topic, listener, start, heard, ready, watcher: None }));
        (incoming, answer)
    }

    #[test]
    fn a_further_listener_asks_for_the_history_after_the_subscription() {
        let (mut machine, connection, _told) = machine();
        let after = Start::After(Position { epoch: "k3f9xq2a".to_owned(), seq: 0 });
        let (_first, _) = listen(&mut machine, 1, "hall", Start::Now);
        pass(&mut machine, Duration::ZERO);
        let subscribe = id_of(&mut machine, "subscribe");
        let (mut further, mut ready) = listen(&mut machine, 2, "hall", after);
        pass(&mut machine, Duration::ZERO);
        assert_eq!(sent(&mut machine), [json!(null); 0]);
        // The topic keeps nothing, so only those who listen have this message.
        hear(&mut machine, connection, &json!({"type": "data", "id": subscribe, "payload": {"data": "early"}}));
        hear(&mut machine, connection, &json!({"type": "ack", "id": subscribe}));
        let history = id_of(&mut machine, "history");
        assert!(ready.try_recv().is_err());
        hear(&mut machine, connection, &json!({"type": "error", "id": history, "code": "no_history", "message": ""}));
        assert_eq!(ready.try_recv().unwrap().unwrap(), Ready { has_history: false, is_recovered: Some(false) });
        let Ok(Heard::Message(message)) = further.try_recv() else { panic!("nothing was heard") };
        assert_eq!(message.data.get(), r#""early""#);
    }

    #[test]
    fn a_long_list_of_members_comes_in_several_frames_and_beyond_a_thousand_there_is_a_count() {
        let (mut machine, connection, _told) = machine();
        let (commands, mut asked) = mpsc::unbounded_channel();
        let shared = crate::Shared {
            commands,
            state: watch::channel(State::Connected).1,
            room: std::sync::Arc::new(tokio::sync::Semaphore::new(1)),
            buffer: 1,
            frame_limit: machine.options.frame_limit,
            prefix: "h".to_owned(),
            last_id: std::sync::atomic::AtomicU64::new(0),
        };
        let topic = crate::Topic { name: "room.7".to_owned(), shared: std::sync::Arc::new(shared) };
        let mut here = topic.presence();
        machine.command(asked.try_recv().unwrap());
        pass(&mut machine, Duration::ZERO);
        let id = id_of(&mut machine, "subscribe");
        hear(&mut machine, connection, &json!({"type": "ack", "id": id}));
        let id = id_of(&mut machine, "presence");
        let part =
            json!({"id": id, "type": "presence", "users": ["1", "2"], "data": {"2": "busy"}, "count": 3, "more": true});
        hear(&mut machine, connection, &part);
        // The connection stays, but the rest of the list is lost. The question is repeated, and the list begins anew.
        let timeout = machine.options.timeout;
        pass(&mut machine, timeout);
        let id = id_of(&mut machine, "presence");
        hear(&mut machine, connection, &part);
        hear(&mut machine, connection, &json!({"type": "presence", "topic": "room.7", "joined": ["4"], "left": ["1"]}));
        assert!(here.next().now_or_never().is_none());
        hear(&mut machine, connection, &json!({"id": id, "type": "presence", "users": ["3"], "count": 3}));
        let told = here.next().now_or_never().unwrap().unwrap();
        assert_eq!(json!(told.users), json!({"2": "busy", "3": null, "4": null}));
        assert_eq!((told.count, told.is_current, &told.joined[..]), (3, true, &["2", "3", "4"].map(str::to_owned)[..]));

        let _answer = here.refresh();
        machine.command(asked.try_recv().unwrap());
        let id = id_of(&mut machine, "presence");
        hear(&mut machine, connection, &json!({"id": id, "type": "presence", "count": 1500}));
        let told = here.next().now_or_never().unwrap().unwrap();
        assert_eq!((told.users.is_none(), told.count, told.joined, told.left), (true, 1500, vec![], vec![]));
        for frame in [json!({"joined": ["7", "8", "9"], "left": ["2"]}), json!({"left": ["7"], "data": {"3": 0}})] {
            let mut told = json!({"type": "presence", "topic": "room.7"});
            told.as_object_mut().unwrap().extend(frame.as_object().unwrap().clone());
            hear(&mut machine, connection, &told);
        }
        let told = here.next().now_or_never().unwrap().unwrap();
        assert_eq!((here.count(), told.count), (1501, 1501));
        assert_eq!(
            (json!(told.joined), json!(told.left), json!(told.changed)),
            (json!(["8", "9"]), json!(["2"]), json!(["3"]))
        );
        // What was told is not told again.
        assert!(here.next().now_or_never().is_none());
    }

    #[test]
    fn only_a_connection_that_lived_for_a_while_begins_the_count_of_attempts_anew() {
        let (mut machine, connection, _told) = machine();
        machine.input(connection, Input::Ended(End::new("cut")));
        let longest = machine.options.max_delay;
        pass(&mut machine, longest);
        let (connection, attempt) = opened(&mut machine);
        assert_eq!(attempt, 2);
        machine.input(connection, Input::Opened);
        let stable = 3 * machine.options.timeout;
        pass(&mut machine, stable);
        machine.input(connection, Input::Ended(End::new("cut")));
        pass(&mut machine, longest);
        assert_eq!(opened(&mut machine).1, 1);
    }

    #[test]
    fn the_next_connection_is_opened_before_the_gateway_cuts_and_the_old_one_stays_for_a_moment() {
        let (mut machine, first, mut told) = machine();
        let lifetime = machine.options.lifetime;
        pass(&mut machine, lifetime.mul_f64(0.64));
        assert!(!machine.effects.iter().any(|effect| matches!(effect, Effect::Open(..))));
        pass(&mut machine, lifetime.mul_f64(0.32));
        // The first connection answers its ping, so it stays.
        let pings: Vec<_> = machine.requests.keys().cloned().collect();
        let (second, _) = opened(&mut machine);
        for id in pings {
            machine.input(first, Input::Text(json!({"type": "pong", "id": id}).to_string()));
        }
        machine.input(second, Input::Opened);
        assert_eq!((machine.old, machine.current), (Some(first), Some(second)));
        pass(&mut machine, GRACE);
        assert_eq!((machine.old, machine.current), (None, Some(second)));
        let mut events = Vec::new();
        while let Ok(event) = told.try_recv() {
            events.push(event);
        }
        assert_eq!(events.last(), Some(&Event::Connected { is_rotated: true }), "{events:?}");
    }
}

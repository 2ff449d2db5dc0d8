//! A client behaves as the library will. It resumes from its position, orders frames and drops repetitions. It asks when
//! something is missing, and it pings. On a whim it looks into the history, or does not listen for a while.

use std::collections::BTreeMap;

use crate::frame::{Frame, Invocation};
use crate::table::{Content, Ms, Position, Socket};
use crate::world::World;

/// How often a subscribe or unsubscribe frame is sent before the client connects again.
const TRIES: u32 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Away {
        until: Ms,
    },
    Connecting,
    Subscribing {
        socket: Socket,
        request: u32,
        tries: u32,
        until: Ms,
    },
    Live {
        socket: Socket,
    },
    Unsubscribing {
        socket: Socket,
        request: u32,
        tries: u32,
        until: Ms,
    },
    /// It is connected and does not listen.
    Deaf {
        socket: Socket,
        until: Ms,
    },
}

/// A question, and until when its answer is waited for.
#[derive(Debug, Clone, Copy)]
struct Question {
    request: u32,
    until: Ms,
}

#[derive(Debug)]
pub struct Client {
    index: usize,
    phase: Phase,
    /// Everything up to here was applied. It outlives connections.
    position: Option<Position>,
    /// Frames that cannot be applied yet.
    held: BTreeMap<Position, Option<Content>>,
    /// A position that is known to exist.
    target: Option<Position>,
    /// Since when something is missing.
    gap_since: Option<Ms>,
    question: Option<Question>,
    ping: Option<Question>,
    next_ping: Ms,
    next_whim: Ms,
    leaves: Ms,
    requests: u32,
    /// Only the latest timer counts.
    timer: u64,
}

impl Client {
    pub fn new(index: usize) -> Self {
        Self {
            index,
            phase: Phase::Away { until: 0 },
            position: None,
            held: BTreeMap::new(),
            target: None,
            gap_since: None,
            question: None,
            ping: None,
            next_ping: 0,
            next_whim: Ms::MAX,
            leaves: 0,
            requests: 0,
            timer: 0,
        }
    }

    pub fn position(&self) -> Option<Position> {
        self.position
    }

    /// The connection on which it has subscribed.
    pub fn live(&self) -> Option<Socket> {
        match self.phase {
            Phase::Live { socket } => Some(socket),
            _ => None,
        }
    }

    pub fn socket(&self) -> Option<Socket> {
        match self.phase {
            Phase::Live { socket }
            | Phase::Subscribing { socket, .. }
            | Phase::Unsubscribing { socket, .. }
            | Phase::Deaf { socket, .. } => Some(socket),
            Phase::Away { .. } | Phase::Connecting => None,
        }
    }

    fn request(&mut self) -> u32 {
        self.requests += 1;
        self.requests
    }

    /// The faults are over: it comes back and stays.
    pub fn settle(&mut self, world: &mut World) {
        self.leaves = Ms::MAX;
        self.next_whim = Ms::MAX;
        if let Phase::Away { until } | Phase::Deaf { until, .. } = &mut self.phase {
            *until = world.now;
        }
        self.rest(world);
    }

    /// The handshake has succeeded.
    pub fn opened(&mut self, socket: Socket, world: &mut World) {
        if self.phase != Phase::Connecting {
            return world.leave(socket, true);
        }
        let stays = world.random.spread(world.settings.online);
        if !world.settling() {
            self.leaves = world.now + stays;
        }
        self.next_ping = world.now + world.settings.ping;
        self.next_whim = world.next_whim();
        if self.position.is_some() && world.forgets(self.index) {
            self.position = None;
        }
        self.subscribe(socket, 1, world);
        self.rest(world);
    }

    /// The handshake was refused, or the gateway has closed the connection.
    pub fn closed(&mut self, socket: Option<Socket>, world: &mut World) {
        if socket.is_none() || self.socket() == socket {
            self.go_away(world.settings.call.1, world);
            self.rest(world);
        }
    }

    /// Forgets everything but the position, which outlives the connection.
    fn go_away(&mut self, pause: Ms, world: &World) {
        self.phase = Phase::Away { until: world.now + pause };
        self.forget_topic();
    }

    fn forget_topic(&mut self) {
        self.held.clear();
        self.target = None;
        self.gap_since = None;
        self.question = None;
        self.ping = None;
    }

    fn leave(&mut self, pause: Ms, world: &mut World) {
        if let Some(socket) = self.socket() {
            let clean = !world.leaves_half_open();
            world.leave(socket, clean);
        }
        self.go_away(pause, world);
    }

    fn subscribe(&mut self, socket: Socket, tries: u32, world: &mut World) {
        let request = self.request();
        let until = world.now + world.settings.patience;
        self.phase = Phase::Subscribing { socket, request, tries, until };
        let newest = if self.position.is_none() { world.wants_newest() } else { None };
        world.invoke(Invocation::Subscribe { socket, request, after: self.position, newest });
    }

    fn unsubscribe(&mut self, socket: Socket, tries: u32, world: &mut World) {
        let request = self.request();
        let until = world.now + world.settings.patience;
        self.phase = Phase::Unsubscribing { socket, request, tries, until };
        self.forget_topic();
        world.listens_no_more(self.index);
        world.invoke(Invocation::Unsubscribe { socket, request });
    }

    /// It looks into the history, or stops listening.
    fn follow_whim(&mut self, socket: Socket, world: &mut World) {
        self.next_whim = world.next_whim();
        if world.unsubscribes() {
            return self.unsubscribe(socket, 1, world);
        }
        let request = self.request();
        let (range, limit) = world.query(self.position);
        world.invoke(Invocation::Query { socket, request, range, limit });
    }

    pub fn receive(&mut self, socket: Socket, frame: Frame, world: &mut World) {
        if self.socket() != Some(socket) {
            return;
        }
        match frame {
            // A message that was under way when it unsubscribed comes too late.
            Frame::Data { .. } if !matches!(self.phase, Phase::Live { .. } | Phase::Subscribing { .. }) => {}
            Frame::Data { position, content } => drop(self.held.insert(position, Some(content))),
            Frame::History { entries } => self.held.extend(entries),
            Frame::Empty { request } => {
                self.answered(request, world);
                world.promised(self.index);
            }
            Frame::Answer { request, recovered, start, end } => self.is_at(request, recovered, (start, end), world),
            Frame::Pong { request, behind } => {
                if self.ping.is_some_and(|ping| ping.request == request) {
                    self.ping = None;
                }
                self.target = self.target.max(behind);
            }
            Frame::Page { request, recovered, start, end, entries } => {
                self.held.extend(entries);
                self.is_at(request, recovered, (start, end), world);
            }
            Frame::Unsubscribed { request } => {
                if let Phase::Unsubscribing { socket, request: asked, .. } = self.phase
                    && asked == request
                {
                    let until = if world.settling() { world.now } else { world.now + world.time_deaf() };
                    self.phase = Phase::Deaf { socket, until };
                }
            }
            Frame::Acknowledged { .. } | Frame::Queried(_) | Frame::Broadcast { .. } | Frame::Other { .. } => {}
            Frame::Unidentified => {
                world.leave(socket, true);
                self.go_away(world.settings.call.1, world);
            }
        }
        self.rest(world);
    }

    fn begin(&mut self, position: Position, world: &mut World) {
        self.position = Some(position);
        world.begins(self.index, position);
    }

    /// The topic has gone on from one position to the other.
    fn is_at(&mut self, request: u32, recovered: bool, (start, end): (Position, Position), world: &mut World) {
        self.answered(request, world);
        match self.position {
            None => self.begin(start, world),
            // Live frames may have brought it further in the meantime.
            Some(position) if !recovered && start > position => {
                world.ledger.moved(self.index, position, start);
                self.position = Some(start);
            }
            Some(_) => {}
        }
        self.target = self.target.max(Some(end));
    }

    fn answered(&mut self, request: u32, world: &mut World) {
        if let Phase::Subscribing { socket, request: asked, .. } = self.phase
            && asked == request
        {
            self.phase = Phase::Live { socket };
            world.is_live(socket);
        }
        if self.question.is_some_and(|question| question.request == request) {
            self.question = None;
            // A number that is still missing may be under way.
            self.gap_since = None;
        }
    }

    /// Applies what is next, and holds what is not.
    fn apply(&mut self, world: &mut World) {
        let Some(mut position) = self.position else {
            // If the ack told no position, the first frame has to.
            if let (Phase::Live { .. }, Some((first, _))) = (self.phase, self.held.first_key_value()) {
                self.begin(Position { seq: first.seq - 1, ..*first }, world);
                self.apply(world);
            }
            return;
        };
        while let Some((next, content)) = self.held.pop_first() {
            if next <= position {
                continue;
            }
            if next != position.next() {
                self.held.insert(next, content);
                break;
            }
            world.applied(self.index, position, next, content);
            position = next;
        }
        self.position = Some(position);
    }

    fn misses_something(&self) -> bool {
        let known = self.target.max(self.held.last_key_value().map(|(position, _)| *position));
        self.position.is_some() && known > self.position
    }

    /// The timer has rung.
    pub fn wake(&mut self, timer: u64, world: &mut World) {
        if timer == self.timer {
            self.rest(world);
        }
    }

    /// Does what is due, and sets the timer for what is not.
    fn rest(&mut self, world: &mut World) {
        let now = world.now;
        match self.phase {
            Phase::Connecting => {}
            Phase::Away { until } if until <= now => {
                self.phase = Phase::Connecting;
                world.open(self.index);
            }
            Phase::Away { .. } => {}
            _ if self.leaves <= now => {
                let pause = world.time_away();
                self.leave(pause, world);
            }
            Phase::Subscribing { until, tries: TRIES, .. } | Phase::Unsubscribing { until, tries: TRIES, .. }
                if until <= now =>
            {
                self.leave(world.settings.call.1, world);
            }
            Phase::Subscribing { socket, until, tries, .. } if until <= now => self.subscribe(socket, tries + 1, world),
            Phase::Unsubscribing { socket, until, tries, .. } if until <= now => {
                self.unsubscribe(socket, tries + 1, world);
            }
            Phase::Deaf { socket, until } if until <= now => self.subscribe(socket, 1, world),
            Phase::Subscribing { .. } | Phase::Unsubscribing { .. } | Phase::Deaf { .. } => {}
            Phase::Live { socket } => self.listen(socket, world),
        }
        self.set_timer(world);
    }

    fn listen(&mut self, socket: Socket, world: &mut World) {
        let now = world.now;
        self.apply(world);
        if self.ping.is_some_and(|ping| ping.until <= now) {
            return self.leave(world.settings.call.1, world);
        }
        if self.question.is_some_and(|question| question.until <= now) {
            self.question = None;
        }
        if !self.misses_something() {
            self.gap_since = None;
        } else if self.gap_since.is_none() {
            self.gap_since = Some(now);
        }
        if let (None, Some(since), Some(after)) = (self.question, self.gap_since, self.position)
            && since + world.settings.hold <= now
        {
            let request = self.request();
            self.question = Some(Question { request, until: now + world.settings.patience });
            world.invoke(Invocation::History { socket, request, after });
        }
        if self.ping.is_none() && self.next_ping <= now {
            let request = self.request();
            self.ping = Some(Question { request, until: now + world.settings.patience });
            self.next_ping = now + world.settings.ping;
            world.invoke(Invocation::Ping { socket, request, position: self.position });
        }
        if self.next_whim <= now {
            self.follow_whim(socket, world);
        }
    }

    fn set_timer(&mut self, world: &mut World) {
        let due = match self.phase {
            Phase::Connecting => return,
            Phase::Away { until } => until,
            Phase::Subscribing { until, .. } | Phase::Unsubscribing { until, .. } | Phase::Deaf { until, .. } => {
                until.min(self.leaves)
            }
            Phase::Live { .. } => {
                let until = |question: &Question| question.until;
                let question = self.question.as_ref().map(until);
                // While a question is under way, its answer is waited for, and not the end of the gap.
                let gap = self.gap_since.filter(|_| question.is_none()).map(|since| since + world.settings.hold);
                let ping = self.ping.as_ref().map_or(self.next_ping, until);
                let due = [question, gap, Some(ping), Some(self.next_whim), Some(self.leaves)];
                due.into_iter().flatten().min().unwrap_or(Ms::MAX)
            }
        };
        self.timer += 1;
        world.wake_client(self.index, self.timer, due.max(world.now + 1));
    }
}

//! The decisions of the client about topics: who listens, where it is, what came too early, and what is missing.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::frame::{Answer, Frame};
use crate::machine::{ConnectionId, GRACE, Heard, Listen, Machine, Purpose, Reply, Timer};
use crate::presence::Watcher;
use crate::types::{Error, Event, Message, Position, Range, Ready, Start};

/// Messages that overtook an earlier one wait this long for it. Then the client asks for what is missing.
const HOLD: Duration = Duration::from_secs(1);

/// The client asks this often for what is missing: after 1, 2, 4 and 8 s. The server settles a number within 10 s.
const TRIES: u32 = 4;

/// The server takes this many topics in one ping, and in one subscribe frame.
const PINGED: usize = 20;
const SUBSCRIBED: usize = 100;

/// A pattern knows this many of the newest messages again.
const SEEN: usize = 1000;

/// The address of the client's own user.
const ME: &str = "@me";

/// A topic with listeners.
#[derive(Debug, Default)]
pub(crate) struct Topic {
    /// Tells it from an earlier topic of this name.
    key: u64,
    pub(crate) listeners: Vec<Listener>,
    pub(crate) run: Run,
    /// Something came since the last ping, so that need not ask.
    is_fresh: bool,
    /// It must not share its subscribe frame with others.
    is_alone: bool,
    is_filling: bool,
}

/// The state of a topic that somebody listens to. The client forgets it when the last listener leaves.
#[derive(Debug, Default)]
pub(crate) struct Run {
    /// The connection that listens to the topic, or is asked to.
    on: Option<ConnectionId>,
    /// The connection that listens to the topic, as the server has said.
    pub(crate) home: Option<ConnectionId>,
    /// The subscribe frame has other fields now, so it has to be sent once more.
    pub(crate) is_changed: bool,
    position: Option<Position>,
    /// How many of the newest messages are wanted.
    last: u32,
    /// The numbers that came too early. A hole has no message.
    held: BTreeMap<u64, Option<Message>>,
    /// The newest messages of a pattern, which it knows again.
    seen: VecDeque<(String, String, u64)>,
    /// Direct messages that came before the answer of the subscribe frame.
    early: Vec<Message>,
    /// The server has numbers up to here.
    goal: u64,
    /// The last number that was delivered.
    heard: u64,
    /// How often in vain the client asked for what is missing.
    tries: u32,
    /// How often in a row the server was busy.
    errors: u32,
    pinged: u64,
    /// A subscribe or unsubscribe frame waits for its answer, or for its next try.
    is_busy: bool,
    is_paused: bool,
    is_joined: bool,
    /// The first subscribe asked for nothing old, so what was published in that moment may come late.
    is_new: bool,
    /// The timer after which the client asks for what is missing.
    watch: Option<u64>,
}

#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) id: u64,
    heard: mpsc::UnboundedSender<Heard>,
    ready: Option<oneshot::Sender<Result<Ready, Error>>>,
    late: Option<Late>,
    /// Set if it asks who is there.
    pub(crate) watcher: Option<Watcher>,
}

/// A further listener of a topic first gets the history that it asks for, and then what came meanwhile.
#[derive(Debug)]
struct Late {
    start: Start,
    /// Whether it has asked. It waits for the subscription, because the history has only what came before.
    has_asked: bool,
    /// The messages of the history, without holes.
    found: Vec<Message>,
    /// The messages that came meanwhile.
    live: Vec<Message>,
    /// Where the next page begins.
    position: Option<Position>,
    recovered: Option<bool>,
}

impl Listener {
    fn ready(&mut self, has_history: bool, is_recovered: Option<bool>) {
        if let Some(ready) = self.ready.take() {
            let _ = ready.send(Ok(Ready { has_history, is_recovered }));
        }
    }
}

/// A message without a position that may come once more, on the other connection.
#[derive(Debug)]
pub(crate) struct Twin {
    /// The subscription that heard it: its topic, or a pattern.
    name: String,
    message: Message,
    connection: ConnectionId,
    at: Instant,
}

impl Topic {
    /// Ends it for all its listeners.
    pub(crate) fn refuse(mut self, error: &Error) {
        self.watchers().for_each(|watcher| watcher.lost(Some(error)));
        for ready in self.listeners.into_iter().filter_map(|listener| listener.ready) {
            let _ = ready.send(Err(error.clone()));
        }
    }

    fn deliver(&mut self, message: &Message) {
        self.run.heard = self.run.heard.max(message.position.as_ref().map_or(0, |position| position.seq));
        for listener in &mut self.listeners {
            match &mut listener.late {
                Some(late) => late.live.push(message.clone()),
                // Nobody listens behind a subscription that was dropped a moment ago.
                None => drop(listener.heard.send(Heard::Message(message.clone()))),
            }
        }
    }

    /// Delivers what follows on the position.
    fn drain(&mut self) {
        let Some(mut position) = self.run.position.clone() else { return };
        while let Some(message) = self.run.held.remove(&(position.seq + 1)) {
            position.seq += 1;
            if let Some(message) = message {
                self.deliver(&message);
            }
        }
        self.run.position = Some(position);
    }

    /// Goes on from a position, after what is held before it.
    fn jump(&mut self, position: Position) {
        let is_past = |seq: &u64, message: &mut Option<Message>| {
            let epoch = message.as_ref().and_then(|message| message.position.as_ref()).map(|at| &at.epoch);
            *seq <= position.seq || epoch.is_some_and(|epoch| *epoch != position.epoch)
        };
        let past: Vec<_> = self.run.held.extract_if(.., is_past).collect();
        for message in past.into_iter().filter_map(|(_, message)| message) {
            self.deliver(&message);
        }
        for listener in self.listeners.iter().filter(|listener| listener.late.is_none()) {
            let _ = listener.heard.send(Heard::Position(position.clone()));
        }
        self.run.position = Some(position);
        self.run.goal = 0;
        self.drain();
    }
}

impl Machine {
    // ---- What comes -------------------------------------------------------------------------------------------------

    /// A message that came live.
    pub(crate) fn take(&mut self, connection: ConnectionId, name: &str, message: Message) {
        let Some(topic) = self.topics.get_mut(name) else { return };
        topic.is_fresh = true;
        match message.position.clone() {
            // A pattern has no positions of its own, so it hears messages as they come, and each of them once.
            Some(position) if message.topic != name => {
                let key = (message.topic.clone(), position.epoch, position.seq);
                if topic.run.seen.contains(&key) {
                    return;
                }
                topic.run.seen.push_back(key);
                if topic.run.seen.len() > SEEN {
                    topic.run.seen.pop_front();
                }
                return topic.deliver(&message);
            }
            Some(position) => return self.offer(name, &position.epoch, position.seq, Some(message)),
            None => {}
        }
        // A connection hears direct messages before it can ask for their positions. The history has this one.
        if topic.run.position.is_some() && !topic.run.is_new {
            if !topic.run.is_busy && topic.run.on == self.current {
                self.fill(name);
            }
            return;
        }
        // Two connections are open. Direct messages reach the new one even before its handshake ends.
        let has_twin = match self.old {
            Some(_) => topic.run.on == self.current,
            None => self.next.is_some() && name == ME,
        };
        let now = self.now;
        self.twins.retain(|twin| now - twin.at < GRACE);
        let is_twin = |twin: &Twin| {
            twin.connection != connection
                && twin.name == name
                && twin.message.topic == message.topic
                && twin.message.sender_id == message.sender_id
                && twin.message.data.get() == message.data.get()
        };
        if let Some(index) = self.twins.iter().rposition(is_twin) {
            self.twins.remove(index);
            return;
        }
        if has_twin {
            self.twins.push(Twin { name: name.to_owned(), message: message.clone(), connection, at: now });
        }
        if name == ME && (topic.run.is_busy || topic.run.on != self.current) {
            topic.run.early.push(message);
        } else {
            topic.deliver(&message);
        }
    }

    /// The numbers of a frame of history.
    pub(crate) fn offer_all(&mut self, frame: Frame) {
        let (Some(name), Some(epoch)) = (frame.topic, frame.epoch) else { return };
        for entry in frame.messages {
            self.offer(&name, &epoch, entry.seq, entry.message(&name, &epoch));
        }
    }

    fn offer(&mut self, name: &str, epoch: &str, seq: u64, message: Option<Message>) {
        let Some(topic) = self.topics.get_mut(name) else { return };
        if let Some(position) = &topic.run.position {
            // The names of epochs rise. A topic that began anew is asked for all that it has.
            if epoch != position.epoch {
                if *epoch > *position.epoch {
                    self.fill(name);
                }
                return;
            }
            if seq <= position.seq {
                // A message that was published in the moment of the first subscribe may come after its ack.
                if let Some(message) = message.filter(|_| topic.run.is_new && seq > topic.run.heard) {
                    topic.deliver(&message);
                }
                return;
            }
        }
        topic.run.held.insert(seq, message);
        topic.drain();
        if topic.run.is_joined && topic.run.position.is_none() {
            // The topic has begun to keep its messages. The server says where it is.
            topic.run.is_changed = true;
            return self.sync();
        }
        self.watch(name);
    }

    /// A ping says that the topic has gone on.
    pub(crate) fn is_behind(&mut self, name: &str, head: &Position) {
        let Some(topic) = self.topics.get_mut(name) else { return };
        match &topic.run.position {
            None => {}
            Some(position) if position.epoch != head.epoch => self.offer(name, &head.epoch, head.seq, None),
            Some(_) => {
                topic.run.goal = topic.run.goal.max(head.seq);
                self.watch(name);
            }
        }
    }

    // ---- What is missing --------------------------------------------------------------------------------------------

    fn gap(&mut self, name: &str, position: Option<Position>, reason: &str) {
        let Some(topic) = self.topics.get_mut(name) else { return };
        let from = topic.run.position.clone();
        if let Some(position) = position.clone() {
            topic.jump(position);
        }
        self.emit(Event::Gap { topic: name.to_owned(), from, to: position, reason: reason.to_owned() });
        self.watch(name);
    }

    /// Goes on without positions, because the topic does not keep its messages. The reason is that of the gap, if there is one.
    fn forgo(&mut self, name: &str, from: Option<Position>, reason: Option<String>) {
        let Some(topic) = self.topics.get_mut(name) else { return };
        for message in std::mem::take(&mut topic.run.held).into_values().flatten() {
            topic.deliver(&message);
        }
        topic.run.position = None;
        if let Some(reason) = reason {
            self.emit(Event::Gap { topic: name.to_owned(), from, to: None, reason });
        }
    }

    /// Asks for what is missing, unless it comes by itself in time.
    fn watch(&mut self, name: &str) {
        let Some(topic) = self.topics.get_mut(name) else { return };
        let run = &mut topic.run;
        let Some(position) = &run.position else { return };
        if run.held.is_empty() && run.goal <= position.seq {
            (run.watch, run.tries) = (None, 0);
        } else if run.watch.is_none() && !run.is_busy && run.on == self.current {
            let (delay, key) = (HOLD * 2_u32.pow(run.tries), topic.key);
            let watch = self.after(delay, Timer::Fill(name.to_owned(), key));
            if let Some(topic) = self.topics.get_mut(name) {
                topic.run.watch = Some(watch);
            }
        }
    }

    /// The timer of [`Machine::watch`].
    pub(crate) fn due(&mut self, name: &str, key: u64, serial: u64) {
        if self.topics.get(name).is_some_and(|topic| topic.key == key && topic.run.watch == Some(serial)) {
            self.fill(name);
        }
    }

    fn fill(&mut self, name: &str) {
        let Some(topic) = self.topics.get_mut(name) else { return };
        let Some(from) = topic.run.position.clone().filter(|_| !topic.is_filling) else { return };
        topic.is_filling = true;
        let reply = Reply::Fill { topic: name.to_owned(), key: topic.key, from: from.clone() };
        self.read(name, &Range { after: Some(from), limit: Some(1000), before: None }, reply);
    }

    pub(crate) fn filled(&mut self, name: &str, key: u64, from: &Position, result: Result<Frame, Error>) {
        let Some(topic) = self.topics.get_mut(name).filter(|topic| topic.key == key) else { return };
        topic.is_filling = false;
        topic.run.watch = None;
        let Some(position) = topic.run.position.clone() else { return };
        let frame = match result {
            Ok(frame) => frame,
            Err(error) => return self.forgo(name, Some(position), Some(error.code)),
        };
        let (epoch, has_more) = (frame.epoch.clone().unwrap_or_default(), frame.more);
        if epoch > position.epoch {
            self.gap(name, Some(Position { epoch: epoch.clone(), seq: 0 }), "expired");
        }
        for entry in frame.messages {
            let at = self.topics.get(name).and_then(|topic| topic.run.position.as_ref());
            if at.is_some_and(|at| at.epoch == epoch && entry.seq > at.seq + 1) {
                self.gap(name, Some(Position { epoch: epoch.clone(), seq: entry.seq - 1 }), "expired");
            }
            self.offer(name, &epoch, entry.seq, entry.message(name, &epoch));
        }
        if has_more {
            return self.fill(name);
        }
        let Some(topic) = self.topics.get_mut(name) else { return };
        let Some(position) = topic.run.position.clone() else { return };
        topic.run.tries = if position == *from { topic.run.tries + 1 } else { 0 };
        let seq = topic.run.held.keys().next().map_or(topic.run.goal, |first| first - 1);
        if topic.run.tries >= TRIES && seq > position.seq {
            self.gap(name, Some(Position { seq, ..position }), "expired");
        }
        self.watch(name);
    }

    // ---- Subscriptions ----------------------------------------------------------------------------------------------

    /// Brings the subscriptions on the current connection in line with the listeners.
    pub(crate) fn sync(&mut self) {
        let Some(current) = self.current else { return };
        let (mut wanted, mut alone, mut left, mut gone) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (name, topic) in self.topics.iter().filter(|(_, topic)| !topic.run.is_busy && !topic.run.is_paused) {
            let is_on = topic.run.on == Some(current);
            match (topic.listeners.is_empty(), is_on) {
                (false, true) if !topic.run.is_changed => {}
                (false, _) if topic.is_alone => alone.push(name.clone()),
                (false, _) => wanted.push(name.clone()),
                (true, true) if name != ME => left.push(name.clone()),
                (true, _) => gone.push(name.clone()),
            }
        }
        for name in gone {
            self.topics.remove(&name);
        }
        for name in left {
            self.leave(name, current);
        }
        for name in alone {
            self.subscribe(&[name], current);
        }
        self.subscribe(&wanted, current);
        let is_done = |topic: &Topic| topic.run.on == Some(current) && !topic.run.is_busy;
        let Some(old) = self.old.filter(|_| self.topics.values().all(is_done)) else { return };
        if self.connections.get_mut(&old).is_some_and(|old| !std::mem::replace(&mut old.is_retired, true)) {
            self.after(GRACE, Timer::Retire(old));
        }
    }

    /// One frame for all topics: a connection that comes back resumes with one invocation.
    fn subscribe(&mut self, names: &[String], current: ConnectionId) {
        let entries = names.iter().filter_map(|name| {
            let topic = self.topics.get_mut(name)?;
            let run = &topic.run;
            let mut entry = json!({"topic": name});
            match &run.position {
                Some(position) => entry["after"] = json!(position),
                None if run.last > 0 => entry["last"] = json!(run.last),
                None => entry["positions"] = json!(true),
            }
            let mut watchers: Vec<_> = topic.watchers().collect();
            watchers.sort_by_key(|watcher| watcher.spoke);
            for watcher in watchers {
                watcher.ask(&mut entry);
            }
            Some(entry)
        });
        let mut entries: Vec<_> = entries.collect();
        let mut frame = match entries.len() {
            0 => return,
            1 => entries.remove(0),
            _ => json!({"topics": entries}),
        };
        frame["type"] = json!("subscribe");
        let is_long = names.len() > 1 && frame.to_string().len() + 64 > self.options.frame_limit;
        if names.len() > SUBSCRIBED || is_long {
            let (first, second) = names.split_at(names.len() / 2);
            self.subscribe(first, current);
            return self.subscribe(second, current);
        }
        for name in names {
            if let Some(topic) = self.topics.get_mut(name) {
                (topic.run.is_busy, topic.run.is_changed, topic.run.on) = (true, false, Some(current));
            }
        }
        let from = |name: &String| self.topics.get(name).and_then(|topic| topic.run.position.clone());
        let asked = names.iter().map(|name| (name.clone(), from(name))).collect();
        let id = self.ask(current, frame, Purpose::Subscribe(asked));
        if let ([name], Some(connection)) = (names, self.connections.get_mut(&current)) {
            connection.named.insert(id, name.clone());
        }
    }

    pub(crate) fn subscribe_lost(&mut self, connection: ConnectionId, asked: &[(String, Option<Position>)]) {
        for (name, _) in asked {
            if let Some(topic) = self.topics.get_mut(name) {
                topic.run.is_busy = false;
                topic.run.on = topic.run.on.filter(|on| *on != connection);
            }
        }
        self.sync();
    }

    pub(crate) fn subscribe_done(
        &mut self,
        connection: ConnectionId,
        id: &str,
        asked: &[(String, Option<Position>)],
        frame: &Frame,
    ) {
        let answers = match &frame.topics {
            Some(answers) if answers.len() == asked.len() => answers.clone(),
            _ => vec![frame.answer(); asked.len()],
        };
        // Only data frames of topics with history name their topic. The others need an id of their own.
        let all = || asked.iter().zip(&answers);
        let plain: Vec<_> = all().filter(|(_, answer)| answer.code.is_none() && answer.epoch.is_none()).collect();
        let is_wrong = frame.topics.is_none() && frame.code.is_some() && !frame.temporary;
        let is_alone = |answer: &Answer| {
            let is_plain = answer.code.is_none() && answer.epoch.is_none();
            asked.len() > 1 && (is_wrong || (is_plain && plain.len() > 1))
        };
        if let ([((name, _), _)], Some(connection)) = (&plain[..], self.connections.get_mut(&connection)) {
            connection.named.insert(id.to_owned(), name.clone());
        }
        let mut busy = Vec::new();
        for ((name, from), answer) in all() {
            let Some(topic) = self.topics.get_mut(name) else { continue };
            topic.run.is_busy = false;
            if is_alone(answer) {
                (topic.is_alone, topic.run.on) = (true, None);
            } else if answer.temporary {
                (topic.run.is_paused, topic.run.on) = (true, None);
                topic.run.errors += 1;
                busy.push((name.clone(), topic.key));
                self.emit(Event::Busy { reason: answer.message.clone() });
            } else {
                self.subscribed(name, from.clone(), answer);
            }
        }
        // These topics are asked for a little later, in one frame again.
        if let Some(topic) = busy.first().and_then(|(name, _)| self.topics.get(name)) {
            let delay = self.back_off(topic.run.errors - 1);
            self.after(delay, Timer::Resume(busy));
        }
        self.sync();
    }

    pub(crate) fn resumed(&mut self, topics: &[(String, u64)]) {
        for (name, key) in topics {
            if let Some(topic) = self.topics.get_mut(name).filter(|topic| topic.key == *key) {
                topic.run.is_paused = false;
            }
        }
        self.sync();
    }

    fn subscribed(&mut self, name: &str, from: Option<Position>, answer: &Answer) {
        let has_old = self.old.is_some();
        let Some(topic) = self.topics.get_mut(name) else { return };
        let is_watched = topic.watchers().next().is_some();
        let is_heard = topic.listeners.iter().any(|listener| listener.watcher.is_none());
        let run = &mut topic.run;
        run.errors = 0;
        if let Some(code) = &answer.code {
            run.on = None;
            if code == "no_history" && (from.is_some() || run.last > 0) {
                // The next subscribe asks for less.
                run.last = 0;
                let reason = from.is_some().then(|| code.clone());
                return self.forgo(name, from, reason);
            }
            let error = Error::new(code, answer.message.clone());
            if code == "no_presence" || (is_watched && is_heard) {
                // The next subscribe asks for less, and messages may come all the same.
                topic.watchers().for_each(|watcher| watcher.lost(Some(&error)));
                return topic.listeners.retain(|listener| listener.watcher.is_none());
            }
            if let Some(topic) = self.topics.remove(name) {
                topic.refuse(&error);
            }
            return self.emit(Event::Refused { topic: name.to_owned(), error });
        }
        let position = answer.position();
        let is_recovered = answer.recovered == Some(true);
        let (was_joined, asked_for_last) = (std::mem::replace(&mut run.is_joined, true), run.last > 0);
        // An old connection heard everything until this moment, if it is still there. So did this one, if it asks again.
        let is_again = run.home == run.on;
        let is_sure = has_old || is_again;
        run.home = run.on;
        run.is_new = if is_again { run.is_new } else { from.is_none() && !asked_for_last };
        match (&position, &from) {
            (None, _) => {
                let is_gap = from.is_some() || (was_joined && !is_sure);
                self.forgo(name, from.clone(), is_gap.then(|| "no_history".to_owned()));
            }
            (Some(to), Some(from)) if is_recovered => {
                run.goal = run.goal.max(to.seq);
                topic.drain();
                if !is_sure {
                    let (from, to) = (from.clone(), to.clone());
                    self.emit(Event::Recovered { topic: name.to_owned(), from, to });
                }
            }
            (Some(to), None) if !was_joined => topic.jump(to.clone()),
            (Some(to), _) => self.gap(name, Some(to.clone()), "expired"),
        }
        self.watch(name);
        let Some(topic) = self.topics.get_mut(name) else { return };
        let early = std::mem::take(&mut topic.run.early);
        if position.is_none() || (from.is_none() && !asked_for_last) {
            for message in &early {
                topic.deliver(message);
            }
        }
        let recovered = from.is_some().then_some(is_recovered);
        for listener in topic.listeners.iter_mut().filter(|listener| listener.late.is_none()) {
            listener.ready(position.is_some(), recovered);
        }
        let mut asking = Vec::new();
        for listener in &mut topic.listeners {
            if let Some(late) = listener.late.as_mut().filter(|late| !late.has_asked) {
                late.has_asked = true;
                asking.push(listener.id);
            }
        }
        for listener in asking {
            self.catch_up(name, listener);
        }
        self.joined(name);
    }

    fn leave(&mut self, name: String, current: ConnectionId) {
        if let Some(topic) = self.topics.get_mut(&name) {
            topic.run = Run { is_busy: true, ..Run::default() };
            self.ask(current, json!({"type": "unsubscribe", "topic": name}), Purpose::Unsubscribe(name));
        }
    }

    /// The server was too busy to take an unsubscribe frame. Returns when to try again.
    pub(crate) fn left_later(&mut self, name: &str) -> Duration {
        let Some(topic) = self.topics.get_mut(name) else { return Duration::ZERO };
        topic.run.errors += 1;
        let errors = topic.run.errors;
        self.back_off(errors - 1)
    }

    /// An unsubscribe frame was answered, or it was lost.
    pub(crate) fn left(&mut self, name: &str, is_done: bool) {
        if let Some(topic) = self.topics.get_mut(name) {
            topic.run.is_busy = false;
            topic.run.on = self.current.filter(|_| !is_done && topic.listeners.is_empty());
        }
        self.sync();
    }

    // ---- Listeners --------------------------------------------------------------------------------------------------

    pub(crate) fn listen(&mut self, listen: Listen) {
        let Listen { topic: name, listener: id, start, heard, ready, mut watcher } = listen;
        let key = self.serial();
        let topic = self.topics.entry(name.clone()).or_insert_with(|| Topic { key, ..Topic::default() });
        if let Some(watcher) = &mut watcher {
            watcher.spoke = key;
            // Its fields are not in the frame that has subscribed.
            topic.run.is_changed = true;
        }
        let mut listener = Listener { id, heard, ready: Some(ready), late: None, watcher };
        let position = match &start {
            Start::After(position) => Some(position.clone()),
            _ => None,
        };
        // One frame cannot ask for two positions, and the first listener is the one that it asks for.
        let is_other = (topic.run.position.is_some() || topic.run.last > 0) && topic.run.position != position;
        if (topic.run.is_joined || topic.run.on.is_some() || is_other) && start != Start::Now {
            let recovered = position.is_some().then_some(true);
            let has_asked = topic.run.is_joined;
            listener.late = Some(Late { start, has_asked, found: Vec::new(), live: Vec::new(), position, recovered });
        } else if topic.run.is_joined {
            if let Some(position) = topic.run.position.clone() {
                let _ = listener.heard.send(Heard::Position(position));
            }
            listener.ready(topic.run.position.is_some(), None);
        } else {
            match start {
                Start::Now => {}
                Start::Last(last) => topic.run.last = topic.run.last.max(last),
                Start::After(position) => drop(topic.run.position.get_or_insert(position)),
            }
        }
        let has_asked = listener.late.as_ref().is_some_and(|late| late.has_asked);
        topic.listeners.push(listener);
        if has_asked {
            self.catch_up(&name, id);
        }
        // Many topics share one frame, so other commands come first.
        self.changed();
    }

    pub(crate) fn unlisten(&mut self, name: &str, id: u64) {
        if let Some(topic) = self.topics.get_mut(name) {
            topic.run.is_changed |= topic.listeners.iter().any(|it| it.id == id && it.watcher.is_some());
            topic.listeners.retain(|listener| listener.id != id);
            self.changed();
        }
    }

    /// Asks for the next page of what a further listener wants.
    fn catch_up(&mut self, name: &str, id: u64) {
        let found = self.topics.get(name).and_then(|topic| topic.listeners.iter().find(|listener| listener.id == id));
        let Some(late) = found.and_then(|listener| listener.late.as_ref()) else { return };
        let range = match &late.start {
            Start::Last(last) => {
                let missing = last.saturating_sub(u32::try_from(late.found.len()).unwrap_or(u32::MAX));
                Range { before: late.position.clone(), limit: Some(missing), after: None }
            }
            _ => Range { after: late.position.clone(), ..Range::default() },
        };
        self.read(name, &range, Reply::CatchUp { topic: name.to_owned(), listener: id });
    }

    pub(crate) fn caught_up(&mut self, name: &str, id: u64, result: Result<Frame, Error>) {
        let Some(topic) = self.topics.get_mut(name) else { return };
        let Some(listener) = topic.listeners.iter_mut().find(|listener| listener.id == id) else { return };
        let Some(mut late) = listener.late.take() else { return };
        let has_history = match result {
            Ok(frame) => {
                let answer = frame.answer();
                late.recovered = late.recovered.map(|recovered| recovered && answer.recovered == Some(true));
                let epoch = frame.epoch.unwrap_or_default();
                for entry in frame.messages {
                    late.position = Some(Position { epoch: epoch.clone(), seq: entry.seq });
                    late.found.extend(entry.message(name, &epoch));
                }
                late.position = answer.position().or(late.position);
                let is_enough = match late.start {
                    Start::Last(last) => late.found.len() >= usize::try_from(last).unwrap_or(usize::MAX),
                    _ => false,
                };
                if frame.more && !is_enough {
                    listener.late = Some(late);
                    return self.catch_up(name, id);
                }
                true
            }
            Err(error) if error.code == "no_history" => {
                late.recovered = late.recovered.map(|_| false);
                false
            }
            Err(error) => {
                if let Some(ready) = listener.ready.take() {
                    let _ = ready.send(Err(error));
                }
                topic.listeners.retain(|listener| listener.id != id);
                return self.changed();
            }
        };
        let here = topic.run.position.clone();
        // The topic will deliver these itself.
        let is_ahead = |message: &Message| {
            let at = message.position.as_ref().zip(here.as_ref());
            at.is_some_and(|(at, here)| at.epoch == here.epoch && at.seq > here.seq)
        };
        let mut messages: Vec<_> =
            late.found.into_iter().chain(late.live).filter(|message| !is_ahead(message)).collect();
        let place = |message: &Message| message.position.as_ref().map(|at| (at.epoch.clone(), at.seq));
        messages.sort_by_key(place);
        messages.dedup_by(|one, other| one.position.is_some() && one.position == other.position);
        for message in messages {
            let _ = listener.heard.send(Heard::Message(message));
        }
        if let Some(position) = here {
            let _ = listener.heard.send(Heard::Position(position));
        }
        listener.ready(has_history, late.recovered);
    }

    // ---- Pings ------------------------------------------------------------------------------------------------------

    /// A ping with the positions of topics that were silent.
    pub(crate) fn ping(&mut self) -> serde_json::Value {
        let current = self.current;
        let mut silent = Vec::new();
        for (name, topic) in &mut self.topics {
            let was_fresh = std::mem::take(&mut topic.is_fresh);
            if topic.run.position.is_some() && topic.run.on == current && !topic.run.is_busy && !was_fresh {
                silent.push((name, &mut topic.run));
            }
        }
        silent.sort_by_key(|(_, run)| run.pinged);
        let mut positions = serde_json::Map::new();
        for (name, run) in silent.into_iter().take(PINGED) {
            self.pings += 1;
            run.pinged = self.pings;
            positions.insert(name.clone(), json!(run.position));
        }
        json!({"type": "ping", "positions": positions})
    }
}

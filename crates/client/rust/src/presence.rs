//! Who is in a topic: the handle of the application, and the half of the client that keeps the list.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};

use crate::Topic as Handle;
use crate::frame::Frame;
use crate::machine::{Command, Listen, Machine, Reply};
use crate::topics::{Listener, Topic};
use crate::types::{Error, Members, Start, Users};

/// The members of a topic, until it is dropped. It listens to the topic, so the user is a member.
#[derive(Debug)]
pub struct Presence {
    topic: Handle,
    listener: u64,
    board: watch::Sender<Board>,
    news: watch::Receiver<Board>,
    /// What [`Presence::next`] returned last.
    told: Board,
    answer: Option<oneshot::Receiver<Result<(), Error>>>,
    ready: Option<Result<(), Error>>,
}

impl Presence {
    pub(crate) fn new(topic: Handle, data: Option<Value>) -> Self {
        let listener = topic.shared.number();
        let ((board, news), (ready, answer)) = (watch::channel(Board::default()), oneshot::channel());
        let watcher = Watcher::new(board.clone(), ready, data);
        // It hears no messages, so nobody is at the other end of these two.
        let (heard, joined) = (mpsc::unbounded_channel().0, oneshot::channel().0);
        let name = topic.name.clone();
        let listen = Listen { topic: name, listener, start: Start::Now, heard, ready: joined, watcher: Some(watcher) };
        topic.shared.ask(Command::Listen(listen));
        Self { topic, listener, board, news, told: Board::default(), answer: Some(answer), ready: None }
    }

    /// Waits for the first list.
    ///
    /// # Errors
    ///
    /// The server refuses to tell who is there, or the client is closed.
    pub async fn ready(&mut self) -> Result<(), Error> {
        if let Some(answer) = &mut self.answer {
            self.ready = Some(answer.await.unwrap_or_else(|_| Err(Error::closed())));
            self.answer = None;
        }
        self.ready.clone().unwrap_or_else(|| Err(Error::closed()))
    }

    /// Waits until something changes, and returns that. Several changes may come together. After the end it returns `None`.
    pub async fn next(&mut self) -> Option<Members> {
        loop {
            let mut board = Board::default();
            self.board.send_if_modified(|now| {
                board = now.clone();
                now.named = Changes::default();
                false
            });
            let changes = match (&self.told.users, &board.users) {
                (Some(before), Some(now)) => Changes::between(before, now),
                _ => board.named.clone(),
            };
            let is_new = board.count != self.told.count || board.is_current != self.told.is_current;
            let is_over = board.is_over;
            self.told = board;
            if is_new || changes != Changes::default() {
                return Some(self.members(changes));
            }
            if is_over || self.news.changed().await.is_err() {
                return None;
            }
        }
    }

    fn members(&self, changes: Changes) -> Members {
        let Board { users, count, is_current, .. } = self.told.clone();
        let [joined, left, changed] = [changes.joined, changes.left, changes.changed].map(Vec::from_iter);
        Members { topic: self.topic.name.clone(), users, count, is_current, joined, left, changed }
    }

    /// Returns what each member says about itself, by user. The server only counts more than 1,000 members.
    #[must_use]
    pub fn users(&self) -> Option<Arc<Users>> {
        self.board.borrow().users.clone()
    }

    /// Returns how many members there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.board.borrow().count
    }

    /// Tells whether the list is true now. It is false while there is no connection.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.board.borrow().is_current
    }

    /// Changes what this user says about itself: any JSON of at most 1,024 bytes. Null takes it back.
    ///
    /// # Errors
    ///
    /// The server refuses the words, which changes nothing, or the client is closed.
    pub fn set(&self, data: &(impl Serialize + ?Sized)) -> impl Future<Output = Result<(), Error>> + Send + 'static {
        let asked = words(data).map(|data| {
            let (topic, listener) = (self.topic.name.clone(), self.listener);
            self.ask(|reply| Command::Say { topic, listener, data, reply })
        });
        async move {
            match asked {
                Ok(answer) => answer.await.unwrap_or_else(|_| Err(Error::closed())),
                Err(error) => Err(error),
            }
        }
    }

    /// Asks for the list once more.
    ///
    /// # Errors
    ///
    /// The server refuses to tell who is there, or the client is closed.
    pub fn refresh(&self) -> impl Future<Output = Result<(), Error>> + Send + 'static {
        let (topic, listener) = (self.topic.name.clone(), self.listener);
        let answer = self.ask(|reply| Command::Members { topic, listener, reply });
        async move { answer.await.unwrap_or_else(|_| Err(Error::closed())) }
    }

    fn ask(&self, command: impl FnOnce(Answer) -> Command) -> oneshot::Receiver<Result<(), Error>> {
        let (reply, answer) = oneshot::channel();
        self.topic.shared.ask(command(reply));
        answer
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let (topic, listener) = (self.topic.name.clone(), self.listener);
        self.topic.shared.ask(Command::Leave { topic, listener });
    }
}

/// What a user says about itself. Null is nothing.
pub(crate) fn words(data: &(impl Serialize + ?Sized)) -> Result<Option<Value>, Error> {
    match serde_json::to_value(data) {
        Ok(data) => Ok(Some(data).filter(|data| !data.is_null())),
        Err(error) => Err(Error::new("invalid_field", format!("The data is no JSON: {error}."))),
    }
}

pub(crate) type Answer = oneshot::Sender<Result<(), Error>>;

/// The state that a [`Presence`] shows.
#[derive(Debug, Clone)]
pub(crate) struct Board {
    /// A topic with more than 1,000 members has only a count.
    users: Option<Arc<Users>>,
    count: u64,
    is_current: bool,
    /// The changes since the application looked, for a topic without a list to compare.
    named: Changes,
    is_over: bool,
}

impl Default for Board {
    fn default() -> Self {
        Self { users: Some(Arc::default()), count: 0, is_current: false, named: Changes::default(), is_over: false }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Changes {
    joined: BTreeSet<String>,
    left: BTreeSet<String>,
    changed: BTreeSet<String>,
}

impl Changes {
    fn between(before: &Users, now: &Users) -> Self {
        let all = |one: &Users, is: &dyn Fn(&String) -> bool| one.keys().filter(|user| is(user)).cloned().collect();
        let words = |users: &Users, user: &String| users[user].as_ref().map(|word| word.get().to_owned());
        Self {
            joined: all(now, &|user| !before.contains_key(user)),
            left: all(before, &|user| !now.contains_key(user)),
            changed: all(now, &|user| before.contains_key(user) && words(before, user) != words(now, user)),
        }
    }

    /// Adds what a frame says. Who came and left meanwhile did neither.
    fn add(&mut self, frame: &Told) {
        for user in &frame.joined {
            if !self.left.remove(user) {
                self.joined.insert(user.clone());
            }
        }
        for user in &frame.left {
            self.changed.remove(user);
            if !self.joined.remove(user) {
                self.left.insert(user.clone());
            }
        }
        self.changed.extend(frame.words.keys().filter(|user| !frame.joined.contains(user)).cloned());
    }
}

/// The changes that a frame of the server tells.
#[derive(Debug, Clone)]
struct Told {
    joined: Vec<String>,
    left: Vec<String>,
    words: Users,
}

impl Told {
    /// The members after the change. The same change may come twice.
    fn apply(&self, users: &mut Users) {
        users.extend(self.joined.iter().map(|user| (user.clone(), None)));
        for user in &self.left {
            users.remove(user);
        }
        for (user, word) in &self.words {
            if let Some(said) = users.get_mut(user) {
                said.clone_from(word);
            }
        }
    }
}

/// A listener that asks who is here.
#[derive(Debug)]
pub(crate) struct Watcher {
    board: watch::Sender<Board>,
    ready: Option<Answer>,
    /// What this user says about itself, and what the last subscribe frame said.
    data: Option<Value>,
    said: Option<Value>,
    /// The time of its last word. One connection is one member, so the watcher that spoke last counts.
    pub(crate) spoke: u64,
    /// Whether the server has taken the subscription on the current connection.
    is_member: bool,
    /// Counts the lists that were asked for: the answer of an older one does not count.
    turn: u64,
    /// The changes since the last list was asked for. It may be older than they are.
    since: Vec<Told>,
}

impl Watcher {
    fn new(board: watch::Sender<Board>, ready: Answer, data: Option<Value>) -> Self {
        Self { board, ready: Some(ready), data, said: None, spoke: 0, is_member: false, turn: 0, since: Vec::new() }
    }

    /// Adds the fields of a subscribe frame.
    pub(crate) fn ask(&mut self, entry: &mut Value) {
        self.said.clone_from(&self.data);
        entry["presence"] = json!(true);
        if let Some(data) = &self.data {
            entry["data"] = data.clone();
        }
    }

    /// The connection has ended, or the server refused the subscription.
    pub(crate) fn lost(&mut self, error: Option<&Error>) {
        if let Some((ready, error)) = error.and_then(|error| Some((self.ready.take()?, error))) {
            let _ = ready.send(Err(error.clone()));
        }
        self.is_member = false;
        self.turn += 1;
        self.board.send_modify(|board| board.is_current = false);
    }

    fn changed(&mut self, frame: &Told) {
        self.since.push(frame.clone());
        self.board.send_if_modified(|board| {
            if board.is_current {
                apply(board, frame);
                board.named.add(frame);
            }
            board.is_current
        });
    }

    /// A long list comes in several frames.
    fn listed(&mut self, last: &Frame) {
        let mut users = last.users.is_some().then(Users::new);
        for part in last.parts.iter().chain([last]) {
            if let (Some(users), Some(joined)) = (&mut users, &part.users) {
                Told { joined: joined.clone(), left: Vec::new(), words: part.data.clone() }.apply(users);
            }
        }
        let count = users.as_ref().map_or(last.count, count_of);
        self.board.send_modify(|board| {
            (board.users, board.count, board.is_current) = (users.map(Arc::new), count, self.is_member);
            for frame in &self.since {
                apply(board, frame);
            }
        });
        if let Some(ready) = self.ready.take() {
            let _ = ready.send(Ok(()));
        }
    }
}

fn count_of(users: &Users) -> u64 {
    users.len() as u64
}

fn apply(board: &mut Board, frame: &Told) {
    if let Some(users) = &mut board.users {
        let users = Arc::make_mut(users);
        frame.apply(users);
        board.count = count_of(users);
    } else {
        board.count = (board.count + frame.joined.len() as u64).saturating_sub(frame.left.len() as u64);
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.board.send_modify(|board| (board.is_current, board.is_over) = (false, true));
    }
}

impl Machine {
    fn watcher(&mut self, name: &str, id: u64) -> Option<&mut Watcher> {
        let mut listeners = self.topics.get_mut(name)?.listeners.iter_mut();
        listeners.find(|listener| listener.id == id)?.watcher.as_mut()
    }

    /// Asks who is here, or says something about this user.
    fn ask_members(&mut self, name: &str, data: Option<Value>, reply: Reply) {
        let id = self.new_id();
        let mut frame = json!({"type": "presence", "topic": name, "id": id});
        if let Some(data) = data {
            frame["data"] = data;
        }
        self.put(Some(format!("{name} members")), id, frame.to_string(), false, reply);
    }

    pub(crate) fn list(&mut self, name: &str, id: u64, reply: Option<Answer>) {
        let turn = self.watcher(name, id).map(|watcher| {
            watcher.turn += 1;
            watcher.since.clear();
            watcher.turn
        });
        self.ask_members(name, None, Reply::Members { topic: name.to_owned(), listener: id, turn, reply });
    }

    pub(crate) fn listed(
        &mut self,
        name: &str,
        id: u64,
        turn: Option<u64>,
        reply: Option<Answer>,
        result: Result<Frame, Error>,
    ) {
        if let Some(watcher) = self.watcher(name, id) {
            let is_newest = Some(watcher.turn) == turn;
            match &result {
                Ok(frame) if is_newest => watcher.listed(frame),
                Ok(_) => {}
                Err(error) => {
                    if let Some(ready) = watcher.ready.take() {
                        let _ = ready.send(Err(error.clone()));
                    }
                    if is_newest {
                        watcher.board.send_modify(|board| board.is_current = false);
                    }
                }
            }
        }
        let _ = reply.map(|reply| reply.send(result.map(drop)));
    }

    /// Tells the server what this user says. If the user is no member yet, the subscribe frame says it.
    pub(crate) fn say(&mut self, mut said: Said) {
        let serial = self.serial();
        if let Some(watcher) = self.watcher(&said.topic, said.listener) {
            let data = std::mem::replace(&mut watcher.data, said.data.clone());
            said.before = Some((data, std::mem::replace(&mut watcher.spoke, serial)));
            said.turn = Some(watcher.turn).filter(|_| watcher.is_member);
        }
        if said.data.is_some() {
            return self.ask_members(&said.topic.clone(), said.data.clone(), Reply::Said(said));
        }
        // Only a subscribe frame without it ends what a user says.
        if let Some(topic) = self.topics.get_mut(&said.topic) {
            topic.run.is_changed = true;
        }
        self.changed();
        let _ = said.reply.map(|reply| reply.send(Ok(())));
    }

    pub(crate) fn said(&mut self, said: Said, result: Result<Frame, Error>) {
        let Said { topic, listener, data, before, turn, reply } = said;
        let mut result = result.map(drop);
        let watcher = self.watcher(&topic, listener);
        let now = watcher.as_ref().map(|watcher| watcher.turn);
        if result.as_ref().is_err_and(|error| error.code == "no_member" && (turn.is_none() || turn != now)) {
            result = Ok(());
        }
        let wrong = watcher.filter(|watcher| result.is_err() && watcher.data == data);
        if let Some((watcher, before)) = wrong.zip(before) {
            (watcher.data, watcher.spoke) = before;
        }
        let _ = reply.map(|reply| reply.send(result));
    }

    /// The server has taken a subscription: its watchers are members now.
    pub(crate) fn joined(&mut self, name: &str) {
        let Some(topic) = self.topics.get_mut(name) else { return };
        let watchers = topic.listeners.iter_mut().filter_map(|it| Some((it.id, it.watcher.as_mut()?)));
        let asked: Vec<_> = watchers
            .map(|(id, watcher)| {
                watcher.is_member = true;
                (id, watcher.data.clone().filter(|data| watcher.said.as_ref() != Some(data)))
            })
            .collect();
        for (id, data) in asked {
            self.list(name, id, None);
            if data.is_some() {
                // These words came too late for the subscribe frame.
                let reply = Reply::Said(Said::new(name.to_owned(), id, data.clone(), None));
                self.ask_members(name, data, reply);
            }
        }
    }

    /// Members have come, left, or said something else.
    pub(crate) fn members_changed(&mut self, name: &str, frame: Frame) {
        let Some(topic) = self.topics.get_mut(name) else { return };
        let told = Told { joined: frame.joined, left: frame.left, words: frame.data };
        for watcher in topic.watchers() {
            watcher.changed(&told);
        }
    }
}

/// A change of a user's own data that waits for its answer.
#[derive(Debug)]
pub(crate) struct Said {
    topic: String,
    listener: u64,
    data: Option<Value>,
    /// What the watcher said before, and the time of that.
    before: Option<(Option<Value>, u64)>,
    /// The list that was the newest one, if the user was a member.
    turn: Option<u64>,
    pub(crate) reply: Option<Answer>,
}

impl Said {
    pub(crate) fn new(topic: String, listener: u64, data: Option<Value>, reply: Option<Answer>) -> Self {
        Self { topic, listener, data, before: None, turn: None, reply }
    }
}

impl Topic {
    /// Its listeners that ask who is here.
    pub(crate) fn watchers(&mut self) -> impl Iterator<Item = &mut Watcher> {
        self.listeners.iter_mut().filter_map(|Listener { watcher, .. }| watcher.as_mut())
    }
}

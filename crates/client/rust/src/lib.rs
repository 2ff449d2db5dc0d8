#![doc = include_str!("../README.md")]

mod frame;
mod machine;
mod presence;
mod socket;
mod topics;
mod types;

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use serde::Serialize;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

/// The library for [`Options::tls`].
pub use tokio_rustls::rustls;

use machine::{Command, Heard, Listen, Machine};
pub use presence::Presence;
pub use types::{
    Ack, Attempt, Error, Event, Members, Message, Options, Page, Position, Range, Ready, Start, State, TokenSource,
    Users,
};

/// The member that marks a frame as sent again.
pub(crate) const AGAIN: &str = ",\"again\":true";

/// Connects to an address of `wss://` or `ws://`, and stays connected until every handle is dropped.
///
/// # Errors
///
/// The address is none of a WebSocket server.
///
/// # Panics
///
/// Nobody runs Tokio here.
pub fn connect(url: &str, options: Options) -> Result<(Client, Events), Error> {
    let is_socket = url.starts_with("ws://") || url.starts_with("wss://");
    if let Err(error) = url.into_client_request() {
        return Err(Error::new("invalid_url", format!("The address {url} is wrong: {error}.")));
    }
    if !is_socket {
        return Err(Error::new("invalid_url", format!("The address {url} does not begin with wss:// or ws://.")));
    }
    let (commands, asked) = mpsc::unbounded_channel();
    let (events, told) = mpsc::unbounded_channel();
    let (state, states) = watch::channel(State::Connecting);
    let prefix = std::iter::repeat_with(fastrand::alphanumeric).take(12).collect::<String>();
    let shared = Shared {
        commands,
        state: states,
        room: Arc::new(Semaphore::new(options.buffer)),
        buffer: options.buffer,
        frame_limit: options.frame_limit,
        prefix: prefix.clone(),
        last_id: AtomicU64::new(0),
    };
    let machine = Machine::new(options, Instant::now(), state, events, format!("{prefix}-q"));
    tokio::spawn(socket::drive(machine, asked, url.into()));
    Ok((Client(Arc::new(shared)), Events(told)))
}

/// The part that all handles of a client share.
#[derive(Debug)]
struct Shared {
    commands: mpsc::UnboundedSender<Command>,
    state: watch::Receiver<State>,
    /// The messages that the buffer may still take.
    room: Arc<Semaphore>,
    buffer: usize,
    frame_limit: usize,
    prefix: String,
    last_id: AtomicU64,
}

impl Shared {
    fn number(&self) -> u64 {
        self.last_id.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Asks the task. If it has ended, the answer never comes, and the receiver notices.
    fn ask(&self, command: Command) {
        let _ = self.commands.send(command);
    }

    /// Gives a message to the task.
    fn post(
        &self,
        lane: String,
        id: Option<String>,
        frame: &dyn Fn(&str) -> Result<String, serde_json::Error>,
    ) -> Publication {
        let id = id.unwrap_or_else(|| format!("{}-{}", self.prefix, self.number()));
        let (reply, ack) = oneshot::channel();
        let problem = match frame(&id) {
            Err(error) => Error::new("invalid_field", format!("The message is no JSON: {error}.")),
            Ok(text) if text.len() + AGAIN.len() > self.frame_limit => {
                let (size, limit) = (text.len() + AGAIN.len(), self.frame_limit);
                let words = format!("its frame has {size} bytes, and the gateway takes {limit}");
                Error::new("too_large", format!("The message is too large: {words}."))
            }
            Ok(text) => match self.room.clone().try_acquire_owned() {
                Ok(room) => {
                    self.ask(Command::Post { lane, id: id.clone(), text, room, reply });
                    return Publication { id, ack: Ok(ack) };
                }
                Err(_) => {
                    let words = "messages wait already, and no more are kept.";
                    Error::new("buffer_full", format!("{} {words}", self.buffer))
                }
            },
        };
        let is_closed = *self.state.borrow() == State::Closed;
        Publication { id, ack: Err(if is_closed { Error::closed() } else { problem }) }
    }
}

/// A client. Clones are handles of the same client, which ends with the last handle, topic, subscription and presence.
#[derive(Debug, Clone)]
pub struct Client(Arc<Shared>);

impl Client {
    /// Whether there is a connection.
    #[must_use]
    pub fn state(&self) -> State {
        *self.0.state.borrow()
    }

    /// A topic. `@me` is the user's own address: direct messages.
    #[must_use]
    pub fn topic(&self, name: impl Into<String>) -> Topic {
        Topic { name: name.into(), shared: self.0.clone() }
    }

    /// Sends a direct message. Messages to one user go out one after another.
    pub fn send(&self, user_id: &str, body: &(impl Serialize + ?Sized)) -> Publication {
        self.0.post(format!("@{user_id}"), None, &|id| {
            let frame = Direct { action: "sendMessage", destination_user_id: user_id, body, id };
            serde_json::to_string(&frame)
        })
    }

    /// Tells the client that the network or the application is back, which ends a pause.
    pub fn wake(&self) {
        self.0.ask(Command::Wake);
    }

    /// Ends the connection, so that the client makes a new one and resumes, as after a cut.
    pub fn reconnect(&self) {
        self.0.ask(Command::Reconnect);
    }

    /// Ends the client. What waits for an answer fails.
    pub fn close(&self) {
        self.0.ask(Command::Close);
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Direct<'a, T: Serialize + ?Sized> {
    action: &'a str,
    destination_user_id: &'a str,
    body: &'a T,
    id: &'a str,
}

#[derive(Serialize)]
struct ToTopic<'a, T: Serialize + ?Sized> {
    #[serde(rename = "type")]
    kind: &'a str,
    topic: &'a str,
    #[serde(flatten)]
    content: &'a Content<'a, T>,
    id: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum Content<'a, T: Serialize + ?Sized> {
    Message(&'a T),
    Messages(&'a T),
}

/// A topic of a client.
#[derive(Debug, Clone)]
pub struct Topic {
    name: String,
    shared: Arc<Shared>,
}

impl Topic {
    /// The topic's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Listens to the topic, until the subscription is dropped.
    #[must_use]
    pub fn subscribe(&self, start: Start) -> Subscription {
        let listener = self.shared.number();
        let position = match &start {
            Start::After(position) => Some(position.clone()),
            _ => None,
        };
        let ((heard, incoming), (ready, answer)) = (mpsc::unbounded_channel(), oneshot::channel());
        let listen = Listen { topic: self.name.clone(), listener, start, heard, ready, watcher: None };
        self.shared.ask(Command::Listen(listen));
        Subscription {
            topic: self.clone(),
            listener,
            incoming,
            waiting: VecDeque::new(),
            position,
            answer: Some(answer),
            ready: None,
        }
    }

    /// Watches who is in the topic, until the result is dropped. The user becomes a member.
    #[must_use]
    pub fn presence(&self) -> Presence {
        Presence::new(self.clone(), None)
    }

    /// The same, and the user says something about itself: any JSON of at most 1,024 bytes.
    ///
    /// # Errors
    ///
    /// The data is no JSON.
    pub fn presence_with(&self, data: &(impl Serialize + ?Sized)) -> Result<Presence, Error> {
        let data = presence::words(data)?;
        Ok(Presence::new(self.clone(), data))
    }

    /// Publishes a message. Messages of one topic go out one after another.
    pub fn publish(&self, message: &(impl Serialize + ?Sized)) -> Publication {
        self.post(&Content::Message(message), None)
    }

    /// Publishes a message with an id of its own, which makes a repetition by another process recognisable.
    pub fn publish_with_id(&self, message: &(impl Serialize + ?Sized), id: impl Into<String>) -> Publication {
        self.post(&Content::Message(message), Some(id.into()))
    }

    /// Publishes 1 to 100 messages in one frame. A topic with history keeps all of them or none. The frame counts as one
    /// message in the buffer, and must not be larger than one.
    pub fn publish_all<T: Serialize>(&self, messages: &[T]) -> Publications {
        Publications { frame: self.post(&Content::Messages(messages), None), count: messages.len() }
    }

    /// Publishes several messages with an id of their frame, as [`Topic::publish_with_id`] does for one.
    pub fn publish_all_with_id<T: Serialize>(&self, messages: &[T], id: impl Into<String>) -> Publications {
        Publications { frame: self.post(&Content::Messages(messages), Some(id.into())), count: messages.len() }
    }

    fn post<T: Serialize + ?Sized>(&self, content: &Content<'_, T>, id: Option<String>) -> Publication {
        self.shared.post(self.name.clone(), id, &|id| {
            serde_json::to_string(&ToTopic { kind: "message", topic: &self.name, content, id })
        })
    }

    /// Reads the history.
    ///
    /// # Errors
    ///
    /// The server refuses the question, or the client is closed.
    pub async fn history(&self, range: Range) -> Result<Page, Error> {
        let (reply, page) = oneshot::channel();
        self.shared.ask(Command::Read { topic: self.name.clone(), range, reply });
        page.await.unwrap_or_else(|_| Err(Error::closed()))
    }
}

/// A message on its way. It resolves with the server's ack, also if nobody waits for that.
#[derive(Debug)]
#[must_use = "the message is on its way already, and only the ack says whether it arrived"]
pub struct Publication {
    id: String,
    ack: Result<oneshot::Receiver<Result<Ack, Error>>, Error>,
}

impl Publication {
    /// The id, under which the server keeps the message once.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether the client did not take the message at all. Then the error says why.
    #[must_use]
    pub fn is_dropped(&self) -> bool {
        self.ack.is_err()
    }
}

impl Future for Publication {
    type Output = Result<Ack, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.ack {
            Ok(ack) => Pin::new(ack).poll(context).map(|ack| ack.unwrap_or_else(|_| Err(Error::closed()))),
            Err(error) => Poll::Ready(Err(error.clone())),
        }
    }
}

/// Several messages on their way in one frame. They resolve with the ack of each, also if nobody waits for that.
#[derive(Debug)]
#[must_use = "the messages are on their way already, and only the acks say whether they arrived"]
pub struct Publications {
    frame: Publication,
    count: usize,
}

impl Publications {
    /// The id of the frame, under which the server keeps each message once.
    #[must_use]
    pub fn id(&self) -> &str {
        self.frame.id()
    }

    /// Whether the client did not take the messages at all. Then the error says why.
    #[must_use]
    pub fn is_dropped(&self) -> bool {
        self.frame.is_dropped()
    }
}

impl Future for Publications {
    type Output = Result<Vec<Ack>, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let count = self.count as u64;
        Pin::new(&mut self.frame).poll(context).map_ok(|ack| {
            // The ack has the number of the last message, and the others have those before it.
            let acks = (1..=count).map(|index| {
                let mut ack = ack.clone();
                if let Some(position) = &mut ack.position {
                    position.seq = (position.seq + index).saturating_sub(count);
                }
                ack
            });
            acks.collect()
        })
    }
}

/// The events that a client tells its application. Messages come elsewhere. Drop it if nobody reads it.
#[derive(Debug)]
pub struct Events(mpsc::UnboundedReceiver<Event>);

impl Events {
    /// The next event, or `None` when the client has ended.
    pub async fn next(&mut self) -> Option<Event> {
        self.0.recv().await
    }
}

/// Hears each message of a topic, in order and once. It keeps what it hears until that is taken.
#[derive(Debug)]
pub struct Subscription {
    topic: Topic,
    listener: u64,
    incoming: mpsc::UnboundedReceiver<Heard>,
    waiting: VecDeque<Heard>,
    position: Option<Position>,
    answer: Option<oneshot::Receiver<Result<Ready, Error>>>,
    ready: Option<Result<Ready, Error>>,
}

impl Subscription {
    /// Waits until the subscription hears everything that is published.
    ///
    /// # Errors
    ///
    /// The server refuses the subscription, or the client is closed.
    pub async fn ready(&mut self) -> Result<Ready, Error> {
        if let Some(answer) = &mut self.answer {
            self.ready = Some(answer.await.unwrap_or_else(|_| Err(Error::closed())));
            self.answer = None;
        }
        self.ready.clone().unwrap_or_else(|| Err(Error::closed()))
    }

    /// The next message, or `None` when the subscription has ended.
    pub async fn next(&mut self) -> Option<Message> {
        loop {
            let heard = match self.waiting.pop_front() {
                Some(heard) => heard,
                None => self.incoming.recv().await?,
            };
            match heard {
                Heard::Position(position) => self.position = Some(position),
                Heard::Message(message) => {
                    if message.topic == self.topic.name && message.position.is_some() {
                        self.position.clone_from(&message.position);
                    }
                    return Some(message);
                }
            }
        }
    }

    /// The place behind the last message that was taken. Keep it to go on from there with [`Start::After`].
    pub fn position(&mut self) -> Option<&Position> {
        while let Ok(heard) = self.incoming.try_recv() {
            self.waiting.push_back(heard);
        }
        while let Some(Heard::Position(_)) = self.waiting.front() {
            if let Some(Heard::Position(position)) = self.waiting.pop_front() {
                self.position = Some(position);
            }
        }
        self.position.as_ref()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let (topic, listener) = (self.topic.name.clone(), self.listener);
        self.topic.shared.ask(Command::Leave { topic, listener });
    }
}

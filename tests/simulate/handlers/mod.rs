//! The functions' real handlers in the place of the model's protocol, on an embedded DynamoDB, in virtual time.
//!
//! Everything around them is the model's: clients, senders, gateway, stream, faults and invariants. tokio's paused clock and
//! the wall clock of the functions follow one virtual time. Each call of the SDK goes to [`aws`] instead of a socket.

pub mod aws;
pub mod items;
pub mod mirror;

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use lambda_runtime::LambdaEvent;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use switchboard_core::backend::Backend;
use switchboard_core::clock;
use switchboard_core::config::Config;
use tokio::sync::Notify;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::frame::{Invocation, Publication, Range, Record};
use crate::run::Outcome;
use crate::settings::Settings;
use crate::table::{Author, Content, Ms, Position, Socket};
use crate::world::{Event, World};

pub use mirror::Engine;

/// The epoch millisecond at which every run begins.
pub const BEGIN: Ms = 1_700_000_000_000;

pub const CONNECTIONS: &str = "connections";
pub const TOPICS: &str = "topics";
pub const EVENTS: &str = "events";
pub const MESSAGES: &str = "messages";

/// What the clients of a run talk in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// A topic with history.
    Topic,
    /// The same, and clients subscribe to it in a list of topics.
    List,
    /// The inbox of one user. All clients are this user's devices, and they send direct messages to it.
    Inbox,
}

/// The user of an inbox.
const READER: &str = "reader";

impl Subject {
    fn of(seed: u64) -> Self {
        match seed % 4 {
            2 => Self::List,
            3 => Self::Inbox,
            _ => Self::Topic,
        }
    }

    /// The topic's name in the tables.
    pub fn topic(self) -> &'static str {
        if self == Self::Inbox { "@reader" } else { "room.1" }
    }

    /// The topic's name in frames.
    pub fn name(self) -> &'static str {
        if self == Self::Inbox { "@me" } else { "room.1" }
    }

    /// The user behind a client's connection.
    pub fn user(self, client: u32) -> String {
        if self == Self::Inbox { READER.to_owned() } else { format!("u{client}") }
    }

    /// A frame that subscribes with positions.
    fn subscribe(self, request: u32, after: Option<Position>, newest: Option<u32>) -> Value {
        let mut entry = json!({"topic": self.name(), "positions": true});
        if let Some(after) = after {
            entry["after"] = items::stamp(after);
        } else if let Some(count) = newest {
            entry["last"] = json!(count);
        }
        if self == Self::List {
            let (plain, other) = (json!({"topic": "news"}), json!({"topic": "room.2", "positions": true}));
            entry = json!({"topics": [plain, entry, other]});
        }
        entry["type"] = json!("subscribe");
        entry["id"] = json!(format!("r{request}"));
        entry
    }

    /// The topics that a client listens to once it has subscribed.
    pub fn topics(self, client: u32) -> Vec<String> {
        let mut topics = vec![format!("@{}", self.user(client))];
        match self {
            Self::Topic => topics.push(self.topic().to_owned()),
            Self::List => topics.extend(["news", self.topic(), "room.2"].map(str::to_owned)),
            Self::Inbox => {}
        }
        topics
    }

    /// A frame that publishes.
    fn publish(self, publication: &Publication) -> Value {
        let Publication { author, content, count, again, .. } = *publication;
        let contents: Vec<_> = (0..count).map(|part| items::json_of(Content(content.0 + part))).collect();
        let mut frame = match (self, contents.as_slice()) {
            (Self::Inbox, _) => json!({"action": "sendMessage", "destinationUserId": READER, "body": contents[0]}),
            (_, [content]) => json!({"type": "message", "topic": self.topic(), "message": content}),
            (_, contents) => json!({"type": "message", "topic": self.topic(), "messages": contents}),
        };
        if let Some(Author::Frame { user, id }) = author {
            frame["id"] = json!(items::frame_id(user, id));
        }
        if again {
            frame["again"] = json!(true);
        }
        frame
    }
}

thread_local! {
    /// The run of this thread. The SDK's connector must be `Send`, so it cannot have it as a field.
    static RUN: RefCell<Option<Run>> = const { RefCell::new(None) };
    /// The invocation whose code runs now, and how far its clock is off.
    static RUNNING: Cell<Option<(usize, Ms)>> = const { Cell::new(None) };
}

#[derive(Clone)]
struct Run {
    subject: Subject,
    world: Rc<RefCell<World>>,
    began: Instant,
    /// There may be an earlier event than the one that the driver waits for.
    changed: Rc<Notify>,
}

impl Run {
    fn current() -> Self {
        RUN.with_borrow(|run| run.clone()).expect("a run is under way")
    }

    fn at(&self, time: Ms) -> Instant {
        self.began + Duration::from_millis(time.unsigned_abs())
    }

    /// Does something in the world, now.
    fn act<T>(&self, act: impl FnOnce(&mut World) -> T) -> T {
        let mut world = self.world.borrow_mut();
        let now = self.began.elapsed().as_millis();
        world.now = Ms::try_from(now).unwrap_or(Ms::MAX);
        let result = act(&mut world);
        self.changed.notify_one();
        result
    }
}

/// The wall clock of the function that runs now.
fn wall_clock() -> SystemTime {
    let now = RUN.with_borrow(|run| run.as_ref().map_or(0, |run| run.began.elapsed().as_millis()));
    let skew = RUNNING.get().map_or(0, |(_, skew)| skew);
    let ms = BEGIN.saturating_add(Ms::try_from(now).unwrap_or(0)).saturating_add(skew);
    SystemTime::UNIX_EPOCH + Duration::from_millis(ms.unsigned_abs())
}

/// What the execution environments have: two backends, because an operator may change the kept time.
struct Functions {
    before: Backend,
    after: Backend,
    identity: connect::Identity,
}

impl Functions {
    fn new(seed: u64, settings: &Settings) -> Self {
        let backend = |kept: Ms| {
            let history = json!({"hours": kept / 3_600_000});
            let rules =
                json!([{"topic": "room.*", "history": history}, {"topic": "@*", "history": history}]).to_string();
            let variable = |name: &str| match name {
                "CONNECTIONS_TABLE" => Some(CONNECTIONS.to_owned()),
                "TOPICS_TABLE" => Some(TOPICS.to_owned()),
                "EVENTS_TABLE" => Some(EVENTS.to_owned()),
                "MESSAGES_TABLE" => Some(MESSAGES.to_owned()),
                "TOPIC_RULES" => Some(rules.clone()),
                "PUBLISH_ENDPOINT" => Some("https://gateway/dev".to_owned()),
                _ => None,
            };
            let config = Config::read(variable).expect("the variables are right");
            Backend::new(config, &aws::sdk(seed), "simulated".to_owned(), 256)
        };
        let identity = connect::Config::from_env().expect("the environment has no wrong variables of `connect`");
        Self {
            before: backend(settings.kept),
            after: backend(settings.other_kept),
            identity: connect::Identity::new(identity),
        }
    }
}

/// Runs one seed.
pub fn run(seed: u64, settings: &Rc<Settings>, left_out: Vec<u64>, trace: bool) -> Outcome {
    fastrand::seed(seed);
    clock::set_source(wall_clock);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without input and output always starts");
    let world = Rc::new(RefCell::new(World::new(seed, settings, left_out, trace)));
    let subject = Subject::of(seed);
    world.borrow_mut().engine = Some(Rc::new(Engine::new(subject)));
    let local = LocalSet::new();
    let world = local.block_on(&runtime, async {
        let run = Run { subject, world, began: Instant::now(), changed: Rc::default() };
        RUN.set(Some(run.clone()));
        let functions = Rc::new(Functions::new(seed, settings));
        drive(&run, &functions).await;
        if run.world.borrow().ledger.violation.is_none() {
            run.act(World::audit);
            drive(&run, &functions).await;
            run.act(World::account);
        }
        run.world
    });
    drop(local);
    RUN.set(None);
    world.borrow_mut().outcome()
}

async fn drive(run: &Run, functions: &Rc<Functions>) {
    loop {
        let starting = {
            let mut world = run.world.borrow_mut();
            // The clients that it wakes connect at once, so it comes before the functions start.
            world.settle_when_done();
            world.starting()
        };
        for process in starting {
            start(run, functions, process);
        }
        let next = {
            let world = run.world.borrow();
            if world.ledger.violation.is_some() {
                return;
            }
            world.next_at()
        };
        let Some(next) = next else {
            if !run.world.borrow().functions_go_on() {
                return;
            }
            run.changed.notified().await;
            continue;
        };
        tokio::select! {
            biased;
            () = run.changed.notified() => continue,
            () = sleep_until(run.at(next)) => {}
        }
        let mut world = run.world.borrow_mut();
        match world.next() {
            None => return,
            Some(Event::Wake(_)) => {}
            Some(event) => world.handle(event),
        }
    }
}

type Handler = Pin<Box<dyn Future<Output = Result<(), String>>>>;

/// One invocation. It ends with the handler, when it is killed, or when its time is over.
struct Invoked {
    run: Run,
    process: usize,
    skew: Ms,
    handler: Option<Handler>,
    deadline: Pin<Box<Sleep>>,
}

impl Future for Invoked {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let (process, skew) = (self.process, self.skew);
        let Some(handler) = &mut self.handler else { return Poll::Ready(()) };
        RUNNING.set(Some((process, skew)));
        let polled = handler.as_mut().poll(context);
        RUNNING.set(None);
        let fault = match polled {
            _ if self.run.world.borrow().was_killed(process) => Some("is killed".to_owned()),
            Poll::Ready(result) => result.err(),
            Poll::Pending if self.deadline.as_mut().poll(context).is_ready() => Some("runs out of time".to_owned()),
            Poll::Pending => return Poll::Pending,
        };
        self.handler = None;
        self.run.act(|world| world.ended(process, fault.as_deref()));
        Poll::Ready(())
    }
}

fn start(run: &Run, functions: &Rc<Functions>, process: usize) {
    let (functions, subject) = (functions.clone(), run.subject);
    let (invocation, life, skew, is_after, event) = run.act(|world| {
        let invocation = world.invocation(process);
        let skew = world.settings.skew;
        let skew = world.random.between((-skew, skew));
        let is_after = world.kept_time() != world.settings.kept;
        let life = life(&invocation);
        world.begins_to_run(process, life);
        (invocation, life, skew, is_after, event(run.subject, world, process, &invocation))
    });
    let Some(event) = event else { return run.act(|world| world.ended(process, None)) };
    let mut context = lambda_runtime::Context::default();
    context.request_id = format!("invocation-{process}");
    let now = Ms::try_from(run.began.elapsed().as_millis()).unwrap_or(0);
    context.deadline = (BEGIN + now + skew + life).unsigned_abs();
    let handler = Box::pin(async move {
        let backend = if is_after { &functions.after } else { &functions.before };
        let text = |fault: switchboard_core::Error| format!("fails: {fault}");
        let status = match invocation {
            Invocation::Connect(_) => {
                connect::handle(backend, &functions.identity, read(event, context)).await.map_err(text)?.status_code
            }
            Invocation::Disconnect(_) => {
                disconnect::handle(backend, read(event, context)).await.map_err(text)?.status_code
            }
            Invocation::Record { record, .. } => {
                let gateway = backend.gateways.configured().map_err(text)?;
                let response = match record {
                    Record::Event { .. } | Record::Broadcast { .. } => {
                        publish::handle(backend, &gateway, read(event, context)).await
                    }
                    Record::Range { .. } => fan_out::handle(backend, &gateway, read(event, context)).await,
                };
                if response.map_err(text)?.batch_item_failures.is_empty() { 200 } else { 500 }
            }
            Invocation::Publish(_) if subject == Subject::Inbox => {
                send_message::handle(backend, read(event, context)).await.map_err(text)?.status_code
            }
            _ => default::handle(backend, read(event, context)).await.map_err(text)?.status_code,
        };
        if status == 200 { Ok(()) } else { Err(format!("ends with status {status}")) }
    });
    let deadline = Box::pin(sleep_until(run.at(now + life)));
    spawn_local(Invoked { run: run.clone(), process, skew, handler: Some(handler), deadline });
}

fn read<E: DeserializeOwned>(event: Value, context: lambda_runtime::Context) -> LambdaEvent<E> {
    LambdaEvent::new(serde_json::from_value(event).expect("the event is one of AWS"), context)
}

/// The time-outs of serverless.yml.
fn life(invocation: &Invocation) -> Ms {
    match invocation {
        Invocation::Connect(_) | Invocation::Disconnect(_) => 10_000,
        Invocation::Record { .. } => 60_000,
        _ => 29_000,
    }
}

/// The event of an invocation; nothing if its client is not connected.
fn event(subject: Subject, world: &mut World, process: usize, invocation: &Invocation) -> Option<Value> {
    let name = subject.name();
    let gateway_event = |world: &World, socket, route: &str, kind: &str, body: Option<Value>| {
        gateway_event(subject, world, process, socket, route, kind, body)
    };
    let frame = |text: Value, socket: Socket| {
        let route = text["action"].as_str().unwrap_or("$default").to_owned();
        Some(gateway_event(world, socket, &route, "MESSAGE", Some(text)))
    };
    match *invocation {
        Invocation::Connect(socket) => Some(gateway_event(world, socket, "$connect", "CONNECT", None)),
        Invocation::Disconnect(socket) => Some(gateway_event(world, socket, "$disconnect", "DISCONNECT", None)),
        Invocation::Subscribe { socket, request, after, newest } => {
            frame(subject.subscribe(request, after, newest), socket)
        }
        Invocation::Unsubscribe { socket, request } => {
            frame(json!({"type": "unsubscribe", "topic": name, "id": format!("r{request}")}), socket)
        }
        Invocation::Query { socket, request, range, limit } => {
            let mut text = json!({"type": "history", "topic": name, "id": format!("r{request}"), "limit": limit});
            match range {
                Range::After(position) => text["after"] = items::stamp(position),
                Range::Before(position) => text["before"] = items::stamp(position),
                Range::Newest => {}
            }
            frame(text, socket)
        }
        Invocation::History { socket, request, after } => {
            let after = items::stamp(after);
            frame(json!({"type": "history", "topic": name, "id": format!("r{request}"), "after": after}), socket)
        }
        Invocation::Ping { socket, request, position } => {
            let mut text = json!({"type": "ping", "id": format!("r{request}")});
            if let Some(position) = position {
                text["positions"] = json!({name: items::stamp(position)});
            }
            frame(text, socket)
        }
        Invocation::Publish(publication) => {
            let socket = world.socket_of(publication.user)?;
            frame(subject.publish(&publication), socket)
        }
        Invocation::Record { index, .. } => {
            let image = world.engine.as_ref()?.image(index);
            Some(json!({"Records": [{
                "eventID": format!("event-{index}"), "eventName": "INSERT", "eventVersion": "1.1",
                "eventSource": "aws:dynamodb", "awsRegion": "us-east-1",
                "dynamodb": {
                    "Keys": {"topic": image["topic"], "id": image["id"]}, "NewImage": image,
                    "SequenceNumber": format!("{index}"), "SizeBytes": 100, "StreamViewType": "NEW_IMAGE",
                    "ApproximateCreationDateTime": 1_700_000_000.0,
                },
            }]}))
        }
        Invocation::Audit => {
            let after = items::stamp(world.table.head?.begin());
            let text = json!({"type": "history", "topic": name, "id": "audit", "after": after, "limit": 1000});
            frame(text, world.any_open_socket()?)
        }
    }
}

fn gateway_event(
    subject: Subject,
    world: &World,
    process: usize,
    socket: Socket,
    route: &str,
    kind: &str,
    body: Option<Value>,
) -> Value {
    let (opened_at, user) = world.connected(socket);
    json!({
        "headers": {}, "multiValueHeaders": {}, "isBase64Encoded": false,
        "body": body.map(|body| body.to_string()),
        "requestContext": {
            "routeKey": route, "eventType": kind, "messageDirection": "IN", "stage": "dev", "apiId": "abcdef1234",
            "domainName": "gateway", "connectedAt": BEGIN + opened_at, "requestTimeEpoch": BEGIN + world.now,
            "requestId": format!("request-{process}"), "extendedRequestId": format!("request-{process}"),
            "connectionId": items::connection_id(socket), "identity": {"sourceIp": "192.0.2.1"},
            "authorizer": {"principalId": subject.user(user)},
        },
    })
}

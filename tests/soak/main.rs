//! The soak test: two thousand connections, mixed traffic and faults, then an account of every row, frame and process.
//!
//! `make soak` runs it for a minute. `make soak-history` runs two others, which are about topics with history, and
//! `cargo test` runs small versions of those: see `history`. In this one the stack and the functions must keep these promises:
//!
//! * Every row belongs to an open connection. There are exceptions where a fault has cost a `$connect` or a `$disconnect`:
//!   there are no more of them than such faults, and posts to them heal the tables.
//! * An acknowledged message has arrived at as many receivers as the acknowledgement says. Receivers that have left since
//!   do not count.
//! * An event has arrived at every connection that listened to its topic from before the put until the end. Connections
//!   that a gone fault has made a function forget do not count. The stream has given up no record.
//! * Ctrl-C ends the stack and every process that it has started.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test prints its counts and fails where it stands")]

mod application;
mod fan_out;
mod flood;
mod history;
mod subscriber;

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::StreamExt;
use history::Settings;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use switchboard_tests::client::Client;
use switchboard_tests::stack::{PATIENCE, Stack, children, table_name, text};
use tokio::sync::{Semaphore, watch};
use tokio_tungstenite::tungstenite::Message;

const CONNECTIONS: usize = 2000;
const TOPICS: usize = 50;

/// The beginning of the id of a frame that subscribes to a topic. The topic follows.
const SUBSCRIPTION: &str = "subscription to ";

/// The average time between two frames of a client.
const THINKING_TIME: Duration = Duration::from_secs(12);

/// Handshakes under way at a time.
const HANDSHAKES: usize = 32;

/// Pings under way at a time. With all at once, the account's concurrency would throttle half of them.
const PINGS: usize = 64;

/// Frames under way at a time. A machine that is too slow for the clients' frames would gather more and more of them, until
/// the account's concurrency throttles everything, handshakes included. So a client that finds no room thinks again.
const FRAMES: usize = 64;

/// A client waits this long for an answer. Answers come within a second, and on a busy machine within a few. A gone fault
/// costs an answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// How long the last events may be under way.
const EVENT_PATIENCE: Duration = Duration::from_secs(10);

/// How long healing may take. Posts do not forget a connection in its first 30 s.
const HEALING: Duration = Duration::from_secs(120);

const FAULTS: [&str; 9] = [
    "lost-disconnect=0.1",
    "gone=0.002",
    "throttle=0.02",
    "error=0.02",
    "kill=0.005",
    "dynamodb-throttle=0.02",
    "unprocessed=0.05",
    "duplicate-stream-record=0.05",
    "stream-delay=50ms",
];

/// What the clients do at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Traffic,
    /// Clients send nothing new, and frames under way arrive.
    Quiet,
    /// Each client sends a ping. Once it is answered, every earlier frame has arrived.
    Drained,
    End,
}

/// What a frame is to the client that gets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Received {
    /// Somebody's message.
    Message,
    /// The answer to a frame of its own.
    Answer,
}

/// A message that was sent. Its text is unique.
#[derive(Debug, Default)]
struct Sent {
    /// Its receiver: `@user` or a topic.
    to: String,
    acknowledged: Option<u64>,
    /// How often each user has received it.
    receivers: BTreeMap<String, usize>,
    /// How many users had left before it was sent.
    departures: usize,
    /// If it is an event, the users that must receive it: they listened before it was put, and still do.
    listeners: BTreeSet<String>,
}

impl Sent {
    /// The users that should have received it and have not.
    fn missing(&self) -> impl Iterator<Item = &String> {
        self.listeners.iter().filter(|user| !self.receivers.contains_key(*user))
    }
}

#[derive(Debug, Default)]
struct Ledger {
    messages: BTreeMap<String, Sent>,
    /// The users that have left, and the topics that they listened to.
    departures: Vec<(String, BTreeSet<String>)>,
    open: BTreeSet<String>,
    /// The users that know that they are subscribed to a topic.
    listeners: BTreeMap<String, BTreeSet<String>>,
    /// Users that have once unsubscribed from a topic. They never count as its listeners again, because two frames may
    /// arrive in any order.
    unsubscribed: BTreeSet<(String, String)>,
    /// Users whose handshake was refused.
    refused: BTreeSet<String>,
    /// Counts for the end.
    counts: BTreeMap<&'static str, usize>,
    next: usize,
}

impl Ledger {
    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn number(&mut self) -> usize {
        self.next += 1;
        self.next
    }

    /// The messages that were put into the events table.
    fn events(&self) -> impl Iterator<Item = (&String, &Sent)> {
        self.messages.iter().filter(|(token, _)| token.starts_with("event-"))
    }

    fn starts_listening(&mut self, user: &str, topic: &str) {
        if self.open.contains(user) && !self.unsubscribed.contains(&(user.to_owned(), topic.to_owned())) {
            self.listeners.entry(topic.to_owned()).or_default().insert(user.to_owned());
        }
    }

    /// From now on the user may miss messages to these topics.
    fn stops_listening<'a>(&mut self, user: &str, topics: impl IntoIterator<Item = &'a String>) {
        for topic in topics {
            self.listeners.entry(topic.clone()).or_default().remove(user);
            for sent in self.messages.values_mut().filter(|sent| sent.to == *topic) {
                sent.listeners.remove(user);
            }
        }
    }
}

struct Soak {
    url: String,
    ledger: Mutex<Ledger>,
    handshakes: Semaphore,
    pings: Semaphore,
    frames: Semaphore,
    /// How many clients have finished the present phase.
    finished: watch::Sender<usize>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("--seconds") => block_on(soak(Duration::from_secs(arguments[1].parse().unwrap()))),
        Some("--history") => {
            let (lost_acks, cut_sockets) = runs(&arguments[1..]);
            for run in lost_acks.into_iter().chain(cut_sockets) {
                block_on(history::run(run));
            }
        }
        Some("--flood") => {
            let seconds = arguments.get(1).map_or(30, |seconds| seconds.parse().unwrap());
            block_on(flood::run(Duration::from_secs(seconds), arguments.get(2).map(String::as_str), false));
        }
        Some("--fan-out") => block_on(fan_outs(&arguments[1..])),
        _ => return trials(),
    }
    ExitCode::SUCCESS
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(future)
}

/// Small runs for `cargo test`.
fn trials() -> ExitCode {
    let trial = |name: &str, settings: Settings| {
        Trial::test(name, move || {
            block_on(history::run(settings.small()));
            Ok(())
        })
    };
    let flood = Trial::test("soak::flood::a_client_that_floods_costs_its_neighbour_no_message", || {
        block_on(flood::run(Duration::from_secs(2), None, true));
        Ok(())
    });
    let fan_out = |name: &str, settings: fan_out::Settings| {
        Trial::test(name, move || {
            block_on(fan_out::run(settings));
            Ok(())
        })
    };
    let small = FAN_OUT;
    let trials = vec![
        flood,
        fan_out("soak::fan_out::each_of_many_subscribers_hears_a_message_once", small),
        fan_out(
            "soak::fan_out::each_of_many_connections_hears_a_broadcast_once",
            fan_out::Settings { to_everybody: true, shards: 1, ..small },
        ),
        fan_out(
            "soak::fan_out::a_killed_process_costs_no_subscriber_a_message",
            fan_out::Settings { kill_at: Some(fastrand::usize(1000..19_000)), ..small },
        ),
        trial("soak::history::acks_are_lost_and_functions_killed", Settings::lost_acks()),
        trial("soak::history::sockets_are_cut_and_everything_fails_sometimes", Settings::cut_sockets()),
    ];
    libtest_mimic::run(&libtest_mimic::Arguments::from_args(), trials).exit_code()
}

/// A small fan-out. Its rate is above what two busy cores post in debug builds, so its time is the machine's.
const FAN_OUT: fan_out::Settings =
    fan_out::Settings { receivers: 20_000, rate: 5000, to_everybody: false, shards: 4, kill_at: None, binaries: None };

/// Runs the fan-outs that `make fan-out` asks for.
async fn fan_outs(arguments: &[String]) {
    let number = |at: usize, default: usize| arguments.get(at).map_or(default, |text| text.parse().unwrap());
    let (receivers, rate) = (number(0, FAN_OUT.receivers), number(1, 1000).try_into().unwrap());
    let binaries = arguments.get(2).map(|folder| &*folder.clone().leak());
    let topic = fan_out::Settings { receivers, rate, binaries, ..FAN_OUT };
    fan_out::run(topic).await;
    fan_out::run(fan_out::Settings { to_everybody: true, ..topic }).await;
    fan_out::run(fan_out::Settings { kill_at: Some(fastrand::usize(1000..receivers)), ..topic }).await;
}

/// The runs that `--history` asks for: both, unless it names one. `--messages 10000` and so on change their sizes.
fn runs(arguments: &[String]) -> (Option<Settings>, Option<Settings>) {
    let mut runs = (Some(Settings::lost_acks()), Some(Settings::cut_sockets()));
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let mut change = |change: &dyn Fn(&mut Settings, &'static str)| {
            let value: &'static str = arguments.next().expect("it has a value").clone().leak();
            runs.0.iter_mut().chain(&mut runs.1).for_each(|run| change(run, value));
        };
        match argument.as_str() {
            "--lost-acks" => runs.1 = None,
            "--cut-sockets" => runs.0 = None,
            "--messages" => change(&|run, value| run.messages = value.parse().unwrap()),
            "--senders" => change(&|run, value| run.senders = value.parse().unwrap()),
            "--subscribers" => change(&|run, value| run.subscribers = value.parse().unwrap()),
            "--topics" => change(&|run, value| run.topics = value.parse().unwrap()),
            "--binaries" => change(&|run, value| run.binaries = Some(value)),
            _ => panic!("{argument} is not known"),
        }
    }
    runs
}

async fn soak(duration: Duration) {
    let faults = FAULTS.iter().flat_map(|fault| ["--fault", fault]);
    let arguments: Vec<_> = faults.chain(["--seed", "7", "--env", "METRICS_NAMESPACE="]).collect();
    let stack = Stack::with(&arguments).await;
    let soak = Arc::new(Soak {
        url: format!("ws://{}/dev", stack.gateway),
        ledger: Mutex::default(),
        handshakes: Semaphore::new(HANDSHAKES),
        pings: Semaphore::new(PINGS),
        frames: Semaphore::new(FRAMES),
        finished: watch::Sender::new(0),
    });
    let phase = watch::Sender::new(Phase::Traffic);
    let began = Instant::now();
    let clients: Vec<_> = (0..CONNECTIONS).map(|_| tokio::spawn(soak.clone().client(phase.subscribe()))).collect();
    soak.finished(CONNECTIONS).await;
    println!("{CONNECTIONS} connections open after {:.1} s", began.elapsed().as_secs_f64());

    let events = tokio::spawn(put_events(stack.dynamodb().await, soak.clone(), phase.subscribe()));
    tokio::time::sleep(duration).await;
    soak.finished.send_replace(0);
    phase.send_replace(Phase::Quiet);
    events.await.unwrap();
    soak.finished(CONNECTIONS).await;
    // Once each client has another answer, every message that was acknowledged has arrived.
    soak.finished.send_replace(0);
    phase.send_replace(Phase::Drained);
    soak.finished(CONNECTIONS).await;
    let broken = soak.account_for_frames();

    assert_eq!(stack.log(&["stream |", "gave up"]), Vec::<String>::new());
    soak.account_for_events(&stack).await;
    soak.account_for_rows(&stack).await;
    let processes = children(stack.process_id()).await;
    println!("{} processes at the end", processes.len());
    let process = stack.process_id();
    phase.send_replace(Phase::End);
    assert_eq!(stack.interrupt().await, Some(0));
    for client in clients {
        client.await.unwrap();
    }
    let processes = children(process).await.into_iter().chain(processes);
    let left: Vec<_> = processes.filter(|(id, _)| is_running(*id)).collect();
    assert!(left.is_empty(), "processes are left: {left:?}");
    println!("no process is left");
    assert!(broken.is_empty(), "{} broken promise(s): {broken:#?}", broken.len());
}

fn is_running(process: u32) -> bool {
    std::process::Command::new("kill").args(["-0", &process.to_string()]).output().unwrap().status.success()
}

/// Puts events as any backend does, and gives the last ones time to arrive.
async fn put_events(dynamodb: aws_sdk_dynamodb::Client, soak: Arc<Soak>, phase: watch::Receiver<Phase>) {
    let mut interval = tokio::time::interval(Duration::from_millis(500));
    let string = |text: &str| AttributeValue::S(text.to_owned());
    while *phase.borrow() == Phase::Traffic {
        interval.tick().await;
        let topic = topic();
        let token = {
            let mut ledger = soak.ledger();
            ledger.count("events put");
            format!("event-{}", ledger.number())
        };
        {
            let mut ledger = soak.ledger();
            let listeners = ledger.listeners.get(&topic).cloned().unwrap_or_default();
            ledger.messages.insert(token.clone(), Sent { to: topic.clone(), listeners, ..Sent::default() });
        }
        let item = dynamodb.put_item().table_name(table_name("events"));
        let item = item.item("topic", string(&topic)).item("id", string(&token)).item("data", string(&token));
        item.send().await.unwrap();
    }
    let arrived = || soak.ledger().events().all(|(_, sent)| sent.missing().next().is_none());
    let deadline = Instant::now() + EVENT_PATIENCE;
    while !arrived() && Instant::now() < deadline {
        interval.tick().await;
    }
}

fn topic() -> String {
    format!("topic-{}", fastrand::usize(..TOPICS))
}

impl Soak {
    /// Works also after a client has panicked, so that its panic is the one that is printed.
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn finished(&self, count: usize) {
        let mut finished = self.finished.subscribe();
        while *finished.borrow_and_update() < count {
            let next = tokio::time::timeout(PATIENCE, finished.changed()).await;
            next.expect("the clients got no further").unwrap();
        }
    }

    /// Runs a client, and another one whenever it leaves, so that one connection is always open.
    async fn client(self: Arc<Self>, mut phase: watch::Receiver<Phase>) {
        let mut first = true;
        loop {
            let (user, client) = self.connect().await;
            if std::mem::take(&mut first) {
                self.finished.send_modify(|finished| *finished += 1);
            }
            if !self.live(&user, client, &mut phase).await {
                return;
            }
        }
    }

    /// Connects as a new user, again and again until a handshake succeeds.
    async fn connect(&self) -> (String, Client) {
        loop {
            let user = format!("user-{}", self.ledger().number());
            let permit = self.handshakes.acquire().await.unwrap();
            let connected = Client::connect(&format!("{}?userId={user}", self.url)).await;
            drop(permit);
            let mut ledger = self.ledger();
            match connected {
                Ok(client) => {
                    ledger.count("connects");
                    ledger.open.insert(user.clone());
                    return (user, client);
                }
                Err(status) => {
                    ledger.count("refused handshakes");
                    println!("handshake refused with {status}");
                    ledger.refused.insert(user);
                }
            }
        }
    }

    /// Sends frames at random. Returns true when the client has left and another one should come.
    async fn live(&self, user: &str, mut client: Client, phase: &mut watch::Receiver<Phase>) -> bool {
        let mut topics = BTreeSet::new();
        let mut waiting = None;
        // A new client must also finish a phase that began before it came.
        let mut answered = Phase::Traffic;
        loop {
            let now = *phase.borrow_and_update();
            if now != answered && now != Phase::End {
                self.drain(user, &mut client).await;
                answered = now;
                self.finished.send_modify(|finished| *finished += 1);
                continue;
            }
            let thinking = THINKING_TIME.mul_f64(2.0 * fastrand::f64());
            tokio::select! {
                frame = client.socket.next() => match frame {
                    Some(Ok(Message::Text(frame))) => {
                        if self.received(user, &frame) == Received::Answer {
                            waiting = None;
                        }
                    }
                    Some(Ok(_)) => {}
                    // Only the end of the stack closes a connection.
                    _ => {
                        assert_eq!(now, Phase::End, "{user} was closed");
                        return false;
                    }
                },
                _ = phase.changed() => {}
                () = tokio::time::sleep(thinking), if now == Phase::Traffic => {
                    if fastrand::usize(..10) == 0 {
                        self.leave(user, client, &topics).await;
                        return true;
                    }
                    // A client that has waited in vain so long goes on.
                    let waits = waiting.as_ref().is_some_and(|(_, since): &(_, Instant)| since.elapsed() < ANSWER_PATIENCE);
                    if waits {
                        continue;
                    }
                    drop(waiting.take());
                    let Ok(permit) = self.frames.try_acquire() else {
                        self.ledger().count("frames put off");
                        continue;
                    };
                    self.act(user, &mut client, &mut topics).await;
                    waiting = Some((permit, Instant::now()));
                }
            }
        }
    }

    async fn act(&self, user: &str, client: &mut Client, topics: &mut BTreeSet<String>) {
        let frame = {
            let mut ledger = self.ledger();
            let token = format!("message-{}", ledger.number());
            let departures = ledger.departures.len();
            match fastrand::usize(..10) {
                0..5 => {
                    let destination = ledger.open.iter().nth(fastrand::usize(..ledger.open.len())).unwrap().clone();
                    let sent = Sent { to: format!("@{destination}"), departures, ..Sent::default() };
                    ledger.messages.insert(token.clone(), sent);
                    ledger.count("direct messages");
                    json!({"action": "sendMessage", "destinationUserId": destination, "body": token, "id": token})
                }
                5..7 => {
                    let topic = topic();
                    let sent = Sent { to: topic.clone(), departures, ..Sent::default() };
                    ledger.messages.insert(token.clone(), sent);
                    ledger.count("topic messages");
                    json!({"type": "message", "topic": topic, "message": token, "id": token})
                }
                7..9 => {
                    let topic = topic();
                    topics.insert(topic.clone());
                    ledger.count("subscribes");
                    json!({"type": "subscribe", "topic": topic, "id": format!("{SUBSCRIPTION}{topic}")})
                }
                _ => {
                    // The topic stays in `topics` until the client leaves: a message may still be on its way.
                    let topic = topics.first().cloned().unwrap_or_else(topic);
                    ledger.stops_listening(user, [&topic]);
                    ledger.unsubscribed.insert((user.to_owned(), topic.clone()));
                    ledger.count("unsubscribes");
                    json!({"type": "unsubscribe", "topic": topic, "id": "unsubscribe"})
                }
            }
        };
        client.send(frame).await;
    }

    async fn leave(&self, user: &str, mut client: Client, topics: &BTreeSet<String>) {
        {
            let mut ledger = self.ledger();
            ledger.count("disconnects");
            ledger.open.remove(user);
            ledger.stops_listening(user, topics);
            ledger.departures.push((user.to_owned(), topics.clone()));
        }
        client.socket.close(None).await.unwrap();
        while let Some(Ok(message)) = client.socket.next().await {
            if let Message::Text(frame) = message {
                self.received(user, &frame);
            }
        }
    }

    /// Sends a ping and reads until its pong. Sends it again when a killed function causes an error, and when no answer
    /// comes: a gone fault tells the function that its sender has left.
    async fn drain(&self, user: &str, client: &mut Client) {
        let _permit = self.pings.acquire().await.unwrap();
        let id = format!("ping-{}", self.ledger().number());
        let ping = json!({"type": "ping", "id": id});
        client.send(ping.clone()).await;
        loop {
            let next = tokio::time::timeout(ANSWER_PATIENCE, client.next_text());
            let Ok(frame) = next.await else {
                self.ledger().count("pings sent again");
                client.send(ping.clone()).await;
                continue;
            };
            let value: Value = serde_json::from_str(&frame).unwrap();
            if value == json!({"type": "pong", "id": id}) {
                return;
            }
            // If this answers another frame, there will be two pongs.
            let faults = ["Internal server error", "Endpoint request timed out", "Too Many Requests"];
            if faults.contains(&value["message"].as_str().unwrap_or("")) {
                client.send(ping.clone()).await;
            }
            self.received(user, &frame);
        }
    }

    fn received(&self, user: &str, frame: &str) -> Received {
        let frame: Value = serde_json::from_str(frame).unwrap();
        let mut ledger = self.ledger();
        let token = frame["body"].as_str().or(frame["payload"]["data"].as_str());
        if let Some(token) = token {
            let seen = ledger.messages.get_mut(token).unwrap().receivers.entry(user.to_owned()).or_default();
            *seen += 1;
            let is_again = *seen > 1;
            ledger.count(if is_again { "frames delivered again" } else { "frames delivered" });
            return Received::Message;
        }
        match frame["type"].as_str() {
            Some("ack") => {
                ledger.count("acknowledgements");
                if let Some(topic) = frame["id"].as_str().and_then(|id| id.strip_prefix(SUBSCRIPTION)) {
                    ledger.starts_listening(user, topic);
                }
                let sent = frame["id"].as_str().and_then(|id| ledger.messages.get_mut(id));
                if let Some(sent) = sent {
                    sent.acknowledged = Some(frame["delivered"].as_u64().unwrap());
                }
            }
            Some("pong") => ledger.count("pongs once more"),
            Some("error") => match frame["code"].as_str() {
                Some("busy") => ledger.count("answers: busy"),
                Some("user_offline") => ledger.count("answers: user offline"),
                Some("unidentified") => ledger.count("answers: unidentified (forgotten by a gone fault)"),
                _ => panic!("{frame}"),
            },
            None if frame["message"] == "Internal server error" => ledger.count("answers: internal server error"),
            None if frame["message"] == "Endpoint request timed out" => ledger.count("answers: timed out"),
            None if frame["message"] == "Too Many Requests" => ledger.count("answers: too many requests"),
            _ => panic!("{frame}"),
        }
        Received::Answer
    }

    /// Prints the counts, and returns the messages that reached fewer receivers than was acknowledged.
    fn account_for_frames(&self) -> Vec<String> {
        let ledger = self.ledger();
        for (what, count) in &ledger.counts {
            println!("{count:>8} {what}");
        }
        let mut broken = Vec::new();
        let (mut promised, mut left) = (0, 0);
        for (token, sent) in &ledger.messages {
            let Some(acknowledged) = sent.acknowledged else { continue };
            promised += acknowledged;
            let received = u64::try_from(sent.receivers.len()).unwrap();
            let is_receiver = |(user, topics): &&(String, BTreeSet<String>)| {
                !sent.receivers.contains_key(user) && (sent.to == format!("@{user}") || topics.contains(&sent.to))
            };
            let gone = ledger.departures[sent.departures..].iter().filter(is_receiver).count();
            let missing = acknowledged.saturating_sub(received);
            left += missing;
            if missing > u64::try_from(gone).unwrap() {
                broken
                    .push(format!("{token} to {}: {acknowledged} promised, {received} arrived, {gone} left", sent.to));
            }
        }
        println!("{promised:>8} deliveries acknowledged, {left} of them to receivers that were leaving");
        broken
    }

    /// Checks that every event has arrived at its listeners. Listeners that are no longer subscribed do not count: a gone
    /// fault tells a function that they have left.
    async fn account_for_events(&self, stack: &Stack) {
        let connections = stack.rows("connections").await;
        let users: BTreeMap<_, _> = connections
            .iter()
            .filter_map(|row| Some((text(row, "connectionId"), row.get("userId")?.as_s().unwrap().clone())))
            .collect();
        let topics = stack.rows("topics").await;
        let subscribed: BTreeSet<_> = topics
            .iter()
            .filter_map(|row| Some((text(row, "topic"), users.get(&text(row, "connectionId"))?.clone())))
            .collect();

        let ledger = self.ledger();
        let (mut heard, mut unheard, mut forgotten, mut missed) = (0, 0, BTreeSet::new(), 0);
        for (event, sent) in ledger.events() {
            let listeners = sent.listeners.len() - sent.missing().count();
            for user in sent.missing() {
                if subscribed.contains(&(sent.to.clone(), user.clone())) {
                    println!("{user} did not get {event}");
                    missed += 1;
                } else {
                    forgotten.insert(user);
                }
            }
            heard += listeners;
            if sent.receivers.is_empty() {
                unheard += 1;
                let event = format!("\"event.id\":\"{event}\"");
                let lines = stack.log(&["publish |", "\"published\"", &event, "\"delivered\":0"]);
                assert!(!lines.is_empty(), "lost: {:?}", stack.log(&[&event]));
            }
        }
        let faults = stack.log(&["fault | gone"]).len();
        println!("{heard:>8} times a listener had to get an event and got it");
        println!(
            "{unheard:>8} events without any receiver; {} listeners forgotten by {faults} gone faults",
            forgotten.len()
        );
        println!("{missed:>8} frames that two gone faults cost a listener who stays subscribed");
        assert!(forgotten.len() <= faults, "{forgotten:?}");
        assert!(missed <= faults / 2, "{missed} frames are missing after {faults} gone faults");
    }

    /// Checks that every row belongs to an open connection, or that a fault explains it and a post heals it.
    async fn account_for_rows(&self, stack: &Stack) {
        let explained_closed = stack.log(&["fault | lost-disconnect"]).len() + failures(stack, "$disconnect");
        let explained_refused = failures(stack, "$connect");
        let stale = self.stale(stack).await;
        let refused: BTreeSet<_> = self.ledger().refused.intersection(&stale.users).cloned().collect();
        let closed = stale.connections.len() - refused.len();
        println!("{:>8} rows of {closed} closed connections and {} refused ones", stale.rows, refused.len());
        println!("{explained_closed:>8} $disconnects lost or failed, {explained_refused} $connects failed");
        assert!(closed <= explained_closed, "{closed} closed connections have rows: {stale:#?}");
        assert!(refused.len() <= explained_refused, "{} refused connections have rows: {stale:#?}", refused.len());

        let deadline = Instant::now() + HEALING;
        let mut posts = 0;
        let mut left = stale;
        let (_, mut healer) = self.connect().await;
        while left.rows > 0 {
            assert!(Instant::now() < deadline, "not healed: {left:#?}");
            for user in &left.users {
                let frame = json!({"action": "sendMessage", "destinationUserId": user, "body": "anybody?", "id": "h"});
                self.posts(&mut healer, frame).await;
                posts += 1;
            }
            for topic in &left.topics {
                let message = self.ledger().number();
                let token = format!("message-{message}");
                let sent = Sent { to: topic.clone(), ..Sent::default() };
                self.ledger().messages.insert(token.clone(), sent);
                let frame = json!({"type": "message", "topic": topic, "message": token, "id": token});
                self.posts(&mut healer, frame).await;
                posts += 1;
            }
            left = self.stale(stack).await;
        }
        println!("{posts:>8} messages to them, and every row belongs to an open connection");
    }

    /// Sends a frame that posts to stale rows, and waits for an answer. A gone fault may cost the answer, and the next round
    /// posts to the same rows.
    async fn posts(&self, healer: &mut Client, frame: Value) {
        healer.send(frame).await;
        if tokio::time::timeout(ANSWER_PATIENCE, healer.next_text()).await.is_err() {
            self.ledger().count("answers that never came");
        }
    }

    /// The rows whose connection is not open, according to the gateway.
    async fn stale(&self, stack: &Stack) -> Stale {
        let rows = [stack.rows("connections").await, stack.rows("topics").await].concat();
        let management = stack.management().await;
        let ids: BTreeSet<_> = rows.iter().map(|row| text(row, "connectionId")).collect();
        let asked = futures_util::stream::iter(ids).map(async |id| {
            let found = management.get_connection().connection_id(&id).send().await;
            (found.is_err_and(|error| error.as_service_error().unwrap().is_gone_exception()), id)
        });
        let gone: BTreeSet<_> =
            asked.buffer_unordered(16).filter_map(async |(is_gone, id)| is_gone.then_some(id)).collect().await;
        let mut stale = Stale::default();
        for row in rows.iter().filter(|row| gone.contains(&text(row, "connectionId"))) {
            stale.rows += 1;
            stale.connections.insert(text(row, "connectionId"));
            let topic = row.get("topic").map(|topic| topic.as_s().unwrap().as_str());
            match (row.get("userId"), topic.map(|topic| (topic, topic.strip_prefix('@')))) {
                (_, Some((_, Some(user)))) => stale.users.insert(user.to_owned()),
                (_, Some((topic, None))) => stale.topics.insert(topic.to_owned()),
                (Some(user), None) => stale.users.insert(user.as_s().unwrap().clone()),
                (None, None) => panic!("{row:?}"),
            };
        }
        stale
    }
}

/// Rows of connections that are not open.
#[derive(Debug, Default)]
struct Stale {
    rows: usize,
    connections: BTreeSet<String>,
    /// The users whose addresses they are.
    users: BTreeSet<String>,
    /// The topics of their subscriptions.
    topics: BTreeSet<String>,
}

/// How many events of a route have failed: the function failed, was throttled or took too long.
fn failures(stack: &Stack, route_key: &str) -> usize {
    stack.log(&[&format!("gateway | {route_key} failed, request ")]).len()
}

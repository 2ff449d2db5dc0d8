//! The benchmark: what events cost, in calls, bytes and CPU time. `make bench` runs it on release builds of the functions,
//! in the local stack of `make run`, and compares that with a release build of it. `cargo test` compiles it and runs nothing, because there is no `--run`.
//!
//! CPU time is that of the processes that serve the events, so it does not depend on what else the machine does. Each is
//! also given as a multiple of what an event costs a function that answers at once. Wall times hold for this machine only.
//! A run of its own counts calls and bytes between the functions and AWS.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark prints, and fails where it stands")]

mod instructions;
mod shares;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::future::join_all;
use serde_json::{Value, json};
use switchboard_tests::client::Client;
use switchboard_tests::proxy::Proxy;
use switchboard_tests::stack::{Stack, binaries, children, command_of, root, table_name};

/// How many events are served before the measured ones, so that everything is warm.
const WARM_UP: usize = 20;

/// Subscribers of the large topic.
const MANY: usize = 100;

/// The stack accepts more connections a second than AWS, and the functions more frames of one connection than by default.
const FAST: [&str; 4] = ["--connection-rate", "100000", "--env", "MAX_FRAMES_PER_SECOND=0"];

/// The argument for the functions that are measured.
fn functions() -> [&'static str; 2] {
    static FOLDER: LazyLock<String> = LazyLock::new(|| binaries().to_str().unwrap().to_owned());
    ["--binaries", &FOLDER]
}

/// How many clients publish at the same time, and how many messages each sends, one after the other.
const WRITERS: [usize; 4] = [1, 4, 16, 64];
const MESSAGES: usize = 20;

/// How many connections are only open, and how many handshakes run at once.
const IDLE: usize = 2048;
const HANDSHAKES: usize = 32;

/// How many clients listen to a topic, and how many send direct messages at the same time, in the local stack of either build.
const LISTENERS: usize = 200;
const SENDERS: usize = 32;

/// How many messages come at once when no environment of their function is started.
const BURST: usize = 1000;

/// The lines of the report so far.
static REPORT: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Prints a line, and keeps it for the report.
macro_rules! say {
    ($($part:tt)*) => {
        $crate::keep(format!($($part)*))
    };
}
pub(crate) use say;

fn keep(line: String) {
    println!("{line}");
    REPORT.lock().unwrap().push(line);
}

/// The file that has the report of the last run.
const REPORT_FILE: &str = "tests/bench/README.md";

/// A machine that others use takes longer. With more than this load for each processor the times are no good.
const IDLE_LOAD: f64 = 0.5;

/// Puts the report into the README beside this file, below its line `## The last run`.
fn write_report(load: f64) {
    let output = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let cpu_info = fs::read_to_string("/proc/cpuinfo").unwrap();
    let model = cpu_info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("", |(_, model)| model);
    let (date, commit) = (output("date", &["-u", "+%Y-%m-%d"]), output("git", &["describe", "--always", "--dirty"]));
    let (cpus, rustc) = (output("nproc", &[]), output("rustc", &["--version"]));
    let file = root().join(REPORT_FILE);
    let text = fs::read_to_string(&file).unwrap();
    let (before, _) = text.split_once("## The last run").unwrap();
    let lines = REPORT.lock().unwrap().join("\n");
    let report = format!(
        "{before}## The last run\n\n{date}, commit {commit}, {cpus} processors of the model {model}, {rustc}. The load was {load:.1} when it \
         began.\n\n```text\n{lines}\n```\n"
    );
    fs::write(file, report).unwrap();
}

/// The average number of processes that wanted to run in the last minute.
fn load() -> f64 {
    fs::read_to_string("/proc/loadavg").unwrap().split(' ').next().unwrap().parse().unwrap()
}

/// Fills a folder with the functions of another one. A script takes the place of `binary`, and starts it.
fn wrap(folder: &Path, functions: &Path, binary: &str, script: impl Fn(&Path) -> String) {
    for function in fs::read_dir(functions).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
        let to = folder.join(function.file_name().unwrap());
        if function.ends_with(binary) {
            fs::write(&to, script(&function)).unwrap();
            fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).unwrap();
        } else {
            symlink(&function, to).unwrap();
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let asks_for = |flag| std::env::args().any(|argument| argument == flag);
    if asks_for("--instructions") {
        let words: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
        return instructions::run(asks_for("--record"), &words.join(" ")).await;
    }
    if asks_for("--shares") {
        shares::run().await;
        return ExitCode::SUCCESS;
    }
    if !asks_for("--run") {
        println!("the benchmark runs with `make bench`");
        return ExitCode::SUCCESS;
    }
    let load = load();
    if load > IDLE_LOAD * std::thread::available_parallelism().unwrap().get() as f64 {
        say!(
            "THE MACHINE IS BUSY: its load is {load:.1}. Counts and CPU times are right, and times that clients wait are not.\n"
        );
    }
    say!("{:42} {:>11} {:>7} {:>14} {:>11} {:>11}", "", "CPU", "x bare", "of the stack", "p50", "p99");
    let bare = bare().await;
    bare.print("a function that does nothing", &bare);
    let stack = Stack::with(&[&functions()[..], &FAST].concat()).await;
    let mut room = Room::open(&stack, MANY).await;
    let mut costs = Vec::new();
    for event in EVENTS {
        let cost = room.cost(event).await;
        cost.print(&event.name(), &bare);
        costs.push((event, cost));
    }
    drop(stack);
    let cost = |event| &costs.iter().find(|(found, _)| *found == event).unwrap().1;
    cost(Event::KeptToOne).compare("history, per message", cost(Event::MessageToOne));
    cost(Event::KeptAndAcknowledged).compare("history, per message with an ack", cost(Event::MessageAcknowledged));
    say!("\n{:42} {:>11} {:>11} {:>13}", "first event, start included", "CPU", "memory", "binary");
    starts().await;
    say!("\n{:42} {:>9} {:>8} {:>9} {:>9}", "per event", "DynamoDB", "posts", "bytes", "logged");
    calls().await;
    say!("\n{:42} {:>9} {:>11} {:>11} {:>9}", "DynamoDB answers in 5 ms", "DynamoDB", "p50", "p99", "x 1");
    writers().await;
    say!("\n{:53} {:>11} {:>14}", "the local stack, as built by", "make run", "cargo install");
    local_stack().await;
    say!("");
    shares::run().await;
    write_report(load);
    ExitCode::SUCCESS
}

/// What is measured: from the client that causes it to the one that sees its effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Connect,
    Disconnect,
    Ping,
    Subscribe,
    Unsubscribe,
    SendMessage,
    MessageToOne,
    MessageAcknowledged,
    MessageToMany,
    PutItem,
    KeptToOne,
    KeptAndAcknowledged,
    KeptItem,
    /// With the number of messages that it missed.
    Resume(usize),
}

const EVENTS: [Event; 16] = [
    Event::Connect,
    Event::Disconnect,
    Event::Ping,
    Event::Subscribe,
    Event::Unsubscribe,
    Event::SendMessage,
    Event::MessageToOne,
    Event::MessageAcknowledged,
    Event::MessageToMany,
    Event::PutItem,
    Event::KeptToOne,
    Event::KeptAndAcknowledged,
    Event::KeptItem,
    Event::Resume(1),
    Event::Resume(100),
    Event::Resume(1000),
];

impl Event {
    fn name(self) -> String {
        match self {
            Self::Connect => "$connect of a user".to_owned(),
            Self::Disconnect => "$disconnect of a user".to_owned(),
            Self::Ping => "ping".to_owned(),
            Self::Subscribe => "subscribe, acknowledged".to_owned(),
            Self::Unsubscribe => "unsubscribe, acknowledged".to_owned(),
            Self::SendMessage => "sendMessage to one connection".to_owned(),
            Self::MessageToOne => "message to 1 subscriber".to_owned(),
            Self::MessageToMany => format!("message to {MANY} subscribers"),
            Self::PutItem => "an item in the events table, 1 subscriber".to_owned(),
            Self::MessageAcknowledged => "the same, acknowledged".to_owned(),
            Self::KeptToOne => "message that is kept, to 1 subscriber".to_owned(),
            Self::KeptAndAcknowledged => "the same, acknowledged".to_owned(),
            Self::KeptItem => "an item that is kept, 1 subscriber".to_owned(),
            Self::Resume(missed) => format!("resume of {missed} missed message(s)"),
        }
    }

    /// The binary that serves it.
    fn binary(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Disconnect => "disconnect",
            Self::SendMessage => "send-message",
            Self::PutItem | Self::KeptItem => "publish",
            _ => "default",
        }
    }

    /// The key of its function in the serverless.yml.
    fn function(self) -> &'static str {
        if self == Self::SendMessage { "sendMessage" } else { self.binary() }
    }

    /// The last line that its function logs for it contains this.
    fn logged(self) -> [String; 2] {
        [format!("{} |", self.function()), "duration_ms".to_owned()]
    }

    /// How often it is measured. A stream is polled four times a second.
    fn count(self) -> usize {
        match self {
            Self::PutItem | Self::KeptItem => 40,
            Self::MessageToMany | Self::Resume(100) => 100,
            Self::Resume(1000) => 20,
            _ => 500,
        }
    }
}

/// A stack with a client that sends, one that listens to the topics `one` and `room.one`, and many that listen to `many`.
struct Room<'a> {
    stack: &'a Stack,
    dynamodb: aws_sdk_dynamodb::Client,
    sender: Client,
    listener: Client,
    many: Vec<Client>,
    /// A client that has come to leave again.
    guests: Vec<Client>,
    /// The number in the latest id.
    next: usize,
    /// The epochs of the topics that clients resume.
    epochs: Vec<(usize, Value)>,
}

impl<'a> Room<'a> {
    /// Opens a room with so many listeners to `many`. Without any, there is also nothing to resume.
    async fn open(stack: &'a Stack, many_listen: usize) -> Self {
        let join = async |user: &str, topic: &str| {
            let mut client = stack.connect(&format!("?userId={user}")).await;
            client.ask(json!({"type": "subscribe", "topic": topic, "id": "s"})).await;
            client
        };
        let mut many = Vec::new();
        for user in 0..many_listen {
            many.push(join(&format!("many-{user}"), "many").await);
        }
        let (mut sender, mut listener) = (join("1", "sender").await, join("2", "one").await);
        listener.ask(json!({"type": "subscribe", "topic": "room.one", "id": "s"})).await;
        let mut epochs = Vec::new();
        for missed in EVENTS.into_iter().filter_map(|event| match event {
            Event::Resume(missed) if many_listen > 0 => Some(missed),
            _ => None,
        }) {
            // A frame has at most 100 messages.
            for first in (0..missed).step_by(100) {
                let messages = vec!["hello there!"; 100.min(missed - first)];
                let frame =
                    json!({"type": "message", "topic": resumed(missed), "messages": messages, "id": first.to_string()});
                let ack = sender.ask(frame).await;
                if first == 0 {
                    epochs.push((missed, ack["epoch"].clone()));
                }
            }
        }
        let dynamodb = stack.dynamodb().await;
        Self { stack, dynamodb, sender, listener, many, guests: Vec::new(), next: 0, epochs }
    }

    /// Sends a message, and waits for its ack and its delivery.
    async fn acknowledged(&mut self, topic: &str) {
        self.next += 1;
        let id = self.next.to_string();
        self.sender.ask(json!({"type": "message", "topic": topic, "message": "hello there!", "id": id})).await;
        self.listener.next().await;
    }

    /// Makes an event happen, and returns when its effect is there.
    async fn happens(&mut self, event: Event) {
        match event {
            Event::Connect => {
                self.next += 1;
                self.guests.push(self.stack.connect(&format!("?userId=guest-{}", self.next)).await);
            }
            Event::Disconnect => self.guests.pop().unwrap().close().await,
            Event::Ping => drop(self.sender.ask(json!({"type": "ping"})).await),
            Event::Subscribe => {
                drop(self.sender.ask(json!({"type": "subscribe", "topic": "on-and-off", "id": "s"})).await);
            }
            Event::Unsubscribe => {
                drop(self.sender.ask(json!({"type": "unsubscribe", "topic": "on-and-off", "id": "s"})).await);
            }
            Event::SendMessage => {
                self.sender
                    .send(json!({"action": "sendMessage", "destinationUserId": "2", "body": "hello there!"}))
                    .await;
                self.listener.next().await;
            }
            Event::MessageToOne => {
                self.sender.send(json!({"type": "message", "topic": "one", "message": "hello there!"})).await;
                self.listener.next().await;
            }
            Event::MessageToMany => {
                self.sender.send(json!({"type": "message", "topic": "many", "message": "hello there!"})).await;
                join_all(self.many.iter_mut().map(Client::next)).await;
            }
            Event::PutItem | Event::KeptItem => {
                self.next += 1;
                let topic = if event == Event::PutItem { "one" } else { "room.one" };
                put_item(&self.dynamodb, topic, &self.next.to_string()).await;
                self.listener.next().await;
            }
            Event::MessageAcknowledged => self.acknowledged("one").await,
            Event::KeptAndAcknowledged => self.acknowledged("room.one").await,
            Event::KeptToOne => {
                self.sender.send(json!({"type": "message", "topic": "room.one", "message": "hello there!"})).await;
                self.listener.next().await;
            }
            Event::Resume(missed) => {
                let epoch = &self.epochs.iter().find(|(of, _)| *of == missed).unwrap().1;
                let after = json!({"epoch": epoch, "seq": 0});
                let frame = json!({"type": "subscribe", "topic": resumed(missed), "after": after, "id": "s"});
                let mut answer = self.sender.ask(frame).await;
                let mut got = 0;
                while answer["type"] == "history" {
                    got += answer["messages"].as_array().unwrap().len();
                    answer = self.sender.next().await;
                }
                assert_eq!((got, &answer["recovered"]), (missed, &json!(true)));
            }
        }
    }

    /// Makes an event happen this often, one after the other, and returns how long each took.
    async fn repeat(&mut self, event: Event, count: usize) -> Vec<Duration> {
        let [function, last] = event.logged();
        let before = self.stack.log(&[&function, &last]).len();
        let mut times = Vec::new();
        for _ in 0..count {
            let start = Instant::now();
            self.happens(event).await;
            times.push(start.elapsed());
        }
        self.stack.logged(before + count, &[&function, &last]).await;
        times
    }

    async fn cost(&mut self, event: Event) -> Cost {
        self.repeat(event, WARM_UP).await;
        let before = Usage::of(self.stack, event.binary()).await;
        let times = self.repeat(event, event.count()).await;
        Usage::of(self.stack, event.binary()).await.since(&before, times)
    }
}

/// The topic whose messages a client has missed.
fn resumed(missed: usize) -> String {
    format!("room.{missed}")
}

/// The CPU time of two processes so far: that of a function, if it is still the same one, and that of the stack.
#[derive(Debug)]
struct Usage {
    function: Duration,
    gateway: Duration,
}

impl Usage {
    async fn of(stack: &Stack, binary: &str) -> Self {
        let mut usage = Self { function: Duration::ZERO, gateway: cpu_time(stack.process_id()) };
        for (process, command) in children(stack.process_id()).await {
            if command == binary {
                usage.function += cpu_time(process);
            }
        }
        usage
    }

    fn since(&self, before: &Self, mut times: Vec<Duration>) -> Cost {
        times.sort_unstable();
        let count = u32::try_from(times.len()).unwrap();
        Cost {
            function: (self.function - before.function) / count,
            gateway: (self.gateway - before.gateway) / count,
            p50: times[times.len() / 2],
            p99: times[times.len() * 99 / 100],
        }
    }
}

/// The average cost of one event, and how long it takes.
#[derive(Debug)]
struct Cost {
    function: Duration,
    gateway: Duration,
    p50: Duration,
    p99: Duration,
}

impl Cost {
    fn print(&self, name: &str, bare: &Self) {
        let ratio = self.function.as_secs_f64() / bare.function.as_secs_f64();
        let [function, gateway, p50, p99] =
            [self.function, self.gateway, self.p50, self.p99].map(|time| time.as_secs_f64() * 1e3);
        say!("{name:42} {function:>8.3} ms {ratio:>7.1} {gateway:>11.3} ms {p50:>8.2} ms {p99:>8.2} ms");
    }
}

impl Cost {
    /// Prints how many times as much as another event it costs.
    fn compare(&self, name: &str, other: &Self) {
        let ratio = |of: fn(&Self) -> Duration| of(self).as_secs_f64() / of(other).as_secs_f64();
        let (cpu, stack) = (ratio(|cost| cost.function), ratio(|cost| cost.gateway));
        let (p50, p99) = (ratio(|cost| cost.p50), ratio(|cost| cost.p99));
        say!("{name:42} {cpu:>10.2}x {stack:>21.2}x {p50:>10.2}x {p99:>10.2}x");
    }
}

/// The CPU time of all threads of a process, to the nanosecond.
fn cpu_time(process: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{process}/task")).expect("only Linux tells the CPU time of a process");
    let of_thread = |thread: fs::DirEntry| {
        let times = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
        times.split_whitespace().next().map_or(0, |nanoseconds| nanoseconds.parse().unwrap())
    };
    Duration::from_nanos(threads.map(|thread| of_thread(thread.unwrap())).sum())
}

/// A line of `/proc/{process}/status` in KiB: `VmHWM` is the most memory so far, `VmRSS` the memory now.
fn memory_kib(process: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The cost of an event for a function that answers at once, on a route that sends its answer to the client.
async fn bare() -> Cost {
    let stack = Stack::with(&[&functions()[..], &["--config", "tests/fixture/serverless.yml"]].concat()).await;
    let mut client = Client::connect(&format!("ws://{}/test?name=polly", stack.gateway)).await.unwrap();
    let frame = json!({"service": "duet", "do": "respond", "response": {"statusCode": 200, "body": "{}"}});
    let mut repeat = async |count: usize| {
        let mut times = Vec::new();
        for _ in 0..count {
            let start = Instant::now();
            client.ask(frame.clone()).await;
            times.push(start.elapsed());
        }
        times
    };
    repeat(WARM_UP).await;
    let before = Usage::of(&stack, "fixture").await;
    let times = repeat(500).await;
    Usage::of(&stack, "fixture").await.since(&before, times)
}

/// The cost until a function has served its first event.
async fn starts() {
    let stack = Stack::with(&functions()).await;
    let mut client = stack.connect("?userId=1").await;
    started(&stack, Event::Connect).await;
    client.hears_nothing().await;
    started(&stack, Event::Ping).await;
    client.ask(json!({"action": "sendMessage", "destinationUserId": "1", "body": "hello there!"})).await;
    started(&stack, Event::SendMessage).await;
    put_item(&stack.dynamodb().await, "INITIAL_CONNECTION", "1").await;
    client.next().await;
    started(&stack, Event::PutItem).await;
    client.close().await;
    started(&stack, Event::Disconnect).await;
}

async fn started(stack: &Stack, event: Event) {
    let [function, last] = event.logged();
    stack.logged(1, &[&function, &last]).await;
    let binary = event.binary();
    let (process, _) = children(stack.process_id()).await.into_iter().find(|(_, command)| command == binary).unwrap();
    let size = fs::metadata(binaries().join(binary)).unwrap().len();
    say!(
        "{binary:42} {:>8.1} ms {:>8.1} MB {:>10.1} MB",
        cpu_time(process).as_secs_f64() * 1e3,
        memory_kib(process, "VmHWM") as f64 / 1e3,
        size as f64 / 1e6,
    );
}

/// Publishes as any backend does.
async fn put_item(dynamodb: &aws_sdk_dynamodb::Client, topic: &str, id: &str) {
    let string = |text: &str| AttributeValue::S(text.to_owned());
    let item = dynamodb.put_item().table_name(table_name("events"));
    let item = item.item("topic", string(topic)).item("id", string(id));
    item.item("data", string("hello there!")).send().await.unwrap();
}

/// The calls and bytes that a function exchanges with AWS for an event.
async fn calls() {
    let (proxy, stack) = Proxy::in_front(&[&functions()[..], &FAST].concat(), |_| None).await;
    let mut room = Room::open(&stack, MANY).await;
    for event in EVENTS {
        room.repeat(event, 1).await;
        let name = format!("{} |", event.function());
        let logged = |stack: &Stack| stack.log(&[&name]).iter().map(|line| line.len() - name.len()).sum::<usize>();
        let before = logged(&stack);
        proxy.take();
        proxy.take_bytes();
        room.repeat(event, 1).await;
        let calls = proxy.take();
        let posts = calls.iter().filter(|call| *call == "POST").count();
        say!(
            "{:42} {:>9} {posts:>8} {:>9} {:>9}",
            event.name(),
            calls.len() - posts,
            proxy.take_bytes(),
            logged(&stack) - before
        );
    }
}

/// How long messages take when several clients publish at the same time: all to one topic, and then each to its own topic. The
/// second run shows how fast the machine is. If the first one takes longer, the shared topic is the cause.
async fn writers() {
    let environments = ["--max-environments", "64"];
    let (proxy, stack) = Proxy::in_front(&[&functions()[..], &FAST, &environments].concat(), |_| None).await;
    for operation in ["GetItem", "UpdateItem", "PutItem", "Query"] {
        proxy.delay(operation, Duration::from_millis(5));
    }
    let mut clients = Vec::new();
    for user in 0..WRITERS[WRITERS.len() - 1] {
        clients.push(stack.connect(&format!("?userId={user}")).await);
    }
    let mut first = [Duration::ZERO; 2];
    let mut next = 0;
    // The first round starts the execution environments.
    for (round, count) in [WRITERS[WRITERS.len() - 1]].into_iter().chain(WRITERS).enumerate() {
        for (kind, name) in ["to one topic", "each to a topic of its own"].into_iter().enumerate() {
            proxy.take();
            next += 1;
            let tasks = clients[..count].iter_mut().enumerate().map(async |(index, client)| {
                let topic = if kind == 0 { "room.one".to_owned() } else { format!("room.own-{index}") };
                let mut times = Vec::new();
                for message in 0..MESSAGES {
                    let id = format!("{next}-{message}");
                    let start = Instant::now();
                    client.ask(json!({"type": "message", "topic": topic, "message": "hello there!", "id": id})).await;
                    times.push(start.elapsed());
                }
                times
            });
            let mut times = join_all(tasks).await.concat();
            if round == 0 {
                continue;
            }
            times.sort_unstable();
            let calls = proxy.take().into_iter().filter(|operation| operation != "POST").count();
            let (p50, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
            if round == 1 {
                first[kind] = p99;
            }
            say!(
                "{:42} {:>9.2} {:>8.2} ms {:>8.2} ms {:>8.2}x",
                format!("{count} writer(s), {name}"),
                calls as f64 / times.len() as f64,
                p50.as_secs_f64() * 1e3,
                p99.as_secs_f64() * 1e3,
                p99.as_secs_f64() / first[kind].as_secs_f64(),
            );
        }
    }
}

/// What the stack itself can do, as `make run` starts it and as `cargo install` builds it.
async fn local_stack() {
    let builds = ["switchboard-local", "release/switchboard-local"];
    let mut measured = Vec::new();
    for build in builds {
        let program = binaries().join(build);
        measured.push([connections(&program).await, messages(&program).await, senders(&program).await].concat());
    }
    for ((name, debug), (_, release)) in measured[0].iter().zip(&measured[1]) {
        say!("{name:53} {debug:>11} {release:>14}");
    }
}

/// What was measured, and the value with its unit.
type Row = (String, String);

/// Starts a build of the stack.
async fn started_stack(program: &Path) -> Stack {
    Stack::run(command_of(program, &[&functions()[..], &FAST].concat())).await
}

/// A direct message.
fn direct(user: &str) -> Value {
    json!({"action": "sendMessage", "destinationUserId": user, "body": "hello there!"})
}

/// A start, handshakes, memory for connections on which nothing happens, and a cold burst.
async fn connections(program: &Path) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut keep = |name: &str, value: String| rows.push((name.to_owned(), value));
    let start = Instant::now();
    let stack = started_stack(program).await;
    keep("ready after", format!("{:.0} ms", start.elapsed().as_secs_f64() * 1e3));
    let mut sender = stack.connect("?userId=1").await;
    let before = memory_kib(stack.process_id(), "VmRSS");
    let start = Instant::now();
    let mut connections = Vec::new();
    for _ in 0..IDLE / HANDSHAKES {
        connections.extend(join_all((0..HANDSHAKES).map(|_| stack.connect(""))).await);
    }
    let rate = IDLE as f64 / start.elapsed().as_secs_f64();
    let used = memory_kib(stack.process_id(), "VmRSS") - before;
    keep(&format!("{IDLE} connections, {HANDSHAKES} at once"), format!("{rate:.0} /s"));
    keep("memory of one of them, its rows included", format!("{:.1} KB", used as f64 * 1.024 / IDLE as f64));

    let mut listener = stack.connect("?userId=2").await;
    let start = Instant::now();
    for _ in 0..BURST {
        sender.send(direct("2")).await;
    }
    for _ in 0..BURST {
        listener.next().await;
    }
    let took = start.elapsed().as_secs_f64();
    keep(&format!("{BURST} messages at once, to functions not started yet"), format!("{took:.1} s"));
    rows
}

/// How long one message takes, and one to many.
async fn messages(program: &Path) -> Vec<Row> {
    let stack = started_stack(program).await;
    let mut room = Room::open(&stack, LISTENERS).await;
    let mut rows = Vec::new();
    for (event, name) in [
        (Event::SendMessage, Event::SendMessage.name()),
        (Event::MessageToMany, format!("message to {LISTENERS} subscribers")),
    ] {
        room.repeat(event, WARM_UP).await;
        let mut times = room.repeat(event, event.count()).await;
        times.sort_unstable();
        rows.push((name, format!("{:.2} ms", times[times.len() / 2].as_secs_f64() * 1e3)));
    }
    rows
}

/// How many direct messages many clients send, and the memory of all processes then.
async fn senders(program: &Path) -> Vec<Row> {
    let stack = started_stack(program).await;
    let mut clients = join_all((0..SENDERS).map(|user| {
        let stack = &stack;
        async move { (user.to_string(), stack.connect(&format!("?userId={user}")).await) }
    }))
    .await;
    let mut exchange = async || {
        let tasks = clients.iter_mut().map(async |(user, client)| {
            for _ in 0..MESSAGES {
                client.ask(direct(user)).await;
            }
        });
        let start = Instant::now();
        join_all(tasks).await;
        (SENDERS * MESSAGES) as f64 / start.elapsed().as_secs_f64()
    };
    exchange().await;
    let rate = exchange().await;
    let functions = children(stack.process_id()).await.into_iter().map(|(process, _)| process);
    let processes: Vec<_> = functions.chain([stack.process_id()]).collect();
    let memory: u64 = processes.iter().map(|&process| shared_kib(process)).sum();
    vec![
        (format!("{SENDERS} clients send themselves direct messages"), format!("{rate:.0} /s")),
        ("memory of all processes then".to_owned(), format!("{:.0} MB", memory as f64 * 1.024e-3)),
    ]
}

/// The memory of a process in KiB. A page that several processes share counts as a part in each.
fn shared_kib(process: u32) -> u64 {
    let sums = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).unwrap_or_default();
    let line = sums.lines().find(|line| line.starts_with("Pss:")).unwrap_or("Pss: 0 kB");
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

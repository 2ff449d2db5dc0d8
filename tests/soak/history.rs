//! Topics with history on real processes and sockets: clients reconnect, functions die, answers are lost. At the end every
//! subscriber must have applied each message once, in order, and the table must hold one message for each id.
//!
//! `lost_acks` is about senders: they repeat what they got no ack for. `cut_sockets` is about subscribers: they lose their
//! sockets and resume. After the second one the test removes rows as if they had expired, and asks for them: the answer must
//! be `"recovered":false`, or hold everything.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use switchboard_tests::client::Client;
use switchboard_tests::stack::{PATIENCE, Row, Stack, number, table_name, text};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

use super::application::Application;
use super::subscriber::{Run, Subscriber};

/// Topics that each client listens to.
const TOPICS_EACH: usize = 2;

/// There is one application on the Rust client for so many subscribers.
const SUBSCRIBERS_FOR_AN_APPLICATION: usize = 4;

/// One of so many messages is an event of a backend, and one of so many frames has several messages.
const EVENTS: usize = 10;
const SEVERAL: usize = 10;

/// A sender sends its frame again on a new connection when no answer came for this long.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// Handshakes under way at a time.
const HANDSHAKES: usize = 16;

/// Every fault that the stack knows and that clients can do something about, at 1 %.
const EVERYWHERE: [&str; 13] = [
    "lost-disconnect=0.01",
    "half-open=0.01",
    "gone=0.01",
    "throttle=0.01",
    "error=0.01",
    "hang=0.01",
    "internal-error=0.01",
    "reorder-messages=0.01",
    "kill=0.01",
    "dynamodb-throttle=0.01",
    "unprocessed=0.01",
    "transaction-conflict=0.01",
    "duplicate-stream-record=0.01",
];

/// A run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    /// The messages that are published, events included.
    pub(crate) messages: usize,
    pub(crate) senders: usize,
    pub(crate) subscribers: usize,
    pub(crate) topics: usize,
    /// The average life of a subscriber's socket.
    pub(crate) cut_every: Option<Duration>,
    /// The share of acks that are lost.
    lost_acks: f64,
    faults: &'static [&'static str],
    /// Whether history is cut at the end.
    is_history_cut: bool,
    /// Whether its counts are printed.
    has_report: bool,
    /// The folder of the functions' binaries.
    pub(crate) binaries: Option<&'static str>,
}

impl Settings {
    pub(crate) fn lost_acks() -> Self {
        Self {
            messages: 2_000,
            senders: 20,
            subscribers: 20,
            topics: 10,
            cut_every: None,
            lost_acks: 0.3,
            faults: &["kill=0.05", "duplicate-stream-record=0.05"],
            is_history_cut: false,
            has_report: true,
            binaries: None,
        }
    }

    pub(crate) fn cut_sockets() -> Self {
        Self {
            messages: 4_000,
            subscribers: 40,
            topics: 20,
            cut_every: Some(Duration::from_secs(5)),
            lost_acks: 0.01,
            faults: &EVERYWHERE,
            is_history_cut: true,
            ..Self::lost_acks()
        }
    }

    /// The same in a few seconds.
    pub(crate) fn small(self) -> Self {
        Self { messages: 60, senders: 8, subscribers: 8, topics: 4, has_report: false, ..self }
    }
}

/// A run's stack, as its clients need it.
#[derive(Debug)]
pub(crate) struct History {
    pub(crate) url: String,
    handshakes: Semaphore,
    pub(crate) cut_every: Option<Duration>,
    settings: Settings,
    dynamodb: aws_sdk_dynamodb::Client,
    begun: AtomicUsize,
    ledger: Mutex<Ledger>,
}

/// What the senders know.
#[derive(Debug, Default)]
struct Ledger {
    /// The messages that were acknowledged, and where they are.
    acknowledged: BTreeMap<String, Place>,
    /// The events that were put, and their topics.
    events: BTreeMap<String, String>,
    violations: Vec<String>,
    counts: BTreeMap<&'static str, usize>,
}

/// The place of a message: its topic, epoch and number.
type Place = (String, String, u64);

/// Runs it, and fails when a promise is broken.
pub(crate) async fn run(settings: Settings) {
    let faults = settings.faults.iter().flat_map(|fault| ["--fault", fault]);
    // A long run must not outlive what it publishes.
    let rules = "TOPIC_RULES=[{\"topic\":\"room.*\",\"history\":{\"hours\":24}}]";
    let environment = ["--env", "METRICS_NAMESPACE=", "--env", "MAX_FRAMES_PER_SECOND=0", "--env", rules];
    let binaries = settings.binaries.map(|folder| ["--binaries", folder]);
    // A post that hangs keeps its environment for seconds, so a run with such faults is as fast as it has environments.
    // And it keeps its batch of the events' stream, so there are several shards.
    let environments = ["--max-environments", "128", "--shards", "4"];
    let arguments = faults.chain(environment).chain(environments).chain(binaries.into_iter().flatten());
    let arguments: Vec<_> = arguments.collect();
    let stack = Stack::with(&arguments).await;
    let history = Arc::new(History {
        url: format!("ws://{}/dev", stack.gateway),
        handshakes: Semaphore::new(HANDSHAKES),
        cut_every: settings.cut_every,
        settings,
        dynamodb: stack.dynamodb().await,
        begun: AtomicUsize::new(0),
        ledger: Mutex::default(),
    });

    let (ready, goal) = (watch::Sender::new(0), watch::Sender::new(None));
    let mut subscribers = JoinSet::new();
    for index in 0..settings.subscribers {
        // Clients with neighbouring numbers share a topic.
        let topics = (0..TOPICS_EACH).map(|offset| topic((index + offset) % settings.topics));
        let subscriber = Subscriber::new(format!("subscriber-{index}"), topics);
        let (history, ready, goal) = (history.clone(), ready.clone(), goal.subscribe());
        subscribers.spawn(async move { subscriber.run(&history, ready, goal).await });
    }
    let (newest, mut applications) = (watch::Sender::new(None), JoinSet::new());
    let count = settings.subscribers.div_ceil(SUBSCRIBERS_FOR_AN_APPLICATION);
    for index in 0..count {
        let topics: Vec<_> = (0..TOPICS_EACH).map(|offset| topic((index + offset) % settings.topics)).collect();
        let (history, ready, newest) = (history.clone(), ready.clone(), newest.subscribe());
        applications.spawn(Application::run(format!("application-{index}"), topics, history, ready, newest));
    }
    progress(&mut ready.subscribe(), settings.subscribers + count * TOPICS_EACH).await;

    let began = Instant::now();
    let mut senders = JoinSet::new();
    for index in 0..settings.senders {
        let history = history.clone();
        senders.spawn(async move { Sender { user: format!("sender-{index}"), history }.run().await });
    }
    let mut report = tokio::time::interval(Duration::from_secs(30));
    report.tick().await;
    loop {
        tokio::select! {
            sender = senders.join_next() => match sender {
                Some(sender) => sender.unwrap(),
                None => break,
            },
            _ = report.tick() => println!("{} messages after {:.0} s", history.begun(), began.elapsed().as_secs_f64()),
        }
    }
    let published = began.elapsed();
    history.events_are_kept(&stack).await;
    let heads = heads(&stack).await;
    goal.send_replace(Some(heads.iter().map(|(topic, (_, last))| (topic.clone(), *last)).collect()));
    let of_topics = kept(&stack.all_rows("messages").await);
    let last = |messages: Vec<(u64, Option<String>)>| {
        messages.into_iter().rev().find_map(|(seq, message)| message.map(|_| seq)).unwrap_or_default()
    };
    newest.send_replace(Some(of_topics.into_iter().map(|(topic, messages)| (topic, last(messages))).collect()));
    let (subscribers, applications) = (subscribers.join_all().await, applications.join_all().await);
    let mut violations = history.account(&stack, &subscribers, &applications, published).await;
    if settings.is_history_cut {
        violations.extend(cut(&history, &stack).await);
    }
    assert!(violations.is_empty(), "{} broken promise(s): {violations:#?}", violations.len());
    assert_eq!(stack.log(&["stream |", "gave up"]), Vec::<String>::new());
    assert_eq!(stack.interrupt().await, Some(0));
}

/// Waits until so many have got there. It fails when nobody gets any further.
async fn progress(count: &mut watch::Receiver<usize>, all: usize) {
    while *count.borrow_and_update() < all {
        tokio::time::timeout(2 * PATIENCE, count.changed()).await.expect("nobody gets any further").unwrap();
    }
}

fn topic(index: usize) -> String {
    format!("room.{index}")
}

/// The epoch and the last number of each topic.
async fn heads(stack: &Stack) -> BTreeMap<String, (String, u64)> {
    let rows = stack.all_rows("messages").await;
    let heads = rows.iter().filter_map(|row| {
        let topic = text(row, "p").strip_prefix("h:")?.to_owned();
        Some((topic, (text(row, "epoch"), number(row, "last").try_into().unwrap())))
    });
    heads.collect()
}

/// What each topic's table has, in order: numbers, and their messages unless they are holes.
fn kept(rows: &[Row]) -> BTreeMap<String, Vec<(u64, Option<String>)>> {
    let mut topics: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for row in rows {
        let Some(topic) = text(row, "p").strip_prefix("m:").map(str::to_owned) else { continue };
        let seq: u64 = text(row, "s").split_once('/').unwrap().1.parse().unwrap();
        let message = row.get("json").map(|json| serde_json::from_str(json.as_s().unwrap()).unwrap());
        topics.entry(topic).or_default().push((seq, message));
    }
    topics.values_mut().for_each(|kept| kept.sort());
    topics
}

impl History {
    /// The messages that were begun so far.
    fn begun(&self) -> usize {
        self.begun.load(Ordering::Relaxed).min(self.settings.messages)
    }

    fn count(&self, what: &'static str) {
        *self.ledger.lock().unwrap().counts.entry(what).or_default() += 1;
    }

    /// Connects, again and again until a handshake succeeds.
    pub(crate) async fn connect(&self, user: &str) -> Client {
        let _permit = self.handshakes.acquire().await.unwrap();
        loop {
            match Client::connect(&format!("{}?userId={user}", self.url)).await {
                Ok(client) => return client,
                Err(_) => self.count("refused handshakes"),
            }
        }
    }

    /// Waits until the table has every event. It fails when no further event comes.
    async fn events_are_kept(&self, stack: &Stack) {
        let events: BTreeSet<_> = self.ledger.lock().unwrap().events.keys().cloned().collect();
        let mut missing = events.len() + 1;
        let mut deadline = Instant::now();
        loop {
            let kept = kept(&stack.all_rows("messages").await);
            let kept: BTreeSet<_> = kept.into_values().flatten().filter_map(|(_, message)| message).collect();
            let left: Vec<_> = events.difference(&kept).collect();
            if left.is_empty() {
                return;
            }
            if left.len() < missing {
                (missing, deadline) = (left.len(), Instant::now() + 2 * PATIENCE);
            }
            assert!(Instant::now() < deadline, "events are lost: {left:?}");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Prints the counts, and returns what broke a promise.
    async fn account(
        &self,
        stack: &Stack,
        subscribers: &[Subscriber],
        applications: &[Application],
        published: Duration,
    ) -> Vec<String> {
        let rows = stack.all_rows("messages").await;
        let kept = kept(&rows);
        let ledger = self.ledger.lock().unwrap();
        let mut violations = ledger.violations.clone();
        let mut counts = ledger.counts.clone();

        let mut places = BTreeMap::new();
        for (topic, messages) in &kept {
            for (seq, message) in messages {
                let Some(message) = message else {
                    *counts.entry("holes in the table").or_default() += 1;
                    continue;
                };
                if let Some(other) = places.insert(message.clone(), (topic.clone(), *seq)) {
                    violations.push(format!("{message} is kept twice: {other:?} and {topic} {seq}"));
                }
            }
        }
        for (message, (topic, _, seq)) in &ledger.acknowledged {
            if places.get(message) != Some(&(topic.clone(), *seq)) {
                violations
                    .push(format!("{message}: {topic} {seq} was acknowledged, {:?} is kept", places.get(message)));
            }
        }
        for (event, topic) in &ledger.events {
            if places.get(event).is_none_or(|(kept, _)| kept != topic) {
                violations.push(format!("the event {event} of {topic}: {:?} is kept", places.get(event)));
            }
        }
        let expected = ledger.acknowledged.len() + ledger.events.len();
        if places.len() != expected {
            violations.push(format!("{} messages are kept, not {expected}", places.len()));
        }

        let wrong = |user: &str, topic: &str, applied: &[(u64, String)]| {
            let messages = kept.get(topic).into_iter().flatten();
            let messages = messages.filter_map(|(seq, message)| Some((*seq, message.as_ref()?)));
            let is_right = messages.eq(applied.iter().map(|(seq, message)| (*seq, message)));
            (!is_right).then(|| format!("{user} did not apply {topic} as it is kept: {applied:?}"))
        };
        for subscriber in subscribers {
            violations.extend(subscriber.violations.iter().cloned());
            for (what, count) in &subscriber.counts {
                *counts.entry(what).or_default() += count;
            }
            for (topic, Run { applied, .. }) in &subscriber.runs {
                violations.extend(wrong(&subscriber.user, topic, applied));
                *counts.entry("messages applied").or_default() += applied.len();
            }
        }
        for application in applications {
            violations.extend(application.violations.iter().cloned());
            *counts.entry("connections of applications").or_default() += application.connections;
            for (topic, applied) in &application.applied {
                violations.extend(wrong(&application.user, topic, applied));
                *counts.entry("messages that applications got").or_default() += applied.len();
            }
        }

        if !self.settings.has_report {
            return violations;
        }
        println!("{:?}", self.settings);
        println!("{:>9} messages kept, {} of them events, each once", places.len(), ledger.events.len());
        for (what, count) in &counts {
            println!("{count:>9} {what}");
        }
        let mut faults: BTreeMap<String, usize> = BTreeMap::new();
        for line in stack.log(&["fault | "]) {
            let name = line.strip_prefix("fault | ").and_then(|fault| fault.split(' ').next()).map(str::to_owned);
            name.into_iter().for_each(|name| *faults.entry(name).or_default() += 1);
        }
        println!("faults: {faults:?}");
        let seconds = published.as_secs_f64();
        println!("published in {seconds:.0} s: {:.0} messages a second", places.len() as f64 / seconds);
        violations
    }
}

/// A client that publishes, and sends again what it got no ack for.
struct Sender {
    user: String,
    history: Arc<History>,
}

/// What a sender hears of a frame.
enum Answer {
    Ack(Value),
    /// The same frame may succeed now.
    Failed,
    /// The connection is of no use any more.
    Lost,
}

impl Sender {
    async fn run(&self) {
        let mut client = None;
        let all = self.history.settings.messages;
        loop {
            let several = if fastrand::usize(..SEVERAL) == 0 { fastrand::usize(2..=10) } else { 1 };
            let first = self.history.begun.fetch_add(several, Ordering::Relaxed);
            let messages: Vec<_> =
                (first..all.min(first + several)).map(|number| format!("message-{number}")).collect();
            let Some(id) = messages.first() else { return };
            let topic = topic(fastrand::usize(..self.history.settings.topics));
            if fastrand::usize(..EVENTS) == 0 {
                for event in &messages {
                    self.put_event(&topic, event).await;
                }
                continue;
            }
            let mut frame = json!({"type": "message", "topic": topic, "id": id});
            match &messages[..] {
                [message] => frame["message"] = json!(message),
                messages => frame["messages"] = json!(messages),
            }
            let (epoch, last) = self.publish(&mut client, frame).await;
            let mut ledger = self.history.ledger.lock().unwrap();
            for (seq, message) in (0..=last).rev().zip(messages.iter().rev()) {
                ledger.acknowledged.insert(message.clone(), (topic.clone(), epoch.clone(), seq));
            }
        }
    }

    /// Publishes as any backend does.
    async fn put_event(&self, topic: &str, event: &str) {
        self.history.ledger.lock().unwrap().events.insert(event.to_owned(), topic.to_owned());
        let string = |text: &str| AttributeValue::S(text.to_owned());
        let item = self.history.dynamodb.put_item().table_name(table_name("events"));
        let item = item.item("topic", string(topic)).item("id", string(event)).item("data", string(event));
        item.send().await.unwrap();
    }

    /// Sends a frame until it is acknowledged, and returns where its last message is.
    async fn publish(&self, client: &mut Option<Client>, mut frame: Value) -> (String, u64) {
        let mut promised = None;
        loop {
            let is_lost = fastrand::f64() < self.history.settings.lost_acks;
            let connected = match client {
                Some(connected) => connected,
                None => client.insert(self.history.connect(&self.user).await),
            };
            self.history.count("frames of senders");
            let is_sent = connected.socket.send(Message::text(frame.to_string())).await.is_ok();
            // A socket is closed before the ack comes, or after that.
            let answer = match is_sent && !(is_lost && fastrand::bool()) {
                true => self.answer(connected, &frame["id"]).await,
                false => Answer::Lost,
            };
            if let Answer::Ack(ack) = &answer {
                let stamp = (ack["epoch"].as_str().unwrap().to_owned(), ack["seq"].as_u64().unwrap());
                if promised.as_ref().is_some_and(|promised| *promised != stamp) {
                    let violation = format!("{frame} was promised as {promised:?}, and then {ack} came");
                    self.history.ledger.lock().unwrap().violations.push(violation);
                }
                if promised.is_some() && ack["duplicate"] != true {
                    let violation = format!("{frame} was kept before, and then {ack} came");
                    self.history.ledger.lock().unwrap().violations.push(violation);
                }
                if ack["duplicate"] == true {
                    self.history.count("acks of duplicates");
                }
                if !is_lost {
                    return stamp;
                }
                promised = Some(stamp);
            }
            if is_lost {
                self.history.count("acks lost by the test");
            }
            if is_lost || matches!(answer, Answer::Lost) {
                *client = None;
            }
            frame["again"] = json!(true);
        }
    }

    async fn answer(&self, client: &mut Client, id: &Value) -> Answer {
        loop {
            let next = tokio::time::timeout(ANSWER_PATIENCE, client.socket.next()).await;
            let Ok(Some(Ok(next))) = next else { return Answer::Lost };
            let Message::Text(text) = next else { continue };
            let frame: Value = serde_json::from_str(&text).unwrap();
            match frame["type"].as_str() {
                Some("ack") if frame["id"] == *id => return Answer::Ack(frame),
                // The ack of an earlier frame that was sent twice.
                Some("ack") => {}
                Some("error") if frame["code"] == "unidentified" => return Answer::Lost,
                Some("error") if frame["temporary"] == true => return Answer::Failed,
                // What the gateway says itself.
                None if frame.get("connectionId").is_some() => return Answer::Failed,
                _ => {
                    self.history.ledger.lock().unwrap().violations.push(format!("{} got {frame}", self.user));
                    return Answer::Lost;
                }
            }
        }
    }
}

/// The newest numbers of each topic that history is cut in, and how far they are apart.
const TAIL: u64 = 100;
const APART_MS: i64 = 30_000;

/// How long the test's rule keeps a message.
const KEPT_MS: i64 = 3_600_000;

/// How often each topic is asked for.
const QUESTIONS: usize = 10;

/// Makes the messages of each topic old, removes some of those that have expired, and asks for what is behind some positions.
/// Returns the answers that say `"recovered":true` and hide a gap.
async fn cut(history: &History, stack: &Stack) -> Vec<String> {
    let heads = heads(stack).await;
    let mut topics: BTreeMap<String, Vec<Row>> = BTreeMap::new();
    for row in stack.all_rows("messages").await {
        if let Some(topic) = text(&row, "p").strip_prefix("m:") {
            topics.entry(topic.to_owned()).or_default().push(row);
        }
    }
    let asked = topics.into_iter().map(|(topic, rows)| {
        let head = &heads[&topic];
        async move { cut_topic(history, &topic, head, rows).await }
    });
    let (mut violations, mut answers) = (Vec::new(), BTreeMap::<_, usize>::new());
    for (broken, of_topic) in futures_util::future::join_all(asked).await {
        violations.extend(broken);
        for answer in of_topic {
            *answers.entry(answer).or_default() += 1;
        }
    }
    for ((is_missing, recovered), count) in answers.into_iter().filter(|_| history.settings.has_report) {
        let missing = if is_missing { "something was missing" } else { "nothing was missing" };
        println!("{count:>9} answers when {missing}: \"recovered\":{recovered}");
    }
    violations
}

/// Cuts the history of one topic. Returns what broke a promise, and for each answer whether something was missing and whether
/// it said `"recovered":true`.
async fn cut_topic(
    history: &History,
    topic: &str,
    head: &(String, u64),
    mut rows: Vec<Row>,
) -> (Vec<String>, Vec<(bool, bool)>) {
    let (epoch, last) = head;
    rows.sort_by_key(|row| text(row, "s"));
    let there = kept(&rows).remove(topic).unwrap();
    let removed = expire(history, topic, *last, rows).await;
    let (mut violations, mut answers, mut client) = (Vec::new(), Vec::new(), None);
    for _ in 0..QUESTIONS {
        let after = fastrand::u64(last.saturating_sub(TAIL)..=*last);
        let behind = || there.iter().filter_map(|(seq, message)| Some((*seq, message.as_ref()?)));
        let is_missing = behind().any(|(seq, _)| seq > after && removed.contains(&seq));
        let position = json!({"epoch": epoch, "seq": after});
        for frame in [
            json!({"type": "subscribe", "topic": topic, "after": position}),
            json!({"type": "history", "topic": topic, "after": position, "limit": 1000}),
        ] {
            let (recovered, got) = ask(history, &mut client, frame.clone()).await;
            let is_complete = behind().all(|(seq, message)| seq <= after || got.get(&seq) == Some(message));
            if recovered && (is_missing || !is_complete) {
                violations.push(format!("{frame} hides a gap: {got:?}, removed {removed:?}"));
            }
            answers.push((is_missing, recovered));
        }
    }
    (violations, answers)
}

/// Makes messages old, so that those before some number have expired, and removes some of them, as DynamoDB does it: in any
/// order. Returns the removed numbers.
async fn expire(history: &History, topic: &str, last: u64, rows: Vec<Row>) -> BTreeSet<u64> {
    let table = table_name("messages");
    let seq_of = |row: &Row| text(row, "s").split_once('/').unwrap().1.parse::<u64>().unwrap();
    let now_ms = i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap();
    let first = last.saturating_sub(TAIL);
    // The first number of the tail that has not expired. For some topics nothing of the tail has.
    let expired = fastrand::u64(first..=last);
    let at_ms =
        |seq: u64| now_ms - KEPT_MS + (i64::try_from(seq).unwrap() - i64::try_from(expired).unwrap()) * APART_MS;
    let numeric = |value: i64| AttributeValue::N(value.to_string());
    let until_s = |seq: u64| numeric((at_ms(seq) + KEPT_MS) / 1000);
    // The longer a run of removed numbers, the less readers know, so some topics lose everything that has expired.
    let share = [0.1, 0.5, 1.0][fastrand::usize(..3)];
    let mut removed = BTreeSet::new();
    for mut row in rows {
        let seq = seq_of(&row);
        if seq < first || (seq < expired && fastrand::f64() < share) {
            let delete = history.dynamodb.delete_item().table_name(&table);
            delete.key("p", row["p"].clone()).key("s", row["s"].clone()).send().await.unwrap();
            removed.insert(seq);
            continue;
        }
        row.insert("at".to_owned(), numeric(at_ms(seq)));
        row.insert("ttl".to_owned(), until_s(seq));
        if row.contains_key("prev") {
            row.insert("prev".to_owned(), numeric(at_ms(seq - 1)));
            row.insert("prevTtl".to_owned(), until_s(seq - 1));
        }
        history.dynamodb.put_item().table_name(&table).set_item(Some(row)).send().await.unwrap();
    }
    // A head is kept for 30 days more than its last message.
    let head_until_s = (at_ms(last) + KEPT_MS) / 1000 + 30 * 24 * 3600;
    let update = history.dynamodb.update_item().table_name(&table);
    let update = update.key("p", AttributeValue::S(format!("h:{topic}"))).key("s", AttributeValue::S("-".to_owned()));
    let update = update.update_expression("SET #at = :at, #ttl = :ttl");
    let update = update.expression_attribute_names("#at", "at").expression_attribute_names("#ttl", "ttl");
    let update = update.expression_attribute_values(":at", numeric(at_ms(last)));
    update.expression_attribute_values(":ttl", numeric(head_until_s)).send().await.unwrap();
    removed
}

/// Asks until there is a whole answer: whether it is `recovered`, and the messages that came.
async fn ask(history: &History, client: &mut Option<Client>, mut frame: Value) -> (bool, BTreeMap<u64, String>) {
    'again: loop {
        let id = format!("q{}", fastrand::u64(..));
        frame["id"] = json!(id);
        // A connection that did not answer is of no use any more.
        let mut asked = match client.take() {
            Some(client) => client,
            None => history.connect("asker").await,
        };
        if asked.socket.send(Message::text(frame.to_string())).await.is_err() {
            continue;
        }
        let mut got = BTreeMap::new();
        loop {
            let next = tokio::time::timeout(ANSWER_PATIENCE, asked.socket.next()).await;
            let Ok(Some(Ok(next))) = next else { continue 'again };
            let Message::Text(text) = next else { continue };
            let answer: Value = serde_json::from_str(&text).unwrap();
            if answer["id"] != id || !["history", "ack"].contains(&answer["type"].as_str().unwrap_or_default()) {
                continue 'again;
            }
            for entry in answer["messages"].as_array().into_iter().flatten() {
                if let Some(message) = entry["data"].as_str() {
                    got.insert(entry["seq"].as_u64().unwrap(), message.to_owned());
                }
            }
            if let Some(recovered) = answer.get("recovered") {
                *client = Some(asked);
                return (recovered.as_bool().unwrap(), got);
            }
        }
    }
}

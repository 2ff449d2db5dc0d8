//! The run: connect, send at a fixed rate, wait for the rest.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use switchboard_client::{Client, Event, Events, Options, Start, Subscription, connect};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::Arguments;
use crate::report::Outcome;

/// The first connections come at this rate. API Gateway takes 500 a second.
const HANDSHAKES_PER_SECOND: u64 = 200;

/// How often the bar moves, and how often the end of the run looks for what is missing.
const TICK: Duration = Duration::from_millis(100);

/// The notes of all clients.
#[derive(Debug, Default)]
struct Ledger {
    /// How many clients have a connection, or had one.
    connected: u64,
    /// How many clients hear their topic.
    ready: u64,
    /// Why the last connection ended, or did not begin.
    reason: Option<String>,
    /// Why a client gave up.
    fatal: Option<String>,
    /// How often the server, or the gateway, had too much to do, and what it said.
    busy: BTreeMap<String, u64>,
    has_history: bool,
    reconnects: u64,
    rotations: u64,
    /// The messages that were acknowledged.
    acked: HashSet<u64>,
    /// The messages that the server or the client refused, by the code.
    refused: BTreeMap<String, u64>,
    /// The messages that each client received.
    received: Vec<HashSet<u64>>,
    deliveries: u64,
    duplicated: u64,
    latency: Option<Histogram<u64>>,
    handshake: Option<Histogram<u64>>,
}

/// The state that the tasks share.
#[derive(Debug)]
struct Load {
    ledger: Mutex<Ledger>,
    /// When the first message is due, once that is known.
    start: std::sync::OnceLock<Instant>,
    rate: u64,
}

impl Load {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// When a message is due.
    fn due(&self, start: Instant, number: u64) -> Instant {
        start + Duration::from_nanos(number.saturating_mul(1_000_000_000 / self.rate))
    }

    /// Writes down what a client says of its connection.
    async fn watch(self: Arc<Self>, mut events: Events) {
        let mut is_first = true;
        while let Some(event) = events.next().await {
            let mut ledger = self.ledger();
            match event {
                Event::Connected { .. } if std::mem::take(&mut is_first) => ledger.connected += 1,
                Event::Connected { is_rotated: true } => ledger.rotations += 1,
                Event::Connected { .. } => ledger.reconnects += 1,
                Event::Connecting { reason: Some(reason), .. } => {
                    if reason.contains(" 429 ") {
                        *ledger.busy.entry(reason.clone()).or_default() += 1;
                    }
                    ledger.reason = Some(reason);
                }
                Event::Busy { reason } => *ledger.busy.entry(reason).or_default() += 1,
                Event::Refused { error, .. } => ledger.fatal = Some(error.message),
                Event::Closed { code, reason } if code == "refused" => ledger.fatal = Some(reason),
                _ => {}
            }
        }
    }

    /// Writes down what a client receives.
    async fn listen(self: Arc<Self>, client: usize, began: Instant, mut subscription: Subscription) {
        let Ok(ready) = subscription.ready().await else { return };
        {
            let mut ledger = self.ledger();
            ledger.ready += 1;
            ledger.has_history |= ready.has_history;
            record(&mut ledger.handshake, began.elapsed());
        }
        while let Some(message) = subscription.next().await {
            let now = Instant::now();
            let (Ok(number), Some(start)) = (message.json::<u64>(), self.start.get()) else { continue };
            let mut ledger = self.ledger();
            if ledger.received[client].insert(number) {
                ledger.deliveries += 1;
                record(&mut ledger.latency, now - self.due(*start, number));
            } else {
                ledger.duplicated += 1;
            }
        }
    }
}

fn record(histogram: &mut Option<Histogram<u64>>, time: Duration) {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    if let Some(histogram) = histogram {
        // The histogram grows by itself.
        histogram.saturating_record(micros.max(1));
    }
}

fn histogram() -> Option<Histogram<u64>> {
    // From a microsecond to an hour, with three digits.
    Histogram::new_with_bounds(1, 3_600_000_000, 3).ok()
}

fn bar(length: u64, what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:11} {wide_bar} {pos}/{len} {msg}");
    let bar = ProgressBar::new(length).with_prefix(what);
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Runs the load. An error says why nothing could be measured.
pub(crate) async fn run(arguments: &Arguments) -> Result<Outcome, String> {
    let fanout = arguments.fanout.min(arguments.connections);
    // When the numbers do not fit, the clients that are left listen to topics of the others.
    let topics = arguments.connections / fanout;
    let load = Arc::new(Load {
        ledger: Mutex::new(Ledger { latency: histogram(), handshake: histogram(), ..Ledger::default() }),
        start: std::sync::OnceLock::new(),
        rate: arguments.rate,
    });
    let groups = connect_all(arguments, topics, &load).await?;
    let messages = send(arguments, &groups, &load).await;
    wait_for_rest(arguments, topics, messages, &load).await;

    let ledger = std::mem::take(&mut *load.ledger());
    let receivers = |number: &u64| listeners(*number, topics, arguments.connections);
    let has = |client: u64, number| {
        let received = usize::try_from(client).ok().and_then(|client| ledger.received.get(client));
        received.is_some_and(|received| received.contains(number))
    };
    let missed = |number| receivers(number).filter(|client| !has(*client, number)).count();
    let lost = ledger.acked.iter().map(missed).sum::<usize>();
    Ok(Outcome {
        connections: arguments.connections,
        topics,
        has_history: ledger.has_history,
        sent: messages,
        acked: count(ledger.acked.len()),
        received: ledger.deliveries,
        lost: count(lost),
        duplicated: ledger.duplicated,
        refused: ledger.refused,
        busy: ledger.busy,
        reconnects: ledger.reconnects,
        rotations: ledger.rotations,
        latency: ledger.latency.unwrap_or_else(empty),
        handshake: ledger.handshake.unwrap_or_else(empty),
    })
}

fn empty() -> Histogram<u64> {
    Histogram::new(3).expect("3 digits are possible")
}

fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

/// The clients that should receive a message.
fn listeners(number: u64, topics: u64, connections: u64) -> impl Iterator<Item = u64> {
    (number % topics..connections).step_by(usize::try_from(topics).unwrap_or(usize::MAX))
}

/// The clients of each topic, and the topic's name.
type Groups = Vec<(String, Vec<Client>)>;

/// Connects all clients, and waits until each of them hears its topic.
async fn connect_all(arguments: &Arguments, topics: u64, load: &Arc<Load>) -> Result<Groups, String> {
    let run: String = std::iter::repeat_with(fastrand::alphanumeric).take(6).collect();
    let mut groups: Groups =
        (0..topics).map(|topic| (format!("{}.{run}.{topic}", arguments.topic), Vec::new())).collect();
    let bar = bar(arguments.connections, "connecting");
    let deadline = Instant::now() + arguments.patience;
    let mut pace = interval(Duration::from_secs(1) / u32::try_from(HANDSHAKES_PER_SECOND).unwrap_or(1));
    for number in 0..arguments.connections {
        pace.tick().await;
        let url = arguments.url.replace("{n}", &number.to_string());
        let usual = Options::default();
        let options = Options {
            refusals: 3,
            timeout: arguments.patience.min(Duration::from_secs(10)),
            lifetime: arguments.lifetime,
            // A gateway whose time is faster cuts idle connections earlier, too.
            heartbeat: usual
                .heartbeat
                .min(arguments.lifetime.mul_f64(usual.heartbeat.div_duration_f64(usual.lifetime))),
            ..usual
        };
        let (client, events) = connect(&url, options).map_err(|error| error.message)?;
        let group = usize::try_from(number % topics).unwrap_or_default();
        let subscription = client.topic(&groups[group].0).subscribe(Start::Now);
        load.ledger().received.push(HashSet::new());
        tokio::spawn(load.clone().watch(events));
        let index = usize::try_from(number).unwrap_or_default();
        tokio::spawn(load.clone().listen(index, Instant::now(), subscription));
        groups[group].1.push(client);
        bar.set_position(load.ledger().ready);
    }
    loop {
        {
            let ledger = load.ledger();
            bar.set_position(ledger.ready);
            if ledger.ready == arguments.connections {
                break;
            }
            if ledger.fatal.is_some() || Instant::now() >= deadline {
                bar.finish_and_clear();
                return Err(why_not(arguments, &ledger));
            }
        }
        tokio::time::sleep(TICK).await;
    }
    bar.finish_and_clear();
    Ok(groups)
}

/// Says why not all clients are there.
fn why_not(arguments: &Arguments, ledger: &Ledger) -> String {
    let Arguments { url, connections, patience, .. } = arguments;
    let patience = humantime::format_duration(*patience);
    let reason = ledger.reason.as_deref().unwrap_or_default();
    if let Some(fatal) = &ledger.fatal {
        format!("{url} refuses its clients, or it is no Switchboard. {fatal}")
    } else if let Some((said, count)) = ledger.busy.iter().max_by_key(|(_, count)| **count) {
        let ready = ledger.ready;
        format!(
            "{url} throttles: only {ready} of {connections} clients were there after {patience}. It said {count} times: {said}"
        )
    } else if ledger.connected == 0 {
        format!("{url} does not answer. After {patience} no client had a connection. {reason}")
    } else if ledger.ready == 0 {
        format!("{url} is no Switchboard: it takes connections, and answers nothing in {patience}. {reason}")
    } else {
        let ready = ledger.ready;
        format!("{url} is too slow: only {ready} of {connections} clients were there after {patience}. {reason}")
    }
}

/// Sends at the rate, and lets the clients reconnect. Returns how many messages were sent.
async fn send(arguments: &Arguments, groups: &Groups, load: &Arc<Load>) -> u64 {
    let messages = u64::try_from(arguments.time.as_millis()).unwrap_or(u64::MAX).saturating_mul(arguments.rate) / 1000;
    let bar = bar(messages, "sending");
    let start = *load.start.get_or_init(Instant::now);
    let topics = groups.len();
    let mut storm = interval(arguments.reconnect.unwrap_or(Duration::MAX / 4).max(TICK));
    storm.set_missed_tick_behavior(MissedTickBehavior::Skip);
    storm.tick().await;
    let mut number = 0;
    while number < messages {
        tokio::select! {
            () = sleep_until(load.due(start, number)) => {
                let count = usize::try_from(number).unwrap_or_default();
                let (topic, clients) = &groups[count % topics];
                let client = &clients[count / topics % clients.len()];
                let post = client.topic(topic).publish(&number);
                let shared = load.clone();
                tokio::spawn(async move {
                    let ack = post.await;
                    let mut ledger = shared.ledger();
                    match ack {
                        Ok(_) => drop(ledger.acked.insert(number)),
                        Err(error) => *ledger.refused.entry(error.code).or_default() += 1,
                    }
                });
                number += 1;
                bar.set_position(number);
                if number % load.rate.div_ceil(10) == 0 {
                    let ledger = load.ledger();
                    bar.set_message(format!("{} acknowledged, {} received", ledger.acked.len(), ledger.deliveries));
                }
            }
            _ = storm.tick() => {
                for (_, clients) in groups {
                    clients.iter().for_each(Client::reconnect);
                }
            }
        }
    }
    bar.finish_and_clear();
    messages
}

/// Waits until everything has arrived, or nothing has come for too long.
async fn wait_for_rest(arguments: &Arguments, topics: u64, messages: u64, load: &Arc<Load>) {
    let bar = bar(messages, "waiting");
    let (mut last, mut since) = ((0, 0), Instant::now());
    while since.elapsed() < arguments.patience {
        let (answered, deliveries, goal) = {
            let ledger = load.ledger();
            let refused: u64 = ledger.refused.values().sum();
            let receivers = |number: &u64| listeners(*number, topics, arguments.connections).count();
            let goal = ledger.acked.iter().map(receivers).sum::<usize>();
            (count(ledger.acked.len()) + refused, ledger.deliveries, count(goal))
        };
        if answered == messages && deliveries >= goal {
            break;
        }
        if (answered, deliveries) != last {
            (last, since) = ((answered, deliveries), Instant::now());
        }
        bar.set_position(answered);
        bar.set_message(format!("{deliveries} of {goal} received"));
        tokio::time::sleep(TICK).await;
    }
    bar.finish_and_clear();
}

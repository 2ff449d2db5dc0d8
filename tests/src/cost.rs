//! The cost of events in dollars: counted units, times the prices of `cost/prices.json`.
//!
//! `e2e/cost.rs` counts the units of each event on the real binaries, and compares them with the table here. Two times cannot be
//! counted on a laptop, so they are assumed: a call of DynamoDB takes [`CALL_MS`] and a post takes [`POST_MS`].

use serde_json::Value;

/// Milliseconds of a call of DynamoDB, in the same region.
pub const CALL_MS: f64 = 5.0;

/// Milliseconds of a post to `@connections`.
pub const POST_MS: f64 = 10.0;

/// Milliseconds of everything else in an invocation.
pub const OWN_MS: f64 = 2.0;

/// Posts that run at the same time in a function of 256 MB.
pub const POSTS_AT_ONCE: f64 = 16.0;

/// One event in so many writes its lines: `LOG_ONE_IN`.
pub const LOG_ONE_IN: f64 = 100.0;

/// Bytes of a subscriber's row.
const ROW_BYTES: f64 = 105.0;

/// The units that one event uses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Event {
    /// Its name.
    pub name: &'static str,
    /// Messages of the gateway: frames of clients, and posts.
    pub messages: f64,
    /// Read units.
    pub read: f64,
    /// Write units.
    pub write: f64,
    /// Bytes of its log lines, if they are written.
    pub log: f64,
    /// Whether they are written always.
    pub is_logged: bool,
    /// Calls of DynamoDB that wait for each other.
    pub calls: f64,
    /// Rounds of posts that wait for each other.
    pub rounds: f64,
}

const fn event(name: &'static str, messages: f64, units: (f64, f64), log: f64, time: (f64, f64)) -> Event {
    let ((read, write), (calls, rounds)) = (units, time);
    Event { name, messages, read, write, log, is_logged: false, calls, rounds }
}

/// A handshake of a user.
pub const CONNECT: Event = Event { is_logged: true, ..event("$connect", 0.0, (1.0, 2.0), 145.0, (2.0, 0.0)) };
/// The end of a connection with 5 topics.
pub const DISCONNECT: Event =
    Event { is_logged: true, ..event("$disconnect, 5 topics", 0.0, (0.0, 7.0), 195.0, (2.0, 0.0)) };
/// A subscribe frame with 5 topics, acknowledged.
pub const SUBSCRIBE: Event = event("subscribe to 5 topics, acked", 2.0, (1.0, 6.0), 365.0, (3.0, 1.0));
/// A ping with a pong.
pub const PING: Event = event("ping", 2.0, (0.5, 0.0), 292.0, (1.0, 1.0));
/// A quiet ping.
pub const QUIET_PING: Event = event("quiet ping", 1.0, (0.5, 0.0), 292.0, (1.0, 0.0));
/// A direct message to one device, on a stage without an inbox.
pub const DIRECT: Event = event("direct message, 1 device", 2.0, (1.5, 0.0), 387.0, (1.0, 1.0));
/// The same with an ack.
pub const DIRECT_ACKED: Event = event("the same, acked", 3.0, (1.5, 0.0), 387.0, (1.0, 2.0));
/// A message to a topic with 10 subscribers.
pub const TOPIC: Event = event("topic message, 10 subscribers", 11.0, (1.0, 0.0), 388.0, (1.0, 1.0));
/// The same on a topic with history, with an ack.
pub const KEPT: Event = event("the same, kept and acked", 12.0, (1.5, 3.0), 525.0, (5.0, 2.0));
/// An event of a backend, to 10 subscribers.
pub const BACKEND: Event = event("event of a backend, 10 subscribers", 10.0, (1.0, 1.0), 331.0, (1.0, 1.0));
/// A message that waits for others.
pub const WAITING: Event = event("topic message that waits", 1.0, (0.0, 1.0), 292.0, (1.0, 0.0));
/// The messages of one poll of the stream, to 10 subscribers.
pub const BATCH: Event = event("a batch, 10 subscribers", 10.0, (1.0, 0.0), 331.0, (1.0, 1.0));

/// All of them.
pub const EVENTS: [Event; 12] =
    [CONNECT, DISCONNECT, SUBSCRIBE, PING, QUIET_PING, DIRECT, DIRECT_ACKED, TOPIC, KEPT, BACKEND, WAITING, BATCH];

impl Event {
    /// The same with another number of subscribers than 10.
    #[must_use]
    pub fn to(self, subscribers: f64) -> Self {
        Self {
            messages: self.messages - 10.0 + subscribers,
            read: self.read - 1.0 + (subscribers * ROW_BYTES / 4096.0).ceil(),
            rounds: self.rounds - 1.0 + (subscribers / POSTS_AT_ONCE).ceil(),
            ..self
        }
    }

    /// Its cost.
    #[must_use]
    pub fn bill(&self, prices: &Prices) -> Bill {
        let ms = OWN_MS + self.calls * CALL_MS + self.rounds * POST_MS;
        let log = if self.is_logged { self.log } else { self.log / LOG_ONE_IN };
        prices.bill(self.messages, self.read, self.write, 1.0, ms * 0.25, log)
    }
}

/// The prices of units.
#[derive(Debug)]
pub struct Prices(Value);

impl Prices {
    /// Reads `cost/prices.json`.
    #[must_use]
    pub fn read() -> Self {
        Self(serde_json::from_str(include_str!("../cost/prices.json")).unwrap())
    }

    /// When they were looked up.
    #[must_use]
    pub fn date(&self) -> &str {
        self.0["date"].as_str().unwrap()
    }

    /// The price of one unit.
    #[must_use]
    pub fn of(&self, name: &str) -> f64 {
        self.0[name]["dollars"].as_f64().unwrap() / self.0[name]["per"].as_f64().unwrap()
    }

    fn bill(&self, messages: f64, read: f64, write: f64, invocations: f64, gb_ms: f64, log: f64) -> Bill {
        Bill {
            minutes: 0.0,
            messages: messages * self.of("gateway_message"),
            lambda: invocations * self.of("lambda_request") + gb_ms / 1000.0 * self.of("lambda_gb_second"),
            dynamodb: read * self.of("read_unit") + write * self.of("write_unit"),
            logs: log * self.of("log_byte"),
        }
    }
}

/// Dollars by service.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Bill {
    /// Minutes of connections.
    pub minutes: f64,
    /// Messages of the gateway.
    pub messages: f64,
    /// Requests and time of functions.
    pub lambda: f64,
    /// Units of tables.
    pub dynamodb: f64,
    /// Bytes of logs.
    pub logs: f64,
}

impl Bill {
    /// All of it.
    #[must_use]
    pub fn sum(&self) -> f64 {
        self.minutes + self.own() + self.messages
    }

    /// Our part: the sum without the gateway.
    #[must_use]
    pub fn own(&self) -> f64 {
        self.lambda + self.dynamodb + self.logs
    }

    /// So many times that, and something else.
    #[must_use]
    pub fn and(self, count: f64, other: Self) -> Self {
        Self {
            minutes: self.minutes + count * other.minutes,
            messages: self.messages + count * other.messages,
            lambda: self.lambda + count * other.lambda,
            dynamodb: self.dynamodb + count * other.dynamodb,
            logs: self.logs + count * other.logs,
        }
    }
}

/// A month of events.
#[derive(Debug)]
pub struct Load {
    /// Its name.
    pub name: String,
    /// Minutes of all connections.
    pub minutes: f64,
    /// How often each event happens.
    pub events: Vec<(f64, Event)>,
}

/// Minutes of a month of 730 hours.
pub const MONTH_MINUTES: f64 = 43_800.0;

/// Users that are connected all the time. Each listens to 5 topics, connects anew every 2 hours, pings every 9 minutes, and sends 20
/// direct messages and 20 messages to topics of 10 subscribers a day of 30.
#[must_use]
pub fn users(count: f64) -> Load {
    let connections = count * MONTH_MINUTES / 120.0;
    let sent = count * 600.0;
    let events = vec![
        (connections, CONNECT),
        (connections, DISCONNECT),
        (connections, SUBSCRIBE),
        (count * MONTH_MINUTES / 9.0, QUIET_PING),
        (sent, DIRECT),
        (sent, TOPIC),
    ];
    Load { name: format!("{count} users, connected all month"), minutes: count * MONTH_MINUTES, events }
}

/// A million direct messages.
#[must_use]
pub fn direct_messages() -> Load {
    Load { name: "a million direct messages".to_owned(), minutes: 0.0, events: vec![(1e6, DIRECT)] }
}

/// A client that sends 10 messages a second to 1,000 subscribers, for an hour.
#[must_use]
pub fn ticker(is_batched: bool) -> Load {
    let messages = 36_000.0;
    let (name, events) = match is_batched {
        // Lambda reads the stream four times a second.
        true => ("with batches", vec![(messages, WAITING), (4.0 * 3600.0, BATCH.to(1000.0))]),
        false => ("without batches", vec![(messages, TOPIC.to(1000.0))]),
    };
    Load { name: format!("10 messages a second to 1,000, an hour, {name}"), minutes: 1000.0 * 60.0, events }
}

impl Load {
    /// Its cost here.
    #[must_use]
    pub fn bill(&self, prices: &Prices) -> Bill {
        let minutes = Bill { minutes: self.minutes * prices.of("gateway_minute"), ..Bill::default() };
        self.events.iter().fold(minutes, |sum, (count, event)| sum.and(*count, event.bill(prices)))
    }

    /// Its cost with AppSync Events: an operation for each publish, each delivery, each connect and each subscribe. It pings by
    /// itself. Several messages of one publish are not counted together.
    #[must_use]
    pub fn appsync(&self, prices: &Prices) -> f64 {
        let operations = |event: &Event| match event.name {
            name if name == CONNECT.name => 1.0,
            name if name == SUBSCRIBE.name => 5.0,
            name if name == DISCONNECT.name || name == PING.name || name == QUIET_PING.name => 0.0,
            _ => event.messages,
        };
        let operations: f64 = self.events.iter().map(|(count, event)| count * operations(event)).sum();
        operations * prices.of("appsync_operation") + self.minutes * prices.of("appsync_minute")
    }

    /// Its cost with functions in Node as in the two articles: 512 MB, three lines of Lambda and one of the function for each event
    /// (650 bytes), one frame and one write for each topic, an index from user to connections, and no acks.
    #[must_use]
    pub fn node(&self, prices: &Prices) -> Bill {
        // Frames and posts, read units, write units, invocations, milliseconds of all of them.
        let units = |event: &Event| match event.name {
            name if name == CONNECT.name => (0.0, 0.0, 2.0, 1.0, 20.0),
            name if name == DISCONNECT.name => (0.0, 0.5, 7.0, 1.0, 25.0),
            name if name == SUBSCRIBE.name => (5.0, 0.0, 5.0, 5.0, 100.0),
            name if name == PING.name || name == QUIET_PING.name => (event.messages, 0.0, 0.0, 1.0, 10.0),
            // The sender's row and the index, both eventually consistent.
            name if name == DIRECT.name => (2.0, 1.0, 0.0, 1.0, 30.0),
            _ => (event.messages, event.read / 2.0, event.write, 1.0, 25.0 + event.rounds * POST_MS),
        };
        let minutes = Bill { minutes: self.minutes * prices.of("gateway_minute"), ..Bill::default() };
        self.events.iter().fold(minutes, |sum, (count, event)| {
            let (messages, read, write, invocations, ms) = units(event);
            sum.and(*count, prices.bill(messages, read, write, invocations, ms * 0.5, 650.0 * invocations))
        })
    }
}

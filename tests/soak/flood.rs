//! A client that sends as fast as its sockets take frames, beside a neighbour that sends one message after the other. The flooder
//! connects again whenever it is disconnected. `make flood` prints what the neighbour notices of that.
//!
//! Only counts are checked. The neighbour must lose nothing: each frame is answered, and what is acknowledged arrives. A flood must
//! be told that it is too fast, and be disconnected. Then a user is locked out, and a client without a name comes back. On ten
//! connections, each one may stay below the limit in each execution environment, so the samples must find the flood.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use switchboard_tests::client::Client;
use switchboard_tests::stack::{NO_RULES, Stack};
use tokio::task::JoinSet;
use tokio::time::error::Elapsed;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

/// How many connections the flooder has at a time, and its query, one phase after the other. The users differ, because a user
/// stays locked out for a minute.
const FLOODS: [(usize, &str); 4] = [(0, ""), (1, "?userId=flooder"), (10, "?userId=another"), (1, "")];

/// How many frames a second one connection may send, and how many connections a user may have. Both are a tenth of the default, so
/// that a busy machine shows the same.
const LIMIT: [&str; 4] = ["--env", "MAX_FRAMES_PER_SECOND=5", "--env", "MAX_CONNECTIONS_PER_USER=10"];

/// The neighbour's pause between two frames.
const PAUSE: Duration = Duration::from_millis(300);

/// A frame that was not answered, or a message that has not arrived, after this time is lost.
const PATIENCE: Duration = Duration::from_secs(25);

/// A handshake that was refused is repeated after this time.
const RECONNECT_PAUSE: Duration = Duration::from_millis(20);

/// What happened how often.
type Counts = Arc<Mutex<BTreeMap<&'static str, usize>>>;

fn count(counts: &Counts, what: &'static str) {
    *counts.lock().unwrap().entry(what).or_default() += 1;
}

/// Runs the phases, each so long, and prints a line for each. A short run has only the first two and prints nothing.
pub(crate) async fn run(time: Duration, binaries: Option<&str>, is_short: bool) {
    let mut arguments = [&NO_RULES[..], &LIMIT].concat();
    arguments.extend(binaries.into_iter().flat_map(|folder| ["--binaries", folder]));
    let stack = Stack::with(&arguments).await;
    let url = format!("ws://{}/dev", stack.gateway);
    let mut neighbour = Neighbour::connect(&url).await;
    neighbour.send_for(Duration::from_secs(1), || true).await;
    for &(connections, query) in &FLOODS[..if is_short { 2 } else { FLOODS.len() }] {
        let counts = Counts::default();
        let mut flood = JoinSet::new();
        for number in 0..connections {
            flood.spawn(flooder(format!("{url}{query}"), number, Arc::clone(&counts)));
        }
        let happened = |what| counts.lock().unwrap().contains_key(what);
        let mut heard = neighbour.send_for(time, || connections == 0 || happened("disconnected")).await;
        flood.shutdown().await;
        let flood = counts.lock().unwrap().clone();
        if !is_short {
            heard.print(connections, query, &flood);
        }
        assert_eq!(heard.lost, 0, "the neighbour has lost messages: {flood:?}");
        for expected in ["rate_limited", "disconnected"] {
            assert!(connections == 0 || flood.contains_key(expected), "the flooder was never {expected}: {flood:?}");
        }
    }
    if is_short {
        // The flood has left nothing behind that keeps the neighbour waiting, and no row of its connections.
        stack.settled("connections", 2).await;
    }
    let log = stack.whole_log().await;
    let count = |text: &str| log.iter().filter(|line| line.contains(text)).count();
    assert!(count("sending too fast") + count("a flood is over") > 0, "nobody was disconnected");
    assert!(is_short || count("a flood is over") > 0, "no sample found a flood");
}

/// What the neighbour notices in a phase.
#[derive(Debug, Default)]
struct Heard {
    /// From sending a message to its delivery.
    times: Vec<Duration>,
    /// Frames that were answered with an error, and sent again.
    refused: usize,
    lost: usize,
    /// When the flooder was first disconnected, as the neighbour's pace shows it.
    ended: Option<Duration>,
}

impl Heard {
    fn print(&mut self, connections: usize, query: &str, flood: &BTreeMap<&str, usize>) {
        self.times.sort_unstable();
        let count = self.times.len();
        let [p50, p99] = [count / 2, count * 99 / 100].map(|at| self.times[at].as_secs_f64() * 1e3);
        let ended = self
            .ended
            .filter(|_| connections > 0)
            .map(|time| format!(", first disconnected after {:.1} s", time.as_secs_f64()));
        println!(
            "flood on {connections:2} connections {query:16}: {count} messages of the neighbour, p50 {p50:.0} ms, p99 {p99:.0} ms, \
             {} lost, {} frames sent again; the flooder: {flood:?}{}",
            self.lost,
            self.refused,
            ended.unwrap_or_default()
        );
    }
}

/// Somebody who sends a message, waits until it has arrived at a friend, and then sends the next one.
struct Neighbour {
    sender: Client,
    friend: Client,
    next: usize,
}

impl Neighbour {
    async fn connect(url: &str) -> Self {
        let mut friend = Client::connect(&format!("{url}?userId=friend")).await.unwrap();
        friend.ask(json!({"type": "subscribe", "topic": "quiet street", "id": "s"})).await;
        Self { sender: Client::connect(&format!("{url}?userId=neighbour")).await.unwrap(), friend, next: 0 }
    }

    /// Sends messages for so long, and on until the other thing has happened, if it ever does.
    async fn send_for(&mut self, time: Duration, has_happened: impl Fn() -> bool) -> Heard {
        let (mut heard, start) = (Heard::default(), Instant::now());
        while start.elapsed() < time || (heard.ended.is_none() && start.elapsed() < time + PATIENCE) {
            self.next += 1;
            let sent = Instant::now();
            match self.message(&mut heard).await {
                Ok(()) => heard.times.push(sent.elapsed()),
                Err(_) => heard.lost += 1,
            }
            if heard.ended.is_none() && has_happened() {
                heard.ended = Some(start.elapsed());
            }
            tokio::time::sleep(PAUSE).await;
        }
        heard
    }

    /// Sends a message until it is acknowledged, and waits for its delivery.
    async fn message(&mut self, heard: &mut Heard) -> Result<(), Elapsed> {
        let id = self.next.to_string();
        let frame = json!({"type": "message", "topic": "quiet street", "message": self.next, "id": id});
        loop {
            let answer = timeout(PATIENCE, self.sender.ask(frame.clone())).await?;
            if answer["type"] == "ack" {
                assert_eq!(answer["id"], *id, "{answer}");
                break;
            }
            // The gateway's own errors are about the stage and not about this client.
            assert!(answer["type"] != "error" || answer["temporary"] == true, "{answer}");
            heard.refused += 1;
            tokio::time::sleep(PAUSE).await;
        }
        // A message that was sent again may come twice.
        while timeout(PATIENCE, self.friend.next()).await?["payload"]["data"] != self.next {}
        Ok(())
    }
}

/// Sends messages to a topic of its own as fast as the socket takes them, and connects again when it is disconnected.
async fn flooder(url: String, number: usize, counts: Counts) {
    let frame = json!({"type": "message", "topic": format!("flood {number}"), "message": "x".repeat(100), "id": "f"});
    let frame = Message::text(frame.to_string());
    loop {
        let Ok((socket, _)) = tokio_tungstenite::connect_async(&url).await else {
            count(&counts, "handshakes refused");
            tokio::time::sleep(RECONNECT_PAUSE).await;
            continue;
        };
        count(&counts, "connected");
        let (mut to, mut from) = socket.split();
        let send = async {
            while to.send(frame.clone()).await.is_ok() {
                count(&counts, "frames");
            }
        };
        let receive = async {
            while let Some(Ok(message)) = from.next().await {
                match message {
                    Message::Text(text) => count(&counts, answer(&text)),
                    Message::Close(_) => break,
                    _ => {}
                }
            }
            count(&counts, "disconnected");
        };
        tokio::select! { () = send => count(&counts, "disconnected"), () = receive => {} }
    }
}

/// What an answer to the flooder says.
fn answer(text: &str) -> &'static str {
    let frame: Value = serde_json::from_str(text).unwrap();
    match (frame["type"].as_str(), frame["code"].as_str()) {
        (Some("ack"), _) => "served",
        (_, Some("rate_limited")) => "rate_limited",
        (_, Some("busy")) => "busy",
        (Some(_), _) => "other answers",
        (None, _) => "refused by the gateway",
    }
}

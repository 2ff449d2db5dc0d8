//! A small client that applies each message of its topics once, in order, however often its socket is cut.
//!
//! It keeps the position of the last message that it applied. Numbers that come later wait until the ones before them are
//! there. When they do not come within a second, it asks for history, and pings tell it what it never heard of.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use switchboard_tests::client::Client;
use tokio::sync::watch;
use tokio_tungstenite::tungstenite::Message;

use super::history::History;

/// The client asks for the numbers that it lacks after this time, and again after twice as long, up to eight times.
const GAP_PATIENCE: Duration = Duration::from_secs(1);
const MAX_DOUBLINGS: u32 = 3;

/// The time between two pings: while messages are published, and when a client waits for the last ones.
const PING_EVERY: Duration = Duration::from_secs(10);
const LAST_PINGS_EVERY: Duration = Duration::from_secs(2);

/// The client sends its subscribe frame again when no ack came for this long.
const ACK_PATIENCE: Duration = Duration::from_secs(10);

/// The time between two looks at what is overdue.
const TICK: Duration = Duration::from_millis(250);

/// What it has of one topic.
#[derive(Debug, Default)]
pub(crate) struct Run {
    pub(crate) epoch: String,
    /// The number of the last message that it applied, or of the last hole that it passed.
    pub(crate) seq: u64,
    /// The messages that it applied, each with its number.
    pub(crate) applied: Vec<(u64, String)>,
    /// The numbers that came too early. A hole has no message.
    waiting: BTreeMap<u64, Option<String>>,
    /// When the first of them came, or when it last asked for history.
    since: Option<Instant>,
    /// How often it has asked since a number came.
    asked: u32,
    /// Whether a ping said that there is more.
    is_behind: bool,
}

impl Run {
    fn position(&self) -> Value {
        json!({"epoch": self.epoch, "seq": self.seq})
    }

    /// Takes one number. `None` is a hole. Returns what is wrong with it.
    fn take(&mut self, epoch: &Value, seq: u64, message: Option<&str>) -> Result<bool, String> {
        if epoch != &self.epoch {
            return Err(format!("the epoch {epoch} instead of {}", self.epoch));
        }
        let message = message.map(str::to_owned);
        let known = match seq <= self.seq {
            true => Some(self.applied(seq).map(str::to_owned)),
            false => self.waiting.get(&seq).cloned(),
        };
        if let Some(known) = known {
            return if known == message { Ok(false) } else { Err(format!("{seq} is {known:?} and {message:?}")) };
        }
        self.waiting.insert(seq, message);
        while let Some(next) = self.waiting.first_entry().filter(|next| *next.key() == self.seq + 1) {
            let (seq, message) = next.remove_entry();
            self.seq = seq;
            self.applied.extend(message.map(|message| (seq, message)));
            (self.since, self.asked) = (None, 0);
        }
        if !self.waiting.is_empty() {
            self.since.get_or_insert_with(Instant::now);
        }
        Ok(true)
    }

    fn applied(&self, seq: u64) -> Option<&str> {
        let found = self.applied.binary_search_by_key(&seq, |(seq, _)| *seq).ok()?;
        Some(&self.applied[found].1)
    }
}

/// A client and all its connections.
#[derive(Debug)]
pub(crate) struct Subscriber {
    pub(crate) user: String,
    pub(crate) runs: BTreeMap<String, Run>,
    /// Everything that must not happen.
    pub(crate) violations: Vec<String>,
    pub(crate) counts: BTreeMap<&'static str, usize>,
    next: usize,
    /// The id of the subscribe frame that is not acknowledged, and when it was sent.
    asked: Option<(String, Instant)>,
    is_subscribed: bool,
}

impl Subscriber {
    pub(crate) fn new(user: String, topics: impl IntoIterator<Item = String>) -> Self {
        Self {
            user,
            runs: topics.into_iter().map(|topic| (topic, Run::default())).collect(),
            violations: Vec::new(),
            counts: BTreeMap::new(),
            next: 0,
            asked: None,
            is_subscribed: false,
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn id(&mut self, what: &str) -> String {
        self.next += 1;
        format!("{what}{}", self.next)
    }

    /// Whether it has everything up to the heads that the topics had at the end.
    fn is_done(&self, goal: Option<&BTreeMap<String, u64>>) -> bool {
        goal.is_some_and(|goal| {
            self.runs.iter().all(|(topic, run)| goal.get(topic).is_none_or(|last| run.seq >= *last))
        })
    }

    /// Lives until it has everything up to the goal. It says when it first knows its positions.
    pub(crate) async fn run(
        mut self,
        history: &History,
        ready: watch::Sender<usize>,
        mut goal: watch::Receiver<Option<BTreeMap<String, u64>>>,
    ) -> Self {
        let mut is_ready = false;
        while !self.is_done(goal.borrow().as_ref()) {
            let mut client = history.connect(&self.user).await;
            self.count("connections of subscribers");
            (self.asked, self.is_subscribed) = (None, false);
            let mut cut = None;
            let mut pinged = Instant::now();
            let mut tick = tokio::time::interval(TICK);
            loop {
                let flow = tokio::select! {
                    frame = client.socket.next() => match frame {
                        Some(Ok(Message::Text(frame))) => self.received(&frame),
                        Some(Ok(_)) => ControlFlow::Continue(()),
                        Some(Err(_)) | None => ControlFlow::Break(()),
                    },
                    _ = tick.tick() => {
                        let every = if goal.borrow().is_some() { LAST_PINGS_EVERY } else { PING_EVERY };
                        self.look(&mut client, &mut pinged, every).await
                    }
                    _ = goal.changed() => ControlFlow::Continue(()),
                };
                if self.is_subscribed && !std::mem::replace(&mut is_ready, true) {
                    ready.send_modify(|ready| *ready += 1);
                }
                if self.is_subscribed && cut.is_none() {
                    // The time until an event that has no memory.
                    let life = history.cut_every.map(|every| every.mul_f64(-(1.0 - fastrand::f64()).ln()));
                    cut = Some(life.map(|life| Instant::now() + life));
                }
                if flow.is_break() || self.is_done(goal.borrow().as_ref()) {
                    break;
                }
                if cut.flatten().is_some_and(|cut| cut <= Instant::now()) {
                    self.count("sockets of subscribers cut");
                    break;
                }
            }
            // Half of the clients vanish, and the others say goodbye.
            if fastrand::bool() {
                let _ = client.socket.close(None).await;
            }
        }
        self
    }

    /// Sends what is due.
    async fn look(&mut self, client: &mut Client, pinged: &mut Instant, every: Duration) -> ControlFlow<()> {
        let mut frames = Vec::new();
        let now = Instant::now();
        if !self.is_subscribed {
            if self.asked.as_ref().is_none_or(|(_, since)| since.elapsed() > ACK_PATIENCE) {
                let id = self.id("s");
                let entries = self.runs.iter().map(|(topic, run)| match run.epoch.is_empty() {
                    true => json!({"topic": topic, "positions": true}),
                    false => json!({"topic": topic, "after": run.position()}),
                });
                let entries: Vec<_> = entries.collect();
                frames.push(json!({"type": "subscribe", "id": id, "topics": entries}));
                self.asked = Some((id, now));
                self.count("subscribe frames");
            }
        } else if pinged.elapsed() > every {
            *pinged = now;
            let positions: serde_json::Map<_, _> =
                self.runs.iter().map(|(topic, run)| (topic.clone(), run.position())).collect();
            frames.push(json!({"type": "ping", "quiet": true, "positions": positions}));
            self.count("pings of subscribers");
        }
        if self.is_subscribed {
            for (topic, run) in &mut self.runs {
                let patience = GAP_PATIENCE * 2_u32.pow(run.asked.min(MAX_DOUBLINGS));
                let is_overdue = run.since.is_some_and(|since| since.elapsed() > patience);
                if is_overdue || std::mem::take(&mut run.is_behind) {
                    run.since = Some(now);
                    run.asked += 1;
                    *self.counts.entry("gaps that subscribers ask for").or_default() += 1;
                    frames.push(json!({
                        "type": "history", "topic": topic, "after": run.position(), "limit": 1000, "id": format!("h {topic}"),
                    }));
                }
            }
        }
        for frame in frames {
            if client.socket.send(Message::text(frame.to_string())).await.is_err() {
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }

    fn received(&mut self, text: &str) -> ControlFlow<()> {
        let frame: Value = serde_json::from_str(text).unwrap();
        match frame["type"].as_str() {
            Some("data") => {
                let message = frame["payload"]["data"].as_str();
                if !self.take(&frame["topic"], &frame["epoch"], &frame["seq"], message) {
                    self.count("live messages that a subscriber had");
                }
            }
            Some("history") => {
                for entry in frame["messages"].as_array().unwrap() {
                    let message = entry["data"].as_str();
                    if message.is_none() && entry["hole"] != true {
                        self.violations.push(format!("{}: {entry} is no entry", self.user));
                    }
                    if self.take(&frame["topic"], &frame["epoch"], &entry["seq"], message) {
                        self.count("numbers that history filled");
                    }
                }
                if frame.get("recovered").is_some() {
                    self.reached(&frame["topic"], &frame);
                    let run = self.runs.get_mut(frame["topic"].as_str().unwrap()).unwrap();
                    run.is_behind |= frame["more"] == true;
                }
            }
            Some("ack") if self.asked.as_ref().is_some_and(|(id, _)| frame["id"] == **id) => self.acknowledged(&frame),
            // The ack of a frame that was sent again.
            Some("ack") => {}
            Some("pong") => {
                for topic in frame["behind"].as_object().unwrap().keys() {
                    self.runs.get_mut(topic).unwrap().is_behind = true;
                }
            }
            Some("error") if frame["code"] == "unidentified" => return ControlFlow::Break(()),
            Some("error") if frame["temporary"] == true => self.again(&frame),
            // What the gateway says itself.
            None if frame.get("connectionId").is_some() => self.again(&frame),
            _ => self.violations.push(format!("{} got {frame}", self.user)),
        }
        ControlFlow::Continue(())
    }

    /// Takes a number of a topic, and returns whether it is new.
    fn take(&mut self, topic: &Value, epoch: &Value, seq: &Value, message: Option<&str>) -> bool {
        let topic = topic.as_str().unwrap();
        let run = self.runs.get_mut(topic).unwrap();
        if run.epoch.is_empty() {
            // A live message that came before the first ack says where the topic is. Nothing was sent before.
            run.epoch = epoch.as_str().unwrap().to_owned();
        }
        match run.take(epoch, seq.as_u64().unwrap(), message) {
            Ok(is_new) => is_new,
            Err(violation) => {
                self.violations.push(format!("{}, {topic}: {violation}", self.user));
                false
            }
        }
    }

    /// A frame of the subscriber failed. It sends its subscribe frame again; the others are repeated in any case.
    fn again(&mut self, frame: &Value) {
        let id = frame["id"].as_str();
        if self.asked.as_ref().is_some_and(|(asked, _)| id.is_none_or(|id| id == asked)) {
            self.asked = None;
        }
        self.count("frames of subscribers that failed");
    }

    fn acknowledged(&mut self, ack: &Value) {
        let mut is_subscribed = true;
        for entry in ack["topics"].as_array().unwrap() {
            let topic = entry["topic"].as_str().unwrap();
            let run = self.runs.get_mut(topic).unwrap();
            if entry["temporary"] == true {
                is_subscribed = false;
            } else if entry.get("recovered").is_some() {
                self.reached(&entry["topic"], entry);
            } else if run.epoch.is_empty() {
                run.epoch = entry["epoch"].as_str().unwrap().to_owned();
                run.seq = entry["seq"].as_u64().unwrap();
            }
        }
        self.asked = None;
        self.is_subscribed |= is_subscribed;
    }

    /// Checks an answer that says how far the history goes.
    fn reached(&mut self, topic: &Value, answer: &Value) {
        let run = self.runs.get_mut(topic.as_str().unwrap()).unwrap();
        let reached = answer["seq"].as_u64().unwrap();
        if answer["recovered"] != true {
            self.violations.push(format!("{}: {answer} at {}, and nothing has expired", self.user, run.seq));
        } else if run.seq < reached {
            self.violations.push(format!("{}: {answer} hides a gap behind {}", self.user, run.seq));
        }
    }
}

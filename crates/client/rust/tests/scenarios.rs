//! The scenarios of `crates/client/scenarios.md`, against the real local stack. A test has the name of its row.

#![expect(clippy::unwrap_used, reason = "a helper that fails should fail its test, like `unwrap` in the test itself")]

use std::time::Duration;

use serde_json::{Value, json};
use switchboard_client::{
    Ack, Client, Error, Event, Events, Members, Message, Options, Position, Presence, Publication, Range, Ready, Start,
    State, Subscription, TokenSource, connect,
};
use switchboard_tests::client::Client as Plain;
use switchboard_tests::network::Network;
use switchboard_tests::stack::{PATIENCE, Stack, table_name, text};
use tokio::net::TcpListener;

/// Short pauses. Only where a test loses an answer it also waits less for that.
fn options() -> Options {
    Options { max_delay: Duration::from_millis(200), ..Options::default() }
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Waits, or fails. Only a failing test waits that long.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it did not happen")
}

/// A client, and what it said.
struct Watched {
    client: Client,
    events: Events,
    seen: Vec<Event>,
}

impl Watched {
    fn new(address: &str, query: &str, options: Options) -> Self {
        let (client, events) = connect(&format!("ws://{address}/dev{query}"), options).unwrap();
        Self { client, events, seen: Vec::new() }
    }

    /// Waits for an event of this kind, and leaves out others.
    async fn event(&mut self, is: impl Fn(&Event) -> bool) -> Event {
        loop {
            let event = soon(self.events.next()).await.unwrap_or_else(|| panic!("the client ended: {:?}", self.seen));
            self.seen.push(event.clone());
            if is(&event) {
                return event;
            }
        }
    }

    async fn connected(&mut self) {
        self.event(|event| matches!(event, Event::Connected { .. })).await;
    }

    /// Waits until there is no connection, and returns the reason.
    async fn disconnected(&mut self) -> String {
        let event = self.event(|event| matches!(event, Event::Connecting { reason: Some(_), .. })).await;
        match event {
            Event::Connecting { reason: Some(reason), .. } => reason,
            _ => unreachable!(),
        }
    }

    async fn recovered(&mut self) -> (String, Position, Position) {
        match self.event(|event| matches!(event, Event::Recovered { .. })).await {
            Event::Recovered { topic, from, to } => (topic, from, to),
            _ => unreachable!(),
        }
    }

    async fn gap(&mut self) -> Event {
        self.event(|event| matches!(event, Event::Gap { .. })).await
    }

    async fn closed(&mut self) -> (String, String) {
        match self.event(|event| matches!(event, Event::Closed { .. })).await {
            Event::Closed { code, reason } => (code, reason),
            _ => unreachable!(),
        }
    }

    fn publish(&self, topic: &str, message: impl serde::Serialize) -> Publication {
        self.client.topic(topic).publish(&message)
    }

    async fn subscribe(&self, topic: &str) -> Subscription {
        let mut subscription = self.client.topic(topic).subscribe(Start::Now);
        soon(subscription.ready()).await.unwrap();
        subscription
    }

    /// Everything that it said until now.
    fn so_far(&mut self) -> &[Event] {
        while let Some(Some(event)) = futures_util::FutureExt::now_or_never(self.events.next()) {
            self.seen.push(event);
        }
        &self.seen
    }

    fn connections(&mut self) -> usize {
        self.so_far().iter().filter(|event| matches!(event, Event::Connected { .. })).count()
    }
}

/// A presence, and what it told.
struct Watching {
    presence: Presence,
    told: Vec<Members>,
}

impl Watching {
    fn new(presence: Presence) -> Self {
        Self { presence, told: Vec::new() }
    }

    /// Waits for these members and words. A word that is null says nothing.
    async fn until(&mut self, expected: Value, is_current: bool) -> &Members {
        while self.told.last().is_none_or(|it| it.is_current != is_current || json!(it.users) != expected) {
            let next = tokio::time::timeout(PATIENCE, self.presence.next()).await;
            let told = next.unwrap_or_else(|_| panic!("no {expected}, but {:?}", self.told)).expect("it has ended");
            assert_eq!(told.count, told.users.as_ref().unwrap().len() as u64);
            self.told.push(told);
        }
        self.told.last().unwrap()
    }

    async fn refused(&mut self) -> String {
        soon(self.presence.ready()).await.unwrap_err().code
    }
}

/// Takes this many messages.
async fn take(subscription: &mut Subscription, count: usize) -> Vec<Message> {
    let mut messages = Vec::new();
    while messages.len() < count {
        let next = tokio::time::timeout(PATIENCE, subscription.next()).await;
        messages.push(next.unwrap_or_else(|_| panic!("only this came: {messages:?}")).unwrap());
    }
    messages
}

/// Takes messages up to this one.
async fn take_until(subscription: &mut Subscription, last: impl Into<Value>) -> Vec<Value> {
    let (last, mut heard) = (last.into(), Vec::new());
    while heard.last() != Some(&last) {
        let next = tokio::time::timeout(PATIENCE, subscription.next()).await;
        heard.push(next.unwrap_or_else(|_| panic!("only this came: {heard:?}")).unwrap().json().unwrap());
    }
    heard
}

fn data(messages: &[Message]) -> Vec<Value> {
    messages.iter().map(|message| message.json().unwrap()).collect()
}

fn seqs(messages: &[Message]) -> Vec<u64> {
    messages.iter().map(|message| message.position.as_ref().unwrap().seq).collect()
}

async fn acks(posts: Vec<Publication>) -> Vec<Result<Ack, Error>> {
    soon(futures_util::future::join_all(posts)).await
}

fn seq_of(ack: &Result<Ack, Error>) -> u64 {
    ack.as_ref().unwrap().position.as_ref().unwrap().seq
}

/// Publishes without the client, and returns the ack.
async fn publish(sender: &mut Plain, topic: &str, message: impl Into<Value>) -> Value {
    let id = fastrand::u64(..).to_string();
    let ack = sender.ask(json!({"type": "message", "topic": topic, "message": message.into(), "id": id})).await;
    assert_eq!(ack["type"], "ack", "{ack}");
    ack
}

fn position(ack: &Value) -> Position {
    serde_json::from_value(json!({"epoch": ack["epoch"], "seq": ack["seq"]})).unwrap()
}

/// The id of the first connection in the log.
async fn connection_id(stack: &Stack) -> String {
    let lines = stack.logged(1, &["gateway", "= connected"]).await;
    lines[0].split_whitespace().find(|word| word.ends_with('=')).unwrap().to_owned()
}

fn ready(has_history: bool, is_recovered: Option<bool>) -> impl Fn(&Ready) -> bool {
    move |ready| ready.has_history == has_history && ready.is_recovered == is_recovered
}

#[tokio::test]
async fn cut() {
    let stack = Stack::start().await;
    let network = Network::to(&stack.gateway).await;
    let mut sender = stack.connect("?userId=1").await;
    let mut two = Watched::new(&network.address, "?userId=2", options());
    let mut heard = two.client.topic("room.7").subscribe(Start::Now);
    assert!(ready(true, None)(&soon(heard.ready()).await.unwrap()));
    publish(&mut sender, "room.7", 1).await;
    let mut messages = take(&mut heard, 1).await;
    network.set_down(true);
    network.cut().await;
    for number in [2, 3] {
        publish(&mut sender, "room.7", number).await;
    }
    network.set_down(false);
    let (topic, from, to) = two.recovered().await;
    assert_eq!((topic.as_str(), from.seq, to.seq), ("room.7", 1, 3));
    publish(&mut sender, "room.7", 4).await;
    messages.extend(take(&mut heard, 3).await);
    assert_eq!(data(&messages), [1, 2, 3, 4]);
    assert_eq!(seqs(&messages), [1, 2, 3, 4]);
    assert!(messages.iter().all(|message| message.sender_id.as_deref() == Some("1")));
    assert!(!two.so_far().iter().any(|event| matches!(event, Event::Gap { .. })));
}

#[tokio::test]
async fn restart() {
    let folder = tempfile::tempdir().unwrap();
    let folder = ["--data-dir", folder.path().to_str().unwrap()];
    let stack = Stack::with(&folder).await;
    let port = stack.gateway.split_once(':').unwrap().1.to_owned();
    let mut one = Watched::new(&stack.gateway, "?userId=1", options());
    let mut heard = one.subscribe("room.7").await;
    soon(one.publish("room.7", "before")).await.unwrap();
    stack.interrupt().await;
    let reason = one.disconnected().await;
    assert!(reason.contains("1012") || reason.contains("1006"), "{reason}");
    let posts: Vec<_> = (1..=5).map(|number| one.publish("room.7", number)).collect();
    assert!(posts.iter().all(|post| !post.is_dropped()));
    assert_eq!(one.client.state(), State::Connecting);
    let _again = Stack::with(&[&folder[..], &["--port", &port]].concat()).await;
    let acks = acks(posts).await;
    assert_eq!(acks.iter().map(seq_of).collect::<Vec<_>>(), [2, 3, 4, 5, 6]);
    assert_eq!(Value::from(data(&take(&mut heard, 6).await)), json!(["before", 1, 2, 3, 4, 5]));
    let page = soon(one.client.topic("room.7").history(Range::default())).await.unwrap();
    assert_eq!((Value::from(data(&page.messages)), page.has_more), (json!([5, 4, 3, 2, 1, "before"]), false));
}

#[tokio::test]
async fn lost_ack() {
    let stack = Stack::start().await;
    let network = Network::to(&stack.gateway).await;
    let mut one = Watched::new(&network.address, "?userId=1", options());
    one.connected().await;
    network.set_deaf(true);
    let post = one.publish("room.7", "once");
    let id = post.id().to_owned();
    // The ack is on its way, and gets lost.
    network.until(|state| state.lost > 0).await;
    network.set_deaf(false);
    network.cut().await;
    let ack = soon(post).await.unwrap();
    assert_eq!((ack.id, ack.position.unwrap().seq, ack.is_duplicate), (id, 1, true));
    let page = soon(one.client.topic("room.7").history(Range::default())).await.unwrap();
    assert_eq!(data(&page.messages), ["once"]);
}

#[tokio::test]
async fn missing_ack() {
    let stack = Stack::start().await;
    let network = Network::to(&stack.gateway).await;
    let mut one = Watched::new(&network.address, "?userId=1", Options { timeout: millis(4000), ..options() });
    one.connected().await;
    network.set_deaf(true);
    let post = one.publish("room.7", "once");
    network.until(|state| state.lost > 0).await;
    network.set_deaf(false);
    // The connection stays: only the ack is missing.
    let ack = soon(post).await.unwrap();
    assert_eq!((ack.position.unwrap().seq, ack.is_duplicate, network.state().connections), (1, true, 1));
}

#[tokio::test]
async fn lost_message() {
    let stack = Stack::start().await;
    let network = Network::to(&stack.gateway).await;
    let mut sender = stack.connect("?userId=1").await;
    let two = Watched::new(&network.address, "?userId=2", options());
    let mut heard = two.subscribe("room.7").await;
    publish(&mut sender, "room.7", 1).await;
    let mut messages = take(&mut heard, 1).await;
    network.set_deaf(true);
    publish(&mut sender, "room.7", 2).await;
    network.until(|state| state.lost > 0).await;
    network.set_deaf(false);
    for number in [3, 4] {
        publish(&mut sender, "room.7", number).await;
    }
    messages.extend(take(&mut heard, 3).await);
    assert_eq!(data(&messages), [1, 2, 3, 4]);
    assert_eq!(network.state().connections, 1);
}

#[tokio::test]
async fn lost_last_message() {
    let stack = Stack::start().await;
    let network = Network::to(&stack.gateway).await;
    let mut sender = stack.connect("?userId=1").await;
    let two = Watched::new(&network.address, "?userId=2", Options { heartbeat: millis(500), ..options() });
    let mut heard = two.subscribe("room.7").await;
    publish(&mut sender, "room.7", 1).await;
    let mut messages = take(&mut heard, 1).await;
    network.set_deaf(true);
    publish(&mut sender, "room.7", 2).await;
    network.until(|state| state.lost > 0).await;
    network.set_deaf(false);
    messages.extend(take(&mut heard, 1).await);
    assert_eq!(data(&messages), [1, 2]);
}

#[tokio::test]
async fn deaf() {
    let stack = Stack::start().await;
    let network = Network::to(&stack.gateway).await;
    let short = Options { heartbeat: millis(500), timeout: millis(500), ..options() };
    let mut one = Watched::new(&network.address, "?userId=1", short);
    let mut heard = one.subscribe("room.7").await;
    network.set_deaf(true);
    network.until(|state| state.connections > 1).await;
    network.set_deaf(false);
    while !one.disconnected().await.contains("does not answer") {}
    soon(one.publish("room.7", "hi")).await.unwrap();
    assert_eq!(data(&take(&mut heard, 1).await), ["hi"]);
}

#[tokio::test]
async fn idle() {
    let stack = Stack::with(&["--idle-timeout", "4s"]).await;
    let network = Network::to(&stack.gateway).await;
    let mut one = Watched::new(&network.address, "?userId=1", Options { heartbeat: millis(1500), ..options() });
    one.connected().await;
    // Four pings take longer than the gateway waits.
    stack.logged(4, &["default", "served"]).await;
    assert_eq!((network.state().connections, one.client.state()), (1, State::Connected));
}

#[tokio::test]
async fn rotation() {
    let stack = Stack::with(&["--connection-duration", "20s"]).await;
    let network = Network::to(&stack.gateway).await;
    let mut two = Watched::new(&network.address, "?userId=2", Options { lifetime: millis(4000), ..options() });
    let mut direct = two.client.topic("@me").subscribe(Start::Now);
    let mut all = two.subscribe("room.*").await;
    let (mut room, mut hall) = (two.subscribe("room.7").await, two.subscribe("hall").await);
    let mut sender = stack.connect("?userId=1").await;
    let (mut sent, mut since) = (0, std::time::Instant::now());
    while two.connections() < 4 {
        // The sender is no client of the library, so it has to look after its own connection.
        if since.elapsed() > millis(2000) {
            (sender, since) = (stack.connect("?userId=1").await, std::time::Instant::now());
        }
        sent += 1;
        for topic in ["room.7", "room.8", "hall"] {
            publish(&mut sender, topic, sent).await;
        }
        let id = format!("d{sent}");
        sender.ask(json!({"action": "sendMessage", "destinationUserId": "2", "body": sent, "id": id})).await;
    }
    let count = usize::try_from(sent).unwrap();
    let numbers: Vec<_> = (1..=sent).collect();
    assert_eq!(data(&take(&mut room, count).await), numbers);
    let (seven, eight): (Vec<_>, Vec<_>) =
        take(&mut all, 2 * count).await.into_iter().partition(|it| it.topic == "room.7");
    for messages in [take(&mut hall, count).await, take(&mut direct, count).await, seven, eight] {
        let mut heard: Vec<_> = messages.iter().map(|it| it.json::<i32>().unwrap()).collect();
        heard.sort_unstable();
        assert_eq!(heard, numbers);
    }
    // A connection was open at every moment.
    let others = two.so_far().iter().filter(|event| !matches!(event, Event::Connected { .. }));
    assert_eq!(others.collect::<Vec<_>>(), [&Event::Connecting { attempt: 1, delay: Duration::ZERO, reason: None }]);
}

#[tokio::test]
async fn order() {
    let stack = Stack::with(&["--fault", "message-delay=100ms"]).await;
    let mut sender = stack.connect("?userId=1").await;
    let two = Watched::new(&stack.gateway, "?userId=2", options());
    let mut heard = two.subscribe("room.7").await;
    // The frames overtake each other, and half of them come twice.
    let mut frames = 0;
    for number in 1..=30 {
        for again in [false, true].into_iter().take(1 + (number + 1) % 2) {
            let id = format!("m{number}");
            let frame = json!({"type": "message", "topic": "room.7", "message": number, "id": id, "again": again});
            sender.send(frame).await;
            frames += 1;
        }
    }
    for _ in 0..frames {
        assert_eq!(sender.next().await["type"], "ack");
    }
    publish(&mut sender, "room.7", "end").await;
    let messages = take(&mut heard, 31).await;
    let mut numbers: Vec<u32> = messages[..30].iter().map(|message| message.json().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=30).collect::<Vec<_>>());
    assert!(seqs(&messages).is_sorted_by(|one, next| one < next), "{messages:?}");
    assert_eq!(messages[30].json::<String>().unwrap(), "end");
}

#[tokio::test]
async fn own_order() {
    let stack = Stack::with(&["--fault", "reorder-messages=0.5"]).await;
    let one = Watched::new(&stack.gateway, "?userId=1", options());
    let mut heard = one.subscribe("hall").await;
    let posts = (1..=10).map(|number| one.publish("hall", number)).collect();
    assert!(acks(posts).await.iter().all(Result::is_ok));
    assert_eq!(data(&take(&mut heard, 10).await), (1..=10).collect::<Vec<_>>());
}

#[tokio::test]
async fn several() {
    let stack = Stack::start().await;
    let network = Network::to(&stack.gateway).await;
    let mut one = Watched::new(&network.address, "?userId=1", Options { buffer: 1, ..options() });
    one.connected().await;
    let room = one.client.topic("room.7");
    soon(room.publish("before")).await.unwrap();
    network.set_deaf(true);
    let post = room.publish_all(&["a", "b", "c"]);
    let id = post.id().to_owned();
    network.until(|state| state.lost > 0).await;
    network.set_deaf(false);
    network.cut().await;
    let acks = soon(post).await.unwrap();
    let seqs = acks.iter().map(|ack| ack.position.as_ref().unwrap().seq);
    assert_eq!(seqs.collect::<Vec<_>>(), [2, 3, 4]);
    assert!(acks.iter().all(|ack| ack.is_duplicate && ack.id == id), "{acks:?}");
    let page = soon(room.history(Range::default())).await.unwrap();
    assert_eq!(data(&page.messages), ["c", "b", "a", "before"]);
    for wrong in [vec![], vec![1; 101]] {
        let error = soon(room.publish_all(&wrong)).await.unwrap_err();
        assert_eq!(error.code, "invalid_field");
        assert!(error.message.contains("an array of 1 to 100 messages"), "{error}");
    }
    let large = room.publish_all(&["x".repeat(20_000), "x".repeat(20_000)]);
    assert!(large.is_dropped());
    let error = soon(large).await.unwrap_err();
    assert_eq!(error.code, "too_large");
    assert!(error.message.contains("its frame has 400"), "{error}");
    let both = (one.client.topic("hall").publish_all(&[1, 2]), room.publish_all(&[3]));
    assert_eq!(soon(both.1).await.unwrap_err().code, "buffer_full");
    let acks = soon(both.0).await.unwrap();
    assert_eq!((acks.len(), &acks[0].position), (2, &None));
}

#[tokio::test]
async fn busy() {
    let stack = Stack::start().await;
    let network = Network::to(&stack.gateway).await;
    let mut one = Watched::new(&network.address, "?userId=1", options());
    one.connected().await;
    network.set_deaf(true);
    let posts: Vec<_> = ["first", "second"].map(|text| one.publish("room.7", text)).into();
    network.until(|state| state.lost > 0).await;
    network.set_deaf(false);
    let id = posts[0].id();
    network.say(&json!({"type": "error", "code": "busy", "message": "too much at once", "temporary": true, "id": id}));
    let acks = acks(posts).await;
    assert_eq!(acks.iter().map(seq_of).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(acks.iter().map(|ack| ack.as_ref().unwrap().is_duplicate).collect::<Vec<_>>(), [true, false]);
    assert_eq!(network.state().connections, 1);
}

#[tokio::test]
async fn busy_subscribe() {
    let stack = Stack::start().await;
    let network = Network::to(&stack.gateway).await;
    let mut one = Watched::new(&network.address, "?userId=1", options());
    one.connected().await;
    let frame_of = async || {
        let rows = stack.rows("topics").await;
        let mut ids: Vec<_> = rows.iter().filter(|row| row.contains_key("subscriptionId")).collect();
        ids.retain(|row| text(row, "topic").starts_with("room."));
        let mut ids: Vec<_> = ids.iter().map(|row| text(row, "subscriptionId")).collect();
        assert_eq!(ids.len(), 3, "{rows:?}");
        ids.dedup();
        assert_eq!(ids.len(), 1, "the topics have several frames: {rows:?}");
        ids.remove(0)
    };
    network.set_deaf(true);
    let topics = ["room.1", "room.2", "room.3"].map(|name| one.client.topic(name));
    let mut subscriptions = topics.map(|topic| topic.subscribe(Start::Now));
    network.until(|state| state.lost > 0).await;
    network.set_deaf(false);
    let id = frame_of().await;
    network.say(&json!({"type": "error", "code": "busy", "message": "too much at once", "temporary": true, "id": id}));
    for subscription in &mut subscriptions {
        soon(subscription.ready()).await.unwrap();
    }
    assert_ne!(frame_of().await, id);
    assert_eq!(network.state().connections, 1);
}

#[tokio::test]
async fn too_fast() {
    let stack = Stack::with(&["--env", "MAX_FRAMES_PER_SECOND=20", "--max-environments", "1"]).await;
    let slow = Options { max_delay: millis(2000), ..options() };
    let mut one = Watched::new(&stack.gateway, "?userId=1", slow);
    one.connected().await;
    let posts: Vec<_> = (1..=80).map(|number| one.publish(&format!("room.{number}"), number)).collect();
    let acks = tokio::time::timeout(2 * PATIENCE, futures_util::future::join_all(posts)).await.unwrap();
    assert!(acks.iter().all(|ack| seq_of(ack) == 1));
    assert_eq!(one.connections(), 1);
}

#[tokio::test]
async fn no_history() {
    let stack = Stack::start().await;
    let network = Network::to(&stack.gateway).await;
    let mut one = Watched::new(&network.address, "?userId=1", options());
    let mut heard = one.client.topic("hall").subscribe(Start::Last(5));
    assert!(ready(false, None)(&soon(heard.ready()).await.unwrap()));
    soon(one.publish("hall", 1)).await.unwrap();
    network.cut().await;
    let (topic, reason) = ("hall".to_owned(), "no_history".to_owned());
    assert_eq!(one.gap().await, Event::Gap { topic, from: None, to: None, reason });
    soon(one.publish("hall", 2)).await.unwrap();
    assert_eq!(data(&take(&mut heard, 2).await), [1, 2]);
    let refused = soon(one.client.topic("hall").history(Range::default())).await;
    assert_eq!(refused.unwrap_err().code, "no_history");
}

#[tokio::test]
async fn history_gone() {
    let stack = Stack::start().await;
    let port = stack.gateway.split_once(':').unwrap().1.to_owned();
    let mut one = Watched::new(&stack.gateway, "?userId=1", options());
    let mut heard = one.subscribe("room.7").await;
    soon(one.publish("room.7", 1)).await.unwrap();
    take(&mut heard, 1).await;
    let here = heard.position().unwrap().clone();
    // Without a folder for its tables, the stack forgets everything.
    stack.interrupt().await;
    let _again = Stack::with(&["--port", &port]).await;
    let Event::Gap { topic, from, to, reason } = one.gap().await else { unreachable!() };
    let to = to.unwrap();
    assert_eq!((topic.as_str(), from.as_ref(), reason.as_str(), to.seq), ("room.7", Some(&here), "expired", 0));
    assert_eq!(heard.position(), Some(&to));
    // A further listener hears the same, also while there is nothing new.
    for number in [2, 3] {
        let mut late = one.client.topic("room.7").subscribe(Start::After(here.clone()));
        assert!(ready(true, Some(false))(&soon(late.ready()).await.unwrap()));
        soon(one.publish("room.7", number)).await.unwrap();
        assert_eq!(data(&take(&mut heard, 1).await), [number]);
    }
}

#[tokio::test]
async fn history_begins() {
    let rules = |rule: &str| format!(r#"TOPIC_RULES=[{{"topic":"room.*"{rule}}}]"#);
    let stack = Stack::with(&["--env", &rules("")]).await;
    let port = stack.gateway.split_once(':').unwrap().1.to_owned();
    let network = Network::to(&stack.gateway).await;
    let mut one = Watched::new(&network.address, "?userId=1", options());
    let mut heard = one.client.topic("room.7").subscribe(Start::Now);
    assert!(ready(false, None)(&soon(heard.ready()).await.unwrap()));
    // During a deployment one function has the new rule, and another one still has the old rule.
    for seq in [1, 2] {
        network.say(&json!({
            "id": "s1", "payload": {"data": seq}, "type": "data", "topic": "room.7", "epoch": "k3f9xq2a", "seq": seq,
        }));
    }
    assert_eq!(take_until(&mut heard, 2).await, [1, 2]);
    network.set_down(true);
    network.cut().await;
    stack.interrupt().await;
    let stack = Stack::with(&["--port", &port, "--env", &rules(r#","history":{"hours":24}"#)]).await;
    let mut sender = stack.connect("?userId=2").await;
    let missed = position(&publish(&mut sender, "room.7", "missed").await);
    network.set_down(false);
    let Event::Gap { topic, to, .. } = one.gap().await else { unreachable!() };
    assert_eq!((topic.as_str(), to), ("room.7", Some(missed)));
    publish(&mut sender, "room.7", 3).await;
    assert_eq!(take_until(&mut heard, 3).await, [3]);
}

#[tokio::test]
async fn many_topics() {
    let stack = Stack::start().await;
    let network = Network::to(&stack.gateway).await;
    let mut sender = stack.connect("?userId=1").await;
    let mut two = Watched::new(&network.address, "?userId=2", options());
    let names = ["room.7", "hall", "room.8", "yard"];
    let mut subscriptions = names.map(|name| two.client.topic(name).subscribe(Start::Now));
    for (name, subscription) in names.iter().zip(&mut subscriptions) {
        soon(subscription.ready()).await.unwrap();
        publish(&mut sender, name, format!("{name} 1")).await;
        take(subscription, 1).await;
    }
    network.set_down(true);
    network.cut().await;
    for name in names {
        publish(&mut sender, name, format!("{name} 2")).await;
    }
    network.set_down(false);
    let (mut recovered, mut gaps) = (Vec::new(), Vec::new());
    while recovered.len() + gaps.len() < 4 {
        match two.event(|event| matches!(event, Event::Recovered { .. } | Event::Gap { .. })).await {
            Event::Recovered { topic, .. } => recovered.push(topic),
            Event::Gap { topic, .. } => gaps.push(topic),
            _ => unreachable!(),
        }
    }
    recovered.sort();
    gaps.sort();
    assert_eq!((recovered, gaps), (vec!["room.7".into(), "room.8".into()], vec!["hall".into(), "yard".into()]));
    for (name, subscription) in names.iter().zip(&mut subscriptions) {
        publish(&mut sender, name, format!("{name} 3")).await;
        let heard = take_until(subscription, format!("{name} 3")).await;
        let kept: &[u32] = if name.starts_with("room") { &[2, 3] } else { &[3] };
        assert_eq!(heard, kept.iter().map(|number| format!("{name} {number}")).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn pattern() {
    let stack = Stack::start().await;
    let network = Network::to(&stack.gateway).await;
    let mut sender = stack.connect("?userId=1").await;
    let mut two = Watched::new(&network.address, "?userId=2", options());
    let mut all = two.client.topic("room.*").subscribe(Start::Now);
    let mut room = two.client.topic("room.7").subscribe(Start::Now);
    assert!(ready(false, None)(&soon(all.ready()).await.unwrap()));
    assert!(ready(true, None)(&soon(room.ready()).await.unwrap()));
    publish(&mut sender, "room.7", 1).await;
    publish(&mut sender, "room.8", 2).await;
    for again in [false, true] {
        let frame = json!({"type": "message", "topic": "room.7", "message": 3, "id": "m3", "again": again});
        assert_eq!(sender.ask(frame).await["type"], "ack");
    }
    let mut heard = take(&mut all, 3).await;
    network.set_down(true);
    network.cut().await;
    publish(&mut sender, "room.7", 4).await;
    publish(&mut sender, "room.8", 5).await;
    network.set_down(false);
    let (mut recovered, mut gaps) = (Vec::new(), Vec::new());
    while recovered.is_empty() || gaps.is_empty() {
        match two.event(|event| matches!(event, Event::Recovered { .. } | Event::Gap { .. })).await {
            Event::Recovered { topic, .. } => recovered.push(topic),
            Event::Gap { topic, reason, .. } => gaps.push((topic, reason)),
            _ => unreachable!(),
        }
    }
    publish(&mut sender, "room.8", 6).await;
    publish(&mut sender, "room.7", 7).await;
    heard.extend(take(&mut all, 2).await);
    let heard: Vec<_> = heard.iter().map(|it| json!([it.topic, it.position.as_ref().unwrap().seq, it.data])).collect();
    let expected = json!([["room.7", 1, 1], ["room.8", 1, 2], ["room.7", 2, 3], ["room.8", 3, 6], ["room.7", 4, 7]]);
    assert_eq!(json!(heard), expected);
    assert_eq!(take_until(&mut room, 7).await, [1, 3, 4, 7]);
    assert_eq!((recovered, gaps), (vec!["room.7".to_owned()], vec![("room.*".to_owned(), "no_history".to_owned())]));
}

#[tokio::test]
async fn members() {
    let stack = Stack::start().await;
    let [one, two] = ["1", "2"].map(|user| Watched::new(&stack.gateway, &format!("?userId={user}"), options()));
    let room = one.client.topic("room.7");
    let mut here = Watching::new(room.presence_with(&json!({"status": "here"})).unwrap());
    soon(here.presence.ready()).await.unwrap();
    assert_eq!((here.presence.count(), here.presence.is_current()), (1, true));
    let first = here.until(json!({"1": {"status": "here"}}), true).await;
    assert_eq!((&first.topic[..], &first.joined[..]), ("room.7", &["1".to_owned()][..]));
    let mut other = Watching::new(two.client.topic("room.7").presence());
    let both = json!({"1": {"status": "here"}, "2": null});
    other.until(both.clone(), true).await;
    assert_eq!(here.until(both, true).await.joined, ["2"]);
    soon(other.presence.set("busy")).await.unwrap();
    assert_eq!(here.until(json!({"1": {"status": "here"}, "2": "busy"}), true).await.changed, ["2"]);
    // Only a subscribe frame takes back what was said.
    soon(here.presence.set(&Value::Null)).await.unwrap();
    other.until(json!({"1": null, "2": "busy"}), true).await;
    drop(other);
    let last = here.until(json!({"1": null}), true).await;
    assert_eq!((&last.left[..], last.count), (&["2".to_owned()][..], 1));
    assert!(here.told.iter().all(|it| it.is_current));
    // Words that are too large change nothing.
    let error = soon(here.presence.set(&"x".repeat(2000))).await.unwrap_err();
    assert!(error.code == "invalid_field" && error.message.contains("1024 bytes"), "{error}");
    soon(here.presence.refresh()).await.unwrap();
    assert_eq!(json!(here.presence.users()), json!({"1": null}));
}

#[tokio::test]
async fn members_away() {
    let stack = Stack::start().await;
    let network = Network::to(&stack.gateway).await;
    let one = Watched::new(&network.address, "?userId=1", options());
    let [mut two, mut three] = [stack.connect("?userId=2").await, stack.connect("?userId=3").await];
    two.ask(json!({"type": "subscribe", "topic": "room.7", "id": "s1"})).await;
    let mut here = Watching::new(one.client.topic("room.7").presence_with("first").unwrap());
    let before = json!({"1": "first", "2": null});
    here.until(before.clone(), true).await;
    network.set_down(true);
    network.cut().await;
    let away = here.until(before, false).await;
    assert!(away.joined.is_empty() && away.left.is_empty() && away.changed.is_empty(), "{away:?}");
    three.ask(json!({"type": "subscribe", "topic": "room.7", "data": "hi", "id": "s1"})).await;
    two.ask(json!({"type": "unsubscribe", "topic": "room.7", "id": "u1"})).await;
    // It is said by the subscribe frame of the next connection, or behind it.
    let saying = here.presence.set("second");
    let count = here.told.len();
    network.set_down(false);
    soon(saying).await.unwrap();
    let after = json!({"1": "second", "3": "hi"});
    here.until(after.clone(), true).await;
    let back = &here.told[count..];
    assert_eq!(back.iter().flat_map(|it| it.joined.clone()).collect::<Vec<_>>(), ["3"]);
    assert_eq!(back.iter().flat_map(|it| it.left.clone()).collect::<Vec<_>>(), ["2"]);
    one.client.close();
    here.until(after, false).await;
    assert!(soon(here.presence.next()).await.is_none());
}

#[tokio::test]
async fn members_rotation() {
    let stack = Stack::start().await;
    let mut one = Watched::new(&stack.gateway, "?userId=1", Options { lifetime: millis(3000), ..options() });
    let two = Watched::new(&stack.gateway, "?userId=2", options());
    let mut here = Watching::new(one.client.topic("room.7").presence_with("here").unwrap());
    soon(here.presence.ready()).await.unwrap();
    let mut other = Watching::new(two.client.topic("room.7").presence());
    let both = json!({"1": "here", "2": null});
    other.until(both.clone(), true).await;
    here.until(both, true).await;
    let before = [here.told.len(), other.told.len()];
    for _ in 0..4 {
        one.connected().await;
    }
    soon(here.presence.refresh()).await.unwrap();
    // This change comes last, so whatever the rotations had told would have come before it.
    soon(other.presence.set("end")).await.unwrap();
    let after = json!({"1": "here", "2": "end"});
    here.until(after.clone(), true).await;
    other.until(after, true).await;
    assert_eq!([here.told.len(), other.told.len()], before.map(|count| count + 1));
}

#[tokio::test]
async fn members_beside() {
    let stack = Stack::start().await;
    let network = Network::to(&stack.gateway).await;
    let mut one = Watched::new(&network.address, "?userId=1", options());
    let room = one.client.topic("room.7");
    let mut heard = one.subscribe("room.7").await;
    soon(room.publish(&1)).await.unwrap();
    let mut first = Watching::new(room.presence_with("first").unwrap());
    first.until(json!({"1": "first"}), true).await;
    soon(room.publish(&2)).await.unwrap();
    // One connection is one member, so the last word of all watchers counts.
    let mut second = Watching::new(room.presence_with("second").unwrap());
    second.until(json!({"1": "second"}), true).await;
    soon(first.presence.set("third")).await.unwrap();
    second.until(json!({"1": "third"}), true).await;
    let before = one.so_far().len();
    assert_eq!(before, 2, "{:?}", one.seen);
    network.cut().await;
    one.recovered().await;
    soon(second.presence.refresh()).await.unwrap();
    assert_eq!(json!(second.presence.users()), json!({"1": "third"}));
    // The end of a watcher ends its words, and nothing else.
    drop(first);
    second.until(json!({"1": "second"}), true).await;
    drop(second);
    let mut again = Watching::new(room.presence());
    again.until(json!({"1": null}), true).await;
    soon(room.publish(&3)).await.unwrap();
    assert_eq!(data(&take(&mut heard, 3).await), [1, 2, 3]);
    assert_eq!(one.connections(), 2);
}

#[tokio::test]
async fn no_members() {
    let stack = Stack::start().await;
    let mut one = Watched::new(&stack.gateway, "?userId=1", options());
    let hall = one.client.topic("hall");
    let mut heard = hall.subscribe(Start::Now);
    let mut here = Watching::new(hall.presence());
    let error = soon(here.presence.ready()).await.unwrap_err();
    assert!(error.code == "no_presence" && error.message.contains("the topic `hall` has no presence"), "{error}");
    assert!(soon(here.presence.next()).await.is_none());
    soon(heard.ready()).await.unwrap();
    soon(hall.publish("hi")).await.unwrap();
    // A later watcher hears the same. Words that are too large end their watcher, and not those who hear messages.
    assert_eq!(Watching::new(hall.presence()).refused().await, "no_presence");
    let room = one.client.topic("room.7");
    let mut there = one.subscribe("room.7").await;
    assert_eq!(Watching::new(room.presence_with(&"x".repeat(2000)).unwrap()).refused().await, "invalid_field");
    for topic in [hall, room] {
        soon(topic.publish("again")).await.unwrap();
    }
    assert_eq!(data(&take(&mut heard, 2).await), ["hi", "again"]);
    assert_eq!(data(&take(&mut there, 1).await), ["again"]);
    assert!(one.so_far().iter().all(|event| matches!(event, Event::Connecting { .. } | Event::Connected { .. })));
    assert_eq!(Watching::new(one.client.topic("@2").presence()).refused().await, "forbidden_topic");
    one.client.close();
    assert_eq!(Watching::new(one.client.topic("room.7").presence()).refused().await, "closed");
    assert_eq!(soon(here.presence.refresh()).await.unwrap_err().code, "closed");
}

#[tokio::test]
async fn after() {
    let stack = Stack::start().await;
    let mut sender = stack.connect("?userId=1").await;
    let first = position(&publish(&mut sender, "room.7", 1).await);
    let zero = Position { seq: 0, ..first.clone() };
    for number in [2, 3] {
        publish(&mut sender, "room.7", number).await;
    }
    let two = Watched::new(&stack.gateway, "?userId=2", options());
    let room = two.client.topic("room.7");
    let mut behind = room.subscribe(Start::After(first.clone()));
    assert!(ready(true, Some(true))(&soon(behind.ready()).await.unwrap()));
    // The position is that of the application, which has taken nothing.
    assert_eq!(behind.position(), Some(&first));
    let messages = take(&mut behind, 2).await;
    assert_eq!((data(&messages), messages[0].at.is_some()), (vec![2.into(), 3.into()], true));
    assert_eq!(behind.position(), Some(&Position { seq: 3, ..first.clone() }));
    // Further listeners of the same topic read the history for themselves.
    let (mut last, mut all) = (room.subscribe(Start::Last(2)), room.subscribe(Start::After(zero)));
    let mut now = room.subscribe(Start::Now);
    publish(&mut sender, "room.7", 4).await;
    assert!(ready(true, None)(&soon(last.ready()).await.unwrap()));
    assert!(ready(true, Some(true))(&soon(all.ready()).await.unwrap()));
    assert!(ready(true, None)(&soon(now.ready()).await.unwrap()));
    publish(&mut sender, "room.7", 5).await;
    assert_eq!(take_until(&mut behind, 5).await, [4, 5]);
    let newest = take_until(&mut last, 5).await;
    assert!(newest == [2, 3, 4, 5] || newest == [3, 4, 5], "{newest:?}");
    assert_eq!(take_until(&mut all, 5).await, [1, 2, 3, 4, 5]);
    assert_eq!(take_until(&mut now, 5).await, [4, 5]);

    // They also do so before there is a connection. Then one frame asks for the first position.
    let early = Watched::new(&stack.gateway, "?userId=2", options());
    let room_early = early.client.topic("room.7");
    let mut ears = [3, 1, 3].map(|seq| room_early.subscribe(Start::After(Position { seq, ..first.clone() })));
    for (ear, expected) in ears.iter_mut().zip([&[4, 5][..], &[2, 3, 4, 5], &[4, 5]]) {
        assert!(ready(true, Some(true))(&soon(ear.ready()).await.unwrap()));
        assert_eq!(take_until(ear, 5).await, expected);
    }
    publish(&mut sender, "room.7", 6).await;
    for ear in &mut ears {
        assert_eq!(take_until(ear, 6).await, [6]);
    }

    // A long history takes several frames, and new messages come between them.
    let long: Vec<_> = (1..=6).map(|number| format!("{number} {}", "x".repeat(15_000))).collect();
    for message in &long {
        publish(&mut sender, "room.7", message.as_str()).await;
    }
    let mut late = room.subscribe(Start::Last(6));
    let mut count = 0;
    loop {
        count += 1;
        publish(&mut sender, "room.7", count).await;
        if futures_util::FutureExt::now_or_never(late.ready()).is_some() {
            break;
        }
    }
    count += 1;
    publish(&mut sender, "room.7", count).await;
    let heard = take_until(&mut late, count).await;
    let live = usize::try_from(count).unwrap();
    let (old, new) = heard.split_at(heard.len() - live);
    assert_eq!(
        (old.last().unwrap(), new),
        (&Value::from(long[5].as_str()), &(1..=count).map(Value::from).collect::<Vec<_>>()[..])
    );
}

#[tokio::test]
async fn at_once() {
    let stack = Stack::start().await;
    let network = Network::to(&stack.gateway).await;
    let mut sender = stack.connect("?userId=1").await;
    let first = position(&publish(&mut sender, "room.7", 1).await);
    let two = Watched::new(&network.address, "?userId=2", options());
    let mut heard = two.subscribe("room.7").await;
    // A watcher makes the client subscribe once more on the same connection.
    let mut here = two.client.topic("room.7").presence();
    soon(here.ready()).await.unwrap();
    // The post of a message that was published in the same moment is late, and comes three times.
    let late = json!({
        "id": "s1", "payload": {"data": 1}, "type": "data", "topic": "room.7", "senderId": "1", "epoch": first.epoch, "seq": 1,
    });
    for _ in 0..2 {
        network.say(&late);
    }
    publish(&mut sender, "room.7", 2).await;
    network.say(&late);
    publish(&mut sender, "room.7", 3).await;
    assert_eq!(take_until(&mut heard, 3).await, [1, 2, 3]);
}

#[tokio::test]
async fn leave_and_return() {
    let stack = Stack::with(&["--fault", "message-delay=100ms"]).await;
    let one = Watched::new(&stack.gateway, "?userId=1", options());
    for round in 1..=5 {
        let before = one.subscribe("hall").await;
        drop(before);
        // The frame is on its way.
        tokio::task::yield_now().await;
        let mut now = one.subscribe("hall").await;
        soon(one.publish("hall", round)).await.unwrap();
        assert_eq!(data(&take(&mut now, 1).await), [round]);
    }
}

#[tokio::test]
async fn direct() {
    let stack = Stack::start().await;
    let one = Watched::new(&stack.gateway, "?userId=1", options());
    let mut two = Watched::new(&stack.gateway, "?userId=2", options());
    let mut heard = two.client.topic("@me").subscribe(Start::Now);
    two.connected().await;
    let ack = soon(one.client.send("2", &json!({"text": "hello there!"}))).await.unwrap();
    assert_eq!(ack.delivered, Some(1));
    let messages = take(&mut heard, 1).await;
    assert_eq!(messages[0].sender_id.as_deref(), Some("1"));
    assert_eq!(messages[0].data.get(), r#"{"text":"hello there!"}"#);
}

#[tokio::test]
async fn inbox() {
    let stack = Stack::start().await;
    let network = Network::to(&stack.gateway).await;
    let one = Watched::new(&stack.gateway, "?userId=1", options());
    // User 2 is away, and was never here.
    let ack = soon(one.client.send("2", "first")).await.unwrap();
    assert_eq!((ack.delivered, ack.is_stored, ack.position.unwrap().seq), (Some(0), true, 1));
    let mut two = Watched::new(&network.address, "?userId=2", options());
    let mut heard = two.client.topic("@me").subscribe(Start::Last(10));
    soon(heard.ready()).await.unwrap();
    soon(one.client.send("2", "second")).await.unwrap();
    let mut messages = take(&mut heard, 2).await;
    // A post that began before the subscribe has no position, and its message is in the history that was asked for.
    network.say(&json!({"senderId": "1", "body": "first"}));
    soon(two.client.topic("@me").history(Range::default())).await.unwrap();
    network.set_down(true);
    network.cut().await;
    soon(one.client.send("2", "third")).await.unwrap();
    network.set_down(false);
    messages.extend(take(&mut heard, 1).await);
    assert_eq!(
        (data(&messages), seqs(&messages)),
        (vec!["first".into(), "second".into(), "third".into()], vec![1, 2, 3])
    );
    assert!(messages.iter().all(|message| message.sender_id.as_deref() == Some("1")));
    assert_eq!(two.recovered().await.0, "@me");
    let page = soon(two.client.topic("@me").history(Range { limit: Some(1), ..Range::default() })).await.unwrap();
    assert_eq!(data(&page.messages), ["third"]);
}

#[tokio::test]
async fn nobody() {
    let stack = Stack::start().await;
    let mut nobody = Watched::new(&stack.gateway, "", options());
    let refused = soon(nobody.client.send("2", "hi")).await.unwrap_err();
    assert_eq!((refused.code.as_str(), nobody.client.state()), ("unidentified", State::Connected));
    assert_eq!(nobody.connections(), 1);
}

#[tokio::test]
async fn deleted() {
    let stack = Stack::with(&["--sigv4", "off"]).await;
    let mut one = Watched::new(&stack.gateway, "?userId=1", options());
    let mut heard = one.subscribe("room.7").await;
    let id = connection_id(&stack).await;
    stack.management().await.delete_connection().connection_id(id).send().await.unwrap();
    one.recovered().await;
    soon(one.publish("room.7", "hi")).await.unwrap();
    assert_eq!(data(&take(&mut heard, 1).await), ["hi"]);
}

#[tokio::test]
async fn no_record() {
    let stack = Stack::start().await;
    let mut one = Watched::new(&stack.gateway, "?userId=1", options());
    let mut heard = one.subscribe("room.7").await;
    let id = aws_sdk_dynamodb::types::AttributeValue::S(connection_id(&stack).await);
    let delete = stack.dynamodb().await.delete_item().table_name(table_name("connections")).key("connectionId", id);
    delete.send().await.unwrap();
    // The server does not know this connection any more. The client finds out and connects again.
    let ack = soon(one.publish("room.7", "hi")).await.unwrap();
    assert_eq!((ack.position.unwrap().seq, one.connections()), (1, 2));
    assert_eq!(data(&take(&mut heard, 1).await), ["hi"]);
}

/// The private key of RFC 8037, as PKCS #8 wraps it: 16 bytes stand in front of it. Behind it comes the public key.
const PRIVATE_KEY: &str = "MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v_VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g";
const PUBLIC_KEY: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";

/// The variable of a stack that checks tokens.
fn keys() -> String {
    format!("TOKEN_KEYS={}", json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": PUBLIC_KEY}]}))
}

/// A token that expires in so many seconds.
fn token(user: &str, seconds: i64) -> String {
    let now = i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap();
    let key = data_encoding::BASE64URL_NOPAD.decode(PRIVATE_KEY.as_bytes()).unwrap();
    let header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::EdDSA);
    let claims = json!({"sub": user, "exp": now + seconds});
    jsonwebtoken::encode(&header, &claims, &jsonwebtoken::EncodingKey::from_ed_der(&key)).unwrap()
}

#[tokio::test]
async fn wrong_token() {
    let stack = Stack::with(&["--env", "IDENTITY_MODE=verified", "--env", &keys()]).await;
    let (asked, mut attempts) = tokio::sync::mpsc::unbounded_channel();
    let source = TokenSource::new(move |attempt| {
        asked.send(attempt).unwrap();
        async { Ok::<_, Error>("wrong".to_owned()) }
    });
    let mut one = Watched::new(&stack.gateway, "", Options { token: Some(source), refusals: 3, ..options() });
    let post = one.publish("room.7", "hi");
    let (code, reason) = one.closed().await;
    assert_eq!(code, "refused");
    assert!(reason.contains("refused 3 connections in a row") && reason.contains("401"), "{reason}");
    for number in 1..=3 {
        let attempt = attempts.try_recv().unwrap();
        assert_eq!(attempt.number, number);
        assert_eq!(attempt.reason.is_some_and(|reason| reason.contains("401")), number > 1);
    }
    assert_eq!(one.client.state(), State::Closed);
    assert_eq!(soon(post).await.unwrap_err().code, "refused");
    assert_eq!(soon(one.publish("room.7", "hi")).await.unwrap_err().code, "closed");
}

#[tokio::test]
async fn token_renewed() {
    let stack = Stack::with(&["--env", "IDENTITY_MODE=verified", "--env", &keys()]).await;
    let (asked, mut attempts) = tokio::sync::mpsc::unbounded_channel();
    let source = TokenSource::new(move |attempt: switchboard_client::Attempt| {
        // The first one has expired, and the second question fails.
        let answer = match attempt.number {
            1 => Ok(token("1", -100)),
            2 => Err("no network"),
            _ => Ok(token("1", 100)),
        };
        asked.send(attempt.reason).unwrap();
        async { answer }
    });
    let one = Watched::new(&stack.gateway, "", Options { token: Some(source), ..options() });
    soon(one.client.send("1", "hi")).await.unwrap();
    assert_eq!(attempts.try_recv().unwrap(), None);
    assert!(attempts.try_recv().unwrap().unwrap().contains("401"));
    assert_eq!(attempts.try_recv().unwrap().as_deref(), Some("no network"));
    assert!(attempts.try_recv().is_err());
}

/// A server that is none of ours, and what it says to a WebSocket.
async fn foreign(says: Option<&'static str>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
                if let Some(text) = says {
                    futures_util::SinkExt::send(&mut socket, text.into()).await.unwrap();
                }
                while let Some(Ok(_)) = futures_util::StreamExt::next(&mut socket).await {}
            });
        }
    });
    address
}

/// A server that answers HTTP.
async fn website() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let app = axum::Router::new().fallback(|| async { "hello" });
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    address
}

#[tokio::test]
async fn not_switchboard() {
    for (address, words) in [
        (website().await, "200"),
        (foreign(None).await, "does not answer"),
        (foreign(Some("Welcome!")).await, "It sent: Welcome!"),
    ] {
        let mut one = Watched::new(&address, "", Options { refusals: 2, timeout: millis(300), ..options() });
        let _post = one.publish("hall", "hi");
        let (code, reason) = one.closed().await;
        assert_eq!(code, "refused");
        assert!(reason.contains("refused 2 connections") && reason.contains(words), "{reason}");
    }
}

#[tokio::test]
async fn unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    // A proxy takes connections although the server behind it is down.
    let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let behind = proxy.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = proxy.accept().await {
            // It reads the handshake, so that the end is no reset.
            let _ = stream.readable().await;
            let _ = stream.try_read(&mut [0; 4096]);
        }
    });
    for address in [address, behind] {
        let mut one = Watched::new(&address, "", Options { refusals: 2, max_delay: millis(20), ..options() });
        // A server that is down may come back, so the client goes on.
        one.event(|event| matches!(event, Event::Connecting { attempt: 6, .. })).await;
        assert_eq!(one.client.state(), State::Connecting);
    }
}

#[tokio::test]
async fn full_buffer() {
    let stack = Stack::start().await;
    let one = Watched::new(&stack.gateway, "?userId=1", Options { buffer: 2, ..options() });
    let posts: Vec<_> = (1..=3).map(|number| one.publish("room.7", number)).collect();
    assert_eq!(posts.iter().map(Publication::is_dropped).collect::<Vec<_>>(), [false, false, true]);
    let results = acks(posts).await;
    assert_eq!([seq_of(&results[0]), seq_of(&results[1])], [1, 2]);
    let error = results[2].as_ref().unwrap_err();
    assert_eq!(error.code, "buffer_full");
    assert!(error.message.contains("2 messages wait already"), "{error}");
    // An ack makes room.
    assert_eq!(seq_of(&soon(one.publish("room.7", 4)).await), 3);
}

#[tokio::test]
async fn too_large() {
    let stack = Stack::start().await;
    let one = Watched::new(&stack.gateway, "?userId=1", options());
    let post = one.publish("hall", "x".repeat(128 * 1024));
    assert!(post.is_dropped());
    let error = soon(post).await.unwrap_err();
    assert_eq!(error.code, "too_large");
    assert!(error.message.contains("its frame has 1311"), "{error}");
    assert!(error.message.contains(" bytes, and the gateway takes 32768"), "{error}");
    // Characters count in bytes.
    assert_eq!(soon(one.publish("hall", "ž".repeat(17_000))).await.unwrap_err().code, "too_large");
    assert_eq!(soon(one.publish("hall", "x".repeat(32_500))).await.unwrap().delivered, Some(0));
    // Where the limit is set too high, the gateway closes the connection. The client goes on without this message.
    let careless = Watched::new(&stack.gateway, "?userId=1", Options { frame_limit: 1_000_000, ..options() });
    let posts = vec![careless.publish("hall", "x".repeat(40_000)), careless.publish("hall", "hi")];
    let results = acks(posts).await;
    assert_eq!(results[0].as_ref().unwrap_err().code, "too_large");
    assert_eq!(results[1].as_ref().unwrap().delivered, Some(0));
}

#[tokio::test]
async fn refused_subscription() {
    let stack = Stack::start().await;
    let mut one = Watched::new(&stack.gateway, "?userId=1", options());
    let mut heard = one.client.topic("@2").subscribe(Start::Now);
    assert_eq!(soon(heard.ready()).await.unwrap_err().code, "forbidden_topic");
    let event = one.event(|event| matches!(event, Event::Refused { .. })).await;
    let Event::Refused { topic, error } = event else { unreachable!() };
    assert_eq!((topic.as_str(), error.code.as_str()), ("@2", "forbidden_topic"));
    assert!(soon(heard.next()).await.is_none());
}

#[test]
fn each_row_of_the_table_has_a_test_in_each_client() {
    let read = |path: &str| {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        std::fs::read_to_string(path).unwrap()
    };
    let names = |text: &str, before: &str, after: &str| -> Vec<String> {
        let found = text.split(before).skip(1).filter_map(|rest| Some(rest.split_once(after)?.0.replace('_', "-")));
        let mut names: Vec<_> = found.collect();
        names.sort();
        names
    };
    let rows = names(&read("../scenarios.md"), "\n| `", "` |");
    assert!(rows.len() > 30, "{rows:?}");
    assert_eq!(names(&read("tests/scenarios.rs"), "#[tokio::test]\nasync fn ", "("), rows);
    assert_eq!(names(&read("../js/test/client.test.js"), "\n  scenario('", "',"), rows);
}

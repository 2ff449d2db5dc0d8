//! The table of what events use (`src/cost.rs`), counted on the real binaries; and the examples of infra/README.md, by hand and by it.

use aws_sdk_dynamodb::types::AttributeValue;
use serde_json::{Value, json};
use switchboard_tests::client::Client;
use switchboard_tests::cost::{
    BACKEND, BATCH, CONNECT, DIRECT, DIRECT_ACKED, DISCONNECT, Event, KEPT, PING, Prices, QUIET_PING, SUBSCRIBE, TOPIC,
    WAITING, direct_messages, ticker, users,
};
use switchboard_tests::proxy::Proxy;
use switchboard_tests::stack::{Stack, root, table_name};

const RULES: &str = r#"TOPIC_RULES=[{"topic":"room.*","history":{"hours":1}},{"topic":"ticks.*","batchMs":250}]"#;

/// A stack whose calls are counted.
struct Counted {
    proxy: Proxy,
    stack: Stack,
}

impl Counted {
    /// Forgets what was counted so far.
    fn reset(&self) {
        self.proxy.take();
        self.proxy.take_units();
    }

    /// Compares what was counted with the table. Clients sent so many `frames`.
    fn check(&self, event: &Event, frames: usize) {
        let units = self.proxy.take_units();
        let posts = self.proxy.take().iter().filter(|call| *call == "POST").count();
        let messages = f64::from(u32::try_from(frames + posts).unwrap());
        assert_eq!((messages, units.read, units.write), (event.messages, event.read, event.write), "{}", event.name);
    }
}

/// The lines of a function, without those about a new environment.
fn lines(stack: &Stack, function: &str) -> Vec<String> {
    let start = format!("{function} | ");
    let lines = stack.lines().borrow().clone();
    let lines = lines.iter().filter_map(|line| line.strip_prefix(&start)).map(str::to_owned);
    lines.filter(|line| line.starts_with('{') && !line.contains("ColdStart") && !line.contains("WARN")).collect()
}

async fn subscribers(stack: &Stack, topic: &str) -> Vec<Client> {
    let mut clients = Vec::new();
    let parts = ["default | {", "served"];
    let before = stack.log(&parts).len();
    for _ in 0..10 {
        let mut client = stack.connect("").await;
        client.ask(json!({"type": "subscribe", "topic": topic, "batch": true, "id": "s"})).await;
        clients.push(client);
    }
    stack.logged(before + 10, &parts).await;
    clients
}

async fn all_hear(clients: &mut [Client]) {
    for client in clients {
        client.next().await;
    }
}

#[tokio::test]
async fn the_table_of_what_events_use_is_what_the_binaries_use() {
    let (proxy, stack) = Proxy::in_front(&["--env", RULES], |_| None).await;
    let counted = Counted { proxy, stack };
    let stack = &counted.stack;
    let mut bytes: Vec<(Event, usize)> = Vec::new();
    // Makes an event happen, compares its units, and notes how long the lines of its function were.
    macro_rules! check {
        ($event:expr, $function:expr, $frames:expr, $happens:expr) => {
            let last = if $function == "publish" { "a batch was served" } else { "served" };
            let parts = [&format!("{} | {{", $function), last];
            let before = (stack.log(&parts).len(), lines(stack, $function));
            counted.reset();
            $happens;
            stack.logged(before.0 + 1, &parts).await;
            counted.check(&$event, $frames);
            let length = |lines: &[String]| lines.iter().map(|line| line.len() + 1).sum::<usize>();
            bytes.push(($event, length(&lines(stack, $function)) - length(&before.1)));
        };
    }
    let topics: Vec<Value> = (0..5).map(|topic| json!({"topic": format!("t{topic}")})).collect();
    let mut one = stack.connect("?userId=1").await;
    stack.logged(1, &["connect | {", "served"]).await;
    let mut two;
    check!(CONNECT, "connect", 0, two = stack.connect("?userId=2").await);
    check!(SUBSCRIBE, "default", 1, two.ask(json!({"type": "subscribe", "topics": topics, "id": "s"})).await);
    check!(PING, "default", 1, one.ask(json!({"type": "ping"})).await);
    check!(QUIET_PING, "default", 1, one.send(json!({"type": "ping", "quiet": true})).await);
    let direct = json!({"action": "sendMessage", "destinationUserId": "2", "body": "hello there!"});
    check!(DIRECT, "sendMessage", 1, {
        one.send(direct.clone()).await;
        two.next().await;
    });
    let mut acked = direct;
    acked["id"] = json!("m");
    check!(DIRECT_ACKED, "sendMessage", 1, {
        one.ask(acked).await;
        two.next().await;
    });
    check!(DISCONNECT, "disconnect", 0, two.close().await);
    let mut plain = subscribers(stack, "plain").await;
    check!(TOPIC, "default", 1, {
        one.send(json!({"type": "message", "topic": "plain", "message": "hello there!"})).await;
        all_hear(&mut plain).await;
    });
    let mut kept = subscribers(stack, "room.1").await;
    check!(KEPT, "default", 1, {
        one.ask(json!({"type": "message", "topic": "room.1", "message": "hello there!", "id": "m"})).await;
        all_hear(&mut kept).await;
    });
    let string = |text: &str| AttributeValue::S(text.to_owned());
    let dynamodb = stack.dynamodb().await;
    // The write of the backend does not pass through the proxy.
    let put = dynamodb.put_item().table_name(table_name("events")).item("topic", string("plain"));
    let put = put.item("id", string("1")).item("data", string("hello there!"));
    check!(Event { write: BACKEND.write - 1.0, ..BACKEND }, "publish", 0, {
        put.send().await.unwrap();
        all_hear(&mut plain).await;
    });
    let mut ticks = subscribers(stack, "ticks.1").await;
    let ticks_message = json!({"type": "message", "topic": "ticks.1", "messages": ["hello", "there!"], "id": "m"});
    // Function by function: the ack comes from one, and the frames from the other.
    counted.reset();
    one.ask(ticks_message).await;
    all_hear(&mut ticks).await;
    let units = counted.proxy.take_units();
    assert_eq!((units.read, units.write), (WAITING.read + BATCH.read, WAITING.write + BATCH.write));
    let calls = counted.proxy.take();
    let posts = calls.iter().filter(|call| *call == "POST").count();
    // One of the posts is the ack.
    assert_eq!(f64::from(u32::try_from(posts - 1).unwrap()), BATCH.messages);
    let bytes = bytes.into_iter().map(|(event, found)| (event, f64::from(u32::try_from(found).unwrap())));
    let wrong = bytes.filter(|(event, found)| (found - event.log).abs() > 0.1 * found);
    let wrong: Vec<_> = wrong.map(|(event, found)| format!("{} writes {found} bytes", event.name)).collect();
    assert!(wrong.is_empty(), "the table says something else: {wrong:#?}");
}

/// The value of `2 × 1.00 + 0.20`, numbers with commas included.
fn by_hand(sum: &str) -> f64 {
    let number = |text: &str| text.trim().replace(',', "").parse::<f64>().unwrap_or_else(|_| panic!("{text}"));
    sum.split('+').map(|product| product.split('×').map(number).product::<f64>()).sum()
}

#[test]
fn the_examples_of_the_readme_are_right_by_hand_and_by_the_table() {
    let readme = std::fs::read_to_string(root().join("infra/README.md")).unwrap();
    let prices = Prices::read();
    let row = |name: &str| -> Vec<String> {
        let line =
            readme.lines().find(|line| line.starts_with(&format!("| {name}"))).unwrap_or_else(|| panic!("{name}"));
        line.split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect()
    };
    for (name, load) in [
        ("1. a million direct messages", direct_messages()),
        ("2. 10,000 users", users(10_000.0)),
        ("3. a ticker", ticker(true)),
    ] {
        let (cells, table) = (row(name), load.bill(&prices).sum());
        let (hand, written) = (by_hand(&cells[2]), by_hand(&cells[3]));
        for found in [hand, written] {
            assert!((found - table).abs() < 0.01 * table, "{name}: {found}, and the table says {table}");
        }
    }
    assert!(users(100_000.0).bill(&prices).sum() <= 3010.0);
}

//! Who is in a topic: lists, changes, and what members say about themselves.

use std::collections::BTreeSet;

use aws_sdk_dynamodb::types::AttributeValue;
use serde_json::{Value, json};
use switchboard_tests::client::Client;
use switchboard_tests::stack::{Stack, number, table_name};
use switchboard_tests::wire::{Reply, Tcp};
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::rights::{connect, verified};

fn subscribe(topic: &str, id: &str) -> Value {
    json!({"type": "subscribe", "topic": topic, "id": id})
}

fn watch(topic: &str) -> Value {
    json!({"type": "subscribe", "topic": topic, "presence": true, "id": "w"})
}

/// What the next frame of changes says, as `+3` and `-1`.
async fn changes(client: &mut Client, topic: &str) -> BTreeSet<String> {
    let frame = client.next().await;
    assert_eq!((&frame["type"], &frame["topic"]), (&json!("presence"), &json!(topic)), "{frame}");
    let users = |field: &str, sign: &str| {
        let users = frame[field].as_array().into_iter().flatten();
        users.map(|user| format!("{sign}{}", user.as_str().unwrap())).collect::<Vec<_>>()
    };
    users("joined", "+").into_iter().chain(users("left", "-")).collect()
}

/// Reads frames of changes until exactly these were told, each once.
async fn told(client: &mut Client, topic: &str, expected: &[&str]) {
    let mut found = BTreeSet::new();
    while found.len() < expected.len() {
        for change in changes(client, topic).await {
            assert!(expected.contains(&change.as_str()) && found.insert(change.clone()), "{change} of {expected:?}");
        }
    }
}

#[tokio::test]
async fn a_user_joins_and_leaves_once_whatever_its_devices_do() {
    let stack = Stack::start().await;
    let mut watcher = stack.connect("?userId=w").await;
    let mut plain = stack.connect("?userId=p").await;
    let mut everywhere = stack.connect("").await;
    plain.ask(subscribe("room.7", "s")).await;
    watcher.ask(watch("room.7")).await;
    // A connection without a user is nobody, and a subscriber to a pattern is in no topic. Both may listen.
    everywhere.ask(watch("room.*")).await;
    told(&mut watcher, "room.7", &["+p", "+w"]).await;
    told(&mut everywhere, "room.7", &["+p", "+w"]).await;

    let mut three = stack.connect("?userId=3").await;
    three.ask(subscribe("room.7", "s")).await;
    told(&mut watcher, "room.7", &["+3"]).await;
    // A second device joins nothing, and a client that opens its next connection before it closes the old one is silent.
    let mut also_three = stack.connect("?userId=3").await;
    also_three.ask(subscribe("room.7", "s")).await;
    three.close().await;
    // Four rows of topics are left, and an address of each user.
    stack.settled("topics", 7).await;
    stack.logged(1, &["presence |", "members have changed", "\"joined\":0", "\"left\":0"]).await;
    also_three.ask(json!({"type": "unsubscribe", "topic": "room.7", "id": "u"})).await;
    assert_eq!(changes(&mut watcher, "room.7").await, BTreeSet::from(["-3".to_owned()]));
    told(&mut everywhere, "room.7", &["+3", "-3"]).await;
    // Who did not ask hears what it always heard.
    plain.hears_nothing().await;
    assert_eq!(
        watcher.ask(json!({"type": "topics"})).await["topics"][1],
        json!({"topic": "room.7", "id": "w", "presence": true})
    );
}

/// Sends the event of the schedule through the inspector, and waits until old members were verified `count` times.
async fn look_at_old_members(stack: &Stack, count: usize) -> Value {
    let lines = stack.lines().borrow().clone();
    let port = lines.iter().find_map(|line| line.strip_prefix("  http://localhost:")?.strip_suffix("/inspect"));
    let host = format!("127.0.0.1:{}", port.unwrap());
    let event = json!({"source": "aws.events", "detail-type": "Scheduled Event"}).to_string();
    let body = json!({"function": "presence", "event": event}).to_string();
    let mut tcp: Tcp = BufReader::new(Box::new(TcpStream::connect(&host).await.unwrap()));
    let head = format!(
        "POST /inspect/run HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    tcp.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    assert_eq!(Reply::read(&mut tcp).await.status, 202);
    let line = stack.logged(count, &["presence |", "old members were verified"]).await.pop().unwrap();
    serde_json::from_str::<Value>(line.split_once("presence | ").unwrap().1).unwrap()["fields"].clone()
}

#[tokio::test]
async fn a_member_whose_disconnect_was_lost_leaves_when_old_members_are_looked_at() {
    let stack = Stack::with(&["--fault", "lost-disconnect=1", "--web-port", "0"]).await;
    let mut watcher = stack.connect("?userId=w").await;
    watcher.ask(watch("room.7")).await;
    told(&mut watcher, "room.7", &["+w"]).await;
    let mut vanishing = stack.connect("?userId=1").await;
    vanishing.ask(subscribe("room.7", "s")).await;
    told(&mut watcher, "room.7", &["+1"]).await;
    // The process of this client ends without a close frame, and nothing tells the functions.
    drop(vanishing);
    stack.logged(1, &["fault |", "lost-disconnect"]).await;
    // The rows are young, so nobody is asked about.
    assert_eq!(look_at_old_members(&stack, 1).await["verified"], 0);
    let list = json!({"type": "presence", "topic": "room.7", "id": "p"});
    assert_eq!(watcher.ask(list.clone()).await["users"], json!(["1", "w"]));

    // Ten minutes later, both members are old, and one of them is there.
    let dynamodb = stack.dynamodb().await;
    for mut row in stack.rows("topics").await {
        let connected_at_ms = number(&row, "connectedAt") - 10 * 60 * 1000;
        row.insert("connectedAt".to_owned(), AttributeValue::N(connected_at_ms.to_string()));
        dynamodb.put_item().table_name(table_name("topics")).set_item(Some(row)).send().await.unwrap();
    }
    let fields = look_at_old_members(&stack, 2).await;
    assert_eq!((&fields["verified"], &fields["suspects"], &fields["open"]), (&json!(2), &json!(1), &json!(0)));
    assert_eq!(changes(&mut watcher, "room.7").await, BTreeSet::from(["-1".to_owned()]));
    assert_eq!(watcher.ask(list).await["users"], json!(["w"]));
    // The watcher keeps the row of the room, its address and its connection; nothing is left of the other one.
    assert_eq!((stack.rows("topics").await.len(), stack.rows("connections").await.len()), (2, 1));
}

#[tokio::test]
async fn a_list_has_each_user_once_with_what_it_says() {
    let stack = Stack::start().await;
    let (mut one, mut also_one) = (stack.connect("?userId=1").await, stack.connect("?userId=1").await);
    let (mut two, mut nobody) = (stack.connect("?userId=2").await, stack.connect("").await);
    let list = json!({"type": "presence", "topic": "room.7", "id": "p1"});
    assert_eq!(
        one.ask(list.clone()).await,
        json!({"type": "presence", "id": "p1", "topic": "room.7", "users": [], "count": 0})
    );
    for client in [&mut one, &mut also_one, &mut two, &mut nobody] {
        client.ask(subscribe("room.7", "s")).await;
    }
    nobody.ask(subscribe("room.*", "s")).await;
    let members = json!({"type": "presence", "id": "p1", "topic": "room.7", "users": ["1", "2"], "count": 2});
    assert_eq!(nobody.ask(list.clone()).await, members);
    // The newest word of any device counts, and it goes with its device.
    let says = |data: Value| json!({"type": "presence", "topic": "room.7", "data": data, "id": "d"});
    assert_eq!(one.ask(says(json!("away"))).await, json!({"type": "ack", "id": "d"}));
    also_one.ask(says(json!({"status": "here", "n": 1.0}))).await;
    assert!(one.ask(says(json!("x".repeat(1022)))).await["type"] == "ack", "1024 bytes of JSON");
    assert_eq!(nobody.ask(list.clone()).await["data"], json!({"1": "x".repeat(1022)}));
    one.ask(json!({"type": "unsubscribe", "topic": "room.7", "id": "u"})).await;
    assert_eq!(nobody.ask(list.clone()).await["data"], json!({"1": {"status": "here", "n": 1.0}}));
    also_one.ask(json!({"type": "unsubscribe", "topic": "room.7", "id": "u"})).await;
    assert_eq!(nobody.ask(list).await["users"], json!(["2"]));
}

#[tokio::test]
async fn what_a_member_says_is_told_when_it_changes() {
    let stack = Stack::start().await;
    let mut watcher = stack.connect("").await;
    watcher.ask(watch("room.7")).await;
    let mut one = stack.connect("?userId=1").await;
    let frame = json!({"type": "subscribe", "topic": "room.7", "data": {"color": "red"}, "id": "s"});
    one.ask(frame.clone()).await;
    let joined = r#"{"type":"presence","topic":"room.7","joined":["1"],"data":{"1":{"color":"red"}}}"#;
    assert_eq!(watcher.next_text().await, joined);
    // The same again changes nothing.
    one.ask(frame).await;
    one.ask(json!({"type": "presence", "topic": "room.7", "data": "blue", "id": "d"})).await;
    let says = watcher.next_text().await;
    assert_eq!(says, r#"{"type":"presence","topic":"room.7","data":{"1":"blue"}}"#);
    one.ask(subscribe("room.7", "s")).await;
    assert_eq!(watcher.next_text().await, r#"{"type":"presence","topic":"room.7","data":{"1":null}}"#);
    one.close().await;
    assert_eq!(watcher.next_text().await, r#"{"type":"presence","topic":"room.7","left":["1"]}"#);
}

#[tokio::test]
async fn presence_is_refused_where_no_rule_gives_it_or_a_right_is_missing() {
    let rules = r#"TOPIC_RULES=[
        {"topic": "room.*", "presence": true, "wildcard": true, "subscribe": "granted", "publish": "granted"},
        {"topic": "lobby", "presence": true},
        {"topic": "quiet"}
    ]"#;
    let stack = verified(rules).await;
    let mut one = connect(&stack, "1", &json!({"subscribe": ["room.7"]})).await;
    let list = |topic: &str| json!({"type": "presence", "topic": topic, "id": "p"});
    let says = |topic: &str, data: &str| json!({"type": "presence", "topic": topic, "data": data, "id": "p"});
    for (frame, code, text) in [
        (list("quiet"), "no_presence", "the topic `quiet` has no presence"),
        (watch("quiet"), "no_presence", "the topic `quiet` has no presence"),
        (list("@me"), "no_presence", "the topic `@me` has no presence"),
        (watch("@me"), "no_presence", "the topic `@me` has no presence"),
        (list("room.8"), "forbidden_topic", "none of its grants contains `room.8`"),
        (watch("room.8"), "forbidden_topic", "none of its grants contains `room.8`"),
        (list("room.*"), "forbidden_topic", "the name `room.*` is a pattern"),
        (says("room.7", "x"), "forbidden_topic", "may not publish on the topic `room.7`"),
        (says("lobby", "x"), "no_member", "does not listen to the topic `lobby`"),
        (says("lobby", &"x".repeat(1023)), "invalid_field", "the field `data` must be at most 1024 bytes of JSON"),
        (json!({"type": "presence"}), "missing_field", "`topic`"),
        (json!({"type": "subscribe", "topic": "lobby", "presence": 1}), "invalid_field", "`presence`"),
    ] {
        let error = one.ask(frame.clone()).await;
        assert_eq!(error["code"], code, "{frame}: {error}");
        assert!(error["message"].as_str().unwrap().contains(text), "{frame}: {error}");
    }
    assert_eq!(one.ask(list("room.7")).await["count"], 0);
    // In a list, what concerns one topic leaves the others alone.
    let entries = json!([{"topic": "lobby", "presence": true, "data": 1}, {"topic": "quiet", "presence": true}]);
    let ack = one.ask(json!({"type": "subscribe", "topics": entries, "id": "s"})).await;
    assert_eq!((&ack["topics"][0], &ack["topics"][1]["code"]), (&json!({"topic": "lobby"}), &json!("no_presence")));
    let open = Stack::start().await;
    let mut nobody = open.connect("").await;
    nobody.ask(subscribe("room.7", "s")).await;
    assert_eq!(nobody.ask(says("room.7", "x")).await["code"], "unidentified");
    assert_eq!(nobody.ask(list("room.7")).await["count"], 0);
}

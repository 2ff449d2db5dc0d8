//! Who is in a topic: lists, changes, and what members say about themselves.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use switchboard_tests::client::Client;
use switchboard_tests::stack::Stack;

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

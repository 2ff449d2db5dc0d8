//! Who receives a publish, compared with a small model of subscriptions.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::*;
use crate::config::Config;
use crate::rules::Rules;
use crate::scripted::{Aws, Call, answer};
use crate::store::ConnectionStore;

/// Subscriptions: the key is a topic or a pattern and a connection.
type Rows = BTreeSet<(String, String)>;

/// A store with these rules and rows, whose pages have so many rows.
fn store(rules: &str, rows: Rows, page: usize) -> (Aws, ConnectionStore) {
    let config = Config { topic_rules: Rules::parse(rules).unwrap(), ..Config::for_tests() };
    let (aws, backend) = Aws::configured(config, move |call: &Call| {
        let topic = call.body["ExpressionAttributeValues"][":topic"]["S"].as_str().unwrap().to_owned();
        let start = call.body["ExclusiveStartKey"]["connectionId"]["S"].as_str();
        let mut left = rows.iter().filter(|row| row.0 == topic && start.is_none_or(|start| row.1.as_str() > start));
        let items: Vec<Value> = left.by_ref().take(page).map(item).collect();
        let mut answered = json!({ "Items": items });
        if left.next().is_some() {
            let last = items.last().unwrap();
            answered["LastEvaluatedKey"] = json!({"topic": {"S": topic}, "connectionId": last["connectionId"]});
        }
        answer(200, answered)
    });
    (aws, backend.store)
}

/// The id of each subscription names what was subscribed to.
fn item((topic, connection): &(String, String)) -> Value {
    json!({"connectionId": {"S": connection}, "subscriptionId": {"S": topic}, "connectedAt": {"N": "1"}})
}

/// What a topic's receivers are, each with the id of its subscription. Reading ends early after `stop`, and goes on there.
async fn received(store: &ConnectionStore, topic: &Topic, stop: usize) -> Vec<(String, String)> {
    let audience = Audience::Topic(topic.clone());
    let mut receivers = store.receivers(&audience, &Position::Start);
    let mut found = Vec::new();
    while let Some(receiver) = receivers.next().await.unwrap() {
        let id = receiver.subscription_id.unwrap();
        assert_eq!(receiver.pattern.is_some(), id != topic.as_str(), "a pattern's frames carry the topic");
        found.push((receiver.connection_id.as_str().to_owned(), id));
        if found.len() == stop {
            receivers = store.receivers(&audience, &Position::After(receiver.connection_id));
        }
    }
    found
}

/// The model: a name hears a topic if it is the same, or a pattern of an allowed level whose beginning the topic has. Each
/// connection hears it once, by the longest name.
fn model(allowed: &[&str], rows: &Rows, topic: &str) -> BTreeMap<String, String> {
    let mut heard: BTreeMap<String, String> = BTreeMap::new();
    for (name, connection) in rows {
        let is_heard = match name.strip_suffix('*') {
            Some(prefix) => topic.starts_with(prefix) && allowed.iter().any(|allowed| prefix.starts_with(allowed)),
            None => name == topic,
        };
        let best = heard.get(connection);
        if is_heard && best.is_none_or(|best| best.ends_with('*') && (best.len() < name.len() || name == topic)) {
            heard.insert(connection.clone(), name.clone());
        }
    }
    heard
}

#[tokio::test(start_paused = true)]
async fn delivery_to_patterns_is_that_of_the_model_over_ten_thousand_random_sets() {
    let mut random = fastrand::Rng::with_seed(13);
    let mut doubles = 0;
    for set in 0..10_000 {
        let (rules, allowed) = *random
            .choice(&[
                (r#"[{"topic":"a.*","wildcard":true}]"#, &["a."][..]),
                (r#"[{"topic":"*","wildcard":true}]"#, &[""]),
                (r#"[{"topic":"a.b.*","wildcard":true},{"topic":"b.*","wildcard":true}]"#, &["a.b.", "b."]),
                (r#"[{"topic":"a.*"}]"#, &[]),
            ])
            .unwrap();
        let name = |random: &mut fastrand::Rng| {
            let count = random.usize(1..=4);
            (0..count).map(|_| *random.choice(&["a", "b"]).unwrap()).collect::<Vec<_>>().join(".")
        };
        let mut rows = Rows::new();
        for _ in 0..random.usize(0..24) {
            let mut subscribed = name(&mut random);
            if random.bool() {
                subscribed = if random.u8(..8) == 0 { "*".to_owned() } else { format!("{subscribed}.*") };
            }
            rows.insert((subscribed, format!("c{}", random.u8(..6))));
        }
        let topic = name(&mut random);
        let (_, store) = store(rules, rows.clone(), random.usize(1..=4));
        let found = received(&store, &Topic::parse(&topic).unwrap(), random.usize(1..=4)).await;
        let expected = model(allowed, &rows, &topic);
        assert_eq!(found, expected.into_iter().collect::<Vec<_>>(), "set {set}: {topic} with {rules} and {rows:?}");
        let hears = |row: &&(String, String)| {
            row.0 == topic || row.0.strip_suffix('*').is_some_and(|prefix| topic.starts_with(prefix))
        };
        doubles += usize::from(rows.iter().filter(hears).count() > found.len() && !found.is_empty());
    }
    assert!(doubles > 500, "only {doubles} sets had a connection that matches twice");
}

#[tokio::test(start_paused = true)]
async fn a_publish_makes_one_query_for_each_level_and_one_without_wildcards() {
    for (rules, topic, queries) in [
        ("[]", "room.eu.7", 1),
        (r#"[{"topic":"room.*"}]"#, "room.eu.7", 1),
        (r#"[{"topic":"room.*","wildcard":true}]"#, "hall.7", 1),
        (r#"[{"topic":"room.*","wildcard":true}]"#, "room.7", 2),
        (r#"[{"topic":"room.*","wildcard":true}]"#, "room.eu.7", 3),
        (r#"[{"topic":"*","wildcard":true}]"#, "room.eu.7", 4),
    ] {
        let rows = ["room.eu.7", "room.*", "room.eu.*", "*"].map(|name| (name.to_owned(), "c".to_owned()));
        let (aws, store) = store(rules, Rows::from(rows), 10);
        let found = received(&store, &Topic::parse(topic).unwrap(), 9).await;
        assert_eq!(aws.count("Query"), queries, "{rules} {topic}");
        assert_eq!(found.len(), usize::from(topic != "hall.7" && (topic == "room.eu.7" || queries > 1)));
    }
}

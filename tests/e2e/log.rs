//! What functions write into their log: nothing for an event that goes well, and everything for one that fails.

use serde_json::{Value, json};
use switchboard_tests::proxy::{Proxy, answer};
use switchboard_tests::stack::{Stack, matching};

const NO_DETAILS: [&str; 2] = ["--env", "LOG_ONE_IN=0"];

#[tokio::test]
async fn only_connections_and_first_events_write_lines_if_all_goes_well() {
    let (_proxy, stack) = Proxy::in_front(&NO_DETAILS, |_| None).await;
    let mut one = stack.connect("?userId=1").await;
    let mut two = stack.connect("?userId=2").await;
    two.ask(json!({"type": "subscribe", "topics": [{"topic": "a"}, {"topic": "room.b"}], "id": "s"})).await;
    for round in 0..3 {
        one.ask(json!({"action": "sendMessage", "destinationUserId": "2", "body": round, "id": "d"})).await;
        one.ask(json!({"type": "message", "topic": "a", "message": round, "id": "m"})).await;
        one.ask(json!({"type": "message", "topic": "room.b", "message": round, "id": format!("k{round}")})).await;
        one.ask(json!({"type": "ping"})).await;
        // A client's mistake is nothing for an operator.
        one.ask(json!({"type": "dance"})).await;
    }
    two.close().await;
    stack.logged(1, &["disconnect |", "served"]).await;
    let log = stack.whole_log().await;
    let lines_of = |function: &str| -> Vec<_> {
        let lines = log.iter().filter(|line| line.starts_with(&format!("{function} | {{")));
        lines.cloned().collect()
    };
    for function in ["sendMessage", "default"] {
        let lines = lines_of(function);
        assert!(lines.iter().all(|line| line.contains("\"ColdStart\":1")), "{lines:#?}");
        // An event can only meet a second environment if the first one is still busy.
        assert!((1..=2).contains(&lines.len()), "{lines:#?}");
    }
    assert_eq!(matching(&lines_of("connect"), &["served"]).len(), 2);
}

#[tokio::test]
async fn a_fault_writes_the_lines_that_led_to_it() {
    let (proxy, stack) = Proxy::in_front(&NO_DETAILS, |call| {
        let is_poison = call.operation == "Query" && call.body.to_string().contains("room.poison");
        is_poison.then(|| answer(400, "ValidationException", r#"{"message":"no"}"#))
    })
    .await;
    let mut one = stack.connect("?userId=1").await;
    one.ask(json!({"type": "message", "topic": "room.fine", "message": "x", "id": "1"})).await;
    let answer = one.ask(json!({"type": "message", "topic": "room.poison", "message": "x", "id": "2"})).await;
    assert_eq!(answer["message"], "Internal server error");
    stack.logged(1, &["default |", "\"failed\""]).await;
    drop(proxy);
    let log = stack.whole_log().await;
    let lines = log.iter().filter_map(|line| line.strip_prefix("default | "));
    let records: Vec<Value> = lines.filter_map(|line| serde_json::from_str(line).ok()).collect();
    let records: Vec<_> = records.iter().filter(|record| record["level"].is_string()).collect();
    let said: Vec<_> = records.iter().map(|record| record["fields"]["message"].as_str().unwrap()).collect();
    // Nothing is there of the message before.
    assert_eq!(said[..3], ["a frame came", "messages are kept", "failed"], "{log:#?}");
    assert_eq!(records[1]["fields"]["topic.name"], "room.poison");
    // Lambda would drop lines below INFO.
    assert!(records[..2].iter().all(|record| record["level"] == "INFO"), "{records:#?}");
}

#[tokio::test]
async fn at_the_level_debug_every_event_writes_its_lines() {
    for (variable, is_shown) in [("RUST_LOG=switchboard_core=debug,info", true), ("RUST_LOG=info", false)] {
        let (_proxy, stack) = Proxy::in_front(&[&NO_DETAILS[..], &["--env", variable]].concat(), |_| None).await;
        stack.connect("?userId=1").await.ask(json!({"type": "ping"})).await;
        let log = stack.whole_log().await;
        assert_eq!(matching(&log, &["default |", "served"]).len(), usize::from(is_shown), "{variable}");
    }
}

#[tokio::test]
async fn a_filter_that_is_wrong_is_told_and_does_not_count() {
    let stack = Stack::with(&["--env", "RUST_LOG=switchboard_core=loud"]).await;
    let _client = stack.connect("?userId=1").await;
    let line = stack.logged(1, &["connect |", "RUST_LOG is no filter"]).await.remove(0);
    assert!(line.contains("switchboard_core=loud"), "{line}");
    stack.logged(1, &["connect |", "served"]).await;
}

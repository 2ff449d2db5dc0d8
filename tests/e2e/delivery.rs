//! Delivery when something goes wrong: nothing is lost, nobody pays for a bad receiver, and the sender hears the truth.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::SinkExt;
use serde_json::{Value, json};
use switchboard_tests::client::Client;
use switchboard_tests::proxy::{Proxy, answer};
use switchboard_tests::stack::{Stack, table_name, text};
use switchboard_tests::wire;
use tokio::net::TcpSocket;
use tokio::sync::watch;
use tokio_tungstenite::tungstenite::Message;

use crate::failures::hurried;

async fn put_event(stack: &Stack, topic: &str, id: &str, data: &str) {
    let put = stack.dynamodb().await.put_item().table_name(table_name("events"));
    let put = put.item("topic", AttributeValue::S(topic.to_owned())).item("id", AttributeValue::S(id.to_owned()));
    put.item("data", AttributeValue::S(data.to_owned())).send().await.unwrap();
}

async fn subscribers(stack: &Stack, topic: &str, count: usize) -> Vec<Client> {
    let mut subscribers = Vec::new();
    for _ in 0..count {
        let mut subscriber = stack.connect("").await;
        subscriber.ask(json!({"type": "subscribe", "topic": topic, "id": "s"})).await;
        subscribers.push(subscriber);
    }
    subscribers
}

/// Half the rows of the topic are on the first page; the second page fails until it is asked for the fifth time.
#[tokio::test]
async fn a_page_that_fails_in_the_middle_loses_no_receiver() {
    let rows = Arc::new(Mutex::new(Vec::<Value>::new()));
    let page = Arc::clone(&rows);
    let failures = Mutex::new(0);
    let (_proxy, stack) = Proxy::in_front(&[], move |call| {
        let rows = page.lock().unwrap();
        if call.operation != "Query" || rows.is_empty() {
            return None;
        }
        if call.body["ExclusiveStartKey"] == Value::Null {
            let last = rows.last().unwrap();
            let key = json!({"topic": {"S": "t"}, "connectionId": last["connectionId"]});
            return Some(answer(200, "", &json!({"Items": *rows, "LastEvaluatedKey": key}).to_string()));
        }
        let mut failures = failures.lock().unwrap();
        *failures += 1;
        // The SDK tries three times, and then once more in the continuation.
        let error = json!({"__type": "com.amazonaws.dynamodb.v20120810#InternalServerError"});
        (*failures < 5).then(|| answer(500, "", &error.to_string()))
    })
    .await;
    let mut subscribers = subscribers(&stack, "t", 20).await;
    let mut sender = stack.connect("").await;
    let mut first: Vec<_> = stack.rows("topics").await;
    first.sort_by_key(|row| text(row, "connectionId"));
    let item = |row: &switchboard_tests::stack::Row| {
        json!({"connectionId": {"S": text(row, "connectionId")}, "subscriptionId": {"S": "s"},
               "connectedAt": {"N": row["connectedAt"].as_n().unwrap()}})
    };
    *rows.lock().unwrap() = first.iter().take(10).map(item).collect();

    let ack = sender.ask(json!({"type": "message", "topic": "t", "message": 1, "id": "m"})).await;
    assert_eq!(ack, json!({"type": "ack", "id": "m", "delivered": 10, "continued": true}));
    for subscriber in &mut subscribers {
        assert_eq!(subscriber.next().await["payload"]["data"], 1);
        subscriber.hears_nothing().await;
    }
}

/// A client that never reads, with a receive buffer as small as the kernel allows.
/// A function of a route serves 500 receivers, and `fan-out` the others.
#[tokio::test]
async fn a_large_publish_is_handed_over_and_reaches_everybody_once() {
    let stack = Stack::with(&["--connection-rate", "100000"]).await;
    let mut listening = Vec::new();
    for _ in 0..15 {
        let group = futures_util::future::join_all((0..40).map(|_| subscribers(&stack, "t", 1))).await;
        listening.extend(group.into_iter().flatten());
    }
    let mut sender = stack.connect("").await;
    for message in 1..=2 {
        let ack = sender.ask(json!({"type": "message", "topic": "t", "message": message, "id": "m"})).await;
        // The function posts to at most so many receivers itself, and for at most a second, which a busy machine needs for fewer.
        let delivered = ack["delivered"].as_u64().unwrap();
        assert_eq!(ack, json!({"type": "ack", "id": "m", "delivered": delivered, "continued": true}));
        assert!((1..=500).contains(&delivered), "{delivered}");
    }
    for client in &mut listening {
        // Two large publishes on a topic without history have no order.
        let mut heard = [client.next().await, client.next().await].map(|frame| frame["payload"]["data"].as_u64());
        heard.sort_unstable();
        assert_eq!(heard, [Some(1), Some(2)]);
        client.hears_nothing().await;
    }
}

async fn lazy(stack: &Stack, topics: &[&str]) -> wire::Client {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(2048).unwrap();
    let tcp = socket.connect(stack.gateway.parse().unwrap()).await.unwrap();
    let tcp = tokio::io::BufReader::new(Box::new(tcp) as Box<dyn wire::Stream>);
    let mut client = wire::Client::accept(wire::request(tcp, &stack.gateway, "/dev", &[]).await).await;
    for topic in topics {
        client.send(&json!({"type": "subscribe", "topic": topic})).await;
    }
    client
}

/// The real thing: sockets whose buffers are full, between others that read.
#[tokio::test]
async fn receivers_that_do_not_read_change_nothing_for_the_others_and_are_dropped() {
    let stack = Stack::start().await;
    let mut lazies = Vec::new();
    for _ in 0..3 {
        lazies.push(lazy(&stack, &["fill", "t"]).await);
    }
    stack.settled("topics", 6).await;
    let mut others = subscribers(&stack, "t", 10).await;
    let mut sender = stack.connect("").await;
    // The gateway takes frames of 32 KB and messages of 128 KB.
    let fill = json!({"type": "message", "topic": "fill", "message": "x".repeat(30_000), "id": "f"});
    while sender.ask(fill.clone()).await["continued"] != true {}
    // The fan-out's own attempt drops them.
    stack.settled("topics", 10).await;
    stack.settled("connections", 11).await;
    for number in 0..3 {
        let ack = sender.ask(json!({"type": "message", "topic": "t", "message": number, "id": "m"})).await;
        assert_eq!(ack, json!({"type": "ack", "id": "m", "delivered": 10}));
        for other in &mut others {
            assert_eq!(other.next().await["payload"]["data"], number);
        }
    }
    for other in &mut others {
        other.hears_nothing().await;
    }
    stack.logged(3, &["fanOut |", "dropped: it does not read"]).await;
}

/// A receiver that hangs holds up its own event, and the events of other topics in the same batch arrive.
#[tokio::test]
async fn an_event_that_hangs_holds_up_no_other_topic_and_never_comes_again() {
    let slow = Arc::new(Mutex::new(None::<String>));
    let hanging = Arc::clone(&slow);
    let (proxy, stack) = Proxy::in_front(&[], move |call| {
        let slow = hanging.lock().unwrap();
        let id = slow.as_deref().filter(|_| call.operation == "POST")?;
        call.path.contains(id.trim_end_matches('=')).then(|| Box::pin(std::future::pending()) as _)
    })
    .await;
    let _phone = stack.connect("?userId=phone").await;
    *slow.lock().unwrap() = Some(text(&stack.rows("connections").await[0], "connectionId"));
    let mut one = subscribers(&stack, "t", 1).await.remove(0);
    proxy.take();
    let put = stack.dynamodb().await.put_item().table_name(table_name("events"));
    let put = put.item("topic", AttributeValue::S("@phone".to_owned())).item("id", AttributeValue::S("1".to_owned()));
    let put = put.item("senderId", AttributeValue::S("robot".to_owned()));
    put.item("body", AttributeValue::S("x".to_owned())).send().await.unwrap();
    for number in 0..5 {
        put_event(&stack, "t", &number.to_string(), &number.to_string()).await;
    }
    for number in 0..5 {
        assert_eq!(one.next().await["payload"]["data"], number.to_string());
    }
    // The continuation hangs as well; closing the connection succeeds, and then its rows go.
    stack.settled("connections", 1).await;
    one.hears_nothing().await;
    let lines = stack.logged(1, &["publish |", "\"published\"", "@phone", "\"continued\":true"]).await;
    assert_eq!(lines.len(), 1);
    assert!(stack.log(&["publish |", "come again"]).is_empty());
}

/// Posts for a continuation stand still; an event that is put then does not wait for them.
#[tokio::test]
async fn events_never_wait_for_continuations() {
    let folder = hurried(4);
    let config = folder.path().join("serverless.yml");
    let (release, released) = watch::channel(false);
    let slow = Arc::new(Mutex::new(Vec::<String>::new()));
    let waiting = Arc::clone(&slow);
    let (proxy, stack) = Proxy::in_front(&["--config", config.to_str().unwrap()], move |call| {
        let slow = waiting.lock().unwrap();
        let waits = call.operation == "POST" && slow.iter().any(|id| call.path.contains(id.trim_end_matches('=')));
        let mut released = released.clone();
        waits.then(|| {
            Box::pin(async move {
                let _ = released.wait_for(|released| *released).await;
                answer(200, "", "").await
            }) as _
        })
    })
    .await;
    let _bad = subscribers(&stack, "bad", 20).await;
    *slow.lock().unwrap() = stack.rows("connections").await.iter().map(|row| text(row, "connectionId")).collect();
    let mut one = subscribers(&stack, "t", 1).await.remove(0);
    proxy.take();
    let mut sender = stack.connect("").await;
    let ack = sender.ask(json!({"type": "message", "topic": "bad", "message": 1, "id": "m"})).await;
    assert_eq!((&ack["delivered"], &ack["continued"]), (&json!(0), &json!(true)));
    put_event(&stack, "t", "1", "alert").await;
    assert_eq!(one.next().await["payload"]["data"], "alert");
    release.send_replace(true);
}

/// Ids that share a beginning, and the longest id that DynamoDB takes: everybody gets each event.
#[tokio::test]
async fn continuations_of_any_event_ids_reach_everybody() {
    let folder = hurried(4);
    let config = folder.path().join("serverless.yml");
    let (proxy, stack) = Proxy::in_front(&["--config", config.to_str().unwrap()], |_| None).await;
    let mut subscribers = subscribers(&stack, "t", 60).await;
    proxy.delay("POST", std::time::Duration::from_secs(2));
    let longest = "x".repeat(1024);
    let ids = ["deploy after lunch", "deploy after dinner", &longest];
    for (number, id) in ids.iter().enumerate() {
        put_event(&stack, "t", id, &number.to_string()).await;
    }
    for subscriber in &mut subscribers {
        let mut heard = BTreeMap::new();
        while heard.len() < ids.len() {
            let data = subscriber.next().await["payload"]["data"].clone();
            *heard.entry(data.to_string()).or_insert(0) += 1;
        }
    }
    stack.logged(1, &["publish |", "a continuation goes on"]).await;
    assert!(stack.log(&["come again"]).is_empty(), "{:?}", stack.log(&["come again"]));
}

/// A page that is left, or `wscat -x`: the close frame comes in the same packet as the message.
#[tokio::test]
async fn the_last_message_before_a_close_arrives() {
    let stack = Stack::start().await;
    let mut two = stack.connect("?userId=2").await;
    for number in 0..30 {
        let mut one = stack.connect("?userId=1").await;
        let frame = json!({"action": "sendMessage", "destinationUserId": "2", "body": number});
        one.socket.feed(Message::text(frame.to_string())).await.unwrap();
        one.socket.feed(Message::Close(None)).await.unwrap();
        one.socket.flush().await.unwrap();
    }
    let mut heard: Vec<_> = Vec::new();
    for _ in 0..30 {
        heard.push(two.next().await["body"].as_u64().unwrap());
    }
    heard.sort_unstable();
    assert!(heard.into_iter().eq(0..30));
    // What stays of a sender is a tombstone that nobody delivers to, and it expires within a minute.
    stack.settled("connections", 1).await;
    let tombstones: Vec<_> = stack.all_rows("connections").await;
    let tombstones: Vec<_> = tombstones.iter().filter(|row| row.contains_key("closedAt")).collect();
    assert_eq!(tombstones.len(), 30);
    for row in tombstones {
        let life_s =
            switchboard_tests::stack::number(row, "ttl") - switchboard_tests::stack::number(row, "closedAt") / 1000;
        assert!((59..=61).contains(&life_s), "{row:?}");
    }
    stack.settled("topics", 1).await;
    put_event(&stack, "INITIAL_CONNECTION", "1", "everybody").await;
    assert_eq!(two.next().await["payload"]["data"], "everybody");
    let line = stack.logged(1, &["publish |", "\"published\"", "INITIAL_CONNECTION"]).await.remove(0);
    assert!(line.contains("\"delivered\":1,"), "{line}");
}

/// The second article's own table has rows like this one.
#[tokio::test]
async fn a_row_of_another_program_silences_nobody() {
    let stack = Stack::start().await;
    let mut one = subscribers(&stack, "mixed", 1).await.remove(0);
    let mut other = subscribers(&stack, "other", 1).await.remove(0);
    let ttl = AttributeValue::N("4102444800".to_owned());
    let string = |text: &str| AttributeValue::S(text.to_owned());
    let put = stack.dynamodb().await.put_item().table_name(table_name("topics"));
    let put = put.item("topic", string("mixed")).item("connectionId", string("AAAAAAAAAAAAAAA="));
    put.item("subscriptionId", string("x")).item("ttl", ttl.clone()).send().await.unwrap();
    let put = stack.dynamodb().await.put_item().table_name(table_name("connections"));
    put.item("connectionId", string("BAAAAAAAAAAAAAA=")).item("ttl", ttl).send().await.unwrap();

    let mut sender = stack.connect("").await;
    let ack = sender.ask(json!({"type": "message", "topic": "mixed", "message": 1, "id": "m"})).await;
    assert_eq!(ack, json!({"type": "ack", "id": "m", "delivered": 1}));
    assert_eq!(one.next().await["payload"]["data"], 1);
    put_event(&stack, "mixed", "1", "event").await;
    put_event(&stack, "other", "1", "event").await;
    put_event(&stack, "INITIAL_CONNECTION", "1", "everybody").await;
    for client in [&mut one, &mut other] {
        let heard = [client.next().await["payload"]["data"].clone(), client.next().await["payload"]["data"].clone()];
        assert!(heard.contains(&json!("event")) && heard.contains(&json!("everybody")), "{heard:?}");
    }
    for id in ["AAAAAAAAAAAAAAA=", "BAAAAAAAAAAAAAA="] {
        stack.logged(1, &["publish |", "a row is skipped", id]).await;
    }
    stack.logged(1, &["default |", "\"ErrorType\":\"Store.UnknownItem\"", "\"Fault\":1"]).await;
    assert!(stack.log(&["come again"]).is_empty());
}

#[tokio::test]
async fn expired_subscriptions_do_not_count() {
    let stack = Stack::start().await;
    let mut one = stack.connect("?userId=1").await;
    for number in 0..99 {
        let ack = one.ask(json!({"type": "subscribe", "topic": format!("{number}"), "id": "s"})).await;
        assert_eq!(ack["type"], "ack");
    }
    let subscribe = json!({"type": "subscribe", "topic": "one more", "id": "s"});
    assert_eq!(one.ask(subscribe.clone()).await["code"], "too_many_topics");
    // 50 of them expire, and DynamoDB has not removed them yet.
    let dynamodb = stack.dynamodb().await;
    let rows = stack.rows("topics").await;
    for mut row in rows.into_iter().filter(|row| text(row, "topic") != "@1").take(50) {
        row.insert("ttl".to_owned(), AttributeValue::N("1".to_owned()));
        dynamodb.put_item().table_name(table_name("topics")).set_item(Some(row)).send().await.unwrap();
    }
    assert_eq!(one.ask(subscribe).await, json!({"type": "ack", "id": "s"}));
    let topics = stack.rows("connections").await[0]["topics"].as_ss().unwrap().clone();
    assert_eq!(topics.len(), 51);
    assert!(topics.contains(&"@1".to_owned()) && topics.contains(&"one more".to_owned()));
}

#[tokio::test]
async fn a_wrong_publish_endpoint_ends_the_function_at_start_and_is_named() {
    for (url, problem) in [
        ("wss://abc.execute-api.us-east-1.amazonaws.com/dev", "not with wss://"),
        ("127.0.0.1:3001/dev", "must begin with http:// or https://"),
        ("http://127.0.0.1:3001/dev/@connections", "must end before /@connections"),
    ] {
        let stack = Stack::with(&["--env", &format!("PUBLISH_ENDPOINT={url}")]).await;
        assert_eq!(stack.refused("?userId=1").await, 502);
        stack.logged(1, &["connect", "Config.Invalid", "PUBLISH_ENDPOINT", problem]).await;
    }
}

/// Nothing listens there, so each post fails, and the SDK's own texts would repeat the frame.
#[tokio::test]
async fn no_error_brings_a_body_into_the_log() {
    let stack = Stack::with(&["--env", "PUBLISH_ENDPOINT=http://127.0.0.1:9/dev", "--env", "RUST_LOG=debug"]).await;
    let mut one = stack.connect("?userId=1").await;
    one.send(json!({"action": "sendMessage", "destinationUserId": "1", "body": "TOP-SECRET-BODY", "id": "m"})).await;
    stack.logged(1, &["sendMessage |", "a post is refused"]).await;
    stack.logged(1, &["sendMessage |", "did not get its reply"]).await;
    let lines = stack.log(&["TOP-SECRET"]);
    assert!(lines.is_empty(), "{lines:?}");
}

/// One execution environment serves both clients, and each reply goes to the address that its client came through. Nothing
/// speaks TLS there, so that a reply ends as a connection of TCP.
#[tokio::test]
async fn a_reply_goes_to_the_address_of_its_own_event() {
    let stack = Stack::with(&["--env", "AWS_ENDPOINT_URL_APIGATEWAYMANAGEMENTAPI="]).await;
    for count in 1..=2 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = format!("localhost:{}", listener.local_addr().unwrap().port());
        let tcp = tokio::net::TcpStream::connect(&stack.gateway).await.unwrap();
        let tcp = tokio::io::BufReader::new(Box::new(tcp) as Box<dyn wire::Stream>);
        let mut client = wire::Client::accept(wire::request(tcp, &host, "/dev", &[]).await).await;
        client.send(&json!({"type": "dance"})).await;
        tokio::time::timeout(switchboard_tests::stack::PATIENCE, listener.accept()).await.unwrap().unwrap();
        drop(listener);
        stack.logged(count, &["default |", "the sender did not get its reply"]).await;
    }
}

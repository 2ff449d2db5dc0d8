//! Many topics in one subscribe frame, and `@me`, a connection's own address.

use aws_sdk_dynamodb::types::AttributeValue;
use serde_json::{Value, json};
use switchboard_tests::client::Client;
use switchboard_tests::proxy::{Proxy, answer};
use switchboard_tests::stack::{Row, Stack, binaries, number, table_name, text};

/// Rules that keep direct messages as well as rooms.
const INBOX: &str = r#"TOPIC_RULES=[{"topic":"room.*","history":{"hours":24}},{"topic":"@*","history":{"hours":72}}]"#;

fn subscribe(topics: impl Into<Value>) -> Value {
    json!({"type": "subscribe", "id": "s", "topics": topics.into()})
}

/// Keeps messages in `topic`, and returns its epoch. The connection that sent them has gone then.
async fn publish(stack: &Stack, topic: &str, count: usize) -> Value {
    let others = stack.rows("topics").await.len();
    let mut one = stack.connect("?userId=1").await;
    let mut epoch = Value::Null;
    for count in 1..=count {
        let message = json!({"type": "message", "topic": topic, "message": count, "id": format!("m{count}")});
        epoch = one.ask(message).await["epoch"].clone();
    }
    one.close().await;
    stack.settled("topics", others).await;
    epoch
}

/// Gives a topic the messages of another one.
async fn copy(stack: &Stack, from: &str, to: &str) {
    let dynamodb = stack.dynamodb().await;
    for mut row in stack.all_rows("messages").await {
        if let Some(p) = ["h:", "m:"].iter().find(|p| text(&row, "p") == format!("{p}{from}")) {
            row.insert("p".to_owned(), AttributeValue::S(format!("{p}{to}")));
            dynamodb.put_item().table_name(table_name("messages")).set_item(Some(row)).send().await.unwrap();
        }
    }
}

/// The topic rows of all connections, by topic.
async fn rows(stack: &Stack) -> Vec<Row> {
    let mut rows = stack.rows("topics").await;
    rows.sort_by_key(|row| text(row, "topic"));
    rows
}

fn names(rows: &[Row]) -> Vec<String> {
    rows.iter().map(|row| text(row, "topic")).collect()
}

/// Whether a row asks for positions.
fn positions(row: &Row) -> bool {
    row.get("positions").is_some_and(|positions| *positions.as_bool().unwrap())
}

#[tokio::test]
async fn one_frame_subscribes_to_many_topics_and_one_ack_tells_of_each() {
    let stack = Stack::start().await;
    let epoch = publish(&stack, "room.7", 3).await;
    publish(&stack, "room.8", 2).await;
    stack.settled("topics", 0).await;
    let mut two = stack.connect("?userId=2").await;
    let topics = json!([
        {"topic": "news", "unknown": 1},
        {"topic": "room.7", "after": {"epoch": epoch, "seq": 1}},
        {"topic": "room.8", "last": 1},
        {"topic": "room.9", "positions": true},
        {"topic": "@me"},
        {"topic": "room.10", "after": null, "ttl": 9_999_999_999_u64},
    ]);
    two.send(subscribe(topics)).await;
    let mut histories = [two.next().await, two.next().await];
    histories.sort_by_key(|frame| frame["topic"].as_str().unwrap().to_owned());
    let data = |frame: &Value| -> Vec<Value> {
        frame["messages"].as_array().unwrap().iter().map(|message| message["data"].clone()).collect()
    };
    assert_eq!((&histories[0]["topic"], data(&histories[0])), (&json!("room.7"), vec![json!(2), json!(3)]));
    assert_eq!((&histories[1]["topic"], data(&histories[1])), (&json!("room.8"), vec![json!(2)]));
    assert_eq!((&histories[1]["id"], &histories[1]["type"]), (&json!("s"), &json!("history")));
    let ack = two.next_text().await;
    let other: Value = serde_json::from_str(&ack).unwrap();
    let epochs = [&other["topics"][2]["epoch"], &other["topics"][3]["epoch"]];
    let expected = format!(
        "{}{}{}{}",
        r#"{"type":"ack","id":"s","topics":[{"topic":"news"},"#,
        format_args!(r#"{{"topic":"room.7","epoch":{epoch},"seq":3,"recovered":true}},"#),
        format_args!(r#"{{"topic":"room.8","epoch":{},"seq":2}},"#, epochs[0]),
        format_args!(
            r#"{{"topic":"room.9","epoch":{},"seq":0}},{{"topic":"@me"}},{{"topic":"room.10"}}]}}"#,
            epochs[1]
        ),
    );
    assert_eq!(ack, expected);

    let rows = rows(&stack).await;
    assert_eq!(names(&rows), ["@2", "news", "room.10", "room.7", "room.8", "room.9"]);
    assert_eq!(rows.iter().map(positions).collect::<Vec<_>>(), [false, false, false, true, true, true]);
    assert!(rows[1..].iter().all(|row| text(row, "subscriptionId") == "s"));
    // Those that did not ask for positions hear what they always did.
    let mut one = stack.connect("?userId=1").await;
    for (topic, kept) in [("news", false), ("room.10", false), ("room.7", true)] {
        one.ask(json!({"type": "message", "topic": topic, "message": "hi", "id": "m"})).await;
        let plain = r#"{"id":"s","payload":{"data":"hi"},"type":"data"}"#;
        let frame = two.next_text().await;
        let more = format!(r#","topic":"room.7","senderId":"1","epoch":{epoch},"seq":4}}"#);
        let expected = if kept { format!("{}{more}", plain.strip_suffix('}').unwrap()) } else { plain.to_owned() };
        assert_eq!(frame, expected);
    }
    two.close().await;
    stack.settled("topics", 1).await;
}

#[tokio::test]
async fn a_wrong_entry_refuses_the_frame_and_nothing_is_written() {
    let (proxy, stack) = Proxy::in_front(&[], |_| None).await;
    let mut one = stack.connect("?userId=1").await;
    proxy.take();
    // The unit tests of `frame` in core have the whole table.
    for (topics, names) in [
        (json!([]), "`topics` must be a list of 1 to 100 objects"),
        (json!([{"topic": "a"}, 7]), "`topics[1]` is a number"),
        (json!([{"topic": "a"}, {"topic": "b", "last": 0}]), "in `topics[1]`, the field `last` must be"),
        (json!([{"topic": "a"}, {"topic": "b", "ttl": 1}]), "in `topics[1]`, the field `ttl` must be an epoch second"),
        (json!([{"topic": "a"}, {"topic": "a"}]), "in `topics[1]`, the field `topic` must be one that no other"),
        (json!([{"topic": "@1"}]), "in `topics[0]`, the topic `@1` is reserved"),
    ] {
        let error = one.ask(subscribe(topics)).await;
        assert_eq!((&error["type"], &error["id"]), (&json!("error"), &json!("s")), "{error}");
        assert!(error["message"].as_str().unwrap().contains(names), "{error}");
        assert_eq!(proxy.take(), ["POST"]);
    }
}

#[tokio::test]
async fn a_topic_without_history_does_not_refuse_the_others() {
    let stack = Stack::start().await;
    let mut one = stack.connect("").await;
    let topics =
        json!([{"topic": "a"}, {"topic": "b", "last": 1}, {"topic": "@me"}, {"topic": "c", "positions": true}]);
    let ack = one.ask(subscribe(topics.clone())).await;
    let expected = json!({"type": "ack", "id": "s", "topics": [
        {"topic": "a"},
        {"topic": "b", "code": "no_history", "message": "the topic `b` keeps no history", "temporary": false},
        {
            "topic": "@me", "code": "unidentified", "temporary": false,
            "message": "this connection has no user, so it has no address `@me`",
        },
        {"topic": "c"},
    ]});
    assert_eq!(ack, expected);
    assert_eq!(names(&rows(&stack).await), ["a", "c"]);
    // A frame without an `id` is answered only if something is wrong.
    let mut frame = subscribe(topics);
    frame.as_object_mut().unwrap().remove("id");
    let mut expected = expected;
    expected.as_object_mut().unwrap().remove("id");
    assert_eq!(one.ask(frame).await, expected);
    one.send(json!({"type": "subscribe", "topics": [{"topic": "a"}]})).await;
    one.hears_nothing().await;
    // If no topic can be subscribed, nothing is written.
    let ack = one.ask(subscribe(json!([{"topic": "d", "last": 1}]))).await;
    assert_eq!(ack["topics"][0]["code"], "no_history");
    assert_eq!(names(&rows(&stack).await), ["a", "c"]);
}

/// The client listens to the topic. It asks again for the history, with the position that it had.
#[tokio::test]
async fn a_topic_whose_history_is_busy_is_subscribed_all_the_same() {
    let is_busy = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let shared = std::sync::Arc::clone(&is_busy);
    let (_proxy, stack) = Proxy::in_front(&[], move |call| {
        let is_history = call.body["ExpressionAttributeValues"][":p"]["S"] == "m:room.7";
        let name = "ProvisionedThroughputExceededException";
        let is_refused = is_history && shared.load(std::sync::atomic::Ordering::SeqCst);
        is_refused.then(|| answer(400, name, &json!({"__type": name}).to_string()))
    })
    .await;
    let epoch = publish(&stack, "room.7", 2).await;
    publish(&stack, "room.8", 2).await;
    let mut two = stack.connect("").await;
    let wanted = json!({"topic": "room.7", "after": {"epoch": epoch, "seq": 1}});
    two.send(subscribe(json!([wanted, {"topic": "room.8", "last": 1}]))).await;
    assert_eq!(two.next().await["topic"], "room.8");
    let ack = two.next().await;
    let expected = json!({
        "topic": "room.7", "code": "busy", "temporary": true,
        "message": "too much is going on at once; send this frame again in a moment",
    });
    assert_eq!(ack["topics"][0], expected);
    assert_eq!(ack["topics"][1]["seq"], 2);
    let mut one = stack.connect("?userId=1").await;
    one.ask(json!({"type": "message", "topic": "room.7", "message": "live", "id": "m"})).await;
    assert_eq!(two.next().await["seq"], 3);
    is_busy.store(false, std::sync::atomic::Ordering::SeqCst);
    two.send(subscribe(json!([wanted]))).await;
    let history = two.next().await;
    let seqs: Vec<_> = history["messages"].as_array().unwrap().iter().map(|message| message["seq"].clone()).collect();
    assert_eq!(seqs, [2, 3]);
    let entry = json!({"topic": "room.7", "epoch": epoch, "seq": 3, "recovered": true});
    assert_eq!(two.next().await, json!({"type": "ack", "id": "s", "topics": [entry]}));
}

async fn send_large(client: &mut Client, frame: &Value) {
    crate::mistakes::send_in_fragments(client, &frame.to_string()).await;
}

#[tokio::test]
async fn a_hundred_topics_cost_a_hundred_and_one_write_units_and_few_calls() {
    let (proxy, stack) = Proxy::in_front(&[], |_| None).await;
    let mut one = stack.connect("").await;
    proxy.take();
    proxy.take_write_units();
    let topics: Vec<_> = (0..100).map(|number| json!({"topic": format!("t{number:02}")})).collect();
    let ack = one.ask(subscribe(topics.clone())).await;
    assert_eq!(ack["topics"], json!(topics));
    assert_eq!(proxy.take_write_units(), 101.0);
    let batches = ["BatchWriteItem"; 4];
    assert_eq!(proxy.take(), [&["UpdateItem"], &batches[..], &["GetItem", "POST"]].concat());
    assert_eq!(rows(&stack).await.len(), 100);

    // The same topics once more fit. One more does not, and then none of the frame is written.
    assert_eq!(one.ask(subscribe(topics.clone())).await["topics"], json!(topics));
    let mut more = topics.clone();
    more[0] = json!({"topic": "new"});
    assert_eq!(one.ask(subscribe(more)).await["code"], "too_many_topics");
    let listed = stack.rows("connections").await[0]["topics"].as_ss().unwrap().len();
    assert_eq!((rows(&stack).await.len(), listed), (100, 100));
    one.close().await;
    stack.settled("topics", 0).await;
}

#[tokio::test]
async fn a_hundred_topics_do_not_fit_a_connection_that_has_fifty() {
    let stack = Stack::start().await;
    let mut one = stack.connect("?userId=1").await;
    let topics = |range: std::ops::Range<usize>| {
        range.map(|number| json!({"topic": format!("t{number:03}")})).collect::<Vec<_>>()
    };
    // Its own address is one of the fifty.
    one.ask(subscribe(topics(0..49))).await;
    for (range, fits) in [(49..149, false), (49..100, false), (49..99, true), (0..99, true), (0..100, false)] {
        let reply = one.ask(subscribe(topics(range.clone()))).await;
        let expected = if fits { json!(null) } else { json!("too_many_topics") };
        assert_eq!(reply["code"], expected, "{range:?}: {reply}");
        let rows = rows(&stack).await.len();
        assert_eq!(rows, if range.start == 0 || fits { 100 } else { 50 }, "{range:?}");
    }
    // Topics that were left make room.
    for number in 0..2 {
        one.ask(json!({"type": "unsubscribe", "topic": format!("t{number:03}"), "id": "u"})).await;
    }
    assert_eq!(one.ask(subscribe(topics(99..102))).await["code"], "too_many_topics");
    assert_eq!(one.ask(subscribe(topics(99..101))).await["type"], "ack");
    assert_eq!(rows(&stack).await.len(), 100);
    assert_eq!(one.ask(subscribe(json!([{"topic": "t000"}]))).await["code"], "too_many_topics");
}

#[tokio::test]
async fn a_hundred_topics_with_history_are_resumed_with_one_read_of_their_heads() {
    let (proxy, stack) = Proxy::in_front(&[], |_| None).await;
    let epoch = publish(&stack, "room.0", 2).await;
    for number in 1..100 {
        copy(&stack, "room.0", &format!("room.{number}")).await;
    }
    let mut one = stack.connect("").await;
    proxy.take();
    let topic = |number: usize| {
        // Every tenth topic has gone on.
        let seq = if number.is_multiple_of(10) { 1 } else { 2 };
        json!({"topic": format!("room.{number}"), "after": {"epoch": epoch, "seq": seq}})
    };
    send_large(&mut one, &subscribe((0..100).map(topic).collect::<Vec<_>>())).await;
    let mut histories = 0;
    let ack = loop {
        let frame = one.next().await;
        if frame["type"] == "ack" {
            break frame;
        }
        histories += 1;
    };
    assert_eq!(histories, 10);
    for (number, entry) in ack["topics"].as_array().unwrap().iter().enumerate() {
        assert_eq!(*entry, json!({"topic": format!("room.{number}"), "epoch": epoch, "seq": 2, "recovered": true}));
    }
    let calls = proxy.take();
    let count = |operation: &str| calls.iter().filter(|called| *called == operation).count();
    assert_eq!(calls[..6], [&["UpdateItem"], &["BatchWriteItem"; 4][..], &["GetItem"]].concat());
    assert_eq!((count("BatchGetItem"), count("Query"), count("POST"), calls.len()), (1, 10, 11, 28));
}

#[tokio::test]
async fn a_client_asks_for_positions_of_its_own_address() {
    let stack = Stack::with(&["--env", INBOX]).await;
    let mut two = stack.connect("?userId=2").await;
    let mut one = stack.connect("?userId=1").await;
    let before = rows(&stack).await;
    // Without positions nothing changes, alone and in a list.
    assert_eq!(
        two.ask(json!({"type": "subscribe", "topic": "@me", "id": "s"})).await,
        json!({"type": "ack", "id": "s"})
    );
    assert_eq!(two.ask(subscribe(json!([{"topic": "@me"}]))).await["topics"], json!([{"topic": "@me"}]));
    assert_eq!(rows(&stack).await, before);
    one.send(json!({"action": "sendMessage", "destinationUserId": "2", "body": "hello there!"})).await;
    assert_eq!(two.next_text().await, r#"{"senderId":"1","body":"hello there!"}"#);

    let ack = two.ask(json!({"type": "subscribe", "topic": "@me", "id": "s", "positions": true})).await;
    assert_eq!(ack, json!({"type": "ack", "id": "s", "epoch": ack["epoch"], "seq": ack["seq"]}));
    assert!(ack["seq"].is_number(), "{ack}");
    let mut after = rows(&stack).await;
    assert_eq!(after[1].remove("positions"), Some(AttributeValue::Bool(true)));
    assert_eq!(after, before, "the row is as it was otherwise, its ttl included");
    assert_eq!(number(&after[1], "ttl"), number(&stack.rows("connections").await[0], "ttl"));
    let set =
        |rows: &[Row]| rows.iter().filter_map(|row| row["topics"].as_ss().ok().cloned()).flatten().collect::<Vec<_>>();
    let mut listed = set(&stack.rows("connections").await);
    listed.sort_unstable();
    assert_eq!(listed, ["@1", "@2"]);
    // A plain subscribe does not take the positions away.
    two.ask(json!({"type": "subscribe", "topic": "@me", "id": "s"})).await;
    assert!(positions(&rows(&stack).await[1]));
    two.close().await;
    stack.settled("topics", 1).await;
}

#[tokio::test]
async fn a_client_that_was_away_gets_its_direct_messages() {
    let stack = Stack::with(&["--env", INBOX]).await;
    let epoch = publish(&stack, "room.7", 3).await;
    copy(&stack, "room.7", "@2").await;
    let mut two = stack.connect("?userId=2").await;
    let at = |seq: usize| json!({"epoch": epoch, "seq": seq});
    for is_list in [false, true] {
        let frame = match is_list {
            false => json!({"type": "subscribe", "id": "s", "topic": "@me", "after": at(1)}),
            true => subscribe(json!([{"topic": "@me", "after": at(1)}])),
        };
        let history = two.ask(frame).await;
        assert_eq!((&history["topic"], &history["epoch"], &history["id"]), (&json!("@me"), &epoch, &json!("s")));
        let message = &history["messages"][0];
        assert_eq!(*message, json!({"seq": 2, "data": 2, "senderId": "1", "at": message["at"]}));
        assert_eq!(history["messages"].as_array().unwrap().len(), 2);
        let ack = two.next().await;
        let entry = json!({"topic": "@me", "epoch": epoch, "seq": 3, "recovered": true});
        let expected = match is_list {
            false => json!({"type": "ack", "id": "s", "epoch": epoch, "seq": 3, "recovered": true}),
            true => json!({"type": "ack", "id": "s", "topics": [entry]}),
        };
        assert_eq!(ack, expected);
    }
    let page = two.ask(json!({"type": "history", "topic": "@me", "limit": 1, "id": "h"})).await;
    assert_eq!((&page["topic"], &page["messages"][0]["data"], &page["more"]), (&json!("@me"), &json!(3), &json!(true)));
    let pong = two.ask(json!({"type": "ping", "positions": {"@me": at(2), "room.7": at(3)}})).await;
    assert_eq!(pong, json!({"type": "pong", "behind": {"@me": at(3)}}));
    assert_eq!(two.ask(json!({"type": "ping", "positions": {"@me": at(3)}})).await, json!({"type": "pong"}));
    // Another user's address stays out of reach.
    let mut three = stack.connect("?userId=3").await;
    for frame in [
        json!({"type": "history", "topic": "@2", "id": "x"}),
        json!({"type": "subscribe", "topic": "@2", "last": 1, "id": "x"}),
        json!({"type": "subscribe", "topics": [{"topic": "@2", "last": 1}], "id": "x"}),
        json!({"type": "ping", "positions": {"@2": at(1)}, "id": "x"}),
        json!({"type": "message", "topic": "@me", "message": 1, "id": "x"}),
    ] {
        let error = three.ask(frame).await;
        assert_eq!((&error["code"], &error["id"]), (&json!("forbidden_topic"), &json!("x")), "{error}");
    }
    let page = three.ask(json!({"type": "history", "topic": "@me", "id": "h"})).await;
    assert_eq!(page["messages"], json!([]));
}

#[tokio::test]
async fn a_client_cannot_make_itself_deaf_to_direct_messages() {
    let rules = r#"TOPIC_RULES=[{"topic":"*","history":{"hours":24}}]"#;
    let (proxy, stack) = Proxy::in_front(&["--env", rules], |_| None).await;
    let mut one = stack.connect("?userId=1").await;
    proxy.take();
    for (frame, names) in [
        (json!({"type": "unsubscribe", "topic": "@me"}), "a connection always hears its direct messages"),
        (json!({"type": "stop", "topic": "@me"}), "a connection always hears its direct messages"),
        (json!({"type": "subscribe", "topic": "@me", "ttl": 9_999_999_999_u64}), "`ttl` must be absent with `@me`"),
        (
            json!({"type": "subscribe", "topics": [{"topic": "@me", "ttl": 9_999_999_999_u64}]}),
            "in `topics[0]`, the field `ttl` must be absent with `@me`",
        ),
    ] {
        let error = one.ask(frame).await;
        assert_eq!(error["code"], "invalid_field");
        assert!(error["message"].as_str().unwrap().contains(names), "{error}");
        assert_eq!(proxy.take(), ["POST"]);
    }
    // Without a rule for addresses there is no history of it.
    let error = one.ask(json!({"type": "subscribe", "topic": "@me", "last": 1, "id": "s"})).await;
    assert_eq!(error["message"], "the topic `@me` keeps no history");
}

#[tokio::test]
async fn a_connection_without_a_user_has_no_address() {
    let stack = Stack::with(&["--env", INBOX]).await;
    let mut nobody = stack.connect("").await;
    for frame in [
        json!({"type": "subscribe", "topic": "@me", "id": "x"}),
        json!({"type": "subscribe", "topic": "@me", "last": 1, "id": "x"}),
        json!({"type": "history", "topic": "@me", "id": "x"}),
        json!({"type": "ping", "positions": {"@me": {"epoch": "k3f9xq2a", "seq": 1}}, "id": "x"}),
    ] {
        let error = nobody.ask(frame).await;
        assert_eq!((&error["code"], &error["id"]), (&json!("unidentified"), &json!("x")), "{error}");
        assert!(error["message"].as_str().unwrap().contains("no user"), "{error}");
    }
    assert!(rows(&stack).await.is_empty());
}

/// A backend needs no connection: it queries the table.
#[tokio::test]
async fn the_command_behind_make_history_prints_what_a_topic_keeps() {
    let stack = Stack::start().await;
    let epoch = publish(&stack, "room.7", 2).await;
    let mut nobody = stack.connect("").await;
    nobody.send_text(r#"{"type":"message","topic":"room.7","message":{"n": 1e400},"id":"x"}"#).await;
    nobody.next().await;
    let read = async |topic: &str| {
        let mut command = tokio::process::Command::new(binaries().join("examples/read-history"));
        command.args([&table_name("messages"), topic]).env("AWS_ENDPOINT_URL", format!("http://{}", stack.dynamodb));
        command.env("AWS_REGION", "us-east-1").env("AWS_ACCESS_KEY_ID", "local").env("AWS_SECRET_ACCESS_KEY", "local");
        let output = command.output().await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let mut rows = stack.all_rows("messages").await;
    rows.retain(|row| text(row, "p") == "m:room.7");
    rows.sort_by_key(|row| text(row, "s"));
    let at: Vec<_> = rows.iter().map(|row| number(row, "at")).collect();
    let expected = [
        format!(r#"{{"epoch":{epoch},"seq":1,"data":1,"senderId":"1","at":{}}}"#, at[0]),
        format!(r#"{{"epoch":{epoch},"seq":2,"data":2,"senderId":"1","at":{}}}"#, at[1]),
        format!(r#"{{"epoch":{epoch},"seq":3,"data":{{"n": 1e400}},"at":{}}}"#, at[2]),
    ];
    assert_eq!(read("room.7").await.lines().collect::<Vec<_>>(), expected);
    assert_eq!(read("room.8").await, "");
}

/// Subscribes, unsubscribes and the end of the connection meet each other in any order, and some writes are put off.
#[tokio::test]
async fn no_row_outlives_its_connection_however_they_race() {
    const CLIENTS: usize = 25;
    let stack = Stack::with(&["--fault", "unprocessed=0.05"]).await;
    let topics =
        |from: usize| (from..from + 30).map(|number| json!({"topic": format!("t{number}")})).collect::<Vec<_>>();
    let frames = [
        json!({"type": "subscribe", "topics": topics(0)}),
        json!({"type": "unsubscribe", "topic": "t15"}),
        json!({"type": "subscribe", "topic": "t15"}),
        json!({"type": "subscribe", "topics": topics(15)}),
    ];
    let clients = (0..CLIENTS).map(async |number| {
        let mut client = stack.connect(&format!("?userId={number}")).await;
        for frame in &frames {
            client.send(frame.clone()).await;
        }
        // Some leave at once, and some after a while.
        for _ in 0..number % 4 {
            client.send(json!({"type": "ping", "id": "p"})).await;
            while client.next().await["type"] != "pong" {}
        }
        client.close().await;
    });
    futures_util::future::join_all(clients).await;
    stack.logged(CLIENTS, &["disconnect |", "\"served\""]).await;
    let pings: usize = (0..CLIENTS).map(|number| number % 4).sum();
    stack.logged(CLIENTS * frames.len() + pings, &["default |", "\"served\""]).await;
    assert_eq!(names(&rows(&stack).await), Vec::<String>::new());
}

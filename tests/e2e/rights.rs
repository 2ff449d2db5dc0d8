//! Rights: who may subscribe, publish and write to users, where a rule says that.

use aws_sdk_dynamodb::types::AttributeValue;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use switchboard_tests::client::Client;
use switchboard_tests::proxy::Proxy;
use switchboard_tests::stack::{Stack, matching, table_name};

/// The public half of the key that signs the tokens of these tests. Its private half is 32 zeros, so no deployment may use it.
pub const KEYS: &str = r#"TOKEN_KEYS={"keys":[{"kty":"OKP","crv":"Ed25519","alg":"EdDSA",
    "x":"O2onvM62pC1io6jQKm8Nc2UyFXcd4kOmOsBIoYtZ2ik"}]}"#;

/// Rules of every kind.
pub const RULES: &str = r#"TOPIC_RULES=[
    {"topic": "room.*", "history": {"hours": 24}, "subscribe": "granted", "publish": "granted"},
    {"topic": "hall.*", "subscribe": "granted", "publish": "granted"},
    {"topic": "default/*", "subscribe": "granted"},
    {"topic": "members", "subscribe": "identified", "publish": "identified"},
    {"topic": "alerts", "publish": "backend"},
    {"topic": "short", "maxBytes": 8},
    {"topic": "@robot", "publish": "backend"},
    {"topic": "@boss", "publish": "granted", "maxBytes": 8}
]"#;

/// A token that expires in so many seconds, and grants these topics.
pub fn token(user: &str, seconds: i64, topics: &Value) -> String {
    let now_s = i64::try_from(jsonwebtoken::get_current_timestamp()).unwrap();
    let claims = json!({"sub": user, "exp": now_s + seconds, "topics": topics});
    // PKCS #8 of a key of Ed25519 (RFC 8410, section 7), up to its 32 bytes.
    let key = [&b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20"[..], &[0; 32]].concat();
    jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), &claims, &EncodingKey::from_ed_der(&key)).unwrap()
}

/// A stack that checks tokens, with these rules.
pub async fn verified(rules: &str) -> Stack {
    // Some tests send frames until something has happened.
    let no_limit = ["--env", "MAX_FRAMES_PER_SECOND=0"];
    Stack::with(&[&["--env", KEYS, "--env", "IDENTITY_MODE=verified", "--env", rules][..], &no_limit].concat()).await
}

/// Connects with a token that grants these topics.
pub async fn connect(stack: &Stack, user: &str, topics: &Value) -> Client {
    stack.connect(&format!("?token={}", token(user, 600, topics))).await
}

/// The code of the answer to a frame, and its message; for an ack, its type.
async fn answer(client: &mut Client, mut frame: Value) -> (String, String) {
    frame["id"] = json!("a");
    let mut answer = client.ask(frame).await;
    while answer["type"] == "data" || answer["type"] == "history" || answer.get("body").is_some() {
        answer = client.next().await;
    }
    let text = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
    assert_eq!(text("id"), "a", "{answer}");
    (if text("type") == "error" { text("code") } else { text("type") }, text("message"))
}

fn subscribe(topic: &str) -> Value {
    json!({"type": "subscribe", "topic": topic})
}

fn publish(topic: &str) -> Value {
    json!({"type": "message", "topic": topic, "message": "x"})
}

fn write_to(user: &str) -> Value {
    json!({"action": "sendMessage", "destinationUserId": user, "body": "x"})
}

#[tokio::test]
async fn a_rule_lets_in_whom_it_names_and_says_what_is_missing() {
    let stack = verified(RULES).await;
    let topics = json!({"subscribe": ["room.*", "hall.1", "default/7"], "publish": ["room.7", "@boss"]});
    let mut alice = connect(&stack, "alice", &topics).await;
    let mut bob = connect(&stack, "bob", &json!(null)).await;
    let _boss = connect(&stack, "boss", &json!(null)).await;
    let _robot = connect(&stack, "robot", &json!(null)).await;
    let position = json!({"epoch": "k3f9xq2a", "seq": 1});
    let granted =
        |wanted: &str, name: &str| format!("this connection may not {wanted}: none of its grants contains `{name}`");
    let to_boss = granted("write to the user `boss`", "@boss");
    let no_pattern =
        "the name `default/*` is a pattern, because rules reserve `*`: the `*` must be its last segment, behind \
                      at most 8 segments that are not empty and have none"
            .to_owned();
    let no_client = "no client may publish on the topic `alerts`: a rule leaves that to backends".to_owned();
    for (frame, of_alice, of_bob) in [
        (subscribe("room.7"), None, Some(granted("subscribe to the topic `room.7`", "room.7"))),
        (subscribe("hall.1"), None, Some(granted("subscribe to the topic `hall.1`", "hall.1"))),
        (
            subscribe("hall.2"),
            Some(granted("subscribe to the topic `hall.2`", "hall.2")),
            Some(granted("subscribe to the topic `hall.2`", "hall.2")),
        ),
        (subscribe("default/*"), Some(no_pattern.clone()), Some(no_pattern)),
        (subscribe("members"), None, None),
        (subscribe("alerts"), None, None),
        (subscribe("@me"), None, None),
        (publish("room.7"), None, Some(granted("publish on the topic `room.7`", "room.7"))),
        (
            publish("room.8"),
            Some(granted("publish on the topic `room.8`", "room.8")),
            Some(granted("publish on the topic `room.8`", "room.8")),
        ),
        (publish("members"), None, None),
        (publish("alerts"), Some(no_client.clone()), Some(no_client)),
        (publish("anything"), None, None),
        (write_to("boss"), None, Some(to_boss)),
        (
            write_to("robot"),
            Some("no client may write to the user `robot`: a rule leaves that to backends".to_owned()),
            Some("no client may write to the user `robot`: a rule leaves that to backends".to_owned()),
        ),
        (write_to("bob"), None, None),
        (
            json!({"type": "ping", "positions": {"room.7": position}}),
            None,
            Some(granted("subscribe to the topic `room.7`", "room.7")),
        ),
    ] {
        for (client, expected) in [(&mut alice, of_alice), (&mut bob, of_bob)] {
            let (code, message) = answer(client, frame.clone()).await;
            assert_eq!(code == "forbidden_topic", expected.is_some(), "{frame}: {code} {message}");
            assert_eq!(message, expected.unwrap_or_default(), "{frame}");
        }
    }
    // A query of history that is served is answered by a frame of history.
    let history = json!({"type": "history", "topic": "room.7", "id": "h"});
    assert_eq!(bob.ask(history.clone()).await["code"], "forbidden_topic");
    alice.hears_history(history).await;

    // Reserved names are forbidden to everybody, and the sentence is another one.
    let (code, message) = answer(&mut alice, subscribe("@boss")).await;
    assert_eq!((code.as_str(), message.starts_with("the topic `@boss` is reserved")), ("forbidden_topic", true));
    let names = stack.rows("topics").await.iter().map(|row| row["topic"].as_s().unwrap().clone()).collect::<Vec<_>>();
    assert!(!names.iter().any(|name| ["hall.2", "default/*"].contains(&name.as_str())), "{names:?}");
}

/// Reads over data frames to the frame of history.
trait Hears {
    async fn hears_history(&mut self, frame: Value);
}

impl Hears for Client {
    async fn hears_history(&mut self, frame: Value) {
        self.send(frame).await;
        while self.next().await["type"] != "history" {}
    }
}

#[tokio::test]
async fn in_a_list_a_missing_right_concerns_its_own_entry_alone() {
    let stack = verified(RULES).await;
    let mut one = connect(&stack, "1", &json!({"subscribe": ["room.7", "hall.1"], "publish": ["hall.*"]})).await;
    let topics = json!([{"topic": "hall.2"}, {"topic": "room.7", "last": 1}, {"topic": "hall.1"}, {"topic": "news"}]);
    let ack = one.ask(json!({"type": "subscribe", "id": "s", "topics": topics})).await;
    assert_eq!(ack["type"], "ack");
    let refused = &ack["topics"][0];
    assert_eq!((&refused["code"], &refused["temporary"]), (&json!("forbidden_topic"), &json!(false)));
    assert_eq!(ack["topics"][1]["topic"], "room.7");
    assert_eq!(ack["topics"].as_array().unwrap()[2..], [json!({"topic": "hall.1"}), json!({"topic": "news"})]);
    assert!(ack["topics"].as_array().unwrap()[1..].iter().all(|entry| entry.get("code").is_none()), "{ack}");
    for topic in ["hall.2", "hall.1"] {
        one.send(json!({"type": "message", "topic": topic, "message": topic})).await;
    }
    assert_eq!(one.next().await["payload"]["data"], "hall.1");
}

#[tokio::test]
async fn in_open_mode_there_are_users_and_no_grants() {
    let stack = Stack::with(&["--env", RULES]).await;
    let (mut one, mut nobody) = (stack.connect("?userId=1").await, stack.connect("").await);
    assert_eq!(answer(&mut one, subscribe("members")).await.0, "ack");
    assert_eq!(answer(&mut one, publish("members")).await.0, "ack");
    for frame in [subscribe("members"), publish("members")] {
        let (code, message) = answer(&mut nobody, frame).await;
        assert_eq!(code, "forbidden_topic");
        assert!(message.ends_with("it has no user"), "{message}");
    }
    for frame in [subscribe("room.7"), publish("hall.1"), write_to("boss")] {
        assert_eq!(answer(&mut one, frame).await.0, "forbidden_topic");
    }
    for frame in [subscribe("news"), publish("news")] {
        assert_eq!(answer(&mut nobody, frame).await.0, "ack");
    }
}

#[tokio::test]
async fn a_backend_publishes_where_no_client_may() {
    let stack = verified(RULES).await;
    let mut robot = connect(&stack, "robot", &json!(null)).await;
    answer(&mut robot, subscribe("alerts")).await;
    let string = |text: &str| AttributeValue::S(text.to_owned());
    for (topic, payload) in [("alerts", "data"), ("@robot", "body")] {
        let put = stack.dynamodb().await.put_item().table_name(table_name("events"));
        let put = put.item("topic", string(topic)).item("id", string("1")).item("senderId", string("backend"));
        put.item(payload, string("fire")).send().await.unwrap();
    }
    let mut frames = [robot.next().await, robot.next().await];
    frames.sort_by_key(|frame| frame["body"].is_string());
    assert_eq!(frames[0], json!({"id": "a", "payload": {"data": "fire"}, "type": "data"}));
    assert_eq!(frames[1], json!({"senderId": "backend", "body": "fire"}));
}

#[tokio::test]
async fn a_message_is_as_small_as_the_rule_of_its_topic_wants() {
    let stack = verified(RULES).await;
    let mut one = connect(&stack, "1", &json!({"publish": ["@boss"]})).await;
    let _boss = connect(&stack, "boss", &json!(null)).await;
    let problem = "at most 8 bytes of JSON, because a rule says so";
    for (frame, problem) in [
        (json!({"type": "message", "topic": "short", "message": "123456"}), None),
        (
            json!({"type": "message", "topic": "short", "message": "1234567"}),
            Some(format!("`message` must be {problem}")),
        ),
        (
            json!({"type": "message", "topic": "short", "messages": ["1", "1234567"]}),
            Some(format!("`messages` must be {problem}")),
        ),
        (json!({"type": "message", "topic": "long", "message": "1234567"}), None),
        (json!({"action": "sendMessage", "destinationUserId": "boss", "body": "123456"}), None),
        (
            json!({"action": "sendMessage", "destinationUserId": "boss", "body": "1234567"}),
            Some(format!("`body` must be {problem}")),
        ),
    ] {
        let (code, message) = answer(&mut one, frame.clone()).await;
        let expected = problem.map_or_else(String::new, |problem| format!("the field {problem}"));
        assert_eq!((code == "invalid_field", message), (!expected.is_empty(), expected), "{frame}");
    }
}

#[tokio::test]
async fn wrong_grants_refuse_the_handshake_and_the_log_has_the_problem_and_no_token() {
    let stack = verified(RULES).await;
    for (topics, problem) in [
        (json!(["room.*"]), "`topics` must be an object"),
        (json!({"subscribe": "room.*"}), "`topics.subscribe` must be a list"),
        (json!({"subscribe": ["CANARY*x"]}), "`topics.subscribe[0]` may have a `*` only at its end"),
    ] {
        assert_eq!(stack.refused(&format!("?token={}", token("1", 600, &topics))).await, 401, "{topics}");
        stack.logged(1, &["connect |", "the handshake is refused", "the token has wrong grants: ", problem]).await;
    }
    assert_eq!(stack.rows("connections").await, []);
    let log = stack.whole_log().await;
    assert_eq!(matching(&log, &["eyJ"]), Vec::<String>::new());
    assert_eq!(matching(&log, &["CANARY"]), Vec::<String>::new());
}

#[tokio::test]
async fn wrong_rules_end_each_function_at_its_start_with_their_numbers() {
    let rules = r#"TOPIC_RULES=[{"topic":"a*"},{"topic":"@*","subscribe":"granted"},{"topic":"b","publish":"nobody"},{"topic":"ab"}]"#;
    let stack = Stack::with(&["--env", rules]).await;
    assert_eq!(stack.refused("").await, 502);
    let problems = ["rule 2: `subscribe` must be absent", "rule 3: `publish` must be", "rule 4: it never applies"];
    stack.logged(1, &["connect |", problems[0], problems[1], problems[2]]).await;
}

#[tokio::test]
async fn rights_cost_one_read_where_a_rule_asks_for_them_and_nothing_elsewhere() {
    let rules = r#"TOPIC_RULES=[{"topic":"plain"},{"topic":"members","subscribe":"identified","publish":"identified"},
        {"topic":"room.*","subscribe":"granted","publish":"granted"},
        {"topic":"log.*","history":{"hours":1},"subscribe":"granted","publish":"granted"},{"topic":"alerts","publish":"backend"}]"#;
    let arguments = ["--env", KEYS, "--env", "IDENTITY_MODE=verified", "--env", rules];
    let (proxy, stack) = Proxy::in_front(&arguments, |_| None).await;
    let topics = json!({"subscribe": ["room.*", "log.*"], "publish": ["*"]});
    let mut one = connect(&stack, "1", &topics).await;
    let mut calls = proxy.take();
    calls.sort();
    assert_eq!(calls, ["BatchWriteItem", "GetItem", "Query"]);
    let subscribed = ["UpdateItem", "BatchWriteItem", "GetItem", "POST"];
    let kept = ["GetItem", "UpdateItem", "PutItem", "PutItem", "Query", "POST"];
    let mut frames = 0;
    for (frame, expected) in [
        (subscribe("plain"), subscribed.to_vec()),
        (subscribe("members"), [&["GetItem"], &subscribed[..]].concat()),
        (subscribe("room.1"), [&["GetItem"], &subscribed[..]].concat()),
        (publish("quiet"), vec!["Query", "POST"]),
        (publish("room.2"), vec!["GetItem", "Query", "POST"]),
        (publish("log.1"), kept.to_vec()),
        (publish("alerts"), vec!["POST"]),
    ] {
        answer(&mut one, frame.clone()).await;
        frames += 1;
        stack.logged(frames, &["default |", "\"served\""]).await;
        let calls = proxy.take_calls();
        let operations: Vec<_> = calls.iter().map(|call| call.operation.as_str()).collect();
        assert_eq!(operations, expected, "{frame}");
        if operations[0] == "GetItem" {
            // Grants change, and a user never does.
            let is_latest = frame["topic"] != "members";
            assert_eq!(calls[0].body["ConsistentRead"], is_latest, "{frame}");
        }
    }
}

/// A frame cannot say who sent it. It may try to in every field that we or AWS have ever used for that.
#[tokio::test]
async fn the_receiver_sees_the_true_sender_of_forged_frames() {
    let rules = r#"TOPIC_RULES=[{"topic":"room","history":{"hours":1}}]"#;
    let stack = Stack::with(&["--env", rules, "--env", "MAX_FRAMES_PER_SECOND=0"]).await;
    let mut mallory = stack.connect("?userId=mallory").await;
    let mut alice = stack.connect("?userId=alice").await;
    alice.ask(json!({"type": "subscribe", "topic": "room", "positions": true, "id": "s"})).await;
    let names = ["senderId", "userId", "sub", "principalId", "connectionId", "requestContext", "authorizer", "sender"];
    let fake = |name: &str| match name {
        "requestContext" => {
            json!({"connectionId": "x=", "authorizer": {"principalId": "alice"}, "identity": {"user": "alice"}})
        }
        "authorizer" => json!({"principalId": "alice"}),
        _ => json!("alice"),
    };
    for round in 0..100_u32 {
        let mut frame = match round % 2 {
            0 => json!({"action": "sendMessage", "destinationUserId": "alice", "body": round}),
            _ => json!({"type": "message", "topic": "room", "message": round}),
        };
        for name in names.into_iter().filter(|_| fastrand::bool()) {
            frame[name] = fake(name);
        }
        mallory.send(frame).await;
        let heard = alice.next().await;
        assert_eq!(heard["senderId"], "mallory", "{heard}");
        assert_eq!(if round % 2 == 0 { &heard["body"] } else { &heard["payload"]["data"] }, &json!(round));
    }
}

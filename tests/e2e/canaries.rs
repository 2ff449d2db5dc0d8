//! What nobody may read in a log. Each input has a text of its own in it, and the whole output of functions and stack is
//! searched for all of them. Names of users and topics, and ids of events, may be in a log, but not in a metric. The level TRACE
//! shows whole events, so it proves that each text went in.

use std::cell::RefCell;

use aws_sdk_dynamodb::types::AttributeValue;
use serde_json::{Value, json};
use switchboard_tests::client::Client;
use switchboard_tests::stack::{Stack, matching, table_name};
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::rights::{KEYS, token};

/// The texts that went in.
#[derive(Default)]
struct Canaries(RefCell<Vec<String>>);

impl Canaries {
    /// A text that nobody has used yet.
    fn text(&self, name: &str) -> String {
        let canary = format!("CANARY-{name}-{}", self.0.borrow().len());
        self.note(&canary);
        canary
    }

    fn note(&self, text: &str) {
        self.0.borrow_mut().push(text.to_owned());
    }

    /// A token, whose claims and signature are canaries as well.
    fn token(&self, seconds: i64, topics: &Value) -> String {
        let token = token("NAME-alice", seconds, topics);
        token.split('.').skip(1).for_each(|part| self.note(part));
        token
    }

    /// The headers of a handshake that has no token in them.
    fn headers(&self) -> Vec<(&'static str, String)> {
        let headers = [("user-agent", ""), ("cookie", "session="), ("x-anything", ""), ("referer", "https://")];
        headers.into_iter().map(|(name, start)| (name, format!("{start}{}", self.text(name)))).collect()
    }
}

/// Connects with further headers, or returns the status.
async fn handshake(stack: &Stack, query: &str, headers: &[(&'static str, String)]) -> Result<Client, u16> {
    let mut request = format!("ws://{}/dev{query}", stack.gateway).into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    match tokio_tungstenite::connect_async(request).await {
        Ok((socket, _)) => Ok(Client { socket }),
        Err(Error::Http(response)) => Err(response.status().as_u16()),
        Err(error) => panic!("{query}: {error}"),
    }
}

/// The handshakes that are refused, each with canaries where it has values.
async fn refused_handshakes(stack: &Stack, canaries: &Canaries) {
    let headers = || canaries.headers();
    let with = |name, value: String| [headers(), vec![(name, value)]].concat();
    let secret = |name: &str| canaries.text(name);
    let good = canaries.token(600, &json!(null));
    let expired = canaries.token(-3600, &json!(null));
    let (signed, _) = good.rsplit_once('.').unwrap();
    let wrong_grants = canaries.token(600, &json!({"subscribe": ["a*b"]}));
    for (query, headers, status) in [
        (format!("?token={expired}&more={}", secret("query")), headers(), 401),
        (format!("?token={signed}.{}", secret("signature")), headers(), 401),
        (format!("?token={}.x.y", secret("no-token")), headers(), 401),
        (format!("?token={wrong_grants}"), headers(), 401),
        (format!("?token={}&token={}", secret("twice"), secret("twice")), headers(), 400),
        (format!("?userId=%00{}", secret("no-user")), headers(), 400),
        (format!("?userId={}&userId={}", secret("user"), secret("user")), headers(), 400),
        (String::new(), with("authorization", format!("Bearer {expired}")), 401),
        (String::new(), with("authorization", format!("Bearer {}", secret("bearer"))), 401),
        (format!("?token={good}"), with("authorization", format!("Bearer {}", secret("both"))), 400),
        (String::new(), with("sec-websocket-protocol", format!("bearer, {}", secret("subprotocol"))), 401),
    ] {
        assert_eq!(handshake(stack, &query, &headers).await.map(drop), Err(status), "{query} {headers:?}");
    }
}

/// Every kind of frame, right and wrong, with canaries in its values and in fields that do not exist.
fn frames(canaries: &Canaries) -> Vec<String> {
    let secret = |name: &str| canaries.text(name);
    let id = || canaries.text("id");
    let unknown = || json!({ secret("field"): secret("value") });
    let other = canaries.token(600, &json!({"subscribe": ["*"]})).replace('.', "..");
    let mut frames: Vec<_> = [
        json!({"type": "subscribe", "topic": "NAME-topic", "id": id(), "more": unknown()}),
        json!({"type": "subscribe", "topics": [{"topic": "room.NAME-kept", "last": 5}, {"topic": "news"}], "id": id()}),
        json!({"type": "subscribe", "topic": "room.NAME-kept", "after": {"epoch": secret("epoch"), "seq": 1}, "id": id()}),
        json!({"type": "subscribe", "topic": "NAME-topic", "ttl": secret("ttl"), "id": id()}),
        json!({"type": "message", "topic": "NAME-topic", "message": {secret("key"): secret("message")}, "id": id()}),
        json!({"type": "message", "topic": "NAME-topic", "messages": [secret("message"), secret("message")], "id": id()}),
        json!({"type": "message", "topic": "room.NAME-kept", "message": secret("kept"), "id": id(), "again": true}),
        json!({"type": "message", "topic": "NAME-topic", "id": id(), "text": secret("no-message")}),
        json!({"type": "message", "topic": "hall", "message": secret("forbidden"), "id": id()}),
        json!({"type": "history", "topic": "room.NAME-kept", "before": {"epoch": secret("epoch"), "seq": 1}, "id": id()}),
        json!({"type": "ping", "positions": {"room.NAME-kept": {"epoch": secret("epoch"), "seq": 0}}, "id": id()}),
        json!({"type": secret("type"), "id": id()}),
        json!({"action": "sendMessage", "destinationUserId": "NAME-alice", "body": secret("body"), "id": id()}),
        json!({"action": "sendMessage", "destinationUserId": "NAME-nobody", "body": secret("body"), "id": id()}),
        json!({"action": "sendMessage", "destinationUserId": 7, "body": secret("body"), "id": id()}),
        json!({"action": "auth", "token": canaries.token(600, &json!({"subscribe": ["hall"]})), "id": id()}),
        json!({"action": "auth", "token": canaries.token(-3600, &json!(null)), "id": id()}),
        json!({"action": "auth", "token": other, "id": id()}),
        json!({"action": "auth", "token": [secret("token")], "id": id()}),
        json!({"type": "unsubscribe", "topic": "NAME-topic", "id": id()}),
    ]
    .iter()
    .map(Value::to_string)
    .collect();
    frames.push(format!(r#"{{"type":"message","topic":"NAME-topic","message":"{}"#, secret("no-json")));
    frames
}

/// The events of backends, right and wrong.
async fn put_events(stack: &Stack, canaries: &Canaries) {
    let string = |text: &str| AttributeValue::S(text.to_owned());
    let secret = |name: &str| string(&canaries.text(name));
    for (topic, id, attributes) in [
        ("NAME-topic", "1", vec![("data", secret("data")), ("more", secret("attribute"))]),
        ("room.NAME-kept", "2", vec![("json", string(&json!(canaries.text("json")).to_string()))]),
        ("room.NAME-kept", "3", vec![("json", secret("no-json"))]),
        ("NAME-topic", "4", vec![("senderId", string("NAME-bank")), ("more", secret("attribute"))]),
        ("NAME-topic", "5", vec![("message", secret("attribute"))]),
        ("@NAME-alice", "6", vec![("senderId", string("NAME-bank")), ("body", secret("body"))]),
        ("@NAME-alice", "7", vec![("senderId", AttributeValue::N("1".to_owned())), ("body", secret("body"))]),
        ("@NAME-nobody", "8", vec![("disconnect", AttributeValue::Bool(true)), ("reason", secret("reason"))]),
    ] {
        let mut put = stack.dynamodb().await.put_item().table_name(table_name("events"));
        put = put.item("topic", string(topic)).item("id", string(id));
        for (name, value) in attributes {
            put = put.item(name, value);
        }
        put.send().await.unwrap();
    }
}

const RULES: &str = r#"TOPIC_RULES=[{"topic":"room.*","history":{"hours":1}},{"topic":"hall","publish":"granted"}]"#;

/// Puts canaries into every input, and returns them with the whole output.
async fn run(arguments: &[&str]) -> (Vec<String>, Vec<String>) {
    let mode = ["--env", KEYS, "--env", "IDENTITY_MODE=open-with-tokens", "--env", RULES];
    let stack = Stack::with(&[&mode[..], arguments].concat()).await;
    let canaries = Canaries::default();
    refused_handshakes(&stack, &canaries).await;
    let good = canaries.token(600, &json!({"subscribe": ["*"]}));
    let headers = [canaries.headers(), vec![("authorization", format!("Basic {}", canaries.text("basic")))]].concat();
    let query = format!("?token={good}&more={}", canaries.text("query"));
    let mut alice = handshake(&stack, &query, &headers).await.unwrap();
    let _anonymous = handshake(&stack, &format!("?{}=1", canaries.text("parameter")), &headers).await.unwrap();
    let mut bystander = stack.connect("?userId=bystander").await;
    for frame in frames(&canaries) {
        alice.send_text(&frame).await;
    }
    put_events(&stack, &canaries).await;
    // Each handshake and each frame ends with such a line, whatever became of it.
    for (function, count) in [("connect |", 11 + 3 + 4), ("sendMessage |", 3), ("default |", 14)] {
        stack.logged(count, &[function, "duration_ms"]).await;
    }
    stack.logged(4, &["publish |", "was given up"]).await;
    stack.logged(1, &["publish |", "connections were ended"]).await;
    if !arguments.iter().any(|argument| argument.starts_with("PUBLISH_ENDPOINT")) {
        bystander.hears_nothing().await;
    }
    (canaries.0.take(), stack.whole_log().await)
}

fn assert_clean(canaries: &[String], log: &[String]) {
    assert!(canaries.len() > 100, "{}", canaries.len());
    for secret in canaries.iter().map(String::as_str).chain(["CANARY", "eyJ"]) {
        assert_eq!(matching(log, &[secret]), Vec::<String>::new(), "{secret}");
    }
    assert_eq!(matching(log, &["_aws", "NAME-"]), Vec::<String>::new());
    assert_ne!(matching(log, &["_aws"]), Vec::<String>::new());
    assert_ne!(matching(log, &["NAME-"]), Vec::<String>::new());
}

#[tokio::test]
async fn no_input_shows_in_any_output_at_the_level_debug() {
    let (canaries, log) = run(&["--env", "RUST_LOG=debug"]).await;
    assert_clean(&canaries, &log);
}

/// Nobody listens where the functions post to, and the SDK's own texts would repeat the frames.
#[tokio::test]
async fn no_input_shows_when_every_post_fails() {
    let (canaries, log) = run(&["--env", "RUST_LOG=debug", "--env", "PUBLISH_ENDPOINT=http://127.0.0.1:9/dev"]).await;
    assert_clean(&canaries, &log);
}

#[tokio::test]
async fn at_the_level_trace_every_input_shows_and_the_log_warns_of_it() {
    let (canaries, log) = run(&["--env", "AWS_LAMBDA_LOG_LEVEL=TRACE"]).await;
    for canary in &canaries {
        assert_ne!(matching(&log, &[canary]), Vec::<String>::new(), "{canary} did not go in");
    }
    for function in ["connect |", "default |", "sendMessage |", "publish |"] {
        assert_ne!(matching(&log, &[function, "WARN", "the log level is TRACE"]), Vec::<String>::new(), "{function}");
    }
}

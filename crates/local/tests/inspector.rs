//! The inspector of a running stack: who may use it, what it tells, and what it does. The tests run the real
//! `switchboard-local` and functions in Rust and Bash. Browsers use its page in the tests of the JavaScript client.

#![expect(clippy::unwrap_used, reason = "a failed unwrap in a helper fails its test, too")]

mod stack;

use std::path::Path;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use stack::{HELLO, PATIENCE, Stack, as_an_sdk, bash, send};

const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// Starts a stack with a web port. Returns it and the address of that port.
async fn start(folder: &Path, functions: &str) -> (Stack, String) {
    let stack = Stack::serve(folder, &["--web-port", "0"], functions).await;
    let lines = stack.lines.borrow().clone();
    let port = lines.iter().find_map(|line| line.strip_prefix("  http://localhost:")?.strip_suffix("/inspect"));
    let address = format!("127.0.0.1:{}", port.unwrap());
    (stack, address)
}

/// The feed of the inspector, as a browser reads it.
struct Feed {
    reader: BufReader<TcpStream>,
    /// Facts that were read and not asked for yet.
    facts: Vec<Value>,
}

impl Feed {
    async fn open(address: &str) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("GET /inspect/feed HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes()).await.unwrap();
        let mut feed = Self { reader: BufReader::new(stream), facts: Vec::new() };
        feed.event("picture").await;
        feed
    }

    /// Returns the data of the next event of this type.
    async fn event(&mut self, name: &str) -> Value {
        let name = format!("event: {name}");
        let find = async {
            let mut is_named = false;
            loop {
                let mut line = String::new();
                assert_ne!(self.reader.read_line(&mut line).await.unwrap(), 0, "the feed has ended");
                is_named |= line.trim_end() == name;
                if let Some(data) = line.strip_prefix("data: ").filter(|_| is_named) {
                    return serde_json::from_str(data).unwrap();
                }
            }
        };
        tokio::time::timeout(PATIENCE, find).await.unwrap()
    }

    /// Waits for a fact of this kind.
    async fn fact(&mut self, kind: &str) -> Value {
        loop {
            if let Some(index) = self.facts.iter().position(|fact| fact["kind"] == kind) {
                return self.facts.remove(index);
            }
            let page = self.event("facts").await;
            assert_eq!(page["missed"], 0);
            self.facts.extend(page["facts"].as_array().unwrap().iter().cloned());
        }
    }
}

/// Calls the inspector as its page does. Returns the status and the answer.
async fn call(address: &str, what: &str, body: &Value) -> (u16, Value) {
    let headers = format!(
        "Host: {address}\r\nOrigin: http://{address}\r\nSec-Fetch-Site: same-origin\r\n\
         Content-Type: application/json\r\n"
    );
    let answer = send(address, &format!("POST /inspect/{what}"), &headers, &body.to_string()).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap_or_default())
}

/// Connects a client. Returns what it hears.
async fn connect(stack: &Stack, path: &str) -> BufReader<TcpStream> {
    let mut stream = BufReader::new(TcpStream::connect(&stack.gateway).await.unwrap());
    let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n{UPGRADE}\r\n", stack.gateway);
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut line = String::new();
    stream.read_line(&mut line).await.unwrap();
    assert!(line.starts_with("HTTP/1.1 101 "), "{line}");
    while line != "\r\n" {
        line.clear();
        stream.read_line(&mut line).await.unwrap();
    }
    stream
}

#[tokio::test]
async fn the_page_needs_nothing_from_elsewhere_and_nobody_may_frame_it() {
    let folder = tempfile::tempdir().unwrap();
    let (_stack, address) = start(folder.path(), HELLO).await;
    let host = format!("Host: {address}\r\n");
    for (path, content_type) in [
        ("/inspect", "text/html"),
        ("/inspect/style.css", "text/css"),
        ("/inspect/app.js", "text/javascript"),
        ("/inspect/stories.js", "text/javascript"),
        ("/inspect/icon.svg", "image/svg+xml"),
    ] {
        let answer = send(&address, &format!("GET {path}"), &host, "").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.contains(&format!("\r\ncontent-type: {content_type}")), "{answer}");
        assert!(answer.contains("\r\ncache-control: no-store\r\n") && !answer.contains("access-control-"), "{answer}");
        let policy = answer.lines().find_map(|line| line.strip_prefix("content-security-policy: ")).unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{policy}");
        assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
        let (_, text) = answer.split_once("\r\n\r\n").unwrap();
        let text = text.replace("http://www.w3.org/2000/svg", "");
        assert!(!text.contains("http://") && !text.contains("https://") && !text.contains("innerHTML"), "{path}");
    }
    let answer = send(&address, "GET /", &host, "").await;
    assert!(answer.contains("\r\nlocation: /inspect\r\n"), "{answer}");
}

#[tokio::test]
async fn other_pages_can_neither_read_nor_act() {
    let folder = tempfile::tempdir().unwrap();
    let (stack, address) = start(folder.path(), HELLO).await;
    let json = "Content-Type: application/json\r\n";
    let event = json!({"function": "hello", "event": "{}"}).to_string();
    for (headers, status) in [
        (format!("Host: evil.example\r\n{json}"), 403),
        (format!("Host: {address}\r\nOrigin: https://evil.example\r\n{json}"), 403),
        (format!("Host: {address}\r\nOrigin: null\r\n{json}"), 403),
        // A page of another port of this machine may use the gateway. It may not use the inspector.
        (format!("Host: {address}\r\nOrigin: http://localhost:5173\r\n{json}"), 403),
        (format!("Host: {address}\r\nOrigin: http://127.0.0.1\r\n{json}"), 403),
        (format!("Host: {address}\r\nOrigin: https://{address}\r\n{json}"), 403),
        (format!("Host: {address}\r\nSec-Fetch-Site: cross-site\r\n{json}"), 403),
        (format!("Host: {address}\r\nSec-Fetch-Site: same-site\r\n{json}"), 403),
        // A form or a script of another page can send these without asking first.
        (format!("Host: {address}\r\nContent-Type: text/plain\r\n"), 415),
        (format!("Host: {address}\r\nContent-Type: application/x-www-form-urlencoded\r\n"), 415),
        (format!("Host: {address}\r\n"), 415),
    ] {
        for what in ["run", "send", "close"] {
            let answer = send(&address, &format!("POST /inspect/{what}"), &headers, &event).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{what} {headers}: {answer}");
            assert!(!answer.contains("access-control-"), "{answer}");
        }
        if status == 403 {
            let answer = send(&address, "GET /inspect/feed", &headers, "").await;
            assert!(answer.starts_with("HTTP/1.1 403 ") && !answer.contains("data:"), "{headers}: {answer}");
        }
    }
    let preflight = "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: content-type\r\n";
    for origin in ["https://evil.example", "http://localhost:5173"] {
        let headers = format!("Host: {address}\r\nOrigin: {origin}\r\n{preflight}");
        let answer = send(&address, "OPTIONS /inspect/run", &headers, "").await;
        assert!(answer.starts_with("HTTP/1.1 403 ") && !answer.contains("access-control-"), "{answer}");
    }
    // The page itself and a program may.
    assert_eq!(call(&address, "run", &json!({"function": "hello", "event": "{}"})).await.0, 202);
    let program = format!("Host: {address}\r\n{json}");
    assert!(send(&address, "POST /inspect/run", &program, &event).await.starts_with("HTTP/1.1 202 "));
    // All the others started nothing: an event that the function refuses leaves a line.
    stack.logged(&["hello | "]).await;
    let lines = stack.lines.borrow().clone();
    assert!(lines.iter().filter(|line| line.contains("(request ")).count() <= 2, "{lines:#?}");
}

#[tokio::test]
async fn the_story_of_a_connection_is_told_from_its_handshake_to_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let functions = bash(folder.path(), "echo starting", "echo \"working on <b>$id</b>\"");
    let (stack, address) = start(folder.path(), &functions).await;
    let _unseen = connect(&stack, "/dev?userId=0").await;
    let mut feed = Feed::open(&address).await;
    let mut client = connect(&stack, "/dev?userId=1&x=%3Cscript%3E").await;
    let handshake = feed.fact("handshake").await;
    assert_eq!(handshake["path"], "/dev?userId=1&x=%3Cscript%3E");
    let connection = feed.fact("connection").await["connection"].clone();
    let invocation = feed.fact("invocation").await;
    assert_eq!((&invocation["function"], &invocation["init"]), (&json!("script"), &Value::Null));
    assert!(invocation["environment"].is_u64() && invocation["process"].is_u64(), "{invocation}");
    let event: Value = serde_json::from_str(invocation["event"]["text"].as_str().unwrap()).unwrap();
    assert_eq!(event["requestContext"]["connectionId"], connection);
    let line = feed.fact("line").await;
    let request = invocation["request"].as_str().unwrap();
    assert_eq!(line["text"]["text"], format!("working on <b>{request}</b>"));
    let response = feed.fact("response").await;
    assert_eq!((&response["text"]["text"], &response["error"]), (&json!(r#"{"statusCode":200}"#), &Value::Null));
    assert_eq!(feed.fact("answer").await["status"], 101);
    for fact in [&line, &response] {
        assert_eq!((&fact["story"], &fact["invocation"]), (&handshake["story"], &invocation["invocation"]));
    }
    let picture = feed.event("picture").await;
    assert_eq!((&picture["count"], &picture["connections"][0]["id"]), (&json!(2), &connection));
    assert_eq!(picture["functions"]["script"][0]["events"], 2);

    // No route takes the frame, and the client hears that, as if it had sent the frame itself.
    let frame = json!({"connection": connection, "text": "hello"});
    assert_eq!(call(&address, "send", &frame).await.0, 202);
    assert_eq!(feed.fact("frame").await["text"], json!({"text": "hello", "bytes": 5}));
    assert_eq!(feed.fact("trouble").await["reason"], "no route takes the message");
    assert!(feed.fact("reply").await["text"]["text"].as_str().unwrap().contains("Forbidden"));
    let mut heard = vec![0; 40];
    client.read_exact(&mut heard).await.unwrap();
    assert!(String::from_utf8_lossy(&heard).contains(r#"{"message": "Forbidden""#));
    let long = json!({"connection": connection, "text": "x".repeat(128 * 1024 + 1)});
    assert_eq!(call(&address, "send", &long).await, (409, json!({"message": "A message has at most 131072 bytes."})));

    assert_eq!(call(&address, "close", &json!({"connection": connection})).await.0, 202);
    let disconnect = feed.fact("disconnect").await;
    assert_eq!((&disconnect["connection"], &disconnect["code"]), (&connection, &json!(1001)));
    for what in ["send", "close"] {
        let (status, answer) = call(&address, what, &json!({"connection": connection, "text": ""})).await;
        assert_eq!((status, answer["message"].as_str()), (409, Some("The connection is not open.")));
    }
}

#[tokio::test]
async fn a_page_that_goes_away_no_longer_watches_and_a_later_one_sees_what_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (stack, address) = start(folder.path(), HELLO).await;
    let mut first = Feed::open(&address).await;
    connect(&stack, "/dev?first").await;
    first.fact("handshake").await;
    drop(first);
    let mut second = Feed::open(&address).await;
    while second.event("picture").await["watchers"] != 1 {}
    let mut third = Feed::open(&address).await;
    assert_eq!(third.fact("handshake").await["path"], "/dev?first");
    assert_eq!(third.event("picture").await["watchers"], 2);
}

#[tokio::test]
async fn an_event_that_no_environment_takes_is_a_story_that_failed() {
    let folder = tempfile::tempdir().unwrap();
    let functions = "  full: {handler: fixture, reservedConcurrency: 0, events: [websocket: $connect]}\n";
    let (stack, address) = start(folder.path(), functions).await;
    let mut feed = Feed::open(&address).await;
    let headers = format!("Host: {}\r\n{UPGRADE}", stack.gateway);
    assert!(send(&stack.gateway, "GET /dev", &headers, "").await.starts_with("HTTP/1.1 500 "));
    assert_eq!(feed.fact("trouble").await["reason"], "throttled by Lambda");
    assert_eq!(feed.fact("answer").await["status"], 500);
    let (status, _) = call(&address, "run", &json!({"function": "full", "event": "{}"})).await;
    assert_eq!(status, 202);
    let done = feed.fact("done").await;
    assert!(done["error"].as_str().unwrap().contains("Rate Exceeded"), "{done}");
}

#[tokio::test]
async fn an_event_runs_as_it_was_pasted() {
    let folder = tempfile::tempdir().unwrap();
    let functions = bash(folder.path(), "echo starting", "echo \"$event\"");
    let (_stack, address) = start(folder.path(), &functions).await;
    let mut feed = Feed::open(&address).await;
    let text = r#"{"n": 1e400, "n": 2, "text": "<b>&\ud83d</b>"}"#;
    let (status, answer) = call(&address, "run", &json!({"function": "script", "event": text})).await;
    assert_eq!(status, 202);
    assert_eq!(feed.fact("run").await["story"], answer["story"]);
    let invocation = feed.fact("invocation").await;
    assert_eq!((&invocation["event"]["text"], &invocation["story"]), (&json!(text), &answer["story"]));
    assert!(invocation["init"].as_f64().unwrap() > 0.0, "{invocation}");
    // The init belongs to the story of the event that needed the environment.
    assert_eq!(feed.fact("line").await["text"]["text"], "starting");
    assert_eq!(feed.fact("line").await["text"]["text"], text);
    assert_eq!(feed.fact("done").await["error"], Value::Null);
    let missing = call(&address, "run", &json!({"function": "other", "event": "{}"})).await;
    assert_eq!(missing, (404, json!({"message": "There is no function other."})));
    let (status, answer) = call(&address, "run", &json!({"function": "script", "event": "{"})).await;
    assert!(status == 400 && answer["message"].as_str().unwrap().starts_with("The event is not JSON"), "{answer}");
    assert_eq!(call(&address, "run", &json!({"function": "script"})).await.0, 400);
}

#[tokio::test]
async fn dynamodb_answers_the_same_while_somebody_watches() {
    let folder = tempfile::tempdir().unwrap();
    let (stack, address) = start(folder.path(), HELLO).await;
    stack.put(json!({"id": {"S": "robin"}, "n": {"N": "1.50"}})).await;
    let headers = |operation| format!("Host: {}\r\n{}", stack.dynamodb, as_an_sdk(operation));
    let key = json!({"TableName": "birds", "Key": {"id": {"S": "robin"}}});
    let asking = json!({"TableName": "birds", "Key": {"id": {"S": "robin"}}, "ReturnConsumedCapacity": "TOTAL"});
    let wrong = json!({"TableName": "cats", "Key": {"id": {"S": "robin"}}});
    let answers = async || {
        let mut answers = Vec::new();
        for body in [&key, &asking, &wrong] {
            let answer = send(&stack.dynamodb, "POST /", &headers("GetItem"), &body.to_string()).await;
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            let body: Value = serde_json::from_str(body).unwrap();
            answers.push((head.split(' ').nth(1).unwrap().to_owned(), body));
        }
        answers
    };
    let before = answers().await;
    assert!(before[0].1["ConsumedCapacity"].is_null() && before[1].1["ConsumedCapacity"].is_object(), "{before:?}");
    let mut feed = Feed::open(&address).await;
    assert_eq!(answers().await, before);
    for (tables, status, units, error) in [
        (json!(["birds"]), 200, json!(0.5), Value::Null),
        (json!(["birds"]), 200, json!(0.5), Value::Null),
        (json!(["cats"]), 400, Value::Null, json!("ResourceNotFoundException")),
    ] {
        let call = feed.fact("call").await;
        assert_eq!((&call["tables"], &call["status"], &call["units"]), (&tables, &json!(status), &units));
        assert_eq!((&call["operation"], &call["error"]), (&json!("GetItem"), &error));
        assert!(call["invocation"].is_null() && call["ms"].as_f64().unwrap() > 0.0, "{call}");
    }
    let picture = feed.event("picture").await;
    assert_eq!(picture["items"], json!([1]));
}

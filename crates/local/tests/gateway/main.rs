//! The gateway as clients, functions and callers of `@connections` see it, over real sockets and frame by frame.
//!
//! Functions are scripted closures that record their events. The client is written by hand, because client libraries
//! hide what is tested here: fragments, broken frames, close codes, the exact handshake. A test whose expectation is
//! inferred, not documented or observed on AWS, says so.
#![expect(clippy::unwrap_used, reason = "a test's helpers fail as its assertions do")]
#![expect(unreachable_pub, reason = "in a test binary nothing is reachable, and `pub` is what its modules share")]

mod wire;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use switchboard_local::faults::{self, Faults};
use switchboard_local::gateway::knobs::{
    AbortDuringConnect, Deflate, IDLE_TIMEOUT, IdValidation, MissingStatusCode, NonUtf8Post, NullStyle,
    OnewayErrorStatus, PostToPending, Sigv4, ThrottleFrame,
};
use switchboard_local::gateway::{Api, Authorizer, Gateway, Integration, Paths, Settings};
use switchboard_local::iam::Callers;
use switchboard_local::lambda::FunctionError;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use wire::{
    A_WHILE, BINARY, CLOSE, CONTINUATION, Client, Frame, PING, PONG, RSV1, Reply, SOON, TEXT, Tcp, close_code, masked,
};

const OK: &str = r#"{"statusCode":200}"#;
const KIB: usize = 1024;

type Answer = Result<Bytes, FunctionError>;

fn error() -> Answer {
    Err(FunctionError { error_type: "Runtime.ExitError".to_owned(), error_message: "exit status 1".to_owned() })
}

/// An API whose functions answer by a script and record what they were invoked with.
struct Script {
    settings: Settings,
    faults: faults::Settings,
    two_way: HashSet<String>,
    authorizer: Option<Authorizer>,
    expression: &'static str,
    routes: HashMap<String, Arc<dyn Integration>>,
    record: mpsc::UnboundedSender<Value>,
    events: mpsc::UnboundedReceiver<Value>,
}

impl Script {
    /// The usual routes, all answering 200, and `boom`, which fails.
    fn new() -> Self {
        let (record, events) = mpsc::unbounded_channel();
        let settings = Settings::default();
        let script = Self {
            settings,
            faults: faults::Settings::default(),
            two_way: HashSet::new(),
            authorizer: None,
            expression: "$request.body.action",
            routes: HashMap::new(),
            record,
            events,
        };
        let script = script.on("$connect", OK).on("$disconnect", OK).on("$default", OK).on("sendMessage", OK);
        script.on_async("boom", |_| async { error() })
    }

    fn expression(mut self, expression: &'static str) -> Self {
        self.expression = expression;
        self
    }

    fn set(mut self, set: impl FnOnce(&mut Settings)) -> Self {
        set(&mut self.settings);
        self
    }

    fn authorizer<R>(mut self, identity_sources: &[&str], function: impl Fn(Value) -> R + Send + Sync + 'static) -> Self
    where
        R: Future<Output = Answer> + Send + 'static,
    {
        let integration = self.recorded(function);
        let identity_sources = identity_sources.iter().map(|source| (*source).to_owned()).collect();
        self.authorizer = Some(Authorizer { integration, identity_sources });
        self
    }

    fn fault(mut self, fault: &str) -> Self {
        self.faults.faults.push(fault.parse().unwrap());
        self
    }

    fn two_way(mut self, route_key: &str) -> Self {
        self.two_way.insert(route_key.to_owned());
        self
    }

    fn without(mut self, route_key: &str) -> Self {
        self.routes.remove(route_key);
        self
    }

    fn on(self, route_key: &str, answer: &'static str) -> Self {
        self.on_async(route_key, move |_| async move { Ok(Bytes::from(answer)) })
    }

    fn on_async<R>(mut self, route_key: &str, function: impl Fn(Value) -> R + Send + Sync + 'static) -> Self
    where
        R: Future<Output = Answer> + Send + 'static,
    {
        let integration = self.recorded(function);
        self.routes.insert(route_key.to_owned(), integration);
        self
    }

    fn recorded<R>(&self, function: impl Fn(Value) -> R + Send + Sync + 'static) -> Arc<dyn Integration>
    where
        R: Future<Output = Answer> + Send + 'static,
    {
        let record = self.record.clone();
        Arc::new(move |event: Bytes| {
            let event: Value = serde_json::from_slice(&event).unwrap();
            let _ = record.send(event.clone());
            function(event)
        })
    }

    async fn start(self) -> Bed {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let api = Api {
            api_id: "abcdef1234".to_owned(),
            arn: "arn:aws:execute-api:us-east-1:123456789012:abcdef1234".to_owned(),
            stage: "dev".to_owned(),
            paths: Paths { stage: Some("dev".to_owned()), ..Paths::default() },
            route_selection_expression: self.expression.to_owned(),
            routes: self.routes,
            two_way: self.two_way,
            request_models: HashMap::new(),
            credentials: Vec::new(),
            callers: Callers::default(),
            authorizer: self.authorizer,
            stage_variables: BTreeMap::new(),
            is_iam_authorized: false,
            api_keys: None,
        };
        let gateway = Gateway::new(api, self.settings, Arc::new(Faults::new(&self.faults)));
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(gateway.serve(listener, async {
            let _ = stopped.await;
        }));
        Bed { address, events: self.events, stop, server }
    }
}

/// A running gateway.
struct Bed {
    address: SocketAddr,
    events: mpsc::UnboundedReceiver<Value>,
    stop: oneshot::Sender<()>,
    server: JoinHandle<std::io::Result<()>>,
}

impl Bed {
    /// The event of the next invocation.
    async fn event(&mut self) -> Value {
        tokio::time::timeout(SOON, self.events.recv()).await.expect("no invocation").unwrap()
    }

    async fn event_of(&mut self, route_key: &str) -> Value {
        let event = self.event().await;
        assert_eq!(event["requestContext"]["routeKey"], route_key, "{event}");
        event
    }

    /// Proves that no function has been invoked since the last recorded event, by the order of invocations: the next
    /// one is the `$connect` of a client made for it.
    async fn assert_nothing_invoked(&mut self) {
        let _client = self.connect().await;
    }

    async fn dial(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends the request of a handshake and does not wait for the answer.
    async fn request(&self, path: &str, headers: &[(&str, &str)]) -> Tcp {
        self.request_on(self.dial().await, path, headers).await
    }

    /// The same, of a client that ends TCP with a reset when it is dropped.
    async fn request_to_reset(&self, path: &str) -> Tcp {
        let tcp = self.dial().await;
        tcp.set_zero_linger().unwrap();
        self.request_on(tcp, path, &[]).await
    }

    async fn request_on(&self, tcp: TcpStream, path: &str, headers: &[(&str, &str)]) -> Tcp {
        wire::request(BufReader::new(Box::new(tcp)), &self.address.to_string(), path, headers).await
    }

    /// A handshake, whatever its outcome.
    async fn handshake(&self, path: &str, headers: &[(&str, &str)]) -> Client {
        Client::accept(self.request(path, headers).await).await
    }

    /// Connects a client and consumes its `$connect` event.
    async fn connect(&mut self) -> Client {
        self.connect_with(&[]).await
    }

    async fn connect_with(&mut self, headers: &[(&str, &str)]) -> Client {
        let tcp = self.request("/dev", headers).await;
        self.connect_on(tcp).await
    }

    /// Connects the client that has sent its request on `tcp`.
    async fn connect_on(&mut self, tcp: Tcp) -> Client {
        let mut client = Client::accept(tcp).await;
        assert_eq!(client.reply.status, 101, "{}", client.reply.body);
        client.id = self.event_of("$connect").await["requestContext"]["connectionId"].as_str().unwrap().to_owned();
        client
    }

    /// Calls the management API with a signature.
    async fn call(&self, method: &str, id: &str, body: &[u8]) -> Reply {
        self.call_path(method, &format!("/dev/@connections/{id}"), Some("execute-api"), body).await
    }

    async fn call_path(&self, method: &str, path: &str, service: Option<&str>, body: &[u8]) -> Reply {
        let authorization = service.map_or(String::new(), |service| {
            format!("authorization: AWS4-HMAC-SHA256 Credential=AK/20240120/us-east-1/{service}/aws4_request\r\n")
        });
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\n{authorization}connection: close\r\ncontent-length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        let mut tcp = self.dial().await;
        tcp.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
        Reply::read(&mut BufReader::new(Box::new(tcp))).await
    }

    async fn assert_gone(&self, method: &str, id: &str) {
        let reply = self.call(method, id, b"hello").await;
        assert_eq!((reply.status, reply.header("x-amzn-errortype")), (410, Some("GoneException")), "{method}");
        assert_eq!(reply.header("content-type"), Some("application/json"));
        assert_eq!((reply.header("content-length"), reply.body.as_str()), (Some("0"), ""));
    }
}

/// What only this client may expect: our gateway ends TCP in good order, and needs no echo for that.
impl Client {
    /// The close frame, which must be next, and then the end of TCP.
    async fn closed(&mut self) -> Option<u16> {
        let payload = self.close_frame().await;
        let mut rest = Vec::new();
        tokio::time::timeout(SOON, self.tcp.read_to_end(&mut rest)).await.expect("TCP still open").unwrap();
        assert_eq!(rest, b"");
        close_code(&payload)
    }
}

fn keys(object: &Value) -> BTreeSet<&str> {
    object.as_object().unwrap().keys().map(String::as_str).collect()
}

/// What is true of every event.
fn assert_common(event: &Value) {
    fn has_null(value: &Value) -> bool {
        match value {
            Value::Null => true,
            Value::Array(items) => items.iter().any(has_null),
            Value::Object(members) => members.values().any(has_null),
            _ => false,
        }
    }
    assert!(!has_null(event), "{event}");
    assert_eq!(event["isBase64Encoded"], false);
    let context = &event["requestContext"];
    assert_eq!(context["messageDirection"], "IN");
    assert_eq!((&context["stage"], &context["apiId"]), (&json!("dev"), &json!("abcdef1234")));
    assert_eq!(context["requestId"], context["extendedRequestId"]);
    for id in ["connectionId", "messageId", "requestId"].map(|key| &context[key]).into_iter().filter_map(Value::as_str)
    {
        let stem = id.strip_suffix('=').unwrap();
        assert!(stem.len() == 15 && stem.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
    }
    let (connected_at, time) =
        (context["connectedAt"].as_i64().unwrap(), context["requestTimeEpoch"].as_i64().unwrap());
    assert!(time >= connected_at && connected_at > 1_600_000_000_000, "{context}");
    let printed = context["requestTime"].as_str().unwrap();
    let parsed = jiff::fmt::strtime::parse("%d/%b/%Y:%H:%M:%S %z", printed).unwrap().to_timestamp().unwrap();
    assert!(printed.ends_with(" +0000") && parsed.as_second() == time / 1000, "{printed}");
}

fn error_frame(message: &str, id: &str, request_id: &Value) -> String {
    let request_id = request_id.as_str().unwrap();
    format!(r#"{{"message": "{message}", "connectionId":"{id}", "requestId":"{request_id}"}}"#)
}

mod handshake {
    use super::*;

    #[tokio::test]
    async fn the_101_comes_when_connect_has_answered_and_not_before() {
        let gate = Arc::new(Semaphore::new(0));
        let opened = gate.clone();
        let script = Script::new().on_async("$connect", move |_| {
            let gate = gate.clone();
            async move {
                gate.acquire().await.unwrap().forget();
                Ok(OK.into())
            }
        });
        let mut bed = script.start().await;
        for path in ["/dev", "/dev/", "/"] {
            let mut tcp = bed.request_to_reset(path).await;
            let event = bed.event_of("$connect").await;
            assert!(tokio::time::timeout(A_WHILE, tcp.read_u8()).await.is_err(), "answered before $connect ended");
            // Until then nobody can post to the connection either.
            bed.assert_gone("POST", event["requestContext"]["connectionId"].as_str().unwrap()).await;
            opened.add_permits(1);
            let reply = Reply::read(&mut tcp).await;
            assert_eq!(reply.status, 101, "{path}");
            assert_eq!(reply.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
            drop(tcp);
            bed.event_of("$disconnect").await;
        }
    }

    #[tokio::test]
    async fn refusals_before_connect_invoke_nothing() {
        let mut bed = Script::new().start().await;
        let long = format!("/dev?q={}", "x".repeat(4096));
        for (path, status) in [("/nostage", 403), ("/dev/extra", 403), (long.as_str(), 414)] {
            let client = bed.handshake(path, &[]).await;
            assert_eq!(client.reply.status, status, "{path}");
        }
        assert_eq!(bed.handshake("/nostage", &[]).await.reply.body, r#"{"message":"Forbidden"}"#);
        assert_eq!(bed.call_path("GET", "/dev", None, b"").await.status, 426);
        bed.assert_nothing_invoked().await;
    }

    #[tokio::test]
    async fn connect_decides_on_the_status_and_a_refused_client_never_disconnects() {
        for (answer, status) in [
            (r#"{"statusCode":204}"#, 101),
            (r#"{"statusCode":302,"headers":{"Location":"https://example.com"}}"#, 302),
            (r#"{"statusCode":400,"body":"secret"}"#, 400),
            (r#"{"statusCode":401}"#, 401),
            (r#"{"statusCode":403}"#, 403),
            (r#"{"statusCode":404}"#, 404),
            (r#"{"statusCode":500}"#, 500),
            (r#"{"statusCode":503}"#, 503),
            (r#"{"statusCode":101}"#, 502),
            (r#"{"ok":true}"#, 502),
            (r#"{"statusCode":200,"foo":1}"#, 502),
            (r#""string""#, 502),
            ("null", 502),
            ("", 502),
        ] {
            let mut bed = Script::new().on("$connect", answer).start().await;
            let client = bed.handshake("/dev", &[]).await;
            assert_eq!(client.reply.status, status, "{answer}");
            assert_eq!(client.reply.header("location"), None);
            assert!(!client.reply.body.contains("secret"), "{}", client.reply.body);
            let event = bed.event_of("$connect").await;
            if status != 101 {
                bed.assert_gone("POST", event["requestContext"]["connectionId"].as_str().unwrap()).await;
                // The next event is another handshake's, so there was no $disconnect.
                bed.handshake("/dev", &[]).await;
                bed.event_of("$connect").await;
            }
        }
    }

    #[tokio::test]
    async fn a_failing_connect_is_a_502() {
        let mut bed = Script::new().on_async("$connect", |_| async { error() }).start().await;
        let client = bed.handshake("/dev", &[]).await;
        assert_eq!((client.reply.status, client.reply.body.as_str()), (502, r#"{"message":"Internal server error"}"#));
        bed.event_of("$connect").await;
        assert_eq!(bed.handshake("/dev", &[]).await.reply.status, 502);
        bed.event_of("$connect").await;
    }

    #[tokio::test]
    async fn an_api_without_connect_accepts_everybody() {
        let mut bed = Script::new().without("$connect").start().await;
        let mut client = bed.handshake("/dev", &[]).await;
        assert_eq!(client.reply.status, 101);
        client.text("hello").await;
        bed.event_of("$default").await;
        client.frame(true, CLOSE, b"").await;
        bed.event_of("$disconnect").await;
    }

    #[tokio::test]
    async fn the_function_alone_chooses_the_subprotocol() {
        for (answer, chosen) in [
            (r#"{"statusCode":200,"headers":{"Sec-WebSocket-Protocol":"myprotocol"}}"#, Some("myprotocol")),
            (r#"{"statusCode":200,"headers":{"sec-websocket-protocol":"myprotocol"}}"#, Some("myprotocol")),
            (r#"{"statusCode":200,"multiValueHeaders":{"Sec-WebSocket-Protocol":["myprotocol"]}}"#, Some("myprotocol")),
            (r#"{"statusCode":200,"headers":{"Set-Cookie":"a=b","X-Foo":"bar"},"body":"secret"}"#, None),
        ] {
            let mut bed = Script::new().on("$connect", answer).start().await;
            let offer = [("Sec-WebSocket-Protocol", "chat1,myprotocol")];
            let client = bed.handshake("/dev", &offer).await;
            assert_eq!((client.reply.status, client.reply.header("sec-websocket-protocol")), (101, chosen), "{answer}");
            let names: BTreeSet<_> = client.reply.headers.iter().map(|(name, _)| name.as_str()).collect();
            let allowed = ["connection", "date", "sec-websocket-accept", "sec-websocket-protocol", "upgrade"];
            assert!(names.is_subset(&BTreeSet::from(allowed)), "{names:?}");
            let event = bed.event_of("$connect").await;
            assert_eq!(event["headers"]["Sec-WebSocket-Protocol"], "chat1,myprotocol");
        }
    }

    #[tokio::test]
    async fn compression_is_declined() {
        let bed = Script::new().start().await;
        let offer = [("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")];
        let client = bed.handshake("/dev", &offer).await;
        assert_eq!((client.reply.status, client.reply.header("sec-websocket-extensions")), (101, None));
    }

    /// Inferred; AWS's behaviour is unknown.
    #[tokio::test]
    async fn connect_runs_to_its_end_when_the_client_leaves_meanwhile() {
        let gate = Arc::new(Semaphore::new(0));
        let (opened, ended) = (gate.clone(), Arc::new(Semaphore::new(0)));
        let end = ended.clone();
        let script = Script::new().on_async("$connect", move |_| {
            let (gate, end) = (gate.clone(), end.clone());
            async move {
                gate.acquire().await.unwrap().forget();
                end.add_permits(1);
                Ok(OK.into())
            }
        });
        let mut bed = script.start().await;
        let tcp = bed.request("/dev", &[]).await;
        let id = bed.event_of("$connect").await["requestContext"]["connectionId"].as_str().unwrap().to_owned();
        drop(tcp);
        // Nothing tells when the gateway has seen the client leave.
        tokio::time::sleep(A_WHILE).await;
        opened.add_permits(2);
        tokio::time::timeout(SOON, ended.acquire()).await.unwrap().unwrap().forget();
        bed.assert_gone("GET", &id).await;
        bed.assert_nothing_invoked().await;
    }
}

mod events {
    use super::*;

    const CONTEXT: [&str; 13] = [
        "routeKey",
        "eventType",
        "extendedRequestId",
        "requestTime",
        "messageDirection",
        "stage",
        "connectedAt",
        "requestTimeEpoch",
        "identity",
        "requestId",
        "domainName",
        "connectionId",
        "apiId",
    ];

    #[tokio::test]
    async fn connect_tells_of_the_request_as_the_client_wrote_it() {
        let mut bed = Script::new().start().await;
        let headers = [("Foo", "bar"), ("x-lOWER", "1"), ("X-Twice", "1"), ("X-Twice", "2"), ("User-Agent", "me/1")];
        let path = "/dev?userId=2&a=1&a=2&x=%20y";
        assert_eq!(bed.handshake(path, &headers).await.reply.status, 101);
        let event = bed.event().await;
        assert_common(&event);
        let expected = [
            "headers",
            "multiValueHeaders",
            "queryStringParameters",
            "multiValueQueryStringParameters",
            "requestContext",
            "isBase64Encoded",
        ];
        assert_eq!(keys(&event), BTreeSet::from(expected));
        assert_eq!(keys(&event["requestContext"]), BTreeSet::from(CONTEXT));
        assert_eq!(event["requestContext"]["routeKey"], "$connect");
        assert_eq!(event["requestContext"]["eventType"], "CONNECT");
        assert_eq!(event["requestContext"]["domainName"], bed.address.to_string());
        assert_eq!(event["requestContext"]["identity"], json!({"userAgent": "me/1", "sourceIp": "127.0.0.1"}));

        assert_eq!(event["queryStringParameters"], json!({"userId": "2", "a": "2", "x": " y"}));
        let multi = json!({"userId": ["2"], "a": ["1", "2"], "x": [" y"]});
        assert_eq!(event["multiValueQueryStringParameters"], multi);

        let mut single = event["headers"].clone();
        let trace_id = single["X-Amzn-Trace-Id"].take();
        let trace_id = trace_id.as_str().unwrap().strip_prefix("Root=1-").unwrap();
        assert_eq!((trace_id.len(), trace_id.find('-')), (33, Some(8)));
        let expected = json!({
            "Host": bed.address.to_string(),
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            "Foo": "bar",
            "x-lOWER": "1",
            "X-Twice": "2",
            "User-Agent": "me/1",
            "X-Amzn-Trace-Id": null,
            "X-Forwarded-For": "127.0.0.1",
            "X-Forwarded-Port": bed.address.port().to_string(),
            "X-Forwarded-Proto": "http",
        });
        assert_eq!(single, expected);
        assert_eq!(keys(&event["multiValueHeaders"]), keys(&event["headers"]));
        assert_eq!(event["multiValueHeaders"]["Foo"], json!(["bar"]));
        assert_eq!(event["multiValueHeaders"]["X-Twice"], json!(["1", "2"]));
    }

    #[tokio::test]
    async fn connect_without_query_and_user_agent_has_neither() {
        let mut bed = Script::new().start().await;
        for path in ["/dev", "/dev?"] {
            bed.handshake(path, &[]).await;
            let event = bed.event_of("$connect").await;
            let expected = ["headers", "multiValueHeaders", "requestContext", "isBase64Encoded"];
            assert_eq!(keys(&event), BTreeSet::from(expected));
            assert_eq!(event["requestContext"]["identity"], json!({"sourceIp": "127.0.0.1"}));
            bed.event_of("$disconnect").await;
        }
    }

    #[tokio::test]
    async fn a_message_is_its_text_and_its_connection_and_nothing_else() {
        let mut bed = Script::new().start().await;
        let mut client = bed.connect().await;
        let texts = ["{\r\n\t\"a\": 1\r\n}", "{\"action\" :  \"sendMessage\",\"x\":\"žluťoučký 🐎\"}"];
        let mut contexts = Vec::new();
        for (text, route_key) in texts.into_iter().zip(["$default", "sendMessage"]) {
            client.text(text).await;
            let event = bed.event_of(route_key).await;
            assert_common(&event);
            assert_eq!(keys(&event), BTreeSet::from(["requestContext", "body", "isBase64Encoded"]));
            assert_eq!(event["body"], text);
            let expected: BTreeSet<_> = CONTEXT.into_iter().chain(["messageId"]).collect();
            assert_eq!(keys(&event["requestContext"]), expected);
            assert_eq!(event["requestContext"]["eventType"], "MESSAGE");
            assert_eq!(event["requestContext"]["connectionId"], client.id);
            contexts.push(event["requestContext"].clone());
        }
        for same in ["connectionId", "connectedAt", "identity", "domainName"] {
            assert_eq!(contexts[0][same], contexts[1][same]);
        }
        for fresh in ["messageId", "requestId"] {
            assert_ne!(contexts[0][fresh], contexts[1][fresh]);
        }
    }

    /// That the client's own code and reason come through is inferred, but for 1001 and none.
    #[tokio::test]
    async fn disconnect_has_the_code_and_the_reason_of_the_clients_close() {
        let mut bed = Script::new().start().await;
        for (payload, code, reason) in [
            (b"".as_slice(), 1005, "Client-side close frame status not set"),
            (b"\x03\xe9", 1001, ""),
            (b"\x03\xe8bye", 1000, "bye"),
            (b"\x0f\xa0bye", 4000, "bye"),
        ] {
            let mut client = bed.connect().await;
            client.frame(true, CLOSE, payload).await;
            let event = bed.event_of("$disconnect").await;
            assert_common(&event);
            let expected = ["headers", "multiValueHeaders", "requestContext", "isBase64Encoded"];
            assert_eq!(keys(&event), BTreeSet::from(expected));
            let host = bed.address.to_string();
            let headers = json!({"Host": host, "x-api-key": "", "X-Forwarded-For": "", "x-restapi": ""});
            assert_eq!(event["headers"], headers);
            let headers = json!({"Host": [host], "x-api-key": [""], "X-Forwarded-For": [""], "x-restapi": [""]});
            assert_eq!(event["multiValueHeaders"], headers);
            let context = &event["requestContext"];
            let expected: BTreeSet<_> =
                CONTEXT.into_iter().chain(["disconnectStatusCode", "disconnectReason"]).collect();
            assert_eq!(keys(context), expected);
            assert_eq!((&context["eventType"], &context["connectionId"]), (&json!("DISCONNECT"), &json!(client.id)));
            assert_eq!(
                (&context["disconnectStatusCode"], &context["disconnectReason"]),
                (&json!(code), &json!(reason))
            );
            // The close is echoed, and TCP ends.
            assert_eq!(client.closed().await, (code != 1005).then_some(code));
            bed.assert_gone("POST", &client.id).await;
        }
    }

    #[tokio::test]
    async fn a_lost_client_disconnects_with_1006() {
        let mut bed = Script::new().start().await;
        for reset in [true, false] {
            let tcp = if reset { bed.request_to_reset("/dev").await } else { bed.request("/dev", &[]).await };
            let Client { id, .. } = bed.connect_on(tcp).await;
            let event = bed.event_of("$disconnect").await;
            assert_eq!(event["requestContext"]["disconnectStatusCode"], 1006);
            bed.assert_gone("POST", &id).await;
        }
    }
}

mod authorizers {
    use super::*;

    const METHOD_ARN: &str = "arn:aws:execute-api:us-east-1:123456789012:abcdef1234/dev/$connect";
    const AUTH: [(&str, &str); 1] = [("Auth", "token")];

    fn policy(effect: &str, resource: &str) -> Value {
        let statement = json!({ "Effect": effect, "Action": "execute-api:Invoke", "Resource": resource });
        json!({ "principalId": "user", "policyDocument": { "Version": "2012-10-17", "Statement": [statement] } })
    }

    /// An API whose authorizer answers so, with the default identity source.
    async fn bed(answer: impl Fn() -> Answer + Send + Sync + 'static) -> Bed {
        let script = Script::new().authorizer(&["route.request.header.Auth"], move |_| std::future::ready(answer()));
        script.start().await
    }

    fn failure(message: &str) -> Answer {
        Err(FunctionError { error_type: "Error".to_owned(), error_message: message.to_owned() })
    }

    #[tokio::test]
    async fn the_authorizer_is_asked_before_connect_and_told_of_the_request() {
        let mut bed = bed(|| Ok(policy("Allow", METHOD_ARN).to_string().into())).await;
        let client = bed.handshake("/dev?userId=2", &AUTH).await;
        assert_eq!(client.reply.status, 101);
        let event = bed.event().await;
        let expected = [
            "type",
            "methodArn",
            "headers",
            "multiValueHeaders",
            "queryStringParameters",
            "multiValueQueryStringParameters",
            "stageVariables",
            "requestContext",
        ];
        assert_eq!(keys(&event), BTreeSet::from(expected));
        assert_eq!((&event["type"], &event["methodArn"]), (&json!("REQUEST"), &json!(METHOD_ARN)));
        assert_eq!(event["stageVariables"], json!({}));
        for (name, value) in
            [("Connection", "upgrade"), ("Upgrade", "websocket"), ("content-length", "0"), ("Auth", "token")]
        {
            assert_eq!(event["headers"][name], value);
            assert_eq!(event["multiValueHeaders"][name], json!([value]));
        }
        assert_eq!(event["requestContext"]["routeKey"], "$connect");
        assert!(event["requestContext"].get("authorizer").is_none());

        let connect = bed.event().await;
        assert!(connect.get("type").is_none() && connect["headers"].get("Upgrade").is_none());
        assert_eq!(connect["requestContext"]["connectionId"], event["requestContext"]["connectionId"]);
        assert_ne!(connect["requestContext"]["requestId"], event["requestContext"]["requestId"]);
    }

    #[tokio::test]
    async fn the_context_comes_with_every_event_and_the_authorizer_is_asked_once() {
        let mut bed = bed(|| {
            let mut result = policy("Allow", "arn:aws:execute-api:us-east-1:123456789012:abcdef1234/dev/*");
            result["context"] = json!({ "userId": "7", "n": 1, "b": true });
            Ok(result.to_string().into())
        })
        .await;
        let expected = json!({ "userId": "7", "n": "1", "b": "true", "principalId": "user" });
        // Asked again by the second handshake: there is no cache.
        for _ in 0..2 {
            let mut client = bed.handshake("/dev", &AUTH).await;
            assert_eq!(bed.event().await["type"], "REQUEST");
            assert_eq!(bed.event_of("$connect").await["requestContext"]["authorizer"], expected);
            for _ in 0..2 {
                client.text("hello").await;
                assert_eq!(bed.event_of("$default").await["requestContext"]["authorizer"], expected);
            }
            client.frame(true, CLOSE, b"").await;
            assert_eq!(bed.event_of("$disconnect").await["requestContext"]["authorizer"], expected);
        }
    }

    /// That all of them are needed is what the guide says of REST APIs.
    #[tokio::test]
    async fn without_an_identity_the_authorizer_is_not_asked() {
        let sources = ["route.request.header.Auth", "route.request.querystring.key"];
        let allow = |_| std::future::ready(Ok(policy("Allow", "*").to_string().into()));
        let mut bed = Script::new().authorizer(&sources, allow).start().await;
        for (path, headers) in
            [("/dev", &[][..]), ("/dev", &AUTH), ("/dev?key=1", &[]), ("/dev?key=1", &[("Auth", "")])]
        {
            assert_eq!(bed.handshake(path, headers).await.reply.status, 401, "{path} {headers:?}");
        }
        assert_eq!(bed.handshake("/dev?key=1", &[("AUTH", "x")]).await.reply.status, 101);
        assert_eq!(bed.event().await["type"], "REQUEST");
    }

    /// The 500 is what the guide says of REST APIs.
    #[tokio::test]
    async fn a_refused_client_reaches_no_function() {
        let allow = || policy("Allow", METHOD_ARN);
        let nested = {
            let mut result = allow();
            result["context"] = json!({ "a": {} });
            result
        };
        let long = {
            let mut result = allow();
            result["context"] = json!({ "a": "x".repeat(8 * KIB) });
            result
        };
        for (answer, status) in [
            (Ok(policy("Deny", METHOD_ARN)), 403),
            (Ok(policy("Allow", "arn:aws:execute-api:us-east-1:123456789012:abcdef1234/dev/*/*")), 403),
            (Ok(nested), 500),
            (Ok(long), 500),
            (Ok(json!({ "isAuthorized": true })), 500),
            (Ok(Value::Null), 500),
            (Err("Unauthorized"), 401),
            (Err("Unauthorized!"), 500),
        ] {
            let given = answer.clone();
            let mut bed = bed(move || match &given {
                Ok(result) => Ok(result.to_string().into()),
                Err(message) => failure(message),
            })
            .await;
            for _ in 0..2 {
                assert_eq!(bed.handshake("/dev", &AUTH).await.reply.status, status, "{answer:?}");
                // Nothing but the authorizer, so neither $connect nor $disconnect.
                assert_eq!(bed.event().await["type"], "REQUEST");
            }
        }
    }

    #[tokio::test]
    async fn an_authorizer_that_takes_too_long_is_a_500() {
        let script = Script::new().authorizer(&[], |_| std::future::pending());
        let mut bed =
            script.set(|settings| settings.limits.integration_timeout = Duration::from_millis(50)).start().await;
        assert_eq!(bed.handshake("/dev", &[]).await.reply.status, 500);
        assert_eq!(bed.event().await["type"], "REQUEST");
    }
}

mod routing {
    use super::*;

    #[tokio::test]
    async fn every_message_goes_to_one_route() {
        let mut bed = Script::new().on("1", OK).on("[a, b]", OK).start().await;
        let mut client = bed.connect().await;
        for (text, route_key) in [
            (r#"{"action":"sendMessage","body":"hello there!"}"#, "sendMessage"),
            (r#"{"action":"unknown"}"#, "$default"),
            (r#"{"foo":1}"#, "$default"),
            ("hello", "$default"),
            ("", "$default"),
            (r#"{"action":""}"#, "$default"),
            (r#"{"action":null}"#, "$default"),
            ("42", "$default"),
            ("[1,2]", "$default"),
            (r#""x""#, "$default"),
            ("true", "$default"),
            (r#"{"action":"SendMessage"}"#, "$default"),
            (r#"{"action":"$connect"}"#, "$default"),
            (r#"{"action":"$disconnect"}"#, "$default"),
            (r#"{"action":"$default"}"#, "$default"),
            (r#"{"action":1}"#, "1"),
            (r#"{"action":["a","b"]}"#, "[a, b]"),
            (r#"{"action":"sendMessage", body:"x"}"#, "$default"),
            (r#"{"action":"a","action":"sendMessage"}"#, "sendMessage"),
        ] {
            client.text(text).await;
            // The next event of all: one invocation for one message.
            let event = bed.event_of(route_key).await;
            assert_eq!(event["body"], text);
        }
    }

    #[tokio::test]
    async fn expressions_select_as_documented_and_leave_connect_and_disconnect_alone() {
        for (expression, text, route_key) in [
            ("${request.body.service}/${request.body.action}", r#"{"service":"chat","action":"join"}"#, "chat/join"),
            ("${request.body.action}-${request.body.invalidPath}", r#"{"action":"join"}"#, "join-"),
            ("$request.body.data.room", r#"{"data":{"room":"room1234"}}"#, "room1234"),
            ("$request.body.type", r#"{"type":"subscribe"}"#, "subscribe"),
        ] {
            let mut bed = Script::new().expression(expression).on(route_key, OK).start().await;
            let mut client = bed.connect().await;
            client.text(text).await;
            bed.event_of(route_key).await;
            client.frame(true, CLOSE, b"").await;
            bed.event_of("$disconnect").await;
        }
    }

    #[tokio::test]
    async fn without_default_an_unmatched_message_is_forbidden_and_the_connection_stays() {
        let mut bed = Script::new().without("$default").start().await;
        let mut client = bed.connect().await;
        client.text(r#"{"action":"unknown"}"#).await;
        let frame = client.hears().await;
        let request_id = serde_json::from_str::<Value>(&frame).unwrap()["requestId"].clone();
        assert_eq!(frame, error_frame("Forbidden", &client.id, &request_id));
        client.text(r#"{"action":"sendMessage"}"#).await;
        bed.event_of("sendMessage").await;
    }

    #[tokio::test]
    async fn a_ping_is_answered_and_invokes_nothing() {
        let mut bed = Script::new().start().await;
        let mut client = bed.connect().await;
        client.frame(true, PING, b"payload").await;
        assert_eq!(client.receive().await, Frame { fin: true, opcode: PONG, payload: b"payload".to_vec() });
        bed.assert_nothing_invoked().await;
    }

    #[tokio::test]
    async fn messages_of_one_connection_are_invoked_side_by_side() {
        let gate = Arc::new(Semaphore::new(0));
        let opened = gate.clone();
        let script = Script::new().on_async("sendMessage", move |_| {
            let gate = gate.clone();
            async move {
                gate.acquire().await.unwrap().forget();
                error()
            }
        });
        let mut bed = script.start().await;
        let mut client = bed.connect().await;
        client.text(r#"{"action":"sendMessage"}"#).await;
        let slow = bed.event_of("sendMessage").await;
        client.text(r#"{"action":"boom"}"#).await;
        let quick = bed.event_of("boom").await;
        let expected = error_frame("Internal server error", &client.id, &quick["requestContext"]["requestId"]);
        assert_eq!(client.hears().await, expected);
        opened.add_permits(1);
        let expected = error_frame("Internal server error", &client.id, &slow["requestContext"]["requestId"]);
        assert_eq!(client.hears().await, expected);
    }
}

mod responses {
    use super::*;

    /// That a well-formed error status is silent is inferred from "won't send any information about the result".
    #[tokio::test]
    async fn a_one_way_route_keeps_every_well_formed_response_to_itself() {
        for answer in [
            r#"{"statusCode":200,"body":"text"}"#,
            r#"{"statusCode":400}"#,
            r#"{"statusCode":500,"body":"text"}"#,
            r#"{"statusCode":200,"headers":{},"multiValueHeaders":{},"isBase64Encoded":false}"#,
        ] {
            let mut bed = Script::new().on("sendMessage", answer).start().await;
            let mut client = bed.connect().await;
            client.text(r#"{"action":"sendMessage"}"#).await;
            bed.event_of("sendMessage").await;
            client.text(r#"{"action":"boom"}"#).await;
            let event = bed.event_of("boom").await;
            let expected = error_frame("Internal server error", &client.id, &event["requestContext"]["requestId"]);
            assert_eq!(client.hears().await, expected, "{answer}");
            client.frame(true, CLOSE, b"").await;
            assert_eq!(client.closed().await, None, "{answer}");
        }
    }

    #[tokio::test]
    async fn a_two_way_route_answers_with_the_body_of_its_result_and_nothing_else() {
        for (answer, received) in [
            (r#"{"statusCode":200,"body":"pong"}"#, "pong"),
            (r#"{"statusCode":200,"body":"pong","headers":{"X-Foo":"bar"}}"#, "pong"),
            (r#"{"statusCode":200}"#, ""),
            (r#"{"statusCode":500,"body":"žluť"}"#, "žluť"),
        ] {
            let mut bed = Script::new().on("sendMessage", answer).two_way("sendMessage").start().await;
            let mut client = bed.connect().await;
            client.text(r#"{"action":"sendMessage"}"#).await;
            assert_eq!(client.hears().await, received, "{answer}");
        }
    }

    /// That a body that is too long is an error is inferred.
    #[tokio::test]
    async fn a_two_way_route_that_fails_answers_with_an_error_frame() {
        let too_long = || json!({ "statusCode": 200, "body": "x".repeat(128 * KIB + 1) }).to_string();
        for answer in [
            Err(()),
            Ok("{}".to_owned()),
            Ok(r#"{"statusCode":200,"body":{}}"#.to_owned()),
            Ok(r#"{"statusCode":200,"body":"pong","extra":1}"#.to_owned()),
            Ok(too_long()),
        ] {
            let script = Script::new().on_async("sendMessage", move |_| {
                let answer = answer.clone();
                async move { answer.map(Bytes::from).or_else(|()| error()) }
            });
            let mut bed = script.two_way("sendMessage").start().await;
            let mut client = bed.connect().await;
            client.text(r#"{"action":"sendMessage"}"#).await;
            let event = bed.event_of("sendMessage").await;
            let expected = error_frame("Internal server error", &client.id, &event["requestContext"]["requestId"]);
            assert_eq!(client.hears().await, expected);
        }
    }

    /// That a missing status code is malformed is inferred.
    #[tokio::test]
    async fn a_malformed_response_is_an_internal_server_error() {
        for answer in [r#"{"statusCode":200,"foo":1}"#, r#"{"statusCode":200,"body":{}}"#, "{}", "null", r#""text""#] {
            let mut bed = Script::new().on("sendMessage", answer).start().await;
            let mut client = bed.connect().await;
            client.text(r#"{"action":"sendMessage"}"#).await;
            let event = bed.event_of("sendMessage").await;
            let expected = error_frame("Internal server error", &client.id, &event["requestContext"]["requestId"]);
            assert_eq!(client.hears().await, expected, "{answer}");
        }
    }

    #[tokio::test]
    async fn a_failing_function_is_told_to_the_sender_and_never_retried() {
        let mut bed = Script::new().start().await;
        let mut other = bed.connect().await;
        let mut client = bed.connect().await;
        for _ in 0..2 {
            client.text(r#"{"action":"boom"}"#).await;
            let event = bed.event_of("boom").await;
            let expected = error_frame("Internal server error", &client.id, &event["requestContext"]["requestId"]);
            assert_eq!(client.hears().await, expected);
        }
        bed.assert_nothing_invoked().await;
        bed.call("POST", &other.id, b"only this").await;
        assert_eq!(other.hears().await, "only this");
    }

    #[tokio::test]
    async fn the_result_for_a_sender_that_left_is_dropped() {
        let gate = Arc::new(Semaphore::new(0));
        let opened = gate.clone();
        let script = Script::new().on_async("sendMessage", move |_| {
            let gate = gate.clone();
            async move {
                gate.acquire().await.unwrap().forget();
                error()
            }
        });
        let mut bed = script.start().await;
        let mut client = bed.connect().await;
        client.text(r#"{"action":"sendMessage"}"#).await;
        bed.event_of("sendMessage").await;
        client.frame(true, CLOSE, b"").await;
        // May overtake the message's function.
        bed.event_of("$disconnect").await;
        opened.add_permits(1);
        assert_eq!(client.closed().await, None);
        bed.assert_nothing_invoked().await;
    }

    #[tokio::test]
    async fn nobody_minds_a_failing_disconnect() {
        let mut bed = Script::new().on_async("$disconnect", |_| async { error() }).start().await;
        let mut client = bed.connect().await;
        client.frame(true, CLOSE, b"").await;
        bed.event_of("$disconnect").await;
        assert_eq!(client.closed().await, None);
        bed.assert_nothing_invoked().await;
    }
}

mod management {
    use super::*;

    #[tokio::test]
    async fn a_post_is_delivered_as_one_text_message() {
        let mut bed = Script::new().start().await;
        let mut client = bed.connect().await;
        let encoded = client.id.replace('=', "%3D");
        for path in [format!("@connections/{}", client.id), format!("%40connections/{encoded}")] {
            for body in ["hello", "", "{\"text\":\"žluťoučký 🐎\"}"] {
                let path = format!("/dev/{path}");
                let reply = bed.call_path("POST", &path, Some("execute-api"), body.as_bytes()).await;
                assert_eq!((reply.status, reply.body.as_str()), (200, ""), "{path}");
                assert_eq!(reply.header("content-length"), Some("0"));
                assert_eq!(reply.header("content-type"), Some("application/json"));
                assert_eq!(reply.header("x-amzn-requestid").map(str::len), Some(36));
                assert_eq!(reply.header("x-amz-apigw-id").map(str::len), Some(16));
                assert!(reply.header("x-amzn-trace-id").is_some() && reply.header("date").is_some());
                assert_eq!(client.hears().await, body);
            }
        }
    }

    #[tokio::test]
    async fn a_message_has_at_most_128_kib_in_frames_of_at_most_32() {
        let mut bed = Script::new().start().await;
        let mut client = bed.connect().await;
        for (size, frames) in [
            (32 * KIB, vec![32 * KIB]),
            (100 * KIB, vec![32 * KIB, 32 * KIB, 32 * KIB, 4 * KIB]),
            (128 * KIB, vec![32 * KIB; 4]),
        ] {
            assert_eq!(bed.call("POST", &client.id, &vec![b'x'; size]).await.status, 200);
            assert_eq!(client.message().await, ("x".repeat(size), frames));
        }
        for size in [128 * KIB + 1, 1024 * KIB] {
            let reply = bed.call("POST", &client.id, &vec![b'x'; size]).await;
            let expected = (413, Some("PayloadTooLargeException"));
            assert_eq!((reply.status, reply.header("x-amzn-errortype")), expected);
            assert!(serde_json::from_str::<Value>(&reply.body).unwrap()["message"].is_string());
        }
        bed.call("POST", &client.id, b"still open").await;
        assert_eq!(client.hears().await, "still open");
    }

    #[tokio::test]
    async fn every_error_has_its_status_type_and_body() {
        let mut bed = Script::new().start().await;
        let mut client = bed.connect().await;
        let id = client.id.clone();
        let here = format!("/dev/@connections/{id}");
        let (rootless, elsewhere) = (format!("/@connections/{id}"), format!("/prod/@connections/{id}"));
        let uuid = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
        let (signed, forbidden) = (Some("execute-api"), r#"{"message":"Forbidden"}"#);
        let unsigned = ("MissingAuthenticationTokenException", r#"{"message":"Missing Authentication Token"}"#);
        for (method, path, service, status, error_type, body) in [
            ("POST", rootless.as_str(), signed, 403, "ForbiddenException", forbidden),
            ("POST", &elsewhere, signed, 403, "ForbiddenException", forbidden),
            ("POST", &here, None, 403, unsigned.0, unsigned.1),
            ("PUT", &here, signed, 403, unsigned.0, unsigned.1),
            ("PATCH", &here, signed, 403, unsigned.0, unsigned.1),
            (
                "POST",
                &here,
                Some("apigateway"),
                403,
                "InvalidSignatureException",
                r#"{"message":"Credential should be scoped to correct service: 'execute-api'. "}"#,
            ),
            (
                "POST",
                "/dev/@connections/abc",
                signed,
                400,
                "BadRequestException",
                r#"{"message":"Invalid connectionId: abc"}"#,
            ),
            (
                "GET",
                &format!("/dev/@connections/{uuid}"),
                signed,
                400,
                "BadRequestException",
                &format!(r#"{{"message":"Invalid connectionId: {uuid}"}}"#),
            ),
        ] {
            let reply = bed.call_path(method, path, service, b"not delivered").await;
            assert_eq!((reply.status, reply.header("x-amzn-errortype")), (status, Some(error_type)), "{method} {path}");
            assert_eq!(reply.body, body, "{method} {path}");
            assert!(reply.header("x-amzn-requestid").is_some() && reply.header("x-amz-apigw-id").is_some());
            assert!(reply.header("x-amzn-trace-id").is_none());
        }
        for method in ["POST", "GET", "DELETE"] {
            bed.assert_gone(method, "PJqB0fHsqRcCHlw=").await;
        }
        bed.call("POST", &id, b"the only one").await;
        assert_eq!(client.hears().await, "the only one");
    }

    #[tokio::test]
    async fn get_describes_an_open_connection() {
        let mut bed = Script::new().start().await;
        let client = bed.handshake("/dev", &[("User-Agent", "Mozilla/5.0 \"x\"")]).await;
        assert_eq!(client.reply.status, 101);
        let event = bed.event_of("$connect").await;
        let id = event["requestContext"]["connectionId"].as_str().unwrap();
        let connected_at = event["requestContext"]["connectedAt"].as_i64().unwrap();

        let before = bed.call("GET", id, b"").await;
        assert_eq!((before.status, before.header("content-type")), (200, Some("application/json")));
        let connected_at = jiff::Timestamp::from_millisecond(connected_at).unwrap();
        let connected_at = connected_at.strftime("%Y-%m-%dT%H:%M:%S.%3fZ");
        let expected = format!(
            "{{\n  \"identity\" : {{\n    \"sourceIp\" : \"127.0.0.1\",\n    \"userAgent\" : \"Mozilla/5.0 \\\"x\\\"\"\n  }},\n  \
             \"connectedAt\" : \"{connected_at}\",\n  \"lastActiveAt\" : \"{connected_at}\"\n}}"
        );
        assert_eq!(before.body, expected);

        // The clock has milliseconds.
        tokio::time::sleep(Duration::from_millis(5)).await;
        bed.call("POST", id, b"hello").await;
        let parse = |reply: &Reply| serde_json::from_str::<Value>(&reply.body).unwrap();
        let (before, after) = (parse(&before), parse(&bed.call("GET", id, b"").await));
        assert_eq!(before["connectedAt"], after["connectedAt"]);
        assert!(before["lastActiveAt"].as_str() < after["lastActiveAt"].as_str(), "{after}");
    }

    #[tokio::test]
    async fn delete_closes_with_1000_and_disconnects_once() {
        let mut bed = Script::new().start().await;
        let mut client = bed.connect().await;
        bed.call("POST", &client.id, b"last words").await;
        let reply = bed.call("DELETE", &client.id, b"").await;
        assert_eq!((reply.status, reply.body.as_str()), (204, ""));
        assert_eq!((reply.header("content-type"), reply.header("content-length")), (None, None));
        assert!(reply.header("x-amzn-requestid").is_some() && reply.header("x-amzn-trace-id").is_some());
        for method in ["DELETE", "GET", "POST"] {
            bed.assert_gone(method, &client.id).await;
        }
        assert_eq!(client.hears().await, "last words");
        let frame = client.receive().await;
        assert_eq!((frame.opcode, &frame.payload[..2]), (CLOSE, 1000_u16.to_be_bytes().as_slice()));
        client.frame(true, CLOSE, &1000_u16.to_be_bytes()).await;
        let event = bed.event_of("$disconnect").await;
        assert_eq!(event["requestContext"]["disconnectStatusCode"], 1000);
        assert_eq!(event["requestContext"]["disconnectReason"], "Connection Closed Normally");
        bed.assert_nothing_invoked().await;
    }

    #[tokio::test]
    async fn a_connection_is_gone_while_its_disconnect_runs() {
        let gate = Arc::new(Semaphore::new(0));
        let script = Script::new().on_async("$disconnect", move |_| {
            let gate = gate.clone();
            async move {
                gate.acquire().await.unwrap().forget();
                Ok(OK.into())
            }
        });
        let mut bed = script.start().await;
        let mut client = bed.connect().await;
        client.frame(true, CLOSE, b"").await;
        bed.event_of("$disconnect").await;
        bed.assert_gone("GET", &client.id).await;
        bed.assert_gone("POST", &client.id).await;
    }

    /// Inferred: the order of awaited posts, and that concurrent ones stay intact.
    #[tokio::test]
    async fn posts_keep_their_order_when_awaited_and_their_wholeness_when_not() {
        let mut bed = Script::new().start().await;
        let mut client = bed.connect().await;
        for number in 0..10 {
            bed.call("POST", &client.id, format!("{number}").as_bytes()).await;
        }
        for number in 0..10 {
            assert_eq!(client.hears().await, format!("{number}"));
        }

        let id = client.id.clone();
        let bodies: BTreeSet<_> = (0..100).map(|number| format!("{number:03}").repeat(20 * KIB)).collect();
        let posts = futures_util::future::join_all(bodies.iter().map(|body| bed.call("POST", &id, body.as_bytes())));
        let received = async {
            let mut received = BTreeSet::new();
            for _ in 0..100 {
                received.insert(client.hears().await);
            }
            received
        };
        let (replies, received) = tokio::join!(posts, received);
        assert!(replies.iter().all(|reply| reply.status == 200));
        assert!(received == bodies, "a message was lost or mixed with another");
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_holds_up_nobody_else_and_can_be_deleted() {
        let mut bed = Script::new().start().await;
        let deaf = bed.connect().await;
        let mut client = bed.connect().await;
        let body = vec![b'x'; 128 * KIB];
        // Until sockets and queue are full. How much they hold is up to the system.
        while let Ok(reply) = tokio::time::timeout(Duration::from_secs(1), bed.call("POST", &deaf.id, &body)).await {
            assert_eq!(reply.status, 200);
        }
        let waiting = bed.call("POST", &deaf.id, &body);
        let others = async {
            assert_eq!(bed.call("POST", &client.id, b"hello").await.status, 200);
            assert_eq!(client.hears().await, "hello");
            assert_eq!(bed.call("DELETE", &deaf.id, b"").await.status, 204);
        };
        let (waiting, ()) = tokio::join!(waiting, others);
        assert_eq!(waiting.status, 410);
        let event = bed.event_of("$disconnect").await;
        assert_eq!(event["requestContext"]["connectionId"], deaf.id);
    }
}

mod quotas {
    use super::*;

    #[tokio::test]
    async fn what_fits_the_limits_is_accepted_whole() {
        let mut bed = Script::new().start().await;
        let mut client = bed.connect().await;
        let frame = "x".repeat(32 * KIB);
        client.text(&frame).await;
        assert_eq!(bed.event_of("$default").await["body"], frame);
        client.fragments(&[frame.as_bytes(); 4]).await;
        assert_eq!(bed.event_of("$default").await["body"], frame.repeat(4));
        bed.assert_nothing_invoked().await;
    }

    /// The codes 1002 and 1007 are those of RFC 6455; that AWS uses them is inferred.
    #[tokio::test]
    async fn what_does_not_is_closed_with_its_code_and_reaches_no_route() {
        let frame = vec![b'x'; 32 * KIB];
        let mut bed = Script::new().start().await;
        for (frames, code) in [
            (vec![(true, TEXT, [frame.as_slice(), b"x"].concat())], 1009),
            (
                (0..5)
                    .map(|part| match part {
                        0 => (false, TEXT, frame.clone()),
                        4 => (true, CONTINUATION, b"x".to_vec()),
                        _ => (false, CONTINUATION, frame.clone()),
                    })
                    .collect(),
                1009,
            ),
            (vec![(true, TEXT, vec![b'x'; 4 * 1024 * KIB])], 1009),
            (vec![(true, BINARY, b"x".to_vec())], 1003),
            (vec![(true, TEXT, b"\xff\xfe".to_vec())], 1007),
            (vec![(false, TEXT, b"\xc5".to_vec()), (true, CONTINUATION, b"x".to_vec())], 1007),
            (vec![(true, CONTINUATION, b"x".to_vec())], 1002),
            (vec![(true, 0x3, b"x".to_vec())], 1002),
        ] {
            let mut client = bed.connect().await;
            for (fin, opcode, payload) in frames {
                client.frame(fin, opcode, &payload).await;
            }
            assert_eq!(client.closed().await, Some(code));
            let event = bed.event_of("$disconnect").await;
            assert_eq!(event["requestContext"]["disconnectStatusCode"], code);
            bed.assert_gone("POST", &client.id).await;
        }
        let mut client = bed.connect().await;
        client.raw(b"\x81\x05hello").await;
        assert_eq!(client.closed().await, Some(1002), "an unmasked frame");
        bed.event_of("$disconnect").await;
    }

    /// That $disconnect has the client's code is inferred for all but the idle time-out.
    #[tokio::test]
    async fn a_connection_that_is_idle_or_old_is_closed_with_1001() {
        for (idle, duration) in [(50, 10_000), (10_000, 50)] {
            let script = Script::new().set(|settings| {
                settings.limits.idle_timeout = Duration::from_millis(idle);
                settings.limits.connection_duration = Duration::from_millis(duration);
            });
            let mut bed = script.start().await;
            let mut client = bed.connect().await;
            let frame = client.receive().await;
            assert_eq!((frame.opcode, frame.payload.as_slice()), (CLOSE, b"\x03\xe9Going away".as_slice()));
            let event = bed.event_of("$disconnect").await;
            assert_eq!(event["requestContext"]["disconnectStatusCode"], 1001);
            assert_eq!(event["requestContext"]["disconnectReason"], "Going away");
            bed.assert_gone("POST", &client.id).await;
        }
    }

    #[tokio::test]
    async fn a_faster_clock_closes_connections_sooner_and_leaves_time_stamps_alone() {
        // Ten minutes, or two hours, in half a second. So fast, 29 s for a function would be less than 25 ms.
        for (speed, idle) in [("x1200", IDLE_TIMEOUT), ("x14400", Duration::from_secs(24 * 60 * 60))] {
            let script = Script::new().set(|settings| {
                settings.limits.clock = speed.parse().unwrap();
                settings.limits.idle_timeout = idle;
            });
            let slow = |_| async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                Ok(Bytes::from(r#"{"statusCode":200,"body":"in time"}"#))
            };
            let mut bed = script.on_async("slow", slow).two_way("slow").start().await;
            let mut client = bed.connect().await;
            client.text(r#"{"action":"slow"}"#).await;
            assert_eq!(client.hears().await, "in time");
            let frame = client.receive().await;
            assert_eq!((frame.opcode, frame.payload.as_slice()), (CLOSE, b"\x03\xe9Going away".as_slice()));
            bed.event_of("slow").await;
            let context = bed.event_of("$disconnect").await["requestContext"].take();
            let open_ms = context["requestTimeEpoch"].as_i64().unwrap() - context["connectedAt"].as_i64().unwrap();
            assert!((450..60_000).contains(&open_ms), "{open_ms}");
        }
    }

    #[tokio::test]
    async fn handshakes_beyond_the_rate_are_refused_and_reach_no_function() {
        let mut bed = Script::new().set(|settings| settings.limits.connection_rate = 2).start().await;
        let mut statuses = Vec::new();
        for _ in 0..10 {
            statuses.push(bed.handshake("/dev", &[]).await.reply.status);
        }
        let accepted = statuses.iter().filter(|status| **status == 101).count();
        assert!((2..10).contains(&accepted) && statuses.contains(&429), "{statuses:?}");
        // Each was dropped at once, so $disconnects and later $connects are mixed.
        let mut connected = 0;
        for _ in 0..2 * accepted {
            connected += usize::from(bed.event().await["requestContext"]["routeKey"] == "$connect");
        }
        assert_eq!(connected, accepted);
        assert!(bed.events.is_empty());
    }

    /// The frame's form is inferred.
    #[tokio::test]
    async fn messages_and_posts_beyond_the_rate_are_answered_and_reach_nobody() {
        let script =
            Script::new().set(|settings| (settings.limits.request_rate, settings.limits.request_burst) = (0, 2));
        let mut bed = script.start().await;
        let mut client = bed.connect().await;
        client.text(r#"{"action":"sendMessage"}"#).await;
        bed.event_of("sendMessage").await;
        assert_eq!(bed.call("POST", &client.id, b"hello").await.status, 200);
        assert_eq!(client.hears().await, "hello");

        client.text(r#"{"action":"sendMessage"}"#).await;
        let frame = client.hears().await;
        let request_id = serde_json::from_str::<Value>(&frame).unwrap()["requestId"].clone();
        assert_eq!(frame, error_frame("Too Many Requests", &client.id, &request_id));
        let reply = bed.call("POST", &client.id, b"never").await;
        let expected = (429, Some("LimitExceededException"));
        assert_eq!((reply.status, reply.header("x-amzn-errortype")), expected);
        client.frame(true, CLOSE, b"").await;
        assert_eq!(client.closed().await, None);
        bed.event_of("$disconnect").await;
    }

    /// That the sender of a message is told so is inferred.
    #[tokio::test]
    async fn a_throttled_function_is_a_500_or_an_error_frame() {
        let throttled = |_| async { Err(FunctionError::throttled()) };
        let mut bed = Script::new().on_async("$connect", throttled).start().await;
        assert_eq!(bed.handshake("/dev", &[]).await.reply.status, 500);
        bed.event_of("$connect").await;

        let mut bed = Script::new().on_async("sendMessage", throttled).start().await;
        let mut client = bed.connect().await;
        client.text(r#"{"action":"sendMessage"}"#).await;
        let event = bed.event_of("sendMessage").await;
        let expected = error_frame("Internal server error", &client.id, &event["requestContext"]["requestId"]);
        assert_eq!(client.hears().await, expected);
    }

    /// That a handshake is answered with 504 is inferred.
    #[tokio::test]
    async fn a_function_that_takes_longer_than_the_gateway_waits_is_a_504_or_an_error_frame() {
        let slow = |_| std::future::pending();
        let quick = |settings: &mut Settings| settings.limits.integration_timeout = Duration::from_millis(50);
        let mut bed = Script::new().on_async("sendMessage", slow).set(quick).start().await;
        let mut client = bed.connect().await;
        client.text(r#"{"action":"sendMessage"}"#).await;
        let event = bed.event_of("sendMessage").await;
        let expected = error_frame("Endpoint request timed out", &client.id, &event["requestContext"]["requestId"]);
        assert_eq!(client.hears().await, expected);

        for (knob, status) in [(504, 504), (502, 502)] {
            let script = Script::new().on_async("$connect", slow).set(quick);
            let mut bed = script.set(|settings| settings.knobs.connect_timeout_status = knob).start().await;
            assert_eq!(bed.handshake("/dev", &[]).await.reply.status, status);
            bed.event_of("$connect").await;
        }
    }
}

#[tokio::test]
async fn an_ordinary_client_library_connects_talks_and_closes() {
    use futures_util::{SinkExt, StreamExt};
    use tokio_tungstenite::tungstenite::Message;

    let mut bed = Script::new().start().await;
    let url = format!("ws://{}/dev?userId=2", bed.address);
    let (mut socket, response) = tokio_tungstenite::connect_async(url).await.unwrap();
    assert_eq!(response.status(), 101);
    let event = bed.event_of("$connect").await;
    let id = event["requestContext"]["connectionId"].as_str().unwrap();
    socket.send(Message::text(r#"{"action":"sendMessage"}"#)).await.unwrap();
    bed.event_of("sendMessage").await;
    bed.call("POST", id, "x".repeat(100 * KIB).as_bytes()).await;
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("x".repeat(100 * KIB)));
    socket.close(None).await.unwrap();
    while let Some(message) = socket.next().await {
        message.unwrap();
    }
    assert_eq!(bed.event_of("$disconnect").await["requestContext"]["disconnectStatusCode"], 1005);
}

#[tokio::test]
async fn a_shutdown_closes_connections_with_1012_and_waits_for_their_disconnects() {
    let disconnected = Arc::new(AtomicUsize::new(0));
    let counter = disconnected.clone();
    let script = Script::new().on_async("$disconnect", move |_| {
        let counter = counter.clone();
        async move {
            tokio::task::yield_now().await;
            counter.fetch_add(1, Ordering::Relaxed);
            Ok(OK.into())
        }
    });
    let mut bed = script.start().await;
    let (mut first, mut second) = (bed.connect().await, bed.connect().await);
    bed.stop.send(()).unwrap();
    for client in [&mut first, &mut second] {
        let frame = client.receive().await;
        assert_eq!((frame.opcode, &frame.payload[..2]), (CLOSE, 1012_u16.to_be_bytes().as_slice()));
        assert_eq!(&frame.payload[2..], b"Service restart");
        client.frame(true, CLOSE, &frame.payload).await;
    }
    tokio::time::timeout(SOON, bed.server).await.expect("still serving").unwrap().unwrap();
    assert_eq!(disconnected.load(Ordering::Relaxed), 2);
    assert!(TcpStream::connect(bed.address).await.is_err(), "still listening");
    for _ in 0..2 {
        let event = tokio::time::timeout(SOON, bed.events.recv()).await.unwrap().unwrap();
        assert_eq!(event["requestContext"]["disconnectStatusCode"], 1012);
    }
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_ever_for_a_function() {
    let script = Script::new().on_async("sendMessage", |_| std::future::pending());
    let mut bed = script.start().await;
    let mut client = bed.connect().await;
    client.text(r#"{"action":"sendMessage"}"#).await;
    bed.event_of("sendMessage").await;
    bed.stop.send(()).unwrap();
    tokio::time::timeout(SOON, bed.server).await.expect("still serving").unwrap().unwrap();
}

/// What nobody knows about AWS: only that each knob does what it says.
mod knobs {
    use super::*;

    #[tokio::test]
    async fn sizes_are_settings() {
        let script = Script::new().set(|settings| {
            settings.limits.frame_limit = 10;
            settings.limits.message_limit = 12;
            settings.limits.url_limit = 100;
            settings.knobs.outbound_fragment = 5;
        });
        let mut bed = script.start().await;
        assert_eq!(bed.handshake(&format!("/dev?{}", "x".repeat(100)), &[]).await.reply.status, 414);
        for frames in [&[b"12345678901".as_slice()][..], &[b"1234567890", b"123"]] {
            let mut client = bed.connect().await;
            assert_eq!(bed.call("POST", &client.id, b"123456789012").await.status, 200);
            assert_eq!(client.message().await, ("123456789012".to_owned(), vec![5, 5, 2]));
            assert_eq!(bed.call("POST", &client.id, b"1234567890123").await.status, 413);
            client.fragments(frames).await;
            assert_eq!(client.closed().await, Some(1009));
            bed.event_of("$disconnect").await;
        }

        let mut bed = Script::new().set(|settings| settings.knobs.outbound_fragment = 0).start().await;
        let mut client = bed.connect().await;
        bed.call("POST", &client.id, &vec![b'x'; 100 * KIB]).await;
        assert_eq!(client.message().await.1, [100 * KIB]);
    }

    #[tokio::test]
    async fn a_post_that_is_not_utf8_is_mended_or_refused() {
        for (knob, status, received) in
            [(NonUtf8Post::Lossy, 200, "a\u{fffd}b"), (NonUtf8Post::Refuse, 400, "the next")]
        {
            let mut bed = Script::new().set(|settings| settings.knobs.non_utf8_post = knob).start().await;
            let mut client = bed.connect().await;
            assert_eq!(bed.call("POST", &client.id, b"a\xffb").await.status, status);
            bed.call("POST", &client.id, b"the next").await;
            assert_eq!(client.hears().await, received);
        }
    }

    #[tokio::test]
    async fn a_malformed_id_can_be_gone_like_any_other() {
        let bed = Script::new().set(|settings| settings.knobs.id_validation = IdValidation::None).start().await;
        bed.assert_gone("POST", "abc").await;
    }

    #[tokio::test]
    async fn the_reasons_of_a_deletion_and_of_a_loss_can_be_chosen() {
        let script = Script::new().set(|settings| {
            settings.knobs.delete_close_reason = "bye".to_owned();
            settings.knobs.abnormal_reason = "lost".to_owned();
        });
        let mut bed = script.start().await;
        let mut client = bed.connect().await;
        bed.call("DELETE", &client.id, b"").await;
        assert_eq!(client.receive().await.payload, b"\x03\xe8bye");
        drop(client);
        assert_eq!(bed.event_of("$disconnect").await["requestContext"]["disconnectReason"], "bye");
        drop(bed.connect().await);
        assert_eq!(bed.event_of("$disconnect").await["requestContext"]["disconnectReason"], "lost");
    }

    #[tokio::test]
    async fn events_can_have_the_nulls_of_2020() {
        let mut bed = Script::new().set(|settings| settings.knobs.null_style = NullStyle::Explicit).start().await;
        drop(bed.connect().await);
        let event = bed.event_of("$disconnect").await;
        let context = event["requestContext"].as_object().unwrap();
        assert_eq!(
            (context.get("messageId"), context["disconnectStatusCode"].as_u64()),
            (Some(&Value::Null), Some(1006))
        );
        assert_eq!((keys(&event["requestContext"]).len(), keys(&context["identity"]).len()), (16, 12));
    }

    #[tokio::test]
    async fn a_missing_status_code_can_be_a_200() {
        let script = Script::new().on("$connect", "{}").on("sendMessage", "{}");
        let mut bed = script.set(|settings| settings.knobs.missing_status_code = MissingStatusCode::Ok).start().await;
        let mut client = bed.connect().await;
        client.text(r#"{"action":"sendMessage"}"#).await;
        bed.event_of("sendMessage").await;
        bed.call("POST", &client.id, b"no error before this").await;
        assert_eq!(client.hears().await, "no error before this");
    }

    #[tokio::test]
    async fn a_message_that_is_not_strictly_json_can_be_routed_by_its_action() {
        let message = "{\"action\":\"sendMessage\", body:\"hello\" /* é */}";
        for (lenient_json, route_key) in [(false, "$default"), (true, "sendMessage")] {
            let mut bed = Script::new().set(|settings| settings.knobs.lenient_json = lenient_json).start().await;
            let mut client = bed.connect().await;
            let deep = format!("{{action: 'sendMessage', deep: {}{}}}", "[".repeat(511), "]".repeat(511));
            for message in [message, &deep] {
                client.text(message).await;
                assert_eq!(bed.event_of(route_key).await["body"], message);
            }
        }
    }

    #[tokio::test]
    async fn an_error_status_of_a_one_way_route_can_be_told() {
        let script = Script::new().on("sendMessage", r#"{"statusCode":400,"body":"secret"}"#);
        let mut bed =
            script.set(|settings| settings.knobs.oneway_error_status = OnewayErrorStatus::ErrorFrame).start().await;
        let mut client = bed.connect().await;
        client.text(r#"{"action":"sendMessage"}"#).await;
        let event = bed.event_of("sendMessage").await;
        let expected = error_frame("Internal server error", &client.id, &event["requestContext"]["requestId"]);
        assert_eq!(client.hears().await, expected);
    }

    #[tokio::test]
    async fn pings_can_keep_a_connection_from_being_idle() {
        for (resets, survives) in [(false, false), (true, true)] {
            let script = Script::new().set(|settings| {
                settings.limits.idle_timeout = Duration::from_secs(1);
                settings.knobs.ping_resets_idle = resets;
            });
            let mut bed = script.start().await;
            let mut client = bed.connect().await;
            let start = Instant::now();
            // As fast as they are answered, so that none is late however slow the machine is.
            let closed = loop {
                client.frame(true, PING, b"").await;
                if client.receive().await.opcode == CLOSE {
                    break true;
                }
                if start.elapsed() > Duration::from_secs(2) {
                    break false;
                }
            };
            assert_eq!(closed, !survives);
        }
    }

    #[tokio::test]
    async fn a_throttled_message_can_be_dropped_in_silence() {
        let script = Script::new().set(|settings| {
            (settings.limits.request_rate, settings.limits.request_burst) = (0, 1);
            settings.knobs.throttle_frame = ThrottleFrame::None;
        });
        let mut bed = script.start().await;
        let mut client = bed.connect().await;
        client.text(r#"{"action":"sendMessage"}"#).await;
        client.text(r#"{"action":"boom"}"#).await;
        bed.event_of("sendMessage").await;
        client.frame(true, CLOSE, b"").await;
        assert_eq!(client.closed().await, None);
        bed.event_of("$disconnect").await;
    }

    /// What of a client's messages is too many for AWS is unknown.
    #[tokio::test]
    async fn a_client_that_sends_too_many_messages_can_be_closed_with_1008() {
        for (rate, admitted) in [(Some(0), 0), (Some(5), 5)] {
            let mut bed = Script::new().set(|settings| settings.knobs.client_message_rate = rate).start().await;
            let mut client = bed.connect().await;
            client.raw(&masked(true, TEXT, b"hello").repeat(200)).await;
            assert_eq!(client.receive().await.payload, b"\x03\xf0Too many requests");
            bed.assert_gone("POST", &client.id).await;
            // The last messages and $disconnect run side by side.
            let (mut routed, mut code) = (0, Value::Null);
            while code.is_null() || routed < admitted {
                let context = bed.event().await["requestContext"].take();
                match context["routeKey"].as_str() {
                    Some("$disconnect") => code = context["disconnectStatusCode"].clone(),
                    route_key => {
                        assert_eq!(route_key, Some("$default"));
                        routed += 1;
                    }
                }
            }
            assert_eq!(code, 1008);
        }
    }

    #[tokio::test]
    async fn the_messages_of_a_client_are_counted_for_it_alone_and_not_without_a_rate() {
        for rate in [Some(1), None] {
            let mut bed = Script::new().set(|settings| settings.knobs.client_message_rate = rate).start().await;
            for _ in 0..3 {
                let mut client = bed.connect().await;
                let messages = if rate.is_some() { 1 } else { 200 };
                client.raw(&masked(true, TEXT, b"hello").repeat(messages)).await;
                for _ in 0..messages {
                    bed.event_of("$default").await;
                }
                client.frame(true, CLOSE, b"").await;
                assert_eq!(client.closed().await, None);
                bed.event_of("$disconnect").await;
            }
        }
    }

    #[tokio::test]
    async fn a_post_to_a_connection_that_is_being_made_can_hang() {
        let gate = Arc::new(Semaphore::new(0));
        let opened = gate.clone();
        let script = Script::new().on_async("$connect", move |_| {
            let gate = gate.clone();
            async move {
                gate.acquire().await.unwrap().forget();
                Ok(OK.into())
            }
        });
        let mut bed = script.set(|settings| settings.knobs.post_to_pending = PostToPending::Hang).start().await;
        let mut tcp = bed.request("/dev", &[]).await;
        let id = bed.event_of("$connect").await["requestContext"]["connectionId"].as_str().unwrap().to_owned();
        let mut post = std::pin::pin!(bed.call("POST", &id, b"hello"));
        assert!(tokio::time::timeout(A_WHILE, &mut post).await.is_err(), "answered before $connect ended");
        opened.add_permits(1);
        assert_eq!(post.await.status, 200);
        assert_eq!(Reply::read(&mut tcp).await.status, 101);
    }

    #[tokio::test]
    async fn a_client_that_leaves_during_connect_can_be_disconnected() {
        let gate = Arc::new(Semaphore::new(0));
        let opened = gate.clone();
        let script = Script::new().on_async("$connect", move |_| {
            let gate = gate.clone();
            async move {
                gate.acquire().await.unwrap().forget();
                Ok(OK.into())
            }
        });
        let knob = AbortDuringConnect::Disconnect;
        let mut bed = script.set(|settings| settings.knobs.abort_during_connect = knob).start().await;
        let tcp = bed.request("/dev", &[]).await;
        bed.event_of("$connect").await;
        drop(tcp);
        // Nothing tells when the gateway has seen the client leave; should it be later than this, the 101 fails and the
        // event is the same.
        tokio::time::sleep(A_WHILE).await;
        opened.add_permits(1);
        let event = bed.event_of("$disconnect").await;
        assert_eq!(event["requestContext"]["disconnectStatusCode"], 1006);
    }

    #[tokio::test]
    async fn signatures_can_be_left_out_or_verified() {
        let mut bed = Script::new().set(|settings| settings.knobs.sigv4 = Sigv4::Off).start().await;
        let client = bed.connect().await;
        let path = format!("/dev/@connections/{}", client.id);
        assert_eq!(bed.call_path("POST", &path, None, b"hello").await.status, 200);

        let bed = Script::new().set(|settings| settings.knobs.verify_signatures = true).start().await;
        assert_eq!(bed.call_path("POST", &path, None, b"hello").await.status, 403);
        let reply = bed.call_path("POST", &path, Some("execute-api"), b"hello").await;
        let expected = (403, Some("IncompleteSignatureException"));
        assert_eq!((reply.status, reply.header("x-amzn-errortype")), expected);
    }

    #[tokio::test]
    async fn the_domain_name_can_be_fixed() {
        let domain_name = Some("ws.example.com".to_owned());
        let mut bed = Script::new().set(|settings| settings.knobs.domain_name = domain_name).start().await;
        drop(bed.handshake("/dev", &[]).await);
        assert_eq!(bed.event_of("$connect").await["requestContext"]["domainName"], "ws.example.com");
        let event = bed.event_of("$disconnect").await;
        assert_eq!(event["requestContext"]["domainName"], "ws.example.com");
    }
}

/// `--deflate negotiate`. Of AWS only one answer to one offer is recorded; how messages are compressed is RFC 7692, and
/// every close code is inferred.
mod compression {
    use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

    use super::*;

    /// What browsers and npm's ws offer.
    const USUAL: &str = "permessage-deflate; client_max_window_bits";
    const ANSWER: &str = "permessage-deflate;server_max_window_bits=12";

    fn script() -> Script {
        Script::new().set(|settings| settings.knobs.deflate = Deflate::Negotiate)
    }

    async fn connect(bed: &mut Bed, offer: &str) -> (Client, Codec) {
        (bed.connect_with(&[("Sec-WebSocket-Extensions", offer)]).await, Codec::new())
    }

    /// A client's side: a compressor and a decompressor for all messages of a connection.
    struct Codec {
        deflate: Compress,
        inflate: Decompress,
    }

    impl Codec {
        fn new() -> Self {
            Self { deflate: Compress::new(Compression::default(), false), inflate: Decompress::new(false) }
        }

        fn compressed(&mut self, message: &[u8]) -> Vec<u8> {
            let mut compressed = Vec::with_capacity(message.len() + KIB);
            self.deflate.compress_vec(message, &mut compressed, FlushCompress::Sync).unwrap();
            assert!(compressed.len() < compressed.capacity());
            assert_eq!(compressed.split_off(compressed.len() - 4), [0, 0, 0xff, 0xff]);
            compressed
        }

        fn inflated(&mut self, payload: &[u8]) -> String {
            let mut message = Vec::with_capacity(129 * KIB);
            let payload = [payload, &[0, 0, 0xff, 0xff]].concat();
            self.inflate.decompress_vec(&payload, &mut message, FlushDecompress::Sync).unwrap();
            String::from_utf8(message).unwrap()
        }

        /// The next message, which must be compressed, and the sizes of its frames.
        async fn message(&mut self, client: &mut Client) -> (String, Vec<usize>) {
            let (payload, sizes) = client.frames(RSV1 | TEXT).await;
            (self.inflated(&payload), sizes)
        }
    }

    /// Text in characters of three bytes that is not much shorter when it is compressed.
    fn noise(length: usize) -> String {
        let mut random = fastrand::Rng::with_seed(7);
        std::iter::repeat_with(|| random.char('\u{800}'..='\u{ffff}')).take(length / 3).collect()
    }

    #[tokio::test]
    async fn an_offer_is_answered_as_recorded() {
        let mut bed = script().start().await;
        for (offer, answer) in [
            ("permessage-deflate; server_max_window_bits=12; client_max_window_bits=12", Some(ANSWER)),
            // Inferred.
            (USUAL, Some(ANSWER)),
            ("permessage-deflate; server_max_window_bits=7", None),
            ("permessage-bzip2", None),
        ] {
            let (mut client, mut codec) = connect(&mut bed, offer).await;
            assert_eq!(client.reply.header("sec-websocket-extensions"), answer, "{offer}");
            client.text("not compressed").await;
            assert_eq!(bed.event_of("$default").await["body"], "not compressed");
            bed.call("POST", &client.id, b"hello").await;
            if answer.is_some() {
                assert_eq!(codec.message(&mut client).await.0, "hello");
            } else {
                assert_eq!(client.hears().await, "hello");
            }
            drop(client);
            bed.event_of("$disconnect").await;
        }
        assert_eq!(bed.connect().await.reply.header("sec-websocket-extensions"), None);
    }

    #[tokio::test]
    async fn messages_refer_to_earlier_ones() {
        let mut bed = script().start().await;
        let (mut client, mut codec) = connect(&mut bed, USUAL).await;
        let message = format!("{} ěščřžýáíé 🐎 {}", noise(KIB), noise(KIB));
        let mut sizes = Vec::new();
        for _ in 0..3 {
            let compressed = codec.compressed(message.as_bytes());
            client.frame(true, RSV1 | TEXT, &compressed).await;
            assert_eq!(bed.event_of("$default").await["body"], message);
            assert_eq!(bed.call("POST", &client.id, message.as_bytes()).await.status, 200);
            let (received, frames) = codec.message(&mut client).await;
            assert_eq!(received, message);
            sizes.push((compressed.len(), frames[0]));
        }
        assert!(sizes[1].0 * 4 < sizes[0].0 && sizes[1].1 * 4 < sizes[0].1, "{sizes:?}");
        // Nor is the order of the kinds fixed.
        client.text("not compressed").await;
        assert_eq!(bed.event_of("$default").await["body"], "not compressed");
        client.frame(true, RSV1 | TEXT, &codec.compressed(message.as_bytes())).await;
        assert_eq!(bed.event_of("$default").await["body"], message);
        client.frame(true, RSV1 | TEXT, b"\0").await;
        assert_eq!(bed.event_of("$default").await["body"], "");
    }

    #[tokio::test]
    async fn what_a_client_wants_of_the_gateways_side_is_kept_to() {
        let mut bed = script().start().await;
        let offer = "permessage-deflate; server_no_context_takeover; server_max_window_bits=9";
        let (mut client, _) = connect(&mut bed, offer).await;
        let answer = "permessage-deflate;server_max_window_bits=9;server_no_context_takeover";
        assert_eq!(client.reply.header("sec-websocket-extensions"), Some(answer));
        let message = noise(2 * KIB).repeat(40);
        for _ in 0..3 {
            bed.call("POST", &client.id, message.as_bytes()).await;
            // One that knows nothing of earlier messages.
            let (received, sizes) = Codec::new().message(&mut client).await;
            assert_eq!(received, message);
            // In a window of 512 bytes nothing is repeated.
            assert!(sizes.iter().sum::<usize>() > message.len() / 2, "{sizes:?}");
        }
    }

    #[tokio::test]
    async fn a_compressed_message_comes_in_fragments_and_pings_between_them() {
        let mut bed = script().start().await;
        let (mut client, mut codec) = connect(&mut bed, USUAL).await;
        let message = noise(30 * KIB);
        for parts in [2, 7, 1000] {
            let compressed = codec.compressed(message.as_bytes());
            let frames: Vec<_> = compressed.chunks(compressed.len().div_ceil(parts)).collect();
            let (last, others) = frames.split_last().unwrap();
            for (index, part) in others.iter().enumerate() {
                client.frame(false, if index == 0 { RSV1 | TEXT } else { CONTINUATION }, part).await;
            }
            client.frame(true, PING, b"are you there").await;
            assert_eq!(client.receive().await, Frame { fin: true, opcode: PONG, payload: b"are you there".to_vec() });
            client.frame(true, CONTINUATION, last).await;
            assert_eq!(bed.event_of("$default").await["body"], message);
        }
    }

    #[tokio::test]
    async fn frames_are_counted_compressed_and_messages_inflated() {
        let mut bed = script().start().await;
        let (mut client, mut codec) = connect(&mut bed, USUAL).await;
        let message = "x".repeat(128 * KIB);
        client.frame(true, RSV1 | TEXT, &codec.compressed(message.as_bytes())).await;
        assert_eq!(bed.event_of("$default").await["body"], message);

        let compressed = codec.compressed(noise(128 * KIB).as_bytes());
        let (fits, rest) = compressed.split_at(32 * KIB);
        client.frame(false, RSV1 | TEXT, fits).await;
        for (index, part) in rest.chunks(32 * KIB).enumerate() {
            client.frame(index == (rest.len() - 1) / (32 * KIB), CONTINUATION, part).await;
        }
        assert_eq!(bed.event_of("$default").await["body"], noise(128 * KIB));

        for opcode in [RSV1 | TEXT, RSV1 | BINARY] {
            let (mut client, mut codec) = connect(&mut bed, USUAL).await;
            client.frame(true, opcode, &codec.compressed(noise(128 * KIB).as_bytes())[..32 * KIB + 1]).await;
            assert_eq!(client.closed().await, Some(1009), "a frame that is too long");
            assert_eq!(bed.event_of("$disconnect").await["requestContext"]["disconnectStatusCode"], 1009);
        }
        for (length, what) in [(128 * KIB + 1, "a byte too many"), (30_000 * KIB, "a bomb")] {
            let (mut client, mut codec) = connect(&mut bed, USUAL).await;
            let compressed = codec.compressed(&vec![b'x'; length]);
            assert!(compressed.len() < 32 * KIB, "{}", compressed.len());
            client.frame(true, RSV1 | TEXT, &compressed).await;
            assert_eq!(client.closed().await, Some(1009), "{what}");
            assert_eq!(bed.event_of("$disconnect").await["requestContext"]["disconnectStatusCode"], 1009);
        }
    }

    #[tokio::test]
    async fn what_is_compressed_wrongly_is_closed_with_its_code_and_reaches_no_route() {
        let mut bed = script().start().await;
        let mut codec = Codec::new();
        let mut fresh = |message: &[u8]| {
            codec.deflate.reset();
            codec.compressed(message)
        };
        let (whole, binary, broken) = (fresh(b"hello hello hello"), fresh(b"hello"), fresh(b"\xff\xfe"));
        for (frames, code, what) in [
            (vec![(true, RSV1 | TEXT, b"hello".to_vec())], 1007, "no compressed data"),
            (vec![(true, RSV1 | TEXT, whole[..4].to_vec())], 1007, "half of a message"),
            (vec![(false, RSV1 | TEXT, whole[..4].to_vec()), (true, CONTINUATION, vec![])], 1007, "half, in fragments"),
            (vec![(true, RSV1 | TEXT, broken)], 1007, "no UTF-8"),
            (vec![(true, RSV1 | BINARY, binary)], 1003, "bytes"),
            (vec![(false, RSV1 | TEXT, whole[..4].to_vec()), (true, RSV1, whole[4..].to_vec())], 1002, "RSV1 twice"),
            (vec![(false, RSV1 | TEXT, whole.clone()), (true, RSV1 | TEXT, whole.clone())], 1002, "two at once"),
            (vec![(false, RSV1 | TEXT, whole.clone()), (true, TEXT, whole.clone())], 1002, "one in another"),
            (vec![(false, TEXT, b"x".to_vec()), (true, RSV1 | TEXT, whole.clone())], 1002, "another in one"),
            (vec![(true, RSV1 | PING, b"hello".to_vec())], 1002, "a ping"),
            (vec![(true, RSV1 | CONTINUATION, whole.clone())], 1002, "a continuation of nothing"),
            (vec![(true, 0x60 | TEXT, whole.clone())], 1002, "RSV2"),
            (vec![(true, RSV1 | 0x3, whole.clone())], 1002, "no opcode"),
        ] {
            let (mut client, _) = connect(&mut bed, USUAL).await;
            for (fin, opcode, payload) in frames {
                client.frame(fin, opcode, &payload).await;
            }
            assert_eq!(client.closed().await, Some(code), "{what}");
            assert_eq!(bed.event_of("$disconnect").await["requestContext"]["disconnectStatusCode"], code, "{what}");
        }
        let (mut client, _) = connect(&mut bed, USUAL).await;
        client.raw(b"\xc1\x05hello").await;
        assert_eq!(client.closed().await, Some(1002), "an unmasked frame");
        bed.event_of("$disconnect").await;

        // Where it has not been negotiated: because of the knob, or of the offer.
        for (mut bed, offer) in [(Script::new().start().await, USUAL), (bed, "permessage-bzip2")] {
            let (mut client, _) = connect(&mut bed, offer).await;
            client.frame(true, RSV1 | TEXT, &whole).await;
            assert_eq!(client.closed().await, Some(1002), "{offer}");
        }
    }

    #[tokio::test]
    async fn it_is_the_compressed_message_that_is_cut_into_frames() {
        for (fragment, most) in [(32 * KIB, 32 * KIB), (1000, 1000), (0, usize::MAX)] {
            let mut bed = script().set(|settings| settings.knobs.outbound_fragment = fragment).start().await;
            let (mut client, mut codec) = connect(&mut bed, USUAL).await;
            for message in [noise(100 * KIB), "x".repeat(100 * KIB)] {
                assert_eq!(bed.call("POST", &client.id, message.as_bytes()).await.status, 200);
                let (received, sizes) = codec.message(&mut client).await;
                assert_eq!(received, message);
                assert!(sizes.iter().all(|size| *size <= most), "{sizes:?}");
                let compressed: usize = sizes.iter().sum();
                assert_eq!(sizes.len(), compressed.div_ceil(most));
            }
            bed.call("DELETE", &client.id, b"").await;
            assert_eq!(client.closed().await, Some(1000));
        }
    }
}

mod faults_on_demand {
    use super::*;

    #[tokio::test]
    async fn a_disconnect_can_be_lost_and_the_connection_is_gone_all_the_same() {
        let mut bed = Script::new().fault("lost-disconnect=1").start().await;
        let mut client = bed.connect().await;
        client.frame(true, CLOSE, b"").await;
        assert_eq!(client.closed().await, None);
        bed.assert_gone("POST", &client.id).await;
        bed.assert_nothing_invoked().await;
    }

    #[tokio::test]
    async fn posts_can_be_refused_though_the_connection_is_open() {
        for (fault, status, error_type) in [
            ("gone=1", 410, "GoneException"),
            ("throttle=1", 429, "LimitExceededException"),
            ("error=1", 500, "InternalServerErrorException"),
        ] {
            let mut bed = Script::new().fault(fault).start().await;
            let mut client = bed.connect().await;
            let reply = bed.call("POST", &client.id, b"hello").await;
            assert_eq!((reply.status, reply.header("x-amzn-errortype")), (status, Some(error_type)), "{fault}");
            assert_eq!(bed.call("GET", &client.id, b"").await.status, 200);
            client.text("hello").await;
            bed.event_of("$default").await;
        }
    }

    #[tokio::test]
    async fn the_same_posts_fail_in_every_run_with_the_same_seed() {
        let mut runs = Vec::new();
        for _ in 0..2 {
            let mut bed = Script::new().fault("gone=0.5").start().await;
            let client = bed.connect().await;
            let mut statuses = Vec::new();
            for _ in 0..20 {
                statuses.push(bed.call("POST", &client.id, b"hello").await.status);
            }
            assert!(statuses.contains(&200) && statuses.contains(&410), "{statuses:?}");
            runs.push(statuses);
        }
        assert_eq!(runs[0], runs[1]);
    }

    #[tokio::test]
    async fn posts_can_be_slow_or_hang_without_holding_up_a_shutdown() {
        let mut bed = Script::new().fault("post-delay=100ms").start().await;
        let client = bed.connect().await;
        let start = Instant::now();
        assert_eq!(bed.call("POST", &client.id, b"hello").await.status, 200);
        assert!(start.elapsed() >= Duration::from_millis(100));

        let mut bed = Script::new().fault("hang=1").start().await;
        let client = bed.connect().await;
        let path = format!("/dev/@connections/{}", client.id);
        let mut tcp = TcpStream::connect(bed.address).await.unwrap();
        let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nauthorization: {SIGNED}\r\n\r\n");
        tcp.write_all(head.as_bytes()).await.unwrap();
        assert!(tokio::time::timeout(A_WHILE, tcp.read_u8()).await.is_err(), "answered");
        bed.stop.send(()).unwrap();
        tokio::time::timeout(SOON, bed.server).await.expect("still serving").unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_client_that_is_gone_can_go_unnoticed_until_it_is_idle() {
        let script = Script::new().fault("half-open=1");
        let mut bed = script.set(|settings| settings.limits.idle_timeout = Duration::from_millis(500)).start().await;
        let tcp = bed.request_to_reset("/dev").await;
        let Client { id, .. } = bed.connect_on(tcp).await;
        let mut posts = 0;
        while posts < 40 {
            assert_eq!(bed.call("POST", &id, b"hello").await.status, 200);
            posts += 1;
        }
        let event = bed.event_of("$disconnect").await;
        assert_eq!(event["requestContext"]["disconnectStatusCode"], 1001);
        bed.assert_gone("POST", &id).await;
    }

    #[tokio::test]
    async fn the_gateway_can_fail_at_a_message() {
        let mut bed = Script::new().fault("internal-error=1").start().await;
        let mut client = bed.connect().await;
        assert_eq!(bed.call("POST", &client.id, b"hello").await.status, 200);
        assert_eq!(client.hears().await, "hello");
        client.text("hello").await;
        assert_eq!(client.receive().await.payload, b"\x03\xf3Internal server error");
        let event = bed.event_of("$disconnect").await;
        assert_eq!(event["requestContext"]["disconnectStatusCode"], 1011);
        bed.assert_gone("POST", &client.id).await;
        bed.assert_nothing_invoked().await;
    }

    #[tokio::test]
    async fn messages_can_overtake_each_other() {
        let mut bed = Script::new().fault("message-delay=100ms").start().await;
        let mut client = bed.connect().await;
        let sent: Vec<_> = (0..20).map(|number| number.to_string()).collect();
        for text in &sent {
            client.text(text).await;
        }
        let mut received = Vec::new();
        for _ in &sent {
            received.push(bed.event_of("$default").await["body"].as_str().unwrap().to_owned());
        }
        assert_ne!(received, sent);
        received.sort_by_key(|text| text.parse::<u8>().unwrap());
        assert_eq!(received, sent);
    }

    /// Sends texts at once to a gateway with these faults, and says in which order functions are invoked with them,
    /// which never end.
    async fn order(faults: &[&str], seed: u64) -> Vec<usize> {
        let mut script = Script::new().on_async("$default", |_| std::future::pending());
        script.faults.seed = seed;
        let mut bed = faults.iter().fold(script, |script, fault| script.fault(fault)).start().await;
        let mut client = bed.connect().await;
        let texts: Vec<_> = (0..40).flat_map(|number| masked(true, TEXT, number.to_string().as_bytes())).collect();
        client.raw(&texts).await;
        let mut order = Vec::new();
        for _ in 0..40 {
            order.push(bed.event_of("$default").await["body"].as_str().unwrap().parse().unwrap());
        }
        order
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn messages_can_be_put_in_another_order_that_the_seed_decides() {
        let sent: Vec<_> = (0..40).collect();
        let pairs: Vec<_> = sent.chunks(2).flat_map(|pair| [pair[1], pair[0]]).collect();
        assert_eq!(order(&["reorder-messages=0"], 7).await, sent);
        assert_eq!(order(&["reorder-messages=1"], 7).await, pairs);
        assert_eq!(order(&["reorder-messages=1", "message-delay=20ms"], 7).await, pairs);
        let some = order(&["reorder-messages=0.3"], 7).await;
        assert!(some != sent && some != pairs, "{some:?}");
        assert_ne!(order(&["reorder-messages=0.3"], 8).await, some);
        for _ in 0..10 {
            assert_eq!(order(&["reorder-messages=0.3"], 7).await, some);
        }
    }

    #[tokio::test]
    async fn a_message_that_is_held_back_is_not_lost_with_its_connection() {
        let mut bed = Script::new().fault("reorder-messages=1").start().await;
        let mut client = bed.connect().await;
        client.text("hello").await;
        client.frame(true, CLOSE, b"").await;
        let events = [bed.event().await, bed.event().await];
        let mut keys = events.each_ref().map(|event| event["requestContext"]["routeKey"].as_str().unwrap());
        keys.sort_unstable();
        assert_eq!(keys, ["$default", "$disconnect"]);

        // Alone, it is late.
        let mut client = bed.connect().await;
        let start = Instant::now();
        client.text("hello").await;
        bed.event_of("$default").await;
        assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    }

    const SIGNED: &str = "AWS4-HMAC-SHA256 Credential=AK/20240120/us-east-1/execute-api/aws4_request";
}

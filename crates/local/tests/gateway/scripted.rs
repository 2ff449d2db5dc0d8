//! The test gateway: a gateway with scripted functions, and helpers for its clients and callers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};
use switchboard_local::access;
use switchboard_local::faults::{self, Faults};
use switchboard_local::gateway::settings::{Behaviour, Limits};
use switchboard_local::gateway::{Authorizer, Definition, Functions, Gateway, Integration, Paths, Settings};
use switchboard_local::lambda::FunctionError;
use switchboard_tests::wire::{self, Client, Reply, SOON, Tcp};
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

pub const OK: &str = r#"{"statusCode":200}"#;
pub const KIB: usize = 1024;

/// The answer of a function.
pub type Answer = Result<Bytes, FunctionError>;

pub fn ok() -> Answer {
    Ok(OK.into())
}

pub fn error() -> Answer {
    Err(FunctionError { error_type: "Runtime.ExitError".to_owned(), error_message: "exit status 1".to_owned() })
}

/// The handshake key of the RFC's example (section 1.3).
pub const RFC_6455_KEY: (&str, &str) = ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");

/// An API whose functions answer by a script and record their events.
pub struct ScriptedApi {
    settings: Settings,
    pub faults: faults::Settings,
    api: Definition,
    functions: Functions,
    record: mpsc::UnboundedSender<Value>,
    events: mpsc::UnboundedReceiver<Value>,
}

impl ScriptedApi {
    /// Makes an API with the usual routes, which answer 200, and the route `boom`, which fails.
    pub fn new() -> Self {
        let (record, events) = mpsc::unbounded_channel();
        let api = Definition {
            api_id: "abcdef1234".to_owned(),
            arn: "arn:aws:execute-api:us-east-1:123456789012:abcdef1234".to_owned(),
            stage: "dev".to_owned(),
            stage_variables: BTreeMap::new(),
            paths: Paths { stage: Some("dev".to_owned()), ..Paths::default() },
            route_selection_expression: "$request.body.action".to_owned(),
            routes: BTreeMap::new(),
            two_way_routes: BTreeSet::new(),
            request_models: BTreeMap::new(),
            authorizer: None,
            is_iam_authorized: false,
            api_keys: None,
        };
        let script = Self {
            settings: Settings::default(),
            faults: faults::Settings::default(),
            api,
            functions: Functions::default(),
            record,
            events,
        };
        let script = script.on("$connect", OK).on("$disconnect", OK).on("$default", OK).on("sendMessage", OK);
        script.on_async("boom", |_| async { error() })
    }

    pub fn limits(mut self, set: impl FnOnce(&mut Limits)) -> Self {
        set(&mut self.settings.limits);
        self
    }

    pub fn behaviour(mut self, set: impl FnOnce(&mut Behaviour)) -> Self {
        set(&mut self.settings.behaviour);
        self
    }

    pub fn authorizer<R>(
        mut self,
        identity_sources: &[&str],
        function: impl Fn(Value) -> R + Send + Sync + 'static,
    ) -> Self
    where
        R: Future<Output = Answer> + Send + 'static,
    {
        let function = self.function("authorizer", function);
        let identity_sources = identity_sources.iter().map(|source| (*source).to_owned()).collect();
        self.api.authorizer = Some(Authorizer { function, identity_sources });
        self
    }

    pub fn fault(mut self, fault: &str) -> Self {
        self.faults.faults.push(fault.parse().unwrap());
        self
    }

    pub fn two_way(mut self, route_key: &str) -> Self {
        self.api.two_way_routes.insert(route_key.to_owned());
        self
    }

    pub fn on(self, route_key: &str, answer: &'static str) -> Self {
        self.on_async(route_key, move |_| async move { Ok(Bytes::from(answer)) })
    }

    pub fn on_async<R>(mut self, route_key: &str, function: impl Fn(Value) -> R + Send + Sync + 'static) -> Self
    where
        R: Future<Output = Answer> + Send + 'static,
    {
        let function = self.function(route_key, function);
        self.api.routes.insert(route_key.to_owned(), function);
        self
    }

    /// Makes the function of a route wait for a permit of `gate` before it answers.
    pub fn on_held(self, route_key: &str, gate: &Arc<Semaphore>, answer: fn() -> Answer) -> Self {
        let gate = gate.clone();
        self.on_async(route_key, move |_| {
            let gate = gate.clone();
            async move {
                gate.acquire().await.unwrap().forget();
                answer()
            }
        })
    }

    /// Adds a function that records its events, and returns its key.
    fn function<R>(&mut self, key: &str, function: impl Fn(Value) -> R + Send + Sync + 'static) -> String
    where
        R: Future<Output = Answer> + Send + 'static,
    {
        let record = self.record.clone();
        let integration: Arc<dyn Integration> = Arc::new(move |event: Bytes| {
            let event: Value = serde_json::from_slice(&event).unwrap();
            let _ = record.send(event.clone());
            function(event)
        });
        self.functions.integrations.insert(key.to_owned(), integration);
        key.to_owned()
    }

    /// Starts a gateway with this API and connects a client to it.
    pub async fn connected(self) -> (TestGateway, Client) {
        let mut gateway = self.start().await;
        let client = gateway.connect().await;
        (gateway, client)
    }

    pub async fn start(self) -> TestGateway {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let faults = Arc::new(Faults::new(&self.faults));
        let gateway = Gateway::new(self.api, self.functions, self.settings, access::Settings::default(), faults);
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(Arc::new(gateway).serve(vec![listener], async {
            let _ = stopped.await;
        }));
        TestGateway { address, events: self.events, stop: Some(stop), server }
    }
}

/// A running gateway.
pub struct TestGateway {
    pub address: SocketAddr,
    /// The events of invocations that the test has not consumed.
    pub events: mpsc::UnboundedReceiver<Value>,
    stop: Option<oneshot::Sender<()>>,
    server: JoinHandle<std::io::Result<()>>,
}

impl TestGateway {
    /// Returns the event of the next invocation.
    pub async fn event(&mut self) -> Value {
        tokio::time::timeout(SOON, self.events.recv()).await.expect("no invocation").unwrap()
    }

    /// Returns the event of the next invocation, which must be of this route.
    pub async fn event_of(&mut self, route_key: &str) -> Value {
        let event = self.event().await;
        assert_eq!(event["requestContext"]["routeKey"], route_key, "{event}");
        event
    }

    /// Returns the `requestContext` of the next event, which must be of a `$disconnect`.
    pub async fn disconnected(&mut self) -> Value {
        self.event_of("$disconnect").await["requestContext"].take()
    }

    /// Sends a message for this route from a client, and returns its event.
    pub async fn invoke(&mut self, client: &mut Client, route_key: &str) -> Value {
        client.text(&json!({ "action": route_key }).to_string()).await;
        self.event_of(route_key).await
    }

    /// Sends a message for this route, whose function fails. Returns the error that the client receives.
    pub async fn failure(&mut self, client: &mut Client, route_key: &str) -> String {
        let event = self.invoke(client, route_key).await;
        let (message, request_id) = client.hears_error().await;
        assert_eq!(event["requestContext"]["requestId"], request_id);
        message
    }

    /// Asserts that the gateway closes the connection with this code, and that `$disconnect` has the same code.
    pub async fn assert_closes(&mut self, client: &mut Client, code: u16, why: &str) {
        assert_eq!(client.closed_without_echo().await, Some(code), "{why}");
        assert_eq!(self.disconnected().await["disconnectStatusCode"], code, "{why}");
    }

    /// Asserts that no function has been invoked since the last recorded event. It connects a client, whose `$connect`
    /// must be the next event.
    pub async fn assert_nothing_invoked(&mut self) {
        let _client = self.connect().await;
    }

    pub async fn dial(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends the request of a handshake and does not wait for the answer.
    pub async fn request(&self, path: &str, headers: &[(&str, &str)]) -> Tcp {
        self.request_on(self.dial().await, path, headers).await
    }

    /// Sends the request of a handshake with the RFC's key. The client resets TCP when it is dropped.
    pub async fn request_to_reset(&self, path: &str) -> Tcp {
        let tcp = self.dial().await;
        tcp.set_zero_linger().unwrap();
        self.request_on(tcp, path, &[RFC_6455_KEY]).await
    }

    async fn request_on(&self, tcp: TcpStream, path: &str, headers: &[(&str, &str)]) -> Tcp {
        wire::request(BufReader::new(Box::new(tcp)), &self.address.to_string(), path, headers).await
    }

    /// Makes a handshake, which may be refused.
    pub async fn handshake(&self, path: &str, headers: &[(&str, &str)]) -> Client {
        Client::accept(self.request(path, headers).await).await
    }

    /// Connects a client and consumes its `$connect` event.
    pub async fn connect(&mut self) -> Client {
        self.connect_with(&[]).await
    }

    pub async fn connect_with(&mut self, headers: &[(&str, &str)]) -> Client {
        let tcp = self.request("/dev", headers).await;
        self.connect_on(tcp).await
    }

    /// Connects the client that has sent its request on `tcp`.
    pub async fn connect_on(&mut self, tcp: Tcp) -> Client {
        let mut client = Client::accept(tcp).await;
        assert_eq!(client.reply.status, 101, "{}", client.reply.body);
        client.id = connection_id(&self.event_of("$connect").await);
        client
    }

    /// Calls the management API with a signature.
    pub async fn call(&self, method: &str, id: &str, body: &[u8]) -> Reply {
        self.call_path(method, &format!("/dev/@connections/{id}"), Some("execute-api"), body).await
    }

    pub async fn call_path(&self, method: &str, path: &str, service: Option<&str>, body: &[u8]) -> Reply {
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

    pub async fn assert_gone(&self, method: &str, id: &str) {
        let reply = self.call(method, id, b"hello").await;
        assert_eq!(reply.error(), (410, Some("GoneException")), "{method}");
        assert_eq!(reply.header("content-type"), Some("application/json"));
        assert_eq!((reply.header("content-length"), reply.body.as_str()), (Some("0"), ""));
    }

    /// Stops the gateway, as Ctrl-C does.
    pub fn interrupt(&mut self) {
        self.stop = None;
    }

    /// Waits for the end of the gateway.
    pub async fn ended(&mut self) {
        tokio::time::timeout(SOON, &mut self.server).await.expect("still serving").unwrap().unwrap();
    }
}

pub fn connection_id(event: &Value) -> String {
    event["requestContext"]["connectionId"].as_str().unwrap().to_owned()
}

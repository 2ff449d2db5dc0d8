//! The API that rows try: that of `tests/fixture/conformance.yml`, on a stack of our own or where somebody has deployed it.

use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use aws_sdk_apigatewaymanagement::config::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use switchboard_tests::stack::{Stack, matching, root};
use switchboard_tests::wire::{Client, Reply};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

use crate::endpoint::Endpoint;

const SERVICE: &str = "tests/fixture/conformance.yml";

/// A query with which `$connect` returns `response`.
pub fn connect_returns(response: &Value) -> String {
    format!("?do=respond&response={}", encoded(&response.to_string()))
}

pub fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// A message to a two-way route that answers with `response`.
pub fn echo_returns(response: &Value) -> Value {
    json!({"action": "echo", "do": "respond", "response": response})
}

tokio::task_local! {
    /// The id of the row that is tried.
    pub static ROW: &'static str;
}

/// A row's claim about the functions that get an event with a text in it. Only the log of a stack that has ended shows
/// that no function got one later.
#[derive(Debug)]
struct Claim {
    row: &'static str,
    text: String,
    /// The route keys of all events, sorted.
    routes: Vec<String>,
}

pub struct Api {
    pub endpoint: Endpoint,
    /// For calls of `@connections`.
    pub credentials: Credentials,
    pub region: String,
    stack: Option<Stack>,
    /// The folder of a service that was written for one row.
    _folder: Option<TempDir>,
    serial: Mutex<u32>,
    claims: Mutex<Vec<Claim>>,
}

impl Drop for Api {
    fn drop(&mut self) {
        let claims = self.claims.get_mut().unwrap();
        assert!(claims.is_empty() || std::thread::panicking(), "the row does not call `end`, which checks {claims:?}");
    }
}

impl Api {
    /// An API that somebody else runs.
    #[expect(clippy::disallowed_methods, reason = "credentials are where the AWS CLI looks for them, too")]
    pub fn elsewhere(endpoint: Endpoint) -> Self {
        let variable = |name: &str| std::env::var(name).ok();
        let or_local = |name: &str| variable(name).unwrap_or_else(|| "local".to_owned());
        let (key, secret) = (or_local("AWS_ACCESS_KEY_ID"), or_local("AWS_SECRET_ACCESS_KEY"));
        let credentials = Credentials::new(key, secret, variable("AWS_SESSION_TOKEN"), None, "environment");
        let of_host = endpoint.authority.split('.').nth(2).filter(|_| endpoint.authority.contains(".amazonaws."));
        let region = of_host.map(str::to_owned).or_else(|| variable("AWS_REGION"));
        let mut api = Self::at(endpoint);
        (api.credentials, api.region) = (credentials, region.unwrap_or_else(|| "us-east-1".to_owned()));
        api
    }

    fn at(endpoint: Endpoint) -> Self {
        let credentials = Credentials::new("local", "local", Some("local".to_owned()), None, "ours");
        let region = "us-east-1".to_owned();
        let (serial, claims) = (Mutex::default(), Mutex::default());
        Self { endpoint, credentials, region, stack: None, _folder: None, serial, claims }
    }

    /// The API on a stack of our own with these flags.
    pub async fn ours(flags: &[&str]) -> Self {
        Self::of(&root().join(SERVICE), flags).await
    }

    async fn of(service: &Path, flags: &[&str]) -> Self {
        let stack = Stack::with(&[&["--config", service.to_str().unwrap()], flags].concat()).await;
        let endpoint = Endpoint::parse(&format!("ws://{}/dev", stack.gateway)).unwrap();
        let mut api = Self::at(endpoint);
        api.stack = Some(stack);
        api
    }

    /// The API on a stack of our own, with each `(from, to)` replaced in its serverless.yml.
    pub async fn edited(edits: &[(&str, &str)], flags: &[&str]) -> Self {
        let mut text = std::fs::read_to_string(root().join(SERVICE)).unwrap();
        for (from, to) in edits {
            assert!(text.contains(from), "{SERVICE} has no {from}");
            text = text.replace(from, to);
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("conformance.yml");
        std::fs::write(&file, text).unwrap();
        let mut api = Self::of(&file, flags).await;
        api._folder = Some(folder);
        api
    }

    /// Our own stack. Its log shows the events of all functions.
    pub fn stack(&self) -> &Stack {
        self.stack.as_ref().expect("this row reads the log of our own stack")
    }

    pub fn is_ours(&self) -> bool {
        self.stack.is_some()
    }

    /// Ends our own stack as Ctrl-C does, fails if it refutes a claim, and returns every event that a function got.
    pub async fn end(self) -> Vec<Value> {
        let (events, refuted) = self.finish().await;
        assert!(refuted.is_empty(), "{refuted:#?}");
        events
    }

    /// Ends the stack if it is ours. Returns every event that a function got, and each claim that its log refutes: the
    /// row, and what the log shows.
    pub async fn finish(mut self) -> (Vec<Value>, Vec<(&'static str, String)>) {
        let claims = std::mem::take(self.claims.get_mut().unwrap());
        let Some(stack) = self.stack.take() else { return (Vec::new(), Vec::new()) };
        let lines = matching(&stack.whole_log().await, &[EVENT]);
        let refuted = claims.into_iter().filter_map(|Claim { row, text, routes }| {
            let mut invoked: Vec<_> = matching(&lines, &[&text]).iter().map(|line| route_key(&event(line))).collect();
            invoked.sort_unstable();
            (invoked != routes).then(|| (row, format!("{text} has reached {invoked:?} and not {routes:?}")))
        });
        let refuted = refuted.collect();
        (lines.iter().map(|line| event(line)).collect(), refuted)
    }

    /// A text that nothing else in this run has.
    pub fn token(&self) -> String {
        let mut serial = self.serial.lock().unwrap();
        *serial += 1;
        format!("token{serial}x{}", std::process::id())
    }

    /// Makes a handshake with the stage, whatever its outcome. `query` is empty or `?…`.
    pub async fn handshake(&self, query: &str, headers: &[(&str, &str)]) -> Client {
        self.handshake_path(&format!("{}{query}", self.endpoint.stage_path), headers).await
    }

    pub async fn handshake_path(&self, path: &str, headers: &[(&str, &str)]) -> Client {
        Client::accept(self.endpoint.request(path, headers).await).await
    }

    /// Connects a client, which then knows its connection's id.
    pub async fn connect(&self) -> Client {
        self.connect_with("", &[]).await
    }

    pub async fn connect_with(&self, query: &str, headers: &[(&str, &str)]) -> Client {
        let mut client = self.handshake(query, headers).await;
        assert_eq!(client.reply.status, 101, "{}", client.reply.body);
        self.learn_id(&mut client).await;
        client
    }

    /// Has the client ask for its connection's id.
    pub async fn learn_id(&self, client: &mut Client) {
        let event = client.ask(&json!({"action": "echo"})).await;
        client.id = event["requestContext"]["connectionId"].as_str().unwrap().to_owned();
    }

    /// The event of a route of this connection, from the log.
    pub async fn event(&self, connection_id: &str, route_key: &str) -> Value {
        let parts = [connection_id, &format!(r#""routeKey":"{route_key}""#), EVENT];
        event(&self.stack().logged(1, &parts).await[0])
    }

    /// The event with this token in it, from the log.
    pub async fn event_with(&self, token: &str) -> Value {
        event(&self.stack().logged(1, &[token, EVENT]).await[0])
    }

    /// Waits until a function has got the event with this token, where that can be seen.
    pub async fn wait_for_event(&self, token: &str) {
        if self.is_ours() {
            self.event_with(token).await;
        }
    }

    /// The events so far whose line in the log has this text. There may be none.
    pub fn events(&self, text: &str) -> Vec<Value> {
        self.stack().log(&[text, EVENT]).iter().map(|line| event(line)).collect()
    }

    /// Claims that exactly these routes, in any order, get an event with this text, such as a connection's id. `end`
    /// checks the claim, so the `$disconnect` of a connection is always one of its routes.
    pub fn claim_invoked(&self, text: &str, routes: &[&str]) {
        if self.is_ours() {
            let mut routes: Vec<_> = routes.iter().map(|route| (*route).to_owned()).collect();
            routes.sort_unstable();
            self.claims.lock().unwrap().push(Claim { row: ROW.get(), text: text.to_owned(), routes });
        }
    }

    /// Calls `@connections` with a signature.
    pub async fn call(&self, method: &str, connection_id: &str, body: &[u8]) -> Reply {
        let path = format!("{}/@connections/{}", self.endpoint.stage_path, connection_id.replace('=', "%3D"));
        self.call_path(method, &path, Some("execute-api"), body).await
    }

    pub async fn post(&self, connection_id: &str, body: &str) -> u16 {
        self.call("POST", connection_id, body.as_bytes()).await.status
    }

    /// Posts to an open connection and checks that its client has heard nothing before: posts arrive in order.
    pub async fn assert_nothing_sent(&self, client: &mut Client) {
        let text = self.token();
        assert_eq!(self.post(&client.id, &text).await, 200);
        assert_eq!(client.hears().await, text);
    }

    /// Calls a path with a signature for `service`, or without one.
    pub async fn call_path(&self, method: &str, path: &str, service: Option<&str>, body: &[u8]) -> Reply {
        let scheme = if self.endpoint.secure { "https" } else { "http" };
        let url = format!("{scheme}://{}{path}", self.endpoint.authority);
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-length: {}\r\n",
            self.endpoint.authority,
            body.len()
        );
        if let Some(service) = service {
            let identity = self.credentials.clone().into();
            let params = v4::SigningParams::builder()
                .identity(&identity)
                .region(&self.region)
                .name(service)
                .time(SystemTime::now())
                .settings(SigningSettings::default())
                .build()
                .unwrap();
            let headers = [("host", self.endpoint.authority.as_str())];
            let request = SignableRequest::new(method, url, headers.into_iter(), SignableBody::Bytes(body)).unwrap();
            let (signed, _) = sign(request, &params.into()).unwrap().into_parts().0.into_parts();
            for header in signed {
                head += &format!("{}: {}\r\n", header.name(), header.value());
            }
        }
        head += "\r\n";
        let mut tcp = self.endpoint.dial().await;
        // The other side may refuse before it has read the body.
        let _ = tcp.write_all(&[head.as_bytes(), body].concat()).await;
        Reply::read(&mut tcp).await
    }

    /// Checks that a call to this id is answered like one to a closed connection.
    pub async fn assert_gone(&self, method: &str, connection_id: &str) {
        let reply = self.call(method, connection_id, b"hello").await;
        assert_eq!(reply.error(), (410, Some("GoneException")), "{method}");
        assert_eq!(reply.body, "", "{method}");
    }

    /// Waits until a connection is gone.
    pub async fn gone(&self, connection_id: &str) {
        let deadline = tokio::time::Instant::now() + switchboard_tests::wire::SOON;
        while self.call("GET", connection_id, b"").await.status != 410 {
            assert!(tokio::time::Instant::now() < deadline, "{connection_id} is still open");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Each line that the fixture prints for an event contains this.
const EVENT: &str = r#""fixture":"event""#;

pub fn route_key(event: &Value) -> String {
    event["requestContext"]["routeKey"].as_str().unwrap().to_owned()
}

/// The event in a line that the fixture printed.
fn event(line: &str) -> Value {
    serde_json::from_str::<Value>(line.split_once(" | ").unwrap().1).unwrap()["event"].take()
}

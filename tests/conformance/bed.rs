//! The test bed: the API of `tests/fixture/conformance.yml`, on a stack of our own or wherever it has been deployed.

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

/// What a row says of the functions that were invoked with a text in their event. A stack must have ended before it is
/// known that no function was invoked later.
#[derive(Debug)]
struct Claim {
    row: &'static str,
    text: String,
    /// The route keys of all events, sorted.
    routes: Vec<String>,
}

pub struct Bed {
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

impl Drop for Bed {
    fn drop(&mut self) {
        let claims = self.claims.get_mut().unwrap();
        assert!(claims.is_empty() || std::thread::panicking(), "the row does not call `end`, which checks {claims:?}");
    }
}

impl Bed {
    /// An API that somebody else runs.
    #[expect(clippy::disallowed_methods, reason = "credentials are where the AWS CLI looks for them, too")]
    pub fn elsewhere(endpoint: Endpoint) -> Self {
        let variable = |name: &str| std::env::var(name).ok();
        let or_local = |name: &str| variable(name).unwrap_or_else(|| "local".to_owned());
        let (key, secret) = (or_local("AWS_ACCESS_KEY_ID"), or_local("AWS_SECRET_ACCESS_KEY"));
        let credentials = Credentials::new(key, secret, variable("AWS_SESSION_TOKEN"), None, "environment");
        let of_host = endpoint.authority.split('.').nth(2).filter(|_| endpoint.authority.contains(".amazonaws."));
        let region = of_host.map(str::to_owned).or_else(|| variable("AWS_REGION"));
        let mut bed = Self::at(endpoint);
        (bed.credentials, bed.region) = (credentials, region.unwrap_or_else(|| "us-east-1".to_owned()));
        bed
    }

    fn at(endpoint: Endpoint) -> Self {
        let credentials = Credentials::new("local", "local", Some("local".to_owned()), None, "ours");
        let region = "us-east-1".to_owned();
        let (serial, claims) = (Mutex::default(), Mutex::default());
        Self { endpoint, credentials, region, stack: None, _folder: None, serial, claims }
    }

    /// The test bed on a stack of our own with these flags.
    pub async fn ours(flags: &[&str]) -> Self {
        Self::of(&root().join(SERVICE), flags).await
    }

    async fn of(service: &Path, flags: &[&str]) -> Self {
        let stack = Stack::with(&[&["--config", service.to_str().unwrap()], flags].concat()).await;
        let endpoint = Endpoint::parse(&format!("ws://{}/dev", stack.gateway)).unwrap();
        let mut bed = Self::at(endpoint);
        bed.stack = Some(stack);
        bed
    }

    /// The test bed with each `(from, to)` replaced in its serverless.yml.
    pub async fn edited(edits: &[(&str, &str)], flags: &[&str]) -> Self {
        let mut text = std::fs::read_to_string(root().join(SERVICE)).unwrap();
        for (from, to) in edits {
            assert!(text.contains(from), "{SERVICE} has no {from}");
            text = text.replace(from, to);
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("conformance.yml");
        std::fs::write(&file, text).unwrap();
        let mut bed = Self::of(&file, flags).await;
        bed._folder = Some(folder);
        bed
    }

    /// Our own stack, when it is one: its log tells what functions were invoked with.
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

    /// Ends the stack, if it is ours, and returns every event that a function got, and what was claimed in vain: the
    /// row and what is true.
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

    /// A handshake with the stage, `query` being nothing or `?…`, whatever its outcome.
    pub async fn handshake(&self, query: &str, headers: &[(&str, &str)]) -> Client {
        self.handshake_path(&format!("{}{query}", self.endpoint.stage_path), headers).await
    }

    pub async fn handshake_path(&self, path: &str, headers: &[(&str, &str)]) -> Client {
        Client::accept(self.endpoint.request(path, headers).await).await
    }

    /// A client that is connected and knows its connection's id.
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

    /// The events so far whose line in the log has this text, which may be none.
    pub fn events(&self, text: &str) -> Vec<Value> {
        self.stack().log(&[text, EVENT]).iter().map(|line| event(line)).collect()
    }

    /// Claims that exactly these routes, in any order, get an event with this text, such as a connection's id. That is
    /// checked in the log of our own stack, once it has ended, so a connection's `$disconnect` is always among them.
    pub fn claim_invoked(&self, text: &str, routes: &[&str]) {
        if self.is_ours() {
            let mut routes: Vec<_> = routes.iter().map(|route| (*route).to_owned()).collect();
            routes.sort_unstable();
            self.claims.lock().unwrap().push(Claim { row: ROW.get(), text: text.to_owned(), routes });
        }
    }

    /// Calls `@connections`, signed.
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

    /// Calls a path, signed for `service` if it is given.
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
        // A refusal may come before the body has been read.
        let _ = tcp.write_all(&[head.as_bytes(), body].concat()).await;
        Reply::read(&mut tcp).await
    }

    /// That a connection's id is answered as those of closed connections are.
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

/// What is in each line that the fixture prints of an event.
const EVENT: &str = r#""fixture":"event""#;

pub fn route_key(event: &Value) -> String {
    event["requestContext"]["routeKey"].as_str().unwrap().to_owned()
}

/// The event in a line that the fixture printed.
fn event(line: &str) -> Value {
    serde_json::from_str::<Value>(line.split_once(" | ").unwrap().1).unwrap()["event"].take()
}

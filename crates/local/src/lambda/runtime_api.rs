//! The [Runtime API](https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html) of one process.
//!
//! Each execution environment has its own server, as on AWS, so a call does not have to name its caller. The API page
//! does not define refusals and sizes; these follow AWS's Runtime Interface Emulator. Not here: telemetry, SnapStart's `restore`
//! endpoints, and response streaming.

use std::future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::header::{HOST, ORIGIN, REFERER};
use axum::http::{HeaderName, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use bytes::Bytes;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::FunctionError;
use super::extensions::{About, Extensions};

/// The largest response: 6 MiB plus 100 bytes, as the emulator reads the "6 MB" on
/// <https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html>.
const RESPONSE_LIMIT_BYTES: usize = 6 * 1024 * 1024 + 100;

/// A running server. It stops when this and every copy of `server` are dropped.
pub(super) struct RuntimeApi {
    /// The server's address: `AWS_LAMBDA_RUNTIME_API`.
    pub(super) address: SocketAddr,
    /// The calls of the process.
    pub(super) calls: mpsc::UnboundedReceiver<Call>,
    /// The extensions of the process.
    pub(super) extensions: Extensions,
    /// Keeps the server running: a process that ends gracefully must not lose it before.
    pub(super) server: Arc<Server>,
}

/// The task of a server.
#[derive(Debug)]
pub(super) struct Server(JoinHandle<()>);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub(super) enum Call {
    /// The process waits for an event. The poll is closed when the process has gone away.
    Next(oneshot::Sender<Invocation>),
    /// The init of the process failed.
    InitError(FunctionError),
}

/// One event for the process, and the values of the headers that `next` adds.
pub(super) struct Invocation {
    pub(super) request_id: Uuid,
    /// Epoch milliseconds.
    pub(super) deadline_ms: u128,
    pub(super) function_arn: String,
    pub(super) trace_id: String,
    pub(super) event: Bytes,
    pub(super) answer: oneshot::Sender<Result<Bytes, FunctionError>>,
}

impl RuntimeApi {
    /// Starts a server on a free port.
    pub(super) async fn start(about: About) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (sender, calls) = mpsc::unbounded_channel();
        let extensions = Extensions::new(about);
        let process =
            Arc::new(Process { calls: sender, state: Mutex::new(Phase::Init), extensions: extensions.clone() });
        let router = Router::new()
            .route("/2018-06-01/runtime/invocation/next", get(next))
            .route("/2018-06-01/runtime/invocation/{id}/response", post(response))
            .route("/2018-06-01/runtime/invocation/{id}/error", post(error))
            .route("/2018-06-01/runtime/init/error", post(init_error))
            .with_state(process)
            .merge(extensions.router())
            .layer(DefaultBodyLimit::disable())
            .layer(middleware::from_fn_with_state(address.to_string(), only_runtimes));
        // Events are small and a caller waits for each, so packets are sent at once.
        let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
        let server = tokio::spawn(async move {
            // This never returns: axum tries again after a failed accept.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { address, calls, extensions, server: Arc::new(Server(server)) })
    }
}

/// Headers that browsers send and runtimes do not. `Sec-Fetch-Mode` is not one of them: the `fetch` of Node sends it,
/// too.
const OF_BROWSERS: [HeaderName; 3] = [ORIGIN, REFERER, HeaderName::from_static("sec-fetch-site")];

/// Refuses requests of web pages. A page could otherwise take an event and answer in place of the function. A runtime
/// calls the address that it was given.
async fn only_runtimes(State(address): State<String>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let is_ours = headers.get_all(HOST).iter().all(|host| host.as_bytes() == address.as_bytes())
        && headers.contains_key(HOST)
        && request.uri().authority().is_none_or(|authority| authority.as_str() == address);
    if is_ours && !OF_BROWSERS.iter().any(|name| headers.contains_key(name)) {
        return next.run(request).await;
    }
    refusal(
        StatusCode::FORBIDDEN,
        "Forbidden",
        &format!("Only the function's process may call this, as http://{address}"),
    )
}

/// The state of the process, as its calls show it.
struct Process {
    calls: mpsc::UnboundedSender<Call>,
    state: Mutex<Phase>,
    extensions: Extensions,
}

enum Phase {
    Init,
    /// About to poll.
    Idle,
    Polling,
    Busy(Uuid, oneshot::Sender<Result<Bytes, FunctionError>>),
}

impl Process {
    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Completes the current invocation with `answer`. Returns false if the current invocation is not `id`.
    fn complete(&self, id: &str, answer: Result<Bytes, FunctionError>) -> bool {
        let mut phase = self.phase();
        if !matches!(&*phase, Phase::Busy(current, _) if current.to_string() == id) {
            return false;
        }
        if let Phase::Busy(_, sender) = std::mem::replace(&mut *phase, Phase::Idle) {
            // The send fails if the invocation has just timed out. Then nobody waits for the answer.
            let _ = sender.send(answer);
        }
        true
    }
}

/// A poll that waits. After the process has closed it, the process may poll again.
struct Waiting<'a>(&'a Process);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut phase = self.0.phase();
        if matches!(*phase, Phase::Polling) {
            *phase = Phase::Idle;
        }
    }
}

async fn next(State(process): State<Arc<Process>>) -> Response {
    {
        let mut phase = process.phase();
        if matches!(*phase, Phase::Polling | Phase::Busy(..)) {
            return invalid_state_transition();
        }
        *phase = Phase::Polling;
    }
    process.extensions.close();
    let _waiting = Waiting(&process);
    let (poll, invocation) = oneshot::channel();
    let _ = process.calls.send(Call::Next(poll));
    let Ok(invocation) = invocation.await else {
        // The environment is shutting down. A runtime treats a refused poll as a failure, so the poll gets no answer.
        return future::pending().await;
    };
    *process.phase() = Phase::Busy(invocation.request_id, invocation.answer);
    let headers = [
        ("content-type", "application/json".to_owned()),
        ("lambda-runtime-aws-request-id", invocation.request_id.to_string()),
        ("lambda-runtime-deadline-ms", invocation.deadline_ms.to_string()),
        ("lambda-runtime-invoked-function-arn", invocation.function_arn),
        ("lambda-runtime-trace-id", invocation.trace_id),
    ];
    (headers, invocation.event).into_response()
}

async fn response(State(process): State<Arc<Process>>, Path(id): Path<String>, body: Bytes) -> Response {
    let size_bytes = body.len();
    if size_bytes <= RESPONSE_LIMIT_BYTES {
        return if process.complete(&id, Ok(body)) { accepted() } else { invalid_request_id() };
    }
    let too_large = FunctionError::new(
        "Function.ResponseSizeTooLarge",
        format!(
            "Response payload size ({size_bytes} bytes) exceeded maximum allowed payload size ({RESPONSE_LIMIT_BYTES} bytes)."
        ),
    );
    if !process.complete(&id, Err(too_large)) {
        return invalid_request_id();
    }
    let message = format!("Exceeded maximum allowed payload size ({RESPONSE_LIMIT_BYTES} bytes).");
    refusal(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", &message)
}

async fn error(State(process): State<Arc<Process>>, Path(id): Path<String>, body: Bytes) -> Response {
    if process.complete(&id, Err(reported(&body))) { accepted() } else { invalid_request_id() }
}

async fn init_error(State(process): State<Arc<Process>>, body: Bytes) -> Response {
    if !matches!(*process.phase(), Phase::Init) {
        return invalid_state_transition();
    }
    let _ = process.calls.send(Call::InitError(reported(&body)));
    accepted()
}

/// Reads the error from the body of an `error` call. A body in another form becomes the message as a whole.
fn reported(body: &[u8]) -> FunctionError {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Report {
        error_type: String,
        #[serde(default)]
        error_message: String,
    }
    match serde_json::from_slice(body) {
        Ok(Report { error_type, error_message }) => FunctionError { error_type, error_message },
        Err(_) => FunctionError::new("Runtime.Unknown", String::from_utf8_lossy(body)),
    }
}

pub(super) fn accepted() -> Response {
    json(StatusCode::ACCEPTED, &serde_json::json!({ "status": "OK" }))
}

fn invalid_request_id() -> Response {
    refusal(StatusCode::BAD_REQUEST, "InvalidRequestID", "Invalid request ID")
}

fn invalid_state_transition() -> Response {
    refusal(StatusCode::FORBIDDEN, "InvalidStateTransition", "State transition is not allowed")
}

pub(super) fn refusal(status: StatusCode, error_type: &str, message: &str) -> Response {
    json(status, &serde_json::json!({ "errorMessage": message, "errorType": error_type }))
}

pub(super) fn json(status: StatusCode, body: &serde_json::Value) -> Response {
    (status, [("content-type", "application/json")], body.to_string()).into_response()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::body::Body;
    use http::{HeaderMap, Method, Request};
    use http_body_util::BodyExt;
    use hyper_util::client::legacy::Client;
    use hyper_util::rt::TokioExecutor;

    use super::*;

    #[tokio::test]
    async fn next_answers_with_the_event_and_its_headers() {
        let mut api = RuntimeApi::start(About::default()).await.unwrap();
        let next = poll(&api);
        let (id, _answer) = dispatch(&mut api).await;
        let (status, headers, body) = next.await.unwrap();
        assert_eq!((status, body.as_str()), (200, r#"{"n":1}"#));
        assert_eq!(headers["content-type"], "application/json");
        assert_eq!(headers["lambda-runtime-aws-request-id"], id.as_str());
        assert_eq!(headers["lambda-runtime-deadline-ms"], "1700000000123");
        assert_eq!(headers["lambda-runtime-invoked-function-arn"], "arn:aws:lambda:us-east-1:123456789012:function:f");
        assert_eq!(headers["lambda-runtime-trace-id"], "Root=1-0-0;Parent=0;Sampled=0");
    }

    #[tokio::test]
    async fn next_blocks_without_limit() {
        let mut api = RuntimeApi::start(About::default()).await.unwrap();
        let next = poll(&api);
        let Some(Call::Next(poll)) = api.calls.recv().await else { panic!("expected a poll") };
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(3600)).await;
        tokio::time::resume();
        let (invocation, _answer) = invocation();
        assert!(!next.is_finished() && poll.send(invocation).is_ok());
        assert_eq!(next.await.unwrap().0, 200);
    }

    #[tokio::test]
    async fn a_response_is_accepted_once() {
        let (api, id, answer) = busy().await;
        let path = format!("invocation/{id}/response");
        let (status, _, body) = call(api.address, Method::POST, &path, r#"{"statusCode":200}"#).await;
        assert_eq!((status, body.as_str()), (202, r#"{"status":"OK"}"#));
        assert_eq!(answer.await.unwrap().unwrap(), r#"{"statusCode":200}"#);

        let (status, _, body) = call(api.address, Method::POST, &path, "{}").await;
        assert_eq!((status, body.as_str()), (400, INVALID_REQUEST_ID));
    }

    #[tokio::test]
    async fn an_unknown_request_id_is_refused_and_changes_nothing() {
        let (api, id, answer) = busy().await;
        for path in ["invocation/00000000-0000-4000-8000-000000000000/response", "invocation/x/error"] {
            let (status, _, body) = call(api.address, Method::POST, path, "{}").await;
            assert_eq!((status, body.as_str()), (400, INVALID_REQUEST_ID));
        }
        call(api.address, Method::POST, &format!("invocation/{id}/response"), "1").await;
        assert_eq!(answer.await.unwrap().unwrap(), "1");
    }

    #[tokio::test]
    async fn a_reported_error_fails_the_invocation() {
        let (api, id, answer) = busy().await;
        let report = r#"{"errorMessage":"no","errorType":"My.Error","stackTrace":[]}"#;
        let (status, _, body) = call(api.address, Method::POST, &format!("invocation/{id}/error"), report).await;
        assert_eq!((status, body.as_str()), (202, r#"{"status":"OK"}"#));
        assert_eq!(answer.await.unwrap(), Err(FunctionError::new("My.Error", "no")));
    }

    #[tokio::test]
    async fn the_largest_response_passes_and_one_byte_more_fails_the_invocation() {
        let (api, id, answer) = busy().await;
        let path = format!("invocation/{id}/response");
        assert_eq!(call(api.address, Method::POST, &path, "x".repeat(RESPONSE_LIMIT_BYTES)).await.0, 202);
        assert_eq!(answer.await.unwrap().unwrap().len(), 6_291_556);

        let (api, id, answer) = busy().await;
        let path = format!("invocation/{id}/response");
        let (status, _, body) = call(api.address, Method::POST, &path, "x".repeat(RESPONSE_LIMIT_BYTES + 1)).await;
        assert_eq!(status, 413);
        assert!(body.contains(r#""errorType":"RequestEntityTooLarge""#), "{body}");
        assert_eq!(
            answer.await.unwrap().unwrap_err().to_string(),
            "Function.ResponseSizeTooLarge: Response payload size (6291557 bytes) exceeded maximum allowed payload size \
             (6291556 bytes)."
        );
    }

    #[tokio::test]
    async fn an_init_error_is_accepted_before_the_first_poll_only() {
        let mut api = RuntimeApi::start(About::default()).await.unwrap();
        let report = r#"{"errorMessage":"no table","errorType":"Runtime.InitError"}"#;
        let (status, _, body) = call(api.address, Method::POST, "init/error", report).await;
        assert_eq!((status, body.as_str()), (202, r#"{"status":"OK"}"#));
        let Some(Call::InitError(error)) = api.calls.recv().await else { panic!("expected an init error") };
        assert_eq!(error, FunctionError::new("Runtime.InitError", "no table"));

        let (api, ..) = busy().await;
        assert_eq!(call(api.address, Method::POST, "init/error", report).await.0, 403);
    }

    #[tokio::test]
    async fn a_poll_in_the_middle_of_an_event_is_refused() {
        let (api, ..) = busy().await;
        let (status, _, body) = call(api.address, Method::GET, "invocation/next", "").await;
        assert_eq!(status, 403);
        assert!(body.contains(r#""errorType":"InvalidStateTransition""#), "{body}");
    }

    #[tokio::test]
    async fn a_second_poll_is_refused_and_the_first_one_waits_on() {
        let mut api = RuntimeApi::start(About::default()).await.unwrap();
        let first = poll(&api);
        let Some(Call::Next(waiting)) = api.calls.recv().await else { panic!("expected a poll") };
        let (status, _, body) = call(api.address, Method::GET, "invocation/next", "").await;
        assert_eq!(status, 403);
        assert!(body.contains(r#""errorType":"InvalidStateTransition""#), "{body}");
        let (invocation, _answer) = invocation();
        assert!(waiting.send(invocation).is_ok());
        assert_eq!(first.await.unwrap().0, 200);
    }

    #[tokio::test]
    async fn a_process_that_hung_up_may_poll_again() {
        let mut api = RuntimeApi::start(About::default()).await.unwrap();
        let first = poll(&api);
        let Some(Call::Next(mut waiting)) = api.calls.recv().await else { panic!("expected a poll") };
        first.abort();
        waiting.closed().await;
        let second = poll(&api);
        dispatch(&mut api).await;
        assert_eq!(second.await.unwrap().0, 200);
    }

    #[tokio::test]
    async fn requests_of_browsers_are_refused_and_change_nothing() {
        let (api, id, answer) = busy().await;
        let other = format!("localhost:{}", api.address.port());
        let own = api.address.to_string();
        for (host, header) in [
            (own.as_str(), Some(("origin", "http://evil.example"))),
            (&own, Some(("origin", "http://localhost:5173"))),
            (&own, Some(("referer", "http://evil.example/"))),
            (&own, Some(("sec-fetch-site", "cross-site"))),
            ("evil.example", None),
            (&other, None),
        ] {
            for (method, path) in [
                (Method::GET, "invocation/next".to_owned()),
                (Method::POST, format!("invocation/{id}/response")),
                (Method::POST, format!("invocation/{id}/error")),
                (Method::POST, "init/error".to_owned()),
            ] {
                let uri = format!("http://{}/2018-06-01/runtime/{path}", api.address);
                let mut request = Request::builder().method(method).uri(uri).header("host", host);
                if let Some((name, value)) = header {
                    request = request.header(name, value);
                }
                let (status, _, body) = send(request.body("{}".into()).unwrap()).await;
                assert_eq!(status, 403, "{path} {host} {header:?}");
                assert!(body.contains(r#""errorType":"Forbidden""#), "{body}");
            }
        }
        // The `fetch` of Node sends this header.
        let uri = format!("http://{}/2018-06-01/runtime/invocation/{id}/response", api.address);
        let request = Request::post(uri).header("sec-fetch-mode", "cors").body("1".into()).unwrap();
        assert_eq!(send(request).await.0, 202);
        assert_eq!(answer.await.unwrap().unwrap(), "1");
    }

    #[tokio::test]
    async fn a_poll_is_closed_when_the_process_goes_away() {
        let mut api = RuntimeApi::start(About::default()).await.unwrap();
        let next = poll(&api);
        let Some(Call::Next(mut poll)) = api.calls.recv().await else { panic!("expected a poll") };
        next.abort();
        poll.closed().await;
    }

    const INVALID_REQUEST_ID: &str = r#"{"errorMessage":"Invalid request ID","errorType":"InvalidRequestID"}"#;

    type Answer = oneshot::Receiver<Result<Bytes, FunctionError>>;

    fn invocation() -> (Invocation, Answer) {
        let (answer, answered) = oneshot::channel();
        let invocation = Invocation {
            request_id: Uuid::new_v4(),
            deadline_ms: 1_700_000_000_123,
            function_arn: "arn:aws:lambda:us-east-1:123456789012:function:f".into(),
            trace_id: "Root=1-0-0;Parent=0;Sampled=0".into(),
            event: Bytes::from_static(br#"{"n":1}"#),
            answer,
        };
        (invocation, answered)
    }

    async fn dispatch(api: &mut RuntimeApi) -> (String, Answer) {
        let Some(Call::Next(poll)) = api.calls.recv().await else { panic!("expected a poll") };
        let (invocation, answer) = invocation();
        let id = invocation.request_id.to_string();
        assert!(poll.send(invocation).is_ok());
        (id, answer)
    }

    /// A server whose process has just taken an event.
    async fn busy() -> (RuntimeApi, String, Answer) {
        let mut api = RuntimeApi::start(About::default()).await.unwrap();
        let next = poll(&api);
        let (id, answer) = dispatch(&mut api).await;
        assert_eq!(next.await.unwrap().0, 200);
        (api, id, answer)
    }

    /// Polls for an event, as the process does.
    fn poll(api: &RuntimeApi) -> JoinHandle<(u16, HeaderMap, String)> {
        let address = api.address;
        tokio::spawn(async move { call(address, Method::GET, "invocation/next", "").await })
    }

    async fn call(address: SocketAddr, method: Method, path: &str, body: impl Into<Body>) -> (u16, HeaderMap, String) {
        let uri = format!("http://{address}/2018-06-01/runtime/{path}");
        send(Request::builder().method(method).uri(uri).body(body.into()).unwrap()).await
    }

    async fn send(request: Request<Body>) -> (u16, HeaderMap, String) {
        let response = Client::builder(TokioExecutor::new()).build_http().request(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (parts.status.as_u16(), parts.headers, String::from_utf8(body.to_vec()).unwrap())
    }
}

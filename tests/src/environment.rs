//! An execution environment that takes several events at once, as on Lambda Managed Instances: the process of a function, and a
//! Runtime API that answers as many polls at the same time as the process has. The local stack gives a process one event at a time.

use std::collections::HashMap;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot, watch};

use crate::stack::{PATIENCE, binaries};

/// The time that each event has.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A running function. Killed with the test.
#[derive(Debug)]
pub struct Environment {
    process: Child,
    api: Arc<Api>,
    events: mpsc::UnboundedSender<Event>,
    lines: watch::Receiver<Vec<String>>,
}

/// The answer of a function: its response, or its error.
pub type Answer = Result<Value, Value>;

#[derive(Debug)]
struct Event {
    payload: Value,
    answer: oneshot::Sender<Answer>,
}

#[derive(Debug)]
struct Api {
    waiting: tokio::sync::Mutex<mpsc::UnboundedReceiver<Event>>,
    answers: Mutex<HashMap<String, oneshot::Sender<Answer>>>,
    /// The polls, and the events that have no answer yet.
    busy: AtomicUsize,
    most_busy: AtomicUsize,
    events: AtomicUsize,
}

impl Environment {
    /// Starts a function of this repository, with these variables and nothing of the test's own.
    pub async fn start(function: &str, variables: &[(&str, &str)]) -> Self {
        let (events, waiting) = mpsc::unbounded_channel();
        let api = Arc::new(Api {
            waiting: waiting.into(),
            answers: Mutex::default(),
            busy: AtomicUsize::default(),
            most_busy: AtomicUsize::default(),
            events: AtomicUsize::default(),
        });
        let router = axum::Router::new()
            .route("/2018-06-01/runtime/invocation/next", get(next))
            .route("/2018-06-01/runtime/invocation/{id}/response", post(response))
            .route("/2018-06-01/runtime/invocation/{id}/error", post(error))
            .with_state(api.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });

        let lambda = [
            ("AWS_LAMBDA_RUNTIME_API", address.as_str()),
            ("AWS_LAMBDA_FUNCTION_NAME", function),
            ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "2048"),
            ("AWS_LAMBDA_FUNCTION_VERSION", "1"),
            ("AWS_LAMBDA_LOG_FORMAT", "JSON"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
        ];
        let mut command = Command::new(binaries().join(function));
        command.env_clear().envs(lambda).envs(variables.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().unwrap();
        let (sender, lines) = watch::channel(Vec::new());
        let mut stdout = BufReader::new(process.stdout.take().unwrap()).lines();
        tokio::spawn(async move {
            while let Some(line) = stdout.next_line().await.unwrap() {
                sender.send_modify(|lines: &mut Vec<String>| lines.push(line));
            }
        });
        Self { process, api, events, lines }
    }

    /// Gives the function an event, and waits for its answer.
    pub async fn invoke(&self, payload: Value) -> Answer {
        let (answer, answered) = oneshot::channel();
        self.events.send(Event { payload, answer }).unwrap();
        tokio::time::timeout(PATIENCE, answered).await.expect("the function did not answer").unwrap()
    }

    /// The most events that it has had or waited for at the same time.
    pub fn most_at_once(&self) -> usize {
        self.api.most_busy.load(Ordering::Relaxed)
    }

    /// Ends the process, and returns all that it has written.
    pub async fn whole_log(mut self) -> Vec<String> {
        self.process.kill().await.unwrap();
        let ended = async { while self.lines.changed().await.is_ok() {} };
        tokio::time::timeout(PATIENCE, ended).await.expect("the output did not end");
        self.lines.borrow().clone()
    }
}

async fn next(State(api): State<Arc<Api>>) -> impl IntoResponse {
    let busy = api.busy.fetch_add(1, Ordering::Relaxed) + 1;
    api.most_busy.fetch_max(busy, Ordering::Relaxed);
    let Event { payload, answer } = api.waiting.lock().await.recv().await.expect("the test goes on");
    let id = format!("invocation-{}", api.events.fetch_add(1, Ordering::Relaxed));
    api.answers.lock().unwrap().insert(id.clone(), answer);
    let deadline = SystemTime::UNIX_EPOCH.elapsed().unwrap() + TIMEOUT;
    let headers = [
        ("lambda-runtime-aws-request-id", id),
        ("lambda-runtime-deadline-ms", deadline.as_millis().to_string()),
        ("lambda-runtime-invoked-function-arn", "arn:aws:lambda:us-east-1:123456789012:function:test".to_owned()),
    ];
    (headers, Json(payload))
}

async fn response(State(api): State<Arc<Api>>, Path(id): Path<String>, response: Bytes) -> StatusCode {
    take(&api, &id, Ok(serde_json::from_slice(&response).unwrap()))
}

async fn error(State(api): State<Arc<Api>>, Path(id): Path<String>, error: Bytes) -> StatusCode {
    take(&api, &id, Err(serde_json::from_slice(&error).unwrap()))
}

fn take(api: &Api, id: &str, answer: Answer) -> StatusCode {
    api.busy.fetch_sub(1, Ordering::Relaxed);
    let waiting = api.answers.lock().unwrap().remove(id).expect("an event has one answer");
    // A test may have stopped to wait for it.
    let _ = waiting.send(answer);
    StatusCode::ACCEPTED
}

//! A message to very many receivers: the real functions on the local stack, and a gateway of this test that counts.
//!
//! The gateway takes posts at a rate and a burst, as an account does, and refuses the others with 429. Its connections are
//! rows of the tables and no sockets, so there may be a hundred thousand of them. In some runs one process of the function
//! `fan-out` is killed in the middle.
//!
//! Only counts are checked: each receiver must hear the message, and on an idle machine only once. A killed process may have
//! posted without noting it, so some receivers hear the message twice. `make fan-out` prints how long the message took, beside
//! the time that the rate allows.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use aws_sdk_dynamodb::types::{AttributeValue, PutRequest, WriteRequest};
use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::post;
use futures_util::{StreamExt, TryStreamExt, stream};
use switchboard_tests::stack::{NO_RULES, Stack, children, signal, table_name};
use tokio::sync::Notify;

/// How many posts of an environment of `fan-out` are in flight.
const POSTS_AT_ONCE: usize = 128;

/// A killed process may have posted to so many receivers without noting it: a checkpoint and the posts in flight.
const REPEATED: usize = 500 + POSTS_AT_ONCE;

/// The functions lease nine tenths of the rate that they are told. This test measures the lease at 0.995 of the gateway's.
const TOLD: f64 = 0.995 / 0.9;

/// A run that hears nothing for so long has lost the message.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a run does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) receivers: usize,
    /// Requests a second that the gateway takes. Its burst is half of that.
    pub(crate) rate: u32,
    /// The message is for everybody who is connected, instead of for the subscribers of a topic.
    pub(crate) to_everybody: bool,
    /// How many shards the streams have.
    pub(crate) shards: usize,
    /// The number of the post at which a process is killed.
    pub(crate) kill_at: Option<usize>,
    pub(crate) binaries: Option<&'static str>,
}

/// The gateway's side of the run.
struct Gateway {
    settings: Settings,
    /// How often each receiver has heard the message.
    heard: Vec<AtomicU32>,
    /// Receivers that have heard it.
    reached: AtomicUsize,
    posts: AtomicUsize,
    refused: AtomicUsize,
    bucket: Mutex<Bucket>,
    first: OnceLock<Instant>,
    /// When the last receiver heard it.
    last: OnceLock<Instant>,
    progress: Notify,
    is_killed: AtomicBool,
    stack: OnceLock<u32>,
}

/// Requests that may come at once.
struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl Gateway {
    fn takes(&self) -> bool {
        let mut bucket = self.bucket.lock().unwrap();
        let (rate, now) = (f64::from(self.settings.rate), Instant::now());
        let new = now.duration_since(bucket.filled).as_secs_f64() * rate;
        (bucket.tokens, bucket.filled) = ((bucket.tokens + new).min(rate / 2.0), now);
        let takes = bucket.tokens >= 1.0;
        if takes {
            bucket.tokens -= 1.0;
        }
        takes
    }
}

/// Answers a post.
async fn serve(State(gateway): State<Arc<Gateway>>, Path(id): Path<String>) -> StatusCode {
    gateway.first.get_or_init(Instant::now);
    let number = gateway.posts.fetch_add(1, Ordering::Relaxed);
    if gateway.settings.kill_at.is_some_and(|at| number >= at) && !gateway.is_killed.swap(true, Ordering::Relaxed) {
        kill(*gateway.stack.get().unwrap()).await;
    }
    if !gateway.takes() {
        gateway.refused.fetch_add(1, Ordering::Relaxed);
        return StatusCode::TOO_MANY_REQUESTS;
    }
    let receiver: usize = id.trim_end_matches('=').parse().unwrap();
    if gateway.heard[receiver].fetch_add(1, Ordering::Relaxed) == 0 {
        if gateway.reached.fetch_add(1, Ordering::Relaxed) + 1 == gateway.settings.receivers {
            gateway.last.set(Instant::now()).unwrap();
        }
        gateway.progress.notify_one();
    }
    StatusCode::OK
}

/// Kills one process of `fan-out`.
async fn kill(stack: u32) {
    let processes = children(stack).await;
    let (id, _) = processes.iter().find(|(_, command)| command == "fan-out").expect("no process of fan-out runs");
    signal("-KILL", *id).await;
}

/// Runs one message through, and prints what it took.
pub(crate) async fn run(settings: Settings) {
    let gateway = Arc::new(Gateway {
        settings,
        heard: (0..settings.receivers).map(|_| AtomicU32::new(0)).collect(),
        reached: AtomicUsize::new(0),
        posts: AtomicUsize::new(0),
        refused: AtomicUsize::new(0),
        bucket: Mutex::new(Bucket { tokens: f64::from(settings.rate) / 2.0, filled: Instant::now() }),
        first: OnceLock::new(),
        last: OnceLock::new(),
        progress: Notify::new(),
        is_killed: AtomicBool::new(false),
        stack: OnceLock::new(),
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("PUBLISH_ENDPOINT=http://{}/dev", listener.local_addr().unwrap());
    let router = Router::new().route("/dev/@connections/{id}", post(serve)).with_state(Arc::clone(&gateway));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });

    let told = (f64::from(settings.rate) * TOLD).round();
    let (rate, burst) = (format!("REQUEST_RATE={told}"), format!("REQUEST_BURST={}", (told / 2.0).round()));
    let shards = settings.shards.to_string();
    let mut arguments =
        [&NO_RULES[..], &["--env", &endpoint, "--env", &rate, "--env", &burst, "--shards", &shards]].concat();
    arguments.extend(settings.binaries.into_iter().flat_map(|folder| ["--binaries", folder]));
    let stack = Stack::with(&arguments).await;
    gateway.stack.set(stack.process_id()).unwrap();
    let dynamodb = stack.dynamodb().await;
    connect(&dynamodb, settings).await;

    let topic = if settings.to_everybody { "INITIAL_CONNECTION" } else { "news" };
    let event = dynamodb.put_item().table_name(table_name("events"));
    event.item("topic", string(topic)).item("id", string("1")).item("data", string("x")).send().await.unwrap();
    while gateway.last.get().is_none() {
        let progress = tokio::time::timeout(PATIENCE, gateway.progress.notified()).await;
        let reached = gateway.reached.load(Ordering::Relaxed);
        assert!(progress.is_ok(), "only {reached} of {} receivers have heard the message", settings.receivers);
    }
    let log = stack.whole_log().await;
    gateway.print();
    let again: usize = gateway.heard.iter().map(|times| times.load(Ordering::Relaxed) as usize - 1).sum();
    // A post may be taken although its function no longer waits: it hangs, or the time of its invocation is over.
    let said = |part: &str| log.iter().filter(|line| line.contains(part)).count();
    let killed = said("timed out after") + usize::from(settings.kill_at.is_some());
    let allowed = said("a post hangs") + said("a publish ends early") * POSTS_AT_ONCE + killed * REPEATED;
    // On a very busy machine a write takes effect after its caller has given up. Then a part of the message may go out twice, and
    // nobody knows how large it is.
    let in_doubt =
        ["could not be handed over", "has to come again", "a checkpoint failed"].into_iter().map(said).sum::<usize>();
    let told: Vec<_> = log.iter().filter(|line| line.contains("WARN") || line.contains("ERROR")).collect();
    assert!(
        again <= allowed || in_doubt > 0,
        "{again} receivers have heard the message again, and {allowed} may have: {told:#?}"
    );
    assert_eq!(gateway.is_killed.load(Ordering::Relaxed), settings.kill_at.is_some());
}

impl Gateway {
    fn print(&self) {
        let Settings { receivers, rate, to_everybody, shards, kill_at, .. } = self.settings;
        let took = self.last.get().unwrap().duration_since(*self.first.get().unwrap()).as_secs_f64();
        let (posts, refused) = (self.posts.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed));
        let rate_s = f64::from(rate);
        #[expect(clippy::cast_precision_loss, reason = "there are fewer receivers than 2^52")]
        let least = (receivers as f64 - rate_s / 2.0) / rate_s;
        let to = if to_everybody { "everybody" } else { "a topic" };
        let kill = kill_at.map(|at| format!(", a process killed at post {at}")).unwrap_or_default();
        println!(
            "{receivers} receivers of {to}, {rate} posts/s, {shards} shards{kill}: {took:.2} s, {:.0} % of the {least:.2} s that the \
             rate allows; {posts} posts, {refused} refused, {} heard again",
            100.0 * took / least,
            posts - refused - receivers,
        );
    }
}

/// Writes the rows of so many connections, as `$connect` and `subscribe` do.
async fn connect(dynamodb: &aws_sdk_dynamodb::Client, settings: Settings) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    // Posts to a young connection are repeated for a second, so these are an hour old.
    let (since, ttl) = (now.as_millis() - 3_600_000, now.as_secs() + 3600);
    let table = table_name(if settings.to_everybody { "connections" } else { "topics" });
    let row = |number: usize| {
        let put = PutRequest::builder().item("connectionId", string(&format!("{number}=")));
        let put = put.item("connectedAt", AttributeValue::N(since.to_string()));
        let put = put.item("ttl", AttributeValue::N(ttl.to_string()));
        let put = if settings.to_everybody { put } else { put.item("topic", string("news")) };
        WriteRequest::builder().put_request(put.build().unwrap()).build()
    };
    let rows: Vec<_> = (0..settings.receivers).map(row).collect();
    stream::iter(rows.chunks(25))
        .map(Ok)
        .try_for_each_concurrent(4, async |rows| {
            dynamodb.batch_write_item().request_items(&table, rows.to_vec()).send().await.map(drop)
        })
        .await
        .unwrap();
}

fn string(text: &str) -> AttributeValue {
    AttributeValue::S(text.to_owned())
}

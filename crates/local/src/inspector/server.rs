//! The pages and endpoints of the inspector, below `/inspect`.
//!
//! `feed` is a stream of server-sent events: `service` once, `facts` as they come, `picture` once a second. Three calls
//! do something: `run`, `send` and `close`. Only the page itself and programs may use these, and no page of another
//! origin, not even of another port of this machine. `web.rs` has already checked the `Host`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use dynoxide::Database;
use dynoxide::actions::describe_table::DescribeTableRequest;
use futures_util::stream;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use super::fact::{EVENT_LIMIT, Event, Fact, TEXT_LIMIT};
use super::{Inspector, Watcher};
use crate::gateway::Gateway;
use crate::lambda::Function;

/// The time in which facts are collected, so that a page draws them at once.
const COLLECT: Duration = Duration::from_millis(50);

/// The time between two pictures.
const PICTURE_INTERVAL: Duration = Duration::from_secs(1);

/// The pause after a count of the tables' items, as a multiple of the time that the count took. It reads whole tables.
const COUNT_PAUSE: u32 = 30;

/// The most connections of a picture. The number of all connections is in it as well.
const MAX_CONNECTIONS: usize = 200;

/// The largest body of a call: an event of 6 MB, written as a string of JSON.
const BODY_LIMIT: usize = 16 * 1024 * 1024;

/// The name of the stream's position: a page that comes back says what it has seen.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Everything comes from this server, and no other page may show this one in a frame: it could make a developer press a
/// button without knowing.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; \
     form-action 'none'; frame-ancestors 'none'",
);

/// The parts of the stack that the inspector shows.
pub(crate) struct Parts {
    /// The service and its stage.
    pub(crate) service: String,
    pub(crate) stage: String,
    pub(crate) inspector: Arc<Inspector>,
    pub(crate) gateway: Arc<Gateway>,
    /// The functions by their keys.
    pub(crate) functions: BTreeMap<String, Arc<Function>>,
    pub(crate) database: Database,
    /// The names of the tables.
    pub(crate) tables: Vec<String>,
}

/// The parts, and a name of this run of the stack. A page that has facts of another run forgets them.
struct Server {
    parts: Parts,
    run: Uuid,
}

/// Makes the inspector's part of the web port.
pub(crate) fn router(parts: Parts) -> Router {
    const HTML: &str = "text/html; charset=utf-8";
    const CSS: &str = "text/css; charset=utf-8";
    const JS: &str = "text/javascript; charset=utf-8";
    let file = |content_type: &'static str, text: &'static str| {
        get(move || std::future::ready(([(CONTENT_TYPE, content_type)], text)))
    };
    let pages = Router::new()
        .route("/inspect", file(HTML, include_str!("page/index.html")))
        .route("/inspect/style.css", file(CSS, include_str!("page/style.css")))
        .route("/inspect/app.js", file(JS, include_str!("page/app.js")))
        .route("/inspect/stories.js", file(JS, include_str!("page/stories.js")))
        .route("/inspect/icon.svg", file("image/svg+xml", include_str!("page/icon.svg")));
    let calls = Router::new()
        .route("/inspect/feed", get(feed))
        .route("/inspect/run", post(run))
        .route("/inspect/send", post(send))
        .route("/inspect/close", post(close))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(middleware::from_fn(only_own_page))
        .with_state(Arc::new(Server { parts, run: Uuid::new_v4() }));
    pages.merge(calls).layer(middleware::from_fn(add_policy))
}

async fn add_policy(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, POLICY);
    response
}

/// Refuses requests of pages of another origin. A call must be JSON as well, because a page of another origin cannot
/// send that without asking first.
async fn only_own_page(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let host = headers.get(HOST).map(HeaderValue::as_bytes).unwrap_or_default();
    let is_own = |origin: &HeaderValue| origin.as_bytes().strip_prefix(b"http://") == Some(host);
    let is_own_site = |site: &HeaderValue| site == "same-origin" || site == "none";
    let is_json = headers.get(CONTENT_TYPE).is_some_and(|content_type| content_type == "application/json");
    if !headers.get_all(ORIGIN).iter().all(is_own) || !headers.get_all(FETCH_SITE).iter().all(is_own_site) {
        return refusal(StatusCode::FORBIDDEN, "Only the inspector's own page may do this.");
    }
    if request.method() == Method::POST && !is_json {
        return refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE, "The content type must be application/json.");
    }
    next.run(request).await
}

fn refusal(status: StatusCode, message: &str) -> Response {
    answer(status, &json!({ "message": message }))
}

fn answer(status: StatusCode, body: &Value) -> Response {
    (status, [(CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

/// Reads the body of a call.
fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Box<Response>> {
    serde_json::from_slice(body).map_err(|error| Box::new(refusal(StatusCode::BAD_REQUEST, &error.to_string())))
}

#[derive(Deserialize)]
struct Run {
    /// The function's key.
    function: String,
    /// The event's JSON, as text: the function gets it byte for byte.
    event: String,
}

/// Runs an event. The answer has the number of the story and does not wait for its end.
async fn run(State(server): State<Arc<Server>>, body: Bytes) -> Response {
    let Run { function: key, event } = match parse(&body) {
        Ok(run) => run,
        Err(refusal) => return *refusal,
    };
    let Some(function) = server.parts.functions.get(&key).cloned() else {
        return refusal(StatusCode::NOT_FOUND, &format!("There is no function {key}."));
    };
    if let Err(error) = serde_json::from_str::<IgnoredAny>(&event) {
        return refusal(StatusCode::BAD_REQUEST, &format!("The event is not JSON: {error}."));
    }
    let inspector = server.parts.inspector.clone();
    let story = inspector.begin(|| Event::Run { function: key });
    tokio::spawn(async move {
        let begin = Instant::now();
        let error = function.invoke_in(event.into(), story).await.err().map(|error| error.to_string());
        inspector.tell(story, || Event::Done { error, ms: begin.elapsed().into() });
    });
    answer(StatusCode::ACCEPTED, &json!({ "story": story.map(|story| story.0) }))
}

#[derive(Deserialize)]
struct Send {
    connection: String,
    text: String,
}

/// Sends a text message as if this client had sent it.
async fn send(State(server): State<Arc<Server>>, body: Bytes) -> Response {
    let Send { connection, text } = match parse(&body) {
        Ok(send) => send,
        Err(refusal) => return *refusal,
    };
    match server.parts.gateway.send(&connection, text) {
        Ok(()) => answer(StatusCode::ACCEPTED, &json!({})),
        Err(error) => refusal(StatusCode::CONFLICT, &error.to_string()),
    }
}

#[derive(Deserialize)]
struct Close {
    connection: String,
}

/// Closes a connection as the gateway does after two hours.
async fn close(State(server): State<Arc<Server>>, body: Bytes) -> Response {
    let Close { connection } = match parse(&body) {
        Ok(close) => close,
        Err(refusal) => return *refusal,
    };
    match server.parts.gateway.close(&connection) {
        true => answer(StatusCode::ACCEPTED, &json!({})),
        false => refusal(StatusCode::CONFLICT, "The connection is not open."),
    }
}

/// Serves what happens until the page goes away.
async fn feed(State(server): State<Arc<Server>>, headers: HeaderMap) -> Response {
    let seen = headers.get(LAST_EVENT_ID).and_then(|id| id.to_str().ok()?.rsplit_once('.'));
    let seen = seen.filter(|(run, _)| *run == server.run.to_string()).and_then(|(_, number)| number.parse().ok());
    let feed = Feed {
        newest: server.parts.inspector.newest.subscribe(),
        _watcher: Watcher::new(server.parts.inspector.clone()),
        seen: seen.unwrap_or_default(),
        has_service: false,
        picture_at: Instant::now(),
        count_at: Instant::now(),
        items: Vec::new(),
        server,
    };
    Sse::new(stream::unfold(feed, Feed::next)).keep_alive(KeepAlive::default()).into_response()
}

/// The feed of one page.
struct Feed {
    server: Arc<Server>,
    _watcher: Watcher,
    newest: watch::Receiver<u64>,
    /// The number of the last fact that the page has.
    seen: u64,
    has_service: bool,
    picture_at: Instant,
    count_at: Instant,
    /// How many items each table had at the last count.
    items: Vec<Option<i64>>,
}

/// The facts of one event of the feed.
#[derive(Serialize)]
struct Facts<'a> {
    /// How many facts the page missed before these.
    missed: u64,
    facts: Vec<&'a Fact>,
}

#[derive(Serialize)]
struct EnvironmentPicture {
    number: u64,
    process: u32,
    busy: bool,
    events: u64,
}

impl Feed {
    async fn next(mut self) -> Option<(Result<sse::Event, Infallible>, Self)> {
        let event = loop {
            if !std::mem::replace(&mut self.has_service, true) {
                break self.service();
            }
            if self.picture_at <= Instant::now() {
                self.picture_at = Instant::now() + PICTURE_INTERVAL;
                break self.picture().await;
            }
            self.newest.borrow_and_update();
            if let Some(facts) = self.facts() {
                break facts;
            }
            tokio::select! {
                () = tokio::time::sleep_until(self.picture_at) => {}
                changed = self.newest.changed() => match changed {
                    Ok(()) => tokio::time::sleep(COLLECT).await,
                    Err(_) => return None,
                },
            }
        };
        Some((Ok(event), self))
    }

    fn service(&self) -> sse::Event {
        let Parts { service, stage, gateway, functions, tables, .. } = &self.server.parts;
        let service = json!({
            "run": self.server.run.to_string(),
            "name": service,
            "stage": stage,
            "routes": gateway.routes(),
            "functions": functions.keys().collect::<Vec<_>>(),
            "tables": tables,
            "eventLimit": EVENT_LIMIT,
            "textLimit": TEXT_LIMIT,
        });
        sse::Event::default().event("service").retry(Duration::from_secs(1)).data(service.to_string())
    }

    fn facts(&mut self) -> Option<sse::Event> {
        let page = self.server.parts.inspector.journal().after(self.seen);
        self.seen = page.facts.last()?.n;
        let facts = Facts { missed: page.missed, facts: page.facts.iter().map(AsRef::as_ref).collect() };
        let facts = serde_json::to_string(&facts).unwrap_or_default();
        let id = format!("{}.{}", self.server.run, self.seen);
        Some(sse::Event::default().event("facts").id(id).data(facts))
    }

    async fn picture(&mut self) -> sse::Event {
        let parts = &self.server.parts;
        let begin = Instant::now();
        if self.count_at <= begin {
            let (database, tables) = (parts.database.clone(), parts.tables.clone());
            let counted = tokio::task::spawn_blocking(move || tables.iter().map(|it| items(&database, it)).collect());
            self.items = counted.await.unwrap_or_default();
            self.count_at = begin + begin.elapsed() * COUNT_PAUSE;
        }
        let mut environments: BTreeMap<&str, Vec<EnvironmentPicture>> =
            parts.functions.keys().map(|key| (key.as_str(), Vec::new())).collect();
        // The last owner of a seat needs the list itself, so the list is not locked while this has seats.
        let seats: Vec<_> = parts.inspector.seats().values().filter_map(std::sync::Weak::upgrade).collect();
        for seat in seats {
            let (number, process) = seat.identity();
            if let Some(environments) = environments.get_mut(seat.function.as_str()) {
                let (busy, events) = (seat.is_busy.load(Ordering::Relaxed), seat.events.load(Ordering::Relaxed));
                environments.push(EnvironmentPicture { number, process, busy, events });
            }
        }
        let (count, open) = parts.gateway.open_connections(MAX_CONNECTIONS);
        let picture = json!({
            "count": count,
            "connections": open,
            "functions": environments,
            "items": self.items,
            "watchers": parts.inspector.watchers.load(Ordering::Relaxed),
        });
        sse::Event::default().event("picture").data(picture.to_string())
    }
}

fn items(database: &Database, table: &str) -> Option<i64> {
    let description = database.describe_table(DescribeTableRequest { table_name: table.to_owned() }).ok()?;
    serde_json::to_value(description.table).ok()?["ItemCount"].as_i64()
}

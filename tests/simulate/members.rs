//! A day of members: the real handlers, on an embedded DynamoDB, in virtual time, while every `$disconnect` is lost.
//!
//! Users come and go with several devices. Some sockets stay half open: the gateway calls them open until they have been
//! silent for 10 minutes. The stream has two shards, whose batches overtake each other, and it repeats batches. A witness that
//! never goes listens to all rooms by a pattern and writes down what it is told.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::config::{AsyncSleep, Credentials, SharedAsyncSleep, SharedCredentialsProvider, Sleep};
use aws_smithy_runtime_api::client::http::{HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_types::body::SdkBody;
use dynoxide::Database;
use lambda_runtime::{Context, LambdaEvent};
use serde_json::{Value, json};
use switchboard_core::backend::Backend;
use switchboard_core::clock;
use switchboard_core::config::Config;
use switchboard_core::deadline::Deadline;
use switchboard_core::topic::Topic;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, sleep, sleep_until};

use crate::handlers::mirror::{call, new_database, touched};
use crate::handlers::{BEGIN, CONNECTIONS, EVENTS, MESSAGES, TOPICS};

/// How large a day is.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub users: usize,
    pub devices: usize,
    pub rooms: usize,
    pub hours: u64,
    /// How often an invocation is killed on its way. Its batch comes again then, and so may frames.
    pub kills: f64,
}

const WINDOW: Duration = Duration::from_secs(2);
const SWEEP: Duration = Duration::from_secs(5 * 60);
/// The gateway closes a connection that has been silent for so long.
const IDLE: Duration = Duration::from_secs(10 * 60);
const WITNESS: &str = "witness=";

/// The state of a day: the tables, the connections as the gateway sees them, the stream, and the counts of calls.
struct Day {
    database: Database,
    began: Instant,
    /// When the gateway will know that a connection has ended. It is open without that.
    ends: BTreeMap<String, Option<Instant>>,
    /// The records of each shard that nobody has taken yet.
    shards: [Vec<Value>; 2],
    records: usize,
    told: Vec<Value>,
    counts: Counts,
}

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    /// Items that connecting and subscribing write.
    comings: usize,
    /// Items that presence writes: what was told, and the ends of connections.
    writes: usize,
    reads: usize,
    posts: usize,
    questions: usize,
    batches: usize,
}

thread_local! {
    static DAY: RefCell<Option<Rc<RefCell<Day>>>> = const { RefCell::new(None) };
}

fn day() -> Rc<RefCell<Day>> {
    DAY.with_borrow(|day| day.clone()).expect("a day is under way")
}

fn wall_clock() -> SystemTime {
    let now = DAY.with_borrow(|day| day.as_ref().map_or(Duration::ZERO, |day| day.borrow().began.elapsed()));
    SystemTime::UNIX_EPOCH + Duration::from_millis(BEGIN.unsigned_abs()) + now
}

#[derive(Debug)]
struct Wire;

impl HttpConnector for Wire {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let target = request.headers().get("x-amz-target").and_then(|target| target.rsplit('.').next());
        let operation = target.unwrap_or(request.method()).to_owned();
        let id = request.uri().rsplit('/').next().unwrap_or_default().replace("%3D", "=");
        let body: Value = serde_json::from_slice(request.body().bytes().unwrap_or_default()).unwrap_or_default();
        let travel = || Duration::from_millis(fastrand::u64(1..20));
        HttpConnectorFuture::new(async move {
            sleep(travel()).await;
            let (status, body) = day().borrow_mut().serve(&operation, &id, &body);
            sleep(travel()).await;
            Ok(HttpResponse::new(status.try_into().expect("it is a status"), SdkBody::from(body.to_string())))
        })
    }
}

#[derive(Debug)]
struct VirtualSleep;

impl AsyncSleep for VirtualSleep {
    fn sleep(&self, duration: Duration) -> Sleep {
        Sleep::new(tokio::time::sleep(duration))
    }
}

fn sdk() -> SdkConfig {
    let connector = SharedHttpConnector::new(Wire);
    let credentials = Credentials::new("simulated", "simulated", None, None, "simulated");
    SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("day"))
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .http_client(http_client_fn(move |_, _| connector.clone()))
        .sleep_impl(SharedAsyncSleep::new(VirtualSleep))
        .retry_config(RetryConfig::standard())
        .build()
}

impl Day {
    fn serve(&mut self, operation: &str, id: &str, body: &Value) -> (u16, Value) {
        let is_open = self.ends.get(id).is_some_and(|end| end.is_none_or(|end| end > Instant::now()));
        match operation {
            "POST" => {
                self.counts.posts += usize::from(body["type"] == "presence");
                if id == WITNESS && body["type"] == "presence" {
                    self.told.push(body.clone());
                }
                if is_open { (200, json!({})) } else { (410, json!({})) }
            }
            "GET" => {
                self.counts.questions += 1;
                if is_open { (200, json!({})) } else { (410, json!({})) }
            }
            "DELETE" => {
                self.ends.insert(id.to_owned(), Some(Instant::now()));
                (204, json!({}))
            }
            operation => self.dynamodb(operation, body),
        }
    }

    fn dynamodb(&mut self, operation: &str, request: &Value) -> (u16, Value) {
        let keys: Vec<_> =
            touched(operation, request).into_iter().map(|touched| (touched.table.to_owned(), touched.key)).collect();
        let before: Vec<_> = keys.iter().map(|(table, key)| self.item(table, key)).collect();
        let database = &self.database;
        let answer = match operation {
            "GetItem" => call(request, |request| database.get_item(request)),
            "PutItem" => call(request, |request| database.put_item(request)),
            "UpdateItem" => call(request, |request| database.update_item(request)),
            "DeleteItem" => call(request, |request| database.delete_item(request)),
            "Query" => call(request, |request| database.query(request)),
            "Scan" => call(request, |request| database.scan(request)),
            "BatchGetItem" => call(request, |request| database.batch_get_item(request)),
            "BatchWriteItem" => call(request, |request| database.batch_write_item(request)),
            _ => panic!("the functions do not call {operation}"),
        };
        let is_end = request.to_string().contains("goneAt") || request.to_string().contains("DeleteRequest");
        for ((table, key), old) in keys.iter().zip(before) {
            let is_ours = is_end || table == MESSAGES || operation == "DeleteItem";
            *(if is_ours { &mut self.counts.writes } else { &mut self.counts.comings }) += 1;
            let new = self.item(table, key);
            let user = |item: &Option<Value>| item.as_ref().is_some_and(|item| item.get("userId").is_some());
            if table == TOPICS && old != new && (user(&old) || user(&new)) {
                self.records += 1;
                let connection = key["connectionId"]["S"].as_str().unwrap_or_default();
                let shard = connection.bytes().map(usize::from).sum::<usize>() % 2;
                let (old, new) = (old.unwrap_or_else(|| json!({})), new.unwrap_or_else(|| json!({})));
                let record = json!({
                    "eventID": format!("event-{}", self.records), "eventName": "MODIFY", "eventVersion": "1.1",
                    "eventSource": "aws:dynamodb", "awsRegion": "us-east-1",
                    "dynamodb": {
                        "Keys": key, "NewImage": new, "OldImage": old,
                        "SequenceNumber": self.records.to_string(), "SizeBytes": 100,
                        "StreamViewType": "NEW_AND_OLD_IMAGES", "ApproximateCreationDateTime": 1_700_000_000.0,
                    },
                });
                self.shards[shard].push(record);
            }
        }
        self.counts.reads += usize::from(keys.is_empty());
        match answer {
            Ok(answer) => (200, answer),
            Err(error) => {
                let body = serde_json::from_str(&error.to_json()).expect("an error is JSON");
                (error.status_code(), body)
            }
        }
    }

    fn item(&self, table: &str, key: &Value) -> Option<Value> {
        let request = json!({"TableName": table, "Key": key, "ConsistentRead": true});
        call(&request, |request| self.database.get_item(request)).ok()?.get("Item").cloned()
    }
}

struct Functions {
    backend: Backend,
    identity: connect::Identity,
}

impl Functions {
    fn new() -> Self {
        let variable = |name: &str| match name {
            "CONNECTIONS_TABLE" => Some(CONNECTIONS.to_owned()),
            "TOPICS_TABLE" => Some(TOPICS.to_owned()),
            "EVENTS_TABLE" => Some(EVENTS.to_owned()),
            "MESSAGES_TABLE" => Some(MESSAGES.to_owned()),
            "TOPIC_RULES" => Some(r#"[{"topic":"room.*","presence":true,"wildcard":true}]"#.to_owned()),
            "PUBLISH_ENDPOINT" => Some("https://gateway/dev".to_owned()),
            // No row helps by its expiry.
            "CONNECTION_TTL_S" => Some("864000".to_owned()),
            "MAX_FRAMES_PER_SECOND" => Some("0".to_owned()),
            _ => None,
        };
        let config = Config::read(variable).expect("the variables are right");
        let backend = Backend::new(config, &sdk(), "simulated".to_owned(), 512);
        let identity = connect::Config::from_env().expect("the environment has no wrong variables of `connect`");
        Self { backend, identity: connect::Identity::new(identity) }
    }

    /// A connection opens and subscribes, and nobody hears anything of its end.
    async fn comes(&self, id: &str, user: &str, frame: Value) {
        day().borrow_mut().ends.insert(id.to_owned(), None);
        let event = |route: &str, kind: &str, body: Option<&Value>| {
            json!({
                "headers": {}, "multiValueHeaders": {}, "isBase64Encoded": false,
                "body": body.map(Value::to_string),
                "requestContext": {
                    "routeKey": route, "eventType": kind, "messageDirection": "IN", "stage": "dev", "apiId": "a",
                    "domainName": "gateway", "connectedAt": now_ms(), "requestTimeEpoch": now_ms(),
                    "requestId": "r", "extendedRequestId": "r", "connectionId": id,
                    "identity": {"sourceIp": "192.0.2.1"}, "authorizer": {"principalId": user},
                },
            })
        };
        let read = |event: Value| LambdaEvent::new(serde_json::from_value(event).expect("an event"), context(29));
        let connected = connect::handle(&self.backend, &self.identity, read(event("$connect", "CONNECT", None))).await;
        assert_eq!(connected.expect("no table fails").status_code, 200);
        let event = event("$default", "MESSAGE", Some(&frame));
        let read = |event: Value| LambdaEvent::new(serde_json::from_value(event).expect("an event"), context(29));
        let served = default::handle(&self.backend, read(event)).await;
        assert_eq!(served.expect("no table fails").status_code, 200);
    }

    async fn presence(&self, event: Value, seconds: u64) {
        let gateway = self.backend.gateways.configured().expect("it is configured");
        let response = presence::handle(&self.backend, &gateway, LambdaEvent::new(event, context(seconds))).await;
        assert!(response.expect("no table fails").batch_item_failures.is_empty());
    }

    /// The members of a room, as a client would read them.
    async fn members(&self, room: &str) -> BTreeSet<String> {
        let topic = Topic::parse(room).expect("it is a topic");
        let members = self.backend.store.members(&topic, Deadline::after(Duration::from_secs(29))).await;
        members.expect("no table fails").into_keys().collect()
    }
}

fn now_ms() -> i64 {
    let now = wall_clock().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

fn context(seconds: u64) -> Context {
    let mut context = Context::default();
    context.request_id = "invocation".to_owned();
    context.deadline = now_ms().unsigned_abs() + seconds * 1000;
    context
}

/// Takes what a shard has, every window, and sometimes delivers it twice. One batch follows the other.
async fn read_shard(functions: Rc<Functions>, shard: usize, repeat: f64, kills: f64) {
    loop {
        sleep(WINDOW + Duration::from_millis(fastrand::u64(0..500))).await;
        let mut records = std::mem::take(&mut day().borrow_mut().shards[shard]);
        while !records.is_empty() {
            let later = records.split_off(records.len().min(1000));
            let batch = json!({ "Records": records });
            day().borrow_mut().counts.batches += 1;
            while fastrand::f64() < kills {
                let killed = Duration::from_millis(fastrand::u64(0..400));
                _ = tokio::time::timeout(killed, functions.presence(batch.clone(), 300)).await;
            }
            functions.presence(batch.clone(), 300).await;
            if fastrand::f64() < repeat {
                functions.presence(batch, 300).await;
            }
            records = later;
        }
    }
}

async fn sweeps(functions: Rc<Functions>) {
    loop {
        sleep(SWEEP).await;
        functions.presence(json!({"detail-type": "Scheduled Event", "source": "aws.events"}), 300).await;
    }
}

/// When a user is in its room: from the first device that comes to the last that goes.
#[derive(Debug, Default)]
struct Truth {
    /// Each time a device came or went: how many there are then.
    changes: Vec<(Instant, usize)>,
    /// How many devices are about to come. Their rows may be there already.
    coming: usize,
}

impl Truth {
    /// Whether the user was there all of the time, and whether at any time.
    fn between(&self, from: Instant, to: Instant) -> (bool, bool) {
        let before = self.changes.iter().rev().find(|(at, _)| *at <= from).map_or(0, |(_, count)| *count);
        let within = self.changes.iter().filter(|(at, _)| *at > from && *at <= to).map(|(_, count)| *count);
        let counts: Vec<_> = std::iter::once(before).chain(within).collect();
        (counts.iter().all(|count| *count > 0), counts.iter().any(|count| *count > 0))
    }
}

fn run<T>(act: impl AsyncFnOnce(Rc<Functions>) -> T) -> T {
    clock::set_source(wall_clock);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without input and output always starts");
    let local = LocalSet::new();
    let result = local.block_on(&runtime, async {
        let day = Day {
            database: new_database(),
            began: Instant::now(),
            ends: BTreeMap::new(),
            shards: Default::default(),
            records: 0,
            told: Vec::new(),
            counts: Counts::default(),
        };
        DAY.set(Some(Rc::new(RefCell::new(day))));
        act(Rc::new(Functions::new())).await
    });
    drop(local);
    DAY.set(None);
    result
}

/// Runs a day, and returns what is to be read about it.
///
/// # Errors
///
/// What was wrong.
pub fn run_day(size: Size, seed: u64) -> Result<String, String> {
    fastrand::seed(seed);
    run(async |functions| the_day(size, functions).await)
}

async fn the_day(size: Size, functions: Rc<Functions>) -> Result<String, String> {
    let Size { users, devices, rooms, hours, kills } = size;
    let began = Instant::now();
    let end = began + Duration::from_secs(hours * 3600);
    functions.comes(WITNESS, "witness", json!({"type": "subscribe", "topic": "room.*", "presence": true})).await;
    for shard in 0..2 {
        spawn_local(read_shard(functions.clone(), shard, 0.05, kills));
    }
    spawn_local(sweeps(functions.clone()));

    let truths: Rc<RefCell<Vec<Truth>>> = Rc::new(RefCell::new((0..users).map(|_| Truth::default()).collect()));
    for user in 0..users {
        for device in 0..devices {
            let (functions, truths) = (functions.clone(), truths.clone());
            spawn_local(async move {
                for session in 0.. {
                    // Away for an hour and a half on average, and there for half an hour.
                    sleep(Duration::from_secs(fastrand::u64(10..10_800))).await;
                    if Instant::now() > end {
                        return;
                    }
                    let id = format!("u{user}d{device}s{session}=");
                    let asks = device == 0;
                    let topic = format!("room.{}", user % rooms);
                    let frame = json!({"type": "subscribe", "topic": topic, "presence": asks});
                    truths.borrow_mut()[user].coming += 1;
                    functions.comes(&id, &format!("user {user}"), frame).await;
                    truths.borrow_mut()[user].coming -= 1;
                    let change = |truth: &mut Truth, by: isize| {
                        let now = truth.changes.last().map_or(0, |(_, count)| *count);
                        truth.changes.push((Instant::now(), now.saturating_add_signed(by)));
                    };
                    change(&mut truths.borrow_mut()[user], 1);
                    sleep(Duration::from_secs(fastrand::u64(30..3600))).await;
                    change(&mut truths.borrow_mut()[user], -1);
                    // Nobody calls `$disconnect`. One socket in ten stays half open.
                    let known = if fastrand::u8(..10) == 0 { IDLE } else { Duration::ZERO };
                    day().borrow_mut().ends.insert(id, Some(Instant::now() + known));
                }
            });
        }
    }
    // A look takes a second for each 50 connections, those of the last quarter of an hour that are gone included.
    let asked = u64::try_from(users * devices * 2).unwrap_or(u64::MAX) / 50;
    let bound = Duration::from_secs(15 * 60 + asked + 30);
    let soon = Duration::from_secs(5);
    let (mut compared, mut worst) = (0, Duration::ZERO);
    let mut at = began;
    while at < end {
        at += Duration::from_secs(7 * 60);
        sleep_until(at).await;
        for room in 0..rooms {
            let members = functions.members(&format!("room.{room}")).await;
            for user in (room..users).step_by(rooms) {
                let now = Instant::now();
                let truth = &truths.borrow()[user];
                let is_listed = members.contains(&format!("user {user}"));
                let is_coming = truth.coming > 0;
                let was_there = truth.between(now - soon, now).0;
                let was_there_lately = now - began < bound || truth.between(now - bound, now).1;
                if was_there && !is_listed {
                    return Err(format!("user {user} is in room.{room} and not in its list"));
                }
                if is_listed && !was_there_lately && !is_coming {
                    return Err(format!("user {user} has left room.{room} and is still in its list after {bound:?}"));
                }
                if is_listed && !truth.between(now, now).1 && !is_coming {
                    let left = truth.changes.iter().rev().find(|(_, count)| *count == 0).map_or(began, |(at, _)| *at);
                    worst = worst.max(now - left);
                }
                compared += 1;
            }
        }
    }
    let counts = day().borrow().counts;
    // Everybody goes, and everybody must be told to have gone.
    sleep(Duration::from_secs(3600) + bound).await;
    for room in 0..rooms {
        let members = functions.members(&format!("room.{room}")).await;
        if !members.is_empty() {
            return Err(format!("{members:?} are still in room.{room}"));
        }
    }
    let day = day();
    let day = day.borrow();
    let (mut there, mut changes) = (BTreeSet::new(), 0);
    for frame in &day.told {
        for (field, joins) in [("joined", true), ("left", false)] {
            for user in frame[field].as_array().into_iter().flatten() {
                let user = (frame["topic"].to_string(), user.to_string());
                changes += 1;
                let alternates = if joins { there.insert(user.clone()) } else { there.remove(&user) };
                if !alternates && kills == 0.0 {
                    return Err(format!("{user:?} {field} twice in a row"));
                }
            }
        }
    }
    if !there.is_empty() {
        return Err(format!("{there:?} were never told to have left"));
    }
    let Counts { comings, writes, reads, posts, questions, batches } = counts;
    let hour = |count: usize| count as f64 / users as f64 / hours as f64;
    Ok(format!(
        "{users} users with {devices} devices in {rooms} rooms, {hours} hours, every $disconnect lost: {changes} joins and leaves{}, \
         {compared} comparisons of lists with the truth, the longest lag seen {} s (bound {} s)\n\
         for each user and hour: {:.2} items written by coming, {:.2} by presence; {:.2} reads, {:.2} posts of changes, \
         {:.2} questions to the gateway; {batches} batches in all",
        if kills == 0.0 { " that alternate" } else { ", repeated ones included" },
        worst.as_secs(),
        bound.as_secs(),
        hour(comings),
        hour(writes),
        hour(reads),
        hour(posts),
        hour(questions),
    ))
}

/// Everybody in one room reconnects at once, and everybody asked for changes.
///
/// # Errors
///
/// When the posts are more than one for each member and window.
pub fn run_storm(members: usize, seed: u64) -> Result<String, String> {
    fastrand::seed(seed);
    run(async |functions| {
        let frame = json!({"type": "subscribe", "topic": "room.1", "presence": true});
        for shard in 0..2 {
            spawn_local(read_shard(functions.clone(), shard, 0.0, 0.0));
        }
        for member in 0..members {
            functions.comes(&format!("m{member}a="), &format!("user {member}"), frame.clone()).await;
        }
        sleep(Duration::from_secs(60)).await;
        let before = day().borrow().counts;
        // The old sockets are gone, and their rows go at once, as `$disconnect` does it. The new ones come within 10 s.
        let deadline = Deadline::after(Duration::from_secs(3600));
        for member in 0..members {
            let (functions, frame) = (functions.clone(), frame.clone());
            spawn_local(async move {
                sleep(Duration::from_millis(fastrand::u64(0..1000))).await;
                let id = format!("m{member}a=");
                day().borrow_mut().ends.insert(id.clone(), Some(Instant::now()));
                let id = switchboard_core::connection::ConnectionId::new(id);
                functions.backend.store.close(&id, None, deadline).await.expect("no table fails");
                sleep(Duration::from_millis(fastrand::u64(0..10_000))).await;
                functions.comes(&format!("m{member}b="), &format!("user {member}"), frame).await;
            });
        }
        sleep(Duration::from_secs(120)).await;
        let after = day().borrow().counts;
        let (posts, batches) = (after.posts - before.posts, after.batches - before.batches);
        let listed = functions.members("room.1").await.len();
        if listed != members {
            return Err(format!("{listed} of {members} are in the list"));
        }
        // A frame of many changes may come in two.
        if posts == 0 || posts > members * batches * 2 {
            return Err(format!("{posts} posts in {batches} windows for {members} members"));
        }
        Ok(format!(
            "{members} members reconnect at once: {posts} posts in {batches} batches ({} squared)",
            members * members
        ))
    })
}

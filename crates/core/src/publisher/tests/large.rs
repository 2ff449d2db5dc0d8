//! Large publishes on a paused clock: several execution environments of `fan-out`, an events table with its stream, and a
//! gateway that allows an account 10,000 posts a second and 5,000 at once.

use std::collections::HashMap;
use std::pin::pin;

use futures_util::FutureExt;
use futures_util::future::FusedFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;

use super::*;
use crate::config::Config;
use crate::pace;

/// The account's rate and burst.
const RATE: f64 = 10_000.0;
const BURST: f64 = 5_000.0;

/// How long a post takes, and a record on its way through the stream.
const POST: Duration = Duration::from_millis(10);
const STREAM: Duration = Duration::from_millis(200);

/// How many ranges are served at once.
const LANES: usize = 8;

/// The state of AWS.
struct Account {
    receivers: usize,
    /// How often each receiver got the message.
    heard: Vec<u8>,
    posts: usize,
    refused: usize,
    first_post: Option<Instant>,
    last_post: Instant,
    /// The gateway's bucket, and when it was full.
    tokens: f64,
    filled: Instant,
    /// The events table, and the insertions that its stream has not brought yet.
    events: HashMap<String, Value>,
    inserted: Vec<Value>,
    lease: Mutex<Value>,
    /// Connections whose posts hang.
    hang: Vec<String>,
}

/// The id of the receiver with this number. Ids sort like their numbers.
fn id(number: usize) -> String {
    format!("c{number:07}=")
}

type Shared = Arc<Mutex<Account>>;

fn account(receivers: usize) -> Shared {
    pace::tests::paused();
    let now = Instant::now();
    Arc::new(Mutex::new(Account {
        receivers,
        heard: vec![0; receivers],
        posts: 0,
        refused: 0,
        first_post: None,
        last_post: now,
        tokens: BURST,
        filled: now,
        events: HashMap::new(),
        inserted: Vec::new(),
        lease: Mutex::new(json!({})),
        hang: Vec::new(),
    }))
}

impl Account {
    fn call(&mut self, call: &Call) -> Answer {
        let table = call.body["TableName"].as_str().unwrap_or_default();
        match (call.operation.as_str(), table) {
            ("POST", _) => self.post(&call.connection_id),
            ("Query", _) => self.page(call),
            ("PutItem", _) => {
                let item = call.body["Item"].clone();
                let name = item["topic"]["S"].as_str().unwrap().to_owned();
                if call.body["ConditionExpression"] != Value::Null && self.events.contains_key(&name) {
                    return failure("ConditionalCheckFailedException");
                }
                self.inserted.push(item.clone());
                self.events.insert(name, item);
                answer(200, json!({}))
            }
            ("GetItem", _) => {
                let item = self.events.get(call.body["Key"]["topic"]["S"].as_str().unwrap());
                answer(200, item.map_or(json!({}), |item| json!({"Item": item})))
            }
            ("UpdateItem", "EVENTS_TABLE") => self.note(call),
            ("UpdateItem", "MESSAGES_TABLE") => pace::tests::item(&self.lease, call),
            _ => answer(200, json!({})),
        }
    }

    fn post(&mut self, id: &str) -> Answer {
        if self.hang.iter().any(|hanging| hanging == id) {
            return Answer::Hang;
        }
        let now = Instant::now();
        self.tokens = BURST.min(self.tokens + RATE * (now - self.filled).as_secs_f64());
        self.filled = now;
        if self.tokens < 1.0 {
            self.refused += 1;
            return Answer::After(POST, 429, json!({}));
        }
        self.tokens -= 1.0;
        self.first_post.get_or_insert(now);
        (self.posts, self.last_post) = (self.posts + 1, now);
        self.heard[id[1..8].parse::<usize>().unwrap()] += 1;
        Answer::After(POST, 200, json!({}))
    }

    /// Pages of 1 MB: 10,000 rows.
    fn page(&self, call: &Call) -> Answer {
        let number = |id: &Value| id["S"].as_str().map(|id| id[1..8].parse::<usize>().unwrap());
        let first = number(&call.body["ExclusiveStartKey"]["connectionId"]).map_or(0, |last| last + 1);
        let until = number(&call.body["ExpressionAttributeValues"][":until"]).map_or(self.receivers, |last| last + 1);
        let end = until.min(first + 10_000);
        let row = |number| json!({"connectionId": {"S": id(number)}, "connectedAt": {"N": "0"}});
        let mut page = json!({"Items": (first..end).map(row).collect::<Vec<_>>()});
        if end < until {
            page["LastEvaluatedKey"] = json!({"topic": {"S": "t"}, "connectionId": {"S": id(end - 1)}});
        }
        Answer::After(Duration::from_millis(60), 200, page)
    }

    fn note(&mut self, call: &Call) -> Answer {
        let name = call.body["Key"]["topic"]["S"].as_str().unwrap();
        let Some(item) = self.events.get_mut(name) else { return failure("ConditionalCheckFailedException") };
        assert_eq!(call.body["ConditionExpression"], "attribute_exists(topic)");
        let values = &call.body["ExpressionAttributeValues"];
        match call.body["UpdateExpression"].as_str().unwrap() {
            "SET #until = :until" => item["until"] = values[":until"].clone(),
            "SET again = :again, #after = :after" => {
                (item["again"], item["after"]) = (values[":again"].clone(), values[":after"].clone());
            }
            "SET again = :again REMOVE #after, #start" => {
                item["again"] = values[":again"].clone();
                item.as_object_mut().unwrap().retain(|name, _| !["after", "start"].contains(&name.as_str()));
            }
            other => panic!("{other}"),
        }
        Answer::After(Duration::from_millis(5), 200, json!({}))
    }

    fn count(&self, is_it: impl Fn(u8) -> bool) -> usize {
        self.heard.iter().filter(|count| is_it(**count)).count()
    }
}

/// An execution environment that takes 0.995 of the account's rate and 0.97 of its burst.
fn environment(account: &Shared, memory_mb: i32) -> (Aws, Backend) {
    let shared = Arc::clone(account);
    let aws = Aws::busy(move |call| shared.lock().unwrap().call(call));
    let config = Config { request_rate: 11_055, request_burst: 5_388, ..Config::for_tests() };
    let backend = Backend::new(config, &aws.sdk(), "test".to_owned(), memory_mb);
    (aws, backend)
}

/// Publishes as a client does, and serves what the stream brings. The invocation that makes the post with the number `kill`
/// is killed, and its record comes again. Returns how long it took from the first post to the last one.
async fn publish_to_all(account: &Shared, kill: Option<usize>) -> Duration {
    let (_aws, client) = environment(account, 256);
    // The stream brings the rest while the client's function still posts.
    let mut first = pin!(publish_for(&client, message(), TIME).fuse());
    let environments: Vec<_> = (0..LANES).map(|_| environment(account, 1769)).collect();
    let mut free: Vec<_> = environments.iter().collect();
    let (mut waiting, mut running) = (Vec::new(), FuturesUnordered::new());
    let killed = watch::Sender::new(false);
    let mut kill = kill;
    loop {
        waiting.append(&mut account.lock().unwrap().inserted);
        while !waiting.is_empty() && !free.is_empty() {
            let (record, environment, mut killed) = (waiting.remove(0), free.pop().unwrap(), killed.subscribe());
            let victim = running.is_empty();
            running.push(async move {
                tokio::time::sleep(STREAM).await;
                let rest = event::continuation(serde_json::from_value(record.clone()).unwrap()).unwrap();
                let gateway = environment.1.gateways.configured().unwrap();
                let publish = environment.1.publisher.go_on(&gateway, rest, Deadline::after(Duration::from_secs(14)));
                tokio::select! {
                    done = publish => { done.unwrap(); (environment, None) }
                    _ = killed.wait_for(|killed| *killed), if victim => (environment, Some(record)),
                }
            });
        }
        if kill.is_some_and(|kill| account.lock().unwrap().posts >= kill) {
            kill = None;
            killed.send_replace(true);
        }
        tokio::select! {
            fanout = &mut first => {
                let fanout = fanout.unwrap();
                assert!(fanout.continued && fanout.delivered <= 500, "{fanout:?}");
            }
            Some((environment, again)) = running.next() => {
                free.push(environment);
                if let Some(record) = again {
                    killed.send_replace(false);
                    waiting.insert(0, record);
                }
            }
            () = tokio::time::sleep(Duration::from_millis(1)) => {}
        }
        if first.is_terminated() && running.is_empty() && account.lock().unwrap().inserted.is_empty() {
            break;
        }
    }
    let account = account.lock().unwrap();
    account.last_post - account.first_post.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_large_publish_reaches_everybody_once_and_nobody_is_refused() {
    let account = account(16_000);
    publish_to_all(&account, None).await;
    let account = account.lock().unwrap();
    assert_eq!((account.count(|count| count == 1), account.refused), (16_000, 0));
    // The first one, and one for each 5,000 behind it.
    let mut names: Vec<_> = account.events.keys().map(|name| name.rsplit_once('/').map_or("0", |(_, it)| it)).collect();
    names.sort_unstable();
    assert_eq!(names, ["0", "1", "2", "3"]);
}

/// Nobody misses the message, and few hear it twice.
#[tokio::test(start_paused = true)]
async fn a_worker_that_is_killed_repeats_little() {
    let mut most = 0;
    for kill in [500, 501, 1_128, 600 + fastrand::usize(..6_000)] {
        let account = account(7_000);
        publish_to_all(&account, Some(kill)).await;
        let account = account.lock().unwrap();
        let repeated = account.posts - 7_000;
        assert_eq!((account.count(|count| count == 0), account.count(|count| count > 2)), (0, 0), "{kill}");
        let twice: Vec<_> = (0..7_000).filter(|number| account.heard[*number] > 1).collect();
        let (first, last) = (twice.first(), twice.last());
        assert!(
            repeated <= 628,
            "killed at post {kill}: {repeated} are repeated, {first:?} to {last:?}: {:#?}",
            account.events
        );
        most = most.max(repeated);
    }
    assert!(most > 0, "no worker was killed while it posted");
}

/// A receiver that hangs for seconds does not hold the checkpoint back.
#[tokio::test(start_paused = true)]
async fn a_worker_that_is_killed_repeats_little_in_spite_of_receivers_that_hang() {
    let account = account(6_000);
    account.lock().unwrap().hang = vec![id(600), id(601)];
    publish_to_all(&account, Some(3_900)).await;
    let account = account.lock().unwrap();
    assert_eq!(account.count(|count| count == 0), 2);
    assert!((1..=628).contains(&(account.posts - 5_998)), "{}", account.posts);
}

/// Somebody deletes what does not belong to them: the lease, and the items of the ranges. The stream has all that it takes.
#[tokio::test(start_paused = true)]
async fn deleted_items_cost_nobody_a_message() {
    let account = account(7_000);
    let deleting = async {
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let mut account = account.lock().unwrap();
            account.events.clear();
            *account.lease.lock().unwrap() = json!({});
        }
    };
    tokio::select! {
        _ = publish_to_all(&account, None) => {}
        () = deleting => {}
    }
    assert_eq!(account.lock().unwrap().count(|count| count == 0), 0);
}

/// The time is over when the first receivers could begin. The rest was handed over already, and they go the same way.
#[tokio::test(start_paused = true)]
async fn a_hand_over_that_takes_all_the_time_loses_nobody() {
    let account = account(700);
    let shared = Arc::clone(&account);
    let aws = Aws::busy(move |call| match (call.operation.as_str(), shared.lock().unwrap().call(call)) {
        ("PutItem", Answer::After(_, status, body)) => Answer::After(Duration::from_millis(300), status, body),
        (_, answer) => answer,
    });
    let backend = Backend::new(Config::for_tests(), &aws.sdk(), "test".to_owned(), 256);
    let fanout = publish_for(&backend, message(), Duration::from_millis(200)).await.unwrap();
    assert_eq!(fanout, Fanout { continued: true, ..Fanout::default() });
    let inserted = std::mem::take(&mut account.lock().unwrap().inserted);
    for item in inserted {
        let rest = event::continuation(serde_json::from_value(item).unwrap()).unwrap();
        go_on(&environment(&account, 1769).1, rest).await;
    }
    let account = account.lock().unwrap();
    assert_eq!((account.count(|count| count == 1), account.inserted.len()), (700, 0));
}

/// `cargo test --workspace --release --lib -- --ignored --nocapture large::` prints what the design takes on AWS.
#[tokio::test(start_paused = true)]
#[ignore = "a million receivers take minutes"]
#[expect(clippy::print_stdout, reason = "it measures")]
async fn a_large_publish_takes_as_long_as_the_accounts_rate() {
    for receivers in [100_000, 1_000_000] {
        let account = account(receivers);
        let took = publish_to_all(&account, None).await.as_secs_f64();
        let account = account.lock().unwrap();
        let limit = (f64::from(u32::try_from(receivers).unwrap()) - BURST) / RATE;
        println!("{receivers}: {took:.2} s of {limit:.2} s, {} refused", account.refused);
        assert_eq!(account.count(|count| count == 1), receivers);
        assert!(took <= 1.05 * limit && account.refused * 1000 < receivers);
    }
}

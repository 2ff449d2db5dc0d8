//! What a function can do with the part of a CPU that its memory buys: the first message over TLS, and posts a second.
//!
//! Lambda gives a function with 1,769 MB one CPU, and one with less a part of it ("Configure Lambda function memory"). A control
//! group gives the process the same part here, so this needs root, or a group that may be written to.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use aws_sdk_dynamodb::types::{AttributeValue, PutRequest, WriteRequest};
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use serde_json::json;
use switchboard_tests::stack::{NO_RULES, Stack, binaries, table_name};
use switchboard_tests::tls::{Certificate, Ends, Tls};

use super::{FAST, say};

/// The memory that buys one CPU.
const WHOLE_CPU_MB: u64 = 1769;

/// Lambda divides time into slices of about this length.
const PERIOD_US: u64 = 20_000;

/// Memory sizes of the first message, and of posts.
const FIRST: [u64; 4] = [128, 256, 512, WHOLE_CPU_MB];
const SIZES: [u64; 5] = [128, 256, 512, 1024, WHOLE_CPU_MB];

/// How many posts the functions have in flight, and the memory size that makes them choose that.
const IN_FLIGHT: [(u32, u64); 3] = [(16, 256), (64, 512), (128, WHOLE_CPU_MB)];

/// A function that serves clients posts for a second, and hands the rest over. Even the smallest one reaches so many receivers.
const RECEIVERS: usize = 200;
const MESSAGES: usize = 3;

/// How long the gateway takes for a post.
const LATENCY: Duration = Duration::from_millis(5);

/// A control group with a quota of CPU time. It goes with this.
struct Group(PathBuf);

impl Group {
    /// Makes a group for a function of so much memory, if this machine lets us.
    fn new(memory_mb: u64) -> Option<Self> {
        let quota_us = PERIOD_US * memory_mb / WHOLE_CPU_MB;
        let name = format!("switchboard-bench-{}", std::process::id());
        // Version 1 of control groups has a tree for each resource, version 2 has one tree.
        let old = PathBuf::from("/sys/fs/cgroup/cpu").join(&name);
        if fs::create_dir(&old).is_ok() {
            let group = Self(old);
            group.write("cpu.cfs_period_us", &PERIOD_US.to_string())?;
            return group.write("cpu.cfs_quota_us", &quota_us.to_string()).map(|()| group);
        }
        let group = PathBuf::from("/sys/fs/cgroup").join(&name);
        fs::create_dir(&group).ok()?;
        let group = Self(group);
        group.write("cpu.max", &format!("{quota_us} {PERIOD_US}")).map(|()| group)
    }

    fn write(&self, file: &str, text: &str) -> Option<()> {
        fs::write(self.0.join(file), text).ok()
    }

    /// Fills a folder with the functions. That of `binary` runs in this group, and believes in so much memory.
    fn wrap(&self, folder: &Path, binary: &str, memory_mb: u64) {
        super::wrap(folder, &binaries(), binary, |function| {
            let group = self.0.join("cgroup.procs");
            let group = group.display();
            let memory = format!("export AWS_LAMBDA_FUNCTION_MEMORY_SIZE={memory_mb}");
            format!("#!/bin/sh\necho $$ > {group}\n{memory}\nexec {}\n", function.display())
        });
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A group goes when its last process is gone.
        let deadline = Instant::now() + Duration::from_secs(5);
        while fs::remove_dir(&self.0).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Prints both tables, or why they are missing.
pub(crate) async fn run() {
    if Group::new(WHOLE_CPU_MB).is_none() {
        say!("parts of a CPU were not measured: no control group can be made here");
        return;
    }
    say!("{:42} {:>11}", "first message, over TLS", "it took");
    for memory_mb in FIRST {
        let took_ms = first(memory_mb).await;
        say!("{:42} {took_ms:>8.1} ms", format!("{memory_mb} MB"));
    }
    let in_flight = IN_FLIGHT.map(|(count, _)| format!("{:>11}", format!("{count} at once")));
    say!("\n{:42} {}", "posts a second", in_flight.join(" "));
    for memory_mb in SIZES {
        let mut row = format!("{:42}", format!("{memory_mb} MB"));
        for (_, believed_mb) in IN_FLIGHT {
            row += &format!(" {:>11.0}", posts(memory_mb, believed_mb).await);
        }
        say!("{row}");
    }
}

/// How many milliseconds the handler needs for the first direct message of an environment, with `memory_mb`.
async fn first(memory_mb: u64) -> f64 {
    let group = Group::new(memory_mb).unwrap();
    let folder = tempfile::tempdir().unwrap();
    group.wrap(folder.path(), "send-message", memory_mb);
    let arguments = [&NO_RULES[..], &["--binaries", folder.path().to_str().unwrap()]].concat();
    let ends = Ends::start().await;
    let stack = ends.stack(&arguments).await;
    let mut client = stack.connect("?userId=1").await;
    client.ask(json!({"action": "sendMessage", "destinationUserId": "1", "body": "hello there!"})).await;
    let line = stack.logged(1, &["sendMessage |", "duration_ms"]).await.remove(0);
    let (_, rest) = line.split_once("\"duration_ms\":").unwrap();
    rest.split([',', '}']).next().unwrap().parse().unwrap()
}

/// The times at which posts came.
type Times = Arc<Mutex<Vec<Instant>>>;

async fn take(State(times): State<Times>) -> StatusCode {
    times.lock().unwrap().push(Instant::now());
    tokio::time::sleep(LATENCY).await;
    StatusCode::OK
}

/// How many posts a second `default` makes with the CPU of `memory_mb`, and as many in flight as with `believed_mb`.
async fn posts(memory_mb: u64, believed_mb: u64) -> f64 {
    let group = Group::new(memory_mb).unwrap();
    let folder = tempfile::tempdir().unwrap();
    group.wrap(folder.path(), "default", believed_mb);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let certificate = Certificate::default();
    let gateway = Tls::start(&certificate).await;
    gateway.lead_to(&listener.local_addr().unwrap().to_string());
    let times = Times::default();
    let router = Router::new().route("/dev/@connections/{id}", post(take)).with_state(Arc::clone(&times));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let variables =
        [format!("PUBLISH_ENDPOINT={}/dev", gateway.url()), format!("SSL_CERT_FILE={}", certificate.file().display())];
    let mut arguments =
        [&NO_RULES[..], &FAST, &["--max-environments", "1", "--binaries", folder.path().to_str().unwrap()]].concat();
    arguments.extend(variables.iter().flat_map(|variable| ["--env", variable]));
    let stack = Stack::with(&arguments).await;
    subscribe_all(&stack).await;
    let mut sender = stack.connect("?userId=1").await;
    let mut fastest = 0_f64;
    for message in 1..=MESSAGES {
        times.lock().unwrap().clear();
        sender.send(json!({"type": "message", "topic": "many", "message": "hello there!"})).await;
        stack.logged(message, &["default |", "duration_ms"]).await;
        let times = times.lock().unwrap();
        assert_eq!(times.len(), RECEIVERS);
        let took = (times[times.len() - 1] - times[0] + LATENCY).as_secs_f64();
        fastest = fastest.max(RECEIVERS as f64 / took);
    }
    fastest
}

/// Writes the rows of subscribers that are no sockets, as `$connect` and `subscribe` do.
async fn subscribe_all(stack: &Stack) {
    let string = |text: &str| AttributeValue::S(text.to_owned());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    // Posts to a young connection are repeated for a second, so these are an hour old.
    let (since, ttl) = (now.as_millis() - 3_600_000, now.as_secs() + 3600);
    let row = |number: usize| {
        let put =
            PutRequest::builder().item("topic", string("many")).item("connectionId", string(&format!("{number}=")));
        let put = put.item("connectedAt", AttributeValue::N(since.to_string()));
        let put = put.item("ttl", AttributeValue::N(ttl.to_string()));
        WriteRequest::builder().put_request(put.build().unwrap()).build()
    };
    let rows: Vec<_> = (0..RECEIVERS).map(row).collect();
    let dynamodb = stack.dynamodb().await;
    for rows in rows.chunks(25) {
        dynamodb.batch_write_item().request_items(table_name("topics"), rows.to_vec()).send().await.unwrap();
    }
}

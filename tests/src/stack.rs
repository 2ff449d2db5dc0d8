//! A local stack of a test's own.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use crate::client::Client;

/// A test fails when it has waited this long for something. Only a failing test takes so long.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A row of a table.
pub type Row = std::collections::HashMap<String, AttributeValue>;

/// A running `switchboard-local`. Killed with the test.
#[derive(Debug)]
pub struct Stack {
    process: Child,
    /// `127.0.0.1:{port}` of the gateway.
    pub gateway: String,
    /// `127.0.0.1:{port}` of DynamoDB. Empty for a service without tables.
    pub dynamodb: String,
    lines: watch::Receiver<Vec<String>>,
}

/// The folder of the binaries under test: the one in the environment variable `SWITCHBOARD_BINARIES`, or the one that
/// this test was built in.
pub fn binaries() -> PathBuf {
    #[expect(clippy::disallowed_methods, reason = "tests are configured here alone")]
    let folder = match std::env::var("SWITCHBOARD_BINARIES") {
        Ok(folder) => root().join(folder),
        Err(_) => std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_path_buf(),
    };
    let built = folder.join("switchboard-local").is_file() && folder.join("send-message").is_file();
    assert!(built, "no binaries in {}: run `cargo build --workspace --bins` (`make test` does)", folder.display());
    folder
}

/// The repository's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The command that starts a stack on free ports, before any further arguments. Functions' lines are shown as JSON, so
/// that tests can match parts of it, unless the arguments say otherwise.
pub fn command(arguments: &[&str]) -> Command {
    command_of(&binaries().join("switchboard-local"), arguments)
}

/// The same for another build of the stack.
pub fn command_of(program: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root()).args(["--dynamodb-port", "0"]).args(arguments);
    if !arguments.contains(&"--port") {
        command.args(["--port", "0"]);
    }
    if !arguments.contains(&"--log-format") {
        command.args(["--log-format", "json"]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Arguments of a service that keeps no messages: `Stack::with(&NO_RULES)`.
pub const NO_RULES: [&str; 2] = ["--env", "TOPIC_RULES="];

impl Stack {
    /// Starts the service of this repository, and waits until it is ready.
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// Starts a stack with further arguments, and waits until it is ready.
    pub async fn with(arguments: &[&str]) -> Self {
        Self::run(command(arguments)).await
    }

    /// Starts a stack by its [`command`], and waits until it is ready.
    pub async fn run(mut command: Command) -> Self {
        let mut process = command.spawn().unwrap();
        let (sender, mut lines) = watch::channel(Vec::new());
        let mut stdout = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut stderr = BufReader::new(process.stderr.take().unwrap()).lines();
        tokio::spawn(async move {
            let (mut out, mut err) = (true, true);
            while out || err {
                let line = tokio::select! {
                    line = stdout.next_line(), if out => { let line = line.unwrap(); out = line.is_some(); line }
                    line = stderr.next_line(), if err => { let line = line.unwrap(); err = line.is_some(); line }
                };
                sender.send_modify(|lines: &mut Vec<String>| lines.extend(line));
            }
        });
        let ready = |lines: &Vec<String>| lines.iter().any(|line| line.contains("Ctrl-C"));
        let started = matches!(tokio::time::timeout(PATIENCE, lines.wait_for(ready)).await, Ok(Ok(_)));
        let banner = lines.borrow().clone();
        assert!(started, "the stack did not start: {banner:#?}");
        let address = |scheme: &str| {
            let (_, rest) = banner.iter().find_map(|line| line.split_once(scheme))?;
            let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
            Some(format!("127.0.0.1:{port}"))
        };
        Self {
            process,
            gateway: address("ws://localhost:").unwrap(),
            dynamodb: address("--endpoint-url http://localhost:").unwrap_or_default(),
            lines,
        }
    }

    /// Connects to the stage with this query, `?userId=1` or nothing.
    pub async fn connect(&self, query: &str) -> Client {
        Client::connect(&format!("ws://{}/dev{query}", self.gateway)).await.unwrap()
    }

    /// The status with which a handshake is refused.
    pub async fn refused(&self, query: &str) -> u16 {
        Client::connect(&format!("ws://{}/dev{query}", self.gateway)).await.expect_err("the handshake succeeded")
    }

    /// Every line, now and later.
    pub fn lines(&self) -> watch::Receiver<Vec<String>> {
        self.lines.clone()
    }

    /// Every line so far that contains all of `parts`.
    pub fn log(&self, parts: &[&str]) -> Vec<String> {
        matching(&self.lines.borrow(), parts)
    }

    /// Waits until `count` lines contain all of `parts`, and returns them.
    pub async fn logged(&self, count: usize, parts: &[&str]) -> Vec<String> {
        let mut lines = self.lines.clone();
        let seen = tokio::time::timeout(PATIENCE, lines.wait_for(|lines| matching(lines, parts).len() >= count)).await;
        match seen {
            Ok(Ok(lines)) => matching(&lines, parts),
            _ => panic!("no {count} line(s) with {parts:?} in {:#?}", self.lines.borrow().clone()),
        }
    }

    /// A client of the stack's DynamoDB.
    pub async fn dynamodb(&self) -> aws_sdk_dynamodb::Client {
        aws_sdk_dynamodb::Client::new(&sdk(&format!("http://{}", self.dynamodb)).await)
    }

    /// A client of the stack's `@connections`.
    pub async fn management(&self) -> aws_sdk_apigatewaymanagement::Client {
        aws_sdk_apigatewaymanagement::Client::new(&sdk(&format!("http://{}/dev", self.gateway)).await)
    }

    /// Every row of `connections` or `topics`, without the tombstones of connections that ended.
    pub async fn rows(&self, table: &str) -> Vec<Row> {
        self.all_rows(table).await.into_iter().filter(|row| !row.contains_key("closedAt")).collect()
    }

    /// Every row of `connections` or `topics`.
    pub async fn all_rows(&self, table: &str) -> Vec<Row> {
        let scan = self.dynamodb().await.scan().table_name(table_name(table)).consistent_read(true);
        scan.into_paginator().items().send().collect::<Result<_, _>>().await.unwrap()
    }

    /// Waits until a table has this many rows.
    pub async fn settled(&self, table: &str, count: usize) -> Vec<Row> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let rows = self.rows(table).await;
            if rows.len() == count {
                return rows;
            }
            assert!(tokio::time::Instant::now() < deadline, "{table} has {} rows, not {count}: {rows:#?}", rows.len());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Stops the stack as Ctrl-C does, and returns its exit code.
    pub async fn interrupt(mut self) -> Option<i32> {
        self.stop().await
    }

    /// Stops the stack as Ctrl-C does, and returns everything that it and its functions have printed. Only this log proves
    /// that a line is missing.
    pub async fn whole_log(mut self) -> Vec<String> {
        self.stop().await;
        // The sender is gone when both streams have ended.
        let ended = async { while self.lines.changed().await.is_ok() {} };
        tokio::time::timeout(PATIENCE, ended).await.expect("the output did not end");
        self.lines.borrow().clone()
    }

    async fn stop(&mut self) -> Option<i32> {
        signal("-INT", self.process.id().unwrap()).await;
        let status = tokio::time::timeout(PATIENCE, self.process.wait()).await.expect("the stack did not stop");
        status.unwrap().code()
    }

    /// The id of the process `switchboard-local`.
    pub fn process_id(&self) -> u32 {
        self.process.id().unwrap()
    }
}

/// The name of a table of the stage `dev`.
pub fn table_name(table: &str) -> String {
    format!("switchboard-dev-{table}")
}

/// An SDK configuration with made-up credentials, on the functions' own HTTP client.
pub async fn sdk(endpoint: &str) -> aws_config::SdkConfig {
    use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
    let http = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
    aws_config::defaults(aws_config::BehaviorVersion::latest())
        .http_client(http)
        .region("us-east-1")
        .credentials_provider(aws_sdk_dynamodb::config::Credentials::new("test", "test", None, None, "test"))
        .endpoint_url(endpoint)
        .load()
        .await
}

/// Sends a signal, `-INT` for instance.
pub async fn signal(name: &str, process_id: u32) {
    let status = Command::new("kill").args([name, &process_id.to_string()]).status().await.unwrap();
    assert!(status.success());
}

/// The processes whose parent is `process_id`, and what they run.
pub async fn children(process_id: u32) -> Vec<(u32, String)> {
    let output = Command::new("ps").args(["-A", "-o", "pid=,ppid=,comm="]).output().await.unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    let children = table.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (id, parent) = (words.next()?.parse().unwrap(), words.next()?.parse::<u32>().unwrap());
        (parent == process_id).then(|| (id, words.collect()))
    });
    children.collect()
}

/// The processes of a stack's execution environments, without the shell that guards them.
pub async fn environments(stack: &Stack) -> Vec<u32> {
    let children = children(stack.process_id()).await;
    children
        .into_iter()
        .filter(|(_, command)| !["sh", "/bin/sh"].contains(&command.as_str()))
        .map(|(id, _)| id)
        .collect()
}

/// An attribute that is a string.
pub fn text(row: &Row, attribute: &str) -> String {
    row[attribute].as_s().unwrap().clone()
}

/// An attribute that is a number.
pub fn number(row: &Row, attribute: &str) -> i64 {
    row[attribute].as_n().unwrap().parse().unwrap()
}

/// The lines that contain all of `parts`.
pub fn matching(lines: &[String], parts: &[&str]) -> Vec<String> {
    lines.iter().filter(|line| parts.iter().all(|part| line.contains(part))).cloned().collect()
}

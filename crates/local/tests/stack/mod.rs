//! The real `switchboard-local` as a process, on a small service with one table, `birds`.

#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(unreachable_pub, reason = "in a test binary nothing is reachable, and `pub` is what its modules share")]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::watch;

/// The time after which a test fails because something is missing.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The functions of a service whose `$connect` is the fixture.
pub const HELLO: &str = "  hello: {handler: fixture, events: [websocket: $connect]}\n";

/// Writes a custom runtime in Bash, as in AWS's tutorial, that runs one command at its start and another one at each
/// event. Returns the functions of a service whose `$connect` is this script.
pub fn bash(folder: &Path, start: &str, event: &str) -> String {
    let text = format!(
        r#"#!/bin/bash
{start}
api="http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime/invocation"
while true; do
  headers=$(mktemp)
  event=$(curl -sS -LD "$headers" "$api/next")
  id=$(grep -Fi Lambda-Runtime-Aws-Request-Id "$headers" | tr -d '[:space:]' | cut -d: -f2)
  rm "$headers"
  {event}
  curl -sS -X POST "$api/$id/response" -d '{{"statusCode":200}}' > /dev/null
done
"#
    );
    let script = folder.join("script");
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
    format!("  script: {{handler: '{}', events: [websocket: $connect]}}\n", script.display())
}

/// Returns the folder of the functions' binaries. `cargo test` does not build the binaries of other packages.
fn binaries() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let folder = test.ancestors().nth(2).unwrap().to_path_buf();
    assert!(folder.join("fixture").is_file(), "run `cargo build --workspace --bins` first");
    folder
}

/// A running service. It is killed at the end of the test.
pub struct Stack {
    pub process: Child,
    /// Host and port.
    pub gateway: String,
    /// Host and port.
    pub dynamodb: String,
    pub lines: watch::Receiver<Vec<String>>,
}

impl Stack {
    /// Runs these functions from a serverless.yml in `folder`. One of them is behind `$connect`.
    pub async fn serve(folder: &Path, arguments: &[&str], functions: &str) -> Self {
        Self::spawn(folder, arguments, &[], functions).await
    }

    /// Does the same with variables for the stack itself.
    pub async fn spawn(folder: &Path, arguments: &[&str], environment: &[(&str, &str)], functions: &str) -> Self {
        let service = format!(
            "service: birds
provider: {{name: aws, runtime: provided.al2023, region: eu-central-1}}
functions:
{functions}
resources:
  Resources:
    Birds:
      Type: AWS::DynamoDB::Table
      Properties:
        TableName: birds
        BillingMode: PAY_PER_REQUEST
        AttributeDefinitions: [{{AttributeName: id, AttributeType: S}}]
        KeySchema: [{{AttributeName: id, KeyType: HASH}}]
        StreamSpecification: {{StreamViewType: NEW_AND_OLD_IMAGES}}
    Nobody:
      Type: AWS::IAM::Role
      Properties: {{RoleName: nobody, AssumeRolePolicyDocument: {{}}}}
"
        );
        let file = folder.join("serverless.yml");
        std::fs::write(&file, service).unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_switchboard-local"))
            .args(["--port", "0", "--dynamodb-port", "0", "--config"])
            .arg(&file)
            .arg("--binaries")
            .arg(binaries())
            .args(arguments)
            .args(if arguments.contains(&"--log-format") { &[][..] } else { &["--log-format", "json"] })
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (sender, mut lines) = watch::channel(Vec::new());
        let mut stdout = BufReader::new(process.stdout.take().unwrap()).lines();
        tokio::spawn(async move {
            while let Ok(Some(line)) = stdout.next_line().await {
                sender.send_modify(|lines: &mut Vec<String>| lines.push(line));
            }
        });
        let ready = |lines: &Vec<String>| lines.iter().any(|line| line.contains("Ctrl-C"));
        tokio::time::timeout(PATIENCE, lines.wait_for(ready)).await.unwrap().unwrap();
        let banner = lines.borrow().join("\n");
        let port_after = |text: &str| {
            let (_, rest) = banner.split_once(text).unwrap();
            rest.chars().take_while(char::is_ascii_digit).collect::<String>()
        };
        let gateway = format!("127.0.0.1:{}", port_after("ws://localhost:"));
        let dynamodb = format!("127.0.0.1:{}", port_after("http://localhost:"));
        Self { process, gateway, dynamodb, lines }
    }

    /// Sends Ctrl-C and waits for the end.
    pub async fn interrupt(mut self) {
        let process_id = self.process.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-INT", &process_id]).status().await.unwrap().success());
        assert!(tokio::time::timeout(PATIENCE, self.process.wait()).await.unwrap().unwrap().success());
    }

    pub async fn put(&self, item: Value) {
        self.call("PutItem", &json!({"TableName": "birds", "Item": item})).await;
    }

    /// Calls DynamoDB like an SDK.
    pub async fn call(&self, operation: &str, body: &Value) {
        let headers = format!("Host: {}\r\n{}", self.dynamodb, as_an_sdk(operation));
        let response = send(&self.dynamodb, "POST /", &headers, &body.to_string()).await;
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    }

    /// Waits for a line that contains all of `parts`.
    pub async fn logged(&self, parts: &[&str]) -> String {
        let find =
            |lines: &Vec<String>| lines.iter().find(|line| parts.iter().all(|part| line.contains(part))).cloned();
        let mut lines = self.lines.clone();
        match tokio::time::timeout(PATIENCE, lines.wait_for(|lines| find(lines).is_some())).await {
            Ok(Ok(lines)) => find(&lines).unwrap(),
            _ => panic!("no line with {parts:?} in {:#?}", self.lines.borrow().clone()),
        }
    }
}

/// Returns the headers of a call of DynamoDB.
pub fn as_an_sdk(operation: &str) -> String {
    format!(
        "Content-Type: application/x-amz-json-1.0\r\nX-Amz-Target: DynamoDB_20120810.{operation}\r\n\
         X-Amz-Date: 20260101T000000Z\r\n\
         Authorization: AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/dynamodb/aws4_request, \
         SignedHeaders=host, Signature=0\r\n"
    )
}

/// Sends a request with these headers, which are whole lines. Returns the whole response.
pub async fn send(address: &str, request: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    let request = format!("{request} HTTP/1.1\r\n{headers}Connection: close\r\nContent-Length: {length}\r\n\r\n{body}");
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut response)).await.unwrap().unwrap();
    String::from_utf8(response).unwrap()
}

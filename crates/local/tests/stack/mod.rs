//! The real `switchboard-local` as a process, on a small service with one table, `birds`.

#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(unreachable_pub, reason = "in a test binary nothing is reachable, and `pub` is what its modules share")]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};
use switchboard_tests::stack;
pub use switchboard_tests::stack::PATIENCE;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

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

/// A running service. It is killed at the end of the test.
pub struct Stack {
    process: stack::Stack,
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
        let mut command = stack::command(arguments);
        command.arg("--config").arg(&file).envs(environment.iter().copied());
        let process = stack::Stack::run(command).await;
        let (gateway, dynamodb) = (process.gateway.clone(), process.dynamodb.clone());
        let lines = process.lines();
        Self { process, gateway, dynamodb, lines }
    }

    /// Sends Ctrl-C and waits for the end.
    pub async fn interrupt(self) {
        assert_eq!(self.process.interrupt().await, Some(0));
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

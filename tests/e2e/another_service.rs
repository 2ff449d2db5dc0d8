//! The local stack runs a service that is not Switchboard, and shows a client how its functions fail.

use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use switchboard_tests::client::Client;
use switchboard_tests::stack::{PATIENCE, Stack, command, root, signal};

async fn parrot() -> (Stack, Client) {
    let stack = Stack::with(&["--config", "tests/fixture/serverless.yml"]).await;
    let client = Client::connect(&format!("ws://{}/test?name=polly", stack.gateway)).await.unwrap();
    (stack, client)
}

/// Sends a frame that must be answered with the gateway's own error frame.
async fn fails(client: &mut Client, frame: Value) {
    let error = client.ask(frame).await;
    assert_eq!(error["message"], "Internal server error");
    assert_eq!(error["connectionId"].as_str().unwrap().len(), 16, "{error}");
}

#[tokio::test]
async fn its_tables_routes_and_variables_come_from_its_own_serverless_yml() {
    let (stack, mut client) = parrot().await;
    let tables = stack.dynamodb().await.list_tables().send().await.unwrap();
    assert_eq!(tables.table_names(), ["parrot-birds"]);
    let event: Value = event(&stack.logged(1, &["hello |", "fixture"]).await[0]);
    assert_eq!(event["queryStringParameters"], json!({"name": "polly"}));

    // One-way routes send nothing, so the log must show what the function answered.
    client.send(json!({"service": "parrot", "do": "environment"})).await;
    let event = self::event(&stack.logged(1, &["act |", "parrot/environment"]).await[0]);
    assert_eq!(event["requestContext"]["routeKey"], "parrot/environment");
    assert_eq!(event["requestContext"]["stage"], "test");

    // Without a `$default` route the gateway itself answers.
    let refused = client.ask(json!({"service": "parrot", "do": "dance"})).await;
    assert_eq!(refused["message"], "Forbidden");
    client.close().await;
    stack.logged(1, &["bye |", "DISCONNECT"]).await;
}

#[tokio::test]
async fn functions_beyond_the_concurrency_of_the_account_are_throttled() {
    let stack = Stack::with(&["--config", "tests/fixture/serverless.yml", "--account-concurrency", "0"]).await;
    assert_eq!(Client::connect(&format!("ws://{}/test", stack.gateway)).await.err(), Some(500));
}

#[tokio::test]
async fn a_service_beyond_a_quota_of_aws_runs_and_is_told_so() {
    let service = std::fs::read_to_string(root().join("tests/fixture/conformance.yml")).unwrap();
    let routes: String = (0..300).map(|route| format!("      - websocket: r{route}\n")).collect();
    let one = "      - websocket: sendMessage\n";
    assert!(service.contains(one));
    let service = service.replace(one, &format!("{one}{routes}"));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("serverless.yml");
    std::fs::write(&file, service).unwrap();
    let stack = Stack::with(&["--config", file.to_str().unwrap()]).await;
    stack.logged(1, &["service |", " routes: AWS allows 300"]).await;
    let mut client = stack.connect("").await;
    client.send(json!({"action": "r299"})).await;
    stack.logged(1, &["send-message |", r#""routeKey":"r299""#]).await;
}

#[tokio::test]
async fn a_function_that_somebody_debugs_waits_for_the_debugger_and_has_no_time_out() {
    let flags = ["--debug", "nap", "--debug-wait", "--integration-timeout", "1s", "--init-timeout", "50ms"];
    let stack = Stack::with(&[&["--config", "tests/fixture/serverless.yml"], &flags[..]].concat()).await;
    let mut client = Client::connect(&format!("ws://{}/test", stack.gateway)).await.unwrap();
    client.send(json!({"service": "parrot", "do": "sleep", "ms": 1500})).await;
    let line = &stack.logged(1, &["nap | process", "waits for a debugger: gdb -p"]).await[0];
    let process: u32 = line.rsplit(' ').next().unwrap().parse().unwrap();
    // The signal takes effect when the process runs next.
    let stopped = async {
        while !std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap().contains(") T ") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, stopped).await.expect("the process runs");
    // A debugger continues it. The time-out of the function is 1 s.
    signal("-CONT", process).await;
    stack.logged(1, &["nap |", r#""routeKey":"parrot/sleep""#]).await;
    client.send(json!({"service": "parrot", "do": "sleep", "ms": 0})).await;
    stack.logged(2, &["nap |", r#""routeKey":"parrot/sleep""#]).await;
    assert_eq!(stack.log(&["nap | process"]).len(), 1);
    assert!(stack.log(&["timed out"]).is_empty());

    let mut unknown = command(&["--config", "tests/fixture/serverless.yml", "--debug", "parrot"]);
    let output = unknown.output().await.unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("--debug parrot: there is no such function; there are act, bye, hello, nap"), "{text}");
}

#[tokio::test]
async fn faults_on_demand_reach_functions_and_gateway() {
    let stack = Stack::with(&["--config", "tests/fixture/serverless.yml", "--fault", "kill=1", "--seed", "7"]).await;
    assert_eq!(Client::connect(&format!("ws://{}/test", stack.gateway)).await.err(), Some(502));
    stack.logged(1, &["fault | kill (decision 1)"]).await;

    let stack = Stack::with(&["--config", "tests/fixture/serverless.yml", "--fault", "lost-disconnect=1"]).await;
    Client::connect(&format!("ws://{}/test", stack.gateway)).await.unwrap().close().await;
    stack.logged(1, &["fault | lost-disconnect (decision 1)"]).await;
}

#[tokio::test]
async fn an_authorizer_decides_who_connects_and_functions_hear_of_it() {
    let stack = Stack::with(&["--config", "tests/fixture/authorizer.yml"]).await;
    let url = |query: &str| format!("ws://{}/test?{query}", stack.gateway);
    let allow = json!({"do": "respond", "response": {
        "principalId": "fixture",
        "policyDocument": {"Statement": [{"Effect": "Allow", "Action": "execute-api:Invoke", "Resource": "{methodArn}"}]},
        "context": {"userId": "7"},
    }});
    let allow = format!("authorizer={}", utf8_percent_encode(&allow.to_string(), NON_ALPHANUMERIC));
    // Without an identity the authorizer does not run. Without a command it answers something that is not a policy.
    assert_eq!(Client::connect(&url(&allow)).await.err(), Some(401));
    assert_eq!(Client::connect(&url("user=7")).await.err(), Some(500));
    let mut client = Client::connect(&url(&format!("{allow}&user=7"))).await.unwrap();
    client.send(json!({"hello": "there"})).await;
    for line in stack.logged(2, &["hello |", "fixture"]).await {
        let expected = json!({"principalId": "fixture", "userId": "7"});
        assert_eq!(event(&line)["requestContext"]["authorizer"], expected);
    }
    assert_eq!(stack.log(&["guard |", "REQUEST"]).len(), 2);
}

#[tokio::test]
async fn a_two_way_route_answers_its_sender() {
    let (_stack, mut client) = parrot().await;
    let answer = client.ask(json!({"service": "duet", "do": "environment"})).await;
    assert_eq!(answer["variables"]["TABLE"], "parrot-birds");
}

/// The event in a line that the fixture printed.
fn event(line: &str) -> Value {
    serde_json::from_str::<Value>(line.split_once(" | ").unwrap().1).unwrap()["event"].take()
}

#[tokio::test]
async fn a_function_that_fails_panics_or_exits_shows_as_internal_server_error() {
    let (stack, mut client) = parrot().await;
    for action in ["error", "panic", "exit"] {
        fails(&mut client, json!({"service": "parrot", "do": action})).await;
    }
    // The connection stays open and the function serves on. After the exit it has a new process.
    fails(&mut client, json!({"service": "parrot", "do": "respond", "response": {"statusCode": 200, "surprise": 1}}))
        .await;
    let reasons = stack.logged(3, &["gateway |", "failed"]).await.join("\n");
    for reason in ["Fixture.Error", "panicked", "exit status 3"] {
        assert!(reasons.contains(reason), "{reason} is not in {reasons}");
    }
}

#[tokio::test]
async fn a_function_that_takes_too_long_is_killed_and_shows_as_internal_server_error() {
    let (stack, mut client) = parrot().await;
    fails(&mut client, json!({"service": "parrot", "do": "sleep", "ms": 60_000})).await;
    stack.logged(1, &["gateway |", "Task timed out after 1.00 seconds"]).await;
    fails(&mut client, json!({"service": "parrot", "do": "sleep", "ms": 60_000})).await;
}

#[tokio::test]
async fn a_function_decides_the_status_of_a_refused_handshake() {
    let (stack, _client) = parrot().await;
    for (query, status) in [
        ("do=respond&response=%7B%22statusCode%22:401%7D", 401),
        ("do=respond&response=%7B%22ok%22:true%7D", 502),
        ("do=error", 502),
        ("do=exit", 502),
    ] {
        let refused = Client::connect(&format!("ws://{}/test?{query}", stack.gateway)).await.err();
        assert_eq!(refused, Some(status), "{query}");
    }
}

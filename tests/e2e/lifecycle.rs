//! Connections that come and go, and the stack itself.

use std::process::Stdio;

use serde_json::json;
use switchboard_tests::client::Client;
use switchboard_tests::stack::{
    PATIENCE, Stack, binaries, children, command, environments, matching, number, root, signal, text,
};
use tokio::process::Command;

#[tokio::test]
async fn rows_are_there_after_connect_and_gone_after_disconnect() {
    let stack = Stack::start().await;
    let before = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    let one = stack.connect("?userId=1").await;
    let rows = stack.rows("connections").await;
    assert_eq!(rows.len(), 1);
    assert_eq!(text(&rows[0], "userId"), "1");
    assert_eq!(rows[0]["topics"].as_ss().unwrap(), &["@1"]);
    assert!(u128::try_from(number(&rows[0], "connectedAt")).unwrap() >= before - 1);
    let topics = stack.rows("topics").await;
    assert_eq!(
        (text(&topics[0], "topic"), text(&topics[0], "connectionId")),
        ("@1".to_owned(), text(&rows[0], "connectionId"))
    );
    one.close().await;
    stack.settled("connections", 0).await;
    stack.settled("topics", 0).await;
}

#[tokio::test]
async fn an_anonymous_connection_has_one_row() {
    let stack = Stack::start().await;
    let _nobody = stack.connect("").await;
    let rows = stack.rows("connections").await;
    assert_eq!(rows.len(), 1);
    assert!(!rows[0].contains_key("userId") && !rows[0].contains_key("topics"), "{rows:?}");
    assert!(stack.rows("topics").await.is_empty());
}

#[tokio::test]
async fn a_client_that_drops_its_tcp_connection_is_forgotten() {
    let stack = Stack::start().await;
    drop(stack.connect("?userId=1").await);
    stack.settled("connections", 0).await;
}

#[tokio::test]
async fn a_backend_can_greet_inspect_and_close_a_connection() {
    let stack = Stack::start().await;
    let mut one = stack.connect("?userId=1").await;
    let id = text(&stack.rows("connections").await[0], "connectionId");
    let management = stack.management().await;
    let blob = aws_sdk_apigatewaymanagement::primitives::Blob::new("\"hello\"");
    management.post_to_connection().connection_id(&id).data(blob.clone()).send().await.unwrap();
    assert_eq!(one.next().await, json!("hello"));
    let info = management.get_connection().connection_id(&id).send().await.unwrap();
    let connected_at_ms = info.connected_at().unwrap().to_millis().unwrap();
    assert_eq!(connected_at_ms, number(&stack.rows("connections").await[0], "connectedAt"));
    management.delete_connection().connection_id(&id).send().await.unwrap();
    assert_eq!(one.closed().await, 1000);
    stack.settled("connections", 0).await;
    let gone = management.post_to_connection().connection_id(&id).data(blob).send().await.unwrap_err();
    assert!(gone.into_service_error().is_gone_exception());
}

#[tokio::test]
async fn functions_log_json_with_the_connection_and_without_what_was_said() {
    let stack = Stack::start().await;
    let mut one = stack.connect("?userId=1").await;
    let id = text(&stack.rows("connections").await[0], "connectionId");
    one.ask(json!({"action": "sendMessage", "destinationUserId": "1", "body": "a secret"})).await;
    let line = stack.logged(1, &["sendMessage |", "served"]).await.remove(0);
    let record: serde_json::Value = serde_json::from_str(line.split_once(" | ").unwrap().1).unwrap();
    let fields = &record["fields"];
    assert_eq!((&fields["route.key"], &fields["connection.id"]), (&json!("sendMessage"), &json!(id)));
    assert_eq!(fields["outcome"], "ok");
    assert!(fields["duration_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(fields["request.id"].as_str().unwrap().len(), 16);
    let log = stack.whole_log().await;
    for private in ["secret", "userId=1"] {
        assert_eq!(matching(&log, &[private]), Vec::<String>::new());
    }
    let warning = matching(&log, &["connect |", "WARN", "IDENTITY_MODE"]);
    assert_eq!(warning.len(), 1, "{warning:?}");
}

/// The fields of the only line of a function that contains all of these.
async fn fields(stack: &Stack, parts: &[&str]) -> serde_json::Value {
    let line = stack.logged(1, parts).await.remove(0);
    let mut record: serde_json::Value = serde_json::from_str(line.split_once(" | ").unwrap().1).unwrap();
    assert_eq!((&record["level"], stack.log(parts).len()), (&json!("INFO"), 1), "{parts:?}");
    record["fields"].take()
}

#[tokio::test]
async fn the_log_ties_a_connection_to_its_user_from_its_beginning_to_its_end() {
    let stack = crate::rights::verified("TOPIC_RULES=").await;
    let mut alice = crate::rights::connect(&stack, "alice", &json!(null)).await;
    alice.hears_nothing().await;
    let id = text(&stack.rows("connections").await[0], "connectionId");
    let begin = fields(&stack, &["connect |", &id]).await;
    assert_eq!(begin["message"], "served");
    assert_eq!((&begin["user.id"], &begin["user.named_by"]), (&json!("alice"), &json!("token")));
    // Each connection writes these lines, so they have nothing that the access log has.
    let absent = ["close.code", "route.key", "request.id", "invocation.id", "outcome"];
    assert!(absent.iter().all(|field| begin.get(field).is_none()), "{begin}");

    alice.close().await;
    let end = fields(&stack, &["disconnect |", &id]).await;
    assert_eq!((&end["user.id"], &end["close.code"]), (&json!("alice"), &json!(1005)));
    assert_eq!(end["close.reason"], "Client-side close frame status not set");

    let forged = crate::rights::token("mallory", -3600, &json!(null));
    assert_eq!(stack.refused(&format!("?token={forged}")).await, 401);
    let refused = fields(&stack, &["connect |", "the handshake is refused"]).await;
    assert_eq!((&refused["outcome"], &refused["reason"]), (&json!("invalid_token"), &json!("the token has expired")));
    assert!(refused["connection.id"].as_str() != Some(&id) && refused["user.id"].is_null(), "{refused}");
    let log = stack.whole_log().await;
    for private in ["eyJ", "mallory", "token="] {
        assert_eq!(matching(&log, &[private]), Vec::<String>::new());
    }
}

#[tokio::test]
async fn the_log_says_who_named_the_user() {
    let stack = Stack::start().await;
    for (query, user, by) in [("?userId=1", json!("1"), json!("client")), ("", json!(null), json!(null))] {
        let client = stack.connect(query).await;
        let id = text(&stack.settled("connections", 1).await[0], "connectionId");
        let begin = fields(&stack, &["connect |", &id]).await;
        assert_eq!((&begin["user.id"], &begin["user.named_by"]), (&user, &by));
        client.close().await;
        assert_eq!(fields(&stack, &["disconnect |", &id]).await["user.id"], user);
        stack.settled("connections", 0).await;
    }
}

#[tokio::test]
async fn the_log_level_is_a_variable() {
    for variable in ["AWS_LAMBDA_LOG_LEVEL=ERROR", "RUST_LOG=error"] {
        // Metrics are printed at every level, unless they have no namespace.
        let stack = Stack::with(&["--env", variable, "--env", "METRICS_NAMESPACE="]).await;
        stack.connect("?userId=1").await.hears_nothing().await;
        let log = stack.whole_log().await;
        assert_eq!(matching(&log, &["connect |"]), Vec::<String>::new(), "{variable}");
    }
}

#[tokio::test]
async fn ctrl_c_stops_everything_and_leaves_no_process() {
    let stack = Stack::start().await;
    let mut one = stack.connect("?userId=1").await;
    one.hears_nothing().await;
    let processes = children(stack.process_id()).await;
    assert!(processes.len() > 1, "{processes:?}");
    assert_eq!(stack.interrupt().await, Some(0));
    assert_eq!(one.closed().await, 1012);
    for (process, command) in processes {
        assert!(!is_running(process).await, "{process} {command} still runs");
    }
}

#[tokio::test]
async fn a_stack_that_is_killed_leaves_no_process_either() {
    let stack = Stack::start().await;
    stack.connect("?userId=1").await.hears_nothing().await;
    let functions = environments(&stack).await;
    assert!(!functions.is_empty());
    signal("-KILL", stack.process_id()).await;
    gone(&functions).await;
}

/// When the stack stops a function, the function runs on for a moment. If the stack is killed in that moment, the
/// function stops after the system has looked for stopped processes without a parent. Nothing would ever end it.
#[tokio::test]
async fn a_function_that_stops_after_its_stack_was_killed_is_not_left_behind() {
    let stack = Stack::with(&["--config", "tests/fixture/serverless.yml"]).await;
    let mut client = Client::connect(&format!("ws://{}/test", stack.gateway)).await.unwrap();
    client.send(json!({"service": "parrot", "do": "sleep", "ms": 600_000})).await;
    stack.logged(1, &["nap |", "parrot/sleep"]).await;
    let functions = environments(&stack).await;
    signal("-KILL", stack.process_id()).await;
    for function in &functions {
        // It may have ended already.
        let _ = Command::new("kill").args(["-STOP", &function.to_string()]).output().await.unwrap();
    }
    gone(&functions).await;
}

/// Waits until none of these processes runs.
async fn gone(processes: &[u32]) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    for process in processes {
        while is_running(*process).await {
            assert!(tokio::time::Instant::now() < deadline, "{process} still runs");
        }
    }
}

/// Whether there is such a process. A dead one that nobody has reaped does not count.
async fn is_running(process_id: u32) -> bool {
    let arguments = ["-o", "stat=", "-p", &process_id.to_string()];
    let output = Command::new("ps").args(arguments).output().await.unwrap();
    output.status.success() && !output.stdout.starts_with(b"Z")
}

#[tokio::test]
async fn with_a_data_dir_rows_survive_the_stack() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--data-dir", folder.path().to_str().unwrap()];
    let stack = Stack::with(&arguments).await;
    let row = [("topic", "kept"), ("connectionId", "x")];
    let row = row.map(|(name, value)| (name.to_owned(), aws_sdk_dynamodb::types::AttributeValue::S(value.to_owned())));
    let dynamodb = stack.dynamodb().await;
    let put = dynamodb.put_item().table_name(switchboard_tests::stack::table_name("topics")).set_item(Some(row.into()));
    put.send().await.unwrap();
    assert_eq!(stack.interrupt().await, Some(0));
    let stack = Stack::with(&arguments).await;
    assert_eq!(text(&stack.rows("topics").await[0], "topic"), "kept");
}

/// Starts a stack that cannot start, and returns what it prints.
async fn says(mut command: Command) -> String {
    let output = tokio::time::timeout(PATIENCE, command.output()).await.expect("it should have stopped").unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.trim_end().lines().count(), 1, "one clear line, not: {text}");
    text
}

#[tokio::test]
async fn a_port_in_use_is_one_clear_line() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for flag in ["--port", "--dynamodb-port"] {
        let mut command = Command::new(binaries().join("switchboard-local"));
        let other = if flag == "--port" { "--dynamodb-port" } else { "--port" };
        command.current_dir(root()).args([flag, &port, other, "0"]).stdin(Stdio::null());
        let text = says(command).await;
        assert!(text.contains(&port) && text.contains(flag), "{text}");
    }
}

#[tokio::test]
async fn a_missing_binary_is_one_clear_line() {
    let empty = tempfile::tempdir().unwrap();
    let text = says(command(&["--binaries", empty.path().to_str().unwrap()])).await;
    assert!(text.contains("`connect`") && text.contains("build"), "{text}");
}

#[tokio::test]
async fn a_broken_serverless_yml_is_one_clear_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("serverless.yml");
    for (content, names) in [
        ("service: [", "serverless.yml"),
        ("service: xy\nprovider: {name: aws}\nfunctions: {a: {handler: a, events: [websocket: $x]}}\n", "functions.a"),
    ] {
        std::fs::write(&path, content).unwrap();
        let text = says(command(&["--config", path.to_str().unwrap()])).await;
        assert!(text.contains(names), "{text}");
    }
    std::fs::remove_file(&path).unwrap();
    let text = says(command(&["--config", path.to_str().unwrap()])).await;
    assert!(text.contains("serverless.yml"), "{text}");
}

#[tokio::test]
async fn another_stage_has_other_tables_and_another_path() {
    let stack = Stack::with(&["--stage", "alice", "--env", "IDENTITY_MODE=open"]).await;
    let url = format!("ws://{}/alice?userId=1", stack.gateway);
    let mut one = Client::connect(&url).await.unwrap();
    one.hears_nothing().await;
    assert_eq!(stack.refused("?userId=1").await, 403);
    let tables = stack.dynamodb().await.list_tables().send().await.unwrap();
    assert!(tables.table_names().iter().all(|name| name.starts_with("switchboard-alice-")), "{tables:?}");
}

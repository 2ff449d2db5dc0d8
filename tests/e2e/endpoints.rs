//! Functions that make the endpoint of their posts themselves post to the local stack, as they would to AWS.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use aws_sdk_dynamodb::types::AttributeValue;
use serde_json::json;
use switchboard_tests::client::Client;
use switchboard_tests::stack::{PATIENCE, Stack, command, root};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const SERVICE: [&str; 2] = ["--config", "tests/fixture/endpoint.yml"];

/// Sends a message and waits for the answer that the function posts.
async fn is_answered(stack: &Stack, host: &str, text: &str) {
    let address = stack.gateway.replace("127.0.0.1", host);
    let mut client = Client::connect(&format!("ws://{address}/dev")).await.unwrap();
    client.send_text(text).await;
    assert_eq!(client.next_text().await, format!("you said {text}"), "{host}");
}

#[tokio::test]
async fn a_post_to_the_domain_name_of_the_event_arrives() {
    let stack = Stack::with(&SERVICE).await;
    for host in ["localhost", "127.0.0.1", "[::1]"] {
        is_answered(&stack, host, "hello").await;
    }
}

/// The tests take 127.0.0.2 for another address of this machine, such as that in the local network.
#[tokio::test]
async fn the_gateway_listens_at_another_address_only_with_the_flag_and_nothing_else_does() {
    let connects = async |host: &str, of: &str| TcpStream::connect(of.replace("127.0.0.1", host)).await.is_ok();
    let stack = Stack::with(&["--config", "tests/fixture/serverless.yml", "--web-port", "0"]).await;
    assert!(!connects("127.0.0.2", &stack.gateway).await);
    for host in ["127.0.0.2", "0.0.0.0"] {
        let flags = ["--config", "tests/fixture/serverless.yml", "--web-port", "0", "--host", host];
        let stack = Stack::with(&flags).await;
        stack.logged(1, &["gateway | --host", host, "other machines"]).await;
        for host in ["127.0.0.1", "[::1]", "127.0.0.2"] {
            let url = format!("ws://{}/test", stack.gateway.replace("127.0.0.1", host));
            Client::connect(&url).await.unwrap().close().await;
        }
        let lines = stack.log(&["/inspect"]);
        let (_, inspector) = lines[0].split_once("localhost:").unwrap();
        let inspector = format!("127.0.0.1:{}", inspector.trim_end_matches("/inspect"));
        for part in [&stack.dynamodb, &inspector] {
            assert!(connects("127.0.0.1", part).await, "{part}");
            assert!(!connects("127.0.0.2", part).await, "{part}");
        }
    }
}

#[tokio::test]
async fn a_post_to_another_address_of_this_machine_arrives() {
    let stack = Stack::with(&[&SERVICE[..], &["--host", "0.0.0.0"]].concat()).await;
    is_answered(&stack, "127.0.0.2", "hello").await;
}

#[tokio::test]
async fn a_post_to_the_apis_host_in_a_variable_arrives() {
    let stack = Stack::with(&SERVICE).await;
    is_answered(&stack, "localhost", r#"{"action":"variable"}"#).await;
}

/// Runs the service of SAM, after a change of a text in its template.
async fn service_of_sam(from: &str, to: &str) -> (tempfile::TempDir, Stack) {
    let folder = tempfile::tempdir().unwrap();
    let template = std::fs::read_to_string(root().join("tests/fixture/template.yaml")).unwrap();
    assert!(template.contains(from), "no {from} in {template}");
    std::fs::write(folder.path().join("template.yaml"), template.replace(from, to)).unwrap();
    let mut command = command(&[]);
    command.current_dir(folder.path());
    let stack = Stack::run(command).await;
    (folder, stack)
}

#[tokio::test]
async fn a_service_of_sam_runs_from_its_template() {
    let (_folder, stack) = service_of_sam("", "").await;
    is_answered(&stack, "localhost", "hello").await;
}

#[tokio::test]
async fn a_function_of_sam_may_do_what_its_policies_allow() {
    let (_folder, stack) = service_of_sam("execute-api:ManageConnections", "execute-api:Invoke").await;
    let mut client = Client::connect(&format!("ws://{}/dev", stack.gateway)).await.unwrap();
    client.send_text("hello").await;
    assert_eq!(client.next().await["message"], "Internal server error");
    let refused = "AnswerRole does not allow execute-api:ManageConnections on";
    stack.logged(1, &["iam | Answer: the role ", refused]).await;
}

#[tokio::test]
async fn a_post_of_javascript_arrives() {
    // The variable has the folder of Node.
    let flags = ["--config", "tests/fixture/endpoint-node.yml", "--binaries", "tests/clients", "--env", "PATH"];
    let stack = Stack::with(&flags).await;
    is_answered(&stack, "localhost", "hello").await;
}

#[tokio::test]
async fn a_function_that_does_not_trust_the_certificate_is_told_what_it_must_read() {
    let stack = Stack::with(&[&SERVICE[..], &["--env", "SSL_CERT_FILE=/dev/null"]].concat()).await;
    let mut client = Client::connect(&format!("ws://{}/dev", stack.gateway)).await.unwrap();
    client.send_text("hello").await;
    stack.logged(1, &["gateway | refused TLS", "SSL_CERT_FILE"]).await;
    assert_eq!(client.next().await["message"], "Internal server error");
}

/// The functions are scripts that fail, so no call leaves this machine.
#[tokio::test]
async fn a_function_that_makes_the_apis_host_itself_is_told_once_that_it_is_not_here() {
    let scripts = [
        ("silent", "exit 1"),
        ("code", "exit 1 # https://$api.execute-api.$AWS_REGION.amazonaws.com/dev"),
        ("line", "printf 'no address of x.execute%s.eu-west-1.amazonaws.com\\n' -api; exit 1"),
    ];
    let folder = tempfile::tempdir().unwrap();
    let mut service = "service: echo\nprovider: {name: aws}\nfunctions:\n".to_owned();
    for (name, line) in scripts {
        let script = folder.path().join(name);
        std::fs::write(&script, format!("#!/bin/sh\n{line}\n")).unwrap();
        std::fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
        service += &format!("  {name}: {{handler: {name}, events: [websocket: {name}]}}\n");
    }
    std::fs::write(folder.path().join("serverless.yml"), service).unwrap();
    let mut command = command(&["--binaries", "."]);
    command.current_dir(folder.path());
    let stack = Stack::run(command).await;
    let mut client = Client::connect(&format!("ws://{}/dev", stack.gateway)).await.unwrap();
    let hint = "{apiId}.execute-api.{region}.amazonaws.com";
    for (name, _) in scripts.iter().chain(&scripts) {
        client.send(json!({ "action": name })).await;
        assert_eq!(client.next().await["message"], "Internal server error");
        if *name != "silent" {
            stack.logged(1, &[&format!("{name} | "), hint]).await;
        }
    }
    assert_eq!(stack.log(&[hint]).len(), 2, "{:#?}", stack.log(&[]));
}

#[tokio::test]
async fn a_post_without_the_stage_is_refused_and_the_terminal_says_once_what_is_missing() {
    let stack = Stack::with(&SERVICE).await;
    for _ in 0..2 {
        let mut stream = TcpStream::connect(&stack.gateway).await.unwrap();
        let request = "POST /@connections/AbCdEfGhIjKlMnO= HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
        stack.logged(1, &["gateway | ", "its path must be `/dev/@connections/{id}`"]).await;
    }
    assert_eq!(stack.log(&["its path must be"]).len(), 1, "{:#?}", stack.log(&[]));
}

#[tokio::test]
async fn a_connection_that_never_says_anything_does_not_keep_the_stack_from_stopping() {
    let stack = Stack::with(&SERVICE).await;
    let _silent = TcpStream::connect(&stack.gateway).await.unwrap();
    let mut half = TcpStream::connect(&stack.gateway).await.unwrap();
    half.write_all(&[0x16, 3, 1]).await.unwrap();
    assert_eq!(stack.interrupt().await, Some(0));
    let mut byte = [0];
    let ended = tokio::time::timeout(PATIENCE, half.read(&mut byte)).await.expect("the connection is open");
    assert!(ended.is_err() || matches!(ended, Ok(0)));
}

/// The service has functions in JavaScript, a role, an index and a stream, as the projects of articles have.
#[tokio::test]
async fn a_service_in_javascript_publishes_to_topics_and_what_a_backend_puts_into_a_table() {
    let (config, binaries) = ("tests/clients/pubsub/serverless.yml", "tests/clients/pubsub/bin");
    let stack = Stack::with(&["--config", config, "--binaries", binaries, "--env", "PATH"]).await;
    let mut clients = [stack.connect("").await, stack.connect("").await];
    stack.logged(2, &["connect |", "listens to INITIAL_CONNECTION"]).await;
    for client in &mut clients {
        client.send(json!({"type": "subscribe", "topic": "general"})).await;
    }
    stack.logged(2, &["default |", "listens to general"]).await;
    clients[0].send(json!({"type": "message", "topic": "general", "message": "count is 0"})).await;
    for client in &mut clients {
        let frame = client.next().await;
        assert_eq!((&frame["type"], &frame["payload"]), (&json!("data"), &json!({"data": "count is 0"})));
    }

    // Only the second client hears what comes after this.
    clients[0].send(json!({"type": "stop", "topic": "general"})).await;
    stack.logged(1, &["default |", "left 1 topic"]).await;
    clients[0].send(json!({"type": "message", "topic": "general", "message": "count is 1"})).await;
    assert_eq!(clients[1].next().await["payload"], json!({"data": "count is 1"}));

    let put = stack.dynamodb().await.put_item().table_name("pubsub-dev-events");
    let attribute = |text: &str| AttributeValue::S(text.to_owned());
    let put = put.item("topic", attribute("INITIAL_CONNECTION")).item("id", attribute("1"));
    put.item("data", attribute("hello everybody")).send().await.unwrap();
    for client in &mut clients {
        assert_eq!(client.next().await["payload"], json!({"data": "hello everybody"}));
    }
    let [first, second] = clients;
    first.close().await;
    second.close().await;
    stack.logged(1, &["disconnect |", "left 1 topic"]).await;
    stack.logged(1, &["disconnect |", "left 2 topic"]).await;
    assert!(stack.log(&["AccessDenied"]).is_empty());
}

//! Functions that make the endpoint of their posts themselves post to the local stack, as they would to AWS.

use switchboard_tests::client::Client;
use switchboard_tests::stack::{PATIENCE, Stack};
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
    for host in ["localhost", "127.0.0.1"] {
        is_answered(&stack, host, "hello").await;
    }
}

#[tokio::test]
async fn a_post_to_the_apis_host_in_a_variable_arrives() {
    let stack = Stack::with(&SERVICE).await;
    is_answered(&stack, "localhost", r#"{"action":"variable"}"#).await;
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

//! Events as AWS sends them, handed to the real function binaries by a Runtime API.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use switchboard_local::lambda::{Function, FunctionSettings};
use switchboard_tests::stack::{Stack, binaries, root, table_name, text};

/// A function of ours next to a stack whose tables and gateway it uses.
fn function(stack: &Stack, binary: &str, variables: &[(&str, &str)]) -> Function {
    let pair = |(name, value): (&str, String)| (name.to_owned(), value);
    let mut environment = BTreeMap::from(
        [
            ("CONNECTIONS_TABLE", table_name("connections")),
            ("TOPICS_TABLE", table_name("topics")),
            ("EVENTS_TABLE", table_name("events")),
            ("AWS_ENDPOINT_URL_DYNAMODB", format!("http://{}", stack.dynamodb)),
            ("AWS_ENDPOINT_URL_APIGATEWAYMANAGEMENTAPI", format!("http://{}/dev", stack.gateway)),
            // The events were recorded in 2023, and a row expires when its connection must have ended.
            ("CONNECTION_TTL_S", "1000000000".to_owned()),
        ]
        .map(pair),
    );
    environment.extend(variables.iter().map(|(name, value)| pair((name, (*value).to_owned()))));
    let timeout = Duration::from_secs(10);
    Function::new(FunctionSettings { timeout, ..FunctionSettings::of(binaries().join(binary), environment) }).unwrap()
}

/// Invokes a function with a recorded event and returns its status.
async fn status(function: &Function, event: &str) -> u64 {
    let event = std::fs::read(root().join("tests/events").join(event)).unwrap();
    let response = function.invoke(event.into()).await.unwrap();
    serde_json::from_slice::<Value>(&response).unwrap()["statusCode"].as_u64().unwrap()
}

#[tokio::test]
async fn a_recorded_connection_comes_subscribes_and_goes() {
    let stack = Stack::start().await;
    let connect = function(&stack, "connect", &[("IDENTITY_MODE", "open")]);
    let default = function(&stack, "default", &[]);
    let disconnect = function(&stack, "disconnect", &[]);
    for goodbye in [
        "disconnect-client.json",
        "disconnect-browser.json",
        "disconnect-idle.json",
        "disconnect-delete.json",
        "disconnect-2020.json",
    ] {
        assert_eq!(status(&connect, "connect.json").await, 200);
        let rows = stack.rows("connections").await;
        assert_eq!((text(&rows[0], "connectionId"), text(&rows[0], "userId")), ("PJqB0fHsqRcCHlw=".into(), "2".into()));
        assert_eq!(status(&default, "subscribe.json").await, 200);
        assert_eq!(stack.rows("topics").await.len(), 2);
        assert_eq!(status(&disconnect, goodbye).await, 200, "{goodbye}");
        assert!(stack.rows("connections").await.is_empty() && stack.rows("topics").await.is_empty(), "{goodbye}");
        // AWS does not promise that `$disconnect` comes only once.
        assert_eq!(status(&disconnect, goodbye).await, 200, "{goodbye}");
    }
}

#[tokio::test]
async fn an_authorizers_principal_is_the_user_and_without_one_the_handshake_is_refused() {
    let stack = Stack::start().await;
    let connect = function(&stack, "connect", &[]);
    assert_eq!(status(&connect, "connect.json").await, 401);
    assert!(stack.rows("connections").await.is_empty());
    assert_eq!(status(&connect, "connect-authorizer.json").await, 200);
    assert_eq!(text(&stack.rows("connections").await[0], "userId"), "user");
}

#[tokio::test]
async fn a_recorded_message_of_a_connection_that_is_gone_succeeds() {
    // The post of its error frame gets a 410, which is not a fault.
    let stack = Stack::start().await;
    assert_eq!(status(&function(&stack, "send-message", &[]), "send-message.json").await, 200);
    assert_eq!(status(&function(&stack, "default", &[]), "default-crlf.json").await, 200);
}

#[tokio::test]
async fn a_function_without_its_configuration_says_what_is_missing_and_ends() {
    let function = Function::new(FunctionSettings::of(binaries().join("connect"), BTreeMap::new()));
    let error = function.unwrap().invoke("{}".into()).await.unwrap_err();
    assert_eq!(error.error_type, "Runtime.ExitError");
}

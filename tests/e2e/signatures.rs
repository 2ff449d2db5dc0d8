//! Calls of `@connections` whose signatures are verified, signed by the SDK.

use aws_sdk_apigatewaymanagement::config::{Builder, Credentials};
use aws_sdk_apigatewaymanagement::error::ProvideErrorMetadata;
use serde_json::json;

use crate::stack::{Stack, sdk};

#[tokio::test]
async fn functions_sign_right_and_others_are_refused() {
    let stack = Stack::with(&["--verify-signatures"]).await;
    let mut client = stack.connect("?userId=1").await;
    // The function's own POST.
    let own = client.ask(json!({"action": "sendMessage", "destinationUserId": "1", "body": "hi"})).await;
    assert_eq!(own["body"], "hi");

    let rows = stack.rows("connections").await;
    let id = rows[0]["connectionId"].as_s().unwrap();
    let config = sdk(&format!("http://{}/dev", stack.gateway)).await;
    for (secret, token, refusal) in [
        ("local", Some("local"), None),
        ("guess", Some("local"), Some("InvalidSignatureException")),
        ("local", None, Some("UnrecognizedClientException")),
    ] {
        let credentials = Credentials::new("local", secret, token.map(str::to_owned), None, "test");
        let config = Builder::from(&config).credentials_provider(credentials).build();
        let management = aws_sdk_apigatewaymanagement::Client::from_conf(config);
        let get = management.get_connection().connection_id(id).send().await;
        assert_eq!(get.err().and_then(|error| error.code().map(str::to_owned)).as_deref(), refusal);
    }
}

//! Tokens that name the user. The issuer is npm's `jose`.

use serde_json::{Value, json};
use switchboard_tests::client::Client;
use switchboard_tests::stack::{Stack, matching, root, text};
use tokio::process::Command;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

/// Keys of several kinds, and tokens that are signed with them.
async fn issued() -> Value {
    let issuer =
        Command::new("node").arg("token.mjs").current_dir(root().join("tests/clients")).output().await.unwrap();
    assert!(issuer.status.success(), "{}", String::from_utf8_lossy(&issuer.stderr));
    serde_json::from_slice(&issuer.stdout).unwrap()
}

async fn stack(issued: &Value, mode: &str) -> Stack {
    let keys = format!("TOKEN_KEYS={}", issued["keys"]);
    Stack::with(&["--env", &keys, "--env", &format!("IDENTITY_MODE={mode}")]).await
}

#[tokio::test]
async fn a_token_of_any_usual_kind_says_who_is_the_sender() {
    let issued = issued().await;
    let stack = stack(&issued, "verified").await;
    let token = |name: &str| issued["tokens"][name].as_str().unwrap();
    let mut receiver = stack.connect(&format!("?token={}", token("ES256"))).await;
    for algorithm in ["HS256", "RS256", "PS384", "ES256", "EdDSA"] {
        let mut sender = stack.connect(&format!("?token={}&userId=mallory", token(algorithm))).await;
        sender.send(json!({"action": "sendMessage", "destinationUserId": "user of ES256", "body": algorithm})).await;
        let expected = json!({"senderId": format!("user of {algorithm}"), "body": algorithm});
        assert_eq!(receiver.next().await, expected);
        sender.close().await;
    }

    let mut request = format!("ws://{}/dev", stack.gateway).into_client_request().unwrap();
    request.headers_mut().insert("Authorization", format!("Bearer {}", token("RS256")).parse().unwrap());
    let (socket, _) = tokio_tungstenite::connect_async(request).await.unwrap();
    let mut by_header = Client { socket };
    by_header.hears_nothing().await;
    let users: Vec<_> = stack.rows("connections").await.iter().map(|row| text(row, "userId")).collect();
    assert!(users.contains(&"user of RS256".to_owned()), "{users:?}");
    let log = stack.whole_log().await;
    assert_eq!(matching(&log, &["eyJ"]), Vec::<String>::new(), "a token is in the log");
}

#[tokio::test]
async fn a_client_without_a_good_token_is_refused_and_the_log_says_why() {
    let (issued, others) = (issued().await, issued().await);
    for mode in ["verified", "open"] {
        let stack = stack(&issued, mode).await;
        for (tokens, name, reason) in [
            (&issued, "expired RS256", "has expired"),
            (&others, "RS256", "has a wrong signature"),
            (&others, "HS256", "has a wrong signature"),
        ] {
            let token = tokens["tokens"][name].as_str().unwrap();
            assert_eq!(stack.refused(&format!("?token={token}&userId=1")).await, 401, "{name}");
            stack.logged(1, &["connect |", reason]).await;
        }
        assert_eq!(stack.refused("?token=alice").await, 401);
        assert_eq!(stack.refused("?token=a&token=b").await, 400);
        if mode == "verified" {
            assert_eq!(stack.refused("?userId=1").await, 401);
            stack.logged(1, &["connect |", "neither an authorizer nor a token"]).await;
        }
    }
}

#[tokio::test]
async fn unusable_keys_end_the_function_and_the_log_says_where_they_are() {
    let stack = Stack::with(&["--env", r#"TOKEN_KEYS={"keys":[{"kty":"oct","k":"c2hvcnQtYW5kLXNlY3JldA"}]}"#]).await;
    assert_eq!(stack.refused("?userId=1").await, 502);
    let line = stack.logged(1, &["connect |", "TOKEN_KEYS: keys[0]: a secret needs 32 bytes"]).await;
    assert!(!line[0].contains("c2hvcnQt"), "{line:?}");
}

//! Tokens that name the user. The issuer is npm's `jose`.

use serde_json::{Value, json};
use switchboard_tests::client::Client;
use switchboard_tests::stack::{Stack, matching, root, text};
use tokio::process::Command;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

/// Keys of several kinds, and tokens that are signed with them.
pub async fn issued() -> Value {
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
    for algorithm in ["RS256", "PS384", "ES256", "EdDSA"] {
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
    for mode in ["verified", "open-with-tokens"] {
        let stack = stack(&issued, mode).await;
        for (tokens, name, reason) in [
            (&issued, "expired RS256", "the token has expired"),
            (&issued, "far RS256", "later than TOKEN_MAX_LIFETIME_S allows"),
            (&others, "RS256", "the token's signature is wrong"),
            (&others, "ES256", "the token's signature is wrong"),
            (&issued, "HS256", "no key here has the token's `kid`"),
        ] {
            let token = tokens["tokens"][name].as_str().unwrap();
            assert_eq!(stack.refused(&format!("?token={token}&userId=1")).await, 401, "{name}");
            stack.logged(1, &["connect |", "the handshake is refused", reason]).await;
        }
        assert_eq!(stack.refused("?token=alice").await, 401);
        assert_eq!(stack.refused("?token=a&token=b").await, 400);
        if mode == "verified" {
            assert_eq!(stack.refused("?userId=1").await, 401);
            stack.logged(1, &["connect |", "neither an authorizer nor a token"]).await;
        } else {
            stack.connect("?userId=1").await.hears_nothing().await;
        }
        assert!(stack.log(&["eyJ"]).is_empty(), "a token is in the log");
    }
}

#[tokio::test]
async fn a_key_that_cannot_be_used_is_skipped_and_the_others_of_its_set_are_used() {
    let mut issued = issued().await;
    let keys = issued["keys"]["keys"].as_array_mut().unwrap();
    let short: String = keys.iter().find(|key| key["kid"] == "EdDSA").unwrap()["x"].as_str().unwrap()[..27].into();
    keys.insert(0, json!({"kty": "AKP", "alg": "ML-DSA-65", "kid": "post-quantum", "use": "sig", "pub": "AAAA"}));
    keys.insert(1, json!({"kty": "OKP", "crv": "Ed25519", "x": short, "kid": "short", "alg": "EdDSA"}));
    let mut numbered = keys.iter().find(|key| key["kid"] == "RS256").unwrap().clone();
    numbered["kid"] = json!(7);
    keys.insert(2, numbered);

    let stack = stack(&issued, "verified").await;
    let token = issued["tokens"]["RS256"].as_str().unwrap();
    stack.connect(&format!("?token={token}")).await.hears_nothing().await;
    for (place, reason) in [(0, "`kty`"), (1, "`x`"), (2, "`kid`")] {
        stack.logged(1, &["connect |", "WARN", &format!("TOKEN_KEYS: keys[{place}] is skipped"), reason]).await;
    }
    // {"alg":"EdDSA","kid":"short"}, with the claims of the good token.
    let (_, claims) = token.split_once('.').unwrap();
    let named = format!("eyJhbGciOiJFZERTQSIsImtpZCI6InNob3J0In0.{claims}");
    assert_eq!(stack.refused(&format!("?token={named}")).await, 401);
    stack.logged(1, &["connect |", "no key here has the token's `kid`"]).await;
}

/// A handshake with one header more. Returns the headers of the answer.
async fn with_header(
    stack: &Stack,
    name: &'static str,
    value: &str,
) -> Result<(Client, tokio_tungstenite::tungstenite::http::HeaderMap), u16> {
    let mut request = format!("ws://{}/dev", stack.gateway).into_client_request().unwrap();
    request.headers_mut().insert(name, value.parse().unwrap());
    match tokio_tungstenite::connect_async(request).await {
        Ok((socket, answer)) => Ok((Client { socket }, answer.headers().clone())),
        Err(tokio_tungstenite::tungstenite::Error::Http(answer)) => Err(answer.status().as_u16()),
        Err(error) => panic!("{error}"),
    }
}

/// As `new WebSocket(url, ['bearer', token])` does it. The library checks that the server chooses an offered subprotocol.
#[tokio::test]
async fn a_browser_offers_its_token_as_a_subprotocol() {
    let issued = issued().await;
    let stack = stack(&issued, "verified").await;
    let token = issued["tokens"]["ES256"].as_str().unwrap();
    let name = "sec-websocket-protocol";
    let (mut client, headers) = with_header(&stack, name, &format!("bearer, {token}")).await.unwrap();
    assert_eq!(headers[name], "bearer");
    client.send(json!({"action": "sendMessage", "destinationUserId": "user of ES256", "body": "me"})).await;
    assert_eq!(client.next().await["senderId"], "user of ES256");
    assert_eq!(with_header(&stack, name, "bearer, x.y.z").await.map(drop), Err(401));
    assert_eq!(with_header(&stack, name, "bearer").await.map(drop), Err(401));
}

#[tokio::test]
async fn pages_of_other_origins_are_refused() {
    // The local gateway has a check of its own, which lets these pages through to the function.
    let pages = ["--allow-origin", "https://chat.example.org", "--allow-origin", "https://evil.example"];
    let allowed = ["--env", "ALLOWED_ORIGINS=https://chat.example.org, http://localhost:3000"];
    let stack = Stack::with(&[&pages[..], &allowed].concat()).await;
    for origin in ["https://chat.example.org", "http://localhost:3000"] {
        with_header(&stack, "origin", origin).await.unwrap().0.hears_nothing().await;
    }
    assert_eq!(with_header(&stack, "origin", "https://evil.example").await.map(drop), Err(403));
    stack.logged(1, &["connect |", "forbidden_origin"]).await;
    stack.connect("?userId=1").await.hears_nothing().await;

    let stack = Stack::start().await;
    let _anybody = stack.connect("?userId=1").await;
    stack.logged(1, &["connect |", "ALLOWED_ORIGINS is not set"]).await;
    let stack = Stack::with(&["--env", "ALLOWED_ORIGINS=*"]).await;
    stack.refused("?userId=1").await;
    stack.logged(1, &["connect |", "ALLOWED_ORIGINS has `*`, which is no origin"]).await;
}

#[tokio::test]
async fn while_keys_rotate_tokens_without_a_kid_are_tried_with_every_key() {
    let (mut old, new) = (issued().await, issued().await);
    let key = |issued: &Value| {
        let keys = issued["keys"]["keys"].as_array().unwrap();
        keys.iter().find(|key| key["kid"] == "RS256").unwrap().clone()
    };
    let mut unnamed = key(&old);
    unnamed.as_object_mut().unwrap().remove("kid");
    for keys in [vec![unnamed.clone()], vec![key(&new), unnamed], vec![key(&new), key(&old)]] {
        old["keys"]["keys"] = json!(keys);
        let stack = stack(&old, "verified").await;
        let token = |issued: &Value, name: &str| format!("?token={}", issued["tokens"][name].as_str().unwrap());
        stack.connect(&token(&old, "RS256 without kid")).await.hears_nothing().await;
        if keys.len() == 2 {
            stack.connect(&token(&new, "RS256 without kid")).await.hears_nothing().await;
            stack.connect(&token(&new, "RS256")).await.hears_nothing().await;
        } else {
            assert_eq!(stack.refused(&token(&new, "RS256 without kid")).await, 401);
        }
    }
}

#[tokio::test]
async fn a_wrong_configuration_ends_the_function_with_all_that_is_wrong() {
    let keys = r#"TOKEN_KEYS={"keys":[{"kty":"oct","k":"c2hvcnQtYW5kLXNlY3JldA"}]}"#;
    let environment = ["--env", keys, "--env", "TOKEN_MAX_LIFETIME_S=soon", "--env", "CONNECTION_TTL_S=later"];
    let stack = Stack::with(&environment).await;
    assert_eq!(stack.refused("?userId=1").await, 502);
    let line = stack.logged(1, &["connect |", "TOKEN_KEYS: keys[0]: it is a secret", "TOKEN_KEYS_PARAMETER"]).await;
    for problem in ["CONNECTION_TTL_S is not", "TOKEN_MAX_LIFETIME_S is not", "IDENTITY_MODE is `open`, but TOKEN_KEYS"]
    {
        assert!(line[0].contains(problem), "{problem} is not in {line:?}");
    }
    assert!(!line[0].contains("c2hvcnQt"), "{line:?}");
}

#[tokio::test]
async fn open_together_with_keys_does_not_start() {
    let issued = issued().await;
    let stack = stack(&issued, "open").await;
    let token = issued["tokens"]["RS256"].as_str().unwrap();
    for query in ["?userId=1", "", &format!("?token={token}")] {
        assert_eq!(stack.refused(query).await, 502, "{query}");
    }
    stack.logged(1, &["connect |", "IDENTITY_MODE is `open`, but TOKEN_KEYS is set"]).await;
}

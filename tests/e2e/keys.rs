//! The places from which `connect` reads keys: a parameter of SSM, and the address of a provider.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use axum::http::StatusCode;
use futures_util::future::join_all;
use serde_json::{Value, json};
use switchboard_tests::stack::{PATIENCE, Stack, command, matching};

use crate::tokens::issued;

const NAME: &str = "/switchboard/dev/keys";

/// A stack whose deployment names the parameter, so that the role of `connect` allows to read it.
async fn with_parameter(arguments: &[&str]) -> Stack {
    let mut command = command(&[&["--env", "IDENTITY_MODE=verified"][..], arguments].concat());
    command.env("TOKEN_KEYS_PARAMETER", NAME);
    Stack::run(command).await
}

/// A file with this text, and the flag's value that makes it a parameter.
fn parameter(text: &str) -> (tempfile::TempDir, PathBuf, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.json");
    std::fs::write(&file, text).unwrap();
    let flag = format!("{NAME}={}", file.display());
    (folder, file, flag)
}

#[tokio::test]
async fn a_secret_in_a_parameter_checks_tokens_and_is_never_shown() {
    let issued = issued().await;
    let (_folder, _, flag) = parameter(&issued["secrets"].to_string());
    let stack = with_parameter(&["--parameter", &flag]).await;
    let token = |name: &str| format!("?token={}", issued["tokens"][name].as_str().unwrap());
    let mut client = stack.connect(&token("HS256")).await;
    let me = client.ask(json!({"action": "sendMessage", "destinationUserId": "user of HS256", "body": "me"})).await;
    assert_eq!(me["senderId"], "user of HS256");
    assert_eq!(stack.refused(&token("expired HS256")).await, 401);
    assert_eq!(stack.refused(&token("ES256")).await, 401);
    let secret = issued["secrets"]["keys"][0]["k"].as_str().unwrap();
    assert_eq!(matching(&stack.whole_log().await, &[secret]), Vec::<String>::new());
}

#[tokio::test]
async fn a_parameter_that_cannot_be_read_ends_the_function_with_its_reason() {
    let failed = "TOKEN_KEYS_PARAMETER: the keys cannot be read";
    let (_folder, file, flag) = parameter("a secret, and not JSON");
    let stack = with_parameter(&["--parameter", &flag]).await;
    assert_eq!(stack.refused("").await, 502);
    stack.logged(1, &["connect |", "Config.Invalid", failed, "the text is not JSON, from line 1"]).await;
    // It needs no deployment to recover.
    let issued = issued().await;
    std::fs::write(&file, issued["secrets"].to_string()).unwrap();
    stack.connect(&format!("?token={}", issued["tokens"]["HS256"].as_str().unwrap())).await.hears_nothing().await;
    assert_eq!(matching(&stack.whole_log().await, &["a secret"]), Vec::<String>::new());

    let stack = with_parameter(&[]).await;
    assert_eq!(stack.refused("").await, 502);
    stack.logged(1, &["connect |", failed, "ParameterNotFound, status 400"]).await;

    // The deployment does not name the parameter, so the role does not allow to read it.
    let variable = format!("TOKEN_KEYS_PARAMETER={NAME}");
    let arguments = ["--env", &variable, "--parameter", &flag, "--env", "IDENTITY_MODE=verified"];
    let stack = Stack::with(&arguments).await;
    assert_eq!(stack.refused("").await, 502);
    stack
        .logged(1, &["connect |", failed, "AccessDeniedException", "not authorized to perform: ssm:GetParameter"])
        .await;

    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("AWS_ENDPOINT_URL_SSM=http://{}", silent.local_addr().unwrap());
    let stack = with_parameter(&["--env", &endpoint]).await;
    assert_eq!(stack.refused("").await, 502);
    stack.logged(1, &["connect |", failed, "there is no answer after 1.5s"]).await;
}

/// A provider that counts the reads of its set. Without a set it does not answer.
#[derive(Clone, Default)]
struct Provider {
    set: Arc<Mutex<Option<String>>>,
    reads: Arc<Mutex<usize>>,
}

impl Provider {
    /// Starts it, and returns the argument that names it.
    async fn start(set: &Value) -> (Self, String) {
        let provider = Self::default();
        provider.publish(Some(&set.to_string()));
        let (answers, listener) = (provider.clone(), tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap());
        let variable = format!("TOKEN_KEYS_URL=http://{}/jwks.json", listener.local_addr().unwrap());
        let router = axum::Router::new().fallback(async move || {
            *answers.reads.lock().unwrap() += 1;
            let set = answers.set.lock().unwrap().clone();
            match set {
                Some(set) => (StatusCode::OK, set),
                None => std::future::pending().await,
            }
        });
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        (provider, variable)
    }

    fn publish(&self, set: Option<&str>) {
        *self.set.lock().unwrap() = set.map(str::to_owned);
    }

    fn reads(&self) -> usize {
        *self.reads.lock().unwrap()
    }
}

#[tokio::test]
async fn a_new_key_of_a_provider_needs_no_deployment() {
    let (old, new) = (issued().await, issued().await);
    let key = |issued: &Value, name: &str| {
        let mut key =
            issued["keys"]["keys"].as_array().unwrap().iter().find(|key| key["kid"] == "ES256").unwrap().clone();
        key["kid"] = json!(name);
        key
    };
    // The new provider's tokens say `ES256`, which the old set does not know.
    let (provider, variable) = Provider::start(&json!({"keys": [key(&old, "old")]})).await;
    let stack = Stack::with(&["--env", &variable, "--env", "IDENTITY_MODE=verified", "--max-environments", "1"]).await;
    let by_kid = format!("?token={}", new["tokens"]["ES256"].as_str().unwrap());
    let without_kid = format!("?token={}", old["tokens"]["ES256 without kid"].as_str().unwrap());
    stack.connect(&without_kid).await.hears_nothing().await;
    assert_eq!(provider.reads(), 1);

    provider.publish(Some(&json!({"keys": [key(&old, "old"), key(&new, "ES256")]}).to_string()));
    stack.connect(&by_kid).await.hears_nothing().await;
    stack.connect(&by_kid).await.hears_nothing().await;
    stack.connect(&without_kid).await.hears_nothing().await;
    assert_eq!(provider.reads(), 2);

    // {"alg":"ES256","kid":"made up"}, with the claims of a good token.
    let (_, claims) = by_kid.split_once('.').unwrap();
    let made_up = format!("?token=eyJhbGciOiJFUzI1NiIsImtpZCI6Im1hZGUgdXAifQ.{claims}");
    let storm = join_all((0..20).map(|_| stack.refused(&made_up))).await;
    assert_eq!(storm, [401; 20]);
    stack.logged(20, &["connect |", "no key here has the token's `kid`"]).await;
    assert_eq!(provider.reads(), 2, "a made-up kid may not read the set again within a minute");
    stack.connect(&by_kid).await.hears_nothing().await;
    assert_eq!(matching(&stack.whole_log().await, &["eyJ"]), Vec::<String>::new(), "a token is in the log");
}

#[tokio::test]
async fn made_up_kids_read_a_set_once_and_a_read_that_fails_keeps_the_keys() {
    let issued = issued().await;
    let (provider, variable) = Provider::start(&issued["keys"]).await;
    let stack = Stack::with(&["--env", &variable, "--env", "IDENTITY_MODE=verified", "--max-environments", "1"]).await;
    let good = format!("?token={}", issued["tokens"]["RS256"].as_str().unwrap());
    stack.connect(&good).await.hears_nothing().await;
    provider.publish(None);
    let (_, claims) = good.split_once('.').unwrap();
    let made_up = format!("?token=eyJhbGciOiJFUzI1NiIsImtpZCI6Im1hZGUgdXAifQ.{claims}");
    let storm = tokio::time::timeout(PATIENCE, join_all((0..20).map(|_| stack.refused(&made_up))));
    assert_eq!(storm.await.unwrap(), [401; 20]);
    assert_eq!(provider.reads(), 2);
    stack
        .logged(1, &["connect |", "WARN", "the keys cannot be read again, so the old ones stay: there is no answer"])
        .await;
    stack.connect(&good).await.hears_nothing().await;
}

#[tokio::test]
async fn a_provider_that_fails_at_the_start_refuses_handshakes_until_it_is_back() {
    let issued = issued().await;
    let (provider, variable) = Provider::start(&json!({})).await;
    let stack = Stack::with(&["--env", &variable, "--env", "IDENTITY_MODE=verified"]).await;
    let good = format!("?token={}", issued["tokens"]["RS256"].as_str().unwrap());
    for (set, reason) in [
        (Some("<html>".to_owned()), "the text is not JSON, from line 1 column 1"),
        (Some("x".repeat(1_000_000)), "the answer has more than 64 KB"),
        (Some(json!({"keys": []}).to_string()), "no key of the set can check signatures"),
        (None, "there is no answer after 1.5s"),
    ] {
        provider.publish(set.as_deref());
        assert_eq!(stack.refused(&good).await, 502, "{reason}");
        stack.logged(1, &["connect |", "Config.Invalid", "TOKEN_KEYS_URL: the keys cannot be read", reason]).await;
    }
    provider.publish(Some(&issued["keys"].to_string()));
    stack.connect(&good).await.hears_nothing().await;

    let two = ["--env", &variable, "--env", "TOKEN_KEYS_PARAMETER=/keys", "--env", "IDENTITY_MODE=verified"];
    let stack = Stack::with(&two).await;
    assert_eq!(stack.refused(&good).await, 502);
    stack.logged(1, &["connect |", "TOKEN_KEYS_PARAMETER and TOKEN_KEYS_URL are both set"]).await;
}

//! Lambda authorizers: they decide which clients may connect, and describe them to the functions.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use switchboard_local::lambda::FunctionError;
use switchboard_tests::keys::keys;
use switchboard_tests::wire::CLOSE;

use crate::bed::{Answer, Bed, KIB, Script};

const METHOD_ARN: &str = "arn:aws:execute-api:us-east-1:123456789012:abcdef1234/dev/$connect";
const AUTH: [(&str, &str); 1] = [("Auth", "token")];

fn policy(effect: &str, resource: &str) -> Value {
    let statement = json!({ "Effect": effect, "Action": "execute-api:Invoke", "Resource": resource });
    json!({ "principalId": "user", "policyDocument": { "Version": "2012-10-17", "Statement": [statement] } })
}

/// Starts an API whose authorizer answers with `answer`. It has the default identity source.
async fn bed(answer: impl Fn() -> Answer + Send + Sync + 'static) -> Bed {
    let script = Script::new().authorizer(&["route.request.header.Auth"], move |_| std::future::ready(answer()));
    script.start().await
}

fn failure(message: &str) -> Answer {
    Err(FunctionError { error_type: "Error".to_owned(), error_message: message.to_owned() })
}

#[tokio::test]
async fn the_authorizer_is_asked_before_connect_and_told_of_the_request() {
    let mut bed = bed(|| Ok(policy("Allow", METHOD_ARN).to_string().into())).await;
    let client = bed.handshake("/dev?userId=2", &AUTH).await;
    assert_eq!(client.reply.status, 101);
    let event = bed.event().await;
    let expected = [
        "type",
        "methodArn",
        "headers",
        "multiValueHeaders",
        "queryStringParameters",
        "multiValueQueryStringParameters",
        "stageVariables",
        "requestContext",
    ];
    assert_eq!(keys(&event), BTreeSet::from(expected));
    assert_eq!((&event["type"], &event["methodArn"]), (&json!("REQUEST"), &json!(METHOD_ARN)));
    assert_eq!(event["stageVariables"], json!({}));
    for (name, value) in
        [("Connection", "upgrade"), ("Upgrade", "websocket"), ("content-length", "0"), ("Auth", "token")]
    {
        assert_eq!(event["headers"][name], value);
        assert_eq!(event["multiValueHeaders"][name], json!([value]));
    }
    assert_eq!(event["requestContext"]["routeKey"], "$connect");
    assert!(event["requestContext"].get("authorizer").is_none());

    let connect = bed.event().await;
    assert!(connect.get("type").is_none() && connect["headers"].get("Upgrade").is_none());
    assert_eq!(connect["requestContext"]["connectionId"], event["requestContext"]["connectionId"]);
    assert_ne!(connect["requestContext"]["requestId"], event["requestContext"]["requestId"]);
}

#[tokio::test]
async fn the_context_comes_with_every_event_and_the_authorizer_is_asked_once() {
    let mut bed = bed(|| {
        let mut result = policy("Allow", "arn:aws:execute-api:us-east-1:123456789012:abcdef1234/dev/*");
        result["context"] = json!({ "userId": "7", "n": 1, "b": true });
        Ok(result.to_string().into())
    })
    .await;
    let expected = json!({ "userId": "7", "n": "1", "b": "true", "principalId": "user" });
    // The second handshake asks the authorizer again, because there is no cache.
    for _ in 0..2 {
        let mut client = bed.handshake("/dev", &AUTH).await;
        assert_eq!(bed.event().await["type"], "REQUEST");
        assert_eq!(bed.event_of("$connect").await["requestContext"]["authorizer"], expected);
        for _ in 0..2 {
            client.text("hello").await;
            assert_eq!(bed.event_of("$default").await["requestContext"]["authorizer"], expected);
        }
        client.frame(true, CLOSE, b"").await;
        assert_eq!(bed.disconnected().await["authorizer"], expected);
    }
}

/// All identity sources must be present. The guide says so about REST APIs.
#[tokio::test]
async fn without_an_identity_the_authorizer_is_not_asked() {
    let sources = ["route.request.header.Auth", "route.request.querystring.key"];
    let allow = |_| std::future::ready(Ok(policy("Allow", "*").to_string().into()));
    let mut bed = Script::new().authorizer(&sources, allow).start().await;
    for (path, headers) in [("/dev", &[][..]), ("/dev", &AUTH), ("/dev?key=1", &[]), ("/dev?key=1", &[("Auth", "")])] {
        assert_eq!(bed.handshake(path, headers).await.reply.status, 401, "{path} {headers:?}");
    }
    assert_eq!(bed.handshake("/dev?key=1", &[("AUTH", "x")]).await.reply.status, 101);
    assert_eq!(bed.event().await["type"], "REQUEST");
}

/// The 500 is from the guide's text about REST APIs.
#[tokio::test]
async fn a_refused_client_reaches_no_function() {
    let allow = || policy("Allow", METHOD_ARN);
    let nested = {
        let mut result = allow();
        result["context"] = json!({ "a": {} });
        result
    };
    let long = {
        let mut result = allow();
        result["context"] = json!({ "a": "x".repeat(8 * KIB) });
        result
    };
    for (answer, status) in [
        (Ok(policy("Deny", METHOD_ARN)), 403),
        (Ok(policy("Allow", "arn:aws:execute-api:us-east-1:123456789012:abcdef1234/dev/*/*")), 403),
        (Ok(nested), 500),
        (Ok(long), 500),
        (Ok(json!({ "isAuthorized": true })), 500),
        (Ok(Value::Null), 500),
        (Err("Unauthorized"), 401),
        (Err("Unauthorized!"), 500),
    ] {
        let given = answer.clone();
        let mut bed = bed(move || match &given {
            Ok(result) => Ok(result.to_string().into()),
            Err(message) => failure(message),
        })
        .await;
        for _ in 0..2 {
            assert_eq!(bed.handshake("/dev", &AUTH).await.reply.status, status, "{answer:?}");
            // Only the authorizer was invoked, and neither $connect nor $disconnect.
            assert_eq!(bed.event().await["type"], "REQUEST");
        }
    }
}

#[tokio::test]
async fn an_authorizer_that_takes_too_long_is_a_500() {
    let script = Script::new().authorizer(&[], |_| std::future::pending());
    let mut bed = script.limits(|limits| limits.integration_timeout = Duration::from_millis(50)).start().await;
    assert_eq!(bed.handshake("/dev", &[]).await.reply.status, 500);
    assert_eq!(bed.event().await["type"], "REQUEST");
}

//! Calls of `@connections` and handshakes whose signatures are verified, signed by AWS's own crates.

use std::time::{Duration, SystemTime};

use aws_sdk_apigatewaymanagement::config::{Builder, Credentials};
use aws_sdk_apigatewaymanagement::error::ProvideErrorMetadata;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign};
use aws_sigv4::sign::v4;
use serde_json::json;
use switchboard_tests::client::Client;
use switchboard_tests::stack::{Stack, sdk};
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

#[tokio::test]
async fn signatures_of_functions_are_right_and_wrong_ones_are_refused() {
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

/// A handshake's request that is signed with the key of a function, for a service, `age` ago. The signature is in the
/// headers, or in the query, where it is good for a minute.
fn handshake(
    stack: &Stack,
    function: &str,
    secret: &str,
    service: &str,
    age: Duration,
    in_query: bool,
) -> http::Request<()> {
    let credentials = Credentials::new(format!("local-{function}"), secret, Some("local".to_owned()), None, "test");
    let mut settings = SigningSettings::default();
    if in_query {
        settings.signature_location = SignatureLocation::QueryParams;
        settings.expires_in = Some(Duration::from_secs(60));
    }
    let identity = credentials.into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region("us-east-1")
        .name(service)
        .time(SystemTime::now() - age)
        .settings(settings)
        .build()
        .unwrap();
    let url = format!("ws://{}/test?name=a%20b", stack.gateway);
    let headers = [("host", stack.gateway.as_str())];
    let signable = SignableRequest::new("GET", url.clone(), headers.into_iter(), SignableBody::Bytes(b"")).unwrap();
    let (instructions, _) = sign(signable, &params.into()).unwrap().into_parts();
    let mut request = url.into_client_request().unwrap();
    instructions.apply_to_request_http1x(&mut request);
    request
}

/// The status of a handshake.
async fn status(request: http::Request<()>) -> u16 {
    match tokio_tungstenite::connect_async(request).await {
        Ok((_, response)) => response.status().as_u16(),
        Err(Error::Http(response)) => response.status().as_u16(),
        Err(error) => panic!("{error}"),
    }
}

const NOW: Duration = Duration::ZERO;
const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_handshake_is_signed_in_its_headers_or_in_its_query_where_the_route_asks_for_it() {
    let stack = Stack::with(&["--config", "tests/fixture/signed.yml", "--sigv4", "verify"]).await;
    assert_eq!(Client::connect(&format!("ws://{}/test", stack.gateway)).await.err(), Some(403));
    for in_query in [false, true] {
        let status =
            |function, secret, service, age| status(handshake(&stack, function, secret, service, age, in_query));
        assert_eq!(status("member", "local", "execute-api", NOW).await, 101);
        assert_eq!(status("member", "guess", "execute-api", NOW).await, 403);
        assert_eq!(status("member", "local", "apigateway", NOW).await, 403);
        assert_eq!(status("member", "local", "execute-api", HOUR).await, 403);
        assert_eq!(status("nobody", "local", "execute-api", NOW).await, 403);
        assert_eq!(status("stranger", "local", "execute-api", NOW).await, 403);
    }
    let denied = "stranger: the role signed-test-StrangerRole does not allow execute-api:Invoke on \
                  arn:aws:execute-api:us-east-1:123456789012:local0ws01/test/$connect";
    stack.logged(2, &["iam |", denied]).await;
    // Only allowed handshakes have reached the function. Its events say nothing more about a signed client.
    let events = stack.logged(2, &["hello |", "CONNECT"]).await;
    assert!(events.iter().all(|event| event.contains(r#""identity":{"sourceIp":"127.0.0.1"}"#)), "{events:?}");
    assert_eq!(stack.log(&["hello |", "CONNECT"]).len(), 2);
}

#[tokio::test]
async fn the_flag_sigv4_holds_for_handshakes_as_for_calls() {
    let stack = Stack::with(&["--config", "tests/fixture/signed.yml"]).await;
    assert_eq!(status(handshake(&stack, "member", "guess", "execute-api", HOUR, true)).await, 101);
    assert_eq!(status(handshake(&stack, "stranger", "guess", "execute-api", HOUR, true)).await, 403);
    assert_eq!(status(handshake(&stack, "member", "local", "apigateway", NOW, true)).await, 403);
    let stack = Stack::with(&["--config", "tests/fixture/signed.yml", "--sigv4", "off"]).await;
    Client::connect(&format!("ws://{}/test", stack.gateway)).await.unwrap();
}

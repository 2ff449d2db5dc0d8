//! MG: `@connections`, by hand and through the AWS SDK for Rust.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aws_sdk_apigatewaymanagement::Config;
use aws_sdk_apigatewaymanagement::config::interceptors::BeforeTransmitInterceptorContextRef;
use aws_sdk_apigatewaymanagement::config::retry::RetryConfig;
use aws_sdk_apigatewaymanagement::config::{Builder, ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_apigatewaymanagement::error::{BoxError, ProvideErrorMetadata};
use aws_sdk_apigatewaymanagement::operation::post_to_connection::PostToConnectionError;
use aws_sdk_apigatewaymanagement::primitives::Blob;
use serde_json::{Value, json};
use switchboard_tests::stack::sdk;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::Command;

use crate::api::Api;
use crate::table::{FLAGS, LOG, Row, row};

const NEVER_ISSUED: &str = "AAAAAAAAAAAAAAA=";
/// The status and the error type of a call without a signature.
const UNSIGNED: (u16, Option<&str>) = (403, Some("MissingAuthenticationTokenException"));
const LIMIT: usize = 131_072;

/// Counts the requests that leave, retries included, and keeps the path of the last.
#[derive(Debug, Default, Clone)]
struct Attempts {
    count: Arc<AtomicUsize>,
    uri: Arc<std::sync::Mutex<String>>,
}

impl Intercept for Attempts {
    fn name(&self) -> &'static str {
        "Attempts"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        self.count.fetch_add(1, Ordering::Relaxed);
        context.request().uri().clone_into(&mut self.uri.lock().unwrap());
        Ok(())
    }
}

impl Attempts {
    fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}

/// The SDK with the API's credentials at this endpoint, and a counter of what it sends.
async fn client(api: &Api, endpoint: &str) -> (aws_sdk_apigatewaymanagement::Client, Attempts) {
    let attempts = Attempts::default();
    let config = Builder::from(&sdk(endpoint).await)
        .credentials_provider(api.credentials.clone())
        .region(aws_sdk_apigatewaymanagement::config::Region::new(api.region.clone()))
        .interceptor(attempts.clone())
        .build();
    (aws_sdk_apigatewaymanagement::Client::from_conf(config), attempts)
}

async fn sdk_post(
    client: &aws_sdk_apigatewaymanagement::Client,
    id: &str,
) -> Result<(), aws_sdk_apigatewaymanagement::error::SdkError<PostToConnectionError>> {
    client.post_to_connection().connection_id(id).data(Blob::new("hello")).send().await.map(drop)
}

/// With this argument, an id and perhaps an endpoint, this program only calls `@connections`.
pub const POST: &str = "post-with-the-sdk";

/// Posts with the SDK as the environment configures it. An endpoint may be given.
pub async fn post_as_configured(id: &str, endpoint: Option<&str>) -> Result<(), String> {
    let http = sdk("http://unused").await.http_client().unwrap();
    let loader = aws_config::defaults(aws_config::BehaviorVersion::latest()).http_client(http);
    let loader = match endpoint {
        Some(endpoint) => loader.endpoint_url(endpoint),
        None => loader,
    };
    let client = aws_sdk_apigatewaymanagement::Client::new(&loader.load().await);
    sdk_post(&client, id).await.map_err(|error| format!("{error:?}"))
}

/// Posts so in a process of its own, because variables belong to a process.
async fn post_in_a_process(api: &Api, variable: &str, arguments: &[&str]) -> std::process::Output {
    let credentials = &api.credentials;
    Command::new(std::env::current_exe().unwrap())
        .arg(POST)
        .args(arguments)
        .env("AWS_ENDPOINT_URL_APIGATEWAYMANAGEMENTAPI", variable)
        .env("AWS_REGION", &api.region)
        .env("AWS_ACCESS_KEY_ID", credentials.access_key_id())
        .env("AWS_SECRET_ACCESS_KEY", credentials.secret_access_key())
        .envs(credentials.session_token().map(|token| ("AWS_SESSION_TOKEN", token)))
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap()
}

/// The address of a server that answers every request with these bytes, and then hangs up.
pub async fn stub(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let mut tcp = BufReader::new(tcp);
            let mut line = String::new();
            while tcp.read_line(&mut line).await.is_ok_and(|length| length > 2) {
                line.clear();
            }
            let _ = tcp.get_mut().write_all(answer.as_bytes()).await;
        }
    });
    address.to_string()
}

async fn get(api: &Api, id: &str) -> Value {
    serde_json::from_str(&api.call("GET", id, b"").await.body).unwrap()
}

/// Whether a text has the form `2020-11-15T12:23:14.726Z`.
fn is_iso_with_milliseconds(text: &Value) -> bool {
    let shape: String = text.as_str().unwrap().chars().map(|it| if it.is_ascii_digit() { '0' } else { it }).collect();
    shape == "0000-00-00T00:00:00.000Z"
}

/// Checks that a POST to this path delivers to the connection.
async fn delivers(api: &Api, path: impl Fn(&str, &str) -> String) {
    let mut client = api.connect().await;
    let path = path(&api.endpoint.stage_path, client.id.trim_end_matches('='));
    assert_eq!(api.call_path("POST", &path, Some("execute-api"), b"hello").await.status, 200, "{path}");
    assert_eq!(client.hears().await, "hello");
}

pub fn rows() -> Vec<Row> {
    vec![
        row("MG-01", "D+O", "B-mgmt; RECORD", "a POST is a 200 without a body, and a text message").anywhere(
            |api| async move {
                let mut client = api.connect().await;
                let reply = api.call("POST", &client.id, b"hello").await;
                assert_eq!((reply.status, reply.body.as_str(), reply.header("content-length")), (200, "", Some("0")));
                assert_eq!(reply.header("content-type"), Some("application/json"));
                assert_eq!(reply.header("x-amzn-requestid").map(str::len), Some(36), "{reply:?}");
                assert_eq!(reply.header("x-amz-apigw-id").map(str::len), Some(16), "{reply:?}");
                assert!(reply.header("x-amzn-trace-id").is_some() && reply.header("date").is_some(), "{reply:?}");
                assert_eq!(client.hears().await, "hello");
            },
        ),
        row("MG-02", "D", "D-conns", "the path may be written %40connections and %3D").anywhere(|api| async move {
            delivers(&api, |stage, id| format!("{stage}/%40connections/{id}%3D")).await;
        }),
        row("MG-03", "D", "D-conns", "the path may be written @connections and =").anywhere(|api| async move {
            delivers(&api, |stage, id| format!("{stage}/@connections/{id}=")).await;
        }),
        row(
            "MG-04",
            "O",
            "aws-sdk-php#1955",
            "a path without the stage, or with another, is Forbidden, and nothing is delivered",
        )
        .anywhere(|api| async move {
            let mut client = api.connect().await;
            for stage in ["", "/nostage"] {
                let path = format!("{stage}/@connections/{}", client.id.replace('=', "%3D"));
                let reply = api.call_path("POST", &path, Some("execute-api"), b"hello").await;
                assert_eq!(reply.error(), (403, Some("ForbiddenException")), "{path}");
                assert_eq!(reply.body, r#"{"message":"Forbidden"}"#, "{path}");
            }
            api.assert_nothing_sent(&mut client).await;
        }),
        row("MG-05", "O", "RECORD", "a POST to a closed connection is GoneException without a body").anywhere(
            |api| async move {
                let mut client = api.connect().await;
                client.close(1000, "").await;
                api.gone(&client.id).await;
                api.assert_gone("POST", &client.id).await;
            },
        ),
        row("MG-06", "O", "localstack#4694", "a POST to a connection that never was is GoneException")
            .anywhere(|api| async move { api.assert_gone("POST", NEVER_ISSUED).await }),
        row("MG-07", "O", "RECORD; serverless-offline#749", "a malformed id is BadRequestException [id_validation]")
            .anywhere(|api| async move {
                for id in ["abc", "d8a1c8a1-3ee5-4c0e-9d3a-5b7bb1bdbd1b"] {
                    let reply = api.call("POST", id, b"hello").await;
                    assert_eq!(reply.error(), (400, Some("BadRequestException")));
                    assert_eq!(reply.body, format!(r#"{{"message":"Invalid connectionId: {id}"}}"#));
                }
                if api.is_ours() {
                    Api::ours(&["--id-validation", "none"]).await.assert_gone("POST", "abc").await;
                }
            }),
        row("MG-08", "D", "B-mgmt", "128 KB are delivered whole").anywhere(|api| async move {
            let mut client = api.connect().await;
            let text = "x".repeat(LIMIT);
            assert_eq!(api.post(&client.id, &text).await, 200);
            assert!(client.hears().await == text);
        }),
        row(
            "MG-09",
            "D+O",
            "B-mgmt; sleeper#5755",
            "a byte more is PayloadTooLargeException, and the connection is open",
        )
        .anywhere(|api| async move {
            let mut client = api.connect().await;
            let reply = api.call("POST", &client.id, &vec![b'x'; LIMIT + 1]).await;
            assert_eq!(reply.error(), (413, Some("PayloadTooLargeException")));
            assert!(serde_json::from_str::<Value>(&reply.body).unwrap()["message"].is_string(), "{}", reply.body);
            api.assert_nothing_sent(&mut client).await;
            client.ask(&json!({"action": "echo"})).await;
        }),
        row("MG-10", "I", "D-limits", "a long message comes in frames of at most 32 KB [outbound_fragment]").anywhere(
            |api| async move {
                let mut client = api.connect().await;
                assert_eq!(api.post(&client.id, &"x".repeat(100 * 1024)).await, 200);
                let sizes = client.message().await.1;
                assert!(sizes.len() > 1 && sizes.iter().all(|size| *size <= 32 * 1024), "{sizes:?}");
                if api.is_ours() {
                    let api = Api::ours(&["--outbound-fragment", "0"]).await;
                    let mut client = api.connect().await;
                    assert_eq!(api.post(&client.id, &"x".repeat(100 * 1024)).await, 200);
                    assert_eq!(client.message().await.1, [100 * 1024]);
                }
            },
        ),
        row("MG-11", "I", "S", "an empty POST is an empty message").anywhere(|api| async move {
            let mut client = api.connect().await;
            assert_eq!(api.post(&client.id, "").await, 200);
            assert_eq!(client.hears().await, "");
        }),
        row(
            "MG-12",
            "D+O",
            "B-mgmt; RECORD",
            "a GET returns the identity of the client, when it connected and when it was last active",
        )
        .anywhere(|api| async move {
            let client = api.connect_with("", &[("User-Agent", "me/1")]).await;
            let seen = get(&api, &client.id).await;
            assert_eq!(seen["identity"]["userAgent"], "me/1");
            assert!(seen["identity"]["sourceIp"].as_str().unwrap().parse::<std::net::IpAddr>().is_ok(), "{seen}");
            for key in ["connectedAt", "lastActiveAt"] {
                assert!(is_iso_with_milliseconds(&seen[key]), "{seen}");
            }
            if api.is_ours() {
                let event = api.event(&client.id, "$connect").await;
                let connected_at = event["requestContext"]["connectedAt"].as_i64().unwrap();
                assert_eq!(crate::events::iso_milliseconds(seen["connectedAt"].as_str().unwrap()), connected_at);
            }
        }),
        row("MG-13", "O", "RECORD", "the bytes of a GET are as they were recorded").anywhere(|api| async move {
            let client = api.connect_with("", &[("User-Agent", "me/1 \"quoted\"")]).await;
            let text = api.call("GET", &client.id, b"").await.body;
            let seen: Value = serde_json::from_str(&text).unwrap();
            let expected = format!(
                "{{\n  \"identity\" : {{\n    \"sourceIp\" : {},\n    \"userAgent\" : {}\n  }},\n  \
                 \"connectedAt\" : {},\n  \"lastActiveAt\" : {}\n}}",
                seen["identity"]["sourceIp"], seen["identity"]["userAgent"], seen["connectedAt"], seen["lastActiveAt"]
            );
            assert_eq!(text, expected);
        }),
        row("MG-14", "I", "B-mgmt; RECORD", "a message and a post move lastActiveAt, and not connectedAt").anywhere(
            |api| async move {
                let mut client = api.connect().await;
                let mut before = get(&api, &client.id).await;
                for is_post in [false, true] {
                    // The times have milliseconds.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    if is_post {
                        api.post(&client.id, "hello").await;
                    } else {
                        client.ask(&json!({"action": "echo"})).await;
                    }
                    let after = get(&api, &client.id).await;
                    assert_eq!(before["connectedAt"], after["connectedAt"]);
                    assert!(before["lastActiveAt"].as_str() < after["lastActiveAt"].as_str(), "{before} {after}");
                    before = after;
                }
            },
        ),
        row("MG-15", "D+O", "RECORD; B-mgmt", "GET and DELETE of a closed connection are GoneException").anywhere(
            |api| async move {
                let mut client = api.connect().await;
                client.close(1000, "").await;
                api.gone(&client.id).await;
                api.assert_gone("GET", &client.id).await;
                api.assert_gone("DELETE", &client.id).await;
            },
        ),
        row("MG-16", "O+I", "RECORD; boto3#3789", "a DELETE is a 204, and closes with 1000").anywhere(
            |api| async move {
                let mut client = api.connect().await;
                api.post(&client.id, "last words").await;
                let reply = api.call("DELETE", &client.id, b"").await;
                assert_eq!((reply.status, reply.body.as_str(), reply.header("content-type")), (204, "", None));
                assert_eq!(client.hears().await, "last words");
                assert_eq!(client.closed().await, Some(1000));
            },
        ),
        row("MG-17", "O", "boto3#3789; chalice#2060", "a DELETE has one $disconnect").ours(LOG, |api| async move {
            let mut client = api.connect().await;
            api.call("DELETE", &client.id, b"").await;
            client.closed().await;
            let context = api.event(&client.id, "$disconnect").await["requestContext"].take();
            let (code, text) = (&context["disconnectStatusCode"], &context["disconnectReason"]);
            assert_eq!((code, text), (&json!(1000), &json!("Connection Closed Normally")));
            api.claim_invoked(&client.id, &["$connect", "echo", "$disconnect"]);
        }),
        row("MG-18", "O", "RECORD", "a second DELETE is GoneException").anywhere(|api| async move {
            let client = api.connect().await;
            assert_eq!(api.call("DELETE", &client.id, b"").await.status, 204);
            api.assert_gone("DELETE", &client.id).await;
        }),
        row(
            "MG-19",
            "D",
            "K410",
            "a POST from $connect to its own client is a 410, and harms nothing [post_to_pending]",
        )
        .ours("the fixture's POST is not really signed", |api| async move {
            let mut client = api.connect_with("?do=post&data=welcome", &[]).await;
            let seen = api.stack().logged(1, &[r#""fixture":"post""#, &client.id]).await;
            assert!(seen[0].contains(r#""status":"410""#), "{seen:?}");
            api.assert_nothing_sent(&mut client).await;

            let flags = ["--post-to-pending", "hang", "--integration-timeout", "1s"];
            let api = Api::ours(&flags).await;
            assert_eq!(api.handshake("?do=post&data=welcome", &[]).await.reply.status, 504);
        }),
        row("MG-20", "I", "D-connect", "a client that has its 101 can be posted to").ours(LOG, |api| async move {
            for _ in 0..10 {
                let token = api.token();
                let mut client = api.handshake(&format!("?{token}=1"), &[]).await;
                let event = api.event_with(&token).await;
                let id = event["requestContext"]["connectionId"].as_str().unwrap();
                assert_eq!(api.post(id, "hello").await, 200);
                assert_eq!(client.hears().await, "hello");
            }
        }),
        row("MG-21", "D+I", "D-conns; D-gwresp", "an unsigned POST is MissingAuthenticationTokenException [sigv4]")
            .anywhere(|api| async move {
                let client = api.connect().await;
                let path = format!("{}/@connections/{}", api.endpoint.stage_path, client.id.replace('=', "%3D"));
                let reply = api.call_path("POST", &path, None, b"hello").await;
                assert_eq!(reply.error(), UNSIGNED);
                assert_eq!(reply.body, r#"{"message":"Missing Authentication Token"}"#);
                if api.is_ours() {
                    let api = Api::ours(&["--sigv4", "off"]).await;
                    let client = api.connect().await;
                    let path = format!("/dev/@connections/{}", client.id);
                    assert_eq!(api.call_path("POST", &path, None, b"hello").await.status, 200);
                }
            }),
        row("MG-22", "I", "B-mgmt", "a signature for another service is a 403").anywhere(|api| async move {
            let client = api.connect().await;
            let path = format!("{}/@connections/{}", api.endpoint.stage_path, client.id.replace('=', "%3D"));
            let reply = api.call_path("POST", &path, Some("s3"), b"hello").await;
            assert_eq!(reply.error(), (403, Some("InvalidSignatureException")));
            let message = "Credential should be scoped to correct service: 'execute-api'. ";
            assert_eq!(reply.body, format!(r#"{{"message":"{message}"}}"#));
        }),
        row("MG-23", "O", "functions#130", "a caller without permission is AccessDeniedException")
            .proved(&["tests/e2e/iam.rs::a_post_that_the_role_does_not_allow_is_refused"]),
        row("MG-24", "D+S", "B-mgmt; S", "the Rust SDK tries again after one 429, and succeeds").ours(
            FLAGS,
            |_| async move {
                let api = Api::ours(&["--request-rate", "10", "--request-burst", "1"]).await;
                let token = api.token();
                let mut ws = api.handshake(&format!("?{token}=1"), &[]).await;
                let event = api.event_with(&token).await;
                let id = event["requestContext"]["connectionId"].as_str().unwrap();
                let (client, attempts) = client(&api, &api.endpoint.http()).await;
                // The SDK's pauses are random, and three of them can be short.
                let retry = Config::builder().retry_config(RetryConfig::standard().with_max_attempts(10));
                for post in 1.. {
                    let call = client.post_to_connection().connection_id(id).data(Blob::new("hello"));
                    call.customize().config_override(retry.clone()).send().await.unwrap();
                    assert_eq!(ws.hears().await, "hello");
                    if attempts.count() > post {
                        break;
                    }
                }
            },
        ),
        row("MG-25", "S", "S", "the Rust SDK gives up after three 429s with LimitExceededException").ours(
            FLAGS,
            |_| async move {
                let api = Api::ours(&["--request-rate", "0", "--request-burst", "0"]).await;
                let (client, attempts) = client(&api, &api.endpoint.http()).await;
                let error = sdk_post(&client, NEVER_ISSUED).await.unwrap_err().into_service_error();
                assert!(error.is_limit_exceeded_exception(), "{error:?}");
                assert_eq!(attempts.count(), 3);
            },
        ),
        row("MG-26", "S", "S", "the Rust SDK recognises a GoneException, and does not try again").anywhere(
            |api| async move {
                let (client, attempts) = client(&api, &api.endpoint.http()).await;
                let error = sdk_post(&client, NEVER_ISSUED).await.unwrap_err().into_service_error();
                assert!(error.is_gone_exception(), "{error:?}");
                assert_eq!(attempts.count(), 1);
            },
        ),
        row("MG-27", "S", "S", "the Rust SDK does not recognise a 410 without an error type, and our functions do")
            .ours("negative: talks to a stub", |api| async move {
                let stub = stub("HTTP/1.1 410 Gone\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
                let (client, _) = client(&api, &format!("http://{stub}/dev")).await;
                let error = sdk_post(&client, NEVER_ISSUED).await.unwrap_err();
                assert_eq!(error.raw_response().unwrap().status().as_u16(), 410);
                let error = error.into_service_error();
                assert!(!error.is_gone_exception() && error.code().is_none(), "{error:?}");
            }),
        row("MG-28", "S", "S", "the Rust SDK's endpoint may end in a slash").anywhere(|api| async move {
            let mut ws = api.connect().await;
            for slash in ["", "/"] {
                let (client, attempts) = client(&api, &format!("{}{slash}", api.endpoint.http())).await;
                sdk_post(&client, &ws.id).await.unwrap();
                let path = format!("{}/@connections/{}", api.endpoint.http(), ws.id.replace('=', "%3D"));
                assert_eq!(*attempts.uri.lock().unwrap(), path);
                assert_eq!(ws.hears().await, "hello");
            }
        }),
        row("MG-29", "S", "S", "the variable AWS_ENDPOINT_URL_APIGATEWAYMANAGEMENTAPI is enough for the Rust SDK")
            .anywhere(|api| async move {
                let mut ws = api.connect().await;
                let posted = post_in_a_process(&api, &api.endpoint.http(), &[&ws.id]).await;
                assert!(posted.status.success(), "{}", String::from_utf8_lossy(&posted.stderr));
                assert_eq!(ws.hears().await, "hello");
            }),
        row("MG-30", "S", "S", "an endpoint in code wins over the variable").anywhere(|api| async move {
            let mut ws = api.connect().await;
            let nowhere = "http://127.0.0.1:9/dev";
            let posted = post_in_a_process(&api, nowhere, &[&ws.id, &api.endpoint.http()]).await;
            assert!(posted.status.success(), "{}", String::from_utf8_lossy(&posted.stderr));
            assert_eq!(ws.hears().await, "hello");
            assert!(!post_in_a_process(&api, nowhere, &[&ws.id]).await.status.success(), "nothing listens there");
        }),
        row(
            "MG-31",
            "O",
            "simple-websockets-chat-app#44",
            "a POST to a half-open connection is a 200 and arrives nowhere",
        )
        .ours(FLAGS, |_| async move {
            let api = Api::ours(&["--fault", "half-open=1"]).await;
            let id = api.connect().await.id.clone();
            for _ in 0..3 {
                assert_eq!(api.post(&id, "hello").await, 200);
            }
            assert_eq!(api.call("GET", &id, b"").await.status, 200);
        }),
        row(
            "MG-32",
            "O+I",
            "aws-sdk-js-v3#6896; B-mgmt",
            "a client that does not read holds up its own posts only, and can be deleted",
        )
        .anywhere(|api| async move {
            let deaf = api.connect().await;
            let text = "x".repeat(LIMIT);
            let mut blocked = false;
            for _ in 0..400 {
                let post = tokio::time::timeout(Duration::from_secs(1), api.post(&deaf.id, &text)).await;
                blocked = !matches!(post, Ok(200));
                if blocked {
                    break;
                }
            }
            assert!(blocked, "50 MB are buffered for a client that does not read");
            let mut other = api.connect().await;
            assert_eq!(api.post(&other.id, "hello").await, 200);
            assert_eq!(other.hears().await, "hello");
            assert_eq!(api.call("DELETE", &deaf.id, b"").await.status, 204);
        }),
        row("MG-33", "I", "RFC 6455", "posts that are awaited arrive in order").anywhere(|api| async move {
            let mut client = api.connect().await;
            for number in 0..20 {
                assert_eq!(api.post(&client.id, &number.to_string()).await, 200);
            }
            for number in 0..20 {
                assert_eq!(client.hears().await, number.to_string());
            }
        }),
        row("MG-34", "I", "RFC 6455", "a hundred posts at once arrive whole, in any order").anywhere(
            |api| async move {
                let mut client = api.connect().await;
                let id = client.id.clone();
                // Some have several frames.
                let texts: Vec<_> = (0..100_usize).map(|n| format!("{n}:{}", "x".repeat(n * 700))).collect();
                let posts = texts.iter().map(|text| api.post(&id, text));
                let hear = async {
                    let mut heard = BTreeSet::new();
                    for _ in &texts {
                        heard.insert(client.hears().await);
                    }
                    heard
                };
                let (statuses, heard) = tokio::join!(futures_util::future::join_all(posts), hear);
                assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
                assert!(heard == texts.iter().cloned().collect());
            },
        ),
        row("MG-35", "I", "B-mgmt", "text that is not ASCII arrives as it was posted").anywhere(|api| async move {
            let text = json!({"text": "žluťoučký kůň 🐎\u{7f}"}).to_string();
            let mut client = api.connect().await;
            assert_eq!(api.post(&client.id, &text).await, 200);
            assert_eq!(client.hears().await, text);
        }),
        row("MG-36", "I", "B-mgmt; D-gwresp", "PUT and PATCH are a 403 and do nothing").anywhere(|api| async move {
            let mut client = api.connect().await;
            for method in ["PUT", "PATCH"] {
                assert_eq!(api.call(method, &client.id, b"hello").await.error(), UNSIGNED, "{method}");
            }
            api.assert_nothing_sent(&mut client).await;
        }),
    ]
}

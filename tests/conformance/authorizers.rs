//! AU: who may connect, in an API whose `$connect` has a Lambda authorizer.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use switchboard_tests::keys::keys;
use switchboard_tests::wire::Client;

use crate::api::{Api, encoded, route_key};
use crate::table::{Row, SERVICE, row};

const AUTH: [(&str, &str); 1] = [("Auth", "token")];

/// The API with an authorizer that takes its identity from these sources.
async fn api(identity_sources: &str, flags: &[&str]) -> Api {
    edited_api(identity_sources, &[], flags).await
}

/// The API with such an authorizer and more edits.
pub async fn edited_api(identity_sources: &str, edits: &[(&str, &str)], flags: &[&str]) -> Api {
    let authorizer = format!("authorizer: {{name: authorizer, identitySource: [{identity_sources}]}}");
    let event = format!("- websocket: {{route: $connect, {authorizer}}}");
    let function = "functions:\n  authorizer:\n    handler: fixture\n    timeout: 2\n";
    let ours = [("- websocket: $connect", event.as_str()), ("functions:\n", function)];
    Api::edited(&[&ours[..], edits].concat(), flags).await
}

async fn usual_api() -> Api {
    api("route.request.header.Auth", &[]).await
}

pub fn policy(effect: &str, resource: &str) -> Value {
    let statement = json!({"Effect": effect, "Action": "execute-api:Invoke", "Resource": resource});
    json!({"principalId": "user", "policyDocument": {"Version": "2012-10-17", "Statement": [statement]}})
}

/// A handshake whose authorizer obeys this command.
async fn asks(api: &Api, command: &Value) -> Client {
    let token = api.token();
    api.handshake(&format!("?authorizer={}&{token}=1", encoded(&command.to_string())), &AUTH).await
}

/// A handshake whose authorizer returns `result`.
async fn decides(api: &Api, result: &Value) -> Client {
    asks(api, &json!({"do": "respond", "response": result})).await
}

/// Checks the status of a handshake whose authorizer returns `result`, and that only a 101 reaches `$connect`.
async fn assert_decision(result: &Value, status: u16) {
    let api = usual_api().await;
    assert_eq!(decides(&api, result).await.reply.status, status);
    if status == 101 {
        assert_eq!(routes(api).await, ["REQUEST", "$connect", "$disconnect"]);
    } else {
        assert_eq!(routes(api).await, ["REQUEST"]);
    }
}

/// The route keys of every event, once the stack has ended; `REQUEST` for those of the authorizer.
async fn routes(api: Api) -> Vec<String> {
    let of = |event: &Value| event["type"].as_str().map_or_else(|| route_key(event), str::to_owned);
    api.end().await.iter().map(of).collect()
}

async fn assert_no_identity(sources: &str, query: &str, headers: &[(&str, &str)]) {
    let api = api(sources, &[]).await;
    assert_eq!(api.handshake(query, headers).await.reply.status, 401);
    assert_eq!(routes(api).await, Vec::<String>::new());
}

pub fn rows() -> Vec<Row> {
    vec![
        row("AU-01", "D+I", "D-gwresp; serverless", "no identity is a 401 without the authorizer").ours(
            SERVICE,
            |_| async move {
                assert_no_identity("route.request.header.Auth", "", &[]).await;
                assert_no_identity("route.request.header.Auth", "", &[("Auth", "")]).await;
            },
        ),
        row("AU-02", "O", "serverless", "one of two identities is a 401 without the authorizer").ours(
            SERVICE,
            |_| async move {
                let sources = "route.request.header.Auth, route.request.querystring.key";
                assert_no_identity(sources, "", &AUTH).await;
                assert_no_identity(sources, "?key=1", &[]).await;
            },
        ),
        row("AU-03", "D", "D-auth", "an Allow of the methodArn goes on to $connect").ours(SERVICE, |_| async move {
            assert_decision(&policy("Allow", "{methodArn}"), 101).await;
        }),
        row("AU-04", "D", "D-connect", "a Deny is a 403 without $connect").ours(SERVICE, |_| async move {
            assert_decision(&policy("Deny", "{methodArn}"), 403).await;
        }),
        row("AU-05", "O", "powertools-lambda-python#5800", "an Allow of …/dev/*/* is a 403").ours(
            SERVICE,
            |_| async move {
                assert_decision(&policy("Allow", "arn:aws:execute-api:*:*:*/dev/*/*"), 403).await;
            },
        ),
        row("AU-06", "D", "D-iam", "an Allow of …/dev/* goes on to $connect").ours(SERVICE, |_| async move {
            assert_decision(&policy("Allow", "arn:aws:execute-api:*:*:*/dev/*"), 101).await;
        }),
        row("AU-07", "D", "D-auth", "an authorizer that fails with Unauthorized is a 401").ours(
            SERVICE,
            |_| async move {
                let api = usual_api().await;
                let client = asks(&api, &json!({"do": "error", "message": "Unauthorized"})).await;
                assert_eq!(client.reply.status, 401);
                assert_eq!(routes(api).await, ["REQUEST"]);
            },
        ),
        row("AU-08", "I", "D-gwresp", "an authorizer that fails otherwise, or takes too long, is a 500").ours(
            SERVICE,
            |_| async move {
                let api = usual_api().await;
                for command in [
                    json!({"do": "error"}),
                    json!({"do": "error", "message": "Unauthorized!"}),
                    json!({"do": "exit"}),
                    json!({"do": "sleep", "ms": 60_000}),
                ] {
                    assert_eq!(asks(&api, &command).await.reply.status, 500, "{command}");
                }
                for result in [json!({"isAuthorized": true}), json!(null)] {
                    assert_eq!(decides(&api, &result).await.reply.status, 500, "{result}");
                }
                assert_eq!(routes(api).await, ["REQUEST"; 6]);
            },
        ),
        row(
            "AU-09",
            "D+O",
            "D-auth; localstack#7191",
            "the authorizer's event is a REQUEST with the handshake's headers",
        )
        .ours(SERVICE, |_| async move {
            let api = usual_api().await;
            decides(&api, &policy("Allow", "{methodArn}")).await;
            let event = api.event_with("\"type\":\"REQUEST\"").await;
            let arn = event["methodArn"].as_str().unwrap();
            assert!(arn.starts_with("arn:aws:execute-api:us-east-1:") && arn.ends_with("/dev/$connect"), "{arn}");
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
            assert_eq!(event["stageVariables"], json!({}));
            for (name, value) in
                [("Connection", "upgrade"), ("Upgrade", "websocket"), ("content-length", "0"), ("Auth", "token")]
            {
                assert_eq!(event["headers"][name], value);
                assert_eq!(event["multiValueHeaders"][name], json!([value]));
            }
            assert_eq!(event["requestContext"].get("authorizer"), None);
            // What follows is about the same connection, in an invocation of its own.
            let id = event["requestContext"]["connectionId"].as_str().unwrap();
            api.stack().logged(2, &[id, r#""routeKey":"$connect""#]).await;
            let connect = api.events(id).into_iter().find(|event| event.get("type").is_none()).unwrap();
            assert_ne!(connect["requestContext"]["requestId"], event["requestContext"]["requestId"]);
        }),
        row(
            "AU-10",
            "D+O",
            "D-ctx; CAP-22; boto3#3789",
            "the context comes as text with $connect, messages and $disconnect",
        )
        .ours(SERVICE, |_| async move {
            let api = usual_api().await;
            let mut result = policy("Allow", "{methodArn}");
            result["context"] = json!({"userId": "7", "n": 1, "b": true});
            let mut client = decides(&api, &result).await;
            let expected = json!({"userId": "7", "n": "1", "b": "true", "principalId": "user"});
            let event = client.ask(&json!({"action": "echo"})).await;
            assert_eq!(event["requestContext"]["authorizer"], expected);
            let id = event["requestContext"]["connectionId"].as_str().unwrap();
            client.close(1000, "").await;
            assert_eq!(api.event(id, "$disconnect").await["requestContext"]["authorizer"], expected);
            let connect = api.stack().log(&[id, "\"eventType\":\"CONNECT\"", "\"userId\":\"7\""]);
            assert!(connect.iter().any(|line| line.contains("\"principalId\":\"user\"")), "{connect:?}");
        }),
        row("AU-11", "D+O", "D-connect; localstack#10059", "many messages ask the authorizer once").ours(
            SERVICE,
            |_| async move {
                let api = usual_api().await;
                let mut client = decides(&api, &policy("Allow", "{methodArn}")).await;
                for _ in 0..5 {
                    client.ask(&json!({"action": "echo"})).await;
                }
                assert_eq!(routes(api).await.iter().filter(|route| *route == "REQUEST").count(), 1);
            },
        ),
        row("AU-12", "D", "B-v2", "two handshakes with one token ask the authorizer twice").ours(
            SERVICE,
            |_| async move {
                let api = usual_api().await;
                for _ in 0..2 {
                    let mut client = decides(&api, &policy("Allow", "{methodArn}")).await;
                    client.ask(&json!({"action": "echo"})).await;
                }
                assert_eq!(routes(api).await.iter().filter(|route| *route == "REQUEST").count(), 2);
            },
        ),
        row("AU-13", "I", "D-limits", "a result of more than 8 KB is a 500").ours(SERVICE, |_| async move {
            let api = api("route.request.header.Auth", &["--authorizer-result-limit", "300"]).await;
            let mut result = policy("Allow", "{methodArn}");
            assert_eq!(decides(&api, &result).await.reply.status, 101);
            result["context"] = json!({"a": "x".repeat(300)});
            assert_eq!(decides(&api, &result).await.reply.status, 500);
        }),
        row("AU-14", "I", "D-gwresp", "a context with an object in it is a 500").ours(SERVICE, |_| async move {
            let mut result = policy("Allow", "{methodArn}");
            result["context"] = json!({"a": {}});
            assert_decision(&result, 500).await;
        }),
        row("AU-15", "I", "D-gwresp", "no API key where one is required is a 403 and reaches no function").ours(
            SERVICE,
            |_| async move {
                let api = api_with_keys("$request.header.x-api-key").await;
                for keys in [&[][..], &[("x-api-key", "")], &[("x-api-key", UNKNOWN)], &[("x-api-key", DISABLED)]] {
                    let headers = [&AUTH[..], keys].concat();
                    assert_eq!(api.handshake("?key=refused", &headers).await.reply.status, 403, "{keys:?}");
                }
                api.handshake("?key=accepted", &[AUTH[0], ("X-API-Key", KEY)]).await;
                api.claim_invoked("refused", &[]);
                api.event_with("\"key\":\"accepted\"").await;
                api.end().await;

                let api = api_with_keys("$context.authorizer.usageIdentifierKey").await;
                for key in [json!(null), json!(UNKNOWN), json!(DISABLED)] {
                    let mut result = policy("Allow", "{methodArn}");
                    result["usageIdentifierKey"] = key;
                    assert_eq!(decides(&api, &result).await.reply.status, 403, "{result}");
                }
                assert_eq!(routes(api).await, ["REQUEST"; 3]);
            },
        ),
        row("AU-16", "D+O", "D-ctx; CAP-KEY", "a valid API key and its id are in every event's identity").ours(
            SERVICE,
            |_| async move {
                for source in ["$request.header.x-api-key", "$context.authorizer.usageIdentifierKey"] {
                    let api = api_with_keys(source).await;
                    let mut result = policy("Allow", "{methodArn}");
                    let mut headers = AUTH.to_vec();
                    if source.starts_with("$request") {
                        headers.push(("X-Api-Key", KEY));
                    } else {
                        result["usageIdentifierKey"] = json!(KEY);
                    }
                    let command = json!({"do": "respond", "response": result}).to_string();
                    let query = format!("?authorizer={}", encoded(&command));
                    let mut client = api.connect_with(&query, &headers).await;
                    client.close(1000, "").await;
                    let printed = api.stack().log(&["wscat", &format!("-H 'x-api-key: {KEY}'")]);
                    assert_eq!(printed.is_empty(), !source.starts_with("$request"), "{printed:?}");
                    let parts = [client.id.as_str(), "\"fixture\":\"event\""];
                    api.stack().logged(4, &parts).await;
                    for event in api.events(&client.id).iter().filter(|event| event["type"] != "REQUEST") {
                        let identity = &event["requestContext"]["identity"];
                        assert_eq!(identity["apiKey"], KEY, "{event}");
                        assert_eq!(identity["apiKeyId"].as_str().map(str::len), Some(10), "{event}");
                        assert_eq!(event["requestContext"]["authorizer"], json!({"principalId": "user"}));
                    }
                }
            },
        ),
        row("AU-17", "I", "D-connect", "a client that the authorizer refuses gets no $disconnect").ours(
            SERVICE,
            |_| async move {
                let api = usual_api().await;
                assert_eq!(decides(&api, &policy("Deny", "{methodArn}")).await.reply.status, 403);
                assert_eq!(routes(api).await, ["REQUEST"]);
            },
        ),
    ]
}

const KEY: &str = "a-key-that-may-be-used";
const DISABLED: &str = "a-key-that-is-disabled";
const UNKNOWN: &str = "a-key-that-nobody-has";

/// The API with an authorizer, and with API keys. `$connect` requires one, and `source` says where it is.
async fn api_with_keys(source: &str) -> Api {
    let extensions = format!(
        "resources:
  extensions:
    WebsocketsApi: {{Properties: {{ApiKeySelectionExpression: {source}}}}}
    SconnectWebsocketsRoute: {{Properties: {{ApiKeyRequired: true}}}}
"
    );
    let key = |id: &str, value: &str, enabled: bool| {
        format!(
            "    {id}: {{Type: AWS::ApiGateway::ApiKey, Properties: {{Value: {value}, Enabled: {enabled}}}}}
    {id}InPlan:
      Type: AWS::ApiGateway::UsagePlanKey
      Properties: {{KeyId: !Ref {id}, KeyType: API_KEY, UsagePlanId: !Ref Plan}}
"
        )
    };
    let plan = "  Resources:
    Plan:
      Type: AWS::ApiGateway::UsagePlan
      Properties: {ApiStages: [{ApiId: !Ref WebsocketsApi, Stage: !Ref WebsocketsDeploymentStage}]}
";
    let resources = [plan, &key("Usable", KEY, true), &key("Disabled", DISABLED, false)].concat();
    let edits = [("resources:\n", extensions.as_str()), ("  Resources:\n", resources.as_str())];
    edited_api("route.request.header.Auth", &edits, &[]).await
}

//! EV: the events that functions get.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use switchboard_local::lambda::{Function, FunctionSettings};
use switchboard_tests::keys::{CONTEXT, has_null, keys};
use switchboard_tests::stack::{binaries, root};
use switchboard_tests::wire::{CLOSE, Client};

use crate::api::{Api, encoded};
use crate::authorizers::{edited_api, policy};
use crate::table::{FLAGS, LOG, Row, SERVICE, row};

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// The `$connect` event of a client that connects like this.
async fn connect_event(api: &Api, query: &str, headers: &[(&str, &str)]) -> Value {
    let client = api.connect_with(query, headers).await;
    api.event(&client.id, "$connect").await
}

/// The event of a message to the two-way route.
async fn message_event(api: &Api) -> Value {
    api.connect().await.ask(&json!({"action": "echo"})).await
}

/// The `$disconnect` event of a client that sends this close frame.
async fn disconnect_event(api: &Api, close: &[u8]) -> Value {
    let mut client = api.connect().await;
    client.frame(true, CLOSE, close).await;
    api.event(&client.id, "$disconnect").await
}

/// One event of each kind that can be seen: all three kinds on our own stack, a message elsewhere.
async fn every_event(api: &Api) -> Vec<Value> {
    let mut client = api.connect().await;
    let mut events = vec![client.ask(&json!({"action": "echo"})).await];
    if api.is_ours() {
        client.close(1000, "").await;
        events.push(api.event(&client.id, "$connect").await);
        events.push(api.event(&client.id, "$disconnect").await);
    }
    events
}

fn reason(event: &Value) -> (u64, &str) {
    let context = &event["requestContext"];
    (context["disconnectStatusCode"].as_u64().unwrap(), context["disconnectReason"].as_str().unwrap())
}

fn is_id(id: &str) -> bool {
    let good = |stem: &str| stem.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    id.len() == 16 && id.strip_suffix('=').is_some_and(good)
}

/// Days since 1970 of a day, month and year of the Gregorian calendar.
fn days(day: i64, month: i64, year: i64) -> i64 {
    let (year, month) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468
}

/// The seconds since 1970 of `dd/MMM/yyyy:HH:mm:ss +0000`.
fn common_log_seconds(text: &str) -> i64 {
    let text = text.strip_suffix(" +0000").expect("not +0000");
    let parts: Vec<&str> = text.split(['/', ':']).collect();
    let [day, month, year, hour, minute, second] = parts[..] else { panic!("{text}") };
    assert_eq!((day.len(), year.len(), hour.len()), (2, 4, 2), "{text}");
    let number = |part: &str| part.parse::<i64>().unwrap();
    let month = MONTHS.iter().position(|name| *name == month).expect("not an English month") + 1;
    let days = days(number(day), i64::try_from(month).unwrap(), number(year));
    ((days * 24 + number(hour)) * 60 + number(minute)) * 60 + number(second)
}

/// The milliseconds since 1970 of `2020-11-15T12:23:14.726Z`.
pub fn iso_milliseconds(text: &str) -> i64 {
    let parts: Vec<_> = text.split(|it: char| !it.is_ascii_digit()).filter(|part| !part.is_empty()).collect();
    let parts: Vec<i64> = parts.iter().map(|part| part.parse().unwrap()).collect();
    let [year, month, day, hour, minute, second, milliseconds] = parts[..] else { panic!("{text}") };
    (((days(day, month, year) * 24 + hour) * 60 + minute) * 60 + second) * 1000 + milliseconds
}

/// The function of our own `$disconnect`. Its variables point to where nothing listens.
fn disconnect() -> Function {
    let names = ["CONNECTIONS_TABLE", "TOPICS_TABLE", "EVENTS_TABLE", "AWS_ENDPOINT_URL_APIGATEWAYMANAGEMENTAPI"];
    let nowhere = "http://127.0.0.1:9/dev".to_owned();
    Function::new(FunctionSettings::of(
        binaries().join("disconnect"),
        names.map(|name| (name.to_owned(), nowhere.clone())).into(),
    ))
    .unwrap()
}

pub fn rows() -> Vec<Row> {
    vec![
        row("EV-01", "D+O", "D-intreq; CAP-23", "$connect's event has the documented members and no other").ours(
            LOG,
            |api| async move {
                let event = connect_event(&api, "?a=1", &[]).await;
                let expected = [
                    "headers",
                    "isBase64Encoded",
                    "multiValueHeaders",
                    "multiValueQueryStringParameters",
                    "queryStringParameters",
                    "requestContext",
                ];
                assert_eq!(keys(&event), BTreeSet::from(expected));
            },
        ),
        row("EV-02", "D+O", "D-intreq; CAP-23; CAP-24; CAP-25", "$connect's requestContext has the documented members")
            .ours(LOG, |api| async move {
                let event = connect_event(&api, "", &[]).await;
                assert_eq!(keys(&event["requestContext"]), BTreeSet::from(CONTEXT));
                assert_eq!(event["requestContext"]["domainName"], api.endpoint.authority);
            }),
        row("EV-03", "D", "D-intreq", "$connect's event is CONNECT and IN").ours(LOG, |api| async move {
            let context = connect_event(&api, "", &[]).await["requestContext"].take();
            assert_eq!((&context["routeKey"], &context["eventType"]), (&json!("$connect"), &json!("CONNECT")));
            assert_eq!(context["messageDirection"], "IN");
        }),
        row("EV-04", "O", "CAP-23; CAP-24; CAP-25", "without a query the event has neither form of it").ours(
            LOG,
            |api| async move {
                for query in ["", "?"] {
                    let event = connect_event(&api, query, &[]).await;
                    assert!(!keys(&event).iter().any(|key| key.to_lowercase().contains("query")), "{event}");
                }
            },
        ),
        row(
            "EV-05",
            "I",
            "D-proxyout",
            "a repeated query key has its last value in one form and all of them in the other",
        )
        .ours(LOG, |api| async move {
            let event = connect_event(&api, "?a=1&a=2", &[]).await;
            assert_eq!(event["queryStringParameters"], json!({"a": "2"}));
            assert_eq!(event["multiValueQueryStringParameters"], json!({"a": ["1", "2"]}));
        }),
        row("EV-06", "I", "D-proxyout", "query values are percent-decoded").ours(LOG, |api| async move {
            assert_eq!(connect_event(&api, "?x=%20y", &[]).await["queryStringParameters"], json!({"x": " y"}));
        }),
        row(
            "EV-07",
            "O",
            "D-intreq; CAP-23; CAP-24; CAP-25",
            "$connect sees the gateway's headers, and not Connection and Upgrade",
        )
        .ours(LOG, |api| async move {
            let event = connect_event(&api, "", &[]).await;
            let expected = [
                "Host",
                "Sec-WebSocket-Key",
                "Sec-WebSocket-Version",
                "X-Amzn-Trace-Id",
                "X-Forwarded-For",
                "X-Forwarded-Port",
                "X-Forwarded-Proto",
            ];
            assert_eq!(keys(&event["headers"]), BTreeSet::from(expected));
            assert_eq!(keys(&event["multiValueHeaders"]), BTreeSet::from(expected));
            let trace_id = event["headers"]["X-Amzn-Trace-Id"].as_str().unwrap();
            let parts: Vec<_> = trace_id.split('-').map(str::len).collect();
            assert!(trace_id.starts_with("Root=1-") && parts == [6, 8, 24], "{trace_id}");
        }),
        row("EV-08", "D+I", "D-auth; D-proxyout", "a client's own header is there as it was sent, in both forms").ours(
            LOG,
            |api| async move {
                let headers = [("Foo", "bar"), ("x-lOWER", "1"), ("X-Twice", "1"), ("X-Twice", "2")];
                let event = connect_event(&api, "", &headers).await;
                for (name, last, all) in
                    [("Foo", "bar", &["bar"][..]), ("x-lOWER", "1", &["1"]), ("X-Twice", "2", &["1", "2"])]
                {
                    assert_eq!(event["headers"][name], last, "{name}");
                    assert_eq!(event["multiValueHeaders"][name], json!(all), "{name}");
                }
            },
        ),
        row("EV-09", "O", "CAP-23; CAP-24; CAP-25", "$connect's event has no body, messageId, path or method").ours(
            LOG,
            |api| async move {
                let event = connect_event(&api, "", &[]).await;
                for key in ["body", "path", "httpMethod", "resource", "pathParameters"] {
                    assert_eq!(event.get(key), None);
                }
                assert_eq!(event["requestContext"].get("messageId"), None);
            },
        ),
        row("EV-10", "O", "GOLANG; CAP-23; CAP-25", "a message's event is requestContext, body and isBase64Encoded")
            .anywhere(|api| async move {
                let event = message_event(&api).await;
                assert_eq!(keys(&event), BTreeSet::from(["requestContext", "body", "isBase64Encoded"]));
            }),
        row("EV-11", "O", "GOLANG", "a message's requestContext is that of $connect and messageId").anywhere(
            |api| async move {
                let event = message_event(&api).await;
                let expected: BTreeSet<_> = CONTEXT.into_iter().chain(["messageId"]).collect();
                assert_eq!(keys(&event["requestContext"]), expected);
                assert_eq!(event["requestContext"]["eventType"], "MESSAGE");
                assert_eq!(event["requestContext"]["messageDirection"], "IN");
            },
        ),
        row("EV-12", "D", "D-ctx", "routeKey is that of the selected route").anywhere(|api| async move {
            assert_eq!(message_event(&api).await["requestContext"]["routeKey"], "echo");
        }),
        row("EV-13", "O", "GOLANG", "routeKey of a message that selects no route is $default").anywhere(
            |api| async move {
                let event = api.connect().await.ask(&json!({"a": 1})).await;
                assert_eq!(event["requestContext"]["routeKey"], "$default");
            },
        ),
        row("EV-14", "O", "GOLANG", "body is the text as it was sent").anywhere(|api| async move {
            let mut client = api.connect().await;
            for text in ["{\r\n\t\"a\": 1\r\n}", "{\"action\" :  \"echo\",\"x\":\"žluťoučký 🐎\"}", " plain\t"] {
                client.text(text).await;
                assert_eq!(client.hears_json().await["body"], text);
            }
        }),
        row(
            "EV-15",
            "O",
            "CAP-23; CAP-24; CAP-25",
            "two messages differ in messageId and requestId, and share their connection's values",
        )
        .anywhere(|api| async move {
            let mut client = api.connect().await;
            let one = client.ask(&json!({"action": "echo"})).await["requestContext"].take();
            let two = client.ask(&json!({"action": "echo"})).await["requestContext"].take();
            for key in ["messageId", "requestId"] {
                assert_ne!(one[key], two[key], "{key}");
            }
            for key in ["connectionId", "connectedAt", "identity"] {
                assert_eq!(one[key], two[key], "{key}");
            }
        }),
        row("EV-16", "D", "D-ctx", "requestId and extendedRequestId are the same").anywhere(|api| async move {
            for event in every_event(&api).await {
                assert_eq!(event["requestContext"]["requestId"], event["requestContext"]["extendedRequestId"]);
            }
        }),
        row("EV-17", "O", "CAP-23; CAP-24; GOLANG; RECORD", "ids are 15 characters of URL-safe Base64 and =").anywhere(
            |api| async move {
                for event in every_event(&api).await {
                    for key in ["connectionId", "requestId", "messageId"] {
                        let id = event["requestContext"][key].as_str();
                        assert!(id.map_or(key == "messageId", is_id), "{key} {id:?}");
                    }
                }
            },
        ),
        row("EV-18", "D", "D-ctx", "requestTime is Common Log Format and the second of requestTimeEpoch").anywhere(
            |api| async move {
                assert_eq!(common_log_seconds("20/Jan/2024:11:55:08 +0000"), 1_705_751_708);
                for event in every_event(&api).await {
                    let context = &event["requestContext"];
                    let seconds = common_log_seconds(context["requestTime"].as_str().unwrap());
                    assert_eq!(seconds, context["requestTimeEpoch"].as_i64().unwrap() / 1000, "{context}");
                }
            },
        ),
        row("EV-19", "D+S", "D-ctx; S", "connectedAt and requestTimeEpoch are whole milliseconds, in that order")
            .anywhere(|api| async move {
                for event in every_event(&api).await {
                    let context = &event["requestContext"];
                    let connected_at = context["connectedAt"].as_i64().unwrap();
                    assert!(context["requestTimeEpoch"].as_i64().unwrap() >= connected_at, "{context}");
                    assert!(connected_at > 1_600_000_000_000, "{context}");
                }
            }),
        row("EV-20", "O", "CAP-23; CAP-24; GOLANG; RECORD", "isBase64Encoded is false").anywhere(|api| async move {
            for event in every_event(&api).await {
                assert_eq!(event["isBase64Encoded"], false);
            }
        }),
        row("EV-21", "O", "CAP-22; CAP-23; CAP-24; CAP-25; GOLANG", "nothing is null [null_style]").anywhere(
            |api| async move {
                for event in every_event(&api).await {
                    assert!(!has_null(&event), "{event}");
                }
                if api.is_ours() {
                    let api = Api::ours(&["--null-style", "explicit"]).await;
                    assert!(has_null(&message_event(&api).await));
                }
            },
        ),
        row("EV-22", "D+O", "D-intreq; CAP-23", "an empty close frame is 1005 in $disconnect").ours(
            LOG,
            |api| async move {
                let event = disconnect_event(&api, b"").await;
                assert_eq!(reason(&event), (1005, "Client-side close frame status not set"));
            },
        ),
        row("EV-23", "O", "GOLANG", "a closed browser tab is 1001 without a reason in $disconnect").ours(
            LOG,
            |api| async move {
                assert_eq!(reason(&disconnect_event(&api, &1001_u16.to_be_bytes()).await), (1001, ""));
            },
        ),
        row("EV-24", "I", "GOLANG; D-overview", "$disconnect has the code and the reason of the client's close frame")
            .ours(LOG, |api| async move {
                for code in [1000_u16, 4000] {
                    let event = disconnect_event(&api, &[&code.to_be_bytes()[..], b"bye"].concat()).await;
                    assert_eq!(reason(&event), (u64::from(code), "bye"));
                }
            }),
        row(
            "EV-25",
            "D",
            "D-overview",
            "a TCP connection that ends without a close frame is 1006 in $disconnect [abnormal_reason]",
        )
        .ours(FLAGS, |api| async move {
            let lost = Api::ours(&["--abnormal-reason", "lost"]).await;
            for (api, is_reset, text) in [(&*api, true, ""), (&*api, false, ""), (&lost, true, "lost")] {
                let tcp = if is_reset { api.endpoint.dial_to_reset().await } else { api.endpoint.dial().await };
                let tcp = api.endpoint.request_on(tcp, &api.endpoint.stage_path, &[]).await;
                let mut client = Client::accept(tcp).await;
                api.learn_id(&mut client).await;
                let id = client.id.clone();
                drop(client);
                assert_eq!(reason(&api.event(&id, "$disconnect").await), (1006, text));
            }
        }),
        row("EV-26", "O", "boto3#3789", "a connection that @connections deleted is 1000 in $disconnect").ours(
            LOG,
            |api| async move {
                let client = api.connect().await;
                api.call("DELETE", &client.id, b"").await;
                let event = api.event(&client.id, "$disconnect").await;
                assert_eq!(reason(&event), (1000, "Connection Closed Normally"));
            },
        ),
        row("EV-27", "O", "CAP-24", "a connection that was idle is 1001 in $disconnect").ours(FLAGS, |_| async move {
            let api = Api::ours(&["--idle-timeout", "300ms"]).await;
            let client = api.connect().await;
            assert_eq!(reason(&api.event(&client.id, "$disconnect").await), (1001, "Going away"));
        }),
        row("EV-28", "D+O", "D-intreq; GOLANG", "$disconnect has its four odd headers in both forms").ours(
            LOG,
            |api| async move {
                let event = disconnect_event(&api, b"").await;
                let host = &api.endpoint.authority;
                let expected = json!({"Host": host, "x-api-key": "", "X-Forwarded-For": "", "x-restapi": ""});
                assert_eq!(event["headers"], expected);
                let expected = json!({"Host": [host], "x-api-key": [""], "X-Forwarded-For": [""], "x-restapi": [""]});
                assert_eq!(event["multiValueHeaders"], expected);
            },
        ),
        row("EV-29", "D+O", "D-intreq; GOLANG", "$disconnect has no query, body or messageId").ours(
            LOG,
            |api| async move {
                let event = disconnect_event(&api, b"").await;
                let expected = ["headers", "isBase64Encoded", "multiValueHeaders", "requestContext"];
                assert_eq!(keys(&event), BTreeSet::from(expected));
                let expected: BTreeSet<_> =
                    CONTEXT.into_iter().chain(["disconnectStatusCode", "disconnectReason"]).collect();
                assert_eq!(keys(&event["requestContext"]), expected);
                let context = &event["requestContext"];
                let seen = (&context["eventType"], &context["routeKey"], &context["messageDirection"]);
                assert_eq!(seen, (&json!("DISCONNECT"), &json!("$disconnect"), &json!("IN")));
            },
        ),
        row("EV-30", "I", "D-auth; D-proxyout", "the stage's variables come with every event, and can be an identity")
            .ours(SERVICE, |_| async move {
                let variables = "{colour: blue, url: 'https://example.com/?a=1', size: 7}";
                let stage = format!("WebsocketsDeploymentStage: {{Properties: {{StageVariables: {variables}}}}}");
                let extensions = format!("resources:\n  extensions: {{{stage}}}\n");
                let api = edited_api("stageVariables.colour", &[("resources:\n", &extensions)], &[]).await;
                let allow = json!({"do": "respond", "response": policy("Allow", "{methodArn}")});
                let query = format!("?authorizer={}", encoded(&allow.to_string()));
                let mut client = api.connect_with(&query, &[]).await;
                client.close(1000, "").await;
                api.stack().logged(4, &[&client.id, "\"fixture\":\"event\""]).await;
                for event in api.events(&client.id) {
                    let expected = json!({"colour": "blue", "url": "https://example.com/?a=1", "size": "7"});
                    assert_eq!(event["stageVariables"], expected, "{event}");
                }
            }),
        row("EV-31", "S", "S", "the three events are read by the Rust type").proved(&[
            "tests/e2e/chat.rs::user_1_writes_to_user_2",
            "tests/e2e/lifecycle.rs::rows_are_there_after_connect_and_gone_after_disconnect",
        ]),
        row("EV-32", "S", "S", "an event without connectedAt never reaches a Rust handler").ours(
            "negative: a function of this repository is handed a wrong event",
            |_| async {
                let event = std::fs::read(root().join("tests/events/disconnect-client.json")).unwrap();
                let mut event: Value = serde_json::from_slice(&event).unwrap();
                event["requestContext"].as_object_mut().unwrap().remove("connectedAt").unwrap();
                let error = disconnect().invoke(event.to_string().into()).await.unwrap_err();
                assert!(error.error_message.contains("missing field `connectedAt`"), "{error:?}");
            },
        ),
        row(
            "EV-33",
            "O",
            "aws-lambda-graphql#112",
            "behind a custom domain with the mapping key chat domainName is the domain, and stage is the stage",
        )
        .ours(SERVICE, |_| async move {
            let mapping = "  Resources:
    Mapping:
      Type: AWS::ApiGatewayV2::ApiMapping
      Properties:
        ApiId: !Ref WebsocketsApi
        DomainName: ws.example.com
        Stage: !Ref WebsocketsDeploymentStage
        ApiMappingKey: chat
";
            let api = Api::edited(&[("  Resources:\n", mapping)], &["--domain-name", "ws.example.com"]).await;
            for path in ["/chat", "/chat/", "/chat?a=1"] {
                let mut client = api.handshake_path(path, &[]).await;
                let event = client.ask(&json!({"action": "echo"})).await;
                assert_eq!(event["requestContext"]["domainName"], "ws.example.com");
                assert_eq!(event["requestContext"]["stage"], "dev");
                let id = event["requestContext"]["connectionId"].as_str().unwrap();
                let calls = format!("/chat/@connections/{id}");
                assert_eq!(api.call_path("POST", &calls, Some("execute-api"), b"hello").await.status, 200);
                assert_eq!(client.hears().await, "hello");
            }
            for path in ["/", "/chat/x", "/Chat"] {
                assert_eq!(api.handshake_path(path, &[]).await.reply.status, 403, "{path}");
            }
        }),
    ]
}

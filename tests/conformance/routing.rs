//! RT: which function a message reaches.

use serde_json::{Value, json};
use switchboard_tests::wire::{BINARY, Client, PING, PONG, masked};

use crate::api::Api;
use crate::table::{FLAGS, LOG, Row, SERVICE, row};

const EXPRESSION: &str = "$request.body.action";

/// Sends a text and returns the route key of its event.
async fn route(client: &mut Client, text: &str) -> String {
    client.text(text).await;
    client.hears_json().await["requestContext"]["routeKey"].as_str().unwrap().to_owned()
}

/// Checks that each of these texts goes to `$default` as it is.
async fn go_to_default(api: &Api, texts: &[&str]) {
    let mut client = api.connect().await;
    for text in texts {
        client.text(text).await;
        let event = client.hears_json().await;
        assert_eq!((&event["requestContext"]["routeKey"], &event["body"]), (&json!("$default"), &json!(text)));
    }
}

/// The route of `message` in an API with this route selection expression.
async fn selected(expression: &str, message: Value) -> String {
    let api = Api::edited(&[(EXPRESSION, expression)], &[]).await;
    let mut client = api.handshake("", &[]).await;
    route(&mut client, &message.to_string()).await
}

pub fn rows() -> Vec<Row> {
    vec![
        row("RT-01", "D", "D-routes", "a message reaches the function of its route, once").ours(
            LOG,
            |api| async move {
                let mut client = api.connect().await;
                client.send(&json!({"action": "sendMessage"})).await;
                api.event(&client.id, "sendMessage").await;
                api.claim_invoked(&client.id, &["$connect", "echo", "sendMessage", "$disconnect"]);
            },
        ),
        row("RT-02", "D", "D-routes", "an unknown action goes to $default")
            .anywhere(|api| async move { go_to_default(&api, &[r#"{"action":"unknown"}"#]).await }),
        row("RT-03", "D", "D-routes", "JSON without an action goes to $default")
            .anywhere(|api| async move { go_to_default(&api, &[r#"{"foo":1}"#]).await }),
        row("RT-04", "D", "D-routes", "text that is not JSON goes to $default")
            .anywhere(|api| async move { go_to_default(&api, &["hello"]).await }),
        row("RT-05", "D", "D-routeresp", "an empty text goes to $default")
            .anywhere(|api| async move { go_to_default(&api, &[""]).await }),
        row("RT-06", "I", "D-routes", "an empty action and a null one go to $default").anywhere(|api| async move {
            go_to_default(&api, &[r#"{"action":""}"#, r#"{"action":null}"#]).await;
        }),
        row("RT-07", "O", "chalice-tests", "a bare number goes to $default")
            .anywhere(|api| async move { go_to_default(&api, &["42"]).await }),
        row("RT-26", "I", "D-routes", "an array, a string and a boolean go to $default")
            .anywhere(|api| async move { go_to_default(&api, &["[1,2]", r#""x""#, "true"]).await }),
        row("RT-08", "D", "D-routes", "route keys are case-sensitive")
            .anywhere(|api| async move { go_to_default(&api, &[r#"{"action":"Echo"}"#]).await }),
        row("RT-09", "I", "D-routes; localstack#7153", "the actions $connect and $disconnect go to $default").anywhere(
            |api| async move {
                go_to_default(&api, &[r#"{"action":"$connect"}"#, r#"{"action":"$disconnect"}"#]).await;
            },
        ),
        row("RT-10", "I", "D-routes; localstack#7153", "the action $default goes to $default")
            .anywhere(|api| async move { go_to_default(&api, &[r#"{"action":"$default"}"#]).await }),
        row("RT-11", "O", "WSCAT; simple-websockets-chat-app#24", "without $default the gateway answers Forbidden")
            .ours(SERVICE, |_| async move {
                let api = without_default().await;
                let mut client = api.connect().await;
                client.send(&json!({"action": "unknown"})).await;
                let text = client.hears().await;
                let frame: Value = serde_json::from_str(&text).unwrap();
                let (id, request_id) = (&client.id, frame["requestId"].as_str().unwrap());
                let bytes = format!(r#"{{"message": "Forbidden", "connectionId":"{id}", "requestId":"{request_id}"}}"#);
                assert_eq!(text, bytes);
                api.claim_invoked(&client.id, &["$connect", "echo", "$disconnect"]);
                api.end().await;
            }),
        row("RT-12", "O", "WSCAT", "after that the connection is open, and a good message is routed").ours(
            SERVICE,
            |_| async move {
                let api = without_default().await;
                let mut client = api.connect().await;
                assert_eq!(client.ask(&json!({"action": "unknown"})).await["message"], "Forbidden");
                assert_eq!(route(&mut client, r#"{"action":"echo"}"#).await, "echo");
            },
        ),
        row("RT-13", "D", "D-routes", "${request.body.service}/${request.body.action} selects chat/join").ours(
            SERVICE,
            |_| async move {
                let message = json!({"service": "chat", "action": "join"});
                let expression = "${request.body.service}/${request.body.action}";
                assert_eq!(selected(expression, message).await, "chat/join");
            },
        ),
        row("RT-14", "D", "D-routes", "a value that the expression does not find is empty").ours(
            SERVICE,
            |_| async move {
                let expression = "${request.body.action}-${request.body.invalidPath}";
                assert_eq!(selected(expression, json!({"action": "join"})).await, "join-");
            },
        ),
        row("RT-15", "D", "D-routes", "$request.body.data.room selects by a nested value").ours(
            SERVICE,
            |_| async move {
                let message = json!({"data": {"room": "room1234"}});
                assert_eq!(selected("$request.body.data.room", message).await, "room1234");
            },
        ),
        row("RT-16", "D", "D-routes", "$request.body.type selects by another member").ours(SERVICE, |_| async move {
            assert_eq!(selected("$request.body.type", json!({"type": "subscribe"})).await, "subscribe");
        }),
        row("RT-17", "I", "D-routes", "the action 1 selects the route 1").anywhere(|api| async move {
            assert_eq!(route(&mut api.connect().await, r#"{"action":1}"#).await, "1");
        }),
        row("RT-18", "D", "D-routes", "the action [\"a\",\"b\"] selects the route [a, b]").anywhere(|api| async move {
            assert_eq!(route(&mut api.connect().await, r#"{"action":["a","b"]}"#).await, "[a, b]");
        }),
        row("RT-19", "D", "D-binary", "a binary frame closes with 1003 and reaches no route").anywhere(
            |api| async move {
                let mut client = api.connect().await;
                client.frame(true, BINARY, br#"{"action":"echo"}"#).await;
                assert_eq!(client.closed().await, Some(1003));
                if api.is_ours() {
                    api.event(&client.id, "$disconnect").await;
                }
                api.claim_invoked(&client.id, &["$connect", "echo", "$disconnect"]);
            },
        ),
        row("RT-20", "I", "RFC 6455; infra#2229", "a ping is answered with its payload, by no function").anywhere(
            |api| async move {
                let mut client = api.connect().await;
                client.frame(true, PING, b"are you there").await;
                let pong = client.receive().await;
                assert_eq!((pong.opcode, pong.payload.as_slice()), (PONG, &b"are you there"[..]));
                api.claim_invoked(&client.id, &["$connect", "echo", "$disconnect"]);
            },
        ),
        row("RT-21", "D", "D-integ; D-limits", "four frames of 32 KB are one message, with a ping between them")
            .anywhere(|api| async move {
                let mut client = api.connect().await;
                let text = crate::quotas::text_of(131_072);
                let parts: Vec<_> = text.as_bytes().chunks(32_768).collect();
                client.frame(false, switchboard_tests::wire::TEXT, parts[0]).await;
                client.raw(&masked(true, PING, b"between")).await;
                for part in &parts[1..3] {
                    client.frame(false, switchboard_tests::wire::CONTINUATION, part).await;
                }
                client.frame(true, switchboard_tests::wire::CONTINUATION, parts[3]).await;
                assert_eq!(client.receive().await.opcode, PONG);
                assert_eq!(client.hears().await, "131072");
            }),
        row("RT-22", "O", "localstack#7153", "$connect and $disconnect run whatever the expression names").ours(
            SERVICE,
            |_| async move {
                let api = Api::edited(&[(EXPRESSION, "$request.body.nothing")], &[]).await;
                let mut client = api.connect().await;
                client.close(1000, "").await;
                api.event(&client.id, "$connect").await;
                api.event(&client.id, "$disconnect").await;
            },
        ),
        row("RT-23", "?", "CAP-23", "JSON with an unquoted key goes to $default [lenient_json]").ours(
            FLAGS,
            |api| async move {
                let text = r#"{"action":"echo", body:"x"}"#;
                go_to_default(&api, &[text]).await;
                let api = Api::ours(&["--lenient-json"]).await;
                let mut client = api.connect().await;
                client.text(text).await;
                let event = client.hears_json().await;
                assert_eq!((&event["requestContext"]["routeKey"], &event["body"]), (&json!("echo"), &json!(text)));
            },
        ),
        row("RT-24", "I", "RFC 8259", "the last value of a repeated key selects").anywhere(|api| async move {
            assert_eq!(route(&mut api.connect().await, r#"{"action":"a","action":"echo"}"#).await, "echo");
        }),
        row("RT-25", "D", "D-integ", "a body that its route's model refuses is answered Bad request body").ours(
            SERVICE,
            |_| async move {
                let api = Api::edited(&[("resources:\n", EXTENSIONS), ("  Resources:\n", MODEL)], &[]).await;
                let mut client = api.connect_with("", &[]).await;
                for body in [json!({"action": "subscribe"}), json!({"action": "subscribe", "topic": 7})] {
                    client.send(&body).await;
                    let frame = client.hears().await;
                    let parsed: Value = serde_json::from_str(&frame).unwrap();
                    let (id, message_id) = (&client.id, parsed["messageId"].as_str().unwrap());
                    let expected = format!(
                        r#"{{"message" : "Bad request body", "connectionId": "{id}", "messageId": "{message_id}"}}"#
                    );
                    assert_eq!((frame, message_id.len()), (expected, 16));
                }
                let event = client.ask(&json!({"action": "subscribe", "topic": "news"})).await;
                assert_eq!(event["requestContext"]["routeKey"], "subscribe");
                api.claim_invoked(&client.id, &["$connect", "echo", "subscribe", "$disconnect"]);
                api.end().await;
            },
        ),
    ]
}

/// The route `subscribe` requires a model.
const EXTENSIONS: &str = "resources:
  extensions:
    subscribeWebsocketsRoute:
      Properties: {ModelSelectionExpression: $request.body.action, RequestModels: {subscribe: Subscription}}
";

const MODEL: &str = "  Resources:
    SubscriptionModel:
      Type: AWS::ApiGatewayV2::Model
      Properties:
        ApiId: !Ref WebsocketsApi
        Name: Subscription
        Schema:
          $schema: http://json-schema.org/draft-04/schema#
          type: object
          required: [topic]
          properties: {topic: {type: string}}
";

async fn without_default() -> Api {
    let route = "websocket: {route: $default, routeResponseSelectionExpression: $default}";
    Api::edited(&[(route, "websocket: other")], &[]).await
}

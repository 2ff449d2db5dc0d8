//! The events that functions receive.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use switchboard_tests::keys::{CONTEXT, has_null, keys};
use switchboard_tests::wire::{CLOSE, Client};

use crate::bed::{RFC_6455_KEY, Script};

/// Asserts the properties of every event.
fn assert_common(event: &Value) {
    assert!(!has_null(event), "{event}");
    assert_eq!(event["isBase64Encoded"], false);
    let context = &event["requestContext"];
    assert_eq!(context["messageDirection"], "IN");
    assert_eq!((&context["stage"], &context["apiId"]), (&json!("dev"), &json!("abcdef1234")));
    assert_eq!(context["requestId"], context["extendedRequestId"]);
    for id in ["connectionId", "messageId", "requestId"].map(|key| &context[key]).into_iter().filter_map(Value::as_str)
    {
        let stem = id.strip_suffix('=').unwrap();
        assert!(stem.len() == 15 && stem.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
    }
    let (connected_at, time) =
        (context["connectedAt"].as_i64().unwrap(), context["requestTimeEpoch"].as_i64().unwrap());
    assert!(time >= connected_at && connected_at > 1_600_000_000_000, "{context}");
    let printed = context["requestTime"].as_str().unwrap();
    let parsed = jiff::fmt::strtime::parse("%d/%b/%Y:%H:%M:%S %z", printed).unwrap().to_timestamp().unwrap();
    assert!(printed.ends_with(" +0000") && parsed.as_second() == time / 1000, "{printed}");
}

#[tokio::test]
async fn connect_tells_of_the_request_as_the_client_wrote_it() {
    let mut bed = Script::new().start().await;
    let headers =
        [RFC_6455_KEY, ("Foo", "bar"), ("x-lOWER", "1"), ("X-Twice", "1"), ("X-Twice", "2"), ("User-Agent", "me/1")];
    let path = "/dev?userId=2&a=1&a=2&x=%20y";
    assert_eq!(bed.handshake(path, &headers).await.reply.status, 101);
    let event = bed.event().await;
    assert_common(&event);
    let expected = [
        "headers",
        "multiValueHeaders",
        "queryStringParameters",
        "multiValueQueryStringParameters",
        "requestContext",
        "isBase64Encoded",
    ];
    assert_eq!(keys(&event), BTreeSet::from(expected));
    assert_eq!(keys(&event["requestContext"]), BTreeSet::from(CONTEXT));
    assert_eq!(event["requestContext"]["routeKey"], "$connect");
    assert_eq!(event["requestContext"]["eventType"], "CONNECT");
    assert_eq!(event["requestContext"]["domainName"], bed.address.to_string());
    assert_eq!(event["requestContext"]["identity"], json!({"userAgent": "me/1", "sourceIp": "127.0.0.1"}));

    assert_eq!(event["queryStringParameters"], json!({"userId": "2", "a": "2", "x": " y"}));
    let multi = json!({"userId": ["2"], "a": ["1", "2"], "x": [" y"]});
    assert_eq!(event["multiValueQueryStringParameters"], multi);

    let mut single = event["headers"].clone();
    let trace_id = single["X-Amzn-Trace-Id"].take();
    let trace_id = trace_id.as_str().unwrap().strip_prefix("Root=1-").unwrap();
    assert_eq!((trace_id.len(), trace_id.find('-')), (33, Some(8)));
    let expected = json!({
        "Host": bed.address.to_string(),
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": RFC_6455_KEY.1,
        "Foo": "bar",
        "x-lOWER": "1",
        "X-Twice": "2",
        "User-Agent": "me/1",
        "X-Amzn-Trace-Id": null,
        "X-Forwarded-For": "127.0.0.1",
        "X-Forwarded-Port": bed.address.port().to_string(),
        "X-Forwarded-Proto": "http",
    });
    assert_eq!(single, expected);
    assert_eq!(keys(&event["multiValueHeaders"]), keys(&event["headers"]));
    assert_eq!(event["multiValueHeaders"]["Foo"], json!(["bar"]));
    assert_eq!(event["multiValueHeaders"]["X-Twice"], json!(["1", "2"]));
}

#[tokio::test]
async fn connect_without_query_and_user_agent_has_neither() {
    let mut bed = Script::new().start().await;
    for path in ["/dev", "/dev?"] {
        bed.handshake(path, &[]).await;
        let event = bed.event_of("$connect").await;
        let expected = ["headers", "multiValueHeaders", "requestContext", "isBase64Encoded"];
        assert_eq!(keys(&event), BTreeSet::from(expected));
        assert_eq!(event["requestContext"]["identity"], json!({"sourceIp": "127.0.0.1"}));
        bed.event_of("$disconnect").await;
    }
}

#[tokio::test]
async fn a_message_is_its_text_and_its_connection_and_nothing_else() {
    let (mut bed, mut client) = Script::new().connected().await;
    let texts = ["{\r\n\t\"a\": 1\r\n}", "{\"action\" :  \"sendMessage\",\"x\":\"žluťoučký 🐎\"}"];
    let mut contexts = Vec::new();
    for (text, route_key) in texts.into_iter().zip(["$default", "sendMessage"]) {
        client.text(text).await;
        let event = bed.event_of(route_key).await;
        assert_common(&event);
        assert_eq!(keys(&event), BTreeSet::from(["requestContext", "body", "isBase64Encoded"]));
        assert_eq!(event["body"], text);
        let expected: BTreeSet<_> = CONTEXT.into_iter().chain(["messageId"]).collect();
        assert_eq!(keys(&event["requestContext"]), expected);
        assert_eq!(event["requestContext"]["eventType"], "MESSAGE");
        assert_eq!(event["requestContext"]["connectionId"], client.id);
        contexts.push(event["requestContext"].clone());
    }
    for same in ["connectionId", "connectedAt", "identity", "domainName"] {
        assert_eq!(contexts[0][same], contexts[1][same]);
    }
    for fresh in ["messageId", "requestId"] {
        assert_ne!(contexts[0][fresh], contexts[1][fresh]);
    }
}

/// Inferred: `$disconnect` has the client's own code and reason. Only 1001 and a close without a code are known.
#[tokio::test]
async fn disconnect_has_the_code_and_the_reason_of_the_clients_close() {
    let mut bed = Script::new().start().await;
    for (payload, code, reason) in [
        (b"".as_slice(), 1005, "Client-side close frame status not set"),
        (b"\x03\xe9", 1001, ""),
        (b"\x03\xe8bye", 1000, "bye"),
        (b"\x0f\xa0bye", 4000, "bye"),
    ] {
        let mut client = bed.connect().await;
        client.frame(true, CLOSE, payload).await;
        let event = bed.event_of("$disconnect").await;
        assert_common(&event);
        let expected = ["headers", "multiValueHeaders", "requestContext", "isBase64Encoded"];
        assert_eq!(keys(&event), BTreeSet::from(expected));
        let host = bed.address.to_string();
        let headers = json!({"Host": host, "x-api-key": "", "X-Forwarded-For": "", "x-restapi": ""});
        assert_eq!(event["headers"], headers);
        let headers = json!({"Host": [host], "x-api-key": [""], "X-Forwarded-For": [""], "x-restapi": [""]});
        assert_eq!(event["multiValueHeaders"], headers);
        let context = &event["requestContext"];
        let expected: BTreeSet<_> = CONTEXT.into_iter().chain(["disconnectStatusCode", "disconnectReason"]).collect();
        assert_eq!(keys(context), expected);
        assert_eq!((&context["eventType"], &context["connectionId"]), (&json!("DISCONNECT"), &json!(client.id)));
        assert_eq!((&context["disconnectStatusCode"], &context["disconnectReason"]), (&json!(code), &json!(reason)));
        // The gateway answers the close frame and ends TCP.
        assert_eq!(client.closed_without_echo().await, (code != 1005).then_some(code));
        bed.assert_gone("POST", &client.id).await;
    }
}

#[tokio::test]
async fn a_lost_client_disconnects_with_1006() {
    let mut bed = Script::new().start().await;
    for reset in [true, false] {
        let tcp = if reset { bed.request_to_reset("/dev").await } else { bed.request("/dev", &[]).await };
        // Only the id is kept. The rest of the client is dropped, so TCP ends.
        let Client { id, .. } = bed.connect_on(tcp).await;
        assert_eq!(bed.disconnected().await["disconnectStatusCode"], 1006);
        bed.assert_gone("POST", &id).await;
    }
}

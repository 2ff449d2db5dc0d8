//! The management API, `@connections`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use switchboard_tests::wire::{CLOSE, Reply};
use tokio::sync::Semaphore;

use crate::bed::{KIB, Script, connection_id, ok};

#[tokio::test]
async fn a_post_is_delivered_as_one_text_message() {
    let (bed, mut client) = Script::new().connected().await;
    let encoded = client.id.replace('=', "%3D");
    for path in [format!("@connections/{}", client.id), format!("%40connections/{encoded}")] {
        for body in ["hello", "", "{\"text\":\"žluťoučký 🐎\"}"] {
            let path = format!("/dev/{path}");
            let reply = bed.call_path("POST", &path, Some("execute-api"), body.as_bytes()).await;
            assert_eq!((reply.status, reply.body.as_str()), (200, ""), "{path}");
            assert_eq!(reply.header("content-length"), Some("0"));
            assert_eq!(reply.header("content-type"), Some("application/json"));
            assert_eq!(reply.header("x-amzn-requestid").map(str::len), Some(36));
            assert_eq!(reply.header("x-amz-apigw-id").map(str::len), Some(16));
            assert!(reply.header("x-amzn-trace-id").is_some() && reply.header("date").is_some());
            assert_eq!(client.hears().await, body);
        }
    }
}

#[tokio::test]
async fn a_message_has_at_most_128_kib_in_frames_of_at_most_32() {
    let (bed, mut client) = Script::new().connected().await;
    for (size, frames) in [
        (32 * KIB, vec![32 * KIB]),
        (100 * KIB, vec![32 * KIB, 32 * KIB, 32 * KIB, 4 * KIB]),
        (128 * KIB, vec![32 * KIB; 4]),
    ] {
        assert_eq!(bed.call("POST", &client.id, &vec![b'x'; size]).await.status, 200);
        assert_eq!(client.message().await, ("x".repeat(size), frames));
    }
    for size in [128 * KIB + 1, 1024 * KIB] {
        let reply = bed.call("POST", &client.id, &vec![b'x'; size]).await;
        assert_eq!(reply.error(), (413, Some("PayloadTooLargeException")));
        assert!(serde_json::from_str::<Value>(&reply.body).unwrap()["message"].is_string());
    }
    bed.call("POST", &client.id, b"still open").await;
    assert_eq!(client.hears().await, "still open");
}

#[tokio::test]
async fn every_error_has_its_status_type_and_body() {
    let (bed, mut client) = Script::new().connected().await;
    let id = client.id.clone();
    let here = format!("/dev/@connections/{id}");
    let (rootless, elsewhere) = (format!("/@connections/{id}"), format!("/prod/@connections/{id}"));
    let uuid = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
    let (signed, forbidden) = (Some("execute-api"), r#"{"message":"Forbidden"}"#);
    let unsigned = ("MissingAuthenticationTokenException", r#"{"message":"Missing Authentication Token"}"#);
    for (method, path, service, status, error_type, body) in [
        ("POST", rootless.as_str(), signed, 403, "ForbiddenException", forbidden),
        ("POST", &elsewhere, signed, 403, "ForbiddenException", forbidden),
        ("POST", &here, None, 403, unsigned.0, unsigned.1),
        ("PUT", &here, signed, 403, unsigned.0, unsigned.1),
        ("PATCH", &here, signed, 403, unsigned.0, unsigned.1),
        (
            "POST",
            &here,
            Some("apigateway"),
            403,
            "InvalidSignatureException",
            r#"{"message":"Credential should be scoped to correct service: 'execute-api'. "}"#,
        ),
        (
            "POST",
            "/dev/@connections/abc",
            signed,
            400,
            "BadRequestException",
            r#"{"message":"Invalid connectionId: abc"}"#,
        ),
        (
            "GET",
            &format!("/dev/@connections/{uuid}"),
            signed,
            400,
            "BadRequestException",
            &format!(r#"{{"message":"Invalid connectionId: {uuid}"}}"#),
        ),
    ] {
        let reply = bed.call_path(method, path, service, b"not delivered").await;
        assert_eq!(reply.error(), (status, Some(error_type)), "{method} {path}");
        assert_eq!(reply.body, body, "{method} {path}");
        assert!(reply.header("x-amzn-requestid").is_some() && reply.header("x-amz-apigw-id").is_some());
        assert!(reply.header("x-amzn-trace-id").is_none());
    }
    for method in ["POST", "GET", "DELETE"] {
        bed.assert_gone(method, "PJqB0fHsqRcCHlw=").await;
    }
    bed.call("POST", &id, b"the only one").await;
    assert_eq!(client.hears().await, "the only one");
}

#[tokio::test]
async fn get_describes_an_open_connection() {
    let mut bed = Script::new().start().await;
    let client = bed.handshake("/dev", &[("User-Agent", "Mozilla/5.0 \"x\"")]).await;
    assert_eq!(client.reply.status, 101);
    let event = bed.event_of("$connect").await;
    let id = connection_id(&event);
    let connected_at = event["requestContext"]["connectedAt"].as_i64().unwrap();

    let before = bed.call("GET", &id, b"").await;
    assert_eq!((before.status, before.header("content-type")), (200, Some("application/json")));
    let connected_at = jiff::Timestamp::from_millisecond(connected_at).unwrap();
    let connected_at = connected_at.strftime("%Y-%m-%dT%H:%M:%S.%3fZ");
    let expected = format!(
        "{{\n  \"identity\" : {{\n    \"sourceIp\" : \"127.0.0.1\",\n    \"userAgent\" : \"Mozilla/5.0 \\\"x\\\"\"\n  }},\n  \
         \"connectedAt\" : \"{connected_at}\",\n  \"lastActiveAt\" : \"{connected_at}\"\n}}"
    );
    assert_eq!(before.body, expected);

    // The times have a resolution of one millisecond.
    tokio::time::sleep(Duration::from_millis(5)).await;
    bed.call("POST", &id, b"hello").await;
    let parse = |reply: &Reply| serde_json::from_str::<Value>(&reply.body).unwrap();
    let (before, after) = (parse(&before), parse(&bed.call("GET", &id, b"").await));
    assert_eq!(before["connectedAt"], after["connectedAt"]);
    assert!(before["lastActiveAt"].as_str() < after["lastActiveAt"].as_str(), "{after}");
}

#[tokio::test]
async fn delete_closes_with_1000_and_disconnects_once() {
    let (mut bed, mut client) = Script::new().connected().await;
    bed.call("POST", &client.id, b"last words").await;
    let reply = bed.call("DELETE", &client.id, b"").await;
    assert_eq!((reply.status, reply.body.as_str()), (204, ""));
    assert_eq!((reply.header("content-type"), reply.header("content-length")), (None, None));
    assert!(reply.header("x-amzn-requestid").is_some() && reply.header("x-amzn-trace-id").is_some());
    for method in ["DELETE", "GET", "POST"] {
        bed.assert_gone(method, &client.id).await;
    }
    assert_eq!(client.hears().await, "last words");
    assert_eq!(client.close_frame().await[..2], 1000_u16.to_be_bytes());
    client.frame(true, CLOSE, &1000_u16.to_be_bytes()).await;
    let context = bed.disconnected().await;
    assert_eq!(context["disconnectStatusCode"], 1000);
    assert_eq!(context["disconnectReason"], "Connection Closed Normally");
    bed.assert_nothing_invoked().await;
}

#[tokio::test]
async fn a_connection_is_gone_while_its_disconnect_runs() {
    let gate = Arc::new(Semaphore::new(0));
    let (mut bed, mut client) = Script::new().on_held("$disconnect", &gate, ok).connected().await;
    client.frame(true, CLOSE, b"").await;
    bed.event_of("$disconnect").await;
    bed.assert_gone("GET", &client.id).await;
    bed.assert_gone("POST", &client.id).await;
}

/// Inferred: awaited posts keep their order, and concurrent posts are not mixed.
#[tokio::test]
async fn awaited_posts_keep_their_order_and_concurrent_posts_are_not_mixed() {
    let (bed, mut client) = Script::new().connected().await;
    for number in 0..10 {
        bed.call("POST", &client.id, format!("{number}").as_bytes()).await;
    }
    for number in 0..10 {
        assert_eq!(client.hears().await, format!("{number}"));
    }

    let id = client.id.clone();
    let bodies: BTreeSet<_> = (0..100).map(|number| format!("{number:03}").repeat(20 * KIB)).collect();
    let posts = futures_util::future::join_all(bodies.iter().map(|body| bed.call("POST", &id, body.as_bytes())));
    let received = async {
        let mut received = BTreeSet::new();
        for _ in 0..100 {
            received.insert(client.hears().await);
        }
        received
    };
    let (replies, received) = tokio::join!(posts, received);
    assert!(replies.iter().all(|reply| reply.status == 200));
    assert!(received == bodies, "a message was lost or mixed with another");
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_nobody_else_and_can_be_deleted() {
    let (mut bed, deaf) = Script::new().connected().await;
    let mut client = bed.connect().await;
    let body = vec![b'x'; 128 * KIB];
    // The test posts until sockets and queue are full. Their capacity depends on the system.
    while let Ok(reply) = tokio::time::timeout(Duration::from_secs(1), bed.call("POST", &deaf.id, &body)).await {
        assert_eq!(reply.status, 200);
    }
    let waiting = bed.call("POST", &deaf.id, &body);
    let others = async {
        assert_eq!(bed.call("POST", &client.id, b"hello").await.status, 200);
        assert_eq!(client.hears().await, "hello");
        assert_eq!(bed.call("DELETE", &deaf.id, b"").await.status, 204);
    };
    let (waiting, ()) = tokio::join!(waiting, others);
    assert_eq!(waiting.status, 410);
    assert_eq!(bed.disconnected().await["connectionId"], deaf.id);
}

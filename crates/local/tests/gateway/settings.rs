//! Flags for behaviour that nobody knows about AWS: each does what it says.

use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use switchboard_local::gateway::settings::{
    IdValidation, MissingStatusCode, NonUtf8Post, NullStyle, OnewayErrorStatus, PostToPending, Sigv4, ThrottleFrame,
};
use switchboard_tests::keys::keys;
use switchboard_tests::wire::{A_WHILE, CLOSE, PING, Reply, TEXT, masked};
use tokio::sync::Semaphore;

use crate::scripted::{KIB, ScriptedApi, connection_id, ok};

#[tokio::test]
async fn sizes_are_settings() {
    let script = ScriptedApi::new().limits(|limits| {
        limits.frame_limit = 10;
        limits.message_limit = 12;
        limits.url_limit = 100;
    });
    let mut gateway = script.behaviour(|behaviour| behaviour.outbound_fragment = 5).start().await;
    assert_eq!(gateway.handshake(&format!("/dev?{}", "x".repeat(100)), &[]).await.reply.status, 414);
    for frames in [&[b"12345678901".as_slice()][..], &[b"1234567890", b"123"]] {
        let mut client = gateway.connect().await;
        assert_eq!(gateway.call("POST", &client.id, b"123456789012").await.status, 200);
        assert_eq!(client.message().await, ("123456789012".to_owned(), vec![5, 5, 2]));
        assert_eq!(gateway.call("POST", &client.id, b"1234567890123").await.status, 413);
        client.fragments(frames).await;
        gateway.assert_closes(&mut client, 1009, "too long").await;
    }

    let (gateway, mut client) =
        ScriptedApi::new().behaviour(|behaviour| behaviour.outbound_fragment = 0).connected().await;
    gateway.call("POST", &client.id, &vec![b'x'; 100 * KIB]).await;
    assert_eq!(client.message().await.1, [100 * KIB]);
}

#[tokio::test]
async fn a_post_that_is_not_utf8_is_mended_or_refused() {
    for (value, status, received) in [(NonUtf8Post::Lossy, 200, "a\u{fffd}b"), (NonUtf8Post::Refuse, 400, "the next")] {
        let (gateway, mut client) =
            ScriptedApi::new().behaviour(|behaviour| behaviour.non_utf8_post = value).connected().await;
        assert_eq!(gateway.call("POST", &client.id, b"a\xffb").await.status, status);
        gateway.call("POST", &client.id, b"the next").await;
        assert_eq!(client.hears().await, received);
    }
}

#[tokio::test]
async fn a_malformed_id_can_be_answered_as_gone() {
    let gateway = ScriptedApi::new().behaviour(|behaviour| behaviour.id_validation = IdValidation::None).start().await;
    gateway.assert_gone("POST", "abc").await;
}

#[tokio::test]
async fn the_reasons_of_a_deletion_and_of_a_loss_can_be_chosen() {
    let script = ScriptedApi::new().behaviour(|behaviour| {
        behaviour.delete_close_reason = "bye".to_owned();
        behaviour.abnormal_reason = "lost".to_owned();
    });
    let (mut gateway, mut client) = script.connected().await;
    gateway.call("DELETE", &client.id, b"").await;
    assert_eq!(client.close_frame().await, b"\x03\xe8bye");
    drop(client);
    assert_eq!(gateway.disconnected().await["disconnectReason"], "bye");
    drop(gateway.connect().await);
    assert_eq!(gateway.disconnected().await["disconnectReason"], "lost");
}

#[tokio::test]
async fn events_can_have_the_nulls_of_2020() {
    let mut gateway =
        ScriptedApi::new().behaviour(|behaviour| behaviour.null_style = NullStyle::Explicit).start().await;
    drop(gateway.connect().await);
    let event = gateway.event_of("$disconnect").await;
    let context = event["requestContext"].as_object().unwrap();
    assert_eq!((context.get("messageId"), context["disconnectStatusCode"].as_u64()), (Some(&Value::Null), Some(1006)));
    assert_eq!((keys(&event["requestContext"]).len(), keys(&context["identity"]).len()), (16, 12));
}

#[tokio::test]
async fn a_missing_status_code_can_be_a_200() {
    let script = ScriptedApi::new().on("$connect", "{}").on("sendMessage", "{}");
    let script = script.behaviour(|behaviour| behaviour.missing_status_code = MissingStatusCode::Ok);
    let (mut gateway, mut client) = script.connected().await;
    gateway.invoke(&mut client, "sendMessage").await;
    gateway.call("POST", &client.id, b"no error before this").await;
    assert_eq!(client.hears().await, "no error before this");
}

#[tokio::test]
async fn a_message_that_is_not_strictly_json_can_be_routed_by_its_action() {
    let message = "{\"action\":\"sendMessage\", body:\"hello\" /* é */}";
    for (lenient_json, route_key) in [(false, "$default"), (true, "sendMessage")] {
        let (mut gateway, mut client) =
            ScriptedApi::new().behaviour(|behaviour| behaviour.lenient_json = lenient_json).connected().await;
        let deep = format!("{{action: 'sendMessage', deep: {}{}}}", "[".repeat(511), "]".repeat(511));
        for message in [message, &deep] {
            client.text(message).await;
            assert_eq!(gateway.event_of(route_key).await["body"], message);
        }
    }
}

#[tokio::test]
async fn an_error_status_of_a_one_way_route_can_be_sent() {
    let script = ScriptedApi::new().on("sendMessage", r#"{"statusCode":400,"body":"secret"}"#);
    let script = script.behaviour(|behaviour| behaviour.oneway_error_status = OnewayErrorStatus::ErrorFrame);
    let (mut gateway, mut client) = script.connected().await;
    assert_eq!(gateway.failure(&mut client, "sendMessage").await, "Internal server error");
}

#[tokio::test]
async fn pings_can_keep_a_connection_from_being_idle() {
    for (resets, survives) in [(false, false), (true, true)] {
        let script = ScriptedApi::new().limits(|limits| limits.idle_timeout = Duration::from_secs(1));
        let (_bed, mut client) = script.behaviour(|behaviour| behaviour.ping_resets_idle = resets).connected().await;
        let start = Instant::now();
        // Each ping goes out when the pong of the one before has come, so no ping is late on a slow machine.
        let closed = loop {
            client.frame(true, PING, b"").await;
            if client.receive().await.opcode == CLOSE {
                break true;
            }
            if start.elapsed() > Duration::from_secs(2) {
                break false;
            }
        };
        assert_eq!(closed, !survives);
    }
}

#[tokio::test]
async fn a_throttled_message_can_be_dropped_in_silence() {
    let script = ScriptedApi::new().limits(|limits| (limits.request_rate, limits.request_burst) = (0, 1));
    let (mut gateway, mut client) =
        script.behaviour(|behaviour| behaviour.throttle_frame = ThrottleFrame::None).connected().await;
    client.text(r#"{"action":"sendMessage"}"#).await;
    client.text(r#"{"action":"boom"}"#).await;
    gateway.event_of("sendMessage").await;
    client.frame(true, CLOSE, b"").await;
    assert_eq!(client.closed_without_echo().await, None);
    gateway.event_of("$disconnect").await;
}

/// Nobody knows how many messages of one client are too many for AWS.
#[tokio::test]
async fn a_client_that_sends_too_many_messages_can_be_closed_with_1008() {
    for (rate, admitted) in [(Some(0), 0), (Some(5), 5)] {
        let (mut gateway, mut client) =
            ScriptedApi::new().behaviour(|behaviour| behaviour.client_message_rate = rate).connected().await;
        client.raw(&masked(true, TEXT, b"hello").repeat(200)).await;
        assert_eq!(client.close_frame().await, b"\x03\xf0Too many requests");
        gateway.assert_gone("POST", &client.id).await;
        // The last messages and $disconnect run side by side.
        let (mut routed, mut code) = (0, Value::Null);
        while code.is_null() || routed < admitted {
            let context = gateway.event().await["requestContext"].take();
            match context["routeKey"].as_str() {
                Some("$disconnect") => code = context["disconnectStatusCode"].clone(),
                route_key => {
                    assert_eq!(route_key, Some("$default"));
                    routed += 1;
                }
            }
        }
        assert_eq!(code, 1008);
    }
}

#[tokio::test]
async fn the_messages_of_a_client_are_counted_for_it_alone_and_not_without_a_rate() {
    for rate in [Some(1), None] {
        let mut gateway = ScriptedApi::new().behaviour(|behaviour| behaviour.client_message_rate = rate).start().await;
        for _ in 0..3 {
            let mut client = gateway.connect().await;
            let messages = if rate.is_some() { 1 } else { 200 };
            client.raw(&masked(true, TEXT, b"hello").repeat(messages)).await;
            for _ in 0..messages {
                gateway.event_of("$default").await;
            }
            client.frame(true, CLOSE, b"").await;
            assert_eq!(client.closed_without_echo().await, None);
            gateway.event_of("$disconnect").await;
        }
    }
}

#[tokio::test]
async fn a_client_whose_messages_all_run_waits_and_others_do_not() {
    let gate = Arc::new(Semaphore::new(0));
    let script = ScriptedApi::new().on_held("$default", &gate, ok);
    let three = NonZeroU16::new(3).unwrap();
    let mut gateway = script.behaviour(|behaviour| behaviour.client_messages_at_once = three).start().await;
    let (mut flooder, mut neighbour) = (gateway.connect().await, gateway.connect().await);
    flooder.raw(&masked(true, TEXT, b"hello").repeat(200)).await;
    for _ in 0..3 {
        assert_eq!(connection_id(&gateway.event_of("$default").await), flooder.id);
    }
    neighbour.text("hello").await;
    assert_eq!(connection_id(&gateway.event_of("$default").await), neighbour.id);
    // Nothing is lost: the rest comes when there is room.
    gate.add_permits(201);
    for _ in 3..200 {
        assert_eq!(connection_id(&gateway.event_of("$default").await), flooder.id);
    }
}

#[tokio::test]
async fn a_post_to_a_connection_that_is_being_made_can_hang() {
    let gate = Arc::new(Semaphore::new(0));
    let script = ScriptedApi::new().on_held("$connect", &gate, ok);
    let mut gateway = script.behaviour(|behaviour| behaviour.post_to_pending = PostToPending::Hang).start().await;
    let mut tcp = gateway.request("/dev", &[]).await;
    let id = connection_id(&gateway.event_of("$connect").await);
    let mut post = std::pin::pin!(gateway.call("POST", &id, b"hello"));
    assert!(tokio::time::timeout(A_WHILE, &mut post).await.is_err(), "answered before $connect ended");
    gate.add_permits(1);
    assert_eq!(post.await.status, 200);
    assert_eq!(Reply::read(&mut tcp).await.status, 101);
}

#[tokio::test]
async fn signatures_can_be_left_out_or_verified() {
    let (gateway, client) = ScriptedApi::new().behaviour(|behaviour| behaviour.sigv4 = Sigv4::Off).connected().await;
    let path = format!("/dev/@connections/{}", client.id);
    assert_eq!(gateway.call_path("POST", &path, None, b"hello").await.status, 200);

    let gateway = ScriptedApi::new().behaviour(|behaviour| behaviour.verify_signatures = true).start().await;
    assert_eq!(gateway.call_path("POST", &path, None, b"hello").await.status, 403);
    let reply = gateway.call_path("POST", &path, Some("execute-api"), b"hello").await;
    assert_eq!(reply.error(), (403, Some("IncompleteSignatureException")));
}

#[tokio::test]
async fn the_domain_name_can_be_fixed() {
    let domain_name = Some("ws.example.com".to_owned());
    let mut gateway = ScriptedApi::new().behaviour(|behaviour| behaviour.domain_name = domain_name).start().await;
    drop(gateway.handshake("/dev", &[]).await);
    assert_eq!(gateway.event_of("$connect").await["requestContext"]["domainName"], "ws.example.com");
    assert_eq!(gateway.disconnected().await["domainName"], "ws.example.com");
}

//! Sizes, times and rates.

use std::time::Duration;

use bytes::Bytes;
use switchboard_local::gateway::settings::{IDLE_TIMEOUT, Limits};
use switchboard_local::lambda::FunctionError;
use switchboard_tests::wire::{BINARY, CLOSE, CONTINUATION, TEXT};

use crate::bed::{KIB, Script};

#[tokio::test]
async fn a_message_within_the_limits_is_accepted_whole() {
    let (mut bed, mut client) = Script::new().connected().await;
    let frame = "x".repeat(32 * KIB);
    client.text(&frame).await;
    assert_eq!(bed.event_of("$default").await["body"], frame);
    client.fragments(&[frame.as_bytes(); 4]).await;
    assert_eq!(bed.event_of("$default").await["body"], frame.repeat(4));
    bed.assert_nothing_invoked().await;
}

/// The codes 1002 and 1007 are those of RFC 6455. Inferred: AWS uses them.
#[tokio::test]
async fn a_message_beyond_the_limits_closes_the_connection_and_reaches_no_route() {
    let frame = vec![b'x'; 32 * KIB];
    let mut bed = Script::new().start().await;
    for (frames, code) in [
        (vec![(true, TEXT, [frame.as_slice(), b"x"].concat())], 1009),
        (
            (0..5)
                .map(|part| match part {
                    0 => (false, TEXT, frame.clone()),
                    4 => (true, CONTINUATION, b"x".to_vec()),
                    _ => (false, CONTINUATION, frame.clone()),
                })
                .collect(),
            1009,
        ),
        (vec![(true, TEXT, vec![b'x'; 4 * 1024 * KIB])], 1009),
        (vec![(true, BINARY, b"x".to_vec())], 1003),
        (vec![(true, TEXT, b"\xff\xfe".to_vec())], 1007),
        (vec![(false, TEXT, b"\xc5".to_vec()), (true, CONTINUATION, b"x".to_vec())], 1007),
        (vec![(true, CONTINUATION, b"x".to_vec())], 1002),
        (vec![(true, 0x3, b"x".to_vec())], 1002),
    ] {
        let mut client = bed.connect().await;
        for (fin, opcode, payload) in frames {
            client.frame(fin, opcode, &payload).await;
        }
        bed.assert_closes(&mut client, code, "beyond the limits").await;
        bed.assert_gone("POST", &client.id).await;
    }
    let mut client = bed.connect().await;
    client.raw(b"\x81\x05hello").await;
    bed.assert_closes(&mut client, 1002, "an unmasked frame").await;
}

/// Inferred, except for the idle timeout: `$disconnect` has the code that the client sees.
#[tokio::test]
async fn a_connection_that_is_idle_or_old_is_closed_with_1001() {
    for (idle, duration) in [(50, 10_000), (10_000, 50)] {
        let script = Script::new().limits(|limits| {
            limits.idle_timeout = Duration::from_millis(idle);
            limits.connection_duration = Duration::from_millis(duration);
        });
        let (mut bed, mut client) = script.connected().await;
        assert_eq!(client.close_frame().await, b"\x03\xe9Going away");
        let context = bed.disconnected().await;
        assert_eq!(context["disconnectStatusCode"], 1001);
        assert_eq!(context["disconnectReason"], "Going away");
        bed.assert_gone("POST", &client.id).await;
    }
}

#[tokio::test]
async fn a_faster_clock_closes_connections_sooner_and_leaves_time_stamps_alone() {
    // Ten minutes, or two hours, pass in half a second. At that speed, 29 s for a function would be less than 25 ms.
    for (speed, idle) in [("x1200", IDLE_TIMEOUT), ("x14400", Duration::from_secs(24 * 60 * 60))] {
        let script = Script::new().limits(|limits| {
            limits.clock = speed.parse().unwrap();
            limits.idle_timeout = idle;
        });
        let slow = |_| async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Ok(Bytes::from(r#"{"statusCode":200,"body":"in time"}"#))
        };
        let (mut bed, mut client) = script.on_async("slow", slow).two_way("slow").connected().await;
        client.text(r#"{"action":"slow"}"#).await;
        assert_eq!(client.hears().await, "in time");
        assert_eq!(client.close_frame().await, b"\x03\xe9Going away");
        bed.event_of("slow").await;
        let context = bed.disconnected().await;
        let open_ms = context["requestTimeEpoch"].as_i64().unwrap() - context["connectedAt"].as_i64().unwrap();
        assert!((450..60_000).contains(&open_ms), "{open_ms}");
    }
}

#[tokio::test]
async fn handshakes_beyond_the_rate_are_refused_and_reach_no_function() {
    let mut bed = Script::new().limits(|limits| limits.connection_rate = 2).start().await;
    let mut statuses = Vec::new();
    for _ in 0..10 {
        statuses.push(bed.handshake("/dev", &[]).await.reply.status);
    }
    let accepted = statuses.iter().filter(|status| **status == 101).count();
    assert!((2..10).contains(&accepted) && statuses.contains(&429), "{statuses:?}");
    // Each client was dropped at once, so $disconnects and later $connects are mixed.
    let mut connected = 0;
    for _ in 0..2 * accepted {
        connected += usize::from(bed.event().await["requestContext"]["routeKey"] == "$connect");
    }
    assert_eq!(connected, accepted);
    assert!(bed.events.is_empty());
}

/// The frame's form is inferred.
#[tokio::test]
async fn messages_and_posts_beyond_the_rate_are_answered_and_reach_nobody() {
    let script = Script::new().limits(|limits| (limits.request_rate, limits.request_burst) = (0, 2));
    let (mut bed, mut client) = script.connected().await;
    bed.invoke(&mut client, "sendMessage").await;
    assert_eq!(bed.call("POST", &client.id, b"hello").await.status, 200);
    assert_eq!(client.hears().await, "hello");

    client.text(r#"{"action":"sendMessage"}"#).await;
    assert_eq!(client.hears_error().await.0, "Too Many Requests");
    let reply = bed.call("POST", &client.id, b"never").await;
    assert_eq!(reply.error(), (429, Some("LimitExceededException")));
    client.frame(true, CLOSE, b"").await;
    assert_eq!(client.closed_without_echo().await, None);
    bed.event_of("$disconnect").await;
}

/// Inferred: the sender of a message gets an error frame.
#[tokio::test]
async fn a_throttled_function_is_a_500_or_an_error_frame() {
    let throttled = |_| async { Err(FunctionError::throttled()) };
    let mut bed = Script::new().on_async("$connect", throttled).start().await;
    assert_eq!(bed.handshake("/dev", &[]).await.reply.status, 500);
    bed.event_of("$connect").await;

    let (mut bed, mut client) = Script::new().on_async("sendMessage", throttled).connected().await;
    assert_eq!(bed.failure(&mut client, "sendMessage").await, "Internal server error");
}

/// Inferred: the handshake is answered with 504.
#[tokio::test]
async fn a_function_that_takes_longer_than_the_gateway_waits_is_a_504_or_an_error_frame() {
    let slow = |_| std::future::pending();
    let quick = |limits: &mut Limits| limits.integration_timeout = Duration::from_millis(50);
    let (mut bed, mut client) = Script::new().on_async("sendMessage", slow).limits(quick).connected().await;
    assert_eq!(bed.failure(&mut client, "sendMessage").await, "Endpoint request timed out");

    for (setting, status) in [(504, 504), (502, 502)] {
        let script = Script::new().on_async("$connect", slow).limits(quick);
        let mut bed = script.behaviour(|behaviour| behaviour.connect_timeout_status = setting).start().await;
        assert_eq!(bed.handshake("/dev", &[]).await.reply.status, status);
        bed.event_of("$connect").await;
    }
}

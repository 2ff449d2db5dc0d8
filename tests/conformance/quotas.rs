//! QT: limits, and how connections end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use switchboard_tests::wire::{BINARY, CLOSE, Client, PING, TEXT, masked};

use crate::api::{Api, route_key};
use crate::table::{FLAGS, LOG, Row, row};

const FRAME: usize = 32_768;
const MESSAGE: usize = 131_072;

/// The idle timeout in rows about it. Whatever keeps a connection open comes after a fraction of it.
const IDLE: Duration = Duration::from_millis(1500);
const IDLE_FLAG: &str = "1500ms";
const FRACTION: Duration = Duration::from_millis(300);

/// A message of this many bytes. Its function answers with its length.
pub fn text_of(bytes: usize) -> String {
    let empty = json!({"action": "echo", "do": "length", "x": ""}).to_string();
    json!({"action": "echo", "do": "length", "x": "x".repeat(bytes - empty.len())}).to_string()
}

fn frames(text: &str) -> Vec<&[u8]> {
    text.as_bytes().chunks(FRAME).collect()
}

/// Checks that the gateway closes the client with this code, that `$disconnect` has the same, and that no other route
/// runs.
async fn closes(api: &Api, client: &mut Client, code: u16) {
    assert_eq!(client.closed().await, Some(code));
    if api.is_ours() {
        let event = api.event(&client.id, "$disconnect").await;
        assert_eq!(event["requestContext"]["disconnectStatusCode"], code);
    }
    api.claim_invoked(&client.id, &["$connect", "echo", "$disconnect"]);
    api.assert_gone("POST", &client.id).await;
}

/// How long the client's connection stays open while `act` runs after each fraction of the idle timeout.
async fn open_for<F: Future<Output = Client>>(mut client: Client, act: impl Fn(Client) -> F) -> Duration {
    let began = Instant::now();
    let most = IDLE * 3;
    while began.elapsed() < most {
        client = act(client).await;
        match tokio::time::timeout(FRACTION, switchboard_tests::wire::read_frame(&mut client.tcp)).await {
            Ok(Ok(frame)) if frame.opcode == CLOSE => {
                assert_eq!(frame.payload[..2], 1001_u16.to_be_bytes());
                return began.elapsed();
            }
            Ok(Err(error)) => panic!("TCP ended without a close frame: {error}"),
            _ => {}
        }
    }
    most
}

pub fn rows() -> Vec<Row> {
    vec![
        row("QT-01", "D", "D-limits", "a message of 128 KB in frames of 32 KB is accepted").anywhere(
            |api| async move {
                let mut client = api.connect().await;
                client.fragments(&frames(&text_of(MESSAGE))).await;
                assert_eq!(client.hears().await, MESSAGE.to_string());
            },
        ),
        row("QT-02", "D", "D-limits; D-integ", "a message of a byte more closes with 1009 and reaches no route")
            .anywhere(|api| async move {
                let mut client = api.connect().await;
                client.fragments(&frames(&text_of(MESSAGE + 1))).await;
                closes(&api, &mut client, 1009).await;
            }),
        row("QT-03", "D", "D-limits; D-integ", "a frame of more than 32 KB closes with 1009 and reaches no route")
            .anywhere(|api| async move {
                let mut client = api.connect().await;
                client.text(&text_of(FRAME + 1)).await;
                closes(&api, &mut client, 1009).await;
            }),
        row("QT-04", "D", "D-limits", "a frame of 32 KB is accepted").anywhere(|api| async move {
            let mut client = api.connect().await;
            client.text(&text_of(FRAME)).await;
            assert_eq!(client.hears().await, FRAME.to_string());
        }),
        row("QT-05", "D", "D-overview; D-limits", "an idle connection is closed with 1001").ours(
            FLAGS,
            |_| async move {
                // The second is AWS's own ten minutes.
                for flags in [["--idle-timeout", "500ms"], ["--clock", "x1200"]] {
                    let api = Api::ours(&flags).await;
                    let mut client = api.connect().await;
                    let began = Instant::now();
                    let end = client.closed_with_reason().await;
                    assert_eq!(end, (Some(1001), "Going away".to_owned()));
                    assert!(began.elapsed() > Duration::from_millis(400), "{:?}", began.elapsed());
                    let context = api.event(&client.id, "$disconnect").await["requestContext"].take();
                    assert_eq!(context["disconnectStatusCode"], 1001);
                    // A clock that runs faster does not change the times in events.
                    let times = ["connectedAt", "requestTimeEpoch"].map(|key| context[key].as_i64().unwrap());
                    assert!((400..60_000).contains(&(times[1] - times[0])), "{times:?}");
                }
            },
        ),
        row("QT-06", "D", "D-limits", "messages of the client keep its connection open").ours(FLAGS, |_| async move {
            let api = Api::ours(&["--idle-timeout", IDLE_FLAG]).await;
            let client = api.connect().await;
            let open = open_for(client, |mut client| async {
                client.send(&json!({"action": "sendMessage"})).await;
                client
            });
            assert!(open.await > IDLE * 2);
        }),
        row("QT-07", "O", "hotsock; subscriptionless#3", "posts to the client keep it open [idle_counts]").ours(
            FLAGS,
            |_| async move {
                for (value, kept) in [("both", true), ("inbound", false)] {
                    let api = Arc::new(Api::ours(&["--idle-timeout", IDLE_FLAG, "--idle-counts", value]).await);
                    let open = open_for(api.connect().await, |client| {
                        let api = api.clone();
                        async move {
                            api.post(&client.id, "are you there").await;
                            client
                        }
                    });
                    assert_eq!(open.await > IDLE * 2, kept, "{value}");
                }
            },
        ),
        row(
            "QT-08",
            "?",
            "subscriptionless#3; infra#2229",
            "pings alone do not keep a connection open [ping_resets_idle]",
        )
        .ours(FLAGS, |_| async move {
            let ping = |mut client: Client| async {
                client.frame(true, PING, b"").await;
                client
            };
            let api = Api::ours(&["--idle-timeout", IDLE_FLAG]).await;
            assert!(open_for(api.connect().await, ping).await < IDLE * 2);
            let api = Api::ours(&["--idle-timeout", IDLE_FLAG, "--ping-resets-idle"]).await;
            assert!(open_for(api.connect().await, ping).await > IDLE * 2);
        }),
        row("QT-09", "D", "D-overview; D-limits", "a connection is closed with 1001 at its age, whatever its traffic")
            .ours(FLAGS, |_| async move {
                // The second is AWS's own two hours.
                for flags in [&["--connection-duration", IDLE_FLAG][..], &["--clock", "x4800", "--idle-timeout", "2h"]]
                {
                    let api = Api::ours(flags).await;
                    let client = api.connect().await;
                    let id = client.id.clone();
                    let open = open_for(client, |mut client| async {
                        client.send(&json!({"action": "sendMessage"})).await;
                        client
                    });
                    let open = open.await;
                    assert!(open > IDLE / 2 && open < IDLE * 2, "{flags:?}: {open:?}");
                    let event = api.event(&id, "$disconnect").await;
                    assert_eq!(event["requestContext"]["disconnectStatusCode"], 1001);
                }
            }),
        row(
            "QT-10",
            "I",
            "D-overview; CAP-24",
            "after the gateway's close $disconnect has its code, and the connection is gone",
        )
        .ours(LOG, |api| async move {
            let mut client = api.connect().await;
            client.frame(true, BINARY, b"x").await;
            closes(&api, &mut client, 1003).await;
        }),
        row("QT-11", "D", "D-overview", "too many messages of one client close with 1008").ours(
            "when AWS does so is unknown, and our own stack starts with a flag",
            |_| async move {
                let api = Api::ours(&["--client-message-rate", "5"]).await;
                let mut client = api.connect().await;
                client.raw(&masked(true, TEXT, br#"{"action":"sendMessage"}"#).repeat(100)).await;
                assert_eq!(client.closed_with_reason().await, (Some(1008), "Too many requests".to_owned()));
                let event = api.event(&client.id, "$disconnect").await;
                assert_eq!(event["requestContext"]["disconnectStatusCode"], 1008);
                api.assert_gone("POST", &client.id).await;
                // Other clients are served on.
                api.connect().await;
                let sent = api.end().await.iter().filter(|event| route_key(event) == "sendMessage").count();
                // One of the five was the question for its id.
                assert!((4..100).contains(&sent), "{sent}");
            },
        ),
        row("QT-12", "I", "D-overview", "a stack that ends closes with 1012 or 1001").ours(FLAGS, |_| async move {
            let api = Api::ours(&[]).await;
            let mut client = api.connect().await;
            let (code, _) = tokio::join!(client.closed(), api.end());
            assert!(matches!(code, Some(1012 | 1001)), "{code:?}");
        }),
        row("QT-13", "D", "D-overview", "an error inside of the gateway closes with 1011").ours(
            FLAGS,
            |_| async move {
                let api = Api::ours(&["--fault", "internal-error=1"]).await;
                let token = api.token();
                let mut client = api.handshake(&format!("?{token}=1"), &[]).await;
                let connect = api.event_with(&token).await;
                client.id = connect["requestContext"]["connectionId"].as_str().unwrap().to_owned();
                client.send(&json!({"action": "sendMessage"})).await;
                assert_eq!(client.closed().await, Some(1011));
                let event = api.event(&client.id, "$disconnect").await;
                assert_eq!(event["requestContext"]["disconnectStatusCode"], 1011);
                api.claim_invoked(&client.id, &["$connect", "$disconnect"]);
                api.assert_gone("POST", &client.id).await;
                api.end().await;
            },
        ),
        row("QT-14", "I", "RFC 6455", "invalid UTF-8 closes with 1007 and reaches no route").anywhere(
            |api| async move {
                let mut client = api.connect().await;
                client.frame(true, TEXT, b"{\"action\":\"echo\xff\"}").await;
                closes(&api, &mut client, 1007).await;
            },
        ),
        row("QT-15", "I", "RFC 6455", "a frame without a mask closes with 1002 and reaches no route").anywhere(
            |api| async move {
                let mut client = api.connect().await;
                client.raw(b"\x81\x05hello").await;
                closes(&api, &mut client, 1002).await;
            },
        ),
        row("QT-16", "I", "RFC 6455", "a close frame is echoed, and TCP ends").anywhere(|api| async move {
            let mut client = api.connect().await;
            assert_eq!(client.close(4001, "bye").await, Some(4001));
        }),
    ]
}

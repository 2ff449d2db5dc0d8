//! OR: order, concurrency and the life of connections.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::json;
use switchboard_tests::stack::binaries;
use switchboard_tests::wire::CLOSE;

use crate::api::{Api, echo_returns};
use crate::table::{LOG, Row, SERVICE, row};

pub fn rows() -> Vec<Row> {
    vec![
        row("OR-01", "D", "D-integ", "a message does not wait for the function of the one before").anywhere(
            |api| async move {
                let mut client = api.connect().await;
                client.send(&json!({"action": "echo", "do": "sleep", "ms": 1500})).await;
                client.send(&echo_returns(&json!({"statusCode": 200, "body": "fast"}))).await;
                assert_eq!(client.hears().await, "fast");
                assert!(client.hears_json().await["pid"].is_u64(), "the slow one");
            },
        ),
        row("OR-02", "D", "D-integ", "replies come as functions end, not as messages were sent").anywhere(
            |api| async move {
                let mut client = api.connect().await;
                // First start all processes.
                for pause in [800; 4] {
                    client.send(&json!({"action": "echo", "do": "sleep", "ms": pause})).await;
                }
                for _ in 0..4 {
                    client.hears().await;
                }
                let began = Instant::now();
                // Long enough for a machine with more to do.
                for pause in [2400, 0, 1600, 800] {
                    client.send(&json!({"action": "echo", "do": "sleep", "ms": pause})).await;
                }
                let mut ends = Vec::new();
                for _ in 0..4 {
                    client.hears().await;
                    ends.push(began.elapsed());
                }
                assert!(ends[0] < Duration::from_millis(2400) && ends[3] >= Duration::from_millis(2400), "{ends:?}");
                assert!(ends[3] < Duration::from_millis(4800), "one after the other: {ends:?}");
            },
        ),
        row("OR-03", "D", "D-connect", "a message's function sees what $connect wrote")
            .proved(&["tests/e2e/chat.rs::a_user_can_write_to_their_own_devices"]),
        row("OR-04", "I", "D-integ; D-connect", "the functions of a message and of the close right behind it both run")
            .ours(LOG, |api| async move {
                let mut client = api.connect().await;
                client.send(&json!({"action": "sendMessage"})).await;
                client.frame(true, CLOSE, b"").await;
                api.event(&client.id, "sendMessage").await;
                api.event(&client.id, "$disconnect").await;
            }),
        row("OR-05", "I", "D-connect; RECORD", "a function's post to a sender that has left is a 410").ours(
            "the fixture's POST is not really signed",
            |api| async move {
                let mut client = api.connect().await;
                client.send(&json!({"action": "sendMessage", "do": "post", "ms": 500, "data": "late"})).await;
                client.close(1000, "").await;
                let seen = api.stack().logged(1, &[r#""fixture":"post""#, &client.id]).await;
                assert!(seen[0].contains(r#""status":"410""#), "{seen:?}");
            },
        ),
        row("OR-06", "D", "D-connect", "where $disconnect is lost the next post gets a 410").proved(&[
            "tests/e2e/failures.rs::a_receiver_that_vanished_without_disconnect_is_forgotten_at_the_second_410",
        ]),
        row("OR-07", "I", "D-connect", "a close causes one $disconnect").ours(LOG, |api| async move {
            let mut client = api.connect().await;
            let close = async {
                client.frame(true, CLOSE, b"").await;
                client.closed().await
            };
            let id = api.connect().await.id;
            // Both sides close at once.
            tokio::join!(close, api.call("DELETE", &id, b""));
            let id = client.id.clone();
            api.call("DELETE", &id, b"").await;
            api.event(&id, "$disconnect").await;
            api.claim_invoked(&id, &["$connect", "echo", "$disconnect"]);
        }),
        row("OR-08", "D", "D-connect", "while $disconnect runs the connection is gone already").ours(
            SERVICE,
            |_| async move {
                let slow = "disconnect:\n    handler: fixture\n    \
                        environment: {FIXTURE_COMMAND: '{\"do\":\"sleep\",\"ms\":3000}'}";
                let api = Api::edited(&[("disconnect:\n    handler: fixture", slow)], &[]).await;
                let mut client = api.connect().await;
                client.frame(true, CLOSE, b"").await;
                api.event(&client.id, "$disconnect").await;
                let began = Instant::now();
                api.assert_gone("GET", &client.id).await;
                api.assert_gone("POST", &client.id).await;
                assert!(began.elapsed() < Duration::from_secs(2));
            },
        ),
        row("OR-09", "I", "K410", "no connection id comes twice in 1000 connections").anywhere(|api| async move {
            let mut ids = BTreeSet::new();
            for _ in 0..50 {
                let connects = (0..20).map(|_| api.connect());
                for mut client in futures_util::future::join_all(connects).await {
                    assert!(ids.insert(client.id.clone()), "{} came twice", client.id);
                    client.frame(true, CLOSE, b"").await;
                }
            }
        }),
        row("OR-10", "D", "K410", "a client that connects again has a new id, and the old one stays gone").anywhere(
            |api| async move {
                let mut client = api.connect().await;
                client.close(1000, "").await;
                api.gone(&client.id).await;
                assert_ne!(api.connect().await.id, client.id);
                api.assert_gone("POST", &client.id).await;
            },
        ),
        row("OR-11", "O+I", "chalice-tests", "replacing a function's binary loses no message and closes nothing").ours(
            "it replaces a binary",
            |_| async move {
                let folder = tempfile::tempdir().unwrap();
                let binary = folder.path().join("fixture");
                std::fs::copy(binaries().join("fixture"), &binary).unwrap();
                let api = Api::ours(&["--binaries", folder.path().to_str().unwrap()]).await;
                let mut client = api.connect().await;
                for number in 0..40 {
                    if number == 20 {
                        // A build does so, too: it puts a new file in the old one's place.
                        let new = folder.path().join("new");
                        std::fs::copy(binaries().join("fixture"), &new).unwrap();
                        std::fs::rename(&new, &binary).unwrap();
                    }
                    client.send(&echo_returns(&json!({"statusCode": 200, "body": number.to_string()}))).await;
                    assert_eq!(client.hears().await, number.to_string());
                }
            },
        ),
        row("OR-12", "I", "K410", "a broadcast to 100 connections reaches the 70 that are not gone").anywhere(
            |api| async move {
                let clients = futures_util::future::join_all((0..100).map(|_| api.connect())).await;
                let (gone, mut open): (Vec<_>, Vec<_>) = clients.into_iter().enumerate().partition(|(n, _)| n % 10 < 3);
                let gone: Vec<_> = gone.into_iter().map(|(_, client)| client.id).collect();
                for id in &gone {
                    api.call("DELETE", id, b"").await;
                }
                let ids: Vec<_> =
                    open.iter().map(|(_, client)| client.id.clone()).chain(gone.iter().cloned()).collect();
                let statuses = futures_util::future::join_all(ids.iter().map(|id| api.post(id, "news"))).await;
                let count = |wanted| statuses.iter().filter(|status| **status == wanted).count();
                assert_eq!((count(200), count(410)), (70, 30));
                for (_, client) in &mut open {
                    assert_eq!(client.hears().await, "news");
                }
            },
        ),
    ]
}

//! The program itself, against the local stack and against what is no Switchboard.

#![expect(clippy::unwrap_used, reason = "a helper that fails should fail its test, like `unwrap` in the test itself")]

use serde_json::Value;
use switchboard_tests::stack::{NO_RULES, PATIENCE, Stack};
use tokio::net::TcpListener;
use tokio::process::Command;

/// Runs the program, and returns its exit code, its output and its errors.
async fn load(arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_switchboard-load"));
    let output = tokio::time::timeout(PATIENCE, command.args(arguments).kill_on_drop(true).output());
    let output = output.await.expect("the program did not end").unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn a_good_run_says_what_arrived_and_when() {
    let stack = Stack::start().await;
    let url = format!("ws://{}/dev?userId={{n}}", stack.gateway);
    let small = ["--connections", "6", "--fanout", "3", "--rate", "10", "--time", "2s"];
    let (code, output, errors) = load(&[&[&url[..]], &small[..], &["--json"]].concat()).await;
    let result: Value = serde_json::from_str(&output).unwrap_or_else(|error| panic!("{error}: {output} {errors}"));
    assert_eq!((code, &result["problem"]), (0, &Value::Null), "{result}");
    for (field, count) in [("connections", 6), ("topics", 2), ("sent", 20), ("acknowledged", 20), ("received", 60)] {
        assert_eq!(result[field], count, "{field} of {result}");
    }
    for (field, count) in [("lost", 0), ("duplicated", 0), ("reconnects", 0)] {
        assert_eq!(result[field], count, "{field} of {result}");
    }
    let times = ["p50", "p90", "p99", "max"].map(|name| result["latency_us"][name].as_u64().unwrap());
    assert!(times[0] > 0 && times.is_sorted(), "{result}");

    // For people it says the same, and draws the latencies.
    let (code, output, errors) = load(&[&[&url[..]], &small[..]].concat()).await;
    assert_eq!(code, 0, "{output} {errors}");
    for words in
        ["6 clients on 2 topics without history", "20 messages sent, 20 acknowledged, 60 received", "p99 ", "█ "]
    {
        assert!(output.contains(words), "{words} is not in {output}");
    }
}

#[tokio::test]
async fn a_topic_with_history_loses_nothing_in_a_storm_of_reconnects() {
    let stack = Stack::start().await;
    let url = format!("ws://{}/dev?userId={{n}}", stack.gateway);
    let storm = ["--connections", "6", "--fanout", "3", "--rate", "10", "--time", "3s", "--reconnect", "1s"];
    let (code, output, errors) = load(&[&[&url[..]], &storm[..], &["--topic", "room", "--json"]].concat()).await;
    let result: Value = serde_json::from_str(&output).unwrap_or_else(|error| panic!("{error}: {output} {errors}"));
    assert_eq!((code, &result["history"]), (0, &Value::Bool(true)), "{result}");
    assert!(result["reconnects"].as_u64().unwrap() >= 6, "{result}");
    assert_eq!((&result["received"], &result["lost"]), (&90.into(), &0.into()), "{result}");
}

#[tokio::test]
async fn clients_rotate_and_lose_nothing_and_hear_nothing_twice() {
    let stack = Stack::with(&["--connection-duration", "20s"]).await;
    let url = format!("ws://{}/dev?userId={{n}}", stack.gateway);
    let arguments =
        ["--connections", "6", "--fanout", "3", "--rate", "10", "--time", "6s", "--lifetime", "3s", "--json"];
    let (code, output, errors) = load(&[&[&url[..]], &arguments[..]].concat()).await;
    let result: Value = serde_json::from_str(&output).unwrap_or_else(|error| panic!("{error}: {output} {errors}"));
    assert_eq!((code, &result["reconnects"], &result["received"]), (0, &0.into(), &180.into()), "{result}");
    assert!(result["rotations"].as_u64().unwrap() >= 6, "{result}");
}

#[tokio::test]
async fn a_topic_without_history_loses_what_comes_while_clients_are_away() {
    let stack = Stack::start().await;
    let url = format!("ws://{}/dev?userId={{n}}", stack.gateway);
    let storm = ["--connections", "4", "--fanout", "4", "--rate", "20", "--time", "3s", "--reconnect", "1s"];
    let (code, output, errors) = load(&[&[&url[..]], &storm[..], &["--patience", "10s", "--json"]].concat()).await;
    let result: Value = serde_json::from_str(&output).unwrap_or_else(|error| panic!("{error}: {output} {errors}"));
    let [acked, received, lost] =
        ["acknowledged", "received", "lost"].map(|field| result[field].as_u64().unwrap_or_else(|| panic!("{result}")));
    assert_eq!((code, acked), (1, 60), "{result}");
    assert!(lost > 0 && received + lost == 4 * acked, "{result}");
    assert!(result["problem"].as_str().unwrap().contains(&format!("{lost} deliveries were lost")), "{result}");
}

#[tokio::test]
async fn nobody_answers() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}/dev", listener.local_addr().unwrap());
    drop(listener);
    let (code, output, errors) = load(&[&url, "--connections", "2", "--patience", "1s"]).await;
    assert_eq!((code, output.as_str()), (1, ""));
    assert!(errors.contains(&format!("{url} does not answer")) && errors.contains("refused"), "{errors}");
}

#[tokio::test]
async fn the_gateway_throttles_handshakes() {
    let stack = Stack::with(&["--connection-rate", "1"]).await;
    let url = format!("ws://{}/dev", stack.gateway);
    let (code, output, errors) = load(&[&url, "--connections", "50", "--patience", "3s"]).await;
    assert_eq!((code, output.as_str()), (1, ""));
    for words in ["throttles", "of 50 clients were there after 3s", "429"] {
        assert!(errors.contains(words), "{words} is not in {errors}");
    }
}

#[tokio::test]
async fn the_server_throttles_messages() {
    let limit = ["--env", "MAX_FRAMES_PER_SECOND=3", "--max-environments", "1"];
    let stack = Stack::with(&[&NO_RULES[..], &limit[..]].concat()).await;
    let url = format!("ws://{}/dev", stack.gateway);
    let (code, output, errors) = load(&[&url, "--connections", "1", "--rate", "10", "--time", "1s"]).await;
    assert_eq!(code, 1, "{output} {errors}");
    assert!(output.contains("the server throttles: it said "), "{output} {errors}");
    assert!(output.contains("10 messages sent, 10 acknowledged"), "{output} {errors}");
}

#[tokio::test]
async fn a_website_is_no_switchboard() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}/dev", listener.local_addr().unwrap());
    let app = axum::Router::new().fallback(|| async { "hello" });
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    let (code, output, errors) = load(&[&url, "--connections", "2"]).await;
    assert_eq!((code, output.as_str()), (1, ""));
    assert!(errors.contains("it is no Switchboard") && errors.contains("200 OK"), "{errors}");
}

#[tokio::test]
async fn a_silent_server_is_no_switchboard() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}/dev", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
                while let Some(Ok(_)) = futures_util::StreamExt::next(&mut socket).await {}
            });
        }
    });
    let (code, output, errors) = load(&[&url, "--connections", "2", "--patience", "1s"]).await;
    assert_eq!((code, output.as_str()), (1, ""));
    assert!(
        errors.contains(&format!("{url} is no Switchboard: it takes connections, and answers nothing in 1s")),
        "{errors}"
    );
}

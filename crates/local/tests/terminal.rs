//! What a terminal shows of a function's log lines: the real `switchboard-local` and a function in Bash.

#![expect(clippy::unwrap_used, reason = "a failed unwrap in a helper fails its test, too")]

mod stack;

use stack::Stack;
use switchboard_tests::client::Client;

const LOG: &str = r#"{"level":"ERROR","fields":{"message":"failed","request.id":"r","none":null,"error":"no table"}}"#;
const METRIC: &str = r#"{"_aws":{"Timestamp":1},"Count":7}"#;

/// Runs a function that prints a log line, a metric and a text at each event, and returns what is shown of them.
async fn shown(arguments: &[&str]) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let functions = stack::bash(folder.path(), ":", &format!("printf '%s\\n' '{LOG}' '{METRIC}' $'text \\e[2J.'"));
    let stack = Stack::serve(folder.path(), arguments, &functions).await;
    Client::connect(&format!("ws://{}/dev", stack.gateway)).await.unwrap();
    stack.logged(&["[2J."]).await;
    let lines = stack.lines.borrow().clone();
    lines.into_iter().filter(|line| line.contains("script ") && !line.contains("birds")).collect()
}

#[tokio::test]
async fn log_lines_are_shown_in_columns() {
    let lines = shown(&["--log-format", "pretty"]).await;
    let texts: Vec<_> = lines.iter().map(|line| line.split_at(13)).collect();
    for (time, _) in &texts {
        let form: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        assert_eq!(form, "00:00:00.000 ");
    }
    let [(_, start), (_, log), (_, text)] = texts[..] else { panic!("{lines:#?}") };
    assert!(start.starts_with("script         cold start init_ms="), "{start}");
    assert_eq!(log, r#"script   ERROR failed error="no table" request.id=r"#);
    assert_eq!(text, r"script         text \u001b[2J.");
}

#[tokio::test]
async fn log_lines_are_shown_as_they_were_written() {
    let lines = shown(&["--log-format", "json"]).await;
    assert_eq!(
        lines,
        [format!("script | {LOG}"), format!("script | {METRIC}"), r"script | text \u001b[2J.".to_owned()]
    );
}

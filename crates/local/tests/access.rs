//! Access to the ports of a running stack, and the text that strangers can make it print. The tests run the real
//! `switchboard-local`, raw requests like those of browsers, and functions in Rust and Bash.

#![expect(clippy::unwrap_used, reason = "a failed unwrap in a helper fails its test, too")]

mod stack;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use stack::{HELLO, PATIENCE, Stack, as_an_sdk, send};

/// The header that a browser adds to a request of a page from another machine.
const EVIL: &str = "Origin: https://evil.example\r\n";

const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// A request that is signed in the query, so that a page may send it without a preflight.
const POST_TO_NOBODY: &str = "POST /dev/@connections/PJqB0fHsqRcCHlw=?X-Amz-Credential=AK%2F20240120%2Fus-east-1%2F\
                              execute-api%2Faws4_request";

/// Makes a service whose `$connect` is a Bash script. At each event it prints characters that a terminal obeys, and no
/// JSON.
fn bash(folder: &Path) -> String {
    let start = r#"echo "it is called at $AWS_LAMBDA_RUNTIME_API and its secret is $SECRET""#;
    let event = r"printf 'plain \033]52;c;eA==\007 \033[2J \rgateway | fine \302\233 \177 \342\200\256\r\n'";
    stack::bash(folder, start, event)
}

async fn start(arguments: &[&str]) -> Stack {
    let folder = tempfile::tempdir().unwrap();
    Stack::serve(folder.path(), arguments, HELLO).await
}

/// Sends a request. Returns the status of the answer, and the connection, which may go on.
async fn status(address: &str, request: &str, headers: &str) -> (u16, BufReader<TcpStream>) {
    let mut stream = BufReader::new(TcpStream::connect(address).await.unwrap());
    stream.write_all(format!("{request} HTTP/1.1\r\n{headers}\r\n").as_bytes()).await.unwrap();
    let mut line = String::new();
    tokio::time::timeout(PATIENCE, stream.read_line(&mut line)).await.unwrap().unwrap();
    (line.split(' ').nth(1).unwrap().parse().unwrap(), stream)
}

/// Returns a request of each kind, at both ports: address, request and headers.
fn requests(stack: &Stack) -> Vec<(String, &'static str, String)> {
    let preflight = "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: x-amz-target\r\n";
    vec![
        (stack.gateway.clone(), "GET /dev", UPGRADE.to_owned()),
        (stack.gateway.clone(), POST_TO_NOBODY, "Content-Type: text/plain\r\n".to_owned()),
        (stack.dynamodb.clone(), "POST /", as_an_sdk("ListTables")),
        (stack.dynamodb.clone(), "OPTIONS /", preflight.to_owned()),
        (stack.dynamodb.clone(), "GET /", String::new()),
    ]
}

#[tokio::test]
async fn a_page_of_another_machine_is_refused_at_both_ports_and_told_the_flag() {
    let stack = start(&[]).await;
    for (address, request, headers) in requests(&stack) {
        for origin in ["https://evil.example", "null", "http://localhost.evil.example"] {
            let headers = format!("Host: {address}\r\nOrigin: {origin}\r\n{headers}");
            let answer = send(&address, request, &headers, "").await;
            assert!(answer.starts_with("HTTP/1.1 403 "), "{request}: {answer}");
            assert!(answer.contains(&format!("the flag `--allow-origin {origin}` lets it in")), "{answer}");
            assert!(!answer.to_lowercase().contains("access-control-allow-origin"), "{answer}");
        }
    }
    for name in ["gateway", "dynamodb"] {
        stack.logged(&[name, " | refused a request.", "--allow-origin https://evil.example"]).await;
    }
    let lines = stack.lines.borrow().clone();
    let refusals = lines.iter().filter(|line| line.contains("refused a request") && line.contains("evil.example"));
    assert_eq!(refusals.count(), 4, "{lines:#?}");
    assert!(!lines.iter().any(|line| line.starts_with("hello |")), "no function ran: {lines:#?}");
}

#[tokio::test]
async fn another_name_of_this_machine_is_refused_at_both_ports() {
    let stack = start(&[]).await;
    for (address, request, headers) in requests(&stack) {
        for host in ["evil.example", "evil.example:3001", "localhost.evil.example"] {
            let answer = send(&address, request, &format!("Host: {host}\r\n{headers}"), "").await;
            assert!(answer.starts_with("HTTP/1.1 403 "), "{request}: {answer}");
            assert!(answer.contains("use localhost, 127.0.0.1 or [::1]"), "{answer}");
        }
    }
    for name in ["gateway", "dynamodb"] {
        stack.logged(&[name, " | refused a request. The request's Host `evil.example`"]).await;
    }
}

#[tokio::test]
async fn the_gateway_also_accepts_its_domain_name() {
    let stack = start(&["--domain-name", "chat.example"]).await;
    for host in ["chat.example", "chat.example:443", "localhost:3001"] {
        let (status, _) = status(&stack.gateway, "GET /dev", &format!("Host: {host}\r\n{UPGRADE}")).await;
        assert_eq!(status, 101, "{host}");
    }
    let answer = send(&stack.dynamodb, "GET /", "Host: chat.example\r\n", "").await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
}

#[tokio::test]
async fn programs_and_pages_of_this_machine_use_both_ports() {
    let stack = start(&[]).await;
    for host in [&stack.gateway, "localhost:3001", "[::1]:3001"] {
        for origin in ["", "Origin: http://localhost:5173\r\n", "Origin: http://127.0.0.1\r\n"] {
            let headers = format!("Host: {host}\r\n{origin}{UPGRADE}");
            assert_eq!(status(&stack.gateway, "GET /dev", &headers).await.0, 101, "{headers}");
            let headers = format!("Host: {host}\r\n{origin}");
            assert_eq!(status(&stack.gateway, POST_TO_NOBODY, &headers).await.0, 410, "{headers}");
            let headers = format!("Host: {host}\r\n{origin}{}", as_an_sdk("ListTables"));
            let answer = send(&stack.dynamodb, "POST /", &headers, "{}").await;
            assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(r#"{"TableNames":["birds"]}"#), "{answer}");
            // The page that sent the request may read the answer. Other pages may not.
            let shared = answer.lines().find_map(|line| line.strip_prefix("access-control-allow-origin: "));
            assert_eq!(shared, origin.trim_end().strip_prefix("Origin: "), "{answer}");
        }
    }
}

#[tokio::test]
async fn an_origin_that_was_allowed_uses_both_ports_as_a_page_of_this_machine_does() {
    let stack = start(&["--allow-origin", "https://chat.example", "--allow-origin", "null"]).await;
    for origin in ["https://chat.example", "null"] {
        let head = format!("Host: localhost\r\nOrigin: {origin}\r\n");
        assert_eq!(status(&stack.gateway, "GET /dev", &format!("{head}{UPGRADE}")).await.0, 101, "{origin}");
        let preflight = "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: x-amz-target\r\n";
        for (request, headers) in [("OPTIONS /", preflight.to_owned()), ("POST /", as_an_sdk("ListTables"))] {
            let answer = send(&stack.dynamodb, request, &format!("{head}{headers}"), "{}").await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            assert!(answer.contains(&format!("\r\naccess-control-allow-origin: {origin}\r\n")), "{answer}");
            assert!(!answer.contains("access-control-allow-origin: *"), "{answer}");
        }
    }
    assert_eq!(status(&stack.gateway, "GET /dev", &format!("Host: localhost\r\n{EVIL}{UPGRADE}")).await.0, 403);
    let stack = start(&["--allow-origin", "*"]).await;
    assert_eq!(status(&stack.gateway, "GET /dev", &format!("Host: localhost\r\n{EVIL}{UPGRADE}")).await.0, 101);
}

#[tokio::test]
async fn only_the_function_itself_gets_its_events_and_answers_them() {
    let folder = tempfile::tempdir().unwrap();
    let stack = Stack::serve(folder.path(), &["--max-environments", "1"], &bash(folder.path())).await;
    let connect = format!("Host: {}\r\n{UPGRADE}", stack.gateway);
    assert_eq!(status(&stack.gateway, "GET /dev", &connect).await.0, 101);
    let line = stack.logged(&["script | it is called at 127.0.0.1:"]).await;
    let runtime_api = line.split(' ').find(|word| word.starts_with("127.0.0.1:")).unwrap().to_owned();

    for headers in [
        format!("Host: evil.example\r\n{EVIL}"),
        format!("Host: {runtime_api}\r\n{EVIL}"),
        format!("Host: {runtime_api}\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\n"),
        "Host: evil.example\r\n".to_owned(),
    ] {
        for request in ["GET /2018-06-01/runtime/invocation/next", "POST /2018-06-01/runtime/invocation/x/response"] {
            let answer = send(&runtime_api, request, &headers, "{}").await;
            assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("Only the function's process"), "{answer}");
        }
    }
    // AWS, too, refuses an answer to an event that is not in progress.
    let headers = format!("Host: {runtime_api}\r\n");
    let answer = send(&runtime_api, "POST /2018-06-01/runtime/invocation/x/response", &headers, "{}").await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("InvalidRequestID"), "{answer}");
    for _ in 0..3 {
        assert_eq!(status(&stack.gateway, "GET /dev", &connect).await.0, 101);
    }
}

#[tokio::test]
async fn text_of_strangers_is_escaped_in_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let functions =
        format!("{}  other: {{handler: fixture, role: Nobody, events: [websocket: other]}}\n", bash(folder.path()));
    let stack = Stack::serve(folder.path(), &[], &functions).await;
    let host = format!("Host: {}\r\n", stack.gateway);
    let clipboard = "%1b%5D52;c;eA==%07%1b%5B2J%0Agateway%20%7C%20everything%20is%20fine%c2%9b%e2%80%ae";
    let credential = "X-Amz-Credential=local-other%2F20240120%2Fus-east-1%2Fexecute-api%2Faws4_request";
    let post = format!("POST /dev/@connections/{clipboard}?{credential}");
    assert_eq!(status(&stack.gateway, &post, &host).await.0, 403);
    let escaped = r"\u001b]52;c;eA==\u0007\u001b[2J\ngateway | everything is fine\u009b\u202e";
    stack.logged(&["iam | other: the role nobody does not allow", escaped]).await;

    let origin = "Origin: https://\u{9b}\u{202e}.example\r\n";
    assert_eq!(status(&stack.gateway, "GET /dev", &format!("{host}{origin}{UPGRADE}")).await.0, 403);
    stack.logged(&[r"gateway | refused a request.", r"https://\u009b\u202e.example"]).await;

    assert_eq!(status(&stack.gateway, "GET /dev", &format!("{host}{UPGRADE}")).await.0, 101);
    let plain = r"script | plain \u001b]52;c;eA==\u0007 \u001b[2J \rgateway | fine \u009b \u007f \u202e";
    assert_eq!(stack.logged(&["script | plain"]).await, plain);

    let lines = stack.lines.borrow().clone();
    for line in &lines {
        assert!(!line.contains(|character: char| character.is_control() || character == '\u{202e}'), "{line:?}");
        assert!(!line.starts_with("gateway | everything"), "{line:?}");
    }
}

#[tokio::test]
async fn an_error_that_a_function_reports_is_escaped_and_its_json_is_still_json() {
    let stack = start(&[]).await;
    let request = "GET /dev?do=error&message=%1b%5D0;x%07%0Agateway%20%7C%20fine%c2%9b%7f";
    assert_eq!(status(&stack.gateway, request, &format!("Host: {}\r\n{UPGRADE}", stack.gateway)).await.0, 502);
    stack.logged(&["hello | Fixture.Error", r"\u001b]0;x\u0007\ngateway | fine\u009b\u007f"]).await;
    let line = stack.logged(&[r#"hello | {"event""#]).await;
    let event: serde_json::Value = serde_json::from_str(line.strip_prefix("hello | ").unwrap()).unwrap();
    let message = event["event"]["queryStringParameters"]["message"].as_str().unwrap();
    assert_eq!(message, "\x1b]0;x\x07\ngateway | fine\u{9b}\x7f");
}

/// Who reads that it is ready may send Ctrl-C at once. It was killed by that, or did not hear it.
#[tokio::test]
async fn a_stack_hears_ctrl_c_as_soon_as_it_says_that_it_is_ready() {
    for _ in 0..20 {
        let folder = tempfile::tempdir().unwrap();
        Stack::serve(folder.path(), &[], HELLO).await.interrupt().await;
    }
}

#[tokio::test]
async fn a_data_directory_is_for_its_owner_alone() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("data/of/birds");
    let arguments = ["--data-dir", data_dir.to_str().unwrap()];
    let functions = format!(
        "{HELLO}  watch: {{handler: fixture, events: [stream: {{type: dynamodb, arn: !GetAtt Birds.StreamArn}}]}}\n"
    );
    let modes = || {
        let entries = std::fs::read_dir(&data_dir).unwrap().map(|entry| entry.unwrap().path());
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        let mut modes: Vec<_> = entries.map(|path| (name(&path), mode(&path))).collect();
        modes.sort();
        (mode(&data_dir), modes)
    };
    let stack = Stack::serve(folder.path(), &arguments, &functions).await;
    stack.put(serde_json::json!({"id": {"S": "polly"}})).await;
    let (of_folder, of_files) = modes();
    assert_eq!(of_folder, 0o700);
    let names: Vec<_> = of_files.iter().map(|(name, _)| name.as_str()).collect();
    assert!(["dynamodb.sqlite", "dynamodb.sqlite-wal", "lock", "positions.json"].iter().all(|it| names.contains(it)));
    assert!(of_files.iter().all(|(_, mode)| *mode == 0o600), "{of_files:?}");
    assert!(!stack.lines.borrow().iter().any(|line| line.contains("chmod")));
    stack.interrupt().await;

    // An existing folder keeps its mode, and a line warns its owner.
    std::fs::set_permissions(&data_dir, Permissions::from_mode(0o755)).unwrap();
    for (name, _) in modes().1 {
        std::fs::set_permissions(data_dir.join(name), Permissions::from_mode(0o644)).unwrap();
    }
    let stack = Stack::serve(folder.path(), &arguments, &functions).await;
    stack
        .logged(&["dynamodb | ", "data/of/birds: other users of this machine may read", "mode 755", "chmod 700"])
        .await;
    stack.put(serde_json::json!({"id": {"S": "polly"}, "n": {"N": "2"}})).await;
    stack.logged(&["watch | ", r#""MODIFY""#]).await;
    let (of_folder, of_files) = modes();
    assert_eq!(of_folder, 0o755);
    assert!(of_files.iter().all(|(_, mode)| *mode == 0o600), "{of_files:?}");
}

#[tokio::test]
async fn a_variable_without_a_value_takes_it_from_the_stacks_environment() {
    let folder = tempfile::tempdir().unwrap();
    let functions = bash(folder.path());
    let environment = [("SECRET", "a=b"), ("OTHER", "x")];
    let stack = Stack::spawn(folder.path(), &["--env", "SECRET"], &environment, &functions).await;
    assert_eq!(status(&stack.gateway, "GET /dev", &format!("Host: {}\r\n{UPGRADE}", stack.gateway)).await.0, 101);
    stack.logged(&["script | it is called at", "its secret is a=b"]).await;

    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_switchboard-local"))
        .args(["--env", "SURELY_NOT_SET"])
        .output()
        .await
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && error.contains("no variable SURELY_NOT_SET"), "{error}");
}

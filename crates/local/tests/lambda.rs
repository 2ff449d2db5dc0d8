//! A function of the local stack with the real `fixture` binary behind it.

#![expect(clippy::unwrap_used, reason = "a failed unwrap in a helper fails its test, too")]

use std::collections::{BTreeMap, HashSet};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::future::{join, join_all};
use futures_util::stream::{self, StreamExt};
use serde_json::{Value, json};
use switchboard_local::faults::{self, Faults};
use switchboard_local::lambda::{Credentials, Function, FunctionError, FunctionSettings, Settings};
use tokio::sync::Semaphore;

#[tokio::test]
async fn the_response_is_what_the_function_returned() {
    let function = function();
    let response = function.invoke(event(json!({ "do": "respond", "response": { "statusCode": 401 } }))).await;
    assert_eq!(response.unwrap(), r#"{"statusCode":401}"#);
}

#[tokio::test]
async fn the_fixture_takes_its_command_from_gateway_events_too() {
    let function = function();
    for (message, response) in [
        (json!({ "body": r#"{"action":"a","do":"respond","response":"message"}"# }), r#""message""#),
        (json!({ "queryStringParameters": { "do": "respond", "response": "{\"a\":1}" } }), r#"{"a":1}"#),
        (json!({ "body": "not JSON" }), r#"{"statusCode":200}"#),
        (json!({ "queryStringParameters": null }), r#"{"statusCode":200}"#),
    ] {
        assert_eq!(function.invoke(event(message)).await.unwrap(), response);
    }
}

#[tokio::test]
async fn sequential_events_share_a_process_and_never_a_request_id() {
    let function = function();
    let first = environment(&function).await;
    let second = environment(&function).await;
    assert_eq!(first["pid"], second["pid"]);
    assert_eq!((&first["invocations"], &second["invocations"]), (&json!(1), &json!(2)));
    assert_ne!(first["requestId"], second["requestId"]);
    let id = uuid::Uuid::parse_str(first["requestId"].as_str().unwrap()).unwrap();
    assert_eq!(id.get_version_num(), 4);
}

#[tokio::test]
async fn simultaneous_events_have_a_process_each() {
    let function = function();
    let sleep = || async { body(&function.invoke(event(json!({ "do": "sleep", "ms": 300 }))).await.unwrap()) };
    let (one, other) = join(sleep(), sleep()).await;
    assert_ne!(one["pid"], other["pid"]);
    assert_eq!((&one["invocations"], &other["invocations"]), (&json!(1), &json!(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_events_are_answered_by_at_most_four_processes() {
    let function = Function::new(FunctionSettings { max_environments: 4, ..settings() }).unwrap();
    let answers = join_all((0..200).map(|_| environment(&function))).await;
    let pids: HashSet<_> = answers.iter().map(|answer| answer["pid"].as_u64().unwrap()).collect();
    assert!(pids.len() <= 4, "{pids:?}");
    let ids: HashSet<_> = answers.iter().map(|answer| answer["requestId"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 200);
}

#[tokio::test]
async fn there_are_no_more_processes_than_events_at_once() {
    let function = function();
    let answers = stream::iter((0..200).map(|_| environment(&function))).buffer_unordered(3);
    let processes: HashSet<_> = answers.map(process_id).collect().await;
    assert!(processes.len() <= 3, "{processes:?}");
}

#[tokio::test]
async fn an_event_goes_to_the_idle_process_that_was_used_last() {
    let function = function();
    let sleep = || invoke(&function, json!({ "do": "sleep", "ms": 300 }));
    let is_idle = |process| eventually(move || state(process) == 'T');
    let processes = join_all([sleep(), sleep(), sleep()]).await.into_iter().map(process_id);
    join_all(processes.map(is_idle)).await;
    let last = process_id(environment(&function).await);
    for _ in 0..3 {
        is_idle(last).await;
        assert_eq!(process_id(environment(&function).await), last);
    }
}

#[tokio::test]
async fn events_beyond_the_environments_wait_their_turn_in_order() {
    let function = Function::new(FunctionSettings { max_environments: 1, ..settings() }).unwrap();
    let answers = join_all((0..20).map(|_| environment(&function))).await;
    let order: Vec<_> = answers.iter().map(|answer| answer["invocations"].as_u64().unwrap()).collect();
    assert_eq!(order, (1..=20).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_event_larger_than_a_pipe_blocks_nothing() {
    let function = function();
    let long = "x".repeat(300 * 1024);
    let response = function.invoke(event(json!({ "do": "respond", "response": long }))).await.unwrap();
    assert_eq!(response.len(), 300 * 1024 + 2);
}

#[tokio::test]
async fn a_handler_error_and_a_panic_fail_the_event_and_the_process_stays() {
    let function = function();
    let pid = environment(&function).await["pid"].clone();
    let error = function.invoke(event(json!({ "do": "error" }))).await.unwrap_err();
    assert_eq!(error, function_error("Fixture.Error", "the event asked for an error"));
    let error = function.invoke(event(json!({ "do": "panic" }))).await.unwrap_err();
    assert_eq!(error.error_message, "Lambda panicked: the event asked for a panic");
    assert_eq!(environment(&function).await["pid"], pid);
}

#[tokio::test]
async fn a_response_over_6_mib_fails_the_event_and_the_process_stays() {
    let function = function();
    let pid = environment(&function).await["pid"].clone();
    let error = function.invoke(event(json!({ "do": "large" }))).await.unwrap_err();
    assert_eq!(error.error_type, "Function.ResponseSizeTooLarge");
    assert_eq!(environment(&function).await["pid"], pid);
}

#[tokio::test]
async fn a_crash_fails_its_event_only() {
    let function = function();
    let pid = environment(&function).await["pid"].clone();
    let error = function.invoke(event(json!({ "do": "exit" }))).await.unwrap_err();
    assert_eq!(error, function_error("Runtime.ExitError", "Runtime exited with error: exit status 3"));
    let next = environment(&function).await;
    assert_ne!(next["pid"], pid);
    assert_eq!(next["invocations"], 1);
}

#[tokio::test]
async fn a_process_that_died_after_its_response_is_replaced_without_failing_an_event() {
    let function = function();
    let pid = environment(&function).await["pid"].as_u64().unwrap();
    kill(pid);
    gone(pid).await;
    let next = environment(&function).await;
    assert_ne!(next["pid"], pid);
    assert_eq!(next["invocations"], 1);
}

#[tokio::test]
async fn a_function_that_takes_too_long_is_killed() {
    let function = Function::new(FunctionSettings { timeout: Duration::from_secs(1), ..settings() }).unwrap();
    let pid = environment(&function).await["pid"].as_u64().unwrap();
    let started = Instant::now();
    let error = function.invoke(event(json!({ "do": "sleep", "ms": 60_000 }))).await.unwrap_err();
    assert_eq!(error, function_error("Sandbox.Timedout", "Task timed out after 1.00 seconds"));
    assert!((1.0..3.0).contains(&started.elapsed().as_secs_f64()), "{:?}", started.elapsed());
    assert!(!exists(pid));
    assert_eq!(environment(&function).await["invocations"], 1);
}

#[tokio::test]
async fn the_deadline_is_the_dispatch_plus_the_timeout() {
    let function = function();
    environment(&function).await;
    let before = epoch_ms();
    let answer = environment(&function).await;
    let deadline = u128::from(answer["deadline"].as_u64().unwrap());
    assert!((before + 6000..=epoch_ms() + 6000).contains(&deadline), "{before} {deadline}");
    assert_eq!(answer["arn"], "arn:aws:lambda:eu-central-1:123456789012:function:chat-dev-fixture");
}

#[tokio::test]
async fn an_exit_before_the_first_poll_fails_the_event() {
    let function = spoiled("exit");
    for _ in 0..2 {
        let error = function.invoke(event(json!({}))).await.unwrap_err();
        assert_eq!(error, function_error("Runtime.ExitError", "Runtime exited with error: exit status 4"));
    }
}

#[tokio::test]
async fn a_reported_init_error_fails_the_event() {
    let error = spoiled("report").invoke(event(json!({}))).await.unwrap_err();
    assert_eq!(error, function_error("Fixture.InitError", "the environment asked for an init error"));
}

#[tokio::test(start_paused = true)]
async fn an_init_of_more_than_ten_seconds_is_tried_again_under_the_functions_timeout() {
    let start = tokio::time::Instant::now();
    let error = spoiled("slow").invoke(event(json!({}))).await.unwrap_err();
    assert_eq!(error, function_error("Sandbox.Timedout", "Task timed out after 6.00 seconds"));
    assert_eq!(start.elapsed().as_secs(), 16);
}

#[tokio::test]
async fn an_extension_hears_of_each_event_before_the_environment_is_frozen_and_of_its_end() {
    let (function, folder) = extended(r#"["INVOKE"]"#);
    let answers = [environment(&function).await, environment(&function).await];
    // A shutdown does not wait for an extension that hears of the last event.
    eventually(|| heard(&folder).len() == 3).await;
    function.shutdown().await;
    let lines = heard(&folder);
    let about: Value = serde_json::from_str(&lines[0]).unwrap();
    assert_eq!(about, json!({"functionName": "chat-dev-fixture", "functionVersion": "$LATEST", "handler": "fixture"}));
    for (line, answer) in lines[1..].iter().zip(&answers) {
        let event: Value = serde_json::from_str(line).unwrap();
        assert_eq!((&event["eventType"], &event["requestId"]), (&json!("INVOKE"), &answer["requestId"]));
        assert_eq!((&event["deadlineMs"], &event["invokedFunctionArn"]), (&answer["deadline"], &answer["arn"]));
    }
    assert_eq!((lines.len(), lines[3].as_str()), (4, "SIGTERM"));
}

#[tokio::test]
async fn an_extension_without_events_only_hears_of_the_end() {
    let (function, folder) = extended("[]");
    environment(&function).await;
    function.shutdown().await;
    assert_eq!(heard(&folder)[1..], ["SIGTERM"]);
}

#[tokio::test]
async fn an_extension_that_cannot_hear_of_its_end_is_refused() {
    let (function, _folder) = extended(r#"["SHUTDOWN"]"#);
    let error = function.invoke(event(json!({}))).await.unwrap_err();
    assert_eq!(error.error_type, "Runtime.ExitError");
}

#[tokio::test]
async fn an_init_that_succeeds_at_the_second_try_leaves_the_event_the_rest_of_the_timeout() {
    let folder = tempfile::tempdir().unwrap();
    let first = folder.path().join("first");
    let environment_of_user = [("FIXTURE_INIT", "once"), ("FIXTURE_FILE", first.to_str().unwrap())];
    let function = Function::new(FunctionSettings {
        environment: environment_of_user.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        ..settings()
    })
    .unwrap();
    let before = epoch_ms();
    let answer = environment(&function).await;
    assert_eq!(answer["invocations"], 1);
    let deadline = u128::from(answer["deadline"].as_u64().unwrap());
    // The second process sleeps for 300 ms before it polls.
    assert!(deadline < epoch_ms() + 6000 - 300 && deadline > before, "{before} {deadline} {}", epoch_ms());
}

#[tokio::test]
async fn events_beyond_the_concurrency_are_throttled() {
    let concurrency = Arc::new(Semaphore::new(2));
    let function =
        Arc::new(Function::new(FunctionSettings { concurrency: concurrency.clone(), ..settings() }).unwrap());
    let invoke = |command: Value| {
        let function = function.clone();
        async move { function.invoke(event(command)).await }
    };
    let busy = join(
        tokio::spawn(invoke(json!({ "do": "sleep", "ms": 500 }))),
        tokio::spawn(invoke(json!({ "do": "sleep", "ms": 500 }))),
    );
    while concurrency.available_permits() > 0 {
        tokio::task::yield_now().await;
    }
    let error = function.invoke(event(json!({}))).await.unwrap_err();
    assert!(error.is_throttle(), "{error}");
    let (one, other) = busy.await;
    assert!(one.unwrap().is_ok() && other.unwrap().is_ok());
    assert!(function.invoke(event(json!({}))).await.is_ok());
}

#[tokio::test]
async fn an_environment_that_is_idle_for_long_is_retired() {
    let shared = Settings { idle_environment_timeout: Duration::from_millis(100), ..Settings::default() };
    let function = Function::new(FunctionSettings { shared, ..settings() }).unwrap();
    let pid = environment(&function).await["pid"].as_u64().unwrap();
    gone(pid).await;
    let next = environment(&function).await;
    assert_ne!(next["pid"], pid);
    assert_eq!(next["invocations"], 1);
}

#[tokio::test]
async fn the_environment_has_lambdas_variables_and_the_users_and_nothing_of_the_developers() {
    let environment_of_user = [("TABLE", "t"), ("ENDPOINT", "user"), ("AWS_REGION", "mars"), ("TZ", "Europe/Paris")];
    let function = Function::new(FunctionSettings {
        environment: environment_of_user.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        endpoints: [("ENDPOINT".to_owned(), "stack".to_owned())].into(),
        ..settings()
    })
    .unwrap();
    let answer = environment(&function).await;
    let variables: BTreeMap<String, String> = serde_json::from_value(answer["variables"].clone()).unwrap();
    let names: Vec<_> = variables.keys().map(String::as_str).collect();
    // The Rust runtime sets the last one itself.
    let mut expected = vec![
        "AWS_ACCESS_KEY_ID",
        "AWS_DEFAULT_REGION",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
        "AWS_LAMBDA_FUNCTION_NAME",
        "AWS_LAMBDA_FUNCTION_VERSION",
        "AWS_LAMBDA_INITIALIZATION_TYPE",
        "AWS_LAMBDA_LOG_GROUP_NAME",
        "AWS_LAMBDA_LOG_STREAM_NAME",
        "AWS_LAMBDA_RUNTIME_API",
        "AWS_REGION",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "ENDPOINT",
        "LAMBDA_RUNTIME_DIR",
        "LAMBDA_TASK_ROOT",
        "LANG",
        "PATH",
        "TABLE",
        "TZ",
        "_HANDLER",
        "_X_AMZN_TRACE_ID",
    ];
    expected.sort_unstable();
    assert_eq!(names, expected);
    for (name, value) in [
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256"),
        ("AWS_LAMBDA_FUNCTION_NAME", "chat-dev-fixture"),
        ("AWS_LAMBDA_LOG_GROUP_NAME", "/aws/lambda/chat-dev-fixture"),
        ("AWS_REGION", "eu-central-1"),
        ("ENDPOINT", "stack"),
        ("LAMBDA_TASK_ROOT", fixture().parent().unwrap().to_str().unwrap()),
        ("TABLE", "t"),
        ("TZ", "Europe/Paris"),
        ("_HANDLER", "fixture"),
    ] {
        assert_eq!(variables[name], value, "{name}");
    }
    assert!(variables["_X_AMZN_TRACE_ID"].starts_with("Root=1-"));
}

#[tokio::test]
async fn an_invocation_runs_to_its_end_when_its_caller_goes_away() {
    let function = Function::new(FunctionSettings { max_environments: 1, ..settings() }).unwrap();
    let pid = environment(&function).await["pid"].clone();
    begin(function.invoke(event(json!({ "do": "sleep", "ms": 100 }))));
    let next = environment(&function).await;
    assert_eq!((&next["pid"], &next["invocations"]), (&pid, &json!(3)));
}

#[tokio::test]
async fn a_rebuilt_binary_is_started_for_the_next_event() {
    let folder = tempfile::tempdir().unwrap();
    let binary = folder.path().join("fixture");
    symlink(fixture(), &binary).unwrap();
    let function = Function::new(FunctionSettings { binary: binary.clone(), ..settings() }).unwrap();
    let pid = environment(&function).await["pid"].as_u64().unwrap();

    // While the binary is missing, the old process goes on.
    std::fs::remove_file(&binary).unwrap();
    assert_eq!(environment(&function).await["pid"], pid);

    let rebuilt = folder.path().join("rebuilt");
    symlink("/usr/bin/false", &rebuilt).unwrap();
    std::fs::rename(rebuilt, &binary).unwrap();
    let error = function.invoke(event(json!({}))).await.unwrap_err();
    gone(pid).await;
    assert_eq!(error.error_message, "Runtime exited with error: exit status 1");

    std::fs::remove_file(&binary).unwrap();
    let error = function.invoke(event(json!({}))).await.unwrap_err();
    assert_eq!(error.error_type, "Runtime.InvalidEntrypoint");
}

#[tokio::test]
async fn a_missing_binary_is_an_error_before_any_event() {
    let error =
        Function::new(FunctionSettings { binary: "target/nowhere/send-message".into(), ..settings() }).unwrap_err();
    assert_eq!(
        error.to_string(),
        "binary `send-message` of function `fixture` not found in target/nowhere: build it first"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_leaves_no_process_and_fails_all_events() {
    let folder = tempfile::tempdir().unwrap();
    let function = Arc::new(function());
    let sleep = || async { body(&function.invoke(event(json!({ "do": "sleep", "ms": 300 }))).await.unwrap()) };
    let (one, other) = join(sleep(), sleep()).await;
    let pids = [&one, &other].map(|answer| answer["pid"].as_u64().unwrap());
    assert!(pids.into_iter().all(exists));

    // One environment is idle, the other one handles an event.
    let started = folder.path().join("started");
    let busy = tokio::spawn({
        let (function, command) = (function.clone(), json!({ "do": "sleep", "ms": 60_000, "touch": started }));
        async move { function.invoke(event(command)).await }
    });
    eventually(|| started.exists()).await;
    function.shutdown().await;
    assert!(!pids.into_iter().any(exists));
    assert_eq!(busy.await.unwrap().unwrap_err().error_type, "Sandbox.Shutdown");
    assert_eq!(function.invoke(event(json!({}))).await.unwrap_err().error_type, "Sandbox.Shutdown");
    function.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_in_the_middle_of_inits_leaves_no_process() {
    for _ in 0..20 {
        let folder = tempfile::tempdir().unwrap();
        let binary = folder.path().join("fixture");
        symlink(fixture(), &binary).unwrap();
        let function = Function::new(FunctionSettings { binary: binary.clone(), ..settings() }).unwrap();
        for _ in 0..4 {
            begin(function.invoke(event(json!({ "do": "sleep", "ms": 60_000 }))));
        }
        function.shutdown().await;
        assert_eq!(running(folder.path()), 0);
    }
}

#[tokio::test]
async fn work_that_outlives_its_response_waits_for_the_next_event() {
    let folder = tempfile::tempdir().unwrap();
    let (signal, done) = (folder.path().join("signal"), folder.path().join("done"));
    let leave = json!({ "do": "leave", "after": signal, "touch": done });
    let function = function();
    let pid = body(&function.invoke(event(leave.clone())).await.unwrap())["pid"].as_u64().unwrap();
    eventually(|| state(pid) == 'T').await;
    // A stopped process does nothing more.
    std::fs::write(&signal, "").unwrap();
    assert!(!done.exists());
    tokio::select! {
        next = function.invoke(event(json!({ "do": "sleep", "ms": 60_000 }))) => panic!("{next:?} came first"),
        () = eventually(|| done.exists()) => {}
    }

    std::fs::remove_file(&done).unwrap();
    let unfrozen = Settings { no_freeze: true, ..Settings::default() };
    let function = Function::new(FunctionSettings { shared: unfrozen, ..settings() }).unwrap();
    function.invoke(event(leave)).await.unwrap();
    eventually(|| done.exists()).await;
}

#[tokio::test]
async fn processes_that_a_function_starts_are_frozen_and_killed_with_it() {
    let function = function();
    let start = function.invoke(event(json!({ "do": "start" }))).await.unwrap();
    let started = serde_json::from_slice::<Value>(&start).unwrap()["body"].as_str().unwrap().parse().unwrap();
    eventually(|| state(started) == 'T').await;
    function.shutdown().await;
    // The system's first process decides whether it is also reaped.
    eventually(|| matches!(state(started), 'Z' | ' ')).await;
}

#[tokio::test]
async fn a_process_that_died_while_frozen_is_replaced() {
    let function = function();
    let pid = environment(&function).await["pid"].as_u64().unwrap();
    eventually(|| state(pid) == 'T').await;
    kill(pid);
    gone(pid).await;
    assert_ne!(environment(&function).await["pid"], pid);
}

#[tokio::test]
async fn a_function_can_be_killed_on_demand_before_and_after_its_work() {
    let folder = tempfile::tempdir().unwrap();
    let faults = faults::Settings { faults: vec!["kill=1".parse().unwrap()], seed: 7 };
    let function = Function::new(FunctionSettings { faults: Arc::new(Faults::new(&faults)), ..settings() }).unwrap();
    let mut worked = Vec::new();
    for number in 0..8 {
        let file = folder.path().join(number.to_string());
        let error = function.invoke(event(json!({ "do": "sleep", "touch": file }))).await.unwrap_err();
        assert_eq!(error.error_message, "Runtime exited with error: signal: 9 (SIGKILL)");
        worked.push(file.exists());
    }
    assert!(worked.contains(&true) && worked.contains(&false), "{worked:?}");
}

#[tokio::test]
async fn a_dropped_function_kills_its_processes() {
    let function = function();
    let pid = environment(&function).await["pid"].as_u64().unwrap();
    drop(function);
    gone(pid).await;
}

fn settings() -> FunctionSettings {
    FunctionSettings {
        key: "fixture".into(),
        name: "chat-dev-fixture".into(),
        handler: "fixture".into(),
        binary: fixture(),
        memory_size_mb: 256,
        timeout: Duration::from_secs(6),
        region: "eu-central-1".into(),
        environment: BTreeMap::new(),
        endpoints: BTreeMap::new(),
        max_environments: 10,
        concurrency: Arc::new(Semaphore::new(1000)),
        faults: Arc::default(),
        credentials: Credentials::default(),
        shared: Settings::default(),
        guard: Arc::default(),
        inspector: Arc::default(),
        hint: Arc::default(),
    }
}

fn function() -> Function {
    Function::new(settings()).unwrap()
}

/// A function with an internal extension, and the file into which that writes what it hears.
fn extended(events: &str) -> (Function, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("heard");
    let variables =
        [("FIXTURE_INIT", "extension"), ("FIXTURE_EVENTS", events), ("FIXTURE_FILE", file.to_str().unwrap())];
    let environment = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    (Function::new(FunctionSettings { environment, ..settings() }).unwrap(), folder)
}

fn heard(folder: &tempfile::TempDir) -> Vec<String> {
    std::fs::read_to_string(folder.path().join("heard")).unwrap().lines().map(str::to_owned).collect()
}

/// Makes a function whose start fails.
fn spoiled(how: &str) -> Function {
    let environment = [("FIXTURE_INIT".to_owned(), how.to_owned())].into();
    Function::new(FunctionSettings { environment, ..settings() }).unwrap()
}

/// Returns the path of the fixture, beside this test's binary. `cargo test` does not build the binaries of other
/// packages.
fn fixture() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let fixture = test.parent().and_then(Path::parent).unwrap().join("fixture");
    assert!(fixture.is_file(), "run `cargo build --workspace --bins` first");
    fixture
}

#[expect(clippy::needless_pass_by_value, reason = "so that calls read `event(json!(…))`")]
fn event(event: Value) -> Bytes {
    event.to_string().into()
}

fn body(response: &[u8]) -> Value {
    let response: Value = serde_json::from_slice(response).unwrap();
    serde_json::from_str(response["body"].as_str().unwrap()).unwrap()
}

async fn invoke(function: &Function, command: Value) -> Value {
    body(&function.invoke(event(command)).await.unwrap())
}

/// Returns the function's environment as the function sees it.
async fn environment(function: &Function) -> Value {
    invoke(function, json!({ "do": "environment" })).await
}

#[expect(clippy::needless_pass_by_value, reason = "so that it can follow an answer in a stream")]
fn process_id(answer: Value) -> u64 {
    answer["pid"].as_u64().unwrap()
}

fn function_error(error_type: &str, error_message: &str) -> FunctionError {
    FunctionError { error_type: error_type.into(), error_message: error_message.into() }
}

fn epoch_ms() -> u128 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis()
}

fn kill(pid: u64) {
    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
}

/// Tells whether the process exists. A zombie counts.
fn exists(pid: u64) -> bool {
    let signal = Command::new("kill").args(["-0", &pid.to_string()]).stderr(Stdio::null()).status();
    signal.unwrap().success()
}

/// Returns the state of a process in `ps`: `T` for stopped, `Z` for exited and not reaped, a space if there is no
/// process.
fn state(pid: u64) -> char {
    let output = Command::new("ps").args(["-o", "stat=", "-p", &pid.to_string()]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).chars().next().unwrap_or(' ')
}

/// Waits until a process has exited and been reaped.
async fn gone(pid: u64) {
    eventually(|| !exists(pid)).await;
}

async fn eventually(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap();
}

/// Starts an invocation without waiting for its end.
fn begin(invocation: impl Future) {
    assert!(pin!(invocation).poll(&mut Context::from_waker(Waker::noop())).is_pending());
}

/// Returns the number of processes that were started from a binary in `folder`.
fn running(folder: &Path) -> usize {
    let processes = Command::new("ps").args(["-A", "-o", "args="]).output().unwrap();
    String::from_utf8_lossy(&processes.stdout).lines().filter(|line| line.contains(folder.to_str().unwrap())).count()
}

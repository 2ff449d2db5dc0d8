//! RA: the Runtime API and execution environments. ES: event source mappings. Most of both happens between Lambda and
//! the function, where nobody looks from outside: those rows run the tests that do.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use switchboard_tests::stack::binaries;
use switchboard_tests::wire::SOON;
use tokio::process::Command;

use crate::api::Api;
use crate::management::stub;
use crate::table::{FLAGS, LOG, Row, row};

const NEGATIVE: &str = "negative: it is about the Rust runtime at a stub that behaves badly";

/// Runs a Rust function with this Runtime API, and with all of Lambda's variables but one. Returns its exit code and
/// what it prints.
async fn end_of_function(runtime_api: &str, without: &str) -> (Option<i32>, String) {
    let variables = [
        ("AWS_LAMBDA_FUNCTION_NAME", "fixture"),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128"),
        ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST"),
        ("AWS_LAMBDA_RUNTIME_API", runtime_api),
    ];
    let function = Command::new(binaries().join("fixture"))
        .env_clear()
        .envs(variables.into_iter().filter(|(name, _)| *name != without))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(SOON, function).await.expect("it goes on").unwrap();
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

async fn environment(client: &mut switchboard_tests::wire::Client) -> Value {
    client.ask(&json!({"action": "echo", "do": "environment"})).await
}

/// Waits until the system says that a process is stopped.
async fn stopped(pid: &Value) {
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        let ps = Command::new("ps").args(["-o", "stat=", "-p", &pid.to_string()]).output().await.unwrap();
        if ps.stdout.starts_with(b"T") {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "it goes on: {}", String::from_utf8_lossy(&ps.stdout));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub fn rows() -> Vec<Row> {
    vec![
        row("RA-01", "D+S", "L-api; S", "next blocks until there is an event")
            .proved(&["crates/local/src/lambda/runtime_api.rs::next_blocks_without_limit"]),
        row("RA-02", "D", "L-api", "an event comes with its headers, and its deadline is the timeout").proved(&[
            "crates/local/src/lambda/runtime_api.rs::next_answers_with_the_event_and_its_headers",
            "crates/local/tests/lambda.rs::the_deadline_is_the_dispatch_plus_the_timeout",
        ]),
        row("RA-03", "D", "L-api; RIE", "the response to the current event is a 202")
            .proved(&["crates/local/src/lambda/runtime_api.rs::a_response_is_accepted_once"]),
        row("RA-04", "D", "RIE", "a response to an unknown event is InvalidRequestID")
            .proved(&["crates/local/src/lambda/runtime_api.rs::an_unknown_request_id_is_refused_and_changes_nothing"]),
        row("RA-05", "D", "RIE", "a second response to an event is refused")
            .proved(&["crates/local/src/lambda/runtime_api.rs::a_response_is_accepted_once"]),
        row("RA-06", "D+S", "L-api; S", "an error is a 202, fails the event, and the process stays").proved(&[
            "crates/local/src/lambda/runtime_api.rs::a_reported_error_fails_the_invocation",
            "crates/local/tests/lambda.rs::a_handler_error_and_a_panic_fail_the_event_and_the_process_stays",
        ]),
        row("RA-07", "D", "RIE", "a response of more than 6291556 bytes is a 413 and fails the event").proved(&[
            "crates/local/src/lambda/runtime_api.rs::the_largest_response_passes_and_one_byte_more_fails_the_invocation",
            "crates/local/tests/lambda.rs::a_response_over_6_mib_fails_the_event_and_the_process_stays",
        ]),
        row("RA-08", "D", "L-api; RIE", "a reported init error is a 202 and fails the event").proved(&[
            "crates/local/src/lambda/runtime_api.rs::an_init_error_is_accepted_before_the_first_poll_only",
            "crates/local/tests/lambda.rs::a_reported_init_error_fails_the_event",
        ]),
        row("RA-09", "D+S", "RIE; S", "a process that exits before its first poll fails the event").ours(
            FLAGS,
            |_| async move {
                let api = Api::ours(&["--env", "FIXTURE_INIT=exit"]).await;
                assert_eq!(api.handshake("", &[]).await.reply.status, 502);
            },
        ),
        row("RA-10", "S", "S", "a Rust function without AWS_LAMBDA_FUNCTION_NAME exits with 101").ours(NEGATIVE, |_| async {
            let (code, _) = end_of_function("127.0.0.1:9", "AWS_LAMBDA_FUNCTION_NAME").await;
            assert_eq!(code, Some(101));
        }),
        row("RA-11", "S", "S", "a Rust function panics at an event without a deadline").ours(NEGATIVE, |_| async {
            let next = "HTTP/1.1 200 OK
Lambda-Runtime-Aws-Request-Id: 8476a536-e9f4-11e8-9739-2dfe598c3fcd
\
                        content-type: application/json
content-length: 2

{}";
            let (_, output) = end_of_function(&stub(next).await, "").await;
            assert!(output.contains("panicked"), "{output}");
        }),
        row("RA-12", "S", "S", "a Rust function exits with 1 when its poll is closed").ours(NEGATIVE, |_| async {
            let (code, output) = end_of_function(&stub("").await, "").await;
            assert_eq!(code, Some(1), "{output}");
        }),
        row("RA-13", "D", "L-env", "two events at once have a process each").anywhere(|api| async move {
            let (mut one, mut two) = (api.connect().await, api.connect().await);
            let sleep = json!({"action": "echo", "do": "sleep", "ms": 800});
            let (one, two) = tokio::join!(one.ask(&sleep), two.ask(&sleep));
            assert_ne!(pid_and_log_stream(&one), pid_and_log_stream(&two));
        }),
        row("RA-14", "D", "L-env", "events after each other share a process and its statics").ours(LOG, |_| async move {
            let api = Api::ours(&[]).await;
            let mut client = api.connect().await;
            let (one, two) = (environment(&mut client).await, environment(&mut client).await);
            assert_eq!(one["pid"], two["pid"]);
            assert_eq!(one["invocations"].as_u64().unwrap() + 1, two["invocations"].as_u64().unwrap());
        }),
        row("RA-15", "D", "L-env", "work that outlives its response stands still until the next event [freeze]").ours(
            FLAGS,
            |_| async move {
                for (flags, freezes) in [(&[][..], cfg!(unix)), (&["--no-freeze"], false)] {
                    let api = Api::ours(flags).await;
                    let mut client = api.connect().await;
                    let folder = tempfile::tempdir().unwrap();
                    let (signal, done) = (folder.path().join("signal"), folder.path().join("done"));
                    let leave = json!({"action": "echo", "do": "leave", "after": signal, "touch": done});
                    let left = client.ask(&leave).await;
                    if freezes {
                        stopped(&left["pid"]).await;
                    }
                    std::fs::write(&signal, "").unwrap();
                    if freezes {
                        // A process that is stopped does nothing more.
                        assert!(!done.exists(), "it went on");
                        client.send(&json!({"action": "echo", "do": "sleep", "ms": 200})).await;
                    }
                    let deadline = tokio::time::Instant::now() + SOON;
                    while !done.exists() {
                        assert!(tokio::time::Instant::now() < deadline, "it never went on");
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                }
            },
        ),
        row("RA-16", "D", "RIE", "a function is killed at its timeout, with that in its error")
            .proved(&["crates/local/tests/lambda.rs::a_function_that_takes_too_long_is_killed"]),
        row("RA-17", "D", "L-vars", "a function has Lambda's variables, its own, and none of the developer's").ours(
            LOG,
            |api| async move {
                let variables = environment(&mut api.connect().await).await["variables"].take();
                for name in [
                    "_HANDLER",
                    "AWS_REGION",
                    "AWS_DEFAULT_REGION",
                    "AWS_LAMBDA_FUNCTION_NAME",
                    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
                    "AWS_LAMBDA_FUNCTION_VERSION",
                    "AWS_LAMBDA_INITIALIZATION_TYPE",
                    "AWS_LAMBDA_LOG_GROUP_NAME",
                    "AWS_LAMBDA_LOG_STREAM_NAME",
                    "AWS_ACCESS_KEY_ID",
                    "AWS_SECRET_ACCESS_KEY",
                    "AWS_SESSION_TOKEN",
                    "AWS_LAMBDA_RUNTIME_API",
                    "LAMBDA_TASK_ROOT",
                    "LAMBDA_RUNTIME_DIR",
                    "TZ",
                    "LANG",
                    "PATH",
                    "FIXTURE_COMMAND",
                ] {
                    assert!(variables[name].is_string(), "{name} in {variables}");
                }
                for name in ["HOME", "USER", "CARGO", "PWD", "AWS_EXECUTION_ENV"] {
                    assert_eq!(variables.get(name), None, "{name}");
                }
            },
        ),
        row("RA-18", "D", "L-env", "after a crash the next event has a new process").anywhere(|api| async move {
            let mut client = api.connect().await;
            let error = client.ask(&json!({"action": "echo", "do": "exit"})).await;
            assert_eq!(error["message"], "Internal server error");
            let next = environment(&mut client).await;
            assert!(next["pid"].is_u64(), "{next}");
        }),
        row("RA-19", "D", "L-env", "an init of more than ten seconds is tried again at the first event")
            .proved(&["crates/local/tests/lambda.rs::an_init_of_more_than_ten_seconds_is_tried_again_under_the_functions_timeout"]),
        row("RA-20", "S", "S", "a handler's error and a panic are reported with type and message")
            .proved(&["crates/local/tests/lambda.rs::a_handler_error_and_a_panic_fail_the_event_and_the_process_stays"]),
        row("RA-21", "D+O", "L-api; CAP-23", "every event has a UUID of its own that is not the gateway's requestId").anywhere(
            |api| async move {
                let mut client = api.connect().await;
                let mut ids = BTreeSet::new();
                for _ in 0..100 {
                    let id = environment(&mut client).await["requestId"].as_str().unwrap().to_owned();
                    assert_eq!((id.len(), id.matches('-').count()), (36, 4), "{id}");
                    ids.insert(id);
                }
                assert_eq!(ids.len(), 100);
            },
        ),
        row("ES-01", "D", "L-ddb", "put, update and delete are INSERT, MODIFY and REMOVE, in order")
            .proved(&["crates/local/tests/stream.rs::put_update_and_delete_arrive_as_insert_modify_and_remove"]),
        row("ES-02", "D", "L-ddb", "quick writes come in order, in batches of at most the batch size")
            .proved(&["crates/local/tests/stream.rs::quick_writes_come_in_order_and_in_batches_of_the_batch_size"]),
        row("ES-03", "D", "L-ddb", "a failed batch is delivered again before the next one").proved(&[
            "crates/local/src/stream/lane/tests.rs::a_failed_batch_is_delivered_again_before_the_next_one",
            "crates/local/src/stream/lane/tests.rs::the_next_batch_waits_for_the_answer_to_the_one_before",
        ]),
        row("ES-04", "D", "L-ddb; B-lambda", "after its retries a batch is given up, and the destination is told").proved(&[
            "crates/local/src/stream/lane/tests.rs::after_two_retries_the_batch_is_given_up_and_the_shard_goes_on",
            "crates/local/tests/stream.rs::a_failing_record_is_retried_and_given_up_and_later_ones_go_on",
        ]),
        row("ES-05", "D", "L-ddb", "bisection isolates a poison record, and uses up no attempts").proved(&[
            "crates/local/src/stream/lane/tests.rs::bisection_isolates_the_poison_without_using_up_attempts",
            "crates/local/tests/stream.rs::bisection_delivers_the_records_around_a_poison_record",
        ]),
        row("ES-06", "D", "L-ddb", "the next delivery begins at the first record that was reported as failed").proved(&[
            "crates/local/src/stream/lane/tests.rs::a_partial_failure_continues_at_the_lowest_record_that_failed",
            "crates/local/tests/stream.rs::the_next_delivery_begins_at_a_reported_failure",
        ]),
        row("ES-07", "D", "L-ddb", "an empty list, null and {} are a success")
            .proved(&["crates/local/src/stream/response.rs::an_empty_or_null_response_or_list_is_a_success"]),
        row("ES-08", "D", "L-ddb", "an empty or null identifier, or a wrong key, fails the whole batch").proved(&[
            "crates/local/src/stream/response.rs::an_empty_or_null_identifier_a_wrong_key_and_anything_else_fail_the_batch",
        ]),
        row("ES-09", "D", "L-ddb", "a batching window gathers the records that come in its time")
            .proved(&["crates/local/src/stream/lane/tests.rs::a_batch_window_collects_the_records_of_its_time"]),
        row("ES-10", "D", "L-ddb", "by default a poison record blocks its shard for 24 h").proved(&[
            "crates/local/src/stream/lane/tests.rs::by_default_a_poison_record_blocks_its_lane_until_it_is_24_h_old",
        ]),
        row("ES-11", "D", "L-ddb", "LATEST delivers no earlier writes, TRIM_HORIZON does")
            .proved(&["crates/local/tests/stream.rs::latest_begins_after_the_last_record_and_trim_horizon_at_the_first"]),
        row("ES-12", "D+I", "L-ddb", "several batches at once never overtake each other in a key").proved(&[
            "crates/local/tests/stream.rs::several_lanes_have_a_batch_in_flight_each",
            "crates/local/tests/stream.rs::a_thousand_puts_by_one_writer_arrive_once_and_in_order_per_key",
        ]),
        row("ES-13", "D", "L-ddb", "after a crash before the answer records are delivered again")
            .proved(&["crates/local/tests/stream.rs::a_crash_in_the_middle_of_a_batch_delivers_it_again"]),
        row("ES-14", "S", "S", "a record is read by Rust's EventRecord")
            .proved(&["tests/e2e/publish.rs::a_topics_subscribers_receive_what_is_put"]),
        row("ES-15", "I", "K410", "a stream's function can post to a connection")
            .proved(&["tests/e2e/publish.rs::a_users_devices_receive_a_direct_message"]),
    ]
}

/// Two execution environments differ in this on any machine.
fn pid_and_log_stream(environment: &Value) -> (Value, Value) {
    (environment["pid"].clone(), environment["variables"]["AWS_LAMBDA_LOG_STREAM_NAME"].clone())
}

//! CL: clients that nobody here wrote. The scripts and what they need are in `tests/clients`.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;

use switchboard_tests::python;
use switchboard_tests::stack::root;
use tokio::process::Command;

use crate::api::Api;
use crate::table::{Check, FLAGS, Row, row};

/// Runs one case of a script. If it fails, the row fails.
async fn run(api: Arc<Api>, program: PathBuf, script: &'static str, case: &'static str) {
    let credentials = &api.credentials;
    let output = Command::new(program)
        .current_dir(root().join("tests/clients"))
        .args([script, case, &api.endpoint.ws(), &api.endpoint.http()])
        .env("AWS_REGION", &api.region)
        .env("AWS_DEFAULT_REGION", &api.region)
        .env("AWS_ACCESS_KEY_ID", credentials.access_key_id())
        .env("AWS_SECRET_ACCESS_KEY", credentials.secret_access_key())
        .envs(credentials.session_token().map(|token| ("AWS_SESSION_TOKEN", token)))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap_or_else(|error| panic!("{script} {case}: {error}"));
    assert!(output.status.success(), "{script} {case}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A row of a Python client. It is skipped only where there is no Python at all.
fn with_python(
    id: &'static str,
    mark: &'static str,
    client: &'static str,
    claim: &'static str,
    case: &'static str,
) -> Row {
    let row = row(id, mark, client, claim);
    if !python::is_installed() {
        return row.skipped("there is no python3");
    }
    row.anywhere(move |api| run(api, python::interpreter(), "conformance.py", case))
}

fn with_node(id: &'static str, mark: &'static str, claim: &'static str, case: &'static str) -> Row {
    row(id, mark, "ws", claim).anywhere(move |api| {
        let installed = root().join("tests/clients/node_modules").is_dir();
        assert!(installed, "no npm packages in tests/clients: `make conformance` installs them");
        run(api, "node".into(), "conformance.mjs", case)
    })
}

/// The row on a stack that compresses. Nobody knows what AWS agrees on with these clients.
fn compressed(row: Row) -> Row {
    let Check::Anywhere(check) = &row.check else { return row };
    let check = check.clone();
    row.ours(FLAGS, move |_| {
        let check = check.clone();
        async move { check(Arc::new(Api::ours(&["--deflate", "negotiate"]).await)).await }
    })
}

pub fn rows() -> Vec<Row> {
    vec![
        with_python("CL-01", "O", "websockets", "Python's websockets offers compression, connects and talks", "talks"),
        with_python("CL-02", "D", "websockets", "Python's websockets sees the status of a refusal", "is_refused"),
        with_python("CL-03", "I", "websockets", "Python's websockets gets its pongs", "pings"),
        with_python("CL-04", "D", "websockets", "Python's websockets sends fragments", "sends_fragments"),
        with_python("CL-05", "D", "websockets", "Python's websockets is closed with 1003 for bytes", "sends_bytes"),
        with_python("CL-06", "D+O", "boto3", "boto3 posts, gets and deletes", "posts_gets_and_deletes"),
        with_python("CL-07", "D+O", "boto3", "boto3 raises GoneException of every call", "raises_gone"),
        with_python(
            "CL-08",
            "D+O",
            "boto3",
            "boto3 raises the errors for what is too large and for a malformed id",
            "raises_other_errors",
        ),
        with_node("CL-09", "O", "npm's ws offers compression, connects and talks", "talks"),
        with_node("CL-10", "D", "npm's ws sees the status of a refusal", "isRefused"),
        with_node("CL-11", "I", "npm's ws gets its pongs", "pings"),
        with_node("CL-12", "D+I", "npm's ws is closed with 1003 for bytes, and closes with its own code", "isClosed"),
        with_node(
            "CL-13",
            "D+O",
            "npm's ws has the subprotocol that the function chose, or gives up",
            "hasASubprotocol",
        ),
        compressed(with_python(
            "CL-14",
            "?",
            "websockets",
            "Python's websockets compresses, however it offers to [deflate]",
            "compresses",
        )),
        compressed(with_node("CL-15", "?", "npm's ws compresses, however it offers to [deflate]", "compresses")),
    ]
}

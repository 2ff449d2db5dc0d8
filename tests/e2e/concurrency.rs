//! Reserved concurrency: a flood on one route takes the executions of the others, unless these reserve some.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use switchboard_tests::client::Client;
use switchboard_tests::proxy::{Answer, Call, Proxy};
use switchboard_tests::stack::{PATIENCE, binaries, root};

/// How many executions the flood can take.
const FLOOD: usize = 4;

/// The service with these settings for every stage.
fn service(folder: &Path, settings: &str) -> String {
    let text = std::fs::read_to_string(root().join("serverless.yml")).unwrap();
    let file = folder.join("serverless.yml");
    std::fs::write(&file, text.replacen("  default:\n", &format!("  default:\n{settings}"), 1)).unwrap();
    std::os::unix::fs::symlink(root().join("infra"), folder.join("infra")).unwrap();
    file.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_flood_of_frames_starves_handshakes_unless_these_reserve_executions() {
    for (settings, account, is_reserved) in
        [("", FLOOD, false), ("    connectConcurrency: 2\n    disconnectConcurrency: 1\n", FLOOD + 3, true)]
    {
        let folder = tempfile::tempdir().unwrap();
        let service = service(folder.path(), settings);
        let (binaries, account) = (binaries(), account.to_string());
        let arguments =
            ["--config", &service, "--binaries", binaries.to_str().unwrap(), "--account-concurrency", &account];
        let arguments = [&arguments[..], &["--env", "MAX_FRAMES_PER_SECOND=0"]].concat();
        // A ping reads the row of its connection, and no handshake does that. These reads hang until the SDK gives up.
        let hang = |call: &Call| (call.operation == "GetItem").then(|| -> Answer { Box::pin(std::future::pending()) });
        let (_proxy, stack) = Proxy::in_front(&arguments, hang).await;
        let (mut flood, leaves) = (stack.connect("").await, stack.connect("").await);
        // The flood goes on for as long as the test does.
        let flood = tokio::spawn(async move {
            loop {
                flood.send(json!({"type": "ping"})).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        stack.logged(1, &["default", "throttled by Lambda"]).await;
        if is_reserved {
            leaves.close().await;
            for ended in 1..5 {
                stack.logged(ended, &["disconnect |", "\"served\""]).await;
                stack.connect("?userId=1").await.close().await;
            }
            assert!(stack.log(&["$connect", "throttled"]).is_empty());
        } else {
            let address = format!("ws://{}/dev", stack.gateway);
            let refused = async { while Client::connect(&address).await.is_ok() {} };
            tokio::time::timeout(PATIENCE, refused).await.expect("no handshake was refused");
            stack.logged(1, &["Lambda throttled $connect"]).await;
        }
        flood.abort();
    }
}

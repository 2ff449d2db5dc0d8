//! Roles that lack a permission. Every other test shows that ours lack none.

use serde_json::json;
use switchboard_tests::stack::{NO_RULES, Stack};

use crate::failures::copied;

/// Our service after a change of a text in `infra/roles.yml`.
fn with_roles(from: &str, to: &str) -> (tempfile::TempDir, String) {
    let folder = copied();
    let path = folder.path().join("infra/roles.yml");
    let roles = std::fs::read_to_string(&path).unwrap();
    assert!(roles.contains(from), "no {from} in {roles}");
    std::fs::write(&path, roles.replace(from, to)).unwrap();
    let config = folder.path().join("serverless.yml").to_str().unwrap().to_owned();
    (folder, config)
}

#[tokio::test]
async fn a_call_of_dynamodb_that_the_role_does_not_allow_is_refused() {
    let (_folder, config) = with_roles("dynamodb:UpdateItem", "dynamodb:DescribeTable");
    let stack = Stack::with(&["--config", &config, NO_RULES[0], NO_RULES[1]]).await;
    let mut client = stack.connect("?userId=1").await;
    let error = client.ask(json!({"type": "subscribe", "topic": "t", "id": "s"})).await;
    assert_eq!(error["message"], "Internal server error");
    let refused = "default: the role switchboard-dev-DefaultRole does not allow dynamodb:UpdateItem on \
                   arn:aws:dynamodb:us-east-1:123456789012:table/switchboard-dev-connections";
    stack.logged(1, &["iam |", refused]).await;
    let as_on_aws = "User: arn:aws:sts::123456789012:assumed-role/switchboard-dev-DefaultRole/switchboard-dev-default \
                     is not authorized to perform: dynamodb:UpdateItem on resource:";
    stack.logged(1, &["default |", "AccessDeniedException", as_on_aws]).await;
    // Its other permissions are as they were, and so are the other roles.
    let ack = client.ask(json!({"action": "sendMessage", "destinationUserId": "1", "body": "x"})).await;
    assert_eq!(ack["body"], "x");
}

#[tokio::test]
async fn a_post_that_the_role_does_not_allow_is_refused() {
    let (_folder, config) = with_roles("execute-api:ManageConnections", "execute-api:Invoke");
    let stack = Stack::with(&["--config", &config]).await;
    let mut client = stack.connect("?userId=1").await;
    client.send(json!({"action": "sendMessage", "destinationUserId": "1", "body": "x"})).await;
    let post = "sendMessage: the role switchboard-dev-SendMessageRole does not allow execute-api:ManageConnections on \
                arn:aws:execute-api:us-east-1:123456789012:local0ws01/dev/POST/@connections/";
    stack.logged(1, &["iam |", post]).await;
    stack.logged(1, &["sendMessage |", "AccessDenied"]).await;
}

#[tokio::test]
async fn a_function_without_a_role_has_the_one_that_the_provider_makes() {
    let folder = copied();
    let path = folder.path().join("serverless.yml");
    let statement = "{Effect: Allow, Action: 'dynamodb:UpdateItem', Resource: '*'}";
    let provider = format!("provider:\n  name: aws\n  iam: {{role: {{statements: [{statement}]}}}}\n");
    let service = std::fs::read_to_string(&path).unwrap();
    let edits = [("    role: DefaultRole\n", ""), ("provider:\n  name: aws\n", provider.as_str())];
    assert!(edits.iter().all(|(from, _)| service.contains(from)), "{service}");
    let changed = edits.iter().fold(service, |service, (from, to)| service.replace(from, to));
    std::fs::write(&path, changed).unwrap();
    let stack = Stack::with(&["--config", path.to_str().unwrap()]).await;
    let mut client = stack.connect("?userId=1").await;
    let error = client.ask(json!({"type": "subscribe", "topic": "t", "id": "s"})).await;
    assert_eq!(error["message"], "Internal server error");
    let refused = "default: the role switchboard-dev-us-east-1-lambdaRole does not allow dynamodb:";
    let lines = stack.logged(1, &["iam |", refused]).await;
    assert!(lines.iter().all(|line| !line.contains("UpdateItem")), "{lines:?}");
}

#[tokio::test]
async fn without_iam_the_roles_do_not_count() {
    let (_folder, config) = with_roles("dynamodb:UpdateItem", "dynamodb:DescribeTable");
    let stack = Stack::with(&["--config", &config, "--no-iam"]).await;
    let mut client = stack.connect("?userId=1").await;
    let ack = client.ask(json!({"type": "subscribe", "topic": "t", "id": "s"})).await;
    assert_eq!(ack, json!({"type": "ack", "id": "s"}));
}

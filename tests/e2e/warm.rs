//! A function opens its HTTP connections before it asks for its first event.

use serde_json::json;
use switchboard_tests::stack::NO_RULES;
use switchboard_tests::tls::Ends;

#[tokio::test]
async fn a_first_message_needs_no_handshake_of_its_own() {
    let ends = Ends::start().await;
    let stack = ends.stack(&NO_RULES).await;
    let Ends { dynamodb, gateway, .. } = &ends;
    let mut client = stack.connect("?userId=1").await;
    let of_connect = (dynamodb.sent().len(), gateway.sent().len());
    let ack = client.ask(json!({"action": "sendMessage", "destinationUserId": "1", "body": "hello there!"})).await;
    assert_eq!(ack["body"], "hello there!");
    // Each connection begins with a request that no handler sends, so it is older than the first event.
    for sent in dynamodb.sent() {
        let first = sent.split("POST / ").nth(1).unwrap();
        assert!(first.contains("GetItem") && first.contains("warm-up"), "{sent}");
    }
    for sent in gateway.sent() {
        assert!(sent.starts_with("GET /ping "), "{sent}");
    }
    // Two processes have served events: `connect` and `send-message`.
    assert_eq!((of_connect, (dynamodb.sent().len(), gateway.sent().len())), ((2, 1), (4, 2)));
}

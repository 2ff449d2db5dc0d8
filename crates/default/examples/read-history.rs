//! Reads a topic's history as any backend can: by querying the table of messages.
//!
//! `cargo run --example read-history -- TABLE TOPIC` prints the newest messages in their order, one JSON object in each line.
//! The SDK's usual configuration says where the table is, and who reads it.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_config::BehaviorVersion;
use aws_sdk_dynamodb::types::AttributeValue;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};

/// How many messages are printed at most.
const LIMIT: i32 = 100;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [table, topic] = &arguments[..] else {
        return Err("usage: read-history TABLE TOPIC".into());
    };
    let http = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
    let sdk = aws_config::defaults(BehaviorVersion::latest()).http_client(http).load().await;
    let query = aws_sdk_dynamodb::Client::new(&sdk)
        .query()
        .table_name(table)
        .key_condition_expression("p = :p")
        .expression_attribute_values(":p", AttributeValue::S(format!("m:{topic}")))
        .scan_index_forward(false)
        .limit(LIMIT);
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    for row in query.send().await?.items().iter().rev() {
        let number = |name| row.get(name)?.as_n().ok()?.parse::<u64>().ok();
        let text = |name| row.get(name)?.as_s().ok().map(String::as_str);
        // DynamoDB deletes late what has expired.
        if number("ttl").is_none_or(|ttl_s| ttl_s <= now_s) {
            continue;
        }
        let (epoch, seq) = text("s").and_then(|key| key.split_once('/')).ok_or("a key without a number")?;
        let seq: u64 = seq.parse()?;
        let mut line = format!(r#"{{"epoch":"{epoch}","seq":{seq}"#);
        // A number without a message is a hole. The payload is JSON text.
        match text("json") {
            Some(json) => line.push_str(&format!(r#","data":{json}"#)),
            None => line.push_str(r#","hole":true"#),
        }
        if let Some(sender) = text("senderId") {
            line.push_str(&format!(r#","senderId":{}"#, serde_json::to_string(sender)?));
        }
        if let Some(at_ms) = number("at") {
            line.push_str(&format!(r#","at":{at_ms}"#));
        }
        writeln!(std::io::stdout(), "{line}}}")?;
    }
    Ok(())
}

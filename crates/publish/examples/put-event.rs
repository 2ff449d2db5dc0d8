//! Publishes as any backend can: by putting an item into the events table.
//!
//! `cargo run --example put-event -- TABLE TOPIC JSON`; where and as whom is the SDK's usual configuration.

use aws_config::BehaviorVersion;
use aws_sdk_dynamodb::types::AttributeValue;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [table, topic, json] = &arguments[..] else {
        return Err("usage: put-event TABLE TOPIC JSON".into());
    };
    serde_json::from_str::<&serde_json::value::RawValue>(json)
        .map_err(|error| format!("`{json}` is not JSON: {error}"))?;

    let http = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
    let sdk = aws_config::defaults(BehaviorVersion::latest()).http_client(http).load().await;
    let id = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos().to_string();
    let string = |text: &str| AttributeValue::S(text.to_owned());
    let put = aws_sdk_dynamodb::Client::new(&sdk).put_item().table_name(table);
    let put = put.item("topic", string(topic)).item("id", string(&id)).item("json", string(json));
    put.send().await?;
    Ok(())
}

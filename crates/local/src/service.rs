//! What a serverless.yml says, as far as a local stack needs it.

use std::collections::BTreeMap;
use std::time::Duration;

/// A service: its functions, its WebSocket routes and its DynamoDB tables.
#[derive(Debug, Clone)]
pub struct Service {
    /// The `service` key.
    pub name: String,
    /// The stage: `--stage`, else `provider.stage`, else `dev`.
    pub stage: String,
    /// `provider.region`, else `us-east-1`.
    pub region: String,
    /// `provider.websocketsApiRouteSelectionExpression`, else `$request.body.action`.
    pub route_selection_expression: String,
    /// By function key.
    pub functions: BTreeMap<String, Function>,
    /// Route key (`$connect`, `sendMessage`, …) to the function key behind it.
    pub routes: BTreeMap<String, String>,
    /// In the order in which the resources define them.
    pub tables: Vec<Table>,
}

/// One entry of `functions`.
#[derive(Debug, Clone)]
pub struct Function {
    /// The deployed name: `name`, else `{service}-{stage}-{key}`.
    pub name: String,
    /// The name of its binary.
    pub handler: String,
    /// `memorySize`, else the provider's, else 1024 (the framework's default).
    pub memory_size_mb: u32,
    /// `timeout`, else the provider's, else 6 s (the framework's default).
    pub timeout: Duration,
    /// The provider's environment overlaid with the function's own.
    pub environment: BTreeMap<String, String>,
}

/// One `AWS::DynamoDB::Table`.
#[derive(Debug, Clone)]
pub struct Table {
    /// Its logical id in the resources.
    pub logical_id: String,
    /// The body of a DynamoDB `CreateTable` call.
    pub create_table: serde_json::Value,
    /// The attribute named by `TimeToLiveSpecification`, when that is enabled.
    pub ttl_attribute: Option<String>,
}

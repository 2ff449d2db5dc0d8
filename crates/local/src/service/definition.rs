//! What a service is for the rest of the crate.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::gateway::Definition;
use crate::gateway::settings::Limits;
use crate::iam::Role;
use crate::stream::Filter;

/// The id of the local WebSocket API, in the form of API Gateway's ids.
pub(super) const API_ID: &str = "local0ws01";

/// The quota of filter patterns of one mapping, from "Control which events Lambda sends to your function".
const MAX_FILTER_PATTERNS: usize = 5;

/// The settings that the files do not have.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// The `--stage` flag: `${opt:stage}`.
    pub stage: Option<String>,
    /// The `--region` flag: `${opt:region}`. It overrides the provider's.
    pub region: Option<String>,
    /// The `--param` flags: `${param:NAME}`.
    pub parameters: BTreeMap<String, String>,
    /// The process environment: `${env:NAME}`.
    pub environment: BTreeMap<String, String>,
    /// The `--env` flags. The service's own values of these variables are not read.
    pub variables: BTreeMap<String, String>,
    /// The `--no-iam` flag: roles are not read.
    pub no_iam: bool,
}

/// A service: its functions, its WebSocket routes and its DynamoDB tables.
#[derive(Debug, Clone)]
pub struct Service {
    /// The `service` key.
    pub name: String,
    /// `--region`, else `provider.region`, else `us-east-1`.
    pub region: String,
    /// The functions that something invokes here, by their keys.
    pub functions: BTreeMap<String, Function>,
    /// The keys of the functions that nothing invokes here.
    pub idle_functions: BTreeSet<String>,
    /// The WebSocket API. Its functions are those of this service.
    pub api: Definition,
    /// The tables in the order of the templates, and in each of their logical ids.
    pub tables: Vec<Table>,
}

/// One entry of `functions`.
#[derive(Debug, Clone)]
pub struct Function {
    /// The deployed name: `name`, else `{service}-{stage}-{key}`.
    pub name: String,
    /// The name of its binary, in one of several forms.
    pub handler: String,
    /// `package.artifact`, whose path may name the binary.
    pub artifact: Option<String>,
    /// Its `role`, else the provider's, if that is an `AWS::IAM::Role` of the resources or made of statements and
    /// managed policies. A function without a role may do everything.
    pub role: Option<Arc<Role>>,
    /// `memorySize`, else the provider's, else 1024 (the framework's default).
    pub memory_size_mb: u32,
    /// `timeout`, else the provider's, else 6 s (the framework's default).
    pub timeout: Duration,
    /// `reservedConcurrency`: the most simultaneous events; others are throttled. Without it the function shares the
    /// rest of the account's concurrency.
    pub reserved_concurrency: Option<usize>,
    /// The provider's environment, overridden by the function's own.
    pub environment: BTreeMap<String, String>,
    /// `logs.logFormat`, else plain text. A function's `logs` replace all of the provider's.
    pub log_format: LogFormat,
    /// `logs.applicationLogLevel`: `TRACE`, `DEBUG`, `INFO`, `WARN`, `ERROR` or `FATAL`.
    pub log_level: Option<String>,
    /// The DynamoDB streams that it consumes.
    pub streams: Vec<StreamMapping>,
    /// The rates of its enabled schedules.
    pub schedules: Vec<Duration>,
}

/// [The format of a function's logs](https://docs.aws.amazon.com/lambda/latest/dg/monitoring-cloudwatchlogs-logformat.html).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum LogFormat {
    /// Lines of one JSON object each.
    #[serde(rename = "JSON")]
    Json,
    /// Lines as the function writes them.
    #[default]
    Text,
}

/// An event source mapping between a table's stream and a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamMapping {
    /// The logical id of the table.
    pub table: String,
    /// The most records that one invocation gets: `batchSize`, else 10 (the framework's default).
    pub batch_size: u32,
    /// The time to wait for a full batch: `batchWindow`, else none.
    pub batch_window: Duration,
    /// `startingPosition`, else the trim horizon (the framework's default).
    pub starting_position: StartingPosition,
    /// `maximumRetryAttempts`. Without it retries go on until the record is too old.
    pub maximum_retry_attempts: Option<u32>,
    /// `maximumRecordAgeInSeconds`. Without it only the stream itself discards records.
    pub maximum_record_age: Option<Duration>,
    /// `bisectBatchOnFunctionError`: a failed batch is halved before it is tried again.
    pub bisect_batch_on_function_error: bool,
    /// Concurrent batches of a shard, 1 to 10: `parallelizationFactor`, else 1.
    pub parallelization_factor: u32,
    /// `functionResponseType: ReportBatchItemFailures`: the response says which records failed.
    pub report_batch_item_failures: bool,
    /// The ARN of `destinations.onFailure`, which is only shown. There is no such queue or topic.
    pub on_failure: Option<String>,
    /// `filterPatterns`, which select the records that the function gets. Without it the function gets all.
    pub filter: Filter,
    /// `enabled`, else true.
    pub enabled: bool,
}

/// The place in a stream at which a new mapping begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum StartingPosition {
    /// The oldest record.
    #[default]
    TrimHorizon,
    /// The first record that is written after the start.
    Latest,
}

/// One `AWS::DynamoDB::Table`.
#[derive(Debug, Clone)]
pub struct Table {
    /// Its logical id in the resources.
    pub logical_id: String,
    /// The body of a DynamoDB `CreateTable` call.
    pub create_table: Value,
    /// The attribute that `TimeToLiveSpecification` names, if that is enabled.
    pub ttl_attribute: Option<String>,
}

impl Service {
    /// Returns a sentence for each count that exceeds AWS's default quota. Authorizers cannot: only `$connect` has one,
    /// and the quota is ten.
    #[must_use]
    pub fn beyond_quotas(&self, limits: &Limits) -> Vec<String> {
        let integrations: BTreeSet<_> = self.api.routes.values().collect();
        let counts = [
            ("routes", self.api.routes.len(), limits.max_routes),
            ("integrations", integrations.len(), limits.max_integrations),
        ];
        let mut beyond: Vec<_> =
            counts.into_iter().map(|(what, count, quota)| (what.to_owned(), count, quota)).collect();
        for (key, function) in &self.functions {
            beyond.extend(function.streams.iter().map(|mapping| {
                (format!("filter patterns of {key}/{}", mapping.table), mapping.filter.len(), MAX_FILTER_PATTERNS)
            }));
        }
        beyond.retain(|(_, count, quota)| count > quota);
        beyond
            .into_iter()
            .map(|(what, count, quota)| format!("{count} {what}: AWS allows {quota}, and more on request"))
            .collect()
    }
}

#[cfg(test)]
mod tests;

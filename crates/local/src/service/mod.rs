//! Reads a serverless.yml, as far as a local stack needs it.
//!
//! Reading has three steps. Files are included and variables resolved (`variables.rs`). On the way, keys without a
//! meaning on a laptop are dropped and unsupported keys refused (`keys.rs`). The rest is read strictly: an unknown key
//! is an error that names its file.

mod cloudformation;
mod error;
mod keys;
mod roles;
mod schema;
mod variables;
mod websocket;
mod yaml;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

pub use self::error::{Location, ServiceError};

use self::cloudformation::{Names, Stack};
use self::error::{KeyPath, Problem};
use self::variables::Document;
use self::websocket::Authorization;
use crate::gateway::settings::Limits;
use crate::gateway::{Authorizer, Definition, Paths};
use crate::iam::{ACCOUNT_ID, Role};
use crate::stream::Filter;

/// The id of the local WebSocket API, in the form of API Gateway's ids.
pub const API_ID: &str = "local0ws01";

/// The framework's default for the stage.
const DEFAULT_STAGE: &str = "dev";

/// The framework's default for the region.
const DEFAULT_REGION: &str = "us-east-1";

/// The framework's default for the route selection expression.
const DEFAULT_ROUTE_SELECTION_EXPRESSION: &str = "$request.body.action";

/// The framework's default for the identity source of an authorizer.
const DEFAULT_IDENTITY_SOURCE: &str = "route.request.header.Auth";

/// The prefixes of an identity source of a WebSocket API. A name follows each
/// ([CreateAuthorizer](https://docs.aws.amazon.com/apigatewayv2/latest/api-reference/apis-apiid-authorizers.html)).
const IDENTITY_SOURCES: [&str; 4] =
    ["route.request.header.", "route.request.querystring.", "context.", "stageVariables."];

/// The framework's default for memory, in MB.
const DEFAULT_MEMORY_SIZE: i32 = 1024;

/// The framework's default for the time-out, in seconds.
const DEFAULT_TIMEOUT: i32 = 6;

/// The framework's default for the batch size. Lambda's own is 100.
const DEFAULT_BATCH_SIZE: i32 = 10;

/// The most characters of [a stage's
/// name](https://docs.aws.amazon.com/apigatewayv2/latest/api-reference/apis-apiid-stages.html).
const MAX_STAGE_LENGTH: usize = 128;

/// The most characters of [a function's name](https://docs.aws.amazon.com/lambda/latest/api/API_CreateFunction.html).
const MAX_FUNCTION_NAME_LENGTH: usize = 64;

/// The least `maximumRecordAgeInSeconds`, except -1.
const MIN_RECORD_AGE_S: i32 = 60;

/// The quota of filter patterns of one mapping, from "Control which events Lambda sends to your function".
const MAX_FILTER_PATTERNS: usize = 5;

/// The settings that the files do not have.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// The `--stage` flag: `${opt:stage}`.
    pub stage: Option<String>,
    /// The process environment: `${env:NAME}`.
    pub environment: BTreeMap<String, String>,
    /// The `--no-iam` flag: roles are not read.
    pub no_iam: bool,
}

/// A service: its functions, its WebSocket routes and its DynamoDB tables.
#[derive(Debug, Clone)]
pub struct Service {
    /// The `service` key.
    pub name: String,
    /// `provider.region`, else `us-east-1`.
    pub region: String,
    /// The functions by their keys.
    pub functions: BTreeMap<String, Function>,
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
    /// The name of its binary.
    pub handler: String,
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
    /// Reads the serverless.yml at `path` and the files that it includes.
    ///
    /// # Errors
    ///
    /// When a file is missing or not YAML, or a key is unknown, not supported, or has a value that it cannot have.
    pub fn load(path: &Path, settings: &Settings) -> Result<Self, ServiceError> {
        let folder = path.parent().unwrap_or(Path::new(""));
        Self::read(path, settings).map_err(|error| error.with_line(folder))
    }

    fn read(path: &Path, settings: &Settings) -> Result<Self, ServiceError> {
        let document = Document::load(path, settings)?;
        let top = KeyPath::default();
        let root: schema::Root = document.parse(&document.value, &top)?;
        let provider = &root.provider;

        if !is_service_name(&root.service) {
            let reason = format!("`{}` is not a letter followed by letters, digits and `-`", root.service);
            return Err(document.error(Problem::new(&top.key("service"), reason)));
        }
        let stage = settings.stage.as_ref().or(provider.stage.as_ref()).map_or(DEFAULT_STAGE, String::as_str);
        if stage.len() > MAX_STAGE_LENGTH || !is_word(stage) {
            let reason = format!("the stage `{stage}` is not 1 to {MAX_STAGE_LENGTH} letters, digits, `-` and `_`");
            return Err(document.error(Problem::new(&top.key("provider").key("stage"), reason)));
        }
        let region = provider.region.as_deref().unwrap_or(DEFAULT_REGION);

        let definitions = function_definitions(&document, &root.functions)?;
        let default_name = |key: &str| format!("{}-{stage}-{key}", root.service);
        let names = definitions.iter().map(|(key, (definition, _))| {
            let name = definition.name.clone().unwrap_or_else(|| default_name(key));
            (key.clone(), name)
        });
        let names: BTreeMap<String, String> = names.collect();
        let websocket = |event: &schema::Event| event.websocket.as_ref().map(|websocket| websocket.route.clone());
        let route_keys: BTreeSet<String> =
            definitions.values().flat_map(|(definition, _)| definition.events.iter().filter_map(websocket)).collect();
        let stack_names = Names {
            service: &root.service,
            stage,
            region,
            stack: provider.stack_name.clone().unwrap_or_else(|| format!("{}-{stage}", root.service)),
            functions: &names,
            routes: &route_keys,
        };
        let (stack, tables) = Stack::load(&document, &root.resources, &stack_names)?;

        let has_default_role =
            !settings.no_iam && definitions.values().any(|(definition, _)| definition.role.is_null());
        let default_role = if has_default_role { stack.default_role(&document, provider)? } else { None }.map(Arc::new);
        let mut functions = BTreeMap::new();
        let mut routes = BTreeMap::new();
        let mut two_way_routes = BTreeSet::new();
        let mut authorizer = None;
        for (key, (definition, at)) in &definitions {
            let name = names[key].clone();
            let mut function =
                function(name, definition, at, provider, &stack).map_err(|problem| document.error(problem))?;
            if !settings.no_iam {
                function.role = match &definition.role {
                    Value::Null => default_role.clone(),
                    role => stack.role(&document, role, &at.key("role"))?.map(Arc::new),
                };
            }
            functions.insert(key.clone(), function);
            add_routes(&mut routes, key, definition, at).map_err(|problem| document.error(problem))?;
            let events = definition.events.iter().filter_map(|event| event.websocket.as_ref());
            if let Some(found) = find_authorizer(definition, at, &names, &stack).map_err(|it| document.error(it))? {
                authorizer = Some(found);
            }
            two_way_routes.extend(events.filter(|event| event.is_two_way()).map(|event| event.route.clone()));
        }
        if routes.is_empty() {
            return Err(document.error(Problem::new(&top.key("functions"), "no function has a websocket event")));
        }
        let route_selection_expression = provider.websockets_api_route_selection_expression.clone();
        let mut api = Definition {
            api_id: API_ID.to_owned(),
            arn: format!("arn:aws:execute-api:{region}:{ACCOUNT_ID}:{API_ID}"),
            stage: stage.to_owned(),
            stage_variables: BTreeMap::new(),
            paths: Paths::default(),
            route_selection_expression: route_selection_expression
                .unwrap_or_else(|| DEFAULT_ROUTE_SELECTION_EXPRESSION.to_owned()),
            routes,
            two_way_routes,
            request_models: BTreeMap::new(),
            authorizer,
            is_iam_authorized: false,
            api_keys: None,
        };
        match stack.complete(&document, &mut api)? {
            Some((Authorization::Custom, at)) if api.authorizer.is_none() => {
                return Err(document.error(Problem::new(&at, "the `$connect` event has no `authorizer`")));
            }
            Some((Authorization::None, _)) => api.authorizer = None,
            Some((Authorization::Iam, _)) => (api.authorizer, api.is_iam_authorized) = (None, true),
            Some((Authorization::Custom, _)) | None => {}
        }
        Ok(Self { name: root.service, region: region.to_owned(), functions, api, tables })
    }

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

/// Definitions by function key, each with its place.
type Definitions = BTreeMap<String, (schema::Function, KeyPath)>;

/// Reads `functions`: a mapping, or a list of mappings.
fn function_definitions(document: &Document, functions: &Value) -> Result<Definitions, ServiceError> {
    let mut definitions = Definitions::new();
    for (part, at) in cloudformation::parts(functions, &KeyPath::default().key("functions")) {
        let part: BTreeMap<String, schema::Function> = document.parse(part, &at)?;
        for (key, definition) in part {
            let at = at.key(&key);
            if !is_word(&key) {
                return Err(document.error(Problem::new(&at, "a function's key has letters, digits, `-` and `_` only")));
            }
            if definition.handler.is_empty() {
                return Err(document.error(Problem::new(&at.key("handler"), "the name of a binary is needed")));
            }
            if definitions.contains_key(&key) {
                return Err(document.error(Problem::new(&at, "a function of this key is defined already")));
            }
            definitions.insert(key, (definition, at));
        }
    }
    Ok(definitions)
}

fn function(
    name: String,
    definition: &schema::Function,
    at: &KeyPath,
    provider: &schema::Provider,
    stack: &Stack,
) -> Result<Function, Problem> {
    if name.len() > MAX_FUNCTION_NAME_LENGTH || !is_word(&name) {
        let reason = format!("the name `{name}` is not 1 to {MAX_FUNCTION_NAME_LENGTH} letters, digits, `-` and `_`");
        return Err(Problem::new(at, reason));
    }
    let mut environment = BTreeMap::new();
    let provider_at = KeyPath::default().key("provider");
    for (values, at) in [(&provider.environment, &provider_at), (&definition.environment, at)] {
        for (key, value) in values {
            let at = at.key("environment").key(key);
            if !is_environment_key(key) {
                return Err(Problem::new(&at, "not a name that an environment variable can have"));
            }
            environment.insert(key.clone(), stack.text(value, &at)?);
        }
    }
    let mut streams = Vec::new();
    for (index, event) in definition.events.iter().enumerate() {
        let at = at.key("events").index(index);
        if event.websocket.is_some() == event.stream.is_some() {
            return Err(Problem::new(&at, "expected either `websocket` or `stream`"));
        }
        if let Some(stream) = &event.stream {
            let mapping = stream_mapping(stream, &at.key("stream"), stack)?;
            if streams.iter().any(|other: &StreamMapping| other.table == mapping.table) {
                let reason = "the function has a mapping of this stream already; AWS allows one";
                return Err(Problem::new(&at.key("stream").key("arn"), reason));
            }
            streams.push(mapping);
        }
    }
    let memory_size =
        definition.memory_size.or(provider.memory_size).map_or(DEFAULT_MEMORY_SIZE, schema::MemorySize::get);
    let timeout = definition.timeout.or(provider.timeout).map_or(DEFAULT_TIMEOUT, schema::Timeout::get);
    let logs = definition.logs.as_ref().unwrap_or(&provider.logs.lambda);
    Ok(Function {
        name,
        handler: definition.handler.clone(),
        role: None,
        memory_size_mb: memory_size.unsigned_abs(),
        timeout: seconds(timeout),
        reserved_concurrency: definition.reserved_concurrency.and_then(|count| usize::try_from(count.get()).ok()),
        environment,
        log_format: logs.log_format,
        log_level: logs.application_log_level.map(|level| level.name().to_owned()),
        streams,
    })
}

fn stream_mapping(stream: &schema::Stream, at: &KeyPath, stack: &Stack) -> Result<StreamMapping, Problem> {
    let table = stack.stream_table(&stream.arn, &at.key("arn"))?;
    let maximum_record_age = stream.maximum_record_age_in_seconds.map_or(-1, schema::Within::get);
    if (0..MIN_RECORD_AGE_S).contains(&maximum_record_age) {
        let reason = format!("{maximum_record_age} is neither -1 nor at least {MIN_RECORD_AGE_S}");
        return Err(Problem::new(&at.key("maximumRecordAgeInSeconds"), reason));
    }
    let on_failure = match &stream.destinations {
        Some(schema::Destinations { on_failure }) => {
            let at = at.key("destinations").key("onFailure");
            let at = if on_failure.arn.is_string() { at } else { at.key("arn") };
            Some(stack.text(&on_failure.arn, &at)?)
        }
        None => None,
    };
    Ok(StreamMapping {
        table,
        batch_size: stream.batch_size.map_or(DEFAULT_BATCH_SIZE, schema::Within::get).unsigned_abs(),
        batch_window: seconds(stream.batch_window.map_or(0, schema::Within::get)),
        starting_position: stream.starting_position,
        maximum_retry_attempts: stream.maximum_retry_attempts.and_then(|attempts| u32::try_from(attempts.get()).ok()),
        maximum_record_age: (maximum_record_age >= 0).then(|| seconds(maximum_record_age)),
        bisect_batch_on_function_error: stream.bisect_batch_on_function_error,
        parallelization_factor: stream.parallelization_factor.map_or(1, schema::Within::get).unsigned_abs(),
        report_batch_item_failures: stream.function_response_type.is_some(),
        on_failure,
        filter: stream.filter_patterns.clone().unwrap_or_default(),
        enabled: stream.enabled.unwrap_or(true),
    })
}

fn add_routes(
    routes: &mut BTreeMap<String, String>,
    key: &str,
    definition: &schema::Function,
    at: &KeyPath,
) -> Result<(), Problem> {
    for (index, event) in definition.events.iter().enumerate() {
        let Some(schema::Websocket { route, .. }) = &event.websocket else {
            continue;
        };
        let at = at.key("events").index(index).key("websocket");
        if route.is_empty() {
            return Err(Problem::new(&at, "a route key is needed"));
        }
        if route.starts_with('$') && !["$connect", "$disconnect", "$default"].contains(&route.as_str()) {
            return Err(Problem::new(&at, format!("`{route}` is not one of `$connect`, `$disconnect`, `$default`")));
        }
        if let Some(other) = routes.insert(route.clone(), key.to_owned()) {
            return Err(Problem::new(&at, format!("the route `{route}` leads to the function `{other}` already")));
        }
    }
    Ok(())
}

/// Returns the authorizer of the `$connect` event, if `definition` has such an event and the event has an authorizer.
fn find_authorizer(
    definition: &schema::Function,
    at: &KeyPath,
    names: &BTreeMap<String, String>,
    stack: &Stack,
) -> Result<Option<Authorizer>, Problem> {
    let mut found = None;
    for (index, event) in definition.events.iter().enumerate() {
        let Some(schema::Websocket { route, authorizer: Some(authorizer), .. }) = &event.websocket else {
            continue;
        };
        let at = at.key("events").index(index).key("websocket").key("authorizer");
        if route != "$connect" {
            return Err(Problem::new(&at, "only `$connect` can have an authorizer"));
        }
        let function = match (&authorizer.arn, &authorizer.name) {
            (Some(arn), _) => {
                let arn = stack.text(arn, &at)?;
                let key = names.iter().find(|(_, name)| arn.ends_with(&format!(":function:{name}"))).map(|it| it.0);
                key.cloned().ok_or_else(|| Problem::new(&at, format!("`{arn}` is not a function of this service")))?
            }
            (None, Some(name)) if names.contains_key(name) => name.clone(),
            (None, Some(name)) => return Err(Problem::new(&at, format!("there is no function `{name}`"))),
            (None, None) => return Err(Problem::new(&at, "expected `name` or `arn`")),
        };
        let default = || vec![DEFAULT_IDENTITY_SOURCE.to_owned()];
        let identity_sources = authorizer.identity_source.clone().unwrap_or_else(default);
        for (index, source) in identity_sources.iter().enumerate() {
            let is_known = |prefix: &str| source.strip_prefix(prefix).is_some_and(|name| !name.is_empty());
            if !IDENTITY_SOURCES.iter().any(|prefix| is_known(prefix)) {
                let reason = format!("`{source}` does not begin with one of `{}`", IDENTITY_SOURCES.join("`, `"));
                return Err(Problem::new(&at.key("identitySource").index(index), reason));
            }
        }
        found = Some(Authorizer { function, identity_sources });
    }
    Ok(found)
}

/// Converts a number of seconds that is known not to be negative.
fn seconds(count: i32) -> Duration {
    Duration::from_secs(count.unsigned_abs().into())
}

/// Tests the framework's pattern: a letter, then letters, digits and `-`, at least two characters in all.
fn is_service_name(name: &str) -> bool {
    let rest = name.strip_prefix(|first: char| first.is_ascii_alphabetic());
    rest.is_some_and(|rest| !rest.is_empty() && is_word(rest) && !rest.contains('_'))
}

fn is_environment_key(key: &str) -> bool {
    !key.starts_with(|first: char| first.is_ascii_digit()) && is_word(key) && !key.contains('-')
}

/// Tests for letters, digits, `-` and `_`, at least one character.
fn is_word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|character| character.is_ascii_alphanumeric() || "-_".contains(character))
}

#[cfg(test)]
mod tests;

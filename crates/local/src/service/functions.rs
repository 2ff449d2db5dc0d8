//! The functions of a service.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::definition::{Function, StreamMapping};
use super::error::{Problem, parse};
use super::intrinsics::Intrinsics;
use super::key_path::{KeyPath, parts};
use super::{schema, streams};

/// The framework's default for memory, in MB.
const DEFAULT_MEMORY_SIZE: i32 = 1024;

/// The framework's default for the time-out, in seconds.
const DEFAULT_TIMEOUT: i32 = 6;

/// The most characters of [a function's name](https://docs.aws.amazon.com/lambda/latest/api/API_CreateFunction.html).
const MAX_FUNCTION_NAME_LENGTH: usize = 64;

/// Definitions by function key, each with its place.
pub(super) type Definitions = BTreeMap<String, (schema::Function, KeyPath)>;

/// Reads `functions`: a mapping, or a list of mappings.
pub(super) fn definitions(functions: &Value) -> Result<Definitions, Problem> {
    let mut definitions = Definitions::new();
    for (part, at) in parts(functions, &KeyPath::default().key("functions")) {
        let part: BTreeMap<String, schema::Function> = parse(part, &at)?;
        for (key, definition) in part {
            let at = at.key(&key);
            if !is_word(&key) {
                return Err(Problem::new(&at, "a function's key has letters, digits, `-` and `_` only"));
            }
            if definition.handler.is_empty() {
                return Err(Problem::new(&at.key("handler"), "the name of a binary is needed"));
            }
            if definitions.contains_key(&key) {
                return Err(Problem::new(&at, "a function of this key is defined already"));
            }
            definitions.insert(key, (definition, at));
        }
    }
    Ok(definitions)
}

/// Makes a function. Its role is not read yet.
pub(super) fn function(
    name: String,
    definition: &schema::Function,
    at: &KeyPath,
    provider: &schema::Provider,
    intrinsics: &Intrinsics,
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
            environment.insert(key.clone(), intrinsics.text(value, &at)?);
        }
    }
    let (mut streams, mut schedules) = (Vec::new(), Vec::new());
    for (index, event) in definition.events.iter().enumerate() {
        let at = at.key("events").index(index);
        let kinds = [event.websocket.is_some(), event.stream.is_some(), event.schedule.is_some()];
        if kinds.into_iter().filter(|is_there| *is_there).count() != 1 {
            return Err(Problem::new(&at, "expected either `websocket`, `stream` or `schedule`"));
        }
        if let Some(schedule) = &event.schedule {
            let rate = rate(&schedule.rate).ok_or_else(|| {
                Problem::new(&at.key("schedule").key("rate"), "expected a rate such as `rate(5 minutes)`")
            })?;
            schedules.extend(schedule.enabled.unwrap_or(true).then_some(rate));
        }
        if let Some(stream) = &event.stream {
            let mapping = streams::mapping(stream, &at.key("stream"), intrinsics)?;
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
        timeout: Duration::from_secs(timeout.unsigned_abs().into()),
        reserved_concurrency: definition.reserved_concurrency.and_then(|count| usize::try_from(count.get()).ok()),
        environment,
        log_format: logs.log_format,
        log_level: logs.application_log_level.map(|level| level.name().to_owned()),
        streams,
        schedules,
    })
}

/// Reads [a rate](https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-rate-expressions.html), `rate(5 minutes)`.
fn rate(text: &str) -> Option<Duration> {
    let (count, unit) = text.strip_prefix("rate(")?.strip_suffix(')')?.split_once(' ')?;
    let count: u32 = count.parse().ok().filter(|count| (1..=10_000).contains(count))?;
    let minutes = match (unit, count) {
        ("minute", 1) | ("minutes", 2..) => 1,
        ("hour", 1) | ("hours", 2..) => 60,
        ("day", 1) | ("days", 2..) => 24 * 60,
        _ => return None,
    };
    Some(Duration::from_secs(u64::from(count) * minutes * 60))
}

fn is_environment_key(key: &str) -> bool {
    !key.starts_with(|first: char| first.is_ascii_digit()) && is_word(key) && !key.contains('-')
}

/// Tests for letters, digits, `-` and `_`, at least one character.
pub(super) fn is_word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|character| character.is_ascii_alphanumeric() || "-_".contains(character))
}

#[cfg(test)]
mod tests;

//! The functions of a service.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

use serde_json::Value;

use super::definition::API_ID;
use super::definition::{Function, StreamMapping};
use super::error::Problem;
use super::findings::Findings;
use super::intrinsics::{self, Intrinsics};
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

/// Reads `functions`: a mapping, or a list of mappings. A key without a value is no function.
pub(super) fn definitions(functions: &Value, findings: &Findings) -> Definitions {
    let mut definitions = Definitions::new();
    for (part, at) in parts(functions, &KeyPath::default().key("functions")) {
        let part: BTreeMap<String, Option<schema::Function>> = findings.parse(part, &at).unwrap_or_default();
        for (key, definition) in part {
            let at = at.key(&key);
            let Some(definition) = definition else { continue };
            if !is_word(&key) {
                findings.refuse(Problem::new(&at, "a function's key has letters, digits, `-` and `_` only"));
                continue;
            }
            match definitions.entry(key) {
                Entry::Vacant(entry) => drop(entry.insert((definition, at))),
                Entry::Occupied(_) => {
                    findings.refuse(Problem::new(&at, "a function of this key is defined already"));
                }
            }
        }
    }
    definitions
}

/// The sources that invoke a function, besides routes.
#[derive(Debug, Default)]
pub(super) struct Sources {
    pub(super) streams: Vec<StreamMapping>,
    pub(super) schedules: Vec<Duration>,
}

/// Reads the streams and schedules that invoke a function.
pub(super) fn sources(
    definition: &schema::Function,
    at: &KeyPath,
    intrinsics: &Intrinsics,
    findings: &Findings,
) -> Sources {
    let mut sources = Sources::default();
    for (index, event) in definition.events.iter().enumerate() {
        let at = at.key("events").index(index);
        let kinds = [event.websocket.is_some(), event.stream.is_some(), event.schedule.is_some()];
        if kinds.into_iter().filter(|is_there| *is_there).count() > 1 {
            findings.refuse(Problem::new(&at, "expected either `websocket`, `stream` or `schedule`"));
            continue;
        }
        if let Some(schedule) = &event.schedule {
            sources.schedules.extend(schedules(schedule, &at.key("schedule"), intrinsics, findings));
        }
        let stream = event.stream.as_ref();
        let mapping = stream.and_then(|stream| streams::mapping(stream, &at.key("stream"), intrinsics, findings));
        if let Some(mapping) = mapping {
            if sources.streams.iter().any(|other: &StreamMapping| other.table == mapping.table) {
                let reason = "the function has a mapping of this stream already; AWS allows one";
                findings.refuse(Problem::new(&at.key("stream").key("arn"), reason));
            } else {
                sources.streams.push(mapping);
            }
        }
    }
    sources
}

/// Makes a function. Its role is not read yet.
pub(super) fn function(
    name: String,
    (definition, at): &(schema::Function, KeyPath),
    sources: Sources,
    provider: &schema::Provider,
    intrinsics: &Intrinsics,
    findings: &Findings,
) -> Function {
    if name.len() > MAX_FUNCTION_NAME_LENGTH || !is_word(&name) {
        let reason = format!("the name `{name}` is not 1 to {MAX_FUNCTION_NAME_LENGTH} letters, digits, `-` and `_`");
        findings.refuse(Problem::new(at, reason));
    }
    let handler = definition.handler.clone().unwrap_or_default();
    if definition.image.is_some() {
        let reason = "container images do not run here: name a binary as `handler`";
        findings.refuse(Problem::new(&at.key("image"), reason));
    } else if definition.handler.is_none() {
        findings.refuse(Problem::new(at, "missing field `handler`"));
    } else if handler.is_empty() {
        findings.refuse(Problem::new(&at.key("handler"), "the name of a binary is needed"));
    }
    let mut environment = BTreeMap::new();
    let provider_at = KeyPath::default().key("provider");
    for (values, at) in [(&provider.environment, &provider_at), (&definition.environment, at)] {
        for (key, value) in values {
            let at = at.key("environment").key(key);
            if !is_environment_key(key) {
                findings.refuse(Problem::new(&at, "not a name that an environment variable can have"));
                continue;
            }
            // A function leaves out a variable of the provider in this way.
            if value.is_null() {
                environment.remove(key);
                continue;
            }
            let Some((text, placeholders)) = findings.keep(intrinsics.text_or_placeholder(value, &at)) else {
                continue;
            };
            for problem in placeholders {
                findings.ignore(&at, format!("{}; `--env {key}=VALUE` gives the variable a value", problem.reason));
            }
            if text == API_ID {
                let reason = "the API's id, and an address that the function makes of it leads to AWS: the section \
                              \"If your function sets the endpoint itself\" of the README has others";
                findings.ignore(&at, reason);
            }
            environment.insert(key.clone(), text);
        }
    }
    let memory_size =
        definition.memory_size.or(provider.memory_size).map_or(DEFAULT_MEMORY_SIZE, schema::MemorySize::get);
    let timeout = definition.timeout.or(provider.timeout).map_or(DEFAULT_TIMEOUT, schema::Timeout::get);
    let logs = definition.logs.as_ref().unwrap_or(&provider.logs.lambda);
    Function {
        name,
        handler,
        artifact: definition.package["artifact"].as_str().map(str::to_owned),
        role: None,
        memory_size_mb: memory_size.unsigned_abs(),
        timeout: Duration::from_secs(timeout.unsigned_abs().into()),
        reserved_concurrency: definition.reserved_concurrency.and_then(|count| usize::try_from(count.get()).ok()),
        environment,
        log_format: logs.log_format,
        log_level: logs.application_log_level.map(|level| level.name().to_owned()),
        streams: sources.streams,
        schedules: sources.schedules,
    }
}

/// Reads a schedule: `rate(5 minutes)`, or a mapping with one rate or several. Other schedules never come.
fn schedules(schedule: &Value, at: &KeyPath, intrinsics: &Intrinsics, findings: &Findings) -> Vec<Duration> {
    let (rates, at) = match schedule {
        Value::Object(entries) if intrinsics::call(entries).is_none() => {
            let known = ["enabled", "input", "inputPath", "inputTransformer", "method", "rate", "timezone"];
            for key in entries.keys().filter(|key| !known.contains(&key.as_str())) {
                findings.report_unknown(&at.key(key));
            }
            match schedule["enabled"].to_string().trim_matches('"') {
                "null" | "true" => {}
                "false" => return Vec::new(),
                _ => findings.refuse(Problem::new(&at.key("enabled"), "expected true or false")),
            }
            let changes = ["input", "inputPath", "inputTransformer", "method", "timezone"];
            if let Some(key) = changes.iter().find(|key| !schedule[**key].is_null()) {
                findings.ignore(at, format!("a schedule with `{key}` never comes here"));
                return Vec::new();
            }
            (&schedule["rate"], at.key("rate"))
        }
        rate => (rate, at.clone()),
    };
    let mut schedules = Vec::new();
    let expected = |at: &KeyPath| Problem::new(at, "expected a rate such as `rate(5 minutes)`");
    let rates = findings.keep(intrinsics.list(rates, &at));
    if rates.as_ref().is_some_and(Vec::is_empty) {
        findings.refuse(expected(&at));
    }
    for (rate_text, at) in rates.unwrap_or_default() {
        let text = rate_text.as_str().unwrap_or_default();
        if text.starts_with("cron(") || text.starts_with("at(") {
            findings.ignore(&at, "a schedule with `cron` or `at` never comes here");
            continue;
        }
        schedules.extend(findings.keep(rate(text).ok_or_else(|| expected(&at))));
    }
    schedules
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

//! Event source mappings: the `stream` events of functions.

use std::time::Duration;

use serde_json::Value;

use super::definition::StreamMapping;
use super::error::Problem;
use super::findings::Findings;
use super::intrinsics::Intrinsics;
use super::key_path::KeyPath;
use super::schema::{Destinations, Stream, Within};

/// The framework's default for the batch size. Lambda's own is 100.
const DEFAULT_BATCH_SIZE: i32 = 10;

/// The least `maximumRecordAgeInSeconds`, except -1.
const MIN_RECORD_AGE_S: i32 = 60;

/// Reads a `stream` event. Returns `None` for a stream that is not here, or that cannot be read.
pub(super) fn mapping(
    event: &Value,
    at: &KeyPath,
    intrinsics: &Intrinsics,
    findings: &Findings,
) -> Option<StreamMapping> {
    let arn = if event.is_object() && event["arn"] != Value::Null { &event["arn"] } else { event };
    if event["type"] == "kinesis" || is_elsewhere(arn) {
        findings.ignore(at, "this stream is not here, so its records never come");
        return None;
    }
    let stream: Stream = findings.parse(event, at)?;
    findings.keep(read(&stream, at, intrinsics))
}

/// Tells whether an ARN is that of a stream of another stack.
fn is_elsewhere(arn: &Value) -> bool {
    arn.is_string() || ["Fn::ImportValue", "Fn::Join", "Fn::Sub", "Ref"].iter().any(|name| !arn[*name].is_null())
}

fn read(stream: &Stream, at: &KeyPath, intrinsics: &Intrinsics) -> Result<StreamMapping, Problem> {
    let table = stream_table(intrinsics, &stream.arn, &at.key("arn"))?;
    let maximum_record_age = stream.maximum_record_age_in_seconds.map_or(-1, Within::get);
    if (0..MIN_RECORD_AGE_S).contains(&maximum_record_age) {
        let reason = format!("{maximum_record_age} is neither -1 nor at least {MIN_RECORD_AGE_S}");
        return Err(Problem::new(&at.key("maximumRecordAgeInSeconds"), reason));
    }
    let on_failure = match &stream.destinations {
        Some(Destinations { on_failure }) => {
            let at = at.key("destinations").key("onFailure");
            let at = if on_failure.arn.is_string() { at } else { at.key("arn") };
            Some(intrinsics.text(&on_failure.arn, &at)?)
        }
        None => None,
    };
    Ok(StreamMapping {
        table,
        batch_size: stream.batch_size.map_or(DEFAULT_BATCH_SIZE, Within::get).unsigned_abs(),
        batch_window: seconds(stream.batch_window.map_or(0, Within::get)),
        starting_position: stream.starting_position,
        maximum_retry_attempts: stream.maximum_retry_attempts.and_then(|attempts| u32::try_from(attempts.get()).ok()),
        maximum_record_age: (maximum_record_age >= 0).then(|| seconds(maximum_record_age)),
        bisect_batch_on_function_error: stream.bisect_batch_on_function_error.unwrap_or(false),
        parallelization_factor: stream.parallelization_factor.map_or(1, Within::get).unsigned_abs(),
        report_batch_item_failures: stream.function_response_type.is_some(),
        on_failure,
        filter: stream.filter_patterns.clone().unwrap_or_default(),
        enabled: stream.enabled.unwrap_or(true),
    })
}

/// Returns the table that `arn` refers to: `{"Fn::GetAtt": [table, "StreamArn"]}`.
fn stream_table(intrinsics: &Intrinsics, arn: &Value, at: &KeyPath) -> Result<String, Problem> {
    // This evaluates `arn` for its errors: the table must exist and have a stream.
    intrinsics.text(arn, at)?;
    match arn["Fn::GetAtt"].as_array().map(Vec::as_slice) {
        Some([Value::String(table), Value::String(attribute)]) if attribute == "StreamArn" => Ok(table.clone()),
        _ => Err(Problem::new(at, "the local stack needs the Fn::GetAtt of a table's StreamArn here")),
    }
}

/// Converts a number of seconds that is known not to be negative.
fn seconds(count: i32) -> Duration {
    Duration::from_secs(count.unsigned_abs().into())
}

#[cfg(test)]
mod tests;

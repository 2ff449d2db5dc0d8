//! The invocation record of a batch that was given up.
//!
//! On AWS an on-failure destination gets the record; here it goes to the log. "Retain discarded records for a DynamoDB
//! event source in Lambda", section "Example invocation record", defines its form. It has no
//! `requestContext.requestId`, because callers in the local stack do not get the id of an invocation.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::lane::{Condition, Discarded};
use super::source::SequenceNumber;

/// The source of the records, and the function that should have got them.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    pub(super) function_arn: String,
    pub(super) stream_arn: String,
    pub(super) shard_id: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct InvocationRecord<'a> {
    request_context: RequestContext<'a>,
    /// There is none if the function has never seen the records.
    #[serde(skip_serializing_if = "Option::is_none")]
    response_context: Option<ResponseContext>,
    version: &'static str,
    timestamp: String,
    #[serde(rename = "DDBStreamBatchInfo")]
    batch: BatchInfo<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RequestContext<'a> {
    function_arn: &'a str,
    condition: Condition,
    approximate_invoke_count: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ResponseContext {
    status_code: u16,
    executed_version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    function_error: Option<&'static str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BatchInfo<'a> {
    shard_id: &'a str,
    start_sequence_number: Option<SequenceNumber>,
    end_sequence_number: Option<SequenceNumber>,
    approximate_arrival_of_first_record: Option<String>,
    approximate_arrival_of_last_record: Option<String>,
    batch_size: usize,
    stream_arn: &'a str,
}

/// Writes the invocation record of `discarded` as JSON. `now` is the time since the epoch.
pub(super) fn invocation_record(discarded: &Discarded, origin: &Origin, now: Duration) -> String {
    let (first, last) = (discarded.records.first(), discarded.records.last());
    let record = InvocationRecord {
        request_context: RequestContext {
            function_arn: &origin.function_arn,
            condition: discarded.condition,
            approximate_invoke_count: discarded.invocations,
        },
        response_context: (discarded.invocations > 0).then_some(ResponseContext {
            status_code: 200,
            executed_version: "$LATEST",
            function_error: discarded.function_error.then_some("Unhandled"),
        }),
        version: "1.0",
        timestamp: timestamp(now).strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
        batch: BatchInfo {
            shard_id: &origin.shard_id,
            start_sequence_number: first.map(|record| record.sequence_number),
            end_sequence_number: last.map(|record| record.sequence_number),
            approximate_arrival_of_first_record: first.map(|record| timestamp(record.created).to_string()),
            approximate_arrival_of_last_record: last.map(|record| timestamp(record.created).to_string()),
            batch_size: discarded.records.len(),
            stream_arn: &origin.stream_arn,
        },
    };
    serde_json::to_string(&record).expect("the record has string keys and no fallible values")
}

fn timestamp(since_epoch: Duration) -> Timestamp {
    Timestamp::UNIX_EPOCH.saturating_add(since_epoch).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::stream::source::Record;

    #[test]
    fn an_invocation_record_has_the_shape_of_the_guides_example() {
        let record = |number, created| Record {
            sequence_number: SequenceNumber::of(number),
            created: Duration::from_secs(created),
            partition_hash: 0,
            key_hash: 0,
            json: String::new(),
        };
        let discarded = Discarded {
            records: vec![record(800_000_000_003_126_276_362, 1_573_690_399), record(801, 1_573_690_400)],
            condition: Condition::RetryAttemptsExhausted,
            invocations: 3,
            function_error: true,
        };
        let origin = Origin {
            function_arn: "arn:aws:lambda:us-east-2:123456789012:function:myfunction".to_owned(),
            stream_arn: "arn:aws:dynamodb:us-east-2:123456789012:table/mytable/stream/2019".to_owned(),
            shard_id: "shardId-1".to_owned(),
        };
        let text = invocation_record(&discarded, &origin, Duration::from_millis(1_573_691_886_021));
        let expected = json!({
            "requestContext": {
                "functionArn": "arn:aws:lambda:us-east-2:123456789012:function:myfunction",
                "condition": "RetryAttemptsExhausted",
                "approximateInvokeCount": 3,
            },
            "responseContext": {"statusCode": 200, "executedVersion": "$LATEST", "functionError": "Unhandled"},
            "version": "1.0",
            "timestamp": "2019-11-14T00:38:06.021Z",
            "DDBStreamBatchInfo": {
                "shardId": "shardId-1",
                "startSequenceNumber": "800000000003126276362",
                "endSequenceNumber": "801",
                "approximateArrivalOfFirstRecord": "2019-11-14T00:13:19Z",
                "approximateArrivalOfLastRecord": "2019-11-14T00:13:20Z",
                "batchSize": 2,
                "streamArn": "arn:aws:dynamodb:us-east-2:123456789012:table/mytable/stream/2019",
            },
        });
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected);
    }
}

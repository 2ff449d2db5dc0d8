//! The meaning of a function's response to a batch.
//!
//! Implements ["Configuring partial batch response with DynamoDB and
//! Lambda"](https://docs.aws.amazon.com/lambda/latest/dg/services-ddb-batchfailurereporting.html).

use serde_json::Value;

use super::source::SequenceNumber;

/// The end of an invocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// All records are done.
    Succeeded,
    /// The records before this one are done. This one and the later ones are not.
    FailedFrom(SequenceNumber),
    /// No record is done: the response says so, or AWS does not understand it.
    Failed,
    /// No record is done: the function reported an error, crashed or ran out of time.
    FunctionError,
    /// Lambda throttled the event, so no function has seen it. "Throttles and service errors" do not count as attempts.
    Throttled,
}

impl Answer {
    /// Reads the response of a function that returned without an error. Without `ReportBatchItemFailures` among the
    /// `FunctionResponseTypes`, the response does not matter.
    ///
    /// A response that is neither an object nor null counts as a failure. That is an assumption: AWS documents it for
    /// invalid JSON only, and only for SQS.
    pub(super) fn parse(response: &[u8], report_batch_item_failures: bool) -> Self {
        if !report_batch_item_failures || response.is_empty() {
            return Self::Succeeded;
        }
        let failures = match serde_json::from_slice(response) {
            Ok(Value::Null) => return Self::Succeeded,
            Ok(Value::Object(mut response)) => response.remove("batchItemFailures").unwrap_or_default(),
            _ => return Self::Failed,
        };
        let failures = match failures {
            Value::Null => return Self::Succeeded,
            Value::Array(failures) => failures,
            _ => return Self::Failed,
        };
        let identifier = |failure: &Value| SequenceNumber::parse(failure["itemIdentifier"].as_str()?);
        let identifiers: Option<Vec<_>> = failures.iter().map(identifier).collect();
        match identifiers.map(|identifiers| identifiers.into_iter().min()) {
            Some(Some(lowest)) => Self::FailedFrom(lowest),
            Some(None) => Self::Succeeded,
            None => Self::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(response: &str) -> Answer {
        Answer::parse(response.as_bytes(), true)
    }

    #[test]
    fn an_empty_or_null_response_or_list_is_a_success() {
        for response in ["", "null", "{}", r#"{"batchItemFailures":[]}"#, r#"{"batchItemFailures":null}"#] {
            assert_eq!(parsed(response), Answer::Succeeded, "{response}");
        }
        assert_eq!(parsed(r#"{"statusCode":200}"#), Answer::Succeeded);
    }

    #[test]
    fn the_lowest_number_listed_is_where_the_failure_begins() {
        let response =
            r#"{"batchItemFailures":[{"itemIdentifier":"10"},{"itemIdentifier":"9"},{"itemIdentifier":"11"}]}"#;
        assert_eq!(parsed(response), Answer::FailedFrom(SequenceNumber::of(9)));
    }

    #[test]
    fn an_empty_or_null_identifier_a_wrong_key_and_anything_else_fail_the_batch() {
        for response in [
            r#"{"batchItemFailures":[{"itemIdentifier":""}]}"#,
            r#"{"batchItemFailures":[{"itemIdentifier":null}]}"#,
            r#"{"batchItemFailures":[{"itemIdentifier":7}]}"#,
            r#"{"batchItemFailures":[{"sequenceNumber":"7"}]}"#,
            r#"{"batchItemFailures":[{"itemIdentifier":"7"},{"itemIdentifier":"seven"}]}"#,
            r#"{"batchItemFailures":["7"]}"#,
            r#"{"batchItemFailures":"7"}"#,
            r#""done""#,
            "[]",
            "{",
        ] {
            assert_eq!(parsed(response), Answer::Failed, "{response}");
        }
    }

    #[test]
    fn the_response_of_a_function_that_does_not_report_is_ignored() {
        for response in [r#"{"batchItemFailures":[{"itemIdentifier":"7"}]}"#, "{", ""] {
            assert_eq!(Answer::parse(response.as_bytes(), false), Answer::Succeeded, "{response}");
        }
    }
}

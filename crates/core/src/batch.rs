//! The Lambda glue for a batch of stream records: groups are served at the same time, and each group in order.

use std::time::{Duration, Instant};

use aws_lambda_events::dynamodb::{Event, EventRecord};
use aws_lambda_events::streams::{DynamoDbBatchItemFailure, DynamoDbEventResponse};
use futures_util::stream::{self, StreamExt};
use lambda_runtime::LambdaEvent;
use lambda_runtime::tracing::info;
use serde_dynamo::AttributeValue;

use crate::backend::Backend;
use crate::deadline::Deadline;
use crate::event::attribute;
use crate::function::milliseconds;
use crate::log::DETAIL;

/// With less time than this, a record is left to the next invocation, which has all of its own.
const MIN_TIME: Duration = Duration::from_secs(1);

/// How many groups are served at the same time. The posts of all of them share the gateway's slots.
const GROUPS_AT_ONCE: usize = 16;

/// The key of a record's item: topic and id.
#[must_use]
pub fn key(record: &EventRecord) -> (&str, &str) {
    let text = |name| match record.change.keys.get(name) {
        Some(AttributeValue::S(text)) => text.as_str(),
        _ => "",
    };
    (text(attribute::TOPIC), text(attribute::ID))
}

/// Serves the inserts of a batch with `serve`, which returns the type of the fault that makes a record come again.
/// Records with one `topic` are served in their order, and topics at the same time.
///
/// The response names the first record that failed. Lambda then delivers it again, and all records behind it; those of
/// other topics that were served already repeat their frames.
pub async fn serve<F>(
    backend: &Backend,
    event: LambdaEvent<Event>,
    serve: impl Fn(EventRecord, Deadline) -> F,
) -> DynamoDbEventResponse
where
    F: Future<Output = Result<(), &'static str>>,
{
    let serve = &serve;
    let serve_all = |records, deadline| async move {
        for record in records {
            serve(record, deadline).await?;
        }
        Ok(())
    };
    serve_together(backend, event, |_| false, serve_all).await
}

/// The same, but `serve` gets all inserts of a topic at once, if the topic `is_together`. If they fail, all of them come again.
pub async fn serve_together<F>(
    backend: &Backend,
    event: LambdaEvent<Event>,
    is_together: impl Fn(&str) -> bool,
    serve: impl Fn(Vec<EventRecord>, Deadline) -> F,
) -> DynamoDbEventResponse
where
    F: Future<Output = Result<(), &'static str>>,
{
    let start = Instant::now();
    let deadline = Deadline::of(&event.context);
    let mut groups: Vec<Vec<(usize, EventRecord)>> = Vec::new();
    for (index, record) in event.payload.records.into_iter().enumerate() {
        let topic = key(&record).0;
        match groups.iter_mut().find(|group| key(&group[0].1).0 == topic) {
            Some(group) => group.push((index, record)),
            None => groups.push(vec![(index, record)]),
        }
    }
    let (serve, is_together) = (&serve, &is_together);
    let served = groups.into_iter().map(|mut group| async move {
        group.retain(|(_, record)| record.event_name == "INSERT");
        while let Some((index, first)) = group.first() {
            let (index, sequence_number) = (*index, first.change.sequence_number.clone());
            let count = if is_together(key(first).0) { group.len() } else { 1 };
            let records = group.drain(..count).map(|(_, record)| record).collect();
            let is_late = index > 0 && deadline.left() < MIN_TIME;
            let result = if is_late { Err(None) } else { serve(records, deadline).await.map_err(Some) };
            if let Err(error_type) = result {
                return Some((index, sequence_number, error_type));
            }
        }
        None
    });
    let failures: Vec<_> = stream::iter(served).buffer_unordered(GROUPS_AT_ONCE).collect().await;
    respond(backend, start, failures.into_iter().flatten())
}

/// Answers Lambda with the first record that failed, and counts the batch. A failure is the record's place in the batch, its
/// sequence number, and the type of the fault, unless only the time was over.
pub fn respond(
    backend: &Backend,
    start: Instant,
    failures: impl Iterator<Item = (usize, Option<String>, Option<&'static str>)>,
) -> DynamoDbEventResponse {
    let first = failures.min_by_key(|(index, ..)| *index);
    let mut response = DynamoDbEventResponse::default();
    let mut fault = None;
    if let Some((_, sequence_number, error_type)) = first {
        let mut failure = DynamoDbBatchItemFailure::default();
        failure.item_identifier = sequence_number;
        response.batch_item_failures = vec![failure];
        fault = error_type;
    }
    info!(target: DETAIL, duration_ms = milliseconds(start), "a batch was served");
    backend.metrics.served(fault);
    response
}

#[cfg(test)]
mod tests;

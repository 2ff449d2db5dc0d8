//! Publishes the inserts of a batch, one after the other, so that each topic keeps its order.

use std::time::{Duration, Instant};

use aws_lambda_events::dynamodb::{Event, EventRecord};
use aws_lambda_events::streams::{DynamoDbBatchItemFailure, DynamoDbEventResponse};
use futures_util::future;
use lambda_runtime::LambdaEvent;
use lambda_runtime::tracing::{error, info};
use switchboard_core::Error;
use switchboard_core::deadline::Deadline;
use switchboard_core::function::{Backend, milliseconds};
use switchboard_core::publication::{Fanout, Publication};

use crate::record;

/// With less time than this a record is left to the next invocation, which has all of its own.
const ENOUGH: Duration = Duration::from_secs(1);

/// Answers with the first record that must come again, and with it all that follow: whoever has been served is behind
/// it, so the next invocation repeats no more than that record's own frames. An event that can never be published is
/// given up at once, with its key in the log, because it would be as wrong the next time.
pub(crate) async fn handle(backend: &Backend, event: LambdaEvent<Event>) -> Result<DynamoDbEventResponse, Error> {
    let start = Instant::now();
    let deadline = Deadline::of(&event.context);
    let mut error_type = None;
    let mut response = DynamoDbEventResponse::default();
    for (count, record) in event.payload.records.iter().enumerate() {
        let late = count > 0 && deadline.left() < ENOUGH;
        let published = if late { Err(None) } else { publish(backend, record, deadline).await.map_err(Some) };
        if let Err(reason) = published {
            error_type = reason;
            let mut failure = DynamoDbBatchItemFailure::default();
            failure.item_identifier = record.change.sequence_number.clone();
            response.batch_item_failures = vec![failure];
            break;
        }
    }
    backend.metrics.served(milliseconds(start), error_type);
    Ok(response)
}

/// Publishes one record, and logs what became of it. The error is the type of the fault that makes it come again.
async fn publish(backend: &Backend, record: &EventRecord, deadline: Deadline) -> Result<(), &'static str> {
    if record.event_name != "INSERT" {
        return Ok(());
    }
    let (topic, id) = record::key(record);
    let publications = match record::publications(&record.change.new_image) {
        Ok(publications) => publications,
        Err(poison) => {
            error!(topic.name = topic, event.id = id, outcome = "poison", error = %poison, "an event was given up");
            return Ok(());
        }
    };
    let parts = publications.iter().map(|publication| part(backend, publication, &id, deadline));
    match future::try_join_all(parts).await {
        Ok(parts) => {
            let total = |count: fn(&Fanout) -> usize| parts.iter().map(count).sum::<usize>();
            info!(
                topic.name = topic,
                event.id = id,
                outcome = "ok",
                delivered = total(|part| part.delivered),
                stale = total(|part| part.stale),
                failed = total(|part| part.failed),
                "published"
            );
            Ok(())
        }
        Err(fault) => {
            let outcome = fault.error_type();
            error!(topic.name = topic, event.id = id, outcome, error = %fault, "an event has to come again");
            Err(outcome)
        }
    }
}

async fn part(backend: &Backend, publication: &Publication, id: &str, deadline: Deadline) -> Result<Fanout, Error> {
    let receivers = backend.store.receivers(&publication.audience, publication.after.as_ref());
    let fanout = backend.publisher.publish(publication, receivers, id, deadline).await?;
    fanout.reached(publication.topic())?;
    Ok(fanout)
}

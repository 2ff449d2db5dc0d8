//! Goes on with publishes that ended early. Continuations have this function to themselves, so that events of backends
//! never wait for them.

use aws_lambda_events::dynamodb::{Event, EventRecord};
use aws_lambda_events::streams::DynamoDbEventResponse;
use lambda_runtime::LambdaEvent;
use lambda_runtime::tracing::{error, info};
use switchboard_core::Error;
use switchboard_core::backend::Backend;
use switchboard_core::batch;
use switchboard_core::deadline::Deadline;
use switchboard_core::event::continuation;
use switchboard_core::gateway::Gateway;

/// Serves the continuations of a batch at the same time.
///
/// # Errors
///
/// None. The response names the records that come again.
pub async fn handle(
    backend: &Backend,
    gateway: &Gateway,
    event: LambdaEvent<Event>,
) -> Result<DynamoDbEventResponse, Error> {
    Ok(batch::serve(backend, event, |record, deadline| go_on(backend, gateway, record, deadline)).await)
}

/// Goes on with one publish. The error is the type of the fault that makes the continuation come again.
async fn go_on(
    backend: &Backend,
    gateway: &Gateway,
    record: EventRecord,
    deadline: Deadline,
) -> Result<(), &'static str> {
    let name = batch::key(&record).0.to_owned();
    let publication = match continuation(record.change.new_image) {
        Ok(publication) => publication,
        Err(unknown) => {
            error!(continuation = name, outcome = "poison", error = %unknown, "a continuation was given up");
            return Ok(());
        }
    };
    let (topic, id) = (publication.topic().to_owned(), publication.id.clone());
    match backend.publisher.go_on(gateway, publication, deadline).await {
        Ok(fanout) => {
            info!(
                topic.name = topic,
                event.id = id,
                outcome = "ok",
                delivered = fanout.delivered,
                stale = fanout.stale,
                dropped = fanout.dropped,
                failed = fanout.failed,
                continued = fanout.continued,
                "published"
            );
            Ok(())
        }
        Err(fault) => {
            let outcome = fault.error_type();
            error!(topic.name = topic, event.id = id, outcome, error = %fault, "a continuation has to come again");
            Err(outcome)
        }
    }
}

//! Tells the subscribers of topics who joined, who left, and who says something else: one frame for each topic and batch.
//!
//! A record only says where to look. `core::presence` compares what is true with what was told, so a batch that comes again,
//! or late, tells nothing twice.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use aws_lambda_events::dynamodb::{Event, EventRecord};
use aws_lambda_events::streams::DynamoDbEventResponse;
use futures_util::stream::{self, StreamExt};
use lambda_runtime::LambdaEvent;
use lambda_runtime::tracing::{error, info};
use serde_dynamo::AttributeValue;
use serde_json::Value;
use switchboard_core::backend::Backend;
use switchboard_core::batch;
use switchboard_core::deadline::Deadline;
use switchboard_core::gateway::Gateway;
use switchboard_core::log::DETAIL;
use switchboard_core::presence::{Change, ChangedUsers};
use switchboard_core::topic::Topic;
use switchboard_core::{ClientError, Error, Failure};

use crate::sweep;

/// How many topics are served at the same time. The posts of all of them share the gateway's slots.
const TOPICS_AT_ONCE: usize = 8;

/// What a batch says about one topic.
#[derive(Debug, Default)]
struct TopicChanges {
    /// The place of its first record in the batch, and the sequence number.
    first: usize,
    sequence_number: Option<String>,
    users: ChangedUsers,
}

/// The longest that a batch may take. The function has more time, for looking at old rows.
const BATCH_TIME: Duration = Duration::from_secs(60);

/// Serves a batch of the stream. Any other event is the schedule, and says that it is time to look at old rows.
///
/// # Errors
///
/// When old rows could not be looked at, and when an event has records of another kind.
pub async fn handle(
    backend: &Backend,
    gateway: &Gateway,
    event: LambdaEvent<Value>,
) -> Result<DynamoDbEventResponse, Error> {
    let LambdaEvent { payload, context } = event;
    let deadline = Deadline::of(&context);
    if payload.get("Records").is_none() {
        let swept = sweep::sweep(backend, gateway, deadline).await.map_err(fault);
        let swept = swept.inspect_err(|fault| {
            error!(outcome = fault.error_type(), error = %fault, "old members could not be verified");
        });
        backend.metrics.served(swept.as_ref().err().map(Error::error_type));
        return swept.map(|()| DynamoDbEventResponse::default());
    }
    let event = serde_json::from_value(payload).map_err(|_| Error::Event { missing: "records of a table" })?;
    Ok(serve(backend, gateway, event, deadline.at_most(BATCH_TIME)).await)
}

/// Serves the topics of a batch at the same time. The response names the record from which on the batch comes again.
async fn serve(backend: &Backend, gateway: &Gateway, event: Event, deadline: Deadline) -> DynamoDbEventResponse {
    let start = Instant::now();
    let mut topics: BTreeMap<String, TopicChanges> = BTreeMap::new();
    for (index, record) in event.records.iter().enumerate() {
        let Some((topic, users)) = changed_users(record) else { continue };
        let sequence_number = record.change.sequence_number.clone();
        let changes = topics.entry(topic).or_insert_with(|| TopicChanges {
            first: index,
            sequence_number: sequence_number.clone(),
            users: ChangedUsers::new(),
        });
        for user in users {
            changes.users.entry(user).or_default().extend(sequence_number.clone());
        }
    }
    let serve = topics.into_iter().map(async |(topic, changes)| {
        let told = tell(backend, gateway, &topic, &changes.users, deadline).await;
        let fault = told.err()?;
        let outcome = fault.error_type();
        error!(topic.name = topic, outcome, error = %fault, "changes of members have to come again");
        Some((changes.first, changes.sequence_number, Some(outcome)))
    });
    let serve: Vec<_> = serve.collect();
    let failures: Vec<_> = stream::iter(serve).buffer_unordered(TOPICS_AT_ONCE).collect().await;
    batch::respond(backend, start, failures.into_iter().flatten())
}

/// Returns the topic of a record and the users that may have changed there. If only the end of a row has moved, it returns none.
fn changed_users(record: &EventRecord) -> Option<(String, Vec<String>)> {
    let (old, new) = (&record.change.old_image, &record.change.new_image);
    let text = |item: &serde_dynamo::Item, name: &str| match item.get(name) {
        Some(AttributeValue::S(text)) => Some(text.clone()),
        _ => None,
    };
    if ["userId", "data"].iter().all(|name| text(old, name) == text(new, name)) {
        return None;
    }
    let topic = text(&record.change.keys, "topic")?;
    let mut users: Vec<_> = [old, new].into_iter().filter_map(|image| text(image, "userId")).collect();
    users.dedup();
    Some((topic, users))
}

/// Tells the subscribers of a topic what has changed, and notes that they know.
async fn tell(
    backend: &Backend,
    gateway: &Gateway,
    name: &str,
    users: &ChangedUsers,
    deadline: Deadline,
) -> Result<(), Error> {
    let Ok(topic) = Topic::parse(name) else { return Ok(()) };
    if !backend.config.topic_rules.has_presence(&topic) {
        return Ok(());
    }
    let announcement = backend.presence.announce(&topic, users, deadline).await.map_err(fault)?;
    let mut delivered = 0;
    for publication in announcement.publications(name) {
        let receivers = backend.store.receivers(&publication.audience, &publication.position);
        delivered += backend.publisher.publish(gateway, publication, receivers, deadline).await?.delivered;
    }
    backend.presence.settle(&announcement, deadline).await.map_err(fault)?;
    let count = |is_it: fn(&Change) -> bool| announcement.changes.values().filter(|change| is_it(change)).count();
    info!(
        target: DETAIL,
        {
            topic.name = name,
            outcome = "ok",
            joined = count(|change| matches!(change, Change::Joined(_))),
            left = count(|change| matches!(change, Change::Left)),
            says = count(|change| matches!(change, Change::Says(_))),
            delivered
        },
        "members have changed"
    );
    Ok(())
}

/// No client waits here, so what is only for a moment too much for DynamoDB is a fault: the batch comes again.
fn fault(failure: Failure) -> Error {
    match failure {
        Failure::Fault(fault) => fault,
        Failure::Mistake(mistake) => Error::Unfinished {
            operation: "UpdateItem",
            table: "messages".to_owned(),
            left: usize::from(mistake == ClientError::Busy),
        },
    }
}

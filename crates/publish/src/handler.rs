//! Publishes the events that backends put into the events table, and ends the connections that they want ended.

use std::fmt::Display;

use aws_lambda_events::dynamodb::{Event, EventRecord};
use aws_lambda_events::streams::DynamoDbEventResponse;
use futures_util::future;
use lambda_runtime::LambdaEvent;
use lambda_runtime::tracing::{error, info};
use switchboard_core::backend::Backend;
use switchboard_core::batch;
use switchboard_core::deadline::Deadline;
use switchboard_core::frame::{check_kept, disconnected};
use switchboard_core::gateway::Gateway;
use switchboard_core::history::{Appended, Draft, Writer};
use switchboard_core::log::DETAIL;
use switchboard_core::publication::{Audience, Content, Fanout, Kept, Publication};
use switchboard_core::topic::Topic;
use switchboard_core::{Error, Failure, event};

use crate::record::{self, Disconnect};

/// How many bytes of messages one publication has at most. Its rest must fit into one item, which has 400 KB.
const MAX_TOGETHER: usize = 128 * 1024;

/// The bytes that a message takes in that item besides its own text.
const MESSAGE_ENVELOPE: usize = 16;

/// Serves the topics of a batch at the same time, and the events of one topic in their order.
///
/// # Errors
///
/// None. The response names the records that come again.
pub async fn handle(
    backend: &Backend,
    gateway: &Gateway,
    event: LambdaEvent<Event>,
) -> Result<DynamoDbEventResponse, Error> {
    let invocation_id = event.context.request_id.clone();
    let rules = &backend.config.topic_rules;
    let is_together = |topic: &str| Topic::parse(topic).is_ok_and(|topic| rules.is_batched(&topic));
    let invocation_id = &invocation_id;
    let serve = |records: Vec<EventRecord>, deadline| async move {
        match &records[..] {
            [record] => publish(backend, gateway, record, invocation_id, deadline).await,
            _ => together(backend, gateway, &records, deadline).await,
        }
    };
    Ok(batch::serve_together(backend, event, is_together, serve).await)
}

/// Publishes one event, and logs what became of it. The error is the type of the fault that makes it come again. An
/// event that can never be published is given up at once, because it would be as wrong the next time.
async fn publish(
    backend: &Backend,
    gateway: &Gateway,
    record: &EventRecord,
    invocation_id: &str,
    deadline: Deadline,
) -> Result<(), &'static str> {
    let (topic, id) = batch::key(record);
    if record.change.new_image.contains_key(event::attribute::ORIGIN_TOPIC) {
        // The mapping's filter leaves continuations to `fan-out`.
        error!(topic.name = topic, event.id = id, "a continuation is ignored: the mapping of `publish` has no filter");
        return Ok(());
    }
    let image = &record.change.new_image;
    let give_up = |poison: &dyn Display| {
        error!(topic.name = topic, event.id = id, outcome = "poison", error = %poison, "an event was given up");
        Ok(())
    };
    let again = |fault: &Error| {
        let outcome = fault.error_type();
        error!(topic.name = topic, event.id = id, outcome, error = %fault, "an event has to come again");
        Err(outcome)
    };
    match record::disconnect(image) {
        Ok(None) => {}
        Ok(Some(Disconnect { address, reason })) => {
            let last = disconnected(&reason);
            return match backend.publisher.disconnect(gateway, &address, last, deadline).await {
                Ok(count) => {
                    info!(topic.name = topic, event.id = id, outcome = "ok", count, "connections were ended");
                    Ok(())
                }
                Err(fault) => again(&fault),
            };
        }
        Err(poison) => return give_up(&poison),
    }
    let mut publications = match record::publications(image, id) {
        Ok(publications) => publications,
        Err(poison) => return give_up(&poison),
    };
    for publication in &publications {
        if let Audience::Topic(topic) = &publication.audience
            && let Err(poison) = backend.config.topic_rules.check_one(topic)
        {
            return give_up(&poison);
        }
    }
    // Only an event to everybody has several parts, and nothing keeps it.
    for publication in &mut publications {
        match keep(backend, publication, invocation_id, deadline).await {
            Ok(kept) => publication.kept = kept,
            Err(Failure::Fault(fault)) => return again(&fault),
            Err(Failure::Mistake(mistake)) if mistake.is_temporary() => {
                error!(topic.name = topic, event.id = id, outcome = mistake.code(), "an event has to come again");
                return Err("Store.Throttled");
            }
            Err(Failure::Mistake(poison)) => return give_up(&poison),
        }
    }
    let parts = publications.into_iter().map(|publication| part(backend, gateway, publication, deadline));
    match future::join_all(parts).await.into_iter().collect::<Result<Vec<_>, _>>() {
        Ok(parts) => {
            let total = |count: fn(&Fanout) -> usize| parts.iter().map(count).sum::<usize>();
            info!(
                target: DETAIL,
                {
                    topic.name = topic,
                    event.id = id,
                    outcome = "ok",
                    delivered = total(|part| part.delivered),
                    stale = total(|part| part.stale),
                    failed = total(|part| part.failed),
                    continued = parts.iter().any(|part| part.continued)
                },
                "published"
            );
            Ok(())
        }
        Err(fault) => again(&fault),
    }
}

/// Publishes the events of a topic whose messages go out together, in as few publications as possible. An event that can never be
/// published is given up, and the others go on without it.
async fn together(
    backend: &Backend,
    gateway: &Gateway,
    records: &[EventRecord],
    deadline: Deadline,
) -> Result<(), &'static str> {
    let mut publications: Vec<(usize, Publication)> = Vec::new();
    for record in records {
        let (topic, id) = batch::key(record);
        let read = record::publications(&record.change.new_image, id).map(|mut read| read.pop());
        let publication = match read {
            Ok(publication) => publication,
            Err(poison) => {
                error!(topic.name = topic, event.id = id, outcome = "poison", error = %poison, "an event was given up");
                continue;
            }
        };
        let Some(Publication { content: Content::Data(data), .. }) = &publication else { continue };
        let bytes: usize = data.iter().map(|message| message.get().len() + MESSAGE_ENVELOPE).sum();
        match publications.last_mut() {
            Some((sum, Publication { content: Content::Data(sum_data), .. })) if *sum + bytes <= MAX_TOGETHER => {
                *sum += bytes;
                sum_data.extend(data.iter().cloned());
            }
            _ => publications.extend(publication.map(|publication| (bytes, publication))),
        }
    }
    for (_, publication) in publications {
        let (topic, id) = (publication.topic().to_owned(), publication.id.clone());
        match part(backend, gateway, publication, deadline).await {
            Ok(fanout) => info!(
                target: DETAIL,
                { topic.name = topic, event.id = id, outcome = "ok", delivered = fanout.delivered, continued = fanout.continued },
                "published"
            ),
            Err(fault) => {
                let outcome = fault.error_type();
                error!(topic.name = topic, event.id = id, outcome, error = %fault, "events have to come again");
                return Err(outcome);
            }
        }
    }
    Ok(())
}

/// Keeps an event on a topic with history. Its id is bound to its number, so it has one number however often the stream
/// repeats it.
async fn keep(
    backend: &Backend,
    publication: &Publication,
    invocation_id: &str,
    deadline: Deadline,
) -> Result<Option<Kept>, Failure> {
    let Audience::Topic(topic) = &publication.audience else { return Ok(None) };
    let Some(log) = backend.history.of(topic) else { return Ok(None) };
    let (field, payloads, sender) = match &publication.content {
        Content::Data(data) | Content::Frames(data) => {
            ("data", data.iter().map(|data| &**data).collect::<Vec<_>>(), None)
        }
        Content::DirectMessage { sender, body } => ("body", vec![&**body], Some(sender)),
    };
    payloads.iter().try_for_each(|payload| check_kept(field, payload))?;
    let id = Some((Writer::Backend, publication.id.as_str()));
    let draft = Draft { jsons: &payloads, sender, id, again: false, invocation_id };
    let Appended { stamp, .. } = log.append(&draft, deadline).await?;
    Ok(Some(Kept { stamp, sender: sender.cloned() }))
}

async fn part(
    backend: &Backend,
    gateway: &Gateway,
    publication: Publication,
    deadline: Deadline,
) -> Result<Fanout, Error> {
    let receivers = backend.store.receivers(&publication.audience, &publication.position);
    backend.publisher.publish(gateway, publication, receivers, deadline).await
}

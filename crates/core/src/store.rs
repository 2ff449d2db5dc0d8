//! The tables of connections and of topics: who is connected, and who listens to what.
//!
//! | table | key | attributes |
//! |---|---|---|
//! | connections | `connectionId` | `userId?` S · `topics` SS, the reverse lookup · `connectedAt` N, epoch **milliseconds** · `ttl` N, epoch **seconds** · `goneAt?` N, ms: the gateway said 410 then · `closedAt?` N, ms: a tombstone |
//! | topics | `topic`, `connectionId` | `subscriptionId?` S · `connectedAt` N · `ttl` N |
//!
//! A connection's `topics` name every row that it has in the topics table, its user's address included. No index is
//! needed for that reason. Rows outlive their connection by [`TTL_MARGIN`] at most, and DynamoDB deletes expired items
//! late, so readers drop what has expired.
//!
//! A connection that ended leaves a **tombstone** for [`TOMBSTONE_TTL_S`]: its last frames may still be on their way,
//! and they need their sender. Nobody delivers to a tombstone.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::SdkError;
use aws_sdk_dynamodb::operation::transact_write_items::TransactWriteItemsError;
use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::types::builders::UpdateBuilder;
use aws_sdk_dynamodb::types::{
    AttributeValue, CancellationReason, Delete, DeleteRequest, KeysAndAttributes, Put, PutRequest, ReturnValue,
    ReturnValuesOnConditionCheckFailure, TransactWriteItem, Update, WriteRequest,
};
use lambda_runtime::tracing::error;

use crate::clock::{now_ms, now_s};
use crate::config::Config;
use crate::connection::{Connection, ConnectionId, UserId};
use crate::deadline::{Backoff, Deadline};
use crate::publication::{Audience, Position};
use crate::receivers::Receivers;
use crate::topic::{Subscriber, Topic};
use crate::{ClientError, Error, Failure};

/// How many topics a connection may listen to, its own address included.
pub const MAX_TOPICS: usize = 100;

/// How long rows of a live connection outlast the longest life that the gateway gives it.
pub const TTL_MARGIN: Duration = Duration::from_secs(5 * 60);

/// How long the frames of a connection that ended still find their sender, in seconds. A frame may wait for a free
/// execution environment, but the gateway gives up on it after 29 s.
pub const TOMBSTONE_TTL_S: i64 = 60;

/// A second 410 confirms the first one when it comes this much later. API Gateway has been seen to answer 410 for a
/// connection that was alive, so two answers of one moment are no proof. Hotsock's change log, version 1.3.2, reports it.
const CONFIRMED_AFTER_MS: i64 = 5_000;

/// A mark that is older than this says nothing any more: the next 410 is the first one again.
const FORGIVEN_AFTER_MS: i64 = 10 * 60 * 1000;

/// A write that DynamoDB puts off is tried this often, and for this long.
const MAX_ATTEMPTS: u32 = 5;
const MAX_TIME: Duration = Duration::from_secs(3);

/// `BatchWriteItem` takes at most 25 put and delete requests (Amazon DynamoDB API Reference).
const MAX_BATCH: usize = 25;

pub(crate) const CONNECTION_ID: &str = "connectionId";
const USER_ID: &str = "userId";
const TOPICS: &str = "topics";
pub(crate) const CONNECTED_AT: &str = "connectedAt";
const CLOSED_AT: &str = "closedAt";
const GONE_AT: &str = "goneAt";
pub(crate) const TTL: &str = "ttl";
const TOPIC: &str = "topic";
pub(crate) const SUBSCRIPTION_ID: &str = "subscriptionId";

pub(crate) type Item = HashMap<String, AttributeValue>;

/// The connections table and the topics table.
#[derive(Debug, Clone)]
pub struct ConnectionStore {
    dynamodb: Client,
    connections: String,
    topics: String,
    connection_ttl: Duration,
}

/// What a 410 says about a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gone {
    /// It is the first 410 for a while, and the connection is marked now. The rows stay.
    First,
    /// The first 410 was a moment ago. The rows stay.
    Suspected,
    /// It is the second 410, long enough after the first one.
    Confirmed,
    /// The connection has no row, or only a tombstone.
    Unknown,
}

impl ConnectionStore {
    /// The tables that `config` names, through `dynamodb`.
    #[must_use]
    pub fn new(dynamodb: Client, config: &Config) -> Self {
        Self {
            dynamodb,
            connections: config.connections_table.clone(),
            topics: config.topics_table.clone(),
            connection_ttl: config.connection_ttl,
        }
    }

    /// Stores a new connection and subscribes it to its user's address: one `BatchWriteItem`.
    ///
    /// # Errors
    ///
    /// When the rows could not be written before the deadline.
    pub async fn put(&self, connection: &Connection, deadline: Deadline) -> Result<(), Error> {
        let mut row = self.row(&connection.id, connection.connected_at_ms, None);
        let mut writes = HashMap::new();
        if let Some(address) = connection.user_id.as_ref().map(Topic::address) {
            let mut address_row = row.clone();
            address_row.insert(TOPIC.to_owned(), string(address.as_str()));
            writes.insert(self.topics.clone(), vec![put(address_row)]);
            row.insert(TOPICS.to_owned(), AttributeValue::Ss(vec![address.as_str().to_owned()]));
        }
        if let Some(user_id) = &connection.user_id {
            row.insert(USER_ID.to_owned(), string(user_id.as_str()));
        }
        writes.insert(self.connections.clone(), vec![put(row)]);
        self.batch_write(writes, deadline).await
    }

    /// Reads one connection, which may have ended a moment ago. `None` means that there is no record: the client has to
    /// connect again. One eventually consistent `GetItem`, and a strongly consistent one when that finds nothing.
    ///
    /// # Errors
    ///
    /// When DynamoDB fails.
    pub async fn get(&self, id: &ConnectionId) -> Result<Option<Connection>, Error> {
        for consistent in [false, true] {
            let call = self.dynamodb.get_item().table_name(&self.connections).set_key(Some(connection_key(id)));
            let call = call
                .consistent_read(consistent)
                .projection_expression("userId, connectedAt, closedAt, #ttl")
                .expression_attribute_names("#ttl", TTL);
            let output = call.send().await.map_err(|error| Error::store("GetItem", &self.connections, &error))?;
            if let Some(row) = output.item {
                return Ok(self.connection(id, &row));
            }
        }
        Ok(None)
    }

    /// A row that this code did not write counts as none: the client connects again and gets a new one.
    fn connection(&self, id: &ConnectionId, row: &Item) -> Option<Connection> {
        let user_id = text(row, USER_ID).map(|user| UserId::parse(USER_ID, user)).transpose();
        let (Some(ttl_s), Some(connected_at_ms), Ok(user_id)) = (number(row, TTL), number(row, CONNECTED_AT), user_id)
        else {
            let table = &self.connections;
            error!(table, connection.id = %id, "a row is skipped: an attribute is missing or has the wrong type");
            return None;
        };
        let is_open = !row.contains_key(CLOSED_AT);
        (ttl_s > now_s()).then(|| Connection { id: id.clone(), user_id, connected_at_ms, is_open })
    }

    /// Ends a connection and all its subscriptions, and returns how many there were: one `UpdateItem`, which leaves a
    /// tombstone, then a `BatchWriteItem` for each 25 topics. `also` is a topic row that the caller knows of, in case the
    /// connection's own row is gone.
    ///
    /// # Errors
    ///
    /// When DynamoDB fails, or when it puts off deletions for too long. The rows that are left then expire.
    pub async fn close(&self, id: &ConnectionId, also: Option<&Topic>, deadline: Deadline) -> Result<usize, Error> {
        let update = self
            .dynamodb
            .update_item()
            .table_name(&self.connections)
            .set_key(Some(connection_key(id)))
            .update_expression("SET closedAt = :now, #ttl = :soon REMOVE topics, goneAt")
            .condition_expression("attribute_exists(connectionId)")
            .expression_attribute_names("#ttl", TTL)
            .expression_attribute_values(":now", AttributeValue::N(now_ms().to_string()))
            .expression_attribute_values(":soon", AttributeValue::N((now_s() + TOMBSTONE_TTL_S).to_string()))
            .return_values(ReturnValue::AllOld);
        let old = match update.send().await {
            Ok(output) => output.attributes.unwrap_or_default(),
            Err(error) if failed_condition(&error).is_some() => Item::new(),
            Err(error) => return Err(Error::store("UpdateItem", &self.connections, &error)),
        };
        let listed = old.get(TOPICS).and_then(|topics| topics.as_ss().ok()).map_or(&[][..], Vec::as_slice);
        let topics: BTreeSet<&str> = listed.iter().map(String::as_str).chain(also.map(Topic::as_str)).collect();
        let deletes: Vec<_> = topics.iter().map(|topic| delete(topic_key(topic, id))).collect();
        for batch in deletes.chunks(MAX_BATCH) {
            self.batch_write(HashMap::from([(self.topics.clone(), batch.to_vec())]), deadline).await?;
        }
        Ok(topics.len())
    }

    /// Notes that the gateway answered 410 for a connection: one conditional `UpdateItem`. The caller removes nothing
    /// before the second 410, because the first one may be false.
    ///
    /// # Errors
    ///
    /// When DynamoDB fails.
    pub(crate) async fn suspect(&self, id: &ConnectionId) -> Result<Gone, Error> {
        let now_ms = now_ms();
        let update = self
            .dynamodb
            .update_item()
            .table_name(&self.connections)
            .set_key(Some(connection_key(id)))
            .update_expression("SET goneAt = :now")
            .condition_expression(
                "attribute_exists(connectionId) AND attribute_not_exists(closedAt) AND \
                 (attribute_not_exists(goneAt) OR goneAt < :forgiven)",
            )
            .expression_attribute_values(":now", AttributeValue::N(now_ms.to_string()))
            .expression_attribute_values(":forgiven", AttributeValue::N((now_ms - FORGIVEN_AFTER_MS).to_string()))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        let Err(error) = update.send().await else { return Ok(Gone::First) };
        let Some(row) = failed_condition(&error) else {
            return Err(Error::store("UpdateItem", &self.connections, &error));
        };
        Ok(match number(row, GONE_AT) {
            _ if row.is_empty() || row.contains_key(CLOSED_AT) => Gone::Unknown,
            Some(gone_at_ms) if now_ms - gone_at_ms < CONFIRMED_AFTER_MS => Gone::Suspected,
            _ => Gone::Confirmed,
        })
    }

    /// Subscribes a connection to a topic, or changes the id of its subscription: one `TransactWriteItems`, which
    /// leaves nothing behind when the connection has been removed meanwhile. `ttl_s` shortens the subscription's
    /// life but cannot outlast the connection's. Subscriptions that have expired stop counting when the list is full:
    /// that costs a `BatchGetItem`, an `UpdateItem` and a second transaction.
    ///
    /// # Errors
    ///
    /// [`ClientError::TooManyTopics`], [`ClientError::Unidentified`] when the connection is not stored,
    /// [`ClientError::Busy`], or a fault.
    pub async fn subscribe(
        &self,
        topic: &Topic,
        subscriber: &Subscriber,
        ttl_s: Option<i64>,
        deadline: Deadline,
    ) -> Result<(), Failure> {
        let mut row = self.row(&subscriber.connection_id, subscriber.connected_at_ms, ttl_s);
        row.insert(TOPIC.to_owned(), string(topic.as_str()));
        if let Some(id) = &subscriber.subscription_id {
            row.insert(SUBSCRIPTION_ID.to_owned(), string(id));
        }
        let put = Put::builder().table_name(&self.topics).set_item(Some(row)).build().expect("table and item are set");
        let update = self
            .update_topics("ADD", topic, &subscriber.connection_id)
            .condition_expression(
                "attribute_exists(connectionId) AND attribute_not_exists(closedAt) AND \
                 (attribute_not_exists(topics) OR contains(topics, :topic) OR size(topics) < :most)",
            )
            .expression_attribute_values(":topic", string(topic.as_str()))
            .expression_attribute_values(":most", AttributeValue::N(MAX_TOPICS.to_string()));
        let put = TransactWriteItem::builder().put(put).build();
        let Err(refused) = self.transact(update.clone(), put.clone(), deadline).await? else { return Ok(()) };
        if self.drop_expired_topics(&subscriber.connection_id, &refused).await? == 0 {
            return Err(ClientError::TooManyTopics { limit: MAX_TOPICS }.into());
        }
        match self.transact(update, put, deadline).await? {
            Ok(()) => Ok(()),
            Err(_) => Err(ClientError::TooManyTopics { limit: MAX_TOPICS }.into()),
        }
    }

    /// Ends a subscription, if there is one: one `TransactWriteItems`.
    ///
    /// # Errors
    ///
    /// [`ClientError::Unidentified`] when the connection is not stored, [`ClientError::Busy`], or a fault.
    pub async fn unsubscribe(&self, topic: &Topic, id: &ConnectionId, deadline: Deadline) -> Result<(), Failure> {
        let key = topic_key(topic.as_str(), id);
        let delete =
            Delete::builder().table_name(&self.topics).set_key(Some(key)).build().expect("table and key are set");
        let update = self
            .update_topics("DELETE", topic, id)
            .condition_expression("attribute_exists(connectionId) AND attribute_not_exists(closedAt)");
        let refused = self.transact(update, TransactWriteItem::builder().delete(delete).build(), deadline).await?;
        refused.map_err(|_| ClientError::unregistered().into())
    }

    /// The live receivers of an audience from a position on.
    #[must_use]
    pub fn receivers(&self, audience: &Audience, position: &Position) -> Receivers {
        let table = match audience {
            Audience::Topic(_) => &self.topics,
            Audience::Everybody { .. } => &self.connections,
        };
        Receivers::new(self.dynamodb.clone(), table.clone(), audience, position)
    }

    /// Takes the names of subscriptions that have expired out of a connection's row, and returns how many there were.
    async fn drop_expired_topics(&self, id: &ConnectionId, connection: &Item) -> Result<usize, Error> {
        let listed = connection.get(TOPICS).and_then(|topics| topics.as_ss().ok()).cloned().unwrap_or_default();
        // `BatchGetItem` reads at most 100 items, which is as many as a connection may have topics.
        let keys = listed.iter().take(MAX_TOPICS).map(|topic| topic_key(topic, id)).collect();
        let keys = KeysAndAttributes::builder()
            .set_keys(Some(keys))
            .consistent_read(true)
            .projection_expression("topic, #ttl")
            .expression_attribute_names("#ttl", TTL)
            .build()
            .expect("the keys are set");
        let output = self.dynamodb.batch_get_item().request_items(&self.topics, keys).send().await;
        let output = output.map_err(|error| Error::store("BatchGetItem", &self.topics, &error))?;
        if output.unprocessed_keys.is_some_and(|keys| !keys.is_empty()) {
            return Ok(0);
        }
        let rows = output.responses.unwrap_or_default().remove(&self.topics).unwrap_or_default();
        let is_live = |row: &&Item| number(row, TTL).is_some_and(|ttl_s| ttl_s > now_s());
        let live: BTreeSet<_> = rows.iter().filter(is_live).filter_map(|row| text(row, TOPIC)).collect();
        let expired: Vec<_> = listed.iter().filter(|topic| !live.contains(topic.as_str())).cloned().collect();
        let count = expired.len();
        if count > 0 {
            let update = self.dynamodb.update_item().table_name(&self.connections).set_key(Some(connection_key(id)));
            let update = update
                .update_expression("DELETE topics :expired")
                .condition_expression("attribute_exists(connectionId)")
                .expression_attribute_values(":expired", AttributeValue::Ss(expired));
            update.send().await.map_err(|error| Error::store("UpdateItem", &self.connections, &error))?;
        }
        Ok(count)
    }

    /// What rows of both tables have in common.
    fn row(&self, id: &ConnectionId, connected_at_ms: i64, ttl_s: Option<i64>) -> Item {
        let life_s = (self.connection_ttl + TTL_MARGIN).as_secs();
        let end_s = (connected_at_ms / 1000).saturating_add_unsigned(life_s);
        HashMap::from([
            (CONNECTION_ID.to_owned(), string(id.as_str())),
            (CONNECTED_AT.to_owned(), AttributeValue::N(connected_at_ms.to_string())),
            (TTL.to_owned(), AttributeValue::N(ttl_s.unwrap_or(end_s).min(end_s).to_string())),
        ])
    }

    fn update_topics(&self, action: &str, topic: &Topic, id: &ConnectionId) -> UpdateBuilder {
        Update::builder()
            .table_name(&self.connections)
            .set_key(Some(connection_key(id)))
            .update_expression(format!("{action} topics :topics"))
            .expression_attribute_values(":topics", AttributeValue::Ss(vec![topic.as_str().to_owned()]))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
    }

    /// Runs a transaction that begins with the conditional update of a connection. Two frames of one connection that
    /// change its topics at the same moment conflict, and the loser tries again for a while. The inner error is the
    /// connection's row, when it exists and the condition does not hold.
    async fn transact(
        &self,
        update: UpdateBuilder,
        other: TransactWriteItem,
        deadline: Deadline,
    ) -> Result<Result<(), Item>, Failure> {
        let update = update.build().expect("table, key and expression are set");
        let items = vec![TransactWriteItem::builder().update(update).build(), other];
        let mut backoff = Backoff::default();
        let bound = deadline.at_most(MAX_TIME);
        for _ in 0..MAX_ATTEMPTS {
            let call = self.dynamodb.transact_write_items().set_transact_items(Some(items.clone())).send();
            let Err(error) = call.await else { return Ok(Ok(())) };
            let reasons = cancellation_reasons(&error);
            if let Some(refused) = reasons.iter().find(|reason| reason.code() == Some("ConditionalCheckFailed")) {
                return match refused.item() {
                    Some(item) if !item.is_empty() && !item.contains_key(CLOSED_AT) => Ok(Err(item.clone())),
                    _ => Err(ClientError::unregistered().into()),
                };
            }
            let busy = |reason: &CancellationReason| {
                matches!(
                    reason.code(),
                    Some("TransactionConflict" | "ThrottlingError" | "ProvisionedThroughputExceeded")
                )
            };
            let fault = Error::store("TransactWriteItems", &self.connections, &error);
            if !reasons.iter().any(busy) && !matches!(fault, Error::Store { throttled: true, .. }) {
                return Err(fault.into());
            }
            if !backoff.wait(bound).await {
                break;
            }
        }
        Err(ClientError::Busy.into())
    }

    /// Writes at most 25 items. DynamoDB returns items as unprocessed, maybe all of them, and they are written again.
    async fn batch_write(
        &self,
        mut writes: HashMap<String, Vec<WriteRequest>>,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let mut backoff = Backoff::default();
        let bound = deadline.at_most(MAX_TIME);
        for attempt in 1.. {
            let tables = writes.keys().cloned().collect::<Vec<_>>().join(" and ");
            let call = self.dynamodb.batch_write_item().set_request_items(Some(writes.clone())).send();
            match call.await.map_err(|error| Error::store("BatchWriteItem", &tables, &error)) {
                Ok(output) => writes = output.unprocessed_items.unwrap_or_default(),
                Err(Error::Store { throttled: true, .. }) => {}
                Err(error) => return Err(error),
            }
            let left = writes.values().map(Vec::len).sum();
            if left == 0 {
                return Ok(());
            }
            if attempt == MAX_ATTEMPTS || !backoff.wait(bound).await {
                return Err(Error::Unfinished { operation: "BatchWriteItem", table: tables, left });
            }
        }
        Ok(())
    }
}

pub(crate) fn string(text: &str) -> AttributeValue {
    AttributeValue::S(text.to_owned())
}

pub(crate) fn connection_key(id: &ConnectionId) -> Item {
    HashMap::from([(CONNECTION_ID.to_owned(), string(id.as_str()))])
}

pub(crate) fn topic_key(topic: &str, id: &ConnectionId) -> Item {
    HashMap::from([(TOPIC.to_owned(), string(topic)), (CONNECTION_ID.to_owned(), string(id.as_str()))])
}

fn put(item: Item) -> WriteRequest {
    let request = PutRequest::builder().set_item(Some(item)).build();
    WriteRequest::builder().put_request(request.expect("the item is set")).build()
}

fn delete(key: Item) -> WriteRequest {
    let request = DeleteRequest::builder().set_key(Some(key)).build();
    WriteRequest::builder().delete_request(request.expect("the key is set")).build()
}

pub(crate) fn text<'a>(row: &'a Item, attribute: &str) -> Option<&'a str> {
    row.get(attribute)?.as_s().ok().map(String::as_str)
}

pub(crate) fn number(row: &Item, attribute: &str) -> Option<i64> {
    row.get(attribute)?.as_n().ok()?.parse().ok()
}

/// The row whose condition failed, as far as the call asked for it.
fn failed_condition(error: &SdkError<UpdateItemError>) -> Option<&Item> {
    static NONE: std::sync::LazyLock<Item> = std::sync::LazyLock::new(Item::new);
    match error.as_service_error()? {
        UpdateItemError::ConditionalCheckFailedException(failed) => Some(failed.item().unwrap_or(&NONE)),
        _ => None,
    }
}

fn cancellation_reasons(error: &SdkError<TransactWriteItemsError>) -> &[CancellationReason] {
    match error.as_service_error() {
        Some(TransactWriteItemsError::TransactionCanceledException(canceled)) => canceled.cancellation_reasons(),
        _ => &[],
    }
}

#[cfg(test)]
mod tests;

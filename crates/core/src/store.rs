//! The tables of connections and of topics: who is connected, and who listens to what.
//!
//! | table | key | attributes |
//! |---|---|---|
//! | connections | `connectionId` | `userId?` S · `topics` SS, the reverse lookup · `connectedAt` N, epoch **milliseconds** · `ttl` N, epoch **seconds** |
//! | topics | `topic`, `connectionId` | `subscriptionId?` S · `connectedAt` N · `ttl` N |
//!
//! A connection's `topics` name every row that it has in the topics table, its user's address included; that is what
//! makes an index unnecessary. Rows outlive their connection by [`TTL_MARGIN`] at most, and DynamoDB deletes expired
//! items late, so readers drop what has expired. Reads are strongly consistent and follow every page.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, SystemTime};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::operation::transact_write_items::TransactWriteItemsError;
use aws_sdk_dynamodb::types::builders::UpdateBuilder;
use aws_sdk_dynamodb::types::{
    AttributeValue, CancellationReason, Delete, DeleteRequest, Put, PutRequest, ReturnValue,
    ReturnValuesOnConditionCheckFailure, TransactWriteItem, Update, WriteRequest,
};
use aws_smithy_async::future::pagination_stream::PaginationStream;
use futures_util::stream::{self, BoxStream, Stream, StreamExt};

use crate::config::Config;
use crate::connection::{Connection, ConnectionId, UserId};
use crate::deadline::{Backoff, Deadline};
use crate::publication::{Audience, SEGMENTS};
use crate::topic::{Subscriber, Topic};
use crate::{ClientError, Error, Failure};

/// How many topics a connection may listen to, its own address included.
pub const MAX_TOPICS: usize = 100;

/// How long rows of a live connection outlast the longest life that the gateway gives it.
pub const TTL_MARGIN: Duration = Duration::from_secs(5 * 60);

/// `BatchWriteItem` takes at most 25 put and delete requests (Amazon DynamoDB API Reference).
const MAX_BATCH: usize = 25;

const CONNECTION_ID: &str = "connectionId";
const USER_ID: &str = "userId";
const TOPICS: &str = "topics";
const CONNECTED_AT: &str = "connectedAt";
const TTL: &str = "ttl";
const TOPIC: &str = "topic";
const SUBSCRIPTION_ID: &str = "subscriptionId";

type Item = HashMap<String, AttributeValue>;

/// The connections table and the topics table.
#[derive(Debug, Clone)]
pub struct ConnectionStore {
    dynamodb: Client,
    connections: String,
    topics: String,
    connection_ttl: Duration,
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

    /// Reads one connection; `None` when there is none, or when it has expired. One `GetItem`.
    ///
    /// # Errors
    ///
    /// When DynamoDB fails.
    pub async fn get(&self, id: &ConnectionId) -> Result<Option<Connection>, Error> {
        let output = self
            .dynamodb
            .get_item()
            .table_name(&self.connections)
            .set_key(Some(connection_key(id)))
            .consistent_read(true)
            .send()
            .await
            .map_err(|error| Error::store("GetItem", &self.connections, &error))?;
        let Some(item) = output.item else { return Ok(None) };
        if number(&self.connections, &item, TTL)? <= now_s() {
            return Ok(None);
        }
        let user_id = match item.get(USER_ID) {
            None => None,
            Some(value) => Some(
                value
                    .as_s()
                    .ok()
                    .and_then(|text| UserId::parse(USER_ID, text).ok())
                    .ok_or_else(|| Error::Item { table: self.connections.clone(), attribute: USER_ID })?,
            ),
        };
        let connected_at_ms = number(&self.connections, &item, CONNECTED_AT)?;
        Ok(Some(Connection { id: id.clone(), user_id, connected_at_ms }))
    }

    /// Forgets a connection and all its subscriptions, and says how many there were: one `DeleteItem`, then
    /// `BatchWriteItem`s of 25. `also` is a topic row known to the caller, in case the connection's own row is gone.
    ///
    /// # Errors
    ///
    /// When DynamoDB fails, or not every topic row could be deleted before the deadline. What is left then expires.
    pub async fn remove(&self, id: &ConnectionId, also: Option<&Topic>, deadline: Deadline) -> Result<usize, Error> {
        let output = self
            .dynamodb
            .delete_item()
            .table_name(&self.connections)
            .set_key(Some(connection_key(id)))
            .return_values(ReturnValue::AllOld)
            .send()
            .await
            .map_err(|error| Error::store("DeleteItem", &self.connections, &error))?;
        let old = output.attributes.unwrap_or_default();
        let listed = old.get(TOPICS).and_then(|topics| topics.as_ss().ok()).map_or(&[][..], Vec::as_slice);
        let topics: BTreeSet<&str> = listed.iter().map(String::as_str).chain(also.map(Topic::as_str)).collect();
        let deletes: Vec<_> = topics.iter().map(|topic| delete(topic_key(topic, id))).collect();
        for batch in deletes.chunks(MAX_BATCH) {
            self.batch_write(HashMap::from([(self.topics.clone(), batch.to_vec())]), deadline).await?;
        }
        Ok(topics.len())
    }

    /// Subscribes a connection to a topic, or changes the id of its subscription: one `TransactWriteItems`, which
    /// leaves nothing behind when the connection has been removed meanwhile. `ttl_s` shortens the subscription's
    /// life but cannot outlast the connection's.
    ///
    /// # Errors
    ///
    /// [`ClientError::TooManyTopics`], [`ClientError::Unidentified`] when the connection is not stored, or a fault.
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
                "attribute_exists(connectionId) AND \
                 (attribute_not_exists(topics) OR contains(topics, :topic) OR size(topics) < :most)",
            )
            .expression_attribute_values(":topic", string(topic.as_str()))
            .expression_attribute_values(":most", AttributeValue::N(MAX_TOPICS.to_string()));
        let put = TransactWriteItem::builder().put(put).build();
        self.transact(update, put, deadline).await
    }

    /// Ends a subscription, if there is one: one `TransactWriteItems`.
    ///
    /// # Errors
    ///
    /// [`ClientError::Unidentified`] when the connection is not stored, or a fault.
    pub async fn unsubscribe(&self, topic: &Topic, id: &ConnectionId, deadline: Deadline) -> Result<(), Failure> {
        let key = topic_key(topic.as_str(), id);
        let delete =
            Delete::builder().table_name(&self.topics).set_key(Some(key)).build().expect("table and key are set");
        let update = self.update_topics("DELETE", topic, id).condition_expression("attribute_exists(connectionId)");
        self.transact(update, TransactWriteItem::builder().delete(delete).build(), deadline).await
    }

    /// Whoever belongs to an audience, comes after `after` and has not expired: one `Query` or `Scan` a page, the next one only
    /// when the stream is read that far. In the order of DynamoDB's keys, which is what lets a publish be continued.
    pub fn receivers(
        &self,
        audience: &Audience,
        after: Option<&ConnectionId>,
    ) -> BoxStream<'_, Result<Subscriber, Error>> {
        match audience {
            Audience::Topic(topic) => self.subscribers(topic, after).boxed(),
            Audience::Everybody { segment } => self.connections(*segment, after).boxed(),
        }
    }

    fn subscribers(
        &self,
        topic: &Topic,
        after: Option<&ConnectionId>,
    ) -> impl Stream<Item = Result<Subscriber, Error>> + use<'_> {
        let rows = self
            .dynamodb
            .query()
            .table_name(&self.topics)
            .consistent_read(true)
            .key_condition_expression("topic = :topic")
            .filter_expression("#ttl > :now")
            .projection_expression("connectionId, subscriptionId, connectedAt")
            .expression_attribute_names("#ttl", TTL)
            .expression_attribute_values(":topic", string(topic.as_str()))
            .expression_attribute_values(":now", AttributeValue::N(now_s().to_string()))
            .set_exclusive_start_key(after.map(|id| topic_key(topic.as_str(), id)))
            .into_paginator()
            .items()
            .send();
        read(rows, "Query", &self.topics)
    }

    fn connections(
        &self,
        segment: u8,
        after: Option<&ConnectionId>,
    ) -> impl Stream<Item = Result<Subscriber, Error>> + use<'_> {
        let rows = self
            .dynamodb
            .scan()
            .table_name(&self.connections)
            .consistent_read(true)
            .segment(segment.into())
            .total_segments(SEGMENTS.into())
            .filter_expression("#ttl > :now")
            .projection_expression("connectionId, connectedAt")
            .expression_attribute_names("#ttl", TTL)
            .expression_attribute_values(":now", AttributeValue::N(now_s().to_string()))
            .set_exclusive_start_key(after.map(connection_key))
            .into_paginator()
            .items()
            .send();
        read(rows, "Scan", &self.connections)
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

    /// Runs a transaction whose first item is the conditional update of a connection. Two frames of one connection
    /// that change its topics at the same moment conflict; the loser tries again.
    async fn transact(
        &self,
        update: UpdateBuilder,
        other: TransactWriteItem,
        deadline: Deadline,
    ) -> Result<(), Failure> {
        let update = update.build().expect("table, key and expression are set");
        let items = vec![TransactWriteItem::builder().update(update).build(), other];
        let mut backoff = Backoff::default();
        loop {
            let call = self.dynamodb.transact_write_items().set_transact_items(Some(items.clone())).send();
            let Err(error) = call.await else { return Ok(()) };
            let reasons = cancellation_reasons(&error);
            if let Some(refused) = reasons.iter().find(|reason| reason.code() == Some("ConditionalCheckFailed")) {
                return Err(match refused.item() {
                    Some(item) if !item.is_empty() => ClientError::TooManyTopics { limit: MAX_TOPICS }.into(),
                    _ => ClientError::unregistered().into(),
                });
            }
            let busy = |reason: &CancellationReason| {
                matches!(
                    reason.code(),
                    Some("TransactionConflict" | "ThrottlingError" | "ProvisionedThroughputExceeded")
                )
            };
            if !reasons.iter().any(busy) {
                return Err(Error::store("TransactWriteItems", &self.connections, &error).into());
            }
            if !backoff.wait(deadline).await {
                let table = format!("{} and {}", self.connections, self.topics);
                return Err(Error::Unfinished { operation: "TransactWriteItems", table, left: items.len() }.into());
            }
        }
    }

    /// Writes at most 25 items, asking again for what DynamoDB returns as unprocessed, which may be all of it.
    async fn batch_write(
        &self,
        mut writes: HashMap<String, Vec<WriteRequest>>,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let mut backoff = Backoff::default();
        loop {
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
            if !backoff.wait(deadline).await {
                return Err(Error::Unfinished { operation: "BatchWriteItem", table: tables, left });
            }
        }
    }
}

/// Epoch milliseconds now.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Epoch seconds now.
#[must_use]
pub fn now_s() -> i64 {
    now_ms() / 1000
}

fn string(text: &str) -> AttributeValue {
    AttributeValue::S(text.to_owned())
}

fn connection_key(id: &ConnectionId) -> Item {
    HashMap::from([(CONNECTION_ID.to_owned(), string(id.as_str()))])
}

fn topic_key(topic: &str, id: &ConnectionId) -> Item {
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

/// The receivers in the rows of either table, page after page.
fn read<'a, E: Send + 'a>(
    rows: PaginationStream<Result<Item, SdkError<E>>>,
    operation: &'static str,
    table: &'a str,
) -> impl Stream<Item = Result<Subscriber, Error>> + use<'a, E>
where
    SdkError<E>: std::error::Error + ProvideErrorMetadata,
{
    stream::try_unfold(rows, move |mut rows| async move {
        let Some(row) = rows.next().await else { return Ok(None) };
        let row = row.map_err(|error| Error::store(operation, table, &error))?;
        Ok(Some((subscriber(table, &row)?, rows)))
    })
}

fn subscriber(table: &str, row: &Item) -> Result<Subscriber, Error> {
    let text = |attribute: &str| row.get(attribute).and_then(|value| value.as_s().ok()).cloned();
    let id = text(CONNECTION_ID).ok_or_else(|| Error::Item { table: table.to_owned(), attribute: CONNECTION_ID })?;
    Ok(Subscriber {
        connection_id: ConnectionId::new(id),
        subscription_id: text(SUBSCRIPTION_ID),
        connected_at_ms: number(table, row, CONNECTED_AT)?,
    })
}

fn number(table: &str, row: &Item, attribute: &'static str) -> Result<i64, Error> {
    row.get(attribute)
        .and_then(|value| value.as_n().ok())
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| Error::Item { table: table.to_owned(), attribute })
}

fn cancellation_reasons(error: &SdkError<TransactWriteItemsError>) -> &[CancellationReason] {
    match error.as_service_error() {
        Some(TransactWriteItemsError::TransactionCanceledException(canceled)) => canceled.cancellation_reasons(),
        _ => &[],
    }
}

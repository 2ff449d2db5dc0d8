//! The tables of connections and of topics: who is connected, and who listens to what.
//!
//! | table | key | attributes |
//! |---|---|---|
//! | connections | `connectionId` | `userId?` S · `topics` SS, the reverse lookup · `connectedAt` N, epoch **milliseconds** · `ttl` N, epoch **seconds** · `goneAt?` N, ms: the gateway said 410 then · `closedAt?` N, ms: a tombstone |
//! | topics | `topic`, `connectionId` | `subscriptionId?` S · `connectedAt` N · `ttl` N · `positions?` BOOL: it asked for positions |
//!
//! A connection's `topics` name every row that it has in the topics table, its user's address included. No index is
//! needed for that reason. They may also name topics whose row has gone: [`ConnectionStore::subscribe`] says how both come
//! about. Rows outlive their connection by [`TTL_MARGIN`] at most, and DynamoDB deletes expired items late, so readers drop
//! what has expired.
//!
//! A connection that ended leaves a **tombstone** for [`TOMBSTONE_TTL_S`]: its last frames may still be on their way,
//! and they need their sender. Nobody delivers to a tombstone.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::SdkError;
use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::types::{
    AttributeValue, DeleteRequest, KeysAndAttributes, PutRequest, ReturnValue, ReturnValuesOnConditionCheckFailure,
    Select, WriteRequest,
};
use futures_util::future;
use lambda_runtime::tracing::error;

use crate::clock::{now_ms, now_s};
use crate::config::Config;
use crate::connection::{Connection, ConnectionId, UserId};
use crate::deadline::{Backoff, Deadline};
use crate::publication::{Audience, Position};
use crate::receivers::Receivers;
use crate::topic::Topic;
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

/// `BatchGetItem` reads at most 100 items (Amazon DynamoDB API Reference).
const MAX_BATCH_GET: usize = 100;

pub(crate) const CONNECTION_ID: &str = "connectionId";
const USER_ID: &str = "userId";
const TOPICS: &str = "topics";
pub(crate) const CONNECTED_AT: &str = "connectedAt";
const CLOSED_AT: &str = "closedAt";
const GONE_AT: &str = "goneAt";
pub(crate) const TTL: &str = "ttl";
const TOPIC: &str = "topic";
pub(crate) const POSITIONS: &str = "positions";
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

/// A subscription that a connection asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// What it listens to.
    pub topic: Topic,
    /// The `id` of its data frames. A subscription to the user's own address has none.
    pub id: Option<String>,
    /// The epoch second after which it no longer counts. It cannot outlast the connection.
    pub ttl_s: Option<i64>,
    /// Whether it asks where each message is in the history of the topic.
    pub positions: bool,
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
            row.insert(TOPICS.to_owned(), AttributeValue::Ss(vec![address.as_str().to_owned()]));
            let address = Subscription { topic: address, id: None, ttl_s: None, positions: false };
            let address_row = self.topic_row(&connection.id, connection.connected_at_ms, &address);
            writes.insert(self.topics.clone(), vec![put(address_row)]);
        }
        if let Some(user_id) = &connection.user_id {
            row.insert(USER_ID.to_owned(), string(user_id.as_str()));
        }
        writes.insert(self.connections.clone(), vec![put(row)]);
        self.batch_write(writes, deadline).await
    }

    /// Counts the connections of a user, with one eventually consistent `Query`: at most those of its first page, which has
    /// thousands. Connections that ended without a `$disconnect` count until a post finds them gone, or their rows expire.
    ///
    /// # Errors
    ///
    /// When DynamoDB fails.
    pub async fn count(&self, user: &UserId) -> Result<u32, Error> {
        let query = self.dynamodb.query().table_name(&self.topics).select(Select::Count);
        let query = query
            .key_condition_expression("topic = :topic")
            .filter_expression("#ttl > :now")
            .expression_attribute_names("#ttl", TTL)
            .expression_attribute_values(":topic", string(Topic::address(user).as_str()))
            .expression_attribute_values(":now", AttributeValue::N(now_s().to_string()));
        let page = query.send().await.map_err(|error| Error::store("Query", &self.topics, &error))?;
        Ok(u32::try_from(page.count).unwrap_or(0))
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
        self.write_topics(&deletes, deadline).await?;
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

    /// Subscribes a connection to topics, or changes its subscriptions: one `UpdateItem`, a `BatchWriteItem` for each 25 topics,
    /// and one strongly consistent `GetItem`. These are one write unit, and one more for each topic. Subscriptions that have
    /// expired or ended stop counting when the list is full: that costs a few calls more.
    ///
    /// The order of the three steps keeps a promise without a transaction: the set in the connection's row names every row in
    /// the table of topics.
    ///
    /// 1. The set comes first, and only while the connection is open. A function that is killed after this step leaves a name
    ///    without a row, which does no harm.
    /// 2. Then the rows are written.
    /// 3. Then the connection's row is read again. [`Self::close`] takes the set before it deletes the rows that the set names.
    ///    If it took the set before step 1, step 1 fails. If it took the set later, it knows the names, but it may have deleted
    ///    the rows before step 2 wrote them. Step 3 then finds the tombstone and deletes them again.
    ///
    /// Step 3 also finds names that another frame of this connection has dropped as expired before step 2. The three steps then
    /// begin anew. [`Self::drop_expired`] does its part for the case that it drops a name after step 3.
    ///
    /// One gap is left: a function that is killed between the steps 2 and 3 while its connection ends leaves rows. They expire
    /// with the connection, or go when the gateway has called it gone twice.
    ///
    /// # Errors
    ///
    /// [`ClientError::TooManyTopics`] and [`ClientError::Unidentified`] when the connection is not stored; then nothing was
    /// subscribed. [`ClientError::Busy`] or a fault; then some of the topics may be.
    pub async fn subscribe(
        &self,
        id: &ConnectionId,
        connected_at_ms: i64,
        subscriptions: &[Subscription],
        deadline: Deadline,
    ) -> Result<(), Failure> {
        let names: Vec<_> = subscriptions.iter().map(|wanted| wanted.topic.as_str().to_owned()).collect();
        let rows: Vec<_> =
            subscriptions.iter().map(|wanted| put(self.topic_row(id, connected_at_ms, wanted))).collect();
        for _ in 0..MAX_ATTEMPTS {
            self.list(id, &names, deadline).await?;
            self.write_topics(&rows, deadline).await.map_err(busy)?;
            let Some(listed) = self.listed(id, deadline).await? else {
                let deletes: Vec<_> = names.iter().map(|name| delete(topic_key(name, id))).collect();
                self.write_topics(&deletes, deadline).await?;
                return Err(ClientError::unregistered().into());
            };
            if names.iter().all(|name| listed.contains(name)) {
                return Ok(());
            }
        }
        Err(ClientError::Busy.into())
    }

    /// Ends a subscription, if there is one: a `GetItem`, and a `DeleteItem` of the topic's row. The name stays in the
    /// connection's row until the list is full, because a row that is written at the same moment needs it.
    ///
    /// # Errors
    ///
    /// [`ClientError::Unidentified`] when the connection is not stored, [`ClientError::Busy`], or a fault.
    pub async fn unsubscribe(&self, topic: &Topic, id: &ConnectionId, deadline: Deadline) -> Result<(), Failure> {
        let connection = self.get(id).await?;
        connection.filter(|connection| connection.is_open).ok_or_else(ClientError::unregistered)?;
        patiently(deadline, async || {
            let delete = self.dynamodb.delete_item().table_name(&self.topics);
            let deleted = delete.set_key(Some(topic_key(topic.as_str(), id))).send().await;
            deleted.map(drop).map_err(|error| Error::store("DeleteItem", &self.topics, &error))
        })
        .await
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

    /// Adds names to the set of an open connection, and makes room for them if the list is full.
    async fn list(&self, id: &ConnectionId, names: &[String], deadline: Deadline) -> Result<(), Failure> {
        // At first all names count as new. Only a list that is nearly full shows whether they are.
        let mut most_listed = MAX_TOPICS.saturating_sub(names.len());
        for _ in 0..MAX_ATTEMPTS {
            let Some(listed) = self.add_names(id, names, most_listed, deadline).await? else { return Ok(()) };
            let (known, mut others): (Vec<_>, Vec<_>) = listed.into_iter().partition(|name| names.contains(name));
            if others.len() + names.len() > MAX_TOPICS {
                others = self.drop_expired(id, others, deadline).await?;
            }
            if others.len() + names.len() > MAX_TOPICS {
                return Err(ClientError::TooManyTopics { limit: MAX_TOPICS }.into());
            }
            most_listed = MAX_TOPICS.saturating_sub(names.len() - known.len());
        }
        Err(ClientError::Busy.into())
    }

    /// Adds names to the set of an open connection, unless it has more than `most_listed`. Then it returns the set.
    async fn add_names(
        &self,
        id: &ConnectionId,
        names: &[String],
        most_listed: usize,
        deadline: Deadline,
    ) -> Result<Option<BTreeSet<String>>, Failure> {
        let refused = patiently(deadline, async || {
            let update = self.dynamodb.update_item().table_name(&self.connections).set_key(Some(connection_key(id)));
            let update = update
                .update_expression("ADD topics :names")
                .condition_expression(
                    "attribute_exists(connectionId) AND attribute_not_exists(closedAt) AND \
                     (attribute_not_exists(topics) OR size(topics) <= :most)",
                )
                .expression_attribute_values(":names", AttributeValue::Ss(names.to_vec()))
                .expression_attribute_values(":most", AttributeValue::N(most_listed.to_string()))
                .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
            let Err(error) = update.send().await else { return Ok(None) };
            let row = failed_condition(&error).cloned();
            row.map(Some).ok_or_else(|| Error::store("UpdateItem", &self.connections, &error))
        });
        match refused.await? {
            None => Ok(None),
            Some(row) if row.is_empty() || row.contains_key(CLOSED_AT) => Err(ClientError::unregistered().into()),
            Some(row) => Ok(Some(names_of(&row))),
        }
    }

    /// Reads the names in an open connection's row. `None` means that the connection has ended.
    async fn listed(&self, id: &ConnectionId, deadline: Deadline) -> Result<Option<BTreeSet<String>>, Failure> {
        let row = patiently(deadline, async || {
            let get = self.dynamodb.get_item().table_name(&self.connections).set_key(Some(connection_key(id)));
            let get = get.consistent_read(true).projection_expression("connectionId, topics, closedAt");
            let output = get.send().await;
            Ok(output.map_err(|error| Error::store("GetItem", &self.connections, &error))?.item)
        });
        let row = row.await?.filter(|row| !row.is_empty() && !row.contains_key(CLOSED_AT));
        Ok(row.as_ref().map(names_of))
    }

    /// Takes names out of a connection's row that have no row in the table of topics, or one that has expired. Returns the
    /// others. A subscribe may write such a row at the same moment, after this looked for it and with its name still there.
    /// So this looks again after the name is gone, and puts it back.
    async fn drop_expired(
        &self,
        id: &ConnectionId,
        names: Vec<String>,
        deadline: Deadline,
    ) -> Result<Vec<String>, Failure> {
        let live = self.live(id, &names, deadline).await?;
        let (mut kept, expired): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| live.contains(name));
        if expired.is_empty() {
            return Ok(kept);
        }
        self.change_names("DELETE", id, &expired, deadline).await?;
        let back: Vec<_> = self.live(id, &expired, deadline).await?.into_iter().collect();
        if !back.is_empty() {
            self.change_names("ADD", id, &back, deadline).await?;
            kept.extend(back);
        }
        Ok(kept)
    }

    /// Adds names to the set of an open connection, or deletes some.
    async fn change_names(
        &self,
        action: &str,
        id: &ConnectionId,
        names: &[String],
        deadline: Deadline,
    ) -> Result<(), Failure> {
        patiently(deadline, async || {
            let update = self.dynamodb.update_item().table_name(&self.connections).set_key(Some(connection_key(id)));
            let update = update
                .update_expression(format!("{action} topics :names"))
                .condition_expression("attribute_exists(connectionId) AND attribute_not_exists(closedAt)")
                .expression_attribute_values(":names", AttributeValue::Ss(names.to_vec()));
            match update.send().await {
                Err(error) if failed_condition(&error).is_none() => {
                    Err(Error::store("UpdateItem", &self.connections, &error))
                }
                // A connection that has ended needs no names.
                _ => Ok(()),
            }
        })
        .await
    }

    /// Returns those of the topics to which a connection is subscribed: one strongly consistent `BatchGetItem`.
    async fn live(&self, id: &ConnectionId, names: &[String], deadline: Deadline) -> Result<BTreeSet<String>, Failure> {
        let keys = names.iter().map(|topic| topic_key(topic, id)).collect();
        let rows = batch_get(&self.dynamodb, &self.topics, keys, deadline).await?;
        let is_live = |row: &&Item| number(row, TTL).is_some_and(|ttl_s| ttl_s > now_s());
        Ok(rows.iter().filter(is_live).filter_map(|row| text(row, TOPIC)).map(str::to_owned).collect())
    }

    /// The row of a subscription. The row of a user's address is the one that [`Self::put`] has written.
    fn topic_row(&self, id: &ConnectionId, connected_at_ms: i64, subscription: &Subscription) -> Item {
        let mut row = self.row(id, connected_at_ms, subscription.ttl_s);
        row.insert(TOPIC.to_owned(), string(subscription.topic.as_str()));
        if let Some(id) = &subscription.id {
            row.insert(SUBSCRIPTION_ID.to_owned(), string(id));
        }
        if subscription.positions {
            row.insert(POSITIONS.to_owned(), AttributeValue::Bool(true));
        }
        row
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

    /// Writes or deletes topic rows, 25 at a time, and a few batches at once.
    async fn write_topics(&self, writes: &[WriteRequest], deadline: Deadline) -> Result<(), Error> {
        let batch = async |batch: &[WriteRequest]| {
            self.batch_write(HashMap::from([(self.topics.clone(), batch.to_vec())]), deadline).await
        };
        future::try_join_all(writes.chunks(MAX_BATCH).map(batch)).await.map(drop)
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

/// The names in a connection's row.
fn names_of(row: &Item) -> BTreeSet<String> {
    row.get(TOPICS).and_then(|topics| topics.as_ss().ok()).into_iter().flatten().cloned().collect()
}

/// A client can repeat a write that DynamoDB put off for too long.
fn busy(error: Error) -> Failure {
    match error {
        Error::Unfinished { .. } => ClientError::Busy.into(),
        error => error.into(),
    }
}

/// Reads items strongly consistent, as many at once as `BatchGetItem` takes. Keys that DynamoDB puts off are read again.
pub(crate) async fn batch_get(
    dynamodb: &Client,
    table: &str,
    mut keys: Vec<Item>,
    deadline: Deadline,
) -> Result<Vec<Item>, Failure> {
    let mut items = Vec::new();
    let mut backoff = Backoff::default();
    let bound = deadline.at_most(MAX_TIME);
    while !keys.is_empty() {
        let later = keys.split_off(keys.len().min(MAX_BATCH_GET));
        let (found, left) = patiently(bound, async || {
            let wanted = KeysAndAttributes::builder().set_keys(Some(keys.clone())).consistent_read(true).build();
            let wanted = wanted.expect("the keys are set");
            let output = dynamodb.batch_get_item().request_items(table, wanted).send().await;
            let output = output.map_err(|error| Error::store("BatchGetItem", table, &error))?;
            let left = output.unprocessed_keys.unwrap_or_default().remove(table);
            let found = output.responses.unwrap_or_default().remove(table).unwrap_or_default();
            Ok((found, left.map(|left| left.keys).unwrap_or_default()))
        })
        .await?;
        items.extend(found);
        if !left.is_empty() && !backoff.wait(bound).await {
            return Err(ClientError::Busy.into());
        }
        keys = left;
        keys.extend(later);
    }
    Ok(items)
}

/// Repeats a call while DynamoDB puts it off.
pub(crate) async fn patiently<T>(deadline: Deadline, call: impl AsyncFn() -> Result<T, Error>) -> Result<T, Failure> {
    let mut backoff = Backoff::default();
    let bound = deadline.at_most(MAX_TIME);
    for _ in 0..MAX_ATTEMPTS {
        match call().await {
            Err(Error::Store { throttled: true, .. }) => {}
            result => return Ok(result?),
        }
        if !backoff.wait(bound).await {
            break;
        }
    }
    Err(ClientError::Busy.into())
}

#[cfg(test)]
mod tests;

//! The tables of connections and of topics: who is connected, and who listens to what.
//!
//! | table | key | attributes |
//! |---|---|---|
//! | connections | `connectionId` | `userId?` S · `topics` SS, the reverse lookup · `connectedAt` N, epoch **milliseconds** · `ttl` N, epoch **seconds** · `goneAt?` N, ms: the gateway said 410 then · `closedAt?` N, ms: a tombstone · `expiresAt?` N, s: the end of the session · `maySubscribe?`, `mayPublish?` SS: the granted patterns |
//! | topics | `topic`, `connectionId` | `subscriptionId?` S · `connectedAt` N · `ttl` N · `positions?` BOOL: it asked for positions · `batches?` BOOL: it takes several messages in one frame · `userId?` S: the user, in a topic with presence · `presence?` BOOL: it asked for changes of members · `data?` S, JSON, and `dataAt?` N, ms: what it says about its user, and since when · `endsAt?` N, s: the end that the client asked for |
//!
//! A row's `ttl` is the earliest of the ends that it has: of the gateway's longest connection, of the session, and the one that
//! the client asked for.
//!
//! A connection's `topics` name every row that it has in the topics table, its user's address included. No index is
//! needed for that reason. They may also name topics whose row has gone: [`ConnectionStore::subscribe`] says how both come
//! about. Rows outlive their connection by [`TTL_MARGIN`] at most, and DynamoDB deletes expired items late, so readers drop
//! what has expired.
//!
//! A connection that ended leaves a **tombstone** for [`TOMBSTONE_TTL_S`]: its last frames may still be on their way,
//! and they need their sender. Nobody delivers to a tombstone.
//!
//! A user whose connection sent too fast has a **lock** for [`LOCKED_OUT_S`]: a tombstone whose key is the user's address.
//!
//! **Samples** of frames ([`crate::limits`]) are counted in tombstones, too. The key is `#`, the number of a window of time, `#` and the
//! user's address, or the connection's id if it has no user. `samples` N counts all of them, and `samples:<id>` N those of one
//! connection.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::SdkError;
use aws_sdk_dynamodb::operation::delete_item::DeleteItemError;
use aws_sdk_dynamodb::operation::update_item::{UpdateItemError, UpdateItemOutput};
use aws_sdk_dynamodb::types::{
    AttributeValue, DeleteRequest, KeysAndAttributes, PutRequest, ReturnValue, ReturnValuesOnConditionCheckFailure,
    Select, WriteRequest,
};
use futures_util::future;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use lambda_runtime::tracing::{error, info};

use crate::clock::{now_ms, now_s};
use crate::config::Config;
use crate::connection::{Connection, ConnectionId, UserId};
use crate::deadline::{Backoff, Deadline};
use crate::limits::{Samples, WINDOW_S};
use crate::log::DETAIL;
use crate::presence::Members;
use crate::publication::{Audience, Position};
use crate::receivers::Receivers;
use crate::rights::{Grants, Pattern};
use crate::rules::Rules;
use crate::topic::Topic;
use crate::{ClientError, Error, Failure};

/// How many topics a connection may listen to, its own address included.
pub const MAX_TOPICS: usize = 100;

/// How long rows of a live connection outlast the longest life that the gateway gives it.
pub const TTL_MARGIN: Duration = Duration::from_secs(5 * 60);

/// How long the frames of a connection that ended still find their sender, in seconds. A frame may wait for a free
/// execution environment, but the gateway gives up on it after 29 s.
pub const TOMBSTONE_TTL_S: i64 = 60;

/// How long a user whose connection sent too fast cannot connect, in seconds. A client that floods needs a second or so to be
/// noticed, so it has at most a small part of the time.
pub const LOCKED_OUT_S: i64 = 60;

/// How long samples of frames are kept: longer than their window.
const SAMPLES_TTL_S: i64 = 60;

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

/// How many rows of topics are changed at the same time, where each needs a call of its own.
const ROWS_AT_ONCE: usize = 8;

pub(crate) const CONNECTION_ID: &str = "connectionId";
const USER_ID: &str = "userId";
const TOPICS: &str = "topics";
pub(crate) const CONNECTED_AT: &str = "connectedAt";
pub(crate) const CLOSED_AT: &str = "closedAt";
const GONE_AT: &str = "goneAt";
pub(crate) const TTL: &str = "ttl";
const EXPIRES_AT: &str = "expiresAt";
const ENDS_AT: &str = "endsAt";
const MAY_SUBSCRIBE: &str = "maySubscribe";
const MAY_PUBLISH: &str = "mayPublish";
const SAMPLES: &str = "samples";
const TOPIC: &str = "topic";
pub(crate) const PRESENCE: &str = "presence";
const DATA: &str = "data";
const DATA_AT: &str = "dataAt";
pub(crate) const POSITIONS: &str = "positions";
pub(crate) const BATCHES: &str = "batches";
pub(crate) const SUBSCRIPTION_ID: &str = "subscriptionId";

/// An item of a table, as the SDK has it.
pub type Item = HashMap<String, AttributeValue>;

/// The connections table and the topics table.
#[derive(Debug, Clone)]
pub struct ConnectionStore {
    dynamodb: Client,
    connections: String,
    topics: String,
    connection_ttl: Duration,
    rules: Rules,
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
    /// Whether it takes several messages in one frame.
    pub batches: bool,
    /// Whether it asks for changes of members.
    pub presence: bool,
    /// Whether its user is a member of the topic by it: the topic has presence.
    pub member: bool,
    /// What it says about its user, as JSON.
    pub data: Option<String>,
}

impl Subscription {
    /// A subscription that asks for nothing more than messages.
    #[must_use]
    pub fn new(topic: Topic, id: Option<String>) -> Self {
        Self { topic, id, ttl_s: None, positions: false, batches: false, presence: false, member: false, data: None }
    }
}

/// A member's row that has been there for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OldMember {
    /// The topic.
    pub topic: Topic,
    /// The connection by which its user is a member.
    pub connection_id: ConnectionId,
    /// Whether it no longer counts.
    pub has_expired: bool,
}

/// How a connection's row is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// By an eventually consistent `GetItem`, and by a strongly consistent one when that finds nothing that counts. It costs half a
    /// read unit.
    ///
    /// It may find a row as it was a moment ago, usually less than a second. Nothing depends on what can have changed since then:
    ///
    /// * The user never changes, so it is always the right sender.
    /// * The connection may have ended, or a backend may have ended it. The frame is then served as if it had come a moment earlier, and
    ///   a tombstone would let it find its sender, too. A subscribe writes on the condition that the connection is open.
    /// * An `auth` frame may have moved the end of the session. If the old end has passed, that is a miss and the second read knows
    ///   the new one. If the new end has passed, the frame is served once more; posts to the connection follow the rows that the
    ///   publisher reads strongly.
    /// * Grants may have changed, so nobody who asks for grants reads in this way: [`crate::rights::Who::freshness`].
    Usual,
    /// By one strongly consistent `GetItem`, which knows the grants of the latest `auth` frame.
    Latest,
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

/// What ended with a connection.
#[derive(Debug, PartialEq, Eq)]
pub struct Closed {
    /// Its user. A row that is gone, or that has none, does not say it.
    pub user: Option<UserId>,
    /// How many subscriptions it had.
    pub subscriptions: usize,
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
            rules: config.topic_rules.clone(),
        }
    }

    /// Stores a new connection and subscribes it to its user's address: one `BatchWriteItem`.
    ///
    /// # Errors
    ///
    /// When the rows could not be written before the deadline.
    pub async fn put(&self, connection: &Connection, deadline: Deadline) -> Result<(), Error> {
        let mut row = self.row(&connection.id, connection.connected_at_ms, connection.expires_at_s);
        row.extend(session(connection.expires_at_s, &connection.grants));
        let mut writes = HashMap::new();
        if let Some(address) = connection.user_id.as_ref().map(Topic::address) {
            row.insert(TOPICS.to_owned(), AttributeValue::Ss(vec![address.as_str().to_owned()]));
            let address = Subscription::new(address, None);
            let address_row =
                self.topic_row(&connection.id, connection.connected_at_ms, &address, connection.expires_at_s, None);
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

    /// Finds the user of a connection, open or closed a moment ago.
    ///
    /// # Errors
    ///
    /// When DynamoDB fails.
    pub async fn user_of(&self, id: &ConnectionId) -> Result<Option<UserId>, Error> {
        Ok(self.get(id, Freshness::Usual).await?.and_then(|connection| connection.user_id))
    }

    /// Counts a sample of the frames of a connection, and returns the samples of this window: one `UpdateItem`. The item is a
    /// tombstone, so nobody delivers to it, and it expires like one.
    ///
    /// # Errors
    ///
    /// When DynamoDB fails.
    pub async fn count_sample(&self, id: &ConnectionId, user: Option<&UserId>) -> Result<Samples, Error> {
        let of_connection = format!("{SAMPLES}:{id}");
        let key = samples_key(now_s() / i64::from(WINDOW_S), id, user);
        let update = self.dynamodb.update_item().table_name(&self.connections).set_key(Some(key));
        let update = update
            .update_expression("ADD #samples :one, #connection :one SET closedAt = :now, #ttl = :end")
            .expression_attribute_names("#samples", SAMPLES)
            .expression_attribute_names("#connection", &of_connection)
            .expression_attribute_names("#ttl", TTL)
            .expression_attribute_values(":one", AttributeValue::N("1".to_owned()))
            .expression_attribute_values(":now", AttributeValue::N(now_ms().to_string()))
            .expression_attribute_values(":end", AttributeValue::N((now_s() + SAMPLES_TTL_S).to_string()))
            .return_values(ReturnValue::UpdatedNew);
        let updated = update.send().await.map_err(|error| Error::store("UpdateItem", &self.connections, &error))?;
        let updated = updated.attributes.unwrap_or_default();
        let samples = |name: &str| number(&updated, name).and_then(|samples| u32::try_from(samples).ok()).unwrap_or(0);
        Ok(Samples { of_connection: samples(&of_connection), of_user: user.map(|_| samples(SAMPLES)) })
    }

    /// Locks a user out for [`LOCKED_OUT_S`], because a connection of this user sent too fast. The lock is a tombstone of the user,
    /// so nobody delivers to it, and it expires like one.
    ///
    /// # Errors
    ///
    /// When DynamoDB fails.
    pub async fn lock_out(&self, user: &UserId) -> Result<(), Error> {
        let lock = self.dynamodb.update_item().table_name(&self.connections).set_key(Some(lock_key(user)));
        let lock = lock
            .update_expression("SET closedAt = :now, #ttl = :end")
            .expression_attribute_names("#ttl", TTL)
            .expression_attribute_values(":now", AttributeValue::N(now_ms().to_string()))
            .expression_attribute_values(":end", AttributeValue::N((now_s() + LOCKED_OUT_S).to_string()));
        lock.send().await.map_err(|error| Error::store("UpdateItem", &self.connections, &error))?;
        Ok(())
    }

    /// Whether a user is locked out, by one eventually consistent `GetItem`.
    ///
    /// # Errors
    ///
    /// When DynamoDB fails.
    pub async fn is_locked_out(&self, user: &UserId) -> Result<bool, Error> {
        let get = self.dynamodb.get_item().table_name(&self.connections).set_key(Some(lock_key(user)));
        let lock = get.send().await.map_err(|error| Error::store("GetItem", &self.connections, &error))?.item;
        Ok(lock.is_some_and(|lock| number(&lock, TTL).is_some_and(|end_s| end_s > now_s())))
    }

    /// Reads one connection, which may have ended a moment ago. `None` means that there is no record, or that the session has
    /// ended: the client has to connect again.
    ///
    /// # Errors
    ///
    /// When DynamoDB fails.
    pub async fn get(&self, id: &ConnectionId, freshness: Freshness) -> Result<Option<Connection>, Error> {
        let reads: &[bool] = match freshness {
            Freshness::Usual => &[false, true],
            Freshness::Latest => &[true],
        };
        for consistent in reads {
            let call = self.dynamodb.get_item().table_name(&self.connections).set_key(Some(connection_key(id)));
            let call = call
                .consistent_read(*consistent)
                .projection_expression("userId, connectedAt, closedAt, expiresAt, maySubscribe, mayPublish, #ttl")
                .expression_attribute_names("#ttl", TTL);
            let output = call.send().await.map_err(|error| Error::store("GetItem", &self.connections, &error))?;
            if let Some(connection) = output.item.and_then(|row| self.connection(id, &row)) {
                return Ok(Some(connection));
            }
        }
        Ok(None)
    }

    /// Gives an open connection another session of the same user, and returns the topics to which it no longer listens, because
    /// its new grants do not allow them: `keeps` decides that. One `UpdateItem` and one strongly consistent `GetItem`, a
    /// `DeleteItem` for each topic that it may not keep, and an `UpdateItem` for each other topic if the end of the session has
    /// changed.
    ///
    /// The connection's row comes first. A subscribe at the same moment either finds that, or has written its topic's row before
    /// the row here is deleted or changed. The row is read again at the end: another `auth` frame may have changed it meanwhile,
    /// and then that one's session counts for the topics, too.
    ///
    /// # Errors
    ///
    /// [`ClientError::Unidentified`] when the connection is not stored or its session has ended, and
    /// [`ClientError::InvalidToken`] when it belongs to another user; then nothing has changed. [`ClientError::Busy`], or a
    /// fault.
    pub async fn renew(
        &self,
        connection: &Connection,
        keeps: impl Fn(&Topic, &Grants) -> bool,
        deadline: Deadline,
    ) -> Result<Vec<String>, Failure> {
        let id = &connection.id;
        let new = self.row(id, connection.connected_at_ms, connection.expires_at_s);
        let mut row = self.replace_session(connection, &new[TTL], deadline).await?;
        let (mut old_end_s, mut end_s, mut granted) = (number(&row, TTL), number(&new, TTL), connection.grants.clone());
        let mut removed = BTreeSet::new();
        for _ in 0..MAX_ATTEMPTS {
            let is_kept = |name: &&String| Topic::of_event(name).is_ok_and(|topic| keeps(&topic, &granted));
            let names = names_of(&row);
            let (kept, lost): (Vec<_>, Vec<_>) = names.iter().partition(is_kept);
            let deletes = lost.iter().map(|name| self.delete_row(name, id, deadline));
            let deletes: Vec<_> = deletes.collect();
            let deletes: Vec<_> = stream::iter(deletes).buffered(ROWS_AT_ONCE).try_collect().await?;
            removed
                .extend(lost.into_iter().zip(deletes).filter(|(_, was_live)| *was_live).map(|(name, _)| name.clone()));
            if let Some(end_s) = end_s.filter(|_| end_s != old_end_s) {
                let moves = kept.iter().map(|name| self.move_end(name, id, end_s, deadline));
                let moves: Vec<_> = moves.collect();
                stream::iter(moves).buffered(ROWS_AT_ONCE).try_collect::<()>().await?;
            }
            row = self.listed(id, deadline).await?.ok_or_else(ClientError::unregistered)?;
            let (now_end_s, now_granted) = (number(&row, TTL), grants(&row));
            if now_end_s == end_s && now_granted == granted {
                return Ok(removed.into_iter().collect());
            }
            (old_end_s, end_s, granted) = (end_s, now_end_s, now_granted);
        }
        Err(ClientError::Busy.into())
    }

    /// Writes the session of a connection into its row, if that is still open and of the same user. Returns the row as it was.
    async fn replace_session(
        &self,
        connection: &Connection,
        end_s: &AttributeValue,
        deadline: Deadline,
    ) -> Result<Item, Failure> {
        let user = connection.user_id.as_ref().map_or("", UserId::as_str);
        let session = session(connection.expires_at_s, &connection.grants);
        let (mut sets, mut removes) = ("SET #ttl = :ttl".to_owned(), Vec::new());
        for name in [EXPIRES_AT, MAY_SUBSCRIBE, MAY_PUBLISH] {
            match session.contains_key(name) {
                true => sets.push_str(&format!(", {name} = :{name}")),
                false => removes.push(name),
            }
        }
        if !removes.is_empty() {
            sets.push_str(&format!(" REMOVE {}", removes.join(", ")));
        }
        let values: HashMap<_, _> = session.into_iter().map(|(name, value)| (format!(":{name}"), value)).collect();
        let replaced = patiently(deadline, || async {
            let update = self.dynamodb.update_item().table_name(&self.connections);
            let update = update
                .set_key(Some(connection_key(&connection.id)))
                .update_expression(&sets)
                .condition_expression("userId = :user AND attribute_not_exists(closedAt) AND #ttl > :now")
                .expression_attribute_names("#ttl", TTL)
                .set_expression_attribute_values(Some(values.clone()))
                .expression_attribute_values(":ttl", end_s.clone())
                .expression_attribute_values(":user", string(user))
                .expression_attribute_values(":now", AttributeValue::N(now_s().to_string()))
                .return_values(ReturnValue::AllOld)
                .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
            self.changed(update.send().await)
        });
        replaced.await?.map_err(|row| match has_ended(&row) {
            true => ClientError::unregistered().into(),
            false => {
                let reason = "the token is another user's, and a connection never changes its user".to_owned();
                ClientError::InvalidToken { reason }.into()
            }
        })
    }

    /// Deletes the row of a topic, and returns whether the connection listened to it.
    async fn delete_row(&self, topic: &str, id: &ConnectionId, deadline: Deadline) -> Result<bool, Failure> {
        let old = patiently(deadline, || async {
            let delete = self.dynamodb.delete_item().table_name(&self.topics).set_key(Some(topic_key(topic, id)));
            let deleted = delete.return_values(ReturnValue::AllOld).send().await;
            Ok(deleted.map_err(|error| Error::store("DeleteItem", &self.topics, &error))?.attributes)
        });
        Ok(old.await?.is_some_and(|row| !has_ended(&row)))
    }

    /// Moves the end of a topic's row, if there is one, but not behind the end that the client asked for.
    async fn move_end(&self, topic: &str, id: &ConnectionId, end_s: i64, deadline: Deadline) -> Result<(), Failure> {
        let move_to = async |end_s: i64| {
            patiently(deadline, || async {
                let update = self.dynamodb.update_item().table_name(&self.topics).set_key(Some(topic_key(topic, id)));
                let update = update
                    .update_expression("SET #ttl = :end")
                    .condition_expression(
                        "attribute_exists(connectionId) AND (attribute_not_exists(endsAt) OR endsAt >= :end)",
                    )
                    .expression_attribute_names("#ttl", TTL)
                    .expression_attribute_values(":end", AttributeValue::N(end_s.to_string()))
                    .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
                let Err(error) = update.send().await else { return Ok(None) };
                let row = failed_condition(&error).ok_or_else(|| Error::store("UpdateItem", &self.topics, &error))?;
                Ok(number(row, ENDS_AT))
            })
            .await
        };
        // If the client has subscribed again meanwhile, its row has the right end already.
        match move_to(end_s).await? {
            Some(ends_at_s) => move_to(ends_at_s).await.map(drop),
            None => Ok(()),
        }
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
        let expires_at_s = number(row, EXPIRES_AT);
        let connection =
            || Connection { id: id.clone(), user_id, connected_at_ms, is_open, expires_at_s, grants: grants(row) };
        // A tombstone has a `ttl` of its own, which does not lengthen the session.
        let end_s = expires_at_s.map_or(ttl_s, |expires_at_s| expires_at_s.min(ttl_s));
        (end_s > now_s()).then(connection)
    }

    /// Ends a connection and all its subscriptions: one `UpdateItem`, which leaves a tombstone, then a `BatchWriteItem` for each
    /// 25 topics. The tombstone keeps the list of topics, so the call may be repeated when its answer is lost. `also` is a topic
    /// row that the caller knows of, in case the connection's own row is gone.
    ///
    /// # Errors
    ///
    /// When DynamoDB fails, or when it puts off deletions for too long. The rows that are left then expire.
    pub async fn close(&self, id: &ConnectionId, also: Option<&Topic>, deadline: Deadline) -> Result<Closed, Error> {
        let update = self
            .dynamodb
            .update_item()
            .table_name(&self.connections)
            .set_key(Some(connection_key(id)))
            .update_expression("SET closedAt = :now, #ttl = :soon REMOVE goneAt")
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
        let user = text(&old, USER_ID).and_then(|user| UserId::parse(USER_ID, user).ok());
        Ok(Closed { user, subscriptions: topics.len() })
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
    /// Step 3 also finds names that another frame of this connection has dropped as expired before step 2, and a session whose
    /// end an `auth` frame has changed. The three steps then begin anew. [`Self::drop_expired`] does its part for the case that it drops a name after step 3.
    ///
    /// One gap is left: a function that is killed between the steps 2 and 3 while its connection ends leaves rows. They expire
    /// with the connection, or go when the gateway has called it gone twice.
    ///
    /// Returns the grants that the connection had in step 3. If an `auth` frame takes some away later than that, it finds the
    /// rows and deletes them.
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
    ) -> Result<Grants, Failure> {
        let names: Vec<_> = subscriptions.iter().map(|wanted| wanted.topic.as_str().to_owned()).collect();
        for _ in 0..MAX_ATTEMPTS {
            let listed = self.list(id, &names, deadline).await?;
            let (end_s, user) = (number(&listed, TTL), text(&listed, USER_ID));
            let row = |wanted| put(self.topic_row(id, connected_at_ms, wanted, end_s, user));
            let rows: Vec<_> = subscriptions.iter().map(row).collect();
            self.write_topics(&rows, deadline).await.map_err(busy)?;
            let Some(row) = self.listed(id, deadline).await? else {
                self.forget(id, names.iter().map(String::as_str), deadline).await?;
                return Err(ClientError::unregistered().into());
            };
            let listed = names_of(&row);
            if number(&row, TTL) == end_s && names.iter().all(|name| listed.contains(name)) {
                info!(target: DETAIL, topics = names.len(), "a connection listens");
                return Ok(grants(&row));
            }
        }
        Err(ClientError::Busy.into())
    }

    /// Deletes the rows of topics. The names stay in the connection's row until the list is full.
    ///
    /// # Errors
    ///
    /// When DynamoDB fails, or when it puts off deletions for too long.
    pub async fn forget<'a>(
        &self,
        id: &ConnectionId,
        topics: impl Iterator<Item = &'a str>,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let deletes: Vec<_> = topics.map(|topic| delete(topic_key(topic, id))).collect();
        self.write_topics(&deletes, deadline).await
    }

    /// Ends a subscription, if there is one: a `GetItem`, and a `DeleteItem` of the topic's row. The name stays in the
    /// connection's row until the list is full, because a row that is written at the same moment needs it.
    ///
    /// # Errors
    ///
    /// [`ClientError::Unidentified`] when the connection is not stored, [`ClientError::Busy`], or a fault.
    pub async fn unsubscribe(&self, topic: &Topic, id: &ConnectionId, deadline: Deadline) -> Result<(), Failure> {
        let connection = self.get(id, Freshness::Usual).await?;
        connection.filter(|connection| connection.is_open).ok_or_else(ClientError::unregistered)?;
        patiently(deadline, || async {
            let delete = self.dynamodb.delete_item().table_name(&self.topics);
            let deleted = delete.set_key(Some(topic_key(topic.as_str(), id))).send().await;
            deleted.map(drop).map_err(|error| Error::store("DeleteItem", &self.topics, &error))
        })
        .await
    }

    /// The live receivers of an audience from a position on. Those of a topic are its own subscribers, and those of each
    /// pattern that a rule allows.
    #[must_use]
    pub fn receivers(&self, audience: &Audience, position: &Position) -> Receivers {
        let (table, patterns) = match audience {
            Audience::Topic(topic) | Audience::Presence(topic) => (&self.topics, self.rules.patterns_of(topic)),
            Audience::Everybody { .. } => (&self.connections, Vec::new()),
        };
        Receivers::new(self.dynamodb.clone(), table.clone(), audience, patterns, position)
    }

    /// Returns the members of a topic, with what the newest row of each says about its user: strongly consistent `Query` pages.
    /// Subscribers to patterns are no members.
    ///
    /// # Errors
    ///
    /// [`ClientError::Busy`], or a fault.
    pub async fn members(&self, topic: &Topic, deadline: Deadline) -> Result<Members, Failure> {
        let mut newest: BTreeMap<String, (i64, Option<String>)> = BTreeMap::new();
        let mut start = None;
        loop {
            let page = patiently(deadline, || async {
                let query = self
                    .dynamodb
                    .query()
                    .table_name(&self.topics)
                    .consistent_read(true)
                    .key_condition_expression("topic = :topic")
                    .filter_expression("#ttl > :now AND attribute_exists(userId)")
                    .projection_expression("userId, #data, dataAt")
                    .expression_attribute_names("#ttl", TTL)
                    .expression_attribute_names("#data", DATA)
                    .expression_attribute_values(":topic", string(topic.as_str()))
                    .expression_attribute_values(":now", AttributeValue::N(now_s().to_string()))
                    .set_exclusive_start_key(start.clone());
                query.send().await.map_err(|error| Error::store("Query", &self.topics, &error))
            });
            let page = page.await?;
            for row in page.items.unwrap_or_default() {
                let Some(user) = text(&row, USER_ID) else { continue };
                let says = (number(&row, DATA_AT).unwrap_or(0), text(&row, DATA).map(str::to_owned));
                let known = newest.entry(user.to_owned()).or_default();
                if says > *known {
                    *known = says;
                }
            }
            start = page.last_evaluated_key;
            if start.is_none() {
                return Ok(newest.into_iter().map(|(user, (_, data))| (user, data)).collect());
            }
        }
    }

    /// Returns a page of the rows of members that were there before `before_ms`, or have expired, and where the next page begins:
    /// one eventually consistent `Scan` of at most `limit` rows.
    ///
    /// # Errors
    ///
    /// When DynamoDB fails.
    pub async fn old_members(
        &self,
        before_ms: i64,
        limit: i32,
        start: Option<Item>,
    ) -> Result<(Vec<OldMember>, Option<Item>), Error> {
        let scan = self
            .dynamodb
            .scan()
            .table_name(&self.topics)
            .limit(limit)
            .filter_expression("attribute_exists(userId) AND (connectedAt < :before OR #ttl <= :now)")
            .projection_expression("topic, connectionId, #ttl")
            .expression_attribute_names("#ttl", TTL)
            .expression_attribute_values(":before", AttributeValue::N(before_ms.to_string()))
            .expression_attribute_values(":now", AttributeValue::N(now_s().to_string()))
            .set_exclusive_start_key(start);
        let page = scan.send().await.map_err(|error| Error::store("Scan", &self.topics, &error))?;
        let old = page.items.unwrap_or_default().into_iter().filter_map(|row| {
            Some(OldMember {
                topic: Topic::parse(text(&row, TOPIC)?).ok()?,
                connection_id: ConnectionId::new(text(&row, CONNECTION_ID)?.to_owned()),
                has_expired: number(&row, TTL)? <= now_s(),
            })
        });
        Ok((old.collect(), page.last_evaluated_key))
    }

    /// Deletes the row of a member if it has expired: DynamoDB may take days for it, and nobody is told meanwhile.
    ///
    /// # Errors
    ///
    /// When DynamoDB fails.
    pub async fn expire(&self, member: &OldMember) -> Result<(), Error> {
        let delete = self.dynamodb.delete_item().table_name(&self.topics);
        let delete = delete
            .set_key(Some(topic_key(member.topic.as_str(), &member.connection_id)))
            .condition_expression("#ttl <= :now")
            .expression_attribute_names("#ttl", TTL)
            .expression_attribute_values(":now", AttributeValue::N(now_s().to_string()));
        match delete.send().await {
            Err(error)
                if !error.as_service_error().is_some_and(DeleteItemError::is_conditional_check_failed_exception) =>
            {
                Err(Error::store("DeleteItem", &self.topics, &error))
            }
            // The connection has subscribed again meanwhile.
            _ => Ok(()),
        }
    }

    /// Changes what a connection says about its user in a topic: one conditional `UpdateItem`. Returns whether its user is a
    /// member by this connection.
    ///
    /// # Errors
    ///
    /// [`ClientError::Busy`], or a fault.
    pub async fn say(&self, topic: &Topic, id: &ConnectionId, data: &str, deadline: Deadline) -> Result<bool, Failure> {
        patiently(deadline, || async {
            let key = topic_key(topic.as_str(), id);
            let update = self.dynamodb.update_item().table_name(&self.topics).set_key(Some(key));
            let update = update
                .update_expression("SET #data = :data, dataAt = :now")
                .condition_expression("attribute_exists(userId) AND #ttl > :now_s")
                .expression_attribute_names("#data", DATA)
                .expression_attribute_names("#ttl", TTL)
                .expression_attribute_values(":data", string(data))
                .expression_attribute_values(":now", AttributeValue::N(now_ms().to_string()))
                .expression_attribute_values(":now_s", AttributeValue::N(now_s().to_string()));
            match update.send().await {
                Ok(_) => Ok(true),
                Err(error) if failed_condition(&error).is_some() => Ok(false),
                Err(error) => Err(Error::store("UpdateItem", &self.topics, &error)),
            }
        })
        .await
    }

    /// Returns the live subscriptions of an open connection, in the order of their topics: one strongly consistent `GetItem`
    /// and one `BatchGetItem`.
    ///
    /// # Errors
    ///
    /// [`ClientError::Unidentified`] when the connection is not stored, [`ClientError::Busy`], or a fault.
    pub async fn subscriptions(&self, id: &ConnectionId, deadline: Deadline) -> Result<Vec<Subscription>, Failure> {
        let row = self.listed(id, deadline).await?.ok_or_else(ClientError::unregistered)?;
        let names: Vec<_> = names_of(&row).into_iter().collect();
        let rows = self.live_rows(id, &names, deadline).await?;
        let subscription = |row: &Item| {
            Some(Subscription {
                topic: Topic::of_event(text(row, TOPIC)?).ok()?,
                id: text(row, SUBSCRIPTION_ID).map(str::to_owned),
                ttl_s: number(row, ENDS_AT),
                positions: is_set(row, POSITIONS),
                batches: is_set(row, BATCHES),
                presence: is_set(row, PRESENCE),
                member: row.contains_key(USER_ID),
                data: text(row, DATA).map(str::to_owned),
            })
        };
        let mut subscriptions: Vec<_> = rows.iter().filter_map(subscription).collect();
        subscriptions.sort_by(|one, other| one.topic.cmp(&other.topic));
        Ok(subscriptions)
    }

    /// Adds names to the set of an open connection, and makes room for them if the list is full. Returns its row.
    async fn list(&self, id: &ConnectionId, names: &[String], deadline: Deadline) -> Result<Item, Failure> {
        // At first all names count as new. Only a list that is nearly full shows whether they are.
        let mut most_listed = MAX_TOPICS.saturating_sub(names.len());
        for _ in 0..MAX_ATTEMPTS {
            let listed = match self.add_names(id, names, most_listed, deadline).await? {
                Ok(row) => return Ok(row),
                Err(listed) => listed,
            };
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

    /// Adds names to the set of an open connection, unless it has more than `most_listed`. Returns the row, or the set.
    async fn add_names(
        &self,
        id: &ConnectionId,
        names: &[String],
        most_listed: usize,
        deadline: Deadline,
    ) -> Result<Result<Item, BTreeSet<String>>, Failure> {
        let added = patiently(deadline, || async {
            let update = self.dynamodb.update_item().table_name(&self.connections).set_key(Some(connection_key(id)));
            let update = update
                .update_expression("ADD topics :names")
                .condition_expression(
                    "attribute_exists(connectionId) AND attribute_not_exists(closedAt) AND #ttl > :now AND \
                     (attribute_not_exists(topics) OR size(topics) <= :most)",
                )
                .expression_attribute_names("#ttl", TTL)
                .expression_attribute_values(":now", AttributeValue::N(now_s().to_string()))
                .expression_attribute_values(":names", AttributeValue::Ss(names.to_vec()))
                .expression_attribute_values(":most", AttributeValue::N(most_listed.to_string()))
                .return_values(ReturnValue::AllNew)
                .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
            self.changed(update.send().await)
        });
        match added.await? {
            Ok(row) => Ok(Ok(row)),
            Err(row) if has_ended(&row) => Err(ClientError::unregistered().into()),
            Err(row) => Ok(Err(names_of(&row))),
        }
    }

    /// The attributes that an update of a connection's row returned, or the row if it did not meet the condition.
    fn changed(
        &self,
        result: Result<UpdateItemOutput, SdkError<UpdateItemError>>,
    ) -> Result<Result<Item, Item>, Error> {
        match result {
            Ok(output) => Ok(Ok(output.attributes.unwrap_or_default())),
            Err(error) => match failed_condition(&error) {
                Some(row) => Ok(Err(row.clone())),
                None => Err(Error::store("UpdateItem", &self.connections, &error)),
            },
        }
    }

    /// Reads an open connection's row. `None` means that the connection, or its session, has ended.
    async fn listed(&self, id: &ConnectionId, deadline: Deadline) -> Result<Option<Item>, Failure> {
        let row = patiently(deadline, || async {
            let get = self.dynamodb.get_item().table_name(&self.connections).set_key(Some(connection_key(id)));
            let get = get
                .consistent_read(true)
                .projection_expression("connectionId, topics, closedAt, maySubscribe, mayPublish, #ttl")
                .expression_attribute_names("#ttl", TTL);
            let output = get.send().await;
            Ok(output.map_err(|error| Error::store("GetItem", &self.connections, &error))?.item)
        });
        Ok(row.await?.filter(|row| !has_ended(row)))
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
        patiently(deadline, || async {
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
        let rows = self.live_rows(id, names, deadline).await?;
        Ok(rows.iter().filter_map(|row| text(row, TOPIC)).map(str::to_owned).collect())
    }

    async fn live_rows(&self, id: &ConnectionId, names: &[String], deadline: Deadline) -> Result<Vec<Item>, Failure> {
        let keys = names.iter().map(|topic| topic_key(topic, id)).collect();
        let mut rows = batch_get(&self.dynamodb, &self.topics, keys, deadline).await?;
        rows.retain(|row| number(row, TTL).is_some_and(|ttl_s| ttl_s > now_s()));
        Ok(rows)
    }

    /// The row of a subscription, whose connection's row ends at `end_s`. The row of a user's address is the one that
    /// [`Self::put`] has written.
    fn topic_row(
        &self,
        id: &ConnectionId,
        connected_at_ms: i64,
        subscription: &Subscription,
        end_s: Option<i64>,
        user: Option<&str>,
    ) -> Item {
        let mut row = self.row(id, connected_at_ms, [subscription.ttl_s, end_s].into_iter().flatten().min());
        if let Some(ttl_s) = subscription.ttl_s {
            row.insert(ENDS_AT.to_owned(), AttributeValue::N(ttl_s.to_string()));
        }
        row.insert(TOPIC.to_owned(), string(subscription.topic.as_str()));
        if let Some(id) = &subscription.id {
            row.insert(SUBSCRIPTION_ID.to_owned(), string(id));
        }
        if subscription.positions {
            row.insert(POSITIONS.to_owned(), AttributeValue::Bool(true));
        }
        if subscription.batches {
            row.insert(BATCHES.to_owned(), AttributeValue::Bool(true));
        }
        if subscription.presence {
            row.insert(PRESENCE.to_owned(), AttributeValue::Bool(true));
        }
        if let Some(user) = user.filter(|_| subscription.member) {
            row.insert(USER_ID.to_owned(), string(user));
        }
        if let Some(data) = &subscription.data {
            row.insert(DATA.to_owned(), string(data));
            row.insert(DATA_AT.to_owned(), AttributeValue::N(now_ms().to_string()));
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

/// The attributes of a connection's row that its token or its authorizer decides. A set cannot be empty.
fn session(expires_at_s: Option<i64>, grants: &Grants) -> Item {
    let mut row = Item::new();
    if let Some(expires_at_s) = expires_at_s {
        row.insert(EXPIRES_AT.to_owned(), AttributeValue::N(expires_at_s.to_string()));
    }
    for (name, patterns) in [(MAY_SUBSCRIBE, &grants.subscribe), (MAY_PUBLISH, &grants.publish)] {
        if !patterns.is_empty() {
            row.insert(name.to_owned(), AttributeValue::Ss(patterns.iter().map(Pattern::text).collect()));
        }
    }
    row
}

/// The grants in a connection's row. What is no pattern grants nothing.
fn grants(row: &Item) -> Grants {
    let patterns = |name: &str| {
        let texts = row.get(name).and_then(|patterns| patterns.as_ss().ok()).into_iter().flatten();
        texts.filter_map(|text| Pattern::parse(name, text).ok()).collect()
    };
    Grants { subscribe: patterns(MAY_SUBSCRIBE), publish: patterns(MAY_PUBLISH) }
}

/// Whether a row, which may be missing, says that its connection or its session has ended.
fn has_ended(row: &Item) -> bool {
    row.is_empty() || row.contains_key(CLOSED_AT) || number(row, TTL).is_some_and(|ttl_s| ttl_s <= now_s())
}

pub(crate) fn string(text: &str) -> AttributeValue {
    AttributeValue::S(text.to_owned())
}

pub(crate) fn connection_key(id: &ConnectionId) -> Item {
    HashMap::from([(CONNECTION_ID.to_owned(), string(id.as_str()))])
}

/// The key of a user's lock in the table of connections. Ids of connections are Base64, which has no `@`.
fn lock_key(user: &UserId) -> Item {
    HashMap::from([(CONNECTION_ID.to_owned(), string(Topic::address(user).as_str()))])
}

/// The key of the samples of a window. No id of a connection and no lock begins with `#`.
fn samples_key(window: i64, id: &ConnectionId, user: Option<&UserId>) -> Item {
    let whose = user.map_or_else(|| id.to_string(), |user| Topic::address(user).to_string());
    HashMap::from([(CONNECTION_ID.to_owned(), string(&format!("#{window}#{whose}")))])
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

pub(crate) fn is_set(row: &Item, attribute: &str) -> bool {
    row.get(attribute).is_some_and(|value| value.as_bool().is_ok_and(|value| *value))
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
        let (found, left) = patiently(bound, || async {
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

/// Repeats a call while DynamoDB puts it off. `call` is no `AsyncFn`, because the compiler does not see that such a future is `Send`.
pub(crate) async fn patiently<T, F>(deadline: Deadline, call: impl Fn() -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Error>>,
{
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

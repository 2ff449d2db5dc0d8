//! Presence: which users are in a topic, what they say about themselves, and what its subscribers have been told.
//!
//! The **truth** is in the table of topics. A user is a member of a topic as long as a connection of that user has a live row
//! there. What a member says about itself is in the newest of these rows that says anything.
//!
//! What subscribers have been **told** is in the table of messages, because DynamoDB's stream repeats records, and two shards may
//! carry the rows of one user in any order. Nothing in a record says whether somebody was told of a user before. One item for each
//! topic and user does:
//!
//! | `p` | `s` | attributes |
//! |---|---|---|
//! | `u:<topic>` | `<user>` | `present` BOOL · `data?` S, JSON · `n` N, how often it changed · `by?` S, the record for which it changed, until all were told · `was?` BOOL, whether the user was present before · `ttl?` N, s, once the user has left |
//!
//! | `v` | `-` | `topic`, `connectionId` S: the row of a member behind which the next look at old rows begins |
//!
//! A record of the stream only says where to look: it names a topic and a user. [`Presence::announce`] compares what is true with what
//! was told, and changes the item on the condition that nobody else has. It then reads the truth again, so the last one to
//! write has seen the last change. `by` goes when the frames are out. A record that comes again while `by` is there is the
//! repetition of a try that was killed, and its frames are sent again. Otherwise there is nothing to do.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::clock::now_s;
use crate::deadline::Deadline;
use crate::frame;
use crate::publication::{Audience, Content, Publication};
use crate::store::{ConnectionStore, Item, batch_get, is_set, number, patiently, string, text};
use crate::topic::Topic;
use crate::{ClientError, Error, Failure};

/// How many users a list has at most. Beyond that there is only their number.
pub const MAX_LISTED: usize = 1000;

/// Largest `data` of a member, in bytes of JSON.
pub const MAX_DATA_BYTES: usize = 1024;

/// How long a user who left is remembered: as long as a record of the stream may come again.
const LEFT_TTL_S: i64 = 24 * 60 * 60;

/// How often the truth is read again before the rest is left to the next try.
const MAX_ROUNDS: usize = 6;

/// How many items are changed at the same time.
const ITEMS_AT_ONCE: usize = 16;

/// The members of a topic, and what each one says about itself.
pub type Members = BTreeMap<String, Option<String>>;

/// The users of a topic whose rows have changed, each with the sequence numbers of the records that say so.
pub type ChangedUsers = BTreeMap<String, BTreeSet<String>>;

/// What becomes of one user in a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The user has come, and maybe says something.
    Joined(Option<String>),
    /// The user has gone.
    Left,
    /// The user says something else, or nothing any more.
    Says(Option<String>),
}

/// What has been told about a user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Told {
    present: bool,
    data: Option<String>,
    /// How often it changed. Zero means that there is no item.
    n: i64,
    /// The record for which it changed, while its frames may not be out.
    by: Option<String>,
    was: bool,
}

/// The stores behind presence.
#[derive(Debug, Clone)]
pub struct Presence {
    dynamodb: Client,
    table: String,
    store: ConnectionStore,
}

/// What has to be told to the subscribers of a topic. [`Presence::settle`] ends it.
#[derive(Debug)]
pub struct Announcement {
    topic: Topic,
    /// The changes, by user.
    pub changes: BTreeMap<String, Change>,
    /// The items whose `by` has to go: users and records.
    claimed: BTreeMap<String, String>,
}

impl Presence {
    pub(crate) fn new(dynamodb: Client, table: String, store: ConnectionStore) -> Self {
        Self { dynamodb, table, store }
    }

    /// Finds out what has to be told about some users of a topic, and notes that it is being told.
    ///
    /// # Errors
    ///
    /// When DynamoDB fails, or puts off calls for too long. Then the same records have to come again.
    pub async fn announce(
        &self,
        topic: &Topic,
        changed: &ChangedUsers,
        deadline: Deadline,
    ) -> Result<Announcement, Failure> {
        // What receivers know of each user who is announced here, and what they will know.
        let (mut before, mut after): (BTreeMap<String, Told>, BTreeMap<String, Told>) = Default::default();
        let mut claimed = BTreeMap::new();
        let mut open: BTreeSet<&String> = changed.keys().collect();
        for _ in 0..MAX_ROUNDS {
            let members = self.store.members(topic, deadline).await?;
            let told = self.told(topic, &open, deadline).await?;
            let mut changes = Vec::new();
            for user in std::mem::take(&mut open) {
                let known = told.get(user).cloned().unwrap_or_default();
                let repeated =
                    known.by.as_ref().filter(|by| changed[user].contains(*by) && !claimed.contains_key(user));
                if let Some(by) = repeated {
                    // An earlier try of these records was killed before its frames were out, or after that.
                    claimed.insert(user.clone(), by.clone());
                    before.insert(user.clone(), Told { present: known.was, ..Told::default() });
                    after.insert(user.clone(), known.clone());
                }
                let data = members.get(user);
                let (present, data) = (data.is_some(), data.cloned().flatten());
                if (known.present, &known.data) == (present, &data) {
                    continue;
                }
                changes.push((user, known, present, data));
            }
            let claims = changes.into_iter().map(|(user, known, present, data)| {
                let by = changed[user].first().cloned().unwrap_or_default();
                let was = before.get(user).map_or(known.present, |before| before.present);
                async move {
                    let told = Told { present, data, n: known.n + 1, by: Some(by), was };
                    let is_ours = self.claim(topic, user, &told, deadline).await?;
                    Ok::<_, Failure>((user, known, told, is_ours))
                }
            });
            let claims: Vec<_> = claims.collect();
            let claims: Vec<_> = stream::iter(claims).buffered(ITEMS_AT_ONCE).try_collect().await?;
            for (user, known, told, is_ours) in claims {
                // The truth may have changed since it was read, so it is read again.
                open.insert(user);
                if is_ours {
                    claimed.insert(user.clone(), told.by.clone().unwrap_or_default());
                    before.entry(user.clone()).or_insert(known);
                    after.insert(user.clone(), told);
                }
            }
            if open.is_empty() {
                let changes = before.iter().filter_map(|(user, before)| {
                    let after = &after[user];
                    let data = after.data.clone();
                    let change = match (before.present, after.present) {
                        (false, true) => Change::Joined(data),
                        (true, false) => Change::Left,
                        (true, true) if before.data != data => Change::Says(data),
                        _ => return None,
                    };
                    Some((user.clone(), change))
                });
                return Ok(Announcement { topic: topic.clone(), changes: changes.collect(), claimed });
            }
        }
        Err(ClientError::Busy.into())
    }

    /// Notes that the frames of an announcement are out.
    ///
    /// # Errors
    ///
    /// As [`Presence::announce`]; the frames then come again.
    pub async fn settle(&self, announcement: &Announcement, deadline: Deadline) -> Result<(), Failure> {
        let settles = announcement.claimed.iter().map(|(user, by)| async move {
            patiently(deadline, || async {
                let update = self.dynamodb.update_item().table_name(&self.table);
                let update = update
                    .set_key(Some(key(&announcement.topic, user)))
                    .update_expression("REMOVE #by, was")
                    .condition_expression("#by = :by")
                    .expression_attribute_names("#by", "by")
                    .expression_attribute_values(":by", string(by));
                match update.send().await {
                    Err(error) if !is_condition(error.as_service_error()) => {
                        Err(Error::store("UpdateItem", &self.table, &error))
                    }
                    // Somebody else has changed the item meanwhile, and ends it.
                    _ => Ok(()),
                }
            })
            .await
        });
        let settles: Vec<_> = settles.collect();
        stream::iter(settles).buffer_unordered(ITEMS_AT_ONCE).try_collect::<()>().await
    }

    /// Reads where the look at old rows has stopped; nothing if it begins anew.
    ///
    /// # Errors
    ///
    /// [`ClientError::Busy`], or a fault.
    pub async fn cursor(&self, deadline: Deadline) -> Result<Option<Item>, Failure> {
        let item = batch_get(&self.dynamodb, &self.table, vec![cursor_key()], deadline).await?.pop();
        let is_key = |name: &String| ["topic", "connectionId"].contains(&name.as_str());
        let key = item.unwrap_or_default().into_iter().filter(|(name, _)| is_key(name)).collect::<Item>();
        Ok((key.len() == 2).then_some(key))
    }

    /// Notes where the look at old rows has stopped.
    ///
    /// # Errors
    ///
    /// When DynamoDB fails.
    pub async fn stop_at(&self, key: Option<&Item>) -> Result<(), Error> {
        let update = self.dynamodb.update_item().table_name(&self.table).set_key(Some(cursor_key()));
        let update = match key {
            None => update.update_expression("REMOVE topic, connectionId"),
            Some(key) => update
                .update_expression("SET topic = :topic, connectionId = :connection")
                .expression_attribute_values(":topic", key["topic"].clone())
                .expression_attribute_values(":connection", key["connectionId"].clone()),
        };
        update.send().await.map(drop).map_err(|error| Error::store("UpdateItem", &self.table, &error))
    }

    /// Reads what was told about some users: one strongly consistent `BatchGetItem` for each 100.
    async fn told(
        &self,
        topic: &Topic,
        users: &BTreeSet<&String>,
        deadline: Deadline,
    ) -> Result<BTreeMap<String, Told>, Failure> {
        let keys = users.iter().map(|user| key(topic, user)).collect();
        let items = batch_get(&self.dynamodb, &self.table, keys, deadline).await?;
        let told = items.iter().filter_map(|item| {
            let told = Told {
                present: is_set(item, "present"),
                data: text(item, "data").map(str::to_owned),
                n: number(item, "n").unwrap_or(0),
                by: text(item, "by").map(str::to_owned),
                was: is_set(item, "was"),
            };
            Some((text(item, "s")?.to_owned(), told))
        });
        Ok(told.collect())
    }

    /// Changes what was told about a user, if nobody else has changed it meanwhile.
    async fn claim(&self, topic: &Topic, user: &str, told: &Told, deadline: Deadline) -> Result<bool, Failure> {
        let (mut sets, mut removes) =
            ("SET present = :present, n = :n, #by = :by, was = :was".to_owned(), "".to_owned());
        match &told.data {
            Some(_) => sets.push_str(", #data = :data"),
            None => removes.push_str("#data"),
        }
        if told.present {
            removes.push_str(if removes.is_empty() { "#ttl" } else { ", #ttl" });
        } else {
            sets.push_str(", #ttl = :ttl");
        }
        let expression = if removes.is_empty() { sets } else { format!("{sets} REMOVE {removes}") };
        patiently(deadline, || async {
            let update = self.dynamodb.update_item().table_name(&self.table).set_key(Some(key(topic, user)));
            let mut update = update
                .update_expression(&expression)
                .condition_expression(if told.n == 1 { "attribute_not_exists(p)" } else { "n = :old" })
                .expression_attribute_names("#by", "by")
                .expression_attribute_names("#data", "data")
                .expression_attribute_names("#ttl", "ttl")
                .expression_attribute_values(":present", AttributeValue::Bool(told.present))
                .expression_attribute_values(":was", AttributeValue::Bool(told.was))
                .expression_attribute_values(":by", string(told.by.as_deref().unwrap_or_default()))
                .expression_attribute_values(":n", AttributeValue::N(told.n.to_string()));
            if told.n > 1 {
                update = update.expression_attribute_values(":old", AttributeValue::N((told.n - 1).to_string()));
            }
            if let Some(data) = &told.data {
                update = update.expression_attribute_values(":data", string(data));
            }
            if !told.present {
                let ttl_s = AttributeValue::N((now_s() + LEFT_TTL_S).to_string());
                update = update.expression_attribute_values(":ttl", ttl_s);
            }
            match update.send().await {
                Ok(_) => Ok(true),
                Err(error) if is_condition(error.as_service_error()) => Ok(false),
                Err(error) => Err(Error::store("UpdateItem", &self.table, &error)),
            }
        })
        .await
    }
}

impl Announcement {
    /// The publications that tell it, to those subscribers that asked for presence. There are several only if the changes do
    /// not fit one continuation.
    #[must_use]
    pub fn publications(&self, id: &str) -> Vec<Publication> {
        let frames = frame::presence_changes(&self.topic, &self.changes);
        let publication = |frames: &[_]| {
            let (audience, content) = (Audience::Presence(self.topic.clone()), Content::Frames(frames.to_vec()));
            Publication::new(audience, content, id)
        };
        frames.chunks(MAX_FRAMES).map(publication).collect()
    }
}

/// How many frames of changes one publication has. A frame has about 32 KB, and a continuation at most 400 KB.
const MAX_FRAMES: usize = 8;

fn cursor_key() -> Item {
    Item::from([("p".to_owned(), string("v")), ("s".to_owned(), string("-"))])
}

fn key(topic: &Topic, user: &str) -> Item {
    Item::from([("p".to_owned(), string(&format!("u:{topic}"))), ("s".to_owned(), string(user))])
}

fn is_condition(error: Option<&UpdateItemError>) -> bool {
    error.is_some_and(UpdateItemError::is_conditional_check_failed_exception)
}

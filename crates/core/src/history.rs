//! The table of messages. Topics with history keep their messages in it, each under a number.
//!
//! | item | `p` | `s` | attributes |
//! |---|---|---|---|
//! | head | `h:<topic>` | `-` | `epoch` S · `last` N, the number that was taken last · `at` N, ms: when · `ttl` N, s |
//! | message | `m:<topic>` | `<epoch>/<number, 12 digits>` | `json` S · `senderId?` S · `cid?` S, writer and id · `w` S, the invocation · `at` N, ms: when its number was taken · `prev?` N, ms: when the number before it was taken · `prevTtl?` N, s: until when that is kept · `ttl` N, s |
//! | tombstone | as a message | | `hole` BOOL · `at` N · `prev?` N · `prevTtl?` N · `ttl` N |
//! | binding | `i:<topic>⏎<writer>` | `<id>` | `epoch` S · `seq`, `at`, `prev?`, `prevTtl?`, `ttl` N |
//!
//! Names contain no control characters, so no two topics and writers share a key. This module alone knows the layout.
//!
//! An append takes a number from the **head**, binds it to the writer's id, and writes the **message** under it. Each step
//! is one write of one item, and each may be repeated. A number has one taker, because the head counts in one update. An id
//! has one number, because the first **binding** wins. A number has one content, because nothing overwrites a message or a
//! **tombstone**. A tombstone says that a number was taken and will never have a message.
//!
//! An append that is interrupted after the first step leaves a number without a message. One that is interrupted after
//! the second step is finished by the writer's repetition, which finds the binding.
//!
//! **What a missing number means** to a reader depends on when it was taken, which the next item says in `prev`, or the head
//! in `at`. It may still come, for [`IN_FLIGHT_MS`]. Later it never was written, if its message would still be kept:
//! `prevTtl` says that, or the item before it, because no message is kept longer than the one behind it. The reader then
//! writes a tombstone, and nobody can write a message there any more. Otherwise the message may have been there and have
//! expired, and the reader says honestly that something may be missing.

use std::collections::{BTreeMap, HashMap};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::types::{AttributeValue, KeysAndAttributes, ReturnValue, ReturnValuesOnConditionCheckFailure};
use lambda_runtime::tracing::warn;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::clock::{now_ms, now_s};
use crate::config::Config;
use crate::connection::{ConnectionId, UserId};
use crate::deadline::Deadline;
use crate::rules::Rules;
use crate::store::{self, Item, TTL, number, string, text};
use crate::topic::Topic;
use crate::{ClientError, Error, Failure};
use futures_util::stream::{self, StreamExt};

/// A head is kept this much longer than its last message, so that a quiet topic goes on counting where it stopped.
const HEAD_KEPT_S: i64 = 30 * 24 * 3600;

/// A binding ends this much earlier than its message, so that it never names a message that is gone.
const BINDING_ENDS_EARLIER_S: i64 = 10 * 60;

/// A number that was taken less than this long ago may still get its message.
const IN_FLIGHT_MS: i64 = 10_000;

/// A message that expires within this time may be gone already, because the clocks of environments differ.
const MARGIN_S: i64 = 60;

/// The most messages that one subscribe frame catches up with, in all its topics together.
pub const MAX_RESUMED: u64 = 1000;

/// The number of topics of one subscribe frame that are read at the same time.
const RESUMED_AT_ONCE: usize = 8;

/// The most of the newest messages that a subscriber can ask for.
pub const MAX_NEWEST: u64 = 100;

/// The number of messages that a query returns without a `limit`, and the most that it returns.
pub const DEFAULT_LIMIT: u64 = 100;
/// See [`DEFAULT_LIMIT`].
pub const MAX_LIMIT: u64 = 1000;

/// The number of newest items that are checked for numbers without a message.
const LOOKED_AT: u64 = 100;

/// The most numbers that one append takes. It needs a second one only when a reader gave up waiting for the first one.
const MAX_NUMBERS: usize = 5;

/// The greatest number that keys have digits for.
pub const MAX_SEQ: u64 = 999_999_999_999;

const P: &str = "p";
const S: &str = "s";
const EPOCH: &str = "epoch";
const LAST: &str = "last";
const SEQ: &str = "seq";
const AT: &str = "at";
const PREV: &str = "prev";
const PREV_TTL: &str = "prevTtl";
const JSON: &str = "json";
const SENDER_ID: &str = "senderId";
const CLIENT_ID: &str = "cid";
const WRITER: &str = "w";
const HOLE: &str = "hole";

/// The place of a message in its topic: the number `seq` of an epoch. Numbers rise by one within an epoch. A new epoch
/// begins only when a topic's head was lost, and its name is greater than the name of the epoch before.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Stamp {
    /// The name of the epoch, 8 characters.
    pub epoch: String,
    /// The number, from 1.
    pub seq: u64,
}

/// The owner of an id: only the same writer repeats a message with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Writer {
    /// A user, from any of its connections.
    User(UserId),
    /// A connection without a user. After a reconnect it is another writer.
    Connection(ConnectionId),
}

impl Writer {
    /// The writer in keys. The kinds cannot be confused: users begin with `@`, and connections with a word and a space.
    fn key(&self) -> String {
        match self {
            Self::User(user) => format!("@{user}"),
            Self::Connection(id) => format!("connection {id}"),
        }
    }
}

/// A message that has to be kept.
#[derive(Debug, Clone)]
pub struct Draft<'a> {
    /// The payload that receivers get.
    pub json: &'a RawValue,
    /// The user that sent it.
    pub sender: Option<&'a UserId>,
    /// The writer and its id. Without them, each call keeps one more message.
    pub id: Option<(Writer, &'a str)>,
    /// Whether the writer calls this a repetition. Then the append takes a number only if the id has none.
    pub again: bool,
    /// Lambda's id of this invocation.
    pub invocation_id: &'a str,
}

/// The result of an append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    /// The place of the message.
    pub stamp: Stamp,
    /// Whether it was there before.
    pub duplicate: bool,
}

/// One number of a topic, as a reader finds it.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The number.
    pub seq: u64,
    /// Its message, or `None` for a tombstone.
    pub message: Option<KeptMessage>,
    /// The time when the number was taken, in epoch milliseconds.
    pub at_ms: i64,
    /// When the number before it was taken, and until when that is kept.
    prev: Option<(i64, i64)>,
    ttl_s: i64,
}

/// A message that was kept.
#[derive(Debug, Clone)]
pub struct KeptMessage {
    /// The payload that receivers got.
    pub json: Box<RawValue>,
    /// The user that sent it.
    pub sender: Option<UserId>,
}

/// The part of a topic's history that a subscriber asked for.
#[derive(Debug, Clone)]
pub struct Resumed {
    /// The position from which the subscriber goes on. Everything behind it reaches the subscriber live.
    pub stamp: Stamp,
    /// The entries before that position that the subscriber asked for, in order.
    pub entries: Vec<Entry>,
    /// For a subscriber that names its last position: whether `entries` has everything behind it.
    pub recovered: Option<bool>,
}

/// The place where a subscriber's history begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum From {
    /// Behind a position.
    After(Stamp),
    /// At this many of the newest messages.
    Newest(u64),
}

/// The part of the history that a query asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Range {
    /// The entries behind a position, in order.
    After(Stamp),
    /// The entries before a position, newest first.
    Before(Stamp),
    /// The newest messages, newest first.
    Newest,
}

/// A part of a topic's history.
#[derive(Debug, Clone)]
pub struct Page {
    /// The epoch of all numbers.
    pub epoch: String,
    /// The entries.
    pub entries: Vec<Entry>,
    /// Whether there is more in the same direction.
    pub more: bool,
}

/// The numbers behind a position, as far as they are settled.
struct Walk {
    entries: Vec<Entry>,
    end: End,
}

/// The reason why a walk ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It came to the last number.
    Settled,
    /// The next number may still come.
    InFlight,
    /// The next number may have expired.
    Lost,
    /// It has as many entries as were wanted, and there are more.
    Full,
}

/// A topic's head.
#[derive(Debug, Clone)]
struct Head {
    stamp: Stamp,
    at_ms: i64,
    /// Until when its last message is kept.
    kept_until_s: i64,
}

/// The table of messages, and the rules that give topics a history.
#[derive(Debug, Clone)]
pub struct History {
    dynamodb: Client,
    table: String,
    rules: Rules,
}

/// The messages of one topic.
#[derive(Debug, Clone)]
pub struct Log<'a> {
    history: &'a History,
    topic: &'a Topic,
    kept_s: i64,
}

/// A number that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Number {
    stamp: Stamp,
    at_ms: i64,
    /// When the number before it was taken, and until when that is kept in seconds.
    prev: Option<(i64, i64)>,
}

/// The item under a number after an attempt to write it.
enum Written {
    /// This message, written now or by this invocation.
    Now,
    /// This message, written by another invocation.
    Before,
    /// A tombstone, or something that this code did not write.
    Never,
}

impl History {
    /// The table that `config` names, through `dynamodb`.
    #[must_use]
    pub fn new(dynamodb: Client, config: &Config) -> Self {
        Self { dynamodb, table: config.messages_table.clone(), rules: config.topic_rules.clone() }
    }

    /// The messages of a topic, if a rule says that they are kept.
    #[must_use]
    pub fn of<'a>(&'a self, topic: &'a Topic) -> Option<Log<'a>> {
        let kept = self.rules.kept(topic)?;
        Some(Log { history: self, topic, kept_s: i64::try_from(kept.as_secs()).unwrap_or(i64::MAX / 2) })
    }
}

impl History {
    /// Returns the topics that have gone on since a client was there: one eventually consistent `BatchGetItem` of their
    /// heads. A head that DynamoDB puts off is left to the next call.
    ///
    /// # Errors
    ///
    /// When DynamoDB fails.
    pub async fn behind(&self, positions: &[(Topic, Stamp)]) -> Result<BTreeMap<String, Stamp>, Error> {
        let logs: Vec<_> = positions.iter().filter_map(|(topic, stamp)| Some((self.of(topic)?, stamp))).collect();
        if logs.is_empty() {
            return Ok(BTreeMap::new());
        }
        let keys = logs.iter().map(|(log, _)| log.head_key()).collect();
        let keys = KeysAndAttributes::builder().set_keys(Some(keys)).consistent_read(false);
        let keys = keys.build().expect("the keys are set");
        let output = self.dynamodb.batch_get_item().request_items(&self.table, keys).send().await;
        let output = output.map_err(|error| Error::store("BatchGetItem", &self.table, &error))?;
        let heads = output.responses.unwrap_or_default().remove(&self.table).unwrap_or_default();
        let heads: HashMap<_, _> =
            heads.iter().filter_map(|item| Some((text(item, P)?.to_owned(), head_of(item)?.stamp))).collect();
        let behind = logs.into_iter().filter_map(|(log, stamp)| {
            let head = heads.get(&format!("h:{}", log.topic))?;
            let has_gone_on = head.epoch > stamp.epoch || (head.epoch == stamp.epoch && head.seq > stamp.seq);
            has_gone_on.then(|| (log.topic.to_string(), head.clone()))
        });
        Ok(behind.collect())
    }
}

impl History {
    /// Reads what a subscriber of several topics needs: one `BatchGetItem` of all heads, and a `Query` for each topic that has
    /// gone on. The rows of the subscriber must have been written before, so that nothing falls between what is read here and
    /// what it receives live. All reads are strongly consistent.
    ///
    /// `None` stands for a topic that could not be read now. The reason is that DynamoDB puts off calls, that the time is over,
    /// or that the topics before it have taken the messages of this frame, [`MAX_RESUMED`]. The first topic that has any is
    /// always read, so a client that asks again for those that are left comes to an end.
    ///
    /// # Errors
    ///
    /// When DynamoDB fails.
    pub async fn resume(&self, wanted: &[(Log<'_>, From)], deadline: Deadline) -> Result<Vec<Option<Resumed>>, Error> {
        let keys = wanted.iter().map(|(log, _)| log.head_key()).collect();
        let heads = match store::batch_get(&self.dynamodb, &self.table, keys, deadline).await {
            Ok(items) => items,
            Err(Failure::Mistake(_)) => return Ok(wanted.iter().map(|_| None).collect()),
            Err(Failure::Fault(fault)) => return Err(fault),
        };
        let heads: HashMap<_, _> =
            heads.iter().filter_map(|item| Some((text(item, P)?.to_owned(), head_of(item)?))).collect();
        let mut left = MAX_RESUMED;
        let reads = wanted.iter().map(|(log, from)| {
            let head = heads.get(&format!("h:{}", log.topic)).cloned();
            let count = head.as_ref().map_or(0, |head| from.count(head));
            let fits = left.checked_sub(count);
            left = fits.unwrap_or(left);
            async move {
                match fits {
                    Some(_) => log.resume(from, head, deadline).await.map(Some),
                    None => Ok(None),
                }
            }
        });
        let reads: Vec<_> = reads.collect();
        let resumed: Vec<_> = stream::iter(reads).buffered(RESUMED_AT_ONCE).collect().await;
        let put_off = |failure| match failure {
            Failure::Mistake(_) | Failure::Fault(Error::OutOfTime { .. }) => Ok(None),
            Failure::Fault(fault) => Err(fault),
        };
        resumed.into_iter().map(|resumed| resumed.or_else(put_off)).collect()
    }
}

impl From {
    /// How many messages a subscriber gets at most. One that has missed too many gets none.
    fn count(&self, head: &Head) -> u64 {
        let Stamp { epoch, seq: last } = &head.stamp;
        match self {
            Self::After(after) if after.epoch == *epoch => {
                last.checked_sub(after.seq).filter(|count| *count <= MAX_RESUMED).unwrap_or(0)
            }
            Self::After(_) => 0,
            Self::Newest(count) => *last.min(count),
        }
    }
}

impl Log<'_> {
    /// Keeps a message: an `UpdateItem`, a `PutItem` for the id if there is one, and a `PutItem`. A repetition that
    /// says so costs a `GetItem` in the place of the first two, if its first try got that far.
    ///
    /// # Errors
    ///
    /// [`ClientError::InvalidField`] when the id belongs to another message, [`ClientError::Busy`], or a fault. The
    /// message may be kept all the same; a repetition with its id finds that out.
    pub async fn append(&self, draft: &Draft<'_>, deadline: Deadline) -> Result<Appended, Failure> {
        let append = tokio::time::timeout(deadline.left(), self.append_in_time(draft, deadline));
        append.await.map_err(|_| Error::OutOfTime { topic: self.topic.to_string() })?
    }

    async fn append_in_time(&self, draft: &Draft<'_>, deadline: Deadline) -> Result<Appended, Failure> {
        let binding = draft.id.as_ref().map(|(writer, id)| self.binding_key(writer, id));
        let bound = match &binding {
            Some(key) if draft.again => self.bound(key, deadline).await?,
            _ => None,
        };
        let mut number = match (bound, &binding) {
            (Some(bound), _) => bound,
            (None, Some(key)) => self.bind(key, self.take(deadline).await?, deadline).await?,
            (None, None) => self.take(deadline).await?,
        };
        for _ in 0..MAX_NUMBERS {
            match self.write(&number, draft, deadline).await? {
                Written::Now => return Ok(Appended { stamp: number.stamp, duplicate: false }),
                Written::Before => return Ok(Appended { stamp: number.stamp, duplicate: true }),
                Written::Never => {
                    let fresh = self.take(deadline).await?;
                    number = match &binding {
                        Some(key) => self.rebind(key, &number, fresh, deadline).await?,
                        None => fresh,
                    };
                }
            }
        }
        warn!(topic.name = %self.topic, "a message found no number: readers gave up each one before it was written");
        Err(ClientError::Busy.into())
    }

    /// Takes the next number. The first one of a topic makes its head and its epoch in the same write.
    async fn take(&self, deadline: Deadline) -> Result<Number, Failure> {
        let at_ms = now_ms();
        let fresh = epoch(at_ms);
        let ttl_s = at_ms / 1000 + self.kept_s + HEAD_KEPT_S;
        let old = self
            .patiently(deadline, async || {
                let update = self
                    .history
                    .dynamodb
                    .update_item()
                    .table_name(&self.history.table)
                    .set_key(Some(self.head_key()))
                    .update_expression(
                        "SET epoch = if_not_exists(epoch, :fresh), #at = :at, #ttl = :ttl ADD #last :one",
                    )
                    .expression_attribute_names("#at", AT)
                    .expression_attribute_names("#ttl", TTL)
                    .expression_attribute_names("#last", LAST)
                    .expression_attribute_values(":fresh", string(&fresh))
                    .expression_attribute_values(":at", numeric(at_ms))
                    .expression_attribute_values(":ttl", numeric(ttl_s))
                    .expression_attribute_values(":one", numeric(1))
                    .return_values(ReturnValue::AllOld);
                let output = update.send().await.map_err(|error| self.fault("UpdateItem", &error))?;
                Ok(output.attributes.unwrap_or_default())
            })
            .await?;
        let last = number(&old, LAST).and_then(|last| u64::try_from(last).ok()).unwrap_or(0);
        let stamp = Stamp { epoch: text(&old, EPOCH).map_or(fresh, str::to_owned), seq: last + 1 };
        let prev = number(&old, AT).zip(number(&old, TTL).map(|ttl_s| ttl_s - HEAD_KEPT_S)).filter(|_| last > 0);
        Ok(Number { stamp, at_ms, prev })
    }

    /// The number that an id is bound to.
    async fn bound(&self, key: &Item, deadline: Deadline) -> Result<Option<Number>, Failure> {
        let item = self.get(key, deadline).await?;
        let is_live = |item: &Item| number(item, TTL).is_some_and(|ttl_s| ttl_s > now_s());
        Ok(item.filter(is_live).and_then(|item| number_of(&item)))
    }

    /// Binds a number to an id, unless the id has one. Returns the id's number. If that is another one than `taken`,
    /// `taken` gets a tombstone.
    async fn bind(&self, key: &Item, taken: Number, deadline: Deadline) -> Result<Number, Failure> {
        let values = [(":now", numeric(now_s()))];
        self.bind_if("attribute_not_exists(p) OR #ttl <= :now", &values, key, taken, deadline).await
    }

    /// Binds an id to `fresh` instead of `old`, unless somebody else was faster.
    async fn rebind(&self, key: &Item, old: &Number, fresh: Number, deadline: Deadline) -> Result<Number, Failure> {
        let Stamp { epoch, seq } = &old.stamp;
        let values = [(":epoch", string(epoch)), (":seq", AttributeValue::N(seq.to_string()))];
        self.bind_if("attribute_not_exists(p) OR (epoch = :epoch AND seq = :seq)", &values, key, fresh, deadline).await
    }

    async fn bind_if(
        &self,
        condition: &str,
        values: &[(&str, AttributeValue)],
        key: &Item,
        taken: Number,
        deadline: Deadline,
    ) -> Result<Number, Failure> {
        let there = self.put_if(condition, values, self.binding(key, &taken), deadline).await?;
        match there.as_ref().and_then(number_of) {
            // A first try whose answer was lost may have written `taken` itself.
            Some(bound) if bound.stamp != taken.stamp => {
                self.bury(&taken, deadline).await;
                Ok(bound)
            }
            _ => Ok(taken),
        }
    }

    /// Writes the message under its number, unless something is there.
    async fn write(&self, under: &Number, draft: &Draft<'_>, deadline: Deadline) -> Result<Written, Failure> {
        let client_id = draft.id.as_ref().map(|(writer, id)| format!("{}\n{id}", writer.key()));
        let mut item = self.item(under);
        item.insert(JSON.to_owned(), string(draft.json.get()));
        item.insert(WRITER.to_owned(), string(draft.invocation_id));
        if let Some(sender) = draft.sender {
            item.insert(SENDER_ID.to_owned(), string(sender.as_str()));
        }
        if let Some(client_id) = &client_id {
            item.insert(CLIENT_ID.to_owned(), string(client_id));
        }
        let Some(there) = self.put_once(item, deadline).await? else { return Ok(Written::Now) };
        let is_same = match &client_id {
            Some(client_id) => text(&there, CLIENT_ID) == Some(client_id),
            None => text(&there, WRITER) == Some(draft.invocation_id),
        };
        if !is_same {
            return Ok(Written::Never);
        }
        if text(&there, JSON) != Some(draft.json.get()) {
            let expected = "one that this sender has not used for another message of the topic".to_owned();
            return Err(ClientError::InvalidField { field: "id", expected }.into());
        }
        Ok(if text(&there, WRITER) == Some(draft.invocation_id) { Written::Now } else { Written::Before })
    }

    /// Reads what a subscriber needs, from a head that was read after the subscriber's row was written.
    async fn resume(&self, from: &From, head: Option<Head>, deadline: Deadline) -> Result<Resumed, Failure> {
        let resume = tokio::time::timeout(deadline.left(), async {
            let head = match head {
                Some(head) => head,
                None => self.head(deadline).await?,
            };
            match from {
                From::After(after) => self.behind(after, &head, deadline).await,
                From::Newest(count) => self.newest(*count, &head, deadline).await,
            }
        });
        resume.await.map_err(|_| Error::OutOfTime { topic: self.topic.to_string() })?
    }

    async fn behind(&self, after: &Stamp, head: &Head, deadline: Deadline) -> Result<Resumed, Failure> {
        let Stamp { epoch, seq: last } = &head.stamp;
        if after.epoch == *epoch && after.seq == *last {
            return Ok(Resumed { stamp: after.clone(), entries: Vec::new(), recovered: Some(true) });
        }
        if after.epoch == *epoch && after.seq < *last && last - after.seq <= MAX_RESUMED {
            let most = usize::try_from(last - after.seq).unwrap_or(usize::MAX);
            let walk = self.walk(after.seq, head, most, false, deadline).await?;
            // A walk is full when it has come to the last number, and newer ones have been taken since.
            if walk.end != End::Lost {
                let seq = walk.entries.last().map_or(after.seq, |entry| entry.seq);
                let stamp = Stamp { epoch: epoch.clone(), seq };
                return Ok(Resumed { stamp, entries: walk.entries, recovered: Some(true) });
            }
        }
        let top = self.newest(0, head, deadline).await?;
        Ok(Resumed { recovered: Some(false), ..top })
    }

    /// Reads some of the history: behind a position, before one, or the newest. Numbers that may have expired are left out.
    ///
    /// # Errors
    ///
    /// As [`Log::resume`].
    pub async fn page(&self, range: &Range, limit: usize, deadline: Deadline) -> Result<Page, Failure> {
        let page = tokio::time::timeout(deadline.left(), async {
            let head = self.head(deadline).await?;
            let Stamp { epoch, seq: last } = &head.stamp;
            let (entries, more) = match range {
                Range::After(after) => {
                    let after = if after.epoch == *epoch { after.seq } else { 0 };
                    let walk = self.walk(after, &head, limit, true, deadline).await?;
                    (walk.entries, walk.end == End::Full)
                }
                Range::Before(_) | Range::Newest => {
                    let end = match range {
                        Range::Before(before) if before.epoch == *epoch => before.seq.min(last + 1),
                        _ => last + 1,
                    };
                    let mut entries = match end {
                        0 | 1 => Vec::new(),
                        end => self.query(epoch, 0, end - 1, false, limit + 1, deadline).await?,
                    };
                    let more = entries.len() > limit;
                    entries.truncate(limit);
                    (entries, more)
                }
            };
            Ok(Page { epoch: epoch.clone(), entries, more })
        });
        page.await.map_err(|_| Error::OutOfTime { topic: self.topic.to_string() })?
    }

    /// Goes from number to number, and settles the missing ones. It ends at a number that may still come and, unless they
    /// are to be skipped, at numbers that may have expired.
    async fn walk(
        &self,
        after: u64,
        head: &Head,
        most: usize,
        skips_lost: bool,
        deadline: Deadline,
    ) -> Result<Walk, Failure> {
        let Stamp { epoch, seq: last } = &head.stamp;
        // The number `after` itself and one too many are read as well.
        let items = self.query(epoch, after, MAX_SEQ, true, most + 2, deadline).await?;
        let now_ms = now_ms();
        let outlasts = |ttl_s: i64| ttl_s - MARGIN_S > now_ms / 1000;
        let mut items = items.into_iter().peekable();
        // Whether the number before `want` is kept for certain; then `want` would be, too.
        let mut is_kept = items.next_if(|base| base.seq == after).is_some_and(|base| outlasts(base.ttl_s));
        let mut entries: Vec<Entry> = Vec::new();
        let mut want = after + 1;
        while want <= *last || items.peek().is_some() {
            if entries.len() == most {
                return Ok(Walk { entries, end: End::Full });
            }
            let entry = if let Some(entry) = items.next_if(|entry| entry.seq == want) {
                entry
            } else {
                let (taken_ms, kept_until_s, is_exact) = match items.peek() {
                    Some(next) => {
                        // A reader's tombstone does not know, but the number before it was not taken later.
                        let (prev_ms, prev_ttl_s) = next.prev.unwrap_or((next.at_ms, 0));
                        (prev_ms, prev_ttl_s, next.seq == want + 1)
                    }
                    None => (head.at_ms, head.kept_until_s, *last == want),
                };
                if now_ms - taken_ms < IN_FLIGHT_MS {
                    return Ok(Walk { entries, end: End::InFlight });
                }
                let never_written = is_kept || (is_exact && outlasts(kept_until_s));
                if !never_written && skips_lost {
                    want = items.peek().map_or(last + 1, |next| next.seq);
                    continue;
                }
                if !never_written {
                    return Ok(Walk { entries, end: End::Lost });
                }
                self.give_up(Stamp { epoch: epoch.clone(), seq: want }, taken_ms, kept_until_s, deadline).await?
            };
            is_kept = outlasts(entry.ttl_s);
            entries.push(entry);
            want += 1;
        }
        Ok(Walk { entries, end: End::Settled })
    }

    /// The newest messages, and a position behind which no number is missing that may still get its message.
    async fn newest(&self, count: u64, head: &Head, deadline: Deadline) -> Result<Resumed, Failure> {
        let Stamp { epoch, seq: last } = head.stamp.clone();
        let in_flight_since = now_ms() - IN_FLIGHT_MS;
        let most = usize::try_from(count + LOOKED_AT).unwrap_or(usize::MAX);
        let mut entries = if count == 0 && head.at_ms < in_flight_since {
            Vec::new()
        } else {
            self.query(&epoch, 0, last, false, most, deadline).await?
        };
        entries.reverse();
        let mut top = last;
        let (mut seq, mut taken_ms) = (last, head.at_ms);
        for entry in entries.iter().rev() {
            if taken_ms < in_flight_since {
                break;
            }
            if entry.seq < seq {
                top = entry.seq;
            }
            (seq, taken_ms) = (entry.seq.saturating_sub(1), entry.prev.map_or(0, |(prev_ms, _)| prev_ms));
        }
        if taken_ms >= in_flight_since && seq > 0 {
            // Nothing that was looked at is old enough to be sure of what is before it.
            top = top.min(entries.first().map_or(0, |first| first.seq.saturating_sub(1)));
        }
        entries.retain(|entry| entry.seq <= top && entry.message.is_some());
        let entries = entries.split_off(entries.len().saturating_sub(usize::try_from(count).unwrap_or(usize::MAX)));
        Ok(Resumed { stamp: Stamp { epoch, seq: top }, entries, recovered: None })
    }

    /// Returns the head, and makes it if there is none: a subscriber of a new topic needs a position, too.
    async fn head(&self, deadline: Deadline) -> Result<Head, Failure> {
        let head = self.get(&self.head_key(), deadline).await?;
        let head = match head.as_ref().and_then(head_of) {
            Some(head) => head,
            None => {
                let at_ms = now_ms();
                let made = self
                    .patiently(deadline, async || {
                        let update = self
                            .history
                            .dynamodb
                            .update_item()
                            .table_name(&self.history.table)
                            .set_key(Some(self.head_key()))
                            .update_expression(
                                "SET epoch = if_not_exists(epoch, :fresh), #last = if_not_exists(#last, :none), \
                                 #at = if_not_exists(#at, :at), #ttl = if_not_exists(#ttl, :ttl)",
                            )
                            .expression_attribute_names("#at", AT)
                            .expression_attribute_names("#ttl", TTL)
                            .expression_attribute_names("#last", LAST)
                            .expression_attribute_values(":fresh", string(&epoch(at_ms)))
                            .expression_attribute_values(":none", numeric(0))
                            .expression_attribute_values(":at", numeric(at_ms))
                            .expression_attribute_values(":ttl", numeric(at_ms / 1000 + self.kept_s + HEAD_KEPT_S))
                            .return_values(ReturnValue::AllNew);
                        let output = update.send().await.map_err(|error| self.fault("UpdateItem", &error))?;
                        Ok(output.attributes.unwrap_or_default())
                    })
                    .await?;
                head_of(&made).ok_or(ClientError::Busy)?
            }
        };
        Ok(head)
    }

    /// The items of an epoch from one number to another, at most so many. Rows that this code did not write are skipped.
    async fn query(
        &self,
        epoch: &str,
        first: u64,
        last: u64,
        is_ascending: bool,
        most: usize,
        deadline: Deadline,
    ) -> Result<Vec<Entry>, Failure> {
        let mut entries = Vec::new();
        let mut start = None;
        loop {
            let limit = i32::try_from(most - entries.len()).unwrap_or(i32::MAX);
            let (items, next) = self
                .patiently(deadline, async || {
                    let query = self
                        .history
                        .dynamodb
                        .query()
                        .table_name(&self.history.table)
                        .consistent_read(true)
                        .key_condition_expression("p = :p AND s BETWEEN :first AND :last")
                        .expression_attribute_values(":p", string(&format!("m:{}", self.topic)))
                        .expression_attribute_values(":first", string(&sort_key(epoch, first)))
                        .expression_attribute_values(":last", string(&sort_key(epoch, last)))
                        .scan_index_forward(is_ascending)
                        .limit(limit)
                        .set_exclusive_start_key(start.clone());
                    let page = query.send().await.map_err(|error| self.fault("Query", &error))?;
                    Ok((page.items.unwrap_or_default(), page.last_evaluated_key))
                })
                .await?;
            for item in items {
                match entry(&item) {
                    Some(entry) => entries.push(entry),
                    None => {
                        let key = text(&item, S).unwrap_or("?");
                        warn!(topic.name = %self.topic, key, "a row of the table of messages is skipped");
                    }
                }
            }
            start = next;
            if start.is_none() || entries.len() >= most {
                return Ok(entries);
            }
        }
    }

    /// Writes a tombstone under a number that nobody wrote in time, and returns the item that is there then.
    async fn give_up(
        &self,
        stamp: Stamp,
        taken_ms: i64,
        kept_until_s: i64,
        deadline: Deadline,
    ) -> Result<Entry, Failure> {
        let (seq, ttl_s) = (stamp.seq, kept_until_s.max(now_s() + self.kept_s));
        let mut item = self.item(&Number { stamp, at_ms: taken_ms, prev: None });
        item.insert(HOLE.to_owned(), AttributeValue::Bool(true));
        item.insert(TTL.to_owned(), numeric(ttl_s));
        match self.put_once(item, deadline).await? {
            // A late writer was faster.
            Some(there) => entry(&there).ok_or_else(|| ClientError::Busy.into()),
            None => Ok(Entry { seq, message: None, at_ms: taken_ms, prev: None, ttl_s }),
        }
    }

    async fn get(&self, key: &Item, deadline: Deadline) -> Result<Option<Item>, Failure> {
        self.patiently(deadline, async || {
            let get = self.history.dynamodb.get_item().table_name(&self.history.table);
            let get = get.set_key(Some(key.clone())).consistent_read(true).send().await;
            Ok(get.map_err(|error| self.fault("GetItem", &error))?.item)
        })
        .await
    }

    /// Writes a tombstone under a number that will never have a message. It saves readers the wait. They can write it as
    /// well, so a failure is only logged.
    async fn bury(&self, taken: &Number, deadline: Deadline) {
        let mut item = self.item(taken);
        item.insert(HOLE.to_owned(), AttributeValue::Bool(true));
        if let Err(error) = self.put_once(item, deadline).await {
            let (epoch, seq) = (&taken.stamp.epoch, taken.stamp.seq);
            warn!(topic.name = %self.topic, epoch, seq, %error, "a number that is not used got no tombstone");
        }
    }

    /// Puts an item unless one is there, and returns that one.
    async fn put_once(&self, item: Item, deadline: Deadline) -> Result<Option<Item>, Failure> {
        self.put_if("attribute_not_exists(p)", &[], item, deadline).await
    }

    /// Puts an item if a condition holds for the one that is there, and returns that one if it does not.
    async fn put_if(
        &self,
        condition: &str,
        values: &[(&str, AttributeValue)],
        item: Item,
        deadline: Deadline,
    ) -> Result<Option<Item>, Failure> {
        self.patiently(deadline, async || {
            let put = self.history.dynamodb.put_item().table_name(&self.history.table).set_item(Some(item.clone()));
            let mut put = put
                .condition_expression(condition)
                .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
            for (name, value) in values {
                put = put.expression_attribute_values(*name, value.clone());
            }
            if condition.contains("#ttl") {
                put = put.expression_attribute_names("#ttl", TTL);
            }
            let Err(error) = put.send().await else { return Ok(None) };
            match error.as_service_error() {
                Some(PutItemError::ConditionalCheckFailedException(failed)) => {
                    Ok(Some(failed.item().cloned().unwrap_or_default()))
                }
                _ => Err(self.fault("PutItem", &error)),
            }
        })
        .await
    }

    /// The attributes that messages and tombstones have in common.
    fn item(&self, number: &Number) -> Item {
        let Stamp { epoch, seq } = &number.stamp;
        let ttl_s = (number.at_ms / 1000 + self.kept_s).max(number.prev.map_or(0, |(_, ttl_s)| ttl_s));
        let mut item = HashMap::from([
            (P.to_owned(), string(&format!("m:{}", self.topic))),
            (S.to_owned(), string(&sort_key(epoch, *seq))),
            (TTL.to_owned(), numeric(ttl_s)),
        ]);
        number.write(&mut item);
        item
    }

    fn binding(&self, key: &Item, number: &Number) -> Item {
        let mut item = key.clone();
        item.insert(EPOCH.to_owned(), string(&number.stamp.epoch));
        item.insert(SEQ.to_owned(), AttributeValue::N(number.stamp.seq.to_string()));
        item.insert(TTL.to_owned(), numeric(number.at_ms / 1000 + self.kept_s - BINDING_ENDS_EARLIER_S));
        number.write(&mut item);
        item
    }

    fn head_key(&self) -> Item {
        key(&format!("h:{}", self.topic), "-")
    }

    fn binding_key(&self, writer: &Writer, id: &str) -> Item {
        key(&format!("i:{}\n{}", self.topic, writer.key()), id)
    }

    /// Repeats a call while DynamoDB puts it off.
    async fn patiently<T>(&self, deadline: Deadline, call: impl AsyncFn() -> Result<T, Error>) -> Result<T, Failure> {
        store::patiently(deadline, call).await
    }

    fn fault<E>(&self, operation: &'static str, error: &SdkError<E>) -> Error
    where
        SdkError<E>: std::error::Error + ProvideErrorMetadata,
    {
        Error::store(operation, &self.history.table, error)
    }
}

impl Number {
    /// The attributes that messages, tombstones and bindings share.
    fn write(&self, item: &mut Item) {
        item.insert(AT.to_owned(), numeric(self.at_ms));
        if let Some((prev_ms, prev_ttl_s)) = self.prev {
            item.insert(PREV.to_owned(), numeric(prev_ms));
            item.insert(PREV_TTL.to_owned(), numeric(prev_ttl_s));
        }
    }
}

/// The number in a binding.
fn number_of(item: &Item) -> Option<Number> {
    let seq = u64::try_from(number(item, SEQ)?).ok()?;
    let stamp = Stamp { epoch: text(item, EPOCH)?.to_owned(), seq };
    Some(Number { stamp, at_ms: number(item, AT)?, prev: number(item, PREV).zip(number(item, PREV_TTL)) })
}

fn head_of(item: &Item) -> Option<Head> {
    let seq = u64::try_from(number(item, LAST)?).ok()?;
    let stamp = Stamp { epoch: text(item, EPOCH)?.to_owned(), seq };
    Some(Head { stamp, at_ms: number(item, AT)?, kept_until_s: number(item, TTL)? - HEAD_KEPT_S })
}

/// A message or a tombstone.
fn entry(item: &Item) -> Option<Entry> {
    let seq = text(item, S)?.split_once('/')?.1.parse().ok()?;
    let message = if item.contains_key(HOLE) {
        None
    } else {
        let sender = text(item, SENDER_ID).map(|user| UserId::parse(SENDER_ID, user)).transpose().ok()?;
        let json = RawValue::from_string(text(item, JSON)?.to_owned()).ok()?;
        Some(KeptMessage { json, sender })
    };
    let prev = number(item, PREV).zip(number(item, PREV_TTL));
    Some(Entry { seq, message, at_ms: number(item, AT)?, prev, ttl_s: number(item, TTL)? })
}

fn key(p: &str, s: &str) -> Item {
    HashMap::from([(P.to_owned(), string(p)), (S.to_owned(), string(s))])
}

fn sort_key(epoch: &str, seq: u64) -> String {
    format!("{epoch}/{seq:012}")
}

fn numeric(value: i64) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

/// The name of an epoch that begins now: the milliseconds in base 36, so later ones sort behind earlier ones.
fn epoch(mut ms: i64) -> String {
    let mut digits = [b'0'; 8];
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdefghijklmnopqrstuvwxyz"[usize::try_from(ms % 36).unwrap_or(0)];
        ms /= 36;
    }
    digits.iter().copied().map(char::from).collect()
}

#[cfg(test)]
mod tests;

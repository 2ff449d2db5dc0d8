//! The table of messages. Topics with history keep their messages in it, each under a number.
//!
//! | item | `p` | `s` | attributes |
//! |---|---|---|---|
//! | head | `h:<topic>` | `-` | `epoch` S · `last` N, the number that was taken last · `at` N, ms: when · `ttl` N, s |
//! | message | `m:<topic>` | `<epoch>/<number, 12 digits>` | `json` S · `senderId?` S · `cid?` S, writer and id · `w` S, the invocation · `n?` N, how many messages its frame had · `at` N, ms: when its number was taken · `prev?` N, ms: when the number before it was taken · `prevTtl?` N, s: until when that is kept · `ttl` N, s |
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
//! Only the invocation that took a number writes a message under it. So a number without an item is settled once it is
//! older than an invocation can be. A repetition that finds its id bound writes a tombstone under the bound number. If
//! the message is there already, the repetition is done; otherwise it takes another number and binds the id to that.
//! An append that is interrupted leaves a number without a message, and the writer's repetition finishes it like that.
//! Several messages of one frame take their numbers in one step, and one transaction writes all of them or none.
//!
//! **What a missing number means** to a reader depends on when it was taken, which the next item says in `prev`, or the
//! head in `at`. It may still come, for [`IN_FLIGHT_MS`]. Later it never was written, if its message would still be kept.
//! For a single number, `prevTtl` of its successor says that. For several numbers in a row, only their earliest time is
//! known: that of the item before them. They would still be kept if even the shortest rule kept that item's successor.
//! The reader then writes tombstones, and nobody can write a message there any more. Otherwise the messages may have been
//! there and have expired. The reader says honestly that something may be missing, but not before [`SETTLED_MS`]: no
//! tombstone keeps a late writer from such a number, and nobody is sent past a number that may still come.

mod append;
mod item;
mod read;

use std::collections::{BTreeMap, HashMap};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::KeysAndAttributes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

pub use append::{Appended, Draft, Writer};
pub use read::{DEFAULT_LIMIT, From, MAX_LIMIT, MAX_NEWEST, MAX_RESUMED, Page, Range, Reached, Resumed};

use crate::Error;
use crate::config::Config;
use crate::connection::UserId;
use crate::rules::Rules;
use crate::store::text;
use crate::topic::Topic;

/// A number that was taken less than this long ago may get its message at any moment.
const IN_FLIGHT_MS: i64 = 10_000;

/// Nobody writes under a number that was taken longer ago than this. It covers the time-out of every function, a last call
/// that takes effect late, and the clocks of environments, which differ.
const SETTLED_MS: i64 = 2 * 60 * 1000;

/// The greatest number that keys have digits for.
pub const MAX_SEQ: u64 = 999_999_999_999;

/// The place of a message in its topic: the number `seq` of an epoch. Numbers rise by one within an epoch. A new epoch
/// begins only when a topic's head was lost, and its name is greater than the name of the epoch before.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Stamp {
    /// The name of the epoch, 8 characters.
    pub epoch: String,
    /// The number, from 1.
    pub seq: u64,
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
    /// The number before it, if that is known.
    prev: Option<Span>,
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

/// When a number was taken, and until when its message is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    at_ms: i64,
    until_s: i64,
}

/// A topic's head: its last number.
#[derive(Debug, Clone)]
struct Head {
    stamp: Stamp,
    span: Span,
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
            heads.iter().filter_map(|item| Some((text(item, item::P)?.to_owned(), Head::of(item)?.stamp))).collect();
        let behind = logs.into_iter().filter_map(|(log, stamp)| {
            let head = heads.get(&format!("h:{}", log.topic))?;
            // Epochs sort by their time. An eventually consistent read may be older than the client's position.
            (head > stamp).then(|| (log.topic.to_string(), head.clone()))
        });
        Ok(behind.collect())
    }
}

#[cfg(test)]
mod tests;

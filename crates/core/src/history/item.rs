//! The items of the table of messages, and the calls that read and write one of them.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::types::{AttributeValue, ReturnValuesOnConditionCheckFailure};
use serde_json::value::RawValue;

use super::append::{Draft, Number, Writer};
use super::{Entry, Head, KeptMessage, Log, Span, Stamp};
use crate::clock::now_s;
use crate::connection::UserId;
use crate::deadline::{Backoff, Deadline};
use crate::store::{Item, TTL, number, string, text};
use crate::{ClientError, Error, Failure};

/// A head is kept this much longer than its last message, so that a quiet topic goes on counting where it stopped.
pub(super) const HEAD_KEPT_S: i64 = 30 * 24 * 3600;

/// A binding ends this much earlier than its message, so that it never names a message that is gone.
pub(super) const BINDING_ENDS_EARLIER_S: i64 = 10 * 60;

/// A write that DynamoDB puts off is tried this often, and for this long.
const MAX_ATTEMPTS: u32 = 5;
const MAX_TIME: Duration = Duration::from_secs(3);

/// Keys have numbers with this many digits, so that they sort.
const SEQ_DIGITS: usize = 12;

pub(super) const P: &str = "p";
pub(super) const S: &str = "s";
pub(super) const EPOCH: &str = "epoch";
pub(super) const LAST: &str = "last";
pub(super) const AT: &str = "at";
const SEQ: &str = "seq";
const PREV: &str = "prev";
const PREV_TTL: &str = "prevTtl";
const JSON: &str = "json";
const SENDER_ID: &str = "senderId";
const CLIENT_ID: &str = "cid";
const WRITER: &str = "w";
const HOLE: &str = "hole";

impl Log<'_> {
    pub(super) fn head_key(&self) -> Item {
        key(&format!("h:{}", self.topic), "-")
    }

    pub(super) fn binding_key(&self, writer: &Writer, id: &str) -> Item {
        key(&format!("i:{}\n{}", self.topic, writer.key()), id)
    }

    pub(super) fn binding(&self, key: &Item, number: &Number) -> Item {
        let mut item = key.clone();
        item.insert(EPOCH.to_owned(), string(&number.stamp.epoch));
        item.insert(SEQ.to_owned(), AttributeValue::N(number.stamp.seq.to_string()));
        item.insert(TTL.to_owned(), numeric(number.at_ms / 1000 + self.kept_s - BINDING_ENDS_EARLIER_S));
        number.write(&mut item);
        item
    }

    pub(super) fn message(&self, number: &Number, draft: &Draft<'_>) -> Item {
        let mut item = self.item(number, number.at_ms / 1000 + self.kept_s);
        item.insert(JSON.to_owned(), string(draft.json.get()));
        item.insert(WRITER.to_owned(), string(draft.invocation_id));
        if let Some(sender) = draft.sender {
            item.insert(SENDER_ID.to_owned(), string(sender.as_str()));
        }
        if let Some(client_id) = draft.client_id() {
            item.insert(CLIENT_ID.to_owned(), string(&client_id));
        }
        item
    }

    /// A tombstone is kept as long as a message that is written now.
    pub(super) fn tombstone(&self, number: &Number) -> Item {
        let mut item = self.item(number, now_s() + self.kept_s);
        item.insert(HOLE.to_owned(), AttributeValue::Bool(true));
        item
    }

    /// The attributes that messages and tombstones have in common. A message is kept at least as long as the one before it,
    /// so that a shorter rule does not make a gap.
    fn item(&self, number: &Number, until_s: i64) -> Item {
        let ttl_s = until_s.max(number.prev.map_or(0, |prev| prev.until_s));
        let mut item = key(&format!("m:{}", self.topic), &sort_key(&number.stamp.epoch, number.stamp.seq));
        item.insert(TTL.to_owned(), numeric(ttl_s));
        number.write(&mut item);
        item
    }

    pub(super) async fn get(&self, key: &Item, deadline: Deadline) -> Result<Option<Item>, Failure> {
        self.patiently(deadline, async || {
            let get = self.history.dynamodb.get_item().table_name(&self.history.table);
            let get = get.set_key(Some(key.clone())).consistent_read(true).send().await;
            Ok(get.map_err(|error| self.fault("GetItem", &error))?.item)
        })
        .await
    }

    /// Puts an item unless one is there, and returns that one.
    pub(super) async fn put_once(&self, item: Item, deadline: Deadline) -> Result<Option<Item>, Failure> {
        self.put_if("attribute_not_exists(p)", &[], item, deadline).await
    }

    /// Puts an item if a condition holds for the one that is there, and returns that one if it does not.
    pub(super) async fn put_if(
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

    /// Repeats a call while DynamoDB puts it off.
    pub(super) async fn patiently<T>(
        &self,
        deadline: Deadline,
        call: impl AsyncFn() -> Result<T, Error>,
    ) -> Result<T, Failure> {
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

    pub(super) fn fault<E>(&self, operation: &'static str, error: &SdkError<E>) -> Error
    where
        SdkError<E>: std::error::Error + ProvideErrorMetadata,
    {
        Error::store(operation, &self.history.table, error)
    }
}

impl Number {
    /// The number in a binding.
    pub(super) fn of(binding: &Item) -> Option<Self> {
        let seq = u64::try_from(number(binding, SEQ)?).ok()?;
        let stamp = Stamp { epoch: text(binding, EPOCH)?.to_owned(), seq };
        Some(Self { stamp, at_ms: number(binding, AT)?, prev: prev_of(binding) })
    }

    /// The attributes that messages, tombstones and bindings share.
    fn write(&self, item: &mut Item) {
        item.insert(AT.to_owned(), numeric(self.at_ms));
        if let Some(prev) = self.prev {
            item.insert(PREV.to_owned(), numeric(prev.at_ms));
            item.insert(PREV_TTL.to_owned(), numeric(prev.until_s));
        }
    }
}

impl Head {
    pub(super) fn of(item: &Item) -> Option<Self> {
        let seq = u64::try_from(number(item, LAST)?).ok()?;
        let stamp = Stamp { epoch: text(item, EPOCH)?.to_owned(), seq };
        let span = Span { at_ms: number(item, AT)?, until_s: number(item, TTL)? - HEAD_KEPT_S };
        Some(Self { stamp, span })
    }
}

impl Entry {
    /// Reads the item under a number. An item that this code did not write counts as a tombstone, because no message can be
    /// written there. `None` means that its key has no number.
    pub(super) fn of(item: &Item) -> Option<Self> {
        let digits = text(item, S)?.split_once('/')?.1;
        let seq = digits.parse().ok().filter(|seq| *seq > 0 && digits.len() == SEQ_DIGITS)?;
        Some(Self::known(seq, item).unwrap_or(Self { seq, message: None, at_ms: 0, prev: None, ttl_s: 0 }))
    }

    fn known(seq: u64, item: &Item) -> Option<Self> {
        let message = if item.contains_key(HOLE) {
            None
        } else {
            let sender = text(item, SENDER_ID).map(|user| UserId::parse(SENDER_ID, user)).transpose().ok()?;
            let json = RawValue::from_string(text(item, JSON)?.to_owned()).ok()?;
            Some(KeptMessage { json, sender })
        };
        Some(Self { seq, message, at_ms: number(item, AT)?, prev: prev_of(item), ttl_s: number(item, TTL)? })
    }
}

/// The item under a number, compared with a message that has to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// This message, written by this invocation. The SDK has repeated its call.
    Own,
    /// This message, written by another invocation.
    Same,
    /// Another message with the same id.
    OtherBody,
    /// A tombstone, or something that this code did not write.
    Other,
}

impl Found {
    pub(super) fn of(item: &Item, draft: &Draft<'_>) -> Self {
        let is_own = text(item, WRITER) == Some(draft.invocation_id);
        let is_same = match draft.client_id() {
            Some(client_id) => text(item, CLIENT_ID) == Some(&client_id),
            None => is_own,
        };
        match text(item, JSON) {
            Some(json) if is_same && json != draft.json.get() => Self::OtherBody,
            Some(_) if is_same && is_own => Self::Own,
            Some(_) if is_same => Self::Same,
            _ => Self::Other,
        }
    }
}

fn prev_of(item: &Item) -> Option<Span> {
    Some(Span { at_ms: number(item, PREV)?, until_s: number(item, PREV_TTL)? })
}

fn key(p: &str, s: &str) -> Item {
    HashMap::from([(P.to_owned(), string(p)), (S.to_owned(), string(s))])
}

pub(super) fn sort_key(epoch: &str, seq: u64) -> String {
    format!("{epoch}/{seq:0SEQ_DIGITS$}")
}

pub(super) fn numeric(value: i64) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

//! The items of the table of messages, and the calls that read and write one of them.

use std::collections::HashMap;

use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::operation::transact_write_items::TransactWriteItemsError;
use aws_sdk_dynamodb::types::error::TransactionCanceledException;
use aws_sdk_dynamodb::types::{AttributeValue, Put, ReturnValuesOnConditionCheckFailure, TransactWriteItem};
use serde_json::value::RawValue;

use super::append::{Draft, Number, Writer};
use super::{Entry, Head, KeptMessage, Log, Span, Stamp};
use crate::clock::now_s;
use crate::connection::UserId;
use crate::deadline::Deadline;
use crate::store::{Item, TTL, number, patiently, string, text};
use crate::{Error, Failure};

/// A head is kept this much longer than its last message, so that a quiet topic goes on counting where it stopped.
pub(super) const HEAD_KEPT_S: i64 = 30 * 24 * 3600;

/// A binding ends this much earlier than its message, so that it never names a message that is gone.
pub(super) const BINDING_ENDS_EARLIER_S: i64 = 10 * 60;

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
const COUNT: &str = "n";
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
        write_span(&mut item, number.at_ms, number.prev);
        item
    }

    /// The message at `index` of the draft. `first` is the number of the first one.
    pub(super) fn message(&self, first: &Number, draft: &Draft<'_>, index: usize) -> Item {
        let mut item = self.item(first, u64::try_from(index).unwrap_or(u64::MAX), first.at_ms / 1000 + self.kept_s);
        item.insert(JSON.to_owned(), string(draft.jsons[index].get()));
        item.insert(WRITER.to_owned(), string(draft.invocation_id));
        if let Some(sender) = draft.sender {
            item.insert(SENDER_ID.to_owned(), string(sender.as_str()));
        }
        if let Some(client_id) = draft.client_id() {
            item.insert(CLIENT_ID.to_owned(), string(&client_id));
        }
        if draft.jsons.len() > 1 {
            item.insert(COUNT.to_owned(), AttributeValue::N(draft.jsons.len().to_string()));
        }
        item
    }

    /// The tombstone under the number that is `offset` behind `first`. It is kept as long as a message that is written now.
    pub(super) fn tombstone(&self, first: &Number, offset: u64) -> Item {
        let mut item = self.item(first, offset, now_s() + self.kept_s);
        item.insert(HOLE.to_owned(), AttributeValue::Bool(true));
        item
    }

    /// The attributes that messages and tombstones have in common. A message is kept at least as long as the one before it,
    /// so that a shorter rule does not make a gap.
    fn item(&self, first: &Number, offset: u64, until_s: i64) -> Item {
        let prev = match offset {
            0 => first.prev,
            _ => Some(Span { at_ms: first.at_ms, until_s: first.at_ms / 1000 + self.kept_s }),
        };
        let Stamp { epoch, seq } = &first.stamp;
        let mut item = key(&format!("m:{}", self.topic), &sort_key(epoch, seq + offset));
        item.insert(TTL.to_owned(), numeric(until_s.max(prev.map_or(0, |prev| prev.until_s))));
        write_span(&mut item, first.at_ms, prev);
        item
    }

    pub(super) async fn get(&self, key: &Item, deadline: Deadline) -> Result<Option<Item>, Failure> {
        patiently(deadline, || async {
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
        patiently(deadline, || async {
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

    /// Puts all messages of a draft unless something is under one of their numbers. Returns what is under the first one,
    /// or a tombstone for it.
    pub(super) async fn put_all_once(
        &self,
        first: &Number,
        draft: &Draft<'_>,
        deadline: Deadline,
    ) -> Result<Option<Item>, Failure> {
        let put = |index| {
            let put = Put::builder().table_name(&self.history.table).set_item(Some(self.message(first, draft, index)));
            let put = put.condition_expression("attribute_not_exists(p)").build().expect("table and item are set");
            TransactWriteItem::builder().put(put).build()
        };
        let is_written = patiently(deadline, || async {
            let items = (0..draft.jsons.len()).map(put).collect();
            let write = self.history.dynamodb.transact_write_items().set_transact_items(Some(items)).send().await;
            let Err(error) = write else { return Ok(true) };
            let fault = self.fault("TransactWriteItems", &error);
            match (error.as_service_error(), fault) {
                (Some(TransactWriteItemsError::TransactionCanceledException(cancelled)), _)
                    if has_failed(cancelled) =>
                {
                    Ok(false)
                }
                // Another transaction was in the way, or the table's rate.
                (
                    Some(TransactWriteItemsError::TransactionCanceledException(_)),
                    Error::Store { operation, table, detail, .. },
                ) => Err(Error::Store { operation, table, detail, throttled: true }),
                (_, fault) => Err(fault),
            }
        })
        .await?;
        if is_written {
            return Ok(None);
        }
        let key = key(&format!("m:{}", self.topic), &sort_key(&first.stamp.epoch, first.stamp.seq));
        let there = self.get(&key, deadline).await?;
        // Another of the numbers was closed, so this one is closed as well.
        Ok(Some(there.unwrap_or_default()))
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
}

/// The attributes that messages, tombstones and bindings share.
fn write_span(item: &mut Item, at_ms: i64, prev: Option<Span>) {
    item.insert(AT.to_owned(), numeric(at_ms));
    if let Some(prev) = prev {
        item.insert(PREV.to_owned(), numeric(prev.at_ms));
        item.insert(PREV_TTL.to_owned(), numeric(prev.until_s));
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
        let has_count = number(item, COUNT).unwrap_or(1) == i64::try_from(draft.jsons.len()).unwrap_or(0);
        match text(item, JSON) {
            Some(json) if is_same && (json != draft.jsons[0].get() || !has_count) => Self::OtherBody,
            Some(_) if is_same && is_own => Self::Own,
            Some(_) if is_same => Self::Same,
            _ => Self::Other,
        }
    }
}

/// Whether a condition failed, and not only another transaction was in the way.
fn has_failed(cancelled: &TransactionCanceledException) -> bool {
    cancelled.cancellation_reasons().iter().any(|reason| reason.code() == Some("ConditionalCheckFailed"))
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

//! How a message gets its number, and is written once.

use aws_sdk_dynamodb::types::{AttributeValue, ReturnValue};
use lambda_runtime::tracing::{info, warn};
use serde_json::value::RawValue;

use super::item::{AT, EPOCH, Found, HEAD_KEPT_S, LAST, numeric};
use super::{Head, Log, Span, Stamp};
use crate::clock::{now_ms, now_s};
use crate::connection::{ConnectionId, UserId};
use crate::deadline::Deadline;
use crate::log::DETAIL;
use crate::store::{Item, TTL, number, patiently, string, text};
use crate::{ClientError, Error, Failure};

/// The most numbers that one append tries. It needs a second one only when a reader or a repetition closed the first one.
pub(super) const MAX_NUMBERS: usize = 5;

/// The owner of an id: only the same writer repeats a message with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Writer {
    /// A user, from any of its connections.
    User(UserId),
    /// A connection without a user. After a reconnect it is another writer.
    Connection(ConnectionId),
    /// A backend. The id is that of its event.
    Backend,
}

impl Writer {
    /// The writer in keys. The kinds cannot be confused: users begin with `@`, and connections with a word and a space.
    pub(super) fn key(&self) -> String {
        match self {
            Self::User(user) => format!("@{user}"),
            Self::Connection(id) => format!("connection {id}"),
            Self::Backend => "backend".to_owned(),
        }
    }
}

/// Messages that have to be kept, one behind the other.
#[derive(Debug, Clone)]
pub struct Draft<'a> {
    /// The payloads that receivers get: at least one, and at most [`crate::frame::MAX_MESSAGES`].
    pub jsons: &'a [&'a RawValue],
    /// The user that sent them.
    pub sender: Option<&'a UserId>,
    /// The writer and its id. Without them, each call keeps one more message.
    pub id: Option<(Writer, &'a str)>,
    /// Whether the writer calls this a repetition. Then the append takes a number only if the id has none.
    pub again: bool,
    /// Lambda's id of this invocation.
    pub invocation_id: &'a str,
}

impl Draft<'_> {
    fn count(&self) -> u64 {
        u64::try_from(self.jsons.len()).unwrap_or(u64::MAX)
    }

    /// The writer and its id, as messages carry them.
    pub(super) fn client_id(&self) -> Option<String> {
        self.id.as_ref().map(|(writer, id)| format!("{}\n{id}", writer.key()))
    }
}

/// The result of an append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    /// The place of the last message. The others have the numbers before it.
    pub stamp: Stamp,
    /// Whether they were there before.
    pub duplicate: bool,
}

/// A number that was taken. For several messages it is the first one, and the others follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Number {
    pub(super) stamp: Stamp,
    pub(super) at_ms: i64,
    /// The number before it.
    pub(super) prev: Option<Span>,
}

/// What an invocation knows of its message's number.
struct Claim {
    /// The number that the id is bound to.
    number: Number,
    /// Whether this invocation took it. Only then it may write the message there.
    is_own: bool,
    /// A number that this invocation took in vain, so far.
    spare: Option<Number>,
}

impl Claim {
    fn own(number: Number) -> Self {
        Self { number, is_own: true, spare: None }
    }
}

impl Log<'_> {
    /// Keeps a message: an `UpdateItem`, a `PutItem` for the id if there is one, and a `PutItem`. A repetition that
    /// says so costs a `GetItem` and a `PutItem` if its first try was kept. Several messages are written in one transaction,
    /// so the table has all of them or none. Each message then costs 2 write units.
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
        let count = draft.count();
        let binding = draft.id.as_ref().map(|(writer, id)| self.binding_key(writer, id));
        let bound = match &binding {
            Some(key) if draft.again => self.bound(key, deadline).await?,
            _ => None,
        };
        let mut claim = match (bound, &binding) {
            (Some(number), _) => Claim { number, is_own: false, spare: None },
            (None, Some(key)) => self.bind(key, self.take(count, deadline).await?, deadline).await?,
            (None, None) => Claim::own(self.take(count, deadline).await?),
        };
        for _ in 0..MAX_NUMBERS {
            let written = self.write(&claim, draft, deadline).await;
            let Ok(None) = written else {
                if let Some(spare) = &claim.spare {
                    self.bury(spare, 0..count, deadline).await;
                }
                let duplicate = written?.unwrap_or_default();
                let Stamp { epoch, seq } = claim.number.stamp;
                info!(target: DETAIL, { topic.name = %self.topic, epoch, seq, count, duplicate }, "messages are kept");
                return Ok(Appended { stamp: Stamp { epoch, seq: seq + count - 1 }, duplicate });
            };
            let next = match claim.spare.take() {
                Some(spare) => spare,
                None => self.take(count, deadline).await?,
            };
            claim = match &binding {
                Some(key) => self.rebind(key, &claim.number, next, deadline).await?,
                None => Claim::own(next),
            };
        }
        warn!(topic.name = %self.topic, "a message found no number: each one was closed before the message was written");
        Err(ClientError::Busy.into())
    }

    /// Takes the next numbers, and returns the first of them. The first one of a topic makes its head and its epoch in the
    /// same write.
    async fn take(&self, count: u64, deadline: Deadline) -> Result<Number, Failure> {
        let at_ms = now_ms();
        let update = "SET epoch = if_not_exists(epoch, :fresh), #at = :at, #ttl = :ttl ADD #last :count";
        let old = self.update_head(update, at_ms, count, ReturnValue::AllOld, deadline).await?;
        let last = number(&old, LAST).and_then(|last| u64::try_from(last).ok()).unwrap_or(0);
        let stamp = Stamp { epoch: text(&old, EPOCH).map_or(epoch(at_ms), str::to_owned), seq: last + 1 };
        let prev = Head::of(&old).filter(|_| last > 0).map(|head| head.span);
        Ok(Number { stamp, at_ms, prev })
    }

    /// Returns the head, and makes it if there is none: a subscriber of a new topic needs a position, too.
    pub(super) async fn head(&self, deadline: Deadline) -> Result<Head, Failure> {
        if let Some(head) = self.get(&self.head_key(), deadline).await?.as_ref().and_then(Head::of) {
            return Ok(head);
        }
        let update = "SET epoch = if_not_exists(epoch, :fresh), #last = if_not_exists(#last, :count), \
                      #at = if_not_exists(#at, :at), #ttl = if_not_exists(#ttl, :ttl)";
        let made = self.update_head(update, now_ms(), 0, ReturnValue::AllNew, deadline).await?;
        Ok(Head::of(&made).ok_or(ClientError::Busy)?)
    }

    /// Updates the head. The expression may use `:fresh` (an epoch that begins now), `:at`, `:ttl` and `:count`.
    async fn update_head(
        &self,
        expression: &str,
        at_ms: i64,
        count: u64,
        returned: ReturnValue,
        deadline: Deadline,
    ) -> Result<Item, Failure> {
        patiently(deadline, || async {
            let update = self.history.dynamodb.update_item().table_name(&self.history.table);
            let update = update
                .set_key(Some(self.head_key()))
                .update_expression(expression)
                .expression_attribute_names("#at", AT)
                .expression_attribute_names("#ttl", TTL)
                .expression_attribute_names("#last", LAST)
                .expression_attribute_values(":fresh", string(&epoch(at_ms)))
                .expression_attribute_values(":at", numeric(at_ms))
                .expression_attribute_values(":ttl", numeric(at_ms / 1000 + self.kept_s + HEAD_KEPT_S))
                .expression_attribute_values(":count", AttributeValue::N(count.to_string()))
                .return_values(returned.clone());
            let output = update.send().await.map_err(|error| self.fault("UpdateItem", &error))?;
            Ok(output.attributes.unwrap_or_default())
        })
        .await
    }

    /// The number that an id is bound to.
    async fn bound(&self, key: &Item, deadline: Deadline) -> Result<Option<Number>, Failure> {
        let item = self.get(key, deadline).await?;
        let is_live = |item: &Item| number(item, TTL).is_some_and(|ttl_s| ttl_s > now_s());
        Ok(item.filter(is_live).and_then(|item| Number::of(&item)))
    }

    /// Binds an id to a number that was taken, unless the id has one already.
    async fn bind(&self, key: &Item, taken: Number, deadline: Deadline) -> Result<Claim, Failure> {
        let values = [(":now", numeric(now_s()))];
        self.bind_if("attribute_not_exists(p) OR #ttl <= :now", &values, key, taken, deadline).await
    }

    /// Binds an id to `fresh` instead of `old`, unless somebody else was faster.
    async fn rebind(&self, key: &Item, old: &Number, fresh: Number, deadline: Deadline) -> Result<Claim, Failure> {
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
    ) -> Result<Claim, Failure> {
        let there = self.put_if(condition, values, self.binding(key, &taken), deadline).await?;
        Ok(match there.as_ref().and_then(Number::of) {
            // A first try whose answer was lost may have bound `taken` itself.
            Some(bound) if bound.stamp != taken.stamp => Claim { number: bound, is_own: false, spare: Some(taken) },
            _ => Claim::own(taken),
        })
    }

    /// Writes the messages under their numbers, or tombstones if another invocation took the numbers. Returns whether the
    /// messages were there before, or `None` when they will never be there.
    async fn write(&self, claim: &Claim, draft: &Draft<'_>, deadline: Deadline) -> Result<Option<bool>, Failure> {
        let Claim { number, is_own, .. } = claim;
        let there = match is_own {
            true if draft.jsons.len() == 1 => self.put_once(self.message(number, draft, 0), deadline).await?,
            true => self.put_all_once(number, draft, deadline).await?,
            false => self.put_once(self.tombstone(number, 0), deadline).await?,
        };
        if *is_own && there.is_none() {
            return Ok(Some(false));
        }
        // All messages are written or none, so the tombstone under the first number decides for the others.
        let there = there.unwrap_or_default();
        match self.compare(&there, number, draft, deadline).await? {
            Found::Own => Ok(Some(false)),
            Found::Same => Ok(Some(true)),
            Found::Other => {
                self.bury(number, 1..draft.count(), deadline).await;
                Ok(None)
            }
            Found::OtherBody => {
                let expected = "one that this sender has not used for another message of the topic".to_owned();
                Err(ClientError::InvalidField { field: "id", expected }.into())
            }
        }
    }

    /// Compares what is under the first number with the draft, and for several messages the others, too.
    async fn compare(
        &self,
        first: &Item,
        number: &Number,
        draft: &Draft<'_>,
        deadline: Deadline,
    ) -> Result<Found, Failure> {
        let found = Found::of(first, draft);
        let count = draft.jsons.len();
        if count == 1 || !matches!(found, Found::Own | Found::Same) {
            return Ok(found);
        }
        let Stamp { epoch, seq } = &number.stamp;
        let entries = self.query(epoch, *seq, seq + draft.count() - 1, true, count, deadline).await?;
        let kept = entries.iter().map(|entry| entry.message.as_ref().map(|message| message.json.get()));
        let is_same = kept.eq(draft.jsons.iter().map(|json| Some(json.get())));
        Ok(if is_same { found } else { Found::OtherBody })
    }

    /// Writes tombstones under numbers that will never have a message: those at `offsets` from the first one. They save
    /// readers the wait. Readers can write them as well, so a failure is only logged.
    async fn bury(&self, taken: &Number, offsets: std::ops::Range<u64>, deadline: Deadline) {
        for offset in offsets {
            if let Err(error) = self.put_once(self.tombstone(taken, offset), deadline).await {
                let (epoch, seq) = (&taken.stamp.epoch, taken.stamp.seq + offset);
                warn!(topic.name = %self.topic, epoch, seq, %error, "a number that is not used got no tombstone");
                return;
            }
        }
    }
}

/// The name of an epoch that begins now: the milliseconds in base 36, so later ones sort behind earlier ones.
pub(super) fn epoch(mut ms: i64) -> String {
    let mut digits = [b'0'; 8];
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdefghijklmnopqrstuvwxyz"[usize::try_from(ms % 36).unwrap_or(0)];
        ms /= 36;
    }
    digits.iter().copied().map(char::from).collect()
}

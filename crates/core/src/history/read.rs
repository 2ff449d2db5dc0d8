//! What readers get: what a subscriber missed, the newest messages, and pages of the history.

use std::collections::HashMap;

use futures_util::stream::{self, StreamExt};
use lambda_runtime::tracing::warn;

use super::append::Number;
use super::item::{P, S, sort_key};
use super::{Entry, Head, History, IN_FLIGHT_MS, Log, MAX_SEQ, SETTLED_MS, Span, Stamp};
use crate::clock::now_ms;
use crate::deadline::Deadline;
use crate::rules::MIN_HOURS;
use crate::store::{batch_get, patiently, string, text};
use crate::{ClientError, Error, Failure};

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

/// A message that expires within this time may be gone already, because the clocks of environments differ.
const MARGIN_MS: i64 = 60 * 1000;

/// The number of newest items that are read in one go to find numbers that may still come, and the most in all.
const LOOKED_AT: usize = 25;
const MAX_LOOKED_AT: usize = 1000;

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
    /// For a reader that names its last position: where it stands now.
    pub reached: Option<Reached>,
}

/// The end of a page behind a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    /// The position from which the reader goes on.
    pub seq: u64,
    /// The first number that the page does not have and that may have been a message once, or 0 for a position that the
    /// topic does not have.
    pub lost: Option<u64>,
}

/// The shortest time that any rule has ever kept a message.
const SHORTEST_MS: i64 = MIN_HOURS as i64 * 3_600_000;

/// A number that has an item.
#[derive(Debug, Clone, Copy)]
struct Base {
    seq: u64,
    span: Span,
}

/// The numbers behind a position, as far as they are settled.
#[derive(Debug)]
struct Walk {
    entries: Vec<Entry>,
    /// The last settled number.
    end: u64,
    /// The first number that may have expired.
    lost: Option<u64>,
    /// Whether it ended because it has as many entries as were wanted.
    is_full: bool,
}

/// Numbers without an item: those behind one number, up to `to`.
#[derive(Debug, Clone, Copy)]
struct Gap {
    to: u64,
    /// The last one, if the item behind it knows.
    last: Option<Span>,
    /// When the last one was taken, or a later number.
    at_ms: i64,
}

/// Why numbers have no item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    /// A message may still be written.
    InFlight,
    /// No message was ever written.
    Hole,
    /// A message may have been there and have expired.
    Lost,
}

impl Page {
    /// Keeps the first `count` entries.
    pub fn truncate(&mut self, count: usize) {
        if count >= self.entries.len() {
            return;
        }
        self.entries.truncate(count);
        self.more = true;
        if let Some(reached) = &mut self.reached {
            reached.seq = self.entries.last().map_or(0, |entry| entry.seq);
        }
    }
}

impl Reached {
    /// Whether nothing is missing between the reader's last position and this one.
    #[must_use]
    pub fn recovered(&self) -> bool {
        self.lost.is_none_or(|lost| lost > self.seq)
    }
}

impl Gap {
    /// Judges the numbers behind `end`. The item before them is `base`.
    fn judge(self, end: u64, base: Option<Base>, now_ms: i64) -> Missing {
        let age_ms = now_ms - self.at_ms;
        if age_ms < IN_FLIGHT_MS {
            return Missing::InFlight;
        }
        let kept_until_ms = match (self.last, base) {
            (Some(span), _) if end + 1 == self.to => span.until_s * 1000,
            // A call that took effect late brings an old time with it, so the base may be later than what follows it.
            (_, Some(base)) => base.span.at_ms + SHORTEST_MS - SETTLED_MS,
            (_, None) => 0,
        };
        if now_ms + MARGIN_MS < kept_until_ms {
            return Missing::Hole;
        }
        if age_ms < SETTLED_MS { Missing::InFlight } else { Missing::Lost }
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
        let heads = match batch_get(&self.dynamodb, &self.table, keys, deadline).await {
            Ok(items) => items,
            Err(Failure::Mistake(_)) => return Ok(wanted.iter().map(|_| None).collect()),
            Err(Failure::Fault(fault)) => return Err(fault),
        };
        let heads: HashMap<_, _> =
            heads.iter().filter_map(|item| Some((text(item, P)?.to_owned(), Head::of(item)?))).collect();
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
    /// Reads what a subscriber needs, from a head that was read after the subscriber's row was written.
    pub(super) async fn resume(&self, from: &From, head: Option<Head>, deadline: Deadline) -> Result<Resumed, Failure> {
        let resume = tokio::time::timeout(deadline.left(), async {
            let head = match head {
                Some(head) => head,
                None => self.head(deadline).await?,
            };
            match from {
                From::After(after) => self.missed(after, &head, deadline).await,
                From::Newest(count) => self.newest(*count, &head, deadline).await,
            }
        });
        resume.await.map_err(|_| Error::OutOfTime { topic: self.topic.to_string() })?
    }

    async fn missed(&self, after: &Stamp, head: &Head, deadline: Deadline) -> Result<Resumed, Failure> {
        let Stamp { epoch, seq: last } = &head.stamp;
        if after == &head.stamp {
            return Ok(Resumed { stamp: after.clone(), entries: Vec::new(), recovered: Some(true) });
        }
        if after.epoch == *epoch && after.seq < *last && last - after.seq <= MAX_RESUMED {
            let most = usize::try_from(last - after.seq).unwrap_or(usize::MAX);
            let Walk { entries, end, lost, .. } = self.walk(after.seq, head, most, deadline).await?;
            if lost.is_none() {
                let stamp = Stamp { epoch: epoch.clone(), seq: end };
                return Ok(Resumed { stamp, entries, recovered: Some(true) });
            }
        }
        let newest = self.newest(0, head, deadline).await?;
        Ok(Resumed { recovered: Some(false), ..newest })
    }

    /// Reads some of the history: behind a position, before one, or the newest. Numbers that may have expired are left out.
    ///
    /// # Errors
    ///
    /// [`ClientError::Busy`], or a fault.
    pub async fn page(&self, range: &Range, limit: usize, deadline: Deadline) -> Result<Page, Failure> {
        let page = tokio::time::timeout(deadline.left(), async {
            let head = self.head(deadline).await?;
            match range {
                Range::After(after) => self.page_after(after, &head, limit, deadline).await,
                Range::Before(before) => self.page_before(Some(before), &head, limit, deadline).await,
                Range::Newest => self.page_before(None, &head, limit, deadline).await,
            }
        });
        page.await.map_err(|_| Error::OutOfTime { topic: self.topic.to_string() })?
    }

    async fn page_after(&self, after: &Stamp, head: &Head, limit: usize, deadline: Deadline) -> Result<Page, Failure> {
        let Stamp { epoch, seq: last } = &head.stamp;
        let is_known = after.epoch == *epoch && after.seq <= *last;
        let walk = self.walk(if is_known { after.seq } else { 0 }, head, limit, deadline).await?;
        let lost = if is_known { walk.lost } else { Some(0) };
        let reached = Some(Reached { seq: walk.end, lost });
        Ok(Page { epoch: epoch.clone(), entries: walk.entries, more: walk.is_full, reached })
    }

    async fn page_before(
        &self,
        before: Option<&Stamp>,
        head: &Head,
        limit: usize,
        deadline: Deadline,
    ) -> Result<Page, Failure> {
        let Stamp { epoch, seq: last } = &head.stamp;
        let end = match before {
            Some(before) if before.epoch == *epoch => before.seq.saturating_sub(1).min(*last),
            _ => *last,
        };
        let mut entries = match end {
            0 => Vec::new(),
            end => self.query(epoch, 0, end, false, limit + 1, deadline).await?,
        };
        let more = entries.len() > limit;
        entries.truncate(limit);
        Ok(Page { epoch: epoch.clone(), entries, more, reached: None })
    }

    /// Returns the newest messages, and a position behind which every number has or gets its message.
    ///
    /// On a topic with many messages it looks back at most [`MAX_LOOKED_AT`] items for numbers that may still come.
    async fn newest(&self, count: u64, head: &Head, deadline: Deadline) -> Result<Resumed, Failure> {
        let Stamp { epoch, seq: last } = head.stamp.clone();
        let is_settled = |at_ms: i64| now_ms() - at_ms >= SETTLED_MS;
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let mut items: Vec<Entry> = Vec::new();
        // Tombstones are read as well, and they are none of the messages that were asked for.
        let mut missing = count;
        let (mut start, mut taken_ms) = (last, head.span.at_ms);
        let mut is_all = false;
        while start > 0 && (missing > 0 || !is_settled(taken_ms)) && items.len() < count + MAX_LOOKED_AT {
            let wanted = if is_settled(taken_ms) { missing } else { count.max(LOOKED_AT) };
            let more = self.query(&epoch, 0, start, false, wanted, deadline).await?;
            let Some(oldest) = more.last() else {
                is_all = true;
                break;
            };
            (start, taken_ms) = (oldest.seq - 1, oldest.at_ms);
            missing = missing.saturating_sub(more.iter().filter(|entry| entry.message.is_some()).count());
            items.extend(more);
        }
        items.reverse();
        let first = items.first().map_or(0, |oldest| {
            let before_ms = oldest.prev.map_or(oldest.at_ms, |prev| prev.at_ms);
            // Nothing is in front of the oldest item, but its message may still come if the number is young. Those before it
            // may be as young.
            if is_all && !is_settled(before_ms) { 0 } else { oldest.seq - 1 }
        });
        if items.is_empty() && is_settled(head.span.at_ms) {
            return Ok(Resumed { stamp: head.stamp.clone(), entries: items, recovered: None });
        }
        let Walk { mut entries, end, .. } = self.settle(first, None, items, head, usize::MAX, deadline).await?;
        entries.retain(|entry| entry.message.is_some());
        let entries = entries.split_off(entries.len().saturating_sub(count));
        Ok(Resumed { stamp: Stamp { epoch, seq: end }, entries, recovered: None })
    }

    /// Goes from number to number behind `after`, up to so many.
    async fn walk(&self, after: u64, head: &Head, most: usize, deadline: Deadline) -> Result<Walk, Failure> {
        // The number `after` itself and one too many are read as well.
        let mut items = self.query(&head.stamp.epoch, after, MAX_SEQ, true, most + 2, deadline).await?;
        let base = items.first().map(Entry::base).filter(|base| base.seq == after);
        items.drain(..usize::from(base.is_some()));
        self.settle(after, base, items, head, most, deadline).await
    }

    /// Settles the numbers behind `after` that have no item. It ends at a number that may still come, and passes over
    /// those that may have expired. The items begin behind `after`. They end with the last one, or with one more than `most`.
    async fn settle(
        &self,
        after: u64,
        mut base: Option<Base>,
        items: Vec<Entry>,
        head: &Head,
        most: usize,
        deadline: Deadline,
    ) -> Result<Walk, Failure> {
        let now_ms = now_ms();
        let mut walk = Walk { entries: Vec::new(), end: after, lost: None, is_full: false };
        let last = Gap { to: head.stamp.seq, last: Some(head.span), at_ms: head.span.at_ms };
        for next in items.into_iter().map(Some).chain([None]) {
            let gap = next.as_ref().map_or(last, |next| Gap {
                to: next.seq - 1,
                last: next.prev,
                at_ms: next.prev.map_or(next.at_ms, |prev| prev.at_ms),
            });
            if walk.end < gap.to {
                match gap.judge(walk.end, base, now_ms) {
                    Missing::InFlight => return Ok(walk),
                    Missing::Lost => {
                        walk.lost.get_or_insert(walk.end + 1);
                        walk.end = gap.to;
                    }
                    Missing::Hole => {
                        while walk.end < gap.to && walk.entries.len() < most {
                            let entry = self.give_up(walk.end + 1, gap, base, head, deadline).await?;
                            base = Some(walk.push(entry));
                        }
                    }
                }
            }
            walk.is_full = walk.entries.len() == most && (next.is_some() || walk.end < gap.to);
            if walk.is_full {
                return Ok(walk);
            }
            if let Some(next) = next {
                base = Some(walk.push(next));
            }
        }
        Ok(walk)
    }

    /// Writes a tombstone under a number that nobody wrote in time, and returns the item that is there then.
    async fn give_up(
        &self,
        seq: u64,
        gap: Gap,
        base: Option<Base>,
        head: &Head,
        deadline: Deadline,
    ) -> Result<Entry, Failure> {
        // Only the last number's own time is known. The others are not older than the number before them.
        let span = gap.last.filter(|_| seq == gap.to).or(base.map(|base| base.span));
        let at_ms = span.map_or(gap.at_ms, |span| span.at_ms);
        let prev = base.filter(|base| base.seq + 1 == seq).map(|base| base.span);
        let stamp = Stamp { epoch: head.stamp.epoch.clone(), seq };
        let tombstone = self.tombstone(&Number { stamp, at_ms, prev }, 0);
        // A late writer may have been faster.
        let there = self.put_once(tombstone.clone(), deadline).await?.unwrap_or(tombstone);
        Ok(Entry::of(&there).ok_or(ClientError::Busy)?)
    }

    /// The items of an epoch from one number to another, at most so many. Rows that this code did not write are skipped.
    pub(super) async fn query(
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
            let (items, next) = patiently(deadline, || async {
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
                match Entry::of(&item) {
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
}

impl Walk {
    /// Takes the next entry, and returns what the numbers behind it are judged by.
    fn push(&mut self, entry: Entry) -> Base {
        let base = entry.base();
        self.end = entry.seq;
        self.entries.push(entry);
        base
    }
}

impl Entry {
    fn base(&self) -> Base {
        Base { seq: self.seq, span: Span { at_ms: self.at_ms, until_s: self.ttl_s } }
    }
}

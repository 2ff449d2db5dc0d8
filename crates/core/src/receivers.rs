//! The receivers of a publication, read page by page from the tables.

use std::collections::{HashMap, VecDeque};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::future;
use lambda_runtime::tracing::warn;

use crate::Error;
use crate::clock::now_s;
use crate::connection::ConnectionId;
use crate::deadline::Deadline;
use crate::publication::{Audience, Position, SEGMENTS};
use crate::store::{self, Item};
use crate::topic::{Subscriber, Topic};

/// The live receivers of an audience, in the order of DynamoDB's keys. Reading is lazy: each page is one `Query` or
/// `Scan`, strongly consistent, and it is read when the page before it is used up.
///
/// The subscribers of a topic are in several lists: its own, and one for each pattern that contains the topic. All of them
/// are in the order of connections, so they are merged. A connection that is in several lists is one receiver, and the most
/// specific list says what it gets. One position is the same place in all lists.
#[derive(Debug)]
pub struct Receivers {
    dynamodb: Client,
    table: String,
    audience: Audience,
    /// The last receiver, if that is not the last one of the audience.
    until: Option<ConnectionId>,
    /// From the most to the least specific one.
    lists: Vec<List>,
    ready: VecDeque<Subscriber>,
    /// Why the page behind these could not be read.
    failed: Option<Error>,
    /// How many rows were not understood so far. They are skipped.
    pub(crate) unreadable: usize,
}

/// The rows of connections that are open.
const LIVE: &str = "#ttl > :now AND attribute_not_exists(closedAt)";

#[derive(Debug)]
struct List {
    /// The pattern whose subscribers these are. The other lists are the audience's own.
    pattern: Option<Topic>,
    next: Next,
    rows: VecDeque<Subscriber>,
}

#[derive(Debug, Clone)]
enum Next {
    Page { start: Option<Item> },
    End,
}

impl Receivers {
    pub(crate) fn new(
        dynamodb: Client,
        table: String,
        audience: &Audience,
        patterns: Vec<Topic>,
        position: &Position,
    ) -> Self {
        let list = |pattern: Option<Topic>| {
            let next = match (position, audience) {
                (Position::Start, _) => Next::Page { start: None },
                (Position::End, _) => Next::End,
                (Position::After(id), Audience::Topic(topic) | Audience::Presence(topic)) => {
                    let key = store::topic_key(pattern.as_ref().unwrap_or(topic).as_str(), id);
                    Next::Page { start: Some(key) }
                }
                (Position::After(id), Audience::Everybody { .. }) => {
                    Next::Page { start: Some(store::connection_key(id)) }
                }
            };
            List { pattern, next, rows: VecDeque::new() }
        };
        let lists = std::iter::once(None).chain(patterns.into_iter().map(Some)).map(list).collect();
        let (audience, ready) = (audience.clone(), VecDeque::new());
        Self { dynamodb, table, audience, until: None, lists, ready, failed: None, unreadable: 0 }
    }

    /// The same receivers up to this one.
    #[must_use]
    pub fn until(self, until: Option<ConnectionId>) -> Self {
        Self { until, ..self }
    }

    /// The last one of the first `count` receivers, if more than these are ready.
    pub(crate) fn last_of(&self, count: usize) -> Option<ConnectionId> {
        let last = self.ready.get(count.checked_sub(1)?).filter(|_| self.ready.len() > count)?;
        Some(last.connection_id.clone())
    }

    /// Leaves out all receivers behind the first `count`, which must be ready. Returns the last one that stays.
    pub(crate) fn cut(&mut self, count: usize) -> Option<ConnectionId> {
        self.ready.truncate(count);
        self.failed = None;
        for list in &mut self.lists {
            list.rows.clear();
            list.next = Next::End;
        }
        Some(self.ready.back()?.connection_id.clone())
    }

    /// Reads pages until a receiver is ready or the list has ended.
    ///
    /// # Errors
    ///
    /// When DynamoDB fails. The next call tries the same page again.
    pub async fn fetch(&mut self) -> Result<(), Error> {
        self.read_ahead(1).await
    }

    /// Whether there are more receivers than `limit`. The pages that are read for that are not read again.
    ///
    /// If the time ends or a page behind the first one cannot be read, the answer is no: a publish goes on in spite of both.
    ///
    /// # Errors
    ///
    /// When DynamoDB fails before any receiver is known. The next call tries the same page again.
    pub async fn exceed(&mut self, limit: u32, deadline: Deadline) -> Result<bool, Error> {
        self.exceed_count(usize::try_from(limit).unwrap_or(usize::MAX), deadline).await
    }

    pub(crate) async fn exceed_count(&mut self, limit: usize, deadline: Deadline) -> Result<bool, Error> {
        if let Ok(Err(error)) = tokio::time::timeout(deadline.left(), self.read_ahead(limit.saturating_add(1))).await {
            if self.ready.is_empty() {
                return Err(error);
            }
            // The publisher meets it when it has come so far.
            self.failed = Some(error);
        }
        Ok(self.ready.len() > limit)
    }

    /// Reads pages, of several lists at the same time, until so many receivers are ready or all lists have ended.
    async fn read_ahead(&mut self, count: usize) -> Result<(), Error> {
        if self.ready.is_empty()
            && let Some(error) = self.failed.take()
        {
            return Err(error);
        }
        loop {
            self.merge();
            if self.ready.len() >= count {
                return Ok(());
            }
            let (dynamodb, table, audience, until) = (&self.dynamodb, &self.table, &self.audience, self.until.as_ref());
            let due = self.lists.iter_mut().filter(|list| list.is_due());
            let reads = due.map(async |list| list.read(dynamodb, table, audience, until).await);
            let unreadable = future::join_all(reads).await;
            if unreadable.is_empty() {
                return Ok(());
            }
            for unreadable in unreadable {
                self.unreadable += unreadable?;
            }
        }
    }

    /// Takes rows from the lists as long as none of them has to be read first.
    fn merge(&mut self) {
        while !self.lists.iter().any(List::is_due) {
            let first = self.lists.iter().filter_map(|list| Some(&list.rows.front()?.connection_id)).min();
            let Some(next) = first.cloned() else { return };
            let mut receiver = None;
            for list in &mut self.lists {
                if list.rows.front().is_some_and(|receiver| receiver.connection_id == next) {
                    let row = list.rows.pop_front();
                    receiver = receiver.or(row);
                }
            }
            self.ready.extend(receiver);
        }
    }

    /// The next receiver; `None` at the end of the list.
    ///
    /// # Errors
    ///
    /// As [`Receivers::fetch`].
    pub async fn next(&mut self) -> Result<Option<Subscriber>, Error> {
        self.fetch().await?;
        Ok(self.ready.pop_front())
    }
}

impl List {
    /// Whether its next page has to be read before anything is taken.
    fn is_due(&self) -> bool {
        self.rows.is_empty() && matches!(self.next, Next::Page { .. })
    }

    /// Reads one page, and returns how many of its rows were not understood. Rows behind `until` are left out.
    async fn read(
        &mut self,
        dynamodb: &Client,
        table: &str,
        audience: &Audience,
        until: Option<&ConnectionId>,
    ) -> Result<usize, Error> {
        let Next::Page { start } = self.next.clone() else { return Ok(0) };
        // Changes of members are for those alone that asked.
        let is_presence = matches!(audience, Audience::Presence(_));
        let (rows, last) = match audience {
            Audience::Topic(topic) | Audience::Presence(topic) => {
                let mut query = dynamodb
                    .query()
                    .table_name(table)
                    .consistent_read(true)
                    .key_condition_expression(match until {
                        None => "topic = :topic",
                        Some(_) => "topic = :topic AND connectionId <= :until",
                    })
                    .filter_expression(if is_presence { "#ttl > :now AND #presence = :true" } else { "#ttl > :now" })
                    .projection_expression("connectionId, subscriptionId, connectedAt, positions, batches")
                    .expression_attribute_names("#ttl", store::TTL)
                    .expression_attribute_values(
                        ":topic",
                        store::string(self.pattern.as_ref().unwrap_or(topic).as_str()),
                    )
                    .expression_attribute_values(":now", AttributeValue::N(now_s().to_string()))
                    .set_exclusive_start_key(start);
                if let Some(until) = until {
                    query = query.expression_attribute_values(":until", store::string(until.as_str()));
                }
                if is_presence {
                    query = query
                        .expression_attribute_names("#presence", store::PRESENCE)
                        .expression_attribute_values(":true", AttributeValue::Bool(true));
                }
                let page = query.send().await.map_err(|error| Error::store("Query", table, &error))?;
                (page.items, page.last_evaluated_key)
            }
            Audience::Everybody { segment } => {
                let mut scan = dynamodb
                    .scan()
                    .table_name(table)
                    .consistent_read(true)
                    .segment((*segment).into())
                    .total_segments(SEGMENTS.into())
                    .filter_expression(match until {
                        None => LIVE.to_owned(),
                        // A scan has an order that only DynamoDB knows, so the last row is read in any case.
                        Some(_) => format!("({LIVE}) OR connectionId = :until"),
                    })
                    .projection_expression("connectionId, connectedAt, closedAt, #ttl")
                    .expression_attribute_names("#ttl", store::TTL)
                    .expression_attribute_values(":now", AttributeValue::N(now_s().to_string()))
                    .set_exclusive_start_key(start);
                if let Some(until) = until {
                    scan = scan.expression_attribute_values(":until", store::string(until.as_str()));
                }
                let page = scan.send().await.map_err(|error| Error::store("Scan", table, &error))?;
                (page.items, page.last_evaluated_key)
            }
        };
        self.next = last.map_or(Next::End, |key| Next::Page { start: Some(key) });
        let mut unreadable = 0;
        for row in rows.unwrap_or_default() {
            let is_last = until.is_some_and(|until| store::text(&row, store::CONNECTION_ID) == Some(until.as_str()));
            if is_last {
                self.next = Next::End;
                if store::number(&row, store::CLOSED_AT).is_some()
                    || store::number(&row, store::TTL).is_some_and(|ttl| ttl <= now_s())
                {
                    break;
                }
            }
            match subscriber(&row) {
                Ok(subscriber) => {
                    self.rows.push_back(Subscriber { pattern: self.pattern.clone(), ..subscriber });
                }
                Err(attribute) => {
                    unreadable += 1;
                    let id = store::text(&row, store::CONNECTION_ID).unwrap_or("?");
                    warn!(
                        table,
                        ?audience,
                        connection.id = id,
                        attribute,
                        "a row is skipped: an attribute is missing or has the wrong type"
                    );
                }
            }
            if is_last {
                break;
            }
        }
        Ok(unreadable)
    }
}

/// The receiver in a row of either table, or the attribute that makes the row useless.
fn subscriber(row: &HashMap<String, AttributeValue>) -> Result<Subscriber, &'static str> {
    let id = store::text(row, store::CONNECTION_ID).ok_or(store::CONNECTION_ID)?;
    Ok(Subscriber {
        connection_id: ConnectionId::new(id.to_owned()),
        subscription_id: store::text(row, store::SUBSCRIPTION_ID).map(str::to_owned),
        connected_at_ms: store::number(row, store::CONNECTED_AT).ok_or(store::CONNECTED_AT)?,
        positions: store::is_set(row, store::POSITIONS),
        batches: store::is_set(row, store::BATCHES),
        pattern: None,
    })
}

#[cfg(test)]
mod tests;

//! The receivers of a publication, read page by page from the tables.

use std::collections::{HashMap, VecDeque};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::future;
use lambda_runtime::tracing::warn;

use crate::Error;
use crate::clock::now_s;
use crate::connection::ConnectionId;
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
    /// From the most to the least specific one.
    lists: Vec<List>,
    /// How many rows were not understood so far. They are skipped.
    pub(crate) unreadable: usize,
}

#[derive(Debug)]
struct List {
    /// The pattern whose subscribers these are. The other lists are the audience's own.
    pattern: Option<Topic>,
    next: Next,
    ready: VecDeque<Subscriber>,
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
                (Position::After(id), Audience::Topic(topic)) => {
                    let key = store::topic_key(pattern.as_ref().unwrap_or(topic).as_str(), id);
                    Next::Page { start: Some(key) }
                }
                (Position::After(id), Audience::Everybody { .. }) => {
                    Next::Page { start: Some(store::connection_key(id)) }
                }
            };
            List { pattern, next, ready: VecDeque::new() }
        };
        let lists = std::iter::once(None).chain(patterns.into_iter().map(Some)).map(list).collect();
        Self { dynamodb, table, audience: audience.clone(), lists, unreadable: 0 }
    }

    /// Reads pages, of all lists at the same time, until each list that has not ended has a receiver ready.
    ///
    /// # Errors
    ///
    /// When DynamoDB fails. The next call tries the same page again.
    pub async fn fetch(&mut self) -> Result<(), Error> {
        loop {
            let is_due = |list: &&mut List| list.ready.is_empty() && matches!(list.next, Next::Page { .. });
            let (dynamodb, table, audience) = (&self.dynamodb, &self.table, &self.audience);
            let due = self.lists.iter_mut().filter(is_due).map(async |list| list.read(dynamodb, table, audience).await);
            let unreadable = future::join_all(due).await;
            if unreadable.is_empty() {
                return Ok(());
            }
            for unreadable in unreadable {
                self.unreadable += unreadable?;
            }
        }
    }

    /// The next receiver; `None` at the end of the list.
    ///
    /// # Errors
    ///
    /// As [`Receivers::fetch`].
    pub async fn next(&mut self) -> Result<Option<Subscriber>, Error> {
        self.fetch().await?;
        let first = |list: &List| list.ready.front().map(|receiver| receiver.connection_id.clone());
        let next = self.lists.iter().filter_map(first).min();
        let mut receiver = None;
        for list in &mut self.lists {
            if list.ready.front().map(|receiver| &receiver.connection_id) == next.as_ref() {
                receiver = receiver.or(list.ready.pop_front());
            }
        }
        Ok(receiver)
    }
}

impl List {
    /// Reads one page, and returns how many of its rows were not understood.
    async fn read(&mut self, dynamodb: &Client, table: &str, audience: &Audience) -> Result<usize, Error> {
        let Next::Page { start } = self.next.clone() else { return Ok(0) };
        let (rows, last) = match audience {
            Audience::Topic(topic) => {
                let query = dynamodb
                    .query()
                    .table_name(table)
                    .consistent_read(true)
                    .key_condition_expression("topic = :topic")
                    .filter_expression("#ttl > :now")
                    .projection_expression("connectionId, subscriptionId, connectedAt, positions")
                    .expression_attribute_names("#ttl", store::TTL)
                    .expression_attribute_values(
                        ":topic",
                        store::string(self.pattern.as_ref().unwrap_or(topic).as_str()),
                    )
                    .expression_attribute_values(":now", AttributeValue::N(now_s().to_string()))
                    .set_exclusive_start_key(start);
                let page = query.send().await.map_err(|error| Error::store("Query", table, &error))?;
                (page.items, page.last_evaluated_key)
            }
            Audience::Everybody { segment } => {
                let scan = dynamodb
                    .scan()
                    .table_name(table)
                    .consistent_read(true)
                    .segment((*segment).into())
                    .total_segments(SEGMENTS.into())
                    .filter_expression("#ttl > :now AND attribute_not_exists(closedAt)")
                    .projection_expression("connectionId, connectedAt")
                    .expression_attribute_names("#ttl", store::TTL)
                    .expression_attribute_values(":now", AttributeValue::N(now_s().to_string()))
                    .set_exclusive_start_key(start);
                let page = scan.send().await.map_err(|error| Error::store("Scan", table, &error))?;
                (page.items, page.last_evaluated_key)
            }
        };
        self.next = last.map_or(Next::End, |key| Next::Page { start: Some(key) });
        let mut unreadable = 0;
        for row in rows.unwrap_or_default() {
            match subscriber(&row) {
                Ok(subscriber) => {
                    self.ready.push_back(Subscriber { pattern: self.pattern.clone(), ..subscriber });
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
        pattern: None,
    })
}

#[cfg(test)]
mod tests;

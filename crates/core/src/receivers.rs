//! The receivers of a publication, read page by page from the tables.

use std::collections::{HashMap, VecDeque};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;
use lambda_runtime::tracing::warn;

use crate::Error;
use crate::clock::now_s;
use crate::connection::ConnectionId;
use crate::deadline::Deadline;
use crate::publication::{Audience, Position, SEGMENTS};
use crate::store::{self, Item};
use crate::topic::Subscriber;

/// The live receivers of an audience, in the order of DynamoDB's keys. Reading is lazy: each page is one `Query` or
/// `Scan`, strongly consistent, and it is read when the page before it is used up.
#[derive(Debug)]
pub struct Receivers {
    dynamodb: Client,
    table: String,
    audience: Audience,
    next: Next,
    ready: VecDeque<Subscriber>,
    /// Why the page behind these could not be read.
    failed: Option<Error>,
    /// How many rows were not understood so far. They are skipped.
    pub(crate) unreadable: usize,
}

#[derive(Debug)]
enum Next {
    Page { start: Option<Item> },
    End,
}

impl Receivers {
    pub(crate) fn new(dynamodb: Client, table: String, audience: &Audience, position: &Position) -> Self {
        let next = match (position, audience) {
            (Position::Start, _) => Next::Page { start: None },
            (Position::End, _) => Next::End,
            (Position::After(id), Audience::Topic(topic)) => {
                Next::Page { start: Some(store::topic_key(topic.as_str(), id)) }
            }
            (Position::After(id), Audience::Everybody { .. }) => Next::Page { start: Some(store::connection_key(id)) },
        };
        Self { dynamodb, table, audience: audience.clone(), next, ready: VecDeque::new(), failed: None, unreadable: 0 }
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
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        if let Ok(Err(error)) = tokio::time::timeout(deadline.left(), self.read_ahead(limit.saturating_add(1))).await {
            if self.ready.is_empty() {
                return Err(error);
            }
            // The publisher meets it when it has come so far.
            self.failed = Some(error);
        }
        Ok(self.ready.len() > limit)
    }

    /// Reads pages until so many receivers are ready or the list has ended.
    async fn read_ahead(&mut self, count: usize) -> Result<(), Error> {
        if self.ready.is_empty()
            && let Some(error) = self.failed.take()
        {
            return Err(error);
        }
        while let (true, Next::Page { start }) = (self.ready.len() < count, &self.next) {
            let (rows, last) = match &self.audience {
                Audience::Topic(topic) => {
                    let query = self
                        .dynamodb
                        .query()
                        .table_name(&self.table)
                        .consistent_read(true)
                        .key_condition_expression("topic = :topic")
                        .filter_expression("#ttl > :now")
                        .projection_expression("connectionId, subscriptionId, connectedAt, positions")
                        .expression_attribute_names("#ttl", store::TTL)
                        .expression_attribute_values(":topic", store::string(topic.as_str()))
                        .expression_attribute_values(":now", AttributeValue::N(now_s().to_string()))
                        .set_exclusive_start_key(start.clone());
                    let page = query.send().await.map_err(|error| Error::store("Query", &self.table, &error))?;
                    (page.items, page.last_evaluated_key)
                }
                Audience::Everybody { segment } => {
                    let scan = self
                        .dynamodb
                        .scan()
                        .table_name(&self.table)
                        .consistent_read(true)
                        .segment((*segment).into())
                        .total_segments(SEGMENTS.into())
                        .filter_expression("#ttl > :now AND attribute_not_exists(closedAt)")
                        .projection_expression("connectionId, connectedAt")
                        .expression_attribute_names("#ttl", store::TTL)
                        .expression_attribute_values(":now", AttributeValue::N(now_s().to_string()))
                        .set_exclusive_start_key(start.clone());
                    let page = scan.send().await.map_err(|error| Error::store("Scan", &self.table, &error))?;
                    (page.items, page.last_evaluated_key)
                }
            };
            self.next = last.map_or(Next::End, |key| Next::Page { start: Some(key) });
            for row in rows.unwrap_or_default() {
                match subscriber(&row) {
                    Ok(subscriber) => self.ready.push_back(subscriber),
                    Err(attribute) => {
                        self.unreadable += 1;
                        let id = store::text(&row, store::CONNECTION_ID).unwrap_or("?");
                        let (table, audience) = (&self.table, &self.audience);
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
        }
        Ok(())
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

/// The receiver in a row of either table, or the attribute that makes the row useless.
fn subscriber(row: &HashMap<String, AttributeValue>) -> Result<Subscriber, &'static str> {
    let id = store::text(row, store::CONNECTION_ID).ok_or(store::CONNECTION_ID)?;
    Ok(Subscriber {
        connection_id: ConnectionId::new(id.to_owned()),
        subscription_id: store::text(row, store::SUBSCRIPTION_ID).map(str::to_owned),
        connected_at_ms: store::number(row, store::CONNECTED_AT).ok_or(store::CONNECTED_AT)?,
        positions: row.get(store::POSITIONS).is_some_and(|asked| asked.as_bool().is_ok_and(|asked| *asked)),
    })
}

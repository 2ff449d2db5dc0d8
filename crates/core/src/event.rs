//! The events table: what a backend asks to have published, and what is left of a publish that ended early.
//!
//! An event, which any backend writes and the function `publish` reads:
//!
//! | attribute | type | meaning |
//! |---|---|---|
//! | `topic` | S, partition key | a topic, `@<userId>`, or `INITIAL_CONNECTION` |
//! | `id` | S, sort key | the writer's own, unique within the topic |
//! | `data` | any | what subscribers receive; each DynamoDB type becomes the JSON that it stands for |
//! | `senderId`, `body` | S, any | instead of `data`, for a direct message to a user |
//! | `json` | S | instead of `data` or `body`: JSON text that is passed on byte for byte |
//! | `further` | L of S | more messages of a topic behind `json`, as JSON texts; a client's frame on a topic with `batchMs` may have some |
//! | `disconnect`, `reason` | BOOL, S | instead of `data`, for a user's address: true ends the user's connections, with the reason |
//! | `ttl` | N, epoch **seconds** | when DynamoDB may delete the item |
//!
//! A continuation, which our functions write and the function `fan-out` reads:
//!
//! | attribute | type | meaning |
//! |---|---|---|
//! | `topic` | S, partition key | a random name. Each continuation has its own, so that it waits for nobody. One that was split off has the name of the first one and a number |
//! | `id` | S, sort key | `-` |
//! | `originTopic` | S | the publication's topic. Only continuations have this attribute |
//! | `originId` | S | the id of the event, or of the client's request, that began the publication |
//! | `segment` | N | the part of the connections table, for `INITIAL_CONNECTION` |
//! | `after` | S | the connection behind which reading goes on; without it, and without `start`, nothing is left to read |
//! | `start` | BOOL | true if nothing was read yet; `after` is then missing |
//! | `until` | S | the last connection that is read; without it, everybody behind `after` is served. `fan-out` adds it when it splits off the rest |
//! | `again` | L of M | receivers that have to be tried once more |
//! | `epoch`, `seq` | S, N | where the message is kept, on a topic with history; then `senderId` is there on any topic |
//! | `presence` | BOOL | true if it is for subscribers that asked for changes of members; `json` and `further` are then whole frames |
//! | `senderId`, `json`, `ttl` | S, S, N | as in an event |
//! | `further` | L of S | more messages behind `json`, as JSON texts |
//!
//! Only the insertion of an item publishes. The stream carries it to the function. While `fan-out` serves a continuation, it
//! moves `after` and `again`, so that a continuation that comes again goes on from there.

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::Builder;
use aws_sdk_dynamodb::config::timeout::TimeoutConfig;
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::operation::update_item::builders::UpdateItemFluentBuilder;
use aws_sdk_dynamodb::types::AttributeValue;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::clock::now_s;
use crate::connection::{ConnectionId, UserId};
use crate::deadline::RESERVE;
use crate::history::Stamp;
use crate::publication::{Audience, Content, Kept, Position, Publication, RangeItem, SEGMENTS};
use crate::store::{Item, string};
use crate::topic::{Subscriber, Topic};
use crate::{ClientError, Error};

/// Attribute names of an [event](self), as every writer and reader spells them.
pub mod attribute {
    #![expect(missing_docs, reason = "the table above says what each one means")]
    pub const TOPIC: &str = "topic";
    pub const ID: &str = "id";
    pub const DATA: &str = "data";
    pub const SENDER_ID: &str = "senderId";
    pub const BODY: &str = "body";
    pub const JSON: &str = "json";
    pub const FURTHER: &str = "further";
    pub const TTL: &str = "ttl";
    pub const DISCONNECT: &str = "disconnect";
    pub const REASON: &str = "reason";
    pub const ORIGIN_TOPIC: &str = "originTopic";
}

/// A continuation and a client's messages stay in the table for a day, as long as their stream records.
const EVENT_TTL_S: i64 = 24 * 60 * 60;

/// The events table, as a writer of continuations sees it.
#[derive(Debug, Clone)]
pub struct EventStore {
    dynamodb: Client,
    table: String,
}

/// A continuation, as its item is laid out.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Continuation {
    topic: String,
    id: String,
    origin_topic: String,
    origin_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    segment: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    start: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    presence: bool,
    again: Vec<Receiver>,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sender_id: Option<String>,
    json: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    further: Vec<String>,
    ttl: i64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Receiver {
    connection_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    subscription_id: Option<String>,
    connected_at: i64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    positions: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    batches: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pattern: Option<String>,
}

/// Why an item is no continuation that this version understands.
#[derive(Debug, thiserror::Error)]
pub enum UnknownContinuation {
    /// Attributes are missing or have the wrong type.
    #[error(transparent)]
    Attributes(#[from] serde_dynamo::Error),
    /// The topic or the sender is no name.
    #[error(transparent)]
    Name(#[from] ClientError),
    /// The payload is not JSON.
    #[error("the attribute `json` must be JSON text")]
    Json,
    /// There is no such segment.
    #[error("the attribute `segment` must be a number below {SEGMENTS}")]
    Segment,
}

impl EventStore {
    /// The table of that name, through `dynamodb`.
    #[must_use]
    pub fn new(dynamodb: Client, table: String) -> Self {
        Self { dynamodb, table }
    }

    /// Leaves messages of a client to the function `publish`, which posts them with others of the topic: one `PutItem`. The `id` is
    /// that of the client's request, so a call that is repeated by the SDK is one event.
    ///
    /// # Errors
    ///
    /// When DynamoDB fails.
    pub async fn put(&self, topic: &Topic, id: &str, messages: &[&RawValue]) -> Result<(), Error> {
        let texts = |messages: &[&RawValue]| messages.iter().map(|message| string(message.get())).collect();
        let (first, further) = messages.split_first().map_or(("null", &[][..]), |(first, rest)| (first.get(), rest));
        let mut put = self
            .dynamodb
            .put_item()
            .table_name(&self.table)
            .item(attribute::TOPIC, string(topic.as_str()))
            .item(attribute::ID, string(id))
            .item(attribute::JSON, string(first))
            .item(attribute::TTL, AttributeValue::N((now_s() + EVENT_TTL_S).to_string()));
        if !further.is_empty() {
            put = put.item(attribute::FURTHER, AttributeValue::L(texts(further)));
        }
        put.send().await.map_err(|error| Error::store("PutItem", &self.table, &error))?;
        Ok(())
    }

    /// Leaves the rest of a publication to the function `fan-out`: one `PutItem`, within the time that an invocation
    /// keeps in reserve.
    ///
    /// # Errors
    ///
    /// When DynamoDB fails.
    pub async fn put_continuation(&self, rest: Publication) -> Result<(), Error> {
        self.write(Continuation::from(rest), None).await
    }

    /// Splits a continuation that has no end: it ends with `until` now, and what is behind gets an item of its own. First the
    /// end is noted and then the item put, under a name that follows from the first one's. So whenever the continuation comes
    /// again, it is split at the same place, and the rest is put once.
    ///
    /// # Errors
    ///
    /// When DynamoDB fails.
    pub(crate) async fn split(&self, range: &RangeItem, until: &ConnectionId, rest: Publication) -> Result<(), Error> {
        if rest.until.is_none() {
            let end = self.update(range, "SET #until = :until").expression_attribute_names("#until", "until");
            self.note(end.expression_attribute_values(":until", string(until.as_str()))).await?;
        }
        let position = Position::After(until.clone());
        let rest = Continuation::from(Publication { position, until: None, again: Vec::new(), ..rest });
        let rest = Continuation { topic: name_behind(&range.name), ..rest };
        self.write(rest, Some("attribute_not_exists(topic)")).await
    }

    async fn write(&self, continuation: Continuation, condition: Option<&str>) -> Result<(), Error> {
        let item = serde_dynamo::to_item(continuation).expect("texts, numbers and lists always become attributes");
        let timeouts =
            TimeoutConfig::builder().operation_attempt_timeout(RESERVE * 2 / 5).operation_timeout(RESERVE * 9 / 10);
        let put = self.dynamodb.put_item().table_name(&self.table).set_item(Some(item));
        let put = put.set_condition_expression(condition.map(str::to_owned));
        let put = put.customize().config_override(Builder::default().timeout_config(timeouts.build()));
        match put.send().await {
            Err(error) if error.as_service_error().is_some_and(PutItemError::is_conditional_check_failed_exception) => {
                Ok(())
            }
            put => put.map(drop).map_err(|error| Error::store("PutItem", &self.table, &error)),
        }
    }

    /// Reads how far a continuation has come: one strongly consistent `GetItem`. There is nothing if somebody has deleted it.
    ///
    /// # Errors
    ///
    /// When DynamoDB fails.
    pub(crate) async fn stored(&self, range: &RangeItem) -> Result<Option<Publication>, Error> {
        let get = self.dynamodb.get_item().table_name(&self.table).set_key(Some(key(range))).consistent_read(true);
        let item = get.send().await.map_err(|error| Error::store("GetItem", &self.table, &error))?.item;
        // An item that this version does not understand is served as the stream brought it.
        let publication = item.and_then(|item| continuation(item.into()).ok());
        Ok(publication.map(|publication| Publication { item: Some(range.clone()), ..publication }))
    }

    /// Notes how far a continuation has come: one `UpdateItem`. Without the item there is nothing to note.
    ///
    /// # Errors
    ///
    /// When DynamoDB fails.
    pub(crate) async fn checkpoint(
        &self,
        range: &RangeItem,
        position: &Position,
        again: Vec<Subscriber>,
    ) -> Result<(), Error> {
        let again: Vec<_> = again.into_iter().map(Receiver::from).collect();
        let again = serde_dynamo::to_attribute_value(again).expect("a list always becomes an attribute");
        let update = match position {
            Position::After(id) => self
                .update(range, "SET again = :again, #after = :after")
                .expression_attribute_values(":after", string(id.as_str())),
            Position::Start => return Ok(()),
            Position::End => self.update(range, "SET again = :again REMOVE #after, #start"),
        };
        let update = update.expression_attribute_names("#after", "after");
        let update = match position {
            Position::End => update.expression_attribute_names("#start", "start"),
            _ => update,
        };
        self.note(update.expression_attribute_values(":again", again)).await
    }

    fn update(&self, range: &RangeItem, update: &str) -> UpdateItemFluentBuilder {
        let call = self.dynamodb.update_item().table_name(&self.table).set_key(Some(key(range)));
        call.update_expression(update).condition_expression("attribute_exists(topic)")
    }

    async fn note(&self, update: UpdateItemFluentBuilder) -> Result<(), Error> {
        match update.send().await {
            Err(error)
                if error.as_service_error().is_some_and(UpdateItemError::is_conditional_check_failed_exception) =>
            {
                Ok(())
            }
            update => update.map(drop).map_err(|error| Error::store("UpdateItem", &self.table, &error)),
        }
    }
}

/// The sort key of every continuation.
const CONTINUATION_ID: &str = "-";

fn key(range: &RangeItem) -> Item {
    let RangeItem { name, .. } = range;
    Item::from([(attribute::TOPIC.to_owned(), string(name)), (attribute::ID.to_owned(), string(CONTINUATION_ID))])
}

/// The name of the item behind the one with this name.
fn name_behind(name: &str) -> String {
    let (first, number) = name.rsplit_once('/').unwrap_or((name, "0"));
    match number.parse::<u32>() {
        Ok(number) => format!("{first}/{}", number.saturating_add(1)),
        Err(_) => format!("{name}/1"),
    }
}

#[cfg(test)]
pub(crate) fn item(rest: Publication) -> serde_dynamo::Item {
    serde_dynamo::to_item(Continuation::from(rest)).unwrap()
}

impl From<Publication> for Continuation {
    fn from(rest: Publication) -> Self {
        let origin_topic = rest.topic().to_owned();
        let (sender_id, jsons) = match rest.content {
            Content::Data(data) => {
                let sender = rest.kept.as_ref().and_then(|kept| kept.sender.as_ref());
                (sender.map(|sender| sender.as_str().to_owned()), data)
            }
            Content::Frames(frames) => (None, frames),
            Content::DirectMessage { sender, body } => (Some(sender.as_str().to_owned()), vec![body]),
        };
        let mut jsons = jsons.into_iter().map(|json| json.get().to_owned());
        let again = rest.again.into_iter().map(Receiver::from);
        let (epoch, seq) = rest.kept.map(|kept| (kept.stamp.epoch, kept.stamp.seq)).unzip();
        Self {
            topic: format!("continuation {:032x}", fastrand::u128(..)),
            id: CONTINUATION_ID.to_owned(),
            origin_topic,
            origin_id: rest.id,
            presence: matches!(rest.audience, Audience::Presence(_)),
            segment: match rest.audience {
                Audience::Topic(_) | Audience::Presence(_) => None,
                Audience::Everybody { segment } => Some(segment),
            },
            start: rest.position == Position::Start,
            after: match rest.position {
                Position::After(id) => Some(id.as_str().to_owned()),
                Position::Start | Position::End => None,
            },
            until: rest.until.map(|id| id.as_str().to_owned()),
            again: again.collect(),
            epoch,
            seq,
            sender_id,
            json: jsons.next().unwrap_or_default(),
            further: jsons.collect(),
            ttl: now_s() + EVENT_TTL_S,
        }
    }
}

impl From<Subscriber> for Receiver {
    fn from(receiver: Subscriber) -> Self {
        Self {
            connection_id: receiver.connection_id.as_str().to_owned(),
            subscription_id: receiver.subscription_id,
            connected_at: receiver.connected_at_ms,
            positions: receiver.positions,
            batches: receiver.batches,
            pattern: receiver.pattern.map(|pattern| pattern.as_str().to_owned()),
        }
    }
}

/// Reads the item of a continuation.
///
/// # Errors
///
/// [`UnknownContinuation`].
pub fn continuation(item: serde_dynamo::Item) -> Result<Publication, UnknownContinuation> {
    let item: Continuation = serde_dynamo::from_item(item)?;
    let audience = match item.segment {
        Some(segment) if segment >= SEGMENTS => return Err(UnknownContinuation::Segment),
        Some(segment) => Audience::Everybody { segment },
        None if item.presence => Audience::Presence(Topic::of_event(&item.origin_topic)?),
        None => Audience::Topic(Topic::of_event(&item.origin_topic)?),
    };
    let json = |text| RawValue::from_string(text).map_err(|_| UnknownContinuation::Json);
    let sender = item.sender_id.map(|sender| UserId::parse(attribute::SENDER_ID, &sender)).transpose()?;
    let stamp = item.epoch.zip(item.seq).map(|(epoch, seq)| Stamp { epoch, seq });
    let kept = stamp.map(|stamp| Kept { stamp, sender: sender.clone() });
    let is_address = matches!(&audience, Audience::Topic(topic) if topic.is_address());
    let content = match sender {
        Some(sender) if is_address => Content::DirectMessage { sender, body: json(item.json)? },
        _ => {
            let jsons = [item.json].into_iter().chain(item.further).map(json).collect::<Result<_, _>>()?;
            if item.presence { Content::Frames(jsons) } else { Content::Data(jsons) }
        }
    };
    let again = item.again.into_iter().map(|receiver| {
        Ok(Subscriber {
            connection_id: ConnectionId::new(receiver.connection_id),
            subscription_id: receiver.subscription_id,
            connected_at_ms: receiver.connected_at,
            positions: receiver.positions,
            batches: receiver.batches,
            pattern: receiver.pattern.map(|pattern| Topic::parse(&pattern)).transpose()?,
        })
    });
    let again = again.collect::<Result<_, ClientError>>()?;
    let nowhere = if item.start { Position::Start } else { Position::End };
    let position = item.after.map_or(nowhere, |id| Position::After(ConnectionId::new(id)));
    let range = RangeItem { name: item.topic, is_open: item.until.is_none() && position != Position::End };
    let until = item.until.map(ConnectionId::new);
    Ok(Publication { audience, content, kept, id: item.origin_id, position, until, again, item: Some(range) })
}

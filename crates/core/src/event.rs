//! The events table: what any backend asks to have published, and what is left of a publish that ran out of time.
//!
//! | attribute | type | meaning |
//! |---|---|---|
//! | `topic` | S, partition key | a topic, `@<userId>`, or `INITIAL_CONNECTION` |
//! | `id` | S, sort key | the writer's own, unique within the topic |
//! | `data` | any | what subscribers receive; each DynamoDB type becomes the JSON that it stands for |
//! | `senderId`, `body` | S, any | instead of `data`, for a direct message to a user |
//! | `json` | S | instead of `data` or `body`: JSON text that is passed on byte for byte |
//! | `ttl` | N, epoch **seconds** | when DynamoDB may delete the item |
//! | `after`, `segment` | S, N | of a continuation: whom the publish had served |
//!
//! Only the insertion of an item publishes. The stream carries it to the function `publish`.

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;

use crate::Error;
use crate::connection::ConnectionId;
use crate::publication::{Audience, Content, Publication};
use crate::store::now_s;

/// [`Event`](self) attribute names, as every writer and reader spells them.
pub mod attribute {
    #![expect(missing_docs, reason = "the table above says what each one means")]
    pub const TOPIC: &str = "topic";
    pub const ID: &str = "id";
    pub const DATA: &str = "data";
    pub const SENDER_ID: &str = "senderId";
    pub const BODY: &str = "body";
    pub const JSON: &str = "json";
    pub const TTL: &str = "ttl";
    pub const AFTER: &str = "after";
    pub const SEGMENT: &str = "segment";
}

/// How long a continuation stays in the table: a day, as long as its stream record.
const CONTINUATION_TTL_S: i64 = 24 * 60 * 60;

/// Between the name of an event and how far it got, in the name of its continuation.
const CONTINUES: &str = " after ";

/// The events table, as a writer of continuations sees it.
#[derive(Debug, Clone)]
pub struct EventStore {
    dynamodb: Client,
    table: String,
}

impl EventStore {
    /// The table of that name, through `dynamodb`.
    #[must_use]
    pub fn new(dynamodb: Client, table: String) -> Self {
        Self { dynamodb, table }
    }

    /// Leaves the rest of a publication to the function `publish`: one `PutItem`. The item is named after the event or
    /// frame that began the publication, `id`, and after how far it got; so putting it again changes nothing.
    ///
    /// # Errors
    ///
    /// When DynamoDB fails.
    pub async fn put_continuation(&self, rest: &Publication, id: &str) -> Result<(), Error> {
        let origin = id.split_once(CONTINUES).map_or(id, |(origin, _)| origin);
        let after = rest.after.as_ref().map(ConnectionId::as_str).unwrap_or_default();
        let name = format!("{origin}{CONTINUES}{after}");
        let string = |text: &str| AttributeValue::S(text.to_owned());
        let mut put = self
            .dynamodb
            .put_item()
            .table_name(&self.table)
            .item(attribute::TOPIC, string(rest.topic()))
            .item(attribute::ID, string(&name))
            .item(attribute::TTL, AttributeValue::N((now_s() + CONTINUATION_TTL_S).to_string()));
        if !after.is_empty() {
            put = put.item(attribute::AFTER, string(after));
        }
        if let Audience::Everybody { segment } = rest.audience {
            put = put.item(attribute::SEGMENT, AttributeValue::N(segment.to_string()));
        }
        put = match &rest.content {
            Content::Data(data) => put.item(attribute::JSON, string(data.get())),
            Content::DirectMessage { sender, body } => {
                put.item(attribute::SENDER_ID, string(sender.as_str())).item(attribute::JSON, string(body.get()))
            }
        };
        put.send().await.map_err(|error| Error::store("PutItem", &self.table, &error))?;
        Ok(())
    }
}

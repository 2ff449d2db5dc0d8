//! One table's stream in the embedded engine, and its records in Lambda's form.
//!
//! This module reads through the engine's own implementation of the [DynamoDB Streams
//! API](https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_Operations_Amazon_DynamoDB_Streams.html),
//! where a stream has a single shard for ever. Records have the shape of "Process DynamoDB records with Lambda".
//!
//! The engine does not trim records, and it writes a record for an update that changes nothing. DynamoDB trims records
//! and does not write that one. So this module skips both kinds (the second only with `NEW_AND_OLD_IMAGES`, where the
//! images show it).

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::iam::ACCOUNT_ID;
use dynoxide::actions::describe_stream::DescribeStreamRequest;
use dynoxide::actions::describe_table::DescribeTableRequest;
use dynoxide::actions::get_records::{self, GetRecordsRequest};
use dynoxide::actions::get_shard_iterator::GetShardIteratorRequest;
use dynoxide::{Database, DynoxideError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::filter::Filter;

/// The most records of one read. GetRecords allows 1,000 and also ends a page at 1 MB; the engine does not. A hundred
/// records with two images of 400 KB each are 80 MB.
const PAGE_SIZE: usize = 100;

/// "Stream records have a lifetime of 24 hours", from "Change data capture for DynamoDB Streams".
pub(super) const RETENTION: Duration = Duration::from_secs(24 * 60 * 60);

/// The position of a record in its shard: 21 to 40 decimal digits, a text in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(super) struct SequenceNumber(u128);

impl SequenceNumber {
    /// Parses a number.
    pub(super) fn parse(text: &str) -> Option<Self> {
        text.parse().ok().map(Self)
    }

    #[cfg(test)]
    pub(super) fn of(number: u128) -> Self {
        Self(number)
    }
}

impl fmt::Display for SequenceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<SequenceNumber> for String {
    fn from(number: SequenceNumber) -> Self {
        number.to_string()
    }
}

impl TryFrom<String> for SequenceNumber {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).ok_or_else(|| format!("`{text}` is not a sequence number"))
    }
}

/// A stream record on its way to a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) sequence_number: SequenceNumber,
    /// `ApproximateCreationDateTime`, since the epoch; in whole seconds.
    pub(super) created: Duration,
    /// A hash that is the same for all records with one partition key.
    pub(super) partition_hash: u64,
    /// A hash that is the same for all records of one item.
    pub(super) key_hash: u64,
    /// The record as an element of `Records` in the event.
    pub(super) json: String,
}

/// The records of one read.
#[derive(Debug, Default)]
pub(super) struct Page {
    /// The records that pass the filter, in the order of their sequence numbers.
    pub(super) records: Vec<Record>,
    /// The number of further records that DynamoDB would have removed by now.
    pub(super) trimmed: usize,
    /// The last record that was read, even if it is not in `records`. There is none at the end of the shard.
    pub(super) last: Option<SequenceNumber>,
}

/// A table's stream.
pub(super) struct Source {
    database: Database,
    /// The stream's ARN in the engine.
    engine_arn: String,
    /// The stream's ARN in events, with the service's region.
    pub(super) stream_arn: String,
    pub(super) shard_id: String,
    /// The name of the table's partition key.
    partition_key: String,
    region: String,
}

impl Source {
    /// Finds the stream of a table.
    ///
    /// # Errors
    ///
    /// When the table does not exist or has no stream.
    pub(super) fn open(database: Database, table_name: &str, region: &str) -> Result<Self, DynoxideError> {
        let no_stream = || DynoxideError::ResourceNotFoundException(format!("the table {table_name} has no stream"));
        let table = database.describe_table(DescribeTableRequest { table_name: table_name.to_owned() })?.table;
        let partition_key = table.key_schema.first().map(|key| key.attribute_name.clone()).unwrap_or_default();
        let engine_arn = table.latest_stream_arn.ok_or_else(no_stream)?;
        let label = table.latest_stream_label.ok_or_else(no_stream)?;
        let request = DescribeStreamRequest { stream_arn: engine_arn.clone(), ..Default::default() };
        let shards = database.describe_stream(request)?.stream_description.shards;
        let shard_id = shards.into_iter().next().ok_or_else(no_stream)?.shard_id;
        let stream_arn = format!("arn:aws:dynamodb:{region}:{ACCOUNT_ID}:table/{table_name}/stream/{label}");
        Ok(Self { database, engine_arn, stream_arn, shard_id, partition_key, region: region.to_owned() })
    }

    /// Returns the first and the last record in the stream, if there is one.
    ///
    /// # Errors
    ///
    /// When the engine fails or the table is gone.
    pub(super) fn range(&self) -> Result<Option<RangeInclusive<SequenceNumber>>, DynoxideError> {
        let request = DescribeStreamRequest { stream_arn: self.engine_arn.clone(), ..Default::default() };
        let shards = self.database.describe_stream(request)?.stream_description.shards;
        let range = shards.into_iter().next().map(|shard| shard.sequence_number_range).unwrap_or_default();
        match (range.starting_sequence_number, range.ending_sequence_number) {
            (Some(first), Some(last)) => Ok(Some(sequence_number(&first)?..=sequence_number(&last)?)),
            _ => Ok(None),
        }
    }

    /// Reads the records after `after`, or from the first one on, that pass the filter. `now` is the time since the
    /// epoch.
    ///
    /// # Errors
    ///
    /// When the engine fails or the table is gone.
    pub(super) fn read(
        &self,
        after: Option<SequenceNumber>,
        filter: &Filter,
        now: Duration,
    ) -> Result<Page, DynoxideError> {
        let shard_iterator_type = if after.is_some() { "AFTER_SEQUENCE_NUMBER" } else { "TRIM_HORIZON" };
        let request = GetShardIteratorRequest {
            stream_arn: self.engine_arn.clone(),
            shard_id: self.shard_id.clone(),
            shard_iterator_type: shard_iterator_type.to_owned(),
            sequence_number: after.map(String::from),
        };
        let shard_iterator = self.database.get_shard_iterator(request)?.shard_iterator.unwrap_or_default();
        let request = GetRecordsRequest { shard_iterator, limit: Some(PAGE_SIZE) };
        let mut page = Page::default();
        for record in self.database.get_records(request)?.records {
            let unchanged = record.event_name == "MODIFY"
                && record.dynamodb.new_image.is_some()
                && record.dynamodb.new_image == record.dynamodb.old_image;
            let (record, event) = self.record(&record)?;
            page.last = Some(record.sequence_number);
            if now.saturating_sub(record.created) > RETENTION {
                page.trimmed += 1;
            } else if !unchanged && filter.passes(&event) {
                page.records.push(record);
            }
        }
        Ok(page)
    }

    /// Converts a record. Returns it with the value of its JSON.
    fn record(&self, record: &get_records::Record) -> Result<(Record, Value), DynoxideError> {
        let unreadable = |error: serde_json::Error| DynoxideError::InternalServerError(error.to_string());
        let mut event = serde_json::to_value(record).map_err(unreadable)?;
        // The engine has whole seconds as a float.
        let created = Duration::from_secs_f64(record.dynamodb.approximate_creation_date_time.max(0.0));
        event["dynamodb"]["ApproximateCreationDateTime"] = created.as_secs().into();
        event["awsRegion"] = self.region.as_str().into();
        event["eventSourceARN"] = self.stream_arn.as_str().into();
        let record = Record {
            sequence_number: sequence_number(&record.dynamodb.sequence_number)?,
            created,
            partition_hash: key_hash(
                &json!({ (&*self.partition_key): event["dynamodb"]["Keys"][&self.partition_key] }),
            ),
            key_hash: key_hash(&event["dynamodb"]["Keys"]),
            json: event.to_string(),
        };
        Ok((record, event))
    }
}

fn sequence_number(text: &str) -> Result<SequenceNumber, DynoxideError> {
    SequenceNumber::parse(text)
        .ok_or_else(|| DynoxideError::InternalServerError(format!("`{text}` is not a sequence number")))
}

fn key_hash(keys: &Value) -> u64 {
    let keys: BTreeMap<_, _> =
        keys.as_object().into_iter().flatten().map(|(name, key)| (name, key.to_string())).collect();
    let mut hasher = DefaultHasher::new();
    keys.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn database(view_type: &str) -> Database {
        let database = Database::memory().unwrap();
        let table = json!({
            "TableName": "birds",
            "AttributeDefinitions": [{"AttributeName": "id", "AttributeType": "S"}],
            "KeySchema": [{"AttributeName": "id", "KeyType": "HASH"}],
            "BillingMode": "PAY_PER_REQUEST",
            "StreamSpecification": {"StreamEnabled": true, "StreamViewType": view_type},
        });
        database.create_table(serde_json::from_value(table).unwrap()).unwrap();
        database
    }

    fn put(database: &Database, item: &Value) {
        let request = json!({"TableName": "birds", "Item": item});
        database.put_item(serde_json::from_value(request).unwrap()).unwrap();
    }

    fn delete(database: &Database, key: &Value) {
        let request = json!({"TableName": "birds", "Key": key});
        database.delete_item(serde_json::from_value(request).unwrap()).unwrap();
    }

    fn now() -> Duration {
        SystemTime::UNIX_EPOCH.elapsed().unwrap()
    }

    fn events(page: &Page) -> Vec<Value> {
        page.records.iter().map(|record| serde_json::from_str(&record.json).unwrap()).collect()
    }

    #[test]
    fn records_have_the_shape_that_lambda_gives_them() {
        let database = database("NEW_AND_OLD_IMAGES");
        let source = Source::open(database.clone(), "birds", "eu-central-1").unwrap();
        put(&database, &json!({"id": {"S": "polly"}, "weight": {"N": "1"}}));
        put(&database, &json!({"id": {"S": "polly"}, "weight": {"N": "2"}, "wings": {"B": "AAE="}}));
        delete(&database, &json!({"id": {"S": "polly"}}));

        let before = now();
        let page = source.read(None, &Filter::default(), before).unwrap();
        let events = events(&page);
        let names: Vec<_> = events.iter().map(|event| event["eventName"].as_str().unwrap()).collect();
        assert_eq!(names, ["INSERT", "MODIFY", "REMOVE"]);
        let images: Vec<_> = events
            .iter()
            .map(|event| (event["dynamodb"].get("OldImage").is_some(), event["dynamodb"].get("NewImage").is_some()))
            .collect();
        assert_eq!(images, [(false, true), (true, true), (true, false)]);

        let mut modify = events[1].clone();
        let dynamodb = modify["dynamodb"].as_object_mut().unwrap();
        let created = dynamodb.remove("ApproximateCreationDateTime").unwrap();
        assert!(created.as_u64().unwrap().abs_diff(before.as_secs()) <= 2, "{created}");
        assert_eq!(dynamodb.remove("SequenceNumber").unwrap().as_str().unwrap().len(), 21);
        assert!(dynamodb.remove("SizeBytes").unwrap().as_u64().unwrap() > 0);
        assert_eq!(modify["eventID"].take().as_str().unwrap().len(), 32);
        let arn = modify["eventSourceARN"].take();
        let prefix = "arn:aws:dynamodb:eu-central-1:123456789012:table/birds/stream/";
        assert!(arn.as_str().unwrap().starts_with(prefix), "{arn}");
        let expected = json!({
            "eventID": null,
            "eventName": "MODIFY",
            "eventVersion": "1.1",
            "eventSource": "aws:dynamodb",
            "awsRegion": "eu-central-1",
            "eventSourceARN": null,
            "dynamodb": {
                "Keys": {"id": {"S": "polly"}},
                "OldImage": {"id": {"S": "polly"}, "weight": {"N": "1"}},
                "NewImage": {"id": {"S": "polly"}, "weight": {"N": "2"}, "wings": {"B": "AAE="}},
                "StreamViewType": "NEW_AND_OLD_IMAGES",
            },
        });
        assert_eq!(modify, expected);
    }

    #[test]
    fn a_deletion_by_time_to_live_has_the_services_identity() {
        let database = database("KEYS_ONLY");
        let ttl = json!({"TableName": "birds", "TimeToLiveSpecification": {"AttributeName": "ttl", "Enabled": true}});
        database.update_time_to_live(serde_json::from_value(ttl).unwrap()).unwrap();
        put(&database, &json!({"id": {"S": "polly"}, "ttl": {"N": "1700000000"}}));
        database.sweep_ttl().unwrap();
        let source = Source::open(database, "birds", "eu-central-1").unwrap();
        let events = events(&source.read(None, &Filter::default(), now()).unwrap());
        assert_eq!(events[0].get("userIdentity"), None);
        let identity = json!({"type": "Service", "principalId": "dynamodb.amazonaws.com"});
        assert_eq!((&events[1]["eventName"], &events[1]["userIdentity"]), (&json!("REMOVE"), &identity));
    }

    #[test]
    fn a_write_that_changes_nothing_and_a_record_over_24_h_old_are_skipped() {
        let database = database("NEW_AND_OLD_IMAGES");
        let source = Source::open(database.clone(), "birds", "eu-central-1").unwrap();
        put(&database, &json!({"id": {"S": "polly"}}));
        put(&database, &json!({"id": {"S": "polly"}}));
        let page = source.read(None, &Filter::default(), now()).unwrap();
        assert_eq!((page.records.len(), page.trimmed), (1, 0));
        assert_eq!(page.last, source.range().unwrap().map(|range| *range.end()));
        assert!(page.last > Some(page.records[0].sequence_number));

        let page = source.read(None, &Filter::default(), now() + RETENTION + Duration::from_secs(2)).unwrap();
        assert_eq!((page.records.len(), page.trimmed), (0, 2));
        assert!(page.last.is_some());
    }

    #[test]
    fn reading_continues_after_a_record() {
        let database = database("NEW_IMAGE");
        let source = Source::open(database.clone(), "birds", "eu-central-1").unwrap();
        assert_eq!(source.range().unwrap(), None);
        for number in 0..PAGE_SIZE + 1 {
            put(&database, &json!({"id": {"S": number.to_string()}}));
        }
        let first = source.read(None, &Filter::default(), now()).unwrap();
        let second = source.read(first.last, &Filter::default(), now()).unwrap();
        let third = source.read(second.last, &Filter::default(), now()).unwrap();
        assert_eq!([&first, &second, &third].map(|page| page.records.len()), [PAGE_SIZE, 1, 0]);
        assert_eq!(third.last, None);
    }

    #[test]
    fn the_hash_of_a_key_does_not_depend_on_the_order_of_its_attributes() {
        let hash = |text: &str| key_hash(&serde_json::from_str(text).unwrap());
        assert_eq!(hash(r#"{"a":{"S":"1"},"b":{"N":"2"}}"#), hash(r#"{"b":{"N":"2"},"a":{"S":"1"}}"#));
        assert_ne!(hash(r#"{"a":{"S":"1"}}"#), hash(r#"{"a":{"S":"2"}}"#));
    }

    #[test]
    fn a_table_without_a_stream_is_refused() {
        let error = Source::open(Database::memory().unwrap(), "birds", "eu-central-1").err().unwrap();
        assert!(matches!(error, DynoxideError::ResourceNotFoundException(_)), "{error}");
    }
}

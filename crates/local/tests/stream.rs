//! Event source mappings as a service sees them: the real `switchboard-local`, its DynamoDB over HTTP, and the real
//! `fixture` binary behind the stream. The fixture prints every event, so the tests read the deliveries from the log.

#![expect(clippy::unwrap_used, reason = "a failed unwrap in a helper fails its test, too")]

mod stack;

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use stack::{HELLO, PATIENCE, Stack};

/// The keys of a mapping that retries once and reports to a queue.
const RETRY_ONCE: &str = "maximumRetryAttempts: 1, destinations: {onFailure: 'arn:aws:sqs:eu-central-1:0:lost'}";

#[tokio::test]
async fn put_update_and_delete_arrive_as_insert_modify_and_remove() {
    let stack = Stack::start("").await;
    stack.put(json!({"id": {"S": "polly"}, "weight": {"N": "1"}})).await;
    let update = json!({
        "TableName": "birds",
        "Key": {"id": {"S": "polly"}},
        "UpdateExpression": "SET weight = :weight",
        "ExpressionAttributeValues": {":weight": {"N": "2"}},
    });
    stack.call("UpdateItem", &update).await;
    stack.call("DeleteItem", &json!({"TableName": "birds", "Key": {"id": {"S": "polly"}}})).await;
    let records = stack.delivered(3).await.concat();

    let names: Vec<_> = records.iter().map(|record| record["eventName"].as_str().unwrap()).collect();
    assert_eq!(names, ["INSERT", "MODIFY", "REMOVE"]);
    let (light, heavy) =
        (json!({"id": {"S": "polly"}, "weight": {"N": "1"}}), json!({"id": {"S": "polly"}, "weight": {"N": "2"}}));
    let images: Vec<_> =
        records.iter().map(|record| (record["dynamodb"].get("OldImage"), record["dynamodb"].get("NewImage"))).collect();
    assert_eq!(images, [(None, Some(&light)), (Some(&light), Some(&heavy)), (Some(&heavy), None)]);
    assert!(records.iter().map(sequence_number).is_sorted());
    for record in &records {
        assert_eq!((&record["awsRegion"], &record["eventSource"]), (&json!("eu-central-1"), &json!("aws:dynamodb")));
        assert_eq!(record["dynamodb"]["Keys"], json!({"id": {"S": "polly"}}));
        assert!(record["dynamodb"]["ApproximateCreationDateTime"].is_u64(), "{record}");
    }
}

#[tokio::test]
async fn quick_writes_come_in_order_and_in_batches_of_the_batch_size() {
    let stack = Stack::start("batchSize: 20, batchWindow: 1").await;
    for number in 0..50 {
        stack.put(json!({"id": {"S": number.to_string()}})).await;
    }
    let batches = stack.delivered(50).await;
    assert!(batches.iter().all(|batch| batch.len() <= 20), "{batches:#?}");
    assert_eq!(ids(&batches.concat()), (0..50).map(|number: u32| number.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_failing_record_is_retried_and_given_up_and_later_ones_go_on() {
    let stack = Stack::start(&format!("batchSize: 1, {RETRY_ONCE}")).await;
    stack.put(json!({"id": {"S": "poison"}, "do": {"S": "error"}})).await;
    stack.put(json!({"id": {"S": "polly"}})).await;
    let records = stack.delivered(3).await.concat();
    assert_eq!(ids(&records), ["poison", "poison", "polly"]);

    let line = stack.logged(&["stream | watch: gave up 1 record(s)", "arn:aws:sqs:eu-central-1:0:lost"]).await;
    let record: Value = serde_json::from_str(&line[line.find('{').unwrap()..]).unwrap();
    assert_eq!(record["requestContext"]["condition"], "RetryAttemptsExhausted");
    assert_eq!(record["requestContext"]["approximateInvokeCount"], 2);
    assert_eq!(record["responseContext"]["functionError"], "Unhandled");
    let batch = &record["DDBStreamBatchInfo"];
    assert_eq!(batch["startSequenceNumber"], sequence_number(&records[0]));
    assert_eq!(batch["endSequenceNumber"], sequence_number(&records[0]));
    assert_eq!((&batch["batchSize"], &batch["streamArn"]), (&json!(1), &records[0]["eventSourceARN"]));
}

#[tokio::test]
async fn without_a_destination_the_log_says_that_records_were_given_up() {
    let stack = Stack::start("maximumRetryAttempts: 0").await;
    stack.put(json!({"id": {"S": "poison"}, "do": {"S": "error"}})).await;
    stack.logged(&["stream | watch: gave up 1 record(s), with no on-failure destination: {"]).await;
}

#[tokio::test]
async fn bisection_delivers_the_records_around_a_poison_record() {
    let folder = tempfile::tempdir().unwrap();
    let options = format!("startingPosition: TRIM_HORIZON, bisectBatchOnFunctionError: true, {RETRY_ONCE}");
    // These are written before there is a mapping, so that they come as one batch.
    let stack = Stack::with(folder.path(), "enabled: false").await;
    for id in ["a", "b", "poison", "c"] {
        stack.put(json!({"id": {"S": id}, "do": {"S": if id == "poison" { "error" } else { "" }}})).await;
    }
    stack.interrupt().await;
    let stack = Stack::with(folder.path(), &options).await;
    let batches = stack.delivered(11).await;
    let expected: [&[&str]; 6] =
        [&["a", "b", "poison", "c"], &["a", "b"], &["poison", "c"], &["poison"], &["poison"], &["c"]];
    assert_eq!(batches.iter().map(|batch| ids(batch)).collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn the_next_delivery_begins_at_a_reported_failure() {
    let folder = tempfile::tempdir().unwrap();
    let options = format!("functionResponseType: ReportBatchItemFailures, {RETRY_ONCE}");
    let stack = Stack::with(folder.path(), "enabled: false").await;
    for (id, what) in [("a", ""), ("b", ""), ("c", "report"), ("d", ""), ("e", "report")] {
        let once = folder.path().join(id);
        let item = json!({"id": {"S": id}, "do": {"S": what}, "once": {"S": once.to_str().unwrap()}});
        stack.put(item).await;
    }
    stack.interrupt().await;
    let stack = Stack::with(folder.path(), &options).await;
    let batches = stack.delivered(8).await;
    assert_eq!(ids(&batches[0]), ["a", "b", "c", "d", "e"]);
    assert_eq!(ids(&batches[1]), ["c", "d", "e"]);
    stack.put(json!({"id": {"S": "f"}})).await;
    assert_eq!(ids(&stack.delivered(9).await[2]), ["f"]);
}

#[tokio::test]
async fn a_crash_in_the_middle_of_a_batch_delivers_it_again() {
    let folder = tempfile::tempdir().unwrap();
    let stack = Stack::start("batchSize: 10").await;
    let once = folder.path().join("once");
    stack.put(json!({"id": {"S": "a"}, "do": {"S": "exit"}, "once": {"S": once.to_str().unwrap()}})).await;
    assert_eq!(ids(&stack.delivered(2).await.concat()), ["a", "a"]);
    stack.logged(&["watch | Runtime.ExitError"]).await;
    stack.put(json!({"id": {"S": "b"}})).await;
    assert_eq!(ids(&stack.delivered(3).await.concat()), ["a", "a", "b"]);
}

#[tokio::test]
async fn latest_begins_after_the_last_record_and_trim_horizon_at_the_first() {
    for (starting_position, expected) in [("LATEST", vec!["new"]), ("TRIM_HORIZON", vec!["old", "new"])] {
        let folder = tempfile::tempdir().unwrap();
        let stack = Stack::with(folder.path(), "enabled: false").await;
        stack.put(json!({"id": {"S": "old"}})).await;
        stack.interrupt().await;
        let stack = Stack::with(folder.path(), &format!("startingPosition: {starting_position}")).await;
        stack.put(json!({"id": {"S": "new"}})).await;
        assert_eq!(ids(&stack.delivered(expected.len()).await.concat()), expected);
    }
}

#[tokio::test]
async fn a_stack_on_the_same_data_directory_continues_where_the_last_one_was() {
    let folder = tempfile::tempdir().unwrap();
    let stack = Stack::with(folder.path(), "batchSize: 1, startingPosition: LATEST").await;
    stack.put(json!({"id": {"S": "a"}})).await;
    stack.put(json!({"id": {"S": "b"}, "do": {"S": "sleep"}, "ms": {"N": "60000"}})).await;
    stack.put(json!({"id": {"S": "c"}})).await;
    assert_eq!(ids(&stack.delivered(2).await.concat()), ["a", "b"]);
    // The stack stops while the function handles b, which takes longer than a shutdown waits.
    stack.interrupt().await;

    let stack = Stack::with(folder.path(), "batchSize: 1, startingPosition: LATEST, maximumRetryAttempts: 0").await;
    // This time the function's time-out ends it, and the record is given up.
    assert_eq!(ids(&stack.delivered(2).await.concat()), ["b", "c"]);
}

#[tokio::test]
async fn a_shutdown_waits_for_the_batch_in_flight() {
    let folder = tempfile::tempdir().unwrap();
    let stack = Stack::with(folder.path(), "batchSize: 1").await;
    stack.put(json!({"id": {"S": "a"}, "do": {"S": "sleep"}, "ms": {"N": "500"}})).await;
    stack.delivered(1).await;
    stack.interrupt().await;
    let stack = Stack::with(folder.path(), "batchSize: 1").await;
    stack.put(json!({"id": {"S": "b"}})).await;
    assert_eq!(ids(&stack.delivered(1).await.concat()), ["b"]);
}

#[tokio::test]
async fn a_position_that_is_not_in_the_stream_falls_back_to_the_first_record() {
    let folder = tempfile::tempdir().unwrap();
    let stack = Stack::with(folder.path(), "startingPosition: LATEST").await;
    stack.put(json!({"id": {"S": "a"}})).await;
    stack.delivered(1).await;
    stack.interrupt().await;
    let path = folder.path().join("data/positions.json");
    let mut positions: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    positions["watch/birds"]["sequenceNumber"] = json!("100000000000000000001");
    std::fs::write(&path, positions.to_string()).unwrap();
    let stack = Stack::with(folder.path(), "startingPosition: LATEST").await;
    assert_eq!(ids(&stack.delivered(1).await.concat()), ["a"]);
    stack.logged(&["stream | watch/birds: 100000000000000000001 is no longer in the stream"]).await;
}

#[tokio::test]
async fn a_mapping_waits_for_a_table_that_was_deleted() {
    let stack = Stack::start("").await;
    stack.call("DeleteTable", &json!({"TableName": "birds"})).await;
    stack.logged(&["stream | watch: the stream cannot be read, the next attempt is in 500ms"]).await;
    let table = json!({
        "TableName": "birds",
        "BillingMode": "PAY_PER_REQUEST",
        "AttributeDefinitions": [{"AttributeName": "id", "AttributeType": "S"}],
        "KeySchema": [{"AttributeName": "id", "KeyType": "HASH"}],
        "StreamSpecification": {"StreamEnabled": true, "StreamViewType": "NEW_AND_OLD_IMAGES"},
    });
    stack.call("CreateTable", &table).await;
    stack.put(json!({"id": {"S": "polly"}})).await;
    assert_eq!(ids(&stack.delivered(1).await.concat()), ["polly"]);
}

#[tokio::test]
async fn several_lanes_have_a_batch_in_flight_each() {
    let folder = tempfile::tempdir().unwrap();
    let stack = Stack::run(folder.path(), &[], "batchSize: 1, parallelizationFactor: 4").await;
    for id in 0..8 {
        stack.put(json!({"id": {"S": id.to_string()}, "do": {"S": "sleep"}, "ms": {"N": "60000"}})).await;
    }
    // A single lane would deliver its first record again, after the function's time-out.
    let records = stack.delivered(2).await.concat();
    assert_ne!(ids(&records[..1]), ids(&records[1..2]));
}

#[tokio::test]
async fn a_thousand_puts_by_one_writer_arrive_once_and_in_order_per_key() {
    let stack = Stack::start("batchSize: 50, parallelizationFactor: 4").await;
    for number in 0..1000 {
        stack.put(json!({"id": {"S": (number % 10).to_string()}, "number": {"N": number.to_string()}})).await;
    }
    let records = stack.delivered(1000).await.concat();
    assert_eq!(records.len(), 1000);
    for id in 0..10 {
        let key = json!({"id": {"S": id.to_string()}});
        let of_id = records.iter().filter(|record| record["dynamodb"]["Keys"] == key);
        let number = |record: &Value| record["dynamodb"]["NewImage"]["number"]["N"].as_str()?.parse::<u32>().ok();
        let numbers: Vec<_> = of_id.map(|record| number(record).unwrap()).collect();
        assert_eq!(numbers, (id..1000).step_by(10).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_duplicated_batch_comes_twice_and_the_next_one_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--max-environments", "1", "--fault", "duplicate-stream-record=1"];
    let stack = Stack::run(folder.path(), &arguments, "batchSize: 1").await;
    for id in ["a", "b"] {
        stack.put(json!({"id": {"S": id}})).await;
    }
    let batches = stack.delivered(4).await;
    assert_eq!(ids(&batches.concat()), ["a", "a", "b", "b"]);
    assert_eq!(sequence_number(&batches[0][0]), sequence_number(&batches[1][0]));
}

#[tokio::test]
async fn a_delayed_batch_comes_later_and_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let delay = Duration::from_millis(300);
    let stack = Stack::run(folder.path(), &["--fault", "stream-delay=300ms"], "batchSize: 10").await;
    let put = std::time::Instant::now();
    stack.put(json!({"id": {"S": "a"}})).await;
    assert_eq!(ids(&stack.delivered(1).await.concat()), ["a"]);
    assert!(put.elapsed() >= delay, "{:?}", put.elapsed());
}

#[tokio::test]
async fn each_function_on_a_stream_has_its_own_filter_and_position() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("data");
    let arguments = ["--max-environments", "1", "--data-dir", data_dir.to_str().unwrap()];
    let inserts = "filterPatterns: [{eventName: [INSERT], dynamodb: {Keys: {id: {S: [{anything-but: [hawk]}]}}}}]";
    let others = "batchSize: 1, filterPatterns: [{eventName: [{anything-but: [INSERT]}]}, \
                  {dynamodb: {NewImage: {id: {S: [{prefix: ha}]}, owner: {S: [{exists: false}]}}}}]";
    let functions = format!("{HELLO}{}{}", function("watch", inserts), function("others", others));
    let stack = Stack::serve(folder.path(), &arguments, &functions).await;
    for id in ["polly", "hawk", "hare", "molly"] {
        stack.put(json!({"id": {"S": id}})).await;
    }
    stack.put(json!({"id": {"S": "hawk"}, "owner": {"S": "ann"}})).await;
    stack.call("DeleteItem", &json!({"TableName": "birds", "Key": {"id": {"S": "polly"}}})).await;
    // Both get the last record, so both have gone past all that they skip.
    stack.put(json!({"id": {"S": "hazel"}})).await;
    assert_eq!(ids(&stack.delivered_to("watch", 4).await.concat()), ["polly", "hare", "molly", "hazel"]);
    let records = stack.delivered_to("others", 5).await.concat();
    assert_eq!(ids(&records), ["hawk", "hare", "hawk", "polly", "hazel"]);
    stack.interrupt().await;

    // Without the filters neither function gets earlier records: the skipped ones are done, too.
    let functions = format!("{HELLO}{}{}", function("watch", ""), function("others", ""));
    let stack = Stack::serve(folder.path(), &arguments, &functions).await;
    stack.put(json!({"id": {"S": "dolly"}})).await;
    for name in ["watch", "others"] {
        assert_eq!(ids(&stack.delivered_to(name, 1).await.concat()), ["dolly"], "{name}");
    }
}

fn sequence_number(record: &Value) -> &str {
    record["dynamodb"]["SequenceNumber"].as_str().unwrap()
}

fn ids(records: &[Value]) -> Vec<String> {
    records.iter().map(|record| record["dynamodb"]["Keys"]["id"]["S"].as_str().unwrap().to_owned()).collect()
}

/// Returns a function of a service with a mapping of the table's stream. `mapping` has the further keys of the mapping.
fn function(name: &str, mapping: &str) -> String {
    format!(
        "  {name}:
    handler: fixture
    timeout: 4
    events:
      - stream: {{type: dynamodb, arn: !GetAtt Birds.StreamArn, {mapping}}}
"
    )
}

impl Stack {
    /// Starts a stack with its tables in memory and one process at a time. The lines of several processes would not be
    /// in the order of the invocations. `mapping` has the further keys of the mapping.
    async fn start(mapping: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::run(folder.path(), &["--max-environments", "1"], mapping).await
    }

    /// Does the same with the tables in `folder`.
    async fn with(folder: &Path, mapping: &str) -> Self {
        let data_dir = folder.join("data");
        let arguments = ["--max-environments", "1", "--data-dir", data_dir.to_str().unwrap()];
        Self::run(folder, &arguments, mapping).await
    }

    async fn run(folder: &Path, arguments: &[&str], mapping: &str) -> Self {
        let functions = format!("{HELLO}{}", function("watch", mapping));
        Self::serve(folder, arguments, &functions).await
    }

    /// Waits until the function has got this many records. Returns the records of each event.
    async fn delivered(&self, count: usize) -> Vec<Vec<Value>> {
        self.delivered_to("watch", count).await
    }

    async fn delivered_to(&self, function: &str, count: usize) -> Vec<Vec<Value>> {
        let delivered = |lines: &Vec<String>| batches(lines, function).concat().len() >= count;
        let mut lines = self.lines.clone();
        match tokio::time::timeout(PATIENCE, lines.wait_for(delivered)).await {
            Ok(Ok(lines)) => batches(&lines, function),
            _ => panic!("no {count} records in {:#?}", self.lines.borrow().clone()),
        }
    }
}

/// Returns the records of each event that the fixture printed as this function.
fn batches(lines: &[String], function: &str) -> Vec<Vec<Value>> {
    let prefix = format!("{function} | ");
    let of_function = lines.iter().filter_map(|line| line.strip_prefix(&prefix));
    let events = of_function.filter(|line| line.starts_with(r#"{"event":"#));
    events
        .map(|event| match serde_json::from_str::<Value>(event).unwrap()["event"]["Records"].take() {
            Value::Array(records) => records,
            other => panic!("not a stream event: {other}"),
        })
        .collect()
}

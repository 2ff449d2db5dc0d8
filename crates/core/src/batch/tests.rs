use std::sync::Mutex;
use std::time::SystemTime;

use lambda_runtime::Context;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::*;
use crate::scripted::{Aws, answer};

/// A batch of records: topic and kind. The sequence number is the place in the batch.
fn batch(records: &[(&str, &str)], time: Duration) -> LambdaEvent<Event> {
    let record = |(number, (topic, kind)): (usize, &(&str, &str))| {
        json!({"awsRegion": "us-east-1", "eventID": "e", "eventName": kind, "dynamodb": {
            "ApproximateCreationDateTime": 0, "SizeBytes": 1, "StreamViewType": "NEW_IMAGE",
            "Keys": {"topic": {"S": topic}, "id": {"S": number.to_string()}},
            "NewImage": {}, "SequenceNumber": number.to_string(),
        }})
    };
    let records: Vec<Value> = records.iter().enumerate().map(record).collect();
    let mut context = Context::default();
    let deadline = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap() + time;
    context.deadline = deadline.as_millis().try_into().unwrap();
    LambdaEvent::new(serde_json::from_value(json!({"Records": records})).unwrap(), context)
}

/// Serves a batch in which the records `failing` fail: what was served, in order, and what was reported.
async fn outcome(records: &[(&str, &str)], failing: &[&str]) -> (Vec<String>, Option<String>) {
    let (_aws, backend) = Aws::backend(|_| answer(200, json!({})));
    let served = Mutex::new(Vec::new());
    let response = serve(&backend, batch(records, Duration::from_secs(60)), async |record, _| {
        let id = key(&record).1.to_owned();
        served.lock().unwrap().push(id.clone());
        if failing.contains(&id.as_str()) { Err("Store.Failed") } else { Ok(()) }
    });
    let mut failures = response.await.batch_item_failures;
    assert!(failures.len() <= 1);
    (served.into_inner().unwrap(), failures.pop().and_then(|failure| failure.item_identifier))
}

const INSERTS: [(&str, &str); 4] = [("a", "INSERT"), ("b", "INSERT"), ("a", "INSERT"), ("b", "INSERT")];

#[tokio::test]
async fn each_topic_is_served_in_order_and_only_inserts_are() {
    let (served, reported) = outcome(&INSERTS, &[]).await;
    let of = |topic: [&str; 2]| served.iter().filter(|id| topic.contains(&id.as_str())).cloned().collect::<Vec<_>>();
    assert_eq!(
        (of(["0", "2"]), of(["1", "3"]), reported),
        (vec!["0".into(), "2".into()], vec!["1".into(), "3".into()], None)
    );
    let (served, _) = outcome(&[("a", "MODIFY"), ("a", "REMOVE"), ("a", "INSERT")], &[]).await;
    assert_eq!(served, ["2"]);
}

#[tokio::test]
async fn the_first_record_that_failed_is_reported_and_its_topic_waits() {
    let (served, reported) = outcome(&INSERTS, &["2", "1"]).await;
    assert_eq!(reported.as_deref(), Some("1"));
    assert!(!served.contains(&"3".to_owned()), "{served:?}");
    assert!(served.contains(&"2".to_owned()), "{served:?}");
}

/// Topic a waits for topic b, which stands behind it in the batch.
#[tokio::test]
async fn topics_are_served_at_the_same_time() {
    let (_aws, backend) = Aws::backend(|_| answer(200, json!({})));
    let (done, seen) = watch::channel(false);
    let response = serve(&backend, batch(&INSERTS[..2], Duration::from_secs(60)), async |record, _| {
        if key(&record).0 == "b" {
            done.send_replace(true);
        } else {
            seen.clone().wait_for(|done| *done).await.unwrap();
        }
        Ok(())
    });
    assert!(response.await.batch_item_failures.is_empty());
}

/// Each invocation serves at least its first record, so that a batch comes to an end.
#[tokio::test]
async fn a_record_for_which_there_is_no_time_left_comes_again() {
    let (_aws, backend) = Aws::backend(|_| answer(200, json!({})));
    let response = serve(&backend, batch(&INSERTS, Duration::ZERO), async |_, _| Ok(())).await;
    assert_eq!(response.batch_item_failures[0].item_identifier.as_deref(), Some("1"));
}

#[tokio::test]
async fn a_topic_whose_records_belong_together_is_served_once_and_fails_as_a_whole() {
    let (_aws, backend) = Aws::backend(|_| answer(200, json!({})));
    let records =
        [("b", "MODIFY"), ("a", "INSERT"), ("b", "INSERT"), ("a", "INSERT"), ("b", "INSERT"), ("b", "REMOVE")];
    let served = Mutex::new(Vec::new());
    let event = batch(&records, Duration::from_secs(60));
    let serve = async |records: Vec<EventRecord>, _| {
        served
            .lock()
            .unwrap()
            .push(records.iter().map(|record| key(record).1.to_owned()).collect::<Vec<_>>().join(" "));
        if records.len() > 1 { Err("Store.Failed") } else { Ok(()) }
    };
    let response = serve_together(&backend, event, |topic| topic == "b", serve).await;
    let mut served = served.into_inner().unwrap();
    served.sort();
    assert_eq!(served, ["1", "2 4", "3"]);
    assert_eq!(response.batch_item_failures[0].item_identifier.as_deref(), Some("2"));
}

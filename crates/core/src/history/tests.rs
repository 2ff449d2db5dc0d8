//! The steps of an append, and what may come between them, on a table that a test keeps in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::append::{MAX_NUMBERS, epoch};
use super::item::{BINDING_ENDS_EARLIER_S, HEAD_KEPT_S};
use super::*;
use crate::Failure;
use crate::backend::Backend;
use crate::clock::now_s;
use crate::connection::ConnectionId;
use crate::deadline::Deadline;
use crate::scripted::{Answer, Aws, Call, answer, failure};

const TIME: Duration = Duration::from_secs(28);
const DAY_S: i64 = 24 * 3600;

/// The table of messages, as far as this module's calls need one: keys and items in DynamoDB's JSON.
#[derive(Clone, Default)]
pub(super) struct Table(Arc<Mutex<BTreeMap<(String, String), Value>>>);

impl Table {
    fn backend(&self) -> (Aws, Backend) {
        self.faulty(|_| None)
    }

    /// A backend on this table. `fault` is asked first, and its answer hides what the call did.
    fn faulty(&self, fault: impl Fn(&Call) -> Option<Answer> + Send + Sync + 'static) -> (Aws, Backend) {
        let table = self.clone();
        Aws::backend(move |call| {
            let fault = fault(call);
            if matches!(fault, Some(Answer::After(_, 400, _))) {
                return fault.unwrap();
            }
            let done = table.serve(call);
            fault.unwrap_or(done)
        })
    }

    fn serve(&self, call: &Call) -> Answer {
        let mut items = self.0.lock().unwrap();
        if call.operation == "Query" {
            return page(&items, call);
        }
        if call.operation == "BatchGetItem" {
            let tables = call.body["RequestItems"].as_object().unwrap();
            let (name, wanted) = tables.iter().next().unwrap();
            let keys = wanted["Keys"].as_array().unwrap();
            // DynamoDB refuses a key that is there twice.
            assert!((1..=100).contains(&keys.len()) && (1..keys.len()).all(|end| !keys[..end].contains(&keys[end])));
            let keys = keys.iter();
            let found: Vec<_> = keys.filter_map(|key| items.get(&(text_of(&key["p"]), text_of(&key["s"])))).collect();
            return answer(200, json!({"Responses": {name: found}}));
        }
        let from = if call.operation == "PutItem" { &call.body["Item"] } else { &call.body["Key"] };
        let name = |name: &str| from[name]["S"].as_str().unwrap_or_default().to_owned();
        let key = (name("p"), name("s"));
        let old = items.get(&key).cloned();
        let values = &call.body["ExpressionAttributeValues"];
        match call.operation.as_str() {
            "GetItem" => answer(200, old.map_or(json!({}), |item| json!({"Item": item}))),
            "UpdateItem" => {
                let mut head = old.clone().unwrap_or_else(|| call.body["Key"].clone());
                if head["epoch"].is_null() {
                    head["epoch"] = values[":fresh"].clone();
                }
                let takes = call.body["UpdateExpression"].as_str().unwrap().contains("ADD #last");
                // A reader makes a head, and changes none.
                if !takes && old.is_some() {
                    return answer(200, json!({"Attributes": head}));
                }
                let count = number_in(&values[":count"]).unwrap();
                head["at"] = values[":at"].clone();
                head["ttl"] = values[":ttl"].clone();
                head["last"] = json!({"N": (number_in(&head["last"]).unwrap_or(0) + count).to_string()});
                items.insert(key, head.clone());
                let returned = if takes { old } else { Some(head) };
                answer(200, returned.map_or(json!({}), |item| json!({"Attributes": item})))
            }
            "TransactWriteItems" => {
                let puts = call.body["TransactItems"].as_array().unwrap().iter().map(|item| &item["Put"]["Item"]);
                let puts: Vec<_> = puts.map(|item| ((text_of(&item["p"]), text_of(&item["s"])), item)).collect();
                let code = |key| if items.contains_key(key) { "ConditionalCheckFailed" } else { "None" };
                let reasons: Vec<_> = puts.iter().map(|(key, _)| json!({"Code": code(key)})).collect();
                if reasons.iter().any(|reason| reason["Code"] != "None") {
                    let name = "com.amazonaws.dynamodb.v20120810#TransactionCanceledException";
                    return answer(400, json!({"__type": name, "CancellationReasons": reasons}));
                }
                items.extend(puts.into_iter().map(|(key, item)| (key, item.clone())));
                answer(200, json!({}))
            }
            "PutItem" => {
                let is_free = match (&old, call.body["ConditionExpression"].as_str().unwrap()) {
                    (None, _) => true,
                    (Some(_), "attribute_not_exists(p)") => false,
                    (Some(old), "attribute_not_exists(p) OR #ttl <= :now") => {
                        number_in(&old["ttl"]) <= number_in(&values[":now"])
                    }
                    (Some(old), "attribute_not_exists(p) OR (epoch = :epoch AND seq = :seq)") => {
                        old["epoch"] == values[":epoch"] && old["seq"] == values[":seq"]
                    }
                    (_, other) => panic!("an unknown condition: {other}"),
                };
                if !is_free {
                    let name = "com.amazonaws.dynamodb.v20120810#ConditionalCheckFailedException";
                    return answer(400, json!({"__type": name, "Item": old}));
                }
                items.insert(key, call.body["Item"].clone());
                answer(200, json!({}))
            }
            other => panic!("an unknown operation: {other}"),
        }
    }

    /// The item that sorts behind the others of a partition, and changes it.
    fn edit(&self, p: &str, s: &str, change: impl FnOnce(&mut Value)) {
        change(self.0.lock().unwrap().get_mut(&(p.to_owned(), s.to_owned())).unwrap());
    }

    /// Messages and tombstones by number.
    fn log(&self) -> Vec<(u64, String)> {
        let items = self.0.lock().unwrap();
        let of_topic = items.iter().filter(|((p, _), _)| p == "m:room.7");
        let entry = |((_, s), item): (&(String, String), &Value)| {
            let seq = s.split_once('/').unwrap().1.parse().unwrap();
            (seq, item["json"]["S"].as_str().map_or_else(|| "hole".to_owned(), str::to_owned))
        };
        of_topic.map(entry).collect()
    }

    /// Lets time pass: everything was done that much earlier.
    fn age(&self, seconds: i64) {
        for item in self.0.lock().unwrap().values_mut() {
            for (name, unit) in [("at", 1000), ("prev", 1000), ("ttl", 1), ("prevTtl", 1)] {
                if let Some(then) = number_in(&item[name]) {
                    item[name] = json!({"N": (then - seconds * unit).to_string()});
                }
            }
        }
    }

    /// Removes a number: it was never written, or it has expired.
    fn remove(&self, seq: u64) {
        self.0.lock().unwrap().retain(|(_, s), _| !s.ends_with(&format!("/{seq:012}")));
    }

    fn item(&self, p: &str, s: &str) -> Option<Value> {
        self.0.lock().unwrap().get(&(p.to_owned(), s.to_owned())).cloned()
    }
}

/// What a `Query` answers.
fn page(items: &BTreeMap<(String, String), Value>, call: &Call) -> Answer {
    let value = |name: &str| text_of(&call.body["ExpressionAttributeValues"][name]);
    let range = (value(":p"), value(":first"))..=(value(":p"), value(":last"));
    let mut found: Vec<_> = items.range(range).map(|(_, item)| item.clone()).collect();
    if call.body["ScanIndexForward"] == false {
        found.reverse();
    }
    if let Some(start) = call.body["ExclusiveStartKey"]["s"]["S"].as_str() {
        let index = found.iter().position(|item| item["s"]["S"] == start).unwrap();
        found.drain(..=index);
    }
    // A page of DynamoDB ends after 1 MB; this one ends sooner.
    let limit = usize::try_from(call.body["Limit"].as_u64().unwrap()).unwrap().min(400);
    let mut page = json!({"Items": found[..found.len().min(limit)]});
    if found.len() >= limit {
        page["LastEvaluatedKey"] = json!({"p": found[limit - 1]["p"], "s": found[limit - 1]["s"]});
    }
    answer(200, page)
}

fn text_of(value: &Value) -> String {
    value["S"].as_str().unwrap().to_owned()
}

fn number_in(value: &Value) -> Option<i64> {
    value["N"].as_str()?.parse().ok()
}

fn topic() -> Topic {
    Topic::parse("room.7").unwrap()
}

async fn append(
    backend: &Backend,
    json: &str,
    id: Option<&str>,
    again: bool,
    invocation: &str,
) -> Result<Appended, Failure> {
    let user = UserId::parse("userId", "1").unwrap();
    let json = RawValue::from_string(json.to_owned()).unwrap();
    let draft = Draft {
        jsons: &[&json],
        sender: Some(&user),
        id: id.map(|id| (Writer::User(user.clone()), id)),
        again,
        invocation_id: invocation,
    };
    backend.history.of(&topic()).unwrap().append(&draft, Deadline::after(TIME)).await
}

fn outcome(result: Result<Appended, Failure>) -> Result<(u64, bool), &'static str> {
    match result {
        Ok(appended) => Ok((appended.stamp.seq, appended.duplicate)),
        Err(Failure::Mistake(mistake)) => Err(mistake.code()),
        Err(Failure::Fault(fault)) => Err(fault.error_type()),
    }
}

fn operations(aws: &Aws) -> Vec<String> {
    aws.calls().into_iter().map(|call| call.operation).collect()
}

#[tokio::test(start_paused = true)]
async fn a_message_costs_three_writes_with_an_id_and_two_without() {
    let table = Table::default();
    for (id, again, expected) in [
        (Some("a"), false, vec!["UpdateItem", "PutItem", "PutItem"]),
        (None, false, vec!["UpdateItem", "PutItem"]),
        (Some("a"), true, vec!["GetItem", "PutItem"]),
        (Some("b"), true, vec!["GetItem", "UpdateItem", "PutItem", "PutItem"]),
    ] {
        let (aws, backend) = table.backend();
        append(&backend, "1", id, again, "w").await.unwrap();
        assert_eq!(operations(&aws), expected, "{id:?} {again}");
    }
    let one = |seq| (seq, "1".to_owned());
    assert_eq!(table.log(), [one(1), one(2), one(3)]);
}

/// The clock stands still but for the calls, so times are exact.
#[tokio::test(start_paused = true)]
async fn many_writers_of_one_topic_take_no_longer_than_one() {
    for writers in [1, 64] {
        let table = Table::default();
        let script = table.clone();
        let (aws, backend) = Aws::backend(move |call| match script.serve(call) {
            Answer::After(_, status, body) => Answer::After(Duration::from_millis(5), status, body),
            Answer::Hang => Answer::Hang,
        });
        let start = Instant::now();
        let ids: Vec<_> = (0..writers).map(|writer| writer.to_string()).collect();
        let appends = ids.iter().map(|id| append(&backend, "1", Some(id), false, id));
        futures_util::future::try_join_all(appends).await.unwrap();
        // Three calls, one after the other, and none of them is repeated.
        assert_eq!((start.elapsed().as_millis(), aws.calls().len()), (15, 3 * writers));
        assert_eq!(table.log().len(), writers);
    }
}

#[tokio::test(start_paused = true)]
async fn items_have_the_documented_attributes() {
    let table = Table::default();
    let (_aws, backend) = table.backend();
    let first = append(&backend, r#"{ "a": 1.0 }"#, Some("a"), false, "w1").await.unwrap();
    append(&backend, "2", None, false, "w2").await.unwrap();
    let epoch = first.stamp.epoch;
    assert_eq!((epoch.len(), first.stamp.seq), (8, 1));
    let head = table.item("h:room.7", "-").unwrap();
    assert_eq!((&head["epoch"], &head["last"]), (&json!({"S": epoch}), &json!({"N": "2"})));
    assert_eq!(number_in(&head["ttl"]).unwrap(), number_in(&head["at"]).unwrap() / 1000 + DAY_S + HEAD_KEPT_S);

    let one = table.item("m:room.7", &format!("{epoch}/000000000001")).unwrap();
    let at = number_in(&one["at"]).unwrap();
    let expected = json!({
        "p": {"S": "m:room.7"}, "s": {"S": format!("{epoch}/000000000001")}, "json": {"S": r#"{ "a": 1.0 }"#},
        "senderId": {"S": "1"}, "cid": {"S": "@1\na"}, "w": {"S": "w1"}, "at": {"N": at.to_string()},
        "ttl": {"N": (at / 1000 + DAY_S).to_string()},
    });
    assert_eq!(one, expected);
    let two = table.item("m:room.7", &format!("{epoch}/000000000002")).unwrap();
    assert_eq!((&two["prev"], &two["prevTtl"]), (&one["at"], &one["ttl"]));
    assert!(two.get("cid").is_none());
    let binding = table.item("i:room.7\n@1", "a").unwrap();
    let expected = json!({
        "p": {"S": "i:room.7\n@1"}, "s": {"S": "a"}, "epoch": {"S": epoch}, "seq": {"N": "1"},
        "at": {"N": at.to_string()}, "ttl": {"N": (at / 1000 + DAY_S - BINDING_ENDS_EARLIER_S).to_string()},
    });
    assert_eq!(binding, expected);
}

/// The clocks of two execution environments may differ, and a rule may change.
#[tokio::test(start_paused = true)]
async fn a_message_is_kept_at_least_as_long_as_the_one_before_it() {
    let table = Table::default();
    let (_aws, backend) = table.backend();
    let epoch = append(&backend, "1", None, false, "w").await.unwrap().stamp.epoch;
    let later = now_s() + 9 * DAY_S;
    table.edit("h:room.7", "-", |head| head["ttl"] = json!({"N": (later + HEAD_KEPT_S).to_string()}));
    append(&backend, "2", None, false, "w").await.unwrap();
    let two = table.item("m:room.7", &format!("{epoch}/000000000002")).unwrap();
    assert_eq!(number_in(&two["ttl"]), Some(later));
}

#[tokio::test(start_paused = true)]
async fn an_id_has_one_number_however_often_it_comes() {
    let table = Table::default();
    let (_aws, backend) = table.backend();
    assert_eq!(outcome(append(&backend, "1", Some("a"), false, "w1").await), Ok((1, false)));
    assert_eq!(outcome(append(&backend, "1", Some("a"), true, "w2").await), Ok((1, true)));
    // A repetition that does not say so takes a number in vain.
    assert_eq!(outcome(append(&backend, "1", Some("a"), false, "w3").await), Ok((1, true)));
    assert_eq!(outcome(append(&backend, "2", Some("a"), true, "w4").await), Err("invalid_field"));
    assert_eq!(outcome(append(&backend, "2", Some("b"), false, "w5").await), Ok((3, false)));
    assert_eq!(table.log(), [(1, "1".to_owned()), (2, "hole".to_owned()), (3, "2".to_owned())]);
}

/// Without an id, only the SDK repeats a call, and it does not make a second message of that.
#[tokio::test(start_paused = true)]
async fn a_lost_answer_makes_no_second_message() {
    for id in [None, Some("a")] {
        for lost in 0..3 {
            let table = Table::default();
            let count = Mutex::new(0);
            let (_aws, backend) = table.faulty(move |_| {
                let mut count = count.lock().unwrap();
                *count += 1;
                (*count == lost + 1).then(|| answer(500, json!({})))
            });
            let appended = append(&backend, "1", id, false, "w").await.unwrap();
            assert!(!appended.duplicate, "{id:?} {lost}");
            let log = table.log();
            assert_eq!(log, [(appended.stamp.seq, "1".to_owned())], "{id:?} {lost}");
        }
    }
}

/// Wherever the function was killed, the repetition ends with one message, and its number is the id's.
#[tokio::test(start_paused = true)]
async fn a_repetition_finishes_what_was_interrupted() {
    for (done, seq, duplicate) in [(0, 1, false), (1, 2, false), (2, 2, false), (3, 1, true)] {
        for again in [false, true] {
            let table = Table::default();
            let count = Mutex::new(0);
            let (_aws, killed) = table.faulty(move |_| {
                let mut count = count.lock().unwrap();
                *count += 1;
                (*count > done).then(|| failure("AccessDeniedException"))
            });
            let first = append(&killed, "1", Some("a"), false, "w1").await;
            assert_eq!(first.is_ok(), done == 3);
            let (_aws, backend) = table.backend();
            let repeated = append(&backend, "1", Some("a"), again, "w2").await;
            assert_eq!(outcome(repeated), Ok((seq, duplicate)), "{done} {again}");
            let messages = table.log().into_iter().filter(|(_, json)| json == "1");
            assert_eq!(messages.map(|(seq, _)| seq).collect::<Vec<_>>(), [seq], "{done} {again}");
        }
    }
}

/// A reader has waited too long for number 1 and says that it will never come.
#[tokio::test(start_paused = true)]
async fn a_message_whose_number_was_given_up_takes_another_one() {
    for id in [None, Some("a")] {
        let table = Table::default();
        let log = table.clone();
        let (_aws, backend) = table.faulty(move |call| {
            let is_first = call.body["Item"]["s"]["S"].as_str().is_some_and(|s| s.ends_with("/000000000001"));
            if is_first {
                let key = (text_of(&call.body["Item"]["p"]), text_of(&call.body["Item"]["s"]));
                log.0.lock().unwrap().entry(key).or_insert(json!({"hole": {"BOOL": true}}));
            }
            None
        });
        let appended = append(&backend, "1", id, false, "w1").await.unwrap();
        assert_eq!((appended.stamp.seq, appended.duplicate), (2, false));
        assert_eq!(table.log(), [(1, "hole".to_owned()), (2, "1".to_owned())]);
        if id.is_some() {
            assert_eq!(outcome(append(&backend, "1", id, true, "w2").await), Ok((2, true)));
        }
    }
    // Somebody who gives up every number ends the append.
    let (aws, backend) = Aws::backend(|call| match call.operation.as_str() {
        "PutItem" => {
            let name = "com.amazonaws.dynamodb.v20120810#ConditionalCheckFailedException";
            answer(400, json!({"__type": name, "Item": {"hole": {"BOOL": true}}}))
        }
        _ => answer(200, json!({})),
    });
    assert_eq!(outcome(append(&backend, "1", None, false, "w").await), Err("busy"));
    assert_eq!(aws.count("PutItem"), MAX_NUMBERS);
}

/// Two invocations with one id meet a tombstone, and only one of them may rebind the id.
#[tokio::test(start_paused = true)]
async fn the_first_invocation_that_rebinds_an_id_decides() {
    let table = Table::default();
    let (_aws, backend) = table.backend();
    let epoch = append(&backend, "1", Some("a"), false, "w1").await.unwrap().stamp.epoch;
    let sort_key = format!("{epoch}/000000000001");
    table.edit("m:room.7", &sort_key, |item| *item = json!({"hole": {"BOOL": true}}));
    let other = table.clone();
    let (_aws, slow) = table.faulty(move |call| {
        // Before it rebinds, somebody else has done it, and is killed before it writes.
        if call.body["ConditionExpression"] == "attribute_not_exists(p) OR (epoch = :epoch AND seq = :seq)" {
            other.edit("i:room.7\n@1", "a", |binding| binding["seq"] = json!({"N": "9"}));
        }
        None
    });
    assert_eq!(outcome(append(&slow, "1", Some("a"), true, "w2").await), Ok((2, false)));
    assert_eq!(table.log(), [(1, "hole".to_owned()), (2, "1".to_owned()), (9, "hole".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn an_expired_binding_binds_nothing() {
    let table = Table::default();
    let (_aws, backend) = table.backend();
    append(&backend, "1", Some("a"), false, "w1").await.unwrap();
    table.edit("i:room.7\n@1", "a", |binding| binding["ttl"] = json!({"N": (now_s() - 1).to_string()}));
    assert_eq!(outcome(append(&backend, "2", Some("a"), true, "w2").await), Ok((2, false)));
    assert_eq!(outcome(append(&backend, "2", Some("a"), true, "w3").await), Ok((2, true)));
}

/// Names may contain what separates the parts of other keys.
#[test]
fn no_two_topics_and_writers_share_a_binding() {
    let (_aws, backend) = Table::default().backend();
    let user = |name| Writer::User(UserId::parse("userId", name).unwrap());
    let connection = |id: &str| Writer::Connection(ConnectionId::new(id.to_owned()));
    let mut keys = std::collections::BTreeSet::new();
    let pairs = [
        ("room.a/b", user("c")),
        ("room.a", user("b/c")),
        ("room.a", user("connection c=")),
        ("room.a", connection("c=")),
    ];
    for (topic, writer) in &pairs {
        let topic = Topic::parse(topic).unwrap();
        let key = backend.history.of(&topic).unwrap().binding_key(writer, "1");
        keys.insert(key["p"].as_s().unwrap().clone());
    }
    assert_eq!(keys.len(), pairs.len());
}

#[tokio::test(start_paused = true)]
async fn a_table_that_puts_off_or_hangs_or_fails_ends_the_append_in_bounded_time() {
    for (fault, expected) in [
        (Some("ProvisionedThroughputExceededException"), "busy"),
        (Some("ThrottlingException"), "busy"),
        (Some("AccessDeniedException"), "Store.Failed"),
        (None, "Store.Failed"),
    ] {
        for step in ["UpdateItem", "PutItem", "GetItem"] {
            let (aws, backend) = Aws::backend(move |call| match fault {
                Some(name) if call.operation == step => failure(name),
                None if call.operation == step => Answer::Hang,
                _ => answer(200, json!({})),
            });
            let start = Instant::now();
            assert_eq!(
                outcome(append(&backend, "1", Some("a"), step == "GetItem", "w").await),
                Err(expected),
                "{step}"
            );
            assert!(start.elapsed() <= Duration::from_secs(8), "{step}: {:?}", start.elapsed());
            assert!(aws.calls().len() <= 17, "{step}: {}", aws.calls().len());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_append_ends_with_its_invocation() {
    let (_aws, backend) = Aws::backend(|_| Answer::Hang);
    let (start, topic) = (Instant::now(), topic());
    let json = RawValue::from_string("1".to_owned()).unwrap();
    let draft = Draft { jsons: &[&json], sender: None, id: None, again: false, invocation_id: "w" };
    let log = backend.history.of(&topic).unwrap();
    let error = log.append(&draft, Deadline::after(Duration::from_secs(1))).await;
    assert_eq!(outcome(error), Err("Publish.OutOfTime"));
    assert_eq!(start.elapsed(), Duration::from_secs(1));
}

#[test]
fn later_epochs_sort_behind_earlier_ones() {
    let epochs = [0, 1, 35, 36, 1_795_650_067_377, 1_795_650_067_378, 2_821_109_907_455].map(epoch);
    assert!(epochs.is_sorted() && epochs.iter().all(|epoch| epoch.len() == 8), "{epochs:?}");
}

/// A topic with messages 1 to `count`, each with its number as payload.
async fn topic_of(count: u64) -> (Table, String) {
    let table = Table::default();
    let (_aws, backend) = table.backend();
    let mut epoch = String::new();
    for seq in 1..=count {
        epoch = append(&backend, &seq.to_string(), None, false, &format!("w{seq}")).await.unwrap().stamp.epoch;
    }
    (table, epoch)
}

/// What a subscriber gets: the position, whether it missed nothing, and the entries.
async fn resume(table: &Table, from: From) -> (u64, Option<bool>, Vec<String>) {
    let (_aws, backend) = table.backend();
    let topic = topic();
    let wanted = [(backend.history.of(&topic).unwrap(), from)];
    let resumed = backend.history.resume(&wanted, Deadline::after(TIME)).await.unwrap().remove(0).unwrap();
    let entry = |entry: Entry| {
        let json = entry.message.map_or_else(|| "hole".to_owned(), |message| message.json.get().to_owned());
        format!("{}:{json}", entry.seq)
    };
    (resumed.stamp.seq, resumed.recovered, resumed.entries.into_iter().map(entry).collect())
}

fn after(epoch: &str, seq: u64) -> From {
    From::After(Stamp { epoch: epoch.to_owned(), seq })
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_gets_all_that_is_behind_its_position() {
    let (table, epoch) = topic_of(3).await;
    assert_eq!(resume(&table, after(&epoch, 1)).await, (3, Some(true), vec!["2:2".to_owned(), "3:3".to_owned()]));
    assert_eq!(resume(&table, after(&epoch, 3)).await, (3, Some(true), vec![]));
    assert_eq!(resume(&table, after(&epoch, 0)).await.2.len(), 3);
    // A position that the topic never had, and one of another epoch.
    assert_eq!(resume(&table, after(&epoch, 4)).await, (3, Some(false), vec![]));
    assert_eq!(resume(&table, after("00000000", 1)).await, (3, Some(false), vec![]));
}

/// However long a topic is quiet, nobody missed anything.
#[tokio::test(start_paused = true)]
async fn a_quiet_topic_recovers_after_all_its_messages_have_expired() {
    let (table, epoch) = topic_of(2).await;
    table.age(20 * DAY_S);
    table.remove(1);
    table.remove(2);
    assert_eq!(resume(&table, after(&epoch, 2)).await, (2, Some(true), vec![]));
    assert_eq!(resume(&table, after(&epoch, 1)).await, (2, Some(false), vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_topic_without_messages_has_a_position() {
    let table = Table::default();
    let (seq, recovered, entries) = resume(&table, From::Newest(5)).await;
    assert_eq!((seq, recovered, entries.len()), (0, None, 0));
    let epoch = text_of(&table.item("h:room.7", "-").unwrap()["epoch"]);
    let (_aws, backend) = table.backend();
    let first = append(&backend, "1", None, false, "w").await.unwrap();
    assert_eq!(first.stamp, Stamp { epoch: epoch.clone(), seq: 1 });
    assert_eq!(resume(&table, after(&epoch, 0)).await, (1, Some(true), vec!["1:1".to_owned()]));
}

/// What a missing number means, by its age and by what is known of its neighbours.
#[tokio::test(start_paused = true)]
async fn a_missing_number_is_in_flight_or_a_hole_or_lost() {
    let hour = 3600;
    let all = |holes: &[u64]| {
        let entry = |seq: u64| if holes.contains(&seq) { format!("{seq}:hole") } else { format!("{seq}:{seq}") };
        (2..=5).map(entry).collect::<Vec<_>>()
    };
    for (missing, age_s, expected) in [
        // It was taken a moment ago: what is before it can be said.
        (&[3][..], 0, (2, Some(true), vec!["2:2".to_owned()])),
        (&[5], 0, (4, Some(true), all(&[])[..3].to_vec())),
        (&[2, 3, 4, 5], 0, (1, Some(true), vec![])),
        // It can no longer come.
        (&[3], 11, (5, Some(true), all(&[3]))),
        (&[5], 11, (5, Some(true), all(&[5]))),
        (&[2, 3, 4, 5], 11, (5, Some(true), all(&[2, 3, 4, 5]))),
        (&[1, 2], 11, (5, Some(true), all(&[2]))),
        // Nothing tells the age of 2: neither the number before it nor the one behind it is there. A late writer may still
        // come, so nobody is sent past it yet.
        (&[1, 2, 3], 119, (1, Some(true), vec![])),
        (&[1, 2, 3], 121, (5, Some(false), vec![])),
        // Only the earliest time of several numbers is known, and an operator may have kept messages for an hour.
        (&[2, 3, 4], hour - 190, (5, Some(true), all(&[2, 3, 4]))),
        (&[2, 3, 4], hour - 170, (5, Some(false), vec![])),
        // The last minute before the expiry is not trusted, nor is anything after it.
        (&[3], 24 * hour - 120, (5, Some(true), all(&[3]))),
        (&[3], 24 * hour - 30, (5, Some(false), vec![])),
        (&[3], 24 * hour + 30, (5, Some(false), vec![])),
        (&[5], 24 * hour + 30, (5, Some(false), vec![])),
        // What has expired and is still there is as good as before.
        (&[], 24 * hour + 30, (5, Some(true), all(&[]))),
    ] {
        let (table, epoch) = topic_of(5).await;
        table.age(age_s);
        missing.iter().for_each(|seq| table.remove(*seq));
        assert_eq!(resume(&table, after(&epoch, 1)).await, expected, "{missing:?} after {age_s} s");
        // The tombstones that the reader wrote give the next reader the same.
        assert_eq!(resume(&table, after(&epoch, 1)).await, expected, "{missing:?} after {age_s} s, again");
    }
}

/// The reader's tombstone comes too late, so the reader sends the message.
#[tokio::test(start_paused = true)]
async fn a_late_message_that_is_faster_than_a_tombstone_is_sent() {
    let (table, epoch) = topic_of(3).await;
    table.age(11);
    let key = ("m:room.7".to_owned(), format!("{epoch}/000000000002"));
    let late = table.item(&key.0, &key.1).unwrap();
    table.remove(2);
    let other = table.clone();
    let (_aws, backend) = table.faulty(move |call| {
        if call.operation == "PutItem" {
            other.0.lock().unwrap().insert(key.clone(), late.clone());
        }
        None
    });
    let log_topic = topic();
    let log = backend.history.of(&log_topic).unwrap();
    let resumed = log.resume(&after(&epoch, 1), None, Deadline::after(TIME)).await.unwrap();
    assert!(resumed.entries.iter().all(|entry| entry.message.is_some()));
    assert_eq!((resumed.entries.len(), resumed.recovered), (2, Some(true)));
}

#[tokio::test(start_paused = true)]
async fn the_newest_messages_end_before_a_number_that_may_still_come() {
    let strings = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    for (missing, age_s, expected) in [
        (&[][..], 0, (5, None, strings(&["4:4", "5:5"]))),
        (&[5], 0, (4, None, strings(&["3:3", "4:4"]))),
        (&[4], 0, (3, None, strings(&["2:2", "3:3"]))),
        (&[1, 2, 3, 4, 5], 0, (0, None, vec![])),
        // Nothing is in front of them.
        (&[1], 0, (0, None, vec![])),
        (&[1, 2], 0, (0, None, vec![])),
        (&[1], 11, (5, None, strings(&["4:4", "5:5"]))),
        // Nothing tells the age of 1, so nobody is sent past it yet.
        (&[1, 2], 11, (0, None, vec![])),
        (&[1, 2], 121, (5, None, strings(&["4:4", "5:5"]))),
        (&[4], 11, (5, None, strings(&["3:3", "5:5"]))),
        (&[5], 11, (5, None, strings(&["3:3", "4:4"]))),
    ] {
        let (table, _) = topic_of(5).await;
        table.age(age_s);
        missing.iter().for_each(|seq| table.remove(*seq));
        assert_eq!(resume(&table, From::Newest(2)).await, expected, "{missing:?} after {age_s} s");
        let (top, ..) = resume(&table, From::Newest(0)).await;
        assert_eq!(top, expected.0, "{missing:?} after {age_s} s");
    }
}

/// A tombstone is not one of the messages that were asked for.
#[tokio::test(start_paused = true)]
async fn the_newest_messages_are_as_many_as_were_asked_for_when_tombstones_are_among_them() {
    let (table, epoch) = topic_of(30).await;
    table.age(600);
    (3..=29).for_each(|seq| table.remove(seq));
    // This reader finds the holes and writes the tombstones.
    assert_eq!(resume(&table, after(&epoch, 2)).await.0, 30);
    assert_eq!(table.item("m:room.7", &format!("{epoch}/000000000017")).unwrap()["hole"], json!({"BOOL": true}));
    let strings = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    assert_eq!(resume(&table, From::Newest(2)).await, (30, None, strings(&["2:2", "30:30"])));
    assert_eq!(resume(&table, From::Newest(9)).await, (30, None, strings(&["1:1", "2:2", "30:30"])));
}

#[tokio::test(start_paused = true)]
async fn a_thousand_messages_are_caught_up_with_and_not_one_more() {
    let (table, epoch) = topic_of(1001).await;
    table.age(11);
    let (seq, recovered, entries) = resume(&table, after(&epoch, 1)).await;
    assert_eq!((seq, recovered, entries.len()), (1001, Some(true), 1000));
    assert_eq!(resume(&table, after(&epoch, 0)).await, (1001, Some(false), vec![]));
}

/// Gives another topic the same messages.
fn copy(table: &Table, to: &str) {
    let mut items = table.0.lock().unwrap();
    let copies: Vec<_> = items
        .iter()
        .filter(|((p, _), _)| p.ends_with(":room.7"))
        .map(|((p, s), item)| {
            let (p, mut item) = (p.replace("room.7", to), item.clone());
            item["p"] = json!({"S": p});
            ((p, s.clone()), item)
        })
        .collect();
    items.extend(copies);
}

/// What each of several topics has for a subscriber: the position, whether nothing was missed, and the number of entries.
async fn resume_all(backend: &Backend, wanted: &[(&str, From)]) -> Vec<Option<(u64, Option<bool>, usize)>> {
    let topics: Vec<_> = wanted.iter().map(|(topic, _)| Topic::parse(topic).unwrap()).collect();
    let wanted: Vec<_> = topics
        .iter()
        .zip(wanted)
        .map(|(topic, (_, from))| (backend.history.of(topic).unwrap(), from.clone()))
        .collect();
    let resumed = backend.history.resume(&wanted, Deadline::after(TIME)).await.unwrap();
    let found = |resumed: Resumed| (resumed.stamp.seq, resumed.recovered, resumed.entries.len());
    resumed.into_iter().map(|resumed| resumed.map(found)).collect()
}

#[tokio::test(start_paused = true)]
async fn several_topics_are_read_together_and_quiet_ones_cost_no_query() {
    let (table, epoch) = topic_of(3).await;
    table.age(121);
    for topic in ["room.8", "room.9", "room.10", "room.11"] {
        copy(&table, topic);
    }
    let (aws, backend) = table.backend();
    let wanted = [
        ("room.7", after(&epoch, 1)),
        ("room.8", after(&epoch, 3)),
        ("room.new", From::Newest(0)),
        ("room.9", From::Newest(2)),
        ("room.10", after("00000000", 1)),
        ("room.11", after(&epoch, 4)),
    ];
    let found = resume_all(&backend, &wanted).await;
    let expected =
        [(3, Some(true), 2), (3, Some(true), 0), (0, None, 0), (3, None, 2), (3, Some(false), 0), (3, Some(false), 0)];
    assert_eq!(found, expected.map(Some));
    let count = |operation| operations(&aws).iter().filter(|called| *called == operation).count();
    assert_eq!((count("BatchGetItem"), count("Query")), (1, 2));
    assert_eq!(aws.calls()[0].body["RequestItems"]["MESSAGES_TABLE"]["ConsistentRead"], true);
}

#[tokio::test(start_paused = true)]
async fn one_frame_gets_a_thousand_messages_in_all_its_topics_together() {
    let (table, epoch) = topic_of(1001).await;
    table.age(11);
    for topic in ["room.8", "room.9", "room.10", "room.11"] {
        copy(&table, topic);
    }
    let (_aws, backend) = table.backend();
    let wanted = [
        // This one missed too many, and takes none of the thousand.
        ("room.7", after(&epoch, 0)),
        ("room.8", after(&epoch, 401)),
        ("room.9", after(&epoch, 501)),
        ("room.10", after(&epoch, 1001)),
        ("room.11", From::Newest(100)),
    ];
    let found = resume_all(&backend, &wanted).await;
    let expected = [
        Some((1001, Some(false), 0)),
        Some((1001, Some(true), 600)),
        None,
        Some((1001, Some(true), 0)),
        Some((1001, None, 100)),
    ];
    assert_eq!(found, expected);
    // Those that are left come with the next frame.
    assert_eq!(resume_all(&backend, &wanted[2..3]).await, [Some((1001, Some(true), 500))]);
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_is_put_off_leaves_the_others_alone_and_a_fault_does_not() {
    let (table, epoch) = topic_of(3).await;
    table.age(11);
    copy(&table, "room.8");
    let wanted = [("room.7", after(&epoch, 1)), ("room.8", after(&epoch, 1))];
    let (_aws, backend) = table.faulty(|call| {
        let is_first = call.body["ExpressionAttributeValues"][":p"]["S"] == "m:room.7";
        is_first.then(|| failure("ThrottlingException"))
    });
    assert_eq!(resume_all(&backend, &wanted).await, [None, Some((3, Some(true), 2))]);
    let (_aws, backend) =
        table.faulty(|call| (call.operation == "BatchGetItem").then(|| failure("ThrottlingException")));
    assert_eq!(resume_all(&backend, &wanted).await, [None, None]);
    let (_aws, backend) = table.faulty(|call| (call.operation == "Query").then(|| failure("ValidationException")));
    let topic = topic();
    let wanted = [(backend.history.of(&topic).unwrap(), after(&epoch, 1))];
    let fault = backend.history.resume(&wanted, Deadline::after(TIME)).await.unwrap_err();
    assert_eq!(fault.error_type(), "Store.Failed");
    // A call that hangs until the time is over is no fault of a topic either.
    let (_aws, backend) = table.faulty(|call| (call.operation == "Query").then_some(Answer::Hang));
    let wanted = [(backend.history.of(&topic).unwrap(), after(&epoch, 1))];
    let resumed = backend.history.resume(&wanted, Deadline::after(Duration::from_secs(1))).await.unwrap();
    assert!(resumed[0].is_none());
}

/// The head says 3, and a message is appended before the query.
#[tokio::test(start_paused = true)]
async fn a_message_that_comes_between_head_and_query_is_left_to_live_delivery() {
    let (table, epoch) = topic_of(4).await;
    table.age(11);
    table.edit("h:room.7", "-", |head| head["last"] = json!({"N": "3"}));
    assert_eq!(resume(&table, after(&epoch, 1)).await, (3, Some(true), vec!["2:2".to_owned(), "3:3".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn a_row_that_is_not_understood_is_skipped() {
    let (table, epoch) = topic_of(2).await;
    for s in ["zz", "zz/1", "zz/000000000002"] {
        let s = s.replace("zz", &epoch);
        table
            .0
            .lock()
            .unwrap()
            .insert(("m:room.7".to_owned(), s.clone()), json!({"p": {"S": "m:room.7"}, "s": {"S": s}}));
    }
    table.age(11);
    // Number 2 is such a row now. Nobody overwrites it, so no message will ever be there.
    assert_eq!(resume(&table, after(&epoch, 1)).await, (2, Some(true), vec!["2:hole".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn history_is_read_page_by_page_in_both_directions() {
    let (table, epoch) = topic_of(5).await;
    let stamp = |epoch: &str, seq| Stamp { epoch: epoch.to_owned(), seq };
    let page = async |range: Range, limit| {
        let (_aws, backend) = table.backend();
        let page = backend.history.of(&topic()).unwrap().page(&range, limit, Deadline::after(TIME)).await.unwrap();
        (page.entries.iter().map(|entry| entry.seq).collect::<Vec<_>>(), page.more)
    };
    assert_eq!(page(Range::After(stamp(&epoch, 1)), 2).await, (vec![2, 3], true));
    assert_eq!(page(Range::After(stamp(&epoch, 3)), 2).await, (vec![4, 5], false));
    // A position that the topic does not have is before all that there is.
    assert_eq!(page(Range::After(stamp(&epoch, 9)), 9).await, (vec![1, 2, 3, 4, 5], false));
    assert_eq!(page(Range::After(stamp("00000000", 4)), 9).await, (vec![1, 2, 3, 4, 5], false));
    assert_eq!(page(Range::Before(stamp(&epoch, 4)), 2).await, (vec![3, 2], true));
    assert_eq!(page(Range::Before(stamp(&epoch, 2)), 2).await, (vec![1], false));
    for end in [0, 1] {
        assert_eq!(page(Range::Before(stamp(&epoch, end)), 2).await, (vec![], false));
    }
    assert_eq!(page(Range::Newest, 2).await, (vec![5, 4], true));

    // A gap that is young ends a page, an older one is filled, and an expired one is left out.
    table.remove(3);
    assert_eq!(page(Range::After(stamp(&epoch, 1)), 9).await, (vec![2], false));
    table.age(24 * 3600 + 30);
    table.remove(2);
    assert_eq!(page(Range::After(stamp(&epoch, 1)), 9).await, (vec![4, 5], false));
}

/// A reader that goes on from `reached` misses nothing behind it, and hears whether something may be missing before it.
#[tokio::test(start_paused = true)]
async fn a_page_behind_a_position_says_where_its_reader_stands() {
    let (table, epoch) = topic_of(6).await;
    let stamp = |epoch: &str, seq| Stamp { epoch: epoch.to_owned(), seq };
    let read = async |after: Stamp, limit, fits: usize| {
        let (_aws, backend) = table.backend();
        let log_topic = topic();
        let log = backend.history.of(&log_topic).unwrap();
        let mut page = log.page(&Range::After(after), limit, Deadline::after(TIME)).await.unwrap();
        page.truncate(fits);
        let reached = page.reached.unwrap();
        (reached.seq, reached.recovered(), page.more)
    };
    assert_eq!(read(stamp(&epoch, 1), 9, 9).await, (6, true, false));
    assert_eq!(read(stamp(&epoch, 6), 9, 9).await, (6, true, false));
    // A limit ends the page, or the size of the frame.
    assert_eq!(read(stamp(&epoch, 1), 2, 9).await, (3, true, true));
    assert_eq!(read(stamp(&epoch, 1), 9, 3).await, (4, true, true));
    // The topic never had these.
    assert_eq!(read(stamp(&epoch, 7), 9, 9).await, (6, false, false));
    assert_eq!(read(stamp("00000000", 6), 9, 9).await, (6, false, false));

    // Number 6 may still come. Numbers 3 and 4 have expired.
    table.remove(6);
    assert_eq!(read(stamp(&epoch, 1), 9, 9).await, (5, true, false));
    table.age(2 * DAY_S);
    [3, 4].iter().for_each(|seq| table.remove(*seq));
    assert_eq!(read(stamp(&epoch, 1), 9, 1).await, (2, true, true));
    assert_eq!(read(stamp(&epoch, 1), 9, 2).await, (6, false, false));
    assert_eq!(read(stamp(&epoch, 4), 9, 9).await, (6, false, false));
}

/// The first invocation is slow, and the sender repeats its frame. Whatever comes first, there is one message in the end.
#[tokio::test(start_paused = true)]
async fn only_the_invocation_that_took_a_number_writes_under_it() {
    for again in [false, true] {
        let table = Table::default();
        let (_aws, backend) = table.backend();
        let other = Mutex::new(Some(table.clone()));
        // Between the binding and the message of the first invocation, the repetition begins and ends.
        let (_aws, slow) = table.faulty(move |call| {
            let is_message = call.operation == "PutItem" && !call.body["Item"]["json"].is_null();
            if let Some(table) = other.lock().unwrap().take_if(|_| is_message) {
                let number = text_of(&call.body["Item"]["s"]);
                let key = ("m:room.7".to_owned(), number);
                table.0.lock().unwrap().insert(key, json!({"hole": {"BOOL": true}}));
            }
            None
        });
        assert_eq!(outcome(append(&slow, "1", Some("a"), false, "w1").await), Ok((2, false)));
        assert_eq!(outcome(append(&backend, "1", Some("a"), again, "w2").await), Ok((2, true)));
        let log = table.log().into_iter().take(2).collect::<Vec<_>>();
        assert_eq!(log, [(1, "hole".to_owned()), (2, "1".to_owned())]);
    }
}

/// Several messages of one frame.
async fn append_all(backend: &Backend, texts: &[&str], again: bool, invocation: &str) -> Result<Appended, Failure> {
    let user = UserId::parse("userId", "1").unwrap();
    let jsons: Vec<_> = texts.iter().map(|text| RawValue::from_string((*text).to_owned()).unwrap()).collect();
    let jsons: Vec<_> = jsons.iter().map(|json| &**json).collect();
    let id = Some((Writer::User(user.clone()), "a"));
    let draft = Draft { jsons: &jsons, sender: Some(&user), id, again, invocation_id: invocation };
    backend.history.of(&topic()).unwrap().append(&draft, Deadline::after(TIME)).await
}

#[tokio::test(start_paused = true)]
async fn several_messages_are_kept_together_under_numbers_that_follow_each_other() {
    let table = Table::default();
    let (aws, backend) = table.backend();
    append(&backend, "0", None, false, "w0").await.unwrap();
    let all = ["1", "2", "3"];
    assert_eq!(outcome(append_all(&backend, &all, false, "w1").await), Ok((4, false)));
    assert_eq!(operations(&aws)[2..], ["UpdateItem", "PutItem", "TransactWriteItems"]);
    let log = table.log();
    assert_eq!(log.iter().map(|(_, json)| json.as_str()).collect::<Vec<_>>(), ["0", "1", "2", "3"]);
    // The same frame again, with and without saying so, and then with other messages.
    assert_eq!(outcome(append_all(&backend, &all, true, "w2").await), Ok((4, true)));
    assert_eq!(outcome(append_all(&backend, &all, false, "w3").await), Ok((4, true)));
    for others in [&["1", "2", "9"][..], &["1", "2"], &["1"], &["1", "2", "3", "4"]] {
        assert_eq!(outcome(append_all(&backend, others, true, "w4").await), Err("invalid_field"), "{others:?}");
    }
    // The numbers that the second repetition took in vain have tombstones.
    assert_eq!(table.log()[4..], [5, 6, 7].map(|seq| (seq, "hole".to_owned())));
    table.age(11);
    let epoch = text_of(&table.item("h:room.7", "-").unwrap()["epoch"]);
    let (seq, recovered, entries) = resume(&table, after(&epoch, 1)).await;
    assert_eq!((seq, recovered, entries.len()), (7, Some(true), 6));
}

/// Wherever the function was killed, and if a reader closes one of the numbers: all messages are there once, or none is.
#[tokio::test(start_paused = true)]
async fn several_messages_are_kept_all_or_none() {
    for done in 0..=3 {
        for again in [false, true] {
            let table = Table::default();
            let count = Mutex::new(0);
            let (_aws, killed) = table.faulty(move |_| {
                let mut count = count.lock().unwrap();
                *count += 1;
                (*count > done).then(|| failure("AccessDeniedException"))
            });
            assert_eq!(append_all(&killed, &["1", "2"], false, "w1").await.is_ok(), done == 3);
            let (_aws, backend) = table.backend();
            append_all(&backend, &["1", "2"], again, "w2").await.unwrap();
            let messages = table.log().into_iter().map(|(_, json)| json).filter(|json| json != "hole");
            assert_eq!(messages.collect::<Vec<_>>(), ["1", "2"], "{done} {again}");
        }
    }
    for closed in ["/000000000001", "/000000000002", "/000000000003"] {
        let table = Table::default();
        let log = table.clone();
        let (_aws, backend) = table.faulty(move |call| {
            let items = call.body["TransactItems"].as_array().into_iter().flatten().map(|item| &item["Put"]["Item"]);
            for item in items.filter(|item| text_of(&item["s"]).ends_with(closed)) {
                let key = (text_of(&item["p"]), text_of(&item["s"]));
                log.0.lock().unwrap().insert(key, json!({"hole": {"BOOL": true}}));
            }
            None
        });
        assert_eq!(outcome(append_all(&backend, &["1", "2", "3"], false, "w1").await), Ok((6, false)));
        let log: Vec<_> = table.log().into_iter().filter(|(_, json)| json != "hole").collect();
        assert_eq!(log, [4, 5, 6].map(|seq| (seq, (seq - 3).to_string())), "{closed}");
    }
}

//! Several events at once in one process, as on Lambda Managed Instances.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use futures_util::future::join_all;
use serde_json::{Value, json};
use switchboard_tests::client::Client;
use switchboard_tests::environment::Environment;
use switchboard_tests::proxy::{Answer, Call, Proxy, answer};
use switchboard_tests::stack::{Stack, matching, table_name, text};
use tokio::sync::{Barrier, watch};

/// How many events there are at once.
const EVENTS: usize = 8;

const AT_ONCE: (&str, &str) = ("AWS_LAMBDA_MAX_CONCURRENCY", "8");

/// The connection ids of users, by their names.
async fn connection_ids(stack: &Stack) -> BTreeMap<String, String> {
    let rows = stack.rows("connections").await;
    rows.iter().map(|row| (text(row, "userId"), text(row, "connectionId"))).collect()
}

/// The process of `send-message` for the stack behind a proxy.
async fn send_message(proxy: &Proxy) -> Environment {
    let gateway = format!("{}/dev", proxy.address);
    let (connections, topics, events) = (table_name("connections"), table_name("topics"), table_name("events"));
    let variables = [
        AT_ONCE,
        ("CONNECTIONS_TABLE", &*connections),
        ("TOPICS_TABLE", &topics),
        ("EVENTS_TABLE", &events),
        ("AWS_ENDPOINT_URL_DYNAMODB", &proxy.address),
        ("PUBLISH_ENDPOINT", &gateway),
        ("LOG_ONE_IN", "0"),
    ];
    Environment::start("send-message", &variables).await
}

/// The event of a direct message from a connection.
fn direct_message(sender: &str, destination: &str, id: &str) -> Value {
    let mut event: Value = serde_json::from_str(include_str!("../events/send-message.json")).unwrap();
    event["requestContext"]["connectionId"] = sender.into();
    let frame = json!({"action": "sendMessage", "destinationUserId": destination, "body": id, "id": id});
    event["body"] = frame.to_string().into();
    event
}

/// The events of the log that wrote something: each line's message, and the name or the size that tells events apart.
fn said(log: &[String]) -> Vec<(String, Value)> {
    let records = log.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let fields = records.filter(|record| record["level"].is_string()).map(|mut record| record["fields"].take());
    let told = |fields: &Value| ["name", "bytes"].iter().find_map(|key| fields.get(key)).cloned();
    fields.map(|fields| (fields["message"].as_str().unwrap().to_owned(), told(&fields).unwrap_or_default())).collect()
}

/// A rule holds the posts to these connections.
type Held = Arc<Mutex<BTreeSet<String>>>;

fn is_held(held: &Held, call: &Call) -> bool {
    let path = percent_encoding::percent_decode_str(&call.path).decode_utf8().unwrap().into_owned();
    call.operation == "POST" && held.lock().unwrap().iter().any(|id| path.ends_with(&format!("/{id}")))
}

/// The clients of users `{kind}0`, `{kind}1`, ….
async fn clients(stack: &Stack, kind: &str, count: usize) -> Vec<Client> {
    let mut clients = Vec::new();
    for number in 0..count {
        clients.push(stack.connect(&format!("?userId={kind}{number}")).await);
    }
    clients
}

#[tokio::test]
async fn events_of_one_process_do_not_wait_for_each_other_and_each_answers_its_own_connection() {
    let (held, all) = (Held::default(), Arc::new(Barrier::new(EVENTS)));
    // No post to a receiver ends before the posts of all events are there.
    let rule = {
        let held = held.clone();
        move |call: &Call| {
            let all = all.clone();
            is_held(&held, call).then(|| -> Answer {
                Box::pin(async move {
                    all.wait().await;
                    answer(200, "", "").await
                })
            })
        }
    };
    let (proxy, stack) = Proxy::in_front(&[], rule).await;
    let (mut senders, _receivers) = (clients(&stack, "s", EVENTS).await, clients(&stack, "r", EVENTS).await);
    let ids = connection_ids(&stack).await;
    held.lock().unwrap().extend((0..EVENTS).map(|number| ids[&format!("r{number}")].clone()));
    let function = send_message(&proxy).await;
    for round in 0..3 {
        proxy.take();
        let events = (0..EVENTS).map(|number| {
            let event =
                direct_message(&ids[&format!("s{number}")], &format!("r{number}"), &format!("m{round}.{number}"));
            function.invoke(event)
        });
        for answer in join_all(events).await {
            assert_eq!(answer.unwrap()["statusCode"], 200);
        }
        for (number, sender) in senders.iter_mut().enumerate() {
            let ack = json!({"type": "ack", "id": format!("m{round}.{number}"), "delivered": 1});
            assert_eq!(sender.next().await, ack);
        }
        let posts = proxy.take_calls().into_iter().filter(|call| is_held(&held, call));
        assert_eq!(posts.map(|call| call.path).collect::<BTreeSet<_>>().len(), EVENTS, "one post to each receiver");
    }
    assert_eq!(function.most_at_once(), EVENTS);
}

#[tokio::test]
async fn a_fault_writes_the_lines_of_its_own_event_and_no_others() {
    let (held, all, release) = (Held::default(), Arc::new(Barrier::new(EVENTS)), watch::Sender::new(false));
    // The fault comes when all other events are in the middle of their posts, and these end after it.
    let rule = {
        let (held, release) = (held.clone(), release.clone());
        move |call: &Call| {
            let (all, mut released) = (all.clone(), release.subscribe());
            let is_poison = call.operation == "Query" && call.body.to_string().contains("poison");
            if is_poison {
                return Some(Box::pin(async move {
                    all.wait().await;
                    answer(400, "ValidationException", r#"{"message":"no"}"#).await
                }) as Answer);
            }
            is_held(&held, call).then(|| -> Answer {
                Box::pin(async move {
                    all.wait().await;
                    released.wait_for(|is_released| *is_released).await.unwrap();
                    answer(200, "", "").await
                })
            })
        }
    };
    let (proxy, stack) = Proxy::in_front(&[], rule).await;
    let _clients = (clients(&stack, "s", EVENTS).await, clients(&stack, "r", EVENTS - 1).await);
    let ids = connection_ids(&stack).await;
    held.lock().unwrap().extend((0..EVENTS - 1).map(|number| ids[&format!("r{number}")].clone()));
    let function = send_message(&proxy).await;
    let others = (0..EVENTS - 1).map(|number| {
        function.invoke(direct_message(&ids[&format!("s{number}")], &format!("r{number}"), "another event"))
    });
    let poison = direct_message(&ids[&format!("s{}", EVENTS - 1)], "poison", "the fault");
    let size = poison["body"].as_str().unwrap().len();
    let fault = async {
        let answer = function.invoke(poison).await;
        release.send_replace(true);
        answer
    };
    let (others, fault) = futures_util::future::join(join_all(others), fault).await;
    assert_eq!(fault.unwrap_err()["errorType"], "Store.Failed");
    assert!(others.iter().all(Result::is_ok), "{others:#?}");
    let log = function.whole_log().await;
    // The runtime repeats the error as a line of its own.
    let said = said(&log);
    assert_eq!(said[..2], [("a frame came".to_owned(), size.into()), ("failed".to_owned(), Value::Null)], "{log:#?}");
    assert_eq!(matching(&log, &["a frame came"]).len(), 1, "{log:#?}");
}

/// Events of `gather`. They wait for each other.
fn gathered(round: usize, does: &[(usize, &str)]) -> Vec<Value> {
    let does = |number| does.iter().find(|(one, _)| *one == number).map(|(_, does)| *does);
    let event = |number| json!({"name": format!("{round}.{number}"), "events": EVENTS, "do": does(number)});
    (0..EVENTS).map(event).collect()
}

#[tokio::test]
async fn a_panic_fails_its_own_event_and_the_process_still_serves_as_many_at_once() {
    let function = Environment::start("gather", &[AT_ONCE]).await;
    for round in 0..3 {
        let does = if round < 2 { &[(2, "panic"), (5, "fault")][..] } else { &[] };
        let answers = join_all(gathered(round, does).into_iter().map(|event| function.invoke(event))).await;
        for (number, answer) in answers.into_iter().enumerate() {
            match does.iter().find(|(one, _)| *one == number) {
                None => assert_eq!(answer, Ok(json!({"name": format!("{round}.{number}")}))),
                Some((_, "panic")) => {
                    let error = answer.unwrap_err();
                    assert!(error.to_string().contains("the event asked for a panic"), "{error}");
                }
                Some(_) => assert_eq!(answer.unwrap_err()["errorType"], "Event.Incomplete"),
            }
        }
    }
    let log = function.whole_log().await;
    let mut said: Vec<_> = said(&log).into_iter().filter(|(message, _)| message == "an event came").collect();
    said.sort_by_key(|(_, name)| name.to_string());
    let expected = ["0.2", "0.5", "1.2", "1.5"].map(|name| ("an event came".to_owned(), name.into()));
    assert_eq!(said, expected, "{log:#?}");
}

#[tokio::test]
async fn a_process_that_is_not_told_of_more_takes_one_event_at_a_time() {
    for variables in [&[][..], &[("AWS_LAMBDA_MAX_CONCURRENCY", "1")]] {
        let function = Environment::start("gather", variables).await;
        let events = (0..EVENTS).map(|number| function.invoke(json!({"name": format!("{number}")})));
        assert!(join_all(events).await.iter().all(Result::is_ok));
        assert_eq!(function.most_at_once(), 1, "{variables:?}");
    }
}

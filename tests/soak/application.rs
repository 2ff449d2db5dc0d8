//! An application on the Rust client. It must get each message of its topics once, in order, whatever happens to its
//! connection.
//!
//! The [`Subscriber`](super::subscriber::Subscriber) next to it judges the server: it reports each frame that breaks a promise. The
//! client heals what can be healed, so only what it tells its application can be judged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use switchboard_client::{Event, Options, Start, connect};
use switchboard_tests::stack::PATIENCE;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::history::History;

/// Each topic's messages, with their numbers, and what must not happen.
#[derive(Debug, Default)]
pub(crate) struct Application {
    pub(crate) user: String,
    pub(crate) applied: BTreeMap<String, Vec<(u64, String)>>,
    pub(crate) violations: Vec<String>,
    pub(crate) connections: usize,
}

impl Application {
    /// Lives until it has the newest message of each topic. It says of each topic when it hears that.
    pub(crate) async fn run(
        user: String,
        topics: impl IntoIterator<Item = String>,
        history: Arc<History>,
        ready: watch::Sender<usize>,
        newest: watch::Receiver<Option<BTreeMap<String, u64>>>,
    ) -> Self {
        let (max_delay, heartbeat) = (Duration::from_secs(1), Duration::from_secs(2));
        let options = Options { max_delay, heartbeat, refusals: u32::MAX, ..Options::default() };
        let (client, mut events) = connect(&format!("{}?userId={user}", history.url), options).unwrap();
        let mut listeners = JoinSet::new();
        for topic in topics {
            let mut subscription = client.topic(&topic).subscribe(Start::Now);
            let (ready, mut newest) = (ready.clone(), newest.clone());
            listeners.spawn(async move {
                subscription.ready().await.unwrap();
                ready.send_modify(|ready| *ready += 1);
                let mut applied: Vec<(u64, String)> = Vec::new();
                loop {
                    let has = applied.last().map_or(0, |(seq, _)| *seq);
                    let goal = newest.borrow().as_ref().map(|newest| newest.get(&topic).copied().unwrap_or_default());
                    if goal.is_some_and(|goal| has >= goal) {
                        return (topic, applied, None);
                    }
                    tokio::select! {
                        message = subscription.next() => {
                            let message = message.unwrap();
                            applied.push((message.position.as_ref().unwrap().seq, message.json().unwrap()));
                        }
                        _ = newest.changed() => {}
                        () = tokio::time::sleep(2 * PATIENCE), if goal.is_some() => {
                            let stuck = format!("{topic} ends with {has}, not with {goal:?}");
                            return (topic, applied, Some(stuck));
                        }
                    }
                }
            });
        }
        let mut application = Self { user, ..Self::default() };
        loop {
            // The time until an event that has no memory.
            let life = history.cut_every.map(|every| every.mul_f64(-(1.0 - fastrand::f64()).ln()));
            tokio::select! {
                listener = listeners.join_next() => match listener {
                    Some(listener) => {
                        let (topic, applied, stuck) = listener.unwrap();
                        application.applied.insert(topic, applied);
                        application.violations.extend(stuck);
                    }
                    None => return application,
                },
                Some(event) = events.next() => match event {
                    Event::Connecting { .. } | Event::Recovered { .. } | Event::Busy { .. } => {}
                    Event::Connected { .. } => application.connections += 1,
                    event => application.violations.push(format!("{}: {event:?}", application.user)),
                },
                () = tokio::time::sleep(life.unwrap_or(Duration::MAX)), if life.is_some() => client.reconnect(),
            }
        }
    }
}

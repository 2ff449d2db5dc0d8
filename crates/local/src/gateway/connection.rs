//! Connections, and the registry of the open ones.
//!
//! This module implements a part of "Manage connected users and client apps: $connect and $disconnect routes": a
//! connection is open from the moment that `$connect` accepts it, and it is gone before its `$disconnect` runs.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::id::Id;
use super::settings::{Behaviour, IdleCounts, Limits};

/// The most messages that wait until a client reads. A further post waits as well. The value is ours: AWS names none.
const OUTBOUND_QUEUE: usize = 16;

/// A connection. It exists from its handshake on.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: Id,
    pub(super) connected_at: Timestamp,
    pub(super) identity: Identity,
    /// The `Host` of the handshake.
    pub(super) domain_name: String,
    /// The context that the authorizer returned.
    pub(super) authorizer: Option<Context>,
    /// The time of the last message in either direction, in milliseconds since 1970.
    last_active_at: AtomicI64,
    /// The time when the idle timer started.
    idle_since: watch::Sender<Instant>,
    idle_counts: IdleCounts,
    outbound: mpsc::Sender<Bytes>,
}

/// `requestContext.identity`: the facts about the client that the handshake shows. They never change.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Identity {
    /// The value of the client's API key, if `$connect` requires one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) api_key: Option<String>,
    /// The id of that key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) api_key_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) user_agent: Option<String>,
    pub(super) source_ip: IpAddr,
}

/// `requestContext.authorizer` in every event of a connection: `principalId` and the authorizer's `context`, as text.
pub(super) type Context = BTreeMap<String, String>;

/// The receivers of a connection's channels: messages to the client, and the reason to close.
#[derive(Debug)]
pub(super) struct Mailbox {
    pub(super) outbound: mpsc::Receiver<Bytes>,
    pub(super) close: oneshot::Receiver<Close>,
}

/// The connections that are open.
#[derive(Debug, Default)]
pub(super) struct Registry {
    open: Mutex<HashMap<Id, Entry>>,
    /// The ids of the connections whose `$connect` is running.
    pending: watch::Sender<HashSet<Id>>,
}

/// A connection whose `$connect` is running. It counts as pending until this is dropped.
#[derive(Debug)]
pub(super) struct Pending<'a> {
    registry: &'a Registry,
    id: Id,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.registry.pending.send_modify(|pending| {
            pending.remove(&self.id);
        });
    }
}

#[derive(Debug)]
struct Entry {
    connection: Arc<Connection>,
    close: oneshot::Sender<Close>,
}

/// The code and the reason with which the gateway closes a connection.
///
/// The codes are documented. The only known reason is that of a deletion, and it is known only from `$disconnect`.
/// Inferred: the client sees the same text. The other reasons are inferred as well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Close {
    pub(super) code: u16,
    pub(super) reason: Cow<'static, str>,
}

impl Close {
    pub(super) const GOING_AWAY: Self = Self::new(1001, "Going away");
    pub(super) const PROTOCOL_ERROR: Self = Self::new(1002, "Protocol error");
    pub(super) const BINARY: Self = Self::new(1003, "Binary messages are not supported");
    pub(super) const INVALID_UTF8: Self = Self::new(1007, "Invalid UTF-8");
    /// This code is inferred as well.
    pub(super) const CORRUPT: Self = Self::new(1007, "Invalid compressed data");
    pub(super) const TOO_MANY_REQUESTS: Self = Self::new(1008, "Too many requests");
    pub(super) const TOO_BIG: Self = Self::new(1009, "Message too big");
    pub(super) const INTERNAL_ERROR: Self = Self::new(1011, "Internal server error");
    pub(super) const RESTART: Self = Self::new(1012, "Service restart");

    const fn new(code: u16, reason: &'static str) -> Self {
        Self { code, reason: Cow::Borrowed(reason) }
    }

    /// Returns the code and the reason for a `DELETE` of the management API.
    pub(super) fn deleted(behaviour: &Behaviour) -> Self {
        Self { code: 1000, reason: Cow::Owned(behaviour.delete_close_reason.clone()) }
    }
}

impl Connection {
    /// Makes a connection whose `$connect` has not run. It is not in the registry, so nobody can post to it.
    pub(super) fn new(
        source_ip: IpAddr,
        user_agent: Option<String>,
        domain_name: String,
        behaviour: &Behaviour,
    ) -> (Self, Outbound) {
        let connected_at = Timestamp::now();
        let (outbound, queue) = mpsc::channel(OUTBOUND_QUEUE);
        let connection = Self {
            id: Id::new(),
            connected_at,
            identity: Identity { api_key: None, api_key_id: None, user_agent, source_ip },
            domain_name,
            authorizer: None,
            last_active_at: AtomicI64::new(connected_at.as_millisecond()),
            idle_since: watch::Sender::new(Instant::now()),
            idle_counts: behaviour.idle_counts,
            outbound,
        };
        (connection, Outbound(queue))
    }

    /// Queues a text message to the client and waits while the queue is full. Returns `false` if the connection has
    /// closed.
    pub(super) async fn post(&self, payload: Bytes) -> bool {
        let queued = self.outbound.send(payload).await.is_ok();
        if queued {
            self.record_activity();
            if self.idle_counts == IdleCounts::Both {
                self.restart_idle_timer();
            }
        }
        queued
    }

    /// Returns the time of the last message in either direction.
    pub(super) fn last_active_at(&self) -> Timestamp {
        Timestamp::from_millisecond(self.last_active_at.load(Ordering::Relaxed)).unwrap_or(self.connected_at)
    }

    /// Resolves when the connection has been idle, or open, for too long. Both times start at the first poll.
    pub(super) async fn expired(&self, limits: &Limits) {
        self.restart_idle_timer();
        let end = Instant::now() + limits.connection_duration;
        loop {
            let deadline = end.min(*self.idle_since.borrow() + limits.idle_timeout);
            if deadline <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(deadline).await;
        }
    }

    /// Restarts the idle timer.
    pub(super) fn restart_idle_timer(&self) {
        self.idle_since.send_replace(Instant::now());
    }

    /// Records that a message passed now.
    pub(super) fn record_activity(&self) {
        self.last_active_at.fetch_max(Timestamp::now().as_millisecond(), Ordering::Relaxed);
    }
}

/// The messages to a client that are not written yet.
#[derive(Debug)]
pub(super) struct Outbound(mpsc::Receiver<Bytes>);

impl Registry {
    /// Registers the id of a connection whose `$connect` is about to run.
    pub(super) fn announce(&self, id: &Id) -> Pending<'_> {
        self.pending.send_modify(|pending| {
            pending.insert(id.clone());
        });
        Pending { registry: self, id: id.clone() }
    }

    /// Waits while the connection's `$connect` is running.
    pub(super) async fn wait_for_connect(&self, id: &Id) {
        // `wait_for` fails only when the sender is dropped, and `self` owns the sender.
        let _ = self.pending.subscribe().wait_for(|pending| !pending.contains(id)).await;
    }

    /// Opens a connection. Callers can post to it from now on.
    pub(super) fn insert(&self, connection: &Arc<Connection>, outbound: Outbound) -> Mailbox {
        let (close, closed) = oneshot::channel();
        self.lock().insert(connection.id.clone(), Entry { connection: connection.clone(), close });
        Mailbox { outbound: outbound.0, close: closed }
    }

    pub(super) fn get(&self, id: &Id) -> Option<Arc<Connection>> {
        self.lock().get(id).map(|entry| entry.connection.clone())
    }

    /// Returns all open connections.
    pub(super) fn all(&self) -> Vec<Arc<Connection>> {
        self.lock().values().map(|entry| entry.connection.clone()).collect()
    }

    /// Ends a connection with `close`. The registry has forgotten it when this returns. Returns `false` if the
    /// connection was not open.
    pub(super) fn close(&self, id: &Id, close: Close) -> bool {
        let entry = self.lock().remove(id);
        // A connection that no longer listens is already ending for another reason.
        entry.is_some_and(|entry| entry.close.send(close).is_ok())
    }

    pub(super) fn remove(&self, id: &Id) {
        self.lock().remove(id);
    }

    /// Locks the map. It ignores poison: a thread that panics cannot leave the map half changed.
    fn lock(&self) -> MutexGuard<'_, HashMap<Id, Entry>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::settings::Settings;
    use super::*;

    fn connection(settings: &Settings) -> (Arc<Connection>, Outbound) {
        let ip = IpAddr::from([127, 0, 0, 1]);
        let (connection, outbound) = Connection::new(ip, None, "localhost".to_owned(), &settings.behaviour);
        (Arc::new(connection), outbound)
    }

    /// Returns the lifetime of a connection on which `traffic` happens every nine minutes.
    async fn life(settings: &Settings, traffic: impl AsyncFn(&Connection)) -> Duration {
        let (connection, mut outbound) = connection(settings);
        let start = Instant::now();
        let traffic = async {
            loop {
                tokio::time::sleep(Duration::from_secs(9 * 60)).await;
                traffic(&connection).await;
                while outbound.0.try_recv().is_ok() {}
            }
        };
        tokio::select! {
            () = connection.expired(&settings.limits) => start.elapsed(),
            () = traffic => unreachable!(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_lives_ten_minutes_without_traffic_and_two_hours_with_it() {
        const MINUTE: Duration = Duration::from_secs(60);
        let settings = Settings::default();
        assert_eq!(life(&settings, async |_| {}).await, 10 * MINUTE);
        assert_eq!(life(&settings, async |connection| connection.restart_idle_timer()).await, 120 * MINUTE);
        let post = async |connection: &Connection| assert!(connection.post(Bytes::new()).await);
        assert_eq!(life(&settings, post).await, 120 * MINUTE);

        let mut inbound_only = Settings::default();
        inbound_only.behaviour.idle_counts = IdleCounts::Inbound;
        assert_eq!(life(&inbound_only, post).await, 10 * MINUTE);
    }

    #[tokio::test]
    async fn a_connection_leaves_the_registry_at_once_and_is_closed_only_once() {
        let registry = Registry::default();
        let (connection, outbound) = connection(&Settings::default());
        assert!(registry.get(&connection.id).is_none());
        let mailbox = registry.insert(&connection, outbound);
        assert!(registry.close(&connection.id, Close::RESTART));
        assert!(registry.get(&connection.id).is_none());
        assert!(!registry.close(&connection.id, Close::RESTART));
        assert_eq!(mailbox.close.await, Ok(Close::RESTART));
    }
}

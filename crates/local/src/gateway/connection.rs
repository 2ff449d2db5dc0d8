//! Connections, and the registry of those that are open.
//!
//! Implements "Manage connected users and client apps: $connect and $disconnect routes" as far as it says what a connection
//! is: it exists when its `$connect` has accepted it, and is gone before its `$disconnect` runs.

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
use super::knobs::{IdleCounts, Knobs, Limits};

/// Messages that wait for a client to read. A post to a connection beyond that waits too. Ours; AWS names no number.
const OUTBOUND_QUEUE: usize = 16;

/// A connection, from its handshake on.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: Id,
    pub(super) connected_at: Timestamp,
    pub(super) identity: Identity,
    /// The handshake's `Host`.
    pub(super) domain_name: String,
    /// What the authorizer said about the client.
    pub(super) authorizer: Option<Context>,
    /// The last message in either direction, in milliseconds since 1970.
    last_active_at: AtomicI64,
    /// When it was last not idle.
    stirred: watch::Sender<Instant>,
    idle_counts: IdleCounts,
    outbound: mpsc::Sender<Bytes>,
}

/// Who the client is, as far as the handshake tells; the same for the life of the connection.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Identity {
    /// Its value, when `$connect` asked for a key; and the key's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) api_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) api_key_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) user_agent: Option<String>,
    pub(super) source_ip: IpAddr,
}

/// `requestContext.authorizer` of every event of a connection: `principalId` and the authorizer's `context`, as text.
pub(super) type Context = BTreeMap<String, String>;

/// The connection's own ends of its channels: what is sent to the client, and why to close.
#[derive(Debug)]
pub(super) struct Mailbox {
    pub(super) outbound: mpsc::Receiver<Bytes>,
    pub(super) close: oneshot::Receiver<Close>,
}

/// The connections that are open.
#[derive(Debug, Default)]
pub(super) struct Registry {
    open: Mutex<HashMap<Id, Entry>>,
    /// Those whose `$connect` runs.
    pending: watch::Sender<HashSet<Id>>,
}

/// A connection whose `$connect` runs, as long as this exists.
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

/// Why the gateway closes a connection.
///
/// The codes are documented. Of the reasons only that of a deletion is known, and only as `$disconnect` shows it; that
/// the client sees the same text, and the other texts, are inferred.
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
    /// That the code is this one is inferred, too.
    pub(super) const CORRUPT: Self = Self::new(1007, "Invalid compressed data");
    pub(super) const TOO_MANY_REQUESTS: Self = Self::new(1008, "Too many requests");
    pub(super) const TOO_BIG: Self = Self::new(1009, "Message too big");
    pub(super) const INTERNAL_ERROR: Self = Self::new(1011, "Internal server error");
    pub(super) const RESTART: Self = Self::new(1012, "Service restart");

    const fn new(code: u16, reason: &'static str) -> Self {
        Self { code, reason: Cow::Borrowed(reason) }
    }

    /// By `DELETE` of the management API.
    pub(super) fn deleted(knobs: &Knobs) -> Self {
        Self { code: 1000, reason: Cow::Owned(knobs.delete_close_reason.clone()) }
    }
}

impl Connection {
    /// A connection whose `$connect` is still to run: in no registry, so there is nothing to post to.
    pub(super) fn new(
        source_ip: IpAddr,
        user_agent: Option<String>,
        domain_name: String,
        knobs: &Knobs,
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
            stirred: watch::Sender::new(Instant::now()),
            idle_counts: knobs.idle_counts,
            outbound,
        };
        (connection, Outbound(queue))
    }

    /// Queues a text message to the client, and waits while the queue is full. `false` when the connection has closed.
    pub(super) async fn post(&self, payload: Bytes) -> bool {
        let queued = self.outbound.send(payload).await.is_ok();
        if queued {
            self.touch();
            if self.idle_counts == IdleCounts::Both {
                self.stir();
            }
        }
        queued
    }

    /// When the last message passed, in either direction.
    pub(super) fn last_active_at(&self) -> Timestamp {
        Timestamp::from_millisecond(self.last_active_at.load(Ordering::Relaxed)).unwrap_or(self.connected_at)
    }

    /// Resolves when the connection has been idle, or open, for too long. It is open from the first poll on.
    pub(super) async fn expired(&self, limits: &Limits) {
        self.stir();
        let end = Instant::now() + limits.connection_duration;
        loop {
            let deadline = end.min(*self.stirred.borrow() + limits.idle_timeout);
            if deadline <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(deadline).await;
        }
    }

    pub(super) fn stir(&self) {
        self.stirred.send_replace(Instant::now());
    }

    pub(super) fn touch(&self) {
        self.last_active_at.fetch_max(Timestamp::now().as_millisecond(), Ordering::Relaxed);
    }
}

/// The messages to a client that have not been written yet.
#[derive(Debug)]
pub(super) struct Outbound(mpsc::Receiver<Bytes>);

impl Registry {
    /// Makes the id of a connection known before there is anything to post to.
    pub(super) fn announce(&self, id: &Id) -> Pending<'_> {
        self.pending.send_modify(|pending| {
            pending.insert(id.clone());
        });
        Pending { registry: self, id: id.clone() }
    }

    /// Waits while the connection's `$connect` runs.
    pub(super) async fn settled(&self, id: &Id) {
        // An error would mean that the registry is gone, and it is borrowed here.
        let _ = self.pending.subscribe().wait_for(|pending| !pending.contains(id)).await;
    }

    /// Opens a connection: from here on it can be posted to.
    pub(super) fn insert(&self, connection: &Arc<Connection>, outbound: Outbound) -> Mailbox {
        let (close, closed) = oneshot::channel();
        self.lock().insert(connection.id.clone(), Entry { connection: connection.clone(), close });
        Mailbox { outbound: outbound.0, close: closed }
    }

    pub(super) fn get(&self, id: &Id) -> Option<Arc<Connection>> {
        self.lock().get(id).map(|entry| entry.connection.clone())
    }

    /// Makes a connection end as `close` says. It is no longer open when this returns; `false` when it was not before.
    pub(super) fn close(&self, id: &Id, close: Close) -> bool {
        let entry = self.lock().remove(id);
        // A connection that no longer listens is ending for a reason of its own.
        entry.is_some_and(|entry| entry.close.send(close).is_ok())
    }

    pub(super) fn remove(&self, id: &Id) {
        self.lock().remove(id);
    }

    /// A panic cannot leave the map half changed, so a poisoned lock is as good as any.
    fn lock(&self) -> MutexGuard<'_, HashMap<Id, Entry>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Settings;
    use super::*;

    fn connection(settings: &Settings) -> (Arc<Connection>, Outbound) {
        let ip = IpAddr::from([127, 0, 0, 1]);
        let (connection, outbound) = Connection::new(ip, None, "localhost".to_owned(), &settings.knobs);
        (Arc::new(connection), outbound)
    }

    /// How long a connection lives in which `traffic` happens every nine minutes.
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
        assert_eq!(life(&settings, async |connection| connection.stir()).await, 120 * MINUTE);
        let post = async |connection: &Connection| assert!(connection.post(Bytes::new()).await);
        assert_eq!(life(&settings, post).await, 120 * MINUTE);

        let mut inbound_only = Settings::default();
        inbound_only.knobs.idle_counts = IdleCounts::Inbound;
        assert_eq!(life(&inbound_only, post).await, 10 * MINUTE);
    }

    #[tokio::test]
    async fn a_closed_registry_entry_is_gone_at_once_and_only_once() {
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

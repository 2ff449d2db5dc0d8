//! What the inspector shows of the gateway and does with it.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::connection::Close;
use super::id::Id;
use super::message;
use super::state::Gateway;

/// An open connection.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OpenConnection {
    id: String,
    /// Milliseconds since 1970.
    connected_at: i64,
}

/// The reason why a frame is not sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    /// The connection has closed or has never existed.
    #[error("The connection is not open.")]
    NotOpen,
    /// A client could not send it either.
    #[error("A message has at most {0} bytes.")]
    TooLong(usize),
}

impl Gateway {
    /// Returns the functions by route key.
    pub(crate) fn routes(&self) -> &BTreeMap<String, String> {
        &self.api.routes
    }

    /// Returns how many connections are open, and the newest ones.
    pub(crate) fn open_connections(&self, most: usize) -> (usize, Vec<OpenConnection>) {
        let mut open = self.connections.all();
        open.sort_by_key(|connection| Reverse(connection.connected_at));
        let newest = open.iter().take(most).map(|connection| OpenConnection {
            id: connection.id.to_string(),
            connected_at: connection.connected_at.as_millisecond(),
        });
        (open.len(), newest.collect())
    }

    /// Closes a connection as after two hours. Returns `false` if it is not open.
    pub(crate) fn close(&self, id: &str) -> bool {
        Id::parse(id).is_some_and(|id| self.connections.close(&id, Close::GOING_AWAY))
    }

    /// Handles a message as if the client of this connection had sent it.
    pub(crate) fn send(self: &Arc<Self>, id: &str, text: String) -> Result<(), SendError> {
        let connection = Id::parse(id).and_then(|id| self.connections.get(&id)).ok_or(SendError::NotOpen)?;
        let limit = self.settings.limits.message_limit;
        if text.len() > limit {
            return Err(SendError::TooLong(limit));
        }
        connection.record_activity();
        connection.restart_idle_timer();
        self.spawn(message::route(self.clone(), connection, text.into(), None));
        Ok(())
    }
}

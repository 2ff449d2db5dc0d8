//! Compression with permessage-deflate: the negotiation, the writer and the reader.
//!
//! This module implements RFC 7692, "Compression Extensions for WebSocket", for `--deflate negotiate`. One recording
//! shows that API Gateway accepts it (python-websockets/websockets, issue 1065). The offer
//! `permessage-deflate; server_max_window_bits=12; client_max_window_bits=12` was answered with
//! `permessage-deflate;server_max_window_bits=12`. We infer that an offer with a larger window, or without one, has the
//! same answer. Everything after the handshake is inferred as well.
//!
//! As in the recording, the answer says nothing about the client's side. So a client may use a window of 32 KiB and
//! refer to earlier messages. Between two messages the gateway keeps only the text that the next message may refer
//! to. It does not keep the compressor, whose state takes a quarter of a megabyte.
//!
//! The rest of the gateway uses [`Negotiated`] in a handshake, [`Transport`] instead of TCP, [`Deflater`] before it cuts a
//! message into frames, and [`is_corrupt`] to choose a close code. Without compression a connection has no deflater, and
//! its transport passes every byte on.

mod deflater;
mod inflater;
mod negotiation;
#[cfg(test)]
mod tests;
mod transport;

pub(super) use self::deflater::Deflater;
pub(super) use self::inflater::is_corrupt;
pub(super) use self::negotiation::Negotiated;
pub(super) use self::transport::Transport;

/// The bytes at the end of a flush. A message is sent without them (RFC 7692, section 7.2.1).
const FLUSHED: [u8; 4] = [0x00, 0x00, 0xff, 0xff];

/// The most bytes that are read from TCP, or inflated, at a time. The value is ours.
const CHUNK: usize = 4096;

/// The last bytes of the messages in one direction. Later messages may refer to them.
#[derive(Debug)]
struct History {
    text: Vec<u8>,
    window: usize,
}

impl History {
    fn new(window: usize) -> Self {
        Self { text: Vec::new(), window }
    }

    fn push(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(self.window)..];
        let excess = (self.text.len() + bytes.len()).saturating_sub(self.window);
        self.text.drain(..excess);
        // Without this, the vector could grow to twice the window.
        if self.text.capacity() - self.text.len() < bytes.len() {
            let room = self.window - self.text.len();
            self.text.reserve_exact(room.min(bytes.len().next_multiple_of(CHUNK)));
        }
        self.text.extend_from_slice(bytes);
    }
}

/// Returns the growth of a byte counter in one call. The number fits, because the bytes are in memory.
fn since(before: u64, now: u64) -> usize {
    usize::try_from(now - before).unwrap_or(usize::MAX)
}

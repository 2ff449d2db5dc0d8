//! The compression of messages to a client.

use bytes::Bytes;
use flate2::{Compress, Compression, FlushCompress};

use super::negotiation::Negotiated;
use super::{CHUNK, FLUSHED, History, since};

/// Compresses the messages to a client.
#[derive(Debug)]
pub(in crate::gateway) struct Deflater {
    negotiated: Negotiated,
    pub(super) history: History,
}

impl Deflater {
    pub(in crate::gateway) fn new(negotiated: Negotiated) -> Self {
        let window = if negotiated.takes_over { 1 << negotiated.window_bits } else { 0 };
        Self { negotiated, history: History::new(window) }
    }

    /// Compresses a message, even if that makes it longer. The caller cuts the result into frames.
    pub(in crate::gateway) fn message(&mut self, payload: &[u8]) -> Bytes {
        const WORKS: &str = "a raw stream takes any dictionary before its first byte, and any bytes after that";

        let mut deflate = Compress::new_with_window_bits(Compression::default(), false, self.negotiated.window_bits);
        if !self.history.text.is_empty() {
            deflate.set_dictionary(&self.history.text).expect(WORKS);
        }
        let mut compressed = Vec::new();
        let mut rest = payload;
        // A flush is complete when it does not fill the buffer.
        while compressed.len() == compressed.capacity() {
            compressed.reserve(CHUNK.max(compressed.len()));
            let before = deflate.total_in();
            deflate.compress_vec(rest, &mut compressed, FlushCompress::Sync).expect(WORKS);
            rest = &rest[since(before, deflate.total_in())..];
        }
        self.history.push(payload);
        debug_assert!(compressed.ends_with(&FLUSHED));
        compressed.truncate(compressed.len() - FLUSHED.len());
        compressed.into()
    }
}

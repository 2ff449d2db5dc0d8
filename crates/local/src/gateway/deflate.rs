//! Compression with permessage-deflate: the negotiation, the writer and the reader.
//!
//! This module implements RFC 7692, "Compression Extensions for WebSocket", for `--deflate negotiate`. One recording
//! shows that API Gateway accepts it (python-websockets/websockets, issue 1065). The offer `permessage-deflate;
//! server_max_window_bits=12; client_max_window_bits=12` was answered with
//! `permessage-deflate;server_max_window_bits=12`. Inferred: an offer with a larger window, or without one, has the
//! same answer. Everything after the handshake is inferred as well.
//!
//! As in the recording, the answer says nothing about the client's side. So a client may use a window of 32 KiB and
//! refer to earlier messages. Between two messages only the text is kept that the next message may refer to. The state
//! of a compressor would take a quarter of a megabyte.

use std::fmt;
use std::io::{self, Cursor, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use http::header::SEC_WEBSOCKET_EXTENSIONS;
use http::{HeaderMap, HeaderValue};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

/// The base-2 logarithm of the gateway's window, unless a client asks for a smaller one.
const WINDOW_BITS: u8 = 12;

/// The smallest window of the compressor. RFC 7692 also allows 8.
const LEAST_WINDOW_BITS: u8 = 9;

/// The window of a client. It is the largest one, because the answer does not limit it.
const CLIENT_WINDOW: usize = 1 << 15;

/// The bytes at the end of a flush. A message is sent without them (RFC 7692, section 7.2.1).
const FLUSHED: [u8; 4] = [0x00, 0x00, 0xff, 0xff];

/// An empty block that is marked as the last one.
const LAST_BLOCK: [u8; 5] = [0x01, 0x00, 0x00, 0xff, 0xff];

/// The most bytes that are read from TCP, or inflated, at a time. The value is ours.
const CHUNK: usize = 4096;

/// The parameters of an accepted offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Negotiated {
    /// The base-2 logarithm of the gateway's window.
    window_bits: u8,
    /// Whether a message of the gateway may refer to earlier messages.
    takes_over: bool,
}

impl Negotiated {
    /// Accepts the first valid offer of a handshake and ignores all other offers.
    pub(super) fn from_offers(headers: &HeaderMap) -> Option<Self> {
        let values = headers.get_all(SEC_WEBSOCKET_EXTENSIONS).into_iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).find_map(Self::accept)
    }

    /// Accepts one offer. Returns `None` if it is malformed or cannot be met.
    fn accept(offer: &str) -> Option<Self> {
        let mut parts = offer.split(';').map(str::trim);
        if parts.next() != Some("permessage-deflate") {
            return None;
        }
        let mut negotiated = Self { window_bits: WINDOW_BITS, takes_over: true };
        let mut seen = Vec::new();
        for part in parts {
            let (name, value) = match part.split_once('=') {
                Some((name, value)) => (name.trim(), Some(window_bits(value.trim())?)),
                None => (part, None),
            };
            if seen.contains(&name) {
                return None;
            }
            seen.push(name);
            match (name, value) {
                ("server_max_window_bits", Some(bits)) if bits >= LEAST_WINDOW_BITS => {
                    negotiated.window_bits = bits.min(WINDOW_BITS);
                }
                ("server_no_context_takeover", None) => negotiated.takes_over = false,
                ("client_max_window_bits", _) | ("client_no_context_takeover", None) => {}
                _ => return None,
            }
        }
        Some(negotiated)
    }

    /// Returns the value of `Sec-WebSocket-Extensions` in the 101, with the spaces of the recording.
    pub(super) fn answer(self) -> HeaderValue {
        let takeover = if self.takes_over { "" } else { ";server_no_context_takeover" };
        let answer = format!("permessage-deflate;server_max_window_bits={}{takeover}", self.window_bits);
        HeaderValue::try_from(answer).expect("a number and names are a header value")
    }
}

/// Reads the value of a parameter. It is a number from 8 to 15 without leading zeros, and may be in quotation marks.
fn window_bits(value: &str) -> Option<u8> {
    let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
    (8..=15).find(|bits: &u8| bits.to_string() == value)
}

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

    fn push(&mut self, said: &[u8]) {
        let said = &said[said.len().saturating_sub(self.window)..];
        let excess = (self.text.len() + said.len()).saturating_sub(self.window);
        self.text.drain(..excess);
        // Without this, the vector could grow to twice the window.
        if self.text.capacity() - self.text.len() < said.len() {
            let room = self.window - self.text.len();
            self.text.reserve_exact(room.min(said.len().next_multiple_of(CHUNK)));
        }
        self.text.extend_from_slice(said);
    }
}

/// Compresses the messages to a client.
#[derive(Debug)]
pub(super) struct Deflater {
    negotiated: Negotiated,
    history: History,
}

impl Deflater {
    pub(super) fn new(negotiated: Negotiated) -> Self {
        let window = if negotiated.takes_over { 1 << negotiated.window_bits } else { 0 };
        Self { negotiated, history: History::new(window) }
    }

    /// Compresses a message, even if that makes it longer. The caller cuts the result into frames.
    pub(super) fn message(&mut self, payload: &[u8]) -> Bytes {
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

/// Returns the growth of a byte counter in one call. The number fits, because the bytes are in memory.
fn since(before: u64, now: u64) -> usize {
    usize::try_from(now - before).unwrap_or(usize::MAX)
}

/// The error for data from a client that cannot be inflated.
#[derive(Debug)]
struct Corrupt;

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the client sent invalid compressed data")
    }
}

impl std::error::Error for Corrupt {}

/// Returns whether a read from an [`Inflating`] failed because of the client's data.
pub(super) fn is_corrupt(error: &io::Error) -> bool {
    error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<Corrupt>)
}

/// A stream from a client that looks as if the client did not compress.
///
/// A compressed message becomes an empty first frame and continuations of at most [`CHUNK`] bytes. It is inflated only
/// as fast as the continuations are read.
///
/// All other bytes pass unchanged, so that the reader can refuse mistakes: uncompressed and control frames, RSV1 in a
/// frame that must not have it, and frames above the limit.
#[derive(Debug)]
pub(super) struct Inflating<S> {
    tcp: S,
    /// The most bytes of a frame, as the client sends it.
    frame_limit: usize,
    /// The bytes that have been read and not parsed.
    input: BytesMut,
    position: Position,
    /// The compressed message that is not complete, with the bytes that are not inflated yet.
    message: Option<(Decompress, BytesMut)>,
    history: History,
    /// The frames for the reader.
    output: BytesMut,
}

/// The place in the client's frames where the input begins.
#[derive(Debug, Clone, Copy)]
enum Position {
    /// At a header.
    Header,
    /// In a frame that passes unchanged. The number is the bytes of it that are still to come, header included.
    Whole(u64),
    /// In the payload of a frame that is inflated.
    Compressed { rest: u64, mask: [u8; 4], is_final: bool },
    /// After a compressed message. Its last bytes are not inflated yet.
    Last,
}

impl<S> Inflating<S> {
    pub(super) fn new(tcp: S, frame_limit: usize) -> Self {
        Self {
            tcp,
            frame_limit,
            input: BytesMut::new(),
            position: Position::Header,
            message: None,
            history: History::new(CLIENT_WINDOW),
            output: BytesMut::new(),
        }
    }

    /// Returns TCP itself. Bytes that were read and not passed on are lost.
    pub(super) fn into_inner(self) -> S {
        self.tcp
    }

    /// Processes the input. Returns `false` if it needs more bytes.
    fn advance(&mut self) -> io::Result<bool> {
        if matches!(self.position, Position::Compressed { .. } | Position::Last) && self.inflate()? {
            return Ok(true);
        }
        match &mut self.position {
            Position::Whole(0) => self.position = Position::Header,
            Position::Header => return Ok(self.header()),
            // `poll_read` copies these bytes to the reader.
            Position::Whole(_) => return Ok(false),
            Position::Compressed { rest: 0, is_final, .. } => {
                if !*is_final {
                    self.position = Position::Header;
                } else if let Some((_, compressed)) = &mut self.message {
                    // A complete message ends at the end of a block, so one more block can follow it.
                    compressed.extend_from_slice(&FLUSHED);
                    compressed.extend_from_slice(&LAST_BLOCK);
                    self.position = Position::Last;
                }
            }
            Position::Compressed { rest, mask, .. } => {
                let count = self.input.len().min(usize::try_from(*rest).unwrap_or(usize::MAX));
                if count == 0 {
                    return Ok(false);
                }
                let payload = self.input.split_to(count);
                *rest -= count as u64;
                if let Some((_, compressed)) = &mut self.message {
                    compressed.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
                }
                mask.rotate_left(count % 4);
            }
            // The last block ends every complete message, so this one was not complete.
            Position::Last => return Err(corrupt()),
        }
        Ok(true)
    }

    /// Parses a header. Returns `false` if it needs more bytes.
    fn header(&mut self) -> bool {
        let mut cursor = Cursor::new(&self.input);
        let (header, length) = match FrameHeader::parse(&mut cursor) {
            Ok(Some(parsed)) => parsed,
            Ok(None) => return false,
            // The start of the next frame is unknown, and nobody needs it: the reader fails at this header as well.
            Err(_) => {
                self.position = Position::Whole(u64::MAX);
                return true;
            }
        };
        let header_length = cursor.position();
        let is_begin = header.rsv1 && matches!(header.opcode, OpCode::Data(Data::Text | Data::Binary));
        let is_continuation = !header.rsv1 && header.opcode == OpCode::Data(Data::Continue);
        let is_compressed = if self.message.is_some() { is_continuation } else { is_begin };
        let fits = usize::try_from(length).is_ok_and(|length| length <= self.frame_limit);
        let mask = header.mask.filter(|_| is_compressed && fits && !header.rsv2 && !header.rsv3);
        let Some(mask) = mask else {
            self.position = Position::Whole(header_length.saturating_add(length));
            return true;
        };
        self.position = Position::Compressed { rest: length, mask, is_final: header.is_final };
        self.input.advance(usize::try_from(header_length).unwrap_or(usize::MAX));
        if is_begin {
            self.message = Some((self.inflater(), BytesMut::new()));
            self.push_frame(header.opcode, false, &[]);
        }
        true
    }

    fn inflater(&self) -> Decompress {
        let mut inflate = Decompress::new(false);
        if !self.history.text.is_empty() {
            inflate.set_dictionary(&self.history.text).expect("a raw stream takes any dictionary");
        }
        inflate
    }

    /// Inflates a chunk of the message. Returns `false` if it needs more bytes.
    fn inflate(&mut self) -> io::Result<bool> {
        let Some((inflate, compressed)) = &mut self.message else { return Ok(false) };
        let mut chunk = [0; CHUNK];
        let chunk = &mut chunk[..CHUNK.min(self.frame_limit.max(1))];
        let (read, written) = (inflate.total_in(), inflate.total_out());
        let status = inflate.decompress(compressed, chunk, FlushDecompress::Sync).map_err(|_| corrupt())?;
        let (read, written) = (since(read, inflate.total_in()), since(written, inflate.total_out()));
        compressed.advance(read);
        let is_done = compressed.is_empty();
        if status == Status::StreamEnd {
            // A client may mark any block as the last one (section 7.2.3.4). Later blocks do not refer to earlier ones.
            inflate.reset(false);
        } else if read == 0 && written == 0 {
            return if is_done { Ok(false) } else { Err(corrupt()) };
        }
        let chunk = &chunk[..written];
        self.history.push(chunk);
        let is_final = is_done && status == Status::StreamEnd && matches!(self.position, Position::Last);
        if is_final {
            self.message = None;
            self.position = Position::Header;
        }
        if is_final || !chunk.is_empty() {
            self.push_frame(OpCode::Data(Data::Continue), is_final, chunk);
        }
        Ok(true)
    }

    /// Adds a frame to the output. Its mask is zero, because the reader refuses a frame without a mask.
    fn push_frame(&mut self, opcode: OpCode, is_final: bool, payload: &[u8]) {
        let header = FrameHeader { is_final, opcode, mask: Some([0; 4]), ..FrameHeader::default() };
        let formatted = header.format(payload.len() as u64, &mut (&mut self.output).writer());
        formatted.expect("a write to memory does not fail");
        self.output.extend_from_slice(payload);
    }
}

fn corrupt() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, Corrupt)
}

impl<S: AsyncRead + Unpin> AsyncRead for Inflating<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if !this.output.is_empty() {
                let count = this.output.len().min(buffer.remaining());
                buffer.put_slice(&this.output.split_to(count));
                return Poll::Ready(Ok(()));
            }
            if let Position::Whole(rest @ 1..) = &mut this.position
                && !this.input.is_empty()
            {
                let count = this.input.len().min(buffer.remaining());
                let count = count.min(usize::try_from(*rest).unwrap_or(usize::MAX));
                buffer.put_slice(&this.input.split_to(count));
                *rest -= count as u64;
                return Poll::Ready(Ok(()));
            }
            if !this.advance()? {
                let mut bytes = [0; CHUNK];
                let mut read = ReadBuf::new(&mut bytes);
                ready!(Pin::new(&mut this.tcp).poll_read(cx, &mut read))?;
                if read.filled().is_empty() {
                    return Poll::Ready(Ok(()));
                }
                this.input.extend_from_slice(read.filled());
            }
        }
    }
}

/// Writes pass unchanged, because [`Deflater`] has compressed the messages.
impl<S: AsyncWrite + Unpin> AsyncWrite for Inflating<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::Index;
    use tokio::io::AsyncReadExt;

    use super::*;

    const RSV1: u8 = 0x40;
    const TEXT: u8 = 0x1;
    const CONTINUATION: u8 = 0x0;
    const PING: u8 = 0x9;

    fn negotiated(offers: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for offer in offers {
            headers.append(SEC_WEBSOCKET_EXTENSIONS, HeaderValue::from_str(offer).unwrap());
        }
        Negotiated::from_offers(&headers).map(|negotiated| negotiated.answer().to_str().unwrap().to_owned())
    }

    #[test]
    fn the_recorded_offer_has_the_recorded_answer() {
        let answer = negotiated(&["permessage-deflate; server_max_window_bits=12; client_max_window_bits=12"]);
        assert_eq!(answer.as_deref(), Some("permessage-deflate;server_max_window_bits=12"));
    }

    #[test]
    fn the_first_valid_offer_is_accepted() {
        const TWELVE: &str = "permessage-deflate;server_max_window_bits=12";
        const NINE: &str = "permessage-deflate;server_max_window_bits=9";
        const FRESH: &str = "permessage-deflate;server_max_window_bits=12;server_no_context_takeover";
        for (offer, answer) in [
            ("permessage-deflate", Some(TWELVE)),
            ("permessage-deflate; client_max_window_bits", Some(TWELVE)),
            ("permessage-deflate;client_max_window_bits=8;client_no_context_takeover", Some(TWELVE)),
            ("permessage-deflate; server_max_window_bits=15", Some(TWELVE)),
            ("permessage-deflate; server_max_window_bits=9", Some(NINE)),
            ("permessage-deflate ;\tserver_max_window_bits = \"9\"", Some(NINE)),
            ("permessage-deflate; server_no_context_takeover", Some(FRESH)),
            ("x-webkit-deflate-frame, permessage-deflate", Some(TWELVE)),
            ("permessage-deflate; server_max_window_bits=8, permessage-deflate", Some(TWELVE)),
            ("permessage-deflate; server_max_window_bits=9, permessage-deflate", Some(NINE)),
            ("", None),
            (",;=,", None),
            ("permessage-deflat", None),
            ("permessage-deflate;", None),
            ("permessage-deflate; server_max_window_bits=8", None),
            ("permessage-deflate; server_max_window_bits=16", None),
            ("permessage-deflate; server_max_window_bits=09", None),
            ("permessage-deflate; server_max_window_bits=+9", None),
            ("permessage-deflate; server_max_window_bits=\"9", None),
            ("permessage-deflate; server_max_window_bits=", None),
            ("permessage-deflate; server_max_window_bits", None),
            ("permessage-deflate; server_max_window_bits=9; server_max_window_bits=9", None),
            ("permessage-deflate; server_no_context_takeover=10", None),
            ("permessage-deflate; client_no_context_takeover=10", None),
            ("permessage-deflate; client_max_window_bits=7", None),
            ("permessage-deflate; client_max_window_bits; client_max_window_bits", None),
            ("permessage-deflate; unknown", None),
            ("permessage-deflate; unknown=10", None),
        ] {
            assert_eq!(negotiated(&[offer]).as_deref(), answer, "{offer}");
        }
        assert_eq!(negotiated(&[]), None);
        let offers = ["permessage-deflate; unknown", "permessage-deflate; server_max_window_bits=9"];
        assert_eq!(negotiated(&offers).as_deref(), Some(NINE));
    }

    /// A client that inflates messages: with one decompressor for all of them, or with a new one for each.
    struct Receiver {
        inflate: Decompress,
        takes_over: bool,
    }

    impl Receiver {
        fn new(takes_over: bool) -> Self {
            Self { inflate: Decompress::new(false), takes_over }
        }

        fn receives(&mut self, compressed: &[u8], message: &[u8]) -> bool {
            if !self.takes_over {
                self.inflate = Decompress::new(false);
            }
            let compressed = [compressed, &FLUSHED].concat();
            let mut inflated = Vec::with_capacity(message.len() + 1);
            let before = self.inflate.total_in();
            self.inflate.decompress_vec(&compressed, &mut inflated, FlushDecompress::Sync).unwrap();
            since(before, self.inflate.total_in()) == compressed.len() && inflated == message
        }
    }

    #[test]
    fn a_message_refers_to_earlier_ones_only_if_that_is_agreed() {
        let message = b"nothing in this sentence is said twice".repeat(10);
        for (takes_over, gets_shorter) in [(true, true), (false, false)] {
            let negotiated = Negotiated { window_bits: 12, takes_over };
            let (mut deflater, mut receiver) = (Deflater::new(negotiated), Receiver::new(takes_over));
            let lengths = [(); 3].map(|()| {
                let compressed = deflater.message(&message);
                assert!(receiver.receives(&compressed, &message));
                compressed.len()
            });
            assert_eq!(lengths[1] < lengths[0], gets_shorter, "{lengths:?}");
            assert_eq!(deflater.message(b"").as_ref(), b"\0");
        }
    }

    #[test]
    fn messages_refer_only_to_the_window() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut noise = |length| -> Vec<u8> { std::iter::repeat_with(|| random.u8(..)).take(length).collect() };
        for (window_bits, length, is_seen) in [(9, 200, true), (9, 513, false), (12, 3500, true), (12, 4097, false)] {
            let block = noise(length);
            let mut deflater = Deflater::new(Negotiated { window_bits, takes_over: true });
            // The block is repeated in the same message and in the next one.
            for _ in 0..2 {
                let compressed = deflater.message(&block.repeat(20)).len();
                assert_eq!(compressed < 10 * length, is_seen, "{window_bits} {length} {compressed}");
            }
        }
    }

    #[test]
    fn only_the_window_is_kept() {
        let mut deflater = Deflater::new(Negotiated { window_bits: 9, takes_over: true });
        for length in [0, 1, 511, 512, 513, 100_000] {
            deflater.message(&vec![b'x'; length]);
            assert!(deflater.history.text.capacity() <= 512);
        }
        let mut history = History::new(4);
        for (said, kept) in [("", ""), ("ab", "ab"), ("cde", "bcde"), ("fghij", "ghij"), ("", "ghij"), ("k", "hijk")] {
            history.push(said.as_bytes());
            assert_eq!(history.text, kept.as_bytes());
        }
    }

    /// Makes payloads that repeat themselves, that do not, and that are longer than any buffer.
    fn payload() -> impl Strategy<Value = Vec<u8>> {
        let repeated = |bytes: std::ops::Range<usize>, times: std::ops::Range<usize>| {
            (prop::collection::vec(any::<u8>(), bytes), times).prop_map(|(bytes, times)| bytes.repeat(times))
        };
        prop_oneof![repeated(0..40, 1..3), repeated(1..6000, 1..30), repeated(0..70_000, 1..2)]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_message_to_a_client_arrives(
            messages in prop::collection::vec(payload(), 1..5), window_bits in 9_u8..=12, takes_over: bool,
        ) {
            let negotiated = Negotiated { window_bits, takes_over };
            let (mut deflater, mut receiver) = (Deflater::new(negotiated), Receiver::new(takes_over));
            for message in messages {
                prop_assert!(receiver.receives(&deflater.message(&message), &message));
            }
        }

        #[test]
        fn every_message_from_a_client_arrives(
            messages in prop::collection::vec((payload(), any::<Vec<Index>>(), any::<bool>()), 1..5),
            level in 0_u32..=9, takes_over: bool, mask: [u8; 4], pace in 1_usize..5000, frame_limit in 1_usize..10_000,
        ) {
            let mut sender = Compress::new(Compression::new(level), false);
            let (mut wire, mut expected) = (Vec::new(), Vec::new());
            for (message, cuts, is_compressed) in &messages {
                if !takes_over {
                    sender = Compress::new(Compression::new(level), false);
                }
                let payload = if *is_compressed { sent(&mut sender, message) } else { message.clone() };
                let rsv1 = if *is_compressed { RSV1 } else { 0 };
                wire.extend(fragments(&payload, cuts, rsv1 | TEXT, mask, frame_limit));
                expected.push(message.clone());
            }
            let frames = read(&wire, pace, frame_limit).unwrap();
            prop_assert!(frames.iter().all(|(_, payload)| payload.len() <= frame_limit));
            prop_assert!(joined(&frames) == expected);
        }

        #[test]
        fn no_bytes_of_a_client_do_harm(mut bytes: Vec<u8>, payload: Vec<u8>, pace in 1_usize..100) {
            let _ = read(&bytes, pace, 1000);
            bytes.splice(..0, masked(RSV1 | TEXT, &payload, [0; 4]));
            let _ = read(&bytes, pace, 1000);
        }
    }

    /// Compresses a message as a client does.
    fn sent(deflate: &mut Compress, message: &[u8]) -> Vec<u8> {
        // A second flush without data writes nothing.
        if message.is_empty() {
            return vec![0];
        }
        let mut compressed = Vec::with_capacity(2 * message.len() + 100);
        let status = deflate.compress_vec(message, &mut compressed, FlushCompress::Sync).unwrap();
        assert!(status == Status::Ok && compressed.len() < compressed.capacity());
        assert_eq!(compressed.split_off(compressed.len() - 4), FLUSHED);
        compressed
    }

    /// Makes a client's frame. `first` is its first byte without FIN, and FIN is always set.
    fn masked(first: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
        let header = FrameHeader { opcode: OpCode::from(first & 0xf), mask: Some(mask), ..FrameHeader::default() };
        let mut frame = Vec::new();
        header.format(payload.len() as u64, &mut frame).unwrap();
        frame[0] |= first;
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        frame
    }

    /// Cuts a message into frames of at most `limit` bytes, also at `cuts`, with a ping after every frame.
    fn fragments(payload: &[u8], cuts: &[Index], first: u8, mask: [u8; 4], limit: usize) -> Vec<u8> {
        let mut ends: Vec<_> = cuts.iter().map(|cut| cut.index(payload.len() + 1)).collect();
        ends.extend((0..payload.len()).step_by(limit));
        ends.push(payload.len());
        ends.sort_unstable();
        let (mut wire, mut begin) = (Vec::new(), 0);
        for (index, end) in ends.iter().enumerate() {
            let mut frame = masked(if index == 0 { first } else { CONTINUATION }, &payload[begin..*end], mask);
            if index + 1 < ends.len() {
                frame[0] &= 0x7f;
            }
            wire.extend(frame);
            wire.extend(masked(PING, b"!", mask));
            begin = *end;
        }
        wire
    }

    /// Joins the frames of messages. Pings may stand between the frames.
    fn joined(frames: &[(u8, Vec<u8>)]) -> Vec<Vec<u8>> {
        let mut messages = Vec::new();
        let mut is_open = false;
        for (first, payload) in frames {
            if first & 0xf == PING {
                assert_eq!(payload, b"!");
                continue;
            }
            assert_eq!(first & 0x7f, if is_open { CONTINUATION } else { TEXT });
            if !is_open {
                messages.push(Vec::new());
            }
            messages.last_mut().unwrap().extend_from_slice(payload);
            is_open = first & 0x80 == 0;
        }
        assert!(!is_open);
        messages
    }

    /// A connection that returns only a few bytes at a time.
    struct Slow<'a>(&'a [u8], usize);

    impl AsyncRead for Slow<'_> {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            let count = self.0.len().min(self.1).min(buffer.remaining());
            let (bytes, rest) = self.0.split_at(count);
            buffer.put_slice(bytes);
            self.0 = rest;
            Poll::Ready(Ok(()))
        }
    }

    /// Returns the bytes that the reader gets.
    fn inflated(wire: &[u8], pace: usize, frame_limit: usize) -> io::Result<Vec<u8>> {
        let mut inflating = Inflating::new(Slow(wire, pace), frame_limit);
        let mut output = Vec::new();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(inflating.read_to_end(&mut output)).map(|_| output)
    }

    /// Returns the frames that the reader gets, each with its first byte.
    fn read(wire: &[u8], pace: usize, frame_limit: usize) -> io::Result<Vec<(u8, Vec<u8>)>> {
        let output = inflated(wire, pace, frame_limit)?;
        let (mut cursor, mut frames) = (Cursor::new(output.as_slice()), Vec::new());
        while let Ok(Some((FrameHeader { mask: Some(mask), .. }, length))) = {
            let at = usize::try_from(cursor.position()).unwrap();
            frames.push((output.get(at).copied().unwrap_or_default(), Vec::new()));
            FrameHeader::parse(&mut cursor)
        } {
            let at = usize::try_from(cursor.position()).unwrap();
            let end = at.saturating_add(usize::try_from(length).unwrap_or(usize::MAX)).min(output.len());
            let payload = output[at..end].iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
            frames.last_mut().unwrap().1 = payload;
            cursor.set_position(end as u64);
        }
        frames.pop();
        Ok(frames)
    }

    fn messages(payloads: &[&[u8]]) -> io::Result<Vec<Vec<u8>>> {
        let wire: Vec<_> = payloads.iter().flat_map(|it| masked(RSV1 | TEXT, it, [1, 2, 3, 4])).collect();
        read(&wire, 3, 1000).map(|frames| joined(&frames))
    }

    #[test]
    fn the_examples_of_the_rfc_are_read() {
        // The examples are in sections 7.2.3.1 to 7.2.3.6. Each is "Hello", and the last one is empty.
        for payload in [
            b"\xf2\x48\xcd\xc9\xc9\x07\x00".as_slice(),
            b"\x00\x05\x00\xfa\xff\x48\x65\x6c\x6c\x6f\x00",
            b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00",
            b"\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00",
        ] {
            assert_eq!(messages(&[payload]).unwrap(), [b"Hello"], "{payload:x?}");
            // The second message refers to the first one.
            let shorter = b"\xf2\x00\x11\x00\x00";
            assert_eq!(messages(&[payload, shorter]).unwrap(), [b"Hello", b"Hello"], "{payload:x?}");
        }
        assert_eq!(messages(&[b"\0"]).unwrap(), [b""]);
    }

    #[test]
    fn invalid_compressed_data_is_corrupt() {
        let whole = b"\xf2\x48\xcd\xc9\xc9\x07\x00";
        for payload in [
            b"\xff\xff\xff".as_slice(),
            b"Hello",
            // These end inside a block, refer to bytes before the first message, and end before the length of a block.
            &whole[..4],
            b"\xf2\x00\x11\x00\x00",
            b"\x00\x05\x00\xfa\xff\x48\x65",
            b"\x00\x20\x00\xdf\xff\x48\x65",
        ] {
            let error = messages(&[payload]).unwrap_err();
            assert!(is_corrupt(&error) && error.kind() == io::ErrorKind::InvalidData, "{payload:x?}: {error}");
        }
        assert!(!is_corrupt(&io::ErrorKind::InvalidData.into()));
    }

    #[test]
    fn all_other_bytes_pass_unchanged() {
        let with = |first: u8, second: u8| {
            let mut frame = masked(TEXT, b"\xf2\x48\xcd\xc9\xc9\x07\x00", [9; 4]);
            (frame[0], frame[1]) = (first, second);
            frame
        };
        let begun = [&[0x41, 0x81, 0, 0, 0, 0, 0xf2], with(0x81, 0x87).as_slice()].concat();
        for (wire, what) in [
            (masked(TEXT, b"Hello", [9; 4]), "not compressed"),
            (masked(PING, b"Hello", [9; 4]), "a control frame"),
            (masked(RSV1 | PING, b"Hello", [9; 4]), "a compressed control frame"),
            (masked(RSV1 | CONTINUATION, b"Hello", [9; 4]), "RSV1 where it must not be"),
            (with(0xe1, 0x87), "RSV2"),
            (with(0xd1, 0x87), "RSV3"),
            (b"\xc1\x05Hello".to_vec(), "without a mask"),
            (with(0xc3, 0x87), "an opcode that does not exist"),
            (masked(RSV1 | TEXT, &[0; 11], [9; 4]), "a frame that is too long"),
            ([0xc1, 0xff].into_iter().chain([0xff; 20]).collect(), "a frame that is much too long"),
        ] {
            assert!(inflated(&wire, 100, 10).unwrap() == wire, "{what}");
        }
        // A compressed message begins with an empty frame. The message that must not follow it passes unchanged.
        let expected = [&[0x01, 0x80, 0, 0, 0, 0], with(0x81, 0x87).as_slice()].concat();
        assert_eq!(inflated(&begun, 100, 10).unwrap(), expected);
    }

    #[test]
    fn a_length_may_have_more_bytes_than_it_needs() {
        let mut frame = vec![0xc1, 0xfe, 0, 7, 0, 0, 0, 0];
        frame.extend(b"\xf2\x48\xcd\xc9\xc9\x07\x00");
        assert_eq!(joined(&read(&frame, 100, 1000).unwrap()), [b"Hello"]);
    }

    #[tokio::test]
    async fn a_bomb_is_inflated_only_as_fast_as_it_is_read() {
        let bomb = sent(&mut Compress::new(Compression::best(), false), &vec![0; 20_000_000]);
        assert!(bomb.len() < 32 * 1024, "{}", bomb.len());
        let wire = masked(RSV1 | TEXT, &bomb, [9; 4]);
        let mut inflating = Inflating::new(wire.as_slice(), 32 * 1024);
        let mut buffer = [0; 1000];
        for _ in 0..2000 {
            inflating.read_exact(&mut buffer).await.unwrap();
            let (_, compressed) = inflating.message.as_ref().unwrap();
            let held = inflating.input.len() + inflating.output.len() + compressed.len() + inflating.history.text.len();
            assert!(held <= 3 * CHUNK + CLIENT_WINDOW, "{held}");
        }
    }
}

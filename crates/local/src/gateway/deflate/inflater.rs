//! The inflation of messages from a client. Nothing here does I/O.

use std::fmt;
use std::io::{self, Cursor};

use bytes::{Buf, BufMut, BytesMut};
use flate2::{Decompress, FlushDecompress, Status};
use tokio::io::ReadBuf;
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

use super::{CHUNK, FLUSHED, History, since};

/// The window of a client. It is the largest one, because the answer does not limit it.
pub(super) const CLIENT_WINDOW: usize = 1 << 15;

/// An empty block that is marked as the last one.
const LAST_BLOCK: [u8; 5] = [0x01, 0x00, 0x00, 0xff, 0xff];

/// The error for data from a client that cannot be inflated.
#[derive(Debug)]
struct Corrupt;

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the client sent invalid compressed data")
    }
}

impl std::error::Error for Corrupt {}

/// Returns whether a read from a [`Transport`](super::Transport) failed because of the client's data.
pub(in crate::gateway) fn is_corrupt(error: &io::Error) -> bool {
    error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<Corrupt>)
}

/// Inflates a client's frames. They then look as if the client did not compress.
///
/// A compressed message becomes an empty first frame and continuations of at most [`CHUNK`] bytes. It is inflated only
/// as fast as the continuations are read.
///
/// All other bytes pass unchanged, so that the reader can refuse mistakes: uncompressed and control frames, RSV1 in a
/// frame that must not have it, and frames above the limit.
#[derive(Debug)]
pub(super) struct Inflater {
    /// The most bytes of a frame, as the client sends it.
    frame_limit: usize,
    /// The bytes that have been read and not parsed.
    pub(super) input: BytesMut,
    position: Position,
    /// The compressed message that is not complete, with the bytes that are not inflated yet.
    pub(super) message: Option<(Decompress, BytesMut)>,
    pub(super) history: History,
    /// The frames for the reader.
    pub(super) output: BytesMut,
}

/// The place in the client's frames where the input begins.
#[derive(Debug, Clone, Copy)]
enum Position {
    /// The input begins at a header.
    Header,
    /// The input begins in a frame that passes unchanged. The number counts its bytes that are still to come, header
    /// included.
    Whole(u64),
    /// The input begins in the payload of a frame that is inflated.
    Compressed { rest: u64, mask: [u8; 4], is_final: bool },
    /// The input begins after a compressed message. Its last bytes are not inflated yet.
    Last,
}

impl Inflater {
    pub(super) fn new(frame_limit: usize) -> Self {
        Self {
            frame_limit,
            input: BytesMut::new(),
            position: Position::Header,
            message: None,
            history: History::new(CLIENT_WINDOW),
            output: BytesMut::new(),
        }
    }

    /// Adds bytes of the client.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// Moves bytes into `buffer`. Returns `false` if it needs more bytes of the client.
    pub(super) fn read(&mut self, buffer: &mut ReadBuf<'_>) -> io::Result<bool> {
        loop {
            if !self.output.is_empty() {
                let count = self.output.len().min(buffer.remaining());
                buffer.put_slice(&self.output.split_to(count));
                return Ok(true);
            }
            if let Position::Whole(rest @ 1..) = &mut self.position
                && !self.input.is_empty()
            {
                let count = self.input.len().min(buffer.remaining());
                let count = count.min(usize::try_from(*rest).unwrap_or(usize::MAX));
                buffer.put_slice(&self.input.split_to(count));
                *rest -= count as u64;
                return Ok(true);
            }
            if !self.advance()? {
                return Ok(false);
            }
        }
    }

    /// Processes the input. Returns `false` if it needs more bytes.
    fn advance(&mut self) -> io::Result<bool> {
        if matches!(self.position, Position::Compressed { .. } | Position::Last) && self.inflate()? {
            return Ok(true);
        }
        match &mut self.position {
            Position::Whole(0) => self.position = Position::Header,
            Position::Header => return Ok(self.header()),
            // `read` copies these bytes to the reader.
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

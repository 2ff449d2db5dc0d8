use std::io::{self, Cursor};
use std::pin::Pin;
use std::task::{Context, Poll};

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use http::header::SEC_WEBSOCKET_EXTENSIONS;
use http::{HeaderMap, HeaderValue};
use proptest::prelude::*;
use proptest::sample::Index;
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::OpCode;

use super::inflater::CLIENT_WINDOW;
use super::*;

const NEGOTIATED: Negotiated = Negotiated { window_bits: 12, takes_over: true };
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

/// A client that inflates all messages with one decompressor, or each message with a new one.
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
    let mut inflating = Transport::new(Slow(wire, pace), Some(NEGOTIATED), frame_limit);
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
async fn without_compression_every_byte_passes_and_nothing_is_kept() {
    let wire = masked(RSV1 | TEXT, b"\xf2\x48\xcd\xc9\xc9\x07\x00", [9; 4]);
    let mut transport = Transport::new(wire.as_slice(), None, 1000);
    let mut output = Vec::new();
    transport.read_to_end(&mut output).await.unwrap();
    assert_eq!(output, wire);
    assert_eq!(size_of_val(&transport), size_of::<&[u8]>() + size_of::<usize>());
}

#[tokio::test]
async fn a_bomb_is_inflated_only_as_fast_as_it_is_read() {
    let bomb = sent(&mut Compress::new(Compression::best(), false), &vec![0; 20_000_000]);
    assert!(bomb.len() < 32 * 1024, "{}", bomb.len());
    let wire = masked(RSV1 | TEXT, &bomb, [9; 4]);
    let mut inflating = Transport::new(wire.as_slice(), Some(NEGOTIATED), 32 * 1024);
    let mut buffer = [0; 1000];
    for _ in 0..2000 {
        inflating.read_exact(&mut buffer).await.unwrap();
        let inflater = inflating.inflater.as_ref().unwrap();
        let (_, compressed) = inflater.message.as_ref().unwrap();
        let held = inflater.input.len() + inflater.output.len() + compressed.len() + inflater.history.text.len();
        assert!(held <= 3 * CHUNK + CLIENT_WINDOW, "{held}");
    }
}

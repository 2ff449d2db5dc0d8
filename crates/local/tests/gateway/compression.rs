//! `--deflate negotiate`. One answer of AWS to one offer is recorded. RFC 7692 says how messages are compressed, and every
//! close code is inferred.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use switchboard_local::gateway::settings::Deflate;
use switchboard_tests::wire::{BINARY, CONTINUATION, Client, Frame, PING, PONG, RSV1, TEXT};

use crate::scripted::{KIB, ScriptedApi, TestGateway};

/// The offer of browsers and of npm's ws.
const USUAL: &str = "permessage-deflate; client_max_window_bits";
const ANSWER: &str = "permessage-deflate;server_max_window_bits=12";

fn script() -> ScriptedApi {
    ScriptedApi::new().behaviour(|behaviour| behaviour.deflate = Deflate::Negotiate)
}

async fn connect(gateway: &mut TestGateway, offer: &str) -> (Client, Codec) {
    (gateway.connect_with(&[("Sec-WebSocket-Extensions", offer)]).await, Codec::new())
}

/// The client's side: a compressor and a decompressor for all messages of a connection.
struct Codec {
    deflate: Compress,
    inflate: Decompress,
}

impl Codec {
    fn new() -> Self {
        Self { deflate: Compress::new(Compression::default(), false), inflate: Decompress::new(false) }
    }

    fn compressed(&mut self, message: &[u8]) -> Vec<u8> {
        let mut compressed = Vec::with_capacity(message.len() + KIB);
        self.deflate.compress_vec(message, &mut compressed, FlushCompress::Sync).unwrap();
        assert!(compressed.len() < compressed.capacity());
        assert_eq!(compressed.split_off(compressed.len() - 4), [0, 0, 0xff, 0xff]);
        compressed
    }

    fn inflated(&mut self, payload: &[u8]) -> String {
        let mut message = Vec::with_capacity(129 * KIB);
        let payload = [payload, &[0, 0, 0xff, 0xff]].concat();
        self.inflate.decompress_vec(&payload, &mut message, FlushDecompress::Sync).unwrap();
        String::from_utf8(message).unwrap()
    }

    /// The next message, which must be compressed, and the sizes of its frames.
    async fn message(&mut self, client: &mut Client) -> (String, Vec<usize>) {
        let (payload, sizes) = client.frames(RSV1 | TEXT).await;
        (self.inflated(&payload), sizes)
    }
}

/// Text in characters of three bytes. Compression makes it little shorter.
fn noise(length: usize) -> String {
    let mut random = fastrand::Rng::with_seed(7);
    std::iter::repeat_with(|| random.char('\u{800}'..='\u{ffff}')).take(length / 3).collect()
}

#[tokio::test]
async fn an_offer_is_answered_as_recorded() {
    let mut gateway = script().start().await;
    for (offer, answer) in [
        ("permessage-deflate; server_max_window_bits=12; client_max_window_bits=12", Some(ANSWER)),
        // The answer to this offer is inferred.
        (USUAL, Some(ANSWER)),
        ("permessage-deflate; server_max_window_bits=7", None),
        ("permessage-bzip2", None),
    ] {
        let (mut client, mut codec) = connect(&mut gateway, offer).await;
        assert_eq!(client.reply.header("sec-websocket-extensions"), answer, "{offer}");
        client.text("not compressed").await;
        assert_eq!(gateway.event_of("$default").await["body"], "not compressed");
        gateway.call("POST", &client.id, b"hello").await;
        if answer.is_some() {
            assert_eq!(codec.message(&mut client).await.0, "hello");
        } else {
            assert_eq!(client.hears().await, "hello");
        }
        drop(client);
        gateway.event_of("$disconnect").await;
    }
    assert_eq!(gateway.connect().await.reply.header("sec-websocket-extensions"), None);
}

#[tokio::test]
async fn messages_refer_to_earlier_ones() {
    let mut gateway = script().start().await;
    let (mut client, mut codec) = connect(&mut gateway, USUAL).await;
    let message = format!("{} ěščřžýáíé 🐎 {}", noise(KIB), noise(KIB));
    let mut sizes = Vec::new();
    for _ in 0..3 {
        let compressed = codec.compressed(message.as_bytes());
        client.frame(true, RSV1 | TEXT, &compressed).await;
        assert_eq!(gateway.event_of("$default").await["body"], message);
        assert_eq!(gateway.call("POST", &client.id, message.as_bytes()).await.status, 200);
        let (received, frames) = codec.message(&mut client).await;
        assert_eq!(received, message);
        sizes.push((compressed.len(), frames[0]));
    }
    assert!(sizes[1].0 * 4 < sizes[0].0 && sizes[1].1 * 4 < sizes[0].1, "{sizes:?}");
    // The order of the kinds may change as well.
    client.text("not compressed").await;
    assert_eq!(gateway.event_of("$default").await["body"], "not compressed");
    client.frame(true, RSV1 | TEXT, &codec.compressed(message.as_bytes())).await;
    assert_eq!(gateway.event_of("$default").await["body"], message);
    client.frame(true, RSV1 | TEXT, b"\0").await;
    assert_eq!(gateway.event_of("$default").await["body"], "");
}

#[tokio::test]
async fn the_gateway_keeps_to_the_options_that_a_client_asks_for() {
    let mut gateway = script().start().await;
    let offer = "permessage-deflate; server_no_context_takeover; server_max_window_bits=9";
    let (mut client, _) = connect(&mut gateway, offer).await;
    let answer = "permessage-deflate;server_max_window_bits=9;server_no_context_takeover";
    assert_eq!(client.reply.header("sec-websocket-extensions"), Some(answer));
    let message = noise(2 * KIB).repeat(40);
    for _ in 0..3 {
        gateway.call("POST", &client.id, message.as_bytes()).await;
        // This decompressor knows nothing about earlier messages.
        let (received, sizes) = Codec::new().message(&mut client).await;
        assert_eq!(received, message);
        // Nothing repeats within a window of 512 bytes.
        assert!(sizes.iter().sum::<usize>() > message.len() / 2, "{sizes:?}");
    }
}

#[tokio::test]
async fn a_compressed_message_comes_in_fragments_and_pings_between_them() {
    let mut gateway = script().start().await;
    let (mut client, mut codec) = connect(&mut gateway, USUAL).await;
    let message = noise(30 * KIB);
    for parts in [2, 7, 1000] {
        let compressed = codec.compressed(message.as_bytes());
        let frames: Vec<_> = compressed.chunks(compressed.len().div_ceil(parts)).collect();
        let (last, others) = frames.split_last().unwrap();
        for (index, part) in others.iter().enumerate() {
            client.frame(false, if index == 0 { RSV1 | TEXT } else { CONTINUATION }, part).await;
        }
        client.frame(true, PING, b"are you there").await;
        assert_eq!(client.receive().await, Frame { fin: true, opcode: PONG, payload: b"are you there".to_vec() });
        client.frame(true, CONTINUATION, last).await;
        assert_eq!(gateway.event_of("$default").await["body"], message);
    }
}

#[tokio::test]
async fn the_limit_of_frames_counts_compressed_bytes_and_that_of_messages_inflated_ones() {
    let mut gateway = script().start().await;
    let (mut client, mut codec) = connect(&mut gateway, USUAL).await;
    let message = "x".repeat(128 * KIB);
    client.frame(true, RSV1 | TEXT, &codec.compressed(message.as_bytes())).await;
    assert_eq!(gateway.event_of("$default").await["body"], message);

    let compressed = codec.compressed(noise(128 * KIB).as_bytes());
    let (fits, rest) = compressed.split_at(32 * KIB);
    client.frame(false, RSV1 | TEXT, fits).await;
    for (index, part) in rest.chunks(32 * KIB).enumerate() {
        client.frame(index == (rest.len() - 1) / (32 * KIB), CONTINUATION, part).await;
    }
    assert_eq!(gateway.event_of("$default").await["body"], noise(128 * KIB));

    for opcode in [RSV1 | TEXT, RSV1 | BINARY] {
        let (mut client, mut codec) = connect(&mut gateway, USUAL).await;
        client.frame(true, opcode, &codec.compressed(noise(128 * KIB).as_bytes())[..32 * KIB + 1]).await;
        gateway.assert_closes(&mut client, 1009, "a frame that is too long").await;
    }
    for (length, what) in [(128 * KIB + 1, "a byte too many"), (30_000 * KIB, "a bomb")] {
        let (mut client, mut codec) = connect(&mut gateway, USUAL).await;
        let compressed = codec.compressed(&vec![b'x'; length]);
        assert!(compressed.len() < 32 * KIB, "{}", compressed.len());
        client.frame(true, RSV1 | TEXT, &compressed).await;
        gateway.assert_closes(&mut client, 1009, what).await;
    }
}

#[tokio::test]
async fn a_message_that_is_compressed_wrongly_closes_with_its_code_and_reaches_no_route() {
    let mut gateway = script().start().await;
    let mut codec = Codec::new();
    let mut fresh = |message: &[u8]| {
        codec.deflate.reset();
        codec.compressed(message)
    };
    let (whole, binary, broken) = (fresh(b"hello hello hello"), fresh(b"hello"), fresh(b"\xff\xfe"));
    for (frames, code, what) in [
        (vec![(true, RSV1 | TEXT, b"hello".to_vec())], 1007, "no compressed data"),
        (vec![(true, RSV1 | TEXT, whole[..4].to_vec())], 1007, "half of a message"),
        (vec![(false, RSV1 | TEXT, whole[..4].to_vec()), (true, CONTINUATION, vec![])], 1007, "half, in fragments"),
        (vec![(true, RSV1 | TEXT, broken)], 1007, "no UTF-8"),
        (vec![(true, RSV1 | BINARY, binary)], 1003, "bytes"),
        (vec![(false, RSV1 | TEXT, whole[..4].to_vec()), (true, RSV1, whole[4..].to_vec())], 1002, "RSV1 twice"),
        (vec![(false, RSV1 | TEXT, whole.clone()), (true, RSV1 | TEXT, whole.clone())], 1002, "two at once"),
        (vec![(false, RSV1 | TEXT, whole.clone()), (true, TEXT, whole.clone())], 1002, "one in another"),
        (vec![(false, TEXT, b"x".to_vec()), (true, RSV1 | TEXT, whole.clone())], 1002, "another in one"),
        (vec![(true, RSV1 | PING, b"hello".to_vec())], 1002, "a ping"),
        (vec![(true, RSV1 | CONTINUATION, whole.clone())], 1002, "a continuation of nothing"),
        (vec![(true, 0x60 | TEXT, whole.clone())], 1002, "RSV2"),
        (vec![(true, RSV1 | 0x3, whole.clone())], 1002, "no opcode"),
    ] {
        let (mut client, _) = connect(&mut gateway, USUAL).await;
        for (fin, opcode, payload) in frames {
            client.frame(fin, opcode, &payload).await;
        }
        gateway.assert_closes(&mut client, code, what).await;
    }
    let (mut client, _) = connect(&mut gateway, USUAL).await;
    client.raw(b"\xc1\x05hello").await;
    gateway.assert_closes(&mut client, 1002, "an unmasked frame").await;

    // Compression was not negotiated, because of the flag or because of the offer.
    for (mut gateway, offer) in [(ScriptedApi::new().start().await, USUAL), (gateway, "permessage-bzip2")] {
        let (mut client, _) = connect(&mut gateway, offer).await;
        client.frame(true, RSV1 | TEXT, &whole).await;
        assert_eq!(client.closed_without_echo().await, Some(1002), "{offer}");
    }
}

#[tokio::test]
async fn a_message_is_compressed_before_it_is_cut_into_frames() {
    for (fragment, most) in [(32 * KIB, 32 * KIB), (1000, 1000), (0, usize::MAX)] {
        let mut gateway = script().behaviour(|behaviour| behaviour.outbound_fragment = fragment).start().await;
        let (mut client, mut codec) = connect(&mut gateway, USUAL).await;
        for message in [noise(100 * KIB), "x".repeat(100 * KIB)] {
            assert_eq!(gateway.call("POST", &client.id, message.as_bytes()).await.status, 200);
            let (received, sizes) = codec.message(&mut client).await;
            assert_eq!(received, message);
            assert!(sizes.iter().all(|size| *size <= most), "{sizes:?}");
            let compressed: usize = sizes.iter().sum();
            assert_eq!(sizes.len(), compressed.div_ceil(most));
        }
        gateway.call("DELETE", &client.id, b"").await;
        assert_eq!(client.closed_without_echo().await, Some(1000));
    }
}

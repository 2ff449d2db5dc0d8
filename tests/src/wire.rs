//! A client that does nothing by itself. A test says which bytes, frames and HTTP requests it sends.
//!
//! Client libraries hide what tests look at here: fragments, broken frames, close codes, the exact handshake.

use std::fmt;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio_tungstenite::tungstenite::handshake::client::generate_key;

/// A test fails when it has waited this long for something that must happen.
pub const SOON: Duration = Duration::from_secs(20);
/// A test waits this long for something that must not happen, where nothing later could prove it.
pub const A_WHILE: Duration = Duration::from_millis(300);

/// The opcode of every frame of a message but its first.
pub const CONTINUATION: u8 = 0x0;
/// The opcode of a text message's first frame.
pub const TEXT: u8 = 0x1;
/// The opcode of a binary message's first frame.
pub const BINARY: u8 = 0x2;
/// The opcode of a close frame.
pub const CLOSE: u8 = 0x8;
/// The opcode of a ping frame.
pub const PING: u8 = 0x9;
/// The opcode of a pong frame.
pub const PONG: u8 = 0xa;
/// The bit that is set beside the opcode in a compressed message's first frame.
pub const RSV1: u8 = 0x40;

/// A connection that carries bytes both ways: TCP, or TLS.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A buffered connection to a server.
pub type Tcp = BufReader<Box<dyn Stream>>;

/// Sends the request of a handshake and does not wait for the answer. `path` includes the query.
pub async fn request(mut tcp: Tcp, host: &str, path: &str, headers: &[(&str, &str)]) -> Tcp {
    let mut headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    if !headers.contains("Sec-WebSocket-Key") {
        // Each handshake needs a new key (RFC 6455, section 4.1).
        headers.push_str(&format!("Sec-WebSocket-Key: {}\r\n", generate_key()));
    }
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\n{headers}\r\n"
    );
    tcp.write_all(request.as_bytes()).await.unwrap();
    tcp
}

/// An HTTP response.
#[derive(Debug)]
pub struct Reply {
    /// Its status.
    pub status: u16,
    /// Its headers, whose names are in lower case.
    pub headers: Vec<(String, String)>,
    /// Its body; empty after a handshake.
    pub body: String,
}

impl Reply {
    /// Reads the response that is next.
    pub async fn read(tcp: &mut Tcp) -> Self {
        tokio::time::timeout(SOON, Self::parse(tcp)).await.expect("no HTTP response came")
    }

    async fn parse(tcp: &mut Tcp) -> Self {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            assert!(tcp.read_line(&mut line).await.unwrap() > 0, "TCP was closed after {lines:?}");
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let status = lines[0].split(' ').nth(1).unwrap().parse().unwrap();
        let header =
            |line: &String| line.split_once(':').map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()));
        let mut reply = Self { status, headers: lines[1..].iter().filter_map(header).collect(), body: String::new() };
        let mut body = Vec::new();
        if reply.header("transfer-encoding").is_some_and(|it| it.eq_ignore_ascii_case("chunked")) {
            loop {
                let mut size = String::new();
                tcp.read_line(&mut size).await.unwrap();
                let size = usize::from_str_radix(size.trim(), 16).unwrap();
                let mut chunk = vec![0; size + 2];
                tcp.read_exact(&mut chunk).await.unwrap();
                body.extend(&chunk[..size]);
                if size == 0 {
                    break;
                }
            }
        } else if status != 101 && status != 204 {
            body.resize(reply.header("content-length").map_or(0, |length| length.parse().unwrap()), 0);
            tcp.read_exact(&mut body).await.unwrap();
        }
        reply.body = String::from_utf8(body).unwrap();
        reply
    }

    /// The value of a header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }

    /// The status, and the type of the error in AWS's header.
    pub fn error(&self) -> (u16, Option<&str>) {
        (self.status, self.header("x-amzn-errortype"))
    }
}

/// A frame as a server sends it.
#[derive(Debug, PartialEq)]
pub struct Frame {
    /// Whether it is the last frame of its message.
    pub fin: bool,
    /// The opcode, with the reserved bits beside it. Those are zero unless compression was negotiated.
    pub opcode: u8,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// A frame as a client sends it.
pub fn masked(fin: bool, opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![u8::from(fin) << 7 | opcode];
    match payload.len() {
        length @ 0..126 => frame.push(0x80 | u8::try_from(length).unwrap()),
        length @ 126..0x1_0000 => {
            frame.push(0x80 | 126);
            frame.extend(u16::try_from(length).unwrap().to_be_bytes());
        }
        length => {
            frame.push(0x80 | 127);
            frame.extend(u64::try_from(length).unwrap().to_be_bytes());
        }
    }
    let mask = [0x11, 0x22, 0x33, 0x44];
    frame.extend(mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// A WebSocket client.
pub struct Client {
    /// The answer to its handshake.
    pub reply: Reply,
    /// Its connection's id, once that is known.
    pub id: String,
    /// The connection, for tests that read and write bytes.
    pub tcp: Tcp,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("reply", &self.reply).field("id", &self.id).finish_non_exhaustive()
    }
}

impl Client {
    /// Reads the answer to a handshake, whatever it says.
    pub async fn accept(mut tcp: Tcp) -> Self {
        Self { reply: Reply::read(&mut tcp).await, id: String::new(), tcp }
    }

    /// Sends bytes as they are.
    pub async fn raw(&mut self, bytes: &[u8]) {
        self.tcp.write_all(bytes).await.unwrap();
    }

    /// Sends a frame.
    pub async fn frame(&mut self, fin: bool, opcode: u8, payload: &[u8]) {
        self.raw(&masked(fin, opcode, payload)).await;
        self.tcp.flush().await.unwrap();
    }

    /// Sends a text message in one frame.
    pub async fn text(&mut self, text: &str) {
        self.frame(true, TEXT, text.as_bytes()).await;
    }

    /// Sends a JSON message in one frame.
    pub async fn send(&mut self, message: &Value) {
        self.text(&message.to_string()).await;
    }

    /// Sends a text message of several frames.
    pub async fn fragments(&mut self, fragments: &[&[u8]]) {
        for (index, fragment) in fragments.iter().enumerate() {
            let opcode = if index == 0 { TEXT } else { CONTINUATION };
            self.frame(index + 1 == fragments.len(), opcode, fragment).await;
        }
    }

    /// The next frame, whatever it is.
    pub async fn receive(&mut self) -> Frame {
        tokio::time::timeout(SOON, read_frame(&mut self.tcp)).await.expect("no frame came").expect("TCP was closed")
    }

    /// The next message, which must be text, and the sizes of its frames.
    pub async fn message(&mut self) -> (String, Vec<usize>) {
        let (message, sizes) = self.frames(TEXT).await;
        (String::from_utf8(message).unwrap(), sizes)
    }

    /// The payload of the next message, whose first frame must have this opcode, and the sizes of its frames.
    pub async fn frames(&mut self, opcode: u8) -> (Vec<u8>, Vec<usize>) {
        let mut message = Vec::new();
        let mut sizes = Vec::new();
        loop {
            let frame = self.receive().await;
            assert_eq!(frame.opcode, if sizes.is_empty() { opcode } else { CONTINUATION }, "{frame:?}");
            sizes.push(frame.payload.len());
            message.extend(frame.payload);
            if frame.fin {
                return (message, sizes);
            }
        }
    }

    /// The next message, which must be text.
    pub async fn hears(&mut self) -> String {
        self.message().await.0
    }

    /// The next message, which must be JSON.
    pub async fn hears_json(&mut self) -> Value {
        let text = self.hears().await;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Sends a JSON message and returns the one that comes next.
    pub async fn ask(&mut self, message: &Value) -> Value {
        self.send(message).await;
        self.hears_json().await
    }

    /// The message and the request id of the error frame, which must be next and must be written as AWS writes it.
    pub async fn hears_error(&mut self) -> (String, String) {
        let frame = self.hears().await;
        let parsed: Value = serde_json::from_str(&frame).unwrap();
        let text = |key: &str| parsed[key].as_str().unwrap().to_owned();
        let (message, request_id) = (text("message"), text("requestId"));
        let id = &self.id;
        let expected = format!(r#"{{"message": "{message}", "connectionId":"{id}", "requestId":"{request_id}"}}"#);
        assert_eq!(frame, expected);
        (message, request_id)
    }

    /// Sends a close frame with this code and reason, and waits for the echo and the end of TCP.
    pub async fn close(&mut self, code: u16, reason: &str) -> Option<u16> {
        self.frame(true, CLOSE, &[&code.to_be_bytes(), reason.as_bytes()].concat()).await;
        self.closed().await
    }

    /// Waits for the close frame, which must be next, answers it, and waits for the end of TCP. Returns the code.
    pub async fn closed(&mut self) -> Option<u16> {
        self.closed_with_reason().await.0
    }

    /// Does what `closed` does, and returns the reason as well.
    pub async fn closed_with_reason(&mut self) -> (Option<u16>, String) {
        let payload = self.close_frame().await;
        // A server that closes for a broken frame need not wait for the echo.
        let _ = self.tcp.write_all(&masked(true, CLOSE, &payload)).await;
        let mut rest = Vec::new();
        let end = tokio::time::timeout(SOON, self.tcp.read_to_end(&mut rest)).await.expect("TCP stays open");
        assert!(end.is_err() || rest.is_empty(), "{rest:?} came after the close frame");
        (close_code(&payload), String::from_utf8_lossy(payload.get(2..).unwrap_or_default()).into_owned())
    }

    /// Waits for the close frame, which must be next, and for the end of TCP without answering. Returns the code.
    /// Our gateway ends TCP in good order even so.
    pub async fn closed_without_echo(&mut self) -> Option<u16> {
        let payload = self.close_frame().await;
        let mut rest = Vec::new();
        tokio::time::timeout(SOON, self.tcp.read_to_end(&mut rest)).await.expect("TCP still open").unwrap();
        assert_eq!(rest, b"");
        close_code(&payload)
    }

    /// The payload of the close frame, which must be next.
    pub async fn close_frame(&mut self) -> Vec<u8> {
        let Frame { fin, opcode, payload } = self.receive().await;
        assert_eq!((fin, opcode), (true, CLOSE), "{}", String::from_utf8_lossy(&payload));
        payload
    }
}

/// Reads a frame, however long that takes.
///
/// # Errors
///
/// If the connection ends before or within it.
pub async fn read_frame(tcp: &mut Tcp) -> std::io::Result<Frame> {
    let first = tcp.read_u8().await?;
    let length = match tcp.read_u8().await? {
        126 => usize::from(tcp.read_u16().await?),
        127 => usize::try_from(tcp.read_u64().await?).unwrap(),
        length => usize::from(length),
    };
    let mut payload = vec![0; length];
    tcp.read_exact(&mut payload).await?;
    Ok(Frame { fin: first & 0x80 != 0, opcode: first & 0x7f, payload })
}

/// The code in the payload of a close frame, which may be empty.
pub fn close_code(payload: &[u8]) -> Option<u16> {
    payload.first_chunk().map(|code| u16::from_be_bytes(*code))
}

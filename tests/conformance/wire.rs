//! A client that does nothing by itself: bytes, frames and HTTP, over TCP or TLS.
//!
//! Client libraries hide what is looked at here: fragments, broken frames, close codes, the exact handshake.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// For what must happen. It costs time only in a failing row.
pub const SOON: Duration = Duration::from_secs(20);
/// For what must not happen.
pub const A_WHILE: Duration = Duration::from_millis(300);

pub const CONTINUATION: u8 = 0x0;
pub const TEXT: u8 = 0x1;
pub const BINARY: u8 = 0x2;
pub const CLOSE: u8 = 0x8;
pub const PING: u8 = 0x9;
pub const PONG: u8 = 0xa;
/// In front of the opcode of a compressed message's first frame.
pub const RSV1: u8 = 0x40;

pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// An open connection to a server, of which nothing has been sent.
pub type Tcp = BufReader<Box<dyn Stream>>;

/// Where an API is: `ws://localhost:3001/dev` or `wss://….amazonaws.com/dev`.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub secure: bool,
    /// What stands in `Host`.
    pub authority: String,
    /// `/dev`
    pub stage_path: String,
}

impl Endpoint {
    /// Reads a URL; `None` when it is not one of an API.
    pub fn parse(url: &str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://")?;
        let (authority, stage) = rest.trim_end_matches('/').split_once('/').unwrap_or((rest, ""));
        let secure = match scheme {
            "ws" | "http" => false,
            "wss" | "https" => true,
            _ => return None,
        };
        Some(Self { secure, authority: authority.to_owned(), stage_path: format!("/{stage}") })
    }

    /// `http` or `https`, authority and stage: what callers of `@connections` use.
    pub fn http(&self) -> String {
        format!("{}://{}{}", if self.secure { "https" } else { "http" }, self.authority, self.stage_path)
    }

    /// The URL for clients.
    pub fn ws(&self) -> String {
        self.http().replacen("http", "ws", 1)
    }

    pub async fn dial(&self) -> Tcp {
        BufReader::new(self.tls(self.tcp().await).await)
    }

    /// A connection that ends in a TCP reset, not in an orderly close, when it is dropped.
    pub async fn dial_to_reset(&self) -> Tcp {
        let tcp = self.tcp().await;
        tcp.set_zero_linger().unwrap();
        BufReader::new(self.tls(tcp).await)
    }

    async fn tcp(&self) -> TcpStream {
        let (host, port) = self.authority.split_once(':').unwrap_or((&self.authority, self.default_port()));
        let tcp = TcpStream::connect((host, port.parse().unwrap())).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        tcp
    }

    fn default_port(&self) -> &'static str {
        if self.secure { "443" } else { "80" }
    }

    async fn tls(&self, tcp: TcpStream) -> Box<dyn Stream> {
        if !self.secure {
            return Box::new(tcp);
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let host = self.authority.split(':').next().unwrap().to_owned();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        Box::new(connector.connect(ServerName::try_from(host).unwrap(), tcp).await.unwrap())
    }

    /// Sends the request of a handshake and does not wait for the answer. `path` is the whole one, with its query.
    pub async fn request(&self, path: &str, headers: &[(&str, &str)]) -> Tcp {
        self.request_on(self.dial().await, path, headers).await
    }

    pub async fn request_on(&self, mut tcp: Tcp, path: &str, headers: &[(&str, &str)]) -> Tcp {
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n",
            self.authority
        );
        tcp.write_all(request.as_bytes()).await.unwrap();
        tcp
    }
}

/// An HTTP response.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Reply {
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

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }
}

#[derive(Debug, PartialEq)]
pub struct Frame {
    pub fin: bool,
    /// With the reserved bits in front, which are zero unless compression was negotiated.
    pub opcode: u8,
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
    /// Its connection's id, if it has asked.
    pub id: String,
    pub tcp: Tcp,
}

impl Client {
    pub async fn accept(mut tcp: Tcp) -> Self {
        Self { reply: Reply::read(&mut tcp).await, id: String::new(), tcp }
    }

    pub async fn raw(&mut self, bytes: &[u8]) {
        self.tcp.write_all(bytes).await.unwrap();
    }

    pub async fn frame(&mut self, fin: bool, opcode: u8, payload: &[u8]) {
        self.raw(&masked(fin, opcode, payload)).await;
        self.tcp.flush().await.unwrap();
    }

    pub async fn text(&mut self, text: &str) {
        self.frame(true, TEXT, text.as_bytes()).await;
    }

    /// A text message of several frames.
    pub async fn fragments(&mut self, fragments: &[&[u8]]) {
        for (index, fragment) in fragments.iter().enumerate() {
            let opcode = if index == 0 { TEXT } else { CONTINUATION };
            self.frame(index + 1 == fragments.len(), opcode, fragment).await;
        }
    }

    pub async fn send(&mut self, message: &Value) {
        self.text(&message.to_string()).await;
    }

    /// Sends a close frame with this code and reason, and waits for the echo and the end of TCP.
    pub async fn close(&mut self, code: u16, reason: &str) -> Option<u16> {
        self.frame(true, CLOSE, &[&code.to_be_bytes(), reason.as_bytes()].concat()).await;
        self.closed().await
    }

    /// The next frame, whatever it is.
    pub async fn receive(&mut self) -> Frame {
        tokio::time::timeout(SOON, read_frame(&mut self.tcp)).await.expect("no frame came").expect("TCP was closed")
    }

    /// The next message, which must be text, and the sizes of its frames.
    pub async fn message(&mut self) -> (String, Vec<usize>) {
        let mut message = Vec::new();
        let mut sizes = Vec::new();
        loop {
            let frame = self.receive().await;
            let opcode = if sizes.is_empty() { TEXT } else { CONTINUATION };
            assert_eq!(frame.opcode, opcode, "{:?} of {}", frame.payload, frame.opcode);
            sizes.push(frame.payload.len());
            message.extend(frame.payload);
            if frame.fin {
                return (String::from_utf8(message).unwrap(), sizes);
            }
        }
    }

    pub async fn hears(&mut self) -> String {
        self.message().await.0
    }

    pub async fn hears_json(&mut self) -> Value {
        let text = self.hears().await;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    pub async fn ask(&mut self, message: &Value) -> Value {
        self.send(message).await;
        self.hears_json().await
    }

    /// That nothing comes for a while.
    pub async fn hears_nothing(&mut self) {
        if let Ok(byte) = tokio::time::timeout(A_WHILE, self.tcp.read_u8()).await {
            panic!("something came: {byte:?}");
        }
    }

    /// The close frame, which must be next, and then the end of TCP.
    pub async fn closed(&mut self) -> Option<u16> {
        self.closed_with_reason().await.0
    }

    pub async fn closed_with_reason(&mut self) -> (Option<u16>, String) {
        let frame = self.receive().await;
        assert_eq!((frame.fin, frame.opcode), (true, CLOSE), "{}", String::from_utf8_lossy(&frame.payload));
        let code = frame.payload.first_chunk().map(|code| u16::from_be_bytes(*code));
        // A server that closes for a broken frame need not wait for the echo.
        let _ = self.tcp.write_all(&masked(true, CLOSE, &frame.payload)).await;
        let mut rest = Vec::new();
        let end = tokio::time::timeout(SOON, self.tcp.read_to_end(&mut rest)).await.expect("TCP stays open");
        assert!(end.is_err() || rest.is_empty(), "{rest:?} came after the close frame");
        (code, String::from_utf8_lossy(frame.payload.get(2..).unwrap_or_default()).into_owned())
    }
}

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

//! The address of an API, and how to reach it over TCP or TLS.

use std::sync::Arc;

use switchboard_tests::wire::{Stream, Tcp, request};
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// The address of an API: `ws://localhost:3001/dev` or `wss://….amazonaws.com/dev`.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub secure: bool,
    /// The header `Host`.
    pub authority: String,
    /// `/dev`
    pub stage_path: String,
}

impl Endpoint {
    /// Reads a URL. Returns `None` when it is not the URL of an API.
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

    /// The URL for callers of `@connections`.
    pub fn http(&self) -> String {
        format!("{}://{}{}", if self.secure { "https" } else { "http" }, self.authority, self.stage_path)
    }

    /// The URL for clients.
    pub fn ws(&self) -> String {
        self.http().replacen("http", "ws", 1)
    }

    /// Opens a connection and sends nothing.
    pub async fn dial(&self) -> Tcp {
        BufReader::new(self.tls(self.tcp().await).await)
    }

    /// Opens a connection that ends in a TCP reset, not in an orderly close, when it is dropped.
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

    /// Sends the request of a handshake and does not wait for the answer. `path` includes the query.
    pub async fn request(&self, path: &str, headers: &[(&str, &str)]) -> Tcp {
        self.request_on(self.dial().await, path, headers).await
    }

    pub async fn request_on(&self, tcp: Tcp, path: &str, headers: &[(&str, &str)]) -> Tcp {
        request(tcp, &self.authority, path, headers).await
    }
}

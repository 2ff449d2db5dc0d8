//! An end of TLS in front of a plain port.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};

use aws_smithy_types::base64;
use rcgen::generate_simple_self_signed;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::stack::Stack;

/// A certificate for `localhost` that signs itself.
#[derive(Debug)]
pub struct Certificate {
    public: CertificateDer<'static>,
    key: Vec<u8>,
    folder: tempfile::TempDir,
}

impl Default for Certificate {
    fn default() -> Self {
        let certified = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (public, key) = (certified.cert.der().clone(), certified.signing_key.serialize_der());
        let certificate = Self { public, key, folder: tempfile::tempdir().unwrap() };
        let text = base64::encode(&certificate.public);
        let pem = format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
        std::fs::write(certificate.file(), pem).unwrap();
        certificate
    }
}

impl Certificate {
    /// The file for the variable `SSL_CERT_FILE` of those who trust it.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.folder.path().join("trusted.pem")
    }
}

/// A port that speaks TLS, and passes the bytes on to a plain one.
#[derive(Debug)]
pub struct Tls {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    target: OnceLock<String>,
    /// What the client has sent, for each handshake.
    sent: Mutex<Vec<String>>,
}

impl Tls {
    /// Listens, and leads nowhere yet.
    pub async fn start(certificate: &Certificate) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let key = PrivateKeyDer::try_from(certificate.key.clone()).unwrap();
        let chain = vec![certificate.public.clone()];
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key);
        let acceptor = TlsAcceptor::from(Arc::new(config.unwrap()));
        let (port, shared) = (listener.local_addr().unwrap().port(), Arc::new(Shared::default()));
        let accepted = shared.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(pass(acceptor.clone(), stream, accepted.clone()));
            }
        });
        Self { port, shared }
    }

    /// The URL of this end.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    /// Passes all later connections on to `127.0.0.1:{port}`.
    pub fn lead_to(&self, target: &str) {
        self.shared.target.set(target.to_owned()).unwrap();
    }

    /// What clients have sent so far, for each handshake.
    #[must_use]
    pub fn sent(&self) -> Vec<String> {
        self.shared.sent.lock().unwrap().clone()
    }
}

/// Ends of TLS between the functions of a stack and what they call.
#[derive(Debug)]
pub struct Ends {
    certificate: Certificate,
    /// In front of DynamoDB.
    pub dynamodb: Tls,
    /// In front of `@connections`.
    pub gateway: Tls,
}

impl Ends {
    /// Listens, and leads nowhere yet.
    pub async fn start() -> Self {
        let certificate = Certificate::default();
        let (dynamodb, gateway) = (Tls::start(&certificate).await, Tls::start(&certificate).await);
        Self { certificate, dynamodb, gateway }
    }

    /// Starts a stack whose functions call these ends, with further arguments.
    pub async fn stack(&self, arguments: &[&str]) -> Stack {
        let variables = [
            format!("AWS_ENDPOINT_URL_DYNAMODB={}", self.dynamodb.url()),
            format!("PUBLISH_ENDPOINT={}/dev", self.gateway.url()),
            format!("SSL_CERT_FILE={}", self.certificate.file().display()),
        ];
        let mut all = arguments.to_vec();
        all.extend(variables.iter().flat_map(|variable| ["--env", variable]));
        let stack = Stack::with(&all).await;
        self.dynamodb.lead_to(&stack.dynamodb);
        self.gateway.lead_to(&stack.gateway);
        stack
    }
}

/// Passes the bytes of one connection on, both ways, and keeps those of the client.
async fn pass(acceptor: TlsAcceptor, stream: TcpStream, shared: Arc<Shared>) {
    let Ok(client) = acceptor.accept(stream).await else { return };
    let server = TcpStream::connect(shared.target.get().unwrap()).await.unwrap();
    let number = {
        let mut sent = shared.sent.lock().unwrap();
        sent.push(String::new());
        sent.len() - 1
    };
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_server, mut to_server) = server.into_split();
    let there = async {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
            shared.sent.lock().unwrap()[number] += &String::from_utf8_lossy(&buffer[..count]);
            to_server.write_all(&buffer[..count]).await.unwrap();
        }
    };
    let back = tokio::io::copy(&mut from_server, &mut to_client);
    tokio::select! { () = there => {}, _ = back => {} }
}

//! TLS on the gateway's port, for functions that make their endpoint themselves.
//!
//! On AWS a function posts to `https://{domainName}/{stage}`, with the `domainName` of its event. Here that name leads to
//! the gateway's plain port, so the port speaks TLS as well, with a certificate that only the functions trust.
//!
//! The authority that signs the certificates lives as long as the stack, and its key is nowhere but in memory. The
//! functions find its certificate through variables. Nothing else on the machine trusts it.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use data_encoding::BASE64;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::server::Acceptor;
use tokio_rustls::server::TlsStream;

use crate::access::Access;

/// The first byte of a TLS connection: the type of a record with a handshake (RFC 8446, section 5.1). No HTTP method
/// begins with it.
pub(crate) const FIRST_BYTE: u8 = 0x16;

/// The longest line of Base64 in a PEM file (RFC 7468, section 2).
const PEM_LINE: usize = 64;

/// The name of the authority in its certificate.
const NAME: &str = "switchboard-local";

/// The authority whose certificates the functions trust, and the files that they read for that.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// The certificates that were needed, by the name that they are for.
    configurations: Mutex<HashMap<String, Arc<ServerConfig>>>,
    /// It is removed with the authority.
    folder: TempDir,
}

impl Authority {
    /// Makes an authority with a new key, and writes its certificate into a folder of its own.
    ///
    /// # Errors
    ///
    /// When the files cannot be written.
    pub fn new() -> io::Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished_name(NAME);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let certificate = pem(params.self_signed(&key).map_err(io::Error::other)?.der());
        let folder = tempfile::Builder::new().prefix("switchboard-local-").tempdir()?;
        std::fs::write(folder.path().join("own.pem"), &certificate)?;
        // The functions still trust everybody whom they trust on AWS.
        let system = rustls_native_certs::load_native_certs().certs;
        let all: String = system.iter().map(pem).chain([certificate]).collect();
        std::fs::write(folder.path().join("all.pem"), all)?;
        Ok(Self { issuer: Issuer::new(params, key), configurations: Mutex::default(), folder })
    }

    /// Returns the variables that let a function trust this authority.
    ///
    /// `SSL_CERT_FILE` is read by OpenSSL, Go and Rust's `rustls-native-certs`, which the AWS SDK uses. Python's and Go's
    /// SDKs read `AWS_CA_BUNDLE`. Each of these replaces the system's certificates, and Node's adds to its own.
    pub(crate) fn variables(&self) -> BTreeMap<String, String> {
        let path = |name: &str| self.folder().join(name).display().to_string();
        let variables =
            [("SSL_CERT_FILE", "all.pem"), ("AWS_CA_BUNDLE", "all.pem"), ("NODE_EXTRA_CA_CERTS", "own.pem")];
        variables.map(|(variable, file)| (variable.to_owned(), path(file))).into()
    }

    /// Returns the folder of the files that functions read.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Runs the handshake of a TLS connection. Its certificate is for the name that the client uses for this machine.
    pub(crate) async fn accept(&self, tcp: TcpStream, access: &Access) -> io::Result<TlsStream<TcpStream>> {
        // Clients do not say the address that they use, but it is that of the socket.
        let address = tcp.local_addr()?.ip().to_canonical().to_string();
        let start = LazyConfigAcceptor::new(Acceptor::default(), tcp).await?;
        let name = match start.client_hello().server_name() {
            Some(name) if access.knows(name) => name.to_owned(),
            Some(name) => return Err(io::Error::other(format!("{name} is not a name of this machine"))),
            None => address,
        };
        start.into_stream(self.configuration(name)?).await
    }

    fn configuration(&self, name: String) -> io::Result<Arc<ServerConfig>> {
        let mut configurations = self.configurations.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = configurations.get(&name) {
            return Ok(known.clone());
        }
        let mut params = CertificateParams::new([name.clone()]).map_err(io::Error::other)?;
        params.distinguished_name = distinguished_name(&name);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(io::Error::other)?.der().clone();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let configuration = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(vec![certificate], key))
            .map_err(io::Error::other)?;
        Ok(configurations.entry(name).or_insert(Arc::new(configuration)).clone())
    }
}

fn distinguished_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    let text = BASE64.encode(certificate);
    let mut pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
    for start in (0..text.len()).step_by(PEM_LINE) {
        let _ = writeln!(pem, "{}", &text[start..text.len().min(start + PEM_LINE)]);
    }
    pem + "-----END CERTIFICATE-----\n"
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tokio_rustls::TlsConnector;
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use tokio_rustls::rustls::pki_types::{IpAddr, ServerName};
    use tokio_rustls::rustls::{ClientConfig, RootCertStore};

    use super::*;
    use crate::access::Settings;

    /// Connects to `address` under this name. The client trusts the certificates in the file of this variable.
    async fn connects(authority: &Authority, variable: &str, address: &str, name: &str) -> bool {
        let access = Access::new("test", Settings::default(), Some("chat.example".to_owned()));
        let mut roots = RootCertStore::empty();
        let file = &authority.variables()[variable];
        roots.add_parsable_certificates(CertificateDer::pem_file_iter(file).unwrap().map(Result::unwrap));
        let client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let listener = TcpListener::bind(address).await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let name = match name.parse::<std::net::IpAddr>() {
            Ok(address) => ServerName::IpAddress(IpAddr::from(address)),
            Err(_) => ServerName::try_from(name.to_owned()).unwrap(),
        };
        let client = TlsConnector::from(Arc::new(client)).connect(name, tcp);
        let (accepted, _) = listener.accept().await.unwrap();
        let (served, connected) = tokio::join!(authority.accept(accepted, &access), client);
        served.is_ok() && connected.is_ok()
    }

    #[tokio::test]
    async fn a_certificate_is_for_the_name_that_the_client_uses_for_this_machine() {
        let authority = Authority::new().unwrap();
        for name in ["localhost", "127.0.0.1", "chat.example"] {
            for variable in ["SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS"] {
                assert!(connects(&authority, variable, "127.0.0.1:0", name).await, "{name} {variable}");
            }
        }
        assert!(connects(&authority, "SSL_CERT_FILE", "[::1]:0", "::1").await);
        for name in ["evil.example", "127.0.0.2"] {
            assert!(!connects(&authority, "SSL_CERT_FILE", "127.0.0.1:0", name).await, "{name}");
        }
    }

    #[test]
    fn functions_trust_what_the_machine_trusts_as_long_as_the_stack_runs() {
        let authority = Authority::new().unwrap();
        let count = |variable: &str| {
            CertificateDer::pem_file_iter(&authority.variables()[variable]).unwrap().map(Result::unwrap).count()
        };
        assert_eq!(count("NODE_EXTRA_CA_CERTS"), 1);
        assert_eq!(count("SSL_CERT_FILE"), rustls_native_certs::load_native_certs().certs.len() + 1);
        let folder = authority.folder().to_owned();
        drop(authority);
        assert!(!folder.exists());
    }
}

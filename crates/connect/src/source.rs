//! The places from which keys are read: a parameter of SSM, which may hold secrets, and the JWK Set that an identity provider
//! publishes.
//!
//! The function reads them when it starts, and does not start without them. A handshake that gets 401 would blame the token,
//! and clients do not repeat it; a handshake that gets 502 is repeated, and then the function tries to start once more.
//!
//! A published set is read again when a token names a key that is not known, and when the keys are an hour old. So a provider
//! may rotate its keys. This happens at most once a minute, because anybody may send a token with a made-up `kid`. Keys that
//! were read once stay when a later read fails.
//!
//! Nothing here may repeat a part of what was read, because that may be a secret.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_config::SdkConfig;
use aws_credential_types::provider::ProvideCredentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4::SigningParams;
use aws_smithy_http_client::Connector;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use aws_smithy_runtime_api::client::http::HttpConnector;
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::byte_stream::ByteStream;
use http::{Request, Uri};
use lambda_runtime::tracing::{info, warn};
use serde_json::{Value, json};
use switchboard_core::{ClientError, Error};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use crate::keys::{KeySet, Origin};
use crate::token::{Verified, Verifier};

/// The longest that one read may take. The start has two attempts.
const ATTEMPT: Duration = Duration::from_millis(1500);

/// How long the start waits before its second attempt. SSM answers 40 reads a second in an account ("AWS Systems Manager
/// endpoints and quotas"), so functions that start together may be refused.
const PAUSE: Duration = Duration::from_millis(200);

/// The most bytes of an answer. Sets of large providers have about 10 KB, and a parameter has at most 8 KB.
const MAX_BYTES: usize = 64 * 1024;

/// The shortest time between two reads of a published set, failed ones included.
const MIN_INTERVAL: Duration = Duration::from_secs(60);

/// How old the keys of a published set may be. A key that its provider has withdrawn counts for so long.
const MAX_AGE: Duration = Duration::from_secs(60 * 60);

/// A place from which keys are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// A SecureString in SSM.
    Parameter {
        /// Its name.
        name: String,
        /// The URL of SSM, if it is not the region's.
        endpoint: Option<String>,
    },
    /// The address of a JWK Set.
    Url(Uri),
}

/// The reason why a read failed.
#[derive(Debug)]
struct Problem {
    text: String,
    /// Whether the next attempt may succeed.
    is_temporary: bool,
}

/// Checks tokens with keys that may change.
#[derive(Debug)]
pub(crate) struct Tokens {
    source: Option<Source>,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    verifier: Arc<Verifier>,
    /// When the keys were read.
    read_at: Instant,
    /// When they were read again, or were to be.
    tried_at: Option<Instant>,
}

impl Source {
    /// Checks the name of a parameter. It is also the end of an ARN, so it begins with a slash and has no wildcards.
    pub(crate) fn parameter(name: String, endpoint: Option<String>) -> Result<Self, String> {
        let is_part = |part: &str| {
            !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
        };
        match name.strip_prefix('/').is_some_and(|parts| parts.split('/').all(is_part)) {
            true => Ok(Self::Parameter { name, endpoint }),
            false => Err("TOKEN_KEYS_PARAMETER is not the name of a parameter with its path, such as \
                          `/switchboard/prod/keys`"
                .to_owned()),
        }
    }

    /// Checks the address of a set. Only HTTPS proves whose keys they are; a server of this machine needs no proof.
    pub(crate) fn url(text: &str) -> Result<Self, String> {
        let uri = text.parse::<Uri>().ok();
        let is_allowed = |uri: &Uri| {
            let has_user = uri.authority().is_none_or(|authority| authority.as_str().contains('@'));
            let is_local = matches!(uri.host(), Some("localhost" | "127.0.0.1" | "[::1]"));
            !has_user && (uri.scheme_str() == Some("https") || (uri.scheme_str() == Some("http") && is_local))
        };
        uri.filter(is_allowed).map(Self::Url).ok_or_else(|| {
            "TOKEN_KEYS_URL is not an address that begins with https:// and names no user (http:// is for this machine only)"
                .to_owned()
        })
    }

    /// The variable that names it.
    pub(crate) fn variable(&self) -> &'static str {
        match self {
            Self::Parameter { .. } => "TOKEN_KEYS_PARAMETER",
            Self::Url(_) => "TOKEN_KEYS_URL",
        }
    }

    /// Reads the set. `sdk` is needed for a parameter.
    async fn read(&self, sdk: Option<&SdkConfig>) -> Result<KeySet, Problem> {
        let read = async {
            Ok(match (self, sdk) {
                (Self::Parameter { name, endpoint }, Some(sdk)) => {
                    (parameter(name, endpoint.clone(), sdk).await?, Origin::Vault)
                }
                (Self::Parameter { .. }, None) => return Err(Problem::lasting("it is read once")),
                (Self::Url(uri), _) => (published(uri).await?, Origin::Public),
            })
        };
        let late = || Problem { text: format!("there is no answer after {ATTEMPT:?}"), is_temporary: true };
        let (text, origin) = timeout(ATTEMPT, read).await.map_err(|_| late())??;
        let set = KeySet::parse(&text, origin).map_err(Problem::lasting)?;
        for reason in &set.skipped {
            warn!("{}: {reason}", self.variable());
        }
        Ok(set)
    }
}

impl Problem {
    fn lasting(text: impl Into<String>) -> Self {
        Self { text: text.into(), is_temporary: false }
    }
}

impl From<Verifier> for Tokens {
    fn from(verifier: Verifier) -> Self {
        Self::new(verifier, None)
    }
}

impl Tokens {
    /// Checks tokens as `verifier` does, with its keys, until those of `source` are read.
    pub(crate) fn new(verifier: Verifier, source: Option<Source>) -> Self {
        let current = Current { verifier: Arc::new(verifier), read_at: Instant::now(), tried_at: None };
        Self { source, current: Mutex::new(current) }
    }

    /// Reads the keys for the first time, in two attempts.
    ///
    /// # Errors
    ///
    /// [`Error::Config`], with the variable that names the source.
    pub(crate) async fn start(&self, sdk: &SdkConfig) -> Result<(), Error> {
        let Some(source) = &self.source else { return Ok(()) };
        let mut read = source.read(Some(sdk)).await;
        if read.as_ref().is_err_and(|problem| problem.is_temporary) {
            tokio::time::sleep(PAUSE).await;
            read = source.read(Some(sdk)).await;
        }
        let set = read.map_err(|problem| Error::Config {
            problems: format!("{}: the keys cannot be read: {}", source.variable(), problem.text),
        })?;
        self.current.lock().await.take(set);
        Ok(())
    }

    /// Checks a token as [`Verifier::verify`] does, and reads the keys again where that is due.
    pub(crate) async fn verify(&self, token: &str) -> Result<Verified, ClientError> {
        self.verifier(token).await.verify(token)
    }

    /// Handshakes of the same moment wait for one read.
    async fn verifier(&self, token: &str) -> Arc<Verifier> {
        let mut current = self.current.lock().await;
        if let Some(source @ Source::Url(_)) = &self.source
            && (!current.verifier.knows(token) || current.read_at.elapsed() >= MAX_AGE)
            && current.tried_at.is_none_or(|tried_at| tried_at.elapsed() >= MIN_INTERVAL)
        {
            current.tried_at = Some(Instant::now());
            match source.read(None).await {
                Ok(set) => {
                    info!(keys = set.keys.len(), "the keys were read again");
                    current.take(set);
                }
                Err(Problem { text, .. }) => {
                    warn!("{}: the keys cannot be read again, so the old ones stay: {text}", source.variable());
                }
            }
        }
        current.verifier.clone()
    }
}

impl Current {
    fn take(&mut self, set: KeySet) {
        self.verifier = Arc::new(self.verifier.with_keys(set.keys));
        self.read_at = Instant::now();
    }
}

/// Reads a set that is published.
async fn published(uri: &Uri) -> Result<String, Problem> {
    let request = Request::get(uri).header("accept", "application/json").body(SdkBody::empty());
    let (status, text) = send(request.map_err(|error| Problem::lasting(error.to_string()))?).await?;
    match status {
        200 => Ok(text),
        _ => Err(Problem { text: format!("the answer has the status {status}"), is_temporary: status >= 500 }),
    }
}

/// Reads a parameter with `GetParameter`.
///
/// This is one signed request, with crates that the SDK's clients need anyway: it made a small program 65 KB larger (5.9 MB).
/// `aws-sdk-ssm` has 146 operations. It takes more than a minute of CPU time to compile, and made the program 1.2 MB larger.
async fn parameter(name: &str, endpoint: Option<String>, sdk: &SdkConfig) -> Result<String, Problem> {
    let region = sdk.region().ok_or_else(|| Problem::lasting("AWS_REGION is not set"))?.as_ref();
    let provider = sdk.credentials_provider().ok_or_else(|| Problem::lasting("there are no credentials"))?;
    let credentials = provider.provide_credentials().await;
    let identity = credentials.map_err(|error| Problem::lasting(format!("there are no credentials: {error}")))?.into();
    let suffix = if region.starts_with("cn-") { ".cn" } else { "" };
    let url = endpoint.unwrap_or_else(|| format!("https://ssm.{region}.amazonaws.com{suffix}/"));

    let body = json!({"Name": name, "WithDecryption": true}).to_string();
    let unsigned = |error: &dyn std::fmt::Display| Problem::lasting(format!("the request cannot be signed: {error}"));
    let headers = [("content-type", "application/x-amz-json-1.1"), ("x-amz-target", "AmazonSSM.GetParameter")];
    let mut request = Request::post(&url).header(headers[0].0, headers[0].1).header(headers[1].0, headers[1].1);
    let host = url.parse::<Uri>().ok().and_then(|uri| Some(uri.authority()?.to_string())).unwrap_or_default();
    request = request.header("host", &host);
    let mut request = request.body(SdkBody::from(body.as_str())).map_err(|error| unsigned(&error))?;
    let params = SigningParams::builder().identity(&identity).region(region).name("ssm").time(SystemTime::now());
    let params = params.settings(SigningSettings::default()).build().map_err(|error| unsigned(&error))?.into();
    let signed = headers.into_iter().chain([("host", host.as_str())]);
    let signable = SignableRequest::new("POST", url.as_str(), signed, SignableBody::Bytes(body.as_bytes()));
    let signed = sign(signable.map_err(|error| unsigned(&error))?, &params).map_err(|error| unsigned(&error))?;
    signed.into_parts().0.apply_to_request_http1x(&mut request);

    let (status, text) = send(request).await?;
    let answer: Value = serde_json::from_str(&text).unwrap_or_default();
    if status != 200 {
        // SSM's own sentence names actions and resources, and no value.
        let error = answer["__type"].as_str().and_then(|kind| kind.rsplit('#').next()).unwrap_or("no error code");
        let message = ["message", "Message"].iter().find_map(|key| answer[key].as_str()).unwrap_or("no message");
        let is_temporary = status >= 500 || error == "ThrottlingException";
        return Err(Problem { text: format!("{error}, status {status}: {message}"), is_temporary });
    }
    let parameter = &answer["Parameter"];
    match (parameter["Type"].as_str(), parameter["Value"].as_str()) {
        (Some("SecureString"), Some(value)) => Ok(value.to_owned()),
        (Some("SecureString") | None, _) => Err(Problem::lasting("the answer has no value")),
        (Some(kind), _) => Err(Problem::lasting(format!("the parameter is a {kind}, and must be a SecureString"))),
    }
}

/// Sends a request. Returns the status and the text of the answer, which is bounded. The connection ends here, because the next
/// request comes in a minute or later.
async fn send(request: Request<SdkBody>) -> Result<(u16, String), Problem> {
    let broken = |error: &(dyn std::error::Error + 'static)| {
        let mut text = format!("there is no answer: {error}");
        let mut cause = error.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        Problem { text, is_temporary: true }
    };
    let request = HttpRequest::try_from(request).map_err(|error| Problem::lasting(error.to_string()))?;
    let connector = Connector::builder().tls_provider(Provider::Rustls(CryptoMode::Ring)).build();
    let response = connector.call(request).await.map_err(|error| broken(&error))?;
    let status = response.status().as_u16();
    let (mut body, mut text) = (ByteStream::new(response.into_body()), Vec::new());
    while let Some(part) = body.next().await {
        text.extend_from_slice(&part.map_err(|error| broken(&error))?);
        if text.len() > MAX_BYTES {
            return Err(Problem::lasting(format!("the answer has more than {} KB", MAX_BYTES / 1024)));
        }
    }
    let text = String::from_utf8(text).map_err(|_| Problem::lasting("the answer is not text"))?;
    Ok((status, text))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;
    use jsonwebtoken::Algorithm;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::example_keys::{at, header, jwk, set, token};

    /// A provider whose answer a test may change. It counts the requests.
    struct Server {
        url: String,
        requests: Arc<AtomicUsize>,
        answer: Arc<Mutex<(u16, String)>>,
    }

    impl Server {
        async fn start(keys: &[Value]) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}/keys", listener.local_addr().unwrap());
            let (requests, answer) = (Arc::<AtomicUsize>::default(), Arc::new(Mutex::new((200, set(keys)))));
            let (count, text) = (requests.clone(), answer.clone());
            tokio::spawn(async move {
                while let Ok((mut socket, _)) = listener.accept().await {
                    let mut request = Vec::new();
                    while !request.ends_with(b"\r\n\r\n") {
                        request.push(socket.read_u8().await.unwrap());
                    }
                    count.fetch_add(1, Ordering::SeqCst);
                    let (status, body) = text.lock().await.clone();
                    let head = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\n\r\n", body.len());
                    // A client that has read enough goes away.
                    let _ = socket.write_all((head + &body).as_bytes()).await;
                }
            });
            Self { url, requests, answer }
        }

        async fn answer(&self, status: u16, body: &str) {
            *self.answer.lock().await = (status, body.to_owned());
        }

        fn requests(&self) -> usize {
            self.requests.load(Ordering::SeqCst)
        }

        /// Tokens with no keys yet.
        fn tokens(&self) -> Tokens {
            Tokens::new(Verifier::new(Vec::new(), None, None, 3600), Some(Source::url(&self.url).unwrap()))
        }

        async fn started(&self) -> Tokens {
            let tokens = self.tokens();
            tokens.start(&SdkConfig::builder().build()).await.unwrap();
            tokens
        }

        /// Why the start fails.
        async fn problem(&self) -> String {
            self.tokens().start(&SdkConfig::builder().build()).await.unwrap_err().to_string()
        }
    }

    fn key(id: &str) -> Value {
        jwk(Algorithm::ES256, &json!({ "kid": id }))
    }

    fn signed(id: &str) -> String {
        token(&header(Algorithm::ES256, Some(id)), &json!({"sub": "alice", "exp": at(3000)}))
    }

    async fn advance(time: Duration) {
        tokio::time::pause();
        tokio::time::advance(time).await;
        tokio::time::resume();
    }

    #[test]
    fn a_parameter_is_named_with_its_path_and_an_address_is_safe() {
        for name in ["/keys", "/switchboard/prod/keys", "/a.b/c-d/E_1"] {
            assert!(Source::parameter(name.to_owned(), None).is_ok(), "{name}");
        }
        for name in ["keys", "/", "/a//b", "/a/", "/a/*", "/a?", "/${x}", "/a b", "arn:aws:ssm:us-east-1:1:parameter/a"]
        {
            assert!(Source::parameter(name.to_owned(), None).unwrap_err().contains("/switchboard/prod/keys"), "{name}");
        }
        for url in ["https://a.example/keys?x=1", "http://localhost:1/", "http://127.0.0.1/k", "http://[::1]:8080/k"] {
            assert!(Source::url(url).is_ok(), "{url}");
        }
        for url in ["http://a.example/", "https://u:p@a.example/", "ftp://localhost/", "/keys", "https://", "a b", ""] {
            assert!(Source::url(url).unwrap_err().contains("begins with https://"), "{url}");
        }
        assert!(
            Source::url("http://localhost.a.example/").is_err() && Source::url("http://localhost@a.example/").is_err()
        );
    }

    #[tokio::test]
    async fn an_unknown_kid_reads_the_set_again_and_at_most_once_a_minute() {
        let server = Server::start(&[key("1")]).await;
        let tokens = server.started().await;
        tokens.verify(&signed("1")).await.unwrap();
        for no_reason in ["", "x.y.z", &token(&header(Algorithm::HS256, None), &json!({}))] {
            tokens.verify(no_reason).await.unwrap_err();
        }
        assert_eq!(server.requests(), 1);

        server.answer(200, &set(&[key("2")])).await;
        let (one, other) = (signed("2"), signed("made up"));
        let storm = (0..50).map(|number| tokens.verify(if number % 2 == 0 { &one } else { &other }));
        let storm = join_all(storm).await;
        assert_eq!((server.requests(), storm.iter().filter(|result| result.is_ok()).count()), (2, 25));
        let gone = tokens.verify(&signed("1")).await.unwrap_err().to_string();
        assert_eq!(gone, "no key here has the token's `kid`");
        assert_eq!(server.requests(), 2);

        server.answer(200, &set(&[key("2"), key("3")])).await;
        advance(MIN_INTERVAL - Duration::from_secs(1)).await;
        tokens.verify(&signed("3")).await.unwrap_err();
        advance(Duration::from_secs(1)).await;
        tokens.verify(&signed("3")).await.unwrap();
        assert_eq!(server.requests(), 3);
    }

    #[tokio::test]
    async fn a_read_that_fails_keeps_the_old_keys_and_counts_too() {
        let server = Server::start(&[key("1")]).await;
        let tokens = server.started().await;
        for (number, (status, body)) in [(500, ""), (200, "<html>"), (200, r#"{"keys":[]}"#)].into_iter().enumerate() {
            server.answer(status, body).await;
            for _ in 0..3 {
                tokens.verify(&signed("2")).await.unwrap_err();
                tokens.verify(&signed("1")).await.unwrap();
            }
            assert_eq!(server.requests(), 2 + number, "{body}");
            advance(MIN_INTERVAL).await;
        }
    }

    #[tokio::test]
    async fn a_key_that_is_withdrawn_counts_for_an_hour() {
        let server = Server::start(&[key("1")]).await;
        let tokens = server.started().await;
        server.answer(200, &set(&[key("2")])).await;
        advance(MAX_AGE - Duration::from_secs(1)).await;
        tokens.verify(&signed("1")).await.unwrap();
        advance(Duration::from_secs(1)).await;
        tokens.verify(&signed("1")).await.unwrap_err();
        assert_eq!(server.requests(), 2);
    }

    #[tokio::test]
    async fn a_start_without_keys_fails_with_the_reason_and_without_what_was_read() {
        let server = Server::start(&[]).await;
        let secret = "c2hvcnQtYW5kLXNlY3JldA";
        for (status, body, requests, reason) in [
            (200, "x".repeat(1_000_000), 1, "the answer has more than 64 KB"),
            (200, format!("<html>{secret}"), 1, "the text is not JSON, from line 1 column 1 on"),
            (200, format!("\"{secret}\""), 1, "the JSON is not a JWK Set"),
            (404, secret.to_owned(), 1, "the answer has the status 404"),
            (302, secret.to_owned(), 1, "the answer has the status 302"),
            (503, secret.to_owned(), 2, "the answer has the status 503"),
        ] {
            server.answer(status, &body).await;
            let before = server.requests();
            let problem = server.problem().await;
            let expected = format!("configuration: TOKEN_KEYS_URL: the keys cannot be read: {reason}");
            assert!(problem.starts_with(&expected) && !problem.contains(secret), "{problem}");
            assert_eq!(server.requests() - before, requests, "{reason}");
        }
        let nobody = Server { url: "http://127.0.0.1:1/keys".to_owned(), ..server };
        let problem = nobody.problem().await;
        assert!(problem.contains("there is no answer: ") && problem.contains("refused"), "{problem}");
    }

    #[tokio::test]
    async fn a_server_that_does_not_answer_is_given_up_after_two_attempts() {
        // It accepts connections, because the system does that, and never answers.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys", listener.local_addr().unwrap());
        let server = Server { url, requests: Arc::default(), answer: Arc::default() };
        let start = Instant::now();
        assert!(server.problem().await.ends_with("there is no answer after 1.5s"));
        let time = start.elapsed();
        assert!((2 * ATTEMPT..4 * ATTEMPT).contains(&time), "{time:?}");
        listener.accept().await.unwrap();
        listener.accept().await.unwrap();
    }

    #[tokio::test]
    async fn a_secret_that_is_published_is_skipped() {
        let secret = jwk(Algorithm::HS256, &json!({"kid": "h"}));
        let private = jwk(Algorithm::ES256, &json!({"kid": "p", "d": "AAAA"}));
        let server = Server::start(&[secret, private, key("1")]).await;
        let tokens = server.started().await;
        tokens.verify(&signed("1")).await.unwrap();
        tokens.verify(&signed("p")).await.unwrap_err();
        tokens
            .verify(&token(&header(Algorithm::HS256, Some("h")), &json!({"sub": "a", "exp": at(60)})))
            .await
            .unwrap_err();
    }
}

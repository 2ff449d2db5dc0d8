//! The sockets, the clock, and the task that owns the machine.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{Connector, MaybeTlsStream, WebSocketStream};

use crate::machine::{Command, ConnectionId, Effect, End, Input, Machine};
use crate::types::{Attempt, TokenSource};

/// How long the end of a connection may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// The machine decides, and this task does it.
pub(crate) async fn drive(mut machine: Machine, mut commands: mpsc::UnboundedReceiver<Command>, url: Arc<str>) {
    let (inputs, mut happened) = mpsc::unbounded_channel();
    let mut sockets: HashMap<ConnectionId, mpsc::UnboundedSender<String>> = HashMap::new();
    loop {
        machine.tick(Instant::now());
        for effect in std::mem::take(&mut machine.effects) {
            match effect {
                Effect::Open(connection, attempt) => {
                    let (socket, outgoing) = mpsc::unbounded_channel();
                    sockets.insert(connection, socket);
                    let (token, tls) = (machine.options.token.clone(), machine.options.tls.clone());
                    let link = Link { connection, inputs: inputs.clone(), outgoing };
                    tokio::spawn(link.run(url.clone(), token, tls, attempt));
                }
                Effect::Send(connection, text) => {
                    // The end of a socket is an input of its own.
                    let _ = sockets.get(&connection).map(|socket| socket.send(text));
                }
                Effect::Close(connection) => drop(sockets.remove(&connection)),
            }
        }
        if machine.is_closed() {
            return;
        }
        let deadline = machine.deadline().unwrap_or_else(|| Instant::now() + GOODBYE);
        tokio::select! {
            Some((connection, input)) = happened.recv() => {
                machine.now = Instant::now();
                machine.input(connection, input);
            }
            command = commands.recv() => {
                machine.now = Instant::now();
                // Nobody has a handle any more.
                machine.command(command.unwrap_or(Command::Close));
                while let Ok(command) = commands.try_recv() {
                    machine.command(command);
                }
            }
            () = sleep_until(deadline) => {}
        }
    }
}

/// One connection, from the question for a token to the last close frame.
struct Link {
    connection: ConnectionId,
    inputs: mpsc::UnboundedSender<(ConnectionId, Input)>,
    /// It ends when the machine has closed the connection.
    outgoing: mpsc::UnboundedReceiver<String>,
}

impl Link {
    async fn run(
        mut self,
        url: Arc<str>,
        token: Option<TokenSource>,
        tls: Option<Arc<ClientConfig>>,
        attempt: Attempt,
    ) {
        let opened = tokio::select! {
            opened = open(&url, token, tls, attempt) => opened,
            // Nobody sends before a connection is open.
            _ = self.outgoing.recv() => return,
        };
        match opened {
            Ok(socket) => {
                self.tell(Input::Opened);
                self.talk(socket).await;
            }
            Err(end) => self.tell(Input::Ended(end)),
        }
    }

    fn tell(&self, input: Input) {
        // The machine may have ended.
        let _ = self.inputs.send((self.connection, input));
    }

    async fn talk(mut self, socket: WebSocketStream<MaybeTlsStream<TcpStream>>) {
        let (mut sink, mut stream) = socket.split();
        let (connection, inputs) = (self.connection, self.inputs.clone());
        // Both directions run at the same time: a server that waits for its client to read must not wait for ever.
        let mut read = std::pin::pin!(async {
            loop {
                let (reason, code) = match stream.next().await {
                    Some(Ok(Message::Text(text))) => {
                        let _ = inputs.send((connection, Input::Text(text.as_str().to_owned())));
                        continue;
                    }
                    Some(Ok(Message::Close(Some(frame)))) => (frame.reason.as_str().to_owned(), frame.code.into()),
                    Some(Ok(Message::Close(None))) => (String::new(), 1005),
                    Some(Ok(_)) => continue,
                    Some(Err(error)) => (error.to_string(), 1006),
                    None => (String::new(), 1006),
                };
                let reason = format!("The connection ended with {code} {reason}").trim_end().to_owned();
                return End { code: Some(code), ..End::new(reason) };
            }
        });
        let write = async {
            while let Some(text) = self.outgoing.recv().await {
                sink.send(Message::text(text)).await?;
            }
            sink.close().await
        };
        let ended = tokio::select! {
            end = &mut read => Some(end),
            written = write => match (written, timeout(GOODBYE, &mut read).await) {
                // The server knows better why it does not read any more.
                (_, Ok(end)) => Some(end),
                (Err(error), Err(_)) => Some(End::new(error.to_string())),
                (Ok(()), Err(_)) => None,
            },
        };
        if let Some(end) = ended {
            self.tell(Input::Ended(end));
        }
        // The library answers a close frame while it reads.
        let _ = timeout(GOODBYE, stream.next()).await;
    }
}

/// Asks for a token and connects.
async fn open(
    url: &str,
    token: Option<TokenSource>,
    tls: Option<Arc<ClientConfig>>,
    attempt: Attempt,
) -> Result<WebSocketStream<MaybeTlsStream<TcpStream>>, End> {
    let mut url = url.to_owned();
    if let Some(token) = token {
        let token = token.ask(attempt).await.map_err(End::new)?;
        url.push(if url.contains('?') { '&' } else { '?' });
        url.push_str("token=");
        url.extend(utf8_percent_encode(&token, NON_ALPHANUMERIC));
    }
    let connector = match url.starts_with("wss:") {
        true => Connector::Rustls(tls.unwrap_or_else(|| TLS.clone())),
        false => Connector::Plain,
    };
    let opened = tokio_tungstenite::connect_async_tls_with_config(url, None, true, Some(connector)).await;
    match opened {
        Ok((socket, _)) => Ok(socket),
        Err(error) => Err(failed(&error)),
    }
}

/// Tells whether the server refuses this client, or may take it in a moment.
fn failed(error: &tungstenite::Error) -> End {
    let is_refused = match error {
        // A gateway that has too much to do, and a function that failed, may do better in a moment.
        tungstenite::Error::Http(response) => response.status() != 429 && !response.status().is_server_error(),
        // Nobody answered: a proxy takes connections although the server behind it is down.
        tungstenite::Error::Protocol(ProtocolError::HandshakeIncomplete) => false,
        // The answer does not come from a WebSocket server.
        tungstenite::Error::Protocol(_) | tungstenite::Error::HttpFormat(_) | tungstenite::Error::Url(_) => true,
        _ => false,
    };
    let reason = match error {
        tungstenite::Error::Http(response) => format!("The server answered the handshake with {}.", response.status()),
        error => format!("The handshake failed: {error}."),
    };
    End { is_refused, ..End::new(reason) }
}

/// The machine's certificates are read once. The crypto provider is named, because a program may have several.
static TLS: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has the default versions of TLS");
    Arc::new(config.with_root_certificates(roots).with_no_client_auth())
});

//! The server of the gateway: it accepts TCP connections and gives each request to the handshake or the management API.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::io::InspectReader;

use super::head::{Endpoints, Head};
use super::state::{Gateway, log};
use super::{handshake, management, refusal};
use crate::tls;

/// The time that a shutdown gives connections to close and invocations to end. The value is ours.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// The pause after a failed accept. The usual cause is a lack of file descriptors. The value is ours.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The time for the first byte of a connection and for a TLS handshake. It is that of hyper for the head of a request.
const START_TIMEOUT: Duration = Duration::from_secs(30);

impl Gateway {
    /// Serves the `listeners`, which have one port, until `shutdown` resolves. Then it closes every connection with 1012 and runs the
    /// `$disconnect`s. It returns when all invocations have ended, or after 2 s.
    ///
    /// # Errors
    ///
    /// Fails if a listener has no local address.
    pub async fn serve(
        self: Arc<Self>,
        listeners: Vec<TcpListener>,
        shutdown: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let gateway = self;
        let ports = listeners.iter().map(|listener| Ok(listener.local_addr()?.port()));
        let ports = ports.collect::<io::Result<Vec<_>>>()?;
        let mut shutdown = pin!(shutdown);
        loop {
            let next = future::select_all(listeners.iter().map(|listener| Box::pin(listener.accept())));
            let (accepted, index, _) = tokio::select! {
                () = &mut shutdown => break,
                accepted = next => accepted,
            };
            match accepted {
                Ok((tcp, peer)) => {
                    let port = ports[index];
                    gateway.spawn(serve_tcp(gateway.clone(), tcp, Endpoints { peer, port, scheme: "http" }));
                }
                Err(error) => {
                    log(format_args!("cannot accept: {error}"));
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listeners);
        gateway.stopping.send_replace(true);
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, gateway.stopping.closed()).await.is_err() {
            log(format_args!("the gateway stopped before the last invocations ended"));
        }
        Ok(())
    }

    /// Waits for a part of a connection's start. Returns `None` if that takes too long or the gateway stops.
    async fn in_time<T>(&self, part: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = tokio::time::timeout(START_TIMEOUT, part) => done.ok(),
            () = self.stopped() => None,
        }
    }
}

/// Serves one TCP connection, with or without TLS. Functions that make their endpoint themselves come with TLS.
async fn serve_tcp(gateway: Arc<Gateway>, tcp: TcpStream, endpoints: Endpoints) {
    // Frames are small, and the other side waits for each. If the call fails, frames are only some milliseconds late.
    let _ = tcp.set_nodelay(true);
    let Some(first) = gateway.in_time(first_byte(&tcp)).await.flatten() else { return };
    let Some(authority) = gateway.authority.as_ref().filter(|_| first == tls::FIRST_BYTE) else {
        return serve_http(gateway, tcp, endpoints).await;
    };
    match gateway.in_time(authority.accept(tcp, &gateway.access)).await {
        Some(Ok(stream)) => serve_http(gateway.clone(), stream, Endpoints { scheme: "https", ..endpoints }).await,
        Some(Err(error)) => log(format_args!(
            "refused TLS from {}: {error}. Functions trust the stack's certificate if they read SSL_CERT_FILE, \
             NODE_EXTRA_CA_CERTS or AWS_CA_BUNDLE; clients use ws:// and http://",
            endpoints.peer
        )),
        None => {}
    }
}

/// Looks at the first byte of a connection without taking it. Returns `None` if there is none.
async fn first_byte(tcp: &TcpStream) -> Option<u8> {
    let mut first = [0];
    tcp.peek(&mut first).await.is_ok_and(|length| length > 0).then_some(first[0])
}

/// Serves the HTTP requests of one connection until one of them upgrades it.
async fn serve_http<S>(gateway: Arc<Gateway>, stream: S, endpoints: Endpoints)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let head = Head::default();
    let service = service_fn(|request| {
        let (gateway, head) = (gateway.clone(), head.clone());
        async move { Ok::<_, Infallible>(respond(&gateway, request, endpoints, &head).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new());
    let stream = TokioIo::new(InspectReader::new(stream, head.recorder()));
    let mut serving = pin!(http.serve_connection(stream, service).with_upgrades());
    let served = tokio::select! {
        served = &mut serving => served,
        () = gateway.stopped() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    // Only bytes that are not HTTP are worth a line. All other errors mean that the client has left.
    if let Err(error) = served
        && error.is_parse()
    {
        log(format_args!("refused a request from {}: {error}", endpoints.peer));
    }
}

async fn respond(
    gateway: &Arc<Gateway>,
    request: Request<Incoming>,
    endpoints: Endpoints,
    head: &Head,
) -> Response<Full<Bytes>> {
    if let Err(stranger) = gateway.access.check(request.headers(), request.uri()) {
        return refusal::of_stranger(&stranger);
    }
    match management::path(request.uri().path()) {
        Some(path) => management::respond(gateway, request, &path).await,
        None => handshake::respond(gateway, request, endpoints, head).await,
    }
}

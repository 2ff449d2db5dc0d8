//! The stream of a connection. It is TCP, and reads of it are inflated if compression was negotiated.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::CHUNK;
use super::inflater::Inflater;
use super::negotiation::Negotiated;

/// A TCP connection that inflates what it reads, if compression was negotiated.
#[derive(Debug)]
pub(in crate::gateway) struct Transport<S> {
    tcp: S,
    /// This is `None` without compression. The box keeps a connection without compression small.
    pub(super) inflater: Option<Box<Inflater>>,
}

impl<S> Transport<S> {
    /// Makes the stream of a connection. `frame_limit` is the most bytes of a frame, as the client sends it.
    pub(in crate::gateway) fn new(tcp: S, negotiated: Option<Negotiated>, frame_limit: usize) -> Self {
        Self { tcp, inflater: negotiated.map(|_| Box::new(Inflater::new(frame_limit))) }
    }

    /// Returns TCP itself. Bytes that were read and not passed on are lost.
    pub(in crate::gateway) fn into_inner(self) -> S {
        self.tcp
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Transport<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { tcp, inflater } = &mut *self;
        let Some(inflater) = inflater else { return Pin::new(tcp).poll_read(cx, buffer) };
        while !inflater.read(buffer)? {
            let mut bytes = [0; CHUNK];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut *tcp).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                break;
            }
            inflater.push(read.filled());
        }
        Poll::Ready(Ok(()))
    }
}

/// Writes pass unchanged, because the [`Deflater`](super::Deflater) has compressed the messages.
impl<S: AsyncWrite + Unpin> AsyncWrite for Transport<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

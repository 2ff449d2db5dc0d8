//! A WebSocket client that speaks JSON.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::stack::PATIENCE;

/// A connected client.
#[derive(Debug)]
pub struct Client {
    /// The library's own socket, for frames that are not JSON.
    pub socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    ///
    /// The status with which the handshake was refused.
    pub async fn connect(url: &str) -> Result<Self, u16> {
        match tokio_tungstenite::connect_async(url).await {
            Ok((socket, _)) => Ok(Self { socket }),
            Err(Error::Http(response)) => Err(response.status().as_u16()),
            Err(error) => panic!("{url}: {error}"),
        }
    }

    /// Sends a frame.
    pub async fn send(&mut self, frame: Value) {
        self.send_text(&frame.to_string()).await;
    }

    /// Sends a text that need not be JSON.
    pub async fn send_text(&mut self, text: &str) {
        self.socket.send(Message::text(text)).await.unwrap();
    }

    /// The next frame's text.
    pub async fn next_text(&mut self) -> String {
        match tokio::time::timeout(PATIENCE, self.socket.next()).await.expect("no frame came") {
            Some(Ok(Message::Text(text))) => text.as_str().to_owned(),
            other => panic!("not a text frame: {other:?}"),
        }
    }

    /// The next frame.
    pub async fn next(&mut self) -> Value {
        let text = self.next_text().await;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Sends a frame and returns the one that comes next.
    pub async fn ask(&mut self, frame: Value) -> Value {
        self.send(frame).await;
        self.next().await
    }

    /// Sends a ping frame and proves by its pong that nothing else came before.
    pub async fn hears_nothing(&mut self) {
        assert_eq!(self.ask(json!({"type": "ping"})).await, json!({"type": "pong"}));
    }

    /// Waits until the gateway closes, and returns the code.
    pub async fn closed(&mut self) -> u16 {
        loop {
            match tokio::time::timeout(PATIENCE, self.socket.next()).await.expect("no close frame came") {
                Some(Ok(Message::Close(Some(frame)))) => return frame.code.into(),
                Some(Ok(_)) => {}
                other => panic!("not a close frame: {other:?}"),
            }
        }
    }

    /// Closes, and waits for the end.
    pub async fn close(mut self) {
        self.socket.close(None).await.unwrap();
        while let Some(Ok(_)) = self.socket.next().await {}
    }
}

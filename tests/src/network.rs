//! A network between clients and a stack: a test cuts it, makes it deaf, or says something in the stack's name.

use std::io::Result;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{broadcast, watch};

use crate::stack::PATIENCE;

/// A proxy for TCP connections. It ends with its test.
#[derive(Debug)]
pub struct Network {
    /// `127.0.0.1:{port}`.
    pub address: String,
    state: watch::Sender<State>,
    commands: broadcast::Sender<Command>,
}

/// The settings of the network, and its observations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct State {
    /// Nobody connects.
    pub is_down: bool,
    /// Whether everything that comes from the stack is lost.
    pub is_deaf: bool,
    /// How many pieces were lost.
    pub lost: usize,
    /// How many connections there have been.
    pub connections: usize,
    /// How many there are.
    pub open: usize,
}

#[derive(Debug, Clone)]
enum Command {
    Cut,
    Say(Arc<[u8]>),
}

impl Network {
    /// A network in front of `127.0.0.1:{port}`.
    pub async fn to(upstream: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (state, commands) = (watch::Sender::new(State::default()), broadcast::Sender::new(64));
        let (shared, sender, upstream) = (state.clone(), commands.clone(), upstream.to_owned());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if shared.borrow().is_down {
                    continue;
                }
                shared.send_modify(|state| {
                    state.connections += 1;
                    state.open += 1;
                });
                let (shared, upstream, commands) = (shared.clone(), upstream.clone(), sender.subscribe());
                tokio::spawn(async move {
                    // One of the sides has ended, and it does not matter how.
                    let _ = pass(client, upstream, &shared, commands).await;
                    shared.send_modify(|state| state.open -= 1);
                });
            }
        });
        Self { address, state, commands }
    }

    /// Its observations so far.
    pub fn state(&self) -> State {
        *self.state.borrow()
    }

    /// Waits until it saw this.
    pub async fn until(&self, is: impl Fn(&State) -> bool) {
        let mut state = self.state.subscribe();
        let seen = tokio::time::timeout(PATIENCE, state.wait_for(is)).await;
        assert!(seen.is_ok(), "the network waited in vain: {:?}", self.state());
    }

    /// Lets nobody connect, or everybody again.
    pub fn set_down(&self, is_down: bool) {
        self.state.send_modify(|state| state.is_down = is_down);
    }

    /// Loses what comes from the stack, or nothing again.
    pub fn set_deaf(&self, is_deaf: bool) {
        self.state.send_modify(|state| state.is_deaf = is_deaf);
    }

    /// Cuts all connections, without a close frame.
    pub async fn cut(&self) {
        // There may be no connections.
        let _ = self.commands.send(Command::Cut);
        self.until(|state| state.open == 0).await;
    }

    /// Sends a frame to the clients, as if it came from the stack. Its text has 126 bytes or more, but fewer than 65,536.
    pub fn say(&self, frame: &serde_json::Value) {
        // Spaces at the end change nothing.
        let text = format!("{frame:<126}", frame = frame.to_string());
        let length = u16::try_from(text.len()).unwrap().to_be_bytes();
        let bytes = [&[0x81, 126], &length[..], text.as_bytes()].concat();
        self.commands.send(Command::Say(bytes.into())).unwrap();
    }
}

/// Passes bytes in both directions until one side ends, or a cut.
async fn pass(
    mut client: TcpStream,
    upstream: String,
    state: &watch::Sender<State>,
    mut commands: broadcast::Receiver<Command>,
) -> Result<()> {
    let mut upstream = TcpStream::connect(upstream).await?;
    let (mut there, mut back) = ([0; 16_384], [0; 16_384]);
    loop {
        tokio::select! {
            read = client.read(&mut there) => match read? {
                0 => return Ok(()),
                length => upstream.write_all(&there[..length]).await?,
            },
            read = upstream.read(&mut back) => match read? {
                0 => return Ok(()),
                _ if state.borrow().is_deaf => state.send_modify(|state| state.lost += 1),
                length => client.write_all(&back[..length]).await?,
            },
            command = commands.recv() => match command {
                Ok(Command::Say(bytes)) => client.write_all(&bytes).await?,
                _ => return Ok(()),
            },
        }
    }
}

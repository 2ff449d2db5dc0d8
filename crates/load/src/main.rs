//! Loads a running Switchboard with clients and messages, and measures what arrives when.
//!
//! The latency of a message counts from the moment when it was due. A client that cannot send at that moment, because it is
//! reconnecting or waits for an ack, makes the message late; otherwise a server that is slow would look fast.

mod report;
mod run;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

/// Loads a running Switchboard with clients and messages, and measures what arrives when.
#[derive(Debug, Clone, Parser)]
#[command(name = "switchboard-load")]
struct Arguments {
    /// The address, as ws:// or wss://. `{n}` in it becomes the number of the client: ws://localhost:3001/dev?userId={n}.
    #[arg(value_name = "URL")]
    url: String,
    /// How many clients connect.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    connections: u64,
    /// How many messages are sent in a second, by all clients together.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    rate: u64,
    /// How many clients listen to each topic, so how many receive each message.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    fanout: u64,
    /// How long messages are sent.
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration, value_name = "TIME")]
    time: Duration,
    /// All clients reconnect at once, each time that this has passed.
    #[arg(long, value_parser = humantime::parse_duration, value_name = "TIME")]
    reconnect: Option<Duration>,
    /// How long the gateway lets a connection live. Clients move to a new one before. With `--clock x60`, the local stack
    /// needs 2m.
    #[arg(long, default_value = "2h", value_parser = humantime::parse_duration, value_name = "TIME")]
    lifetime: Duration,
    /// The beginning of the names of the topics. `room` has history in the stage `dev`.
    #[arg(long, default_value = "load")]
    topic: String,
    /// How long the clients may take to connect, and the last messages to arrive.
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration, value_name = "TIME")]
    patience: Duration,
    /// Prints the result as JSON.
    #[arg(long)]
    json: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (text, code) = match run::run(&arguments).await {
        Ok(outcome) => {
            let text = if arguments.json { outcome.json().to_string() } else { outcome.text() };
            (text, outcome.problem().is_some())
        }
        Err(problem) => {
            say(&mut std::io::stderr(), &format!("switchboard-load: {problem}"));
            return ExitCode::FAILURE;
        }
    };
    say(&mut std::io::stdout(), &text);
    ExitCode::from(u8::from(code))
}

/// Writes a text. Its reader may have gone.
fn say(to: &mut dyn Write, text: &str) {
    let _ = writeln!(to, "{text}");
}
